"""The recurrent schedule of the CUDA backend where nothing was tuned: the cheapest by a small model of a multiprocessor.

A kernel's time is what one warp's steps take, with as many warps beside it as a multiprocessor has of the launch. Splitting a lane's
states over threads makes more warps of fewer instructions, of which a growing part is shared work done again; segments make more
warps too, and walk time twice. The numbers were read off an H100's counters (docs/kernels/selective_scan.md) and hold for its
relatives: instructions are what is counted, not milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from scanc.forms.plan import ceil_power, innermost_lane
from scanc.ir import Graph
from scanc.schedule import RecurrentSchedule
from scanc.target import Target

MULTIPROCESSORS = 132
# Instructions of a thread at one step: for each of its states; for its sums and for what it reads; and its share of the lane's own work.
PER_STATE, PER_STEP, PER_LANE = 6.2, 4.5, 75.0
# Of four schedulers each starts an instruction a cycle at best, and so many in fact.
ISSUED = 0.72
# Cycles between two instructions of one warp by itself: few states have little to do while a result is on its way.
ALONE = {1: 5.0, 2: 3.2}
ALONE_ELSE = 2.5
# Segments: time is walked for the summaries as well, but for the read-out and what follows; and two more kernels start (cycles).
TWICE, LAUNCHES = 1.7, 25_000
SHORTEST_SEGMENT = 128


@dataclass(frozen=True)
class Work:
    """What a launch has to do: lanes in all, of ``width`` neighbours; steps; states of a lane, two for a complex one."""

    lanes: int
    width: int
    steps: int
    states: int


def default_cuda(graph: Graph, target: Target, sizes: Mapping[str, int], work: Work, *, two_ways: bool) -> RecurrentSchedule:
    """``work.lanes`` and ``work.steps`` are large where sizes are not known."""
    if two_ways:
        return _backward(graph, target, sizes, work)
    if not sizes and work.states > 1:
        return RecurrentSchedule(lanes=32, split=4, tile=32, history=4)  # for any number of states up to 256
    if work.states == 1:
        pieces = min(-(-MULTIPROCESSORS * 192 // work.lanes), work.steps // 256)
        segment = _in_pieces(work.steps, pieces)
        return RecurrentSchedule(lanes=min(ceil_power(work.width), 64), tile=32, history=4, segment=segment)
    return min(_forwards(work), key=lambda s: cycles(s, work))


def cycles(schedule: RecurrentSchedule, work: Work) -> float:
    """A multiprocessor's cycles for a forward."""
    states = -(-work.states // schedule.split)
    segments = -(-work.steps // schedule.segment) if schedule.segment else 1
    blocks = -(-work.lanes // schedule.lanes) * segments
    warps = -(-blocks // MULTIPROCESSORS) * max(1.0, schedule.lanes * schedule.split / 32)
    own = states * PER_STATE + PER_STEP + PER_LANE / schedule.split
    step = own * max(ALONE.get(states, ALONE_ELSE), warps / 4 / ISSUED)
    once = (schedule.segment or work.steps) * step
    return once * TWICE + LAUNCHES if segments > 1 else once


def _forwards(work: Work) -> Iterator[RecurrentSchedule]:
    """Every way to have few enough states a thread, or all threads there are; time whole, or in segments halved again and again."""
    most = 16 if work.states <= 64 else 8  # rows of many states leave room for few blocks, which then want more threads
    for split in (1 << k for k in range(6)):
        states = -(-work.states // split)
        if (states > most and split < 32) or split > ceil_power(work.states):
            continue
        # The more states, the fewer steps of each fit in registers. 16 of one lane want a multiprocessor to four blocks.
        whole = split == 1 and states > 8
        history = 16 if states <= 4 else 8 if states <= 8 or whole else 4
        lanes = min(ceil_power(work.width), max(64 if whole else 128 // split, 8))
        tile = 64 if (history == 16 and split > 2) or work.states > 64 else 32
        pieces = [1] + [1 << k for k in range(1, 8) if work.steps >> k >= SHORTEST_SEGMENT and work.lanes < MULTIPROCESSORS * 1024]
        for number in pieces:
            segment = -(-work.steps // number // tile) * tile if number > 1 else 0
            yield RecurrentSchedule(lanes=lanes, split=split, tile=tile, history=history, segment=segment, blocks=4 if whole else 0)


def _backward(graph: Graph, target: Target, sizes: Mapping[str, int], work: Work) -> RecurrentSchedule:
    """What is carried both ways and kept for a few steps fills the registers: two blocks of 256 threads a multiprocessor, or one."""
    states = 1 if work.states == 1 else 2 if work.states <= 8 else 4 if work.states <= 16 else 8
    split = min(32, ceil_power(-(-work.states // states)))
    # With a state axis even one state has tiles and rows of its own.
    lanes = min(ceil_power(work.width), max(256 // split, 32 // split), 128 if graph.state else 256)
    # As many segments as one round of blocks has room for: a few blocks more would run by themselves.
    places = MULTIPROCESSORS * (4 if work.states == 1 else 2 if work.states <= 16 else 1)
    blocks = -(-work.lanes // (lanes * _walked(graph, sizes, lanes)))
    pieces = min(places // blocks, work.steps // (256 if work.steps > 1024 else SHORTEST_SEGMENT))
    segment = _in_pieces(work.steps, pieces)
    history = 16 if work.states == 1 else 4 if work.states <= 64 or target.shared_bytes > 128 << 10 else 2
    tile = 32 if work.states <= 32 else 16
    return RecurrentSchedule(lanes=lanes, split=split, tile=tile, history=history, segment=segment, stages=1)


def _walked(graph: Graph, sizes: Mapping[str, int], lanes: int) -> int:
    """Lane tiles that a block walks, for the memory of results as long as time that are summed over lanes (see ``launch.bounded_walk``)."""
    from scanc.launch import MEMORY_SHARE

    width = sizes.get(innermost_lane(graph), 0)
    if not width or not sizes.get(graph.time):
        return 1
    size = {a: sizes.get(a, 1) for a in graph.order}
    held = sum(math.prod(size[a] for a in axes) for axes in (*(n.axes for n in graph.inputs), *(o.axes for o in graph.outputs)))
    slot = sum(math.prod(size[a] for a in o.axes) for o in graph.outputs if o.node.op == "sum" and graph.time in o.axes)
    # Partial results are float32, what is held most often half of it.
    return max(1, math.ceil(2 * slot * -(-width // lanes) / (MEMORY_SHARE * held)))


def _in_pieces(steps: int, pieces: int) -> int:
    """Steps of a segment, a multiple of 64; 0 keeps time whole."""
    return -(-steps // pieces // 64) * 64 if pieces > 1 else 0
