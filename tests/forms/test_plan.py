"""Plans: where each value lives, which scans are walked when, what is stored and how."""

from __future__ import annotations

import pytest

from scanc.compiler import prepare
from scanc.forms.partition import partition
from scanc.forms.plan import Plan, Region, innermost_lane, make_plan
from scanc.op import Op
from scanc.ops import linear_recurrence, selective_scan, ssd
from scanc.passes.adjoint import adjoint
from scanc.passes.step import step
from tests.user_ops import INPUTS, both_ways, gated_attention, min_gru, rotating, whole_state


def plan_of(op: Op, *, backward: bool = False, **variant: object) -> Plan:
    graph = op.graph(**variant)  # type: ignore[arg-type]
    if backward:
        wrt = tuple(str(n.name) for n in graph.inputs if n.kind in ("real", "complex"))
        graph = adjoint(graph, wrt)
    return make_plan(partition(prepare(graph)).kernel)


def regions(plan: Plan) -> dict[str, Region]:
    return {n.name: r for n, r in plan.region.items() if n.name is not None}


def test_values_live_where_their_axes_say() -> None:
    plan = plan_of(selective_scan, delta_softplus=True, without=("seq_idx", "D", "z"))
    where = regions(plan)
    assert where["delta_bias"] == Region.LANE and where["A"] == Region.STATE and where["dt"] == Region.PRE
    assert where["a"] == where["h"] == where["B"] == Region.SCAN
    assert regions(plan_of(selective_scan, without=("seq_idx",)))["y"] == Region.POST


@pytest.mark.parametrize(
    ("op", "lane", "grid", "state"),
    [
        (selective_scan, "d", ("b",), "n"),
        (linear_recurrence, "d", ("b",), ""),
        (ssd, "p", ("b", "h"), "n"),
        (gated_attention, "v", ("b", "h"), "k"),
        (rotating, "d", ("b",), ""),
    ],
    ids=lambda x: getattr(x, "name", str(x)),
)
def test_lanes_grids_and_states(op: Op, lane: str, grid: tuple[str, ...], state: str) -> None:
    plan = plan_of(op)
    assert (plan.lane, plan.grid, plan.state) == (lane, grid, state)
    assert innermost_lane(op.graph()) == lane


def test_a_state_that_is_returned_whole_is_no_state_axis() -> None:
    plan = plan_of(whole_state)
    assert plan.state == "" and set(plan.grid) | {plan.lane} == {"b", "d", "n"}


def test_a_backward_walks_the_other_way_and_recomputes() -> None:
    for reverse in (False, True):
        plan = plan_of(linear_recurrence, backward=True, reverse=reverse)
        assert plan.reverse is not reverse
        (again,), (main,) = plan.recomputed, plan.main
        assert again.attrs["reverse"] is reverse and main.attrs["reverse"] is not reverse
        assert not again.attrs["shifted"] and main.attrs["shifted"]
    assert plan_of(linear_recurrence).recomputed == ()


def test_a_bidirectional_backward_has_plain_scans_to_recompute() -> None:
    plan = plan_of(both_ways, backward=True)
    assert len(plan.recomputed) == len(plan.main) == 2
    assert not any(s.attrs["shifted"] for s in plan.recomputed)


def test_stores_say_what_is_summed_over_what() -> None:
    plan = plan_of(selective_scan, backward=True, without=("seq_idx", "z", "delta_bias", "initial_state"))
    stores = {s.name: s for s in plan.stores}
    assert stores["d_u"].kind == "value" and not stores["d_u"].partial
    assert stores["d_B"].kind == "value" and stores["d_B"].lane and stores["d_B"].axes == ("b", "g", "n", "l")
    assert stores["d_A"].kind == "sum" and stores["d_A"].grid == ("b",) and not stores["d_A"].lane
    assert stores["d_D"].kind == "sum" and stores["d_D"].axes == ("d",)
    forward = {s.name: s.kind for s in plan_of(selective_scan).stores}
    assert forward == {"y": "value", "last_state": "final"}


def test_a_step_has_no_time_and_no_walk() -> None:
    plan = make_plan(partition(prepare(step(min_gru.graph()))).kernel)
    assert plan.time == "" and plan.scans == () and {s.kind for s in plan.stores} == {"value"}
    assert INPUTS[min_gru]  # the same op runs in tests/test_op.py
