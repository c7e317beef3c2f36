"""What carries nothing from step to step, on the GPU that is here: the short convolution and norms, in every dtype and layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scanc.compiler import compile_graph, default_schedule
from scanc.ops import causal_conv1d, gated_norm
from scanc.problem import Problem
from scanc.schedule import StencilSchedule
from tests.checks import holds, normal
from tests.codegen.kernels import agrees
from tests.gpu.test_triton import DTYPES, here

PASSES = ("forward", "backward")


@pytest.mark.parametrize("length", [1, 63, 2049])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pass_", PASSES)
def test_convolution(pass_: str, dtype: str, length: int) -> None:
    problem = Problem.of("causal_conv1d", dict(b=2, d=70, l=length), dtype, pass_, seq_idx="given")
    agrees(problem, here(), default_schedule(problem.graph(), here(), problem.sizes, "stencil"))


@pytest.mark.parametrize(
    "schedule", [StencilSchedule(lanes=1, tile=1024, segment=1024), StencilSchedule(lanes=64, tile=8, segment=512, warps=8)]
)
@pytest.mark.parametrize("layout", ["time last", "channels last", "part of a wider tensor"])
@pytest.mark.parametrize("pass_", PASSES)
def test_layouts(pass_: str, layout: str, schedule: StencilSchedule) -> None:
    problem = Problem.of("causal_conv1d", dict(b=2, d=192, l=1500), "bfloat16", pass_)
    given = problem.inputs("cuda")
    wide = given["x"].new_zeros(2, 1500, 208)
    wide[..., 16:] = given["x"].mT
    given["x"] = {"time last": given["x"], "channels last": given["x"].mT.contiguous().mT}.get(layout, wide[..., 16:].mT)
    made = compile_graph(problem.graph(), here(), schedule)(given)
    name = "y" if pass_ == "forward" else "d_x"
    assert made[name].stride() == torch.empty_like(given["x"]).stride()
    assert max(problem.errors(made, problem.oracle(given)).values()) <= 1e-2


@pytest.mark.parametrize("c", [1, 100, 4096, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pass_", PASSES)
def test_norms(pass_: str, dtype: str, c: int) -> None:
    problem = Problem.of("gated_norm", dict(l=300, g=2, c=c), dtype, pass_, rms=False, bias="given", residual="given")
    agrees(problem, here(), default_schedule(problem.graph(), here(), problem.sizes, "stencil"))


def test_as_they_are_called() -> None:
    """Through torch's dispatcher, autograd and whatever schedule is best known."""

    def cuda(x: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: v.cuda() for k, v in x.items()}

    holds(
        causal_conv1d, cuda({"x": normal(2, 65, 700, seed=1), "weight": normal(65, 9, seed=2), "bias": normal(65, seed=3)}) | {"silu": True}
    )
    holds(gated_norm, cuda({"x": normal(500, 1, 300, seed=1), "weight": normal(1, 300, seed=2), "z": normal(500, 1, 300, seed=3)}))
