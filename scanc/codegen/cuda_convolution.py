"""The CUDA backend, printing the form convolution by its route ``radix``: float32 transforms held in registers.

A program has a channel and part of its rows: signals in, spectra, products, results out. A thread reads of spectra only what it wrote
itself: their order in memory, [register, thread], is the one in which the last pass leaves them, and no one else's concern. The kernels
before and after, and how a block is transformed: cuda_convolution_source.py.

Sequences of several blocks leave their spectra in scratch memory; with K'_d = K_d + i K_{d-1} a result's block i is the real part of
the transform back of Σ_j X_j K'_{i-j} (docs/kernels/convolution.md).
"""

from __future__ import annotations

from scanc.codegen.cuda_convolution_source import COMPLEX, SHARED, TABLE, RadixSource, module, passes
from scanc.codegen.cuda_dialect import C_TYPES, CudaDialect, scalar_type, taken_names
from scanc.codegen.emit import Parts, Source
from scanc.codegen.triton_chunked import Argument
from scanc.codegen.triton_convolution import ConvolutionPrinter
from scanc.codegen.triton_convolution_language import OPERANDS
from scanc.errors import ScheduleError
from scanc.forms.convolution import ConvolutionPlan, Product, made_of
from scanc.ir import Node, topological
from scanc.schedule import ConvolutionSchedule

WORDS = """E N THREADS FIRST SECOND THIRD ONE_BUFFER Complex re im i e block step row rows left rest part item items walk blocks near held
programs tid mine inside start shared table lags parts size channel channels scratch kept last j d v w x y x_re x_im k_re k_im taps
there back points twiddle turn cosine sine apart keep clear together anew times at from to which first here group Way OWN
arguments""".split()  # noqa: SIM905


class RadixPrinter(ConvolutionPrinter):
    """The main kernel. ``many``: sequences of several blocks, or of blocks whose spectra do not fit beside one another on chip."""

    def __init__(self, plan: ConvolutionPlan, schedule: ConvolutionSchedule, many: bool, title: str) -> None:
        self.many = many
        super().__init__(plan, schedule, OPERANDS["float32"], title)
        self.dialect = CudaDialect()  # type: ignore[assignment]
        for word in (*WORDS, *taken_names(), *(f"{s}_at" for s in self.signals.values()), *(f"{a.name}_at" for a in self.arguments)):
            self.names.fresh(word)
        self.still: dict[Node, Parts] = {}
        self.passes = passes(schedule)
        # The last signal is one that is multiplied, where there is any: it need not be kept for that.
        multiplied = {p.terms[0].signal for p in plan.products}
        self.order = sorted(plan.signals, key=lambda s: s in multiplied)
        self.products = sorted(plan.products, key=lambda p: p.terms[0].signal is not self.order[-1])

    def _between(self) -> list[Argument]:
        found = [Argument(f"{k.name}_spectrum", (), COMPLEX, "inner") for k in self.plan.kernels]
        found += [Argument(f"partial{i}", (), COMPLEX, "inner") for i in range(len(self.pairs))]
        return [*found, TABLE, *([Argument("scratch", (), COMPLEX, "inner")] if self.many else [])]

    @property
    def kept(self) -> list[Node]:
        """Signals of one block whose spectra are kept: all but the last, which is in registers until its first product is made."""
        last = self.order[-1]
        again = sum(p.terms[0].signal is last for p in self.plan.products) > 1
        return [s for s in self.order if s is not last or again]

    def source(self) -> RadixSource:  # type: ignore[override]
        body = Source().indent()
        (self._blocks if self.many else self._one_block)(body)
        numbers = (*(f"size_{a}" for a in self.graph.order), "rows", "walk", "blocks", "near", "held", "items")
        name = "".join(c if c.isalnum() or c == "_" else "_" for c in self.graph.name) + "_radix"
        kept = 0 if self.many else 2 * self.passes.points * (len(self.kept) + (len(self.pairs) if self._sums_on_chip else 0))
        made = module(name, self.title, self.schedule, tuple(self.arguments), numbers, body, kept=kept, resident=self.resident)
        if made.shared > SHARED:
            raise ScheduleError(field="outer", value=self.schedule.outer,
                                limit=f"its spectra would take {made.shared} bytes of shared memory, more than {SHARED}")
        return made

    # Whether sums over rows lie in shared memory, and not in registers.
    @property
    def _sums_on_chip(self) -> bool:
        return bool(self.schedule.apart) and not self.many

    @property
    def resident(self) -> int:
        """Blocks that a multiprocessor's registers are to hold."""
        threads, registers = self.passes.threads, self.schedule.registers
        return max(1, min(2048 // threads, (1 << 16) // (registers * threads))) if registers else 1

    # -- places ---------------------------------------------------------------------------------------------------------------

    def _index(self, axis: str) -> str:
        return super()._index(axis).replace("//", "/")

    def _channel(self, out: Source, item: str) -> None:
        out(f"unsigned rest = unsigned({item});")
        for axis in reversed(self.plan.channels):
            out(f"const index_t i_{axis} = rest % unsigned(size_{axis}); rest /= unsigned(size_{axis});")
        out("const index_t part = rest;")
        for k in self.plan.kernels:
            out(f"const float2* const {k.name}_at = {k.name}_spectrum_ptr + index_t({self._flat(k)}) * near * N + tid;")

    def _flat(self, k: Node) -> str:
        index = "0"
        for a in k.axes:
            if a != self.plan.tap(k):
                index = f"({index} * size_{a} + {self._index(a)})" if index != "0" else self._index(a)
        return index

    def _step(self, out: Source) -> None:
        """The rows of a part, one after another, and values that do not change over time."""
        out.open("for (int step = 0; step < walk; ++step) {")
        out("const index_t row = part * walk + step;", "if (row >= rows) break;")
        if self.plan.rows:
            out("index_t left = row;")
        for axis in reversed(self.plan.rows):
            out(f"const index_t i_{axis} = left % size_{axis}; left /= size_{axis};")
        self._still(out, [*self.plan.signals, *(o.node for o in self.plan.stores)])
        out("float re[E], im[E];")

    def _still(self, out: Source, roots: list[Node]) -> None:
        """Values that do not change over time, of what ``roots`` are made of."""
        products = {p.node for p in self.plan.products}
        needed = made_of(roots, products)
        self.still = {}
        still = [n for n in topological(roots) if n in needed and self.graph.time not in n.axes and n.op != "const"]
        read = [n for n in still if any(n in m.args for m in needed if m not in still)]
        if read:
            self._body(out, read, self.still)

    def _offset(self, a: Argument) -> str:
        terms = [f"{self._index(x)} * {s}" for x, s in zip(a.axes, a.strides, strict=True) if x != self.graph.time]
        return " + ".join([f"{a.name}_ptr", *terms])

    count, place = "E", "apart(i)"  # steps in a thread's registers, and how far from its first each is

    @property
    def _first(self) -> str:
        """The first step of the block at hand."""
        return "index_t(block) * N" if self.many else "0"

    @property
    def _steps(self) -> str:
        """How many steps it has."""
        return f"int(smaller(size_{self.graph.time} - {self._first}, N))"

    # -- values ---------------------------------------------------------------------------------------------------------------

    @staticmethod
    def _declare(node: Node, name: str, expression: str) -> str:
        return f"const {scalar_type(node)} {name} = {expression};"

    def _leaf(self, node: Node, known: dict[Node, Parts]) -> list[str] | None:
        if node.op == "size":
            known[node] = (f"int(size_{node.attrs['axis']})",)
            return []
        if node.op == "index":
            axis = node.attrs["axis"]
            known[node] = (f"(int({self._first}) + tid + {self.place})" if axis == self.graph.time else f"int({self._index(axis)})",)
            return []
        if node.op != "input":
            return None
        a = next(x for x in self.arguments if x.name == node.name)
        name = self.names.of(node)
        known[node] = (name,)
        if self.graph.time in node.axes:
            zero = "0.0f" if node.kind == "real" else "0"
            return [self._declare(node, name, f"inside ? widen({a.name}_at[{self.place}]) : {zero}")]
        return [self._declare(node, name, f"widen(*({self._offset(a)}))")]

    def _over_steps(self, out: Source, roots: list[Node], stop: set[Node], stores: list[Argument]) -> None:
        """Opens the loop over a thread's steps, with the places of what it reads and writes."""
        found = made_of(roots, stop)
        read = [a for a in self.arguments if a.role == "input" and self.graph.time in a.axes and self.graph.input(a.name) in found]
        for a in (*read, *stores):
            const = "const " if a.role == "input" else ""
            out(f"{const}{C_TYPES[a.dtype]}* const {a.name}_at = {self._offset(a)} + {self._first} + tid;")
        out(f"const int mine = {self._steps} - tid;", "#pragma unroll")
        out.open(f"for (int i = 0; i < {self.count}; ++i) {{")
        out(f"const bool inside = {self.place} < mine;")

    def _load(self, out: Source, signal: Node) -> None:
        out.open("{")
        self._over_steps(out, [signal], set(), [])
        known = dict(self.still)
        self._body(out, [signal], known)
        out(f"re[i] = {self._inside(signal, known[signal][0])};").close().close()

    def _inside(self, node: Node, value: str) -> str:
        return value if self._vanishes(node) else f"inside ? {value} : 0.0f"

    def _write(self, out: Source, values: dict[Node, str]) -> None:
        """What the graph makes of products."""
        out.open("{")
        stores = [a for a in self.arguments if a.role == "store"]
        self._over_steps(out, [o.node for o in self.plan.stores], set(values), stores)
        known = self.still | {node: (value,) for node, value in values.items()}
        self._body(out, [o.node for o in self.plan.stores], known)
        for o in self.plan.stores:
            a = next(x for x in stores if x.name == o.name)
            out(f"if (inside) {a.name}_at[{self.place}] = Narrow<{C_TYPES[a.dtype]}>::of({known[o.node][0]});")
        out.close().close()

    def _terms(self, out: Source, p: Product, re: str, im: str, block: str = "") -> None:
        """Adds a spectrum's number times the kernels' to p_re and p_im."""
        for term in p.terms:
            out.open("{")
            out(f"const float2 k = read_only({term.kernel.name}_at + {f'index_t({block}) * N + ' if block else ''}i * THREADS);")
            plus, minus = ("+", "-") if term.reverse else ("-", "+")
            out(f"p_re += {re} * k.x {plus} {im} * k.y, p_im += {im} * k.x {minus} {re} * k.y;").close()

    def _back(self, out: Source, n: int, p: Product) -> str:
        """A product's spectrum in registers to steps; where they are then."""
        out("back(re, im, shared, table_ptr);")
        if len(self.products) == 1:
            return "re[i]"
        out("#pragma unroll", f"for (int i = 0; i < E; ++i) product{n}[i] = re[i];")
        return f"product{n}[i]"

    # -- one block ------------------------------------------------------------------------------------------------------------

    def _one_block(self, out: Source) -> None:
        plan = self.plan
        self._channel(out, "block_here()")
        self._keep_on_chip(out)
        for i in range(len(self.pairs)):
            if self._sums_on_chip:
                place = self.passes.floats + 2 * (len(self.kept) + i) * self.passes.points
                out(f"float2* const m{i} = reinterpret_cast<float2*>(shared + {place}) + tid;", "#pragma unroll",
                    f"for (int i = 0; i < E; ++i) m{i}[i * THREADS] = float2{{0, 0}};")
            else:
                out(f"float m{i}_re[E], m{i}_im[E];", f"clear(m{i}_re, m{i}_im);")
        self._step(out)
        for n, s in enumerate(self.order):
            if n:
                out("together();")
            self._load(out, s)
            out("there(re, im, shared, table_ptr);")
            if s in self.kept:
                out(f"keep({self.signals[s]}_kept, re, im);")
        held = self._products_of_last(out)
        values = {}
        for n in range(len(self.products) if len(self.products) > 1 else 0):
            out(f"float product{n}[E];")
        for n, p in enumerate(self.products):
            if p not in held:
                self._product_of_kept(out, p)
            if n:
                out("together();")
            values[p.node] = self._back(out, n, p)
        if plan.stores:
            self._write(out, values)
        out.close()
        for i in range(len(self.pairs)):
            to = f"partial{i}_ptr + (part * {self._count} + {self._whole}) * N"
            if self._sums_on_chip:
                out(f"float2* const to{i} = {to} + tid;", "#pragma unroll",
                    f"for (int i = 0; i < E; ++i) to{i}[i * THREADS] = m{i}[i * THREADS];")
            else:
                out(f"keep({to}, m{i}_re, m{i}_im);")

    def _keep_on_chip(self, out: Source) -> None:
        for i, s in enumerate(self.kept):
            place = self.passes.floats + 2 * i * self.passes.points
            out(f"float2* const {self.signals[s]}_kept = reinterpret_cast<float2*>(shared + {place});")

    def _products_of_last(self, out: Source) -> list[Product]:
        """What needs the last signal's spectrum, in registers: sums over rows, and the first product of it, which takes its place."""
        last = self.order[-1]
        held = self.products[:1] if self.products and self.products[0].terms[0].signal is last else []
        if self.pairs:
            out("#pragma unroll").open("for (int i = 0; i < E; ++i) {")
            for s in self.order:
                word = self.signals[s]
                if s is last:
                    out(f"const float {word}_re = re[i], {word}_im = im[i];")
                elif any(s in pair for pair in self.pairs):
                    out(f"const float2 {word} = {word}_kept[i * THREADS + tid];",
                        f"const float {word}_re = {word}.x, {word}_im = {word}.y;")
            for i, (x, g) in enumerate((self.signals[a], self.signals[b]) for a, b in self.pairs):
                re, im = f"{x}_re * {g}_re + {x}_im * {g}_im", f"{x}_re * {g}_im - {x}_im * {g}_re"
                if self._sums_on_chip:
                    out.open("{")
                    out(f"const float2 m = m{i}[i * THREADS];", f"m{i}[i * THREADS] = float2{{m.x + ({re}), m.y + ({im})}};").close()
                else:
                    out(f"m{i}_re[i] += {re}, m{i}_im[i] += {im};")
            out.close()
        for p in held:
            out("#pragma unroll").open("for (int i = 0; i < E; ++i) {")
            out("const float x_re = re[i], x_im = im[i];", "float p_re = 0, p_im = 0;")
            self._terms(out, p, "x_re", "x_im")
            out("re[i] = p_re, im[i] = p_im;").close()
        return held

    def _product_of_kept(self, out: Source, p: Product) -> None:
        """A product of a signal whose spectrum was kept."""
        word = self.signals[p.terms[0].signal]
        out("#pragma unroll").open("for (int i = 0; i < E; ++i) {")
        out(f"const float2 v = {word}_kept[i * THREADS + tid];", "float p_re = 0, p_im = 0;")
        self._terms(out, p, "v.x", "v.y")
        out("re[i] = p_re, im[i] = p_im;").close()

    @property
    def _count(self) -> str:
        return "(" + (" * ".join(f"size_{a}" for a in self.plan.channels) or "1") + ")"

    @property
    def _whole(self) -> str:
        """A channel's number among all."""
        channel = ""
        for a in self.plan.channels:
            channel = f"({channel} * size_{a} + i_{a})" if channel else f"i_{a}"
        return channel or "0"

    # -- several blocks -------------------------------------------------------------------------------------------------------

    def _blocks(self, out: Source) -> None:
        plan, count = self.plan, len(self.plan.signals)
        out(f"float2* const mine_ptr = scratch_ptr + index_t(block_here()) * {count} * blocks * N;")
        for n, s in enumerate(self.signals.values()):
            out(f"float2* const {s}_kept = mine_ptr + {n} * blocks * N;")
        out.open("for (index_t item = block_here(); item < items; item += programs) {")
        self._channel(out, "item")
        self._step(out)
        out.open("for (int block = 0; block < blocks; ++block) {")
        for signal, s in self.signals.items():
            self._load(out, signal)
            out("together();", "there(re, im, shared, table_ptr);", f"keep({s}_kept + index_t(block) * N, re, im);")
        out.close()
        if plan.stores:
            out.open("for (int block = 0; block < blocks; ++block) {")
            for n in range(len(self.products) if len(self.products) > 1 else 0):
                out(f"float product{n}[E];")
            values = {}
            for n, p in enumerate(self.products):
                self._sum_of_blocks(out, p)
                out("together();")
                values[p.node] = self._back(out, n, p)
            self._write(out, values)
            out.close()
        if self.pairs:
            self._gradients(out)
        out.close().close()

    def _sum_of_blocks(self, out: Source, p: Product) -> None:
        s = self.signals[p.terms[0].signal]
        out("clear(re, im);")
        for reverse in (False, True):
            terms = tuple(t for t in p.terms if t.reverse == reverse)
            if not terms:
                continue
            bounds = "int j = block - int(smaller(near - 1, block)); j <= block"
            if reverse:
                bounds = "int j = block; j < smaller(blocks, block + near)"
            out.open(f"for ({bounds}; ++j) {{")
            out("#pragma unroll").open("for (int i = 0; i < E; ++i) {")
            out(f"const float2 v = {s}_kept[index_t(j) * N + i * THREADS + tid];", "float p_re = re[i], p_im = im[i];")
            self._terms(out, Product(p.node, terms), "v.x", "v.y", "j - block" if reverse else "block - j")
            out("re[i] = p_re, im[i] = p_im;").close().close()

    def _gradients(self, out: Source) -> None:
        out.open("for (int d = 0; d < held; ++d) {")
        for i, (x, g) in enumerate((self.signals[a], self.signals[b]) for a, b in self.pairs):
            out.open("{")
            out(f"float2* const to = partial{i}_ptr + ((part * {self._count} + {self._whole}) * held + d) * N;", "#pragma unroll")
            out.open("for (int i = 0; i < E; ++i) {")
            out("const float2 v = step ? to[i * THREADS + tid] : float2{0, 0};", "re[i] = v.x, im[i] = v.y;").close()
            out.open("for (int j = d; j < blocks; ++j) {")
            out("#pragma unroll").open("for (int i = 0; i < E; ++i) {")
            out(f"const float2 x = {x}_kept[index_t(j - d) * N + i * THREADS + tid], y = {g}_kept[index_t(j) * N + i * THREADS + tid];",
                "re[i] += x.x * y.x + x.y * y.y, im[i] += x.x * y.y - x.y * y.x;").close().close()
            out("keep(to, re, im);").close()
        out.close()


__all__ = ["RadixPrinter"]
