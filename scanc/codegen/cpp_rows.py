"""The CPU backend, printing the form stencil: a step's whole state axis at once, LANES neighbours of it in a vector, rows one by one.

What is summed over that axis and used over it again (a norm's mean) needs the axis walked once for the sum and once more for its use:

    for t:
        for n0:  v = x silu(z);  squares += v v                     a pass for each sum that another needs
        scale = rsqrt(squares / N + eps)
        for n0:  y = v scale weight                                 the last pass, which stores

A pass makes again what an earlier one made, since a row stays in the nearest cache; of what took elementary functions it keeps a row.
Sums over time of values over the axis (the gradient of a weight) are rows too, each thread's own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from scanc.codegen.cpp import CppPrinter
from scanc.codegen.cpp_dialect import C_TYPES
from scanc.codegen.emit import Body, Source
from scanc.codegen.layout import KernelSource, Mode
from scanc.errors import ScheduleError, UnsupportedForm
from scanc.forms.plan import Plan, Region, Store
from scanc.ir import Node, topological
from scanc.schedule import StencilSchedule

LANES = 16  # of a vector
COSTLY = frozenset({"exp", "exp2", "expm1", "log2", "log1p", "tanh", "sin", "cos", "erf", "sqrt", "rsqrt", "reciprocal", "div"})


def supported(plan: Plan) -> str:
    """Why a plan has no such kernel; "" where it has one."""
    if plan.scans or not plan.state or not plan.time:
        return "it walks rows: values over time and one contracted axis, none carried from step to step"
    if any(n.op == "shift" for n in plan.main_body):
        return "it looks at no other step"
    if any(n.kind == "complex" for n in plan.graph.nodes()):
        return "its values are real"
    return ""


def generate(plan: Plan, schedule: StencilSchedule, state: int, mode: Mode, title: str) -> KernelSource:
    """The source of one kernel. ``state`` is the size of the contracted axis. Raises ScheduleError, UnsupportedForm."""
    reason = supported(plan)
    if reason:
        raise UnsupportedForm(op=plan.graph.name, form="stencil", forms="recurrent", reason=reason)
    if schedule.lanes != 1:
        raise ScheduleError(field="lanes", value=schedule.lanes, limit="a row of the C++ backend is one lane's")
    printer = _Printer(plan, schedule, state, mode, title)
    return printer.source("c++", printer.print())


class _Printer(CppPrinter):
    across = "1"  # a block has one lane; vectors are over the contracted axis

    def __init__(self, plan: Plan, schedule: StencilSchedule, state: int, mode: Mode, title: str) -> None:
        super().__init__(plan, schedule, state, mode, title)
        for word in ("n0", "count"):
            self.names.fresh(word)
        self.lanes, self.walk, self.tile = LANES, schedule.walk, 1
        self._rows: dict[Node | Store, str] = {}
        self.depth = self._depths()
        self.sums = [n for n in plan.main_body if n.op == "sum" and plan.timed(n)]
        self.keeps: dict[Node, int] = {}  # what is kept as a row, and the pass that makes it
        self.passes = [self._over_axis(self._roots(p)) for p in range(self._last + 1)]
        self.keeps = self._worth_keeping()
        self.passes = [self._over_axis(self._roots(p), [n for n, made in self.keeps.items() if made < p]) for p in range(self._last + 1)]

    def laned(self, node: Node) -> bool:
        """Whether a value is a vector: whether it has the contracted axis."""
        return self.plan.has(node, self.plan.state)

    # -- passes -----------------------------------------------------------------------------------------------------------------

    def _depths(self) -> dict[Node, int]:
        """Of each value, the sums over the axis that are under it one above another: the pass in which it can be made."""
        depth: dict[Node, int] = {}
        for node in self.plan.main_body:
            contracts = node.op == "sum" and self.plan.timed(node)
            depth[node] = max((depth[a] for a in node.args), default=0) + contracts
        return depth

    @property
    def _last(self) -> int:
        return max((self.depth[s.value] for s in self.plan.stores), default=0)

    def _roots(self, number: int) -> list[Node]:
        """What a pass is for: operands of its sums; of the last one, results."""
        roots = [s.args[0] for s in self.sums if self.depth[s] == number + 1]
        return [*roots, *(s.value for s in self.plan.stores if self.laned(s.value))] if number == self._last else roots

    def _over_axis(self, roots: Iterable[Node], leaves: Collection[Node] = ()) -> list[Node]:
        """The values over the axis that ``roots`` need, in order; ``leaves`` are there already."""
        stop, found = set(leaves), set[Node]()
        todo = [n for n in roots if self.laned(n)]
        while todo:
            node = todo.pop()
            if node not in found:
                found.add(node)
                todo += [] if node in stop else [a for a in node.args if self.laned(a)]
        return [n for n in self.plan.main_body if n in found]

    def _worth_keeping(self) -> dict[Node, int]:
        """Values of elementary functions that a later pass reads for something it makes itself, and the pass that makes them."""
        first: dict[Node, int] = {}
        for number, nodes in enumerate(self.passes):
            for node in nodes:
                first.setdefault(node, number)
        kept: dict[Node, int] = {}
        for number, nodes in enumerate(self.passes):
            new = [n for n in nodes if first[n] == number]
            read = {a for n in new for a in n.args} | {n for n in self._roots(number) if first.get(n, number) < number}
            for node in self.plan.main_body:
                if node in read and first.get(node, number) < number and any(n.op in COSTLY and self.laned(n) for n in topological([node])):
                    kept[node] = first[node]
        return kept

    # -- printing ---------------------------------------------------------------------------------------------------------------

    def _setup(self, out: Source) -> None:
        """Values that no step changes, and sums over time."""
        everything = self.plan.main_body
        lane = [n for n in everything if self.plan.region[n] == Region.LANE or n.op == "const"]
        out(*Body(self.dialect, self.names, self.known, self.declare).run(lane, self._leaf(self.known)))
        for store in (s for s in self.plan.stores if s.kind == "sum"):
            if self.laned(store.value):
                name = self._row(store, store.name)
                out(f"for (int k = 0; k < (N + LANES - 1) / LANES; ++k) {name}[k] = vf{{}};")
            else:
                out(f"float {self.sum_names(store)[0]} = 0.0f;")

    def _row(self, of: Node | Store, word: str) -> str:
        """An array over the axis, for a value or a sum over time."""
        if of not in self._rows:
            self._rows[of] = self.scratch(self.names.fresh(f"{word}_row"), "vf", "(N + LANES - 1) / LANES")
        return self._rows[of]

    def _leaf(self, known: dict[Node, tuple[str, ...]]) -> Callable[[Node], list[str] | None]:
        """Prints what is not computed: inputs from memory, indices, sizes."""

        def special(node: Node) -> list[str] | None:
            if node.op == "size":
                known[node] = (f"int32_t(size_{node.attrs['axis']})",)
                return []
            if node.op == "index":
                known[node] = (self._position(node.attrs["axis"]),)
                return []
            if node.op != "input":
                return None
            b, name = self.of_input[node], self.names.of(node)
            at = self.pointer(b, 0, time="t", state="n0")
            value = f"load_lanes({at}, {b.name}_{self.plan.state}, count)" if self.laned(node) else f"widen(*({at}))"
            known[node] = (name,)
            return [self.declare(node, name, value)]

        return special

    def _position(self, axis: str) -> str:
        if axis == self.plan.state:
            return "(splat(int32_t(n0)) + iota())"
        return {self.plan.lane: "int32_t(first)", self.plan.time: "int32_t(t)"}.get(axis) or f"int32_t({self.program_index(axis)})"

    def _one_walk(self, out: Source) -> None:
        plan, known = self.plan, dict(self.known)
        flat = [n for n in plan.main_body if not self.laned(n) and n.op != "sum" and n not in known]
        lanes = {s: self.names.fresh(f"{self.names.of(s)}_of_lanes") for s in self.sums}
        out.open("for (index_t t = t0; t < t1; ++t) {")
        for number, nodes in enumerate(self.passes):
            ready = [n for n in flat if self.depth[n] == number]
            out(*Body(self.dialect, self.names, known, self.declare).run(ready, self._leaf(known)))
            sums = [s for s in self.sums if self.depth[s] == number + 1]
            for s in sums:
                out(f"vf {lanes[s]}{{}};")
            self._pass(out, number, nodes, dict(known), {s: lanes[s] for s in sums})
            for s in sums:
                out(f"const float {self.names.of(s)} = sum_lanes({lanes[s]});")
                known[s] = (self.names.of(s),)
        for store in (s for s in plan.stores if not self.laned(s.value)):
            (value,) = known[store.value]
            if store.kind == "sum":
                out(f"{self.sum_names(store)[0]} += {value};")
            else:
                self._write(out, store, value, "t")
        out.close()

    def _pass(self, out: Source, number: int, nodes: list[Node], known: dict[Node, tuple[str, ...]], sums: dict[Node, str]) -> None:
        for node, made in self.keeps.items():
            if made < number:
                known[node] = (f"{self._row(node, self.names.of(node))}[n0 / LANES]",)
        kept = [n for n in nodes if self.keeps.get(n) == number]
        self._open_axis(out)
        body = Body(self.dialect, self.names, known, self.declare, keep=frozenset(kept))
        out(*body.run(nodes, self._leaf(known)))
        out(*(f"{self._row(n, self.names.of(n))}[n0 / LANES] = {known[n][0]};" for n in kept))
        for s, total in sums.items():
            value = f"up({known[s.args[0]][0]})"
            out(f"{total} += {f'mask_lanes({value}, count)' if self.N % LANES else value};")
        for store in (s for s in self.plan.stores if number == self._last and self.laned(s.value)):
            (value,) = known[store.value]
            if store.kind == "sum":
                out(f"{self._row(store, store.name)}[n0 / LANES] += {value};")
            else:
                self._write(out, store, value, "t")
        out.close()

    def _open_axis(self, out: Source) -> None:
        out.open("for (int n0 = 0; n0 < N; n0 += LANES) {")
        out("const int count = int(smaller(LANES, N - n0));")

    def _write(self, out: Source, store: Store, value: str, time: str) -> None:
        """A result to memory; what is summed over lanes, or its share of a slot of them, is added to those walked before."""
        b, vector = self.of_store[store], self.laned(store.value)
        owner = self.owner(store.value, store.axes)
        at, stride = self.pointer(b, 0, time=time, state="n0"), f"{b.name}_{self.plan.state}"
        if store.lane and self.walk > 1:
            before = f"load_lanes({at}, {stride}, count)" if vector else f"*({at})"
            value = f"{value} + (block > slot * {self.walk} ? {before} : {'vf{}' if vector else '0.0f'})"
        guard = f"if ({owner}) " if owner and not store.lane else ""
        out(f"{guard}store_lanes({at}, {stride}, count, {value});" if vector else f"{guard}*({at}) = {C_TYPES[b.dtype]}({value});")

    def _finish(self, out: Source) -> None:
        for store in (s for s in self.plan.stores if s.kind == "sum"):
            if self.laned(store.value):
                self._open_axis(out)
                self._write(out, store, f"{self._row(store, store.name)}[n0 / LANES]", "")
                out.close()
            else:
                self._write(out, store, self.sum_names(store)[0], "")
