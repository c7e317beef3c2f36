"""Checkpoints: transformers' own model is the judge of its format; names and configs; everything that does not fit is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor

from scanc.models import CheckpointError, Mamba, MambaConfig, load_checkpoint, load_config, save_checkpoint
from scanc.models.checkpoint import config_from_dict, config_to_dict

Relative = Callable[[Tensor, Tensor], float]
Make = Callable[[MambaConfig], Mamba]

TOKENS = torch.randint(61, (2, 11), generator=torch.Generator().manual_seed(1))

# One layer's names in state-spaces' released files.
LAYER = {
    "norm.weight", "mixer.A_log", "mixer.D", "mixer.in_proj.weight", "mixer.conv1d.weight", "mixer.conv1d.bias", "mixer.x_proj.weight",
    "mixer.dt_proj.weight", "mixer.dt_proj.bias", "mixer.out_proj.weight",
}


def theirs(**changes: object) -> transformers.MambaForCausalLM:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 61, "hidden_size": 24, "state_size": 5, "num_hidden_layers": 2, "conv_kernel": 3,
                             "time_step_rank": 4, "layer_norm_epsilon": 1e-4, **changes}
    model = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("changes", [{}, {"use_bias": True, "use_conv_bias": False, "tie_word_embeddings": False, "expand": 3}])
def test_transformers_model_loads_and_agrees(tmp_path: Path, relative: Relative, changes: dict[str, Any]) -> None:
    model = theirs(**changes)
    model.save_pretrained(tmp_path)
    ours = load_checkpoint(tmp_path).use_scan("reference")
    with torch.no_grad():
        wanted = model(TOKENS).logits
        assert relative(ours(TOKENS)[0], wanted) <= 1e-5
        _, state = ours(TOKENS[:, :7])
        steps = torch.stack([ours.step(TOKENS[:, t], state) for t in range(7, 11)], 1)
        assert relative(steps, wanted[:, 7:]) <= 1e-5


def test_sharded_transformers_model_loads(tmp_path: Path, relative: Relative) -> None:
    model = theirs()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with torch.no_grad():
        assert relative(load_checkpoint(tmp_path).use_scan("loop")(TOKENS)[0], model(TOKENS).logits) <= 1e-5
    next(tmp_path.glob("*-00001-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_ours_loads_in_transformers(tmp_path: Path, make_model: Make, relative: Relative, tied: bool) -> None:
    ours = make_model(MambaConfig(d_model=24, n_layer=2, vocab_size=61, d_state=5, d_conv=3, norm_epsilon=1e-3, tie_embeddings=tied,
                                  bias=True))
    save_checkpoint(ours, tmp_path, format="huggingface")
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    with torch.no_grad():
        assert relative(model.eval()(TOKENS).logits, ours(TOKENS)[0]) <= 1e-5
    again = load_checkpoint(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), ours.state_dict().values(), strict=True))


def test_state_spaces_round_trip(tmp_path: Path, make_model: Make) -> None:
    config = MambaConfig(d_model=24, n_layer=2, vocab_size=61, d_state=5, dt_rank=3, expand=3, conv_bias=True)
    ours = make_model(config)
    save_checkpoint(ours, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "pytorch_model.bin"]
    names = set(torch.load(tmp_path / "pytorch_model.bin", weights_only=True))
    assert names == {"backbone.embedding.weight", "backbone.norm_f.weight", "lm_head.weight",
                     *(f"backbone.layers.{i}.{name}" for i in range(2) for name in LAYER)}
    data = json.loads((tmp_path / "config.json").read_text())
    assert data["d_model"] == 24 and data["vocab_size"] == 61 and data["ssm_cfg"] == {"d_state": 5, "dt_rank": 3, "expand": 3}
    again = load_checkpoint(tmp_path, dtype=torch.bfloat16)
    assert again.config == config
    assert again.lm_head.weight is again.backbone.embedding.weight
    assert again.lm_head.weight.dtype == torch.bfloat16 and again.layers[1].mixer.A_log.dtype == torch.float32
    assert torch.equal(again.layers[1].mixer.A_log, ours.layers[1].mixer.A_log)
    save_checkpoint(ours, tmp_path)  # over itself


def test_a_released_config_reads_as_the_paper_has_it() -> None:
    """mamba-130m's config.json, word for word."""
    config = config_from_dict({"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {}, "rms_norm": True,
                               "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8})
    assert config == MambaConfig(d_model=768, n_layer=24, vocab_size=50277)
    assert (config.padded_vocab_size, config.d_inner, config.rank, config.d_state) == (50280, 1536, 48, 16)


def test_configs_survive_both_formats() -> None:
    config = MambaConfig(d_model=40, n_layer=3, vocab_size=64, d_state=7, d_conv=2, expand=3, dt_rank=9, dt_min=0.002, dt_max=0.2,
                         dt_init="constant", dt_scale=0.5, dt_init_floor=1e-3, conv_bias=False, bias=True, norm_epsilon=1e-6,
                         residual_in_fp32=False, pad_vocab_size_multiple=1, tie_embeddings=False)
    for form in ("state-spaces", "huggingface"):
        assert config_from_dict(json.loads(json.dumps(config_to_dict(config, form)))) == config


@pytest.mark.parametrize("change, reason", [
    ({"model_type": "falcon_mamba"}, "model of type 'falcon_mamba'"), ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ({"intermediate_size": 40}, "intermediate_size = 40, but the other sizes make it 48"), ({"hidden_size": "many"}, "value out of range"),
])
def test_foreign_transformers_configs_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        config_from_dict({"model_type": "mamba", "hidden_size": 24, **change})


@pytest.mark.parametrize("change, reason", [
    ({"ssm_cfg": {"layer": "Mamba3"}}, "layers of kind 'Mamba3'"), ({"attn_layer_idx": [1]}, "attn_layer_idx"),
    ({"ssm_cfg": {"d_states": 16}}, "ssm_cfg has 'd_states'"), ({"d_model": -1}, "argument 'd_model' is -1"),
])
def test_foreign_state_spaces_configs_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        config_from_dict({"d_model": 24, "n_layer": 2, **change})
    with pytest.raises(CheckpointError, match="neither 'model_type' nor 'd_model'"):
        config_from_dict({"layers": 2})


@pytest.fixture
def saved(tmp_path: Path, model: Mamba) -> tuple[Path, dict[str, Tensor]]:
    save_checkpoint(model, tmp_path)
    return tmp_path, torch.load(tmp_path / "pytorch_model.bin", weights_only=True)


def test_wrong_tensors_are_named(saved: tuple[Path, dict[str, Tensor]]) -> None:
    folder, tensors = saved

    def refused(reason: str, **changes: Any) -> None:
        changed = {k: v for k, v in {**tensors, **{k.replace("__", "."): v for k, v in changes.items()}}.items() if v is not None}
        torch.save(changed, folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint(folder)

    refused("tensors missing: backbone.norm_f.weight", backbone__norm_f__weight=None)
    refused("tensors missing: backbone.embedding.weight", backbone__embedding__weight=None)
    refused("tensors unexpected: backbone.norm_f.bias", backbone__norm_f__bias=torch.zeros(24))
    refused(r"backbone.norm_f.weight is \(25,\), not \(24,\)", backbone__norm_f__weight=torch.zeros(25))
    refused("lm_head.weight differs from the embedding", lm_head__weight=torch.zeros(64, 24))
    refused("is no dictionary of tensors", step=3)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_embeddings": False}))
    refused("tensors missing: lm_head.weight", lm_head__weight=None)


def test_damaged_files_are_named(saved: tuple[Path, dict[str, Tensor]]) -> None:
    folder, tensors = saved
    whole = (folder / "pytorch_model.bin").read_bytes()
    for damaged in (whole[:len(whole) // 2], b"", b"not a checkpoint"):
        (folder / "pytorch_model.bin").write_bytes(damaged)
        with pytest.raises(CheckpointError, match="pytorch_model.bin cannot be read"):
            load_checkpoint(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="there are no weights"):
        load_checkpoint(folder)
    (folder / "model.safetensors").write_bytes(safetensors.torch.save({"a": torch.zeros(9)})[:-4])
    with pytest.raises(CheckpointError, match="model.safetensors cannot be read"):
        load_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    for text, reason in (("{}", "no 'weight_map'"), ('{"weight_map": {"a": "../a.safetensors"}}', "must stand beside"),
                         ("[", "no JSON"), ("[]", "no JSON object")):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint(folder)
    safetensors.torch.save_file({"b": torch.zeros(1)}, folder / "part.safetensors")
    index.write_text('{"weight_map": {"a": "part.safetensors"}}')
    with pytest.raises(CheckpointError, match="promises 'a' in part.safetensors"):
        load_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="config.json is missing"):
        load_config(folder)


class Trap:
    """Pickles as a call: what a hostile checkpoint does."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("trapped"),)  # type: ignore[return-value]


def test_a_checkpoint_cannot_run_code(saved: tuple[Path, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, tensors = saved
    monkeypatch.chdir(folder)
    torch.save({**tensors, "trap": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pytorch_model.bin cannot be read"):
        load_checkpoint(folder)
    assert not Path("trapped").exists()


def test_saving_refuses_what_a_reader_would_misread(tmp_path: Path, model: Mamba, make_model: Make) -> None:
    save_checkpoint(model, tmp_path)
    with pytest.raises(CheckpointError, match="already holds pytorch_model.bin"):
        save_checkpoint(model, tmp_path, format="huggingface")
    with pytest.raises(CheckpointError, match="unknown format 'onnx'"):
        save_checkpoint(model, tmp_path, format="onnx")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="RMSNorm only"):
        save_checkpoint(make_model(MambaConfig(d_model=16, n_layer=1, vocab_size=8, rms_norm=False)), tmp_path / "b", format="huggingface")
    assert not (tmp_path / "b").exists()
