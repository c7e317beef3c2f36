"""Stand-ins for the compiler: kernels that misbehave on purpose, chosen by the schedule's lanes."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scanc.errors import CompileError
from scanc.ir import Graph
from scanc.reference import evaluate
from scanc.schedule import RecurrentSchedule, Schedule
from scanc.target import Target

FINE, ABORTS, SEGFAULTS, HANGS, WRONG, SIGN, NOTHING, NAN, RACES, OVERWRITES, SHORT, RAISES, PRINTS = (1 << i for i in range(13))


@dataclass
class Fake:
    """The reference with a fault; takes ``tile`` / 100 milliseconds longer than it needs."""

    graph: Graph
    fault: int
    delay: float
    runs: int = 0

    def __call__(self, inputs: Mapping[str, Tensor], *, into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        self.runs += 1
        time.sleep(self.delay)
        if self.fault == ABORTS:
            os.abort()
        if self.fault == SEGFAULTS:
            ctypes.string_at(0)
        if self.fault == HANGS:
            time.sleep(3600)
        if self.fault == RAISES:
            raise IndexError("the kernel's own launcher is broken")
        if self.fault == PRINTS:
            print('{"status": "ok", "ms": 0.0}')
            os.system("echo a compiler says hello")
        out = {k: v.float() for k, v in evaluate(self.graph, inputs, dtype=torch.float32).items()}
        first = next(iter(out))
        match self.fault:
            case x if x == WRONG:
                out[first] = out[first] * 1.001
            case x if x == SIGN:
                out[first] = -out[first]
            case x if x == NOTHING:
                out[first] = torch.zeros_like(out[first])
            case x if x == NAN:
                out[first].view(-1)[-1] = float("nan")
            case x if x == RACES:
                out[first].view(-1)[0] += 1e-6 * self.runs
            case x if x == OVERWRITES:
                next(iter(inputs.values())).zero_()
            case x if x == SHORT:
                out[first] = out[first][..., :-1]
        for name, place in (into or {}).items():
            place.copy_(out[name])
        return out


def compile_graph(graph: Graph, target: Target, schedule: Schedule) -> Fake:
    assert isinstance(schedule, RecurrentSchedule)
    if schedule.walk == 13:
        raise CompileError("13 is refused", backend="cpp", kernel=graph.name, path="nowhere.cpp")
    if schedule.walk == 14:
        print("dying words", file=sys.stderr)
        sys.exit(3)
    return Fake(graph, schedule.lanes, schedule.tile / 100_000)
