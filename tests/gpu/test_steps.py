"""Decode steps on the GPU that is here: they begin while the kernel before them still runs, and must wait for what it writes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scanc.ops.dropin.selective_state_update import selective_state_update
from tests.checks import normal, relative

STEPS = 24


def mamba(device: str, batch: int) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """A state, and a step of it and of an input (b d)."""
    d, n = 512, 16
    A, D, bias = -normal(d, n, seed=1).abs().to(device), normal(d, seed=2).to(device), normal(d, seed=3).to(device)
    dt, B, C, z = (normal(*shape, seed=4 + i).to(device) for i, shape in enumerate(((batch, d), (batch, n), (batch, n), (batch, d))))
    state = normal(batch, d, n, seed=9).to(device)
    return state, lambda held, x: selective_state_update(held, x, dt, A, B, C, D, z, bias, dt_softplus=True)


def mamba2(device: str, batch: int) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """The same with 8 heads of 64 × 128, whose state has 16 bits."""
    h, p, n = 8, 64, 128
    A, D, bias = -normal(h, seed=1).abs().to(device), normal(h, seed=2).to(device), normal(h, seed=3).to(device)
    dt, B, C = (normal(*shape, seed=4 + i).to(device) for i, shape in enumerate(((batch, h), (batch, 1, n), (batch, 1, n))))
    state = normal(batch, h, p, n, seed=9).bfloat16().to(device)
    wide = [A[:, None, None].expand(h, p, n), D[:, None].expand(h, p), bias[:, None].expand(h, p), dt[..., None].expand(batch, h, p)]

    def step(held: Tensor, x: Tensor) -> Tensor:
        y = selective_state_update(held, x.view(batch, h, p), wide[3], wide[0], B, C, wide[1], None, wide[2], dt_softplus=True)
        return y.reshape(batch, h * p)

    return state, step


def chain(step: Callable[[Tensor, Tensor], Tensor], states: tuple[Tensor, Tensor], x: Tensor, pause: Callable[[], None]) -> Tensor:
    """Steps that each read what the kernel before them wrote: two right after one another, then torch's kernels, and again."""
    for _ in range(STEPS):
        for state in states:
            x = step(state, x)
            pause()
        x = torch.tanh(x)
        pause()
    return x


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("of", [mamba, mamba2])
def test_steps_wait_for_what_comes_before(of: Callable[[str, int], tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]], batch: int) -> None:
    """The same bits as where the device is waited for in between, in a CUDA graph too."""
    state, step = of("cuda", batch)
    x = normal(batch, 512, seed=20).cuda()
    slow = (state.clone(), state.flip(0).contiguous())
    wanted = chain(step, slow, x, torch.cuda.synchronize)
    assert wanted.isfinite().all() and relative(slow[0], state) > 1e-3
    fast = (state.clone(), state.flip(0).contiguous())
    assert torch.equal(chain(step, fast, x, lambda: None), wanted)
    assert all(torch.equal(a, b) for a, b in zip(slow, fast, strict=True))
    held, side = (state.clone(), state.flip(0).contiguous()), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        made = chain(step, held, x, lambda: None)
    held[0].copy_(state)
    held[1].copy_(state.flip(0))
    graph.replay()
    assert torch.equal(made, wanted) and all(torch.equal(a, b) for a, b in zip(slow, held, strict=True))
