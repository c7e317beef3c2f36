"""How what all chunks leave is divided among the kernels chunks, totals and borders (see triton_chunked_reads.py)."""

from __future__ import annotations

from functools import lru_cache

from scanc.forms.chunked import ChunkPlan, ChunkScan, ChunkStore, Pair, Read, pair_of
from scanc.ir import Axes, Node
from scanc.schedule import ChunkedSchedule

Mix = tuple[Node | None, ...]

# Which kernel has what besides each head's own values: of totals, what is inside chunks, and what comes from the states before them (front)
# and from the adjoint's after them (back); of decay reads, what states and inputs have with each other.
PLACES = {"inside": "totals", "front": "totals", "entering": "totals", "back": "borders", "across": "borders"}


@lru_cache(maxsize=1024)  # every call of a program asks
def total_read(plan: ChunkPlan, store: ChunkStore) -> Read | None:
    """The rows read that a result is the sum over heads of, where its matrices can be summed: their other factor is the heads' own."""
    read = next((r for r in plan.reads if r.node is store.value and r.kind == "rows"), None)
    shared = read is not None and plan.head not in read.of.input.columns.axes
    return read if shared and plan.head and plan.head in store.gone and plan.time not in store.gone else None


@lru_cache(maxsize=1024)
def parts(plan: ChunkPlan) -> tuple[str, ...]:
    """Which kernels a plan needs."""
    stores = [s for s in plan.stores if not s.final]
    summed = [r for r in (total_read(plan, s) for s in stores) if r is not None]
    found = {"chunks"} if len(summed) < len(stores) else set()
    for read in summed:
        found |= {PLACES["inside"], PLACES["back" if read.of.back else "front"]} if found else {"totals"}
    return tuple(kind for kind in ("chunks", "totals", "borders") if kind in found)


@lru_cache(maxsize=1024)
def own_stores(plan: ChunkPlan) -> tuple[ChunkStore, ...]:
    """Results of every head's own steps: values over rows or columns."""
    return tuple(s for s in plan.stores if not s.final and not plan.comes_late(s) and total_read(plan, s) is None)


@lru_cache(maxsize=1024)
def walked_back(plan: ChunkPlan, schedule: ChunkedSchedule) -> ChunkScan | None:
    """The adjoint's scan whose walk gives every head's own results as it goes, in place of the kernel chunks.

    What that kernel has besides must be another's: reads of this one scan over columns alone, no sums, nothing late that needs them.
    """
    if not schedule.walk_back or parts(plan) != ("chunks", "totals", "borders"):
        return None
    summed = {total_read(plan, s) for s in plan.stores if not s.final}
    reads = [r for r in plan.reads if r.kind in ("columns", "rows") and r not in summed]
    scans = {r.of for r in reads}
    fits = len(scans) == 1 and all(r.kind == "columns" and r.of.back for r in reads) and not any(s.gone for s in own_stores(plan))
    alone = all(n.op == "sum" and n not in plan.after and set(n.args[0].axes) - set(n.axes) == {plan.rows} for n in plan.met)
    decays = [r for r in plan.reads if r.kind == "decay"]
    pairs = all(any(t is not None and t.of is d.against and t.factor is d.of.input.rows for t in summed) for d in decays)
    return scans.pop() if fits and alone and len(plan.met) <= 1 and len(decays) == 1 and pairs else None


def span(plan: ChunkPlan, schedule: ChunkedSchedule) -> int:
    """Chunks of one state that a backward keeps: what steps of two chunks have with each other is then a kernel's of its own, pairs."""
    return schedule.span if schedule.span > 1 and not plan.keyed and walked_back(plan, schedule) is not None else 1


@lru_cache(maxsize=1024)
def launched(plan: ChunkPlan, schedule: ChunkedSchedule) -> tuple[str, ...]:
    """The kernels of all chunks side by side that run."""
    found = tuple(kind for kind in parts(plan) if kind != "chunks" or walked_back(plan, schedule) is None)
    return ("pairs", *found) if span(plan, schedule) > 1 else found


@lru_cache(maxsize=1024)
def place(plan: ChunkPlan, piece: str) -> str:
    """The kernel that has a piece."""
    found = parts(plan)
    return PLACES[piece] if PLACES[piece] in found else found[-1]


@lru_cache(maxsize=1024)
def contributors(plan: ChunkPlan, schedule: ChunkedSchedule, store: ChunkStore) -> tuple[str, ...]:
    """The kernels whose programs add to a result that is summed over heads, in order."""
    read = total_read(plan, store)
    if read is None:
        return ("chunks",)
    wanted = {place(plan, "inside"), place(plan, "back" if read.of.back else "front")}
    return tuple(kind for kind in launched(plan, schedule) if kind in wanted)


@lru_cache(maxsize=1024)
def lone(plan: ChunkPlan) -> tuple[ChunkStore, ...]:
    """Results summed over heads that one program makes whole where it has all heads of a group, with no partial results to add up."""
    groups = {g for g, parent in plan.graph.groups.items() if parent == plan.head}
    summed = [s for s in plan.stores if not s.final and total_read(plan, s) is not None]
    return tuple(s for s in summed if partial_axes(plan, s) == ("@block",) and groups <= set(s.output.axes))


@lru_cache(maxsize=1024)
def mixes(plan: ChunkPlan) -> tuple[Mix, ...]:
    """The matrices of two steps that are summed over heads, as what they are made of: each may be of several results."""
    reads = [total_read(plan, s) for s in plan.stores if not s.final]
    return tuple(dict.fromkeys(mix_of(r) for r in reads if r is not None))


def mix_of(read: Read) -> Mix:
    """The matrix of a rows read."""
    pair, one, other = pair_of(read)
    return (*pair, one, other)


@lru_cache(maxsize=1024)
def left_alone(plan: ChunkPlan, schedule: ChunkedSchedule) -> bool:
    """Whether the kernel borders needs of a step no more than the product of its weight and its decay to the chunk's end."""
    if walked_back(plan, schedule) is not None:
        return False
    reads = [r for r in (total_read(plan, s) for s in plan.stores if not s.final) if r is not None and r.of.back]
    return "borders" in parts(plan) and plan.paired is not None and all(r.weight is plan.paired for r in reads)


@lru_cache(maxsize=1024)
def partial_axes(plan: ChunkPlan, store: ChunkStore) -> tuple[str, ...]:
    """Leading axes of a result's partial results: what several programs add to."""
    outer = tuple(f"@{a}" for a in store.gone if a in plan.grid and a != plan.head)
    return (*outer, *(("@chunk",) if plan.time in store.gone else ()), *(("@block",) if plan.head in store.gone else ()))


def scores_ahead(plan: ChunkPlan, schedule: ChunkedSchedule) -> tuple[Pair, ...]:
    """Pairs of factors over columns whose products are made once for the heads that share them, ahead of a walk."""
    return plan.shared if schedule.scores and plan.walks else ()


@lru_cache(maxsize=1024)
def scores_axes(plan: ChunkPlan, pair: Pair) -> Axes:
    """What such products vary over besides a chunk's steps."""
    found = {a for node in pair for a in node.axes} - {plan.time, plan.columns}
    return tuple(a for a in plan.graph.order if a in found)
