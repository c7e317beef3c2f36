"""The kernels of the chunked form that walk time: walk, summary, states, and pass (see triton_chunked.py).

A walking program owns one position of each grid axis (``heads`` of the innermost one), one tile of rows and one segment of time.
Its tiles are turned: H, x and y have rows first and time last, [BP, Q], and so H is the first operand of both its products.

    for every chunk:                                           [Q steps]
        prologue                                               e, weights, factors
        columns reads                                          yᵀ = 2^g ∘ (H Cᵀ) + Xᵀ (L ∘ C Bᵀ ∘ w)ᵀ
        epilogue and stores                                    y + D x, gated
        H = 2^G H + (2^{G - g} ∘ w ∘ X)ᵀ B                      [BP, BN], float32, in registers
"""

from __future__ import annotations

from collections.abc import Iterator

from scanc.codegen.emit import Source
from scanc.codegen.triton_chunked_algebra import ChunkAlgebra
from scanc.codegen.triton_chunked_parts import own_stores, scores_ahead, walked_back
from scanc.codegen.triton_chunked_source import DESCRIPTORS, LEAST_EXPONENT, TYPES, Argument, ChunkSource, Scope, Shape, Suffixed
from scanc.codegen.triton_common import ceil_power
from scanc.forms.chunked import ChunkPlan, ChunkScan, ChunkStore, pair_of
from scanc.ir import Node
from scanc.schedule import ChunkedSchedule

# The exponent taken for a chunk that nothing survives: below LEAST_EXPONENT, and small enough that sums keep the digits of the others.
NOTHING_LEFT = -1024.0


class Walking(ChunkAlgebra):
    turned = flipped = True
    from_end = True   # whether a summary takes chunks from the segment's end on
    combines = False  # whether a program makes what its segment starts from of the summaries itself: few are read sooner than passed on

    def __init__(self, plan: ChunkPlan, schedule: ChunkedSchedule, shape: Shape, kind: str, scans: tuple[ChunkScan, ...], title: str, *,
                 entries: bool = False) -> None:
        super().__init__(plan, schedule, shape, kind, title)
        self.scans, self.entries, self.back = scans, entries, scans[0].back
        self.BP = min(schedule.rows, self.whole_rows)
        self.masked = self.whole_rows != shape.rows
        self.reads = plan.reads if kind == "walk" else ()
        self.stores = plan.stores if kind == "walk" else tuple(s for s in plan.stores if s.final and s.value is scans[0].scan)
        if kind.startswith("summary"):
            self.stores = ()
        if kind.startswith("states") and walked_back(plan, schedule) is scans[0]:
            self.reads = tuple(r for r in plan.reads if r.kind == "columns")
            self.stores = (*own_stores(plan), *self.stores)
            self.flipped = False   # what is read of an adjoint's state takes later steps' inputs
        self.columns_of: dict[tuple[Node, int, str], Scope] = {}   # where a tile of columns' factor is known
        self.column_tiles = self._column_tiles()
        self.BN //= self.column_tiles

    def _column_tiles(self) -> int:
        """Into how many tiles a state's columns are cut, each an accumulator of 64 values a thread at most.

        An accumulator is the first operand of the next product as it lies in registers only where one warp group has all of its columns.
        """
        sliced = all(n.op == "input" and self.plan.time in n.axes for n in self._body() if "n" in self.dims(n))
        if self.plan.keyed or self.padded_columns or not sliced or self.kind.startswith("pass"):
            return 1
        return max(1, min(self.BP * self.BN // (64 * 32 * self.schedule.warps), self.BN // 16))

    def each_part(self) -> Iterator[int]:
        """The tiles of columns in turn: loads, products, states and places are then of that one."""
        for part in range(self.column_tiles):
            self.part = part
            yield part
        self.part = 0

    def print(self) -> ChunkSource:
        out = Source().indent()
        self._numbering(out)
        common = Scope(self.names)
        one = Scope(self.names, head=f"i_{self.plan.head}")
        heads = [one, *(Scope(Suffixed(self.names, f"_{k}"), f"_{k}", f"({one.head} + {k})") for k in range(1, self.shape.heads))]
        body = self._body()
        still = [n for n in body if self.plan.time not in n.axes and not self._timed(n)]
        self.values(out, [n for n in still if self.shared(n)], common)
        for scope in heads:
            scope.known.update(common.known)
            scope.made.update(common.made)
            self.values(out, still, scope)
            for scan in self.scans:
                self._start(out, scan, scope)
        out("chunks = (t1 - t0 + Q - 1) // Q", DESCRIPTORS)
        summary = self.kind.startswith("summary")
        count = self.lasting(out, heads) if summary else "chunks"
        out.open(f"for step_back in tl.range(0, {count}, num_stages={self.schedule.pipeline}):")
        down = self.back != (summary and self.from_end)
        out("c = chunks - 1 - step_back" if down else "c = step_back", "ts = t0 + c * Q", *self.chunk_start())
        inner = common.inner()
        ahead = [n for n in self.plan.early if n in body]
        timed = [n for n in body if n not in still and n not in ahead]
        first = set(self.plan.body(self.factors(), frozenset(self.plan.early)))
        before = [n for n in timed if n in first]
        # What only the results need comes after the products: it would fill registers through them.
        after = [n for n in timed if n not in first and n not in self.plan.leaves]
        self.values(out, [n for n in before if self.shared(n)], inner)
        for scope in heads:
            self.chunk(out, scope, inner, before, after, ahead)
        out.indent(-1)
        for scope in heads:
            for store in self.stores:
                if store.final:
                    self._final(out, store.name, next(s for s in self.scans if s.scan is store.value), scope)
            if summary:
                self._summarise(out, scope)
        return self.source(out, self.schedule.warps, self.schedule.registers)

    def _timed(self, node: Node) -> bool:
        """Whether a value varies with time or with what is read: a sum over time does not come here."""
        return node in self.plan.after

    def constants(self) -> dict[str, tuple[int, str]]:
        found = {**super().constants(), "HEADS": (self.shape.heads, "heads a program carries")}
        if self.column_tiles > 1:
            found |= {"BN": (self.BN, "columns of a tile"), "NT": (self.BN * self.column_tiles, "columns padded")}
        if self.kind.startswith("summary"):
            found["CHUNKS"] = (ceil_power(self.schedule.segment // self.schedule.chunk), "chunks of a segment, padded")
        return found

    def _numbering(self, out: Source) -> None:
        plan = self.plan
        tiles = -(-self.shape.rows // self.BP)
        out("rest = tl.program_id(0)")
        if tiles > 1:
            out(f"i_rows = rest % {tiles}", f"rest = rest // {tiles}")
        for axis in reversed(plan.grid):
            count = f"(size_{axis} // HEADS)" if axis == plan.head else f"size_{axis}"
            scale = " * HEADS" if axis == plan.head and self.shape.heads > 1 else ""
            out(f"i_{axis} = tl.cast(rest % {count}, tl.int64){scale}", f"rest = rest // {count}")
        # The segment walked last has nothing after it that would need its summary.
        some = self.kind.startswith("states") or (self.entries and self.kind == "walk")   # as many segments from one on
        skip = " + 1" if self.kind.startswith("summary") and self.back else " + before" if some else ""
        out(f"seg = tl.cast(rest, tl.int64){skip}", "t0 = seg * segment", f"t1 = tl.minimum(t0 + segment, size_{plan.time})", *self.tiles())
        out(self.rows_tile("i_rows * BP + " if tiles > 1 else ""))
        if self.masked:
            out("in_p = p < P")

    def _body(self) -> list[Node]:
        """Everything a chunk computes, arguments before users."""
        values = [s.value for s in self.stores if not s.final]
        return self.plan.body([*self.factors(), *self.weights(), *values], frozenset(self.plan.early))

    def factors(self) -> list[Node]:
        """What is multiplied."""
        found = [f for s in self.scans for f in (s.input.rows, s.input.columns)] + [r.factor for r in self.reads]
        return [n for n in found if n is not None]

    def weights(self) -> list[Node]:
        return [w for w in (*(s.input.weight for s in self.scans), *(r.weight for r in self.reads)) if w is not None]

    # -- carries --------------------------------------------------------------------------------------------------------------

    def inner_place(self, name: str, index: str, scope: Scope) -> str:
        """Pointers [BP, BN] into the states between kernels: contiguous, one of [PT, BN] for each of ``index`` and grid position."""
        self.argument(name, (), "float32" if not name.startswith("border") else self.shape.operands, "inner")
        wide = "BN" if self.column_tiles == 1 else "NT"
        return f"{name}_ptr + ({index} * {self.rows_of_grid()} + {self.grid_row(scope)}) * (PT * {wide}) + p * {wide} + {self.state_column}"

    def state(self, scan: ChunkScan, scope: Scope) -> str:
        """The name of a scan's state, of the tile of columns in hand."""
        return scope.made["state", scan, self.part] if self.part else scope.made["state", scan]

    def _start(self, out: Source, scan: ChunkScan, scope: Scope) -> None:
        for part in self.each_part():
            key = ("state", scan, part) if part else ("state", scan)
            scope.made[key] = scope.names.fresh(f"{scan.scan.name or 'scan'}_carry{scope.suffix}")
        i = self.plan.scans.index(scan)
        for _ in self.each_part():
            name = self.state(scan, scope)
            if self.entries and not self.combines:
                out(f"{name} = tl.load({self.inner_place(f'entry{i}', 'seg', scope)})")
            elif scan.initial is not None and not self.kind.startswith("summary"):
                node = scan.initial
                a = self.argument(str(node.name), node.axes, node.type.dtype, "input")
                place, mask = self.state_place(a, scope)
                out(f"{name} = tl.load({place}{f', mask={mask}, other=0.0' if mask else ''}).to(tl.float32)")
            else:
                out(f"{name} = tl.full((BP, BN), 0.0, tl.float32)")
        if self.combines:
            out.open(f"for step_back in range(0, {'segments - 1 - seg' if scan.back else 'seg'}):")
            out(f"at = {'segments - 1 - step_back' if scan.back else 'step_back'} + tl.cast(0, tl.int64)")
            for _ in self.each_part():
                name, ends = self.state(scan, scope), self.inner_place(f"entry{i}", "at", scope)
                out(f"{name} = {name} * tl.load({self.product_place(i, scope, 'at')}) + tl.load({ends})")
            out.indent(-1)

    def _final(self, out: Source, name: str, scan: ChunkScan, scope: Scope) -> None:
        store = next(s for s in self.stores if s.name == name)
        last = "(seg == 0)" if scan.back else "(seg == segments - 1)"
        for _ in self.each_part():
            place, mask = self.state_place(self.store_argument(store, ()), scope)
            whole = f"({last} & ({self.state_column} < N))" if not mask else f"{mask} & {last}"
            out(f"tl.store({place}, {self.state(scan, scope)}, mask={whole})")

    def lasting(self, out: Source, heads: list[Scope]) -> str:
        """How many chunks a summary needs, counted from the segment's end (its start where the carry walks back).

        Beyond them, decays from a chunk to there are 0 in float32. Chunks are taken from there on: what one adds is scaled as it comes,
        and the sum itself never.
        """
        out("at = tl.arange(0, CHUNKS)", f"place = t0 + {'at' if self.back else '(chunks - 1 - at)'} * Q + Q - 1", "count = 0")
        for scope in heads:
            last = f"{self.sums_place(scope, 'place')}"
            whole, after = (scope.names.fresh(f"{word}{scope.suffix}") for word in ("wholes", "after"))
            out(f"{whole} = tl.load({last}, mask=at < chunks, other=0.0)",
                f"{whole} = tl.where(tl.load({last} + 2, mask=at < chunks, other=1.0) == 0.0, {NOTHING_LEFT}, {whole})",
                f"{after} = {self.running(whole)} - {whole}",
                # Not the other way round: NaN is kept.
                f"needed = tl.where((at >= chunks) | ({after} <= {LEAST_EXPONENT}), 0, at + 1)",
                "count = tl.maximum(count, tl.reduce(needed, 0, tl.standard._elementwise_max))")
            scope.made["product"], scope.made["reach"] = (scope.names.fresh(f"{word}{scope.suffix}") for word in ("product", "reach"))
            out(f"{scope.made['product']} = tl.exp2(tl.reduce({whole}, 0, tl.standard._sum_combine))",
                f"{scope.made['reach']} = tl.cast(1.0, tl.float32)")
        return "count"

    def _summarise(self, out: Source, scope: Scope) -> None:
        (scan,) = self.scans
        i = self.plan.scans.index(scan)
        for _ in self.each_part():
            out(f"tl.store({self.inner_place(f'entry{i}', 'seg', scope)}, {self.state(scan, scope)})")
        out(f"tl.store({self.product_place(i, scope)}, {scope.made['product']})")

    def product_place(self, i: int, scope: Scope, segment: str = "seg") -> str:
        """Where a segment's product of transitions lies."""
        self.argument(f"product{i}", (), "float32", "inner")
        return f"product{i}_ptr + {segment} * {self.rows_of_grid()} + {self.grid_row(scope)}"

    def scores(self, out: Source, later: Node, earlier: Node, scope: Scope, common: Scope) -> str:
        ahead = scores_ahead(self.plan, self.schedule)
        key = ("scores", later, earlier)
        if (later, earlier) not in ahead and self.column_tiles == 1:
            return super().scores(out, later, earlier, scope, common)
        if (later, earlier) not in ahead and key not in scope.made:
            name = scope.made[key] = scope.names.fresh(f"scores{scope.suffix}")
            for part in self.each_part():
                x, y = (self.factor(out, node, scope) for node in ((earlier, later) if self.flipped else (later, earlier)))
                out(f"{name} = {self.dot(f'tl.trans({x})', y, name if part else '')}")
        elif key not in scope.made:
            name = scope.made[key] = common.made[key] = common.names.fresh("scores")
            out(f"{name} = {self.products_tile(ahead.index((later, earlier)), scope)}")
        return scope.made[key]

    # -- tiles of columns -----------------------------------------------------------------------------------------------------

    def load(self, node: Node, scope: Scope) -> list[str]:
        if self.column_tiles == 1 or "n" not in self.dims(node):
            return super().load(node, scope)
        lines = []
        for part in self.each_part():
            own = Scope(Suffixed(self.names, f"{scope.suffix}_{part}"), scope.suffix, scope.head)
            lines += super().load(node, own)
            self.columns_of[node, part, "" if self.shared(node) else scope.suffix] = own
            scope.known[node] = own.known[node]
        return lines

    def factor(self, out: Source, node: Node, scope: Scope) -> str:
        if self.column_tiles == 1 or "n" not in self.dims(node):
            return super().factor(out, node, scope)
        return super().factor(out, node, self.columns_of[node, self.part, "" if self.shared(node) else scope.suffix])

    def times_state(self, out: Source, factor: Node, scan: ChunkScan, scope: Scope) -> str:
        key = ("state", factor, scan)
        if self.column_tiles == 1 or key in scope.made:
            return super().times_state(out, factor, scan, scope)
        name = scope.made[key] = scope.names.fresh(f"from_border{scope.suffix}")
        keeps = self.kind.startswith("states") and ("kept", scan) not in scope.made
        scope.made["kept", scan] = name
        for part in self.each_part():
            carried = scope.names.fresh(f"carried{scope.suffix}")
            out(f"{carried} = {self.state(scan, scope)}.to({self.operand_type})")
            if keeps:   # here, so that no more than one tile is held as an operand
                self._keep(out, scan, carried, scope)
            out(f"{name} = {self.dot(carried, self.factor(out, factor, scope), name if part else '')}")
        return name

    # -- one chunk ------------------------------------------------------------------------------------------------------------

    def chunk(self, out: Source, head: Scope, common: Scope, before: list[Node], after: list[Node], ahead: list[Node]) -> None:
        scope = head.inner()
        scope.known.update(common.known)
        scope.made.update({k: v for k, v in common.made.items() if k not in scope.made})
        weights = {s.input.weight for s in self.scans} | {r.weight for r in self.reads}
        users = {a for n in (*before, *after) for a in n.args} | {s.value for s in self.stores}
        self.early(out, [n for n in ahead if n in users or n not in weights], scope)
        self.values(out, before, scope)
        if self.kind.startswith("states") and (self.column_tiles == 1 or not self.reads):
            (scan,) = self.scans
            for _ in self.each_part():
                value = f"{self.state(scan, scope)}.to({self.operand_type})"
                if self.reads:
                    operand = scope.made["operand of state", scan] = scope.names.fresh(f"carried{scope.suffix}")
                    out(f"{operand} = {value}")
                    value = operand
                self._keep(out, scan, value, scope)
        for read in self.reads:
            (later, earlier), one, other = pair_of(read)
            scores = self.scores(out, later, earlier, scope, common)
            mixed = scope.names.fresh(f"mixed{scope.suffix}")   # before the border's product, which would hold registers through it
            out(f"{mixed} = ({self.matrix(out, scores, (one, other), scope)}).to({self.operand_type})")
            if self.column_tiles == 1 and ("operand of state", read.of) not in scope.made:
                operand = scope.made["operand of state", read.of] = scope.names.fresh(f"carried{scope.suffix}")
                out(f"{operand} = {scope.made['state', read.of]}.to({self.operand_type})")
            border = self.from_border(out, read, scope)
            name = scope.names.of(read.node)
            out(self.declare(read.node, name, self.dot(self.factor(out, read.of.input.rows, scope), mixed, border)))
            scope.known[read.node] = (name,)
        self.values(out, after, scope)
        for store in self.stores:
            if not store.final:
                self.write(out, store, scope)
        for scan in self.scans:
            self._advance(out, scan, scope)
        if "reach" in scope.made:
            out(f"{scope.made['reach']} = {scope.made['reach']} * {self.edge(out, scope, 'whole')}")

    def _keep(self, out: Source, scan: ChunkScan, value: str, scope: Scope) -> None:
        """Leaves a state at the border of its chunk."""
        i = self.plan.scans.index(scan)
        if self.span > 1:  # the state before an even chunk, an adjoint's after an odd one or the last
            odd = f"ts // Q % {self.span} == {self.span - 1 if scan.back else 0}"
            out.open(f"if ({odd}) | (ts + Q >= size_{self.plan.time}):" if scan.back else f"if {odd}:")
        if self.shape.bulk:
            tiles, place = self.border_tiles(i, f"(ts // {self.kept})", "i_rows * BP" if self.whole_rows > self.BP else "", scope)
            out(f"{tiles}.store({place}, {value})")
        else:
            out(f"tl.store({self.inner_place(f'border{i}', f'(ts // {self.kept})', scope)}, {value})")
        if self.span > 1:
            out.indent(-1)

    def write(self, out: Source, store: ChunkStore, scope: Scope) -> None:
        """A result's tile."""
        a = self.store_argument(store, ())
        dims = self.axis_dims(store.output.axes)
        described = self.described(a, scope)
        if described is not None:
            out(f"{described[0]}.store({described[1]}, tl.trans({scope.known[store.value][0]}.to({TYPES[a.dtype]})))")
            return
        owner = ["(i_rows == 0)"] if "p" not in dims and self.shape.rows > self.BP else []
        mask = " & ".join([*self.masks(dims), *owner])
        out(f"tl.store({self.place(a, self.base(a, scope))}, {scope.known[store.value][0]}, mask={mask})")

    def _advance(self, out: Source, scan: ChunkScan, scope: Scope) -> None:
        weight = self.weight(out, scan.input.weight, scope)
        edge = self.edge(out, scope, "enter" if scan.back else "leave")
        rows = scope.known[scan.input.rows][0]
        reach = scope.made.get("reach", "")
        scaled = f"({rows} * ({' * '.join(x for x in (edge, weight, reach) if x)}))"
        masks = self.masks(self.dims(scan.input.rows) - {"t"})
        if masks and scan.input.rows.op != "input":
            scaled = f"tl.where({masks[0]}, {scaled}, 0.0)"
        scaled = f"{scaled}.to({self.operand_type})"
        if self.column_tiles > 1:
            name = scope.names.fresh(f"scaled{scope.suffix}")
            out(f"{name} = {scaled}")
            scaled = name
        whole = "" if reach else self.edge(out, scope, "whole")
        for _ in self.each_part():
            columns, state = self.factor(out, scan.input.columns, scope), self.state(scan, scope)
            out(f"{state} = {self.dot(scaled, f'tl.trans({columns})', state if reach else f'{state} * {whole}')}")


class Passing(Walking):
    def print_pass(self, scan: ChunkScan) -> ChunkSource:
        out, plan, scope = Source().indent(), self.plan, Scope(self.names)
        self.BP = min(16, self.whole_rows)
        self.kind = f"pass{plan.scans.index(scan)}"
        self._numbering(out)
        self._start(out, scan, scope)
        state, i = scope.made["state", scan], plan.scans.index(scan)
        out.open("for step_back in tl.range(0, segments, num_stages=4):")
        out(f"seg = {'segments - 1 - step_back' if scan.back else 'step_back'} + tl.cast(0, tl.int64)",
            f"at = {self.inner_place(f'entry{i}', 'seg', scope)}", "ends = tl.load(at)", f"tl.store(at, {state})",
            f"{state} = {state} * tl.load({self.product_place(i, scope)}) + ends")
        out.indent(-1)
        return self.source(out, 4)


def walk(plan: ChunkPlan, schedule: ChunkedSchedule, shape: Shape, title: str, *, entries: bool = False, combines: bool = False,
         by: type[Walking] = Walking) -> ChunkSource:
    """The kernel that gives every result of a plan that walks, printed by the class of the plan's decays."""
    made = by(plan, schedule, shape, "walk", plan.scans, title, entries=entries or combines)
    made.combines = combines
    return made.print()


def summary(plan: ChunkPlan, schedule: ChunkedSchedule, shape: Shape, scan: ChunkScan, title: str, *,
            by: type[Walking] = Walking) -> ChunkSource:
    """The kernel that leaves, of every segment, its product of transitions and the carry it ends with from zero."""
    return by(plan, schedule, shape, f"summary{plan.scans.index(scan)}", (scan,), title).print()


def states(plan: ChunkPlan, schedule: ChunkedSchedule, shape: Shape, scan: ChunkScan, title: str, *, entries: bool = False,
           combines: bool = False, by: type[Walking] = Walking) -> ChunkSource:
    """The kernel that leaves a scan's carry at every chunk's border, and its last."""
    made = by(plan, schedule, shape, f"states{plan.scans.index(scan)}", (scan,), title, entries=entries or combines)
    made.combines = combines
    return made.print()


def passing(plan: ChunkPlan, schedule: ChunkedSchedule, shape: Shape, scan: ChunkScan, title: str, *,
            by: type[Passing] = Passing) -> ChunkSource:
    """The kernel that turns summaries of segments into the carries at their starts, in place, one program a tile of one grid position.

    entry_0 = the initial state, entry_{s+1} = product_s entry_s + end_s.
    """
    return by(plan, schedule, shape, f"pass{plan.scans.index(scan)}", (scan,), title).print_pass(scan)


__all__ = ["Argument", "Passing", "Walking", "passing", "states", "summary", "walk"]
