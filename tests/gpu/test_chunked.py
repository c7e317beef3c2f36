"""Chunked Triton kernels on the GPU that is here, against the oracle: dtypes, lengths, sizes, schedules, the same bits every time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scanc.codegen.triton_chunked_run import ChunkedExecutable
from scanc.compiler import default_schedule, program
from scanc.op import REGISTRY
from scanc.problem import Problem
from scanc.schedule import ChunkedSchedule
from scanc.target import Target
from tests.codegen.test_prologue import OWN

PASSES = ("forward", "backward")
ALL: dict[str, Any] = {"initial_states": "given", "seq_idx": "given", "cotangents": "all"}
# Where operands are stored in 16 bits, so is what is multiplied with them: states, mixed scores. Every result then has their precision,
# whatever it is stored in.
BARS = {"float32": (1e-5, 4e-5), "bfloat16": (4e-3, 1e-2), "float16": (2e-3, 5e-3)}


def here() -> Target:
    """The Triton target of the current device."""
    if torch.version.hip:
        return Target("hip", torch.cuda.get_device_properties(0).gcnArchName.split(":")[0], "triton")
    major, minor = torch.cuda.get_device_capability()
    return Target("cuda", f"sm_{major}{minor}", "triton")


def holds(problem: Problem, schedule: ChunkedSchedule | None) -> None:
    """Every result is within its problem's bar of the oracle."""
    inputs, graph = problem.inputs("cuda"), problem.graph()
    made = program(graph, here(), schedule or default_schedule(graph, here(), problem.sizes))
    assert isinstance(made, ChunkedExecutable)
    wanted = problem.oracle(inputs)
    for name, error in problem.errors(made(inputs), wanted).items():
        assert error <= BARS[problem.dtype][problem.pass_ == "backward"], f"{problem} {schedule}: {name} has relative error {error:.2e}"
    assert any(bool(x.any()) for x in wanted.values())


@pytest.mark.parametrize("length", [1, 63, 1000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("pass_", PASSES)
def test_lengths_and_dtypes(pass_: str, dtype: str, length: int) -> None:
    chunk = 32 if dtype == "float32" else 64
    given = Problem.of("ssd", dict(b=2, l=length, h=6, p=17, n=24, g=2), dtype, pass_, **ALL)
    holds(given, ChunkedSchedule(chunk=chunk, chunk_walk=2, total_walk=2))


BOTH = (
    ChunkedSchedule(), ChunkedSchedule(segment=256), ChunkedSchedule(heads=2, warps=8), ChunkedSchedule(chunk=32, rows=32, segment=128),
    ChunkedSchedule(pipeline=3, registers=168, chunk_warps=8),
    ChunkedSchedule(chunk_pipeline=2, chunk_walk=3, total_walk=3, total_pipeline=1),
    ChunkedSchedule(walk_back=1, total_walk=3), ChunkedSchedule(walk_back=1, segment=256, chunk=32, pipeline=3, total_pipeline=3),
    ChunkedSchedule(walk_back=1, span=2, segment=256, total_walk=3, total_pipeline=3),
)
LONG = ChunkedSchedule(chunk=128, warps=8)  # a backward's two states and two matrices of 128 steps are more than shared memory holds


@pytest.mark.parametrize(("pass_", "schedule"), [*((p, s) for p in PASSES for s in BOTH), ("forward", LONG)], ids=str)
def test_schedules(pass_: str, schedule: ChunkedSchedule) -> None:
    given = Problem.of("ssd", dict(b=2, l=777, h=8, p=64, n=128, g=2), "bfloat16", pass_, **ALL)
    holds(given, schedule)


@pytest.mark.parametrize(("pass_", "schedule"), [
    ("forward", ChunkedSchedule(chunk=32, segment=256, pipeline=2, scores=1)),
    ("backward", ChunkedSchedule(walk_back=1, span=2, segment=256, pipeline=1, total_walk=3, total_warps=8, total_pipeline=2)),
], ids=str)
def test_columns_in_two_tiles(pass_: str, schedule: ChunkedSchedule) -> None:
    holds(Problem.of("ssd", dict(b=2, l=777, h=8, p=64, n=256, g=2), "bfloat16", pass_, **ALL), schedule)


@pytest.mark.parametrize(("rows", "columns"), [(16, 256), (64, 256), (100, 64), (128, 128), (60, 100), (256, 16), (32, 128)])
@pytest.mark.parametrize("pass_", PASSES)
def test_sizes(pass_: str, rows: int, columns: int) -> None:
    holds(Problem.of("ssd", dict(b=1, l=130, h=2, p=rows, n=columns, g=1), "bfloat16", pass_), None)


@pytest.mark.parametrize("pass_", PASSES)
def test_looks_back(pass_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in the scan's prologue, with tiles of every tap in shared memory."""
    for op in OWN:
        monkeypatch.setitem(REGISTRY, op.name, op)
    holds(Problem.of("four_taps", dict(b=1, l=200, h=4, p=64, g=1, n=128), "bfloat16", pass_), None)


@pytest.mark.parametrize("pass_", PASSES)
def test_the_same_bits_every_time(pass_: str) -> None:
    problem = Problem.of("ssd", dict(b=2, l=1024, h=16, p=64, n=128, g=1), "bfloat16", pass_)
    made, inputs = program(problem.graph(), here(), ChunkedSchedule(segment=256, walk_back=1)), problem.inputs("cuda")
    first = made(inputs)
    for _ in range(10):
        again = made(inputs)
        assert all(torch.equal(again[name], first[name]) for name in first)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("walk_back", [0, 1])
def test_strides_that_descriptors_cannot_say(walk_back: int, pass_: str) -> None:
    """Tensors two bytes off, rows apart, as cuts of wider ones: the same results as of contiguous ones, within what they are rounded to."""
    problem = Problem.of("ssd", dict(b=2, l=200, h=4, p=64, n=128, g=2), "bfloat16", pass_)
    made, inputs = program(problem.graph(), here(), ChunkedSchedule(walk_back=walk_back)), problem.inputs("cuda")
    wanted = made(inputs)

    def off(x: torch.Tensor) -> torch.Tensor:
        wide = torch.empty((*x.shape[:-1], 2 * x.shape[-1] + 1), dtype=x.dtype, device=x.device)
        wide[..., 1 : x.shape[-1] + 1] = x
        return wide[..., 1 : x.shape[-1] + 1]

    def cut(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x], -1)[..., : x.shape[-1]]

    for change in (off, cut):
        found = made({k: change(v) if v.ndim > 2 else v for k, v in inputs.items()})
        assert all(e < 1e-3 for e in problem.errors(found, wanted).values())


@pytest.mark.parametrize("pass_", PASSES)
def test_in_a_cuda_graph(pass_: str) -> None:
    """Both streams of a backward are captured, and joined."""
    problem = Problem.of("ssd", dict(b=1, l=512, h=8, p=64, n=128, g=1), "bfloat16", pass_)
    made, inputs = program(problem.graph(), here(), ChunkedSchedule(segment=256)), problem.inputs("cuda")
    wanted = made(inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = made(inputs)
    for x in found.values():
        x.fill_(torch.nan)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)


@pytest.mark.parametrize("pass_", PASSES)
def test_extreme_decays(pass_: str) -> None:
    problem = Problem.of("ssd", dict(b=1, l=200, h=2, p=64, n=64, g=1), "bfloat16", pass_, dt_softplus=False, dt_bias=None)
    inputs = problem.inputs("cuda")
    inputs["A"], inputs["dt"] = torch.tensor([-1e4, -1.0], device="cuda"), inputs["dt"].abs()
    found, wanted = program(problem.graph(), here(), ChunkedSchedule())(inputs), problem.oracle(inputs)
    assert all(bool(torch.isfinite(x).all()) for x in found.values())
    assert all(e < 2e-2 for e in problem.errors(found, wanted).values())
