"""Mamba-2: transformers' own model judges values and checkpoints; chunks, steps and packed sequences give what one forward gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from scanc.errors import ArgumentError
from scanc.models import CheckpointError, Mamba2, Mamba2Config, MambaState, generate, load_checkpoint, save_checkpoint
from scanc.models.checkpoint import config_from_dict, config_to_dict

Relative = Callable[[Tensor, Tensor], float]

TOKENS = torch.randint(61, (2, 13), generator=torch.Generator().manual_seed(1))
SMALL = Mamba2Config(d_model=24, n_layer=2, vocab_size=61, d_state=8, headdim=8, ngroups=2)

# One layer's names in state-spaces' released files.
LAYER = {
    "norm.weight", "mixer.A_log", "mixer.D", "mixer.dt_bias", "mixer.in_proj.weight", "mixer.conv1d.weight", "mixer.conv1d.bias",
    "mixer.norm.weight", "mixer.out_proj.weight",
}


def perturbed(model: Any) -> Any:
    """Norms, biases, A and D not all alike, so that a mix-up of channels, heads or groups shows."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("A_log", ".D", "norm.weight", "norm_f.weight", "bias")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture
def model() -> Mamba2:
    torch.manual_seed(0)
    return perturbed(Mamba2(SMALL))


def agree(relative: Relative, found: MambaState, wanted: MambaState) -> bool:
    return all(relative(f, w) <= 1e-5 for f, w in zip(found.conv + found.ssm, wanted.conv + wanted.ssm, strict=True))


def continued(model: Mamba2, cuts: tuple[int, ...]) -> tuple[Tensor, MambaState]:
    """Chunk after chunk."""
    state, parts = None, []
    for chunk in TOKENS.tensor_split(cuts, dim=1):
        logits, state = model(chunk, state)
        parts.append(logits)
    assert state is not None
    return torch.cat(parts, 1), state


@pytest.mark.parametrize("cuts", [(6,), (1, 3, 12)])
def test_chunks_equal_one_prefill(model: Mamba2, relative: Relative, cuts: tuple[int, ...]) -> None:
    whole, end = model(TOKENS)
    logits, state = continued(model, cuts)
    assert relative(logits, whole) <= 1e-5 and agree(relative, state, end)
    assert state.ssm[0].shape == (2, 6, 8, 8) and state.conv[0].shape == (2, 48 + 32, 3)


@torch.no_grad()
@pytest.mark.parametrize("prompt", [0, 5])
def test_steps_equal_one_prefill(model: Mamba2, relative: Relative, prompt: int) -> None:
    whole, end = model(TOKENS)
    state = model(TOKENS[:, :prompt])[1] if prompt else model.allocate_state(2)
    for t in range(prompt, 13):
        assert relative(model.step(TOKENS[:, t], state), whole[:, t]) <= 1e-5
    assert agree(relative, state, end)


@torch.no_grad()
def test_packed_sequences_do_not_see_each_other(model: Mamba2, relative: Relative) -> None:
    seq_idx = torch.tensor([0] * 5 + [1] * 2 + [2] * 6, dtype=torch.int32).repeat(2, 1)
    packed, end = model(TOKENS, seq_idx=seq_idx)
    parts = [model(chunk) for chunk in TOKENS.tensor_split((5, 7), dim=1)]
    assert relative(packed, torch.cat([logits for logits, _ in parts], 1)) <= 1e-5
    assert agree(relative, end, parts[-1][1])


def test_gradients_pass_through_the_state(model: Mamba2, relative: Relative) -> None:
    """Two chunks on the compiled op against one forward in torch operations."""
    found = {}
    for scan, cuts in (("reference", ()), ("scanc", (6,))):
        logits, _ = continued(model.use_scan(scan), cuts)
        F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
        found[scan] = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
    assert found["scanc"].keys() == dict(model.named_parameters()).keys()
    for name, gradient in found["scanc"].items():
        assert relative(gradient, found["reference"][name]) <= 1e-4, name


@torch.no_grad()
def test_generation_follows_the_forward_pass(model: Mamba2, relative: Relative) -> None:
    out = generate(model, TOKENS[:, :7], max_new_tokens=6, temperature=0)
    logits, _ = model.use_scan("reference")(out)
    assert torch.equal(out[:, 7:], logits[:, 6:-1, :61].argmax(-1))
    assert torch.equal(generate(model, TOKENS[:, :7], max_new_tokens=6, temperature=0), out)


@torch.no_grad()
def test_bfloat16_and_compilation(model: Mamba2, relative: Relative) -> None:
    wanted, state = model(TOKENS)
    half = Mamba2(SMALL, dtype=torch.bfloat16)
    half.load_state_dict(model.state_dict())
    mixer = half.layers[0].mixer
    assert mixer.A_log.dtype == mixer.D.dtype == mixer.dt_bias.dtype == torch.float32  # type: ignore[union-attr]
    logits, _ = half(TOKENS)
    assert logits.dtype == torch.bfloat16 and relative(logits, wanted) <= 0.03
    logits, _ = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)(TOKENS)
    assert relative(logits, wanted) <= 1e-5
    stepped = torch.compile(model.step, fullgraph=True, backend="aot_eager", dynamic=False)(TOKENS[:, 0], state.clone())
    assert relative(stepped, model.step(TOKENS[:, 0], state)) <= 1e-5


# -- checkpoints ------------------------------------------------------------------------------------------------------------------


def theirs(**changes: Any) -> transformers.Mamba2ForCausalLM:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 61, "hidden_size": 24, "state_size": 8, "num_hidden_layers": 2, "head_dim": 8, "num_heads": 6,
                             "n_groups": 2, "layer_norm_epsilon": 1e-4, "chunk_size": 8, "pad_token_id": 0, **changes}
    return perturbed(transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**sizes)).eval())


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"use_bias": True, "use_conv_bias": False, "tie_word_embeddings": True, "n_groups": 1},
                                     {"time_step_limit": (0.2, 0.9)}])
def test_transformers_model_loads_and_agrees(tmp_path: Path, relative: Relative, changes: dict[str, Any]) -> None:
    model = theirs(**changes)
    model.save_pretrained(tmp_path)
    ours = load_checkpoint(tmp_path)
    assert isinstance(ours, Mamba2)
    wanted = model(TOKENS).logits
    assert relative(ours(TOKENS)[0], wanted) <= 1e-5
    _, state = ours(TOKENS[:, :7])
    steps = torch.stack([ours.step(TOKENS[:, t], state) for t in range(7, 13)], 1)
    assert relative(steps, wanted[:, 7:]) <= 1e-5


@torch.no_grad()
def test_ours_loads_in_transformers(tmp_path: Path, model: Mamba2, relative: Relative) -> None:
    save_checkpoint(model, tmp_path, format="huggingface")
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    found, report = loaded
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert relative(found.eval()(TOKENS).logits, model(TOKENS)[0]) <= 1e-5


def test_state_spaces_round_trip(tmp_path: Path, model: Mamba2) -> None:
    save_checkpoint(model, tmp_path)
    names = set(torch.load(tmp_path / "pytorch_model.bin", weights_only=True))
    assert names == {"backbone.embedding.weight", "backbone.norm_f.weight", "lm_head.weight",
                     *(f"backbone.layers.{i}.{name}" for i in range(2) for name in LAYER)}
    data = json.loads((tmp_path / "config.json").read_text())
    assert data["ssm_cfg"] == {"layer": "Mamba2", "d_state": 8, "headdim": 8, "ngroups": 2}
    again = load_checkpoint(tmp_path)
    assert again.config == SMALL
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


def test_configs() -> None:
    """mamba2-130m's config.json, word for word; and every field through both formats."""
    config = config_from_dict({"d_model": 768, "d_intermediate": 0, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba2"},
                               "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True,
                               "pad_vocab_size_multiple": 16, "tie_embeddings": True})
    assert config == Mamba2Config() and isinstance(config, Mamba2Config)
    assert (config.padded_vocab_size, config.heads, config.conv_shape, config.ssm_shape) == (50288, 24, (1792, 3), (24, 64, 128))
    config = Mamba2Config(d_model=40, n_layer=3, vocab_size=64, d_state=7, d_conv=2, expand=3, headdim=20, ngroups=3, dt_min=0.002,
                          dt_max=0.2, dt_init_floor=1e-3, dt_limit=(0.1, float("inf")), conv_bias=False, bias=True, norm_epsilon=1e-6,
                          residual_in_fp32=False, pad_vocab_size_multiple=1, tie_embeddings=False)
    for form in ("state-spaces", "huggingface"):
        assert config_from_dict(json.loads(json.dumps(config_to_dict(config, form)))) == config
    for change, reason in (({"rmsnorm": False}, "rmsnorm other than True"), ({"dt_rank": 3}, "ssm_cfg has 'dt_rank'")):
        with pytest.raises(CheckpointError, match=reason):
            config_from_dict({"d_model": 64, "ssm_cfg": {"layer": "Mamba2", **change}})
    with pytest.raises(CheckpointError, match="num_heads = 5, but the other sizes make it 6"):
        config_from_dict({"model_type": "mamba2", "hidden_size": 24, "head_dim": 8, "n_groups": 1, "num_heads": 5})
    assert config_from_dict({"d_model": 64, "ssm_cfg": {"layer": "Mamba2", "chunk_size": 128, "rmsnorm": True}}).d_model == 64


@pytest.mark.parametrize("change, argument", [
    ({"headdim": 7}, "headdim"), ({"ngroups": 4}, "ngroups"), ({"dt_min": 0.2}, "dt_min"), ({"A_init_range": (0, 1)}, "A_init_range"),
    ({"dt_limit": (1, 0.5)}, "dt_limit"), ({"d_state": 0}, "d_state"),
])
def test_config_refuses(change: dict[str, Any], argument: str) -> None:
    sizes = {"d_model": 24, "headdim": 8, **change}
    with pytest.raises(ArgumentError, match=f"Mamba2Config: argument '{argument}'"):
        Mamba2Config(**sizes)
