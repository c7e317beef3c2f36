"""What Mamba's and Mamba-2's language models share: everything around a mixer.

    shapes  b  batch                                    c  channels of the short convolution
            l  time                                     w  d_conv, its taps
            m  d_model, the width of the residual       v  vocabulary, padded to a multiple

    x = embedding(tokens);  x = x + mixer(norm(x)) in every layer;  logits = lm_head(norm_f(x))

What a layer remembers between two calls is its window, the last w-1 inputs of the convolution, and its state:

    prefill   forward(tokens (b l), state)  ->  logits (b l v), new state      any number of chunks, one after another
    decode    step(token (b), state)        ->  logits (b v)                   the state is updated in place

Modules are named as state-spaces/mamba names them, so its checkpoints' names are these models' names (checkpoint.py).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanc.errors import ArgumentError
from scanc.op import Op
from scanc.ops.causal_conv1d import from_states


@dataclass(frozen=True)
class Config(ABC):
    """What every model's config has. Raises ArgumentError on a size below 1; models add their own checks."""

    d_model: int = 768
    n_layer: int = 24
    vocab_size: int = 50277
    d_conv: int = 4
    rms_norm: bool = True
    norm_epsilon: float = 1e-5
    residual_in_fp32: bool = True
    pad_vocab_size_multiple: int = 8
    tie_embeddings: bool = True

    sizes: ClassVar[tuple[str, ...]] = ("d_model", "n_layer", "vocab_size", "d_conv", "pad_vocab_size_multiple")

    def __post_init__(self) -> None:
        for name in self.sizes:
            value = getattr(self, name)
            self._need(name, isinstance(value, int) and value >= 1, "it must be an integer, 1 or more")

    def _need(self, field: str, holds: bool, limit: str) -> None:
        if not holds:
            raise ArgumentError(op=type(self).__name__, argument=field, value=repr(getattr(self, field)), limit=limit, remedy="Change it.")

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding v: vocab_size rounded up to the multiple. Ids from vocab_size on mean nothing."""
        return -(-self.vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple

    @property
    @abstractmethod
    def conv_shape(self) -> tuple[int, ...]:
        """One row's window: (c w-1)."""

    @property
    @abstractmethod
    def ssm_shape(self) -> tuple[int, ...]:
        """One row's state."""


class MambaState(NamedTuple):
    """What a model remembers of the tokens so far, per layer; a pytree of tensors.

    ``conv``  windows (b c w-1): the last w-1 inputs of the short convolution, oldest first, in the activations' dtype
    ``ssm``   states, float32: (b d n) of Mamba, (b h p n) of Mamba-2
    """

    conv: tuple[Tensor, ...]
    ssm: tuple[Tensor, ...]

    def clone(self) -> MambaState:
        """A copy whose tensors are its own, for trying several continuations of one prefix."""
        return MambaState(tuple(t.clone() for t in self.conv), tuple(t.clone() for t in self.ssm))


class ReferenceScan:
    """An op evaluated by torch operations, with the op's own calls: slow, any device. A step is a scan over one token."""

    def __init__(self, op: Op) -> None:
        self.op = op

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.op.reference(*args, **kwargs)

    def step(self, state: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        initial = next(a.name for a in self.op.arguments if a.name.startswith("initial_state"))
        given = dict(zip((a.name for a in self.op.arguments if a.name != initial), args, strict=False)) | kwargs
        for argument in self.op.arguments:
            x = given.get(argument.name)
            if x is not None:
                timed = [t.axes.index("l") for t in argument.alternatives if "l" in t.axes and len(t.axes) == x.dim() + 1]
                given[argument.name] = x.unsqueeze(timed[0]) if timed else x
        y, last = self(**given, **{initial: state})
        state.copy_(last)
        return y.squeeze(self.op.results[0].index("l"))


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


class Mixer(nn.Module):
    """What every mixer has: a short convolution, and a choice of how to scan.

        out, window, state = mixer(x, window, state, seq_idx)    x, out (b l m); None for a window and state of zeros
        out = mixer.step(x, window, state)                       x, out (b m); window and state are updated in place

    ``scans``  the ways it can scan, by the name use_scan takes
    """

    scans: ClassVar[Mapping[str, Any]]
    conv1d: nn.Conv1d
    in_proj: nn.Linear
    out_proj: nn.Linear
    scan = "scanc"

    @abstractmethod
    def step(self, x: Tensor, window: Tensor, state: Tensor) -> Tensor: ...

    @torch.no_grad()
    def _initialise_projections(self, n_layer: int) -> None:
        """Zero biases, and GPT-2's scaling: the residual, a sum of n_layer branches, has a variance independent of the depth."""
        for proj in (self.in_proj, self.out_proj):
            if proj.bias is not None:
                proj.bias.zero_()
        self.out_proj.weight.div_(math.sqrt(n_layer))

    def _short_conv(self, u: Tensor, window: Tensor | None, seq_idx: Tensor | None) -> tuple[Tensor, Tensor]:
        """silu(causal depthwise convolution) of u (b c l) after a window (b c w-1), zeros if None -> (b c l) and the next window."""
        return from_states(u, self.conv1d.weight[:, 0], self.conv1d.bias, seq_idx, window, silu=True)

    def _short_conv_step(self, u: Tensor, window: Tensor) -> Tensor:
        """silu(the convolution's next value) for u (b c); the window (b c w-1) is updated in place."""
        seen = torch.cat([window.to(u.dtype), u[..., None]], dim=-1)                    # (b c w)
        window.copy_(seen[..., 1:])
        total = (seen.float() * self.conv1d.weight[:, 0].float()).sum(-1)               # one row of a conv1d, far cheaper
        if self.conv1d.bias is not None:
            total = total + self.conv1d.bias.float()
        return F.silu(total).to(u.dtype)


class Residual(nn.Module):
    """x + mixer(norm(x))."""

    def __init__(self, config: Config, mixer: Mixer, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.norm = _norm(config, dtype)
        self.mixer = mixer


class Backbone(nn.Module):
    """Embedding, layers and the last norm: the parameters under ``backbone.`` in a checkpoint."""

    def __init__(self, config: Config, block: type[Any], dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.padded_vocab_size, config.d_model, dtype=dtype)
        self.layers = nn.ModuleList(Residual(config, block(config, dtype), dtype) for _ in range(config.n_layer))
        self.norm_f = _norm(config, dtype)


def _norm(config: Config, dtype: torch.dtype | None) -> nn.Module:
    kind = RMSNorm if config.rms_norm else LayerNorm
    return kind(config.d_model, eps=config.norm_epsilon, dtype=dtype)


C = TypeVar("C", bound=Config)


class LanguageModel(nn.Module, Generic[C]):
    """A language model of one kind of mixer; see Mamba and Mamba2 for the use.

    ``block``  the mixer's class, made of (config, dtype)
    ``dtype``  the parameters', but for those the mixer keeps in float32, which ``model.bfloat16()`` would not see to
    """

    block: ClassVar[type[Mixer]]

    def __init__(self, config: C, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config, self.block, dtype)
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

    def use_scan(self, name: str) -> Self:
        """Chooses how every layer scans: "scanc", the compiled op, or "reference", torch operations. Raises ArgumentError."""
        if name not in self.block.scans:
            raise ArgumentError(op=f"{type(self).__name__}.use_scan", argument="name", value=repr(name), limit="no such scan is known",
                                remedy=f"Names known: {', '.join(self.block.scans)}.")
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
            raise ArgumentError(op=type(self).__name__, argument="seq_idx", value=tuple(seq_idx.shape),
                                limit=f"tokens are {tuple(tokens.shape)}", remedy="Give one sequence number per token.")
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
        conv = (torch.zeros(batch, *c.conv_shape, device=weight.device, dtype=dtype or weight.dtype) for _ in range(c.n_layer))
        ssm = (torch.zeros(batch, *c.ssm_shape, device=weight.device) for _ in range(c.n_layer))
        return MambaState(tuple(conv), tuple(ssm))

    def _embed(self, tokens: Tensor) -> Tensor:
        x = self.backbone.embedding(tokens)
        return x.float() if self.config.residual_in_fp32 else x

    def _read_out(self, x: Tensor) -> Tensor:
        return self.lm_head(self.backbone.norm_f(x))

    def _check(self, tokens: Tensor, state: MambaState | None, dims: str) -> None:
        shape, rank = tuple(tokens.shape), len(dims.split())
        if len(shape) != rank or 0 in shape:
            raise ArgumentError(op=type(self).__name__, argument="tokens", value=shape, limit=f"they must be ({dims}), with none of them 0",
                                remedy="Use forward for (b l) and step for (b).")
        if tokens.dtype not in (torch.int32, torch.int64):
            raise ArgumentError(op=type(self).__name__, argument="tokens", value=tokens.dtype, limit="they must be int32 or int64",
                                remedy="Convert them with .long().")
        if state is None:
            return
        c, b = self.config, shape[0]
        expected = ((b, *c.conv_shape), (b, *c.ssm_shape))
        for name, tensors, want in zip(MambaState._fields, state, expected, strict=True):
            found = sorted({tuple(t.shape) for t in tensors})
            if len(tensors) != c.n_layer or found != [want]:
                raise ArgumentError(op=type(self).__name__, argument=f"state.{name}", value=f"{len(tensors)} tensors of {found}",
                                    limit=f"this model and batch have {c.n_layer} of {want}", remedy="Use allocate_state(batch).")


Model = LanguageModel[Any]
