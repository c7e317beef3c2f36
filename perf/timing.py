"""How long a call takes: the median of many, on warm code and (on a GPU) a cold L2 cache.

On a CPU each call is timed by the clock. On a GPU each call is timed by events around it, after its L2 cache has been
overwritten. A kernel too short for the host to launch in time is captured, with the overwriting and the events, into a CUDA
graph, so that the launch path in Python is not what is measured. Two events with nothing between them are microseconds apart, which is
most of a decode step: such calls are captured in a row, each on data of its own, and the whole graph is timed.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from scanc.dispatch import cache_bytes

# Below this a call's work on the host (launches from Python, allocations, checks: up to a few hundred µs) would show in the result.
GRAPH_BELOW_MS = 3.0
MOST_RUNS = 1000
FEWEST_RUNS = 5
GRAPH_RUNS = 20
# As many calls in a row as touch twice the L2 cache, within these bounds.
ROW_FEWEST, ROW_MOST = 20, 256


@dataclass(frozen=True)
class Timing:
    """Median, tenth and ninetieth percentile in milliseconds, of ``runs`` calls."""

    ms: float
    ms_p10: float
    ms_p90: float
    runs: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """From times in milliseconds, at least one."""
        ordered = sorted(samples)
        return cls(quantile(ordered, 0.5), quantile(ordered, 0.1), quantile(ordered, 0.9), len(ordered))

    def __str__(self) -> str:
        return f"{self.ms:.4g} ms ({self.ms_p10:.4g} to {self.ms_p90:.4g}, {self.runs} runs)"


def quantile(ordered: Sequence[float], q: float) -> float:
    """The ``q`` quantile of sorted values, linear between neighbours."""
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def measure(fn: Callable[[], object], device: str | torch.device, *, warmup: int = 2, budget_ms: float = 300.0,
            flush: bool = True) -> Timing:
    """Times ``fn()`` on ``device`` for about ``budget_ms``: at least 5 calls, however long they take, and at most 1000.

    ``warmup``  calls before the first timed one (compilation, page faults, clocks)
    ``flush``   on a GPU, overwrite the L2 cache before each call; without it, the working set stays where it fits
    """
    device = torch.device(device)
    for _ in range(warmup):
        fn()
    if device.type == "cuda":
        return _measure_cuda(fn, device, budget_ms, flush)
    return _measure_cpu(fn, budget_ms)


def calls_in_a_row(bytes_each: int, device: torch.device) -> int:
    """How many calls, each of so many bytes of its own, leave nothing of the first in the L2 cache when its turn comes again."""
    cache = 2 * cache_bytes(device)
    return max(ROW_FEWEST, min(ROW_MOST, math.ceil(cache / max(1, bytes_each))))


def measure_in_a_row(calls: Sequence[Callable[[], object]], device: str | torch.device, *, budget_ms: float = 300.0) -> Timing:
    """What one of ``calls`` adds to a CUDA graph of all of them, one after the other on ``device``.

    The calls do the same on different data, each its own (see ``calls_in_a_row``). Raises RuntimeError where one waits for the device,
    which a graph cannot hold.
    """
    device = torch.device(device)
    with torch.cuda.device(device):
        for call in calls:
            call()
        if _synchronises(calls[0]):
            raise RuntimeError("a call that waits for the device cannot be captured in a CUDA graph; measure() times it by events.")
        side = torch.cuda.Stream()
        with _captured(side, calls[0]) as graph:
            for call in calls:
                call()
        graph.replay()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        samples: list[float] = []
        while len(samples) < FEWEST_RUNS or (sum(samples) * len(calls) < budget_ms and len(samples) < MOST_RUNS):
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            samples.append(start.elapsed_time(end) / len(calls))
    return Timing.of(samples)


@contextlib.contextmanager
def _captured(side: torch.cuda.Stream, first: Callable[[], object]) -> Iterator[torch.cuda.CUDAGraph]:
    """Captures what its body does, on ``side``; ``first`` is run there before: lazy modules, workspaces."""
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        first()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        yield graph


def _measure_cpu(fn: Callable[[], object], budget_ms: float) -> Timing:
    samples: list[float] = []
    spent = 0.0
    while len(samples) < FEWEST_RUNS or (spent < budget_ms and len(samples) < MOST_RUNS):
        start = time.perf_counter()
        fn()
        samples.append(1e3 * (time.perf_counter() - start))
        spent += samples[-1]
        if len(samples) >= 3 and spent > 10 * budget_ms:
            break
    return Timing.of(samples)


def _measure_cuda(fn: Callable[[], object], device: torch.device, budget_ms: float, flush: bool) -> Timing:
    # Twice the cache, so that overwriting it leaves nothing of what the last call read.
    cache = torch.empty(2 * cache_bytes(device) if flush else 0, dtype=torch.int8, device=device)
    with torch.cuda.device(device):
        rough = Timing.of(_by_events(fn, cache, 3)).ms
        runs = max(FEWEST_RUNS, min(MOST_RUNS, int(budget_ms / max(rough, 1e-3))))
        if rough < GRAPH_BELOW_MS and not _synchronises(fn):
            try:
                return Timing.of(_by_graph(fn, cache, runs))
            except RuntimeError:  # it calls something that a graph cannot hold
                torch.cuda.synchronize()
        return Timing.of(_by_events(fn, cache, runs))


def _synchronises(fn: Callable[[], object]) -> bool:
    """Whether a call waits for the device. Asked before capturing: a capture that fails leaves torch's allocator in capture mode."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")  # what it misses, capturing finds
        torch.cuda.set_sync_debug_mode("error")
        try:
            fn()
        except RuntimeError:
            return True
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return False


def _by_events(fn: Callable[[], object], cache: torch.Tensor, runs: int) -> list[float]:
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
    torch.cuda.synchronize()
    for start, end in pairs:
        cache.zero_()
        start.record()
        fn()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairs]


def _by_graph(fn: Callable[[], object], cache: torch.Tensor, runs: int) -> list[float]:
    """Times of ``fn`` inside a CUDA graph that holds GRAPH_RUNS calls, each between two events of the graph's own."""
    pairs = [(torch.cuda.Event(enable_timing=True, external=True), torch.cuda.Event(enable_timing=True, external=True))
             for _ in range(GRAPH_RUNS)]
    with _captured(torch.cuda.Stream(), fn) as graph:
        for start, end in pairs:
            cache.zero_()
            start.record()
            fn()
            end.record()
    samples: list[float] = []
    for _ in range(max(1, math.ceil(runs / GRAPH_RUNS))):
        graph.replay()
        torch.cuda.synchronize()
        samples += [start.elapsed_time(end) for start, end in pairs]
    return samples
