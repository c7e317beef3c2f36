"""``hippo.transition`` of the S4 repository: the matrices of scanc.ops.hippo as NumPy arrays, as its models take them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanc.ops import hippo


def transition(measure: str, N: int, **measure_args: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(A, B), (N N) and (N 1), of legs, legt, lagt, fourier or fout. Arguments of other measures are taken and change nothing."""
    A, B = hippo.transition(measure, N)
    return A.numpy(), B.contiguous().numpy()


__all__ = ["transition"]
