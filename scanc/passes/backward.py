"""The backward of an op: its adjoint, taken of the simplified graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scanc.ir import Graph, Origin
from scanc.passes.adjoint import adjoint
from scanc.passes.canonicalize import simplify


def backward(forward: Graph, wrt: Sequence[str], cotangents: Sequence[str] | None = None) -> Graph:
    """``adjoint(simplify(forward), ...)``: products are in their cheapest order before they are differentiated, so that gradients of
    one product share its factors; softplus and sigmoid are still whole, so that their derivatives are the textbook's."""
    heard = tuple(o.name for o in forward.outputs) if cotangents is None else tuple(cotangents)
    return replace(adjoint(simplify(forward), wrt, cotangents), origin=Origin(forward, tuple(wrt), heard))
