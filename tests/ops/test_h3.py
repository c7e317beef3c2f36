"""H3: whole sequences, chunks from one another's states, and single steps are one function; it is the paper's sum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scanc.errors import ArgumentError
from scanc.ops.h3 import H3
from tests.checks import normal, relative


def layer(head_dim: int, d_model: int = 6, d_state: int = 8) -> H3:
    torch.manual_seed(0)
    return H3(d_model, d_state, head_dim)


def written_out(h3: H3, u: Tensor) -> Tensor:
    """The recurrences of both state spaces, step by step and head by head, in double precision."""
    q, k, v = (p(u).detach().double() for p in (h3.q_proj, h3.k_proj, h3.v_proj))
    C, D = h3.shift_C.detach().double(), h3.shift_D.detach().double()
    dt, A, B, Cd = (x.detach().to(torch.complex128) for x in h3._diag())
    step = dt[:, None]
    a, b = (1 + step * A / 2) / (1 - step * A / 2), step / (1 - step * A / 2) * B
    n, i = h3.d_state, h3.head_dim
    batch, length, _ = u.shape
    past = torch.zeros(batch, h3.d_model, n, dtype=torch.float64)
    state = torch.zeros(batch, h3.heads, i, i, n // 2, dtype=torch.complex128)
    y = []
    for t in range(length):
        past = torch.cat([k[:, t, :, None], past[..., :-1]], -1)
        kt = ((past * C).sum(-1) + D * k[:, t]).view(batch, h3.heads, i)
        kv = kt[..., :, None] * v[:, t].view(batch, h3.heads, 1, i)
        state = a[:, None, None] * state + b[:, None, None] * kv[..., None]
        read = 2 * (Cd[:, None, None] * state).real.sum(-1) + h3.D.detach().double()[:, None, None] * kv
        y.append((q[:, t].view(batch, h3.heads, i, 1) * read).sum(-2).flatten(1))
    return torch.stack(y, 1) @ h3.out_proj.weight.detach().double().T + h3.out_proj.bias.detach().double()


@pytest.mark.parametrize("head_dim", [1, 2])
@pytest.mark.parametrize("l", [1, 5, 40])
def test_it_is_the_papers_sum(head_dim: int, l: int) -> None:
    h3, u = layer(head_dim), normal(2, l, 6, seed=1)
    assert relative(h3(u), written_out(h3, u)) < 1e-5
    assert relative(h3(u, return_state=True)[0], written_out(h3, u)) < 1e-5


@pytest.mark.parametrize("head_dim", [1, 2])
def test_chunks_of_any_length(head_dim: int) -> None:
    h3, u = layer(head_dim), normal(2, 40, 6, seed=1)
    whole, end = h3(u, return_state=True)
    state, parts = h3.zero_state(2), []
    for part in u.split([1, 3, 20, 16], 1):
        y, state = h3(part, state, return_state=True)
        parts.append(y)
    assert relative(torch.cat(parts, 1), whole) < 1e-5
    assert relative(state.shift, end.shift) < 1e-5 and relative(state.diag, end.diag) < 1e-5


@pytest.mark.parametrize("head_dim", [1, 2])
def test_steps_after_a_prompt(head_dim: int) -> None:
    h3, u = layer(head_dim), normal(2, 20, 6, seed=1)
    whole = h3(u)
    _, state = h3(u[:, :13], return_state=True)
    before = state.diag.clone()
    for t in range(13, 20):
        y, later = h3.step(u[:, t], state)
        assert relative(y, whole[:, t]) < 1e-5
        assert t > 13 or torch.equal(state.diag, before)  # a state that was given stays
        state = later


def test_gradients_reach_every_parameter() -> None:
    h3 = layer(1)
    h3(normal(2, 30, 6, seed=1)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in h3.parameters())


def test_errors_say_what_is_possible() -> None:
    with pytest.raises(ArgumentError, match="divide d_model"):
        H3(6, 8, 4)
    with pytest.raises(ArgumentError, match="conjugate pairs"):
        H3(6, 7)
