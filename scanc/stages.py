"""Every stage of the path from op to machine code, as text: what ``scanc show`` prints and goldens compare.

trace      the graph as the user wrote it
adjoint    its backward (for the backward pass; the forward and step passes have none)
canonical  primitives, shared values, least work per step
class      what each transition depends on
forms      the ways this graph can be evaluated, how that was found, and what is missing of others
partition  what happens before and after the kernel
loops      which loop each value lives in, what is walked, stored and reduced
source     the generated source
asm        PTX or AMD assembly, made without the device; C++ has none to show
"""

from __future__ import annotations

from collections.abc import Mapping

from scanc.compiler import Executable, backend, default_schedule, prepare, program
from scanc.errors import UnsupportedForm
from scanc.forms.choose import classify, forms_of
from scanc.forms.chunked import describe_chunks
from scanc.forms.chunked_choice import chunked_plan
from scanc.forms.chunked_lti import describe_lti_chunks
from scanc.forms.chunked_recognise import chunk_partition, chunk_plan
from scanc.forms.convolution import ConvolutionPlan, describe_convolution
from scanc.forms.convolution_choice import convolution_plan_of
from scanc.forms.lti import lti_plan
from scanc.forms.partition import has_scans, partition
from scanc.forms.plan import Plan, Region, make_plan
from scanc.ir import Graph
from scanc.lti_chunked import LtiChunkedExecutable
from scanc.passes.step import step
from scanc.printer import print_graph
from scanc.schedule import ChunkedSchedule, ConvolutionSchedule, Schedule, StencilSchedule
from scanc.target import Target

STAGES = ("trace", "canonical", "class", "forms", "partition", "loops", "source", "asm")


def stages(graph: Graph, target: Target, schedule: Schedule | None = None, *, sizes: Mapping[str, int] | None = None) -> dict[str, str]:
    """All stages of a specialised graph. Stages that do not exist for it (a reference-only graph's loops) say why."""
    ready = prepare(graph)
    found = {"trace": print_graph(graph), "canonical": print_graph(ready), "class": _classes(ready)}
    found["forms"] = _forms(graph, ready)
    convolution = convolution_plan_of(ready)
    if convolution is None and isinstance(schedule, ConvolutionSchedule):
        convolution = convolution_plan_of(lti_plan(ready).graph)
    if convolution is not None:
        return found | _convolution(graph, convolution, target, schedule or default_schedule(graph, target, sizes or {}), sizes or {})
    schedule = schedule or default_schedule(graph, target, sizes or {}) if target.backend != "reference" else None
    at_once = isinstance(schedule, StencilSchedule)
    shifts = at_once and target.backend == "cuda"
    if shifts:
        found["canonical"] = print_graph(ready := prepare(graph, shifts=True))
    try:
        parts = partition(ready, at_once=at_once, shifts=shifts)
        plan = make_plan(parts.kernel, at_once=at_once)
    except UnsupportedForm as error:
        return found | dict.fromkeys(("partition", "loops", "source", "asm"), str(error))
    first = "kernels of its own" if parts.before is not None and has_scans(parts.before) else "torch"
    texts = [(f"before the kernel ({first})", parts.before), ("the kernel", parts.kernel), ("after the kernel (torch)", parts.after)]
    found["partition"] = "\n".join(f"-- {title}\n{print_graph(part) if part is not None else '(nothing)'}" for title, part in texts)
    if isinstance(schedule, ChunkedSchedule):
        return found | _chunked(graph, target, schedule, sizes or {})
    found["loops"] = describe(plan)
    if target.backend == "reference":
        return found | {"source": "the reference has no source: torch operations, one per node", "asm": ""}
    assert schedule is not None
    made = Executable(graph, target, schedule)
    state = (sizes or {}).get(plan.state, 16)
    source = made.source(state)
    found["source"] = source.text
    found["asm"] = (
        backend(target).assembly(source, target) if hasattr(backend(target), "assembly") else "compiled by the system's C++ compiler"
    )
    return found


def _chunked(graph: Graph, target: Target, schedule: ChunkedSchedule, sizes: Mapping[str, int]) -> dict[str, str]:
    """The stages from the loops on of the chunked form, which has several kernels."""
    made = program(graph, target, schedule)
    if isinstance(made, LtiChunkedExecutable):
        source = made.source((sizes or {}).get(graph.state[0], 16))
        asm = backend(target).assembly(source, target) if hasattr(backend(target), "assembly") else ""
        signals, rest = print_graph(made.plan.signals), print_graph(made.inner_graph)
        split = f"-- what recurrences take in (torch)\n{signals}\n-- the kernel of the rest\n{rest}"
        return {"partition": split, "loops": describe_lti_chunks(made.plan, schedule.chunk), "source": source.text, "asm": asm}
    parts = chunk_partition(prepare(graph))
    texts = [("the kernels", parts.kernel), ("after the kernels (torch)", parts.after)]
    split = "\n".join(f"-- {title}\n{print_graph(part) if part is not None else '(nothing)'}" for title, part in texts)
    sources = made.all_sources(made.shape_of(sizes))  # type: ignore[attr-defined]
    return {"partition": split, "loops": describe_chunks(chunk_plan(parts.kernel)), "source": "\n".join(s.text for s in sources),
            "asm": "\n".join(backend(target).assembly(s, target) for s in sources) if target.kind != "cpu" else ""}


def _convolution(graph: Graph, plan: ConvolutionPlan, target: Target, schedule: Schedule, sizes: Mapping[str, int]) -> dict[str, str]:
    """The stages from the partition on of the form convolution."""
    texts = [("before the kernels", plan.before), ("the kernels", plan.graph), ("after the kernels (torch)", plan.after)]
    split = "\n".join(f"-- {title}\n{print_graph(part) if part is not None else '(nothing)'}" for title, part in texts)
    found = {"partition": split, "loops": describe_convolution(plan)}
    if target.backend == "reference" or getattr(schedule, "route", "") == "fft":
        return found | {"source": "route fft has no source: torch's transforms, shared between results", "asm": ""}
    made = program(graph, target, schedule)
    sources = made.all_sources(made.shape_of(sizes))
    return found | {"source": "\n".join(s.text for s in sources),
                    "asm": "\n".join(backend(target).assembly(s, target) for s in sources) if target.kind != "cpu" else ""}


def _classes(graph: Graph) -> str:
    lines = []
    for node in graph.nodes():
        if node.op == "scan":
            kind = classify(graph, node)
            lines.append(
                f"{node.name or 'scan'}: transition {node.args[0].name or node.args[0].op}[{' '.join(node.args[0].axes)}] "
                f"is {kind.name} ({kind.meaning}{', complex' if kind.complex else ''})"
            )
    return "\n".join(lines) or "no scan: pointwise work and contractions"


FORMS = {
    "recurrent": "time is walked, the state in registers",
    "associative": "pairs of steps are combined, in a tree",
    "chunked": "matrix products within chunks, states between them",
    "convolution": "one kernel of all lags",
    "stencil": "steps side by side: nothing is carried from one to the next",
    "step": "one position of time, the state in place",
}


def _forms(graph: Graph, ready: Graph) -> str:
    """How the class was found, which forms follow, and what the others miss."""
    has = forms_of(graph)
    if not has:
        return "none but the reference"
    lines = [_classes(ready)]
    for form, meaning in FORMS.items():
        missing = "" if form in has else _missing(graph, ready, form)
        if form in has or missing:
            lines.append(f"{form:12} {meaning if form in has else 'no: ' + missing}")
        if form == "chunked" and form in has and (plan := chunked_plan(ready)) is not None:
            taken = " and ".join(s.scan.name or "scan" for s in plan.scans)
            decay = "a decay a key" if plan.keyed else "a decay a head"
            lines.append(f"{'':12} into {taken} go outer products over {plan.rows} and {plan.columns}, {decay}")
    return "\n".join(lines)


def _missing(graph: Graph, ready: Graph, form: str) -> str:
    """What keeps a graph from having a form; "" where there is nothing to say, since it is of another kind altogether."""
    scans = [n for n in ready.nodes() if n.op == "scan"]
    if form == "convolution" and scans:
        varies = any(ready.time in n.args[0].axes for n in scans)
        return "a transition has a time axis" if varies else "what is read is not linear in what goes in"
    try:
        if form == "chunked" and scans:
            chunk_plan(chunk_partition(ready).kernel)
            return "what goes before it is a recurrence of its own"
        if form == "step" and graph.time:
            step(graph)
    except UnsupportedForm as error:
        return str(error.fields["reason"])
    return ""


def describe(plan: Plan) -> str:
    """The plan as an outline of loops."""
    graph = plan.graph
    lines = [
        f"programs: {' '.join(plan.grid) or 'one'} × blocks of {plan.lane or '(one lane)'}"
        + (f" inside groups {plan.lane_group}" if plan.lane_group else "")
        + (f" × segments of {plan.time}" if plan.time else "")
    ]
    names = {r: [] for r in Region}  # type: dict[Region, list[str]]
    for node in dict.fromkeys((*plan.recompute_body, *plan.main_body)):
        if node.name and node.op != "input":
            names[plan.region[node]].append(node.name)
    if plan.recomputed:
        held = ", ".join(_name(s) for s in plan.recomputed)
        lines.append(
            f"walk {graph.time} {'forwards' if plan.reverse else 'backwards'}, keeping {held} at block boundaries; "
            "then, block by block, recompute its states and walk the other way:"
        )
    titles = {
        Region.LANE: "once per lane",
        Region.STATE: f"once per lane and {plan.state}",
        Region.PRE: "each step",
        Region.SCAN: f"each step and {plan.state or 'lane'}",
        Region.POST: "each step, after the contraction",
    }
    if plan.time:
        carried = ", ".join(_name(s) for s in plan.main) or "nothing"
        lines.append(f"walk {graph.time} {'backwards' if plan.reverse else 'forwards'}, carrying {carried}")
    for region, title in titles.items():
        if names[region]:
            lines.append(f"    {title}: {', '.join(names[region])}")
    for store in plan.stores:
        over = [*(["time"] if store.kind == "sum" else []), *([plan.lane] if store.lane else []), *store.grid]
        what = {"final": "last carry", "sum": "sum", "value": "value"}[store.kind]
        lines.append(
            f"store {store.name}[{' '.join(store.axes)}]: {what}"
            + (f" over {', '.join(over)}" if over else "")
            + (", partial results added up afterwards" if store.partial else "")
        )
    return "\n".join(lines)


def _name(scan: object) -> str:
    return getattr(scan, "name", None) or "scan"


__all__ = ["STAGES", "describe", "stages"]
