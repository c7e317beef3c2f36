"""Structured state-space duality, the recurrence of Mamba-2: one transition a head.

    h_t = exp(Δ_t A) h_{t-1} + Δ_t x_t ⊗ B_t           y_t = C_t · h_t + D x_t,  gated by silu(z_t)

    x, z  (b l h p)          dt  (b l h)          A, dt_bias  (h)          B, C  (b l g n), g divides h
    D     (h) or (h p)       initial_states, last_states  (b h p n) float32
    seq_idx (b l) integers: where it changes, the state is forgotten
    dt_min, dt_max: the step, after bias and softplus, is kept within them; no gradient passes where it is not

Source: Dao & Gu, Transformers are SSMs (2024), §3 and §6.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

import scanc.dsl as sc
from scanc.problem import Make

# A limit this large or larger is none: a torch schema has no word for infinity.
UNLIMITED = torch.finfo(torch.float32).max


@sc.op
def ssd(
    x: Float[Tensor, "b l h p"],
    dt: Float[Tensor, "b l h"],
    A: Float[Tensor, "h"],
    B: Float[Tensor, "b l g n"],
    C: Float[Tensor, "b l g n"],
    D: Float[Tensor, "h"] | Float[Tensor, "h p"] | None = None,
    z: Float[Tensor, "b l h p"] | None = None,
    dt_bias: Float[Tensor, "h"] | None = None,
    initial_states: Float[Tensor, "b h p n"] | None = None,
    seq_idx: Int[Tensor, "b l"] | None = None,
    *,
    dt_softplus: bool = False,
    dt_min: float = -UNLIMITED,
    dt_max: float = UNLIMITED,
) -> tuple[Float[Tensor, "b l h p"], Float[Tensor, "b h p n"]]:
    step = dt if dt_bias is None else dt + dt_bias
    if dt_softplus:
        step = sc.softplus(step)
    if dt_min > (0.0 if dt_softplus else -UNLIMITED):  # softplus is above 0 by itself
        step = sc.maximum(step, dt_min)
    if dt_max < UNLIMITED:
        step = sc.minimum(step, dt_max)
    reset = None if seq_idx is None else (seq_idx != sc.shift(seq_idx, "l")) & (sc.index("l") != 0)
    h = sc.scan(sc.exp(step * A), step * x * B, axis="l", initial=initial_states, reset=reset)
    y = sc.sum(C * h, "n")
    if D is not None:
        y = y + D * x
    if z is not None:
        y = y * sc.silu(z)
    return y, sc.last(h, "l")


@ssd.example
def _example(make: Make) -> dict[str, Any]:
    return {
        "x": make.normal("b l h p"),
        "dt": make.normal("b l h", scale=0.5),
        "A": -make.uniform("h", 1.0, 16.0, parameter=True),
        "B": make.normal("b l g n"),
        "C": make.normal("b l g n"),
        "D": make.normal("h", parameter=True),
        "z": None,
        "dt_bias": make.uniform("h", -4.0, -1.0, parameter=True),
        "initial_states": None,
        "seq_idx": None,
        "dt_softplus": True,
    }


ssd.cases = [
    {"b": 1, "l": 2048, "h": 24, "p": 64, "n": 128, "g": 1},
    {"b": 2, "l": 2048, "h": 80, "p": 64, "n": 128, "g": 1},
    {"b": 8, "l": 2048, "h": 64, "p": 64, "n": 128, "g": 1},
    {"b": 8, "l": 2048, "h": 80, "p": 64, "n": 128, "g": 1},
    {"b": 1, "l": 16384, "h": 80, "p": 64, "n": 128, "g": 1},
]
