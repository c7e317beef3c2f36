"""What carries nothing from step to step, on the GPU that is here: the short convolution and norms, in every dtype and layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scanc.codegen import build_cuda
from scanc.compiler import compile_graph, default_schedule
from scanc.ops import causal_conv1d, gated_norm
from scanc.ops.causal_conv1d import from_states
from scanc.ops.dropin.causal_conv1d import causal_conv1d_update
from scanc.problem import Problem
from scanc.schedule import StencilSchedule
from scanc.target import Target
from tests.checks import holds, normal, relative
from tests.codegen.kernels import agrees
from tests.gpu.test_triton import DTYPES, here

PASSES = ("forward", "backward")
BACKENDS = ("triton", *(("cuda",) if build_cuda.available() else ()))


def on(backend: str) -> Target:
    return replace(here(), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 63, 1024, 2049])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pass_", PASSES)
def test_convolution(pass_: str, dtype: str, length: int, backend: str) -> None:
    problem, target = Problem.of("causal_conv1d", dict(b=2, d=70, l=length), dtype, pass_, seq_idx="given"), on(backend)
    agrees(problem, target, default_schedule(problem.graph(), target, problem.sizes, "stencil"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "schedule",
    [StencilSchedule(lanes=1, tile=1024, segment=1024, ahead=1), StencilSchedule(lanes=64, tile=8, segment=512, warps=2, deep=4)],
)
@pytest.mark.parametrize("layout", ["time last", "channels last", "part of a wider tensor"])
@pytest.mark.parametrize("pass_", PASSES)
def test_layouts(pass_: str, layout: str, schedule: StencilSchedule, backend: str) -> None:
    problem = Problem.of("causal_conv1d", dict(b=2, d=192, l=1500), "bfloat16", pass_)
    given = problem.inputs("cuda")
    wide = given["x"].new_zeros(2, 1500, 208)
    wide[..., 16:] = given["x"].mT
    given["x"] = {"time last": given["x"], "channels last": given["x"].mT.contiguous().mT}.get(layout, wide[..., 16:].mT)
    made = compile_graph(problem.graph(), on(backend), schedule)(given)
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


@torch.no_grad()
@pytest.mark.parametrize("taps", [2, 4])
def test_a_decode_step_goes_on_from_a_prompt(taps: int) -> None:
    """In a CUDA graph too, which holds the launches of calls that look at addresses only."""
    x, weight, bias = normal(3, 70, 12, seed=1).cuda(), normal(70, taps, seed=2).cuda(), normal(70, seed=3).cuda()
    whole, end = from_states(x, weight, bias, silu=True)
    _, kept = from_states(x[..., :6], weight, bias, silu=True)
    state, at = kept.contiguous(), torch.empty_like(x[..., 0].contiguous())
    for t in (6, 7, 8):
        assert relative(causal_conv1d_update(x[..., t].contiguous(), state, weight, bias, "silu"), whole[..., t]) < 1e-5
    before = state.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        causal_conv1d_update(at, state, weight, bias, "silu")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        made = causal_conv1d_update(at, state, weight, bias, "silu")
    state.copy_(before)
    for t in (9, 10, 11):
        at.copy_(x[..., t])
        graph.replay()
        assert relative(made, whole[..., t]) < 1e-5
    assert torch.equal(state, end)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_decode_step_of_a_state_longer_than_its_taps(dtype: str) -> None:
    """Channels next to each other, as servers keep them; what lies around the state stays as it is."""
    kind = getattr(torch, dtype)
    x, weight = normal(3, 2048, seed=1, dtype=kind).cuda(), normal(2048, 4, seed=2).cuda()
    wider = normal(3, 15, 2048, seed=3, dtype=kind).cuda()
    before, state = wider.clone(), wider[:, 1:-1].mT
    seen = torch.cat([state, x.unsqueeze(-1)], -1)
    for _ in range(2):
        wider.copy_(before)
        out = causal_conv1d_update(x, state, weight)
        assert torch.equal(state, seen[..., 1:]) and torch.equal(wider[:, [0, -1]], before[:, [0, -1]])
        assert relative(out, (seen[..., -4:].double() * weight.double()).sum(-1)) < (1e-6 if dtype == "float32" else 4e-3)
