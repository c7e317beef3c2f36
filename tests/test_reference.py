"""The oracle against hand-written loops and Python's own mathematics."""

from __future__ import annotations

import cmath
import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import scanc.reference
from scanc.errors import ArgumentError
from scanc.ir import POINTWISE, Builder, Graph, Node, Output, Type
from scanc.passes.adjoint import adjoint
from scanc.reference import evaluate, evaluate_in_lanes
from tests.graphs import SIZES, graphs, random_graph, random_inputs


def graph_of(make: Callable[..., Node | tuple[Node, ...]], types: Mapping[str, Type], groups: Mapping[str, str] | None = None) -> Graph:
    """A graph whose outputs y0, y1, … are what ``make(builder, *inputs)`` returns."""
    order = tuple(dict.fromkeys(a for t in types.values() for a in t.axes))
    b = Builder(order, groups or {}, "l")
    inputs = {name: b.input(name, t) for name, t in types.items()}
    made = make(b, *inputs.values())
    nodes = made if isinstance(made, tuple) else (made,)
    return Graph("op", tuple(inputs.values()), tuple(Output(f"y{i}", n, n.axes) for i, n in enumerate(nodes)), "l", order, groups or {})


def real(axes: str) -> Type:
    return Type(tuple(axes.split()), "real")


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative(out: Tensor, ref: Tensor) -> float:
    assert out.shape == ref.shape and out.dtype == ref.dtype, f"{out.dtype} {tuple(out.shape)} for {ref.dtype} {tuple(ref.shape)}"
    error = float((out - ref).norm() / ref.norm())
    return error if error == error else math.inf


# -- pointwise ---------------------------------------------------------------------------------------------------------------------

UNARY: dict[str, Callable[[Any], Any]] = {
    "neg": lambda x: -x, "exp": cmath.exp, "exp2": lambda x: cmath.exp(x * math.log(2)), "expm1": lambda x: cmath.exp(x) - 1,
    "log": cmath.log, "log2": lambda x: cmath.log(x) / math.log(2), "log1p": lambda x: cmath.log(1 + x),
    "sqrt": cmath.sqrt, "rsqrt": lambda x: 1 / cmath.sqrt(x), "reciprocal": lambda x: 1 / x, "square": lambda x: x * x, "abs": abs,
    "sign": lambda x: x / abs(x), "sigmoid": lambda x: 1 / (1 + cmath.exp(-x)), "silu": lambda x: x / (1 + cmath.exp(-x)),
    "softplus": lambda x: cmath.log(1 + cmath.exp(x)), "tanh": cmath.tanh, "sin": cmath.sin, "cos": cmath.cos,
    "relu": lambda x: max(x, 0.0), "erf": math.erf, "real": lambda x: x.real, "imag": lambda x: x.imag, "conj": lambda x: x.conjugate(),
}
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y, "div": lambda x, y: x / y,
    "maximum": max, "minimum": min, "complex": complex,
    "lt": lambda x, y: x < y, "le": lambda x, y: x <= y, "gt": lambda x, y: x > y, "ge": lambda x, y: x >= y,
    "eq": lambda x, y: x == y, "ne": lambda x, y: x != y,
}
ORDERED = ("relu", "erf", "maximum", "minimum", "complex", "lt", "le", "gt", "ge")  # no meaning for complex values


@pytest.mark.parametrize("op", UNARY)
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_unary(op: str, kind: str) -> None:
    if kind == "complex" and op in ORDERED:
        return
    points = [0.25, 1.75, 3.5] if op in ("log", "log2", "log1p", "sqrt", "rsqrt") else [-2.25, -0.5, 0.75, 3.5]
    x = torch.tensor(points, dtype=torch.float64)
    x = torch.complex(x, 0.3 * x + 0.4) if kind == "complex" else x
    graph = graph_of(lambda b, p: b.pointwise(op, p), {"x": Type(("l",), kind)})
    out = evaluate(graph, {"x": x})["y0"]
    want = torch.tensor([UNARY[op](v) for v in x.tolist()], dtype=torch.complex128)
    assert out.dtype == (torch.complex128 if graph.outputs[0].node.kind == "complex" else torch.float64)
    assert torch.allclose(out.to(torch.complex128), want, rtol=1e-14, atol=0 if op == "imag" else 1e-16)


@pytest.mark.parametrize("op", BINARY)
def test_binary_of_every_pair_of_kinds(op: str) -> None:
    """Kinds meet at the wider; int / int is real."""
    values = {"int": torch.tensor([1, 2, -3]), "real": torch.tensor([1.0, -2.5, 0.25]), "complex": torch.tensor([1, 2 - 1j, 0.5 + 3j])}
    for left, x in values.items():
        for right, y in values.items():
            if "complex" in (left, right) and op in ORDERED:
                continue
            graph = graph_of(lambda b, p, q: b.pointwise(op, p, q), {"x": Type(("l",), left), "y": Type(("l",), right)})
            out = evaluate(graph, {"x": x, "y": y})["y0"]
            kind = graph.outputs[0].node.kind
            assert out.dtype == {"int": torch.int64, "real": torch.float64, "complex": torch.complex128, "bool": torch.bool}[kind]
            want = torch.tensor([BINARY[op](p, q) for p, q in zip(x.tolist(), y.tolist())], dtype=torch.complex128)
            assert torch.allclose(out.to(torch.complex128), want, rtol=1e-15, atol=0)


def test_logic() -> None:
    types = {"x": Type(("l",), "bool"), "y": Type(("l",), "bool")}
    graph = graph_of(lambda b, x, y: (b.pointwise("and", x, y), b.pointwise("or", x, y), b.pointwise("not", x)), types)
    out = evaluate(graph, {"x": torch.tensor([True, True, False, False]), "y": torch.tensor([True, False, True, False])})
    assert [v.tolist() for v in out.values()] == [[True, False, False, False], [True, True, True, False], [False, False, True, True]]


def test_every_pointwise_op_is_tested() -> None:
    assert set(UNARY) | set(BINARY) | {"and", "or", "not", "where", "cast"} == set(POINTWISE)


def test_exact_where_naive_formulas_are_not() -> None:
    """softplus without overflow or cancellation, its derivative 1/2 at 0; expm1 and log1p near 0."""
    x = torch.tensor([-800.0, -40.0, 0.0, 40.0, 800.0], dtype=torch.float64, requires_grad=True)
    out = evaluate(graph_of(lambda b, p: b.pointwise("softplus", p), {"x": real("l")}), {"x": x})["y0"]
    assert out.tolist() == pytest.approx([0.0, math.exp(-40.0), math.log(2.0), 40.0 + math.exp(-40.0), 800.0], rel=1e-15)
    assert torch.autograd.grad(out.sum(), x)[0].tolist() == pytest.approx([0.0, math.exp(-40.0), 0.5, 1.0, 1.0], rel=1e-15)
    tiny = torch.tensor([1e-18, -1e-18], dtype=torch.float64)
    for op in ("expm1", "log1p"):
        assert torch.equal(evaluate(graph_of(lambda b, p, op=op: b.pointwise(op, p), {"x": real("l")}), {"x": tiny})["y0"], tiny)


def test_where_does_not_leak_the_branch_not_taken() -> None:
    types = {"c": Type(("l",), "bool"), "x": real("l")}
    graph = graph_of(lambda b, c, x: b.pointwise("where", c, b.pointwise("log", x), b.const(-7.0)), types)
    out = evaluate(graph, {"c": torch.tensor([True, False, False]), "x": torch.tensor([1.0, -1.0, 0.0])})["y0"]
    assert out.tolist() == [0.0, -7.0, -7.0]


def test_cast() -> None:
    kinds = ("bool", "int", "real", "complex")
    graph = graph_of(lambda b, x: tuple(b.pointwise("cast", x, kind=k) for k in kinds), {"x": real("l")})
    out = evaluate(graph, {"x": torch.tensor([0.0, 2.75, -1.25])})
    assert [v.tolist() for v in out.values()] == [[False, True, True], [0, 2, -1], [0.0, 2.75, -1.25], [0j, 2.75 + 0j, -1.25 + 0j]]
    assert [v.dtype for v in out.values()] == [torch.bool, torch.int64, torch.float64, torch.complex128]


# -- axes --------------------------------------------------------------------------------------------------------------------------


def test_axes_align_by_name_and_groups_by_repetition() -> None:
    """(b g n l) meets (d b) over b d n l, whatever the order of the tensors' axes."""
    graph = graph_of(lambda b, x, y: b.pointwise("mul", x, y), {"x": real("d b"), "y": real("b g n l")}, {"g": "d"})
    x, y = randn(6, 2), randn(2, 3, 4, 5, seed=1)
    node = graph.outputs[0].node
    assert node.axes == ("d", "b", "n", "l")
    want = torch.stack([x[d][:, None, None] * y[:, d // 2] for d in range(6)])
    assert relative(evaluate(graph, {"x": x, "y": y})["y0"], want) == 0
    turned = Graph("op", graph.inputs, (Output("y", node, ("l", "n", "b", "d")),), "l", graph.order, graph.groups)
    assert relative(evaluate(turned, {"x": x, "y": y})["y"], want.permute(3, 2, 1, 0)) == 0


def test_output_over_more_axes_than_its_node() -> None:
    graph = graph_of(lambda b, x, y: b.pointwise("mul", x, b.const(2.0)), {"x": real("g"), "y": real("d l")}, {"g": "d"})
    node = graph.outputs[0].node
    wide = Graph("op", graph.inputs, (Output("y", node, ("l", "d")),), "l", graph.order, graph.groups)
    out = evaluate(wide, {"x": torch.tensor([1.0, 3.0]), "y": torch.zeros(4, 3)})["y"]
    assert out.is_contiguous() and out.tolist() == [[2.0, 2.0, 6.0, 6.0]] * 3


def test_sums_count_positions() -> None:
    """A broadcast value is summed once per position; d is summed within its groups."""
    def make(b: Builder, x: Node, y: Node) -> tuple[Node, ...]:
        return b.sum(b.broadcast(y, ("l",)), ("l",)), b.sum_to(x, ("g",)), b.sum_to(x, ("b", "g")), b.sum_to(x, ())

    graph = graph_of(make, {"x": real("b d l"), "y": real("g")}, {"g": "d"})
    x = randn(2, 6, 5)
    out = evaluate(graph, {"x": x, "y": torch.tensor([1.0, 2.0, 3.0])})
    assert out["y0"].tolist() == [5.0, 10.0, 15.0]
    groups = torch.stack([x[:, 2 * g] + x[:, 2 * g + 1] for g in range(3)], 1).sum(-1)
    assert relative(out["y1"], groups.sum(0)) < 1e-14 and relative(out["y2"], groups) < 1e-14 and relative(out["y3"], x.sum()) < 1e-14


def test_index_size_and_const() -> None:
    def make(b: Builder, x: Node) -> tuple[Node, ...]:
        return b.index("l"), b.size("l"), b.const(2.5), b.const(3, "int"), b.const(1j), b.const(True), x

    out = evaluate(graph_of(make, {"x": real("b l")}), {"x": torch.ones(2, 3)}, dtype=torch.float32)
    assert [v.tolist() for v in out.values()][:6] == [[0, 1, 2], 3, 2.5, 3, 1j, True]
    integer, narrow = torch.int64, torch.float32
    assert [v.dtype for v in out.values()] == [integer, integer, narrow, integer, torch.complex64, torch.bool, narrow]


@pytest.mark.parametrize(("by", "want"), [(1, [9.0, 1, 2, 3]), (3, [9.0, 9, 9, 1]), (-1, [2.0, 3, 4, 9]), (7, [9.0] * 4), (-4, [9.0] * 4)])
def test_shift(by: int, want: list[float]) -> None:
    graph = graph_of(lambda b, x: b.shift(x, "l", by, 9.0), {"x": real("l")})
    assert evaluate(graph, {"x": torch.tensor([1.0, 2, 3, 4])})["y0"].tolist() == want


# -- the recurrence ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [0, 1, 6])
def test_scan_prior_final(shifted: bool, reverse: bool, length: int) -> None:
    """Both kinds, both ways, against the loop of the IR's definition; a alone complex, time second of b's axes."""
    types = {"a": Type(("d", "l"), "complex"), "b": real("d l n"), "c": real("n d")}

    def make(b: Builder, a: Node, x: Node, c: Node) -> tuple[Node, ...]:
        s = b.scan(a, x, c, axis="l", reverse=reverse, shifted=shifted)
        return s, b.prior(s), b.final(s)

    a, x, c = randn(3, length, dtype=torch.complex128), randn(3, length, 2, seed=1), randn(2, 3, seed=2)
    out = evaluate(graph_of(make, types), {"a": a, "b": x, "c": c})
    values = torch.zeros(3, length, 2, dtype=torch.complex128)
    priors = torch.zeros_like(values)
    carry = c.T.to(torch.complex128)
    for t in (range(length - 1, -1, -1) if reverse else range(length)):
        priors[:, t] = carry
        if shifted:
            values[:, t] = carry + x[:, t]
            carry = a[:, t, None] * values[:, t]
        else:
            values[:, t] = carry = a[:, t, None] * carry + x[:, t]
    assert relative(out["y2"], carry) < 1e-15
    if length:
        assert relative(out["y0"], values) < 1e-15 and relative(out["y1"], priors) < 1e-15
    else:
        assert out["y0"].shape == (3, 0, 2)


def test_selective_scan() -> None:
    """Mamba's recurrence as its paper writes it, every index spelled out."""
    types = {"u": real("b d l"), "delta": real("b d l"), "A": real("d n"), "B": real("b g n l"), "C": real("b g n l"), "D": real("d")}

    def make(b: Builder, u: Node, delta: Node, A: Node, B: Node, C: Node, D: Node) -> tuple[Node, ...]:
        dt = b.pointwise("softplus", delta)
        a = b.pointwise("exp", b.pointwise("mul", dt, A))
        h = b.scan(a, b.pointwise("mul", b.pointwise("mul", dt, B), u), axis="l")
        return b.pointwise("add", b.sum(b.pointwise("mul", C, h), ("n",)), b.pointwise("mul", D, u)), b.final(h)

    graph = graph_of(make, types, {"g": "d"})
    x = random_inputs(graph, 4)
    y, last = evaluate(graph, x).values()
    want, state = torch.zeros(2, 4, 5, dtype=torch.float64), torch.zeros(2, 4, 3, dtype=torch.float64)
    for i in range(2):
        for d in range(4):
            for t in range(5):
                dt = math.log1p(math.exp(x["delta"][i, d, t]))
                total = float(x["D"][d] * x["u"][i, d, t])
                for n in range(3):
                    state[i, d, n] = math.exp(dt * x["A"][d, n]) * state[i, d, n] + dt * x["B"][i, d // 2, n, t] * x["u"][i, d, t]
                    total += float(x["C"][i, d // 2, n, t] * state[i, d, n])
                want[i, d, t] = total
    assert relative(y, want) < 1e-14 and relative(last, state) < 1e-14


def test_a_constant_transition_and_a_constant_input() -> None:
    """Neither a nor b has the time axis: h_t = (1 + a + … + a^t) b."""
    graph = graph_of(lambda b, a, x, _: b.scan(a, x, axis="l"), {"a": real("d"), "b": real("b"), "_": real("l")})
    assert graph.outputs[0].axes == ("d", "b", "l")
    out = evaluate(graph, {"a": torch.tensor([0.5, -2.0]), "b": torch.tensor([4.0]), "_": torch.zeros(4)})["y0"]
    assert out.tolist() == [[[4.0, 6.0, 7.0, 7.5]], [[4.0, -4.0, 12.0, -20.0]]]


def test_scan_in_place_equals_scan_under_autograd() -> None:
    """Values are written in place without autograd and stacked with it."""
    for seed in range(6):
        graph = random_graph(seed, steps=4)
        inputs = random_inputs(graph, seed)
        graded = {k: v.clone().requires_grad_(v.is_floating_point() or v.is_complex()) for k, v in inputs.items()}
        for plain, tracked in zip(evaluate(graph, inputs).values(), evaluate(graph, graded).values()):
            assert torch.equal(plain, tracked.detach()) and not plain.requires_grad


# -- convolution -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("length", "taps"), [(7, 3), (3, 7), (150, 100), (90, 90)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_conv(length: int, taps: int, reverse: bool, dtype: torch.dtype) -> None:
    """Short, longer than the sequence, and long enough for the FFT; and its kernel's gradient."""
    kind = "complex" if dtype.is_complex else "real"
    types = {"x": Type(("b", "d", "l"), kind), "k": real("w g"), "s": real("d l")}

    def make(b: Builder, x: Node, k: Node, s: Node) -> tuple[Node, ...]:
        return b.conv(x, k, "l", "w", reverse=reverse), b.conv_kernel_grad(x, s, "l", "w", reverse=reverse)

    graph = graph_of(make, types, {"g": "d"})
    x, k, s = randn(2, 4, length, dtype=dtype), randn(taps, 2, seed=1), randn(4, length, seed=2)
    y, dk = (evaluate(graph, {"x": x, "k": k, "s": s})[o.name].permute(*map(o.axes.index, axes))
             for o, axes in zip(graph.outputs, (("b", "d", "l"), ("b", "d", "w"))))
    want_y, want_k = torch.zeros(2, 4, length, dtype=dtype), torch.zeros(2, 4, taps, dtype=dtype)
    full = k.repeat_interleave(2, 1)
    for t in range(length):
        for j in range(taps):
            at = t + j if reverse else t - j
            if 0 <= at < length:
                want_y[:, :, t] += full[j] * x[:, :, at]
                want_k[:, :, j] += s[:, t] * x[:, :, at]
    assert relative(y, want_y) < 1e-13 and relative(dk, want_k) < 1e-13


def test_long_conv_over_time_itself() -> None:
    graph = graph_of(lambda b, x, k: b.conv(x, k, "l", "l"), {"x": real("b l"), "k": real("l")})
    out = evaluate(graph, {"x": torch.tensor([[1.0, 2.0, 3.0]]), "k": torch.tensor([1.0, 10.0, 100.0])})["y0"]
    assert out.tolist() == [[1.0, 12.0, 123.0]]


# -- lanes -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["b", "d"])
@pytest.mark.parametrize("block", [1, 3, 4, 100])
def test_lanes_of_a_backward(axis: str, block: int) -> None:
    """Gradients of what the lanes share are added block by block, the others concatenated; groups stay whole."""
    types = {"u": real("b d l"), "A": real("d n"), "B": real("b g n l"), "s": real(""), "D": real("d")}

    def make(b: Builder, u: Node, A: Node, B: Node, s: Node, D: Node) -> Node:
        position = b.pointwise("div", b.index("d"), b.size("d"))
        h = b.scan(b.pointwise("tanh", b.pointwise("mul", u, A)), b.pointwise("mul", b.pointwise("mul", u, s), B), axis="l")
        return b.pointwise("add", b.sum(h, ("n",)), b.pointwise("mul", D, position))

    graph = graph_of(make, types, {"g": "d"})
    backward = adjoint(graph, tuple(types))
    sizes = {**SIZES, "d": 6, "g": 3, "b": 5}
    for g in (graph, backward):
        inputs = random_inputs(g, 2, sizes)
        whole, walked = evaluate(g, inputs), evaluate_in_lanes(g, inputs, axis, block)
        assert whole.keys() == walked.keys()
        for name in whole:
            assert relative(walked[name], whole[name]) < 1e-14, name


@settings(max_examples=60, deadline=None)
@given(graphs(max_steps=5), st.sampled_from(["b", "d", "n"]), st.integers(1, 3))
def test_lanes_are_right_or_refused(graph: Graph, axis: str, block: int) -> None:
    inputs = random_inputs(graph)
    whole = evaluate(graph, inputs)
    try:
        walked = evaluate_in_lanes(graph, inputs, axis, block)
    except ArgumentError:
        return
    for name in whole:
        assert walked[name].shape == whole[name].shape and torch.allclose(walked[name], whole[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("make", "words"), [
    (lambda b, x, _: b.pointwise("square", b.sum(x, ("d",))), "computed from a sum over the lanes"),
    (lambda b, x, _: b.pointwise("add", b.sum(x, ("d",)), b.const(1.0)), "computed from a sum over the lanes"),
    (lambda b, x, _: b.pointwise("div", x, b.sum(x, ("d",))), "computed from a sum over the lanes"),
    (lambda b, x, _: b.pointwise("div", b.const(1.0), b.sum(x, ("d",))), "computed from a sum over the lanes"),
    (lambda b, x, _: b.broadcast(b.sum(x, ("d",)), ("d",)), "computed from a sum over the lanes"),
    (lambda b, x, _: b.shift(x, "d", 1), "a shift along 'd'"),
])
def test_lanes_that_cannot_be_walked(make: Callable[..., Node], words: str) -> None:
    graph = graph_of(make, {"x": real("d l"), "y": real("g")}, {"g": "d"})
    with pytest.raises(ArgumentError, match=words):
        evaluate_in_lanes(graph, {"x": torch.ones(4, 2), "y": torch.ones(2)}, "d", 2)
    with pytest.raises(ArgumentError, match="Walk 'd'"):
        evaluate_in_lanes(graph, {"x": torch.ones(4, 2), "y": torch.ones(2)}, "g", 2)


# -- running -----------------------------------------------------------------------------------------------------------------------


def test_precision_asked_for() -> None:
    graph = graph_of(lambda b, x, z: (b.pointwise("exp", x), b.pointwise("exp", z)), {"x": real("l"), "z": Type(("l",), "complex")})
    inputs = {"x": randn(9).to(torch.bfloat16), "z": randn(9, dtype=torch.complex64)}
    narrow, wide = evaluate(graph, inputs, dtype=torch.float32), evaluate(graph, inputs)
    assert [v.dtype for v in (*narrow.values(), *wide.values())] == [torch.float32, torch.complex64, torch.float64, torch.complex128]
    assert relative(wide["y0"], inputs["x"].double().exp()) < 1e-15
    assert 1e-9 < relative(narrow["y0"].double(), wide["y0"]) < 1e-6


def test_outputs_have_memory_of_their_own() -> None:
    graph = graph_of(lambda b, x: (x, x, b.pointwise("conj", x), b.pointwise("neg", x)), {"x": real("d l")})
    x = randn(3, 4)
    out = evaluate(graph, {"x": x})
    assert len({v.data_ptr() for v in (x, *out.values())}) == 5
    assert all(torch.equal(v, x) for v in list(out.values())[:3])


@pytest.mark.parametrize("seed", range(12))
def test_everything_is_made_on_the_inputs_device(seed: int) -> None:
    """On the meta device a tensor made elsewhere would meet it and fail."""
    graph = random_graph(seed)
    inputs = random_inputs(graph, seed)
    real_ = evaluate(graph, inputs)
    meta = evaluate(graph, {k: v.to("meta") for k, v in inputs.items()})
    assert {k: (v.shape, v.dtype) for k, v in real_.items()} == {k: (v.shape, v.dtype) for k, v in meta.items()}
    assert all(v.device.type == "meta" for v in meta.values())


def test_dead_values_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of 30 values holds two at a time."""
    alive: list[weakref.ref[Tensor]] = []
    most = 0
    once = scanc.reference.pointwise

    def watched(*args: Any) -> Tensor:
        nonlocal most
        out = once(*args)
        alive.append(weakref.ref(out))
        most = max(most, sum(r() is not None for r in alive))
        return out

    monkeypatch.setattr(scanc.reference, "pointwise", watched)

    def chain(b: Builder, x: Node) -> Node:
        for _ in range(30):
            x = b.pointwise("tanh", x)
        return x

    evaluate(graph_of(chain, {"x": real("l")}), {"x": randn(4)})
    assert len(alive) == 30 and most == 2


@pytest.mark.parametrize(("change", "words"), [
    ({"y": None}, r"argument 'y' is missing.*Give a tensor over \(b g n l\)"),
    ({"x": torch.zeros(2)}, r"argument 'x' is of shape \(2,\), but its axes are \(d b\)"),
    ({"y": torch.zeros(3, 2, 1, 5)}, "argument 'y' is of size 3 along 'b', but 'x' has size 2 there"),
    ({"y": torch.zeros(2, 4, 1, 5)}, "argument 'y' is of size 4 along 'g', but 'g' must divide 'd', of size 6 in 'x'"),
    ({"y": torch.zeros(2, 0, 1, 5)}, "argument 'y' is of size 0 along 'g'"),
    ({"x": torch.zeros(6, 2, dtype=torch.complex64)}, "argument 'x' is of dtype torch.complex64, but it is declared real"),
])
def test_inputs_that_do_not_fit(change: dict[str, Tensor | None], words: str) -> None:
    graph = graph_of(lambda b, x, y: b.pointwise("mul", x, y), {"x": real("d b"), "y": real("b g n l")}, {"g": "d"})
    inputs = {"x": torch.zeros(6, 2), "y": torch.zeros(2, 3, 1, 5)}
    evaluate(graph, {**inputs, "unrelated": torch.zeros(1)})
    with pytest.raises(ArgumentError, match=words):
        evaluate(graph, {k: v for k, v in {**inputs, **change}.items() if v is not None})


def test_an_axis_no_input_has() -> None:
    b = Builder(("l", "n"), {}, "l")
    x = b.input("x", Type(("l",), "real"))
    graph = Graph("op", (x,), (Output("y", b.broadcast(x, ("n",)), ("l", "n")),), "l", ("l", "n"))
    with pytest.raises(ArgumentError, match="none has this axis"):
        evaluate(graph, {"x": torch.zeros(2)})
