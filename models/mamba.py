"""Mamba, the selective state space language model (Gu and Dao 2023, arXiv 2312.00752), on scanc's ops.

    shapes  b  batch                                    v  vocabulary, padded to a multiple
            l  time                                     r  dt_rank, the rank of the step size's projection
            m  d_model, the width of the residual       w  d_conv, taps of the short convolution
            d  d_inner = expand * m, the channels       n  d_state, the state of one channel

    A     (d n)      how fast each state decays, -exp(A_log); the only part that does not depend on the input
    delta (b d l)    the step size, before its bias and softplus               (section 3.2, Algorithm 2)
    B, C  (b n l)    how the input enters the state, and how the state is read (section 3.2, Algorithm 2)
    D     (d)        the skip from input to output
    u, z  (b d l)    the two halves of the input projection: what is scanned, and what gates it (section 3.4)

A layer is  out_proj(scan(silu(conv(u)), delta, A, B, C, D) * silu(z))  between a norm and a residual. What a layer remembers
between two calls is its window, the last w-1 inputs of the convolution, and its state h:

    prefill   forward(tokens (b l), state)  ->  logits (b l v), new state      any number of chunks, one after another
    decode    step(token (b), state)        ->  logits (b v)                   the state is updated in place

Modules are named as state-spaces/mamba names them, so its checkpoints' names are this model's names (checkpoint.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanc.errors import ArgumentError
from scanc.ops import selective_scan


@dataclass(frozen=True)
class MambaConfig:
    """Sizes and choices of a Mamba model, under state-spaces' names; the defaults are mamba-130m's.

    ``dt_rank="auto"`` is ceil(d_model / 16). ``rms_norm=False`` takes LayerNorm. ``residual_in_fp32`` keeps the residual
    stream in float32 whatever the parameters' dtype. ``dt_*`` shape the initialisation only (section 3.6: softplus(bias of
    dt_proj) is drawn log-uniformly from [dt_min, dt_max]). Raises ArgumentError on a size below 1 or a ``dt_rank`` that is
    neither "auto" nor a size.
    """

    d_model: int = 768
    n_layer: int = 24
    vocab_size: int = 50277
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int | str = "auto"
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    dt_init: str = "random"
    dt_scale: float = 1.0
    dt_init_floor: float = 1e-4
    conv_bias: bool = True
    bias: bool = False
    rms_norm: bool = True
    norm_epsilon: float = 1e-5
    residual_in_fp32: bool = True
    pad_vocab_size_multiple: int = 8
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layer", "vocab_size", "d_state", "d_conv", "expand", "pad_vocab_size_multiple"):
            value = getattr(self, name)
            self._need(name, isinstance(value, int) and value >= 1, "it must be an integer, 1 or more")
        rank = isinstance(self.dt_rank, int) and self.dt_rank >= 1
        self._need("dt_rank", rank or self.dt_rank == "auto", 'it must be "auto", or an integer, 1 or more')
        self._need("dt_init", self.dt_init in ("random", "constant"), 'it must be "random" or "constant"')
        self._need("dt_min", 0 < self.dt_min <= self.dt_max, f"it must lie above 0 and not above dt_max = {self.dt_max}")

    def _need(self, field: str, holds: bool, limit: str) -> None:
        if not holds:
            raise ArgumentError(op="MambaConfig", argument=field, value=repr(getattr(self, field)), limit=limit, remedy="Change it.")

    @property
    def d_inner(self) -> int:
        """Channels d."""
        return self.expand * self.d_model

    @property
    def rank(self) -> int:
        """dt_rank as a number r."""
        return math.ceil(self.d_model / 16) if isinstance(self.dt_rank, str) else self.dt_rank

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding v: vocab_size rounded up to the multiple. Ids from vocab_size on mean nothing."""
        return -(-self.vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple


class MambaState(NamedTuple):
    """What a model remembers of the tokens so far, per layer; a pytree of tensors.

    ``conv``  windows (b d w-1): the last w-1 inputs of the short convolution, oldest first, in the activations' dtype
    ``ssm``   states (b d n), float32
    """

    conv: tuple[Tensor, ...]
    ssm: tuple[Tensor, ...]

    def clone(self) -> MambaState:
        """A copy whose tensors are its own, for trying several continuations of one prefix."""
        return MambaState(tuple(t.clone() for t in self.conv), tuple(t.clone() for t in self.ssm))


class Scan(Protocol):
    """What the model needs of a selective scan; scanc.ops.selective_scan's signature and shapes."""

    def __call__(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
                 delta_bias: Tensor | None = None, initial_state: Tensor | None = None, *, delta_softplus: bool = False,
                 seq_idx: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

    def step(self, state: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
             z: Tensor | None = None, delta_bias: Tensor | None = None, *, delta_softplus: bool = False) -> Tensor: ...


class ReferenceScan:
    """selective_scan evaluated by torch operations: slow, any device. A step is a scan over one token."""

    def __call__(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
                 delta_bias: Tensor | None = None, initial_state: Tensor | None = None, *, delta_softplus: bool = False,
                 seq_idx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return selective_scan.reference(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus=delta_softplus, seq_idx=seq_idx)

    def step(self, state: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
             z: Tensor | None = None, delta_bias: Tensor | None = None, *, delta_softplus: bool = False) -> Tensor:
        y, last = self(u[..., None], delta[..., None], A, B[..., None], C[..., None], D, None if z is None else z[..., None],
                       delta_bias, state, delta_softplus=delta_softplus)
        state.copy_(last)
        return y[..., 0]


# The ways a model can scan, by the name Mamba.use_scan takes.
SCANS: dict[str, Scan] = {"scanc": selective_scan, "reference": ReferenceScan()}


class RMSNorm(nn.Module):
    """x * weight / sqrt(mean(x^2) + eps) over the last axis, in float32; the result is in the weight's dtype."""

    def __init__(self, width: int, eps: float, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return (x * scale * self.weight.float()).to(self.weight.dtype)


class LayerNorm(nn.LayerNorm):
    """torch's LayerNorm in float32; the result is in the weight's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return y.to(self.weight.dtype)


class MambaBlock(nn.Module):
    """The mixer: projection, short causal convolution, selective scan, gate, projection (section 3.4, Figure 3)."""

    def __init__(self, config: MambaConfig, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        m, d, n, r, w = config.d_model, config.d_inner, config.d_state, config.rank, config.d_conv
        self.sizes = (r, n, n)
        self.scan = "scanc"
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
        d, bound = config.d_inner, config.dt_scale * config.rank**-0.5
        if config.dt_init == "constant":
            self.dt_proj.weight.fill_(bound)
        else:
            self.dt_proj.weight.uniform_(-bound, bound)
        low, high = math.log(config.dt_min), math.log(config.dt_max)
        dt = torch.exp(low + (high - low) * torch.rand(d)).clamp(min=config.dt_init_floor)
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus's inverse, exact for small dt
        for proj in (self.in_proj, self.out_proj):
            if proj.bias is not None:
                proj.bias.zero_()
        # n_layer branches are summed into the residual: GPT-2's scaling keeps its variance independent of the depth.
        self.out_proj.weight.div_(math.sqrt(config.n_layer))

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
        window = torch.cat([conv.to(u.dtype), u[..., None]], dim=-1)                    # (b d w)
        conv.copy_(window[..., 1:])
        total = (window.float() * self.conv1d.weight[:, 0].float()).sum(-1)             # one row of a conv1d, far cheaper
        if self.conv1d.bias is not None:
            total = total + self.conv1d.bias.float()
        u = F.silu(total).to(u.dtype)                                                   # (b d)
        delta, B, C = self._select(u)                                                   # (b d), (b n), (b n)
        y = SCANS[self.scan].step(ssm, u, delta, self.A, B[:, None], C[:, None], self.D.float(), z, self.dt_proj.bias.float(),
                                  delta_softplus=True)                                  # (b d)
        return self.out_proj(y)

    def _select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u (... d) -> delta (... d), B (... n), C (... n): the input chooses them. The bias of delta is left to the scan."""
        dt, B, C = self.x_proj(u).split(self.sizes, dim=-1)
        return F.linear(dt, self.dt_proj.weight), B, C

    def _short_conv(self, u: Tensor, window: Tensor | None, seq_idx: Tensor | None) -> tuple[Tensor, Tensor]:
        """silu(causal depthwise convolution) of u (b d l) after a window (b d w-1), zeros if None -> (b d l) and the next window."""
        b, d, l = u.shape
        w = self.conv1d.kernel_size[0]
        past = u.new_zeros(b, d, w - 1) if window is None else window.to(u.dtype)
        seen = torch.cat([past, u], dim=-1)                                             # (b d w-1+l)
        window = seen[..., l:].clone()                                                  # a view would keep all of seen alive
        if seq_idx is None:
            return F.silu(self.conv1d(seen)), window
        # Packed sequences: a tap counts where it looks at its own sequence. The window belongs to the first one.
        ids = torch.cat([seq_idx[:, :1].expand(b, w - 1), seq_idx], dim=1)[:, None]     # (b 1 w-1+l)
        own = [seen[..., j:j + l] * (ids[..., j:j + l] == ids[..., w - 1:]) for j in range(w)]
        total = sum(tap * weight for tap, weight in zip(own, self.conv1d.weight.permute(2, 0, 1), strict=True))
        if self.conv1d.bias is not None:
            total = total + self.conv1d.bias[:, None]
        return F.silu(total).to(u.dtype), window * (ids[..., l:] == ids[..., -1:])


class Residual(nn.Module):
    """x + mixer(norm(x))."""

    def __init__(self, config: MambaConfig, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.norm = _norm(config, dtype)
        self.mixer = MambaBlock(config, dtype)


class Backbone(nn.Module):
    """Embedding, layers and the last norm: the parameters under ``backbone.`` in a checkpoint."""

    def __init__(self, config: MambaConfig, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.padded_vocab_size, config.d_model, dtype=dtype)
        self.layers = nn.ModuleList(Residual(config, dtype) for _ in range(config.n_layer))
        self.norm_f = _norm(config, dtype)


def _norm(config: MambaConfig, dtype: torch.dtype | None) -> nn.Module:
    kind = RMSNorm if config.rms_norm else LayerNorm
    return kind(config.d_model, eps=config.norm_epsilon, dtype=dtype)


class Mamba(nn.Module):
    """A Mamba language model.

        model = Mamba(MambaConfig(d_model=128, n_layer=4, vocab_size=256))
        logits, state = model(tokens)                # (b l v), MambaState
        logits, state = model(more_tokens, state)    # continues; differentiable in the state too
        logits = model.step(token, state)            # (b v), one token; state updated in place

    ``dtype`` is the parameters'; A_log and D stay float32, which ``model.bfloat16()`` would not see to.
    """

    def __init__(self, config: MambaConfig, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config, dtype)
        self.lm_head = nn.Linear(config.d_model, config.padded_vocab_size, bias=False, dtype=dtype)
        nn.init.normal_(self.backbone.embedding.weight, std=0.02)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Makes lm_head use the embedding's weight where the config says so; needed after parameters are replaced."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    @property
    def layers(self) -> Sequence[Residual]:
        return cast("Sequence[Residual]", self.backbone.layers)

    def use_scan(self, name: str) -> Mamba:
        """Chooses how every layer scans: "scanc", the compiled op, or "reference", torch operations. Raises ArgumentError."""
        if name not in SCANS:
            raise ArgumentError(op="Mamba.use_scan", argument="name", value=repr(name), limit="no such scan is known",
                                remedy=f"Names known: {', '.join(SCANS)}.")
        for layer in self.layers:
            layer.mixer.scan = name
        return self

    def forward(self, tokens: Tensor, state: MambaState | None = None, *, seq_idx: Tensor | None = None,
                num_last_tokens: int = 0) -> tuple[Tensor, MambaState]:
        """Logits of every position, and the state after the last.

        tokens (b l) integers; ``state`` what came before, left as it is; ``seq_idx`` (b l) int32 numbers packed sequences,
        none of which sees another (``state`` belongs to the first, the state returned to the last); ``num_last_tokens`` > 0
        computes the logits of that many last positions alone. Raises ArgumentError on shapes and dtypes that do not fit.
        """
        self._check(tokens, state, dims="b l")
        if seq_idx is not None and seq_idx.shape != tokens.shape:
            raise ArgumentError(op="Mamba", argument="seq_idx", value=tuple(seq_idx.shape), limit=f"tokens are {tuple(tokens.shape)}",
                                remedy="Give one sequence number per token.")
        x = self._embed(tokens)                                                         # (b l m)
        conv, ssm = [], []
        for i, layer in enumerate(self.layers):
            before = (None, None) if state is None else (state.conv[i], state.ssm[i])
            out, window, last = layer.mixer(layer.norm(x), *before, seq_idx)
            x = x + out
            conv.append(window)
            ssm.append(last)
        return self._read_out(x[:, -num_last_tokens:]), MambaState(tuple(conv), tuple(ssm))

    @torch.no_grad()
    def step(self, token: Tensor, state: MambaState) -> Tensor:
        """Logits (b v) after one more token (b); ``state`` is updated in place, so no gradient passes. Raises ArgumentError."""
        self._check(token, state, dims="b")
        x = self._embed(token)                                                          # (b m)
        for layer, conv, ssm in zip(self.layers, state.conv, state.ssm, strict=True):
            x = x + layer.mixer.step(layer.norm(x), conv, ssm)
        return self._read_out(x)

    def allocate_state(self, batch: int, *, dtype: torch.dtype | None = None) -> MambaState:
        """The state before the first token: zeros. ``dtype`` is the windows', by default the parameters'."""
        c, weight = self.config, self.backbone.embedding.weight
        conv = (torch.zeros(batch, c.d_inner, c.d_conv - 1, device=weight.device, dtype=dtype or weight.dtype) for _ in range(c.n_layer))
        ssm = (torch.zeros(batch, c.d_inner, c.d_state, device=weight.device) for _ in range(c.n_layer))
        return MambaState(tuple(conv), tuple(ssm))

    def _embed(self, tokens: Tensor) -> Tensor:
        x = self.backbone.embedding(tokens)
        return x.float() if self.config.residual_in_fp32 else x

    def _read_out(self, x: Tensor) -> Tensor:
        return self.lm_head(self.backbone.norm_f(x))

    def _check(self, tokens: Tensor, state: MambaState | None, dims: str) -> None:
        shape, rank = tuple(tokens.shape), len(dims.split())
        if len(shape) != rank or 0 in shape:
            raise ArgumentError(op="Mamba", argument="tokens", value=shape, limit=f"they must be ({dims}), with none of them 0",
                                remedy="Use forward for (b l) and step for (b).")
        if tokens.dtype not in (torch.int32, torch.int64):
            raise ArgumentError(op="Mamba", argument="tokens", value=tokens.dtype, limit="they must be int32 or int64",
                                remedy="Convert them with .long().")
        if state is None:
            return
        c, b = self.config, shape[0]
        expected = ((b, c.d_inner, c.d_conv - 1), (b, c.d_inner, c.d_state))
        for name, tensors, want in zip(MambaState._fields, state, expected, strict=True):
            found = sorted({tuple(t.shape) for t in tensors})
            if len(tensors) != c.n_layer or found != [want]:
                raise ArgumentError(op="Mamba", argument=f"state.{name}", value=f"{len(tensors)} tensors of {found}",
                                    limit=f"this model and batch have {c.n_layer} of {want}", remedy="Use allocate_state(batch).")
