"""Running a linear time-invariant recurrence as a convolution (see forms/lti.py): kernels, what initial states leave, last states."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_letters

import torch
from torch import Tensor

from scanc.codegen.layout import KernelSource
from scanc.compiler import ReferenceExecutable, prepare, program
from scanc.forms.lti import LtiPlan, Reading, Recurrence, kernel_axes, lti_plan, start_axes
from scanc.ir import Axes, Graph
from scanc.powers import powers_of, powers_sum, step_block
from scanc.reference import axis_sizes, evaluate
from scanc.reference_ops import Frame
from scanc.schedule import ConvolutionSchedule
from scanc.target import Target

# The logarithm of a transition of 0: its powers are 1, 0, 0, …
LOG_OF_ZERO = -1e30


class LtiExecutable(ReferenceExecutable):
    """A graph whose transitions have no time axis, by the program of the graph that convolves. Raises UnsupportedForm.

    What has no time axis is worked out in double precision: it is small, and phases grow with the length.
    """

    def __init__(self, graph: Graph, target: Target, schedule: ConvolutionSchedule) -> None:
        super().__init__(graph, target)
        self.schedule = schedule
        self.plan: LtiPlan = lti_plan(prepare(graph))
        self.inner = program(self.plan.graph, target, schedule)

    def all_sources(self, shape: object) -> tuple[KernelSource, ...]:
        return tuple(self.inner.all_sources(shape))

    def shape_of(self, sizes: Mapping[str, int]) -> object:
        return self.inner.shape_of(sizes)

    def source(self, state: int = 16) -> KernelSource:
        return self.inner.source(state)

    def __call__(self, inputs: Mapping[str, Tensor], *, into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        plan, sizes = self.plan, axis_sizes(self.graph, inputs)
        small = evaluate(plan.small, inputs, dtype=torch.float64)
        device = next(iter(inputs.values())).device
        frame = Frame(self.graph.name, sizes, self.graph.groups, torch.float64, device)
        given = dict(inputs)
        for i, reading in enumerate(plan.readings):
            given |= self._read(i, reading, small, frame)
        taken = evaluate(plan.signals, inputs, dtype=torch.float32) if plan.signals is not None else {}
        for i, r in enumerate(plan.finals):
            given[f"final{i}"] = self._final(r, taken[f"signal{i}"], small, frame)
        made = self.inner({str(n.name): given[str(n.name)] for n in plan.graph.inputs})
        for name, storage in (into or {}).items():
            made[name] = storage.copy_(made[name])
        return {o.name: made[o.name] for o in self.graph.outputs}

    def _log(self, r: Recurrence, small: Mapping[str, Tensor]) -> Tensor:
        a = small[f"transition{self.plan.recurrences.index(r)}"].to(torch.complex128)
        return torch.where(a == 0, LOG_OF_ZERO, torch.log(a))

    def _read(self, i: int, reading: Reading, small: Mapping[str, Tensor], frame: Frame) -> dict[str, Tensor]:
        """A reading's kernel and, where the recurrence starts from a state, what it sees of that."""
        r, time, state = reading.of, self.graph.time, self.graph.state
        number, length = self.plan.recurrences.index(r), frame.size(time)

        def sum_of(axes: Axes, *factors: tuple[str, Axes], first: int) -> Tensor:
            want = (*axes, *state)
            v = torch.ones((), dtype=torch.complex128, device=frame.device)
            for name, its_axes in factors:
                v = v * frame.align(small[name], its_axes, want)
            v = -1j * v if reading.part == "imag" else v
            x = frame.align(self._log(r, small), r.transition.axes, want)
            made = powers_sum(v.expand([frame.size(a) for a in want]), x, length, first)
            order = tuple(a for a in self.graph.order if a in (*axes, time))
            return made.float().permute([(*axes, time).index(a) for a in order])

        own = [(f"factor{i}", reading.factor.axes)] if reading.factor is not None else []
        weight = [(f"weight{number}", r.weight.axes)] if r.weight is not None else []
        axes = kernel_axes(self.graph, reading)
        kernel = sum_of(axes, *own, *weight, first=0)
        at = [a for a in self.graph.order if a in (*axes, time)].index(time)
        if reading.before:
            kernel = torch.cat([torch.zeros_like(kernel.narrow(at, 0, 1)), kernel.narrow(at, 0, length - 1)], at)
        found = {f"kernel{i}": kernel.contiguous()}
        if r.initial is not None:
            axes = start_axes(self.graph, reading)
            start = sum_of(axes, *own, (f"initial{number}", r.initial.axes), first=0 if reading.before else 1)
            at = [a for a in self.graph.order if a in (*axes, time)].index(time)
            found[f"start{i}"] = start.flip(at) if r.reverse else start.contiguous()
        return found

    def _final(self, r: Recurrence, signal: Tensor, small: Mapping[str, Tensor], frame: Frame) -> Tensor:
        """The state after the last step walked: Σ_j a^{L-1-j} w u_j, a block of steps after another (Horner's rule), + a^L of the first."""
        time, number, x = self.graph.time, self.plan.recurrences.index(r), self._log(r, small)
        length = frame.size(time)
        m = step_block(length)
        axes = tuple(a for a in r.scan.axes if a != time)
        letters = dict(zip(self.graph.order, ascii_letters, strict=False))
        lanes = tuple(a for a in self.graph.order if a in (set(r.signal.axes) | set(r.transition.axes)) - {time})
        word = "".join(letters[a] for a in r.transition.axes)
        into = "".join(letters[a] for a in lanes)
        powers = powers_of(x, torch.arange(m, device=x.device)).to(torch.complex64)
        at = r.signal.axes.index(time)
        steps = (signal if r.reverse else signal.flip(at)).to(torch.complex64)
        source = "".join(letters[a] for a in r.signal.axes)
        whole = frame.align(powers_of(x, torch.tensor([m], device=x.device))[..., 0].to(torch.complex64), r.transition.axes, lanes)
        total = torch.zeros((), dtype=torch.complex64, device=signal.device)
        for start in reversed(range(0, length, m)):
            part = steps.narrow(at, start, min(m, length - start))
            total = total * whole + torch.einsum(f"{source},{word}{letters[time]}->{into}", part, powers[..., :part.shape[at]])
        state = frame.align(total.to(torch.complex128), lanes, axes)
        if r.weight is not None:
            state = state * frame.align(small[f"weight{number}"], r.weight.axes, axes)
        if r.initial is not None:
            far = powers_of(x, torch.tensor([length], device=x.device))[..., 0]
            state = state + frame.align(far, r.transition.axes, axes) * frame.align(small[f"initial{number}"], r.initial.axes, axes)
        state = state.expand([frame.size(a) for a in axes]).contiguous()
        return state.to(torch.complex64) if r.scan.kind == "complex" else state.real.float()


__all__ = ["LtiExecutable"]
