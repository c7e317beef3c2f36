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
        out(f"constexpr int ROWS = {self.rows}, PIECES = {self.pieces}, NEXT = ROWS * STEPS;  // steps from piece to piece",
            "const int row = threadIdx.x % ROWS, lane = threadIdx.x / ROWS;", "unsigned rest = block_here();",
            "// Segments run fastest: blocks at work at one time then have one stretch of memory.",
            "const index_t seg = rest % unsigned(segments); rest /= unsigned(segments);",
            "const int block = int(rest % unsigned(slots)); rest /= unsigned(slots);")
        places = [("i_group", plan.lane_group)] if plan.lane_group else []
        for name, axis in (*places, *((f"i_{axis}", axis) for axis in reversed(plan.grid))):
            out(f"const index_t {name} = rest % unsigned(size_{axis}); rest /= unsigned(size_{axis});")
        group = "int(i_group) * int(per_group) + " if plan.lane_group else ""
        out(f"const index_t t0 = seg * segment, t1 = smaller(size_{plan.time}, t0 + segment);",
            "const int lanes = int(per_group) - block * LANES, count = lane < lanes;  // whether the thread has a lane",
            f"const int first = {group}block * LANES, place = first + smaller(lane, lanes - 1);")

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
        if self.ahead or not self.several:
            out("constexpr int start = 0;")
        if self.ahead:
            self._fetch_all(out, "_pieces", 0)
        out.open("for (int start = 0; start < steps; start += TILE) {" if self.several else "if (steps > 0) {")
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
