"""Mamba, the selective state space language model (Gu and Dao 2023, arXiv 2312.00752), on scanc's ops.

    shapes  b  batch                                    r  dt_rank, the rank of the step size's projection
            l  time                                     w  d_conv, taps of the short convolution
            m  d_model, the width of the residual       n  d_state, the state of one channel
            d  d_inner = expand * m, the channels

    A     (d n)      how fast each state decays, -exp(A_log); the only part that does not depend on the input
    delta (b d l)    the step size, before its bias and softplus               (section 3.2, Algorithm 2)
    B, C  (b n l)    how the input enters the state, and how the state is read (section 3.2, Algorithm 2)
    D     (d)        the skip from input to output
    u, z  (b d l)    the two halves of the input projection: what is scanned, and what gates it (section 3.4)

A layer is  out_proj(scan(silu(conv(u)), delta, A, B, C, D) * silu(z))  between a norm and a residual. It remembers a window
(b d w-1) and a state (b d n); what is around the layers, and how a model goes on from what it remembers, is language_model.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanc.models.language_model import Config, LanguageModel, MambaState, Mixer, ReferenceScan
from scanc.ops import selective_scan
from scanc.ops.initial import step_bias


@dataclass(frozen=True)
class MambaConfig(Config):
    """Sizes and choices of a Mamba model, under state-spaces' names; the defaults, Config's too, are mamba-130m's.

    ``dt_rank="auto"`` is ceil(d_model / 16). ``rms_norm=False`` takes LayerNorm. ``residual_in_fp32`` keeps the residual
    stream in float32 whatever the parameters' dtype. ``dt_*`` shape the initialisation only (section 3.6: softplus(bias of
    dt_proj) is drawn log-uniformly from [dt_min, dt_max]). Raises ArgumentError on a size below 1 or a ``dt_rank`` that is
    neither "auto" nor a size.
    """

    d_state: int = 16
    expand: int = 2
    dt_rank: int | str = "auto"
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    dt_init: str = "random"
    dt_scale: float = 1.0
    dt_init_floor: float = 1e-4
    conv_bias: bool = True
    bias: bool = False

    sizes = (*Config.sizes, "d_state", "expand")

    def __post_init__(self) -> None:
        super().__post_init__()
        rank = isinstance(self.dt_rank, int) and self.dt_rank >= 1
        self._need("dt_rank", rank or self.dt_rank == "auto", 'it must be "auto", or an integer, 1 or more')
        self._need("dt_init", self.dt_init in ("random", "constant"), 'it must be "random" or "constant"')
        self._need("dt_min", 0 < self.dt_min <= self.dt_max, f"it must lie above 0 and not above dt_max = {self.dt_max}")

    @property
    def d_inner(self) -> int:
        """Channels d."""
        return self.expand * self.d_model

    @property
    def rank(self) -> int:
        """dt_rank as a number r."""
        return math.ceil(self.d_model / 16) if isinstance(self.dt_rank, str) else self.dt_rank

    @property
    def conv_shape(self) -> tuple[int, ...]:
        return self.d_inner, self.d_conv - 1

    @property
    def ssm_shape(self) -> tuple[int, ...]:
        return self.d_inner, self.d_state


# The ways a model can scan, by the name Mamba.use_scan takes.
SCANS: dict[str, Any] = {"scanc": selective_scan, "reference": ReferenceScan(selective_scan)}


class MambaBlock(Mixer):
    """The mixer: projection, short causal convolution, selective scan, gate, projection (section 3.4, Figure 3)."""

    scans = SCANS

    def __init__(self, config: MambaConfig, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        m, d, n, r, w = config.d_model, config.d_inner, config.d_state, config.rank, config.d_conv
        self.sizes = (r, n, n)
        self.in_proj = nn.Linear(m, 2 * d, bias=config.bias, dtype=dtype)
        self.conv1d = nn.Conv1d(d, d, w, groups=d, bias=config.conv_bias, dtype=dtype)
        self.x_proj = nn.Linear(d, r + 2 * n, bias=False, dtype=dtype)
        self.dt_proj = nn.Linear(r, d, bias=True, dtype=dtype)
        # A_log and D stay in float32: a bfloat16 A would be off by up to 0.4 %, and powers of exp(dt A) magnify that.
        self.A_log = nn.Parameter(torch.log(torch.arange(1, n + 1, dtype=torch.float32)).repeat(d, 1))
        self.D = nn.Parameter(torch.ones(d, dtype=torch.float32))
        self.out_proj = nn.Linear(d, m, bias=config.bias, dtype=dtype)
        self._initialise(config)

    @torch.no_grad()
    def _initialise(self, config: MambaConfig) -> None:
        """Section 3.6 and the released code: what torch's own initialisation of the layers above leaves to do."""
        bound = config.dt_scale * config.rank**-0.5
        if config.dt_init == "constant":
            self.dt_proj.weight.fill_(bound)
        else:
            self.dt_proj.weight.uniform_(-bound, bound)
        self.dt_proj.bias.copy_(step_bias(config.d_inner, config.dt_min, config.dt_max, config.dt_init_floor, self.dt_proj.bias.device))
        self._initialise_projections(config.n_layer)

    @property
    def A(self) -> Tensor:
        """(d n) float32, negative."""
        return -torch.exp(self.A_log.float())

    def forward(self, x: Tensor, conv: Tensor | None = None, ssm: Tensor | None = None,
                seq_idx: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (b l m), window (b d w-1) and state (b d n) or None for a fresh start -> out (b l m), window, state."""
        u, z = self.in_proj(x).transpose(1, 2).chunk(2, dim=1)                          # (b d l) each
        u, conv = self._short_conv(u, conv, seq_idx)                                    # (b d l), (b d w-1)
        delta, B, C = self._select(u.transpose(1, 2))                                   # (b l d), (b l n), (b l n)
        B, C = B.transpose(1, 2)[:, None], C.transpose(1, 2)[:, None]                   # (b 1 n l): one group
        y, ssm = SCANS[self.scan](u, delta.transpose(1, 2), self.A, B, C, self.D.float(), z, self.dt_proj.bias.float(), ssm,
                                  delta_softplus=True, seq_idx=seq_idx)                 # (b d l), (b d n)
        return self.out_proj(y.transpose(1, 2)), conv, ssm

    def step(self, x: Tensor, conv: Tensor, ssm: Tensor) -> Tensor:
        """x (b m) -> out (b m); window (b d w-1) and state (b d n) are updated in place."""
        u, z = self.in_proj(x).chunk(2, dim=-1)                                         # (b d) each
        u = self._short_conv_step(u, conv)                                              # (b d)
        delta, B, C = self._select(u)                                                   # (b d), (b n), (b n)
        y = SCANS[self.scan].step(ssm, u, delta, self.A, B[:, None], C[:, None], self.D.float(), z, self.dt_proj.bias.float(),
                                  delta_softplus=True)                                  # (b d)
        return self.out_proj(y)

    def _select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u (... d) -> delta (... d), B (... n), C (... n): the input chooses them. The bias of delta is left to the scan."""
        dt, B, C = self.x_proj(u).split(self.sizes, dim=-1)
        return F.linear(dt, self.dt_proj.weight), B, C


class Mamba(LanguageModel[MambaConfig]):
    """A Mamba language model.

        model = Mamba(MambaConfig(d_model=128, n_layer=4, vocab_size=256))
        logits, state = model(tokens)                # (b l v), MambaState
        logits, state = model(more_tokens, state)    # continues; differentiable in the state too
        logits = model.step(token, state)            # (b v), one token; state updated in place

    ``dtype`` is the parameters'; A_log and D stay float32, which ``model.bfloat16()`` would not see to.
    """

    block = MambaBlock


__all__ = ["SCANS", "Mamba", "MambaBlock", "MambaConfig", "MambaState"]
