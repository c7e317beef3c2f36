"""Small graphs built by hand, so that the tuner's logic is tested without any op."""

from __future__ import annotations

from scanc.ir import Builder, Graph, Output, Type


def scan_graph(*, two_ways: bool = False, sum_lanes: bool = False) -> Graph:
    """y = sum_n(C h), h_t = exp(dt A) h_{t-1} + dt B u; with a reverse scan, or a result summed over channels, where asked."""
    order, groups = ("b", "d", "l", "n", "g"), {"g": "d"}
    b = Builder(order, groups, "l")
    u, dt = b.input("u", Type(("b", "d", "l"), "float32")), b.input("dt", Type(("b", "d", "l"), "float32"))
    a, bb = b.input("A", Type(("d", "n"), "float32")), b.input("B", Type(("b", "g", "n", "l"), "float32"))
    transition = b.pointwise("exp", b.pointwise("mul", dt, a))
    h = b.scan(transition, b.pointwise("mul", b.pointwise("mul", dt, bb), u), axis="l")
    if two_ways:
        h = b.scan(transition, h, axis="l", reverse=True, shifted=True)
    y = b.sum(b.pointwise("mul", bb, h), ("n",))
    outputs = [Output("y", y, ("b", "d", "l")), Output("last_state", b.final(h), ("b", "d", "n"))]
    if sum_lanes:
        outputs.append(Output("s", b.sum(y, ("d",)), ("b", "l")))
    return Graph("toy", (u, dt, a, bb), tuple(outputs), "l", order, groups, ("n",))
