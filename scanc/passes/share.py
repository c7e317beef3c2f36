"""Common subexpressions: equal values become one node.

    add(sigmoid(x), mul(y, sigmoid(x)))  ->  with s = sigmoid(x): add(s, mul(y, s))

Two nodes are equal when op, attributes and type are and their arguments are, in any order where the op commutes.
The merged node keeps the first name the user gave to any of them.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from scanc.ir import Builder, Graph, Node, rewrite, topological
from scanc.printer import literal

COMMUTATIVE = frozenset({"add", "mul", "maximum", "minimum", "eq", "ne", "and", "or"})


def share(graph: Graph) -> Graph:
    """``graph`` with every value computed once; what nothing reads is gone."""
    number: dict[Node, int] = {}
    known: dict[Hashable, int] = {}
    names: dict[int, str] = {}
    for node in topological([*graph.inputs, *(o.node for o in graph.outputs)]):
        number[node] = known.setdefault(key(node, tuple(number[a] for a in node.args)), len(known))
        if node.name is not None and node.op != "const":
            names.setdefault(number[node], node.name)
    builder = Builder.of(graph)
    made: dict[int, Node] = {}

    def first(node: Node, args: tuple[Node, ...]) -> Node:
        n = number[node]
        if n not in made:
            same = node if args == node.args else builder.like(node, args)
            made[n] = same if same.name == names.get(n) else replace(same, name=names.get(n))
        return made[n]

    return rewrite(graph, first)


def key(node: Node, args: tuple[int, ...]) -> Hashable:
    """What makes a node the same value as another, its arguments given by number."""
    if node.op == "input":
        return ("input", node.name)
    if node.op == "const":
        return ("const", literal(node.attrs["value"], node.kind), node.type)
    ordered = tuple(sorted(args)) if node.op in COMMUTATIVE else args
    # repr tells 0 from 0.0 and False, and makes one NaN equal to another.
    return (node.op, ordered, node.type, tuple(sorted((k, repr(v)) for k, v in node.attrs.items())))
