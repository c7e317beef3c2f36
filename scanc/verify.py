"""The rules a graph obeys at each stage of the pipeline, checked between passes.

    trace        as the user wrote it
    adjoint      a backward graph: results are named d_<input>
    canonical    primitives only, every value once, no idle broadcast (passes/canonicalize.py)
    specialized  canonical, and every input has a concrete dtype
    step         one decode step: no recurrence is left

A rule is a function that gives a reason for each place where the graph breaks it; its name is the first word of the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from scanc.errors import VerifyError
from scanc.ir import CONCRETE, LEAVES, POINTWISE, STRUCTURAL, Axes, Builder, Graph, Node, is_pointwise, topological
from scanc.passes.share import key

Rule = Callable[[Graph], Iterator[str]]

ARITY = {
    "input": (0,), "const": (0,), "index": (0,), "size": (0,), "broadcast": (1,), "sum": (1,), "shift": (1,), "scan": (2, 3),
    "prior": (1,), "final": (1,), "conv": (2,), "conv_kernel_grad": (2,), **{op: (n,) for op, (n, _) in POINTWISE.items()},
}
ATTRIBUTES = {
    "const": {"value"}, "index": {"axis"}, "size": {"axis"}, "cast": {"kind"}, "shift": {"axis", "by", "fill"},
    "scan": {"axis", "reverse", "shifted"}, "conv": {"axis", "tap", "reverse"}, "conv_kernel_grad": {"axis", "tap", "reverse"},
}


def verify(graph: Graph, stage: str) -> None:
    """Raises VerifyError, naming the rule and the node, where ``graph`` breaks a rule of ``stage``."""
    if stage not in STAGES:
        raise VerifyError(f"there is no such stage; stages are {', '.join(STAGES)}", op=graph.name, stage=stage)
    for rule in STAGES[stage]:
        for reason in rule(graph):
            raise VerifyError(f"{rule.__name__.strip('_')}: {reason}", op=graph.name, stage=stage)


def _say(node: Node) -> str:
    """A node as an error names it, with the user's line where it is known."""
    args = ", ".join(str(a.type) for a in node.args)
    name = f"'{node.name}' = " if node.name else ""
    return f"{name}{node.op}({args}): {node.type}" + (f" at {node.where}" if node.where else "")


def _nodes(graph: Graph) -> list[Node]:
    return topological([*graph.inputs, *(o.node for o in graph.outputs)])


# ------------------------------------------------------------------------------------------------- rules of the frame


def _axes(graph: Graph) -> Iterator[str]:
    """The order names each axis once; time, state and groups are among them, and no group divides a group."""
    if len(set(graph.order)) != len(graph.order):
        yield f"the order ({' '.join(graph.order)}) names an axis twice"
    for what, axes in (("time", (graph.time,) if graph.time else ()), ("state", graph.state), ("group", tuple(graph.groups))):
        for axis in axes:
            if axis not in graph.order:
                yield f"{what} axis '{axis}' is not in the order ({' '.join(graph.order)})"
    if graph.time in graph.state:
        yield f"'{graph.time}' is both time and state"
    for group, axis in graph.groups.items():
        if axis not in graph.order:
            yield f"group '{group}' divides '{axis}', which is not in the order ({' '.join(graph.order)})"
        if axis in graph.groups:
            yield f"group '{group}' divides '{axis}', itself a group"


def _inputs(graph: Graph) -> Iterator[str]:
    """Inputs have distinct names, and every input that is read is listed."""
    names = [n.name for n in graph.inputs]
    for node in graph.inputs:
        if node.op != "input" or not node.name:
            yield f"{_say(node)} is listed as an input"
        elif names.count(node.name) > 1:
            yield f"two inputs are called '{node.name}'"
    for node in _nodes(graph):
        if node.op == "input" and node not in graph.inputs:
            yield f"{_say(node)} is read but not listed"


def _outputs(graph: Graph) -> Iterator[str]:
    """Outputs have distinct names and at least their node's axes; ``like`` and ``inplace`` name what exists."""
    names = [o.name for o in graph.outputs]
    if not names:
        yield "the graph has no output"
    for output in graph.outputs:
        if names.count(output.name) > 1:
            yield f"two outputs are called '{output.name}'"
        if len(set(output.axes)) != len(output.axes) or not set(output.axes) <= set(graph.order):
            yield f"output '{output.name}' has axes ({' '.join(output.axes)}), not distinct axes of ({' '.join(graph.order)})"
        for axis in output.node.axes:
            if axis not in output.axes and graph.groups.get(axis) not in output.axes:
                yield f"output '{output.name}' has axes ({' '.join(output.axes)}), but its value {_say(output.node)} has '{axis}'"
        if output.like and not graph.has_input(output.like):
            yield f"output '{output.name}' has the dtype of '{output.like}', which is no input"
    for output_name, input_name in graph.inplace.items():
        if output_name not in names or not graph.has_input(input_name):
            yield f"inplace says '{output_name}' overwrites '{input_name}', but one of them does not exist"
        elif graph.output(output_name).axes != graph.input(input_name).axes:
            yield f"output '{output_name}' cannot overwrite input '{input_name}': their axes differ"


# ------------------------------------------------------------------------------------------------- rules of every node


def _ops(graph: Graph) -> Iterator[str]:
    """Ops are known and have their number of arguments and their attributes."""
    for node in _nodes(graph):
        if node.op not in POINTWISE and node.op not in LEAVES and node.op not in STRUCTURAL:
            yield f"{_say(node)} is no known op"
        elif len(node.args) not in ARITY[node.op]:
            yield f"{_say(node)} has {len(node.args)} arguments, not {' or '.join(map(str, ARITY[node.op]))}"
        elif set(node.attrs) != ATTRIBUTES.get(node.op, set()):
            yield f"{_say(node)} has attributes {sorted(node.attrs)}, not {sorted(ATTRIBUTES.get(node.op, set()))}"


def _types(graph: Graph) -> Iterator[str]:
    """Every node has the type that Builder derives from its arguments; leaves have axes of the graph."""
    builder = Builder.of(graph)
    for node in _nodes(graph):
        if not set(node.axes) <= set(graph.order) or len(set(node.axes)) != len(node.axes):
            yield f"{_say(node)} has axes that are not distinct axes of ({' '.join(graph.order)})"
        if any(group in node.axes and axis in node.axes for group, axis in graph.groups.items()):
            yield f"{_say(node)} has a group and the axis it divides"
        try:
            derived = _derive(builder, node)
        except ValueError as error:
            yield f"{_say(node)}: {error}"
        else:
            if derived is None:
                yield f"{_say(node)} does nothing: it gives its argument"
            elif derived.type != node.type:
                yield f"{_say(node)} should have type {derived.type}"


def _derive(builder: Builder, node: Node) -> Node | None:
    """``node`` as Builder makes it; None where Builder makes nothing of it (a sum over no axis, a shift by 0)."""
    match node.op:
        case "input":
            return node
        case "const":
            return builder.const(node.attrs["value"], node.type.dtype)
        case "index":
            return builder.index(node.attrs["axis"])
        case "size":
            return builder.size(node.attrs["axis"])
    made = builder.like(node, node.args)
    return None if made in node.args else made


def _scans(graph: Graph) -> Iterator[str]:
    """Scans run along the graph's time; only scans are read for a prior or a final state."""
    for node in _nodes(graph):
        if node.op == "scan" and node.attrs["axis"] != graph.time:
            yield f"{_say(node)} runs along '{node.attrs['axis']}', but the graph's time is '{graph.time}'"
        if node.op in ("prior", "final") and node.args[0].op != "scan":
            yield f"{_say(node)} reads {_say(node.args[0])}, which is no scan"
        if node.op == "scan" and len(node.args) == 3 and graph.time in node.args[2].axes:
            yield f"{_say(node)} has an initial state over time"


def _convolutions(graph: Graph) -> Iterator[str]:
    """A kernel's taps are its own: what it is convolved with has no such axis, and the kernel does not change over time."""
    for node in _nodes(graph):
        if node.op not in ("conv", "conv_kernel_grad") or node.attrs["axis"] == node.attrs["tap"]:
            continue
        axis, tap = node.attrs["axis"], node.attrs["tap"]
        for arg in node.args if node.op == "conv_kernel_grad" else node.args[:1]:
            if tap in arg.axes:
                yield f"{_say(node)} is taken of a value that has the tap axis '{tap}' itself"
        if node.op == "conv" and axis in node.args[1].axes:
            yield f"{_say(node)} has a kernel over both '{tap}' and '{axis}'"


# ------------------------------------------------------------------------------------------------- rules of a stage

# Ops that canonicalize writes in primitives: {op: the kinds of argument for which it does}.
LOWERED: dict[str, Axes] = {
    "sigmoid": ("bool", "int", "real", "complex"), "silu": ("bool", "int", "real", "complex"), "square": ("bool", "int", "real", "complex"),
    "softplus": ("bool", "int", "real", "complex"), "relu": ("bool", "int", "real", "complex"), "log": ("bool", "int", "real", "complex"),
    "exp": ("bool", "int", "real"), "exp2": ("complex",), "expm1": ("complex",), "log2": ("complex",), "log1p": ("complex",),
}


def _primitives(graph: Graph) -> Iterator[str]:
    """Only ops that every backend has."""
    for node in _nodes(graph):
        if node.args and node.args[0].kind in LOWERED.get(node.op, ()):
            yield f"{_say(node)} is not one of the primitives that backends have"


def _constants(graph: Graph) -> Iterator[str]:
    """A constant stands on the right of an op that commutes."""
    for node in _nodes(graph):
        if node.op in ("add", "mul") and node.args[0].op == "const" and node.args[1].op != "const":
            yield f"{_say(node)} has its constant on the left"


def _broadcasts(graph: Graph) -> Iterator[str]:
    """No broadcast stands under a pointwise op or another broadcast: names align without it."""
    for node in _nodes(graph):
        if (is_pointwise(node) or node.op == "broadcast") and any(a.op == "broadcast" for a in node.args):
            yield f"{_say(node)} reads a broadcast"


def _shared(graph: Graph) -> Iterator[str]:
    """No value is computed twice."""
    number: dict[Node, int] = {}
    seen: dict[object, Node] = {}
    for node in _nodes(graph):
        k = key(node, tuple(number[a] for a in node.args))
        number[node] = len(number)
        if k in seen:
            yield f"{_say(node)} is computed twice"
        seen[k] = node


def _concrete(graph: Graph) -> Iterator[str]:
    """Every input has a dtype of torch's."""
    for node in graph.inputs:
        if node.type.dtype not in CONCRETE:
            yield f"{_say(node)} has no concrete dtype"


def _gradients(graph: Graph) -> Iterator[str]:
    """Results of a backward graph are gradients."""
    for output in graph.outputs:
        if not output.name.startswith("d_"):
            yield f"output '{output.name}' is not named d_<input>"


def _unrolled(graph: Graph) -> Iterator[str]:
    """One step has no recurrence and no look at other steps."""
    for node in _nodes(graph):
        if node.op in ("scan", "prior", "final") or (node.op in ("shift", "conv", "conv_kernel_grad") and node.attrs["axis"] == graph.time):
            yield f"{_say(node)} is left in a single step"


_ALWAYS: tuple[Rule, ...] = (_axes, _inputs, _ops, _types, _outputs, _scans, _convolutions)
_CANONICAL: tuple[Rule, ...] = (*_ALWAYS, _primitives, _constants, _broadcasts, _shared)
STAGES: dict[str, tuple[Rule, ...]] = {
    "trace": _ALWAYS,
    "adjoint": (*_ALWAYS, _gradients),
    "canonical": _CANONICAL,
    "specialized": (*_CANONICAL, _concrete),
    "step": (*_ALWAYS, _unrolled),
}
