"""The CUDA backend: blocks with warps of their own for prologue and epilogue, which work while the others walk.

    helpers    prologue of tile 0 | prologue of 1 | epilogue of 0, prologue of 2 | epilogue of 1, prologue of 3 | …
    the rest                      | walk 0        | walk 1                       | walk 2                       | …

At each | the whole block meets, or who needs what others have made waits for it. A walk is bound by special functions, the other phases by
instructions and latency: side by side they take little longer than the walk alone. Tiles and rows stand twice, one tile's for the walk and
its neighbours' for the helpers: an epilogue reads the values of a lane and step where the prologue, by the same thread, then puts those of
two tiles later. An input that both phases read is brought twice, each time shortly before: one tile ahead, or two with ``stages=2``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from scanc.codegen.cuda_elements import ElementPrinter, Phase
from scanc.codegen.cuda_leave import Walk
from scanc.codegen.emit import Source

MEET = "meet<ALL>();"
WITHIN = "tile >= 0 && tile < tiles"


class HelperPrinter(ElementPrinter):
    signals = False  # whether they wait tile by tile for what others have made, or the whole block meets

    @functools.cached_property
    def helpers(self) -> int:  # type: ignore[override]
        """None where phases do more than work on single lanes and steps: they would have to meet among themselves."""
        plan = self.plan
        if not self.asked_helpers or self.step or not plan.time or plan.recomputed or self.threads % 32:
            return 0
        early = self._early(self.crossing, [plan.main_body], late=True)
        late = [*self.left, *self.epilogue, *(s.value for s in self.phases.late_stores)]
        alone = not early.wanted and all(self.laned(n) or not plan.timed(n) for n in (*late, *self.crossing))
        return self.asked_helpers if alone and not any(s.kind == "sum" or s.lane for s in plan.stores) else 0

    def _signals(self, walks: list[Walk]) -> bool:
        """Whether those who walk and the helpers wait for each other alone, and not the whole block: where sums go through shared memory,
        and where no other block's warps would work meanwhile."""
        return self._may_exchange(walks) and self.blocks_per_multiprocessor == 1

    def _set_signals(self, out: Source) -> None:
        out.open("if (threadIdx.x == 0 && walked == 0) {" if self.walk > 1 else "if (threadIdx.x == 0) {")
        out("set_signals(filled, HELPERS / 32);", "set_signals(walked_through, THREADS / 32);").close()

    def _apart(self, out: Source, early: Phase, late: Phase, walks: list[Walk], walk: Callable[[Source], None]) -> None:
        """What helpers do with all tiles, and what the others do."""
        def tile(turn: str) -> str:
            return f"tiles - 1 - ({turn})" if self.plan.reverse else turn

        soon, then, rows = early.staged(), late.staged(), [n for n in early.rows if n.op == "input"]
        # Two tiles ahead each input has two places. Of both kinds of copies every turn asks for one group, be it empty.
        ahead, self.rows_twice = self.stages, self.stages > 1
        both = (lambda nodes: nodes) if ahead > 1 else (lambda nodes: [])
        waits = f"copies_done<{2 * ahead - 1 if then else ahead - 1}>();"
        out.open("if (!walks) {")
        self._stage(out, "stage_soon", soon, both(soon), rows, WITHIN)
        out(f"stage_soon({tile('0')});", *([*(["copies_issued();"] if then else []), f"stage_soon({tile('1')});"] if ahead > 1 else []))
        self.staging_late = True
        if then:
            self._stage(out, "stage_then", then, both(then), [], WITHIN)
        self.signals = self._signals(walks)
        done = "walked * tiles + " if self.walk > 1 else ""  # tiles of the lanes before
        out.open("for (int turn = 0; turn < tiles + 2; ++turn) {")
        if self.signals:
            out(f"if (turn > 1) wait_for({self.shared('walked_through', 4)}, {done}turn - 2);")
        if late.nodes:
            after = Source()
            self._epilogue(after, late, both(then), [], [])
            out.open("if (turn > 1) {")(waits)
            self._at_tile(out, tile("turn - 2"), after)
            out.close()
        self.staging_late = False
        if then:
            out(f"stage_then({tile('turn' if ahead > 1 else 'turn - 1')});")
        before = Source()
        self._prologue(before, early, self.crossing, both(soon), [])
        out.open("if (turn < tiles) {")(waits)
        self._at_tile(out, tile("turn"), before)
        out.close()
        next_copies = f"stage_soon({tile(f'turn + {ahead}')});"
        if self.signals:
            out(f"if (turn < tiles) say({self.shared('filled', 4)}, {done}turn);", next_copies)
        else:
            out(next_copies, f"if (turn <= tiles) {MEET}")
        out.close().close().open("else {")
        walked = Source()
        walk(walked)
        if not self.signals:
            out(MEET)
        out.open("for (int turn = 0; turn < tiles; ++turn) {")
        if self.signals:
            out(f"wait_for(filled, {done}turn);")
        self._at_tile(out, tile("turn"), walked)
        out(f"say(walked_through, {done}turn);" if self.signals else MEET).close().close()

    def _at_tile(self, out: Source, tile: str, work: Source) -> None:
        """Work on one tile, where its values stand."""
        text = work.text()
        out(f"const int tile = {tile};", "const index_t ts = t0 + index_t(tile) * TILE;", "const int steps = int(smaller(TILE, t1 - ts));")
        for name in (n for n in self._shared if self.twofold(n) and n in text):
            out(f"float* const {name} = {name}_both + (tile & 1) * {self._shared[name]};")
        out(*text.rstrip("\n").split("\n"))
