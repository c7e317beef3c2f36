"""The short convolution against its sum in float64: whole sequences, states, packed sequences, decoding, and the low-level calls."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scanc.errors import ArgumentError
from scanc.ops.dropin import causal_conv1d as conv
from scanc.ops.dropin.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from tests.checks import GRADIENT, close, normal, wide

B_, D_, L_ = 2, 5, 13
IDS = torch.tensor([[0] * 4 + [1] * 2 + [2] * 5 + [-1] * 2, [7] * 13], dtype=torch.int32)


def by_sum(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, ids: Tensor | None = None, past: Tensor | None = None, silu: bool = True
) -> Tensor:
    """y_t = σ(bias + Σ_j w_j x_{t-j}), one term at a time; a term of another sequence is left out."""
    w, rows = weight.shape[1], []
    start = x.new_zeros(*x.shape[:2], w - 1) if past is None else past
    seen = torch.cat([start, x], dim=-1)
    for t in range(x.shape[-1]):
        total = torch.zeros_like(x[..., 0]) if bias is None else bias.expand_as(x[..., 0])
        for j in range(w):
            own = 1.0 if ids is None else ids[:, max(t - j, 0)].eq(ids[:, t])[:, None]
            total = total + own * weight[:, w - 1 - j] * seen[..., w - 1 + t - j]
        total = F.silu(total) if silu else total
        rows.append(total if ids is None else total * (ids[:, t] >= 0)[:, None])
    return torch.stack(rows, dim=-1)


def inputs(w: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"x": normal(B_, D_, L_, seed=1, dtype=dtype), "weight": normal(D_, w, seed=2), "bias": normal(D_, seed=3)}


@pytest.mark.parametrize(("w", "packed"), [(1, False), (4, True), (9, False), (9, True)])
def test_values_and_gradients(w: int, packed: bool) -> None:
    """9 taps are more than the compiled op has."""
    given = {k: v.requires_grad_() for k, v in inputs(w).items()}
    truth = {k: wide(v).requires_grad_() for k, v in given.items()}
    ids = IDS if packed else None
    out: Any = causal_conv1d_fn(**given, seq_idx=ids, activation="silu")
    wanted = by_sum(*truth.values(), ids=ids)
    close(out, wanted)
    come = normal(*out.shape, seed=4)
    found, right = torch.autograd.grad(out, list(given.values()), come), torch.autograd.grad(wanted, list(truth.values()), wide(come))
    for name, f, r in zip(given, found, right, strict=True):
        close(f, r, GRADIENT, name)


@pytest.mark.parametrize("layout", ["time last", "channels last"])
def test_layouts_and_dtypes(layout: str) -> None:
    given = inputs(4, torch.bfloat16)
    if layout == "channels last":
        given["x"] = given["x"].transpose(1, 2).contiguous().transpose(1, 2)
    out: Any = causal_conv1d_fn(**given, activation="swish")
    assert out.dtype == torch.bfloat16
    close(out, by_sum(*(wide(v) for v in given.values())))
    plain: Any = causal_conv1d_fn(given["x"], given["weight"])
    close(plain, by_sum(wide(given["x"]), wide(given["weight"]), silu=False))


@pytest.mark.parametrize("l", [2, L_])
def test_a_sequence_in_two_pieces(l: int) -> None:
    """Final states of one piece start the next, and gradients pass through them; a piece may be shorter than the window."""
    given = inputs(4)
    x = given["x"].requires_grad_()
    start = normal(B_, D_, 3, seed=5).requires_grad_()
    first, state = causal_conv1d_fn(
        x[..., :l], given["weight"], given["bias"], initial_states=start, return_final_states=True, activation="silu"
    )
    second, last = causal_conv1d_fn(
        x[..., :5], given["weight"], given["bias"], initial_states=state, return_final_states=True, activation="silu"
    )
    wide_x, wide_start = wide(x).requires_grad_(), wide(start).requires_grad_()
    joined = torch.cat([wide_x[..., :l], wide_x[..., :5]], -1)
    wanted = by_sum(joined, wide(given["weight"]), wide(given["bias"]), past=wide_start)
    close(torch.cat([first, second], -1), wanted)
    assert torch.equal(last, x[..., 2:5])
    come = normal(*second.shape, seed=6)
    found = torch.autograd.grad([second, last], [x, start], [come, torch.ones_like(last)])
    right = torch.autograd.grad([wanted[..., l:], joined[..., -3:]], [wide_x, wide_start], [wide(come), torch.ones(B_, D_, 3).double()])
    for f, r in zip(found, right, strict=True):
        close(f, r, GRADIENT)


def test_final_states_where_they_are_wanted() -> None:
    given, place = inputs(4), torch.full((B_, D_, 3), torch.nan)
    made: Any = causal_conv1d_fn(**given, return_final_states=True, final_states_out=place)
    assert made[1] is place and torch.equal(place, given["x"][..., -3:])
    ids = torch.tensor([0] * 11 + [1] * 2, dtype=torch.int32).repeat(B_, 1)
    packed: Any = causal_conv1d_fn(**given, seq_idx=ids, return_final_states=True)
    assert torch.equal(packed[1][..., 1:], given["x"][..., -2:]) and not packed[1][..., 0].any()


@pytest.mark.parametrize("steps", [0, 1, 3, 9])
@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("slots", [False, True])
def test_update(steps: int, ring: bool, slots: bool) -> None:
    """Decoding by ``steps`` at a time (0: x without a time axis) goes on as the whole sequence would; padded rows change nothing."""
    given, s = inputs(4), 6
    x, l = (given["x"][..., 0], 1) if steps == 0 else (given["x"][..., :steps], steps)
    history = normal(B_, D_, s, seed=7)
    wanted = by_sum(*(wide(v) for v in (given["x"][..., :l], given["weight"], given["bias"])), past=wide(history[..., -3:]))
    at = torch.tensor([5, 14], dtype=torch.int32) if ring else None
    rows = history if at is None else torch.stack([h.roll(int(a) % s, -1) for h, a in zip(history, at, strict=True)])
    after = torch.cat([history, given["x"][..., :l]], -1)[..., -s:]
    if at is not None:
        after = torch.stack([h.roll((int(a) + l) % s, -1) for h, a in zip(after, at, strict=True)])
    state, where = rows.clone(), None
    if slots:
        where = torch.tensor([-1, 3, -1, 0], dtype=torch.int32)
        state = normal(5, D_, s, seed=8)
        state[3], state[0] = rows[0], rows[1]
        x = torch.stack([torch.full_like(x[0], torch.nan), x[0], x[0], x[1]])
        at = None if at is None else torch.stack([at[0], at[0], at[1], at[1]])
    before = state.clone()
    out = causal_conv1d_update(x, state, given["weight"], given["bias"], "silu", at, where)
    assert out.shape == x.shape
    if slots:
        assert not out[0].any() and not out[2].any()
        out = out[[1, 3]]
        assert torch.equal(state[[3, 0]], after) and torch.equal(state[[1, 2, 4]], before[[1, 2, 4]])
    else:
        assert torch.equal(state, after)
    close(out if steps else out.unsqueeze(-1), wanted)


def test_update_where_every_row_is_padding() -> None:
    given, state = inputs(4), normal(5, D_, 3, seed=8)
    before = state.clone()
    out = causal_conv1d_update(given["x"][..., 0], state, given["weight"], conv_state_indices=torch.tensor([-1, -1]))
    assert not out.any() and torch.equal(state, before)


def test_states_of_packed_sequences() -> None:
    x, bounds = normal(11, D_, seed=1), torch.tensor([0, 2, 9, 11], dtype=torch.int32)
    states = conv.causal_conv1d_varlen_states(x, bounds, 4)
    assert states.shape == (3, D_, 4)
    assert torch.equal(states[1], x[5:9].T) and torch.equal(states[0][:, 2:], x[:2].T) and not states[0][:, :2].any()
    assert torch.equal(states, conv.causal_conv1d_varlen_states_ref(x, bounds, 4))


def test_references_agree_with_the_sum() -> None:
    given = {k: wide(v) for k, v in inputs(3).items()}
    past, ring = wide(normal(B_, D_, 2, seed=5)), wide(normal(B_, D_, 4, seed=6))
    made: Any = conv.causal_conv1d_ref(**given, initial_states=past, return_final_states=True, activation="silu")
    close(made[0], by_sum(*given.values(), past=past))
    assert torch.equal(made[1], given["x"][..., -2:])
    at = torch.tensor([3, 6])
    states = ring.clone(), ring.clone()
    calls = zip((causal_conv1d_update, conv.causal_conv1d_update_ref), states, strict=True)
    outs = [f(given["x"], s, given["weight"], given["bias"], "silu", at) for f, s in calls]
    close(outs[0], outs[1])
    assert torch.equal(*states)


def test_calls_without_autograd() -> None:
    given = inputs(4)
    come, past, later = normal(B_, D_, L_, seed=4), normal(B_, D_, 3, seed=5), normal(B_, D_, 3, seed=6)
    place, dx = torch.empty(B_, D_, 3), torch.empty(B_, D_, L_)
    out = conv.causal_conv1d_fwd_function(*given.values(), None, past, place, True)
    close(out, by_sum(*(wide(v) for v in given.values()), past=wide(past)))
    assert torch.equal(place, given["x"][..., -3:])
    truth = [wide(v).requires_grad_() for v in (*given.values(), past)]
    wanted = by_sum(*truth[:3], past=truth[3])
    right = torch.autograd.grad([wanted, truth[0][..., -3:]], truth, [wide(come), wide(later)])
    found = conv.causal_conv1d_bwd_function(*given.values(), come, None, past, later, dx, True, True)
    assert found[0] is dx
    for f, r in zip(found, right, strict=True):
        assert f is not None
        close(f, r, GRADIENT)
    many = inputs(9)
    without = conv.causal_conv1d_bwd_function(many["x"], many["weight"], None, come, None, None, None, None, False, False)
    assert without[2] is None and without[3] is None


def test_compiles_whole() -> None:
    given, state = inputs(4), normal(5, D_, 3, seed=5)
    both = state.clone(), state.clone()
    where = torch.tensor([4, -1])

    def call(x: Tensor, state: Tensor) -> tuple[Any, Tensor]:
        made = causal_conv1d_fn(x, given["weight"], given["bias"], seq_idx=IDS, activation="silu")
        return made, causal_conv1d_update(x[..., 0], state, given["weight"], conv_state_indices=where)

    for f, w in zip(torch.compile(call, fullgraph=True, backend="aot_eager")(given["x"], both[0]), call(given["x"], both[1]), strict=True):
        close(f, w)
    assert torch.equal(*both) and not torch.equal(both[0], state)


def test_refusals_name_what_is_wrong() -> None:
    given = inputs(4)
    with pytest.raises(ArgumentError, match="'activation' is 'gelu'"):
        causal_conv1d_fn(**given, activation="gelu")
    with pytest.raises(ArgumentError, match=r"squeeze\(1\)"):
        causal_conv1d_fn(given["x"], given["weight"].unsqueeze(1))
    with pytest.raises(ArgumentError, match="'initial_states'"):
        causal_conv1d_fn(**given, initial_states=torch.zeros(B_, D_, 4))
    with pytest.raises(ArgumentError, match="'conv_state' is 2 long, but 4 taps look back 3 steps"):
        causal_conv1d_update(given["x"], torch.zeros(B_, D_, 2), given["weight"])


def test_signatures_are_causal_conv1ds() -> None:
    names = "x weight bias seq_idx initial_states return_final_states final_states_out activation"
    assert list(inspect.signature(causal_conv1d_fn).parameters) == names.split()
    names = "x conv_state weight bias activation cache_seqlens conv_state_indices"
    assert list(inspect.signature(causal_conv1d_update).parameters) == names.split()
