"""What every op means, in torch: the part of the oracle (reference.py) that knows single operations.

A node's tensor has the node's axes in the node's order, at full size; length-1 views of missing axes exist only inside one
operation, so that a sum over an axis counts its positions. Everything is differentiable by torch.autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from torch import Tensor

from scanc.errors import ArgumentError
from scanc.ir import POINTWISE, Axes, Node

WIDTH = ("bool", "int", "real", "complex")  # kinds, narrow to wide
LONG_KERNEL = 64  # taps from which a convolution goes through the FFT: direct sums cost l * w, the FFT l * log(l)


def refuse(op: str, argument: str, value: str, limit: str, remedy: str) -> NoReturn:
    raise ArgumentError(op=op, argument=argument, value=value, limit=limit, remedy=remedy)


@dataclass(frozen=True)
class Frame:
    """What an evaluation knows beside the graph: sizes of axes, dtype and device.

    ``sizes``  {axis: positions held}; ``whole`` the same for the whole problem and ``starts`` the first position held, both
    different from ``sizes`` and 0 only while walking lanes.
    """

    op: str
    sizes: Mapping[str, int]
    groups: Mapping[str, str]
    dtype: torch.dtype
    device: torch.device
    whole: Mapping[str, int] = field(default_factory=dict)
    starts: Mapping[str, int] = field(default_factory=dict)

    def size(self, axis: str) -> int:
        if axis not in self.sizes:
            refuse(self.op, axis, "an axis of unknown size", "sizes come from the inputs and none has this axis",
                    "Give the op an input over that axis.")
        return self.sizes[axis]

    def shape(self, axes: Axes) -> list[int]:
        return [self.size(a) for a in axes]

    def torch_dtype(self, kind: str) -> torch.dtype:
        """The dtype that values of ``kind`` are computed in."""
        if kind == "complex":
            return torch.complex128 if self.dtype == torch.float64 else torch.complex64
        return {"real": self.dtype, "int": torch.int64, "bool": torch.bool}[kind]

    def cast(self, x: Tensor, kind: str) -> Tensor:
        if x.is_complex() and kind != "complex":
            x = x.real
        return x.to(self.torch_dtype(kind))

    def align(self, x: Tensor, have: Axes, want: Axes) -> Tensor:
        """``x`` over ``have`` as a tensor with the dimensions of ``want``: permuted, length 1 where an axis is missing, groups repeated."""
        axes = list(have)
        for i, g in enumerate(axes):
            parent = self.groups.get(g)
            if g not in want and parent in want:
                members = self.size(parent) // max(self.size(g), 1)
                x = x.repeat_interleave(members, dim=i)
                axes[i] = parent
        x = x.permute([axes.index(a) for a in want if a in axes])
        for i, a in enumerate(want):
            if a not in axes:
                x = x.unsqueeze(i)
        return x

    def expand(self, x: Tensor, have: Axes, want: Axes) -> Tensor:
        """``x`` over ``have`` as a view at full size over ``want``."""
        return self.align(x, have, want).expand(self.shape(want))


# -- pointwise ------------------------------------------------------------------------------------------------------------------


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) without overflow: max(x, 0) + log1p(e^-|x|)."""
    if x.is_complex():
        return torch.where(x.real > 0, x + torch.log1p(torch.exp(-x)), torch.log1p(torch.exp(x)))
    # |x| by where: torch's abs has derivative 0 at 0, which would make softplus'(0) 0 or 1 in place of 1/2.
    return torch.where(x > 0, x, 0.0) + torch.log1p(torch.exp(torch.where(x > 0, -x, x)))


def _real(x: Tensor) -> Tensor:
    return x.real if x.is_complex() else x


def _imag(x: Tensor) -> Tensor:
    return x.imag if x.is_complex() else torch.zeros_like(x)


_TORCH: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "neg": torch.neg,
    "maximum": torch.maximum, "minimum": torch.minimum, "where": torch.where,
    "exp": torch.exp, "exp2": torch.exp2, "expm1": torch.expm1, "log": torch.log, "log2": torch.log2, "log1p": torch.log1p,
    "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "reciprocal": torch.reciprocal, "square": torch.square, "abs": torch.abs, "sign": torch.sgn,
    "sigmoid": torch.sigmoid, "silu": _silu, "softplus": _softplus, "tanh": torch.tanh, "sin": torch.sin, "cos": torch.cos,
    "relu": torch.relu, "erf": torch.erf,
    "lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge, "eq": torch.eq, "ne": torch.ne,
    "and": torch.logical_and, "or": torch.logical_or, "not": torch.logical_not,
    "real": _real, "imag": _imag, "conj": torch.conj_physical, "complex": torch.complex,
}
def pointwise(frame: Frame, node: Node, *args: Tensor) -> Tensor:
    """One pointwise op: arguments aligned by name and brought to a common kind, the result to the node's."""
    aligned = [frame.align(x, a.axes, node.axes) for x, a in zip(args, node.args, strict=True)]
    if node.op == "cast":
        return frame.cast(aligned[0], node.kind)
    values = aligned[1:] if node.op == "where" else aligned
    kinds = [a.kind for a in (node.args[1:] if node.op == "where" else node.args)]
    # The kind worked in: the arguments' widest, and the result's where that is wider (exp of an int is real).
    common = max([*kinds, *([] if POINTWISE[node.op][1] in ("bool", "complex") else [node.kind])], key=WIDTH.index)
    if node.op == "complex":
        common = "real"
    values = [frame.cast(x, common) for x in values]
    if node.op == "where":
        values = [aligned[0], *values]
    if common == "bool" and node.op in ("add", "mul", "sub", "neg", "square"):
        values = [x.to(torch.int64) for x in values]
    return frame.cast(_TORCH[node.op](*values), node.kind)


# -- structure -------------------------------------------------------------------------------------------------------------------


def _const(frame: Frame, node: Node) -> Tensor:
    return torch.tensor(node.attrs["value"], dtype=frame.torch_dtype(node.kind), device=frame.device)


def _index(frame: Frame, node: Node) -> Tensor:
    axis = node.attrs["axis"]
    start = frame.starts.get(axis, 0)
    return torch.arange(start, start + frame.size(axis), device=frame.device)


def _size(frame: Frame, node: Node) -> Tensor:
    axis = node.attrs["axis"]
    return torch.tensor(frame.whole.get(axis, frame.size(axis)), device=frame.device)


def _broadcast(frame: Frame, node: Node, x: Tensor) -> Tensor:
    return frame.expand(x, node.args[0].axes, node.axes)


def _sum(frame: Frame, node: Node, x: Tensor) -> Tensor:
    """Sums axes away; an axis whose group is in the result is summed within groups."""
    axes = list(node.args[0].axes)
    for group in node.axes:
        if group not in axes:
            i = axes.index(frame.groups[group])
            x = x.unflatten(i, (frame.size(group), frame.size(axes[i]) // max(frame.size(group), 1))).sum(i + 1)
            axes[i] = group
    gone = [i for i, a in enumerate(axes) if a not in node.axes]
    if gone:
        x = x.sum(gone)
    kept = [a for a in axes if a in node.axes]
    return frame.cast(x.permute([kept.index(a) for a in node.axes]), node.kind)


def _shift_tensor(x: Tensor, dim: int, by: int, fill: complex) -> Tensor:
    length = x.shape[dim]
    k = min(abs(by), length)
    edge = torch.full_like(x.narrow(dim, 0, k), fill)
    return torch.cat([edge, x.narrow(dim, 0, length - k)] if by > 0 else [x.narrow(dim, k, length - k), edge], dim)


def _shift(frame: Frame, node: Node, x: Tensor) -> Tensor:
    return _shift_tensor(x, node.axes.index(node.attrs["axis"]), node.attrs["by"], node.attrs["fill"])


def _causal(x: Tensor, k: Tensor, reverse: bool) -> Tensor:
    """y_t = Σ_j k_j x_{t-j} along the last dimension (x_{t+j} when reverse), of x's length."""
    length, taps = x.shape[-1], min(k.shape[-1], x.shape[-1])
    k = k[..., :taps]
    if taps > LONG_KERNEL:
        x = x.flip(-1) if reverse else x
        y = _fft_product(x, k)[..., :length]
        return y.flip(-1) if reverse else y
    terms = [k[..., j:j + 1] * _shift_tensor(x, x.dim() - 1, -j if reverse else j, 0) for j in range(taps)]
    return sum(terms[1:], terms[0]) if terms else x * k.sum(-1, keepdim=True)


def _fft_product(x: Tensor, k: Tensor) -> Tensor:
    """The full linear convolution of x and k along the last dimension, of length x + k - 1."""
    n = x.shape[-1] + k.shape[-1] - 1
    if x.is_complex() or k.is_complex():
        return torch.fft.ifft(torch.fft.fft(x, n=n) * torch.fft.fft(k, n=n), n=n)
    return torch.fft.irfft(torch.fft.rfft(x, n=n) * torch.fft.rfft(k, n=n), n=n)


def _conv(frame: Frame, node: Node, x: Tensor, k: Tensor) -> Tensor:
    axis, tap = node.attrs["axis"], node.attrs["tap"]
    rest = tuple(a for a in node.axes if a != axis)
    y = _causal(frame.cast(frame.align(x, node.args[0].axes, (*rest, axis)), node.kind),
                frame.cast(frame.align(k, node.args[1].axes, (*rest, tap)), node.kind), node.attrs["reverse"])
    return frame.expand(y, (*rest, axis), node.axes)


def _conv_kernel_grad(frame: Frame, node: Node, x: Tensor, g: Tensor) -> Tensor:
    """dk_j = Σ_t g_t x_{t-j} (x_{t+j} when reverse) for every j of tap; 0 for taps that reach outside."""
    axis, tap = node.attrs["axis"], node.attrs["tap"]
    rest = tuple(a for a in node.axes if a != tap)
    x, g = (frame.cast(frame.align(v, a.axes, (*rest, axis)), node.kind) for v, a in zip((x, g), node.args, strict=True))
    if node.attrs["reverse"]:
        x, g = x.flip(-1), g.flip(-1)
    length, size = frame.size(axis), frame.size(tap)
    taps = min(size, length)
    if taps > LONG_KERNEL:
        # Convolving g with x backwards puts the product of lag j at length - 1 + j.
        k = _fft_product(g.expand(*g.shape[:-1], length), x.expand(*x.shape[:-1], length).flip(-1))[..., length - 1:length - 1 + taps]
    else:
        g, x = torch.broadcast_tensors(g, x)
        lags = [(g[..., j:] * x[..., :length - j]).sum(-1) for j in range(taps)]
        k = torch.stack(lags, -1) if lags else g[..., :0]
    k = torch.cat([k, k.new_zeros(*k.shape[:-1], size - taps)], -1)
    return frame.expand(k, (*rest, tap), node.axes)


# -- the recurrence ----------------------------------------------------------------------------------------------------------------


@dataclass
class Recurrence:
    """What one scan computed. ``priors`` is kept only where a ``prior`` reads it."""

    values: Tensor
    priors: Tensor | None
    final: Tensor


def run_scan(frame: Frame, node: Node, args: tuple[Tensor, ...], keep_priors: bool) -> Recurrence:
    """The loop of ir.py's docstring, one step of time after another."""
    axis, reverse, shifted = (node.attrs[k] for k in ("axis", "reverse", "shifted"))
    rest = tuple(a for a in node.axes if a != axis)
    timed = (axis, *rest)
    a, b = (frame.cast(frame.align(x, n.axes, timed), node.kind) for x, n in zip(args[:2], node.args[:2], strict=True))
    shape = frame.shape(rest)
    if len(args) == 3:
        carry = frame.cast(frame.expand(args[2], node.args[2].axes, rest), node.kind)
    else:
        carry = torch.zeros(shape, dtype=b.dtype, device=b.device)
    length = frame.size(axis)
    graded = torch.is_grad_enabled() and any(x.requires_grad for x in (a, b, carry))
    values, priors = _Steps(length, carry, graded), _Steps(length if keep_priors else 0, carry, graded)
    # Taken apart at once: the gradient of an index is as large as the whole, and would come length times.
    a_steps, b_steps = a.expand(length, *a.shape[1:]).unbind(0), b.expand(length, *b.shape[1:]).unbind(0)
    for t in reversed(range(length)) if reverse else range(length):
        a_t, b_t = a_steps[t], b_steps[t]
        if keep_priors:
            priors.put(t, carry)
        value = carry + b_t if shifted else a_t * carry + b_t
        values.put(t, value)
        carry = a_t * value if shifted else value
    order = [timed.index(x) for x in node.axes]
    return Recurrence(values.tensor().permute(order), priors.tensor().permute(order) if keep_priors else None, carry)


class _Steps:
    """The steps of a scan, time first: written in place, or stacked at the end where autograd has to follow."""

    def __init__(self, length: int, like: Tensor, graded: bool) -> None:
        self._list: list[Tensor] | None = [like] * length if graded and length else None
        self._buffer = like.new_empty((0 if self._list else length, *like.shape))

    def put(self, t: int, value: Tensor) -> None:
        if self._list is None:
            self._buffer[t] = value
        else:
            self._list[t] = value

    def tensor(self) -> Tensor:
        return self._buffer if self._list is None else torch.stack(self._list)


STRUCTURAL: dict[str, Callable[..., Tensor]] = {
    "const": _const, "index": _index, "size": _size, "broadcast": _broadcast, "sum": _sum, "shift": _shift,
    "conv": _conv, "conv_kernel_grad": _conv_kernel_grad,
}
