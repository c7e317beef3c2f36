"""Every command: its help, what it prints, and its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scanc.perf import suite
from scanc.perf.results import read_results

Run = Callable[..., Any]
COMMANDS = ("doctor", "list", "show", "tune", "check", "bench", "report", "demo")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_examples(scanc: Run, command: str) -> None:
    ran = scanc(command, "--help")
    assert ran.code == 0 and "Examples:" in ran.out and f"scanc {command}" in ran.out


def test_help_needs_no_torch() -> None:
    code = ("import sys; sys.argv = ['scanc', '--help']\nfrom scanc.cli import main\n"
            "try: main()\nexcept SystemExit: print('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(("words", "hint"), [
    (("show", "nonsense"), "ops are"), (("check", "nonsense"), "ops are"), (("bench", "nonsense"), "ops are"),
    (("bench", "--dtype", "int8"), "a dtype is one of float32"), (("bench", "ssd", "--pass", "sideways"), "forward, backward, step"),
    (("bench", "ssd", "--form", "sideways"), "a form is one of recurrent"),
    (("show", "selective_scan", "--target", "cuda:sm_90"), "three parts"), (("check", "--target", "gpu:x:y"), "unknown target"),
    (("show", "selective_scan", "--stage", "nonsense"), "stages are"), (("show", "selective_scan", "--form", "nonsense"), "form"),
    (("show", "selective_scan", "--pass", "sideways"), "forward, backward, step"),
    (("show", "selective_scan", "--schedule", "lanes=3"), "power of two"),
    (("show", "selective_scan", "--schedule", "lanes 3"), "field=value"),
    (("show", "selective_scan", "--case", "b=none"), "b=1,d=64,l=128"), (("show", "selective_scan", "--dtype", "float12"), "dtype"),
    (("show", "absent.py:op"), "no such file"),
])
def test_bad_usage_is_one_clear_line(scanc: Run, words: tuple[str, ...], hint: str) -> None:
    ran = scanc(*words)
    assert ran.code == 2 and ran.out == ""
    assert len(ran.err.splitlines()) == 1 and ran.err.startswith("scanc: ") and hint in ran.err


def test_an_unknown_command_or_option_is_bad_usage(scanc: Run) -> None:
    assert scanc("nonsense").code == 2 and scanc("list", "--nonsense").code == 2


def test_doctor_says_what_is_here(scanc: Run, own_cache: Path) -> None:
    ran = scanc("doctor", "--json")
    found = json.loads(ran.out)
    assert ran.code == (0 if all(d["runs"] for d in found["devices"]) else 1)
    assert found["devices"][0]["device"] == "cpu" and found["versions"]["torch"] == torch.__version__
    assert {b["backend"] for b in found["backends"]} == {"cpp", "triton", "cuda", "reference"}
    assert found["cache"]["folder"] == str(own_cache.resolve()) and found["cache"]["as_asked"]
    assert "selective_scan" in found["untuned"][found["devices"][0]["name"]]
    assert "cache folder" in scanc("doctor").out


def test_doctor_says_where_the_cache_went(scanc: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SCANC_CACHE", str(tmp_path / "file" / "cache"))
    assert "cannot be written to" in scanc("doctor").out


def test_list_knows_classes_and_forms(scanc: Run, own_cache: Path) -> None:
    rows = {r["op"]: r for r in json.loads(scanc("list", "--json").out)}
    assert rows["selective_scan"]["class"] == "diagonal" and rows["linear_recurrence"]["class"] == "channel"
    assert {"recurrent", "associative", "step"} <= set(rows["selective_scan"]["forms"])
    assert rows["selective_scan"]["tuned"] == {}
    assert "selective_scan" in scanc("list").out


def test_show_prints_the_stage_asked_for(scanc: Run) -> None:
    texts = json.loads(scanc("show", "linear_recurrence", "--json", "--case", "b=1,d=8,l=16").out)
    assert "scan" in texts["canonical"] and "source" in texts
    one = scanc("show", "linear_recurrence", "--stage", "canonical", "--case", "b=1,d=8,l=16")
    assert one.code == 0 and one.out.strip() == texts["canonical"].strip()


def test_show_knows_ops_in_a_file(scanc: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from jaxtyping import Float\nfrom torch import Tensor\nimport scanc.dsl as sc\n\n\n@sc.op\n"
        "def mine_alone(x: Float[Tensor, 'b d l'], a: Float[Tensor, 'd']) -> Float[Tensor, 'b d l']:\n    return sc.scan(a, x, axis='l')\n")
    ran = scanc("show", f"{tmp_path / 'mine.py'}:mine_alone", "--stage", "canonical")
    assert ran.code == 0 and "mine_alone" in ran.out


def test_check_finds_the_kernels_right(scanc: Run) -> None:
    ran = scanc("check", "linear_recurrence", "--json")
    rows = json.loads(ran.out)
    assert ran.code == 0, rows
    assert {r["pass"] for r in rows} == {"forward", "backward", "step"} and {r["dtype"] for r in rows} == {"float32", "bfloat16"}
    assert all(r["status"] == "ok" and 0 <= r["error"] < 1e-2 for r in rows)


def _zeros(graph: Any, *_: object) -> Callable[..., dict[str, Tensor]]:
    """A compiler whose kernels all give zeros."""
    from scanc.compiler import ReferenceExecutable

    def kernel(inputs: Mapping[str, Tensor], *, into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        return {k: v.zero_() for k, v in ReferenceExecutable(graph)(inputs, into=into).items()}

    return kernel


def test_check_falls_short_where_a_kernel_is_wrong(scanc: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "compile_graph", _zeros)
    ran = scanc("check", "linear_recurrence", "--json")
    assert ran.code == 1 and {r["status"] for r in json.loads(ran.out)} == {"wrong"}


def test_bench_keeps_what_it_measured(scanc: Run, tmp_path: Path) -> None:
    assert scanc("bench", "linear_recurrence", "--quick", "--pass", "forward", "--form", "chunked", "--out", str(tmp_path)).code == 0
    assert not list(tmp_path.glob("*.json"))  # it has no such form
    ran = scanc("bench", "linear_recurrence", "--quick", "--json", "--out", str(tmp_path))
    rows = json.loads(ran.out)
    (path,) = tmp_path.glob("*.json")
    assert ran.code == 0 and read_results(path).rows == sorted(rows, key=suite_key)
    for row in rows:
        assert row["status"] == "ok" and row["ms_p10"] <= row["ms"] <= row["ms_p90"] and row["floor_ms"] > 0
        assert "l" not in row["case"] if row["pass"] == "step" else row["case"]["l"] >= 64
    assert {r["peer"] for r in rows if r["pass"] == "forward"} == {"sequential torch"}
    ran = scanc("bench", "linear_recurrence", "--quick", "--pass", "step", "--form", "step,chunked", "--json", "--out", str(tmp_path))
    assert {r["pass"] for r in json.loads(ran.out)} == {"step"} and len(read_results(path).rows) == len(rows)


def suite_key(row: dict[str, Any]) -> tuple[str, ...]:
    from scanc.perf.results import key_of

    return key_of(row)


def test_report_prints_its_path(scanc: Run, tmp_path: Path, own_cache: Path) -> None:
    ran = scanc("report", "--out", str(tmp_path / "r.html"))
    assert ran.code == 0 and ran.out.strip() == str(tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
