"""The form convolution by its route ``fft``: torch's transforms, of any dtype, on any device.

Every signal and every kernel is transformed once, products of one signal are added before the way back, and a kernel's gradient is
summed over rows as a spectrum. Sequences are padded to the next length of small prime factors that holds the linear convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from scanc.codegen.layout import KernelSource
from scanc.compiler import ReferenceExecutable, prepare, result_dtype
from scanc.forms.convolution import ConvolutionPlan, convolution_plan, is_convolution
from scanc.forms.partition import used_inputs
from scanc.ir import Axes, Builder, Graph, Node, Output, rewrite
from scanc.reference import axis_sizes, evaluate
from scanc.reference_ops import Frame
from scanc.schedule import ConvolutionSchedule
from scanc.target import Target


def fast_length(n: int) -> int:
    """The smallest even length of at least n whose prime factors are 2, 3 and 5: what FFTs are fast at.

    Before -> after:  2041 -> 2048,  4098 -> 4320
    """
    best = 1 << max(1, (n - 1).bit_length())
    fives = 1
    while fives < best:
        threes = fives
        while threes < best:
            found = threes
            while found < n or found % 2:
                found *= 2
            best = min(best, found)
            threes *= 3
        fives *= 5
    return best


class FftExecutable(ReferenceExecutable):
    """A graph of the form convolution evaluated with shared transforms. Raises UnsupportedForm where it has no such plan."""

    def __init__(self, graph: Graph, target: Target, schedule: ConvolutionSchedule) -> None:
        super().__init__(graph, target)
        self.schedule = schedule
        self.convolution_plan: ConvolutionPlan = convolution_plan(prepare(graph))
        plan = self.convolution_plan
        self._earlier = FftExecutable(plan.before, target, schedule) if plan.before is not None and is_convolution(plan.before) else None
        named = {f"@signal{i}": s for i, s in enumerate(plan.signals)}
        self._given = {name: s for name, s in named.items() if s.op == "input"}
        self._signals = _outputs(plan.graph, {name: s for name, s in named.items() if name not in self._given})
        # What is a product as it stands needs no evaluation, and no copy.
        products = {p.node: f"@product{i}" for i, p in enumerate(plan.products)}
        self._plain = {o.name: (products[o.node], o) for o in plan.stores if o.node in products}
        self._results = _given(plan, tuple(o for o in plan.stores if o.name not in self._plain))

    def all_sources(self, shape: None) -> tuple[KernelSource, ...]:
        """It is torch's kernels that run."""
        return ()

    def shape_of(self, sizes: Mapping[str, int]) -> None:
        """Nothing is fixed in a source."""

    def source(self, state: int = 16) -> None:
        """It has none."""

    def __call__(self, inputs: Mapping[str, Tensor], *, into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        plan, wide = self.convolution_plan, any(t.dtype in (torch.float64, torch.complex128) for t in inputs.values())
        dtype = torch.float64 if wide else torch.float32
        given = dict(inputs)
        if self._earlier is not None:
            given |= self._earlier(given)
        elif plan.before is not None:
            given |= evaluate(plan.before, given, dtype=dtype)
        made = self._spectral(given, axis_sizes(plan.graph, given), dtype)
        plain = {name: made[product].permute([o.node.axes.index(a) for a in o.axes]) for name, (product, o) in self._plain.items()}
        made |= (evaluate(self._results, {**given, **made}, dtype=dtype) if self._results.outputs else {}) | plain
        if plan.after is not None:
            made |= evaluate(plan.after, {**given, **made}, dtype=dtype)
        made = {o.name: made[o.name].to(result_dtype(self.graph, o.name, inputs)) for o in self.graph.outputs}
        for name, storage in (into or {}).items():
            made[name] = storage.copy_(made[name])
        return made

    def _spectral(self, given: Mapping[str, Tensor], sizes: Mapping[str, int], dtype: torch.dtype) -> dict[str, Tensor]:
        """Products and kernels' gradients, by name."""
        plan, time = self.convolution_plan, self.convolution_plan.graph.time
        length = sizes[time]
        n = fast_length(2 * length)
        frame = Frame(plan.graph.name, sizes, plan.graph.groups, dtype, next(iter(given.values())).device)
        lanes = (*plan.rows, *plan.channels)

        def spectrum(x: Tensor, axes: Axes) -> Tensor:
            return torch.fft.rfft(frame.align(x.to(dtype), axes, (*lanes, time)), n=n)

        def steps(x: Tensor) -> Tensor:
            return torch.fft.irfft(x, n=n)[..., :length]

        values = evaluate(self._signals, given, dtype=dtype) if self._signals.outputs else {}
        values |= {name: given[str(s.name)] for name, s in self._given.items()}
        signals = {s: spectrum(values[f"@signal{i}"], s.axes) for i, s in enumerate(plan.signals)}
        kernels = {}
        for k in plan.kernels:
            at = k.axes.index(plan.tap(k))
            taps = given[str(k.name)].narrow(at, 0, min(length, sizes[plan.tap(k)]))  # later ones reach past the start
            kernels[k] = spectrum(taps, (*k.axes[:at], time, *k.axes[at + 1:]))
        made = {}
        for i, p in enumerate(plan.products):
            terms = [kernels[t.kernel].conj() if t.reverse else kernels[t.kernel] for t in p.terms]
            total = steps(signals[p.terms[0].signal] * sum(terms[1:], terms[0]))
            made[f"@product{i}"] = frame.expand(total, (*lanes, time), p.node.axes)
        for g in plan.gradients:
            both = signals[g.cotangent] * signals[g.signal].conj()
            gone = [i for i, a in enumerate(lanes) if a not in g.output.axes]
            kept = (*(a for a in lanes if a in g.output.axes), g.tap)
            dk = steps(both.sum(gone) if gone else both)
            dk = torch.nn.functional.pad(dk, (0, sizes[g.tap] - length)) if g.tap != time else dk  # of lags that there are
            made[g.output.name] = frame.expand(dk, kept, g.output.axes)
        return made


def _outputs(graph: Graph, nodes: Mapping[str, Node]) -> Graph:
    outputs = tuple(Output(name, n, n.axes) for name, n in nodes.items())
    return replace(graph, inputs=used_inputs(graph, outputs), outputs=outputs, inplace={})


def _given(plan: ConvolutionPlan, stores: tuple[Output, ...]) -> Graph:
    """What the graph makes of products, which are inputs ``@product<i>`` here."""
    b = Builder.of(plan.graph)
    new = {p.node: b.input(f"@product{i}", p.node.type) for i, p in enumerate(plan.products)}
    graph = rewrite(plan.graph, lambda node, args: new[node] if node in new else b.like(node, args), outputs=stores)
    graph = replace(graph, inputs=(*graph.inputs, *new.values()), inplace={})
    return replace(graph, inputs=used_inputs(graph, graph.outputs))


__all__ = ["FftExecutable", "fast_length"]
