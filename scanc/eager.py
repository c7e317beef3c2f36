"""Plain eager calls without torch's dispatcher, which takes longer (two Python kernels, some 20 µs) than launching a small kernel.

A call is plain where the dispatcher would do nothing but find the op's own CPU or CUDA kernel: no gradient is wanted, nothing traces,
transforms, profiles or overrides the call (autocast, vmap, torch.compile, FakeTensor and other modes), and every tensor is an ordinary
dense one. Anything else goes through ``torch.ops.scanc``, which does the same and more. What autocast calls once it has cast is plain too.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import (
    DispatchKey,
    DispatchKeySet,
    _dispatch_keys,
    _dispatch_tls_local_exclude_set,
    _dispatch_tls_local_include_set,
    _is_torch_function_mode_enabled,
)
from torch.autograd import _profiler_enabled, forward_ad
from torch.nn import Parameter


@functools.cache
def _ordinary() -> tuple[frozenset[tuple[int, int]], frozenset[int]]:
    """Dispatch keys of a thread in which nothing is switched on (outside and inside inference mode), and of dense tensors.

    A thread's settings are its own, so those of a new one are torch's defaults.
    """
    threads: set[tuple[int, int]] = set()

    def look() -> None:
        threads.add(_thread_keys())
        with torch.inference_mode():
            threads.add(_thread_keys())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    tensors: set[int] = set()
    for device in ("CPU", "CUDA"):
        inference = _keys(device, f"Autocast{device}")
        tensors |= {inference.raw_repr(), (inference | _keys(f"Autograd{device}", "ADInplaceOrView")).raw_repr()}
    return frozenset(threads), frozenset(tensors)


def _keys(*names: str) -> DispatchKeySet:
    return functools.reduce(operator.or_, (DispatchKeySet(getattr(DispatchKey, name)) for name in names))


def _thread_keys() -> tuple[int, int]:
    return _dispatch_tls_local_include_set().raw_repr(), _dispatch_tls_local_exclude_set().raw_repr()


def _settled() -> bool:
    """Whether nothing is switched on, in torch or in this thread, that has a part in calls."""
    if _is_torch_function_mode_enabled() or _profiler_enabled() or forward_ad._current_level >= 0:
        return False
    return _thread_keys() in _ordinary()[0]


def is_plain(tensors: Iterable[Tensor | None], *, gradients: bool = False) -> bool:
    """Whether a call on these needs nothing of torch's dispatcher; with ``gradients`` but that those may be wanted.

    Not to be asked inside torch.compile, which cannot read the settings.
    """
    if not _settled():
        return False
    dense = _ordinary()[1]
    differentiable = not gradients and torch.is_grad_enabled()
    for t in tensors:
        if t is None:
            continue
        if (type(t) is not Tensor and type(t) is not Parameter) or _dispatch_keys(t).raw_repr() not in dense:
            return False
        if differentiable and t.requires_grad:
            return False
    return True


Again = Callable[[Sequence[Any]], Any]
_REAL = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int32, torch.int64, torch.bool})  # never conjugated


class Recall:
    """What plain calls came down to, by the signature of all that they were given: a like call need not ask again.

    A signature holds whatever checks, routes and launches depend on: of each tensor its type, shape, strides, dtype, device, whether it is
    conjugated, negated or wants a gradient; every other value itself. What else dispatch keys say goes with these, or with the thread's
    settings, and costs as much to ask for as all of them together.
    """

    MOST = 4096  # beyond so many all are forgotten, which costs one slower call of each

    def __init__(self) -> None:
        self._known: dict[Hashable, Again] = {}

    def key(self, values: Iterable[Any], *more: Hashable) -> Hashable:
        """The signature of a call; None where torch may have a part in it."""
        if not _settled():
            return None
        try:
            return self._key(values, *more)
        except RuntimeError:  # a tensor without strides: torch has a part in it
            return None

    @staticmethod
    def _key(values: Iterable[Any], *more: Hashable) -> Hashable:
        grad = torch.is_grad_enabled()
        return (*more, grad, *[
            (kind, v.shape, v.stride(), d := v.dtype, v.device, v.is_neg(), d in _REAL or v.is_conj(), grad and v.requires_grad)
            if (kind := type(v)) is Tensor or kind is Parameter
            else v if v is None else (kind, v)
            for v in values])  # fmt: skip

    def get(self, key: Hashable) -> Again | None:
        try:
            return self._known.get(key)
        except TypeError:  # a value that cannot be compared: no option is one, and torch will say so
            return None

    def keep(self, key: Hashable, again: Again | None) -> None:
        """Remembers a call that was found to be plain; None is nothing to remember."""
        if key is not None and again is not None:
            if len(self._known) >= self.MOST:
                self._known.clear()
            self._known[key] = again
