"""One decode step of Mamba and of Mamba-2, in place: mamba_ssm.ops.triton.selective_state_update's functions.

    h = exp(Δ A) h + Δ B x            y = C h + D x,  gated by silu(z),  Δ = softplus(dt + dt_bias) where asked for

    state (b d n)        x, dt, z (b d)      A (d n)      B, C (b n) or (b g n)     D, dt_bias (d)        Mamba-1
    state (b h p n)      x, dt, z (b h p)    A (h p n)    B, C (b g n)              D, dt_bias (h p)      heads

Heads whose A, dt and dt_bias are one value each (stride 0 over p and n, as expand leaves them) take Mamba-2's step, which reads
one exponential a head; other heads are Mamba-1's channels h p.

Source: Gu & Dao, Mamba (2023), §3.2; Dao & Gu, Transformers are SSMs (2024), §6; the call is that of mamba_ssm 2.3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from scanc.ops import selective_scan, ssd
from scanc.ops.dropin._common import Slots, dtypes_as_given, need, need_shape


@torch.no_grad()
def selective_state_update(
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
) -> Tensor:
    """One step (the equation and shapes above); ``state`` is read and overwritten.

    With ``state_batch_indices`` (b) integers, state is (slots ...) and row i lives in slot state_batch_indices[i]; a negative
    one is padding: its result is zero and no slot changes. D, z and dt_bias may each be left out. The state has any real dtype
    (it is carried in float32 within the step); out has x's shape and dtype. Not differentiable, as a state in place cannot be.
    Raises ArgumentError on shapes that disagree.
    """
    heads = state.dim() == 4
    _check(state, x, dt, A, B, C, D, z, dt_bias, state_batch_indices)
    B, C = (t.unsqueeze(1) if t.dim() == 2 else t for t in (B, C))
    slots = None if state_batch_indices is None else Slots(state, state_batch_indices)
    held = state if slots is None else slots.rows
    with dtypes_as_given(x):
        if heads:
            out = _heads(held, x, dt, A, B, C, D, z, dt_bias, bool(dt_softplus))
        else:
            out = selective_scan.step(held, x, dt, A, B, C, D, z, dt_bias, delta_softplus=bool(dt_softplus))
        out = out.to(x.dtype)
    if slots is None:
        return out
    slots.store(held)
    return slots.blank(out)


def _heads(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
) -> Tensor:
    if all(_one_a_head(t, from_axis) for t, from_axis in ((A, 1), (dt, 2), (dt_bias, 1)) if t is not None):
        bias = None if dt_bias is None else dt_bias[:, 0]
        return ssd.step(state, x, dt[..., 0], A[:, 0, 0], B, C, D, z, bias, dt_softplus=dt_softplus)
    flat = state.reshape(state.shape[0], -1, state.shape[-1])  # a view wherever heads and their dims lie side by side
    out = selective_scan.step(
        flat,
        x.flatten(1),
        dt.flatten(1),
        A.flatten(0, 1),
        B,
        C,
        None if D is None else D.flatten(),
        None if z is None else z.flatten(1),
        None if dt_bias is None else dt_bias.flatten(),
        delta_softplus=dt_softplus,
    )
    if flat.data_ptr() != state.data_ptr():
        state.copy_(flat.view(state.shape))
    return out.view(x.shape)


def _one_a_head(t: Tensor, from_axis: int) -> bool:
    """Whether every axis from ``from_axis`` on repeats one value, as expand makes them."""
    return all(t.stride(i) == 0 or t.shape[i] == 1 for i in range(from_axis, t.dim()))


def _check(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    indices: Tensor | None,
) -> None:
    op = "selective_state_update"
    need(state.dim() in (3, 4), op, "state", f"of shape {tuple(state.shape)}", "its axes are (b d n) or (b h p n)", "Reshape it.")
    inner, n = tuple(state.shape[1:-1]), state.shape[-1]
    axes = "d" if len(inner) == 1 else "h p"
    b = x.shape[0]
    if indices is None:
        need_shape(op, "x", x, (state.shape[0], *inner), f"b {axes}")
    else:
        need_shape(op, "state_batch_indices", indices, (b,), "b")
        need_shape(op, "x", x, (b, *inner), f"b {axes}")
    need_shape(op, "dt", dt, (b, *inner), f"b {axes}")
    need_shape(op, "A", A, (*inner, n), f"{axes} n")
    for name, t in (("B", B), ("C", C)):
        need(t.dim() in (2, 3), op, name, f"of shape {tuple(t.shape)}", "its axes are (b n) or (b g n)", "Reshape it.")
        groups = 1 if t.dim() == 2 else t.shape[1]
        need(
            groups > 0 and inner[0] % groups == 0,
            op,
            name,
            f"with {groups} groups",
            f"groups divide {axes[0]} = {inner[0]}",
            "Choose a number of groups that divides it.",
        )
        need_shape(op, name, t, (b, n) if t.dim() == 2 else (b, groups, n), "b n" if t.dim() == 2 else "b g n")
    for name, given, shape, over in (("D", D, inner, axes), ("dt_bias", dt_bias, inner, axes), ("z", z, (b, *inner), f"b {axes}")):
        if given is not None:
            need_shape(op, name, given, shape, over)


@torch.no_grad()
def selective_state_update_ref(
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
) -> Tensor:
    """selective_state_update by torch operations, in float32 or wider; the state is overwritten."""
    _check(state, x, dt, A, B, C, D, z, dt_bias, None)
    wide = torch.promote_types(state.dtype, torch.float32)
    step = dt.to(wide) if dt_bias is None else dt.to(wide) + dt_bias
    if dt_softplus:
        step = F.softplus(step)
    grouped = [t.unsqueeze(1) if t.dim() == 2 else t for t in (B, C)]
    wide_B, wide_C = (t.to(wide).repeat_interleave(state.shape[1] // t.shape[1], dim=1) for t in grouped)
    if state.dim() == 4:
        wide_B, wide_C = wide_B.unsqueeze(2), wide_C.unsqueeze(2)
    h = torch.exp(step.unsqueeze(-1) * A) * state.to(wide) + (step * x.to(wide)).unsqueeze(-1) * wide_B
    state.copy_(h)
    y = (h * wide_C).sum(-1)
    if D is not None:
        y = y + D * x.to(wide)
    if z is not None:
        y = y * F.silu(z.to(wide))
    return y.to(x.dtype)


__all__ = ["selective_state_update", "selective_state_update_ref"]
