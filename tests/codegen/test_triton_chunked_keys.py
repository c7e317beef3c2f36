"""Triton kernels of the form chunked where every key decays at its own pace: interpreted against the oracle, compiled for GPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

import scanc.dsl as sc
from scanc.codegen import build_triton
from scanc.codegen.triton_chunked_keyrun import KeyedExecutable
from scanc.compiler import default_schedule, program
from scanc.op import REGISTRY, Op
from scanc.problem import Problem
from scanc.schedule import ChunkedSchedule
from scanc.target import Target
from tests.checks import GRADIENT, RESULT, relative
from tests.codegen.kernels import agrees, registered

INTERPRET = Target.parse("cpu:interpret:triton")
PASSES = ("forward", "backward")
SMALL = ChunkedSchedule(chunk=16, rows=16)
STATES = {"forward": {"initial_state": "given"}, "backward": {"initial_state": "given", "cotangents": "all"}}


@sc.op
def grouped(q: Float[Tensor, "b l g n"], k: Float[Tensor, "b l g n"], v: Float[Tensor, "b l h p"], w: Float[Tensor, "b l h"],
            decay: Float[Tensor, "b l h n"], bias: Float[Tensor, "h n"], z: Float[Tensor, "b l h p"],
            seq_idx: Int[Tensor, "b l"]) -> Float[Tensor, "b l h p"]:
    """Keys that heads share, a weight a step, gates, resets, decays with a bias; its state's axes are named as its inputs are."""
    reset = (seq_idx != sc.shift(seq_idx, "l")) & (sc.index("l") != 0)
    h = sc.scan(sc.exp(-sc.softplus(decay + bias)), w * v * k, axis="l", reset=reset)
    return sc.sum(sc.relu(q) * h, "n") * sc.silu(z) + v


@sc.op
def against_time(q: Float[Tensor, "b l n"], k: Float[Tensor, "b l n"], v: Float[Tensor, "b l p"],
                 g: Float[Tensor, "b l n"]) -> Float[Tensor, "b l p"]:
    return sc.sum(q * sc.scan(sc.exp(-sc.square(g)), k * v, axis="l", reverse=True), "n")


@sc.op
def before_against_time(q: Float[Tensor, "b l n"], k: Float[Tensor, "b l n"], v: Float[Tensor, "b l p"], g: Float[Tensor, "b l n"],
                        s: Float[Tensor, "b n p"]) -> Float[Tensor, "b l p"]:
    """Read before the step, from the end on: the gradient of what it starts from has a part of the last step alone."""
    return sc.sum(q * sc.scan(sc.exp(-sc.square(g)), k * v, axis="l", reverse=True, initial=s, exclusive=True), "n")


OWN: tuple[Op, ...] = tuple(REGISTRY.pop(op.name) for op in (grouped, against_time, before_against_time))

own_ops = registered(*OWN)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(("length", "rows", "columns", "schedule"), [
    (1, 1, 1, SMALL), (63, 5, 20, SMALL), (130, 20, 3, ChunkedSchedule(chunk=64, rows=16)), (50, 17, 50, ChunkedSchedule(chunk=32)),
    (90, 33, 6, ChunkedSchedule(chunk=16, rows=16, segment=32)),
])
def test_lengths_and_sizes(pass_: str, length: int, rows: int, columns: int, schedule: ChunkedSchedule) -> None:
    agrees(Problem.of("gla", dict(b=1, l=length, h=2, p=rows, n=columns), pass_=pass_, **STATES[pass_]), INTERPRET, schedule)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(("length", "rows", "columns", "schedule"), [
    (1, 1, 1, SMALL), (63, 5, 20, SMALL), (50, 17, 50, ChunkedSchedule(chunk=32)),
    (90, 33, 6, ChunkedSchedule(chunk=16, rows=16, segment=32)),
])
def test_states_read_before_their_steps(pass_: str, length: int, rows: int, columns: int, schedule: ChunkedSchedule) -> None:
    agrees(Problem.of("rwkv6", dict(b=1, l=length, h=2, p=rows, n=columns), pass_=pass_, **STATES[pass_]), INTERPRET, schedule)


@pytest.mark.parametrize("length", [1, 2, 40])
def test_a_sum_that_only_the_last_step_adds_to(length: int) -> None:
    problem = Problem.of("before_against_time", dict(b=2, l=length, n=5, p=6), pass_="backward", cotangents="all")
    made = program(problem.graph(), INTERPRET, SMALL)
    assert [at for at, _ in made.parts.edges] == [-1]
    agrees(problem, INTERPRET, SMALL)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(("op", "decay"), [("gla", "g"), ("rwkv6", "w")])
@pytest.mark.parametrize("size", [30.0, 3000.0])
def test_chunks_that_forget(op: str, decay: str, size: float, pass_: str) -> None:
    """Too much for one product of a chunk: some columns' chunks, or all."""
    problem = Problem.of(op, dict(b=1, l=70, h=2, p=5, n=40), pass_=pass_)
    inputs = problem.inputs()
    inputs[decay] = inputs[decay] * torch.linspace(0.0, size, 40)
    found = program(problem.graph(), INTERPRET, ChunkedSchedule(chunk=32, rows=16))(inputs)
    for name, x in problem.oracle(inputs).items():
        assert relative(found[name], x) <= (RESULT if pass_ == "forward" else GRADIENT)[torch.float32], name


@pytest.mark.parametrize("length", [1000, 2049])
def test_many_chunks(length: int) -> None:
    agrees(Problem.of("gla", dict(b=1, l=length, h=1, p=4, n=4)), INTERPRET, ChunkedSchedule(chunk=128, rows=16))


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stored_in_sixteen_bits(pass_: str, dtype: str) -> None:
    agrees(Problem.of("gla", dict(b=1, l=33, h=2, p=16, n=16), dtype, pass_), INTERPRET, SMALL)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(("op", "decay"), [("gla", "g"), ("rwkv6", "w")])
def test_a_key_forgets_at_once_while_another_never_does(op: str, decay: str, pass_: str) -> None:
    """Logarithms of decays down to -1e4, and 0: no exponent is positive, nothing is 0 times infinity, no digit is lost."""
    problem = Problem.of(op, dict(b=1, l=100, h=2, p=5, n=12), pass_=pass_, **STATES[pass_])
    inputs = problem.inputs()
    g, chance = inputs[decay].clone(), torch.rand(inputs[decay].shape, generator=torch.Generator().manual_seed(1))
    g[chance < 0.3], g[chance > 0.6] = 0.0, -1e4
    g[..., 0], g[..., 1], g[..., 2] = 0.0, -1e4, -1e-6
    inputs[decay] = g
    found = program(problem.graph(), INTERPRET, ChunkedSchedule(chunk=32, rows=16))(inputs)
    for name, x in problem.oracle(inputs).items():
        assert torch.isfinite(found[name]).all()
        assert relative(found[name], x) <= (RESULT if pass_ == "forward" else GRADIENT)[torch.float32], name


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("op", OWN, ids=lambda op: op.name)
def test_other_members_of_the_class(op: Op, pass_: str) -> None:
    case = {a: size for a, size in dict(b=2, l=37, h=4, g=2, p=5, n=6).items() if op is grouped or a not in ("h", "g")}
    problem = Problem.of(op, case, pass_=pass_, **({"seq_idx": "given"} if op is grouped else {}))
    made = program(problem.graph(), INTERPRET, SMALL)
    assert isinstance(made, KeyedExecutable)
    inputs = problem.inputs()
    found = made(inputs)
    for name, x in problem.oracle(inputs).items():
        assert relative(found[name], x) <= GRADIENT[torch.float32], name


@pytest.mark.parametrize("target", ["cuda:sm_80:triton", "cuda:sm_90:triton", "hip:gfx942:triton"])
@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("op", ["gla", "rwkv6"])
def test_compiles_without_a_device(op: str, pass_: str, target: str) -> None:
    problem, named = Problem.of(op, dict(b=8, l=2048, h=16, p=128, n=64), "bfloat16", pass_), Target.parse(target)
    made = program(problem.graph(), named, default_schedule(problem.graph(), named, problem.sizes))
    assert isinstance(made, KeyedExecutable)
    for source in made.all_sources(made.shape_of(problem.sizes)):
        used: dict[str, Any] = build_triton.resources(source, named)
        assert used["shared"] <= named.shared_bytes, (source.name, used)


@pytest.mark.parametrize(("pass_", "kind"), [("forward", "pairs"), ("forward", "walk"), ("backward", "keys"), ("backward", "chunks")])
def test_text(pass_: str, kind: str, golden: Callable[[str, str], None]) -> None:
    problem = Problem.of("gla", dict(b=2, l=11, h=2, p=16, n=16), "bfloat16", pass_)
    made = program(problem.graph(), Target.parse("cuda:sm_80:triton"), ChunkedSchedule(chunk=16, rows=16))
    text = made.make(kind, made.shape_of(problem.sizes)).text
    golden(f"triton_chunked_keyed_{kind}.py", text[text.index("    matrix = " if kind == "keys" else "    Q: tl.constexpr"):])
