"""The Triton backend, printing the form stencil: tiles of lanes and time side by side, no tile needing another.

A graph without a recurrence looks back (and ahead) a fixed number of steps at its inputs. Each tile [LANES, TILE] loads them once for
every distance it looks, which reaches memory once and the nearest cache after that. A tile that no edge cuts (of lanes, of time, and
of how far it looks) is printed without masks, since those cost more instructions than the arithmetic and keep loads from being wide.

Tiles of one step of one lane, whose states fill a block, have no edges at all. The next ones' inputs can then be asked for ahead.
"""

from __future__ import annotations

from scanc.codegen.emit import Source
from scanc.codegen.layout import KernelSource, Mode
from scanc.codegen.triton_common import TritonPrinter, make_source
from scanc.forms.plan import Plan, Store
from scanc.schedule import StencilSchedule


def generate(plan: Plan, schedule: StencilSchedule, state: int, mode: Mode, title: str) -> KernelSource:
    """The source of one kernel. ``state`` is the size of the state axis, 1 without one."""
    return make_source(_Printer(plan, schedule, state, mode, title))


class _Printer(TritonPrinter):
    def __init__(self, plan: Plan, schedule: StencilSchedule, state: int, mode: Mode, title: str) -> None:
        super().__init__(plan, schedule, state, mode, title, timed_tiles=True)
        for word in ("whole", "ts"):
            self.names.fresh(word)
        self.start = "tl.multiple_of(seg * segment, TILE)"  # a segment is a multiple of the tile, or the only one
        self.specialised = (f"size_{plan.time}", "segment")
        self.constants["TILE"] = (schedule.tile, "time steps of a tile")
        self.ahead = schedule.ahead
        self.uncut = schedule.lanes == schedule.tile == 1 and self._reach() == (0, 0)   # a tile of one step has no edges

    def _walk_time(self, out: Source) -> None:
        time = self.plan.time
        out(f"tau = tl.cast(tl.arange(0, TILE), tl.int64){self.along('time')}")
        back, ahead = self._reach()
        tiles = "(t1 - t0 + TILE - 1) // TILE"
        if self.uncut:
            stages = f", num_stages={self.ahead + 1}" if self.ahead else ""
            out.open(f"for tile in {'tl.range' if stages else 'range'}(0, {tiles}{stages}):")
            out("t = t0 + tile + tau")
            self.whole = True
            self._tile(out)
            self.whole = False
            out.indent(-1)
            return
        if self.plan.lane:
            out("all_lanes = block * LANES + LANES <= per_group")
        out.open(f"for tile in range(0, {tiles}):")
        out("ts = t0 + tile * TILE", "t = ts + tau")
        edges = [f"(ts >= {back})" if back else "", f"(ts + {f'TILE + {ahead}' if ahead else 'TILE'} <= size_{time})",
                 "all_lanes" if self.plan.lane else ""]
        out.open(f"if {' & '.join(e for e in edges if e)}:")
        self.whole = True
        self._tile(out)
        self.whole = False
        out.indent(-1)
        out.open("else:")
        out("in_time = t < t1")
        self._tile(out)
        out.indent(-1)
        out.indent(-1)

    def _reach(self) -> tuple[int, int]:
        """How many steps a value looks back, and ahead."""
        shifts = [n.attrs["by"] for n in self.plan.main_body if n.op == "shift"]
        return max([0, *shifts]), max([0, *(-by for by in shifts)])

    def _tile(self, out: Source) -> None:
        known = dict(self.known)
        out(*self.run_body(self.plan.main_body, known, lambda node: None))
        for store in self.plan.stores:
            if store.kind == "sum":
                for name, value in zip(self.total_names(store), known[store.value], strict=True):
                    out(f"{name} += {value if self.whole else f'tl.where(in_time, {value}, 0.0)'}")
            else:
                out(*self.save(store, known[store.value], time=True))

    def total_dims(self, store: Store) -> frozenset[str]:
        return super().total_dims(store) | {"time"}
