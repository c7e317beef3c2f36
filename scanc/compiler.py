"""The path from a graph to something that runs, as one straight list of stages.

    trace ─ specialize ─ shifts ─ canonical ─ class ─ forms ─ partition ─ plan ─ source ─ (assembly) ─ kernel

``stages`` prints any of them, for any target, on a machine without that device; ``compile_graph`` goes to the end.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scanc.codegen.in_place import lend
from scanc.codegen.layout import (
    STORAGE_OF_KIND,
    KernelSource,
    Mode,
    carry_floats,
    checkpoint_axes,
    checkpoint_names,
    checkpoint_size,
    geometry,
    storage_dtype,
)
from scanc.errors import ArgumentError, BackendUnavailable, ScheduleError, UnsupportedForm
from scanc.forms.choose import default_schedule, forms_of
from scanc.forms.partition import has_scans, kernels, partition, used_inputs
from scanc.forms.plan import Plan, make_plan
from scanc.forms.segments import combine_graph, scans_are_independent, summary_graphs
from scanc.ir import Builder, Graph, Output
from scanc.launch import Kernel, Launches
from scanc.launch_memory import bounded_walk
from scanc.passes.canonicalize import canonicalize
from scanc.passes.shifts import push_shifts
from scanc.reference import evaluate
from scanc.schedule import ChunkedSchedule, ConvolutionSchedule, RecurrentSchedule, Schedule, StencilSchedule, StepSchedule
from scanc.target import Target
from scanc.verify import verify

__all__ = ["Executable", "ReferenceExecutable", "backend", "compile_graph", "default_schedule", "forms_of", "prepare", "stages"]


# Signatures remembered for each program; beyond that all are forgotten.
MOST_BOUND = 1024
# Summaries of a backward that is to save memory may take this share of its results; else they get theirs, before it is written.
SUMMARY_SHARE = 0.01
# What a forward leaves for its backward may take this share of its inputs and results: at most one tensor more among a Mamba's four.
CHECKPOINT_SHARE = 0.3


def backend(target: Target) -> Any:
    """The backend's module: generate, load, kept, scratch, resources, available; with checkpoints also interval, leaves."""
    names = {"cpp": "scanc.codegen.build_cpp", "triton": "scanc.codegen.build_triton", "cuda": "scanc.codegen.build_cuda"}
    return importlib.import_module(names[target.backend])


def prepare(graph: Graph, *, shifts: bool = False) -> Graph:
    """The passes every backend needs, in order. ``shifts``: a kernel looks back at what it computes, and not at its inputs alone."""
    if not shifts:
        graph = push_shifts(graph)  # first: pushing makes new pointwise work for canonicalize
    graph = canonicalize(graph)  # then: primitives, shared values, least work per step
    verify(graph, "canonical")
    return graph


class Executable:
    """A graph compiled for one target and schedule: call it with {input: tensor}, get {output: tensor}.

    The state axis' size is fixed in the source, so one kernel is made for each size met (and kept). All other sizes, and all
    strides, are arguments: a new length or batch compiles nothing.
    """

    def __init__(self, graph: Graph, target: Target, schedule: Schedule) -> None:
        self.graph, self.target, self.schedule = graph, target, schedule
        at_once = isinstance(schedule, StencilSchedule)
        shifts = at_once and target.backend == "cuda"
        self.prepared = prepare(graph, shifts=shifts)
        self.parts = partition(self.prepared, at_once=at_once, shifts=shifts)
        self.plan: Plan = make_plan(self.parts.kernel, at_once=at_once)
        self._check()
        self.earlier = self._earlier(self.parts.before)
        self._backend = backend(target)
        self._kernels: dict[tuple[int, Mode, Schedule], Kernel] = {}
        self._bound: dict[tuple[Any, ...], Bound] = {}
        self._leaving: dict[tuple[tuple[str, int], ...], Executable] = {}
        self._lock = threading.Lock()

    def _check(self) -> None:
        scans = self.plan.scans
        if isinstance(self.schedule, StepSchedule) != (not self.graph.time):
            raise UnsupportedForm(
                op=self.graph.name,
                form=self.schedule.form,
                forms=", ".join(forms_of(self.graph)),
                reason="a step schedule goes with a step graph, and only with one",
            )
        if isinstance(self.schedule, RecurrentSchedule) and self.schedule.cluster > 1 and self.target.backend != "cuda":
            raise ScheduleError(field="cluster", value=self.schedule.cluster, limit="the CUDA backend alone has clusters of blocks")
        if isinstance(self.schedule, StepSchedule) and self.schedule.walk > 1 and self.target.backend != "cuda":
            raise ScheduleError(field="walk", value=self.schedule.walk, limit="steps of the CUDA backend alone take several lanes a thread")
        if isinstance(self.schedule, StepSchedule) and self.schedule.rows and self.target.backend != "cuda":
            raise ScheduleError(field="rows", value=self.schedule.rows, limit="steps of the CUDA backend alone have the matrix units")
        if getattr(self.schedule, "segment", 0) and not scans_are_independent(scans):
            raise UnsupportedForm(
                op=self.graph.name,
                form=self.schedule.form,
                forms="the same with segment=0",
                reason="its scans feed one another, so segments cannot be summarised in one pass",
            )

    def _earlier(self, before: Graph | None) -> Executable | None:
        """The program of what comes before, where that has recurrences of its own; time kept whole where they feed one another."""
        if before is None or not has_scans(before):
            return None
        schedule = self.schedule
        if getattr(schedule, "segment", 0) and not all(scans_are_independent(make_plan(k).scans) for k in kernels(before)):
            schedule = dataclasses.replace(schedule, segment=0)  # type: ignore[call-arg]
        return Executable(before, self.target, schedule)

    # -- kernels --------------------------------------------------------------------------------------------------------------

    def source(self, state: int = 16, mode: Mode = Mode(), schedule: Schedule | None = None) -> KernelSource:  # noqa: B008 - Mode is frozen
        title = f"{self.graph.name}: form {self.schedule.form}, target {self.target}{mode.title}"
        return self._backend.generate(self.plan, schedule or self.schedule, state if self.plan.state else 1, mode, title)

    @property
    def sources(self) -> tuple[KernelSource, ...]:
        """Every kernel made so far; the plain one for a state of 16 when none was."""
        return tuple(x.source for x in self._kernels.values()) or (self.source(),)

    def _kernel_for(self, state: int, mode: Mode, schedule: Schedule) -> Kernel:
        key = (state, mode, schedule)
        found = self._kernels.get(key)
        if found is None:
            with self._lock:
                found = self._kernels.get(key)
                if found is None:
                    source = self.source(state, mode, schedule)
                    found = self._kernels[key] = Kernel(source, self._backend.load(source, self.target), self._backend.scratch)
        return found

    # -- running --------------------------------------------------------------------------------------------------------------

    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        *,
        mode: Mode = Mode(),  # noqa: B008 - Mode is frozen
        into: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Runs the kernels. ``into`` gives storage for outputs written in place.

        A ``mode`` that leaves checkpoints gives them beside the outputs; one that resumes takes them beside the inputs.
        """
        places = into or {}
        key = (mode, *[(t.shape, t.stride(), t.device) for t in (*inputs.values(), *places.values())], *inputs, *places)
        bound = self._bound.get(key)
        if bound is None:
            if len(self._bound) >= MOST_BOUND:
                self._bound.clear()
            bound = self._bound[key] = self.bind(mode)
        return bound(inputs, places)

    def bind(self, mode: Mode = Mode()) -> Bound:  # noqa: B008 - Mode is frozen
        """The program for inputs of one signature, which the first call gives."""
        return Bound(self, mode)

    @property
    def allocated(self) -> frozenset[str]:
        """Outputs that come straight from the kernel: dense memory of their own."""
        return frozenset(o.name for o in self.parts.kernel.outputs)

    def launches(self, given: Mapping[str, Tensor], mode: Mode) -> Launches:
        """The kernel that serves these tensors, and its launches for their shapes and strides."""
        sizes: dict[str, int] = {}
        for node in self.graph.inputs:
            if node.name in given:
                sizes.update(zip(node.axes, given[str(node.name)].shape, strict=True))
        free: Collection[str] = self._backend.in_place(self.plan, self.schedule, given, sizes) if mode.consumes else ()
        schedule = bounded_walk(self.plan, self.schedule, given, sizes, self._backend.kept, resumes=mode.resumes, free=free,
                                places=self.target.places)
        if mode.consumes:
            placed = self._backend.in_place(self.plan, schedule, given, sizes) if free else {}
            mode = dataclasses.replace(mode, consumes=max((p.spread.many for p in placed.values()), default=0))
            if not placed:
                return self.launches(given, mode)
        if isinstance(schedule, RecurrentSchedule) and schedule.cluster > 1:
            schedule = dataclasses.replace(schedule, cluster=geometry(self.plan, schedule, sizes, schedule.lanes).cluster)
        if hasattr(self._backend, "laid"):
            schedule, mode = self._backend.laid(self.plan, schedule, mode, given)
        segments = geometry(self.plan, schedule, sizes, getattr(schedule, "lanes", 1)).segments
        if not mode.summary and segments > 1:
            most = 0 if mode.consumes and self._summaries_are_dear(sizes, segments) else getattr(self._backend, "MOST_COMBINED", 0)
            mode = dataclasses.replace(mode, entries=True, combines=segments <= most)
        return Launches(self._kernel_for(sizes[self.plan.state] if self.plan.state else 1, mode, schedule), given, sizes)

    def _summaries_are_dear(self, sizes: Mapping[str, int], segments: int) -> bool:
        """Whether the main scans' states at all segments' starts are more than a small share of the results' memory."""
        results = sum(math.prod(sizes[a] for a in s.axes) * getattr(torch, storage_dtype(self.plan.graph, s.output)).itemsize
                      for s in self.plan.stores)  # fmt: skip
        return 4 * carry_floats(self.plan, self.plan.main, sizes) * segments > SUMMARY_SHARE * results

    @functools.cached_property
    def segment_programs(self) -> list[tuple[Executable, _Combine]]:
        programs = []
        for summary in summary_graphs(self.plan):
            own = getattr(self._backend, "summarising", None)
            program = Executable(summary.graph, self.target, own(self.plan, self.schedule) if own is not None else self.schedule)
            graph = combine_graph(summary)
            schedule = default_schedule(graph.graph, self.target, {}, form="recurrent")
            short = getattr(self._backend, "combining", lambda schedule: schedule)
            inner = Executable(graph.graph, self.target, short(dataclasses.replace(schedule, segment=0)))  # type: ignore[call-arg]
            programs.append((program, _Combine(inner, graph.initial)))
        return programs

    # -- checkpoints ----------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def interval(self) -> int:
        """Steps between the checkpoints that this backward can resume from, in place of walking time once more; 0 where it cannot."""
        find = getattr(self._backend, "interval", None)
        return find(self.plan, self.schedule) if find is not None and self.parts.before is None else 0

    @property
    def brings(self) -> bool:
        """Whether this step can bring memory nearer for the kernels after it: a mode that ``brings``."""
        step = isinstance(self.schedule, StepSchedule) and not self.schedule.rows
        return self.target.backend == "cuda" and step and not self.parts.before

    def leaves_for(self, backward: Executable) -> bool:
        """Whether this forward can leave the checkpoints that its backward resumes from."""
        if not backward.interval or self.target != backward.target:
            return False
        own, theirs = ([(s.name, s.axes, s.kind) for s in scans] for scans in (self.plan.main, backward.plan.recomputed))
        return own == theirs and len(set(own)) == len(own) and self.leaves(backward.interval)

    def leaves(self, every: int) -> bool:
        """Whether this forward can leave checkpoints every so many steps."""
        can = getattr(self._backend, "leaves", None)
        return can is not None and bool(can(self.plan, self.schedule, every))

    def checkpoint_bytes(self, sizes: Mapping[str, int]) -> int:
        """Memory of the checkpoints that this backward resumes from."""
        if not self.interval:
            return 0
        return 4 * carry_floats(self.plan, self.plan.recomputed, sizes) * -(-sizes[self.plan.time] // self.interval)

    def worth_leaving(self, sizes: Mapping[str, int], held: int) -> bool:
        """Whether those take no more than their share of ``held``, the bytes of the forward's inputs and results."""
        return self.checkpoint_bytes(sizes) <= CHECKPOINT_SHARE * held

    def left(self, sizes: Mapping[str, int], every: int) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Size and dtype of each tensor of checkpoints that this forward leaves, one every so many steps."""
        plan = self.plan
        return [(checkpoint_size(plan, checkpoint_axes(plan, s), sizes, every), getattr(torch, STORAGE_OF_KIND[s.kind])) for s in plan.main]

    @functools.cached_property
    def _states(self) -> Graph:
        """This backward's recomputed scans by themselves."""
        plan, b = self.plan, Builder.of(self.plan.graph)
        finals = [b.final(scan) for scan in plan.recomputed]
        outputs = tuple(Output(f"last{i}", node, node.axes) for i, node in enumerate(finals))
        inputs = used_inputs(plan.graph, outputs)
        return dataclasses.replace(plan.graph, name=f"{plan.graph.name}_states", inputs=inputs, outputs=outputs, inplace={})

    def leaving(self, sizes: Mapping[str, int]) -> Executable:
        """A program that leaves this backward's checkpoints where no forward has: by its own default schedule, if that can."""
        graph, key = self._states, tuple(sizes.items())
        found = self._leaving.get(key)
        if found is None:
            schedule = default_schedule(graph, self.target, sizes, form="recurrent")
            found = Executable(graph, self.target, schedule)
            if not found.leaves(self.interval):
                plain = default_schedule(graph, self.target, {}, form="recurrent")
                assert isinstance(plain, RecurrentSchedule)
                found = Executable(graph, self.target, dataclasses.replace(plain, tile=min(self.interval, plain.tile), segment=0))
            self._leaving[key] = found
        return found

    def checkpoints(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a forward would leave for this backward, by name; nothing where it resumes from none."""
        if not self.interval:
            return {}
        leaving = self.leaving(self._sizes_of(inputs))
        made = leaving({str(n.name): inputs[str(n.name)] for n in leaving.graph.inputs}, mode=Mode(leaves=self.interval))
        return {name: made[name] for name in checkpoint_names(len(self.plan.recomputed))}

    def checkpoints_in_training(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those that a forward does leave: none where they are too many, and the backward recomputes them."""
        held = sum(t.numel() * t.element_size() for t in inputs.values())  # the cotangents are as large as the results
        return self.checkpoints(inputs) if self.worth_leaving(self._sizes_of(inputs), held) else {}

    def _sizes_of(self, inputs: Mapping[str, Tensor]) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for node in self.graph.inputs:
            sizes.update(zip(node.axes, inputs[str(node.name)].shape, strict=True))
        return sizes


@dataclass(frozen=True)
class _Combine:
    """The recurrence over segments, and the graph that gives the scans' initial states."""

    run: Executable
    initial: Graph | None


class Bound:
    """A program for inputs of one signature: names, shapes, strides, dtypes, device, and which results are written in place.

    Only the first call looks at any of these. What it decides (kernels, launches, strides) also serves every later one, since
    everything in between, the results of earlier kernels among them, has the same layout each time.
    """

    def __init__(self, program: Executable, mode: Mode) -> None:
        self.program, self.mode = program, mode
        self.before = program.earlier.bind() if program.earlier is not None else None
        self._launches: Launches | None = None
        self._segments: list[_Summarised] = []

    def __call__(self, inputs: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> dict[str, Tensor]:
        program, given = self.program, inputs
        if self.before is not None:
            given = {**given, **self.before(given, {})}
        elif program.parts.before is not None:
            given = {**given, **evaluate(program.parts.before, given, dtype=torch.float32)}
        # Nothing over time is asked for where, say, only a parameter's own gradient is wanted.
        made = self._kernel(given, into) if program.plan.stores else {}
        after = program.parts.after
        if after is not None:
            late = evaluate(after, {**given, **made}, dtype=torch.float32)
            made |= {o.name: late[o.name].to(getattr(torch, storage_dtype(program.graph, o))) for o in after.outputs}
        for name, storage in into.items():
            if made[name] is not storage:  # a result that the kernel shares with another, or that comes after it
                made[name] = storage.copy_(made[name])
        if after is None:
            return made
        left = checkpoint_names(len(program.plan.main)) if self.mode.leaves else ()
        return {name: made[name] for name in (*(o.name for o in program.graph.outputs), *left)}

    def direct(
        self, places: Mapping[str, tuple[int, int]], results: Sequence[str], many: bool
    ) -> Callable[[Sequence[Any]], Any] | None:
        """Later calls with nothing but the launch left of them (``Launches.direct``); None where there is more, or none was made yet."""
        parts = self.program.parts
        plain = self.mode == Mode(brings=self.mode.brings)
        if self._launches is None or self._segments or parts.before is not None or parts.after is not None or not plain:
            return None
        return self._launches.direct(places, results, many)

    def _kernel(self, given: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> dict[str, Tensor]:
        launches = self._launches
        if launches is None:
            launches = self.program.launches(given, self.mode)
            if launches.kernel.source.mode.entries:
                # The main direction's are the last; what is resumed needs none.
                needed = self.program.segment_programs[-1 if self.mode.resumes else 0 :]
                self._segments = [
                    _Summarised((run.graph, late.run.graph), run.bind(Mode(summary=True)), late.initial, late.run.bind())
                    for run, late in needed
                ]
            self._launches = launches
        if self._segments:
            mode = launches.kernel.source.mode
            # What is written later gives its memory to what is read before.
            whole = launches.results(into) if mode.consumes and not mode.combines else {}
            given, into = {**given, **self._entries(given, whole)}, {**into, **whole}
        return launches(given, into)

    def _entries(self, given: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The carry of every scan at the start of every segment: summaries of all segments at once, then one short recurrence over them,
        unless the kernel itself combines the summaries. ``whole`` are results whose memory is free until that kernel runs."""
        found: dict[str, Tensor] = {}
        launches = self._launches
        assert launches is not None
        combines = launches.kernel.source.mode.combines
        for part in self._segments:
            ends, starts = lend(launches.kernel.source, launches.sizes, *part.graphs, whole)
            made = part.summary({name: given[name] for name in part.inputs}, ends)
            if combines:
                found |= made
                continue
            known = {**given, **made}
            if part.initial is not None:
                known |= evaluate(part.initial, given, dtype=torch.float32)
            found |= part.combine({name: known[name] for name in part.summaries}, starts)
        return found


@dataclass(frozen=True)
class _Summarised:
    """The programs of one direction's segments, ``summary`` and the recurrence over segments of what it makes, and their ``graphs``."""

    graphs: tuple[Graph, Graph]
    summary: Bound
    initial: Graph | None
    combine: Bound

    @functools.cached_property
    def inputs(self) -> tuple[str, ...]:
        return _names(self.graphs[0])

    @functools.cached_property
    def summaries(self) -> tuple[str, ...]:
        return _names(self.graphs[1])


def _names(graph: Graph) -> tuple[str, ...]:
    return tuple(str(n.name) for n in graph.inputs)


class ReferenceExecutable:
    """The graph evaluated by torch operations, with the interface of an Executable: the last resort and the baseline."""

    def __init__(self, graph: Graph, target: Target | None = None) -> None:
        self.graph = graph
        self.target = target or Target("cpu", "native", "reference")
        self.schedule: Schedule | None = None
        self.sources: tuple[KernelSource, ...] = ()
        self.allocated: frozenset[str] = frozenset()

    def bind(self) -> Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]:
        return lambda inputs, into: self(inputs, into=into)

    def __call__(self, inputs: Mapping[str, Tensor], *, into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        wide = any(t.dtype in (torch.float64, torch.complex128) for t in inputs.values())
        out = evaluate(self.graph, inputs, dtype=torch.float64 if wide else torch.float32)
        made = {o.name: out[o.name].to(result_dtype(self.graph, o.name, inputs)) for o in self.graph.outputs}
        for name, storage in (into or {}).items():
            storage.copy_(made[name])
            made[name] = storage
        return made


def result_dtype(graph: Graph, name: str, inputs: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype a result has by the op's rule: its ``like`` input's; a state's is float32, or float64 where any input is."""
    output = graph.output(name)
    if output.like and output.like in inputs:
        dtype = inputs[output.like].dtype
        if dtype.is_complex == (output.node.kind == "complex"):
            return dtype
    wide = any(t.dtype in (torch.float64, torch.complex128) for t in inputs.values())
    table = {
        "real": (torch.float32, torch.float64),
        "complex": (torch.complex64, torch.complex128),
        "int": (torch.int32,) * 2,
        "bool": (torch.bool,) * 2,
    }
    return table[output.node.kind][wide]


def compile_graph(
    graph: Graph, target: Target, schedule: Schedule | None = None, *, sizes: Mapping[str, int] | None = None
) -> Executable | ReferenceExecutable:
    """A specialised graph (forward, backward or step) made executable.

    Raises UnsupportedForm, ScheduleError, BackendUnavailable, CompileError.
    """
    if target.backend == "reference":
        return ReferenceExecutable(graph, target)
    if not backend(target).available():
        raise BackendUnavailable(
            f"nothing here can make kernels for {target}", backend=target.backend, remedy="`scanc doctor` says what is missing."
        )
    for node in graph.inputs:
        if node.type.dtype in ("float64", "complex128"):
            raise ArgumentError(
                op=graph.name,
                argument=node.name,
                value=f"of dtype {node.type.dtype}",
                limit="kernels compute in float32",
                remedy="Use the reference target for double precision.",
            )
    return program(graph, target, schedule or default_schedule(graph, target, sizes or {}))


def program(graph: Graph, target: Target, schedule: Schedule) -> Any:
    """The program of a schedule's form: an Executable, or one with its interface. Raises UnsupportedForm."""
    if isinstance(schedule, ChunkedSchedule):
        from scanc.codegen.triton_chunked_run import ChunkedExecutable
        from scanc.lti_chunked import LtiChunkedBackward, LtiChunkedExecutable, is_lti

        if is_lti(graph):
            return (LtiChunkedExecutable if graph.origin is None else LtiChunkedBackward)(graph, target, schedule)
        return ChunkedExecutable.of(graph, target, schedule)
    if isinstance(schedule, ConvolutionSchedule) and any(n.op == "scan" for n in graph.nodes()):
        from scanc.lti import LtiBackwardExecutable, LtiExecutable

        return (LtiExecutable if graph.origin is None else LtiBackwardExecutable)(graph, target, schedule)
    if isinstance(schedule, ConvolutionSchedule) and schedule.route == "fft":
        from scanc.convolution_fft import FftExecutable

        return FftExecutable(graph, target, schedule)
    if isinstance(schedule, ConvolutionSchedule) and schedule.route == "direct" and target.backend == "cpp":
        from scanc.convolution_direct import DirectExecutable

        return DirectExecutable(graph, target, schedule)
    if isinstance(schedule, ConvolutionSchedule) and schedule.route in ("toeplitz", "direct"):
        from scanc.codegen.triton_convolution_tiles_run import TilesExecutable

        return TilesExecutable(graph, target, schedule)
    if isinstance(schedule, ConvolutionSchedule) and schedule.route == "passes" and target.backend == "cuda":
        from scanc.codegen.cuda_convolution_passes_run import PassesExecutable as CudaPassesExecutable

        return CudaPassesExecutable(graph, target, schedule)
    if isinstance(schedule, ConvolutionSchedule) and schedule.route == "passes":
        from scanc.codegen.triton_convolution_passes_run import PassesExecutable

        return PassesExecutable(graph, target, schedule)
    if isinstance(schedule, ConvolutionSchedule) and schedule.route == "radix":
        from scanc.codegen.cuda_convolution_run import RadixExecutable

        return RadixExecutable(graph, target, schedule)
    if isinstance(schedule, ConvolutionSchedule):
        from scanc.codegen.triton_convolution_run import ConvolutionExecutable

        return ConvolutionExecutable(graph, target, schedule)
    return Executable(graph, target, schedule)


def stages(graph: Graph, target: Target, schedule: Schedule | None = None, *, sizes: Mapping[str, int] | None = None) -> dict[str, str]:
    """Every stage of the path as text: see scanc.stages."""
    from scanc import stages as module

    return module.stages(graph, target, schedule, sizes=sizes)
