"""What a study tries next: neighbours of the best so far and Optuna's TPE in turn, nothing twice.

The sampler learns from every measurement, whoever asked for it. Failures are told as such, so that it stays away from them; what is
slow is told with its time. This is the only module that imports Optuna.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from scanc.autotune.records import Record
from scanc.autotune.space import FormSpace
from scanc.schedule import Schedule

Place = tuple[str, str]  # (target name, schedule as JSON)
Candidate = tuple[FormSpace, Schedule]


def place(target: str, schedule: Schedule) -> Place:
    return target, json.dumps(schedule.to_json(), sort_keys=True)


class Sampler:
    """Proposes candidates of ``spaces``; ``records`` is the study's own table of what is known, which it only reads."""

    def __init__(self, spaces: Mapping[str, FormSpace], records: Mapping[Place, Record], seed: int) -> None:
        self.spaces, self.records = spaces, records
        self.rng = random.Random(seed)
        self.proposed: set[Place] = set()
        self.study = _new_study(seed)
        for record in records.values():
            self.teach(record)

    def teach(self, record: Record) -> None:
        """Gives Optuna a record it did not ask for."""
        form = self.spaces.get(f"{record.target}/{record.form}")
        schedule = record.parsed()
        params = _params(form, schedule) if form is not None and schedule is not None else None
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
        where = place(form.target.name, schedule)
        return where not in self.records and where not in self.proposed

    def _by_tpe(self) -> Candidate | None:
        """A new candidate of Optuna's, which repeats itself by design: what is known already is answered at once."""
        for _ in range(20):
            trial = self.study.ask()
            form, schedule = self._suggest(trial)
            known = self.records.get(place(form.target.name, schedule)) if schedule is not None else None
            if schedule is not None and self._unseen(form, schedule) and form.runs(schedule):
                # Failed trials do not count for the sampler: what comes of it is taught once measured, as for every other source.
                self.study.tell(trial, state=TrialState.FAIL)
                return form, schedule
            if known is not None and known.ok:
                self.study.tell(trial, math.log(known.ms or math.inf))
            else:
                self.study.tell(trial, state=TrialState.PRUNED)
        return None

    def _by_neighbour(self) -> Candidate | None:
        best = min((r for r in self.records.values() if r.ok), key=lambda r: r.ms or math.inf, default=None)
        schedule = best.parsed() if best is not None else None
        form = self.spaces.get(f"{best.target}/{best.form}") if best is not None else None
        if form is None or schedule is None:
            return None
        near = [s for s in form.neighbours(schedule) if self._unseen(form, s)]
        self.rng.shuffle(near)
        return next(((form, s) for s in near if form.runs(s)), None)

    def _by_chance(self) -> Candidate | None:
        for _ in range(200):
            form = self.rng.choice(list(self.spaces.values()))
            schedule = form.sample(self.rng)
            if schedule is not None and self._unseen(form, schedule) and form.runs(schedule):
                return form, schedule
        return None

    def fresh(self, starts: Sequence[Candidate]) -> list[Candidate]:
        """Of ``starts``, those that are new and that the backend has a kernel for; they count as proposed."""
        found = []
        for form, schedule in starts:
            if self._unseen(form, schedule) and form.runs(schedule):
                self.proposed.add(place(form.target.name, schedule))
                found.append((form, schedule))
        return found

    def proposals(self) -> Iterator[Candidate]:
        """What to try, one after another; ends when the space seems exhausted."""
        for turn in itertools.count():
            found = (self._by_neighbour() if turn % 2 else None) or self._by_tpe() or self._by_neighbour() or self._by_chance()
            if found is None:
                return
            self.proposed.add(place(found[0].target.name, found[1]))
            yield found


def _params(form: FormSpace, schedule: Schedule) -> dict[str, str | int] | None:
    """Optuna's parameters of a schedule; None where it lies outside the grid."""
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


@contextmanager
def quiet_optuna() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
