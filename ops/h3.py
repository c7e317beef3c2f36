"""H3, the layer: a shift state space finds what came before, a diagonal one keeps it, and products of the two compare and recall.

    q, k, v = projections of u                              (b l d) -> (b d l)
    k       = shift(k) + D_k k                              s_t = (k_t, k_{t-1}, …), C s_t: a convolution of ``d_state`` taps
    y       = q (diag(k ⊗ v) + D k ⊗ v)                     for every head, k and v of ``head_dim``; the sum over k's dimension
    out     = projection of y                               (b l d)

    b batch, l time, d channels (d_model), h heads = d / head_dim, i and j dimensions of a head's k and v, n modes = d_state / 2

A call may start from the states another one left (``state``), so that a prompt comes in chunks of any length; ``step`` takes one token.
In training, where no states come or go, gates and skip are inside the convolution's kernel.

Source: Fu et al., Hungry Hungry Hippos: Towards Language Modeling with State Space Models (2022), §3.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanc.errors import ArgumentError
from scanc.ops.fft_conv import fft_conv, fir_conv
from scanc.ops.hippo import modes, steps
from scanc.ops.s4d import s4d, s4d_convolution, s4d_kernel


class H3State(NamedTuple):
    """``shift`` (b d d_state): the last k, newest first. ``diag`` (b·i·j h n), complex."""

    shift: Tensor
    diag: Tensor


class H3(nn.Module):
    """``d_model`` channels, ``d_state`` real dimensions a state, heads of ``head_dim``; dt starts log-uniform in [dt_min, dt_max]."""

    def __init__(self, d_model: int, d_state: int = 64, head_dim: int = 1, dt_min: float = 0.001, dt_max: float = 0.1) -> None:
        super().__init__()
        if d_model % head_dim:
            raise ArgumentError(op="H3", argument="head_dim", value=head_dim, limit=f"it must divide d_model = {d_model}",
                                remedy="Choose a divisor.")
        if d_state % 2 or d_state < 2:
            raise ArgumentError(op="H3", argument="d_state", value=d_state, limit="modes come in conjugate pairs",
                                remedy="Give an even number.")
        self.d_model, self.d_state, self.head_dim, self.heads = d_model, d_state, head_dim, d_model // head_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d_model, d_model) for _ in range(3))
        self.out_proj = nn.Linear(d_model, d_model)
        self.shift_C = nn.Parameter(torch.randn(d_model, d_state) / math.sqrt(d_state))
        self.shift_D = nn.Parameter(torch.randn(d_model))
        A = modes("lin", self.heads, d_state)
        self.log_dt = nn.Parameter(steps(self.heads, dt_min, dt_max).log())
        self.log_A_real, self.A_imag = nn.Parameter((-A.real).log()), nn.Parameter(A.imag.clone())
        self.C = nn.Parameter(torch.randn(self.heads, d_state // 2, 2) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(self.heads))

    def _diag(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dt, A, B, C of the diagonal state space, its bilinear discretisation's arguments."""
        A = torch.complex(-self.log_A_real.exp(), self.A_imag)
        return self.log_dt.exp(), A, torch.ones_like(A), torch.view_as_complex(self.C)

    def zero_state(self, batch: int) -> H3State:
        """What a sequence starts from."""
        shift = self.shift_C.new_zeros(batch, self.d_model, self.d_state)
        rows = batch * self.head_dim**2
        return H3State(shift, torch.zeros(rows, self.heads, self.d_state // 2, dtype=torch.complex64, device=shift.device))

    def forward(self, u: Tensor, state: H3State | None = None, *, return_state: bool = False) -> Tensor | tuple[Tensor, H3State]:
        """u (b l d) -> (b l d), and the states after the last step where they are asked for."""
        q, k, v = (p(u).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        length = u.shape[1]
        past = None if state is None else state.shift.flip(-1)[..., 1:].to(k.dtype)
        before = k if past is None else torch.cat([past, k], -1)
        taps = torch.cat([self.shift_C[:, :1] + self.shift_D[:, None], self.shift_C[:, 1:]], 1)
        shifted = fir_conv(before, taps)[..., before.shape[-1] - length:]
        if state is None and not return_state and self.head_dim == 1:
            dt, A, B, C = self._diag()
            y = fft_conv(shifted, s4d_kernel(dt, A, B, C, length, method="bilinear"), self.D, pregate=v, postgate=q)
            return self.out_proj(y.transpose(1, 2))
        outer = self._rows(shifted, v)
        y, diag = s4d_convolution(outer, *self._diag(), self.D, None if state is None else state.diag, method="bilinear",
                                  return_last_state=return_state)
        out = self.out_proj(self._read(q, y).transpose(1, 2))
        if diag is None:
            return out
        kept = F.pad(before, (max(0, self.d_state - before.shape[-1]), 0))[..., -self.d_state:]
        return out, H3State(kept.flip(-1).to(self.shift_C.dtype), diag)

    def step(self, u: Tensor, state: H3State) -> tuple[Tensor, H3State]:
        """One token: u (b d), and the states after it."""
        q, k, v = (p(u) for p in (self.q_proj, self.k_proj, self.v_proj))
        shift = torch.cat([k[..., None].to(state.shift.dtype), state.shift[..., :-1]], -1)
        k = (shift * self.shift_C).sum(-1).to(k.dtype) + (self.shift_D * k).to(k.dtype)
        diag = state.diag.clone()
        y = s4d.step(diag, self._rows(k[..., None], v[..., None])[..., 0].contiguous(), *self._diag(), self.D, method="bilinear")
        return self.out_proj(self._read(q[..., None], y[..., None])[..., 0]), H3State(shift, diag)

    def _rows(self, k: Tensor, v: Tensor) -> Tensor:
        """k ⊗ v of every head, (b d l) each, as rows (b·i·j h l)."""
        k, v = (x.unflatten(1, (self.heads, self.head_dim)) for x in (k, v))
        return (k[:, :, :, None] * v[:, :, None]).permute(0, 2, 3, 1, 4).flatten(0, 2)

    def _read(self, q: Tensor, y: Tensor) -> Tensor:
        """Σ_i q_i y_ij, from rows (b·i·j h l) to (b d l)."""
        i = self.head_dim
        y = y.unflatten(0, (len(q), i, i))
        return torch.einsum("bhil,bijhl->bhjl", q.unflatten(1, (self.heads, i)), y).flatten(1, 2)


__all__ = ["H3", "H3State"]
