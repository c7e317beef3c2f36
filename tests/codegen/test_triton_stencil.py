"""Triton kernels of form stencil: interpreted on the CPU against the oracle, in every layout; compiled for GPUs that are not here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import scanc.dsl as sc
from scanc.codegen import build_triton
from scanc.compiler import compile_graph, default_schedule, forms_of
from scanc.op import REGISTRY
from scanc.problem import Problem
from scanc.schedule import StencilSchedule
from scanc.target import Target
from tests.codegen.kernels import agrees, source_of

INTERPRET = Target.parse("cpu:interpret:triton")
PASSES = ("forward", "backward")


@sc.op
def around(
    x: Float[Tensor, "b d l"], w: Float[Tensor, "d"], v: Float[Tensor, "b l"]
) -> tuple[Float[Tensor, "b d l"], Float[Tensor, "b l"]]:
    """Looks back and ahead with fills of its own, and sums over the lanes."""
    y = w * sc.shift(x, "l", 2, fill=0.5) + sc.tanh(x) * sc.shift(v, "l", -1, fill=2.0)
    return y * sc.where(sc.index("l") > 3, 1.0, v), sc.sum(sc.square(x), "d")


del REGISTRY["around"]  # other tests list the package's ops alone


@pytest.fixture(autouse=True)
def own_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "around", around)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("sizes", [dict(lanes=4, tile=8, segment=8), dict(lanes=2, tile=4, segment=8), dict(lanes=1, tile=32, segment=0)])
def test_edges_of_lanes_and_time(pass_: str, sizes: dict[str, int]) -> None:
    """Tiles that an edge cuts and tiles that none does: 29 steps, 7 lanes, 3 steps looked back."""
    agrees(Problem.of("causal_conv1d", dict(b=2, d=7, l=29), pass_=pass_), INTERPRET, StencilSchedule(**sizes))


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(("name", "options"), [("causal_conv1d", {"seq_idx": "given", "w9": "given"}), ("around", {})])
def test_looks_back_and_ahead(name: str, options: dict[str, Any], pass_: str) -> None:
    agrees(Problem.of(name, dict(b=2, d=5, l=19), pass_=pass_, **options), INTERPRET, StencilSchedule(lanes=2, tile=4, segment=4, walk=2))


def test_half_precision() -> None:
    for pass_ in PASSES:
        agrees(Problem.of("causal_conv1d", dict(b=1, d=3, l=21), "bfloat16", pass_), INTERPRET, StencilSchedule(lanes=2, tile=8, segment=8))


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("layout", ["time last", "channels last", "part of a wider tensor"])
def test_a_result_lies_in_memory_as_its_input(layout: str, pass_: str) -> None:
    problem = Problem.of("causal_conv1d", dict(b=2, d=6, l=21), pass_=pass_)
    given = problem.inputs()
    wide = torch.zeros(2, 21, 9)
    wide[..., 2:8] = given["x"].transpose(1, 2)
    given["x"] = {"time last": given["x"], "channels last": wide[..., 2:8].contiguous().transpose(1, 2)}.get(layout, wide[..., 2:8].mT)
    made = compile_graph(problem.graph(), INTERPRET, StencilSchedule(lanes=4, tile=8, segment=8))(given)
    name = "y" if pass_ == "forward" else "d_x"
    assert made[name].stride() == torch.empty_like(given["x"]).stride()
    for result, error in problem.errors(made, problem.oracle(given)).items():
        assert error <= 2e-5, result


def test_it_is_chosen_where_nothing_is_carried() -> None:
    problem = Problem.of("causal_conv1d", dict(b=1, d=64, l=100), "bfloat16")
    assert "stencil" in forms_of(problem.graph()) and "associative" not in forms_of(problem.graph())
    assert "stencil" not in forms_of(Problem.of("linear_recurrence", dict(b=1, d=2, l=4)).graph())
    chosen = default_schedule(problem.graph(), Target.parse("cuda:sm_90:triton"), problem.sizes)
    assert isinstance(chosen, StencilSchedule) and chosen.tile <= 128
    assert default_schedule(problem.graph(), Target.parse("cpu:native:cpp"), problem.sizes).form == "recurrent"


@pytest.mark.parametrize("target", ["cuda:sm_80:triton", "cuda:sm_90:triton", "hip:gfx942:triton"])
@pytest.mark.parametrize("pass_", PASSES)
def test_compiles_without_a_device(pass_: str, target: str) -> None:
    problem = Problem.of("causal_conv1d", dict(b=1, d=32, l=64), "bfloat16", pass_)
    source, named = source_of(problem, target, StencilSchedule(lanes=2, tile=64, segment=64, warps=1))
    found = build_triton.resources(source, named)
    assert 0 < found["registers"] <= 255 and found["spills"] == 0
