"""The discrete Fourier transform as matrix products: the Triton functions and the two small kernels of the form convolution.

A block of N = N1·N2 steps is a matrix x[t1, t2], t = t1·N2 + t2. Its transform at the frequencies f + 1/4, f = f1 + N1·f2, is

    X[f1, f2] = Σ_t2 e^{-2πi t2 f2/N2} ( e^{-2πi t2 (f1+1/4)/N} Σ_t1 e^{-2πi t1 (f1+1/4)/N1} x[t1, t2] )

two matrix products with a twiddle between (Cooley & Tukey 1965). At a quarter of a frequency z^N = -i, so that a product of two such
spectra comes back as  low - i·high  with the first N steps of the linear convolution for its real part and the N after them in its
imaginary part: no padding with zeros, and a transform of N complex points for N real steps (the right-angle transform, Nussbaumer 1982).

Operands of the products are float16 scaled by a power of two to a largest value below 1; sums are float32. R rows lie side by side,
x[t1, (r, t2)], so that a short block fills a matrix unit.
"""

from __future__ import annotations

TRANSFORMS = '''\
@triton.jit
def unit(peak):
    # Powers of two: what brings ``peak`` into [1/2, 1), and back.
    exponent = tl.minimum((peak.to(tl.int32, bitcast=True) >> 23) & 255, 252)
    return ((253 - exponent) << 23).to(tl.float32, bitcast=True), ((exponent + 1) << 23).to(tl.float32, bitcast=True)


@triton.jit
def peak_of(x, N2: tl.constexpr, R: tl.constexpr):
    # The largest absolute value of each row.  x: [N1, R*N2] -> [R]
    steps = tl.reduce(tl.abs(x), 0, tl.standard._elementwise_max)
    return tl.reduce(tl.reshape(steps, (R, N2)), 1, tl.standard._elementwise_max)


@triton.jit
def over_steps(v, N2: tl.constexpr, R: tl.constexpr):
    # One number a row, beside its steps.  [R] -> [1, R*N2]
    return tl.reshape(tl.broadcast_to(v[:, None], (R, N2)), (1, R * N2))


@triton.jit
def over_frequencies(v, N1: tl.constexpr, R: tl.constexpr):
    # One number a row, beside its frequencies.  [R] -> [N1*R, 1]
    return tl.reshape(tl.broadcast_to(v[None, :], (N1, R)), (N1 * R, 1))


@triton.jit
def over_rows(x, N1: tl.constexpr, N2: tl.constexpr, R: tl.constexpr):
    # The sum over rows of spectra.  [N1*R, N2] -> [N1, N2]
    return tl.reduce(tl.reshape(x, (N1, R, N2)), 1, tl.standard._sum_combine)


@triton.jit
def matrices(outer_ptr, inner_ptr, N1: tl.constexpr, N2: tl.constexpr):
    # Cosines and negative sines of the two transforms, and what multiplies an imaginary part.
    at1 = tl.arange(0, N1)[:, None] * N1 + tl.arange(0, N1)[None, :]
    at2 = tl.arange(0, N2)[:, None] * N2 + tl.arange(0, N2)[None, :]
    i_re = tl.load(inner_ptr + at2)
    i_im = tl.load(inner_ptr + N2 * N2 + at2)
    return tl.load(outer_ptr + at1), tl.load(outer_ptr + N1 * N1 + at1), i_re, i_im, -i_im


@triton.jit
def twiddles(twiddle_ptr, N1: tl.constexpr, N2: tl.constexpr, R: tl.constexpr):
    at = tl.arange(0, N1)[:, None] * N2 + tl.arange(0, R * N2)[None, :] % N2
    return tl.load(twiddle_ptr + at), tl.load(twiddle_ptr + N1 * N2 + at)


@triton.jit
def spectrum_of(x, o_re, o_im, i_re, i_im, i_neg, twiddle_ptr, N1: tl.constexpr, N2: tl.constexpr, R: tl.constexpr):
    # x[t1, (r, t2)] -> X[(f1, r), f2], real and imaginary part
    a_re = tl.dot(o_re, x, input_precision="ieee")
    a_im = tl.dot(o_im, x, input_precision="ieee")
    w_re, w_im = twiddles(twiddle_ptr, N1, N2, R)
    z_re = tl.reshape((a_re * w_re - a_im * w_im).to(x.dtype), (N1 * R, N2))
    z_im = tl.reshape((a_re * w_im + a_im * w_re).to(x.dtype), (N1 * R, N2))
    re = tl.dot(z_im, i_neg, tl.dot(z_re, i_re, input_precision="ieee"), input_precision="ieee")
    im = tl.dot(z_im, i_re, tl.dot(z_re, i_im, input_precision="ieee"), input_precision="ieee")
    return re, im


@triton.jit
def steps_of(re, im, o_re, o_im, i_re, i_im, i_neg, twiddle_ptr, N1: tl.constexpr, N2: tl.constexpr, R: tl.constexpr):
    # X[(f1, r), f2] -> the real part of x[t1, (r, t2)]
    re, im = re.to(i_re.dtype), im.to(i_re.dtype)
    c_re = tl.dot(im, i_im, tl.dot(re, i_re, input_precision="ieee"), input_precision="ieee")
    c_im = tl.dot(re, i_neg, tl.dot(im, i_re, input_precision="ieee"), input_precision="ieee")
    c_re = tl.reshape(c_re, (N1, R * N2)) * (1.0 / N2)
    c_im = tl.reshape(c_im, (N1, R * N2)) * (1.0 / N2)
    w_re, w_im = twiddles(twiddle_ptr, N1, N2, R)
    e_re = (c_re * w_re + c_im * w_im).to(i_re.dtype)
    e_im = (c_im * w_re - c_re * w_im).to(i_re.dtype)
    y = tl.dot(tl.trans(o_re), e_re, input_precision="ieee")
    return tl.dot(tl.trans(o_im), e_im, y, input_precision="ieee") * (1.0 / N1)
'''

# One program a kernel: spectra of its blocks d, as what takes a signal's block to the block d later:  K_d + i K_{d-1},
# where the second term is what block d - 1 leaves over the border.
KERNEL_SPECTRUM = '''\
@triton.jit(do_not_specialize=["blocks"])
def kernel_spectrum_kernel(k_ptr, outer_ptr, inner_ptr, twiddle_ptr, spectrum_ptr, scale_ptr, size, blocks):
    CONSTANTS
    o_re, o_im, i_re, i_im, i_neg = matrices(outer_ptr, inner_ptr, N1, N2)
    which = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, N1)[:, None] * N2 + tl.arange(0, N2)[None, :]
    peak = tl.full((1,), 0.0, tl.float32)
    for d in range(blocks):
        k = tl.load(k_ptr + which * size + d * (N1 * N2) + t, mask=d * (N1 * N2) + t < size, other=0.0).to(tl.float32)
        peak = tl.maximum(peak, peak_of(k, N2, 1))
    small, back = unit(peak)
    before_re = tl.full((N1, N2), 0.0, tl.float32)
    before_im = tl.full((N1, N2), 0.0, tl.float32)
    peak = tl.full((1,), 0.0, tl.float32)
    for d in range(blocks):
        k = tl.load(k_ptr + which * size + d * (N1 * N2) + t, mask=d * (N1 * N2) + t < size, other=0.0).to(tl.float32)
        re, im = spectrum_of((k * over_steps(small, N2, 1)).to(o_re.dtype), o_re, o_im, i_re, i_im, i_neg, twiddle_ptr, N1, N2, 1)
        here = spectrum_ptr + (which * blocks + d) * (2 * N1 * N2) + t
        peak = tl.maximum(peak, tl.maximum(peak_of(re - before_im, N2, 1), peak_of(im + before_re, N2, 1)))
        tl.store(here, re - before_im)
        tl.store(here + N1 * N2, im + before_re)
        before_re, before_im = re, im
    one = tl.arange(0, 1)
    tl.store(scale_ptr + which * 2 + one, back)
    tl.store(scale_ptr + which * 2 + 1 + one, unit(peak)[1])
'''

# One program a channel and block of a kernel's gradient: partial sums M_d of conj(X) G added up, then back to steps from M_d - i M_{d+1}.
KERNEL_GRADIENT = '''\
@triton.jit(do_not_specialize=["channels", "blocks", "parts"])
def kernel_gradient_kernel(partial_ptr, outer_ptr, inner_ptr, twiddle_ptr, dk_ptr, size, channels, blocks, parts):
    CONSTANTS
    o_re, o_im, i_re, i_im, i_neg = matrices(outer_ptr, inner_ptr, N1, N2)
    channel = (tl.program_id(0) // blocks).to(tl.int64)
    d = tl.program_id(0) % blocks
    t = tl.arange(0, N1)[:, None] * N2 + tl.arange(0, N2)[None, :]
    re = tl.full((N1, N2), 0.0, tl.float32)
    im = tl.full((N1, N2), 0.0, tl.float32)
    for part in range(parts):
        here = partial_ptr + ((part * channels + channel) * blocks + d) * (2 * N1 * N2) + t
        re += tl.load(here)
        im += tl.load(here + N1 * N2)
        if d + 1 < blocks:
            re += tl.load(here + 3 * N1 * N2)
            im -= tl.load(here + 2 * N1 * N2)
    small, back = unit(tl.maximum(peak_of(re, N2, 1), peak_of(im, N2, 1)))
    small = over_frequencies(small, N1, 1)
    dk = steps_of(re * small, im * small, o_re, o_im, i_re, i_im, i_neg, twiddle_ptr, N1, N2, 1) * over_steps(back, N2, 1)
    tl.store(dk_ptr + channel * size + d * (N1 * N2) + t, dk, mask=d * (N1 * N2) + t < size)
'''
