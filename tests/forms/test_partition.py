"""What goes into a kernel, what before it and what after it; together they are the graph."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from jaxtyping import Float
from torch import Tensor

import scanc.dsl as sc
from scanc.compiler import prepare
from scanc.errors import UnsupportedForm
from scanc.forms.partition import Partition, has_scans, kernels, partition, used_inputs
from scanc.forms.plan import make_plan
from scanc.ir import Graph, Output
from scanc.op import REGISTRY
from scanc.ops import selective_scan
from scanc.ops.causal_conv1d import _update_graph
from scanc.passes.adjoint import adjoint
from scanc.reference import evaluate
from scanc.verify import verify
from tests.checks import relative
from tests.graphs import graphs, random_inputs
from tests.user_ops import INPUTS, both_ways, looking_back, means, normalised_attention, normed, repeated


def run(parts: Partition, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The three parts evaluated one after another in float64, earlier layers first."""
    values = dict(inputs)
    if parts.before is not None:
        values |= run(partition(parts.before), values) if has_scans(parts.before) else evaluate(parts.before, values)
    made = evaluate(parts.kernel, values)
    if parts.after is not None:
        made |= evaluate(parts.after, values | made)
    return made


def same(graph: Graph, inputs: dict[str, Tensor]) -> Partition:
    ready = prepare(graph)
    parts = partition(ready)
    found, wanted = run(parts, inputs), evaluate(graph, inputs)
    for o in graph.outputs:
        assert relative(found[o.name], wanted[o.name]) < 1e-9, o.name
    return parts


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs(max_steps=6))
def test_the_parts_of_any_graph_make_the_whole(graph: Graph) -> None:
    inputs = random_inputs(graph)
    if not all(x.isfinite().all() for x in evaluate(graph, inputs).values()):
        return
    try:
        parts = partition(prepare(graph))
    except UnsupportedForm:
        return
    found, wanted = run(parts, inputs), evaluate(graph, inputs)
    for o in graph.outputs:
        assert relative(found[o.name], wanted[o.name]) < 1e-8


def test_a_plain_op_is_one_kernel() -> None:
    parts = partition(prepare(selective_scan.graph()))
    assert parts.before is None and parts.after is None


def test_sums_over_lanes_and_time_leave_the_kernel_as_stores() -> None:
    """dB and dC are summed over channels, dA over batch and time; the factor that dA takes afterwards is torch's."""
    parts = partition(prepare(adjoint(selective_scan.graph(), ("u", "A", "B"), ("y",))))
    assert parts.before is None
    summed = {o.name: set(o.node.args[0].axes) - set(o.node.axes) for o in parts.kernel.outputs if o.node.op == "sum"}
    assert summed["d_A"] >= {"b", "l"} or any({"b", "l"} <= gone for gone in summed.values())
    assert "d" in summed["d_B"]


def test_a_norm_before_the_recurrence_is_torchs() -> None:
    parts = same(normed.graph(), INPUTS[normed])
    assert parts.before is not None and not has_scans(parts.before)
    assert {o.node.axes for o in parts.before.outputs} == {("b", "l")}  # the sum of squares, not the normed sequence
    assert parts.after is not None and not has_scans(parts.after)


@pytest.mark.parametrize("op", [normed, normalised_attention, looking_back], ids=lambda op: op.name)
def test_backwards_in_layers(op: sc.Value) -> None:
    """A norm after a recurrence: its gradient needs a sum over channels of the recurrence's result before the adjoint can start."""
    graph = adjoint(op.graph(), tuple(INPUTS[op]))
    inputs = dict(INPUTS[op])
    for node in graph.inputs:
        if node.name not in inputs:
            shape = [{a: s for n in op.graph().inputs for a, s in zip(n.axes, INPUTS[op][n.name].shape, strict=True)}[a] for a in node.axes]
            inputs[node.name] = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    parts = same(graph, inputs)
    assert parts.before is not None and has_scans(parts.before)
    ready = kernels(prepare(graph))
    assert len(ready) >= 2
    for kernel in ready:
        make_plan(kernel)
    for layer in (parts.before, parts.kernel):
        assert not any({"b", "d", "l", "n"} <= set(o.node.axes) for o in layer.outputs)  # no state crosses in memory


def test_both_directions_are_one_kernel() -> None:
    assert len(kernels(prepare(adjoint(both_ways.graph(), tuple(INPUTS[both_ways]))))) == 1


def test_parts_know_the_sizes_they_ask_for() -> None:
    parts = same(means.graph(), INPUTS[means])
    assert parts.after is not None
    assert {"b", "d", "l"} <= {a for n in parts.after.inputs for a in n.axes}
    graph = means.graph()
    size = Output("s", next(n for n in graph.nodes() if n.op == "size" and n.attrs["axis"] == "l"), ())
    assert [n.name for n in used_inputs(graph, [size])] == ["a"]


def test_parts_know_the_dtypes_of_results() -> None:
    """A state's oldest step is moved out and never read, but the step that takes its place is stored as it is."""
    graph = _update_graph(2, 4, False, False)
    assert {o.like for o in partition(prepare(graph)).kernel.outputs} == {"x", "c0", "c1", "c2", "c3"}
    verify(partition(prepare(graph)).kernel, "canonical")


def test_repeated_results_are_spread_out_afterwards() -> None:
    parts = same(repeated.graph(), INPUTS[repeated])
    assert all("d" not in o.node.axes for o in parts.kernel.outputs) and parts.after is not None


def test_a_state_that_would_have_to_be_kept_is_refused() -> None:
    @sc.op
    def kept(x: Float[Tensor, "b d l"], B: Float[Tensor, "b n l"]) -> Float[Tensor, "b d l"]:
        h = sc.scan(0.5, x * B, axis="l")
        return sc.sum(sc.scan(0.5, sc.shift(h, "l", 3), axis="l"), "n")

    del REGISTRY["kept"]
    with pytest.raises(UnsupportedForm, match="kept.*shift over.*every step"):
        partition(prepare(kept.graph()))
