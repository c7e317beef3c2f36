"""Chunked kernels of decays a key on the GPU that is here, against the oracle."""

from __future__ import annotations

import pytest
import torch

from scanc.compiler import program
from scanc.problem import Problem
from scanc.schedule import ChunkedSchedule
from tests.gpu.test_chunked import here, holds

PASSES = ("forward", "backward")


@pytest.mark.parametrize("length", [1, 63, 1000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("op", ["gla", "rwkv6"])
@pytest.mark.parametrize("pass_", PASSES)
def test_lengths_and_dtypes(pass_: str, op: str, dtype: str, length: int) -> None:
    holds(Problem.of(op, dict(b=2, l=length, h=3, p=17, n=24), dtype, pass_), ChunkedSchedule(chunk=32, chunk_warps=4))


@pytest.mark.parametrize("length", [1, 300])
def test_gradients_of_initial_states(length: int) -> None:
    holds(Problem.of("rwkv6", dict(b=2, l=length, h=3, p=17, n=24), pass_="backward", initial_state="given", cotangents="all"),
          ChunkedSchedule(chunk=32, chunk_warps=4))


@pytest.mark.parametrize("schedule", [
    ChunkedSchedule(chunk_warps=8), ChunkedSchedule(chunk=32, rows=32, segment=128), ChunkedSchedule(chunk=16, pipeline=3), None,
], ids=str)
@pytest.mark.parametrize("pass_", PASSES)
def test_schedules(pass_: str, schedule: ChunkedSchedule | None) -> None:
    holds(Problem.of("gla", dict(b=2, l=777, h=2, p=128, n=64), "bfloat16", pass_), schedule)


@pytest.mark.parametrize("size", [30.0, 1e5])
@pytest.mark.parametrize(("op", "decay"), [("gla", "g"), ("rwkv6", "w")])
@pytest.mark.parametrize("pass_", PASSES)
def test_decays_of_every_size(pass_: str, op: str, decay: str, size: float) -> None:
    """From none to all at once, among a head's keys."""
    problem = Problem.of(op, dict(b=1, l=200, h=2, p=64, n=64), "bfloat16", pass_)
    inputs = problem.inputs("cuda")
    inputs[decay] = (inputs[decay] * torch.linspace(0.0, size, 64, device="cuda")).to(inputs[decay].dtype)
    found, wanted = program(problem.graph(), here(), ChunkedSchedule(chunk=32))(inputs), problem.oracle(inputs)
    assert all(bool(torch.isfinite(x).all()) for x in found.values())
    assert all(e < 2e-2 for e in problem.errors(found, wanted).values())


@pytest.mark.parametrize("pass_", PASSES)
def test_the_same_bits_every_time(pass_: str) -> None:
    problem = Problem.of("gla", dict(b=2, l=512, h=8, p=64, n=64), "bfloat16", pass_)
    made, inputs = program(problem.graph(), here(), ChunkedSchedule(chunk=32, segment=128)), problem.inputs("cuda")
    first = made(inputs)
    for _ in range(10):
        again = made(inputs)
        assert all(torch.equal(again[name], first[name]) for name in first)
