"""What CUDA kernels of form stencil have in common: a thread takes a patch of lanes and steps and looks back and ahead in its registers.

The loop over a patch's steps ``i`` is unrolled. Each value is made at every step that something looks at, no sooner than that: a value
looked at from ``hi`` steps before it is made ``hi`` steps ahead of the results, at ``i + hi``, beginning with its first step ``lo``.
One that is looked at later as well is kept in an array of registers, ``<value>_row``. So a shift costs nothing, and a gradient makes what
it looks at (an activation's derivative, say) once, but for the steps that two patches share.

    results    y[t] = ...                   lo =  0, hi = 0
    d_x        = w0 g[t] + w1 g[t + 1]      g:  lo = 0, hi = 1
    g          = d_y[t] f(x[t - 1])         x:  lo = -1, hi = 0

Sums over time are kept by each thread and added up over a lane's threads in the end. Which patches a thread has, and how they are read and
left, is ``codegen/cuda_stencil.py``'s.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scanc.codegen.common import KernelPrinter
from scanc.codegen.cuda_dialect import C_TYPES, CudaDialect, scalar_type, taken_names
from scanc.codegen.emit import Body, Parts, Source
from scanc.codegen.layout import LAUNCH, Buffer, Mode
from scanc.errors import ScheduleError
from scanc.forms.plan import Plan, Region, Store
from scanc.ir import Node
from scanc.schedule import StencilSchedule

PATCH_HEADER = Path(__file__).with_name("cuda_patch.h")
FARTHEST = 1 << 30    # steps of a segment: a patch's place in one is a number of 32 bits
MOST_VALUES = 64      # of one input that a thread's patch may have: what registers hold beside the arithmetic
_WORDS = ("ACROSS", "STEPS", "ROWS", "TILE", "LANES", "THREADS", "patch", "i", "v", "row", "rows", "count", "inside", "vectors",
          "sums", "before", "after", "within", "held", "keep", "vector_of", "vectors_together", "store_patch", "row_sum", "APART",
          "PIECES", "NEXT", "FAR", "place", "begin", "end", "whole", "q", "start", "at", "own", "one", "mine")


def reaches(plan: Plan) -> dict[Node, tuple[int, int]]:
    """(lo, hi) of each value over time: it is looked at from ``lo`` to STEPS + ``hi`` of a patch."""
    found: dict[Node, tuple[int, int]] = {s.value: (0, 0) for s in plan.stores}
    for node in (n for n in reversed(plan.main_body) if plan.timed(n)):
        lo, hi = found[node]
        by = node.attrs["by"] if node.op == "shift" else 0
        for a in node.args:
            if plan.timed(a):
                low, high = found.get(a, (lo - by, hi - by))
                found[a] = (min(low, lo - by), max(high, hi - by))
    return found


class PatchPrinter(KernelPrinter):
    """``along``: neighbouring threads have neighbouring steps (or else lanes). A thread's lanes are ``place`` and the next ``count``."""

    dialect = CudaDialect()
    along: bool
    whole: str    # what says that all steps of a patch are the sequence's

    def __init__(self, plan: Plan, schedule: StencilSchedule, state: int, mode: Mode, title: str) -> None:
        super().__init__(plan, schedule, state, mode, title)
        for word in sorted({*taken_names(), *_WORDS, *(s for b in self.buffers for s in self.stride_names(b)),
                            *(f"size_{a}" for a in plan.graph.order)}):
            self.names.fresh(word)
        self.lanes, self.tile, self.threads = schedule.lanes, schedule.tile, 32 * schedule.warps
        values = self.lanes * self.tile // self.threads
        self.across = 1 if self.along else schedule.across
        self.pieces = schedule.pieces if self.along else 1
        self.steps = values // (self.across * self.pieces)
        self.body = [n for n in plan.main_body if plan.timed(n)]
        self._check(schedule)
        self.rows = self.tile // (self.steps * self.pieces)
        self.apart = 1 if self.along else self.lanes // self.across   # threads from one of a lane's to the next
        self.reach = reaches(plan)
        self.sums = [s for s in plan.stores if s.kind == "sum"]
        self.words = self.threads if self.sums and self.rows * self.apart > 32 else 0
        several = schedule.segment > schedule.tile   # tiles a block
        self.ahead, self.nearer = schedule.ahead == 1 and several, schedule.ahead > 1 and several
        self._leaves: dict[str, Node] = {}
        self._named: set[Node] = set()   # values that are referred to by name

    def _check(self, schedule: StencilSchedule) -> None:
        def need(field: str, holds: bool, limit: str) -> None:
            self._need(schedule, field, holds, limit)

        need("warps", self.threads <= 1024, "a block has 1024 threads at most")
        need("walk", schedule.walk == 1, "a block of the CUDA backend takes one tile of lanes")
        values = self.lanes * self.tile
        need("tile", values <= MOST_VALUES * self.threads, f"a thread's patch has {MOST_VALUES} values at most; raise warps")
        need("segment", 0 < schedule.segment <= FARTHEST, f"a block of the CUDA backend takes 1 to {FARTHEST} steps")
        need("tile", values % self.threads == 0 and self.steps >= 1 and self.tile % (self.steps * self.pieces) == 0,
             f"each of a block's {self.threads} threads has its share of a tile's {values} values")

    @staticmethod
    def _need(schedule: StencilSchedule, field: str, holds: bool, limit: str) -> None:
        if not holds:
            raise ScheduleError(field=field, value=getattr(schedule, field), limit=limit)

    # -- what is looked at ------------------------------------------------------------------------------------------------------

    def _at(self, offset: int) -> str:
        return f"i {'-' if offset < 0 else '+'} {abs(offset)}" if offset else "i"

    def _look(self, node: Node, offset: int) -> str:
        """The value of a node at step ``i + offset`` of the patch, as an expression."""
        if node.op == "const":
            return self.dialect.literal(node.attrs["value"])
        if not self.plan.timed(node):
            return self.known[node][0]
        if node.op == "broadcast":
            return self._look(node.args[0], offset)
        if node.op == "shift":
            by = node.attrs["by"]
            inner = self._look(node.args[0], offset - by)
            if node.args[0].op == "input" and not node.attrs["fill"]:
                return inner  # an input is loaded as 0 where there is none
            return f"(within<how.inside>({self._at(offset - by)}, before, after) ? {inner} : {self.fill(node)})"
        if node.op == "index":
            return f"int(t + ({self._at(offset)}))"
        name, (lo, hi) = self.names.of(node), self.reach[node]
        if node.op == "input":
            return f"held({name}_in[{'v' if self.laned(node) else '0'}], {self._at(offset - lo)})"
        if offset == hi:
            self._named.add(node)
            return name
        return f"held({name}_row, {self._at(offset - lo)})"

    def _kept_rows(self) -> frozenset[Node]:
        """Values that are looked at after the step at which they are made."""
        found: set[Node] = set()

        def look(node: Node, offset: int) -> None:
            if node.op == "shift":
                look(node.args[0], offset - node.attrs["by"])
            elif node.op == "broadcast":
                look(node.args[0], offset)
            elif self._made(node) and offset != self.reach[node][1]:
                found.add(node)

        for node in self.body:
            if self._made(node):
                for a in node.args:
                    look(a, self.reach[node][1])
        for store in self.plan.stores:
            look(store.value, 0)
        return frozenset(found)

    def _made(self, node: Node) -> bool:
        """Whether a value is computed at each step."""
        return self.plan.timed(node) and node.op not in ("input", "const", "shift", "broadcast", "index", "size")

    # -- the kernel -------------------------------------------------------------------------------------------------------------

    def print(self) -> str:
        body = Source().indent()
        self._numbering(body)
        self._lane_values(body)
        self._patches(body)
        self._finish(body)
        out, used = Source(), set(re.findall(r"\w+", body.text()))
        out(f"// {self.title}", f"// {self.schedule}")
        for b in self.buffers:
            out(f"// {b.role:5} {b.name}: {b.dtype}[{' '.join((*b.leading, *b.axes))}]")
        out("", '#include "cuda.h"', '#include "cuda_step.h"', '#include "cuda_patch.h"', "")
        out(f"constexpr int LANES = {self.lanes}, TILE = {self.tile}, THREADS = {self.threads};",
            f"constexpr int ACROSS = {self.across}, STEPS = {self.steps};  // lanes and steps of a thread's patch",
            f"constexpr bool ALONG = {'true' if self.along else 'false'};  // neighbouring threads have neighbouring steps", "")
        out.open("struct Arguments {")
        for b in self.buffers:
            out(f"{'' if b.written else 'const '}{C_TYPES[b.dtype]}* {b.name}_ptr;")
        for b in self.buffers:
            if b.rank:
                out(f"index_t {', '.join(self.stride_names(b))};")
        out(f"index_t {', '.join(f'size_{a}' for a in self.plan.graph.order)};", f"index_t {', '.join(LAUNCH)};")
        out.close("};")("")
        out.open(f'extern "C" __global__ void __launch_bounds__({self._bounds}) run(const __grid_constant__ Arguments arguments) {{')
        for b in self.buffers:
            out(f"{'' if b.written else 'const '}{C_TYPES[b.dtype]}* const {b.name}_ptr = arguments.{b.name}_ptr;")
        for name, small in self._strides():
            if name in used:
                out(f"const int {name} = low_word(arguments.{name});" if small else f"const index_t {name} = arguments.{name};")
        out(*(f"const index_t {w} = arguments.{w};" for w in (*(f"size_{a}" for a in self.plan.graph.order), *LAUNCH) if w in used))
        if self.words:
            out("extern __shared__ __align__(16) float shared[];")
        return out.text() + body.text() + "}\n"

    @property
    def _bounds(self) -> str:
        """What a kernel says of its threads."""
        return "THREADS"

    def _strides(self) -> list[tuple[str, bool]]:
        """Names of all strides in order, and whether 32 bits are enough for one: those that patches multiply by small numbers."""
        inner = {self.plan.lane, self.plan.time}
        return [(name, axis in inner) for b in self.buffers for name, axis in zip(self.stride_names(b), (*b.leading, *b.axes), strict=True)]

    @property
    def narrow(self) -> tuple[int, ...]:
        return tuple(i for i, (_, small) in enumerate(self._strides()) if small)

    def _numbering(self, out: Source) -> None:
        plan = self.plan
        # Fastest what lies together: blocks that are at work at one time then have one stretch of memory.
        near = [("seg", "segments", "index_t"), ("block", "slots", "int")]
        groups = [("i_group", f"size_{plan.lane_group}", "index_t")] if plan.lane_group else []
        places = [*(near if self.along else reversed(near)), *groups,
                  *((f"i_{axis}", f"size_{axis}", "index_t") for axis in reversed(plan.grid))]
        out(*self._threads, "unsigned rest = block_here();")
        for name, size, kind in places[:-1]:
            out(f"const {kind} {name} = rest % unsigned({size}); rest /= unsigned({size});")
        name, _, kind = places[-1]
        group = "int(i_group) * int(per_group) + " if plan.lane_group else ""
        out(f"const {kind} {name} = rest;", f"const index_t t0 = seg * segment, t1 = smaller(size_{plan.time}, t0 + segment);",
            f"const int first = {group}block * LANES, lanes = int(per_group) - block * LANES;", *self._own_lanes)

    @property
    def _threads(self) -> tuple[str, ...]:
        """Which of a tile's lanes and steps are a thread's."""
        raise NotImplementedError

    @property
    def _own_lanes(self) -> tuple[str, ...]:
        """How many lanes a thread has, and the place of the first."""
        raise NotImplementedError

    def _lane_values(self, out: Source) -> None:
        """Values without time, of each of the patch's lanes; sums over time, empty."""
        plan = self.plan
        still = [n for n in plan.main_body if plan.region[n] == Region.LANE and n.op != "const"]
        read = {a for n in self.body for a in n.args} | {s.value for s in plan.stores}
        exported = [n for n in still if n in read]
        for node in exported:
            out(f"{scalar_type(node)} {self.names.of(node)}_of[ACROSS];")

        def declare(node: Node, name: str, expression: str) -> str:
            kept = f" {name}_of[v] = {name};" if node in exported else ""
            return f"const {scalar_type(node)} {name} = {expression};{kept}"

        def special(node: Node) -> list[str] | None:
            if node.op == "size":
                self.known[node] = (f"int(size_{node.attrs['axis']})",)
            elif node.op == "index":
                axis = node.attrs["axis"]
                self.known[node] = ("(place + v)" if axis == plan.lane else f"int({self.program_index(axis)})",)
            elif node.op == "input":
                b = self.of_input[node]
                self.known[node] = (self.names.of(node),)
                return [declare(node, self.names.of(node), self._lane_value(b))]
            else:
                return None
            return [f"{self.names.of(node)}_of[v] = {self.known[node][0]};"] if node in exported else []

        consts = [n for n in plan.main_body if n.op == "const"]
        body = Body(self.dialect, self.names, self.known, declare, keep=frozenset(exported))
        lines = body.run([*consts, *still], special)
        if lines:
            out("#pragma unroll").open("for (int v = 0; v < ACROSS; ++v) {")
            out(*lines).close()
        for node in exported:
            self.known[node] = (f"{self.names.of(node)}_of[v]",)
        for store in self.sums:
            out(f"float {self.sum_names(store)[0]}[ACROSS] = {{}};")

    def _lane_value(self, b: Buffer) -> str:
        """What lane v of the thread's has of a buffer without time."""
        return f"widen(*({self._place_of_lane(b)}))"

    def _place_of_lane(self, b: Buffer) -> str:
        """Where lane v of the thread's has its value of a buffer without time."""
        return self.pointer(b, 0) + (f" + index_t(v) * {b.name}_{self.plan.lane}" if self.across > 1 and self.plan.lane in b.axes else "")

    def index_of(self, axis: str, b: Buffer, time: str, state: str) -> str:
        return "index_t(place)" if axis == self.plan.lane else super().index_of(axis, b, time, state)

    def _timed_buffers(self) -> list[Buffer]:
        return [self.of_input[n] for n in self.body if n.op == "input"] + [self.of_store[s] for s in self.plan.stores if s.kind == "value"]

    def _stride(self, b: Buffer, axis: str) -> str:
        return f"{b.name}_{axis}" if axis in b.axes else "0"

    def _patches(self, out: Source) -> None:
        """The loops over a block's tiles."""
        raise NotImplementedError

    def _pointers(self, out: Source) -> None:
        """Where the thread's first patch is, and between what of its steps the sequence is."""
        for b in self._timed_buffers():
            out(f"{'' if b.written else 'const '}{C_TYPES[b.dtype]}* const {b.name}_at = {b.name}_ptr + "
                f"{self.offset(b, time='(t0 + row * STEPS)')};")
        time = self.plan.time
        out(f"constexpr int FAR = {FARTHEST};", "// Of the thread's first steps: where the sequence begins, and where it has ended.",
            f"const int begin = -int(smaller(t0, FAR)) - row * STEPS, end = int(smaller(size_{time} - t0, FAR)) - row * STEPS;",
            "const int steps = count > 0 ? int(t1 - t0) : 0;")

    def _where(self, out: Source) -> None:
        """Where a patch is that begins ``at`` so many steps after the thread's first."""
        out("const int before = begin - at, after = end - at;")
        if any(n.op == "index" for n in self.body):
            out("const index_t t = t0 + row * STEPS + at;")

    def _whole(self, out: Source, first: str, buffers: Sequence[Buffer], near: str, width: str) -> None:
        """Whether all vectors are: tensors lie together along an axis, and whatever else is a whole number of vectors away."""
        conditions = [first]
        for b in buffers:
            apart = [f"index_t({s})" for s, a in zip(self.stride_names(b), (*b.leading, *b.axes), strict=True) if a != near]
            conditions.append(f"vectors_together<{width}>({b.name}_ptr, {self._stride(b, near)}, {' | '.join(apart) or '0'})")
        out(f"const bool whole = {conditions[0]}", *(f"    && {c}" for c in conditions[1:]), "    ;")

    @property
    def _inputs(self) -> list[Node]:
        return [n for n in self.body if n.op == "input"]

    @property
    def _looks(self) -> tuple[int, int]:
        """As far as anything looks at inputs, (lo, hi) as for one."""
        reach = [self.reach[n] for n in self._inputs]
        return min([0, *(lo for lo, _ in reach)]), max([0, *(hi for _, hi in reach)])

    def _length(self, node: Node) -> str:
        lo, hi = self.reach[node]
        return f"STEPS + {hi - lo}"

    def _place(self, b: Buffer, at: str = "at") -> str:
        """Where a patch starts, ``at`` steps after the block's."""
        return f"{b.name}_at + index_t({at}) * {b.name}_{self.plan.time}"

    def _width(self, b: Buffer) -> str:
        return "ACROSS" if self.plan.lane in b.axes else "1"

    def _work(self, out: Source) -> None:
        """The patch's steps, from what is read to what is stored, in registers both."""
        plan = self.plan
        stores = [s for s in plan.stores if s.kind == "value"]
        for store in stores:
            out(f"{scalar_type(store.value)} {store.name}_out[{self._width(self.of_store[store])}][STEPS];")
        out("#pragma unroll").open("for (int v = 0; v < ACROSS; ++v) {")
        rows = self._kept_rows()
        for node in self.body:
            if node in rows:
                lo, hi = self.reach[node]
                out(f"{scalar_type(node)} {self.names.of(node)}_row[STEPS + {hi - lo}];")
        start = min([0, *(self.reach[n][0] - self.reach[n][1] for n in self.body if self._made(n))])
        out("#pragma unroll").open(f"for (int i = {start}; i < STEPS; ++i) {{")
        out(*self._step(rows))
        for store in plan.stores:
            value = self._look(store.value, 0)
            if store.kind == "sum":
                total = self.sum_names(store)[0]
                out(f"if (i >= 0 && within<{self.whole}>(i, before, after)) {total}[v] += {value};")
            else:
                to = f"{store.name}_out[{'v' if self._width(self.of_store[store]) == 'ACROSS' else '0'}]"
                out(f"if (i >= 0) {to}[i < 0 ? 0 : i] = {value};")
        out.close().close()

    def _store(self, out: Source, store: Store, where: str, count: str, steps: str) -> None:
        b, owner = self.of_store[store], self.owner(store.value, store.axes)
        strides = f"{self._stride(b, self.plan.lane)}, {b.name}_{self.plan.time}"
        line = f"store_patch<decltype(how), ALONG>({where}, {strides}, {store.name}_out, {count}, {steps});"
        out(f"if ({owner}) {line}" if owner else line)

    def _step(self, rows: frozenset[Node]) -> Sequence[str]:
        """The lines of one step: every value made as far ahead as it is looked at, in the graph's order."""
        made: dict[Node, Node] = {}
        for node in self.body:
            if self._made(node):
                ahead = self.reach[node][1]
                made[node] = replace(node, args=tuple(self._argument(a, ahead, made) for a in node.args))
        whose = {new: old for old, new in made.items()}

        def declare(node: Node, name: str, expression: str) -> str:
            old = whose[node]
            line = f"const {scalar_type(node)} {name} = {expression};"
            if old not in rows:
                return line
            at = self._at(self.reach[old][1] - self.reach[old][0])
            return f"{line} keep({name}_row, {at}, {name});"

        known: dict[Node, Parts] = {leaf: (text,) for text, leaf in self._leaves.items()}
        keep = {made[n] for n in rows | self._named} | {made[s.value] for s in self.plan.stores if s.value in made}
        for new, old in whose.items():
            self.names.same(new, old)
        return Body(self.dialect, self.names, known, declare, keep=frozenset(keep)).run(list(made.values()))

    def _argument(self, node: Node, offset: int, made: dict[Node, Node]) -> Node:
        """What a value's argument is when the value is made: another of the same step, or what is read of inputs, rows and lanes."""
        if node in made and offset == self.reach[node][1]:
            return made[node]
        text = self._look(node, offset)
        if text not in self._leaves:
            self._leaves[text] = replace(node, op="input", args=(), attrs={})
        return self._leaves[text]

    # -- after the tiles --------------------------------------------------------------------------------------------------------

    def _finish(self, out: Source) -> None:
        """Each lane's sums over its threads, left by the first of them."""
        if not self.sums:
            return
        group = "ROWS" if self.along else "THREADS"
        apart = "1" if self.along else "APART"
        words = "shared" if self.words else "nullptr"
        out("#pragma unroll").open("for (int v = 0; v < ACROSS; ++v) {")
        for store in self.sums:
            out.open("{")
            out(f"const float whole = row_sum<{apart}, {group}, THREADS>({self.sum_names(store)[0]}[v], {words});")
            self._leave(out, store)
            out.close()
        out.close()

    def _leave(self, out: Source, store: Store) -> None:
        b, lane = self.of_store[store], self.plan.lane
        at = self._place_of_lane(b)
        whose = "v < count" if lane in b.axes else "count > 0 && lane == 0 && v == 0"
        guards = [g for g in (self.owner(store.value, store.axes), "row == 0", whose) if g]
        out(f"if ({' && '.join(guards)}) *({at}) = Narrow<{C_TYPES[b.dtype]}>::of(whole);")
