"""The checks catch kernels that are wrong only where it is hard: long lengths, extreme decays, the last lanes, gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import scanc.ops  # noqa: F401 - fills the registry
from scanc.autotune.check import FLAVOURS, Prepared, check, prepare, reduced, trials
from scanc.ir import Graph
from scanc.problem import Problem
from scanc.reference import evaluate

CPU = torch.device("cpu")
CASE = {"b": 3, "d": 96, "g": 2, "l": 1500, "n": 4}
Fault = Callable[[dict[str, Tensor], Mapping[str, Tensor]], None]


def prepared(problem: Problem, folder: Path | None = None) -> tuple[Graph, list[Prepared]]:
    graph = problem.graph()
    return graph, [prepare(t, graph, CPU, folder) for t in trials(problem, graph)]


@pytest.fixture(scope="module")
def scan() -> tuple[Graph, list[Prepared]]:
    return prepared(Problem.of("selective_scan", CASE))


def kernel(graph: Graph, fault: Fault) -> Any:
    """The float32 reference with ``fault`` applied to its outputs."""
    def call(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = {k: v.clone() for k, v in evaluate(graph, inputs, dtype=torch.float32).items()}
        fault(out, inputs)
        return out
    return call


def test_the_reference_is_right_everywhere(scan: tuple[Graph, list[Prepared]]) -> None:
    graph, made = scan
    verdict = check(kernel(graph, lambda out, inputs: None), made, graph)
    assert verdict.right, verdict.reason
    assert set(verdict.errors) == {"y", "last_state"} and all(0 < e < 5e-6 for e in verdict.errors.values())
    assert [p.trial.name for p in made] == ["short", "long", "decaying", "lingering", "whole"]
    assert all(p.oracle for p in made)


def wrong_when_long(out: dict[str, Tensor], inputs: Mapping[str, Tensor]) -> None:
    if inputs["u"].shape[-1] > 500:
        out["y"][..., 512:] *= 1.01


def wrong_when_ragged(out: dict[str, Tensor], inputs: Mapping[str, Tensor]) -> None:
    if inputs["u"].shape[-1] % 4:
        out["y"][..., -1] = 0


def wrong_when_extreme(out: dict[str, Tensor], inputs: Mapping[str, Tensor]) -> None:
    if float(inputs["A"].abs().max()) > 50:
        out["last_state"] *= 1.01


def wrong_in_the_last_lane(out: dict[str, Tensor], inputs: Mapping[str, Tensor]) -> None:
    if inputs["u"].shape[-1] == 1500:
        out["y"][-1, -1, 700:] *= 1.1


def not_finite_at_full_size(out: dict[str, Tensor], inputs: Mapping[str, Tensor]) -> None:
    if inputs["u"].shape[-1] == 1500:
        out["y"][0, 0, 0] = float("inf")


def last_state_of_another_batch(out: dict[str, Tensor], inputs: Mapping[str, Tensor]) -> None:
    out["last_state"] = out["last_state"].flip(0).contiguous()


@pytest.mark.parametrize(("fault", "where"), [
    (wrong_when_long, "long"), (wrong_when_ragged, "short"), (wrong_when_extreme, "decaying"), (wrong_in_the_last_lane, "whole"),
    (not_finite_at_full_size, "whole"), (last_state_of_another_batch, "short")])
def test_faults_are_caught(scan: tuple[Graph, list[Prepared]], fault: Fault, where: str) -> None:
    graph, made = scan
    verdict = check(kernel(graph, fault), made, graph)
    assert verdict.reason.startswith(f"{where}:"), verdict.reason


def test_gradients_are_held_to_their_own_bar() -> None:
    graph, made = prepared(Problem.of("selective_scan", {"b": 2, "d": 8, "g": 1, "l": 70, "n": 4}, "float32", "backward"))
    assert check(kernel(graph, lambda out, inputs: None), made, graph).right

    def small(out: dict[str, Tensor], inputs: Mapping[str, Tensor]) -> None:
        out["d_B"] *= 1 + 1e-4

    assert "d_B" in check(kernel(graph, small), made, graph).reason


def test_reduced_problems_keep_groups_and_state() -> None:
    problem = Problem.of("selective_scan", {"b": 64, "d": 1536, "g": 8, "l": 4096, "n": 16})
    small = reduced(problem, problem.graph(), length=63, inner=72, outer=2).sizes
    assert small == {"b": 2, "d": 72, "g": 8, "l": 63, "n": 16}
    assert reduced(problem, problem.graph(), length=63, inner=20, outer=2).sizes["d"] == 24  # a multiple of the groups


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_long_trial_has_one_sequence_of_several_heads(groups: int) -> None:
    problem = Problem.of("ssd", {"b": 4, "g": groups, "h": 32, "l": 4096, "n": 32, "p": 64}, "bfloat16", "backward")
    long = next(t.problem for t in trials(problem, problem.graph()) if t.name == "long").sizes
    assert long == {"b": 1, "g": groups, "h": max(4, groups), "l": 1001, "n": 32, "p": 24}


def test_a_transition_that_would_grow_has_no_decaying_flavour() -> None:
    graph, made = prepared(Problem.of("linear_recurrence", {"b": 1, "d": 8, "l": 50}))
    oracles = {p.trial.flavour: p.oracle for p in made if not p.trial.whole}
    assert oracles["decaying"] is None and oracles["lingering"] is not None  # a is given as it is: 16 a would be over 1
    assert set(oracles) == set(FLAVOURS)


def test_oracles_are_kept_and_rebuilt_when_damaged(tmp_path: Path) -> None:
    problem = Problem.of("linear_recurrence", {"b": 1, "d": 8, "l": 50})
    first = prepared(problem, tmp_path)[1]
    files = sorted(tmp_path.glob("*.pt"))
    assert len(files) >= 3
    files[0].write_bytes(b"not an oracle")
    again = prepared(problem, tmp_path)[1]
    for a, b in zip(first, again, strict=True):
        assert (a.oracle is None) == (b.oracle is None)
        for name, value in (a.oracle or {}).items():
            assert b.oracle is not None and torch.equal(value, b.oracle[name])
