"""Memory of a training pass by what launches allocate, no device needed: tensors without storage, kernels that do nothing.

Held against mamba_ssm's selective scan by what that allocates: the forward its result before the gate (`out`) and a float32 pair (a, h) for
each state of every 2048 steps (`x`), the backward d_B and d_C in float32, zeroed for atomics, and then as dtypes of B and C.
"""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from scanc import launch
from scanc.codegen import build_cuda
from scanc.codegen.layout import Mode, Total
from scanc.compiler import Executable, default_schedule
from scanc.problem import Problem
from scanc.schedule import RecurrentSchedule
from scanc.target import Target

HOPPER = Target.parse("cuda:sm_90:cuda")
# b, d, l, n
SIZES = [(8, 4096, 2048, 16), (2, 4096, 2048, 16), (1, 4096, 16384, 16), (1, 1536, 2048, 16), (16, 768, 1024, 16), (1, 768, 128, 16),
         (1, 2048, 512, 16), (1, 5120, 2048, 16), (64, 768, 128, 8), (1, 4096, 2048, 32), (1, 2048, 8192, 32), (8, 2048, 2048, 32)]


class Idle:
    """Stands in for a loaded kernel."""

    def __call__(self, *_: Any) -> None:
        pass

    def totals(self, totals: Sequence[Total]) -> Callable[..., None]:
        return lambda parts, results: None


class Held:
    """Bytes of what launches allocated and is still alive, and the most there were."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        make = launch._Place.empty

        def empty(place: launch._Place, device: torch.device) -> Tensor:
            made = make(place, device)
            size = math.prod(place.size) * place.dtype.itemsize
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(made.untyped_storage(), self._free, size)
            return made

        monkeypatch.setattr(launch._Place, "empty", empty)

    def _free(self, size: int) -> None:
        self.now -= size


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    monkeypatch.setattr(build_cuda, "available", lambda: True)
    monkeypatch.setattr(build_cuda, "load", lambda source, target: Idle())
    return Held(monkeypatch)


def program(pass_: str, b: int, d: int, l: int, n: int) -> Executable:
    problem = Problem.of("selective_scan", dict(b=b, d=d, l=l, n=n, g=1), "bfloat16", pass_, initial_state=None)
    graph = problem.graph()
    return Executable(graph, HOPPER, default_schedule(graph, HOPPER, problem.sizes))


def tensors(of: Executable, b: int, d: int, l: int, n: int) -> dict[str, Tensor]:
    sizes = dict(b=b, d=d, l=l, n=n, g=1)
    inputs = of.graph.inputs
    return {str(x.name): torch.empty([sizes[a] for a in x.axes], dtype=getattr(torch, x.type.dtype), device="meta") for x in inputs}


@pytest.mark.parametrize("case", SIZES, ids=lambda c: "x".join(map(str, c)))
def test_a_training_pass_holds_no_more_than_mamba_ssm(case: tuple[int, int, int, int], held: Held) -> None:
    b, d, l, n = case
    forward, backward = program("forward", *case), program("backward", *case)
    assert forward.leaves_for(backward)
    made = forward(tensors(forward, *case), mode=Mode(leaves=backward.interval))
    gc.collect()
    u, bc, parameters = 2 * b * d * l, 2 * 2 * b * n * l, 4 * d * (n + 2)
    last_state, states = 4 * b * d * n, u * n // 16 * 32 // backward.interval
    assert states <= u  # the checkpoints, beside y
    assert held.now == sum(t.numel() * t.element_size() for t in made.values()) == u + states + last_state
    theirs = 2 * u + 4 * b * d * -(-l // 2048) * 2 * n  # y, out and x
    left = {name: t for name, t in made.items() if name.startswith("checkpoint")}
    # What autograd holds by then: y and the checkpoints. The last state is nobody's; dy comes.
    given = {**tensors(backward, *case), **left}
    held.now -= last_state
    before, held.most = held.now, 0
    gradients = backward(given, mode=Mode(resumes=True, consumes=1))
    gc.collect()
    assert held.now - before == sum(t.numel() * t.element_size() for t in gradients.values()) == 3 * u + bc + parameters
    ours, theirs = held.most + u, theirs + u + 3 * u + parameters + 2 * bc + bc
    assert ours <= theirs, f"{ours / u:.3f} u for {theirs / u:.3f}, {(ours - theirs) >> 10} KiB more"
    assert ours >= (6 if n > 8 else 5.5) * u


def test_a_graph_that_is_kept_costs_sums_of_its_own(held: Held) -> None:
    """Without a say in the checkpoints partial results have memory beside them: what the arithmetic above would otherwise not notice."""
    case = SIZES[4]
    backward = program("backward", *case)
    given = tensors(backward, *case)
    given["checkpoint0"] = torch.empty(case[2] // backward.interval, case[0], case[3], case[1], device="meta")
    most = []
    for consumes in (0, 1):
        held.now = held.most = 0
        made = backward(given, mode=Mode(resumes=True, consumes=consumes))
        most.append(held.most)
        del made
        gc.collect()
    schedule = backward.schedule
    assert isinstance(schedule, RecurrentSchedule)
    slots = case[1] // (schedule.lanes * schedule.cluster)
    assert most[0] - most[1] == 2 * 4 * slots * case[0] * case[3] * case[2]
