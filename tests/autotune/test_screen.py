"""Screening: kernels are compiled for GPUs that are not here, and what cannot run or win is named."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

import scanc.ops  # noqa: F401 - fills the registry
from scanc import compiler
from scanc.autotune.screen import Screened, judged, screen, survey
from scanc.autotune.space import space
from scanc.errors import BackendUnavailable, CompileError
from scanc.problem import Problem
from scanc.schedule import RecurrentSchedule, Schedule
from scanc.target import Target

H100, T4 = Target.parse("cuda:sm_90:cuda"), Target.parse("cuda:sm_75:cuda")


@pytest.mark.parametrize("name", ["cuda:sm_90:cuda", "cuda:sm_75:cuda", "cuda:sm_90:triton", "hip:gfx942:triton"])
def test_kernels_are_compiled_for_gpus_that_are_not_here(name: str) -> None:
    target = Target.parse(name)
    problem = Problem.of("linear_recurrence", {"b": 2, "d": 64, "l": 256})
    form = space(problem.graph(), target, problem.sizes, form="recurrent")[0]
    found = list(survey(problem, [form], limit=2))
    assert len(found) == 2 and found[0][1] == form.default
    for _, _, screened in found:
        assert screened.ok, screened.reason
        assert 8 <= screened.registers <= 255 and screened.shared <= target.shared_bytes


@pytest.mark.parametrize(("uses", "target", "says"), [
    ((72, 0, 100 << 10, 1.0, 256), H100, ""),
    ((72, 0, 100 << 10, 1.0, 256), T4, "bytes of shared memory"),
    ((255, 0, 0, 1.0, 512), H100, "512 threads of 255 registers"),
    ((255, 4096, 0, 1.0, 128), H100, "spilled"),
    ((40, 0, 0, 500.0, 128), H100, "500 s to compile")])
def test_the_judgement(uses: tuple[int, int, int, float, int], target: Target, says: str) -> None:
    found = judged(*uses, target)
    assert found.ok == (not says) and says in found.reason
    assert (found.registers, found.spills, found.shared) == uses[:3]


@dataclass
class Source:
    name: str
    uses: dict[str, float]
    schedule: Schedule = RecurrentSchedule(lanes=32, split=4)


def fake_backend(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
    def resources(source: Source, target: Target) -> dict[str, float]:
        if error is not None:
            raise error
        return source.uses
    monkeypatch.setattr(compiler, "backend", lambda target: SimpleNamespace(resources=resources))


def test_the_worst_of_several_kernels_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_backend(monkeypatch)
    sources = [Source("a", {"registers": 40, "spills": 0, "shared": 1024, "seconds": 0.5}),
               Source("b", {"registers": 200, "spills": 8, "shared": 512, "seconds": 1.0})]
    assert screen(sources, H100) == Screened(True, "", 200, 8, 1024, 1.5)
    assert not screen([*sources, Source("c", {"registers": 255, "spills": 999, "shared": 0, "seconds": 0.1})], H100).ok
    wide = Source("d", {"registers": 255, "spills": 0, "shared": 0, "seconds": 0.1}, RecurrentSchedule(lanes=256, split=4))
    assert "1024 threads" in screen([wide], H100).reason


def test_what_does_not_compile_is_screened_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_backend(monkeypatch, CompileError("expected ';'", backend="cuda", kernel="a", path="a.cu"))
    found = screen([Source("a", {})], H100)
    assert not found.ok and "expected ';'" in found.reason
    fake_backend(monkeypatch, BackendUnavailable("no NVRTC", backend="cuda", remedy="install it"))
    with pytest.raises(BackendUnavailable):
        screen([Source("a", {})], H100)


def test_a_cpu_has_nothing_to_screen() -> None:
    assert screen([Source("a", {})], Target.parse("cpu:native:cpp")).ok
