"""The parent's side of measuring: a worker process that may crash or hang, started again when it does.

    with Measurer() as measurer:
        measurer.prepare(problem, target)
        found = measurer.measure(problem, target, schedule)     # found.status, found.ms, found.error

A candidate costs at most ``limit_s`` seconds and never more than itself: an abort or a silence ends the worker and becomes the
candidate's status.
"""

from __future__ import annotations

import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import scanc.errors
from scanc.errors import ScancError
from scanc.runtime import logger
from scanc.schedule import Schedule
from scanc.target import Target

if TYPE_CHECKING:
    from scanc.problem import Problem

COMPILER = "scanc.compiler:compile_graph"
# Importing torch and opening a device, and oracles of large problems, take this long at the very most.
START_SECONDS = 300.0
PREPARE_SECONDS = 900.0

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


class _Ended(Exception):
    """The worker is gone: "crashed" or "timeout", and its last words."""

    def __init__(self, status: str, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


class Measurer:
    """One worker process, started on first use and again after each crash or hang.

    ``compiler``  "module:function" with compile_graph's signature
    ``limit_s``   time limit of one candidate: compile, checks and timing together
    ``imports``   modules, or paths of ``.py`` files, that define ops of the user's own
    """

    def __init__(self, *, compiler: str = COMPILER, limit_s: float = 120.0, imports: Sequence[str] = ()) -> None:
        self.compiler = compiler
        self.limit_s = limit_s
        self.imports = list(imports)
        self.restarts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="scanc-tune-")
        self._log = Path(self._scratch.name) / "stderr"
        self._buffer = b""
        self._prepared: dict[str, Any] | None = None

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker, whatever it is doing."""
        self._stop()
        self._scratch.cleanup()

    # What is asked of the worker

    def prepare(self, problem: Problem, target: Target) -> None:
        """Makes the problem's inputs and oracles, outside any candidate's time. Raises WorkerError."""
        request = {"do": "prepare", "problem": dataclasses.asdict(problem), "target": target.name}
        if self._process is not None and self._prepared == request:
            return
        doing = f"preparing inputs and oracle of {problem.op} {dict(problem.case)}"
        try:
            self._ask(request, PREPARE_SECONDS, doing)
        except _Ended as ended:
            raise WorkerError(doing=doing, reason=ended.words) from ended
        self._prepared = request

    def measure(self, problem: Problem, target: Target, schedule: Schedule, *, budget_ms: float = 50.0,
                give_up_ms: float | None = None) -> Measurement:
        """Compiles, screens, checks and times one candidate. A single call slower than ``give_up_ms`` is not timed further."""
        self.prepare(problem, target)
        request = {"do": "measure", "problem": dataclasses.asdict(problem), "target": target.name, "schedule": schedule.to_json(),
                   "budget_ms": budget_ms, "give_up_ms": give_up_ms}
        began = time.perf_counter()
        try:
            return Measurement.of(self._ask(request, self.limit_s, "measuring"))
        except _Ended as ended:
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
            reply = self._ask(request, self.limit_s * len(candidates), "comparing")
        except _Ended as ended:
            logger.warning("comparing %d schedules of %s ended early: %s", len(candidates), problem.op, ended.words)
            return None
        return [Measurement.of({"status": "ok", "conditions": reply["conditions"], "date": reply["date"], **t}) for t in reply["timings"]]

    # The process

    def _ask(self, request: Mapping[str, Any], limit_s: float, doing: str) -> dict[str, Any]:
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            return self._reply(limit_s, doing)
        except BrokenPipeError:
            raise self._ended("crashed") from None
        except KeyboardInterrupt:
            self._stop()  # its answer, when it comes, would be taken for the next question's
            raise

    def _start(self) -> None:
        root = str(Path(scanc.errors.__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
        with open(self._log, "wb") as log:
            # A session of its own: Ctrl-C reaches the parent alone, and killing the group takes compilers it started along.
            self._process = subprocess.Popen([sys.executable, "-m", "scanc.autotune.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             stderr=log, start_new_session=True, env=environment, bufsize=0)
        self._buffer = b""
        hello = {"do": "hello", "path": sys.path, "imports": self.imports, "compiler": self.compiler, "scratch": self._scratch.name}
        try:
            self._ask(hello, START_SECONDS, "starting")
        except _Ended as ended:
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

    def _ended(self, status: str, words: str = "") -> _Ended:
        """Reaps the worker and says how it ended."""
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
        self._stop()
        self.restarts += 1
        return _Ended(status, words)

    def _stop(self) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None
        self._prepared = None
