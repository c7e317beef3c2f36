"""The CUDA backend: a lane's threads share its time, each a span of neighbouring steps, and warps share its states.

Where threads share a lane's states (cuda_walk.py) each takes one step after another, and there must be many lanes to hide how long a
step waits for the last. Here a tile's steps are taken side by side. Of its SPAN steps a thread makes a_j and b_j of one state, and what
they do to any carry,

    h  to  P h + E,    P = Π a_j = 2^(m Σ x_j),    E = what the steps end in from zero,

the threads of a lane compose theirs by shuffles (log2 of their number, two values each), and each walks its steps once more, from what
it then knows to start from: one multiply-add a state and step more than a walk in order has, and no sum over a lane's threads. What one
state waits for is done while the next one's exponentials are computed.

Values without states are made once a lane and step, by the thread whose steps they are, and stay in its registers: there is no other
phase for them, and no barrier but one a tile, for the rows of B and C that all lanes read, a tile ahead. ``split`` warps have the same
lanes and steps and a part of the states each; then each makes a part of a span's values and passes them on, and sums of states go the
way back.
"""

from __future__ import annotations

from collections.abc import Callable

from scanc.codegen.cuda import SHARED_LIMIT, CudaSource
from scanc.codegen.cuda_span_tables import SpanTables
from scanc.codegen.emit import Body, Parts, Source
from scanc.codegen.layout import Mode
from scanc.errors import ScheduleError
from scanc.forms.plan import Plan, Region
from scanc.forms.segments import exponent
from scanc.forms.spans import why_not_spans
from scanc.ir import Node
from scanc.schedule import RecurrentSchedule, Schedule

Known = dict[Node, Parts]


def generate(plan: Plan, schedule: RecurrentSchedule, state: int, mode: Mode, title: str) -> CudaSource:
    """The source of one kernel. Raises ScheduleError where the plan is not for spans, or a block would be too large."""
    reason = why_not_spans(plan) or ("segments" if mode.entries or mode.summary else "")
    if reason:
        raise ScheduleError(field="span", value=schedule.span, limit=f"it must be 0, since threads do not share the time of {reason}")
    from scanc.codegen.cuda_spans_apart import ApartPrinter

    printer = (ApartPrinter if schedule.stages == 2 else SpanPrinter)(plan, schedule, state, mode, title)
    text = printer.print()
    shared = 4 * printer.shared_words
    if shared > SHARED_LIMIT:
        limit = f"its block would need {shared} bytes of shared memory and no GPU gives more than {SHARED_LIMIT}; lower it, lanes or stages"
        raise ScheduleError(field="tile", value=schedule.tile, limit=limit)
    made = printer.source("cuda", text)
    return CudaSource(**made.__dict__, threads=printer.threads, shared=shared, tile=printer.tile, narrow=printer.narrow)


class SpanPrinter(SpanTables):
    schedule: RecurrentSchedule
    thread_number = "thread_kept()"
    rows_at = "(tile & 1) * (N * ROW)"  # where a tile's rows stand
    thread = "tid"                      # a thread's number, where it is divided
    asks = ""                           # how the functions that ask for a tile are told whether it is there

    # -- layout -----------------------------------------------------------------------------------------------------------------

    def _check(self, schedule: Schedule) -> None:
        assert isinstance(schedule, RecurrentSchedule)
        self.span, self.spans = schedule.span, schedule.tile // schedule.span  # a thread's steps, and threads that share a lane's time
        self.threads, self.per = self.lanes * self.spans * self.split, self.N // self.split
        self.padded, self.mine = self.N, self.span // self.split
        self.blocks = schedule.blocks
        self.row = self.spans * (self.span + 4)  # words from state to state in rows; four more a span, for other banks

        def need(field: str, holds: bool, limit: str) -> None:
            if not holds:
                raise ScheduleError(field=field, value=getattr(schedule, field), limit=limit)

        need("lanes", self.threads <= 1024, f"a block of lanes × tile / span × split has {self.threads} threads and may have 1024")
        need("lanes", self.lanes * self.spans % 32 == 0, f"lanes × tile / span, {self.lanes * self.spans}, must be whole warps")
        need("split", self.N % self.split == 0, f"it must divide the number of states, {self.N}")
        need("split", self.mine % 4 == 0, f"of a span of {self.span} steps each would make {self.mine}, and four is the least")
        need("walk", schedule.walk == 1, "blocks whose threads share a lane's time walk one lane tile")
        need("tile", 2 <= self.spans <= 32, f"2 to 32 threads share a lane's time, and tile / span is {self.spans}")

    def _assign(self) -> None:
        """What the walk reads of values without states, what the epilogue does, and which inputs are rows."""
        plan, phases = self.plan, self.phases
        self.walked = [n for n in plan.main_body if plan.region[n] == Region.SCAN or n.op == "sum"]
        self.crossing = list(dict.fromkeys(a for n in self.walked for a in n.args if phases.early(a) and a.op != "const"))
        self.back = phases.worth_keeping(self.crossing)
        self.epilogue = phases.epilogue(self.back)
        self.left = phases.left(self.epilogue)
        self.inputs_over_states = [n for n in self.walked if n.op == "input"]
        self.chunk = self._neighbours([self.of_input[n] for n in self.inputs_over_states], self.N, self.N * self.tile)
        self.words: dict[tuple[Node, str], str] = {}

    @property
    def helpers(self) -> int:
        return 0

    @property
    def blocks_per_multiprocessor(self) -> int:
        return max(1, min(self.blocks, 2048 // self.threads))

    @property
    def _n(self) -> str:
        return "n"

    def _carry_names(self, scan: Node) -> Parts:
        return (self.word(scan, "carry"),)

    def _over_states(self, out: Source, lines: list[str]) -> None:
        out(*lines)

    # -- the kernel -------------------------------------------------------------------------------------------------------------

    def _constants(self, out: Source) -> None:
        out(f"constexpr int N = {self.N}, PER = {self.per};  // size of the state axis {self.plan.state}, a warp's share of it")
        out(f"constexpr int TILE = {self.tile}, SPAN = {self.span}, SPANS = {self.spans};  // steps of a tile and of a thread")
        out(f"constexpr int LANES = {self.lanes}, SPLIT = {self.split}, OVER = LANES * SPANS, THREADS = OVER * SPLIT;")
        out(f"constexpr int OWN = SPAN / SPLIT, ROW = {self.row}, TABLE = N + 1, CHUNK = {self.chunk};")
        if self.inputs_over_states:
            out("using Rows = Chunks<TILE, CHUNK, N, THREADS>;")

    def _thread_places(self) -> dict[str, str]:
        """Warps that share states follow one another; ``within`` counts threads with spans of their own."""
        tid, within = self.thread, "within" if self.thread == "tid" else "unsigned(within)"
        own = within if self.split > 1 else tid
        places = {"lane": f"Spans<SPANS>::lane({own})", "own": f"Spans<SPANS>::own({own})"}
        if self.split == 1:
            return {"part": "0", **places}
        return {"part": f"{tid} / 32 % SPLIT", "within": f"{tid} / (32 * SPLIT) * 32 + {tid} % 32", **places}

    def _time_of_block(self, out: Source) -> None:
        out("constexpr index_t t0 = 0;  // time is taken whole", f"const int length = int(size_{self.plan.time});")

    def _narrow(self, number: str) -> str:
        return f"int({number})"

    def _block(self) -> Source:
        out = Source()
        early = [n for n in self._cone(self.crossing) if n.op != "const"]
        first = [n for n in early if n.op == "input"]
        then = [n for n in self.epilogue if n.op == "input" and n not in first]
        self._lane_values_of(out)
        over = [*first, *then]
        self._pointers(out, over)
        self._copies(out, "stage_soon", first)
        self._copies(out, "stage_then", then)
        self._row_copies(out)
        out("stage_rows_of(0);", "stage_soon(0);", "copies_issued();")
        self._tables(out)
        out("copies_done<0>();", "spread_rows_of(0);", "stage_rows_of(1);", "copies_issued();")
        if then:
            out("stage_then(0);", "copies_issued();")
        out("const int whole_steps = lanes == LANES ? together : 0;", "__syncthreads();")
        self._each_tile(out, first, then)
        out("if ((tile + 1) * TILE <= whole_steps) walk(Yes());", "else walk(No());", "__syncthreads();").close()
        self._finals(out)
        return out

    # -- a tile -----------------------------------------------------------------------------------------------------------------

    def _each_tile(self, out: Source, first: list[Node], then: list[Node]) -> None:
        """The loop over tiles, opened; what is done with one is a function of whether it is whole."""
        out.open("for (int tile = 0; tile * TILE < length; ++tile) {")
        out("const index_t ts = t0 + index_t(tile) * TILE;", "const int steps = smaller(TILE, length - tile * TILE);")
        out(f"copies_done<{1 if then else 0}>();")
        out.open("const auto walk = [&](auto is_whole) {")
        out("constexpr bool whole = decltype(is_whole)::value;  // all steps and lanes are there, and lie together")
        self._tile(out, first, then)
        out.close("};")

    def _tile(self, out: Source, first: list[Node], then: list[Node]) -> None:
        known = dict(self.known)
        self._early_values(out, first, known)
        out(f"stage_soon({self.asks}tile + 1);", "copies_issued();")
        sums = [n for n in self.walked if n.op == "sum"]
        for s in sums:
            out(f"float {self.word(s, 'v')}[SPAN] = {{}};")
        self._each_state(out, known, sums)
        for i, s in enumerate(sums):
            out(f"float {self.word(s, 'part')}[OWN];")
            if self.split > 1:
                place = self.shared(f"passed_back{i or ''}", self.span * self.lanes * self.spans * (1 if self.split == 2 else self.split))
                out(f"gather_parts<SPAN, SPLIT, OVER>({self.word(s, 'part')}, {self.word(s, 'v')}, {place}, within, part);")
            else:
                out(f"copy_values({self.word(s, 'part')}, {self.word(s, 'v')});")
            known[s] = (f"{self.word(s, 'part')}[j]",)
        if then:
            out("copies_done<1>();")
        self._late_values(out, then, known)
        if then:
            out(f"stage_then({self.asks}tile + 1);", "copies_issued();")

    def _spread_next(self, out: Source) -> None:
        out("spread_rows_of(tile + 1);")

    def _read(self, out: Source, inputs: list[Node], known: Known) -> None:
        for node in inputs:
            name = self.word(node, "in")
            out(f"float {name}[OWN];", f"read_staged({name}, {self._staged(node)});")
            known[node] = (f"{name}[j]",)

    def _early_values(self, out: Source, first: list[Node], known: Known) -> None:
        """What the walk reads of each step, made by the threads whose steps they are, and passed on where several warps walk them."""
        self._read(out, first, known)
        self._spread_next(out)
        local = dict(known)
        body = Body(self.dialect, self.names, local, self.declare, keep=frozenset(self.crossing))
        cone = [n for n in self._cone(self.crossing) if n not in local]
        lines = body.run(cone, lambda n: self._load(n, local) if n.op == "size" else None)
        own = [n for n in self.crossing if n.op != "input"]
        for node in own:
            out(f"float {self.word(node, 'part')}[OWN];")
            lines.append(f"{self.word(node, 'part')}[j] = {local[node][0]};")
            known[node] = (f"{self.word(node, 'part')}[j]",)
        if lines:
            out("#pragma unroll").open("for (int j = 0; j < OWN; ++j) {")(*lines).close()
        for w, node in enumerate(self.crossing):
            name, values = known[node][0].removesuffix("[j]"), self.word(node, "v")
            out(f"float {values}[SPAN];")
            if self.split == 1:
                out(f"copy_values({values}, {name});", f"keep_values({values});")
                continue
            place = self.shared("passed_on", self.span * self.lanes * self.spans * len(self.crossing))
            out(f"pass_part<SPAN, SPLIT, OVER>({place} + {w} * (SPAN * OVER), {name}, within, part);")
        out(f"stage_rows_of({self.asks}tile + 2);")
        if self.split > 1:
            out("meet_some<32 * SPLIT, OVER / 32>(within / 32);")
            for w, node in enumerate(self.crossing):
                out(f"take_parts<SPAN, OVER>({self.word(node, 'v')}, passed_on + {w} * (SPAN * OVER), within);")
        for scan in self.plan.main:
            factors = exponent(self.plan, scan)
            if factors is not None and factors[0] in self.crossing:
                total, values = self.word(factors[0], "total"), self.word(factors[0], "v")
                out(f"float {total} = 0.0f;", "#pragma unroll",
                    f"for (int j = 0; j < SPAN; ++j) {total} += whole || own * SPAN + j < steps ? {values}[j] : 0.0f;")

    def _each_state(self, out: Source, known: Known, sums: list[Node]) -> None:
        """State after state: its steps' transitions, what they come to, what is before them, and its steps once more."""
        scans = self.plan.main
        known = {n: v for n, v in known.items() if n not in self.crossing}
        known |= {n: (f"{self.word(n, 'v')}[j]",) for n in self.crossing}
        for node in self._exported:
            known[node] = (self.word(node, "now"),)
        before: set[Node] = {a for s in scans for a in s.args[:2]}
        for node in reversed(self.walked):
            if node in before and node not in scans:
                before |= set(node.args)
        front = [n for n in self.walked if n in before and n not in scans]
        behind = [n for n in self.walked if n not in front]
        lists = {s: [f"float (&{self.word(s, w)})[SPAN]" for w in ("a", "b")] for s in scans}
        given = ", ".join(x for s in scans for x in lists[s])
        ends = ", ".join(f"float& {self.word(s, w)}" for s in scans for w in ("product", "end"))

        def head(nodes: list[Node]) -> None:
            tables = [t for t in self._exported if any(t in n.args for n in nodes)]
            if nodes is front:
                tables = list(dict.fromkeys((*tables, *(f[1] for f in map(self._factors, scans) if f and f[1] in self._exported))))
            out(*(f"const float {self.word(t, 'now')} = {self._table(t, 'of')}[in_table + s];" for t in tables))
            for node in (n for n in self.inputs_over_states if any(n in u.args for u in nodes)):
                out(f"float {self.word(node, 'v')}[SPAN];",
                    f"read_row({self.word(node, 'v')}, {self._row_buffers(node)} + in_rows + s * ROW);")
                known[node] = (f"{self.word(node, 'v')}[j]",)

        at_once = 2 if self._paired else 1
        out("// Where the states at hand stand in tables (the next tile's, where carries are left; this one's, or zeros) and in rows.")
        out("int in_table = ((tile + 1) & 1) * (LANES * TABLE) + lane * TABLE + part * PER;")
        out("int in_starts = own == 0 ? (tile & 1) * (LANES * TABLE) + lane * TABLE + part * PER : 2 * LANES * TABLE;")
        out(f"int in_rows = {self.rows_at} + part * (PER * ROW) + own * (SPAN + 4);")
        out("#pragma unroll 1").open(f"for (int k = 0; k < PER; k += {at_once}) {{")
        out.open(f"const auto before = [&](int s, {given}, {ends}) {{")
        head(front)
        local = dict(known)
        lines = self._lines(front, local)
        for s in scans:
            a, b = (local[x][0] for x in s.args[:2])
            lines += [f"{self.word(s, 'a')}[j] = whole || own * SPAN + j < steps ? {a} : 1.0f;",
                      f"{self.word(s, 'b')}[j] = whole || own * SPAN + j < steps ? {b} : 0.0f;"]
        self._each(out, lines)
        for s in scans:
            factors = self._factors(s)
            product = f"exp2_({self.word(factors[0], 'total')} * {local[factors[1]][0]})" if factors else f"product_of({self.word(s, 'a')})"
            out(f"{self.word(s, 'end')} = end_of({self.word(s, 'a')}, {self.word(s, 'b')});", f"{self.word(s, 'product')} = {product};")
        out.close("};")
        starts = ", ".join(f"float {self._carry_names(s)[0]}" for s in scans)
        out.open(f"const auto behind = [&](int s, {given.replace('float (', 'const float (')}, {starts}) {{")
        head([n for n in behind if n not in scans])
        if self.mode.leaves:
            out("const int n = part * PER + k + s;")
            self._leave_starts(out)
        local = dict(known)

        def scanned(node: Node) -> list[str] | None:
            if node in sums:
                value = node.args[0]
                local[node] = (f"{self.word(node, 'v')}[j]",)
                return [f"{self.word(node, 'v')}[j] += {local[value][0]};"]
            if node not in scans:
                return None
            carry = self._carry_names(node)[0]
            local[node] = (carry,)
            return [f"{carry} = ({self.word(node, 'a')}[j] * {carry}) + {self.word(node, 'b')}[j];"]

        self._each(out, self._lines(behind, local, scanned))
        out.close("};")
        for s in scans:
            arrays = ", ".join(f"{self.word(s, w)}{turn}[SPAN]" for turn in range(at_once) for w in ("a", "b"))
            out(f"float {arrays}, {', '.join(f'{self.word(s, w)}[{at_once}]' for w in ('products', 'ends', 'starts'))};")
        for turn in range(at_once):
            words = [f"{self.word(s, w)}{turn}" for s in scans for w in ("a", "b")]
            words += [f"{self.word(s, w)}[{turn}]" for s in scans for w in ("products", "ends")]
            out(f"before({turn}, {', '.join(words)});")
        for s in scans:
            out(f"span_starts<SPANS>({', '.join(self.word(s, w) for w in ('starts', 'products', 'ends'))}, "
                f"{self._table(s, 'start')} + in_starts, {self._table(s, 'start')} + in_table, own);")
        for turn in range(at_once):
            words = [f"{self.word(s, w)}{turn}" for s in scans for w in ("a", "b")] + [f"{self.word(s, 'starts')}[{turn}]" for s in scans]
            out(f"behind({turn}, {', '.join(words)});")
        out(f"in_table += {at_once};", f"in_starts += {at_once};", f"in_rows += {at_once} * ROW;").close()

    @property
    def _paired(self) -> bool:
        """Whether a thread has registers for two states' steps at once: while one waits for shuffles or its last step the other goes on."""
        arrays = len(self.crossing) + sum(n.op == "sum" for n in self.walked) + 4 * len(self.plan.main)
        return self.per % 2 == 0 and 48 + self.span * arrays <= 65536 // (self.threads * self.blocks_per_multiprocessor)

    def _factors(self, scan: Node) -> tuple[Node, Node] | None:
        """(x, m) of a transition 2^(x m) whose x the walk reads."""
        found = exponent(self.plan, scan)
        return found if found is not None and found[0] in self.crossing else None

    def _lines(self, nodes: list[Node], known: Known, special: Callable[[Node], list[str] | None] = lambda n: None) -> list[str]:
        body = Body(self.dialect, self.names, known, self.declare, keep=frozenset())
        return body.run([n for n in nodes if n.op != "input"], special)

    @staticmethod
    def _each(out: Source, lines: list[str]) -> None:
        if lines:
            out("#pragma unroll").open("for (int j = 0; j < SPAN; ++j) {")(*lines).close()

    def _leave_starts(self, out: Source) -> None:
        """The carries before a span, where a checkpoint is due."""
        out.open(f"if ((index_t(tile) * TILE + own * SPAN) % {self.mode.leaves} == 0 && own * SPAN < steps && lane < lanes) {{")
        for i, scan in enumerate(self.plan.main):
            b = next(b for b in self.buffers if b.name == f"checkpoint{i}")
            at = self._address(b, 0, "lane", state="n", time=f"((ts + own * SPAN) / {self.mode.leaves})")
            out(f"*({at}) = {self._carry_names(scan)[0]};")
        out.close()

    def _late_values(self, out: Source, then: list[Node], known: Known) -> None:
        self._read(out, then, known)
        stores = [s for s in self.plan.stores if s.kind == "value"]
        local = dict(known)
        body = Body(self.dialect, self.names, local, self.declare, keep=frozenset(s.value for s in stores))
        nodes = [n for n in self.epilogue if n not in local]
        lines = body.run(nodes, lambda n: self._load(n, local) if n.op == "size" else None)
        for store in stores:
            out(f"float {store.name}_out[OWN];")
            lines.append(f"{store.name}_out[j] = {local[store.value][0]};")
        if lines:
            out("#pragma unroll").open("for (int j = 0; j < OWN; ++j) {")(*lines).close()
        for store in stores:
            b, owner = self.of_store[store], self.owner(store.value, store.axes)
            guard = self.both.join(g for g in (owner, "(whole || lane < lanes)") if g)
            at = f"{b.name}_at + after<whole>(tile * TILE, {b.name}_{self.plan.time})"
            out(f"if ({guard}) store_group<whole>({at}, {b.name}_{self.plan.time}, {store.name}_out, steps - own * SPAN - part * OWN);")
