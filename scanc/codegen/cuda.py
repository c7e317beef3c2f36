"""The CUDA backend, printing: one block per program, states in registers, time staged through shared memory.

A block has lanes × split threads; the ``split`` neighbouring threads of a lane hold N / split of its states each, in registers
that unrolled loops index by constants. A tile of time goes through three phases (cuda_phases.py): a prologue and an epilogue, which
share out lanes and steps among all threads along whichever of the two axes is contiguous in memory, and between them the walk
(cuda_walk.py), several steps at once. The next tile's inputs are copied to shared memory meanwhile (cuda_elements.py).

A two-direction plan (a backward) keeps the states at each tile's start in global memory. A tile is walked once more to have them every
``history`` steps, in shared memory, and then the other way: so many steps are recomputed, for one state, and at once walked back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scanc.codegen.cuda_arguments import ArgumentPrinter
from scanc.codegen.cuda_elements import Phase
from scanc.codegen.cuda_leave import BLOCK_SHARED, SHARED_LIMIT
from scanc.codegen.emit import Body, Source
from scanc.codegen.layout import Buffer, KernelSource, Mode, entry_name
from scanc.errors import ScheduleError, UnsupportedForm
from scanc.forms.plan import Plan, Region
from scanc.forms.segments import exponent
from scanc.ir import Node
from scanc.schedule import RecurrentSchedule, Schedule, StepSchedule

WITHIN_WARPS = ("if (along_time) __syncwarp(Warp<THREADS>::ALL);  // warps have the groups of their lanes", "else __syncthreads();")


@dataclass(frozen=True)
class CudaSource(KernelSource):
    """A kernel's source with what its launch needs.

    ``threads`` and ``shared`` bytes of a block; ``scratch`` floats of global memory for each ``tile`` of a program's time;
    ``narrow`` the numbers of the strides that the kernel takes as 32-bit integers; ``early`` whether it may begin while the kernel before
    it still runs, for which it waits itself; ``cluster`` blocks run together and read each other's shared memory.
    """

    threads: int = 0
    shared: int = 0
    tile: int = 1
    scratch: int = 0
    narrow: tuple[int, ...] = ()
    early: bool = False
    cluster: int = 1


def generate(plan: Plan, schedule: Schedule, state: int, mode: Mode, title: str) -> CudaSource:
    """The source of one kernel. ``state`` is the size of the state axis, 1 without one. Raises ScheduleError, UnsupportedForm."""
    if not isinstance(schedule, RecurrentSchedule | StepSchedule):
        raise UnsupportedForm(op=plan.graph.name, form=schedule.form, forms="recurrent, step",
                              reason="the CUDA backend has no skeleton for it")
    printer = Printer(plan, schedule, state, mode, title)
    if printer.lanes & (printer.lanes - 1) and not printer.helpers:
        raise ScheduleError(field="lanes", value=printer.lanes, limit="it must be a power of two, since such a block has no helpers")
    text = printer.print()
    shared = 4 * printer.shared_words
    if shared > SHARED_LIMIT:
        field = "history" if plan.recomputed else "tile"
        raise ScheduleError(field=field, value=getattr(schedule, field, 1),
                            limit=f"its block would need {shared} bytes of shared memory and no GPU gives more than {SHARED_LIMIT}; "
                                  "lower it, tile or lanes")
    made = printer.source("cuda", text)
    return CudaSource(**made.__dict__, threads=printer.all_threads, shared=shared, tile=printer.interval,
                      scratch=printer.scratch_words * printer.threads, narrow=printer.narrow, early=printer.begins_early,
                      cluster=printer.cluster)


class Printer(ArgumentPrinter):
    @property
    def headers(self) -> tuple[str, ...]:
        return ("cuda.h", "cuda_step.h") if self.begins_early else ("cuda.h",)

    @property
    def begins_early(self) -> bool:
        """Whether the kernel is one of several that follow each other at once: a step, or one of segments."""
        return self.step or self.mode.summary or self.mode.entries

    # -- the kernel -------------------------------------------------------------------------------------------------------------

    def print(self) -> str:
        body = self._program().text()
        out = Source()
        out(f"// {self.title}", f"// {self.schedule}")
        for b in self.buffers:
            out(f"// {b.role:5} {b.name}: {b.dtype}[{' '.join((*b.leading, *b.axes))}]")
        out("", *(f'#include "{name}"' for name in self.headers), "")
        self._constants(out)
        self._arguments(out)
        fitting = max(1, SHARED_LIMIT // (4 * self.shared_words + BLOCK_SHARED))
        bounds = f"{'ALL' if self.helpers else 'THREADS'}, {min(self.blocks_per_multiprocessor, fitting)}"
        cluster = f"__cluster_dims__({self.cluster}) " if self.cluster > 1 else ""
        out.open(f'extern "C" __global__ void {cluster}__launch_bounds__({bounds}) run(const __grid_constant__ Arguments arguments) {{')
        self._locals(out, set(re.findall(r"\w+", body)))
        if self.begins_early and not self.step:
            out("wait_for_earlier_kernels();")
        out(*body.rstrip("\n").split("\n")).close()
        return out.text()

    def _constants(self, out: Source) -> None:
        state = self.plan.state or "(none)"
        out(f"constexpr int N = {self.N}, PER = {self.per};  // size of the state axis {state}, a thread's share of it")
        out(f"constexpr int LANES = {self.lanes}, SPLIT = {self.split}, THREADS = {self.threads};")
        if self.helpers:
            out(f"constexpr int HELPERS = {self.helpers}, ALL = HELPERS + THREADS;  // helpers come first")
        if not self.step:
            out(f"constexpr int TILE = {self.tile}, PITCH = {self.pitch};", f"constexpr int GROUP = {self.group}, CHUNK = {self.chunk};")
            out(f"constexpr int AT_ONCE = {self.at_once};  // steps walked at once")
            if self.rows:
                out(f"constexpr int GATHERED = {self.gathered};  // steps whose sums over lanes are added up at once")

    def _program(self) -> Source:
        """Which lanes and which time are a block's; decoded anew for each lane tile, so that no register holds it in between."""
        plan = self.plan
        inner = self._block().text()
        used = set(re.findall(r"\w+", inner))
        out = Source()
        out.open(f"for (int walked = 0; walked < {self.walk}; ++walked) {{" if self.walk > 1 else "{")
        # A grid has fewer blocks than 32 bits count, and so has each of its factors.
        groups = [("i_group", f"size_{plan.lane_group}")] if plan.lane_group else []
        places = [*groups, *(self.place(axis) for axis in reversed(plan.grid))]
        alone = "" if self.step else "alone ? 0 : "
        out("unsigned rest = block_here();")
        if alone:
            out("const bool alone = programs == slots;  // these differ in their lanes only: nothing to divide")
        out(f"const index_t slot = {'alone ? rest : ' if alone else ''}rest % unsigned(slots); rest = {alone}rest / unsigned(slots);")
        for name, size in places:
            divide = f"rest = {alone}rest / unsigned({size});"
            if self.step and (name, size) == places[-1]:  # nothing comes after it; a step's few instructions feel a division
                out(*([f"const index_t {name} = rest;"] if name in used else []))
                continue
            out(f"const index_t {name} = {alone}rest % unsigned({size}); {divide}" if name in used else divide)
        if "i_group" in used and not plan.lane_group:
            out("const index_t i_group = 0;")
        if plan.time:
            self._time_of_block(out)
            if self.mode.summary:
                out(f"if (seg == {'0' if plan.reverse else 'segments - 1'}) return;  // no segment starts from what the last one leaves")
        if self.walk > 1:
            block = f"slot * {self.walk} + walked"
            if self.cluster > 1:  # its blocks are neighbours whichever lane tile they walk
                block = f"(slot / {self.cluster} * {self.walk} + walked) * {self.cluster} + slot % {self.cluster}"
            out(f"const index_t block = {block};", "if (block >= blocks) break;")
        elif used & {"block", "first", "lanes", "here"}:
            out("const index_t block = slot;")
        if "first" in used:
            groups_before = "i_group * per_group + " if plan.lane_group else ""
            out(f"const index_t first = {self._narrow(f'{groups_before}block * LANES')};")
        if used & {"lanes", "here"}:
            out("const int lanes = int(smaller(LANES, per_group - block * LANES));")
        if "here" in used:
            out("const int here = smaller(lane, lanes - 1);  // threads past the last lane compute it again and store nothing")
        out(*inner.rstrip("\n").split("\n"))
        return out.close()

    def _time_of_block(self, out: Source) -> None:
        out("const index_t seg = rest;", f"const index_t t0 = seg * segment, t1 = smaller(size_{self.plan.time}, t0 + segment);")

    def _narrow(self, number: str) -> str:
        """A lane's number. A kernel for which setting up matters says that 32 bits hold it: its products with strides are then one
        instruction."""
        return number

    def _block(self) -> Source:
        out, plan, walking = Source(), self.plan, Source()
        self._setup(out)
        if plan.recomputed:
            self._two_walks(walking)
        elif plan.time:
            self._one_walk(walking)
        else:
            self._one_step(walking)
        if self.helpers:
            ends = Source()
            self._finish(ends)
            walking.open("if (walks) {").paste(ends).close()
        else:
            self._finish(walking)
        self._set_bases(out)  # printed after the loops, which say what they need, and run before them
        if self.signals:
            self._set_signals(out)
        if plan.time:
            out("__syncthreads();", "const int tiles = int((t1 - t0 + TILE - 1) / TILE);", f"const bool along_time = {self._along_time()};")
            out(f"const bool together = {self._together()};")
            if self.staged_rows:
                out(f"const bool rows_together = {self._rows_together()};")
        return out.paste(walking)

    # -- values without time ----------------------------------------------------------------------------------------------------

    def _setup(self, out: Source) -> None:
        plan = self.plan
        everything = list(dict.fromkeys((*plan.recompute_body, *plan.main_body)))
        lane = [n for n in everything if plan.region[n] == Region.LANE or n.op == "const"]
        state = [n for n in everything if plan.region[n] == Region.STATE and n.op != "const"]
        body = Body(self.dialect, self.names, self.known, self.declare)
        out(*body.run(lane, lambda n: self._load(n, self.known) if n.op in ("input", "index", "size") else None))
        outside = {a for n in everything if plan.region[n] >= Region.PRE for a in n.args} | {s.value for s in plan.stores}
        if state:
            exported = [n for n in state if n in outside]
            for node in exported:
                for name in self._parts(node):
                    out(f"{self.type_of(node)} {name}_of[PER];")

            def declare(node: Node, name: str, expression: str) -> str:
                line = self.declare(node, name, expression)
                return f"{line} {name}_of[k] = {name};" if node in exported and name in self._parts(node) else line

            inner = Body(self.dialect, self.names, self.known, declare, keep=frozenset(exported))
            lines = inner.run(state, lambda n: self._load(n, self.known, declare) if n.op in ("input", "index") else None)
            self._over_states(out, lines)
            for node in exported:
                self.known[node] = tuple(f"{name}_of[k]" for name in self._parts(node))
        self._lane_values(out)
        for scan in plan.scans:
            self._carry(out, scan)
        for store in plan.stores:
            if store.kind == "sum":
                for name in self.sum_names(store):
                    out(f"float {name.replace('[k]', '[PER]')} = {'{}' if self.stated(store.value) else '0.0f'};")

    def _lane_values(self, out: Source) -> None:
        """Values of lanes that prologue and epilogue read for other lanes than the thread's own."""
        if self.step:
            return
        if self.walk > 1:
            out("__syncthreads();  // the lanes before are done with what follows")
        users = [n for n in dict.fromkeys((*self.plan.recompute_body, *self.plan.main_body)) if self.plan.timed(n) and not self.stated(n)]
        for node in dict.fromkeys(a for n in users for a in n.args if not self.plan.timed(a) and self.laned(a)):
            names = tuple(f"{self.names.of(node)}_lanes{k}" for k in range(self._width(node)))
            for name, value in zip(names, self.known[node], strict=True):
                self.shared(name, self.lanes)
                out(f"if (own == 0) {name}[lane] = as_word({value});")
            self.of_lane[node] = names

    def _carry(self, out: Source, scan: Node) -> None:
        names, stated = self._carry_names(scan), self.stated(scan)
        for name in names:
            out(f"float {name.replace('[k]', '[PER]')};")
        if self.mode.resumes and scan in self.plan.recomputed:
            return  # read anew for every tile
        if self.mode.entries and not self.mode.combines:
            b = next(b for b in self.buffers if b.name == entry_name(self.plan, scan))
            values = [f"*({self._address(b, k, 'here', state=self._n)})" for k in range(len(names))]
            if stated and self.padded != self.N:
                values = [f"{self._n} < N ? {v} : 0.0f" for v in values]
        elif len(scan.args) == 3:
            values = [*self.known[scan.args[2]], "0.0f"][:len(names)]
        else:
            values = ["0.0f"] * len(names)
        lines = [f"{name} = {value};" for name, value in zip(names, values, strict=True)]
        if stated:
            self._over_states(out, lines)
        else:
            out(*lines)
        if self.mode.combines:
            self._combine(out, scan)

    def _combine(self, out: Source, scan: Node) -> None:
        """The carry at the segment's start, of the summaries of those that come before it: P c + E, where P may be given as an exponent."""
        i, names = self.plan.scans.index(scan), self._carry_names(scan)
        of, factors = {b.name: b for b in self.buffers if b.role == "entry"}, exponent(self.plan, scan)
        first, last = ("segments - 1", "s > seg; --s") if scan.attrs["reverse"] else ("0", "s < seg; ++s")
        out("#pragma unroll 4").open(f"for (index_t s = {first}; {last}) {{")
        self.segment, E = "s", of[f"E{i}"]
        product = of[f"{'S' if factors else 'P'}{i}"]

        def value(b: Buffer, part: int) -> str:
            read = f"fetch<true>({self._address(b, part, 'here', state=self._n)})"
            return f"{self._n} < N ? {read} : 0.0f" if self.plan.state in b.axes and self.padded != self.N else read

        a = [f"{names[c]}_product".replace("[k]", "") for c in self.parts(product)]
        read = [f"const float {name} = {value(product, c)};" for c, name in enumerate(a)]
        if not self.plan.state or self.plan.state not in product.axes:
            out(*read)
            read = []
        if factors:
            read.append(f"const float power = exp2_({a[0]} * {self.known[factors[1]][0]});")
            a = ["power"]
        ends = [value(E, c) for c in self.parts(E)]
        if len(names) == 1:
            lines = [*read, f"{names[0]} = {a[0]} * {names[0]} + ({ends[0]});"]
        else:
            imaginary = a[1] if len(a) > 1 else "0.0f"
            lines = [*read, f"const float re = {a[0]} * {names[0]} - {imaginary} * {names[1]} + ({ends[0]});",
                     f"{names[1]} = {a[0]} * {names[1]} + {imaginary} * {names[0]} + ({ends[1] if len(ends) > 1 else '0.0f'});",
                     f"{names[0]} = re;"]
        if self.stated(scan):
            self._over_states(out, lines)
        else:
            out(*lines)
        self.segment = "seg"
        out.close()

    @staticmethod
    def _tile_header(out: Source, back: bool, tiles: tuple[str, str] = ("0", "tiles")) -> None:
        first, end = tiles
        out.open(f"for (int tile = {end} - 1; tile >= {first}; --tile) {{" if back
                 else f"for (int tile = {first}; tile < {end}; ++tile) {{")

    def _over_tiles(self, out: Source, back: bool, early: Phase, late: Phase | None, crossing: list[Node],
                    walk: Callable[[Source], None], first: Callable[[Source], None] | None = None,
                    arrived: Callable[[Source], None] | None = None, also: Sequence[str] = (),
                    within: str = "tile >= 0 && tile < tiles", tiles: tuple[str, str] = ("0", "tiles")) -> None:
        """Tile after tile: prologue, walk, epilogue, each in its turn between barriers, while copies bring the next tile's inputs.

        A place is asked to be filled again once it has been read: behind the prologue, or, of inputs that the epilogue reads too,
        behind the epilogue; with two ``stages`` those alternate between two places and are asked for before the walk as well. Tiles that
        are not ``within`` are asked for by nobody. ``tiles``: the first one, and the one behind the last.
        """
        reads = late.staged() if late else []
        again = [n for n in reads if n in early.staged()]
        twice = again if self.stages > 1 else []
        soon = [n for n in early.staged() if n not in again or twice]
        then = [n for n in reads if n not in twice]
        rows = [n for n in early.rows if n.op == "input"]
        start, after = (f"{tiles[1]} - 1", "tile - 1") if back else (tiles[0], "tile + 1")
        out.open("{")
        before_walk = bool(soon or rows or also)
        apart = bool(then) and (not again or bool(twice))  # what only the epilogue waits for
        if before_walk:
            self._stage(out, "stage_soon", soon, twice, rows, within, also)
            out(f"stage_soon({start});")
        if then:
            self._stage(out, "stage_then", then, twice, [], within)
            out(f"stage_then({start});")
        self._tile_header(out, back, tiles)
        if first:
            first(out)
        out("const index_t ts = t0 + index_t(tile) * TILE;", "const int steps = int(smaller(TILE, t1 - ts));")
        if early.wanted:
            out("__syncthreads();")
        later = bool(then) and not apart and before_walk  # what was asked for last is waited for last
        if before_walk or again:
            out(f"copies_done<{int(apart or later)}>();")
        if arrived:
            arrived(out)
        self._prologue(out, early, crossing, twice, ["copies_done<0>();"] if later else [])
        if before_walk:
            out(f"stage_soon({after});")
        out("__syncthreads();")
        walk(out)
        if late is None:
            out("__syncthreads();").close().close()
            return
        local = self._within_warps() and not early.wanted
        sync = WITHIN_WARPS if local else ("__syncthreads();",)
        if self.cluster > 1:
            out("__syncthreads();")
            self._show_cluster_rows(out)
        else:
            out(*sync)
            if not local:
                self._store_tile_rows(out)
        if apart:
            out(f"copies_done<{int(before_walk)}>();")
        self._epilogue(out, late, twice, [f"stage_then({after});"] if then else [], sync)
        if self.cluster > 1:
            self._store_cluster_rows(out)
        elif local and (self.rows or early.rows):
            out("__syncthreads();  // all warps have walked")
            self._store_tile_rows(out)
        out.close().close()

    def _one_walk(self, out: Source) -> None:
        plan = self.plan
        if self.mode.leaves:
            out(f"constexpr int EVERY = {self.mode.leaves};  // steps from one checkpoint to the next")
        early, walks = self._early(self.crossing, [plan.main_body], late=True), self._walks(recompute=False, main=True)
        if self.helpers:
            self._apart(out, early, self._late(), walks, lambda o: self._walk_tile(o, walks, plan.reverse))
        else:
            self._over_tiles(out, plan.reverse, early, self._late(), self.crossing, lambda o: self._walk_tile(o, walks, plan.reverse))

    def _two_walks(self, out: Source) -> None:
        """States at tiles' starts first; then tile by tile: states at blocks' starts, and block by block both walks."""
        plan = self.plan
        back = not plan.reverse  # the recomputed scans' own direction is the opposite of the main one
        recompute, words = self.phases.crossing(plan.recompute_body), self.checkpoint_words
        ahead, both = self._walks(recompute=True, main=False), self._walks(recompute=True, main=True)
        needs_last = any(s.kind == "final" and s.value in plan.recomputed for s in plan.stores)
        # The block's own part of it, like other addresses, stands in shared memory.
        saved = f"base_of<float>(bases, {2 * len(self.buffers)})"
        some = self.interval // self.tile  # tiles from one checkpoint to the next
        if self.scratch_words:
            each = f"((segment + {self.interval - 1}) / {self.interval})" if some > 1 else "((segment + TILE - 1) / TILE)"
            self.own_scratch = f"scratch + index_t(block_here()) * {each} * {words * self.threads}"
        checkpoint = f"{saved}[(index_t(tile{f' / {some}' if some > 1 else ''}) * {words} + {{word}}) * THREADS + tid]"

        def keep(out: Source) -> None:
            if some > 1:
                out.open(f"if (tile % {some} == 0) {{")
            self._copy_carries(out, checkpoint, save=True)
            if some > 1:
                out.close()
            if not needs_last:
                out(f"if (tile == {'0' if back else 'tiles - 1'}) break;  // the last tile's end is nobody's start")

        walked = "tile >= 0 && tile < tiles" if needs_last else "tile > 0 && tile < tiles" if back else "tile >= 0 && tile < tiles - 1"

        def blocks(out: Source) -> None:
            if self.tile > self.history:
                self._block_header(out, back)
                self._keep_start(out)
                out(f"if (base == {'0' if back else self.LAST_BLOCK}) break;")
                self._at_once(out, ahead)
                out.close()
            self._walk_tile(out, both, plan.reverse, self.tile > self.history)

        # A tile's start is copied ahead like its inputs; or made with those of the tiles between two checkpoints.
        held = some * words if some > 1 else 0  # the next checkpoint comes behind the starts of the tiles at hand
        place = f"{self.shared('tile_start', (held + words) * self.threads)} + ({f'{held} + ' if held else ''}{{word}}) * THREADS + tid"
        copy = f"copy_async<4>({place.format(word='w')}, &{checkpoint.format(word='w')});"
        starts = ["#pragma unroll", f"for (int w = 0; w < {words}; ++w) {copy}"]
        if self.mode.resumes:
            starts = self._copy_checkpoints(place)
        ahead_phase = self._early(recompute, [plan.recompute_body], late=False)
        if not self.mode.resumes:
            self._over_tiles(out, back, ahead_phase, None, recompute, lambda o: self._walk_tile(o, ahead, back), keep, within=walked)
        for store in plan.stores:
            if store.kind == "final" and store.value in plan.recomputed:
                self._store_final(out, store)
        self._check_cluster()
        tiles = ("tile_from", "tile_to") if some > 1 else ("0", "tiles")
        own = f"tile_start[({f'(tile - tile_from) * {words} + ' if some > 1 else ''}({{word}})) * THREADS + tid]"

        def restore(out: Source) -> None:
            self._copy_carries(out, own, save=False)

        def keep_between(out: Source) -> None:
            self._copy_carries(out, own, save=True)
            out("if (tile == tile_to - 1) break;  // the last tile's end is nobody's start")

        if some > 1:
            out.open("const auto stage_start = [&](int tile) {")
            out("[[maybe_unused]] const index_t ts = t0 + index_t(tile) * TILE;", *starts).close("};")
            out(f"stage_start((tiles - 1) / {some} * {some});", "copies_issued();")
            out.open(f"for (int tile_from = (tiles - 1) / {some} * {some}; tile_from >= 0; tile_from -= {some}) {{")
            out(f"const int tile_to = smaller(tiles, tile_from + {some});", "copies_done<0>();")
            self._copy_carries(out, f"tile_start[({held} + {{word}}) * THREADS + tid]", save=False)
            self._over_tiles(out, back, ahead_phase, None, recompute, lambda o: self._walk_tile(o, ahead, back), keep_between,
                             within="tile < tile_to - 1", tiles=tiles)
            out(f"if (tile_from > 0) stage_start(tile_from - {some});  // with the copies of the first tile")
        self._over_tiles(out, plan.reverse, self._early(self.crossing, [plan.recompute_body, plan.main_body], late=True), self._late(),
                         self.crossing, blocks, arrived=restore, also=starts if some == 1 else (),
                         within=f"tile >= {tiles[0]} && tile < {tiles[1]}", tiles=tiles)
        if some > 1:
            out.close()
        self._end_cluster(out)

    def _copy_checkpoints(self, place: str) -> list[str]:
        """Lines that ask for the carries a forward left at a tile's start; states that are none repeat the last one.

        Neighbouring lanes' states are neighbours in memory, so each is asked for in the states' order and goes to its own register's place.
        """
        lines = []
        for i, scan in enumerate(self.plan.recomputed):
            b = next(b for b in self.buffers if b.name == f"checkpoint{i}")
            for part in self.parts(b):
                at = f"{self._fixed(b, part)} + ts / {'TILE' if self.interval == self.tile else self.interval} * {b.name}_interval_part"
                if self.plan.lane in b.axes:
                    at += f" + index_t(smaller(lane, lanes - 1)) * {b.name}_{self.plan.lane}"
                word = self._word_of(scan, part)
                if not self.stated(scan):
                    lines.append(f"copy_async<4>({place.format(word=word)}, {at});")
                    continue
                n = self._of_register("k")
                n = n if self.padded == self.N else f"smaller({n}, N - 1)"
                to = place.format(word=f"{word} + {'k' if self.flips == 1 else '(k ^ flip)'}")
                lines += ["{", f"    const float* const from = {at};", "    #pragma unroll",
                          f"    for (int k = 0; k < PER; ++k) copy_async<4>({to}, from + index_t({n}) * {b.name}_{self.plan.state});", "}"]
        return lines

    def _copy_carries(self, out: Source, place: str, *, save: bool) -> None:
        """All recomputed scans' carries to or from ``place`` ({word})."""
        for scan in self.plan.recomputed:
            for c, name in enumerate(self._carry_names(scan)):
                at = self._carry_place(scan, c, place)
                line = f"{at} = {name};" if save else f"{name} = {at};"
                if self.stated(scan):
                    self._over_states(out, [line])
                else:
                    out(line)
