"""The CPU backend, compiling and calling: the system's C++ compiler, a cache of shared libraries, ctypes.

A library is keyed by everything it depends on (source, header, flags, compiler, processor), compiled under a lock to a
temporary name and renamed, so that two processes, a kill or a full disk leave no half-written library behind.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from scanc import runtime
from scanc.codegen.cpp import generate
from scanc.codegen.layout import Geometry, KernelSource
from scanc.errors import BackendUnavailable, CompileError
from scanc.target import Target

__all__ = ["available", "generate", "load", "resources", "scratch"]

FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fopenmp",
    "-fPIC",
    "-shared",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fno-semantic-interposition",
    "-Wno-psabi",
    "-Wno-ignored-attributes",
)
HEADER = Path(__file__).with_name("cpu.h")

Call = Callable[[Sequence[Tensor], Sequence[int], Sequence[int], Sequence[int]], None]


@functools.cache
def compiler() -> str | None:
    """The C++ compiler: $CXX, else the first of g++, c++ and clang++ on the path."""
    wanted = os.environ.get("CXX")
    return next((found for c in ((wanted,) if wanted else ()) + ("g++", "c++", "clang++") if (found := shutil.which(c))), None)


def available() -> bool:
    return compiler() is not None


@functools.cache
def _fingerprint(command: str) -> str:
    """The compiler's version and the processor's features: a library made elsewhere must not be loaded here."""
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout
    try:
        cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    except OSError:
        cpu = ""
    return version + cpu + HEADER.read_text() + " ".join(FLAGS)


def _path(source: KernelSource) -> Path:
    command = compiler()
    if command is None:
        raise BackendUnavailable("no C++ compiler was found", backend="cpp", remedy="Install g++ (Debian: apt-get install g++) or set CXX.")
    digest = hashlib.sha256((source.text + _fingerprint(command)).encode()).hexdigest()[:24]
    return runtime.cache_dir() / "cpp" / f"{source.name}-{digest}.so"


def build(source: KernelSource) -> Path:
    """The compiled library, from the cache or made now. Raises CompileError with the compiler's words."""
    path = _path(source)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with runtime.file_lock(path):
        if path.exists():
            return path
        text = path.with_suffix(".cpp")
        runtime.atomic_write(text, source.text)
        handle, made = tempfile.mkstemp(suffix=".so.part", dir=path.parent)
        os.close(handle)
        command = [str(compiler()), *FLAGS, f"-I{HEADER.parent}", "-o", made, str(text)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            Path(made).unlink(missing_ok=True)
            raise CompileError(done.stderr[-3000:], backend="cpp", kernel=source.name, path=text)
        os.replace(made, path)
    return path


def load(source: KernelSource, target: Target) -> Call:
    """The kernel as a function of (tensors in buffer order, sizes, strides, launch numbers)."""
    path = build(source)
    try:
        library = ctypes.CDLL(str(path))
        function = library.run
    except (OSError, AttributeError):
        # A truncated or foreign library: set it aside, say so, make it anew.
        aside = path.with_suffix(".so.damaged")
        os.replace(path, aside)
        runtime.logger.warning("the cached kernel %s could not be loaded; it was set aside as %s and is built again", path.name, aside.name)
        library = ctypes.CDLL(str(build(source)))
        function = library.run
    function.restype = None
    integers = ctypes.c_int64

    def call(tensors: Sequence[Tensor], sizes: Sequence[int], strides: Sequence[int], launch: Sequence[int]) -> None:
        pointers = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
        function(pointers, (integers * len(sizes))(*sizes), (integers * max(len(strides), 1))(*strides), (integers * len(launch))(*launch))

    return call


def scratch(source: KernelSource, shape: Geometry) -> int:
    """Words of scratch memory the launcher must give: none, threads bring their own."""
    return 0


def resources(source: KernelSource, target: Target) -> dict[str, float]:
    """What can be known without running: compile seconds and the library's bytes."""
    start = time.perf_counter()
    path = build(source)
    return {"registers": 0, "spills": 0, "shared": 0, "seconds": time.perf_counter() - start, "bytes": path.stat().st_size}


def threads() -> int:
    """OpenMP's team size follows torch's setting at load time."""
    return torch.get_num_threads()
