"""The long convolution: a kernel of its own for each channel, as long as the sequence (Hyena, H3, S4 and their kin).

    y[b, d, t] = Σ_j k[d, j] x[b, d, t-j]  (+ Σ_j k_rev[d, j] x[b, d, t+j])  + D[d] x[b, d, t],        x = pregate · u
    result     = mask · gelu(postgate · y)                                   gelu where it is asked for

    u, pregate, postgate  (b d l)          k, k_rev  (d w), any w          D  (d)        mask  (b d), as dropout makes it

``fir_conv`` is the same of few taps, w < l, which stay as few. ``circular`` takes t - j modulo l. With ``k_rev`` both kernels have lag 0,
as in H3's ``fftconv_func``.

Sources: Poli et al., Hyena Hierarchy (2023), §3; Fu et al., Hungry Hungry Hippos (2022), §3; Fu et al., FlashFFTConv (2023).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

import scanc.dsl as sc
from scanc.errors import ArgumentError
from scanc.problem import Make


@sc.op
def fft_conv(
    u: Float[Tensor, "b d l"],
    k: Float[Tensor, "d l"],
    k_rev: Float[Tensor, "d l"] | None = None,
    pregate: Float[Tensor, "b d l"] | None = None,
    postgate: Float[Tensor, "b d l"] | None = None,
    mask: Float[Tensor, "b d"] | None = None,
    *,
    gelu: bool = False,
) -> Float[Tensor, "b d l"]:
    x = u if pregate is None else u * pregate
    y = sc.conv(x, k, axis="l")
    if k_rev is not None:
        y = y + sc.conv(x, k_rev, axis="l", reverse=True)
    if postgate is not None:
        y = y * postgate
    if gelu:
        y = sc.gelu(y)
    return y if mask is None else y * mask


@sc.op
def fir_conv(
    u: Float[Tensor, "b d l"],
    k: Float[Tensor, "d w"],
    pregate: Float[Tensor, "b d l"] | None = None,
    postgate: Float[Tensor, "b d l"] | None = None,
) -> Float[Tensor, "b d l"]:
    """A kernel of few taps (Hyena's and H3's shift filters): y[b, d, t] = Σ_j<w k[d, j] x[b, d, t-j], and nothing of length l for k."""
    y = sc.conv(u if pregate is None else u * pregate, k, axis="l", tap="w")
    return y if postgate is None else y * postgate


@fir_conv.example
def _few_taps(make: Make) -> dict[str, Any]:
    return {"u": make.normal("b d l"), "k": make.normal("d w", parameter=True), "pregate": None, "postgate": None}


fir_conv.cases = [
    {"b": 8, "d": 2048, "l": 4096, "w": 64},
]


@fft_conv.prepare
def _prepare(
    u: Tensor,
    k: Tensor,
    D: Tensor | None = None,
    pregate: Tensor | None = None,
    postgate: Tensor | None = None,
    k_rev: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    gelu: bool = False,
    circular: bool = False,
) -> dict[str, Any]:
    """Brings kernels to the sequence's length, with D as a tap of lag 0; a circular one also reaches back, from the sequence's end."""
    for name, x in (("k", k), ("k_rev", k_rev)):
        if x is not None and (x.dim() != 2 or x.shape[-1] == 0):
            raise ArgumentError(
                op="fft_conv",
                argument=name,
                value=f"of shape {tuple(x.shape)}",
                limit="a kernel has axes (d w), with at least one tap",
                remedy="Give one row of taps a channel.",
            )
    length = u.shape[-1]
    if circular and length:
        k, k_rev = _around(k, length), None if k_rev is None else _around(k_rev, length)
        if k_rev is not None:
            k = k + _mirrored(k_rev)
        k_rev = functional.pad(k[:, 1:].flip(-1), (1, 0))
    k = _fitted(k, length)
    if D is not None:
        k = k.to(torch.promote_types(k.dtype, torch.float32)) + functional.pad(D[:, None], (0, length - 1)) if length else k
    k_rev = None if k_rev is None else _fitted(k_rev, length)
    return {"u": u, "k": k, "k_rev": k_rev, "pregate": pregate, "postgate": postgate, "mask": mask, "gelu": gelu}


def _fitted(k: Tensor, length: int) -> Tensor:
    """Taps past the sequence's start meet nothing; missing ones are 0."""
    taps = k.shape[-1]
    return k if taps == length else k[:, :length] if taps > length else functional.pad(k, (0, length - taps))


def _around(k: Tensor, length: int) -> Tensor:
    """Taps whose lags are equal modulo the length, added."""
    turns = -(-k.shape[-1] // length)
    return functional.pad(k, (0, turns * length - k.shape[-1])).unflatten(-1, (turns, length)).sum(-2)


def _mirrored(k: Tensor) -> Tensor:
    """Lag j to lag -j modulo the length."""
    return torch.cat([k[:, :1], k[:, 1:].flip(-1)], -1)


@fft_conv.example
def _example(make: Make) -> dict[str, Any]:
    length = make.case.get("l", 1)
    decay = torch.exp(-4.0 * torch.arange(length) / length) / length**0.5
    return {
        "u": make.normal("b d l"),
        "k": make.normal("d l", parameter=True) * decay,
        "k_rev": None,
        "pregate": None,
        "postgate": None,
        "mask": None,
    }


def streamed_conv(u: Tensor, k: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A sequence in chunks of any lengths (overlap-save): (y of this chunk, what the next one needs of the past).

    u (b d l), k (d w); ``past`` (b d w-1), the inputs before this chunk, zeros where it is the first. Differentiable in all three.
    """
    before = k.shape[-1] - 1
    if past is None:
        past = u.new_zeros(*u.shape[:-1], before)
    if past.shape != (*u.shape[:-1], before):
        limit = f"a kernel of {before + 1} taps sees the {before} steps before a chunk"
        raise ArgumentError(op="streamed_conv", argument="past", value=f"of shape {tuple(past.shape)}", limit=limit,
                            remedy="Pass on what the last chunk gave.")
    whole = torch.cat([past, u], -1)
    return fir_conv(whole, k)[..., before:], whole[..., whole.shape[-1] - before:]


fft_conv.cases = [
    {"b": 64, "d": 768, "l": 1024},
    {"b": 64, "d": 768, "l": 4096},
    {"b": 16, "d": 768, "l": 16384},
    {"b": 4, "d": 768, "l": 65536},
]
