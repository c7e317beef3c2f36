"""Real and imaginary parts taken before the work that would compute both.

    real(sum(z, n))     ->  sum(real(z), n)          half the adding
    real(mul(z, x))     ->  mul(real(z), x)          real x: half the multiplying

Only where nothing else reads the complex value: otherwise both parts are computed anyway, and taking one is free.
"""

from __future__ import annotations

from scanc.ir import Builder, Graph, Node, rewrite
from scanc.passes.rules import stand_in, uses


def take_parts_early(graph: Graph) -> Graph:
    """``graph`` with ``real`` and ``imag`` moved under sums and products by real factors."""
    b = Builder.of(graph)
    count = uses(graph)

    def step(node: Node, args: tuple[Node, ...]) -> Node:
        b.where = node.where
        same = node if args == node.args else b.like(node, args)
        if same.op not in ("real", "imag") or args[0].kind != "complex" or count[node.args[0]] > 1:
            return same
        new = _part(b, same.op, args[0])
        return same if new is None else stand_in(graph, new, node)

    return rewrite(graph, step)


def _part(b: Builder, part: str, z: Node) -> Node | None:
    if z.op == "sum":
        return b.sum_to(b.pointwise(part, z.args[0]), z.axes)
    if z.op == "mul" and {a.kind for a in z.args} == {"real", "complex"}:
        return b.pointwise("mul", *(b.pointwise(part, a) if a.kind == "complex" else a for a in z.args))
    return None
