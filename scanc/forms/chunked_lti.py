"""Recurrences whose transition has no time axis in the form chunked: complex or real, each state its own power (S4D).

    h_t = a h_{t-1} + w u_t,   y_t = Re Σ_n C h_t        a, w, C without time; a over channels and n, u without n

In a chunk of Q steps, with H the state before it, what a step sees of its chunk and of H are fixed matrices of a channel,

    y = U T + Re H P             T_jt = Re Σ_n C w a^{t-j} for j ≤ t, else 0          P_nt = C a^{t+1}
    H' = a^Q H + U W             W_jn = w a^{Q-1-j}

so all chunks of all batches are rows of the same two products, and what is left of the recurrence goes over chunks. A complex state is a
pair of real ones: Re (H P) = Re H Re P - Im H Im P. Recurrences and contractions are recognised as for convolutions (forms/lti.py): the two
forms are of the same graphs. Source: Gu et al., Efficiently Modeling Long Sequences with Structured State Spaces (2022), §2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from scanc.errors import UnsupportedForm
from scanc.forms.lti import LtiPlan, derived, is_made_of, lti_plan
from scanc.forms.partition import used_inputs
from scanc.ir import Builder, Graph, Node, Output, Type, rewrite


@dataclass(frozen=True)
class LtiChunkPlan:
    """``signals`` computes what each recurrence takes in, signal<i>; ``graph`` all else, given read<i>, what a contraction gives, and
    final<i>, last states."""

    lti: LtiPlan
    signals: Graph
    graph: Graph


def lti_chunk_plan(graph: Graph) -> LtiChunkPlan:
    """The plan of a prepared graph. Raises UnsupportedForm with what does not fit."""
    try:
        lti = lti_plan(graph)
    except UnsupportedForm as error:
        raise UnsupportedForm(op=graph.name, form="chunked", forms="recurrent", reason=str(error.fields["reason"])) from error
    b, extra = Builder.of(graph), {}

    def read(i: int, node: Node) -> Node:
        extra[i] = b.input(f"read{i}", Type(node.axes, "float32"))
        return extra[i]

    kernels = {n: i for i in range(len(lti.readings)) for n in lti.graph.inputs if n.name == f"kernel{i}"}
    starts = {n for i in range(len(lti.readings)) for n in lti.graph.inputs if n.name == f"start{i}"}

    def new(node: Node, args: tuple[Node, ...]) -> Node:
        if node.op == "conv" and node.args[1] in kernels:
            return read(kernels[node.args[1]], node)
        if node.op == "add" and node.args[1] in starts:
            return read(kernels[node.args[0].args[1]], node)   # the state it starts from is in it
        return node if args == node.args else b.like(node, args)

    rest = rewrite(lti.graph, new)
    rest = replace(rest, inputs=used_inputs(replace(rest, inputs=(*rest.inputs, *extra.values())), rest.outputs), inplace={})
    outputs = tuple(Output(f"signal{i}", r.signal, r.signal.axes) for i, r in enumerate(lti.recurrences))
    signals = replace(graph, name=f"{graph.name}_signals", inputs=used_inputs(graph, outputs), outputs=outputs, inplace={})
    return LtiChunkPlan(lti, signals, rest)


def lti_chunk_backward(graph: Graph) -> tuple[LtiChunkPlan, Graph]:
    """The plan of the forward that a backward was derived from, and the backward of its ``graph``, with gradients d_read<i>, d_final<i>
    where these are made of something that has one. Raises UnsupportedForm with what does not fit."""
    return derived(graph, "chunked", lti_chunk_plan, lambda plan, wrt: wrt | _felt(plan, wrt), lambda _: (), ("read", "final"))


def _felt(plan: LtiChunkPlan, wrt: set[str]) -> set[str]:
    """Those of read<i> and final<i> that change with an input of ``wrt``."""
    lti = plan.lti
    of = {f"read{i}": (r.of, r.factor) for i, r in enumerate(lti.readings)} | {f"final{i}": (r, None) for i, r in enumerate(lti.finals)}
    return {name for name, (r, factor) in of.items() if is_made_of(wrt, r.transition, r.weight, r.signal, r.initial, factor)}


def describe_lti_chunks(plan: LtiChunkPlan, chunk: int) -> str:
    """The plan as ``scanc show --stage loops`` prints it."""
    def word(node: Node | None) -> str:
        return "1" if node is None else node.name or node.op

    lines = [f"chunks of {chunk} steps, those of all rows at once"]
    for r in plan.lti.recurrences:
        back = ", walked backwards" if r.reverse else ""
        lines.append(f"{r.scan.name or 'scan'}: {r.scan.kind}, transition {word(r.transition)}[{' '.join(r.transition.axes)}]{back}; "
                     f"input {word(r.weight)} · signal {word(r.signal)}[{' '.join(r.signal.axes)}]; one step a chunk")
    for i, reading in enumerate(plan.lti.readings):
        before = " before the step" if reading.before else ""
        lines.append(f"read{i}: {word(reading.factor)} with {reading.of.scan.name or 'scan'}{before}; signal · Toeplitz + states · powers")
    return "\n".join([*lines, *(f"final{i}: the last of {r.scan.name or 'scan'}" for i, r in enumerate(plan.lti.finals))])


__all__ = ["LtiChunkPlan", "describe_lti_chunks", "lti_chunk_backward", "lti_chunk_plan"]
