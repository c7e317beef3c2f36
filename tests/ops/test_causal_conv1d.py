"""causal_conv1d on the CPU's kernels against the oracle: widths, packed sequences, pieces of a sequence."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from scanc.errors import ArgumentError
from scanc.ops import causal_conv1d
from scanc.ops.causal_conv1d import advance, from_states
from scanc.problem import Problem
from tests.checks import GRADIENT, close, holds, normal, wide


@pytest.mark.parametrize(("w", "silu"), [(1, True), (4, True), (16, False)])
def test_it_is_torchs_convolution(w: int, silu: bool) -> None:
    """Values, and gradients by every input; 16 taps of a sequence of 11 reach further than it."""
    x, weight, bias = normal(2, 5, 11, seed=1).requires_grad_(), normal(5, w, seed=2).requires_grad_(), normal(5, seed=3).requires_grad_()
    leaves = (x, weight, bias)
    truth = [wide(t).requires_grad_() for t in leaves]
    wanted = F.conv1d(F.pad(truth[0], (w - 1, 0)), truth[1].unsqueeze(1), truth[2], groups=5)
    wanted = F.silu(wanted) if silu else wanted
    y = causal_conv1d(x, weight, bias, silu=silu)
    close(y, wanted)
    come = normal(2, 5, 11, seed=4)
    for f, r in zip(torch.autograd.grad(y, leaves, come), torch.autograd.grad(wanted, truth, wide(come)), strict=True):
        close(f, r, GRADIENT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_sequences(dtype: torch.dtype) -> None:
    ids = torch.tensor([[0] * 4 + [1] * 2 + [2] * 25 + [-1] * 2, [7] * 33], dtype=torch.int32)
    x = {"x": normal(2, 5, 33, seed=1, dtype=dtype), "weight": normal(5, 4, seed=2), "bias": normal(5, seed=3), "seq_idx": ids}
    y, *_ = holds(causal_conv1d, x | {"silu": True})
    alone = causal_conv1d(x["x"][:1, :, 4:6], x["weight"], x["bias"], silu=True)
    assert torch.equal(y[:1, :, 4:6], alone) and not y[0, :, 31:].any()


@pytest.mark.parametrize("cuts", [(3,), (1, 2, 9, 20)])
def test_pieces_that_hand_on_their_last_inputs_are_one_call(cuts: tuple[int, ...]) -> None:
    """Pieces shorter than the window too, gradients through the states included."""
    x, weight, bias = normal(2, 5, 33, seed=1).requires_grad_(), normal(5, 4, seed=2), normal(5, seed=3)
    whole = causal_conv1d(x, weight, bias, silu=True)
    state, parts = None, []
    for piece in x.tensor_split(cuts, dim=-1):
        y, state = from_states(piece, weight, bias, initial_states=state, silu=True)
        parts.append(y)
    close(torch.cat(parts, -1), whole.detach())
    assert state is not None and torch.equal(state, x[..., -3:])
    come = normal(2, 5, 33, seed=4)
    (found,), (wanted,) = (torch.autograd.grad(y, x, come) for y in (torch.cat(parts, -1), whole))
    close(found, wanted, GRADIENT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("s", [3, 6, 13])
def test_a_step_of_a_state_longer_than_its_taps(s: int, dtype: torch.dtype) -> None:
    """No tap reads the state's oldest step, which takes its dtype all the same; nothing beside the state is written."""
    x, weight, bias = normal(3, 40, seed=1, dtype=dtype), normal(40, 4, seed=2), normal(40, seed=3)
    wider = normal(3, s + 2, 40, seed=4, dtype=dtype)
    before, state = wider.clone(), wider[:, 1:-1].mT
    seen = torch.cat([state, x.unsqueeze(-1)], -1)
    for _ in range(2):  # the second call is a remembered one
        wider.copy_(before)
        y = advance(x, state, weight, bias, silu=True)
        assert torch.equal(state, seen[..., 1:]) and torch.equal(wider[:, [0, -1]], before[:, [0, -1]])
        close(y, F.silu((wide(seen[..., -4:]) * wide(weight)).sum(-1) + wide(bias)))


def test_it_is_benched_and_shown_as_other_ops_are() -> None:
    for case in causal_conv1d.cases:
        problem = Problem.of("causal_conv1d", case, "bfloat16")
        assert {str(n.name) for n in problem.graph().inputs} == {"x", "w0", "w1", "w2", "w3", "bias"}
    assert "stencil" in causal_conv1d.forms()


def test_refusals_name_what_is_wrong() -> None:
    for shape in ((5, 17), (5, 0), (5, 1, 4)):
        with pytest.raises(ArgumentError, match=r"causal_conv1d: argument 'weight'.*1 to 16 taps"):
            causal_conv1d(normal(2, 5, 11, seed=1), torch.zeros(shape))
