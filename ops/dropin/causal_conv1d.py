"""The short causal convolution of every channel with its own taps: causal_conv1d's functions.

    y_t = σ(bias + Σ_j weight_{w-1-j} x_{t-j})          σ is silu or nothing, j = 0 ... w-1

    x, out         (b d l)                  weight  (d w)          bias  (d)
    initial_states (b d w-1), final states likewise: inputs before the first step, inputs up to the last one
    seq_idx        (b l) integers: a tap counts where it looks at its own sequence; negative means padding, whose result is 0

Computed in float32 whatever is stored. Up to 16 taps are the op scanc.ops.causal_conv1d; more run through torch's convolution.

Source: Gu & Dao, Mamba (2023), §3.4, Figure 3; the calls are those of causal-conv1d 1.6.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from scanc.ops.causal_conv1d import MOST_TAPS, advance, advanced, causal_conv1d, from_states, taps_of
from scanc.ops.dropin._common import Slots, dtypes_as_given, is_silu, need, need_shape


def _whole(x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None, *, silu: bool) -> Tensor:
    """Any number of taps, no states."""
    if weight.shape[1] <= MOST_TAPS:
        return causal_conv1d(x, weight, bias, seq_idx, silu=silu)
    d, w = weight.shape
    wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    padded = F.pad(x.to(wide), (w - 1, 0))
    taps = weight.to(wide)
    if seq_idx is None:
        y = F.conv1d(padded, taps.unsqueeze(1), groups=d)
    else:
        ids, l = F.pad(seq_idx, (w - 1, 0), value=-1).unsqueeze(1), x.shape[-1]
        own = [padded[..., j : j + l] * (ids[..., j : j + l] == ids[..., w - 1 :]) * taps[:, j : j + 1] for j in range(w)]
        y = torch.stack(own).sum(0)
    if bias is not None:
        y = y + bias.to(wide).unsqueeze(-1)
    if silu:
        y = F.silu(y)
    if seq_idx is not None:
        y = y.masked_fill((seq_idx < 0).unsqueeze(1), 0)
    return y.to(x.dtype)


def convolution_gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    wanted: Sequence[bool],
    dx: Tensor | None,
    seq_idx: Tensor | None = None,
    *,
    silu: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of weight and bias, where ``wanted``, of a convolution of x; that of x is written to ``dx``, unless None.

    What is written may be a part of something larger, which need then not be put together from its parts.
    """
    w = weight.shape[1]
    if w > MOST_TAPS:
        x, weight, bias = (t if t is None else t.detach().requires_grad_() for t in (x, weight, bias))
        with torch.enable_grad():
            y = _whole(x, weight, bias, seq_idx, silu=silu)
        come = torch.autograd.grad(y, [t for t in (x, weight, bias) if t is not None], dy)
        if dx is not None:
            dx.copy_(come[0])
        return come[1] if wanted[0] else None, come[2] if bias is not None and wanted[1] else None
    taps = taps_of(weight)
    names = (*(("x",) if dx is not None else ()), *(taps if wanted[0] else ()), *(("bias",) if bias is not None and wanted[1] else ()))
    read = {"x": x, **taps, "bias": bias, "seq_idx": seq_idx}
    found = causal_conv1d.gradients((dy,), read, {"silu": silu}, names, into={} if dx is None else {"x": dx})
    return torch.stack([found[f"w{lag}"] for lag in reversed(range(w))], -1) if wanted[0] else None, found.get("bias")


def _check(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    need(x.dim() == 3, op, "x", f"of shape {tuple(x.shape)}", "its axes are (b d l)", "Give (b l d) as x.transpose(1, 2), without a copy.")
    need(weight.dim() == 2, op, "weight", f"of shape {tuple(weight.shape)}", "its axes are (d w)", "Give a Conv1d's as weight.squeeze(1).")
    need_shape(op, "weight", weight, (x.shape[1], weight.shape[1]), "d w")
    if bias is not None:
        need_shape(op, "bias", bias, (x.shape[1],), "d")


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The convolution over whole sequences (the equation above).

    x (b d l) of any layout, weight (d w) with any w, bias (d), seq_idx (b l) integers, initial_states (b d w-1).
    Returns out (b d l) in x's dtype, and with ``return_final_states`` also the last w-1 inputs (b d w-1), written into
    ``final_states_out`` if given. Differentiable in x, weight, bias and initial_states, through both results.
    Beyond causal-conv1d: any width and layout, and seq_idx together with states: the initial one belongs to the first
    sequence, the final one holds inputs of the last sequence, zeros before its start.
    Raises ArgumentError on shapes that disagree or an unknown activation.
    """
    op = "causal_conv1d_fn"
    silu = is_silu(op, activation)
    _check(op, x, weight, bias)
    b, d, l = x.shape
    past = weight.shape[1] - 1
    if seq_idx is not None:
        need_shape(op, "seq_idx", seq_idx, (b, l), "b l")
    need(
        final_states_out is None or return_final_states,
        op,
        "final_states_out",
        "given",
        "it is written with return_final_states=True only",
        "Give both or neither.",
    )
    if initial_states is not None:
        need_shape(op, "initial_states", initial_states, (b, d, past), "b d w-1")
    with dtypes_as_given(x):
        if initial_states is None and not return_final_states:
            return _whole(x, weight, bias, seq_idx, silu=silu)
        out, last = from_states(x, weight, bias, seq_idx, initial_states, silu=silu, conv=_whole)
    if not return_final_states:
        return out
    if final_states_out is None:
        return out, last
    need_shape(op, "final_states_out", final_states_out, (b, d, past), "b d w-1")
    return out, final_states_out.copy_(last)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """The convolution's next steps; what it remembers is updated in place.

    x (b d), or (b d l) for l steps; conv_state (b d s), s >= w-1: the last s inputs, oldest first; weight (d w); bias (d).
    ``cache_seqlens``       (b) integers: conv_state is a ring, and the next input goes to position cache_seqlens mod s
    ``conv_state_indices``  (b) integers: conv_state is (slots d s) and row i is slot conv_state_indices[i]; a negative one
                            is padding: its result is zero and no slot changes
    Returns out of x's shape and dtype. Not differentiable, as a state in place cannot be.
    Raises ArgumentError on shapes that disagree, a state too short, or an unknown activation.
    """
    silu = is_silu("causal_conv1d_update", activation)
    if cache_seqlens is None and conv_state_indices is None and not torch.compiler.is_compiling():
        out = advanced(x, conv_state, weight, bias, silu=silu)
        if out is not None:
            return out
    return _update(x, conv_state, weight, bias, silu, cache_seqlens, conv_state_indices)


def update_in_layer(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, nearer: tuple[Tensor, ...]
) -> Tensor:
    """causal_conv1d_update with nothing but its state, which on a GPU also brings ``nearer`` what kernels after it read, such as weights:
    a layer's step has little to read until then."""
    silu = is_silu("causal_conv1d_update", activation)
    out = None if torch.compiler.is_compiling() else advanced(x, conv_state, weight, bias, silu=silu, nearer=nearer)
    return _update(x, conv_state, weight, bias, silu, None, None, nearer) if out is None else out


@torch.no_grad()
def _update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
    nearer: tuple[Tensor, ...] = (),
) -> Tensor:
    op = "causal_conv1d_update"
    steps = x.unsqueeze(-1) if x.dim() == 2 else x
    _check(op, steps, weight, bias)
    b, d, l = steps.shape
    w, s = weight.shape[1], conv_state.shape[-1]
    need(s >= w - 1, op, "conv_state", f"{s} long", f"{w} taps look back {w - 1} steps", "Allocate a longer state.")
    if conv_state_indices is None:
        need_shape(op, "conv_state", conv_state, (b, d, s), "b d s")
        if cache_seqlens is None and l == 1 and max(w, s) <= MOST_TAPS and not torch.compiler.is_compiling():
            with dtypes_as_given(x):
                return advance(x, conv_state, weight, bias, silu=silu, nearer=nearer)
        slots, state = None, conv_state
    else:
        need_shape(op, "conv_state_indices", conv_state_indices, (b,), "b")
        slots = Slots(conv_state, conv_state_indices)
        state = slots.rows
    if cache_seqlens is None:
        seen = torch.cat([state, steps], dim=-1)
        state.copy_(seen[..., l:])
        seen = seen[..., s - (w - 1) :]
    else:
        need_shape(op, "cache_seqlens", cache_seqlens, (b,), "b")
        at = cache_seqlens.long().unsqueeze(1)
        back = torch.arange(1 - w, 0, device=x.device) + at
        seen = torch.cat([state.gather(2, _ring(back, s, d)), steps], dim=-1)
        kept = min(l, s)  # of more inputs than the ring holds, the last ones stay
        ahead = torch.arange(l - kept, l, device=x.device) + at
        state.scatter_(2, _ring(ahead, s, d), steps[..., l - kept :].to(state.dtype))
    out = _windows(seen, weight, bias, silu).to(x.dtype)
    if slots is not None:
        slots.store(state)
        out = slots.blank(out)
    return out.squeeze(-1) if x.dim() == 2 else out


def _ring(positions: Tensor, length: int, channels: int) -> Tensor:
    """Positions (b k) on a ring, for every channel: (b d k)."""
    return positions.remainder(length).unsqueeze(1).expand(-1, channels, -1)


def _windows(seen: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """Results (b d l) of l + w - 1 inputs, in float32 or wider. Few steps: one product with windows costs least."""
    wide = torch.promote_types(torch.promote_types(seen.dtype, weight.dtype), torch.float32)
    y = (seen.to(wide).unfold(-1, weight.shape[1], 1) * weight.to(wide).unsqueeze(1)).sum(-1)
    if bias is not None:
        y = y + bias.to(wide).unsqueeze(-1)
    return F.silu(y) if silu else y


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last ``state_len`` inputs of each packed sequence, to decode on from: states (nseq d state_len).

    x (T d): sequences end to end; cu_seqlens (nseq + 1): their bounds, from 0. Zeros stand before the start of a short one.
    """
    need(x.dim() == 2, "causal_conv1d_varlen_states", "x", f"of shape {tuple(x.shape)}", "its axes are (T d)", "Flatten batch and time.")
    starts, ends = cu_seqlens[:-1].long().unsqueeze(1), cu_seqlens[1:].long().unsqueeze(1)
    at = ends + torch.arange(-state_len, 0, device=x.device)
    rows = x[at.clamp(min=0)].masked_fill((at < starts).unsqueeze(-1), 0)
    return rows.transpose(1, 2)


# -- references, by torch's convolution -------------------------------------------------------------------------------------------


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """causal_conv1d_fn by torch's convolution, in the weight's dtype."""
    silu = is_silu("causal_conv1d_ref", activation)
    d, w = weight.shape
    start = x.new_zeros(*x.shape[:2], w - 1) if initial_states is None else initial_states
    seen = torch.cat([start.to(x.dtype), x], dim=-1)
    y = F.conv1d(seen.to(weight.dtype), weight.unsqueeze(1), bias, groups=d)
    y = (F.silu(y) if silu else y).to(x.dtype)
    if not return_final_states:
        return y
    last = seen[..., seen.shape[-1] - (w - 1) :]
    return y, last.clone() if final_states_out is None else final_states_out.copy_(last)


def causal_conv1d_update_ref(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
) -> Tensor:
    """causal_conv1d_update one step and one batch row at a time; the state is updated in place."""
    silu = is_silu("causal_conv1d_update_ref", activation)
    steps = x.unsqueeze(-1) if x.dim() == 2 else x
    w, s = weight.shape[1], conv_state.shape[-1]
    rows = []
    for i in range(steps.shape[0]):
        at = None if cache_seqlens is None else int(cache_seqlens[i]) % s
        outs = []
        for t in range(steps.shape[2]):
            new = steps[i, :, t : t + 1]
            if at is None:
                line = torch.cat([conv_state[i], new.to(conv_state.dtype)], dim=-1)
                conv_state[i] = line[:, 1:]
            else:
                line = torch.cat([conv_state[i].roll(-at, dims=-1), new.to(conv_state.dtype)], dim=-1)
                conv_state[i, :, at] = new[:, 0].to(conv_state.dtype)
                at = (at + 1) % s
            y = (line[:, s + 1 - w :].to(weight.dtype) * weight).sum(-1)
            outs.append(y if bias is None else y + bias)
        rows.append(torch.stack(outs, dim=-1))
    out = torch.stack(rows)
    out = (F.silu(out) if silu else out).to(x.dtype)
    return out.squeeze(-1) if x.dim() == 2 else out


def causal_conv1d_varlen_states_ref(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """causal_conv1d_varlen_states one sequence at a time."""
    bounds = cu_seqlens.tolist()
    cut = [x[max(a, e - state_len) : e] for a, e in zip(bounds[:-1], bounds[1:], strict=True)]
    return torch.stack([F.pad(rows.T, (state_len - len(rows), 0)) for rows in cut])


# -- the calls of causal_conv1d.cpp_functions ---------------------------------------------------------------------------------------


@torch.no_grad()
def causal_conv1d_fwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    final_states_out: Tensor | None,
    silu_activation: bool,
) -> Tensor:
    """causal_conv1d_fn without autograd; the final states are written where ``final_states_out`` says."""
    activation = "silu" if silu_activation else None
    made = causal_conv1d_fn(x, weight, bias, seq_idx, initial_states, final_states_out is not None, final_states_out, activation)
    return made[0] if isinstance(made, tuple) else made


def causal_conv1d_bwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    dfinal_states: Tensor | None,
    dx: Tensor | None,
    return_dinitial_states: bool,
    silu_activation: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(dx, dweight, dbias, dinitial_states) of causal_conv1d_fn, None where there is nothing; dweight and dbias in float32.

    dx is written where ``dx`` says, if it is given.
    """
    wanted = {"x": x, "weight": weight, "bias": bias, "initial_states": initial_states if return_dinitial_states else None}
    leaves = {k: v.detach().requires_grad_() for k, v in wanted.items() if v is not None}
    with torch.enable_grad():
        made = causal_conv1d_fn(
            leaves["x"],
            leaves["weight"],
            leaves.get("bias"),
            seq_idx,
            leaves.get("initial_states", initial_states),
            return_final_states=dfinal_states is not None,
            activation="silu" if silu_activation else None,
        )
    results, come = (made, (dout, dfinal_states)) if isinstance(made, tuple) else ((made,), (dout,))
    grads = dict(zip(leaves, torch.autograd.grad(results, list(leaves.values()), come), strict=True))
    found = grads["x"] if dx is None else dx.copy_(grads["x"])
    dbias = grads["bias"].float() if "bias" in grads else None
    return found, grads["weight"].float(), dbias, grads.get("initial_states")


def causal_conv1d_update_function(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu_activation: bool,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
) -> Tensor:
    """causal_conv1d_update with its activation as a bool."""
    return causal_conv1d_update(x, conv_state, weight, bias, "silu" if silu_activation else None, cache_seqlens, conv_state_indices)


__all__ = [
    "causal_conv1d_bwd_function",
    "causal_conv1d_fn",
    "causal_conv1d_fwd_function",
    "causal_conv1d_ref",
    "causal_conv1d_update",
    "causal_conv1d_update_function",
    "causal_conv1d_update_ref",
    "causal_conv1d_varlen_states",
    "causal_conv1d_varlen_states_ref",
]
