"""A recurrence of your own: minGRU, defined outside the package.

    f_t = sigmoid(k_t),  h_t = (1 - f_t) h_{t-1} + f_t x_t          Feng et al., Were RNNs All We Needed? (2024), §3.1

Run it:  python docs/examples/mingru.py
It checks forward, gradients, the decode step and torch.compile against the float64 oracle, on every device here.
"""

from __future__ import annotations

import sys

import torch
from jaxtyping import Float
from torch import Tensor

import scanc.dsl as sc


@sc.op
def mingru(
    k: Float[Tensor, "b l d"],
    x: Float[Tensor, "b l d"],
    initial_state: Float[Tensor, "b d"] | None = None,
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b d"]]:
    f = sc.sigmoid(k)
    h = sc.scan(1.0 - f, f * x, axis="l", initial=initial_state)
    return h, sc.last(h, "l")


def relative(x: Tensor, truth: Tensor) -> float:
    x, truth = x.detach().double(), truth.detach().double()
    return float((x - truth).norm() / truth.norm())


def check(device: str) -> float:
    """The largest relative error of anything compared."""
    torch.manual_seed(0)
    k, x = (torch.randn(3, 1000, 75, device=device, requires_grad=True) for _ in range(2))
    start = torch.randn(3, 75, device=device, requires_grad=True)
    weight = torch.randn(3, 1000, 75, device=device)

    h, last = mingru(k, x, start)
    gradients = torch.autograd.grad((h * weight).sum() + last.sum(), (k, x, start))
    wide = [t.detach().double().requires_grad_() for t in (k, x, start)]
    truth, last_truth = mingru.reference(*wide)
    truths = torch.autograd.grad((truth * weight.double()).sum() + last_truth.sum(), wide)
    errors = {"forward": relative(h, truth), "last state": relative(last, last_truth)}
    errors |= {f"d_{n}": relative(a, b) for n, a, b in zip(("k", "x", "initial_state"), gradients, truths, strict=True)}

    with torch.no_grad():
        state = start.detach().clone()
        steps = torch.stack([mingru.step(state, k[:, t], x[:, t]) for t in range(k.shape[1])], 1)
    errors |= {"step": relative(steps, truth), "state after steps": relative(state, last_truth)}

    compiled = torch.compile(lambda *t: mingru(*t)[0].square().sum(), fullgraph=True)
    errors["compiled"] = relative(compiled(k, x, start), truth.square().sum())
    for name, error in errors.items():
        print(f"{device:5} {name:18} {error:.1e}")
    return max(errors.values())


if __name__ == "__main__":
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    sys.exit(0 if max(check(d) for d in devices) < 2e-5 else 1)
