"""How convolutions on the GPU that is here are held against the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scanc.codegen.triton_convolution_run import ConvolutionExecutable
from scanc.compiler import default_schedule, program
from scanc.problem import Problem
from scanc.schedule import ConvolutionSchedule
from scanc.target import Target

PASSES = ("forward", "backward")
GATES: dict[str, Any] = {"pregate": "given", "postgate": "given", "k_rev": "given"}


def holds_on(target: Target, bars: Mapping[str, float], problem: Problem, schedule: ConvolutionSchedule | None = None) -> None:
    """By a kernel of the target, whose own schedule is taken where none is given, each result is as near as its dtype's bar."""
    inputs, graph = problem.inputs("cuda"), problem.graph()
    made = program(graph, target, schedule or default_schedule(graph, target, problem.sizes))
    assert isinstance(made, ConvolutionExecutable) and made.backend == target.backend
    wanted = problem.oracle(inputs)
    for name, error in problem.errors(made(inputs), wanted).items():
        assert error <= bars[problem.dtype], f"{problem} {schedule}: {name} has relative error {error:.2e}"
    assert all(bool(x.any()) for x in wanted.values())
