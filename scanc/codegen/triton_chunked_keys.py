"""The kernels of the chunked form where every key decays at its own pace, those that have all chunks side by side.

With e_t[n] the exponents of a chunk's steps, a pair of steps j < s of it has the decay 2^(e_{j+1} + … + e_s), of each key its own: no
matrix of steps can be factored out of the sum over n. It can where j and s lie on two sides of a step m known beforehand,

    Σ_n C_s B_j 2^(e_{j+1} + … + e_s)  =  Σ_n (C_s 2^(e_{m+1} + … + e_s)) (B_j 2^(e_{j+1} + … + e_m))

and neither exponent is then above 0 where no e is. Every pair has such an m: the border between the largest two neighbouring blocks of
S = 1, 2, 4, … Q/2 steps that part them. So log2(Q) products of [Q, N] tiles give all pairs, each masked to those of its S, and a step's own
C_s · B_s is a plain sum. Exponents are *sums* of e, over blocks of twice the length at each S: there is no difference in them that
could cancel, an e of -1e4 makes its own products 0 and no others worse, and a reset is an e of minus infinity.

    pairs     M_sj, all of it;  C 2^(… from the chunk's start), B 2^(… to its end), 2^(… over all of it)
    chunks    reads over columns: C̃ H^T + M X of a forward scan, B̃ E^T + Mᵀ dY of its adjoint
    keys      reads over rows, by the same tree with the matrix P = dY Xᵀ:  dC = Σ_S … P (B 2^…) + (dY H) 2^…, dB likewise;  decays

The gradient of a decay's logarithm at t is the sum over all inputs before t and cotangents at or after it, as in forms/chunked.py:

    Σ_{s≥t} C_s dC_s - Σ_{j≥t} B_j dB_j (the chunk's own pairs; the border's part of dC)  +  Σ_{j<t} B_j dB_j (the border's)  +  2^G Σ_p E H

Words are forms/chunked.py's, the printer's are triton_chunked.py's. Source: Yang et al., Gated Linear Attention (2023), §4, has two levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from scanc.codegen.emit import Source
from scanc.codegen.triton_chunked_algebra import ChunkAlgebra
from scanc.codegen.triton_chunked_source import ChunkSource, Scope, Shape, Suffixed
from scanc.codegen.triton_common import ceil_power
from scanc.forms.chunked import ChunkPlan, ChunkScan, ChunkStore, Read
from scanc.ir import Node
from scanc.schedule import ChunkedSchedule

# Up to such a sum of exponents' sizes over a chunk, in its operands' dtype, one product gives all pairs: its factors are within half of it.
DIRECT = {"float16": 4.0}
DIRECT_ELSE = 100.0
# Columns that a program has at a time: a step has nine values of each alive.
COLUMNS = 32

KEY_WORDS = tuple("""NT i_columns matrix upper apart decay up_to behind other level here of_later of_earlier entering leaving same after
    whole ahead decay_before matrix_before of_later_before entering_before reach span whole_chunk gap up down
    up_before""".split())  # noqa: SIM905 - one a word

def pairs(plan: ChunkPlan, schedule: ChunkedSchedule, shape: Shape, title: str) -> ChunkSource:
    """The kernel that comes first: what only decays and the factors over columns decide."""
    return _Pairs(plan, schedule, shape, "pairs", title).print()


def chunks(plan: ChunkPlan, schedule: ChunkedSchedule, shape: Shape, title: str) -> ChunkSource:
    """The kernel of results over rows."""
    return _Rows(plan, schedule, shape, "chunks", title).print()


def keys(plan: ChunkPlan, schedule: ChunkedSchedule, shape: Shape, title: str) -> ChunkSource:
    """The kernel of results over columns, and of those over neither."""
    return _Keys(plan, schedule, shape, "keys", title).print()


def over_rows(plan: ChunkPlan, store: ChunkStore) -> bool:
    """Whether a result is the kernel chunks': all it reads is over columns."""
    return any(r.kind == "columns" for r in plan.reads if r.node in plan.body([store.value]))


def tiles_of_columns(plan: ChunkPlan, shape: Shape) -> int:
    """Programs of the kernel keys that share a chunk: its columns are each other's only where a result is a sum over them."""
    values = [s.value for s in plan.stores if not s.final and not over_rows(plan, s)]
    summed = any(n.op == "sum" and plan.columns in n.args[0].axes and plan.columns not in n.axes for n in plan.body(values)
                 if n not in plan.leaves)
    return 1 if summed else -(-max(16, ceil_power(shape.columns)) // COLUMNS)


class KeyTiles(ChunkAlgebra):
    """Where what lies between these kernels is: contiguous, a row for each grid position. Mixed into printers of either orientation."""

    @property
    def whole_columns(self) -> int:
        return max(16, ceil_power(self.shape.columns))

    def constants(self) -> dict[str, tuple[int, str]]:
        return {**super().constants(), "NT": (self.whole_columns, "columns padded, of all tiles")}

    def steps_tile(self, name: str, scope: Scope, step: str, column: str) -> str:
        """Pointers into [grid, padded, BN]."""
        self.argument(name, (), self.shape.operands, "inner")
        return f"{name}_ptr + ({self.grid_row(scope)} * padded + ts + {step}) * NT + {column}"

    def pairs_tile(self, scope: Scope, later: str, earlier: str) -> str:
        """Pointers into [grid, chunks, Q, Q]."""
        self.argument("pairs", (), self.shape.operands, "inner")
        return f"pairs_ptr + ({self.grid_row(scope)} * padded + ts) * Q + {later} * Q + {earlier}"

    def whole_tile(self, scope: Scope, column: str) -> str:
        """Pointers into [grid, chunks, BN]: a chunk's whole decay."""
        self.argument("whole", (), "float32", "inner")
        return f"whole_ptr + ({self.grid_row(scope)} * (padded // Q) + ts // Q) * NT + {column}"

    def weighted(self, out: Source, read: Read, value: str, scope: Scope) -> None:
        """Prints what a read over columns gives: ``value``, times the read's weight."""
        if read.weight is not None:
            self.values(out, self.plan.body([read.weight]), scope)
            value = f"{value} * {scope.known[read.weight][0]}"
        name = scope.names.of(read.node)
        out(self.declare(read.node, name, value))
        scope.known[read.node] = (name,)


class _Chunk(KeyTiles):
    """A program of one chunk of one grid position, and of ``tiles_of_columns`` one where ``i_columns`` is its own."""

    def __init__(self, plan: ChunkPlan, schedule: ChunkedSchedule, shape: Shape, kind: str, title: str) -> None:
        super().__init__(plan, schedule, shape, kind, title)
        for word in KEY_WORDS:
            self.names.fresh(word)
        self.before = plan.before if kind == "pairs" else any(r.before for r in plan.reads if r.kind == "rows")

    def narrow(self) -> None:
        """Has the program take some columns at a time."""
        self.BN = min(self.BN, COLUMNS)

    def columns_tile(self) -> list[str]:
        """The index tiles of columns ``i_columns``."""
        start = "i_columns * BN + " if self.whole_columns > self.BN else ""
        masks = ["in_n = n < N"] if self.shape.columns != self.whole_columns else []
        return [f"n = {start}tl.arange(0, BN)[None, :]", "n_state = n", *masks]

    def masks(self, dims: Iterable[str]) -> list[str]:
        dims = set(dims)
        return [*super().masks(dims - {"n"}), *(["in_n"] if "n" in dims and self.shape.columns != self.whole_columns else [])]

    def source_of(self, out: Source) -> ChunkSource:
        return self.source(out, self.schedule.chunk_warps)

    def _numbering(self, out: Source) -> None:
        plan = self.plan
        out("rest = tl.program_id(0)")
        if self.kind == "keys" and self.whole_columns > self.BN:
            out("i_columns = rest % (NT // BN)", "rest = rest // (NT // BN)")
        for axis in reversed(plan.grid):
            out(f"i_{axis} = tl.cast(rest % size_{axis}, tl.int64)", f"rest = rest // size_{axis}")
        steps = [line for line in self.tiles() if line.split(" ")[0] in ("tau", "sigma", "causal")]
        columns = [] if self.kind == "pairs" else self.columns_tile()
        out("ts = tl.cast(rest, tl.int64) * Q", f"t1 = size_{plan.time}", *steps, *columns, self.rows_tile(),
            "p_state = tl.arange(0, BP)[:, None]", *self.chunk_start())
        if self.masked:
            out("in_p = p < P")

    def exponents(self, out: Source, scope: Scope) -> None:
        """``up_to`` and ``behind``: sums of exponents within blocks of one step, up to and with each step, and after it.

        ``ahead``, where a state is read before its step: up to it and without it.
        """
        plan = self.plan
        e = f"tl.where(in_time, {scope.known[plan.decay][0]}, 0.0)"
        if plan.reset is not None:
            e = f"tl.where(in_time & {scope.known[plan.reset][0]}, float(\"-inf\"), {e})"
        out(f"up_to = tl.broadcast_to({e}, (Q, BN))", "behind = tl.full((Q, BN), 0.0, tl.float32)")
        if self.before:
            out("ahead = tl.full((Q, BN), 0.0, tl.float32)")

    def exact(self, out: Source, node: Node, scope: Scope) -> str:
        """A factor in float32, 0 where it is padding."""
        name = scope.names.fresh("factor")
        masks = ["in_time", *self.masks(self.dims(node) - {"t"})]
        out(f"{name} = tl.broadcast_to(tl.where({' & '.join(masks)}, {scope.known[node][0]}, 0.0), (Q, BN))")
        return name

    def columns_of(self, out: Source, scope: Scope) -> tuple[str, str]:
        """Prints what pairs of steps have over columns: exponents, and the later and the earlier factor, "" where there is none."""
        plan = self.plan
        later, earlier = (f[0] if f else None for f in (plan.later, plan.earlier))
        self.values(out, plan.body([n for n in (plan.decay, plan.reset, later, earlier) if n is not None]), scope)
        self.exponents(out, scope)
        c, b = (self.exact(out, f, scope) if f is not None else "" for f in (later, earlier))
        return c, b

    def all_pairs(self, out: Source, direct: Callable[[], None], prepare: Callable[[str, str], None],
                  level: Callable[[str, str], None]) -> None:
        """Prints ``direct`` for columns that keep enough over a chunk, and for all others ``prepare`` and the tree; both leave sums over
        the chunk.

        ``direct`` has ``up`` and ``down``, decays from the middle of the chunk's sum to each step and back: one of them is above 1.
        """
        out(f"reach, span = {self.running('up_to')}, {self.total('tl.abs(up_to)', 0)}", f"whole_chunk = {self.total('up_to', 0)}",
            "span = tl.reduce(tl.reshape(span, (BN,)), 0, tl.standard._elementwise_max)")
        out.open(f"if span <= {DIRECT.get(self.shape.operands, DIRECT_ELSE)}:")
        out("gap = reach - 0.5 * whole_chunk", "down = tl.exp2(-gap)",
            *([] if self.before and self.kind == "pairs" else ["up = tl.exp2(gap)"]))
        if self.before:
            out(f"{'up' if self.kind == 'pairs' else 'up_before'} = tl.exp2(gap - up_to)", "ahead = reach - up_to")
        direct()
        out("up_to, behind = reach, whole_chunk - reach")
        out.indent(-1)
        out.open("else:")
        # Loaded anew: the tree's tiles are laid out otherwise, and would be moved for nothing where one product does.
        factors = self.columns_of(out, Scope(Suffixed(self.names, "_anew"), "_anew"))
        prepare(*factors)
        self.tree(out, lambda: level(*factors))
        out.indent(-1)

    def tree(self, out: Source, level: Callable[[], None]) -> None:
        """Prints ``level`` for blocks of 1, 2, 4, … steps, with ``decay`` from each step to the border of its block and its neighbour,
        ``upper``, whether its block is the later one, and ``apart``, the pairs that this border parts."""
        out.open(f"for level in tl.range(0, {self.schedule.chunk.bit_length() - 1}, num_stages=1):")
        out("upper = ((tau >> level) & 1) == 1", "apart = upper & (sigma >> level == (tau >> level) - 1)",
            *([] if self.before and self.kind == "pairs" else ["decay = tl.exp2(tl.where(upper, up_to, behind))"]))
        if self.before:
            out(f"{'decay' if self.kind == 'pairs' else 'decay_before'} = tl.exp2(tl.where(upper, ahead, behind))")
        level()
        out("other = tl.gather(up_to + behind, tl.broadcast_to(tau ^ (1 << level), (Q, BN)), 0)",
            "up_to, behind = tl.where(upper, up_to + other, up_to), tl.where(upper, behind, behind + other)",
            *(["ahead = tl.where(upper, ahead + other, ahead)"] if self.before else []))
        out.indent(-1)

    def operand(self, text: str) -> str:
        return f"({text}).to({self.operand_type})"

    def border(self, out: Source, scan: ChunkScan, scope: Scope) -> str:
        """The state at the chunk's border, an operand [BP, BN]."""
        key = ("operand of state", scan)
        if key not in scope.made:
            i = self.plan.scans.index(scan)
            name = scope.made[key] = scope.names.fresh(f"{scan.scan.name or 'scan'}_border")
            self.argument(f"border{i}", (), self.shape.operands, "inner")
            out(f"{name} = tl.load(border{i}_ptr + (ts // Q * {self.rows_of_grid()} + {self.grid_row(scope)}) * (PT * NT) "
                "+ p_state * NT + n_state)")
        return scope.made[key]

    def finish(self, out: Source, stores: list[ChunkStore], scope: Scope) -> None:
        """Values that follow the reads, and results. One that is summed over programs leaves as it is, in float32."""
        self.values(out, self.plan.body([s.value for s in stores]), scope)
        for store in stores:
            summed = store.gone
            whole = self.argument(store.name, store.value.axes, "float32", "store") if summed else self.store_argument(store, ())
            dims = self.axis_dims(whole.axes)
            place, mask = self.place(whole, self.base(whole, scope)), " & ".join(self.masks(dims))
            out(f"tl.store({place}, {scope.known[store.value][0]}, mask={mask})")


class _Pairs(_Chunk):
    def print(self) -> ChunkSource:
        plan, out, scope = self.plan, Source().indent(), Scope(self.names)
        self.narrow()
        self._numbering(out)
        wanted = any(r.kind == "columns" for r in plan.reads)
        if wanted:
            out("matrix = tl.full((Q, Q), 0.0, tl.float32)")
        several = self.whole_columns > self.BN
        if several:
            out.open("for i_columns in tl.range(0, NT // BN, num_stages=1):")
        out(*self.columns_tile())
        c, b = self.columns_of(out, scope)

        def direct() -> None:
            if wanted:
                product = self.dot(self.operand(f"{c} * up"), f"tl.trans({self.operand(f'{b} * down')})")
                out(f"matrix += tl.where(tau {'>' if self.before else '>='} sigma, {product}, 0.0)")

        def prepare(c: str, b: str) -> None:
            if wanted and not self.before:
                out(f"same = {self.total(f'{c} * {b}', 1)}", "matrix += tl.where(tau == sigma, same, 0.0)")

        def level(c: str, b: str) -> None:
            if wanted:
                product = self.dot(self.operand(f"{c} * decay"), f"tl.trans({self.operand(f'{b} * decay')})")
                out(f"matrix += tl.where(apart, {product}, 0.0)")

        self.all_pairs(out, direct, prepare, level)
        if c:
            out(f"tl.store({self.steps_tile('enters', scope, 'tau', 'n')}, {c} * tl.exp2({'ahead' if self.before else 'up_to'}))")
        if b:
            out(f"tl.store({self.steps_tile('leaves', scope, 'tau', 'n')}, {b} * tl.exp2(behind))")
        out(f"tl.store({self.whole_tile(scope, 'n')} + tau * 0, tl.exp2(up_to + behind), mask=tau == 0)")
        if several:
            out.indent(-1)
        if wanted:
            out(f"tl.store({self.pairs_tile(scope, 'tau', 'sigma')}, matrix)")
        return self.source_of(out)


class _Rows(_Chunk):
    def print(self) -> ChunkSource:
        plan, out, scope = self.plan, Source().indent(), Scope(self.names)
        self._numbering(out)
        reads = [r for r in plan.reads if r.kind == "columns"]
        self.values(out, plan.body([r.of.input.rows for r in reads]), scope)
        out(f"matrix = tl.load({self.pairs_tile(scope, 'tau', 'sigma')})")
        for read in reads:
            side = scope.names.fresh("side")
            out(f"{side} = tl.load({self.steps_tile('leaves' if read.of.back else 'enters', scope, 'tau', 'n')})")
            border = self.dot(side, f"tl.trans({self.border(out, read.of, scope)})")
            rows = self.factor(out, read.of.input.rows, scope)
            value = self.dot("tl.trans(matrix)" if read.of.back else "matrix", rows, border)
            self.weighted(out, read, value, scope)
        self.finish(out, [s for s in plan.stores if not s.final and over_rows(plan, s)], scope)
        return self.source_of(out)


class _Keys(_Chunk):
    def print(self) -> ChunkSource:
        plan, out, scope = self.plan, Source().indent(), Scope(self.names)
        if tiles_of_columns(plan, self.shape) > 1:
            self.narrow()
        self._numbering(out)
        reads = [r for r in plan.reads if r.kind != "columns"]
        factors = (plan.later_rows, plan.earlier_rows, plan.later_rows_before)
        y, x, y_before = (f[0] if f else None for f in factors)
        decays = [r for r in reads if r.kind == "decay"]
        self.values(out, plan.body([n for n in (y, x, y_before) if n is not None]), scope)
        ys, xs, ys_before = (self.factor(out, f, scope) if f is not None else "" for f in (y, x, y_before))
        # Reads of a forward scan are of its inputs before, so of B and x; those of its adjoint of C and y.
        forward = next((r.of for r in reads if not r.of.back), None)
        back = next((s for r in reads for s in (r.of, r.against) if s is not None and s.back), None)
        if reads:
            inclusive = y is not None
            if inclusive:
                out(f"matrix = {self.operand(self.dot(ys, f'tl.trans({xs})'))}")
            if self.before:
                out(f"matrix_before = {self.operand(self.dot(ys_before, f'tl.trans({xs})'))}")
            c, b = self.columns_of(out, scope)
            forwards = [not r.before for r in reads if not r.of.back]
            self._pairs(out, any(forwards), back is not None, c, b)
            if inclusive:
                out(f"same = {self.total('tl.where(tau == sigma, matrix, 0.0).to(tl.float32)', 1)}")
            if forward is not None and self.before:
                out(f"entering_before = {self.dot(ys_before, self.border(out, forward, scope))} * tl.exp2(ahead)")
            if any(forwards) and forward is not None:
                out(f"entering = {self.dot(ys, self.border(out, forward, scope))} * tl.exp2(up_to)")
            if back is not None:
                out(f"leaving = {self.dot(xs, self.border(out, back, scope))} * tl.exp2(behind)")
            self._reads(out, reads, decays, c, b, scope)
        self.finish(out, [s for s in plan.stores if not s.final and not over_rows(plan, s)], scope)
        return self.source_of(out)

    def _pairs(self, out: Source, forward: bool, back: bool, c: str, b: str) -> None:
        """``of_later`` and ``of_earlier``: what pairs of different steps give to dC and to dB."""
        names = [n for n, wanted in (("of_later", forward), ("of_earlier", back), ("of_later_before", self.before)) if wanted]
        out(*(f"{n} = tl.full((Q, BN), 0.0, tl.float32)" for n in names))

        def direct() -> None:
            if forward or back:
                out("here = tl.where(tau > sigma, matrix, 0.0)")
            if self.before:
                product = self.dot("tl.where(tau > sigma, matrix_before, 0.0)", self.operand(f"{b} * down"))
                out(f"of_later_before = up_before * {product}")
            if forward:
                out(f"of_later = up * {self.dot('here', self.operand(f'{b} * down'))}")
            if back:
                out(f"of_earlier = down * {self.dot('tl.trans(here)', self.operand(f'{c} * up'))}")

        def level(c: str, b: str) -> None:
            if forward or back:
                out("here = tl.where(apart, matrix, 0.0)")
            if self.before:
                product = self.dot("tl.where(apart, matrix_before, 0.0)", self.operand(f"{b} * decay_before"))
                out(f"of_later_before += decay_before * {product}")
            if forward:
                out(f"of_later += decay * {self.dot('here', self.operand(f'{b} * decay'))}")
            if back:
                out(f"of_earlier += decay * {self.dot('tl.trans(here)', self.operand(f'{c} * decay'))}")

        self.all_pairs(out, direct, lambda c, b: None, level)

    def _reads(self, out: Source, reads: list[Read], decays: list[Read], c: str, b: str, scope: Scope) -> None:
        plan = self.plan
        for read in reads:
            name = scope.names.of(read.node)
            if read.kind == "decay":
                assert read.against is not None
                states = " * ".join(f"{self.border(out, s, scope)}.to(tl.float32)" for s in (read.of, read.against))
                out(f"after = {c} * (of_later + entering) - {b} * of_earlier", f"before = {b} * leaving")
                whole = f"tl.exp2(up_to + behind) * {self.total(states, 0)}"
                text = f"{self.running('after', True)} + {self.running('before')} - before + {whole}"
                if plan.reset is not None:
                    text = f"tl.where({scope.known[plan.reset][0]}, 0.0, {text})"
            else:
                text = f"of_earlier + leaving + same * {c}" if read.of.back else f"of_later + entering + same * {b}"
                text = "of_later_before + entering_before" if read.before else text
            out(self.declare(read.node, name, text))
            scope.known[read.node] = (name,)
