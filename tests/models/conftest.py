"""What the model tests share: a scan written as a plain loop, a small model, and relative errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scanc.models import Mamba, MambaConfig
from scanc.models.mamba import SCANS


class LoopScan:
    """selective_scan as the paper's recurrence reads, one step after another, in float64: an account independent of scanc's."""

    def __call__(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
                 delta_bias: Tensor | None = None, initial_state: Tensor | None = None, *, delta_softplus: bool = False,
                 seq_idx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        b, d, l = u.shape
        dt = delta.double() if delta_bias is None else delta.double() + delta_bias.double()[:, None]
        dt = F.softplus(dt) if delta_softplus else dt
        h = u.new_zeros(b, d, A.shape[1], dtype=torch.float64) if initial_state is None else initial_state.double()
        ys = []
        for t in range(l):
            if seq_idx is not None and t > 0:
                h = h * (seq_idx[:, t] == seq_idx[:, t - 1])[:, None, None]
            h = torch.exp(dt[:, :, t, None] * A.double()) * h + (dt * u)[:, :, t, None] * B[:, 0, None, :, t]
            ys.append((h * C[:, 0, None, :, t]).sum(-1))
        y = torch.stack(ys, dim=-1)
        y = y if D is None else y + D.double()[:, None] * u
        y = y if z is None else y * F.silu(z.double())
        return y.to(u.dtype), h.float()

    def step(self, state: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
             z: Tensor | None = None, delta_bias: Tensor | None = None, *, delta_softplus: bool = False) -> Tensor:
        y, h = self(u[..., None], delta[..., None], A, B[..., None], C[..., None], D, None if z is None else z[..., None], delta_bias,
                    state, delta_softplus=delta_softplus)
        state.copy_(h)
        return y[..., 0]


@pytest.fixture
def relative() -> Callable[[Tensor, Tensor], float]:
    """‖found - wanted‖ / ‖wanted‖; NaN stays NaN, which no bound admits, and a wanted zero is no test."""

    def measure(found: Tensor, wanted: Tensor) -> float:
        found, wanted = found.detach().double(), wanted.detach().double()
        return float((found - wanted).norm() / wanted.norm())

    return measure


@pytest.fixture(autouse=True)
def loop_scan() -> Iterator[None]:
    """Makes ``model.use_scan("loop")`` known."""
    SCANS["loop"] = LoopScan()
    yield
    del SCANS["loop"]


@pytest.fixture
def make_model() -> Callable[[MambaConfig], Mamba]:
    """Models whose norms, biases, A and D are not all alike, so that a mix-up of channels or states shows."""

    def make(config: MambaConfig) -> Mamba:
        torch.manual_seed(0)
        made = Mamba(config)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if name.endswith(("A_log", ".D", "norm.weight", "norm_f.weight", "bias")):
                    parameter.add_(0.3 * torch.randn_like(parameter))
        return made.use_scan("loop")

    return make


@pytest.fixture
def model(make_model: Callable[[MambaConfig], Mamba]) -> Mamba:
    return make_model(MambaConfig(d_model=24, n_layer=2, vocab_size=61, d_state=5))
