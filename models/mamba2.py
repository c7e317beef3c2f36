"""Mamba-2, the language model of structured state-space duality (Dao and Gu 2024, arXiv 2405.21060), on scanc's ops.

    shapes  b  batch                                    h  heads, d / p
            l  time                                     p  headdim, channels of a head
            m  d_model, the width of the residual       g  ngroups: heads of one group share B, C and the gated norm
            d  d_inner = expand * m, the channels       n  d_state, the state of one channel
            w  d_conv, taps of the short convolution    c  d + 2 g n, what the convolution runs over: x, B and C

    A     (h)        how fast a head's state decays, -exp(A_log); the only part that does not depend on the input
    dt    (b l h)    the step size, before its bias and softplus; then kept within dt_limit
    B, C  (b l g n)  how the input enters the state, and how the state is read            (section 6)
    D     (h)        the skip from input to output
    x, z  (b l h p)  two parts of the input projection: what is scanned, and what gates it (section 7.1, Figure 6)

A layer is  out_proj(norm(ssd(x, dt, A, B, C, D) * silu(z)))  between a norm and a residual, with (x, B, C) = silu(conv(xBC)) and
(z, xBC, dt) one projection of the input. It remembers a window (b c w-1) and a state (b h p n); what is around the layers, and how
a model goes on from what it remembers, is language_model.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanc.models.language_model import Config, LanguageModel, Mixer, ReferenceScan
from scanc.ops import ssd
from scanc.ops.initial import step_bias


@dataclass(frozen=True)
class Mamba2Config(Config):
    """Sizes and choices of a Mamba-2 model, under state-spaces' names; the defaults, Config's too, are mamba2-130m's.

    ``dt_limit`` keeps the step size, after its softplus, within two bounds. ``A_init_range`` and the other ``dt_*`` shape the
    initialisation only: -A is drawn uniformly from the one, softplus(dt_bias) log-uniformly from [dt_min, dt_max].
    Raises ArgumentError on a size below 1, channels that do not fall into whole heads, or heads into groups, or an empty range.
    """

    d_state: int = 128
    expand: int = 2
    headdim: int = 64
    ngroups: int = 1
    A_init_range: tuple[float, float] = (1.0, 16.0)
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    dt_init_floor: float = 1e-4
    dt_limit: tuple[float, float] = (0.0, float("inf"))
    conv_bias: bool = True
    bias: bool = False
    pad_vocab_size_multiple: int = 16

    sizes = (*Config.sizes, "d_state", "expand", "headdim", "ngroups")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("A_init_range", "dt_limit"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))  # files hold lists
        self._need("headdim", self.d_inner % self.headdim == 0, f"it must divide the {self.d_inner} channels")
        self._need("ngroups", self.heads % self.ngroups == 0, f"it must divide the {self.heads} heads")
        self._need("dt_min", 0 < self.dt_min <= self.dt_max, f"it must lie above 0 and not above dt_max = {self.dt_max}")
        low, high = self.A_init_range
        self._need("A_init_range", 0 < low <= high, "it must be a range above 0")
        self._need("dt_limit", self.dt_limit[0] < self.dt_limit[1], "it must be a lower and an upper bound")

    @property
    def d_inner(self) -> int:
        """Channels d."""
        return self.expand * self.d_model

    @property
    def heads(self) -> int:
        return self.d_inner // self.headdim

    @property
    def conv_shape(self) -> tuple[int, ...]:
        return self.d_inner + 2 * self.ngroups * self.d_state, self.d_conv - 1

    @property
    def ssm_shape(self) -> tuple[int, ...]:
        return self.heads, self.headdim, self.d_state


class GatedRMSNorm(nn.Module):
    """norm(y * silu(z)) * weight, each group of channels normed on its own, in float32; the result is in the weight's dtype."""

    def __init__(self, width: int, groups: int, eps: float, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(width, dtype=dtype))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        gated = (y.float() * F.silu(z.float())).unflatten(-1, (self.groups, -1))        # (... g d/g)
        scale = torch.rsqrt(gated.square().mean(-1, keepdim=True) + self.eps)
        return ((gated * scale).flatten(-2) * self.weight.float()).to(self.weight.dtype)


# The ways a model can scan, by the name Mamba2.use_scan takes.
SCANS: dict[str, Any] = {"scanc": ssd, "reference": ReferenceScan(ssd)}


class Mamba2Block(Mixer):
    """The mixer: one projection, short causal convolution, scan, gated norm, projection (section 7.1, Figure 6)."""

    scans = SCANS

    def __init__(self, config: Mamba2Config, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        m, d, h, c = config.d_model, config.d_inner, config.heads, config.conv_shape[0]
        self.config = config
        self.in_proj = nn.Linear(m, d + c + h, bias=config.bias, dtype=dtype)
        self.conv1d = nn.Conv1d(c, c, config.d_conv, groups=c, bias=config.conv_bias, dtype=dtype)
        # A_log, D and dt_bias stay in float32: a bfloat16 A would be off by up to 0.4 %, and powers of exp(dt A) magnify that.
        self.A_log = nn.Parameter(torch.empty(h, dtype=torch.float32).uniform_(*config.A_init_range).log())
        self.D = nn.Parameter(torch.ones(h, dtype=torch.float32))
        self.dt_bias = nn.Parameter(step_bias(h, config.dt_min, config.dt_max, config.dt_init_floor))
        self.norm = GatedRMSNorm(d, config.ngroups, config.norm_epsilon, dtype)
        self.out_proj = nn.Linear(d, m, bias=config.bias, dtype=dtype)
        self._initialise_projections(config.n_layer)

    @property
    def A(self) -> Tensor:
        """(h) float32, negative."""
        return -torch.exp(self.A_log.float())

    def forward(self, x: Tensor, conv: Tensor | None = None, ssm: Tensor | None = None,
                seq_idx: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (b l m), window (b c w-1) and state (b h p n) or None for a fresh start -> out (b l m), window, state."""
        z, xBC, dt = self._project(x)                                                   # (b l d), (b l c), (b l h)
        xBC, conv = self._short_conv(xBC.transpose(1, 2), conv, seq_idx)                # (b c l), (b c w-1)
        x, B, C = self._by_head(xBC.transpose(1, 2))                                    # (b l h p), (b l g n), (b l g n)
        y, ssm = SCANS[self.scan](x, dt, self.A, B, C, self.D.float(), None, self.dt_bias.float(), ssm, seq_idx,
                                  **self._step_options)                                 # (b l h p), (b h p n)
        return self.out_proj(self.norm(y.flatten(-2), z)), conv, ssm

    def step(self, x: Tensor, conv: Tensor, ssm: Tensor) -> Tensor:
        """x (b m) -> out (b m); window (b c w-1) and state (b h p n) are updated in place."""
        z, xBC, dt = self._project(x)                                                   # (b d), (b c), (b h)
        x, B, C = self._by_head(self._short_conv_step(xBC, conv))                       # (b h p), (b g n), (b g n)
        y = SCANS[self.scan].step(ssm, x, dt, self.A, B, C, self.D.float(), None, self.dt_bias.float(),
                                  **self._step_options)                                 # (b h p)
        return self.out_proj(self.norm(y.flatten(-2), z))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, xBC, dt = self.in_proj(x).split([self.config.d_inner, self.config.conv_shape[0], self.config.heads], dim=-1)
        return z, xBC, dt

    def _by_head(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(... c) -> x (... h p), B (... g n), C (... g n)."""
        c = self.config
        x, B, C = xBC.split([c.d_inner, c.ngroups * c.d_state, c.ngroups * c.d_state], dim=-1)
        return x.unflatten(-1, (c.heads, c.headdim)), B.unflatten(-1, (c.ngroups, -1)), C.unflatten(-1, (c.ngroups, -1))

    @property
    def _step_options(self) -> dict[str, Any]:
        """How dt becomes the step size: a lower bound of 0 limits nothing, a softplus being above it."""
        low, high = self.config.dt_limit
        return {"dt_softplus": True} | ({"dt_min": low} if low > 0 else {}) | ({"dt_max": high} if high < float("inf") else {})


class Mamba2(LanguageModel[Mamba2Config]):
    """A Mamba-2 language model.

        model = Mamba2(Mamba2Config(d_model=128, n_layer=4, vocab_size=256))
        logits, state = model(tokens)                # (b l v), MambaState
        logits, state = model(more_tokens, state)    # continues; differentiable in the state too
        logits = model.step(token, state)            # (b v), one token; state updated in place

    ``dtype`` is the parameters'; A_log, D and dt_bias stay float32, which ``model.bfloat16()`` would not see to.
    """

    block = Mamba2Block


__all__ = ["SCANS", "Mamba2", "Mamba2Block", "Mamba2Config"]
