"""CUDA blocks whose threads share a lane's time: each a span of its steps."""

from __future__ import annotations

import pytest

from scanc.op import REGISTRY
from scanc.problem import Problem
from scanc.schedule import RecurrentSchedule
from tests.codegen.kernels import OWN
from tests.codegen.test_cuda import check

WHOLE = dict(b=1, d=8, l=64, n=4, g=1)
RAGGED = dict(b=2, d=11, l=77, n=4, g=1)
GROUPS = dict(b=2, d=10, l=45, n=6, g=2)


@pytest.fixture(autouse=True)
def own_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    for op in OWN:
        monkeypatch.setitem(REGISTRY, op.name, op)


def spanned(**fields: int) -> RecurrentSchedule:
    return RecurrentSchedule(**{"lanes": 8, "tile": 32, "span": 8, **fields})


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("fields", [{}, {"split": 2}, {"lanes": 4, "tile": 64}, {"lanes": 2, "tile": 256},
                                    {"span": 16, "lanes": 16, "split": 4}, {"lanes": 6, "span": 4, "tile": 64}], ids=str)
@pytest.mark.parametrize("case", [WHOLE, RAGGED], ids=["whole", "ragged"])
def test_both_orders_agree_with_the_oracle(case: dict[str, int], fields: dict[str, int], dtype: str,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """A barrier or a wait for copies that is missing shows as a difference between the orders."""
    check(Problem.of("selective_scan", case, dtype, initial_state="given"), spanned(**fields), monkeypatch)
