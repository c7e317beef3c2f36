"""From a call to its program: which target and schedule serve it, what is compiled again and what is not, what is said."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import scanc.dsl as sc
from scanc import dispatch, runtime
from scanc.autotune.records import Record, RecordStore, as_case, default_store, exact_axes, graph_key
from scanc.codegen import build_cpp
from scanc.compiler import backend, compile_graph
from scanc.errors import BackendUnavailable, TargetError
from scanc.op import Op
from scanc.passes.specialize import specialize
from scanc.schedule import RecurrentSchedule
from scanc.target import Target
from tests.checks import relative

CPU, REFERENCE = Target.parse("cpu:native:cpp"), Target.parse("cpu:native:reference")
A, X = torch.full((1, 3, 4), 0.5), torch.ones(1, 3, 4)
RIGHT = torch.tensor([1.0, 1.5, 1.75, 1.875]).expand(1, 3, 4)


def make_op() -> Op:
    @sc.op
    def fading(a: Float[Tensor, "b d l"], x: Float[Tensor, "b d l"]) -> Float[Tensor, "b d l"]:
        return sc.scan(a, x, axis="l")

    return fading


@pytest.fixture
def fading() -> Op:
    """An op that nothing was compiled for."""
    return make_op()


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sources of the kernels that are loaded, in order."""
    sources: list[str] = []
    load = build_cpp.load

    def watched(source: Any, target: Target) -> Any:
        sources.append(source.text)
        return load(source, target)

    monkeypatch.setattr(build_cpp, "load", watched)
    return sources


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets SCANC_TARGET as if the process had started with it."""

    def choose(name: str) -> None:
        monkeypatch.setenv("SCANC_TARGET", name)
        dispatch.targets_of.cache_clear()

    yield choose
    monkeypatch.undo()
    dispatch.targets_of.cache_clear()


# -- targets --------------------------------------------------------------------------------------------------------------------------


def test_the_cpu_is_served_by_its_compiler_and_then_by_the_reference() -> None:
    assert dispatch.targets_of(torch.device("cpu")) == (CPU, REFERENCE)


def test_gpus_are_served_by_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def pretend(here: Target) -> Any:
        asked.append(here.name)
        return SimpleNamespace(available=lambda: here.backend in usable)

    monkeypatch.setattr(dispatch, "backend", pretend)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(gcnArchName="gfx942:sramecc+"))
    usable: set[str] = set()
    for hip, there, wanted in (
        (None, {"cuda", "triton"}, ["cuda:sm_90:cuda", "cuda:sm_90:triton"]),
        (None, {"triton"}, ["cuda:sm_90:triton"]),
        (None, set[str](), []),
        ("6.2", {"triton"}, ["hip:gfx942:triton"]),
    ):
        usable.clear()
        usable |= there
        monkeypatch.setattr(torch.version, "hip", hip)
        found = dispatch.targets_of.__wrapped__(torch.device("cuda", 0))
        assert [t.name for t in found] == [*wanted, "cpu:native:reference"]
    assert asked[:2] == ["cuda:sm_90:cuda", "cuda:sm_90:triton"]


def test_the_environment_overrides_the_target(fading: Op, built: list[str], target: Callable[[str], None], heard: list[str]) -> None:
    target("cpu:native:reference")
    assert relative(fading(A, X), RIGHT) < 1e-6 and not built and not heard
    target("cuda:sm_90:triton")  # of another device: said once, and not followed
    for _ in range(2):
        assert relative(make_op()(A, X), RIGHT) < 1e-6
    warnings = [s for s in heard if s.startswith("warning")]
    assert built and len(warnings) == 1 and "SCANC_TARGET is cuda:sm_90:triton" in warnings[0] and "cpu tensors" in warnings[0]
    target("gpu")
    with pytest.raises(TargetError, match="'gpu'.*kind:arch:backend"):
        make_op()(A, X)


@pytest.mark.parametrize(("name", "module"), [("cuda:sm_90:triton", "triton"), ("cuda:sm_90:cuda", "cupy")])
def test_a_library_that_is_not_installed(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its backend is unavailable, by name; everything else goes on."""
    find = importlib.util.find_spec
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *rest: None if n == module else find(n, *rest))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    there = Target.parse(name)
    assert not backend(there).available()
    graph = specialize(make_op().graph(), {"a": "float32", "x": "float32"})
    with pytest.raises(BackendUnavailable, match=f"backend '{there.backend}' cannot run here.*scanc doctor"):
        compile_graph(graph, there)
    assert relative(make_op()(A, X), RIGHT) < 1e-6


# -- schedules ------------------------------------------------------------------------------------------------------------------------


def test_an_untuned_op_says_so_once(fading: Op, heard: list[str]) -> None:
    for shape in ((1, 3, 4), (2, 3, 9)):
        fading(torch.rand(shape), torch.rand(shape))
    assert [s for s in heard if "untuned" in s] == [s for s in heard if "fading" in s]
    assert len(heard) == 1 and heard[0].startswith("info") and "`scanc tune fading`" in heard[0]


def test_a_tuned_schedule_is_used(fading: Op, built: list[str], heard: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANC_CACHE", str(tmp_path))
    graph = specialize(fading.graph(), {"a": "float32", "x": "float32"})
    store, schedule = default_store(), RecurrentSchedule(lanes=4, tile=2, history=2)
    best = Record(
        op="fading", key=graph_key(graph), pass_="forward", target=CPU.name, device=runtime.device_name("cpu"), dtype="float32",
        case=as_case({"b": 1, "d": 3, "l": 4}), form="recurrent", schedule=schedule.to_json(), status="ok", ms=0.1, order=schedule.order,
        exact=exact_axes(graph), best=True)  # fmt: skip
    assert isinstance(store, RecordStore) and store.append(best)
    assert torch.equal(fading(A, X), RIGHT)
    assert len(built) == 1 and str(schedule) in built[0]
    assert not [s for s in heard if "fading (forward) is untuned" in s]
    x = X.clone().requires_grad_()
    fading(A, x).sum().backward()  # the backward has no record
    assert str(dataclasses.replace(schedule)) not in built[-1] and any("fading (backward) is untuned" in s for s in heard)


# -- what is compiled -----------------------------------------------------------------------------------------------------------------


def test_new_shapes_compile_nothing(fading: Op, built: list[str]) -> None:
    for b, d, l in ((1, 3, 4), (2, 3, 4), (2, 7, 100), (1, 64, 33), (1, 3, 4)):
        fading(torch.rand(b, d, l), torch.rand(b, d, l))
    assert len(built) == 1
    fading(torch.rand(1, 3, 4).bfloat16(), torch.rand(1, 3, 4))
    assert len(built) == 2


def test_the_state_size_is_part_of_the_kernel(built: list[str]) -> None:
    @sc.op
    def wide(a: Float[Tensor, "b d l"], B: Float[Tensor, "b n l"]) -> Float[Tensor, "b d l"]:
        return sc.sum(sc.scan(a, B, axis="l"), "n")

    for n, l in ((2, 4), (2, 9), (3, 9), (2, 4)):
        a, B = torch.rand(1, 3, l), torch.rand(1, n, l)
        assert relative(wide(a, B), wide.reference(a.double(), B.double())) < 1e-6
    assert len(built) == 2 and "N = 2;" in built[0] and "N = 3;" in built[1]


def test_many_shapes_are_forgotten_in_time(fading: Op, built: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_MOST_ROUTES", 3)
    for l in range(1, 10):
        fading(torch.rand(1, 2, l), torch.rand(1, 2, l))
    assert len(built) == 1


def test_double_precision_and_empty_tensors_need_no_kernel(fading: Op, built: list[str]) -> None:
    assert fading(A.double(), X.double()).dtype == torch.float64
    assert fading(torch.rand(0, 3, 4), torch.rand(0, 3, 4)).shape == (0, 3, 4)
    assert not built


# -- results --------------------------------------------------------------------------------------------------------------------------


def test_results_are_memory_of_their_own() -> None:
    @sc.op
    def same(x: Float[Tensor, "b d l"], y: Float[Tensor, "b d l"]) -> tuple[Float[Tensor, "b d l"], Float[Tensor, "b d l"]]:
        return x, sc.scan(0.5, y, axis="l")

    x = X.clone()
    found, y = same(x, X)
    assert torch.equal(found, X) and torch.equal(y, RIGHT)
    found.zero_()
    assert torch.equal(x, X)


def test_results_are_contiguous_whatever_the_inputs_are(fading: Op) -> None:
    y = fading(A.transpose(1, 2).contiguous().transpose(1, 2), X.expand(1, 3, 4))
    assert y.is_contiguous() and torch.equal(y, RIGHT)


def test_expanded_inputs_get_gradients_of_their_own_shape(fading: Op) -> None:
    a = torch.full((1, 1, 1), 0.5, requires_grad=True)
    y = fading(a.expand(1, 3, 4), X)
    y.sum().backward()
    assert a.grad is not None and a.grad.shape == (1, 1, 1)
    truth = torch.full((1, 1, 1), 0.5, dtype=torch.float64, requires_grad=True)
    fading.reference(truth.expand(1, 3, 4), X.double()).sum().backward()
    assert truth.grad is not None and relative(a.grad, truth.grad) < 1e-6


def test_results_and_gradients_go_where_they_are_told(fading: Op) -> None:
    """Into halves of a whole, and on another call into memory of another layout: launches keep strides, and must not mix the two up."""
    generator = torch.Generator().manual_seed(3)
    a, x, dy = torch.rand(3, 2, 5, 9, generator=generator).unbind()
    y, _, _ = fading.training({"a": a, "x": x}, {}, ("a", "x"))
    grads = fading.gradients((dy,), {"a": a, "x": x}, {}, ("a", "x"))
    assert all(t.abs().min() > 0 for t in (y[0][..., 1:], grads["x"]))
    for whole in (torch.full((2, 10, 9), 7.0), torch.full((9, 10, 2), 7.0).transpose(0, 2), torch.full((10, 2, 9), 7.0).transpose(0, 1)):
        first, second = whole.chunk(2, dim=1)
        made = fading.gradients((dy,), {"a": a, "x": x}, {}, ("a", "x"), into={"a": first, "x": second})
        assert made["a"] is first and made["x"] is second
        assert torch.equal(whole, torch.cat([grads["a"], grads["x"]], 1))
        into = {fading.graph().outputs[0].name: second}
        assert fading.training({"a": a, "x": x}, {}, ("a", "x"), into)[0][0] is second
        assert torch.equal(second, y[0])
