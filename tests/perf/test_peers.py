"""The rivals compute what we compute, and the parallel scan is a scan."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from scanc.perf.peers import PEERS, Peer, anchor, anchors, peers_for
from scanc.perf.pscan import pscan

OPTIONS = {"delta_softplus": True}


def error(found: Tensor, expected: Tensor) -> float:
    return float(((found.double() - expected.double()).norm() / expected.double().norm()).detach())


def by_steps(a: Tensor, b: Tensor) -> Tensor:
    h, hs = torch.zeros_like(a[:, 0]), []
    for t in range(a.shape[1]):
        h = a[:, t] * h + b[:, t]
        hs.append(h)
    return torch.stack(hs, 1)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 33, 64])
def test_the_parallel_scan_is_the_recurrence(length: int) -> None:
    made = torch.Generator().manual_seed(length)
    a = torch.rand(2, length, 3, 4, generator=made, dtype=torch.float64).requires_grad_()
    b = torch.randn(2, length, 3, 4, generator=made, dtype=torch.float64).requires_grad_()
    before = a.detach().clone(), b.detach().clone()
    found, expected = pscan(a, b), by_steps(a, b)
    assert error(found, expected) < 1e-12
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])
    cotangent = torch.randn(found.shape, generator=made, dtype=torch.float64)
    for ours, theirs in zip(torch.autograd.grad(found, (a, b), cotangent), torch.autograd.grad(expected, (a, b), cotangent), strict=True):
        assert float((ours - theirs).norm()) <= 1e-12 * float(1 + theirs.norm())


def inputs(groups: int) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(7)
    b, d, length, n = 2, 6, 19, 4

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made)

    return {"u": randn(b, d, length), "delta": randn(b, d, length), "A": -torch.rand(d, n, generator=made) - 0.1,
            "B": randn(b, groups, n, length), "C": randn(b, groups, n, length), "D": randn(d), "z": randn(b, d, length),
            "delta_bias": randn(d), "initial_state": randn(b, d, n), "d_y": randn(b, d, length)}


def by_definition(x: Mapping[str, Tensor]) -> Tensor:
    """Mamba's equations, one element at a time over time, in float64."""
    w = {k: v.double() for k, v in x.items()}
    dt = torch.nn.functional.softplus(w["delta"] + w["delta_bias"][:, None])
    each = x["u"].shape[1] // x["B"].shape[1]
    big_b, big_c = (w[k].repeat_interleave(each, 1) for k in ("B", "C"))  # (b d n l)
    h, ys = w["initial_state"], []
    for t in range(x["u"].shape[-1]):
        h = torch.exp(dt[:, :, t, None] * w["A"]) * h + dt[:, :, t, None] * big_b[..., t] * w["u"][:, :, t, None]
        ys.append((big_c[..., t] * h).sum(-1))
    z = w["z"]
    return (torch.stack(ys, -1) + w["D"][:, None] * w["u"]) * z * torch.sigmoid(z)


def selective_scan_peers() -> list[Peer]:
    return [p for p in PEERS if p.op == "selective_scan" and not p.steps and p.runs_on("cpu")]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("peer", selective_scan_peers(), ids=lambda p: p.name)
def test_selective_scan_peers_follow_mambas_equations(peer: Peer, groups: int) -> None:
    x = inputs(groups)
    expected = by_definition(x)
    assert error(peer.call(x, OPTIONS, "forward")()["y"], expected) < 1e-5


@pytest.mark.parametrize("peer", selective_scan_peers(), ids=lambda p: p.name)
def test_their_gradients_are_those_of_the_equations(peer: Peer) -> None:
    x = inputs(1)
    leaves = {k: v.double().requires_grad_() for k, v in x.items() if k != "d_y"}
    expected = dict(zip(leaves, torch.autograd.grad(by_definition(leaves), list(leaves.values()), x["d_y"].double()), strict=True))
    backward = peer.call(x, OPTIONS, "backward")
    found = backward()
    assert set(found) == {f"d_{k}" for k in leaves}
    for name, gradient in expected.items():
        assert error(found[f"d_{name}"], gradient) < 1e-4, name
    again = backward()
    assert all(torch.equal(found[k], again[k]) for k in found)


def test_the_fft_convolution_is_the_convolution() -> None:
    made = torch.Generator().manual_seed(3)
    u, k, skip = torch.randn(2, 3, 17, generator=made), torch.randn(3, 17, generator=made), torch.randn(3, generator=made)
    (peer,) = [p for p in peers_for("fft_conv", "forward", "cpu") if p.name == "torch.fft"]
    found = peer.call({"u": u, "k": k, "D": skip}, {}, "forward")()["y"]
    expected = torch.stack([sum(k[:, j] * u[:, :, t - j] for j in range(t + 1)) for t in range(17)], -1) + skip[:, None] * u
    assert error(found, expected) < 1e-5


def test_a_recorded_figure_is_found_for_its_own_device_and_case_only() -> None:
    case = {"b": 8, "d": 4096, "l": 2048, "n": 16, "g": 1}
    found = anchor("NVIDIA H100 80GB HBM3", "selective_scan", case, "bfloat16", "forward")
    assert found is not None and (found.peer, found.ms, found.goal_ms) == ("mamba_ssm", 1.169, 0.47)
    assert anchor("NVIDIA H200", "selective_scan", case, "bfloat16", "forward") is None
    assert anchor("NVIDIA H100 80GB HBM3", "selective_scan", case, "float16", "forward") is None
    assert anchor("NVIDIA H100 80GB HBM3", "selective_scan", {**case, "b": 4}, "bfloat16", "forward") is None


def test_of_several_recorded_rivals_the_fastest_counts() -> None:
    rows = anchors("NVIDIA H100 80GB HBM3")
    assert all(r["peer_ms"] > 0 and (r["floor_ms"] or 0) < r["peer_ms"] for r in rows)
    best = anchor("NVIDIA H100 80GB HBM3", "fft_conv", {"b": 64, "d": 768, "l": 1024}, "float16", "forward")
    assert best is not None and best.peer == "flashfftconv"
