"""Float32 convolutions by CUDA kernels on the GPU that is here, against the oracle: blocks, passes, gates, lengths to 2^22."""

from __future__ import annotations

import pytest
import torch

from scanc.compiler import default_schedule, program
from scanc.ops import fft_conv
from scanc.problem import Problem
from scanc.schedule import ConvolutionSchedule
from scanc.target import Target
from tests.checks import normal, relative
from tests.gpu.convolutions import GATES, PASSES, holds_on

BARS = {"bfloat16": 5e-3, "float16": 6e-4, "float32": 1e-6}


def here() -> Target:
    major, minor = torch.cuda.get_device_capability()
    return Target("cuda", f"sm_{major}{minor}", "cuda")


def holds(problem: Problem, schedule: ConvolutionSchedule | None = None) -> None:
    holds_on(here(), BARS, problem, schedule)


@pytest.mark.parametrize("length", [17, 64, 100, 300, 512, 784, 1024, 1134, 2048, 3000, 4096, 4099, 14113, 16384, 65536])
@pytest.mark.parametrize("pass_", PASSES)
def test_any_length(pass_: str, length: int) -> None:
    holds(Problem.of("fft_conv", dict(b=3, d=5, l=length), "float32", pass_))


BLOCKS = [(16, 16, 1), (32, 16, 1), (32, 16, 2), (64, 16, 1), (64, 16, 2), (64, 32, 4), (64, 64, 8), (64, 64, 4), (128, 64, 8),
          (128, 128, 16)]


@pytest.mark.parametrize(("outer", "inner", "warps"), BLOCKS)
@pytest.mark.parametrize("pass_", PASSES)
def test_blocks(pass_: str, outer: int, inner: int, warps: int) -> None:
    for length in (outer * inner - 3, 3 * outer * inner + 5):
        holds(Problem.of("fft_conv", dict(b=5, d=4, l=length), "float32", pass_),
              ConvolutionSchedule(route="radix", outer=outer, inner=inner, warps=warps, walk=2, operands="float32"))


@pytest.mark.parametrize(("outer", "inner", "warps", "registers"), [(16, 16, 1, 64), (64, 16, 2, 128), (64, 32, 4, 128), (64, 64, 8, 128)])
def test_sums_over_rows_in_shared_memory(outer: int, inner: int, warps: int, registers: int) -> None:
    schedule = ConvolutionSchedule(route="radix", outer=outer, inner=inner, warps=warps, registers=registers, walk=4, apart=1,
                                   operands="float32")
    for dtype, gates in (("float32", {}), ("float16", {}), ("float32", GATES)):
        holds(Problem.of("fft_conv", dict(b=9, d=4, l=outer * inner - 3), dtype, "backward", **gates), schedule)


@pytest.mark.parametrize("route", ["radix", "passes"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("pass_", PASSES)
def test_gates_and_kernels_both_ways(pass_: str, dtype: str, route: str) -> None:
    problem = Problem.of("fft_conv", dict(b=3, d=5, l=5000), dtype, pass_, **GATES)
    holds(problem, ConvolutionSchedule(route=route, outer=64, inner=16, warps=1, walk=2, operands="float32"))


@pytest.mark.parametrize(("length", "outer", "inner", "warps"), [(3000, 16, 16, 1), (65536, 64, 64, 8), (40000, 64, 16, 2),
                                                                 (1 << 18, 64, 64, 8), (300000, 128, 128, 16)])
@pytest.mark.parametrize("pass_", PASSES)
def test_passes(pass_: str, length: int, outer: int, inner: int, warps: int) -> None:
    holds(Problem.of("fft_conv", dict(b=2, d=5, l=length), "float32", pass_),
          ConvolutionSchedule(route="passes", outer=outer, inner=inner, warps=warps, operands="float32"))


@pytest.mark.parametrize("taps", [17, 64, 3000])
@pytest.mark.parametrize("pass_", PASSES)
def test_few_taps(pass_: str, taps: int) -> None:
    holds(Problem.of("fir_conv", dict(b=3, d=5, l=10000, w=taps), "float32", pass_))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("power", [20, 21, 22])
def test_up_to_four_million_steps(power: int, dtype: str) -> None:
    """Forward and backward through autograd, by the routes that are chosen, against transforms in double precision."""
    length = 1 << power
    u, come = (normal(2, 2, length, seed=s).cuda().to(getattr(torch, dtype)) for s in (0, 1))
    k = normal(2, length, seed=2).cuda() * torch.exp(-4.0 * torch.arange(length, device="cuda") / length) / length**0.5
    leaves = [u.requires_grad_(), k.requires_grad_()]
    y = fft_conv(u, k)
    du, dk = torch.autograd.grad(y, leaves, come)
    n = 2 * length
    U, K, G = (torch.fft.rfft(x.detach().double(), n=n) for x in (u, k, come))
    for made, wanted in ((y, U * K), (du, G * K.conj()), (dk, (G * U.conj()).sum(0))):
        assert relative(made, torch.fft.irfft(wanted, n=n)[..., :length]) < (1e-6 if dtype == "float32" else 1.5e-3)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("length", [1024, 20000])
def test_the_same_bits_every_time(pass_: str, length: int) -> None:
    problem = Problem.of("fft_conv", dict(b=6, d=16, l=length), "float32", pass_)
    inputs, graph = problem.inputs("cuda"), problem.graph()
    made = program(graph, here(), default_schedule(graph, here(), problem.sizes))
    first = made(inputs)
    assert all(torch.equal(made(inputs)[name], x) for _ in range(5) for name, x in first.items())
