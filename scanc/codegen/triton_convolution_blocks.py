"""The Triton backend, printing the form convolution for sequences of several blocks (see triton_convolution.py).

Spectra of a sequence's blocks are left in scratch memory, and a result's block i is the sum over the blocks j of the spectra of the
signal's block j and the kernel's block i - j (j - i of a reverse one). The kernel's spectra are made for that: those of its block d hold
what block d - 1 leaves over the border.
"""

from __future__ import annotations

from scanc.codegen.emit import Parts, Source
from scanc.codegen.triton_convolution import ConvolutionPrinter
from scanc.forms.convolution import Product
from scanc.ir import Node


class BlocksPrinter(ConvolutionPrinter):
    """The main kernel of sequences of several blocks."""

    many = True

    def _walk(self, out: Source) -> None:
        # Few programs, so that what they leave in scratch memory stays in the cache.
        out(f"mine = scratch_ptr + tl.program_id(0).to(tl.int64) * ({len(self.signals)} * blocks * (2 * N * R)) + tl.arange(0, N * R)")
        out.open("for item in range(tl.program_id(0), items, tl.num_programs(0)):")
        self._channel(out, "item")
        out.open("for step in range(walk):")
        self._rows(out, "step")
        self._by_blocks(out)
        out.indent(-2)

    def _by_blocks(self, out: Source) -> None:
        inside = f"inside = in_rows & (i * N + t < size_{self.graph.time})"
        known: dict[Node, Parts] = {}
        if self.scaled:
            for s in self.signals.values():
                out(f"{s}_peak = tl.full((R,), 0.0, tl.float32)")
            out.open("for i in range(blocks):  # how large the signals get")
            out(inside)
            self._body(out, list(self.signals), known)
            for signal, s in self.signals.items():
                out(f"{s}_peak = tl.maximum({s}_peak, peak_of({self._inside(signal, known[signal][0])}, N2, R))")
            out.indent(-1)
            for s in self.signals.values():
                out(f"{s}_small, {s}_back = unit({s}_peak)")
        out.open("for i in range(blocks):  # spectra")
        known = {}
        out(inside)
        for signal in self.signals:
            self._body(out, [signal], known)
            self._transform(out, signal, known[signal][0])
            self._keep(out, signal, "i")
        out.indent(-1)
        out("tl.debug_barrier()  # all of them are there")
        if self.plan.stores:
            out.open("for i in range(blocks):  # results")
            known = {}
            out(inside)
            for p in self.plan.products:
                self._sum_of_blocks(out, p)
                self._result(out, p, known)
            self._store(out, known)
            out.indent(-1)
        if self.pairs:
            self._gradients_by_blocks(out)
        out("tl.debug_barrier()  # the next rows' take their place")

    def _keep(self, out: Source, signal: Node, block: str) -> None:
        s = self.signals[signal]
        for part, at in (("re", ""), ("im", " + N * R")):
            out(f"tl.store({self._kept(list(self.signals).index(signal), block)}{at}, memory_of({s}_{part}, R * N1, N2, W))")

    def _kept(self, signal: int, block: str) -> str:
        return f"mine + ({signal} * blocks + {block}) * (2 * N * R)"

    def _load_kept(self, out: Source, signal: int, block: str, name: str) -> None:
        for part, at in (("re", ""), ("im", " + N * R")):
            out(f"{name}_{part} = tile_of(tl.load({self._kept(signal, block)}{at}), R * N1, N2, W).to(tl.float32)")

    def _sum_of_blocks(self, out: Source, p: Product) -> None:
        """A result's block i: earlier blocks j of the signal with the kernels' blocks i - j, later ones with those of reverse kernels."""
        signal = list(self.signals).index(p.terms[0].signal)
        out("p_re = tl.full((R * N1, N2), 0.0, tl.float32)", "p_im = tl.full((R * N1, N2), 0.0, tl.float32)")
        for reverse in (False, True):
            terms = [t for t in p.terms if t.reverse == reverse]
            if terms:
                out.open("for j in range(i, blocks):" if reverse else "for j in range(0, i + 1):")
                self._load_kept(out, signal, "j", "x")
                for term in terms:
                    self._multiply(out, p, term, "x_re", "x_im", f"({'j - i' if reverse else 'i - j'}) * (2 * N)", False)
                out.indent(-1)

    def _gradients_by_blocks(self, out: Source) -> None:
        places = list(self.signals)
        out.open("for d in range(blocks):  # the kernels' blocks")
        self._zero(out)
        out.open("for i in range(d, blocks):")
        for i, pair in enumerate(self.pairs):
            for node, block in zip(pair, ("i - d", "i"), strict=True):
                self._load_kept(out, places.index(node), block, self.signals[node])
            self._correlate(out, i, *(self.signals[n] for n in pair))
        out.indent(-1)
        self._save_gradients(out, "d * (2 * N)")
        out.indent(-1)


__all__ = ["BlocksPrinter"]
