"""Whether a graph has the chunked form, and the schedule it gets there where nothing was tuned."""

from __future__ import annotations

import math
from collections.abc import Mapping

from scanc.errors import UnsupportedForm
from scanc.forms.chunked import ChunkPlan
from scanc.forms.chunked_recognise import chunk_partition, chunk_plan
from scanc.forms.partition import has_scans
from scanc.ir import Graph
from scanc.schedule import ChunkedSchedule
from scanc.target import Target

# Bytes of shared memory that Triton takes beside the tiles themselves.
BESIDE = 4 << 10
# Multiprocessors assumed of a GPU that may not be here.
PROCESSORS = 132


def chunked_plan(graph: Graph) -> ChunkPlan | None:
    """The chunk plan of a prepared graph; None where it is not of the class."""
    try:
        parts = chunk_partition(graph)
        if parts.before is not None and has_scans(parts.before):
            return None
        return chunk_plan(parts.kernel)
    except UnsupportedForm:
        return None


def default_chunked(plan: ChunkPlan, target: Target, sizes: Mapping[str, int]) -> ChunkedSchedule | None:
    """Chunks as long as shared memory allows up to 64 steps, and segments of time where grid positions alone leave a GPU empty.

    None where no chunk's tiles fit: a backward's programs hold two whole states.
    """
    rows, columns = (max(16, _ceil_power(sizes.get(a, size))) for a, size in ((plan.rows, 64), (plan.columns, 128)))
    width = 4 if plan.dtype == "float32" else 2
    most = target.shared_bytes or 227 << 10
    chunk = next((c for c in (64, 32, 16) if _bytes(plan, c, rows, columns, width, 1) <= most), 0)
    if not chunk:
        return None
    per_group = sizes.get(plan.head, 16) // max(1, *(sizes.get(g, 1) for g, parent in plan.graph.groups.items() if parent == plan.head), 1)
    grid = math.prod(sizes.get(a, 1) for a in plan.grid)
    chunks = -(-sizes.get(plan.time, 1) // chunk)
    segment = _segment(plan, sizes, grid, chunk)
    tile = min(64 if columns <= 128 else 32, rows)   # a state of 64 by 128 takes 64 of a thread's registers
    fits = next((p for p in (3, 2) if _bytes(plan, chunk, rows, columns, width, p) <= most), 1)
    if plan.walks:
        segments = -(-sizes.get(plan.time, 1) // segment) if segment else 1
        programs = grid * segments * -(-rows // tile)
        return ChunkedSchedule(chunk=chunk, rows=tile, segment=segment, pipeline=min(fits, _pipeline(programs)))
    outer = grid // max(1, sizes.get(plan.head, 1)) * max(1, sizes.get(plan.head, 1) // max(1, per_group)) * chunks
    warps, pipeline = (8, min(2, fits)) if chunk >= 64 else (4, 1)
    return ChunkedSchedule(
        chunk=chunk, rows=tile, segment=segment, registers=168 if target.kind == "cuda" else 0,
        chunk_walk=_walk(outer, per_group, 1), chunk_warps=warps, chunk_pipeline=pipeline,
        total_walk=_walk(outer, per_group, 3), total_warps=warps, total_pipeline=pipeline,
    )


# Time a chunk takes with two programs on a multiprocessor (2 chunks in flight each), against one alone (3 in flight): on an H100.
TWO = 1.85


def _waves(programs: int) -> float:
    """How long programs of one chunk take, in chunks of a program alone on its multiprocessor."""
    return min(-(-programs // PROCESSORS), TWO * -(-programs // (2 * PROCESSORS)))


def _pipeline(programs: int) -> int:
    """Chunks in flight: 3 leave room for one program on a multiprocessor, 2 for two. Which is better depends on how the programs divide."""
    return 3 if _waves(programs) == -(-programs // PROCESSORS) else 2


def _walk(outer: int, heads: int, start: int) -> int:
    """Heads a program walks such that all programs, one to a multiprocessor, end soonest; ``start`` heads' time goes before the first."""
    def time(blocks: int) -> int:
        return -(-outer * blocks // PROCESSORS) * (-(-heads // blocks) + start)

    return -(-heads // min(range(1, max(1, heads) + 1), key=time))


def _segment(plan: ChunkPlan, sizes: Mapping[str, int], grid: int, chunk: int) -> int:
    """Steps of a segment where grid positions alone leave multiprocessors empty: about 512 programs, whose last wave is full; else 0."""
    chunks = sizes.get(plan.time, 0) // chunk
    if grid >= PROCESSORS or chunks < 16:
        return 0
    most = max(1, chunks // 8)
    pieces = range(max(2, min(most, 384 // grid)), max(2, min(most, 768 // grid)) + 1)
    best = min(pieces, key=lambda count: _waves(grid * count) * -(-chunks // count))
    return -(-sizes[plan.time] // best // chunk) * chunk


def _bytes(plan: ChunkPlan, chunk: int, rows: int, columns: int, width: int, pipeline: int) -> int:
    """Shared memory that the largest kernel's tiles take, with so many chunks (or heads) in flight."""
    if plan.walks:
        rows = min(rows, 64)
        tiles = 2 * max(2, pipeline) * chunk * columns + max(1, pipeline - 1) * chunk * rows + rows * columns + chunk * rows
        return tiles * width + BESIDE
    tiles = 2 * chunk * columns + 3 * chunk * rows + chunk * chunk + 2 * rows * columns
    return (tiles + (2 * chunk * rows + 2 * rows * columns if pipeline > 1 else 0)) * width + BESIDE


def _ceil_power(x: int) -> int:
    return 1 << max(0, x - 1).bit_length()
