"""How C++ writes a real operation: the vector expressions of cpu.h."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from scanc.codegen.emit import Dialect
from scanc.errors import UnsupportedForm
from scanc.ir import Node

HEADER = Path(__file__).with_name("cpu.h")

C_TYPES = {
    "float32": "float",
    "complex64": "float",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "int32": "int32_t",
    "int64": "int64_t",
    "bool": "bool",
}


_WORDS = "Arena LANES TILE bfloat16 float16 hi index_t int32_t launch lo offset pointer run scanc size size_t std stride vf vi"
LOCAL_WORDS = tuple(_WORDS.split())


@functools.cache
def taken_names() -> frozenset[str]:
    """Names a generated variable must not hide: functions of cpu.h and what the kernels' skeleton calls its own."""
    functions = re.findall(r"^(?:template <.*?> )?(?:SCANC_\w+|static) .*?(\w+)\(|^SCANC_\w+\((\w+)", HEADER.read_text(), re.MULTILINE)
    return frozenset((*(a or b for a, b in functions), *LOCAL_WORDS))


class CppDialect(Dialect):
    """Vector expressions of cpu.h; conditions are integers with all bits set."""

    calls = {
        "maximum": "maximum",
        "minimum": "minimum",
        "exp2": "exp2",
        "expm1": "expm1",
        "log2": "log2",
        "log1p": "log1p",
        "sqrt": "sqrt",
        "rsqrt": "rsqrt",
        "abs": "abs",
        "sign": "sign",
        "tanh": "tanh",
        "sin": "sin",
        "cos": "cos",
        "erf": "erf",
        "where": "select",
    }

    def literal(self, value: float | int | bool) -> str:
        return c_literal(value)

    def operation(self, op: str, args: list[str], node: Node) -> str:
        if op == "reciprocal":
            return f"1.0f / ({args[0]})"
        if op == "not":
            return f"~({args[0]})"
        if op in ("lt", "le", "gt", "ge", "eq", "ne"):
            return f"condition({super().operation(op, args, node)})"
        if op == "div" and all(a.kind in ("int", "bool") for a in node.args):
            return f"to_float({args[0]}) / to_float({args[1]})"
        floats = (
            [
                f"to_float({x})"
                if a.kind == "int" and node.kind == "real" and op in ("add", "sub", "mul", "div") and len(args) == len(node.args)
                else x
                for x, a in zip(args, node.args, strict=False)
            ]
            if len(args) == len(node.args)
            else args
        )
        return super().operation(op, floats, node)

    def cast(self, arg: str, node: Node) -> str:
        source = node.args[0].kind
        if source == node.kind:
            return arg
        if node.kind == "real":
            return f"to_float({arg})" if source == "int" else f"select({arg}, 1.0f, 0.0f)"
        raise UnsupportedForm(
            op=node.name or "cast", form="any kernel", forms="the reference", reason=f"no cast from {source} to {node.kind}"
        )


def c_literal(value: float | int | bool) -> str:
    if isinstance(value, bool):
        return "-1" if value else "0"
    if isinstance(value, int):
        return str(value)
    if value != value:
        return '__builtin_nanf("")'
    if value in (float("inf"), float("-inf")):
        return ("-" if value < 0 else "") + "__builtin_inff()"
    text = f"{value:.9g}"
    return (text if any(c in text for c in ".e") else text + ".0") + "f"
