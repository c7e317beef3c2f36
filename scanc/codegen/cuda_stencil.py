"""The CUDA backend, printing the form stencil: what carries nothing from step to step and looks a few steps back or ahead.

A tile [LANES, TILE] is divided into patches (``codegen/cuda_patch.py``), one a thread. Whether they can be read by vectors, rows that start
at multiples of 16 bytes and so on, is the same for a whole launch: a block asks once (``whole``), and has two bodies, one that moves
vectors and has no question left but where the sequence begins and ends, and one for everything else, element by element.

Where steps lie together in memory, a patch is PIECES pieces of STEPS steps of one lane, each beside its neighbours' of the same number, so
that what a warp moves by one instruction is one stretch of memory. All are asked for before the first is worked on. What a piece looks at
beyond its own steps is read again, from near by.

    tile of 512 steps, 2 pieces:   | thread 0: 0 ... 7 | thread 1: 8 ... 15 | ... thread 31 | thread 0: 256 ... 263 | ...

Where lanes lie together, a patch is ACROSS lanes of STEPS steps, with as many steps more at both ends as anything looks at.
"""

from __future__ import annotations

from scanc.codegen.cuda import CudaSource
from scanc.codegen.cuda_dialect import BYTES, C_TYPES, scalar_type
from scanc.codegen.cuda_patch import PatchPrinter, reaches
from scanc.codegen.emit import Source
from scanc.codegen.layout import Buffer, Mode, buffers
from scanc.errors import UnsupportedForm
from scanc.forms.plan import Plan
from scanc.ir import Node
from scanc.schedule import StencilSchedule


def supported(plan: Plan) -> str:
    """Why a plan has no such kernel; "" where it has one."""
    if plan.state or plan.scans:
        return "a thread's patch has lanes and steps, and no states"
    if not plan.lane or not plan.time:
        return "a patch has lanes and steps"
    if any(store.lane for store in plan.stores):
        return "it sums over lanes, which are different threads'"
    if any(n.kind == "complex" for n in plan.graph.nodes()):
        return "its values are real"
    if any(n.op == "sum" and plan.timed(n) for n in plan.main_body):
        return "it sums within a step"
    return ""


def farthest(plan: Plan) -> int:
    """Steps between a result and the farthest input that it looks at."""
    return max((max(-lo, hi) for node, (lo, hi) in reaches(plan).items() if node.op == "input"), default=0)


def piece_steps(plan: Plan) -> int:
    """Steps of 16 bytes of the narrowest that is over time."""
    timed = [b.dtype for b in buffers(plan, Mode()) if plan.time in b.axes and b.role in ("input", "store")]
    return 16 // min(map(BYTES.__getitem__, timed))


def generate(plan: Plan, schedule: StencilSchedule, state: int, mode: Mode, title: str) -> CudaSource:
    """The source of one kernel. Raises ScheduleError, UnsupportedForm."""
    reason = supported(plan)
    if reason:
        raise UnsupportedForm(op=plan.graph.name, form="stencil", forms="stencil on the Triton backend", reason=reason)
    printer = (_Across if mode.neighbours == plan.lane else _Pieces)(plan, schedule, state, mode, title)
    text = printer.print()
    made = printer.source("cuda", text)
    return CudaSource(**made.__dict__, threads=printer.threads, shared=4 * printer.words, narrow=printer.narrow)


class _Pieces(PatchPrinter):
    along, whole = True, "how.vectors"

    @property
    def _threads(self) -> tuple[str, ...]:
        return (f"constexpr int ROWS = {self.rows}, PIECES = {self.pieces}, NEXT = ROWS * STEPS;  // steps from piece to piece",
                "const int row = threadIdx.x % ROWS, lane = threadIdx.x / ROWS;")

    @property
    def _own_lanes(self) -> tuple[str, ...]:
        return ("const int count = lane < lanes;  // whether the thread has a lane",
                "const int place = first + (count ? lane : 0);")

    def _patches(self, out: Source) -> None:
        time = self.plan.time
        self._pointers(out)
        for b in self._timed_buffers():
            out(f"{'' if b.written else 'const '}{C_TYPES[b.dtype]}* {b.name}_here = {b.name}_at;  // the tile at hand")
        self._whole(out, f"size_{time} % STEPS == 0", self._timed_buffers(), time, "STEPS")
        for node in self._inputs:
            out(f"{self._kind(node)} {self.names.of(node)}_pieces[PIECES];")
            if self.ahead:
                out(f"{self._kind(node)} {self.names.of(node)}_next[PIECES];")
        out.open("const auto patch = [&](auto how, int q, int at) {")
        self._piece(out)
        out.close("};")
        out.open("if (whole) {")
        self._tiles(out)
        out.close()
        out.open("else {")("#pragma unroll 1").open("for (int at = 0; at < steps && at < end; at += NEXT) {")
        out("patch(OneByOne(), 0, at);").close().close()

    def _tiles(self, out: Source) -> None:
        """All tiles of a block whose pieces are whole."""
        if self.ahead:
            out("constexpr int start = 0;")
            self._fetch_all(out, "_pieces", 0)
        # Of one tile, too, a loop: without, the compiler makes every load an address of its own.
        out("#pragma unroll 1").open("for (int start = 0; start < steps; start += TILE) {")
        if self.ahead:
            out("if (start + TILE < steps)")
        self._fetch_all(out, "_next" if self.ahead else "_pieces", self.ahead)
        if self.nearer:
            for node in self._inputs:
                out(f"if (start + TILE < steps) bring_pieces_nearer<PIECES, STEPS, NEXT>({self.of_input[node].name}_here + TILE, "
                    "start + TILE, end);")
        out("#pragma unroll").open("for (int q = 0; q < PIECES; ++q) {")
        out("if (start + q * NEXT < end) patch(AtEnds(), q, start + q * NEXT);").close()
        if self.ahead:
            out("#pragma unroll").open("for (int q = 0; q < PIECES; ++q) {")
            out(*(f"{self.names.of(n)}_pieces[q] = {self.names.of(n)}_next[q];" for n in self._inputs)).close()
        out(*(f"{b.name}_here += TILE;" for b in self._timed_buffers())).close()

    def _kind(self, node: Node) -> str:
        return f"Piece<{C_TYPES[self.of_input[node].dtype]}, STEPS, {self.reach[node][0]}, {self._length(node)}>"

    def _fetch_all(self, out: Source, to: str, tiles: int) -> None:
        """Asks for all pieces of a tile, so many after the one at hand."""
        out("#pragma unroll").open("for (int q = 0; q < PIECES; ++q) {")
        for node in self._inputs:
            at = "q * NEXT" + " + TILE" * tiles
            out(f"{self.names.of(node)}{to}[q].fetch({self.of_input[node].name}_here + {at}, start + {at}, begin, end);")
        out.close()

    def _piece(self, out: Source) -> None:
        """A piece ``at`` so many steps after the block's start, which is one by one or number ``q`` of what was asked for."""
        time = self.plan.time
        self._where(out)
        for node in self._inputs:
            b, name = self.of_input[node], self.names.of(node)
            strides, place = f"{self._stride(b, self.plan.lane)}, {b.name}_{time}", self._place(b)
            out(f"{scalar_type(node)} {name}_in[1][{self._length(node)}];",
                f"if constexpr (how.vectors) {name}_pieces[q].widen_to({name}_in);",
                f"else load_patch<{self.reach[node][0]}>({name}_in, {place}, {strides}, 1, before, after);")
        self._work(out)
        for store in (s for s in self.plan.stores if s.kind == "value"):
            b = self.of_store[store]
            self._store(out, store, f"how.vectors ? {b.name}_here + q * NEXT : {self._place(b)}", "1",
                        "how.vectors ? STEPS : smaller(STEPS, after)")


class _Across(PatchPrinter):
    """What a thread reads of its lanes, taps and the like, comes by vectors too. Where that cannot be, a thread takes its lanes one after
    another, element by element."""

    along, whole = False, "how.inside"

    @property
    def _bounds(self) -> str:
        # With few values of its lanes, a thread has registers enough where six blocks of 128 share a multiprocessor's; alone it takes more.
        words = sum(self.plan.lane in b.axes for b in self.buffers if self.plan.time not in b.axes)
        for node in self._inputs:
            lo, hi = self.reach[node]
            words += (self.steps + hi - lo) * BYTES[self.of_input[node].dtype] // 4
        few = self.sums or self.across * words <= 44
        return f"THREADS, {max(1, 768 // self.threads)}" if few else "THREADS"

    @property
    def _threads(self) -> tuple[str, ...]:
        return (f"constexpr int APART = {self.apart};  // threads from one of a lane's to the next",
                "const int row = threadIdx.x / APART, lane = threadIdx.x % APART * ACROSS;")

    @property
    def _own_lanes(self) -> tuple[str, ...]:
        return ("const int count = smaller(ACROSS, lanes - lane);  // lanes of the patch; below 1 where there is none",
                "const int place = first + (count > 0 ? lane : 0);")

    def _lane_values(self, out: Source) -> None:
        """Both ways of a block, each with values of its lanes of its own: by vectors, or one lane after another."""
        plan = self.plan
        laned = [self.of_input[n] for n in plan.main_body if n.op == "input" and not plan.timed(n) and self.laned(n)]
        over = [*laned, *(b for b in self._timed_buffers() if plan.lane in b.axes)]
        self._whole(out, "per_group % ACROSS == 0", over, plan.lane, "ACROSS")
        out.open("if (whole) {")
        for b in laned:
            near = self.pointer(b, 0).replace(f"index_t(place) * {b.name}_{plan.lane}", "place")
            out(f"{scalar_type(b.node)} {b.name}_lanes[ACROSS];", f"load_vector({b.name}_lanes, {near});")
        known = dict(self.known)
        self._vectors = True
        super()._lane_values(out)
        self._tiles(out)
        super()._finish(out)
        out.close().open("else {")("#pragma unroll 1").open("for (int own = 0; own < ACROSS; ++own) {")
        out("const int mine = place + (own < count ? own : 0), one = own < count;").open("{")
        out("constexpr int ACROSS = 1;", "const int place = mine, count = one;")
        self.known, self._vectors = known, False
        super()._lane_values(out)
        self._tiles(out)
        super()._finish(out)
        out.close().close().close()

    def _finish(self, out: Source) -> None:
        """Printed with the lanes' values."""

    def _lane_value(self, b: Buffer) -> str:
        return f"{b.name}_lanes[v]" if self._vectors and self.plan.lane in b.axes else super()._lane_value(b)

    def _patches(self, out: Source) -> None:
        """Printed with the lanes' values."""

    def _tiles(self, out: Source) -> None:
        time = self.plan.time
        self._pointers(out)
        out.open("const auto patch = [&](auto how, int at) {")
        self._piece(out)
        out.close("};")
        low, high = self._looks
        out("#pragma unroll 1").open("for (int at = 0; at < steps && at < end; at += TILE) {")
        if self.nearer:
            for node in self._inputs:
                b = self.of_input[node]
                out(f"if (at + TILE < steps && at + TILE < end) bring_patch_nearer<ALONG, {self._width(b)}, STEPS>("
                    f"{self._place(b, 'at + TILE')}, {b.name}_{time});")
        if self._vectors:
            out(f"if (begin - at <= {low} && end - at >= STEPS + {high}) patch(Inside(), at);", "else patch(AtEnds(), at);")
        else:
            out("patch(OneByOne(), at);")
        out.close()

    def _piece(self, out: Source) -> None:
        """A patch ``at`` so many steps after the thread's first."""
        time = self.plan.time
        self._where(out)
        for node in self._inputs:
            b, name, width = self.of_input[node], self.names.of(node), self._width(self.of_input[node])
            lane, step = self._stride(b, self.plan.lane), f"{b.name}_{time}"
            out(f"Patch<{C_TYPES[b.dtype]}, {self.reach[node][0]}, {width}, {self._length(node)}> {name}_patch;",
                f"{scalar_type(node)} {name}_in[{width}][{self._length(node)}];",
                f"if constexpr (how.vectors) {name}_patch.template fetch<how.inside>({self._place(b)}, {step}, before, after);",
                f"else load_patch<{self.reach[node][0]}>({name}_in, {self._place(b)}, {lane}, {step}, count, before, after);")
        for node in self._inputs:
            out(f"if constexpr (how.vectors) {self.names.of(node)}_patch.widen_to({self.names.of(node)}_in);")
        self._work(out)
        for store in (s for s in self.plan.stores if s.kind == "value"):
            self._store(out, store, self._place(self.of_store[store]), "ACROSS", "how.inside ? STEPS : smaller(STEPS, after)")
