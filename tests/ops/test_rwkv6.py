"""rwkv6 on the CPU's kernels against the oracle, in pieces and steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scanc.ops import gla, rwkv6
from tests.checks import holds, normal, relative


def sample(b: int = 2, l: int = 63, h: int = 3, n: int = 6, p: int = 5, dtype: torch.dtype = torch.float32,
           **change: Any) -> dict[str, Any]:
    return {
        "r": normal(b, l, h, n, seed=0, dtype=dtype),
        "k": normal(b, l, h, n, seed=1, dtype=dtype),
        "v": normal(b, l, h, p, seed=2, dtype=dtype),
        "w": -torch.exp(normal(b, l, h, n, seed=3, dtype=dtype) - 2),
        "u": normal(h, n, seed=5),
        "initial_state": normal(b, h, n, p, seed=4),
    } | change


@pytest.mark.parametrize(("b", "l", "h", "n", "p"), [(2, 63, 3, 6, 5), (1, 1, 1, 1, 1), (1, 1000, 1, 16, 3), (1, 2049, 2, 3, 4)])
def test_every_result_and_gradient_of_any_shape(b: int, l: int, h: int, n: int, p: int) -> None:
    holds(rwkv6, sample(b, l, h, n, p))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_a_matter_of_storage(dtype: torch.dtype) -> None:
    holds(rwkv6, sample(l=100, n=16, p=16, dtype=dtype))


def test_it_is_gla_a_step_late_with_a_bonus() -> None:
    x = sample()
    parts = [x[name] for name in ("r", "k", "v", "w")]
    r, k, v, w = parts
    late = gla(r[:, 1:], k[:, :-1], v[:, :-1], w[:, :-1], x["initial_state"], scale=1.0)[0]
    bonus = (r * x["u"] * k).sum(-1, keepdim=True) * v
    assert relative(rwkv6(**x)[0][:, 1:] - bonus[:, 1:], late) < 1e-5


def test_time_in_pieces_and_steps() -> None:
    x = sample(l=20)
    o, last = rwkv6(**x)
    parts, u = {k: v for k, v in x.items() if k not in ("initial_state", "u")}, x["u"]
    first, state = rwkv6(**{k: v[:, :13] for k, v in parts.items()}, u=u, initial_state=x["initial_state"])
    second, end = rwkv6(**{k: v[:, 13:] for k, v in parts.items()}, u=u, initial_state=state)
    assert relative(torch.cat([first, second], 1), o) < 1e-5 and relative(end, last) < 1e-5
    state = x["initial_state"].clone()
    steps = [rwkv6.step(state, *(parts[k][:, t] for k in ("r", "k", "v", "w")), u) for t in range(20)]
    assert relative(torch.stack(steps, 1), o) < 1e-5 and relative(state, last) < 1e-5
