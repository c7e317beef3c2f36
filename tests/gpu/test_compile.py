"""Ops under torch.compile on the GPU that is here: through inductor, with the results, gradients and memory order that eager calls have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn

from scanc.op import Op
from scanc.ops import causal_conv1d, fft_conv, gated_norm, selective_scan, ssd
from scanc.ops.dropin.mamba2 import Mamba2
from scanc.ops.dropin.mamba_simple import Mamba
from scanc.problem import Problem
from tests.checks import cotangents, leaves_of, relative, several

CASES = {
    selective_scan: dict(b=2, d=130, l=300, n=16, g=1), ssd: dict(b=2, l=300, h=6, p=64, g=1, n=64), causal_conv1d: dict(b=2, d=130, l=300),
    gated_norm: dict(l=300, g=1, c=512), fft_conv: dict(b=2, d=130, l=300),
}


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing compiled before counts; one process compiles, where each test would start as many as there are cores."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    with torch._inductor.config.patch(compile_threads=1):
        yield


def inputs_of(op: Op, turned: bool) -> dict[str, Any]:
    """The op's inputs in bfloat16; ``turned``: what has three axes or more lies with the second and third exchanged."""
    tensors, options = Problem.of(op, CASES[op], "bfloat16").call(torch.device("cuda"))
    given = {k: v.transpose(1, 2).contiguous().transpose(1, 2) if turned and v.dim() >= 3 else v for k, v in tensors.items()}
    return {**leaves_of(given), **{k: v for k, v in given.items() if not v.is_floating_point()}, **options}


def outcome(call: Callable[..., Any], inputs: dict[str, Any]) -> list[Tensor]:
    results = several(call(**inputs))
    leaves = [v for v in inputs.values() if isinstance(v, Tensor) and v.requires_grad]
    come = [(r, c) for r, c in zip(results, cotangents(results), strict=True) if r.requires_grad]
    made = torch.autograd.grad([r for r, _ in come], leaves, [c for _, c in come])
    return [*(r.detach() for r in results), *made]


@pytest.mark.parametrize("turned", [False, True], ids=["as allocated", "turned"])
@pytest.mark.parametrize("op", CASES, ids=lambda op: op.name)
def test_as_in_eager_mode(op: Op, turned: bool) -> None:
    x, call = inputs_of(op, turned), getattr(torch.ops.scanc, op.name)
    compiled = torch.compile(lambda **given: call(**given), fullgraph=True, dynamic=False)
    for found, right in zip(outcome(compiled, x), outcome(call, x), strict=True):
        assert torch.equal(found, right) and found.stride() == right.stride()


def test_a_backward_resumes_from_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch, found = selective_scan._registered.dispatch, list[tuple[int, int]]()
    backward = dispatch.backward

    def spy(come: Any, tensors: Any, wanted: Any, options: Any, checkpoints: Any, every: int) -> dict[str, Tensor]:
        found.append((len(checkpoints), every))
        return backward(come, tensors, wanted, options, checkpoints, every)

    monkeypatch.setattr(dispatch, "backward", spy)
    x = inputs_of(selective_scan, False)
    outcome(torch.compile(selective_scan, fullgraph=True, dynamic=False), x)
    outcome(torch.compile(selective_scan, fullgraph=True, dynamic=True), x)
    (checkpoints, every), open_sizes = found
    assert checkpoints == 1 and every >= 16 and open_sizes == (0, 0)


@pytest.mark.parametrize("layer", [Mamba, Mamba2], ids=lambda layer: layer.__name__)
def test_a_layer(layer: type[nn.Module]) -> None:
    """A layer's products are compiled, too, and round elsewhere."""
    torch.manual_seed(0)
    module = layer(d_model=256).to("cuda", torch.bfloat16)
    x = torch.randn(2, 200, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    compiled, inputs = torch.compile(module, fullgraph=True, dynamic=False), [x, *module.parameters()]
    y, right = compiled(x), module(x)
    assert relative(y, right) < 1e-2
    grad = torch.randn_like(y)
    for found, wanted in zip(torch.autograd.grad(y, inputs, grad), torch.autograd.grad(right, inputs, grad), strict=True):
        assert relative(found, wanted) < 3e-2


def test_decode_steps_in_cuda_graphs_of_torchs() -> None:
    torch.manual_seed(0)
    module = Mamba(d_model=256).to("cuda", torch.bfloat16)
    tokens = torch.randn(6, 2, 1, 256, device="cuda", dtype=torch.bfloat16)
    left, right = (module.allocate_inference_cache(2, 1) for _ in range(2))
    step = torch.compile(module.step, mode="reduce-overhead", fullgraph=True, dynamic=False)
    with torch.no_grad():
        for x in tokens:
            found, wanted = step(x, *left)[0].clone(), module.step(x, *right)[0]
            assert relative(found, wanted) < 1e-2
    assert all(relative(f, w) < 1e-2 for f, w in zip(left, right, strict=True))
