"""The recurrent schedule of the CUDA backend where nothing was tuned: the shortest by what a few kinds of blocks were seen to take.

A kind is a number of walking threads with so many states each; how many lanes that is follows from the states of a lane. What a step
takes depends on how many such blocks a multiprocessor has, since one by itself waits for its own results, and a launch is so many
rounds of blocks. The times were read off an H100 (docs/kernels/selective_scan.md) and hold, beside each other, for its relatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from scanc.forms.plan import Plan, ceil_power, innermost_lane
from scanc.ir import Graph
from scanc.schedule import RecurrentSchedule
from scanc.target import PROCESSORS, Target

MULTIPROCESSORS = PROCESSORS["cuda"]
# Segments: time is walked for the summaries as well, but for the read-out and what follows; and one more kernel starts (microseconds).
TWICE, LAUNCHES = 1.7, 6.0
SHORTEST_SEGMENT = 256
# Nanoseconds of a step of one lane's own work on a multiprocessor, and of a lane's tile beside it: they show where there are few states.
LANE_STEP, LANE_TILE = 0.34, 13.8
# Blocks of one round end at different times: every further round costs so much more.
ROUND = 0.03
# A thread with one state reads as much as one with two: it pays where more threads are not to be had.
FEW_STATES = 8
# Shared memory of a block that has a multiprocessor to itself, as far as tiles were seen to grow.
BLOCK_BYTES = 200 << 10
# A block walks so many tiles less than it takes time for: the first prologue, the last epilogue.
AROUND = 1.5


@dataclass(frozen=True)
class Kind:
    """Blocks of ``walking`` threads with ``states`` each; nanoseconds of a step with one of them a multiprocessor, and with ``most``."""

    walking: int
    states: int
    history: int
    steps: int  # of a tile, as far as shared memory allows
    helpers: int
    most: int
    blocks: int
    alone: float
    full: float
    once: bool = False  # seen in launches of one round alone, where none waits for another's place
    least: int = 1      # states of a lane

    def step(self, here: int) -> float:
        return self.alone if self.most == 1 else self.alone + (self.full - self.alone) * (here - 1) / (self.most - 1)


KINDS = (
    Kind(64, 1, 16, 128, 4, 2, 0, 13.5, 15.6),
    Kind(128, 1, 16, 128, 4, 2, 0, 15.7, 25.6),
    Kind(64, 2, 16, 128, 4, 2, 0, 17.2, 20.5),
    Kind(128, 2, 16, 128, 4, 2, 2, 20.5, 34.0),
    Kind(256, 2, 16, 128, 8, 1, 1, 31.5, 31.5),
    Kind(320, 2, 16, 128, 6, 1, 1, 40.8, 40.8, once=True),
    Kind(384, 2, 16, 128, 8, 1, 1, 45.4, 45.4, once=True),
    Kind(128, 4, 8, 64, 4, 2, 2, 36.0, 60.0),
    Kind(256, 4, 8, 64, 4, 1, 1, 59.5, 59.5),
    Kind(384, 4, 8, 64, 8, 1, 1, 81.1, 81.1, once=True),
    Kind(128, 4, 8, 128, 4, 1, 1, 31.3, 31.3, once=True, least=17),
    Kind(256, 4, 16, 128, 4, 1, 1, 50.0, 50.0, once=True, least=17),
    Kind(256, 8, 8, 64, 4, 1, 1, 93.0, 93.0, once=True, least=33),
    Kind(512, 8, 8, 64, 4, 1, 1, 167.0, 167.0, once=True, least=65),
    Kind(128, 8, 4, 32, 4, 2, 2, 66.0, 118.0),
    Kind(128, 16, 4, 32, 4, 2, 2, 125.0, 213.0),
)


@dataclass(frozen=True)
class Work:
    """What a launch has to do: lanes in all, of ``width`` neighbours; steps; states of a lane, two for a complex one."""

    lanes: int
    width: int
    steps: int
    states: int


def default_cuda(graph: Graph, target: Target, sizes: Mapping[str, int], work: Work, *, two_ways: bool,
                 fits: Callable[[RecurrentSchedule], bool] = lambda schedule: False) -> RecurrentSchedule:
    """``work.lanes`` and ``work.steps`` are large where sizes are not known; ``fits`` says whether a graph has kernels by a schedule."""
    if two_ways:
        return _backward(graph, target, sizes, work, fits)
    if not sizes and work.states > 1:
        return RecurrentSchedule(lanes=32, split=4, tile=32, history=4)  # for any number of states up to 256
    if work.states == 1:
        pieces = min(-(-MULTIPROCESSORS * 192 // work.lanes), work.steps // 256)
        segment = _in_pieces(work.steps, pieces)
        return RecurrentSchedule(lanes=min(ceil_power(work.width), 64), tile=32, history=4, segment=segment)
    ordered = sorted(_forwards(work), key=lambda made: made[0])
    took, schedule = next(made for made in ordered if _plain(made[1]) or fits(made[1]))
    spans = _spanned(work) if sizes else None
    if spans is None or spans[0] >= took:
        return schedule
    return next((made for made in (spans[1], replace(spans[1], stages=1)) if fits(made)), schedule)


# Threads that share a lane's time, one block a multiprocessor: microseconds around the walk; and, by how many lanes a block has at most,
# how many warps share its states and the nanoseconds of a step of 16 of them, of which with fewer states a part stays.
# Of more than a few lanes and tiles warps need not stand together between tiles.
SPAN_LAUNCH, SPAN_REST = 4.7, 0.42
SPANNED = ((6, 4, 10.0), (8, 2, 12.2), (12, 2, 15.2), (16, 2, 18.6))
SPAN_TILE, SPAN_STATES = 256, (8, 12, 16)
SPAN_FEW, SPAN_TILES = 4, 4
SHORT, SHORT_LANES = range(128, 257), 8  # steps, where a tile or two is all there is, and lanes


def _spanned(work: Work) -> tuple[float, RecurrentSchedule] | None:
    """As few lanes a block as one round of blocks allows, of any even number, with the microseconds that takes."""
    rows = -(-work.lanes // max(1, work.width))
    lanes = next((n for n in range(2, SPANNED[-1][0] + 1, 2) if rows * -(-work.width // n) <= MULTIPROCESSORS), 0)
    if not lanes or work.states not in SPAN_STATES:
        return None
    if lanes <= SHORT_LANES and work.steps in SHORT:
        # As many warps as there can be, of a few states each.
        return 0.0, RecurrentSchedule(lanes=SHORT_LANES, split=4, tile=128, span=16, history=16, stages=1)
    most, split, step = next(kind for kind in SPANNED if lanes <= kind[0])
    steps = -(-work.steps // SPAN_TILE) * SPAN_TILE
    took = SPAN_LAUNCH + 1e-3 * steps * step * (SPAN_REST + (1 - SPAN_REST) * work.states / 16)
    most = min(most, max(2, ceil_power(work.width)))
    stages = 2 if lanes > SPAN_FEW and work.steps >= SPAN_TILES * SPAN_TILE else 1
    return took, RecurrentSchedule(lanes=most, split=split, tile=SPAN_TILE, span=16, history=16, stages=stages)


def _plain(schedule: RecurrentSchedule) -> bool:
    """Whether every graph has kernels by it: blocks of other numbers of lanes have helpers, which not every graph allows."""
    return schedule.lanes & (schedule.lanes - 1) == 0


def in_order(plan: Plan, given: Mapping[str, Tensor]) -> RecurrentSchedule:
    """The forward's schedule whose threads take a lane's steps one after another, for these tensors."""
    sizes: dict[str, int] = {}
    for node in plan.inputs:
        if str(node.name) in given:
            sizes.update(zip(node.axes, given[str(node.name)].shape, strict=True))
    lanes = math.prod(sizes[a] for a in (*plan.grid, plan.lane))
    work = Work(lanes, sizes[plan.lane] // sizes.get(plan.lane_group, 1), sizes[plan.time], sizes[plan.state])
    return min((made for made in _forwards(work) if _plain(made[1])), key=lambda made: made[0])[1]


def _forwards(work: Work) -> Iterator[tuple[float, RecurrentSchedule]]:
    """Every kind that the states allow, and time whole or in segments halved again and again, with the microseconds it takes."""
    held = ceil_power(work.states)
    for kind in KINDS:
        states = min(kind.states, held)
        # A lane's threads are those of one warp at most, and a block has no more lanes than there are.
        split = min(32, held // states)
        lanes = min(max(1, kind.walking // split), ceil_power(work.width))
        if kind.states > held or held // split > 4 * kind.states or lanes * split < 32 or (kind.states == 1 and held > FEW_STATES):
            continue
        if lanes & (lanes - 1) and (lanes % 8 or lanes * split % 32):
            continue  # blocks of lanes by eights, and of whole warps
        blocks = -(-work.lanes // max(1, work.width)) * -(-work.width // lanes)
        if kind.once and (blocks > MULTIPROCESSORS or work.states < kind.least):
            continue
        if kind.most == 1:
            # Two tiles and rows of two operands, twice, and what copies bring of both.
            room = ceil_power(BLOCK_BYTES // (24 * lanes + 20 * held) + 1) // 2
        else:
            room = min(max(16, 4096 // lanes), 128 if held <= 16 else 64 if held <= 32 else 32 if held <= 128 else 16)
        tile = max(16, min(kind.steps, room))
        tile = min(tile, max(16, ceil_power(work.steps)))
        history = min(kind.history, tile)
        full = [MULTIPROCESSORS * here // blocks for here in range(1, kind.most + 1)]  # as many segments as a round has room for
        more = [n for n in full if n > 1 and work.steps // n >= SHORTEST_SEGMENT] if lanes & (lanes - 1) == 0 else []
        for number in (1, *more):
            segment = -(-work.steps // number // tile) * tile if number > 1 else 0
            yield _time(kind, work.steps, blocks, segment, lanes, tile, held // split / kind.states), RecurrentSchedule(
                lanes=lanes, split=split, tile=tile, history=history, segment=segment, stages=1, blocks=kind.blocks, helpers=kind.helpers)
    # Too few lanes for a warp.
    split = min(32, held, max(4, held // 16))
    yield math.inf, RecurrentSchedule(lanes=min(ceil_power(work.width), 32), split=split, tile=32, history=4)


def _time(kind: Kind, steps: int, blocks: int, segment: int, lanes: int, tile: int, more: float) -> float:
    """Microseconds of a forward: full rounds of blocks, then one of what is left. ``more`` states than a kind's take so much longer."""
    rounds, left = divmod(blocks * (-(-steps // segment) if segment else 1), MULTIPROCESSORS * kind.most)
    lane = LANE_STEP + LANE_TILE / tile
    step = rounds * max(kind.full * more, lane * lanes * kind.most)
    if left:
        here = -(-left // MULTIPROCESSORS)
        step += max(kind.step(here) * more, lane * lanes * here)
    once = 1e-3 * ((segment or steps) + AROUND * tile) * step * (1 + ROUND * max(0, rounds - (not left)))
    return once * TWICE + LAUNCHES if segment else once


# A backward's blocks of 256 threads with four states each: nanoseconds of a step with one of them a multiprocessor, with two, and with one
# of 512; and microseconds of segments' summaries, of a launch and for every million of lanes' steps.
BACK_ALONE, BACK_FULL, BACK_WIDE = 238.0, 400.0, 397.0
BACK_LAUNCH, BACK_SUMMARY = 12.0, 6.0
# Blocks of 128 threads for 32 lanes, two of which add up d_B and d_C together: nanoseconds of a step with one to three of them a
# multiprocessor. What they are estimated to take must be so much less than others, which hide more.
BACK_SMALL, SMALLER = (190.0, 242.0, 333.0), 1.07
# Blocks that go together find places less easily than one by one.
CLUSTERED = 90  # compute capability from which on they do


def _backward(graph: Graph, target: Target, sizes: Mapping[str, int], work: Work,
              fits: Callable[[RecurrentSchedule], bool]) -> RecurrentSchedule:
    """What is carried both ways and kept for a few steps fills the registers: two blocks of 256 threads a multiprocessor, or one."""
    clusters = bool(sizes) and target.kind == "cuda" and target.capability >= CLUSTERED
    if 8 < work.states <= 16 and work.lanes <= MULTIPROCESSORS * 16 and work.steps <= 256:
        # Too short for segments: few lanes a block, so that there are many; together they have room for their sums where checkpoints were.
        few = RecurrentSchedule(lanes=8, split=16, tile=32, history=8, stages=1, cluster=8)
        if clusters and work.width % 64 == 0 and fits(few):
            return few
        return RecurrentSchedule(lanes=min(ceil_power(work.width), 16), split=8, tile=32, history=8, stages=1)
    if clusters and 16 < work.states <= 32 and work.width % 128 == 0 and work.steps >= SHORTEST_SEGMENT:
        # Checkpoints every second tile are as much as one of u, and two blocks' sums fit there.
        number = min(MULTIPROCESSORS // max(1, work.lanes // 64), work.steps // SHORTEST_SEGMENT)
        apart = RecurrentSchedule(lanes=64, split=4, tile=32, history=4, segment=_in_pieces(work.steps, number, 128), stages=1,
                                  interval=64, cluster=2)
        if fits(apart):
            return apart
    if 64 < work.states <= 128 and sizes and work.width >= 32:
        # Sixteen states a thread: a warp has four lanes in place of two, which fold among themselves.
        number = MULTIPROCESSORS // max(1, -(-work.lanes // (32 * _walked(graph, sizes, 32, work, 16))))
        segment = _in_pieces(work.steps, min(number, work.steps // (192 if work.steps > 1024 else 64)), 32)
        many = RecurrentSchedule(lanes=32, split=8, tile=16, history=4, segment=segment, stages=1)
        if fits(many):
            return many
    states = 1 if work.states == 1 else 2 if work.states <= 4 else 4 if work.states <= 16 else 16 if 32 < work.states <= 64 else 8
    split = min(32, ceil_power(-(-work.states // states)))
    # With a state axis even one state has tiles and rows of its own.
    threads = 128 if 4 < work.states <= 8 else 256
    lanes = min(ceil_power(work.width), max(threads // split, 32 // split), 128 if graph.state else 256)
    # As many segments as one round of blocks has room for: a few blocks more would run by themselves.
    places = MULTIPROCESSORS * (4 if work.states == 1 else 2 if work.states <= 16 else 1)
    tile = 32 if work.states <= 32 else 16
    blocks = -(-work.lanes // (lanes * _walked(graph, sizes, lanes, work, tile)))
    one_each = MULTIPROCESSORS * 3 // 4 < blocks <= MULTIPROCESSORS
    if 8 < work.states <= 16 and one_each and lanes == 64 and work.steps < 1024:
        # One such block for each: as many warps as two have, of fewer states, take less than two segments and their summaries.
        return RecurrentSchedule(lanes=64, split=8, tile=32, history=8, stages=1)
    pieces = min(places // blocks, work.steps // (192 if work.steps > 1024 else 64))
    if 8 < work.states <= 16 and lanes == 64:
        # Where blocks leave much of a round empty, more segments and a second round may be shorter.
        more = [n for n in range(max(1, pieces) + 1, 5) if work.steps // n >= SHORTEST_SEGMENT]
        pieces = min((max(1, pieces), *more), key=lambda n: _back_time(work, blocks, _in_pieces(work.steps, n, 32)))
    segment = _in_pieces(work.steps, pieces, 32)
    if 8 < work.states <= 16 and lanes == 64 and sizes and work.width % 128 == 0 and not one_each:
        took = _back_time(work, blocks if work.steps >= 1024 else work.lanes // lanes, segment)
        wide = _wide_backward(work) if work.steps >= 1024 and not segment else None
        wide = wide or _wide_segments(work, took)
        took = took if wide is None else _wide_time(work, wide)
        small = _small_backward(work, took / SMALLER) if clusters else None
        if small is not None and fits(small):
            return small
        if wide is not None and fits(wide):
            return wide
    history = 16 if work.states == 1 else 8 if 4 < work.states <= 8 else 4 if work.states <= 64 or target.shared_bytes > 128 << 10 else 2
    return RecurrentSchedule(lanes=lanes, split=split, tile=tile, history=history, segment=segment, stages=1)


def _wide_backward(work: Work) -> RecurrentSchedule | None:
    """Blocks of 512 threads, one a multiprocessor, in place of two of 256: half the partial sums over lanes, and fewer still where a block
    walks the lane tiles that others would otherwise come after it for. None where the last round would be shorter with blocks of 256."""
    blocks, per_row = work.lanes // 128, work.width // 128
    rounds, left = divmod(blocks, MULTIPROCESSORS)
    if rounds + (left > 0) < 2 or 0 < left <= MULTIPROCESSORS // 2:
        return None
    rounds += left > 0
    walk = max(w for w in range(1, rounds + 1) if per_row % w == 0 and -(-blocks // (w * MULTIPROCESSORS)) * w == rounds)
    return RecurrentSchedule(lanes=128, split=4, tile=32, history=4, walk=walk, stages=1)


def _wide_segments(work: Work, within: float) -> RecurrentSchedule | None:
    """One round of such blocks, in as many segments as it has room for; None where that would take more than ``within`` microseconds."""
    blocks = work.lanes // 128
    least = 192 if work.steps >= 1024 else 64
    segment = _in_pieces(work.steps, min(MULTIPROCESSORS // blocks, -(-work.steps // least)), 32) if blocks <= MULTIPROCESSORS else 0
    wide = RecurrentSchedule(lanes=128, split=4, tile=32, history=4, segment=segment, stages=1)
    return wide if blocks <= MULTIPROCESSORS and _wide_time(work, wide) <= within else None


def _wide_time(work: Work, wide: RecurrentSchedule) -> float:
    rounds = 1 if wide.segment else -(-work.lanes // (wide.lanes * wide.walk * MULTIPROCESSORS)) * wide.walk
    once = 1e-3 * ((wide.segment or work.steps) + 32) * BACK_WIDE * rounds
    return once + (_summaries_time(work) if wide.segment else 0.0)


def _small_backward(work: Work, within: float) -> RecurrentSchedule | None:
    """One round of blocks of 32 lanes in clusters of two, where larger ones would leave much of the device empty: in as many segments as it
    has room for, if that takes less than ``within`` microseconds."""
    blocks, most = work.lanes // 32, MULTIPROCESSORS * len(BACK_SMALL)
    if blocks > most:
        return None
    segment = _in_pieces(work.steps, min(most // blocks, work.steps // SHORTEST_SEGMENT), 64)
    number = -(-work.steps // segment) if segment else 1
    # The last segment has no summary.
    took = 1e-3 * ((segment or work.steps) + 32) * BACK_SMALL[-(-blocks * number // MULTIPROCESSORS) - 1]
    took += BACK_LAUNCH + (_summaries_time(work) - BACK_LAUNCH) * (number - 1) / number if segment else 0.0
    small = RecurrentSchedule(lanes=32, split=4, tile=32, history=4, segment=segment, stages=1, cluster=2)
    return small if took <= within else None


def _back_time(work: Work, blocks: int, segment: int) -> float:
    """Microseconds of a backward with 16 states and blocks of 64 lanes; ``segment`` 0 keeps time whole."""
    number = -(-work.steps // segment) if segment else 1
    rounds, left = divmod(blocks * number, 2 * MULTIPROCESSORS)
    step = rounds * BACK_FULL + (0.0 if not left else BACK_ALONE if left <= MULTIPROCESSORS else BACK_FULL)
    once = 1e-3 * ((segment or work.steps) + 32) * step
    return once + (_summaries_time(work) if segment else 0.0)


def _summaries_time(work: Work) -> float:
    return BACK_LAUNCH + BACK_SUMMARY * 1e-6 * work.lanes * work.steps


def _walked(graph: Graph, sizes: Mapping[str, int], lanes: int, work: Work, tile: int) -> int:
    """Lane tiles that a block walks, for the memory of results as long as time that are summed over lanes
    (``launch_memory.bounded_walk``), beside the states that a forward has left before every tile."""
    from scanc.launch_memory import MEMORY_SHARE

    width = sizes.get(innermost_lane(graph), 0)
    if not width or not sizes.get(graph.time):
        return 1
    size = {a: sizes.get(a, 1) for a in graph.order}
    held = sum(math.prod(size[a] for a in axes) for axes in (*(n.axes for n in graph.inputs), *(o.axes for o in graph.outputs)))
    held += 2 * work.lanes * work.steps * work.states // tile
    slot = sum(math.prod(size[a] for a in o.axes) for o in graph.outputs if o.node.op == "sum" and graph.time in o.axes)
    # Partial results are float32, what is held most often half of it.
    return max(1, math.ceil(2 * slot * -(-width // lanes) / (MEMORY_SHARE * held)))


def _in_pieces(steps: int, pieces: int, of: int = 64) -> int:
    """Steps of a segment, a multiple of ``of``; 0 keeps time whole."""
    return -(-steps // pieces // of) * of if pieces > 1 else 0
