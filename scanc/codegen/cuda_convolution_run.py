"""Running the form convolution by its route ``radix`` (see cuda_convolution.py)."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scanc.codegen import build_cuda
from scanc.codegen.cuda_convolution import RadixPrinter
from scanc.codegen.cuda_convolution_source import SMALL, Passes, RadixSource, kernel_gradient, kernel_spectrum, passes
from scanc.codegen.layout import storage_dtype
from scanc.codegen.triton_convolution_run import ConvolutionExecutable, Layout, circle
from scanc.errors import BackendUnavailable
from scanc.ir import Output

# Rows of a pass's table at most: those of a quarter and of 1, 2, 4, 8, 16.
TABLE_ROWS = 6


@functools.lru_cache(maxsize=64)
def table(p: Passes, device: torch.device) -> Tensor:
    """What cuda_fft.h multiplies by between passes: e^{-2πi t f/n} for t < n / radix, f = 1/4 (of the first pass) and 1, 2, 4, ….

    [rows of the first pass, rows of the second], complex numbers as pairs.
    """
    first, second, third = p.radices
    left = p.points // first
    made = torch.zeros(2, TABLE_ROWS, left, 2, dtype=torch.float64)
    for number, (points, radix) in enumerate(((p.points, first), (left, second))[: 2 if third > 1 else 1]):
        columns = torch.arange(points // radix, dtype=torch.float64)
        steps = torch.tensor([0.25, *(1 << i for i in range(radix.bit_length() - 1))], dtype=torch.float64)
        rows = circle(steps[:, None] * columns / points).movedim(0, -1).flatten(0, 1)
        made[number].view(-1, 2)[: len(rows)] = rows
    return made.float().to(device)


class RadixExecutable(ConvolutionExecutable):
    """A graph of the form convolution by float32 transforms in registers. Raises UnsupportedForm where it does not fit."""

    backend = "cuda"

    def make(self, kind: str, what: Any) -> RadixSource:  # type: ignore[override]
        """A kernel's source: the main kernel of one or ``what`` = several blocks, the others of tensors of dtype ``what``."""
        key = (kind, what)
        if key not in self._sources:
            title = f"{self.graph.name}: form convolution, {kind}, target {self.target}"
            if kind == "main":
                made = RadixPrinter(self.convolution_plan, self.schedule, what, title).source()
            else:
                made = (kernel_spectrum if kind == "spectrum" else kernel_gradient)(self.schedule, what, title)
            self._sources[key] = made  # type: ignore[assignment]
        return self._sources[key]  # type: ignore[return-value]

    @property
    def _split(self) -> bool:
        return False

    def _is_many(self, blocks: int) -> bool:
        """Whether spectra go through scratch memory: of several blocks, or where more than one is at hand and one is large."""
        plan = self.convolution_plan
        return blocks > 1 or (self.schedule.block > SMALL and (len(plan.signals) > 1 or len(plan.products) != 1 or bool(plan.gradients)))

    def shape_of(self, sizes: Mapping[str, int]) -> bool:
        return self._is_many(-(-sizes.get(self.convolution_plan.graph.time, 1) // self.schedule.block))

    def layout(self, sizes: Mapping[str, int]) -> Layout:
        plan, schedule = self.convolution_plan, self.schedule
        rows, channels = (math.prod(sizes[a] for a in axes) for axes in (plan.rows, plan.channels))
        walk = min(schedule.walk, rows)
        return Layout(rows, channels, -(-sizes[plan.graph.time] // schedule.block), walk, -(-rows // walk))

    def computed(self, given: Mapping[str, Tensor], sizes: Mapping[str, int], layout: Layout) -> dict[str, Tensor]:
        plan, block, device = self.convolution_plan, self.schedule.block, next(iter(given.values())).device
        length, blocks, many = sizes[plan.graph.time], layout.blocks, self._is_many(layout.blocks)
        tensors = {str(n.name): self._time_last(n, given[str(n.name)]) for n in plan.graph.inputs}
        tensors["table"] = table(passes(self.schedule), device)

        def blocks_of(taps: int) -> int:
            """Blocks of spectra that so many lags reach: one more than they fill, where there is one."""
            return min(blocks, -(-min(taps, length) // block) + 1)

        near = max((blocks_of(sizes[plan.tap(k)]) for k in plan.kernels), default=1)
        held = max((blocks_of(sizes[g.tap]) for g in plan.gradients), default=1)
        items = layout.parts * layout.channels
        numbers = {f"size_{a}": sizes.get(a, 1) for a in plan.graph.order}
        numbers |= {"rows": layout.rows, "walk": layout.walk, "blocks": blocks, "near": near, "held": held, "items": items,
                    "channels": layout.channels, "parts": layout.parts}

        def spectra(count: int) -> Tensor:
            return torch.empty(count * block, dtype=torch.complex64, device=device)

        for k in plan.kernels:
            x = self._taps(k, tensors[str(k.name)], numbers)
            which = x.numel() // max(1, x.shape[-1])
            tensors[f"{k.name}_spectrum"] = spectra(which * near)
            self._launch(("spectrum", k.type.dtype), which, {**tensors, "k": x, "spectrum": tensors[f"{k.name}_spectrum"]},
                         {**numbers, "size": x.shape[-1]})
        made = {o.name: self._result(o, sizes, device) for o in plan.stores}
        tensors |= made
        pairs = list(dict.fromkeys((g.signal, g.cotangent) for g in plan.gradients))
        for i in range(len(pairs)):
            tensors[f"partial{i}"] = spectra(items * held)
        programs = items
        if many:
            programs = min(items, self._at_once(device))
            tensors["scratch"] = spectra(programs * len(plan.signals) * blocks)
        self._launch(("main", many), programs, tensors, numbers)
        for g in plan.gradients:
            partial = tensors[f"partial{pairs.index((g.signal, g.cotangent))}"]
            made[g.output.name] = self._gradient(g.output, partial, tensors, numbers, sizes, layout, device)
        return {o.name: made[o.name].permute(self._from_memory(o)) for o in plan.graph.outputs if o.name in made}

    def _at_once(self, device: torch.device) -> int:
        """Programs side by side where each needs scratch memory: what registers of a device's multiprocessors hold."""
        if device.type == "cpu":
            return 2
        threads, registers = 32 * self.schedule.warps, self.schedule.registers or 128
        return torch.cuda.get_device_properties(device).multi_processor_count * max(1, (1 << 16) // (threads * registers))

    def _sums(self, output: Output, partial: Tensor, dk: Tensor, tensors: Mapping[str, Tensor], numbers: Mapping[str, int],
              layout: Layout) -> Tensor:
        lags = min(dk.shape[-1], numbers[f"size_{self.convolution_plan.graph.time}"])
        own = dk if lags == dk.shape[-1] else dk.new_empty(*dk.shape[:-1], lags)
        key = ("gradient", storage_dtype(self.convolution_plan.graph, output))
        here = {**numbers, "size": lags}
        self._launch(key, layout.channels * -(-lags // self.schedule.block), {**tensors, "partial": partial, "dk": own}, here)
        if own is not dk:
            dk[..., :lags] = own
        return dk

    def _launch(self, key: tuple[str, Any], programs: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> None:
        source = self.make(*key)
        if key not in self._loaded:
            with self._lock:
                if not build_cuda.available():
                    raise BackendUnavailable(f"kernels for {self.target} need that device, a torch built for it and CuPy", backend="cuda",
                                             remedy="Ask for route \"fft\", which torch serves anywhere.")
                self._loaded[key] = build_cuda.load(source, self.target)
        pointers = [tensors[a.name] for a in source.arguments]
        strides = [s for a, t in zip(source.arguments, pointers, strict=True) if a.axes for s in self._strides(a.name, a.axes, t)]
        self._loaded[key](pointers, [numbers[n] for n in source.numbers], strides, [programs])


__all__ = ["RadixExecutable", "table"]
