"""A parallel scan in plain torch operations: the way one computes a recurrence on a CPU without a compiler for it.

    h_t = a_t h_{t-1} + b_t        a, b, h: (b l d n)

An up-sweep combines neighbours into ever longer spans, each span (product of its transitions, state it ends in from zero);
a down-sweep completes the positions in between (Blelloch, "Prefix sums and their applications", 1990). It takes 2 log2(l)
operations on whole tensors in place of l small ones, and is the method of mamba.py, the widely used torch-only Mamba.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def sweep_(a: Tensor, b: Tensor) -> None:
    """Turns b into h and a into the running products, in place; dimension 1 is time, a power of two long."""
    length = a.shape[1]
    span = 1
    while span < length:  # up: the end of each span of 2*span steps takes in the end of its first half
        _combine_(a, b, slice(2 * span - 1, None, 2 * span), slice(span - 1, None, 2 * span))
        span *= 2
    span = length // 4
    while span >= 1:  # down: the middle of each later span takes in the end of the one before it
        middle = slice(3 * span - 1, None, 2 * span)
        count = len(range(*middle.indices(length)))
        _combine_(a, b, middle, slice(2 * span - 1, 2 * span * count, 2 * span))
        span //= 2


def _combine_(a: Tensor, b: Tensor, later: slice, earlier: slice) -> None:
    b[:, later] += a[:, later] * b[:, earlier]
    a[:, later] *= a[:, earlier]


def _padded(x: Tensor) -> Tensor:
    """A copy, its time padded by zeros to a power of two."""
    length = x.shape[1]
    return F.pad(x, (0, 0, 0, 0, 0, (1 << (length - 1).bit_length()) - length)) if length & (length - 1) else x.clone()


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        products, h = _padded(a), _padded(b)
        sweep_(products, h)
        h = h[:, :a.shape[1]]
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        # The adjoint runs backwards with the transition of one step later: db_t = dh_t + a_{t+1} db_{t+1}.
        later = F.pad(a[:, 1:], (0, 0, 0, 0, 0, 1)).flip(1)
        products, db = _padded(later), _padded(dh.flip(1))
        sweep_(products, db)
        db = db[:, :a.shape[1]].flip(1)
        return db * F.pad(h[:, :-1], (0, 0, 0, 0, 1, 0)), db


def pscan(a: Tensor, b: Tensor) -> Tensor:
    """h of the module's docstring, differentiable in a and b."""
    return _Scan.apply(a, b)
