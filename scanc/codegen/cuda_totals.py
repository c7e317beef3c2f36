"""The CUDA backend: partial results added up, all of a launch's by one kernel.

A partial result has leading axes beside a result's own (codegen/layout.py); as memory it is [parts, elements], or spread as
codegen/in_place.py says. A block takes 128 elements of one result: each of its warps adds every WARPS-th part of them, in order, and
the block adds its warps up, in theirs. So totals are the same bits from run to run, and a result of few elements and many parts does not
wait for its parts one after another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from scanc.codegen.cuda import CudaSource
from scanc.codegen.layout import Spread, Total

MOST = 8        # results of one launch
ELEMENTS = 128  # of a block: four for each thread of a warp
WARPS = 16
KINDS = {"float32": 0, "complex64": 0, "bfloat16": 1, "float16": 2}

TEXT = f"""// Partial results added up: to[k][i] = sum over part of from[k][part, i]
#include "cuda.h"
#include "cuda_step.h"

constexpr int MOST = {MOST}, ELEMENTS = {ELEMENTS}, WARPS = {WARPS};

struct Arguments {{
    const float* from[MOST];
    void* to[MOST];
    index_t parts[MOST], elements[MOST], kind[MOST], first[MOST];  // kind: 0 float, 1 bfloat16, 2 float16; first: a result's first block
    // Where element (o, p, q, i) of a part is: i in tiles, many of them beside each other. A dense part is one tile of one axis.
    index_t part[MOST], length[MOST], tile[MOST], apart[MOST], many[MOST], beside[MOST], step[MOST];
    index_t size1[MOST], size2[MOST], stride0[MOST], stride1[MOST], stride2[MOST];
    index_t results;
}};

extern "C" __global__ void __launch_bounds__(32 * WARPS) run(const __grid_constant__ Arguments arguments) {{
    const index_t block = block_here();
    int k = 0;
    while (k + 1 < arguments.results && block >= arguments.first[k + 1]) ++k;
    const float* const from = arguments.from[k];
    const index_t parts = arguments.parts[k], elements = arguments.elements[k];
    const int warp = threadIdx.x / 32, i = threadIdx.x % 32 * 4;
    const index_t at = (block - arguments.first[k]) * ELEMENTS + i;
    index_t from_here = at;
    if (arguments.tile[k] < elements) {{  // parts of fewer elements than 32 bits count, divided up while the kernel before still runs
        const unsigned length = arguments.length[k], tile = arguments.tile[k], size1 = arguments.size1[k], size2 = arguments.size2[k];
        const unsigned row = unsigned(at) / length, i = unsigned(at) % length, two = row / size2, t = i / tile, many = arguments.many[k];
        from_here = t / many * arguments.apart[k] + t % many * arguments.beside[k] + i % tile * arguments.step[k]
            + row % size2 * arguments.stride2[k] + two % size1 * arguments.stride1[k] + two / size1 * arguments.stride0[k];
    }}
    const index_t apart = arguments.part[k];
    const int step = int(arguments.step[k]);
    wait_for_earlier_kernels();
    float total[4] = {{}};
    if (at < elements) {{
        #pragma unroll 4
        for (index_t part = warp; part < parts; part += WARPS) {{
            float more[4];
            load_group<true>(more, from + part * apart + from_here, step, int(smaller(elements - at, 4)));
            #pragma unroll
            for (int j = 0; j < 4; ++j) total[j] += more[j];
        }}
    }}
    extern __shared__ __align__(16) float shared[];
    write_row(shared + warp * ELEMENTS + i, total);
    __syncthreads();
    if (warp != 0 || at >= elements) return;
    for (int w = 1; w < WARPS && w < parts; ++w) {{
        float more[4];
        read_row(more, shared + w * ELEMENTS + i);
        #pragma unroll
        for (int j = 0; j < 4; ++j) total[j] += more[j];
    }}
    const int count = int(smaller(elements - at, 4));
    if (arguments.kind[k] == 0) store_group(static_cast<float*>(arguments.to[k]) + at, 1, total, count);
    else if (arguments.kind[k] == 1) store_group(static_cast<bfloat16*>(arguments.to[k]) + at, 1, total, count);
    else store_group(static_cast<float16*>(arguments.to[k]) + at, 1, total, count);
}}
"""


def blocks(total: Total) -> int:
    return -(-total.elements // ELEMENTS)


def source(of: CudaSource) -> CudaSource:
    """The source of the kernel, for the partial results of ``of``."""
    own = dataclasses.replace(of, name="totals", text=TEXT, buffers=(), scratch=0, narrow=(), early=True)
    return dataclasses.replace(own, threads=32 * WARPS, shared=4 * WARPS * ELEMENTS)


def numbers(totals: Sequence[Total]) -> tuple[int, ...]:
    """What its argument has behind the pointers; at most MOST results."""
    rest = [0] * (MOST - len(totals))
    spreads = [t.spread or Spread(t.elements, (), t.elements, t.elements, 0) for t in totals]
    outer = [((1, 0),) * (3 - len(s.outer)) + s.outer for s in spreads]
    first = [sum(blocks(t) for t in totals[:k]) for k in range(len(totals))]
    columns = ([t.parts for t in totals], [t.elements for t in totals], [KINDS[t.dtype] for t in totals], first,
               *([getattr(s, word) for s in spreads] for word in ("part", "length", "tile", "apart", "many", "beside", "step")),
               *([o[axis][0] for o in outer] for axis in (1, 2)), *([o[axis][1] for o in outer] for axis in range(3)))
    return (*(n for column in columns for n in (*column, *rest)), len(totals))
