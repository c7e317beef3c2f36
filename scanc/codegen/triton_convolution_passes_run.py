"""Running the form convolution by its route ``passes`` (see triton_convolution_passes.py)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scanc.codegen.convolution_passes_run import InPasses
from scanc.codegen.triton_convolution import ConvolutionSource
from scanc.codegen.triton_convolution_language import Operands
from scanc.codegen.triton_convolution_passes import ColumnsPrinter, MiddlePrinter, PairPrinter, StepsPrinter, columns_tile
from scanc.codegen.triton_convolution_run import circle, tables
from scanc.forms.convolution import Product
from scanc.ir import Node

PRINTERS: dict[str, type[Any]] = {"columns": ColumnsPrinter, "spectra": MiddlePrinter, "middle": MiddlePrinter, "steps": StepsPrinter,
                                  "gradient": PairPrinter}


@functools.lru_cache(maxsize=16)
def first_tables(points: int, columns: int, tile: int, operands: Operands, device: torch.device) -> dict[str, Tensor]:
    """e^{-2πi t0 (p+1/4)/P}, and e^{-2πi t' (p+1/4)/N} of a tile's columns and of the tiles' first ones."""
    p = torch.arange(points, dtype=torch.float64)[:, None] + 0.25
    first = circle(p * torch.arange(points, dtype=torch.float64) / points)
    inside = circle(p * torch.arange(tile, dtype=torch.float64) / (points * columns))
    starts = circle(p * torch.arange(0, columns, tile, dtype=torch.float64) / (points * columns)).permute(2, 0, 1)
    return {"first": first.to(device, getattr(torch, operands.matrix)).contiguous(),
            "turn": torch.cat([inside.flatten(), starts.flatten()]).to(device, torch.float32)}


class PassesExecutable(InPasses):
    """A graph of the form convolution by the route ``passes``. Raises UnsupportedForm where it does not fit."""

    between, least, most, held = "float16", 16, 128, 512 << 20

    def printed(self, kind: str, points: int, title: str, *of: Any) -> ConvolutionSource:
        made: ConvolutionSource = PRINTERS[kind](self.convolution_plan, self.schedule, self.operands, points, title, *of).source()
        return made

    def tables(self, given: Mapping[str, Tensor], sizes: Mapping[str, int], points: int, device: torch.device) -> dict[str, Tensor]:
        schedule, tile = self.schedule, columns_tile(points, self.schedule)
        found = tables(schedule.outer, schedule.inner, schedule.warps, self.operands, device, 0.0)
        found |= first_tables(points, schedule.block, tile, self.operands, device)
        return found | {f"{k.name}_scale": self._scale(k, given[str(k.name)], sizes) for k in self.convolution_plan.kernels}

    def tiles(self, points: int) -> int:
        return self.schedule.block // columns_tile(points, self.schedule)

    def z(self, items: int, points: int, device: torch.device) -> Tensor:
        return torch.empty(items * points * 2 * self.schedule.block, dtype=getattr(torch, self.operands.spectra), device=device)

    def beside(self, word: str, items: int, points: int, device: torch.device, *, made: bool) -> dict[str, Tensor]:
        """Factors that take the scaling of tiles of columns back, or of rows of what the middle makes."""
        each = points if made else self.tiles(points)
        return {f"{word}_{'tops' if made else 'backs'}": torch.empty(items * each, device=device)}

    def in_place(self) -> dict[Product, int]:
        """A product takes its signal's place where it is the first of it."""
        plan = self.convolution_plan
        first = {p.terms[0].signal: p for p in reversed(plan.products)}
        return {p: plan.signals.index(s) for s, p in first.items()}

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


__all__ = ["PassesExecutable"]
