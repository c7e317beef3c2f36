"""The text of a graph: SSA, one node a line, readable back by ``scanc.parser``.

    graph selective_scan(time=l, state=n, groups={g: d}, order=b d l n g) {
      u: bfloat16[b d l] = input
      dt: real[b d l] = add(delta, delta_bias)
      a: real[b d l n] = exp2(%0)
      h: real[b d l n] = scan(a, %1, initial_state) {axis=l}
      return y[b d l] = %3 like u, last_state[b d n] = %4
    }

Inputs come first, in the order of the op's signature, used or not; then every node, arguments before users. A value
is called by the user's name where it has one (a second ``y`` becomes ``y_1``), ``%n`` otherwise. Constants stand where they
are used: ``1.0`` is real, ``1`` an int, ``true`` a bool, ``(1+2j)`` complex. Attributes at their default are left out.
``like u`` says whose dtype a result has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from scanc.ir import ABSTRACT, Graph, Node, Output, topological

# Words that mean a constant, so no value is called by them.
LITERALS = ("true", "false", "inf", "nan", "infj", "nanj")
# Attributes that are left out of the text when they have this very value.
DEFAULTS: dict[str, dict[str, Any]] = {
    "scan": {"reverse": False, "shifted": False},
    "conv": {"reverse": False},
    "conv_kernel_grad": {"reverse": False},
    "shift": {"fill": 0},
}
_WORD = re.compile(r"[^\W\d]\w*")


def print_graph(graph: Graph) -> str:
    """The text of ``graph``, ending in a newline. ``print_graph(parse_graph(text)) == text`` for every text it gives."""
    names = value_names(graph)
    lines = [f"graph {_word(graph.name)}({_header(graph)}) {{"]
    lines += [f"  {_line(node, names)}" for node in printed(graph)]
    results = ", ".join(_result(output, names) for output in graph.outputs)
    return "\n".join([*lines, f"  return {results}".rstrip(), "}"]) + "\n"


def printed(graph: Graph) -> list[Node]:
    """The nodes that get a line of their own: all inputs, then every node but the constants that stand inline."""
    return [n for n in topological([*graph.inputs, *(o.node for o in graph.outputs)]) if not is_inline(n)]


def is_inline(node: Node) -> bool:
    """Whether a constant stands where it is used: it has no name, and its kind shows in the literal."""
    return node.op == "const" and node.name is None and node.type.dtype in ABSTRACT


def value_names(graph: Graph) -> dict[Node, str]:
    """What each printed node is called. Inputs keep their names; others give way."""
    taken = {*LITERALS, *(str(n.name) for n in graph.inputs)}
    names: dict[Node, str] = {}
    unnamed = 0
    for node in printed(graph):
        if node.op == "input":
            names[node] = str(node.name)
        elif node.name is None:
            names[node] = f"%{unnamed}"
            unnamed += 1
        else:
            names[node] = _unique(node.name, taken)
            taken.add(names[node])
    return names


def literal(value: Any, kind: str) -> str:
    """A constant as text, its kind readable from its shape."""
    match kind:
        case "bool":
            return "true" if value else "false"
        case "int":
            return repr(int(value))
        case "real":
            return repr(float(value))
    text = repr(complex(value))
    return text if text.startswith("(") else f"({text})"


def _unique(name: str, taken: set[str]) -> str:
    base = re.sub(r"\W", "_", name)
    base = base if _WORD.fullmatch(base) else f"_{base}"
    candidate, count = base, 0
    while candidate in taken:
        count += 1
        candidate = f"{base}_{count}"
    return candidate


def _header(graph: Graph) -> str:
    parts = []
    if graph.time:
        parts.append(f"time={graph.time}")
    if graph.state:
        parts.append(f"state={' '.join(graph.state)}")
    if graph.groups:
        parts.append(f"groups={_pairs(graph.groups)}")
    parts.append(f"order={' '.join(graph.order)}")
    if graph.inplace:
        parts.append(f"inplace={_pairs(graph.inplace)}")
    return ", ".join(parts)


def _pairs(mapping: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in mapping.items()) + "}"


def _line(node: Node, names: Mapping[Node, str]) -> str:
    args = f"({', '.join(_value(a, names) for a in node.args)})" if node.args else ""
    shown = {k: v for k, v in node.attrs.items() if not _is_default(node.op, k, v)}
    if node.op == "const":
        attrs = f" {{value={literal(node.attrs['value'], node.kind)}}}"
    else:
        attrs = f" {{{', '.join(f'{k}={_attribute(v)}' for k, v in shown.items())}}}" if shown else ""
    return f"{names[node]}: {node.type} = {node.op}{args}{attrs}"


def _result(output: Output, names: Mapping[Node, str]) -> str:
    like = f" like {output.like}" if output.like else ""
    return f"{output.name}[{' '.join(output.axes)}] = {_value(output.node, names)}{like}"


def _value(node: Node, names: Mapping[Node, str]) -> str:
    return literal(node.attrs["value"], node.kind) if is_inline(node) else names[node]


def _is_default(op: str, key: str, value: Any) -> bool:
    default = DEFAULTS.get(op, {}).get(key)
    # 0, 0.0 and False are equal in Python but print differently, so the type has to match too.
    return default is not None and type(default) is type(value) and bool(default == value)


def _attribute(value: Any) -> str:
    if isinstance(value, str):
        return _word(value)
    kind = {bool: "bool", int: "int", float: "real", complex: "complex"}[type(value)]
    return literal(value, kind)


def _word(text: str) -> str:
    return text if _WORD.fullmatch(text) and text not in LITERALS else json.dumps(text)
