"""What can be said of a value's range from the graph alone, where a function has a cheaper way on part of its domain."""

from __future__ import annotations

from scanc.ir import Node


def never_negative(node: Node) -> bool:
    match node.op:
        case "abs" | "square" | "exp" | "exp2" | "sqrt":
            return node.kind == "real"
        case "const":
            return isinstance(node.attrs["value"], int | float) and node.attrs["value"] >= 0
        case "maximum":
            return any(never_negative(a) for a in node.args)
        case "mul" | "add":
            return all(never_negative(a) for a in node.args)
    return False


def never_positive(node: Node) -> bool:
    match node.op:
        case "neg":
            return never_negative(node.args[0])
        case "const":
            return isinstance(node.attrs["value"], int | float) and node.attrs["value"] <= 0
        case "mul":
            x, y = node.args
            return (never_negative(x) and never_positive(y)) or (never_positive(x) and never_negative(y))
    return False


def within_unit(node: Node) -> bool:
    """Whether 0 <= value <= 1: an exponential of what is never positive, as in softplus."""
    return node.op in ("exp", "exp2") and node.kind == "real" and never_positive(node.args[0])
