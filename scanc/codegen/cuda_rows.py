"""The CUDA backend: sums over lanes of values with states (a backward's d_B and d_C), and where a tile's blocks start from.

Each warp adds up its own lanes' share of the AT_ONCE steps at hand, in registers, and leaves it in shared memory; when GATHERED steps
are there the block adds its warps up, in their order, and stores. A block's states at its start are read but once, before its sums are
made: where there is room for all of a tile's sums in their place, they go there and are added up behind the walk.
"""

from __future__ import annotations

from dataclasses import dataclass

from scanc.codegen.cuda_dialect import C_TYPES
from scanc.codegen.cuda_step import StepPrinter
from scanc.codegen.emit import Source
from scanc.codegen.layout import Buffer
from scanc.errors import ScheduleError
from scanc.forms.plan import Store
from scanc.ir import Node


@dataclass(frozen=True)
class Places:
    """An array of shared memory: ``count`` places, of AT_ONCE steps each, in ``each`` words; a warp has ``part`` of them."""

    name: str
    count: int
    apart: int  # words from one of a thread's states to the next
    part: int
    each: int

    @property
    def words(self) -> int:
        return self.count * self.each

    def at(self, at_once: int, tile: int) -> str:
        """Where the place of the block at ``base`` starts."""
        if self.count < tile // at_once:
            return f"{self.name} + base / AT_ONCE % {self.count} * {self.each}"
        return f"{self.name} + base * {self.each // at_once}" if self.each % at_once == 0 else f"{self.name} + base / AT_ONCE * {self.each}"


class RowPrinter(StepPrinter):
    # -- where they stand -------------------------------------------------------------------------------------------------------

    @property
    def _row_count(self) -> int:
        return sum(len(self.parts(self.of_store[s])) for s in self.rows)

    @property
    def row_words(self) -> int:
        """Floats of one state's sums: the steps at hand of all that is summed."""
        return self.at_once * self._row_count

    @property
    def starts(self) -> Places:
        """The starts of a tile's blocks."""
        together = self._together_places
        return together if together and self._starts_alone.count else self._starts_alone

    @property
    def sums(self) -> Places:
        """Sums over a warp's lanes."""
        return self._together_places or self._sums_alone

    @property
    def gathered(self) -> int:
        """Steps whose sums over lanes are added up over a block's warps at once."""
        return self.tile if self._together_places else min(self.at_once if self.padded > 32 else 2 * self.at_once, self.tile)

    @property
    def _starts_alone(self) -> Places:
        words = self.checkpoint_words
        count = self.tile // self.history if self.plan.recomputed and self.tile > self.history else 0
        return Places("block_starts", count, self.width, words * self.width, words * self.threads)

    @property
    def _one_turn(self) -> bool:
        return self.cluster > 1 and self.padded > 32

    @property
    def _sums_alone(self) -> Places:
        """Two turns: while one is added up the other is filled. One where blocks of many states keep a tile's sums for their cluster."""
        some = min(self.at_once if self.padded > 32 else 2 * self.at_once, self.tile)
        state, turns = self.split * self.row_words, 1 if self._one_turn else 2
        return Places("row_sums", turns * some // self.at_once, state, self.per * state, self.warps * self.per * state)

    @property
    def _together_places(self) -> Places | None:
        """A tile's sums, in the place of its blocks' starts where it has such; None where that would take more memory."""
        if not self.rows:
            return None
        starts, sums = self._starts_alone, self._sums_alone
        apart = max(self.width if starts.count else 0, sums.apart)
        part = max(self.checkpoint_words if starts.count else 0, self.per) * apart
        # Threads that add up neighbouring steps read from places beside each other: in other banks.
        whole = Places("block_starts" if starts.count else "row_sums", self.tile // self.at_once, apart, part,
                       self.warps * part + max(4, self.at_once))
        return whole if whole.words <= starts.words + sums.words else None

    # -- a block's start --------------------------------------------------------------------------------------------------------

    @property
    def _wide(self) -> int:
        """Words of a thread that stand beside each other."""
        return 4 if self.per % 4 == 0 and all(self.stated(s) for s in self.plan.recomputed) else 1

    def _word_of(self, scan: Node, part: int) -> int:
        """The number of a component's first word among a thread's carries of recomputed scans."""
        word = 0
        for other in self.plan.recomputed:
            each = self.per if self.stated(other) else 1
            if other is scan:
                return word + part * each
            word += each * self._width(other)
        raise ValueError(f"{scan} is not recomputed")

    def _find_start(self, out: Source) -> None:
        """Where this thread's carries at the start of the block at ``base`` stand."""
        at = self.starts
        self.shared(at.name, at.words)
        own = f"tid % {self.width}{f' * {self._wide}' if self._wide > 1 else ''}"
        out(f"float* const start = {at.at(self.at_once, self.tile)} + warp * {at.part} + {own};")

    def _keep_start(self, out: Source) -> None:
        self._find_start(out)
        for scan in self.plan.recomputed:
            for c, name in enumerate(self._carry_names(scan)):
                word = self._word_of(scan, c) * self.starts.apart
                out(f"keep_words<{self._wide}, {self.starts.apart}>(start + {word}, {name.removesuffix('[k]')});" if self.stated(scan)
                    else f"start[{word}] = {name};")

    def _take_start(self, out: Source, scan: Node) -> None:
        """A scan's carries (of state k), while nothing has yet been left in their place."""
        for c, name in enumerate(self._carry_names(scan)):
            word = self._word_of(scan, c) * self.starts.apart
            out(f"take_words<{self._wide}, {self.starts.apart}>({name.removesuffix('[k]')}, start + {word}, k);" if self.stated(scan)
                else f"{name} = start[{word}];")

    # -- a warp's share ---------------------------------------------------------------------------------------------------------

    def _sums_of_warp(self, out: Source, rows: list[Store]) -> None:
        """Before the states have their turns."""
        if not rows:
            return
        at = self.sums
        self.shared(at.name, at.words)
        out(f"float* const sums = {at.at(self.at_once, self.tile)} + warp * {at.part};",
            f"float lane_sums[{self.flips}][{self.row_words}];")

    def _sum_rows(self, out: Source, rows: list[Store]) -> None:
        """Of one state each warp's sums over its lanes."""
        if not rows:
            return
        register = "0" if self.flips == 1 else f"k % {self.flips}"
        names = [f"{store.name}_out{c}" for store in rows for c in self.parts(self.of_store[store])]
        out("#pragma unroll").open("for (int j = 0; j < AT_ONCE; ++j) {")
        out(*(f"lane_sums[{register}][{i} * AT_ONCE + j] = whole || lane < lanes ? {name}[j] : 0.0f;" for i, name in enumerate(names)))
        out.close()
        own = f" + own * {self.row_words}" if self.split > 1 else ""
        if self.flips == 1:
            out(f"leave_sums<SPLIT, THREADS, 1>(lane_sums[0], sums + k * {self.sums.apart}{own});")
            return
        out(f"fold_states<SPLIT, THREADS>(lane_sums, {register});")
        first = "flip" if self.flips == self.per else f"(k / {self.flips} * {self.flips} + flip)"
        leave = f"leave_sums<SPLIT, THREADS, {self.flips}>(lane_sums[0], sums + {first} * {self.sums.apart}{own});"
        out(f"if ({register} == {self.flips - 1}) {leave}")

    # -- a block's --------------------------------------------------------------------------------------------------------------

    def _store_gathered_rows(self, out: Source, back: bool) -> None:
        """In the walk, whenever GATHERED steps are there. Two turns are filled one after the other, so that one barrier is enough."""
        if not self.rows or self._together_places:
            return
        ended = "base % GATHERED == 0" if back else "(base + AT_ONCE) % GATHERED == 0 || base + AT_ONCE >= steps"
        out.open(f"if ({ended}) {{")("__syncthreads();", "const int start = base / GATHERED * GATHERED;")
        self._store_rows(out, f" + start / AT_ONCE % {self.sums.count} * {self.sums.each}", "(start + i)")
        if self._one_turn:
            out("__syncthreads();  // they are overwritten by the next")
        out.close()

    def _store_tile_rows(self, out: Source) -> None:
        """Behind the walk and a barrier: a tile's."""
        if self._together_places:
            self._store_rows(out, "", "i")

    # -- a cluster's ------------------------------------------------------------------------------------------------------------

    def _check_cluster(self) -> None:
        if self.cluster > 1 and self.at_once < 4:
            limit = f"blocks add up four steps a thread, and history gives it {self.at_once}"
            raise ScheduleError(field="cluster", value=self.cluster, limit=limit)

    def _end_cluster(self, out: Source) -> None:
        """A block's memory is there, and the same, until all have read it."""
        if self.cluster > 1:
            out("cluster_arrives();", "cluster_has_arrived();")

    def _cluster_place(self, number: int, step: str = "i") -> str:
        """Where what a block has summed of the result ``number`` stands, of state n and the steps from ``step`` on. Tiles have two such
        places in turns: one is read by the others while the next is walked and added up."""
        words = self.N * self.tile * self._row_count
        self.shared("cluster_rows", 2 * words)
        return f"cluster_rows + (tile & 1) * {words} + ({number} * N + n) * TILE + {step}"

    def _show_cluster_rows(self, out: Source) -> None:
        """Behind the walk and a barrier: a tile's sums over the block's warps, for the others to read. What was stored to memory before is
        there by now: arriving waits for it."""
        self._store_tile_rows(out)
        out("cluster_arrives();")

    def _store_cluster_rows(self, out: Source) -> None:
        """Every block takes a share of a tile's steps and states and adds up the blocks, in their order."""
        out("cluster_has_arrived();")
        numbered = [(store, c) for store in self.rows for c in self.parts(self.of_store[store])]
        fours, taken = self.tile // 4, 0
        share = -(-self.N * fours // self.cluster)
        for i, (store, c) in enumerate(numbered):
            b, owner = self.of_store[store], self.owner(store.value, store.axes)
            out.open(f"for (int s = {self._taking(taken)}; s < {share}{f' && {owner}' if owner else ''}; s += THREADS) {{")
            taken += share
            out(f"const int e = s + int(block_here() % {self.cluster}) * {share}, n = e / {fours}, i = e % {fours} * 4;")
            out(f"if (i >= steps{' || n >= N' if share * self.cluster > self.N * fours else ''}) continue;")
            out(f"const float* const row = {self._cluster_place(i)};", "float total[4] = {};")
            out("#pragma unroll").open(f"for (int r = 0; r < {self.cluster}; ++r) {{")
            out("float more[4];", "read_block(more, row, r);", "#pragma unroll", "for (int j = 0; j < 4; ++j) total[j] += more[j];").close()
            self._store_four(out, b, c, "i", 4)
            out.close()

    def _taking(self, taken: int) -> str:
        """This thread's number among those that take up a result: after those that have ``taken`` up the ones before."""
        return f"(thread_here() + {self.threads - taken % self.threads}) % THREADS" if taken % self.threads else "thread_here()"

    def _store_rows(self, out: Source, turn: str, step: str) -> None:
        """Adds up over the warps what each has summed over its lanes, a thread up to four steps of a state, the first of them ``step``."""
        at, taken, wide = self.sums, 0, min(4, self.at_once)
        numbered = [(store, c) for store in self.rows for c in self.parts(self.of_store[store])]
        for i, (store, c) in enumerate(numbered):
            b, owner = self.of_store[store], self.owner(store.value, store.axes)
            first = self._taking(taken)
            taken += self.N * self.gathered // wide
            out.open(f"for (int e = {first}; e < N * (GATHERED / {wide}){f' && {owner}' if owner else ''}; e += THREADS) {{")
            out(f"const int n = e / (GATHERED / {wide}), i = e % (GATHERED / {wide}) * {wide};", f"if ({step} >= steps) continue;")
            n = f"n / SPLIT * {at.apart} + n % SPLIT * {self.row_words}" if self.split > 1 else f"n * {at.apart}"
            out(f"const float* const row = {at.name}{turn} + i / AT_ONCE * {at.each} + {n} + i % AT_ONCE + {i} * AT_ONCE;",
                f"float total[{wide}];", "read_row(total, row);")
            out("#pragma unroll").open(f"for (int w = 1; w < {self.warps}; ++w) {{")
            add = f"for (int j = 0; j < {wide}; ++j) total[j] += more[j];"
            out(f"float more[{wide}];", f"read_row(more, row + w * {at.part});", "#pragma unroll", add).close()
            if self.cluster > 1:
                out(f"write_row({self._cluster_place(i, step)}, total);")
            else:
                self._store_four(out, b, c, step, wide)
            out.close()

    def _store_four(self, out: Source, b: Buffer, part: int, step: str, wide: int) -> None:
        """The ``total`` of up to four steps of state n, the first of them ``step``, to memory; with that of the lane tiles before."""
        time, state = f"{b.name}_{self.plan.time}", f"{b.name}_{self.plan.state}"
        if self.mode.consumes:  # a tile's steps are neighbours there, whatever lies between tiles
            time = "1"
        out(f"{C_TYPES[b.dtype]}* const to = {self._row_base(b, part)} + index_t({step}) * {time} + index_t(n) * {state};")
        if self.walk > 1:
            out.open("if (walked > 0) {")
            out(f"float more[{wide}];", f"load_group<false>(more, to, {time}, steps - {step});", "#pragma unroll",
                f"for (int j = 0; j < {wide}; ++j) total[j] += more[j];").close()
        out(f"store_group(to, {time}, total, steps - {step});")

    def _row_base(self, b: Buffer, part: int) -> str:
        """Where a tile's sums start: of MANY tiles beside each other the first one's place, and how far on this one is."""
        if self.mode.consumes <= 1:
            return self._base(b, part)
        place = f"index_t(ts / TILE % {self.mode.consumes})"
        return f"{self._fixed(b, part)} + (ts - {place} * TILE) * {b.name}_{self.plan.time} + {place} * {len(self.rows) * self.tile}"
