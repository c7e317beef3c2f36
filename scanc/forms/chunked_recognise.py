"""Finds the chunked form in a graph: what is recognised is written down in chunked.py. Nothing here knows an op."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import reduce

from scanc.errors import UnsupportedForm
from scanc.forms.chunked import ChunkPlan, ChunkScan, ChunkStore, Outer, Read
from scanc.forms.partition import Partition, partition, used_inputs
from scanc.ir import Axes, Builder, Graph, Node, Output, rewrite, topological


def chunk_axes(graph: Graph) -> tuple[str, str]:
    """The row axis p and the column axis n of a prepared graph's scans. Raises UnsupportedForm where they are not of this class."""
    scans = [n for n in graph.nodes() if n.op == "scan"]
    if not scans:
        _refuse(graph, "it has no recurrence")
    if len(graph.state) != 1 or any(graph.state[0] not in s.axes for s in scans):
        _refuse(graph, "a recurrence has no state axis of its own")
    found = set()
    for scan in scans:
        own = [a for a in graph.order if a in scan.axes and a not in scan.args[0].axes and a not in (graph.time, graph.state[0])]
        own = [a for a in own if a not in graph.groups.values()]
        keyed = graph.state[0] in scan.args[0].axes
        if not own or (keyed and graph.time not in scan.args[0].axes):
            axes = " ".join(scan.args[0].axes)
            _refuse(graph, f"the transition of '{scan.name or 'scan'}' varies over ({axes}): matrix products need one that rows share")
        found.add(own[-1])
    if len(found) > 1:
        _refuse(graph, "its recurrences have different row axes")
    return found.pop(), graph.state[0]


@dataclass(frozen=True)
class ChunkPartition(Partition):
    """``edges`` are graphs of results that only the first step of time, or only the last, adds to: ``(at, graph)`` with the step's index.
    They are computed from that step alone; no state is kept for them."""

    edges: tuple[tuple[int, Graph], ...] = ()


def chunk_partition(graph: Graph) -> ChunkPartition:
    """A prepared graph's partition for this form: a program has all rows p of a head, so sums over p stay inside the kernel."""
    rows, columns = chunk_axes(graph)
    inner = {rows, columns}
    # Sums are taken apart first: what meets a contraction at each step must not be left for after the kernel.
    graph = _nest_sums(graph, rows, columns)
    parts = partition(graph, lambda node: set(node.args[0].axes) - set(node.axes) <= inner and graph.time in node.axes)
    kernel, at = parts.kernel, {o.name: _only_step(parts.kernel, o.node) for o in parts.kernel.outputs}

    def some(step: int | None) -> Graph:
        outputs = tuple(o for o in kernel.outputs if at[o.name] == step)
        return replace(kernel, outputs=outputs, inputs=used_inputs(kernel, outputs))

    edges = tuple((step, some(step)) for step in (0, -1) if step in at.values())
    return ChunkPartition(parts.before, some(None) if edges else kernel, parts.after, edges)


def _only_step(graph: Graph, node: Node) -> int | None:
    """0 or -1 where a sum over time has nothing but its first step's value, or its last's:  Σ_t where(t == 0, x, 0)."""
    if node.op != "sum" or set(node.args[0].axes) - set(node.axes) != {graph.time}:
        return None
    x = _open(node.args[0])
    if x.op != "where" or not _is_zero(x.args[2]) or x.args[0].op != "eq":
        return None
    step, other = (_open(a) for a in x.args[0].args)
    if step.op != "index":
        step, other = other, step
    if step.op != "index" or step.attrs["axis"] != graph.time or any(n.op in ("scan", "shift", "conv") for n in topological([x])):
        return None
    if _is_zero(other):
        return 0
    last = other.op == "sub" and _open(other.args[0]).op == "size" and _open(other.args[1]).op == "const"
    return -1 if last and _open(other.args[0]).attrs["axis"] == graph.time and _open(other.args[1]).attrs["value"] == 1 else None


def chunk_plan(graph: Graph) -> ChunkPlan:
    """The plan of a partition's kernel. Raises UnsupportedForm with what is not of this class."""
    return _Recogniser(graph, *chunk_axes(graph)).plan()


def _refuse(graph: Graph, reason: str) -> None:
    raise UnsupportedForm(op=graph.name, form="chunked", forms="the other forms", reason=reason)


def _product(node: Node) -> list[Node]:
    """The factors of a product, broadcasts looked through."""
    if node.op == "mul":
        return [f for a in node.args for f in _product(a)]
    return _product(node.args[0]) if node.op == "broadcast" else [node]


def _open(node: Node) -> Node:
    """What is broadcast."""
    while node.op == "broadcast":
        node = node.args[0]
    return node


def _is_zero(node: Node) -> bool:
    node = _open(node)
    return node.op == "const" and node.attrs["value"] == 0


def _state_values(node: Node) -> list[Node]:
    return [f for f in _product(node) if f.op in ("scan", "prior")]


def _nest_sums(graph: Graph, rows: str, columns: str) -> Graph:
    """Sums in the order in which programs do them: over n at each step, then over p, then over time and programs.

    Σ_{h p}(λ q -> [b l g n])  to  Σ_h(Σ_p(λ q))          Σ_{p n}(λ B x)  to  Σ_p(x Σ_n(λ B))
    """
    b = Builder.of(graph)

    def contract(x: Node, axes: Axes) -> Node:
        """x summed to ``axes``, term by term where it is a sum of several states' products."""
        if x.op in ("add", "sub") and any(_state_values(a) for a in x.args) and all(a.axes == x.axes for a in x.args):
            return b.pointwise(x.op, *(contract(a, axes) for a in x.args))
        gone = [a for a in x.axes if a not in axes]
        inner = [a for a in gone if a in (rows, columns)]
        if len(inner) == 2 and len(_state_values(x)) == 1:
            factors = _product(x)
            deep = [f for f in factors if columns in f.axes]
            rest = [f for f in factors if columns not in f.axes]
            x = b.sum(reduce(lambda p, q: b.pointwise("mul", p, q), deep), (columns,))
            x = reduce(lambda p, q: b.pointwise("mul", p, q), rest, x)
            inner = [rows]
        return b.sum_to(b.sum(x, tuple(inner)) if inner else x, axes)

    def rule(node: Node, args: tuple[Node, ...]) -> Node:
        if node.op == "sum":
            return replace(contract(args[0], node.axes), name=node.name)
        if node.op == "mul":
            return _pair_first(b, args) or b.like(node, args)
        return b.like(node, args)

    return rewrite(graph, rule)


def _pair_first(b: Builder, args: tuple[Node, ...]) -> Node | None:
    """a Σ_t Σ_pn(λ prior(h))  to  Σ_t(a Σ_pn(λ prior(h))), where a does not vary over what is summed: the gradient of a fixed decay."""
    for total, a in (args, args[::-1]):
        if total.op == "sum" and total.args[0].op == "sum" and len(_state_values(total.args[0].args[0])) == 2:
            gone = {x for x in total.args[0].axes if x not in total.axes}
            if not gone & set(a.axes):
                return b.sum_to(b.pointwise("mul", total.args[0], a), total.axes)
    return None


class _Recogniser:
    def __init__(self, graph: Graph, rows: str, columns: str) -> None:
        self.graph, self.rows, self.columns = graph, rows, columns
        self.builder = Builder.of(graph)
        self.nodes = graph.nodes()
        self.keyed = any(n.op == "scan" and columns in n.args[0].axes for n in self.nodes)
        self.products: dict[tuple[Node, ...], Node] = {}
        self.users: dict[Node, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for a in node.args:
                self.users[a].append(node)

    def plan(self) -> ChunkPlan:
        graph = self.graph
        scans = [n for n in self.nodes if n.op == "scan"]
        transition, decay, reset = self._transition(scans)
        reversed_ = {bool(s.attrs["reverse"]) != bool(s.attrs["shifted"]) for s in scans}
        if len(reversed_) > 1:
            _refuse(graph, "its recurrences run in both directions of time")
        axes = {a for s in scans for a in s.axes}
        grid = tuple(a for a in graph.order if a in axes and a not in (graph.time, self.rows, self.columns))
        grid = tuple(a for a in grid if graph.groups.get(a) not in grid)
        found = {s: self._scan(s) for s in scans}
        reads = self._reads(found, transition)
        stores = tuple(self._store(o) for o in graph.outputs)
        plan = ChunkPlan(graph, self.rows, self.columns, grid, reversed_.pop(), decay, reset, tuple(found.values()), tuple(reads), stores)
        self._check(plan)
        if self.keyed:
            return plan
        gradients = self._weight_gradients(plan)
        whole = replace(plan, reads=(*plan.reads, *gradients))
        return whole if all(r.node in whole.late and r.of.input.weight in whole.early for r in gradients) else plan

    def _transition(self, scans: list[Node]) -> tuple[Node, Node, Node | None]:
        """The transition a that all scans share, and e and ``reset`` of a = where(reset, 0, exp2(e))."""
        graph = self.graph
        transition = scans[0].args[0]
        if any(s.args[0] is not transition for s in scans):
            _refuse(graph, "its recurrences have different transitions")
        if any(s.kind != "real" for s in scans):
            _refuse(graph, "its state is complex")
        if any(n.op == "scan" for s in scans for a in s.args for n in topological([a])):
            _refuse(graph, "its recurrences feed one another")
        a, reset = transition, None
        while a.op == "broadcast":
            a = a.args[0]
        if a.op == "where" and a.args[1].op == "const" and a.args[1].attrs["value"] == 0:
            reset, a = a.args[0], a.args[2]
        if a.op == "const" and a.kind == "real" and a.attrs["value"] > 0:
            return transition, self.builder.const(math.log2(a.attrs["value"])), reset
        if a.op != "exp2":
            _refuse(graph, "its transition is not written as an exponential, so its logarithm has no sum")
        return transition, a.args[0], reset

    def _scan(self, scan: Node) -> ChunkScan:
        initial = scan.args[2] if len(scan.args) == 3 else None
        if initial is not None and initial.op != "input":
            _refuse(self.graph, "its initial state is computed")
        weights, rows, columns = self._factors(scan.args[1])
        if not rows or not columns:
            _refuse(self.graph, f"the input of '{scan.name or 'scan'}' is no outer product of rows and columns")
        if self.keyed:  # no matrix of steps is left to be weighted
            weights, rows = [], [*weights, *rows]
        return ChunkScan(scan, bool(scan.attrs["shifted"]), Outer(self._times(weights), self._one(rows), self._one(columns)), initial)

    def _times(self, factors: list[Node]) -> Node | None:
        """The product: the same node for the same factors."""
        key = tuple(factors)
        if factors and key not in self.products:
            self.products[key] = reduce(lambda x, y: self.builder.pointwise("mul", x, y), factors)
        return self.products[key] if factors else None

    def _one(self, factors: list[Node]) -> Node:
        product = self._times(factors)
        assert product is not None
        return product

    def _factors(self, node: Node) -> tuple[list[Node], list[Node], list[Node]]:
        """Factors over neither axis, over p, over n; states left out. A product of one axis is opened only for weights inside it."""
        both = {self.rows, self.columns}
        weights: list[Node] = []
        of: dict[str, list[Node]] = {self.rows: [], self.columns: []}
        todo = [node]
        while todo:
            x = todo.pop()
            here = both & set(x.axes)
            if x.op in ("scan", "prior"):
                continue
            if x.op == "broadcast":
                todo.append(x.args[0])
            elif not here:
                weights.append(x)
            elif x.op == "mul" and (len(here) == 2 or any(not both & set(f.axes) for f in _product(x))):
                todo += reversed(x.args)
            elif x.op == "neg" and len(here) == 2:
                weights.append(self.builder.const(-1.0))
                todo.append(x.args[0])
            elif x.op == "where" and len(here) == 2 and _is_zero(x.args[2]) and not both & set(x.args[0].axes):
                weights.append(self.builder.pointwise("where", x.args[0], self.builder.const(1.0), self.builder.const(0.0)))
                todo.append(x.args[1])
            elif len(here) == 2:
                _refuse(self.graph, f"'{x.name or x.op}' over rows and columns is no product of the two")
            else:
                of[here.pop()].append(x)
        return weights, of[self.rows], of[self.columns]

    # -- reads ----------------------------------------------------------------------------------------------------------------

    def _reads(self, scans: dict[Node, ChunkScan], transition: Node) -> list[Read]:
        reads = []
        for node in self.nodes:
            states = _state_values(node.args[0]) if node.op == "sum" else []
            if not states:
                continue
            gone = {a for a in node.args[0].axes if a not in node.axes}
            weights, rows, columns = self._factors(node.args[0])
            both = {self.rows} if self.keyed else {self.rows, self.columns}
            if len(states) == 2 and gone == both and not rows and not columns:
                reads += self._decay(node, states, scans, transition, weights)
                continue
            scan, before = self._read_state(states, scans)
            if scan is not None and gone == {self.columns} and columns and not rows:
                reads.append(Read(node, "columns", scan, self._one(columns), self._times(weights), before=before))
            elif scan is not None and gone == {self.rows} and rows and not columns:
                if self.keyed:
                    weights, rows = [], [*weights, *rows]
                reads.append(Read(node, "rows", scan, self._one(rows), self._times(weights), before=before))
            else:
                _refuse(self.graph, f"'{node.name or 'a sum'}' contracts a state in a way that is no matrix product")
        return reads

    def _read_state(self, states: list[Node], scans: dict[Node, ChunkScan]) -> tuple[ChunkScan | None, bool]:
        """The scan whose state a contraction reads, and whether before its step; None where it is no one scan's."""
        if len(states) != 1:
            return None, False
        if states[0].op == "scan":
            return scans[states[0]], False
        scan = scans[states[0].args[0]]
        return (scan, True) if self.keyed and not scan.back else (None, False)

    def _decay(self, node: Node, states: list[Node], scans: dict[Node, ChunkScan], transition: Node, weights: list[Node]) -> list[Read]:
        """The reads  a Σ(λ prior(h)), found where the sum meets the transition that it is to be multiplied by."""
        values, priors = [s for s in states if s.op == "scan"], [s for s in states if s.op == "prior"]
        if len(values) != 1 or weights:
            _refuse(self.graph, "it contracts two states at the same step")
        one, other = scans[values[0]], scans[priors[0].args[0]]
        if not one.back or other.back:
            _refuse(self.graph, "it contracts two states of one direction")
        open_ = transition  # the transition without its resets
        while open_.op in ("broadcast", "where"):
            open_ = open_.args[-1]
        found, todo = [], [node]
        while todo:
            x = todo.pop()
            for user in self.users[x]:
                if user.op == "where" and user.args[1].op == "const" and user.args[1].attrs["value"] == 0 and user.args[2] is x:
                    todo.append(user)
                elif user.op == "mul" and any(a is open_ or a is transition for a in user.args):
                    found.append(Read(user, "decay", other, against=one))
                else:
                    _refuse(self.graph, "the contraction of two states is not met by the transition")
        if any(o.node is node for o in self.graph.outputs):
            _refuse(self.graph, "the contraction of two states is a result of its own")
        return found

    def _weight_gradients(self, plan: ChunkPlan) -> list[Read]:
        """The sums  Σ_p(u Σ_n(v λ))  of inputs' own factors with their adjoint: sums over a chunk's pairs that a decay read needs anyway.

        Summed from the columns read, they would have its rounding at every step, which a sum over time need not cancel.
        """
        decays = {r.against: r.of for r in plan.reads if r.kind == "decay" and r.against is not None and r.against.input.weight is None}
        columns = {r.node: r for r in plan.reads if r.kind == "columns" and r.of in decays and r.weight is None}
        found = []
        for node in plan.body([s.value for s in plan.stores if not s.final]):
            gone = set(node.args[0].axes) - set(node.axes) if node.op == "sum" and node not in plan.leaves else set()
            factors = _product(node.args[0]) if gone == {self.rows} else []
            read = next((columns[f] for f in factors if f in columns), None)
            if read is None:
                continue
            scan = decays[read.of]
            if len(factors) == 2 and scan.input.rows in factors and read.factor is scan.input.columns:
                found.append(Read(node, "weight", scan, against=read.of))
        return found

    def _store(self, output: Output) -> ChunkStore:
        node = output.node
        if node.op == "final":
            return ChunkStore(output, node.args[0], (), final=True)
        if node.op == "sum":
            gone = tuple(a for a in node.args[0].axes if a not in node.axes)
            if not set(gone) <= {self.rows, self.columns}:
                return ChunkStore(output, node.args[0], gone)
        return ChunkStore(output, node, ())

    def _check(self, plan: ChunkPlan) -> None:
        """No value but a scan's own may have rows and columns; all others must be over axes that a program knows its place on."""
        known = {plan.time, plan.rows, plan.columns, *plan.grid}
        roots = [s.value for s in plan.stores if not s.final]
        roots += [f for s in plan.scans for f in (s.input.rows, s.input.columns, s.input.weight) if f is not None]
        roots += [f for r in plan.reads for f in (r.factor, r.weight) if f is not None]
        roots += [n for n in (plan.decay, plan.reset) if n is not None]
        for node in plan.body(roots):
            if node.op in ("scan", "prior", "final") or {plan.rows, plan.columns} <= set(node.axes):
                _refuse(plan.graph, f"'{node.name or node.op}' needs whole states")
            if any(a not in known and plan.graph.groups.get(a) not in known for a in node.axes):
                _refuse(plan.graph, f"'{node.name or node.op}' has an axis that is none of the recurrence's")
        for node in plan.body([f for s in plan.scans for f in (s.input.rows, s.input.columns)] + [plan.decay]):
            if node in plan.after:
                _refuse(plan.graph, "a recurrence needs what is read from it")
        if self.keyed:
            self._check_keyed(plan)
            return
        if any(r.kind == "decay" and r.node not in plan.late for r in plan.reads):
            _refuse(plan.graph, "a value over rows or columns needs the gradient of a transition")
        for store in plan.stores:
            if plan.comes_late(store) and plan.head in store.gone and any(a in plan.graph.groups for a in store.output.axes):
                _refuse(plan.graph, f"result '{store.name}' is summed over the heads of each group")
            if not store.final and any(a not in store.value.axes for a in (plan.time, *plan.grid)):
                _refuse(plan.graph, f"result '{store.name}' is the same for several programs")

    def _check_keyed(self, plan: ChunkPlan) -> None:
        """What kernels of decays a key lack beyond: there is one pair of column factors and one of row factors."""
        factors = {"earlier columns": plan.earlier, "later columns": plan.later,
                   "earlier rows": plan.earlier_rows, "later rows": plan.later_rows}
        factors |= {"later rows of reads before their step": plan.later_rows_before}
        for word, found in factors.items():
            if len(found) > 1:
                _refuse(plan.graph, f"it has several {word}")
        if plan.before and not all(r.before for r in plan.reads if r.kind == "columns"):
            _refuse(plan.graph, "it reads states before and after their steps")
        if plan.before and any(s.back for s in plan.scans):
            _refuse(plan.graph, "its adjoint reads states before their steps over columns")
        ends = {s.value for s in plan.stores if not s.final}
        for value in ends:
            kinds = {r.kind == "columns" for r in plan.reads if r.node in plan.body([value])}
            if len(kinds) > 1:
                _refuse(plan.graph, "a result needs reads over rows and over columns")
            if plan.rows in value.axes and kinds == {False} or plan.columns in value.axes and kinds == {True}:
                _refuse(plan.graph, "a value over rows is made of one over columns, or the other way round")
        for store in plan.stores:
            if not store.final and any(a not in store.value.axes for a in (plan.time, *plan.grid)):
                _refuse(plan.graph, f"result '{store.name}' is the same for several programs")
