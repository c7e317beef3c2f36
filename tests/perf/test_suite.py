"""The bench: which cases it takes, what a row says, and who may stand beside us."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import scanc.ops  # noqa: F401 - fills the registry
from scanc.autotune.check import prepare, trials
from scanc.compiler import ReferenceExecutable
from scanc.errors import ArgumentError, CompileError
from scanc.op import REGISTRY
from scanc.perf import suite
from scanc.perf.peers import Peer
from scanc.perf.results import check_row
from scanc.problem import Problem
from scanc.target import Target

CPU = torch.device("cpu")
REFERENCE = Target("cpu", "native", "reference")
SMALL = Problem.of("linear_recurrence", {"b": 2, "d": 8, "l": 64})


def test_cases_suit_the_device() -> None:
    on_cpu = suite.problems(REGISTRY["selective_scan"], CPU, quick=False)
    assert {p.pass_ for p in on_cpu} == {"forward", "backward", "step"} and {p.dtype for p in on_cpu} == {"float32"}
    forward = [p.sizes for p in on_cpu if p.pass_ == "forward"]
    assert forward == [{"b": 1, "d": 1536, "l": 2048, "n": 16, "g": 1}]  # the one a processor can do in a second
    steps = [suite.case_of(p) for p in on_cpu if p.pass_ == "step"]
    assert {c["b"] for c in steps} == {1, 16} and all("l" not in c for c in steps)


def test_dtypes_are_those_asked_for() -> None:
    asked = suite.problems(REGISTRY["fft_conv"], torch.device("cuda"), False, ["forward"], ["float16", "float32"])
    assert [p.dtype for p in asked] == ["float16"] * 4 + ["float32"] * 4
    assert {p.dtype for p in suite.problems(REGISTRY["fft_conv"], torch.device("cuda"), False, ["forward"])} == {"bfloat16"}


def test_quick_cases_are_small_and_few() -> None:
    for op in REGISTRY.values():
        if op.cases:
            quick = suite.problems(op, CPU, quick=True)
            assert len(quick) == len({p.pass_ for p in quick}) and all(p.sizes.get("l", 1) <= 1024 for p in quick)


def test_an_unknown_op_is_named() -> None:
    with pytest.raises(ArgumentError, match="nonsense"):
        next(suite.bench(["nonsense"]))


def only(*peers: Peer) -> Any:
    return lambda op, pass_, device: list(peers)


def rows(monkeypatch: pytest.MonkeyPatch, *peers: Peer, problem: Problem = SMALL) -> list[suite.Row]:
    monkeypatch.setattr(suite, "peers_for", only(*peers))
    found = list(suite.rows_of(problem, [REFERENCE], CPU, quick=True))
    for row in found:
        check_row(row)
    return found


def by_reference(inputs: Mapping[str, Tensor], _: Mapping[str, Any]) -> dict[str, Tensor]:
    return ReferenceExecutable(SMALL.graph())({k: v for k, v in inputs.items() if SMALL.graph().has_input(k)})


RIGHT = Peer("right", "linear_recurrence", by_reference, ("cpu",))
WRONG = Peer("wrong", "linear_recurrence", lambda x, o: {k: -v for k, v in by_reference(x, o).items()}, ("cpu",))


def test_a_row_says_how_fast_how_right_and_beside_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = rows(monkeypatch, RIGHT)
    assert (row["peer"], row["peer_source"], row["status"], row["form"]) == ("right", "same run", "ok", "reference")
    assert row["case"] == {"b": 2, "d": 8, "l": 64} and row["error"] < 1e-6
    assert 0 < row["ms_p10"] <= row["ms"] <= row["ms_p90"] and row["peer_ms"] > 0 and 0 < row["floor_ms"] < row["ms"]


def test_what_is_far_behind_is_timed_once_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the same: the second is as far behind the first as the rule says it may be, which is not at all."""
    monkeypatch.setattr(suite, "FAR_BEHIND", 0.0)
    monkeypatch.setattr(suite, "SHORT_CALL_MS", 0.0)
    monkeypatch.setattr(suite, "peers_for", only())
    first, second = suite.rows_of(SMALL, [REFERENCE, REFERENCE], CPU, quick=True)
    assert first["ms_p10"] < first["ms_p90"] and second["ms_p10"] == second["ms"] == second["ms_p90"] > 0
    monkeypatch.setattr(suite, "LONGEST_CALL_MS", 0.0)
    assert len(list(suite.rows_of(SMALL, [REFERENCE, REFERENCE], CPU, quick=True))) == 1


def test_a_short_call_is_timed_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """However far behind the best its parts' launches let it seem."""
    monkeypatch.setattr(suite, "FAR_BEHIND", 0.0)
    monkeypatch.setattr(suite, "SHORT_CALL_MS", 1e9)
    monkeypatch.setattr(suite, "peers_for", only())
    assert all(row["ms_p10"] < row["ms_p90"] for row in suite.rows_of(SMALL, [REFERENCE, REFERENCE], CPU, quick=True))


def test_a_rival_that_computes_something_else_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = rows(monkeypatch, WRONG)
    assert row["peer"] is None and row["status"] == "ok"
    assert {r["peer"] for r in rows(monkeypatch, WRONG, RIGHT)} == {"right"}


def test_a_wrong_kernel_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(graph: Any, *_: object) -> Any:
        return lambda inputs, into=None: {k: -v for k, v in ReferenceExecutable(graph)(inputs).items()}

    monkeypatch.setattr(suite, "compile_graph", swapped)
    (row,) = rows(monkeypatch, RIGHT)
    assert row["status"] == "wrong" and row["ms"] is None and row["peer"] is None and row["error"] == pytest.approx(2.0, rel=1e-3)


def test_a_kernel_that_does_not_compile_is_a_row_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Any:
        raise CompileError("no such instruction", backend="cpp", kernel="k", path="k.cpp")

    monkeypatch.setattr(suite, "compile_graph", broken)
    (row,) = rows(monkeypatch)
    assert row["status"] == "failed" and row["ms"] is None


def test_the_inputs_of_a_step_stay_as_they_were() -> None:
    problem = dataclasses.replace(SMALL, pass_="step", case=(("b", 2), ("d", 8), ("l", 1)))
    graph, inputs = problem.graph(), problem.inputs()
    before = {k: v.clone() for k, v in inputs.items()}
    prepared = [prepare(t, graph, CPU) for t in trials(problem, graph)]
    (kernel,) = list(suite.judged(graph, problem, [REFERENCE], prepared))
    assert kernel.executable is not None and kernel.status == "ok"
    suite._time(kernel.executable, inputs, graph, CPU, quick=True)
    assert all(torch.equal(inputs[k], before[k]) for k in before)


def test_a_recorded_rival_stands_where_none_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from scanc.perf.peers import Anchor

    monkeypatch.setattr(suite, "anchor", lambda *_: Anchor("elsewhere", 3.0, None, None, "2026-01-01"))
    (row,) = rows(monkeypatch)
    assert (row["peer"], row["peer_ms"], row["peer_source"]) == ("elsewhere", 3.0, "recorded 2026-01-01")


def test_a_sweep_times_no_rival_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from scanc.perf.peers import Anchor

    monkeypatch.setattr(suite, "anchor", lambda *_: Anchor("elsewhere", 3.0, None, None, "2026-01-01"))
    monkeypatch.setattr(suite, "peers_for", only(RIGHT))
    found = list(suite.rows_of(SMALL, [REFERENCE], CPU, quick=True, recorded=True))
    assert [row["peer"] for row in found] == ["elsewhere"]


def test_bench_goes_through_the_ops_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(problem: Problem, *_: object, **__: object) -> Iterator[suite.Row]:
        yield {"op": problem.op, "pass": problem.pass_}

    monkeypatch.setattr(suite, "rows_of", one)
    told: list[str] = []
    found = list(suite.bench(["linear_recurrence"], Target("cpu", "native", "reference"), quick=True, passes=["forward"], tell=told.append))
    assert found == [{"op": "linear_recurrence", "pass": "forward"}] and told[0].startswith("linear_recurrence forward b=1")


def test_a_sweep_is_of_the_sizes_that_a_rival_was_timed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = ({"b": 1, "d": 8, "l": length} for length in (16, 1 << 20))
    recorded = [{"op": op, "case": case, "dtype": "float32", "pass": pass_} for op, case, pass_ in (
        ("linear_recurrence", large, "forward"), ("linear_recurrence", small, "backward"), ("linear_recurrence", small, "forward"),
        ("linear_recurrence", small, "forward"), ("ssd", small, "forward"))]
    monkeypatch.setattr(suite, "anchors", lambda _: recorded)
    op = REGISTRY["linear_recurrence"]
    assert suite.swept(op, CPU) == [Problem.of("linear_recurrence", c, "float32", p) for c, p in (
        (small, "forward"), (large, "forward"), (small, "backward"))]
    assert [p.pass_ for p in suite.swept(op, CPU, ["backward"])] == ["backward"]
