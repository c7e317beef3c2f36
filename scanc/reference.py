"""The oracle: a graph evaluated by torch operations, on any device, in float64 unless asked otherwise.

    evaluate(graph, {"u": ..., "delta": ...})  ->  {"y": ..., "last_state": ...}

One torch expression per op (reference_ops.py), no fusion, no tiles: what every kernel is held against. Everything is
differentiable, which is how the tests hold passes/adjoint.py against torch.autograd.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from scanc.ir import POINTWISE, Graph, Node
from scanc.reference_ops import STRUCTURAL, WIDTH, Frame, Recurrence, pointwise, refuse, run_scan


def evaluate(graph: Graph, inputs: Mapping[str, Tensor], *, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Every output of ``graph``, as {output name: tensor with axes Output.axes}.

    ``inputs`` maps every input's name to a tensor over that input's axes; names the graph has no input for are ignored.
    Real values are computed in ``dtype``, complex ones in its complex counterpart, integers in int64. Sizes come from the inputs.
    Raises ArgumentError where an input is missing, of the wrong rank or kind, or disagrees with another about an axis.
    """
    frame = _frame(graph, inputs, dtype)
    return _run(graph, inputs, frame)


def _frame(graph: Graph, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> Frame:
    _check_inputs(graph, inputs)
    device = inputs[str(graph.inputs[0].name)].device if graph.inputs else torch.device("cpu")
    return Frame(graph.name, axis_sizes(graph, inputs), graph.groups, dtype, device)


def axis_sizes(graph: Graph, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """{axis: size} as the inputs' shapes say. Raises ArgumentError where two inputs disagree or a group does not divide its axis."""
    sizes: dict[str, int] = {}
    source: dict[str, str] = {}
    for node in graph.inputs:
        name = str(node.name)
        for axis, size in zip(node.axes, inputs[name].shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                refuse(graph.name, name, f"of size {size} along '{axis}'", f"'{source[axis]}' has size {sizes[axis]} there",
                       "Give both the same size; sizes of 1 are not stretched.")
            source.setdefault(axis, name)
    for group, parent in graph.groups.items():
        if group in sizes and parent in sizes and sizes[parent] % (sizes[group] or sizes[parent] + 1):
            refuse(graph.name, source[group], f"of size {sizes[group]} along '{group}'",
                   f"'{group}' must divide '{parent}', of size {sizes[parent]} in '{source[parent]}'",
                   "Choose a number of groups that divides it.")
    return sizes


def _check_inputs(graph: Graph, inputs: Mapping[str, Tensor]) -> None:
    for node in graph.inputs:
        name, shape = str(node.name), f"({' '.join(node.axes)})"
        if name not in inputs:
            refuse(graph.name, name, "missing", "every input needs a tensor", f"Give a tensor over {shape}.")
        x = inputs[name]
        if x.dim() != len(node.axes):
            refuse(graph.name, name, f"of shape {tuple(x.shape)}", f"its axes are {shape}", "Reshape it to those axes.")
        kind = "complex" if x.is_complex() else "real" if x.is_floating_point() else "bool" if x.dtype == torch.bool else "int"
        if WIDTH.index(kind) > WIDTH.index(node.kind):
            refuse(graph.name, name, f"of dtype {x.dtype}", f"it is declared {node.kind}", "Cast the tensor.")


def _run(graph: Graph, inputs: Mapping[str, Tensor], frame: Frame) -> dict[str, Tensor]:
    """Nodes in order; a value is dropped after its last use, so that memory holds only what is still needed."""
    nodes = graph.nodes()
    uses = Counter(a for n in nodes for a in n.args)
    uses.update(o.node for o in graph.outputs)
    with_prior = {n.args[0] for n in nodes if n.op == "prior"}
    tensors: dict[Node, Tensor] = {}
    recurrences: dict[Node, Recurrence] = {}
    waiting = {o.node for o in graph.outputs}
    results: dict[Node, Tensor] = {}
    for node in nodes:
        match node.op:
            case "input":
                tensors[node] = frame.cast(inputs[str(node.name)], node.kind)
            case "scan":
                recurrences[node] = run_scan(frame, node, tuple(tensors[a] for a in node.args), node in with_prior)
                tensors[node] = recurrences[node].values
            case "prior":
                priors = recurrences[node.args[0]].priors
                assert priors is not None
                tensors[node] = priors
            case "final":
                tensors[node] = recurrences[node.args[0]].final
            case op if op in POINTWISE:
                tensors[node] = pointwise(frame, node, *(tensors[a] for a in node.args))
            case op:
                tensors[node] = STRUCTURAL[op](frame, node, *(tensors[a] for a in node.args))
        if node in waiting:
            results[node] = tensors[node]
        for arg in node.args:
            uses[arg] -= 1
            if uses[arg] == 0:
                del tensors[arg]
                recurrences.pop(arg, None)
    taken = {_memory(x) for x in inputs.values()}
    return {o.name: _own(frame.expand(results[o.node], o.node.axes, o.axes), taken) for o in graph.outputs}


def _own(x: Tensor, taken: set[int]) -> Tensor:
    """x contiguous and in memory of its own: an output is no view of an input or of another output."""
    x = x.contiguous()
    if _memory(x) in taken:
        x = x.clone()
    taken.add(_memory(x))
    return x


def _memory(x: Tensor) -> int:
    """Which memory x is in: its storage, not the address, which tensors traced by torch.compile do not have."""
    return int(x.untyped_storage()._cdata)


# -- in blocks of lanes ------------------------------------------------------------------------------------------------------------


def evaluate_in_lanes(graph: Graph, inputs: Mapping[str, Tensor], axis: str, block: int,
                      dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """``evaluate``, walking the lane axis ``axis`` (say d) ``block`` positions at a time, so that memory holds one block's values.

    Inputs over ``axis`` are sliced, those over a group of it to the groups covered (blocks are rounded up to whole groups).
    Outputs over ``axis`` or a group of it are concatenated. An output over neither is the same for every block, or a sum over the
    lanes whose parts are added: in a backward graph, gradients of what the lanes share. Raises ArgumentError where an output is
    neither (something nonlinear follows the sum), or the graph scans, shifts or convolves along ``axis``.
    """
    if axis in graph.groups:
        refuse(graph.name, axis, "a group axis", "lanes are walked by whole axes", f"Walk '{graph.groups[axis]}'.")
    frame = _frame(graph, inputs, dtype)
    along = {axis, *(g for g, parent in graph.groups.items() if parent == axis)}
    spread = _lane_spread(graph, along)
    size = frame.size(axis)
    members = {a: size // frame.sizes[a] for a in along if frame.sizes.get(a)}
    whole = math.lcm(*members.values(), 1)
    block = -(-max(block, 1) // whole) * whole
    parts: dict[str, list[Tensor]] = {o.name: [] for o in graph.outputs}
    for start in range(0, max(size, 1), block):
        width = min(block, size - start)
        starts = {a: start // m for a, m in members.items()}
        held = replace(frame, sizes={**frame.sizes, **{a: width // m for a, m in members.items()}}, whole=frame.sizes, starts=starts)
        sliced = {}
        for node in graph.inputs:
            x = inputs[str(node.name)]
            for dim, a in enumerate(node.axes):
                x = x.narrow(dim, starts[a], held.sizes[a]) if a in starts else x
            sliced[str(node.name)] = x
        for name, x in _run(graph, sliced, held).items():
            parts[name].append(x)
            if spread[graph.output(name).node] == "part":
                parts[name] = [torch.stack(parts[name]).sum(0)]
    results = {}
    for o in graph.outputs:
        dims = [i for i, a in enumerate(o.axes) if a in along]
        results[o.name] = torch.cat(parts[o.name], dims[0]) if dims else parts[o.name][0]
    return results


def _lane_spread(graph: Graph, along: set[str]) -> dict[Node, str]:
    """How each value relates to a block of lanes: ``lanes`` has the axis; ``same`` does not depend on the block; ``part`` is this
    block's term of a sum over lanes; ``zero`` is 0, which is any of them."""
    spread: dict[Node, str] = {}
    for node in graph.nodes():
        spread[node] = _spread_of(graph.name, node, tuple(spread[a] for a in node.args), along)
    for o in graph.outputs:
        if spread[o.node] == "part" and along.intersection(o.axes):
            refuse(graph.name, o.name, "a sum over the lanes spread over them again", "it needs every block", "Evaluate it whole.")
    return spread


def _spread_of(op: str, node: Node, given: tuple[str, ...], along: set[str]) -> str:
    word = str(node.name or node.op)
    if node.op == "const":
        return "same" if node.attrs["value"] else "zero"
    if node.op in ("shift", "scan", "conv", "conv_kernel_grad") and along.intersection((node.attrs["axis"], node.attrs.get("tap"))):
        refuse(op, word, f"a {node.op} along '{node.attrs['axis']}'", "lanes must be independent", "Walk another axis.")
    if "part" not in given:
        if along.intersection(node.axes):
            return "lanes"
        return "part" if "lanes" in given else "same"  # only a sum drops an axis
    fixed, parts = {"same", "zero"}, {"part", "zero"}
    match node.op:  # is it linear in what is summed?
        case "add" | "sub" | "complex":
            linear = set(given) <= parts
        case "neg" | "real" | "imag" | "conj" | "cast" | "sum" | "prior" | "final":
            linear = True
        case "broadcast":
            linear = not along.intersection(node.axes)
        case "shift":
            linear = not node.attrs["fill"]
        case "mul" | "conv" | "conv_kernel_grad":
            linear = given[0] in fixed or given[1] in fixed
        case "div":
            linear = given[1] in fixed
        case "where" | "scan":
            linear = given[0] in fixed and set(given[1:]) <= parts
        case _:
            linear = False
    if not linear or along.intersection(node.axes):
        refuse(op, word, "computed from a sum over the lanes", "blocks of lanes can only be added", "Evaluate it whole.")
    return "part"
