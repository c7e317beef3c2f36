"""A prompt and then token by token is the whole sequence at once: scans, heads, and the short convolution before them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scanc.ops import selective_scan, ssd
from scanc.ops.causal_conv1d import from_states
from scanc.ops.dropin.causal_conv1d import causal_conv1d_update
from scanc.ops.dropin.selective_state_update import selective_state_update
from tests.checks import relative

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-3}
LENGTH = 24


def normal(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(params=list(BOUNDS), ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 9, 23])
def test_mamba(prompt: int, dtype: torch.dtype) -> None:
    b, d, n = 2, 20, 16
    u, delta, z = (normal(b, d, LENGTH, dtype=dtype, seed=i) for i in range(3))
    B, C = (normal(b, 1, n, LENGTH, dtype=dtype, seed=i) for i in (3, 4))
    A, D, bias = -normal(d, n, dtype=torch.float32, seed=5).abs(), *(normal(d, dtype=torch.float32, seed=i) for i in (6, 7))
    whole, end = selective_scan(u, delta, A, B, C, D, z, bias, delta_softplus=True)
    u0, delta0, B0, C0, z0 = (x[..., :prompt] for x in (u, delta, B, C, z))
    y, state = selective_scan(u0, delta0, A, B0, C0, D, z0, bias, delta_softplus=True)
    parts = [y]
    for t in range(prompt, LENGTH):
        at = [x[..., t] for x in (u, delta, B, C, z)]
        made = selective_state_update(state, at[0], at[1], A, at[2][:, 0], at[3][:, 0], D, at[4], bias, dt_softplus=True)
        parts.append(made.unsqueeze(-1))
    assert relative(torch.cat(parts, -1), whole) <= BOUNDS[dtype] and relative(state, end) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 9, 23])
def test_mamba2(prompt: int, dtype: torch.dtype) -> None:
    b, h, p, n = 2, 4, 16, 32
    x, dt = normal(b, LENGTH, h, p, dtype=dtype, seed=0), normal(b, LENGTH, h, dtype=dtype, seed=1)
    B, C = (normal(b, LENGTH, 1, n, dtype=dtype, seed=i) for i in (2, 3))
    A, D, bias = -normal(h, dtype=torch.float32, seed=4).abs(), *(normal(h, dtype=torch.float32, seed=i) for i in (5, 6))
    whole, end = ssd(x, dt, A, B, C, D, None, bias, dt_softplus=True)
    y, state = ssd(x[:, :prompt], dt[:, :prompt], A, B[:, :prompt], C[:, :prompt], D, None, bias, dt_softplus=True)
    parts = [y]
    heads = [t.view(h, 1).expand(h, p) for t in (D, bias)]
    for t in range(prompt, LENGTH):
        step = dt[:, t].unsqueeze(-1).expand(b, h, p)
        made = selective_state_update(state, x[:, t], step, A.view(h, 1, 1).expand(h, p, n), B[:, t], C[:, t], heads[0], None, heads[1],
                                      dt_softplus=True)
        parts.append(made.unsqueeze(1))
    assert relative(torch.cat(parts, 1), whole) <= BOUNDS[dtype] and relative(state, end) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 9, 23])
@pytest.mark.parametrize("taps", [2, 4])
def test_short_convolution(prompt: int, taps: int, dtype: torch.dtype) -> None:
    b, d = 2, 20
    x, weight, bias = normal(b, d, LENGTH, dtype=dtype, seed=0), normal(d, taps, dtype=dtype, seed=1), normal(d, dtype=dtype, seed=2)
    whole, end = from_states(x, weight, bias, silu=True)
    y, kept = from_states(x[..., :prompt], weight, bias, silu=True)
    state = kept.contiguous()
    parts = [y]
    for t in range(prompt, LENGTH):
        parts.append(causal_conv1d_update(x[..., t], state, weight, bias, "silu").unsqueeze(-1))
    assert relative(torch.cat(parts, -1), whole) <= BOUNDS[dtype] and torch.equal(state, end)
