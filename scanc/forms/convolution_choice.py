"""The schedule that a graph of the form convolution gets where nothing was tuned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scanc.errors import UnsupportedForm
from scanc.forms.convolution import ConvolutionPlan, convolution_plan
from scanc.forms.cuda_choice import MULTIPROCESSORS
from scanc.ir import Graph, topological
from scanc.schedule import ConvolutionSchedule
from scanc.target import Target

HALVES = ("bfloat16", "float16")
# Products of spectra grow with the square of a sequence's blocks, the FFT hardly: beyond so many blocks it is faster.
MOST_BLOCKS = 32
# Steps up to which products with tiles of the Toeplitz matrix take less than two transforms: of a forward, of a backward.
SHORT, SHORT_GRADIENTS = 512, 384
# Rows of a channel from which the eight copies of its taps pay that tiles of its matrix are loaded from, where one tile does not hold the
# sequence: of a forward, of a backward. Below, and where rows lie at any place, float32 transforms take less.
ONE_TILE, MANY_ROWS, MANY_ROWS_GRADIENTS = 128, 48, 256
# Taps up to which float32 signals are convolved tap by tap; also what a kernel is taken to have where nothing is known.
FEW = 16
# Blocks of transforms in registers, by steps: (outer, inner), warps, registers a thread. A backward's sums over rows lie in shared memory:
# in registers they would leave room for half the threads, or go to local memory.
REGISTERS = {256: ((16, 16), 1, 64), 512: ((32, 16), 1, 128), 1024: ((64, 16), 1, 0), 2048: ((64, 32), 4, 128), 4096: ((64, 64), 8, 128),
             8192: ((128, 64), 8, 128), 16384: ((128, 128), 16, 128)}
# Blocks of three passes over memory, by steps of the sequence: none of more than 4096 steps, whose parts would go to local memory.
PASSES = {1 << 15: ((64, 16), 2), 1 << 19: ((64, 32), 4), 1 << 22: ((64, 64), 8)}
# What a step takes on an H100, in picoseconds, of a forward and of a backward: by blocks of 8192 steps as matrix products, which grows with
# their number, and by three passes over the next power of two.
BY_BLOCKS, BY_PASSES = ((4.4, 1.57), (12.6, 3.56)), (16.6, 27.7)
# Taps up to which a CPU's compiled sums beat its FFT: of a forward, of a backward.
CPU_TAPS, CPU_TAPS_GRADIENTS = 256, 128
# Programs that fill a device a few times over: fewer, and walking rows would leave multiprocessors idle.
ENOUGH = MULTIPROCESSORS * 8


def convolution_plan_of(prepared: Graph) -> ConvolutionPlan | None:
    """The plan of a prepared graph; None where it has none."""
    try:
        return convolution_plan(prepared)
    except UnsupportedForm:
        return None


def default_convolution(plan: ConvolutionPlan, target: Target, sizes: Mapping[str, int]) -> ConvolutionSchedule:
    """On a GPU, for 16-bit signals, whose results round to more than operands do, ``toeplitz`` where sequences are short, else ``monarch``;
    for float32 ones, and some of 16 bits, float32 transforms of the CUDA backend; on a CPU compiled sums over few taps; ``fft`` for
    everything else."""
    s = _Sizes.of(plan, sizes)
    route = {"cpp": _on_cpu, "cuda": _on_cuda, "triton": _on_triton}.get(target.backend, lambda *_: "fft")(plan, target, s)
    return schedule_of(route, plan, target, sizes) or ConvolutionSchedule(route="fft")


def schedule_of(route: str, plan: ConvolutionPlan, target: Target, sizes: Mapping[str, int]) -> ConvolutionSchedule | None:
    """The schedule that a route has where nothing was tuned; None where the target has not that route, or not at this length."""
    s, known = _Sizes.of(plan, sizes), (target.backend, route)
    if route == "fft":
        return ConvolutionSchedule(route="fft")
    if known == ("cpp", "direct"):
        return ConvolutionSchedule(route="direct")
    if known == ("cuda", "radix"):
        return _radix(plan, s)
    if known == ("cuda", "passes"):
        return _passes(plan, s)
    if known == ("triton", "direct"):
        outer = min(256, max(16, 1 << (s.length - 1).bit_length()))
        # A tile of as many numbers as threads have two or four of; short sequences fill it with rows.
        return ConvolutionSchedule(route="direct", outer=outer, rows=max(4, (512 if plan.gradients else 256) // outer), walk=4)
    if known == ("triton", "toeplitz"):
        return _toeplitz(plan, s)
    return _monarch(plan, s) if known == ("triton", "monarch") else None


@dataclass(frozen=True)
class _Sizes:
    """Steps, the most taps that a kernel has of them, rows that share a channel's kernel, channels."""

    length: int
    taps: int
    rows: int
    channels: int

    @classmethod
    def of(cls, plan: ConvolutionPlan, sizes: Mapping[str, int]) -> _Sizes:
        length = sizes.get(plan.graph.time, 1024)
        taps = max((min(length, sizes.get(a, FEW)) for a in plan.tap_axes), default=length)
        rows, channels = (math.prod(sizes.get(a, 1) for a in axes) for axes in (plan.rows, plan.channels))
        return cls(length, taps, rows, channels)


def _on_cpu(plan: ConvolutionPlan, target: Target, s: _Sizes) -> str:
    return "direct" if s.taps <= (CPU_TAPS_GRADIENTS if plan.gradients else CPU_TAPS) else "fft"


def _on_cuda(plan: ConvolutionPlan, target: Target, s: _Sizes) -> str:
    dtypes, whole = _dtypes(plan), plan.tap_axes == (plan.graph.time,)
    if len(plan.signals) > 4:  # more than shared memory holds the spectra of
        return "fft"
    if dtypes <= set(HALVES) and dtypes:
        if whole and plan.gradients and 1024 < s.length <= 4096:  # two signals leave matrix products no registers
            return "radix"
        repaid = s.length % 16 == 0 and s.rows >= (MANY_ROWS_GRADIENTS if plan.gradients else MANY_ROWS)
        if whole and _is_short(plan, s) and s.length > ONE_TILE and not repaid:
            return "radix"
        return "passes" if whole and _passes_win(plan, s) else "fft"
    if not dtypes or not dtypes <= {*HALVES, "float32"} or s.taps <= FEW:
        return "fft"
    return "radix" if s.length <= (4096 if plan.gradients else 16384) or not whole else "passes"


def _is_short(plan: ConvolutionPlan, s: _Sizes) -> bool:
    """Whether products with tiles of the Toeplitz matrix may be less work than transforms."""
    return s.length <= (SHORT_GRADIENTS if plan.gradients else SHORT)


def _passes_win(plan: ConvolutionPlan, s: _Sizes) -> bool:
    """Whether three passes in float32 take less than matrix products block by block."""
    fixed, each = BY_BLOCKS[bool(plan.gradients)]
    blocks, padded = -(-s.length // 8192), 1 << max(0, s.length - 1).bit_length()
    return blocks > 2 and BY_PASSES[bool(plan.gradients)] * padded < (fixed + each * blocks) * blocks * 8192


def _on_triton(plan: ConvolutionPlan, target: Target, s: _Sizes) -> str:
    dtypes = _dtypes(plan)
    if not dtypes <= set(HALVES):
        return "direct" if target.kind != "cpu" and dtypes == {"float32"} and s.taps <= FEW else "fft"
    few = s.taps < s.length and s.taps <= SHORT_GRADIENTS
    if few or _is_short(plan, s):
        return "toeplitz"
    outer, inner, _ = _tile(s.length, bool(plan.gradients))
    return "monarch" if s.length <= MOST_BLOCKS * outer * inner else "fft"


def _monarch(plan: ConvolutionPlan, s: _Sizes) -> ConvolutionSchedule:
    outer, inner, warps = _tile(s.length, bool(plan.gradients))
    side_by_side = 2 if outer * inner <= 1024 and s.rows > 1 else 1
    items = s.rows // side_by_side * s.channels
    # Where one block of 4096 steps is the sequence, gradients of kernels are made apart: two signals and their sums want all registers.
    apart = int(bool(plan.gradients) and len(plan.signals) == 2 and len(plan.products) == 1 and outer * inner == 4096 >= s.length)
    most = 32 if apart else 16 if plan.gradients else 8  # a gradient's partial sums are as many as parts of the rows
    walk = 1 << max(0, min(most, items // ENOUGH).bit_length() - 1)
    ahead = 0 if plan.gradients and outer * inner > 2048 else 1  # where two signals leave no registers for it
    # Four programs share a multiprocessor then, and hide one another's waiting; addresses of rows at any place need more.
    registers = 128 if outer * inner <= 1024 and not plan.gradients and s.length % 16 == 0 else 0
    return ConvolutionSchedule(outer=outer, inner=inner, rows=side_by_side, walk=walk, ahead=ahead, apart=apart, warps=warps,
                               registers=registers)


def _radix(plan: ConvolutionPlan, s: _Sizes) -> ConvolutionSchedule:
    """One block where it holds the sequence; else several, of 4096 steps."""
    most_steps = 4096 if plan.gradients or s.taps < s.length else 16384
    (outer, inner), warps, registers = REGISTERS[next((n for n in REGISTERS if s.length <= n <= most_steps), 4096)]
    apart = int(0 < len(plan.gradients) <= 6 - len(plan.signals) and outer * inner >= 1024 and s.length <= outer * inner)
    most = 32 if apart and outer * inner > 1024 else 16 if plan.gradients else 8 if outer * inner <= 4096 else 4
    walk = 1 << max(0, min(most, s.rows * s.channels // ENOUGH).bit_length() - 1)
    return ConvolutionSchedule(route="radix", outer=outer, inner=inner, walk=walk, ahead=0, apart=apart, warps=warps, registers=registers,
                               operands="float32")


def _passes(plan: ConvolutionPlan, s: _Sizes) -> ConvolutionSchedule | None:
    found = next((PASSES[n] for n in PASSES if s.length <= n), None)
    if found is None or plan.tap_axes != (plan.graph.time,):
        return None
    (outer, inner), warps = found
    return ConvolutionSchedule(route="passes", outer=outer, inner=inner, walk=1, ahead=0, warps=warps, registers=128, operands="float32")


def _toeplitz(plan: ConvolutionPlan, s: _Sizes) -> ConvolutionSchedule:
    """One tile of a matrix for sequences of up to 128 steps, held while rows are walked; above, tiles of 128 × 64."""
    operands = "bfloat16" if _dtypes(plan) == {"bfloat16"} else "float16"
    gated, gradients = any(x.op != "input" for x in plan.signals), bool(plan.gradients)
    outer = 64 if s.length <= 64 else 128
    side = 16
    while side < min(s.rows, 32 if gated or (s.length <= 64 and not gradients) else 64):
        side *= 2
    one = s.length <= outer
    groups = -(-s.rows // side)
    walk = 1 << max(0, min(8 if one else 2 if gradients else 1, groups * s.channels // ENOUGH).bit_length() - 1)
    return ConvolutionSchedule(route="toeplitz", outer=outer, inner=64, rows=side, walk=walk, operands=operands, ahead=1 if one else 2,
                               warps=4 if s.length <= 64 else 8)


def _tile(length: int, gradients: bool) -> tuple[int, int, int]:
    """Points of both transforms, and warps: one block where 4096 steps hold the sequence, a few of those, then larger ones.

    A kernel's gradient is not made at 64·32 points (see codegen/triton_convolution_run.py).
    """
    if length <= 1024:
        return 64, 16, 4
    if length <= 2048 and not gradients:
        return 64, 32, 4
    return (64, 64, 4) if length <= 2 * 4096 else (128, 64, 8)


def _dtypes(plan: ConvolutionPlan) -> set[str]:
    """What signals are stored in."""
    time = plan.graph.time
    return {n.type.dtype for n in topological(plan.signals) if n.op == "input" and time in n.axes and n.kind == "real"}


__all__ = ["convolution_plan_of", "default_convolution", "schedule_of"]
