"""The kernel of the chunked form that comes first: values over time and grid alone (see triton_chunked.py).

    sums      g, the sum of exponents from each chunk's start
    resets    how many resets each chunk has had so far (where there are any)
    early<i>  weights, and what epilogues need

A program has one chunk of up to 32 heads, a tile [Q, HEADS]; results lie with time innermost, padded to whole chunks, so that the other
kernels load them along either axis of a tile without a mask. Padding has exponents and weights of 0.
"""

from __future__ import annotations

from scanc.codegen.emit import Source
from scanc.codegen.triton_chunked import LEAST_EXPONENT, ChunkPrinter, ChunkSource, Scope, Shape
from scanc.forms.chunked import ChunkPlan
from scanc.schedule import ChunkedSchedule

HEADS = 32


def early(plan: ChunkPlan, schedule: ChunkedSchedule, shape: Shape, title: str) -> ChunkSource:
    """The kernel's source."""
    return _Early(plan, schedule, shape, "early", title).print()


class _Early(ChunkPrinter):
    def constants(self) -> dict[str, tuple[int, str]]:
        return {"Q": super().constants()["Q"], "HEADS": (HEADS, "heads a program has at a time")}

    def print(self) -> ChunkSource:
        plan, out, scope = self.plan, Source().indent(), Scope(self.names)
        out("tau = tl.arange(0, Q)[:, None]", "rest = tl.program_id(0)")
        if plan.head:
            size = f"size_{plan.head}"
            out(f"blocks = ({size} + HEADS - 1) // HEADS",
                f"i_{plan.head} = tl.minimum(rest % blocks * HEADS + tl.arange(0, HEADS)[None, :], {size} - 1).to(tl.int64)",
                "rest = rest // blocks")
        out("chunks = padded // Q", "ts = (rest % chunks).to(tl.int64) * Q", "rest = rest // chunks")
        for axis in reversed(plan.grid):
            if axis != plan.head:
                out(f"i_{axis} = tl.cast(rest % size_{axis}, tl.int64)", f"rest = rest // size_{axis}")
        out(f"t1 = size_{plan.time}", *self.chunk_start())
        roots = [*plan.early, plan.decay, *([plan.reset] if plan.reset is not None else [])]
        self.values(out, plan.body(roots), scope)
        shape = f"tl.full((Q, {'HEADS' if plan.head else 1}), 0.0, tl.float32)"
        exponent = f"tl.maximum({scope.known[plan.decay][0]}, {LEAST_EXPONENT}, propagate_nan=tl.PropagateNan.ALL)"
        if plan.reset is not None:
            met = f"tl.where(in_time & {scope.known[plan.reset][0]}, 1, 0)"
            out(f"tl.store({self.ahead('resets', scope, 'tau', 'int32')}, {self.running(f'{met} + {shape}.to(tl.int32)')})")
            exponent = f"tl.where({scope.known[plan.reset][0]}, 0.0, {exponent})"
        summed = self.running(f"tl.where(in_time, {exponent}, 0.0) + {shape}")
        out(f"tl.store({self.ahead('sums', scope, 'tau')}, {summed})")
        for node in plan.early:
            zero, dtype = ("0.0", "float32") if node.kind == "real" else ("0", "int32")
            value = scope.known[node][0] if node.kind != "bool" else f"tl.where({scope.known[node][0]}, 1, 0)"
            place = self.ahead(self.early_name(node), scope, "tau", dtype)
            out(f"tl.store({place}, tl.where(in_time, {value}, {zero}) + {shape}.to(tl.{dtype}))")
        return self.source(out, 4)
