"""Reverse-mode differentiation of a graph: forward graph -> backward graph.

    y = f(u, A)    ->    d_u, d_A = f*(u, A, d_y)          adjoint(graph, wrt=("u", "A"))

Complex values follow PyTorch: the gradient of a real loss L is dL/dRe + i dL/dIm, so a holomorphic op multiplies by the
conjugate of its derivative, and a real operand of a complex op gets the real part. ``d_x`` below is the cotangent of x.

The recurrence.  Walking time in the scan's order, with cotangents gh of the value, gp of the prior and gf of the final state:

    value_t = a_t c_t + b_t, c_{t+1} = value_t        λ_t = e + gh_t + gp_{t+1},  e <- conj(a_t) λ_t        from e = gf, backwards
                                                       d_b = λ,  d_a = λ conj(prior),  d_initial = e + gp_0

    value_t = c_t + b_t, c_{t+1} = a_t value_t        λ_t = conj(a_t) e + gh_t + gp_t,  e <- λ_t             from e = gf, backwards
                                                       d_b = λ - gp,  d_a = e conj(value),  d_initial = e

so the adjoint of either kind of scan is one scan of the other kind in the other direction, whatever reads it. Here e is the
adjoint scan's own ``prior`` (before step t) or ``final`` (after the last step).
Source: the reverse-time costate equation of a linear system; Griewank & Walther, Evaluating Derivatives, ch. 3.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

from scanc.errors import ArgumentError
from scanc.ir import Builder, Graph, Node, Output, Type, rewrite, topological


def adjoint(graph: Graph, wrt: Sequence[str], cotangents: Sequence[str] | None = None) -> Graph:
    """The backward graph of ``graph``.

    wrt         inputs to differentiate by; the results are outputs ``d_<input>`` over that input's axes
    cotangents  outputs that have a gradient (default: all real and complex ones); each becomes an input ``d_<output>``

    Inputs are those forward inputs the backward reads (or whose sizes it needs), in their order, then the cotangents.
    Forward values it needs are the very nodes of ``graph``. An input nothing depends on gets zeros.
    Raises ArgumentError on a name that is not an input or output, or has no gradient.
    """
    outputs = _chosen_outputs(graph, cotangents)
    inputs = [_differentiable_input(graph, name) for name in wrt]
    given = {o.name: _cotangent_input(graph, o) for o in outputs}
    tape = _Tape(graph, inputs)
    for o in outputs:
        tape.receive(o.node, given[o.name])
    tape.run()

    b = tape.builder
    results = []
    for x in inputs:
        zero = b.const(0j if x.kind == "complex" else 0.0)
        node = tape.collect(x) or b.broadcast(zero, x.axes)
        results.append(Output(f"d_{x.name}", node, x.axes))
    kept = _kept_inputs(graph, results, given.values())
    results = [replace(r, like=_dtype_source(r.name[2:], kept, outputs)) for r in results]
    backward = replace(graph, name=f"{graph.name}_backward", inputs=(*kept, *given.values()), outputs=tuple(results), inplace={})
    return _with_names(backward, graph, tape.totals, {x: r.node for x, r in zip(inputs, results, strict=True)})


# -- the rules: op -> cotangents of its arguments -----------------------------------------------------------------------------------


class Term:
    """A node with Python's operators, so that the rules read like the formulas they are."""

    __slots__ = ("builder", "node")

    def __init__(self, builder: Builder, node: Node) -> None:
        self.builder, self.node = builder, node

    def _lift(self, x: Term | float) -> Node:
        return x.node if isinstance(x, Term) else self.builder.const(float(x))

    def apply(self, op: str, *others: Term | float) -> Term:
        return Term(self.builder, self.builder.pointwise(op, self.node, *(self._lift(x) for x in others)))

    def __add__(self, x: Term | float) -> Term: return self.apply("add", x)
    def __sub__(self, x: Term | float) -> Term: return self.apply("sub", x)
    def __mul__(self, x: Term | float) -> Term: return self.apply("mul", x)
    def __truediv__(self, x: Term | float) -> Term: return self.apply("div", x)
    def __gt__(self, x: Term | float) -> Term: return self.apply("gt", x)
    def __rsub__(self, x: float) -> Term: return Term(self.builder, self._lift(x)) - self
    def __neg__(self) -> Term: return self.apply("neg")

    @property
    def conj(self) -> Term:
        return self.apply("conj") if self.node.kind == "complex" else self

    def where(self, condition: Term) -> Term:
        """self where condition holds, else 0."""
        return condition.apply("where", self, 0.0)


Terms = tuple[Term | None, ...]
Rule = Callable[..., Terms]  # rule(g, y, *x): y the op's value, x its arguments, g the cotangent of y


def _div(g: Term, y: Term, p: Term, q: Term) -> Terms:
    d = g / q.conj
    return d, -(d * y.conj)


def _silu(g: Term, y: Term, x: Term) -> Terms:
    s = x.apply("sigmoid")
    return (g * (s * (x * (1.0 - s) + 1.0)).conj,)


def _sign(g: Term, y: Term, z: Term) -> Terms:
    """Constant for real z. A complex sign z/|z| only turns: the part of g along it is lost."""
    if z.node.kind != "complex":
        return (None,)
    length = z.apply("abs")
    along = y * (g * y.conj).apply("real")
    return (((g - along) / length).where(length > 0.0),)


def _maximum(g: Term, y: Term, p: Term, q: Term) -> Terms:
    first = p.apply("ge", q)  # of two equal values the first is taken
    return g.where(first), g.where(first.apply("not"))


def _minimum(g: Term, y: Term, p: Term, q: Term) -> Terms:
    first = p.apply("le", q)
    return g.where(first), g.where(first.apply("not"))


def _imag(g: Term, y: Term, x: Term) -> Terms:
    return (Term(g.builder, g.builder.pointwise("complex", g.builder.const(0.0), g.node)),)


def _sum(g: Term, y: Term, x: Term) -> Terms:
    return (Term(g.builder, g.builder.broadcast(g.node, x.node.axes)),)


def _shift(g: Term, y: Term, x: Term) -> Terms:
    attrs = y.node.attrs
    return (Term(g.builder, g.builder.shift(g.node, attrs["axis"], -attrs["by"])),)


def _conv(g: Term, y: Term, x: Term, k: Term) -> Terms:
    """d_x_s = Σ_j conj(k_j) g_{s+j}: the convolution the other way round; d_k_j = Σ_t g_t conj(x_{t-j})."""
    b, (axis, tap, reverse) = g.builder, _conv_attrs(y)
    return (Term(b, b.conv(g.node, k.conj.node, axis, tap, reverse=not reverse)),
            Term(b, b.conv_kernel_grad(x.conj.node, g.node, axis, tap, reverse=reverse)))


def _conv_kernel_grad(g: Term, y: Term, x: Term, s: Term) -> Terms:
    """y_j = Σ_t s_t x_{t-j}, so d_s_t = Σ_j g_j conj(x_{t-j}) and d_x_t = Σ_j g_j conj(s_{t+j})."""
    b, (axis, tap, reverse) = g.builder, _conv_attrs(y)
    return (Term(b, b.conv(s.conj.node, g.node, axis, tap, reverse=not reverse)),
            Term(b, b.conv(x.conj.node, g.node, axis, tap, reverse=reverse)))


def _conv_attrs(y: Term) -> tuple[str, str, bool]:
    return y.node.attrs["axis"], y.node.attrs["tap"], y.node.attrs["reverse"]


RULES: dict[str, Rule] = {
    "add": lambda g, y, p, q: (g, g),
    "sub": lambda g, y, p, q: (g, -g),
    "mul": lambda g, y, p, q: (g * q.conj, g * p.conj),
    "div": _div,
    "neg": lambda g, y, x: (-g,),
    "maximum": _maximum,
    "minimum": _minimum,
    "where": lambda g, y, c, p, q: (None, g.where(c), g.where(c.apply("not"))),
    "exp": lambda g, y, x: (g * y.conj,),
    "exp2": lambda g, y, x: (g * y.conj * math.log(2.0),),
    "expm1": lambda g, y, x: (g * x.apply("exp").conj,),  # not y + 1: that loses e^x where it is small
    "log": lambda g, y, x: (g / x.conj,),
    "log2": lambda g, y, x: (g / (x.conj * math.log(2.0)),),
    "log1p": lambda g, y, x: (g / (x.conj + 1.0),),
    "sqrt": lambda g, y, x: (g * 0.5 / y.conj,),
    "rsqrt": lambda g, y, x: (g * (y * y.apply("square") * -0.5).conj,),
    "reciprocal": lambda g, y, x: (-(g * y.apply("square").conj),),
    "square": lambda g, y, x: (g * 2.0 * x.conj,),
    "abs": lambda g, y, x: (g * x.apply("sign"),),
    "sign": _sign,
    "sigmoid": lambda g, y, x: (g * (y * (1.0 - y)).conj,),
    "silu": _silu,
    "softplus": lambda g, y, x: (g * x.apply("sigmoid").conj,),
    "tanh": lambda g, y, x: (g * (1.0 - y.apply("square")).conj,),
    "sin": lambda g, y, x: (g * x.apply("cos").conj,),
    "cos": lambda g, y, x: (-(g * x.apply("sin").conj),),
    "relu": lambda g, y, x: (g.where(x > 0.0),),
    "erf": lambda g, y, x: (g * (-x.apply("square")).apply("exp").conj * (2.0 / math.sqrt(math.pi)),),
    # The kind of a cotangent is mended where it is received: real parts for real arguments, complex for complex ones.
    "real": lambda g, y, x: (g,),
    "imag": lambda g, y, x: (None,) if x.node.kind != "complex" else _imag(g, y, x),
    "conj": lambda g, y, x: (g.conj,),
    "complex": lambda g, y, re, im: (g.apply("real"), g.apply("imag")),
    "cast": lambda g, y, x: (g,),
    "broadcast": lambda g, y, x: (g,),
    "sum": _sum,
    "shift": _shift,
    "conv": _conv,
    "conv_kernel_grad": _conv_kernel_grad,
}


# -- the walk -------------------------------------------------------------------------------------------------------------------------


class _Tape:
    """Walks a graph from its outputs back, gathering what each value receives from its users."""

    def __init__(self, graph: Graph, inputs: Iterable[Node]) -> None:
        self.builder = Builder.of(graph)
        self.nodes = graph.nodes()
        self.wanted = set(inputs)
        for node in self.nodes:
            if _has_gradient(node) and any(a in self.wanted for a in node.args):
                self.wanted.add(node)
        self.received: dict[Node, list[Node]] = defaultdict(list)
        self.totals: dict[Node, Node] = {}

    def receive(self, node: Node, cotangent: Node) -> None:
        """Notes a contribution to ``node``'s cotangent, over the axes of the user it comes from, in ``node``'s kind."""
        if node not in self.wanted:
            return
        if node.kind == "real" and cotangent.kind == "complex":
            cotangent = self.builder.pointwise("real", cotangent)
        elif node.kind == "complex" and cotangent.kind == "real":
            cotangent = self.builder.pointwise("cast", cotangent, kind=node.type.dtype)
        self.received[node].append(cotangent)

    def collect(self, node: Node) -> Node | None:
        """The whole cotangent of ``node`` over its axes; None where it received nothing.

        Contributions over the same axes are added before they are summed to the node's, so that each set of axes is reduced once.
        """
        by_axes: dict[frozenset[str], Node] = {}
        for c in self.received.get(node, []):
            key = frozenset(c.axes)
            by_axes[key] = self.builder.pointwise("add", by_axes[key], c) if key in by_axes else c
        total: Node | None = None
        for key, c in by_axes.items():
            if key != frozenset(node.axes):
                c = self.builder.sum_to(c, node.axes)
            total = c if total is None else self.builder.pointwise("add", total, c)
        if total is not None:
            self.totals[node] = total
        return total

    def run(self) -> None:
        """Every rule once, users before arguments."""
        reads: dict[Node, list[Node]] = defaultdict(list)
        for node in self.nodes:
            if node.op in ("prior", "final"):
                reads[node.args[0]].append(node)
        for node in reversed(self.nodes):
            if node not in self.wanted or node.op in ("input", "prior", "final"):
                continue
            self.builder.where = node.where
            if node.op == "scan":
                self._scan(node, [r for r in reads[node] if r.op == "prior"], [r for r in reads[node] if r.op == "final"])
                continue
            g = self.collect(node)
            if g is None:
                continue
            terms = (Term(self.builder, x) for x in (g, node, *node.args))
            for arg, term in zip(node.args, RULES[node.op](*terms), strict=True):
                if term is not None:
                    self.receive(arg, term.node)

    def _collect_all(self, nodes: Iterable[Node]) -> Term | None:
        total: Term | None = None
        for node in nodes:
            g = self.collect(node)
            if g is not None:
                total = Term(self.builder, g) if total is None else total + Term(self.builder, g)
        return total

    def _scan(self, scan: Node, priors: list[Node], finals: list[Node]) -> None:
        """The module's two derivations. One adjoint scan serves the value, the prior and the final state."""
        b = self.builder
        axis, reverse, shifted = (scan.attrs[k] for k in ("axis", "reverse", "shifted"))
        gh, gp, gf = self._collect_all([scan]), self._collect_all(priors), self._collect_all(finals)
        if gh is None and gp is None and gf is None:
            return
        # gp read at step t belongs to the carry of t: with the value before it when that is the carry, else with value t.
        moved = gp if gp is None or shifted else Term(b, b.shift(gp.node, axis, 1 if reverse else -1))
        source = gh if moved is None else moved if gh is None else gh + moved
        into = source.node if source is not None else b.const(0.0)
        a = Term(b, scan.args[0])
        x = b.scan(a.conj.node, into, gf.node if gf else None, axis=axis, reverse=not reverse, shifted=not shifted)
        self.totals[scan] = x  # known as d_<scan>
        carry, value = Term(b, b.prior(x)), Term(b, x)
        if shifted:
            d_a = carry * Term(b, scan).conj
            d_b = value
            if gp is not None:  # λ - gp without the cancellation
                d_b = carry * a.conj
                d_b = d_b if gh is None else d_b + gh
        else:
            d_a = value * Term(b, b.prior(scan)).conj
            d_b = value
        self.receive(scan.args[0], d_a.node)
        self.receive(scan.args[1], d_b.node)
        if len(scan.args) == 3:
            self.receive(scan.args[2], b.final(x))
            if gp is not None and not shifted:
                self.receive(scan.args[2], self._first_step(gp, axis, reverse).node)

    def _first_step(self, x: Term, axis: str, reverse: bool) -> Term:
        """x at the first step walked: index 0, or the last when reverse."""
        b = self.builder
        first = b.pointwise("sub", b.size(axis), b.const(1, "int")) if reverse else b.const(0, "int")
        here = Term(b, b.pointwise("eq", b.index(axis), first))
        return Term(b, b.sum(x.where(here).node, (axis,)))


# -- names, inputs, outputs --------------------------------------------------------------------------------------------------------------


def _chosen_outputs(graph: Graph, names: Sequence[str] | None) -> list[Output]:
    outputs = {o.name: o for o in graph.outputs}
    if names is None:
        return [o for o in graph.outputs if _has_gradient(o.node)]
    for name in names:
        if name not in outputs:
            _refuse(graph, name, "not an output", f"a cotangent belongs to one of {', '.join(outputs)}", "Correct the name.")
        if not _has_gradient(outputs[name].node):
            _refuse(graph, name, outputs[name].node.kind, "only real and complex outputs have a gradient", "Leave it out.")
    return [o for o in graph.outputs if o.name in names]


def _differentiable_input(graph: Graph, name: str) -> Node:
    inputs = {str(n.name): n for n in graph.inputs}
    if name not in inputs:
        _refuse(graph, name, "not an input", f"inputs are {', '.join(inputs)}", "Correct the name.")
    if not _has_gradient(inputs[name]):
        _refuse(graph, name, inputs[name].kind, "only real and complex inputs have a gradient", "Leave it out.")
    return inputs[name]


def _cotangent_input(graph: Graph, output: Output) -> Node:
    name = f"d_{output.name}"
    if graph.has_input(name):
        _refuse(graph, name, "an input's name", f"it names the gradient of output '{output.name}'", "Rename the input or the output.")
    return Builder.of(graph).input(name, Type(output.axes, output.node.type.dtype))


def _has_gradient(node: Node) -> bool:
    return node.kind in ("real", "complex")


def _refuse(graph: Graph, argument: str, value: str, limit: str, remedy: str) -> NoReturn:
    raise ArgumentError(op=graph.name, argument=argument, value=value, limit=limit, remedy=remedy)


def _kept_inputs(graph: Graph, results: Iterable[Output], given: Iterable[Node]) -> list[Node]:
    """Forward inputs that are read, and for every axis no kept input has, the first that gives its size."""
    nodes = topological(r.node for r in results)
    kept = {n for n in graph.inputs if n in set(nodes)}
    needed = [a for r in results for a in r.axes] + [a for n in nodes for a in (*n.axes, *((n.attrs["axis"],) if n.op == "size" else ()))]
    for axis in dict.fromkeys(needed):
        if not any(axis in n.axes for n in (*kept, *given)):
            kept.update([n for n in graph.inputs if axis in n.axes][:1])
    return [n for n in graph.inputs if n in kept]


def _dtype_source(name: str, kept: Iterable[Node], outputs: Iterable[Output]) -> str:
    """The backward's input whose dtype is that of forward input ``name``: itself, or the cotangent of an output like it."""
    if any(n.name == name for n in kept):
        return name
    return next((f"d_{o.name}" for o in outputs if o.like == name), "")


def _with_names(backward: Graph, forward: Graph, totals: Mapping[Node, Node], results: Mapping[Node, Node]) -> Graph:
    """Names every cotangent of a named value d_<name>: the results first, then scans, then the rest."""
    taken = {n.name for n in (*forward.nodes(), *forward.inputs, *backward.inputs)}
    names: dict[Node, str] = {}
    scans = {n: t for n, t in totals.items() if n.op == "scan"}
    for node, total in [*results.items(), *scans.items(), *totals.items()]:
        name = f"d_{node.name}"
        if node.name and total.name is None and total not in names and name not in taken:
            names[total] = name
            taken.add(name)

    def rule(node: Node, args: tuple[Node, ...]) -> Node:
        if node not in names and all(new is old for new, old in zip(args, node.args, strict=True)):
            return node
        return replace(node, args=args, name=names.get(node, node.name))

    return rewrite(backward, rule)
