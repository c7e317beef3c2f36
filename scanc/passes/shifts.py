"""Shifts along time moved to the inputs, so that a backend looks back in memory only.

    shift(mul(x, w), 1)  ->  where(index >= 1, mul(shift(x, 1), w), 0)       x[b d l], w[d]
    shift(h, 1)          ->  prior(h)                                        h = scan(a, b)
    shift(h, 1)          ->  where(index >= 1, prior(h), 0)                  h = scan(a, b, initial)
    shift(sum(C * h), 1) ->  where(index >= 1, sum(shift(C, 1) * prior(h)), 0)

Where a shift reads outside, the pushed expression computes something of no use (log(0), say) and ``where`` discards it.
A shift stays where it is if a value under it cannot be had at another step: a scan looked at from further than one step in its
own order, the value of a shifted scan, a value over a grouped time axis. Backends refuse those by name.
"""

from __future__ import annotations

from scanc.ir import Builder, Graph, Node, is_pointwise, rewrite, topological
from scanc.passes.broadcasts import lift_broadcasts
from scanc.passes.rules import stand_in
from scanc.passes.share import share

_FILL = {"bool": bool, "int": int, "real": float, "complex": complex}


def push_shifts(graph: Graph) -> Graph:
    """``graph`` with shifts along time on inputs only, except those that cannot be moved. Canonical graphs stay canonical."""
    axis = graph.time
    # A group repeats along the axis it divides: its position at t - by is not the value's.
    if not axis or axis in graph.groups or axis in graph.groups.values():
        return graph
    b = Builder.of(graph)

    def step(node: Node, args: tuple[Node, ...]) -> Node:
        b.where = node.where
        same = node if args == node.args else b.like(node, args)
        if same.op != "shift" or same.attrs["axis"] != axis or same.args[0].op == "input":
            return same
        pushed = _shifted(b, same.args[0], axis, same.attrs["by"], same.attrs["fill"])
        return same if pushed is None else stand_in(graph, pushed, node)

    # Conditions repeat from shift to shift, and a value constant in time leaves a broadcast under ``where``.
    return share(lift_broadcasts(rewrite(graph, step)))


def _shifted(b: Builder, x: Node, axis: str, by: int, fill: float | int | bool) -> Node | None:
    """x[t - by], and ``fill`` where that is outside; None where x cannot be had at another step."""
    if x.op == "input":
        return b.shift(x, axis, by, fill)
    if x.op == "broadcast" and axis in x.args[0].axes:
        inner = _shifted(b, x.args[0], axis, by, fill)
        return None if inner is None else b.broadcast(inner, x.axes)
    value = _Push(b, axis, by).value(x)
    if value is None:
        return None
    # The carry before the first step is already what a shift fills in.
    if x.op == "scan" and len(x.args) == 2 and fill == 0:
        return value
    return b.pointwise("where", _inside(b, axis, by), value, b.const(_FILL[x.kind](fill), x.kind))


def _inside(b: Builder, axis: str, by: int) -> Node:
    """0 <= index - by < size"""
    if by >= 0:
        return b.pointwise("ge", b.index(axis), b.const(by, "int"))
    return b.pointwise("lt", b.index(axis), b.pointwise("sub", b.size(axis), b.const(-by, "int")))


class _Push:
    """Values at step t - by, right wherever that step exists and arbitrary elsewhere."""

    def __init__(self, b: Builder, axis: str, by: int) -> None:
        self.b, self.axis, self.by = b, axis, by
        self.moved: dict[Node, Node | None] = {}

    def value(self, x: Node) -> Node | None:
        for node in topological([x]):
            if node not in self.moved:
                self.moved[node] = self._move(node)
        return self.moved[x]

    def _move(self, node: Node) -> Node | None:
        b, by = self.b, self.by
        if self.axis not in node.axes:
            return node
        match node.op:
            case "input":
                return b.shift(node, self.axis, by, 0)
            case "index":
                return b.pointwise("sub", node, b.const(by, "int"))
            case "shift" if node.attrs["axis"] == self.axis:
                return self._shift(node)
            case "scan" | "prior":
                return self._carry(node)
            case "conv" if node.attrs["axis"] == self.axis:
                return self._conv(node)
            case "broadcast" | "sum":
                return self._over_others(node)
            case _ if is_pointwise(node):
                return self._over_others(node)
        return None

    def _over_others(self, node: Node) -> Node | None:
        """An op that works at each step alone."""
        args = tuple(a for n in node.args if (a := self.moved[n]) is not None)
        return self.b.like(node, args) if len(args) == len(node.args) else None

    def _shift(self, node: Node) -> Node | None:
        """Two shifts are one, with the inner one's fill where only it reads outside."""
        total = self.by + node.attrs["by"]
        if total == 0:
            return node.args[0]
        return _shifted(self.b, node.args[0], self.axis, total, node.attrs["fill"])

    def _carry(self, node: Node) -> Node | None:
        """The value one step before is the carry, and the carry one step after is the value."""
        scan = node if node.op == "scan" else node.args[0]
        if scan.attrs["shifted"] or scan.attrs["axis"] != self.axis:
            return None
        back = -self.by if scan.attrs["reverse"] else self.by
        if node.op == "scan":
            return self.b.prior(scan) if back == 1 else None
        return scan if back == -1 else None

    def _conv(self, node: Node) -> Node | None:
        """A convolution of a later x is later itself, if what moves in at the edge is the 0 it assumes there."""
        x, kernel = node.args
        if (self.by < 0) != node.attrs["reverse"]:
            return None
        later = _shifted(self.b, x, self.axis, self.by, 0)
        return None if later is None else self.b.like(node, (later, kernel))
