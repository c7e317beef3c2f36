"""Triton kernels of forms recurrent and step: interpreted on the CPU against the oracle, compiled for GPUs that are not here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scanc.codegen import build_triton
from scanc.codegen.layout import geometry
from scanc.compiler import default_schedule
from scanc.errors import BackendUnavailable, CompileError
from scanc.problem import Problem
from scanc.schedule import RecurrentSchedule, StepSchedule
from scanc.target import Target
from tests.codegen.kernels import OWN, agrees, executable, registered, source_of

INTERPRET = Target.parse("cpu:interpret:triton")
PASSES = ("forward", "backward")
TARGETS = ("cuda:sm_80:triton", "cuda:sm_90:triton", "cuda:sm_100:triton", "cuda:sm_120:triton", "hip:gfx942:triton")
PLAIN = Problem.of("linear_recurrence", dict(b=1, d=2, l=3))
SMALL = RecurrentSchedule(lanes=4, tile=1, history=8)

own_ops = registered(*OWN)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(("length", "state"), [(1, 16), (5, 1), (63, 3)])
def test_lengths_and_states(pass_: str, length: int, state: int) -> None:
    agrees(Problem.of("selective_scan", dict(b=1, d=3, l=length, n=state), pass_=pass_), INTERPRET, SMALL)


@pytest.mark.parametrize("pass_", PASSES)
def test_groups_states_and_walks(pass_: str) -> None:
    case = dict(b=2, d=10, l=9, n=3, g=2)
    given = Problem.of("selective_scan", case, pass_=pass_, initial_state="given", seq_idx="given", cotangents="all")
    agrees(given, INTERPRET, RecurrentSchedule(lanes=2, tile=2, history=4, walk=2))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("pass_", PASSES)
def test_segments(pass_: str, reverse: bool) -> None:
    case = dict(b=1, d=3, l=11, n=2)
    given = Problem.of("selective_scan", case, pass_=pass_, initial_state="given", cotangents="all", reverse=reverse)
    agrees(given, INTERPRET, RecurrentSchedule(lanes=4, tile=1, history=2, segment=4))


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("name", ["linear_recurrence", "ssd", "spin", "ahead", "chain"])
def test_ops(name: str, pass_: str) -> None:
    case = dict(b=2, d=5, l=9, n=3, h=4, p=3, g=2)
    problem = Problem.of(name, {a: case[a] for a in Problem.of(name, case).axes}, pass_=pass_)
    agrees(problem, INTERPRET, RecurrentSchedule(lanes=2, tile=1, history=4))


def test_complex_segments() -> None:
    for pass_ in PASSES:
        problem = Problem.of("spin", dict(b=1, d=3, l=7, n=3), pass_=pass_, cotangents="all")
        agrees(problem, INTERPRET, RecurrentSchedule(lanes=4, tile=1, history=2, segment=4))


@pytest.mark.parametrize("state", [1, 3, 16])
def test_step_writes_the_state_in_place(state: int) -> None:
    problem = Problem.of("selective_scan", dict(b=2, d=5, l=1, n=state, g=1), pass_="step")
    agrees(problem, INTERPRET, StepSchedule(lanes=4))
    inputs = problem.inputs()
    wanted, given = problem.oracle(inputs), inputs["initial_state"]
    before = given.clone()
    made = executable(problem, INTERPRET, StepSchedule(lanes=4))(inputs, into={"last_state": given})
    source, _ = source_of(problem, INTERPRET.name, StepSchedule(lanes=4))
    barrier, write = source.text.index("tl.debug_barrier()"), source.text.index("tl.store(last_state_ptr")
    assert source.text.index("tl.load(initial_state_ptr") < barrier < write   # threads share what they read
    assert made["last_state"] is given and not torch.equal(given, before)
    assert float((given - wanted["last_state"]).norm() / wanted["last_state"].norm()) < 5e-6


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_storage(dtype: str) -> None:
    # The interpreter rounds half up where a GPU rounds to even.
    agrees(Problem.of("selective_scan", dict(b=1, d=3, l=9, n=3), dtype), INTERPRET, SMALL, scale=2.0)


def test_a_transposed_input_is_read_by_its_strides() -> None:
    problem = Problem.of("linear_recurrence", dict(b=2, d=5, l=9))
    inputs = problem.inputs()
    inputs["a"] = inputs["a"].transpose(0, 2).contiguous().transpose(0, 2)
    inputs["b"] = inputs["b"][:, :, :1].expand(2, 5, 9)
    found = executable(problem, INTERPRET, SMALL)(inputs)
    assert all(e < 5e-6 for e in problem.errors(found, problem.oracle(inputs)).values())


def test_nan_passes_through_maximum() -> None:
    problem = Problem.of("ahead", dict(b=1, l=4, d=2))
    inputs = problem.inputs()
    inputs["x"][0, 0, 1] = float("nan")
    out = executable(problem, INTERPRET, SMALL)(inputs)["y"]
    assert bool(out[0, 0, 1].isnan()) and not bool(out[0, :, 0].isnan().any())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("pass_", ["forward", "backward", "step"])
def test_compiles_without_a_device(pass_: str, target: str) -> None:
    problem = Problem.of("selective_scan", dict(b=1, d=32, l=64, n=4), "bfloat16", pass_, z=None, D=None)
    schedule = StepSchedule(lanes=32, warps=1) if pass_ == "step" else RecurrentSchedule(lanes=32, tile=1, history=8, warps=1)
    source, named = source_of(problem, target, schedule)
    found = build_triton.resources(source, named)
    assert 0 < found["registers"] <= 512 and found["spills"] == 0 and found["seconds"] > 0
    text = build_triton.assembly(source, named)
    assert build_triton.entry_point(source.plan) in text
    assert ("ex2.approx" if named.kind == "cuda" else "v_exp_f32") in text


@pytest.mark.parametrize("pass_", PASSES)
def test_default_schedules_spill_nothing(pass_: str) -> None:
    problem = Problem.of("selective_scan", dict(b=1, d=1536, l=2048, n=16), "bfloat16", pass_)
    source, named = source_of(problem, "cuda:sm_90:triton")
    assert isinstance(default_schedule(problem.graph(), named, problem.sizes), RecurrentSchedule)
    found = build_triton.resources(source, named)
    assert found["spills"] == 0 and found["registers"] <= 168


def test_scratch_grows_with_programs_and_length() -> None:
    problem = Problem.of("selective_scan", dict(b=2, d=6, l=20, n=3), pass_="backward")
    program = executable(problem, INTERPRET, RecurrentSchedule(lanes=4, tile=1, history=8))
    source = program.source(3)
    shape = geometry(program.plan, program.schedule, problem.sizes | {"g": 1}, 4)
    # 2 batches x 2 lane tiles, (3 block starts + 8 steps) sets of 4 lanes x 4 states
    assert build_triton.scratch(source, shape) == 4 * (3 + 8) * 4 * 4


def test_a_damaged_file_is_set_aside(caplog: pytest.LogCaptureFixture) -> None:
    source, _ = source_of(PLAIN, "cuda:sm_90:triton", RecurrentSchedule(lanes=2, tile=1, warps=2))
    path = build_triton.written(source)
    path.write_text(source.text[:100])
    with caplog.at_level("WARNING", logger="scanc"):
        assert build_triton.written(source) == path
    assert path.read_text() == source.text and Path(f"{path}.damaged").exists()
    assert "damaged" in caplog.text


def test_a_gpu_kernel_needs_its_device() -> None:
    source, named = source_of(PLAIN, "hip:gfx942:triton", RecurrentSchedule(lanes=2, tile=1))
    if not build_triton.available(named):
        with pytest.raises(BackendUnavailable, match="gfx942"):
            build_triton.load(source, named)
    with pytest.raises(BackendUnavailable, match="machine code"):
        build_triton.assembly(source, INTERPRET)


def test_a_kernel_too_large_is_named() -> None:
    source, named = source_of(PLAIN, "cuda:sm_90:triton", RecurrentSchedule(lanes=1 << 21, tile=1))
    with pytest.raises(CompileError, match="linear_recurrence"):
        build_triton.resources(source, named)
