"""Sums of sums and sums of broadcasts.

    sum(sum(x[b d l], d), l)           ->  sum(x, d l)               when nothing else reads the inner sum
    sum(broadcast(x[b l], d), d l)     ->  sum(x, l) * size(d)
    sum(broadcast(x[b g], d), d to g)  ->  x * (size(d) / size(g))
"""

from __future__ import annotations

from scanc.ir import Builder, Graph, Node, rewrite
from scanc.passes.rules import over, stand_in, uses


def merge_sums(graph: Graph) -> Graph:
    """``graph`` with nested sums merged and no axis summed along which the value only repeats."""
    b = Builder.of(graph)
    count = uses(graph)

    def step(node: Node, args: tuple[Node, ...]) -> Node:
        b.where = node.where
        same = node if args == node.args else b.like(node, args)
        if same.op != "sum":
            return same
        if set(args[0].axes) == set(node.axes):
            return stand_in(graph, args[0], node)
        # How often a value is read is known of the graph before the pass, so the old argument is asked.
        if args[0].op == "sum" and count[node.args[0]] == 1:
            return stand_in(graph, b.sum_to(args[0].args[0], node.axes), node)
        new = _sum_of_broadcast(b, graph, same) if args[0].op == "broadcast" else None
        return same if new is None else stand_in(graph, new, node)

    return rewrite(graph, step)


def _sum_of_broadcast(b: Builder, graph: Graph, node: Node) -> Node | None:
    """What the values repeat along is a factor; the rest is summed where it varies."""
    wide = node.args[0]
    x = wide.args[0]
    groups = {axis: group for group, axis in graph.groups.items()}
    repeats: Node | None = None
    for axis in wide.axes:
        if axis in node.axes or axis in x.axes:
            continue
        times = b.size(axis)
        # x over g is repeated for the members of each group; summed into groups it is so whether x has g or not.
        group = groups.get(axis)
        if group is not None and (group in x.axes or group in node.axes):
            times = b.pointwise("div", times, b.size(group))
        repeats = times if repeats is None else b.pointwise("mul", repeats, times)
    if repeats is None:
        return None
    kept = [a for a in node.axes if a in x.axes or (a in graph.groups and graph.groups[a] in x.axes)]
    kept += [g for g, axis in graph.groups.items() if axis in node.axes and g in x.axes]
    total = b.pointwise("mul", b.sum_to(x, tuple(kept)), repeats)
    return over(b, total, node)
