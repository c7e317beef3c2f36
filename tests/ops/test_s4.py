"""S4, diagonal but for a correction of low rank: a convolution is the recurrence, is chunks, is steps; two ways to its kernel; rates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scanc.errors import ArgumentError
from scanc.ops import s4 as module
from scanc.ops.hippo import nplr, transition
from scanc.ops.s4 import METHODS, discrete, s4, s4_kernel, s4_step
from scanc.ops.s4d import s4d_kernel
from tests.checks import normal, relative
from tests.forms.test_lti import LargestTensor


def sample(b: int = 2, d: int = 3, l: int = 70, measure: str = "legs", N: int = 8, wide: bool = True) -> dict[str, Tensor]:
    w, P, B, V = nplr(measure, N, 2 if measure == "legt" else 1)
    made = {"u": normal(b, d, l, seed=0), "dt": 0.01 + 0.05 * torch.rand(d, generator=torch.Generator().manual_seed(1)),
            "A": w.repeat(d, 1), "P": P.repeat(d, 1, 1), "B": B.repeat(d, 1),
            "C": torch.complex(normal(d, N // 2, seed=2), normal(d, N // 2, seed=3)), "D": normal(d, seed=4),
            "initial_state": torch.complex(normal(b, d, N // 2, seed=5), normal(b, d, N // 2, seed=6))}
    real, kind = (torch.float64, torch.complex128) if wide else (torch.float32, torch.complex64)
    return {k: x.to(kind if x.is_complex() else real) for k, x in made.items()}


def steps(u: Tensor, initial_state: Tensor, D: Tensor, method: str = "bilinear", rate: float = 1.0, **x: Tensor) -> tuple[Tensor, Tensor]:
    system, state, made = discrete(**x, method=method, rate=rate), initial_state, []
    for t in range(u.shape[-1]):
        y, state = s4_step(u[..., t], state, system, D)
        made.append(y)
    return torch.stack(made, -1), state


@pytest.mark.parametrize("measure", ["legs", "legt"])
def test_it_is_the_papers_recurrence(measure: str) -> None:
    """Against HiPPO's own matrix, bilinear: x_t = (1 - dt/2 A)^{-1} ((1 + dt/2 A) x_{t-1} + dt B u_t), read by the same rows."""
    x = sample(b=1, d=1, measure=measure)
    N, dt = 8, float(x["dt"])
    A, B = transition(measure, N)
    V = nplr(measure, N, 2)[3]
    rows = 2.0 * (x["C"] @ V.conj().T).real  # 2 Re C V* x, of a real x
    one, state, wanted = torch.eye(N, dtype=torch.float64), torch.zeros(N, 1, dtype=torch.float64), []
    for u in x["u"][0, 0]:
        state = torch.linalg.solve(one - 0.5 * dt * A, (one + 0.5 * dt * A) @ state + dt * B * u)
        wanted.append((rows @ state)[0, 0] + x["D"][0] * u)
    y, last = s4(**x | {"initial_state": torch.zeros(1, 1, N // 2, dtype=torch.complex128)})
    assert last is not None and relative(y[0, 0], torch.stack(wanted)) < 1e-9
    assert relative(2.0 * (V @ last[0, 0]).real, state[:, 0]) < 1e-9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("l", [1, 70, 257])
def test_convolution_is_steps_is_chunks_in_double_precision(method: str, l: int) -> None:
    x = sample(l=l)
    y, last = s4(**x, method=method, rate=0.5)
    stepped, end = steps(**x, method=method, rate=0.5)
    assert last is not None and relative(y, stepped) < 1e-12 and relative(last, end) < 1e-12
    cut = l // 3
    early, state = s4(**x | {"u": x["u"][..., :cut]}, method=method, rate=0.5) if cut else (x["u"][..., :0], x["initial_state"])
    late, its_last = s4(**x | {"u": x["u"][..., cut:], "initial_state": state}, method=method, rate=0.5)
    assert its_last is not None and relative(torch.cat([early, late], -1), y) < 1e-12 and relative(its_last, last) < 1e-12


def test_gradients_are_the_steps() -> None:
    def gradients(wide: bool, run: object) -> list[Tensor]:
        x = {k: v.requires_grad_() for k, v in sample(l=50, wide=wide).items()}
        y, last = run(**x)  # type: ignore[operator]
        come = normal(2, 3, 50, seed=7), torch.complex(normal(2, 3, 4, seed=8), normal(2, 3, 4, seed=9))
        return list(torch.autograd.grad((y, last), list(x.values()), (come[0].to(y.dtype), come[1].to(last.dtype))))

    for name, p, wide, one in zip(sample(), gradients(True, steps), gradients(True, s4), gradients(False, s4), strict=True):
        assert relative(wide, p) < 1e-12 and relative(one, p) < 1e-5, name


def test_long_sequences_hold_few_blocks_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x = sample(b=1, d=2, l=3000)
    y, last = s4(**x)
    monkeypatch.setattr(module, "HELD", 1 << 6)
    again, its_last = s4(**x)
    stepped, end = steps(**x)
    assert last is not None and its_last is not None and torch.equal(again, y)
    assert relative(its_last, end) < 1e-12 and relative(last, end) < 1e-12 and relative(y, stepped) < 1e-11


@pytest.mark.parametrize("measure", ["legs", "legt"])
@pytest.mark.parametrize("l", [1, 64, 301])
def test_cauchy_products_make_the_same_kernel(measure: str, l: int) -> None:
    x = sample(measure=measure)
    given = [x[name] for name in ("dt", "A", "P", "B", "C")]
    assert relative(s4_kernel(*given, l, by="cauchy", rate=0.7), s4_kernel(*given, l, rate=0.7)) < 1e-10


def test_trained_at_one_rate_it_serves_another() -> None:
    """A low pass y' = 5 (u - y), learnt from samples 1/64 apart, is one of samples 1/128 apart by ``rate`` alone."""
    def signal(every: int, seed: int) -> tuple[Tensor, Tensor]:
        t = torch.arange(0, 128, every) / 64.0
        turns, phases = 3.0 * normal(16, 4, seed=seed), 3.0 * normal(16, 4, seed=seed + 1)
        u = torch.sin(turns[..., None] * t + phases[..., None]).sum(1, keepdim=True)
        # Its exact answer to a sine, from rest.
        a = torch.exp(1j * phases) * 5.0 / (5.0 + 1j * turns)
        y = (a[..., None] * (torch.exp(1j * turns[..., None] * t) - torch.exp(-5.0 * t))).imag.sum(1, keepdim=True)
        return u, y

    x = sample(d=1, N=16, wide=False)
    leaves = [x["C"].detach().requires_grad_(), torch.tensor([-4.0]).requires_grad_(), torch.zeros(1).requires_grad_()]
    optimiser = torch.optim.Adam(leaves, lr=0.05)

    def run(u: Tensor, rate: float) -> Tensor:
        C, log_dt, D = leaves
        return s4(u, log_dt.exp(), x["A"], x["P"], x["B"], C, D, rate=rate, return_last_state=False)[0]

    u, y = signal(2, 10)
    for _ in range(150):
        optimiser.zero_grad()
        (run(u, 1.0) - y).square().mean().backward()
        optimiser.step()
    with torch.no_grad():
        for every, rate, bar in ((2, 1.0, 0.06), (1, 0.5, 0.06)):
            unseen, truth = signal(every, 20)
            assert relative(run(unseen, rate), truth) < bar
        assert relative(run(unseen, 1.0), truth) > 0.2


def test_errors_say_what_is_possible() -> None:
    x = sample()
    given = [x[name] for name in ("dt", "A", "P", "B", "C")]
    with pytest.raises(ArgumentError, match="bilinear, zoh, dirac"):
        s4_kernel(*given, 8, method="euler")
    with pytest.raises(ArgumentError, match="cauchy for the bilinear"):
        s4_kernel(*given, 8, method="zoh", by="cauchy")
    with pytest.raises(ArgumentError, match="complex"):
        discrete(x["dt"], x["A"].real, *given[2:])


def test_no_tensor_has_states_and_time() -> None:
    x, length = sample(b=1, d=2, l=1 << 14, N=64, wide=False), 1 << 14
    leaves = {k: v.requires_grad_() for k, v in x.items()}
    with LargestTensor() as seen:
        y, last = s4(**leaves)
        torch.autograd.grad((y, last), list(leaves.values()), (torch.ones_like(y), torch.ones_like(last)))
    assert 0 < seen.numel < 2 * 32 * length / 4


def test_a_diagonal_kernel_has_no_tensor_of_states_and_time() -> None:
    x, length = sample(b=1, d=2, N=128, wide=False), 1 << 14
    with LargestTensor() as seen:
        s4d_kernel(x["dt"], x["A"], x["B"], x["C"], length)
    assert 0 < seen.numel < 2 * 64 * length / 16
