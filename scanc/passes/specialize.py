"""Fixes the storage dtype of every input: ``u: real[b d l]`` becomes ``u: bfloat16[b d l]``.

Values inside stay abstract: kernels compute reals in float32 and complex values as pairs of float32, whatever is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from scanc.errors import ArgumentError
from scanc.ir import CONCRETE, Builder, Graph, Node, rewrite


def specialize(graph: Graph, dtypes: Mapping[str, str]) -> Graph:
    """``dtypes`` maps input names to torch's dtype names. Raises ArgumentError on a dtype of another kind."""
    b = Builder.of(graph)

    def rule(node: Node, args: tuple[Node, ...]) -> Node:
        if node.op != "input":
            return b.like(node, args)
        dtype = dtypes[str(node.name)]
        if CONCRETE.get(dtype) != node.kind:
            known = ", ".join(d for d, kind in CONCRETE.items() if kind == node.kind)
            raise ArgumentError(op=graph.name, argument=node.name, value=f"of dtype {dtype}", limit=f"it must be one of {known}",
                                remedy="Cast the tensor.")
        return replace(node, type=replace(node.type, dtype=dtype))

    return rewrite(graph, rule)
