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
# Programs that fill a device a few times over: fewer, and walking rows would leave multiprocessors idle.
ENOUGH = 132 * 8


def convolution_plan_of(prepared: Graph) -> ConvolutionPlan | None:
    """The plan of a prepared graph; None where it has none."""
    try:
        return convolution_plan(prepared)
    except UnsupportedForm:
        return None


def default_convolution(plan: ConvolutionPlan, target: Target, sizes: Mapping[str, int]) -> ConvolutionSchedule:
    """``monarch`` for 16-bit signals on a GPU, whose results round to more than the transforms do; else ``fft``."""
    length, dtypes = sizes.get(plan.graph.time, 1024), _dtypes(plan)
    outer, inner, warps = _tile(length, bool(plan.gradients))
    if target.backend != "triton" or not dtypes <= set(HALVES) or length > MOST_BLOCKS * outer * inner:
        return ConvolutionSchedule(route="fft")
    rows = math.prod(sizes.get(a, 1) for a in plan.rows)
    side_by_side = 2 if outer * inner <= 1024 and rows > 1 else 1
    items = rows // side_by_side * math.prod(sizes.get(a, 1) for a in plan.channels)
    most = 16 if plan.gradients else 8  # a gradient's partial sums are as many as parts of the rows
    walk = 1 << max(0, min(most, items // ENOUGH).bit_length() - 1)
    ahead = 0 if plan.gradients and outer * inner > 2048 else 1  # where two signals leave no registers for it
    return ConvolutionSchedule(outer=outer, inner=inner, rows=side_by_side, walk=walk, ahead=ahead, warps=warps)


def _tile(length: int, gradients: bool) -> tuple[int, int, int]:
    """Points of both transforms, and warps: one block where 4096 steps hold the sequence, a few of those, then larger ones.

    A kernel's gradient is not made at 64·32 points (see codegen/triton_convolution_run.py).
    """
    if length <= 1024:
        return 64, 16, 4
    if length <= 2048 and not gradients:
        return 64, 32, 4
    return (64, 64, 4) if length <= (2 if gradients else 4) * 4096 else (128, 64, 8)


def _dtypes(plan: ConvolutionPlan) -> set[str]:
    """What signals are stored in."""
    time = plan.graph.time
    return {n.type.dtype for n in topological(plan.signals) if n.op == "input" and time in n.axes and n.kind == "real"}


__all__ = ["convolution_plan_of", "default_convolution"]
