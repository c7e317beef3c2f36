"""The diagonal state space S4D: linear and time-invariant, so a recurrence and a convolution are the same thing.

    h_t = Ā h_{t-1} + B̄ u_t            y_t = 2 Re Σ_n C_n h_t,n + D u_t            (real A: without the 2 Re)
        = K * u,                       K_l = 2 Re Σ_n C_n B̄_n Ā_n^l

    u  (b d l)        dt, D  (d)        A, B, C  (d n), complex (one of each conjugate pair) or real
    initial_state, last_state  (b d n), of A's dtype
    method  zoh, bilinear, dirac, euler (scanc.dsl.discretize)        rate  scales dt: another sampling rate without retraining

``s4d`` walks time, steps, and starts and ends anywhere; ``s4d_convolution`` is the same function of the same arguments by one long
convolution, which needs no state in between: faster over long sequences.

Sources: Gu et al., On the Parameterization and Initialization of Diagonal State Space Models (2022); Gupta, DSS (2022).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

import scanc.dsl as sc
from scanc.errors import ArgumentError
from scanc.ops.fft_conv import fft_conv
from scanc.powers import on_gpu, powers_gradients, powers_sum, weighted_sum
from scanc.problem import Make

METHODS = ("zoh", "bilinear", "dirac", "euler")


@sc.op
def s4d(
    u: Float[Tensor, "b d l"],
    dt: Float[Tensor, "d"],
    A: Complex[Tensor, "d n"] | Float[Tensor, "d n"],
    B: Complex[Tensor, "d n"] | Float[Tensor, "d n"],
    C: Complex[Tensor, "d n"] | Float[Tensor, "d n"],
    D: Float[Tensor, "d"] | None = None,
    initial_state: Complex[Tensor, "b d n"] | Float[Tensor, "b d n"] | None = None,
    *,
    method: str = "zoh",
    rate: float = 1.0,
) -> tuple[Float[Tensor, "b d l"], Complex[Tensor, "b d n"]]:
    a, b = sc.discretize(rate * dt, A, B, method=method)
    h = sc.scan(a, b * u, axis="l", initial=initial_state)
    y = sc.sum(C * h, "n")
    if sc.is_complex(y):
        y = 2.0 * sc.real(y)
    if D is not None:
        y = y + D * u
    return y, sc.last(h, "l")


def modes(dt: Tensor, A: Tensor, B: Tensor, *, method: str = "zoh", rate: float = 1.0) -> tuple[Tensor, Tensor]:
    """(log Ā, B̄), both (d n): what kernels and states of any length are made of. The first in double precision: a rounded one is off by
    as much more as there are steps."""
    _need_method(method)
    step = (rate * dt.double())[:, None]
    x = step * A.to(torch.complex128 if A.is_complex() else torch.float64)
    if method == "zoh":
        log, b = x, step * _phi1(x)
    elif method == "dirac":
        return x, B
    elif method == "euler":
        log, b = torch.log(1.0 + x), step
    else:
        log, b = torch.log1p(0.5 * x) - torch.log1p(-0.5 * x), step / (1.0 - 0.5 * x)
    return log, (b * B).to(torch.promote_types(torch.promote_types(dt.dtype, A.dtype), B.dtype))


def _need_method(method: str) -> None:
    if method not in METHODS:
        limit = f"it must be one of {', '.join(METHODS)}"
        raise ArgumentError(op="s4d", argument="method", value=method, limit=limit, remedy="Choose one.")


def _phi1(x: Tensor) -> Tensor:
    """(e^x - 1)/x, by its series near 0, where the quotient would be 0/0."""
    small = x.abs() < 0.1
    away = torch.where(small, 1.0, x)
    near = torch.where(small, x, 0.0)
    degree = 9 if x.dtype in (torch.float64, torch.complex128) else 5
    series = near * (1.0 / math.factorial(degree + 1))
    for k in range(degree, 0, -1):
        series = series + 1.0 / math.factorial(k)
        series = series * near if k > 1 else series
    return torch.where(small, series, torch.expm1(away) / away)


def s4d_kernel(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, length: int, *, method: str = "zoh", rate: float = 1.0) -> Tensor:
    """K (d length), float32 or double."""
    if _in_two_launches(dt, A, B, C):
        _need_method(method)
        differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (dt, A, B, C))
        made: Tensor = (_Kernel.apply if differentiable else _forward)(dt, A, B, C, length, method, float(rate))
        return made
    x, b = modes(dt, A, B, method=method, rate=rate)
    return powers_sum((2.0 if x.is_complex() else 1.0) * C * b, x, length)


def _in_two_launches(dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> bool:
    """Whether a GPU's kernels take a state space as it is given."""
    if not dt.is_cuda or dt.dtype != torch.float32 or any(x.dtype != torch.complex64 or x.shape != A.shape for x in (A, B, C)):
        return False
    return A.dim() == 2 and dt.shape == A.shape[:1] and A.numel() > 0 and on_gpu(C, A)


def _forward(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, length: int, method: str, rate: float) -> Tensor:
    from scanc.codegen.triton_powers import state_space_kernel

    return state_space_kernel(dt, A, B, C, length, method, rate)


class _Kernel(torch.autograd.Function):
    """s4d_kernel, whose discretisation is made by a kernel too, and again for the gradient."""

    @staticmethod
    def forward(ctx: Any, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, length: int, method: str, rate: float) -> Tensor:
        ctx.save_for_backward(dt, A, B, C)
        ctx.method, ctx.rate = method, rate
        return _forward(dt, A, B, C, length, method, rate)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        given, again = ctx.saved_tensors, torch.is_grad_enabled()
        with torch.enable_grad():
            needs = ctx.needs_input_grad[:4]
            leaves = given if again else tuple(x.detach().requires_grad_(need) for x, need in zip(given, needs, strict=True))
            dt, A, B, C = leaves
            x, b = modes(dt, A, B, method=ctx.method, rate=ctx.rate)
            v = 2.0 * C * b
            come = powers_gradients(g, v, x, 0)
            made, parts = [t for t in (v, x) if t.requires_grad], [c for t, c in zip((v, x), come, strict=True) if t.requires_grad]
            wanted = [t for t, need in zip(leaves, needs, strict=True) if need]
            found = iter(torch.autograd.grad(made, wanted, parts, create_graph=again, allow_unused=True))
        return (*(next(found) if need else None for need in needs), None, None, None)


def s4d_convolution(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    method: str = "zoh",
    rate: float = 1.0,
    return_last_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """(y, last_state) of ``s4d`` by a convolution; the state is None where it is not asked for, and costs nothing then."""
    length = u.shape[-1]
    x, b = modes(dt, A, B, method=method, rate=rate)
    twice = 2.0 if x.is_complex() else 1.0
    y = fft_conv(u, s4d_kernel(dt, A, B, C, length, method=method, rate=rate), D)
    if initial_state is not None:
        y = y + powers_sum(twice * C * initial_state, x, length, first=1).to(y.dtype)
    if not return_last_state:
        return y, None
    state = b * weighted_sum(u.flip(-1).to(b.real.dtype if b.is_complex() else b.dtype), x)
    if initial_state is not None:
        state = state + torch.exp(x * length).to(b.dtype) * initial_state
    return y, state


@s4d.example
def _example(make: Make) -> dict[str, Any]:
    n = make.case.get("n", 1)
    real = torch.full(make._shape("d n"), -0.5)
    return {
        "u": make.normal("b d l"),
        "dt": make.uniform("d", 0.001, 0.1, parameter=True),
        "A": torch.complex(real, torch.pi * torch.arange(n).expand_as(real)),
        "B": torch.complex(make.normal("d n", parameter=True), make.normal("d n", parameter=True)),
        "C": torch.complex(make.normal("d n", parameter=True), make.normal("d n", parameter=True)),
        "D": make.normal("d", parameter=True),
        "initial_state": None,
    }


s4d.cases = [
    {"b": 8, "d": 768, "l": 2048, "n": 32},
]
