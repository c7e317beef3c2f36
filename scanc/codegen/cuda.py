"""The CUDA backend, printing: one block per program, states in registers, time staged through shared memory.

A block has lanes × split threads; the ``split`` neighbouring threads of a lane hold N / split of its states each, in registers
that unrolled loops index by constants. A tile of time goes through three phases (cuda_phases.py): a prologue and an epilogue, which
share out lanes and steps among all threads along whichever of the two axes is contiguous in memory, and between them the walk.

A two-direction plan (a backward) keeps the states at each tile's start in global memory. A tile is walked once more to have them at
each block of ``history`` steps, and then block by block: recomputed, its states kept, and walked the other way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from scanc.codegen.cuda_dialect import C_TYPES
from scanc.codegen.cuda_elements import ElementPrinter
from scanc.codegen.emit import Body, Source
from scanc.codegen.layout import LAUNCH, KernelSource, Mode, entry_name
from scanc.errors import ScheduleError, UnsupportedForm
from scanc.forms.plan import Plan, Region
from scanc.ir import Node
from scanc.schedule import RecurrentSchedule, Schedule, StepSchedule

SHARED_LIMIT = 227 << 10  # bytes; the most any architecture gives one block


@dataclass(frozen=True)
class CudaSource(KernelSource):
    """A kernel's source with what its launch needs.

    ``threads`` and ``shared`` bytes of a block; ``scratch`` floats of global memory for each ``tile`` of a program's time;
    ``narrow`` the numbers of the strides that the kernel takes as 32-bit integers.
    """

    threads: int = 0
    shared: int = 0
    tile: int = 1
    scratch: int = 0
    narrow: tuple[int, ...] = ()


def generate(plan: Plan, schedule: Schedule, state: int, mode: Mode, title: str) -> CudaSource:
    """The source of one kernel. ``state`` is the size of the state axis, 1 without one. Raises ScheduleError, UnsupportedForm."""
    if not isinstance(schedule, RecurrentSchedule | StepSchedule):
        raise UnsupportedForm(op=plan.graph.name, form=schedule.form, forms="recurrent, step",
                              reason="the CUDA backend has no skeleton for it")
    printer = _Printer(plan, schedule, state, mode, title)
    text = printer.print()
    shared = 4 * printer.shared_words
    if shared > SHARED_LIMIT:
        field = "history" if plan.recomputed else "tile"
        raise ScheduleError(field=field, value=getattr(schedule, field, 1),
                            limit=f"its block would need {shared} bytes of shared memory and no GPU gives more than {SHARED_LIMIT}; "
                                  "lower it, tile or lanes")
    made = printer.source("cuda", text)
    return CudaSource(**made.__dict__, threads=printer.threads, shared=shared, tile=printer.tile,
                      scratch=printer.checkpoint_words * printer.threads, narrow=printer.narrow)


class _Printer(ElementPrinter):
    # -- the kernel -------------------------------------------------------------------------------------------------------------

    def print(self) -> str:
        body = self._program().text()
        out, plan = Source(), self.plan
        out(f"// {self.title}", f"// {self.schedule}")
        for b in self.buffers:
            out(f"// {b.role:5} {b.name}: {b.dtype}[{' '.join((*b.leading, *b.axes))}]")
        out("", '#include "cuda.h"', "")
        out(f"constexpr int N = {self.N}, PER = {self.per};  // size of the state axis {plan.state or '(none)'}, a thread's share of it")
        out(f"constexpr int LANES = {self.lanes}, SPLIT = {self.split}, THREADS = {self.threads};")
        if not self.step:
            out(f"constexpr int TILE = {self.tile}, PITCH = {self.pitch}, GROUP = {self.group};")
            if self.block:
                out(f"constexpr int BLOCK = {self.block};  // steps walked at a time")
        self._arguments(out)
        bounds = f"THREADS, {self.blocks_per_multiprocessor}"
        out.open(f'extern "C" __global__ void __launch_bounds__({bounds}) run(const __grid_constant__ Arguments arguments) {{')
        self._locals(out, set(re.findall(r"\w+", body)))
        out(*body.rstrip("\n").split("\n")).close()
        return out.text()

    def _strides(self) -> list[tuple[str, bool]]:
        """Names of all strides in order, and whether 32 bits are enough for one: those that blocks multiply by small numbers."""
        inner = {self.plan.lane, self.plan.time, self.plan.state} - {""}
        return [(name, axis in inner) for b in self.buffers for name, axis in zip(self.stride_names(b), (*b.leading, *b.axes), strict=True)]

    @property
    def narrow(self) -> tuple[int, ...]:
        return tuple(i for i, (_, small) in enumerate(self._strides()) if small)

    def _arguments(self, out: Source) -> None:
        """The one argument, a struct passed by value: pointers, strides, sizes, launch numbers, eight bytes each."""
        out("").open("struct Arguments {")
        for b in self.buffers:
            out(f"{'const ' if b.role != 'store' else ''}{C_TYPES[b.dtype]}* {b.name}_ptr;")
        if self.plan.recomputed:
            out("float* scratch;")
        for b in self.buffers:
            if b.rank:
                out(f"index_t {', '.join(self.stride_names(b))};")
        out(f"index_t {', '.join(f'size_{a}' for a in self.plan.graph.order)};", f"index_t {', '.join(LAUNCH)};")
        out.close("};")("")

    def _locals(self, out: Source, used: set[str]) -> None:
        for b in self.buffers:
            if f"{b.name}_ptr" in used:
                out(f"{'const ' if b.role != 'store' else ''}{C_TYPES[b.dtype]}* const {b.name}_ptr = arguments.{b.name}_ptr;")
        if self.plan.recomputed:
            out("float* const scratch = arguments.scratch;")
        small = [name for name, narrow in self._strides() if narrow and name in used]
        wide = [name for name, narrow in self._strides() if not narrow and name in used]
        wide += [w for w in (*(f"size_{a}" for a in self.plan.graph.order), *LAUNCH) if w in used]
        for ctype, names, cast in (("int", small, "int(arguments.{})"), ("index_t", wide, "arguments.{}")):
            for start in range(0, len(names), 4):
                out(f"const {ctype} " + ", ".join(f"{n} = {cast.format(n)}" for n in names[start:start + 4]) + ";")
        if self._shared:
            out("extern __shared__ __align__(16) float shared[];")
        for name, (offset, _) in self._shared.items():
            out(f"float* const {name} = shared + {offset};")
        out("const int tid = threadIdx.x;")
        for name, value in (("lane", "tid / SPLIT"), ("own", "tid % SPLIT"), ("warp", "tid / Warp<THREADS>::WIDTH")):
            if name in used:
                out(f"const int {name} = {value};")

    def _program(self) -> Source:
        """Which lanes and which time are a block's; decoded anew for each lane tile, so that no register holds it in between."""
        plan = self.plan
        inner = self._block().text()
        used = set(re.findall(r"\w+", inner))
        out = Source()
        out.open(f"for (int walked = 0; walked < {self.walk}; ++walked) {{" if self.walk > 1 else "{")
        out("index_t rest = block_here();", "const index_t slot = rest % slots; rest /= slots;")
        groups = [("i_group", f"size_{plan.lane_group}")] if plan.lane_group else []
        for name, size in (*groups, *((f"i_{axis}", f"size_{axis}") for axis in reversed(plan.grid))):
            out(f"const index_t {name} = rest % {size}; rest /= {size};" if name in used else f"rest /= {size};")
        if "i_group" in used and not plan.lane_group:
            out("const index_t i_group = 0;")
        if plan.time:
            out("const index_t seg = rest;", f"const index_t t0 = seg * segment, t1 = smaller(size_{plan.time}, t0 + segment);")
        if self.walk > 1:
            out(f"const index_t block = slot * {self.walk} + walked;", "if (block >= blocks) break;")
        elif used & {"block", "first", "lanes", "here"}:
            out("const index_t block = slot;")
        if "first" in used:
            out(f"const index_t first = {'i_group * per_group + ' if plan.lane_group else ''}block * LANES;")
        if used & {"lanes", "here"}:
            out("const int lanes = int(smaller(LANES, per_group - block * LANES));")
        if "here" in used:
            out("const int here = smaller(lane, lanes - 1);  // threads past the last lane compute it again and store nothing")
        out(*inner.rstrip("\n").split("\n"))
        return out.close()

    def _block(self) -> Source:
        out, plan, walking = Source(), self.plan, Source()
        self._setup(out)
        if plan.recomputed:
            self._two_walks(walking)
        elif plan.time:
            self._one_walk(walking)
        else:
            self._steps_body(walking, list(plan.main_body), main=True)
        self._finish(walking)
        self._set_bases(out)  # printed after the loops, which say what they need, and run before them
        return out(*walking.text().rstrip("\n").split("\n"))

    # -- values without time ----------------------------------------------------------------------------------------------------

    def _setup(self, out: Source) -> None:
        plan = self.plan
        everything = list(dict.fromkeys((*plan.recompute_body, *plan.main_body)))
        lane = [n for n in everything if plan.region[n] == Region.LANE or n.op == "const"]
        state = [n for n in everything if plan.region[n] == Region.STATE and n.op != "const"]
        body = Body(self.dialect, self.names, self.known, self.declare)
        out(*body.run(lane, lambda n: self._load(n, self.known) if n.op in ("input", "index", "size") else None))
        outside = {a for n in everything if plan.region[n] >= Region.PRE for a in n.args} | {s.value for s in plan.stores}
        if state:
            exported = [n for n in state if n in outside]
            for node in exported:
                for name in self._parts(node):
                    out(f"{self.type_of(node)} {name}_of[PER];")

            def declare(node: Node, name: str, expression: str) -> str:
                line = self.declare(node, name, expression)
                return f"{line} {name}_of[k] = {name};" if node in exported and name in self._parts(node) else line

            inner = Body(self.dialect, self.names, self.known, declare, keep=frozenset(exported))
            lines = inner.run(state, lambda n: self._load(n, self.known, declare) if n.op in ("input", "index") else None)
            self._over_states(out, lines)
            for node in exported:
                self.known[node] = tuple(f"{name}_of[k]" for name in self._parts(node))
        self._lane_values(out)
        for scan in plan.scans:
            self._carry(out, scan)
        for store in plan.stores:
            if store.kind == "sum":
                for name in self.sum_names(store):
                    out(f"float {name.replace('[k]', '[PER]')} = {'{}' if self.stated(store.value) else '0.0f'};")

    def _lane_values(self, out: Source) -> None:
        """Values of lanes that prologue and epilogue read for other lanes than the thread's own."""
        if self.step:
            return
        if self.walk > 1:
            out("__syncthreads();  // the lanes before are done with what follows")
        users = [n for n in dict.fromkeys((*self.plan.recompute_body, *self.plan.main_body)) if self.plan.timed(n) and not self.stated(n)]
        for node in dict.fromkeys(a for n in users for a in n.args if not self.plan.timed(a) and self.laned(a)):
            names = tuple(f"{self.names.of(node)}_lanes{k}" for k in range(self._width(node)))
            for name, value in zip(names, self.known[node], strict=True):
                self.shared(name, self.lanes)
                out(f"if (own == 0) {name}[lane] = as_word({value});")
            self.of_lane[node] = names

    def _carry(self, out: Source, scan: Node) -> None:
        names, stated = self._carry_names(scan), self.stated(scan)
        for name in names:
            out(f"float {name.replace('[k]', '[PER]')};")
        if self.mode.entries:
            b = next(b for b in self.buffers if b.name == entry_name(self.plan, scan))
            values = [f"*({self._address(b, k, 'here', state=self._n)})" for k in range(len(names))]
            if stated and self.padded != self.N:
                values = [f"{self._n} < N ? {v} : 0.0f" for v in values]
        elif len(scan.args) == 3:
            values = [*self.known[scan.args[2]], "0.0f"][:len(names)]
        else:
            values = ["0.0f"] * len(names)
        lines = [f"{name} = {value};" for name, value in zip(names, values, strict=True)]
        if stated:
            self._over_states(out, lines)
        else:
            out(*lines)

    def _tile_header(self, out: Source, back: bool) -> None:
        out.open("for (index_t tile = tiles - 1; tile >= 0; --tile) {" if back else "for (index_t tile = 0; tile < tiles; ++tile) {")

    def _tile_start(self, out: Source) -> None:
        out("const index_t ts = t0 + tile * TILE;", "const int steps = int(smaller(TILE, t1 - ts));")

    def _one_walk(self, out: Source) -> None:
        plan = self.plan
        out("const index_t tiles = (t1 - t0 + TILE - 1) / TILE;")
        self._tile_header(out, plan.reverse)
        self._tile_start(out)
        out("__syncthreads();")
        self._prologue(out, self.crossing, [plan.main_body], late=True)
        out("__syncthreads();")
        if self.block:
            out("const int subs = (steps + BLOCK - 1) / BLOCK;")
            self._sub_header(out, plan.reverse)
            self._main_block(out)
            out.close()
        elif self.phases.walk(plan.main_body):
            self._step_loop(out, plan.main_body, plan.reverse, "steps")
        self._epilogue(out)
        out.close()

    @staticmethod
    def _sub_header(out: Source, back: bool) -> None:
        out.open("for (int sub = subs - 1; sub >= 0; --sub) {" if back else "for (int sub = 0; sub < subs; ++sub) {")
        out("const int base = sub * BLOCK;")

    def _step_loop(self, out: Source, body: tuple[Node, ...], back: bool, steps: str, base: str = "0", *, main: bool = True) -> None:
        out.open(f"for (int i = {steps} - 1; i >= {base}; --i) {{" if back else f"for (int i = {base}; i < {steps}; ++i) {{")
        self._steps_body(out, list(self.phases.walk(body)), main=main)
        out.close()

    def _two_walks(self, out: Source) -> None:
        """States at tiles' starts first; then tile by tile: states at blocks' starts, and block by block both walks."""
        plan = self.plan
        back = not plan.reverse  # the recomputed scans' own direction is the opposite of the main one
        recompute = self.phases.crossing(plan.recompute_body)
        carries = [(name, self.stated(s)) for s in plan.recomputed for name in self._carry_names(s)]
        for name, stated in carries:
            self._history_array(out, name.replace("[k]", "") + "_history", stated, self.history + 1)
        for name in (name for node in self.kept for name in self._parts(node)):
            self._history_array(out, f"{name}_kept", True, self.history)
        out("const index_t tiles = (t1 - t0 + TILE - 1) / TILE;")
        words = self.checkpoint_words
        out(f"float* const saved = scratch + index_t(block_here()) * ((segment + TILE - 1) / TILE) * {words * self.threads} + tid;")
        checkpoint = f"saved[(tile * {words} + {{word}}) * THREADS]"
        needs_last = any(s.kind == "final" and s.value in plan.recomputed for s in plan.stores)
        self._tile_header(out, back)
        self._copy_carries(out, carries, checkpoint, save=True)
        if not needs_last:
            out(f"if (tile == {'0' if back else 'tiles - 1'}) break;  // the last tile's end is nobody's start")
        self._tile_start(out)
        out("__syncthreads();")
        self._prologue(out, recompute, [plan.recompute_body], late=False)
        out("__syncthreads();")
        self._step_loop(out, plan.recompute_body, back, "steps", main=False)
        out.close()
        for store in plan.stores:
            if store.kind == "final" and store.value in plan.recomputed:
                self._store_final(out, store)
        self._tile_header(out, plan.reverse)
        self._tile_start(out)
        self._copy_carries(out, carries, checkpoint, save=False)
        out("__syncthreads();")
        self._prologue(out, self.crossing, [plan.recompute_body, plan.main_body], late=True)
        out("__syncthreads();", "const int subs = (steps + BLOCK - 1) / BLOCK;")
        if self.tile > self.history:
            starts = self.shared("block_starts", self.tile // self.history * words * self.threads)
            place = f"{starts}[(sub * {words} + {{word}}) * THREADS + tid]"
            self._sub_header(out, back)
            self._copy_carries(out, carries, place, save=True)
            out(f"if (sub == {'0' if back else 'subs - 1'}) break;")
            self._step_loop(out, plan.recompute_body, back, "smaller(base + BLOCK, steps)", "base", main=False)
            out.close()
        self._sub_header(out, plan.reverse)
        if self.tile > self.history:
            self._copy_carries(out, carries, place, save=False)
        self._block_loop(out, plan.recompute_body, back, main=False, record=True)
        self._main_block(out)
        out.close()
        self._epilogue(out)
        out.close()

    def _history_array(self, out: Source, name: str, stated: bool, steps: int) -> None:
        if self.history_in_registers:
            out(f"float {name}[{steps}]{'[PER]' if stated else ''};")
        else:
            self.shared(name, steps * (self.per if stated else 1) * self.threads)

    def _copy_carries(self, out: Source, carries: list[tuple[str, bool]], place: str, *, save: bool) -> None:
        word = 0
        for name, stated in carries:
            at = place.format(word=f"{word} + k" if stated and word else ("k" if stated else word))
            line = f"{at} = {name};" if save else f"{name} = {at};"
            if stated:
                self._over_states(out, [line])
            else:
                out(line)
            word += self.per if stated else 1

    def _block_loop(self, out: Source, body: tuple[Node, ...], back: bool, *, main: bool, record: bool = False) -> None:
        """One block of steps, its step in the block known when compiling where the history is in registers."""
        if self.plan.recomputed and self.history_in_registers:
            out("#pragma unroll")
        out.open("for (int s = BLOCK - 1; s >= 0; --s) {" if back else "for (int s = 0; s < BLOCK; ++s) {")
        out("const int i = base + s;").open("if (i < steps) {")
        self._steps_body(out, list(self.phases.walk(body)), main=main, record=record)
        out.close().close()

    def _main_block(self, out: Source) -> None:
        """A block of the main walk; then what its warps have summed over their lanes is added up and stored."""
        plan = self.plan
        self._block_loop(out, plan.main_body, plan.reverse, main=True)
        if self.rows:
            out("__syncthreads();")
        for store in self.rows:
            b, owner = self.of_store[store], self.owner(store.value, store.axes)
            for k in self.parts(b):
                out.open(f"if ({owner}) {{" if owner else "{")
                out(f"const bool along = {b.name}_{plan.time} == 1;", f"float* const from = {self._base(b, k)};")
                out.open("for (int e = thread_here(); e < BLOCK * N; e += THREADS) {")
                out("const int s = along ? e % BLOCK : e / N, n = along ? e / BLOCK : e % N;", "if (base + s >= steps) continue;")
                out("float total = 0.0f;")
                row = f"(((sub & 1) * {self.warps} + w) * BLOCK + s) * {self.padded} + n"
                out(f"for (int w = 0; w < {self.warps}; ++w) total += {self._rows_name(store, k)}[{row}];")
                out(f"float* const to = from + index_t(base + s) * {b.name}_{plan.time} + index_t(n) * {b.name}_{plan.state};")
                out(f"*to = total{self._before('to')};")
                out.close().close()
