"""linear_recurrence on the CPU's kernels against the oracle; with one number of state a channel it is the cheapest op to vary."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scanc.ops import linear_recurrence
from tests.checks import close, holds, normal


def sample(b: int = 2, d: int = 24, l: int = 63, dtype: torch.dtype = torch.float32, **change: Any) -> dict[str, Any]:
    return {
        "a": torch.sigmoid(normal(b, d, l, seed=0) + 2).to(dtype),
        "b": normal(b, d, l, seed=1, dtype=dtype),
        "initial_state": normal(b, d, seed=2),
    } | change


@pytest.mark.parametrize(("b", "d", "l"), [(2, 24, 63), (1, 1, 1), (3, 31, 1000), (2, 7, 2049)])
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
def test_any_shape_and_direction(b: int, d: int, l: int, reverse: bool) -> None:
    holds(linear_recurrence, sample(b, d, l, reverse=reverse))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_a_matter_of_storage(dtype: torch.dtype) -> None:
    holds(linear_recurrence, sample(l=200, dtype=dtype))


def test_from_zero() -> None:
    h, _ = holds(linear_recurrence, sample(initial_state=None), heard=(0,))
    assert torch.equal(h[..., 0], sample()["b"][..., 0])


def test_it_is_the_loop() -> None:
    x = sample(l=40)
    h, want = x["initial_state"].double(), []
    for t in range(40):
        h = x["a"][..., t].double() * h + x["b"][..., t].double()
        want.append(h)
    found, last = linear_recurrence(**x)
    close(found, torch.stack(want, -1), {torch.float32: 1e-6})
    close(last, h, {torch.float32: 1e-6})


def test_steps_are_the_scan() -> None:
    x = sample(l=10)
    h, last = linear_recurrence(**x)
    state = x["initial_state"].clone()
    steps = [linear_recurrence.step(state, x["a"][..., t], x["b"][..., t]) for t in range(10)]
    close(torch.stack(steps, -1), h, {torch.float32: 1e-6})
    close(state, last, {torch.float32: 1e-6})


def test_growing_and_vanishing_transitions() -> None:
    """Transitions of 0, of 1 and above 1 are transitions like any other."""
    x = sample(l=30)
    x["a"][0, :5] = 0.0
    x["a"][0, 5:10] = 1.0
    x["a"][1] = 1.5
    h, _ = holds(linear_recurrence, x)
    assert torch.equal(h[0, :5], x["b"][0, :5])
