"""Random valid graphs: one generator, driven by a seed (``random_graph``) or by Hypothesis (``graphs``).

Every graph is over some of SIZES' axes with ``g`` grouping ``d`` and time ``l``; values stay bounded and away from the kinks and poles
of their functions, so that a graph can be differentiated twice and compared in float64.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import torch
from hypothesis import strategies as st
from torch import Tensor

from scanc.ir import Builder, Graph, Node, Output, Type

SIZES = {"b": 2, "d": 4, "l": 5, "n": 3, "g": 2, "w": 3}

# Inputs as ops have them, some in an order that is not the canonical one.
_REAL = (("b", "d", "l"), ("d", "n"), ("b", "g", "n", "l"), ("d",), ("b", "n", "l"), ("n", "d"), ("g",), ("l", "d"))
_COMPLEX = (("d", "n"), ("b", "d", "l"), ("l", "n"))
_STATE = (("b", "d", "n"), ("n", "d"), ("d",))

Choose = Callable[[int], int]  # a number from 0 to n - 1


def random_graph(seed: int, *, steps: int = 8, complex_values: bool = True, convolutions: bool = True, shifted: bool = True) -> Graph:
    """The graph of ``seed``: always the same one. Options as in ``graphs``."""
    return _generate(random.Random(seed).randrange, steps, complex_values, convolutions, shifted)


@st.composite
def graphs(draw: st.DrawFn, *, max_steps: int = 10, complex_values: bool = True, convolutions: bool = True, shifted: bool = True) -> Graph:
    """Any graph of up to ``max_steps`` operations beside its first scan; ``shifted`` allows what only adjoints contain."""
    steps = draw(st.integers(0, max_steps))
    return _generate(lambda n: draw(st.integers(0, n - 1)), steps, complex_values, convolutions, shifted)


def random_inputs(graph: Graph, seed: int = 0, sizes: Mapping[str, int] = SIZES) -> dict[str, Tensor]:
    """Tensors for every input: reals and complexes standard normal in float64, ints in 0..3."""
    make = torch.Generator().manual_seed(seed)
    out: dict[str, Tensor] = {}
    for node in graph.inputs:
        shape = [sizes[a] for a in node.axes]
        match node.kind:
            case "int":
                x = torch.randint(0, 4, shape, generator=make)
            case "bool":
                x = torch.rand(shape, generator=make) < 0.3
            case kind:
                x = torch.randn(shape, generator=make, dtype=torch.complex128 if kind == "complex" else torch.float64)
        out[str(node.name)] = x
    return out


def _generate(choose: Choose, steps: int, complex_values: bool, convolutions: bool, shifted: bool) -> Graph:
    g = _Generator(choose, complex_values, shifted)
    g.pool.append(g.scan())
    moves = [g.unary, g.unary, g.binary, g.binary, g.binary, g.where, g.sum, g.shift, g.scan, g.read, g.position, g.maximum]
    if convolutions:
        moves.append(g.conv)
    if complex_values:
        moves.append(g.complex)
    for _ in range(steps):
        g.pool.append(moves[choose(len(moves))]())
    return g.finish()


class _Generator:
    """Holds the values made so far and makes one more from them."""

    def __init__(self, choose: Choose, complex_values: bool, shifted: bool) -> None:
        self.choose, self.shifted = choose, shifted
        real = [("u", ("b", "d", "l")), *((f"x{i}", _REAL[choose(len(_REAL))]) for i in range(1 + choose(3)))]
        types = [(name, Type(axes, "real")) for name, axes in real]
        types.append(("h0", Type(_STATE[choose(len(_STATE))], "real")))
        types.append(("mask", Type((("b", "l"), ("l",), ("d",))[choose(3)], "bool")))
        types.append(("k", Type((("d", "w"), ("w",))[choose(2)], "real")))
        types.append(("long", Type((("d", "l"), ("l",), ("g", "l"))[choose(3)], "real")))
        types.append(("position", Type(("b", "l"), "int")))
        if complex_values:
            types.append(("z", Type(_COMPLEX[choose(len(_COMPLEX))], "complex")))
        self.order = tuple(dict.fromkeys(a for _, t in types for a in t.axes))
        self.groups = {"g": "d"} if "g" in self.order else {}
        self.b = Builder(self.order, self.groups, "l")
        self.inputs = {name: self.b.input(name, t) for name, t in types}
        self.pool: list[Node] = [n for name, n in self.inputs.items() if n.kind in ("real", "complex") and name not in ("k", "long")]

    # -- picking ---------------------------------------------------------------------------------------------------

    def pick(self, holds: Callable[[Node], bool] = lambda _: True) -> Node:
        """A value that ``holds``, later ones likelier to be the first choice; u is real and over time, so there is one."""
        found = [n for n in reversed(self.pool) if holds(n)]
        return found[self.choose(len(found))]

    def real(self) -> Node:
        return self.pick(lambda n: n.kind == "real")

    def timed(self) -> Node:
        x = self.pick()
        return self.b.broadcast(x, ("l",))

    def point(self, op: str, *args: Node | float) -> Node:
        return self.b.pointwise(op, *(self.b.const(x) if isinstance(x, float | int) else x for x in args))

    def bounded(self, x: Node) -> Node:
        """A value below 1 in magnitude: tanh(x), or z / (1 + |z|^2)."""
        if x.kind == "real":
            return self.point("tanh", x)
        return self.point("div", x, self.point("add", 1.0, self.point("real", self.point("mul", x, self.point("conj", x)))))

    # -- making ----------------------------------------------------------------------------------------------------

    def unary(self) -> Node:
        x = self.pick()
        if x.kind == "complex":
            op = ("neg", "conj", "square", "exp", "sin", "tanh", "sigmoid", "abs", "sign")[self.choose(9)]
            x = self.bounded(x) if op in ("square", "exp", "sin", "tanh", "sigmoid") else x
            # 0 is where |z| has no derivative; shifts make zeros
            return self.point(op, self.point("add", x, 2.0) if op in ("abs", "sign") else x)
        free = ("neg", "sigmoid", "silu", "softplus", "tanh", "sin", "cos", "erf", "relu", "abs", "sign")
        small = ("exp", "exp2", "expm1", "square")
        positive = ("log", "log2", "log1p", "sqrt", "rsqrt", "reciprocal")
        op = (*free, *small, *positive)[self.choose(len(free) + len(small) + len(positive))]
        if op in small:
            x = self.bounded(x)
        if op in positive:
            x = self.point("add", 1.0, self.point("square", self.bounded(x)))
        return self.point(op, x)

    def binary(self) -> Node:
        x, y = self.pick(), self.pick()
        match self.choose(4):
            case 0:
                return self.point("add", x, y)
            case 1:
                return self.point("sub", x, y)
            case 2:
                return self.point("mul", x, self.bounded(y))
            case _:
                d = self.bounded(y)
                return self.point("div", x, self.point("add", 2.0, d))

    def maximum(self) -> Node:
        """Of values that are never equal."""
        return self.point(("maximum", "minimum")[self.choose(2)], self.real(), self.point("add", self.real(), 0.3719))

    def where(self) -> Node:
        conditions = [
            lambda: self.inputs["mask"],
            lambda: self.point("not", self.inputs["mask"]),
            lambda: self.point("lt", self.real(), 0.2113),
            lambda: self.point("and", self.inputs["mask"], self.point("ge", self.inputs["position"], self.b.const(2, "int"))),
        ]
        return self.point("where", conditions[self.choose(4)](), self.pick(), self.pick())

    def sum(self) -> Node:
        x = self.pick(lambda n: bool(n.axes))
        if "d" in x.axes and "g" in self.order and self.choose(3) == 0:
            return self.b.sum_to(x, tuple("g" if a == "d" else a for a in x.axes))
        return self.b.sum(x, (x.axes[self.choose(len(x.axes))],))

    def shift(self) -> Node:
        return self.b.shift(self.timed(), "l", (1, -1, 2, 7)[self.choose(4)], (0, 0.5)[self.choose(2)])

    def scan(self) -> Node:
        a, b = self.bounded(self.pick()), self.pick()
        initial = (None, self.inputs["h0"], None)[self.choose(3)]
        if initial is not None and self.choose(2):
            initial = self.point("sin", initial)
        return self.b.scan(a, b, initial, axis="l", reverse=bool(self.choose(2)), shifted=self.shifted and self.choose(3) == 0)

    def read(self) -> Node:
        scans = [n for n in self.pool if n.op == "scan"]
        scan = scans[self.choose(len(scans))]
        return (self.b.prior, self.b.final)[self.choose(2)](scan)

    def position(self) -> Node:
        free = [a for a in self.order if a != "w"]  # a value over taps cannot be convolved
        axis = free[self.choose(len(free))]
        ratio = self.point("div", self.b.index(axis), self.b.size(axis))
        return self.point("mul", self.pick(), ratio)

    def conv(self) -> Node:
        x = self.timed()
        tap = ("w", "l")[self.choose(2)]
        reverse = bool(self.choose(2))
        if self.shifted and self.choose(3) == 0:
            return self.b.sum(self.b.conv_kernel_grad(x, self.timed(), "l", tap, reverse=reverse), (tap,))
        return self.b.conv(x, self.inputs["k" if tap == "w" else "long"], "l", tap, reverse=reverse)

    def complex(self) -> Node:
        match self.choose(4):
            case 0:
                return self.point("complex", self.real(), self.real())
            case 1:
                return self.b.pointwise("cast", self.real(), kind="complex")
            case n:
                return self.point(("real", "imag")[n - 2], self.pick())

    # -- the graph --------------------------------------------------------------------------------------------------

    def finish(self) -> Graph:
        nodes = [self.pool[-1]]
        for _ in range(self.choose(3)):
            nodes.append(self.pool[-1 - self.choose(min(4, len(self.pool)))])
        outputs = []
        for i, node in enumerate(nodes):
            axes = list(node.axes)
            for j in range(len(axes) - 1, 0, -1):  # any order: the tensor's axes need not be canonical
                k = j - self.choose(j + 1)
                axes[j], axes[k] = axes[k], axes[j]
            outputs.append(Output(f"y{i}", node, tuple(axes)))
        return Graph("random", tuple(self.inputs.values()), tuple(outputs), "l", self.order, self.groups)
