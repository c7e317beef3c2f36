"""Recurrences whose transition has no time axis, as convolutions: the form convolution of a state space.

    h_t = a h_{t-1} + w u_t,   y_t = Σ_n C h_t        a, w, C without time, u without the state axis
        ->  y = conv(u, K) + start,   K_l = Σ_n C w a^l,   start_t = Σ_n C a^{t+1} h_{-1}
    final(h) = a^L h_{-1} + Σ_j a^{L-1-j} w u_j

The rest of the graph (skips, gates, what u is made of) stays as it is and goes, with kernels and starts for inputs, the way of any graph
that convolves. A backward is that of this graph, and of how kernels, starts and last states are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NoReturn, Protocol, TypeVar

from scanc.errors import UnsupportedForm
from scanc.forms.partition import used_inputs
from scanc.ir import Axes, Builder, Graph, Node, Output, Type, rewrite, topological


class Planned(Protocol):
    """A plan that leaves a graph of its own to be evaluated in another form."""

    @property
    def graph(self) -> Graph: ...


P = TypeVar("P", bound=Planned)

# What a plan's graph is given beside the op's own inputs: these and a number.
GIVEN = ("kernel", "start", "final")


@dataclass(frozen=True)
class Recurrence:
    """One such scan: untimed transition and weight (None: 1), the signal it takes in, the state it starts from."""

    scan: Node
    transition: Node
    weight: Node | None
    signal: Node
    initial: Node | None

    @property
    def reverse(self) -> bool:
        return bool(self.scan.attrs["reverse"])


@dataclass(frozen=True)
class Reading:
    """``node`` = Σ over the state axis of ``part`` (real, imag or all) of factor · state; ``before`` reads the state before the step."""

    node: Node
    of: Recurrence
    factor: Node | None
    part: str
    before: bool


@dataclass(frozen=True)
class LtiPlan:
    """``small`` computes what has no time axis, and ``signals`` what the states take in, by the names below; ``graph`` does the rest."""

    recurrences: tuple[Recurrence, ...]
    readings: tuple[Reading, ...]
    finals: tuple[Recurrence, ...]
    small: Graph
    signals: Graph | None
    graph: Graph


def lti_plan(graph: Graph) -> LtiPlan:
    """The plan of a prepared graph. Raises UnsupportedForm with what does not fit."""
    return _Recognition(graph).plan()


def backward_plan(graph: Graph) -> tuple[LtiPlan, Graph]:
    """The plan of the forward that a backward was derived from, and the backward of its convolutions: gradients d_kernel<i>, d_start<i>
    and d_final<i> of what the plan is given, among those that are asked for, where these are made of something that has one.

    Raises UnsupportedForm with what does not fit.
    """
    return derived(graph, "convolution", lti_plan, _felt, lambda plan: (plan.small, plan.signals), GIVEN)


def derived(
    graph: Graph,
    form: str,
    plan_of: Callable[[Graph], P],
    felt: Callable[[P, set[str]], set[str]],
    beside: Callable[[P], Iterable[Graph | None]],
    given: tuple[str, ...],
) -> tuple[P, Graph]:
    """The plan of the forward that a backward was derived from, and the backward of the plan's own graph.

    ``felt``    inputs of the plan's graph that have a gradient where those named have
    ``beside``  graphs of the plan that the backward evaluates too, from what it is given
    ``given``   how names begin of what the plan makes itself
    Raises UnsupportedForm with what does not fit.
    """
    from scanc.compiler import prepare
    from scanc.passes.backward import backward
    from scanc.passes.specialize import specialize

    def refuse(reason: str) -> UnsupportedForm:
        return UnsupportedForm(op=graph.name, form=form, forms="recurrent", reason=reason)

    origin = graph.origin
    if origin is None or {o.name for o in graph.outputs} != {f"d_{n}" for n in origin.wrt}:
        raise refuse("it was not derived from a forward")
    dtypes = {str(n.name): n.type.dtype for n in graph.inputs}
    plain = {"real": "float32", "complex": "complex64", "int": "int32", "bool": "bool"}
    forward = specialize(origin.forward, {str(n.name): dtypes.get(str(n.name), plain[n.kind]) for n in origin.forward.inputs})
    plan = plan_of(prepare(forward))
    wanted = felt(plan, set(origin.wrt))
    inner = backward(plan.graph, [str(n.name) for n in plan.graph.inputs if n.name in wanted], origin.cotangents)
    inner = specialize(inner, {str(n.name): dtypes.get(str(n.name), plain.get(n.type.dtype, n.type.dtype)) for n in inner.inputs})
    missing = {str(n.name) for g in (*beside(plan), inner) if g is not None for n in g.inputs} - set(dtypes)
    missing -= {name for name in missing if name.startswith(given)}
    if missing:
        raise refuse(f"it is not given {', '.join(sorted(missing))}")
    return plan, inner


def is_made_of(wrt: set[str], *nodes: Node | None) -> bool:
    """Whether any of the nodes is made of an input of ``wrt``."""
    return any(n.op == "input" and n.name in wrt for n in topological([x for x in nodes if x is not None]))


def _felt(plan: LtiPlan, wrt: set[str]) -> set[str]:
    """Inputs of the plan's graph that have a gradient where ``wrt`` have."""
    found = set(wrt)
    for i, reading in enumerate(plan.readings):
        r = reading.of
        if is_made_of(wrt, r.transition, r.weight, reading.factor):
            found.add(f"kernel{i}")
        if is_made_of(wrt, r.transition, r.initial, reading.factor):
            found.add(f"start{i}")
    return found | {f"final{i}" for i, r in enumerate(plan.finals) if is_made_of(wrt, r.transition, r.weight, r.initial, r.signal)}


def kernel_axes(graph: Graph, reading: Reading) -> Axes:
    """Axes of a reading's kernel, without time."""
    parts = [n.axes for n in (reading.of.transition, reading.of.weight, reading.factor) if n is not None]
    return tuple(a for a in graph.union(*parts) if a not in graph.state)


def start_axes(graph: Graph, reading: Reading) -> Axes:
    """Axes of what a reading sees of the initial state, without time."""
    parts = [n.axes for n in (reading.of.transition, reading.of.initial, reading.factor) if n is not None]
    return tuple(a for a in graph.union(*parts) if a not in graph.state)


class _Recognition:
    def __init__(self, graph: Graph) -> None:
        self.graph, self.nodes = graph, graph.nodes()
        self.users: dict[Node, list[Node]] = {n: [] for n in self.nodes}
        for n in self.nodes:
            for a in n.args:
                self.users[a].append(n)

    def refuse(self, reason: str) -> NoReturn:
        raise UnsupportedForm(op=self.graph.name, form="convolution", forms="recurrent", reason=reason)

    def untimed(self, node: Node) -> bool:
        return self.graph.time not in node.axes

    def plan(self) -> LtiPlan:
        graph = self.graph
        scans = [n for n in self.nodes if n.op == "scan"]
        if not scans:
            self.refuse("it has no recurrence")
        recurrences = {s: self._recurrence(s) for s in scans}
        readings: list[Reading] = []
        finals: list[Recurrence] = []
        for scan, r in recurrences.items():
            if any(o.node is scan for o in graph.outputs):
                self.refuse("its states at every step are a result")
            for state in [scan, *(n for n in self.users[scan] if n.op == "prior")]:
                for user in self.users[state]:
                    if user.op == "final":
                        finals.append(r)
                    elif user.op != "prior":
                        readings.append(self._reading(r, state, user))
        finals = list(dict.fromkeys(finals))
        b = Builder.of(graph)
        new: dict[Node, Node] = {}
        extra: list[Node] = []

        def given(name: str, axes: Axes, kind: str) -> Node:
            dtype = {"real": "float32", "complex": "complex64"}[kind]
            extra.append(b.input(name, Type(graph.canonical(axes), dtype)))
            return extra[-1]

        for i, reading in enumerate(readings):
            kernel = given(f"kernel{i}", (*kernel_axes(graph, reading), graph.time), "real")
            value = b.conv(reading.of.signal, kernel, graph.time, graph.time, reverse=reading.of.reverse)
            if reading.of.initial is not None:
                value = b.pointwise("add", value, given(f"start{i}", (*start_axes(graph, reading), graph.time), "real"))
            new[reading.node] = b.broadcast(value, reading.node.axes)
        for i, r in enumerate(finals):
            final = next(n for n in self.users[r.scan] if n.op == "final")
            new[final] = given(f"final{i}", final.axes, final.kind)
        # What need not change stays the same node: signals are taken from this graph.
        rest = rewrite(graph, lambda node, args: new[node] if node in new else node if args == node.args else b.like(node, args))
        rest = replace(rest, inputs=used_inputs(replace(rest, inputs=(*rest.inputs, *extra)), rest.outputs), inplace={})
        return LtiPlan(tuple(recurrences.values()), tuple(readings), tuple(finals), self._small(list(recurrences.values()), readings),
                       self._signals(finals), rest)

    def _recurrence(self, scan: Node) -> Recurrence:
        if scan.attrs["shifted"]:
            self.refuse("it is the adjoint of a recurrence")
        if not self.untimed(scan.args[0]):
            self.refuse("a transition varies over time")
        state = set(self.graph.state)
        timed = [f for f in self._factors(scan.args[1]) if not self.untimed(f)]
        still = [f for f in self._factors(scan.args[1]) if self.untimed(f)]
        if not timed or any(state & set(f.axes) or f.kind != "real" for f in timed):
            self.refuse("a recurrence's input is no product of a real signal and a weight without time")
        return Recurrence(scan, scan.args[0], self._product(still), self._times(timed), scan.args[2] if len(scan.args) == 3 else None)

    def _reading(self, r: Recurrence, state: Node, user: Node) -> Reading:
        """The contraction that reads a state: Σ_n factor · state, or of its real or imaginary part."""
        node, value, part = user, state, "all"
        factors: list[Node] = []
        while node.op != "sum":
            if len(self.users[node]) != 1 or node.op not in ("mul", "real", "imag", "broadcast") or (part != "all" and node.op != "mul"):
                self.refuse(f"'{node.name or node.op}' reads a state other than in a contraction with what has no time axis")
            if node.op == "mul":
                other = node.args[1] if node.args[0] is value else node.args[0]
                if not self.untimed(other) or (part != "all" and other.kind != "real"):
                    self.refuse("a state is read with a factor over time")
                factors.append(other)
            elif node.op in ("real", "imag"):
                part = node.op
            value, node = node, self.users[node][0]
        gone = set(value.axes) - set(node.axes)
        if gone != set(self.graph.state) or node.kind != "real":
            self.refuse("a read-out is no real contraction over the state axis alone")
        return Reading(node, r, self._product(factors), part, state.op == "prior")

    def _factors(self, node: Node) -> list[Node]:
        if node.op == "broadcast":
            return self._factors(node.args[0])
        if node.op == "mul" and not self.untimed(node):
            return [f for a in node.args for f in self._factors(a)]
        return [node]

    def _times(self, factors: list[Node]) -> Node:
        b = Builder.of(self.graph)
        value = factors[0]
        for f in factors[1:]:
            value = b.pointwise("mul", value, f)
        return value

    def _product(self, factors: list[Node]) -> Node | None:
        return self._times(factors) if factors else None

    def _small(self, recurrences: list[Recurrence], readings: list[Reading]) -> Graph:
        wanted: dict[str, Node | None] = {}
        for i, r in enumerate(recurrences):
            wanted |= {f"transition{i}": r.transition, f"weight{i}": r.weight, f"initial{i}": r.initial}
        wanted |= {f"factor{i}": r.factor for i, r in enumerate(readings)}
        outputs = tuple(Output(name, n, n.axes) for name, n in wanted.items() if n is not None)
        return replace(self.graph, name=f"{self.graph.name}_small", inputs=used_inputs(self.graph, outputs), outputs=outputs, inplace={})

    def _signals(self, finals: list[Recurrence]) -> Graph | None:
        outputs = tuple(Output(f"signal{i}", r.signal, r.signal.axes) for i, r in enumerate(finals))
        if not outputs:
            return None
        return replace(self.graph, name=f"{self.graph.name}_signals", inputs=used_inputs(self.graph, outputs), outputs=outputs, inplace={})


__all__ = ["GIVEN", "LtiPlan", "Reading", "Recurrence", "backward_plan", "kernel_axes", "lti_plan", "start_axes"]
