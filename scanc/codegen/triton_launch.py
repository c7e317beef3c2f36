"""Launching a Triton kernel again, without asking Triton which of its compilations that is.

A JIT function looks at every argument of every launch (its type, whether 16 divides it, whether it is 1), which takes longer than many a
kernel. Strides, sizes and dtypes are those of a call's signature and so mostly those of an earlier launch; where they are, and 16 divides
the same addresses, so is the compilation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Launcher:
    """A kernel as a function of (programs, tensors, strides and other numbers), in the order of its arguments.

    ``options``  Triton's, the same each time          ``on_gpu``  False for a kernel that the interpreter runs
    """

    MOST = 1024  # beyond so many kinds of launches all are forgotten, which costs one slower launch of each

    def __init__(self, kernel: Any, options: Mapping[str, Any], on_gpu: bool) -> None:
        self._kernel, self._options, self._on_gpu = kernel, dict(options), on_gpu
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(self, programs: int, tensors: Sequence[Tensor], numbers: Sequence[int], descriptors: Sequence[object] = ()) -> None:
        """``descriptors``: tensor descriptors of Triton's, between tensors and numbers."""
        if programs == 0:
            return
        if not self._on_gpu:
            self._kernel[(programs,)](*tensors, *descriptors, *numbers, **self._options)
            return
        device = tensors[0].device.index
        if torch.cuda.current_device() == device:
            self._launch(device, programs, tensors, numbers, descriptors)
        else:
            with torch.cuda.device(device):
                self._launch(device, programs, tensors, numbers, descriptors)

    def _launch(
        self, device: int, programs: int, tensors: Sequence[Tensor], numbers: Sequence[int], descriptors: Sequence[object]
    ) -> None:
        addresses = [t.data_ptr() for t in tensors]
        key = (device, *numbers, *[t.dtype for t in tensors], *[a % 16 == 0 for a in addresses])
        compiled = self._compiled.get(key)
        if compiled is not None:
            compiled[(programs, 1, 1)](*addresses, *descriptors, *numbers, stream=torch._C._cuda_getCurrentRawStream(device))
            return
        compiled = self._kernel[(programs,)](*tensors, *descriptors, *numbers, **self._options)
        if len(self._compiled) >= self.MOST:
            self._compiled.clear()
        if compiled is not None:
            self._compiled[key] = compiled


__all__ = ["Launcher"]
