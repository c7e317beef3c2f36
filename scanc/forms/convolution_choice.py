"""The schedule that a graph of the form convolution gets where nothing was tuned."""

from __future__ import annotations

import math
from collections.abc import Mapping

from scanc.errors import UnsupportedForm
from scanc.forms.convolution import ConvolutionPlan, convolution_plan
from scanc.ir import Graph, topological
from scanc.schedule import ConvolutionSchedule
from scanc.target import Target

HALVES = ("bfloat16", "float16")
# Products of spectra grow with the square of a sequence's blocks, the FFT hardly: beyond so many blocks it is faster.
MOST_BLOCKS = 32
# Steps up to which products with tiles of the Toeplitz matrix take less than two transforms: of a forward, of a backward.
SHORT, SHORT_GRADIENTS = 512, 384
# Taps up to which float32 signals are convolved tap by tap; also what a kernel is taken to have where nothing is known.
FEW = 16
# Steps of one block of transforms in registers, by warps and registers a thread: (block's two factors), warps, registers, of a forward;
# longer sequences are of several such blocks, or take three passes over memory with blocks of 64·64 steps, or of 128·128 beyond 2^18.
REGISTERS = {256: ((16, 16), 1, 64), 512: ((32, 16), 1, 128), 1024: ((64, 16), 1, 0), 2048: ((64, 32), 4, 128), 4096: ((64, 64), 8, 128)}
# Steps that three passes take at most.
LONGEST = 1 << 20
# Taps up to which a CPU's compiled sums beat its FFT: of a forward, of a backward.
CPU_TAPS, CPU_TAPS_GRADIENTS = 256, 128
# Programs that fill a device a few times over: fewer, and walking rows would leave multiprocessors idle.
ENOUGH = 132 * 8


def convolution_plan_of(prepared: Graph) -> ConvolutionPlan | None:
    """The plan of a prepared graph; None where it has none."""
    try:
        return convolution_plan(prepared)
    except UnsupportedForm:
        return None


def default_convolution(plan: ConvolutionPlan, target: Target, sizes: Mapping[str, int]) -> ConvolutionSchedule:
    """On a GPU, for 16-bit signals, whose results round to more than operands do, ``toeplitz`` where sequences are short, else ``monarch``;
    for float32 ones transforms in registers, of the CUDA backend; on a CPU compiled sums over few taps; ``fft`` for everything else."""
    length, dtypes = sizes.get(plan.graph.time, 1024), _dtypes(plan)
    taps = max((min(length, sizes.get(a, FEW)) for a in plan.tap_axes), default=length)
    if target.backend == "cpp":
        few = taps <= (CPU_TAPS_GRADIENTS if plan.gradients else CPU_TAPS)
        return ConvolutionSchedule(route="direct" if few else "fft")
    if target.backend == "cuda":
        return _in_registers(length, taps, plan, sizes) if dtypes == {"float32"} and taps > FEW else ConvolutionSchedule(route="fft")
    outer, inner, warps = _tile(length, bool(plan.gradients))
    if target.backend == "triton" and target.kind != "cpu" and dtypes == {"float32"} and taps <= FEW:
        return ConvolutionSchedule(route="direct", outer=min(256, max(16, 1 << (length - 1).bit_length())), rows=4, walk=4)
    if target.backend == "triton" and dtypes <= set(HALVES) and taps < length and taps <= SHORT_GRADIENTS:
        rows, channels = (math.prod(sizes.get(a, 1) for a in axes) for axes in (plan.rows, plan.channels))
        return _toeplitz(length, rows, channels, dtypes, plan)
    if target.backend != "triton" or not dtypes <= set(HALVES) or length > MOST_BLOCKS * outer * inner:
        return ConvolutionSchedule(route="fft")
    rows, channels = (math.prod(sizes.get(a, 1) for a in axes) for axes in (plan.rows, plan.channels))
    if length <= (SHORT_GRADIENTS if plan.gradients else SHORT):
        return _toeplitz(length, rows, channels, dtypes, plan)
    side_by_side = 2 if outer * inner <= 1024 and rows > 1 else 1
    items = rows // side_by_side * channels
    most = 16 if plan.gradients else 8  # a gradient's partial sums are as many as parts of the rows
    walk = 1 << max(0, min(most, items // ENOUGH).bit_length() - 1)
    ahead = 0 if plan.gradients and outer * inner > 2048 else 1  # where two signals leave no registers for it
    # Four programs share a multiprocessor then, and hide one another's waiting; addresses of rows at any place need more.
    registers = 128 if outer * inner <= 1024 and not plan.gradients and length % 16 == 0 else 0
    return ConvolutionSchedule(outer=outer, inner=inner, rows=side_by_side, walk=walk, ahead=ahead, warps=warps, registers=registers)


def _in_registers(length: int, taps: int, plan: ConvolutionPlan, sizes: Mapping[str, int]) -> ConvolutionSchedule:
    """Float32 transforms: one block where 4096 steps hold the sequence, three passes beyond; blocks side by side where taps are few."""
    if length > 4096 and plan.tap_axes == (plan.graph.time,):
        if length > LONGEST:
            return ConvolutionSchedule(route="fft")
        outer, inner, warps = (64, 64, 8) if length <= 1 << 18 else (128, 128, 16)
        return ConvolutionSchedule(route="passes", outer=outer, inner=inner, walk=1, ahead=0, warps=warps, registers=128,
                                   operands="float32")
    block = next((n for n in REGISTERS if length <= n), 4096)
    (outer, inner), warps, registers = REGISTERS[block]
    rows, channels = (math.prod(sizes.get(a, 1) for a in axes) for axes in (plan.rows, plan.channels))
    most = 16 if plan.gradients else 8
    walk = 1 << max(0, min(most, rows * channels // ENOUGH).bit_length() - 1)
    return ConvolutionSchedule(route="radix", outer=outer, inner=inner, walk=walk, ahead=0, warps=warps, registers=registers,
                               operands="float32")


def _toeplitz(length: int, rows: int, channels: int, dtypes: set[str], plan: ConvolutionPlan) -> ConvolutionSchedule:
    """One tile of a matrix for sequences of up to 128 steps, held while rows are walked; above, tiles of 128 × 64."""
    operands = "bfloat16" if dtypes == {"bfloat16"} else "float16"
    gated, gradients = any(s.op != "input" for s in plan.signals), bool(plan.gradients)
    outer = 64 if length <= 64 else 128
    side = 16
    while side < min(rows, 32 if gated or (length <= 64 and not gradients) else 64):
        side *= 2
    one = length <= outer
    groups = -(-rows // side)
    walk = 1 << max(0, min(8 if one else 2 if gradients else 1, groups * channels // ENOUGH).bit_length() - 1)
    return ConvolutionSchedule(route="toeplitz", outer=outer, inner=64, rows=side, walk=walk, operands=operands, ahead=1 if one else 2,
                               warps=4 if length <= 64 else 8)


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


__all__ = ["convolution_plan_of", "default_convolution"]
