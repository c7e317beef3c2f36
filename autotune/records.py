"""Records: what was measured, on which device, and the schedule to use because of it.

A record is one measured (graph, pass, target, schedule, case) on one device. Records live as JSON lines, one file per
device and op, each line complete in itself:

    <cache>/tuning/<device in kebab case>/<op>.jsonl      this user's, appended to as measurements come
    scanc/autotune/bundled/<device in kebab case>/*.json  the package's, read only

Looking a schedule up (``RecordStore.lookup``) asks, in this order:

    1. this user's records of the device, the same graph and the same shape bucket
    2. the package's, likewise
    3. the nearest record of the device, by distance between buckets, the same graph before its siblings
    4. the nearest record of another device of the same target

and gives None when nothing fits: the schedule's own default is the caller's business. A record is near whose exact axes are
the same and that has as much to do side by side, for as long to a factor of two: what is best for many lanes is not for few.

A shape bucket is the next power of two of each axis, and the exact size of the axes a kernel is built around (state axes,
groups): two lengths of one bucket always get the same schedule.

A record may say no more than that the compiler's own schedule is the fastest there. For more or fewer lanes, or a longer time, it then
stands for what the compiler takes for those (``default``): how many blocks fill a device is not a thing that neighbours share.

Nothing here imports Optuna, and a lookup after the first reads no file that did not change.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scanc.autotune import lines
from scanc.errors import ScheduleError
from scanc.ir import Graph
from scanc.runtime import atomic_write, cache_dir, kebab, logger
from scanc.schedule import Schedule, schedule_from_json
from scanc.target import Target

FORMAT = 1
# Factors between buckets within which another shape's schedule may serve: of what runs side by side, and of time.
NEAR_LANES, NEAR_TIME = 1, 2
# Of timings this close, none is the faster.
NEAR_TIE = 1.015
BUNDLED = Path(__file__).resolve().parent / "bundled"

Case = tuple[tuple[str, int], ...]
Rank = tuple[float, ...]
# device, op, pass, key, dtype, bucket, exact, time, target
Question = tuple[str, str, str, str, str, Case, tuple[str, ...], str, str]
Accept = Callable[[Schedule], bool]
# ``default_schedule`` of a graph: the compiler's own for a target, sizes and a form.
Default = Callable[[Target, Mapping[str, int], str], Schedule]


@dataclass(frozen=True)
class Record:
    """One measured candidate.

    ``key``       digest of the canonical graph, dtypes included (``graph_key``)
    ``case``      axis -> size, sorted; ``exact`` names the axes a bucket keeps exact
    ``status``    "ok", "slow" (right, but timed only until that was plain), "wrong", "crashed", "timeout" or "screened: <reason>"
    ``ms``        median milliseconds of one call, with the 10th and 90th percentile; None unless ok
    ``timings``   the whole summary of the timings: how many, mean, least, …
    ``error``     output -> largest relative error met in the checks
    ``order``     the schedule's summation order: equal orders give bit-identical results
    ``conditions`` clocks, temperature, load and other tenants while it was measured, where readable
    ``detail``    the failure's own words, or the candidate's registers and spills
    ``best``      the study's final choice for this case
    """

    op: str
    key: str
    pass_: str
    target: str
    device: str
    dtype: str
    case: Case
    form: str
    schedule: Mapping[str, Any]
    status: str
    ms: float | None = None
    ms_p10: float | None = None
    ms_p90: float | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    error: Mapping[str, float] = field(default_factory=dict)
    order: str = ""
    exact: tuple[str, ...] = ()
    versions: Mapping[str, str | None] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    detail: str = ""
    date: str = ""
    best: bool = False

    def to_json(self) -> dict[str, Any]:
        """A dict of strict JSON: not-a-number and infinity become words."""
        data = {"format": FORMAT, **{f.name.rstrip("_"): getattr(self, f.name) for f in dataclasses.fields(self)}}
        data["case"] = dict(self.case)
        return {k: _strict(v) for k, v in data.items()}

    @classmethod
    def from_json(cls, data: Any) -> Record:
        """The record that ``to_json`` wrote; fields it does not know are dropped. Raises ValueError on anything else."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError("not a tuning record of this format")
        names = {f.name.rstrip("_"): f.name for f in dataclasses.fields(cls)}
        fields = {names[k]: v for k, v in data.items() if k in names}
        try:
            fields["case"] = as_case({str(k): int(v) for k, v in fields["case"].items()})
            fields["exact"] = tuple(fields.get("exact", ()))
            for name in ("timings", "error"):
                fields[name] = {str(k): float(v) for k, v in fields.get(name, {}).items()}
            return cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a tuning record: {error}") from error

    @property
    def ok(self) -> bool:
        """Right and timed; "slow" ones too, whose few timings are enough to leave them."""
        return self.status in ("ok", "slow") and self.ms is not None and math.isfinite(self.ms)

    @property
    def bucket(self) -> Case:
        return shape_bucket(dict(self.case), self.exact)

    def parsed(self) -> Schedule | None:
        """The schedule; None where this version of scanc has no such form or field."""
        try:
            return schedule_from_json(dict(self.schedule))
        except (ScheduleError, TypeError):
            return None

    @property
    def line(self) -> str:
        """The schedule as a line to paste: ``schedule=RecurrentSchedule(lanes=64, …)``."""
        schedule = self.parsed()
        return f"schedule={schedule!r}" if schedule is not None else f"schedule={dict(self.schedule)!r}"


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _strict(v) for k, v in value.items()}
    return [_strict(v) for v in value] if isinstance(value, list | tuple) else value


def as_case(sizes: Mapping[str, int]) -> Case:
    return tuple(sorted(sizes.items()))


def shape_bucket(case: Mapping[str, int], exact: Collection[str] = ()) -> Case:
    """Each axis rounded up to a power of two, those in ``exact`` kept as they are.

    Before -> after:  {b: 3, l: 2000, n: 12}, exact (n)  ->  {b: 4, l: 2048, n: 12}
    """
    return tuple(sorted((a, s if a in exact else 1 << max(0, s - 1).bit_length()) for a, s in case.items()))


def exact_axes(graph: Graph) -> tuple[str, ...]:
    """Axes whose size a kernel is built around: the state's and the groupings."""
    return tuple(sorted({*graph.state, *graph.groups}))


def graph_case(graph: Graph, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of the axes the graph's inputs have; a grouping that was not given is one group."""
    return {a: sizes.get(a, 1) for a in graph.order if any(a in n.axes for n in graph.inputs)}


def graph_key(graph: Graph) -> str:
    """16 hexadecimal digits that stay the same as long as the canonical graph, its dtypes included, prints the same."""
    from scanc.passes.canonicalize import canonicalize
    from scanc.printer import print_graph

    return hashlib.sha256(print_graph(canonicalize(graph)).encode()).hexdigest()[:16]


def _distance(a: Case, b: Case, exact: Collection[str], time: str) -> float:
    """How far apart two buckets are; infinite where one's schedule is none for the other. An axis not given is one position.

    It is the squares of the factors' logarithms: of the product of all axes but time, of time (a quarter), of each axis (a sixteenth).
    """
    x, y = dict(a), dict(b)
    apart = {axis: math.log2(max(x.get(axis, 1), 1) / max(y.get(axis, 1), 1)) for axis in {*x, *y}}
    lanes = sum(f for axis, f in apart.items() if axis != time and axis not in exact)
    steps = apart.get(time, 0.0)
    if any(apart.get(axis, 0.0) for axis in exact) or abs(lanes) > math.log2(NEAR_LANES) or abs(steps) > math.log2(NEAR_TIME):
        return math.inf
    return lanes**2 + steps**2 / 4 + sum(f**2 for f in apart.values()) / 16


@dataclass(frozen=True)
class _Choice:
    """The schedule to use for one (key, pass, dtype, target, form, bucket), with where it came from."""

    record: Record
    schedule: Schedule
    bucket: Case
    bundled: bool


@dataclass
class _Word:
    """The last measurement of one schedule for one case, and where its latest victory in a study stands (-1: it had none)."""

    record: Record
    schedule: Schedule
    won: int = -1


def choices(records: Iterable[Record], *, bundled: bool = False) -> list[_Choice]:
    """One choice per (key, pass, dtype, target, form, bucket); unusable schedules left out.

    The latest study's winner, unless an earlier winner for the same case is faster by its own last measurement: a short study that
    never came to try it again must not replace it. Where no study ended, the fastest. A schedule counts by the last that was
    measured of it, and not at all where that was a failure.
    """
    found: dict[tuple[Any, ...], dict[tuple[Any, ...], _Word]] = {}
    for position, record in enumerate(records):
        schedule = record.parsed()
        if schedule is None or schedule.form != record.form:
            continue
        words = found.setdefault((record.key, record.pass_, record.dtype, record.target, record.form, record.bucket), {})
        where = (record.case, schedule)
        before = words.pop(where, None)
        if record.ok:
            words[where] = _Word(record, schedule, position if record.best else before.won if before is not None else -1)
    chosen = ((bucket, _foremost(list(words.values()))) for (*_, bucket), words in found.items() if words)
    return [_Choice(dataclasses.replace(w.record, best=w.won >= 0), w.schedule, bucket, bundled) for bucket, w in chosen]


def _foremost(words: Sequence[_Word]) -> _Word:
    latest = max(words, key=lambda w: w.won)
    if latest.won < 0:
        return min(words, key=lambda w: w.record.ms or math.inf)
    bar = (latest.record.ms or math.inf) / NEAR_TIE
    faster = [w for w in words if w.won >= 0 and w.record.case == latest.record.case and (w.record.ms or math.inf) < bar]
    return min(faster, key=lambda w: w.record.ms or math.inf, default=latest)


def _serving(choice: _Choice, target: Target, case: Mapping[str, int], exact: Collection[str], time: str,
             default: Default | None) -> Schedule:
    """What a choice stands for at these sizes: its schedule, or the compiler's own for them where it is no other at its own sizes."""
    there = dict(choice.record.case)
    wide = all(there.get(axis, 1) == case.get(axis, 1) for axis in {*there, *case} - {time})
    if default is None or wide and _distance(choice.bucket, shape_bucket(case, exact), exact, time) == 0:
        return choice.schedule
    form = choice.schedule.form
    return default(target, case, form) if default(target, {**case, **there}, form) == choice.schedule else choice.schedule


class RecordStore:
    """The user's and the package's records.

    ``folder``   where this user's records are: ``<cache>/tuning`` unless given
    ``bundled``  the package's, never written
    """

    def __init__(self, folder: str | Path | None = None, bundled: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder is not None else cache_dir() / "tuning"
        self.bundled = Path(bundled) if bundled is not None else BUNDLED
        self._read: dict[Path, tuple[lines.Stamp, list[Record]]] = {}
        self._chosen: dict[Path, tuple[lines.Stamp, list[_Choice]]] = {}
        self._looked_up: dict[Question, tuple[tuple[Any, ...], list[tuple[Rank, _Choice]]]] = {}
        self._unwritten: dict[Path, list[Record]] = {}

    # Writing

    def path(self, device: str, op: str) -> Path:
        return self.folder / kebab(device) / f"{op}.jsonl"

    def append(self, record: Record) -> bool:
        """Adds one record to its file, whole lines at a time even with other processes appending.

        False, with one warning, where the folder cannot be written to: the record is kept for this process only.
        """
        path = self.path(record.device, record.op)
        if path in self._unwritten:
            self._unwritten[path].append(record)
            return False
        try:
            lines.append(path, record.to_json())
        except lines.UNWRITABLE as error:
            logger.warning("tuning records cannot be written to %s (%s); they are kept for this process only. "
                           "Set SCANC_CACHE to a folder you can write to.", path, error)
            self._unwritten[path] = [record]
            return False
        return True

    def bundle(self, device: str, op: str, folder: str | Path) -> Path:
        """Writes the final choices of ``device`` and ``op`` as a file fit for ``bundled/``: ``<folder>/<device>/<op>.json``."""
        best = [c.record for c in choices(self.records(device, op)) if c.record.best]
        best.sort(key=lambda r: (r.pass_, r.dtype, r.target, r.case, r.key))
        path = Path(folder) / kebab(device) / f"{op}.json"
        atomic_write(path, json.dumps({"device": device, "records": [r.to_json() for r in best]}, indent=1, allow_nan=False) + "\n")
        return path

    # Reading

    def records(self, device: str, op: str) -> list[Record]:
        """This user's records of an op on a device, oldest first; damaged lines are left out and set aside with one warning."""
        path = self.path(device, op)
        return [*self._lines(path), *self._unwritten.get(path, ())]

    def _lines(self, path: Path) -> list[Record]:
        before, held = lines.stamp(path), self._read.get(path)  # a line that comes while reading must look new the next time
        if held is None or held[0] != before:
            held = self._read[path] = (before, lines.read(path, Record.from_json))
        return held[1]

    def _choices(self, device_folder: str, op: str) -> list[_Choice]:
        """The choices of one device: the user's first, then the package's."""
        path = self.folder / device_folder / f"{op}.jsonl"
        before, held = lines.stamp(path), self._chosen.get(path)
        if held is None or held[0] != before or path in self._unwritten:
            held = self._chosen[path] = (before, choices([*self._lines(path), *self._unwritten.get(path, ())]))
        packaged = _bundled(self.bundled).get(device_folder, ())
        return [*held[1], *(c for c in packaged if c.record.op == op)]

    def lookup(self, *, device: str, op: str, pass_: str, key: str, dtype: str, case: Mapping[str, int], exact: Collection[str] = (),
               time: str = "", target: Target, forms: Collection[str] | None = None, accept: Accept | None = None,
               default: Default | None = None) -> Schedule | None:
        """The best schedule known for this graph and shape on this device, or None.

        ``key``     ``graph_key`` of the graph;  ``exact``  ``exact_axes`` of it;  ``time``  its axis of time
        ``forms``   forms the graph has (None: any);  ``accept``  a last word on a schedule that was measured on another shape
        ``default`` the graph's ``default_schedule``: what a record of it stands for at other sizes (None: for itself)
        """
        found = self.fastest(device=device, op=op, pass_=pass_, key=key, dtype=dtype, case=case, exact=exact, time=time, targets=(target,),
                             forms=forms, accept=accept, default=default)
        return found[1] if found is not None else None

    def fastest(self, *, device: str, op: str, pass_: str, key: str, dtype: str, case: Mapping[str, int], exact: Collection[str] = (),
                time: str = "", targets: Iterable[Target], forms: Collection[str] | None = None,
                accept: Accept | None = None, default: Default | None = None) -> tuple[Target, Schedule] | None:
        """``lookup`` over several backends of one device: of the nearest records' schedules, the fastest."""
        best: tuple[Rank, float] | None = None
        found: tuple[Target, _Choice] | None = None
        for target in targets:
            for rank, choice in self._answers((device, op, pass_, key, dtype, shape_bucket(case, exact), tuple(exact), time, target.name)):
                if (forms is None or choice.schedule.form in forms) and (accept is None or accept(choice.schedule)):
                    if best is None or (rank, choice.record.ms or math.inf) < best:
                        best, found = (rank, choice.record.ms or math.inf), (target, choice)
                    break
        return (found[0], _serving(found[1], found[0], case, exact, time, default)) if found is not None else None

    def _answers(self, asked: Question) -> list[tuple[Rank, _Choice]]:
        # Other devices' files are seen as their folders come and go; lines they gain later count for new questions only.
        path = self.path(asked[0], asked[1])
        stamp = (lines.stamp(path), lines.stamp(self.folder), len(self._unwritten.get(path, ())))
        held = self._looked_up.get(asked)
        if held is None or held[0] != stamp:
            held = self._looked_up[asked] = (stamp, self._ranked(asked))
        return held[1]

    def _ranked(self, asked: Question) -> list[tuple[Rank, _Choice]]:
        """Every choice that could serve, the one to use first, with how near it is."""
        device, op, pass_, key, dtype, bucket, exact, time, target = asked
        home = kebab(device)
        ranked: list[tuple[Rank, _Choice]] = []
        for folder in (home, *self._others(home)):
            for choice in self._choices(folder, op):
                record = choice.record
                if (record.pass_, record.dtype, record.target) != (pass_, dtype, target):
                    continue
                distance = _distance(choice.bucket, bucket, exact, time)
                if distance == math.inf:
                    continue
                sibling = record.key != key
                # A user's own measurement goes before the package's for the very same question; among near ones the nearer wins.
                if folder == home and not sibling and distance == 0:
                    ranked.append(((0, choice.bundled), choice))
                else:
                    ranked.append(((1, folder != home, distance, sibling, choice.bundled), choice))
        # Equal places differ by form or case: winners of studies before what was tried on the way, the latest case first, then the fastest.
        latest: dict[Any, str] = {}
        for rank, choice in ranked:
            if choice.record.best:
                latest[rank, choice.record.case] = max(latest.get((rank, choice.record.case), ""), choice.record.date)
        ranked.sort(key=lambda entry: entry[1].record.ms or math.inf)
        ranked.sort(key=lambda entry: latest.get((entry[0], entry[1].record.case), "") if entry[1].record.best else "", reverse=True)
        ranked.sort(key=lambda entry: entry[0])
        return ranked

    def _others(self, home: str) -> list[str]:
        try:
            mine = {p.name for p in self.folder.iterdir() if p.is_dir()}
        except OSError:
            mine = set()
        return sorted((mine | _bundled(self.bundled).keys()) - {home})


@functools.cache
def _bundled(folder: Path) -> dict[str, tuple[_Choice, ...]]:
    """The package's choices by device; a file that cannot be read is left out with a warning."""
    found: dict[str, list[_Choice]] = {}
    for path in sorted(folder.glob("*/*.json")):
        try:
            data = json.loads(path.read_text())
            records = [Record.from_json(r) for r in data["records"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("bundled tuning records %s cannot be read (%s); ignored", path, error)
            continue
        found.setdefault(path.parent.name, []).extend(choices(records, bundled=True))
    return {device: tuple(held) for device, held in found.items()}


@functools.lru_cache(maxsize=8)
def _store(folder: Path) -> RecordStore:
    return RecordStore(folder)


def default_store() -> RecordStore:
    """The one store of this process, so that lookups share what was read; it follows SCANC_CACHE."""
    return _store(cache_dir() / "tuning")
