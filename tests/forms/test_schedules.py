"""Every field of a CPU schedule changes how a result is computed and not what it is: each is held against the oracle."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from scanc.compiler import Executable, compile_graph
from scanc.problem import Problem
from scanc.schedule import RecurrentSchedule, StepSchedule
from scanc.target import Target
from tests.checks import GRADIENT

CPU = Target.parse("cpu:native:cpp")
BASE = RecurrentSchedule(lanes=16, tile=64, history=64)
MIXED = {"lanes": 8, "tile": 16, "history": 16, "segment": 32, "walk": 3}


def check(problem: Problem, schedule: RecurrentSchedule | StepSchedule) -> dict[str, torch.Tensor]:
    inputs = problem.inputs()
    made = compile_graph(problem.graph(), CPU, schedule, sizes=problem.sizes)
    assert isinstance(made, Executable)
    outputs = made({k: v.clone() for k, v in inputs.items()})
    errors = Problem.errors(outputs, problem.oracle(inputs))
    assert errors and all(e <= GRADIENT[torch.float32] for e in errors.values()), errors
    return outputs


def linear(pass_: str, **options: Any) -> Problem:
    given = {"initial_state": "given"} | ({"cotangents": "all"} if pass_ == "backward" else {})
    return Problem.of("linear_recurrence", {"b": 2, "d": 37, "l": 200}, pass_=pass_, **given, **options)


FORWARD = [{"lanes": 1}, {"lanes": 4}, {"lanes": 32}, {"tile": 1, "history": 1}, {"walk": 7}, {"segment": 128}, MIXED]


@pytest.mark.parametrize("fields", FORWARD, ids=str)
def test_forward(fields: dict[str, int]) -> None:
    check(linear("forward"), dataclasses.replace(BASE, **fields))


@pytest.mark.parametrize("fields", [{"lanes": 1}, {"history": 1, "tile": 1}, {"segment": 64}, MIXED], ids=str)
def test_backward(fields: dict[str, int]) -> None:
    check(linear("backward"), dataclasses.replace(BASE, **fields))


@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_time_in_segments_the_other_way_round(pass_: str) -> None:
    check(linear(pass_, reverse=True), dataclasses.replace(BASE, **MIXED))


@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_a_state_axis_groups_and_resets_in_segments(pass_: str) -> None:
    """Lane sums are taken per slot and per group, the last state by the last segment alone."""
    given = {"initial_state": "given", "seq_idx": "given"} | ({"cotangents": "all"} if pass_ == "backward" else {})
    problem = Problem.of("selective_scan", {"b": 2, "d": 40, "l": 150, "n": 3, "g": 2}, pass_=pass_, **given)
    check(problem, dataclasses.replace(BASE, **MIXED))


def test_heads_in_segments() -> None:
    problem = Problem.of(
        "ssd", {"b": 2, "l": 150, "h": 4, "p": 40, "n": 3, "g": 2}, pass_="backward", initial_states="given", cotangents="all"
    )
    check(problem, dataclasses.replace(BASE, segment=64, walk=2))


@pytest.mark.parametrize("lanes", [1, 8])
def test_steps(lanes: int) -> None:
    check(
        Problem.of("selective_scan", {"b": 3, "d": 21, "l": 1, "n": 3, "g": 1}, pass_="step", initial_state="given"),
        StepSchedule(lanes=lanes),
    )


@pytest.mark.parametrize("segment", [64, 192, 256])
def test_segments_longer_than_what_is_left(segment: int) -> None:
    """Lengths of one segment, of a whole number of them, and one step more or less."""
    schedule = dataclasses.replace(BASE, segment=segment)
    for l in (segment - 1, segment, segment + 1, 3 * segment, 1):
        check(linear("forward").with_case(l=l), schedule)


def test_equal_orders_give_equal_bits() -> None:
    """``tile`` does not change the order of summation, and so not one bit; ``segment`` does, and says so."""
    one, two, other = BASE, dataclasses.replace(BASE, tile=16), dataclasses.replace(BASE, segment=64)
    assert one.order == two.order != other.order
    first, second = check(linear("forward"), one), check(linear("forward"), two)
    assert all(torch.equal(first[k], second[k]) for k in first)
