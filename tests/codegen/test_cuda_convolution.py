"""Float32 convolutions by transforms in registers: emulated on the CPU against the oracle, in both orders; compiled for GPUs not here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from scanc.codegen import build_cuda
from scanc.codegen.cuda_convolution_run import RadixExecutable
from scanc.codegen.cuda_convolution_source import passes
from scanc.compiler import default_schedule, program
from scanc.errors import ScheduleError, UnsupportedForm
from scanc.ir import Graph
from scanc.passes.backward import backward
from scanc.passes.specialize import specialize
from scanc.problem import Problem
from scanc.reference import evaluate
from scanc.schedule import ConvolutionSchedule
from scanc.target import Target
from tests.checks import normal, relative
from tests.codegen import emulate
from tests.codegen.test_triton_convolution import outer_conv

CUDA = Target.parse("cuda:sm_90:cuda")
PASSES = ("forward", "backward")
GATES: dict[str, Any] = {"pregate": "given", "postgate": "given", "k_rev": "given"}


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_cuda, "available", lambda: True)


def radix(outer: int, inner: int, warps: int, **more: Any) -> ConvolutionSchedule:
    return ConvolutionSchedule(route="radix", outer=outer, inner=inner, warps=warps, operands="float32", **{"walk": 2, **more})


def holds(problem: Problem, schedule: ConvolutionSchedule, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, graph = problem.inputs(), problem.graph()
    wanted = problem.oracle(inputs)
    for backwards in (False, True):
        monkeypatch.setattr(build_cuda, "load", functools.partial(emulate.load, backwards=backwards))
        made = program(graph, CUDA, schedule)
        assert isinstance(made, RadixExecutable)
        bar = {"float32": 1e-6, "float16": 6e-4, "bfloat16": 5e-3}[problem.dtype]
        for name, error in problem.errors(made(inputs), wanted).items():
            assert error <= bar, f"{problem} {schedule}: {name} has relative error {error:.2e}"
    assert all(bool(x.any()) for x in wanted.values())


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(("length", "schedule"), [(200, radix(16, 16, 1)), (256, radix(16, 16, 1)), (1000, radix(64, 16, 1)),
                                                  (777, radix(32, 32, 2)), (500, radix(32, 16, 1)), (700, radix(16, 16, 1)),
                                                  (1, radix(16, 16, 1)), (1025, radix(32, 16, 2))])
def test_lengths(length: int, schedule: ConvolutionSchedule, pass_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    holds(Problem.of("fft_conv", dict(b=3, d=2, l=length), "float32", pass_), schedule, monkeypatch)


@pytest.mark.parametrize(("length", "schedule"), [(200, radix(16, 16, 1, apart=1)), (1000, radix(64, 16, 2, apart=1)),
                                                  (600, radix(16, 16, 1, apart=1))])
@pytest.mark.parametrize("given", [{}, GATES], ids=["plain", "gates"])
def test_sums_over_rows_in_shared_memory(length: int, schedule: ConvolutionSchedule, given: dict[str, Any],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    holds(Problem.of("fft_conv", dict(b=5, d=2, l=length), "float32", "backward", **given), schedule, monkeypatch)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("length", [250, 600])
def test_gates_and_kernels_both_ways(length: int, pass_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    holds(Problem.of("fft_conv", dict(b=3, d=2, l=length), "bfloat16", pass_, **GATES), radix(16, 16, 1), monkeypatch)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("taps", [40, 300, 900])
def test_kernels_shorter_and_longer_than_time(taps: int, pass_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    holds(Problem.of("fir_conv", dict(b=2, d=3, l=800, w=taps), "float32", pass_), radix(16, 16, 1), monkeypatch)


@pytest.mark.parametrize("route", ["radix", "passes"])
@pytest.mark.parametrize("pass_", PASSES)
def test_outer_products_over_several_axes(pass_: str, route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: Graph = outer_conv.graph()
    made = backward(made, ("k", "v", "q", "w")) if pass_ == "backward" else made
    made = specialize(made, {str(n.name): "float32" for n in made.inputs})
    sizes = {"b": 2, "h": 2, "i": 3, "j": 2, "l": 290}
    given = {str(n.name): normal(*(sizes[a] for a in n.axes), seed=i) for i, n in enumerate(made.inputs)}
    monkeypatch.setattr(build_cuda, "load", emulate.load)
    found = program(made, CUDA, ConvolutionSchedule(route=route, outer=16, inner=16, warps=1, operands="float32", walk=4))(given)
    wanted = evaluate(made, given, dtype=torch.float64)
    assert all(relative(x, wanted[name]) < 1e-6 for name, x in found.items())


def long(outer: int, inner: int, warps: int) -> ConvolutionSchedule:
    return ConvolutionSchedule(route="passes", outer=outer, inner=inner, warps=warps, operands="float32")


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(("length", "channels"), [(1000, 3), (16384, 3), (128 * 256 - 5, 1), (512 * 256 - 9, 1)])
def test_passes_over_memory(length: int, channels: int, pass_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With columns of 4, 64, 128 and 512 points, of which the longer ones are shared by threads."""
    holds(Problem.of("fft_conv", dict(b=2, d=channels, l=length), "float32", pass_), long(16, 16, 1), monkeypatch)


@pytest.mark.parametrize("pass_", PASSES)
def test_passes_with_gates_and_kernels_both_ways(pass_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    holds(Problem.of("fft_conv", dict(b=2, d=3, l=1200), "bfloat16", pass_, **GATES), long(16, 16, 1), monkeypatch)


RADICES = [(64, 64, 8, (16, 16, 16)), (64, 16, 1, (32, 32, 1)), (16, 16, 1, (8, 8, 4)), (128, 128, 16, (32, 32, 16)),
           (64, 32, 4, (16, 16, 8))]


@pytest.mark.parametrize(("outer", "inner", "warps", "radices"), RADICES)
def test_passes_of_a_block(outer: int, inner: int, warps: int, radices: tuple[int, int, int]) -> None:
    assert passes(radix(outer, inner, warps)).radices == radices


def test_what_threads_cannot_hold_is_refused() -> None:
    with pytest.raises(ScheduleError, match="8 to 32"):
        passes(radix(128, 128, 1))
    few = Problem.of("fir_conv", dict(b=1, d=1, l=5000, w=64)).graph()
    with pytest.raises(UnsupportedForm, match="axis of its own"):
        program(few, CUDA, long(16, 16, 1))
    whole = program(Problem.of("fft_conv", dict(b=1, d=1, l=5000)).graph(), CUDA, long(16, 16, 1))
    with pytest.raises(ScheduleError, match="1024 blocks"):
        whole.shape_of({"l": 1024 * 256 + 1})


@pytest.mark.parametrize("length", [256, 1024, 4096, 65536, 1 << 22])
@pytest.mark.parametrize("pass_", PASSES)
def test_defaults_compile_without_a_device(pass_: str, length: int) -> None:
    problem = Problem.of("fft_conv", dict(b=64, d=768, l=length), "float32", pass_)
    made = program(problem.graph(), CUDA, default_schedule(problem.graph(), CUDA, problem.sizes))
    for source in made.all_sources(made.shape_of(problem.sizes)):
        found = build_cuda.resources(source, CUDA)
        # Sums over rows go to local memory and back once a row, so that more blocks fit beside one another.
        assert 0 < found["registers"] <= 255 and found["spills"] <= (600 if pass_ == "backward" else 16), source.name


def test_golden(golden: Callable[[str, str], None]) -> None:
    """A forward of one block, with a gate before it: from the kernel on, after the functions it calls."""
    problem = Problem.of("fft_conv", dict(b=2, d=2, l=200), "bfloat16", pregate="given")
    made = program(problem.graph(), CUDA, radix(16, 16, 1)).make("main", False)
    golden("cuda_radix.cu", made.text[made.text.index("struct Arguments"):])
