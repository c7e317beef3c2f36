"""Triton kernels of the form chunked: interpreted on the CPU against the oracle, compiled for GPUs that are not here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from scanc.autotune.screen import screen
from scanc.codegen import build_triton, triton_chunked_launch, triton_chunked_run
from scanc.codegen.triton_chunked_run import ChunkedExecutable
from scanc.compiler import compile_graph, default_schedule, program, stages
from scanc.errors import UnsupportedForm
from scanc.op import Op
from scanc.passes.backward import backward
from scanc.passes.specialize import specialize
from scanc.problem import Problem
from scanc.reference import axis_sizes, evaluate
from scanc.schedule import ChunkedSchedule
from scanc.target import Target
from tests.checks import GRADIENT, RESULT, relative
from tests.codegen.kernels import agrees, registered
from tests.forms.test_chunked import OWN, shifted

INTERPRET = Target.parse("cpu:interpret:triton")
PASSES = ("forward", "backward")
TARGETS = ("cuda:sm_80:triton", "cuda:sm_90:triton", "cuda:sm_100:triton", "cuda:sm_120:triton", "hip:gfx942:triton")
SMALL = ChunkedSchedule(chunk=16, rows=16, chunk_walk=2, total_walk=2)
ALL = {"initial_states": "given", "seq_idx": "given", "cotangents": "all"}

own_ops = registered(*OWN, shifted)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(("length", "rows", "columns", "chunk"),
                         [(1, 16, 16, 16), (63, 5, 20, 16), (130, 20, 3, 64), (16, 1, 1, 16), (20, 33, 3, 16)])
def test_lengths_and_sizes(pass_: str, length: int, rows: int, columns: int, chunk: int) -> None:
    case = dict(b=1, l=length, h=2, p=rows, n=columns, g=1)
    agrees(Problem.of("ssd", case, pass_=pass_), INTERPRET, ChunkedSchedule(chunk=chunk, rows=16))


@pytest.mark.parametrize("pass_", PASSES)
def test_a_thousand_steps(pass_: str) -> None:
    agrees(Problem.of("ssd", dict(b=1, l=1000, h=1, p=4, n=4, g=1), pass_=pass_), INTERPRET, ChunkedSchedule(chunk=128, rows=16))


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("segment", [0, 16, 32])
def test_groups_states_resets_and_segments(pass_: str, segment: int) -> None:
    given = Problem.of("ssd", dict(b=2, l=41, h=6, p=5, n=7, g=2), pass_=pass_, **ALL)
    schedule = ChunkedSchedule(chunk=16, rows=16, heads=3, segment=segment, scores=1, chunk_walk=2, total_walk=2)
    agrees(given, INTERPRET, schedule)


@pytest.mark.parametrize("pass_", PASSES)
def test_many_segments_pass_their_states_on(pass_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel of its own, where few make them of all summaries."""
    given, schedule = Problem.of("ssd", dict(b=1, l=60, h=2, p=5, n=7, g=1), pass_=pass_, **ALL), replace(SMALL, segment=16)
    combined, inputs = program(given.graph(), INTERPRET, schedule), given.inputs()
    once = combined(inputs)
    monkeypatch.setattr(triton_chunked_run, "COMBINED", 2)
    passed = program(given.graph(), INTERPRET, replace(schedule, warps=8))
    again = passed(inputs)
    assert isinstance(combined, ChunkedExecutable) and isinstance(passed, ChunkedExecutable)
    assert any("combines" in kind for kind, _ in combined._loaded) and any("pass" in kind for kind, _ in passed._loaded)
    assert all(torch.equal(once[k], again[k]) for k in once)


@pytest.mark.parametrize("pass_", PASSES)
def test_products_that_heads_share(pass_: str) -> None:
    """Of columns, made ahead of a forward's walk; where heads have columns of their own, and in a backward, nothing is."""
    for groups, ahead in ((2, pass_ == "forward"), (6, pass_ == "forward")):
        given = Problem.of("ssd", dict(b=2, l=41, h=6, p=5, n=7, g=groups), pass_=pass_, **ALL)
        made = program(given.graph(), INTERPRET, replace(SMALL, scores=1))
        assert isinstance(made, ChunkedExecutable)
        agrees(given, INTERPRET, replace(SMALL, scores=1, segment=16))
        assert ("products0" in made.make("early", made.shape_of({})).text) == ahead
    made = program(Problem.of(OWN[0], dict(b=1, l=8, h=2, p=5, n=6)).graph(), INTERPRET, replace(SMALL, scores=1))
    assert isinstance(made, ChunkedExecutable) and "products0" not in made.make("early", made.shape_of({})).text


@pytest.mark.parametrize(("pass_", "length", "segment", "dtype", "bulk", "more"), [
    ("forward", 41, 0, "float32", False, {"scores": 1}), ("forward", 41, 16, "float32", True, {"heads": 3}),
    ("forward", 48, 16, "bfloat16", True, {"scores": 1}), ("backward", 41, 0, "float32", False, {}),
    ("backward", 41, 32, "float32", True, {"walk_back": 1, "span": 2, "total_walk": 2}),
    ("backward", 64, 32, "bfloat16", True, {"walk_back": 1, "span": 2})])
def test_columns_in_two_tiles(pass_: str, length: int, segment: int, dtype: str, bulk: bool, more: dict[str, int],
                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a state of all columns would be more than 64 values a thread; by pointers, by a program's descriptors, by a launch's."""
    monkeypatch.setattr(triton_chunked_run, "bulk_copies", lambda target: bulk)
    given = Problem.of("ssd", dict(b=1, l=length, h=6, p=16, n=256, g=2), dtype, pass_=pass_, **ALL)
    schedule = ChunkedSchedule(chunk=16, rows=16, warps=1, segment=segment, **more)
    made = program(given.graph(), INTERPRET, schedule)
    assert isinstance(made, ChunkedExecutable)
    tiled = [s.name for s in made.all_sources(made.shape_of(given.sizes)) if "NT: tl.constexpr = 256" in s.text]
    assert tiled and len(tiled) == sum(kind.split()[0] in ("walk", "summary", "states") for kind in made.kinds(segment > 0))
    agrees(given, INTERPRET, schedule)


@pytest.mark.parametrize("pass_", PASSES)
def test_gates(pass_: str) -> None:
    agrees(Problem.of("ssd", dict(b=1, l=20, h=4, p=18, n=5, g=1), pass_=pass_, z="given", **ALL), INTERPRET, SMALL)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stored_in_sixteen_bits(pass_: str, dtype: str) -> None:
    agrees(Problem.of("ssd", dict(b=1, l=33, h=2, p=16, n=16, g=1), dtype, pass_), INTERPRET, SMALL)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("op", [*OWN[:3], shifted], ids=lambda op: op.name)
def test_other_members_of_the_class(op: Op, pass_: str) -> None:
    """Decays given as they are, one a head; against time; with look-back. Gradients where the class has them."""
    case = dict(b=2, l=37, h=3, p=5, n=6)
    given = {"seq_idx": "given"} if op is shifted else {}
    problem = Problem.of(op, {a: case[a] for a in Problem.of(op, case).axes}, pass_=pass_, **given)
    inputs = problem.inputs()
    for name in ("g", "log_decay"):
        if name in inputs:
            inputs[name] = -inputs[name]
    wanted, bars = problem.oracle(inputs), GRADIENT if pass_ == "backward" else RESULT
    for schedule in (SMALL, replace(SMALL, **({"walk_back": 1} if pass_ == "backward" else {"scores": 1}))):
        found = program(problem.graph(), INTERPRET, schedule)(inputs)
        assert all(relative(found[k], wanted[k]) <= bars[found[k].dtype] and bool(wanted[k].any()) for k in wanted)


@pytest.mark.parametrize("wanted", [("x",), ("B",), ("C",), ("dt", "A"), ("initial_states",), ("x", "C")], ids=" ".join)
def test_gradients_by_some_inputs(wanted: tuple[str, ...]) -> None:
    problem = Problem.of("ssd", dict(b=1, l=35, h=2, p=6, n=7, g=1), initial_states="given")
    inputs = problem.inputs()
    graph = backward(problem.forward_graph(), wanted, ("y",))
    inputs["d_y"] = torch.randn(inputs["x"].shape, generator=torch.Generator().manual_seed(3))
    graph = specialize(graph, {str(n.name): str(inputs[str(n.name)].dtype).removeprefix("torch.") for n in graph.inputs})
    given = {str(n.name): inputs[str(n.name)] for n in graph.inputs}
    found, truth = program(graph, INTERPRET, replace(SMALL, walk_back=1))(given), evaluate(graph, given)
    assert set(found) == {f"d_{w}" for w in wanted}
    for name, x in found.items():
        assert relative(x, truth[name]) <= GRADIENT[torch.float32], name


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_extreme_decays(pass_: str, size: float) -> None:
    """dt A down to -1e4: what is forgotten is 0, never 0 times infinity. Bars hold because each chunk sums its own exponents."""
    problem = Problem.of("ssd", dict(b=1, l=50, h=2, p=5, n=6, g=1), pass_=pass_, dt_softplus=False, dt_bias=None)
    inputs = problem.inputs()
    inputs["A"] = torch.tensor([-size, -1.0])
    inputs["dt"] = torch.rand(inputs["dt"].shape, generator=torch.Generator().manual_seed(1))
    found, wanted = program(problem.graph(), INTERPRET, SMALL)(inputs), problem.oracle(inputs)
    for name, x in wanted.items():
        assert torch.isfinite(found[name]).all()
        assert relative(found[name], x) <= 10 * GRADIENT[torch.float32], name


@pytest.mark.parametrize("pass_", PASSES)
def test_what_segments_forget(pass_: str) -> None:
    """Heads that forget within one chunk, within a segment, never, and one that grows: summaries leave out what ends as 0."""
    problem = Problem.of("ssd", dict(b=1, l=300, h=4, p=5, n=6, g=1), pass_=pass_, dt_softplus=False, dt_bias=None,
                         **{k: v for k, v in ALL.items() if k != "seq_idx"})
    inputs = problem.inputs()
    inputs["A"] = torch.tensor([-40.0, -4.0, 0.0, 0.02])
    inputs["dt"] = torch.rand(inputs["dt"].shape, generator=torch.Generator().manual_seed(1))
    found = program(problem.graph(), INTERPRET, ChunkedSchedule(chunk=16, rows=16, segment=96))(inputs)
    for name, x in problem.oracle(inputs).items():
        assert relative(found[name], x) <= 10 * GRADIENT[torch.float32], name


def test_any_strides_and_the_same_bits() -> None:
    problem = Problem.of("ssd", dict(b=2, l=30, h=4, p=5, n=6, g=2), pass_="backward")
    made, inputs = program(problem.graph(), INTERPRET, SMALL), problem.inputs()
    first = made(inputs)
    across = {k: v.transpose(0, -1).contiguous().transpose(0, -1) for k, v in inputs.items()}
    for given in (inputs, across):
        again = made(given)
        assert all(torch.equal(again[k], first[k]) for k in first)


@pytest.mark.parametrize(("rows", "columns", "length"), [(32, 16, 37), (20, 8, 37), (32, 16, 64)])
@pytest.mark.parametrize("pass_", PASSES)
def test_tensor_descriptors(pass_: str, rows: int, columns: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles through descriptors give what pointers give, whether programs make them or the launch gives them, for lengths of whole chunks;
    strides that descriptors cannot say get pointers."""
    problem = Problem.of("ssd", dict(b=2, l=length, h=2, p=rows, n=columns, g=2), pass_=pass_, **ALL)
    schedule = ChunkedSchedule(chunk=16, rows=16, segment=32, chunk_walk=2, total_walk=2, walk_back=1, span=2, scores=1)
    inputs = problem.inputs()
    by_pointers = program(problem.graph(), INTERPRET, schedule)(inputs)
    monkeypatch.setattr(triton_chunked_run, "bulk_copies", lambda target: True)
    made = program(problem.graph(), INTERPRET, schedule)
    assert isinstance(made, ChunkedExecutable)
    across = {k: v.transpose(0, -1).contiguous().transpose(0, -1) for k, v in inputs.items()}
    for given, bulk in ((inputs, pass_ == "forward" or rows == 32), (across, False)):
        made._loaded.clear()
        for name, found in made(given).items():
            torch.testing.assert_close(found, by_pointers[name], rtol=1e-5, atol=1e-6)
        main = [k for (kind, _), k in made._loaded.items() if kind.split()[0] in ("walk", "chunks", "totals", "borders")]
        made_there = bulk and length % 32 != 0
        assert main and all(k.source.bulk == made_there == ("make_tensor_descriptor" in k.source.text) for k in main)
        assert all(bool(k.source.tiles) == (bulk and not made_there) for k in main)


@pytest.mark.parametrize("turned", [False, True])
def test_descriptors_of_slices(turned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """x, B and C as parts of every step of one tensor, as a layer has them; heads that lie further apart than steps are no such part."""
    problem = Problem.of("ssd", dict(b=2, l=32, h=2, p=16, n=16, g=1))
    inputs = problem.inputs()
    parts = torch.cat([inputs[k].flatten(2) for k in ("x", "B", "C")], dim=-1).split([32, 16, 16], dim=-1)
    sliced = {k: part.unflatten(-1, inputs[k].shape[2:]) for k, part in zip(("x", "B", "C"), parts, strict=True)}
    if turned:
        sliced["x"] = inputs["x"].transpose(1, 2).contiguous().transpose(1, 2)
    monkeypatch.setattr(triton_chunked_run, "bulk_copies", lambda target: True)
    made = program(problem.graph(), INTERPRET, SMALL)
    assert isinstance(made, ChunkedExecutable) and not sliced["B"].is_contiguous()
    wanted = problem.oracle(inputs)
    for name, x in made({**inputs, **sliced}).items():
        assert relative(x, wanted[name]) <= RESULT[x.dtype]
    (tiles,) = [k.source.tiles for (kind, _), k in made._loaded.items() if kind == "walk"]
    assert {t.of for t in tiles} == (set() if turned else {"x", "B", "C", "y"})


@pytest.mark.parametrize("groups", [1, 4])
def test_some_heads_at_a_time(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where states would take too much memory: the same results, from views of the same tensors."""
    problem = Problem.of("ssd", dict(b=2, l=40, h=8, p=5, n=6, g=groups), pass_="backward", **ALL)
    made, inputs = program(problem.graph(), INTERPRET, SMALL), problem.inputs()
    monkeypatch.setattr(triton_chunked_launch, "BORDER_FLOOR", 0)
    for share, pieces in ((1e9, 1), (0.3, None), (0.0, groups if groups > 1 else 8)):
        monkeypatch.setattr(triton_chunked_launch, "BORDER_SHARE", share)
        assert isinstance(made, ChunkedExecutable)
        sizes = axis_sizes(problem.graph(), inputs)
        found = triton_chunked_launch.pieces(made.chunk_plan, inputs, sizes, made.layout(sizes), 4)
        assert pieces is None or len(found) == pieces
        for name, error in problem.errors(made(inputs), problem.oracle(inputs)).items():
            assert error <= GRADIENT[torch.float32], (name, share)


def test_a_new_length_compiles_nothing() -> None:
    made = program(Problem.of("ssd", dict(b=1, l=1, h=1, p=4, n=4, g=1)).graph(), INTERPRET, SMALL)
    for length in (5, 40, 17):
        made(Problem.of("ssd", dict(b=1, l=length, h=2, p=4, n=4, g=1)).inputs())
    assert isinstance(made, ChunkedExecutable) and [s.name for s in made.sources] == ["ssd_early", "ssd_walk"]


def test_other_backends_refuse() -> None:
    for name in ("cuda:sm_90:cuda", "cpu:native:cpp"):
        with pytest.raises(UnsupportedForm, match="no skeleton"):
            program(Problem.of("ssd", dict(b=1, l=4, h=1, p=4, n=4, g=1)).graph(), Target.parse(name), SMALL)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("pass_", PASSES)
def test_compiles_without_a_device(pass_: str, target: str) -> None:
    """The default schedule of Mamba-2's own sizes, within each device's shared memory."""
    problem, named = Problem.of("ssd", dict(b=1, l=256, h=8, p=64, n=128, g=1), "bfloat16", pass_), Target.parse(target)
    made = compile_graph(problem.graph(), named, default_schedule(problem.graph(), named, problem.sizes)) if build_triton.available(named) \
        else program(problem.graph(), named, default_schedule(problem.graph(), named, problem.sizes))
    assert isinstance(made, ChunkedExecutable)
    sources = made.all_sources(made.shape_of(problem.sizes))
    assert [s.name.rsplit("_", 1)[1] for s in sources][-1] == ("walk" if pass_ == "forward" else "sums")
    for source in sources:
        used: dict[str, Any] = build_triton.resources(source, named)
        assert used["shared"] <= named.shared_bytes, (source.name, used)
    found = screen(sources, named)
    assert found.shared <= named.shared_bytes


def test_products_are_on_matrix_units() -> None:
    problem, hopper = Problem.of("ssd", dict(b=1, l=256, h=8, p=64, n=128, g=1), "bfloat16"), Target.parse("cuda:sm_90:triton")
    made = program(problem.graph(), hopper, ChunkedSchedule())
    assert isinstance(made, ChunkedExecutable)
    text = build_triton.assembly(made.all_sources(made.shape_of(problem.sizes))[-1], hopper)
    assert "wgmma.mma_async" in text and "cp.async" in text


def test_a_step_of_every_kind(tmp_path: Any) -> None:
    """Each kernel is printed once, and names what it reads."""
    problem = Problem.of("ssd", dict(b=1, l=64, h=2, p=4, n=4, g=1), pass_="backward", **ALL)
    made = program(problem.graph(), INTERPRET, ChunkedSchedule(chunk=16, rows=16, segment=32))
    assert isinstance(made, ChunkedExecutable)
    kinds = [k.split()[0] for k in made.kinds(True)]
    walked = ["summary", "pass", "states", "states", "states"]   # of the first segment, and of the others, where they are many or few
    assert kinds == ["early", *walked, *walked, "chunks", "totals", "borders", "sums", "late", "sums"]
    given: dict[str, Tensor] = problem.inputs()
    assert set(made(given)) == {o.name for o in problem.graph().outputs}


@pytest.mark.parametrize("given", [{}, {"D": None}, ALL, {"z": "given"}], ids=["plain", "without_sums", "all", "gated"])
@pytest.mark.parametrize("segment", [0, 32])
def test_a_walk_back_that_gives_results(given: dict[str, Any], segment: int) -> None:
    """The adjoint's walk in place of kernel chunks, where nothing but that kernel's own values needs its steps: a gate does."""
    problem = Problem.of("ssd", dict(b=2, l=75, h=4, p=20, n=12, g=2), pass_="backward", **given)
    schedule = ChunkedSchedule(chunk=16, rows=16, segment=segment, walk_back=1, chunk_walk=2, total_walk=2)
    made = program(problem.graph(), INTERPRET, schedule)
    assert isinstance(made, ChunkedExecutable) and ("chunks" in made.kinds(False)) == ("z" in given)
    agrees(problem, INTERPRET, schedule)


@pytest.mark.parametrize(("given", "segment", "length"), [({}, 0, 75), (ALL, 0, 16), (ALL, 64, 100)], ids=["odd", "one", "segments"])
def test_states_at_every_second_border(given: dict[str, Any], segment: int, length: int) -> None:
    """Half as many states are kept, and pairs of steps of two chunks are a kernel's own: an odd number of chunks, one, segments."""
    problem = Problem.of("ssd", dict(b=1, l=length, h=4, p=16, n=12, g=2), pass_="backward", **given)
    schedule = ChunkedSchedule(chunk=16, rows=16, segment=segment, walk_back=1, span=2, total_walk=2)
    made = program(problem.graph(), INTERPRET, schedule)
    assert isinstance(made, ChunkedExecutable) and "pairs" in made.kinds(False)
    agrees(problem, INTERPRET, schedule)


def test_what_is_chosen_for_many_states() -> None:
    """256 of them: the schedule of a large problem, on a small one."""
    large = dict(b=2, l=4096, h=48, p=64, g=1, n=256)
    problem = Problem.of("ssd", large, "bfloat16", "backward")
    schedule = default_schedule(problem.graph(), Target.parse("cuda:sm_90:triton"), large, "chunked")
    assert isinstance(schedule, ChunkedSchedule) and schedule.span == 2
    agrees(Problem.of("ssd", {**large, "b": 1, "l": 150, "h": 3}, pass_="backward"), INTERPRET, schedule)


KINDS = [("forward", k) for k in ("early", "walk")] + [("backward", k) for k in ("states 0", "chunks", "totals", "borders", "late", "sums")]


@pytest.mark.parametrize(("pass_", "kind"), KINDS)
def test_text(pass_: str, kind: str, golden: Callable[[str, str], None]) -> None:
    """What the kernels say, word for word, from where they depend on the plan; test_groups_states_resets_and_segments runs the like."""
    problem = Problem.of("ssd", dict(b=2, l=11, h=2, p=16, n=16, g=1), "bfloat16", pass_, D=None, dt_bias=None, dt_softplus=False)
    made = program(problem.graph(), Target.parse("cuda:sm_90:triton"), ChunkedSchedule(chunk=16, rows=16, walk_back=kind == "states 0"))
    assert isinstance(made, ChunkedExecutable)
    text = made.make(kind, made.shape_of(problem.sizes)).text
    golden(f"triton_chunked_{kind.replace(' ', '_')}.py", text[max(0, text.find("    Q: tl.constexpr")):])


def test_stages(golden: Callable[[str, str], None]) -> None:
    problem = Problem.of("ssd", dict(b=2, l=11, h=2, p=16, n=16, g=1), "bfloat16", "backward", z="given")
    golden("stage_chunked_loops.txt", stages(problem.graph(), Target.parse("cuda:sm_90:triton"), SMALL, sizes=problem.sizes)["loops"])
