"""Running a linear time-invariant recurrence as a convolution (see forms/lti.py): kernels, what initial states leave, last states."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from scanc.codegen.layout import KernelSource
from scanc.compiler import ReferenceExecutable, prepare, program, result_dtype
from scanc.forms.lti import LtiPlan, Reading, Recurrence, backward_plan, kernel_axes, lti_plan, start_axes
from scanc.ir import Axes, Graph
from scanc.powers import powers_of, powers_sum, weighted_sum
from scanc.reference import axis_sizes, evaluate
from scanc.reference_ops import Frame
from scanc.schedule import ConvolutionSchedule
from scanc.target import Target

# The logarithm of a transition of 0: its powers are 1, 0, 0, …
LOG_OF_ZERO = -1e30


class Generator:
    """What a plan's convolutions are given: kernels, what they see of initial states, last states. Differentiable throughout.

    ``small`` has the values of plan.small, in double precision.
    """

    def __init__(self, plan: LtiPlan, small: Mapping[str, Tensor], frame: Frame) -> None:
        self.plan, self.small, self.frame = plan, small, frame
        self.graph = plan.graph

    def log(self, r: Recurrence) -> Tensor:
        """The logarithm of a recurrence's transition."""
        a = self.small[f"transition{self.plan.recurrences.index(r)}"].to(torch.complex128)
        zero = a == 0
        return torch.where(zero, LOG_OF_ZERO, torch.log(torch.where(zero, 1.0, a)))

    def _sum(self, reading: Reading, axes: Axes, *factors: tuple[str, Axes], first: int) -> Tensor:
        """Σ_n (the factors' product) a^{first + l}, over ``axes`` and time in canonical order."""
        graph, frame, r = self.graph, self.frame, reading.of
        want = (*axes, *graph.state)
        v = torch.ones((), dtype=torch.complex128, device=frame.device)
        for name, its_axes in factors:
            v = v * frame.align(self.small[name], its_axes, want)
        v = -1j * v if reading.part == "imag" else v
        x = frame.align(self.log(r), r.transition.axes, want)
        v = v.to(torch.complex64).expand([frame.size(a) for a in want])
        made = powers_sum(v.flatten(len(axes)), x.flatten(len(axes)), frame.size(graph.time), first)
        order = tuple(a for a in graph.order if a in (*axes, graph.time))
        return made.permute([(*axes, graph.time).index(a) for a in order])

    def _own(self, i: int) -> list[tuple[str, Axes]]:
        factor = self.plan.readings[i].factor
        return [(f"factor{i}", factor.axes)] if factor is not None else []

    def _time_of(self, axes: Axes) -> int:
        return [a for a in self.graph.order if a in (*axes, self.graph.time)].index(self.graph.time)

    def kernel(self, i: int) -> Tensor:
        """The convolution kernel of a reading."""
        reading = self.plan.readings[i]
        r, axes, length = reading.of, kernel_axes(self.graph, reading), self.frame.size(self.graph.time)
        number, at = self.plan.recurrences.index(r), self._time_of(axes)
        weight = [(f"weight{number}", r.weight.axes)] if r.weight is not None else []
        kernel = self._sum(reading, axes, *self._own(i), *weight, first=0)
        if reading.before:
            kernel = torch.cat([torch.zeros_like(kernel.narrow(at, 0, 1)), kernel.narrow(at, 0, length - 1)], at)
        return kernel.contiguous()

    def start(self, i: int) -> Tensor:
        """What a reading sees of the state that its recurrence starts from."""
        reading = self.plan.readings[i]
        r, axes = reading.of, start_axes(self.graph, reading)
        assert r.initial is not None
        first = (f"initial{self.plan.recurrences.index(r)}", r.initial.axes)
        start = self._sum(reading, axes, *self._own(i), first, first=0 if reading.before else 1)
        return start.flip(self._time_of(axes)) if r.reverse else start.contiguous()

    def final(self, i: int, signal: Tensor) -> Tensor:
        """The state after the last step walked: Σ_j a^{L-1-j} w u_j, + a^L of the first."""
        r, frame, time = self.plan.finals[i], self.frame, self.graph.time
        number, x, length = self.plan.recurrences.index(r), self.log(r), frame.size(time)
        axes = tuple(a for a in r.scan.axes if a != time)
        state = tuple(a for a in r.transition.axes if a in self.graph.state)
        groups = self.graph.groups
        shared = tuple(groups[a] if groups.get(a) in r.scan.axes else a for a in r.transition.axes if a not in state)
        lanes = (*(a for a in r.signal.axes if a not in (*shared, time)), *shared)
        steps = frame.align(signal, r.signal.axes, (*lanes, time))
        flat = frame.align(x, r.transition.axes, (*shared, *state)).flatten(len(shared)) if state else x[..., None]
        total = weighted_sum(steps if r.reverse else steps.flip(-1), flat)
        sizes = [frame.size(a) for a in state]
        total = total.to(torch.complex128).unflatten(-1, sizes) if state else total.to(torch.complex128)[..., 0]
        made = frame.align(total, (*lanes, *state), axes)
        if r.weight is not None:
            made = made * frame.align(self.small[f"weight{number}"], r.weight.axes, axes)
        if r.initial is not None:
            far = powers_of(x, torch.tensor([length], device=x.device))[..., 0]
            made = made + frame.align(far, r.transition.axes, axes) * frame.align(self.small[f"initial{number}"], r.initial.axes, axes)
        made = made.expand([frame.size(a) for a in axes]).contiguous()
        return made.to(torch.complex64) if r.scan.kind == "complex" else made.real.float()

    def made(self, names: list[str], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of kernel<i>, start<i> and final<i> that are named."""
        taken = {}
        if self.plan.signals is not None and any(n.startswith("final") for n in names):
            taken = evaluate(self.plan.signals, inputs, dtype=torch.float32)
        every = {f"kernel{i}": (self.kernel, i) for i in range(len(self.plan.readings))}
        every |= {f"start{i}": (self.start, i) for i, r in enumerate(self.plan.readings) if r.of.initial is not None}
        found = {name: make(i) for name, (make, i) in every.items() if name in names}
        finals = [i for i in range(len(self.plan.finals)) if f"final{i}" in names]
        return found | {f"final{i}": self.final(i, taken[f"signal{i}"]) for i in finals}


class LtiExecutable(ReferenceExecutable):
    """A graph whose transitions have no time axis, by the program of the graph that convolves. Raises UnsupportedForm.

    What has no time axis is worked out in double precision: it is small, and phases grow with the length.
    """

    def __init__(self, graph: Graph, target: Target, schedule: ConvolutionSchedule) -> None:
        super().__init__(graph, target)
        self.schedule = schedule
        self.plan, self.inner_graph = self._planned(graph)
        self.inner = program(self.inner_graph, target, schedule)

    def _planned(self, graph: Graph) -> tuple[LtiPlan, Graph]:
        plan = lti_plan(prepare(graph))
        return plan, plan.graph

    def all_sources(self, shape: object) -> tuple[KernelSource, ...]:
        return tuple(self.inner.all_sources(shape))

    def shape_of(self, sizes: Mapping[str, int]) -> object:
        return self.inner.shape_of(sizes)

    def source(self, state: int = 16) -> KernelSource:
        return self.inner.source(state)

    def _frame(self, inputs: Mapping[str, Tensor]) -> Frame:
        device = next(iter(inputs.values())).device
        return Frame(self.graph.name, axis_sizes(self.graph, inputs), self.graph.groups, torch.float64, device)

    def __call__(self, inputs: Mapping[str, Tensor], *, into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        generator = Generator(self.plan, evaluate(self.plan.small, inputs, dtype=torch.float64), self._frame(inputs))
        names = [str(n.name) for n in self.inner_graph.inputs]
        given = {**inputs, **generator.made(names, inputs)}
        made = self.inner({n: given[n] for n in names})
        for name, storage in (into or {}).items():
            made[name] = storage.copy_(made[name])
        return {o.name: made[o.name] for o in self.graph.outputs}


class LtiBackwardExecutable(LtiExecutable):
    """The backward of such a graph: of the graph that convolves by its own backward, whose gradients of kernels, of what is seen of
    initial states and of last states go on through how those are made. No tensor has both the state axis and time.
    """

    def _planned(self, graph: Graph) -> tuple[LtiPlan, Graph]:
        plan, inner = backward_plan(graph)
        asked = {o.name for o in graph.outputs}
        self._generated = [o.name.removeprefix("d_") for o in inner.outputs if o.name not in asked]
        return plan, inner

    def __call__(self, inputs: Mapping[str, Tensor], *, into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        wanted = [o.name.removeprefix("d_") for o in self.graph.outputs]
        names = [str(n.name) for n in self.inner_graph.inputs]
        with torch.enable_grad():
            leaves = {n: inputs[n].detach().to(torch.complex128 if inputs[n].is_complex() else torch.float64).requires_grad_()
                      for n in wanted if n in inputs and any(n == i.name for i in self.plan.small.inputs)}
            ends = self.plan.signals is not None and any(g.startswith("final") for g in self._generated)
            signals = self.plan.signals.inputs if ends and self.plan.signals is not None else ()
            timed = {n: inputs[n].detach().requires_grad_() for n in wanted if n not in leaves and any(n == i.name for i in signals)}
            given = {**inputs, **leaves, **timed}
            generator = Generator(self.plan, evaluate(self.plan.small, given, dtype=torch.float64), self._frame(inputs))
            generated = generator.made([*names, *self._generated], given)
        made = self.inner({n: generated[n].detach() if n in generated else inputs[n] for n in names})
        found = gradients_through(generated, {**leaves, **timed}, {n: made.pop(f"d_{n}") for n in self._generated})
        results = {}
        for n in wanted:
            direct, through = made.get(f"d_{n}"), found.get(n)
            both = [x for x in (direct, through) if x is not None]
            total = sum(both[1:], both[0].to(torch.promote_types(both[0].dtype, torch.float32))) if both else torch.zeros_like(inputs[n])
            results[f"d_{n}"] = total.to(result_dtype(self.graph, f"d_{n}", inputs))
        for name, storage in (into or {}).items():
            results[name] = storage.copy_(results[name])
        return results


def gradients_through(
    generated: Mapping[str, Tensor], leaves: Mapping[str, Tensor], come: Mapping[str, Tensor]
) -> dict[str, Tensor | None]:
    """Gradients of ``leaves`` from those that came for what was made of them; None for one that has no part in it."""
    felt = [n for n in come if generated[n].requires_grad]
    if not leaves or not felt:
        return dict.fromkeys(leaves)
    given = [come[n].to(generated[n].dtype) for n in felt]
    grads = torch.autograd.grad([generated[n] for n in felt], list(leaves.values()), given, allow_unused=True)
    return dict(zip(leaves, grads, strict=True))


__all__ = ["Generator", "LtiBackwardExecutable", "LtiExecutable", "gradients_through"]
