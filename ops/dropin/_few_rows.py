"""A projection of a few tokens: y = x weightᵀ + bias, all that most of a decoding layer's time goes to.

    x (b k), b up to 16      weight (m k), as nn.Linear keeps it      bias (m)      y (b m)

On a GPU it is a graph of form step, whose kernel begins while the one before still runs and brings its weight nearer meanwhile
(codegen/cuda_product.py). Anything else is torch's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scanc.dispatch import Dispatcher, targets_of
from scanc.eager import Recall, is_plain
from scanc.ir import Builder, Graph, Output, Type

MOST_ROWS = 16


@functools.cache
def _graph(biased: bool) -> Graph:
    b = Builder(("m", "k", "b"), {}, "")
    weight, x = b.input("weight", Type(("m", "k"), "real")), b.input("x", Type(("b", "k"), "real"))
    inputs, y = [weight, x], b.sum(b.pointwise("mul", weight, x), ("k",))
    if biased:
        inputs.append(b.input("bias", Type(("m",), "real")))
        y = b.pointwise("add", y, inputs[-1])
    return Graph("projection", tuple(inputs), (Output("y", y, ("b", "m"), "x"),), "", ("m", "k", "b"), {}, ("k",))


# Of an op a route needs but the name.
_routes = Dispatcher(SimpleNamespace(name="projection"))  # type: ignore[arg-type]
_known = Recall()


def few_rows(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch.nn.functional.linear(x, weight, bias) for x (b k)."""
    given = (x, weight, bias)
    if torch.compiler.is_compiling():
        return F.linear(*given)
    again = _known.find(given)
    if again is not None:
        return again(given)
    if not _served(given) or not is_plain(given):
        return F.linear(*given)
    tensors = {"weight": weight, "x": x} | ({} if bias is None else {"bias": bias})
    route = _routes.route(_graph(bias is not None), tensors)
    y: Tensor = route.run(tensors)["y"]
    _known.keep(route.direct({"x": (0, 0), "weight": (1, 0)} | ({} if bias is None else {"bias": (2, 0)}), many=False), given)
    return y


def _served(given: Sequence[Any]) -> bool:
    x, weight, bias = given
    if not x.is_cuda or x.dim() != 2 or not 0 < x.shape[0] <= MOST_ROWS or x.shape[1] == 0 or len(weight) == 0:
        return False
    if x.dtype != weight.dtype or x.dtype not in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled("cuda"):
        return False
    return targets_of(x.device)[0].backend == "cuda" and targets_of(x.device)[0].capability >= 80


__all__ = ["MOST_ROWS", "few_rows"]
