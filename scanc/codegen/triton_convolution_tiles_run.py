"""Running the form convolution by its routes without transforms, ``toeplitz`` and ``direct`` (see triton_convolution_tiles.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scanc.codegen.layout import storage_dtype
from scanc.codegen.triton_convolution import ConvolutionSource
from scanc.codegen.triton_convolution_run import ConvolutionExecutable, Layout
from scanc.codegen.triton_convolution_tiles import (
    GradientPrinter,
    TapGradientPrinter,
    TapsPrinter,
    ToeplitzPrinter,
    copies_name,
    tap_copies,
    taps_gradient,
)
from scanc.forms.convolution import Term
from scanc.ir import Output


class TilesExecutable(ConvolutionExecutable):
    """A graph of the form convolution by the route ``toeplitz`` or ``direct``. Raises UnsupportedForm where it does not fit."""

    def make(self, kind: str, what: Any) -> ConvolutionSource:
        """A kernel's source: ``main`` and ``pairs`` of one or ``what`` = several tiles, the others of tensors of dtype ``what``."""
        key = (kind, what)
        if key not in self._sources:
            plan, schedule = self.convolution_plan, self.schedule
            title = f"{self.graph.name}: form convolution, {kind}, target {self.target}"
            by_taps = schedule.route == "direct"
            if kind == "main":
                made = (TapsPrinter if by_taps else ToeplitzPrinter)(plan, schedule, self.operands, what, title).source()
            elif kind == "pairs":
                made = (TapGradientPrinter if by_taps else GradientPrinter)(plan, schedule, self.operands, what, title).source()
            elif kind == "gradient":
                made = taps_gradient(schedule, what, title)
            else:
                made = tap_copies(schedule, what, self.operands, kind == "ahead", title)
            self._sources[key] = made
        return self._sources[key]

    @property
    def _terms(self) -> list[Term]:
        return list({copies_name(t): t for p in self.convolution_plan.products for t in p.terms}.values())

    def all_sources(self, many: bool) -> list[ConvolutionSource]:
        plan = self.convolution_plan
        found: list[tuple[str, Any]] = []
        if self.schedule.route == "toeplitz":
            found += [("ahead" if t.reverse else "behind", t.kernel.type.dtype) for t in self._terms]
        if plan.stores:
            found.append(("main", many))
        if plan.gradients:
            found.append(("pairs", many))
            if self.schedule.route == "toeplitz":
                found += [("gradient", storage_dtype(plan.graph, g.output)) for g in plan.gradients]
        return [self.make(*key) for key in dict.fromkeys(found)]

    @property
    def _block(self) -> int:
        return self.schedule.outer

    def computed(self, given: Mapping[str, Tensor], sizes: Mapping[str, int], layout: Layout) -> dict[str, Tensor]:
        plan, schedule = self.convolution_plan, self.schedule
        device = next(iter(given.values())).device
        length, many, toeplitz = sizes[plan.graph.time], layout.blocks > 1, schedule.route == "toeplitz"
        tensors = {str(n.name): self._time_last(n, given[str(n.name)]) for n in plan.graph.inputs}
        numbers = {f"size_{a}": sizes.get(a, 1) for a in plan.graph.order}
        numbers |= {"rows": layout.rows, "walk": layout.walk, "blocks": layout.blocks, "parts": layout.parts, "items": 0,
                    "channels": layout.channels, "size": length, "taps": length}
        for k in plan.kernels:
            tensors[f"{k.name}_taps"] = self._taps(k, tensors[str(k.name)], numbers)
        if toeplitz:
            for t in self._terms:
                self._copies(t, tensors, numbers, length)
        made = {o.name: self._result(o, sizes, device) for o in plan.stores}
        tensors |= made
        programs = layout.parts * layout.channels
        if plan.stores:
            self._launch(("main", many), programs * layout.blocks, tensors, numbers)
        pairs = list(dict.fromkeys((g.signal, g.cotangent) for g in plan.gradients))
        lags = max((min(length, sizes[g.tap]) for g in plan.gradients), default=1)
        # Blocks of lags: differences of blocks of steps that lie less than so many steps apart.
        blocks = min(layout.blocks, (lags + schedule.outer - 2) // schedule.outer + 1)
        numbers |= {"blocks": blocks, "items": lags}
        kept = blocks * 2 * schedule.outer if toeplitz else lags
        for i in range(len(pairs)):
            tensors[f"partial{i}"] = torch.empty(programs * kept, dtype=torch.float32, device=device)
        if pairs:
            self._launch(("pairs", many), programs * (blocks if toeplitz else 1), tensors, numbers)
        for g in plan.gradients:
            partial = tensors[f"partial{pairs.index((g.signal, g.cotangent))}"]
            made[g.output.name] = self._gradient(g.output, partial, tensors, numbers, sizes, layout, device)
        return {o.name: made[o.name].permute(self._from_memory(o)) for o in plan.graph.outputs if o.name in made}

    def _copies(self, t: Term, tensors: dict[str, Tensor], numbers: Mapping[str, int], length: int) -> None:
        taps, edge = tensors[f"{t.kernel.name}_taps"], max(self.schedule.outer, self.schedule.inner)
        which, pitch = taps.numel() // max(1, taps.shape[-1]), (-(-length // edge) + 2) * edge
        copies = torch.empty(which * 8 * pitch, dtype=getattr(torch, self.operands.matrix), device=taps.device)
        back = torch.empty(which, dtype=torch.float32, device=taps.device)
        kind = ("ahead" if t.reverse else "behind", t.kernel.type.dtype)
        self._launch(kind, which, {"k": taps, "copies": copies, "back": back}, {**numbers, "taps": taps.shape[-1]})
        tensors |= {copies_name(t): copies, f"{copies_name(t)}_back": back}

    def _sums(self, output: Output, partial: Tensor, dk: Tensor, tensors: Mapping[str, Tensor], numbers: Mapping[str, int],
              layout: Layout) -> Tensor:
        lags = min(dk.shape[-1], numbers["items"])
        if self.schedule.route == "direct":
            total = partial.view(layout.parts, *dk.shape[:-1], numbers["items"]).sum(0)
            dk[..., :lags] = total[..., :lags]
            return dk
        dtype, blocks = storage_dtype(self.convolution_plan.graph, output), -(-lags // self.schedule.outer)
        here = {**numbers, "taps": dk.shape[-1], "blocks": blocks, "kept": numbers["blocks"]}
        self._launch(("gradient", dtype), layout.channels * blocks, {**tensors, "partial": partial, "dk": dk}, here)
        return dk


__all__ = ["TilesExecutable"]
