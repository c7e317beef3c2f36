"""Speculative decoding with Mamba's and Mamba-2's states: k drafted tokens at once, of which some are accepted.

    out, states = selective_state_update_tokens(state, x, ...)     every token's result, and the state after each; state stays
    accept_tokens(state, states, accepted)                         the state after the accepted ones

Nothing waits for the device, and no shape depends on its numbers, so both can stand in a CUDA graph. The short convolution's state
after token j is ``torch.cat([conv_state, x], -1)[..., j + 1 : j + 1 + s]``, with x (b d k) its inputs and s the state's length.

Source: Leviathan, Kalman & Matias, Fast inference from transformers via speculative decoding (2023), §2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scanc.ops.dropin._common import Slots, need, need_shape
from scanc.ops.dropin.selective_state_update import selective_state_update


@torch.no_grad()
def selective_state_update_tokens(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """k steps, one token after another, that leave ``state`` as it is: (out, states), out (b k d) or (b k h p) in x's dtype,
    states (b k d n) or (b k h p n) in the state's, ``states[:, j]`` being the state after token j.

    Arguments are selective_state_update's with an axis k after b: x, dt, z (b k ...), B and C (b k n) or (b k g n). Rows of a negative
    ``state_batch_indices`` give zeros.
    Raises ArgumentError on shapes that disagree.
    """
    op = "selective_state_update_tokens"
    need(x.dim() == state.dim(), op, "x", f"of shape {tuple(x.shape)}", "its axes are (b k d) or (b k h p)", "Give k tokens a row.")
    k = x.shape[1]
    for name, t in (("dt", dt), ("z", z), ("B", B), ("C", C)):
        if t is not None:
            need(t.dim() > 2 and t.shape[1] == k, op, name, f"of shape {tuple(t.shape)}", f"its second axis is k = {k}", "Give k tokens.")
    slots = None if state_batch_indices is None else Slots(state, state_batch_indices)
    current = state if slots is None else slots.rows
    states = current.new_empty(k, *current.shape)  # each token's own memory is in one piece: a step updates it in place
    outs = []
    for j in range(k):
        current = states[j].copy_(current)
        at_j = (x[:, j], dt[:, j], A, B[:, j], C[:, j], D, None if z is None else z[:, j])
        outs.append(selective_state_update(current, *at_j, dt_bias, dt_softplus))
    out = torch.stack(outs, dim=1) if outs else torch.empty_like(x)
    if slots is None:
        return out, states.transpose(0, 1)
    return slots.blank(out), slots.blank(states.transpose(0, 1))


@torch.no_grad()
def accept_tokens(state: Tensor, states: Tensor, accepted: Tensor, state_batch_indices: Tensor | None = None) -> Tensor:
    """Writes into ``state`` what it is after the first ``accepted[i]`` tokens of row i; 0 keeps it. Returns ``state``.

    states (b k ...) from selective_state_update_tokens, accepted (b) integers from 0 to k; with ``state_batch_indices`` state is
    (slots ...) and a negative index is padding.
    Raises ArgumentError on shapes that disagree.
    """
    op, (b, k) = "accept_tokens", states.shape[:2]
    need_shape(op, "accepted", accepted, (b,), "b")
    slots = None if state_batch_indices is None else Slots(state, state_batch_indices)
    held = state if slots is None else slots.rows
    need_shape(op, "states", states, (held.shape[0], k, *held.shape[1:]), "b k ...")
    rows = torch.arange(b, device=states.device)
    kept = (accepted > 0).view(-1, *(1,) * (held.dim() - 1))
    last = states[rows, (accepted.long() - 1).clamp(min=0)] if k else held
    chosen = torch.where(kept, last, held)
    if slots is None:
        return state.copy_(chosen)
    slots.store(chosen)
    return state


__all__ = ["accept_tokens", "selective_state_update_tokens"]
