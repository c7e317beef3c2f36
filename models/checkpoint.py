"""Checkpoints of Mamba and Mamba-2: a folder with ``config.json`` and weights, in the two formats that exist.

    state-spaces   mamba_ssm's: config of d_model, n_layer, ssm_cfg, …; pytorch_model.bin; names are the models' own
    huggingface    transformers' (model_type "mamba", "mamba2"): config of hidden_size, state_size, …; model.safetensors, whole
                   or in shards with an index; backbone.embedding is called backbone.embeddings

Either format is read from safetensors or from torch's own files, the latter as tensors only (``weights_only=True``): a
checkpoint cannot run code. Everything is checked before the model exists: keys of the config that would change the result
and names and shapes of all tensors, with errors that list what differs.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from scanc.errors import ArgumentError, ScancError
from scanc.models.language_model import Config, Model
from scanc.models.mamba import Mamba, MambaConfig
from scanc.models.mamba2 import Mamba2, Mamba2Config
from scanc.runtime import DAMAGE, atomic_write

Format = Literal["state-spaces", "huggingface"]

WEIGHTS = {"state-spaces": "pytorch_model.bin", "huggingface": "model.safetensors"}
# In the order they are looked for; an index names the shards that hold the tensors.
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

# What reading a damaged or hostile file raises, torch's unpickler being as varied as the files it is given.
UNREADABLE = (*DAMAGE, RuntimeError, pickle.UnpicklingError, safetensors.SafetensorError)

# Fields that state-spaces calls by the same names. A kind of model has more of them in its ssm_cfg, the arguments of mamba_ssm's mixer.
TOP = ("d_model", "n_layer", "vocab_size", "rms_norm", "norm_epsilon", "residual_in_fp32", "pad_vocab_size_multiple", "tie_embeddings")
# {transformers' key: the config's field}, for every kind of model; each has more.
HUGGINGFACE = {
    "hidden_size": "d_model", "num_hidden_layers": "n_layer", "vocab_size": "vocab_size", "state_size": "d_state",
    "conv_kernel": "d_conv", "expand": "expand", "time_step_min": "dt_min", "time_step_max": "dt_max", "time_step_floor": "dt_init_floor",
    "use_conv_bias": "conv_bias", "use_bias": "bias", "layer_norm_epsilon": "norm_epsilon", "residual_in_fp32": "residual_in_fp32",
    "tie_word_embeddings": "tie_embeddings",
}


@dataclass(frozen=True)
class Kind:
    """How the formats speak of one kind of model.

    ``layer``       mamba_ssm's name of its mixer        ``ssm``         config fields in ssm_cfg
    ``dropped``     keys of ssm_cfg that say how mamba_ssm computes or initialises
    ``fixed``       keys of ssm_cfg that can have one value here
    ``model_type``  transformers' name                   ``words``       {transformers' key: the config's field}
    ``derived``     {transformers' key: the property it must equal}
    ``silent``      transformers' defaults, where they are not the config's own
    """

    model: type[Model]
    config: type[Config]
    layer: str
    ssm: tuple[str, ...]
    dropped: tuple[str, ...]
    model_type: str
    words: Mapping[str, str]
    derived: Mapping[str, str]
    silent: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)


KINDS = (
    Kind(
        Mamba, MambaConfig, "Mamba1",
        ("d_state", "d_conv", "expand", "dt_rank", "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "conv_bias", "bias"),
        ("use_fast_path",), "mamba",
        HUGGINGFACE | {"time_step_rank": "dt_rank", "time_step_init_scheme": "dt_init", "time_step_scale": "dt_scale"},
        {"intermediate_size": "d_inner"}, {"d_model": 768, "n_layer": 32, "vocab_size": 50280},
    ),
    Kind(
        Mamba2, Mamba2Config, "Mamba2",
        ("d_state", "d_conv", "expand", "headdim", "ngroups", "A_init_range", "dt_min", "dt_max", "dt_init_floor", "dt_limit", "conv_bias",
         "bias"),
        ("use_mem_eff_path", "chunk_size", "conv_init", "sequence_parallel"), "mamba2",
        HUGGINGFACE | {"head_dim": "headdim", "n_groups": "ngroups", "time_step_limit": "dt_limit"},
        {"num_heads": "heads"}, {"d_model": 4096, "n_layer": 64, "vocab_size": 32768, "ngroups": 8, "tie_embeddings": False},
        {"d_ssm": None, "D_has_hdim": False, "rmsnorm": True, "norm_before_gate": False},
    ),
)


class CheckpointError(ScancError, ValueError):
    """A checkpoint is damaged, or is none of a model this package has."""

    template = "checkpoint {path}: {reason}. {remedy}"


def load_checkpoint(path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Model:
    """The model in the folder ``path``, of either format, its parameters in ``dtype`` (A_log and D, and Mamba-2's dt_bias, in float32).

    Raises CheckpointError where a file is missing or damaged, a tensor is missing, unexpected or of another shape, or the
    config asks for something the models do not have.
    """
    folder = Path(path)
    config = load_config(folder)
    with torch.device("meta"):
        model = _kind(config).model(config, dtype=dtype)
    expected = model.state_dict()
    found = {_own_name(name): tensor for name, tensor in _read_weights(folder).items()}
    if config.tie_embeddings and "backbone.embedding.weight" in found:
        _tie(folder, found)
    _check_tensors(folder, expected, found)
    model.load_state_dict({name: tensor.to(device=device, dtype=expected[name].dtype) for name, tensor in found.items()}, assign=True)
    model.tie_weights()
    return model


def save_checkpoint(model: Model, path: str | Path, *, format: Format = "state-spaces") -> None:
    """Writes ``model`` to the folder ``path``, for mamba_ssm's ``from_pretrained`` or for transformers'.

    Each file appears whole or not at all. Raises CheckpointError where the format has no word for the model (transformers
    has RMSNorm only), or the folder holds weights under another name, which a reader could take for these.
    """
    folder, name = Path(path), WEIGHTS.get(format, "")
    if not name:
        raise CheckpointError(f"unknown format {format!r}", path=folder, remedy=f"Formats are {', '.join(WEIGHTS)}.")
    others = [file for file in FILES if file != name and (folder / file).exists()]
    if others:
        raise CheckpointError(f"the folder already holds {others[0]}", path=folder, remedy="Choose another folder, or remove that file.")
    config = config_to_dict(model.config, format, dtype=model.backbone.embedding.weight.dtype, path=folder)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    if format == "huggingface":
        if model.config.tie_embeddings:
            del tensors["lm_head.weight"]  # safetensors refuses two names for one storage
        tensors = {key.replace("backbone.embedding.", "backbone.embeddings."): tensor for key, tensor in tensors.items()}
        data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    else:
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        data = buffer.getvalue()
    atomic_write(folder / name, data)
    atomic_write(folder / "config.json", json.dumps(config, indent=2) + "\n")


def load_config(path: str | Path) -> Config:
    """The config of the checkpoint in the folder ``path``, of either format. Raises CheckpointError."""
    folder = Path(path)
    return config_from_dict(_read_json(folder, "config.json"), folder)


def config_from_dict(data: Mapping[str, Any], path: str | Path = "") -> Config:
    """Reads either format's config; ``path`` is for the messages.

    Raises CheckpointError on a model that is none of these, a value out of range, or a key that would change the results.
    """
    try:
        if "model_type" in data:
            return _from_huggingface(data, path)
        if "d_model" in data:
            return _from_state_spaces(data, path)
    except (ArgumentError, TypeError) as error:
        raise CheckpointError(f"config.json has a value out of range ({error})", path=path, remedy="Correct config.json.") from error
    raise CheckpointError("config.json has neither 'model_type' nor 'd_model'", path=path, remedy="Use a config of one of the two formats.")


def config_to_dict(config: Config, format: Format, *, dtype: torch.dtype = torch.float32, path: str | Path = "") -> dict[str, Any]:
    """``config`` in the words of ``format``. Raises CheckpointError where it has none for it."""
    kind = _kind(config)
    if format == "state-spaces":
        default = kind.config()
        top = {key: getattr(config, key) for key in TOP}
        if top["norm_epsilon"] == default.norm_epsilon:
            del top["norm_epsilon"]  # mamba_ssm's config lacks the key: naming another value makes it refuse, rather than ignore it
        ssm = {key: getattr(config, key) for key in kind.ssm if getattr(config, key) != getattr(default, key)}
        layer = {} if kind is KINDS[0] else {"layer": kind.layer}  # mamba_ssm's own default
        return {**top, "ssm_cfg": {**layer, **ssm}, "fused_add_norm": True}
    if not config.rms_norm:
        raise CheckpointError("rms_norm=False, but transformers has RMSNorm only", path=path, remedy='Use format="state-spaces".')
    words = {key: getattr(config, name) for key, name in {**kind.words, **kind.derived}.items()}
    words |= {key: [_spelled(v) for v in value] for key, value in words.items() if isinstance(value, tuple)}
    if isinstance(config, MambaConfig):
        words["time_step_rank"] = config.rank
    # rescale_prenorm_residual is left out, false: transformers 5.23 rescales what it has just loaded where it is true.
    return {"architectures": [f"{kind.model.__name__}ForCausalLM"], "model_type": kind.model_type, **words,
            "vocab_size": config.padded_vocab_size, "hidden_act": "silu", "dtype": str(dtype).removeprefix("torch.")}


def _kind(config: Config) -> Kind:
    return next(kind for kind in KINDS if type(config) is kind.config)


def _from_state_spaces(data: Mapping[str, Any], path: str | Path) -> Config:
    ssm = dict(data.get("ssm_cfg") or {})
    layer = ssm.pop("layer", KINDS[0].layer)
    kind = next((k for k in KINDS if k.layer == layer), None)
    if kind is None:
        raise CheckpointError(f"ssm_cfg asks for layers of kind {layer!r}", path=path,
                              remedy=f"Kinds that can be loaded: {', '.join(k.layer for k in KINDS)}.")
    for key in ("attn_layer_idx", "d_intermediate"):
        if data.get(key):
            raise CheckpointError(f"config.json has {key} = {data[key]!r}", path=path, remedy="The models have no attention and no MLP.")
    for key, only in kind.fixed.items():
        if ssm.pop(key, only) != only:
            raise CheckpointError(f"ssm_cfg has a {key} other than {only!r}", path=path, remedy="This model has that one only.")
    own = {key: value for key, value in ssm.items() if key not in kind.dropped}
    unknown = sorted(set(own) - set(kind.ssm))
    if unknown:
        raise CheckpointError(f"ssm_cfg has {unknown[0]!r}, which is none of {', '.join(kind.ssm)}", path=path,
                              remedy="Correct config.json.")
    # n_layer and the vocabulary's multiple: mamba_ssm's defaults where the file is silent. The others are the config's own.
    return kind.config(**{"n_layer": 64, "pad_vocab_size_multiple": 8, **{key: data[key] for key in TOP if key in data}, **own})


def _from_huggingface(data: Mapping[str, Any], path: str | Path) -> Config:
    kind = next((k for k in KINDS if k.model_type == data["model_type"]), None)
    if kind is None:
        raise CheckpointError(f"it is a model of type {data['model_type']!r}", path=path,
                              remedy=f"Types that can be loaded: {', '.join(k.model_type for k in KINDS)}.")
    if data.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"config.json has hidden_act = {data['hidden_act']!r}", path=path, remedy="This model has silu only.")
    given = {name: data[key] for key, name in kind.words.items() if key in data}
    given |= {name: tuple(map(_number, value)) for name, value in given.items() if isinstance(value, list)}
    config = kind.config(**{**kind.silent, **given}, rms_norm=True, pad_vocab_size_multiple=1)
    for key, name in kind.derived.items():
        if data.get(key, getattr(config, name)) != getattr(config, name):
            raise CheckpointError(f"{key} = {data[key]}, but the other sizes make it {getattr(config, name)}", path=path,
                                  remedy="Correct config.json.")
    return config


def _spelled(value: float) -> Any:
    """A number as transformers writes it: JSON has no word for infinity."""
    return {"__float__": "Infinity" if value > 0 else "-Infinity"} if abs(value) == float("inf") else value


def _number(value: Any) -> Any:
    return float(value["__float__"]) if isinstance(value, dict) else value


def _own_name(name: str) -> str:
    return name.replace("backbone.embeddings.", "backbone.embedding.")


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the checkpoint on the CPU, under the file's names."""
    name = next((file for file in FILES if (folder / file).is_file()), None)
    if name is None:
        raise CheckpointError("there are no weights", path=folder, remedy=f"One of these is needed: {', '.join(FILES)}.")
    if not name.endswith(".index.json"):
        return _read_tensors(folder / name)
    index = _read_json(folder, name).get("weight_map")
    if not isinstance(index, dict):
        raise CheckpointError(f"{name} has no 'weight_map'", path=folder, remedy="Download it again.")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(index.values())):
        if Path(shard).name != shard:  # a path could lead out of the folder
            raise CheckpointError(f"{name} names the shard {shard!r}", path=folder, remedy="Shards must stand beside their index.")
        tensors.update(_read_tensors(folder / shard))
    lost = sorted(set(index) - set(tensors))
    if lost:
        raise CheckpointError(f"{name} promises {lost[0]!r} in {index[lost[0]]}, which lacks it", path=folder, remedy="Download it again.")
    return tensors


def _read_tensors(file: Path) -> dict[str, Tensor]:
    damaged = "Download or save it again."
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file.name} is missing", path=file.parent, remedy=damaged) from error
    except UNREADABLE as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{file.name} cannot be read ({why})", path=file.parent, remedy=damaged) from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(f"{file.name} is no dictionary of tensors", path=file.parent, remedy="Save the model's state_dict().")
    return tensors


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        data = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{name} is missing", path=folder, remedy="Give the folder that holds it.") from error
    except ValueError as error:
        raise CheckpointError(f"{name} is no JSON ({error})", path=folder, remedy="Correct it, or download it again.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{name} is no JSON object", path=folder, remedy="Correct it, or download it again.")
    return data


def _tie(folder: Path, found: dict[str, Tensor]) -> None:
    """A tied lm_head may be left out; where it is stored it must be the embedding, or the model is not a tied one."""
    embedding = found["backbone.embedding.weight"]
    if not torch.equal(found.setdefault("lm_head.weight", embedding), embedding):
        raise CheckpointError("lm_head.weight differs from the embedding, but the config ties them", path=folder,
                              remedy="Set tie_embeddings (tie_word_embeddings) to false in config.json.")


def _check_tensors(folder: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError where the names or shapes differ."""
    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    shaped = [f"{name} is {tuple(t.shape)}, not {tuple(expected[name].shape)}" for name, t in sorted(found.items())
              if name in expected and t.shape != expected[name].shape]
    for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shaped)):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise CheckpointError(f"tensors {what}: {', '.join(names[:4])}{more}", path=folder,
                                  remedy="The weights do not belong to this config.json.")
