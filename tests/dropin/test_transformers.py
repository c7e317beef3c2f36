"""transformers' models of Mamba and Mamba-2, unmodified, pick scanc's functions up and compute the same: logits, gradients, generation."""

from __future__ import annotations

import functools
import importlib
import sys
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from scanc import dropin
from scanc.ops.dropin import causal_conv1d, selective_scan_interface, selective_state_update, ssd_combined

# {model's file: (its classes' prefix, sizes of its config)}
MAMBA1 = {"state_size": 4, "num_hidden_layers": 2, "time_step_rank": 3}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", MAMBA1),
    "falcon_mamba": ("FalconMamba", MAMBA1),
    "mamba2": ("Mamba2", {"state_size": 8, "num_hidden_layers": 2, "head_dim": 8, "num_heads": 6, "n_groups": 2, "chunk_size": 8}),
    "bamba": (
        "Bamba",
        {"num_hidden_layers": 3, "attn_layer_indices": [1], "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
        | {"mamba_n_heads": 6, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_chunk_size": 8},
    ),
}

TOKENS = torch.randint(1, 97, (2, 23), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def called() -> Counter[str]:
    """How often each served function was called."""
    return Counter()


@pytest.fixture(scope="module")
def both(called: Counter[str]) -> Iterator[dict[str, tuple[ModuleType, ModuleType]]]:
    """{model: (its file imported plainly, the same with the drop-in installed)}: the choice of kernels falls on import."""
    names = {m: f"transformers.models.{m}.modeling_{m}" for m in MODELS}
    modules = {m: [fresh(name)] for m, name in names.items()}
    with pytest.MonkeyPatch.context() as patch:
        for home, function in (
            (selective_scan_interface, "selective_scan_fn"),
            (selective_scan_interface, "mamba_inner_fn"),
            (ssd_combined, "mamba_chunk_scan_combined"),
            (ssd_combined, "mamba_split_conv1d_scan_combined"),
            (selective_state_update, "selective_state_update"),
            (causal_conv1d, "causal_conv1d_fn"),
            (causal_conv1d, "causal_conv1d_update"),
        ):
            patch.setattr(home, function, counting(getattr(home, function), called))
        for name in names.values():
            sys.modules.pop(name, None)
        with dropin.installed():
            for m, name in names.items():
                modules[m].append(fresh(name))
    yield {m: (plain, served) for m, (plain, served) in modules.items()}
    for name in names.values():
        sys.modules.pop(name, None)


def fresh(name: str) -> ModuleType:
    sys.modules.pop(name, None)
    return importlib.import_module(name)


def counting(function: Any, called: Counter[str]) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        called[function.__name__] += 1
        return function(*args, **kwargs)

    return call


def models(both: dict[str, tuple[ModuleType, ModuleType]], name: str) -> list[Any]:
    """The same random weights in both."""
    made, (prefix, sizes) = [], MODELS[name]
    for module in both[name]:
        config = getattr(module, f"{prefix}Config")(vocab_size=97, hidden_size=24, pad_token_id=0, eos_token_id=None, **sizes)
        torch.manual_seed(0)
        made.append(getattr(module, f"{prefix}ForCausalLM")(config).eval())
    made[1].load_state_dict(made[0].state_dict())
    return made


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "scan"),
    [
        ("mamba", "selective_scan_fn"),
        ("falcon_mamba", "selective_scan_fn"),
        ("mamba2", "mamba_chunk_scan_combined"),
        ("bamba", "mamba_chunk_scan_combined"),
    ],
)
def test_logits(both: dict[str, Any], called: Counter[str], name: str, scan: str) -> None:
    plain, served = models(both, name)
    called.clear()
    wanted = plain(TOKENS, use_cache=False).logits
    assert not called
    assert relative(served(TOKENS, use_cache=False).logits, wanted) <= 1e-5
    assert called == {scan: 2, "causal_conv1d_fn": 2}


@pytest.mark.parametrize(("name", "block"), [("mamba", "mamba_inner_fn"), ("mamba2", "mamba_split_conv1d_scan_combined")])
def test_training_gradients(both: dict[str, Any], called: Counter[str], name: str, block: str) -> None:
    plain, served = models(both, name)
    called.clear()
    losses = [model.train()(TOKENS, labels=TOKENS, use_cache=False).loss for model in (plain, served)]
    for loss in losses:
        loss.backward()
    assert called[block] == 2 and abs(losses[0].item() - losses[1].item()) <= 1e-5
    for (parameter_name, p), q in zip(plain.named_parameters(), served.parameters(), strict=True):
        assert relative(q.grad, p.grad) <= 1e-4, parameter_name


@torch.no_grad()
@pytest.mark.parametrize("name", ["mamba", "mamba2", "bamba"])
def test_generation(both: dict[str, Any], called: Counter[str], name: str) -> None:
    plain, served = models(both, name)
    called.clear()
    how = {"max_new_tokens": 8, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    made = [model.generate(TOKENS, **how) for model in (plain, served)]
    assert torch.equal(made[0].sequences, made[1].sequences) and made[0].sequences.shape == (2, 31)
    assert all(relative(s, p) <= 1e-5 for p, s in zip(made[0].logits, made[1].logits, strict=True))
    assert called["selective_state_update"] == called["causal_conv1d_update"] == 14  # 2 layers, 7 tokens after the first


def test_models_imported_too_early_are_named(both: dict[str, Any], heard: list[str]) -> None:
    importlib.import_module("transformers.models.mamba.modeling_mamba")
    with dropin.installed():
        assert any("transformers.models.mamba.modeling_mamba" in line and line.startswith("warning") for line in heard)
