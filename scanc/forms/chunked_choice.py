"""Whether a graph has the chunked form, and the schedule it gets there where nothing was tuned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from scanc.errors import UnsupportedForm
from scanc.forms.chunked import ChunkPlan
from scanc.forms.chunked_recognise import chunk_partition, chunk_plan
from scanc.forms.cuda_choice import MULTIPROCESSORS
from scanc.forms.partition import has_scans
from scanc.forms.plan import ceil_power
from scanc.ir import Graph, Node
from scanc.schedule import ChunkedSchedule
from scanc.target import Target

# Bytes of shared memory that Triton takes beside the tiles themselves.
BESIDE = 4 << 10
# A backward's states are kept for two chunks each where those of all chunks would take so many bytes: what a cache may hold costs less than
# the products that take their place.
CACHED = 64 << 20
# Heads of a group that share products made ahead of them: for fewer it is sooner done by each.
SHARING = 8


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
    """Chunks of 32 steps for a walk, of 64 for a backward, and segments of time where grid positions alone leave a GPU empty.

    None where no chunk's tiles fit in shared memory.
    """
    rows, columns = (max(16, ceil_power(sizes.get(a, size))) for a, size in ((plan.rows, 64), (plan.columns, 128)))
    width = 4 if plan.dtype == "float32" else 2
    most = target.shared_bytes or 227 << 10
    if plan.keyed:
        return _default_keyed(plan, sizes, rows, columns, width, most)
    halves = target.hopper and width == 2   # operands of 16 bits, tiles through descriptors
    # A state of 64 by 128 takes 64 of a thread's registers. Of fewer rows than 64 Hopper's matrix units take no product from registers.
    wide = halves and columns == 256 and rows >= 64
    tiled = wide and sizes.get(plan.columns, columns) == columns and _sliced(plan)   # two tiles of columns take all registers of a thread
    tile = min(64 if columns <= 128 and width == 2 or wide else 32, rows)
    per_group = sizes.get(plan.head, 16) // max(1, *(sizes.get(g, 1) for g, parent in plan.graph.groups.items() if parent == plan.head), 1)
    # Products of fewer columns are made as soon as loaded; of 256 they would take registers that there are not.
    scores = int(halves and columns >= 128 and (per_group >= SHARING or columns >= 256) and bool(plan.shared) and plan.walks)

    def fits(chunk: int, pipeline: int) -> bool:
        ahead = 4 * chunk * chunk * max(1, pipeline - 1) * scores
        return _bytes(plan, chunk, tile if plan.walks else rows, columns, width, pipeline) + ahead <= most

    chunk = next((c for c in ((32, 16) if plan.walks else (64, 32, 16)) if fits(c, 1)), 0)
    if not chunk:
        return None
    grid = math.prod(sizes.get(a, 1) for a in plan.grid)
    walks = 1 if plan.walks else len(plan.scans)   # a backward's scans walk side by side
    # Programs of a backward walk with tiles through descriptors, without which they would not have the registers.
    whole = (sizes.get(plan.rows, rows), sizes.get(plan.columns, columns)) == (rows, columns)
    back = halves and (columns <= 128 or wide) and whole
    states = grid * -(-sizes.get(plan.time, 1) // chunk) * rows * columns * width
    span = 2 if back and not plan.walks and columns >= 128 and states >= CACHED else 1
    tiles = -(-rows // tile) if halves and not plan.walks else 1
    segment = _segment(sizes.get(plan.time, 1), grid * walks * tiles, chunk * span)
    made = any(f is not None and f.op != "input" for f in _column_factors(plan))   # in registers first
    four = columns <= 64 and not made   # programs on a multiprocessor: a state takes half the registers
    # Products of fewer than 64 rows are as many instructions in one warp as in four: no more warps than hold a state at 64 values a thread.
    warps = 8 if wide and not (tiled and (plan.walks or back)) else 4
    if halves and rows < 64 and (plan.walks or columns <= 64):
        warps = min(4, max(1 if plan.walks and columns >= 64 else 2, rows * columns // 2048))
    if plan.walks and halves:
        at_once = 8 // warps if rows < 64 else 2 if tiled else 1 if wide else 4 if four else 3
        segment = _one_wave(sizes.get(plan.time, 1), grid * -(-rows // tile), chunk, at_once)
    elif halves and (tiled or not segment):
        segment = _one_wave_back(sizes.get(plan.time, 1), grid * -(-rows // tile), chunk * span, tiled)
    if plan.walks:
        segments = -(-sizes.get(plan.time, 1) // segment) if segment else 1
        few = halves and not made and not wide and rows >= 64   # registers, so that more programs share a multiprocessor
        registers = 128 if few and four else 168 if few and _three(grid * segments * -(-rows // tile)) else 0
        pipeline = next((p for p in (2 if tiled else 3 if registers or wide or rows < 64 else 4, 3, 2) if fits(chunk, p)), 1)
        return ChunkedSchedule(chunk=chunk, rows=tile, segment=segment, warps=warps, pipeline=pipeline, registers=registers, scores=scores)
    heads = max(1, sizes.get(plan.head, 1))
    outer = grid // heads * max(1, heads // max(1, per_group)) * -(-sizes.get(plan.time, 1) // chunk)
    deep = max((p for p in (2, 3) if fits(chunk, p)), default=1)
    small = columns <= 128 and rows <= 64 or back and rows <= 128 and columns <= 64   # a kernel chunks of 128 rows is not
    walked, few = _walk(outer, per_group), small and width == 2
    return ChunkedSchedule(
        chunk=chunk, rows=tile, segment=segment, warps=warps,
        pipeline=min(1 if wide else 2, deep) if back else deep, walk_back=int(back), span=span,
        chunk_walk=walked, chunk_warps=4 if few else 8, chunk_pipeline=deep, total_walk=walked, total_warps=4 if few else 8,
        total_pipeline=deep if target.hopper and _two_share(plan, chunk, rows, columns, width, deep) else min(2, deep),
    )


def _two_share(plan: ChunkPlan, chunk: int, rows: int, columns: int, width: int, pipeline: int) -> bool:
    """Whether two programs of what is summed over heads share a multiprocessor of 228 KB with so many heads in flight."""
    loads, own = _row_loads(plan)
    totals = chunk * columns + pipeline * rows * columns + (loads * (pipeline - 1) + 1) * chunk * rows
    borders = 2 * pipeline * rows * columns + own * (pipeline - 1) * chunk * rows
    return max(totals, borders) * width + 2048 <= 114 << 10


def _default_keyed(plan: ChunkPlan, sizes: Mapping[str, int], rows: int, columns: int, width: int, most: int) -> ChunkedSchedule | None:
    """The same where every key decays at its own pace: chunks of 32 steps, a tree of fewer levels, their programs in 4 warps."""
    tile = min(64, rows)

    def fits(chunk: int, pipeline: int) -> bool:
        walk = max(1, pipeline) * (2 * chunk * columns + chunk * chunk + chunk * tile) + tile * max(chunk, columns)
        beside = chunk * columns + chunk * chunk + 2 * chunk * rows + rows * columns
        return max(walk, 0 if plan.walks else beside) * width + BESIDE <= most

    chunk = next((c for c in (32, 16) if fits(c, 1)), 0)
    if not chunk:
        return None
    grid = math.prod(sizes.get(a, 1) for a in plan.grid) * -(-rows // tile)
    pipeline = next((p for p in (3, 2) if fits(chunk, p)), 1)
    return ChunkedSchedule(chunk=chunk, rows=tile, segment=_segment(sizes.get(plan.time, 1), grid, chunk), pipeline=pipeline, chunk_warps=4)


# How long programs of one wave take with so many of them on a multiprocessor, against one alone: walks on an H100, p = 64, n = 128.
TOGETHER = (0.0, 1.0, 1.3, 1.87)


def _time(programs: int, at_once: int) -> float:
    """How long programs take with so many at once on a multiprocessor, in times of a program alone."""
    waves, rest = divmod(programs, at_once * MULTIPROCESSORS)
    return waves * TOGETHER[at_once] + TOGETHER[-(-rest // MULTIPROCESSORS)]


def _three(programs: int) -> bool:
    """Whether three programs are to share a multiprocessor, with fewer registers for each, in place of two: as they divide."""
    two, three = _time(programs, 2), _time(programs, 3)
    return three < two or (three == two and programs > MULTIPROCESSORS)


def _walk(outer: int, heads: int) -> int:
    """Heads a program walks such that all programs, two to a multiprocessor, end soonest; three heads' time goes before the first."""
    def time(blocks: int) -> int:
        return -(-outer * blocks // (2 * MULTIPROCESSORS)) * (-(-heads // blocks) + 3)

    return -(-heads // min(range(1, max(1, heads) + 1), key=time))


def _segment(length: int, grid: int, chunk: int) -> int:
    """Steps of a segment where grid positions alone leave multiprocessors empty: about 512 programs, whose last wave is full; else 0."""
    chunks = length // chunk
    if grid >= MULTIPROCESSORS or length < 1024:
        return 0
    most = max(1, length // 512)
    pieces = range(max(2, min(most, 384 // grid)), max(2, min(most, 768 // grid)) + 1)
    best = min(pieces, key=lambda count: _time(grid * count, 2) * -(-chunks // count) * (1 + 0.02 * count))  # summaries cost too
    return -(-length // best // chunk) * chunk


def _one_wave(length: int, programs: int, chunk: int, at_once: int) -> int:
    """The same where so many programs can share a multiprocessor and the first segment walks while the others' starts are made: all
    programs at once, in one wave."""
    least = 4096 if programs >= MULTIPROCESSORS else 512 if 4 * programs > MULTIPROCESSORS else 384
    count = min(at_once * MULTIPROCESSORS // programs, length // least)
    if count < 2:
        return 0
    return -(-length // count // chunk) * chunk


def _one_wave_back(length: int, programs: int, chunk: int, tiled: bool) -> int:
    """The same of a backward's walks, two programs on a multiprocessor, each of its two scans in one wave, or a little more where that
    would leave much of it empty. Segments of 4096 steps or more, 2048 of states in two tiles: all but the first wait for summaries."""
    slots, least = 2 * MULTIPROCESSORS, 2048 if tiled else 4096
    count = slots // programs
    if count == 1 and 3 * programs <= 2 * slots:
        count = 3
    elif 20 * programs * count < 19 * slots and length // (count + 1) >= 4096:
        count += 1
    count = min(count, length // least) if tiled else count
    if count < 2 or length // count < least:
        return 0
    return -(-length // count // chunk) * chunk


def _loads(plan: ChunkPlan, factors: Sequence[Node | None], axis: str) -> int:
    """How many tiles of steps along an axis factors are loaded from: a look back in time is a tile of its own."""
    nodes = plan.body([f for f in factors if f is not None])
    return sum(n.op in ("input", "shift") and {axis, plan.time} <= set(n.axes) for n in nodes)


def _column_factors(plan: ChunkPlan) -> list[Node | None]:
    """What a walk multiplies along columns."""
    return [s.input.columns for s in plan.scans] + [r.factor for r in plan.reads]


def _sliced(plan: ChunkPlan) -> bool:
    """Whether what is multiplied along columns is loaded as it is, and so can be a tile of columns at a time."""
    along = [f for f in _column_factors(plan) if f is not None and plan.columns in f.axes]
    return all(f.op == "input" and plan.time in f.axes for f in along)


def _row_loads(plan: ChunkPlan) -> tuple[int, int]:
    """Tiles over rows that all factors are loaded from, and the most that one scan's input is."""
    factors = [s.input.rows for s in plan.scans] + [r.factor for r in plan.reads if r.kind == "rows"]
    return max(2, _loads(plan, factors, plan.rows)), max(1, *(_loads(plan, [s.input.rows], plan.rows) for s in plan.scans))


def _walking_bytes(plan: ChunkPlan, factors: Sequence[Node | None], rows_of: Sequence[Node], tiles: tuple[int, int, int], width: int,
                   pipeline: int) -> int:
    """The same of a walk, less what lies beside, for tiles of chunk, rows and columns: a factor that is loaded is an operand as it lies,
    one that is made of several loads is stored besides, through a tile in float32."""
    chunk, rows, columns = tiles
    distinct = dict.fromkeys(f for f in factors if f is not None)
    made = [f for f in distinct if f.op != "input"]
    elements = (len(distinct) - len(made)) * max(2, pipeline) * chunk * columns + chunk * rows + chunk * chunk
    elements += len(made) * chunk * columns + _loads(plan, made, plan.columns) * (pipeline - 1) * chunk * columns
    looks = _loads(plan, rows_of, plan.rows)
    elements += (max(1, pipeline - 1) if looks <= 1 else looks * (pipeline - 1)) * chunk * rows
    return elements * width + (chunk * columns * 4 if made else 0)


def _bytes(plan: ChunkPlan, chunk: int, rows: int, columns: int, width: int, pipeline: int) -> int:
    """Shared memory that the largest kernel's tiles take, with so many chunks (or heads) in flight."""
    tiles = chunk, rows, columns
    if plan.walks:
        return _walking_bytes(plan, _column_factors(plan), [s.input.rows for s in plan.scans], tiles, width, pipeline) + BESIDE
    states, steps = max(1, pipeline), max(1, pipeline - 1)
    loads, own = _row_loads(plan)
    walks = max(_walking_bytes(plan, [s.input.columns], [s.input.rows], tiles, width, pipeline) for s in plan.scans)
    chunks = chunk * columns + states * rows * columns + loads * steps * chunk * rows + chunk * rows
    states = min(2, states)
    totals = 2 * chunk * columns + states * rows * columns + loads * chunk * rows + chunk * max(chunk, rows)
    borders = 2 * states * rows * columns + own * chunk * rows
    return max(max(chunks, totals, borders) * width, walks) + BESIDE
