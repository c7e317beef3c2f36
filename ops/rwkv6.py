"""RWKV-6's recurrence: a matrix state whose every key forgets at its own pace, read before each step, with a bonus for the step itself.

    o_t = r_t · (S_{t-1} + u ∘ k_t ⊗ v_t)           S_t = exp(w_t) S_{t-1} + k_t ⊗ v_t         (⊗: [n] by [p]; exp(w_t) along n)

    r, k, w  (b l h n)       w: logarithms of the decays, 0 or less, -exp(…) in the paper
    v, o     (b l h p)       u (h n)         initial_state, last_state  (b h n p) float32

n is the key axis, p the value axis.
Source: Peng et al., Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence (2024), §4.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

import scanc.dsl as sc
from scanc.problem import Make


@sc.op
def rwkv6(
    r: Float[Tensor, "b l h n"],
    k: Float[Tensor, "b l h n"],
    v: Float[Tensor, "b l h p"],
    w: Float[Tensor, "b l h n"],
    u: Float[Tensor, "h n"],
    initial_state: Float[Tensor, "b h n p"] | None = None,
) -> tuple[Float[Tensor, "b l h p"], Float[Tensor, "b h n p"]]:
    S = sc.scan(sc.exp(w), k * v, axis="l", initial=initial_state, exclusive=True)
    o = sc.sum(r * S, "n") + sc.sum(r * u * k, "n") * v
    return o, sc.last(S, "l")


@rwkv6.example
def _example(make: Make) -> dict[str, Any]:
    return {
        "r": make.normal("b l h n"),
        "k": make.normal("b l h n"),
        "v": make.normal("b l h p"),
        "w": -make.uniform("b l h n", 0.0, 0.2),
        "u": make.normal("h n", parameter=True),
        "initial_state": None,
    }


rwkv6.cases = [
    {"b": 8, "l": 2048, "h": 32, "n": 64, "p": 64},
]
