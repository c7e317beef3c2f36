"""S4: a state space whose transition is diagonal but for a correction of low rank (DPLR), and the products that its kernels are made of.

    h' = (diag(A) - Σ_r P_r P_r*) h + B u,   y = 2 Re Σ_n C_n h_n + D u           discretised by dt: h_t = Ā h_{t-1} + B̄ u_t

    s4(u, dt, A, P, B, C, …)                 all steps by one convolution, from and to a state       s4_step: one of them
    s4_kernel(…, L)[…, l]                    2 Re C Ā^l B̄

    u (b d l)   dt, D (d)   A, B, C (d n), states (b d n), P (d n) or (d r n), complex, one of each conjugate pair (scanc.ops.hippo.nplr)

    log_vandermonde(v, x, L)[…, l]           2 Re Σ_n v_n e^{x_n l}          the kernel of a diagonal state space (S4D, DSS)
    log_vandermonde_transpose(u, v, x, L)    Σ_l u_l v_n e^{x_n l}           what a sequence leaves in its state
    cauchy_mult(v, z, w)[…, l]               Σ_n v_n/(z_l - w_n) + v̄_n/(z_l - w̄_n)      the kernel's transform of S4

A state space of real numbers has its modes in conjugate pairs, of which one is kept: hence 2 Re. With P the real and the imaginary parts
of a state meet, so Ā is a real matrix over both.

Of a kernel's powers l = m i + j, C Ā^{mi} and Ā^j B̄ are made by squaring, and their products are the kernel: no tensor has both n and l,
here and in the Vandermonde products, whose phases hold to any length (scanc/powers.py). ``by="cauchy"`` makes the same kernel as the
authors do, from its transform at the roots of unity. Differentiable throughout.

Sources: Gu et al., Efficiently Modeling Long Sequences with Structured State Spaces (2021), §3; Gu et al., On the Parameterization and
Initialization of Diagonal State Space Models (2022), §3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from scanc.errors import ArgumentError
from scanc.ops.fft_conv import fft_conv
from scanc.powers import HELD, powers_sum, step_block, weighted_sum

# Elements of a Cauchy matrix held at a time.
CAUCHY_BLOCK = 1 << 24
METHODS = ("bilinear", "zoh", "dirac")


class Discrete(NamedTuple):
    """h_t = A h_{t-1} + B u_t, y_t = C h_t, over the states' real parts and then their imaginary parts: A (d 2n 2n), B and C (d 2n), in
    double precision."""

    A: Tensor
    B: Tensor
    C: Tensor


def discrete(dt: Tensor, A: Tensor, P: Tensor, B: Tensor, C: Tensor, *, method: str = "bilinear", rate: float = 1.0) -> Discrete:
    """A state space of conjugate pairs, discretised. ``rate`` scales dt: another sampling rate without retraining."""
    _need_complex("s4", A=A, P=P, B=B, C=C)
    if method not in METHODS:
        raise ArgumentError(op="s4", argument="method", value=method, limit=f"it must be one of {', '.join(METHODS)}", remedy="Choose one.")
    step = (rate * dt.double())[:, None, None]
    A, B, C = (x.to(torch.complex128) for x in (A, B, C))
    p, b = _in_parts(_ranks(P).to(torch.complex128)), _in_parts(B)[..., None]
    turning = torch.diag_embed(A.imag)
    M = torch.cat([torch.cat([torch.diag_embed(A.real), -turning], -1), torch.cat([turning, torch.diag_embed(A.real)], -1)], -2)
    M = step * (M - 2.0 * p.transpose(-1, -2) @ p)
    one = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
    if method == "bilinear":
        made = torch.linalg.solve(one - 0.5 * M, torch.cat([one + 0.5 * M, step * b], -1))
        A, b = made[..., :-1], made[..., -1:]
    elif method == "zoh":  # the exponential of (M, step b; 0, 0) has both
        whole = torch.linalg.matrix_exp(pad(torch.cat([M, step * b], -1), (0, 0, 0, 1)))
        A, b = whole[..., :-1, :-1], whole[..., :-1, -1:]
    else:
        A = torch.linalg.matrix_exp(M)
    return Discrete(A, b[..., 0], 2.0 * torch.cat([C.real, -C.imag], -1))


def s4(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    P: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    method: str = "bilinear",
    rate: float = 1.0,
    return_last_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """(y, last_state) of a whole sequence or of a chunk of one; the state is None where it is not asked for, and costs nothing then."""
    system, length = discrete(dt, A, P, B, C, method=method, rate=rate), u.shape[-1]
    real = torch.promote_types(torch.float32, dt.dtype)
    y = fft_conv(u, _kernel(system, length).to(real), D)
    if initial_state is not None:
        y = y + _seen(system, _after(system, initial_state), length).to(y.dtype)
    if not return_last_state:
        return y, None
    kind = torch.promote_types(real, A.dtype)
    return y, _in_pairs(_last(system, u, initial_state)).to(kind)


def s4_step(u: Tensor, state: Tensor, system: Discrete, D: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One step of what ``discrete`` made: u (b d), state (b d n) -> y (b d), the state after it."""
    h = _after(system, state) + system.B * u[..., None]
    y = (system.C * h).sum(-1).to(u.dtype)
    return y if D is None else y + D * u, _in_pairs(h).to(state.dtype)


def s4_kernel(dt: Tensor, A: Tensor, P: Tensor, B: Tensor, C: Tensor, length: int, *, method: str = "bilinear", rate: float = 1.0,
              by: str = "powers") -> Tensor:
    """K (d length), float32 or double."""
    if by not in ("powers", "cauchy") or (by == "cauchy" and method != "bilinear"):
        raise ArgumentError(op="s4_kernel", argument="by", value=by, limit="it must be powers, or cauchy for the bilinear method",
                            remedy="Choose one.")
    system = discrete(dt, A, P, B, C, method=method, rate=rate)
    made = _kernel(system, length) if by == "powers" else _by_cauchy(system, rate * dt.double(), A, _ranks(P), B, length)
    return made.to(torch.promote_types(torch.float32, dt.dtype))


def _ranks(P: Tensor) -> Tensor:
    return P if P.dim() == 3 else P[:, None]


def _in_parts(h: Tensor) -> Tensor:
    return torch.cat([h.real, h.imag], -1)


def _in_pairs(h: Tensor) -> Tensor:
    n = h.shape[-1] // 2
    return torch.complex(h[..., :n], h[..., n:])


def _after(system: Discrete, state: Tensor) -> Tensor:
    """A h of states (b d n), in parts."""
    return torch.einsum("dij,bdj->bdi", system.A, _in_parts(state.to(torch.complex128)))


def _series(row: Tensor, step: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """row step^i for i < count, a power of two, by squaring, and step^count.  row (… 2n), step (d 2n 2n) -> (… count 2n)."""
    made = row[..., None, :]
    while made.shape[-2] < count:
        made, step = torch.cat([made, made @ step], -2), step @ step
    return made, step


def _rows(system: Discrete, length: int) -> tuple[int, Tensor, Tensor]:
    """(m, the transpose of Ā^m, C Ā^{mi} for all m i < length)."""
    m = step_block(length)
    _, whole = _series(system.B, system.A.transpose(-1, -2), m)
    blocks = 1 << max(0, -(-length // m) - 1).bit_length()
    return m, whole, _series(system.C, whole.transpose(-1, -2), blocks)[0]


def _kernel(system: Discrete, length: int) -> Tensor:
    return _seen(system, system.B, length)


def _seen(system: Discrete, h: Tensor, length: int) -> Tensor:
    """C Ā^l h for l < length.  h (… d 2n) -> (… d length)."""
    m, _, rows = _rows(system, length)
    columns = _series(h, system.A.transpose(-1, -2), m)[0]
    return (rows @ columns.transpose(-1, -2)).flatten(-2)[..., :length]


def _last(system: Discrete, u: Tensor, initial_state: Tensor | None) -> Tensor:
    """Ā^L h + Σ_j Ā^{L-1-j} B̄ u_j, in parts: sums over blocks of m steps, of which neighbours are joined, then their neighbours."""
    b, d, length = u.shape
    back, m = system.A.transpose(-1, -2), step_block(length)
    few = 1 << max(0, (HELD // max(1, b * d * back.shape[-1])).bit_length() - 1)  # blocks held at a time
    few = min(few, 1 << max(0, -(-length // m) - 1).bit_length())
    columns, whole = _series(system.B, back, m)
    columns, wholes = columns.flip(-2), [whole]
    while 1 << (len(wholes) - 1) < few:
        wholes.append(wholes[-1] @ wholes[-1])
    # Steps before the first one: what the state was then is taken back to where the blocks start.
    short = -length % (m * few)
    h = torch.zeros(b, d, back.shape[-1], dtype=back.dtype, device=u.device)
    for start in range(-short, length, m * few):
        part = pad(u[..., max(0, start):start + m * few], (max(0, -start), 0))
        h = _times(h, wholes[-1]) + checkpoint(_joined, part, columns, wholes, use_reentrant=False)
    if initial_state is None:
        return h
    return h + _times(_in_parts(initial_state.to(torch.complex128)), torch.linalg.matrix_power(back, length))


def _times(h: Tensor, step: Tensor) -> Tensor:
    return torch.einsum("bdi,dij->bdj", h, step)


def _joined(u: Tensor, columns: Tensor, wholes: list[Tensor]) -> Tensor:
    blocks = u.to(columns.dtype).unflatten(-1, (-1, columns.shape[-2])) @ columns
    for step in wholes:
        if blocks.shape[-2] > 1:
            blocks = blocks[..., 0::2, :] @ step + blocks[..., 1::2, :]
    return blocks[..., 0, :]


def _by_cauchy(system: Discrete, dt: Tensor, A: Tensor, P: Tensor, B: Tensor, length: int) -> Tensor:
    """The kernel from its transform at the roots of unity, C(1 - Ā^L)(1 - ω Ā)^{-1} B̄, whose inverse is that of a diagonal matrix and a
    correction (Woodbury's identity): Cauchy products all."""
    n = A.shape[-1]
    C = system.C - (system.C[:, None] @ torch.linalg.matrix_power(system.A, length))[:, 0]
    c = 0.5 * torch.complex(C[:, :n], -C[:, n:])
    A, P, B = dt[:, None] * A.to(torch.complex128), dt.sqrt()[:, None, None] * P.to(torch.complex128), B.to(torch.complex128)
    turns = torch.arange((length + 1) // 2, dtype=torch.float64, device=dt.device) / length  # without -1, where z is infinite
    z = 2j * torch.tan(torch.pi * turns)
    rank = range(P.shape[-2])
    r00 = cauchy_mult(c * B, z, A)
    r01 = torch.stack([cauchy_mult(c * P[:, i], z, A) for i in rank], -1)
    r10 = torch.stack([cauchy_mult(P[:, i].conj() * B, z, A) for i in rank], -1)
    r11 = torch.stack([torch.stack([cauchy_mult(P[:, i].conj() * P[:, j], z, A) for j in rank], -1) for i in rank], -2)
    one = torch.eye(len(rank), dtype=r11.dtype, device=dt.device)
    made = r00 - (r01 * torch.linalg.solve(one + r11, r10[..., None])[..., 0]).sum(-1)
    made = made * (dt[:, None] * (1.0 + 1j * torch.tan(torch.pi * turns)))  # 2/(1 + ω)
    if length % 2 == 0:
        made = torch.cat([made, 0.5 * dt[:, None] * (C * _in_parts(B)).sum(-1, keepdim=True)], -1)
    return torch.fft.irfft(made, n=length)


def log_vandermonde(v: Tensor, x: Tensor, L: int) -> Tensor:
    """2 Re Σ_n v_n e^{x_n l} for l < L.  v (… h n), x (h n), complex -> (… h L), real."""
    _need_complex("log_vandermonde", v=v, x=x)
    return powers_sum(2.0 * v, x, L)


def real_vandermonde(v: Tensor, x: Tensor, L: int) -> Tensor:
    """Σ_n v_n e^{x_n l} for l < L, of real modes.  v (… h n), x (h n) -> (… h L)."""
    return powers_sum(v, x, L)


def log_vandermonde_transpose(u: Tensor, v: Tensor, x: Tensor, L: int) -> Tensor:
    """Σ_l u_l v_n e^{x_n l}.  u (… h L), real or complex; v, x (h n), complex -> (… h n).

    Of a sequence backwards, with v = B̄ and x = log Ā, the state that it ends in: Σ_j Ā^{L-1-j} B̄ u_j.
    """
    _need_complex("log_vandermonde_transpose", v=v, x=x)
    if u.shape[-1] != L:
        raise ArgumentError(op="log_vandermonde_transpose", argument="u", value=f"of {u.shape[-1]} steps", limit=f"L is {L}",
                            remedy="Give as many steps as L says.")
    return v * weighted_sum(u, x)


def cauchy_mult(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """Σ_n v_n/(z_l - w_n) and the conjugate modes' terms.  v, w (… n), z (L), complex -> (… L)."""
    _need_complex("cauchy_mult", v=v, z=z, w=w)
    v, w = torch.broadcast_tensors(v, w)
    # Both terms over one denominator: (2 z Re v - 2 Re(v̄ w)) / (z² - 2 z Re w + |w|²), of which two sums over n are real.
    numbers = v.real, (v.conj() * w).real, w.real, w.real.square() + w.imag.square()
    step = max(1, CAUCHY_BLOCK // max(1, v.numel()))
    # A block's matrix is made again for the gradient: none of them is kept.
    parts = [checkpoint(_cauchy_block, some, *numbers, use_reentrant=False) for some in z.split(step)]
    return torch.cat(parts, -1) if parts else v.new_empty(*v.shape[:-1], 0)


def _cauchy_block(z: Tensor, above: Tensor, below: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    at = z.reshape(*[1] * above.dim(), -1)
    return (2.0 * (at * above[..., None] - below[..., None]) / (at * (at - 2.0 * centre[..., None]) + radius[..., None])).sum(-2)


def _need_complex(op: str, **tensors: Tensor) -> None:
    for name, x in tensors.items():
        if not x.is_complex():
            raise ArgumentError(op=op, argument=name, value=f"of dtype {x.dtype}", limit="it must be complex",
                                remedy="Give modes as complex numbers, one of each conjugate pair.")


__all__ = ["Discrete", "cauchy_mult", "discrete", "log_vandermonde", "log_vandermonde_transpose", "real_vandermonde", "s4", "s4_kernel",
           "s4_step"]
