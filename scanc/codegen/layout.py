"""What a kernel takes and how its programs are numbered: shared by every backend and by the launcher.

A kernel's arguments are its buffers (a pointer and one stride per axis each), the sizes of all axes, and the launch numbers.
A partial result has leading axes beside its own, so that no two programs write one place:

    @segment   one entry per segment of time      (a sum over time, or a segment's own final state)
    @b         one entry per index of a grid axis that is summed over (per member of its group when the group is kept)
    @slot      one entry per lane slot             (a sum over lanes; of values with states one per cluster of slots, where those add
               theirs up among themselves)

They are added up in a fixed order after the kernel, which makes results the same from run to run.

A scan's checkpoints, its carries before every so many steps, are one more such buffer: ``@interval`` counts them. A forward can leave
them for its backward, which then need not walk time once more to have them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scanc.forms.plan import Plan, Store
from scanc.forms.segments import summary_graphs
from scanc.ir import Axes, Graph, Node, Output, Type
from scanc.schedule import AssociativeSchedule, RecurrentSchedule, Schedule, StepSchedule

STORAGE_OF_KIND = {"real": "float32", "complex": "complex64", "int": "int32", "bool": "bool"}


def storage_dtype(graph: Graph, output: Output) -> str:
    """The dtype of an output's tensor: its ``like`` input's, else float32 (complex64, …)."""
    if output.like:
        dtype = graph.input(output.like).type.dtype if graph.has_input(output.like) else ""
        if dtype in ("float16", "bfloat16", "float32", "float64") and output.node.kind == "real":
            return dtype
        if dtype in ("complex64", "complex128") and output.node.kind == "complex":
            return dtype
    return STORAGE_OF_KIND[output.node.kind]


@dataclass(frozen=True, eq=False)
class Buffer:
    """One tensor argument: ``leading`` axes, then ``axes``; complex ones are float pairs along a last axis of stride 1."""

    name: str
    role: str  # input, store, entry, checkpoint, brought
    axes: Axes
    leading: tuple[str, ...]
    dtype: str
    node: Node
    store: Store | None = None

    @property
    def written(self) -> bool:
        return self.role in ("store", "checkpoint")

    @property
    def rank(self) -> int:
        return len(self.leading) + len(self.axes)

    @property
    def kind(self) -> str:
        return self.node.kind


@dataclass(frozen=True)
class Mode:
    """How one launch treats segments and checkpoints.

    ``entries``  the scans' carries at each segment's start come from a buffer (``entry<scan>``) in place of the initial state
    ``combines``  with ``entries``: they come as all segments' summaries, of which the kernel makes its own segment's entry
    ``summary``  every segment starts afresh and leaves its own final states (a leading @segment axis)
    ``leaves``   the scans' carries before every so many steps are left in ``checkpoint<scan>``; 0 leaves none
    ``resumes``  the recomputed scans' carries at every tile's start are read from ``checkpoint<scan>``
    ``consumes``  with ``resumes``: for the last time, and partial results go where they were (codegen/in_place.py); of so many tiles
                  beside each other
    ``brings``   of form step: so many tensors, ``brought<i>``, are brought to the second-level cache for the kernels after this one
    ``neighbours``  the axis along which what is over time lies together in memory, where a kernel's threads follow it; "" for time
    """

    entries: bool = False
    summary: bool = False
    leaves: int = 0
    resumes: bool = False
    neighbours: str = ""
    combines: bool = False
    consumes: int = 0
    brings: int = 0

    @property
    def title(self) -> str:
        """What a kernel's first line says of it."""
        words = {"entries given": self.entries and not self.combines, "summaries given": self.combines, "segment summaries": self.summary,
                 f"checkpoints every {self.leaves} steps": self.leaves, "checkpoints given": self.resumes,
                 "partial results in their place": self.consumes, "more brought nearer": self.brings}
        return "".join(f", {word}" for word, holds in words.items() if holds)


def buffers(plan: Plan, mode: Mode) -> tuple[Buffer, ...]:
    """All tensor arguments, in order."""
    found = [Buffer(str(n.name), "input", n.axes, (), n.type.dtype, n) for n in plan.inputs]
    for store in plan.stores:
        leading = leading_axes(plan, store, mode)
        dtype = STORAGE_OF_KIND[store.value.kind] if leading else storage_dtype(plan.graph, store.output)
        found.append(Buffer(store.name, "store", store.axes, leading, dtype, store.value, store))
    if mode.combines:
        for summary in summary_graphs(plan)[-1 if mode.resumes else 0:]:
            found += [Buffer(o.name, "entry", o.axes, ("@segment",), STORAGE_OF_KIND[o.node.kind], o.node) for o in summary.graph.outputs]
    elif mode.entries:
        for scan in plan.main if mode.resumes else plan.scans:
            axes = tuple(a for a in scan.axes if a != plan.time)
            found.append(Buffer(entry_name(plan, scan), "entry", axes, ("@segment",), STORAGE_OF_KIND[scan.kind], scan))
    if mode.leaves or mode.resumes:
        names = checkpoint_names(len(plan.scans))
        for i, scan in enumerate(plan.recomputed if mode.resumes else plan.main):
            role = "entry" if mode.resumes else "checkpoint"
            found.append(Buffer(names[i], role, checkpoint_axes(plan, scan), ("@interval",), STORAGE_OF_KIND[scan.kind], scan))
    for name in brought_names(mode.brings):
        found.append(Buffer(name, "brought", (), ("@whole", "@byte"), "uint8", Node("input", (), Type((), "int"))))
    return tuple(found)


def brought_names(count: int) -> tuple[str, ...]:
    """Of tensors that a kernel brings nearer for others: contiguous, given as all their bytes in a row (1, bytes), whose first stride is
    their number."""
    return tuple(f"brought{i}" for i in range(count))


def carry_floats(plan: Plan, scans: Sequence[Node], sizes: Mapping[str, int]) -> int:
    """Floats of all these scans' carries at one step."""
    return sum(math.prod(sizes[a] for a in s.axes if a != plan.time) * (2 if s.kind == "complex" else 1) for s in scans)


def checkpoint_names(count: int) -> tuple[str, ...]:
    """Of the checkpoints of ``count`` scans, the forward's main ones, which are the backward's recomputed ones."""
    return tuple(f"checkpoint{i}" for i in range(count))


def checkpoint_axes(plan: Plan, scan: Node) -> Axes:
    """A scan's own axes but for time, lanes last: a block's threads then write and read neighbours."""
    return tuple(sorted((a for a in scan.axes if a != plan.time), key=lambda a: a == plan.lane))


def checkpoint_size(plan: Plan, axes: Axes, sizes: Mapping[str, int], every: int) -> tuple[int, ...]:
    """The size of a scan's checkpoints over ``axes``, one before every so many steps."""
    return -(-sizes[plan.time] // every), *(sizes[a] for a in axes)


@dataclass(frozen=True)
class KernelSource:
    """Generated source and what a loader needs to know to call it.

    ``constants`` are sizes fixed in the source (the state axis); ``scratch_floats`` float32 words of global scratch per program and
    segment block, 0 where the kernel needs none.
    """

    name: str
    language: str
    text: str
    plan: Plan
    schedule: Schedule
    mode: Mode
    buffers: tuple[Buffer, ...]
    lanes: int


def entry_name(plan: Plan, scan: Node) -> str:
    return f"entry{plan.scans.index(scan)}"


def leading_axes(plan: Plan, store: Store, mode: Mode) -> tuple[str, ...]:
    over_segments = ("@segment",) if plan.time and (store.kind == "sum" or (store.kind == "final" and mode.summary)) else ()
    return (*over_segments, *(f"@{a}" for a in store.grid), *(("@slot",) if store.lane else ()))


@dataclass(frozen=True)
class Geometry:
    """The numbers of one launch. ``programs`` = segments × grid × groups × slots, slots running fastest. ``cluster`` neighbouring slots,
    which have as many lane tiles each, add up what they sum over lanes of values with states."""

    segments: int
    segment: int
    per_group: int
    groups: int
    blocks: int
    slots: int
    grid: tuple[int, ...]
    cluster: int = 1

    @property
    def programs(self) -> int:
        return self.segments * math.prod(self.grid) * self.groups * self.slots

    def launch(self) -> tuple[int, ...]:
        """The integers every kernel takes, in this order: see LAUNCH."""
        return (self.programs, self.segments, self.segment, self.per_group, self.blocks, self.slots)


LAUNCH = ("programs", "segments", "segment", "per_group", "blocks", "slots")


def geometry(plan: Plan, schedule: Schedule, sizes: Mapping[str, int], lanes: int) -> Geometry:
    """How the programs of a launch divide the sizes."""
    length = sizes[plan.time] if plan.time else 1
    wanted = schedule.segment if isinstance(schedule, RecurrentSchedule | AssociativeSchedule) else 0
    walk = schedule.walk if isinstance(schedule, RecurrentSchedule | AssociativeSchedule) else 1
    segment = wanted or max(length, 1)
    segments = max(1, -(-length // segment))
    groups = sizes[plan.lane_group] if plan.lane_group else 1
    per_group = (sizes[plan.lane] if plan.lane else 1) // max(groups, 1)
    blocks = -(-per_group // lanes)
    rows = {walked_axis(plan): schedule.rows or schedule.walk} if isinstance(schedule, StepSchedule) else {}
    grid = tuple(-(-sizes[a] // rows.get(a, 1)) for a in plan.grid)
    return Geometry(segments, segment, per_group, groups, blocks, -(-blocks // walk), grid, _cluster(plan, schedule, blocks))


def _cluster(plan: Plan, schedule: Schedule, blocks: int) -> int:
    """As many of a schedule's slots as go together: of so many blocks' lane tiles each has as many as any other."""
    if not isinstance(schedule, RecurrentSchedule) or not (plan.recomputed and any(in_rows(plan, s) for s in plan.stores)):
        return 1
    return max(c for c in (1, 2, 4, 8) if c <= schedule.cluster and (c == 1 or blocks % (schedule.walk * c) == 0))


def in_rows(plan: Plan, store: Store) -> bool:
    """Whether a result is as long as time, of every state, and summed over lanes: rows of steps, a row a state."""
    return store.kind == "value" and store.lane and plan.has(store.value, plan.state)


def walked_axis(plan: Plan) -> str:
    """The axis along which one thread of a step takes several: lanes, which share what they have in common; or positions along the first
    axis of the grid, where those share what is read for each lane and state."""
    first = plan.grid[0] if plan.grid else ""
    shared = [n for n in plan.inputs if {plan.lane, plan.state} <= set(n.axes) and first not in n.axes]
    return first if first and plan.state and shared and not plan.grid_group(first) else plan.lane


@dataclass(frozen=True)
class Total:
    """What a result's partial results, so many of so many floats each, are added up to: a tensor of ``dtype``. They are one contiguous
    tensor but where ``spread`` says how they lie."""

    parts: int
    elements: int
    dtype: str
    spread: Spread | None = None


@dataclass(frozen=True)
class Spread:
    """How partial results lie: ``part`` floats from one to the next; of one, ``outer`` (size, floats apart) for each axis before the last,
    and of that axis' ``length`` elements every ``tile`` are ``step`` floats apart from each other; ``many`` such tiles are ``beside``
    floats from each other, and those from the next so many ``apart``."""

    part: int
    outer: tuple[tuple[int, int], ...]
    length: int
    tile: int
    apart: int
    many: int = 1
    beside: int = 0
    step: int = 1


def leading_sizes(plan: Plan, store: Store, mode: Mode, shape: Geometry, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Sizes of a buffer's leading axes."""
    result = []
    for axis in leading_axes(plan, store, mode):
        if axis == "@segment":
            result.append(shape.segments)
        elif axis == "@slot":
            slots = shape.slots // shape.cluster if in_rows(plan, store) else shape.slots
            result.append(slots * (1 if plan.lane_group in store.axes else shape.groups))
        else:
            name = axis[1:]
            group = plan.grid_group(name)
            result.append(sizes[name] // sizes[group] if group and group in store.axes else sizes[name])
    return tuple(result)
