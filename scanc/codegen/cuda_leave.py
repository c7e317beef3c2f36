"""The CUDA backend: what the walk through time leaves: values for the epilogue, states for their results, checkpoints.

A lane's threads hold a sum over its states in parts. Where only the epilogue reads it they exchange parts so that each ends with the whole
of its share of the AT_ONCE steps, and of a whole tile that waits until the next steps are walked, so that there is work meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass

from scanc.codegen.cuda_rows import RowPrinter
from scanc.codegen.emit import Parts, Source
from scanc.forms.plan import Store
from scanc.ir import Node

Known = dict[Node, Parts]
SHARED_LIMIT = 227 << 10  # bytes; the most any architecture gives one block
BLOCK_SHARED = 1 << 10    # bytes of it that the machine takes for every block
EXCHANGED = 8             # steps at once whose sums a lane's threads pass to each other through it
READ = "__syncwarp(Warp<THREADS>::ALL);  // all of the lane's threads have read what is overwritten"


@dataclass(frozen=True)
class Walk:
    """One direction's part of the work: its nodes in order, and whether they run from the last step to the first."""

    nodes: tuple[Node, ...]
    back: bool
    main: bool


class LeavePrinter(RowPrinter):
    late: list[Node] = []  # sums added up over a lane's threads while the next steps are walked
    exchanged = False      # whether they do so through shared memory; tiles and rows are then read from addresses in registers
    rows_at = ""           # the first row over steps and states, where they are

    def _leave_checkpoints(self, out: Source) -> None:
        """The carries before the steps at hand, where a checkpoint is due."""
        out.open("if ((tile * TILE + base) % EVERY == 0) {")
        for i, scan in enumerate(self.plan.main):
            b = next(b for b in self.buffers if b.name == f"checkpoint{i}")
            guard = "lane < lanes" if self.laned(scan) else "lane == 0"
            for part, name in enumerate(self._carry_names(scan)):
                at = self._address(b, part, "lane" if self.laned(scan) else "0", state=self._first_state, time="((ts + base) / EVERY)")
                if self.stated(scan):
                    values = name.replace("[k]", "")
                    out(f"if ({guard}) store_states({at}, {self._state_stride(b)}, {values}, {self._states});")
                else:
                    out(f"if ({guard} && own == 0) *({at}) = {name};")
        out.close()

    def _leave_states(self, out: Source, store: Store) -> None:
        """Of one state the values of all steps at hand."""
        b, owner = self.of_store[store], self.owner(store.value, store.axes)
        for c in self.parts(b):
            name = f"{store.name}_out{c}"
            guards = [g for g in (owner, "lane < lanes" if self.laned(store.value) else "lane == 0") if g]
            guards += [f"{self._n} < N"] if self.padded != self.N else []
            at = self._address(b, c, "lane" if self.laned(store.value) else "0", state=self._n, time="(ts + base)")
            out(f"if ({' && '.join(guards)}) store_group({at}, {b.name}_{self.plan.time}, {name}, steps - base);")

    def _folded(self, walks: list[Walk]) -> list[Node]:
        """Sums that only the epilogue reads: the threads of a lane share their steps out instead of each having them all."""
        if self.split == 1 or not walks[-1].main:
            return []
        nodes = walks[-1].nodes
        read = {a for n in nodes for a in n.args}
        return [n for n in nodes if n.op == "sum" and n in self.left and self.laned(n) and n not in read]

    def _may_exchange(self, walks: list[Walk]) -> bool:
        """Whether passing sums through shared memory pays: a thread of two states has too few to share its wavefronts, sixteen steps at
        once have registers for nothing else, and four fold fast enough."""
        few = self.at_once == EXCHANGED and 1 < self.split <= self.at_once and self.tile % (2 * self.at_once) == 0
        return bool(self.helpers) and few and self.per >= 4 and self.tile & (self.tile - 1) == 0 and bool(self._folded(walks))

    def _find_places(self, out: Source, walks: list[Walk]) -> None:
        """Where a thread whose sums go through shared memory reads and writes: addresses, found once."""
        folded = self._folded(walks)
        words = 2 * self.threads * self.at_once * sum(self._width(n) for n in folded)
        self.exchanged = self._may_exchange(walks) and self._has_room(words)
        if not self.exchanged:
            return
        out("const LaneSteps<TILE, AT_ONCE> lane_steps(tile0, lane);")
        rows = [n for w in walks for n in w.nodes if n.op in ("input", "shift") and self.stated(n) and not self.laned(n)]
        if rows:
            self.rows_at = self._row_names(rows[0])[0]
            out(f"const Place rows_at = place_of({self.rows_at} + own * PITCH);")
        out(f"const Exchange<SPLIT, THREADS, AT_ONCE> exchange({self.shared('parts', words)}, tid);")

    def _has_room(self, words: int) -> bool:
        """Whether a block may have so many words more of shared memory and a multiprocessor still as many blocks."""
        fitting = [SHARED_LIMIT // (4 * (self.shared_words + more) + BLOCK_SHARED) for more in (0, words)]
        return fitting[1] >= max(1, min(fitting[0], self.blocks_per_multiprocessor))

    @property
    def _steps_before(self) -> str:
        """Where the steps before those at hand begin."""
        return "smaller(base + AT_ONCE, TILE - AT_ONCE)" if self.plan.reverse else "(base > 0 ? base - AT_ONCE : 0)"

    def _leave_sums(self, out: Source, nodes: list[Node], turn: str) -> None:
        """A thread's parts of the sums of the steps at hand, where the other threads of its lane find them."""
        names = [name for node in nodes for name in self._parts(node)]
        out(*(f"exchange.leave<{number}>({name}_v, {turn});" for number, name in enumerate(names)))

    def _take_sums(self, out: Source, nodes: list[Node], base: str, turn: str) -> None:
        """A thread's share of the sums that its lane's threads have left: added up, and put where the epilogue reads it."""
        share, number = self.at_once // self.split, 0
        out(READ)
        for node in nodes:
            for w, name in zip(self.tile_of[node], self._parts(node), strict=True):
                out(f"float {name}_share[{share}];", f"exchange.take<{number}>({name}_share, {turn});",
                    f"lane_steps.write({name}_share, tile{w} - tile0, {base}, own * {share});")
                number += 1

    def _leave(self, out: Source, nodes: list[Node], folded: list[Node], known: Known) -> None:
        """Walked values into tiles: of folded sums each thread writes its steps, of others the threads of a lane take turns."""
        if not nodes:
            return
        late = [n for n in folded if n in self.late]
        if self.exchanged:
            out.open("if constexpr (whole) {")
            self._leave_sums(out, folded, "turn")
            out.close().open("else {")(READ)
            self._leave_sums(out, folded, "0")
            self._take_sums(out, folded, "base", "0")
            out.close()
        elif late:
            before = self._steps_before
            out.open("if constexpr (whole) {  // those of the steps before; the first time what is then overwritten")
            self._fold_sums(out, late, "_late", before)
            keep = "".join(f" {name}_late[j] = {name}_v[j];" for node in late for name in self._parts(node))
            out("#pragma unroll", f"for (int j = 0; j < AT_ONCE; ++j) {{{keep} }}")
            out.close().open("else {")
            self._fold_sums(out, late, "_v", "base")
            out.close()
        elif folded:
            self._fold_sums(out, folded, "_v", "base")
        elif self.split > 1:
            out(READ)
        for turn, node in enumerate(n for n in nodes if n not in folded):
            plain = node.kind in ("real", "complex")
            if self.laned(node):
                guard = f"if (own == {turn % self.split}) " if self.split > 1 else ""
                for w, value in zip(self.tile_of[node], known[node], strict=True):
                    if plain and value.endswith("_v[j]"):
                        out(f"{guard}put_group<TILE>(true, tile{w}, lane, base, {value.removesuffix('[j]')});")
                    else:
                        word = f"tile{w}[tile_at<TILE>(lane, base + j)]"
                        out("#pragma unroll", f"for (int j = 0; j < AT_ONCE; ++j) {guard}{word} = as_word({value});")
            else:
                for steps, value in zip(self._step_names(node), known[node], strict=True):
                    out("#pragma unroll", f"for (int j = 0; j < AT_ONCE; ++j) if (tid == 0) {steps}[base + j] = as_word({value});")

    def _fold_sums(self, out: Source, nodes: list[Node], held: str, base: str) -> None:
        """Sums over states of the AT_ONCE steps from ``base`` on, added up over a lane's threads; each writes its share."""
        for number, node in enumerate(nodes):
            for name in self._parts(node):
                call = f"fold_split<SPLIT, THREADS>({name}{held});"
                out(f"const int turn = {call}" if number == 0 and name == self._parts(node)[0] else call)
        out(READ)
        spare = self.split // self.at_once - 1 if self.split > self.at_once else 0
        guard, share = f"if ((own & {spare}) == 0) " if spare else "", max(1, self.at_once // self.split)
        for node in nodes:
            out(*(f"{guard}write_tile<TILE, {share}>(tile{w}, lane, {base} + turn, {name}{held});"
                  for w, name in zip(self.tile_of[node], self._parts(node), strict=True)))
