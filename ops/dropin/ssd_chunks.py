"""The parts of SSD chunk by chunk: mamba_ssm.ops.triton's ssd_chunk_state, ssd_state_passing, ssd_chunk_scan.

    h at the end of chunk c  =  exp(Σ Δ A) h at its start  +  Σ_t exp(Σ_{r>t} Δ_r A) Δ_t x_t ⊗ B_t

    q  chunk_size      c  chunks, ⌈l / q⌉; beyond l a step is 0, which changes no state

    dt, dA_cumsum  (b h c q)  steps, and Δ A summed from each chunk's start
    x              (b l h p)                B       (b l g n), g divides h
    states         (b c h p n): what a chunk adds; chunk_states, prev_states: the states chunks start from

ssd itself needs none of this. The states at the ends of packed sequences do (chunk_state_varlen), and callers of the parts.
Sums within a chunk are torch's matrix products, in float32 or wider; passing the state on is a compiled recurrence.

Source: Dao & Gu, Transformers are SSMs (2024), §6; the calls are those of mamba_ssm 2.3.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

import scanc.dsl as sc
from scanc.ops.dropin._common import need_shape


@sc.op
def passed_states(
    decay: Float[Tensor, "b l h"],
    added: Float[Tensor, "b l h p"],
    initial_states: Float[Tensor, "b h p"] | None = None,
) -> tuple[Float[Tensor, "b l h p"], Float[Tensor, "b h p"]]:
    before = sc.scan(decay, added, axis="l", initial=initial_states, exclusive=True)  # time here counts chunks
    return before, sc.last(before, "l")


def chunk_cumsum(
    dt: Tensor,
    A: Tensor,
    chunk_size: int,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
) -> tuple[Tensor, Tensor]:
    """dt (b l h), A and dt_bias (h) -> (dA_cumsum, dt) (b h c q), after bias, softplus and limits; in float32 or wider."""
    dt = dt.to(torch.promote_types(dt.dtype, torch.float32))
    if dt_bias is not None:
        dt = dt + dt_bias
    if dt_softplus:
        dt = F.softplus(dt)
    dt = dt.clamp(*dt_limit)
    dt = F.pad(dt, (0, 0, 0, -dt.shape[1] % chunk_size)).unflatten(1, (-1, chunk_size)).permute(0, 3, 1, 2)
    return (dt * A[:, None, None]).cumsum(-1), dt


def chunk_state(
    B: Tensor, x: Tensor, dt: Tensor, dA_cumsum: Tensor, states_in_fp32: bool = True, *, seq_idx: Tensor | None = None
) -> Tensor:
    """What each chunk adds to the state (b c h p n), in float32, or in x's dtype where ``states_in_fp32`` is False.

    With ``seq_idx`` (b l), only what belongs to the sequence at the chunk's end.
    """
    b, h, c, q = dt.shape
    need_shape("chunk_state", "dA_cumsum", dA_cumsum, (b, h, c, q), "b h c q")
    weight = dt * torch.exp(dA_cumsum[..., -1:] - dA_cumsum)
    if seq_idx is not None:
        ids = seq_idx[:, torch.arange(c * q, device=x.device).clamp(max=seq_idx.shape[1] - 1)].view(b, 1, c, q)
        weight = weight * (ids == ids[..., -1:])
    weight = weight.permute(0, 2, 3, 1)  # (b c q h)
    past_end = c * q - x.shape[1]
    x_chunks, B_chunks = (F.pad(t, (0, 0, 0, 0, 0, past_end)).unflatten(1, (c, q)) for t in (x, B))
    states = _outer_sums(weight, x_chunks, B_chunks)
    return states if states_in_fp32 else states.to(x.dtype)


def _outer_sums(weight: Tensor, x: Tensor, B: Tensor) -> Tensor:
    """Σ_q weight x ⊗ B: (... q h), (... q h p), (... q g n) -> (... h p n), in float32 or wider."""
    g = B.shape[-2]
    weighted = (weight.unsqueeze(-1) * x).unflatten(-2, (g, -1))  # (... q g h/g p)
    return torch.einsum("...qgrp,...qgn->...grpn", weighted, B.to(weighted.dtype)).flatten(-4, -3)


def state_passing(
    states: Tensor, dA_chunk_cumsum: Tensor, initial_states: Tensor | None = None, *, seq_idx: Tensor | None = None, chunk_size: int = 0
) -> tuple[Tensor, Tensor]:
    """The state at every chunk's start (b c h k), and after the last chunk (b h k) float32.

    states (b c h k), k whatever a head's state has; dA_chunk_cumsum (b h c) a chunk's Δ A in all; initial_states (b h k).
    With ``seq_idx`` (b l) and ``chunk_size``, a state goes no further than the chunk in which its sequence ends. Differentiable.
    """
    decay = torch.exp(dA_chunk_cumsum).transpose(1, 2)  # (b c h)
    if seq_idx is not None:
        ends = torch.arange(1, decay.shape[1] + 1, device=seq_idx.device) * chunk_size - 1
        at_ends = seq_idx[:, ends.clamp(max=seq_idx.shape[1] - 1)]
        stays = at_ends == torch.cat([seq_idx[:, :1], at_ends[:, :-1]], dim=1)
        decay = decay * stays.unsqueeze(-1)
    before, final = passed_states(decay, states.to(decay.dtype), initial_states)
    return before.to(states.dtype), final


def chunk_state_varlen(B: Tensor, x: Tensor, dt: Tensor, dA_cumsum: Tensor, cu_seqlens: Tensor, chunk_states: Tensor) -> Tensor:
    """The state after each of several sequences packed end to end: (nseq h p n), zeros for an empty one. Differentiable.

    x (T h p), B (T g n), dt and dA_cumsum (h c q), cu_seqlens (nseq + 1) from 0, chunk_states (c h p n) at the chunks' starts.
    Nothing waits for the device: each sequence takes the chunk it ends in, with the steps of others left out.
    """
    h, c, q = dt.shape
    need_shape("chunk_state_varlen", "chunk_states", chunk_states, (c, h, *chunk_states.shape[2:]), "c h p n")
    starts, ends = (t.long().unsqueeze(1) for t in (cu_seqlens[:-1], cu_seqlens[1:]))
    last = (ends - 1).clamp(min=0)
    first = last // q * q  # of the chunk
    at = first + torch.arange(q, device=x.device)  # (nseq q)
    own = ((at >= starts) & (at < ends)).unsqueeze(-1)
    steps, sums = (t.flatten(1).transpose(0, 1) for t in (dt, dA_cumsum))  # (c q, h)
    since = sums[last]  # (nseq 1 h)
    weight = torch.where(own, steps[at], 0.0) * torch.exp(torch.where(own, since - sums[at], 0.0))
    rows = at.clamp(max=x.shape[0] - 1)
    states = _outer_sums(weight, x[rows], B[rows])
    begun = (starts < first) | ((starts == 0) & (first == 0) & (ends > 0))  # before this chunk, or from the initial state
    carried = torch.where(begun, torch.exp(since.squeeze(1)), 0.0)  # (nseq h)
    return (states + carried[..., None, None] * chunk_states[(first // q).squeeze(1)]).to(chunk_states.dtype)


def chunk_scan(
    B: Tensor,
    C: Tensor,
    x: Tensor,
    dt: Tensor,
    dA_cumsum: Tensor,
    prev_states: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
) -> Tensor:
    """The results (b l h p), in x's dtype, of chunks that start from ``prev_states``: D (h) or (h p), z (b l h p). Differentiable.

    y_t = C_t · (exp(Σ_{r<=t} Δ_r A) h_start  +  Σ_{s<=t} exp(Σ_{s<r<=t} Δ_r A) Δ_s x_s ⊗ B_s) + D x_t
    """
    h, c, q = dt.shape[1:]
    wide = torch.promote_types(x.dtype, torch.float32)
    past_end = c * q - x.shape[1]
    xs, Bs, Cs = (F.pad(t.to(wide), (0, 0, 0, 0, 0, past_end)).unflatten(1, (c, q)) for t in (x, B, C))
    Bs, Cs = (t.repeat_interleave(h // t.shape[3], dim=3) for t in (Bs, Cs))  # (b c q h n)
    later = torch.ones(q, q, dtype=torch.bool, device=x.device).triu(1)
    decay = torch.exp((dA_cumsum.unsqueeze(-1) - dA_cumsum.unsqueeze(-2)).masked_fill(later, float("-inf")))  # (b h c q q)
    scores = torch.einsum("bcthn,bcshn->bhcts", Cs, Bs) * decay * dt.unsqueeze(-2)
    y = torch.einsum("bhcts,bcshp->bcthp", scores, xs)
    before = torch.einsum("bcthn,bchpn->bcthp", Cs, prev_states.to(wide))
    y = (y + before * torch.exp(dA_cumsum).permute(0, 2, 3, 1).unsqueeze(-1)).flatten(1, 2)[:, : x.shape[1]]
    if D is not None:
        y = y + (D.unsqueeze(-1) if D.dim() == 1 else D) * x
    if z is not None:
        y = y * F.silu(z.to(wide))
    return y.to(x.dtype)


# -- references, step by step -----------------------------------------------------------------------------------------------------


def chunk_state_ref(B: Tensor, x: Tensor, dt: Tensor, dA_cumsum: Tensor) -> Tensor:
    """chunk_state as one recurrence over each chunk's steps."""
    b, h, c, _ = dt.shape
    return _chunk_steps(B, B, x, dt, dA_cumsum, dt.new_zeros(b, c, h, x.shape[-1], B.shape[-1]))[1].to(x.dtype)


def chunk_scan_ref(
    B: Tensor,
    C: Tensor,
    x: Tensor,
    dt: Tensor,
    dA_cumsum: Tensor,
    prev_states: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
) -> Tensor:
    """chunk_scan as one recurrence over each chunk's steps."""
    y = _chunk_steps(B, C, x, dt, dA_cumsum, prev_states)[0].flatten(1, 2)[:, : x.shape[1]]
    if D is not None:
        y = y + (D.unsqueeze(-1) if D.dim() == 1 else D) * x
    return (y if z is None else y * F.silu(z)).to(x.dtype)


def _chunk_steps(B: Tensor, C: Tensor, x: Tensor, dt: Tensor, dA_cumsum: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Results (b c q h p) and last states (b c h p n) of chunks that start from ``state``."""
    h, c, q = dt.shape[1:]
    x, B, C = (F.pad(t, (0, 0, 0, 0, 0, c * q - t.shape[1])).unflatten(1, (c, q)) for t in (x, B, C))
    B, C = (t.repeat_interleave(h // t.shape[3], dim=3).unsqueeze(-2) for t in (B, C))  # (b c q h 1 n)
    decay = torch.exp(torch.diff(dA_cumsum, dim=-1, prepend=torch.zeros_like(dA_cumsum[..., :1])))
    rows = []
    for t in range(q):
        a, step = (v[..., t].transpose(1, 2)[..., None, None] for v in (decay, dt))
        state = a * state + step * x[:, :, t].unsqueeze(-1) * B[:, :, t]
        rows.append((state * C[:, :, t]).sum(-1))
    return torch.stack(rows, dim=2), state


def state_passing_ref(states: Tensor, dA_chunk_cumsum: Tensor, initial_states: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """state_passing, one chunk after another."""
    state = torch.zeros_like(states[:, 0]) if initial_states is None else initial_states
    before = []
    for c in range(states.shape[1]):
        before.append(state)
        state = torch.exp(dA_chunk_cumsum[..., c, None]) * state + states[:, c]
    return torch.stack(before, dim=1), state


# mamba_ssm's own tests call these by their inner names.


def _chunk_cumsum_fwd(
    dt: Tensor,
    A: Tensor,
    chunk_size: int,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
) -> tuple[Tensor, Tensor]:
    return chunk_cumsum(dt, A, chunk_size, dt_bias, dt_softplus, dt_limit)


def _chunk_state_fwd(B: Tensor, x: Tensor, dt: Tensor, dA_cumsum: Tensor, seq_idx: Tensor | None = None) -> Tensor:
    return chunk_state(B, x, dt, dA_cumsum, seq_idx=seq_idx)


def _state_passing_fwd(
    states: Tensor,
    dA_chunk_cumsum: Tensor,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    chunk_size: int = 0,
) -> tuple[Tensor, Tensor]:
    return state_passing(states, dA_chunk_cumsum, initial_states, seq_idx=seq_idx, chunk_size=chunk_size)


__all__ = [
    "_chunk_cumsum_fwd",
    "_chunk_state_fwd",
    "_state_passing_fwd",
    "chunk_scan",
    "chunk_scan_ref",
    "chunk_state",
    "chunk_state_ref",
    "chunk_state_varlen",
    "state_passing",
    "state_passing_ref",
]
