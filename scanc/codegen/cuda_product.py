"""The CUDA backend: a step that multiplies a small batch with a weight, on the matrix units.

    y[b m] = sum(w[m k] * x[b k], k), and whatever follows for each b and m

Of a decoding layer most bytes are its projections' weights, and all there is to do is to bring them. A block has 16 lanes m, and its
warps share k. Weights come from memory straight to the registers that matrix units read, 16 bytes a thread, 128 of each lane, many at once;
while the kernel before still runs they are brought nearer. Rows b are 8 to 32 at a time: what units of 16 x 8 take anyway.
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
    """What a step's plan multiplies: ``sum`` over the state axis of ``weight`` (lane, state) times ``rows`` (batch, state)."""

    sum: Node
    weight: Node
    rows: Node


def product_of(plan: Plan) -> Product | None:
    """The product that a step is, if it is one: of two inputs of one 16-bit dtype, with nothing else over the state axis."""
    if plan.time or not plan.state or not plan.lane or plan.lane_group or len(plan.grid) != 1 or plan.grid_group(plan.grid[0]):
        return None
    sums = [n for n in plan.main_body if n.op == "sum"]
    if len(sums) != 1 or sums[0].args[0].op != "mul" or any(s.kind != "value" or s.partial for s in plan.stores):
        return None
    product = sums[0].args[0]
    over = [n for n in plan.main_body if plan.has(n, plan.state)]
    by_axes = {n.axes: n for n in product.args if n.op == "input"}
    weight, rows = by_axes.get((plan.lane, plan.state)), by_axes.get((plan.grid[0], plan.state))
    if weight is None or rows is None or {*over} != {product, weight, rows}:
        return None
    same = weight.type.dtype == rows.type.dtype and weight.type.dtype in ("bfloat16", "float16")
    return Product(sums[0], weight, rows) if same else None


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
        for word in ("Few", "ROWS", "WARPS", "each", "w_at", "x_at"):
            self.names.fresh(word)

    def _check(self, schedule: StepSchedule) -> None:  # type: ignore[override]
        def need(field: str, holds: bool, limit: str) -> None:
            if not holds:
                raise ScheduleError(field=field, value=getattr(schedule, field), limit=limit)

        need("lanes", schedule.lanes == LANES, f"matrix units take {LANES} lanes")
        need("split", schedule.split >= 2, f"a block of {LANES} lanes has warps of 32 threads; 2 and more to a lane make whole ones")

    @property
    def blocks_per_multiprocessor(self) -> int:
        return 1

    def _block(self) -> Source:
        out, plan, product = Source(), self.plan, self.product
        (axis,) = plan.grid
        w, x = self.of_input[product.weight], self.of_input[product.rows]
        warps, size = self.threads // 32, f"size_{axis}"
        sums = self.shared("sums", warps * self.rows_at_once * 17)
        out(f"constexpr int ROWS = {self.rows_at_once}, WARPS = {warps};")
        out(f"typedef FewRows<{C_TYPES[w.dtype]}, N, ROWS, WARPS> Few;")
        w_at, x_at = self.pointer(w, 0), self.pointer(x, 0)
        weight = f"w_at, {self._stride(w, plan.lane)}, {self._stride(w, plan.state)}, lanes"
        out(f"const {C_TYPES[w.dtype]}* const w_at = {w_at};", f"Few::bring({weight});")
        out("wait_for_earlier_kernels();", "let_later_kernels_begin();")
        out.open("{")
        out(f"const index_t i_{axis} = rows_{axis} * ROWS;", f"const int rows = int(smaller(ROWS, {size} - i_{axis}));",
            f"const {C_TYPES[x.dtype]}* const x_at = {x_at};")
        out(f"const bool whole = N % 8 == 0 && {self._aligned(w, 'w_at', plan.lane)}", f"    && {self._aligned(x, 'x_at', axis)};")
        given = f"{sums}, {weight}, x_at, {self._stride(x, axis)}, {self._stride(x, plan.state)}, rows"
        walk = self.schedule.walk  # type: ignore[attr-defined]
        out(f"if (whole) Few::multiply<true, {walk}>({given});", f"else Few::multiply<false, 1>({given});").close()
        out("__syncthreads();")
        out.open("for (int each = tid; each < LANES * ROWS; each += THREADS) {")
        out("const int lane = each % LANES, row = each / LANES, here = smaller(lane, lanes - 1);",
            f"const index_t i_{axis} = rows_{axis} * ROWS + row;", f"if (lane >= lanes || i_{axis} >= {size}) continue;")
        self._after(out, f"Few::at({sums}, row, lane)")
        return out.close()

    def _after(self, out: Source, found: str) -> None:
        """What follows the product, for one row and one lane."""
        known = dict(self.known)
        known[self.product.sum] = (self.names.of(self.product.sum),)
        out(f"const float {known[self.product.sum][0]} = {found};")
        nodes = [n for n in self.plan.main_body if not self.stated(n) and n is not self.product.sum]
        body = Body(self.dialect, self.names, known, self.declare, keep=frozenset(s.value for s in self.plan.stores))
        out(*body.run(nodes, lambda n: self._load(n, known) if n.op in ("input", "index", "size") else [] if n in known else None))
        for store in self.plan.stores:
            b = self.of_store[store]
            out(f"*({self._address(b, 0, 'lane')}) = Narrow<{C_TYPES[b.dtype]}>::of({known[store.value][0]});")

    def _stride(self, b: Buffer, axis: str) -> str:
        return f"{b.name}_{axis}"

    def _aligned(self, b: Buffer, at: str, axis: str) -> str:
        """Whether eight neighbours along the contracted axis are 16 bytes that one instruction moves, at every lane or row."""
        return f"{self._stride(b, self.plan.state)} == 1 && (index_t({at}) | index_t({self._stride(b, axis)}) * 2) % 16 == 0"
