"""CUDA C++ kernels on the GPU that is here, against the oracle: every op, pass and dtype, at lengths and widths that fit no tile."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scanc.codegen import build_cuda
from scanc.codegen.layout import Mode
from scanc.compiler import Executable, default_schedule
from scanc.errors import ScheduleError
from scanc.ops import selective_scan
from scanc.problem import Problem
from scanc.schedule import RecurrentSchedule, StepSchedule
from scanc.target import Target
from tests.codegen.kernels import OWN, agrees, executable, registered

PLAIN = Mode()
DTYPES = ("float32", "bfloat16", "float16")
CASES = {
    "selective_scan": dict(b=2, d=37, n=16, g=1),
    "linear_recurrence": dict(b=3, d=130),
    "ssd": dict(b=2, h=6, p=17, n=24, g=2),
}


def here() -> Target:
    """The CUDA C++ target of the current device."""
    major, minor = torch.cuda.get_device_capability()
    return Target("cuda", f"sm_{major}{minor}", "cuda")

own_ops = registered(*OWN)


@pytest.mark.parametrize("length", [1, 63, 1000, 2049])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize("name", list(CASES))
def test_matrix(name: str, pass_: str, dtype: str, length: int) -> None:
    agrees(Problem.of(name, {**CASES[name], "l": length}, dtype, pass_), here(), None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(CASES))
def test_step(name: str, dtype: str) -> None:
    problem = Problem.of(name, {**CASES[name], "l": 1}, dtype, "step")
    agrees(problem, here(), default_schedule(problem.graph(), here(), problem.sizes))
    agrees(problem, here(), StepSchedule(lanes=16, split=2))


@pytest.mark.parametrize("state", [16, 24])
def test_step_of_rows_one_after_another(state: int) -> None:
    problem = Problem.of("selective_scan", dict(b=7, d=150, l=1, n=state, g=2), "bfloat16", "step")
    agrees(problem, here(), StepSchedule(lanes=64, split=2, walk=4))


@pytest.mark.parametrize("schedule", [
    RecurrentSchedule(lanes=32, split=2, tile=32, history=8),
    RecurrentSchedule(lanes=32, split=4, tile=32, history=8),
    RecurrentSchedule(lanes=16, split=16, tile=64, history=8, walk=3),
    RecurrentSchedule(lanes=64, split=4, tile=32, history=4),
    RecurrentSchedule(lanes=32, split=2, tile=64, history=4, segment=256),
    RecurrentSchedule(lanes=128, split=8, tile=8, history=4, walk=2),
    RecurrentSchedule(lanes=8, split=8, tile=16, history=16, segment=128, walk=2),
    RecurrentSchedule(lanes=32, tile=32, history=2),
    RecurrentSchedule(lanes=32, split=4, tile=32, history=8, polynomial=4),
    RecurrentSchedule(lanes=8, split=4, tile=16, history=4, stages=1, interval=64, segment=256),
], ids=str)
@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_schedules(pass_: str, schedule: RecurrentSchedule) -> None:
    given: dict[str, Any] = {"initial_state": "given", "seq_idx": "given", "cotangents": "all"}
    for more in ({}, {"reverse": True}):
        agrees(Problem.of("selective_scan", dict(b=2, d=200, l=777, n=16, g=2), pass_=pass_, **given, **more), here(), schedule)


@pytest.mark.parametrize(("schedule", "state"), [
    (RecurrentSchedule(lanes=8, split=16, tile=32, history=8, stages=1, cluster=8), 16),
    (RecurrentSchedule(lanes=32, split=4, tile=32, history=4, stages=1, cluster=2, segment=256), 16),
    (RecurrentSchedule(lanes=16, split=4, tile=16, history=4, stages=1, cluster=8, interval=64), 32),
], ids=str)
def test_clusters(schedule: RecurrentSchedule, state: int) -> None:
    """Blocks that add up d_B and d_C together: recomputing, resumed, and in the place of checkpoints, with the same bits as beside them."""
    if here().capability < 90:
        with pytest.raises(ScheduleError, match="no clusters"):
            agrees(Problem.of("selective_scan", dict(b=2, d=256, l=777, n=state, g=2), pass_="backward"), here(), schedule)
        return
    for more in ({"initial_state": "given", "seq_idx": "given"}, {"reverse": True}):
        agrees(Problem.of("selective_scan", dict(b=2, d=256, l=777, n=state, g=2), pass_="backward", **more), here(), schedule)
    problem = Problem.of("selective_scan", dict(b=2, d=256, l=768, n=state, g=1), "bfloat16", "backward")
    program, inputs = executable(problem, here(), schedule), problem.inputs("cuda")
    left = program.checkpoints(inputs)
    found, last = (program({**inputs, **{k: v.clone() for k, v in left.items()}}, mode=Mode(resumes=True, consumes=c)) for c in (0, 1))
    assert max(s.mode.consumes for s in program.sources) > 0
    wanted = problem.oracle(inputs)
    for name, error in problem.errors(found, wanted).items():
        assert error <= 1e-2 and torch.equal(found[name], last[name]), name


@pytest.mark.parametrize("schedule", [
    RecurrentSchedule(lanes=8, split=8, tile=128, history=16, helpers=4),
    RecurrentSchedule(lanes=64, split=4, tile=64, history=8, blocks=1, helpers=4),
    RecurrentSchedule(lanes=128, split=1, tile=32, history=4, stages=1, blocks=2, helpers=3),
    RecurrentSchedule(lanes=16, split=4, tile=64, history=16, segment=256, helpers=1),
    RecurrentSchedule(lanes=32, split=16, tile=32, history=16, walk=2, helpers=2),
], ids=str)
def test_helpers(schedule: RecurrentSchedule) -> None:
    for dtype, length, more in (("bfloat16", 768, {}), ("float32", 777, {}), ("bfloat16", 777, {"reverse": True})):
        agrees(Problem.of("selective_scan", dict(b=2, d=200, l=length, n=16, g=2), dtype, initial_state="given", **more), here(), schedule)


@pytest.mark.parametrize("schedule", [
    RecurrentSchedule(lanes=12, split=2, tile=256, span=16, stages=1),
    RecurrentSchedule(lanes=12, split=2, tile=128, span=16),
    RecurrentSchedule(lanes=16, tile=256, span=16),
    RecurrentSchedule(lanes=64, tile=128, span=16, blocks=1),
    RecurrentSchedule(lanes=64, tile=32, span=8, blocks=2),
    RecurrentSchedule(lanes=6, split=4, tile=256, span=16),
], ids=str)
def test_spans(schedule: RecurrentSchedule) -> None:
    for dtype, length in (("bfloat16", 768), ("float32", 777), ("float16", 1024)):
        agrees(Problem.of("selective_scan", dict(b=2, d=192, l=length, n=16, g=2), dtype, initial_state="given"), here(), schedule)


@pytest.mark.parametrize("count", [7, build_cuda.MOST_COMBINED, build_cuda.MOST_COMBINED + 1])
@pytest.mark.parametrize("name", ["selective_scan", "spin", "linear_recurrence"])
def test_segments(name: str, count: int) -> None:
    """Few segments' summaries are combined by the kernel that needs them, those of many before it; what all of them sum is added up."""
    for pass_ in ("forward", "backward"):
        problem = Problem.of(name, dict(b=2, d=70, l=32 * count - 5, n=16, g=1) if name == "selective_scan" else
                             dict(b=2, d=70, l=32 * count - 5, n=5), pass_=pass_)
        schedule = RecurrentSchedule(lanes=32, split=1 if name == "linear_recurrence" else 4, tile=16, history=4, segment=32)
        program, inputs = executable(problem, here(), schedule), problem.inputs("cuda")
        agrees(problem, here(), schedule)
        assert program.launches(inputs, PLAIN).kernel.source.mode.combines == (count <= build_cuda.MOST_COMBINED)


@pytest.mark.parametrize("pass_", ["forward", "backward"])
@pytest.mark.parametrize("name", ["spin", "ahead", "chain"])
def test_unusual_ops(name: str, pass_: str) -> None:
    problem = Problem.of(name, dict(b=2, d=70, l=300, n=5), pass_=pass_)
    agrees(problem, here(), RecurrentSchedule(lanes=32, split=2, tile=16, history=4))


@pytest.mark.parametrize("pass_, case", [("forward", dict(b=2, d=1024, l=1024, n=16)), ("backward", dict(b=2, d=1024, l=1024, n=16)),
                                         ("forward", dict(b=1, d=1536, l=2048, n=16))], ids=str)
def test_a_large_shape_many_times(pass_: str, case: dict[str, int]) -> None:
    """Right at a shape of the models, and the same bits every time: a race would show."""
    problem = Problem.of("selective_scan", case, "bfloat16", pass_)
    agrees(problem, here(), None)
    program, inputs = executable(problem, here(), None), problem.inputs("cuda")
    first = program(inputs)
    for _ in range(10):
        again = program(inputs)
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_any_strides() -> None:
    problem = Problem.of("linear_recurrence", dict(b=2, d=200, l=301), "bfloat16")
    program, inputs = executable(problem, here(), None), problem.inputs("cuda")
    across = {k: v.transpose(1, 2).contiguous().transpose(1, 2) for k, v in inputs.items()}
    skewed = {k: torch.nn.functional.pad(v, (3, 2))[:, :, 3:-2] for k, v in inputs.items()}
    wide = {k: v[:, :, :1].expand(2, 200, 301) for k, v in inputs.items()}
    for given in (inputs, across, skewed, wide, inputs | {"a": across["a"]}):
        assert all(e < 4e-3 for e in problem.errors(program(given), problem.oracle(given)).values())


def test_a_step_in_a_cuda_graph_reads_and_writes_its_state() -> None:
    problem = Problem.of("selective_scan", dict(b=4, d=96, l=1, n=16), "bfloat16", "step")
    program, inputs = executable(problem, here(), None), problem.inputs("cuda")
    state = inputs["initial_state"]
    start = state.clone()
    program(inputs, into={"last_state": state})   # compiles and loads, which a capture must not
    wanted = state.clone()
    state.copy_(start)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        program(inputs, into={"last_state": state})
    state.copy_(start)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(state, wanted) and not torch.equal(state, start)
    graph.replay()
    torch.cuda.synchronize()
    assert not torch.equal(state, wanted)


def test_runs_on_the_stream_of_the_caller() -> None:
    problem = Problem.of("linear_recurrence", dict(b=2, d=64, l=4096))
    program, inputs = executable(problem, here(), None), problem.inputs("cuda")
    wanted = program(inputs)["h"]
    torch.cuda.synchronize()
    stream, late = torch.cuda.Stream(), {k: torch.zeros_like(v) for k, v in inputs.items()}
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        for name, value in inputs.items():
            late[name].copy_(value)
        found = program(late)["h"]
    stream.synchronize()
    assert torch.equal(found, wanted)


def test_a_damaged_cubin_is_set_aside_and_made_again(caplog: pytest.LogCaptureFixture) -> None:
    problem = Problem.of("linear_recurrence", dict(b=1, d=40, l=50))
    schedule = RecurrentSchedule(lanes=8, tile=8)
    program = executable(problem, here(), schedule)
    path = build_cuda.build(program.source(1), here())
    path.write_bytes(path.read_bytes()[:200])
    with caplog.at_level("WARNING", logger="scanc"):
        agrees(problem, here(), schedule)
    assert path.with_name(path.name + ".damaged").exists() and "damaged" in caplog.text


@pytest.mark.parametrize(("mode", "share"), [(PLAIN, 0.26), (Mode(resumes=True), 0.15), (Mode(resumes=True, consumes=1), 0.01)],
                         ids=["recomputed", "resumed", "resumed for the last time"])
@pytest.mark.parametrize("case", [dict(b=2, d=4096, l=2048), dict(b=1, d=1536, l=2048)])
def test_a_backward_needs_little_memory(case: dict[str, int], mode: Mode, share: float) -> None:
    """At its peak the results and a share of inputs, outputs and gradients: u, delta, z, y and theirs, B, C and theirs, checkpoints.

    15 %, or more where the blocks that fill the device once need it; next to nothing where checkpoints may be written over. Counted is what
    was asked for: of a block that torch keeps it hands out up to a mebibyte more.
    """
    problem = Problem.of("selective_scan", case | {"n": 16, "g": 1}, "bfloat16", "backward")
    inputs, program = problem.inputs("cuda"), executable(problem, here(), None)
    inputs |= program.checkpoints(inputs) if mode.resumes else {}
    program(inputs, mode=mode)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    results = program(inputs, mode=mode)
    torch.cuda.synchronize()
    peak = torch.cuda.memory_stats()["requested_bytes.all.peak"]
    added = peak - before - sum(x.numel() * x.element_size() for x in results.values())
    tensors = [*inputs.values(), *results.values(), inputs["d_y"]]
    assert 0 <= added <= share * sum(x.numel() * x.element_size() for x in tensors)


def test_training_leaves_checkpoints_and_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through autograd, with and without autocast: gradients within the bars of the reference's, the same bits every time."""
    problem = Problem.of("selective_scan", dict(b=2, d=256, l=1000, n=16, g=1))
    x = {k: v.cuda().requires_grad_() for k, v in problem.inputs().items()}
    resumed: list[bool] = []
    bind = Executable.bind

    def watched(program: Executable, mode: Mode = PLAIN) -> Any:
        resumed.append(mode.resumes)
        return bind(program, mode)

    monkeypatch.setattr(Executable, "bind", watched)

    def gradients(half: bool) -> tuple[torch.Tensor, ...]:
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            y, _ = selective_scan(**x, delta_softplus=True)
        return torch.autograd.grad(y.float().square().sum(), list(x.values()))

    wanted = torch.autograd.grad(selective_scan.reference(**x, delta_softplus=True)[0].square().sum(), list(x.values()))
    for half, bar in ((False, 2e-5), (True, 2e-2)):
        found, again = gradients(half), gradients(half)
        for a, b, c in zip(found, again, wanted, strict=True):
            assert torch.equal(a, b) and (a - c).norm() <= bar * c.norm()
    assert any(resumed)


@pytest.mark.parametrize("case", [dict(b=2, d=256, l=1000), dict(b=1, d=1536, l=2048), dict(b=1, d=2560, l=1024),
                                  dict(b=1, d=768, l=128)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_graph_that_is_kept_keeps_its_checkpoints(case: dict[str, int], dtype: str) -> None:
    """The same bits from backwards that may not write over them, held against the oracle elsewhere, and from the last, which may."""
    problem = Problem.of("selective_scan", case | {"n": 16, "g": 1}, dtype)
    x = {k: v.cuda().requires_grad_() for k, v in problem.inputs().items()}
    y = selective_scan(**x, delta_softplus=True)[0].float().square().sum()
    found = [torch.autograd.grad(y, list(x.values()), retain_graph=keep) for keep in (True, True, False)]
    for name, first, second, last in zip(x, *found, strict=True):
        assert first.isfinite().all() and first.any() and torch.equal(first, second) and torch.equal(first, last), name
