"""Segment summaries: the graphs that split time, evaluated by the oracle, give back the whole recurrence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scanc.compiler import prepare
from scanc.forms.partition import partition
from scanc.forms.plan import Plan, make_plan
from scanc.forms.segments import SEGMENT, combine_graph, scans_are_independent, summary_graphs
from scanc.ir import Builder, Graph, Output
from scanc.op import Op
from scanc.ops import linear_recurrence
from scanc.passes.adjoint import adjoint
from scanc.reference import evaluate
from tests.checks import relative
from tests.user_ops import INPUTS, both_ways, diagonal, min_gru, stacked


def plan_of(op: Op, backward: bool) -> tuple[Graph, Plan]:
    graph = op.graph()
    if backward:
        graph = adjoint(graph, tuple(str(n.name) for n in graph.inputs))
    return graph, make_plan(partition(prepare(graph)).kernel)


def cut(graph: Graph, inputs: dict[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
    """Every input over time from step ``start`` to ``end``."""
    axes = {str(n.name): n.axes for n in graph.inputs}
    return {k: v.narrow(axes[k].index("l"), start, end - start) if "l" in axes[k] else v for k, v in inputs.items()}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("op", [min_gru, diagonal, both_ways], ids=lambda op: op.name)
def test_entries_are_the_carries_of_the_whole_walk(op: Op, backward: bool) -> None:
    graph, plan = plan_of(op, backward)
    inputs = dict(INPUTS[op])
    for node in graph.inputs:
        if node.name not in inputs:
            sizes = {a: s for n in op.graph().inputs for a, s in zip(n.axes, INPUTS[op][str(n.name)].shape, strict=True)}
            kind = torch.complex64 if node.kind == "complex" else torch.float32
            inputs[str(node.name)] = torch.randn([sizes[a] for a in node.axes], generator=torch.Generator().manual_seed(3), dtype=kind)
    edges = [0, 25, 50, 70]
    for summary in summary_graphs(plan):
        assert {s.attrs["reverse"] for s in summary.scans} in ({True}, {False})
        made = [evaluate(summary.graph, cut(graph, inputs, a, b)) for a, b in zip(edges, edges[1:], strict=False)]
        combine = combine_graph(summary)
        starts = evaluate(combine.initial, inputs) if combine.initial is not None else {}
        parts = {k: torch.stack([m[k] for m in made]) for k in made[0]}
        entries = evaluate(combine.graph, {k: v for k, v in inputs.items() if combine.graph.has_input(k)} | parts | starts)
        assert combine.graph.time == SEGMENT
        for scan in summary.scans:
            # The carry with which the whole walk arrives at a segment, one step at a time.
            prior = Builder.of(plan.graph).prior(scan)
            axes = ("l", *(a for a in prior.axes if a != "l"))
            whole = Graph(
                "whole", plan.graph.inputs, (Output("c", prior, axes),), "l", plan.graph.order, plan.graph.groups, plan.graph.state
            )
            carries = evaluate(whole, inputs)["c"]
            at = [e - 1 for e in edges[1:]] if scan.attrs["reverse"] else edges[:-1]
            assert relative(entries[f"entry{plan.scans.index(scan)}"], carries[at]) < 1e-9


def test_only_independent_scans_are_summarised() -> None:
    assert scans_are_independent(plan_of(linear_recurrence, True)[1].scans)
    assert not scans_are_independent(plan_of(stacked, False)[1].scans)
