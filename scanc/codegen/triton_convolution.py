"""The Triton backend, printing the form convolution by its route ``monarch``: transforms as matrix products in one kernel.

    kernel_spectrum    spectra of the convolution kernels, once a call                       triton_convolution_language.py
    convolution        per channel and a few rows: signals in, spectra, products, results out
    kernel_gradient    back to steps from the sums over rows, in a backward

A program has one channel. It walks rows, R at a time, and for each: loads what the signals are made of, makes and transforms them,
multiplies by the kernels' spectra, transforms back, and prints what the graph makes of the results into the same pass over memory.

Tiles: a value over time is [N1, R*N2] (steps t1·N2 + t2 of rows r), over rows [1, R*N2], a spectrum [R*N1, N2].
In memory spectra lie in the order that ``tile_of`` undoes; partial sums of kernels' gradients in no special one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scanc.codegen.emit import Body, Names, Parts, Source
from scanc.codegen.layout import storage_dtype
from scanc.codegen.triton_chunked import Argument, ChunkSource
from scanc.codegen.triton_common import wrapped
from scanc.codegen.triton_convolution_language import KERNEL_GRADIENT, KERNEL_SPECTRUM, Operands, in_pairs, transforms
from scanc.codegen.triton_language import HELPERS, TritonDialect
from scanc.forms.convolution import ConvolutionPlan, Product, Term, made_of
from scanc.ir import Node, topological
from scanc.schedule import ConvolutionSchedule

WORDS = tuple(
    """tl triton unit peak_of over_steps over_frequencies tile_of memory_of matrices below next_to halves_below halves_next_to
    twiddles by_rows beside for_each_row spectrum_of steps_of N N1 N2 R W rest left part channel step first row rows r t f inside in_rows
    at_one_scale
    coming base local chunk backs top tops across leave_columns columns_of leave_steps steps_from P M C e small back k re im less
    halves left right outer_low inner_low high diagonals S G pitch edge far place low tap also
    outer inner outer_ptr inner_ptr twiddle_ptr scratch_ptr walk blocks items item i j d mine place here both weight k_re k_im p_re
    p_im x_re x_im""".split()  # noqa: SIM905 - one a word
)
HEAD = "import triton\nimport triton.language as tl\n\n\n"


@dataclass(frozen=True)
class ConvolutionSource(ChunkSource):
    """One kernel's source; its loops are not pipelined: what they load is used at once, and shared memory holds the matrices."""

    def options(self, kind: str) -> dict[str, int]:
        return {**super().options(kind), "num_stages": 1}


def inner_arguments(operands: Operands) -> list[Argument]:
    """Tables of the transforms."""
    return [Argument("outer", (), operands.matrix, "inner"), Argument("inner", (), operands.matrix, "inner"),
            Argument("twiddle", (), operands.twiddles, "inner")]


def _text(title: str, schedule: ConvolutionSchedule, operands: Operands, kernel: str) -> str:
    """A small kernel's module."""
    text = kernel.replace("CONSTANTS", "\n    ".join(_constants(schedule)))
    return f"# {title}\n# {schedule}\n\n{HEAD}{transforms(operands.precise)}\n\n{in_pairs(text) if operands.precise else text}"


def _constants(schedule: ConvolutionSchedule, rows: bool = False) -> list[str]:
    found = [f"N1: tl.constexpr = {schedule.outer}  # points of the outer transform",
             f"N2: tl.constexpr = {schedule.inner}  # points of the inner transform"]
    # Warps that a tile's rows of 16 are dealt to.
    found.append(f"W: tl.constexpr = {min(schedule.warps, schedule.outer // 16)}  # warps side by side along a spectrum's first axis")
    return found + ([f"R: tl.constexpr = {schedule.rows}  # rows side by side"] if rows else [])


def kernel_spectrum(schedule: ConvolutionSchedule, dtype: str, operands: Operands, title: str) -> ConvolutionSource:
    """Spectra of a contiguous tensor of kernels [which, steps]."""
    arguments = (Argument("k", (), dtype, "inner"), *inner_arguments(operands), Argument("spectrum", (), operands.spectra, "inner"),
                 Argument("scale", (), "float32", "inner"))
    text = _text(title, schedule, operands, KERNEL_SPECTRUM)
    return ConvolutionSource("kernel_spectrum", text, arguments, ("size", "blocks"), schedule.warps)


def kernel_gradient(schedule: ConvolutionSchedule, dtype: str, operands: Operands, title: str) -> ConvolutionSource:
    """A contiguous tensor of kernels' gradients [channel, steps] from the programs' partial sums."""
    text = _text(title, schedule, operands, KERNEL_GRADIENT)
    arguments = (Argument("partial", (), "float32", "inner"), *inner_arguments(operands), Argument("dk", (), dtype, "inner"))
    return ConvolutionSource("kernel_gradient", text, arguments, ("size", "channels", "blocks", "parts"), schedule.warps)


class ConvolutionPrinter:
    """The main kernel of sequences of one block; triton_convolution_blocks.py has that of ``many``."""

    many = False
    kind = "convolution"
    counts: tuple[str, ...] = ("rows", "walk", "blocks", "items")

    def __init__(self, plan: ConvolutionPlan, schedule: ConvolutionSchedule, operands: Operands, title: str) -> None:
        self.plan, self.schedule, self.operands, self.title = plan, schedule, operands, title
        self.scaled = schedule.operands != "bfloat16"
        self.matrices = "outer, outer_low, inner, inner_low" if operands.precise else "outer, inner"
        self.rounded = ".to(tl.float32)" if operands.precise else ".to(outer.dtype)"  # what transforms take
        self.graph = plan.graph
        self.dialect = TritonDialect()
        self.names = Names()
        for word in (*WORDS, *HELPERS, *(f"{w}_{a}" for a in self.graph.order for w in ("i", "size")),
                     *(f"{n.name}_{end}" for n in self.graph.inputs for end in ("ptr", "next"))):
            self.names.fresh(word)
        self.signals = {s: f"s{i}" for i, s in enumerate(plan.signals)}
        for word in self.signals.values():
            for end in ("", "_re", "_im", "_peak", "_small", "_back", "_wide", "_early", "_early_small", "_early_back", "_early_wide"):
                self.names.fresh(f"{word}{end}")
        printed = self._printed()
        read = [n for n in self.graph.inputs if n in printed]
        self.arguments = [Argument(str(n.name), n.axes, n.type.dtype, "input") for n in read]
        self.arguments += [Argument(o.name, o.axes, storage_dtype(self.graph, o), "store") for o in plan.stores if o.node in printed]
        self.arguments += self._between()

    def _between(self) -> list[Argument]:
        """What other kernels of the program left or will read, and tables."""
        found = [Argument(f"{k.name}_{w}", (), self.operands.spectra if w == "spectrum" else "float32", "inner")
                 for k in self.plan.kernels for w in ("spectrum", "scale")]
        found += [Argument(f"partial{i}", (), "float32", "inner") for i in range(len(self.pairs))]
        found += inner_arguments(self.operands)
        return [*found, Argument("scratch", (), self.operands.spectra, "inner")] if self.many else found

    @property
    def pairs(self) -> list[tuple[Node, Node]]:
        """(signal, cotangent) of every kernel's gradient, each once."""
        return list(dict.fromkeys((g.signal, g.cotangent) for g in self.plan.gradients))

    def _roots(self) -> list[Node]:
        return [*self.plan.signals, *(o.node for o in self.plan.stores)]

    def _printed(self) -> set[Node]:
        """Every value that the kernel has in hand: all but the convolution kernels, of which it reads the spectra."""
        return made_of(self._roots(), {p.node for p in self.plan.products})

    # -- the text around the body ---------------------------------------------------------------------------------------------

    @property
    def library(self) -> str:
        """Functions that the kernel calls."""
        return transforms(self.operands.precise)

    def _constants(self) -> list[str]:
        return _constants(self.schedule, rows=True)

    def source(self) -> ConvolutionSource:
        body = Source().indent()
        self._program(body)
        numbers = (*(f"size_{a}" for a in self.graph.order), *self.counts)
        name = "".join(c if c.isalnum() or c == "_" else "_" for c in self.graph.name) + f"_{self.kind}"
        out = Source()
        out(f"# {self.title}", f"# {self.schedule}")
        for a in self.arguments:
            out(f"# {a.role:5} {a.name}: {a.dtype}[{' '.join(a.axes)}]")
        out("", *HEAD.rstrip("\n").split("\n"), "", "", *self.library.rstrip("\n").split("\n"))
        for helper in self.dialect.used:
            out("", "", *HELPERS[helper].rstrip("\n").split("\n"))
        # The length is told apart by whether 16 divides it: only then can a masked load take 16 bytes at once.
        fixed = ", ".join(f'"{n}"' for n in numbers if n != f"size_{self.graph.time}")
        pointers, strides = [f"{a.name}_ptr" for a in self.arguments], [s for a in self.arguments for s in a.strides]
        out("", "", *wrapped("@triton.jit(do_not_specialize=[", fixed, "])"))
        out(*wrapped(f"def {name}_kernel(", ", ".join((*pointers, *strides, *numbers)), "):"))
        for line in self._constants():
            out(f"    {line}")
        text, schedule = out.text() + body.text(), self.schedule
        return ConvolutionSource(name, text, tuple(self.arguments), numbers, schedule.warps, schedule.registers)

    def _program(self, out: Source) -> None:
        out("N: tl.constexpr = N1 * N2", f"{self.matrices} = matrices(outer_ptr, inner_ptr, N1, N2)")
        out("r = tl.arange(0, R * N2)[None, :] // N2")
        out("t = tl.arange(0, N1)[:, None] * N2 + tl.arange(0, R * N2)[None, :] % N2")
        out("f = tl.arange(0, N)")
        self._walk(out)

    def _walk(self, out: Source) -> None:
        """The steps of a program's rows."""
        self._channel(out, "tl.program_id(0)")
        self._zero(out)
        ahead = self.schedule.ahead == 1
        if ahead:
            self._load_ahead(out, "0")
        out.open("for step in range(walk):")
        known = self._take(out) if ahead else {}
        if ahead:
            self._load_ahead(out, "(step + 1)")
        self._rows(out, "step")
        self._at_once(out, known)
        out.indent(-1)
        self._save_gradients(out, "")

    def _channel(self, out: Source, item: str) -> None:
        """Which channel a program works at, and which part of its rows."""
        out(f"rest = {item}")
        for axis in reversed(self.plan.channels):
            out(f"i_{axis} = (rest % size_{axis}).to(tl.int64)", f"rest = rest // size_{axis}")
        out("part = rest")
        self._kernels(out)

    def _rows(self, out: Source, step: str) -> None:
        """Which rows a step has, as numbers where it has one, else as a tile beside the steps."""
        out(f"first = ((part * walk + {step}) * R).to(tl.int64)", "row = first" if self.schedule.rows == 1 else "row = first + r")
        out("in_rows = row < rows", "left = row")
        for axis in reversed(self.plan.rows):
            out(f"i_{axis} = left % size_{axis}", f"left = left // size_{axis}")

    def _kernels(self, out: Source) -> None:
        """Where each convolution kernel's spectrum is, and the factors that bring those added up to one scale."""
        for k in self.plan.kernels:
            axes = [a for a in k.axes if a != self.plan.tap(k)]
            index = "0"
            for a in axes:
                index = f"({index} * size_{a} + {self._index(a)})" if index != "0" else self._index(a)
            out(f"{k.name}_at = {k.name}_spectrum_ptr + {index} * (blocks * 2 * N) + f")
            out(f"{k.name}_scale = tl.load({k.name}_scale_ptr + {index})")
        for p in self.plan.products:
            kernels = list(dict.fromkeys(t.kernel for t in p.terms))
            top = f"{kernels[0].name}_scale"
            for k in kernels[1:]:
                top = f"tl.maximum({top}, {k.name}_scale)"
            out(f"{self._top(p)} = {top}")

    def _top(self, p: Product) -> str:
        return f"top{self.plan.products.index(p)}"

    def _index(self, axis: str) -> str:
        parent = self.graph.groups.get(axis)
        if axis in self.plan.channels or axis in self.plan.rows or parent is None:
            return f"i_{axis}"
        return f"(i_{parent} // (size_{parent} // size_{axis}))"

    # -- values ---------------------------------------------------------------------------------------------------------------

    def _body(self, out: Source, roots: Iterable[Node], known: dict[Node, Parts]) -> None:
        """Prints what ``roots`` need beyond ``known``."""
        wanted: list[Node] = []
        todo, seen = list(roots), set(known)
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                wanted.append(node)
                todo += node.args
        needed = set(wanted)
        nodes = [n for n in topological(roots) if n in needed]
        out(*Body(self.dialect, self.names, known, self._declare, keep=frozenset(roots)).run(nodes, lambda n: self._leaf(n, known)))

    @staticmethod
    def _declare(node: Node, name: str, expression: str) -> str:
        return f"{name} = {expression}" + (f"  # [{' '.join(node.axes)}]" if node.name and node.axes else "")

    def _leaf(self, node: Node, known: dict[Node, Parts]) -> list[str] | None:
        if node.op == "size":
            known[node] = (f"size_{node.attrs['axis']}",)
            return []
        if node.op == "index":
            axis = node.attrs["axis"]
            known[node] = (f"({self._block} + t)" if axis == self.graph.time else f"{self._index(axis)}.to(tl.int32)",)
            return []
        if node.op != "input":
            return None
        a = next(x for x in self.arguments if x.name == node.name)
        timed, rowed = self.graph.time in node.axes, any(x in self.plan.rows for x in node.axes)
        mask = "inside" if timed else "in_rows" if rowed else ""
        fill = "0.0" if node.kind == "real" else "0"
        widen = ".to(tl.float32)" if node.type.dtype in ("bfloat16", "float16") else ""
        name = self.names.of(node)
        known[node] = (name,)
        return [self._declare(node, name, f"tl.load({self._place(a)}{f', mask={mask}, other={fill}' if mask else ''}){widen}")]

    @property
    def _block(self) -> str:
        return "i * N" if self.many else "0"

    def _place(self, a: Argument) -> str:
        terms = [f"{a.name}_ptr"]
        for axis, stride in zip(a.axes, a.strides, strict=True):
            if axis != self.graph.time:
                terms.append(f"{self._index(axis)} * {stride}")
        if self.graph.time in a.axes:
            time = a.strides[a.axes.index(self.graph.time)]
            terms.append(f"({self._block} + t) * {time}" if self.many else f"t * {time}")
        return " + ".join(terms)

    def _store(self, out: Source, known: dict[Node, Parts]) -> None:
        self._body(out, [o.node for o in self.plan.stores], known)
        for o in self.plan.stores:
            a = next(x for x in self.arguments if x.name == o.name)
            out(f"tl.store({self._place(a)}, {known[o.node][0]}, mask=inside)")

    def _inside(self, node: Node, value: str) -> str:
        """A signal's value where there are steps, and 0 past them, where what it is made of was read as 0."""
        return value if self._vanishes(node) else f"tl.where(inside, {value}, 0.0)"

    def _vanishes(self, node: Node) -> bool:
        """Whether a value is 0 where the tensors over time that it is made of are."""
        if node.op in ("add", "sub"):
            return all(self._vanishes(a) for a in node.args)
        if node.op in ("neg", "cast", "broadcast"):
            return self._vanishes(node.args[0])
        if node.op == "mul":  # 0 times what may be infinite there is no 0
            return any(self._vanishes(a) for a in node.args) and all(self._vanishes(a) or a.op in ("input", "const") for a in node.args)
        return node.op == "input" and self.graph.time in node.axes

    def _transform(self, out: Source, signal: Node, value: str) -> None:
        s = self.signals[signal]
        value = self._inside(signal, value)
        small = f" * over_steps({s}_small, N2, R)" if self.scaled else ""
        out(f"{s} = ({value}{small}){self.rounded}",
            f"{s}_re, {s}_im = spectrum_of({s}, {self.matrices}, twiddle_ptr, {self.plan.signals.index(signal)}, N1, N2, R, W)")

    def _multiply(self, out: Source, p: Product, term: Term, re: str, im: str, block: str, first: bool) -> None:
        """Adds (or sets, ``first``) a signal's spectrum times a kernel's to the product's."""
        k = str(term.kernel.name)
        for part, at in (("re", block), ("im", f"{block} + N")):
            out(f"k_{part} = for_each_row(tile_of(tl.load({k}_at + {at}), N1, N2, W).to(tl.float32), N1, N2, R)")
        if len(p.terms) > 1:
            out(f"weight = {k}_scale / tl.maximum({self._top(p)}, 1e-37)", "k_re, k_im = k_re * weight, k_im * weight")
        plus, minus = ("+", "-") if term.reverse else ("-", "+")
        put = "=" if first else "+="
        out(f"p_re {put} {re} * k_re {plus} {im} * k_im", f"p_im {put} {im} * k_re {minus} {re} * k_im")

    def _result(self, out: Source, p: Product, known: dict[Node, Parts]) -> None:
        s = self.signals[p.terms[0].signal]
        name, use = self.names.of(p.node), len(self.signals) + self.plan.products.index(p)
        if self.many:
            out("p_re, p_im = p_re * (1.0 / blocks), p_im * (1.0 / blocks)")
        out(f"{name} = steps_of(next_to(p_re, p_im, R * N1, N2){self.rounded}, {self.matrices}, twiddle_ptr, {use}, N1, N2, R, W)"
            f" * {f'(over_steps({s}_back, N2, R) * {self._top(p)})' if self.scaled else self._top(p)}" + (" * blocks" if self.many else ""))
        known[p.node] = (name,)

    # -- one block ------------------------------------------------------------------------------------------------------------

    def _sources(self) -> list[Argument]:
        """Tensors over time that signals are made of: what is worth loading ahead."""
        needed = {str(n.name) for n in topological(self.plan.signals) if n.op == "input" and self.graph.time in n.axes}
        return [a for a in self.arguments if a.role == "input" and a.name in needed]

    def _load_ahead(self, out: Source, step: str) -> None:
        self._rows(out, step)
        last = "" if step == "0" else f" & ({step} < walk)"
        out(f"inside = in_rows & (t < size_{self.graph.time}){last}")
        for a in self._sources():
            out(f"{a.name}_next = tl.load({self._place(a)}, mask=inside, other=0)")

    def _take(self, out: Source) -> dict[Node, Parts]:
        """What was loaded ahead becomes this step's."""
        known: dict[Node, Parts] = {}
        for a in self._sources():
            node = self.graph.input(a.name)
            widen = ".to(tl.float32)" if a.dtype in ("bfloat16", "float16") else ""
            out(self._declare(node, self.names.of(node), f"{a.name}_next{widen}"))
            known[node] = (self.names.of(node),)
        return known

    def _at_once(self, out: Source, known: dict[Node, Parts]) -> None:
        out(f"inside = in_rows & (t < size_{self.graph.time})")
        for signal, s in self.signals.items():
            self._body(out, [signal], known)
            if self.scaled:
                out(f"{s}_small, {s}_back = unit(peak_of({self._inside(signal, known[signal][0])}, N2, R))")
            self._transform(out, signal, known[signal][0])
            if len(self.signals) > 1:  # one waits for the other, in half the registers
                out(f"{s}_re, {s}_im = {s}_re{self.rounded}, {s}_im{self.rounded}")
        if len(self.signals) > 1:
            for s in self.signals.values():
                out(f"{s}_re, {s}_im = {s}_re.to(tl.float32), {s}_im.to(tl.float32)")
        for i, (x, g) in enumerate(self.pairs):
            self._correlate(out, i, *(self.signals[n] for n in (x, g)))
        for p in self.plan.products:
            s = self.signals[p.terms[0].signal]
            for n, term in enumerate(p.terms):
                self._multiply(out, p, term, f"{s}_re", f"{s}_im", "0", n == 0)
            self._result(out, p, known)
        self._store(out, known)

    def _zero(self, out: Source) -> None:
        for i in range(len(self.pairs)):
            out(f"m{i}_re = tl.full((R * N1, N2), 0.0, tl.float32)", f"m{i}_im = tl.full((R * N1, N2), 0.0, tl.float32)")

    def _correlate(self, out: Source, i: int, x: str, g: str) -> None:
        """Adds conj(X) G to a sum over rows."""
        if self.scaled:
            out(f"both = over_frequencies({x}_back * {g}_back, N1, R)")
        both = " * both" if self.scaled else ""
        out(f"m{i}_re += ({x}_re * {g}_re + {x}_im * {g}_im){both}",
            f"m{i}_im += ({x}_re * {g}_im - {x}_im * {g}_re){both}")

    def _save_gradients(self, out: Source, block: str) -> None:
        """Writes a part's sums; those of one of several ``block``s are added to what earlier steps of this part left there."""
        if not self.pairs:
            return
        channel = "0"
        for a in self.plan.channels:
            channel = f"({channel} * size_{a} + i_{a})" if channel != "0" else f"i_{a}"
        count = " * ".join(f"size_{a}" for a in self.plan.channels) or "1"
        # A tile's rows (r, f1) go to parts of their own.
        out(f"channel = part.to(tl.int64) * R * ({count}) + {channel}",
            "place = tl.arange(0, R * N1)[:, None]",
            f"place = place // N1 * ({count} * blocks * 2 * N) + place % N1 * N2 + tl.arange(0, N2)[None, :]")
        for i in range(len(self.pairs)):
            out(f"here = partial{i}_ptr + channel * (blocks * 2 * N) + {block or '0'} + place")
            for part, at in (("re", "here"), ("im", "here + N")):
                if self.many:
                    out(f"m{i}_{part} += tl.load({at}, mask=(place >= 0) & (step > 0), other=0.0)")
                out(f"tl.store({at}, m{i}_{part})")


__all__ = ["ConvolutionPrinter", "ConvolutionSource", "inner_arguments", "kernel_gradient", "kernel_spectrum"]
