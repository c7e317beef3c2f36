"""The form convolution by matrix products: the interpreter against the oracle, any length, gates, kernels both ways; machine code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import scanc.dsl as sc
from scanc.codegen import triton_convolution_passes_run
from scanc.codegen.build_triton import assembly, resources
from scanc.codegen.triton_convolution_run import ConvolutionExecutable
from scanc.compiler import compile_graph
from scanc.errors import ScheduleError, UnsupportedForm
from scanc.ir import Graph
from scanc.ops import fft_conv
from scanc.passes.backward import backward
from scanc.passes.specialize import specialize
from scanc.reference import evaluate
from scanc.schedule import ConvolutionSchedule
from scanc.target import Target
from tests.checks import normal, relative

INTERPRETER = Target("cpu", "interpret", "triton")
GPU = Target("cuda", "sm_90", "triton")
PLAIN = ("k_rev", "pregate", "postgate", "mask")


def graph(pass_: str, without: tuple[str, ...] = (), dtype: str = "float32", **options: bool) -> Graph:
    made = fft_conv.graph(without=without, **options)
    names = tuple(str(n.name) for n in made.inputs)
    made = backward(made, names) if pass_ == "backward" else made
    return specialize(made, {str(n.name): "float32" if str(n.name).startswith("k") else dtype for n in made.inputs})


def inputs(graph: Graph, b: int, d: int, l: int) -> dict[str, Tensor]:
    sizes = {"b": b, "d": d, "l": l}
    return {str(n.name): normal(*(sizes[a] for a in n.axes), seed=i) for i, n in enumerate(graph.inputs)}


def holds(graph: Graph, given: dict[str, Tensor], **schedule: int | str) -> None:
    fields: dict[str, Any] = {"outer": 16, "inner": 16} | schedule
    program = compile_graph(graph, INTERPRETER, ConvolutionSchedule(**fields))
    assert isinstance(program, ConvolutionExecutable)
    found, wanted = program(given), evaluate(graph, given)
    for name, truth in wanted.items():
        assert relative(found[name], truth) < 2e-6, name


@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize(
    ("l", "rows", "walk"), [(1, 1, 1), (251, 1, 2), (256, 2, 1), (127, 4, 2), (700, 1, 2), (601, 2, 1)], ids=lambda x: str(x)
)
def test_any_length(pass_: str, l: int, rows: int, walk: int) -> None:
    made = graph(pass_, PLAIN)
    holds(made, inputs(made, 3, 2, l), rows=rows, walk=walk)


@pytest.mark.parametrize(("l", "outer", "inner"), [(100, 16, 32), (700, 16, 32), (3000, 64, 64)])
def test_gradients_of_kernels_apart(l: int, outer: int, inner: int) -> None:
    made = graph("backward")
    holds(made, inputs(made, 2, 2, l), walk=2, outer=outer, inner=inner, apart=1)


@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize(("l", "rows"), [(251, 2), (601, 1)])
def test_pairs_of_float16_are_as_good_as_float32(pass_: str, l: int, rows: int) -> None:
    made = graph(pass_, PLAIN)
    program = compile_graph(made, INTERPRETER, ConvolutionSchedule(outer=16, inner=32, rows=rows, operands="float32"))
    given = inputs(made, 3, 2, l)
    given["u"][0] *= 1e-20
    found, wanted = program(given), evaluate(made, given)
    assert all(relative(found[name], truth) < 5e-7 for name, truth in wanted.items())
    if pass_ == "forward":
        assert relative(found["y"][0], wanted["y"][0]) < 5e-7


@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize("l", [100, 513])
def test_gates_and_kernels_both_ways(pass_: str, l: int) -> None:
    made = graph(pass_)
    holds(made, inputs(made, 3, 2, l), walk=2, inner=32)


@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize(
    ("route", "l", "rows", "walk", "inner"),
    [("toeplitz", 1, 16, 1, 16), ("toeplitz", 13, 16, 2, 32), ("toeplitz", 70, 16, 1, 16), ("toeplitz", 33, 32, 2, 32),
     ("direct", 1, 1, 1, 16), ("direct", 13, 4, 2, 16), ("direct", 33, 8, 2, 16)],
    ids=lambda x: str(x),
)
def test_routes_without_transforms(pass_: str, route: str, l: int, rows: int, walk: int, inner: int) -> None:
    made = graph(pass_, PLAIN)
    holds(made, inputs(made, 19, 2, l), route=route, rows=rows, walk=walk, inner=inner)


@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize(("route", "l"), [("toeplitz", 16), ("toeplitz", 35), ("direct", 9)])
def test_gates_and_kernels_both_ways_without_transforms(pass_: str, route: str, l: int) -> None:
    made = graph(pass_)
    holds(made, inputs(made, 3, 2, l), route=route, rows=16, walk=2)


@sc.op
def few_taps(u: Float[Tensor, "b d l"], k: Float[Tensor, "d w"], back: Float[Tensor, "w d"], g: Float[Tensor, "b d l"]
             ) -> Float[Tensor, "b d l"]:
    x = u * g
    return (sc.conv(x, k, axis="l", tap="w") + sc.conv(x, back, axis="l", tap="w", reverse=True)) * g


@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize(("l", "w"), [(40, 5), (9, 30), (100, 17)])
@pytest.mark.parametrize("route", ["toeplitz", "direct", "monarch", "fft"])
def test_kernels_of_few_taps(route: str, l: int, w: int, pass_: str) -> None:
    made: Graph = few_taps.graph()
    made = backward(made, ("u", "k", "back", "g")) if pass_ == "backward" else made
    made = specialize(made, {str(n.name): "float32" for n in made.inputs})
    sizes = {"b": 2, "d": 2, "l": l, "w": w}
    given = {str(n.name): normal(*(sizes[a] for a in n.axes), seed=i) for i, n in enumerate(made.inputs)}
    schedule = ConvolutionSchedule(route=route, outer=16, inner=16, rows=16 if route == "toeplitz" else 1)
    program = compile_graph(made, Target("cpu", "native", "cpp") if route == "fft" else INTERPRETER, schedule)
    found = program(given)
    for name, truth in evaluate(made, given).items():
        assert relative(found[name], truth) < 2e-6, name


@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize(("l", "outer", "without"), [(4000, 16, PLAIN), (9000, 32, PLAIN), (3001, 16, ())], ids=str)
def test_three_passes(pass_: str, l: int, outer: int, without: tuple[str, ...]) -> None:
    made = graph(pass_, without)
    holds(made, inputs(made, 2, 2, l), route="passes", outer=outer, warps=2)


def test_channels_one_after_another_in_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_convolution_passes_run.PassesExecutable, "held", 1 << 16)
    made = graph("backward", PLAIN)
    holds(made, inputs(made, 2, 3, 1000), route="passes", warps=2)


def test_more_than_three_passes_take_is_refused() -> None:
    made = graph("forward", PLAIN)
    program = compile_graph(made, INTERPRETER, ConvolutionSchedule(route="passes", outer=16, inner=16))
    with pytest.raises(ScheduleError, match="128 blocks"):
        program(inputs(made, 1, 1, 40000))


@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_machine_code_of_passes(pass_: str) -> None:
    program = compile_graph(graph(pass_, PLAIN, "float16"), GPU, ConvolutionSchedule(route="passes", outer=64, inner=16))
    assert isinstance(program, ConvolutionExecutable)
    for source in program.all_sources(program.shape_of({"l": 65536})):
        found = resources(source, GPU)
        assert found["shared"] <= GPU.shared_bytes and found["spills"] == 0


def test_computed_signals_of_any_magnitude_without_transforms() -> None:
    made = graph("forward", ("k_rev", "mask"))
    given = inputs(made, 3, 2, 40)
    given["pregate"] = given["pregate"] * torch.tensor([1e-15, 1.0, 1e15])[:, None, None]
    found, wanted = (p(given)["y"] for p in (compile_graph(made, INTERPRETER, ConvolutionSchedule(route="toeplitz", outer=16, rows=16)),
                                             lambda x: evaluate(made, x)))
    assert all(relative(found[i], wanted[i]) < 2e-6 for i in range(3))


@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize(("route", "rows"), [("monarch", 1), ("toeplitz", 16)])
def test_gelu_and_a_mask_are_printed_into_the_kernel(route: str, rows: int, pass_: str) -> None:
    made = graph(pass_, ("k_rev", "pregate"), gelu=True)
    holds(made, inputs(made, 3, 2, 60), route=route, rows=rows)
    program = compile_graph(made, INTERPRETER, ConvolutionSchedule(route=route, outer=16, inner=16, rows=rows))
    assert isinstance(program, ConvolutionExecutable)
    assert pass_ == "backward" or (program.convolution_plan.after is None and program.convolution_plan.before is None)


@sc.op
def shifted_conv(x: Float[Tensor, "b d l"], z: Float[Tensor, "b d l"], k: Float[Tensor, "d l"]) -> Float[Tensor, "b d l"]:
    return sc.conv(sc.exp(x) / z, k, axis="l", reverse=True)


@pytest.mark.parametrize(("route", "rows"), [("monarch", 1), ("toeplitz", 16), ("direct", 2)])
@pytest.mark.parametrize("l", [41, 300])
def test_what_lies_past_the_end_is_no_signal(route: str, rows: int, l: int) -> None:
    made: Graph = specialize(shifted_conv.graph(), dict.fromkeys(("x", "z", "k"), "float32"))
    holds(made, inputs(made, 2, 2, l), route=route, rows=rows, walk=1, outer=64, inner=16)


def test_steps_need_not_be_side_by_side_in_memory() -> None:
    made = graph("forward", PLAIN)
    given = inputs(made, 2, 3, 70)
    given["u"] = given["u"].transpose(1, 2).contiguous().transpose(1, 2)
    holds(made, given)


def test_rows_of_any_magnitude_keep_their_precision() -> None:
    made = graph("forward", PLAIN)
    given = inputs(made, 3, 2, 100)
    scale = torch.tensor([1e-20, 1.0, 1e20])[:, None, None]
    given["u"] = given["u"] * scale
    program = compile_graph(made, INTERPRETER, ConvolutionSchedule(outer=16, inner=16, rows=2))
    found, wanted = program(given)["y"], evaluate(made, given)["y"]
    for i in range(3):
        assert relative(found[i], wanted[i]) < 2e-6


def test_a_nan_stays_in_its_row() -> None:
    made = graph("forward", PLAIN)
    given = inputs(made, 2, 2, 40)
    given["u"][0, 1, 3] = float("nan")
    program = compile_graph(made, INTERPRETER, ConvolutionSchedule(outer=16, inner=16, rows=2))
    y = program(given)["y"]
    assert y[0, 1].isnan().all() and not y[0, 0].isnan().any() and not y[1].isnan().any()


def test_zeros_give_zeros() -> None:
    made = graph("forward", PLAIN)
    given = {n: torch.zeros_like(x) for n, x in inputs(made, 2, 2, 40).items()}
    program = compile_graph(made, INTERPRETER, ConvolutionSchedule(outer=16, inner=16))
    assert torch.equal(program(given)["y"], torch.zeros(2, 2, 40))


@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize("many", [False, True], ids=["one block", "blocks"])
def test_machine_code_without_a_device(pass_: str, many: bool) -> None:
    program = ConvolutionExecutable(graph(pass_, PLAIN, "bfloat16"), GPU, ConvolutionSchedule(outer=64, inner=16))
    for source in program.all_sources(many):
        assert resources(source, GPU)["shared"] <= GPU.shared_bytes
    assert "wgmma" in assembly(program.make("main", many), GPU)


@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize("many", [False, True], ids=["one tile", "tiles"])
def test_machine_code_of_pairs(pass_: str, many: bool) -> None:
    program = ConvolutionExecutable(graph(pass_, PLAIN), GPU, ConvolutionSchedule(outer=64, inner=16, operands="float32"))
    for source in program.all_sources(many):
        found = resources(source, GPU)
        assert found["shared"] <= GPU.shared_bytes and found["spills"] == 0


@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize("many", [False, True], ids=["one tile", "tiles"])
def test_machine_code_of_tiles(pass_: str, many: bool) -> None:
    schedule = ConvolutionSchedule(route="toeplitz", outer=64, rows=32)
    program = compile_graph(graph(pass_, PLAIN, "float16"), GPU, schedule)
    assert isinstance(program, ConvolutionExecutable)
    for source in program.all_sources(many):
        assert resources(source, GPU)["shared"] <= GPU.shared_bytes
    assert "wgmma" in assembly(program.make("main", many), GPU)


def test_points_that_do_not_compile_right_are_refused() -> None:
    made = graph("backward", PLAIN, "bfloat16")
    with pytest.raises(ScheduleError, match="no kernel's gradient"):
        ConvolutionExecutable(made, GPU, ConvolutionSchedule(outer=64, inner=32))


def test_backends_without_the_skeleton_say_so() -> None:
    with pytest.raises(UnsupportedForm, match="cpp backend"):
        compile_graph(graph("forward"), Target("cpu", "native", "cpp"), ConvolutionSchedule())


@sc.op
def normed_conv(x: Float[Tensor, "b d l"], k: Float[Tensor, "d l"], D: Float[Tensor, "d"]) -> Float[Tensor, "b d l"]:
    return sc.silu(sc.conv(sc.rms_norm(x, "d"), sc.exp(-k), axis="l") + D * x)


@sc.op
def outer_conv(k: Float[Tensor, "b h i l"], v: Float[Tensor, "b h j l"], q: Float[Tensor, "b h i l"], w: Float[Tensor, "h l"]
               ) -> Float[Tensor, "b h j l"]:
    return sc.sum(q * sc.conv(k * v, w, axis="l"), "i")


@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_norms_computed_kernels_and_what_is_convolved_again(pass_: str) -> None:
    made: Graph = normed_conv.graph()
    made = backward(made, ("x", "k", "D")) if pass_ == "backward" else made
    made = specialize(made, {str(n.name): "float32" for n in made.inputs})
    holds(made, inputs(made, 2, 3, 300), rows=2)


@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_outer_products_over_several_axes(pass_: str) -> None:
    made: Graph = outer_conv.graph()
    made = backward(made, ("k", "v", "q", "w")) if pass_ == "backward" else made
    made = specialize(made, {str(n.name): "float32" for n in made.inputs})
    sizes = {"b": 2, "h": 2, "i": 3, "j": 2, "l": 90}
    given = {str(n.name): normal(*(sizes[a] for a in n.axes), seed=i) for i, n in enumerate(made.inputs)}
    holds(made, given, rows=2, walk=4)
