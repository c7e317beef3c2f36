"""The CUDA backend, printing the form convolution by its route ``radix``: float32 transforms held in registers.

    kernel_spectrum    spectra of the convolution kernels, once a call
    convolution        per channel and part of its rows: signals in, spectra, products, results out
    kernel_gradient    back to steps from the sums over rows, in a backward

A block of threads transforms N = outer·inner steps at a time, each thread N / threads of them in registers, in two or three passes with an
exchange through shared memory between (cuda_fft.h). Frequencies are a quarter further on, so that N real steps take N complex points
without zeros for padding, as in triton_convolution_language.py. A thread reads of spectra only what it wrote itself: their order in
memory, [register, thread], is the one in which the last pass leaves them, and no one else's concern.

Sequences of several blocks leave their spectra in scratch memory; with K'_d = K_d + i K_{d-1} a result's block i is the real part of
the transform back of Σ_j X_j K'_{i-j} (docs/kernels/convolution.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from scanc.codegen.cuda import CudaSource
from scanc.codegen.cuda_dialect import C_TYPES, CudaDialect, scalar_type, taken_names
from scanc.codegen.emit import Parts, Source
from scanc.codegen.layout import Buffer, Mode
from scanc.codegen.triton_chunked import Argument
from scanc.codegen.triton_convolution import ConvolutionPrinter
from scanc.codegen.triton_convolution_language import OPERANDS
from scanc.errors import ScheduleError
from scanc.forms.convolution import ConvolutionPlan, Product
from scanc.ir import Node, topological
from scanc.schedule import ConvolutionSchedule

COMPLEX = "complex64"
# Shared memory of a block, and how much of it what is kept of a row's spectra may take.
SHARED = 227 << 10
# Points up to which both exchanges have memory of their own, and a block's spectra are kept in shared memory.
SMALL = 4096
WORDS = """E N THREADS FIRST SECOND THIRD ONE_BUFFER Complex re im i e block step row rows left rest part item items walk blocks near held
programs tid mine inside start shared table lags parts size channel channels scratch kept last j d v w x y x_re x_im k_re k_im taps
there back points twiddle turn cosine sine apart keep clear together anew times at from to which first here group Way OWN
arguments""".split()  # noqa: SIM905


@dataclass(frozen=True)
class RadixSource(CudaSource):
    """One kernel's source: its tensors, and the numbers that its launch gives beside their strides."""

    arguments: tuple[Argument, ...] = ()
    numbers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Passes:
    """How a block of ``points`` is transformed by ``threads``: ``radices`` of its passes, and the floats of shared memory between them.
    ``tight``: what else lies there leaves room for one exchange."""

    points: int
    threads: int
    radices: tuple[int, int, int]
    tight: bool = False

    @property
    def one_buffer(self) -> bool:
        return self.tight or self.points > SMALL

    @property
    def floats(self) -> int:
        first, second, third = self.radices
        sizes = [self._exchange(self.points, first, second)]
        sizes += [self._exchange(self.points // first, second, third)] if third > 1 else []
        return 2 * (max(sizes) if self.one_buffer else sum(sizes))

    def _exchange(self, points: int, before: int, after: int) -> int:
        """What cuda_fft.h's Hand takes: a row's neighbours lie so that no two threads of a warp want the same bank."""
        row = points // before
        return self.points // row * (row + (row // after if row // after < 32 else 0))


def passes(schedule: ConvolutionSchedule) -> Passes:
    """The passes of a schedule's block. Raises ScheduleError.

    Before -> after:  4096 points of 256 threads -> 16 · 16 · 16,  1024 of 32 -> 32 · 32
    """
    points, threads = schedule.block, 32 * schedule.warps
    bits, own = points.bit_length() - 1, (points // threads).bit_length() - 1
    if not 3 <= own <= 5 or bits > 3 * own:
        raise ScheduleError(field="warps", value=schedule.warps,
                            limit=f"a thread transforms 8 to 32 of a block's {points} points, in at most three passes")
    rest = bits - own
    second = rest if rest <= own else -(-rest // 2)
    return Passes(points, threads, (1 << own, 1 << second, 1 << (rest - second)), bool(schedule.apart))


def module(name: str, title: str, schedule: ConvolutionSchedule, arguments: tuple[Argument, ...], numbers: tuple[str, ...], body: Source, *,
           kept: int = 0, resident: int = 1, head: tuple[str, ...] = (), columns: int = 0) -> RadixSource:
    """A kernel's text around its body, and what launching it takes. ``kept``: floats of shared memory beside the exchanges'; ``columns``:
    threads of a kernel of columns, which has no exchanges but those that ``kept`` is for."""
    p = passes(schedule)
    out = Source()
    out(f"// {title}", f"// {schedule}", *(f"// {a.role:5} {a.name}: {a.dtype}[{' '.join(a.axes)}]" for a in arguments))
    out("", '#include "cuda.h"', "")
    first, second, third = p.radices
    out(f"constexpr int N = {p.points}, THREADS = {p.threads};  // steps of a block, threads",
        f"constexpr int FIRST = {first}, SECOND = {second}, THIRD = {third};  // points of the passes",
        f"constexpr bool ONE_BUFFER = {'true' if p.one_buffer else 'false'};", *head, "")
    out('#include "cuda_fft.h"', "")
    out.open("struct Arguments {")
    out(*(f"{'' if a.role != 'input' else 'const '}{_type(a)}* {a.name}_ptr;" for a in arguments))
    words = [*(s for a in arguments for s in a.strides), *numbers, "programs"]
    out(f"index_t {', '.join(words)};").close("};")("")
    bounds = f"{columns or p.threads}, {resident}"
    out.open(f'extern "C" __global__ void __launch_bounds__({bounds}) run(const __grid_constant__ Arguments arguments) {{')
    text = body.text()
    out(*(f"{'' if a.role != 'input' else 'const '}{_type(a)}* const {a.name}_ptr = arguments.{a.name}_ptr;" for a in arguments))
    out(*(f"const index_t {w} = arguments.{w};" for w in words if w in text))
    if kept or not columns:
        out("extern __shared__ __align__(16) float shared[];")
    if not columns:
        out("const int tid = threadIdx.x;")
    buffers = tuple(Buffer(a.name, a.role, a.axes, (), a.dtype, None) for a in arguments)  # type: ignore[arg-type]
    return RadixSource(name=name, language="cuda", text=out.text() + text + "}\n", plan=None, schedule=schedule, mode=Mode(),  # type: ignore[arg-type]
                       buffers=buffers, lanes=1, threads=columns or p.threads, shared=4 * ((0 if columns else p.floats) + kept),
                       arguments=arguments, numbers=numbers)


def _made_of(roots: list[Node], stop: set[Node]) -> set[Node]:
    """The roots and what they are made of, down to ``stop``, whose own makings are not looked at."""
    found: set[Node] = set()
    todo = list(roots)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += [] if node in stop else node.args
    return found


def _type(a: Argument) -> str:
    return "float2" if a.dtype == COMPLEX else C_TYPES[a.dtype]


TABLE = Argument("table", (), COMPLEX, "inner")


def kernel_spectrum(schedule: ConvolutionSchedule, dtype: str, title: str) -> RadixSource:
    """Spectra K'_d = K_d + i K_{d-1} of a contiguous tensor of kernels [which, taps], divided by N: [which, near, N]."""
    out = Source().indent()
    out(f"const {C_TYPES[dtype]}* const k = k_ptr + index_t(block_here()) * size;",
        "float2* const to = spectrum_ptr + index_t(block_here()) * near * N;")
    out.open("for (int d = 0; d < near; ++d) {")
    out("const int mine = int(smaller(size - index_t(d) * N, N)) - tid;",
        f"const {C_TYPES[dtype]}* const from = k + index_t(d) * N + tid;", "float re[E], im[E];", "#pragma unroll",
        "for (int i = 0; i < E; ++i) re[i] = apart(i) < mine ? widen(from[apart(i)]) * (1.0f / N) : 0.0f;",
        "together();", "there(re, im, shared, table_ptr);", "keep(to + index_t(d) * N, re, im);").close()
    out.open("for (int d = int(near) - 1; d > 0; --d) {")
    out("float2* const here = to + index_t(d) * N + tid;", "#pragma unroll")
    out.open("for (int i = 0; i < E; ++i) {")
    out("const float2 v = here[i * THREADS], w = here[i * THREADS - N];", "here[i * THREADS] = float2{v.x - w.y, v.y + w.x};")
    out.close().close()
    arguments = (Argument("k", (), dtype, "input"), Argument("spectrum", (), COMPLEX, "inner"), TABLE)
    return module("radix_spectrum", title, schedule, arguments, ("size", "near"), out)


def kernel_gradient(schedule: ConvolutionSchedule, dtype: str, title: str) -> RadixSource:
    """A contiguous tensor of kernels' gradients [channel, taps] from the programs' partial sums [part, channel, held, N]."""
    out = Source().indent()
    out("const index_t lags = (size + N - 1) / N, channel = block_here() / lags, d = block_here() % lags;")
    out("float re[E], im[E];", "clear(re, im);")
    out.open("for (int part = 0; part < parts; ++part) {")
    out("const float2* const from = partial_ptr + ((part * channels + channel) * held + d) * N + tid;", "#pragma unroll")
    out.open("for (int i = 0; i < E; ++i) {")
    out("const float2 v = from[i * THREADS];", "re[i] += v.x, im[i] += v.y;")
    out.open("if (d + 1 < held) {")
    out("const float2 w = from[N + i * THREADS];", "re[i] += w.y, im[i] -= w.x;").close().close().close()
    out("back(re, im, shared, table_ptr);", "const int mine = int(smaller(size - d * N, N)) - tid;",
        f"{C_TYPES[dtype]}* const to = dk_ptr + channel * size + d * N + tid;", "#pragma unroll", "for (int i = 0; i < E; ++i)",
        f"    if (apart(i) < mine) to[apart(i)] = Narrow<{C_TYPES[dtype]}>::of(re[i] * (1.0f / N));")
    arguments = (Argument("partial", (), COMPLEX, "inner"), Argument("dk", (), dtype, "store"), TABLE)
    return module("radix_gradient", title, schedule, arguments, ("size", "channels", "held", "parts"), out)


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
        needed = _made_of(roots, products)
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
        found = _made_of(roots, stop)
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


__all__ = ["Passes", "RadixPrinter", "RadixSource", "kernel_gradient", "kernel_spectrum", "passes"]
