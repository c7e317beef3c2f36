"""Kernels of state spaces on a GPU: Re Σ_n v_n e^{x_n l} for all l by one Triton kernel, which leaves nothing else in memory.

A program makes I·J steps of one kernel. With l = first + J i + j powers split, e^{xl} = e^{x(first + Ji)} e^{xj}, and the sum over n is
two products of small matrices. Turns are counted in double precision and whole quarters taken off, so that phases hold at any step.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from scanc.codegen.build_triton import available, kernel_of
from scanc.codegen.triton_chunked import Argument
from scanc.codegen.triton_convolution import ConvolutionSource
from scanc.target import Target

TEXT = '''\
import triton
import triton.language as tl


@triton.jit
def powers(decay, turns, step):
    # e^{(decay + 2 pi i turns) step}. Whole quarters of a turn are taken off in double precision; sine and cosine of what is left, at most
    # an eighth, are their series, without the branches that arguments of any size need.
    quarters = 4.0 * turns * step
    whole = tl.floor(quarters + 0.5)
    x = (quarters - whole).to(tl.float32) * 1.5707963267948966
    which = (whole - 4.0 * tl.floor(0.25 * whole)).to(tl.int32)
    y = x * x
    sine = x + x * y * (-1.6666667e-1 + y * (8.3333333e-3 + y * (-1.9841270e-4 + y * 2.7557319e-6)))
    cosine = 1.0 + y * (-0.5 + y * (4.1666667e-2 + y * (-1.3888889e-3 + y * (2.4801587e-5 - y * 2.7557319e-7))))
    size = tl.exp2((decay * step).to(tl.float32) * 1.4426950408889634)
    re, im = tl.where(which % 2 == 0, cosine, sine), tl.where(which % 2 == 0, sine, cosine)
    re = tl.where((which == 1) | (which == 2), -re, re)
    return size * re, size * tl.where(which >= 2, -im, im)


@triton.jit(do_not_specialize=["modes", "shared", "length", "first"])
def powers_sum_kernel(v_ptr, x_ptr, out_ptr, modes, shared, length, first):
    I: tl.constexpr = 64  # rows of the outer powers
    J: tl.constexpr = 128  # steps from one to the next
    M: tl.constexpr = 16  # modes at a time
    which = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * (I * J)
    i, j, m = tl.arange(0, I)[:, None], tl.arange(0, J)[None, :], tl.arange(0, M)
    made = tl.full((I, J), 0.0, tl.float32)
    for n in range(0, modes, M):
        there = n + m < modes
        x = x_ptr + (which % shared * modes + n + m) * 2
        v = v_ptr + (which * modes + n + m) * 2
        decay = tl.load(x, mask=there, other=0.0)
        turns = tl.load(x + 1, mask=there, other=0.0) * 0.15915494309189535
        v_re = tl.load(v, mask=there, other=0.0)[None, :]
        v_im = tl.load(v + 1, mask=there, other=0.0)[None, :]
        a_re, a_im = powers(decay[None, :], turns[None, :], (first + start + i * J).to(tl.float64))
        b_re, b_im = powers(decay[:, None], turns[:, None], j.to(tl.float64))
        # Three products of tf32 each, as precise as float32.
        made = tl.dot(v_re * a_re - v_im * a_im, b_re, made, input_precision="tf32x3")
        made = tl.dot(-(v_re * a_im + v_im * a_re), b_im, made, input_precision="tf32x3")
    l = start + i * J + j
    tl.store(out_ptr + which * length + l, made, mask=l < length)
'''
STEPS = 64 * 128


@functools.cache
def source() -> ConvolutionSource:
    arguments = (Argument("v", (), "float32", "inner"), Argument("x", (), "float64", "inner"), Argument("out", (), "float32", "inner"))
    return ConvolutionSource("powers_sum", TEXT, arguments, ("modes", "shared", "length", "first"), 4)


def serves(v: Tensor, x: Tensor) -> bool:
    """Whether the kernel makes this sum: on a GPU, in single precision."""
    single = v.dtype in (torch.float32, torch.complex64)
    return v.is_cuda and single and _shared(v, x) and available(_target(v.device.index))


def _shared(v: Tensor, x: Tensor) -> bool:
    """Whether x has v's last axes and is the same along the rest."""
    own = list(x.shape)
    while len(own) > 1 and own[0] == 1:
        del own[0]
    return list(v.shape[v.dim() - len(own):]) == own


@functools.cache
def _target(device: int) -> Target:
    if torch.version.hip:
        return Target("hip", torch.cuda.get_device_properties(device).gcnArchName.split(":")[0], "triton")
    major, minor = torch.cuda.get_device_capability(device)
    return Target("cuda", f"sm_{major}{minor}", "triton")


def powers_sum(v: Tensor, x: Tensor, length: int, first: int, target: Target | None = None) -> Tensor:
    """v (… n), x its last axes, n among them -> (… length), float32."""
    made = source()
    wide = torch.view_as_real(x.to(torch.complex128).contiguous())
    single = torch.view_as_real(v.to(torch.complex64).contiguous())
    modes, which = v.shape[-1], v[..., 0].numel()
    out = torch.empty(*v.shape[:-1], length, dtype=torch.float32, device=v.device)
    if out.numel():
        where = target or _target(v.device.index)
        grid = (which, -(-length // STEPS))
        kernel_of(made, where)[grid](single, wide, out, modes, wide.numel() // (2 * modes), length, first, **made.options(where.kind))
    return out


__all__ = ["powers_sum", "serves", "source"]
