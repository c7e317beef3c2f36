"""Products of a small batch with a weight on the matrix units: kernels run on the CPU by the emulator, and what is refused."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from scanc.codegen import build_cuda
from scanc.compiler import Executable, default_schedule
from scanc.errors import ScheduleError, UnsupportedForm
from scanc.ir import Graph
from scanc.ops.dropin._few_rows import _graph, few_rows
from scanc.passes.specialize import specialize
from scanc.problem import Problem
from scanc.schedule import StepSchedule
from scanc.target import Target
from tests.checks import close
from tests.codegen import emulate

HOPPER = Target.parse("cuda:sm_90:cuda")


def graph(dtype: str, biased: bool = True) -> Graph:
    return specialize(_graph(biased), {"x": dtype, "weight": dtype, "bias": "float32"})


def problem(b: int, m: int, k: int, dtype: str) -> tuple[dict[str, Tensor], Tensor]:
    made = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, k, generator=made).to(getattr(torch, dtype)) for n in (b, m))
    bias = torch.randn(m, generator=made)
    return {"x": x, "weight": weight, "bias": bias}, (x.double() @ weight.double().t() + bias).to(x.dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("b", "m", "k", "rows", "walk"), [
    (1, 40, 128, 8, 2), (5, 33, 72, 8, 1), (16, 16, 256, 16, 2), (19, 50, 100, 16, 4), (3, 20, 7, 8, 1), (40, 17, 64, 32, 2),
])  # fmt: skip
def test_emulated(b: int, m: int, k: int, rows: int, walk: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes, rows and pieces that end within a block's; states that 16 bytes do not divide. Whichever thread comes first."""
    monkeypatch.setattr(build_cuda, "available", lambda: True)
    given, wanted = problem(b, m, k, dtype)
    found = []
    for backwards in (False, True):
        monkeypatch.setattr(build_cuda, "load", functools.partial(emulate.load, backwards=backwards))
        found.append(Executable(graph(dtype), HOPPER, StepSchedule(lanes=16, split=4, walk=walk, rows=rows))(given)["y"])
    close(found[0], wanted)
    assert torch.equal(*found)


@pytest.mark.parametrize(("b", "m", "k", "scale"), [(3, 24, 64, "bfloat16"), (9, 20, 200, "float32"), (1, 16, 50, "float32")])
def test_of_a_norm(b: int, m: int, k: int, scale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made of rows before they are multiplied, and a sum over them that has no lane."""
    monkeypatch.setattr(build_cuda, "available", lambda: True)
    given, _ = problem(b, m, k, "bfloat16")
    given["scale"] = torch.linspace(0.5, 2.0, k).to(getattr(torch, scale))
    types = {"x": "bfloat16", "weight": "bfloat16", "bias": "float32", "scale": scale}
    schedule = StepSchedule(lanes=16, split=4, walk=2, rows=8 if b <= 8 else 16)
    wanted, found = few_rows(*(given[n].double() for n in ("x", "weight", "bias", "scale")), eps=0.25), []
    for backwards in (False, True):
        monkeypatch.setattr(build_cuda, "load", functools.partial(emulate.load, backwards=backwards))
        found.append(Executable(specialize(_graph(True, 0.25), types), HOPPER, schedule)(given)["y"])
    close(found[0], wanted.bfloat16())
    assert torch.equal(*found)


def test_parts_of_larger_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and weights that do not lie together, or not at 16 bytes, are read one by one."""
    monkeypatch.setattr(build_cuda, "available", lambda: True)
    monkeypatch.setattr(build_cuda, "load", emulate.load)
    program = Executable(graph("bfloat16", False), HOPPER, StepSchedule(lanes=16, split=4, rows=8))
    (given, _), made = problem(3, 24, 64, "bfloat16"), []
    x, weight = given["x"], given["weight"]
    for cut, turned in ((x, weight), (torch.cat([x[:, :1], x], 1)[:, 1:], weight), (x.t().contiguous().t(), weight.t().contiguous().t())):
        made.append(program({"x": cut, "weight": turned})["y"])
    close(made[0], (x.double() @ weight.double().t()).bfloat16())
    assert all(torch.equal(made[0], other) for other in made[1:])


def test_default() -> None:
    """One weight of 16 bits that the batch shares has the matrix units; anything else is an ordinary step."""
    sizes = {"b": 4, "m": 512, "k": 256}
    assert default_schedule(graph("bfloat16"), HOPPER, sizes) == StepSchedule(lanes=16, split=8, walk=1, rows=8)
    # 512 blocks of a weight all have room on 132 multiprocessors with four pieces under way; 532 with two.
    wide = [default_schedule(graph("bfloat16"), HOPPER, {"b": 16, "m": m, "k": 2048}) for m in (8192, 8512)]
    assert [s.walk for s in wide] == [4, 2]  # type: ignore[attr-defined]
    assert default_schedule(graph("float32"), HOPPER, sizes).rows == 0  # type: ignore[attr-defined]
    assert default_schedule(graph("bfloat16"), Target.parse("cuda:sm_75:cuda"), sizes).rows == 0  # type: ignore[attr-defined]


def test_refused() -> None:
    step = Problem.of("selective_scan", dict(b=2, d=16, l=1, n=16, g=1), "bfloat16", "step").graph()
    with pytest.raises(UnsupportedForm, match="no product"):
        Executable(step, HOPPER, StepSchedule(lanes=16, split=2, rows=8)).source(16)
    with pytest.raises(ScheduleError, match="'lanes'"):
        Executable(graph("bfloat16"), HOPPER, StepSchedule(lanes=32, split=2, rows=8)).source(64)
    with pytest.raises(ScheduleError, match="'split'"):
        Executable(graph("bfloat16"), HOPPER, StepSchedule(lanes=16, split=1, rows=8)).source(64)
    with pytest.raises(ScheduleError, match="'rows'"):
        StepSchedule(rows=12)
    with pytest.raises(ScheduleError, match="'rows'"):
        Executable(graph("bfloat16"), Target.parse("cuda:sm_90:triton"), StepSchedule(lanes=16, split=2, rows=8))


def test_few_rows_elsewhere() -> None:
    """On a CPU it is torch's product, gradients included."""
    given, _ = problem(2, 5, 8, "float32")
    weight = given["weight"].requires_grad_()
    y = few_rows(given["x"], weight, given["bias"])
    assert torch.equal(y, torch.nn.functional.linear(given["x"], weight, given["bias"]))
    assert torch.autograd.grad(y.sum(), weight)[0].shape == weight.shape
