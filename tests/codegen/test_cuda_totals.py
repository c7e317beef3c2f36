"""Partial results added up by one CUDA kernel."""

from __future__ import annotations

import pytest
import torch

from scanc.codegen import build_cuda, cuda_totals
from scanc.codegen.cuda import CudaSource
from scanc.codegen.in_place import InPlace
from scanc.codegen.layout import Spread, Total
from scanc.compiler import Executable
from scanc.problem import Problem
from scanc.schedule import RecurrentSchedule
from tests.codegen import emulate
from tests.codegen.test_cuda import HOPPER


def kernel() -> CudaSource:
    problem = Problem.of("selective_scan", dict(b=1, d=8, l=8, n=2, g=1), "float32")
    source = Executable(problem.graph(), HOPPER, RecurrentSchedule(lanes=8, tile=8, history=4)).source(2)
    assert isinstance(source, CudaSource)
    return cuda_totals.source(source)


@pytest.mark.parametrize("backwards", [False, True], ids=["in order", "backwards"])
def test_every_count_size_and_dtype(backwards: bool) -> None:
    totals = [Total(3, 5, "float32"), Total(1, 128, "bfloat16"), Total(40, 131, "float16"), Total(16, 300, "float32"),
              Total(17, 4, "complex64"), Total(0, 6, "float32")]
    torch.manual_seed(0)
    parts = [torch.randn(t.parts, t.elements) for t in totals]
    dtypes = [torch.float32 if t.dtype == "complex64" else getattr(torch, t.dtype) for t in totals]
    results = [torch.full((t.elements,), float("nan"), dtype=d) for t, d in zip(totals, dtypes, strict=True)]
    fill = [results[0]] * (cuda_totals.MOST - len(totals))
    run = emulate.load(kernel(), HOPPER, backwards=backwards)
    run([*parts, *fill, *results, *fill], (), cuda_totals.numbers(totals), (sum(map(cuda_totals.blocks, totals)),))
    for total, part, result in zip(totals, parts, results, strict=True):
        exact = part.double().sum(0)
        limit = {"float32": 2e-7, "complex64": 2e-7, "float16": 5e-4, "bfloat16": 4e-3}[total.dtype]
        assert (result.double() - exact).norm() <= limit * exact.norm(), total


def test_parts_that_lie_between_others() -> None:
    """Steps in tiles apart, of results with one to three axes before time; what lies around them is not read."""
    spreads = [Spread(8, (), 20, 8, 40), Spread(16, ((3, 160),), 12, 4, 480), Spread(8, ((2, 1000), (2, 96), (3, 32)), 16, 8, 300),
               Spread(32, ((3, 96),), 32, 4, 288, many=2, beside=8),  # pairs of tiles beside each other
               Spread(1000, ((7, 1),), 8, 8, 0, step=40)]             # the last axis is the one that lies apart
    parts, sums = 3, []
    memory = torch.full((4096,), float("nan"))
    for spread in spreads:
        shape = (parts, *(size for size, _ in spread.outer), spread.length)
        place = InPlace("checkpoint0", 4, (spread.part,), spread)
        index = place.read(torch.arange(4096.0), shape).long()
        assert index.unique().numel() == index.numel()
        values = torch.randn(index.shape, generator=torch.Generator().manual_seed(1))
        here = memory.clone()
        here[index.flatten()] = values.flatten()
        assert place.read(here, shape).equal(values) and place.view(here).storage_offset() == 4
        total = Total(parts, values[0].numel(), "float32", spread)
        result = torch.full((total.elements,), float("nan"))
        fill = [result] * (cuda_totals.MOST - 1)
        run = emulate.load(kernel(), HOPPER)
        run([place.view(here), *fill, result, *fill], (), cuda_totals.numbers([total]), (cuda_totals.blocks(total),))
        torch.testing.assert_close(result, values.sum(0).flatten(), rtol=1e-6, atol=1e-6)
        sums.append(result.norm().item())
    assert min(sums) > 1


def test_it_fits_many_a_multiprocessor() -> None:
    found = build_cuda.resources(kernel(), HOPPER)
    assert found["spills"] == 0 and found["registers"] <= 64


def test_a_dtype_it_does_not_know_is_left_to_others() -> None:
    launcher = build_cuda._Launcher(kernel(), HOPPER)
    assert launcher.totals([Total(2, 4, "int32")]) is None
