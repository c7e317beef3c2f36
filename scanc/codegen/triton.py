"""The Triton backend, printing the forms recurrent and step: one program walks time with its states in registers.

A tile is [LANES, BN] (lanes, states). A two-direction plan keeps the carries of the recomputed scans in scratch memory at every
``history``-th step, and a block at a time recomputes the carries before each step, to be read while walking back:

    scratch of one program, in sets of SIZE = lanes × BN floats a carry:   [ceil(segment / history)] at block starts, then [history]
"""

from __future__ import annotations

from scanc.codegen.emit import Parts, Source
from scanc.codegen.layout import KernelSource, Mode
from scanc.codegen.triton_common import TritonPrinter, make_source
from scanc.forms.plan import Plan
from scanc.ir import Node
from scanc.schedule import RecurrentSchedule, Schedule, StepSchedule


def generate(plan: Plan, schedule: RecurrentSchedule | StepSchedule, state: int, mode: Mode, title: str) -> KernelSource:
    """The source of one kernel. ``state`` is the size of the state axis, 1 without one."""
    return make_source(_Printer(plan, schedule, state, mode, title))


def scratch_sets(schedule: Schedule, segment: int) -> int:
    """Sets of carries one program keeps in scratch for a segment of so many steps."""
    assert isinstance(schedule, RecurrentSchedule)
    return -(-segment // schedule.history) + schedule.history


class _Printer(TritonPrinter):
    def __init__(self, plan: Plan, schedule: RecurrentSchedule | StepSchedule, state: int, mode: Mode, title: str) -> None:
        super().__init__(plan, schedule, state, mode, title)
        self.unroll = schedule.tile if isinstance(schedule, RecurrentSchedule) else 1
        if plan.recomputed:
            assert isinstance(schedule, RecurrentSchedule)
            self.constants["HISTORY"] = (schedule.history, "steps recomputed at a time")

    def _walk_time(self, out: Source) -> None:
        if self.plan.recomputed:
            self._two_walks(out)
        elif self.plan.time:
            self._loop(out, "t0", "t1", back=self.plan.reverse)
            self._step(out, main=True)
            out.indent(-1)
        else:
            self._step(out, main=True)

    def _loop(self, out: Source, start: str, stop: str, *, back: bool) -> None:
        """Opens the loop over steps ``t``."""
        unroll = f", loop_unroll_factor={self.unroll}" if self.unroll > 1 else ""
        make = "tl.range" if unroll else "range"
        if back:
            out.open(f"for back in {make}(0, {stop} - {start}{unroll}):")
            out(f"t = {stop} - 1 - back")
        else:
            out.open(f"for t in {make}({start}, {stop}{unroll}):")
            out("t = tl.cast(t, tl.int64)  # the interpreter counts in Python's numbers, whose products with strides would be narrow")

    # -- two directions -------------------------------------------------------------------------------------------------------

    def _scratch(self, out: Source) -> None:
        out("kept = scratch_ptr + tl.cast(tl.program_id(0), tl.int64) * ((segment + HISTORY - 1) // HISTORY + HISTORY) * SIZE",
            "history = kept + (segment + HISTORY - 1) // HISTORY * SIZE")

    def _two_walks(self, out: Source) -> None:
        plan = self.plan
        finals = [s for s in plan.stores if s.kind == "final" and s.value in plan.recomputed]
        ahead = not plan.reverse   # whether the main walk, the second one, goes forwards in time

        def bounds(part: str) -> None:
            out(f"part = {part}", "ts = t0 + part * HISTORY", "te = tl.minimum(ts + HISTORY, t1)")

        out("parts = (t1 - t0 + HISTORY - 1) // HISTORY")
        # The end of the last block is nobody's start: walked only where it is a result.
        out.open(f"for block_part in range(0, parts{'' if finals else ' - 1'}):")
        bounds("parts - 1 - block_part" if ahead else "block_part")
        out(*(f"tl.store({at}, {name})" for name, at in self.slots("kept", "part")))
        self._loop(out, "ts", "te", back=ahead)
        self._step(out, main=False)
        out.indent(-2)
        if finals:
            for store in finals:
                out(*self.save_final(store))
        else:
            last = "0" if ahead else "tl.maximum(parts - 1, 0)"
            out(*(f"tl.store({at}, {name})" for name, at in self.slots("kept", last)))
        out("tl.debug_barrier()  # what one thread stored another may load")
        out.open("for block_part in range(0, parts):")
        bounds("block_part" if ahead else "parts - 1 - block_part")
        out(*(f"{name} = tl.load({at})" for name, at in self.slots("kept", "part")))
        self._loop(out, "ts", "te", back=ahead)
        out(*(f"tl.store({at}, {name})" for name, at in self.slots("history", "(t - ts)")))
        self._step(out, main=False)
        out.indent(-1)("tl.debug_barrier()")
        # Walking back, the carry after a step is the carry before the one just done.
        self._loop(out, "ts", "te", back=plan.reverse)
        out(*(f"{prior} = tl.load({at})" for (_, at), prior in zip(self.slots("history", "(t - ts)"), self._priors(), strict=True)))
        self._step(out, main=True)
        out(*(f"{name} = {prior}" for (name, _), prior in zip(self.slots("", ""), self._priors(), strict=True)))
        out.indent(-1)("tl.debug_barrier()  # the next block overwrites the history").indent(-1)

    def _priors(self) -> list[str]:
        return [p for scan in self.plan.recomputed for p in self.names.parts(scan, "_prior")]

    # -- one step -------------------------------------------------------------------------------------------------------------

    def _step(self, out: Source, *, main: bool) -> None:
        plan = self.plan
        nodes = plan.main_body if main else plan.recompute_body
        scans = [s for s in (plan.main if main else plan.recomputed) if s in nodes]
        known = dict(self.known)

        def special(node: Node) -> list[str] | None:
            if node.op == "scan":
                if main and node in plan.recomputed:
                    known[node] = self.carry_words(node)
                    return []
                values, _ = self.recurrence_of(node, known, self.carry_words(node))
                known[node] = self.names.parts(node)
                return [self.declare(node, name, value) for name, value in zip(known[node], values, strict=True)]
            if node.op == "prior":
                scan = node.args[0]
                known[node] = self.names.parts(scan, "_prior") if main and scan in plan.recomputed else self.carry_words(scan)
                return []
            return None

        out(*self.run_body(nodes, known, special))
        if main:
            self._results(out, known)
        for scan in scans:
            self._advance(out, scan, known)

    def _results(self, out: Source, known: dict[Node, Parts]) -> None:
        if self.step and self.plan.graph.inplace:
            out("tl.debug_barrier()  # a result overwrites an input that several threads may read")
        for store in self.plan.stores:
            if store.kind == "sum":
                out(*(f"{name} += {value}" for name, value in zip(self.total_names(store), known[store.value], strict=True)))
            elif store.kind == "value":
                out(*self.save(store, known[store.value], time=bool(self.plan.time)))

    def _advance(self, out: Source, scan: Node, known: dict[Node, Parts]) -> None:
        """The carry after this step."""
        names = self.carry_words(scan)
        _, following = self.recurrence_of(scan, known, names)
        after = following(known[scan])
        if len(names) == 2 and scan.attrs["shifted"]:
            fresh = [self.names.fresh("following") for _ in names]
            out(*(f"{f} = {x}" for f, x in zip(fresh, after, strict=True)))
            after = fresh
        out(*(f"{name} = {x}" for name, x in zip(names, after, strict=True)))
