"""A short convolution in a scan's prologue: one kernel makes what the scan reads, whichever backend and form prints it."""

from __future__ import annotations

import pytest
from jaxtyping import Float
from torch import Tensor

import scanc.dsl as sc
from scanc.codegen import build_cuda, build_triton
from scanc.codegen.triton_chunked_run import ChunkedExecutable
from scanc.compiler import Executable, default_schedule, prepare, program
from scanc.forms.chunked_recognise import chunk_partition
from scanc.op import REGISTRY, Op
from scanc.problem import Problem
from scanc.schedule import ChunkedSchedule, RecurrentSchedule, Schedule
from scanc.target import Target
from tests.codegen import emulate
from tests.codegen.kernels import agrees, registered

CPP, CUDA, INTERPRET = (Target.parse(t) for t in ("cpu:native:cpp", "cuda:sm_90:cuda", "cpu:interpret:triton"))


@sc.op
def convolved_scan(x: Float[Tensor, "b d l"], w0: Float[Tensor, "d"], w1: Float[Tensor, "d"], w2: Float[Tensor, "d"],
                   w3: Float[Tensor, "d"], bias: Float[Tensor, "d"], delta: Float[Tensor, "b d l"], A: Float[Tensor, "d n"],
                   B: Float[Tensor, "b g n l"], C: Float[Tensor, "b g n l"], D: Float[Tensor, "d"],
                   z: Float[Tensor, "b d l"]) -> Float[Tensor, "b d l"]:
    """Mamba's convolution and scan, with Δ, B and C given."""
    u = w0 * x + bias
    for lag, w in enumerate((w1, w2, w3), start=1):
        u = u + w * sc.shift(x, "l", lag)
    u = sc.silu(u)
    a, b = sc.discretize(sc.softplus(delta), A, B, method="mamba")
    h = sc.scan(a, b * u, axis="l")
    return (sc.sum(C * h, "n") + D * u) * sc.silu(z)


@sc.op
def convolved_ssd(x: Float[Tensor, "b l h p"], dt: Float[Tensor, "b l h"], A: Float[Tensor, "h"], B: Float[Tensor, "b l g n"],
                  C: Float[Tensor, "b l g n"], x0: Float[Tensor, "h p"], x1: Float[Tensor, "h p"], B0: Float[Tensor, "g n"],
                  B1: Float[Tensor, "g n"], C0: Float[Tensor, "g n"], C1: Float[Tensor, "g n"]) -> Float[Tensor, "b l h p"]:
    """Mamba-2's: x, B and C are convolved, two taps each."""
    u, key, query = (sc.silu(now * v + before * sc.shift(v, "l", 1)) for v, now, before in ((x, x0, x1), (B, B0, B1), (C, C0, C1)))
    h = sc.scan(sc.exp(dt * A), dt * u * key, axis="l")
    return sc.sum(query * h, "n")


@sc.op
def four_taps(x: Float[Tensor, "b l h p"], dt: Float[Tensor, "b l h"], B: Float[Tensor, "b l g n"], C: Float[Tensor, "b l g n"],
              xw: Float[Tensor, "h p"], Bw: Float[Tensor, "g n"], Cw: Float[Tensor, "g n"]) -> Float[Tensor, "b l h p"]:
    """The same with as many looks back as Mamba-2 has."""
    looks = ((x, xw), (B, Bw), (C, Cw))
    u, key, query = (sc.silu(v + w * (sc.shift(v, "l", 1) + sc.shift(v, "l", 2) + sc.shift(v, "l", 3))) for v, w in looks)
    step = sc.softplus(dt)
    return sc.sum(query * sc.scan(sc.exp(-step), step * u * key, axis="l"), "n")


# Other tests list the package's ops alone.
OWN: tuple[Op, ...] = tuple(REGISTRY.pop(op.name) for op in (convolved_scan, convolved_ssd, four_taps))
SMALL = RecurrentSchedule(lanes=4, tile=8, history=4)
CASES: dict[str, tuple[Target, Schedule]] = {"cpp": (CPP, SMALL), "cuda": (CUDA, RecurrentSchedule(lanes=4, split=2, tile=8, history=4)),
                                             "segments": (CPP, RecurrentSchedule(lanes=4, tile=8, history=4, segment=16)),
                                             "triton": (INTERPRET, RecurrentSchedule(lanes=4, tile=1, history=4))}  # fmt: skip

own_ops = registered(*OWN)


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_cuda, "available", lambda: True)
    monkeypatch.setattr(build_cuda, "load", emulate.load)
    on_cpu = Problem.inputs
    monkeypatch.setattr(Problem, "inputs", lambda self, device="cpu", seed=0: on_cpu(self, "cpu", seed))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("where", CASES)
@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_of_a_selective_scan(pass_: str, where: str) -> None:
    problem = Problem.of("convolved_scan", dict(b=1, d=6, l=21, n=3, g=1), pass_=pass_)
    agrees(problem, *CASES[where])
    if pass_ == "forward":
        parts = Executable(problem.graph(), *CASES[where]).parts
        assert parts.before is None and parts.after is None, "what the scan reads does not go through memory"


def test_of_a_chunked_scan() -> None:
    problem = Problem.of("convolved_ssd", dict(b=1, l=37, h=2, p=16, g=1, n=16))
    agrees(problem, INTERPRET, ChunkedSchedule(chunk=16))
    parts = chunk_partition(prepare(problem.graph()))
    assert parts.before is None and parts.after is None
    assert default_schedule(problem.graph(), Target.parse("cuda:sm_90:triton"), problem.sizes).form == "chunked"


@pytest.mark.parametrize("arch", ["sm_90", "sm_120"])
@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_looks_back_take_shared_memory(pass_: str, arch: str) -> None:
    """Every look is a tile of its own, as many chunks ahead as the schedule says: defaults fit 227 KB, and 99."""
    target = Target("cuda", arch, "triton")
    problem = Problem.of("four_taps", dict(b=1, l=4096, h=16, p=64, g=1, n=128), "bfloat16", pass_)
    schedule = default_schedule(problem.graph(), target, problem.sizes)
    made = program(problem.graph(), target, schedule)
    assert isinstance(made, ChunkedExecutable)
    main = [s for s in made.all_sources(made.shape_of(problem.sizes)) if s.name.split("_")[-1] in ("walk", "states1", "totals")]
    assert main
    for source in main[-1:]:
        used = build_triton.resources(source, target)
        assert used["shared"] <= target.shared_bytes, f"{source.name}: {schedule}"
