"""What CUDA kernels of float32 transforms share (route ``radix`` of the form convolution, and the middle of ``passes``): how a block is
transformed, the text around a kernel's body, and the two small kernels beside the main one.

    kernel_spectrum    spectra of the convolution kernels, once a call
    kernel_gradient    back to steps from the sums over rows, in a backward

A block of threads transforms N = outer·inner steps at a time, each thread N / threads of them in registers, in two or three passes with an
exchange through shared memory between (cuda_fft.h). Frequencies are a quarter further on, so that N real steps take N complex points
without zeros for padding, as in triton_convolution_language.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from scanc.codegen.cuda import CudaSource
from scanc.codegen.cuda_dialect import C_TYPES
from scanc.codegen.emit import Source
from scanc.codegen.layout import Buffer, Mode
from scanc.codegen.triton_chunked import Argument
from scanc.errors import ScheduleError
from scanc.schedule import ConvolutionSchedule

COMPLEX = "complex64"
# Shared memory of a block, and how much of it what is kept of a row's spectra may take.
SHARED = 227 << 10
# Points up to which both exchanges have memory of their own, and a block's spectra are kept in shared memory.
SMALL = 4096


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


__all__ = ["COMPLEX", "SHARED", "SMALL", "TABLE", "Passes", "RadixSource", "kernel_gradient", "kernel_spectrum", "module", "passes"]
