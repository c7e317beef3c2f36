"""One mechanism for splitting time: segment summaries.

A segment's summary is (P, E): the product of its transitions, and the carry it ends with when it starts from zero. The carries
at segments' starts then follow a recurrence over segments, c_{s+1} = P_s c_s + E_s, which is itself a scan:

    before:  h = scan(a[b d l n], x[b d l n], h0)                    time whole
    after:   P = final(scan(a, 0, initial=1)), E = final(scan(a, x))     every segment by itself, in parallel
             entry = prior(scan(P, E, h0)) over segments                 short
             h = scan(a, x, entry)                                       every segment by itself, in parallel

Where a is 2^(x m), x over time but not over the state and m without time (Mamba's Δ and A), P is 2^(m Σx): a sum for each lane in place
of a product for each of its states, and the recurrence over segments makes P of it.

Both new programs are ordinary graphs, compiled as any other. Forward and reverse scans are summarised by separate kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scanc.forms.partition import used_inputs
from scanc.forms.plan import Plan
from scanc.ir import Builder, Graph, Node, Output, Type, is_pointwise, topological

SEGMENT = "segment"  # the name of the axis of segments in combine graphs


@dataclass(frozen=True)
class Summary:
    """The summary kernel of the scans of one direction."""

    graph: Graph
    plan: Plan
    scans: tuple[Node, ...]


@dataclass(frozen=True)
class Combine:
    """The recurrence over segments; ``initial`` computes the initial states that are not plain inputs' values."""

    graph: Graph
    initial: Graph | None


def scans_are_independent(scans: Sequence[Node]) -> bool:
    """Whether no scan's arguments hold another scan."""
    return not any(n.op == "scan" for s in scans for a in s.args for n in topological([a]))


def summary_graphs(plan: Plan) -> list[Summary]:
    """One graph for each direction the plan has."""
    return [_summary(plan, scans) for scans in (plan.recomputed, plan.main) if scans]


def _summary(plan: Plan, scans: tuple[Node, ...]) -> Summary:
    b = Builder.of(plan.graph)
    outputs = []
    for scan in scans:
        i = plan.scans.index(scan)
        attrs = dict(scan.attrs)
        factors = exponent(plan, scan)
        if factors is not None:
            name, product = "S", b.scan(b.const(1.0), factors[0], **attrs)
        else:
            name, product = "P", b.scan(scan.args[0], b.const(0.0), b.const(1.0), **attrs)
        end = b.scan(scan.args[0], scan.args[1], **attrs)
        product, end = replace(product, name=f"{'total' if factors else 'product'}{i}"), replace(end, name=f"end{i}")
        for result, node in ((f"{name}{i}", b.final(product)), (f"E{i}", b.final(end))):
            outputs.append(Output(result, node, node.axes))
    graph = replace(
        plan.graph,
        name=f"{plan.graph.name}_summary",
        inputs=used_inputs(plan.graph, outputs),
        outputs=tuple(outputs),
        inplace={},
    )
    return Summary(graph, plan, scans)


def exponent(plan: Plan, scan: Node) -> tuple[Node, Node] | None:
    """(x, m) of a transition 2^(x m), where x is over time and no state, and m made of inputs without time."""
    a = scan.args[0]
    if a.op != "exp2" or a.kind != "real" or a.args[0].op != "mul" or not plan.state:
        return None
    for x, m in (a.args[0].args, a.args[0].args[::-1]):
        plain = all(n.op in ("input", "const") or is_pointwise(n) for n in topological([m]))
        if plan.time in x.axes and plan.state not in x.axes and plan.time not in m.axes and plain:
            return x, m
    return None


def combine_graph(summary: Summary) -> Combine:
    """The graph of entry_i[segment, ...] from P_i (or S_i and what its factor is made of), E_i and the initial states."""
    plan = summary.plan
    order = (SEGMENT, *(a for a in plan.graph.order if a != plan.time))
    b = Builder(order, plan.graph.groups, SEGMENT)
    inputs: list[Node] = []
    outputs: list[Output] = []
    starts: list[Output] = []
    for scan in summary.scans:
        i = plan.scans.index(scan)
        state_axes = tuple(a for a in scan.axes if a != plan.time)
        dtype = {"real": "float32", "complex": "complex64"}
        by_name = {o.name: o.node for o in summary.graph.outputs}
        factors = exponent(plan, scan)
        P, E = (b.input(f"{w}{i}", Type((SEGMENT, *by_name[f"{w}{i}"].axes), dtype[by_name[f"{w}{i}"].kind]))
                for w in ("S" if factors else "P", "E"))  # fmt: skip
        inputs += [P, E]
        if factors is not None:
            inputs += [n for n in topological([factors[1]]) if n.op == "input" and n not in inputs]
            P = b.pointwise("exp2", b.pointwise("mul", P, factors[1]))
        start = None
        if len(scan.args) == 3:
            node = scan.args[2]
            start = b.input(f"start{i}", Type(node.axes, dtype[node.kind]))
            inputs.append(start)
            starts.append(Output(f"start{i}", node, node.axes))
        carry = b.scan(P, E, start, axis=SEGMENT, reverse=scan.attrs["reverse"])
        outputs.append(Output(f"entry{i}", b.prior(replace(carry, name=f"carry{i}")), (SEGMENT, *state_axes)))
    graph = Graph(f"{plan.graph.name}_combine", tuple(inputs), tuple(outputs), SEGMENT, order, plan.graph.groups, ())
    initial = None
    if starts:
        initial = replace(
            plan.graph,
            name=f"{plan.graph.name}_start",
            inputs=used_inputs(plan.graph, starts),
            outputs=tuple(starts),
            inplace={},
        )
    return Combine(graph, initial)
