"""The norms against torch's own, and the Mamba module against scanc's model, which reads the same parameters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scanc.errors import ArgumentError
from scanc.models import MambaConfig
from scanc.models.mamba import MambaBlock
from scanc.ops.dropin import layer_norm, layernorm_gated
from scanc.ops.dropin.mamba_simple import Mamba
from tests.checks import close, normal

X, Z, WEIGHT, BIAS = normal(2, 3, 12, seed=1), normal(2, 3, 12, seed=2), normal(12, seed=3), normal(12, seed=4)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize("rms", [True, False])
def test_gated_norm(before: bool, size: int | None, rms: bool) -> None:
    def torchs(x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (-1, size or 12))
        flat = F.rms_norm(parts, parts.shape[-1:], eps=1e-5) if rms else F.layer_norm(parts, parts.shape[-1:], eps=1e-5)
        return flat.flatten(-2) * WEIGHT.double() + BIAS.double()

    gate = F.silu(Z.double())
    wanted = torchs(X.double()) * gate if before else torchs(X.double() * gate)
    close(layernorm_gated.layernorm_fn(X, WEIGHT, BIAS, Z, 1e-5, size, before, is_rms_norm=rms), wanted)
    module = (layernorm_gated.RMSNorm if rms else layernorm_gated.LayerNorm)(12, group_size=size, norm_before_gate=before)
    assert list(dict(module.named_parameters())) == (["weight"] if rms else ["weight", "bias"])
    module.load_state_dict({"weight": WEIGHT} if rms else {"weight": WEIGHT, "bias": BIAS})
    left = (BIAS.double() if rms else 0.0) * (gate if before else 1.0)
    close(module(X, Z), wanted - left)
    if rms:
        close(layernorm_gated.rmsnorm_fn(X, WEIGHT, BIAS, Z, 1e-5, size, before), wanted)
        close(layernorm_gated.rms_norm_ref(X, WEIGHT, BIAS, Z, 1e-5, size, before), wanted)


def test_groups_that_do_not_divide() -> None:
    with pytest.raises(ArgumentError, match="'group_size' is 5, but it divides the 12 channels"):
        layernorm_gated.rmsnorm_fn(X, WEIGHT, None, group_size=5)


def test_residual_norm() -> None:
    half = X.bfloat16()
    out, total = layer_norm.layer_norm_fn(half, WEIGHT, BIAS, Z, prenorm=True, residual_in_fp32=True)
    assert out.dtype == torch.bfloat16 and total.dtype == torch.float32
    close(total, half.double() + Z.double())
    close(out, F.layer_norm(half.double() + Z.double(), (12,), WEIGHT.double(), BIAS.double(), eps=1e-6))
    module = layer_norm.RMSNorm(12)
    module.load_state_dict({"weight": WEIGHT})
    close(module(X, residual=Z), F.rms_norm(X.double() + Z.double(), (12,), WEIGHT.double(), eps=1e-5))
    assert module(half, prenorm=True)[1].dtype == torch.bfloat16
    assert module(half, prenorm=True, residual_in_fp32=True)[1].dtype == torch.float32
    with pytest.raises(ArgumentError, match="'rowscale'"):
        layer_norm.rms_norm_fn(X, WEIGHT, None, rowscale=torch.ones(2))


def modules() -> tuple[Mamba, Any]:
    torch.manual_seed(0)
    module, block = Mamba(16, d_state=4, layer_idx=3), MambaBlock(MambaConfig(d_model=16, d_state=4))
    block.load_state_dict(module.state_dict())
    return module, block


def test_module() -> None:
    module, block = modules()
    x = normal(2, 11, 16, seed=5)
    out, wanted = module(x), block(x)[0]
    close(out, wanted)
    come = normal(2, 11, 16, seed=6)
    found, right = (torch.autograd.grad(y, list(m.parameters()), come) for y, m in ((out, module), (wanted, block)))
    for (name, _), f, r in zip(module.named_parameters(), found, right, strict=True):
        close(f, r, {torch.float32: 2e-5}, name)


@torch.no_grad()
@pytest.mark.parametrize("prompt", [2, 8])
def test_module_decodes(prompt: int) -> None:
    """A prompt (shorter than the convolution's window too), then token by token, as the whole sequence at once."""
    module, block = modules()
    x = normal(2, 11, 16, seed=5)
    memory = SimpleNamespace(seqlen_offset=0, key_value_memory_dict={})
    outs = [module(x[:, :prompt], inference_params=memory)]
    for t in range(prompt, 11):
        memory.seqlen_offset = t
        outs.append(module(x[:, t : t + 1], inference_params=memory))
    close(torch.cat(outs, 1), block(x)[0])
    assert list(memory.key_value_memory_dict) == [3]
    states = module.allocate_inference_cache(2, 11)
    assert [tuple(s.shape) for s in states] == [(2, 32, 4), (2, 32, 4)]
    close(module.step(x[:, :1], *states)[0], block(x[:, :1])[0])
    with pytest.raises(ArgumentError, match="a step takes one token"):
        module.step(x, *states)
