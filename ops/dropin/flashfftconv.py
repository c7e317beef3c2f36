"""flashfftconv.FlashFFTConv: a long convolution of a given FFT size, with gates.

    conv = FlashFFTConv(seqlen, dtype=torch.bfloat16)          seqlen is the FFT's size
    y = conv(u, k)          y = conv(u, k, pregate, postgate)          u, gates (B H L), k (H Lk) float32

L + Lk - 1 up to seqlen is a plain causal convolution; beyond, the result wraps around with period seqlen, as an FFT of that size makes it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanc.ops.dropin._common import dtypes_as_given, need
from scanc.ops.fft_conv import fft_conv

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class FlashFFTConv(nn.Module):
    """Any ``seqlen``: theirs takes powers of two from 256 to 4,194,304. ``use_32_butterfly`` means a kernel of theirs, nothing here."""

    def __init__(self, seqlen: int, dtype: torch.dtype = torch.float16, use_32_butterfly: bool = True) -> None:
        super().__init__()
        need(seqlen >= 1, "FlashFFTConv", "seqlen", seqlen, "an FFT has 1 point or more", "Give the FFT's size.")
        need(dtype in DTYPES, "FlashFFTConv", "dtype", dtype, f"it must be one of {', '.join(map(str, DTYPES))}", "Choose one.")
        self.seqlen, self.dtype, self.use_32_butterfly = seqlen, dtype, use_32_butterfly

    def forward(self, u: Tensor, k: Tensor, pregate: Tensor | None = None, postgate: Tensor | None = None) -> Tensor:
        length, taps = u.shape[-1], k.shape[-1]
        for name, size in (("u", length), ("k", taps)):
            need(size <= self.seqlen, "FlashFFTConv", name, f"of {size} steps", f"the FFT has {self.seqlen} points", "Make seqlen larger.")
        with dtypes_as_given(u):
            if length + taps - 1 <= self.seqlen:
                return fft_conv(u, k, pregate=pregate, postgate=postgate)
            if length == self.seqlen:
                return fft_conv(u, k, pregate=pregate, postgate=postgate, circular=True)
            gated = u if pregate is None else u * pregate
            y = fft_conv(F.pad(gated, (0, self.seqlen - length)), k, circular=True)[..., :length]
            return y if postgate is None else y * postgate

    def extra_repr(self) -> str:
        return f"seqlen={self.seqlen}, dtype={self.dtype}"


__all__ = ["FlashFFTConv"]
