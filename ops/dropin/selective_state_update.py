"""One decode step of Mamba and of Mamba-2, in place: mamba_ssm.ops.triton.selective_state_update's functions.

    h = exp(Δ A) h + Δ B x            y = C h + D x,  gated by silu(z),  Δ = softplus(dt + dt_bias) where asked for

    state (b d n)        x, dt, z (b d)      A (d n)      B, C (b n) or (b g n)     D, dt_bias (d)        Mamba-1
    state (b h p n)      x, dt, z (b h p)    A (h p n)    B, C (b g n)              D, dt_bias (h p)      heads

Heads whose A, dt and dt_bias are one value each (stride 0 over p and n, as expand leaves them) take Mamba-2's step, which reads
one exponential a head; other heads are Mamba-1's channels h p.

Source: Gu & Dao, Mamba (2023), §3.2; Dao & Gu, Transformers are SSMs (2024), §6; the call is that of mamba_ssm 2.3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scanc.eager import Again, Recall
from scanc.op import Op
from scanc.ops import selective_scan, ssd
from scanc.ops.dropin._common import Slots, dtypes_as_given, need, need_shape


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
    given = (state, x, dt, A, B, C, D, z, dt_bias)
    if state_batch_indices is not None or torch.compiler.is_compiling():
        return _checked(given, bool(dt_softplus), state_batch_indices)[0]
    again = _recall.find(given, bool(dt_softplus))
    if again is not None:
        return again(given)
    out, step = _checked(given, bool(dt_softplus), None)
    if step is not None:
        _recall.keep(_like_it(step, given, out), given, bool(dt_softplus))
    return out


_recall = Recall()
_Given = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
_Step = tuple[Op, Tensor, tuple[Tensor | None, ...], dict[str, Any]]  # an op, its step's state and other arguments, its options


@torch.no_grad()
def _checked(given: _Given, softplus: bool, indices: Tensor | None) -> tuple[Tensor, _Step | None]:
    """The step, and the op's step that it came down to; None where more was done than that."""
    state, x, dt, A, B, C, D, z, dt_bias = given
    _check(state, x, dt, A, B, C, D, z, dt_bias, indices)
    B, C = (t.unsqueeze(1) if t.dim() == 2 else t for t in (B, C))
    slots = None if indices is None else Slots(state, indices)
    held = state if slots is None else slots.rows
    with dtypes_as_given(x):
        op, rows, rest, options = step = _step_of(held, x, dt, A, B, C, D, z, dt_bias, softplus)
        out = op.step(rows, *rest, **options)
        if rows is not held and rows.data_ptr() != held.data_ptr():
            held.copy_(rows.view(held.shape))
        result = out.to(x.dtype).view(x.shape)
    if slots is None:
        return result, step if out.dtype == x.dtype else None
    slots.store(held)
    return slots.blank(result), None


@torch.no_grad()
def _like_it(step: _Step, given: _Given, out: Tensor) -> Again | None:
    """What to do for tensors as these again: the launch alone, where the step took each of them from where it starts."""
    op, rows, rest, options = step
    arguments = (rows, *rest)
    flat = rows.dim() != given[0].dim()
    if any(a is not None and t is not None and a.data_ptr() != t.data_ptr() for a, t in zip(arguments, given, strict=True)):
        return None
    again = op.again_step(arguments, options)
    if again is None:
        return None
    shape, launch = out.shape, again
    return (lambda values: launch(values).view(shape)) if flat else launch


def _step_of(
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
) -> _Step:
    """The op whose step it is, with that step's arguments and options."""
    if state.dim() == 3:
        return selective_scan, state, (x, dt, A, B, C, D, z, dt_bias), {"delta_softplus": dt_softplus}
    if all(_one_a_head(t, from_axis) for t, from_axis in ((A, 1), (dt, 2), (dt_bias, 1)) if t is not None):
        bias = None if dt_bias is None else dt_bias[:, 0]
        return ssd, state, (x, dt[..., 0], A[:, 0, 0], B, C, D, z, bias), {"dt_softplus": dt_softplus}
    # The state is a view wherever heads and their dims lie side by side.
    flat = state.reshape(state.shape[0], -1, state.shape[-1])
    more = (None if D is None else D.flatten(), None if z is None else z.flatten(1), None if dt_bias is None else dt_bias.flatten())
    return selective_scan, flat, (x.flatten(1), dt.flatten(1), A.flatten(0, 1), B, C, *more), {"delta_softplus": dt_softplus}


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
