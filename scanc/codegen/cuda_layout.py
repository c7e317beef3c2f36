"""The CUDA backend: where in a block each value stands — registers, tiles of shared memory, addresses — before loops are printed."""

from __future__ import annotations

from scanc.codegen.common import KernelPrinter
from scanc.codegen.cuda_dialect import C_TYPES, CudaDialect, scalar_type, taken_names
from scanc.codegen.cuda_phases import Phases
from scanc.codegen.emit import Parts, Source
from scanc.codegen.layout import Buffer, Mode, in_rows
from scanc.errors import ScheduleError
from scanc.forms.plan import Plan, Region, Store
from scanc.ir import Node
from scanc.schedule import RecurrentSchedule, Schedule, StepSchedule

STATES_PER_THREAD = 64   # what registers hold beside the arithmetic
MOST_AT_ONCE = 16        # steps walked at once, whose values registers hold


def between_checkpoints(plan: Plan, schedule: RecurrentSchedule) -> int:
    """Steps from one state that a two-way kernel keeps in global memory to the next."""
    return schedule.interval if plan.reverse and schedule.interval else schedule.tile


def checkpoint_words(plan: Plan, per: int) -> int:
    """Floats of a thread's recomputed states, where it holds ``per`` of a lane's."""
    return sum((per if plan.has(s, plan.state) else 1) * (2 if s.kind == "complex" else 1) for s in plan.recomputed)


class CudaLayout(KernelPrinter):
    """The threads of a block, what crosses between them, and how it is named in the source."""

    dialect = CudaDialect()

    def __init__(self, plan: Plan, schedule: RecurrentSchedule | StepSchedule, state: int, mode: Mode, title: str) -> None:
        super().__init__(plan, schedule, state, mode, title)
        strides = (s for b in self.buffers for s in self.stride_names(b))
        for word in sorted({*taken_names(), *strides, *(f"size_{a}" for a in plan.graph.order)}):
            self.names.fresh(word)
        self.lanes, self.split = schedule.lanes, schedule.split
        self.threads = self.lanes * self.split
        self.warps = max(1, self.threads // 32)
        self.per = -(-self.N // self.split)      # states of a thread
        self.padded = self.per * self.split      # states of a lane, with those that are none
        self.tile, self.history, self.walk, self.stages, self.blocks, self.asked_helpers = 1, 1, 1, 1, 0, 0
        self.polynomial, self.interval = 0, 1
        if isinstance(schedule, RecurrentSchedule) and not self.step:
            self.tile, self.history, self.walk = schedule.tile, schedule.history, schedule.walk
            self.stages, self.blocks, self.asked_helpers = schedule.stages, schedule.blocks, 32 * schedule.helpers
            self.polynomial, self.cluster = schedule.polynomial, schedule.cluster
            self.interval = between_checkpoints(plan, schedule)
        self.pitch = self.tile + (4 if self.tile % 4 == 0 else 0)  # words from state to state in rows; four more, for other banks
        self._check(schedule)
        self.phases = Phases(plan)
        self.bases: list[tuple[Buffer, int]] = []     # addresses a block starts from, kept in shared memory
        self.own_scratch = ""                         # where the block's part of scratch memory starts
        self._row_tiles: set[str] = set()             # those of the arrays below that hold rows over states and steps
        self._shared: dict[str, int] = {}             # arrays of shared memory, one after another, and their words
        self.of_lane: dict[Node, Parts] = {}          # values of lanes, in shared memory
        self.tile_of: dict[Node, list[int]] = {}      # a value's tiles, by number
        self.summed: dict[Store, list[int]] = {}      # tiles of what is summed over time or lanes after the epilogue
        self.crossing: list[Node] = []                # early values the walk reads
        self.back: list[Node] = []                    # those of them the epilogue reads again
        self.epilogue: list[Node] = []                # the epilogue's nodes
        self.left: list[Node] = []                    # walked values the epilogue reads
        self.rows: list[Store] = []                   # sums over lanes of values with a state axis
        self.staged_rows: dict[tuple[Buffer, int], None] = {}  # inputs over steps and states that copies bring
        self.group = 1                                # neighbours a thread makes at once in prologue and epilogue
        self.chunk = 1                                # neighbours of rows a thread moves at once
        if not self.step:
            self._assign()

    def _check(self, schedule: Schedule) -> None:
        def need(field: str, holds: bool, limit: str) -> None:
            if not holds:
                raise ScheduleError(field=field, value=getattr(schedule, field), limit=limit)

        need("lanes", self.threads <= 1024, f"a block of lanes × split has {self.threads} threads and may have 1024")
        need("helpers", self.threads + self.asked_helpers <= 1024,
             f"beside lanes × split = {self.threads} threads a block may have {1024 - self.threads} more, 32 a warp")
        need("split", self.per <= STATES_PER_THREAD,
             f"a thread would hold {self.per} of the {self.N} states and its registers have room for {STATES_PER_THREAD}; raise it")
        if self.plan.recomputed:
            need("history", self.tile % self.history == 0, f"it must divide tile, {self.tile}")
            need("history", self.history <= MOST_AT_ONCE, f"a thread holds the states of {MOST_AT_ONCE} steps at most")

    # -- tiles ------------------------------------------------------------------------------------------------------------------

    def _assign(self) -> None:
        """Gives every value that crosses between phases its tile."""
        plan, phases = self.plan, self.phases
        self.rows = [s for s in plan.stores if in_rows(plan, s)]
        if not (self.rows and plan.recomputed):
            self.cluster = 1
        bodies = (plan.recompute_body, plan.main_body) if plan.recomputed else (plan.main_body,)
        self.crossing = phases.crossing(*bodies)
        self.back = phases.worth_keeping([n for n in self.crossing if self.laned(n)])
        self.epilogue = phases.epilogue([*self.back, *(n for n in self.crossing if not self.laned(n))])
        self.left = phases.left(self.epilogue)
        # Values crossing in, then values left, which take the place of those not read again.
        free: list[int] = []
        count = 0
        for node in (n for n in self.crossing if self.laned(n)):
            self.tile_of[node] = list(range(count, count + self._width(node)))
            count += self._width(node)
            if node not in self.back:
                free += self.tile_of[node]
        for node in (n for n in self.left if self.laned(n)):
            self.tile_of[node] = []
            for _ in range(self._width(node)):
                self.tile_of[node].append(free.pop(0) if free else count)
                count = max(count, self.tile_of[node][-1] + 1)
        # The epilogue puts what it sums over time or lanes into tiles it has read by then, of those that the next prologue does not
        # write: no barrier is needed between the two.
        used = sum(self._width(n) for n in self.crossing if self.laned(n))
        for store in (s for s in phases.late_stores if self.laned(s.value) and (s.kind == "sum" or s.lane)):
            self.summed[store] = list(range(used, used + self._width(store.value)))
            used += self._width(store.value)
        # Tiles come first and one after another: which tile a thread writes can then be arithmetic.
        for w in range(max(count, used)):
            self.shared(f"tile{w}", self.tile_words)
        self.group = self._neighbours([b for b in self.buffers if self._over_tile(b)], self.lanes, self.lanes * self.tile)
        over_rows = [b for b in self.buffers if {plan.time, plan.state} <= set(b.axes)]
        self.chunk = self._neighbours(over_rows, self.padded, self.padded * self.tile)

    def _over_tile(self, b: Buffer) -> bool:
        """Whether a tensor is over lanes and steps alone, as tiles are."""
        return {self.plan.lane, self.plan.time} <= set(b.axes) and self.plan.state not in b.axes

    def _neighbours(self, over: list[Buffer], across: int, elements: int) -> int:
        """Elements of a tile one thread takes at once: 16 bytes of the narrowest tensor, or half of it where threads would have nothing."""
        short = any(b.dtype in ("bfloat16", "float16") for b in over)
        wanted = (8, 4) if short and elements >= 8 * self.workers else (4,)
        return next((g for g in wanted if self.tile % g == 0 and across % g == 0), 1)

    @staticmethod
    def _width(node: Node) -> int:
        """Floats of a value: two where it is complex."""
        return 2 if node.kind == "complex" else 1

    @property
    def tile_words(self) -> int:
        return -(-self.tile * self.lanes // 4) * 4

    def shared(self, name: str, words: int) -> str:
        """A named array of shared memory, aligned to 16 bytes; as long as whoever asks for most of it."""
        self._shared[name] = max(self._shared.get(name, 0), -(-words // 4) * 4)
        return name

    @property
    def shared_words(self) -> int:
        return sum(words * (2 if self.twofold(name) else 1) for name, words in self._shared.items())

    # -- helpers ----------------------------------------------------------------------------------------------------------------

    @property
    def helpers(self) -> int:
        """Threads of a block that do the prologue and the epilogue alone; they come before those that walk. See cuda_helpers.py."""
        return 0

    @property
    def workers(self) -> int:
        """Threads that do the prologue and the epilogue."""
        return self.helpers or self.threads

    @property
    def all_threads(self) -> int:
        return self.threads + self.helpers

    @property
    def workers_name(self) -> str:
        return "HELPERS" if self.helpers else "THREADS"

    def twofold(self, name: str) -> bool:
        """Whether an array stands twice: what helpers leave for one tile while another is walked."""
        return bool(self.helpers) and (name in self._row_tiles or (name.startswith("tile") and name[4:].isdigit()))

    @property
    def at_once(self) -> int:
        """Steps walked at once: for each state in turn, so that what several steps of it need is read together."""
        return self.history if self.plan.recomputed else min(self.history, self.tile, MOST_AT_ONCE)

    @property
    def width(self) -> int:
        """Threads of a warp."""
        return min(32, self.threads)

    @property
    def flips(self) -> int:
        """Parts of a warp's lanes that have their states in another order each, so that sums over lanes fold without selections."""
        return min(self.width // self.split, self.per & -self.per) if self.rows and self.plan.recomputed else 1

    # -- registers --------------------------------------------------------------------------------------------------------------

    @property
    def checkpoint_words(self) -> int:
        return checkpoint_words(self.plan, self.per)

    @property
    def scratch_words(self) -> int:
        """Of those what a kernel keeps in global memory for itself: nothing where it is given them."""
        return 0 if self.mode.resumes else self.checkpoint_words

    @property
    def blocks_per_multiprocessor(self) -> int:
        """What the compiler is told to leave registers for: as many blocks as the values a thread must hold allow, up to 1024 threads."""
        plan = self.plan
        if not self.step and self.blocks:
            return max(1, min(self.blocks, 2048 // self.all_threads))
        body = dict.fromkeys((*plan.recompute_body, *plan.main_body))
        over_states = [n for n in body if plan.region[n] == Region.STATE and n.op != "const"]
        arrays = [*plan.scans, *over_states, *(s.value for s in plan.stores if s.kind == "sum")]
        arrays += [n for n in body if n.op in ("input", "shift") and plan.region[n] == Region.SCAN]
        held = sum(self._width(n) * (self.per if self.stated(n) else 1) for n in arrays
                   if self.step or plan.region[n] != Region.SCAN or n in plan.scans)
        if not self.step:
            # Of the steps walked at once: what is read and summed of each, and for one state what its rows, history and sums take.
            flat = [*self.crossing, *self.left, *(n for n in body if n.op == "sum")]
            one = [n for n in arrays if plan.region[n] == Region.SCAN and n not in plan.scans] + [s.value for s in self.rows]
            one += [*plan.recomputed, *self.kept]
            held += self.at_once * sum(self._width(n) for n in (*dict.fromkeys(flat), *one))
        need = min(255, (32 if plan.recomputed else 48) + held + held // 4)
        if not self.step:
            # A group of the epilogue holds what it reads and what it writes.
            elements = [n for n in self.epilogue if self.laned(n) and n.op in ("input", "shift")]
            elements += [s.value for s in self.phases.late_stores if self.laned(s.value)]
            need = max(need, min(255, 40 + self.group * sum(self._width(n) for n in elements)))
        # A multiprocessor has four parts of 16384 registers, given to warps in eights a thread.
        blocks = max(1, min(8, 1024 // self.threads))
        while blocks > 1 and 512 // -(-blocks * -(-self.all_threads // 32) // 4) // 8 * 8 < need:
            blocks -= 1
        return blocks

    # -- names ------------------------------------------------------------------------------------------------------------------

    def type_of(self, node: Node) -> str:
        return scalar_type(node)

    def declare(self, node: Node, name: str, expression: str) -> str:
        return f"const {self.type_of(node)} {name} = {expression};"

    def _parts(self, node: Node) -> Parts:
        """The names of a node's components: the node's own name where there is one."""
        return self.names.parts(node) if node.kind == "complex" else (self.names.of(node),)

    def _carry_names(self, scan: Node) -> Parts:
        return self.names.parts(scan, "_carry[k]" if self.stated(scan) else "_carry")

    def sum_names(self, store: Store) -> Parts:
        return tuple(n.replace("[n]", "[k]") for n in super().sum_names(store))

    def _word(self, node: Node, text: str) -> str:
        """A value of a node's kind from the float that carries its bits."""
        return {"int": f"__float_as_int({text})", "bool": f"(__float_as_int({text}) != 0)"}.get(node.kind, text)

    def _step_names(self, node: Node) -> Parts:
        """Where a value that no lane differs in stands, one float a step."""
        return tuple(self.shared(f"{self.names.of(node)}_steps{k}", self.tile) for k in range(self._width(node)))

    def _row_names(self, node: Node) -> Parts:
        """Where an input over steps and states stands."""
        names = tuple(self.shared(f"{name}_tile", self.pitch * self.padded) for name in self._parts(node))
        self._row_tiles.update(names)
        return names

    # -- addresses --------------------------------------------------------------------------------------------------------------

    # A step's kernel reads and writes states from memory: a thread has neighbours. Where time is walked, neighbouring threads have
    # neighbouring states, whose rows lie in different banks.

    @property
    def _n(self) -> str:
        """The state that a thread's register k holds."""
        return self._of_register("k" if self.flips == 1 else "(k ^ flip)")

    def _of_register(self, k: str) -> str:
        """State ``k`` of a thread, among all of a lane."""
        if self.split == 1:
            return k
        return f"(own * PER + {k})" if self.step else f"({k} * SPLIT + own)"

    @property
    def _row_at(self) -> str:
        """Where the row of a thread's register k stands among rows: what differs from thread to thread apart from what k adds."""
        if self.split == 1 or self.step or self.flips > 1:
            return f"{self._n} * PITCH"
        return f"own * PITCH + {self._row_of_register}"

    @property
    def _row_of_register(self) -> str:
        """What k adds."""
        return "k * PITCH" if self.split == 1 else "k * (SPLIT * PITCH)"

    @property
    def _first_state(self) -> str:
        if self.split == 1:
            return "0"
        return "own * PER" if self.step else "own"

    def _state_stride(self, b: Buffer) -> str:
        """Words from one of a thread's states to the next."""
        return f"{b.name}_{self.plan.state}" if self.split == 1 or self.step else f"SPLIT * {b.name}_{self.plan.state}"

    @property
    def _states(self) -> str:
        """How many of a thread's registers hold states: more than PER where all do."""
        if self.split == 1:
            return "N"
        return "N - own * PER" if self.step else "(N - own + SPLIT - 1) / SPLIT"

    def _position(self, axis: str, lane: str, t: str) -> str:
        if axis == self.plan.lane:
            return f"(int(first) + {lane})"
        if axis == self.plan.state:
            return self._n
        return t if axis == self.plan.time else f"int({self.program_index(axis)})"

    def _address(self, b: Buffer, part: int, lane: str, *, state: str = "", time: str = "") -> str:
        """An element's address, computed where it is used."""
        at = self.pointer(b, part, time=time, state="" if state in ("", "0") else f"index_t({state})")
        laned = self.plan.lane and self.plan.lane in b.axes and lane != "0"
        return at + (f" + index_t({lane}) * {b.name}_{self.plan.lane}" if laned else "")

    def _base(self, b: Buffer, part: int) -> str:
        """Where the block's first lane and state stand in a buffer at the tile's first step.

        The part of it that no loop changes stands in shared memory: registers are dearer.
        """
        return f"{self._fixed(b, part)} + ts * {b.name}_{self.plan.time}"

    def _fixed(self, b: Buffer, part: int) -> str:
        """The same but for the time."""
        if (b, part) not in self.bases:
            self.bases.append((b, part))
        if self.helpers:  # they have registers to spare
            return f"base{self.bases.index((b, part))}"
        self.shared("bases", 4 * len(self.buffers) + 4)
        const = "" if b.written else "const "
        return f"base_of<{const}{C_TYPES[b.dtype]}>(bases, {self.bases.index((b, part))})"

    def _set_bases(self, out: Source) -> None:
        if not self.bases:
            return
        if self.helpers:
            for i, (b, part) in enumerate(self.bases):
                out(f"{'' if b.written else 'const '}{C_TYPES[b.dtype]}* const base{i} = {self.pointer(b, part)};")
            return
        out.open("if (tid == 0) {")
        for i, (b, part) in enumerate(self.bases):
            out(f"set_base(bases, {i}, {self.pointer(b, part)});")
        if self.own_scratch:
            out(f"set_base(bases, {2 * len(self.buffers)}, {self.own_scratch});")
        out.close()

    def _load(self, node: Node, known: dict[Node, Parts], declare: object = None, *, t: str = "") -> list[str]:
        """Reads a value straight from memory, for the thread's own lane (and state k)."""
        make = declare if callable(declare) else self.declare
        if node.op == "size":
            known[node] = (f"int(size_{node.attrs['axis']})",)
            return []
        if node.op == "index":
            known[node] = (self._position(node.attrs["axis"], "lane", t),)
            return []
        b, lines = self.of_input[node], []
        for k, name in enumerate(self._parts(node)):
            value = f"widen(*({self._address(b, k, 'here', state=self._n, time=t)}))"
            if self.stated(node) and self.padded != self.N:
                value = f"{self._n} < N ? {value} : {self.type_of(node)}(0)"
            lines.append(make(node, name, value))
        known[node] = self._parts(node)
        return lines

    def _over_states(self, out: Source, lines: list[str]) -> None:
        if lines:
            out("#pragma unroll").open("for (int k = 0; k < PER; ++k) {")(*lines).close()
