"""Turns graph nodes into lines of source, once for all backends.

A backend gives a ``Dialect`` (how a real operation is written) and, for each body it prints, the names that leaves already
have (loaded inputs, carries). Values used once are written inside their user; named values and values used more often get
a line. Complex values are pairs of real names: no backend knows complex numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from keyword import iskeyword

from scanc.errors import UnsupportedForm
from scanc.ir import Node, is_pointwise

Parts = tuple[str, ...]

_RESERVED = {
    "double",
    "float",
    "int",
    "long",
    "short",
    "char",
    "bool",
    "auto",
    "register",
    "signed",
    "unsigned",
    "const",
    "static",
    "switch",
    "case",
    "default",
    "do",
    "goto",
    "new",
    "delete",
    "this",
    "operator",
    "template",
    "typename",
    "struct",
    "union",
    "enum",
    "void",
    "tl",
    "tid",
    "block",
    "exp2",
    "log2",
    "sqrt",
    "sin",
    "cos",
    "tanh",
    "erf",
    "min",
    "max",
    "abs",
    "select",
    "range",
}


# Ends of the names that printers derive from a value's own (its carry, its tile, …).
_ENDS = """at block carry end history im in kept moved of out part prior ptr put re row rows
rows0 rows1 staged steps sums tile together total v"""
DERIVED = tuple(f"_{end}" for end in _ENDS.split())


class Names:
    """Unique identifiers made from the graph's own words."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()
        self._of: dict[Node, str] = {}

    def fresh(self, word: str) -> str:
        base = "".join(c if c.isalnum() or c == "_" else "_" for c in word) or "v"
        if base[0].isdigit() or iskeyword(base) or base in _RESERVED:
            base = f"{base}_"
        while True:
            self._taken[base] += 1
            name = base if self._taken[base] == 1 else f"{base}_{self._taken[base]}"
            if name == base or self._taken[name] == 0:
                self._taken[name] = max(self._taken[name], 1)
                return name

    def of(self, node: Node) -> str:
        """The name of a node, the same wherever it is asked for."""
        if node not in self._of:
            word = node.name or node.op
            # A user's x_re must not meet the real part of a complex x.
            self._of[node] = self.fresh(f"{word}_" if word.endswith(DERIVED) else word)
        return self._of[node]

    def same(self, node: Node, other: Node) -> None:
        """Gives a node the name of another, in whose place it is printed."""
        self._of[node] = self.of(other)

    def parts(self, node: Node, suffix: str = "") -> Parts:
        """The names of a node's components: one, or two for a complex value."""
        name = self.of(node)
        return (f"{name}_re{suffix}", f"{name}_im{suffix}") if node.kind == "complex" else (f"{name}{suffix}",)


class Dialect:
    """How a language writes a real operation. Subclasses override what differs from C."""

    infix = {
        "add": "+",
        "sub": "-",
        "mul": "*",
        "div": "/",
        "lt": "<",
        "le": "<=",
        "gt": ">",
        "ge": ">=",
        "eq": "==",
        "ne": "!=",
        "and": "&",
        "or": "|",
    }
    calls: dict[str, str] = {}

    def literal(self, value: float | int | bool) -> str:
        raise NotImplementedError

    def operation(self, op: str, args: list[str], node: Node) -> str:
        if op in self.infix:
            return f"{atom(args[0])} {self.infix[op]} {atom(args[1])}"
        if op == "neg":
            return f"-{atom(args[0])}"
        if op == "cast":
            return self.cast(args[0], node)
        if op in self.calls:
            return f"{self.calls[op]}({', '.join(args)})"
        raise UnsupportedForm(op=node.name or op, form="any kernel", forms="the reference", reason=f"{op} has no code in this backend")

    def cast(self, arg: str, node: Node) -> str:
        raise NotImplementedError


def counts(node: Node) -> bool:
    """Whether a division is by a whole number, as a mean's is by an axis' size."""
    return node.op == "div" and node.args[1].kind == "int"


def atom(expression: str) -> str:
    """The expression in parentheses unless it is a name, a call, an index or a literal."""
    depth = 0
    for i, c in enumerate(expression):
        depth += c in "([" and 1 or (c in ")]" and -1 or 0)
        if depth == 0 and (c == " " or (c == "-" and i == 0)):
            return f"({expression})"
    return expression


@dataclass
class Body:
    """Prints one list of nodes. ``known`` holds the names leaves have; ``declare(node, name, expression)`` writes a line."""

    dialect: Dialect
    names: Names
    known: dict[Node, Parts]
    declare: Callable[[Node, str, str], str]
    keep: frozenset[Node] = frozenset()
    lines: list[str] = field(default_factory=list)

    def run(self, nodes: Iterable[Node], special: Callable[[Node], list[str] | None] = lambda node: None) -> list[str]:
        """Lines for ``nodes`` in order. ``special`` may print a node itself (loads, scans, sums) and must then set ``known``."""
        todo = [n for n in nodes if n not in self.known]
        uses = Counter(a for n in todo for a in n.args)
        inline = {
            n
            for n in todo
            if uses[n] == 1
            and n.name is None
            and n not in self.keep
            and n.kind != "complex"
            and is_pointwise(n)
            and all(a.kind != "complex" for a in n.args)
        }
        # A value written inside its user must be made by the same list, so only pointwise users take it in.
        takers = {a for n in todo if is_pointwise(n) for a in n.args}
        self.lines = []
        for node in todo:
            made = special(node)
            if made is not None:
                self.lines += made
            elif node.op == "const":
                value = node.attrs["value"]
                parts = (value.real, value.imag) if isinstance(value, complex) else (value,)
                self.known[node] = tuple(self.dialect.literal(v) for v in parts)
            elif node.op == "broadcast":
                self.known[node] = self.known[node.args[0]]
            else:
                self._pointwise(node, node in inline and node in takers)
        return self.lines

    def _pointwise(self, node: Node, inline: bool) -> None:
        if node.kind == "complex" or any(a.kind == "complex" for a in node.args):
            self._complex(node)
            return
        expression = self.dialect.operation(node.op, [self.known[a][0] for a in node.args], node)
        if inline and len(expression) < 80:
            self.known[node] = (expression,)
            return
        self._bind(node, [expression])

    def _bind(self, node: Node, expressions: list[str]) -> None:
        parts = self.names.parts(node) if node.kind == "complex" else (self.names.of(node),)
        for name, expression in zip(parts, expressions, strict=True):
            self.lines.append(self.declare(node, name, expression))
        self.known[node] = parts

    def _complex(self, node: Node) -> None:
        """Writes an operation on complex values through its real and imaginary parts."""

        def op(name: str, *args: str) -> str:
            return self.dialect.operation(name, list(args), node)

        def let(expression: str) -> str:
            name = self.names.fresh("part")
            self.lines.append(self.declare(node, name, expression))
            return name

        zero = self.dialect.literal(0.0)
        args = [self.known[a] if len(self.known[a]) == 2 else (self.known[a][0], zero) for a in node.args]
        is_real = [a.kind != "complex" for a in node.args]
        match node.op:
            case "real":
                self.known[node] = args[0][:1]
                return
            case "imag":
                self.known[node] = args[0][1:]
                return
            case "complex":
                result = [args[0][0], args[1][0]]
            case "conj":
                result = [args[0][0], op("neg", args[0][1])]
            case "cast":
                result = list(args[0])
            case "neg":
                result = [op("neg", x) for x in args[0]]
            case "add" | "sub":
                result = [op(node.op, x, y) for x, y in zip(*args, strict=True)]
            case "mul" if is_real[0] or is_real[1]:
                (scale,), other = (args[0][:1], args[1]) if is_real[0] else (args[1][:1], args[0])
                result = [op("mul", x, scale) for x in other]
            case "mul":
                result = list(complex_product(op, args[0], args[1]))
            case "div" if is_real[1]:
                result = [op("div", x, args[1][0]) for x in args[0]]
            case "div" | "reciprocal":
                below = args[-1]
                above = args[0] if node.op == "div" else (self.dialect.literal(1.0), zero)
                norm = let(op("add", op("mul", below[0], below[0]), op("mul", below[1], below[1])))
                conj = (below[0], let(op("neg", below[1])))
                result = [op("div", x, norm) for x in complex_product(op, above, conj)]
            case "exp":
                size = let(op("exp2", op("mul", args[0][0], self.dialect.literal(1.4426950408889634))))
                result = [op("mul", size, op("cos", args[0][1])), op("mul", size, op("sin", args[0][1]))]
            case "where":
                result = [op("where", args[0][0], x, y) for x, y in zip(args[1], args[2], strict=True)]
            case "eq":
                result = [op("and", op("eq", args[0][0], args[1][0]), op("eq", args[0][1], args[1][1]))]
            case _:
                raise UnsupportedForm(
                    op=node.name or node.op,
                    form="any kernel",
                    forms="the reference",
                    reason=f"{node.op} of complex values has no code in the kernels",
                )
        self._bind(node, result)


def complex_product(op: Callable[..., str], x: Parts, y: Parts) -> Parts:
    """(x_re y_re - x_im y_im, x_re y_im + x_im y_re)"""
    return (op("sub", op("mul", x[0], y[0]), op("mul", x[1], y[1])), op("add", op("mul", x[0], y[1]), op("mul", x[1], y[0])))


def recurrence(
    dialect: Dialect, node: Node, a: Parts, b: Parts, carry: Parts, zero_input: bool, unit: bool
) -> tuple[list[str], Callable[[Parts], list[str]]]:
    """The two updates of a scan: expressions of its value at this step, and of the next carry given the value's names.

    ``zero_input`` and ``unit`` say that b is the constant 0 and a the constant 1, so that neither is written.
    """

    def op(name: str, *args: str) -> str:
        return dialect.operation(name, list(args), node)

    def times(x: Parts, y: Parts) -> Parts:
        if len(x) == 2 and len(y) == 2:
            return complex_product(op, x, y)
        if len(x) == 2 or len(y) == 2:
            pair, scale = (x, y[0]) if len(x) == 2 else (y, x[0])
            return tuple(op("mul", p, scale) for p in pair)
        return (op("mul", x[0], y[0]),)

    def plus(x: Parts) -> list[str]:
        if zero_input:
            return list(x)
        inputs = b if len(b) == len(x) else (*b, "")
        return [op("add", p, q) if q else p for p, q in zip(x, inputs, strict=True)]

    if node.attrs["shifted"]:
        return plus(carry), lambda value: list(value if unit else times(a, value))
    return plus(carry if unit else times(a, carry)), list


class Source:
    """Lines with indentation."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._depth = 0

    def __call__(self, *lines: str) -> Source:
        for line in lines:
            self._lines.append("    " * self._depth + line if line else "")
        return self

    def paste(self, other: Source) -> Source:
        """Another's lines, as deep as here."""
        return self(*other._lines)

    def indent(self, by: int = 1) -> Source:
        self._depth += by
        return self

    def open(self, line: str) -> Source:
        return self(line).indent()

    def close(self, line: str = "}") -> Source:
        return self.indent(-1)(line)

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"
