"""Small problems run through a kernel and held against the float64 oracle: what the tests of every GPU backend share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jaxtyping import Complex, Float
from torch import Tensor

import scanc.dsl as sc
import scanc.ops  # noqa: F401 - fills the registry
from scanc.codegen.layout import KernelSource
from scanc.compiler import Executable, compile_graph
from scanc.op import REGISTRY, Op
from scanc.problem import Make, Problem
from scanc.schedule import Schedule
from scanc.target import Target
from tests.checks import GRADIENT, RESULT


@sc.op
def spin(u: Float[Tensor, "b d l"], dt: Float[Tensor, "b d l"], A: Complex[Tensor, "d n"], C: Complex[Tensor, "d n"],
         initial_state: Complex[Tensor, "b d n"]) -> tuple[Float[Tensor, "b d l"], Complex[Tensor, "b d n"]]:
    """A complex transition."""
    h = sc.scan(sc.exp(dt * A), dt * u, axis="l", initial=initial_state)
    return 2.0 * sc.real(sc.sum(C * h, "n")), sc.last(h, "l")


@spin.example
def _spin(make: Make) -> dict[str, Any]:
    return {"u": make.normal("b d l"), "dt": make.uniform("b d l", 0.05, 0.5),
            "initial_state": torch.complex(make.normal("b d n", parameter=True), make.normal("b d n", parameter=True)),
            "A": torch.complex(-make.uniform("d n", 0.2, 2.0, parameter=True), make.uniform("d n", -3.0, 3.0, parameter=True)),
            "C": torch.complex(make.normal("d n", parameter=True), make.normal("d n", parameter=True))}


@sc.op
def ahead(a: Float[Tensor, "b l d"], x: Float[Tensor, "b l d"], w: Float[Tensor, "d"]) -> Float[Tensor, "b l d"]:
    """A reverse scan read before its step, a look-back, positions, and every function that a GPU language may lack."""
    b = sc.tanh(x) + sc.expm1(sc.shift(x, "l", 2, fill=0.5)) * sc.erf(x)
    h = sc.scan(a, b, axis="l", reverse=True, exclusive=True)
    late = sc.where(sc.index("l") * 2 >= sc.size("l"), sc.log1p(sc.square(x)), sc.maximum(x, w))
    return sc.sigmoid(h) * late + sc.minimum(x, 0.25) * sc.cos(x) + abs(w)


@ahead.example
def _ahead(make: Make) -> dict[str, Any]:
    return {"a": make.uniform("b l d", 0.3, 0.95), "x": make.normal("b l d"), "w": make.normal("d", parameter=True)}


@sc.op
def chain(gamma: Float[Tensor, "d"], a: Float[Tensor, "b d l"],
          x: Float[Tensor, "b d l"]) -> tuple[Float[Tensor, "b d l"], Float[Tensor, "b d l"]]:
    """A scan that feeds another, transitions that are constant in time, and a running sum."""
    h = sc.scan(gamma, x, axis="l")
    return sc.scan(a * sc.sigmoid(h), h, axis="l"), sc.scan(1.0, 0.1 * x, axis="l")


@chain.example
def _chain(make: Make) -> dict[str, Any]:
    return {"gamma": make.uniform("d", 0.3, 0.9, parameter=True), "a": make.uniform("b d l", 0.3, 0.95), "x": make.normal("b d l")}


OWN: tuple[Op, ...] = tuple(REGISTRY.pop(op.name) for op in (spin, ahead, chain))   # other tests list the package's ops alone


def executable(problem: Problem, target: Target, schedule: Schedule | None) -> Executable:
    found = compile_graph(problem.graph(), target, schedule, sizes=problem.sizes)
    assert isinstance(found, Executable)
    return found


def source_of(problem: Problem, target: str, schedule: Schedule | None = None) -> tuple[KernelSource, Target]:
    """The kernel's source for a target whose device need not be here."""
    from scanc.compiler import default_schedule

    named, graph = Target.parse(target), problem.graph()
    program = Executable(graph, named, schedule or default_schedule(graph, named, problem.sizes))
    return program.source(problem.sizes.get("n", 1)), named


def agrees(problem: Problem, target: Target, schedule: Schedule | None = None, *, scale: float = 1.0) -> None:
    """Every result of the kernel is within its dtype's bar of the oracle's, which NaN never is."""
    inputs = problem.inputs(target.device_type)
    outputs = executable(problem, target, schedule)({k: v.clone() for k, v in inputs.items()})
    bars = GRADIENT if problem.pass_ == "backward" else RESULT
    wanted = problem.oracle(inputs)
    for name, error in problem.errors(outputs, wanted).items():
        assert error <= scale * bars[outputs[name].dtype], f"{problem} {schedule}: {name} has relative error {error:.2e}"
    assert any(bool(x.any()) for x in wanted.values())


def writes_over(problem: Problem, target: Target, schedule: Schedule | None = None) -> None:
    """Gradients written over what they are gradients of, and over a cotangent, are those that have memory of their own, bit for bit."""
    program = executable(problem, target, schedule)
    inputs = problem.inputs(target.device_type)
    wanted = program(inputs)
    over = {"d_delta": "delta", "d_u": "d_y"}
    given = {name: x.clone() for name, x in inputs.items()}
    made = program(given, into={result: given[name] for result, name in over.items()})
    for result, name in over.items():
        assert made[result] is given[name]
    for name, x in made.items():
        assert torch.equal(x, wanted[name]) and bool(x.abs().max() > 0), name


def registered(*ops: Op) -> object:
    """A fixture for a whole test file: ops of its own are in the registry while its tests run, and no longer."""

    @pytest.fixture(autouse=True)
    def own_ops(monkeypatch: pytest.MonkeyPatch) -> None:
        for op in ops:
            monkeypatch.setitem(REGISTRY, op.name, op)

    return own_ops
