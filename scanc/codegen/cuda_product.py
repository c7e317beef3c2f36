"""The CUDA backend: a step that multiplies a small batch with a weight, on the matrix units.

    y[b m] = sum(w[m k] * f(x[b k], ...), k)       and whatever follows for each b and m; sums of f'(x[b k], ...) over k may be part of it

Of a decoding layer most bytes are its projections' weights: all there is to do is to bring them. A block has 16 lanes m, and its
warps share k. Weights come from memory straight to the registers that matrix units read, 16 bytes a thread, 128 of each lane, ``walk``
pieces of a warp's at once; while the kernel before still runs they are brought nearer. Rows b are 8 to 32 at a time: what units of 16 x 8
take anyway. What is made of rows before they are multiplied, every block makes for itself, in float32, and rounds to the weight's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scanc.codegen.cuda import CudaSource, Printer
from scanc.codegen.cuda_dialect import C_TYPES
from scanc.codegen.emit import Body, Source
from scanc.codegen.layout import Buffer, Mode
from scanc.errors import ScheduleError, UnsupportedForm
from scanc.forms.plan import Plan
from scanc.ir import Node
from scanc.schedule import StepSchedule

PRODUCT_HEADER = Path(__file__).with_name("cuda_product.h")
LANES = 16  # of a block: the rows of the units' first operand


@dataclass(frozen=True)
class Product:
    """What a step's plan multiplies: ``sum`` over the state axis of ``weight`` (lane, state) times ``rows`` (batch, state); and ``others``,
    the sums over the state axis that have no lane."""

    sum: Node
    weight: Node
    rows: Node
    others: tuple[Node, ...]


def product_of(plan: Plan) -> Product | None:
    """The product that a step is, if it is one: of a weight of 16 bits, which the batch shares, and of rows read in its dtype."""
    if plan.time or not plan.state or not plan.lane or plan.lane_group or len(plan.grid) != 1 or plan.grid_group(plan.grid[0]):
        return None
    sums = [n for n in plan.main_body if n.op == "sum"]
    over = [n for n in plan.main_body if plan.has(n, plan.state)]
    laned = [n for n in over if plan.has(n, plan.lane)]
    weight = next((n for n in laned if n.op == "input"), None)
    product = next((n for n in laned if n.op == "mul" and weight in n.args), None)
    found = [s for s in sums if s.args[0] is product]
    if weight is None or product is None or {*laned} != {weight, product} or len(found) != 1 or plan.has(weight, plan.grid[0]):
        return None
    rows = next((a for a in product.args if a is not weight), None)
    simple = all(s.kind == "value" and not s.partial for s in plan.stores)
    simple = simple and all(plan.has(s.value, plan.lane) and not plan.has(s.value, plan.state) for s in plan.stores)
    real = all(n.kind == "real" for n in over) and not any(n.op in ("index", "size") for n in over)
    read = [n for n in over if n.op == "input" and plan.has(n, plan.grid[0])]
    if rows is None or not plan.has(rows, plan.grid[0]) or not simple or not real or weight.type.dtype not in ("bfloat16", "float16"):
        return None
    if any(n.type.dtype != weight.type.dtype for n in read):
        return None
    return Product(found[0], weight, rows, tuple(s for s in sums if s is not found[0]))


def generate(plan: Plan, schedule: StepSchedule, state: int, mode: Mode, title: str) -> CudaSource:
    """The source of one kernel. Raises ScheduleError, UnsupportedForm."""
    product = product_of(plan)
    if product is None:
        raise UnsupportedForm(op=plan.graph.name, form="step with rows", forms="step with rows=0",
                              reason="it is no product of a batch with a weight that all of it shares, both of one 16-bit dtype")
    printer = _Printer(product, plan, schedule, state, mode, title)
    text = printer.print()
    made = printer.source("cuda", text)
    return CudaSource(**made.__dict__, threads=printer.threads, shared=4 * printer.shared_words, narrow=printer.narrow, early=True)


class _Printer(Printer):
    headers = ("cuda.h", "cuda_step.h", PRODUCT_HEADER.name)

    def __init__(self, product: Product, plan: Plan, schedule: StepSchedule, state: int, mode: Mode, title: str) -> None:
        self.product, self.rows_at_once = product, schedule.rows
        super().__init__(plan, schedule, state, mode, title)
        self.rounds = schedule.rows  # rows of the grid's axis that a block takes
        of_buffers = (f"{b.name}_{what}" for b in self.buffers for what in ("at", "row"))
        for word in ("Few", "ROWS", "WARPS", "each", "w_at", "rows_of", "made", "e", *of_buffers):
            self.names.fresh(word)

    def _check(self, schedule: StepSchedule) -> None:  # type: ignore[override]
        def need(field: str, holds: bool, limit: str) -> None:
            if not holds:
                raise ScheduleError(field=field, value=getattr(schedule, field), limit=limit)

        need("lanes", schedule.lanes == LANES, f"matrix units take {LANES} lanes")
        need("split", schedule.split >= 2, f"a block of {LANES} lanes has warps of 32 threads; 2 and more to a lane make whole ones")

    @property
    def blocks_per_multiprocessor(self) -> int:
        """As many as let 512 threads, of 128 registers each, be at work: then all blocks of a large weight are."""
        return max(1, 512 // self.threads)

    def _block(self) -> Source:
        out, plan, product = Source(), self.plan, self.product
        (axis,) = plan.grid
        w = self.of_input[product.weight]
        warps, size, walk = self.threads // 32, f"size_{axis}", getattr(self.schedule, "walk", 1)
        sums = self.shared("sums", warps * self.rows_at_once * 17)
        left = [self.shared(f"others{k}", warps * self.rows_at_once) for k in range(len(product.others))]
        out(f"constexpr int ROWS = {self.rows_at_once}, WARPS = {warps};", f"typedef FewRows<{C_TYPES[w.dtype]}, N, ROWS, WARPS> Few;")
        weight = f"w_at, {self._stride(w, plan.lane)}, {self._stride(w, plan.state)}, lanes"
        out(f"const {C_TYPES[w.dtype]}* const w_at = {self.pointer(w, 0)};", f"Few::bring({weight});")
        out("wait_for_earlier_kernels();", "let_later_kernels_begin();")
        out.open("{")
        out(f"const index_t i_{axis} = rows_{axis} * ROWS;", f"const int rows = int(smaller(ROWS, {size} - i_{axis}));")
        out(*(f"float {name}_own[ROWS / 8] = {{}};" for name in left))
        whole = [f"N % 8 == 0 && {self._aligned(w, 'w_at', plan.lane)}", *self._rows_of(out, axis, left)]
        out(f"const bool whole = {' && '.join(whole)};")
        given = f"{sums}, {weight}, rows, rows_of"
        out(f"if (whole) Few::multiply<{walk}>(Yes(), {given});", f"else Few::multiply<1>(No(), {given});")
        out(*(f"Few::leave({name}, {name}_own);" for name in left)).close()
        out("__syncthreads();")
        out.open("for (int each = tid; each < LANES * ROWS; each += THREADS) {")
        out("const int lane = each % LANES, row = each / LANES, here = smaller(lane, lanes - 1);",
            f"const index_t i_{axis} = rows_{axis} * ROWS + row;", f"if (lane >= lanes || i_{axis} >= {size}) continue;")
        others = {n: f"Few::at({name}, row)" for n, name in zip(product.others, left, strict=True)}
        self._after(out, {product.sum: f"Few::at({sums}, row, lane)", **others})
        return out.close()

    def _rows_of(self, out: Source, axis: str, left: list[str]) -> list[str]:
        """What makes eight of a row's values, and sums what else is summed of them; and when it may read 16 bytes at once."""
        plan, product, known, whole = self.plan, self.product, dict(self.known), []
        over = [n for n in plan.main_body if self.stated(n) and not self.laned(n)]
        inputs = [n for n in over if n.op == "input"]
        for node in inputs:
            b = self.of_input[node]
            out(f"const {C_TYPES[b.dtype]}* const {b.name}_at = {self.pointer(b, 0)};")
        out.open("const auto rows_of = [&](auto how, int j, int row, int at) {")
        for node in inputs:
            b = self.of_input[node]
            step, along = f"index_t(row) * {self._stride(b, axis)} + " if plan.has(node, axis) else "", self._stride(b, plan.state)
            if b.dtype in ("bfloat16", "float16"):
                whole.append(self._aligned(b, f"{b.name}_at", axis if plan.has(node, axis) else ""))
                out(f"const Pack<{C_TYPES[b.dtype]}, 8> {b.name}_row = "
                    f"eight<how.value, false>({b.name}_at + {step}index_t(at) * {along}, {along}, Few::left(at));")
        if over == [product.rows]:
            out(f"return {self.of_input[product.rows].name}_row;").close("};")
            return whole
        dtype = C_TYPES[self.of_input[product.weight].dtype]
        out(f"Pack<{dtype}, 8> made;", "#pragma unroll").open("for (int e = 0; e < 8; ++e) {")
        for node in inputs:
            b, name = self.of_input[node], self.names.of(node)
            if b.dtype in ("bfloat16", "float16"):
                out(f"const float {name} = widen({b.name}_row.element[e]);")
            else:
                out(f"const float {name} = at + e < N ? widen({b.name}_at[index_t(at + e) * {self._stride(b, plan.state)}]) : 0.0f;")
            known[node] = (name,)
        body = Body(self.dialect, self.names, known, self.declare, keep=frozenset({product.rows, *(n.args[0] for n in product.others)}))
        nodes = [n for n in plan.main_body if n.op == "const" or (n in over and n not in known)]
        out(*body.run(nodes, lambda n: [] if n in known else None))
        for node, name in zip(product.others, left, strict=True):
            value = known[node.args[0]][0]
            out(f"{name}_own[j] += {value if self.N % 64 == 0 else f'at + e < N ? {value} : 0.0f'};")
        made = known[product.rows][0]
        out(f"made.element[e] = Narrow<{dtype}>::of({made if self.N % 64 == 0 else f'at + e < N ? {made} : 0.0f'});").close()
        out("return made;").close("};")
        return whole

    def _after(self, out: Source, found: dict[Node, str]) -> None:
        """What follows the sums, for one row and one lane."""
        known = dict(self.known)
        for node, value in found.items():
            known[node] = (self.names.of(node),)
            out(f"const float {known[node][0]} = {value};")
        nodes = [n for n in self.plan.main_body if not self.stated(n) and n not in found]
        body = Body(self.dialect, self.names, known, self.declare, keep=frozenset(s.value for s in self.plan.stores))
        out(*body.run(nodes, lambda n: [] if n in known else self._load(n, known) if n.op in ("input", "index", "size") else None))
        for store in self.plan.stores:
            b = self.of_store[store]
            out(f"*({self._address(b, 0, 'lane')}) = Narrow<{C_TYPES[b.dtype]}>::of({known[store.value][0]});")

    def _address(self, b: Buffer, part: int, lane: str, *, state: str = "", time: str = "") -> str:
        return self._plain_address(b, part, lane, state, time)  # a block has its rows side by side: no pointer goes from one to the next

    def _stride(self, b: Buffer, axis: str) -> str:
        return f"{b.name}_{axis}"

    def _aligned(self, b: Buffer, at: str, axis: str) -> str:
        """Whether eight neighbours along the contracted axis are 16 bytes that one instruction moves, at every place of another axis."""
        steps = f"(index_t({at}) | index_t({self._stride(b, axis)}) * 2)" if axis else f"index_t({at})"
        return f"{self._stride(b, self.plan.state)} == 1 && {steps} % 16 == 0"
