"""SSD over whole sequences, alone and with all of Mamba-2's block around it: mamba_ssm.ops.triton.ssd_combined's functions.

    h_t = exp(Δ_t A) h_{t-1} + Δ_t x_t ⊗ B_t           y_t = C_t · h_t + D x_t,  gated by silu(z_t)
    Δ = dt + dt_bias, softplus where asked for, kept within dt_limit

    x, z   (b l h p)         dt  (b l h)             A, dt_bias  (h)          D  (h) or (h p)
    B, C   (b l g n), g divides h                    initial_states, final states  (b h p n) float32
    seq_idx (b l) integers: where it changes, the state is forgotten
    cu_seqlens (nseq + 1): bounds of the sequences packed in a batch of 1, from 0

``chunk_size`` and ``state_dtype`` are how mamba_ssm computes; both are taken. Here a schedule chooses the chunk, and states
are float32 wherever they are.

Source: Dao & Gu, Transformers are SSMs (2024), §3, §6 and §7; the calls are those of mamba_ssm 2.3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from scanc.eager import is_plain
from scanc.ops import ssd
from scanc.ops.dropin._common import dtypes_as_given, is_silu, need
from scanc.ops.dropin.causal_conv1d import causal_conv1d_fn
from scanc.ops.dropin.layernorm_gated import rmsnorm_fn
from scanc.ops.dropin.selective_scan_interface import selective_scan_fn
from scanc.ops.dropin.ssd_block import Shape, SplitBlock, by_head, composed
from scanc.ops.dropin.ssd_chunks import chunk_cumsum, chunk_scan, chunk_state, chunk_state_varlen, state_passing
from scanc.ops.selective_scan import resets_from_lengths

NO_LIMIT = (0.0, float("inf"))


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """SSD (the equation and shapes above): out in x's shape and dtype.

    ``return_final_states`` adds the states after the last step (b h p n), ``return_varlen_states`` those after each of the
    sequences that ``cu_seqlens`` bounds (nseq h p n), zeros for an empty one. Where ``cu_seqlens`` is given and ``seq_idx``
    is not, it says where sequences change. ``initial_states`` belong to what comes first. Everything is differentiable in
    everything, and nothing waits for the device.
    Raises ArgumentError on shapes that disagree.
    """
    op = "mamba_chunk_scan_combined"
    need(chunk_size > 0, op, "chunk_size", chunk_size, "it must be 1 or more", "256 is usual.")
    need(
        not return_varlen_states or cu_seqlens is not None,
        op,
        "cu_seqlens",
        "missing",
        "return_varlen_states asks for the states at the ends of sequences",
        "Give the sequences' bounds.",
    )
    if cu_seqlens is not None:
        need(
            x.shape[0] == 1, op, "cu_seqlens", f"given with a batch of {x.shape[0]}", "packed sequences have a batch of 1", "Pack along l."
        )
        if seq_idx is None:
            seq_idx = resets_from_lengths(cu_seqlens, x.shape[1])
    with dtypes_as_given(x):
        y, final = ssd(
            x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, dt_softplus=bool(dt_softplus), **limits(dt_limit, dt_softplus)
        )
        results = [y]
        if return_final_states:
            results.append(final)
        if return_varlen_states:
            assert cu_seqlens is not None and seq_idx is not None
            sums, steps = chunk_cumsum(dt, A, chunk_size, dt_bias, dt_softplus, dt_limit)
            added = chunk_state(B, x, steps, sums, seq_idx=seq_idx).flatten(-2)
            initial = None if initial_states is None else initial_states.flatten(-2)
            starts, _ = state_passing(added, sums[..., -1], initial, seq_idx=seq_idx, chunk_size=chunk_size)
            starts = starts.unflatten(-1, (x.shape[-1], -1))
            results.append(chunk_state_varlen(B[0], x[0], steps[0], sums[0], cu_seqlens, starts[0]))
    return y if len(results) == 1 else tuple(results)


def limits(dt_limit: tuple[float, float], dt_softplus: bool) -> dict[str, float]:
    """dt_limit as ssd's options; what limits nothing is left out, so that such calls share ssd's tuned schedules."""
    low, high = (float(v) for v in dt_limit)
    return ({} if low <= 0 and dt_softplus else {"dt_min": low}) | ({} if high == float("inf") else {"dt_max": high})


def mamba_chunk_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """mamba_chunk_scan_combined without states, and without a limit that keeps steps from being negative."""
    with dtypes_as_given(x):
        y, _ = ssd(x, dt, A, B, C, D, z, dt_bias, dt_softplus=bool(dt_softplus))
    return y


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = NO_LIMIT,
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
    state_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba-2's block between its input projection and its output: convolution, SSD, gated norm, output projection.

        z0, x0, z, xBC, dt = zxbcdt;  x, B, C = conv(xBC);  y = ssd(x, dt, A, B, C, D);  y = norm(y, z)
        out = out_proj(silu(z0) x0, y)

    zxbcdt (b, l, 2 d_nonssm + 2 d + 2 g n + h) with d = h p; z0 and x0, d_nonssm wide, skip everything but the projection
    conv1d_weight (d + 2 g n, w)    conv1d_bias (d + 2 g n)    dt_bias, A (h)    D (h) with ``headdim`` = p, or (h p)
    rmsnorm_weight (d)   None: y is gated by silu(z) and no more; else each of the g groups is normed on its own
    outproj_weight (m, d_nonssm + d)  None: out is (b l d_nonssm + d); outproj_bias (m)

    Returns out (b l m), and with ``return_final_states`` also the states (b h p n) float32. Differentiable in all tensors,
    through both results. Raises ArgumentError on shapes that disagree.
    """
    op = "mamba_split_conv1d_scan_combined"
    h, p = _heads(op, D, headdim)
    z0, x0 = _skipping(op, zxbcdt, conv1d_weight, h, p, ngroups)
    need(
        outproj_weight is not None or outproj_bias is None,
        op,
        "outproj_bias",
        "given",
        "it belongs to outproj_weight, which is not",
        "Give both or neither.",
    )
    inner = outproj_weight is not None and not z0.shape[-1]
    shape = Shape(
        h, p, ngroups, is_silu(op, activation), float(rmsnorm_eps), norm_before_gate, tuple(limits(dt_limit, True).items()), inner
    )
    scanned = zxbcdt[..., 2 * z0.shape[-1] :] if z0.shape[-1] else zxbcdt
    tensors = (scanned, conv1d_weight, conv1d_bias, dt_bias, A, D, rmsnorm_weight, initial_states, seq_idx)
    with dtypes_as_given(zxbcdt):
        together = not torch.compiler.is_compiling() and is_plain(tensors, gradients=True)
        y, final = SplitBlock.apply(shape, torch.is_grad_enabled(), *tensors) if together else composed(shape, *tensors)
    out = projected(z0, x0, y, outproj_weight, outproj_bias)
    return (out, final) if return_final_states else out


def _heads(op: str, D: Tensor, headdim: int | None) -> tuple[int, int]:
    if D.dim() == 2:
        return D.shape[0], D.shape[1]
    need(headdim is not None, op, "headdim", "missing", f"D is {tuple(D.shape)}, without the heads' width", "Give headdim, or D as (h p).")
    assert headdim is not None
    return D.shape[0], headdim


def _skipping(op: str, zxbcdt: Tensor, conv1d_weight: Tensor, h: int, p: int, ngroups: int) -> tuple[Tensor, Tensor]:
    """z0 and x0, which come first; all sizes are checked."""
    d, conv_dim = h * p, conv1d_weight.shape[0]
    need(ngroups > 0 and h % ngroups == 0, op, "ngroups", ngroups, f"groups divide the {h} heads", "Choose a divisor.")
    need(
        conv_dim > d and (conv_dim - d) % (2 * ngroups) == 0,
        op,
        "conv1d_weight",
        f"of shape {tuple(conv1d_weight.shape)}",
        f"its channels are d + 2 g n, with d = {d} and g = {ngroups}",
        "Make the sizes agree.",
    )
    rest = zxbcdt.shape[-1] - d - conv_dim - h
    need(
        zxbcdt.dim() == 3 and rest >= 0 and rest % 2 == 0,
        op,
        "zxbcdt",
        f"of shape {tuple(zxbcdt.shape)}",
        f"its axes are (b l k), with k = {d + conv_dim + h} here, or more by twice d_nonssm",
        "Make the sizes agree.",
    )
    z0, x0 = zxbcdt[..., :rest].chunk(2, dim=-1)
    return z0, x0


def projected(z0: Tensor, x0: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if z0.shape[-1]:
        y = torch.cat([F.silu(z0) * x0, y], dim=-1)
    return y if weight is None else F.linear(y, weight, bias)


# -- references, by the selective scan -----------------------------------------------------------------------------------------------


def ssd_selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
) -> Tensor:
    """SSD as Mamba-1's scan, a transition for every channel. dt (b l h) or (b l h p); A (h) or (h p, n); dt_bias (h) or (h p)."""
    b, l, h, p = x.shape
    n = B.shape[-1]

    def channels(t: Tensor, rank: int) -> Tensor:
        """(... h) of that rank, or (... h p), -> (... d)."""
        return t.repeat_interleave(p, dim=-1) if t.dim() == rank else t.flatten(-2)

    step = channels(dt, 3)
    wide_A = A.float() if A.dim() == 2 else A.float().repeat_interleave(p).unsqueeze(-1).expand(-1, n)
    bias = None if dt_bias is None else channels(dt_bias, 1)
    if tuple(dt_limit) != NO_LIMIT:
        step = step if bias is None else step + bias
        step = (F.softplus(step) if dt_softplus else step).clamp(*dt_limit)
        bias, dt_softplus = None, False
    out = selective_scan_fn(
        x.flatten(-2).transpose(1, 2),
        step.to(x.dtype).transpose(1, 2),
        wide_A,
        B.permute(0, 2, 3, 1),
        C.permute(0, 2, 3, 1),
        None if D is None else channels(D, 1),
        None if z is None else z.flatten(-2).transpose(1, 2),
        bias,
        bool(dt_softplus),
    )
    assert isinstance(out, Tensor)
    return out.transpose(1, 2).unflatten(-1, (h, p))


def ssd_chunk_scan_combined_ref(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """mamba_chunk_scan by its parts: chunks' states, passed on, then read (§6)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    sums, steps = chunk_cumsum(dt.to(wide), A, chunk_size, dt_bias, dt_softplus, (float("-inf"), float("inf")))
    added = chunk_state(B, x, steps, sums).flatten(-2)
    starts = state_passing(added, sums[..., -1])[0].unflatten(-1, (x.shape[-1], -1))
    return chunk_scan(B, C, x, steps, sums, starts, D, z)


def mamba_conv1d_scan_ref(
    xBC: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt: Tensor,
    A: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
    activation: str | None = "silu",
    headdim: int | None = None,
    ngroups: int = 1,
) -> Tensor:
    """Convolution, then SSD as Mamba-1's scan: xBC (b, l, d + 2 g n), z (b l d) -> (b l d)."""
    op, h = "mamba_conv1d_scan_ref", dt.shape[2]
    p = z.shape[-1] // h if z is not None else D.shape[1] if D is not None and D.dim() == 2 else headdim
    need(p is not None, op, "headdim", "missing", "neither z nor D says how wide a head is", "Give headdim.")
    assert p is not None
    conv = causal_conv1d_fn(xBC.transpose(1, 2), conv1d_weight, conv1d_bias, activation=activation)
    assert isinstance(conv, Tensor)
    x, B, C = by_head(conv.transpose(1, 2), h, p, ngroups)
    gate = None if z is None else z.unflatten(-1, (h, p))
    return ssd_selective_scan(x, dt, A, B, C, None if D is None else D.float(), gate, dt_bias, dt_softplus, dt_limit).flatten(-2)


def mamba_split_conv1d_scan_ref(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    dt_limit: tuple[float, float] = NO_LIMIT,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> Tensor:
    """mamba_split_conv1d_scan_combined with Mamba-1's scan in SSD's place."""
    op = "mamba_split_conv1d_scan_ref"
    h, p = _heads(op, D, headdim)
    z0, x0 = _skipping(op, zxbcdt, conv1d_weight, h, p, ngroups)
    z, xBC, dt = zxbcdt[..., 2 * z0.shape[-1] :].split([h * p, conv1d_weight.shape[0], h], dim=-1)
    gate = z if rmsnorm_weight is None else None
    y = mamba_conv1d_scan_ref(xBC, conv1d_weight, conv1d_bias, dt, A, chunk_size, D, gate, dt_bias, True, dt_limit, activation, p, ngroups)
    if rmsnorm_weight is not None:
        y = rmsnorm_fn(y, rmsnorm_weight, None, z, rmsnorm_eps, h * p // ngroups, norm_before_gate)
    return projected(z0, x0, y, outproj_weight, outproj_bias)


__all__ = [
    "mamba_chunk_scan",
    "mamba_chunk_scan_combined",
    "mamba_conv1d_scan_ref",
    "mamba_split_conv1d_scan_combined",
    "mamba_split_conv1d_scan_ref",
    "ssd_chunk_scan_combined_ref",
    "ssd_selective_scan",
]
