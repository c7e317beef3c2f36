"""The plan of one kernel: which loop each value lives in, which scans are walked when, what is stored and how it is reduced.

Every backend prints the same plan. A kernel's program (block, CPU work item) owns one index of each *grid* axis, one block of
the *lane* axis and one segment of time. For each time step it runs a body in this order:

    LANE   once per lane:            values with neither time nor state axis        D, dt_bias
    STATE  once per lane and state:  values with a state axis and no time           A
    PRE    each step, per lane:      values before any contraction                  dt = softplus(delta + bias)
    SCAN   each step, lane, state:   the recurrence and what meets it               a = exp2(dt A), h, C h
    POST   each step, per lane:      values after a contraction over the state      y = sum(C h) + D u

Scans of the *main* direction are carried through that body. Scans of the other direction (a backward's recomputed states) run
first, a block of ``history`` steps at a time, from states kept at block boundaries; the body then reads them back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property

from scanc.errors import UnsupportedForm
from scanc.ir import Axes, Builder, Graph, Node, Output, rewrite, topological


class Region(IntEnum):
    LANE = 0
    STATE = 1
    PRE = 2
    SCAN = 3
    POST = 4


@dataclass(frozen=True, eq=False)
class Store:
    """One result in memory.

    ``kind``    value: at every step; final: a scan's last carry; sum: accumulated over time
    ``value``   the node whose value is stored or accumulated (for final: the scan)
    ``lane``    summed over the lanes of a block; the block's slot is then a leading axis of the buffer
    ``grid``    grid axes summed over: leading axes of the buffer, added up when the kernel has finished
    ``axes``    the axes that remain, in the tensor's order
    """

    output: Output
    kind: str
    value: Node
    lane: bool
    grid: Axes
    axes: Axes

    @property
    def name(self) -> str:
        return self.output.name

    @property
    def partial(self) -> bool:
        return self.lane or bool(self.grid)


@dataclass(frozen=True, eq=False)
class Plan:
    """See the module's docstring. ``reverse`` is the main direction."""

    graph: Graph
    lane: str
    grid: Axes
    state: str
    reverse: bool
    main: tuple[Node, ...]
    recomputed: tuple[Node, ...]
    stores: tuple[Store, ...]
    region: dict[Node, Region]

    @property
    def time(self) -> str:
        return self.graph.time

    @property
    def scans(self) -> tuple[Node, ...]:
        return (*self.recomputed, *self.main)

    @property
    def lane_group(self) -> str:
        """The group axis that divides the lane axis, or ""."""
        return next((g for g, parent in self.graph.groups.items() if parent == self.lane), "")

    def grid_group(self, axis: str) -> str:
        """The group axis that divides grid axis ``axis``, or ""."""
        return next((g for g, parent in self.graph.groups.items() if parent == axis), "")

    def has(self, node: Node, axis: str) -> bool:
        return bool(axis) and axis in node.axes

    def timed(self, node: Node) -> bool:
        """Whether a value changes from step to step (in a step graph everything is of the one step)."""
        return self.time == "" or self.time in node.axes

    @cached_property
    def inputs(self) -> tuple[Node, ...]:
        used = set(self.graph.nodes())
        return tuple(n for n in self.graph.inputs if n in used)

    @cached_property
    def recompute_body(self) -> tuple[Node, ...]:
        """Nodes of the first walk: whatever the recomputed scans need."""
        return tuple(topological(self.recomputed))

    @cached_property
    def main_body(self) -> tuple[Node, ...]:
        """Nodes of the main walk; recomputed scans are leaves here."""
        roots = [*self.main, *(s.value for s in self.stores if not (s.kind == "final" and s.value in self.recomputed))]
        leaves = set(self.recomputed)
        seen: dict[Node, None] = {}
        for node in _topological_until(roots, leaves):
            seen[node] = None
        return tuple(seen)


def _topological_until(roots: list[Node], leaves: set[Node]) -> list[Node]:
    done: dict[Node, None] = {}

    def visit(node: Node) -> None:
        stack = [(node, iter(() if node in leaves else node.args))]
        while stack:
            top, rest = stack[-1]
            following = next((a for a in rest if a not in done), None)
            if following is None:
                done[top] = None
                stack.pop()
            else:
                stack.append((following, iter(() if following in leaves else following.args)))

    for root in roots:
        if root not in done:
            visit(root)
    return list(done)


def lane_axes(graph: Graph) -> Axes:
    """The axes along which the recurrence is independent, grouping axes left out where the axis they divide is there."""
    state = graph.state[0] if graph.state else ""
    scans = [n for n in graph.nodes() if n.op == "scan"]
    present = {a for n in (scans or [o.node for o in graph.outputs]) for a in n.axes}
    present |= {a for o in graph.outputs for n in ([o.node.args[0]] if o.node.op == "sum" else [o.node]) for a in n.axes}
    lanes = tuple(a for a in graph.order if a in present and a not in (graph.time, state))
    return tuple(a for a in lanes if graph.groups.get(a) not in lanes)


def innermost_lane(graph: Graph) -> str:
    """The lane axis that blocks are cut from: the innermost one, so that neighbours in memory are neighbours in a block.

    The first input with the most lane axes decides, not the order in which a signature happens to name its axes.
    """
    lanes = lane_axes(graph)
    fullest = max(([a for a in n.axes if a in lanes] for n in graph.inputs), key=len, default=[])
    return (fullest or lanes or ("",))[-1]


def make_plan(graph: Graph, *, at_once: bool = False) -> Plan:
    """Plans the kernel part of a partition. Raises UnsupportedForm with the value that does not fit one walk.

    ``at_once``  whether the kernel holds a step's whole state axis (forms/partition.py)
    """
    graph = _state_sums_first(graph)
    used = {a for n in graph.nodes() for a in n.axes} | {a for o in graph.outputs for a in o.axes}
    graph = replace(graph, groups={g: parent for g, parent in graph.groups.items() if g in used})
    scans = [n for n in graph.nodes() if n.op == "scan"]
    state = graph.state[0] if graph.state and any(graph.state[0] in n.axes for n in graph.nodes()) else ""
    lanes, lane = lane_axes(graph), innermost_lane(graph)
    grid = tuple(a for a in lanes if a != lane)
    main, recomputed, reverse = _directions(graph, scans)
    if any(s.attrs["shifted"] for s in recomputed):
        return make_plan(_unshifted(graph, set(recomputed)))
    region = _regions(graph, state, at_once)
    stores = tuple(_store(graph, o, lane) for o in graph.outputs)
    _check_axes(graph, {lane, state, graph.time, *grid})
    return Plan(graph, lane, grid, state, reverse, main, recomputed, stores, region)


def _state_sums_first(graph: Graph) -> Graph:
    """Splits a store's sum into the state's (done at each step) and the rest:  sum(x -> [d])  to  sum(sum(x -> [b d l]) -> [d])."""
    state = set(graph.state)
    stored = {o.node for o in graph.outputs if o.node.op == "sum"}
    b = Builder.of(graph)

    def rule(node: Node, args: tuple[Node, ...]) -> Node:
        if node in stored and state & (set(node.args[0].axes) - set(node.axes)):
            inner = b.sum_to(args[0], tuple(a for a in args[0].axes if a not in state))
            return b.sum_to(inner, node.axes)
        return b.like(node, args)

    return rewrite(graph, rule)


def _directions(graph: Graph, scans: list[Node]) -> tuple[tuple[Node, ...], tuple[Node, ...], bool]:
    """Main scans, recomputed scans, and whether the main walk goes backwards in time."""
    forward = [s for s in scans if not s.attrs["reverse"]]
    backward = [s for s in scans if s.attrs["reverse"]]
    if not forward or not backward:
        return tuple(scans), (), bool(backward)
    if not set(topological(forward)) & set(backward):
        first, last, reverse = forward, backward, True
    elif not set(topological(backward)) & set(forward):
        first, last, reverse = backward, forward, False
    else:
        raise UnsupportedForm(
            op=graph.name,
            form="recurrent",
            forms="none but the reference",
            reason="scans of both directions need each other, so neither can be walked first",
        )
    # Of two independent directions the one with plain (unshifted) scans is recomputed: that is a forward's, its adjoint is the main walk.
    if not set(topological(last)) & set(first) and all(s.attrs["shifted"] for s in first):
        first, last, reverse = last, first, not reverse
    return tuple(last), tuple(first), reverse


def _check_axes(graph: Graph, walked: set[str]) -> None:
    """Every value's axes must be walked by some loop, by themselves or as groups of such."""
    for node in graph.nodes():
        for axis in node.axes:
            if axis not in walked and graph.groups.get(axis) not in walked:
                raise UnsupportedForm(
                    op=graph.name,
                    form="recurrent",
                    forms="none but the reference",
                    reason=f"axis '{axis}' of '{node.name or node.op}' is no axis of the recurrence",
                )


def _unshifted(graph: Graph, scans: set[Node]) -> Graph:
    """Shifted scans as plain ones, whose states can be kept and recomputed: those of an adjoint, met in a bidirectional op's backward.

    value = scan[shifted](a, x)  ->  h = scan(a, a x),  value = prior(h) + x
    """
    b = Builder.of(graph)
    made: dict[Node, Node] = {}  # the new value of a scan -> the plain scan whose carries are the old one's

    def rule(node: Node, args: tuple[Node, ...]) -> Node:
        if node in scans and node.attrs["shifted"]:
            a, x = args[:2]
            plain = b.scan(a, b.pointwise("mul", a, x), *args[2:], axis=node.attrs["axis"], reverse=node.attrs["reverse"])
            plain = replace(plain, name=f"{node.name}_next" if node.name else None)
            value = replace(b.pointwise("add", b.prior(plain), x), name=node.name)
            made[value] = plain
            return value
        if node.op in ("prior", "final") and args[0] in made:
            return b.like(node, (made[args[0]],))
        return b.like(node, args)

    return rewrite(graph, rule)


def _regions(graph: Graph, state: str, at_once: bool) -> dict[Node, Region]:
    region: dict[Node, Region] = {}
    after: set[Node] = set()
    for node in graph.nodes():
        timed = graph.time == "" or graph.time in node.axes
        contracted = node.op == "sum" and state in node.args[0].axes and state not in node.axes
        if contracted or any(a in after for a in node.args):
            after.add(node)
        if state and state in node.axes:
            if node in after and timed and not at_once:
                raise UnsupportedForm(
                    op=graph.name,
                    form="recurrent",
                    forms="none but the reference",
                    reason=f"'{node.name or node.op}' over the state axis needs a contraction over that axis at the same step",
                )
            region[node] = Region.SCAN if timed else Region.STATE
        elif timed:
            region[node] = Region.POST if node in after else Region.PRE
        else:
            region[node] = Region.LANE
    return region


def _store(graph: Graph, output: Output, lane: str) -> Store:
    node = output.node
    if node.op == "final":
        return Store(output, "final", node.args[0], False, (), output.axes)
    if node.op == "sum" and not (graph.time in node.axes and set(node.args[0].axes) - set(node.axes) <= set(graph.state)):
        value = node.args[0]
        over_time = graph.time in value.axes and graph.time not in node.axes
        gone = tuple(a for a in value.axes if a not in node.axes and a != graph.time and a not in graph.state)
        if over_time or gone:
            return Store(output, "sum" if over_time else "value", value, lane in gone, tuple(a for a in gone if a != lane), output.axes)
    return Store(output, "value", node, False, (), output.axes)


def ceil_power(x: int) -> int:
    """The smallest power of two that is at least x."""
    return 1 << max(0, x - 1).bit_length()
