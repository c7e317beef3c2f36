"""Screening: what machine code uses is read right, and what cannot run or win is named."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from scanc import compiler
from scanc.autotune.screen import Screened, cubin_usage, judged, parse_usage, screen
from scanc.errors import BackendUnavailable, CompileError
from scanc.schedule import RecurrentSchedule, Schedule
from scanc.target import Target

H100, T4 = Target.parse("cuda:sm_90:cuda"), Target.parse("cuda:sm_75:cuda")

SHOWN = """
Resource usage:
 Common:
  GLOBAL:0
 Function scan:
  REG:72 STACK:16 SHARED:2048 LOCAL:0 CONSTANT[0]:540 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _Z5otherv:
  REG:8 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:528 TEXTURE:0 SURFACE:0 SAMPLER:0
"""

PLAIN = r"""
extern "C" __global__ void plain(float* x, int n) {
    __shared__ float s[512];
    s[threadIdx.x] = x[n];
    __syncthreads();
    x[threadIdx.x] = s[511 - threadIdx.x];
}
"""

# An array indexed by what only the run knows cannot be kept in registers.
SPILLING = r"""
extern "C" __global__ void spilling(float* x, int n) {
    float a[256];
    for (int i = 0; i < 256; i++) a[(i * n) % 256] = x[i];
    x[threadIdx.x] = a[n];
}
"""


def test_usage_is_read_for_every_function() -> None:
    assert parse_usage(SHOWN) == {"scan": {"registers": 72, "spills": 16, "shared": 2048},
                                  "_Z5otherv": {"registers": 8, "spills": 0, "shared": 0}}


@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
def test_machine_code_made_here_without_a_gpu_is_measured(arch: str) -> None:
    from cuda.core import Program, ProgramOptions

    def usage(text: str) -> dict[str, int]:
        found = cubin_usage(bytes(Program(text, "c++", ProgramOptions(arch=arch)).compile("cubin").code))
        assert len(found) == 1
        return next(iter(found.values()))

    # From sm_90 on the system keeps 1 KiB of a block's shared memory for itself.
    plain, spilling = usage(PLAIN), usage(SPILLING)
    assert plain["spills"] == 0 and plain["shared"] in (2048, 3072) and 0 < plain["registers"] < 40
    assert spilling["spills"] >= 1024


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
