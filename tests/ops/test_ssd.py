"""ssd on the CPU's kernels against the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from scanc.ops import selective_scan, ssd
from tests.checks import close, holds, normal, relative


def sample(
    b: int = 2, l: int = 63, h: int = 4, p: int = 9, n: int = 3, g: int = 2, dtype: torch.dtype = torch.float32, **change: Any
) -> dict[str, Any]:
    return {
        "x": normal(b, l, h, p, seed=0, dtype=dtype),
        "dt": normal(b, l, h, seed=1, dtype=dtype, scale=0.5),
        "A": -torch.exp(normal(h, seed=2)),
        "B": normal(b, l, g, n, seed=3, dtype=dtype),
        "C": normal(b, l, g, n, seed=4, dtype=dtype),
        "D": normal(h, seed=5),
        "z": normal(b, l, h, p, seed=6, dtype=dtype),
        "dt_bias": normal(h, seed=7) - 2.0,
        "initial_states": normal(b, h, p, n, seed=8),
        "dt_softplus": True,
    } | change


@pytest.mark.parametrize(
    ("b", "l", "h", "p", "g"), [(2, 63, 4, 9, 2), (1, 1, 1, 1, 1), (1, 1000, 3, 64, 1), (2, 2049, 2, 5, 2), (1, 65, 6, 33, 3)]
)
def test_every_result_and_gradient_of_any_shape(b: int, l: int, h: int, p: int, g: int) -> None:
    holds(ssd, sample(b, l, h, p, g=g))


@pytest.mark.parametrize("n", [1, 16, 128])
def test_state_sizes(n: int) -> None:
    holds(ssd, sample(p=16, l=50, n=n))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_a_matter_of_storage(dtype: torch.dtype) -> None:
    holds(ssd, sample(l=100, n=16, p=16, dtype=dtype))


def test_required_inputs_alone() -> None:
    x = sample(D=None, z=None, dt_bias=None, initial_states=None, dt_softplus=False)
    holds(ssd, x | {"dt": x["dt"].abs()}, heard=(0,))


def test_a_skip_for_every_position_of_the_head() -> None:
    holds(ssd, sample(D=normal(4, 9, seed=10)))


def test_sequence_indices_cut_the_past_off() -> None:
    cuts = (torch.rand(2, 130, generator=torch.Generator().manual_seed(9)) < 0.1).cumsum(-1).to(torch.int32)
    x = sample(l=130)
    y, _ = holds(ssd, x | {"seq_idx": cuts})
    assert relative(ssd(**x)[0], y) > 0.05


def test_it_is_the_selective_scan_with_one_transition_a_head() -> None:
    x = sample(z=None, D=None)
    b, l, h, p = x["x"].shape
    n = x["B"].shape[-1]
    y, state = ssd(**x)
    wide_dt = x["dt"].repeat_interleave(p, -1).transpose(1, 2)
    same, last = selective_scan(
        x["x"].reshape(b, l, h * p).transpose(1, 2),
        wide_dt,
        x["A"].repeat_interleave(p)[:, None].expand(-1, n),
        x["B"].permute(0, 2, 3, 1),
        x["C"].permute(0, 2, 3, 1),
        delta_bias=x["dt_bias"].repeat_interleave(p),
        initial_state=x["initial_states"].reshape(b, h * p, n),
        delta_softplus=True,
    )
    close(y, same.transpose(1, 2).reshape(b, l, h, p), {torch.float32: 2e-6})
    close(state, last.reshape(b, h, p, n), {torch.float32: 2e-6})


def test_steps_are_the_scan() -> None:
    x = sample(l=12)
    y, last = ssd(**x)
    state = x["initial_states"].clone()
    steps = []
    for t in range(12):
        at_t = {
            k: v[:, t] if k in ("x", "dt", "B", "C", "z") else v for k, v in x.items() if isinstance(v, Tensor) and k != "initial_states"
        }
        steps.append(ssd.step(state, **at_t, dt_softplus=True))
    close(torch.stack(steps, 1), y, {torch.float32: 1e-6})
    close(state, last, {torch.float32: 1e-6})


def test_chunks_that_hand_on_the_state_are_one_call() -> None:
    x = sample(l=200)
    y, state = ssd(**x)
    carried, parts = x["initial_states"], []
    for start, end in [(0, 1), (1, 65), (65, 129), (129, 200)]:
        part, carried = ssd(
            **{k: v[:, start:end] if k in ("x", "dt", "B", "C", "z") else v for k, v in x.items()} | {"initial_states": carried}
        )
        parts.append(part)
    close(torch.cat(parts, 1), y, {torch.float32: 1e-6})
    close(carried, state, {torch.float32: 1e-6})


def test_a_bad_number_stays_in_its_row_and_its_future() -> None:
    x = sample(b=3, l=70)
    x["x"][1, 40, 2, 5] = float("nan")
    y, state = ssd(**x)
    assert y[1, 40:, 2, 5].isnan().all() and int(y.isnan().sum()) == 30
    assert state[1, 2, 5].isnan().all() and int(state.isnan().sum()) == 3


def test_transitions_from_none_to_all() -> None:
    """dt A down to -1e4 at once, where the state is forgotten, and up to 0, where it is kept."""
    x = sample(l=300, h=5, g=1, D=None, z=None, dt_bias=None, dt_softplus=False)
    holds(ssd, x | {"dt": x["dt"].abs(), "A": -torch.tensor([0.0, 1e-3, 1.0, 1e2, 1e4])})


@pytest.mark.parametrize("softplus", [False, True])
def test_a_step_stays_within_its_limits(softplus: bool) -> None:
    """Values, and gradients that pass inside the limits only."""
    x = sample(dt_bias=None, dt_softplus=softplus)
    y, _ = holds(ssd, x | {"dt_min": 0.3, "dt_max": 0.9})
    assert relative(ssd(**x)[0], y) > 0.05
    assert torch.equal(ssd(**x, dt_min=float("-inf"), dt_max=float("inf"))[0], ssd(**x)[0])
