"""The discrete Fourier transform as matrix products: the Triton functions and the two small kernels of the form convolution.

A block of N = N1·N2 steps is a matrix x[t1, t2], t = t1·N2 + t2. Its transform at the frequencies f + 1/4, f = f1 + N1·f2, is

    X[f1, f2] = Σ_t2 e^{-2πi t2 f2/N2} ( e^{-2πi t2 (f1+1/4)/N} Σ_t1 e^{-2πi t1 (f1+1/4)/N1} x[t1, t2] )

two matrix products with a twiddle between (Cooley & Tukey 1965). At a quarter of a frequency z^N = -i, so that a product of two such
spectra comes back as  low - i·high  with the first N steps of the linear convolution for its real part and the N after them in its
imaginary part: no padding with zeros, and a transform of N complex points for N real steps (the right-angle transform, Nussbaumer 1982).

Operands of the products are float16 scaled by a power of two to a largest value below 1; sums are float32. R rows lie side by side,
x[t1, (r, t2)], so that a short block fills a matrix unit. In ``precise`` texts every operand is a sum of two float16, 22 bits of it, and
a product three products: what is lost is the low parts' own, about a float32's rounding.

What is loaded beside a product (twiddles, spectra) lies in memory in the order in which the threads of a matrix unit's tile hold its
values, so that loads are 16 bytes wide and need no exchange: ``tile_of`` says how. It is an order and nothing else:
with another number of warps, or on another device, results are the same.
"""

from __future__ import annotations

from typing import NamedTuple


class Operands(NamedTuple):
    """What products multiply: matrices' dtype, that of spectra in memory, that of twiddles; ``precise``: as pairs."""

    matrix: str
    spectra: str
    twiddles: str
    precise: bool = False


# float16 pairs where spectra are float32.
OPERANDS = {
    "float16": Operands("float16", "float16", "float16"),
    "bfloat16": Operands("bfloat16", "bfloat16", "float16"),
    "float32": Operands("float16", "float32", "float32", True),
}

UNIT = '''\
@triton.jit
def unit(peak):
    # Powers of two: what brings ``peak`` into [1/2, 1), and back.
    exponent = tl.minimum((peak.to(tl.int32, bitcast=True) >> 23) & 255, 252)
    return ((253 - exponent) << 23).to(tl.float32, bitcast=True), ((exponent + 1) << 23).to(tl.float32, bitcast=True)
'''

TRANSFORMS = UNIT + '''

@triton.jit
def peak_of(x, N2: tl.constexpr, R: tl.constexpr):
    # The largest absolute value of each row.  x: [N1, R*N2] -> [R]
    steps = tl.reduce(tl.reshape(tl.abs(x), (x.shape[0], R, N2)), 2, tl.standard._elementwise_max)
    return tl.reduce(steps, 0, tl.standard._elementwise_max)


@triton.jit
def over_steps(v, N2: tl.constexpr, R: tl.constexpr):
    # One number a row, beside its steps.  [R] -> [1, R*N2]
    return tl.reshape(tl.broadcast_to(v[:, None], (R, N2)), (1, R * N2))


@triton.jit
def over_frequencies(v, N1: tl.constexpr, R: tl.constexpr):
    # One number a row, beside its frequencies.  [R] -> [R*N1, 1]
    return tl.reshape(tl.broadcast_to(v[:, None], (R, N1)), (R * N1, 1))


@triton.jit
def tile_of(x, M: tl.constexpr, N: tl.constexpr, W: tl.constexpr):
    # Values as they lie in memory [M*N] -> [M, N]: each thread of a matrix unit's tile finds its own there, eight side by side.
    x = tl.reshape(x, (M // 16 // W, N // 16, W, 8, 4, 2, 2, 2))
    return tl.reshape(tl.permute(x, (0, 2, 6, 3, 1, 5, 4, 7)), (M, N))


@triton.jit
def memory_of(x, M: tl.constexpr, N: tl.constexpr, W: tl.constexpr):
    # [M, N] -> [M*N], what ``tile_of`` undoes.
    x = tl.reshape(x, (M // 16 // W, W, 2, 8, N // 16, 2, 4, 2))
    return tl.reshape(tl.permute(x, (0, 4, 1, 3, 6, 5, 2, 7)), (M * N,))


@triton.jit
def matrices(outer_ptr, inner_ptr, N1: tl.constexpr, N2: tl.constexpr):
    # The two transforms on real and imaginary parts: [(re, f1), t1] of real steps, and [(re, t2), (re, f2)].
    outer = tl.load(outer_ptr + tl.arange(0, 2 * N1)[:, None] * N1 + tl.arange(0, N1)[None, :])
    inner = tl.load(inner_ptr + tl.arange(0, 2 * N2)[:, None] * (2 * N2) + tl.arange(0, 2 * N2)[None, :])
    return outer, inner


@triton.jit
def below(re, im, M: tl.constexpr, N: tl.constexpr):
    # Two [M, N] -> [(re, M), N]
    return tl.reshape(tl.permute(tl.join(re, im), (2, 0, 1)), (2 * M, N))


@triton.jit
def next_to(re, im, M: tl.constexpr, N: tl.constexpr):
    # Two [M, N] -> [M, (re, N)]
    return tl.reshape(tl.permute(tl.join(re, im), (0, 2, 1)), (M, 2 * N))


@triton.jit
def halves_below(x, M: tl.constexpr, N: tl.constexpr):
    # What ``below`` put there.
    return tl.split(tl.permute(tl.reshape(x, (2, M, N)), (1, 2, 0)))


@triton.jit
def halves_next_to(x, M: tl.constexpr, N: tl.constexpr):
    # What ``next_to`` put there.
    return tl.split(tl.permute(tl.reshape(x, (M, 2, N)), (0, 2, 1)))


@triton.jit
def twiddles(twiddle_ptr, use: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, R: tl.constexpr, W: tl.constexpr):
    # [N1, R*N2]. Every ``use`` in a loop asks in another manner: else the compiler would load them once and have no registers left.
    cache: tl.constexpr = ".ca" if use % 4 == 1 else ""
    evict: tl.constexpr = "evict_last" if use % 4 == 2 else "evict_first" if use % 4 == 3 else ""
    here = twiddle_ptr + tl.arange(0, N1 * N2)
    re = tile_of(tl.load(here, cache_modifier=cache, eviction_policy=evict), N1, N2, W).to(tl.float32)
    im = tile_of(tl.load(here + N1 * N2, cache_modifier=cache, eviction_policy=evict), N1, N2, W).to(tl.float32)
    re = tl.broadcast_to(re[:, None, :], (N1, R, N2))
    im = tl.broadcast_to(im[:, None, :], (N1, R, N2))
    return tl.reshape(re, (N1, R * N2)), tl.reshape(im, (N1, R * N2))


@triton.jit
def by_rows(x, N1: tl.constexpr, N2: tl.constexpr, R: tl.constexpr):
    # [N1, (r, N2)] -> [(r, N1), N2]
    return tl.reshape(tl.permute(tl.reshape(x, (N1, R, N2)), (1, 0, 2)), (R * N1, N2))


@triton.jit
def beside(x, N1: tl.constexpr, N2: tl.constexpr, R: tl.constexpr):
    # [(r, N1), N2] -> [N1, (r, N2)]
    return tl.reshape(tl.permute(tl.reshape(x, (R, N1, N2)), (1, 0, 2)), (N1, R * N2))


@triton.jit
def for_each_row(x, N1: tl.constexpr, N2: tl.constexpr, R: tl.constexpr):
    # [N1, N2] -> [(r, N1), N2]
    return tl.reshape(tl.broadcast_to(x[None, :, :], (R, N1, N2)), (R * N1, N2))


@triton.jit
def spectrum_of(x, outer, inner, twiddle_ptr, use: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,
                R: tl.constexpr, W: tl.constexpr):
    # x[t1, (r, t2)] -> X[(r, f1), f2], real and imaginary part
    a_re, a_im = halves_below(tl.dot(outer, x, input_precision="ieee"), N1, R * N2)
    w_re, w_im = twiddles(twiddle_ptr, use, N1, N2, R, W)
    z_re = by_rows((a_re * w_re - a_im * w_im).to(x.dtype), N1, N2, R)
    z_im = by_rows((a_re * w_im + a_im * w_re).to(x.dtype), N1, N2, R)
    return halves_next_to(tl.dot(next_to(z_re, z_im, R * N1, N2), inner, input_precision="ieee"), R * N1, N2)


@triton.jit
def steps_of(both, outer, inner, twiddle_ptr, use: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,
             R: tl.constexpr, W: tl.constexpr):
    # X[(r, f1), (re, f2)] -> the real part of x[t1, (r, t2)]
    c_re, c_im = halves_next_to(tl.dot(both, tl.trans(inner), input_precision="ieee"), R * N1, N2)
    c_re = beside(c_re, N1, N2, R) * (1.0 / N2)
    c_im = beside(c_im, N1, N2, R) * (1.0 / N2)
    w_re, w_im = twiddles(twiddle_ptr, use, N1, N2, R, W)
    e = below(c_re * w_re + c_im * w_im, c_im * w_re - c_re * w_im, N1, R * N2).to(outer.dtype)
    return tl.dot(tl.trans(outer), e, input_precision="ieee") * (1.0 / N1)
'''

# One program a kernel: spectra of its blocks d, as what takes a signal's block to the block d later:  K_d + i K_{d-1},
# where the second term is what block d - 1 leaves over the border. No value of them passes twice the sum of the taps' sizes: divided by
# a power of two above that they are below 1, and ``scale`` is what that takes back.
KERNEL_SPECTRUM = '''\
@triton.jit(do_not_specialize=["blocks"])
def kernel_spectrum_kernel(k_ptr, outer_ptr, inner_ptr, twiddle_ptr, spectrum_ptr, scale_ptr, size, blocks):
    CONSTANTS
    outer, inner = matrices(outer_ptr, inner_ptr, N1, N2)
    which = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, N1)[:, None] * N2 + tl.arange(0, N2)[None, :]
    peak = tl.full((1,), 0.0, tl.float32)
    total = tl.full((1,), 0.0, tl.float32)
    for d in range(blocks):
        k = tl.load(k_ptr + which * size + d * (N1 * N2) + t, mask=d * (N1 * N2) + t < size, other=0.0).to(tl.float32)
        peak = tl.maximum(peak, peak_of(k, N2, 1))
        total += tl.reduce(tl.reshape(tl.abs(k), (1, N1 * N2)), 1, tl.standard._sum_combine)
    small, back = unit(peak)
    less, whole = unit(total * small * 2.0)
    less = over_frequencies(less, N1, 1)
    before_re = tl.full((N1, N2), 0.0, tl.float32)
    before_im = tl.full((N1, N2), 0.0, tl.float32)
    for d in range(blocks):
        k = tl.load(k_ptr + which * size + d * (N1 * N2) + t, mask=d * (N1 * N2) + t < size, other=0.0).to(tl.float32)
        re, im = spectrum_of((k * over_steps(small, N2, 1)).to(outer.dtype), outer, inner, twiddle_ptr, 0, N1, N2, 1, W)
        re, im = re * less, im * less
        here = spectrum_ptr + (which * blocks + d) * (2 * N1 * N2) + tl.arange(0, N1 * N2)
        tl.store(here, memory_of(re - before_im, N1, N2, W))
        tl.store(here + N1 * N2, memory_of(im + before_re, N1, N2, W))
        before_re, before_im = re, im
    tl.store(scale_ptr + which + tl.arange(0, 1), back * whole)
'''

# One program a channel and block of a kernel's gradient: partial sums M_d of conj(X) G, of every part and row side by side, added up,
# then back to steps from M_d - i M_{d+1}, real and imaginary parts side by side from the start.
KERNEL_GRADIENT = '''\
@triton.jit(do_not_specialize=["channels", "blocks", "parts"])
def kernel_gradient_kernel(partial_ptr, outer_ptr, inner_ptr, twiddle_ptr, dk_ptr, size, channels, blocks, parts):
    CONSTANTS
    outer, inner = matrices(outer_ptr, inner_ptr, N1, N2)
    channel = (tl.program_id(0) // blocks).to(tl.int64)
    d = tl.program_id(0) % blocks
    row, column = tl.arange(0, N1)[:, None], tl.arange(0, 2 * N2)[None, :]
    part_of, at = column // N2, row * N2 + column % N2
    turn = tl.where(part_of == 0, 1.0, -1.0)
    both = tl.full((N1, 2 * N2), 0.0, tl.float32)
    for part in range(parts):
        here = partial_ptr + ((part * channels + channel) * blocks + d) * (2 * N1 * N2) + at
        both += tl.load(here + part_of * (N1 * N2))
        both += turn * tl.load(here + (3 - part_of) * (N1 * N2), mask=(at >= 0) & (d + 1 < blocks), other=0.0)
    small, back = unit(peak_of(both, 2 * N2, 1))
    both = (both * over_frequencies(small, N1, 1)).to(inner.dtype)
    dk = steps_of(both, outer, inner, twiddle_ptr, 0, N1, N2, 1, W) * over_steps(back, N2, 1)
    t = row * N2 + tl.arange(0, N2)[None, :]
    tl.store(dk_ptr + channel * size + d * (N1 * N2) + t, dk, mask=d * (N1 * N2) + t < size)
'''

# Matrix units cut off what does not fit beside a sum's largest number: small products come first, where they lose nothing yet.
PAIRS = '''\
@triton.jit
def halves(x):
    # Two numbers of 11 bits that add up to x.
    high = x.to(tl.float16).to(tl.float32)
    return high.to(tl.float16), (x - high).to(tl.float16)


@triton.jit
def left(m, m_low, x):
    # (m + m_low) · x
    high, low = halves(x)
    made = tl.dot(m_low, high.to(m.dtype), input_precision="ieee")
    made = tl.dot(m, low.to(m.dtype), made, input_precision="ieee")
    return tl.dot(m, high.to(m.dtype), made, input_precision="ieee")


@triton.jit
def right(x, m, m_low):
    # x · (m + m_low)
    high, low = halves(x)
    made = tl.dot(high.to(m.dtype), m_low, input_precision="ieee")
    made = tl.dot(low.to(m.dtype), m, made, input_precision="ieee")
    return tl.dot(high.to(m.dtype), m, made, input_precision="ieee")


'''

# Signals are brought into [4, 8), and what goes into the last product is 16 times larger: low parts then have 11 bits of their own, and
# no value passes 65504, a float16's largest. A kernel's spectrum stays below 1/2.
_IN_PAIRS = (
    ("exponent = tl.minimum((peak", "exponent = tl.maximum(3, tl.minimum((peak"),
    ("& 255, 252)\n", "& 255, 252))\n"),
    ("((253 - exponent) << 23)", "((256 - exponent) << 23)"),
    ("((exponent + 1) << 23)", "((exponent - 2) << 23)"),
    ("into [1/2, 1), and back", "into [4, 8), and back"),
    ("total * small * 2.0", "total * small * 16.0"),
    ("(1.0 / N2)", "(16.0 / N2)"),
    ("(1.0 / N1)", "(1.0 / (16.0 * N1))"),
    ("outer, inner = matrices(", "outer, outer_low, inner, inner_low = matrices("),
    ("return outer, inner", "return outer, outer_low, inner, inner_low"),
    ("spectrum_of(x, outer, inner,", "spectrum_of(x, outer, outer_low, inner, inner_low,"),
    ("steps_of(both, outer, inner,", "steps_of(both, outer, outer_low, inner, inner_low,"),
    (".to(outer.dtype), outer, inner,", ", outer, outer_low, inner, inner_low,"),
    (".to(outer.dtype)", ""),
    (".to(inner.dtype)", ""),
    ('tl.dot(outer, x, input_precision="ieee")', "left(outer, outer_low, x)"),
    ('inner, input_precision="ieee"), R * N1', "inner, inner_low), R * N1"),
    ("halves_next_to(tl.dot(next_to(z_re", "halves_next_to(right(next_to(z_re"),
    ('tl.dot(both, tl.trans(inner), input_precision="ieee")', "right(both, tl.trans(inner), tl.trans(inner_low))"),
    ('tl.dot(tl.trans(outer), e, input_precision="ieee")', "left(tl.trans(outer), tl.trans(outer_low), e)"),
)
_LOW = '''\
    outer_low = tl.load(outer_ptr + 2 * N1 * N1 + tl.arange(0, 2 * N1)[:, None] * N1 + tl.arange(0, N1)[None, :])
    inner_low = tl.load(inner_ptr + 4 * N2 * N2 + tl.arange(0, 2 * N2)[:, None] * (2 * N2) + tl.arange(0, 2 * N2)[None, :])
'''


def in_pairs(text: str) -> str:
    """A text of functions or of a kernel's body with every operand as a pair."""
    for plain, paired in _IN_PAIRS:
        text = text.replace(plain, paired)
    return text.replace("    return outer, outer_low,", f"{_LOW}    return outer, outer_low,")


def transforms(precise: bool) -> str:
    return PAIRS + in_pairs(TRANSFORMS) if precise else TRANSFORMS
