"""The kernel of the chunked form that adds up partial results, all of them in one launch (see triton_chunked.py).

    result_i = Σ_k partial_k,i        k over the programs that share a result, in their order; i over the result's elements

A program has ELEMENTS elements of one result and walks its partial results PARTS at a time: the same order in every run.
"""

from __future__ import annotations

from scanc.codegen.emit import Source
from scanc.codegen.layout import storage_dtype
from scanc.codegen.triton_chunked import ChunkPrinter
from scanc.codegen.triton_chunked_source import Argument, ChunkSource, Shape
from scanc.codegen.triton_common import wrapped
from scanc.forms.chunked import ChunkPlan, ChunkStore
from scanc.schedule import ChunkedSchedule

PARTS = 16
ELEMENTS = 128


def sums(plan: ChunkPlan, schedule: ChunkedSchedule, shape: Shape, stores: list[ChunkStore], title: str) -> ChunkSource:
    """The kernel for these results. Tensors: ``<result>`` the partial ones, ``<result>_sum`` what they add up to, both contiguous."""
    printer = ChunkPrinter(plan, schedule, shape, "sums", title)
    out = Source()
    arguments, numbers, body = [], [], Source().indent()
    for store in stores:
        arguments += [Argument(store.name, (), "float32", "inner"),
                      Argument(f"{store.name}_sum", (), storage_dtype(plan.graph, store.output), "inner")]
        numbers += [f"{store.name}_parts", f"{store.name}_count"]
        body(f"add({store.name}_ptr, {store.name}_sum_ptr, {store.name}_parts, {store.name}_count, block, PARTS, ELEMENTS)",
             f"block -= ({store.name}_count + ELEMENTS - 1) // ELEMENTS")
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
    out(f"    PARTS: tl.constexpr = {PARTS}  # partial results added at a time", f"    ELEMENTS: tl.constexpr = {ELEMENTS}  # of a program",
        "    block = tl.program_id(0)")
    return ChunkSource(printer.name, out.text() + body.text(), tuple(arguments), tuple(numbers), 4)


def blocks(counts: list[int]) -> int:
    """Programs for results of so many elements."""
    return sum(-(-count // ELEMENTS) for count in counts)
