"""The child process that measures: ``python -m scanc.autotune.worker``, JSON lines in, JSON lines out.

    {"do": "hello", "path": [...], "imports": [...], "compiler": "scanc.compiler:compile_graph", "scratch": "…", "threads": 0}
    {"do": "prepare", "problem": {...}, "target": "cuda:sm_90:cuda"}           makes inputs and oracles, once per problem
    {"do": "check", "problem": ..., "target": ..., "schedule": {...}}          compiles, screens, holds against the oracle
    {"do": "time", "problem": ..., "target": ..., "schedule": {...}, "budget_ms": 30, "give_up_ms": 2.5}
    {"do": "compare", "problem": ..., "candidates": [[target, schedule], ...], "budget_ms": 40, "rounds": 5}

Whatever a generated kernel does (an abort, an endless loop, a corrupted heap, a poisoned CUDA context) happens here. The parent
sees a closed pipe or a silent one, and starts another worker. What is expected to go wrong (a schedule a backend refuses, a
source that does not compile) is answered as a status; any other exception ends this process, its traceback on stderr.
"""

from __future__ import annotations

import datetime
import functools
import importlib
import json
import math
import os
import platform
import runpy
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from scanc.autotune import measure as measure_module
from scanc.autotune.check import Prepared, as_trained, check, prepare, run, trials
from scanc.autotune.screen import Screened, screen, sources_for
from scanc.errors import ScancError
from scanc.ir import Graph
from scanc.perf.timing import Timing, measure
from scanc.problem import Problem
from scanc.runtime import device_name, versions
from scanc.schedule import schedule_from_json
from scanc.target import Target

Reply = dict[str, Any]

# A median this far above the tenth percentile was not the kernel's doing.
DISTURBED = 1.25
# A single call, with what the host adds to it, this far above the time to give up at needs no further timing.
HOPELESS = 2.0
HOST_MS = 0.1


def problem_from_json(data: Mapping[str, Any]) -> Problem:
    """The problem that ``dataclasses.asdict`` and JSON made lists of."""
    return Problem(**{k: _tuples(v) for k, v in data.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def target_device(target: Target) -> torch.device:
    return torch.device(target.device_type)


def conditions(device: torch.device) -> dict[str, Any]:
    """What else decides a timing: the CPU's load; a GPU's clocks, temperature, power, throttling and other processes."""
    if device.type != "cuda":
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        return {"load": load, "threads": torch.get_num_threads(), "machine": platform.machine()}
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # an AMD GPU, or a container that hides the library
        return {}
    try:
        index = device.index if device.index is not None else torch.cuda.current_device()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
        readings: dict[str, Callable[[], Any]] = {
            "sm_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "memory_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
            "celsius": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
            "watts": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "throttled": lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
            "processes": lambda: len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)),
        }
        found = {}
        for name, read in readings.items():
            try:
                found[name] = read()
            except pynvml.NVMLError:  # not every card answers every question
                continue
        return found
    except pynvml.NVMLError:
        return {}
    finally:
        pynvml.nvmlShutdown()


class Bench:
    """Answers requests; keeps the last problem's inputs, oracles and compiled candidates."""

    def __init__(self) -> None:
        self.compile: Callable[..., Any] | None = None
        self.scratch: Path | None = None
        self._prepared: tuple[Any, Graph, list[Prepared]] | None = None
        self._kept: tuple[Any, Any] | None = None

    def hello(self, request: Mapping[str, Any]) -> Reply:
        sys.path[:] = request["path"]
        for name in request["imports"]:
            if name.endswith(".py"):
                runpy.run_path(name, run_name="__scanc_worker__")
            else:
                importlib.import_module(name)
        importlib.import_module("scanc.ops")
        module, _, function = request["compiler"].partition(":")
        self.compile = getattr(importlib.import_module(module), function)
        self.scratch = Path(request["scratch"])
        if request["threads"]:
            torch.set_num_threads(request["threads"])
        return {"status": "ok", "pid": os.getpid(), "versions": versions()}

    def prepare(self, request: Mapping[str, Any]) -> Reply:
        target = Target.parse(request["target"])
        self._ready(request["problem"], target)
        return {"status": "ok", "device": device_name(target_device(target))}

    def _ready(self, data: Mapping[str, Any], target: Target) -> tuple[Problem, Graph, list[Prepared]]:
        problem, device = problem_from_json(data), target_device(target)
        if self._prepared is None or self._prepared[0] != (problem, device):
            self._prepared = None  # the old inputs go before the new ones come
            graph = problem.graph()
            made = [prepare(trial, graph, device, self.scratch) for trial in trials(problem, graph)]
            self._prepared = ((problem, device), graph, made)
        return problem, self._prepared[1], self._prepared[2]

    def check(self, request: Mapping[str, Any]) -> Reply:
        """Compiles, screens and checks a candidate; "ok" says that it may be timed."""
        target = Target.parse(request["target"])
        problem, graph, prepared = self._ready(request["problem"], target)
        began = time.perf_counter()
        try:
            executable = self._executable(request, graph, target)
            screened = screen(sources_for(executable, problem.sizes), target) if target.kind != "cpu" else Screened(True)
            if not screened.ok:
                return {"status": f"screened: {screened.reason}", "detail": screened.detail, "seconds": time.perf_counter() - began}
            verdict = check(executable, prepared, graph)
        except ScancError as error:
            return {"status": f"screened: {_first_line(error)}", "detail": str(error)[:2000], "seconds": time.perf_counter() - began}
        return {"status": "ok" if verdict.right else "wrong", "detail": verdict.reason or screened.detail, "error": dict(verdict.errors),
                "seconds": time.perf_counter() - began}

    def time(self, request: Mapping[str, Any]) -> Reply:
        """Times a candidate that was found right, here or by another worker."""
        target = Target.parse(request["target"])
        device = target_device(target)
        _, graph, prepared = self._ready(request["problem"], target)
        began = time.perf_counter()
        call = _call(self._executable(request, graph, target), prepared[-1].inputs, graph)
        call()
        give_up = math.inf if request["give_up_ms"] is None else request["give_up_ms"]
        timing = _hopeless(call, device, give_up) or _slow(call, device, request["budget_ms"], give_up)
        status = "ok" if timing is None else "slow"
        timing = timing or _quietest(call, device, request["budget_ms"])
        return {"status": status, **timing, "conditions": conditions(device), "seconds": time.perf_counter() - began}

    def _executable(self, request: Mapping[str, Any], graph: Graph, target: Target) -> Any:
        """The candidate's executable; the last one is kept, so that what was just checked is timed without compiling again."""
        assert self.compile is not None
        key = (request["problem"], request["target"], request["schedule"])
        if self._kept is None or self._kept[0] != key:
            self._kept = None
            self._kept = (key, self.compile(graph, target, schedule_from_json(dict(request["schedule"]))))
        return self._kept[1]

    def compare(self, request: Mapping[str, Any]) -> Reply:
        """Times candidates in turn, round after round, so that a drifting clock meets all of them alike."""
        target = Target.parse(request["candidates"][0][0])
        device = target_device(target)
        _, graph, prepared = self._ready(request["problem"], target)
        assert self.compile is not None
        calls = []
        for name, schedule in request["candidates"]:
            executable = self.compile(graph, Target.parse(name), schedule_from_json(dict(schedule)))
            calls.append(_call(executable, prepared[-1].inputs, graph))
        medians: list[list[float]] = [[] for _ in calls]
        for _ in range(request["rounds"]):
            for found, call in zip(medians, calls, strict=True):
                found.append(measure(call, device, warmup=1, budget_ms=request["budget_ms"]).ms)
        return {"status": "ok", "timings": [_summary(m) for m in medians], "conditions": conditions(device)}

    def answer(self, request: Mapping[str, Any]) -> Reply:
        known = {"hello": self.hello, "prepare": self.prepare, "check": self.check, "time": self.time, "compare": self.compare}
        return known[request["do"]](request)


def _hopeless(call: Callable[[], object], device: torch.device, give_up: float) -> Reply | None:
    """The least of three single calls, where even that is so far above ``give_up`` that neither the clock nor the host is to blame."""
    if not math.isfinite(give_up):
        return None
    least, bar = math.inf, HOPELESS * give_up + HOST_MS
    for _ in range(3):  # one slow call may be another program's fault
        least = min(least, _once(call, device))
        if least <= bar:
            return None
    return {"ms": least, "ms_p10": least, "ms_p90": least, "timings": {"runs": 1.0}}


def _slow(call: Callable[[], object], device: torch.device, budget_ms: float, give_up: float) -> Reply | None:
    """A few timings, where nearly all of them are above ``give_up``."""
    if not math.isfinite(give_up):
        return None
    few = measure(call, device, warmup=0, budget_ms=budget_ms / 8)
    if few.ms_p10 <= give_up:
        return None
    return {"ms": few.ms, "ms_p10": few.ms_p10, "ms_p90": few.ms_p90, "timings": {"runs": float(few.runs)}}


def _quietest(call: Callable[[], object], device: torch.device, budget_ms: float) -> Reply:
    """Times a call, up to three times where other programs got in its way, and keeps the quietest."""
    best: Timing | None = None
    tries = 0
    while tries < 3 and (best is None or best.ms > DISTURBED * best.ms_p10):
        found = measure(call, device, warmup=1, budget_ms=budget_ms * (1 + tries))
        best = found if best is None or found.ms < best.ms else best
        tries += 1
    assert best is not None
    return {"ms": best.ms, "ms_p10": best.ms_p10, "ms_p90": best.ms_p90, "timings": {"runs": float(best.runs), "tries": float(tries)}}


def _summary(medians: list[float]) -> Reply:
    """Of several rounds' medians: their own median, and the best and worst round for the spread."""
    return {"ms": statistics.median(medians), "ms_p10": min(medians), "ms_p90": max(medians),
            "timings": {"rounds": float(len(medians)), "mean": statistics.fmean(medians)}}


def _first_line(error: ScancError) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0]}"


def _call(executable: Callable[..., Mapping[str, Tensor]], inputs: Mapping[str, Tensor], graph: Graph) -> Callable[[], object]:
    """A call to time. What an in-place op overwrites is a copy, so the problem's own inputs stay as they were."""
    overwritten = set(graph.inplace.values())
    held = {k: v.clone() if k in overwritten else v for k, v in inputs.items()}
    return functools.partial(run, executable, as_trained(executable, held), graph)


def _once(call: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call, after the checks have warmed everything."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def _follow(parent: int) -> None:
    """Ends this process, even inside a kernel that hangs, once its parent is gone."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def serve(requests: TextIO, replies: TextIO) -> None:
    bench = Bench()
    for line in requests:
        request = json.loads(line)
        reply = bench.answer(request)
        reply["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def main() -> None:
    measure_module.in_worker = True
    # The replies keep the real stdout; what kernels and compilers print goes to stderr and cannot garble them.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    serve(sys.stdin, replies)


if __name__ == "__main__":
    main()
