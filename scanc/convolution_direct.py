"""The form convolution by its route ``direct`` on a CPU: sums over taps by a compiled loop, where taps are few enough to beat transforms.

    y[t] = Σ_j k[j] x[t ∓ j]          128 steps at a time in vector registers, a tap after another
    dk[j] = Σ_r Σ_t g[t] x[t - j]     128 lags at a time, a step after another, row by row

What is pointwise around them is torch's, as for the route ``fft`` (convolution_fft.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scanc.codegen import build_cpp
from scanc.codegen.layout import KernelSource, Mode
from scanc.convolution_fft import FftExecutable
from scanc.ir import Axes
from scanc.reference import evaluate
from scanc.reference_ops import Frame
from scanc.target import Target

TEXT = '''\
// Convolutions over time, tap by tap.
#include <algorithm>
#include <cstring>
#include <vector>
typedef float V __attribute__((vector_size(64), aligned(4)));
constexpr long WIDE = 128, COUNT = WIDE / 16;  // numbers in registers at a time

// to[i] += sum over j < count of by[j] from[i + step j]; from's step is -1 or 1.
template <long step> static inline void sums(float* to, const float* by, const float* from, long count) {
    V acc[COUNT] = {};
    for (long j = 0; j < count; ++j) {
        const V* const at = reinterpret_cast<const V*>(from + step * j);
        const float w = by[j];
#pragma GCC unroll 8
        for (long v = 0; v < COUNT; ++v) acc[v] += w * at[v];
    }
    for (long v = 0; v < COUNT; ++v) reinterpret_cast<V*>(to)[v] += acc[v];
}

// launch: rows, channels, steps, taps, and what is made: 0 y from earlier steps, 1 from later ones, 2 dk.
// x, y, g [rows, channels, steps]; k, dk [channels, taps].
extern "C" void run(char* const* pointer, const long*, const long*, const long* launch) {
    const long rows = launch[0], channels = launch[1], steps = launch[2], taps = launch[3], what = launch[4];
    const float *const x = reinterpret_cast<float*>(pointer[0]), *const k = reinterpret_cast<float*>(pointer[1]);
    float* const out = reinterpret_cast<float*>(pointer[2]);
    const long whole = (std::max(steps, taps) + WIDE - 1) / WIDE * WIDE;
#pragma omp parallel
    {
        std::vector<float> room(2 * whole + WIDE), made(whole), reversed(what == 2 ? rows * (2 * whole + WIDE) : 0);
        if (what < 2) {
#pragma omp for
            for (long item = 0; item < rows * channels; ++item) {
                // Zeros where there are no steps: before the first, or after the last.
                float* const here = room.data() + (what == 0 ? whole : 0);
                std::memcpy(here, x + item * steps, steps * sizeof(float));
                std::fill(made.begin(), made.end(), 0.0f);
                const float* const by = k + item % channels * taps;
                for (long t = 0; t < steps; t += WIDE)
                    if (what == 0) sums<-1>(made.data() + t, by, here + t, std::min(taps, t + WIDE));
                    else sums<1>(made.data() + t, by, here + t, std::min(taps, steps - t));
                std::memcpy(out + item * steps, made.data(), steps * sizeof(float));
            }
        } else {
#pragma omp for
            for (long channel = 0; channel < channels; ++channel) {
                std::fill(made.begin(), made.end(), 0.0f);
                for (long row = 0; row < rows; ++row) {
                    const float *const u = x + (row * channels + channel) * steps, *const g = k + (row * channels + channel) * steps;
                    float* const here = reversed.data() + row * (2 * whole + WIDE);
                    for (long t = 0; t < steps; ++t) here[t] = u[steps - 1 - t];
                    for (long j = 0; j < std::min(taps, steps); j += WIDE)
                        sums<-1>(made.data() + j, g + j, here + steps - 1, steps - j);
                }
                std::memcpy(out + channel * taps, made.data(), taps * sizeof(float));
            }
        }
    }
}
'''


SOURCE = KernelSource("convolution_direct", "c++", TEXT, None, None, Mode(), (), 1)  # type: ignore[arg-type]


@functools.cache
def _loops() -> Any:
    return build_cpp.load(SOURCE, Target("cpu", "native", "cpp"))


def _call(what: int, x: Tensor, by: Tensor, taps: int) -> Tensor:
    rows, channels, steps = x.shape
    out = x.new_empty(channels, taps) if what == 2 else torch.empty_like(x)
    if out.numel() and rows and steps:
        _loops()((x, by, out), (), (), (rows, channels, steps, taps, what))
    return out


class DirectExecutable(FftExecutable):
    """A graph of the form convolution, tap by tap. Raises UnsupportedForm where it has no such plan."""

    def all_sources(self, shape: None) -> tuple[KernelSource, ...]:
        return (SOURCE,)

    def _spectral(self, given: Mapping[str, Tensor], sizes: Mapping[str, int], dtype: torch.dtype) -> dict[str, Tensor]:
        if dtype != torch.float32:
            return super()._spectral(given, sizes, dtype)
        plan, time = self.convolution_plan, self.convolution_plan.graph.time
        length = sizes[time]
        frame = Frame(plan.graph.name, sizes, plan.graph.groups, dtype, next(iter(given.values())).device)
        lanes = (*plan.rows, *plan.channels)
        rows, channels = (math.prod(sizes[a] for a in axes) for axes in (plan.rows, plan.channels))

        def flat(x: Tensor, axes: Axes, want: Axes, shape: tuple[int, ...]) -> Tensor:
            x = frame.align(x.float(), axes, want)
            return x.expand([sizes[a] for a in want[:-1]] + [x.shape[-1]]).reshape(*shape, x.shape[-1]).contiguous()

        values = evaluate(self._signals, given, dtype=dtype) if self._signals.outputs else {}
        values |= {name: given[str(s.name)] for name, s in self._given.items()}
        signals = {s: flat(values[f"@signal{i}"], s.axes, (*lanes, time), (rows, channels)) for i, s in enumerate(plan.signals)}
        made = {}
        for i, p in enumerate(plan.products):
            total = None
            for t in p.terms:
                at = t.kernel.axes.index(plan.tap(t.kernel))
                taps = given[str(t.kernel.name)].narrow(at, 0, min(length, sizes[plan.tap(t.kernel)]))
                k = flat(taps, (*t.kernel.axes[:at], time, *t.kernel.axes[at + 1:]), (*plan.channels, time), (channels,))
                y = _call(int(t.reverse), signals[t.signal], k, k.shape[-1])
                total = y if total is None else total.add_(y)
            assert total is not None
            made[f"@product{i}"] = frame.expand(total.view([sizes[a] for a in (*lanes, time)]), (*lanes, time), p.node.axes)
        for g in plan.gradients:
            lags = min(length, sizes[g.tap])
            dk = _call(2, signals[g.signal], signals[g.cotangent], lags).view([*(sizes[a] for a in plan.channels), lags])
            gone = [i for i, a in enumerate(plan.channels) if a not in g.output.axes]
            dk = dk.sum(gone) if gone else dk
            dk = torch.nn.functional.pad(dk, (0, sizes[g.tap] - lags)) if g.tap != time else dk
            made[g.output.name] = frame.expand(dk, (*(a for a in plan.channels if a in g.output.axes), g.tap), g.output.axes)
        return made


__all__ = ["DirectExecutable"]
