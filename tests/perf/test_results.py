"""Result files: rows replaced by key, files locked and whole, damage set aside."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from scanc.perf import results
from scanc.perf.results import Row, all_results, check_row, merge_rows, read_results, results_path


def row(**changes: Any) -> Row:
    made: Row = {"op": "decay", "case": {"b": 1, "d": 2, "l": 3}, "dtype": "float32", "pass": "forward", "form": "recurrent",
                 "backend": "cpp", "schedule": None, "ms": 2.0, "ms_p10": 1.9, "ms_p90": 2.1, "floor_ms": 1.0, "bound": "memory",
                 "peer": None, "peer_ms": None, "peer_source": None, "error": 1e-7, "status": "ok"}
    return {**made, **changes}


def test_a_row_of_the_same_key_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    merge_rows(path, [row(), row(form="step", **{"pass": "step"})], "A Device")
    merge_rows(path, [row(ms=1.5)], "A Device")
    found = read_results(path)
    assert found.device == "A Device" and len(found.rows) == 2 and found.versions["torch"]
    assert {r["form"]: r["ms"] for r in found.rows} == {"recurrent": 1.5, "step": 2.0}
    lines = path.read_text().splitlines()
    assert sum(line.startswith('    {"op"') for line in lines) == 2  # one row a line


def test_the_order_of_axes_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    merge_rows(path, [row(), row(case={"l": 3, "d": 2, "b": 1}, ms=9.0)], "A Device")
    assert [r["ms"] for r in read_results(path).rows] == [9.0]


@pytest.mark.parametrize(("changes", "word"), [
    ({"pass": "sideways"}, "forward, backward, step"), ({"status": "fine"}, "'status'"), ({"bound": "luck"}, "'bound'"),
    ({"ms": 0.0}, "positive"),
])
def test_a_row_that_breaks_the_schema_is_refused(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        merge_rows(tmp_path / "device.json", [row(**changes)], "A Device")
    assert not (tmp_path / "device.json").exists()


def test_a_missing_field_is_named() -> None:
    lacking = row()
    del lacking["floor_ms"]
    with pytest.raises(ValueError, match="floor_ms"):
        check_row(lacking)


def test_a_damaged_file_is_set_aside_and_rebuilt(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    merge_rows(path, [row()], "A Device")
    path.write_text(path.read_text()[:40])
    merge_rows(path, [row(ms=3.0)], "A Device")
    assert [r["ms"] for r in read_results(path).rows] == [3.0]
    assert (tmp_path / "device.json.damaged").exists()


def _merge_many(path: Path, worker: int) -> None:
    for number in range(5):
        merge_rows(path, [row(op=f"op_{worker}_{number}")], "A Device")


def test_two_benches_at_once_lose_no_row(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    workers = [multiprocessing.get_context("fork").Process(target=_merge_many, args=(path, n)) for n in range(2)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert len(read_results(path).rows) == 10


def test_this_machines_rows_stand_before_the_packaged_ones(tmp_path: Path) -> None:
    packaged, own = tmp_path / "packaged", tmp_path / "own"
    merge_rows(results_path("A Device", packaged), [row(ms=5.0), row(op="other")], "A Device")
    merge_rows(results_path("A Device", own), [row(ms=4.0)], "A Device")
    merge_rows(results_path("B Device", own), [row()], "B Device")
    found = all_results([packaged, own])
    assert [r.device for r in found] == ["A Device", "B Device"]
    assert {r["op"]: r["ms"] for r in found[0].rows} == {"decay": 4.0, "other": 2.0}


def test_the_files_in_the_package_are_sound() -> None:
    for path in results.PACKAGED.glob("*.json"):
        found = read_results(path)
        assert results_path(found.device, path.parent) == path
        assert json.loads(results.dumps(found.to_json())) == json.loads(path.read_text())
