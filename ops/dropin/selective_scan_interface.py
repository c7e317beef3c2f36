"""Mamba's selective scan and the whole Mamba block: mamba_ssm.ops.selective_scan_interface's functions.

    h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t            y_t = C_t h_t + D u_t,  gated by silu(z_t)

    u, delta, z   (b d l)                  A  (d n) real or complex
    B, C          (d n) constant in time, in A's kind;  or (b n l), (b g n l), which with a complex A hold 2 l interleaved parts
    D, delta_bias (d)                      last_state  (b d n) float32 or complex64

Source: Gu & Dao, Mamba (2023), §3.2 and Algorithm 2; the calls are those of mamba_ssm 2.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scanc.eager import is_plain
from scanc.ops import selective_scan
from scanc.ops.dropin._common import dtypes_as_given, need, need_shape, over_time, rows_of, tokens_of
from scanc.ops.dropin.causal_conv1d import causal_conv1d_fn, convolution_gradients
from scanc.torch_ops import keeps_graph


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The scan (the equation and shapes above): out (b d l) in u's dtype, or (out, last_state) with ``return_last_state``.

    Differentiable through both results in every tensor. Any n, d, l and strides; dtypes may differ from argument to argument.
    scanc.ops.selective_scan takes an initial state, resets and packed sequences besides.
    Raises ArgumentError on shapes that disagree.
    """
    with dtypes_as_given(u):
        y, last_state = selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus=bool(delta_softplus))
    return (y, last_state) if return_last_state else y


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """selective_scan_fn as a loop over time in torch operations, in float32 or wider. Slow; shares nothing with the kernels."""
    wide = torch.promote_types(u.dtype, torch.float32)
    x = u.to(wide)
    dt = delta.to(wide)
    if delta_bias is not None:
        dt = dt + delta_bias.to(wide).unsqueeze(-1)
    if delta_softplus:
        dt = F.softplus(dt)
    b, d, l = x.shape
    every_B, every_C = (_each_step(t, A, d, l) for t in (B, C))
    h = A.new_zeros(b, *A.shape)
    ys = []
    for t in range(l):
        step = dt[:, :, t, None]
        h = torch.exp(step * A) * h + step * x[:, :, t, None] * every_B[..., t]
        ys.append((every_C[..., t] * h).sum(-1))
    y = torch.stack(ys, dim=-1)
    if A.is_complex():
        y = 2 * y.real
    if D is not None:
        y = y + D.unsqueeze(-1) * x
    if z is not None:
        y = y * F.silu(z.to(wide))
    y = y.to(u.dtype)
    return (y, h) if return_last_state else y


def _each_step(t: Tensor, A: Tensor, d: int, l: int) -> Tensor:
    """B or C as (b d n l), b or l being 1 where it does not depend on them; in A's kind."""
    if t.dim() == 2:
        return t[None, :, :, None].expand(1, -1, -1, l)
    t = t.unsqueeze(1) if t.dim() == 3 else t
    if A.is_complex() and not t.is_complex():
        pairs = t.to(torch.promote_types(t.dtype, torch.float32)).unflatten(-1, (l, 2))
        t = torch.complex(pairs[..., 0], pairs[..., 1])
    return t.repeat_interleave(d // t.shape[1], dim=1).to(torch.promote_types(t.dtype, A.dtype))


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """The Mamba block between its two outer projections' inputs: convolution, projections, scan, gate, output projection.

        x, z = xz;  u = silu(conv(x));  (Δ, B, C) = x_proj(u);  Δ = delta_proj(Δ);  out_proj(scan(u, Δ, A, B, C, D, z))

    xz (b 2d l)              conv1d_weight (d 1 w)      conv1d_bias (d)           x_proj_weight (r + 2n, d), with r = dt_rank
    delta_proj_weight (d r)  out_proj_weight (m d)      out_proj_bias (m)         A (d n) real or complex
    B, C (d n)               given: constant in time, and x_proj has no rows for them; None: projected from u (2n rows when complex)
    B_proj_bias, C_proj_bias added to projected B, C    D, delta_bias (d)
    b_rms_weight, c_rms_weight (n), dt_rms_weight (d)   norms of projected B, C and Δ over their last axis (FalconMamba)

    Returns (b l m). Differentiable in every tensor. ``checkpoint_lvl`` 0 keeps what lies between xz and the scan for the backward;
    1 computes it again there, which costs a convolution and two projections and saves several (b d l) a layer (torch.compile
    decides for itself).
    Raises ArgumentError on shapes that disagree.
    """
    _check_inner(xz, conv1d_weight, x_proj_weight, delta_proj_weight, out_proj_weight, A, B, C, checkpoint_lvl)
    before = (xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C)
    norms = (B_proj_bias, C_proj_bias, b_rms_weight, c_rms_weight, dt_rms_weight)
    if checkpoint_lvl == 1 and not torch.compiler.is_compiling():
        y = _Recomputed.apply(torch.is_grad_enabled(), delta_softplus, b_c_dt_rms_eps, *before, *norms, D, delta_bias)
    else:
        y = _gated_scan(delta_softplus, _scan_inputs(b_c_dt_rms_eps, *before, *norms), A, D, delta_bias)
    out = tokens_of(out_proj_weight, y)
    return out if out_proj_bias is None else out + out_proj_bias.to(out.dtype)


def _scan_inputs(
    eps: float,
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None,
    C: Tensor | None,
    B_proj_bias: Tensor | None,
    C_proj_bias: Tensor | None,
    *rms_weights: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the scan reads: u, delta (b d l), B, C (b 1 n l) or (d n), z (b d l)."""
    x, z = xz.chunk(2, dim=1)
    u = _conv(x, conv1d_weight, conv1d_bias)
    projected = x_proj_weight @ rows_of(u)
    return u, *_projections(eps, u.shape[0], projected, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias, *rms_weights), z


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    u = causal_conv1d_fn(x, weight.squeeze(1), bias, activation="silu")
    assert isinstance(u, Tensor)  # a pair only where final states are asked for
    return u


def _projections(
    eps: float,
    batch: int,
    projected: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None,
    C: Tensor | None,
    B_proj_bias: Tensor | None,
    C_proj_bias: Tensor | None,
    b_rms_weight: Tensor | None,
    c_rms_weight: Tensor | None,
    dt_rms_weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """delta (b d l), B, C (b 1 n l) or (d n) of what x_proj gives, (r+2n, b l)."""
    r = delta_proj_weight.shape[1]
    delta = over_time(delta_proj_weight, projected[:r], batch)
    if dt_rms_weight is not None:
        delta = _rms_norm(delta.transpose(1, 2), dt_rms_weight, eps).transpose(1, 2)
    parts = A.shape[1] * (2 if A.is_complex() else 1)
    if B is None:
        B = _per_step(projected[r : r + parts], batch, B_proj_bias, b_rms_weight, eps, A)
    if C is None:
        C = _per_step(projected[-parts:], batch, C_proj_bias, c_rms_weight, eps, A)
    return delta, B, C


def _per_step(rows: Tensor, batch: int, bias: Tensor | None, rms_weight: Tensor | None, eps: float, A: Tensor) -> Tensor:
    """Projected B or C (n, b l), complex parts in neighbouring rows (2n, b l), as the scan reads it: (b 1 n l)."""
    t = rows.unflatten(1, (batch, -1)).permute(1, 2, 0)  # (b l n)
    if bias is not None:
        t = t + bias.to(t.dtype)
    if rms_weight is not None:
        t = _rms_norm(t, rms_weight, eps)
    if A.is_complex():
        t = torch.view_as_complex(t.to(A.real.dtype).unflatten(-1, (-1, 2)).contiguous())
    return t.transpose(1, 2).unsqueeze(1)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in float32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def _gated_scan(
    delta_softplus: bool, inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], A: Tensor, D: Tensor | None, delta_bias: Tensor | None
) -> Tensor:
    u, delta, B, C, z = inputs
    with dtypes_as_given(u):
        return selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus=bool(delta_softplus))[0]


class _Recomputed(torch.autograd.Function):
    """_gated_scan(_scan_inputs(...)) that keeps its own arguments alone and computes what lies between anew in the backward.

    The scan itself does not run again: its backward resumes from what its forward left. The gradients of x and z are written where that
    of xz has them; gradients of gradients go through the chain of functions. Tensors come in this order: those of _scan_inputs, D,
    delta_bias.
    """

    @staticmethod
    def forward(ctx: Any, training: bool, delta_softplus: bool, eps: float, *tensors: Any) -> Tensor:
        ctx.present = [t is not None for t in tensors]
        ctx.options, ctx.eps = {"delta_softplus": bool(delta_softplus)}, eps
        device = tensors[0].device.type
        ctx.autocast = {"device_type": device, "enabled": torch.is_autocast_enabled(device), "dtype": torch.get_autocast_dtype(device)}
        *before, D, delta_bias = tensors
        u, delta, B, C, z = inputs = _scan_inputs(eps, *before)
        read = {"u": u, "delta": delta, "A": before[_AT_A], "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
        checkpoints: dict[str, Tensor] = {}
        ctx.every = 0
        with dtypes_as_given(u):
            if is_plain(read.values()):
                wanted = tuple(k for k, t in read.items() if t is not None) if training and any(ctx.needs_input_grad) else ()
                y = torch.empty_like(u)  # in u's order
                _, checkpoints, ctx.every = selective_scan.training(read, ctx.options, wanted, {"y": y})
            else:
                y = _gated_scan(delta_softplus, inputs, before[_AT_A], D, delta_bias)
        ctx.left = tuple(checkpoints)
        ctx.save_for_backward(*(t for t in tensors if t is not None), *checkpoints.values())
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        saved, need = iter(ctx.saved_tensors), ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():
            return (None, None, None, *_differentiably(ctx, [next(saved) if there else None for there in ctx.present], dy, need))
        tensors: list[Any] = [next(saved).detach().requires_grad_(wanted) if there else None for there, wanted in zip(ctx.present, need)]
        checkpoints = dict(zip(ctx.left, saved, strict=True))
        xz, conv_weight, conv_bias, x_proj, delta_proj, A, *others, D, delta_bias = tensors
        x, z = xz.detach().chunk(2, dim=1)
        dxz = torch.empty_like(xz) if need[0] else None  # in xz's order
        dx, dz = (None, None) if dxz is None else dxz.chunk(2, dim=1)
        by_product = any(need[: _AT_A - 1])  # whether anything before the scan has a gradient through u
        with torch.autocast(**ctx.autocast):
            u = _conv(x, conv_weight.detach(), None if conv_bias is None else conv_bias.detach())
            projected = (x_proj.detach() @ rows_of(u)).requires_grad_(by_product)
            with torch.enable_grad():
                delta, B, C = _projections(ctx.eps, u.shape[0], projected, delta_proj, A, *others)
        read = {"u": u.requires_grad_(by_product), "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
        wanted = tuple(k for k, t in read.items() if t is not None and (t.requires_grad or (k == "z" and dz is not None)))
        values = {name: None if t is None else t.detach() for name, t in read.items()}
        # Of what is read here for the last time two are as large as two gradients, and give them their memory: dy, which the output
        # projection's backward made for this function alone, and delta.
        places = {"z": dz, "delta": delta.detach(), **({"u": dy} if dy.stride() == u.stride() and dy.dtype == u.dtype else {})}
        with dtypes_as_given(u):  # no gradient comes in for the last state
            come = selective_scan.gradients(
                (dy, None), values, ctx.options, wanted, checkpoints, ctx.every, {k: t for k, t in places.items() if k in wanted},
                last=not keeps_graph(),
            )
        own = {id(t): come.pop(k, None) for k, t in (("A", A), ("D", D), ("delta_bias", delta_bias))} | {id(xz): dxz}
        du = come.pop("u", None)
        come.pop("z", None)
        del dy, values
        leaves = [t for t in (projected, delta_proj, *others) if t is not None and t.requires_grad]
        through = torch.autograd.grad([read[k] for k in come], leaves, list(come.values())) if leaves else ()
        own.update({id(t): grad for t, grad in zip(leaves, through, strict=True)})
        if du is not None:
            del read, come, delta
            dprojected = own[id(projected)]
            if x_proj.requires_grad:
                own[id(x_proj)] = (dprojected @ rows_of(u.detach().to(dprojected.dtype)).t()).to(x_proj.dtype)
            _add_product(du, x_proj.detach().t(), dprojected)
            with dtypes_as_given(u):
                taps, bias = convolution_gradients(du, x, conv_weight.detach().squeeze(1), conv_bias, need[1:3], dx, silu=True)
            own[id(conv_weight)], own[id(conv_bias)] = None if taps is None else taps.unsqueeze(1), bias
        return (None, None, None, *(own[id(t)] if wanted else None for t, wanted in zip(tensors, need)))


def _differentiably(ctx: Any, tensors: list[Any], dy: Tensor, need: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of _Recomputed's tensors as functions of them and of dy."""
    *before, D, delta_bias = tensors
    with torch.autocast(**ctx.autocast):
        y = _gated_scan(ctx.options["delta_softplus"], _scan_inputs(ctx.eps, *before), before[_AT_A], D, delta_bias)
    leaves = [t for t, wanted in zip(tensors, need, strict=True) if wanted]
    found = iter(torch.autograd.grad(y, leaves, dy, create_graph=True, allow_unused=True))
    return [next(found) if wanted else None for wanted in need]


def _add_product(x: Tensor, weight: Tensor, rows: Tensor) -> None:
    """x (b d l) += weight (d m) times rows (m, b l)."""
    batch = x.shape[0]
    if x.dtype == rows.dtype == weight.dtype:
        x.baddbmm_(weight.expand(batch, -1, -1), rows.unflatten(1, (batch, -1)).transpose(0, 1))
    else:
        x.add_(over_time(weight.to(rows.dtype), rows, batch))


# Where A stands among the tensors of _scan_inputs.
_AT_A = 5


def _check_inner(
    xz: Tensor,
    conv1d_weight: Tensor,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None,
    C: Tensor | None,
    checkpoint_lvl: int,
) -> None:
    op = "mamba_inner_fn"
    need(
        xz.dim() == 3 and xz.shape[1] % 2 == 0,
        op,
        "xz",
        f"of shape {tuple(xz.shape)}",
        "its axes are (b 2d l)",
        "Stack x and z along the channels.",
    )
    d = xz.shape[1] // 2
    need(
        conv1d_weight.dim() == 3 and conv1d_weight.shape[:2] == (d, 1),
        op,
        "conv1d_weight",
        f"of shape {tuple(conv1d_weight.shape)}",
        f"(d 1 w) is ({d}, 1, w) here",
        "Give the weight of a depthwise Conv1d.",
    )
    n, parts = A.shape[-1], A.shape[-1] * (2 if A.is_complex() else 1)
    need_shape(op, "A", A, (d, n), "d n")
    r = delta_proj_weight.shape[-1]
    need_shape(op, "delta_proj_weight", delta_proj_weight, (d, r), "d r")
    need_shape(op, "x_proj_weight", x_proj_weight, (r + parts * ((B is None) + (C is None)), d), "r + a row for each part of B and C, d")
    need_shape(op, "out_proj_weight", out_proj_weight, (out_proj_weight.shape[0], d), "m d")
    for name, t in (("B", B), ("C", C)):
        if t is not None:
            need_shape(op, name, t, (d, n), "d n")
    need(checkpoint_lvl in (0, 1), op, "checkpoint_lvl", checkpoint_lvl, "it must be 0 or 1", "See its meaning in the docstring.")


def mamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """mamba_inner_fn (without norms) as a chain of the functions above and torch's, differentiated link by link.

    It says what the block computes and holds mamba_inner_fn's own backward to account. The scan in it is the compiled one, and its
    products have mamba_inner_fn's operands in mamba_inner_fn's order: where projections are as large as in mamba_ssm's tests, another
    order of summation alone would drown the comparison.
    """
    x, z = xz.chunk(2, dim=1)
    u = causal_conv1d_fn(x, conv1d_weight.squeeze(1), conv1d_bias, activation="silu")
    assert isinstance(u, Tensor)
    batch, r, parts = u.shape[0], delta_proj_weight.shape[1], A.shape[1] * (2 if A.is_complex() else 1)
    rows = x_proj_weight @ rows_of(u)  # (r+2n, b l)
    delta = over_time(delta_proj_weight, rows[:r], batch)
    found: list[Tensor] = []
    for constant, bias, at in ((B, B_proj_bias, r), (C, C_proj_bias, rows.shape[0] - parts)):
        t = rows[at : at + parts].unflatten(1, (batch, -1)).transpose(0, 1) if constant is None else constant
        if constant is None and bias is not None:
            t = t + bias.to(t.dtype).unsqueeze(-1)
        if constant is None and A.is_complex():
            # real and imaginary parts stand in neighbouring rows, and are neighbours along time in what the scan is given
            t = t.unflatten(1, (-1, 2)).transpose(2, 3).flatten(2)
        found.append(t)
    y = selective_scan_fn(u, delta, A, found[0], found[1], D, z, delta_bias, delta_softplus)
    assert isinstance(y, Tensor)
    out = (rows_of(y).t() @ out_proj_weight.t()).unflatten(0, (batch, -1))
    return out if out_proj_bias is None else out + out_proj_bias.to(out.dtype)


__all__ = ["mamba_inner_fn", "mamba_inner_ref", "selective_scan_fn", "selective_scan_ref"]
