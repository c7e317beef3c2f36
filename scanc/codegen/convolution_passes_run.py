"""Running the form convolution in three passes over memory, on any backend: which kernels, in what order, and what lies between them.

    columns     of each signal and each kernel                              z of each
    spectra     of each kernel                                              its spectrum
    middle      products of spectra, sums over rows                         z of each product, of each pair
    steps       results from products                                       gradient    kernels' gradients from pairs

A kernel is made for the points that its columns have, and for the signal, the kernel or the dtype that it is of: its key is (kind,
(points, of)). Some channels follow others, so that no more lies between passes than a backend allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from scanc.codegen.layout import storage_dtype
from scanc.codegen.triton_convolution_run import ConvolutionExecutable, Layout
from scanc.errors import ScheduleError, UnsupportedForm
from scanc.forms.convolution import Product
from scanc.ir import Graph
from scanc.schedule import ConvolutionSchedule
from scanc.target import Target

Key = tuple[str, Any]


class InPasses(ConvolutionExecutable):
    """A graph of the form convolution by the route ``passes``. Raises UnsupportedForm, ScheduleError where it does not fit.

    A backend says

    ``between``          the operands that its schedule must ask for
    ``least``, ``most``  points of columns        ``held``  bytes between passes at a time
    """

    between: ClassVar[str]
    least: ClassVar[int]
    most: ClassVar[int]
    held: ClassVar[int]

    def printed(self, kind: str, points: int, title: str, *of: Any) -> Any:
        """A kernel's source. ``of``: a node, or a dtype; nothing for ``middle`` and ``steps``."""
        raise NotImplementedError

    def tables(self, given: Mapping[str, Tensor], sizes: Mapping[str, int], points: int, device: torch.device) -> dict[str, Tensor]:
        """What kernels read beside the graph's inputs and one another's results."""
        raise NotImplementedError

    def tiles(self, points: int) -> int:
        """Programs that share the columns of one sequence."""
        raise NotImplementedError

    def z(self, items: int, points: int, device: torch.device) -> Tensor:
        """Memory for what lies between passes, of so many sequences, or for their spectra."""
        raise NotImplementedError

    def beside(self, word: str, items: int, points: int, device: torch.device, *, made: bool) -> dict[str, Tensor]:
        """What goes along with a z, by name. ``made``: the middle's to write."""
        return {}

    def in_place(self) -> dict[Product, int]:
        """Products that may lie where a signal did, and the signal's number."""
        raise NotImplementedError

    # -- what all share -------------------------------------------------------------------------------------------------------

    def __init__(self, graph: Graph, target: Target, schedule: ConvolutionSchedule) -> None:
        super().__init__(graph, target, schedule)
        if schedule.operands != self.between:
            raise ScheduleError(field="operands", value=schedule.operands,
                                limit=f"what lies between passes of the {target.backend} backend is {self.between}")
        if self.convolution_plan.tap_axes != (self.convolution_plan.graph.time,):
            raise UnsupportedForm(op=graph.name, form="convolution by route passes", forms="the same by route radix, toeplitz or monarch",
                                  reason="a kernel has an axis of its own for its taps")

    def points(self, length: int) -> int:
        """Points of the columns of a sequence: what is left of a power of two that holds it. Raises ScheduleError."""
        points = max(self.least, 1 << max(0, -(-length // self.schedule.block) - 1).bit_length())
        if points > self.most:
            raise ScheduleError(field="outer", value=self.schedule.outer, limit=f"{length} steps are more than {self.most} blocks of them")
        return points

    def make(self, kind: str, what: Any) -> Any:
        key = (kind, what)
        if key not in self._sources:
            points, *of = what
            nodes = (*self.convolution_plan.signals, *self.convolution_plan.kernels)
            of = [nodes[x] if isinstance(x, int) else x for x in of]
            self._sources[key] = self.printed(kind, points, f"{self.graph.name}: form convolution, {kind}, target {self.target}", *of)
        return self._sources[key]

    def source(self, state: int = 16, mode: Any = None, schedule: Any = None) -> Any:
        """The second pass."""
        return self.make("middle", (16,))

    def all_sources(self, many: Any) -> list[Any]:
        plan, points = self.convolution_plan, max(self.least, int(many))
        count = len(plan.signals)
        found: list[Key] = [("columns", (points, i)) for i in range(count + len(plan.kernels))]
        found += [("spectra", (points, count + i)) for i in range(len(plan.kernels))]
        found += [("middle", (points,)), *([("steps", (points,))] if plan.stores else [])]
        found += [("gradient", (points, storage_dtype(plan.graph, g.output))) for g in plan.gradients]
        return [self.make(*key) for key in dict.fromkeys(found)]

    def shape_of(self, sizes: Mapping[str, int]) -> Any:
        """The columns' points, which are fixed in a source."""
        return self.points(sizes.get(self.convolution_plan.graph.time, 1))

    def layout(self, sizes: Mapping[str, int]) -> Layout:
        found = super().layout(sizes)
        return Layout(found.rows, found.channels, self.points(sizes[self.convolution_plan.graph.time]), 1, 1)

    def computed(self, given: Mapping[str, Tensor], sizes: Mapping[str, int], layout: Layout) -> dict[str, Tensor]:
        plan, device, points, rows = self.convolution_plan, next(iter(given.values())).device, layout.blocks, layout.rows
        tensors = {str(n.name): self._time_last(n, given[str(n.name)]) for n in plan.graph.inputs}
        tensors |= self.tables(tensors, sizes, points, device)
        numbers = {f"size_{a}": sizes.get(a, 1) for a in plan.graph.order} | {"rows": rows, "size": sizes[plan.graph.time]}
        made = {o.name: self._result(o, sizes, device) for o in plan.stores}
        tensors |= made
        gradients = {g.output.name: self._new_gradient(g.output, sizes, device) for g in plan.gradients}
        pairs = list(dict.fromkeys((g.signal, g.cotangent) for g in plan.gradients))
        group, count, tiles = self._places(tensors, layout, len(pairs), device), len(plan.signals), self.tiles(points)
        for base in range(0, layout.channels, group):
            some = min(group, layout.channels - base)
            here = numbers | {"base": base}
            for i in range(count, count + len(plan.kernels)):
                self._launch(("columns", (points, i)), some * tiles, tensors, here)
                self._launch(("spectra", (points, i)), some * points, tensors, here)
            for i in range(count):
                self._launch(("columns", (points, i)), some * rows * tiles, tensors, here)
            self._launch(("middle", (points,)), some * points, tensors, here)
            if plan.stores:
                self._launch(("steps", (points,)), some * rows * tiles, tensors, here)
            for g in plan.gradients:
                word = f"pair{pairs.index((g.signal, g.cotangent))}_"
                own = {f"pair_{name.removeprefix(word)}": x for name, x in tensors.items() if name.startswith(word)}
                own = {**tensors, **own, "dk": gradients[g.output.name]}
                self._launch(("gradient", (points, storage_dtype(plan.graph, g.output))), some * tiles, own, here)
        made |= {g.output.name: self._as_asked(g.output, gradients[g.output.name]) for g in plan.gradients}
        return {o.name: made[o.name].permute(self._from_memory(o)) for o in plan.graph.outputs if o.name in made}

    def _places(self, tensors: dict[str, Tensor], layout: Layout, pairs: int, device: torch.device) -> int:
        """What lies between passes, for so many channels at a time as are returned."""
        plan, points, shared = self.convolution_plan, layout.blocks, self.in_place()
        sequences = layout.rows * (len(plan.signals) + len(plan.products) - len(shared)) + 2 * len(plan.kernels) + pairs
        group = max(1, min(layout.channels, self.held // (sequences * self.z(1, points, torch.device("meta")).nbytes)))

        def place(word: str, items: int, *, made: bool = False, at: Tensor | None = None) -> None:
            tensors[f"{word}_z"] = self.z(items, points, device) if at is None else at
            tensors.update(self.beside(word, items, points, device, made=made))

        for i in range(len(plan.signals)):
            place(f"s{i}", group * layout.rows)
        for k in plan.kernels:
            place(str(k.name), group)
            tensors[f"{k.name}_spectrum"] = self.z(group, points, device)
        for i, p in enumerate(plan.products):
            place(f"product{i}", group * layout.rows, made=True, at=tensors[f"s{shared[p]}_z"] if p in shared else None)
        for i in range(pairs):
            place(f"pair{i}", group, made=True)
        return group


__all__ = ["InPasses"]
