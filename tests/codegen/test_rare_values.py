"""Values few kernels hold, on every backend: positions along groups, complex shifts, conditions and whole numbers, groups in segments."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import pytest
import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

import scanc.dsl as sc
from scanc.codegen import build_cuda, build_triton
from scanc.compiler import Executable
from scanc.ir import Graph
from scanc.op import REGISTRY, Op
from scanc.passes.backward import backward
from scanc.passes.specialize import specialize
from scanc.problem import Problem
from scanc.reference import evaluate
from scanc.schedule import AssociativeSchedule, RecurrentSchedule, Schedule
from scanc.target import Target
from tests.checks import GRADIENT, RESULT, close, normal
from tests.codegen import emulate
from tests.codegen.kernels import source_of

BACKENDS: dict[str, tuple[str, Schedule, Schedule]] = {
    # name: (target, a schedule, one with segments)
    "cpp": ("cpu:native:cpp", RecurrentSchedule(lanes=4, tile=4, history=4), RecurrentSchedule(lanes=4, tile=4, history=4, segment=4)),
    "cuda": ("cuda:sm_90:cuda", RecurrentSchedule(lanes=2, split=2, tile=4, history=2),
             RecurrentSchedule(lanes=4, tile=4, history=2, segment=4)),
    "triton": ("cpu:interpret:triton", RecurrentSchedule(lanes=2, tile=1, history=4),
               RecurrentSchedule(lanes=4, tile=1, history=2, segment=4)),
    "associative": ("cpu:interpret:triton", AssociativeSchedule(lanes=2, tile=4), AssociativeSchedule(lanes=2, tile=4, segment=4)),
}
SIZES = dict(b=2, d=6, l=9, n=3, g=3, h=4, p=3, k=2)
DTYPES = {"real": "float32", "complex": "complex64", "int": "int32", "bool": "bool"}


@pytest.fixture(params=list(BACKENDS))
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(build_cuda, "load", emulate.load)
    return str(request.param)


def sample(graph: Graph, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Numbers for what is not given: transitions ``a`` inside the unit circle, the rest standard normal."""
    made = dict(given)
    for i, node in enumerate(graph.inputs):
        if node.name not in made:
            x = normal(*(SIZES[a] for a in node.axes), seed=i, dtype=getattr(torch, DTYPES[node.kind]))
            made[str(node.name)] = x.sigmoid() if node.name == "a" else x
    return made


def run(graph: Graph, given: Mapping[str, Tensor], name: str, segments: bool) -> tuple[Executable, dict[str, Tensor], dict[str, Tensor]]:
    """The program, what it makes and what the oracle makes, held against each other."""
    target, whole, cut = BACKENDS[name]
    graph = specialize(graph, {str(n.name): DTYPES[n.kind] for n in graph.inputs})
    inputs = sample(graph, given)
    program = Executable(graph, Target.parse(target), cut if segments else whole)
    found, wanted = program(inputs), evaluate(graph, inputs, dtype=torch.float64)
    for key, truth in wanted.items():
        bars = GRADIENT if key.startswith("d_") else RESULT
        if truth.is_complex() or truth.is_floating_point():
            close(found[key], truth, bars, f"{graph.name} {key}")
            assert bool(truth.any())
        else:
            assert found[key].dtype == (torch.bool if truth.dtype == torch.bool else torch.int32), key
            assert torch.equal(found[key].to(truth.dtype), truth), key
    return program, found, wanted


def agrees(
    op: Op, name: str, given: Mapping[str, Tensor] | None = None, *, segments: bool = False, gradients: bool = True
) -> dict[str, Tensor]:
    """Forward and backward of every result are the oracle's; gives the forward's results."""
    forward = op.graph()
    _, made, _ = run(forward, given or {}, name, segments)
    if not gradients:
        return made
    whole = tuple(str(n.name) for n in forward.inputs if n.kind in ("real", "complex"))
    heard = tuple(o.name for o in forward.outputs if o.node.kind in ("real", "complex"))
    run(backward(forward, whole, heard), given or {}, name, segments)
    return made


def named(x: object) -> str:
    return str(getattr(x, "name", x))


# -- positions ------------------------------------------------------------------------------------------------------------------


@sc.op
def group_of_lanes(
    a: Float[Tensor, "b d l"], x: Float[Tensor, "b d l"], B: Float[Tensor, "b g n l"], C: Float[Tensor, "b g n l"]
) -> tuple[Float[Tensor, "b d l"], Float[Tensor, "b d n"]]:
    """The group's number before, at and after the state."""
    place = (1.0 + sc.index("g")) / sc.size("g")
    h = sc.scan(a * place, x * place * B, axis="l")
    return sc.sum(C * h, "n") + sc.where(sc.index("g") >= 1, x, -x), sc.last(h, "l")


@sc.op
def group_of_heads(
    a: Float[Tensor, "b l h"], x: Float[Tensor, "b l h p"], B: Float[Tensor, "b l g n"], C: Float[Tensor, "b l g n"]
) -> tuple[Float[Tensor, "b l h p"], Float[Tensor, "b h p n"]]:
    """The same where the grouped axis is not the innermost: a program has one index of it."""
    place = (1.0 + sc.index("g")) / sc.size("g")
    h = sc.scan(a * place, x * place * B, axis="l")
    return sc.sum(C * h, "n") + sc.where(sc.index("g") >= 1, x, -x), sc.last(h, "l")


@sc.op
def only_a_group(a: Float[Tensor, "b g l"], x: Float[Tensor, "b g l"], w: Float[Tensor, "d"]) -> Float[Tensor, "b g l"]:
    """A recurrence over groups, whose members are no lanes of it."""
    return sc.scan(a, x * (1.0 + sc.index("g")), axis="l") + sc.sum(w * w, "d")


@pytest.mark.parametrize(("op", "groups"), [(group_of_lanes, 3), (group_of_heads, 2), (only_a_group, 3)], ids=named)
def test_positions_along_groups(op: Op, groups: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "g", groups)
    agrees(op, name)


# -- complex shifts ---------------------------------------------------------------------------------------------------------------


@sc.op
def late(
    a: Float[Tensor, "b d l"], x: Complex[Tensor, "b d l"], B: Complex[Tensor, "b n l"], w: Complex[Tensor, "b l"],
    C: Complex[Tensor, "b d n l"]
) -> tuple[Float[Tensor, "b d l"], Complex[Tensor, "b d l"], Complex[Tensor, "b d n"]]:
    """Looks back (and ahead) over lanes, over states, over both and over neither; what lies outside is real."""
    before, after = sc.shift(x, "l", 2, fill=0.5), sc.shift(w, "l", -1, fill=-2.0)
    h = sc.scan(a, before * sc.shift(B, "l", 1, fill=3.0) + sc.shift(C, "l", 3, fill=1.5), axis="l")
    y = sc.sum(h, "n")
    return sc.real(y) - sc.imag(y), sc.conj(before) + after, sc.last(h, "l")


def test_what_a_complex_shift_fills_in_is_real(name: str) -> None:
    agrees(late, name)


# -- conditions and whole numbers ---------------------------------------------------------------------------------------------------


@sc.op
def counted(
    a: Float[Tensor, "b d l"], x: Float[Tensor, "b d l"], seq: Int[Tensor, "b l"]
) -> tuple[
    Bool[Tensor, "b d l"], Int[Tensor, "b l"], Bool[Tensor, "b l"], Float[Tensor, "b d l"], Bool[Tensor, "b d"], Int[Tensor, "d l"]
]:
    """Conditions on the state and on the inputs, numbers looked back at, the final state's sign, a position."""
    edge = seq != sc.shift(seq, "l")
    h = sc.scan(a, x, axis="l", reset=edge)
    return h > 0.25, sc.shift(seq, "l", 2, fill=7) * 3 - seq, edge, sc.where(h > 0.25, h, -h), sc.last(h, "l") > 0.0, \
        sc.index("d") * 10 + sc.index("l")


@pytest.mark.parametrize("segments", [False, True], ids=["whole", "segments"])
def test_conditions_and_whole_numbers_as_results(name: str, segments: bool) -> None:
    seq = torch.tensor([[0, 0, 0, 1, 1, 5, 5, 5, 6], [-3, -3, 2, 2, 2, 2, 2, 9, 9]], dtype=torch.int32)
    # In the backward the state decides what goes into the adjoint's recurrence: such are not cut into segments.
    made = list(agrees(counted, name, {"seq": seq}, segments=segments, gradients=not segments).values())
    assert [m.dtype for m in made] == [torch.bool, torch.int32, torch.bool, torch.float32, torch.bool, torch.int32]
    assert all(0 < int(m.sum()) < m.numel() for m in made if m.dtype == torch.bool)


# -- groups in segments ---------------------------------------------------------------------------------------------------------------


@sc.op
def grouped(
    a: Float[Tensor, "b d l"], x: Float[Tensor, "b d l"], B: Float[Tensor, "b g n l"], C: Float[Tensor, "b g n l"],
    initial_state: Float[Tensor, "b g n"],
) -> tuple[Float[Tensor, "b d l"], Float[Tensor, "b d n"]]:
    """Groups in the inputs and the initial state: a segment's products and ends have none."""
    h = sc.scan(a, x * B, axis="l", initial=initial_state)
    return sc.sum(C * h, "n"), sc.last(h, "l")


@sc.op
def gated(a: Float[Tensor, "b d l"], x: Float[Tensor, "b d l"], B: Float[Tensor, "b g l"]) -> Float[Tensor, "b d l"]:
    """Groups and no states: the recurrence over segments runs along the channels, and no input of it knows the groups."""
    return sc.scan(a * sc.sigmoid(B), x * B, axis="l")


@sc.op
def shared_gates(
    a: Float[Tensor, "b g l"], x: Float[Tensor, "b d l"], B: Float[Tensor, "b g n l"], C: Float[Tensor, "b g n l"],
    initial_state: Float[Tensor, "b g n"],
) -> tuple[Float[Tensor, "b d l"], Float[Tensor, "b d n"]]:
    """Transitions and initial states of groups, inputs of lanes: the products of a segment have no lanes of their own."""
    h = sc.scan(a, x * B, axis="l", initial=initial_state)
    return sc.sum(C * h, "n"), sc.last(h, "l")


@sc.op
def shared_heads(
    a: Float[Tensor, "b l g"], x: Float[Tensor, "b l h p"], B: Float[Tensor, "b l g n"], C: Float[Tensor, "b l g n"],
    initial_state: Float[Tensor, "b g p n"],
) -> tuple[Float[Tensor, "b l h p"], Float[Tensor, "b h p n"], Float[Tensor, "b l"], Float[Tensor, "b"]]:
    """The same of heads, and sums over groups of a recurrence that has no heads."""
    h = sc.scan(a, x * B, axis="l", initial=initial_state)
    e = sc.scan(a, a * a, axis="l")
    return sc.sum(C * h, "n"), sc.last(h, "l"), sc.sum(e, "g"), sc.sum(e * a, "l g")


@sc.op
def backwards_in_groups(
    a: Float[Tensor, "b g l"], x: Float[Tensor, "b d l"], initial_state: Float[Tensor, "g"]
) -> tuple[Float[Tensor, "b d l"], Float[Tensor, "b d"], Float[Tensor, "b g l"]]:
    """Without states, from the end, and a recurrence over groups beside the one over lanes."""
    h = sc.scan(a, x, axis="l", initial=initial_state, reverse=True)
    e = sc.scan(a, a * a, axis="l", initial=initial_state, reverse=True)
    return h + e, sc.last(h, "l"), e


@pytest.mark.parametrize(
    ("op", "groups"), [(grouped, 2), (gated, 3), (shared_gates, 3), (shared_heads, 2), (backwards_in_groups, 3)], ids=named
)
def test_segments_of_groups_are_combined(op: Op, groups: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "g", groups)
    agrees(op, name, segments=True, gradients=op in (shared_gates, shared_heads))


# -- nothing to store, nothing to read ------------------------------------------------------------------------------------------------


@sc.op
def beside(
    a: Float[Tensor, "b d l"], x: Float[Tensor, "b d l"], w: Float[Tensor, "d"]
) -> tuple[Float[Tensor, "b d l"], Float[Tensor, "d"]]:
    """The second result knows nothing of the first."""
    return sc.scan(a, x, axis="l"), sc.tanh(w)


@sc.op
def unread(x: Float[Tensor, "b d l"]) -> tuple[Float[Tensor, "d l"], Float[Tensor, "d"]]:
    """A recurrence of positions alone, which needs no number of any input."""
    h = sc.scan(0.5, 1.0 + sc.index("d") * sc.index("l"), axis="l")
    return h, sc.last(h, "l")


def test_a_gradient_that_needs_no_kernel(name: str) -> None:
    agrees(beside, name)
    forward = beside.graph()
    program, found, _ = run(backward(forward, ("w",), (forward.outputs[1].name,)), {}, name, False)
    assert not program.plan.stores and set(found) == {"d_w"}


def test_a_kernel_that_reads_nothing(name: str) -> None:
    agrees(unread, name, gradients=False)


for own in (group_of_lanes, group_of_heads, only_a_group, late, counted, grouped, gated, shared_gates, shared_heads, backwards_in_groups,
            beside, unread):
    del REGISTRY[own.name]   # other tests list the package's ops alone


@pytest.mark.parametrize("backend", [build_triton, build_cuda])
def test_a_mean_is_divided_to_the_nearest(backend: ModuleType) -> None:
    """A mean of one number is that number: what LayerNorm leaves of it is zero, not a rounding error over sqrt(eps)."""
    problem = Problem.of("gated_norm", dict(l=8, g=1, c=1), "float32", "forward", rms=False, z=None)
    text = backend.assembly(*source_of(problem, f"cuda:sm_90:{backend.__name__.rpartition('_')[2]}"))
    assert "div.rn.f32" in text and "div.full" not in text


def test_what_a_mean_is_taken_of_is_rounded_once() -> None:
    problem = Problem.of("gated_norm", dict(l=8, g=1, c=1), "float32", "forward", rms=False)
    assert "fma.rn.f32" not in build_triton.assembly(*source_of(problem, "cuda:sm_90:triton"))
