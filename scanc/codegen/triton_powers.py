"""Kernels of state spaces on a GPU: Re Σ_n v_n e^{x_n l} for all l by two Triton kernels, which leave little else in memory.

    turns of x      decay a step and turns a step of each mode, from x = log Ā
    discretise      the same, and v, from a state space's own dt, A, B, C
    powers_sum      the sum

A program of ``powers_sum`` makes I·J steps of one kernel. With l = first + J i + j powers split, e^{xl} = e^{x(first + Ji)} e^{xj}, and the
sum over n is two products of small matrices. Turns are kept as fractions of 64 bits and multiplied by steps as integers: whole ones drop
out, and phases hold at any step.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from scanc.codegen.build_triton import available, kernel_of
from scanc.codegen.triton_chunked import Argument
from scanc.codegen.triton_convolution import ConvolutionSource
from scanc.codegen.triton_launch import Launcher
from scanc.errors import BackendUnavailable
from scanc.target import Target

HEAD = '''\
import triton
import triton.language as tl


@triton.jit
def leave(words_ptr, count, at, there, decay, turns):
    # log2 of the decay a step, and a fraction of a turn as two words: its first 32 bits and the next.
    scaled = (turns - tl.floor(turns)) * 4294967296.0
    high = tl.floor(scaled)
    low = (scaled - high) * 4294967296.0
    tl.store(words_ptr + at, (decay * 1.4426950408889634).to(tl.float32).to(tl.int32, bitcast=True), mask=there)
    tl.store(words_ptr + count + at, high.to(tl.int64).to(tl.int32), mask=there)
    tl.store(words_ptr + 2 * count + at, low.to(tl.int64).to(tl.int32), mask=there)
'''
TURNS = HEAD + '''

@triton.jit(do_not_specialize=["count"])
def turns_kernel(x_ptr, words_ptr, count):
    at = tl.program_id(0) * 128 + tl.arange(0, 128)
    there = at < count
    decay, angle = tl.load(x_ptr + 2 * at, mask=there, other=0.0), tl.load(x_ptr + 2 * at + 1, mask=there, other=0.0)
    leave(words_ptr, count, at, there, decay, angle * 0.15915494309189535)
'''
DISCRETISE = HEAD + '''

@triton.jit
def times(a, b, c, d):
    return a * c - b * d, a * d + b * c


@triton.jit
def angle_of(x, y):
    # A guess to 1e-5, and the sine of what it is off by.
    size = tl.sqrt(x * x + y * y)
    c, s = x / size, y / size
    far, near = tl.maximum(tl.abs(c), tl.abs(s)), tl.minimum(tl.abs(c), tl.abs(s))
    t = near / far
    u = t * t
    a = t * (0.99997726 + u * (-0.33262347 + u * (0.19354346 + u * (-0.11643287 + u * (0.05265332 - u * 0.01172120)))))
    a = tl.where(tl.abs(s) > tl.abs(c), 1.5707963267948966 - a, a)
    a = tl.where(c < 0, 3.141592653589793 - a, a)
    a = tl.where(s < 0, -a, a)
    off = s * tl.cos(a) - c * tl.sin(a)
    return a + off * (1.0 + off * off * 0.16666666666666666)


@triton.jit(do_not_specialize=["count", "modes"])
def discretise_kernel(dt_ptr, a_ptr, b_ptr, c_ptr, rate_ptr, words_ptr, v_ptr, count, modes):
    at = tl.program_id(0) * 128 + tl.arange(0, 128)
    there = at < count
    step = tl.load(dt_ptr + at // modes, mask=there, other=1.0).to(tl.float64) * tl.load(rate_ptr)
    x = step * tl.load(a_ptr + 2 * at, mask=there, other=-0.5).to(tl.float64)
    y = step * tl.load(a_ptr + 2 * at + 1, mask=there, other=0.0).to(tl.float64)
    b, d = tl.load(b_ptr + 2 * at, mask=there, other=0.0).to(tl.float64), tl.load(b_ptr + 2 * at + 1, mask=there, other=0.0).to(tl.float64)
METHOD
    leave(words_ptr, count, at, there, decay, turns * 0.15915494309189535)
    e, f = tl.load(c_ptr + 2 * at, mask=there, other=0.0).to(tl.float64), tl.load(c_ptr + 2 * at + 1, mask=there, other=0.0).to(tl.float64)
    b, d = times(b, d, e, f)
    tl.store(v_ptr + 2 * at, (2.0 * b).to(tl.float32), mask=there)
    tl.store(v_ptr + 2 * at + 1, (2.0 * d).to(tl.float32), mask=there)
'''
# log Ā = decay + i turns, and b + i d becomes B̄.
METHODS = {
    "zoh": '''\
    decay, turns = x, y
    size = x * x + y * y
    near, small = size < 1e-8, tl.where(size < 1e-8, 1.0, size)
    grown = tl.exp(x)
    p, q = times(grown * tl.cos(y) - 1.0, grown * tl.sin(y), x / small, -y / small)  # (e^z - 1)/z
    p = tl.where(near, 1.0 + 0.5 * x + (x * x - y * y) * 0.16666666666666666, p)
    q = tl.where(near, 0.5 * y + x * y * 0.3333333333333333, q)
    b, d = times(b, d, step * p, step * q)''',
    "dirac": '''\
    decay, turns = x, y''',
    "euler": '''\
    decay, turns = 0.5 * tl.log((1.0 + x) * (1.0 + x) + y * y), angle_of(1.0 + x, y)
    b, d = step * b, step * d''',
    "bilinear": '''\
    above, below = (1.0 + 0.5 * x) * (1.0 + 0.5 * x) + 0.25 * y * y, (1.0 - 0.5 * x) * (1.0 - 0.5 * x) + 0.25 * y * y
    decay, turns = 0.5 * (tl.log(above) - tl.log(below)), angle_of(1.0 + 0.5 * x, 0.5 * y) - angle_of(1.0 - 0.5 * x, -0.5 * y)
    b, d = times(b, d, step * (1.0 - 0.5 * x) / below, step * 0.5 * y / below)''',
}
POWERS = '''\
import triton
import triton.language as tl


@triton.jit
def powers(decay, high, low, step):
    # 2^(decay step) e^(2 pi i turns step). What is left of turns when whole quarters are taken off is at most an eighth: sine and cosine
    # are their series, without the branches that arguments of any size need.
    many = step.to(tl.uint32)
    phase = high * many + tl.umulhi(low, many)
    which = (phase + 536870912) >> 30
    x = (phase - (which << 30)).to(tl.int32, bitcast=True).to(tl.float32) * 1.4629180792671596e-9
    y = x * x
    sine = x + x * y * (-1.6666667e-1 + y * (8.3333333e-3 + y * (-1.9841270e-4 + y * 2.7557319e-6)))
    cosine = 1.0 + y * (-0.5 + y * (4.1666667e-2 + y * (-1.3888889e-3 + y * (2.4801587e-5 - y * 2.7557319e-7))))
    size = tl.exp2(decay * step.to(tl.float32))
    re, im = tl.where(which % 2 == 0, cosine, sine), tl.where(which % 2 == 0, sine, cosine)
    re = tl.where((which == 1) | (which == 2), -re, re)
    return size * re, size * tl.where((which & 2) != 0, -im, im)


@triton.jit
def rounded(x):
    # The bits that a matrix unit takes of a number.
    return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["modes", "shared", "length", "first", "tiles"])
def powers_sum_kernel(v_ptr, words_ptr, out_ptr, modes, shared, length, first, tiles):
    I: tl.constexpr = 128  # rows of the outer powers
    J: tl.constexpr = 64  # steps from one to the next
    M: tl.constexpr = 16  # modes at a time
    which = (tl.program_id(0) // tiles).to(tl.int64)
    start = tl.program_id(0) % tiles * (I * J)
    i, j, m = tl.arange(0, I)[:, None], tl.arange(0, J)[None, :], tl.arange(0, M)
    made = tl.full((I, J), 0.0, tl.float32)
    count = shared * modes
    for n in range(0, modes, M):
        there = n + m < modes
        words = words_ptr + which % shared * modes + n + m
        decay = tl.load(words, mask=there, other=0).to(tl.float32, bitcast=True)
        high = tl.load(words + count, mask=there, other=0).to(tl.uint32, bitcast=True)
        low = tl.load(words + 2 * count, mask=there, other=0).to(tl.uint32, bitcast=True)
        v = v_ptr + (which * modes + n + m) * 2
        v_re, v_im = tl.load(v, mask=there, other=0.0)[None, :], tl.load(v + 1, mask=there, other=0.0)[None, :]
        a_re, a_im = powers(decay[None, :], high[None, :], low[None, :], first + start + i * J)
        b_re, b_im = powers(decay[:, None], high[:, None], low[:, None], j)
        # Products of tf32, three each, as precise as float32: the small ones first, and every few modes by themselves, since a matrix unit
        # does not round what it adds to a sum but cuts it off.
        a_re, a_im = v_re * a_re - v_im * a_im, -(v_re * a_im + v_im * a_re)
        c_re, c_im, d_re, d_im = rounded(a_re), rounded(a_im), rounded(b_re), rounded(b_im)
        part = tl.dot(c_re, b_re - d_re, input_precision="tf32")
        part = tl.dot(a_re - c_re, d_re, part, input_precision="tf32")
        part = tl.dot(c_im, b_im - d_im, part, input_precision="tf32")
        part = tl.dot(a_im - c_im, d_im, part, input_precision="tf32")
        part = tl.dot(c_re, d_re, part, input_precision="tf32")
        made += tl.dot(c_im, d_im, part, input_precision="tf32")
    l = start + i * J + j
    tl.store(out_ptr + which * length + l, made, mask=l < length)
'''
STEPS = 128 * 64
SINGLE = (torch.float32, torch.complex64)


def _arguments(**dtypes: str) -> tuple[Argument, ...]:
    return tuple(Argument(name, (), dtype, "inner") for name, dtype in dtypes.items())


@functools.cache
def source(kind: str) -> ConvolutionSource:
    """``powers``, ``turns``, or a method of discretisation."""
    if kind == "powers":
        return ConvolutionSource("powers_sum", POWERS, _arguments(v="float32", words="int32", out="float32"),
                                 ("modes", "shared", "length", "first", "tiles"), 8, 128)
    if kind == "turns":
        return ConvolutionSource("turns", TURNS, _arguments(x="float64", words="int32"), ("count",), 4)
    given = _arguments(dt="float32", a="float32", b="float32", c="float32", rate="float64", words="int32", v="float32")
    return ConvolutionSource("discretise", DISCRETISE.replace("METHOD", METHODS[kind]), given, ("count", "modes"), 4)


@functools.cache
def _launcher(kind: str, target: Target) -> Launcher:
    if not available(target):
        raise BackendUnavailable(f"kernels for {target} need that device and a torch built for it", backend="triton",
                                 remedy="Use target cpu:interpret:triton to try a kernel without a GPU.")
    made = source(kind)
    return Launcher(kernel_of(made, target), made.options(target.kind), target.kind != "cpu")


def serves(v: Tensor, x: Tensor) -> bool:
    """Whether the kernels make this sum: on a GPU, in single precision."""
    return v.is_cuda and v.dtype in SINGLE and _shared(v, x) and runs_on(v.device.index)


def _shared(v: Tensor, x: Tensor) -> bool:
    """Whether x has v's last axes and is the same along the rest."""
    own = list(x.shape)
    while len(own) > 1 and own[0] == 1:
        del own[0]
    return list(v.shape[v.dim() - len(own):]) == own


@functools.cache
def runs_on(device: int) -> bool:
    """Whether Triton's kernels run on a GPU."""
    return available(target_of(device))


@functools.cache
def target_of(device: int) -> Target:
    """The target of Triton kernels on a GPU."""
    if torch.version.hip:
        return Target("hip", torch.cuda.get_device_properties(device).gcnArchName.split(":")[0], "triton")
    major, minor = torch.cuda.get_device_capability(device)
    return Target("cuda", f"sm_{major}{minor}", "triton")


def powers_sum(v: Tensor, x: Tensor, length: int, first: int, target: Target | None = None) -> Tensor:
    """v (… n), x its last axes, n among them -> (… length), float32."""
    where = target or target_of(v.device.index)
    wide = torch.view_as_real(x.to(torch.complex128).resolve_conj().contiguous())
    count = wide.numel() // 2
    words = torch.empty(3, count, dtype=torch.int32, device=v.device)
    _launcher("turns", where)(-(-count // 128), [wide, words], [count])
    single = torch.view_as_real(v.to(torch.complex64).resolve_conj().contiguous())
    return _sum(single, words, v.shape[:-1], v.shape[-1], length, first, where)


def state_space_kernel(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, length: int, method: str, rate: float,
                       target: Target | None = None) -> Tensor:
    """2 Re Σ_n C_n B̄_n Ā_n^l.  dt (d), float32; A, B, C (d n), complex64 -> (d length), float32."""
    where, count, modes = target or target_of(dt.device.index), A.numel(), A.shape[-1]
    given = [dt.contiguous(), *(torch.view_as_real(x.resolve_conj().contiguous()) for x in (A, B, C)), _number(rate, dt.device)]
    words = torch.empty(3, count, dtype=torch.int32, device=dt.device)
    v = torch.empty(count, 2, dtype=torch.float32, device=dt.device)
    _launcher(method, where)(-(-count // 128), [*given, words, v], [count, modes])
    return _sum(v, words, A.shape[:-1], modes, length, 0, where)


@functools.lru_cache(maxsize=64)
def _number(x: float, device: torch.device) -> Tensor:
    return torch.tensor(x, dtype=torch.float64, device=device)


def _sum(v: Tensor, words: Tensor, lead: torch.Size, modes: int, length: int, first: int, target: Target) -> Tensor:
    out = torch.empty(*lead, length, dtype=torch.float32, device=v.device)
    if out.numel():
        tiles = -(-length // STEPS)
        numbers = [modes, words.shape[1] // modes, length, first, tiles] if modes else []
        _launcher("powers", target)(lead.numel() * tiles, [v, words, out], numbers)
    return out


__all__ = ["SINGLE", "powers_sum", "runs_on", "serves", "source", "state_space_kernel", "target_of"]
