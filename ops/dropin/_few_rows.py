"""A projection of a few tokens, to which most of a decoding layer's time goes: y = x weightᵀ + bias, or with a norm before it

    y = (x scale) weightᵀ / sqrt(mean(x²) + eps) + bias

    x (b k), b up to 16, or 128 where the weight is small      weight (m k), as nn.Linear keeps it      bias (m)      scale (k)      y (b m)

On a GPU it is a graph of form step, whose kernel begins while the one before still runs and brings its weight nearer meanwhile
(codegen/cuda_product.py). Anything else is torch's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanc.dispatch import Dispatcher, targets_of
from scanc.eager import Recall, is_plain
from scanc.ir import Builder, Graph, Output, Type

MOST_ROWS = 16
# Of a weight so small that reading it takes no time a library's product is little but launches: 64.6 µs for 66.2 a step of 128 sequences
# with Mamba's two small ones here.
MOST_OF_SMALL, SMALL = 128, 1 << 20


@functools.cache
def _graph(biased: bool, eps: float | None = None) -> Graph:
    """With ``eps``, x is normed: the scale goes before the product, and the norm, one number a row, behind it."""
    b = Builder(("m", "k", "b"), {}, "")
    weight, x = b.input("weight", Type(("m", "k"), "real")), b.input("x", Type(("b", "k"), "real"))
    inputs, rows = [weight, x], x
    if eps is not None:
        inputs.append(b.input("scale", Type(("k",), "real")))
        rows = b.pointwise("mul", x, inputs[-1])
    y = b.sum(b.pointwise("mul", weight, rows), ("k",))
    if eps is not None:
        mean = b.pointwise("div", b.sum(b.pointwise("mul", x, x), ("k",)), b.size("k"))
        y = b.pointwise("mul", y, b.pointwise("rsqrt", b.pointwise("add", mean, b.const(eps))))
    if biased:
        inputs.append(b.input("bias", Type(("m",), "real")))
        y = b.pointwise("add", y, inputs[-1])
    return Graph("projection", tuple(inputs), (Output("y", y, ("b", "m"), "x"),), "", ("m", "k", "b"), {}, ("k",))


# Of an op a route needs but the name.
_routes = Dispatcher(SimpleNamespace(name="projection"))  # type: ignore[arg-type]
_known = Recall()


def few_rows(x: Tensor, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None, eps: float = 0.0) -> Tensor:
    """The equation above: torch.nn.functional.linear(x, weight, bias) for x (b k), normed where there is a scale."""
    given = (x, weight, bias, scale)
    if not torch.compiler.is_compiling():
        again = _known.find(given, eps)
        if again is not None:
            return again(given)
        if is_served(x, weight) and is_plain(given):
            return _first(given, eps)
    if scale is not None:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        x = (F.rms_norm(wide, x.shape[-1:], eps=eps) * scale).to(x.dtype)
    return F.linear(x, weight, bias)


def project(linear: nn.Module, x: Tensor) -> Tensor:
    """``linear(x)`` for x (b k); by ``few_rows`` where it is torch's own nn.Linear, which nothing watches."""
    if type(linear) is nn.Linear and not (linear._forward_hooks or linear._forward_pre_hooks):
        return few_rows(x, linear.weight, linear.bias)
    made: Tensor = linear(x)
    return made


def _first(given: Sequence[Any], eps: float) -> Tensor:
    every = dict(zip(("x", "weight", "bias", "scale"), given, strict=True))
    graph = _graph(every["bias"] is not None, None if every["scale"] is None else eps)
    tensors = {str(n.name): every[str(n.name)] for n in graph.inputs}
    route = _routes.route(graph, tensors)
    y: Tensor = route.run(tensors)["y"]
    _known.keep(route.direct({name: (i, 0) for i, name in enumerate(every) if name in tensors}, many=False), given, eps)
    return y


def is_served(x: Tensor, weight: Tensor) -> bool:
    """Whether the product has a kernel of its own: on a GPU, of a small batch in 16 bits, where 16 bytes can be read at once."""
    most = MOST_OF_SMALL if weight.numel() <= SMALL else MOST_ROWS
    if not x.is_cuda or x.dim() != 2 or not 0 < x.shape[0] <= most or x.shape[1] == 0 or len(weight) == 0:
        return False
    if x.shape[1] % 8 or any(t.stride(1) != 1 or t.stride(0) % 8 or t.data_ptr() % 16 for t in (x, weight)):
        return False
    if x.dtype != weight.dtype or x.dtype not in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled("cuda"):
        return False
    return targets_of(x.device)[0].backend == "cuda" and targets_of(x.device)[0].capability >= 80


__all__ = ["MOST_ROWS", "few_rows", "is_served", "project"]
