"""The parent's side of measuring: worker processes that may crash or hang, started again when they do.

    with Measurer() as measurer:
        found = measurer.measure(problem, target, schedule)     # found.status, found.ms, found.error

Compiling and checking need no quiet machine, so several workers do that side by side; timing is done by the first alone, while the
others wait. A candidate costs at most ``limit_s`` seconds and never more than itself: an abort or a silence ends its worker and
becomes the candidate's status.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import scanc.errors
from scanc.errors import ScancError
from scanc.runtime import cpu_cores, logger
from scanc.schedule import Schedule
from scanc.target import Target

if TYPE_CHECKING:
    from scanc.problem import Problem

COMPILER = "scanc.compiler:compile_graph"
# Importing torch and opening a device, and oracles of large problems, take this long at the very most.
START_SECONDS = 300.0
PREPARE_SECONDS = 900.0
MOST_JOBS = 8
LIMIT_S = 120.0

# Whether this very process is a worker: the file of a user's op is run there too, and must not start a study of its own.
in_worker = False


class WorkerError(ScancError, RuntimeError):
    """The measuring process failed at something that is no candidate's fault."""

    template = "the measuring process ended while {doing}: {reason}"


@dataclass(frozen=True)
class Measurement:
    """What became of one candidate; see Record for the fields."""

    status: str
    ms: float | None = None
    ms_p10: float | None = None
    ms_p90: float | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    error: Mapping[str, float] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    detail: str = ""
    date: str = ""
    seconds: float = 0.0

    @classmethod
    def of(cls, reply: Mapping[str, Any]) -> Measurement:
        names = {f.name for f in dataclasses.fields(cls)}
        return cls(**{k: v for k, v in reply.items() if k in names})


class Ended(Exception):
    """The worker is gone: "crashed" or "timeout", and its last words."""

    def __init__(self, status: str, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


class Worker:
    """One process, started on first use and again after each crash or hang. Asked by one thread at a time."""

    def __init__(self, scratch: Path, name: str, hello: Mapping[str, Any]) -> None:
        self.restarts = 0
        self._hello = {**hello, "do": "hello", "scratch": str(scratch)}
        self._log = scratch / f"{name}.stderr"
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._prepared: dict[str, Any] | None = None

    def prepare(self, problem: Problem, target: Target) -> None:
        """Makes the problem's inputs and oracles, outside any candidate's time. Raises WorkerError."""
        request = {"do": "prepare", "problem": dataclasses.asdict(problem), "target": target.name}
        if self._process is not None and self._prepared == request:
            return
        doing = f"preparing inputs and oracle of {problem.op} {dict(problem.case)}"
        try:
            self.ask(request, PREPARE_SECONDS, doing)
        except Ended as ended:
            raise WorkerError(doing=doing, reason=ended.words) from ended
        self._prepared = request

    def ask(self, request: Mapping[str, Any], limit_s: float, doing: str) -> dict[str, Any]:
        """The answer to one request. Raises Ended."""
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            return self._reply(limit_s, doing)
        except BrokenPipeError:
            raise self._ended("crashed") from None
        except KeyboardInterrupt:
            self.stop()  # its answer, when it comes, would be taken for the next question's
            raise

    def kill(self) -> None:
        """Ends the process from another thread; the one that waits for an answer sees it end."""
        process = self._process
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Ends the process, whatever it is doing."""
        if self._process is not None:
            self.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None
        self._prepared = None

    def _start(self) -> None:
        root = str(Path(scanc.errors.__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
        with open(self._log, "wb") as log:
            # A session of its own: Ctrl-C reaches the parent alone, and killing the group takes compilers it started along.
            self._process = subprocess.Popen([sys.executable, "-m", "scanc.autotune.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             stderr=log, start_new_session=True, env=environment, bufsize=0)
        self._buffer = b""
        try:
            self.ask({**self._hello, "path": sys.path}, START_SECONDS, "starting")
        except Ended as ended:
            raise WorkerError(doing="starting", reason=ended.words) from ended

    def _reply(self, limit_s: float, doing: str) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        deadline = time.monotonic() + limit_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self._ended("timeout", f"no answer within {limit_s:.0f} s while {doing}")
                part = os.read(self._process.stdout.fileno(), 1 << 16)
                if not part:
                    raise self._ended("crashed")
                self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return dict(json.loads(line))

    def _ended(self, status: str, words: str = "") -> Ended:
        """Reaps the process and says how it ended."""
        process = self._process
        assert process is not None
        if status == "crashed":
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:  # it closed its pipe but goes on
                words = "it closed its pipe"
        code = process.poll()
        if not words:
            last = [line for line in self._log.read_bytes()[-4000:].decode(errors="replace").splitlines() if line.strip()]
            name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
            words = "; ".join([name, *last[-1:]])
        self.stop()
        self.restarts += 1
        return Ended(status, words)


class Measurer:
    """Workers that compile, check and time.

    ``compiler``  "module:function" with compile_graph's signature
    ``limit_s``   time limit of one candidate's compile and checks, and of its timing
    ``imports``   modules, or paths of ``.py`` files, that define ops of the user's own
    ``jobs``      workers that compile and check side by side: half of the cores, 8 at most, unless given
    """

    def __init__(self, *, compiler: str = COMPILER, limit_s: float = LIMIT_S, imports: Sequence[str] = (), jobs: int | None = None) -> None:
        self.limit_s = limit_s
        self.jobs = jobs if jobs is not None else max(1, min(MOST_JOBS, cpu_cores() // 2))
        self._scratch = tempfile.TemporaryDirectory(prefix="scanc-tune-")
        hello = {"compiler": compiler, "imports": list(imports)}
        # The first times, with every core; the others only check, and share them.
        shared = max(1, cpu_cores() // self.jobs)
        self.workers = [Worker(Path(self._scratch.name), f"worker{i}", {**hello, "threads": shared if i else 0}) for i in range(self.jobs)]

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers, whatever they are doing."""
        for worker in self.workers:
            worker.stop()
        self._scratch.cleanup()

    @property
    def restarts(self) -> int:
        return sum(w.restarts for w in self.workers)

    def prepare(self, problem: Problem, target: Target) -> None:
        """Makes the problem's inputs and oracles in the first worker; the others find the oracles on disk. Raises WorkerError."""
        self.workers[0].prepare(problem, target)

    def measure(self, problem: Problem, target: Target, schedule: Schedule, *, budget_ms: float = 50.0,
                give_up_ms: float | None = None) -> Measurement:
        """Compiles, screens, checks and times one candidate; it is "slow" once its first few timings are all above ``give_up_ms``."""
        return next(m for _, m in self.measure_all(problem, [(target, schedule)], budget_ms=budget_ms, give_up_ms=give_up_ms))

    def measure_all(self, problem: Problem, candidates: Sequence[tuple[Target, Schedule]], *, budget_ms: float = 50.0,
                    give_up_ms: float | None = None) -> Iterator[tuple[int, Measurement]]:
        """Every candidate's number and what became of it, as soon as that is known: failures first."""
        right = []
        for number, found in enumerate(self._check_all(problem, candidates)):
            if found.status == "ok":
                right.append((number, found))
            else:
                yield number, found
        for number, checked in right:
            request = {**_request("time", problem, *candidates[number]), "budget_ms": budget_ms, "give_up_ms": give_up_ms}
            timed = self._one(self.workers[0], problem, candidates[number][0], request)
            yield number, dataclasses.replace(timed, error=checked.error, detail=timed.detail or checked.detail,
                                              seconds=checked.seconds + timed.seconds)

    def _check_all(self, problem: Problem, candidates: Sequence[tuple[Target, Schedule]]) -> list[Measurement]:
        self.prepare(problem, candidates[0][0])
        if len(candidates) == 1 or self.jobs == 1:
            return [self._one(self.workers[0], problem, t, _request("check", problem, t, s)) for t, s in candidates]
        free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self.workers:
            free.put(worker)

        def check(target: Target, schedule: Schedule) -> Measurement:
            worker = free.get()
            try:
                return self._one(worker, problem, target, _request("check", problem, target, schedule))
            finally:
                free.put(worker)

        pool = ThreadPoolExecutor(self.jobs)
        try:
            return [f.result() for f in [pool.submit(check, t, s) for t, s in candidates]]
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in self.workers:
                worker.kill()
            raise
        finally:
            pool.shutdown()

    def _one(self, worker: Worker, problem: Problem, target: Target, request: Mapping[str, Any]) -> Measurement:
        worker.prepare(problem, target)
        began = time.perf_counter()
        try:
            return Measurement.of(worker.ask(request, self.limit_s, "measuring"))
        except Ended as ended:
            return Measurement(ended.status, detail=ended.words, seconds=time.perf_counter() - began)

    def compare(self, problem: Problem, candidates: Sequence[tuple[Target, Schedule]], *, budget_ms: float = 40.0,
                rounds: int = 5) -> list[Measurement] | None:
        """Times candidates that were found right, interleaved. None where the worker ended over it."""
        if not candidates:
            return []
        self.prepare(problem, candidates[0][0])
        request = {"do": "compare", "problem": dataclasses.asdict(problem), "budget_ms": budget_ms, "rounds": rounds,
                   "candidates": [[t.name, s.to_json()] for t, s in candidates]}
        try:
            reply = self.workers[0].ask(request, self.limit_s * len(candidates), "comparing")
        except Ended as ended:
            logger.warning("comparing %d schedules of %s ended early: %s", len(candidates), problem.op, ended.words)
            return None
        return [Measurement.of({"status": "ok", "conditions": reply["conditions"], "date": reply["date"], **t}) for t in reply["timings"]]


def _request(do: str, problem: Problem, target: Target, schedule: Schedule) -> dict[str, Any]:
    return {"do": do, "problem": dataclasses.asdict(problem), "target": target.name, "schedule": schedule.to_json()}
