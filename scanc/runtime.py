"""What scanc asks of the machine it runs on: environment variables, folders, files that survive a kill, and names.

The three environment variables scanc knows are read here and nowhere else:

    SCANC_CACHE    folder for kernels and tuning records (default: the user's cache folder of the platform)
    SCANC_LOG      level of the "scanc" logger: debug, info, warning, error (default: warning)
    SCANC_TARGET   target used in place of the one a tensor's device implies, such as cpu:native:reference
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
import platform
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import filelock
import platformdirs
import torch

import scanc
from scanc.errors import ScancError
from scanc.target import Target

T = TypeVar("T")

LEVELS = ("debug", "info", "warning", "error")

# What reading a damaged file raises: a truncated or foreign file, JSON that lacks a key, a library the loader refuses.
DAMAGE = (ValueError, KeyError, TypeError, IndexError, EOFError, OSError, ScancError)


def _logger() -> logging.Logger:
    log = logging.getLogger("scanc")
    level = os.environ.get("SCANC_LOG", "").strip().lower()
    if not level:
        return log
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("scanc %(levelname)s: %(message)s"))
    log.addHandler(handler)
    log.propagate = False
    if level in LEVELS:
        log.setLevel(level.upper())
    else:
        log.warning("SCANC_LOG is '%s', but it must be one of %s; using warning", level, ", ".join(LEVELS))
    return log


logger = _logger()


def cache_dir() -> Path:
    """The folder that holds kernels and tuning records, made if need be.

    ``SCANC_CACHE`` or the platform's cache folder of this user. A folder that cannot be written to (read-only, full, a
    file in its place) is replaced, for this process, by a private temporary one, with one warning.
    """
    return _usable(cache_wanted())


def cache_wanted() -> Path:
    """The cache folder asked for, whether or not it can be written to."""
    return Path(os.environ.get("SCANC_CACHE") or platformdirs.user_cache_path("scanc")).expanduser()


@functools.cache
def _usable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A full disk accepts an empty file: write something.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as probe:
            probe.write(b"x" * 4096)
            probe.flush()
        return folder.resolve()
    except OSError as error:
        private = Path(tempfile.mkdtemp(prefix="scanc-")).resolve()
        logger.warning("the cache folder %s cannot be written to (%s); what is compiled and tuned now goes to %s, "
                       "which later runs will not find. Set SCANC_CACHE to a folder you can write to.", folder, error, private)
        return private


def target_override() -> Target | None:
    """The target ``SCANC_TARGET`` names; None where it is not set. Raises TargetError on a malformed name."""
    text = os.environ.get("SCANC_TARGET", "").strip()
    return Target.parse(text) if text else None


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Writes ``data`` so that a reader, or the next run after a kill, sees the old file or the new one and nothing between."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files for their owner alone; a shared cache wants what open() would have given.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@functools.lru_cache(maxsize=1)
def _umask() -> int:
    mask = os.umask(0o077)  # the only way to read it is to set it
    os.umask(mask)
    return mask


def load_or_set_aside(path: str | Path, reader: Callable[[Path], T]) -> T | None:
    """``reader(path)``, or None where there is no such file or it is damaged.

    A file the reader cannot make sense of (it raised one of ``DAMAGE``) is renamed to ``<name>.damaged`` with a warning, so
    that the caller rebuilds it and the evidence is kept.
    """
    path = Path(path)
    try:
        return reader(path)
    except FileNotFoundError:
        return None
    except DAMAGE as error:
        aside = path.with_name(path.name + ".damaged")
        reason = f"{type(error).__name__}: {error}"
        try:
            os.replace(path, aside)
            logger.warning("%s is damaged (%s); set aside as %s and rebuilt", path, reason, aside.name)
        except OSError as refused:
            logger.warning("%s is damaged (%s) and could not be set aside (%s); ignored", path, reason, refused)
        return None


def file_lock(path: str | Path, timeout: float = 600.0) -> filelock.BaseFileLock:
    """A lock between processes for changing ``path``: ``with file_lock(path): …``. It stands beside the file as ``<name>.lock``.

    Raises filelock.Timeout after ``timeout`` seconds; the lock of a killed process is free again at once.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(path.with_name(path.name + ".lock"), timeout=timeout)


@functools.lru_cache(maxsize=1)
def _versions() -> dict[str, str | None]:
    return {
        "scanc": scanc.__version__,  # from a checkout too, where nothing is installed
        "torch": torch.__version__,
        "triton": _installed("triton", "pytorch-triton-rocm"),
        "cupy": _installed("cupy-cuda13x", "cupy-cuda12x", "cupy"),
        "python": platform.python_version(),
        "driver": _driver(),
    }


def versions() -> dict[str, str | None]:
    """Versions of what a timing or a compiled kernel depends on; None for what is absent."""
    return dict(_versions())


def _installed(*names: str) -> str | None:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _driver() -> str | None:
    """NVIDIA's driver version, or None on a machine without one."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


@functools.cache
def device_name(device: str | torch.device = "cpu") -> str:
    """What records and results are keyed by: ``NVIDIA H100 80GB HBM3``, or the processor's model and the cores this process may use."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()} {cpu_cores()} cores"


def cpu_cores() -> int:
    """Cores this process may run on, which in a container is fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine() or "unknown processor"


def kebab(name: str) -> str:
    """A name fit for a file: ``NVIDIA H100 80GB HBM3`` -> ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
