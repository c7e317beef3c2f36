"""Running the form convolution on the CUDA backend by its route ``passes`` (see cuda_convolution_passes.py)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scanc.codegen import cuda_convolution_passes as printing
from scanc.codegen.convolution_passes_run import InPasses
from scanc.codegen.cuda_convolution_run import RadixExecutable, table
from scanc.codegen.cuda_convolution_source import SMALL, RadixSource, passes
from scanc.codegen.triton_convolution_run import circle
from scanc.forms.convolution import Product

PRINTERS: dict[str, type[Any]] = {"columns": printing.ColumnsPrinter, "spectra": printing.MiddlePrinter, "middle": printing.MiddlePrinter,
                                  "steps": printing.StepsPrinter, "gradient": printing.GradientPrinter}


@functools.lru_cache(maxsize=16)
def turns(points: int, block: int, device: torch.device) -> Tensor:
    """e^{-2πi t f/(P N)} of columns t < N for f = 1/4, 1, 2, 4, …: [f, t], complex numbers as pairs."""
    steps = torch.tensor([0.25, *(1 << i for i in range(points.bit_length() - 1))], dtype=torch.float64)
    made = circle(steps[:, None] * torch.arange(block, dtype=torch.float64) / (points * block))
    return made.movedim(0, -1).float().contiguous().to(device)


class PassesExecutable(InPasses, RadixExecutable):
    """A graph of the form convolution by three passes over memory. Raises UnsupportedForm where it does not fit."""

    between, least, most, held = "float32", 4, 1024, 1 << 30

    def printed(self, kind: str, points: int, title: str, *of: Any) -> RadixSource:
        made: RadixSource = PRINTERS[kind](self.convolution_plan, self.schedule, points, title, *of).source()
        return made

    def tables(self, given: Mapping[str, Tensor], sizes: Mapping[str, int], points: int, device: torch.device) -> dict[str, Tensor]:
        return {"table": table(passes(self.schedule), device), "turn": turns(points, self.schedule.block, device),
                "within": turns(printing.own_points(points), printing.groups(points), device)}

    def tiles(self, points: int) -> int:
        return self.schedule.block // printing.columns_of(points, self.schedule.block)

    def z(self, items: int, points: int, device: torch.device) -> Tensor:
        return torch.empty(items * points * self.schedule.block, dtype=torch.complex64, device=device)

    def in_place(self) -> dict[Product, int]:
        """A product takes its signal's place where it is the only one of it and spectra are kept elsewhere."""
        plan, small = self.convolution_plan, self.schedule.block <= SMALL
        if not small and (plan.gradients or not len(plan.signals) == len(plan.products) == 1):
            return {}
        signals = [p.terms[0].signal for p in plan.products]
        return {p: plan.signals.index(s) for p, s in zip(plan.products, signals, strict=True) if signals.count(s) == 1}


__all__ = ["PassesExecutable"]
