"""The CUDA backend, printing: one block per program, states in registers, time staged through shared memory.

A block has lanes × split threads; the ``split`` neighbouring threads of a lane hold N / split of its states each, in registers
that unrolled loops index by constants. A tile of time goes through three phases (cuda_phases.py): a prologue and an epilogue, which
share out lanes and steps among all threads along whichever of the two axes is contiguous in memory, and between them the walk.

A two-direction plan (a backward) keeps the states at each tile's start in global memory. A tile is walked once more to have them at
each block of ``history`` steps, and then block by block: recomputed, its states kept, and walked the other way.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from scanc.codegen.common import KernelPrinter
from scanc.codegen.cuda_phases import FREE, Phases
from scanc.codegen.emit import Body, Dialect, Parts, Source
from scanc.codegen.layout import LAUNCH, Buffer, KernelSource, Mode, entry_name
from scanc.errors import ScheduleError, UnsupportedForm
from scanc.forms.plan import Plan, Region, Store
from scanc.ir import Node
from scanc.schedule import RecurrentSchedule, Schedule, StepSchedule

C_TYPES = {"float32": "float", "complex64": "float", "bfloat16": "bfloat16", "float16": "float16", "int32": "int", "int64": "long long", "bool": "bool"}
STATES_PER_THREAD = 64   # what registers hold beside the arithmetic
HISTORY_REGISTERS = 80   # floats of a thread's history that stay in registers; longer ones go to shared memory
SHARED_LIMIT = 227 << 10  # the most any architecture gives one block
ROW_BLOCK = 8            # steps whose sums over lanes are held at once in a plan of one direction


HEADER = Path(__file__).with_name("cuda.h")
LOCAL_WORDS = ("tid", "own", "lane", "warp", "along", "e", "j", "k", "s", "at", "count", "lane0", "i0", "sub", "subs", "base", "here", "shared", "scratch", "saved",
               "tile", "tiles", "total", "whole", "sums", "to", "w", "run", "arguments")


@functools.cache
def _header_functions() -> frozenset[str]:
    """Names a generated variable must not hide."""
    return frozenset(re.findall(r"SCANC_INLINE [\w ]+ (\w+)\(", HEADER.read_text())) | set(CudaDialect.calls.values())


class CudaDialect(Dialect):
    """Scalar expressions; conditions are bool."""

    calls = {"maximum": "maximum", "minimum": "minimum", "exp2": "exp2_", "expm1": "expm1f", "log2": "log2f", "log1p": "log1pf", "sqrt": "sqrtf",
             "rsqrt": "rsqrt_", "abs": "absolute", "sign": "sign", "tanh": "tanhf", "sin": "sinf", "cos": "cosf", "erf": "erff", "reciprocal": "reciprocal"}

    def literal(self, value: float | int | bool) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int):
            return str(value)
        if value != value:
            return "__int_as_float(0x7fffffff)"
        if value in (float("inf"), float("-inf")):
            return ("-" if value < 0 else "") + "__int_as_float(0x7f800000)"
        text = f"{value:.9g}"
        return (text if any(c in text for c in ".e") else text + ".0") + "f"

    def operation(self, op: str, args: list[str], node: Node) -> str:
        if op == "div":
            return f"quotient(float({args[0]}), float({args[1]}))"
        if op == "not":
            return f"!({args[0]})"
        if op == "where":
            return f"({args[0]} ? {args[1]} : {args[2]})"
        return super().operation(op, args, node)

    def cast(self, arg: str, node: Node) -> str:
        return f"{scalar_type(node)}({arg})"


def scalar_type(node: Node) -> str:
    return {"real": "float", "complex": "float", "int": "int", "bool": "bool"}[node.kind]


@dataclass(frozen=True)
class CudaSource(KernelSource):
    """A kernel's source with what its launch needs: threads and shared bytes of a block, floats of global memory of a program's tile."""

    threads: int = 0
    shared: int = 0
    tile: int = 1
    scratch: int = 0


def generate(plan: Plan, schedule: Schedule, state: int, mode: Mode, title: str) -> CudaSource:
    """The source of one kernel. ``state`` is the size of the state axis, 1 without one. Raises ScheduleError, UnsupportedForm."""
    if not isinstance(schedule, RecurrentSchedule | StepSchedule):
        raise UnsupportedForm(op=plan.graph.name, form=schedule.form, forms="recurrent, step", reason="the CUDA backend has no skeleton for it")
    printer = _Printer(plan, schedule, state, mode, title)
    text = printer.print()
    shared = 4 * printer.shared_words
    if shared > SHARED_LIMIT:
        raise ScheduleError(field="history" if plan.recomputed else "tile", value=getattr(schedule, "history" if plan.recomputed else "tile"),
                            limit=f"its block would need {shared} bytes of shared memory of the {SHARED_LIMIT} there are at most; lower it, tile or lanes")
    made = printer.source("cuda", text)
    return CudaSource(**made.__dict__, threads=printer.threads, shared=shared, tile=printer.tile, scratch=printer.checkpoint_words * printer.threads)


class _Printer(KernelPrinter):
    dialect = CudaDialect()

    def __init__(self, plan: Plan, schedule: RecurrentSchedule | StepSchedule, state: int, mode: Mode, title: str) -> None:
        super().__init__(plan, schedule, state, mode, title)
        words = {*LOCAL_WORDS, *_header_functions(), *(s for b in self.buffers for s in self.stride_names(b)), *(f"size_{a}" for a in plan.graph.order)}
        for word in sorted(words):
            self.names.fresh(word)
        self.lanes, self.split = schedule.lanes, schedule.split
        self.threads = self.lanes * self.split
        self.per = -(-self.N // self.split)
        self.tile, self.history, self.walk = 1, 1, 1
        if isinstance(schedule, RecurrentSchedule):
            self.tile, self.history, self.walk = (schedule.tile, schedule.history, schedule.walk) if not self.step else (1, 1, 1)
        self._check(schedule)
        self.group = 4 if self.tile % 4 == 0 and self.lanes % 4 == 0 else 1
        self.phases = Phases(plan)
        self.shared_words = 0
        self.tile_of: dict[Node, list[int]]   # a value's tiles, by number
        self.summed: dict[Store, list[int]]   # tiles of what is summed over time or lanes after the epilogue
        self.crossing: list[Node]
        self.left: list[Node]
        self.epilogue: list[Node]
        self.back: list[Node]
        self._shared: dict[str, tuple[int, int]] = {}
        self._assign()

    def _check(self, schedule: Schedule) -> None:
        def need(field: str, holds: bool, limit: str) -> None:
            if not holds:
                raise ScheduleError(field=field, value=getattr(schedule, field), limit=limit)

        need("lanes", self.threads <= 1024, f"a block of lanes × split has {self.threads} threads and may have 1024")
        need("split", self.per <= STATES_PER_THREAD,
             f"a thread would hold {self.per} of the {self.N} states and its registers have room for {STATES_PER_THREAD}; raise it")
        if self.plan.recomputed:
            need("history", self.tile % self.history == 0, f"it must divide tile, {self.tile}")

    # -- what is where --------------------------------------------------------------------------------------------------------------

    def _assign(self) -> None:
        """Gives every value that crosses between phases its tile."""
        plan, phases = self.plan, self.phases
        self.rows = [s for s in plan.stores if s.kind == "value" and s.lane and self.stated(s.value)] if not self.step else []
        if self.step:
            self.crossing, self.left, self.epilogue, self.back = [], [], [], []
            self.tile_of, self.summed = {}, {}
            return
        bodies = (plan.recompute_body, plan.main_body) if plan.recomputed else (plan.main_body,)
        self.crossing = phases.crossing(*bodies)
        self.back = phases.worth_keeping([n for n in self.crossing if self.laned(n)])
        self.epilogue = phases.epilogue([*self.back, *(n for n in self.crossing if not self.laned(n))])
        self.left = phases.left(self.epilogue)
        # Tiles over lanes and steps: values crossing in, then values left, which take the place of those not read again.
        self.tile_of = {}
        count, free = 0, []
        for node in (n for n in self.crossing if self.laned(n)):
            self.tile_of[node] = list(range(count, count + self._width(node)))
            count += self._width(node)
            if node not in self.back:
                free += self.tile_of[node]
        for node in (n for n in self.left if self.laned(n)):
            own = []
            for _ in range(self._width(node)):
                own.append(free.pop(0) if free else count)
                count = max(count, own[-1] + 1)
            self.tile_of[node] = own
        # The epilogue puts what it sums over time or lanes into tiles it has read by then.
        self.summed = {}
        used = 0
        for store in (s for s in phases.late_stores if self.laned(s.value) and (s.kind == "sum" or s.lane)):
            self.summed[store] = list(range(used, used + self._width(store.value)))
            used += self._width(store.value)
        for w in range(max(count, used)):
            self.shared(f"tile{w}", self.tile * self.pitch)

    @staticmethod
    def _width(node: Node) -> int:
        return 2 if node.kind == "complex" else 1

    def shared(self, name: str, words: int) -> str:
        """A named array of shared memory, aligned to 16 bytes."""
        if name not in self._shared:
            self._shared[name] = (self.shared_words, words)
            self.shared_words += -(-words // 4) * 4
        return name

    @property
    def pitch(self) -> int:
        return self.lanes + 1

    @property
    def padded(self) -> int:
        return self.per * self.split

    @property
    def checkpoint_words(self) -> int:
        return sum((self.per if self.stated(s) else 1) * self._width(s) for s in self.plan.recomputed)

    @property
    def history_in_registers(self) -> bool:
        words = self.checkpoint_words * (self.history + 1) + self.per * self.history * sum(self._width(n) for n in self.kept)
        return words <= HISTORY_REGISTERS

    # -- the kernel -----------------------------------------------------------------------------------------------------------------

    def type_of(self, node: Node) -> str:
        return scalar_type(node)

    def declare(self, node: Node, name: str, expression: str) -> str:
        return f"const {self.type_of(node)} {name} = {expression};"

    def print(self) -> str:
        body = self._program().text()
        out, plan = Source(), self.plan
        out(f"// {self.title}", f"// {self.schedule}")
        for b in self.buffers:
            out(f"// {b.role:5} {b.name}: {b.dtype}[{' '.join((*b.leading, *b.axes))}]")
        out("", '#include "cuda.h"', "")
        out(f"constexpr int N = {self.N}, PER = {self.per};  // size of the state axis {plan.state or '(none)'}, and a thread's share of it")
        out(f"constexpr int LANES = {self.lanes}, SPLIT = {self.split}, THREADS = {self.threads};")
        if not self.step:
            out(f"constexpr int TILE = {self.tile}, PITCH = {self.pitch}, GROUP = {self.group};")
        if self.block and not self.step:
            out(f"constexpr int BLOCK = {self.block};  // steps walked at a time")
        out("").open("struct Arguments {")
        words: list[str] = []
        for b in self.buffers:
            out(f"{'const ' if b.role != 'store' else ''}{C_TYPES[b.dtype]}* {b.name}_ptr;")
        if plan.recomputed:
            out("float* scratch;")
        sizes = [f"size_{a}" for a in plan.graph.order]
        for b in self.buffers:
            words += self.stride_names(b)
        for line in ([*words], sizes, [*LAUNCH]):
            if line:
                out(f"index_t {', '.join(line)};")
        out.close("};").__call__("")
        out.open('extern "C" __global__ void __launch_bounds__(THREADS) run(const __grid_constant__ Arguments arguments) {')
        used = set(re.findall(r"\w+", body))
        for b in self.buffers:
            if f"{b.name}_ptr" in used:
                out(f"{'const ' if b.role != 'store' else ''}{C_TYPES[b.dtype]}* const {b.name}_ptr = arguments.{b.name}_ptr;")
        if plan.recomputed:
            out("float* const scratch = arguments.scratch;")
        numbers = [w for w in (*words, *sizes, *LAUNCH) if w in used]
        if numbers:
            out("const index_t " + ", ".join(f"{w} = arguments.{w}" for w in numbers) + ";")
        if self._shared:
            out("extern __shared__ __align__(16) float shared[];")
            for name, (offset, _) in self._shared.items():
                out(f"float* const {name} = shared + {offset};")
        out("const int tid = threadIdx.x;")
        for name, value in (("lane", "tid / SPLIT"), ("own", "tid % SPLIT"), ("warp", "tid / Warp<THREADS>::WIDTH")):
            if name in used:
                out(f"const int {name} = {value};")
        out(*body.rstrip("\n").split("\n"))
        out.close()
        return out.text()

    def _program(self) -> Source:
        plan = self.plan
        inner = self._block().text()
        used = set(re.findall(r"\w+", inner))
        out = Source()
        out("index_t rest = blockIdx.x;", "const index_t slot = rest % slots; rest /= slots;")
        groups = f"size_{plan.lane_group}" if plan.lane_group else "1"
        wanted = [("i_group", groups)] if plan.lane_group else []
        wanted += [(f"i_{axis}", f"size_{axis}") for axis in reversed(plan.grid)]
        for name, size in wanted:
            out(f"const index_t {name} = rest % {size}; rest /= {size};" if name in used else f"rest /= {size};")
        if "seg" in used or plan.time:
            out("const index_t seg = rest;")
        if "i_group" in used and not plan.lane_group:
            out("const index_t i_group = 0;")
        if plan.time:
            out(f"const index_t t0 = seg * segment, t1 = smaller(size_{plan.time}, t0 + segment);")
        header = "for (index_t block = slot * {0}; block < smaller(blocks, (slot + 1) * {0}); ++block) {{".format(self.walk)
        out.open(header if self.walk > 1 else "{")
        if self.walk == 1 and "block" in used:
            out("const index_t block = slot;")
        if "first" in used:
            out(f"const index_t first = {'i_group * per_group + ' if plan.lane_group else ''}{'block' if self.walk > 1 or 'block' in used else 'slot'} * LANES;")
        if "lanes" in used or "here" in used:
            out(f"const int lanes = int(smaller(LANES, per_group - {'block' if self.walk > 1 or 'block' in used else 'slot'} * LANES));")
        if "here" in used:
            out("const int here = smaller(lane, lanes - 1);  // threads past the last lane compute it again and store nothing")
        out(*inner.rstrip("\n").split("\n"))
        return out.close()

    def _block(self) -> Source:
        out, plan = Source(), self.plan
        self._setup(out)
        if plan.recomputed:
            self._two_walks(out)
        elif plan.time:
            self._one_walk(out)
        else:
            self._steps_body(out, list(plan.main_body), main=True)
        self._finish(out)
        return out

    # -- values without time ----------------------------------------------------------------------------------------------------------

    def _setup(self, out: Source) -> None:
        plan = self.plan
        everything = list(dict.fromkeys((*plan.recompute_body, *plan.main_body)))
        lane = [n for n in everything if plan.region[n] == Region.LANE or n.op == "const"]
        state = [n for n in everything if plan.region[n] == Region.STATE and n.op != "const"]
        body = Body(self.dialect, self.names, self.known, self.declare)
        out(*body.run(lane, lambda n: self._load(n, self.known) if n.op in ("input", "index", "size") else None))
        outside = {a for n in everything if plan.region[n] in (Region.SCAN, Region.PRE, Region.POST) for a in n.args} | {s.value for s in plan.stores}
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

    def _parts(self, node: Node) -> Parts:
        """The names of a node's components: the node's own name where there is one."""
        return self.names.parts(node) if node.kind == "complex" else (self.names.of(node),)

    def _over_states(self, out: Source, lines: list[str]) -> None:
        if lines:
            out("#pragma unroll").open("for (int k = 0; k < PER; ++k) {")(*lines).close()

    def _lane_values(self, out: Source) -> None:
        """Values of lanes that prologue and epilogue read for other lanes than the thread's own."""
        users = [n for n in (*self.plan.recompute_body, *self.plan.main_body) if self.plan.timed(n) and not self.stated(n)]
        self.of_lane: dict[Node, Parts] = {}
        if self.step:
            return
        wanted = [a for n in dict.fromkeys(users) for a in n.args]
        read = [n for n in dict.fromkeys(wanted) if not self.plan.timed(n) and self.laned(n)]
        if read and self.walk > 1:
            out("__syncthreads();  // the tiles before are done with these")
        for node in read:
            names = tuple(f"{self.names.of(node)}_lanes{k}" for k in range(self._width(node)))
            for name, value in zip(names, self.known[node], strict=True):
                self.shared(name, self.lanes)
                out(f"if (own == 0) {name}[lane] = as_word({value});")
            self.of_lane[node] = names

    def _n(self) -> str:
        return "k" if self.split == 1 else "(own * PER + k)"

    def _load(self, node: Node, known: dict[Node, Parts], declare: object = None, *, t: str = "") -> list[str]:
        """Reads a value straight from memory, for the thread's own lane (and state k)."""
        make = declare if callable(declare) else self.declare
        if node.op == "size":
            known[node] = (f"int(size_{node.attrs['axis']})",)
            return []
        if node.op == "index":
            known[node] = (self._position(node.attrs["axis"], "lane", t),)
            return []
        b, stated = self.of_input[node], self.stated(node)
        parts, lines = self._parts(node), []
        for k, name in enumerate(parts):
            value = f"widen(*({self._address(b, k, 'here', state=self._n(), time=t)}))"
            if stated and self.padded != self.N:
                value = f"{self._n()} < N ? {value} : {self.type_of(node)}(0)"
            lines.append(make(node, name, value))
        known[node] = parts
        return lines

    def _address(self, b: Buffer, part: int, lane: str, *, state: str = "", time: str = "") -> str:
        where = {"state": state} if self.plan.state in (*b.axes,) and self.plan.state else {}
        at = self.pointer(b, part, time=time, **where)
        return at + (f" + {lane} * {b.name}_{self.plan.lane}" if self.plan.lane and self.plan.lane in b.axes and lane != "0" else "")

    def _position(self, axis: str, lane: str, t: str) -> str:
        if axis == self.plan.lane:
            return f"(int(first) + {lane})"
        if axis == self.plan.state:
            return self._n()
        if axis == self.plan.time:
            return t
        return f"int(i_{axis})"

    def _carry_names(self, scan: Node) -> Parts:
        return self.names.parts(scan, "_carry[k]" if self.stated(scan) else "_carry")

    def sum_names(self, store: Store) -> Parts:
        return tuple(n.replace("[n]", "[k]") for n in super().sum_names(store))

    def _carry(self, out: Source, scan: Node) -> None:
        names, stated = self._carry_names(scan), self.stated(scan)
        for name in names:
            out(f"float {name.replace('[k]', '[PER]')};")
        if self.mode.entries:
            b = next(b for b in self.buffers if b.name == entry_name(self.plan, scan))
            values = [f"*({self._address(b, k, 'here', state=self._n())})" for k in range(len(names))]
            if stated and self.padded != self.N:
                values = [f"{self._n()} < N ? {v} : 0.0f" for v in values]
        elif len(scan.args) == 3:
            values = [*self.known[scan.args[2]], "0.0f"][:len(names)]
        else:
            values = ["0.0f"] * len(names)
        lines = [f"{name} = {value};" for name, value in zip(names, values, strict=True)]
        if stated:
            self._over_states(out, lines)
        else:
            out(*lines)

    # -- walking time -----------------------------------------------------------------------------------------------------------------

    @property
    def block(self) -> int:
        """Steps walked between two sums of rows over the block, or of one piece of history; 0 where the tile is walked in one go."""
        if self.plan.recomputed:
            return self.history
        return min(ROW_BLOCK, self.tile) if self.rows else 0

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
        for scan, node_names in ((s, self._carry_names(s)) for s in plan.recomputed):
            for name in node_names:
                self._history_array(out, name.replace("[k]", "") + "_history", self.stated(scan), self.history + 1)
        for node in self.kept:
            for name in self._parts(node):
                self._history_array(out, f"{name}_kept", True, self.history)
        out("const index_t tiles = (t1 - t0 + TILE - 1) / TILE;")
        out(f"float* const saved = scratch + blockIdx.x * ((segment + TILE - 1) / TILE) * {self.checkpoint_words * self.threads} + tid;")
        needs_last = any(s.kind == "final" and s.value in plan.recomputed for s in plan.stores)
        self._tile_header(out, back)
        self._copy_carries(out, carries, f"saved[(tile * {self.checkpoint_words} + {{word}}) * THREADS]", save=True)
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
        self._copy_carries(out, carries, f"saved[(tile * {self.checkpoint_words} + {{word}}) * THREADS]", save=False)
        out("__syncthreads();")
        self._prologue(out, self.crossing, [plan.recompute_body, plan.main_body], late=True)
        out("__syncthreads();", "const int subs = (steps + BLOCK - 1) / BLOCK;")
        if self.tile > self.history:
            starts = self.shared("block_starts", self.tile // self.history * self.checkpoint_words * self.threads)
            place = f"{starts}[(sub * {self.checkpoint_words} + {{word}}) * THREADS + tid]"
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

    def _history(self, name: str, stated: bool, step: str) -> str:
        """An entry of a history array: of step ``step`` of the block (and state k)."""
        if self.history_in_registers:
            return f"{name}[{step}]{'[k]' if stated else ''}"
        return f"{name}[({f'({step}) * PER + k' if stated else step}) * THREADS + tid]"

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
        plan = self.plan
        self._block_loop(out, plan.main_body, plan.reverse, main=True)
        if not self.rows:
            return
        out("__syncthreads();")
        for store in self.rows:
            b = self.of_store[store]
            owner = self.owner(store.value, store.axes)
            for k in self.parts(b):
                out.open(f"if ({owner}) {{" if owner else "{")
                out(f"const bool along = {b.name}_{plan.time} == 1;")
                out.open("for (int e = tid; e < BLOCK * N; e += THREADS) {")
                out("const int s = along ? e % BLOCK : e / N, n = along ? e / BLOCK : e % N;", "if (base + s >= steps) continue;", "float total = 0.0f;")
                out(f"for (int w = 0; w < {self.warps}; ++w) total += {self._rows_name(store, k)}[(((sub & 1) * {self.warps} + w) * BLOCK + s) * {self.padded} + n];")
                out(f"float* const to = {self.pointer(b, k, time='(ts + base + s)', state='n')};")
                out(f"*to = block > slot * {self.walk} ? *to + total : total;" if self.walk > 1 else "*to = total;")
                out.close().close()

    @property
    def warps(self) -> int:
        return max(1, self.threads // 32)

    def _rows_name(self, store: Store, part: int) -> str:
        return self.shared(f"{store.name}_rows{part}", 2 * self.warps * self.block * self.padded)

    # -- prologue and epilogue ----------------------------------------------------------------------------------------------------------

    def _word(self, node: Node, text: str) -> str:
        """A value of a node's kind from the float that carries its bits."""
        return {"int": f"__float_as_int({text})", "bool": f"(__float_as_int({text}) != 0)"}.get(node.kind, text)

    def _tile_words(self, node: Node) -> Parts:
        return tuple(self._word(node, f"tile{w}[at]") for w in self.tile_of[node])

    def _step_names(self, node: Node) -> Parts:
        """Where a value that no lane differs in stands, one float a step."""
        return tuple(self.shared(f"{self.names.of(node)}_steps{k}", self.tile) for k in range(self._width(node)))

    def _around(self, nodes: list[Node], lane: str) -> dict[Node, Parts]:
        """Names that constants and lanes' values have in prologue and epilogue."""
        known = {n: v for n, v in self.known.items() if n.op == "const" or not (self.laned(n) or self.stated(n))}
        for node, names in self.of_lane.items():
            known[node] = tuple(self._word(node, f"{name}[{lane}]") for name in names)
        return known

    def _cone(self, roots: list[Node], stop: set[Node]) -> list[Node]:
        """What ``roots`` need at each step, down to nodes of ``stop``, those included."""
        found: dict[Node, None] = {}
        stack = list(roots)
        while stack:
            node = stack.pop()
            if node in found or not self.plan.timed(node):
                continue
            found[node] = None
            stack += [] if node in stop else node.args
        return [n for n in dict.fromkeys((*self.plan.recompute_body, *self.plan.main_body)) if n in found]

    def _prologue(self, out: Source, crossing: list[Node], bodies: list[tuple[Node, ...]], *, late: bool) -> None:
        """Fills the tiles that the walks of ``bodies`` read, and with ``late`` those the epilogue reads."""
        for node in dict.fromkeys(n for body in bodies for n in self.phases.walk(body)):
            if node.op in ("input", "shift") and self.stated(node) and not self.laned(node):
                self._stage_rows(out, node)
        laned_roots = [n for n in crossing if self.laned(n)]
        cone = self._cone(laned_roots, set())
        laned = [n for n in cone if self.laned(n)]
        users = [*laned, *(n for n in self.epilogue if self.laned(n))] if late else laned
        wanted = [n for n in crossing if not self.laned(n)]
        wanted += [a for n in users for a in n.args if self._plain_step(a)]
        if late:
            wanted += [a for n in self.epilogue if not self.laned(n) and n in self.phases.behind for a in n.args if self._plain_step(a)]
            wanted += [s.value for s in self.phases.late_stores if self._plain_step(s.value)]
        wanted = list(dict.fromkeys(wanted))
        if wanted:
            self._steps_loop(out, [n for n in self._cone(wanted, set()) if not self.laned(n)], wanted)
            if any(a in wanted for n in laned for a in n.args):
                out("__syncthreads();")
        if laned:
            self._group_loop(out, laned, self._given_steps(laned), {n: self.tile_of[n] for n in laned_roots}, [])

    def _given_steps(self, users: list[Node]) -> dict[Node, Parts]:
        """The names that values no lane differs in have where values of lanes are made."""
        wanted = [a for n in users for a in n.args if self.plan.timed(a) and not self.laned(a) and a.op not in FREE]
        return {n: tuple(self._word(n, f"{w}[i0 + (along ? j : 0)]") for w in self._step_names(n)) for n in dict.fromkeys(wanted)}

    def _plain_step(self, node: Node) -> bool:
        """An early value that is the same for all lanes: computed once a step, kept for all who read it."""
        return self.phases.early(node) and not self.laned(node) and node.op not in FREE

    def _stage_rows(self, out: Source, node: Node) -> None:
        source, by = (node.args[0], node.attrs["by"]) if node.op == "shift" else (node, 0)
        b, time = self.of_input[source], f"size_{self.plan.time}"
        fill = self.dialect.literal(float(node.attrs["fill"]) if by and node.kind in ("real", "complex") else (node.attrs["fill"] if by else 0))
        fill = f"{self.type_of(node)}({fill})"
        lo, hi = (f"{by} - ts", f"{time} + {by} - ts") if by else ("0", "steps")
        for k, name in enumerate(self._row_names(node)):
            at = self.pointer(b, k, time=f"(ts - {by})" if by else "ts", state="0")
            out(f"stage_rows<TILE, {self.padded}, THREADS>({name}, {at}, {b.name}_{self.plan.state}, {b.name}_{self.plan.time}, N, steps, {lo}, {hi}, {fill});")

    def _row_names(self, node: Node) -> Parts:
        return tuple(self.shared(f"{name}_tile", self.tile * self.padded) for name in self._parts(node))

    def _steps_loop(self, out: Source, nodes: list[Node], exports: list[Node]) -> None:
        """Values no lane differs in: one thread a step. ``exports`` are left in shared memory."""
        known = self._around(nodes, "0")
        out.open("for (int i = tid; i < steps; i += THREADS) {")

        def special(node: Node) -> list[str] | None:
            if node in known:
                return []
            if node.op in ("index", "size"):
                return self._load(node, known, t="int(ts + i)")
            if node.op not in ("input", "shift"):
                return None
            source, by = (node.args[0], node.attrs["by"]) if node.op == "shift" else (node, 0)
            b, lines = self.of_input[source], []
            for k, name in enumerate(self._parts(node)):
                value = f"widen(fetch<true>({self.pointer(b, k, time=f'(ts + i - {by})' if by else '(ts + i)')}))"
                if by:
                    fill = self.dialect.literal(node.attrs["fill"])
                    value = f"ts + i >= {by} && ts + i - {by} < size_{self.plan.time} ? {value} : {self.type_of(node)}({fill})"
                lines.append(self.declare(node, name, value))
            known[node] = self._parts(node)
            return lines

        left = [n for n in self.left if not self.laned(n)]
        for node in left:
            known[node] = tuple(self._word(node, f"{w}[i]") for w in self._step_names(node))
        for node in (n for n in self.plan.main_body if self._plain_step(n) and n not in nodes):
            if f"{self.names.of(node)}_steps0" in self._shared:
                known[node] = tuple(self._word(node, f"{w}[i]") for w in self._step_names(node))
        nodes = [n for n in nodes if not (n.op == "input" and all(u.op == "shift" for u in nodes if n in u.args) and n not in exports)]
        body = Body(self.dialect, self.names, known, self.declare, keep=frozenset(exports))
        out(*body.run(nodes, special))
        for node in exports:
            for name, value in zip(self._step_names(node), known[node], strict=True):
                out(f"{name}[i] = as_word({value});")
        out.close()

    def _group_loop(self, out: Source, nodes: list[Node], given: dict[Node, Parts], to_tiles: dict[Node, list[int]], stores: list[Store]) -> None:
        """Values of lanes and steps: each thread makes groups of neighbours along the contiguous axis.

        ``to_tiles`` are left in tiles, ``stores`` written to memory.
        """
        plan = self.plan
        lane, time = plan.lane, plan.time
        loads = [n for n in nodes if n.op in ("input", "shift") and n not in given]
        loads = [n for n in loads if n.op == "shift" or n in to_tiles or any(n in u.args and u.op != "shift" for u in nodes)
                 or any(n is s.value for s in stores)]
        touched = [self.of_input[n.args[0] if n.op == "shift" else n] for n in loads] + [self.of_store[s] for s in stores]
        touched = [b for b in touched if time in b.axes and lane in b.axes]
        out.open("{")
        by_time, by_lane = (" + ".join(f"({b.name}_{a} == 1)" for b in touched) or "0" for a in (time, lane))
        out(f"const bool along = {by_time} >= {by_lane};  // groups run along time, or along lanes")
        out.open("for (int e = tid; e < LANES * TILE / GROUP; e += THREADS) {")
        out("const int lane0 = along ? e / TILE * GROUP + e % GROUP : e % LANES / GROUP * GROUP;")
        out("const int i0 = along ? e % TILE / GROUP * GROUP : e / LANES * GROUP + e % GROUP;")
        out("if (lane0 >= lanes || i0 >= steps) continue;", "const int count = along ? steps - i0 : lanes - lane0;")
        known = self._around(nodes, "lane0 + (along ? 0 : j)")
        known |= given
        for node in loads:
            source, by = (node.args[0], node.attrs["by"]) if node.op == "shift" else (node, 0)
            b = self.of_input[source]
            stride = f"along ? {b.name}_{time} : {b.name}_{lane}"
            for k, name in enumerate(self._parts(node)):
                at = self._address(b, k, "lane0", time=f"(ts + i0 - {by})" if by else "(ts + i0)")
                out(f"{self.type_of(node)} {name}_in[GROUP];")
                if by:
                    fill = f"{self.type_of(node)}({self.dialect.literal(node.attrs['fill'])})"
                    out(f"load_shifted({name}_in, {at}, {stride}, count, ts + i0 - {by}, along, size_{time}, {fill});")
                else:
                    out(f"load_group<true>({name}_in, {at}, {stride}, count);")
            known[node] = tuple(f"{name}_in[j]" for name in self._parts(node))
        for store in stores:
            for k in self.parts(self.of_store[store]):
                out(f"{self.type_of(store.value)} {store.name}_out{k}[GROUP];")
        out("#pragma unroll").open("for (int j = 0; j < GROUP; ++j) {")

        def special(node: Node) -> list[str] | None:
            if node in known:
                return []
            if node.op == "index":
                known[node] = (self._position(node.attrs["axis"], "(lane0 + (along ? 0 : j))", "int(ts + i0 + (along ? j : 0))"),)
                return []
            return self._load(node, known) if node.op == "size" else None

        body = Body(self.dialect, self.names, known, self.declare, keep=frozenset((*to_tiles, *(s.value for s in stores))))
        free = [a for n in nodes for a in n.args if a.op in FREE]
        lines = body.run([*dict.fromkeys(free), *(n for n in nodes if n in known or n.op not in ("input", "shift"))], special)
        lines += [f"tile{w}[at] = as_word({value});" for node, words in to_tiles.items() for w, value in zip(words, known[node], strict=True)]
        for store in stores:
            lines += [f"{store.name}_out{k}[j] = {value};" for k, value in enumerate(known[store.value])]
        lines += [f"tile{w}[at] = {value};" for store, words in self.summed.items() if not to_tiles for w, value in zip(words, known[store.value], strict=True)]
        if any("[at]" in line for line in lines):
            out("const int at = i0 * PITCH + lane0 + j * (along ? PITCH : 1);")
        out(*lines).close()
        for store in stores:
            b = self.of_store[store]
            owner = self.owner(store.value, store.axes)
            for k in self.parts(b):
                at = self._address(b, k, "lane0", time="(ts + i0)")
                out(f"{f'if ({owner}) ' if owner else ''}store_group({at}, along ? {b.name}_{time} : {b.name}_{lane}, {store.name}_out{k}, count);")
        out.close().close()

    def _epilogue(self, out: Source) -> None:
        phases = self.phases
        stores = phases.late_stores
        if not stores:
            return
        out("__syncthreads();")
        late = [n for n in self.epilogue if not self.laned(n) and n in phases.behind and n not in self.left]
        if late:
            users = {a for n in self.epilogue if self.laned(n) for a in n.args} | {s.value for s in stores}
            self._steps_loop(out, late, [n for n in late if n in users])
        laned = [n for n in self.epilogue if self.laned(n)]
        direct = [s for s in stores if s.kind == "value" and self.laned(s.value) and not s.lane]
        if laned:
            if any(a in late for n in laned for a in n.args):
                out("__syncthreads();")
            given = {n: self._tile_words(n) for n in (*self.left, *self.back) if self.laned(n)}
            self._group_loop(out, laned, given | self._given_steps(laned), {}, direct)
        self._late_sums(out)
        for store in stores:
            if self.laned(store.value):
                continue
            b, names = self.of_store[store], self._step_names(store.value)
            for k, (name, total) in enumerate(zip(names, self.sum_names(store), strict=True)):
                if store.kind == "sum":
                    out(f"for (int i = 0; i < steps; ++i) {total} += {name}[i];")
                    continue
                owner = self.owner(store.value, store.axes)
                value = f"Narrow<{C_TYPES[b.dtype]}>::of({self._word(store.value, f'{name}[i]')})"
                out(f"{f'if ({owner}) ' if owner else ''}for (int i = tid; i < steps; i += THREADS) *({self.pointer(b, k, time='(ts + i)')}) = {value};")

    def _late_sums(self, out: Source) -> None:
        """Sums over time, and over lanes, of what the epilogue has left in tiles."""
        if not self.summed:
            return
        out("__syncthreads();")
        lane_sums = []
        for store, tiles in self.summed.items():
            if store.kind == "sum":
                for total, w in zip(self.sum_names(store), tiles, strict=True):
                    out(f"for (int i = own; i < steps; i += SPLIT) {total} += tile{w}[i * PITCH + lane];")
                continue
            lane_sums.append(store)
            for k, w in enumerate(tiles):
                name = self.shared(f"{store.name}_lane_sums{k}", self.tile)
                out.open(f"for (int i = warp; i < steps; i += {self.warps}) {{")
                out("float total = 0.0f;", f"for (int l = tid % Warp<THREADS>::WIDTH; l < lanes; l += Warp<THREADS>::WIDTH) total += tile{w}[i * PITCH + l];")
                out("total = warp_sum<THREADS>(total);", f"if (tid % Warp<THREADS>::WIDTH == 0) {name}[i] = total;").close()
        if not lane_sums:
            return
        out("__syncthreads();")
        for store in lane_sums:
            b, owner = self.of_store[store], self.owner(store.value, store.axes)
            for k in self.parts(b):
                out.open(f"{f'if ({owner}) ' if owner else ''}for (int i = tid; i < steps; i += THREADS) {{")
                out(f"float* const to = {self.pointer(b, k, time='(ts + i)')};")
                value = f"{store.name}_lane_sums{k}[i]"
                out(f"*to = block > slot * {self.walk} ? *to + {value} : {value};" if self.walk > 1 else f"*to = {value};").close()

    # -- one step -------------------------------------------------------------------------------------------------------------------------

    def _steps_body(self, out: Source, nodes: list[Node], *, main: bool, record: bool = False) -> None:
        """The walk's work at step i: per lane, per state, per lane again."""
        plan = self.plan
        stores = [s for s in plan.stores if s.kind != "final" and (self.step or self.stated(s.value))] if main else []
        known = dict(self.known)
        scans = [s for s in (plan.main if main else plan.recomputed) if s in nodes]
        tiled = [n for n in nodes if n in self.tile_of or n in self.left] if main else []
        reads = [a for a in dict.fromkeys(a for n in nodes for a in n.args) if a in self.crossing and a not in nodes]
        if any(self.laned(n) for n in (*reads, *tiled)):
            out("const int at = i * PITCH + lane;")
        for node in reads:
            words = self._tile_words(node) if self.laned(node) else tuple(self._word(node, f"{w}[i]") for w in self._step_names(node))
            for name, word in zip(self._parts(node), words, strict=True):
                out(self.declare(node, name, word))
            known[node] = self._parts(node)
        loaded = [n for n in nodes if n.op in ("input", "shift") and self.stated(n)
                  and (n.op == "shift" or any(n in u.args and u.op != "shift" for u in nodes) or any(n is s.value for s in stores))]
        for node in loaded:
            self._load_states(out, node, known)

        def special(node: Node) -> list[str] | None:
            if node in known:
                return []
            if node.op in ("index", "size") or (node.op == "input" and self.step):
                return self._load(node, known, t="int(ts + i)")
            if node.op == "scan":
                return self._walk_scan(node, known, main, record)
            if node.op == "prior":
                return self._prior(node, known, main)
            if node.op == "sum":
                operands = known[node.args[0]]
                known[node] = self._parts(node)
                mask = "" if self.padded == self.N else f"{self._n()} < N ? "
                return [f"{name} += {f'{mask}{x} : 0.0f' if mask else x};" for name, x in zip(known[node], operands, strict=True)]
            if node in self.kept and main:
                known[node] = tuple(self._history(f"{p}_kept", True, "s") for p in self._parts(node))
                return []
            return None

        free = [a for n in nodes for a in n.args if a.op in ("index", "size") and a not in nodes]
        nodes = [*dict.fromkeys(n for n in free if plan.timed(n) or self.step), *nodes]
        nodes = [n for n in nodes if n.op != "input" or n in loaded or self.step]

        def region(which: Region) -> list[Node]:
            return [n for n in nodes if plan.region[n] == which and n.op != "sum" and n not in known]

        keep = self.kept if record else frozenset()
        body = Body(self.dialect, self.names, known, self.declare, keep=keep | {s.value for s in stores})
        out(*body.run(region(Region.PRE), special))
        sums = [n for n in nodes if n.op == "sum"]
        for s in sums:
            out(*(f"float {name} = 0.0f;" for name in self._parts(s)))
        for s in scans:
            if plan.region[s] == Region.PRE:
                out(*self._advance(s, known, main, record))
        inside = [n for n in nodes if n not in known and (plan.region[n] == Region.SCAN or n.op == "sum")]
        for s in (s for s in stores if self.stated(s.value) and s.kind == "value"):
            out(*(f"float {s.name}_out{k}[PER];" for k in self.parts(self.of_store[s])))
        if inside or any(self.stated(s.value) for s in stores):
            lines = body.run(inside, special)
            if record:
                lines += [f"{self._history(f'{name}_kept', True, 's')} = {value};" for node in self.kept
                          for name, value in zip(self._parts(node), known[node], strict=True)]
            lines += self._state_results(known, stores)
            for s in scans:
                if plan.region[s] == Region.SCAN:
                    lines += self._advance(s, known, main, record)
            self._over_states(out, lines)
        if self.split > 1:
            for s in sums:
                out(*(f"{name} = split_sum<SPLIT, THREADS>({name});" for name in self._parts(s)))
        self._state_stores(out, stores)
        out(*body.run(region(Region.POST), special))
        for s in scans:
            if plan.region[s] == Region.POST:
                out(*self._advance(s, known, main, record))
        if self.step:
            for store in (s for s in stores if not self.stated(s.value)):
                self._store_direct(out, store, known[store.value])
        self._leave(out, [n for n in nodes if n in self.left] if main else [], known)

    def _leave(self, out: Source, nodes: list[Node], known: dict[Node, Parts]) -> None:
        """Walked values into tiles; the threads of a lane take turns."""
        if nodes and self.split > 1:
            out("__syncwarp(Warp<THREADS>::ALL);  // all of the lane's threads have read what is overwritten")
        for turn, node in enumerate(nodes):
            if self.laned(node):
                words = [f"tile{w}[at]" for w in self.tile_of[node]]
                guard = f"if (own == {turn % self.split}) " if self.split > 1 else ""
            else:
                words = [f"{w}[i]" for w in self._step_names(node)]
                guard = "if (tid == 0) "
            for word, value in zip(words, known[node], strict=True):
                out(f"{guard}{word} = as_word({value});")

    def _load_states(self, out: Source, node: Node, known: dict[Node, Parts]) -> None:
        """A thread's states of an input at step i."""
        source, by = (node.args[0], node.attrs["by"]) if node.op == "shift" else (node, 0)
        b, parts = self.of_input[source], self._parts(node)
        for k, name in enumerate(parts):
            if not self.laned(node) and not self.step:
                out(f"float {name}_row[PER];")
                out(f"read_row({name}_row, {self._row_names(node)[k]} + i * {self.padded}{' + own * PER' if self.split > 1 else ''});")
                continue
            start = "0" if self.split == 1 else "own * PER"
            at = self._address(b, k, "here", time=f"(ts + i - {by})" if by else "(ts + i)", state=start)
            stride = f"{b.name}_{self.plan.state}"
            count = "N" if self.split == 1 else "N - own * PER"
            fill = ""
            if by:
                count = f"ts + i >= {by} && ts + i - {by} < size_{self.plan.time} ? {count} : 0"
                literal = self.dialect.literal(node.attrs["fill"])
                fill = "" if literal in ("0", "0.0f", "false") else f"if (ts + i < {by} || ts + i - {by} >= size_{self.plan.time}) {name}_row[k] = {literal};"
            out(f"{self.type_of(node)} {name}_row[PER];", f"load_states<{'false' if self.step else 'true'}>({name}_row, {at}, {stride}, {count});")
            self._over_states(out, [fill] if fill else [])
        rows = tuple(f"{name}_row[k]" for name in parts)
        known[node] = rows if self.laned(node) or self.step else tuple(self._word(node, row) for row in rows)

    def _slot_of(self, scan: Node, *, later: bool) -> Parts:
        """Where the history holds a recomputed scan's carry before (``later``: after) step s of its own walk."""
        back = not self.plan.reverse
        return tuple(self._history(n.replace("[k]", "") + "_history", self.stated(scan), "s" if later == back else "s + 1") for n in self._carry_names(scan))

    def _walk_scan(self, scan: Node, known: dict[Node, Parts], main: bool, record: bool) -> list[str]:
        if main and scan in self.plan.recomputed:
            known[scan] = self._slot_of(scan, later=True)
            return []
        lines = []
        if record:
            lines += [f"{slot} = {carry};" for slot, carry in zip(self._slot_of(scan, later=False), self._carry_names(scan), strict=True)]
        values, _ = self.recurrence_of(scan, known, self._carry_names(scan))
        known[scan] = self._parts(scan)
        return lines + [f"const float {name} = {value};" for name, value in zip(known[scan], values, strict=True)]

    def _advance(self, scan: Node, known: dict[Node, Parts], main: bool, record: bool) -> list[str]:
        """The carry after this step."""
        if scan not in known or (main and scan in self.plan.recomputed):
            return []
        _, following = self.recurrence_of(scan, known, self._carry_names(scan))
        after, names, lines = following(known[scan]), self._carry_names(scan), []
        if len(names) == 2 and scan.attrs["shifted"]:
            fresh = [self.names.fresh("next") for _ in names]
            lines += [f"const float {f} = {x};" for f, x in zip(fresh, after, strict=True)]
            after = fresh
        lines += [f"{name} = {x};" for name, x in zip(names, after, strict=True)]
        if record:
            lines += [f"{slot} = {carry};" for slot, carry in zip(self._slot_of(scan, later=True), names, strict=True)]
        return lines

    def _prior(self, node: Node, known: dict[Node, Parts], main: bool) -> list[str]:
        scan = node.args[0]
        if main and scan in self.plan.recomputed:
            known[node] = self._slot_of(scan, later=False)
            return []
        # A copy: the carry of a scan without states goes on before its readers over states come.
        known[node] = self._parts(node)
        return [f"const float {name} = {carry};" for name, carry in zip(known[node], self._carry_names(scan), strict=True)]

    # -- results ----------------------------------------------------------------------------------------------------------------------------

    def _state_results(self, known: dict[Node, Parts], stores: list[Store]) -> list[str]:
        """Inside the loop over states: values gathered for their stores, sums over time added to."""
        lines = []
        for store in (s for s in stores if self.stated(s.value)):
            for k, value in enumerate(known[store.value]):
                if store.kind == "sum":
                    lines.append(f"{self.sum_names(store)[k]} += {value};")
                else:
                    lines.append(f"{store.name}_out{k}[k] = {f'lane < lanes ? {value} : 0.0f' if store.lane else value};")
        return lines

    def _state_stores(self, out: Source, stores: list[Store]) -> None:
        for store in (s for s in stores if self.stated(s.value) and s.kind == "value"):
            for k in self.parts(self.of_store[store]):
                name = f"{store.name}_out{k}"
                if store in self.rows:
                    row = f"{self._rows_name(store, k)} + (((sub & 1) * {self.warps} + warp) * BLOCK + i - base) * {self.padded}"
                    out(f"sum_lanes<SPLIT, THREADS>({name}, {row}{' + own * PER' if self.split > 1 else ''});")
                else:
                    self._store_states(out, store, k, name, time="(ts + i)")

    def _store_states(self, out: Source, store: Store, part: int, name: str, time: str = "") -> None:
        """A thread's states of a result, from an array."""
        b = self.of_store[store]
        if store.lane:
            words = self.shared("lane_words", self.threads)
            out.open("{")(f"float sums[PER];")
            self._over_states(out, [f"sums[k] = block_lane_sum<SPLIT, THREADS>(lane < lanes ? {name}[k] : 0.0f, {words}, lanes);"])
            add = f"if (block > slot * {self.walk}) " if self.walk > 1 else ""
            at = self.pointer(b, part, state=self._n(), time=time)
            out.open(f"if (lane == 0) {{")
            self._over_states(out, [f"if ({self._n()} < N) *({at}) = sums[k]{f' + (block > slot * {self.walk} ? *({at}) : 0.0f)' if add else ''};"])
            out.close().close()
            return
        owner = self.owner(store.value, store.axes)
        guards = [g for g in (owner, "lane < lanes" if self.laned(store.value) else "lane == 0") if g]
        start = "0" if self.split == 1 else "own * PER"
        at = self._address(b, part, "lane" if self.laned(store.value) else "0", state=start, time=time)
        count = "N" if self.split == 1 else "N - own * PER"
        out(f"if ({' && '.join(guards)}) store_states({at}, {b.name}_{self.plan.state}, {name}, {count});")

    def _store_direct(self, out: Source, store: Store, values: Parts) -> None:
        """Writes a value without states to memory: a step's result, a final state, a sum over time."""
        b = self.of_store[store]
        for k, value in enumerate(values):
            if store.kind == "sum" and self.laned(store.value):
                value = f"split_sum<SPLIT, THREADS>({value})"
            if store.lane:
                words = self.shared("lane_words", self.threads)
                out.open("{")(f"const float total = block_lane_sum<SPLIT, THREADS>(lane < lanes ? {value} : 0.0f, {words}, lanes);" if store.kind != "sum" else
                              f"const float whole = {value}, total = block_lane_sum<SPLIT, THREADS>(lane < lanes ? whole : 0.0f, {words}, lanes);")
                at = self.pointer(b, k)
                add = f" + (block > slot * {self.walk} ? *({at}) : 0.0f)" if self.walk > 1 else ""
                out(f"if (tid == 0) *({at}) = total{add};").close()
                continue
            if "split_sum" in value:
                name = self.names.fresh(f"{store.name}_whole")
                out(f"const float {name} = {value};")
                value = name
            owner = self.owner(store.value, store.axes)
            guards = [g for g in (owner, "own == 0 && lane < lanes" if self.laned(store.value) else "tid == 0") if g]
            out(f"if ({' && '.join(guards)}) *({self._address(b, k, 'lane')}) = Narrow<{C_TYPES[b.dtype]}>::of({value});")

    def _store_final(self, out: Source, store: Store) -> None:
        last = "seg == 0" if store.value.attrs["reverse"] else "seg == segments - 1"
        out.open("{" if self.mode.summary else f"if ({last}) {{")
        names = self._carry_names(store.value)
        if self.stated(store.value):
            for k, name in enumerate(names):
                self._store_states(out, store, k, name.replace("[k]", ""))
        else:
            self._store_direct(out, store, names)
        out.close()

    def _finish(self, out: Source) -> None:
        for store in self.plan.stores:
            if store.kind == "final" and store.value in self.plan.main:
                self._store_final(out, store)
            elif store.kind == "sum" and self.stated(store.value):
                for k, name in enumerate(self.sum_names(store)):
                    self._store_states(out, store, k, name.replace("[k]", ""))
            elif store.kind == "sum":
                self._store_direct(out, store, self.sum_names(store))
