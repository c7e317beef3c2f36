"""How much memory a launch may take beside inputs and results: lane tiles that a block walks, heads that one launch takes.

Results that several programs share come back as partial results with leading axes (codegen/layout.py). Their memory is bounded twice: a
block walks as many lane tiles one after another as that takes and the device's places allow, and where a result as long as time is summed
over a grid axis (dB and dC over heads), the kernel is launched for a few indices of that axis at a time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scanc.codegen.layout import STORAGE_OF_KIND, Geometry, KernelSource, Mode, carry_floats, geometry, leading_sizes, storage_dtype
from scanc.forms.plan import Plan
from scanc.schedule import AssociativeSchedule, RecurrentSchedule, Schedule

# What a kernel keeps beside its inputs and results may take this share of them.
MEMORY_SHARE = 0.15
# Of that, what partial results of several heads may take before the heads are taken in turns.
PARTIAL_SHARE = 0.07
# Memory is not saved at the cost of more than so many times the time.
LONGER = 1.1
# Below this many bytes partial results are not worth saving: a small problem needs all its blocks side by side.
PARTIAL_FLOOR = 2 << 20

Kept = Callable[[Plan, Schedule, Geometry, int], int]  # floats of global memory a launch keeps


@dataclass(frozen=True)
class Piece:
    """A range of one axis (and of its group axis) that one launch computes."""

    axis: str
    start: int
    size: int
    group: str
    group_start: int

    def cut(self, x: Tensor, axes: Sequence[str]) -> Tensor:
        """The part of x that belongs to the piece; x itself where it has neither axis."""
        if self.axis in axes:
            x = x.narrow(axes.index(self.axis), self.start, self.size)
        if self.group and self.group in axes:
            x = x.narrow(axes.index(self.group), self.group_start, 1)
        return x


def pieces_of(source: KernelSource, given: Mapping[str, Tensor], sizes: Mapping[str, int], shape: Geometry) -> Iterator[Piece | None]:
    """One launch for everything (None), or pieces of the grid axis that long results are summed over."""
    plan = source.plan
    stores = [b.store for b in source.buffers if b.store is not None]
    summed = (a for store in stores if store.kind == "value" for a in store.grid)
    axis = next((a for a in summed if _can_be_cut(plan, a)), "")
    if not axis:
        yield None
        return
    group = plan.grid_group(axis)
    members = sizes[axis] // (sizes[group] if group else 1)
    at_once = _affordable(source, given, sizes, shape, axis)
    if at_once >= members:
        yield None
        return
    for start in range(0, sizes[axis], members):
        for first in range(start, start + members, at_once):
            yield Piece(axis, first, min(at_once, start + members - first), group, start // members)


def _can_be_cut(plan: Plan, axis: str) -> bool:
    """Whether a piece of a grid axis computes what the whole does of it: no value says where along it (or in which group) it is, and
    every result has its own for each index, which pieces would else write or add up several times."""
    asked = {axis, plan.grid_group(axis)}
    counted = any(n.op in ("index", "size") and n.attrs["axis"] in asked for n in plan.graph.nodes())
    return axis in plan.grid and not counted and all(axis in store.value.axes for store in plan.stores)


def _affordable(source: KernelSource, given: Mapping[str, Tensor], sizes: Mapping[str, int], shape: Geometry, axis: str) -> int:
    """How many indices of ``axis`` one launch may take before its partial results outgrow their share of memory."""
    group = source.plan.grid_group(axis)
    in_all = sum(given[b.name].numel() * given[b.name].element_size() for b in source.buffers if b.role == "input")
    one = 0
    for b in source.buffers:
        if b.store is None:
            continue
        own = math.prod(sizes[a] for a in b.axes)
        in_all += own * getattr(torch, b.dtype).itemsize
        if f"@{axis}" in b.leading:
            leading = leading_sizes(source.plan, b.store, source.mode, shape, sizes)
            others = math.prod(s for name, s in zip(b.leading, leading, strict=True) if name != f"@{axis}")
            one += others * own // (sizes[group] if group and group in b.axes else 1) * getattr(torch, b.dtype).itemsize
    return max(1, int(max(PARTIAL_SHARE * in_all, PARTIAL_FLOOR) / max(one, 1)))


def bounded_walk(
    plan: Plan, schedule: Schedule, given: Mapping[str, Tensor], sizes: Mapping[str, int], kept: Kept, *, resumes: bool = False,
    free: Collection[str] = (), places: int = 0,
) -> Schedule:
    """The schedule with so long a ``walk`` that what the kernel keeps beside its results stays within its share of memory.

    That is partial results, one for each slot of lanes, states kept for a second walk, and the states that segments start from. A block
    that walks several lane tiles uses the first two again for each. One that ``resumes`` from given checkpoints keeps no states itself.
    Partial results of those that are named ``free`` take none. Of a device with room for so many programs side by side, ``places``, no
    more is left empty than costs a tenth of the time; then memory is what that leaves.
    """
    if not isinstance(schedule, RecurrentSchedule | AssociativeSchedule):
        return schedule
    shape = geometry(plan, schedule, sizes, schedule.lanes)
    state = sizes[plan.state] if plan.state else 1
    # A cotangent d_y counts for the result y as well, which a caller of the backward holds too.
    twice = {n for n in given if n.startswith("d_")} if plan.recomputed else set()
    in_all = sum(t.numel() * t.element_size() * (2 if name in twice else 1) for name, t in given.items())
    bytes_of = {s: math.prod(sizes[a] for a in s.axes) * getattr(torch, STORAGE_OF_KIND[s.value.kind]).itemsize for s in plan.stores}
    for store in plan.stores:
        in_all += math.prod(sizes[a] for a in store.axes) * getattr(torch, storage_dtype(plan.graph, store.output)).itemsize
    mode = Mode(entries=shape.segments > 1)
    entries = 4 * carry_floats(plan, plan.main if resumes else plan.scans, sizes) * shape.segments if shape.segments > 1 else 0
    affordable = max(MEMORY_SHARE * in_all, PARTIAL_FLOOR) - entries
    shortest, least, best = -(-shape.programs // places) if places else 0, 0, schedule
    for longer in range(1, shape.slots + 1):
        tried = dataclasses.replace(schedule, walk=schedule.walk * longer)
        shape = geometry(plan, tried, sizes, schedule.lanes)
        if places and longer * -(-shape.programs // places) > LONGER * shortest:
            continue
        leading = {s: leading_sizes(plan, s, mode, shape, sizes) for s in plan.stores}
        partial = sum(math.prod(leading[s]) * size for s, size in bytes_of.items() if leading[s] and s.name not in free)
        in_all = partial + (0 if resumes else 4 * kept(plan, tried, shape, state))
        if in_all <= affordable:
            return tried
        if in_all < least or longer == 1:
            least, best = in_all, tried
    return best
