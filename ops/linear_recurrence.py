"""The plain linear recurrence, one number of state a channel (HGRN, minGRU, and RG-LRU's core).

    h_t = a_t h_{t-1} + b_t

    a, b  (b d l)          initial_state, last_state  (b d) float32

Source: Martin & Cundy, Parallelizing Linear Recurrent Neural Nets Over Sequence Length (2018), §2.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

import scanc.dsl as sc
from scanc.problem import Make


@sc.op
def linear_recurrence(
    a: Float[Tensor, "b d l"], b: Float[Tensor, "b d l"], initial_state: Float[Tensor, "b d"] | None = None, *, reverse: bool = False
) -> tuple[Float[Tensor, "b d l"], Float[Tensor, "b d"]]:
    h = sc.scan(a, b, axis="l", initial=initial_state, reverse=reverse)
    return h, sc.last(h, "l")


@linear_recurrence.example
def _example(make: Make) -> dict[str, Any]:
    return {"a": make.uniform("b d l", 0.5, 1.0), "b": make.normal("b d l"), "initial_state": None}


linear_recurrence.cases = [
    {"b": 1, "d": 2048, "l": 2048},
    {"b": 8, "d": 4096, "l": 2048},
]
