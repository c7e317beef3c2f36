"""One launch of a kernel of the form chunked, and what a problem's sizes decide of all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scanc.codegen.triton_chunked_source import ChunkSource, Shape
from scanc.codegen.triton_common import ceil_power
from scanc.target import Target


def precision(target: Target) -> str:
    """How products of float32 operands are rounded: in three products of tf32 where the device has them, else as they are."""
    return "tf32x3" if target.kind == "cuda" and target.capability >= 80 else "ieee"


def bulk_copies(target: Target) -> bool:
    """Whether tiles go through tensor descriptors where strides allow it: on Hopper."""
    return target.kind == "cuda" and 90 <= target.capability < 100


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
    run: Any
    kind: str

    def __call__(self, programs: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> None:
        if programs == 0:
            return
        pointers = [tensors[a.name] for a in self.source.arguments]
        strides = [s for a, t in zip(self.source.arguments, pointers, strict=True) if a.role != "inner" for s in t.stride()]
        given = (*pointers, *strides, *(numbers[n] for n in self.source.numbers))
        with torch.cuda.device(pointers[0].device) if self.kind != "cpu" else nullcontext():
            if self.source.bulk:  # descriptors take memory: in a context of our own, so that a user's allocator stays
                copy_context().run(self._with_memory, programs, given)
            else:
                self.run[(programs,)](*given, **self.source.options(self.kind))

    def _with_memory(self, programs: int, given: Sequence[Any]) -> None:
        import triton

        device = given[0].device
        triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=device))
        self.run[(programs,)](*given, **self.source.options(self.kind))


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
