"""The Triton backend, printing the form convolution for long sequences: by its route ``passes``, three passes over memory.

A sequence of N = P·M steps is a matrix x[t0, t'], t = t0·M + t', and its frequencies are p + P q, a quarter further on
(triton_convolution_language.py says why). Of the transform

    X[p + P q] = Σ_t' e^{-2πi t' q/M} ( e^{-2πi t' (p+1/4)/N} Σ_t0 e^{-2πi t0 (p+1/4)/P} x[t0, t'] )

``columns`` makes the inner sums and the twiddle, a program a few columns t'; ``middle`` the outer ones, a program a channel and p, by
products with small matrices as for a short sequence, multiplies by the kernels' spectra and goes back; ``steps`` makes the inner sums
backwards and what the graph makes of results. Between passes there are 16-bit numbers, scaled by a power of two a few columns at a time.

Kernels go through the first two passes; sums over rows of a backward stay in ``middle``'s registers and go back like a result.
"""

from __future__ import annotations

from scanc.codegen.emit import Parts, Source
from scanc.codegen.triton_chunked import Argument
from scanc.codegen.triton_convolution import ConvolutionPrinter, inner_arguments
from scanc.codegen.triton_convolution_language import TRANSFORMS, Operands
from scanc.forms.convolution import ConvolutionPlan
from scanc.ir import Node
from scanc.schedule import ConvolutionSchedule

# z: [item, p, (re, im), M]; backs: [item, columns' tile], the factor that takes a tile's scaling back; tops: [item, p], that of results.
PASSES = '''\
@triton.jit
def across(turn_ptr, chunk, P: tl.constexpr, C: tl.constexpr):
    # e^{-2πi t' (p+1/4)/N}, t' = chunk C + c, from those of the chunk's first column [chunk, 2, P] and, before them, of c [2, P, C].
    p, c = tl.arange(0, P)[:, None], tl.arange(0, C)[None, :]
    a_re, a_im = tl.load(turn_ptr + p * C + c), tl.load(turn_ptr + P * C + p * C + c)
    here = turn_ptr + 2 * P * C + chunk * (2 * P) + p
    b_re, b_im = tl.load(here), tl.load(here + P)
    return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re


@triton.jit
def leave_columns(x, z_ptr, backs_ptr, first_ptr, turn_ptr, item, chunk, M: tl.constexpr, P: tl.constexpr, C: tl.constexpr):
    # The sums over t0 of a tile x[t0, c], twiddled.
    small, back = unit(tl.reduce(tl.reduce(tl.abs(x), 1, tl.standard._elementwise_max), 0, tl.standard._elementwise_max))
    first = tl.load(first_ptr + tl.arange(0, 2 * P)[:, None] * P + tl.arange(0, P)[None, :])
    a_re, a_im = halves_below(tl.dot(first, (x * small).to(first.dtype), input_precision="ieee"), P, C)
    w_re, w_im = across(turn_ptr, chunk, P, C)
    here = z_ptr + (item * P + tl.arange(0, P)[:, None]) * (2 * M) + chunk * C + tl.arange(0, C)[None, :]
    tl.store(here, a_re * w_re - a_im * w_im)
    tl.store(here + M, a_re * w_im + a_im * w_re)
    tl.store(backs_ptr + item * (M // C) + chunk, back)


@triton.jit
def columns_of(z_ptr, backs_ptr, item, p, N1: tl.constexpr, N2: tl.constexpr, P: tl.constexpr, C: tl.constexpr):
    # All columns of one p, (re, im) below one another, and what takes the scaling of each row of them back.
    row = tl.arange(0, 2 * N1)
    backs = tl.load(backs_ptr + item * (N1 * N2 // C) + row % N1 * N2 // C)
    return tl.load(z_ptr + (item * P + p) * (2 * N1 * N2) + row[:, None] * N2 + tl.arange(0, N2)[None, :]), backs


@triton.jit
def at_one_scale(z, backs):
    # The same brought to one scale, and the factor that takes it back.
    top = tl.reduce(backs, 0, tl.standard._elementwise_max)
    return (z.to(tl.float32) * (backs / top)[:, None]).to(z.dtype), top


@triton.jit
def leave_steps(e, top, z_ptr, tops_ptr, item, p, N1: tl.constexpr, N2: tl.constexpr, P: tl.constexpr):
    # What the middle makes, where its columns were.
    tl.store(z_ptr + (item * P + p) * (2 * N1 * N2) + tl.arange(0, 2 * N1)[:, None] * N2 + tl.arange(0, N2)[None, :], e)
    tl.store(tops_ptr + item * P + p, top)


@triton.jit
def steps_from(z_ptr, tops_ptr, first_ptr, turn_ptr, item, chunk, M: tl.constexpr, P: tl.constexpr, C: tl.constexpr):
    # A tile y[t0, c].
    p = tl.arange(0, P)
    tops = tl.load(tops_ptr + item * P + p)
    top = tl.reduce(tops, 0, tl.standard._elementwise_max)
    part = (tops / tl.maximum(top, 1e-37))[:, None]
    here = z_ptr + (item * P + p[:, None]) * (2 * M) + chunk * C + tl.arange(0, C)[None, :]
    c_re, c_im = tl.load(here).to(tl.float32) * part, tl.load(here + M).to(tl.float32) * part
    w_re, w_im = across(turn_ptr, chunk, P, C)
    first = tl.load(first_ptr + tl.arange(0, 2 * P)[:, None] * P + tl.arange(0, P)[None, :])
    e = below(c_re * w_re + c_im * w_im, c_im * w_re - c_re * w_im, P, C).to(first.dtype)
    return tl.dot(tl.trans(first), e, input_precision="ieee") * (top * (1.0 / P))
'''


class PassesPrinter(ConvolutionPrinter):
    """What the passes share. ``points``: P."""

    counts = ("rows", "base")

    def __init__(self, plan: ConvolutionPlan, schedule: ConvolutionSchedule, operands: Operands, points: int, title: str,
                 signal: Node | None = None) -> None:
        self.points, self.signal = points, signal
        super().__init__(plan, schedule, operands, title)
        self.scaled = True

    @property
    def library(self) -> str:
        return f"{TRANSFORMS}\n\n{PASSES}"

    def _constants(self) -> list[str]:
        s = self.schedule
        return [f"P: tl.constexpr = {self.points}  # points of the first transform, of columns",
                f"N1: tl.constexpr = {s.outer}  # points of the second", f"N2: tl.constexpr = {s.inner}  # and the third",
                f"M: tl.constexpr = {s.block}  # columns", f"C: tl.constexpr = {columns_tile(self.points, s)}  # of a tile",
                f"W: tl.constexpr = {min(s.warps, s.outer // 16)}  # warps side by side along a spectrum's first axis"]

    def _z(self, word: str, *, tops: bool = False) -> list[Argument]:
        factors = f"{word}_{'tops' if tops else 'backs'}"
        return [Argument(f"{word}_z", (), self.operands.spectra, "inner"), Argument(factors, (), "float32", "inner")]

    def _first(self) -> list[Argument]:
        return [Argument("first", (), self.operands.matrix, "inner"), Argument("turn", (), "float32", "inner")]

    def _which(self, out: Source, channel: str) -> None:
        out(f"rest = {channel}")
        for axis in reversed(self.plan.channels):
            out(f"i_{axis} = (rest % size_{axis}).to(tl.int64)", f"rest = rest // size_{axis}")

    def _row(self, out: Source, row: str) -> None:
        out(f"left = {row}")
        for axis in reversed(self.plan.rows):
            out(f"i_{axis} = (left % size_{axis}).to(tl.int64)", f"left = left // size_{axis}")

    def _tile_of_columns(self, out: Source, rows: str) -> None:
        """Which tile of columns, row and channel a program of the first or the last pass has."""
        out("chunk = tl.program_id(0) % (M // C)", "item = (tl.program_id(0) // (M // C)).to(tl.int64)")
        self._which(out, f"(base + item // {rows})")
        if rows != "1":
            self._row(out, f"(item % {rows})")
        out("in_rows = item >= 0")  # there are no others
        out("t = tl.arange(0, P)[:, None] * M + chunk * C + tl.arange(0, C)[None, :]", f"inside = t < size_{self.graph.time}")

    @property
    def _block(self) -> str:
        return "0"

    def _place(self, a: Argument) -> str:
        terms = [f"{a.name}_ptr", *(f"{self._index(x)} * {s}" for x, s in zip(a.axes, a.strides, strict=True) if x != self.graph.time)]
        return " + ".join([*terms, *([f"t * {a.strides[a.axes.index(self.graph.time)]}"] if self.graph.time in a.axes else [])])


class ColumnsPrinter(PassesPrinter):
    """The first pass of a signal, or of a kernel."""

    @property
    def kind(self) -> str:  # type: ignore[override]
        return f"columns_of_{self._word}"

    @property
    def _word(self) -> str:
        assert self.signal is not None
        return str(self.signal.name) if self.signal in self.plan.kernels else f"s{self.plan.signals.index(self.signal)}"

    def _roots(self) -> list[Node]:
        assert self.signal is not None
        return [self.signal]

    def _printed(self) -> set[Node]:
        found: set[Node] = set()
        todo = self._roots()
        while todo:
            node = todo.pop()
            if node not in found:
                found.add(node)
                todo += node.args
        return found

    def _between(self) -> list[Argument]:
        self.arguments = [a for a in self.arguments if a.role == "input"]
        return [*self._z(self._word), *self._first()]

    def _program(self, out: Source) -> None:
        assert self.signal is not None
        self._tile_of_columns(out, "1" if self.signal in self.plan.kernels else "rows")
        known: dict[Node, Parts] = {}
        self._body(out, [self.signal], known)
        value = self._inside(self.signal, known[self.signal][0])
        out(f"leave_columns({value}, {self._word}_z_ptr, {self._word}_backs_ptr, first_ptr, turn_ptr, item, chunk, M, P, C)")


class MiddlePrinter(PassesPrinter):
    """The second pass, of all signals, products and sums over rows; of a kernel's columns alone where ``signal`` is one."""

    @property
    def kind(self) -> str:  # type: ignore[override]
        return "middle" if self.signal is None else f"spectra_of_{self.signal.name}"

    def _roots(self) -> list[Node]:
        return []

    def _printed(self) -> set[Node]:
        return set()

    def _between(self) -> list[Argument]:
        if self.signal is not None:
            k = str(self.signal.name)
            return [*self._z(k), Argument(f"{k}_spectrum", (), self.operands.spectra, "inner"),
                    Argument(f"{k}_scale", (), "float32", "inner"), *inner_arguments(self.operands)]
        found = [a for s in self.signals.values() for a in self._z(s)]
        found += [a for i in range(len(self.plan.products)) for a in self._z(f"product{i}", tops=True)]
        found += [a for i in range(len(self.pairs)) for a in self._z(f"pair{i}", tops=True)]
        found += [Argument(f"{k.name}_{w}", (), self.operands.spectra if w == "spectrum" else "float32", "inner")
                  for k in self.plan.kernels for w in ("spectrum", "scale")]
        return found + inner_arguments(self.operands)

    def _program(self, out: Source) -> None:
        out("R: tl.constexpr = 1", "N: tl.constexpr = M", "f = tl.arange(0, M)", "p = tl.program_id(0) % P",
            "local = (tl.program_id(0) // P).to(tl.int64)",
            "outer = tl.load(outer_ptr + tl.arange(0, 2 * N1)[:, None] * (2 * N1) + tl.arange(0, 2 * N1)[None, :])",
            "inner = tl.load(inner_ptr + tl.arange(0, 2 * N2)[:, None] * (2 * N2) + tl.arange(0, 2 * N2)[None, :])")
        if self.signal is not None:
            self._spectra(out, str(self.signal.name))
            return
        for k in self.plan.kernels:
            out(f"{k.name}_at = {k.name}_spectrum_ptr + (local * P + p) * (2 * M) + f",
                f"{k.name}_scale = tl.load({k.name}_scale_ptr + base + local)")
        tops(self, out)
        for i in range(len(self.pairs)):
            out(f"m{i}_re = tl.full((N1, N2), 0.0, tl.float32)", f"m{i}_im = tl.full((N1, N2), 0.0, tl.float32)")
        ahead = self.schedule.ahead == 1
        for s in self.signals.values() if ahead else ():
            out(f"{s}_wide, {s}_peak = columns_of({s}_z_ptr, {s}_backs_ptr, local * rows, p, N1, N2, P, C)")
        out.open("for row in range(rows):")
        out("item = local * rows + row")
        for s in self.signals.values():
            if not ahead:
                out(f"{s}_wide, {s}_peak = columns_of({s}_z_ptr, {s}_backs_ptr, item, p, N1, N2, P, C)")
            out(f"{s}, {s}_back = at_one_scale({s}_wide, {s}_peak)")
        if ahead:  # after the last row that one's again, in vain
            out("coming = tl.minimum(item + 1, local * rows + rows - 1)")
        for s in self.signals.values() if ahead else ():
            out(f"{s}_wide, {s}_peak = columns_of({s}_z_ptr, {s}_backs_ptr, coming, p, N1, N2, P, C)")
        for i, s in enumerate(self.signals.values()):
            out(f"{s}_re, {s}_im = spectrum_of({s}, outer, inner, twiddle_ptr, {i}, N1, N2, R, W)")
        for i, (x, g) in enumerate((self.signals[a], self.signals[b]) for a, b in self.pairs):
            out(f"m{i}_re += ({x}_re * {g}_re + {x}_im * {g}_im) * ({x}_back * {g}_back)",
                f"m{i}_im += ({x}_re * {g}_im - {x}_im * {g}_re) * ({x}_back * {g}_back)")
        for i, product in enumerate(self.plan.products):
            s = self.signals[product.terms[0].signal]
            for n, term in enumerate(product.terms):
                self._multiply(out, product, term, f"{s}_re", f"{s}_im", "0", n == 0)
            use = len(self.signals) + i
            out(f"e = steps_of(next_to(p_re, p_im, N1, N2).to(inner.dtype), outer, inner, twiddle_ptr, {use}, N1, N2, R, W)",
                f"leave_steps(e, {s}_back, product{i}_z_ptr, product{i}_tops_ptr, item, p, N1, N2, P)")
        out.indent(-1)
        for i in range(len(self.pairs)):
            out(f"both = next_to(m{i}_re, m{i}_im, N1, N2)",
                "small, back = unit(tl.reduce(peak_of(both, 2 * N2, 1), 0, tl.standard._elementwise_max))",
                "e = steps_of((both * small).to(inner.dtype), outer, inner, twiddle_ptr, 0, N1, N2, R, W)",
                f"leave_steps(e, back, pair{i}_z_ptr, pair{i}_tops_ptr, local, p, N1, N2, P)")

    def _spectra(self, out: Source, k: str) -> None:
        """A kernel's spectra divided by ``scale``, which no value of them passes."""
        out(f"k, backs = columns_of({k}_z_ptr, {k}_backs_ptr, local, p, N1, N2, P, C)", "k, back = at_one_scale(k, backs)",
            "re, im = spectrum_of(k, outer, inner, twiddle_ptr, 0, N1, N2, R, W)",
            f"less = back / tl.load({k}_scale_ptr + base + local)",
            f"here = {k}_spectrum_ptr + (local * P + p) * (2 * M) + f",
            "tl.store(here, memory_of(re * less, N1, N2, W))", "tl.store(here + M, memory_of(im * less, N1, N2, W))")


class StepsPrinter(PassesPrinter):
    """The last pass: what the graph makes of products."""

    kind = "steps"

    def _roots(self) -> list[Node]:
        return [o.node for o in self.plan.stores]

    def _between(self) -> list[Argument]:
        found = [a for i in range(len(self.plan.products)) for a in self._z(f"product{i}", tops=True)]
        found += [Argument(f"{k.name}_scale", (), "float32", "inner") for k in self.plan.kernels]
        return [*found, *self._first()]

    def _program(self, out: Source) -> None:
        self._tile_of_columns(out, "rows")
        out("local = item // rows")
        for k in self.plan.kernels:
            out(f"{k.name}_scale = tl.load({k.name}_scale_ptr + base + local)")
        tops(self, out)
        known: dict[Node, Parts] = {}
        for i, product in enumerate(self.plan.products):
            name = self.names.of(product.node)
            made = f"steps_from(product{i}_z_ptr, product{i}_tops_ptr, first_ptr, turn_ptr, item, chunk, M, P, C)"
            out(f"{name} = {made} * {self._top(product)}")
            known[product.node] = (name,)
        self._store(out, known)


class PairPrinter(PassesPrinter):
    """The last pass of a kernel's gradient, to a contiguous tensor [channel, steps]; ``dtype`` is what it is stored in."""

    kind = "gradient"

    def __init__(self, plan: ConvolutionPlan, schedule: ConvolutionSchedule, operands: Operands, points: int, title: str,
                 dtype: str) -> None:
        self.dtype = dtype
        super().__init__(plan, schedule, operands, points, title)

    def _roots(self) -> list[Node]:
        return []

    def _printed(self) -> set[Node]:
        return set()

    def _between(self) -> list[Argument]:
        return [*self._z("pair", tops=True), *self._first(), Argument("dk", (), self.dtype, "inner")]

    def _program(self, out: Source) -> None:
        self._tile_of_columns(out, "1")
        out("dk = steps_from(pair_z_ptr, pair_tops_ptr, first_ptr, turn_ptr, item, chunk, M, P, C)",
            f"tl.store(dk_ptr + (base + item) * size_{self.graph.time} + t, dk, mask=inside)")


def tops(printer: PassesPrinter, out: Source) -> None:
    """The factor that brings the kernels that a product adds up to one scale."""
    for p in printer.plan.products:
        kernels = list(dict.fromkeys(t.kernel for t in p.terms))
        top = f"{kernels[0].name}_scale"
        for k in kernels[1:]:
            top = f"tl.maximum({top}, {k.name}_scale)"
        out(f"{printer._top(p)} = {top}")


def columns_tile(points: int, schedule: ConvolutionSchedule) -> int:
    """Columns of a tile: 4096 numbers or fewer, whole rows of the middle's matrices, and enough side by side in memory."""
    return max(schedule.inner, min(128, 4096 // points))


__all__ = ["ColumnsPrinter", "MiddlePrinter", "PairPrinter", "StepsPrinter", "columns_tile"]
