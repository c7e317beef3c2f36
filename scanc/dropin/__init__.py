"""Makes mamba_ssm, causal_conv1d, flashfftconv, H3's fftconv and S4's kernels importable, backed by scanc.

    scanc.dropin.install()                  from now on `import mamba_ssm` finds scanc's functions
    scanc.dropin.uninstall()                and no longer; a truly installed package is found again
    with scanc.dropin.installed(): ...      both
    python -m scanc.dropin SCRIPT ARGS      runs an unmodified script that way; also -m MODULE ARGS
    pytest -p scanc.dropin.pytest_plugin    the same for a test run, in every process of it

Install before what needs the names is imported: transformers, for one, chooses its kernels when a model's file is imported.
A truly installed package is replaced until uninstall(), which the log says at info level.

``SERVES`` is the whole list: a rival's module, and the modules of scanc.ops.dropin whose ``__all__`` it offers.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from scanc import runtime
from scanc.dropin.finder import Finder

SERVES: dict[str, tuple[str, ...]] = {
    "mamba_ssm": ("selective_scan_interface", "selective_state_update", "ssd_combined", "mamba_simple", "mamba2"),
    "mamba_ssm.modules.mamba2": ("mamba2",),
    "mamba_ssm.modules.mamba_simple": ("mamba_simple",),
    "mamba_ssm.ops.selective_scan_interface": ("selective_scan_interface",),
    "mamba_ssm.ops.triton.layer_norm": ("layer_norm",),
    "mamba_ssm.ops.triton.layernorm_gated": ("layernorm_gated",),
    "mamba_ssm.ops.triton.selective_state_update": ("selective_state_update",),
    "mamba_ssm.ops.triton.ssd_chunk_scan": ("ssd_chunks",),
    "mamba_ssm.ops.triton.ssd_chunk_state": ("ssd_chunks",),
    "mamba_ssm.ops.triton.ssd_combined": ("ssd_combined",),
    "mamba_ssm.ops.triton.ssd_state_passing": ("ssd_chunks",),
    "causal_conv1d": ("causal_conv1d",),
    "causal_conv1d.causal_conv1d_interface": ("causal_conv1d",),
    "causal_conv1d.causal_conv1d_varlen": ("causal_conv1d",),
    "causal_conv1d.cpp_functions": ("causal_conv1d",),
    "flashfftconv": ("flashfftconv",),
    "fftconv": ("fftconv",),
    "extensions.kernels.cauchy": ("cauchy",),
    "extensions.kernels.vandermonde": ("vandermonde",),
}

# The releases whose calls are served; the local label says by whom.
VERSIONS = {"mamba_ssm": "2.3.2.post1+scanc", "causal_conv1d": "1.6.1+scanc", "flashfftconv": "0.0.0+scanc"}

_finder = Finder(SERVES, VERSIONS)
_set_aside: dict[str, ModuleType] = {}


def is_installed() -> bool:
    """Whether the names are served by scanc now."""
    return _finder in sys.meta_path


def install() -> None:
    """Serves the names of ``SERVES`` from now on. Installing twice is installing once.

    Logs, at info level, every truly installed package it stands in for, and warns of modules of transformers that have chosen
    their kernels already.
    """
    if is_installed():
        return
    for package in sorted(_finder.roots):
        real = sys.modules.get(package) or importlib.util.find_spec(package)
        if real is not None:
            where = getattr(real, "__file__", None) or getattr(real, "origin", None) or "a folder"
            runtime.logger.info("%s is installed (%s); scanc serves its names until scanc.dropin.uninstall()", package, where)
    for name in _loaded():
        _set_aside[name] = sys.modules.pop(name)
    sys.meta_path.insert(0, _finder)
    late = _chose_already()
    if late:
        runtime.logger.warning(
            "%s: imported before scanc.dropin.install(), and runs on the kernels chosen then. Install the drop-in first.", ", ".join(late)
        )


def uninstall() -> None:
    """Gives the names back: what was imported before install() is there again, and imports find what is truly installed.

    Objects already taken from a served module stay what they are.
    """
    if not is_installed():
        return
    sys.meta_path.remove(_finder)
    for name in _loaded():
        del sys.modules[name]
    sys.modules.update(_set_aside)
    _set_aside.clear()


@contextmanager
def installed() -> Iterator[None]:
    """Serves the names within the block; a block inside another leaves them served."""
    before = is_installed()
    install()
    try:
        yield
    finally:
        if not before:
            uninstall()


def _loaded() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] in _finder.roots]


def _chose_already() -> list[str]:
    """Modules of transformers whose functions stand in for ours: the choice between the two fell when they were imported."""
    names = {name for modules in SERVES.values() for module in modules for name in _offered(module)}
    return sorted(
        name
        for name, module in sys.modules.items()
        if name.startswith("transformers.models.") and ".modeling_" in name and names & set(getattr(module, "__dict__", ()))
    )


def _offered(module: str) -> list[str]:
    """The functions (not the classes, whose names others use too) of a module of scanc.ops.dropin."""
    return [n for n in importlib.import_module(f"scanc.ops.dropin.{module}").__all__ if n.islower()]


__all__ = ["SERVES", "VERSIONS", "install", "installed", "is_installed", "uninstall"]
