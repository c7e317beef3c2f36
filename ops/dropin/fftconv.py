"""H3's fftconv_func: the long convolution of its state spaces, with everything that stands around it.

    plain     mask · gelu(u * k + D u)                                      u (b H l), k (H l), D (H)
    with v, q   Σ_i q_i (conv(u_i v_j) + D u_i v_j) for every head and j      u, v, q (b (h i) l), k (h l), D (h), i and j of head_dim

k_rev convolves the other way too, with lag 0 in both.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from scanc.ops.dropin._common import dtypes_as_given, need
from scanc.ops.fft_conv import fft_conv


def fftconv_func(
    u: Tensor,
    k: Tensor,
    D: Tensor,
    dropout_mask: Tensor | None = None,
    gelu: bool = True,
    force_fp16_output: bool = False,
    output_hbl_layout: bool = False,
    v: Tensor | None = None,
    head_dim: int = 1,
    q: Tensor | None = None,
    fftfp16: bool = False,
    k_rev: Tensor | None = None,
) -> Tensor:
    """``dropout_mask`` (b H). Transforms are of single precision, whatever u's is, unless ``fftfp16`` says that 16 bits may be multiplied
    as such, which is faster; ``output_hbl_layout`` lays the result out in memory as (H b l)."""
    op = "fftconv_func"
    need((v is None) == (q is None), op, "q", "given" if v is None else "missing", "v and q come together", "Give both or neither.")
    need(u.shape[1] % head_dim == 0, op, "head_dim", head_dim, f"it must divide {u.shape[1]} channels", "Choose a divisor.")
    dtype = torch.float16 if force_fp16_output else u.dtype
    with dtypes_as_given(u):
        u = u if fftfp16 else u.to(torch.promote_types(u.dtype, torch.float32))
        if v is None or q is None:
            y = fft_conv(u, k, D, k_rev=k_rev, mask=dropout_mask, gelu=gelu)
        elif head_dim == 1:
            y = fft_conv(u, k, D, pregate=v, postgate=q, k_rev=k_rev, mask=dropout_mask, gelu=gelu)
        else:
            y = _heads(u, k, D, v, q, head_dim, k_rev)
            y = F.gelu(y) if gelu else y
            y = y if dropout_mask is None else y * dropout_mask[..., None]
        y = y.to(dtype)
    return y.transpose(0, 1).contiguous().transpose(0, 1) if output_hbl_layout else y


def _heads(u: Tensor, k: Tensor, D: Tensor, v: Tensor, q: Tensor, head_dim: int, k_rev: Tensor | None) -> Tensor:
    """Outer products of a head's dimensions, each convolved with the head's kernel: rows of one channel to the convolution."""
    b, channels, length = u.shape
    heads = channels // head_dim
    u, v, q = (x.unflatten(1, (heads, head_dim)) for x in (u, v, q))
    outer = (u[:, :, :, None] * v[:, :, None]).permute(0, 2, 3, 1, 4).reshape(b * head_dim**2, heads, length)
    made = fft_conv(outer, k, D, k_rev=k_rev).reshape(b, head_dim, head_dim, heads, length)
    return torch.einsum("bhil,bijhl->bhjl", q.to(made.dtype), made).contiguous().view(b, channels, length)


__all__ = ["fftconv_func"]
