"""One step of a C++ kernel: reading tiles, the five regions in order, the recurrence, and where results go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from scanc.codegen.common import KernelPrinter
from scanc.codegen.cpp_dialect import C_TYPES, CppDialect, taken_names
from scanc.codegen.emit import Body, Source
from scanc.codegen.layout import Mode
from scanc.forms.plan import Plan, Region, Store
from scanc.ir import LEAVES, Node
from scanc.schedule import RecurrentSchedule, StencilSchedule, StepSchedule

# The states of a lane are walked by an unrolled loop up to so many; with more, each is read and written once in so many steps.
UNROLLED = 32
AT_ONCE = 4


class StepPrinter(KernelPrinter):
    """What happens at one time step of one block of lanes; loops over time are its subclasses'."""

    def __init__(
        self, plan: Plan, schedule: RecurrentSchedule | StencilSchedule | StepSchedule, state: int, mode: Mode, title: str
    ) -> None:
        super().__init__(plan, schedule, state, mode, title)
        self.dialect = CppDialect()
        strides = (s for b in self.buffers for s in self.stride_names(b))
        for word in sorted({*taken_names(), *strides, *(f"{w}_{a}" for a in plan.graph.order for w in ("i", "size"))}):
            self.names.fresh(word)
        self.out = Source()
        self.lanes = schedule.lanes
        self.walk = schedule.walk if isinstance(schedule, RecurrentSchedule) else 1
        self.tile = 1
        if isinstance(schedule, RecurrentSchedule) and not self.step:
            self.tile = schedule.history if plan.recomputed else schedule.tile
        self.arena: list[tuple[str, str, str]] = []  # (name, C type, element count)

    # -- small helpers --------------------------------------------------------------------------------------------------------

    def type_of(self, node: Node, kind: str | None = None) -> str:
        real = (kind or node.kind) in ("real", "complex")
        return ("vf" if real else "vi") if self.laned(node) else ("float" if real else "int32_t")

    def declare(self, node: Node, name: str, expression: str) -> str:
        kind = "real" if node.kind == "complex" else node.kind
        return f"const {self.type_of(node, kind)} {name} = {self.lift(node, expression)};"

    def lift(self, node: Node, expression: str) -> str:
        # A literal or a lane-free name may stand for a value over lanes; of a complex value, one part may be such.
        parts = any(x.kind == "complex" for x in (node, *node.args))
        return f"up({expression})" if self.laned(node) and (parts or not any(self.laned(a) for a in node.args)) else expression

    def scratch(self, name: str, ctype: str, count: str) -> str:
        if (name, ctype, count) not in self.arena:
            self.arena.append((name, ctype, count))
        return name

    def _load(self, node: Node, declare: object = None, **where: str) -> list[str]:
        """Reads a value that no staging serves straight from memory."""
        make = declare if callable(declare) else self.declare
        if node.op == "size":
            self.known[node] = (f"int32_t(size_{node.attrs['axis']})",)
            return []
        if node.op == "index":
            self.known[node] = (self._position(node.attrs["axis"]),)
            return []
        b = self.of_input[node]
        parts = self.names.parts(node)
        lines = []
        for k, name in enumerate(parts):
            at = self.pointer(b, k, **where)
            stride = f"{b.name}_{self.plan.lane}"
            lines.append(make(node, name, f"load_lanes({at}, {stride}, lanes)" if self.laned(node) else f"widen(*({at}))"))
        self.known[node] = parts
        return lines

    def _position(self, axis: str) -> str:
        if axis == self.plan.lane:
            return "(splat(int32_t(first)) + iota())"
        if axis == self.plan.state:
            return "int32_t(n)"
        if axis == self.plan.time:
            return "int32_t(t)"
        return f"int32_t({self.program_index(axis)})"

    def _carry_names(self, scan: Node) -> tuple[str, ...]:
        return self.names.parts(scan, "_carry[n]" if self.stated(scan) else "_carry")

    def _tile_of(self, node: Node, part: str) -> tuple[str, str]:
        """(tile's name, index of step i), allocating the tile."""
        real = node.kind in ("real", "complex")
        ctype = ("vf" if real else "vi") if self.laned(node) else ("float" if real else "int32_t")
        stated = self.stated(node)
        self.scratch(f"{part}_tile", ctype, "TILE * N" if stated else "TILE")
        return f"{part}_tile", "[i * N + n]" if stated else "[i]"

    def _store_tile(self, store: Store, part: int) -> tuple[str, str]:
        suffix = ("_re", "_im")[part] if store.value.kind == "complex" else ""
        stated = self.stated(store.value)
        lanes = self.laned(store.value) and not store.lane
        name = f"{store.name}{suffix}_out"
        self.scratch(name, "vf" if lanes else "float", "TILE * N" if stated else "TILE")
        return name, "[i * N + n]" if stated else "[i]"

    # -- one step -------------------------------------------------------------------------------------------------------------

    def _body(
        self, out: Source, nodes: list[Node], stores: list[Store], at: str, *, main: bool, record: bool = False, back: bool = False
    ) -> None:
        """Step i; or, where ``at`` says with j which steps AT_ONCE are, those: each region for all of them before the next."""
        plan = self.plan
        if self.step:
            stores = list(plan.stores)
        known = dict(self.known)
        scans = [s for s in (plan.main if main else plan.recomputed) if s in nodes]
        sums = [n for n in nodes if n.op == "sum" and plan.timed(n)]
        reads_time, position = any(n.op == "index" and n.attrs["axis"] == plan.time for n in nodes), "const index_t t = ts + i;"
        if reads_time and not at:
            out(position)

        @contextlib.contextmanager
        def each_step() -> Iterator[None]:
            if at:
                out(f"#pragma GCC unroll {AT_ONCE}").open(f"for (int j = 0; j < {AT_ONCE}; ++j) {{")
                out(f"const index_t i = {at};", *([position] if reads_time else []))
            yield
            if at:
                out.close()

        def special(node: Node) -> list[str] | None:
            if node.op in ("input", "shift") or node.op in ("index", "size"):
                return self._read(node, known)
            if node.op == "scan":
                return self._walk_scan(node, known, main, record, back)
            if node.op == "prior":
                return self._prior(node, known, main)
            if node.op == "sum":
                operands = known[node.args[0]]
                known[node] = self.names.parts(node, "_of[j]" if at else "")
                return [f"{name} += {self._up_to(node, x)};" for name, x in zip(known[node], operands, strict=True)]
            if node in self.kept and main:
                known[node] = tuple(f"{p}_kept[i * N + n]" for p in self.names.parts(node))
                return []
            return None

        def region(which: Region) -> list[Node]:
            return [n for n in nodes if plan.region[n] == which and n.op != "sum" and n not in known]

        later = [n for n in nodes if plan.region[n] in (Region.SCAN, Region.POST)]
        needed = {a for n in later for a in n.args} | {s.value for s in stores}
        carried = [n for n in region(Region.PRE) if n in needed and n.op not in LEAVES and n.op != "shift"] if at else []
        body = Body(self.dialect, self.names, known, self.declare, keep=self.kept if record else frozenset(carried))
        for node in carried:
            out(*(f"{self.type_of(node, self._part_kind(node))} {name}_of[{AT_ONCE}];" for name in self.names.parts(node)))
        with each_step():
            out(*body.run(region(Region.PRE), special))
            self._store_values(out, known, stores, Region.PRE)
            for s in scans:
                if plan.region[s] == Region.PRE:
                    out(*self._advance(s, known, main, record, back))
            for node in carried:
                slots = self.names.parts(node, "_of[j]")
                out(*(f"{slot} = {value};" for slot, value in zip(slots, known[node], strict=True)))
                known[node] = slots
        for node in sums:
            start = f"_of[{AT_ONCE}] = {{}}" if at else "{}" if self.laned(node) else " = 0.0f"
            out(*(f"{self.type_of(node, 'real')} {name}{start};" for name in self.names.parts(node)))
        inside = [n for n in nodes if n not in known and (plan.region[n] == Region.SCAN or n.op == "sum")]
        if inside:
            rows = [store for store in stores if self._summed_by_rows(store)]
            for store in rows:
                for k in self.parts(self.of_store[store]):
                    out(f"vf {store.name}_rows{k}[N];")
            if self.N <= UNROLLED:
                out(f"#pragma GCC unroll {max(self.N, 1)}")
            out.open("for (int n = 0; n < N; ++n) {")
            with each_step():
                out(*body.run(inside, special))
                if record:
                    for node in self.kept:
                        for name, value in zip(self.names.parts(node), known[node], strict=True):
                            out(f"{name}_kept[i * N + n] = {value};")
                self._store_values(out, known, stores, Region.SCAN)
                for s in scans:
                    if plan.region[s] == Region.SCAN:
                        out(*self._advance(s, known, main, record, back))
            out.close()
            for store in rows:
                for k in self.parts(self.of_store[store]):
                    name, _ = self._store_tile(store, k)
                    out(f"sum_rows({store.name}_rows{k}, N, {name} + i * N);")
        with each_step():
            out(*body.run(region(Region.POST), special))
            self._store_values(out, known, stores, Region.POST)
            for s in scans:
                if plan.region[s] == Region.POST:
                    out(*self._advance(s, known, main, record, back))

    def _goes_at_once(self, nodes: list[Node], stores: list[Store]) -> bool:
        """Whether several steps are made at once: many states, each walked by itself, and no result that is summed over lanes by rows."""
        stated = any(n.op == "scan" and self.stated(n) for n in nodes)
        return self.N > UNROLLED and self.tile >= AT_ONCE and stated and not any(self._summed_by_rows(s) for s in stores)

    def _summed_by_rows(self, store: Store) -> bool:
        return store.kind == "value" and store.lane and self.stated(store.value)

    def _part_kind(self, node: Node) -> str | None:
        return "real" if node.kind == "complex" else None

    def _up_to(self, node: Node, value: str) -> str:
        return f"up({value})" if self.laned(node) else value

    def _read(self, node: Node, known: dict[Node, tuple[str, ...]]) -> list[str]:
        if node.op in ("index", "size") or self.step:
            before = dict(self.known)
            lines = self._load(node, **({"state": "n"} if self.stated(node) and node.op == "input" else {}))
            known[node] = self.known[node]
            self.known = before
            return lines
        rows = node.op == "input" and self.stated(node) and not self.laned(node)  # staged by stage_states, if at all
        known[node] = tuple(
            f"{part}_rows[i * {part}_row + n]" if rows else "".join(self._tile_of(node, part)) for part in self.names.parts(node)
        )
        return []

    def _slot_of(self, scan: Node, main: bool, later: bool) -> tuple[str, ...]:
        """Where the history holds a recomputed scan's carry before (or after, ``later``) step i of its own walk."""
        back = not self.plan.reverse
        shift = "i" if later == back else "(i + 1)"
        index = f"[{shift} * N + n]" if self.stated(scan) else f"[{shift}]"
        return tuple(n.replace("[n]", "") + "_history" + index for n in self._carry_names(scan))

    def _walk_scan(self, scan: Node, known: dict[Node, tuple[str, ...]], main: bool, record: bool, back: bool) -> list[str]:
        if main and scan in self.plan.recomputed:
            known[scan] = self._slot_of(scan, main, later=True)
            return []
        lines = []
        if record:
            lines += [
                f"{slot} = {carry};" for slot, carry in zip(self._slot_of(scan, main, later=False), self._carry_names(scan), strict=True)
            ]
        values, _ = self.recurrence_of(scan, known, self._carry_names(scan))
        parts = self.names.parts(scan)
        ctype = "vf" if self.laned(scan) else "float"
        lines += [f"const {ctype} {name} = {value};" for name, value in zip(parts, values, strict=True)]
        known[scan] = parts
        return lines

    def _advance(self, scan: Node, known: dict[Node, tuple[str, ...]], main: bool, record: bool, back: bool) -> list[str]:
        """The carry after this step."""
        if scan not in known or (main and scan in self.plan.recomputed):
            return []
        _, following = self.recurrence_of(scan, known, self._carry_names(scan))
        after = following(known[scan])
        names = self._carry_names(scan)
        lines = []
        if len(names) == 2 and scan.attrs["shifted"]:
            fresh = [self.names.fresh("next") for _ in names]
            lines += [f"const {'vf' if self.laned(scan) else 'float'} {f} = {x};" for f, x in zip(fresh, after, strict=True)]
            after = fresh
        lines += [f"{name} = {x};" for name, x in zip(names, after, strict=True)]
        if record:
            lines += [f"{slot} = {carry};" for slot, carry in zip(self._slot_of(scan, main, later=True), names, strict=True)]
        return lines

    def _prior(self, node: Node, known: dict[Node, tuple[str, ...]], main: bool) -> list[str]:
        scan = node.args[0]
        if main and scan in self.plan.recomputed:
            known[node] = self._slot_of(scan, main, later=False)
            return []
        # A copy: a scan without states moves on before the state loop and what follows it read the value.
        known[node] = self.names.parts(node)
        ctype = "vf" if self.laned(scan) else "float"
        return [f"const {ctype} {name} = {carry};" for name, carry in zip(known[node], self._carry_names(scan), strict=True)]

    # -- results --------------------------------------------------------------------------------------------------------------

    def _store_values(self, out: Source, known: dict[Node, tuple[str, ...]], stores: list[Store], region: Region) -> None:
        for store in stores:
            where = self.plan.region[store.value]
            if self.plan.region[store.value] in (Region.LANE, Region.STATE):
                where = Region.PRE if not self.stated(store.value) else Region.SCAN
            if where != region or store.value not in known:
                continue
            values = known[store.value]
            if store.kind == "sum":
                for name, value in zip(self.sum_names(store), values, strict=True):
                    out(f"{name} += {value};")
            elif self.step:
                self._store_direct(out, store, values)
            else:
                for k, value in enumerate(values):
                    name, index = self._store_tile(store, k)
                    if store.lane:
                        masked = f"mask_lanes({value}, lanes)"
                        out(f"{store.name}_rows{k}[n] = {masked};" if self.stated(store.value) else f"{name}{index} = sum_lanes({masked});")
                    else:
                        out(f"{name}{index} = {value};")

    def _store_direct(self, out: Source, store: Store, values: tuple[str, ...], **where: str) -> None:
        """Writes a value to memory at once: a step's results, final states and sums over time."""
        b = self.of_store[store]
        if self.stated(store.value):
            where["state"] = "n"
        owner = self.owner(store.value, store.axes)
        guard = f"if ({owner}) " if owner else ""
        for k, value in enumerate(values):
            at = self.pointer(b, k, **where)
            if self.laned(store.value) and not store.lane:
                out(f"{guard}store_lanes({at}, {b.name}_{self.plan.lane}, lanes, {value});")
            elif store.lane:
                out(f"*({at}) = (block > slot * {self.walk} ? *({at}) : 0.0f) + sum_lanes(mask_lanes({value}, lanes));")
            else:
                out(f"{guard}*({at}) = {C_TYPES[b.dtype]}({value});")
