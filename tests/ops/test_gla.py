"""gla on the CPU's kernels against the oracle, and against what it is a special or a general case of."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scanc.ops import gla, ssd
from tests.checks import holds, normal, relative


def sample(b: int = 2, l: int = 63, h: int = 3, n: int = 6, p: int = 5, dtype: torch.dtype = torch.float32,
           **change: Any) -> dict[str, Any]:
    return {
        "q": normal(b, l, h, n, seed=0, dtype=dtype),
        "k": normal(b, l, h, n, seed=1, dtype=dtype),
        "v": normal(b, l, h, p, seed=2, dtype=dtype),
        "g": torch.nn.functional.logsigmoid(normal(b, l, h, n, seed=3, dtype=dtype)) / 4,
        "initial_state": normal(b, h, n, p, seed=4),
    } | change


@pytest.mark.parametrize(("b", "l", "h", "n", "p"), [(2, 63, 3, 6, 5), (1, 1, 1, 1, 1), (1, 1000, 1, 16, 3), (1, 2049, 2, 3, 4)])
def test_every_result_and_gradient_of_any_shape(b: int, l: int, h: int, n: int, p: int) -> None:
    holds(gla, sample(b, l, h, n, p))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_a_matter_of_storage(dtype: torch.dtype) -> None:
    holds(gla, sample(l=100, n=16, p=16, dtype=dtype))


def test_the_scale_is_one_over_the_root_of_n_unless_given() -> None:
    x = sample(initial_state=None)
    assert relative(gla(**x, scale=1.0)[0], gla(**x)[0] * 6**0.5) < 1e-6


def test_decays_shared_by_a_heads_keys_make_it_ssd() -> None:
    x = sample(initial_state=None)
    shared = x["g"][..., :1]
    y, last = gla(**{**x, "g": shared.expand_as(x["g"]).contiguous()}, scale=1.0)
    heads = [ssd(x["v"][:, :, [i]] / -shared[:, :, [i]], -shared[:, :, i], torch.full((1,), -1.0), x["k"][:, :, [i]], x["q"][:, :, [i]])
             for i in range(3)]
    assert relative(y, torch.cat([y for y, _ in heads], 2)) < 1e-5
    assert relative(last, torch.cat([state for _, state in heads], 1).mT) < 1e-5


def test_time_in_pieces_and_steps() -> None:
    x = sample(l=20)
    y, last = gla(**x)
    parts = {k: v for k, v in x.items() if k != "initial_state"}
    first, state = gla(**{k: v[:, :13] for k, v in parts.items()}, initial_state=x["initial_state"])
    second, end = gla(**{k: v[:, 13:] for k, v in parts.items()}, initial_state=state)
    assert relative(torch.cat([first, second], 1), y) < 1e-5 and relative(end, last) < 1e-5
    state = x["initial_state"].clone()
    steps = [gla.step(state, *(parts[k][:, t] for k in ("q", "k", "v", "g"))) for t in range(20)]
    assert relative(torch.stack(steps, 1), y) < 1e-5 and relative(state, last) < 1e-5


def test_opcheck() -> None:
    x = sample(b=1, l=5, h=1, n=2, p=2)
    torch.library.opcheck(torch.ops.scanc.gla, tuple(v.requires_grad_() for v in x.values()))
