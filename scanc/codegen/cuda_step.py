"""The CUDA backend: one step without time, and how a thread stores what it holds."""

from __future__ import annotations

from pathlib import Path

from scanc.codegen.cuda_dialect import BYTES, C_TYPES
from scanc.codegen.cuda_layout import CudaLayout
from scanc.codegen.emit import Body, Parts, Source
from scanc.codegen.layout import Buffer, Mode, walked_axis
from scanc.errors import ScheduleError
from scanc.forms.plan import Plan, Region, Store
from scanc.ir import Node
from scanc.schedule import RecurrentSchedule, StepSchedule

STEP_HEADER = Path(__file__).with_name("cuda_step.h")


class StepPrinter(CudaLayout):
    def __init__(self, plan: Plan, schedule: RecurrentSchedule | StepSchedule, state: int, mode: Mode, title: str) -> None:
        super().__init__(plan, schedule, state, mode, title)
        self.rounds = schedule.walk if isinstance(schedule, StepSchedule) else 1  # lanes, or rows of a grid axis, that a thread takes
        self.over = walked_axis(plan) if self.step else ""
        self._lane_of_all = ""
        self._fetched: list[Node] = []  # inputs of each row that a thread takes
        self._at: dict[tuple[Buffer, int, str, str], str] = {}  # pointers that go from row to row, by what they point at
        if self.rounds == 1 or self.over != plan.lane:
            return
        if schedule.lanes % self.rounds or any(s.lane for s in plan.stores):
            raise ScheduleError(field="walk", value=self.rounds, limit=f"it divides lanes, {schedule.lanes}, none of which are summed over")
        self.threads //= self.rounds
        self.warps = max(1, self.threads // 32)

    @property
    def blocks_per_multiprocessor(self) -> int:
        """With several lanes or rows a thread: as many blocks as the inputs of all its lanes, or of two rows, leave registers for."""
        if self.rounds == 1:
            return super().blocks_per_multiprocessor
        inputs = [n for n in self.plan.main_body if n.op == "input"]
        held = sum(self._words(n) * ((2 if self._rows else self.rounds) if self._walked(n) else 1) for n in inputs)
        return max(1, min(2048 // self.threads, 65536 // (self.threads * min(255, (44 if self._rows else 56) + held))))

    @property
    def _group(self) -> int:
        """States of a thread that lie together: 16 bytes of what each lane has its own of. A lane's threads have such groups in turn, so
        that neighbours move neighbouring memory at once."""
        own = [b for b in self.buffers if {self.plan.lane, self.plan.state, *self.plan.grid} <= {*b.axes}]
        group = min((16 // BYTES[b.dtype] for b in own), default=self.per)
        return group if self.step and self.split > 1 and self.per % group == 0 else self.per

    def _of_register(self, k: str) -> str:
        group = self._group
        if group == self.per:
            return super()._of_register(k)
        return f"({k} / GROUP * APART + own * GROUP + {k} % GROUP)"

    @property
    def _first_state(self) -> str:
        return super()._first_state if self._group == self.per else "own * GROUP"

    @property
    def _states(self) -> str:
        return super()._states if self._group == self.per else "N - own * GROUP"

    def _words(self, node: Node) -> int:
        """Registers that an input takes: two states of 16 bits have one."""
        if not self.stated(node):
            return 1
        return -(-self.per * (2 if self.of_input[node].dtype in ("bfloat16", "float16") else 4) // 4)

    def _walked(self, node: Node) -> bool:
        """Whether a value is another one in each of a thread's rounds."""
        return self.plan.has(node, self.over)

    @property
    def _rows(self) -> str:
        """The grid axis of which a thread takes several; "" where it takes lanes, or one of each."""
        return self.over if self.rounds > 1 and self.over != self.plan.lane else ""

    def place(self, axis: str) -> tuple[str, str]:
        """The name of a program's position along a grid axis, and how many positions there are."""
        rows = f"((size_{axis} + {self.rounds - 1}) / {self.rounds})"
        return (f"rows_{axis}", rows) if axis == self._rows else (f"i_{axis}", f"size_{axis}")

    def _address(self, b: Buffer, part: int, lane: str, *, state: str = "", time: str = "") -> str:
        at = self._plain_address(b, part, lane, state, time)
        if not self._rows or self._rows not in b.axes:
            return at
        return self._at.setdefault((b, part, lane, state), f"{b.name}_at{sum(b is other for other, *_ in self._at) or ''}")

    def _plain_address(self, b: Buffer, part: int, lane: str, state: str, time: str = "") -> str:
        if not self.step or lane == "0" or self.plan.lane not in b.axes:
            return super()._address(b, part, lane, state=state, time=time)
        # One product in 32 bits for where the block's lanes start and which of them it is: a step is mostly addresses.
        self._lane_of_all = f"(int(first) + {lane})"
        at = self.pointer(b, part, time=time, state="" if state in ("", "0") else f"index_t({state})")
        self._lane_of_all = ""
        return at

    def index_of(self, axis: str, b: Buffer, time: str, state: str) -> str:
        if axis == self.plan.lane and self._lane_of_all:
            return f"index_t({self._lane_of_all})"
        return super().index_of(axis, b, time, state)

    def _groups(self) -> list[str]:
        """Axes that divide an axis of the grid."""
        return [g for g, parent in self.plan.graph.groups.items() if parent in self.plan.grid and g not in self.plan.grid]

    def program_index(self, axis: str) -> str:
        return f"i_{axis}" if self.step and axis in self._groups() else super().program_index(axis)

    def _one_step(self, out: Source) -> None:
        """The step form's work, for states that lie whole in memory and for any.

        Without questions in between, all its loads are under way at once.
        """
        if self.plan.state:
            apart = self._group * self.split if self._group < self.per else self.per
            out(f"constexpr int GROUP = {self._group}, APART = {apart};  // a thread's states lie so many together, so far apart")
        for group in self._groups():
            # Every thread divides for its group, and has little else to do: in 32 bits, and not at all for the only one.
            parent = self.plan.graph.groups[group]
            members = f"(unsigned(size_{parent}) / unsigned(size_{group}))"
            out(f"const index_t i_{group} = size_{group} == 1 ? 0u : unsigned(i_{parent}) / {members};")
        if self._rows:
            out(f"constexpr int ROUNDS = {self.rounds};  // positions along {self.over} that a thread takes, one after another",
                f"const index_t i_{self.over} = rows_{self.over} * ROUNDS;",
                f"const int rows = int(smaller(ROUNDS, size_{self.over} - i_{self.over}));")
        elif self.rounds > 1:
            out(f"constexpr int ROUNDS = {self.rounds};  // lanes that a thread takes, all of whose inputs are asked for first")
        work = Source()
        self._begin(work)
        inner = Source()
        inner.open("const auto one_step = [&](auto how) {")
        self._whole_step(inner)
        inner.close("};")
        if self._rows:
            self._fetch_rows(work)
        work.paste(inner)
        work("bool whole = true;")
        self._open_round(work)
        for b in (b for b in self.buffers if self.plan.state and self.plan.state in b.axes):
            for at in (self._states_at(b, k, "lane" if self._rows and b.written else "here") for k in self.parts(b)):
                # Where one row and the next lie so, all do.
                rows = (at, f"{at} + {b.name}_{self.over}") if self._rows and self._rows in b.axes else (at,)
                rest = f"{self._state_stride(b)}, {self._states}"
                work(*(f"whole = whole && states_apart<PER, GROUP, APART>({each}, {rest});" for each in rows))
        self._close_round(work)
        work("if (whole) one_step(Yes());", "else one_step(No());")
        for (b, part, lane, state), name in self._at.items():
            const = "" if b.written else "const "
            out(f"{const}{C_TYPES[b.dtype]}* {name} = {self._plain_address(b, part, lane, state)};")
        out.paste(work)

    def _begin(self, out: Source) -> None:
        """While the kernel before this one still runs: its states come nearer, and what later kernels read. Then it waits for its end."""
        states = [self.of_input[n] for n in self.plan.main_body if n.op == "input" and self.stated(n) and self.laned(n)]
        if states:
            self._open_round(out)
            # A lane's threads ask for its states in turn, each for as many as it has, whichever they are.
            turn = "own * PER" if self.split > 1 else "0"
            guard = f"if ({turn} < N) " if self.split > 1 and self.padded != self.N else ""
            for b in states:
                at = self._plain_address(b, 0, "here", turn)
                out(f"{guard}bring_nearer<PER * sizeof({C_TYPES[b.dtype]})>({at});")
            self._close_round(out)
        out(*(f"bring_share({b.name}_ptr, {b.name}_whole_part);" for b in self.buffers if b.role == "brought"))
        out("wait_for_earlier_kernels();", "let_later_kernels_begin();")

    def _open_round(self, out: Source) -> None:
        """A loop over the lanes that a thread takes; none where it takes one."""
        if self.rounds > 1 and not self._rows:
            out("#pragma unroll").open("for (int r = 0; r < ROUNDS; ++r) {")
            out("const int lane = Share<SPLIT, THREADS>::lane(tid) + r * (LANES / ROUNDS);", "const int here = smaller(lane, lanes - 1);")

    def _close_round(self, out: Source) -> None:
        if self.rounds > 1 and not self._rows:
            out.close()

    def _fetch_rows(self, out: Source) -> None:
        """What reads one row's inputs, as they are stored: nothing waits for them until they are used, a row later."""
        fields, lines = Source(), Source()
        for node in self._fetched:
            b = self.of_input[node]
            for k, name in enumerate(self._parts(node)):
                if self.stated(node):
                    fields(f"Stored<{C_TYPES[b.dtype]}, PER, GROUP, APART> {name};")
                    lines(f"load_states<how.value>(to.{name}, {self._states_at(b, k, 'here')}, {self._state_stride(b)}, {self._states});")
                else:
                    fields(f"{C_TYPES[b.dtype]} {name};")
                    lines(f"to.{name} = *{self._address(b, k, 'here')};")
        out.open("struct Row {").paste(fields).close("};")
        out.open("const auto fetch = [&](auto how, Row& to) {").paste(lines)
        out(*(f"{name} += {b.name}_{self.over};" for (b, *_), name in self._at.items() if not b.written)).close("};")

    def _open_rows(self, out: Source) -> None:
        out("Row row, next;", "fetch(how, row);", "#pragma unroll 1").open("for (int r = 0; r < rows; ++r) {")
        out("if (r + 1 < rows) fetch(how, next);")

    def _close_rows(self, out: Source) -> None:
        out(*(f"{name} += {b.name}_{self.over};" for (b, *_), name in self._at.items() if b.written), "row = next;").close()

    def _load_rounds(self, out: Source, loaded: list[Node], others: list[Node], known: dict[Node, Parts]) -> None:
        """The inputs of all lanes that a thread takes: what it stores for one would keep the next one's loads waiting."""
        walked = [n for n in (*loaded, *others) if self._walked(n)]
        if self._rows:
            self._fetched = walked
            known |= {n: tuple(f"row.{name}[k]" if self.stated(n) else f"widen(row.{name})" for name in self._parts(n)) for n in walked}
            return
        for node in walked:
            for name in self._parts(node):
                stored = f"Stored<{C_TYPES[self.of_input[node].dtype]}, PER, GROUP, APART>"
                out(f"{stored if self.stated(node) else self.type_of(node)} {name}_of[ROUNDS];")
        self._open_round(out)
        for node in walked:
            if self.stated(node):
                b = self.of_input[node]
                out(*(f"load_states<how.value>({name}_of[r], {self._states_at(b, k, 'here')}, {self._state_stride(b)}, {self._states});"
                      for k, name in enumerate(self._parts(node))))
            else:
                out(*self._load(node, known, lambda _, name, value: f"{name}_of[r] = {value};"))
        self._close_round(out)
        for node in walked:
            known[node] = tuple(f"{name}_of[r]{'[k]' if self.stated(node) else ''}" for name in self._parts(node))

    def _whole_step(self, out: Source) -> None:
        """Per lane, per state, per lane again; everything is read and written straight from memory."""
        plan, known = self.plan, dict(self.known)
        nodes = list(plan.main_body)
        stores = [s for s in plan.stores if s.kind != "final"]
        loaded = [n for n in nodes if n.op == "input" and self.stated(n)
                  and (any(n in u.args for u in nodes) or any(n is s.value for s in stores))]
        for node in loaded:
            if self.rounds == 1 or not self._walked(node):
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
        if self.rounds > 1:
            self._load_rounds(out, loaded, [n for n in region(Region.PRE) if n.op == "input"], known)
            body.keep |= {n for n in region(Region.PRE) if not self._walked(n)}
            out(*body.run([n for n in region(Region.PRE) if not self._walked(n)], special))
            self._open_round(out)
            if self._rows:
                self._open_rows(out)
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
        self._close_round(out)
        if self._rows:
            self._close_rows(out)

    def _load_states(self, out: Source, node: Node, known: dict[Node, Parts]) -> None:
        """A thread's states of an input. The state is written in place: such loads must not go through the read-only path."""
        b, parts = self.of_input[node], self._parts(node)
        for k, name in enumerate(parts):
            at = self._states_at(b, k, "here")
            out(f"Stored<{C_TYPES[b.dtype]}, PER, GROUP, APART> {name}_row;",
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
            guards = self._guards(store, "lane < lanes" if self.laned(store.value) else "lane == 0")
            at = self._states_at(b, part, "lane" if self.laned(store.value) else "0")
            call = "store_apart<how.value, GROUP, APART>" if self.step else "store_states"
            out(f"if ({' && '.join(guards)}) {call}({at}, {self._state_stride(b)}, {name}, {self._states});")
        if self.flips > 1:
            out.close()

    def _guards(self, store: Store, mine: str) -> list[str]:
        """Conditions under which a thread stores a result."""
        return [g for g in (self.owner(store.value, store.axes), mine) if g]

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
                guards = self._guards(store, "own == 0 && lane < lanes" if self.laned(store.value) else "tid == 0")
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
