"""Convolutions by matrix products on the GPU that is here, against the oracle: lengths, gates, kernels both ways, tiles, the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scanc.codegen.triton_convolution_run import NOT_FOR_GRADIENTS
from scanc.compiler import default_schedule, program
from scanc.ops import fft_conv
from scanc.ops.hippo import modes
from scanc.ops.s4d import METHODS, s4d_convolution, s4d_kernel
from scanc.powers import powers_sum
from scanc.problem import Problem
from scanc.schedule import ConvolutionSchedule
from tests.checks import normal, relative
from tests.gpu.convolutions import GATES, PASSES, holds_on
from tests.gpu.test_chunked import here

BARS = {"bfloat16": 8e-3, "float16": 1.5e-3, "float32": 1e-6}


def holds(problem: Problem, schedule: ConvolutionSchedule | None = None) -> None:
    holds_on(here(), BARS, problem, schedule)


@pytest.mark.parametrize("length", [1, 100, 1024, 1500, 4096, 4099, 20011])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("pass_", PASSES)
def test_any_length(pass_: str, dtype: str, length: int) -> None:
    holds(Problem.of("fft_conv", dict(b=3, d=5, l=length), dtype, pass_))


@pytest.mark.parametrize(("length", "outer", "inner", "warps"), [(700, 64, 16, 4), (3000, 64, 64, 4), (9001, 128, 64, 8)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("pass_", PASSES)
def test_gates_and_kernels_both_ways(pass_: str, dtype: str, length: int, outer: int, inner: int, warps: int) -> None:
    schedule = ConvolutionSchedule(outer=outer, inner=inner, warps=warps, walk=2, ahead=0, operands=dtype)
    holds(Problem.of("fft_conv", dict(b=3, d=5, l=length), dtype, pass_, **GATES), schedule)


FORWARD_TILES = [(16, 16, 4), (64, 16, 4), (64, 32, 4), (64, 64, 4), (128, 16, 8), (128, 32, 8), (128, 64, 8)]
TILES = [(p, *t) for p in PASSES for t in FORWARD_TILES if p == "forward" or t[:2] not in NOT_FOR_GRADIENTS]


@pytest.mark.parametrize("operands", ["float16", "bfloat16"])
@pytest.mark.parametrize(("pass_", "outer", "inner", "warps"), TILES, ids=str)
def test_tiles(pass_: str, outer: int, inner: int, warps: int, operands: str) -> None:
    problem = Problem.of("fft_conv", dict(b=5, d=4, l=outer * inner - 3), "bfloat16", pass_)
    for rows, ahead in ((1, 1), (2, 0)) if outer * inner < 2048 else ((1, 0),):
        holds(problem, ConvolutionSchedule(outer=outer, inner=inner, rows=rows, walk=2, ahead=ahead, warps=warps, operands=operands))


TILED = [dict(outer=64, rows=16), dict(outer=64, rows=64, ahead=2), dict(outer=128, rows=64, warps=8, ahead=2)]
LONG = [(10000, 64, 16, 4), (20011, 32, 32, 4), (65536, 64, 32, 4), (131072, 64, 64, 8)]


@pytest.mark.parametrize("length", [64, 100, 129, 500])
@pytest.mark.parametrize("fields", TILED, ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("pass_", PASSES)
def test_toeplitz(pass_: str, dtype: str, fields: dict[str, Any], length: int) -> None:
    gates = GATES if fields["rows"] == 16 else {}
    schedule = ConvolutionSchedule(route="toeplitz", operands=dtype, **fields)
    holds(Problem.of("fft_conv", dict(b=37, d=5, l=length), dtype, pass_, **gates), schedule)


@pytest.mark.parametrize("length", [1, 13, 40])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("pass_", PASSES)
def test_direct(pass_: str, dtype: str, length: int) -> None:
    holds(Problem.of("fft_conv", dict(b=9, d=5, l=length), dtype, pass_), ConvolutionSchedule(route="direct", outer=16, rows=4, walk=2))


@pytest.mark.parametrize(("length", "outer", "inner", "warps"), LONG)
@pytest.mark.parametrize("pass_", PASSES)
def test_passes(pass_: str, length: int, outer: int, inner: int, warps: int) -> None:
    gates = GATES if length < 65536 else {}
    problem = Problem.of("fft_conv", dict(b=2, d=5, l=length), "float16", pass_, **gates)
    holds(problem, ConvolutionSchedule(route="passes", outer=outer, inner=inner, warps=warps))


@pytest.mark.parametrize(("length", "outer", "inner"), [(700, 64, 16), (3000, 64, 16), (2000, 64, 32)])
@pytest.mark.parametrize("pass_", PASSES)
def test_pairs_of_float16(pass_: str, length: int, outer: int, inner: int) -> None:
    if pass_ == "forward" or (outer, inner) not in NOT_FOR_GRADIENTS:
        schedule = ConvolutionSchedule(outer=outer, inner=inner, walk=2, ahead=0, operands="float32")
        holds(Problem.of("fft_conv", dict(b=3, d=5, l=length), "float32", pass_), schedule)


@pytest.mark.parametrize("taps", [4, 64])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("pass_", PASSES)
def test_few_taps(pass_: str, dtype: str, taps: int) -> None:
    problem = Problem.of("fir_conv", dict(b=3, d=5, l=1000, w=taps), dtype, pass_)
    inputs, graph = problem.inputs("cuda"), problem.graph()
    made = program(graph, here(), default_schedule(graph, here(), problem.sizes))
    for name, error in problem.errors(made(inputs), problem.oracle(inputs)).items():
        assert error <= BARS[dtype], f"{name} has relative error {error:.2e}"


def test_kernels_of_state_spaces() -> None:
    x = torch.complex(-0.01 * normal(3, 32, seed=0).abs().double(), 3.0 * normal(3, 32, seed=1).double()).cuda()
    v = torch.complex(normal(2, 3, 32, seed=2), normal(2, 3, 32, seed=3)).cuda()
    for length, first in ((1, 0), (300, 1), (50000, 0)):
        assert relative(powers_sum(v, x, length, first), powers_sum(v.to(torch.complex128), x, length, first)) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_kernels_of_state_spaces_from_their_parameters(method: str) -> None:
    A = modes("lin", 5, 64).cuda()
    A = torch.complex(A.real - 1.0, 0.01 * A.imag) if method == "euler" else A  # whose powers do not grow
    given = [0.001 + 0.1 * normal(5, seed=0).abs().cuda(), A, *(torch.complex(normal(5, 32, seed=s), normal(5, 32, seed=s + 1)).cuda()
                                                                for s in (1, 3))]
    come = normal(5, 20000, seed=5).cuda()
    leaves = [x.requires_grad_() for x in given]
    wide = [x.detach().to(torch.complex128 if x.is_complex() else torch.float64).requires_grad_() for x in given]
    K, truth = s4d_kernel(*leaves, 20000, method=method), s4d_kernel(*wide, 20000, method=method)
    assert relative(K, truth) < 1e-6
    for x, wanted in zip(torch.autograd.grad(K, leaves, come), torch.autograd.grad(truth, wide, come.double()), strict=True):
        assert relative(x, wanted) < 1e-5


@pytest.mark.parametrize("gradients", [False, True])
def test_a_state_space_by_convolution_has_no_tensor_of_states_and_time(gradients: bool) -> None:
    d, n, length = 64, 64, 1 << 16
    A = modes("lin", d, 2 * n).cuda()
    free = [torch.complex(normal(d, n, seed=s), normal(d, n, seed=s + 1)).cuda().requires_grad_(gradients) for s in (1, 3)]
    u, dt = normal(1, d, length, seed=0).cuda().requires_grad_(gradients), torch.full((d,), 0.01, device="cuda")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    y, last = s4d_convolution(u, dt, A, *free)
    if gradients:
        torch.autograd.grad((y, last), (u, *free), (torch.ones_like(y), torch.ones_like(last)))
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 8 * d * n * length / 4  # a quarter of the smallest such tensor


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("length", [1024, 9000])
def test_the_same_bits_every_time(pass_: str, length: int) -> None:
    problem = Problem.of("fft_conv", dict(b=6, d=16, l=length), "bfloat16", pass_)
    inputs, graph = problem.inputs("cuda"), problem.graph()
    made = program(graph, here(), default_schedule(graph, here(), problem.sizes))
    first = made(inputs)
    assert all(torch.equal(made(inputs)[name], x) for _ in range(5) for name, x in first.items())


@pytest.mark.parametrize("length", [16384, 1 << 20])
def test_more_elements_than_32_bits_count(length: int) -> None:
    d = 520
    b = (1 << 31) // (d * length) + 1
    u = torch.empty(b, d, length, dtype=torch.float16, device="cuda").normal_()
    k = torch.empty(d, length, device="cuda").normal_() * length**-0.5
    y = fft_conv(u, k)
    for row, channel in ((0, 0), (b - 1, d - 1)):
        U, K = (torch.fft.rfft(x.double(), n=2 * length) for x in (u[row, channel], k[channel]))
        assert relative(y[row, channel], torch.fft.irfft(U * K, n=2 * length)[:length]) < 1.5e-3
    if length > 16384:
        return
    (dk,) = torch.autograd.grad(fft_conv(u, k.requires_grad_()), k, u)
    U = torch.fft.rfft(u[:, -1].double(), n=2 * length)
    assert relative(dk[-1], torch.fft.irfft((U * U.conj()).sum(0), n=2 * length)[:length]) < 1.5e-3


def test_through_autograd() -> None:
    u, k, D = normal(3, 5, 1000, seed=0).cuda().bfloat16(), normal(5, 1000, seed=1).cuda() * 0.03, normal(5, seed=2).cuda()
    leaves = [x.requires_grad_() for x in (u, k, D)]
    y = fft_conv(u, k, D)
    come = normal(3, 5, 1000, seed=3).cuda().bfloat16()
    found = torch.autograd.grad(y, leaves, come)
    wide = [x.detach().double().requires_grad_() for x in (u, k, D)]
    wanted_y = fft_conv(*wide)
    wanted = torch.autograd.grad(wanted_y, wide, come.double())
    assert relative(y, wanted_y) < 6e-3 and all(relative(a, b) < 8e-3 for a, b in zip(found, wanted, strict=True))
