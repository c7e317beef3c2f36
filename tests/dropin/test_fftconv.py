"""FlashFFTConv and fftconv_func against torch's FFT written as their own references are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scanc import dropin
from scanc.errors import ArgumentError
from scanc.ops.dropin.fftconv import fftconv_func
from scanc.ops.dropin.flashfftconv import FlashFFTConv
from tests.checks import normal, relative


def through_fft(u: Tensor, k: Tensor, n: int, k_rev: Tensor | None = None) -> Tensor:
    K = torch.fft.rfft(k.double(), n=n)
    if k_rev is not None:
        K = K + torch.fft.rfft(k_rev.double(), n=n).conj()
    return torch.fft.irfft(torch.fft.rfft(u.double(), n=n) * K, n=n)[..., : u.shape[-1]]


@pytest.mark.parametrize(("l", "w", "n"), [(128, 128, 256), (256, 256, 256), (200, 100, 256), (97, 90, 131), (1, 1, 256)])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_flashfftconv_is_an_fft_of_its_size(l: int, w: int, n: int, gated: bool, dtype: torch.dtype) -> None:
    u, k = normal(2, 3, l, seed=0, dtype=dtype), normal(3, w, seed=1)
    gates = [normal(2, 3, l, seed=s, dtype=dtype) for s in (2, 3)] if gated else []
    y = FlashFFTConv(n, dtype)(u, k, *gates)
    truth = through_fft(u.double() * gates[0].double() if gated else u, k, n)
    truth = truth * gates[1].double() if gated else truth
    assert y.dtype == dtype and relative(y, truth) < (5e-6 if dtype == torch.float32 else 8e-3)


def test_flashfftconv_trains() -> None:
    u, k = normal(2, 3, 64, seed=0).requires_grad_(), normal(3, 64, seed=1).requires_grad_()
    come = normal(2, 3, 64, seed=2)
    found = torch.autograd.grad(FlashFFTConv(128, torch.float32)(u, k), (u, k), come)
    wanted = torch.autograd.grad(through_fft(u, k, 128), (u, k), come.double())
    assert all(relative(a, b) < 1e-5 for a, b in zip(found, wanted, strict=True))


def h3_reference(u: Tensor, k: Tensor, D: Tensor, v: Tensor, q: Tensor, head_dim: int, k_rev: Tensor | None) -> Tensor:
    """Every product of a head's dimensions by itself."""
    y = torch.zeros(u.shape, dtype=torch.float64)
    for h in range(len(k)):
        rows = slice(h * head_dim, (h + 1) * head_dim)
        for i in range(head_dim):
            for j in range(head_dim):
                uv = (u[:, rows][:, i] * v[:, rows][:, j]).double()
                conv = through_fft(uv, k[h], 2 * u.shape[-1], None if k_rev is None else k_rev[h])
                y[:, rows][:, j] += q[:, rows][:, i] * (conv + D[h] * uv)
    return y


@pytest.mark.parametrize("head_dim", [1, 2])
@pytest.mark.parametrize("both_ways", [False, True])
def test_fftconv_with_queries_and_values(head_dim: int, both_ways: bool) -> None:
    u, v, q = (normal(2, 3 * head_dim, 33, seed=s) for s in range(3))
    k, D = normal(3, 33, seed=4), normal(3, seed=5)
    k_rev = normal(3, 33, seed=6) if both_ways else None
    found = fftconv_func(u, k, D, gelu=False, v=v, q=q, head_dim=head_dim, k_rev=k_rev)
    assert relative(found, h3_reference(u, k, D, v, q, head_dim, k_rev)) < 5e-6


def test_fftconv_plain() -> None:
    u, k, D = normal(2, 3, 33, seed=0), normal(3, 33, seed=1), normal(3, seed=2)
    mask = torch.tensor([[1.0, 0.0, 2.0], [2.0, 1.0, 0.0]])
    truth = F.gelu(through_fft(u, k, 66) + D.double()[:, None] * u) * mask[..., None]
    found = fftconv_func(u, k, D, mask, output_hbl_layout=True)
    assert relative(found, truth) < 5e-6 and found.stride(1) > found.stride(0)
    assert fftconv_func(u, k, D, force_fp16_output=True).dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_signals_have_gradients_of_single_precision(dtype: torch.dtype) -> None:
    u, k, D = normal(2, 3, 200, seed=0, dtype=dtype), normal(3, 200, seed=1).requires_grad_(), normal(3, seed=2)
    come = normal(2, 3, 200, seed=3, dtype=dtype)
    y = fftconv_func(u, k, D, gelu=False)
    (found,) = torch.autograd.grad(y, k, come)
    (wanted,) = torch.autograd.grad(through_fft(u, k, 400), k, come.double())
    assert y.dtype == dtype and relative(found, wanted) < 1e-6
    v, q = (normal(2, 6, 40, seed=s, dtype=dtype) for s in (4, 5))
    heads = fftconv_func(v, k[:, :40], D, gelu=False, v=v, q=q, head_dim=2)
    assert heads.is_contiguous() and heads.dtype == dtype
    assert relative(heads, h3_reference(v.double(), k[:, :40].detach(), D, v.double(), q.double(), 2, None)) < 5e-3
    assert fftconv_func(u, k, D, fftfp16=True).dtype == dtype


def test_under_their_names() -> None:
    with dropin.installed():
        from fftconv import fftconv_func as theirs
        from flashfftconv import FlashFFTConv as Theirs
    assert theirs is fftconv_func and Theirs is FlashFFTConv


def test_errors_say_what_is_possible() -> None:
    with pytest.raises(ArgumentError, match="256 points"):
        FlashFFTConv(256)(normal(1, 1, 300, seed=0), normal(1, 8, seed=1))
    with pytest.raises(ArgumentError, match="1 point or more"):
        FlashFFTConv(0)
    with pytest.raises(ArgumentError, match="together"):
        fftconv_func(*(normal(1, 2, 8, seed=0), normal(2, 8, seed=1), normal(2, seed=2)), v=normal(1, 2, 8, seed=3))
