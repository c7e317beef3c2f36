"""The CUDA backend: prologue and epilogue, the work done once per lane and step by whichever thread of the block.

A thread makes a group of neighbours at once, along time or along lanes, whichever most of a kernel's tensors are contiguous in. What it
reads of memory it has asked for a tile earlier, by copies into places of shared memory that only it reads: while the block walks one
tile the next one's inputs are on their way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from scanc.codegen.cuda_dialect import C_TYPES
from scanc.codegen.cuda_phases import FREE
from scanc.codegen.cuda_walk import WalkPrinter
from scanc.codegen.emit import Body, Parts, Source
from scanc.codegen.layout import Buffer
from scanc.forms.plan import Store
from scanc.ir import Node

Tiles = dict[Node, list[int]]  # the tiles of each value
ITEM_BYTES = {"float": 4, "bfloat16": 2, "float16": 2, "int": 4, "long long": 8, "bool": 1}


@dataclass
class Phase:
    """What the prologue or the epilogue of one pass over the tiles does to lanes and steps: its nodes, and the inputs it loads."""

    nodes: list[Node]
    loads: list[Node]
    rows: list[Node] = field(default_factory=list)      # inputs over steps and states, the same for all lanes
    wanted: list[Node] = field(default_factory=list)    # values no lane differs in

    def staged(self) -> list[Node]:
        """The inputs that copies bring: a shift is read where it is needed."""
        return [n for n in self.loads if n.op == "input"]


class ElementPrinter(WalkPrinter):
    staging_late = False  # whether what is printed is about the places of the epilogue's inputs, where it has its own
    rows_twice = False    # whether rows have two places, filled in turns

    # -- what a pass needs ------------------------------------------------------------------------------------------------------

    def _early(self, crossing: list[Node], bodies: list[tuple[Node, ...]], *, late: bool) -> Phase:
        """The prologue that fills the tiles the walks of ``bodies`` read, and with ``late`` those the epilogue reads."""
        walked = dict.fromkeys(n for body in bodies for n in self.phases.walk(body))
        rows = [n for n in walked if n.op in ("input", "shift") and self.stated(n) and not self.laned(n)]
        roots = [n for n in crossing if self.laned(n)]
        laned = [n for n in self._cone(roots) if self.laned(n)]
        wanted = [n for n in crossing if not self.laned(n)]
        wanted += [a for n in laned for a in n.args if self._plain_step(a)]
        if late:
            users = [n for n in self.epilogue if self.laned(n) or n in self.phases.behind]
            wanted += [a for n in users for a in n.args if self._plain_step(a)]
            wanted += [s.value for s in self.phases.late_stores if self._plain_step(s.value)]
        return Phase(laned, self._loads(laned, set(), set(roots)), rows, list(dict.fromkeys(wanted)))

    def _late(self) -> Phase:
        nodes = [n for n in self.epilogue if self.laned(n)]
        given = {n for n in (*self.left, *self.back) if self.laned(n)}
        return Phase(nodes, self._loads(nodes, given, {s.value for s in self._direct}))

    @property
    def _direct(self) -> list[Store]:
        """Stores that the epilogue writes group by group."""
        return [s for s in self.phases.late_stores if s.kind == "value" and self.laned(s.value) and not s.lane]

    @staticmethod
    def _loads(nodes: list[Node], given: set[Node], kept: set[Node]) -> list[Node]:
        loads = [n for n in nodes if n.op in ("input", "shift") and n not in given]
        # An input read only through shifts is not itself loaded.
        return [n for n in loads if n.op == "shift" or n in kept or any(n in u.args and u.op != "shift" for u in nodes)]

    # -- staging ----------------------------------------------------------------------------------------------------------------

    def _stage(self, out: Source, name: str, inputs: list[Node], twice: list[Node], rows: list[Node],
               within: str, also: Sequence[str] = ()) -> None:
        """A function that asks for a tile's inputs. Those ``twice`` alternate between two places: the epilogue reads them too."""
        time = self.plan.time
        out.open(f"const auto {name} = [&](int tile) {{")
        out.open(f"if ({within}) {{")
        out("const index_t ts = t0 + index_t(tile) * TILE;", "const int steps = int(smaller(TILE, t1 - ts));")
        if inputs:
            pairs = [(n, c, self.of_input[n]) for n in inputs for c in range(self._width(n))]
            self._open_groups(out, 4)
            for i, (_, c, b) in enumerate(pairs):
                out(f"const {C_TYPES[b.dtype]}* const from{i} = {self._element(b, c)};")
            for i, (node, c, b) in enumerate(pairs):
                stride = f"along ? {b.name}_{time} : {b.name}_{self.plan.lane}"
                out(f"stage_group<whole, GROUP>({self._place(node, c, node in twice)}, from{i}, {stride}, count);")
            self._close_groups(out)
        for node in rows:
            b, state = self.of_input[node], self.plan.state
            for c, row in enumerate(self._row_names(node)):
                places, strides = self._row_places(node, row), f"{b.name}_{state}, {b.name}_{time}"
                self.staged_rows[b, c] = None
                sizes = f"TILE, CHUNK, {self.padded}, {self._workers_turns(4)}"
                out(f"stage_rows<{sizes}>(rows_together, {places}, {self._base(b, c)}, {strides}, N, steps);")
        out(*also).close()("copies_issued();").close("};")

    def _places(self, b: Buffer, name: str, elements: int) -> str:
        self.shared(name, -(-elements * ITEM_BYTES[C_TYPES[b.dtype]] // 4))
        return f"reinterpret_cast<{C_TYPES[b.dtype]}*>({name})"

    def _place(self, node: Node, part: int, twice: bool) -> str:
        """Where the staged group e of an input stands."""
        elements = self.lanes * self.tile
        name = f"{self._parts(node)[part]}_staged{'_late' if self.staging_late else ''}"
        places = self._places(self.of_input[node], name, elements * (2 if twice else 1))
        return f"{places} + {f'(tile & 1) * {elements} + ' if twice else ''}e * GROUP"

    def _row_places(self, node: Node, row: str) -> str:
        elements = self.padded * self.tile
        places = self._places(self.of_input[node], f"{row}_staged", elements * (2 if self.rows_twice else 1))
        return f"{places} + (tile & 1) * {elements}" if self.rows_twice else places

    # -- prologue ---------------------------------------------------------------------------------------------------------------

    def _prologue(self, out: Source, phase: Phase, crossing: list[Node], twice: list[Node], wait: Sequence[str]) -> None:
        """Rows first, then, after ``wait``, values of lanes and steps."""
        time, state = self.plan.time, self.plan.state
        for node in phase.rows:
            b, by = self._source(node)
            for c, row in enumerate(self._row_names(node)):
                strides = f"{b.name}_{state}, {b.name}_{time}"
                if not by and node.op == "input":
                    places = f"{self._row_places(node, row)}, {b.name}_{state}"
                    out(f"spread_rows<TILE, CHUNK, {self.padded}, PITCH, {self._workers_turns(4)}>({row}, {places}, steps);")
                    continue
                base = f"{self._base(b, c)} - {by} * {b.name}_{time}"
                inside = f"{by} - ts, size_{time} + {by} - ts"
                out(f"load_rows<TILE, {self.padded}, PITCH, {self.workers_name}>({row}, {base}, {strides}, N, steps, {inside}, "
                    f"{self._fill(node, c)});")
        out(*wait)
        if phase.wanted:
            self._steps_loop(out, [n for n in self._cone(phase.wanted) if not self.laned(n)], phase.wanted)
            if any(a in phase.wanted for n in phase.nodes for a in n.args):
                out("__syncthreads();")
        if phase.nodes:
            tiles = {n: self.tile_of[n] for n in crossing if self.laned(n)}
            self._group_loop(out, phase, twice, self._given_steps(phase.nodes), tiles, [])

    def _cone(self, roots: list[Node]) -> list[Node]:
        """What ``roots`` need at each step, in order."""
        found: dict[Node, None] = {}
        stack = list(roots)
        while stack:
            node = stack.pop()
            if node not in found and self.plan.timed(node):
                found[node] = None
                stack += node.args
        return [n for n in dict.fromkeys((*self.plan.recompute_body, *self.plan.main_body)) if n in found]

    def _plain_step(self, node: Node) -> bool:
        """An early value that is the same for all lanes: computed once a step, kept for all who read it."""
        return self.phases.early(node) and not self.laned(node) and node.op not in FREE

    # -- loops over a tile's elements -------------------------------------------------------------------------------------------

    def _around(self, lane: str) -> dict[Node, Parts]:
        """Names that constants and lanes' values have in prologue and epilogue, where a thread's lane is ``lane``."""
        known = {n: v for n, v in self.known.items() if n.op == "const" or not (self.laned(n) or self.stated(n))}
        for node, names in self.of_lane.items():
            known[node] = tuple(self._word(node, f"{name}[{lane}]") for name in names)
        return known

    def _given_steps(self, users: list[Node]) -> dict[Node, Parts]:
        """The names that values no lane differs in have where values of lanes are made."""
        wanted = [a for n in users for a in n.args if self.plan.timed(a) and not self.laned(a) and a.op not in FREE]
        return {n: tuple(self._word(n, f"{w}[i0 + (along ? j : 0)]") for w in self._step_names(n)) for n in dict.fromkeys(wanted)}

    def _steps_loop(self, out: Source, nodes: list[Node], exports: list[Node]) -> None:
        """Values no lane differs in: one thread a step. ``exports`` are left in shared memory."""
        known = self._around("0")
        ready = [*self.left, *(n for n in self.plan.main_body if self._plain_step(n) and f"{self.names.of(n)}_steps0" in self._shared)]
        for node in (n for n in ready if not self.laned(n) and n not in nodes):
            known[node] = tuple(self._word(node, f"{w}[i]") for w in self._step_names(node))
        # An input read only through shifts is not itself loaded.
        shifted = {n.args[0] for n in nodes if n.op == "shift"} - {a for n in nodes if n.op != "shift" for a in n.args} - set(exports)

        def special(node: Node) -> list[str] | None:
            if node in known:
                return []
            if node.op in ("index", "size"):
                return self._load(node, known, t="int(ts + i)")
            if node.op not in ("input", "shift"):
                return None
            (b, by), time, lines = self._source(node), self.plan.time, []
            for k, name in enumerate(self._parts(node)):
                value = f"widen(fetch<true>({self._base(b, k)} + index_t(i{f' - {by}' if by else ''}) * {b.name}_{time}))"
                if by:
                    value = f"ts + i >= {by} && ts + i - {by} < size_{time} ? {value} : {self._fill(node, k)}"
                lines.append(self.declare(node, name, value))
            known[node] = self._parts(node)
            return lines

        out.open("for (int i = thread_here(); i < steps; i += THREADS) {")
        free = [a for n in nodes for a in n.args if a.op in FREE]
        body = Body(self.dialect, self.names, known, self.declare, keep=frozenset(exports))
        out(*body.run([*dict.fromkeys(free), *(n for n in nodes if n not in shifted)], special))
        for node in exports:
            for name, value in zip(self._step_names(node), known[node], strict=True):
                out(f"{name}[i] = as_word({value});")
        out.close()

    def _workers_turns(self, at_once: int) -> str:
        """Template arguments: threads that make the phases, and turns of a helper that are made side by side."""
        return f"HELPERS, {at_once}" if self.helpers else "THREADS"

    def _open_groups(self, out: Source, at_once: int) -> None:
        out.open("{").open("const auto groups = [&](auto how) {")
        out("constexpr bool whole = decltype(how)::whole;")
        out("const bool along = how.along(along_time);  // groups run along time, or along lanes")
        turns, rest = divmod(self.lanes * self.tile // self.group, self.workers)
        # Threads that also walk compute in the loop whatever it needs; helpers have registers for more, and latency to hide.
        if self.helpers:
            out("const int thread = thread_here();", f"#pragma unroll (whole ? {at_once} : 1)")
        else:
            out("#pragma unroll 1")
        out.open(f"for (int r = 0; r < {turns + (rest > 0)}; ++r) {{")
        thread = "thread" if self.helpers else "thread_here()"
        out(f"const int e = {thread} + r * {self.workers_name};", *(["if (e >= LANES * TILE / GROUP) break;"] if rest else []))
        out("const int lane0 = along ? e / (TILE / GROUP) : e % (LANES / GROUP) * GROUP;")
        out("const int i0 = along ? e % (TILE / GROUP) * GROUP : e / (LANES / GROUP);")
        out("if (!whole && (lane0 >= lanes || i0 >= steps)) continue;")
        out("[[maybe_unused]] const int count = along ? steps - i0 : lanes - lane0;")

    @staticmethod
    def _close_groups(out: Source) -> None:
        out.close().close("};")
        out("if (!together || steps < TILE || lanes < LANES) groups(Anyhow());", "else if (along_time) groups(AlongTime());")
        out("else groups(AlongLanes());").close()

    def _along_time(self) -> str:
        """Whether most tensors over lanes and time lie together along time rather than along lanes."""
        over = [b for b in self.buffers if self._over_tile(b)]
        time, lane = (" + ".join(f"({b.name}_{a} == 1)" for b in over) or "0" for a in (self.plan.time, self.plan.lane))
        return f"{time} >= {lane}"

    def _together(self) -> str:
        """Whether all of those tensors lie together along that axis and can be read and written 16 bytes at once."""
        found = []
        for b, part in (x for x in self.bases if self._over_tile(x[0])):
            t, d = f"{b.name}_{self.plan.time}", f"{b.name}_{self.plan.lane}"
            found.append(self._lies_together(b, part, f"along_time ? {t} : {d}", f"along_time ? {d} : {t}"))
        return " && ".join(found) or "true"

    def _rows_together(self) -> str:
        """The same for all rows over steps and states, along time."""
        if self.padded != self.N:
            return "false"
        time, state = self.plan.time, self.plan.state
        return " && ".join(self._lies_together(b, part, f"{b.name}_{time}", f"{b.name}_{state}") for b, part in self.staged_rows)

    def _lies_together(self, b: Buffer, part: int, stride: str, other: str) -> str:
        """Whether a tensor, from the segment's first step on, lies together where ``stride`` says and is aligned across ``other``."""
        base = f"base_of<const {C_TYPES[b.dtype]}>(bases, {self.bases.index((b, part))})" if not self.helpers else self._fixed(b, part)
        return f"lie_together({base} + t0 * {b.name}_{self.plan.time}, {stride}, {other})"

    def _group_loop(self, out: Source, phase: Phase, twice: list[Node], given: dict[Node, Parts], tiles: Tiles,
                    stores: list[Store]) -> None:
        """Values of lanes and steps. ``given`` have names already; ``tiles`` are left in tiles, ``stores`` written to memory.

        Without ``tiles`` this is the epilogue, which reads what the walk left, and leaves what is summed over time or lanes.
        """
        lane, time = self.plan.lane, self.plan.time
        known = self._around("lane0 + (along ? 0 : j)") | given
        self._open_groups(out, 2)
        for node in phase.loads:
            b, by = self._source(node)
            for c, name in enumerate(self._parts(node)):
                out(f"{self.type_of(node)} {name}_in[GROUP];")
                if node.op == "input":
                    out(f"read_staged({name}_in, {self._place(node, c, node in twice)});")
                    continue
                at, stride = self._element(b, c, by), f"along ? {b.name}_{time} : {b.name}_{lane}"
                out(f"load_shifted({name}_in, {at}, {stride}, count, ts + i0 - {by}, along, size_{time}, {self._fill(node, c)});")
            known[node] = tuple(f"{name}_in[j]" for name in self._parts(node))
        if not tiles:
            for node in (n for n in dict.fromkeys((*self.left, *self.back)) if self.laned(n)):
                for w, name in zip(self.tile_of[node], self._parts(node), strict=True):
                    out(f"float {name}_in[GROUP];", f"take_group<TILE>(along, {name}_in, tile{w}, lane0, i0);")
                known[node] = tuple(self._word(node, f"{name}_in[j]") for name in self._parts(node))
        for store in stores:
            for c in self.parts(self.of_store[store]):
                out(f"{self.type_of(store.value)} {store.name}_out{c}[GROUP];")
        left = tiles.items() if tiles else [(store.value, words) for store, words in self.summed.items()]
        sources = [(node, w, c) for node, words in left for c, w in enumerate(words)]
        out(*(f"float tile{w}_put[GROUP];" for _, w, _ in sources))
        self._group_body(out, phase.nodes, known, sources, stores)
        out(*(f"put_group<TILE>(along, tile{w}, lane0, i0, tile{w}_put);" for _, w, _ in sources))
        for store in stores:
            b = self.of_store[store]
            owner = self.owner(store.value, store.axes)
            guard = f"if ({owner}) " if owner else ""
            for c in self.parts(b):
                at, stride = self._element(b, c), f"along ? {b.name}_{time} : {b.name}_{lane}"
                out(f"{guard}store_group<whole>({at}, {stride}, {store.name}_out{c}, count);")
        self._close_groups(out)

    def _element(self, b: Buffer, part: int, by: int = 0) -> str:
        """A group's first element, or the one ``by`` steps before it, in memory."""
        time, lane = self.plan.time, self.plan.lane
        step = f"i0 - {by}" if by else "i0"
        if self.helpers:
            return f"element_of<whole>({self._fixed(b, part)}, along, ts, {step}, {b.name}_{time}, lane0, {b.name}_{lane})"
        return f"{self._fixed(b, part)} + offset_of<whole>(along, ts + {step}, {b.name}_{time}, lane0, {b.name}_{lane})"

    def _group_body(self, out: Source, nodes: list[Node], known: dict[Node, Parts], puts: list[tuple[Node, int, int]],
                    stores: list[Store]) -> None:
        """One element's values, into the group's arrays."""
        def special(node: Node) -> list[str] | None:
            if node in known:
                return []
            if node.op == "index":
                place = self._position(node.attrs["axis"], "(lane0 + (along ? 0 : j))", "int(ts + i0 + (along ? j : 0))")
                known[node] = (place,)
                return []
            return self._load(node, known) if node.op == "size" else None

        out("#pragma unroll").open("for (int j = 0; j < GROUP; ++j) {")
        free = [a for n in nodes for a in n.args if a.op in FREE]
        keep = frozenset((*(node for node, _, _ in puts), *(s.value for s in stores)))
        body = Body(self.dialect, self.names, known, self.declare, keep=keep)
        lines = body.run([*dict.fromkeys(free), *(n for n in nodes if n in known or n.op not in ("input", "shift"))], special)
        lines += [f"tile{w}_put[j] = as_word({known[node][c]});" for node, w, c in puts]
        lines += [f"{store.name}_out{c}[j] = {value};" for store in stores for c, value in enumerate(known[store.value])]
        out(*lines).close()

    # -- epilogue ---------------------------------------------------------------------------------------------------------------

    def _within_warps(self) -> bool:
        """Whether, where groups run along time, tiles pass from phase to phase within warps: each takes up its own lanes' groups."""
        own = self.lanes * self.tile == self.group * self.threads and self.tile == self.group * self.split
        late = [*self.left, *(n for n in self.epilogue if n in self.phases.behind), *(s.value for s in self.phases.late_stores)]
        return own and all(self.laned(n) for n in late) and all(s.kind == "sum" for s in self.summed)

    def _epilogue(self, out: Source, phase: Phase, twice: list[Node], read: Sequence[str], sync: Sequence[str]) -> None:
        """``read`` is what is done once the staged inputs have been read, ``sync`` orders writing to tiles and reading from them."""
        phases, stores = self.phases, self.phases.late_stores
        if not stores:
            out(*read)
            return
        late = [n for n in self.epilogue if not self.laned(n) and n in phases.behind and n not in self.left]
        if late:
            users = {a for n in phase.nodes for a in n.args} | {s.value for s in stores}
            self._steps_loop(out, late, [n for n in late if n in users])
            out("__syncthreads();")
        if phase.nodes:
            self._group_loop(out, phase, twice, self._given_steps(phase.nodes), {}, self._direct)
        out(*read)
        self._late_sums(out, sync)
        for store in (s for s in stores if not self.laned(s.value)):
            self._store_steps(out, store, self._step_names(store.value))

    def _store_steps(self, out: Source, store: Store, names: Parts) -> None:
        """Values no lane differs in, or sums over lanes: from shared memory, a thread a step."""
        b, owner = self.of_store[store], self.owner(store.value, store.axes)
        for k, name in enumerate(names):
            if store.kind == "sum":
                out(f"for (int i = 0; i < steps; ++i) {self.sum_names(store)[k]} += {name}[i];")
                continue
            out.open(f"{f'if ({owner}) ' if owner else ''}for (int i = thread_here(); i < steps; i += THREADS) {{")
            out(f"{C_TYPES[b.dtype]}* const to = {self._base(b, k)} + index_t(i) * {b.name}_{self.plan.time};")
            value = self._word(store.value, f"{name}[i]")
            if store.lane and self.walk > 1:
                value = f"{value} + (walked > 0 ? *to : 0.0f)"
            out(f"*to = Narrow<{C_TYPES[b.dtype]}>::of({value});").close()

    def _late_sums(self, out: Source, sync: Sequence[str]) -> None:
        """Sums over time, and over lanes, of what the epilogue has left in tiles."""
        if self.summed:
            out(*sync)
        over_lanes = []
        for store, tiles in self.summed.items():
            if store.kind == "sum":
                for total, w in zip(self.sum_names(store), tiles, strict=True):
                    back = "true" if self.plan.reverse else "false"
                    out(f"add_steps<TILE, SPLIT, {back}>({total}, tile{w}, lane, own, tile, steps);")
                continue
            over_lanes.append(store)
            for k, w in enumerate(tiles):
                name = self.shared(f"{store.name}_lane_sums{k}", self.tile)
                out.open(f"for (int i = warp; i < steps; i += {self.warps}) {{")
                out("float total = 0.0f;")
                out.open("for (int l = tid % Warp<THREADS>::WIDTH; l < lanes; l += Warp<THREADS>::WIDTH)")
                out(f"total += tile{w}[tile_at<TILE>(l, i)];").indent(-1)
                out("total = warp_sum<THREADS>(total);", f"if (tid % Warp<THREADS>::WIDTH == 0) {name}[i] = total;").close()
        if over_lanes:
            out("__syncthreads();")
        for store in over_lanes:
            self._store_steps(out, store, tuple(f"{store.name}_lane_sums{k}" for k in self.parts(self.of_store[store])))
