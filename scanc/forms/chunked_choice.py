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
    chunk = next((c for c in (64, 32, 16) if _bytes(plan, c, rows, columns, width) <= most), 0)
    if not chunk:
        return None
    per_group = sizes.get(plan.head, 16) // max(1, *(sizes.get(g, 1) for g, parent in plan.graph.groups.items() if parent == plan.head), 1)
    grid = math.prod(sizes.get(a, 1) for a in plan.grid)
    chunks = -(-sizes.get(plan.time, 1) // chunk)
    # Enough programs of chunks to have two for each multiprocessor; each walks as many heads as that leaves.
    walk = max(1, min(per_group, grid * chunks // (2 * 132)))
    return ChunkedSchedule(chunk=chunk, rows=min(64, rows), segment=_segment(plan, sizes, grid, chunk),
                           chunk_walk=min(walk, 8), total_walk=walk, total_warps=8 if chunk >= 64 else 4)


def _segment(plan: ChunkPlan, sizes: Mapping[str, int], grid: int, chunk: int) -> int:
    """Steps of a segment such that about 512 programs walk; 0 where they do anyway, or a segment would be shorter than 8 chunks."""
    length = sizes.get(plan.time, 0)
    pieces = min(512 // max(1, grid), length // (8 * chunk))
    return 0 if pieces < 2 else -(-length // pieces // chunk) * chunk


def _bytes(plan: ChunkPlan, chunk: int, rows: int, columns: int, width: int) -> int:
    """Shared memory that the largest kernel's tiles take."""
    rows = min(rows, 64) if plan.walks else rows
    state = rows * columns * width
    if plan.walks:
        return (4 * chunk * columns + chunk * rows) * width + state + chunk * rows * width + BESIDE
    return (2 * chunk * columns + 3 * chunk * rows + chunk * chunk) * width + 2 * state + BESIDE


def _ceil_power(x: int) -> int:
    return 1 << max(0, x - 1).bit_length()
