"""The Mamba-2 module: transformers' own mixer gives the same, and so does decoding from any prompt, alone or packed."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scanc.errors import ArgumentError
from scanc.ops.dropin import _decoding
from scanc.ops.dropin.mamba2 import Mamba2
from tests.checks import GRADIENT, close, normal

SIZES: dict[str, Any] = {"d_model": 12, "d_state": 5, "headdim": 4, "ngroups": 2, "layer_idx": 3}


def module(**change: Any) -> Mamba2:
    torch.manual_seed(0)
    made = Mamba2(**{**SIZES, **change})
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name in ("D", "dt_bias", "norm.weight", "conv1d.bias"):
                parameter.add_(0.5 * torch.randn_like(parameter))
    return made


def memory() -> Any:
    return SimpleNamespace(seqlen_offset=0, key_value_memory_dict={})


def test_it_is_transformers_mixer() -> None:
    """The same parameters under the same names: values and every gradient."""
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    own = module(dt_limit=(0.2, 1.5))
    config = Mamba2Config(
        hidden_size=12, state_size=5, head_dim=4, num_heads=6, n_groups=2, expand=2, time_step_limit=(0.2, 1.5), num_hidden_layers=1
    )
    theirs = Mamba2Mixer(config, layer_idx=0)
    theirs.load_state_dict(own.state_dict())
    x, come = normal(2, 19, 12, seed=5), normal(2, 19, 12, seed=6)
    outs = own(x), theirs.eval()(x)
    close(*outs)
    for out in outs:
        out.backward(come)
    right = dict(theirs.named_parameters())
    for name, parameter in own.named_parameters():
        close(parameter.grad, right[name].grad, GRADIENT, name)


@torch.no_grad()
@pytest.mark.parametrize("prompt", [2, 8])
@pytest.mark.parametrize(
    "change",
    [{}, {"d_ssm": 16, "rmsnorm": False, "D_has_hdim": True}, {"dt_limit": (0.3, 1.0), "norm_before_gate": True, "conv_init": 0.5}],
)
def test_decoding_goes_on_from_a_prompt(prompt: int, change: dict[str, Any]) -> None:
    own, x = module(**change), normal(2, 11, 12, seed=5)
    kept = memory()
    outs = [own(x[:, :prompt], inference_params=kept)]
    for t in range(prompt, 11):
        kept.seqlen_offset = t
        outs.append(own(x[:, t : t + 1], inference_params=kept))
    wanted = own(x)
    close(torch.cat(outs, 1), wanted)
    assert list(kept.key_value_memory_dict) == [3]
    states = own.allocate_inference_cache(2, 11)
    close(own.step(x[:, :1], *states)[0], wanted[:, :1])
    close(own(x.flatten(0, 1), seqlen=11), wanted.flatten(0, 1))


@torch.no_grad()
def test_packed_prompts() -> None:
    """Several prompts in one row, each as if alone; each leaves the states that its own next token needs."""
    own, bounds = module(), (0, 2, 9, 16)
    x, more = normal(1, 16, 12, seed=5), normal(3, 1, 12, seed=6)
    kept, cu = memory(), torch.tensor(bounds, dtype=torch.int32)
    out = own(x, cu_seqlens=cu, inference_params=kept)
    kept.seqlen_offset = 16
    last = own(more, inference_params=kept)
    for i, (s, e) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        alone = own(torch.cat([x[:, s:e], more[i : i + 1]], dim=1))
        close(out[:, s:e], alone[:, :-1])
        close(last[i : i + 1], alone[:, -1:])
    close(own(x, cu_seqlens=cu), out)
    ids = torch.tensor([[0] * 2 + [1] * 7 + [2] * 7], dtype=torch.int32)
    close(own(x, seq_idx=ids), out)


def test_parameters_are_mamba_ssms() -> None:
    names = "in_proj.weight conv1d.weight conv1d.bias dt_bias A_log D norm.weight out_proj.weight"
    own = module(dtype=torch.bfloat16)
    assert set(own.state_dict()) == set(names.split())
    assert own.D.dtype == torch.float32 and own.A_log.dtype == own.conv1d.weight.dtype == torch.bfloat16
    assert own.in_proj.weight.shape == (2 * 24 + 2 * 2 * 5 + 6, 12)
    out = own(normal(2, 9, 12, seed=5, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16 and out.isfinite().all()
    arguments = (
        "self d_model d_state d_conv conv_init expand headdim d_ssm ngroups A_init_range D_has_hdim rmsnorm norm_before_gate dt_min dt_max "
        "dt_init_floor dt_limit bias conv_bias chunk_size use_mem_eff_path layer_idx process_group sequence_parallel device dtype"
    )
    assert list(inspect.signature(Mamba2.__init__).parameters) == arguments.split()
    assert list(inspect.signature(Mamba2.forward).parameters) == ["self", "u", "seqlen", "seq_idx", "cu_seqlens", "inference_params"]


def test_a_fresh_layer_has_steps_and_decays_in_range() -> None:
    torch.manual_seed(0)
    made = Mamba2(256, headdim=2)
    dt = torch.nn.functional.softplus(made.dt_bias.detach())
    assert 0.99e-3 <= float(dt.min()) < 2e-3 and 0.08 < float(dt.max()) <= 0.101
    assert -16 <= float(made.A.detach().min()) < -14 and -3 < float(made.A.detach().max()) <= -1


@pytest.mark.parametrize(
    ("change", "argument"),
    [({"headdim": 5}, "headdim"), ({"ngroups": 4}, "ngroups"), ({"A_init_range": (0, 1)}, "A_init_range"), ({"d_ssm": 28}, "d_ssm")],
)
def test_refusals_name_what_is_wrong(change: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"Mamba2: argument '{argument}'"):
        module(**change)
    with pytest.raises(ArgumentError, match="'process_group'"):
        module(process_group=object())
    own = module()
    with pytest.raises(ArgumentError, match="a step takes one token"):
        own.step(normal(2, 3, 12, seed=1), *own.allocate_inference_cache(2, 3))


def test_one_sequences_step_brings_nearer_what_fits_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_decoding, "cache_bytes", lambda device: 1 << 20)
    weight, large = torch.empty(256, 256), torch.empty(1024, 1024)
    one, several = torch.empty(1, 64, 16), torch.empty(2, 64, 16)
    both, alone = _decoding.read_soon(one, weight), _decoding.read_soon(one, large)
    assert [id(t) for t in both] == [id(one), id(weight)] and [id(t) for t in alone] == [id(one)]
    assert _decoding.read_soon(several, weight) == ()
