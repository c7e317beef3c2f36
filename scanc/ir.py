"""The IR on one page.

    Graph  := name, inputs: Node*, outputs: Output*, time axis, axis order, group map, state axes
    Node   := op(args: Node*, attrs) : Type            an immutable DAG; nodes are compared by identity
    Type   := dtype[axes]                              dtype is abstract after tracing, concrete after specialisation
    Output := name, Node, axes in the tensor's order

    op     := input | const | index | size                          leaves
            | add | mul | exp | ... | where                         pointwise; axes broadcast by name
            | broadcast                                             to more axes
            | sum                                                   over axes, or from d down to its groups g
            | shift                                                 x[t - by], a constant where that is outside
            | scan | prior | final                                  the recurrence, its exclusive read, its last state
            | conv | conv_kernel_grad                               causal convolution over time

The recurrence.  ``scan(a, b, initial?)`` with attributes ``reverse`` and ``shifted`` is, walking time forwards
(or backwards when ``reverse``), with carry c starting at ``initial`` (zero when absent):

    shifted = False:   value_t = a_t * c_t + b_t,   c_{t+1} = value_t
    shifted = True:    value_t = c_t + b_t,         c_{t+1} = a_t * value_t

``prior(scan)`` is c_t, the carry before step t; ``final(scan)`` is the carry after the last step. The two kinds are each
other's adjoint (passes/adjoint.py), which is why the IR has both and needs no look-ahead at a_{t+1}.

Grouped axes.  ``groups = {"g": "d"}`` says that g divides d: a value over g meets a value over d by repeating each
group's entry over its members, so the union of (b, g, n) and (b, d) is (b, d, n).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

Axes = tuple[str, ...]

ABSTRACT = ("real", "complex", "int", "bool")
CONCRETE = {
    "float16": "real",
    "bfloat16": "real",
    "float32": "real",
    "float64": "real",
    "complex64": "complex",
    "complex128": "complex",
    "int32": "int",
    "int64": "int",
    "bool": "bool",
}


@dataclass(frozen=True)
class Type:
    """Axes in canonical order and a dtype: abstract (``real``) or concrete (``float32``)."""

    axes: Axes
    dtype: str

    @property
    def kind(self) -> str:
        """real, complex, int or bool, whatever the precision."""
        return CONCRETE.get(self.dtype, self.dtype)

    def __str__(self) -> str:
        return f"{self.dtype}[{' '.join(self.axes)}]"


@dataclass(frozen=True, eq=False)
class Node:
    """One value. ``name`` is the user's word for it where there is one; ``where`` the user's line."""

    op: str
    args: tuple[Node, ...]
    type: Type
    attrs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    name: str | None = None
    where: str = ""

    @property
    def axes(self) -> Axes:
        return self.type.axes

    @property
    def kind(self) -> str:
        return self.type.kind

    def __repr__(self) -> str:
        return f"<{self.op} {self.name or ''}:{self.type}>"


@dataclass(frozen=True)
class Output:
    """A result: its tensor has ``axes`` in this order, and the dtype of input ``like`` (float32 or complex64 when "")."""

    name: str
    node: Node
    axes: Axes
    like: str = ""


@dataclass(frozen=True)
class Origin:
    """A backward graph's forward, the inputs it has gradients of, and the results whose cotangents it takes."""

    forward: Graph
    wrt: tuple[str, ...]
    cotangents: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """An op traced for one choice of options and optional inputs.

    ``time``   the axis scans run along ("" in a graph with no time)
    ``order``  every axis, in canonical order: the order of first appearance in the inputs
    ``groups`` {group axis: the axis it divides}
    ``state``  axes of the recurrence's state that the read-out contracts: known from the forward graph, kept by its adjoint
    ``inplace`` {output name: input name} whose storage the output overwrites (the decode state)
    ``origin``  what a backward was derived from; it is printed nowhere, and a graph does without
    """

    name: str
    inputs: tuple[Node, ...]
    outputs: tuple[Output, ...]
    time: str
    order: Axes
    groups: Mapping[str, str] = field(default_factory=dict)
    state: Axes = ()
    inplace: Mapping[str, str] = field(default_factory=dict)
    origin: Origin | None = field(default=None, compare=False, repr=False)

    def input(self, name: str) -> Node:
        return next(n for n in self.inputs if n.name == name)

    def has_input(self, name: str) -> bool:
        return any(n.name == name for n in self.inputs)

    def output(self, name: str) -> Output:
        return next(o for o in self.outputs if o.name == name)

    def nodes(self) -> list[Node]:
        """Every node reachable from the outputs, arguments before users; unused inputs left out."""
        return topological(o.node for o in self.outputs)

    def union(self, *parts: Axes) -> Axes:
        """The axes that values over ``parts`` broadcast to, in canonical order."""
        present = {a for axes in parts for a in axes}
        return tuple(a for a in self.order if a in present and self.groups.get(a) not in present)

    def canonical(self, axes: Iterable[str]) -> Axes:
        present = set(axes)
        return tuple(a for a in self.order if a in present)

    @property
    def lanes(self) -> Axes:
        """Axes that are neither time, state, nor a grouping: the recurrence is independent along them."""
        scans = [n for n in self.nodes() if n.op == "scan"]
        present = {a for n in (scans or self.nodes()) for a in n.axes}
        return tuple(a for a in self.order if a in present and a != self.time and a not in self.state)


# Arity of every pointwise op, and the kind of its result ("same": the widest of its arguments' kinds).
POINTWISE: dict[str, tuple[int, str]] = {
    "add": (2, "same"),
    "sub": (2, "same"),
    "mul": (2, "same"),
    "div": (2, "same"),
    "neg": (1, "same"),
    "maximum": (2, "same"),
    "minimum": (2, "same"),
    "where": (3, "branch"),
    "exp": (1, "same"),
    "exp2": (1, "same"),
    "expm1": (1, "same"),
    "log": (1, "same"),
    "log2": (1, "same"),
    "log1p": (1, "same"),
    "sqrt": (1, "same"),
    "rsqrt": (1, "same"),
    "reciprocal": (1, "same"),
    "square": (1, "same"),
    "abs": (1, "real"),
    "sign": (1, "same"),
    "sigmoid": (1, "same"),
    "silu": (1, "same"),
    "softplus": (1, "same"),
    "tanh": (1, "same"),
    "sin": (1, "same"),
    "cos": (1, "same"),
    "relu": (1, "same"),
    "erf": (1, "same"),
    "lt": (2, "bool"),
    "le": (2, "bool"),
    "gt": (2, "bool"),
    "ge": (2, "bool"),
    "eq": (2, "bool"),
    "ne": (2, "bool"),
    "and": (2, "bool"),
    "or": (2, "bool"),
    "not": (1, "bool"),
    "real": (1, "real"),
    "imag": (1, "real"),
    "conj": (1, "same"),
    "complex": (2, "complex"),
    "cast": (1, "attr"),
}
LEAVES = ("input", "const", "index", "size")
STRUCTURAL = ("broadcast", "sum", "shift", "scan", "prior", "final", "conv", "conv_kernel_grad")
_WIDTH = {"bool": 0, "int": 1, "real": 2, "complex": 3}


def topological(roots: Iterable[Node]) -> list[Node]:
    """Nodes under ``roots``, arguments before users, without recursion (graphs can be deep)."""
    done: dict[Node, None] = {}
    stack: list[tuple[Node, Iterator[Node]]] = []
    for root in roots:
        if root in done:
            continue
        stack.append((root, iter(root.args)))
        while stack:
            node, rest = stack[-1]
            nxt = next((a for a in rest if a not in done), None)
            if nxt is None:
                stack.pop()
                done[node] = None
            else:
                stack.append((nxt, iter(nxt.args)))
    return list(done)


class Builder:
    """Makes typed nodes over the axes of one graph; every rule of broadcasting and kinds is here, once.

    Before -> after:  b.pointwise("mul", dt: real[b d l], A: real[d n])  ->  mul(dt, A): real[b d l n]
    Raises ValueError with the rule that was broken; the DSL adds the user's line.
    """

    def __init__(self, order: Axes, groups: Mapping[str, str], time: str) -> None:
        self._frame = Graph("", (), (), time, order, groups)
        self.where = ""

    @classmethod
    def of(cls, graph: Graph) -> Builder:
        return cls(graph.order, graph.groups, graph.time)

    def _node(self, op: str, args: tuple[Node, ...], type_: Type, **attrs: Any) -> Node:
        return Node(op, args, type_, MappingProxyType(attrs), where=self.where)

    def union(self, *parts: Axes) -> Axes:
        return self._frame.union(*parts)

    def input(self, name: str, type_: Type) -> Node:
        return replace(self._node("input", (), type_), name=name)

    def const(self, value: float | int | bool | complex, kind: str | None = None) -> Node:
        if kind is None:
            kind = {bool: "bool", int: "real", float: "real", complex: "complex"}[type(value)]
        return self._node("const", (), Type((), kind), value=value)

    def index(self, axis: str) -> Node:
        """The position along ``axis``: 0, 1, …"""
        self._known(axis, "index")
        return self._node("index", (), Type((axis,), "int"), axis=axis)

    def size(self, axis: str) -> Node:
        """How many positions ``axis`` has."""
        self._known(axis, "size")
        return self._node("size", (), Type((), "int"), axis=axis)

    def _known(self, axis: str, op: str) -> None:
        if axis not in self._frame.order:
            raise ValueError(f"{op} of '{axis}', an axis that no input has")

    def pointwise(self, op: str, *args: Node, kind: str | None = None) -> Node:
        arity, rule = POINTWISE[op]
        if len(args) != arity:
            raise ValueError(f"{op} takes {arity} values, not {len(args)}")
        axes = self.union(*(a.axes for a in args))
        widest = max((a.kind for a in (args[1:] if rule == "branch" else args)), key=_WIDTH.__getitem__)
        if op == "where" and args[0].kind != "bool":
            raise ValueError(f"where needs a bool condition, not {args[0].type}")
        if op in ("maximum", "minimum", "lt", "le", "gt", "ge") and widest == "complex":
            raise ValueError(f"{op} has no meaning for complex values")
        if op == "cast":
            return self._node(op, args, Type(axes, str(kind)), kind=kind)
        result = widest if rule in ("same", "branch") else rule
        if rule == "same" and arity == 1 and op not in ("neg", "abs", "sign", "square", "relu", "conj") and result in ("int", "bool"):
            result = "real"
        if op == "div" and result in ("int", "bool"):
            result = "real"
        return self._node(op, args, Type(axes, result))

    def broadcast(self, x: Node, axes: Axes) -> Node:
        """x over at least ``axes``; x itself where it has them all."""
        full = self.union(x.axes, axes)
        return x if full == x.axes else self._node("broadcast", (x,), Type(full, x.type.dtype))

    def sum_to(self, x: Node, axes: Axes) -> Node:
        """Sums away every axis of x that is not in ``axes``; an axis whose group is in ``axes`` is summed within groups."""
        target = self._frame.canonical(axes)
        if target == x.axes:
            return x
        for a in target:
            if a not in x.axes and self._frame.groups.get(a) not in x.axes:
                raise ValueError(f"cannot sum {x.type} to axes ({' '.join(target)}): it has no axis {a}")
        return self._node("sum", (x,), Type(target, x.type.dtype))

    def sum(self, x: Node, over: Axes) -> Node:
        missing = [a for a in over if a not in x.axes]
        if missing:
            raise ValueError(f"sum over '{missing[0]}', but the value has axes ({' '.join(x.axes)})")
        return self.sum_to(x, tuple(a for a in x.axes if a not in over))

    def shift(self, x: Node, axis: str, by: int, fill: float | int | bool = 0) -> Node:
        """x[t - by] along ``axis``; ``fill`` where t - by is outside."""
        if axis not in x.axes:
            raise ValueError(f"shift along '{axis}', but the value has axes ({' '.join(x.axes)})")
        return x if by == 0 else self._node("shift", (x,), x.type, axis=axis, by=by, fill=fill)

    def scan(self, a: Node, b: Node, initial: Node | None = None, *, axis: str, reverse: bool = False, shifted: bool = False) -> Node:
        """The recurrence of the module's docstring along ``axis``."""
        args = (a, b) if initial is None else (a, b, initial)
        if any(x.kind not in ("real", "complex") for x in args):
            raise ValueError("scan works on real or complex values")
        if initial is not None and axis in initial.axes:
            raise ValueError(f"the initial state has the time axis '{axis}'")
        if axis not in self._frame.order:
            raise ValueError(f"scan along '{axis}', which no input has; a recurrence runs along an axis of an input")
        dtype = max((x.kind for x in args), key=_WIDTH.__getitem__)
        axes = self.union((axis,), *(x.axes for x in args))
        return self._node("scan", args, Type(axes, dtype), axis=axis, reverse=reverse, shifted=shifted)

    def prior(self, scan: Node) -> Node:
        if scan.op != "scan":
            raise ValueError("prior reads the carry of a scan; this value is none")
        return self._node("prior", (scan,), scan.type)

    def final(self, scan: Node) -> Node:
        if scan.op != "scan":
            raise ValueError("final reads the last state of a scan; this value is none")
        axis = scan.attrs["axis"]
        return self._node("final", (scan,), Type(tuple(a for a in scan.axes if a != axis), scan.type.dtype))

    def conv(self, x: Node, k: Node, axis: str, tap: str, *, reverse: bool = False) -> Node:
        """y_t = Σ_j k_j x_{t-j} (x_{t+j} when ``reverse``), x zero outside; ``tap`` is the kernel's axis, ``axis`` itself when long."""
        if axis not in x.axes or tap not in k.axes:
            raise ValueError(f"conv needs x over '{axis}' and a kernel over '{tap}'; they are {x.type} and {k.type}")
        if tap != axis and (tap in x.axes or axis in k.axes):
            raise ValueError(f"conv's tap axis '{tap}' is the kernel's alone and '{axis}' the value's; they are {x.type} and {k.type}")
        axes = self.union(x.axes, tuple(a for a in k.axes if a != tap))
        dtype = max((x.kind, k.kind), key=_WIDTH.__getitem__)
        return self._node("conv", (x, k), Type(axes, dtype), axis=axis, tap=tap, reverse=reverse)

    def conv_kernel_grad(self, x: Node, g: Node, axis: str, tap: str, *, reverse: bool = False) -> Node:
        """dk_j = Σ_t g_t x_{t-j} (x_{t+j} when ``reverse``) for every j of ``tap``, over the union of the other axes."""
        axes = tuple(a for a in self.union(x.axes, g.axes) if a != axis)
        full = self._frame.canonical((*axes, tap))
        dtype = max((x.kind, g.kind), key=_WIDTH.__getitem__)
        return self._node("conv_kernel_grad", (x, g), Type(full, dtype), axis=axis, tap=tap, reverse=reverse)

    def like(self, node: Node, args: tuple[Node, ...]) -> Node:
        """``node`` again over other arguments, its type derived anew; name and line kept."""
        made = self._like(node, args)
        if made in args or made.op != node.op:
            return made
        return replace(made, name=node.name, where=node.where)

    def _like(self, node: Node, args: tuple[Node, ...]) -> Node:
        attrs = dict(node.attrs)
        match node.op:
            case "input" | "const" | "index" | "size":
                return node
            case "cast":
                return self.pointwise("cast", *args, kind=attrs["kind"])
            case op if op in POINTWISE:
                return self.pointwise(op, *args)
            case "broadcast":
                return self.broadcast(args[0], node.axes)
            case "sum":
                return self.sum_to(args[0], node.axes)
            case "scan":
                return self.scan(*args, **attrs)
            case "prior":
                return self.prior(*args)
            case "final":
                return self.final(*args)
            case "shift":
                return self.shift(args[0], attrs["axis"], attrs["by"], attrs["fill"])
            case "conv":
                return self.conv(args[0], args[1], **attrs)
            case "conv_kernel_grad":
                return self.conv_kernel_grad(args[0], args[1], **attrs)
        raise ValueError(f"unknown op '{node.op}'")


def rewrite(graph: Graph, rule: Callable[[Node, tuple[Node, ...]], Node], *, outputs: Iterable[Output] | None = None) -> Graph:
    """Rebuilds a graph bottom-up: ``rule(node, new_args)`` gives each node's replacement."""
    new: dict[Node, Node] = {}
    outs = tuple(graph.outputs if outputs is None else outputs)
    for node in topological([*graph.inputs, *(o.node for o in outs)]):
        new[node] = rule(node, tuple(new[a] for a in node.args))
    return replace(graph, inputs=tuple(new[n] for n in graph.inputs), outputs=tuple(replace(o, node=new[o.node]) for o in outs))


def is_pointwise(node: Node) -> bool:
    return node.op in POINTWISE
