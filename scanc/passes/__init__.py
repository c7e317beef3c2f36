"""Passes: each file turns a graph into a graph."""
