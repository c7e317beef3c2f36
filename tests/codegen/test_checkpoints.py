"""Checkpoints that a forward leaves and its backward resumes from: kernels in the emulator, alone and through torch's autograd."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import profile

from scanc import compiler, dispatch
from scanc.autotune.check import as_trained
from scanc.codegen import build_cuda, in_place
from scanc.codegen.layout import Mode, geometry
from scanc.compiler import Executable, program
from scanc.errors import ScheduleError
from scanc.op import REGISTRY
from scanc.ops import linear_recurrence, selective_scan
from scanc.ops.dropin.selective_scan_interface import selective_scan_fn
from scanc.problem import Problem
from scanc.schedule import ChunkedSchedule, RecurrentSchedule
from scanc.target import Target
from tests.codegen import emulate
from tests.codegen.kernels import OWN

HOPPER = Target.parse("cuda:sm_90:cuda")
EXACT = 2e-5  # ‖gradient − oracle‖ / ‖oracle‖ in float32
ALL = {"cotangents": "all"}
STARTED = {"initial_state": "given", **ALL}


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    for op in OWN:
        monkeypatch.setitem(REGISTRY, op.name, op)
    monkeypatch.setattr(build_cuda, "available", lambda: True)
    monkeypatch.setattr(build_cuda, "load", emulate.load)


S = RecurrentSchedule
CASES: dict[str, tuple[str, dict[str, int], dict[str, Any], RecurrentSchedule, RecurrentSchedule]] = {
    "one tile in a forward's, padded states": ("selective_scan", dict(b=2, d=7, l=29, n=3, g=1), STARTED,
                                               S(lanes=4, split=2, tile=16, history=4), S(lanes=4, split=2, tile=8, history=4)),
    "several tiles of a forward between two": ("selective_scan", dict(b=1, d=20, l=50, n=4, g=2), ALL,
                                               S(lanes=16, tile=8, history=4), S(lanes=8, split=2, tile=16, history=4, walk=2)),
    "segments in both": ("selective_scan", dict(b=2, d=20, l=75, n=4), {"seq_idx": "given", **STARTED},
                         S(lanes=8, split=2, tile=16, history=16, segment=32), S(lanes=16, split=2, tile=16, history=8, segment=32)),
    "sums through shared memory, in segments": ("selective_scan", dict(b=1, d=20, l=140, n=8), STARTED,
                                                S(lanes=16, split=2, tile=32, history=8, segment=64, helpers=2, blocks=1),
                                                S(lanes=16, split=2, tile=16, history=8)),
    "spans of a lane's time": ("selective_scan", dict(b=2, d=20, l=77, n=4, g=2), STARTED,
                               S(lanes=6, split=2, tile=128, span=8), S(lanes=16, split=2, tile=16, history=8)),
    "tiles between two checkpoints": ("selective_scan", dict(b=2, d=20, l=101, n=4, g=2), ALL,
                                      S(lanes=16, tile=16, history=4), S(lanes=8, split=2, tile=8, history=4, walk=2, interval=32)),
    "no state axis": ("linear_recurrence", dict(b=2, d=37, l=70), STARTED,
                      S(lanes=16, tile=16, history=8), S(lanes=16, split=2, tile=16, history=8)),
    "complex": ("spin", dict(b=2, d=19, l=37, n=5), ALL, S(lanes=8, split=2, tile=8, history=8), S(lanes=8, split=2, tile=16, history=4)),
}


@pytest.mark.parametrize("name", list(CASES))
def test_a_backward_from_what_the_forward_left(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, case, options, first, second = CASES[name]
    ahead, back = (Problem.of(op, case, pass_=pass_, **options) for pass_ in ("forward", "backward"))
    forward, backward = Executable(ahead.graph(), HOPPER, first), Executable(back.graph(), HOPPER, second)
    assert backward.interval == (second.interval or second.tile) and forward.leaves_for(backward)
    inputs = back.inputs()
    made = forward({k: inputs[k] for k in (str(n.name) for n in forward.graph.inputs)}, mode=Mode(leaves=backward.interval))
    left = {k: v for k, v in made.items() if k.startswith("checkpoint")}
    assert left.keys() == backward.checkpoints(inputs).keys()
    assert sum(v.numel() * v.element_size() for v in left.values()) == backward.checkpoint_bytes(back.sizes)
    found = backward({**inputs, **left}, mode=Mode(resumes=True))
    for result, error in back.errors(found, back.oracle(inputs)).items():
        assert error <= EXACT, f"{result}: {error:.2e}"
    # What the states are is read and not made: other ones give other gradients.
    wrong = backward({**inputs, **{k: -v for k, v in left.items()}}, mode=Mode(resumes=True))
    assert max(back.errors(wrong, back.oracle(inputs)).values()) > 100 * EXACT
    # The same bits in whichever order threads are taken up.
    monkeypatch.setattr(build_cuda, "load", functools.partial(emulate.load, backwards=True))
    again = Executable(back.graph(), HOPPER, second)({**inputs, **left}, mode=Mode(resumes=True))
    for result in found:
        assert torch.equal(found[result], again[result]), result


# By name: sizes, schedule, and of how many tiles sums lie in one place; 0 where they have memory of their own.
IN_PLACE: dict[str, tuple[dict[str, int], RecurrentSchedule, int]] = {
    "groups": (dict(b=2, d=128, l=76, n=4, g=2), S(lanes=32, split=2, tile=16, history=8), 1),
    "lane tiles one after another, segments, padded states": (dict(b=2, d=96, l=76, n=3), S(lanes=32, split=2, tile=16, history=8, walk=2,
                                                                                          segment=32), 1),
    "two tiles' sums beside each other, sums over time in the place of others": (
        dict(b=1, d=128, l=76, n=8), S(lanes=32, split=2, tile=8, history=4, segment=48), 2),
    "the same, of groups and lane tiles one after another": (
        dict(b=1, d=256, l=256, n=4, g=2), S(lanes=32, split=2, tile=8, history=8, walk=2, segment=64), 2),
    "added up as they come": (dict(b=1, d=128, l=52, n=36), S(lanes=32, split=16, tile=16, history=4), 1),
    "blocks of few lanes that add up in clusters": (dict(b=2, d=128, l=76, n=4, g=2),
                                                    S(lanes=8, split=2, tile=16, history=8, cluster=4), 1),
    "clusters of lane tiles one after another, segments, padded states": (
        dict(b=1, d=128, l=76, n=3), S(lanes=16, split=2, tile=16, history=4, walk=2, segment=32, cluster=2), 1),
    "tiles between two checkpoints beside each other, sums over time": (
        dict(b=1, d=128, l=64, n=4), S(lanes=32, split=2, tile=8, history=4, interval=16, segment=32, cluster=2), 4),
    "sums over time as far as there is room": (dict(b=1, d=128, l=64, n=4), S(lanes=64, split=2, tile=16, history=8, segment=32), 2),
    "the same in a cluster, added up as they come": (dict(b=1, d=128, l=44, n=36),
                                                     S(lanes=16, split=16, tile=8, history=4, interval=16, cluster=4), 2),
    "states in no fours": (dict(b=1, d=128, l=256, n=6), S(lanes=32, split=2, tile=16, history=8, segment=64), 1),
    "too few lanes at the end": (dict(b=2, d=70, l=76, n=3), S(lanes=32, split=2, tile=16, history=8), 0),
    "too few lanes": (dict(b=2, d=64, l=76, n=4), S(lanes=16, split=2, tile=16, history=8), 0),
    "steps in no fours": (dict(b=2, d=64, l=77, n=4), S(lanes=32, split=2, tile=16, history=8), 0),
    "one part, written as it is": (dict(b=2, d=32, l=76, n=4), S(lanes=32, split=2, tile=16, history=8), 0),
}


@pytest.mark.parametrize("name", list(IN_PLACE))
def test_sums_over_lanes_in_the_place_of_checkpoints(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, schedule, beside = IN_PLACE[name]
    back = Problem.of("selective_scan", case, pass_="backward", **ALL)
    backward, inputs = Executable(back.graph(), HOPPER, schedule), back.inputs()
    left = backward.checkpoints(inputs)
    before = {k: v.clone() for k, v in left.items()}
    apart = backward({**inputs, **left}, mode=Mode(resumes=True))
    assert all(torch.equal(before[k], v) for k, v in left.items())
    again = {k: v.clone() for k, v in left.items()}
    found = backward({**inputs, **left}, mode=Mode(resumes=True, consumes=1))
    assert any(not torch.equal(before[k], v) for k, v in left.items()) == (beside > 0)
    assert max(s.mode.consumes for s in backward.sources) == beside
    for result in found:  # the same sums in the same order
        assert torch.equal(found[result], apart[result]), result
    assert max(back.errors(found, back.oracle(inputs)).values()) <= EXACT
    if beside:
        monkeypatch.setattr(build_cuda, "load", functools.partial(emulate.load, backwards=True))
        other = Executable(back.graph(), HOPPER, schedule)({**inputs, **again}, mode=Mode(resumes=True, consumes=1))
        assert all(torch.equal(found[k], other[k]) for k in found)


def test_a_cluster_has_as_many_lane_tiles_in_each_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    back = Problem.of("selective_scan", dict(b=1, d=192, l=52, n=4), pass_="backward", **ALL)
    wanted = {96: 2, 128: 8, 192: 4, 200: 1}
    for lanes, cluster in wanted.items():
        sizes = {**back.sizes, "d": lanes, "g": 1}
        backward = Executable(back.graph(), HOPPER, S(lanes=16, split=2, tile=16, history=8, cluster=8))
        assert geometry(backward.plan, backward.schedule, sizes, 16).cluster == cluster
    few = Executable(back.graph(), HOPPER, S(lanes=16, split=2, tile=16, history=2, cluster=2))
    with pytest.raises(ScheduleError, match="'cluster' is 2"):
        few.source(4)
    with pytest.raises(ScheduleError, match="cluster"):
        S(cluster=3)
    older = Target.parse("cuda:sm_80:cuda")
    with pytest.raises(ScheduleError, match="no clusters"):
        build_cuda.build(Executable(back.graph(), older, S(lanes=16, split=2, tile=16, history=8, cluster=2)).source(4), older)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("groups", [1, 2])
def test_summaries_in_the_memory_of_results(groups: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments' summaries, and what they are combined to, lie where results come later: the same bits as with memory of their own."""
    lent: list[bool] = []

    def watched(*arguments: Any) -> Any:
        made = in_place.lend(*arguments)
        lent.append(all(made))
        return made

    monkeypatch.setattr(compiler, "lend", watched)
    back = Problem.of("selective_scan", dict(b=2, d=64 * groups, l=76, n=4, g=groups), dtype, "backward", **ALL)
    backward, inputs = Executable(back.graph(), HOPPER, S(lanes=32, split=2, tile=16, history=8, segment=32)), back.inputs()
    left = backward.checkpoints(inputs)
    apart = backward({**inputs, **left}, mode=Mode(resumes=True, consumes=0))
    found = backward({**inputs, **left}, mode=Mode(resumes=True, consumes=1))
    assert lent == [False, True]  # a summary's last steps are half a segment, which the carries of four states fit
    assert [(s.mode.combines, s.mode.consumes) for s in backward.sources] == [(True, 0), (False, 1)]
    assert all(torch.equal(apart[k], found[k]) for k in apart)
    assert max(back.errors(found, back.oracle(inputs)).values()) <= (EXACT if dtype == "float32" else 1e-2)


def test_carries_that_do_not_fit_have_memory_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last segment has four steps, eight bytes of each result in bfloat16, where a lane's sixteen carries take 64."""
    back = Problem.of("selective_scan", dict(b=1, d=64, l=68, n=16), "bfloat16", "backward", **ALL)
    backward, inputs = Executable(back.graph(), HOPPER, S(lanes=32, split=4, tile=16, history=8, segment=32)), back.inputs()
    left = backward.checkpoints(inputs)
    found = backward({**inputs, **left}, mode=Mode(resumes=True, consumes=1))
    assert backward.sources[-1].mode.entries and not backward.sources[-1].mode.combines
    assert max(back.errors(found, back.oracle(inputs)).values()) <= 1e-2


def test_what_can_leave_none() -> None:
    problem = Problem.of("selective_scan", dict(b=1, d=8, l=32, n=4), pass_="backward")
    backward = Executable(problem.graph(), HOPPER, S(lanes=8, tile=16, history=4))
    forward = Problem.of("selective_scan", dict(b=1, d=8, l=32, n=4)).graph()
    assert Executable(forward, HOPPER, S(lanes=8, tile=32, history=16)).leaves_for(backward)
    often = Executable(problem.graph(), HOPPER, S(lanes=8, tile=4, history=4))
    assert not Executable(forward, HOPPER, S(lanes=8, tile=32, history=16)).leaves_for(often)  # 16 steps are walked at once
    assert not Executable(forward, Target.parse("cpu:native:cpp"), S(lanes=8, tile=16, history=4)).leaves_for(backward)
    back_in_time = Executable(Problem.of("selective_scan", dict(b=1, d=8, l=32, n=4), reverse=True).graph(), HOPPER, S(lanes=8, tile=16))
    assert not back_in_time.leaves_for(backward)


def test_the_chunked_form_leaves_none_and_needs_none() -> None:
    ahead, back = (Problem.of("ssd", dict(b=1, l=64, h=2, p=16, n=16, g=1), pass_=pass_) for pass_ in ("forward", "backward"))
    chunks = ChunkedSchedule(chunk=16, rows=16)
    forward, backward = (program(p.graph(), Target.parse("cuda:sm_90:triton"), chunks) for p in (ahead, back))
    recurrent = Executable(back.graph(), HOPPER, S(lanes=8, split=8, tile=16, history=4))
    assert recurrent.interval and not forward.leaves_for(recurrent) and not forward.leaves_for(backward)
    assert backward.interval == 0 and as_trained(backward, inputs := back.inputs()) == inputs


def test_a_backward_is_timed_and_checked_as_it_runs_in_training() -> None:
    def left(n: int) -> bool:
        problem = Problem.of("selective_scan", dict(b=1, d=128, l=128, n=n, g=1), "bfloat16", "backward", initial_state=None)
        kernel = Executable(problem.graph(), HOPPER, S(lanes=32, split=8, tile=32, history=4))
        kernel.checkpoints = lambda inputs: {"checkpoint0": torch.empty(0)}  # type: ignore[method-assign]
        return "checkpoint0" in as_trained(kernel, problem.inputs())

    assert left(16) and not left(128)  # a forward leaves none where they would be several times its inputs


class Modes:
    """Which modes programs were bound in, as they run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, Mode]] = []
        bind = Executable.bind

        def watched(program: Executable, mode: Mode = Mode()) -> Any:  # noqa: B008 - Mode is frozen
            bound = bind(program, mode)

            def run(inputs: Any, into: Any) -> Any:
                self.seen.append((program.graph.name, mode))
                return bound(inputs, into)

            return run

        monkeypatch.setattr(Executable, "bind", watched)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Modes:
    """CPU tensors served as a GPU's are: by the emulated kernels."""
    monkeypatch.setattr(dispatch, "targets_of", lambda device: (HOPPER, Target("cpu", "native", "reference")))
    monkeypatch.setattr(dispatch, "_tuned", lambda *_: None)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # compiled graphs would outlive the emulated device
    for op in (selective_scan, linear_recurrence):  # as if never called before, and what is made here is forgotten
        for memory in ("_routes", "_made"):
            monkeypatch.setattr(op._registered.dispatch, memory, {})
    return Modes(monkeypatch)


def gradients(x: dict[str, Tensor], y: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.autograd.grad((y * torch.randn_like(y)).sum(), [t for t in x.values() if t.requires_grad]))


@pytest.mark.parametrize("how", ["float32", "autocast", "profiled", "aot_eager", "inductor"])
def test_training_leaves_and_resumes(how: str, on_gpu: Modes) -> None:
    """Also where torch has a say in the call: autocast, its profiler, its compiler."""
    x = {k: v.requires_grad_() for k, v in Problem.of("selective_scan", dict(b=1, d=40, l=100, n=16)).inputs().items()}
    call = compiled(how) if how in ("aot_eager", "inductor") else selective_scan
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"), profile() if how == "profiled" else nullcontext():
        y, _ = call(**x, delta_softplus=True)
        found = gradients(x, y.float())
    assert [(name, bool(mode.leaves), mode.resumes) for name, mode in on_gpu.seen if mode != Mode(summary=True)] == [
        ("selective_scan", True, False), ("selective_scan_backward", False, True)]
    wanted = gradients(x, selective_scan.reference(**x, delta_softplus=True)[0])
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).norm() <= (2e-2 if how == "autocast" else EXACT) * b.norm()


def compiled(backend: str, **options: Any) -> Callable[..., Any]:
    torch.compiler.reset()
    return torch.compile(selective_scan, fullgraph=True, backend=backend, **options)


def test_open_sizes_leave_nothing(on_gpu: Modes) -> None:
    x = {k: v.requires_grad_() for k, v in Problem.of("selective_scan", dict(b=2, d=40, l=100, n=16)).inputs().items()}
    found = gradients(x, compiled("aot_eager", dynamic=True)(**x, delta_softplus=True)[0])
    assert {(mode.leaves, mode.resumes) for _, mode in on_gpu.seen} == {(0, False)}
    for a, b in zip(found, gradients(x, selective_scan.reference(**x, delta_softplus=True)[0]), strict=True):
        assert (a - b).norm() <= EXACT * b.norm()


@pytest.mark.parametrize("call", ["op", "drop-in"])
def test_a_graph_that_is_kept_keeps_its_checkpoints(call: str, on_gpu: Modes) -> None:
    """Its last backward alone may write over them."""
    x = {k: v.requires_grad_() for k, v in Problem.of("selective_scan", dict(b=1, d=128, l=260, n=16)).inputs().items()}
    given = [x[k] for k in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")]
    y = selective_scan(**x, delta_softplus=True)[0] if call == "op" else selective_scan_fn(*given, True)
    found = [torch.autograd.grad(y.sum(), list(x.values()), retain_graph=keep) for keep in (True, True, False)]
    assert [mode.consumes for name, mode in on_gpu.seen if mode.resumes] == [0, 0, 1]
    for again in found[1:]:
        assert {name: torch.equal(a, b) for name, a, b in zip(x, found[0], again, strict=True)} == dict.fromkeys(x, True)


def test_what_would_cost_too_much_is_not_left(on_gpu: Modes) -> None:
    x = {k: v.requires_grad_() for k, v in Problem.of("selective_scan", dict(b=1, d=40, l=100, n=128)).inputs().items()}
    gradients(x, selective_scan(**x)[0])
    assert not any(mode.leaves or mode.resumes for _, mode in on_gpu.seen)


def test_gradients_of_gradients_after_checkpoints(on_gpu: Modes) -> None:
    x = {k: v.requires_grad_() for k, v in Problem.of("linear_recurrence", dict(b=1, d=40, l=100)).inputs().items()}

    def second(y: Tensor) -> list[Tensor]:
        first = torch.autograd.grad(y.square().sum(), list(x.values()), create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), list(x.values())))

    found = second(linear_recurrence(**x)[0])
    for a, b in zip(found, second(linear_recurrence.reference(**x)[0]), strict=True):
        assert (a - b).norm() <= 10 * EXACT * b.norm()


def test_no_gradient_no_checkpoint(on_gpu: Modes) -> None:
    x = Problem.of("linear_recurrence", dict(b=1, d=40, l=100)).inputs()
    linear_recurrence(**x)
    with torch.no_grad():
        linear_recurrence(**{k: v.requires_grad_() for k, v in x.items()})
    assert {mode.leaves for _, mode in on_gpu.seen} == {0}
