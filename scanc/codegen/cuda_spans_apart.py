"""Spans whose warps need not stand together between tiles (``stages`` 2): rows of states stand three times.

Who has left its part of the next tile's rows says so and goes on, and waits before it leaves those of the tile after: by then all have left
the next one's, and are done with the rows that are replaced. So a warp may be most of a tile ahead of another, and what one does before
and behind its states fills what the other waits for among them.

A tile that is whole, and after which the tiles that it asks for are, asks nothing: what comes before the states is one straight piece of
code, which the assembler mixes. A thread's chunks of rows are those of all inputs together, so that no thread has a turn more than it must.
"""

from __future__ import annotations

from scanc.codegen.cuda_dialect import C_TYPES
from scanc.codegen.cuda_elements import ITEM_BYTES
from scanc.codegen.cuda_spans import SpanPrinter
from scanc.codegen.emit import Body, Parts, Source
from scanc.ir import Node


class ApartPrinter(SpanPrinter):
    rows_at, asks, thread = "rows_now", "is_whole, ", "unsigned(tid)"

    def _constants(self, out: Source) -> None:
        super()._constants(out)
        out("constexpr int TABLES = (LANES * N + THREADS - 1) / THREADS;  // entries of a table that a thread makes")

    def _block(self) -> Source:
        out = Source()
        early = [n for n in self._cone(self.crossing) if n.op != "const"]
        first = [n for n in early if n.op == "input"]
        then = [n for n in self.epilogue if n.op == "input" and n not in first]
        over = [*first, *then]
        out("const int last_tile = length / TILE - 1;")
        self._row_pointers(out)
        self._row_copies(out)
        out("stage_rows_of(No(), 0);")
        self._lane_pointers(out, over)
        self._copies(out, "stage_soon", first)
        self._copies(out, "stage_then", then)
        out("stage_soon(No(), 0);", "copies_issued();")
        self._ask_tables(out)
        self._lane_values_of(out)
        out("copies_done<0>();", "spread_rows_of(No(), 0, 0);", "stage_rows_of(No(), 1);", "copies_issued();")
        self._leave_tables(out)
        if then:
            out("stage_then(No(), 0);", "copies_issued();")
        out(f"if (tid == 0) set_signal({self.shared('arrivals', 2)}, THREADS / 32);", "int rows_now = 0, rows_next = N * ROW;")
        out("const int whole_steps = lanes == LANES ? together : 0;")
        rows = " && rows_together == length" if self.inputs_over_states else ""
        out(f"const bool sure = whole_steps == length{rows} && length % TILE == 0;")
        out("__syncthreads();")
        self._each_tile(out, first, then)
        out("if (LIKELY(sure)) walk(Sure());", "else if (LIKELY((tile + 1) * TILE <= whole_steps)) walk(Yes());", "else walk(No());")
        out("rows_now = rows_next;", "rows_next = rows_next == 2 * N * ROW ? 0 : rows_next + N * ROW;").close()("__syncthreads();")
        self._finals(out)
        return out

    def _spread_next(self, out: Source) -> None:
        """Three places: whoever has waited knows that all have walked the tile before the last one, whose rows these replace."""
        out("if (tile > 0) wait_in_line(arrivals, tile);", "spread_rows_of(is_whole, tile + 1, rows_next);")
        out("__syncwarp(0xffffffffu);", "if (threadIdx.x % 32 == 0) report(arrivals);")

    # -- tables -----------------------------------------------------------------------------------------------------------------

    def _each_entry(self, out: Source) -> None:
        out("#pragma unroll").open("for (int turn = 0; turn < TABLES; ++turn) {")
        out("const int e = turn * THREADS + tid;", "if (e >= LANES * N) break;")
        out("const int n = e % N, row = e / N, here = smaller(row, lanes - 1);")

    def _ask_tables(self, out: Source) -> None:
        """Inputs without time for the tables, asked for as early as may be."""
        nodes, _ = self._table_nodes()
        inputs = [n for n in nodes if n.op == "input"]
        for node in inputs:
            out(f"{self.type_of(node)} {self.word(node, 'first')}[TABLES];")
        if inputs:
            self._each_entry(out)
            for node in inputs:
                local: dict[Node, Parts] = {}
                out(*self._load(node, local), f"{self.word(node, 'first')}[turn] = {local[node][0]};")
            out.close()

    def _leave_tables(self, out: Source) -> None:
        """Tables of those and of the scans' carries, which only the first and the last of a lane's threads read and write in between."""
        nodes, wanted = self._table_nodes()
        known: dict[Node, Parts] = {n: v for n, v in self.known.items() if n.op == "const"}
        known |= {n: (f"{self.word(n, 'first')}[turn]",) for n in nodes if n.op == "input"}
        self._each_entry(out)
        out("const int at = row * TABLE + n;")
        body = Body(self.dialect, self.names, known, self.declare, keep=wanted)
        out(*body.run([n for n in nodes if n.op != "input"], lambda n: self._load(n, known) if n.op == "size" else None))
        self._leave_entries(out, known)

    @property
    def _chunks(self) -> int:
        """Chunks of neighbours that a tile of one input's rows is brought in."""
        return self.N * self.tile // self.chunk

    def _row_pointers(self, out: Source) -> None:
        """A thread's own chunks of all inputs' rows: where they stand in memory, where they are left, and how many steps lie together."""
        rows = [self.of_input[n] for n in self.inputs_over_states]
        if not rows:
            return
        time, state, each, number = self.plan.time, self.plan.state, self._chunks, self._chunks * len(rows)
        words = -(-self.chunk * max(ITEM_BYTES[C_TYPES[b.dtype]] for b in rows) // 4)
        self.shared("rows_staged", number * words)
        self.shared("rows", len(rows) * 3 * self.N * self.row)
        out(f"constexpr int EACH = {each}, CHUNKS = {number}, WORDS = {words};  // chunks of a tile's rows, and words of one")
        out("const int chunk = (tid + CHUNKS % THREADS) % THREADS;  // where the last turn is not all threads', it is the last ones'")
        starts = [f"{self.pointer(b, 0)} + t0 * {b.name}_{time}" for b in rows]
        turns = range(0, number, self.threads)
        keep = "kept" if len(turns) <= 4 else ""
        for turn, first in enumerate(turns):
            last = min(number, first + self.threads) - 1
            places, addresses = "", ""
            for i in range(first // each, last // each + 1):
                b, e = rows[i], f"(chunk + {first - i * each})" if first != i * each else "chunk"
                if last + 1 < first + self.threads and i == last // each:
                    e = f"smaller({e}, EACH - 1)"
                n, step = f"{e} / (TILE / CHUNK)", f"{e} % (TILE / CHUNK) * CHUNK"
                question = f"chunk < {(i + 1) * each - first} ? " if i < last // each else ""
                joint = " : " if question else ""
                addresses += f"{question}{starts[i]} + index_t({n}) * {b.name}_{state} + index_t({step}) * {b.name}_{time}{joint}"
                places += f"{question}{i * 3 * self.N * self.row} + {n} * ROW + row_at<SPAN>({step}){joint}"
            out(f"const {C_TYPES[rows[0].dtype]}* const rows_from{turn} = {keep}({addresses});" if self._alike else "",
                f"const int rows_to{turn} = {keep}({places});" if self._alike else "")
        near = " && ".join(f"lie_together({at}, {b.name}_{time}, {b.name}_{state})" for at, b in zip(starts, rows, strict=True))
        out(f"const int rows_together = {f'CHUNK > 1 && {near} ? length : 0' if self._alike else '0'};")

    @property
    def _alike(self) -> bool:
        return len({self.of_input[n].dtype for n in self.inputs_over_states}) == 1

    def _row_buffers(self, node: Node) -> str:
        at = self.inputs_over_states.index(node) * 3 * self.N * self.row
        return f"rows + {at}" if at else "rows"

    def _copies(self, out: Source, name: str, inputs: list[Node]) -> None:
        """A function that asks for a tile's steps of some inputs, each thread for its own."""
        if not inputs:
            return
        out.open(f"const auto {name} = [&](auto is, int asked) {{")("constexpr bool sure = decltype(is)::sure;")
        out("const int tile = sure ? smaller(asked, last_tile) : asked;").open("const auto ask = [&](auto is_whole) {")
        self._ask_own(out, inputs)
        out.close("};")("if (sure || LIKELY((tile + 1) * TILE <= together)) ask(Yes());", "else if (tile * TILE < length) ask(No());")
        out.close("};")

    def _row_copies(self, out: Source) -> None:
        """The same for the rows that all lanes read, and functions that leave them as words, each thread those that it asked for."""
        time, state = self.plan.time, self.plan.state
        rows = [self.of_input[n] for n in self.inputs_over_states]
        turns = [(turn, self._chunks * len(rows) - first) for turn, first in enumerate(range(0, self._chunks * len(rows), self.threads))]
        there = {turn: f"chunk < {left}" for turn, left in turns if left < self.threads}
        out.open("const auto stage_rows_of = [&](auto is, int asked) {")
        if rows:
            out("constexpr bool sure = decltype(is)::sure;", "const int tile = sure ? smaller(asked, last_tile) : asked;")
            self._whole_rows(out, [f"{f'if ({there[turn]}) ' if turn in there else ''}stage_group<true, CHUNK>({self._chunk_place(turn)}, "
                                   f"rows_from{turn} + tile * TILE, 1, CHUNK);" for turn, _ in turns])
            self._any_rows(out, [f"stage_chunk<TILE, CHUNK, N>({{place}}, {{e}}, {self.pointer(b, 0)} + (t0 + index_t(tile) * TILE) * "
                                 f"{b.name}_{time}, {b.name}_{state}, {b.name}_{time}, steps);" for b in rows])
        out.close("};").open("const auto spread_rows_of = [&](auto is, int tile, int at) {")
        if rows:
            out("constexpr bool sure = decltype(is)::sure;")
            # All are read before one is written.
            self._whole_rows(out, [f"float words{turn}[CHUNK];" for turn, _ in turns]
                             + [f"read_chunk(words{turn}, {self._chunk_place(turn, left)});" for turn, left in turns]
                             + [f"write_row{f'_if({there[turn]}, ' if turn in there else '('}rows + (rows_to{turn} + at), words{turn});"
                                for turn, _ in turns])
            self._any_rows(out, [f"spread_chunk<TILE, CHUNK, N, ROW, SPAN>({self._row_buffers(n)} + at, {{e}}, {{place}}, "
                                 f"{self.of_input[n].name}_{state}, steps);" for n in self.inputs_over_states])
        out.close("};")

    def _chunk_place(self, turn: int, left: int | None = None) -> str:
        e = f"chunk + {turn * self.threads}" if turn else "chunk"
        if left is not None and left < self.threads:
            e = f"smaller({e}, CHUNKS - 1)"
        return f"reinterpret_cast<{C_TYPES[self.of_input[self.inputs_over_states[0]].dtype]}*>(rows_staged + ({e}) * WORDS)"

    def _whole_rows(self, out: Source, lines: list[str]) -> None:
        out.open("if (sure || LIKELY((tile + 1) * TILE <= rows_together)) {")(*(lines if self._alike else ())).close()

    def _any_rows(self, out: Source, lines: list[str]) -> None:
        """Chunks that may lie anyhow, or not be whole: a line for each input."""
        out.open("else if (tile * TILE < length) {")("const int steps = smaller(TILE, length - tile * TILE);")
        out("#pragma unroll 1").open("for (int e = chunk; e < CHUNKS; e += THREADS) {")
        for i, (node, line) in enumerate(zip(self.inputs_over_states, lines, strict=True)):
            place = f"reinterpret_cast<{C_TYPES[self.of_input[node].dtype]}*>(rows_staged + e * WORDS)"
            out(f"{'else ' if i else ''}{f'if (e < {i + 1} * EACH) ' if i + 1 < len(lines) else ''}"
                + line.format(place=place, e=f"e - {i} * EACH" if i else "e"))
        out.close().close()
