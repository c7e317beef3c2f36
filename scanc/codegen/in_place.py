"""Partial results in the place of the checkpoints that a backward resumes from, where those are read for the last time.

A block reads its lanes' states before a tile of time, one row of memory for each state n, and is then their only user. What it sums over
these lanes, as long as time and of every state (d_B and d_C), is as many rows of the tile's steps:

    checkpoints, before tile τ, state n    [ lane 0 … lane LANES - 1 | lane LANES … ]
    then                                   [ d_B of τ's steps | d_C of τ's steps | free | ]

So such sums take no memory of their own. Between tiles they lie as far apart as checkpoints do, within a tile steps are neighbours. All
of it is a matter of strides but for the latter, which a kernel is told by ``Mode.consumes``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scanc.codegen.layout import KernelSource, Mode, Spread, checkpoint_axes, checkpoint_names, geometry, leading_axes, storage_dtype
from scanc.forms.plan import Plan, Store
from scanc.ir import Axes, Graph
from scanc.schedule import RecurrentSchedule, Schedule

MOST_OUTER = 3  # axes before time of what is summed: as many as the kernel that adds parts up divides by


@dataclass(frozen=True)
class InPlace:
    """Where one result's partial results are: in which tensor, from which float on, by which ``strides`` of leading and own axes a kernel
    finds them (a step's is what tiles are apart, shared out among their steps), and how they lie."""

    checkpoint: str
    offset: int
    strides: tuple[int, ...]
    spread: Spread

    def view(self, checkpoints: Tensor) -> Tensor:
        """What a kernel is given: its address and strides. It has one element, as no strides say how the others lie."""
        return checkpoints.as_strided((1,) * len(self.strides), self.strides, checkpoints.storage_offset() + self.offset)

    def read(self, checkpoints: Tensor, shape: Sequence[int]) -> Tensor:
        """The partial results, dense and of this shape."""
        s, elements = self.spread, math.prod(size for size, _ in self.spread.outer) * self.spread.length
        at = torch.arange(elements, device=checkpoints.device)
        row, i = at // s.length, at % s.length
        index = i // s.tile // s.many * s.apart + i // s.tile % s.many * s.beside + i % s.tile * s.step
        for size, stride in reversed(s.outer):
            index, row = index + row % size * stride, row // size
        parts = torch.arange(math.prod(shape) // elements, device=checkpoints.device)[:, None] * s.part
        memory = checkpoints.as_strided((checkpoints.numel() - self.offset,), (1,), checkpoints.storage_offset() + self.offset)
        return memory[parts + index].view(tuple(shape))


def in_place(plan: Plan, schedule: Schedule, given: Mapping[str, Tensor], sizes: Mapping[str, int]) -> dict[str, InPlace]:
    """By the names of results where their partial results go, in a backward that resumes from checkpoints among ``given``; none where
    they do not fit there, or would not lie as this page says."""
    name, rows = checkpoint_names(1)[0], _rows(plan)
    if not isinstance(schedule, RecurrentSchedule) or not plan.recomputed or not rows or name not in given:
        return {}
    scan, checkpoints = plan.recomputed[0], given[name]
    axes = checkpoint_axes(plan, scan)
    if scan.kind != "real" or plan.state not in axes or axes[-1:] != (plan.lane,) or not checkpoints.is_contiguous():
        return {}
    shape, tile, length = geometry(plan, schedule, sizes, schedule.lanes), schedule.tile, sizes[plan.time]
    some = max(1, schedule.interval // tile)  # tiles from one checkpoint to the next, whose sums share its place
    apart, slot = checkpoints.stride(0), schedule.lanes * schedule.walk * shape.cluster
    last = shape.per_group - (shape.slots // shape.cluster - 1) * slot  # lanes of the last slot, or the last cluster of them
    least = min(schedule.lanes * shape.cluster, last)
    fits = len(rows) * tile * some <= least and length % 4 == tile % 4 == apart % (tile * some) == 0
    fits = fits and all(math.prod(sizes[a] for a in s.axes) < 1 << 31 for s in rows)
    if not fits or (shape.groups > 1 and last < slot and any(plan.lane_group not in s.axes for s in rows)):
        return {}
    floats = {a: checkpoints.stride(1 + i) for i, a in enumerate(axes)} | ({plan.lane_group: shape.per_group} if plan.lane_group else {})
    # One part, which is written as it is.
    whole = shape.slots == shape.cluster and any(storage_dtype(plan.graph, s.output) == "float32" for s in rows)
    if whole or any(a not in floats for s in rows for a in s.axes[:-1]):
        return {}
    sums = _sums(plan, schedule, sizes, name, floats, apart) if 2 * len(rows) * tile * some <= least else {}
    many, found = 2 * some if sums else some, dict[str, InPlace]()
    for i, s in enumerate(rows):
        outer = tuple((sizes[a], floats[a]) for a in s.axes[:-1])
        spread = Spread(slot, outer, length, tile, many // some * apart, many, len(rows) * tile)
        strides = slot, *(stride for _, stride in outer), apart // (some * tile)
        found[s.name] = InPlace(name, (many // some - 1) * apart + i * tile, strides, spread)
    return found | sums


def _sums(
    plan: Plan, schedule: RecurrentSchedule, sizes: Mapping[str, int], name: str, floats: Mapping[str, int], apart: int
) -> dict[str, InPlace]:
    """Sums over time of lanes' own values, one for each segment, which a block stores when it has read all its checkpoints: in every other
    of those, where what two tiles (or the tiles of two) sum over lanes shares the place of one; as many such sums as that has room for."""
    stores = [s for s in plan.stores if s.kind == "sum" and plan.lane in s.axes]
    every = max(schedule.interval, schedule.tile)
    tiles, each = -(-sizes[plan.time] // every), schedule.segment // every
    alike = all(s.value.kind == "real" and set(s.axes) <= {plan.lane, plan.state} and all(sizes[a] == 1 for a in s.grid) for s in stores)
    stated, plain = ([s for s in stores if (plan.state in s.axes) == has] for has in (True, False))
    # Parts are added up by fours of elements.
    alike = alike and all(len(s.axes) == 1 or sizes[s.axes[-1]] % 4 == 0 for s in stores)
    if not stores or not alike or not each or tiles <= each or tiles % 2 or each % 2:
        return {}
    places = (tiles - (tiles - 1) // each * each) // 2  # of the last segment, which is the shortest
    stated = stated[:places]
    if len(plain) > sizes[plan.state] or len(stated) == places:
        plain = []
    found = {}
    for i, s in enumerate((*stated, *plain)):
        tile, row = (2 * i, 0) if s in stated else (2 * len(stated), i - len(stated))
        strides = (*(each * apart if a == "@segment" else 0 for a in leading_axes(plan, s, Mode())), *(floats[a] for a in s.axes))
        *outer, axis = s.axes
        spread = Spread(each * apart, tuple((sizes[a], floats[a]) for a in outer), sizes[axis], sizes[axis], 0, step=floats[axis])
        found[s.name] = InPlace(name, tile * apart + row * floats[plan.state], strides, spread)
    return found


def lend(
    source: KernelSource, sizes: Mapping[str, int], summary: Graph, combine: Graph, whole: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Memory of results, ``whole``, for segments' summaries and for the carries at segments' starts, by name; {} where there is none to do.

    Summaries are read before any result is written, and take the start of one. A carry is read by the block that starts from it alone,
    before it writes anything, and takes the first of what that block will write, of another result.
    """
    plan, segment = source.plan, source.schedule.segment if isinstance(source.schedule, RecurrentSchedule) else 0
    over = [s for s in plan.stores if s.name in whole and s.kind == "value" and {plan.lane, plan.time} <= set(s.axes)]
    if len(over) < 2 or any(o.node.kind != "real" for o in (*summary.outputs, *combine.outputs)):
        return {}, {}
    segments = -(-sizes[plan.time] // segment)
    ends = {o.name: (segments, *(sizes[a] for a in o.axes)) for o in summary.outputs}
    starts = {o.name: o.axes[1:] for o in combine.outputs}
    return _dense(whole[over[0].name], ends), _in_rows(plan, over[1], whole[over[1].name], starts, sizes, segment)


def _dense(result: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    floats, start, found = _floats(result), 0, {}
    for name, shape in shapes.items():
        if start + math.prod(shape) > floats.numel():
            return {}
        found[name] = floats[start : start + math.prod(shape)].view(shape)
        start += math.prod(shape)
    return found


def _in_rows(
    plan: Plan, store: Store, result: Tensor, carries: Mapping[str, Axes], sizes: Mapping[str, int], segment: int
) -> dict[str, Tensor]:
    size, length, each = result.element_size(), sizes[plan.time], sizes[plan.state] if plan.state else 1
    strides = {a: result.stride(i) * size for i, a in enumerate(store.axes)}  # bytes
    last = (length - (length - 1) // segment * segment) * size
    along = strides.pop(plan.time) == size and all(s % 4 == 0 for s in (*strides.values(), segment * size))
    if not along or 4 * each * len(carries) > last or not {a for axes in carries.values() for a in axes} <= {*strides, plan.state}:
        return {}
    floats, found = _floats(result), {}
    for i, (name, axes) in enumerate(carries.items()):
        apart = (segment * size // 4, *(1 if a == plan.state else strides[a] // 4 for a in axes))
        found[name] = floats.as_strided((-(-length // segment), *(sizes[a] for a in axes)), apart, floats.storage_offset() + i * each)
    return found


def _floats(result: Tensor) -> Tensor:
    """A dense result's memory as float32."""
    words = result.numel() * result.element_size() // 4
    return result.as_strided((words * 4 // result.element_size(),), (1,)).view(torch.float32)


def _rows(plan: Plan) -> list[Store]:
    """The sums over lanes, as long as time and of every state, that alone are summed so: all of them, or none where one is otherwise."""
    values = [s for s in plan.stores if s.kind == "value"]
    found = [s for s in values if s.lane and plan.has(s.value, plan.state)]
    alike = all(s.value.kind == "real" and s.axes[-1:] == (plan.time,) and plan.lane not in s.axes and len(s.axes) <= MOST_OUTER + 1
                and leading_axes(plan, s, Mode()) == ("@slot",) for s in found)
    return found if alike and not any(s.grid for s in values) else []
