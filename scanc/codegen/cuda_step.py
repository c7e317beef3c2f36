"""The CUDA backend: the walk's work at one step, and how a thread stores what it holds."""

from __future__ import annotations

from scanc.codegen.cuda_dialect import C_TYPES
from scanc.codegen.cuda_layout import CudaLayout
from scanc.codegen.emit import Body, Parts, Source
from scanc.forms.plan import Region, Store
from scanc.ir import Node


class StepPrinter(CudaLayout):
    def _steps_body(self, out: Source, nodes: list[Node], *, main: bool, record: bool = False) -> None:
        """The walk's work at step i: per lane, per state, per lane again."""
        plan = self.plan
        stores = [s for s in plan.stores if s.kind != "final" and (self.step or self.stated(s.value))] if main else []
        known = dict(self.known)
        scans = [s for s in (plan.main if main else plan.recomputed) if s in nodes]
        tiled = [n for n in nodes if n in self.tile_of or n in self.left] if main else []
        reads = [a for a in dict.fromkeys(a for n in nodes for a in n.args) if a in self.crossing and a not in nodes]
        if any(self.laned(n) for n in (*reads, *tiled)):
            out("const int at = i * PITCH + lane;")
        for node in reads:
            words = self._tile_words(node) if self.laned(node) else tuple(self._word(node, f"{w}[i]") for w in self._step_names(node))
            for name, word in zip(self._parts(node), words, strict=True):
                out(self.declare(node, name, word))
            known[node] = self._parts(node)
        loaded = [n for n in nodes if n.op in ("input", "shift") and self.stated(n)
                  and (n.op == "shift" or any(n in u.args and u.op != "shift" for u in nodes) or any(n is s.value for s in stores))]
        for node in loaded:
            self._load_states(out, node, known)

        def special(node: Node) -> list[str] | None:
            if node in known:
                return []
            if node.op in ("index", "size") or (node.op == "input" and self.step):
                return self._load(node, known, t="int(ts + i)")
            if node.op == "scan":
                return self._walk_scan(node, known, main, record)
            if node.op == "prior":
                return self._prior(node, known, main)
            if node.op == "sum":
                operands = known[node.args[0]]
                known[node] = self._parts(node)
                mask = "" if self.padded == self.N else f"{self._n} < N ? "
                return [f"{name} += {f'{mask}{x} : 0.0f' if mask else x};" for name, x in zip(known[node], operands, strict=True)]
            if node in self.kept and main:
                known[node] = tuple(self._history(f"{p}_kept", True, "s") for p in self._parts(node))
                return []
            return None

        free = [a for n in nodes for a in n.args if a.op in ("index", "size") and a not in nodes]
        nodes = [*dict.fromkeys(n for n in free if plan.timed(n) or self.step), *nodes]
        nodes = [n for n in nodes if n.op != "input" or n in loaded or self.step]

        def region(which: Region) -> list[Node]:
            return [n for n in nodes if plan.region[n] == which and n.op != "sum" and n not in known]

        keep = self.kept if record else frozenset()
        body = Body(self.dialect, self.names, known, self.declare, keep=keep | {s.value for s in stores})
        out(*body.run(region(Region.PRE), special))
        sums = [n for n in nodes if n.op == "sum"]
        for s in sums:
            out(*(f"float {name} = 0.0f;" for name in self._parts(s)))
        for s in scans:
            if plan.region[s] == Region.PRE:
                out(*self._advance(s, known, main, record))
        inside = [n for n in nodes if n not in known and (plan.region[n] == Region.SCAN or n.op == "sum")]
        for store in (s for s in stores if self.stated(s.value) and s.kind == "value"):
            out(*(f"float {store.name}_out{k}[PER];" for k in self.parts(self.of_store[store])))
        if inside or any(self.stated(s.value) for s in stores):
            lines = body.run(inside, special)
            if record:
                lines += [f"{self._history(f'{name}_kept', True, 's')} = {value};" for node in self.kept
                          for name, value in zip(self._parts(node), known[node], strict=True)]
            lines += self._state_results(known, stores)
            for s in scans:
                if plan.region[s] == Region.SCAN:
                    lines += self._advance(s, known, main, record)
            self._over_states(out, lines)
        folded = self._folded(nodes) if main else []
        if self.split > 1:
            for s in (s for s in sums if s not in folded):
                out(*(f"{name} = split_sum<SPLIT, THREADS>({name});" for name in self._parts(s)))
        self._state_stores(out, stores)
        out(*body.run(region(Region.POST), special))
        for s in scans:
            if plan.region[s] == Region.POST:
                out(*self._advance(s, known, main, record))
        if self.step:
            for store in (s for s in stores if not self.stated(s.value)):
                self._store_direct(out, store, known[store.value])
        if folded:
            self._fold(out, folded)
        self._leave(out, [n for n in nodes if n in self.left and n not in folded] if main else [], known)

    # -- values leaving the walk ------------------------------------------------------------------------------------------------

    def _folded(self, nodes: list[Node]) -> list[Node]:
        """Sums that only the epilogue reads: the threads of a lane share them out instead of each having them all."""
        read = {a for n in nodes for a in n.args}
        folded = [n for n in nodes if n.op == "sum" and n in self.left and self.laned(n) and n not in read and n.kind == "real"]
        return folded if self.split > 1 and len(folded) > 1 else []

    def _fold(self, out: Source, folded: list[Node]) -> None:
        count = 1 << (len(folded) - 1).bit_length()
        values = [*(self._parts(n)[0] for n in folded), *["0.0f"] * (count - len(folded))]
        out(f"float left[{count}] = {{{', '.join(values)}}};", "const int turn = fold_split<SPLIT, THREADS>(left);")
        self._before_leaving(out)
        spare = self.split // count - 1 if self.split > count else 0
        for j in range(max(1, count // self.split)):
            turn = f"(turn + {j})" if j else "turn"
            tile = "".join(f"{turn} == {q} ? {self.tile_of[n][0]} : " for q, n in enumerate(folded[:-1])) + str(self.tile_of[folded[-1]][0])
            guards = ([f"{turn} < {len(folded)}"] if len(folded) < count else []) + ([f"(own & {spare}) == 0"] if spare else [])
            guard = f"if ({' && '.join(guards)}) " if guards else ""
            out(f"{guard}tile0[({tile}) * {self.tile_words} + at] = left[{j}];")

    def _before_leaving(self, out: Source) -> None:
        out("__syncwarp(Warp<THREADS>::ALL);  // all of the lane's threads have read what is overwritten")

    def _leave(self, out: Source, nodes: list[Node], known: dict[Node, Parts]) -> None:
        """Walked values into tiles; the threads of a lane take turns."""
        if nodes and self.split > 1:
            self._before_leaving(out)
        for turn, node in enumerate(nodes):
            if self.laned(node):
                words = [f"tile{w}[at]" for w in self.tile_of[node]]
                guard = f"if (own == {turn % self.split}) " if self.split > 1 else ""
            else:
                words = [f"{w}[i]" for w in self._step_names(node)]
                guard = "if (tid == 0) "
            for word, value in zip(words, known[node], strict=True):
                out(f"{guard}{word} = as_word({value});")

    # -- values entering it -----------------------------------------------------------------------------------------------------

    def _load_states(self, out: Source, node: Node, known: dict[Node, Parts]) -> None:
        """A thread's states of an input at step i."""
        source, by = (node.args[0], node.attrs["by"]) if node.op == "shift" else (node, 0)
        b, parts = self.of_input[source], self._parts(node)
        for k, name in enumerate(parts):
            if not self.laned(node) and not self.step:
                out(f"float {name}_row[PER];")
                out(f"read_row({name}_row, {self._row_names(node)[k]} + i * {self.padded} + {self._first_state});")
                continue
            at = self._address(b, k, "here", time=f"(ts + i - {by})" if by else "(ts + i)", state=self._first_state)
            count, inside = self._states, f"ts + i >= {by} && ts + i - {by} < size_{self.plan.time}"
            # A step's state is written in place: such loads must not go through the read-only path.
            load = f"load_states<{'false' if self.step else 'true'}>({name}_row, {at}, {b.name}_{self.plan.state}, "
            out(f"{self.type_of(node)} {name}_row[PER];", f"{load}{f'{inside} ? {count} : 0' if by else count});")
            literal = self.fill(node, k) if by else "0"
            if literal not in ("0", "0.0f", "false"):
                self._over_states(out, [f"if (!({inside})) {name}_row[k] = {literal};"])
        rows = tuple(f"{name}_row[k]" for name in parts)
        known[node] = rows if self.laned(node) or self.step else tuple(self._word(node, row) for row in rows)

    def _slot_of(self, scan: Node, *, later: bool) -> Parts:
        """Where the history holds a recomputed scan's carry before (``later``: after) step s of its own walk."""
        back = not self.plan.reverse
        step = "s" if later == back else "s + 1"
        return tuple(self._history(n.replace("[k]", "") + "_history", self.stated(scan), step) for n in self._carry_names(scan))

    def _walk_scan(self, scan: Node, known: dict[Node, Parts], main: bool, record: bool) -> list[str]:
        if main and scan in self.plan.recomputed:
            known[scan] = self._slot_of(scan, later=True)
            return []
        lines = []
        if record:
            lines += [f"{slot} = {carry};" for slot, carry in zip(self._slot_of(scan, later=False), self._carry_names(scan), strict=True)]
        values, _ = self.recurrence_of(scan, known, self._carry_names(scan))
        known[scan] = self._parts(scan)
        return lines + [f"const float {name} = {value};" for name, value in zip(known[scan], values, strict=True)]

    def _advance(self, scan: Node, known: dict[Node, Parts], main: bool, record: bool) -> list[str]:
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
        if record:
            lines += [f"{slot} = {carry};" for slot, carry in zip(self._slot_of(scan, later=True), names, strict=True)]
        return lines

    def _prior(self, node: Node, known: dict[Node, Parts], main: bool) -> list[str]:
        scan = node.args[0]
        if main and scan in self.plan.recomputed:
            known[node] = self._slot_of(scan, later=False)
            return []
        # A copy: the carry of a scan without states goes on before its readers over states come.
        known[node] = self._parts(node)
        return [f"const float {name} = {carry};" for name, carry in zip(known[node], self._carry_names(scan), strict=True)]

    def _state_results(self, known: dict[Node, Parts], stores: list[Store]) -> list[str]:
        """Inside the loop over states: values gathered for their stores, sums over time added to."""
        lines = []
        for store in (s for s in stores if self.stated(s.value)):
            for k, value in enumerate(known[store.value]):
                if store.kind == "sum":
                    lines.append(f"{self.sum_names(store)[k]} += {value};")
                else:
                    lines.append(f"{store.name}_out{k}[k] = {value};")
        return lines

    def _state_stores(self, out: Source, stores: list[Store]) -> None:
        rows = [f"{s.name}_out{k}" for s in stores if s in self.rows for k in self.parts(self.of_store[s])]
        if rows:
            # Few blocks have fewer lanes than threads for them; the barrier keeps this a branch of the whole block.
            out.open("if (lanes < LANES) {")("__syncwarp(Warp<THREADS>::ALL);")
            self._over_states(out, [f"if (lane >= lanes) {name}[k] = 0.0f;" for name in rows])
            out.close()
        for store in (s for s in stores if self.stated(s.value) and s.kind == "value"):
            for k in self.parts(self.of_store[store]):
                name = f"{store.name}_out{k}"
                if store in self.rows:
                    row = f"{self._rows_name(store, k)} + (((sub & 1) * {self.warps} + warp) * BLOCK + i - base) * {self.padded}"
                    out(f"sum_lanes<SPLIT, THREADS>({name}, {row} + {self._first_state});")
                else:
                    self._store_states(out, store, k, name, time="(ts + i)")

    def _store_states(self, out: Source, store: Store, part: int, name: str, time: str = "") -> None:
        """A thread's states of a result, from the array ``name``."""
        b = self.of_store[store]
        if store.lane:
            out.open("{")("float sums[PER];")
            masked = f"lane < lanes ? {name}[k] : 0.0f"
            self._over_states(out, [f"sums[k] = block_lane_sum<SPLIT, THREADS>({masked}, {self._lane_words()}, lanes);"])
            at = self.pointer(b, part, state=f"index_t({self._n})", time=time)
            self._over_states(out, [f"if (lane == 0 && {self._n} < N) *({at}) = sums[k]{self._before(at)};"])
            out.close()
            return
        owner = self.owner(store.value, store.axes)
        guards = [g for g in (owner, "lane < lanes" if self.laned(store.value) else "lane == 0") if g]
        at = self._address(b, part, "lane" if self.laned(store.value) else "0", state=self._first_state, time=time)
        out(f"if ({' && '.join(guards)}) store_states({at}, {b.name}_{self.plan.state}, {name}, {self._states});")

    def _store_direct(self, out: Source, store: Store, values: Parts) -> None:
        """Writes a value without states to memory: a step's result, a final state, a sum over time."""
        b = self.of_store[store]
        for k, value in enumerate(values):
            out.open("{")
            if store.kind == "sum" and self.laned(store.value):
                out(f"const float whole = split_sum<SPLIT, THREADS>({value});")
                value = "whole"
            if store.lane:
                at = self.pointer(b, k)
                out(f"const float total = block_lane_sum<SPLIT, THREADS>(lane < lanes ? {value} : 0.0f, {self._lane_words()}, lanes);")
                out(f"if (tid == 0) *({at}) = total{self._before(at)};")
            else:
                owner = self.owner(store.value, store.axes)
                guards = [g for g in (owner, "own == 0 && lane < lanes" if self.laned(store.value) else "tid == 0") if g]
                out(f"if ({' && '.join(guards)}) *({self._address(b, k, 'lane')}) = Narrow<{C_TYPES[b.dtype]}>::of({value});")
            out.close()

    def _lane_words(self) -> str:
        return self.shared("lane_words", self.threads)

    def _before(self, at: str) -> str:
        """What the lane tiles walked before have left at a place of a sum over lanes."""
        return f" + (walked > 0 ? *({at}) : 0.0f)" if self.walk > 1 else ""

    def _store_final(self, out: Source, store: Store) -> None:
        last = "seg == 0" if store.value.attrs["reverse"] else "seg == segments - 1"
        out.open("{" if self.mode.summary else f"if ({last}) {{")
        names = self._carry_names(store.value)
        if self.stated(store.value):
            for k, name in enumerate(names):
                self._store_states(out, store, k, name.replace("[k]", ""))
        else:
            self._store_direct(out, store, names)
        out.close()

    def _finish(self, out: Source) -> None:
        for store in self.plan.stores:
            if store.kind == "final" and store.value in self.plan.main:
                self._store_final(out, store)
            elif store.kind == "sum" and self.stated(store.value):
                for k, name in enumerate(self.sum_names(store)):
                    self._store_states(out, store, k, name.replace("[k]", ""))
            elif store.kind == "sum":
                self._store_direct(out, store, self.sum_names(store))
