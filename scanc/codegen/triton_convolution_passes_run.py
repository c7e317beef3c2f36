"""Running the form convolution by its route ``passes`` (see triton_convolution_passes.py)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scanc.codegen.layout import storage_dtype
from scanc.codegen.triton_convolution import ConvolutionSource
from scanc.codegen.triton_convolution_language import Operands
from scanc.codegen.triton_convolution_passes import ColumnsPrinter, MiddlePrinter, PairPrinter, StepsPrinter, columns_tile
from scanc.codegen.triton_convolution_run import ConvolutionExecutable, Layout, circle, tables
from scanc.errors import ScheduleError, UnsupportedForm
from scanc.ir import Graph, Node
from scanc.schedule import ConvolutionSchedule
from scanc.target import Target

# Bytes between passes that a call holds at a time: some channels after others.
HELD = 512 << 20
MOST_POINTS = 128


@functools.lru_cache(maxsize=16)
def first_tables(points: int, columns: int, tile: int, operands: Operands, device: torch.device) -> dict[str, Tensor]:
    """e^{-2πi t0 (p+1/4)/P}, and e^{-2πi t' (p+1/4)/N} of a tile's columns and of the tiles' first ones."""
    p = torch.arange(points, dtype=torch.float64)[:, None] + 0.25
    first = circle(p * torch.arange(points, dtype=torch.float64) / points)
    inside = circle(p * torch.arange(tile, dtype=torch.float64) / (points * columns))
    starts = circle(p * torch.arange(0, columns, tile, dtype=torch.float64) / (points * columns)).permute(2, 0, 1)
    return {"first": first.to(device, getattr(torch, operands.matrix)).contiguous(),
            "turn": torch.cat([inside.flatten(), starts.flatten()]).to(device, torch.float32)}


class PassesExecutable(ConvolutionExecutable):
    """A graph of the form convolution by the route ``passes``. Raises UnsupportedForm where it does not fit."""

    def __init__(self, graph: Graph, target: Target, schedule: ConvolutionSchedule) -> None:
        super().__init__(graph, target, schedule)
        if schedule.operands != "float16":
            raise ScheduleError(field="operands", value=schedule.operands, limit="between passes of the Triton backend lies float16")
        if any(tap != self.convolution_plan.graph.time for tap in self.convolution_plan.tap_axes):
            raise UnsupportedForm(op=graph.name, form="convolution in passes", forms="convolution by route toeplitz or monarch",
                                  reason="a kernel has a tap axis of its own")

    def points(self, length: int) -> int:
        """P: what is left of a power of two that holds the sequence. Raises ScheduleError beyond what one product takes."""
        points = 16
        while points * self.schedule.block < length:
            points *= 2
        if points > MOST_POINTS:
            limit = f"outer × inner × {MOST_POINTS} steps are the most that three passes take, not {length}"
            raise ScheduleError(field="outer", value=self.schedule.outer, limit=limit)
        return points

    def make(self, kind: str, what: Any) -> ConvolutionSource:
        """A kernel's source. ``what``: points of the first transform, and the signal or the dtype that the kernel is of."""
        key = (kind, what)
        if key not in self._sources:
            title = f"{self.graph.name}: form convolution, {kind}, target {self.target}"
            plan, shared = self.convolution_plan, (self.convolution_plan, self.schedule, self.operands)
            nodes = (*plan.signals, *plan.kernels)
            if kind == "columns":
                made = ColumnsPrinter(*shared, what[0], title, nodes[what[1]]).source()
            elif kind == "spectra":
                made = MiddlePrinter(*shared, what[0], title, nodes[what[1]]).source()
            elif kind == "middle":
                made = MiddlePrinter(*shared, what, title).source()
            elif kind == "steps":
                made = StepsPrinter(*shared, what, title).source()
            else:
                made = PairPrinter(*shared, what[0], title, what[1]).source()
            self._sources[key] = made
        return self._sources[key]

    def source(self, state: int = 16, mode: Any = None, schedule: Any = None) -> ConvolutionSource:  # type: ignore[override]
        """The second pass."""
        return self.make("middle", 16)

    def all_sources(self, many: Any) -> list[ConvolutionSource]:
        plan, points = self.convolution_plan, int(many) if int(many) >= 16 else 16
        count = len(plan.signals)
        found: list[tuple[str, Any]] = [("columns", (points, i)) for i in range(count + len(plan.kernels))]
        found += [("spectra", (points, count + i)) for i in range(len(plan.kernels))]
        found += [("middle", points), *([("steps", points)] if plan.stores else [])]
        found += [("gradient", (points, storage_dtype(plan.graph, g.output))) for g in plan.gradients]
        return [self.make(*key) for key in dict.fromkeys(found)]

    def shape_of(self, sizes: Mapping[str, int]) -> Any:
        """The first transform's points, which are fixed in a source."""
        return self.points(sizes.get(self.convolution_plan.graph.time, 1))

    def layout(self, sizes: Mapping[str, int]) -> Layout:
        found = super().layout(sizes)
        return Layout(found.rows, found.channels, self.points(sizes[self.convolution_plan.graph.time]), 1, 1)

    def computed(self, given: Mapping[str, Tensor], sizes: Mapping[str, int], layout: Layout) -> dict[str, Tensor]:
        plan, schedule, device = self.convolution_plan, self.schedule, next(iter(given.values())).device
        points, rows, tile = layout.blocks, layout.rows, columns_tile(layout.blocks, self.schedule)
        tensors = {str(n.name): self._time_last(n, given[str(n.name)]) for n in plan.graph.inputs}
        tensors |= tables(schedule.outer, schedule.inner, schedule.warps, self.operands, device, 0.0)
        tensors |= first_tables(points, schedule.block, tile, self.operands, device)
        numbers = {f"size_{a}": sizes.get(a, 1) for a in plan.graph.order} | {"rows": rows}
        for k in plan.kernels:
            tensors[f"{k.name}_scale"] = self._scale(k, tensors[str(k.name)], sizes)
        made = {o.name: self._result(o, sizes, device) for o in plan.stores}
        tensors |= made
        gradients = {g.output.name: self._new_gradient(g.output, sizes, device) for g in plan.gradients}
        pairs = list(dict.fromkeys((g.signal, g.cotangent) for g in plan.gradients))
        group = self._buffers(tensors, layout, len(pairs), device)
        tiles, count = schedule.block // tile, len(plan.signals)
        for base in range(0, layout.channels, group):
            some = min(group, layout.channels - base)
            here = numbers | {"base": base}
            for i in range(len(plan.kernels)):
                self._launch(("columns", (points, count + i)), some * tiles, tensors, here)
                self._launch(("spectra", (points, count + i)), some * points, tensors, here)
            for i in range(count):
                self._launch(("columns", (points, i)), some * rows * tiles, tensors, here)
            self._launch(("middle", points), some * points, tensors, here)
            if plan.stores:
                self._launch(("steps", points), some * rows * tiles, tensors, here)
            for g in plan.gradients:
                i, dk = pairs.index((g.signal, g.cotangent)), gradients[g.output.name]
                own = {**tensors, "pair_z": tensors[f"pair{i}_z"], "pair_tops": tensors[f"pair{i}_tops"], "dk": dk}
                self._launch(("gradient", (points, storage_dtype(plan.graph, g.output))), some * tiles, own, here)
        made |= {g.output.name: self._as_asked(g.output, gradients[g.output.name]) for g in plan.gradients}
        return {o.name: made[o.name].permute(self._from_memory(o)) for o in plan.graph.outputs if o.name in made}

    def _scale(self, k: Node, x: Tensor, sizes: Mapping[str, int]) -> Tensor:
        """Twice the sum of a kernel's taps' sizes, for each of the plan's channels."""
        plan = self.convolution_plan
        total = x.abs().sum(k.axes.index(plan.graph.time), dtype=torch.float32).mul_(2.0).clamp_(min=1e-37)
        own = [a for a in k.axes if a != plan.graph.time]
        return self._over_channels(total, own, sizes)

    def _over_channels(self, x: Tensor, own: list[str], sizes: Mapping[str, int]) -> Tensor:
        """A value over a kernel's axes, for each channel; a group's members share it."""
        plan = self.convolution_plan
        for i, a in enumerate(own):
            parent = plan.graph.groups.get(a)
            if a not in plan.channels and parent is not None:
                x, own = x.repeat_interleave(sizes[parent] // sizes[a], i), [*own[:i], parent, *own[i + 1:]]
        x = x.permute([own.index(a) for a in plan.channels if a in own])
        for i, a in enumerate(plan.channels):
            if a not in own:
                x = x.unsqueeze(i)
        return x.expand([sizes[a] for a in plan.channels]).contiguous()

    def _buffers(self, tensors: dict[str, Tensor], layout: Layout, pairs: int, device: torch.device) -> int:
        """What lies between passes, for so many channels at a time as are returned. A product takes its signal's place where it is the
        first of it."""
        plan, points = self.convolution_plan, layout.blocks
        tile, dtype = columns_tile(points, self.schedule), getattr(torch, self.operands.spectra)
        numbers = points * 2 * self.schedule.block
        own = {p.terms[0].signal: i for i, p in reversed(list(enumerate(plan.products)))}
        apart = len(plan.products) - len(own)
        each = layout.rows * (len(plan.signals) + apart) + 2 * len(plan.kernels) + pairs
        group = max(1, min(layout.channels, HELD // (each * numbers * dtype.itemsize)))
        tiles = self.schedule.block // tile

        def z(word: str, items: int, of: Tensor | None = None, *, tops: bool = False) -> None:
            tensors[f"{word}_z"] = torch.empty(items * numbers, dtype=dtype, device=device) if of is None else of
            tensors[f"{word}_{'tops' if tops else 'backs'}"] = torch.empty(items * (points if tops else tiles), device=device)

        for i in range(len(plan.signals)):
            z(f"s{i}", group * layout.rows)
        for k in plan.kernels:
            z(str(k.name), group)
            tensors[f"{k.name}_spectrum"] = torch.empty(group * numbers, dtype=dtype, device=device)
        for i, p in enumerate(plan.products):
            signal = p.terms[0].signal
            shared = tensors[f"s{plan.signals.index(signal)}_z"] if own[signal] == i else None
            z(f"product{i}", group * layout.rows, shared, tops=True)
        for i in range(pairs):
            z(f"pair{i}", group, tops=True)
        return group


__all__ = ["PassesExecutable"]
