"""What the chunked form recognises in a graph: what it is made of, and why it refuses what it refuses."""

from __future__ import annotations

import pytest
from jaxtyping import Float, Int
from torch import Tensor

import scanc.dsl as sc
from scanc.compiler import prepare
from scanc.errors import UnsupportedForm
from scanc.forms.choose import default_schedule, forms_of
from scanc.forms.chunked import ChunkPlan, describe_chunks
from scanc.forms.chunked_recognise import chunk_partition, chunk_plan
from scanc.ir import Node
from scanc.op import REGISTRY, Op
from scanc.ops.selective_scan import selective_scan
from scanc.problem import Problem
from scanc.schedule import ChunkedSchedule, RecurrentSchedule, schedule_from_json
from scanc.target import Target

SMALL = dict(b=2, l=40, h=4, p=5, n=6, g=2)


@sc.op
def attention(q: Float[Tensor, "b l h n"], k: Float[Tensor, "b l h n"], v: Float[Tensor, "b l h p"],
              log_decay: Float[Tensor, "h"]) -> Float[Tensor, "b l h p"]:
    """Linear attention with one decay a head, its keys after a function: nothing of it is named like Mamba-2's."""
    return sc.sum(q * sc.scan(sc.exp(log_decay), sc.relu(k) * v, axis="l"), "n")


@sc.op
def backwards(x: Float[Tensor, "b l h p"], g: Float[Tensor, "b l h"], k: Float[Tensor, "b l n"]) -> Float[Tensor, "b l h p"]:
    """A scan against time."""
    return sc.sum(k * sc.scan(sc.exp(g), x * k, axis="l", reverse=True), "n")


@sc.op
def retention(q: Float[Tensor, "b l h n"], k: Float[Tensor, "b l h n"], v: Float[Tensor, "b l h p"]) -> Float[Tensor, "b l h p"]:
    """A constant decay a head, known from its place: 1 - 2^(-5 - h)."""
    return sc.sum(q * sc.scan(sc.exp(sc.log1p(-sc.exp(-0.6931471805599453 * (5.0 + sc.index("h"))))), k * v, axis="l"), "n")


@sc.op
def per_key(q: Float[Tensor, "b l n"], k: Float[Tensor, "b l n"], v: Float[Tensor, "b l p"],
            g: Float[Tensor, "b l n"]) -> Float[Tensor, "b l p"]:
    return sc.sum(q * sc.scan(sc.exp(g), k * v, axis="l"), "n")


@sc.op
def two_keys(q: Float[Tensor, "b l n"], r: Float[Tensor, "b l n"], v: Float[Tensor, "b l p"],
             g: Float[Tensor, "b l n"]) -> tuple[Float[Tensor, "b l p"], Float[Tensor, "b l p"]]:
    h = sc.scan(sc.exp(g), q * v, axis="l")
    return sc.sum(q * h, "n"), sc.sum(r * h, "n")


@sc.op
def no_product(x: Float[Tensor, "b l h p"], k: Float[Tensor, "b l n"], g: Float[Tensor, "b l h"]) -> Float[Tensor, "b l h p"]:
    return sc.sum(sc.scan(sc.exp(g), x + k, axis="l"), "n")


@sc.op
def no_exponential(x: Float[Tensor, "b l h p"], k: Float[Tensor, "b l n"], a: Float[Tensor, "b l h"]) -> Float[Tensor, "b l h p"]:
    return sc.sum(k * sc.scan(a, x * k, axis="l"), "n")


@sc.op
def feedback(x: Float[Tensor, "b l h p"], k: Float[Tensor, "b l n"], g: Float[Tensor, "b l h"]) -> Float[Tensor, "b l h p"]:
    h = sc.scan(sc.exp(g), x * k, axis="l")
    return sc.sum(sc.tanh(h) * k, "n")


DEFINED = (attention, backwards, retention, per_key, two_keys, no_product, no_exponential, feedback)
OWN: tuple[Op, ...] = tuple(REGISTRY.pop(op.name) for op in DEFINED)


def plan_of(problem: Problem) -> ChunkPlan:
    return chunk_plan(chunk_partition(prepare(problem.graph())).kernel)


def op_plan(op: Op) -> ChunkPlan:
    return chunk_plan(chunk_partition(prepare(op.graph())).kernel)


def name(node: Node | None) -> str:
    return node.name or "" if node is not None else ""


def test_the_eight_lines_of_ssd() -> None:
    plan = plan_of(Problem.of("ssd", SMALL, "bfloat16"))
    (scan,), (read,) = plan.scans, plan.reads
    assert (plan.rows, plan.columns, plan.grid, plan.head, plan.mirrored, plan.walks) == ("p", "n", ("b", "h"), "h", False, True)
    assert (name(scan.input.weight), name(scan.input.rows), name(scan.input.columns), scan.back) == ("step", "x", "B", False)
    assert (read.kind, name(read.factor), read.of) == ("columns", "C", scan)
    assert plan.decay.axes == ("b", "l", "h") and plan.reset is None and plan.dtype == "bfloat16"
    assert {s.name: (s.gone, s.final) for s in plan.stores} == {"y": ((), False), "last_state": ((), True)}
    assert [n.name for n in plan.early] == ["step"]


def test_the_adjoint_is_recognised_by_the_same_rules() -> None:
    plan = plan_of(Problem.of("ssd", SMALL, "bfloat16", "backward", initial_states="given", cotangents="all"))
    back, forward = plan.scans
    assert back.back and not forward.back and back.initial is not None and forward.initial is not None
    assert (name(back.input.rows), name(back.input.columns), back.input.weight) == ("d_y", "C", None)
    assert [(r.kind, name(r.factor), r.of.back) for r in plan.reads if r.factor is not None] == [
        ("columns", "B", True), ("rows", "x", True), ("rows", "d_y", False)]
    (decay,) = (r for r in plan.reads if r.kind == "decay")
    assert decay.of is forward and decay.against is back and decay.node in plan.late
    (weight,) = (r for r in plan.reads if r.kind == "weight")  # not summed from d_x, which is rounded at every step
    assert weight.of is forward and weight.node in plan.late and weight.node not in plan.met
    gone = {s.name: s.gone for s in plan.stores}
    assert gone["d_B"] == gone["d_C"] == ("h",) and gone["d_A"] == gone["d_D"] == ("b", "l") and gone["d_x"] == gone["d_dt"] == ()
    late = {s.name for s in plan.stores if plan.comes_late(s)}
    assert late == {"d_dt", "d_A", "d_D", "d_dt_bias"} and not plan.walks


def test_resets_gates_and_skips() -> None:
    plan = plan_of(Problem.of("ssd", SMALL, "bfloat16", seq_idx="given", z="given"))
    assert plan.reset is not None and plan.reset.kind == "bool" and set(plan.reset.axes) == {"b", "l"}
    back = plan_of(Problem.of("ssd", SMALL, "bfloat16", "backward", seq_idx="given", z="given"))
    assert sorted(r.kind for r in back.reads) == ["columns", "columns", "decay", "rows", "rows", "weight"]
    assert back.dtype == "float32"  # the gate is stored so, and is a factor of the cotangent's rows


def test_other_members_of_the_class() -> None:
    plan = op_plan(attention)
    assert (plan.rows, plan.columns, plan.walks) == ("p", "n", True) and plan.decay.axes == ("h",)
    assert plan.scans[0].input.columns.op == "maximum" and plan.scans[0].input.weight is None
    mirrored = op_plan(backwards)
    assert mirrored.mirrored and mirrored.walks and not mirrored.scans[0].back


def test_decays_of_a_key() -> None:
    plan = op_plan(per_key)
    assert (plan.rows, plan.columns, plan.walks, plan.keyed) == ("p", "n", True, True) and set(plan.decay.axes) == {"b", "l", "n"}
    assert [name(f) for f in (*plan.earlier, *plan.later)] == ["k", "q"] and not op_plan(attention).keyed
    back = plan_of(Problem.of("gla", dict(b=1, l=9, h=2, n=4, p=3), pass_="backward"))
    assert sorted((r.kind, r.of.back) for r in back.reads) == [("columns", True), ("decay", False), ("rows", False), ("rows", True)]


@pytest.mark.parametrize(("op", "reason"), [
    (selective_scan, "varies over"), (two_keys, "several later columns"), (no_product, "outer product|no product"),
    (no_exponential, "exponential"), (feedback, "whole states|matrix product"),
], ids=lambda x: getattr(x, "name", ""))
def test_what_is_not_of_the_class_says_why(op: Op, reason: str) -> None:
    with pytest.raises(UnsupportedForm, match=reason):
        op_plan(op)
    assert "chunked" not in forms_of(op.graph())


def test_forms_and_defaults() -> None:
    graph = Problem.of("ssd", SMALL, "bfloat16").graph()
    assert "chunked" in forms_of(graph) and "chunked" in forms_of(Problem.of("ssd", SMALL, "bfloat16", "backward").graph())
    triton, cuda = Target.parse("cuda:sm_90:triton"), Target.parse("cuda:sm_90:cuda")
    big = dict(b=8, l=2048, h=80, p=64, n=128, g=1)
    assert isinstance(default_schedule(graph, triton, big), ChunkedSchedule)
    assert isinstance(default_schedule(graph, cuda, big), RecurrentSchedule)
    assert isinstance(default_schedule(graph, triton, big, form="recurrent"), RecurrentSchedule)
    few = default_schedule(graph, triton, {**big, "b": 1, "l": 1 << 16})
    assert isinstance(few, ChunkedSchedule) and 0 < few.segment < 1 << 16 and few.segment % few.chunk == 0
    backward = Problem.of("ssd", SMALL, "bfloat16", "backward").graph()
    spans = [default_schedule(backward, triton, {**big, **given}).to_json() for given in ({}, {"b": 1, "l": 512}, {"n": 16}, {"n": 256})]
    assert [s["span"] for s in spans] == [2, 1, 1, 2] and (spans[-1]["rows"], spans[-1]["warps"]) == (64, 4)
    sized = [default_schedule(graph, triton, {**big, **given}).to_json()["warps"] for given in ({"n": 256}, {"n": 200}, {"p": 32, "n": 64})]
    assert sized == [4, 8, 1]   # two tiles of columns; columns padded are one; few rows
    assert isinstance(default_schedule(selective_scan.graph(), triton, {}), RecurrentSchedule)


def test_schedules_check_themselves() -> None:
    schedule = ChunkedSchedule(chunk=128, segment=256, heads=2)
    assert schedule_from_json(schedule.to_json()) == schedule
    assert ChunkedSchedule(warps=8).order == ChunkedSchedule().order != ChunkedSchedule(chunk=32).order
    for wrong in (dict(chunk=8), dict(chunk=96), dict(rows=8), dict(segment=100), dict(pipeline=0), dict(total_walk=0), dict(registers=12)):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ChunkedSchedule(**wrong)


def test_described() -> None:
    text = describe_chunks(plan_of(Problem.of("ssd", SMALL, "bfloat16", "backward")))
    for words in ("programs: b h; rows p, columns n", "d_h: adjoint, carried back", "rows x ⊗ columns B", "store d_A[h]: sum over b, l"):
        assert words in text, text


@sc.op
def shifted(x: Float[Tensor, "b l h p"], k: Float[Tensor, "b l n"], g: Float[Tensor, "b l h"],
            seq_idx: Int[Tensor, "b l"]) -> Float[Tensor, "b l h p"]:
    """Looks back in time at an input, and forgets."""
    reset = (seq_idx != sc.shift(seq_idx, "l")) & (sc.index("l") != 0)
    return sc.sum(sc.shift(k, "l", 2) * sc.scan(sc.exp(g), x * k, axis="l", reset=reset), "n")


REGISTRY.pop("shifted")


def test_shifts_are_factors() -> None:
    plan = op_plan(shifted)
    assert plan.reads[0].factor is not None and plan.reads[0].factor.op == "shift" and plan.reset is not None
