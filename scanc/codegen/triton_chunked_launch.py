"""One launch of a kernel of the form chunked, and what a problem's sizes decide of all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from scanc.codegen.layout import storage_dtype
from scanc.codegen.triton_chunked_source import ChunkSource, Shape, Tiles
from scanc.codegen.triton_common import ceil_power
from scanc.codegen.triton_launch import Launcher
from scanc.forms.chunked import ChunkPlan, ChunkScan
from scanc.ir import Axes
from scanc.target import Target

# A backward's states at chunks' borders may take so many times the memory of its inputs and results: above that it runs for some heads at a
# time. With 128 columns and chunks of 64 steps they take 1.3 times as much.
BORDER_SHARE = 1.5
# Below so many bytes they are not worth saving: a small problem needs all its programs side by side.
BORDER_FLOOR = 256 << 20


def precision(target: Target) -> str:
    """How products of float32 operands are rounded: in three products of tf32 where the device has them, else as they are."""
    return "tf32x3" if target.kind == "cuda" and target.capability >= 80 else "ieee"


def bulk_copies(target: Target) -> bool:
    """Whether tiles go through tensor descriptors where strides allow it: on Hopper."""
    return target.hopper


def tiles_fit(plan: ChunkPlan, tiled: Sequence[tuple[str, Axes]], tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensor descriptors can say where the tiles of these tensors lie, each given with its axes."""
    for name, axes in tiled:
        x = tensors[name]
        strides = dict(zip(axes, x.stride(), strict=True))
        aligned = x.data_ptr() % 16 == 0 and all(s * x.element_size() % 16 == 0 for s in x.stride()[:-1])
        if not aligned or strides[axes[-1]] != 1 or strides[plan.time] <= 0:
            return False
        if not plan.walks and plan.head in axes and strides[plan.head] != x.shape[-1]:
            return False  # programs that walk heads take time and heads for one matrix
    return True


def are_matrices(plan: ChunkPlan, tiled: Sequence[tuple[str, Axes]], tensors: Mapping[str, Tensor]) -> bool:
    """Whether each of these tensors is a matrix whose rows are a step apart: axes before time take whole steps, those after it less."""
    for name, axes in tiled:
        x, at = tensors[name], axes.index(plan.time)
        step = x.stride(at)
        before = all(n == 1 or s % step == 0 for n, s in zip(x.shape[:at], x.stride()[:at], strict=True))
        if not before or sum((n - 1) * s for n, s in zip(x.shape[at + 1:], x.stride()[at + 1:], strict=True)) >= step:
            return False
    return True


@contextmanager
def side_stream(device: torch.device, wanted: bool) -> Iterator[AbstractContextManager[Any]]:
    """Gives a context whose launches run beside the current stream's, from what that has done so far; it then waits for them.

    One kernel's programs so fill the multiprocessors that another's leave empty. A context of no effect where there is no such device.
    """
    if not wanted or device.type != "cuda":
        yield nullcontext()
        return
    with torch.cuda.device(device):
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        try:
            yield torch.cuda.stream(aside)
        finally:
            here.wait_stream(aside)


@dataclass(frozen=True)
class Kernel:
    source: ChunkSource
    run: Launcher

    def __call__(self, programs: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> None:
        if programs == 0:
            return
        pointers = [tensors[a.name] for a in self.source.arguments]
        strides = [s for a, t in zip(self.source.arguments, pointers, strict=True) if a.role != "inner" for s in t.stride()]
        tiles = [_descriptor(t, tensors) for t in self.source.tiles]
        given = (programs, pointers, (*strides, *[numbers[n] for n in self.source.numbers]), tiles)
        if self.source.bulk:  # descriptors take memory: in a context of our own, so that a user's allocator stays
            copy_context().run(self._with_memory, *given)
        else:
            self.run(*given)

    def _with_memory(self, programs: int, pointers: Sequence[Tensor], numbers: Sequence[int], descriptors: Sequence[object]) -> None:
        import triton

        device = pointers[0].device
        triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=device))
        self.run(programs, pointers, numbers, descriptors)


@cache
def _descriptor_kind() -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor


def _descriptor(tiles: Tiles, tensors: Mapping[str, Tensor]) -> object:
    """What Triton takes for a matrix of steps, or of states."""
    x = tensors[tiles.of]
    if tiles.time is None:
        step = tiles.wide
        extent = [x.numel() // step, step]
    else:
        strides, at = x.stride(), tiles.time + 1
        step = strides[tiles.time]
        ends = [(n - 1) * s for n, s in zip(x.shape, strides, strict=True)]
        extent = [sum(ends[:at]) // step + 1, sum(ends[at:]) + 1]
    # Not by its constructor: what that looks at, half its time, is known of these tensors.
    made = object.__new__(_descriptor_kind())
    made.base, made.shape, made.strides, made.block_shape, made.padding = x, extent, [step, 1], list(tiles.tile), "zero"
    return made  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Layout:
    """What sizes alone decide: heads a walking program carries, segments, chunks, programs of one walk."""

    shape: Shape
    single: Shape
    segment: int
    segments: int
    chunks: int
    grid: int
    groups: int
    span: int = 1

    @property
    def borders(self) -> int:
        """How many of a scan's states are kept, of each grid position."""
        return self.chunks // self.span

    def walkers(self, rows: int) -> int:
        return -(-self.shape.rows // min(rows, self.padded_rows)) * self.grid // self.shape.heads * self.segments

    def states(self, count: int, rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for ``count`` states, padding that no program of ``rows`` rows reaches set to 0: products go over it."""
        tile = min(rows, self.padded_rows)
        reached = -(-self.shape.rows // tile) * tile >= self.padded_rows
        return (torch.empty if reached else torch.zeros)(count * self.padded, dtype=dtype, device=device)

    @property
    def padded_rows(self) -> int:
        return max(16, ceil_power(self.shape.rows))

    @property
    def padded(self) -> int:
        """Values of one padded state."""
        return self.padded_rows * max(16, ceil_power(self.shape.columns))


def wanted(plan: ChunkPlan, scan: ChunkScan) -> bool:
    """Whether a scan's states are read, or its last one is a result."""
    return any(scan in (r.of, r.against) for r in plan.reads) or any(s.final and s.value is scan.scan for s in plan.stores)


def pieces(
    plan: ChunkPlan, given: Mapping[str, Tensor], sizes: Mapping[str, int], layout: Layout, width: int
) -> list[tuple[dict[str, int], dict[str, int]]]:
    """({axis: start}, sizes) of the heads, and groups of them, that are computed at once, states at borders ``width`` bytes a value."""
    everything: list[tuple[dict[str, int], dict[str, int]]] = [({}, dict(sizes))]
    group = next((g for g, parent in plan.graph.groups.items() if parent == plan.head and sizes.get(g, 1) > 1), "")
    count = sizes[group] if group else sizes.get(plan.head, 1)
    if plan.walks or count == 1:
        return everything
    states = layout.borders * layout.grid * layout.padded * width * sum(wanted(plan, s) for s in plan.scans)
    in_all = sum(given[str(n.name)].nbytes for n in plan.inputs)
    for store in plan.stores:
        in_all += math.prod(sizes[a] for a in store.output.axes) * getattr(torch, storage_dtype(plan.graph, store.output)).itemsize
    at_once = max(1, int(count * max(BORDER_SHARE * in_all, BORDER_FLOOR) / max(1, states)))
    if at_once >= count:
        return everything
    each = sizes[plan.head] // count
    found = []
    for start in range(0, count, at_once):
        number = min(at_once, count - start)
        first = {plan.head: start * each, **({group: start} if group else {})}
        found.append((first, {**sizes, plan.head: number * each, **({group: number} if group else {})}))
    return found
