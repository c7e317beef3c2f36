"""Running the chunked form: which kernels a call needs, the memory between them, and their launches (see triton_chunked.py)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from scanc.codegen import triton_chunked_early as ahead
from scanc.codegen import triton_chunked_pairs as pairing
from scanc.codegen import triton_chunked_parts as divided
from scanc.codegen import triton_chunked_reads as reads
from scanc.codegen import triton_chunked_scores as scoring
from scanc.codegen import triton_chunked_sums as adding
from scanc.codegen import triton_chunked_walk as walks
from scanc.codegen.build_triton import available, kernel_of
from scanc.codegen.layout import storage_dtype
from scanc.codegen.triton_chunked_launch import (
    Kernel,
    Layout,
    are_matrices,
    bulk_copies,
    pieces,
    precision,
    side_stream,
    tiles_fit,
    wanted,
)
from scanc.codegen.triton_chunked_source import ChunkSource, Shape
from scanc.codegen.triton_common import ceil_power
from scanc.codegen.triton_launch import Launcher
from scanc.compiler import Executable, prepare
from scanc.errors import BackendUnavailable, UnsupportedForm
from scanc.forms.chunked import ChunkPlan, ChunkStore
from scanc.forms.chunked_recognise import ChunkPartition, chunk_partition, chunk_plan
from scanc.forms.partition import has_scans
from scanc.ir import Axes, Graph
from scanc.reference import axis_sizes, evaluate
from scanc.schedule import ChunkedSchedule
from scanc.target import Target

Make = Callable[[], ChunkSource]
# Of so many segments each makes what it starts from of the summaries before it; of more, a kernel passes it from one to the next.
COMBINED = 8


class ChunkedExecutable(Executable):
    """A graph of the head class compiled in the chunked form; see Executable. Raises UnsupportedForm where it is not of the class."""

    schedule: ChunkedSchedule
    walking, passing = walks.Walking, walks.Passing   # what prints the kernels that walk time

    @staticmethod
    def of(graph: Graph, target: Target, schedule: ChunkedSchedule) -> ChunkedExecutable:
        """The program of the graph's class: decays of a head, or of a key."""
        from scanc.codegen.triton_chunked_keyrun import KeyedExecutable

        made = ChunkedExecutable(graph, target, schedule)
        return KeyedExecutable(graph, target, schedule) if made.chunk_plan.keyed else made

    def __init__(self, graph: Graph, target: Target, schedule: ChunkedSchedule) -> None:
        if target.backend != "triton":
            raise UnsupportedForm(op=graph.name, form="chunked", forms="recurrent",
                                  reason=f"the {target.backend} backend has no skeleton for it")
        self.graph, self.target, self.schedule = graph, target, schedule
        self.prepared = prepare(graph)
        self.parts: ChunkPartition = chunk_partition(self.prepared)  # type: ignore[assignment]
        if self.parts.before is not None and has_scans(self.parts.before):
            raise UnsupportedForm(op=graph.name, form="chunked", forms="recurrent",
                                  reason="a recurrence needs another's result summed over heads")
        self.chunk_plan: ChunkPlan = chunk_plan(self.parts.kernel)
        self._bound: dict[tuple[Any, ...], _Bound] = {}  # type: ignore[assignment]
        self._lock = threading.Lock()
        self._sources: dict[tuple[str, Shape], ChunkSource] = {}
        self._loaded: dict[tuple[str, Shape], Kernel] = {}

    @cached_property
    def interval(self) -> int:
        """No checkpoints: the states at chunks' borders are made anew, which costs a walk of matrix products."""
        return 0

    def leaves_for(self, backward: Executable) -> bool:
        return False

    # -- sources --------------------------------------------------------------------------------------------------------------

    def kinds(self, segments: bool) -> list[str]:
        """Which kernels run, in order."""
        plan = self.chunk_plan
        kinds = ["early"]
        for i in range(len(plan.scans)):
            kinds += [f"summary {i}", f"pass {i}"] if segments else []
            kinds += [] if plan.walks else [f"states {i}", *([f"states {i} entries", f"states {i} combines"] if segments else [])]
        if plan.walks:
            return [*kinds, "walk", *(["walk entries", "walk combines"] if segments else [])]
        kinds += divided.launched(plan, self.schedule)
        late = ["late"] if any(plan.comes_late(s) for s in plan.stores) else []
        soon, after = (["sums"] if self._summed(False) else []), (["sums late"] if self._summed(True) else [])
        return [*kinds, *soon, *late, *after]

    def make(self, kind: str, shape: Shape) -> ChunkSource:
        """The source of one kernel."""
        key = (kind, shape)
        if key not in self._sources:
            self._sources[key] = self._make(kind, shape)
        return self._sources[key]

    def _make(self, kind: str, shape: Shape) -> ChunkSource:
        word, *rest = kind.split()
        plan, schedule, title = self.chunk_plan, self.schedule, f"{self.graph.name}: form chunked, {kind}, target {self.target}"
        how = {"entries": "entries" in rest, "combines": "combines" in rest}
        scan = plan.scans[int(rest[0])] if rest and rest[0].isdigit() else plan.scans[0]
        made: dict[str, Make] = {
            "walk": lambda: walks.walk(plan, schedule, shape, title, **how, by=self.walking),
            "summary": lambda: walks.summary(plan, schedule, shape, scan, title, by=self.walking),
            "pass": lambda: walks.passing(plan, schedule, shape, scan, title, by=self.passing),
            "states": lambda: walks.states(plan, schedule, shape, scan, title, **how, by=self.walking),
            "sums": lambda: adding.sums(plan, schedule, shape, self._summed("late" in rest, shape.lone), title),
            **self._beside_walks(shape, title),
        }
        return made[word]()

    def _beside_walks(self, shape: Shape, title: str) -> dict[str, Make]:
        """What makes the kernels that do not walk time, by their first word."""
        plan, schedule = self.chunk_plan, self.schedule
        return {
            "early": lambda: ahead.early(plan, schedule, shape, title),
            "late": lambda: ahead.late(plan, schedule, shape, title),
            "pairs": lambda: pairing.pairs(plan, schedule, shape, title),
            "chunks": lambda: reads.chunks(plan, schedule, shape, title),
            "totals": lambda: reads.totals(plan, schedule, shape, title),
            "borders": lambda: reads.borders(plan, schedule, shape, title),
        }

    def all_sources(self, shape: Shape) -> list[ChunkSource]:
        """Every kernel that a problem of these sizes runs."""
        single = replace(shape, heads=1)
        walking = ("walk", "summary", "states")
        return [self.make(k, shape if k.split()[0] in walking else single) for k in self.kinds(self.schedule.segment > 0)]

    def shape_of(self, sizes: Mapping[str, int]) -> Shape:
        """The sizes fixed in sources; heads side by side are as many as divide a group's."""
        plan = self.chunk_plan
        heads = math.gcd(self.schedule.heads, max(1, self._per_group(sizes)))
        rows, columns = sizes.get(plan.rows, 64), sizes.get(plan.columns, 64)
        whole = all(size == max(16, ceil_power(size)) for size in (rows, columns))
        bulk = bulk_copies(self.target) and not plan.mirrored and (plan.walks or whole)
        # A tile of a matrix of all steps must not reach over an end of time.
        even = sizes.get(plan.time, 0) % (self.schedule.chunk * divided.span(plan, self.schedule)) == 0
        return Shape(rows, columns, heads, self._operands, precision(self.target), bulk, bulk and whole and even and not plan.keyed)

    def _with_bulk(self, layout: Layout, tensors: Mapping[str, Tensor]) -> Layout:
        """The layout, without tensor descriptors where they do not fit the tensors, or with those that programs make."""
        bulk = layout.shape.bulk and tiles_fit(self.chunk_plan, self._tiled, tensors)
        given = bulk and layout.shape.given and are_matrices(self.chunk_plan, self._tiled, tensors)
        shape = replace(layout.shape, bulk=bulk, given=given)
        return layout if shape == layout.shape else replace(layout, shape=shape, single=replace(layout.single, bulk=bulk, given=given))

    @cached_property
    def _tiled(self) -> list[tuple[str, tuple[str, ...]]]:
        """Inputs and results that kernels take a tile of steps at a time, with their axes."""
        plan = self.chunk_plan
        found = [(str(n.name), n.axes) for n in plan.inputs]
        found += [(s.name, s.output.axes) for s in plan.stores if not s.final and not self._partial(s)]
        return [(name, axes) for name, axes in found if plan.time in axes and axes[-1] in (plan.rows, plan.columns)]

    @property
    def _operands(self) -> str:
        """The dtype of products' operands; the interpreter multiplies no 16-bit ones."""
        return "float32" if self.target.arch == "interpret" else self.chunk_plan.dtype

    def _groups(self, sizes: Mapping[str, int]) -> int:
        plan = self.chunk_plan
        found = [sizes[g] for g, parent in plan.graph.groups.items() if parent == plan.head and g in sizes]
        return max(1, *found, 1)

    def _per_group(self, sizes: Mapping[str, int]) -> int:
        return sizes.get(self.chunk_plan.head, 1) // self._groups(sizes)

    def source(self, state: int = 16, mode: Any = None, schedule: Any = None) -> ChunkSource:  # type: ignore[override]
        """The main kernel, for ``state`` columns and 64 rows."""
        kind = next(k for k in self.kinds(False) if k in ("walk", "chunks", "totals"))
        return self.make(kind, replace(self.shape_of({self.chunk_plan.columns: state}), heads=1))

    @property
    def sources(self) -> tuple[ChunkSource, ...]:  # type: ignore[override]
        """Every kernel made so far; those for 64 rows and 128 columns when none was."""
        return tuple(self._sources.values()) or tuple(self.all_sources(self.shape_of({self.chunk_plan.columns: 128})))

    # -- running --------------------------------------------------------------------------------------------------------------

    def bind(self, *mode: Any, **modes: Any) -> _Bound:  # type: ignore[override]
        """There is one mode: segments are cut inside."""
        return _Bound(self)

    @property
    def allocated(self) -> frozenset[str]:
        return frozenset(o.name for o in self.parts.kernel.outputs)

    def computed(
        self, given: Mapping[str, Tensor], into: Mapping[str, Tensor], sizes: Mapping[str, int], layout: Layout
    ) -> dict[str, Tensor]:
        """What the kernels leave: for all heads at once, or for some at a time where the states at chunks' borders would take too much."""
        plan = self.chunk_plan
        device = next(iter(given.values())).device
        dtypes = {s.name: getattr(torch, storage_dtype(plan.graph, s.output)) for s in plan.stores}
        parts = pieces(plan, given, sizes, layout, getattr(torch, self._operands).itemsize)
        lone = divided.lone(plan) if len(parts) == 1 and self._has_groups(sizes) else ()
        whole = {
            s.name: into[s.name] if s.name in into else torch.empty([sizes[a] for a in s.output.axes], dtype=dtypes[s.name], device=device)
            for s in plan.stores if s in lone or not self._partial(s)
        }
        if len(parts) == 1:
            return whole | self._run(given, whole, sizes, layout, dtypes)
        totals = {s.name: torch.zeros([sizes[a] for a in s.output.axes], device=device) for s in plan.stores if self._partial(s)}
        axes = {**{str(n.name): n.axes for n in plan.inputs}, **{s.name: s.output.axes for s in plan.stores}}
        for first, local in parts:
            def part(name: str, x: Tensor, first: Mapping[str, int] = first, local: Mapping[str, int] = local) -> Tensor:
                for axis, start in first.items():
                    if axis in axes.get(name, ()):
                        x = x.narrow(axes[name].index(axis), start, local[axis])
                return x

            inputs, results = {k: part(k, x) for k, x in given.items()}, {k: part(k, x) for k, x in whole.items()}
            sums = self._run(inputs, results, local, self.layout(local))
            for name, x in sums.items():
                part(name, totals[name]).add_(x.flatten(0, x.ndim - len(axes[name]) - 1).sum(0))
        return whole | {name: x.to(dtypes[name]) for name, x in totals.items()}

    def _has_groups(self, sizes: Mapping[str, int]) -> bool:
        """Whether one program of a kernel of all chunks has every head of a group."""
        return not self.chunk_plan.walks and not self.chunk_plan.keyed and self._blocks("totals", sizes) == 1

    def _partial(self, store: ChunkStore) -> bool:
        """Whether a result leaves the kernels as partial results."""
        return not self.chunk_plan.walks and not store.final and bool(store.gone)

    def _run(
        self, given: Mapping[str, Tensor], whole: Mapping[str, Tensor], sizes: Mapping[str, int], layout: Layout,
        dtypes: Mapping[str, torch.dtype] | None = None,
    ) -> dict[str, Tensor]:
        """Runs every kernel once, into ``whole``; gives the others as ``dtypes``, or their partial results, what they are summed over in
        front."""
        plan = self.chunk_plan
        layout = self._with_bulk(layout, {**given, **whole})
        device = next(iter(given.values())).device
        numbers = {f"size_{a}": sizes.get(a, 1) for a in plan.graph.order}
        padded = layout.chunks * self.schedule.chunk
        numbers |= {"padded": padded, "segment": layout.segment, "segments": layout.segments, "walked": 1, "before": 0}
        tensors = {**given, **whole}
        for store in divided.lone(plan):
            if store.name in whole:
                layout = replace(layout, single=replace(layout.single, lone=True))
                tensors[f"{store.name}_before"] = torch.empty([sizes[a] for a in store.output.axes], dtype=torch.float32, device=device)
        leading = {s.name: divided.partial_axes(plan, s) for s in plan.stores if self._partial(s) and s.name not in whole}
        for store in plan.stores:
            if store.name in leading:
                front = [self._leading(a, store, layout, sizes) for a in leading[store.name]]
                tensors[store.name] = torch.empty([*front, *(sizes[a] for a in store.output.axes)], dtype=torch.float32, device=device)
        for name in ("sums", *(["resets"] if plan.reset is not None else []), *(f"early{i}" for i in range(len(plan.early)))):
            integers = name == "resets" or (name != "sums" and plan.early[int(name[5:])].kind != "real")
            count = layout.grid * padded * (4 + divided.left_alone(plan, self.schedule) if name == "sums" else 1)
            tensors[name] = torch.empty(count, dtype=torch.int32 if integers else torch.float32, device=device)
        heads = sizes[plan.head] if plan.head else 1
        programs = -(-heads // ahead.HEADS) * layout.chunks * (layout.grid // max(1, heads))
        names = [f"met{i}" for i in range(0 if plan.walks else len(plan.met))]
        decays = [i for i, r in enumerate(plan.reads) if r.kind == "decay"]
        names += [f"{w}{i}" for i in decays for w in ("enters", "leaves", "within", "without", *(["beyond"] if layout.span > 1 else []))]
        tensors |= {n: torch.empty(layout.grid * padded, dtype=torch.float32, device=device) for n in names}
        tensors |= {f"across{i}": torch.empty(layout.grid * layout.borders, dtype=torch.float32, device=device) for i in decays}
        if layout.span > 1:
            count = self._chunk_programs("pairs", layout, sizes) * self.schedule.chunk**2
            tensors |= {f"mix{i}": torch.empty(count, dtype=torch.float32, device=device) for i in range(len(divided.mixes(plan)))}
        contributing = [divided.contributors(plan, self.schedule, s) for s in plan.stores if self._partial(s) and plan.head in s.gone]

        def chunks(part: str) -> None:
            """Runs one kernel of all chunks side by side."""
            before = next((sum(self._blocks(p, sizes) for p in c[:c.index(part)]) for c in contributing if part in c[1:]), 0)
            before = self._blocks("pairs", sizes) if part == "totals" else before   # whose matrices it adds to its own
            counts = {**numbers, "walked": self._walked(part, sizes), "before": before}
            self._kernel_of(part, layout.single)(self._chunk_programs(part, layout, sizes), tensors, counts)

        for k, pair in enumerate(divided.scores_ahead(plan, self.schedule)):
            count = scoring.places(plan, pair, sizes) * padded * self.schedule.chunk
            tensors[f"products{k}"] = torch.empty(count, dtype=torch.float32, device=device)
        before = scoring.programs_ahead(plan, self.schedule, sizes, layout.chunks)
        self._kernel_of("early", layout.single)(before + programs, tensors, numbers)
        self._walks(tensors, numbers, layout, device, chunks)
        late = any(plan.comes_late(s) for s in plan.stores) and not plan.walks
        found = {s.name: torch.empty([sizes[a] for a in s.output.axes], dtype=dtypes[s.name], device=device)
                 for s in plan.stores if dtypes is not None and s.name in leading}
        tensors |= {f"{name}_sum": x for name, x in found.items()}
        soon, after = ([s for s in self._summed(last) if s.name in found] for last in (False, True))
        with side_stream(device, late and bool(soon)) as aside:
            with aside:
                self._add("sums", soon, tensors, layout)
            if late:
                self._kernel_of("late", layout.single)(programs // layout.span, tensors, numbers)
        self._add("sums late", after, tensors, layout)
        return found if dtypes is not None else {name: tensors[name] for name in leading}

    def _add(self, kind: str, stores: list[ChunkStore], tensors: Mapping[str, Tensor], layout: Layout) -> None:
        """Adds up partial results, in one launch."""
        if not stores:
            return
        counts = {s: tensors[f"{s.name}_sum"].numel() for s in stores}
        numbers = {f"{s.name}_count": n for s, n in counts.items()}
        numbers |= {f"{s.name}_parts": tensors[s.name].numel() // max(1, n) for s, n in counts.items()}
        self._kernel_of(kind, layout.single)(adding.blocks(self.chunk_plan, counts), tensors, numbers)

    def _summed(self, late: bool, lone: bool = False) -> list[ChunkStore]:
        """Results that leave the kernels as partial results: those that the kernel late leaves, or the others."""
        whole = divided.lone(self.chunk_plan) if lone else ()
        return [s for s in self.chunk_plan.stores if self._partial(s) and self.chunk_plan.comes_late(s) == late and s not in whole]

    def _walks(self, tensors: dict[str, Tensor], numbers: Mapping[str, int], layout: Layout, device: torch.device,
               chunks: Callable[[str], None]) -> None:
        """The kernels that walk time: a forward's results, or the states at the chunks' borders, and those that need such.

        What needs one scan's states runs beside what needs the other's.
        """
        plan = self.chunk_plan
        walkers, cut = layout.walkers(self.schedule.rows), layout.segments > 1
        first = walkers // layout.segments
        scans = [i for i, s in enumerate(plan.scans) if plan.walks or wanted(plan, s)]
        for i in scans:  # all memory comes from the current stream
            if cut:
                tensors[f"entry{i}"] = layout.states(layout.segments * layout.grid, 16, torch.float32, device)
                tensors[f"product{i}"] = torch.empty(layout.segments * layout.grid, dtype=torch.float32, device=device)
            if not plan.walks:
                dtype = getattr(torch, self._operands)
                tensors[f"border{i}"] = layout.states(layout.borders * layout.grid, self.schedule.rows, dtype, device)
        combined = layout.segments <= COMBINED
        later = "combines" if combined else "entries"
        waiting = list(self._states_of)

        def carries(i: int) -> None:
            """Leaves what a scan's segments start from, or what they make it of."""
            self._kernel_of(f"summary {i}", layout.shape)(walkers // layout.segments * (layout.segments - 1), tensors, numbers)
            if combined:
                return
            tiles = -(-layout.single.rows // min(16, layout.padded_rows))
            self._kernel_of(f"pass {i}", layout.single)(tiles * layout.grid, tensors, numbers)

        def states(i: int) -> None:
            back, reads = plan.scans[i].back, self._states_of
            free = [p for p in waiting if not reads[p] and reads.get("totals") == {i}]   # pairs, which totals needs: beside all walks
            with side_stream(device, bool(free)) as third:
                with third:
                    for part in free:
                        chunks(part)
                with side_stream(device, cut) as beside:  # the segment walked first starts from nothing that others leave
                    with beside:
                        start = layout.segments - 1 if back else 0
                        self._kernel_of(f"states {i}", layout.shape)(first, tensors, {**numbers, "before": start})
                    if cut:
                        carries(i)
                        self._kernel_of(f"states {i} {later}", layout.shape)(walkers - first, tensors, {**numbers, "before": int(not back)})
            # Where borders adds to what totals leaves, it waits for both scans.
            soon = [p for p in waiting if reads[p] == {i} and (p != "borders" or not layout.single.lone)]
            for part in soon:
                chunks(part)
            waiting[:] = [p for p in waiting if p not in free + soon]

        if not plan.walks:
            with side_stream(device, len(scans) > 1) as aside:
                for i in scans:
                    with aside if i != scans[0] else nullcontext():
                        states(i)
            for part in waiting:
                chunks(part)
        elif not cut:
            self._kernel_of("walk", layout.shape)(walkers, tensors, numbers)
        else:
            with side_stream(device, True) as aside:
                for i in scans:
                    carries(i)
                with aside:
                    self._kernel_of("walk", layout.shape)(first, tensors, numbers)
                self._kernel_of(f"walk {later}", layout.shape)(walkers - first, tensors, {**numbers, "before": 1})

    @cached_property
    def _states_of(self) -> dict[str, set[int]]:
        """Which scans' states each kernel of all chunks side by side reads."""
        plan = self.chunk_plan
        found = () if plan.walks else divided.launched(plan, self.schedule)
        return {part: {plan.scans.index(s) for s in reads.states_read(plan, self.schedule, part)} for part in found}

    def _walked(self, part: str, sizes: Mapping[str, int]) -> int:
        """Heads that one program walks."""
        wanted = self.schedule.chunk_walk if part == "chunks" else self.schedule.total_walk
        if part == "pairs":
            wanted = max(1, wanted // 2)   # half as many pairs of chunks as chunks
        return min(wanted, max(1, self._per_group(sizes)))

    def _blocks(self, part: str, sizes: Mapping[str, int]) -> int:
        """Programs that share a group's heads."""
        return -(-self._per_group(sizes) // self._walked(part, sizes))

    def _chunk_programs(self, part: str, layout: Layout, sizes: Mapping[str, int]) -> int:
        chunks = layout.borders if part == "pairs" else layout.chunks
        return self._blocks(part, sizes) * layout.groups * chunks * (layout.grid // sizes.get(self.chunk_plan.head, 1))

    def _leading(self, axis: str, store: ChunkStore, layout: Layout, sizes: Mapping[str, int]) -> int:
        """The size of an axis of partial results."""
        if axis == "@chunk":
            return layout.borders
        if axis == "@block" and self.chunk_plan.comes_late(store):
            return -(-sizes[self.chunk_plan.head] // ahead.HEADS)
        if axis == "@block":
            blocks = sum(self._blocks(part, sizes) for part in divided.contributors(self.chunk_plan, self.schedule, store))
            return blocks if any(a in self.chunk_plan.graph.groups for a in store.output.axes) else blocks * layout.groups
        return sizes[axis[1:]]

    def layout(self, sizes: Mapping[str, int]) -> Layout:
        """What sizes decide of a call."""
        plan, schedule = self.chunk_plan, self.schedule
        length, shape = sizes[plan.time], self.shape_of(sizes)
        segment = schedule.segment if 0 < schedule.segment < length else max(1, length)
        span = divided.span(plan, schedule)
        chunks = -(-length // (schedule.chunk * span)) * span
        return Layout(shape, replace(shape, heads=1), segment, max(1, -(-length // segment)), chunks,
                      math.prod(sizes[a] for a in plan.grid), self._groups(sizes), span)

    def _kernel_of(self, kind: str, shape: Shape) -> Kernel:
        key = (kind, shape)
        found = self._loaded.get(key)
        if found is None:
            with self._lock:
                source = self.make(kind, shape)
                if not available(self.target):
                    raise BackendUnavailable(f"kernels for {self.target} need that device and a torch built for it", backend="triton",
                                             remedy="Use target cpu:interpret:triton to try a kernel without a GPU.")
                run = Launcher(kernel_of(source, self.target), source.options(self.target.kind), self.target.kind != "cpu")
                found = self._loaded[key] = Kernel(source, run)
        return found


class _Bound:
    """A program for inputs of one signature: see scanc.compiler.Bound. Only the first call looks at sizes."""

    def __init__(self, program: ChunkedExecutable) -> None:
        self.program = program
        self._decided: tuple[dict[str, int], Layout] | None = None

    def __call__(self, inputs: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> dict[str, Tensor]:
        program, given = self.program, inputs
        before, after = program.parts.before, program.parts.after
        if before is not None:
            given = {**given, **evaluate(before, given, dtype=torch.float32)}
        if self._decided is None:
            sizes = axis_sizes(program.graph, inputs)
            self._decided = sizes, program.layout(sizes)
        made = program.computed(given, into, *self._decided) if program.chunk_plan.stores else {}
        for at, graph in program.parts.edges:
            made |= _at_one_step(graph, given, 0 if at == 0 else self._decided[0][graph.time] - 1)
        if after is not None:
            late = evaluate(after, {**given, **made}, dtype=torch.float32)
            made |= {o.name: late[o.name].to(getattr(torch, storage_dtype(program.graph, o))) for o in after.outputs}
        for name, storage in into.items():
            if made[name] is not storage:
                made[name] = storage.copy_(made[name])
        return {o.name: made[o.name] for o in program.graph.outputs}


def _at_one_step(graph: Graph, given: Mapping[str, Tensor], at: int) -> dict[str, Tensor]:
    """The results of a graph that only one step of time adds to, as they are stored."""
    def step(x: Tensor, axes: Axes) -> Tensor:
        return x.narrow(axes.index(graph.time), at, 1) if graph.time in axes else x

    found = evaluate(graph, {str(n.name): step(given[str(n.name)], n.axes) for n in graph.inputs}, dtype=torch.float32)
    return {name: x.to(getattr(torch, storage_dtype(graph, graph.output(name)))) for name, x in found.items()}


__all__ = ["ChunkedExecutable", "precision"]
