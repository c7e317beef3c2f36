"""The CUDA walk: any number of steps at once, any layout of the inputs in memory, copies that come when they will.

Kernels run in the emulator, in two orders of threads: in one, copies arrive at once; in the other, when they are waited for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scanc.codegen import build_cuda
from scanc.codegen.layout import Mode
from scanc.compiler import Executable
from scanc.problem import Problem
from scanc.schedule import RecurrentSchedule, Schedule, StepSchedule
from scanc.target import Target
from tests.checks import GRADIENT, RESULT
from tests.codegen import emulate
from tests.codegen.kernels import source_of

HOPPER = Target.parse("cuda:sm_90:cuda")
PASSES = ("forward", "backward")
RAGGED = dict(b=2, d=21, l=45, n=3, g=1)    # lanes, steps and states that fill no block, tile or thread
WHOLE = dict(b=2, d=32, l=48, n=4, g=1)     # all of them whole


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Tensor]]:
    """``run(problem, schedule, inputs)``: the results, the same in both orders of threads and right against the oracle."""

    def both(problem: Problem, schedule: Schedule, inputs: Mapping[str, Tensor],
             into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        found = []
        for backwards in (False, True):
            monkeypatch.setattr(build_cuda, "load", functools.partial(emulate.load, backwards=backwards))
            out = Executable(problem.graph(), HOPPER, schedule)(inputs, into=into)
            found.append({name: x.clone() for name, x in out.items()})
        bars = GRADIENT if problem.pass_ == "backward" else RESULT
        wanted = problem.oracle({name: x.contiguous() for name, x in inputs.items()})
        for name, error in problem.errors(found[0], wanted).items():
            assert torch.equal(found[0][name], found[1][name]), name
            assert error <= bars[found[0][name].dtype], f"{problem} {schedule}: {name} has relative error {error:.2e}"
        assert all(bool(x.any()) for x in wanted.values())
        return found[0]

    return both


@pytest.mark.parametrize("history", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("pass_", PASSES)
def test_steps_at_once(pass_: str, history: int, run: Callable[..., dict[str, Tensor]]) -> None:
    """More of them than a lane has threads, as many, and fewer: each folds and stores its sums in another way."""
    problem = Problem.of("selective_scan", RAGGED, pass_=pass_)
    run(problem, RecurrentSchedule(lanes=16, split=4, tile=16, history=history), problem.inputs())


@pytest.mark.parametrize("pass_", PASSES)
def test_more_steps_at_once_than_a_tile_has(pass_: str, run: Callable[..., dict[str, Tensor]]) -> None:
    """A forward walks a tile at once, whatever it is asked for."""
    problem = Problem.of("selective_scan", RAGGED, pass_=pass_)
    tile = 4 if pass_ == "forward" else 16
    run(problem, RecurrentSchedule(lanes=8, split=1, tile=tile, history=16), problem.inputs())


@pytest.mark.parametrize("pass_", PASSES)
def test_one_stage_and_two_give_the_same_bits(pass_: str, run: Callable[..., dict[str, Tensor]]) -> None:
    problem = Problem.of("selective_scan", RAGGED, pass_=pass_, cotangents="all")
    one, two = (RecurrentSchedule(lanes=16, split=2, tile=16, history=4, stages=stages) for stages in (1, 2))
    assert one.order == two.order
    inputs = problem.inputs()
    first, second = run(problem, one, inputs), run(problem, two, inputs)
    for name, x in first.items():
        assert torch.equal(x, second[name]), name


SUMS = {  # schedule, states, registers whose order flips, where a tile's sums over lanes stand
    "four of a thread's states, eight lanes": (dict(lanes=16, split=4, tile=16, history=4), 16, 4, "block_starts"),
    "more flips than lanes would need": (dict(lanes=16, split=8, tile=16, history=4), 64, 4, "row_sums"),
    "eight states, no other threads": (dict(lanes=8, split=1, tile=8, history=2), 8, 8, "block_starts"),
    "states in pairs": (dict(lanes=32, split=1, tile=8, history=4), 6, 2, "block_starts"),
    "an odd number of states": (dict(lanes=16, split=2, tile=16, history=4), 5, 1, "block_starts"),
    "one step at once": (dict(lanes=32, split=2, tile=4, history=1), 4, 2, "block_starts"),
    "a tile is one block": (dict(lanes=16, split=4, tile=4, history=4), 8, 2, "row_sums"),
    "two turns of a part of a tile": (dict(lanes=4, split=8, tile=64, history=8, walk=2), 16, 2, "row_sums"),
}


@pytest.mark.parametrize("name", list(SUMS))
def test_sums_over_lanes(name: str, run: Callable[..., dict[str, Tensor]]) -> None:
    """Parts of a warp have their states in different orders; sums go where blocks' starts stood, or to a place of their own."""
    fields, n, flips, where = SUMS[name]
    schedule = RecurrentSchedule(**fields)
    problem = Problem.of("selective_scan", RAGGED | dict(n=n, l=2 * schedule.tile + 5), pass_="backward", cotangents="all")
    source, _ = source_of(problem, "cuda:sm_90:cuda", schedule)
    assert f"float* const sums = {where} + " in source.text
    assert ("(k ^ flip)" in source.text) == (flips > 1) and f"leave_sums<SPLIT, THREADS, {flips}>" in source.text
    run(problem, schedule, problem.inputs())


@pytest.mark.parametrize(("name", "case"), [("selective_scan", RAGGED | dict(n=16)), ("selective_scan", RAGGED | dict(n=5)),
                                            ("linear_recurrence", dict(b=2, d=21, l=45))])
def test_a_backward_resumes_from_checkpoints(name: str, case: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a forward leaves, state by state with its lanes together, is what a thread's registers start a tile from."""
    problem, found = Problem.of(name, case, pass_="backward"), []
    inputs, schedule = problem.inputs(), RecurrentSchedule(lanes=16, split=4 if "n" in case else 1, tile=16, history=4)
    for backwards in (False, True):
        monkeypatch.setattr(build_cuda, "load", functools.partial(emulate.load, backwards=backwards))
        program = Executable(problem.graph(), HOPPER, schedule)
        left = program.checkpoints(inputs)
        assert left
        found.append(program(inputs | left, mode=Mode(resumes=True)))
    for result, error in problem.errors(found[0], problem.oracle(inputs)).items():
        assert torch.equal(found[0][result], found[1][result]), result
        assert error <= GRADIENT[found[0][result].dtype], f"{result} has relative error {error:.2e}"


# -- layouts -----------------------------------------------------------------------------------------------------------------------------


def transposed(x: Tensor) -> Tensor:
    """(b d l) with lanes beside each other."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def one_off(x: Tensor) -> Tensor:
    """The same strides, one element behind an aligned address."""
    return torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].view(x.shape)


def padded(x: Tensor) -> Tensor:
    """Rows three elements longer than what is used of them: only the first is aligned."""
    return torch.cat([x, x.new_full((*x.shape[:-1], 3), float("nan"))], -1)[..., :x.shape[-1]]


def states_last(x: Tensor) -> Tensor:
    """(b g n l) with states beside each other."""
    return x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)


OVER_TIME, ROWS = ("u", "delta", "z", "d_y"), ("B", "C")
LAYOUTS: dict[str, Callable[[str, Tensor], Tensor]] = {
    "as they come": lambda name, x: x,
    "lanes together": lambda name, x: transposed(x) if name in OVER_TIME else x,
    "states together": lambda name, x: states_last(x) if name in ROWS else x,
    "lanes and states together": lambda name, x: transposed(x) if name in OVER_TIME else states_last(x) if name in ROWS else x,
    "one of them across": lambda name, x: transposed(x) if name == "z" else x,
    "one element off": lambda name, x: one_off(x) if name in (*OVER_TIME, *ROWS) else x,
    "one of them off": lambda name, x: one_off(x) if name == "delta" else x,
    "rows off": lambda name, x: one_off(x) if name in ROWS else x,
    "lanes together, off": lambda name, x: one_off(x.transpose(1, 2).contiguous()).transpose(1, 2) if name in OVER_TIME else x,
    "longer rows": lambda name, x: padded(x) if name in (*OVER_TIME, *ROWS) else x,
    "every other step": lambda name, x: x.repeat_interleave(2, -1)[..., ::2] if name in (*OVER_TIME, *ROWS) else x,
    "one row for all lanes": lambda name, x: x[:, :1].expand_as(x) if name == "z" else x,
}
LAID = RecurrentSchedule(lanes=16, split=2, tile=16, history=4)   # one kernel for all layouts: strides are arguments


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize(("pass_", "dtype"), [("forward", "float32"), ("forward", "bfloat16"), ("backward", "bfloat16")])
def test_layouts(pass_: str, dtype: str, layout: str, run: Callable[..., dict[str, Tensor]]) -> None:
    """Copies of 16 bytes where address, stride and length allow, single elements elsewhere, nothing beside what is there."""
    for case in (WHOLE, WHOLE | dict(d=21, l=45)):
        problem = Problem.of("selective_scan", case, dtype, pass_)
        inputs = {name: LAYOUTS[layout](name, x) for name, x in problem.inputs().items()}
        assert {n: x.shape for n, x in inputs.items()} == {n: x.shape for n, x in problem.inputs().items()}
        for schedule in (LAID, replace(LAID, helpers=1)) if pass_ == "forward" else (LAID,):
            run(problem, schedule, inputs)


@pytest.mark.parametrize("layout", ["as they come", "lanes together", "one element off"])
def test_tiles_within_warps(layout: str, run: Callable[..., dict[str, Tensor]]) -> None:
    """Two warps that meet only for rows where groups run along time, and at every phase where they run along lanes."""
    schedule = RecurrentSchedule(lanes=16, split=4, tile=16, history=4)
    for case in (WHOLE | dict(n=8), WHOLE | dict(d=21, l=45, n=8)):
        problem = Problem.of("selective_scan", case, "bfloat16", "backward")
        assert "if (along_time) __syncwarp" in source_of(problem, "cuda:sm_90:cuda", schedule)[0].text
        run(problem, schedule, {name: LAYOUTS[layout](name, x) for name, x in problem.inputs().items()})


@pytest.mark.parametrize("layout", ["as they come", "lanes together", "one element off", "longer rows"])
def test_blocks_smaller_than_a_copy(layout: str, run: Callable[..., dict[str, Tensor]]) -> None:
    """Four lanes by four steps of two bytes: 8 bytes at once at most, and every other block starts off a 16-byte address."""
    problem = Problem.of("selective_scan", WHOLE, "bfloat16", "backward")
    inputs = {name: LAYOUTS[layout](name, x) for name, x in problem.inputs().items()}
    run(problem, RecurrentSchedule(lanes=4, split=4, tile=4, history=2, segment=16), inputs)


def test_results_off_by_one_element(run: Callable[..., dict[str, Tensor]]) -> None:
    """A result is written where it is asked for, and its neighbours stay."""
    problem = Problem.of("selective_scan", WHOLE, "bfloat16")
    room = torch.full((WHOLE["b"] * WHOLE["d"] * WHOLE["l"] + 2,), 7.0, dtype=torch.bfloat16)
    y = room[1:-1].view(WHOLE["b"], WHOLE["d"], WHOLE["l"])
    run(problem, LAID, problem.inputs(), {"y": y})
    assert room[0] == 7.0 and room[-1] == 7.0 and not bool((y == 7.0).all())


# -- an architecture without asynchronous copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pass_", ["forward", "backward", "step"])
def test_without_asynchronous_copies(pass_: str) -> None:
    """sm_75 copies by loads and stores; newer ones by cp.async, except in a step, which stages nothing."""
    problem = Problem.of("selective_scan", dict(b=1, d=32, l=64, n=4), "bfloat16", pass_, z=None, D=None)
    schedule = StepSchedule(lanes=32) if pass_ == "step" else RecurrentSchedule(lanes=32, tile=8, history=4)
    source, turing = source_of(problem, "cuda:sm_75:cuda", schedule)
    found = build_cuda.resources(source, turing)
    assert 0 < found["registers"] <= 255 and found["spills"] == 0
    assert "cp.async" not in build_cuda.assembly(source, turing)
    assert ("cp.async" in build_cuda.assembly(source, HOPPER)) == (pass_ != "step")


def test_exponentials_by_polynomials(monkeypatch: pytest.MonkeyPatch, run: Callable[..., dict[str, Tensor]]) -> None:
    """One step of so many takes its exponentials from a polynomial; where they vanish, and where they are no numbers, too."""
    problem = Problem.of("selective_scan", dict(b=1, d=16, l=40, n=4, g=1), "float32")
    for every in (1, 4):
        schedule = RecurrentSchedule(lanes=16, split=2, tile=16, history=8, polynomial=every)
        run(problem, schedule, problem.inputs())
        assert f"exp2_either<{every}>(j, " in Executable(problem.graph(), HOPPER, schedule).source(4).text
    inputs = problem.inputs()
    inputs["A"][:, 0] = -1e6
    inputs["delta"][0, 3, 7] = float("nan")
    made = Executable(problem.graph(), HOPPER, schedule)(inputs)["last_state"]
    assert made[0, 3].isnan().all() and made.isnan().sum() == 4
    by = Executable(problem.graph(), HOPPER, replace(schedule, polynomial=0))(inputs)["last_state"]
    assert (made - by).nan_to_num().norm() < 1e-6 * by.nan_to_num().norm()
