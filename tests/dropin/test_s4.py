"""The S4 repository's kernels and matrices under their names, against sums written out."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from torch import Tensor

from scanc import dropin
from scanc.ops.dropin.cauchy import cauchy_mult
from scanc.ops.dropin.hippo import transition
from scanc.ops.dropin.vandermonde import log_vandermonde, log_vandermonde_cuda, log_vandermonde_transpose
from tests.checks import normal, relative


def modes(*shape: int, seed: int) -> Tensor:
    return torch.complex(-normal(*shape, seed=seed).abs() * 0.1 - 0.01, normal(*shape, seed=seed + 1))


def written_out(v: Tensor, x: Tensor, L: int) -> Tensor:
    powers = torch.exp(x.to(torch.complex128)[..., None] * torch.arange(L))
    return (v.to(torch.complex128)[..., None] * powers).sum(-2)


AXES = [((3, 5), (3, 5)), ((2, 3, 5), (3, 5)), ((2, 1, 3, 5), (1, 3, 5)), ((5,), (5,)), ((3, 5), (1, 5))]


@pytest.mark.parametrize(("v_axes", "x_axes"), AXES, ids=str)
def test_vandermonde_products_of_shapes_that_broadcast(v_axes: tuple[int, ...], x_axes: tuple[int, ...]) -> None:
    v, x = modes(*v_axes, seed=0).requires_grad_(), modes(*x_axes, seed=2).requires_grad_()
    made, truth = log_vandermonde(v, x, 41), 2 * written_out(v, x, 41).real
    come = normal(*truth.shape, seed=4)
    assert relative(made, truth) < 1e-5 and torch.equal(log_vandermonde_cuda(v, x, 41), made)
    assert relative(log_vandermonde(v, x, 41, conj=False), written_out(v, x, 41)) < 1e-5
    for found, wanted in zip(torch.autograd.grad(made, (v, x), come), torch.autograd.grad(truth, (v, x), come.double()), strict=True):
        assert relative(found, wanted) < 1e-5


@pytest.mark.parametrize("u_axes", [(3, 41), (2, 3, 41)])
def test_the_transposed_product(u_axes: tuple[int, ...]) -> None:
    u, v, x = normal(*u_axes, seed=0), modes(3, 5, seed=1), modes(3, 5, seed=3)
    powers = torch.exp(x.to(torch.complex128)[..., None] * torch.arange(41))
    truth = v * (u[..., None, :] * powers).sum(-1)
    assert relative(log_vandermonde_transpose(u, v, x, 41), truth) < 1e-5


def test_cauchy_products_broadcast_and_have_gradients() -> None:
    v, w = modes(2, 3, 5, seed=0).requires_grad_(), modes(3, 5, seed=2).requires_grad_()
    z = 2j * torch.tan(torch.linspace(0.0, 1.5, 33)).to(torch.complex64)
    wide = [t.detach().to(torch.complex128).requires_grad_() for t in (v, w)]
    truth = sum((a[..., None] / (z - b[..., None])).sum(-2) for a, b in (wide, [t.conj() for t in wide]))
    made = cauchy_mult(v, z, w)
    assert relative(made, truth) < 1e-5  # type: ignore[arg-type]
    come = torch.complex(normal(2, 3, 33, seed=5), normal(2, 3, 33, seed=6))
    right = torch.autograd.grad(truth, wide, come.to(torch.complex128))  # type: ignore[arg-type]
    for found, wanted in zip(torch.autograd.grad(made, (v, w), come), right, strict=True):
        assert relative(found, wanted) < 1e-5


def test_transitions_are_arrays() -> None:
    A, B = transition("legs", 4)
    assert isinstance(A, np.ndarray) and A.shape == (4, 4) and B.shape == (4, 1)
    assert np.allclose(np.diag(A), [-1, -2, -3, -4]) and np.isclose(A[2, 1], -(15**0.5)) and A[1, 2] == 0


def test_under_their_names() -> None:
    with dropin.installed():
        theirs = [importlib.import_module(f"extensions.kernels.{name}") for name in ("cauchy", "vandermonde")]
    assert theirs[0].cauchy_mult is cauchy_mult and theirs[1].log_vandermonde_cuda is log_vandermonde_cuda
