"""Running the chunked form where every key decays at its own pace: its kernels (triton_chunked_keys.py), the memory between them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from scanc.codegen import triton_chunked_keys as keys
from scanc.codegen.layout import storage_dtype
from scanc.codegen.triton_chunked_keywalk import KeyPass, KeyWalk
from scanc.codegen.triton_chunked_launch import Layout, side_stream, wanted
from scanc.codegen.triton_chunked_run import ChunkedExecutable, Make
from scanc.codegen.triton_chunked_source import ChunkSource, Shape
from scanc.codegen.triton_common import ceil_power
from scanc.forms.chunked import ChunkPlan, ChunkStore


class KeyedExecutable(ChunkedExecutable):
    """A graph of the key class compiled in the chunked form; see Executable."""

    walking, passing = KeyWalk, KeyPass

    def kinds(self, segments: bool) -> list[str]:
        plan, found = self.chunk_plan, ["pairs"]
        for i in range(len(plan.scans)):
            found += [f"summary {i}", f"pass {i}"] if segments else []
            found += [] if plan.walks else [f"states {i}{' entries' if segments else ''}"]
        return [*found, *(["walk entries" if segments else "walk"] if plan.walks else self._parts)]

    @property
    def _parts(self) -> list[str]:
        """The kernels of all chunks side by side that results need."""
        plan = self.chunk_plan
        wanted = {keys.over_rows(plan, s) for s in plan.stores if not s.final}
        return [kind for kind, rows in (("chunks", True), ("keys", False)) if rows in wanted]

    def _beside_walks(self, shape: Shape, title: str) -> dict[str, Make]:
        plan, schedule = self.chunk_plan, self.schedule
        return {
            "pairs": lambda: keys.pairs(plan, schedule, shape, title),
            "chunks": lambda: keys.chunks(plan, schedule, shape, title),
            "keys": lambda: keys.keys(plan, schedule, shape, title),
        }

    def all_sources(self, shape: Shape) -> list[ChunkSource]:
        plain = replace(shape, bulk=False)
        return [self.make(k, shape if k.startswith("walk") else plain) for k in self.kinds(self.schedule.segment > 0)]

    def shape_of(self, sizes: Mapping[str, int]) -> Shape:
        shape = super().shape_of(sizes)
        return replace(shape, heads=1, bulk=shape.bulk and self.chunk_plan.walks)

    def source(self, state: int = 16, mode: object = None, schedule: object = None) -> ChunkSource:  # type: ignore[override]
        return self.make("pairs", replace(self.shape_of({self.chunk_plan.columns: state}), bulk=False))

    def computed(
        self, given: Mapping[str, Tensor], into: Mapping[str, Tensor], sizes: Mapping[str, int], layout: Layout
    ) -> dict[str, Tensor]:
        plan = self.chunk_plan
        device = next(iter(given.values())).device
        made = {}
        for store in plan.stores:
            summed = not store.final and bool(store.gone)
            axes = store.value.axes if summed else store.output.axes
            dtype = torch.float32 if summed else getattr(torch, storage_dtype(plan.graph, store.output))
            made[store.name] = into[store.name] if store.name in into and not summed else torch.empty(
                [sizes[a] for a in axes], dtype=dtype, device=device)
        self._launch({**given, **made}, sizes, self._with_bulk(layout, {**given, **made}), device)
        for store in plan.stores:
            if not store.final and store.gone:
                made[store.name] = _summed(plan, store, made[store.name], sizes).to(getattr(torch, storage_dtype(plan.graph, store.output)))
        return made

    def _launch(self, tensors: dict[str, Tensor], sizes: Mapping[str, int], layout: Layout, device: torch.device) -> None:
        """Runs every kernel once."""
        plan = self.chunk_plan
        padded = layout.chunks * self.schedule.chunk
        numbers = {f"size_{a}": sizes.get(a, 1) for a in plan.graph.order}
        numbers |= {"padded": padded, "segment": layout.segment, "segments": layout.segments, "walked": 1, "before": 0}
        wide, operands = max(16, ceil_power(layout.shape.columns)), getattr(torch, self._operands)

        def room(name: str, count: int, dtype: torch.dtype) -> None:
            tensors[name] = torch.empty(count, dtype=dtype, device=device)

        room("pairs", layout.grid * padded * self.schedule.chunk, operands)
        room("enters", layout.grid * padded * wide, operands)
        room("leaves", layout.grid * padded * wide, operands)
        room("whole", layout.grid * layout.chunks * wide, torch.float32)
        plain, programs = replace(layout.shape, bulk=False), layout.grid * layout.chunks
        self._kernel_of("pairs", plain)(programs, tensors, numbers)
        walkers, cut = layout.walkers(self.schedule.rows), layout.segments > 1
        scans = [i for i, scan in enumerate(plan.scans) if plan.walks or wanted(plan, scan)]
        for i in scans:  # all memory comes from the current stream
            if cut:
                tensors[f"entry{i}"] = layout.states(layout.segments * layout.grid, 16, torch.float32, device)
                room(f"product{i}", layout.segments * layout.grid * wide, torch.float32)
            if not plan.walks:
                tensors[f"border{i}"] = layout.states(layout.chunks * layout.grid, self.schedule.rows, operands, device)

        def states(i: int) -> None:
            if cut:
                self._kernel_of(f"summary {i}", plain)(walkers // layout.segments * (layout.segments - 1), tensors, numbers)
                tiles = -(-plain.rows // min(16, layout.padded_rows))
                self._kernel_of(f"pass {i}", plain)(tiles * layout.grid, tensors, numbers)
            if not plan.walks:
                self._kernel_of(f"states {i}{' entries' if cut else ''}", plain)(walkers, tensors, numbers)

        with side_stream(device, len(scans) > 1) as aside:
            for i in scans:
                with aside if i != scans[0] else nullcontext():
                    states(i)
        if plan.walks:
            self._kernel_of("walk entries" if cut else "walk", layout.shape)(walkers, tensors, numbers)
            return
        for part in self._parts:
            tiles = keys.tiles_of_columns(plan, plain) if part == "keys" else 1
            self._kernel_of(part, plain)(programs * tiles, tensors, numbers)


def _summed(plan: ChunkPlan, store: ChunkStore, x: Tensor, sizes: Mapping[str, int]) -> Tensor:
    """A value summed to its result's axes; over the members of a group where the result has the group's axis."""
    axes, wanted = list(store.value.axes), store.output.axes
    for group, parent in plan.graph.groups.items():
        if group in wanted and group not in axes and parent in axes:
            at = axes.index(parent)
            x = x.unflatten(at, (sizes[group], sizes[parent] // sizes[group]))
            axes.insert(at, group)
    gone = [i for i, a in enumerate(axes) if a not in wanted]
    x = x.sum(gone) if gone else x
    left = [a for a in axes if a in wanted]
    return x.permute([left.index(a) for a in wanted])


__all__ = ["KeyedExecutable"]
