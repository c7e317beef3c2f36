"""The model: chunks, steps and packed sequences all give what one forward gives; initialisation; precision; errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scanc.errors import ArgumentError
from scanc.models import Mamba, MambaConfig, MambaState

Relative = Callable[[Tensor, Tensor], float]
Make = Callable[[MambaConfig], Mamba]

TOKENS = torch.randint(61, (3, 13), generator=torch.Generator().manual_seed(1))


def states_agree(relative: Relative, found: MambaState, wanted: MambaState, bound: float = 1e-5) -> bool:
    return all(relative(f, w) <= bound for f, w in zip(found.conv + found.ssm, wanted.conv + wanted.ssm, strict=True))


@pytest.mark.parametrize("cuts", [(6,), (1, 2), (2, 4, 6, 8, 10, 12), (12,)])
def test_chunks_equal_one_prefill(model: Mamba, relative: Relative, cuts: tuple[int, ...]) -> None:
    whole, end = model(TOKENS)
    state: MambaState | None = None
    parts = []
    for chunk in TOKENS.tensor_split(cuts, dim=1):
        logits, state = model(chunk, state)
        parts.append(logits)
    assert relative(torch.cat(parts, 1), whole) <= 1e-5
    assert state is not None and states_agree(relative, state, end)


@pytest.mark.parametrize("taps", [1, 2, 4])
def test_steps_equal_one_prefill(make_model: Make, relative: Relative, taps: int) -> None:
    model = make_model(MambaConfig(d_model=24, n_layer=2, vocab_size=61, d_state=5, d_conv=taps))
    whole, end = model(TOKENS)
    with torch.no_grad():
        _, state = model(TOKENS[:, :5])
        for t in range(5, 13):
            assert relative(model.step(TOKENS[:, t], state), whole[:, t]) <= 1e-5
    if taps > 1:
        assert states_agree(relative, state, end)
    fresh = model.allocate_state(3)
    with torch.no_grad():
        assert relative(model.step(TOKENS[:, 0], fresh), whole[:, 0]) <= 1e-5


def test_step_writes_the_state_in_place_and_forward_leaves_it(model: Mamba) -> None:
    with torch.no_grad():
        _, state = model(TOKENS)
        kept = state.clone()
        model(TOKENS, state)
        assert all(torch.equal(a, b) for a, b in zip(state.ssm + state.conv, kept.ssm + kept.conv, strict=True))
        addresses = [t.data_ptr() for t in state.ssm + state.conv]
    assert not model.step(TOKENS[:, 0], state).requires_grad
    assert addresses == [t.data_ptr() for t in state.ssm + state.conv]
    assert not any(torch.equal(a, b) for a, b in zip(state.ssm + state.conv, kept.ssm + kept.conv, strict=True))


def test_gradients_pass_through_the_state(model: Mamba, relative: Relative) -> None:
    F.cross_entropy(model(TOKENS)[0][:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    first, state = model(TOKENS[:, :6])
    second, _ = model(TOKENS[:, 6:], state)
    F.cross_entropy(torch.cat([first, second], 1)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and relative(p.grad, wanted[name]) <= 1e-4, name


def test_nothing_looks_ahead(model: Mamba) -> None:
    changed = TOKENS.clone()
    changed[:, 8] = (changed[:, 8] + 1) % 61
    before, after = model(TOKENS)[0], model(changed)[0]
    assert torch.equal(before[:, :8], after[:, :8])
    assert all(not torch.equal(before[:, t], after[:, t]) for t in range(8, 13))


def test_packed_sequences_do_not_see_each_other(model: Mamba, relative: Relative) -> None:
    """Three sequences in one row, the second shorter than the convolution, against each alone; the first resumes from a state."""
    _, before = model(TOKENS[:, :4])
    seq_idx = torch.tensor([0] * 5 + [1] * 2 + [2] * 6, dtype=torch.int32).repeat(3, 1)
    packed, end = model(TOKENS, before, seq_idx=seq_idx)
    first, _ = model(TOKENS[:, :5], before)
    second, _ = model(TOKENS[:, 5:7])
    third, alone = model(TOKENS[:, 7:])
    assert relative(packed, torch.cat([first, second, third], 1)) <= 1e-5
    assert states_agree(relative, end, alone)
    short = torch.tensor([0] * 12 + [1], dtype=torch.int32).repeat(3, 1)
    assert states_agree(relative, model(TOKENS, seq_idx=short)[1], model(TOKENS[:, 12:])[1])


def test_last_tokens_alone(model: Mamba, relative: Relative) -> None:
    whole, _ = model(TOKENS)
    last, _ = model(TOKENS, num_last_tokens=2)
    assert last.shape == (3, 2, 64)
    assert relative(last, whole[:, -2:]) <= 1e-6


def test_layer_norm_biases_and_untied_head(make_model: Make, relative: Relative) -> None:
    model = make_model(MambaConfig(d_model=24, n_layer=1, vocab_size=61, rms_norm=False, bias=True, conv_bias=False, tie_embeddings=False,
                                   residual_in_fp32=False, dt_init="constant"))
    names = set(model.state_dict())
    assert {"backbone.norm_f.bias", "backbone.layers.0.mixer.in_proj.bias", "backbone.layers.0.mixer.out_proj.bias"} <= names
    assert "backbone.layers.0.mixer.conv1d.bias" not in names
    assert model.lm_head.weight is not model.backbone.embedding.weight
    whole, _ = model(TOKENS)
    with torch.no_grad():
        _, state = model(TOKENS[:, :12])
        assert relative(model.step(TOKENS[:, 12], state), whole[:, 12]) <= 1e-5


def test_initialisation() -> None:
    torch.manual_seed(0)
    config = MambaConfig(d_model=256, n_layer=4, vocab_size=256)
    model = Mamba(config)
    mixer = model.layers[0].mixer
    dt = F.softplus(mixer.dt_proj.bias).detach()
    assert 1e-3 * 0.999 <= float(dt.min()) < 1.2e-3 and 0.09 < float(dt.max()) <= 0.1 * 1.001
    assert abs(float(dt.log().mean()) - 0.5 * (math.log(1e-3) + math.log(1e-1))) < 0.2  # uniform in the logarithm
    assert torch.allclose(mixer.A, -torch.arange(1.0, 17.0).expand(512, 16))
    assert float(mixer.dt_proj.weight.detach().abs().max()) <= config.rank**-0.5
    bound = 1 / math.sqrt(512) / math.sqrt(4)  # kaiming uniform, scaled by the depth
    assert 0.95 * bound < float(mixer.out_proj.weight.detach().abs().max()) <= bound
    assert torch.equal(mixer.D, torch.ones(512))
    assert model.lm_head.weight is model.backbone.embedding.weight
    logits, _ = model(torch.randint(256, (2, 16)))
    assert abs(F.cross_entropy(logits.flatten(0, 1), torch.randint(256, (32,))).item() - math.log(256)) < 0.5


def test_bfloat16_parameters_and_autocast(model: Mamba, relative: Relative) -> None:
    wanted, _ = model(TOKENS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, state = model(TOKENS)
        stepped = model.step(TOKENS[:, 0], state)
    assert logits.dtype == stepped.dtype == torch.bfloat16
    assert state.ssm[0].dtype == torch.float32
    assert relative(logits, wanted) <= 0.03
    half = Mamba(model.config, dtype=torch.bfloat16).use_scan("loop")
    half.load_state_dict(model.state_dict())
    assert half.layers[0].mixer.A_log.dtype == half.layers[0].mixer.D.dtype == torch.float32
    logits, state = half(TOKENS)
    assert logits.dtype == state.conv[0].dtype == torch.bfloat16
    assert state.ssm[0].dtype == torch.float32
    assert relative(logits, wanted) <= 0.03
    with torch.no_grad():
        _, state = half(TOKENS[:, :12])
        assert relative(half.step(TOKENS[:, 12], state), wanted[:, 12]) <= 0.05


@pytest.mark.parametrize("change, argument", [
    ({"d_model": 0}, "d_model"), ({"expand": 1.5}, "expand"), ({"dt_rank": "full"}, "dt_rank"), ({"dt_init": "zeros"}, "dt_init"),
    ({"dt_min": 0.2}, "dt_min"),
])
def test_config_refuses(change: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"MambaConfig: argument '{argument}'"):
        replace(MambaConfig(), **change)


def test_config_sizes() -> None:
    config = MambaConfig(d_model=100, vocab_size=50277)
    assert (config.d_inner, config.rank, config.padded_vocab_size) == (200, 7, 50280)
    assert replace(config, dt_rank=3, pad_vocab_size_multiple=1).rank == 3
    assert replace(config, pad_vocab_size_multiple=1).padded_vocab_size == 50277


def test_wrong_arguments_are_named(model: Mamba) -> None:
    with pytest.raises(ArgumentError, match=r"'tokens' is \(13,\), but they must be \(b l\)"):
        model(TOKENS[0])
    with pytest.raises(ArgumentError, match=r"'tokens' is \(3, 0\)"):
        model(TOKENS[:, :0])
    with pytest.raises(ArgumentError, match="'tokens' is torch.float32"):
        model(TOKENS.float())
    with pytest.raises(ArgumentError, match="'state.conv' is 2 tensors"):
        model(TOKENS, model.allocate_state(2))
    with pytest.raises(ArgumentError, match=r"'tokens' is \(3, 13\), but they must be \(b\)"):
        model.step(TOKENS, model.allocate_state(3))
    with pytest.raises(ArgumentError, match="'seq_idx'"):
        model(TOKENS, seq_idx=torch.zeros(3, 12, dtype=torch.int32))
    with pytest.raises(ArgumentError, match="Names known: scanc, reference"):
        model.use_scan("fast")
