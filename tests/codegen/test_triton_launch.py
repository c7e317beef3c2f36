"""Which launches of a Triton kernel need Triton's own look at the arguments: those unlike every earlier one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from scanc.codegen.triton_launch import Launcher


class Jit:
    """Stands for a JIT function: what it is launched with, and what its compilations are."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.again: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int]) -> Callable[..., Any]:
        def launch(*arguments: Any, **options: Any) -> Jit._Compiled:
            self.asked.append((grid, *arguments))
            assert options == {"num_warps": 4}
            return Jit._Compiled(self, len(self.asked))

        return launch

    class _Compiled:
        def __init__(self, of: Jit, number: int) -> None:
            self.of, self.number = of, number

        def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., None]:
            return lambda *arguments, stream: self.of.again.append((self.number, grid, stream, *arguments))


@pytest.fixture
def jit(monkeypatch: pytest.MonkeyPatch) -> Jit:
    """With a device that is the CPU's memory."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 77, raising=False)
    return Jit()


def aligned(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    whole = torch.zeros(count + 8, dtype=dtype)
    start = -whole.data_ptr() % 16 // whole.element_size()
    return whole[start : start + count]


def test_a_like_launch_is_made_of_addresses(jit: Jit) -> None:
    launch, x, y = Launcher(jit, {"num_warps": 4}, True), aligned(8), aligned(8)
    launch(3, [x], (1, 8))
    launch(5, [y], (1, 8))
    assert len(jit.asked) == 1
    assert jit.again == [(1, (5, 1, 1), 77, y.data_ptr(), 1, 8)]


@pytest.mark.parametrize("other", ["address", "dtype", "number"])
def test_an_unlike_one_is_compiled(jit: Jit, other: str) -> None:
    launch, x = Launcher(jit, {"num_warps": 4}, True), aligned(8)
    launch(1, [x], (1, 8))
    y = {"address": x[1:], "dtype": aligned(8, torch.float16), "number": x}[other]
    numbers = (1, 16) if other == "number" else (1, 8)
    launch(1, [y], numbers)
    assert len(jit.asked) == 2 and not jit.again
    launch(1, [y], numbers)
    launch(1, [x], (1, 8))
    assert [number for number, *_ in jit.again] == [2, 1]


def test_no_programs_are_no_launch_and_many_kinds_are_forgotten(jit: Jit, monkeypatch: pytest.MonkeyPatch) -> None:
    launch, x = Launcher(jit, {"num_warps": 4}, True), aligned(8)
    launch(0, [x], (8,))
    assert not jit.asked
    monkeypatch.setattr(Launcher, "MOST", 2)
    for n in (1, 2, 3, 1):
        launch(1, [x], (n,))
    assert len(jit.asked) == 4 and not jit.again
    launch(1, [x], (1,))
    assert len(jit.again) == 1
