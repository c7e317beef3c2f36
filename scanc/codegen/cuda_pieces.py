"""The form stencil on the CUDA backend where a thread's patch is several pieces, each beside its neighbours' of the same number.

A piece has as many steps as are moved by one instruction, 16 bytes, so that what a warp moves by one is one stretch of memory; a tile's
pieces are all asked for before the first is worked on. Steps of a lane must lie together for that, every row of them start at a multiple
of 16 bytes and end with a whole piece. Whether they do is the same for a whole launch, and asked once: the loop of those that do has no
question left but whether a piece is within the sequence, and what else there is goes one by one through a loop of its own.

    tile of 512 steps, 2 pieces:   | thread 0: 0 ... 7 | thread 1: 8 ... 15 | ... thread 31 | thread 0: 256 ... 263 | ...

What a piece looks at beyond its own steps is read again, from near by.
"""

from __future__ import annotations

from scanc.codegen.cuda_dialect import BYTES, C_TYPES, scalar_type
from scanc.codegen.cuda_stencil import StencilPrinter, reaches
from scanc.codegen.emit import Source
from scanc.codegen.layout import Buffer, Mode, buffers
from scanc.forms.plan import Plan
from scanc.ir import Node
from scanc.schedule import StencilSchedule

FARTHEST = 1 << 30  # steps of a segment: a piece's place in one is a number of 32 bits


def farthest(plan: Plan) -> int:
    """Steps between a result and the farthest input that it looks at."""
    return max((max(-lo, hi) for node, (lo, hi) in reaches(plan).items() if node.op == "input"), default=0)


def piece_steps(plan: Plan) -> int:
    """Steps of a piece of 16 bytes of the narrowest that is over time; 0 where results look further than the next one."""
    timed = [b.dtype for b in buffers(plan, Mode()) if plan.time in b.axes and b.role in ("input", "store")]
    steps = 16 // min(map(BYTES.__getitem__, timed))
    return steps if farthest(plan) <= steps else 0


class PiecesPrinter(StencilPrinter):
    """As StencilPrinter; a lane's place is one number of 32 bits."""

    lane_index = "(place + v)"

    def __init__(self, plan: Plan, schedule: StencilSchedule, state: int, mode: Mode, title: str) -> None:
        super().__init__(plan, schedule, state, mode, title)
        self.several = schedule.segment > schedule.tile   # tiles a block
        self.ahead, self.nearer = self.ahead and self.several, self.nearer and self.several

    def _check(self, schedule: StencilSchedule) -> None:
        super()._check(schedule)
        self._need(schedule, "segment", 0 < schedule.segment <= FARTHEST, f"with pieces, a segment has 1 to {FARTHEST} steps")
        far = farthest(self.plan)
        self._need(schedule, "pieces", far <= self.steps, f"one of {self.steps} steps looks {far} away")

    def _numbering(self, out: Source) -> None:
        plan = self.plan
        out(*self._threads, "unsigned rest = block_here();",
            "// Segments run fastest: blocks at work at one time then have one stretch of memory.",
            "const index_t seg = rest % unsigned(segments); rest /= unsigned(segments);")
        places = [("block", "slots", "int"), *([("i_group", f"size_{plan.lane_group}", "index_t")] if plan.lane_group else []),
                  *((f"i_{axis}", f"size_{axis}", "index_t") for axis in reversed(plan.grid))]
        for name, size, kind in places[:-1]:
            out(f"const {kind} {name} = rest % unsigned({size}); rest /= unsigned({size});")
        name, _, kind = places[-1]
        group = "int(i_group) * int(per_group) + " if plan.lane_group else ""
        out(f"const {kind} {name} = rest;", f"const index_t t0 = seg * segment, t1 = smaller(size_{plan.time}, t0 + segment);",
            f"const int first = {group}block * LANES, lanes = int(per_group) - block * LANES;", *self._own_lanes)

    @property
    def _threads(self) -> tuple[str, ...]:
        """Which of a tile's lanes and steps are a thread's."""
        return (f"constexpr int ROWS = {self.rows}, PIECES = {self.pieces}, NEXT = ROWS * STEPS;  // steps from piece to piece",
                "const int row = threadIdx.x % ROWS, lane = threadIdx.x / ROWS;")

    @property
    def _own_lanes(self) -> tuple[str, ...]:
        return ("const int count = lane < lanes;  // whether the thread has a lane",
                "const int place = first + (count ? lane : 0);")

    def index_of(self, axis: str, b: Buffer, time: str, state: str) -> str:
        return "index_t(place)" if axis == self.plan.lane else super().index_of(axis, b, time, state)

    def _place_of_lane(self, b: Buffer, lane: str) -> str:
        return self.pointer(b, 0)

    def _patches(self, out: Source) -> None:
        time = self.plan.time
        whole = [f"size_{time} % STEPS == 0"]
        for b in self._timed_buffers():
            out(f"{'' if b.written else 'const '}{C_TYPES[b.dtype]}* const {b.name}_at = {b.name}_ptr + "
                f"{self.offset(b, time='(t0 + row * STEPS)')};")
            out(f"{'' if b.written else 'const '}{C_TYPES[b.dtype]}* {b.name}_here = {b.name}_at;  // the tile at hand")
            apart = [f"index_t({s})" for s, axis in zip(self.stride_names(b), (*b.leading, *b.axes), strict=True) if axis != time]
            whole.append(f"pieces_together<STEPS>({b.name}_ptr, {self._stride(b, time)}, {' | '.join(apart) or '0'})")
        out(f"const bool whole = {whole[0]}", *(f"    && {w}" for w in whole[1:]), "    ;")
        out(f"constexpr int FAR = {FARTHEST};",
            "// Of the thread's first piece's steps: where the sequence begins, and where it has ended.",
            f"const int begin = -int(smaller(t0, FAR)) - row * STEPS, end = int(smaller(size_{time} - t0, FAR)) - row * STEPS;",
            "const int steps = count ? int(t1 - t0) : 0;")
        for node in self._inputs:
            out(f"{self._kind(node, 'Piece')} {self.names.of(node)}_pieces[PIECES];")
            if self.ahead:
                out(f"{self._kind(node, 'Piece')} {self.names.of(node)}_next[PIECES];")
        out.open("const auto patch = [&](auto how, int q, int at) {")
        self._piece(out)
        out.close("};")
        out.open("if (whole) {")
        self._tiles(out)
        out.close()
        out.open("else {")("#pragma unroll 1").open("for (int at = 0; at < steps && at < end; at += NEXT) {")
        out("patch(OneByOne(), 0, at);").close().close()

    def _tiles(self, out: Source) -> None:
        """All tiles of a block, asked for piece by piece and worked on so."""
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

    def _kind(self, node: Node, name: str) -> str:
        return f"{name}<{C_TYPES[self.of_input[node].dtype]}, STEPS, {self.reach[node][0]}, {self._length(node)}>"

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
        out("const int before = begin - at, after = end - at;")
        if any(n.op == "index" for n in self.body):
            out("const index_t t = t0 + row * STEPS + at;")
        for node in self._inputs:
            b, name = self.of_input[node], self.names.of(node)
            strides = f"{self._stride(b, self.plan.lane)}, {b.name}_{time}"
            kind = f"Patch<{C_TYPES[b.dtype]}, ALONG, STEPS, {self.reach[node][0]}, 1, {self._length(node)}>"
            out(f"{scalar_type(node)} {name}_in[1][{self._length(node)}];",
                f"if constexpr (how.vectors) {name}_pieces[q].widen_to({name}_in);",
                f"else {kind}::load({name}_in, {b.name}_at + index_t(at) * {b.name}_{time}, {strides}, 1, before, after);")
        self._work(out)
        for store in (s for s in self.plan.stores if s.kind == "value"):
            b = self.of_store[store]
            self._store(out, store, f"how.vectors ? {b.name}_here + q * NEXT : {b.name}_at + index_t(at) * {b.name}_{time}", "1")


class AcrossPrinter(PiecesPrinter):
    """Where lanes lie together: patches of ACROSS lanes and STEPS steps, a tile's warps after one another in time.

    What a thread reads of its lanes, taps and the like, comes by vectors too. Where that cannot be, a thread takes its lanes one after
    another, element by element.
    """

    whole = "how.inside"

    def _check(self, schedule: StencilSchedule) -> None:
        StencilPrinter._check(self, schedule)
        self._need(schedule, "long", 0 < schedule.segment <= FARTHEST, f"a segment has 1 to {FARTHEST} steps")

    @property
    def _bounds(self) -> str:
        # With few values of its lanes, a thread has registers enough where six blocks of 128 share a multiprocessor's; alone it takes more.
        lanes = sum(self.plan.lane in b.axes for b in self.buffers if self.plan.time not in b.axes)
        looks = sum(hi - lo for node, (lo, hi) in self.reach.items() if node.op == "input")
        return self._several_blocks if self.sums or self.across * (lanes + looks + self.steps) <= 64 else "THREADS"

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
        whole = ["per_group % ACROSS == 0"]
        for b in (*laned, *(b for b in self._timed_buffers() if plan.lane in b.axes)):
            apart = [f"index_t({s})" for s, a in zip(self.stride_names(b), (*b.leading, *b.axes), strict=True) if a != plan.lane]
            whole.append(f"pieces_together<ACROSS>({b.name}_ptr, {b.name}_{plan.lane}, {' | '.join(apart) or '0'})")
        out(f"const bool whole = {whole[0]}", *(f"    && {w}" for w in whole[1:]), "    ;")
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

    def _place_of_lane(self, b: Buffer, lane: str) -> str:
        """``lane`` is number v of the thread's."""
        return self.pointer(b, 0) + (f" + index_t(v) * {b.name}_{self.plan.lane}" if self.plan.lane in b.axes else "")

    def _lane_value(self, b: Buffer) -> str:
        return f"{b.name}_lanes[v]" if self._vectors and self.plan.lane in b.axes else super()._lane_value(b)

    def _patches(self, out: Source) -> None:
        """Printed with the lanes' values."""

    def _tiles(self, out: Source) -> None:
        time, reach = self.plan.time, [self.reach[n] for n in self._inputs]
        for b in self._timed_buffers():
            out(f"{'' if b.written else 'const '}{C_TYPES[b.dtype]}* const {b.name}_at = {b.name}_ptr + "
                f"{self.offset(b, time='(t0 + row * STEPS)')};")
        out(f"constexpr int FAR = {FARTHEST};",
            "// Of the thread's first patch's steps: where the sequence begins, and where it has ended.",
            f"const int begin = -int(smaller(t0, FAR)) - row * STEPS, end = int(smaller(size_{time} - t0, FAR)) - row * STEPS;",
            "const int steps = count > 0 ? int(t1 - t0) : 0;")
        out.open("const auto patch = [&](auto how, int at) {")
        self._piece(out)
        out.close("};")
        low, high = min([0, *(lo for lo, _ in reach)]), max([0, *(hi for _, hi in reach)])
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
        out("const int before = begin - at, after = end - at;")
        if any(n.op == "index" for n in self.body):
            out("const index_t t = t0 + row * STEPS + at;")
        for node in self._inputs:
            b, name, width = self.of_input[node], self.names.of(node), self._width(self.of_input[node])
            lane, step = self._stride(b, self.plan.lane), f"{b.name}_{time}"
            out(f"Patch<{C_TYPES[b.dtype]}, ALONG, STEPS, {self.reach[node][0]}, {width}, {self._length(node)}> {name}_patch;",
                f"{scalar_type(node)} {name}_in[{width}][{self._length(node)}];",
                f"if constexpr (how.vectors) {name}_patch.template fetch<how.inside>({self._place(b)}, {step}, before, after);",
                f"else {name}_patch.load({name}_in, {self._place(b)}, {lane}, {step}, count, before, after);")
        for node in self._inputs:
            out(f"if constexpr (how.vectors) {self.names.of(node)}_patch.widen_to({self.names.of(node)}_in);")
        self._work(out)
        for store in (s for s in self.plan.stores if s.kind == "value"):
            self._store(out, store, self._place(self.of_store[store]), "ACROSS", "how.inside ? STEPS : smaller(STEPS, after)")
