"""Recognising the form convolution: signals, products that share a way back, kernels' gradients, and what is left to torch."""

from __future__ import annotations

import pytest
from jaxtyping import Float
from torch import Tensor

import scanc.dsl as sc
from scanc.compiler import prepare
from scanc.errors import UnsupportedForm
from scanc.forms.choose import default_schedule, forms_of
from scanc.forms.convolution import ConvolutionPlan, convolution_plan, is_convolution
from scanc.ir import Graph
from scanc.ops import fft_conv, linear_recurrence
from scanc.passes.backward import backward
from scanc.passes.specialize import specialize
from scanc.schedule import ConvolutionSchedule
from scanc.target import Target

EVERY = ("u", "k", "k_rev", "pregate", "postgate")
GPU = Target("cuda", "sm_90", "triton")
CUDA = Target("cuda", "sm_90", "cuda")


def forward_plan(*without: str) -> ConvolutionPlan:
    return convolution_plan(prepare(fft_conv.graph(without=without)))


def backward_plan() -> ConvolutionPlan:
    return convolution_plan(prepare(backward(fft_conv.graph(), EVERY)))


def test_gates_are_inside_and_both_kernels_share_the_way_back() -> None:
    plan = forward_plan()
    assert [s.name for s in plan.signals] == ["x"]
    assert [[(str(t.kernel.name), t.reverse) for t in p.terms] for p in plan.products] == [[("k", False), ("k_rev", True)]]
    assert (plan.channels, plan.rows) == (("d",), ("b",))
    assert plan.before is None and plan.after is None and [o.name for o in plan.stores] == ["y"]


def test_a_backward_transforms_two_signals_and_sums_over_rows() -> None:
    plan = backward_plan()
    assert len(plan.signals) == 2 and len(plan.products) == 2
    assert [g.output.name for g in plan.gradients] == ["d_k", "d_k_rev"]
    first, second = plan.gradients
    assert (first.signal, first.cotangent) == (second.cotangent, second.signal)
    assert {o.name for o in plan.stores} == {"d_u", "d_pregate", "d_postgate"}


def graph_of(op: object) -> Graph:
    return op.graph()  # type: ignore[attr-defined]


@sc.op
def mixed_conv(x: Float[Tensor, "b d l"], k: Float[Tensor, "d l"], D: Float[Tensor, "d"]) -> Float[Tensor, "b d l"]:
    return sc.silu(sc.conv(sc.rms_norm(x, "d"), sc.exp(-k), axis="l") + D * x)


@sc.op
def twice_convolved(x: Float[Tensor, "b d l"], k: Float[Tensor, "d l"]) -> Float[Tensor, "b d l"]:
    return sc.conv(sc.conv(x, k, axis="l"), k, axis="l")


@sc.op
def short_conv(x: Float[Tensor, "b d l"], k: Float[Tensor, "d w"]) -> Float[Tensor, "b d l"]:
    return sc.conv(x, k, axis="l", tap="w")


def test_norms_and_computed_kernels_come_before_and_sums_over_time_after() -> None:
    plan = convolution_plan(prepare(graph_of(mixed_conv)))
    assert plan.before is not None and len(plan.before.outputs) == 2  # the kernel, and the mean square over channels
    derived = convolution_plan(prepare(backward(graph_of(mixed_conv), ("x", "k", "D"))))
    assert derived.before is not None and is_convolution(derived.before)
    assert derived.after is not None and {o.name for o in derived.after.outputs} >= {"d_D", "d_k"}


def test_what_is_convolved_again_is_convolved_before() -> None:
    plan = convolution_plan(prepare(graph_of(twice_convolved)))
    assert plan.before is not None and is_convolution(plan.before)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(UnsupportedForm, match="no convolution over time"):
        convolution_plan(prepare(linear_recurrence.graph()))


def test_forms() -> None:
    assert forms_of(fft_conv.graph()) == ("convolution",)
    assert forms_of(graph_of(short_conv)) == ("convolution",)
    assert is_convolution(graph_of(twice_convolved)) and not is_convolution(linear_recurrence.graph())


def test_a_short_kernel_keeps_its_taps() -> None:
    plan = convolution_plan(prepare(graph_of(short_conv)))
    assert plan.tap_axes == ("w",) and (plan.channels, plan.rows) == (("d",), ("b",))
    derived = convolution_plan(prepare(backward(graph_of(short_conv), ("x", "k"))))
    assert [(g.output.name, g.tap) for g in derived.gradients] == [("d_k", "w")]


FEW = [("bfloat16", 64, "toeplitz"), ("float32", 4, "direct"), ("float32", 64, "fft"), ("float16", 2000, "monarch")]


@pytest.mark.parametrize(("dtype", "w", "route"), FEW)
def test_few_taps_take_no_transforms(dtype: str, w: int, route: str) -> None:
    graph = specialize(graph_of(short_conv), {"x": dtype, "k": "float32"})
    made = default_schedule(graph, GPU, {"b": 2, "d": 4, "l": 4096, "w": w})
    assert isinstance(made, ConvolutionSchedule) and made.route == route


def schedule_of(dtype: str, target: Target, length: int) -> ConvolutionSchedule:
    graph = specialize(fft_conv.graph(without=("k_rev", "pregate", "postgate", "mask")), {"u": dtype, "k": "float32"})
    made = default_schedule(graph, target, {"b": 2, "d": 4, "l": length})
    assert isinstance(made, ConvolutionSchedule)
    return made


@pytest.mark.parametrize("length", [1, 100, 1024, 1500, 5000, 60000])
def test_a_gpu_multiplies_matrices_for_16_bit_signals(length: int) -> None:
    schedule = schedule_of("bfloat16", GPU, length)
    if length > 512:
        assert schedule.route == "monarch" and 32 * schedule.block >= length and schedule.operands == "float16"
    else:
        assert schedule.route == "toeplitz" and schedule.operands == "bfloat16"


def test_everything_else_goes_through_the_fft() -> None:
    assert schedule_of("float32", GPU, 1024).route == "fft"
    assert schedule_of("bfloat16", GPU, 2 * 10**6).route == "fft"
    assert schedule_of("bfloat16", Target("cpu", "native", "cpp"), 1024).route == "fft"


@pytest.mark.parametrize(("length", "forward", "gradients"), [(17, "radix", "radix"), (4096, "radix", "radix"), (5000, "radix", "passes"),
                                                              (20000, "passes", "passes"), (1 << 22, "passes", "passes"),
                                                              ((1 << 22) + 1, "fft", "fft")])
def test_float32_signals_stay_in_registers_on_the_cuda_backend(length: int, forward: str, gradients: str) -> None:
    plain = fft_conv.graph(without=("k_rev", "pregate", "postgate", "mask"))
    for graph, route in ((plain, forward), (backward(plain, ("u", "k")), gradients)):
        special = specialize(graph, dict.fromkeys(("u", "k", "d_y"), "float32"))
        schedule = default_schedule(special, CUDA, {"b": 2, "d": 4, "l": length})
        assert isinstance(schedule, ConvolutionSchedule) and schedule.route == route
        assert route == "fft" or (schedule.operands == "float32" and (route == "passes" or schedule.block >= length))


@pytest.mark.parametrize(("length", "route"), [(1024, "fft"), (16384, "fft"), (40000, "fft"), (65536, "passes"), (1 << 22, "passes")])
def test_long_16_bit_signals_take_three_passes(length: int, route: str) -> None:
    """On the CUDA backend; what it leaves to ``fft`` is Triton's."""
    assert schedule_of("bfloat16", CUDA, length).route == route


@pytest.mark.parametrize(("length", "route"), [(1000, "fft"), (2000, "radix"), (4096, "radix"), (16384, "fft"), (65536, "passes")])
def test_16_bit_gradients_are_made_in_registers_where_matrix_products_have_none_left(length: int, route: str) -> None:
    graph = backward(fft_conv.graph(without=("k_rev", "pregate", "postgate", "mask")), ("u", "k"))
    special = specialize(graph, {"u": "float16", "k": "float32", "d_y": "float16"})
    schedule = default_schedule(special, CUDA, {"b": 64, "d": 768, "l": length})
    assert isinstance(schedule, ConvolutionSchedule) and schedule.route == route
    assert route != "radix" or (schedule.apart, schedule.walk) == (1, 32)


@pytest.mark.parametrize(("rows", "length", "forward", "gradients"), [(1, 128, "fft", "fft"), (1, 129, "radix", "radix"),
                                                                      (32, 384, "radix", "radix"), (64, 256, "fft", "radix"),
                                                                      (512, 256, "fft", "fft"), (512, 200, "radix", "radix"),
                                                                      (1, 512, "radix", "fft")])
def test_few_rows_are_not_worth_the_tiles_of_a_matrix(rows: int, length: int, forward: str, gradients: str) -> None:
    """On the CUDA backend; what it leaves to ``fft`` is Triton's."""
    plain = fft_conv.graph(without=("k_rev", "pregate", "postgate", "mask"))
    for graph, route in ((plain, forward), (backward(plain, ("u", "k")), gradients)):
        special = specialize(graph, {"u": "bfloat16", "k": "float32", "d_y": "bfloat16"})
        schedule = default_schedule(special, CUDA, {"b": rows, "d": 768, "l": length})
        assert isinstance(schedule, ConvolutionSchedule) and schedule.route == route


@pytest.mark.parametrize("power", range(15, 23))
def test_three_passes_have_columns_that_threads_hold(power: int) -> None:
    schedule = schedule_of("float32", CUDA, 1 << power)
    assert schedule.route == "passes" and schedule.block <= 4096 and 4 <= (1 << power) // schedule.block <= 1024


def test_signals_of_several_dtypes_are_transformed_in_float32() -> None:
    graph = specialize(fft_conv.graph(without=("k_rev", "postgate", "mask")), {"u": "float16", "k": "float32", "pregate": "float32"})
    schedule = default_schedule(graph, CUDA, {"b": 2, "d": 4, "l": 1000})
    assert isinstance(schedule, ConvolutionSchedule) and schedule.route == "radix"


def test_a_handful_of_taps_is_left_to_routes_without_transforms() -> None:
    graph = specialize(graph_of(short_conv), {"x": "float32", "k": "float32"})
    for w, route in ((4, "fft"), (64, "radix")):
        made = default_schedule(graph, CUDA, {"b": 2, "d": 4, "l": 1 << 18, "w": w})
        assert isinstance(made, ConvolutionSchedule) and made.route == route


def test_float16_is_scaled_and_few_rows_are_not_walked() -> None:
    schedule = schedule_of("float16", GPU, 1000)
    assert (schedule.operands, schedule.rows, schedule.walk) == ("float16", 2, 1)
