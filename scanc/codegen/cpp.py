"""The CPU backend, printing: one C++ function per plan, vectorised over lanes, OpenMP over programs.

A tile of time is staged from the strided tensors into lane vectors, the body walks it step by step with the carries in
local arrays, and results are staged back: prologue and epilogue are fused because they are part of the body.
A two-direction plan keeps the states at block boundaries, recomputes a block of ``history`` steps, then walks it the other way.
"""

from __future__ import annotations

from scanc.codegen.cpp_dialect import C_TYPES
from scanc.codegen.cpp_step import AT_ONCE, StepPrinter
from scanc.codegen.emit import Body, Source
from scanc.codegen.layout import LAUNCH, KernelSource, Mode, entry_name
from scanc.errors import UnsupportedForm
from scanc.forms.plan import Plan, Region, Store
from scanc.ir import Node
from scanc.schedule import RecurrentSchedule, Schedule, StepSchedule


def generate(plan: Plan, schedule: Schedule, state: int, mode: Mode, title: str) -> KernelSource:
    """The source of one kernel. ``state`` is the size of the state axis, 1 without one."""
    if not isinstance(schedule, RecurrentSchedule | StepSchedule):
        raise UnsupportedForm(
            op=plan.graph.name, form=schedule.form, forms="recurrent, stencil, step", reason="the C++ backend has no skeleton for it"
        )
    printer = CppPrinter(plan, schedule, state, mode, title)
    return printer.source("c++", printer.print())


class CppPrinter(StepPrinter):
    across = "LANES"  # lanes of a block
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
        # Inside the namespace, so that abs, sqrt and the others are cpu.h's and not the C library's.
        out("namespace scanc {", "")
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
        out.paste(body)
        out.close().close()
        out("", "}  // namespace scanc")
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
        out(f"const index_t first = i_group * per_group + block * {self.across};")
        out(f"const int lanes = int(smaller({self.across}, per_group - block * {self.across}));")
        self._setup(out)
        if plan.recomputed:
            self._two_walks(out)
        elif plan.time:
            self._one_walk(out)
        else:
            self._body(out, list(plan.main_body), [], "", main=True)
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
        outside = {a for n in everything if plan.region[n] in (Region.SCAN, Region.PRE, Region.POST) for a in n.args} | {
            s.value for s in plan.stores
        }
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

    def _carry(self, out: Source, scan: Node) -> None:
        names = self._carry_names(scan)
        ctype = "vf" if self.laned(scan) else "float"
        for name in names:
            out(f"{ctype} {name.replace('[n]', '[N]')};")
        if self.mode.entries:
            b = next(b for b in self.buffers if b.name == entry_name(self.plan, scan))
            where = {"state": "n"} if self.stated(scan) else {}
            values = [
                f"load_lanes({self.pointer(b, k, **where)}, {b.name}_{self.plan.lane}, lanes)"
                if self.laned(scan)
                else f"*({self.pointer(b, k, **where)})"
                for k in range(len(names))
            ]
        elif len(scan.args) == 3:
            start = self.known[scan.args[2]]
            values = [f"up({x})" if self.laned(scan) else x for x in (*start, "0.0f")[: len(names)]]
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

    def _stage(self, out: Source, loads: list[Node]) -> None:
        for node in loads:
            source = node.args[0] if node.op == "shift" else node
            b, by = self.of_input[source], node.attrs["by"] if node.op == "shift" else 0
            stated, laned = self.stated(node), self.laned(node)
            row = "N" if stated else "1"
            time = f"{b.name}_{self.plan.time}"
            if by:
                lo, hi = (
                    f"smaller(steps, {by} > ts ? {by} - ts : 0)",
                    f"smaller(steps, size_{self.plan.time} + {by} > ts ? size_{self.plan.time} + {by} - ts : 0)",
                )
                out.open("{")(f"const index_t lo = {lo}, hi = {hi};")
            for k, part in enumerate(self.names.parts(node)):
                tile, _ = self._tile_of(node, part)
                at = self.pointer(b, k, time=f"(ts + lo - {by})" if by else "ts", **({"state": "n"} if stated else {}))
                to = tile + (" + n" if stated else "") + (f" + lo * {row}" if by else "")
                count = "hi - lo" if by else "steps"
                loop = "for (int n = 0; n < N; ++n) " if stated else ""
                if by:
                    fill = self.fill(node, k)
                    value = f"up({fill})" if laned else fill
                    inner = f"{tile}[i{' * N + n' if stated else ''}] = {value};"
                    out(f"for (index_t i = 0; i < steps; ++i) if (i < lo || i >= hi) {loop}{inner}")
                    call_guard = "if (hi > lo) "
                else:
                    call_guard = ""
                if laned:
                    out(f"{call_guard}{loop}stage_lanes({to}, {row}, {at}, {b.name}_{self.plan.lane}, {time}, lanes, {count});")
                elif stated:
                    start = self.pointer(b, k, time=f"(ts + lo - {by})" if by else "ts")
                    strides = f"{self.axis_stride(b, self.plan.state)}, {time}"
                    if by:
                        out(f"{call_guard}for (int n = 0; n < N; ++n) stage_rows({to}, N, {at}, {time}, {count});")
                    else:
                        out(f"const auto* const {part}_rows = stage_states({tile}, N, {start}, {strides}, {count});")
                        out(f"const index_t {part}_row = {part}_rows == {tile} ? N : {time};")
                else:
                    out(f"{call_guard}stage_rows({to}, {row}, {at}, {time}, {count});")
            if by:
                out.close()

    def _tiled_stores(self) -> list[Store]:
        return [s for s in self.plan.stores if s.kind == "value" and self.plan.time]

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
                    strides = f"{b.name}_{self.plan.lane}, {b.name}_{self.plan.time}"
                    out(f"{guard}{loop}unstage_lanes({at}, {strides}, {source}, {row}, lanes, steps);")
                else:
                    add = f"block > slot * {self.walk}" if store.lane else "false"
                    out(f"{guard}{loop}unstage_rows({at}, {b.name}_{self.plan.time}, {source}, {row}, steps, {add});")

    def _steps(self, out: Source, nodes: list[Node], back: bool, *, main: bool, record: bool = False) -> None:
        stores = [s for s in self.plan.stores if s.kind != "final"] if main else []
        if not self.plan.recomputed and self._goes_at_once(nodes, stores):
            start, more, step = ("steps", "left >= {}", "left -= {}") if back else ("0", "left + {} <= steps", "left += {}")
            out(f"index_t left = {start};")
            out.open(f"for (; {more.format(AT_ONCE)}; {step.format(AT_ONCE)}) {{")
            self._body(out, nodes, stores, "left - 1 - j" if back else "left + j", main=main, back=back)
            out.close()
            first, last = "left - 1", "left"
        else:
            first, last = "steps - 1", "0"
        out.open(f"for (index_t i = {first}; i >= 0; --i) {{" if back else f"for (index_t i = {last}; i < steps; ++i) {{")
        self._body(out, nodes, stores, "", main=main, record=record, back=back)
        out.close()

    # -- at the end

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
