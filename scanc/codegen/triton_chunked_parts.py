"""How what all chunks leave is divided among the kernels chunks, totals and borders (see triton_chunked_reads.py)."""

from __future__ import annotations

from scanc.forms.chunked import ChunkPlan, ChunkStore, Read

# Which kernel has what besides each head's own values: of totals, what is inside chunks, and what comes from the states before them (front)
# and from the adjoint's after them (back); of decay reads, what states and inputs have with each other.
TOGETHER = 1   # kernels of all chunks that share a launch
PLACES = {"inside": "totals", "front": "totals", "entering": "totals", "back": "borders", "across": "borders"}


def total_read(plan: ChunkPlan, store: ChunkStore) -> Read | None:
    """The rows read that a result is the sum over heads of, where its matrices can be summed: their other factor is the heads' own."""
    read = next((r for r in plan.reads if r.node is store.value and r.kind == "rows"), None)
    shared = read is not None and plan.head not in read.of.input.columns.axes
    return read if shared and plan.head and plan.head in store.gone and plan.time not in store.gone else None


def parts(plan: ChunkPlan) -> tuple[str, ...]:
    """Which kernels a plan needs."""
    stores = [s for s in plan.stores if not s.final]
    summed = [r for r in (total_read(plan, s) for s in stores) if r is not None]
    found = {"chunks"} if len(summed) < len(stores) else set()
    for read in summed:
        found |= {PLACES["inside"], PLACES["back" if read.of.back else "front"]} if found else {"totals"}
    return tuple(kind for kind in ("chunks", "totals", "borders") if kind in found)


def launches(plan: ChunkPlan, together: int) -> tuple[tuple[str, ...], ...]:
    """The kernels by launches: the last ``together`` share one."""
    found = parts(plan)
    first = max(0, len(found) - max(1, together))
    return tuple(launch for launch in (*((kind,) for kind in found[:first]), found[first:]) if launch)


def place(plan: ChunkPlan, piece: str) -> str:
    """The kernel that has a piece."""
    found = parts(plan)
    return PLACES[piece] if PLACES[piece] in found else found[-1]


def contributors(plan: ChunkPlan, store: ChunkStore) -> tuple[str, ...]:
    """The kernels whose programs add to a result that is summed over heads, in order."""
    read = total_read(plan, store)
    if read is None:
        return ("chunks",)
    wanted = {place(plan, "inside"), place(plan, "back" if read.of.back else "front")}
    return tuple(kind for kind in parts(plan) if kind in wanted)


def left_alone(plan: ChunkPlan) -> bool:
    """Whether the kernel borders needs of a step no more than the product of its weight and its decay to the chunk's end."""
    reads = [r for r in (total_read(plan, s) for s in plan.stores if not s.final) if r is not None and r.of.back]
    return "borders" in parts(plan) and plan.paired is not None and all(r.weight is plan.paired for r in reads)


def partial_axes(plan: ChunkPlan, store: ChunkStore) -> tuple[str, ...]:
    """Leading axes of a result's partial results: what several programs add to."""
    outer = tuple(f"@{a}" for a in store.gone if a in plan.grid and a != plan.head)
    return (*outer, *(("@chunk",) if plan.time in store.gone else ()), *(("@block",) if plan.head in store.gone else ()))
