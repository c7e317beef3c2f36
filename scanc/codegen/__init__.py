"""Backends: each prints a plan (scanc.forms.plan) in its own language, and loads what it printed."""
