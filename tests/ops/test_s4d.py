"""S4D: convolution, recurrence and steps are one function; its kernels' Vandermonde and Cauchy products against the sums."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scanc.codegen import triton_powers
from scanc.codegen.build_triton import resources
from scanc.errors import ArgumentError
from scanc.ops.hippo import modes as start
from scanc.ops.s4 import cauchy_mult, log_vandermonde, log_vandermonde_transpose
from scanc.ops.s4d import METHODS, s4d, s4d_convolution, s4d_kernel
from scanc.powers import powers_sum, weighted_sum
from scanc.target import Target
from tests.checks import normal, relative


def sample(b: int = 2, d: int = 3, l: int = 70, n: int = 4, kind: str = "lin", wide: bool = False) -> dict[str, Tensor]:
    A = start(kind, d, n if kind == "real" else 2 * n)
    def free(*shape: int, seed: int) -> Tensor:
        return torch.complex(normal(*shape, seed=seed), normal(*shape, seed=seed + 50)) if A.is_complex() else normal(*shape, seed=seed)

    made = {"u": normal(b, d, l, seed=0), "dt": torch.rand(d, generator=torch.Generator().manual_seed(1)) * 0.1 + 0.001, "A": A,
            "B": free(d, n, seed=2), "C": free(d, n, seed=3), "D": normal(d, seed=4), "initial_state": free(b, d, n, seed=5)}
    return {k: x.to(torch.complex128 if x.is_complex() else torch.float64) for k, x in made.items()} if wide else made


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["lin", "real"])
@pytest.mark.parametrize("l", [1, 70, 257])
def test_convolution_is_recurrence_is_steps_in_double_precision(method: str, kind: str, l: int) -> None:
    x = sample(l=l, kind=kind, wide=True)
    y, last = s4d(**x, method=method, rate=0.5)
    by_convolution, its_last = s4d_convolution(**x, method=method, rate=0.5)
    assert relative(by_convolution, y) < 1e-12 and its_last is not None and relative(its_last, last) < 1e-12
    state = x.pop("initial_state").clone()
    u = x.pop("u")
    stepped = torch.stack([s4d.step(state, u[..., t], **x, method=method, rate=0.5) for t in range(l)], -1)
    assert relative(stepped, y) < 1e-12 and relative(state, last) < 1e-12


@pytest.mark.parametrize("kind", ["lin", "real"])
def test_convolution_is_recurrence_through_kernels(kind: str) -> None:
    x = sample(l=300, kind=kind)
    truth, last = s4d(**{k: v.to(torch.complex128 if v.is_complex() else torch.float64) for k, v in x.items()})
    for y, state in (s4d(**x), s4d_convolution(**x)):
        assert relative(y, truth) < 1e-5 and relative(state, last) < 1e-5


@pytest.mark.parametrize("kind", ["lin", "real"])
def test_gradients_are_the_recurrences(kind: str) -> None:
    def gradients(wide: bool, by_convolution: bool) -> list[Tensor]:
        x = {k: v.requires_grad_() for k, v in sample(l=150, kind=kind, wide=wide).items()}
        y, last = (s4d_convolution if by_convolution else s4d)(**x)
        come = normal(2, 3, 150, seed=7), torch.complex(normal(2, 3, 4, seed=8), normal(2, 3, 4, seed=9))
        ends = come[1] if last.is_complex() else come[1].real
        return list(torch.autograd.grad((y, last), list(x.values()), (come[0].to(y.dtype), ends.to(last.dtype))))

    truth, in_double = gradients(True, False), gradients(True, True)
    for name, p, wide, one, other in zip(sample(), truth, in_double, gradients(False, False), gradients(False, True), strict=True):
        assert relative(wide, p) < 1e-12 and relative(one, p) < 1e-5 and relative(other, p) < 1e-5, name


def test_sums_of_powers_are_differentiable_twice() -> None:
    x = torch.complex(-torch.rand(2, 3, dtype=torch.float64), normal(2, 3, seed=0).double()).requires_grad_()
    v = torch.complex(normal(2, 2, 3, seed=1), normal(2, 2, 3, seed=2)).to(torch.complex128).requires_grad_()
    u = normal(2, 2, 9, seed=3).double().requires_grad_()
    for function, inputs in ((lambda v, x: powers_sum(v, x, 7, 1), (v, x)), (weighted_sum, (u, x)), (weighted_sum, (u * (1 + 2j), x))):
        assert torch.autograd.gradcheck(function, inputs) and torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("by_convolution", [False, True])
def test_another_sampling_rate_by_rate_alone(by_convolution: bool) -> None:
    x = sample(l=60, wide=True)
    run = s4d_convolution if by_convolution else s4d
    y, last = run(**x)
    twice, its_last = run(**x | {"u": x["u"].repeat_interleave(2, -1)}, rate=0.5)  # the same signal, sampled twice as often
    assert relative(twice[..., 1::2], y) < 1e-12 and relative(its_last, last) < 1e-12  # type: ignore[arg-type]


def test_a_sequence_in_two_pieces() -> None:
    x = sample(l=90, wide=True)
    y, last = s4d_convolution(**x)
    first, state = s4d_convolution(**x | {"u": x["u"][..., :31]})
    second, end = s4d_convolution(**x | {"u": x["u"][..., 31:], "initial_state": state})
    assert relative(torch.cat([first, second], -1), y) < 1e-12 and relative(end, last) < 1e-12  # type: ignore[arg-type]


def test_phases_hold_over_a_million_steps() -> None:
    n, length = 2, 1 << 20
    A = torch.complex(torch.full((1, n), -1e-5), torch.tensor([[1.2345678, 3.1]]))
    C = torch.complex(torch.ones(1, n), torch.zeros(1, n))
    K = s4d_kernel(torch.ones(1), A, C, C, length, method="dirac")
    at = torch.tensor([1, 77777, 500001, length - 1], dtype=torch.float64)
    truth = 2 * torch.exp(A.to(torch.complex128)[0, :, None] * at).real.sum(0)
    assert relative(K[0, at.long()], truth) < 1e-5


@pytest.mark.parametrize(("lead", "length", "first"), [((), 300, 0), ((2,), 9000, 1)])
def test_the_kernel_of_a_gpu_makes_the_same_sum(lead: tuple[int, ...], length: int, first: int) -> None:
    x = torch.complex(-0.01 * normal(2, 33, seed=0).abs().double(), 3.0 * normal(2, 33, seed=1).double())
    v = torch.complex(normal(*lead, 2, 33, seed=2), normal(*lead, 2, 33, seed=3))
    made = triton_powers.powers_sum(v, x, length, first, Target("cpu", "interpret", "triton"))
    assert relative(made, powers_sum(v.to(torch.complex128), x, length, first)) < 1e-6
    # Conjugates are views that torch leaves to be conjugated when they are read.
    made = triton_powers.powers_sum(v.conj(), x.conj(), length, first, Target("cpu", "interpret", "triton"))
    assert relative(made, powers_sum(v.conj().resolve_conj(), x.conj().resolve_conj(), length, first)) < 1e-6


@pytest.mark.parametrize("method", ["zoh", "bilinear", "dirac", "euler"])
def test_the_kernels_of_a_gpu_discretise(method: str) -> None:
    A = torch.complex(-1.0 - normal(3, 20, seed=0).abs(), (0.3 if method == "euler" else 8.0) * normal(3, 20, seed=1))
    A[0, 0] = 1e-6j
    B, C = (torch.complex(normal(3, 20, seed=s), normal(3, 20, seed=s + 1)) for s in (2, 4))
    dt = torch.tensor([0.001, 0.05, 0.1])
    made = triton_powers.state_space_kernel(dt, A, B, C, 500, method, 0.5, Target("cpu", "interpret", "triton"))
    wide = [x.to(torch.complex128) for x in (A, B, C)]
    assert relative(made, s4d_kernel(dt.double(), *wide, 500, method=method, rate=0.5)) < 1e-6


@pytest.mark.parametrize("kind", ["powers", "turns", *triton_powers.METHODS])
def test_their_machine_code(kind: str) -> None:
    found = resources(triton_powers.source(kind), Target("cuda", "sm_90", "triton"))
    # Sines of double precision have a stack for arguments of any size.
    assert found["spills"] <= (0 if kind == "powers" else 64) and found["shared"] <= 64 << 10


def test_vandermonde_products_are_their_sums() -> None:
    v, x = torch.complex(normal(3, 5, seed=0), normal(3, 5, seed=1)), torch.complex(-normal(3, 5, seed=2).abs(), normal(3, 5, seed=3)) * 0.1
    u = normal(2, 3, 41, seed=4)
    powers = torch.exp(x.to(torch.complex128)[..., None] * torch.arange(41))
    assert relative(log_vandermonde(v, x, 41), 2 * torch.einsum("hn,hnl->hl", v.to(powers), powers).real) < 1e-5
    found = log_vandermonde_transpose(u, v, x, 41)
    assert relative(found, torch.einsum("bhl,hn,hnl->bhn", u.to(powers), v.to(powers), powers)) < 1e-5


@pytest.mark.parametrize("n", [1, 6])
def test_cauchy_products_are_their_sums(n: int) -> None:
    v, w = torch.complex(normal(3, n, seed=0), normal(3, n, seed=1)), torch.complex(-normal(3, n, seed=2).abs() - 0.1, normal(3, n, seed=3))
    z = 2j * torch.tan(torch.linspace(0.0, 1.5, 33)).to(torch.complex64)
    wide = [t.to(torch.complex128) for t in (v, z, w)]
    truth = sum((a[..., None] / (wide[1] - b[..., None])).sum(-2) for a, b in ((wide[0], wide[2]), (wide[0].conj(), wide[2].conj())))
    assert relative(cauchy_mult(v, z, w), truth) < 1e-5  # type: ignore[arg-type]


def test_errors_say_what_is_possible() -> None:
    x = sample()
    with pytest.raises(ArgumentError, match="zoh, bilinear"):
        s4d_convolution(**x, method="tustin")
    with pytest.raises(ArgumentError, match="must be complex"):
        log_vandermonde(normal(2, 2, seed=0), normal(2, 2, seed=1), 4)
    with pytest.raises(ArgumentError, match="L is 5"):
        log_vandermonde_transpose(x["u"], x["B"], x["A"], 5)
