"""Broadcasts moved outwards, past everything that would repeat its work along the new axes, and dropped where they add nothing.

    broadcast(broadcast(x, d), n)      ->  broadcast(x, d n)
    mul(broadcast(x[l], d), y[d l])    ->  mul(x, y)              y brings the axes
    exp2(broadcast(x[l], d))           ->  broadcast(exp2(x), d)  computed once per l, not per (d, l)
    scan(broadcast(a[l], d), b[d l])   ->  scan(a, b)             b brings the axes
"""

from __future__ import annotations

from scanc.ir import Builder, Graph, Node, is_pointwise
from scanc.passes.rules import apply, over


def lift_broadcasts(graph: Graph) -> Graph:
    """``graph`` with each broadcast as far out as it goes: below outputs, sums, and scans that have the axes from nowhere else."""
    return apply(graph, _lift)


def _lift(b: Builder, node: Node) -> Node | None:
    if node.op == "broadcast" and set(node.axes) == set(node.args[0].axes):
        return node.args[0]
    if not any(a.op == "broadcast" for a in node.args):
        return None
    inner = tuple(_bare(a) for a in node.args)
    if node.op == "broadcast":
        return over(b, inner[0], node)
    if is_pointwise(node):
        return over(b, b.like(node, inner), node)
    if node.op == "shift" and node.attrs["axis"] in inner[0].axes:
        return over(b, b.like(node, inner), node)
    return _lift_scan(b, node) if node.op == "scan" else None


def _lift_scan(b: Builder, node: Node) -> Node | None:
    """A scan's own type says where its state lives, so an operand sheds its broadcast only if another keeps the axes."""
    args = node.args
    for i, arg in enumerate(args):
        trial = (*args[:i], _bare(arg), *args[i + 1 :])
        if b.like(node, trial).type == node.type:
            args = trial
    return None if args == node.args else b.like(node, args)


def _bare(node: Node) -> Node:
    return node.args[0] if node.op == "broadcast" else node
