"""What the drop-in functions share: checks with names, dtypes taken as given, and states kept in slots."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from scanc.errors import ArgumentError
from scanc.ops.gated_norm import gated_norm


def need(holds: bool, op: str, argument: str, value: object, limit: str, remedy: str) -> None:
    """Raises ArgumentError unless ``holds``."""
    if not holds:
        raise ArgumentError(op=op, argument=argument, value=value, limit=limit, remedy=remedy)


def need_shape(op: str, argument: str, x: Tensor, shape: tuple[int, ...], axes: str) -> None:
    """Raises ArgumentError unless ``x`` has ``shape``, which are the sizes of ``axes``."""
    if tuple(x.shape) != shape:
        raise ArgumentError(
            op=op,
            argument=argument,
            value=f"of shape {tuple(x.shape)}",
            limit=f"({axes}) is {shape} here",
            remedy="Make the sizes agree.",
        )


def is_silu(op: str, activation: str | None) -> bool:
    """Whether an activation's name means silu. Raises ArgumentError for one that means nothing here."""
    need(
        activation in (None, "silu", "swish"),
        op,
        "activation",
        repr(activation),
        "it must be None, 'silu' or 'swish'",
        "Apply any other function to the result.",
    )
    return activation is not None


def dtypes_as_given(x: Tensor) -> AbstractContextManager[object]:
    """Autocast switched off: the rivals' kernels compute in the dtypes they are handed, and callers cast to float32 on purpose."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


def rows_of(x: Tensor) -> Tensor:
    """x (b d l) as (d, b l), without a copy where batches lie beside each other in each channel's row, as ``over_time`` leaves them."""
    return x.transpose(0, 1).flatten(1)


def over_time(weight: Tensor, rows: Tensor, batch: int) -> Tensor:
    """weight (d m) times rows (m, b l), as (b d l): one matrix product whose result has each channel's times in a row."""
    return (weight @ rows).unflatten(1, (batch, -1)).transpose(0, 1)


def channels_of(weight: Tensor, tokens: Tensor) -> Tensor:
    """weight (d m) times every token of (b l m), as (b d l) with each channel's times in a row; the tokens' gradient is (b l m) again."""
    return _Channels.apply(*_as_autocast(weight, tokens))


def tokens_of(weight: Tensor, x: Tensor) -> Tensor:
    """weight (m d) times every step of x (b d l), as tokens (b l m); the gradient of x has each channel's times in a row."""
    return _Tokens.apply(*_as_autocast(weight, x))


def _as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What autocast would make of a matrix product's operands: a function with a backward of its own is not asked."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(t.to(torch.get_autocast_dtype(device)) for t in tensors)


class _Channels(torch.autograd.Function):
    """channels_of. The product rule of torch would give the gradient of the tokens the wrong way round, for the next layer to turn."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(weight, tokens)
        return over_time(weight, tokens.flatten(0, 1).t(), tokens.shape[0])

    @staticmethod
    def backward(ctx: Any, come: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weight, tokens = ctx.saved_tensors
        rows = rows_of(come)
        return (
            rows @ tokens.flatten(0, 1) if ctx.needs_input_grad[0] else None,
            (rows.t() @ weight).unflatten(0, tokens.shape[:2]) if ctx.needs_input_grad[1] else None,
        )


class _Tokens(torch.autograd.Function):
    """tokens_of. The product rule of torch would give x's gradient the wrong way round, for a scan's backward to read in bits."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(weight, x)
        return (rows_of(x).t() @ weight.t()).unflatten(0, (x.shape[0], x.shape[2]))

    @staticmethod
    def backward(ctx: Any, come: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weight, x = ctx.saved_tensors
        tokens = come.flatten(0, 1)
        return (
            tokens.t() @ rows_of(x).t() if ctx.needs_input_grad[0] else None,
            over_time(weight.t(), tokens.t(), x.shape[0]) if ctx.needs_input_grad[1] else None,
        )


def normed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    size: int,
    eps: float,
    rms: bool,
    norm_before_gate: bool = True,
) -> Tensor:
    """scanc.ops.gated_norm of tensors (... d), each run of ``size`` channels on its own; in x's shape and dtype."""

    def rows(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.reshape(-1, x.shape[-1] // size, size)

    def channels(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.reshape(-1, size)

    options = {"eps": float(eps), "rms": rms, "norm_before_gate": norm_before_gate}
    with dtypes_as_given(x):
        return gated_norm(rows(x), channels(weight), channels(bias), rows(z), rows(residual), **options).view(x.shape)


class Slots:
    """Rows of a cache chosen by index, where a negative index means padding: no row, and nothing written.

    ``rows``   the chosen rows, copied (a padded one is a copy of some row, to be computed with and thrown away)
    ``valid``  (b) bool
    ``store``  writes changed rows back

    Nothing waits for the device. Writing must leave out the padded rows without knowing how many there are: they repeat the
    write of the first valid row, and where none is valid the first row is written as it was.
    """

    def __init__(self, cache: Tensor, indices: Tensor) -> None:
        self.cache = cache
        self.valid = indices >= 0
        self.slots = indices.clamp(min=0).long()
        self.rows = cache.index_select(0, self.slots)

    def store(self, rows: Tensor) -> None:
        if not len(self.valid):
            return
        first = self.valid.int().argmax()
        source = torch.where(self.valid, torch.arange(len(self.valid), device=self.valid.device), first)
        written = torch.where(self.valid.any(), rows, self.cache.index_select(0, self.slots))
        self.cache.index_copy_(0, self.slots.index_select(0, source), written.index_select(0, source).to(self.cache.dtype))

    def blank(self, out: Tensor) -> Tensor:
        """Results (b ...) with padded rows zero, whatever was computed for them."""
        return out.masked_fill(~self.valid.view(-1, *[1] * (out.dim() - 1)), 0)


__all__ = ["Slots", "channels_of", "dtypes_as_given", "is_silu", "need", "need_shape", "over_time", "rows_of", "tokens_of"]
