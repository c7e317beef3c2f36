"""The C++ backend: its arithmetic at the edges, and a cache of libraries that survives what happens to files."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import scanc.dsl as sc
from scanc import dispatch, runtime
from scanc.codegen import build_cpp
from scanc.codegen.cpp_dialect import c_literal, taken_names
from scanc.codegen.layout import KernelSource
from scanc.compiler import Executable, compile_graph
from scanc.errors import BackendUnavailable, CompileError, UnsupportedForm
from scanc.ops import linear_recurrence
from scanc.passes.specialize import specialize
from scanc.problem import Problem
from scanc.schedule import AssociativeSchedule, RecurrentSchedule, StepSchedule
from scanc.target import Target
from tests.checks import relative
from tests.codegen.kernels import agrees, executable

CPU = Target.parse("cpu:native:cpp")

# -- arithmetic -----------------------------------------------------------------------------------------------------------------------

FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    # name: (the truth, units in the last place allowed)
    "exp": (torch.exp, 80.0),  # as 2^(x log2 e): the product's rounding is multiplied by x
    "exp2": (torch.exp2, 2.0),
    "expm1": (torch.expm1, 80.0),
    "log": (torch.log, 4.0),
    "log1p": (torch.log1p, 4.0),
    "sqrt": (torch.sqrt, 1.0),
    "rsqrt": (torch.rsqrt, 2.0),
    "sigmoid": (torch.sigmoid, 80.0),
    "softplus": (lambda x: torch.logaddexp(x, torch.zeros_like(x)), 80.0),
    "tanh": (torch.tanh, 4.0),
    "sin": (torch.sin, 2.0),
    "erf": (torch.erf, 2.0),
}


@sc.op
def elementary(
    x: Float[Tensor, "b d l"],
) -> tuple[
    Float[Tensor, "b d l"], Float[Tensor, "b d l"], Float[Tensor, "b d l"], Float[Tensor, "b d l"], Float[Tensor, "b d l"],
    Float[Tensor, "b d l"], Float[Tensor, "b d l"], Float[Tensor, "b d l"], Float[Tensor, "b d l"], Float[Tensor, "b d l"],
    Float[Tensor, "b d l"], Float[Tensor, "b d l"], Float[Tensor, "b d l"], Float[Tensor, "b d l"], Float[Tensor, "b d l"],
]:  # fmt: skip
    """Every function of FUNCTIONS in order, then maximum, minimum and sign."""
    made = [getattr(sc, name)(x) for name in FUNCTIONS]
    return (*made, sc.maximum(x, 0.5), sc.minimum(x, 0.5), x / abs(x))


def numbers() -> Tensor:
    """(1, 16, l) floats over the whole range, dense near 0, and the special ones."""
    size = torch.logspace(-44, 38.5, 2000, dtype=torch.float64)
    dense = torch.linspace(-110, 100, 6001, dtype=torch.float64)
    special = torch.tensor(
        [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1.0, -1.0, 0.35, -0.35, 2.0**-126, 3.4028235e38], dtype=torch.float64
    )
    x = torch.cat([size, -size, dense, special]).float()
    return torch.nn.functional.pad(x, (0, -len(x) % 16), value=0.5).reshape(1, -1, 16).transpose(1, 2)


@pytest.fixture(scope="module")
def values() -> tuple[Tensor, list[Tensor]]:
    x = numbers()
    return x, list(elementary(x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_elementary_functions_over_the_whole_range(name: str, values: tuple[Tensor, list[Tensor]]) -> None:
    """Within a few units in the last place of the truth; NaN, infinities and results beyond float32 as they should be."""
    x, found = values[0], values[1][list(FUNCTIONS).index(name)]
    truth, ulps = FUNCTIONS[name]
    right = truth(x.double())
    assert torch.equal(found.isnan(), right.isnan())
    far = right.float().isinf()
    assert torch.equal(found.isinf() & far, far) and torch.equal(found[far].sign(), right.float()[far].sign())
    check = ~(right.isnan() | far)
    off = (found.double() - right).abs() - 2.0**-126  # what is smaller than any normal number may be flushed
    error = (off / (torch.finfo(torch.float32).eps * right.abs()).clamp_min(2.0**-149))[check]
    assert error.max() <= ulps, f"{name}({x[check][error.argmax()]:.9g}) is {error.max():.1f} units off"


def test_nan_goes_through_comparisons(values: tuple[Tensor, list[Tensor]]) -> None:
    x, (high, low, sign) = values[0], values[1][-3:]
    assert torch.equal(high.isnan(), x.isnan()) and torch.equal(low.isnan(), x.isnan())
    assert torch.equal(high[~x.isnan()], x[~x.isnan()].clamp_min(0.5)) and torch.equal(low[~x.isnan()], x[~x.isnan()].clamp_max(0.5))
    plain = x.isfinite() & (x != 0)
    assert torch.equal(sign[plain], x[plain].sign())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_storage_is_rounded_as_torch_rounds(dtype: torch.dtype) -> None:
    """To the nearest, ties to even, subnormals, overflow and NaN included; and read back exactly."""

    @sc.op
    def stored(like: Float[Tensor, "b d l"], x: Float[Tensor, "b d l"]) -> tuple[Float[Tensor, "b d l"], Float[Tensor, "b d l"]]:
        return x, like

    x = numbers()
    half = x.to(dtype)
    rounded, read = stored(half, x)
    for found in (rounded, read):
        assert torch.equal(found.isnan(), half.isnan()) and torch.equal(found[~half.isnan()], half[~half.isnan()])


def test_literals() -> None:
    assert [c_literal(v) for v in (1.0, 0.5, 3, True, False, 1e-30)] == ["1.0f", "0.5f", "3", "-1", "0", "1e-30f"]
    assert c_literal(float("-inf")) == "-__builtin_inff()" and "nan" in c_literal(float("nan"))


def test_every_function_of_the_header_is_a_taken_name() -> None:
    assert {"exp2", "maximum", "stage_lanes", "sum_rows", "up", "vf", "TILE", "rsqrt", "sin"} <= taken_names()


def test_forms_without_a_skeleton_are_refused() -> None:
    graph = specialize(linear_recurrence.graph(), dict.fromkeys(("a", "b", "initial_state"), "float32"))
    with pytest.raises(UnsupportedForm, match="associative.*recurrent, stencil, step"):
        made = compile_graph(graph, CPU, AssociativeSchedule())
        assert isinstance(made, Executable)
        made.source()
    with pytest.raises(UnsupportedForm, match="a step schedule goes with a step graph"):
        compile_graph(graph, CPU, StepSchedule())


@pytest.mark.parametrize("length", [1, 4, 7, 70])
@pytest.mark.parametrize(
    "op, sizes, options",
    [
        ("selective_scan", dict(b=2, d=5, n=40, g=1), dict(reverse=True, initial_state="given")),
        ("selective_scan", dict(b=1, d=34, n=33, g=2), dict(seq_idx="given")),
        ("ssd", dict(b=2, h=2, p=6, g=1, n=64), dict(z="given", initial_states="given")),
        ("s4d", dict(b=1, d=3, n=36), dict(initial_state="given")),
    ],
)
def test_many_states_are_walked_several_steps_at_once(op: str, sizes: dict[str, int], options: dict[str, object], length: int) -> None:
    problem = Problem.of(op, {**sizes, "l": length}, "float32", "forward", **options)
    schedule = RecurrentSchedule(lanes=4, tile=16)
    text = executable(problem, CPU, schedule).source(problem.sizes["n"]).text
    assert "j < 4" in text
    agrees(problem, CPU, schedule)


def test_results_are_the_same_from_run_to_run_and_for_any_number_of_threads() -> None:
    from scanc.ops import selective_scan
    from tests.ops.test_selective_scan import sample

    x = {k: v.requires_grad_() if isinstance(v, Tensor) else v for k, v in sample(d=200, l=300).items()}
    leaves = [v for v in x.values() if isinstance(v, Tensor)]

    def run() -> list[Tensor]:
        y, last = selective_scan(**x)
        return [y, last, *torch.autograd.grad(y.sum() + last.sum(), leaves)]

    first, before = run(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = run()
    finally:
        torch.set_num_threads(before)
    for again in (run(), alone):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


# -- the cache --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of this test's own."""
    monkeypatch.setenv("SCANC_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"


A, X = torch.full((1, 3, 4), 0.5), torch.ones(1, 3, 4)
RIGHT = torch.tensor([1.0, 1.5, 1.75, 1.875]).expand(1, 3, 4)


def fresh(tile: int = 8) -> Executable:
    """A small kernel that this process has not loaded."""
    graph = specialize(linear_recurrence.graph(without=("initial_state",)), {"a": "float32", "b": "float32"})
    made = compile_graph(graph, CPU, RecurrentSchedule(lanes=4, tile=tile, history=tile))
    assert isinstance(made, Executable)
    return made


def right(made: Executable) -> bool:
    return torch.equal(made({"a": A, "b": X})["h"], RIGHT)


def test_a_library_is_made_once_and_leaves_nothing_else(cache: Path) -> None:
    assert right(fresh())
    (library,) = cache.glob("cpp/*.so")
    stamp = library.stat().st_mtime_ns
    assert right(fresh()) and library.stat().st_mtime_ns == stamp
    assert {p.suffix for p in (cache / "cpp").iterdir()} == {".so", ".cpp", ".lock"}
    assert library.stat().st_mode & 0o777 == library.with_suffix(".cpp").stat().st_mode & 0o777


@pytest.mark.parametrize("damage", ["cut short", "cut in half", "empty", "foreign", "another library"])
def test_a_damaged_library_is_set_aside_and_made_again(cache: Path, heard: list[str], damage: str) -> None:
    library = build_cpp.build(fresh().source(1))
    whole = library.read_bytes()
    maps = Path("/proc/self/maps").read_text().splitlines()
    other = next(Path(line.split()[-1]) for line in maps if re.search(r"/libm\.so|/libm-", line))
    spoilt = {"cut short": whole[:-5], "cut in half": whole[: len(whole) // 2], "empty": b"", "foreign": b"not a library" + build_cpp.END}
    library.write_bytes(spoilt[damage] if damage in spoilt else other.read_bytes() + build_cpp.END)
    assert right(fresh())
    assert library.read_bytes()[-len(build_cpp.END) :] == build_cpp.END and library.with_suffix(".so.damaged").exists()
    assert len(heard) == 1 and library.name in heard[0] and "set aside" in heard[0]


def test_two_processes_make_one_kernel(cache: Path) -> None:
    code = (
        "import torch\nfrom scanc.ops import linear_recurrence\n"
        "h, _ = linear_recurrence(torch.full((1, 3, 4), 0.5), torch.ones(1, 3, 4))\nprint(h[0, 0].tolist())"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=200)
        assert out == "[1.0, 1.5, 1.75, 1.875]\n" and not err, err
    assert len(list(cache.glob("cpp/*.so"))) == 1


def test_a_full_disk_has_a_name_and_leaves_nothing_half_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.cache_dir()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(BackendUnavailable, match="No space left on device.*SCANC_CACHE") as found:
        fresh()({"a": A, "b": X})
    assert "linear_recurrence" in str(found.value)
    assert not list(cache.glob("cpp/*.so*")) or {p.suffix for p in (cache / "cpp").iterdir()} <= {".lock"}


def test_a_cache_that_cannot_be_written_is_replaced_for_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: list[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SCANC_CACHE", str(tmp_path / "file" / "cache"))
    assert right(fresh()) and right(fresh(tile=16))
    assert len(heard) == 1 and "cannot be written to" in heard[0] and "SCANC_CACHE" in heard[0]
    shutil.rmtree(runtime.cache_dir())


# -- the compiler -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def compilers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Sets CXX and PATH, and makes the process look for its compiler again; afterwards too."""

    def forget() -> None:
        build_cpp.compiler.cache_clear()
        dispatch.targets_of.cache_clear()
        dispatch._told.clear()

    def choose(cxx: str, path: str) -> None:
        monkeypatch.setenv("CXX", cxx)
        monkeypatch.setenv("PATH", path)
        forget()

    yield choose
    monkeypatch.undo()
    forget()


def test_without_a_compiler_the_reference_serves_with_one_warning(compilers: Callable[[str, str], None], heard: list[str]) -> None:
    @sc.op
    def lonely(a: Float[Tensor, "b d l"], x: Float[Tensor, "b d l"]) -> Float[Tensor, "b d l"]:
        return sc.scan(a, x, axis="l")

    compilers("/nowhere/c++", "")
    assert not build_cpp.available()
    assert dispatch.targets_of(torch.device("cpu")) == (Target("cpu", "native", "reference"),)
    x = X.clone().requires_grad_()
    for _ in range(2):
        y = lonely(A, x)
        assert relative(y, RIGHT) < 1e-6
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert relative(gradient, RIGHT.flip(-1)) < 1e-6
    assert len(heard) == 1 and heard[0].startswith("warning") and "scanc doctor" in heard[0] and "reference" in heard[0]
    with pytest.raises(BackendUnavailable, match="cpp.*scanc doctor"):
        fresh()


def test_a_compiler_that_fails_is_quoted(compilers: Callable[[str, str], None], cache: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'the disk of the compiler is on fire' >&2\nexit 1\n")
    broken.chmod(0o755)
    compilers(str(broken), os.environ["PATH"])
    with pytest.raises(CompileError, match="the disk of the compiler is on fire") as found:
        fresh()({"a": A, "b": X})
    kept = re.search(r"Source kept at (\S+)\.$", str(found.value))
    assert kept is not None and "linear_recurrence" in Path(kept.group(1)).read_text()
    assert not list(cache.glob("cpp/*.so*.part")) and not list(cache.glob("cpp/*.so"))


def test_a_compiler_that_makes_no_library_is_found_out(compilers: Callable[[str, str], None], cache: Path, tmp_path: Path) -> None:
    idle = tmp_path / "idle"
    idle.write_text("#!/bin/sh\nexit 0\n")
    idle.chmod(0o755)
    compilers(str(idle), os.environ["PATH"])
    with pytest.raises(CompileError, match="cannot be loaded"):
        fresh()({"a": A, "b": X})


def test_libraries_of_other_compilers_and_sources_are_other_files(
    compilers: Callable[[str, str], None], cache: Path, tmp_path: Path
) -> None:
    one, two = fresh().source(), fresh(tile=16).source()
    paths = {build_cpp._path(s) for s in (one, two, dataclasses.replace(one, text=one.text + "// changed\n"))}
    other = tmp_path / "g++"
    other.write_text('#!/bin/sh\n[ "$1" = --version ] && echo other 1.0 || exec g++ "$@"\n')
    other.chmod(0o755)
    compilers(str(other), os.environ["PATH"])
    paths.add(build_cpp._path(one))
    assert len(paths) == 4


def test_resources_are_known_without_running() -> None:
    source: KernelSource = fresh().source()
    found = build_cpp.resources(source, CPU)
    assert found["bytes"] > 1000 and found["seconds"] >= 0 and found["spills"] == 0
