"""Reads the text that ``scanc.printer`` writes.

    graph   := "graph" word "(" header ")" "{" line* return "}"
    header  := item ("," item)*      item := time=AXIS | state=AXES | groups={g: d, …} | order=AXES | inplace={out: in, …}
    line    := value ":" dtype "[" AXES "]" "=" op ["(" operand ("," operand)* ")"] ["{" key=literal ("," key=literal)* "}"]
    return  := "return" [result ("," result)*]
    result  := word "[" AXES "]" "=" operand ["like" word]
    operand := value | literal       value := word | %n       literal := 1 | 1.0 | true | (1+2j) | word | "string"

Every node is built again by ``Builder`` and must come out with the type that is written, so a text that parses is well typed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NoReturn

from scanc.errors import ParseError
from scanc.ir import ABSTRACT, CONCRETE, LEAVES, POINTWISE, STRUCTURAL, Axes, Builder, Graph, Node, Output, Type
from scanc.printer import DEFAULTS, LITERALS
from scanc.verify import ARITY, ATTRIBUTES

_REAL = r"(?:inf|nan|\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
_TOKEN = re.compile(
    rf"""(?P<space>\s+)
      | (?P<complex>\(-?{_REAL}(?:[+-]{_REAL})?j\))
      | (?P<number>-{_REAL}\b|(?!inf|nan){_REAL}\b)
      | (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<value>%\d+)
      | (?P<word>[^\W\d]\w*)
      | (?P<mark>[(){{}}\[\],:=])""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Token:
    kind: str
    text: str


def parse_graph(text: str) -> Graph:
    """The graph that ``text`` describes. Raises ParseError with the line and what is wrong there."""
    return _Parser(text).graph()


class _Line:
    """One line as tokens, taken from the left."""

    def __init__(self, number: int, text: str) -> None:
        self.number = number
        self._tokens: list[Token] = []
        self._at = 0
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                self.fail(f"unexpected character '{text[position]}'")
            position = match.end()
            if match.lastgroup != "space":
                self._tokens.append(Token(str(match.lastgroup), match.group()))

    def fail(self, reason: str) -> NoReturn:
        raise ParseError(reason, line=self.number)

    def peek(self) -> Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def take(self) -> Token:
        token = self.peek()
        if token is None:
            self.fail("the line ends too early")
        self._at += 1
        return token

    def next_is(self, text: str) -> bool:
        token = self.peek()
        return token is not None and token.kind in ("mark", "word") and token.text == text

    def skip(self, text: str) -> bool:
        """Takes ``text`` if it comes next."""
        found = self.next_is(text)
        self._at += found
        return found

    def expect(self, text: str) -> None:
        if not self.skip(text):
            token = self.peek()
            self.fail(f"expected '{text}', found {repr(token.text) if token else 'the end of the line'}")

    def end(self) -> None:
        token = self.peek()
        if token is not None:
            self.fail(f"'{token.text}' is too much on this line")

    def word(self, what: str) -> str:
        """A name; one that is no plain word is quoted."""
        token = self.take()
        if token.kind == "string":
            return self._string(token)
        if token.kind != "word":
            self.fail(f"expected {what}, found '{token.text}'")
        return token.text

    def words(self) -> Axes:
        """Names up to the next punctuation."""
        found = []
        while (token := self.peek()) is not None and token.kind == "word":
            found.append(self.take().text)
        return tuple(found)

    def axes(self) -> Axes:
        self.expect("[")
        axes = self.words()
        self.expect("]")
        return axes

    def pairs(self) -> dict[str, str]:
        """{a: b, c: d}"""
        found: dict[str, str] = {}
        self.expect("{")
        while not self.skip("}"):
            if found:
                self.expect(",")
            name = self.word("a name")
            self.expect(":")
            found[name] = self.word("a name")
        return found

    def literal(self, token: Token) -> Any:
        """The constant or attribute that ``token`` spells, an int, float, bool, complex or str."""
        match token.kind:
            case "complex":
                try:
                    return complex(token.text)
                except ValueError:
                    self.fail(f"'{token.text}' is no complex number")
            case "number":
                return int(token.text) if re.fullmatch(r"-?\d+", token.text) else float(token.text)
            case "string":
                return self._string(token)
            case "word" if token.text in ("inf", "nan"):
                return float(token.text)
            case "word":
                return token.text == "true" if token.text in ("true", "false") else token.text
        self.fail(f"expected a value, found '{token.text}'")

    def _string(self, token: Token) -> str:
        try:
            return str(json.loads(token.text))
        except json.JSONDecodeError as error:
            self.fail(f"{token.text} is no string: {error.msg}")


class _Parser:
    """The lines of one graph, top to bottom."""

    def __init__(self, text: str) -> None:
        self._lines = [_Line(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
        self._last = text.count("\n") + 1
        self._values: dict[str, Node] = {}

    def graph(self) -> Graph:
        frame = self._header(self._line())
        builder = Builder.of(frame)
        inputs: list[Node] = []
        line = self._line()
        while not line.skip("return"):
            node = self._node(line, frame, builder)
            inputs += [node] if node.op == "input" else []
            line = self._line()
        outputs = self._results(line, frame)
        last = self._line()
        last.expect("}")
        last.end()
        if self._lines:
            self._lines[0].fail("text after the end of the graph")
        return replace(frame, inputs=tuple(inputs), outputs=outputs)

    def _line(self) -> _Line:
        if not self._lines:
            raise ParseError("the text ends before the graph does", line=self._last)
        return self._lines.pop(0)

    def _header(self, line: _Line) -> Graph:
        line.expect("graph")
        name = line.word("the graph's name")
        line.expect("(")
        fields: dict[str, Any] = {}
        while not line.skip(")"):
            if fields:
                line.expect(",")
            item = line.word("time, state, groups, order or inplace")
            if item in fields:
                line.fail(f"'{item}' is given twice")
            line.expect("=")
            match item:
                case "time":
                    fields[item] = line.word("an axis")
                case "state" | "order":
                    fields[item] = line.words()
                case "groups" | "inplace":
                    fields[item] = line.pairs()
                case _:
                    line.fail(f"'{item}' is none of time, state, groups, order, inplace")
        line.expect("{")
        line.end()
        if "order" not in fields:
            line.fail("the order of axes is missing")
        return Graph(name, (), (), **{"time": "", **fields})

    def _node(self, line: _Line, frame: Graph, builder: Builder) -> Node:
        value = line.take()
        if value.kind not in ("word", "value"):
            line.fail(f"expected a value's name, found '{value.text}'")
        if value.text in self._values:
            line.fail(f"'{value.text}' is defined twice")
        if value.text in LITERALS:
            line.fail(f"a value cannot be called '{value.text}'")
        line.expect(":")
        type_ = self._type(line, frame)
        line.expect("=")
        op = line.word("an op")
        if op not in POINTWISE and op not in LEAVES and op not in STRUCTURAL:
            line.fail(f"unknown op '{op}'")
        args = self._args(line)
        if len(args) not in ARITY[op]:
            line.fail(f"{op} takes {' or '.join(map(str, ARITY[op]))} values, not {len(args)}")
        attrs = self._attrs(line, op)
        line.end()
        node = self._build(line, builder, Node(op, args, type_, MappingProxyType(attrs)))
        if node.type != type_:
            line.fail(f"{op} gives {node.type}, but {type_} is written")
        self._values[value.text] = node if value.kind == "value" else replace(node, name=value.text)
        return self._values[value.text]

    def _type(self, line: _Line, frame: Graph) -> Type:
        dtype = line.word("a dtype")
        if dtype not in ABSTRACT and dtype not in CONCRETE:
            line.fail(f"unknown dtype '{dtype}'")
        axes = line.axes()
        for axis in axes:
            if axis not in frame.order:
                line.fail(f"axis '{axis}' is not in the graph's order ({' '.join(frame.order)})")
        return Type(axes, dtype)

    def _args(self, line: _Line) -> tuple[Node, ...]:
        args: list[Node] = []
        if line.skip("("):
            while not args or line.skip(","):
                args.append(self._operand(line))
            line.expect(")")
        return tuple(args)

    def _operand(self, line: _Line) -> Node:
        token = line.take()
        if token.kind == "value" or (token.kind == "word" and token.text not in LITERALS):
            if token.text not in self._values:
                line.fail(f"'{token.text}' is not defined above")
            return self._values[token.text]
        value = line.literal(token)
        if isinstance(value, str):
            line.fail(f"expected a value, found '{token.text}'")
        return _constant(value)

    def _attrs(self, line: _Line, op: str) -> dict[str, Any]:
        attrs = dict(DEFAULTS.get(op, {}))
        if line.skip("{"):
            first = True
            while first or line.skip(","):
                first = False
                name = line.word("an attribute")
                if name not in ATTRIBUTES.get(op, set()):
                    line.fail(f"{op} has no attribute '{name}'")
                line.expect("=")
                attrs[name] = line.literal(line.take())
            line.expect("}")
        missing = sorted(ATTRIBUTES.get(op, set()) - set(attrs))
        if missing:
            line.fail(f"{op} needs the attribute '{missing[0]}'")
        return attrs

    def _build(self, line: _Line, builder: Builder, node: Node) -> Node:
        """``node`` as Builder types it. ``node.type`` is what the text says: a sum and a broadcast take their axes from it."""
        match node.op:
            case "input":
                return node
            case "const":
                return builder.const(node.attrs["value"], node.type.dtype)
            case "index":
                return builder.index(node.attrs["axis"])
            case "size":
                return builder.size(node.attrs["axis"])
        try:
            made = builder.like(node, node.args)
        except ValueError as error:
            line.fail(str(error))
        if made in node.args:
            line.fail(f"{node.op} does nothing here: it gives its argument")
        return made

    def _results(self, line: _Line, frame: Graph) -> tuple[Output, ...]:
        outputs: list[Output] = []
        while line.peek() is not None:
            if outputs:
                line.expect(",")
            name = line.word("an output's name")
            axes = line.axes()
            line.expect("=")
            node = self._operand(line)
            outputs.append(Output(name, node, axes, line.word("an input") if line.skip("like") else ""))
        return tuple(outputs)


def _constant(value: bool | int | float | complex) -> Node:
    kind = {bool: "bool", int: "int", float: "real", complex: "complex"}[type(value)]
    return Node("const", (), Type((), kind), MappingProxyType({"value": value}))
