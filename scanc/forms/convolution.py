"""The form convolution, recognised: which values of a graph are convolved over time, with which kernels, and what becomes of it.

    y[b, d, t] = Σ_j k[d, j] x[b, d, t-j]               conv                        a product of the spectra of x and k
    y[b, d, t] = Σ_j k[d, j] x[b, d, t+j]               conv, reverse               … of x and the conjugate of k's
    dk[d, j]   = Σ_b Σ_t g[b, d, t] x[b, d, t-j]        conv_kernel_grad, summed    Σ_b of g and the conjugate of x's

A graph without scans that convolves over time, with kernels as long as time or of a few taps, is of this form. Each value that is
convolved is a *signal*, transformed once whatever is made of it; convolutions of one signal that are added share the way back. What comes
before a signal and after a convolution is pointwise and printed into the kernel: gates cost no pass over memory of their own.

Lane axes that kernels have are *channels*; the rest are *rows*, which share their channel's kernel and over which its gradient sums.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NoReturn

from scanc.errors import UnsupportedForm
from scanc.forms.partition import used_inputs
from scanc.ir import Axes, Builder, Graph, Node, Output, is_pointwise, rewrite, topological

LEAVES = ("input", "const", "index", "size")


@dataclass(frozen=True)
class Term:
    """One product of spectra: of the plan's signal with a kernel (an input), or its conjugate."""

    signal: Node
    kernel: Node
    reverse: bool


@dataclass(frozen=True)
class Product:
    """A value over time: the sum of ``terms``, all of one signal."""

    node: Node
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class KernelGradient:
    """A kernel's gradient Σ_t cotangent_t signal_{t-j}, summed over rows, for the lags j of ``tap``. For a reverse kernel the two have
    changed places."""

    output: Output
    signal: Node
    cotangent: Node
    tap: str


@dataclass(frozen=True)
class ConvolutionPlan:
    """What the kernels of this form compute.

    ``graph``      its inputs are the kernels' tensors, its outputs ``stores`` (pointwise in products and inputs) and gradients'
    ``before``     what signals and kernels are made of and no kernel of this plan computes; of this form again where it convolves
    ``after``      what torch makes of the results: sums over time
    """

    graph: Graph
    before: Graph | None
    after: Graph | None
    channels: Axes
    rows: Axes
    signals: tuple[Node, ...]
    products: tuple[Product, ...]
    gradients: tuple[KernelGradient, ...]
    stores: tuple[Output, ...]
    taps: Mapping[Node, str] = field(default_factory=dict, compare=False)

    @property
    def kernels(self) -> tuple[Node, ...]:
        return tuple(dict.fromkeys(t.kernel for p in self.products for t in p.terms))

    def tap(self, kernel: Node) -> str:
        """The axis of a kernel's lags: time, or one of its own where it is shorter."""
        return self.graph.time if self.graph.time in kernel.axes else self.taps[kernel]

    @property
    def tap_axes(self) -> tuple[str, ...]:
        """The lags' axes of kernels and of kernels' gradients."""
        return tuple(dict.fromkeys([*(self.tap(k) for k in self.kernels), *(g.tap for g in self.gradients)]))


def is_convolution(graph: Graph) -> bool:
    """Whether the graph's work over time is convolution alone: then torch's FFT can do it, whatever stands around."""
    found = {n.op for n in graph.nodes()}
    return bool(graph.time) and "scan" not in found and any(_over_time(graph, n) for n in graph.nodes())


def convolution_plan(graph: Graph) -> ConvolutionPlan:
    """The plan of a prepared graph. Raises UnsupportedForm with what does not fit."""
    if not is_convolution(graph):
        _refuse(graph, "it has no convolution over time, or a recurrence beside it")
    for node in graph.nodes():
        if _over_time(graph, node) and node.kind != "real":
            _refuse(graph, f"'{node.name or node.op}' is complex")
    before, graph = _kernels_first(graph)
    return _Recognition(graph, before).plan()


def _over_time(graph: Graph, node: Node) -> bool:
    return node.op in ("conv", "conv_kernel_grad") and node.attrs["axis"] == graph.time


def _refuse(graph: Graph, reason: str) -> NoReturn:
    raise UnsupportedForm(op=graph.name, form="convolution in kernels", forms="convolution by torch's FFT", reason=reason)


def _kernels_first(graph: Graph) -> tuple[Graph | None, Graph]:
    """Computed convolution kernels, and whatever a signal needs that is not pointwise, made inputs by a graph of their own.

    That graph may convolve too: silu(conv(x, k)) has a backward that makes its signal of conv(x, k).
    """
    convs = [n for n in graph.nodes() if _over_time(graph, n)]
    early: dict[Node, None] = {}
    todo: list[Node] = []
    seen: set[Node] = set()
    for n in convs:
        signals = n.args if n.op == "conv_kernel_grad" else n.args[:1]
        early |= dict.fromkeys(a for a in n.args if a not in signals and a.op != "input")
        todo += signals
    while todo:
        n = todo.pop()
        if n in seen:
            continue
        seen.add(n)
        if is_pointwise(n) or n.op in (*LEAVES, "broadcast"):
            todo += n.args
        else:
            early[n] = None
    if not early:
        return None, graph
    taken = {*(str(n.name) for n in graph.inputs), *(o.name for o in graph.outputs)}
    free = (name for i in itertools.count() if (name := f"early{i}") not in taken)
    names = {n: next(free) for n in early}
    outputs = tuple(Output(name, n, n.axes) for n, name in names.items())
    before = replace(graph, name=f"{graph.name}_before", inputs=used_inputs(graph, outputs), outputs=outputs, inplace={})
    b = Builder.of(graph)
    new = {n: b.input(name, replace(n.type, dtype={"real": "float32"}.get(n.kind, n.type.dtype))) for n, name in names.items()}
    kernel = rewrite(graph, lambda node, args: new[node] if node in new else b.like(node, args))
    return before, replace(kernel, inputs=(*kernel.inputs, *new.values()))


def _gradient(output: Output, node: Node) -> KernelGradient:
    x, g = reversed(node.args) if node.attrs["reverse"] else node.args
    return KernelGradient(output, x, g, node.attrs["tap"])


class _Recognition:
    def __init__(self, graph: Graph, before: Graph | None) -> None:
        self.graph, self.before = graph, before
        self.nodes = graph.nodes()
        self.users = Counter(a for n in self.nodes for a in n.args)
        self.users.update(o.node for o in graph.outputs)
        self.sums = self._sums_of_terms()
        self.inside = self._inside()

    def plan(self) -> ConvolutionPlan:
        graph = self.graph
        gradients = {n: self._gradient_store(n) for n in self.nodes if n.op == "conv_kernel_grad" and _over_time(graph, n)}
        outputs, after = self._tail(set(gradients.values()))
        by_node = {o.node: o for o in outputs}
        made = tuple(_gradient(by_node[store], n) for n, store in gradients.items() if store in by_node)
        stores = tuple(o for o in outputs if o.node in self.inside)
        needed = set(topological(o.node for o in stores))
        products = tuple(Product(n, terms) for n, terms in self._roots().items() if n in needed)
        signals = tuple(dict.fromkeys([t.signal for p in products for t in p.terms] + [s for g in made for s in (g.signal, g.cotangent)]))
        kernels = replace(graph, outputs=outputs, inplace={})
        kernels = replace(kernels, inputs=used_inputs(graph, outputs))
        lanes = graph.canonical(a for s in signals for a in s.axes if a != graph.time)
        owned = {a for p in products for t in p.terms for a in t.kernel.axes} | {a for g in made for a in g.output.node.axes}
        owned = {graph.groups.get(a, a) for a in owned}
        if any(a in graph.groups for s in signals for a in s.axes):
            _refuse(graph, "a signal has a group axis")
        channels = tuple(a for a in lanes if a in owned)
        return ConvolutionPlan(kernels, self.before, after, channels, tuple(a for a in lanes if a not in owned), signals, products, made,
                               stores, {n.args[1]: n.attrs["tap"] for n in self.nodes if n.op == "conv" and _over_time(graph, n)})

    # -- values over time -----------------------------------------------------------------------------------------------------

    def _sums_of_terms(self) -> dict[Node, tuple[Term, ...]]:
        """Convolutions, and sums of convolutions of one signal that nothing else reads."""
        found: dict[Node, tuple[Term, ...]] = {}
        for node in self.nodes:
            if node.op == "conv" and _over_time(self.graph, node):
                found[node] = (Term(node.args[0], node.args[1], bool(node.attrs["reverse"])),)
            elif node.op == "add" and all(a in found and self.users[a] == 1 for a in node.args) and node.args[0] is not node.args[1]:
                terms = (*found[node.args[0]], *found[node.args[1]])
                if len({t.signal for t in terms}) == 1:
                    found[node] = terms
        return found

    def _roots(self) -> dict[Node, tuple[Term, ...]]:
        """The largest of those sums."""
        merged = {a for n in self.sums if n.op == "add" for a in n.args}
        return {n: terms for n, terms in self.sums.items() if n not in merged}

    def _inside(self) -> set[Node]:
        """What a kernel computes: pointwise values of its inputs and of convolutions."""
        found: set[Node] = set()
        for node in self.nodes:
            each = is_pointwise(node) or node.op == "broadcast"
            if node in self.sums or node.op in LEAVES or (each and all(a in found for a in node.args)):
                found.add(node)
        return found

    def _gradient_store(self, node: Node) -> Node:
        """The value that leaves the kernel: the gradient itself, or the sum over rows that alone reads it."""
        users = [n for n in self.nodes if node in n.args]
        if len(users) == 1 and users[0].op == "sum" and self.users[node] == 1 and node.attrs["tap"] in users[0].axes:
            return users[0]
        return node

    def _tail(self, gradients: set[Node]) -> tuple[tuple[Output, ...], Graph | None]:
        """(what the kernels store, what torch makes of it)."""
        graph = self.graph
        heavy: set[Node] = set()
        for node in self.nodes:
            if node in self.sums or node in gradients or any(a in heavy for a in node.args):
                heavy.add(node)

        def stored(node: Node) -> bool:
            return node in gradients or (node in self.inside and node in heavy and graph.time in node.axes)

        direct = [o for o in graph.outputs if stored(o.node) and set(o.axes) == set(o.node.axes)]
        late = [o for o in graph.outputs if o not in direct]
        parts: dict[Node, None] = {}
        todo, seen = [o.node for o in late], set()
        while todo:
            node = todo.pop()
            if stored(node):
                parts[node] = None
            elif node not in seen:
                seen.add(node)
                todo += node.args
        if not late:
            return tuple(direct), None
        by_node = {n: Output(f"{n.name or n.op}_part{i}", n, n.axes) for i, n in enumerate(parts)}
        b = Builder.of(graph)
        given = {n: b.input(o.name, replace(n.type, axes=o.axes)) for n, o in by_node.items()}
        after = rewrite(graph, lambda node, args: given[node] if node in given else b.like(node, args), outputs=late)
        after = replace(after, name=f"{graph.name}_after", inputs=(*after.inputs, *given.values()), inplace={})
        # A gradient is stored once: where torch works on it too, from there.
        kept = [o for o in direct if o.node not in by_node]
        twice = [o for o in direct if o.node in by_node]
        if twice:
            after = replace(after, outputs=(*after.outputs, *(replace(o, node=given[o.node]) for o in twice)))
        return (*kept, *by_node.values()), replace(after, inputs=used_inputs(after, after.outputs))


def made_of(roots: list[Node], stop: set[Node]) -> set[Node]:
    """The roots and what they are made of, down to ``stop``, whose own makings are not looked at."""
    found: set[Node] = set()
    todo = list(roots)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += [] if node in stop else node.args
    return found


def describe_convolution(plan: ConvolutionPlan) -> str:
    """The plan as an outline of what is transformed, multiplied and stored."""
    def word(node: Node) -> str:
        return node.name or node.op

    lines = [f"programs: {' '.join(plan.channels) or 'one'} × some of {' '.join(plan.rows) or '(one row)'}"]
    lines += [f"transform {word(s)}[{' '.join(s.axes)}]" for s in plan.signals]
    for p in plan.products:
        terms = [f"{word(t.signal)} with {'conj ' if t.reverse else ''}{word(t.kernel)}" for t in p.terms]
        lines.append(f"multiply {' + '.join(terms)}, back to steps: {word(p.node)}[{' '.join(p.node.axes)}]")
    lines += [f"sum over {' '.join(plan.rows) or '(one row)'}: {word(g.cotangent)} with conj {word(g.signal)}, back to steps: "
              f"{g.output.name}[{' '.join(g.output.axes)}]" for g in plan.gradients]
    lines += [f"store {o.name}[{' '.join(o.axes)}]" for o in plan.stores]
    return "\n".join(lines)


__all__ = ["ConvolutionPlan", "KernelGradient", "Product", "Term", "convolution_plan", "describe_convolution", "is_convolution",
           "made_of"]
