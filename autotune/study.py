"""The search: which schedule of which form is fastest for a problem on this machine.

    1. known      of every problem, before any is searched: the best schedule on record or of the nearest shape known, the compiler's
                  default, the winners of the problems before
    2. search     problem by problem: the defaults of the other forms, then what sampler.py proposes, no candidate twice
    3. near-ties  the best few within 1.5 % timed again, interleaved
    4. finish     each field of the winner put back to its default where that is no slower
    5. the winner's record is written again, marked ``best``

Time is shared by the problems: each gets an equal part of what is left when its search begins, so what one does not use goes to those
after it. Every measurement is on disk before the next begins, so a killed study goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from scanc.autotune import measure
from scanc.autotune.measure import LIMIT_S, Measurement, Measurer
from scanc.autotune.progress import Progress, showing
from scanc.autotune.records import NEAR_TIE, Case, Record, RecordStore, as_case, default_store, exact_axes, graph_case, graph_key
from scanc.autotune.sampler import Candidate, Place, Sampler, place, quiet_optuna
from scanc.autotune.space import FormSpace, seeds, space
from scanc.errors import ArgumentError, BackendUnavailable, ScheduleError
from scanc.ir import Graph
from scanc.op import REGISTRY
from scanc.problem import Problem
from scanc.runtime import device_name, versions
from scanc.schedule import Schedule
from scanc.target import Target

NO_SLOWER = 1.005
FINALISTS = 6
# A candidate that its first few timings find this many times slower than the best is not timed further.
SLOW = 1.3
# With a budget a candidate may take its problem's share, and this long at least.
LEAST_LIMIT_S = 30.0
# The share of a problem's time that its search may use; the rest is for the finish.
SEARCHING = 0.85


@dataclass(frozen=True)
class Effort:
    """How much a problem may cost: candidates, seconds, and milliseconds of timing for each."""

    candidates: int
    seconds: float
    budget_ms: float
    final_ms: float


EFFORTS = {"quick": Effort(32, 120.0, 30.0, 40.0), "full": Effort(300, 1800.0, 100.0, 100.0)}


@dataclass
class Pace:
    """How fast candidates go by over all problems, for estimates; ``remaining`` candidates by the problem's number."""

    deadline: float
    remaining: dict[int, int] = field(default_factory=dict)
    measured: int = 0
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Seconds that a candidate takes; 0 before the first."""
        return self.seconds / max(self.measured, 1)

    def left(self, number: int | None = None) -> float:
        """Seconds that one problem, or all, would still take; never more than the budget has."""
        count = sum(self.remaining.values()) if number is None else self.remaining[number]
        return max(0.0, min(self.mean * count, self.deadline - time.monotonic()))


class ProblemStudy:
    """The search for one problem; ``records`` holds what is known of each candidate, from disk or measured now."""

    def __init__(self, problem: Problem, targets: Sequence[Target], store: RecordStore, measurer: Measurer, effort: Effort,
                 tell: Callable[[Progress], None], spaces: Sequence[FormSpace] | None, resume: bool, seed: int, number: int,
                 problems: int, pace: Pace) -> None:
        self.number, self.problems, self.pace = number, problems, pace
        self.problem, self.targets, self.store, self.measurer, self.effort, self.tell = problem, targets, store, measurer, effort, tell
        self.graph: Graph = problem.graph()
        self.key = graph_key(self.graph)
        self.device = device_name(targets[0].device_type)
        self.case: Case = as_case(graph_case(self.graph, problem.sizes))
        self.versions = versions()
        self.spaces = {s.name: s for t in targets for s in (spaces if spaces is not None else space(self.graph, t, dict(self.case)))
                       if s.target == t}
        if not self.spaces:
            raise BackendUnavailable(backend=", ".join(t.backend for t in targets), remedy="Name another target.",
                                     reason=f"it has no kernel for op '{problem.op}' in this pass")
        self.records: dict[Place, Record] = self._known() if resume else {}
        self.sampler = Sampler(self.spaces, self.records, seed)
        self.total = max(effort.candidates, len(self.records))
        self.told = False
        self.concluded = False
        pace.remaining[number] = self.total - len(self.records)

    # What is known

    def _known(self) -> dict[Place, Record]:
        """Earlier records of the very same question under the same versions, the last word on each candidate."""
        found = {}
        for record in self.store.records(self.device, self.problem.op):
            schedule = record.parsed()
            asked = (record.key, record.pass_, record.dtype, record.case, dict(record.versions))
            if schedule is not None and record.target in {t.name for t in self.targets} and \
                    asked == (self.key, self.problem.pass_, self.problem.dtype, self.case, self.versions):
                found[place(record.target, schedule)] = dataclasses.replace(record, best=False)
        return found

    @property
    def best(self) -> Record | None:
        return min((r for r in self.records.values() if r.ok), key=lambda r: r.ms or math.inf, default=None)

    # Measuring

    def _record(self, target: Target, schedule: Schedule, found: Measurement) -> Record:
        return Record(
            op=self.problem.op, key=self.key, pass_=self.problem.pass_, target=target.name, device=self.device, dtype=self.problem.dtype,
            case=self.case, form=schedule.form, schedule=schedule.to_json(), status=found.status, ms=found.ms, ms_p10=found.ms_p10,
            ms_p90=found.ms_p90, timings=found.timings, error=found.error, order=schedule.order, exact=exact_axes(self.graph),
            versions=self.versions, conditions=found.conditions, detail=found.detail, date=found.date)

    def attempt(self, batch: Sequence[Candidate]) -> Iterator[Record]:
        """Measures candidates and writes the record of each as it comes."""
        best = self.best
        give_up = SLOW * best.ms if best is not None and best.ms is not None else None
        candidates = [(form.target, schedule) for form, schedule in batch]
        self.measurer.prepare(self.problem, candidates[0][0])  # inputs and oracles: once a problem, so no part of a candidate's pace
        before = time.monotonic()
        for number, found in self.measurer.measure_all(self.problem, candidates, budget_ms=self.effort.budget_ms, give_up_ms=give_up):
            target, schedule = candidates[number]
            record = self._record(target, schedule, found)
            self._keep(record)
            self.sampler.teach(record)
            now = time.monotonic()
            self.pace.measured, self.pace.seconds, before = self.pace.measured + 1, self.pace.seconds + now - before, now
            yield record

    def _keep(self, record: Record) -> None:
        self.store.append(record)
        schedule = record.parsed()
        if schedule is not None:
            self.records[place(record.target, schedule)] = record

    def _report(self) -> None:
        self.told = True
        self.pace.remaining[self.number] = max(0, self.total - len(self.records))
        self.tell(Progress(self.problem, len(self.records), max(self.total, len(self.records)), self.best, self.pace.left(self.number),
                           self.number, self.problems, self.pace.left()))

    def measure_known(self, winners: Sequence[Record]) -> None:
        """What is known to be good elsewhere, and the default, whatever the time: no problem is left with nothing."""
        if not self.told:
            self._report()
        # One by one: what comes first is likely the best, and the scale by which the others are given up.
        for candidate in self.sampler.fresh(_known_schedules(self, winners)):
            for _ in self.attempt([candidate]):
                self._report()

    def search(self, starts: Sequence[Candidate], deadline: float) -> None:
        """Every form's default and ``starts``, then the sampler, until candidates or time run out."""
        if not self.told:
            self._report()
        source = itertools.chain(self.sampler.fresh([*seeds(list(self.spaces.values())), *starts]), self.sampler.proposals())
        # A batch that would likely end too late is left out: its time belongs to the problems after this one.
        while len(self.records) < self.total and time.monotonic() + self.pace.mean < deadline:
            # Until something is right there is no scale to give up by, and no reason to compile a batch that may be all wrong.
            size = min(self.measurer.jobs, self.total - len(self.records)) if self.records else 1
            batch = list(itertools.islice(source, size))
            if not batch:
                break
            for _ in self.attempt(batch):
                self._report()
        self.pace.remaining[self.number] = 0

    def finish(self, deadline: float) -> Record | None:
        """Near-ties again, then every field back to its default where that is no slower; the winner, with its later timing."""
        ranked = sorted((r for r in self.records.values() if r.ok), key=lambda r: r.ms or math.inf)
        if not ranked:
            return None
        finalists = [r for r in ranked if (r.ms or math.inf) <= NEAR_TIE * (ranked[0].ms or math.inf)][:FINALISTS]
        winner = min(self._again(finalists if time.monotonic() < deadline else finalists[:1]), key=lambda r: r.ms or math.inf)
        form = self.spaces.get(f"{winner.target}/{winner.form}")
        for name in form.choices if form is not None else ():
            schedule = winner.parsed()
            if form is None or schedule is None or getattr(schedule, name) == getattr(form.default, name) or time.monotonic() > deadline:
                continue
            try:
                plainer = dataclasses.replace(schedule, **{name: getattr(form.default, name)})
            except ScheduleError:
                continue
            known = self.records.get(place(winner.target, plainer))
            if known is None and form.runs(plainer):
                known = next(self.attempt([(form, plainer)]))
            if known is not None and known.ok and (known.ms or math.inf) <= 1.05 * (winner.ms or math.inf):
                held, other = self._again([winner, known])
                winner = other if (other.ms or math.inf) <= NO_SLOWER * (held.ms or math.inf) else held
        return winner

    def _again(self, records: Sequence[Record]) -> list[Record]:
        """The same candidates timed once more, interleaved; their old timings where that fails."""
        if len(records) < 2:
            return list(records)
        pairs = [(Target.parse(r.target), s) for r in records if (s := r.parsed()) is not None]
        found = self.measurer.compare(self.problem, pairs, budget_ms=self.effort.final_ms)
        if found is None or len(pairs) != len(records):
            return list(records)
        again = [dataclasses.replace(r, ms=m.ms, ms_p10=m.ms_p10, ms_p90=m.ms_p90, timings=m.timings, conditions=m.conditions, date=m.date)
                 for r, m in zip(records, found, strict=True)]
        for record in again:
            self._keep(record)
        return again

    def conclude(self, winner: Record | None) -> Record | None:
        """Writes the winner's record again, marked best."""
        self.concluded = True
        if winner is None:
            return None
        final = dataclasses.replace(winner, best=True)
        self.store.append(final)
        return final


def tune(problems: Sequence[Problem], *, target: Target | Sequence[Target], effort: str = "quick", budget_s: float | None = None,
         progress: Callable[[Progress], None] | bool | None = None, store: RecordStore | None = None, resume: bool = True,
         spaces: Sequence[FormSpace] | None = None, measurer: Measurer | None = None, seed: int = 0) -> list[Record]:
    """Finds the fastest right schedule of each problem on this machine and records it; one final record a problem that has any.

    ``target``    one, or several backends of one device to choose between
    ``effort``    "quick" (32 candidates, 2 minutes a problem at most) or "full" (300 candidates, 30 minutes)
    ``budget_s``  seconds for all problems together, shared by them, in place of the effort's own; what is known to be good is measured
                  for each problem even where that takes longer
    ``progress``  called after each candidate; None draws a bar where stderr is a terminal, False keeps quiet
    ``resume``    go on from records of the same question and versions; False measures everything again
    ``spaces``    search these in place of those derived from the graph

    Ctrl-C keeps what was measured and marks the best so far before KeyboardInterrupt goes on. Raises ArgumentError on an unknown
    effort and BackendUnavailable where the target is not this machine's.
    """
    if effort not in EFFORTS:
        raise ArgumentError(op="tune", argument="effort", value=repr(effort), limit=f"it must be one of {', '.join(EFFORTS)}",
                            remedy="Try effort='quick'.")
    if measure.in_worker:
        raise ArgumentError(op="tune", argument="call", value="at the top of the file that defines the op",
                            limit="the measuring process runs that file too", remedy="Put the call under `if __name__ == \"__main__\":`.")
    targets = [target] if isinstance(target, Target) else list(target)
    need_device(targets)
    chosen = EFFORTS[effort]
    held = store if store is not None else default_store()
    limit_s = LIMIT_S if budget_s is None else min(LIMIT_S, max(LEAST_LIMIT_S, budget_s / max(len(problems), 1)))
    own = measurer if measurer is not None else Measurer(imports=sorted({m for p in problems for m in imports_of(p.op)}), limit_s=limit_s)
    pace = Pace(time.monotonic() + (budget_s if budget_s is not None else math.inf))
    try:
        with showing(progress) as tell, quiet_optuna():
            studies = [ProblemStudy(problem, targets, held, own, chosen, tell, spaces, resume, seed, number, len(problems), pace)
                       for number, problem in enumerate(problems, 1)]
            return _run(studies, None if budget_s is not None else chosen.seconds)
    finally:
        if measurer is None:
            own.close()


def _run(studies: Sequence[ProblemStudy], seconds: float | None) -> list[Record]:
    """All problems, start to end: ``seconds`` for each, or (None) a share of what is left. What Ctrl-C cuts short has no finish."""
    finals: list[Record] = []
    winners: list[Record] = []
    try:
        for study in studies:
            study.measure_known(winners)
            winners += [study.best] if study.best is not None else []
        for position, study in enumerate(studies):
            began = time.monotonic()
            share = seconds if seconds is not None else max(0.0, study.pace.deadline - began) / (len(studies) - position)
            study.search(_starts(study, finals), began + SEARCHING * share)
            final = study.conclude(study.finish(began + share))
            finals += [final] if final is not None else []
    except KeyboardInterrupt:
        for study in studies:
            if not study.concluded:
                study.conclude(study.best)
        raise
    return finals


def _known_schedules(study: ProblemStudy, winners: Sequence[Record]) -> list[Candidate]:
    """Of this question or the nearest, the best schedule known; the compiler's default; the last winners, those of the same pass first."""
    problem, found = study.problem, seeds(list(study.spaces.values()))[:1]
    nearest = study.store.fastest(
        device=study.device, op=problem.op, pass_=problem.pass_, key=study.key, dtype=problem.dtype, case=dict(study.case),
        exact=exact_axes(study.graph), time=study.graph.time, targets=study.targets,
        accept=lambda s: any(f.form == s.form for f in study.spaces.values()))
    if nearest is not None:
        form = study.spaces.get(f"{nearest[0].name}/{nearest[1].form}")
        made = form.taken_over(nearest[1]) if form is not None else None
        found = [(form, made), *found] if form is not None and made is not None else found
    alike = [r for r in winners if r.pass_ == problem.pass_] or winners
    return [*found, *_taken_over(study, reversed(alike[-2:]))]


def _taken_over(study: ProblemStudy, records: Iterable[Record]) -> list[Candidate]:
    """The schedules of other problems' records, on the grids of this one."""
    found = []
    for record in records:
        form, schedule = study.spaces.get(f"{record.target}/{record.form}"), record.parsed()
        made = form.adapted(schedule) if form is not None and schedule is not None else None
        if form is not None and made is not None:
            found.append((form, made))
    return found


def _starts(study: ProblemStudy, finals: Sequence[Record]) -> list[Candidate]:
    """Schedules worth trying once the search begins: each form's best at the nearest shape, and what the problem before ended with."""
    found, problem = [], study.problem
    for form in study.spaces.values():
        near = study.store.lookup(device=study.device, op=problem.op, pass_=problem.pass_, key=study.key, dtype=problem.dtype,
                                  case=dict(study.case), exact=exact_axes(study.graph), time=study.graph.time,
                                  target=form.target, forms=(form.form,))
        made = form.taken_over(near) if near is not None else None
        if made is not None:
            found.append((form, made))
    return [*found, *_taken_over(study, finals[-1:])]


def need_device(targets: Sequence[Target]) -> None:
    """Raises where a target cannot be measured here, or where targets are of more than one device."""
    if len({(t.kind, t.arch) for t in targets if t.kind != "cpu"} | {("cpu", "") for t in targets if t.kind == "cpu"}) != 1:
        raise ArgumentError(op="tune", argument="target", value=", ".join(t.name for t in targets) or "empty",
                            limit="all targets of one study are of one device", remedy="Tune each device by itself.")
    kind, arch = targets[0].kind, targets[0].arch
    if kind == "cpu":
        return
    here = ""
    if torch.cuda.is_available():
        if torch.version.hip:
            here = str(torch.cuda.get_device_properties(0).gcnArchName).split(":")[0]
        else:
            here = "sm_{}{}".format(*torch.cuda.get_device_capability())
    if here != arch.rstrip("af") and here != arch:
        raise BackendUnavailable(backend=targets[0].backend, reason=f"this machine has no {arch}" + (f" but {here}" if here else ""),
                                 remedy="Screen schedules for a device that is not here with `scanc tune OP --target … --screen`.")


def imports_of(op: str) -> list[str]:
    """What the worker must import to know ``op``: a module's name, or the file of an op that no module's name leads to.

    Raises ArgumentError for an op typed into a session, which no file defines.
    """
    function = REGISTRY[op].function
    module = sys.modules.get(function.__module__)
    spec = getattr(module, "__spec__", None)
    if spec is not None:
        return [] if spec.name.startswith("scanc.") else [spec.name]
    path = Path(function.__code__.co_filename)
    if not path.is_file():
        raise ArgumentError(op=op, argument="op", value="defined in an interactive session", limit="tuning measures in another process",
                            remedy="Save the op in a .py file and import it.")
    return [str(path.resolve())]
