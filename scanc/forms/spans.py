"""Whether a lane's threads can share its time: which plans the kernels of codegen/cuda_spans.py are for."""

from __future__ import annotations

from scanc.forms.plan import Plan, Region
from scanc.forms.segments import scans_are_independent


def why_not_spans(plan: Plan) -> str:
    """What stands in the way, in words; "" where nothing does: one direction, onwards, of real states that every lane has its own of."""
    if plan.recomputed or plan.reverse or not plan.main:
        return "a walk that goes backwards in time"
    if not (plan.time and plan.state and plan.lane):
        return "recurrences without a state axis"
    for scan in plan.main:
        if scan.kind != "real" or scan.attrs["shifted"] or not (plan.has(scan, plan.state) and plan.has(scan, plan.lane)):
            return "complex or shifted scans, or of states that lanes share"
    for store in plan.stores:
        plain = store.kind == "value" and plan.has(store.value, plan.lane) and plan.timed(store.value)
        stated = plan.has(store.value, plan.state)
        if not (store.kind == "final" or (plain and not stated)) or store.lane or store.grid:
            return "sums over time or lanes, or results over states"
    for node in plan.main_body:
        if node.op in ("const", "sum", "scan"):
            continue
        if node.op in ("prior", "shift", "index") or node.kind != "real":
            return f"values of kind {node.kind} or made by {node.op}"
        laned, stated = plan.has(node, plan.lane), plan.has(node, plan.state)
        if plan.timed(node) and node.op == "input" and laned == stated:
            return "inputs over lanes, states and steps, or over steps alone"
        if plan.timed(node) and not laned and not stated:
            return "values that no lane differs in"
        if plan.region[node] == Region.POST and any(a.op == "scan" for a in node.args):
            return "results over states"
    return "" if scans_are_independent(plan.main) else "scans of scans"
