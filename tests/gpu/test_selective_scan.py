"""selective_scan as it is called, on the GPU that is here: sizes of state, memory in any order, packed and cut sequences, huge tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from scanc.ops import selective_scan
from tests.checks import close, cotangents, gradients, holds, leaves_of, normal, relative

EXACT = {torch.float32: 1e-6}


def sample(b: int, d: int, l: int, n: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Every input but seq_idx."""
    made = {
        "u": normal(b, d, l, seed=0, dtype=dtype),
        "delta": normal(b, d, l, seed=1, dtype=dtype, scale=0.5),
        "A": -torch.exp(normal(d, n, seed=2, scale=0.7)),
        "B": normal(b, 1, n, l, seed=3, dtype=dtype),
        "C": normal(b, 1, n, l, seed=4, dtype=dtype),
        "D": normal(d, seed=5),
        "z": normal(b, d, l, seed=6, dtype=dtype),
        "delta_bias": normal(d, seed=7) - 2.0,
        "initial_state": normal(b, d, n, seed=8),
    }
    return {k: v.cuda() for k, v in made.items()} | {"delta_softplus": True}


@pytest.mark.parametrize("n", [2, 100, 256])
def test_state_sizes(n: int) -> None:
    holds(selective_scan, sample(1, 33, 200, n))


def across(x: Tensor) -> Tensor:
    """(b l d) in memory."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "b l d": across,
    "half of a wider (b l d)": lambda x: across(torch.cat([x, torch.full_like(x, float("nan"))], 1))[:, : x.shape[1]],
    "d b l": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "every second channel": lambda x: x.repeat_interleave(2, 1)[:, 1::2],
    "one batch, repeated": lambda x: x[:1].expand_as(x),
    "one number, repeated": lambda x: x[1:, 4:5, 7:8].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    """One kernel takes them all."""
    x = sample(2, 130, 300, 16, torch.bfloat16)
    holds(selective_scan, x | {k: LAYOUTS[layout](x[k]) for k in ("u", "delta", "z")})


@pytest.fixture
def unwaiting() -> Iterator[Callable[[str], None]]:
    """``unwaiting("error")``: from here on whatever makes the host wait for the device raises."""
    yield torch.cuda.set_sync_debug_mode
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("packed", ["cu_seqlens", "seq_idx"])
def test_the_host_never_waits(packed: str, unwaiting: Callable[[str], None]) -> None:
    x = sample(1, 130, 300, 16, torch.bfloat16)
    ends = torch.tensor([0, 5, 5, 170, 300], device="cuda")
    lengths = {"cu_seqlens": ends} if packed == "cu_seqlens" else {"seq_idx": torch.bucketize(torch.arange(300, device="cuda"), ends)[None]}
    leaves = leaves_of({k: v for k, v in x.items() if isinstance(v, Tensor)})

    def run() -> list[Tensor]:
        results = selective_scan(**x, **lengths)
        return [*results, *torch.autograd.grad(results, list(leaves.values()), [torch.ones_like(r) for r in results])]

    first = run()   # compiles and loads, which may wait
    torch.cuda.synchronize()
    unwaiting("error")
    again = run()
    unwaiting("default")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)) and all(bool(r.any()) for r in again)


def test_pieces_that_hand_on_the_state_are_one_call() -> None:
    x = sample(2, 130, 300, 16)
    leaves = leaves_of({k: v for k, v in x.items() if isinstance(v, Tensor)})
    whole, carried, parts = selective_scan(**x), x["initial_state"], []
    for start, end in [(0, 1), (1, 130), (130, 300)]:
        piece = {k: v[..., start:end] if k in ("u", "delta", "B", "C", "z") else v for k, v in x.items()}
        part, carried = selective_scan(**piece | {"initial_state": carried})
        parts.append(part)
    pieces = (torch.cat(parts, -1), carried)
    for found, wanted in zip(pieces, whole, strict=True):
        close(found, wanted, EXACT)
    found_in, wanted_in = (gradients(results, cotangents(whole), leaves) for results in (pieces, whole))
    for name, gradient in found_in.items():
        close(gradient, wanted_in[name], EXACT, f"d_{name}")


@pytest.mark.parametrize("layout", ["b d l", "b l d"])
def test_more_than_two_to_the_31_elements(layout: str) -> None:
    """Right at the start, in the middle and at the end, where offsets pass 2^31: the past is forgotten within a few hundred steps."""
    d, l, n = 64, (1 << 25) + 300, 4
    u = torch.empty(1, l, d, dtype=torch.bfloat16, device="cuda").normal_(generator=torch.Generator("cuda").manual_seed(0))
    u = u.transpose(1, 2) if layout == "b l d" else u.view(1, d, l)
    assert u.numel() > 1 << 31 and u.stride(2 if layout == "b d l" else 1) == 1
    alone = {"A": -torch.linspace(0.5, 4.0, d * n, device="cuda").view(d, n)}
    shared = {"delta": torch.full((1, 1, 1), 0.5, dtype=torch.bfloat16, device="cuda").expand(1, d, l)}
    shared |= {k: normal(1, 1, n, 1, seed=i, dtype=torch.bfloat16).cuda().expand(1, 1, n, l) for i, k in enumerate("BC")}
    u.requires_grad_()
    y, _ = selective_scan(u, **alone, **shared)
    (d_u,) = torch.autograd.grad(y, u, u.detach())
    for start in (0, 1 << 24, l - 900):
        part = slice(start, start + 900)
        leaf = u.detach()[..., part].requires_grad_()
        wanted, _ = selective_scan(leaf, **alone, **{k: v[..., part] for k, v in shared.items()})
        (wanted_d_u,) = torch.autograd.grad(wanted, leaf, leaf.detach())
        inner = slice(300 if start else 0, 900)        # what came before is forgotten here
        assert relative(y[..., part][..., inner], wanted[..., inner]) < 4e-3
        inner = slice(0, 600 if start + 900 < l else 900)   # and here what comes after is
        assert relative(d_u[..., part][..., inner], wanted_d_u[..., inner]) < 4e-3
        assert bool(wanted.any()) and bool(wanted_d_u.any())
