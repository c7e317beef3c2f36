"""C++ kernels of form stencil, against the oracle: rows that end within a vector, sums of sums, weights that lanes share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import scanc.dsl as sc
from scanc.codegen.cpp_rows import supported
from scanc.compiler import Executable, compile_graph, default_schedule
from scanc.errors import ScheduleError, UnsupportedForm
from scanc.forms.partition import partition
from scanc.forms.plan import make_plan
from scanc.op import REGISTRY
from scanc.problem import Problem
from scanc.schedule import StencilSchedule
from scanc.target import Target
from tests.checks import GRADIENT, RESULT
from tests.codegen.kernels import agrees

CPU = Target.parse("cpu:native:cpp")
PASSES = ("forward", "backward")


@sc.op(groups={})
def rowwise(
    x: Float[Tensor, "l g c"], weight: Float[Tensor, "c"], gate: Float[Tensor, "l g"], mask: Float[Tensor, "g c"]
) -> tuple[Float[Tensor, "l g c"], Float[Tensor, "l g"]]:
    """Three sums one above another, a result without the contracted axis, a weight that lanes and rows share, positions."""
    v = sc.tanh(x * mask) - sc.mean(x, "c")
    v = v * sc.rsqrt(sc.mean(sc.square(v), "c") + 1e-5) * (1.0 + sc.index("c") * 0.01)
    total = sc.sum(v * weight, "c") * gate
    return v * weight + total * sc.where(sc.index("l") > 2, 1.0, 0.5), total


del REGISTRY["rowwise"]  # other tests list the package's ops alone


@pytest.fixture(autouse=True)
def own_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "rowwise", rowwise)


def rows(segment: int, **more: int) -> StencilSchedule:
    return StencilSchedule(lanes=1, tile=1, segment=segment, **more)


OPTIONS: list[dict[str, Any]] = [{}, {"norm_before_gate": True}, {"z": None}, {"rms": False, "bias": "given", "residual": "given"}]


@pytest.mark.parametrize(("dtype", "options"), [*(("float32", o) for o in OPTIONS), ("bfloat16", OPTIONS[3]), ("float16", {})], ids=str)
@pytest.mark.parametrize("pass_", PASSES)
def test_norms(pass_: str, dtype: str, options: dict[str, Any]) -> None:
    agrees(Problem.of("gated_norm", dict(l=13, g=2, c=45), dtype, pass_, **options), CPU, rows(4))


@pytest.mark.parametrize("schedule", [rows(1), rows(0), rows(3, walk=2)], ids=str)
@pytest.mark.parametrize("c", [1, 16, 19])
@pytest.mark.parametrize("pass_", PASSES)
def test_any_graph_of_rows(pass_: str, c: int, schedule: StencilSchedule) -> None:
    problem = Problem.of("rowwise", dict(l=7, g=3, c=c), pass_=pass_)
    inputs = problem.inputs("cpu")
    made, oracle = compile_graph(problem.graph(), CPU, schedule)(inputs), problem.oracle(inputs)
    bars = GRADIENT if pass_ == "backward" else RESULT
    for name, error in problem.errors(made, oracle).items():
        # Of one channel v is nothing but rounding, and its gradients are small differences.
        assert error <= (bars[made[name].dtype] if c > 1 else 2e-3), name
        assert made[name].isfinite().all()


def test_any_strides() -> None:
    problem = Problem.of("gated_norm", dict(l=9, g=2, c=33), pass_="backward")
    inputs = problem.inputs("cpu")
    turned = {k: v.transpose(0, -1).contiguous().transpose(0, -1) for k, v in inputs.items()}
    made = [compile_graph(problem.graph(), CPU, rows(4))(given) for given in (inputs, turned)]
    assert all(torch.equal(made[0][name], made[1][name]) and bool(made[0][name].any()) for name in made[0])


def test_what_a_cpu_runs_is_compiled_whole() -> None:
    """Of the ops that Mamba-2 needs, and their backwards and steps, nothing but sums of partial results is left to torch."""
    cases: dict[str, dict[str, int]] = {"gated_norm": dict(l=64, g=1, c=64), "causal_conv1d": dict(b=1, d=32, l=64),
                                        "ssd": dict(b=1, l=64, h=2, p=16, n=16, g=1)}  # fmt: skip
    for name, case in cases.items():
        for pass_ in (*PASSES, *(("step",) if name == "ssd" else ())):
            problem = Problem.of(name, case, pass_=pass_)
            program = Executable(problem.graph(), CPU, default_schedule(problem.graph(), CPU, problem.sizes))
            assert program.parts.before is None, f"{name} {pass_}"
            late = program.parts.after
            assert late is None or not any(len(n.axes) > 3 for n in late.nodes()), f"{name} {pass_}"
    assert default_schedule(Problem.of("gated_norm", cases["gated_norm"]).graph(), CPU, {}).form == "stencil"


def test_what_has_no_rows_is_refused() -> None:
    graph = Problem.of("causal_conv1d", dict(b=1, d=2, l=3)).graph()
    assert "contracted axis" in supported(make_plan(partition(graph).kernel))
    with pytest.raises(UnsupportedForm, match="contracted axis"):
        Executable(graph, CPU, rows(4)).source()
    with pytest.raises(ScheduleError, match="lanes"):
        Executable(Problem.of("gated_norm", dict(l=3, g=2, c=5)).graph(), CPU, StencilSchedule(lanes=2, tile=1, segment=4)).source(5)
