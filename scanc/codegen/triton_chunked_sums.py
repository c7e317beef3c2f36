"""The kernel of the chunked form that adds up partial results, all of them in one launch (see triton_chunked.py).

    result_i = Σ_k partial_k,i        k over the programs that share a result, in their order; i over the result's elements

A program has some elements of one result and walks its partial results some at a time: the same order in every run.
"""

from __future__ import annotations

from collections.abc import Mapping

from scanc.codegen.emit import Source
from scanc.codegen.layout import storage_dtype
from scanc.codegen.triton_chunked import ChunkPrinter
from scanc.codegen.triton_chunked_source import Argument, ChunkSource, Shape
from scanc.codegen.triton_common import wrapped
from scanc.forms.chunked import ChunkPlan, ChunkStore
from scanc.schedule import ChunkedSchedule

# (partial results added at a time, elements of a program): of results over time, which have few parts, and of others.
OVER_TIME, OTHERS = (4, 1024), (64, 32)


def sums(plan: ChunkPlan, schedule: ChunkedSchedule, shape: Shape, stores: list[ChunkStore], title: str) -> ChunkSource:
    """The kernel for these results. Tensors: ``<result>`` the partial ones, ``<result>_sum`` what they add up to, both contiguous."""
    printer = ChunkPrinter(plan, schedule, shape, "sums", title)
    out = Source()
    arguments, numbers, body = [], [], Source().indent()
    for store in stores:
        arguments += [Argument(store.name, (), "float32", "inner"),
                      Argument(f"{store.name}_sum", (), storage_dtype(plan.graph, store.output), "inner")]
        numbers += [f"{store.name}_parts", f"{store.name}_count"]
        parts, elements = tile(plan, store)
        count = f"{store.name}_count"
        if store.output.axes[-1] == plan.columns and shape.columns % 4 == 0:   # said so, four values are seen to be one load
            count = f"{count} // {shape.columns} * {shape.columns}"
        body(f"add({store.name}_ptr, {store.name}_sum_ptr, {store.name}_parts, {count}, block, {parts}, {elements})",
             f"block -= ({store.name}_count + {elements - 1}) // {elements}")
    out(f"# {title}", "", "import triton", "import triton.language as tl", "", "", "@triton.jit",
        "def add(parts_ptr, sum_ptr, parts, count, block, PARTS: tl.constexpr, ELEMENTS: tl.constexpr):",
        "    # One block of a result: none where the block is another's.",
        "    if (block >= 0) & (block < (count + ELEMENTS - 1) // ELEMENTS):",
        "        i = tl.cast(block, tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)",
        "        total = tl.full((ELEMENTS,), 0.0, tl.float32)",
        "        for first in tl.range(0, parts, PARTS):",
        "            k = first + tl.arange(0, PARTS)[:, None]",
        "            here = (k < parts) & (i[None, :] < count)",
        "            some = tl.load(parts_ptr + tl.cast(k, tl.int64) * count + i[None, :], mask=here, other=0.0)",
        "            total += tl.reduce(some, 0, tl.standard._sum_combine)",
        "        tl.store(sum_ptr + i, total, mask=i < count)", "", "")
    words = ", ".join(f'"{n}"' for n in numbers)
    out(*wrapped("@triton.jit(do_not_specialize=[", words, "])"))
    out(*wrapped(f"def {printer.name}_kernel(", ", ".join((*(f"{a.name}_ptr" for a in arguments), *numbers)), "):"))
    out("    block = tl.program_id(0)")
    return ChunkSource(printer.name, out.text() + body.text(), tuple(arguments), tuple(numbers), 4)


def tile(plan: ChunkPlan, store: ChunkStore) -> tuple[int, int]:
    return OVER_TIME if plan.time in store.output.axes else OTHERS


def blocks(plan: ChunkPlan, counts: Mapping[ChunkStore, int]) -> int:
    """Programs for results of so many elements."""
    return sum(-(-count // tile(plan, store)[1]) for store, count in counts.items())
