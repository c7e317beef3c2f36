"""The kernels of the chunked form that compute all chunks side by side, from the states at their borders (see triton_chunked.py).

A program owns one chunk, one position of each outer grid axis, and walks some heads of one group; what they share is loaded once. With
H the state before the chunk and E the adjoint's after it, one kernel has the values of every head,

    chunks    dx = 2^{G - g} ∘ (B E) + (L ∘ C Bᵀ)ᵀ dy                     columns reads, epilogues
              dB += (2^{G - g} ∘ w ∘ x) Eᵀ                                 for every head
              ⟨x ⊗ B, E⟩, ⟨E, H⟩                                          decay and weight reads, finished by the kernel late

and another what is summed over heads, in registers until the last. What comes from inside a chunk is summed as a [Q, Q] matrix:

    totals    dC += (2^g ∘ dy) Hᵀ,  mix += L ∘ dy xᵀ ∘ w                    for every head
              dC += mix B,  dB += mixᵀ C                                    once
              ⟨dy ⊗ C, H⟩, sums of W                                        decay and weight reads

They are two because one would have more values alive than a thread has registers. So are totals and what dB has from the states after
chunks, in a third:

    borders   dB += (2^{G - g} ∘ w ∘ x) Eᵀ, ⟨E, H⟩

Where a schedule has the adjoint's walk give dx as it goes (``walk_back``, triton_chunked_parts.py), there is no kernel chunks: sums over
rows of inputs are taken in totals, and ⟨x ⊗ B, E⟩ in borders, from the product x E that dB has too.
"""

from __future__ import annotations

from dataclasses import dataclass

from scanc.codegen.emit import Source
from scanc.codegen.triton_chunked_gradients import GradientSums
from scanc.codegen.triton_chunked_parts import (
    Mix,
    contributors,
    left_alone,
    lone,
    mix_of,
    mixes,
    own_stores,
    partial_axes,
    parts,
    place,
    total_read,
    walked_back,
)
from scanc.codegen.triton_chunked_source import DESCRIPTORS, TYPES, ChunkSource, Scope, Shape, Suffixed
from scanc.forms.chunked import ChunkPlan, ChunkScan, ChunkStore, Read, pair_of
from scanc.ir import Node
from scanc.schedule import ChunkedSchedule


def chunks(plan: ChunkPlan, schedule: ChunkedSchedule, shape: Shape, title: str) -> ChunkSource:
    """The kernel of every result but the scans' last carries and what ``totals`` gives."""
    return AllChunks(plan, schedule, shape, "chunks", title).print(schedule.chunk_warps, schedule.chunk_pipeline)


def totals(plan: ChunkPlan, schedule: ChunkedSchedule, shape: Shape, title: str) -> ChunkSource:
    """The kernel of what is summed over heads as matrices."""
    return AllChunks(plan, schedule, shape, "totals", title).print(schedule.total_warps, schedule.total_pipeline)


def borders(plan: ChunkPlan, schedule: ChunkedSchedule, shape: Shape, title: str) -> ChunkSource:
    """The kernel of what the states at chunks' borders add to them."""
    deep = schedule.total_pipeline
    # It then holds a tile of columns for all heads, and three heads' states would leave it a multiprocessor of its own.
    deep = min(2, deep) if walked_back(plan, schedule) is not None else deep
    return AllChunks(plan, schedule, shape, "borders", title).print(schedule.total_warps, deep)


def states_read(plan: ChunkPlan, schedule: ChunkedSchedule, kind: str) -> tuple[ChunkScan, ...]:
    """The scans whose states a kernel reads."""
    return AllChunks(plan, schedule, Shape(16, 16), kind, "").needed


OTHER = "_other"   # of two chunks that one state is kept for, the one that a program does not own


@dataclass(frozen=True, eq=False)
class _Total:
    """A result that is summed over a program's heads.

    ``read`` is set where it is a rows read whose matrix can be summed instead; its parts are what is ``inside`` a chunk and what comes from
    its ``border``.
    """

    store: ChunkStore
    name: str
    read: Read | None
    inside: bool = True
    border: bool = True


class AllChunks(GradientSums):
    walks_heads = True
    own = "Q"   # steps of a program

    def __init__(self, plan: ChunkPlan, schedule: ChunkedSchedule, shape: Shape, kind: str, title: str) -> None:
        super().__init__(plan, schedule, shape, kind, title)
        # What is read of an adjoint's state is a product with the flipped matrix.
        self.flipped = any(r.of.back and r.kind == "columns" for r in plan.reads)
        summed = {s: r for s, r in ((s, total_read(plan, s)) for s in plan.stores if not s.final) if r is not None}
        self.stores = own_stores(plan) if kind == "chunks" else []
        self.totals = [_Total(s, self.names.fresh(f"{s.name}_total"), None) for s in self.stores if plan.head in s.gone]
        for store, read in summed.items():
            inside, border = (self._has(piece) for piece in ("inside", "back" if read.of.back else "front"))
            if inside or border:
                self.totals.append(_Total(store, self.names.fresh(f"{store.name}_total"), read, inside, border))
        self.reads = tuple(r for r in plan.reads if r.kind in ("columns", "rows") and r not in summed.values()) if kind == "chunks" else ()
        # Where a walk gives what kernel chunks would, these two have the rest of it.
        walked = walked_back(plan, schedule) is not None
        self.met = plan.met if kind == ("totals" if walked else "chunks") else ()
        decays = [r for r in plan.reads if r.kind == "decay"]
        here = {piece: decays if self._has(piece) else [] for piece in ("inside", "entering", "across")}
        self.inside, self.entering, self.across = here["inside"], here["entering"], here["across"]
        self.leaving = decays if kind == ("borders" if walked else parts(plan)[0]) else []
        self.by_rows = walked   # whether sums of inputs and the adjoint's state share their product over rows with borders' totals
        # Where every matrix of decays meets a product that all heads share, that product is masked, once.
        pairs = self._pairs()
        alike = all(self.shared(later) and self.shared(earlier) for later, earlier in pairs)
        self.masked_once = bool(pairs) and alike and plan.reset is None and not self.totals and all(r.kind == "columns" for r in self.reads)
        self.mixes: dict[Mix, str] = {}   # what a summed matrix is of -> its name
        self.of_two = kind == "totals" and self.span > 1   # whether it takes what pairs of chunks have with each other
        # Scans whose states are read here.
        read_here = {r.of for r in (*self.reads, *self.entering, *self.across)}
        read_here |= {t.read.of for t in self.totals if t.read is not None and t.border}
        read_here |= {r.against for r in (*self.leaving, *self.across) if r.against is not None}
        self.needed = tuple(s for s in plan.scans if s in read_here)

    def _has(self, piece: str) -> bool:
        """Whether this kernel has a piece of what is summed over heads, or, of two chunks, has it of their pairs."""
        return place(self.plan, piece) == self.kind or (self.kind == "pairs" and piece == "inside")

    @property
    def group(self) -> str:
        """The group axis that divides the heads, or ""."""
        used = {a for n in self.graph.nodes() for a in n.axes} | {a for o in self.graph.outputs for a in o.axes}
        return next((g for g, parent in self.graph.groups.items() if parent == self.plan.head and g in used), "")

    def print(self, warps: int, pipeline: int) -> ChunkSource:  # type: ignore[override]
        plan, out, common = self.plan, Source().indent(), Scope(self.names)
        self._numbering(out)
        factors = self._factors()
        roots = [*factors, *(r.weight for r in self.reads), *(s.input.weight for s in plan.scans)]
        roots += [*(s.value for s in self.stores), *self.met]
        body = plan.body([n for n in roots if n is not None], frozenset(plan.early))
        before = [n for n in body if n not in plan.after and n not in plan.early]
        self.values(out, [n for n in before if self.shared(n)], common)
        for total in self.totals:
            if total.read is not None and total.inside:
                self._mix_name(out, total.read)
            if total.border:
                out(f"{total.name} = {self.zeros(self.axis_dims(total.store.output.axes))}")
        self._shared_scores(out, common)
        scope = Scope(self.names, head=f"i_{plan.head}")
        scope.known.update(common.known)
        scope.made.update(common.made)
        if plan.head:
            bounds = "block * walked, tl.minimum(block * walked + walked, per_group)"
            out.open(f"for walking in tl.range({bounds}, num_stages={pipeline}):")
            out(f"i_{plan.head} = tl.cast({'i_' + self.group + ' * per_group + ' if self.group else ''}walking, tl.int64)")
        after = [n for n in body if n in plan.after and n not in plan.leaves]
        weights = {s.input.weight for s in plan.scans} | {r.weight for r in self.reads}
        users = {a for n in (*before, *after) for a in n.args} | {s.value for s in self.stores} | set(self.met)
        self.early(out, [n for n in plan.early if n in body and (n in users or n not in weights)], scope)
        needed = set(plan.body(factors, frozenset(plan.early)))
        late = [n for n in before if n not in needed and not self.shared(n)]
        self._head(out, scope, [n for n in before if n not in scope.known and n not in late],
                   [n for n in body if n in late or n in after])
        if plan.head:
            out.indent(-1)
        self._finish(out, common)
        return self.source(out, warps)

    def _factors(self) -> list[Node]:
        """What this kernel multiplies."""
        found: list[Node | None] = []
        totals = [t.read for t in self.totals if t.read is not None]
        for read in (*self.reads, *totals):
            if read.factor is not None:
                found += [read.factor, read.of.input.rows, read.of.input.columns]
        for read in self.inside:
            assert read.against is not None
            found += [f for s in (read.of, read.against) for f in (s.input.rows, s.input.columns)]
        for read in self.entering:
            assert read.against is not None
            found += [read.against.input.rows, read.against.input.columns]
        for read in self.leaving:
            found += [read.of.input.rows, read.of.input.columns]
        return list(dict.fromkeys(n for n in found if n is not None))

    def _shared_scores(self, out: Source, common: Scope) -> None:
        """Products of factors that all heads of a program share."""
        for later, earlier in self._pairs():
            if self.shared(later) and self.shared(earlier):
                name = self.scores(out, later, earlier, common, common)
                if self.masked_once:
                    out(f"{name} = tl.where(causal, {name}, 0.0)")

    def _pairs(self) -> list[tuple[Node, Node]]:
        """The (later factor, earlier factor) whose products kernels weigh with decays."""
        found = [pair_of(r)[0] for r in self.reads]
        return found + [(r.against.input.columns, r.of.input.columns) for r in self.inside if r.against is not None]

    def _numbering(self, out: Source) -> None:
        plan = self.plan
        out("rest = tl.program_id(0)")
        if plan.head:
            groups = f"size_{self.group}" if self.group else "1"
            out(f"per_group = size_{plan.head} // {groups}", "blocks = (per_group + walked - 1) // walked",
                "block = rest % blocks", "rest = rest // blocks", *(["owner = rest"] if self.of_two else []))
            if self.group:
                out(f"i_{self.group} = tl.cast(rest % {groups}, tl.int64)", f"rest = rest // {groups}")
        out(f"chunks = padded // {self.own}", "c = tl.cast(rest % chunks, tl.int64)", "rest = rest // chunks")
        for axis in reversed(plan.grid):
            if axis != plan.head:
                out(f"i_{axis} = tl.cast(rest % size_{axis}, tl.int64)", f"rest = rest // size_{axis}")
        out(f"ts = c * {self.own}", f"t1 = size_{plan.time}", *self.tiles(), self.rows_tile(), "p_state = tl.arange(0, BP)[:, None]",
            *self.chunk_start(), DESCRIPTORS)
        if self.masked:
            out("in_p = p < P")

    def grid_index(self, axis: str, scope: Scope) -> str:
        if axis == self.group and axis:
            return f"i_{axis}"
        return super().grid_index(axis, scope)

    # -- matrices summed over heads -------------------------------------------------------------------------------------------

    def _mix_name(self, out: Source, read: Read) -> None:
        key = mix_of(read)
        if key not in self.mixes:
            self.mixes[key] = self.names.fresh("mix")
            out(f"{self.mixes[key]} = tl.full((Q, Q), 0.0, tl.float32)")

    # -- one head -------------------------------------------------------------------------------------------------------------

    def _head(self, out: Source, scope: Scope, before: list[Node], after: list[Node]) -> None:
        plan = self.plan
        self.values(out, before, scope)
        for scan in self.needed:
            i = plan.scans.index(scan)
            name = scope.made["operand of state", scan] = scope.names.fresh(f"{scan.scan.name or 'scan'}_border")
            if self.shape.bulk:
                tiles, place = self.border_tiles(i, self.border_index, "", scope)
                out(f"{name} = {tiles}.load({place})")
            else:
                self.argument(f"border{i}", (), self.shape.operands, "inner")
                out(f"{name} = tl.load({self._border(i, scope)})")
        # In this order few values are alive at once: what is read from shared memory into registers is used up first.
        first = [n for n in self.met if n not in plan.after]
        beside = next((n for n in first if self.leaving + self.entering and n.op == "sum" and self.dims(n.args[0]) == {"t", "p"}), None)
        first = [n for n in first if n is not beside]
        self.values(out, plan.body(first, frozenset(plan.early)), scope)
        self._leave(out, first, scope)
        mixed: dict[Read, str] = {}
        for read in self.entering:
            self._entering(out, read, scope, beside if read is self.entering[0] else None)
        for total in self.totals:
            if total.read is not None and total.border:
                self._border_total(out, total, total.read, scope)
        for read in self.across:
            self._across(out, read, scope)
        for read in self.inside:
            self._inside(out, read, scope)
        summed: set[object] = set()
        for total in self.totals:
            if total.read is not None and total.inside:
                self._mix(out, total.read, scope, summed)
        for read in self.reads:
            if read.kind == "columns":
                pair, one, other = pair_of(read)
                mixed[read] = scope.names.fresh("mixed")
                matrix = self.matrix(out, self.scores(out, *pair, scope, scope), (one, other), scope)
                out(f"{mixed[read]} = ({matrix}).to({self.operand_type})")
        for read in self.leaving:
            self._leaving(out, read, scope, beside if read is self.leaving[0] and not self.entering else None)
        for read in self.reads:
            if read.kind == "columns":
                self._columns_read(out, read, mixed[read], scope)
            else:
                self._rows_read(out, read, scope)
        self.values(out, after, scope)
        for store in self.stores:
            self._store(out, store, scope)
        self._leave(out, [n for n in self.met if n not in first and n is not beside], scope)

    def _border(self, i: int, scope: Scope) -> str:
        """Pointers [BP, BN] to a scan's state at the chunk's border."""
        at = f"{self.border_index} * {self.rows_of_grid()} + {self.grid_row(scope)}"
        return f"border{i}_ptr + ({at}) * (PT * BN) + p_state * BN + n_state"

    def _columns_read(self, out: Source, read: Read, mixed: str, scope: Scope) -> None:
        border = self.from_border(out, read, scope)
        name = scope.names.of(read.node)
        # Not accumulated onto the border's part: Triton would then give both products a layout that repeats work among warps.
        inner = self.dot(self._turned(mixed, read), self.factor(out, read.of.input.rows, scope))
        out(self.declare(read.node, name, f"{border} + {inner}"))
        scope.known[read.node] = (name,)

    def _turned(self, matrix: str, read: Read) -> str:
        """A [Q, Q] matrix with the steps that are read for rows."""
        return matrix if read.of.back == self.flipped else f"tl.trans({matrix})"

    def _own(self, out: Source, read: Read, scope: Scope) -> str:
        """The weighted matrix of a rows read, as an expression."""
        pair, one, other = pair_of(read)
        return " * ".join([self._rows_matrix(out, pair, scope), *(w for w in self._weights((one, other), scope, out) if w)])

    def _mix(self, out: Source, read: Read, scope: Scope, done: set[object]) -> None:
        """Adds a head's matrix to the sum that several reads may share."""
        key = mix_of(read)
        if key not in done:
            done.add(key)
            out(f"{self.mixes[key]} += {self._own(out, read, scope)}")

    def _rows_read(self, out: Source, read: Read, scope: Scope) -> None:
        own = self._own(out, read, scope)
        border = self.from_border(out, read, scope)
        left = self._turned(own, read)
        name = scope.names.of(read.node)
        columns = self.factor(out, read.of.input.columns, scope)
        out(self.declare(read.node, name, self.dot(f"({left}).to({self.operand_type})", columns, border)))
        scope.known[read.node] = (name,)

    def _border_total(self, out: Source, total: _Total, read: Read, scope: Scope) -> None:
        """Adds what a rows read has of the state at the chunk's border."""
        assert read.factor is not None
        if self.kind == "borders" and left_alone(self.plan, self.schedule):  # a quarter of the bytes, in shared memory too
            left = scope.names.fresh("left")
            out(f"{left} = tl.load({self.left_place(scope)} + tau)")
        else:
            edge, weight = self.edge(out, scope, "leave" if read.of.back else "enter"), self.weight(out, read.weight, scope)
            left = f"({edge} * {weight})" if weight else edge
        if self.by_rows and read.of.back:
            out(f"{total.name} += {self.times_state(out, read.factor, read.of, scope)} * {left}")
            return
        scaled = f"({scope.known[read.factor][0]} * {left}).to({self.operand_type})"
        out(f"{total.name} = {self.dot(scaled, scope.made['operand of state', read.of], total.name)}")

    # -- results --------------------------------------------------------------------------------------------------------------

    def _store(self, out: Source, store: ChunkStore, scope: Scope) -> None:
        total = next((t for t in self.totals if t.store is store), None)
        if total is not None and total.read is not None:
            return
        value, dims = scope.known[store.value][0], set(self.dims(store.value))
        if self.plan.time in store.gone:
            value = self.total(f"tl.where(in_time, {value}, 0.0)", 0)
            dims -= {"t"}
        if total is not None:
            out(f"{total.name} += {value}")
            return
        self._write(out, store, value, scope)

    def _write(self, out: Source, store: ChunkStore, value: str, scope: Scope) -> None:
        plan = self.plan
        a = self.store_argument(store, partial_axes(plan, store))
        block = "block" if not self.group or self.group in store.output.axes else f"(i_{self.group} * blocks + block)"
        if plan.head in store.gone and self.kind != contributors(plan, self.schedule, store)[0]:
            block = f"(before{f' * size_{self.group}' if block != 'block' else ''} + {block})"
        leading = {axis[1:]: {"@chunk": "c", "@block": block}.get(axis) or f"i_{axis[1:]}" for axis in a.axes if axis.startswith("@")}
        place = self.place(a, self.base(a, scope, **leading))
        dims = self.axis_dims(store.output.axes)
        if not dims:
            place += " + tl.full((1, 1), 0, tl.int32)"
        described = self.described(a, scope)
        if described is not None:
            out(f"{described[0]}.store({described[1]}, ({value}).to({TYPES[a.dtype]}))")
            return
        masks = self.masks(dims)
        out(f"tl.store({place}, {value}{', mask=' + ' & '.join(masks) if masks else ''})")

    def _finish(self, out: Source, common: Scope) -> None:
        between = self._between(out) if self.of_two else {}
        for total in self.totals:
            value = total.name
            if total.read is not None and total.inside:
                key = mix_of(total.read)
                left = self._turned(self.mixes[key], total.read)
                columns = self._columns_at_end(out, total.read.of.input.columns, common)
                value = self.dot(f"({left}).to({self.operand_type})", columns, total.name if total.border else "")
                if key in between:
                    out(f"{total.name} = {value}")
                    value = total.name
                    self._add_between(out, total.name, between[key], total.read)
            if self.shape.lone and total.store in lone(self.plan):
                self._write_whole(out, total.store, value, common)
            else:
                self._write(out, total.store, value, common)

    def _write_whole(self, out: Source, store: ChunkStore, value: str, scope: Scope) -> None:
        """A result of all heads, or, where another kernel adds to it, what that is to start from."""
        kinds, masks = contributors(self.plan, self.schedule, store), self.masks(self.axis_dims(store.output.axes))
        mask = f", mask={' & '.join(masks)}" if masks else ""
        if len(kinds) > 1:
            before = self.argument(f"{store.name}_before", store.output.axes, "float32", "store")
            place = self.place(before, self.base(before, scope))
            if self.kind == kinds[0]:
                out(f"tl.store({place}, {value}{mask})")
                return
            value = f"{value} + tl.load({place}{mask})"
        a = self.store_argument(store, ())
        out(f"tl.store({self.place(a, self.base(a, scope))}, {value}{mask})")

    def _between(self, out: Source) -> dict[Mix, str]:
        """The sums over heads of what steps of this chunk have with those of the other of two, from the kernel pairs: ``before`` programs
        of it share a group's heads, and those of this one take them in turn."""
        groups = f"size_{self.group}" if self.group else "1"
        names = {key: self.names.fresh("between") for key in self.mixes}
        out(f"pair = owner // {groups} // 2 * {groups} + owner % {groups}")
        out(*(f"{name} = tl.full((Q, Q), 0.0, tl.float32)" for name in names.values()))
        out.open("for share in range(block, before, blocks):")
        for key, name in names.items():
            i = mixes(self.plan).index(key)
            self.argument(f"mix{i}", (), "float32", "inner")
            place = f"(pair * before + share).to(tl.int64) * (Q * Q) + {self.steps(False)} * Q + {self.steps(True)}"
            out(f"{name} += tl.load(mix{i}_ptr + {place})")
        out.indent(-1)
        return names

    def _add_between(self, out: Source, name: str, matrix: str, read: Read) -> None:
        """Adds what a total has of the other chunk's columns: an adjoint's to the first chunk's steps, another scan's to the second's."""
        out.open(f"if c % 2 == {0 if read.of.back else 1}:")
        self.when = OTHER
        out(f"ts{OTHER} = (c {'+' if read.of.back else '-'} 1) * Q", *self.chunk_start())
        scope, node = Scope(Suffixed(self.names, OTHER), OTHER), read.of.input.columns
        self.values(out, self.plan.body([node], frozenset(self.plan.early)), scope)
        left = f"({self._turned(matrix, read)}).to({self.operand_type})"
        out(f"{name} = {self.dot(left, self.factor(out, node, scope), name)}")
        self.when = ""
        out.indent(-1)

    def _columns_at_end(self, out: Source, node: Node, common: Scope) -> str:
        """A factor that all heads share, for the product that comes once: loaded anew where the walk over heads has no use of it, so that
        its tile takes no shared memory meanwhile."""
        walked = [r.against.input.columns for r in self.entering if r.against is not None] + [r.of.input.columns for r in self.leaving]
        walked += [f for r in self.reads for f in (r.factor, r.of.input.rows, r.of.input.columns) if f is not None]
        walked += [f for pair in self._pairs() if not (self.shared(pair[0]) and self.shared(pair[1])) for f in pair]
        if node.op != "input" or node in walked or not self.plan.head:
            return self.factor(out, node, common)
        again = Scope(Suffixed(self.names, "_again"), "_again")
        self.values(out, [node], again)
        return self.factor(out, node, again)
