"""Convolutions on a CPU, tap by tap, against the oracle; chosen where taps are few."""

from __future__ import annotations

from typing import Any

import pytest

from scanc.compiler import compile_graph, default_schedule, program
from scanc.convolution_direct import DirectExecutable
from scanc.convolution_fft import FftExecutable
from scanc.problem import Problem
from scanc.schedule import ConvolutionSchedule
from scanc.stages import stages
from scanc.target import Target

CPU = Target("cpu", "native", "cpp")
GATES: dict[str, Any] = {"pregate": "given", "postgate": "given"}
CASES = [("fft_conv", dict(b=3, d=5, l=1), {}), ("fft_conv", dict(b=3, d=5, l=129), {"k_rev": "given", **GATES}),
         ("fft_conv", dict(b=2, d=3, l=300), {"mask": "given"}), ("fir_conv", dict(b=2, d=3, l=500, w=7), GATES),
         ("fir_conv", dict(b=2, d=3, l=100, w=300), {})]


@pytest.mark.parametrize(("op", "sizes", "given"), CASES)
@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_against_the_oracle(op: str, sizes: dict[str, int], given: dict[str, Any], pass_: str, dtype: str) -> None:
    problem = Problem.of(op, sizes, dtype, pass_, **given)
    inputs = problem.inputs()
    made, wanted = program(problem.graph(), CPU, ConvolutionSchedule(route="direct"))(inputs), problem.oracle(inputs)
    for name, error in problem.errors(made, wanted).items():
        assert error <= (1e-6 if dtype == "float32" else 6e-3), f"{problem}: {name} has relative error {error:.2e}"
    assert any(bool(x.any()) for x in wanted.values())


@pytest.mark.parametrize(("pass_", "taps", "kind"), [("forward", 200, DirectExecutable), ("backward", 200, FftExecutable),
                                                     ("backward", 100, DirectExecutable), ("forward", 3000, FftExecutable)])
def test_few_taps_are_summed(pass_: str, taps: int, kind: type) -> None:
    problem = Problem.of("fir_conv", dict(b=2, d=4, l=4096, w=taps), "float32", pass_)
    made = compile_graph(problem.graph(), CPU, default_schedule(problem.graph(), CPU, problem.sizes))
    assert type(made) is kind


def test_its_source_is_shown() -> None:
    problem = Problem.of("fir_conv", dict(b=2, d=4, l=64, w=4), "float32")
    assert "tap by tap" in stages(problem.graph(), CPU, sizes=problem.sizes)["source"]
