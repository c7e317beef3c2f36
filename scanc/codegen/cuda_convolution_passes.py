"""The CUDA backend, printing the form convolution for long sequences: float32 transforms in three passes over memory, route ``passes``.

A sequence of P·N steps is a matrix x[t0, t'], t = t0 N + t', and its frequencies are p + P q, a quarter further on. Of the transform

    X[p + P q] = Σ_t' e^{-2πi t' q/N} ( e^{-2πi t' (p+1/4)/(PN)} Σ_t0 e^{-2πi t0 (p+1/4)/P} x[t0, t'] )

``columns`` makes the inner sums and turns them, a thread a column t' with its P steps in registers; ``middle`` the outer ones, a block of
threads a channel and p, as for a short sequence (cuda_convolution.py), multiplies by the kernels' spectra and goes back; ``steps`` makes
the inner sums backwards and what the graph makes of results. Kernels go through the first two passes, sums over rows through the last two.

Between passes lie z [item, p, N], item = channel · rows + row of the channels at hand, which ``base`` is the first of.
"""

from __future__ import annotations

from scanc.codegen.cuda_convolution import RadixPrinter
from scanc.codegen.cuda_convolution_source import COMPLEX, SMALL, TABLE, RadixSource, module
from scanc.codegen.cuda_dialect import C_TYPES
from scanc.codegen.emit import Source
from scanc.codegen.triton_chunked import Argument
from scanc.forms.convolution import ConvolutionPlan
from scanc.ir import Node, topological
from scanc.schedule import ConvolutionSchedule

TURN, WITHIN = (Argument(name, (), COMPLEX, "inner") for name in ("turn", "within"))
# Points of a column that one thread has in registers; longer ones are shared by several.
ALONE = 64


def own_points(points: int) -> int:
    """Points of a column that a thread has."""
    return points if points <= ALONE else 16 if points <= 256 else 32


def groups(points: int) -> int:
    """Threads that share a column of so many points."""
    return points // own_points(points)


def columns_of(points: int, block: int) -> int:
    """Columns of a block of threads, of ``block`` there are: fewer where a column takes many registers or many threads."""
    if points <= ALONE:
        return min(block, 128 if points > 32 else 256)
    return min(32, 512 // groups(points))


class PassesPrinter(RadixPrinter):
    """What the passes share. ``points``: P; ``signal``: the signal or the kernel that a first pass is of."""

    def __init__(self, plan: ConvolutionPlan, schedule: ConvolutionSchedule, points: int, title: str, signal: Node | None = None) -> None:
        self.total, self.signal = points, signal
        super().__init__(plan, schedule, False, title)

    count, place = "OWN", "Way::step(i, group) * N"
    _sums_on_chip = False

    @property
    def _first(self) -> str:
        return "0"

    @property
    def _steps(self) -> str:
        return f"int(size_{self.graph.time})"

    @property
    def columns(self) -> int:
        """Columns of a block: fewer where a column takes many registers or many threads."""
        return columns_of(self.total, self.passes.points)

    @property
    def _turns(self) -> list[Argument]:
        """Tables of a pass over columns."""
        return [TURN, WITHIN] if groups(self.total) > 1 else [TURN]

    def _module(self, kind: str, body: Source, numbers: tuple[str, ...], *, kept: int = 0, columns: bool = False) -> RadixSource:
        name = "".join(c if c.isalnum() or c == "_" else "_" for c in self.graph.name) + f"_{kind}"
        head: tuple[str, ...] = (f"constexpr int P = {self.total};  // points of the first pass, of columns",)
        shared_by = groups(self.total)
        if columns:
            head = (*head, f"constexpr int COLUMNS = {self.columns};  // of a block of threads")
            kept = 2 * self.total * self.columns if shared_by > 1 else 0
        sizes = tuple(f"size_{a}" for a in self.graph.order)
        return module(name, self.title, self.schedule, tuple(self.arguments), (*sizes, *numbers), body, kept=kept,
                      resident=1 if columns else self.resident, head=head, columns=self.columns * shared_by if columns else 0)

    def _channels(self, out: Source, channel: str) -> None:
        out(f"unsigned rest = unsigned({channel});")
        for axis in reversed(self.plan.channels):
            out(f"const index_t i_{axis} = rest % unsigned(size_{axis}); rest /= unsigned(size_{axis});")

    def _place_of_thread(self, out: Source) -> None:
        own = own_points(self.total)
        way, lanes = (f"Column<P, {own}>", "") if groups(self.total) == 1 else (f"LongColumn<P, {own}, COLUMNS>", " % COLUMNS")
        out(f"typedef {way} Way;", "constexpr int OWN = Way::OWN;",
            f"const int tid = int(block_here() % (N / COLUMNS)) * COLUMNS + int(threadIdx.x){lanes};",
            f"const int group = {'int(threadIdx.x) / COLUMNS' if lanes else '0'};", "const index_t item = block_here() / (N / COLUMNS);")

    def _transform(self, out: Source, way: str) -> None:  # type: ignore[override]
        more = ", within_ptr, shared" if groups(self.total) > 1 else ""
        out(f"Way::{way}(re, im, turn_ptr, tid{more});")

    def _column(self, out: Source, rows: str) -> None:
        """Which column, row and channel a thread of the first or the last pass has."""
        self._place_of_thread(out)
        self._channels(out, f"base + item / {rows}")
        if rows != "1":
            out(f"index_t left = item % {rows};")
            for axis in reversed(self.plan.rows):
                out(f"const index_t i_{axis} = left % size_{axis}; left /= size_{axis};")

    def _from_columns(self, out: Source, z: str) -> None:
        """A column back to steps, in re."""
        out(f"const float2* const from = {z}_z_ptr + item * P * N + tid;", "#pragma unroll")
        out.open("for (int i = 0; i < OWN; ++i) {")
        out("const float2 v = from[Way::frequency(i, group) * N];", "re[i] = v.x, im[i] = v.y;").close()
        self._transform(out, "back")


class ColumnsPrinter(PassesPrinter):
    """The first pass of a signal, or of a kernel."""

    @property
    def word(self) -> str:
        assert self.signal is not None
        return str(self.signal.name) if self.signal in self.plan.kernels else f"s{self.plan.signals.index(self.signal)}"

    def _printed(self) -> set[Node]:
        assert self.signal is not None
        return set(topological([self.signal]))

    def _between(self) -> list[Argument]:
        self.arguments = [a for a in self.arguments if a.role == "input"]
        return [Argument(f"{self.word}_z", (), COMPLEX, "inner"), *self._turns]

    def source(self) -> RadixSource:  # type: ignore[override]
        assert self.signal is not None
        out = Source().indent()
        self._column(out, "1" if self.signal in self.plan.kernels else "rows")
        self._still(out, [self.signal])
        out("float re[OWN], im[OWN];")
        self._load(out, self.signal)
        self._transform(out, "there")
        out(f"float2* const to = {self.word}_z_ptr + item * P * N + tid;", "#pragma unroll",
            "for (int i = 0; i < OWN; ++i) to[Way::frequency(i, group) * N] = float2{re[i], im[i]};")
        return self._module(f"columns_of_{self.word}", out, ("rows", "base"), columns=True)


class MiddlePrinter(PassesPrinter):
    """The second pass, of all signals, products and sums over rows; of a kernel's columns alone where ``signal`` is one."""

    count, place = "E", "apart(i)"

    def _printed(self) -> set[Node]:
        return set()

    def _between(self) -> list[Argument]:
        if self.signal is not None:
            return [*(Argument(f"{self.signal.name}_{w}", (), COMPLEX, "inner") for w in ("z", "spectrum")), TABLE]
        found = [Argument(f"{s}_z", (), COMPLEX, "inner") for s in self.signals.values()]
        found += [Argument(f"product{i}_z", (), COMPLEX, "inner") for i in range(len(self.plan.products))]
        found += [Argument(f"pair{i}_z", (), COMPLEX, "inner") for i in range(len(self.pairs))]
        return [*found, *(Argument(f"{k.name}_spectrum", (), COMPLEX, "inner") for k in self.plan.kernels), TABLE]

    def _fetch(self, out: Source, z: str, item: str) -> None:
        out.open("{")
        out(f"const float2* const from = {z}_z_ptr + ({item} * P + p) * N + tid;", "#pragma unroll")
        out.open("for (int i = 0; i < E; ++i) {")
        out("const float2 v = from[apart(i)];", "re[i] = v.x, im[i] = v.y;").close().close()

    def _leave(self, out: Source, z: str, item: str) -> None:
        out.open("{")
        out("back<false>(re, im, shared, table_ptr);", f"float2* const to = {z}_z_ptr + ({item} * P + p) * N + tid;", "#pragma unroll")
        out("for (int i = 0; i < E; ++i) to[apart(i)] = float2{re[i], im[i]};").close()

    def source(self) -> RadixSource:  # type: ignore[override]
        out, plan = Source().indent(), self.plan
        out("const index_t p = block_here() % P, local = block_here() / P;")
        if self.signal is not None:
            k = str(self.signal.name)
            out("float re[E], im[E];")
            self._fetch(out, k, "local")
            out("there<false>(re, im, shared, table_ptr);", "#pragma unroll",
                "for (int i = 0; i < E; ++i) re[i] *= 1.0f / (float(N) * P), im[i] *= 1.0f / (float(N) * P);",
                f"keep({k}_spectrum_ptr + (local * P + p) * N, re, im);")
            return self._module(f"spectra_of_{k}", out, ())
        on_chip = self.passes.points <= SMALL
        for k2 in plan.kernels:
            out(f"const float2* const {k2.name}_at = {k2.name}_spectrum_ptr + (local * P + p) * N + tid;")
        if on_chip:
            self._keep_on_chip(out)
        for i in range(len(self.pairs)):
            out(f"float m{i}_re[E], m{i}_im[E];", f"clear(m{i}_re, m{i}_im);")
        out.open("for (int row = 0; row < rows; ++row) {")
        out("const index_t item = local * rows + row;", "float re[E], im[E];")
        for s in self.kept if not on_chip else ():  # in its own place: what was there is in registers by then
            out(f"float2* const {self.signals[s]}_kept = {self.signals[s]}_z_ptr + (item * P + p) * N;")
        for s in self.order:
            self._fetch(out, self.signals[s], "item")
            out("together();", "there<false>(re, im, shared, table_ptr);")
            if s in self.kept:
                out(f"keep({self.signals[s]}_kept, re, im);")
        held = self._products_of_last(out)
        for p in self.products:
            if p not in held:
                self._product_of_kept(out, p)
            out("together();")
            self._leave(out, f"product{plan.products.index(p)}", "item")
        out.close()
        for i in range(len(self.pairs)):
            out("together();", f"back<false>(m{i}_re, m{i}_im, shared, table_ptr);",
                f"float2* const to{i} = pair{i}_z_ptr + (local * P + p) * N + tid;",
                "#pragma unroll", f"for (int i = 0; i < E; ++i) to{i}[apart(i)] = float2{{m{i}_re[i], m{i}_im[i]}};")
        return self._module("middle", out, ("rows",), kept=2 * self.passes.points * len(self.kept) if on_chip else 0)


class StepsPrinter(PassesPrinter):
    """The last pass: what the graph makes of products."""

    def _roots(self) -> list[Node]:
        return [o.node for o in self.plan.stores]

    def _between(self) -> list[Argument]:
        return [*(Argument(f"product{i}_z", (), COMPLEX, "inner") for i in range(len(self.plan.products))), *self._turns]

    def source(self) -> RadixSource:  # type: ignore[override]
        out, products = Source().indent(), self.plan.products
        self._column(out, "rows")
        self._still(out, [o.node for o in self.plan.stores])
        values = {}
        for n, p in enumerate(products):
            out(f"float product{n}[OWN];").open("{")
            out("float re[OWN], im[OWN];")
            self._from_columns(out, f"product{n}")
            out("#pragma unroll", f"for (int i = 0; i < OWN; ++i) product{n}[i] = re[i];").close()
            values[p.node] = f"product{n}[i]"
        self._write(out, values)
        return self._module("steps", out, ("rows", "base"), columns=True)


class GradientPrinter(PassesPrinter):
    """The last pass of a kernel's gradient, of dtype ``dtype``: [channel, taps]."""

    def __init__(self, plan: ConvolutionPlan, schedule: ConvolutionSchedule, points: int, title: str, dtype: str) -> None:
        self.dtype = dtype
        super().__init__(plan, schedule, points, title)

    def _printed(self) -> set[Node]:
        return set()

    def _between(self) -> list[Argument]:
        return [Argument("pair_z", (), COMPLEX, "inner"), Argument("dk", (), self.dtype, "store"), *self._turns]

    def source(self) -> RadixSource:  # type: ignore[override]
        out = Source().indent()
        self._place_of_thread(out)
        out("float re[OWN], im[OWN];")
        self._from_columns(out, "pair")
        out(f"{C_TYPES[self.dtype]}* const to = dk_ptr + (base + item) * size + tid;", "#pragma unroll",
            "for (int i = 0; i < OWN; ++i)",
            f"    if (tid + {self.place} < size) to[{self.place}] = Narrow<{C_TYPES[self.dtype]}>::of(re[i] * (1.0f / (float(N) * P)));")
        return self._module("gradient", out, ("base", "size"), columns=True)


__all__ = ["ColumnsPrinter", "GradientPrinter", "MiddlePrinter", "StepsPrinter"]
