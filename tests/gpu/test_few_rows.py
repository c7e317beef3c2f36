"""Products of a few rows on the GPU that is here: right at any size and layout, and in a chain of kernels that begin early."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scanc.ops.dropin import _few_rows
from scanc.ops.dropin._few_rows import MOST_OF_SMALL, MOST_ROWS, SMALL, few_rows, is_served
from scanc.ops.dropin.mamba2 import Mamba2
from scanc.ops.dropin.mamba_simple import Mamba
from tests.checks import close, normal, relative

SIZES = [(1, 8192, 2048), (16, 2048, 4096), (128, 160, 4096), (77, 4096, 128), (3, 160, 4096), (9, 33, 72), (2, 17, 7), (1, 40, 64)]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("b", "m", "k"), SIZES)
def test_right(b: int, m: int, k: int, dtype: torch.dtype) -> None:
    x, weight, bias = (t.to("cuda", dtype) for t in (normal(b, k, seed=1), normal(m, k, seed=2), normal(m, seed=3)))
    assert is_served(x, weight) == (k % 8 == 0)
    for given in ((x, weight), (x, weight, bias), (normal(b, k + 3, seed=1).to("cuda", dtype)[:, 3:], weight.t().contiguous().t())):
        for _ in range(2):  # the second is the launch alone
            close(few_rows(*given), F.linear(*(t.double() for t in given)).to(dtype))
    scale = normal(k, seed=4).cuda()
    wanted = F.linear(F.rms_norm(x.double(), (k,), eps=0.25) * scale, weight.double(), bias.double()).to(dtype)
    close(few_rows(x, weight, bias, scale, 0.25), wanted)


def test_what_is_torchs() -> None:
    weight = normal(8, 64, seed=1).to("cuda", torch.bfloat16)
    assert not is_served(normal(MOST_OF_SMALL + 1, 64, seed=2).to("cuda", torch.bfloat16), weight)
    large = weight.new_zeros(SMALL // 64 + 1, 64)
    assert not is_served(normal(MOST_ROWS + 1, 64, seed=2).to("cuda", torch.bfloat16), large)
    assert not is_served(normal(2, 64, seed=3).cuda(), weight.float())
    x = normal(2, 64, seed=3).to("cuda", torch.bfloat16).requires_grad_()
    (grad,) = torch.autograd.grad(few_rows(x, weight).float().sum(), x)
    assert grad.shape == x.shape


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 16, 40])
@pytest.mark.parametrize("kind", [Mamba, Mamba2])
def test_layers_decode(kind: type[Mamba] | type[Mamba2], batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers' steps: near those by torch's products, and the same bits where kernels begin early and where each is waited for."""
    torch.manual_seed(0)
    layers = [kind(256).to("cuda", torch.bfloat16) for _ in range(2)]
    tokens = [normal(batch, 1, 256, seed=i).to("cuda", torch.bfloat16) for i in range(6)]

    def decoded(wait: bool) -> Tensor:
        states, outs = [layer.allocate_inference_cache(batch, 1) for layer in layers], []
        for x in tokens:
            for layer, state in zip(layers, states, strict=True):
                x = layer.step(x, *state)[0]
                if wait:
                    torch.cuda.synchronize()
            outs.append(x)
        return torch.cat(outs, 1)

    slow, fast = decoded(True), decoded(False)
    assert torch.equal(slow, fast)
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.graph(graph, stream=side):
        made = decoded(False)
    graph.replay()
    assert torch.equal(made, slow)
    monkeypatch.setattr(_few_rows, "is_served", lambda x, weight: False)
    _few_rows._known._known.clear()
    assert relative(slow, decoded(True)) < 2e-2
