"""The decode step of a graph: one position of time, the state in, the state out.

    h = scan(a: [b d l n], b: [b d l n], initial_state: [b d n])      ->   h = a: [b d n] * initial_state + b: [b d n]
    y = sum(C * h, n): [b d l];  last_state = final(h)                ->   y: [b d];  last_state = h, in initial_state's place

The time axis leaves every type; ``prior(h)`` is the state that came in, and ``last`` of a value over time the value at this step.
What looks along time has no step of its own: a reverse scan, ``shift``, ``conv``, ``index`` and sums over time are refused by name.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import NoReturn

from scanc.errors import UnsupportedForm
from scanc.ir import Axes, Builder, Graph, Node, Output, Type, rewrite, topological


def step(graph: Graph) -> Graph:
    """The graph of one time step, ``<name>_step``: the same inputs and outputs without the time axis.

    ``inplace`` of the result maps each scan's final state to the initial state that it replaces. Every scan must start from an input
    of its own and its final state must be a result, or decoding could not go on. Raises UnsupportedForm with the reason otherwise.
    """
    if not graph.time:
        _refuse(graph, "it has no time axis")
    whole = rewrite(graph, lambda node, args: _as_last(node, args, graph.time))
    walk = _Step(whole)
    inplace = walk.inplace()
    # A state that is overwritten is stored in its own dtype, whatever that is.
    outputs = tuple(Output(o.name, walk.new[o.node], walk.timeless(o.axes), inplace.get(o.name, o.like)) for o in whole.outputs)
    return replace(graph, name=f"{graph.name}_step", inputs=tuple(walk.new[n] for n in whole.inputs), outputs=outputs, time="",
                   order=walk.timeless(graph.order), groups=walk.groups, inplace=inplace)


def _as_last(node: Node, args: tuple[Node, ...], time: str) -> Node:
    """Marks the language's ``last``: sum(where(index == size - 1, x, 0), time)  ->  sum[last](x)."""
    if node.op == "sum" and time in args[0].axes and time not in node.axes and args[0].op == "where":
        condition, x, other = args[0].args
        if _is_last_position(condition, time) and other.op == "const" and other.attrs["value"] == 0:
            return replace(node, args=(x,), attrs=MappingProxyType({"last": True}))
    return node if args == node.args else replace(node, args=args)


def _is_last_position(node: Node, time: str) -> bool:
    """index(time) == size(time) - 1"""
    if node.op != "eq" or node.args[0].op != "index" or node.args[1].op != "sub":
        return False
    size, one = node.args[1].args
    return (node.args[0].attrs["axis"] == time and size.op == "size" and size.attrs["axis"] == time
            and one.op == "const" and one.attrs["value"] == 1)


class _Step:
    """Rebuilds a graph node by node without its time axis; ``new`` maps each node to its value at this step."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.groups = {g: parent for g, parent in graph.groups.items() if graph.time not in (g, parent)}
        self.builder = Builder(self.timeless(graph.order), self.groups, "")
        self.new: dict[Node, Node] = {}
        for node in topological([*graph.inputs, *(o.node for o in graph.outputs)]):
            self.builder.where = node.where
            self.new[node] = self._at_step(node, tuple(self.new[a] for a in node.args))

    def timeless(self, axes: Axes) -> Axes:
        return tuple(a for a in axes if a != self.graph.time)

    def _at_step(self, node: Node, args: tuple[Node, ...]) -> Node:
        b, time = self.builder, self.graph.time
        along = time in (node.attrs.get("axis"), node.attrs.get("tap"))
        match node.op:
            case "input":
                return replace(node, type=Type(self.timeless(node.axes), node.type.dtype))
            case "scan" if along:
                return self._scan(node, args)
            case "prior" if node.args[0].attrs["axis"] == time:
                return b.broadcast(self.new[node.args[0].args[2]], self.timeless(node.axes))
            case "final" if node.args[0].attrs["axis"] == time:
                return args[0]
            case "shift" | "conv" | "conv_kernel_grad" | "index" | "size" if along:
                self._refuse(node, f"needs more than one position of '{time}' ({node.op}). Leave out the input or option that brings it in")
            case "sum" if time in node.args[0].axes and time not in node.axes and "last" not in node.attrs:
                self._refuse(node, f"sums over '{time}', and a step sees one position. Sum the step's results outside")
            case "sum":
                return b.sum_to(args[0], self.timeless(node.axes))
            case "broadcast":
                return b.broadcast(args[0], self.timeless(node.axes))
        return b.like(node, args)

    def _scan(self, node: Node, args: tuple[Node, ...]) -> Node:
        """a * state + b"""
        b = self.builder
        if node.attrs["reverse"]:
            self._refuse(node, "runs in reverse: its first step is the last position, which a decode step has not seen")
        if node.attrs["shifted"]:
            self._refuse(node, "is the adjoint of a recurrence. Take the step of the forward graph")
        if len(args) < 3:
            self._refuse(node, "starts from zero: give the op an argument initial_state and write sc.scan(…, initial=initial_state)")
        if args[2].op != "input":
            self._refuse(node, "starts from a computed value, which the next step would compute again. Pass the input itself as initial")
        value = b.pointwise("add", b.pointwise("mul", args[0], b.broadcast(args[2], self.timeless(node.axes))), args[1])
        return replace(value, name=node.name)

    def inplace(self) -> dict[str, str]:
        """{output that is a scan's final state: the input that held the state before}."""
        pairs: dict[str, str] = {}
        seen: set[Node] = set()
        for scan in (n for n in self.graph.nodes() if n.op == "scan" and n.attrs["axis"] == self.graph.time):
            state = self.new[scan.args[2]]
            finals = [o for o in self.graph.outputs if self.graph.time not in o.axes and self.new[o.node] is self.new[scan]]
            if not finals:
                last = f"sc.last({scan.name or 'h'}, '{self.graph.time}')"
                self._refuse(scan, f"leaves a state that is not among the results: return {last} too")
            if state in seen:
                self._refuse(scan, f"starts from '{state.name}' as another recurrence does. Give each a state of its own")
            seen.add(state)
            if finals[0].axes == state.axes and finals[0].node.kind == state.kind:
                pairs[finals[0].name] = str(state.name)
        return pairs

    def _refuse(self, node: Node, reason: str) -> NoReturn:
        _refuse(self.graph, f"'{node.name or node.op}' {reason}")


def _refuse(graph: Graph, reason: str) -> NoReturn:
    raise UnsupportedForm(reason, op=graph.name, form="step", forms="those that take the whole sequence")
