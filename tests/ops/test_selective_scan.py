"""selective_scan on the CPU's kernels, every way to call it, against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from scanc.ops import selective_scan
from tests.checks import close, holds, normal, relative, wide


def sample(b: int = 2, d: int = 24, l: int = 63, n: int = 3, g: int = 2, dtype: torch.dtype = torch.float32, **change: Any) -> dict[str, Any]:
    """Every input but seq_idx; ``change`` replaces some (None leaves one out)."""
    made: dict[str, Any] = {
        "u": normal(b, d, l, seed=0, dtype=dtype), "delta": normal(b, d, l, seed=1, dtype=dtype, scale=0.5),
        "A": -torch.exp(normal(d, n, seed=2, scale=0.7)), "B": normal(b, g, n, l, seed=3, dtype=dtype), "C": normal(b, g, n, l, seed=4, dtype=dtype),
        "D": normal(d, seed=5), "z": normal(b, d, l, seed=6, dtype=dtype), "delta_bias": normal(d, seed=7) - 2.0,
        "initial_state": normal(b, d, n, seed=8), "delta_softplus": True,
    }
    return made | change


def bare(**sizes: Any) -> dict[str, Any]:
    """Only what is required; the delta is positive, as a softplus makes it."""
    x = sample(**sizes, D=None, z=None, delta_bias=None, initial_state=None, delta_softplus=False)
    return x | {"delta": x["delta"].abs()}


# -- shapes, one kernel for them all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("b", "d", "l", "g"), [(2, 24, 63, 2), (1, 1, 1, 1), (3, 30, 1, 3), (1, 17, 1000, 1), (2, 6, 2049, 6), (1, 50, 64, 2), (2, 33, 65, 1)])
def test_every_result_and_gradient_of_any_shape(b: int, d: int, l: int, g: int) -> None:
    holds(selective_scan, sample(b, d, l, g=g))


@pytest.mark.parametrize("n", [1, 16, 128])
def test_state_sizes(n: int) -> None:
    holds(selective_scan, sample(d=20, l=70, n=n))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_a_matter_of_storage(dtype: torch.dtype) -> None:
    y, state = holds(selective_scan, sample(l=100, dtype=dtype))
    assert y.dtype == dtype and state.dtype == torch.float32


def test_required_inputs_alone() -> None:
    y, state = holds(selective_scan, bare(), heard=(0,))
    assert relative(y, torch.zeros_like(y)) > 1  # the comparison is of something
