"""What the compiler writes, word for word: every op on every backend, every schedule field that changes structure, every stage.

Each program whose text is kept is also run and held against the oracle: in the emulator or the interpreter where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from jaxtyping import Float
from torch import Tensor

import scanc.dsl as sc
from scanc.codegen import build_cuda
from scanc.codegen.layout import Mode
from scanc.compiler import Executable, stages
from scanc.op import REGISTRY
from scanc.printer import print_graph
from scanc.problem import Problem
from scanc.schedule import AssociativeSchedule, RecurrentSchedule, Schedule, StencilSchedule, StepSchedule
from scanc.target import Target
from tests.codegen import emulate
from tests.codegen.kernels import agrees

Golden = Callable[[str, str], None]


@sc.op
def total(x: Float[Tensor, "b d l"]) -> tuple[Float[Tensor, "b d l"], Float[Tensor, "b l"]]:
    """A result summed over the lanes: what ``walk`` is for."""
    h = sc.scan(0.5, x, axis="l")
    return h, sc.sum(h, "d")


del REGISTRY["total"]  # other tests list the package's ops alone


@pytest.fixture(autouse=True)
def own_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "total", total)


CPU, TRITON, CUDA = (Target.parse(t) for t in ("cpu:native:cpp", "cuda:sm_90:triton", "cuda:sm_90:cuda"))
# Where the text that depends on the plan starts: before it stand pointers, strides and sizes.
BODY = {
    "cpp": "        for (index_t program = 0;",
    "triton": "    LANES: tl.constexpr",
    "cuda": "                const auto walk = [&](auto is_whole, int base) {",
}
SUFFIX = {"cpp": "cpp", "triton": "py", "cuda": "cu"}

LINEAR: tuple[str, dict[str, int], dict[str, Any]] = ("linear_recurrence", {"b": 2, "d": 5, "l": 11}, {})
SELECTIVE: tuple[str, dict[str, int], dict[str, Any]] = (
    "selective_scan",
    {"b": 2, "d": 5, "l": 11, "n": 2},
    {"D": None, "z": None, "delta_bias": None, "delta_softplus": False},
)
SSD: tuple[str, dict[str, int], dict[str, Any]] = (
    "ssd",
    {"b": 2, "l": 11, "h": 2, "p": 5, "n": 2},
    {"D": None, "dt_bias": None, "dt_softplus": False},
)
CONV: tuple[str, dict[str, int], dict[str, Any]] = ("causal_conv1d", {"b": 2, "d": 5, "l": 19}, {"w2": None, "w3": None, "silu": False})
TOTAL: tuple[str, dict[str, int], dict[str, Any]] = ("total", {"b": 2, "d": 11, "l": 11}, {})


@dataclass(frozen=True)
class Case:
    target: Target
    call: tuple[str, dict[str, int], dict[str, Any]]
    schedule: Schedule
    pass_: str = "forward"
    mode: Mode = field(default=Mode())

    @property
    def problem(self) -> Problem:
        name, case, options = self.call
        return Problem.of(name, case, pass_=self.pass_, **options)

    def text(self) -> str:
        problem = self.problem
        text = Executable(problem.graph(), self.target, self.schedule).source(problem.sizes.get("n", 1), self.mode).text
        start = BODY[self.target.backend]
        return start + text.split(start, 1)[1]


SMALL = RecurrentSchedule(lanes=4, tile=8, history=8)
THREADS = RecurrentSchedule(lanes=4, split=1, tile=8, history=8)
CASES = {
    # every op on every backend
    "cpp_linear_recurrence": Case(CPU, LINEAR, SMALL),
    "cpp_selective_scan": Case(CPU, SELECTIVE, SMALL),
    "cpp_ssd": Case(CPU, SSD, SMALL),
    "triton_linear_recurrence": Case(TRITON, LINEAR, RecurrentSchedule(lanes=4, tile=1, history=8)),
    "triton_selective_scan": Case(TRITON, SELECTIVE, RecurrentSchedule(lanes=4, tile=1, history=8)),
    "triton_ssd": Case(TRITON, SSD, RecurrentSchedule(lanes=4, tile=1, history=8)),
    "cuda_selective_scan": Case(CUDA, SELECTIVE, THREADS),
    "cuda_ssd": Case(CUDA, SSD, THREADS),
    # what changes the structure
    "cpp_history": Case(CPU, LINEAR, SMALL, "backward"),
    "cpp_step": Case(CPU, SELECTIVE, StepSchedule(lanes=4), "step"),
    "cpp_walk": Case(CPU, TOTAL, RecurrentSchedule(lanes=4, tile=8, history=8, walk=2)),
    "cpp_segment_summary": Case(CPU, LINEAR, RecurrentSchedule(lanes=4, tile=4, history=4, segment=4), mode=Mode(summary=True)),
    "cpp_segment_entries": Case(CPU, LINEAR, RecurrentSchedule(lanes=4, tile=4, history=4, segment=4), mode=Mode(entries=True)),
    "triton_associative": Case(TRITON, LINEAR, AssociativeSchedule(lanes=2, tile=8)),
    "triton_stencil": Case(TRITON, CONV, StencilSchedule(lanes=2, tile=8, segment=8)),
    "triton_tile": Case(TRITON, LINEAR, RecurrentSchedule(lanes=4, tile=2, history=8)),
    "cuda_split": Case(CUDA, SELECTIVE, RecurrentSchedule(lanes=4, split=2, tile=8, history=8)),
    "cuda_helpers": Case(CUDA, SELECTIVE, RecurrentSchedule(lanes=32, split=2, tile=8, history=4, helpers=1)),  # folds late, too
}


@pytest.mark.parametrize("name", CASES)
def test_text(name: str, golden: Golden) -> None:
    golden(f"{name}.{SUFFIX[CASES[name].target.backend]}", CASES[name].text())


@pytest.mark.parametrize("name", CASES)
def test_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    target = Target.parse("cpu:interpret:triton") if case.target is TRITON else case.target
    monkeypatch.setattr(build_cuda, "available", lambda: True)
    monkeypatch.setattr(build_cuda, "load", emulate.load)
    monkeypatch.setattr(Target, "device_type", "cpu")
    agrees(case.problem, target, case.schedule)


# -- stages ---------------------------------------------------------------------------------------------------------------------------


def test_stages(golden: Golden) -> None:
    """The selective scan at every stage before the source."""
    name, case, options = SELECTIVE
    forward = Problem.of(name, case, **options)
    texts = stages(forward.graph(), CPU, SMALL, sizes=forward.sizes)
    for stage in ("trace", "canonical", "class", "forms", "partition", "loops"):
        golden(f"stage_{stage}.txt", texts[stage])
    backward = Problem.of(name, case, pass_="backward", **options)
    golden("stage_adjoint.txt", print_graph(backward.graph()))
    golden("stage_adjoint_loops.txt", stages(backward.graph(), CPU, SMALL, sizes=backward.sizes)["loops"])


def test_stages_name_the_source_of_the_target() -> None:
    name, case, options = SELECTIVE
    problem = Problem.of(name, case, **options)
    for target, word in ((CPU, "SCANC_LANES"), (TRITON, "@triton.jit"), (CUDA, "__global__")):
        assert word in stages(problem.graph(), target, sizes=problem.sizes)["source"]
    assert "no source" in stages(problem.graph(), Target.parse("cpu:native:reference"))["source"]
