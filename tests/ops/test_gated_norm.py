"""gated_norm against the oracle, on the CPU's kernels and in a tile that holds a row's channels; and that it is a stencil."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scanc.compiler import default_schedule, forms_of
from scanc.ops import gated_norm
from scanc.problem import Problem
from scanc.schedule import StencilSchedule
from scanc.target import Target
from tests.checks import holds, normal
from tests.codegen.kernels import agrees

KINDS: list[dict[str, Any]] = [
    {"norm_before_gate": False},
    {"norm_before_gate": True, "rms": False, "bias": "given"},
    {"z": None, "rms": False, "residual": "given"},
]


def sample(dtype: torch.dtype = torch.float32, l: int = 13, g: int = 2, c: int = 12) -> dict[str, Any]:
    return {
        "x": normal(l, g, c, seed=0, dtype=dtype),
        "weight": normal(g, c, seed=1),
        "bias": normal(g, c, seed=2),
        "z": normal(l, g, c, seed=3, dtype=dtype),
        "residual": normal(l, g, c, seed=4),
    }


@pytest.mark.parametrize("rms", [True, False])
@pytest.mark.parametrize("norm_before_gate", [True, False])
def test_every_kind(rms: bool, norm_before_gate: bool) -> None:
    given = sample()
    y, *_ = holds(gated_norm, given | {"rms": rms, "norm_before_gate": norm_before_gate, "eps": 1e-3})
    for i in range(2):  # groups are normed on their own
        one = {k: v[..., i : i + 1, :] for k, v in given.items()}
        alone = gated_norm(**one, rms=rms, norm_before_gate=norm_before_gate, eps=1e-3)
        assert torch.allclose(alone, y[:, i : i + 1], atol=1e-6)


def test_half_precision_and_no_gate() -> None:
    y, *_ = holds(gated_norm, {k: v for k, v in sample(torch.bfloat16).items() if k in ("x", "weight")})
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_rows_in_tiles(kind: dict[str, Any], pass_: str) -> None:
    """Channels that fill a tile and that do not, rows that do not fill the last, several tiles a block."""
    for l, g, c in ((13, 2, 12), (4, 1, 16)):
        problem = Problem.of("gated_norm", dict(l=l, g=g, c=c), pass_=pass_, **kind)
        agrees(problem, Target.parse("cpu:interpret:triton"), StencilSchedule(lanes=1, tile=2, segment=4))


def test_a_row_stays_in_one_kernel_on_a_gpu() -> None:
    problem = Problem.of("gated_norm", dict(l=64, g=1, c=4096), "bfloat16", "backward")
    graph = problem.graph()
    assert "stencil" in forms_of(graph) and graph.state == ("c",)
    chosen = default_schedule(graph, Target.parse("cuda:sm_90:triton"), problem.sizes)
    assert isinstance(chosen, StencilSchedule) and (chosen.lanes, chosen.tile) == (1, 1)
