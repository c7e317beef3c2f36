"""The kernels of the chunked form for values over time and grid alone: early, before all others, and late, after them (triton_chunked.py).

early leaves, for the other kernels,

    sums      of every step: g, the sum of exponents from its chunk's start; the weight ``paired``; 2^g; and the decay to its chunk's end;
              behind these fours, the products of that weight and decay, where a kernel needs nothing else
    resets    how many resets each chunk has had so far (where there are any)
    early<i>  weights, and what epilogues need

and late finishes what the chunks' programs leave:

    met<i>                            sums over rows, and what else is needed
    enters<i>, leaves<i>, …           of a decay read, whose cumulative sums are taken here

A program has one chunk of up to 16 heads, a tile [Q, HEADS]. What lies between kernels has time innermost, padded to whole chunks, so that
they load it along either axis of a tile without a mask; padding has exponents and weights of 0. Lanes past the last head repeat it.
"""

from __future__ import annotations

from collections.abc import Iterable

from scanc.codegen.emit import Source
from scanc.codegen.triton_chunked import ChunkPrinter
from scanc.codegen.triton_chunked_parts import left_alone, partial_axes, scores_ahead
from scanc.codegen.triton_chunked_scores import ScoresAhead
from scanc.codegen.triton_chunked_source import LEAST_EXPONENT, ChunkSource, Scope, Shape
from scanc.forms.chunked import ChunkPlan, ChunkStore, Read
from scanc.ir import Node
from scanc.schedule import ChunkedSchedule

HEADS = 16


def early(plan: ChunkPlan, schedule: ChunkedSchedule, shape: Shape, title: str) -> ChunkSource:
    """The kernel that comes first."""
    return _Early(plan, schedule, shape, "early", title).print()


def late(plan: ChunkPlan, schedule: ChunkedSchedule, shape: Shape, title: str) -> ChunkSource:
    """The kernel that comes last, of a plan that does not walk."""
    return _Late(plan, schedule, shape, "late", title).print()


class _Beside(ChunkPrinter):
    """A program of one chunk of several heads."""

    number = "tl.program_id(0)"

    def constants(self) -> dict[str, tuple[int, str]]:
        steps = self.schedule.chunk * (self.span if self.kind == "late" else 1)
        found = {"Q": (steps, "steps of a chunk"), "HEADS": (HEADS, "heads a program has at a time")}
        if self.kind == "early" and scores_ahead(self.plan, self.schedule):
            found |= {name: super(_Beside, self).constants()[name] for name in ("N", "BN")}
        return found

    def _numbering(self, out: Source) -> None:
        plan = self.plan
        out("tau = tl.arange(0, Q)[:, None]", "across = tl.arange(0, HEADS)[None, :]", f"rest = {self.number}")
        if plan.head:
            size = f"size_{plan.head}"
            out(f"blocks = ({size} + HEADS - 1) // HEADS", "block = rest % blocks",
                f"i_{plan.head} = tl.minimum(block * HEADS + across, {size} - 1).to(tl.int64)",
                f"in_heads = across < {size} - block * HEADS", "rest = rest // blocks")
        else:
            out("in_heads = across < 1")
        out("chunks = padded // Q", "c = (rest % chunks).to(tl.int64)", "ts = c * Q", "rest = rest // chunks")
        for axis in reversed(plan.grid):
            if axis != plan.head:
                out(f"i_{axis} = tl.cast(rest % size_{axis}, tl.int64)", f"rest = rest // size_{axis}")
        out(f"t1 = size_{plan.time}", *self.chunk_start())

    def full(self, value: str, dtype: str = "float32") -> str:
        """The value over the whole tile."""
        return f"tl.broadcast_to({value}, (Q, HEADS)).to(tl.{dtype})"

    def early(self, out: Source, nodes: Iterable[Node], scope: Scope) -> None:
        nodes = list(nodes)
        for node in nodes:
            if node is self.plan.paired:   # by itself too: four values apart, a load would take as many bytes as of all four
                name = scope.names.of(node)
                out(self.declare(node, name, f"tl.load({self.ahead(self.early_name(node), scope, 'tau')})"))
                scope.known[node] = (name,)
        super().early(out, [n for n in nodes if n is not self.plan.paired], scope)

    def ahead(self, name: str, scope: Scope, index: str, dtype: str = "float32") -> str:
        # Said so, rows are seen to lie multiples of a chunk apart, and four steps are one load.
        text = super().ahead(name, scope, index, dtype).replace("* padded", "* (chunks * Q)")
        return text + ("" if self.plan.head else " + across * 0")


class _Early(_Beside):
    def print(self) -> ChunkSource:
        plan, out, scope = self.plan, Source().indent(), Scope(self.names)
        if scores_ahead(plan, self.schedule):
            ScoresAhead.within(self, out)
            self.number = "place"
        self._numbering(out)
        roots = [*plan.early, plan.decay, *([plan.reset] if plan.reset is not None else [])]
        self.values(out, plan.body(roots), scope)
        exponent = f"tl.maximum({scope.known[plan.decay][0]}, {LEAST_EXPONENT}, propagate_nan=tl.PropagateNan.ALL)"
        if plan.reset is not None:
            out(f"here = {self.full(f'tl.where(in_time & {scope.known[plan.reset][0]}, 1, 0)', 'int32')}",
                f"resets = {self.running('here')}",
                f"tl.store({self.ahead('resets', scope, 'tau', 'int32')}, resets)")
            exponent = f"tl.where({scope.known[plan.reset][0]}, 0.0, {exponent})"
        out(f"e = {self.full(f'tl.where(in_time, {exponent}, 0.0)')}", f"g = {self.running('e')}",
            "enter = tl.exp2(g)", f"leave = tl.where(in_time, tl.exp2({self.total('e', 0)} - g), 0.0)")
        if plan.reset is not None:
            out("enter = tl.where(resets == 0, enter, 0.0)", f"leave = tl.where(resets == {self.total('here', 0)}, leave, 0.0)")
        weight = "tl.full((Q, HEADS), 0.0, tl.float32)"
        for node in plan.early:
            zero, dtype = ("0.0", "float32") if node.kind == "real" else ("0", "int32")
            value = scope.known[node][0] if node.kind != "bool" else f"tl.where({scope.known[node][0]}, 1, 0)"
            value = self.full(f"tl.where(in_time, {value}, {zero})", dtype)
            if node is plan.paired:
                weight = value
            if node is not plan.paired or not plan.walks:
                out(f"tl.store({self.ahead(self.early_name(node), scope, 'tau', dtype)}, {value})")
        if left_alone(plan, self.schedule):
            out(f"tl.store({self.left_place(scope)} + tau{'' if self.plan.head else ' + across * 0'}, {weight} * leave)")
        # Heads first, so that a warp writes steps that lie side by side, 16 bytes each.
        out(f"four = tl.join(tl.join(g, enter), tl.join({weight}, leave))",
            "four = tl.permute(tl.reshape(four, (Q, HEADS, 4)), (1, 0, 2))",
            f"at = tl.trans({self.sums_place(scope)} + tau * 4{'' if self.plan.head else ' + across * 0'})",
            "tl.store(at[:, :, None] + tl.arange(0, 4)[None, None, :], four)")
        return self.source(out, 4)


class _Late(_Beside):
    def print(self) -> ChunkSource:
        plan, out, scope = self.plan, Source().indent(), Scope(self.names)
        self._numbering(out)
        stores = [s for s in plan.stores if plan.comes_late(s)]
        ahead = frozenset((*plan.early, *plan.met))
        decays = [r for r in plan.reads if r.kind == "decay"]
        needed = [plan.reset, *(r.of.input.weight for r in decays)] if decays else []
        body = plan.body([s.value for s in stores] + [n for n in needed if n is not None], ahead)
        self.early(out, [n for n in plan.early if n in body], scope)
        for i, node in enumerate(plan.met):
            name = scope.names.of(node)
            out(self.declare(node, name, f"tl.load({self.ahead(f'met{i}', scope, 'tau')})"))
            scope.known[node] = (name,)
        for read in decays:
            self._gradients(out, read, scope)
        self.values(out, body, scope)
        for store in stores:
            self._store(out, store, scope)
        return self.source(out, 4 * self.span)

    def _gradients(self, out: Source, read: Read, scope: Scope) -> None:
        """A decay read, and the weight read of the same scans, from sums that the chunks' programs leave (triton_chunked_reads.py)."""
        plan, i = self.plan, self.plan.reads.index(read)
        self.argument(f"across{i}", (), "float32", "inner")
        name = {w: scope.names.fresh(w) for w in ("enters", "within", "without", "leaves")}
        for word in name:
            out(f"{name[word]} = tl.load({self.ahead(f'{word}{i}', scope, 'tau')})")
        if self.span > 1:  # pairs of the first half of these steps with the second
            beyond = scope.names.fresh("beyond")
            out(f"{beyond} = tl.load({self.ahead(f'beyond{i}', scope, 'tau')})",
                f"{name['within']} += tl.where(tau >= Q // 2, {beyond}, 0.0)",
                f"{name['without']} += tl.where(tau >= Q // 2, 0.0, {beyond})")
        weight = f"{scope.known[read.of.input.weight][0]} * " if read.of.input.weight in plan.early else ""
        for other in plan.reads:
            if other.kind == "weight" and other.of is read.of and other.against is read.against:
                made = scope.names.of(other.node)
                out(self.declare(other.node, made, f"{name['leaves']} + {name['without']}"))
                scope.known[other.node] = (made,)
        entering, leaving = scope.names.fresh("entering"), scope.names.fresh("leaving")
        sums = f"{name['enters']} + {name['within']} - {weight}{name['without']}"
        out(f"{entering} = {self.full(f'tl.where(in_time, {sums}, 0.0)')}",
            f"{leaving} = " + self.full(f"tl.where(in_time, {weight}{name['leaves']}, 0.0)"))
        border = f"tl.load(across{i}_ptr + {self.grid_row(scope)} * chunks + c)"
        text = f"{self.running(entering, True)} + {self.running(leaving)} - {leaving} + {border}"
        if plan.reset is not None:
            text = f"tl.where({scope.known[plan.reset][0]}, 0.0, {text})"
        made = scope.names.of(read.node)
        out(self.declare(read.node, made, text))
        scope.known[read.node] = (made,)

    def _store(self, out: Source, store: ChunkStore, scope: Scope) -> None:
        plan = self.plan
        a = self.store_argument(store, partial_axes(plan, store))
        value, masks = self.full(scope.known[store.value][0]), []
        if plan.time in store.gone:
            value = self.total(f"tl.where(in_time, {value}, 0.0)", 0)
        else:
            masks.append("in_time")
        if plan.head in store.gone or not plan.head:
            value = self.total(f"tl.where(in_heads, {value}, 0.0)", 1)
        leading = {axis[1:]: {"@chunk": "c", "@block": "block"}.get(axis) or f"i_{axis[1:]}" for axis in a.axes if axis.startswith("@")}
        tops = {"t": "tau * 0", "h": "across * 0"}
        place = self.place(a, self.base(a, scope, **leading))
        if plan.time in store.gone and plan.head in store.gone:
            place += " + tl.full((1, 1), 0, tl.int32)"
        elif not plan.head:
            place += f" + {tops['t'] if plan.time not in store.gone else 'tl.full((1, 1), 0, tl.int32)'}"
        out(f"tl.store({place}, {value}{', mask=' + ' & '.join(masks) if masks else ''})")
