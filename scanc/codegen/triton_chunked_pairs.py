"""The kernel of the chunked form for pairs of steps that lie in two chunks of one kept state (see triton_chunked_reads.py).

Where a backward keeps the states at every second border only, a step s of the second chunk of such two meets a step j of the first in
neither chunk's own products nor the state's. Its decay is a product, 2^{g_s} 2^{G - g_j}, and so, with
W_sj = 2^{g_s} 2^{G - g_j} C_s·B_j dy_s·x_j w_j,

    mix += 2^{g} ∘ dy xᵀ ∘ 2^{G - g} ∘ w                     for every head
    dC += mix B in the second chunk, dB += mixᵀ C in the first         by the kernel totals
    beyond_s = Σ_j W_sj, beyond_j = Σ_s W_sj / w_j                     finished by the kernel late

A program has two chunks, one position of each outer grid axis, and walks some heads of one group.
"""

from __future__ import annotations

from scanc.codegen.emit import Source
from scanc.codegen.triton_chunked_parts import mix_of, mixes
from scanc.codegen.triton_chunked_reads import AllChunks
from scanc.codegen.triton_chunked_source import ChunkSource, Scope, Shape, Suffixed
from scanc.forms.chunked import ChunkPlan, pair_of
from scanc.ir import Node
from scanc.schedule import ChunkedSchedule

LATER = "_later"


def pairs(plan: ChunkPlan, schedule: ChunkedSchedule, shape: Shape, title: str) -> ChunkSource:
    """The kernel."""
    return _Pairs(plan, schedule, shape, "pairs", title).print(schedule.total_warps, schedule.total_pipeline)


class _Pairs(AllChunks):
    own = "(Q * 2)"

    def print(self, warps: int, pipeline: int) -> ChunkSource:  # type: ignore[override]
        plan, out = self.plan, Source().indent()
        self._numbering(out)
        names = Suffixed(self.names, LATER)
        shared = {False: Scope(self.names), True: Scope(names, LATER)}
        for later in (False, True):
            self.when = LATER if later else ""
            self.values(out, [n for n in self._needed(later) if self.shared(n)], shared[later])
        for total in self.totals:
            assert total.read is not None
            self._mix_name(out, total.read)
        for one, other in self._pairs():
            if self.shared(one) and self.shared(other):
                self._product(out, one, other, shared[True], shared[False])
        head = f"i_{plan.head}"
        scopes = {False: Scope(self.names, head=head), True: Scope(names, LATER, head)}
        for later, scope in scopes.items():
            scope.known.update(shared[later].known)
            scope.made.update(shared[later].made)
        out.open(f"for walking in tl.range(block * walked, tl.minimum(block * walked + walked, per_group), num_stages={pipeline}):")
        out(f"{head} = tl.cast({'i_' + self.group + ' * per_group + ' if self.group else ''}walking, tl.int64)")
        for later, scope in scopes.items():
            self.when = LATER if later else ""
            needed = self._needed(later)
            weights = self._weights_of(later)
            users = {a for n in needed for a in n.args}
            self.early(out, [n for n in plan.early if n in needed and (n in users or n not in weights)], scope)
            self.values(out, [n for n in needed if n not in scope.known and n not in plan.early], scope)
        self._head_of_two(out, scopes[True], scopes[False])
        out.indent(-1)
        self._leave_mixes(out)
        return self.source(out, warps)

    def chunk_start(self) -> list[str]:
        """The first of two chunks is ``ts``, the second ``ts_later``."""
        lines = super().chunk_start()
        self.when = LATER
        lines += [f"ts{LATER} = ts + Q", *super().chunk_start()]
        self.when = ""
        return lines

    def edge(self, out: Source, scope: Scope, word: str) -> str:
        raise AssertionError("pairs have no state")

    def _needed(self, later: bool) -> list[Node]:
        """What products and weights of one of the two chunks are made of, arguments before users."""
        scans = [r.against if later else r.of for r in self.inside]
        factors = [f for s in scans if s is not None for f in (s.input.rows, s.input.columns)]
        for total in self.totals:
            assert total.read is not None
            factors.append(pair_of(total.read)[0][0 if later else 1])
        roots = [*factors, *(w for w in self._weights_of(later) if w is not None)]
        return self.plan.body(list(dict.fromkeys(roots)), frozenset(self.plan.early))

    def _weights_of(self, later: bool) -> list[Node | None]:
        found: list[Node | None] = [s.input.weight for s in ((r.against if later else r.of) for r in self.inside) if s is not None]
        for total in self.totals:
            assert total.read is not None
            _, one, other = pair_of(total.read)
            found.append(one if later else other)
        return found

    def _product(self, out: Source, later: Node, earlier: Node, late: Scope, soon: Scope) -> str:
        """[s, j] = the product of a factor at a step s of the second chunk with one at a step j of the first; [j, s] where ``flipped``."""
        key = ("scores", later, earlier)
        if key not in soon.made:
            self.when = LATER
            x = self.factor(out, later, late)
            self.when = ""
            y = self.factor(out, earlier, soon)
            soon.made[key] = soon.names.fresh("scores")
            x, y = (y, x) if self.flipped else (x, y)
            out(f"{soon.made[key]} = {self.dot(x, f'tl.trans({y})')}")
        return soon.made[key]

    def _decayed(self, out: Source, later: Node, earlier: Node, late: Scope, soon: Scope) -> str:
        """A product, decayed."""
        key = ("matrix", later, earlier)
        if key not in soon.made:
            scores = self._product(out, later, earlier, late, soon)
            self.when = LATER
            self.decays_ahead(out, late)
            self.when = ""
            self.decays_ahead(out, soon)
            enter = f"{late.made['enter_row']}{self.along(self.flipped)}"
            leave = f"{soon.made['leave_row']}{self.along(not self.flipped)}"
            soon.made[key] = soon.names.fresh("decayed")
            out(f"{soon.made[key]} = {scores} * {enter} * {leave}")
        return soon.made[key]

    def _both(self, out: Source, one: Node | None, other: Node | None, late: Scope, soon: Scope) -> tuple[str, str]:
        """The later and the earlier weight along their axes of a [Q, Q] matrix; "" for None."""
        self.when = LATER
        later = self.weight(out, one, late, across=self.flipped)
        self.when = ""
        return later, self.weight(out, other, soon, across=not self.flipped)

    def _head_of_two(self, out: Source, late: Scope, soon: Scope) -> None:
        for read in self.inside:
            assert read.against is not None
            one, other, i = read.against.input, read.of.input, self.plan.reads.index(read)
            matrix = self._decayed(out, one.rows, other.rows, late, soon)
            scores = self._product(out, one.columns, other.columns, late, soon)
            later, earlier = self._both(out, one.weight, other.weight, late, soon)
            ahead = other.weight in self.plan.early
            inside = soon.names.fresh("inside")
            held = [w for w in (later, "" if ahead else earlier) if w]
            out(f"{inside} = {' * '.join([scores, matrix, *held])}")
            weighted = f"{inside} * {earlier}" if earlier and ahead else inside
            (index, axis), (other_index, other_axis) = (("sigma", 0), ("tau", 1)) if self.flipped else (("tau", 1), ("sigma", 0))
            self.when = LATER
            out(f"tl.store({self.ahead(f'beyond{i}', late, index)}, {self.total(weighted, axis)})")
            self.when = ""
            out(f"tl.store({self.ahead(f'beyond{i}', soon, other_index)}, {self.total(inside, other_axis)})")
        done: set[object] = set()
        for total in self.totals:
            assert total.read is not None
            key = mix_of(total.read)
            if key in done:
                continue
            done.add(key)
            (later_factor, earlier_factor), one_weight, other_weight = pair_of(total.read)
            matrix = self._decayed(out, later_factor, earlier_factor, late, soon)
            held = [w for w in self._both(out, one_weight, other_weight, late, soon) if w]
            out(f"{self.mixes[key]} += {' * '.join([matrix, *held])}")

    def _leave_mixes(self, out: Source) -> None:
        """What is summed over heads goes to the kernel totals as it is: an eighth of what it is multiplied into."""
        for key, name in self.mixes.items():
            i = mixes(self.plan).index(key)
            self.argument(f"mix{i}", (), "float32", "inner")
            out(f"tl.store(mix{i}_ptr + tl.program_id(0) * (Q * Q) + {self.steps(False)} * Q + {self.steps(True)}, {name})")
