"""Records: written whole with other writers about, read past damage, and looked up in the stated order."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from scanc import runtime
from scanc.autotune.records import Record, RecordStore, _bundled, as_case, shape_bucket
from scanc.schedule import AssociativeSchedule, RecurrentSchedule, Schedule
from scanc.target import Target

CPU = Target.parse("cpu:native:cpp")
DEVICE = "Some CPU 2 cores"
ROOT = Path(runtime.__file__).parents[1]


def record(plan: Schedule, ms: float | None, *, l: int = 2048, d: int = 1536, n: int = 16, **changes: Any) -> Record:
    made = Record(op="toy", key="k1", pass_="forward", target=CPU.name, device=DEVICE, dtype="float32",
                  case=as_case({"b": 1, "d": d, "l": l, "n": n}), form=plan.form, schedule=plan.to_json(),
                  status="ok" if ms is not None else "crashed", ms=ms, ms_p10=ms, ms_p90=ms,
                  timings={"runs": 9.0}, error={"y": 1e-7}, order=plan.order, exact=("n",), date="2026-01-01T00:00:00+00:00")
    return dataclasses.replace(made, **changes)


def look(store: RecordStore, *, b: int = 1, l: int = 2048, d: int = 1536, n: int = 16, key: str = "k1", **changes: Any) -> Schedule | None:
    asked: dict[str, Any] = {"device": DEVICE, "op": "toy", "pass_": "forward", "key": key, "dtype": "float32",
                             "case": {"b": b, "d": d, "l": l, "n": n}, "exact": ("n",), "time": "l", "target": CPU}
    return store.lookup(**{**asked, **changes})


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    (tmp_path / "bundled").mkdir()
    return RecordStore(tmp_path / "tuning", tmp_path / "bundled")


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    monkeypatch.setattr(runtime.logger, "handlers", [Ear(logging.WARNING)])
    return said


def bundle(store: RecordStore, records: list[Record], device: str = DEVICE) -> None:
    path = store.bundled / runtime.kebab(device) / "toy.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"device": device, "records": [r.to_json() for r in records]}))


def test_a_record_survives_the_trip_through_json() -> None:
    wrong = record(RecurrentSchedule(lanes=8), None, status="wrong", error={"y": float("nan"), "h": float("inf")}, conditions={"load": 0.5})
    text = json.dumps(wrong.to_json(), allow_nan=False)
    again = Record.from_json(json.loads(text))
    assert str(again.error["y"]) == "nan" and again.error["h"] == float("inf")
    assert dataclasses.replace(again, error={}) == dataclasses.replace(wrong, error={})
    assert again.line == ("schedule=RecurrentSchedule(lanes=8, split=1, tile=64, history=64, segment=0, walk=1, stages=2, blocks=0, "
                          "helpers=0, span=0, polynomial=0, warps=4)")


def test_the_paste_line_builds_the_schedule() -> None:
    schedule = AssociativeSchedule(lanes=2, tile=128)
    assert eval(record(schedule, 1.0).line.removeprefix("schedule=")) == schedule


def test_buckets_round_up_and_keep_state_axes() -> None:
    assert dict(shape_bucket({"b": 3, "l": 2000, "n": 12}, ("n",))) == {"b": 4, "l": 2048, "n": 12}
    assert dict(shape_bucket({"b": 1, "l": 2048})) == {"b": 1, "l": 2048}
    assert shape_bucket({"l": 1025}) == shape_bucket({"l": 2048}) != shape_bucket({"l": 2049})


def test_length_does_not_matter_within_its_bucket(store: RecordStore) -> None:
    store.append(record(RecurrentSchedule(lanes=8), 1.0, l=2048))
    store.append(record(RecurrentSchedule(lanes=32), 0.5, l=1025))
    found = {look(store, l=l) for l in (1025, 1500, 2047, 2048)}
    assert found == {RecurrentSchedule(lanes=32)}


def test_lookup_order(store: RecordStore) -> None:
    other = "Other CPU 64 cores"
    far = record(RecurrentSchedule(lanes=1), 1.0, l=4096, key="k2")
    near = record(RecurrentSchedule(lanes=2), 1.0, l=4096)
    foreign = record(RecurrentSchedule(lanes=4), 1.0, device=other)
    bundled = record(RecurrentSchedule(lanes=64), 0.1, best=True)
    own = record(RecurrentSchedule(lanes=128), 5.0)
    assert look(store) is None
    store.append(foreign)
    assert look(store) == RecurrentSchedule(lanes=4)  # same target, another device
    store.append(far)
    assert look(store) == RecurrentSchedule(lanes=1)  # this device, a sibling's
    store.append(near)
    assert look(store) == RecurrentSchedule(lanes=2)  # this device, the same graph's
    bundle(store, [bundled])
    store = RecordStore(store.folder, store.bundled)
    _bundled.cache_clear()
    assert look(store) == RecurrentSchedule(lanes=64)  # the package's, this very bucket
    store.append(own)
    assert look(store) == RecurrentSchedule(lanes=128)  # the user's, though slower: measured here
    assert look(store, l=8000) == RecurrentSchedule(lanes=2)
    assert look(store, l=1 << 18) is None  # sixteen times as long as any
    assert look(store, d=8192) is None  # much more side by side
    assert look(store, b=2, d=768) == RecurrentSchedule(lanes=128)  # as much, along other axes
    assert look(store, target=Target.parse("cuda:sm_90:triton")) is None
    assert look(store, dtype="bfloat16") is None


def test_a_record_of_the_default_stands_for_the_default_of_its_neighbours(store: RecordStore) -> None:
    def default(target: Target, sizes: Mapping[str, int], form: str) -> Schedule:
        assert (target, form) == (CPU, "recurrent")
        return RecurrentSchedule(lanes=128 if sizes["d"] > 768 else 64, tile=sizes["l"])

    def at(d: int, l: int) -> Schedule | None:
        return look(store, d=d, l=l, default=default)

    store.append(record(RecurrentSchedule(lanes=128, tile=2048), 1.0, d=1024, l=2048))
    assert at(d=1024, l=2048) == RecurrentSchedule(lanes=128, tile=2048)
    assert at(d=1024, l=1040) == RecurrentSchedule(lanes=128, tile=2048)  # lengths of a bucket keep one schedule
    assert at(d=1024, l=4096) == RecurrentSchedule(lanes=128, tile=4096)
    assert at(d=768, l=2048) == RecurrentSchedule(lanes=64, tile=2048)
    assert look(store, d=768) == RecurrentSchedule(lanes=128, tile=2048)  # who does not tell its default
    store.append(record(RecurrentSchedule(lanes=256, tile=2048), 0.5, d=1024, l=2048))
    assert at(d=768, l=2048) == RecurrentSchedule(lanes=256, tile=2048)  # better than the default there: worth trying here


def test_another_state_size_is_out_of_reach(store: RecordStore) -> None:
    store.append(record(RecurrentSchedule(lanes=2), 1.0, n=64))
    assert look(store, n=16) is None  # its registers and shared memory are for four times the states
    store.append(record(RecurrentSchedule(lanes=4), 1.0, l=4096))
    assert look(store, n=16) == RecurrentSchedule(lanes=4)


def test_an_axis_not_given_is_one_position(store: RecordStore) -> None:
    store.append(record(RecurrentSchedule(lanes=2), 1.0, case=as_case({"b": 1, "d": 1536, "g": 1, "l": 2048, "n": 16})))
    store.append(record(RecurrentSchedule(lanes=4), 0.5, case=as_case({"b": 1, "d": 1536, "g": 8, "l": 2048, "n": 16})))
    assert look(store) == RecurrentSchedule(lanes=2)


def test_the_same_graph_goes_before_a_sibling(store: RecordStore) -> None:
    store.append(record(RecurrentSchedule(lanes=2), 1.0, key="with z"))
    assert look(store) == RecurrentSchedule(lanes=2)
    store.append(record(RecurrentSchedule(lanes=4), 2.0))
    assert look(store) == RecurrentSchedule(lanes=4)


def test_the_final_record_wins_over_a_lucky_timing(store: RecordStore) -> None:
    store.append(record(RecurrentSchedule(lanes=8), 1.01, best=True))
    store.append(record(RecurrentSchedule(lanes=16), 1.0))
    store.append(record(AssociativeSchedule(lanes=2), 0.9))
    assert look(store) == RecurrentSchedule(lanes=8)


def test_a_later_study_does_not_replace_what_it_never_measured_again(store: RecordStore) -> None:
    def later(plan: Schedule, ms: float | None, day: int, **changes: Any) -> None:
        store.append(record(plan, ms, date=f"2027-01-{day:02}T00:00:00+00:00", **changes))

    good, poor = RecurrentSchedule(lanes=8), RecurrentSchedule(lanes=32)
    later(good, 1.0, 1, best=True)
    later(poor, 1.2, 2, best=True)
    assert look(store) == good
    later(AssociativeSchedule(lanes=2), 1.3, 3, best=True)  # another form: likewise
    assert look(store) == good
    later(poor, 1.01, 4, best=True)  # as fast, and newer
    assert look(store) == poor
    later(poor, 1.2, 5)
    assert look(store) == good  # the winner's own last timing counts
    later(good, 1.25, 6, status="slow")
    assert look(store) == poor
    later(poor, None, 7)
    assert look(store) == good  # the other fails now
    later(RecurrentSchedule(lanes=64), 3.0, 8, best=True, l=1500)
    assert look(store) == RecurrentSchedule(lanes=64)  # another case of the bucket: times do not compare, so the latest


def test_of_several_backends_the_fastest_is_given(store: RecordStore) -> None:
    cuda, triton = (Target.parse(f"cuda:sm_90:{b}") for b in ("cuda", "triton"))
    question: dict[str, Any] = {"device": DEVICE, "op": "toy", "pass_": "forward", "key": "k1", "dtype": "float32", "exact": ("n",),
                                "case": {"b": 1, "d": 1536, "l": 2048, "n": 16}}
    assert store.fastest(**question, targets=(cuda, triton)) is None
    store.append(record(RecurrentSchedule(lanes=2), 0.1, l=4096, target=cuda.name))
    store.append(record(RecurrentSchedule(lanes=8), 3.0, target=triton.name))
    assert store.fastest(**question, targets=(cuda, triton)) == (triton, RecurrentSchedule(lanes=8))  # measured at this very shape
    store.append(record(RecurrentSchedule(lanes=4), 2.0, target=cuda.name))
    assert store.fastest(**question, targets=(cuda, triton)) == (cuda, RecurrentSchedule(lanes=4))
    assert store.fastest(**question, targets=(triton,)) == (triton, RecurrentSchedule(lanes=8))


def test_only_valid_schedules_are_given(store: RecordStore) -> None:
    good = record(AssociativeSchedule(lanes=2), 3.0)
    newer = record(RecurrentSchedule(), 0.1, schedule={**RecurrentSchedule().to_json(), "prefetch": 3})
    unknown = record(RecurrentSchedule(), 0.1, form="magic", schedule={"form": "magic", "lanes": 2})
    broken = record(RecurrentSchedule(), 0.1, schedule={**RecurrentSchedule().to_json(), "lanes": 3})
    for r in (good, newer, unknown, broken, record(RecurrentSchedule(lanes=2), None)):
        store.append(r)
    assert look(store) == AssociativeSchedule(lanes=2)
    assert len(store.records(DEVICE, "toy")) == 5  # kept for the scanc that knows them
    assert look(store, forms=("recurrent",)) is None
    assert look(store, accept=lambda s: s.form == "recurrent") is None
    store.append(record(RecurrentSchedule(lanes=2), 9.0))
    assert look(store, forms=("recurrent",)) == RecurrentSchedule(lanes=2)


def test_lookup_takes_under_a_millisecond_and_no_optuna(tmp_path: Path) -> None:
    store = RecordStore(tmp_path, tmp_path)
    lines = [json.dumps(record(RecurrentSchedule(lanes=8), 1.0, l=1 << (i % 20), d=1 << (i % 11)).to_json()) for i in range(2000)]
    path = store.path(DEVICE, "toy")
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n")
    assert look(store, d=1024) is not None
    times = []
    for _ in range(50):
        start = time.perf_counter()
        look(store)
        times.append(time.perf_counter() - start)
    assert sorted(times)[25] < 1e-3
    code = "import sys, scanc.autotune; scanc.autotune.default_store; assert 'optuna' not in sys.modules, 'optuna imported'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_lookup_sees_what_another_process_appended(store: RecordStore) -> None:
    store.append(record(RecurrentSchedule(lanes=8), 1.0))
    assert look(store) == RecurrentSchedule(lanes=8)
    RecordStore(store.folder, store.bundled).append(record(RecurrentSchedule(lanes=16), 0.5))
    assert look(store) == RecurrentSchedule(lanes=16)


def test_a_truncated_last_line_costs_that_line(store: RecordStore, heard: list[str]) -> None:
    store.append(record(RecurrentSchedule(lanes=8), 1.0))
    path = store.path(DEVICE, "toy")
    half = path.read_bytes()[:-40]
    with open(path, "ab") as file:
        file.write(half)
    store.append(record(RecurrentSchedule(lanes=16), 2.0))  # starts a line of its own
    again = RecordStore(store.folder, store.bundled)
    assert [r.ms for r in again.records(DEVICE, "toy")] == [1.0, 2.0]
    assert len(heard) == 1 and "toy.jsonl.damaged" in heard[0]
    assert half in path.with_name("toy.jsonl.damaged").read_bytes()
    assert len(RecordStore(store.folder, store.bundled).records(DEVICE, "toy")) == 2 and len(heard) == 1  # set right: said once


@pytest.mark.parametrize("text", [b"\x89PNG\r\n\x1a\n\xff\xfe", b'[1, 2]\n"x"\n', b'{"format": 1}\n', b'{"format": 99, "op": "toy"}\n'])
def test_a_foreign_file_is_set_aside(store: RecordStore, heard: list[str], text: bytes) -> None:
    path = store.path(DEVICE, "toy")
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    assert look(store) is None
    assert path.with_name("toy.jsonl.damaged").read_bytes() == text
    store.append(record(RecurrentSchedule(lanes=16), 2.0))
    assert look(store) == RecurrentSchedule(lanes=16)
    assert len(heard) == 1


def test_a_foreign_bundled_file_is_left_out(store: RecordStore, heard: list[str]) -> None:
    bundle(store, [record(RecurrentSchedule(lanes=16), 2.0, best=True)])
    (store.bundled / runtime.kebab(DEVICE) / "junk.json").write_text("{")
    assert look(store) == RecurrentSchedule(lanes=16)
    assert len(heard) == 1 and "junk.json" in heard[0]


def test_a_folder_that_cannot_be_written_keeps_records_in_memory(tmp_path: Path, heard: list[str]) -> None:
    (tmp_path / "tuning").write_text("a file where the folder should be")
    store = RecordStore(tmp_path / "tuning", tmp_path)
    assert not store.append(record(RecurrentSchedule(lanes=16), 2.0))
    assert not store.append(record(RecurrentSchedule(lanes=32), 1.0))
    assert look(store) == RecurrentSchedule(lanes=32)
    assert len(heard) == 1 and "SCANC_CACHE" in heard[0]


def test_a_read_only_file_system_is_survived(tmp_path: Path, heard: list[str]) -> None:
    store = RecordStore("/proc/scanc-tuning", tmp_path)  # not even root can make a folder there
    assert not store.append(record(RecurrentSchedule(lanes=16), 2.0))
    assert look(store) == RecurrentSchedule(lanes=16)
    assert len(heard) == 1


def test_two_processes_append_at_once(tmp_path: Path) -> None:
    code = """
import sys
sys.path.insert(0, sys.argv[3])
from scanc.autotune.records import Record, RecordStore
from scanc.schedule import RecurrentSchedule
s = RecurrentSchedule()
store = RecordStore(sys.argv[1])
for i in range(25):
    store.append(Record(op="toy", key=sys.argv[2], pass_="forward", target="cpu:native:cpp", device="d", dtype="float32",
                        case=(("l", i + 1),), form=s.form, schedule=s.to_json(), status="ok", ms=1.0, detail="x" * 5000))
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name, str(ROOT)]) for name in ("a", "b")]
    assert [p.wait(120) for p in processes] == [0, 0]
    found = RecordStore(tmp_path).records("d", "toy")
    assert sorted((r.key, dict(r.case)["l"]) for r in found) == [(k, i + 1) for k in "ab" for i in range(25)]
    assert not list(tmp_path.rglob("*.damaged"))


def test_bundle_writes_final_records_only(store: RecordStore, tmp_path: Path) -> None:
    store.append(record(RecurrentSchedule(lanes=8), 1.0))
    store.append(record(RecurrentSchedule(lanes=16), 0.9, best=True))
    path = store.bundle(DEVICE, "toy", tmp_path / "out")
    assert path == tmp_path / "out" / "some-cpu-2-cores" / "toy.json"
    fresh = RecordStore(tmp_path / "empty", tmp_path / "out")
    assert look(fresh) == RecurrentSchedule(lanes=16)
    assert len(json.loads(path.read_text())["records"]) == 1
