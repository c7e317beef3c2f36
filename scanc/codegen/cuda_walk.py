"""The CUDA backend: the walk through time, several steps at once.

A thread goes through its states one after another and takes each through the AT_ONCE steps that stand before it: what those steps
need is then read from shared memory four words at an instruction, and of a state only the steps at hand are in registers. In a plan
of two directions the same few steps are recomputed and walked back before the next state's turn:

    for each state k:    h_j = a_j h_{j-1} + b_j   forwards, kept         (the history of one state)
                         g_j = c_j + a_{j+1} g_{j+1}   back, with h_j at hand
"""

from __future__ import annotations

from collections.abc import Callable

from scanc.codegen.cuda_dialect import StepDialect
from scanc.codegen.cuda_leave import LeavePrinter, Walk
from scanc.codegen.emit import Body, Parts, Source
from scanc.codegen.layout import Buffer
from scanc.forms.plan import Region, Store
from scanc.ir import Node

Known = dict[Node, Parts]
TAKEN_AT = 1  # the state, of a thread's, before whose steps it takes the sums that wait


class WalkPrinter(LeavePrinter):
    LAST_BLOCK = "(steps - 1) / AT_ONCE * AT_ONCE"  # where the last AT_ONCE steps of a tile begin

    def _walks(self, *, recompute: bool, main: bool) -> list[Walk]:
        plan, found = self.plan, []
        if recompute:
            found.append(Walk(self.phases.walk(plan.recompute_body), not plan.reverse, False))
        if main:
            found.append(Walk(self.phases.walk(plan.main_body), plan.reverse, True))
        return [w for w in found if w.nodes]

    def _walk_tile(self, out: Source, walks: list[Walk], back: bool, starts: bool = False) -> None:
        """All steps of a tile, AT_ONCE at a time; what the warps have summed over their lanes of those is added up and stored."""
        if not walks:
            return
        if not (self.plan.recomputed or self.rows):
            self._walk_through(out, walks, back)
            return
        self._block_header(out, back)
        if self.mode.leaves:
            self._leave_checkpoints(out)
        self._at_once(out, walks, starts)
        if walks[-1].main:
            self._store_gathered_rows(out, back)
        out.close()

    def _walk_through(self, out: Source, walks: list[Walk], back: bool) -> None:
        """All steps of a tile in one direction: of whole tiles without a question.

        There a lane's sums over states wait until the next AT_ONCE steps are walked: exchanging them between threads takes long, and there
        is then other work to do meanwhile.
        """
        self.late = self._folded(walks) if self.tile > self.at_once else []
        self._find_places(out, walks)
        names = [name for node in self.late for name in self._parts(node)]
        if self.exchanged:
            out.open("const auto walk = [&](auto is_whole, int base, int turn) {  // of two places for sums that wait, which")
        else:
            out(*(f"float {name}_late[AT_ONCE] = {{}};" for name in names))
            out.open("const auto walk = [&](auto is_whole, int base) {")
        out("constexpr bool whole = decltype(is_whole)::value;  // the whole tile is there")
        if self.mode.leaves:
            self._leave_checkpoints(out)
        self._steps(out, walks, False)
        out.close("};")
        out.open("if (steps == TILE) {")
        self._whole_tile(out, back)
        out.close().open("else {")
        self._block_header(out, back)
        out(f"walk(No(), base{', 0' if self.exchanged else ''});").close().close()

    def _whole_tile(self, out: Source, back: bool) -> None:
        """The AT_ONCE steps at hand one after another."""
        if self.tile == self.at_once:
            out("walk(Yes(), 0);")
            return
        end = "0" if back else "(TILE - AT_ONCE)"
        if self.exchanged:
            out("#pragma unroll 1").open("for (int base = TILE - AT_ONCE; base > 0; base -= 2 * AT_ONCE) {" if back
                                         else "for (int base = 0; base < TILE; base += 2 * AT_ONCE) {")
            out("walk(Yes(), base, 0);", f"walk(Yes(), base {'-' if back else '+'} AT_ONCE, 1);").close()
            self._take_sums(out, self.late, end, "1")
            return
        out(f"#pragma unroll {2 if self.late else 1}")
        out.open("for (int base = TILE - AT_ONCE; base >= 0; base -= AT_ONCE) {" if back
                 else "for (int base = 0; base < TILE; base += AT_ONCE) {")
        out("walk(Yes(), base);").close()
        if self.late:
            self._fold_sums(out, self.late, "_late", end)

    def _block_header(self, out: Source, back: bool) -> None:
        out.open(f"for (int base = {self.LAST_BLOCK}; base >= 0; base -= AT_ONCE) {{" if back
                 else "for (int base = 0; base < steps; base += AT_ONCE) {")

    def _at_once(self, out: Source, walks: list[Walk], starts: bool = False) -> None:
        """The work of the steps from ``base`` on. ``starts``: recomputed scans' carries are what the block starts from."""
        out.open("const auto walk = [&](auto is_whole) {")
        summed = bool(self.rows) and walks[-1].main
        out(f"constexpr bool whole = decltype(is_whole)::value;  // all AT_ONCE steps{' and all LANES' if summed else ''} are there")
        self._steps(out, walks, starts)
        out.close("};")
        out(f"if (steps - base >= AT_ONCE{' && lanes == LANES' if summed else ''}) walk(Yes());", "else walk(No());")

    def _steps(self, out: Source, walks: list[Walk], starts: bool) -> None:
        known: Known = dict(self.known)
        record = len(walks) > 1
        nodes = list(dict.fromkeys(n for w in walks for n in w.nodes))
        self._read_crossing(out, walks, known)
        exports = self._exports(walks)
        self._histories(out, starts, stated=False, record=record)
        for walk in walks:
            self._unstated(out, walk, Region.PRE, known, exports, record)
        sums = [n for n in nodes if n.op == "sum"]
        out(*(f"float {name}_v[AT_ONCE] = {{}};" for s in sums for name in self._parts(s)))
        self._over_each_state(out, walks, known, starts, record)
        for s in sums:
            known[s] = tuple(f"{name}_v[j]" for name in self._parts(s))
        folded = self._folded(walks)
        if self.split > 1:
            for s in (s for s in sums if s not in folded):
                self._each_step(out, [f"{name} = split_sum<SPLIT, THREADS>({name});" for name in known[s]], back=False, guarded=False)
        for walk in walks:
            self._unstated(out, walk, Region.POST, known, exports, record)
        if walks[-1].main:
            self._leave(out, [n for n in walks[-1].nodes if n in self.left], folded, known)

    # -- what the steps read ----------------------------------------------------------------------------------------------------

    def _read_crossing(self, out: Source, walks: list[Walk], known: Known) -> None:
        """Values the prologue left, of all steps at hand."""
        wanted = dict.fromkeys(a for w in walks for n in w.nodes for a in n.args if a in self.crossing and a not in w.nodes)
        for node in wanted:
            for k, name in enumerate(self._parts(node)):
                out(f"float {name}_v[AT_ONCE];")
                if not self.laned(node):
                    out(f"read_row({name}_v, {self._step_names(node)[k]} + base);")
                elif self.exchanged:
                    out(f"lane_steps.read({name}_v, tile{self.tile_of[node][k]} - tile0, base);")
                else:
                    out(f"read_tile<TILE>({name}_v, tile{self.tile_of[node][k]}, lane, base);")
            known[node] = tuple(self._word(node, f"{name}_v[j]") for name in self._parts(node))

    def _source(self, node: Node) -> tuple[Buffer, int]:
        """The buffer that an input, or a shift of one, reads, and how far back."""
        source, by = (node.args[0], int(node.attrs["by"])) if node.op == "shift" else (node, 0)
        return self.of_input[source], by

    def _fill(self, node: Node, part: int) -> str:
        literal = self.fill(node, part) if node.op == "shift" else self.dialect.literal(0.0 if node.kind in ("real", "complex") else 0)
        return f"{self.type_of(node)}({literal})"

    def _histories(self, out: Source, starts: bool, *, stated: bool, record: bool) -> None:
        """Recomputed scans' carries before the steps at hand, and room for those after each."""
        if starts and not stated:
            self._find_start(out)
        for scan in (s for s in self.plan.recomputed if record and self.stated(s) == stated):
            if starts:
                self._take_start(out, scan)
            out(*(f"float {name.replace('[k]', '')}_history[AT_ONCE + 1];" for name in self._carry_names(scan)))

    def _carry_place(self, scan: Node, part: int, place: str) -> str:
        """Where ``place`` ({word}) keeps a component of a recomputed scan's carry."""
        word = self._word_of(scan, part)
        if not self.stated(scan):
            return place.format(word=word)
        return place.format(word=f"{word} + k" if word else "k")

    # -- values without states --------------------------------------------------------------------------------------------------

    def _exports(self, walks: list[Walk]) -> set[Node]:
        """Values of one loop over steps that another, or the epilogue, reads."""
        region, found = self.plan.region, set(self.left)
        for walk in walks:
            for node in walk.nodes:
                for other in walks:
                    found.update(a for a in node.args if a in other.nodes and (other is not walk or region[a] != region[node]))
        return {n for n in found if n.op not in ("input", "shift")}

    def _each_step(self, out: Source, lines: list[str], *, back: bool, guarded: bool = True) -> None:
        if not lines:
            return
        out("#pragma unroll")
        out.open("for (int j = AT_ONCE - 1; j >= 0; --j) {" if back else "for (int j = 0; j < AT_ONCE; ++j) {")
        if guarded:
            out("if (!whole && base + j >= steps) continue;")
        out(*lines).close()

    def _unstated(self, out: Source, walk: Walk, region: Region, known: Known, exports: set[Node], record: bool) -> None:
        """Per lane, the steps one after another: before the states' turn, or after it."""
        plan = self.plan
        nodes = [n for n in walk.nodes if plan.region[n] == region and n.op not in ("sum", "input") and n not in known]
        scans = [s for s in (plan.main if walk.main else plan.recomputed) if s in nodes]
        if not nodes:
            return
        local = dict(known)
        kept = [n for n in nodes if n in exports and not (n in plan.recomputed and (record or walk.main))]
        lines = self._run(walk, nodes, scans, local, frozenset(kept), record)
        for node in kept:
            for name, value in zip(self._parts(node), local[node], strict=True):
                out(f"{self.type_of(node)} {name}_v[AT_ONCE] = {{}};")
                lines.append(f"{name}_v[j] = {value};")
            known[node] = tuple(f"{name}_v[j]" for name in self._parts(node))
        known.update((s, self._slot_of(s, later=True)) for s in scans if record and s in plan.recomputed)
        self._each_step(out, lines, back=walk.back)

    def _run(self, walk: Walk, nodes: list[Node], scans: list[Node], known: Known, keep: frozenset[Node], record: bool,
             results: Callable[[], list[str]] = list) -> list[str]:
        """Lines for nodes at step j (of state k). ``results`` are what is done with them before the carries go on."""

        def special(node: Node) -> list[str] | None:
            if node in known:
                return []
            match node.op:
                case "index" | "size":
                    return self._load(node, known, t="int(ts + base + j)")
                case "scan":
                    return self._walk_scan(node, known, walk.main, record)
                case "prior":
                    return self._prior(node, known, walk.main)
                case "sum":
                    return self._add_to_sum(node, known, "_v[j]")
                case _ if node in self.kept and walk.main and record:
                    known[node] = tuple(f"{name}_kept[j]" for name in self._parts(node))
                    return []
            return None

        free = [a for n in nodes for a in n.args if a.op in ("index", "size") and a not in nodes and self.plan.timed(a)]
        body = Body(StepDialect(self.polynomial), self.names, known, self.declare, keep=keep)
        lines = body.run([*dict.fromkeys(free), *nodes], special)
        lines += results()
        for scan in scans:
            lines += self._advance(scan, known, walk.main, record)
        return lines

    # -- values with states -----------------------------------------------------------------------------------------------------

    def _over_each_state(self, out: Source, walks: list[Walk], known: Known, starts: bool, record: bool) -> None:
        """State after state: what it reads, each direction's steps, what it leaves."""
        plan = self.plan
        inside = [[n for n in w.nodes if n not in known and (plan.region[n] == Region.SCAN or n.op == "sum")] for w in walks]
        # What both directions sum is summed once.
        inside[1:] = [[n for n in nodes if n.op != "sum" or n not in inside[0]] for nodes in inside[1:]]
        stores = [s for s in plan.stores if s.kind != "final" and self.stated(s.value)] if walks[-1].main else []
        if not any(inside) and not stores:
            return
        rows = [s for s in stores if s in self.rows]
        self._sums_of_warp(out, rows)
        out("#pragma unroll").open("for (int k = 0; k < PER; ++k) {")
        self._read_states(out, list(dict.fromkeys(n for nodes in inside for n in nodes)), stores, known)
        self._histories(out, starts, stated=True, record=record)
        if record:
            out(*(f"float {name}_kept[AT_ONCE];" for node in plan.region if node in self.kept for name in self._parts(node)))
        values = [s for s in stores if s.kind == "value"]
        out(*(f"float {s.name}_out{c}[AT_ONCE] = {{}};" for s in values for c in self.parts(self.of_store[s])))
        if self.exchanged and not record:
            out.open(f"if (whole && k == {TAKEN_AT}) {{  // those of the steps before; the first time what is then overwritten")
            self._take_sums(out, self.late, self._steps_before, "1 - turn")
            out.close()
        for walk, nodes in zip(walks, inside, strict=True):
            local = dict(known)
            scans = [s for s in (plan.main if walk.main else plan.recomputed) if s in nodes]
            nodes = [n for n in nodes if n.op not in ("input", "shift")]
            keep = frozenset(s.value for s in stores) if walk.main else self.kept if record else frozenset()

            def results(walk: Walk = walk, local: Known = local) -> list[str]:
                if walk.main:
                    return self._state_results(local, stores)
                names = [(name, local[node][c]) for node in self.kept if record for c, name in enumerate(self._parts(node))]
                return [f"{name}_kept[j] = {value};" for name, value in names]

            lines = self._run(walk, nodes, scans, local, keep, record, results)
            self._each_step(out, lines, back=walk.back)
        for store in (s for s in values if s not in self.rows):
            self._leave_states(out, store)
        self._sum_rows(out, rows)
        out.close()

    def _read_states(self, out: Source, nodes: list[Node], stores: list[Store], known: Known) -> None:
        """Inputs with states, of all steps at hand: rows that all lanes share, or a lane's own from memory."""
        read = {a for n in nodes if n.op != "shift" for a in n.args} | {s.value for s in stores}
        read |= {n for n in nodes if n.op == "shift"}
        for node in (n for n in nodes if n.op in ("input", "shift") and n in read):
            b, by = self._source(node)
            for c, name in enumerate(self._parts(node)):
                if not self.laned(node):
                    row = self._row_names(node)[c]
                    place = f"{row} + {self._row_at} + base"
                    if self.rows_at:
                        place = f"at_place(rows_at + 4 * base) + ({row} - {self.rows_at}) + {self._row_of_register}"
                    out(f"float {name}_v[AT_ONCE];", f"read_row({name}_v, {place});")
                    continue
                stride = f"{b.name}_{self.plan.time}"
                at = self._address(b, c, "here", time=f"(ts + base - {by})" if by else "(ts + base)", state=self._n)
                count = "steps - base" if self.padded == self.N else f"{self._n} < N ? steps - base : 0"
                out(f"{self.type_of(node)} {name}_v[AT_ONCE];")
                out(f"load_shifted({name}_v, {at}, {stride}, {count}, ts + base - {by}, 1, size_{self.plan.time}, {self._fill(node, c)});"
                    if by else f"load_group<true>({name}_v, {at}, {stride}, {count});")
            parts = tuple(f"{name}_v[j]" for name in self._parts(node))
            known[node] = parts if self.laned(node) else tuple(self._word(node, p) for p in parts)

    def _state_results(self, known: Known, stores: list[Store]) -> list[str]:
        """Values with states gathered for their stores, sums over time added to."""
        lines = []
        for store in stores:
            for c, value in enumerate(known[store.value]):
                lines.append(f"{self.sum_names(store)[c]} += {value};" if store.kind == "sum" else f"{store.name}_out{c}[j] = {value};")
        return lines

    # -- scans ------------------------------------------------------------------------------------------------------------------

    def _slot_of(self, scan: Node, *, later: bool) -> Parts:
        """Where the history holds a recomputed scan's carry before (``later``: after) step j of its own walk."""
        step = "j" if later == (not self.plan.reverse) else "j + 1"
        return tuple(f"{name.replace('[k]', '')}_history[{step}]" for name in self._carry_names(scan))

    def _walk_scan(self, scan: Node, known: Known, main: bool, record: bool) -> list[str]:
        if main and scan in self.plan.recomputed:
            known[scan] = self._slot_of(scan, later=True)
            return []
        lines = []
        if record and not main:
            lines += [f"{slot} = {carry};" for slot, carry in zip(self._slot_of(scan, later=False), self._carry_names(scan), strict=True)]
        values, _ = self.recurrence_of(scan, known, self._carry_names(scan))
        known[scan] = self._parts(scan)
        return lines + [f"const float {name} = {value};" for name, value in zip(known[scan], values, strict=True)]

    def _advance(self, scan: Node, known: Known, main: bool, record: bool) -> list[str]:
        """The carry after this step."""
        if scan not in known or (main and scan in self.plan.recomputed):
            return []
        _, following = self.recurrence_of(scan, known, self._carry_names(scan))
        after, names, lines = following(known[scan]), self._carry_names(scan), []
        if len(names) == 2 and scan.attrs["shifted"]:
            fresh = [self.names.fresh("next") for _ in names]
            lines += [f"const float {f} = {x};" for f, x in zip(fresh, after, strict=True)]
            after = fresh
        lines += [f"{name} = {x};" for name, x in zip(names, after, strict=True)]
        if record and not main:
            lines += [f"{slot} = {carry};" for slot, carry in zip(self._slot_of(scan, later=True), names, strict=True)]
        return lines

    def _prior(self, node: Node, known: Known, main: bool) -> list[str]:
        scan = node.args[0]
        if main and scan in self.plan.recomputed:
            known[node] = self._slot_of(scan, later=False)
            return []
        # A copy: the carry goes on before the loops that read this come.
        known[node] = self._parts(node)
        return [f"const float {name} = {carry};" for name, carry in zip(known[node], self._carry_names(scan), strict=True)]
