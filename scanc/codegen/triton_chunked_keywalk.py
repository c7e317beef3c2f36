"""The walking kernels of the chunked form where every key decays at its own pace (see triton_chunked_walk.py, triton_chunked_keys.py).

What a chunk's decays have to do with factors over columns is done: each chunk is three plain products,

    yᵀ = H C̃ᵀ + Xᵀ Mᵀ          H = 2^G ∘ H + Xᵀ B̃          2^G [1, BN]
"""

from __future__ import annotations

from scanc.codegen.emit import Source
from scanc.codegen.triton_chunked_keys import KeyTiles
from scanc.codegen.triton_chunked_source import Scope, Shape
from scanc.codegen.triton_chunked_walk import Passing, Walking
from scanc.forms.chunked import ChunkPlan, ChunkScan
from scanc.ir import Node
from scanc.schedule import ChunkedSchedule


class KeyWalk(KeyTiles, Walking):
    """A kernel that walks time, its chunks' factors made ahead."""

    from_end = False   # a product of transitions is a key's own: there is no one chunk from which on all are 0

    def __init__(self, plan: ChunkPlan, schedule: ChunkedSchedule, shape: Shape, kind: str, scans: tuple[ChunkScan, ...], title: str, *,
                 entries: bool = False) -> None:
        super().__init__(plan, schedule, shape, kind, scans, title, entries=entries)
        for word in ("NT", "matrix", "whole"):
            self.names.fresh(word)

    def factors(self) -> list[Node]:
        return [s.input.rows for s in self.scans]

    def weights(self) -> list[Node]:
        return [r.weight for r in self.reads if r.weight is not None]

    def lasting(self, out: Source, heads: list[Scope]) -> str:
        for scope in heads:
            scope.made["product"] = self.names.fresh(f"product{scope.suffix}")
            out(f"{scope.made['product']} = tl.full((1, BN), 1.0, tl.float32)")
        return "chunks"

    def product_place(self, i: int, scope: Scope, segment: str = "seg") -> str:
        self.argument(f"product{i}", (), "float32", "inner")
        return f"product{i}_ptr + ({segment} * {self.rows_of_grid()} + {self.grid_row(scope)}) * BN + n_state"

    def chunk(self, out: Source, head: Scope, common: Scope, before: list[Node], after: list[Node], ahead: list[Node]) -> None:
        scope = head.inner()
        scope.known.update(common.known)
        self.values(out, before, scope)
        if self.kind.startswith("states"):
            (scan,) = self.scans
            border = self.inner_place(f"border{self.plan.scans.index(scan)}", "(ts // Q)", scope)
            out(f"tl.store({border}, {scope.made['state', scan]}.to({self.operand_type}))")
        if self.reads:
            out(f"matrix = tl.load({self.pairs_tile(scope, 'tau', 'sigma')})")
        for read in self.reads:
            entering = f"tl.load({self.steps_tile('enters', scope, 'tau', 'n')})"
            border = self.dot(f"{scope.made['state', read.of]}.to({self.operand_type})", entering)
            value = self.dot(self.factor(out, read.of.input.rows, scope), "matrix", border)
            self.weighted(out, read, value, scope)
        self.values(out, after, scope)
        for store in self.stores:
            if not store.final:
                self.write(out, store, scope)
        out(f"whole = tl.load({self.whole_tile(scope, 'n_state')})")
        for scan in self.scans:
            state = scope.made["state", scan]
            columns = f"tl.load({self.steps_tile('enters' if scan.back else 'leaves', scope, 'sigma', 'n_state')})"
            out(f"{state} = {self.dot(self.factor(out, scan.input.rows, scope), columns, f'{state} * whole')}")
        if "product" in scope.made:
            out(f"{scope.made['product']} = {scope.made['product']} * whole")


class KeyPass(KeyWalk, Passing):
    """The kernel that passes carries from segment to segment."""


__all__ = ["KeyPass", "KeyWalk"]
