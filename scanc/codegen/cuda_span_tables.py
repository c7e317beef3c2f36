"""The CUDA backend, spans, in shared memory: tables of lanes and states, inputs as copies bring them, rows that all lanes read."""

from __future__ import annotations

from scanc.codegen.cuda import Printer
from scanc.codegen.cuda_dialect import C_TYPES
from scanc.codegen.cuda_elements import ITEM_BYTES
from scanc.codegen.emit import Body, Parts, Source
from scanc.codegen.layout import Buffer
from scanc.forms.plan import Region
from scanc.forms.segments import exponent
from scanc.ir import Node


class SpanTables(Printer):
    spans: int                        # threads that share a lane's time
    span: int                         # steps of each
    mine: int                         # steps of each whose values it makes
    row: int                          # words from state to state in rows
    walked: list[Node]                # nodes of the walk
    inputs_over_states: list[Node]    # those that are rows
    words: dict[tuple[Node, str], str]

    def word(self, node: Node, end: str) -> str:
        """A name made of a value's own and what of it is meant."""
        if (node, end) not in self.words:
            self.words[node, end] = self.names.fresh(f"{self.names.of(node)}_{end}")
        return self.words[node, end]

    def _places(self, b: Buffer, name: str, elements: int) -> str:
        self.shared(name, -(-elements * ITEM_BYTES[C_TYPES[b.dtype]] // 4))
        return f"reinterpret_cast<{C_TYPES[b.dtype]}*>({name})"

    # -- values without time ----------------------------------------------------------------------------------------------------

    def _everything(self, region: Region) -> list[Node]:
        return [n for n in self.plan.main_body if self.plan.region[n] == region or n.op == "const"]

    def _lane_values_of(self, out: Source) -> None:
        body = Body(self.dialect, self.names, self.known, self.declare)
        out(*body.run(self._everything(Region.LANE), lambda n: self._load(n, self.known) if n.op in ("input", "size") else None))

    @property
    def _exported(self) -> list[Node]:
        """Values of lanes and states without time that steps read: they stand in tables [lane][state]."""
        read = dict.fromkeys(a for n in self.walked for a in n.args if self.plan.region[a] == Region.STATE and a.op != "const")
        factors = (exponent(self.plan, s) for s in self.plan.main)
        read.update((f[1], None) for f in factors if f is not None and self.plan.region[f[1]] == Region.STATE)
        return list(read)

    def _table(self, node: Node, end: str) -> str:
        """Tables stand twice: carries for one tile and for the next, before a row of zeros, and all others so as to stand like them."""
        return self.shared(self.word(node, end), (2 * self.lanes + (end == "start")) * (self.N + 1))

    def _tables(self, out: Source) -> None:
        """Tables of those and of the scans' carries, which only the first and the last of a lane's threads read and write in between."""
        known = {n: v for n, v in self.known.items() if n.op == "const"}
        out.open("for (int e = tid; e < LANES * N; e += THREADS) {")
        out("const int n = e % N, row = e / N, here = smaller(row, lanes - 1), at = row * TABLE + n;")
        nodes, wanted = self._table_nodes()
        body = Body(self.dialect, self.names, known, self.declare, keep=wanted)
        out(*body.run(nodes, lambda n: self._load(n, known) if n.op in ("input", "size") else None))
        self._leave_entries(out, known)

    def _table_nodes(self) -> tuple[list[Node], frozenset[Node]]:
        """What tables are made of, in order, and what of it stands in them."""
        wanted = frozenset(self._exported) | {s.args[2] for s in self.plan.main if len(s.args) == 3}
        needed: set[Node] = set()
        nodes = [n for n in self.plan.main_body if self.plan.region[n] in (Region.LANE, Region.STATE)]
        for node in reversed(nodes):
            if node in wanted or node in needed:
                needed |= {node, *node.args}
        return [n for n in nodes if n in needed], wanted

    def _leave_entries(self, out: Source, known: dict[Node, Parts]) -> None:
        """The end of the loop that makes tables: one entry of each, and the zeros that others than a lane's first thread start from."""
        for node in self._exported:
            table = self._table(node, "of")
            out(f"{table}[at] = {table}[LANES * TABLE + at] = {known[node][0]};")
        for scan in self.plan.main:
            start = known[scan.args[2]][0] if len(scan.args) == 3 else "0.0f"
            out(f"{self._table(scan, 'start')}[at] = {start};")
        out.close()
        for scan in self.plan.main:
            out(f"for (int n = tid; n < N; n += THREADS) {self._table(scan, 'start')}[2 * LANES * TABLE + n] = 0.0f;")

    def _finals(self, out: Source) -> None:
        for store in (s for s in self.plan.stores if s.kind == "final"):
            b, owner = self.of_store[store], self.owner(store.value, store.axes)
            out.open(f"for (int e = tid; e < lanes * N{f' && ({owner})' if owner else ''}; e += THREADS) {{")
            out("const int n = e % N, row = e / N;")
            value = f"{self._table(store.value, 'start')}[(length + TILE - 1) / TILE % 2 * (LANES * TABLE) + row * TABLE + n]"
            out(f"*({self._address(b, 0, 'row', state='n')}) = Narrow<{C_TYPES[b.dtype]}>::of({value});").close()

    # -- copies -----------------------------------------------------------------------------------------------------------------

    def _pointers(self, out: Source, inputs: list[Node]) -> None:
        """Where a thread's own steps of the first tile stand, its own chunks of rows, and how many steps lie together there."""
        self._lane_pointers(out, inputs)
        time, state = self.plan.time, self.plan.state
        near = []
        for b in (self.of_input[n] for n in self.inputs_over_states):
            start = f"{self.pointer(b, 0)} + t0 * {b.name}_{time}"
            near.append(f"lie_together({start}, {b.name}_{time}, {b.name}_{state})")
            out(f"const {C_TYPES[b.dtype]}* const {b.name}_at = kept({start} + index_t(Rows::state(tid)) * {b.name}_{state} + "
                f"index_t(Rows::step(tid)) * {b.name}_{time});")
        if near:
            out(f"const int rows_together = Rows::plain && {' && '.join(near)} ? length : 0;")
            out("const int own_row = kept(Rows::state(tid) * ROW + row_at<SPAN>(Rows::step(tid)));")

    def _lane_pointers(self, out: Source, inputs: list[Node]) -> None:
        """Where a thread's own steps of the first tile stand in each tensor of lanes and steps, and how many of them lie together there."""
        time, lane = self.plan.time, self.plan.lane
        out("const index_t mine = t0 + own * SPAN + part * OWN;")
        stores = [self.of_store[s] for s in self.plan.stores if s.kind == "value"]
        together = []
        for b in (*(self.of_input[n] for n in inputs), *stores):
            at = f"{self.pointer(b, 0)} + index_t(here) * {b.name}_{lane} + mine * {b.name}_{time}"
            out(f"{'' if b.written else 'const '}{C_TYPES[b.dtype]}* const {b.name}_at = kept({at});")
            together.append(f"lie_together({self.pointer(b, 0)} + t0 * {b.name}_{time}, {b.name}_{time}, {b.name}_{lane})")
        out(f"const int together = {' && '.join(together)} ? length : 0;")

    def _staged(self, node: Node) -> str:
        return f"{self._places(self.of_input[node], self.word(node, 'staged'), self.mine * self.threads)} + tid * OWN"

    def _row_staged(self, node: Node) -> str:
        return self._places(self.of_input[node], self.word(node, "staged"), self.N * self.tile)

    def _row_buffers(self, node: Node) -> str:
        return self.shared(self.word(node, "rows"), 2 * self.N * self.row)

    def _ask_own(self, out: Source, inputs: list[Node]) -> None:
        """A tile's steps of some inputs, of which a thread asks for its own."""
        out("constexpr bool whole = decltype(is_whole)::value;")
        for node in inputs:
            b = self.of_input[node]
            stride = f"{b.name}_{self.plan.time}"
            out(f"stage_group<whole, OWN>({self._staged(node)}, {b.name}_at + after<whole>(tile * TILE, {stride}), {stride}, "
                "length - tile * TILE - own * SPAN - part * OWN);")

    def _copies(self, out: Source, name: str, inputs: list[Node]) -> None:
        """A function that asks for a tile's steps of some inputs, each thread for its own."""
        if not inputs:
            return
        out.open(f"const auto {name} = [&](int tile) {{").open("const auto ask = [&](auto is_whole) {")
        self._ask_own(out, inputs)
        out.close("};")("if ((tile + 1) * TILE <= together) ask(Yes());", "else if (tile * TILE < length) ask(No());").close("};")

    def _row_copies(self, out: Source) -> None:
        """The same for the rows that all lanes read, and functions that leave them as words, each thread those that it asked for."""
        time, state, rows = self.plan.time, self.plan.state, [self.of_input[n] for n in self.inputs_over_states]
        places = [self._row_staged(n) for n in self.inputs_over_states]
        left = [f"{self._row_buffers(n)} + (tile & 1) * (N * ROW)" for n in self.inputs_over_states]
        out.open("const auto stage_rows_of = [&](int tile) {")
        if rows:
            out.open("if ((tile + 1) * TILE <= rows_together) {")
            out("#pragma unroll").open("for (int turn = 0; turn < Rows::TURNS; ++turn) {")("if (!Rows::has(tid, turn)) break;")
            for b, place in zip(rows, places, strict=True):
                at = f"{b.name}_at + (index_t(turn * Rows::DOWN) * {b.name}_{state} + tile * TILE)"
                out(f"stage_group<true, CHUNK>({place} + (turn * THREADS + tid) * CHUNK, {at}, 1, CHUNK);")
            out.close()
            out.close().open("else if (tile * TILE < length) {")
            for b, place in zip(rows, places, strict=True):
                at = f"{self.pointer(b, 0)} + (t0 + index_t(tile) * TILE) * {b.name}_{time}"
                out(f"stage_rows<TILE, CHUNK, N, THREADS>(false, {place}, {at}, {b.name}_{state}, {b.name}_{time}, N, "
                    "smaller(TILE, length - tile * TILE));")
            out.close()
        out.close("};").open("const auto spread_rows_of = [&](int tile) {")
        if rows:
            out.open("if ((tile + 1) * TILE <= rows_together) {")
            out("#pragma unroll").open("for (int turn = 0; turn < Rows::TURNS; ++turn) {")("if (!Rows::has(tid, turn)) break;")
            for b, place in zip(rows, places, strict=True):  # all are read before one is written
                out(f"float {b.name}_words[CHUNK];", f"read_chunk({b.name}_words, {place} + (turn * THREADS + tid) * CHUNK);")
            for b, to in zip(rows, left, strict=True):
                out(f"write_row({to} + (own_row + turn * (Rows::DOWN * ROW)), {b.name}_words);")
            out.close()
            out.close().open("else if (tile * TILE < length) {")
            for b, place, to in zip(rows, places, left, strict=True):
                out(f"spread_rows<TILE, CHUNK, N, ROW, THREADS, 1, SPAN>({to}, {place}, {b.name}_{state}, "
                    "smaller(TILE, length - tile * TILE));")
            out.close()
        out.close("};")
