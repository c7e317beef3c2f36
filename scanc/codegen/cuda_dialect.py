"""The CUDA backend: how it writes operations and types, and which names are taken."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from scanc.codegen.emit import Dialect, counts
from scanc.codegen.ranges import within_unit
from scanc.ir import Node

HEADER = Path(__file__).with_name("cuda.h")

C_TYPES = {"float32": "float", "complex64": "float", "bfloat16": "bfloat16", "float16": "float16", "int32": "int", "int64": "long long",
           "bool": "bool", "uint8": "unsigned char"}
# Bytes of an element; of a complex one those of a part.
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "complex64": 4, "int32": 4, "int64": 8, "bool": 1, "uint8": 1}

LOCAL_WORDS = ("alone", "along", "along_time", "arguments", "at", "base", "bases", "before", "behind", "block", "count", "e", "first",
               "flip", "from", "groups", "here", "how", "i0", "in_rows", "in_starts", "in_table", "is_whole", "j", "k", "l", "lane",
               "lane0", "lane_sums", "lanes", "left", "length", "mine", "more", "one_step", "ordered", "own", "own_row", "part", "r",
               "rest", "row", "rows", "rows_together", "run", "scratch", "seg", "shared", "slot", "stage_soon", "stage_then", "start",
               "steps", "sums", "thread", "tid", "tile", "tiles", "to", "together", "total", "ts", "turn", "w", "walk", "walked", "walks",
               "warp", "whole", "whole_steps", "within")


class CudaDialect(Dialect):
    """Scalar expressions; conditions are bool."""

    calls = {"maximum": "maximum", "minimum": "minimum", "exp2": "exp2_", "expm1": "expm1f", "log2": "log2f", "log1p": "log1p_",
             "sqrt": "sqrtf", "rsqrt": "rsqrt_", "reciprocal": "reciprocal", "abs": "absolute", "sign": "sign",
             "tanh": "tanhf", "sin": "sinf", "cos": "cosf", "erf": "erff"}

    def literal(self, value: float | int | bool) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int):
            return str(value)
        if value != value:
            return "__int_as_float(0x7fffffff)"
        if value in (float("inf"), float("-inf")):
            return ("-" if value < 0 else "") + "__int_as_float(0x7f800000)"
        text = f"{value:.9g}"
        return (text if any(c in text for c in ".e") else text + ".0") + "f"

    def operation(self, op: str, args: list[str], node: Node) -> str:
        if op == "div" and counts(node):
            return f"float({args[0]}) / float({args[1]})"  # to the nearest: see Triton's mean_of
        if op == "div":
            return f"quotient(float({args[0]}), float({args[1]}))"
        if op == "log1p" and within_unit(node.args[0]):
            return f"log1p_unit({args[0]})"
        if op == "not":
            return f"!({args[0]})"
        if op == "where":
            return f"({args[0]} ? {args[1]} : {args[2]})"
        return super().operation(op, args, node)

    def cast(self, arg: str, node: Node) -> str:
        return f"{scalar_type(node)}({arg})"


class StepDialect(CudaDialect):
    """The same in loops over steps j, where one exponential of ``every`` is a polynomial's."""

    def __init__(self, every: int) -> None:
        self.calls = {**CudaDialect.calls, "exp2": f"exp2_either<{every}>"} if every else CudaDialect.calls
        self.every = every

    def operation(self, op: str, args: list[str], node: Node) -> str:
        return super().operation(op, ["j", *args] if op == "exp2" and self.every else args, node)


def scalar_type(node: Node) -> str:
    """The type of a value (of each part of a complex one) in registers."""
    return {"real": "float", "complex": "float", "int": "int", "bool": "bool"}[node.kind]


@functools.cache
def taken_names() -> frozenset[str]:
    """Names a generated variable must not hide: functions of cuda.h and what the kernels' skeleton calls its own."""
    functions = re.findall(r"SCANC_INLINE [\w ]+ (\w+)\(", HEADER.read_text())
    return frozenset((*functions, *CudaDialect.calls.values(), *LOCAL_WORDS))
