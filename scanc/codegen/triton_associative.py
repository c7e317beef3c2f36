"""The Triton backend, printing the form associative: a tile of time at once, by an associative scan of pairs.

The pair (a, b) stands for the map c -> a c + b; two steps compose to (a' a, a' b + b'). A tile is [LANES, BN, TILE] (lanes, states,
time); its maps are composed along time, to (A, B), and applied to the carry c the tile starts with:

    unshifted             maps (a_t, b_t)           value_t = A_t c + B_t
    unshifted, exclusive  maps (a_{t-1}, b_{t-1})   prior_t = A_t c + B_t,  value_t = a_t prior_t + b_t
    shifted               maps (a_{t-1}, b_t)       value_t = A_t c + B_t,  the next carry being a_t value_t

where t-1 stands for the step walked before t, whose map at the first step of a tile is the identity (its a, when shifted).
A two-direction plan keeps only the carries at tile starts in scratch memory: ceil(segment / tile) sets of SIZE = lanes × BN
floats a carry.
"""

from __future__ import annotations

from scanc.codegen.emit import Body, Names, Parts, Source, complex_product
from scanc.codegen.layout import KernelSource, Mode
from scanc.codegen.triton_common import TritonPrinter, make_source
from scanc.forms.plan import Plan, Store
from scanc.ir import Node, topological
from scanc.schedule import AssociativeSchedule, Schedule

COMBINE = {
    "compose": """\
@triton.jit
def compose(a, b, a_next, b_next):
    return a_next * a, a_next * b + b_next
""",
    "compose_complex_input": """\
@triton.jit
def compose_complex_input(a, b_re, b_im, a_next, b_next_re, b_next_im):
    return a_next * a, a_next * b_re + b_next_re, a_next * b_im + b_next_im
""",
    "compose_complex": """\
@triton.jit
def compose_complex(a_re, a_im, b_re, b_im, a_next_re, a_next_im, b_next_re, b_next_im):
    return (a_next_re * a_re - a_next_im * a_im, a_next_re * a_im + a_next_im * a_re,
            a_next_re * b_re - a_next_im * b_im + b_next_re, a_next_re * b_im + a_next_im * b_re + b_next_im)
""",
}


def generate(plan: Plan, schedule: AssociativeSchedule, state: int, mode: Mode, title: str) -> KernelSource:
    """The source of one kernel. ``state`` is the size of the state axis, 1 without one."""
    return make_source(_Printer(plan, schedule, state, mode, title))


def scratch_sets(schedule: Schedule, segment: int) -> int:
    """Sets of carries one program keeps in scratch for a segment of so many steps."""
    assert isinstance(schedule, AssociativeSchedule)
    return -(-segment // schedule.tile)


class _Neighbours(Names):
    """Names of values at a neighbouring step, unlike any of those at the step itself."""

    def __init__(self, taken: Names, word: str) -> None:
        super().__init__()
        self._taken, self._word = taken._taken, word

    def of(self, node: Node) -> str:
        if node not in self._of:
            self._of[node] = self.fresh(f"{node.name or node.op}_{self._word}")
        return self._of[node]


class _Printer(TritonPrinter):
    def __init__(self, plan: Plan, schedule: AssociativeSchedule, state: int, mode: Mode, title: str) -> None:
        super().__init__(plan, schedule, state, mode, title, timed_tiles=True)
        for word in (*COMBINE, "before"):
            self.names.fresh(word)
        self.neighbour_names = {back: _Neighbours(self.names, "later" if back else "earlier") for back in (False, True)}
        self.neighbours: dict[bool, dict[Node, Parts]] = {}
        self.start = "tl.multiple_of(seg * segment, TILE)"  # a segment is a multiple of the tile, or the only one
        self.specialised = (f"size_{plan.time}", "segment")
        self.constants["TILE"] = (schedule.tile, "time steps combined at once")

    def helper_text(self, name: str) -> str:
        return COMBINE.get(name) or super().helper_text(name)

    # -- the walk over tiles --------------------------------------------------------------------------------------------------

    def _scratch(self, out: Source) -> None:
        out("kept = scratch_ptr + tl.cast(tl.program_id(0), tl.int64) * ((segment + TILE - 1) // TILE) * SIZE")

    def _walk_time(self, out: Source) -> None:
        plan = self.plan
        out(f"tau = tl.cast(tl.arange(0, TILE), tl.int64){self.along('time')}", "tiles = (t1 - t0 + TILE - 1) // TILE")
        if plan.recomputed:
            self._first_walk(out)
            out("tl.debug_barrier()  # what one thread stored another may load")
        out.open("for step in range(0, tiles):")
        self._bounds(out, plan.reverse)
        if plan.recomputed:
            out(*(f"{name} = tl.load({at})" for name, at in self.slots("kept", "tile")))
        self._tile(out, main=True)
        out.indent(-1)

    def _bounds(self, out: Source, back: bool) -> None:
        out(f"tile = {'tiles - 1 - step' if back else 'step'}", "ts = t0 + tile * TILE", "t = ts + tau", "in_time = t < t1",
            "steps = tl.minimum(t1 - ts, TILE)")

    def _first_walk(self, out: Source) -> None:
        """Leaves the carries of the recomputed scans at every tile's start."""
        plan = self.plan
        back = not plan.reverse
        finals = [s for s in plan.stores if s.kind == "final" and s.value in plan.recomputed]
        out.open(f"for step in range(0, tiles{'' if finals else ' - 1'}):")
        self._bounds(out, back)
        out(*(f"tl.store({at}, {name})" for name, at in self.slots("kept", "tile")))
        self._tile(out, main=False)
        out.indent(-1)
        for store in finals:
            out(*self.save_final(store))
        if not finals:  # the last tile's end is nobody's start
            out(*(f"tl.store({at}, {name})" for name, at in self.slots("kept", "0" if back else "tl.maximum(tiles - 1, 0)")))

    # -- one tile -------------------------------------------------------------------------------------------------------------

    def _tile(self, out: Source, *, main: bool) -> None:
        plan = self.plan
        nodes = list(dict.fromkeys((*plan.recompute_body, *plan.main_body))) if main else list(plan.recompute_body)
        read = {n.args[0] for n in nodes if n.op == "prior"}
        known = dict(self.known)
        self.neighbours = {back: dict(self.known) for back in (False, True)}
        after: list[str] = []   # the next tile's carries: set once nothing reads the old ones

        def special(node: Node) -> list[str] | None:
            if node.op == "scan":
                return self._scan(node, known, after, prior=node in read, last=main and node in plan.recomputed)
            if node.op == "prior":
                known[node] = self.names.parts(node.args[0], "_prior")
                return []
            return None

        out(*self.run_body(nodes, known, special))
        if main:
            for store in plan.stores:
                if store.kind == "sum":
                    values = zip(self.total_names(store), known[store.value], strict=True)
                    out(*(f"{name} += tl.where(in_time, {value}, 0.0)" for name, value in values))
                elif store.kind == "value":
                    out(*self.save(store, known[store.value], time=True))
        out(*after)

    def total_dims(self, store: Store) -> frozenset[str]:
        return super().total_dims(store) | {"time"}

    def _scan(self, scan: Node, known: dict[Node, Parts], after: list[str], *, prior: bool, last: bool) -> list[str]:
        """Composes the tile's maps and applies them to the carry. ``last``: the next tile's carry comes from scratch."""
        back, shifted, lines = scan.attrs["reverse"], scan.attrs["shifted"], list[str]()
        a, b = scan.args[0], scan.args[1]
        names, carry, starts = self.names.parts(scan), self.carry_words(scan), self.names.parts(scan, "_prior")
        if shifted or prior:
            maps = [self._previous(a, known, back, lines), known[b] if shifted else self._previous(b, known, back, lines)]
        else:
            maps = [known[a], known[b]]
        # The first step walked has none before it, and a backward walk meets the padding first: those maps change nothing.
        has_previous, in_time = ("tau < steps - 1" if back else "tau > 0"), ("in_time" if back else "")
        conditions = (has_previous if shifted or prior else in_time, has_previous if prior and not shifted else in_time)
        first = self._whole(scan, "a", maps[0], a, "1.0", conditions[0], lines)
        second = self._whole(scan, "b", (*maps[1], *("0.0",) * (len(names) - len(maps[1]))), b, "0.0", conditions[1], lines)
        combine = {(1, 1): "compose", (1, 2): "compose_complex_input", (2, 2): "compose_complex"}[len(first), len(second)]
        composed = [self.names.fresh(f"{names[0]}_{w}") for w in (*("A", "A_im")[:len(first)], *("B", "B_im")[:len(second)])]
        lines.append(f"{', '.join(composed)} = tl.associative_scan(({', '.join((*first, *second))}), {self.axis('time')}, "
                     f"{self.dialect.helper(combine)}{', reverse=True' if back else ''})")
        applied = [f"{x} + {y}" for x, y in zip(self._times(scan, tuple(composed[:len(first)]), carry), composed[len(first):], strict=True)]
        if prior and not shifted:
            lines += [f"{start} = {x}" for start, x in zip(starts, applied, strict=True)]
            applied, _ = self.recurrence_of(scan, known, starts)
        lines += [self.declare(scan, n, x) for n, x in zip(names, applied, strict=True)]
        known[scan] = names
        ends: Parts = names
        if shifted and (prior or not last):
            ends = tuple(self.names.fresh(f"{n}_end") for n in names)
            lines += [f"{end} = {x}" for end, x in zip(ends, self.recurrence_of(scan, known, carry)[1](names), strict=True)]
        if shifted and prior:
            lines += [f"{start} = tl.where({has_previous}, {self._moved(end, scan, back)}, {c})"
                      for start, end, c in zip(starts, ends, carry, strict=True)]
        if not last:
            edge = "tau == 0" if back else "tau == steps - 1"
            after += [f"{c} = {self.summed(f'tl.where({edge}, {end}, 0.0)', 'time')}" for c, end in zip(carry, ends, strict=True)]
        return lines

    def _whole(self, scan: Node, word: str, parts: Parts, node: Node, identity: str, condition: str, lines: list[str]) -> list[str]:
        """A coefficient over the scan's whole tile, the identity's where the condition fails."""
        shape, made = self.shape(self.extent[scan]), []
        for k, x in enumerate(parts):
            literal = node.op == "const" or x == "0.0"
            extent = frozenset() if literal else self.extent[node]
            if condition:
                x = f"tl.where({condition}, {x}, {identity if k == 0 else '0.0'})"
                extent |= {"time"}
            if literal and not condition:
                x = f"tl.full({shape}, {x}, tl.float32)"
            elif extent != self.extent[scan]:
                x = f"tl.broadcast_to({x}, {shape})"
            made.append(self.names.fresh(f"{self.names.of(scan)}_{word}"))
            lines.append(f"{made[-1]} = {x}")
        return made

    def _previous(self, node: Node, known: dict[Node, Parts], back: bool, lines: list[str]) -> Parts:
        """A value at the step walked before, of no meaning at a tile's first.

        It is evaluated again from its inputs there, which costs less than moving values between threads; a value that needs a
        scan is moved.
        """
        if not self.plan.timed(node) or node.op == "const":
            return known[node]
        cone = topological([node])
        if any(n.op in ("scan", "prior") for n in cone):
            moved = tuple(self.names.fresh(f"{n}_moved") for n in self.names.parts(node))
            lines += [f"{m} = {self._moved(x, node, back)}" for m, x in zip(moved, known[node], strict=True)]
            return moved
        there = self.neighbours[back]

        def each(n: Node) -> list[str] | None:
            if n.op in ("input", "shift", "index", "size"):
                return self.read(n, there, later=1 if back else -1)
            return self.contraction(n, there) if n.op == "sum" else None

        here, self.names = self.names, self.neighbour_names[back]
        lines += Body(self.dialect, self.names, there, self.declare).run([n for n in cone if n not in there], each)
        self.names = here
        return there[node]

    def _moved(self, x: str, node: Node, back: bool) -> str:
        """x at the step walked before, moved between threads."""
        shape = self.shape(self.extent[node])
        index = "tl.minimum(tau + 1, TILE - 1)" if back else "tl.maximum(tau - 1, 0)"
        return f"tl.gather({x}, tl.broadcast_to(tl.cast({index}, tl.int32), {shape}), {self.axis('time')})"

    def _times(self, node: Node, x: Parts, y: Parts) -> Parts:
        def op(name: str, *args: str) -> str:
            return self.dialect.operation(name, list(args), node)

        if len(x) == 2 and len(y) == 2:
            return complex_product(op, x, y)
        pair, scale = (x, y[0]) if len(x) == 2 else (y, x[0])
        return tuple(op("mul", p, scale) for p in pair)
