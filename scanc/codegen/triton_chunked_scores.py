"""Products of columns that heads share, made once for all of them (see triton_chunked.py).

A walk multiplies the columns of every two steps of a chunk, [Q, N] by [N, Q], and where neither factor is a head's own (B and C of a group)
each of the group's heads would do so again. Programs in front of those of the kernel early leave, of each such pair of factors,

    products<k>   float32: of every chunk a matrix [Q, Q] as the walk reads it, chunks one after another over the padded length

and the walk loads them beside the chunk's other tiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from scanc.codegen.emit import Source
from scanc.codegen.triton_chunked import ChunkPrinter
from scanc.codegen.triton_chunked_algebra import ChunkAlgebra
from scanc.codegen.triton_chunked_parts import scores_ahead, scores_axes
from scanc.codegen.triton_chunked_source import Scope, Suffixed
from scanc.forms.chunked import ChunkPlan, Pair
from scanc.schedule import ChunkedSchedule


def programs_ahead(plan: ChunkPlan, schedule: ChunkedSchedule, sizes: Mapping[str, int], chunks: int) -> int:
    """How many programs make products ahead: one for each chunk of each matrix that heads share."""
    return sum(places(plan, pair, sizes) for pair in scores_ahead(plan, schedule)) * chunks


def places(plan: ChunkPlan, pair: Pair, sizes: Mapping[str, int]) -> int:
    """How many matrices a pair of factors has of each chunk."""
    return math.prod(sizes[a] for a in scores_axes(plan, pair))


class ScoresAhead(ChunkAlgebra):
    """Prints the programs in front of another kernel's. ``flipped`` as the walk's matrices are."""

    flipped = True

    @classmethod
    def within(cls, kernel: ChunkPrinter, out: Source) -> None:
        """Prints them into a kernel's body. What is left of its program number is then ``place``."""
        shape = replace(kernel.shape, bulk=False, given=False)
        printer = cls(kernel.plan, kernel.schedule, shape, kernel.kind, kernel.title)
        printer.names, printer.arguments, printer.dialect = kernel.names, kernel.arguments, kernel.dialect
        out("place = tl.program_id(0)")
        for k in range(len(scores_ahead(kernel.plan, kernel.schedule))):
            printer._pair(out, k)

    def _pair(self, out: Source, k: int) -> None:
        plan = self.plan
        later, earlier = pair = scores_ahead(plan, self.schedule)[k]
        axes = scores_axes(plan, pair)
        count = " * ".join(["(padded // Q)", *(f"size_{a}" for a in axes)])
        out.open(f"if place < {count}:")
        out("ts = tl.cast(place % (padded // Q), tl.int64) * Q", "rest = place // (padded // Q)")
        head = ""
        for axis in reversed(axes):
            out(f"i_{axis} = tl.cast(rest % size_{axis}, tl.int64)", f"rest = rest // size_{axis}")
            if axis in plan.graph.groups:  # a group's first head stands for all
                head = f"(i_{axis} * (size_{plan.head} // size_{axis}))"
        out(f"t1 = size_{plan.time}", *self.tiles(), *self.chunk_start())
        scope = Scope(Suffixed(self.names, "_ahead"), "_ahead", head)
        self.values(out, plan.body([later, earlier]), scope)
        value = self.scores(out, later, earlier, scope, scope)
        row = self.products_row(k, scope)
        out(f"tl.store(products{k}_ptr + ({row} + tau) * Q + sigma, {value})", "return")
        out.indent(-1)
        out(f"place -= {count}")


__all__ = ["ScoresAhead", "places", "programs_ahead"]
