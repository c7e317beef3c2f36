"""The bench: every form and backend that runs here, checked against the oracle, timed, and set beside its floor and its rivals.

    rows = bench(["selective_scan"])            rows for perf/results, see perf/results.py

What is timed is what a user's call would run: the best schedule known for the shape, or the default where none was tuned.
A kernel that the checks find wrong gets a row with that status and no time.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from scanc import runtime
from scanc.autotune.check import BARS, Kernel, Prepared, Trial, as_trained, check, prepare, run, trials
from scanc.autotune.records import default_store, exact_axes, graph_key
from scanc.autotune.space import defaults
from scanc.compiler import compile_graph, default_schedule, forms_of
from scanc.dispatch import targets_of
from scanc.errors import ArgumentError, BackendUnavailable, CompileError, UnsupportedForm
from scanc.ir import Graph
from scanc.op import REGISTRY, Op
from scanc.perf.peers import Peer, anchor, anchors, peers_for, recorded_state
from scanc.perf.results import PASSES, SAME_RUN, Row
from scanc.perf.roofline import Ceilings, Floor, ceilings, floor_under
from scanc.perf.timing import Timing, calls_in_a_row, measure, measure_in_a_row
from scanc.problem import Problem
from scanc.schedule import Schedule
from scanc.target import Target

# Cases whose floor on a CPU is longer are a GPU's: rivals there would take minutes, and the oracle all the memory.
CPU_FLOOR_MS = 12.0
QUICK_FLOOR_MS = 0.5
# That choice is by the floor of a nominal processor: the same cases on a busy machine as on an idle one, and on the next.
NOMINAL_CPU = Ceilings(bytes=50e9, exps=11e9, flops=180e9, launch_ms=1e-3, source="nominal", shared=True)
STEP_BATCHES = {"cpu": (1, 16), "cuda": (1, 16, 128)}
BUDGET_MS = {False: 400.0, True: 60.0}
# A candidate expected to take so many times as long as the best so far is timed by one call, on the checks' small problems alone held
# against the oracle; and left out where that one call would take longer than so many milliseconds.
FAR_BEHIND = 50.0
# Up to so many milliseconds it is timed like any other: of so little, launches of the parts it is expected from are most.
SHORT_CALL_MS = 25.0
LONGEST_CALL_MS = 2000.0
# What is expected of a candidate is what a part of the time axis takes, times this.
PARTS = 16

Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Rival:
    """A rival's time for one problem, and whence: the same run, or the day it was recorded."""

    peer: str
    ms: float
    source: str


def bench(op_names: Sequence[str] = (), target: Target | None = None, quick: bool = False, *, passes: Sequence[str] | None = None,
          forms: Sequence[str] | None = None, dtypes: Sequence[str] | None = None, sweep: bool = False,
          tell: Tell | None = None) -> Iterator[Row]:
    """Rows of the ops named (all when none is), as they are measured.

    ``target``  one backend of this machine in place of all it has
    ``quick``   one small case of each op, timed briefly, no long-running rivals; of a sweep, every case
    ``passes``  some of forward, backward and step
    ``forms``   these forms alone
    ``dtypes``  in place of bfloat16 on a GPU and float32 on a CPU; of a sweep, these alone
    ``sweep``   every size at which a rival's time on this device is recorded, in place of the op's own cases
    ``tell``    called with a line before each problem
    """
    for name in op_names or sorted(REGISTRY):
        if name not in REGISTRY:
            raise ArgumentError(op=name, argument="op", value="unknown", limit=f"ops are {', '.join(sorted(REGISTRY))}",
                                remedy="`scanc list` shows them.")
        device = torch.device(target.device_type if target is not None else "cuda" if torch.cuda.is_available() else "cpu")
        targets = [target] if target is not None else usable_targets(device)
        op = REGISTRY[name]
        for problem in swept(op, device, passes, dtypes) if sweep else problems(op, device, quick, passes, dtypes):
            if tell is not None:
                tell(f"{problem.op} {problem.pass_} {' '.join(f'{a}={s}' for a, s in case_of(problem).items())} {problem.dtype}")
            yield from rows_of(problem, targets, device, quick, forms, recorded=sweep)


def usable_targets(device: str | torch.device) -> list[Target]:
    """Targets of this device whose compilers are here; the reference alone where there is none."""
    found = targets_of(torch.device(device))
    return list(found[:-1] or found)


# -- what to run --------------------------------------------------------------------------------------------------------------


def problems(op: Op, device: torch.device, quick: bool, passes: Sequence[str] | None = None,
             dtypes: Sequence[str] | None = None) -> list[Problem]:
    """The op's cases in every pass it has, at sizes that suit the device."""
    found: list[Problem] = []
    for dtype, pass_ in itertools.product(dtypes or ("bfloat16" if device.type == "cuda" else "float32",), passes or PASSES):
        if pass_ == "step" and not (op.has_step and "step" in forms_of_op(op)):
            continue
        cases = _steps(op, device, dtype) if pass_ == "step" else [Problem.of(op, case, dtype, pass_) for case in op.cases]
        cases.sort(key=nominal_ms)
        limit = QUICK_FLOOR_MS if quick else CPU_FLOOR_MS
        if quick:
            cases = cases[:1]
        if device.type == "cpu":
            cases = [p for p in cases if nominal_ms(p) <= limit] or [shrunk(p, limit) for p in cases[:1]]
        found += cases
    return found


def swept(op: Op, device: torch.device, passes: Sequence[str] | None = None, dtypes: Sequence[str] | None = None) -> list[Problem]:
    """A problem for each size of the op at which a rival's time on this device is recorded."""
    recorded = [r for r in anchors(runtime.device_name(device.type)) if r["op"] == op.name and r["pass"] in (passes or PASSES)]
    found = [Problem.of(op, r["case"], r["dtype"], r["pass"]) for r in recorded if r["dtype"] in (dtypes or (r["dtype"],))]
    return sorted(dict.fromkeys(found), key=lambda p: (PASSES.index(p.pass_), nominal_ms(p)))


def forms_of_op(op: Op) -> tuple[str, ...]:
    """The forms an op has when its optional inputs are left out, the initial state excepted: a step needs that, and no other."""
    return forms_of(op.graph(without=tuple(a.name for a in op.arguments if a.optional and not a.name.startswith("initial_state"))))


def _step_cases(op: Op, device: torch.device) -> list[dict[str, int]]:
    """Every case at one position of time, for the batches that decoding is done at."""
    time = op.graph().time
    found = []
    for case in op.cases:
        for batch in STEP_BATCHES[device.type] if "b" in case else (0,):
            made = {a: 1 if a == time else batch if a == "b" else s for a, s in case.items()}
            if made not in found:
                found.append(made)
    return found


def _steps(op: Op, device: torch.device, dtype: str) -> list[Problem]:
    """The steps to time; the state in the dtype that a rival's was recorded with, where one was."""
    name, time_axis = runtime.device_name(device), op.graph().time
    found = []
    for case in _step_cases(op, device):
        state = recorded_state(name, op.name, {a: s for a, s in case.items() if a != time_axis}, dtype)
        found.append(Problem.of(op, case, dtype, "step", **({} if state == "float32" else {"state": state})))
    return found


def nominal_ms(problem: Problem) -> float:
    """How large a problem is, in milliseconds of a processor's floor."""
    return floor_under(problem.graph(), problem.sizes, getattr(torch, problem.dtype), NOMINAL_CPU).ms


def shrunk(problem: Problem, limit: float) -> Problem:
    """The problem with its time halved until its nominal floor is below ``limit`` milliseconds, 64 steps at the least."""
    time = problem.forward_graph().time
    while problem.sizes.get(time, 0) > 64 and nominal_ms(problem) > limit:
        problem = problem.with_case(**{time: problem.sizes[time] // 2})
    return problem


@functools.cache
def floor_of(problem: Problem, device: torch.device) -> Floor:
    return floor_under(problem.graph(), problem.sizes, getattr(torch, problem.dtype), ceilings(device))


def case_of(problem: Problem) -> dict[str, int]:
    """The case as result files key it: in the op's order of axes, without time where the pass is a step."""
    graph = problem.forward_graph()
    return {a: problem.sizes[a] for a in graph.order if a in problem.sizes and not (problem.pass_ == "step" and a == graph.time)}


# -- running it ---------------------------------------------------------------------------------------------------------------


def best_schedule(problem: Problem, graph: Graph, target: Target, form: str) -> tuple[Schedule, bool]:
    """The best schedule known of this form, and whether it was tuned."""
    found = default_store().lookup(
        device=runtime.device_name(target.device_type), op=problem.op, pass_=problem.pass_, key=graph_key(graph), dtype=problem.dtype,
        case=problem.sizes, exact=exact_axes(graph), time=graph.time, target=target, forms=(form,),
        default=functools.partial(default_schedule, graph))
    return (found, True) if found is not None else (default_schedule(graph, target, problem.sizes, form), False)


@dataclasses.dataclass(frozen=True)
class Judged:
    """A kernel held against the oracle. ``status`` is ok, wrong or failed (it did not compile); ``reason`` says why it is not ok.

    ``behind`` says that others are so much faster that one call is time enough.
    """

    target: Target
    form: str
    schedule: Schedule | None
    tuned: bool
    status: str
    executable: Kernel | None = None
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    reason: str = ""
    behind: bool = False

    @property
    def error(self) -> float | None:
        """The largest relative error of any result in any check; None where none is a number."""
        return max((e for e in self.errors.values() if math.isfinite(e)), default=None)


@dataclasses.dataclass
class Pace:
    """How fast the problem's kernels are: the best time so far, and what is to be expected of the next."""

    problem: Problem
    graph: Graph
    inputs: Mapping[str, Tensor]
    device: torch.device
    best: float = math.inf

    def expected(self, kernel: Kernel) -> float:
        """Milliseconds a call is expected to take, from one part of the time axis; 0 where there is none to cut."""
        time_axis = self.graph.time
        steps = self.problem.sizes.get(time_axis, 1) // PARTS
        if steps < 1:
            return 0.0
        part = {k: self._first(v, self.graph.input(k).axes, time_axis, steps) for k, v in self.inputs.items() if self.graph.has_input(k)}
        part = as_trained(kernel, part)
        run(kernel, part, self.graph)
        return PARTS * self.once(lambda: run(kernel, part, self.graph))

    def once(self, call: Callable[[], object]) -> float:
        """Milliseconds of one call by the clock."""
        self._wait()
        start = time.perf_counter()
        call()
        self._wait()
        return 1e3 * (time.perf_counter() - start)

    def far_behind(self, ms: float) -> bool:
        return ms > max(FAR_BEHIND * self.best, SHORT_CALL_MS)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @staticmethod
    def _first(x: Tensor, axes: Sequence[str], axis: str, steps: int) -> Tensor:
        return x.narrow(list(axes).index(axis), 0, steps).contiguous() if axis in axes else x.clone()


def judged(graph: Graph, problem: Problem, targets: Iterable[Target], prepared: list[Prepared],
           pace: Pace | None = None, wanted: Sequence[str] | None = None) -> Iterator[Judged]:
    """Every kernel there is for the problem (of the ``wanted`` forms), checked; with ``pace`` those expected to be fastest first."""
    found: list[tuple[float, Judged]] = []
    for target in targets:
        forms = ["reference"] if target.backend == "reference" else list(defaults(graph, target, problem.sizes))
        for form in (f for f in forms if wanted is None or f in wanted):
            schedule, tuned = best_schedule(problem, graph, target, form) if target.backend != "reference" else (None, False)
            made = Judged(target, form, schedule, tuned, "ok")
            try:
                made = dataclasses.replace(made, executable=compile_graph(graph, target, schedule))
                found.append((pace.expected(made.executable) if pace is not None and made.executable is not None else 0.0, made))
            except (UnsupportedForm, BackendUnavailable) as error:
                runtime.logger.info("%s", error)  # this form or backend has no kernel for the graph: nothing failed
            except CompileError as error:
                yield dataclasses.replace(made, status="failed", reason=str(error), executable=None)
    for ms, made in sorted(found, key=lambda each: each[0]):
        assert made.executable is not None
        behind = pace is not None and pace.far_behind(ms)
        if behind and ms > LONGEST_CALL_MS:
            runtime.logger.info("%s %s, form %s on %s is left out: a call would take about %.0f ms", problem.op, problem.pass_, made.form,
                                made.target, ms)
            continue
        try:
            verdict = check(made.executable, [p for p in prepared if not (behind and p.trial.whole)], graph)
        except (UnsupportedForm, BackendUnavailable) as error:
            runtime.logger.info("%s", error)
            continue
        except CompileError as error:
            yield dataclasses.replace(made, status="failed", reason=str(error), executable=None)
            continue
        status = "ok" if verdict.right else "wrong"
        yield dataclasses.replace(made, status=status, errors=verdict.errors, reason=verdict.reason, behind=behind)


def rows_of(problem: Problem, targets: Iterable[Target], device: torch.device, quick: bool,
            forms: Sequence[str] | None = None, recorded: bool = False) -> Iterator[Row]:
    """One row a kernel and rival; one a kernel where there is no rival. ``recorded``: beside the recorded rival alone."""
    graph = problem.graph()
    inputs = problem.inputs(device)
    prepared = [prepare(t, graph, device, inputs=inputs) if t.whole else _prepared(t, device) for t in trials(problem, graph)]
    rivals = [] if recorded else list(find_rivals(problem, prepared[0], inputs, device, quick))
    rivals += [r for r in recorded_rival(problem, device) if r.peer not in {timed.peer for timed in rivals}]
    least = floor_of(problem, device)
    pace = Pace(problem, graph, inputs, device)
    for found in judged(graph, problem, targets, prepared, pace, forms):
        row: Row = {
            "op": problem.op, "case": case_of(problem), "dtype": problem.dtype, "pass": problem.pass_, "form": found.form,
            "backend": found.target.backend, "schedule": found.schedule.to_json() if found.schedule is not None else None,
            "tuned": found.tuned, "ms": None, "ms_p10": None, "ms_p90": None, "floor_ms": least.ms, "bound": least.bound,
            "peer": None, "peer_ms": None, "peer_source": None, "error": found.error, "status": found.status}
        if found.executable is None or found.status != "ok":
            runtime.logger.warning("%s %s, form %s on %s is %s: %s", problem.op, problem.pass_, found.form, found.target, found.status,
                                   found.reason)
            yield row
            continue
        timing = _time(found.executable, inputs, graph, device, quick, pace if found.behind else None)
        pace.best = min(pace.best, timing.ms)
        row |= {"ms": timing.ms, "ms_p10": timing.ms_p10, "ms_p90": timing.ms_p90}
        yield from ({**row, "peer": r.peer, "peer_ms": r.ms, "peer_source": r.source} for r in rivals) if rivals else (row,)


@functools.lru_cache(maxsize=64)
def _prepared(trial: Trial, device: torch.device) -> Prepared:
    """A small trial, which problems of many sizes share."""
    return prepare(trial, trial.problem.graph(), device)


def _time(executable: Kernel, inputs: Mapping[str, Tensor], graph: Graph, device: torch.device, quick: bool,
          once: Pace | None = None) -> Timing:
    def call(own: Mapping[str, Tensor]) -> Callable[[], object]:
        held = as_trained(executable, own)
        return lambda: run(executable, held, graph)

    if once is not None:
        far_behind = call(_copied(inputs, graph))
        far_behind()  # whatever is compiled for these sizes alone is not its time
        return Timing.of([once.once(far_behind)])
    return _timed(call, inputs, graph, device, quick)


def _timed(call: Callable[[Mapping[str, Tensor]], Callable[[], object]], inputs: Mapping[str, Tensor], graph: Graph, device: torch.device,
           quick: bool, warmup: int = 2) -> Timing:
    """The time of what ``call`` makes of the inputs. Decode steps on a GPU, which overwrite their state, are timed in a row."""
    overwritten = sum(inputs[k].numel() * inputs[k].element_size() for k in set(graph.inplace.values()))
    if overwritten and device.type == "cuda":
        calls = [call(_copied(inputs, graph)) for _ in range(calls_in_a_row(overwritten, device))]
        return measure_in_a_row(calls, device, budget_ms=BUDGET_MS[quick])
    return measure(call(_copied(inputs, graph)), device, warmup=warmup, budget_ms=BUDGET_MS[quick])


def _copied(inputs: Mapping[str, Tensor], graph: Graph) -> dict[str, Tensor]:
    """What is overwritten is a copy, so that the problem's inputs stay as they were."""
    overwritten = set(graph.inplace.values())
    return {k: v.clone() if k in overwritten else v for k, v in inputs.items()}


# -- rivals -------------------------------------------------------------------------------------------------------------------


def find_rivals(problem: Problem, short: Prepared, inputs: Mapping[str, Tensor], device: torch.device, quick: bool) -> Iterator[Rival]:
    """Rivals timed now on the same inputs.

    ``short`` is a small problem with its oracle, on which a rival shows that it computes the same thing.
    """
    for peer in peers_for(problem.op, problem.pass_, device.type):
        wrong = _disagrees(peer, short, device)
        if wrong:
            runtime.logger.warning("%s is no rival for %s %s: %s", peer.name, problem.op, problem.pass_, wrong)
            continue
        timing = _time_peer(peer, problem, inputs, device, quick)
        if timing is not None:
            yield Rival(peer.name, timing.ms, SAME_RUN)


def recorded_rival(problem: Problem, device: torch.device) -> Iterator[Rival]:
    """The fastest rival recorded on this device, where there is one."""
    found = anchor(runtime.device_name(device), problem.op, case_of(problem), problem.dtype, problem.pass_, problem.state)
    if found is not None:
        yield Rival(found.peer, found.ms, f"recorded {found.date}")


def _peer_call(peer: Peer, problem: Problem, inputs: Mapping[str, Tensor], device: torch.device) -> Callable[[], dict[str, Tensor]]:
    """A rival takes the op's own inputs, those that the graph of the pass has no use for included."""
    given, options = problem.call(device)
    return peer.call(inputs if problem.pass_ == "step" else {**given, **inputs}, options, problem.pass_)


def _time_peer(peer: Peer, problem: Problem, inputs: Mapping[str, Tensor], device: torch.device, quick: bool) -> Timing | None:
    """The rival's time; None where it runs out of memory."""
    try:
        return _timed(lambda own: _peer_call(peer, problem, own, device), inputs, problem.graph(), device, quick, warmup=1)
    except torch.OutOfMemoryError:
        runtime.logger.info("%s runs out of memory on %s %s", peer.name, problem.op, case_of(problem))
        return None


def _disagrees(peer: Peer, short: Prepared, device: torch.device) -> str:
    """Why the rival's results are not the oracle's, "" when they are. Ten times our own bar: rivals round more often."""
    problem, oracle = short.trial.problem, short.oracle or {}
    copies = {k: v.clone() for k, v in short.inputs.items()}
    found = _peer_call(peer, problem, copies, device)()
    shared = [name for name in oracle if name in found]
    if not shared:
        return "it gives none of the results"
    bar = 10 * max(BARS.get(problem.dtype, BARS["float32"]))
    for name, error in problem.errors({k: found[k] for k in shared}, {k: oracle[k] for k in shared}).items():
        if not error <= bar:
            return f"'{name}' differs by {error:.2g}"
    return ""


__all__ = ["Judged", "Rival", "bench", "find_rivals", "judged", "problems", "recorded_rival", "rows_of", "usable_targets"]
