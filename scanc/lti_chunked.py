"""Running a linear time-invariant recurrence in the form chunked (forms/chunked_lti.py): products of chunks, a recurrence over them.

Products are the device's library's, in float32; what is left of the recurrence, one step a chunk, and what is not the recurrence's are
kernels of the target's backend. Matrices of a channel are powers: made from logarithms in double precision, as long as one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from scanc.compiler import ReferenceExecutable, default_schedule, prepare, program, result_dtype
from scanc.errors import UnsupportedForm
from scanc.forms.chunked_choice import chunked_plan
from scanc.forms.chunked_lti import LtiChunkPlan, lti_chunk_backward, lti_chunk_plan
from scanc.forms.lti import Reading, Recurrence
from scanc.ir import Axes, Builder, Graph, Output, Type
from scanc.lti import Generator, gradients_through
from scanc.powers import powers_of
from scanc.reference import axis_sizes, evaluate
from scanc.reference_ops import Frame
from scanc.schedule import ChunkedSchedule
from scanc.target import Target

Over = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def is_lti(graph: Graph) -> bool:
    """Whether a graph's form chunked is this one: decays of a head or a key, even fixed ones, have kernels of their own where rows share
    a state's columns (triton_chunked.py)."""
    if not any(n.op == "scan" for n in graph.nodes()) or chunked_plan(prepare(graph)) is not None:
        return False
    try:
        _ = lti_chunk_plan(prepare(graph)) if graph.origin is None else lti_chunk_backward(graph)
    except UnsupportedForm:
        return False
    return True


@lru_cache(maxsize=8)
def _over_chunks(target: Target, complex_: bool, initial: bool) -> Any:
    """The program of the states before each chunk, H_k = a H_{k-1} + e_{k-1}, from what each adds.

    a (d n)   e, H (m d l n), l over chunks   initial (m d n)
    """
    dtype = "complex64" if complex_ else "float32"
    b = Builder(("m", "d", "l", "n"), {}, "l")
    a, e, first = (b.input(name, Type(tuple(axes), dtype)) for name, axes in (("a", "dn"), ("e", "mdln"), ("initial", "mdn")))
    scan = b.scan(a, e, first if initial else None, axis="l")
    before = b.prior(scan)
    outputs = (Output("h", before, before.axes, "e"),)
    graph = Graph("chunks", (a, e, *((first,) if initial else ())), outputs, "l", ("m", "d", "l", "n"), {}, ("n",))
    return program(graph, target, default_schedule(graph, target, {}, form="recurrent"))


class _Carried(torch.autograd.Function):
    """States before each chunk; their derivative is the same recurrence the other way."""

    @staticmethod
    def forward(ctx: Any, target: Target, a: Tensor, e: Tensor, initial: Tensor | None) -> Tensor:
        given = {"a": a, "e": e, **({"initial": initial} if initial is not None else {})}
        h: Tensor = _over_chunks(target, e.is_complex(), initial is not None)({k: x.contiguous() for k, x in given.items()})["h"]
        ctx.save_for_backward(a, h)
        ctx.target, ctx.initial = target, initial is not None
        return h

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (a, h) = gradients, ctx.saved_tensors
        given = {"a": a.conj().resolve_conj().contiguous(), "e": g.flip(2).contiguous()}
        by_e = _over_chunks(ctx.target, g.is_complex(), False)(given)["h"].flip(2)
        by_a = (h.conj() * by_e).sum((0, 2))
        by_initial = g[:, :, 0] + a.conj() * by_e[:, :, 0] if ctx.initial else None
        return None, by_a, by_e, by_initial


@dataclass(frozen=True)
class _Lanes:
    """The axes of a recurrence's lanes: ``rows`` that share matrices, ``own`` that have theirs, ``state`` ones."""

    rows: Axes
    own: Axes
    state: Axes


class Chunks:
    """What a plan's graph is given beside the op's inputs: read<i>, final<i>. Differentiable."""

    def __init__(self, plan: LtiChunkPlan, small: Mapping[str, Tensor], signals: Mapping[str, Tensor], frame: Frame, chunk: int,
                 target: Target) -> None:
        self.plan, self.lti, self.small, self.signals, self.frame = plan, plan.lti, small, signals, frame
        self.graph, self.target = plan.lti.graph, target
        self.logs = Generator(plan.lti, small, frame)
        self.length = frame.size(self.graph.time)
        self.chunk = min(chunk, self.length)
        self.count = -(-self.length // self.chunk)
        self._states: dict[int, Tensor] = {}

    def lanes(self, r: Recurrence, more: Axes = ()) -> _Lanes:
        own = [n.axes for n in (r.transition, r.weight) if n is not None]
        state = tuple(a for a in r.scan.axes if a in self.graph.state)
        shared = self.graph.union(*own, more)
        every = self.graph.union(tuple(a for a in r.scan.axes if a != self.graph.time), more)
        groups = {self.graph.groups.get(a) for a in shared}
        mine = tuple(a for a in every if a not in state and (a in shared or a in groups))
        return _Lanes(tuple(a for a in every if a not in (*mine, *state)), mine, state)

    def _flat(self, x: Tensor, axes: Axes, lanes: _Lanes) -> Tensor:
        """x over (own, state): (d, n), at full size."""
        want = (*lanes.own, *lanes.state)
        full = self.frame.expand(x, axes, want)
        return full.reshape(self._size(lanes.own), self._size(lanes.state))

    def _size(self, axes: Axes) -> int:
        total = 1
        for a in axes:
            total *= self.frame.size(a)
        return total

    def _powers(self, r: Recurrence, lanes: _Lanes, steps: Tensor) -> Tensor:
        """(d, n, steps) of a's powers."""
        return powers_of(self._flat(self.logs.log(r), r.transition.axes, lanes), steps)

    def _weight(self, r: Recurrence, lanes: _Lanes) -> Tensor:
        number = self.lti.recurrences.index(r)
        if r.weight is None:
            return torch.ones((), dtype=torch.complex128, device=self.frame.device)
        return self._flat(self.small[f"weight{number}"], r.weight.axes, lanes)[..., None]

    def _chunks(self, r: Recurrence, lanes: _Lanes) -> Tensor:
        """The signal (d, rows · chunks, Q) in the direction walked, 0 past its end."""
        time = self.graph.time
        number = self.lti.recurrences.index(r)
        u = self.frame.expand(self.signals[f"signal{number}"].float(), r.signal.axes, (*lanes.own, *lanes.rows, time))
        u = u.flip(-1) if r.reverse else u
        u = torch.nn.functional.pad(u, (0, self.count * self.chunk - self.length))
        return u.reshape(self._size(lanes.own), self._size(lanes.rows) * self.count, self.chunk)

    def _parts(self, x: Tensor, r: Recurrence) -> Tensor:
        """A complex matrix (d, n, Q) as what (Re H, Im H) side by side is multiplied by to give the real part of the product."""
        return torch.cat([x.real, -x.imag], 1).float() if r.scan.kind == "complex" else x.real.float()

    def _pair(self, h: Tensor) -> Tensor:
        return torch.cat([h.real, h.imag], -1) if h.is_complex() else h

    def _ends(self, r: Recurrence, lanes: _Lanes, steps: int, u: Tensor) -> Tensor:
        """What the first ``steps`` steps of chunks u (d, m, Q) leave at their end, (d, m, n)."""
        falling = torch.arange(steps - 1, -1, -1, device=self.frame.device)
        w = (self._powers(r, lanes, falling) * self._weight(r, lanes)).transpose(1, 2)
        if r.scan.kind != "complex":
            return u[..., :steps] @ w.real.float()
        both = u[..., :steps] @ torch.cat([w.real, w.imag], -1).float()
        return torch.complex(*both.chunk(2, -1))

    def states(self, r: Recurrence) -> Tensor:
        """The states before each chunk, (d, rows · chunks, n)."""
        number, lanes = self.lti.recurrences.index(r), self.lanes(r)
        if number not in self._states:
            u = self._chunks(r, lanes)
            d, m, n = u.shape[0], self._size(lanes.rows), self._size(lanes.state)
            ends = self._ends(r, lanes, self.chunk, u).view(d, m, self.count, n).transpose(0, 1)
            whole = self._powers(r, lanes, torch.tensor([self.chunk], device=u.device))[..., 0]
            whole = whole.to(ends.dtype) if ends.is_complex() else whole.real.to(ends.dtype)
            initial = None
            if r.initial is not None:
                initial = self.frame.expand(self.small[f"initial{number}"], r.initial.axes, (*lanes.rows, *lanes.own, *lanes.state))
                initial = initial.reshape(m, d, n)
                initial = initial.to(ends.dtype) if ends.is_complex() else initial.real.to(ends.dtype)
            carried: Tensor = _Carried.apply(self.target, whole, ends, initial)
            self._states[number] = carried.transpose(0, 1).reshape(d, m * self.count, n)
        return self._states[number]

    def read(self, i: int) -> Tensor:
        """What a contraction gives at every step."""
        reading: Reading = self.lti.readings[i]
        r, frame, q = reading.of, self.frame, self.chunk
        more = reading.factor.axes if reading.factor is not None else ()
        own, lanes = self.lanes(r), self.lanes(r, more)
        c = torch.ones((1, 1), dtype=torch.complex128, device=frame.device)
        if reading.factor is not None:
            c = self._flat(self.small[f"factor{i}"], reading.factor.axes, lanes)
        c = (-1j * c if reading.part == "imag" else c)[..., None]
        power = self._powers(r, lanes, torch.arange(q + 1, device=frame.device))
        kernel = (c * self._weight(r, lanes) * power[..., :q]).real.sum(1).float()
        late = 1 if reading.before else 0
        gap = torch.arange(q, device=frame.device)[None, :] - torch.arange(q, device=frame.device)[:, None] - late
        toeplitz = torch.where(gap >= 0, kernel[:, gap.clamp(min=0)], 0.0)
        border = self._parts(c * power[..., 1 - late : q + 1 - late], r)
        h = self._pair(self.states(r))
        # Matrices may have more axes than the states.
        inner = replace(frame, sizes={**frame.sizes, "@chunk": self.count, "@state": h.shape[-1]})
        have, want = ((*x.own, *x.rows, "@chunk", "@state") for x in (own, lanes))
        h = inner.expand(h.view(inner.shape(have)), have, want).reshape(self._size(lanes.own), -1, h.shape[-1])
        y = torch.baddbmm(self._chunks(r, lanes) @ toeplitz, h, border)
        y = y.view(*(frame.size(a) for a in (*lanes.own, *lanes.rows)), self.count * q)[..., : self.length]
        y = y.flip(-1) if r.reverse else y
        axes = self.plan.graph.input(f"read{i}").axes
        return frame.align(y, (*lanes.own, *lanes.rows, self.graph.time), axes).expand(frame.shape(axes)).contiguous()

    def final(self, i: int) -> Tensor:
        """A recurrence's last state: of the last chunk's, which may be shorter."""
        r, frame = self.lti.finals[i], self.frame
        lanes, rest = self.lanes(r), self.length - (self.count - 1) * self.chunk
        d, m = self._size(lanes.own), self._size(lanes.rows)
        u = self._chunks(r, lanes).view(d, m, self.count, self.chunk)[:, :, -1]
        whole = self._powers(r, lanes, torch.tensor([rest], device=u.device))[..., 0][:, None]
        h = self.states(r).view(d, m, self.count, -1)[:, :, -1]
        whole = whole.to(h.dtype) if h.is_complex() else whole.real.to(h.dtype)
        state = whole * h + self._ends(r, lanes, rest, u)
        axes = tuple(a for a in r.scan.axes if a != self.graph.time)
        have = (*lanes.own, *lanes.rows, *lanes.state)
        return frame.align(state.reshape([frame.size(a) for a in have]), have, axes).contiguous()

    def made(self, names: list[str]) -> dict[str, Tensor]:
        """Those that are named."""
        every: dict[str, tuple[Callable[[int], Tensor], int]] = {f"read{i}": (self.read, i) for i in range(len(self.lti.readings))}
        every |= {f"final{i}": (self.final, i) for i in range(len(self.lti.finals))}
        return {name: make(i) for name, (make, i) in every.items() if name in names}


class LtiChunkedExecutable(ReferenceExecutable):
    """A graph whose transitions have no time axis, a chunk at once; with the interface of an Executable. Raises UnsupportedForm."""

    def __init__(self, graph: Graph, target: Target, schedule: ChunkedSchedule) -> None:
        super().__init__(graph, target)
        self.schedule: ChunkedSchedule = schedule   # type: ignore[assignment]
        self.plan, self.inner_graph = self._planned(graph)
        self.inner = program(self.inner_graph, target, default_schedule(self.inner_graph, target, {}))

    def _planned(self, graph: Graph) -> tuple[LtiChunkPlan, Graph]:
        plan = lti_chunk_plan(prepare(graph))
        return plan, plan.graph

    def source(self, state: int = 16) -> Any:
        """The kernel of what is not the recurrence's."""
        return self.inner.source(state)

    def _chunks(self, inputs: Mapping[str, Tensor]) -> Chunks:
        device = next(iter(inputs.values())).device
        frame = Frame(self.graph.name, axis_sizes(self.graph, inputs), self.graph.groups, torch.float64, device)
        small = evaluate(self.plan.lti.small, inputs, dtype=torch.float64)
        signals = evaluate(self.plan.signals, inputs, dtype=torch.float32)
        return Chunks(self.plan, small, signals, frame, self.schedule.chunk, self.target)

    def __call__(self, inputs: Mapping[str, Tensor], *, into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        names = [str(n.name) for n in self.inner_graph.inputs]
        given = {**inputs, **self._chunks(inputs).made(names)}
        made = self.inner({n: given[n] for n in names})
        for name, storage in (into or {}).items():
            made[name] = storage.copy_(made[name])
        return {o.name: made[o.name] for o in self.graph.outputs}


class LtiChunkedBackward(LtiChunkedExecutable):
    """The backward of such a graph: of what is not the recurrence's by its own backward, whose gradients of contractions and of last
    states go on through the chunks' products."""

    def _planned(self, graph: Graph) -> tuple[LtiChunkPlan, Graph]:
        plan, inner = lti_chunk_backward(graph)
        asked = {o.name for o in graph.outputs}
        self._generated = [o.name.removeprefix("d_") for o in inner.outputs if o.name not in asked]
        return plan, inner

    def _taken(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What matrices and signals are made of. What the backward is not given, no gradient that is asked for depends on: zeros."""
        sizes, device = axis_sizes(self.graph, inputs), next(iter(inputs.values())).device
        nodes = (*self.plan.lti.small.inputs, *self.plan.signals.inputs)
        return {str(n.name): inputs[str(n.name)] if str(n.name) in inputs else torch.zeros(
            [sizes[a] for a in n.axes], dtype=torch.complex64 if n.kind == "complex" else torch.float32, device=device) for n in nodes}

    def __call__(self, inputs: Mapping[str, Tensor], *, into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        wanted = [o.name.removeprefix("d_") for o in self.graph.outputs]
        names = [str(n.name) for n in self.inner_graph.inputs]
        leaves: dict[str, Tensor] = {}
        generated: dict[str, Tensor] = {}
        if any(n not in inputs for n in (*names, *self._generated)):
            small = {str(n.name) for n in self.plan.lti.small.inputs}
            taken = self._taken(inputs)
            with torch.enable_grad():
                for n in [n for n in wanted if n in taken]:
                    wide = torch.complex128 if taken[n].is_complex() else torch.float64
                    leaves[n] = taken[n].detach().to(wide if n in small else taken[n].dtype).requires_grad_()
                generated = self._chunks({**inputs, **taken, **leaves}).made([*names, *self._generated])
        made = self.inner({n: generated[n].detach() if n in generated else inputs[n] for n in names})
        found = gradients_through(generated, leaves, {n: made.pop(f"d_{n}") for n in self._generated})
        results = {}
        for n in wanted:
            both = [x for x in (made.get(f"d_{n}"), found.get(n)) if x is not None] or [torch.zeros_like(leaves[n])]
            total = sum(both[1:], both[0].to(torch.promote_types(both[0].dtype, torch.float32)))
            results[f"d_{n}"] = total.to(result_dtype(self.graph, f"d_{n}", inputs))
        for name, storage in (into or {}).items():
            results[name] = storage.copy_(results[name])
        return results


__all__ = ["Chunks", "LtiChunkedBackward", "LtiChunkedExecutable", "is_lti"]
