"""The CUDA backend: one step without time, and how a thread stores what it holds."""

from __future__ import annotations

from scanc.codegen.cuda_dialect import C_TYPES
from scanc.codegen.cuda_layout import CudaLayout
from scanc.codegen.emit import Body, Parts, Source
from scanc.codegen.layout import Buffer
from scanc.forms.plan import Region, Store
from scanc.ir import Node


class StepPrinter(CudaLayout):
    def program_index(self, axis: str) -> str:
        """Every thread of a step's kernel divides for its group, and has little else to do: in 32 bits, which a grid's axes fit."""
        parent = self.plan.graph.groups.get(axis, "")
        if not self.step or axis == self.plan.lane_group or axis in self.plan.grid or parent not in self.plan.grid:
            return super().program_index(axis)
        return f"(unsigned(i_{parent}) / (unsigned(size_{parent}) / unsigned(size_{axis})))"

    def _one_step(self, out: Source) -> None:
        """The step form's work, for states that lie whole in memory and for any.

        Without questions in between, all its loads are under way at once.
        """
        together = [f"states_together<PER>({self._states_at(b, k, 'here')}, {self._state_stride(b)}, {self._states})"
                    for b in self.buffers if self.plan.state and self.plan.state in b.axes for k in self.parts(b)]
        if not together:
            self._whole_step(out)
            return
        out.open("const auto one_step = [&](auto how) {")
        self._whole_step(out)
        out.close("};")
        out(f"const bool whole = {together[0]}", *(f"    && {each}" for each in together[1:-1]),
            *([f"    && {together[-1]};"] if together[1:] else ["    ;"]))
        out("if (whole) one_step(Yes());", "else one_step(No());")

    def _whole_step(self, out: Source) -> None:
        """Per lane, per state, per lane again; everything is read and written straight from memory."""
        plan, known = self.plan, dict(self.known)
        nodes = list(plan.main_body)
        stores = [s for s in plan.stores if s.kind != "final"]
        loaded = [n for n in nodes if n.op == "input" and self.stated(n)
                  and (any(n in u.args for u in nodes) or any(n is s.value for s in stores))]
        for node in loaded:
            self._load_states(out, node, known)

        def special(node: Node) -> list[str] | None:
            if node in known:
                return []
            if node.op in ("index", "size", "input"):
                return self._load(node, known)
            if node.op == "sum":
                return self._add_to_sum(node, known, "")
            return None

        def region(which: Region) -> list[Node]:
            return [n for n in nodes if plan.region[n] == which and n.op != "sum" and n not in known]

        free = [a for n in nodes for a in n.args if a.op in ("index", "size") and a not in nodes]
        nodes = [*dict.fromkeys(free), *(n for n in nodes if n.op != "input" or n in loaded or not self.stated(n))]
        body = Body(self.dialect, self.names, known, self.declare, keep=frozenset(s.value for s in stores))
        out(*body.run(region(Region.PRE), special))
        sums = [n for n in nodes if n.op == "sum"]
        for s in sums:
            out(*(f"float {name} = 0.0f;" for name in self._parts(s)))
        inside = [n for n in nodes if n not in known and (plan.region[n] == Region.SCAN or n.op == "sum")]
        stated = [s for s in stores if self.stated(s.value)]
        for store in stated:
            out(*(f"float {store.name}_out{k}[PER];" for k in self.parts(self.of_store[store])))
        if inside or stated:
            lines = body.run(inside, special)
            lines += [f"{s.name}_out{k}[k] = {value};" for s in stated for k, value in enumerate(known[s.value])]
            self._over_states(out, lines)
        if self.split > 1:
            for s in sums:
                out(*(f"{name} = split_sum<SPLIT, THREADS>({name});" for name in self._parts(s)))
        for store in stated:
            for k in self.parts(self.of_store[store]):
                self._store_states(out, store, k, f"{store.name}_out{k}")
        out(*body.run(region(Region.POST), special))
        for store in (s for s in stores if not self.stated(s.value)):
            self._store_direct(out, store, known[store.value])

    def _load_states(self, out: Source, node: Node, known: dict[Node, Parts]) -> None:
        """A thread's states of an input. The state is written in place: such loads must not go through the read-only path."""
        b, parts = self.of_input[node], self._parts(node)
        for k, name in enumerate(parts):
            at = self._states_at(b, k, "here")
            out(f"{self.type_of(node)} {name}_row[PER];",
                f"load_states<how.value>({name}_row, {at}, {self._state_stride(b)}, {self._states});")
        known[node] = tuple(f"{name}_row[k]" for name in parts)

    def _states_at(self, b: Buffer, part: int, lane: str) -> str:
        """Where a thread's states of a lane start."""
        return self._address(b, part, lane, state=self._first_state)

    def _add_to_sum(self, node: Node, known: dict[Node, Parts], place: str) -> list[str]:
        """Adds this state's share to a sum over states, kept in the sum's name and ``place``."""
        operands = known[node.args[0]]
        known[node] = tuple(f"{name}{place}" for name in self._parts(node))
        mask = "" if self.padded == self.N else f"{self._n} < N ? "
        return [f"{name} += {f'{mask}{x} : 0.0f' if mask else x};" for name, x in zip(known[node], operands, strict=True)]

    # -- stores -----------------------------------------------------------------------------------------------------------------

    def _store_states(self, out: Source, store: Store, part: int, name: str) -> None:
        """A thread's states of a result, from the array ``name``."""
        b, n = self.of_store[store], self._of_register("k")
        if self.flips > 1:
            out.open("{")("float ordered[PER];", f"put_in_order<{self.flips}>(ordered, {name}, flip);")
            name = "ordered"
        if store.lane:
            out.open("{")("float sums[PER];")
            masked = f"lane < lanes ? {name}[k] : 0.0f"
            self._over_states(out, [f"sums[k] = block_lane_sum<SPLIT, THREADS>({masked}, {self._lane_words()}, lanes);"])
            at = self.pointer(b, part, state=f"index_t({n})")
            self._over_states(out, [f"if (lane == 0 && {n} < N) *({at}) = sums[k]{self._before(at)};"])
            out.close()
        else:
            owner = self.owner(store.value, store.axes)
            guards = [g for g in (owner, "lane < lanes" if self.laned(store.value) else "lane == 0") if g]
            at = self._states_at(b, part, "lane" if self.laned(store.value) else "0")
            call = "store_states<how.value>" if self.step else "store_states"
            out(f"if ({' && '.join(guards)}) {call}({at}, {self._state_stride(b)}, {name}, {self._states});")
        if self.flips > 1:
            out.close()

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
