"""The CUDA backend: prologue and epilogue, the work done once per lane and step by whichever thread of the block.

A thread makes a group of neighbours at once, along time or along lanes, whichever most of the tensors at hand are contiguous in.
"""

from __future__ import annotations

from scanc.codegen.cuda_dialect import C_TYPES
from scanc.codegen.cuda_phases import FREE
from scanc.codegen.cuda_step import StepPrinter
from scanc.codegen.emit import Body, Parts, Source
from scanc.codegen.layout import Buffer
from scanc.forms.plan import Store
from scanc.ir import Node

Tiles = dict[Node, list[int]]  # the tiles of each value


class ElementPrinter(StepPrinter):
    # -- prologue ---------------------------------------------------------------------------------------------------------------

    def _prologue(self, out: Source, crossing: list[Node], bodies: list[tuple[Node, ...]], *, late: bool) -> None:
        """Fills the tiles that the walks of ``bodies`` read, and with ``late`` those the epilogue reads."""
        for node in dict.fromkeys(n for body in bodies for n in self.phases.walk(body)):
            if node.op in ("input", "shift") and self.stated(node) and not self.laned(node):
                self._stage_rows(out, node)
        roots = [n for n in crossing if self.laned(n)]
        laned = [n for n in self._cone(roots) if self.laned(n)]
        wanted = [n for n in crossing if not self.laned(n)]
        wanted += [a for n in laned for a in n.args if self._plain_step(a)]
        if late:
            users = [n for n in self.epilogue if self.laned(n) or n in self.phases.behind]
            wanted += [a for n in users for a in n.args if self._plain_step(a)]
            wanted += [s.value for s in self.phases.late_stores if self._plain_step(s.value)]
        wanted = list(dict.fromkeys(wanted))
        if wanted:
            self._steps_loop(out, [n for n in self._cone(wanted) if not self.laned(n)], wanted)
            if any(a in wanted for n in laned for a in n.args):
                out("__syncthreads();")
        if laned:
            self._group_loop(out, laned, self._given_steps(laned), {n: self.tile_of[n] for n in roots}, [])

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

    def _source(self, node: Node) -> tuple[Buffer, int]:
        """The buffer that an input, or a shift of one, reads, and how far back."""
        source, by = (node.args[0], int(node.attrs["by"])) if node.op == "shift" else (node, 0)
        return self.of_input[source], by

    def _fill(self, node: Node, part: int) -> str:
        literal = self.fill(node, part) if node.op == "shift" else self.dialect.literal(0.0 if node.kind in ("real", "complex") else 0)
        return f"{self.type_of(node)}({literal})"

    def _stage_rows(self, out: Source, node: Node) -> None:
        """An input over steps and states, the same for all lanes."""
        (b, by), time = self._source(node), self.plan.time
        lo, hi = (f"{by} - ts", f"size_{time} + {by} - ts") if by else ("0", "steps")
        for k, name in enumerate(self._row_names(node)):
            at = self._base(b, k) + (f" - {by} * {b.name}_{time}" if by else "")
            strides = f"{b.name}_{self.plan.state}, {b.name}_{time}"
            out(f"stage_rows<TILE, {self.padded}, THREADS>({name}, {at}, {strides}, N, steps, {lo}, {hi}, {self._fill(node, k)});")

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

    def _group_loop(self, out: Source, nodes: list[Node], given: dict[Node, Parts], tiles: Tiles, stores: list[Store]) -> None:
        """Values of lanes and steps. ``given`` have names already; ``tiles`` are left in tiles, ``stores`` written to memory.

        Without ``tiles`` this is the epilogue, which also leaves what is summed over time or lanes.
        """
        lane, time = self.plan.lane, self.plan.time
        stored = {s.value for s in stores}
        loads = [n for n in nodes if n.op in ("input", "shift") and n not in given]
        loads = [n for n in loads if n.op == "shift" or n in tiles or n in stored or any(n in u.args and u.op != "shift" for u in nodes)]
        touched = [*(self._source(n)[0] for n in loads), *(self.of_store[s] for s in stores)]
        by_time, by_lane = (" + ".join(f"({b.name}_{a} == 1)" for b in touched if a in b.axes) or "0" for a in (time, lane))
        known = self._around("lane0 + (along ? 0 : j)") | given
        out.open("{").open("const auto groups = [&](auto along_time) {")
        out("constexpr bool along = decltype(along_time)::value;  // groups run along time, or along lanes")
        pairs = [(n, k, *self._source(n)) for n in loads for k in range(self._width(n))]
        for node, k, b, by in pairs:
            shifted = f" - {by} * {b.name}_{time}" if by else ""
            out(f"const {C_TYPES[b.dtype]}* const {self._parts(node)[k]}_at = {self._base(b, k)}{shifted};")
        for store in stores:
            b = self.of_store[store]
            for k in self.parts(b):
                out(f"{C_TYPES[b.dtype]}* const {store.name}_at{k} = {self._base(b, k)};")
        out.open("for (int e = thread_here(); e < LANES * TILE / GROUP; e += THREADS) {")
        out("const int lane0 = along ? e / TILE * GROUP + e % GROUP : e % LANES / GROUP * GROUP;")
        out("const int i0 = along ? e % TILE / GROUP * GROUP : e / LANES * GROUP + e % GROUP;")
        out("if (lane0 >= lanes || i0 >= steps) continue;", "const int count = along ? steps - i0 : lanes - lane0;")
        for node, k, b, by in pairs:
            name = self._parts(node)[k]
            at, stride = f"{name}_at{self._element(b)}", f"along ? {b.name}_{time} : {b.name}_{lane}"
            out(f"{self.type_of(node)} {name}_in[GROUP];")
            out(f"load_shifted({name}_in, {at}, {stride}, count, ts + i0 - {by}, along, size_{time}, {self._fill(node, k)});" if by
                else f"load_group<true>({name}_in, {at}, {stride}, count);")
        for node in loads:
            known[node] = tuple(f"{name}_in[j]" for name in self._parts(node))
        for store in stores:
            for k in self.parts(self.of_store[store]):
                out(f"{self.type_of(store.value)} {store.name}_out{k}[GROUP];")
        self._group_body(out, nodes, known, tiles, stores)
        for store in stores:
            b = self.of_store[store]
            owner = self.owner(store.value, store.axes)
            guard = f"if ({owner}) " if owner else ""
            for k in self.parts(b):
                at, stride = f"{store.name}_at{k}{self._element(b)}", f"along ? {b.name}_{time} : {b.name}_{lane}"
                out(f"{guard}store_group({at}, {stride}, {store.name}_out{k}, count);")
        out.close().close("};")
        out(f"if ({by_time} >= {by_lane}) groups(Yes());", "else groups(No());").close()

    def _element(self, b: Buffer) -> str:
        """From where a buffer's tile starts to a group's first element."""
        return f" + index_t(i0) * {b.name}_{self.plan.time} + index_t(lane0) * {b.name}_{self.plan.lane}"

    def _group_body(self, out: Source, nodes: list[Node], known: dict[Node, Parts], tiles: Tiles, stores: list[Store]) -> None:
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
        keep = frozenset((*tiles, *(s.value for s in stores), *(s.value for s in self.summed)))
        body = Body(self.dialect, self.names, known, self.declare, keep=keep)
        lines = body.run([*dict.fromkeys(free), *(n for n in nodes if n in known or n.op not in ("input", "shift"))], special)
        for node, words in tiles.items():
            lines += [f"tile{w}[at] = as_word({value});" for w, value in zip(words, known[node], strict=True)]
        for store in stores:
            lines += [f"{store.name}_out{k}[j] = {value};" for k, value in enumerate(known[store.value])]
        if not tiles:
            # Taken before any is written: a tile may hold what another of these values is.
            sums = [(w, value) for store, words in self.summed.items() for w, value in zip(words, known[store.value], strict=True)]
            taken = [(w, self.names.fresh("sum_of"), value) for w, value in sums]
            lines += [f"const float {name} = {value};" for _, name, value in taken]
            lines += [f"tile{w}[at] = {name};" for w, name, _ in taken]
        if any("[at]" in line for line in lines):
            out("const int at = i0 * PITCH + lane0 + j * (along ? PITCH : 1);")
        out(*lines).close()

    # -- epilogue ---------------------------------------------------------------------------------------------------------------

    def _epilogue(self, out: Source) -> None:
        phases, stores = self.phases, self.phases.late_stores
        if not stores:
            return
        out("__syncthreads();")
        laned = [n for n in self.epilogue if self.laned(n)]
        late = [n for n in self.epilogue if not self.laned(n) and n in phases.behind and n not in self.left]
        if late:
            users = {a for n in laned for a in n.args} | {s.value for s in stores}
            self._steps_loop(out, late, [n for n in late if n in users])
            out("__syncthreads();")
        if laned:
            given = {n: self._tile_words(n) for n in (*self.left, *self.back) if self.laned(n)}
            direct = [s for s in stores if s.kind == "value" and self.laned(s.value) and not s.lane]
            self._group_loop(out, laned, given | self._given_steps(laned), {}, direct)
        self._late_sums(out)
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

    def _late_sums(self, out: Source) -> None:
        """Sums over time, and over lanes, of what the epilogue has left in tiles."""
        if self.summed:
            out("__syncthreads();")
        over_lanes = []
        for store, tiles in self.summed.items():
            if store.kind == "sum":
                for total, w in zip(self.sum_names(store), tiles, strict=True):
                    out(f"for (int i = own; i < steps; i += SPLIT) {total} += tile{w}[i * PITCH + lane];")
                continue
            over_lanes.append(store)
            for k, w in enumerate(tiles):
                name = self.shared(f"{store.name}_lane_sums{k}", self.tile)
                out.open(f"for (int i = warp; i < steps; i += {self.warps}) {{")
                out("float total = 0.0f;")
                out(f"for (int l = tid % Warp<THREADS>::WIDTH; l < lanes; l += Warp<THREADS>::WIDTH) total += tile{w}[i * PITCH + l];")
                out("total = warp_sum<THREADS>(total);", f"if (tid % Warp<THREADS>::WIDTH == 0) {name}[i] = total;").close()
        if over_lanes:
            out("__syncthreads();")
        for store in over_lanes:
            self._store_steps(out, store, tuple(f"{store.name}_lane_sums{k}" for k in self.parts(self.of_store[store])))
