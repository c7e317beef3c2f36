"""The Triton backend, printing the form associative: a tile of time at once, by an associative scan of pairs.

The pair (a, b) stands for the map c -> a c + b; two steps compose to (a' a, a' b + b'). A tile is [LANES, BN, TILE] (lanes, states,
time); its maps are composed along time and applied to the carry the tile starts with:

    unshifted   pairs (a_t, b_t):        value_t = A_t c + B_t                              the carry before t is value_{t-1}
    shifted     pairs (a_t, a_t b_t):    c_{t+1} = A_t c + B_t,  value_t = c_t + b_t        the carry before t is c_t

"Before" follows the walk: forwards or backwards in time. A two-direction plan keeps only the carries at tile starts in scratch
memory: ceil(segment / tile) sets of SIZE = lanes × BN floats a carry.
"""

from __future__ import annotations

from scanc.codegen.emit import Parts, Source, complex_product
from scanc.codegen.layout import KernelSource, Mode
from scanc.codegen.triton_common import TritonPrinter, make_source
from scanc.forms.plan import Plan
from scanc.ir import Node
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


class _Printer(TritonPrinter):
    def __init__(self, plan: Plan, schedule: AssociativeSchedule, state: int, mode: Mode, title: str) -> None:
        super().__init__(plan, schedule, state, mode, title, timed_tiles=True)
        for word in (*COMBINE, "before"):
            self.names.fresh(word)
        self.constants["TILE"] = (schedule.tile, "time steps combined at once")

    def helper_text(self, name: str) -> str:
        return COMBINE.get(name) or super().helper_text(name)

    def _needs_origin(self) -> bool:
        return super()._needs_origin() or any(not self.carry_dims(s) for s in self.plan.recomputed)

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
                    out(*(f"{name} += tl.where(in_time, {value}, 0.0)" for name, value in zip(self.total_names(store), known[store.value], strict=True)))
                elif store.kind == "value":
                    out(*self.save(store, known[store.value], time=True))
        out(*after)

    def total_dims(self, store: object) -> frozenset[str]:
        return super().total_dims(store) | {"time"}  # type: ignore[arg-type]

    def _scan(self, scan: Node, known: dict[Node, Parts], after: list[str], *, prior: bool, last: bool) -> list[str]:
        """Composes the tile's maps and applies them to the carry. ``last``: the next tile's carry comes from scratch."""
        back, shifted, lines = scan.attrs["reverse"], scan.attrs["shifted"], list[str]()
        names, carry = self.names.parts(scan), self.carry_words(scan)
        shape = self.shape(self.extent[scan])
        inside = self.carry_dims(scan) | {"time"}
        assert inside == self.extent[scan]

        def let(word: str, expression: str) -> str:
            name = self.names.fresh(word)
            lines.append(f"{name} = {expression}")
            return name

        def full(node: Node, x: str, identity: str) -> str:
            """x over the whole tile; steps past the end, which a backward walk meets first, change nothing."""
            if back:
                x = f"tl.where(in_time, {x}, {identity})"
            if node.op == "const" and not back:
                return f"tl.full({shape}, {x}, tl.float32)"
            whole = self.extent[node] | ({"time"} if back else set()) == self.extent[scan]
            return x if whole else f"tl.broadcast_to({x}, {shape})"

        a, b = scan.args[0], scan.args[1]
        a_parts, b_parts = known[a], known[b]
        pad = len(names) - len(b_parts)
        b_parts = (*b_parts, *("0.0",) * pad)
        product = b_parts
        extent = self.extent[b]
        if shifted:
            product = self._times(scan, a_parts, b_parts)
            extent = self.extent[a] | self.extent[b]
        first = [let(f"{names[0]}_a", full(a, x, "1.0" if k == 0 else "0.0")) for k, x in enumerate(a_parts)]
        second = []
        for k, x in enumerate(product):
            literal = x == "0.0" or (not shifted and b.op == "const")
            x = f"tl.where(in_time, {x}, 0.0)" if back else x
            if literal and not back:
                x = f"tl.full({shape}, {x}, tl.float32)"
            elif (frozenset() if literal else extent) | ({"time"} if back else set()) != self.extent[scan]:
                x = f"tl.broadcast_to({x}, {shape})"
            second.append(let(f"{names[0]}_b", x))
        combine = {(1, 1): "compose", (1, 2): "compose_complex_input", (2, 2): "compose_complex"}[len(first), len(second)]
        composed = [self.names.fresh(f"{names[0]}_{w}") for w in (*("A", "A_im")[:len(first)], *("B", "B_im")[:len(second)])]
        lines.append(f"{', '.join(composed)} = tl.associative_scan(({', '.join((*first, *second))}), {self.axis('time')}, "
                     f"{self.dialect.helper(combine)}{', reverse=True' if back else ''})")
        A, B = tuple(composed[:len(first)]), composed[len(first):]
        applied = [f"{x} + {y}" for x, y in zip(self._times(scan, A, carry), B, strict=True)]
        ends = [let(f"{n}_end", x) for n, x in zip(names, applied, strict=True)] if shifted else []
        if not shifted:
            lines += [self.declare(scan, n, x) for n, x in zip(names, applied, strict=True)]
            ends = list(names)
        if shifted or prior:
            for start, end, c in zip(self.names.parts(scan, "_prior"), ends, carry, strict=True):
                lines.append(f"{start} = {self._before(end, c, shape, back)}")
        if shifted:
            lines += [self.declare(scan, n, f"{start} + {x}") for n, start, x in zip(names, self.names.parts(scan, "_prior"), b_parts, strict=True)]
        known[scan] = names
        if not last:
            edge = "tau == 0" if back else "tau == steps - 1"
            after += [f"{c} = {self.summed(f'tl.where({edge}, {end}, 0.0)', 'time')}" for c, end in zip(carry, ends, strict=True)]
        return lines

    def _times(self, node: Node, x: Parts, y: Parts) -> Parts:
        def op(name: str, *args: str) -> str:
            return self.dialect.operation(name, list(args), node)

        if len(x) == 2 and len(y) == 2:
            return complex_product(op, x, y)
        pair, scale = (x, y[0]) if len(x) == 2 else (y, x[0])
        return tuple(op("mul", p, scale) for p in pair)

    def _before(self, x: str, carry: str, shape: str, back: bool) -> str:
        """x at the step walked before; the carry at the first one."""
        index = "tl.minimum(tau + 1, TILE - 1)" if back else "tl.maximum(tau - 1, 0)"
        first = "tau == steps - 1" if back else "tau == 0"
        moved = f"tl.gather({x}, tl.broadcast_to(tl.cast({index}, tl.int32), {shape}), {self.axis('time')})"
        return f"tl.where({first}, {carry}, {moved})"
