"""The CPU backend, printing: one C++ function per plan, vectorised over lanes, OpenMP over programs.

A tile of time is staged from the strided tensors into lane vectors, the body walks it step by step with the carries in
local arrays, and results are staged back: prologue and epilogue are fused because they are part of the body.
A two-direction plan keeps the states at block boundaries, recomputes a block of ``history`` steps, then walks it the other way.
"""

from __future__ import annotations

from scanc.codegen.common import KernelPrinter
from scanc.codegen.emit import Body, Dialect, Source
from scanc.codegen.layout import LAUNCH, KernelSource, Mode, entry_name
from scanc.errors import UnsupportedForm
from scanc.forms.plan import Plan, Region, Store
from scanc.ir import Node
from scanc.schedule import RecurrentSchedule, Schedule, StepSchedule

C_TYPES = {"float32": "float", "complex64": "float", "bfloat16": "bfloat16", "float16": "float16", "int32": "int32_t", "int64": "int64_t",
           "bool": "bool"}


class CppDialect(Dialect):
    """Vector expressions of cpu.h; conditions are integers with all bits set."""

    calls = {"maximum": "maximum", "minimum": "minimum", "exp2": "exp2", "expm1": "expm1", "log2": "log2", "log1p": "log1p", "sqrt": "sqrt",
             "rsqrt": "rsqrt", "abs": "abs", "sign": "sign", "tanh": "tanh", "sin": "sin", "cos": "cos", "erf": "erf", "where": "select"}

    def literal(self, value: float | int | bool) -> str:
        return c_literal(value)

    def operation(self, op: str, args: list[str], node: Node) -> str:
        if op == "reciprocal":
            return f"1.0f / ({args[0]})"
        if op == "not":
            return f"~({args[0]})"
        if op in ("lt", "le", "gt", "ge", "eq", "ne"):
            return f"condition({super().operation(op, args, node)})"
        if op == "div" and all(a.kind in ("int", "bool") for a in node.args):
            return f"to_float({args[0]}) / to_float({args[1]})"
        floats = [f"to_float({x})" if a.kind == "int" and node.kind == "real" and op in ("add", "sub", "mul", "div") and len(args) == len(node.args)
                  else x for x, a in zip(args, node.args, strict=False)] if len(args) == len(node.args) else args
        return super().operation(op, floats, node)

    def cast(self, arg: str, node: Node) -> str:
        source = node.args[0].kind
        if source == node.kind:
            return arg
        if node.kind == "real":
            return f"to_float({arg})" if source == "int" else f"select({arg}, 1.0f, 0.0f)"
        raise UnsupportedForm(op=node.name or "cast", form="any kernel", forms="the reference", reason=f"no cast from {source} to {node.kind}")


def c_literal(value: float | int | bool) -> str:
    if isinstance(value, bool):
        return "-1" if value else "0"
    if isinstance(value, int):
        return str(value)
    if value != value:
        return '__builtin_nanf("")'
    if value in (float("inf"), float("-inf")):
        return ("-" if value < 0 else "") + "__builtin_inff()"
    text = f"{value:.9g}"
    return (text if any(c in text for c in ".e") else text + ".0") + "f"


def generate(plan: Plan, schedule: Schedule, state: int, mode: Mode, title: str) -> KernelSource:
    """The source of one kernel. ``state`` is the size of the state axis, 1 without one."""
    if not isinstance(schedule, RecurrentSchedule | StepSchedule):
        raise UnsupportedForm(op=plan.graph.name, form=schedule.form, forms="recurrent, step", reason="the C++ backend has no skeleton for it")
    printer = _Printer(plan, schedule, state, mode, title)
    return printer.source("c++", printer.print())


class _Printer(KernelPrinter):
    def __init__(self, plan: Plan, schedule: RecurrentSchedule | StepSchedule, state: int, mode: Mode, title: str) -> None:
        super().__init__(plan, schedule, state, mode, title)
        self.dialect = CppDialect()
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
        # A literal or a lane-free name may stand for a value over lanes.
        return f"up({expression})" if self.laned(node) and not any(self.laned(a) for a in node.args) else expression

    def scratch(self, name: str, ctype: str, count: str) -> str:
        if (name, ctype, count) not in self.arena:
            self.arena.append((name, ctype, count))
        return name

    # -- the function ---------------------------------------------------------------------------------------------------------

    def print(self) -> str:
        body = self._programs()
        out = self.out
        out(f"// {self.title}")
        out(f"// {self.schedule}")
        for b in self.buffers:
            out(f"// {b.role:5} {b.name}: {b.dtype}[{' '.join((*b.leading, *b.axes))}]")
        out("", f"#define SCANC_LANES {self.lanes}", '#include "cpu.h"', "")
        out(f"constexpr int N = {self.N};  // size of the state axis {self.plan.state or '(none)'}")
        out(f"constexpr int TILE = {self.tile};", "")
        out.open('extern "C" void run(char* const* pointer, const index_t* size, const index_t* stride, const index_t* launch) {')
        at = 0
        for k, b in enumerate(self.buffers):
            const = "const " if b.role != "store" else ""
            out(f"{const}{C_TYPES[b.dtype]}* const {b.name}_ptr = reinterpret_cast<{const}{C_TYPES[b.dtype]}*>(pointer[{k}]);")
            strides = self.stride_names(b)
            if strides:
                out("const index_t " + ", ".join(f"{s} = stride[{at + j}]" for j, s in enumerate(strides)) + ";")
            at += b.rank
        out("const index_t " + ", ".join(f"size_{a} = size[{j}]" for j, a in enumerate(self.plan.graph.order)) + ";")
        out("const index_t " + ", ".join(f"{name} = launch[{j}]" for j, name in enumerate(LAUNCH)) + ";")
        out("", "#pragma omp parallel")
        out.open("{")
        offsets = "0"
        for name, ctype, count in self.arena:
            out(f"const size_t {name}_at = {offsets};")
            offsets = f"({name}_at + ({count}) * sizeof({ctype}) + 63) / 64 * 64"
        out(f"Arena arena({offsets});")
        for name, ctype, _ in self.arena:
            out(f"{ctype}* const {name} = arena.at<{ctype}>({name}_at);")
        out("#pragma omp for schedule(static)")
        out(*body.text().rstrip("\n").split("\n"))
        out.close().close()
        return out.text()

    def _programs(self) -> Source:
        plan, out = self.plan, Source()
        out.open("for (index_t program = 0; program < programs; ++program) {")
        out("index_t rest = program;", "const index_t slot = rest % slots; rest /= slots;")
        groups = f"size_{plan.lane_group}" if plan.lane_group else "1"
        out(f"const index_t i_group = rest % {groups}; rest /= {groups};")
        for axis in reversed(plan.grid):
            out(f"const index_t i_{axis} = rest % size_{axis}; rest /= size_{axis};")
        out("const index_t seg = rest;")
        if plan.time:
            out(f"const index_t t0 = seg * segment, t1 = smaller(size_{plan.time}, t0 + segment);")
        out.open(f"for (index_t block = slot * {self.walk}; block < smaller(blocks, (slot + 1) * {self.walk}); ++block) {{")
        out("const index_t first = i_group * per_group + block * LANES;")
        out("const int lanes = int(smaller(LANES, per_group - block * LANES));")
        self._setup(out)
        if plan.recomputed:
            self._two_walks(out)
        elif plan.time:
            self._one_walk(out)
        else:
            self._body(out, list(plan.main_body), [], "0", main=True)
        self._finish(out)
        out.close().close()
        return out

    def _setup(self, out: Source) -> None:
        """Values without time, carries and accumulators."""
        plan = self.plan
        everything = list(dict.fromkeys((*plan.recompute_body, *plan.main_body)))
        lane = [n for n in everything if plan.region[n] == Region.LANE]
        lane += [n for n in everything if n.op == "const" and n not in lane]
        state = [n for n in everything if plan.region[n] == Region.STATE and n.op != "const"]
        body = Body(self.dialect, self.names, self.known, self.declare)
        out(*body.run(lane, lambda n: self._load(n) if n.op in ("input", "index", "size") else None))
        outside = {a for n in everything if plan.region[n] in (Region.SCAN, Region.PRE, Region.POST) for a in n.args} | {s.value for s in plan.stores}
        if state:
            exported = [n for n in state if n in outside]
            for node in exported:
                for name in self.names.parts(node):
                    out(f"{self.type_of(node, 'real' if node.kind == 'complex' else None)} {name}_of[N];")

            def declare(node: Node, name: str, expression: str) -> str:
                line = self.declare(node, name, expression)
                return f"{line} {name}_of[n] = {name};" if node in exported and name in self.names.parts(node) else line

            inner = Body(self.dialect, self.names, self.known, declare, keep=frozenset(exported))
            lines = inner.run(state, lambda n: self._load(n, declare, state="n") if n.op in ("input", "index") else None)
            out.open("for (int n = 0; n < N; ++n) {")(*lines).close()
            for node in exported:
                self.known[node] = self.names.parts(node, "_of[n]")
        for scan in plan.scans:
            self._carry(out, scan)
        for store in plan.stores:
            if store.kind == "sum":
                self._declare_sum(out, store)

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
        return f"int32_t(i_{axis})"

    def _carry_names(self, scan: Node) -> tuple[str, ...]:
        return self.names.parts(scan, "_carry[n]" if self.stated(scan) else "_carry")

    def _carry(self, out: Source, scan: Node) -> None:
        names = self._carry_names(scan)
        ctype = "vf" if self.laned(scan) else "float"
        for name in names:
            out(f"{ctype} {name.replace('[n]', '[N]')};")
        if self.mode.entries:
            b = next(b for b in self.buffers if b.name == entry_name(self.plan, scan))
            where = {"state": "n"} if self.stated(scan) else {}
            values = [f"load_lanes({self.pointer(b, k, **where)}, {b.name}_{self.plan.lane}, lanes)" if self.laned(scan)
                      else f"*({self.pointer(b, k, **where)})" for k in range(len(names))]
        elif len(scan.args) == 3:
            start = self.known[scan.args[2]]
            values = [f"up({x})" if self.laned(scan) else x for x in (*start, "0.0f")[:len(names)]]
        else:
            values = ["vf{}" if self.laned(scan) else "0.0f"] * len(names)
        loop = "for (int n = 0; n < N; ++n) " if self.stated(scan) else ""
        for name, value in zip(names, values, strict=True):
            out(f"{loop}{name} = {value};")

    def _declare_sum(self, out: Source, store: Store) -> None:
        stated = self.stated(store.value)
        for name in self.sum_names(store):
            plain = name.replace("[n]", "[N]")
            out(f"{'vf' if self.laned(store.value) else 'float'} {plain}{' = {}' if stated or self.laned(store.value) else ' = 0.0f'};")

    # -- walking time ---------------------------------------------------------------------------------------------------------

    def _one_walk(self, out: Source) -> None:
        loads, stores = self.loads(self.plan.main_body), self._tiled_stores()
        if self.plan.reverse:
            out.open("for (index_t ts = t0 + (t1 - t0 - 1) / TILE * TILE; ts >= t0 && t1 > t0; ts -= TILE) {")
        else:
            out.open("for (index_t ts = t0; ts < t1; ts += TILE) {")
        out("const index_t steps = smaller(TILE, t1 - ts);")
        self._stage(out, loads)
        self._steps(out, list(self.plan.main_body), self.plan.reverse, main=True)
        self._unstage(out, stores)
        out.close()

    def _two_walks(self, out: Source) -> None:
        """States at block boundaries first, then block by block: recompute, and walk the other way."""
        plan = self.plan
        back = not plan.reverse  # the recomputed scans' own direction is the opposite of the main one
        first_loads = self.loads(plan.recompute_body)
        states = [(s, name) for s in plan.recomputed for name in self._carry_names(s)]
        total = f"(smaller(segment, size_{plan.time}) + TILE - 1) / TILE"
        for scan, name in states:
            word, kind = name.replace("[n]", ""), "vf" if self.laned(scan) else "float"
            count = "N" if self.stated(scan) else "1"
            self.scratch(f"{word}_at_block", kind, f"({total}) * {count}")
            self.scratch(f"{word}_history", kind, f"(TILE + 1) * {count}")
        for node in self.kept:
            for name in self.names.parts(node):
                self.scratch(f"{name}_kept", "vf" if self.laned(node) else "float", "TILE * N")

        def copy(line: str) -> None:
            for scan, name in states:
                word, width = name.replace("[n]", ""), "N" if self.stated(scan) else "1"
                loop = "for (int n = 0; n < N; ++n) " if self.stated(scan) else ""
                out(loop + line.format(carry=name, saved=f"{word}_at_block[part * {width} + {'n' if self.stated(scan) else '0'}]"))

        out("const index_t parts = (t1 - t0 + TILE - 1) / TILE;")
        needs_last = any(s.kind == "final" and s.value in plan.recomputed for s in plan.stores)
        header = "for (index_t part = parts - 1; part >= 0; --part) {" if back else "for (index_t part = 0; part < parts; ++part) {"
        edge = "part == 0" if back else "part == parts - 1"
        out.open(header)
        copy("{saved} = {carry};")
        if not needs_last:
            out(f"if ({edge}) break;  // the last block's end is nobody's start")
        out("const index_t ts = t0 + part * TILE, steps = smaller(TILE, t1 - ts);")
        self._stage(out, first_loads)
        self._steps(out, list(plan.recompute_body), back, main=False, record=False)
        out.close()
        if needs_last:
            for store in plan.stores:
                if store.kind == "final" and store.value in plan.recomputed:
                    self._store_final(out, store)
        header = "for (index_t part = parts - 1; part >= 0; --part) {" if plan.reverse else "for (index_t part = 0; part < parts; ++part) {"
        out.open(header)
        out("const index_t ts = t0 + part * TILE, steps = smaller(TILE, t1 - ts);")
        copy("{carry} = {saved};")
        self._stage(out, list(dict.fromkeys((*first_loads, *self.loads(plan.main_body)))))
        self._steps(out, list(plan.recompute_body), back, main=False, record=True)
        self._steps(out, list(plan.main_body), plan.reverse, main=True)
        self._unstage(out, self._tiled_stores())
        out.close()

    def _tile_of(self, node: Node, part: str) -> tuple[str, str]:
        """(tile's name, index of step i), allocating the tile."""
        real = node.kind in ("real", "complex")
        ctype = ("vf" if real else "vi") if self.laned(node) else ("float" if real else "int32_t")
        stated = self.stated(node)
        self.scratch(f"{part}_tile", ctype, "TILE * N" if stated else "TILE")
        return f"{part}_tile", "[i * N + n]" if stated else "[i]"

    def _stage(self, out: Source, loads: list[Node]) -> None:
        for node in loads:
            source = node.args[0] if node.op == "shift" else node
            b, by = self.of_input[source], node.attrs["by"] if node.op == "shift" else 0
            stated, laned = self.stated(node), self.laned(node)
            row = "N" if stated else "1"
            time = f"{b.name}_{self.plan.time}"
            if by:
                lo, hi = f"smaller(steps, {by} > ts ? {by} - ts : 0)", f"smaller(steps, size_{self.plan.time} + {by} > ts ? size_{self.plan.time} + {by} - ts : 0)"
                out.open("{")(f"const index_t lo = {lo}, hi = {hi};")
            for k, part in enumerate(self.names.parts(node)):
                tile, _ = self._tile_of(node, part)
                at = self.pointer(b, k, time=f"(ts + lo - {by})" if by else "ts", **({"state": "n"} if stated else {}))
                to = tile + (" + n" if stated else "") + (f" + lo * {row}" if by else "")
                count = "hi - lo" if by else "steps"
                loop = "for (int n = 0; n < N; ++n) " if stated else ""
                if by:
                    fill = self.dialect.literal(node.attrs["fill"] if node.kind != "real" else float(node.attrs["fill"]))
                    value = f"up({fill})" if laned else fill
                    inner = f"{tile}[i{' * N + n' if stated else ''}] = {value};"
                    out(f"for (index_t i = 0; i < steps; ++i) if (i < lo || i >= hi) {loop}{inner}")
                    call_guard = "if (hi > lo) "
                else:
                    call_guard = ""
                if laned:
                    out(f"{call_guard}{loop}stage_lanes({to}, {row}, {at}, {b.name}_{self.plan.lane}, {time}, lanes, {count});")
                else:
                    out(f"{call_guard}{loop}stage_rows({to}, {row}, {at}, {time}, {count});")
            if by:
                out.close()

    def _tiled_stores(self) -> list[Store]:
        return [s for s in self.plan.stores if s.kind == "value" and self.plan.time]

    def _store_tile(self, store: Store, part: int) -> tuple[str, str]:
        suffix = ("_re", "_im")[part] if store.value.kind == "complex" else ""
        stated = self.stated(store.value)
        lanes = self.laned(store.value) and not store.lane
        name = f"{store.name}{suffix}_out"
        self.scratch(name, "vf" if lanes else "float", "TILE * N" if stated else "TILE")
        return name, "[i * N + n]" if stated else "[i]"

    def _unstage(self, out: Source, stores: list[Store]) -> None:
        for store in stores:
            b = self.of_store[store]
            stated = self.stated(store.value)
            row, loop = ("N", "for (int n = 0; n < N; ++n) ") if stated else ("1", "")
            owner = self.owner(store.value, store.axes)
            guard = f"if ({owner}) " if owner else ""
            for k in self.parts(b):
                name, _ = self._store_tile(store, k)
                at = self.pointer(b, k, time="ts", **({"state": "n"} if stated else {}))
                source = name + (" + n" if stated else "")
                if self.laned(store.value) and not store.lane:
                    out(f"{guard}{loop}unstage_lanes({at}, {b.name}_{self.plan.lane}, {b.name}_{self.plan.time}, {source}, {row}, lanes, steps);")
                else:
                    add = f"block > slot * {self.walk}" if store.lane else "false"
                    out(f"{guard}{loop}unstage_rows({at}, {b.name}_{self.plan.time}, {source}, {row}, steps, {add});")

    def _steps(self, out: Source, nodes: list[Node], back: bool, *, main: bool, record: bool = False) -> None:
        out.open("for (index_t i = steps - 1; i >= 0; --i) {" if back else "for (index_t i = 0; i < steps; ++i) {")
        self._body(out, nodes, [s for s in self.plan.stores if s.kind != "final"] if main else [], "i", main=main, record=record, back=back)
        out.close()

    # -- one step -------------------------------------------------------------------------------------------------------------

    def _body(self, out: Source, nodes: list[Node], stores: list[Store], i: str, *, main: bool, record: bool = False, back: bool = False) -> None:
        plan = self.plan
        if self.step:
            stores = list(plan.stores)
        known = dict(self.known)
        scans = [s for s in (plan.main if main else plan.recomputed) if s in nodes]
        sums = [n for n in nodes if n.op == "sum" and plan.timed(n)]
        if any(n.op == "index" and n.attrs["axis"] == plan.time for n in nodes):
            out("const index_t t = ts + i;")

        def special(node: Node) -> list[str] | None:
            if node.op in ("input", "shift") or node.op in ("index", "size"):
                return self._read(node, known)
            if node.op == "scan":
                return self._walk_scan(node, known, main, record, back)
            if node.op == "prior":
                return self._prior(node, known, main)
            if node.op == "sum":
                operands = known[node.args[0]]
                known[node] = self.names.parts(node)
                return [f"{name} += {self._up_to(node, x)};" for name, x in zip(known[node], operands, strict=True)]
            if node in self.kept and main:
                known[node] = tuple(f"{p}_kept[i * N + n]" for p in self.names.parts(node))
                return []
            return None

        def region(which: Region) -> list[Node]:
            return [n for n in nodes if plan.region[n] == which and n.op != "sum" and n not in known]

        keep = self.kept if record else frozenset()
        body = Body(self.dialect, self.names, known, self.declare, keep=keep)
        out(*body.run(region(Region.PRE), special))
        for node in sums:
            for name in self.names.parts(node):
                out(f"{self.type_of(node, 'real')} {name}{'{}' if self.laned(node) else ' = 0.0f'};")
        self._store_values(out, known, stores, Region.PRE)
        for s in scans:
            if plan.region[s] == Region.PRE:
                out(*self._advance(s, known, main, record, back))
        inside = [n for n in nodes if n not in known and (plan.region[n] == Region.SCAN or n.op == "sum")]
        if inside:
            rows = [store for store in stores if store.kind == "value" and store.lane and self.stated(store.value)]
            for store in rows:
                for k in self.parts(self.of_store[store]):
                    out(f"vf {store.name}_rows{k}[N];")
            if self.N <= 32:
                out(f"#pragma GCC unroll {max(self.N, 1)}")
            out.open("for (int n = 0; n < N; ++n) {")
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
        out(*body.run(region(Region.POST), special))
        self._store_values(out, known, stores, Region.POST)
        for s in scans:
            if plan.region[s] == Region.POST:
                out(*self._advance(s, known, main, record, back))

    def _up_to(self, node: Node, value: str) -> str:
        return f"up({value})" if self.laned(node) else value

    def _read(self, node: Node, known: dict[Node, tuple[str, ...]]) -> list[str]:
        if node.op in ("index", "size") or self.step:
            before = dict(self.known)
            lines = self._load(node, **({"state": "n"} if self.stated(node) and node.op == "input" else {}))
            known[node] = self.known[node]
            self.known = before
            return lines
        known[node] = tuple("".join(self._tile_of(node, part)) for part in self.names.parts(node))
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
            lines += [f"{slot} = {carry};" for slot, carry in zip(self._slot_of(scan, main, later=False), self._carry_names(scan), strict=True)]
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
        known[node] = self._slot_of(scan, main, later=False) if main and scan in self.plan.recomputed else self._carry_names(scan)
        return []

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

    def _store_final(self, out: Source, store: Store) -> None:
        last = "seg == 0" if store.value.attrs["reverse"] else "seg == segments - 1"
        if not self.mode.summary:
            out.open(f"if ({last}) {{")
        if self.stated(store.value):
            out.open("for (int n = 0; n < N; ++n) {")
        self._store_direct(out, store, self._carry_names(store.value))
        if self.stated(store.value):
            out.close()
        if not self.mode.summary:
            out.close()

    def _finish(self, out: Source) -> None:
        for store in self.plan.stores:
            if store.kind == "final" and store.value in self.plan.main:
                self._store_final(out, store)
            elif store.kind == "sum":
                stated = self.stated(store.value)
                if stated:
                    out.open("for (int n = 0; n < N; ++n) {")
                self._store_direct(out, store, self.sum_names(store))
                if stated:
                    out.close()

