"""Gated linear attention: a matrix state whose every key forgets at its own pace.

    S_t = exp(g_t) S_{t-1} + k_t ⊗ v_t           o_t = scale q_t · S_t         (⊗: [n] by [p]; exp(g_t) along n, the product over n)

    q, k, g  (b l h n)       g: logarithms of the decays, 0 or less, as log_sigmoid(x W) / 16 in the paper
    v, o     (b l h p)       initial_state, last_state  (b h n p) float32
    scale    by default n^-1/2

n is the key axis, p the value axis; the paper writes d_k and d_v. Where g is the same for all keys of a head this is simple GLA, and with
a constant g retention: both are ``ssd`` with dt = 1.
Source: Yang, Wang, Shen, Panda & Kim, Gated Linear Attention Transformers with Hardware-Efficient Training (2023), §4.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

import scanc.dsl as sc
from scanc.problem import Make


@sc.op
def gla(
    q: Float[Tensor, "b l h n"],
    k: Float[Tensor, "b l h n"],
    v: Float[Tensor, "b l h p"],
    g: Float[Tensor, "b l h n"],
    initial_state: Float[Tensor, "b h n p"] | None = None,
    *,
    scale: float = 0.0,
) -> tuple[Float[Tensor, "b l h p"], Float[Tensor, "b h n p"]]:
    S = sc.scan(sc.exp(g), k * v, axis="l", initial=initial_state)
    o = sc.sum(q * S, "n")
    return o * (scale if scale else sc.rsqrt(sc.size("n") * 1.0)), sc.last(S, "l")


@gla.example
def _example(make: Make) -> dict[str, Any]:
    return {
        "q": make.normal("b l h n"),
        "k": make.normal("b l h n"),
        "v": make.normal("b l h p"),
        "g": -make.uniform("b l h n", 0.0, 0.2),
        "initial_state": None,
    }


gla.cases = [
    {"b": 8, "l": 2048, "h": 16, "n": 64, "p": 128},
    {"b": 1, "l": 16384, "h": 16, "n": 64, "p": 128},
    {"b": 8, "l": 2048, "h": 4, "n": 128, "p": 256},
]
