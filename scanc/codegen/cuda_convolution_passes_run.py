"""Running the form convolution on the CUDA backend by its route ``passes`` (see cuda_convolution_passes.py)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scanc.codegen.cuda_convolution import SMALL, RadixSource, passes
from scanc.codegen.cuda_convolution_passes import ColumnsPrinter, GradientPrinter, MiddlePrinter, StepsPrinter, columns_of, groups
from scanc.codegen.cuda_convolution_run import RadixExecutable, table
from scanc.codegen.layout import storage_dtype
from scanc.codegen.triton_convolution_run import Layout, circle
from scanc.errors import ScheduleError, UnsupportedForm
from scanc.ir import Graph
from scanc.schedule import ConvolutionSchedule
from scanc.target import Target

# Points of the first pass.
LEAST, MOST = 4, 256
# Bytes that lie between passes at most: channels follow one another beyond that.
HELD = 1 << 30


@functools.lru_cache(maxsize=16)
def turns(points: int, block: int, device: torch.device) -> Tensor:
    """e^{-2πi t f/(P N)} of columns t < N for f = 1/4, 1, 2, 4, …: [f, t], complex numbers as pairs."""
    steps = torch.tensor([0.25, *(1 << i for i in range(points.bit_length() - 1))], dtype=torch.float64)
    made = circle(steps[:, None] * torch.arange(block, dtype=torch.float64) / (points * block))
    return made.movedim(0, -1).float().contiguous().to(device)


class PassesExecutable(RadixExecutable):
    """A graph of the form convolution by three passes over memory. Raises UnsupportedForm where it does not fit."""

    def __init__(self, graph: Graph, target: Target, schedule: ConvolutionSchedule) -> None:
        super().__init__(graph, target, schedule)
        if schedule.operands != "float32":
            raise ScheduleError(field="operands", value=schedule.operands, limit="what lies between passes of the CUDA backend is float32")
        if self.convolution_plan.tap_axes != (self.convolution_plan.graph.time,):
            raise UnsupportedForm(op=graph.name, form="convolution by route passes", forms="the same by route radix",
                                  reason="a kernel has an axis of its own for its taps")

    def points(self, length: int) -> int:
        """Points of the first pass. Raises ScheduleError where a thread has no room for them."""
        points = max(LEAST, 1 << max(0, -(-length // self.schedule.block) - 1).bit_length())
        if points > MOST:
            raise ScheduleError(field="outer", value=self.schedule.outer, limit=f"{length} steps are more than {MOST} blocks of them")
        return points

    def make(self, kind: str, what: Any) -> RadixSource:  # type: ignore[override]
        """A kernel's source. ``what``: points of the first pass, and the signal or the dtype that the kernel is of."""
        key = (kind, what)
        if key not in self._sources:
            title = f"{self.graph.name}: form convolution, {kind}, target {self.target}"
            plan, schedule = self.convolution_plan, self.schedule
            nodes = (*plan.signals, *plan.kernels)
            if kind == "columns":
                made = ColumnsPrinter(plan, schedule, what[0], title, nodes[what[1]]).source()
            elif kind == "spectra":
                made = MiddlePrinter(plan, schedule, what[0], title, nodes[what[1]]).source()
            elif kind == "middle":
                made = MiddlePrinter(plan, schedule, what, title).source()
            elif kind == "steps":
                made = StepsPrinter(plan, schedule, what, title).source()
            else:
                made = GradientPrinter(plan, schedule, what[0], title, what[1]).source()
            self._sources[key] = made  # type: ignore[assignment]
        return self._sources[key]  # type: ignore[return-value]

    def source(self, state: int = 16, mode: Any = None, schedule: Any = None) -> RadixSource:  # type: ignore[override]
        """The second pass."""
        return self.make("middle", 16)

    def all_sources(self, many: Any) -> list[RadixSource]:  # type: ignore[override]
        plan, points = self.convolution_plan, max(LEAST, int(many))
        count = len(plan.signals)
        found: list[tuple[str, Any]] = [("columns", (points, i)) for i in range(count + len(plan.kernels))]
        found += [("spectra", (points, count + i)) for i in range(len(plan.kernels))]
        found += [("middle", points), *([("steps", points)] if plan.stores else [])]
        found += [("gradient", (points, storage_dtype(plan.graph, g.output))) for g in plan.gradients]
        return [self.make(*key) for key in dict.fromkeys(found)]

    def shape_of(self, sizes: Mapping[str, int]) -> Any:
        """The first pass's points, which are fixed in a source."""
        return self.points(sizes.get(self.convolution_plan.graph.time, 1))

    def layout(self, sizes: Mapping[str, int]) -> Layout:
        found = super().layout(sizes)
        return Layout(found.rows, found.channels, self.points(sizes[self.convolution_plan.graph.time]), 1, 1)

    def computed(self, given: Mapping[str, Tensor], sizes: Mapping[str, int], layout: Layout) -> dict[str, Tensor]:
        plan, block, device = self.convolution_plan, self.schedule.block, next(iter(given.values())).device
        points, rows, count = layout.blocks, layout.rows, len(plan.signals)
        tensors = {str(n.name): self._time_last(n, given[str(n.name)]) for n in plan.graph.inputs}
        tensors |= {"table": table(passes(self.schedule), device), "turn": turns(points, block, device),
                    "within": turns(16, groups(points), device)}
        numbers = {f"size_{a}": sizes.get(a, 1) for a in plan.graph.order} | {"rows": rows, "size": sizes[plan.graph.time]}
        made = {o.name: self._result(o, sizes, device) for o in plan.stores}
        tensors |= made
        gradients = {g.output.name: self._new_gradient(g.output, sizes, device) for g in plan.gradients}
        pairs = list(dict.fromkeys((g.signal, g.cotangent) for g in plan.gradients))
        group = self._buffers(tensors, layout, len(pairs), device)
        for base in range(0, layout.channels, group):
            some = min(group, layout.channels - base)
            here = numbers | {"base": base}
            for i in range(len(plan.kernels)):
                self._columns(("columns", (points, count + i)), some, tensors, here)
                self._launch(("spectra", (points, count + i)), some * points, tensors, here)
            for i in range(count):
                self._columns(("columns", (points, i)), some * rows, tensors, here)
            self._launch(("middle", points), some * points, tensors, here)
            if plan.stores:
                self._columns(("steps", points), some * rows, tensors, here)
            for g in plan.gradients:
                own = {**tensors, "pair_z": tensors[f"pair{pairs.index((g.signal, g.cotangent))}_z"], "dk": gradients[g.output.name]}
                self._columns(("gradient", (points, storage_dtype(plan.graph, g.output))), some, own, here)
        made |= {g.output.name: self._as_asked(g.output, gradients[g.output.name]) for g in plan.gradients}
        return {o.name: made[o.name].permute(self._from_memory(o)) for o in plan.graph.outputs if o.name in made}

    def _columns(self, key: tuple[str, Any], items: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> None:
        """Launches a pass over columns."""
        points = key[1] if isinstance(key[1], int) else key[1][0]
        self._launch(key, items * (self.schedule.block // columns_of(points, self.schedule.block)), tensors, numbers)

    def _buffers(self, tensors: dict[str, Tensor], layout: Layout, pairs: int, device: torch.device) -> int:
        """What lies between passes, for so many channels at a time as are returned. A product takes its signal's place where it is the
        only one of it and spectra are kept elsewhere."""
        plan, block = self.convolution_plan, self.schedule.block
        numbers = layout.blocks * block
        shared = {p: plan.signals.index(p.terms[0].signal) for p in plan.products
                  if block <= SMALL and sum(q.terms[0].signal is p.terms[0].signal for q in plan.products) == 1}
        if block > SMALL and len(plan.signals) == len(plan.products) == 1 and not pairs:
            shared = {plan.products[0]: 0}
        each = layout.rows * (len(plan.signals) + len(plan.products) - len(shared)) + 2 * len(plan.kernels) + pairs
        group = max(1, min(layout.channels, HELD // (each * numbers * 8)))

        def z(items: int) -> Tensor:
            return torch.empty(items * numbers, dtype=torch.complex64, device=device)

        for i in range(len(plan.signals)):
            tensors[f"s{i}_z"] = z(group * layout.rows)
        for k in plan.kernels:
            tensors[f"{k.name}_z"], tensors[f"{k.name}_spectrum"] = z(group), z(group)
        for i, p in enumerate(plan.products):
            tensors[f"product{i}_z"] = tensors[f"s{shared[p]}_z"] if p in shared else z(group * layout.rows)
        for i in range(pairs):
            tensors[f"pair{i}_z"] = z(group)
        return group


__all__ = ["PassesExecutable"]
