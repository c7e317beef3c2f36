"""The CUDA backend: a kernel's argument, and the names that what it holds has in the kernel."""

from __future__ import annotations

from scanc.codegen.cuda_dialect import C_TYPES
from scanc.codegen.cuda_helpers import HelperPrinter
from scanc.codegen.emit import Source
from scanc.codegen.layout import LAUNCH


class ArgumentPrinter(HelperPrinter):
    thread_number = "threadIdx.x"

    def _strides(self) -> list[tuple[str, bool]]:
        """Names of all strides in order, and whether 32 bits are enough for one: those that blocks multiply by small numbers."""
        inner = {self.plan.lane, self.plan.time, self.plan.state} - {""}
        return [(name, axis in inner) for b in self.buffers for name, axis in zip(self.stride_names(b), (*b.leading, *b.axes), strict=True)]

    @property
    def narrow(self) -> tuple[int, ...]:
        return tuple(i for i, (_, small) in enumerate(self._strides()) if small)

    def _arguments(self, out: Source) -> None:
        """The one argument, a struct passed by value: pointers, strides, sizes, launch numbers, eight bytes each."""
        out("").open("struct Arguments {")
        for b in self.buffers:
            out(f"{'' if b.written else 'const '}{C_TYPES[b.dtype]}* {b.name}_ptr;")
        if self.scratch_words:
            out("float* scratch;")
        for b in self.buffers:
            if b.rank:
                out(f"index_t {', '.join(self.stride_names(b))};")
        out(f"index_t {', '.join(f'size_{a}' for a in self.plan.graph.order)};", f"index_t {', '.join(LAUNCH)};")
        out.close("};")("")

    def _locals(self, out: Source, used: set[str]) -> None:
        for b in self.buffers:
            if f"{b.name}_ptr" in used:
                out(f"{'' if b.written else 'const '}{C_TYPES[b.dtype]}* const {b.name}_ptr = arguments.{b.name}_ptr;")
        if self.scratch_words:
            out("float* const scratch = arguments.scratch;")
        small = [name for name, narrow in self._strides() if narrow and name in used]
        wide = [name for name, narrow in self._strides() if not narrow and name in used]
        wide += [w for w in (*(f"size_{a}" for a in self.plan.graph.order), *LAUNCH) if w in used]
        for ctype, names, cast in (("int", small, "low_word(arguments.{})"), ("index_t", wide, "arguments.{}")):
            for start in range(0, len(names), 4):
                out(f"const {ctype} " + ", ".join(f"{n} = {cast.format(n)}" for n in names[start:start + 4]) + ";")
        if self._shared:
            out("extern __shared__ __align__(16) float shared[];")
        offset = 0
        for name, words in self._shared.items():
            twice = self.twofold(name)
            out(f"float* const {name}{'_both' if twice else ''} = shared + {offset};")
            offset += words * (2 if twice else 1)
        if self.helpers:
            out("const bool walks = threadIdx.x >= HELPERS;", "const int tid = walks ? int(threadIdx.x) - HELPERS : 0;")
        else:
            out(f"const int tid = {self.thread_number};")
        for name, value in self._thread_places().items():
            if name in used:
                out(f"const int {name} = {value};")

    def _thread_places(self) -> dict[str, str]:
        """What a thread's number says of it."""
        across = self.width // self.split  # lanes of a warp
        return {"lane": "Share<SPLIT, THREADS>::lane(tid)", "own": "Share<SPLIT, THREADS>::own(tid)",
                "warp": "tid / Warp<THREADS>::WIDTH", "flip": f"lane % {across} / {across // self.flips}"}
