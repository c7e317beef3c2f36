"""The Triton backend, printing the form convolution without transforms: by its routes ``toeplitz`` and ``direct``.

    toeplitz    y[t, r] = Σ_s k[t-s] x[s, r]: products of tiles of the Toeplitz matrix with tiles of steps × rows, on the matrix units
    direct      y[t, r] = Σ_j k[j] x[t-j, r]: tap by tap in float32, for a handful of them

A program has one channel, one tile of results and walks rows, R at a time. Where one tile holds the sequence (not ``many``) the matrix is
loaded once and serves every row. Kernels' gradients are made by programs of their own: Σ_r g[t, r] x[s, r] on the matrix units, whose
diagonals are added up at the end.

A tile of the matrix is 16-byte loads from eight copies of the taps, each a step further on (``TAP_COPIES``): row t reads copy t mod 8.
"""

from __future__ import annotations

from scanc.codegen.emit import Parts, Source
from scanc.codegen.triton_chunked import Argument
from scanc.codegen.triton_convolution import HEAD, ConvolutionPrinter, ConvolutionSource
from scanc.codegen.triton_convolution_language import UNIT, Operands
from scanc.forms.convolution import ConvolutionPlan, Product, Term
from scanc.ir import Node
from scanc.schedule import ConvolutionSchedule

# Eight copies of a kernel's taps for the rows t of a tile, r = t mod 8:  copy_r[q + edge] = k[r - q], of a reverse kernel k[q - r], where
# q = s - (t - r). So T[t, s..s+7] is side by side and aligned wherever s is a multiple of 8. ``back`` is what brings taps, whose largest
# is scaled below 1, to their size.
TAP_COPIES = '''\
@triton.jit(do_not_specialize=["taps"])
def tap_copies_kernel(k_ptr, copies_ptr, back_ptr, size, taps):
    CONSTANTS
    which = tl.program_id(0).to(tl.int64)
    pitch = (((size + G - 1) // G) + 2) * G
    edge = G if REVERSE else ((size + G - 1) // G) * G
    peak = 0.0
    for start in range(0, taps, G):
        j = start + tl.arange(0, G)
        k = tl.load(k_ptr + which * taps + j, mask=j < taps, other=0.0).to(tl.float32)
        peak = tl.maximum(peak, tl.reduce(tl.abs(k), 0, tl.standard._elementwise_max))
    small, back = unit(peak)
    r = tl.arange(0, 8)[:, None]
    for start in range(0, pitch, G):
        q = start + tl.arange(0, G)[None, :]
        lag = q - edge - r if REVERSE else r - (q - edge)
        k = tl.load(k_ptr + which * taps + lag, mask=(lag >= 0) & (lag < taps), other=0.0).to(tl.float32)
        tl.store(copies_ptr + (which * 8 + r) * pitch + q, (k * small).to(copies_ptr.dtype.element_ty))
    tl.store(back_ptr + which, back)
'''

# Sums of programs' parts. A program of block m left what has lag m N + j in low[j], and what has lag (m - 1) N + j in high[j].
TAPS_GRADIENT = '''\
@triton.jit(do_not_specialize=["channels", "blocks", "kept", "parts", "taps"])
def taps_gradient_kernel(partial_ptr, dk_ptr, taps, channels, blocks, kept, parts):
    CONSTANTS
    channel = (tl.program_id(0) // blocks).to(tl.int64)
    m = tl.program_id(0) % blocks
    j = tl.arange(0, N)
    dk = tl.full((N,), 0.0, tl.float32)
    for part in range(parts):
        here = partial_ptr + ((part * channels + channel) * kept + m) * (2 * N) + j
        dk += tl.load(here)
        dk += tl.load(here + 3 * N, mask=(j >= 0) & (m + 1 < kept), other=0.0)
    tl.store(dk_ptr + channel * taps + m * N + j, dk, mask=m * N + j < taps)
'''

# [t, s] -> sums over its diagonals t - s = j and t - s = j - N, j < N.
DIAGONALS = '''\
@triton.jit
def diagonals(both, N: tl.constexpr):
    t, j = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    turned = tl.gather(both, (t - j) & (N - 1), 1)
    low = tl.reduce(tl.where(j <= t, turned, 0.0), 0, tl.standard._sum_combine)
    return low, tl.reduce(tl.where(j > t, turned, 0.0), 0, tl.standard._sum_combine)
'''


def _widest(schedule: ConvolutionSchedule) -> int:
    """What tiles' edges are multiples of: as far as a tile of the matrix reaches past the sequence."""
    return max(schedule.outer, schedule.inner)


def _lines(constants: dict[str, tuple[object, str]]) -> list[str]:
    return [f"{name}: tl.constexpr = {value}  # {meaning}" for name, (value, meaning) in constants.items()]


def tap_copies(schedule: ConvolutionSchedule, dtype: str, operands: Operands, reverse: bool, title: str) -> ConvolutionSource:
    """Copies of a contiguous tensor of kernels [which, taps]."""
    constants = _lines({"G": (_widest(schedule), "what tiles' edges are multiples of"), "REVERSE": (reverse, "whether steps look ahead")})
    text = f"# {title}\n# {schedule}\n\n{HEAD}{UNIT}\n\n" + TAP_COPIES.replace("CONSTANTS", "\n    ".join(constants))
    arguments = (Argument("k", (), dtype, "inner"), Argument("copies", (), operands.matrix, "inner"),
                 Argument("back", (), "float32", "inner"))
    return ConvolutionSource("tap_copies", text, arguments, ("size", "taps"), 4)


def taps_gradient(schedule: ConvolutionSchedule, dtype: str, title: str) -> ConvolutionSource:
    """A contiguous tensor of kernels' gradients [channel, taps] from the programs' partial sums."""
    constants = _lines({"N": (schedule.outer, "steps of a tile")})
    text = f"# {title}\n# {schedule}\n\n{HEAD}" + TAPS_GRADIENT.replace("CONSTANTS", "\n    ".join(constants))
    arguments = (Argument("partial", (), "float32", "inner"), Argument("dk", (), dtype, "inner"))
    return ConvolutionSource("taps_gradient", text, arguments, ("taps", "channels", "blocks", "kept", "parts"), 4)


class TilesPrinter(ConvolutionPrinter):
    """What both routes' kernels share: values over time are tiles [steps, R], over rows [1, R]."""

    def __init__(self, plan: ConvolutionPlan, schedule: ConvolutionSchedule, operands: Operands, many: bool, title: str) -> None:
        self.many = many
        super().__init__(plan, schedule, operands, title)
        self.scaled = False

    @property
    def library(self) -> str:
        return UNIT

    def _constants(self) -> list[str]:
        s = self.schedule
        return _lines({"N": (s.outer, "steps of a tile of results"), "S": (self._depth, "steps a product takes"),
                       "G": (_widest(s), "what tiles' edges are multiples of"), "R": (s.rows, "rows side by side")})

    def _roots(self) -> list[Node]:
        return [*(t.signal for p in self.plan.products for t in p.terms), *(o.node for o in self.plan.stores)]

    @property
    def _depth(self) -> int:
        return self.schedule.inner if self.many else self.schedule.outer

    @property
    def _block(self) -> str:
        return "0"

    def _place(self, a: Argument) -> str:
        terms = [f"{a.name}_ptr", *(f"{self._index(x)} * {s}" for x, s in zip(a.axes, a.strides, strict=True) if x != self.graph.time)]
        if self.graph.time in a.axes:
            terms.append(f"t * {a.strides[a.axes.index(self.graph.time)]}")
        return " + ".join(terms)

    @property
    def _size(self) -> str:
        return f"size_{self.graph.time}"

    def _program(self, out: Source) -> None:
        out("r = tl.arange(0, R)[None, :]")
        out(f"place = tl.program_id(0) % (({self._size} + N - 1) // N)" if self.many else "place = 0")
        self._channel(out, f"(tl.program_id(0) // (({self._size} + N - 1) // N))" if self.many else "tl.program_id(0)")
        # The longest sums come first, so that what is left at the end is short.
        if self.many:
            out(f"place = (({self._size} + N - 1) // N) - 1 - place")
        self._walk(out)

    def _kernels(self, out: Source) -> None:
        """Nothing is loaded of kernels before it is needed."""

    def _which(self, k: Node) -> str:
        """Which kernel of a contiguous tensor of them a program needs."""
        index = ""
        for a in k.axes:
            if a != self.plan.tap(k):
                index = f"({index} * size_{a} + {self._index(a)})" if index else self._index(a)
        return index or "tl.full((), 0, tl.int64)"

    def _count(self, k: Node) -> str:
        """How many taps a kernel has."""
        tap = self.plan.tap(k)
        return self._size if tap == self.graph.time else f"tl.minimum(size_{tap}, {self._size})"

    def _steps(self, out: Source, first: str, count: str, also: str = "") -> None:
        """``t`` and ``inside`` of ``count`` steps from ``first`` on."""
        out(f"t = tl.broadcast_to(({first} + tl.arange(0, {count}))[:, None], ({count}, R))")
        out(f"inside = in_rows & (t < {self._size}){also}")

    def _signal(self, out: Source, signal: Node, name: str, by_row: bool | None = None) -> None:
        """A signal's tile: float32, or as a product's operand. What is computed may be of any size, and is scaled for float16 as a tile
        or ``by_row``; ``_back`` has what takes that back."""
        known: dict[Node, Parts] = {}
        self._body(out, [signal], known)
        value = self._inside(signal, known[signal][0])
        if by_row is None:
            out(f"{name} = {value}")
        elif not self._computed(signal):
            out(f"{name} = ({value}).to({self._operand})")
        else:
            over = "tl.reduce({}, 0, tl.standard._elementwise_max)"
            peak = over.format(f"tl.abs({name}_wide)")
            peak = peak if by_row else over.format(peak)
            out(f"{name}_wide = tl.broadcast_to({value}, t.shape)", f"{name}_small, {name}_back = unit({peak})",
                f"{name} = ({name}_wide * {name}_small{'[None, :]' if by_row else ''}).to({self._operand})")

    def _computed(self, signal: Node) -> bool:
        return self.schedule.operands == "float16" and signal.op != "input"

    @property
    def _operand(self) -> str:
        return {"float16": "tl.float16", "bfloat16": "tl.bfloat16", "float32": "tl.float32"}[self.operands.matrix]

    def _stores(self, out: Source, sums: dict[Node, str]) -> None:
        self._steps(out, "place * N", "N")
        known: dict[Node, Parts] = {}
        for node, value in sums.items():
            name = self.names.of(node)
            out(f"{name} = {value}")
            known[node] = (name,)
        self._store(out, known)


class ToeplitzPrinter(TilesPrinter):
    """The results of a plan."""

    kind = "toeplitz"

    def _between(self) -> list[Argument]:
        found = []
        for t in self.terms:
            found.append(Argument(copies_name(t), (), self.operands.matrix, "inner"))
            found.append(Argument(f"{copies_name(t)}_back", (), "float32", "inner"))
        return found

    @property
    def terms(self) -> list[Term]:
        """A term of every kernel and direction."""
        return list({(t.kernel, t.reverse): t for p in self.plan.products for t in p.terms}.values())

    def _walk(self, out: Source) -> None:
        out(f"pitch = ((({self._size} + G - 1) // G) + 2) * G", "far = place * N + tl.arange(0, N)[:, None]")
        for t in self.terms:
            name = copies_name(t)
            edge = "G" if t.reverse else f"(({self._size} + G - 1) // G) * G"
            out(f"{name}_at = {name}_ptr + ({self._which(t.kernel)} * 8 + far % 8) * pitch + ({edge} - far // 8 * 8)",
                f"{name}_scale = tl.load({name}_back_ptr + {self._which(t.kernel)})")
            if not self.many:
                out(f"{name}_tile = tl.load({name}_at + tl.arange(0, S)[None, :])")
        out.open("for step in range(walk):")
        self._rows(out, "step")
        sums = {p.node: self._sum(out, i, p) for i, p in enumerate(self.plan.products)}
        self._stores(out, sums)
        out.indent(-1)

    def _sum(self, out: Source, i: int, p: Product) -> str:
        """The tile of a product, a line for each of its terms."""
        found = []
        held = ""
        for n, term in enumerate(p.terms):
            name, total, signal = copies_name(term), f"sum{i}_{n}", self.signals[term.signal]
            if self.many:
                first, end = self._reach(term)
                out(f"{total} = tl.full((N, R), 0.0, tl.float32)")
                out.open(f"for j in tl.range({first}, {end}, S, num_stages={self.schedule.ahead + 1}):")
                self._steps(out, "j", "S")
                self._signal(out, term.signal, signal, by_row=True)
                out(f"{name}_tile = tl.load({name}_at + (j + tl.arange(0, S))[None, :])")
            elif held != signal:
                self._steps(out, "0", "S")
                self._signal(out, term.signal, signal, by_row=True)
                held = signal
            back = f" * {signal}_back[None, :]" if self._computed(term.signal) else ""
            made = f'tl.dot({name}_tile, {signal}, input_precision="ieee"){back}'
            out(f"{total} {'+=' if self.many else '='} {made}")
            if self.many:
                out.indent(-1)
            found.append(f"{total} * {name}_scale")
        return " + ".join(found)


    def _reach(self, term: Term) -> tuple[str, str]:
        """The steps that a tile of results is made of: no further away than there are taps."""
        taps = self._count(term.kernel)
        if term.reverse:
            return "place * N // S * S", f"tl.minimum({self._size}, (place + 1) * N + {taps} - 1)"
        return f"tl.maximum(place * N - {taps} + 1, 0) // S * S", f"tl.minimum((place + 1) * N, {self._size})"


class TapsPrinter(TilesPrinter):
    """The results of a plan by the route ``direct``."""

    kind = "direct"

    @property
    def library(self) -> str:
        return ""

    def _between(self) -> list[Argument]:
        return [Argument(f"{k.name}_taps", (), k.type.dtype, "inner") for k in self.plan.kernels]

    def _walk(self, out: Source) -> None:
        out.open("for step in range(walk):")
        self._rows(out, "step")
        sums = {}
        for i, p in enumerate(self.plan.products):
            sums[p.node] = f"sum{i}"
            out(f"sum{i} = tl.full((N, R), 0.0, tl.float32)")
            for term in p.terms:
                k, reach = str(term.kernel.name), f"{self._size} - place * N" if term.reverse else "(place + 1) * N"
                out.open(f"for j in range(0, tl.minimum({self._count(term.kernel)}, {reach})):")
                self._steps(out, f"place * N {'+' if term.reverse else '-'} j", "N", " & (t >= 0)")
                self._signal(out, term.signal, self.signals[term.signal])
                out(f"tap = tl.load({k}_taps_ptr + {self._which(term.kernel)} * {self._count(term.kernel)} + j).to(tl.float32)")
                out(f"sum{i} += {self.signals[term.signal]} * tap").indent(-1)
        self._stores(out, sums)
        out.indent(-1)


class GradientPrinter(TilesPrinter):
    """Kernels' gradients by ``toeplitz``: a program for each channel, difference m of blocks and part of the rows."""

    kind = "correlation"

    @property
    def library(self) -> str:
        return f"{UNIT}\n\n{DIAGONALS}"

    def _between(self) -> list[Argument]:
        return [Argument(f"partial{i}", (), "float32", "inner") for i in range(len(self.pairs))]

    def _roots(self) -> list[Node]:
        return list(self.plan.signals)

    def _program(self, out: Source) -> None:
        blocks = f"(({self._size} + N - 1) // N)"
        # ``blocks``: of lags, fewer than of time where kernels are short.
        out("r = tl.arange(0, R)[None, :]", "place = tl.program_id(0) % blocks" if self.many else "place = 0")
        self._channel(out, "(tl.program_id(0) // blocks)" if self.many else "tl.program_id(0)")
        for i in range(len(self.pairs)):
            out(f"sum{i} = tl.full((N, N), 0.0, tl.float32)")
        out.open("for step in range(walk):" if self.many else f"for step in tl.range(0, walk, num_stages={self.schedule.ahead + 1}):")
        self._rows(out, "step")
        if self.many:
            out.open(f"for j in tl.range(place, {blocks}, num_stages={self.schedule.ahead + 1}):")
        made: set[tuple[Node, bool]] = set()
        for i, (x, g) in enumerate(self.pairs):
            for node, early in ((x, True), (g, False)):
                early = early and self.many  # one block: both are the same
                if (node, early) not in made:
                    made.add((node, early))
                    self._steps(out, f"{'(j - place)' if early else 'j'} * N" if self.many else "0", "N")
                    self._signal(out, node, self._tile(node, early), by_row=False)
            back = "".join(f" * {self._tile(n, e and self.many)}_back" for n, e in ((g, False), (x, True)) if self._computed(n))
            out(f'sum{i} += tl.dot({self._tile(g, False)}, tl.trans({self._tile(x, self.many)}), input_precision="ieee"){back}')
        out.indent(-2 if self.many else -1)
        channel = ""
        for a in self.plan.channels:
            channel = f"({channel} * size_{a} + i_{a})" if channel else f"i_{a}"
        count = " * ".join(f"size_{a}" for a in self.plan.channels) or "1"
        out(f"here = ((part.to(tl.int64) * ({count}) + {channel or '0'}) * blocks + place) * (2 * N) + tl.arange(0, N)")
        for i in range(len(self.pairs)):
            out(f"low, high = diagonals(sum{i}, N)")
            out(f"tl.store(partial{i}_ptr + here, low)", f"tl.store(partial{i}_ptr + here + N, high)")

    def _tile(self, node: Node, early: bool) -> str:
        return f"{self.signals[node]}{'_early' if early else ''}"


class TapGradientPrinter(GradientPrinter):
    """Kernels' gradients by ``direct``: a program for each channel and part of the rows, tap by tap."""

    def _program(self, out: Source) -> None:
        out("r = tl.arange(0, R)[None, :]")
        self._channel(out, "tl.program_id(0)")
        channel = ""
        for a in self.plan.channels:
            channel = f"({channel} * size_{a} + i_{a})" if channel else f"i_{a}"
        count = " * ".join(f"size_{a}" for a in self.plan.channels) or "1"
        out(f"here = (part.to(tl.int64) * ({count}) + {channel or '0'}) * items")
        out.open("for j in range(0, items):  # lags")
        for i in range(len(self.pairs)):
            out(f"sum{i} = tl.full((N, R), 0.0, tl.float32)")
        out.open("for step in range(walk):")
        self._rows(out, "step")
        out.open(f"for place in range(0, (({self._size} + N - 1) // N)):")
        for i, (x, g) in enumerate(self.pairs):
            self._steps(out, "place * N", "N", " & (t >= j)")
            self._signal(out, g, self._tile(g, False))
            self._steps(out, "place * N - j", "N", " & (t >= 0)")
            self._signal(out, x, self._tile(x, True))
            out(f"sum{i} += {self._tile(g, False)} * {self._tile(x, True)}")
        out.indent(-2)
        for i in range(len(self.pairs)):
            out(f"tl.store(partial{i}_ptr + here + j, tl.reduce(tl.reshape(sum{i}, (N * R,)), 0, tl.standard._sum_combine))")
        out.indent(-1)


def copies_name(term: Term) -> str:
    return f"{term.kernel.name}_{'ahead' if term.reverse else 'behind'}"


__all__ = ["GradientPrinter", "TapGradientPrinter", "TapsPrinter", "ToeplitzPrinter", "copies_name", "tap_copies", "taps_gradient"]
