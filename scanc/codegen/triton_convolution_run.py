"""Running the form convolution: which kernels a call needs, the memory between them, and their launches (see triton_convolution.py)."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scanc.codegen.build_triton import available, kernel_of
from scanc.codegen.layout import storage_dtype
from scanc.codegen.triton_convolution import ConvolutionPrinter, ConvolutionSource, kernel_gradient, kernel_spectrum
from scanc.codegen.triton_convolution_blocks import BlocksPrinter
from scanc.codegen.triton_convolution_language import OPERANDS, Operands
from scanc.codegen.triton_launch import Launcher
from scanc.compiler import ReferenceExecutable, prepare
from scanc.errors import BackendUnavailable, ScheduleError, UnsupportedForm
from scanc.forms.convolution import ConvolutionPlan, convolution_plan, is_convolution
from scanc.ir import Graph, Node, Output
from scanc.reference import axis_sizes, evaluate
from scanc.schedule import ConvolutionSchedule
from scanc.target import Target

# Warps a multiprocessor holds of a program that leaves a thread 255 registers.
WARPS = 8


# Points (outer, inner) at which Triton 3.6 has compiled a backward to reads outside of memory, on sm_90.
NOT_FOR_GRADIENTS = {(64, 32)}


@dataclass(frozen=True)
class Layout:
    """What sizes alone decide: sequences of a channel, channels, blocks of a sequence, programs that share a channel's rows."""

    rows: int
    channels: int
    blocks: int
    walk: int
    parts: int


def circle(turns: Tensor) -> Tensor:
    """Cosines and negative sines: e^{-2πi turns} in parts."""
    angle = 2 * math.pi * torch.remainder(turns, 1.0)
    return torch.stack([torch.cos(angle), -torch.sin(angle)])


def on_parts(re: Tensor, im: Tensor) -> Tensor:
    """A symmetric complex matrix as the one that multiplies a row of real parts and imaginary parts."""
    return torch.cat([torch.cat([re, im], 1), torch.cat([-im, re], 1)])


@functools.lru_cache(maxsize=64)
def tables(outer: int, inner: int, warps: int, operands: Operands, device: torch.device, shift: float = 0.25) -> dict[str, Tensor]:
    """Of 2π t (f + shift)/n, the outer transform, and of the twiddles; those of 2π t f/n, the inner transform. Precise ones are followed by
    what rounding took off. Without a shift the outer transform is of complex numbers too, and multiplies columns."""

    def rounded(x: Tensor, dtype: str) -> Tensor:
        if operands.precise:
            x = torch.stack([x.half().double(), x - x.half()]).half()
        return x.to(device, getattr(torch, dtype)).contiguous()

    def in_memory(x: Tensor) -> Tensor:
        """[2, outer, inner] in the order that the kernels' ``tile_of`` undoes."""
        side = min(warps, outer // 16)
        x = x.reshape(2, outer // 16 // side, side, 2, 8, inner // 16, 2, 4, 2)
        return x.permute(0, 1, 5, 2, 4, 7, 6, 3, 8).contiguous()

    t1, t2 = torch.arange(outer, dtype=torch.float64), torch.arange(inner, dtype=torch.float64)
    shifted = t1[:, None] + shift
    whole = circle(shifted * t1 / outer)
    twiddle = circle(shifted * t2 / (outer * inner)).to(device, getattr(torch, operands.twiddles))
    return {"outer": rounded(whole if shift else on_parts(*whole).T, operands.matrix),
            "inner": rounded(on_parts(*circle(t2[:, None] * t2 / inner)), operands.matrix),
            "twiddle": in_memory(twiddle)}


class ConvolutionExecutable(ReferenceExecutable):
    """A graph of the form convolution compiled by the route ``monarch``. Raises UnsupportedForm where it does not fit.

    Like the reference it is one program for all shapes: sizes and strides are the kernels' arguments.
    """

    schedule: ConvolutionSchedule
    backend = "triton"

    def __init__(self, graph: Graph, target: Target, schedule: ConvolutionSchedule) -> None:
        if target.backend != self.backend:
            raise UnsupportedForm(op=graph.name, form="convolution", forms="the same by torch's FFT, route=\"fft\"",
                                  reason=f"the {target.backend} backend has no kernels for its route {schedule.route}")
        self.graph, self.target, self.schedule = graph, target, schedule
        self.convolution_plan: ConvolutionPlan = convolution_plan(prepare(graph))
        plan = self.convolution_plan
        refused = schedule.route == "monarch" and plan.gradients and (schedule.outer, schedule.inner) in NOT_FOR_GRADIENTS
        if refused and target.kind != "cpu":
            raise ScheduleError(field="inner", value=schedule.inner, limit=f"beside outer = {schedule.outer} no kernel's gradient is made")
        self.earlier: ConvolutionExecutable | None = None
        if plan.before is not None and is_convolution(plan.before):
            self.earlier = type(self)(plan.before, target, schedule)
        self.allocated = frozenset(o.name for o in plan.stores if o.axes[-1] == plan.graph.time)
        self.operands = OPERANDS[schedule.operands]
        if target.arch == "interpret":  # which multiplies no 16-bit operands
            self.operands = Operands("float32", "float32", "float32", self.operands.precise)
        self._lock = threading.Lock()
        self._sources: dict[tuple[str, Any], ConvolutionSource] = {}
        self._loaded: dict[tuple[str, Any], Any] = {}  # kernels as functions, which a subclass may load otherwise

    # -- sources --------------------------------------------------------------------------------------------------------------

    def make(self, kind: str, what: Any) -> ConvolutionSource:
        """A kernel's source: the main kernel of one or ``what`` = several blocks, the others of tensors of dtype ``what``."""
        key = (kind, what)
        if key not in self._sources:
            title = f"{self.graph.name}: form convolution, {kind}, target {self.target}"
            if kind == "main":
                made = self._printer(what)(self._of_results, self.schedule, self.operands, title).source()
            elif kind == "pairs":
                made = self._printer(what)(self._of_pairs, self._pairs_schedule, self.operands, title).source()
            elif kind == "spectrum":
                made = kernel_spectrum(self.schedule, what, self.operands, title)
            else:
                made = kernel_gradient(self._pairs_schedule, what, self.operands, title)
            self._sources[key] = made
        return self._sources[key]

    @staticmethod
    def _printer(many: bool) -> type[ConvolutionPrinter]:
        return BlocksPrinter if many else ConvolutionPrinter

    @property
    def _split(self) -> bool:
        """Whether results and kernels' gradients are made by programs of their own."""
        return bool(self.schedule.apart and self.convolution_plan.stores and self.convolution_plan.gradients)

    @property
    def _of_results(self) -> ConvolutionPlan:
        plan = self.convolution_plan
        if not self._split:
            return plan
        return replace(plan, gradients=(), signals=tuple(dict.fromkeys(t.signal for p in plan.products for t in p.terms)))

    @property
    def _of_pairs(self) -> ConvolutionPlan:
        plan = self.convolution_plan
        signals = tuple(dict.fromkeys(s for g in plan.gradients for s in (g.signal, g.cotangent)))
        return replace(plan, products=(), stores=(), signals=signals)

    @property
    def _pairs_schedule(self) -> ConvolutionSchedule:
        """That of programs of their own: two signals and sums over rows leave no registers for what is loaded ahead of a long block, and
        4096 points are dealt to eight warps."""
        schedule = self.schedule
        if not self._split or schedule.block <= 2048:
            return schedule
        if schedule.block == 4096:
            return replace(schedule, ahead=0, outer=128, inner=32, warps=8)
        return replace(schedule, ahead=0)

    def all_sources(self, many: bool) -> list[ConvolutionSource]:
        """Every kernel that a problem of one, or ``many``, blocks runs."""
        plan = self.convolution_plan
        found: list[tuple[str, str | bool]] = [("spectrum", dtype) for dtype in dict.fromkeys(k.type.dtype for k in plan.kernels)]
        found += [("main", many), ("pairs", many)] if self._split else [("main", many)]
        found += [("gradient", dtype) for dtype in dict.fromkeys(storage_dtype(plan.graph, g.output) for g in plan.gradients)]
        return [self.make(*key) for key in found]

    def shape_of(self, sizes: Mapping[str, int]) -> bool:
        """Whether sequences of these sizes have several blocks."""
        return sizes.get(self.convolution_plan.graph.time, 1) > self._block

    @property
    def _block(self) -> int:
        """Steps of a block of results."""
        return self.schedule.block

    def source(self, state: int = 16, mode: Any = None, schedule: Any = None) -> ConvolutionSource:  # type: ignore[override]
        return self.make("main", False)

    @property
    def sources(self) -> tuple[ConvolutionSource, ...]:  # type: ignore[override]
        """Every kernel made so far; those of one block when none was."""
        return tuple(self._sources.values()) or tuple(self.all_sources(False))

    # -- running --------------------------------------------------------------------------------------------------------------

    def bind(self) -> _Bound:
        """The program for inputs of one signature, which the first call gives."""
        return _Bound(self)

    def __call__(self, inputs: Mapping[str, Tensor], *, into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        return self.bind()(inputs, into or {})

    def layout(self, sizes: Mapping[str, int]) -> Layout:
        plan, schedule = self.convolution_plan, self.schedule
        rows, channels = (math.prod(sizes[a] for a in axes) for axes in (plan.rows, plan.channels))
        groups = -(-rows // schedule.rows)
        walk = min(schedule.walk, groups)
        return Layout(rows, channels, -(-sizes[plan.graph.time] // self._block), walk, -(-groups // walk))

    def computed(self, given: Mapping[str, Tensor], sizes: Mapping[str, int], layout: Layout) -> dict[str, Tensor]:
        """Runs every kernel; what the plan's stores and gradients are, by name."""
        plan, schedule = self.convolution_plan, self.schedule
        device = next(iter(given.values())).device
        dtype = getattr(torch, self.operands.spectra)
        tensors = {str(n.name): self._time_last(n, given[str(n.name)]) for n in plan.graph.inputs}
        tensors |= self._tables(schedule, device)
        numbers = {f"size_{a}": sizes.get(a, 1) for a in plan.graph.order}
        numbers |= {"rows": layout.rows, "walk": layout.walk, "blocks": layout.blocks, "parts": layout.parts * schedule.rows,
                    "channels": layout.channels, "size": sizes[plan.graph.time]}
        for k in plan.kernels:
            self._spectrum(k, tensors, numbers, layout, device)
        made = {o.name: self._result(o, sizes, device) for o in plan.stores}
        tensors |= made
        spectrum = 2 * schedule.block
        pairs = list(dict.fromkeys((g.signal, g.cotangent) for g in plan.gradients))
        items = at_once = layout.parts * layout.channels
        numbers["items"] = items
        for i in range(len(pairs)):
            tensors[f"partial{i}"] = torch.empty(items * schedule.rows * layout.blocks * spectrum, dtype=torch.float32, device=device)
        if layout.blocks > 1:
            at_once = min(items, self._at_once(device))
            kept = at_once * len(plan.signals) * layout.blocks * spectrum * schedule.rows
            tensors["scratch"] = torch.empty(kept, dtype=dtype, device=device)
        self._launch(("main", layout.blocks > 1), at_once, tensors, numbers)
        if self._split:
            tensors |= self._tables(self._pairs_schedule, device)
            self._launch(("pairs", layout.blocks > 1), at_once, tensors, numbers)
        for g in plan.gradients:
            partial = tensors[f"partial{pairs.index((g.signal, g.cotangent))}"]
            made[g.output.name] = self._gradient(g.output, partial, tensors, numbers, sizes, layout, device)
        return {o.name: made[o.name].permute(self._from_memory(o)) for o in plan.graph.outputs if o.name in made}

    def _tables(self, schedule: ConvolutionSchedule, device: torch.device) -> dict[str, Tensor]:
        return tables(schedule.outer, schedule.inner, schedule.warps, self.operands, device)

    def _at_once(self, device: torch.device) -> int:
        """Programs side by side where each needs scratch memory: what registers of a device's multiprocessors hold."""
        if device.type == "cpu":
            return 2
        return torch.cuda.get_device_properties(device).multi_processor_count * max(1, WARPS // self.schedule.warps)

    def _time_last(self, node: Node, x: Tensor) -> Tensor:
        """A tensor whose steps lie side by side in memory, as blocks are loaded; its axes keep their places."""
        time = self.convolution_plan.graph.time
        if time not in node.axes or x.stride(node.axes.index(time)) == 1 or x.shape[node.axes.index(time)] == 1:
            return x
        place = node.axes.index(time)
        return x.movedim(place, -1).contiguous().movedim(-1, place)

    def _spectrum(self, k: Node, tensors: dict[str, Tensor], numbers: Mapping[str, int], layout: Layout, device: torch.device) -> None:
        x = self._taps(k, tensors[str(k.name)], numbers)
        which = x.numel() // max(1, x.shape[-1])
        spectrum = torch.empty(which * layout.blocks * 2 * self.schedule.block, dtype=getattr(torch, self.operands.spectra), device=device)
        scale = torch.empty(which, dtype=torch.float32, device=device)
        self._launch(("spectrum", k.type.dtype), which, {**tensors, "k": x, "spectrum": spectrum, "scale": scale},
                     {**numbers, "size": x.shape[-1]})
        tensors |= {f"{k.name}_spectrum": spectrum, f"{k.name}_scale": scale}

    def _taps(self, k: Node, x: Tensor, numbers: Mapping[str, int]) -> Tensor:
        """A contiguous tensor of kernels [which, taps], without the taps that reach past the start."""
        plan = self.convolution_plan
        x = x.movedim(k.axes.index(plan.tap(k)), -1)
        return x[..., : numbers[f"size_{plan.graph.time}"]].contiguous()

    def _memory_axes(self, output: Output) -> tuple[str, ...]:
        """A result's axes in memory, time or a gradient's lags last."""
        last = self._tap_of(output)
        return (*(a for a in output.axes if a != last), last)

    def _tap_of(self, output: Output) -> str:
        return next((g.tap for g in self.convolution_plan.gradients if g.output is output), self.convolution_plan.graph.time)

    def _from_memory(self, output: Output) -> list[int]:
        memory = self._memory_axes(output)
        return [memory.index(a) for a in output.axes]

    def _result(self, output: Output, sizes: Mapping[str, int], device: torch.device) -> Tensor:
        dtype = getattr(torch, storage_dtype(self.convolution_plan.graph, output))
        return torch.empty([sizes[a] for a in self._memory_axes(output)], dtype=dtype, device=device)

    def _gradient(self, output: Output, partial: Tensor, tensors: Mapping[str, Tensor], numbers: Mapping[str, int],
                  sizes: Mapping[str, int], layout: Layout, device: torch.device) -> Tensor:
        """A kernel's gradient over the plan's channels, brought to the order of its own axes."""
        dk = self._sums(output, partial, self._new_gradient(output, sizes, device), tensors, numbers, layout)
        return self._as_asked(output, dk)

    def _new_gradient(self, output: Output, sizes: Mapping[str, int], device: torch.device) -> Tensor:
        plan, tap = self.convolution_plan, self._tap_of(output)
        shape, dtype = [*(sizes[a] for a in plan.channels), sizes[tap]], getattr(torch, storage_dtype(plan.graph, output))
        few = sizes[tap] <= sizes[plan.graph.time]  # lags that there are
        return torch.empty(shape, dtype=dtype, device=device) if few else torch.zeros(shape, dtype=dtype, device=device)

    def _as_asked(self, output: Output, dk: Tensor) -> Tensor:
        order = (*self.convolution_plan.channels, self._tap_of(output))
        missing = [i for i, a in enumerate(order) if a not in output.axes]
        dk = dk.sum(missing) if missing else dk
        kept = [a for a in order if a in output.axes]
        return dk.permute([kept.index(a) for a in self._memory_axes(output)])

    def _sums(self, output: Output, partial: Tensor, dk: Tensor, tensors: Mapping[str, Tensor], numbers: Mapping[str, int],
              layout: Layout) -> Tensor:
        """Programs' parts of a gradient, added up."""
        dtype = storage_dtype(self.convolution_plan.graph, output)
        here = {**numbers, "size": dk.shape[-1]}
        self._launch(("gradient", dtype), layout.channels * layout.blocks, {**tensors, "partial": partial, "dk": dk}, here)
        return dk

    def _launch(self, key: tuple[str, Any], programs: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> None:
        source = self.make(*key)
        if key not in self._loaded:
            with self._lock:
                if not available(self.target):
                    raise BackendUnavailable(f"kernels for {self.target} need that device and a torch built for it", backend="triton",
                                             remedy="Use target cpu:interpret:triton to try a kernel without a GPU.")
                kind = self.target.kind
                self._loaded[key] = Launcher(kernel_of(source, self.target), source.options(kind), kind != "cpu")
        pointers = [tensors[a.name] for a in source.arguments]
        strides = [s for a, t in zip(source.arguments, pointers, strict=True) if a.axes for s in self._strides(a.name, a.axes, t)]
        self._loaded[key](programs, pointers, (*strides, *[numbers[n] for n in source.numbers]))

    def _strides(self, name: str, axes: tuple[str, ...], x: Tensor) -> list[int]:
        """Strides in the order of an argument's axes: a result lies in memory with time last."""
        output = next((o for o in self.convolution_plan.stores if o.name == name), None)
        memory = list(self._memory_axes(output)) if output is not None else list(axes)
        return [1 if a == self.convolution_plan.graph.time else x.stride(memory.index(a)) for a in axes]


class _Bound:
    """A program for inputs of one signature: see scanc.compiler.Bound. Only the first call looks at sizes."""

    def __init__(self, program: ConvolutionExecutable) -> None:
        self.program = program
        self._before = program.earlier.bind() if program.earlier is not None else None
        self._decided: tuple[dict[str, int], Layout] | None = None

    def __call__(self, inputs: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> dict[str, Tensor]:
        program, plan, given = self.program, self.program.convolution_plan, inputs
        if self._before is not None:
            given = {**given, **self._before(given, {})}
        elif plan.before is not None:
            given = {**given, **evaluate(plan.before, given, dtype=torch.float32)}
        if self._decided is None:
            sizes = axis_sizes(program.graph, inputs)
            self._decided = sizes, program.layout(sizes)
        made = program.computed(given, *self._decided)
        if plan.after is not None:
            late = evaluate(plan.after, {**given, **made}, dtype=torch.float32)
            made |= {o.name: late[o.name].to(getattr(torch, storage_dtype(program.graph, o))) for o in plan.after.outputs}
        for name, storage in into.items():
            made[name] = storage.copy_(made[name])
        return {o.name: made[o.name] for o in program.graph.outputs}


__all__ = ["ConvolutionExecutable", "Layout", "circle", "tables"]
