"""Triton kernels on the GPU that is here, against the oracle: every op, pass, form and dtype, at lengths and widths that fit no tile."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scanc.compiler import Executable, compile_graph, default_schedule
from scanc.problem import Problem
from scanc.schedule import AssociativeSchedule, RecurrentSchedule, StepSchedule
from scanc.target import Target
from tests.checks import relative
from tests.codegen.kernels import OWN, agrees, executable, registered

DTYPES = ("float32", "bfloat16", "float16")
CASES = {
    "selective_scan": dict(b=2, d=37, n=16, g=1),
    "linear_recurrence": dict(b=3, d=130),
    "ssd": dict(b=2, h=6, p=17, n=24, g=2),
}


def here() -> Target:
    """The Triton target of the current device."""
    if torch.version.hip is not None:
        return Target("hip", torch.cuda.get_device_properties(0).gcnArchName.split(":")[0], "triton")
    major, minor = torch.cuda.get_device_capability()
    return Target("cuda", f"sm_{major}{minor}", "triton")

own_ops = registered(*OWN)


@pytest.mark.parametrize("form", ["recurrent", "associative"])
@pytest.mark.parametrize("length", [1, 63, 1000, 2049])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize("name", list(CASES))
def test_matrix(name: str, pass_: str, dtype: str, length: int, form: str) -> None:
    problem = Problem.of(name, {**CASES[name], "l": length}, dtype, pass_)
    agrees(problem, here(), default_schedule(problem.graph(), here(), problem.sizes, form))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(CASES))
def test_step(name: str, dtype: str) -> None:
    problem = Problem.of(name, {**CASES[name], "l": 1}, dtype, "step")
    agrees(problem, here(), StepSchedule(lanes=32))


@pytest.mark.parametrize("schedule", [
    RecurrentSchedule(lanes=16, tile=1, history=16, walk=3, warps=2), RecurrentSchedule(lanes=32, tile=4, history=32, segment=128),
    RecurrentSchedule(lanes=8, tile=2, history=8, segment=64, walk=2, warps=1), AssociativeSchedule(lanes=2, tile=32, walk=3, warps=8),
    AssociativeSchedule(lanes=4, tile=16, segment=128, warps=2), AssociativeSchedule(lanes=1, tile=128, segment=256, walk=2),
], ids=str)
@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_schedules_states_and_segments(pass_: str, schedule: RecurrentSchedule | AssociativeSchedule) -> None:
    for options in ({}, {"reverse": True}, {"seq_idx": "given"}):
        problem = Problem.of("selective_scan", dict(b=2, d=70, l=601, n=5, g=2), "float32", pass_, initial_state="given",
                             cotangents="all", **options)
        agrees(problem, here(), schedule)


@pytest.mark.parametrize("schedule", [RecurrentSchedule(lanes=8, tile=1, history=16), AssociativeSchedule(lanes=2, tile=32)], ids=str)
@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize("name", ["spin", "ahead", "chain"])
def test_complex_exclusive_and_chained(name: str, pass_: str, schedule: RecurrentSchedule | AssociativeSchedule) -> None:
    case = dict(b=2, d=21, l=333, n=6)
    agrees(Problem.of(name, {a: case[a] for a in Problem.of(name, case).axes}, pass_=pass_), here(), schedule)


@pytest.mark.parametrize("form", ["recurrent", "associative"])
def test_results_are_the_same_every_time(form: str) -> None:
    problem = Problem.of("selective_scan", dict(b=2, d=200, l=1500, n=16, g=2), "bfloat16", "backward")
    program = executable(problem, here(), default_schedule(problem.graph(), here(), problem.sizes, form))
    inputs = problem.inputs("cuda")
    first = program(inputs)
    for _ in range(20):
        for name, x in program(inputs).items():
            assert torch.equal(x, first[name]), name


@pytest.mark.parametrize("form", ["recurrent", "associative"])
def test_a_new_length_or_batch_compiles_nothing(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    made: list[str] = []

    def compiled(**given: Any) -> None:
        made.append(str(given["fn"].name))

    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", compiled)
    problem = Problem.of("selective_scan", dict(b=2, d=37, l=501, n=11))
    program = executable(problem, here(), default_schedule(problem.graph(), here(), {}, form))
    program(problem.inputs("cuda"))
    assert made
    made.clear()
    for batch, length in ((3, 503), (5, 1001), (3, 77)):
        program(problem.with_case(b=batch, l=length).inputs("cuda"))
    assert made == []


def test_more_than_two_to_the_31_elements() -> None:
    length = 1 << 26
    graph = Problem.of("linear_recurrence", dict(b=1, d=1, l=1), "bfloat16").graph()
    a = torch.full((1, 33, length), 0.5, dtype=torch.bfloat16, device="cuda")
    b = torch.zeros(1, 33, length, dtype=torch.bfloat16, device="cuda")
    b[:, :, -300:] = torch.randn(33, 300, generator=torch.Generator().manual_seed(0)).to("cuda", torch.bfloat16)
    assert a.numel() > 1 << 31
    for schedule in (RecurrentSchedule(lanes=32, tile=1, segment=1 << 14), AssociativeSchedule(lanes=8, tile=64, segment=1 << 14)):
        program = compile_graph(graph, here(), schedule, sizes={"b": 1, "d": 33, "l": length})
        assert isinstance(program, Executable)
        h = program({"a": a, "b": b})["h"]
        wanted = Problem.of("linear_recurrence", dict(b=1, d=33, l=300), "bfloat16").oracle({"a": a[:, :, -300:], "b": b[:, :, -300:]})["h"]
        assert relative(h[:, :, -300:], wanted) < 4e-3
        assert not bool(h[:, :, :-300].any())


@pytest.mark.parametrize("form", ["recurrent", "associative", "chunked"])
@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_launches_again_whatever_the_addresses(pass_: str, form: str) -> None:
    """The same shapes and strides, at addresses that 16 divides and at such that it does not: a compilation for the first reads wrongly."""
    problem = Problem.of("ssd", dict(b=2, l=192, h=4, p=32, n=16, g=1), "bfloat16", pass_)
    program = executable(problem, here(), default_schedule(problem.graph(), here(), problem.sizes, form))
    inputs = problem.inputs("cuda")
    moved = {}
    for name, x in inputs.items():
        whole = x.new_empty(x.numel() + 1)
        moved[name] = whole[1:].view(x.shape).copy_(x)
        assert moved[name].stride() == x.stride() and moved[name].data_ptr() % 16
    first = program(inputs)
    for given in (inputs, moved, inputs, moved):
        for name, x in program(given).items():
            assert relative(x, first[name]) < 1e-2 and bool(x.abs().max() > 0), name
