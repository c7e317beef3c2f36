"""CUDA kernels of form stencil: emulated on the CPU against the oracle, in every layout and at every edge; compiled for GPUs not here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
from jaxtyping import Float
from torch import Tensor

import scanc.dsl as sc
from scanc.codegen import build_cuda
from scanc.codegen.cuda_stencil import supported
from scanc.codegen.layout import Mode
from scanc.compiler import Executable, compile_graph, default_schedule
from scanc.errors import ScheduleError, UnsupportedForm
from scanc.op import REGISTRY
from scanc.problem import Problem
from scanc.schedule import StencilSchedule
from scanc.target import Target
from tests.checks import GRADIENT, RESULT
from tests.codegen import emulate

CUDA = Target.parse("cuda:sm_90:cuda")
PASSES = ("forward", "backward")


@sc.op
def glance(
    x: Float[Tensor, "b d l"], w: Float[Tensor, "d"], v: Float[Tensor, "b l"]
) -> tuple[Float[Tensor, "b d l"], Float[Tensor, "d"]]:
    """Looks back and ahead with fills of its own, at inputs and at what it computes, and sums over batch and time."""
    u = sc.tanh(w * x) + sc.shift(v, "l", 1, fill=0.25)
    y = u * sc.shift(u, "l", 2, fill=0.5) + sc.shift(sc.shift(u, "l", -3, fill=2.0), "l", 1, fill=-1.0) * sc.shift(v, "l", -1)
    return y * sc.where(sc.index("l") > 3, 1.0, x) * sc.where(sc.index("d") > 2, 2.0, 1.0), sc.sum(sc.square(u), "b l")


del REGISTRY["glance"]  # other tests list the package's ops alone


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "glance", glance)
    monkeypatch.setattr(build_cuda, "available", lambda: True)
    monkeypatch.setattr(build_cuda, "load", emulate.load)


def schedule(lanes: int = 2, tile: int = 32, segment: int = 32, **more: int) -> StencilSchedule:
    return StencilSchedule(lanes=lanes, tile=tile, segment=segment, warps=1, **more)


def placed(x: Tensor, layout: str) -> Tensor:
    """x (b d l) with the same values, its lanes together in memory or its steps, in a wider tensor that starts off a vector's border."""
    if layout == "steps":
        return x.contiguous()
    if layout == "lanes":
        return x.mT.contiguous().mT
    wide = x.new_zeros(x.shape[0], x.shape[2] + 3, x.shape[1] + 3)
    wide[:, 1:-2, 2:-1] = x.mT
    return wide[:, 1:-2, 2:-1].mT


def check(problem: Problem, wanted: StencilSchedule, monkeypatch: pytest.MonkeyPatch, layout: str = "steps") -> None:
    inputs = {k: placed(t, layout) if t.dim() == 3 else t for k, t in problem.inputs().items()}
    oracle = problem.oracle(inputs)
    bars = GRADIENT if problem.pass_ == "backward" else RESULT
    if layout != "steps":
        wanted = dataclasses.replace(wanted, warps=max(4, wanted.warps))  # fewer would be made eight, which take long to emulate
    for backwards in (False, True):
        monkeypatch.setattr(build_cuda, "load", functools.partial(emulate.load, backwards=backwards))
        made = compile_graph(problem.graph(), CUDA, wanted, sizes=problem.sizes)(inputs)
        for name, error in problem.errors(made, oracle).items():
            assert error <= bars[made[name].dtype], f"{problem} {wanted} {layout}: {name} has relative error {error:.2e}"
    assert any(bool(x.any()) for x in oracle.values())


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("layout", ["steps", "lanes", "part"])
@pytest.mark.parametrize("length", [29, 64])
def test_edges_of_lanes_and_time(pass_: str, layout: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches inside, at the ends and cut by an edge: 7 and 6 lanes, lengths that are and are not a number of patches."""
    problem = Problem.of("causal_conv1d", dict(b=2, d=6 if length == 64 else 7, l=length), pass_=pass_)
    check(problem, schedule(lanes=4, tile=64, segment=64, deep=4, ahead=length % 2), monkeypatch, layout)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("layout", ["steps", "lanes"])
@pytest.mark.parametrize("wanted", [schedule(lanes=1, tile=128, segment=128), schedule(lanes=8, tile=32, segment=32, across=4, deep=8),
                                    schedule(lanes=32, tile=8, segment=144, across=1, deep=16), schedule(lanes=1, segment=64, ahead=1),
                                    schedule(lanes=4, tile=128, segment=256, ahead=1), schedule(lanes=4, segment=128, deep=4, ahead=2),
                                    StencilSchedule(lanes=2, tile=128, segment=128, warps=2, across=2, deep=4)])
def test_schedules(pass_: str, layout: str, wanted: StencilSchedule, monkeypatch: pytest.MonkeyPatch) -> None:
    check(Problem.of("causal_conv1d", dict(b=2, d=16, l=144), "bfloat16", pass_), wanted, monkeypatch, layout)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(("length", "layout"), [(208, "steps"), (208, "part"), (29, "steps"), (8, "steps")])
def test_pieces(pass_: str, length: int, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread's steps in pieces beside its neighbours': in whole tiles, cut by the end, in a segment after another, and one by one."""
    problem = Problem.of("causal_conv1d", dict(b=2, d=7, l=length), "bfloat16", pass_)
    check(problem, schedule(lanes=4, tile=64, segment=128, pieces=2, ahead=length % 3), monkeypatch, layout)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("layout", ["steps", "lanes"])
@pytest.mark.parametrize(("name", "options"), [("causal_conv1d", {"seq_idx": "given", "w9": "given"}), ("glance", {})])
def test_looks_back_and_ahead(name: str, options: dict[str, Any], layout: str, pass_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem.of(name, dict(b=2, d=5, l=48), pass_=pass_, **options)
    if name == "glance" and pass_ == "backward":
        with pytest.raises(UnsupportedForm, match="sums over lanes"):
            check(problem, schedule(), monkeypatch, layout)
        return
    check(problem, schedule(lanes=2, tile=64, segment=64), monkeypatch, layout)
    if layout == "steps" and name == "glance":
        check(problem, schedule(lanes=2, tile=128, segment=128, pieces=2, ahead=1), monkeypatch)


def test_what_it_computes_is_not_computed_again_for_every_look() -> None:
    """The derivative of the activation, which every tap's gradient looks at, is one line."""
    problem = Problem.of("causal_conv1d", dict(b=1, d=8, l=64), "bfloat16", "backward")
    program = Executable(problem.graph(), CUDA, schedule())
    assert program.source().text.count("exp2_(") == 1


def test_a_result_lies_in_memory_as_its_input() -> None:
    problem = Problem.of("causal_conv1d", dict(b=2, d=6, l=32))
    given = problem.inputs()
    given["x"] = placed(given["x"], "lanes")
    made = compile_graph(problem.graph(), CUDA, schedule())(given)
    assert made["y"].stride() == given["x"].stride()


def test_what_has_no_patches_is_refused() -> None:
    norm = Problem.of("gated_norm", dict(l=8, g=1, c=16))
    assert not isinstance(default_schedule(norm.graph(), CUDA, norm.sizes), StencilSchedule)
    with pytest.raises(UnsupportedForm, match="no states"):
        Executable(norm.graph(), CUDA, schedule()).source()
    conv = Problem.of("causal_conv1d", dict(b=1, d=8, l=64))
    assert not supported(Executable(conv.graph(), CUDA, schedule()).plan)
    with pytest.raises(ScheduleError, match="share of a tile"):
        Executable(conv.graph(), CUDA, schedule(lanes=1, tile=16)).source()
    with pytest.raises(ScheduleError, match="raise warps"):
        Executable(conv.graph(), CUDA, schedule(lanes=64, tile=64, segment=64)).source()


@pytest.mark.parametrize("length", [1, 63, 520])
def test_defaults_of_short_rows(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem.of("causal_conv1d", dict(b=1, d=3, l=length), "bfloat16")
    chosen = default_schedule(problem.graph(), CUDA, problem.sizes)
    assert isinstance(chosen, StencilSchedule) and chosen.pieces > 1
    check(problem, chosen, monkeypatch)


@pytest.mark.parametrize("target", ["cuda:sm_80:cuda", "cuda:sm_90:cuda"])
@pytest.mark.parametrize("pass_", PASSES)
def test_defaults_compile_without_a_device(pass_: str, target: str) -> None:
    problem, named = Problem.of("causal_conv1d", dict(b=8, d=4096, l=2048), "bfloat16", pass_), Target.parse(target)
    chosen = default_schedule(problem.graph(), named, problem.sizes)
    assert isinstance(chosen, StencilSchedule)
    program = Executable(problem.graph(), named, chosen)
    for wanted, mode in ((chosen, Mode()), (chosen.across_lanes(), Mode(neighbours="d"))):
        found = build_cuda.resources(program.source(1, mode, wanted), named)
        # Some of what reads one by one, for the sake of more threads beside each other, and no more.
        assert 0 < found["registers"] <= 255 and found["spills"] <= (384 if mode.neighbours and pass_ == "backward" else 0)


def test_golden(golden: Callable[[str, str], None]) -> None:
    """A gradient, from the first tile on: what it looks at is made a step ahead, once."""
    problem = Problem.of("causal_conv1d", dict(b=1, d=8, l=64), "bfloat16", "backward", w2=None, w3=None)
    text = Executable(problem.graph(), CUDA, schedule(lanes=2, tile=128, segment=128)).source().text
    start = "    for (int at = 0;"
    golden("cuda_stencil.cu", start + text.split(start, 1)[1])


@pytest.mark.parametrize("name", ["pieces", "lanes"])
def test_golden_of_what_is_whole(name: str, golden: Callable[[str, str], None]) -> None:
    """A block whose vectors are all whole has a loop of its own, where steps lie together (in pieces) and where lanes do."""
    problem = Problem.of("causal_conv1d", dict(b=1, d=8, l=64), "bfloat16", w2=None, w3=None)
    wanted = schedule(tile=128, segment=128, pieces=2)
    mode, wanted = (Mode(), wanted) if name == "pieces" else (Mode(neighbours="d"), wanted.across_lanes())
    text = Executable(problem.graph(), CUDA, wanted).source(1, mode, wanted).text
    start = "    const bool whole"
    golden(f"cuda_stencil_{name}.cu", start + text.split(start, 1)[1].split("\n    else {")[0])
