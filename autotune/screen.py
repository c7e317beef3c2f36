"""Screening: what a compiled candidate would use of a GPU, found without one, so that what cannot win is never run.

Triton compiles for a ``GPUTarget`` and NVRTC for an architecture with no device and no driver; the machine code says what it uses.
Each backend's module offers ``resources(source, target)`` for one kernel; the judgement is here, once. On a CPU there is nothing
to screen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scanc.autotune.space import FormSpace, state_size
from scanc.errors import BackendUnavailable, ScancError
from scanc.schedule import Schedule
from scanc.target import Target

if TYPE_CHECKING:
    from scanc.problem import Problem

# A little spilling hides behind arithmetic; beyond this a kernel is bound by it.
MOST_SPILLED_BYTES = 256
MOST_COMPILE_SECONDS = 120.0
REGISTERS_PER_BLOCK = {"cuda": 64 << 10, "hip": 128 << 10}


@dataclass(frozen=True)
class Screened:
    """The worst of a candidate's kernels: registers a thread, spilled and shared bytes; ``seconds`` to compile them all."""

    ok: bool
    reason: str = ""
    registers: int = 0
    spills: int = 0
    shared: int = 0
    seconds: float = 0.0

    @property
    def detail(self) -> str:
        if not self.registers and not self.shared:
            return ""
        return f"{self.registers} registers, {self.spills} bytes spilled, {self.shared} bytes shared, compiled in {self.seconds:.2f} s"


def screen(sources: Sequence[Any], target: Target) -> Screened:
    """Compiles every source for ``target`` and judges what it uses. ``sources`` is ``Executable.sources``."""
    if target.kind == "cpu" or not sources:
        return Screened(True)
    from scanc.compiler import backend

    made_by = backend(target)
    registers = spills = shared = threads = 0
    seconds = 0.0
    for source in sources:
        try:
            used = made_by.resources(source, target)
        except BackendUnavailable:
            raise
        except ScancError as error:
            return Screened(False, f"{source.name}: {str(error).splitlines()[0]}", registers, spills, shared, seconds)
        registers, spills, shared = max(registers, used["registers"]), max(spills, used["spills"]), max(shared, used["shared"])
        threads = max(threads, used["threads"] if "threads" in used else _threads(source.schedule, target))
        seconds += used["seconds"]
    return judged(registers, spills, shared, seconds, threads, target)


def _threads(schedule: Schedule, target: Target) -> int:
    """Threads of a block, where its backend does not say: Triton's warps, or lanes times the threads a lane is split over."""
    if target.backend == "triton":
        return int(getattr(schedule, "warps", 4)) * target.warp
    return int(getattr(schedule, "lanes", 1)) * int(getattr(schedule, "split", 1))


def sources_for(executable: Any, sizes: Mapping[str, int]) -> tuple[Any, ...]:
    """What an executable will launch for these sizes: its plain kernel for the state's size, before any was made."""
    if hasattr(executable, "all_sources"):  # a form of several kernels
        return tuple(executable.all_sources(executable.shape_of(sizes)))
    return (executable.source(state_size(executable.graph, sizes)),)


def judged(registers: int, spills: int, shared: int, seconds: float, threads: int, target: Target) -> Screened:
    """Whether what a kernel uses lets it launch on ``target``, and run well."""
    reason = ""
    if shared > target.shared_bytes:
        reason = f"{shared} bytes of shared memory, {target.name} has {target.shared_bytes} for a block"
    elif registers * threads > REGISTERS_PER_BLOCK.get(target.kind, 64 << 10):
        reason = f"{threads} threads of {registers} registers do not fit a multiprocessor"
    elif spills > MOST_SPILLED_BYTES:
        reason = f"{spills} bytes a thread spilled out of registers"
    elif seconds > MOST_COMPILE_SECONDS:
        reason = f"it took {seconds:.0f} s to compile"
    return Screened(not reason, reason, registers, spills, shared, seconds)


def survey(problem: Problem, spaces: Sequence[FormSpace], limit: int = 64, seed: int = 0) -> Iterator[tuple[FormSpace, Schedule, Screened]]:
    """Screens each form's default and random others, ``limit`` in all, for a target that need not be here."""
    from scanc.compiler import program

    rng = random.Random(seed)
    graph, sizes = problem.graph(), problem.sizes
    candidates = [(s, s.default) for s in spaces]
    for _ in range(50 * limit):
        if len(candidates) >= limit:
            break
        chosen = rng.choice(list(spaces))
        made = chosen.sample(rng)
        if made is not None and (chosen, made) not in candidates and chosen.runs(made):
            candidates.append((chosen, made))
    for form, schedule in candidates[:limit]:
        try:
            yield form, schedule, screen(sources_for(program(graph, form.target, schedule), sizes), form.target)
        except BackendUnavailable:
            raise
        except ScancError as error:
            yield form, schedule, Screened(False, f"{type(error).__name__}: {str(error).splitlines()[0]}")
