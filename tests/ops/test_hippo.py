"""HiPPO transitions: what they remember, their normal parts, and the modes diagonal state spaces start from."""

from __future__ import annotations

import math

import pytest
import torch

from scanc.errors import ArgumentError
from scanc.ops.hippo import modes, nplr, rank_correction, steps, transition

RANKS = {"legs": 1, "legt": 2, "lagt": 1, "fourier": 1}


def test_legs_is_the_papers_matrix() -> None:
    A, B = transition("legs", 3)
    r3, r5, r15 = math.sqrt(3), math.sqrt(5), math.sqrt(15)
    assert torch.allclose(A, torch.tensor([[-1, 0, 0], [-r3, -2, 0], [-r5, -r15, -3]], dtype=torch.float64))
    assert torch.allclose(B, torch.tensor([[1], [r3], [r5]], dtype=torch.float64))


def test_legs_remembers_a_sequence_as_legendre_coefficients() -> None:
    """Of u(t) = t on [0, T], x' = (A x + B u)/t keeps the coefficients T/2 of P_0 and T/(2√3) of √3 P_1, and no others."""
    A, B = transition("legs", 4)
    x, t, h = torch.zeros(4, 1, dtype=torch.float64), 1e-3, 1e-4
    x[0], x[1] = t / 2, t / (2 * math.sqrt(3))
    while t < 1.0:
        middle = x + 0.5 * h * (A @ x + B * t) / t
        x = x + h * (A @ middle + B * (t + 0.5 * h)) / (t + 0.5 * h)
        t += h
    assert torch.allclose(x[:, 0], torch.tensor([t / 2, t / (2 * math.sqrt(3)), 0, 0], dtype=torch.float64), atol=1e-3)


@pytest.mark.parametrize("measure", RANKS)
def test_a_transition_is_stable(measure: str) -> None:
    assert torch.linalg.eigvals(transition(measure, 8)[0]).real.max() < 1e-9


@pytest.mark.parametrize("measure", RANKS)
def test_a_normal_matrix_and_a_correction_of_low_rank(measure: str) -> None:
    A, B = transition(measure, 8)
    w, P, b, V = nplr(measure, 8, RANKS[measure])
    both = torch.cat([V, V.conj()], 1)
    normal = both @ torch.diag(torch.cat([w, w.conj()])) @ both.conj().T
    correction = rank_correction(measure, 8, RANKS[measure])
    assert torch.allclose((normal.real - correction.T @ correction), A, atol=1e-12) and normal.imag.abs().max() < 1e-12
    assert torch.allclose(2 * (V @ b).real, B[:, 0], atol=1e-12)
    assert torch.allclose(2 * (V @ P.T).real, correction.T, atol=1e-12)
    assert (w.imag >= -1e-12).all()


def test_where_diagonal_state_spaces_start() -> None:
    lin, inv, real = (modes(kind, 2, 8) for kind in ("lin", "inv", "real"))
    assert torch.allclose(lin[1], torch.complex(torch.full((4,), -0.5), math.pi * torch.arange(4.0)))
    assert torch.allclose(inv[0].imag, torch.tensor([8 / math.pi * (8 / (2 * n + 1) - 1) for n in range(4)]))
    assert torch.equal(real[0], -torch.arange(1.0, 9.0))
    assert torch.allclose(modes("legs", 1, 8).real, torch.full((1, 4), -0.5))


def test_steps_are_spread_over_magnitudes() -> None:
    dt = steps(4000, generator=torch.Generator().manual_seed(0))
    assert dt.min() >= 0.001 and dt.max() <= 0.1 and abs(dt.log().mean() - math.log(0.01)) < 0.1


@pytest.mark.parametrize("call", [lambda: transition("chebt", 4), lambda: rank_correction("legt", 4, 1), lambda: nplr("legs", 5),
                                  lambda: modes("log", 1, 4), lambda: transition("fourier", 3)])
def test_errors_say_what_is_possible(call: object) -> None:
    with pytest.raises(ArgumentError):
        call()  # type: ignore[operator]
