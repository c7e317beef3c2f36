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
    _len_torch_dispatch_stack,
)
from torch._C._dynamo.guards import TensorGuards
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


class Recall:
    """What plain calls came down to, by the signature of all that they were given: a like call need not ask again.

    A signature holds whatever checks, routes and launches depend on: of each tensor its type, shape, strides, dtype, device, whether it
    wants a gradient, and its dispatch keys as the thread's settings change them; every other value itself. torch's own guards, those of
    torch.compile, compare all tensors with an earlier call's in the time that Python takes to ask one for its strides.
    """

    MOST = 4096  # beyond so many all are forgotten, which costs one slower call of each

    def __init__(self) -> None:
        self._known: dict[Hashable, list[tuple[Callable[..., bool], Again]]] = {}
        self._count = 0

    def find(self, values: Sequence[Any], *more: Hashable) -> Again | None:
        """What an earlier call like this one came down to; None where there was none, or torch has a part in this one."""
        # What the guards do not see. In FakeTensorMode, say, tensors may be real ones.
        if _len_torch_dispatch_stack() or _is_torch_function_mode_enabled() or _profiler_enabled() or forward_ad._current_level >= 0:
            return None
        tensors = [v for v in values if isinstance(v, Tensor)]
        try:
            for is_like, again in self._known.get(self._place(tensors, values, more), ()):
                if is_like(*tensors):
                    return again
        except TypeError:  # a value that cannot be compared: no option is one, and torch will say so
            pass
        return None

    def keep(self, again: Again | None, values: Sequence[Any], *more: Hashable) -> None:
        """Remembers a call that was found to be plain; None is nothing to remember."""
        tensors = [v for v in values if isinstance(v, Tensor)]
        if again is None or not _settled() or any(type(t) is not Tensor and type(t) is not Parameter for t in tensors):
            return
        if self._count >= self.MOST:
            self._known.clear()
            self._count = 0
        self._count += 1
        self._known.setdefault(self._place(tensors, values, more), []).append((_guard(tensors), again))

    @staticmethod
    def _place(tensors: Sequence[Tensor], values: Sequence[Any], more: tuple[Hashable, ...]) -> Hashable:
        """Where a call is looked for: by what guards do not hold, and one shape, so that few are found there."""
        others = [None if isinstance(v, Tensor) else (type(v), v) for v in values]
        return (*more, torch.is_grad_enabled(), tensors[0].shape if tensors else None, *others)


def _guard(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """Whether others are like these. A guard takes no tensor twice, so what is given again has another."""
    first = [i for i, t in enumerate(tensors) if all(t is not other for other in tensors[:i])]
    own = [tensors[i] for i in first]
    sizes, strides = ([list(x(t)) for t in own] for x in (Tensor.size, Tensor.stride))
    check = TensorGuards(*own, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check  # type: ignore[arg-type]
    if len(own) == len(tensors):
        return check
    again = [i for i in range(len(tensors)) if i not in first]
    rest = _guard([tensors[i] for i in again])
    return lambda *given: check(*[given[i] for i in first]) and rest(*[given[i] for i in again])
