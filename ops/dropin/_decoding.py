"""How the modules keep states between calls, as mamba_ssm's generation does."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from scanc.ops.dropin._common import need


def kept_states(mixer: Any, inference_params: Any, batch_size: int) -> tuple[Tensor, Tensor]:
    """A mixer's (conv_state, ssm_state), kept under its ``layer_idx`` in ``inference_params.key_value_memory_dict``; made if new."""
    op, remedy = type(mixer).__name__, "Give each layer a number of its own."
    need(mixer.layer_idx is not None, op, "layer_idx", "None", "states are kept under it", remedy)
    kept = inference_params.key_value_memory_dict
    if mixer.layer_idx not in kept:
        kept[mixer.layer_idx] = mixer.allocate_inference_cache(batch_size, 0)
    return kept[mixer.layer_idx]


def one_token(op: str, hidden_states: Tensor) -> Tensor:
    """hidden_states (b 1 m) -> (b m). Raises ArgumentError on more."""
    long = hidden_states.shape[1]
    remedy = "Call the module on a prompt with seqlen_offset = 0."
    need(long == 1, op, "hidden_states", f"{long} long", "a step takes one token", remedy)
    return hidden_states[:, 0]


def last_inputs(x: Tensor, length: int) -> Tensor:
    """The last ``length`` of x (b d l) along time, zeros before the first."""
    return F.pad(x, (max(length - x.shape[-1], 0), 0))[..., -length:]
