"""The schedule that a graph of the form convolution gets where nothing was tuned."""

from __future__ import annotations

from collections.abc import Mapping

from scanc.errors import UnsupportedForm
from scanc.forms.convolution import ConvolutionPlan, convolution_plan
from scanc.ir import Graph
from scanc.schedule import ConvolutionSchedule
from scanc.target import Target

HALVES = ("bfloat16", "float16")
# Products of spectra grow with the square of a sequence's blocks, the FFT hardly: beyond so many blocks it is faster.
MOST_BLOCKS = 16


def convolution_plan_of(prepared: Graph) -> ConvolutionPlan | None:
    """The plan of a prepared graph; None where it has none."""
    try:
        return convolution_plan(prepared)
    except UnsupportedForm:
        return None


def default_convolution(plan: ConvolutionPlan, target: Target, sizes: Mapping[str, int]) -> ConvolutionSchedule:
    """``monarch`` for 16-bit signals on a GPU, whose results round to more than the transforms do; else ``fft``."""
    length = sizes.get(plan.graph.time, 1024)
    schedule = _blocks(length, bool(plan.gradients))
    if target.backend != "triton" or not _in_halves(plan) or length > MOST_BLOCKS * schedule.block:
        return ConvolutionSchedule(route="fft")
    return schedule


def _blocks(length: int, backward: bool) -> ConvolutionSchedule:
    """Blocks that hold the sequence where 4096 steps do; M = 128 rows of a product keep 8 warps busy, 64 rows 4."""
    if length <= 1024:
        return ConvolutionSchedule(outer=64, inner=16, walk=16 if backward else 8)
    if length <= 2048:
        return ConvolutionSchedule(outer=64, inner=32, walk=16 if backward else 8)
    return ConvolutionSchedule(outer=128, inner=32, walk=16 if backward else 8, warps=8)


def _in_halves(plan: ConvolutionPlan) -> bool:
    """Whether everything over time and rows is stored in 16 bits."""
    time = plan.graph.time
    stored = [n for n in plan.graph.inputs if n not in plan.kernels and time in n.axes and n.kind == "real"]
    return all(n.type.dtype in HALVES for n in stored)


__all__ = ["convolution_plan_of", "default_convolution"]
