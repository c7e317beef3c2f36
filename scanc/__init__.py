"""scanc: linear recurrences written once, compiled into every form they can run in, tuned for each device.

scanc.dsl       the language            scanc.ops     the ops that come with it, also torch.ops.scanc.*
scanc.compile   one op, one target      scanc.tune    find the fastest schedule
scanc.show      any stage as text       scanc.models  reference models
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "compile": ("scanc.api", "compile"),
    "tune": ("scanc.api", "tune"),
    "show": ("scanc.api", "show"),
    "dsl": ("scanc.dsl", None),
    "ops": ("scanc.ops", None),
    "models": ("scanc.models", None),
    "op": ("scanc.dsl", "op"),
    "dropin": ("scanc.dropin", None),
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module, attribute = _LAZY[name]
        loaded = importlib.import_module(module)
        return getattr(loaded, attribute) if attribute else loaded
    raise AttributeError(f"module 'scanc' has no attribute '{name}'")
