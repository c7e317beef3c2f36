"""The search: which schedule of which form is fastest for a problem on this machine.

For each problem

    1. seeds      every form's default, the best of the nearest shape known, the best of the problem before
    2. search     Optuna's TPE and neighbours of the best so far in turn, no candidate twice
    3. near-ties  the best few within 1.5 % timed again, interleaved
    4. finish     each field of the winner put back to its default where that is no slower
    5. the winner's record is written again, marked ``best``

Every measurement is on disk before the next begins, so a killed study goes on where it stopped. Failures are kept too, and tell
the sampler what to avoid. This is the only module that imports Optuna.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from scanc.autotune import measure
from scanc.autotune.measure import Measurement, Measurer
from scanc.autotune.progress import Progress, showing
from scanc.autotune.records import Case, Record, RecordStore, as_case, default_store, exact_axes, graph_case, graph_key
from scanc.autotune.space import FormSpace, seeds, space
from scanc.errors import ArgumentError, BackendUnavailable, ScheduleError
from scanc.ir import Graph
from scanc.op import REGISTRY
from scanc.problem import Problem
from scanc.runtime import device_name, versions
from scanc.schedule import Schedule
from scanc.target import Target

NEAR_TIE = 1.015
NO_SLOWER = 1.005
FINALISTS = 6
# A candidate this many times slower than the best in a single call is not timed further.
HOPELESS = 3.0


@dataclass(frozen=True)
class Effort:
    """How much a problem may cost: candidates, seconds, and milliseconds of timing for each."""

    candidates: int
    seconds: float
    budget_ms: float
    final_ms: float


EFFORTS = {"quick": Effort(32, 120.0, 30.0, 40.0), "full": Effort(300, 1800.0, 100.0, 100.0)}


Place = tuple[str, str]  # (target name, schedule as JSON)


def _place(target: str, schedule: Schedule) -> Place:
    return target, json.dumps(schedule.to_json(), sort_keys=True)


class ProblemStudy:
    """The search for one problem; ``records`` holds what is known of each candidate, from disk or measured now."""

    def __init__(self, problem: Problem, targets: Sequence[Target], store: RecordStore, measurer: Measurer, effort: Effort,
                 tell: Callable[[Progress], None], spaces: Sequence[FormSpace] | None, resume: bool, seed: int) -> None:
        self.problem, self.targets, self.store, self.measurer, self.effort, self.tell = problem, targets, store, measurer, effort, tell
        self.graph: Graph = problem.graph()
        self.key = graph_key(self.graph)
        self.device = device_name(targets[0].device_type)
        self.case: Case = as_case(graph_case(self.graph, problem.sizes))
        self.versions = versions()
        self.rng = random.Random(seed)
        self.spaces = {s.name: s for t in targets for s in (spaces if spaces is not None else space(self.graph, t, dict(self.case)))
                       if s.target == t}
        if not self.spaces:
            raise BackendUnavailable(backend=", ".join(t.backend for t in targets), remedy="Name another target.",
                                     reason=f"it has no kernel for op '{problem.op}' in this pass")
        self.records: dict[Place, Record] = self._known() if resume else {}
        self.proposed: set[Place] = set()
        self.study = _new_study(seed)
        for record in self.records.values():
            self._teach(record)

    # What is known

    def _known(self) -> dict[Place, Record]:
        """Earlier records of the very same question under the same versions, the last word on each candidate."""
        found = {}
        for record in self.store.records(self.device, self.problem.op):
            schedule = record.parsed()
            asked = (record.key, record.pass_, record.dtype, record.case, dict(record.versions))
            if schedule is not None and record.target in {t.name for t in self.targets} and \
                    asked == (self.key, self.problem.pass_, self.problem.dtype, self.case, self.versions):
                found[_place(record.target, schedule)] = dataclasses.replace(record, best=False)
        return found

    @property
    def best(self) -> Record | None:
        return min((r for r in self.records.values() if r.ok), key=lambda r: r.ms or math.inf, default=None)

    # The sampler

    def _teach(self, record: Record) -> None:
        """Gives Optuna a record it did not ask for."""
        form = self.spaces.get(f"{record.target}/{record.form}")
        schedule = record.parsed()
        params = _params(form, schedule, list(self.spaces)) if form is not None and schedule is not None else None
        if form is None or params is None:
            return
        distributions: dict[str, BaseDistribution] = {"space": CategoricalDistribution(list(self.spaces))}
        for name, options in form.choices.items():
            if len(options) > 1:
                distributions[f"{form.name}.{name}"] = IntDistribution(0, len(options) - 1)
        if record.ok:
            trial = optuna.create_trial(params=params, distributions=distributions, value=math.log(record.ms or math.inf))
        else:
            trial = optuna.create_trial(params=params, distributions=distributions, state=TrialState.PRUNED)
        self.study.add_trial(trial)

    def _suggest(self, trial: optuna.Trial) -> tuple[FormSpace, Schedule | None]:
        form = self.spaces[trial.suggest_categorical("space", list(self.spaces))]
        values = {}
        for name, options in form.choices.items():
            values[name] = options[trial.suggest_int(f"{form.name}.{name}", 0, len(options) - 1)] if len(options) > 1 else options[0]
        return form, form.schedule(values)

    def _unseen(self, form: FormSpace, schedule: Schedule | None) -> bool:
        if schedule is None:
            return False
        place = _place(form.target.name, schedule)
        return place not in self.records and place not in self.proposed

    def _by_tpe(self) -> tuple[FormSpace, Schedule] | None:
        """A new candidate of Optuna's, which repeats itself by design: what is known already is answered at once."""
        for _ in range(20):
            trial = self.study.ask()
            form, schedule = self._suggest(trial)
            known = self.records.get(_place(form.target.name, schedule)) if schedule is not None else None
            if schedule is not None and self._unseen(form, schedule) and form.runs(schedule):
                # Failed trials do not count for the sampler: what comes of it is taught once measured, as for every other source.
                self.study.tell(trial, state=TrialState.FAIL)
                return form, schedule
            if known is not None and known.ok:
                self.study.tell(trial, math.log(known.ms or math.inf))
            else:
                self.study.tell(trial, state=TrialState.PRUNED)
        return None

    def _by_neighbour(self) -> tuple[FormSpace, Schedule] | None:
        best = self.best
        schedule = best.parsed() if best is not None else None
        form = self.spaces.get(f"{best.target}/{best.form}") if best is not None else None
        if form is None or schedule is None:
            return None
        near = [s for s in form.neighbours(schedule) if self._unseen(form, s)]
        self.rng.shuffle(near)
        return next(((form, s) for s in near if form.runs(s)), None)

    def _by_chance(self) -> tuple[FormSpace, Schedule] | None:
        for _ in range(200):
            form = self.rng.choice(list(self.spaces.values()))
            schedule = form.sample(self.rng)
            if schedule is not None and self._unseen(form, schedule) and form.runs(schedule):
                return form, schedule
        return None

    def candidates(self, starts: Sequence[tuple[FormSpace, Schedule]]) -> Iterator[tuple[FormSpace, Schedule]]:
        """What to try, in order, nothing that is known or was proposed; ends when the space seems exhausted."""
        for form, schedule in starts:
            if self._unseen(form, schedule) and form.runs(schedule):
                self.proposed.add(_place(form.target.name, schedule))
                yield form, schedule
        for turn in itertools.count():
            found = (self._by_neighbour() if turn % 2 else None) or self._by_tpe() or self._by_neighbour() or self._by_chance()
            if found is None:
                return
            self.proposed.add(_place(found[0].target.name, found[1]))
            yield found

    # Measuring

    def _record(self, target: Target, schedule: Schedule, found: Measurement) -> Record:
        return Record(
            op=self.problem.op, key=self.key, pass_=self.problem.pass_, target=target.name, device=self.device, dtype=self.problem.dtype,
            case=self.case, form=schedule.form, schedule=schedule.to_json(), status=found.status, ms=found.ms, ms_p10=found.ms_p10,
            ms_p90=found.ms_p90, timings=found.timings, error=found.error, order=schedule.order, exact=exact_axes(self.graph),
            versions=self.versions, conditions=found.conditions, detail=found.detail, date=found.date)

    def attempt(self, batch: Sequence[tuple[FormSpace, Schedule]]) -> Iterator[Record]:
        """Measures candidates and writes the record of each as it comes."""
        best = self.best
        give_up = HOPELESS * best.ms + 0.1 if best is not None and best.ms is not None else None
        candidates = [(form.target, schedule) for form, schedule in batch]
        for number, found in self.measurer.measure_all(self.problem, candidates, budget_ms=self.effort.budget_ms, give_up_ms=give_up):
            target, schedule = candidates[number]
            record = self._record(target, schedule, found)
            self.store.append(record)
            self.records[_place(target.name, schedule)] = record
            self._teach(record)
            yield record

    def search(self, starts: Sequence[tuple[FormSpace, Schedule]], deadline: float) -> None:
        """Seeds, then the sampler, until candidates or time run out."""
        before = len(self.records)
        total = max(self.effort.candidates, before)
        began = time.monotonic()
        self.tell(Progress(self.problem, before, total, self.best, max(0.0, deadline - began)))
        source = self.candidates([*seeds(list(self.spaces.values())), *starts])
        while len(self.records) < total and time.monotonic() < deadline:
            # Until something is right there is no scale to give up by, and no reason to compile a batch that may be all wrong.
            size = min(self.measurer.jobs, total - len(self.records)) if self.records else 1
            batch = list(itertools.islice(source, size))
            if not batch:
                return
            for _ in self.attempt(batch):
                now = time.monotonic()
                done = len(self.records)
                left = min((now - began) / (done - before) * (total - done), max(0.0, deadline - now))
                self.tell(Progress(self.problem, done, total, self.best, left))

    def finish(self, deadline: float) -> Record | None:
        """Near-ties again, then every field back to its default where that is no slower; the winner, with its later timing."""
        ranked = sorted((r for r in self.records.values() if r.ok), key=lambda r: r.ms or math.inf)
        if not ranked:
            return None
        finalists = [r for r in ranked if (r.ms or math.inf) <= NEAR_TIE * (ranked[0].ms or math.inf)][:FINALISTS]
        winner = min(self._again(finalists), key=lambda r: r.ms or math.inf)
        form = self.spaces.get(f"{winner.target}/{winner.form}")
        for name in form.choices if form is not None else ():
            schedule = winner.parsed()
            if form is None or schedule is None or getattr(schedule, name) == getattr(form.default, name) or time.monotonic() > deadline:
                continue
            try:
                plainer = dataclasses.replace(schedule, **{name: getattr(form.default, name)})
            except ScheduleError:
                continue
            known = self.records.get(_place(winner.target, plainer))
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
        return [dataclasses.replace(r, ms=m.ms, ms_p10=m.ms_p10, ms_p90=m.ms_p90, timings=m.timings, conditions=m.conditions, date=m.date)
                for r, m in zip(records, found, strict=True)]

    def conclude(self, winner: Record | None) -> Record | None:
        """Writes the winner's record again, marked best."""
        if winner is None:
            return None
        final = dataclasses.replace(winner, best=True)
        self.store.append(final)
        return final


def _params(form: FormSpace, schedule: Schedule, spaces: Sequence[str]) -> dict[str, str | int] | None:
    """Optuna's parameters of a schedule; None where it lies outside the grid."""
    if form.name not in spaces:
        return None
    params: dict[str, str | int] = {"space": form.name}
    for name, options in form.choices.items():
        if getattr(schedule, name) not in options:
            return None
        if len(options) > 1:
            params[f"{form.name}.{name}"] = options.index(getattr(schedule, name))
    return params


def _new_study(seed: int) -> optuna.Study:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # multivariate and group, in use for years
        sampler = optuna.samplers.TPESampler(multivariate=True, group=True, n_startup_trials=8, seed=seed)
    return optuna.create_study(sampler=sampler)


def tune(problems: Sequence[Problem], *, target: Target | Sequence[Target], effort: str = "quick", budget_s: float | None = None,
         progress: Callable[[Progress], None] | bool | None = None, store: RecordStore | None = None, resume: bool = True,
         spaces: Sequence[FormSpace] | None = None, measurer: Measurer | None = None, seed: int = 0) -> list[Record]:
    """Finds the fastest right schedule of each problem on this machine and records it; one final record a problem that has any.

    ``target``    one, or several backends of one device to choose between
    ``effort``    "quick" (32 candidates, 2 minutes a problem at most) or "full" (300 candidates, 30 minutes)
    ``budget_s``  seconds for all problems together, in place of the effort's own
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
    own = measurer if measurer is not None else Measurer(imports=sorted({m for p in problems for m in imports_of(p.op)}))
    finals: list[Record] = []
    deadline = time.monotonic() + (budget_s if budget_s is not None else math.inf)
    try:
        with showing(progress, len(problems)) as tell, _quiet_optuna():
            for position, problem in enumerate(problems):
                share = chosen.seconds if budget_s is None else max(0.0, deadline - time.monotonic()) / (len(problems) - position)
                study = ProblemStudy(problem, targets, held, own, chosen, tell, spaces, resume, seed)
                final = _run(study, finals, share)
                finals += [final] if final is not None else []
    finally:
        if measurer is None:
            own.close()
    return finals


def _run(study: ProblemStudy, before: Sequence[Record], share: float) -> Record | None:
    """One problem, start to end, in about ``share`` seconds; the last part is the finish's. What Ctrl-C cuts short gets none."""
    began = time.monotonic()
    try:
        study.search(_starts(study, before), began + 0.85 * share)
        return study.conclude(study.finish(began + share))
    except KeyboardInterrupt:
        study.conclude(study.best)
        raise


def _starts(study: ProblemStudy, before: Sequence[Record]) -> list[tuple[FormSpace, Schedule]]:
    """Schedules worth trying first beside the defaults: the nearest known shape's, and the winner of the problem before."""
    found, problem = [], study.problem
    for form in study.spaces.values():
        near = study.store.lookup(device=study.device, op=problem.op, pass_=problem.pass_, key=study.key, dtype=problem.dtype,
                                  case=dict(study.case), exact=exact_axes(study.graph), target=form.target, forms=(form.form,))
        last = [s for r in before[-1:] if f"{r.target}/{r.form}" == form.name and (s := r.parsed()) is not None]
        for schedule in [*([near] if near is not None else []), *last]:
            made = form.schedule({f.name: getattr(schedule, f.name) for f in dataclasses.fields(schedule)})
            if made is not None:
                found.append((form, made))
    return found


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


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
