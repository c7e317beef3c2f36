"""Launching a kernel: memory for its results, partial results added up, and a few heads at a time where those would cost too much.

Results that several programs share come back as partial results with leading axes (codegen/layout.py), whose memory is bounded
(launch_memory.py): where it takes a few heads at a time, the kernel is launched on views of the same tensors, and the partial results of
one launch are added up before the next. Nothing in a kernel knows of it: sizes and strides are arguments.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._dynamo.guards import _empty_strided_cpu, _empty_strided_cuda  # type: ignore[attr-defined]

from scanc.codegen.in_place import in_place
from scanc.codegen.layout import (
    Buffer,
    Geometry,
    KernelSource,
    Total,
    checkpoint_size,
    geometry,
    leading_sizes,
    storage_dtype,
)
from scanc.ir import Graph, Output
from scanc.launch_memory import Piece, pieces_of

Call = Callable[[Sequence[Tensor], Sequence[int], Sequence[int], Sequence[int]], None]
Fire = Callable[[Sequence[Tensor]], None]
_Adder = tuple[dict[str, "_Place"], Callable[[Sequence[Tensor], Sequence[Tensor]], None]]  # results' places by name, and what fills them


@dataclass(frozen=True)
class Kernel:
    """A loaded kernel: its source, its call, and how many floats of scratch a launch needs.

    ``call`` takes (tensors in buffer order and scratch, sizes, strides, launch numbers). A backend that can pack the numbers once gives
    a call with a method ``bind(sizes, strides, numbers) -> function of the tensors``.
    """

    source: KernelSource
    call: Call
    scratch: Callable[[KernelSource, Geometry], int]

    def bind(self, order: tuple[int, ...], strides: tuple[int, ...], numbers: tuple[int, ...]) -> Fire:
        made = getattr(self.call, "bind", None)
        if made is not None:
            return made(order, strides, numbers)
        call = self.call
        return lambda tensors: call(tensors, order, strides, numbers)


@dataclass(frozen=True)
class _Place:
    """Memory to allocate: what torch.empty_strided takes."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, size: Sequence[int], dtype: torch.dtype) -> _Place:
        strides, step = [], 1
        for extent in reversed(size):
            strides.append(step)
            step *= max(extent, 1)
        return cls(tuple(size), tuple(reversed(strides)), dtype)

    def empty(self, device: torch.device) -> Tensor:
        # torch.empty takes half as long again
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=device)

    @property
    def bytes(self) -> int:
        return math.prod(self.size) * self.dtype.itemsize

    def maker(self, device: torch.device) -> Callable[[], Tensor]:
        """What gives such memory of the device, which is then the current one, in half the time: as code that torch.compile makes does."""
        make = {"cpu": _empty_strided_cpu, "cuda": _empty_strided_cuda}[device.type]
        return functools.partial(make, self.size, self.stride, self.dtype)


def dense_strides(x: Tensor) -> tuple[int, ...]:
    """Strides of a tensor that lies in memory in x's order, without gaps and repetitions: those of torch.empty_like(x)."""
    return torch.empty_like(x, device="meta").stride()


def lies_as(graph: Graph, output: Output) -> str:
    """The input in whose order a result lies in memory; "" for a contiguous one.

    A gradient lies as what it is the gradient of, and where nothing is carried from step to step, a result as the input it is like.
    """
    like = output.like
    if not like or not graph.has_input(like) or graph.input(like).axes != output.axes:
        return ""
    if graph.name.endswith("_backward"):
        return like if output.name == f"d_{like}" else ""
    carries = any(n.op in ("scan", "conv") for n in graph.nodes())
    return like if graph.time and not carries else ""


@dataclass(frozen=True)
class _Shot:
    """One launch: what sizes alone decide of it. ``parts`` are partial results; ``leading`` counts leading axes where there are any."""

    piece: Piece | None
    order: tuple[int, ...]
    numbers: tuple[int, ...]
    scratch: _Place | None
    leading: Mapping[str, int]
    parts: Mapping[str, _Place]


class Launches:
    """A kernel's launches for tensors of one set of shapes and strides, and of one device.

    Whatever those decide is worked out here, or by the first run, which sees the tensors; a later run allocates and launches.
    """

    def __init__(self, kernel: Kernel, given: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
        self.kernel, self.sizes = kernel, dict(sizes)
        self.device = next(iter(given.values())).device
        source = kernel.source
        shape = geometry(source.plan, source.schedule, sizes, source.lanes)
        stores = [b for b in source.buffers if b.store is not None]
        checkpoints = [b for b in source.buffers if b.role == "checkpoint"]
        pieces = list(pieces_of(source, given, sizes, shape))
        # What partial results share with checkpoints that are read for the last time takes no memory of its own.
        self._shared = in_place(source.plan, source.schedule, given, sizes) if source.mode.consumes else {}
        # A result the pieces share is added up even where one piece alone would write it whole.
        apart = {b.name for b in stores if _apart(b, source, shape, sizes) or (pieces[0] is not None and pieces[0].axis not in b.axes)}
        self._shots = [self._shot(piece, stores, apart) for piece in pieces]
        self._fires: list[Fire | None] = [None] * len(pieces)
        self._whole = {b.name: self._place(b, given) for b in stores if b.name not in apart}
        self._whole |= {b.name: self._checkpoints(b) for b in checkpoints}
        self._summed = [b for b in stores if b.name in apart]
        self._dtypes = {b.name: _dtype(b, source) for b in self._summed}
        # Where summaries have no memory of their own, partial results that have are gone before the others' totals come.
        mode, self._adders = source.mode, list[_Adder]()
        for some in ((False, True) if mode.consumes and mode.entries and not mode.combines else (None,)) if pieces == [None] else ():
            self._adders += self._added_up([b for b in self._summed if some is None or (b.name in self._shared) == some])
        self._stacks = self._like_parts() if pieces == [None] and not self._adders else []
        stacked = {name for names, _, _ in self._stacks for name in names}
        self._alone = [b for b in self._summed if b.name not in stacked]
        self._names = [b.name for b in (*stores, *checkpoints)]
        self._buffers = [b.name for b in source.buffers]

    def _place(self, b: Buffer, given: Mapping[str, Tensor]) -> _Place:
        """Memory for a result."""
        assert b.store is not None
        size, dtype = tuple(self.sizes[a] for a in b.axes), getattr(torch, b.dtype)
        like = lies_as(self.kernel.source.plan.graph, b.store.output)
        return _Place(size, dense_strides(given[like]), dtype) if like in given else _Place.of(size, dtype)

    def _checkpoints(self, b: Buffer) -> _Place:
        source = self.kernel.source
        return _Place.of(checkpoint_size(source.plan, b.axes, self.sizes, source.mode.leaves), getattr(torch, b.dtype))

    def _shot(self, piece: Piece | None, stores: Sequence[Buffer], apart: set[str]) -> _Shot:
        source, sizes = self.kernel.source, self.sizes
        plan = source.plan
        local = dict(sizes) if piece is None else {**sizes, piece.axis: piece.size, **({piece.group: 1} if piece.group else {})}
        numbers = geometry(plan, source.schedule, local, source.lanes)
        leading = {b.name: leading_sizes(plan, b.store, source.mode, numbers, local) for b in stores if b.store is not None}
        parts = {b.name: _Place.of((*leading[b.name], *(local[a] for a in b.axes)), getattr(torch, b.dtype))
                 for b in stores if b.name in apart}  # fmt: skip
        order = tuple(local.get(a, 1) for a in plan.graph.order)
        words = self.kernel.scratch(source, numbers)
        scratch = _Place.of((words,), torch.float32) if words else None
        return _Shot(piece, order, numbers.launch(), scratch, {name: len(axes) for name, axes in leading.items() if axes}, parts)

    def _added_up(self, summed: Sequence[Buffer]) -> list[_Adder]:
        """What a backend with a kernel of its own for that adds up of these: where the totals go, by name, and the kernel's launch."""
        make, shot, places, totals = getattr(self.kernel.call, "totals", None), self._shots[0], dict[str, _Place](), list[Total]()
        for b in summed:
            assert b.store is not None
            leading, place = shot.leading.get(b.name, 0), shot.parts[b.name]
            elements = math.prod(place.size[leading:]) * (2 if b.kind == "complex" else 1)
            if leading and elements and not (b.store.kind == "final" and self.kernel.source.mode.summary):
                places[b.name] = _Place.of(place.size[leading:], self._dtypes[b.name])
                spread = self._shared[b.name].spread if b.name in self._shared else None
                totals.append(Total(math.prod(place.size[:leading]), elements, str(self._dtypes[b.name]).removeprefix("torch."), spread))
        add = make(totals) if make is not None and totals else None
        return [(places, add)] if add is not None else []

    def _like_parts(self) -> list[tuple[tuple[str, ...], _Place, int]]:
        """Partial results of one shape, whose memory lies together so that one sum adds them all up: names, place, leading axes."""
        shot, groups = self._shots[0], dict[tuple[_Place, int], list[str]]()
        for b in self._summed:
            assert b.store is not None
            leading = shot.leading.get(b.name, 0)
            if leading and b.name not in self._shared and not (b.store.kind == "final" and self.kernel.source.mode.summary):
                groups.setdefault((shot.parts[b.name], leading), []).append(b.name)
        return [(tuple(names), _Place.of((len(names), *place.size), place.dtype), leading)
                for (place, leading), names in groups.items() if len(names) > 2]  # fmt: skip

    def results(self, into: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Memory for the results that come straight from the kernel, beside those that ``into`` gives."""
        return {name: place.empty(self.device) for name, place in self._whole.items() if name not in into}

    @property
    def bytes(self) -> int:
        """What a run allocates, at the most it holds at one time: results, and partial results with scratch, or with their totals."""
        whole = sum(place.bytes for place in self._whole.values())
        # Segments' own final states are not added up: they are the results.
        added = [b for b in self._summed if not (b.store is not None and b.store.kind == "final" and self.kernel.source.mode.summary)]
        totals = {b.name: math.prod(self.sizes[a] for a in b.axes) * self._dtypes[b.name].itemsize for b in added}
        most = 0
        for shot in self._shots:
            parts = {name: place.bytes for name, place in shot.parts.items() if name not in self._shared}
            most = max(most, sum(parts.values()) + (shot.scratch.bytes if shot.scratch is not None else 0))
            held = 0
            for names in [{*places} for places, _ in self._adders] or [{*totals}]:
                held += sum(totals[name] for name in names)
                most = max(most, held + sum(parts.values()))
                parts = {name: part for name, part in parts.items() if name not in names}
        return whole + most

    def __call__(self, given: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Results by name. ``into`` gives storage for results written in place, and for segments' summaries."""
        device = self.device
        whole = {name: into[name] if name in into else place.empty(device) for name, place in self._whole.items()}
        totals: dict[str, Tensor] = {}
        for number, shot in enumerate(self._shots):
            known = {**given, **whole}
            stacks = [place.empty(device) for _, place, _ in self._stacks]
            for (names, _, _), stack in zip(self._stacks, stacks, strict=True):
                known.update(zip(names, stack.unbind(), strict=True))
            for b in self._alone:
                shared, kept = self._shared.get(b.name), into.get(b.name) if self.kernel.source.mode.summary else None
                if shared is not None:
                    known[b.name] = shared.view(given[shared.checkpoint])
                else:
                    known[b.name] = kept if kept is not None else shot.parts[b.name].empty(device)
            if shot.piece is None and not (shot.leading.keys() - shot.parts.keys()):
                tensors = [known[name] for name in self._buffers]
            else:
                tensors = [self._view(b, known[b.name], shot) for b in self.kernel.source.buffers]
            fire = self._fires[number]
            if fire is None:
                strides = tuple(_strides(self.kernel.source.buffers, tensors))
                fire = self._fires[number] = self.kernel.bind(shot.order, strides, shot.numbers)
            if shot.scratch is not None:
                tensors.append(shot.scratch.empty(device))
            fire(tensors)
            tensors.clear()  # scratch memory is free again before anything is added up
            for (names, _, leading), stack in zip(self._stacks, stacks, strict=True):
                sums = stack.sum(tuple(range(1, 1 + leading))).unbind()
                own = [torch.empty_like(x, dtype=self._dtypes[name]) for name, x in zip(names, sums, strict=True)]
                torch._foreach_copy_(own, sums)  # results do not share memory; one kernel copies them all
                totals.update(zip(names, own, strict=True))
            for places, add in self._adders:
                totals |= {name: place.empty(device) for name, place in places.items()}
                add([known.pop(name) for name in places], [totals[name] for name in places])
            for b in (b for b in self._alone if b.name in known):
                part, shared = known.pop(b.name), self._shared.get(b.name)
                if shared is not None:
                    part = shared.read(given[shared.checkpoint], shot.parts[b.name].size)
                _add_up(totals, b, part, shot.leading.get(b.name, 0), self.kernel.source, self.sizes, shot.piece)
        if not totals:
            return whole
        return {name: whole[name] if name in whole else totals[name].to(self._dtypes[name]) for name in self._names}

    def direct(
        self, places: Mapping[str, tuple[int, int]], results: Sequence[str], many: bool
    ) -> Callable[[Sequence[Any]], Any] | None:
        """A later run as a function of values, giving ``results`` (their one where not ``many``); None where a run is more than a launch.

        ``places`` says which of the values each buffer is in, and how many bytes after its start. Nothing is asked of them but their
        addresses. A result that is among ``places`` is written there.
        """
        shot, fire, device = self._shots[0], self._fires[0], self.device
        if len(self._shots) > 1 or shot.piece is not None or shot.leading or shot.parts or fire is None:
            return None
        own = [name for name in self._whole if name not in places]
        if not {*self._buffers} <= {*places, *own} or not {*results} <= {*own}:
            return None
        # What is made here comes after the values, and is counted from the end.
        makers = [self._whole[name].maker(device) for name in own] + ([shot.scratch.maker(device)] if shot.scratch is not None else [])
        at = [places[name] if name in places else (own.index(name) - len(makers), 0) for name in self._buffers]
        at += [(-1, 0)] * (shot.scratch is not None)
        run, given = _on_parts(fire, at, device), [own.index(name) for name in results]
        if run is None:
            return None
        start = run
        if len(makers) == 1 and not many:
            (make,) = makers

            def one(values: Sequence[Any]) -> Tensor:
                made = make()
                start((*values, made))
                return made

            return _on_device(device, one)

        def several(values: Sequence[Any]) -> Any:
            made = [make() for make in makers]
            start((*values, *made))
            return tuple([made[i] for i in given]) if many else made[given[0]]

        return _on_device(device, several)

    def _view(self, b: Buffer, x: Tensor, shot: _Shot) -> Tensor:
        """A buffer as one launch sees it: its piece, under the leading axes it has none of."""
        if b.name in shot.parts:
            return x
        if shot.piece is not None:
            x = shot.piece.cut(x, b.axes if b.store is not None else (*b.leading, *b.axes))
        return x[(None,) * shot.leading[b.name]] if b.name in shot.leading else x


def _on_parts(fire: Fire, at: Sequence[tuple[int, int]], device: torch.device) -> Callable[[Sequence[Any]], None] | None:
    """A launch for buffers that are so many bytes into one or other of many tensors; None where it takes whole tensors alone."""
    launch, wheres, index = getattr(fire, "on_addresses", None), [i for i, _ in at], device.index or 0
    if not any(offset for _, offset in at):
        if launch is None:
            return lambda every: fire([every[i] for i in wheres])
        return lambda every: launch([every[i].data_ptr() for i in wheres], index)
    return None if launch is None else lambda every: launch([every[i].data_ptr() + offset for i, offset in at], index)


def _on_device(device: torch.device, call: Callable[[Sequence[Any]], Any]) -> Callable[[Sequence[Any]], Any]:
    """The call with its device the current one."""
    if device.type != "cuda":
        return call
    current = torch._C._cuda_getDevice

    def switched(values: Sequence[Any]) -> Any:
        if current() == device.index:
            return call(values)
        with torch.cuda.device(device):
            return call(values)

    return switched


def _dtype(b: Buffer, source: KernelSource) -> torch.dtype:
    assert b.store is not None
    if b.store.kind == "final" and source.mode.summary:
        return getattr(torch, b.dtype)
    return getattr(torch, storage_dtype(source.plan.graph, b.store.output))


def _apart(b: Buffer, source: KernelSource, shape: Geometry, sizes: Mapping[str, int]) -> bool:
    """Whether a result is written as partial results (or in another precision) and finished afterwards."""
    assert b.store is not None
    leading = leading_sizes(source.plan, b.store, source.mode, shape, sizes)
    summary = b.store.kind == "final" and source.mode.summary
    return bool(leading) and (summary or max(leading) > 1 or storage_dtype(source.plan.graph, b.store.output) != b.dtype)


def _add_up(
    totals: dict[str, Tensor], b: Buffer, part: Tensor, leading: int, source: KernelSource, sizes: Mapping[str, int], piece: Piece | None
) -> None:
    """Adds one launch's partial results to the total, in a fixed order; segments' own final states are kept apart."""
    assert b.store is not None
    kept = b.store.kind == "final" and source.mode.summary
    summed = part if kept or not leading else part.sum(tuple(range(leading)))
    if piece is None:
        totals[b.name] = summed
        return
    axes = (*b.leading, *b.axes) if kept else b.axes
    if b.name not in totals:
        full = [*(part.shape[:leading] if kept else ()), *(sizes[a] for a in b.axes)]
        totals[b.name] = summed.new_zeros(full)
    piece.cut(totals[b.name], axes).add_(summed)


def _strides(given_buffers: Sequence[Buffer], tensors: Sequence[Tensor]) -> list[int]:
    """Strides of every axis of every buffer; those of complex tensors count floats."""
    strides: list[int] = []
    for b, t in zip(given_buffers, tensors, strict=True):
        strides += [2 * s for s in t.stride()] if b.kind == "complex" else t.stride()
    return strides
