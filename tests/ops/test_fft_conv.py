"""fft_conv on the CPU, whose kernels here are torch's FFT, against the oracle and against sums written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from scanc.errors import ArgumentError
from scanc.ops import fft_conv
from scanc.ops.fft_conv import fir_conv, streamed_conv
from tests.checks import close, holds, normal, relative


def sample(b: int = 2, d: int = 3, l: int = 61, w: int = 0, dtype: torch.dtype = torch.float32, **change: Any) -> dict[str, Any]:
    return {"u": normal(b, d, l, seed=0, dtype=dtype), "k": normal(d, w or l, seed=1)} | change


def gates(b: int = 2, d: int = 3, l: int = 61, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"pregate": normal(b, d, l, seed=2, dtype=dtype), "postgate": normal(b, d, l, seed=3, dtype=dtype)}


def written_out(u: Tensor, k: Tensor, k_rev: Tensor | None = None, *, circular: bool = False) -> Tensor:
    """The sum of the definition, term by term, in double precision."""
    u, length = u.double(), u.shape[-1]
    y = torch.zeros_like(u)
    for kernel, sign in ((k, 1), (k_rev, -1)):
        for j in range(0 if kernel is None else kernel.shape[-1]):
            for t in range(length):
                at = t - sign * j
                if circular:
                    at %= length
                if 0 <= at < length:
                    y[..., t] += kernel[:, j].double() * u[..., at]
    return y


@pytest.mark.parametrize("l", [1, 2, 61, 128, 997])
def test_any_length(l: int) -> None:
    holds(fft_conv, sample(l=l))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_a_matter_of_storage(dtype: torch.dtype) -> None:
    holds(fft_conv, sample(dtype=dtype) | gates(dtype=dtype))


def test_everything_at_once() -> None:
    holds(fft_conv, sample(k_rev=normal(3, 61, seed=4), D=normal(3, seed=5)) | gates())


@pytest.mark.parametrize("w", [1, 5, 61, 200])
@pytest.mark.parametrize("circular", [False, True], ids=["straight", "circular"])
def test_it_is_the_sum(w: int, circular: bool) -> None:
    x = sample(l=23, w=w)
    close(fft_conv(**x, circular=circular), written_out(**x, circular=circular).float())


@pytest.mark.parametrize("circular", [False, True], ids=["straight", "circular"])
def test_a_kernel_each_way(circular: bool) -> None:
    x = sample(l=23, w=23) | {"k_rev": normal(3, 9, seed=4)}
    close(fft_conv(**x, circular=circular), written_out(**x, circular=circular).float())


@pytest.mark.parametrize("w", [1, 5, 40])
def test_few_taps_stay_few(w: int) -> None:
    holds(fir_conv, {"u": normal(2, 3, 23, seed=0), "k": normal(3, w, seed=1), "pregate": normal(2, 3, 23, seed=2)})
    x = sample(l=23, w=w)
    close(fir_conv(**x), written_out(**x).float())


@pytest.mark.parametrize("w", [1, 4, 50])
def test_a_sequence_in_chunks_is_the_sequence(w: int) -> None:
    u, k = normal(2, 3, 41, seed=0).requires_grad_(), normal(3, w, seed=1).requires_grad_()
    past, parts = None, []
    for start, end in ((0, 7), (7, 8), (8, 30), (30, 41)):
        y, past = streamed_conv(u[..., start:end], k, past)
        parts.append(y)
    made, truth, come = torch.cat(parts, -1), written_out(u, k).float(), normal(2, 3, 41, seed=2)
    close(made, truth)
    for found, wanted in zip(torch.autograd.grad(made, (u, k), come), torch.autograd.grad(truth, (u, k), come), strict=True):
        assert relative(found, wanted) < 1e-5
    with pytest.raises(ArgumentError, match="steps before a chunk"):
        streamed_conv(u, k, normal(2, 3, w + 2, seed=3))


def test_the_skip_is_added_before_the_second_gate() -> None:
    x, D, g = sample(), normal(3, seed=5), gates()
    gated = x["u"] * g["pregate"]
    inner = fft_conv(gated, x["k"]) + D[:, None] * gated
    close(fft_conv(**x, D=D, **g), inner * g["postgate"])


def test_gradients_of_a_short_kernel_and_a_skip() -> None:
    x = {n: t.requires_grad_() for n, t in (sample(w=5) | {"D": normal(3, seed=5)}).items()}
    come = normal(2, 3, 61, seed=6)
    found = torch.autograd.grad(fft_conv(**x), list(x.values()), come)
    wanted = torch.autograd.grad(written_out(x["u"], x["k"]).float() + x["D"][:, None] * x["u"], list(x.values()), come)
    for name, a, b in zip(x, found, wanted, strict=True):
        assert relative(a, b) < 1e-5, name


def test_double_precision_and_double_backward() -> None:
    x = [t.double().requires_grad_() for t in (normal(2, 2, 7, seed=0), normal(2, 7, seed=1))]
    assert torch.autograd.gradcheck(fft_conv, x)
    assert torch.autograd.gradgradcheck(fft_conv, x)


def test_it_has_the_form_convolution_alone() -> None:
    assert fft_conv.forms() == ("convolution",)


def test_a_kernel_without_channels_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"axes \(d w\)"):
        fft_conv(normal(2, 3, 8, seed=0), normal(8, seed=1))


def test_under_torch_compile() -> None:
    x = sample() | {"D": normal(3, seed=5)}
    compiled = torch.compile(lambda u, k, D: fft_conv(u, k, D) * 2.0, fullgraph=True, backend="aot_eager")
    leaves = [t.requires_grad_() for t in x.values()]
    y = compiled(*leaves)
    close(y, 2.0 * fft_conv(**x))
    assert all(g is not None and g.abs().max() > 0 for g in torch.autograd.grad(y.square().sum(), leaves))


def test_what_torch_asks_of_an_op() -> None:
    u, k = normal(2, 3, 8, seed=0).requires_grad_(), normal(3, 8, seed=1).requires_grad_()
    torch.library.opcheck(torch.ops.scanc.fft_conv.default, (u, k))
