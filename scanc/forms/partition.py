"""Splits a graph into what a scan kernel computes and the small work before and after it.

    before:  d_A = mul(sum(x[b l d n] -> [d n]), c[d n])
    after:   kernel stores  x_sum = sum(x -> [d n]);   tail (torch):  d_A = mul(x_sum, c)

A scan kernel walks time once for a block of lanes. Sums over time or over lanes leave it as *stores*; whatever follows
such a sum, and whatever precedes the scans but needs one (a norm over channels, a convolution), runs as torch operations
on tensors without a state axis. No state tensor ``b l d n`` ever crosses the border, unless the op returns one.

Where a recurrence's input needs such a sum of *another* recurrence's result (the gradient of a norm over channels that follows
a scan), ``before`` holds scans too and is a program of its own: kernels in layers, each summing what the next one needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, replace

from scanc.errors import UnsupportedForm
from scanc.ir import Axes, Builder, Graph, Node, Output, is_pointwise, rewrite, topological

SumRule = Callable[[Node], bool]


@dataclass(frozen=True)
class Partition:
    """``before``, ``kernel`` and ``after`` are graphs; a name given by an earlier one is an input of a later one."""

    before: Graph | None
    kernel: Graph
    after: Graph | None


def depends_on_scan(graph: Graph) -> set[Node]:
    """Nodes at or below a scan."""
    found: set[Node] = set()
    for node in graph.nodes():
        if node.op == "scan" or any(a in found for a in node.args):
            found.add(node)
    return found


def _plain_sum(graph: Graph, node: Node) -> bool:
    """A sum over the state axis alone, at each time step: the one a kernel does in its stride."""
    gone = set(node.args[0].axes) - set(node.axes)
    return gone <= set(graph.state) and (graph.time == "" or graph.time in node.axes)


def _fits_kernel(graph: Graph, node: Node, inner: SumRule | None = None, *, shifts: bool = False) -> bool:
    if node.op == "sum":
        return _plain_sum(graph, node) or (inner is not None and inner(node))
    if node.op == "shift":
        return (shifts or node.args[0].op == "input") and node.attrs["axis"] == graph.time
    return is_pointwise(node) or node.op in ("input", "const", "index", "size", "broadcast", "scan", "prior")


def partition(graph: Graph, inner: SumRule | None = None, *, at_once: bool = False, shifts: bool = False) -> Partition:
    """The three parts. Raises UnsupportedForm where a recurrence's input needs another recurrence's whole state, over time, in memory.

    ``inner``    which sums beside those over the state axis a form's kernel does at each step
    ``at_once``  whether a kernel holds a step's whole state axis, so that a sum over it can go back into values over it
    ``shifts``   whether a kernel looks back at what it computes, and not at its inputs alone
    """
    scans = [n for n in graph.nodes() if n.op == "scan"]
    above = set(topological(scans))
    turned_back = set() if at_once else _contractions_used_by_states(graph)
    early = [n for n in graph.nodes() if n in turned_back or (n in above and not _fits_kernel(graph, n))]
    before, graph = _materialise(graph, early)
    return _split_tail(before, graph, inner, shifts)


def _contractions_used_by_states(graph: Graph) -> set[Node]:
    """Contractions over the state axis at a step that a value over that axis needs at the same step: one walk over n cannot give both."""
    state = set(graph.state)
    under: dict[Node, set[Node]] = {}  # contractions that a node needs
    found: set[Node] = set()
    for node in graph.nodes():
        under[node] = set().union(*(under[a] for a in node.args))
        if state & set(node.axes) and (graph.time == "" or graph.time in node.axes):
            found |= under[node]
        if node.op == "sum" and state & (set(node.args[0].axes) - set(node.axes)):
            under[node].add(node)
    return found


def has_scans(graph: Graph) -> bool:
    """Whether the graph needs a kernel of its own: then it is partitioned again, else torch evaluates it."""
    return any(n.op == "scan" for n in graph.nodes())


def kernels(graph: Graph) -> list[Graph]:
    """What every kernel of a prepared graph computes, in the order they run. Raises UnsupportedForm."""
    parts = partition(graph)
    first = kernels(parts.before) if parts.before is not None and has_scans(parts.before) else []
    return [*first, parts.kernel]


def _materialise(graph: Graph, early: list[Node]) -> tuple[Graph | None, Graph]:
    """Turns the nodes ``early`` into inputs of the kernel, computed by a graph of their own."""
    inner = {a for n in early for a in topological([n]) if a is not n}
    users = [u for u in graph.nodes() if u not in inner and u not in early]
    if not has_scans(graph):  # a value may serve a later sum and the kernel alike
        users = _above([o.node for o in graph.outputs], set(early))
    roots = [n for n in early if n not in inner or any(n in u.args for u in users)]
    if not roots:
        return None, graph
    below = depends_on_scan(graph)
    for n in roots:
        if n in below and graph.time in n.axes and set(graph.state) & set(n.axes):
            raise UnsupportedForm(
                op=graph.name,
                form="recurrent",
                forms="none but the reference",
                reason=f"a recurrence's input needs {n.op} over ({' '.join(n.args[0].axes)}) of another recurrence's state, "
                "which would have to be kept at every step",
            )
    taken = (*(str(n.name) for n in graph.inputs), *(o.name for o in graph.outputs))  # an earlier layer's names among them
    free = (f"early{i}" for i in itertools.count() if not any(name.endswith(f"_early{i}") for name in taken))
    names = {n: f"{n.name or n.op}_{next(free)}" for n in roots}
    before = replace(graph, name=f"{graph.name}_before", outputs=tuple(Output(names[n], n, n.axes) for n in roots), inplace={})
    before = replace(before, inputs=used_inputs(graph, before.outputs))
    b = Builder.of(graph)
    dtype = {"real": "float32", "complex": "complex64"}
    new = {n: b.input(names[n], replace(n.type, dtype=dtype.get(n.kind, n.type.dtype))) for n in roots}
    kernel = rewrite(graph, lambda node, args: new[node] if node in new else b.like(node, args))
    return before, replace(kernel, inputs=(*kernel.inputs, *new.values()))


def used_inputs(graph: Graph, outputs: Iterable[Output]) -> tuple[Node, ...]:
    """The inputs that ``outputs`` need, and for every axis that none of those has (a size, an index, a broadcast) one input that has it.

    An input whose dtype a result takes is needed too, though nothing may read it: the oldest of the inputs that a state remembers.
    """
    outs = tuple(outputs)
    used = topological(o.node for o in outs)
    dtypes = {o.like for o in outs}
    found = {n for n in graph.inputs if n in set(used) or n.name in dtypes}
    for axis in dict.fromkeys(a for axes in (*(n.axes for n in used), *(o.axes for o in outs), *map(_asked, used)) for a in axes):
        if not any(axis in n.axes for n in found):
            found.update([n for n in graph.inputs if axis in n.axes][:1])
    return tuple(n for n in graph.inputs if n in found)


def _above(roots: Iterable[Node], leaves: Container[Node]) -> list[Node]:
    """``roots`` and what they need, down to ``leaves`` but without them."""
    found: dict[Node, None] = {}
    todo = list(roots)
    while todo:
        node = todo.pop()
        if node not in found and node not in leaves:
            found[node] = None
            todo += node.args
    return list(found)


def _asked(node: Node) -> Axes:
    """The axis that a node asks the size of."""
    return (node.attrs["axis"],) if node.op in ("size", "index") else ()


def _split_tail(before: Graph | None, graph: Graph, inner: SumRule | None, shifts: bool) -> Partition:
    below = depends_on_scan(graph)
    inside: set[Node] = set()
    for node in graph.nodes():
        if all(a in inside for a in node.args) and _fits_kernel(graph, node, inner, shifts=shifts):
            inside.add(node)
    # A graph without a scan is all "below": its one kernel is pointwise.
    heavy = below if below else set(graph.nodes())

    def timed(node: Node) -> bool:
        return graph.time == "" or graph.time in node.axes

    def stores(node: Node) -> bool:
        """Whether the kernel can leave this value in memory: a value inside, or a lane or time sum, or a final, of values inside.

        Conditions and whole numbers are made again afterwards, from the numbers they depend on.
        """
        if node.kind not in ("real", "complex"):
            return False
        if node.op in ("sum", "final") and node not in inside:
            return node.args[0] in inside and timed(node.args[0])
        return node in inside and timed(node) and node.op != "broadcast"

    store: dict[Node, None] = {}
    for out in graph.outputs:
        if stores(out.node):
            store[out.node] = None
    for node in topological(o.node for o in graph.outputs if not stores(o.node)):
        if node in inside or stores(node):
            continue
        for a in node.args:
            if stores(a) and (a in heavy or (a.op == "sum" and a not in inside)):
                store[a] = None
    # A result that repeats a value over further axes is spread out afterwards.
    direct = [o for o in graph.outputs if o.node in store and set(o.axes) == set(o.node.axes)]
    late = [o for o in graph.outputs if o not in direct]
    # What the tail reads comes in full precision: a result that is stored rounded is stored a second time for it.
    read = {o.node for o in late} | {a for n in _above([o.node for o in late], store) for a in (n, *n.args)}
    wide = {o.node: o for o in reversed(direct) if not o.like}
    by_node = {n: wide.get(n) or Output(f"{n.name or n.op}_part{i}", n, n.axes) for i, n in enumerate(store) if n in read}
    kernel = replace(graph, outputs=tuple(dict.fromkeys((*direct, *by_node.values()))))
    kernel = replace(kernel, inputs=used_inputs(graph, kernel.outputs))
    if not late:
        return Partition(before, kernel, None)
    b = Builder.of(graph)
    given = {n: b.input(o.name, replace(n.type, axes=o.axes)) for n, o in by_node.items()}
    after = rewrite(graph, lambda node, args: given[node] if node in given else b.like(node, args), outputs=late)
    after = replace(after, name=f"{graph.name}_after", inputs=(*after.inputs, *given.values()), inplace={})
    return Partition(before, kernel, replace(after, inputs=used_inputs(after, after.outputs)))
