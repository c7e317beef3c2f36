"""State spaces without a time axis, a chunk at once, on the GPU that is here: against the oracle, and beside the other forms."""

from __future__ import annotations

import pytest

from scanc.codegen import build_cuda
from scanc.compiler import compile_graph, default_schedule
from scanc.lti_chunked import LtiChunkedExecutable
from scanc.problem import Problem
from scanc.schedule import ChunkedSchedule
from scanc.target import Target
from tests.checks import relative
from tests.gpu.test_chunked import here

BACKENDS = ["triton", *(["cuda"] if build_cuda.available() else [])]


def target(backend: str) -> Target:
    return here() if backend == "triton" else Target("cuda", here().arch, "cuda")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize("length", [1, 64, 1000])
def test_against_the_oracle(length: int, pass_: str, backend: str) -> None:
    problem = Problem.of("s4d", dict(b=2, d=24, l=length, n=16), pass_=pass_, initial_state="given", cotangents="all")
    made, inputs = compile_graph(problem.graph(), target(backend), ChunkedSchedule()), problem.inputs("cuda")
    assert isinstance(made, LtiChunkedExecutable)
    wanted = problem.oracle(inputs)
    for name, error in problem.errors(made(inputs), wanted).items():
        assert error <= 1e-5, f"{name} has relative error {error:.2e}"
    assert any(bool(x.any()) for x in wanted.values())


@pytest.mark.parametrize("form", ["recurrent", "convolution"])
def test_it_is_the_other_forms(form: str) -> None:
    problem = Problem.of("s4d", dict(b=2, d=24, l=3000, n=16), initial_state="given")
    graph, inputs = problem.graph(), problem.inputs("cuda")
    found = compile_graph(graph, here(), ChunkedSchedule(chunk=128))(inputs)
    other = compile_graph(graph, here(), default_schedule(graph, here(), problem.sizes, form))(inputs)
    assert all(relative(found[name], other[name]) < 1e-5 for name in found)
