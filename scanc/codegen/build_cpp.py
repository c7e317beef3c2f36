"""The CPU backend, compiling and calling: the system's C++ compiler, a cache of shared libraries, ctypes.

A library is keyed by everything it depends on (source, header, flags, compiler, processor), compiled under a lock to a
temporary name and renamed, so that two processes, a kill or a full disk leave no half-written library behind.
"""

from __future__ import annotations

import _ctypes
import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from scanc import runtime
from scanc.codegen import cpp, cpp_rows
from scanc.codegen.layout import Geometry, KernelSource, Mode
from scanc.errors import BackendUnavailable, CompileError
from scanc.forms.plan import Plan
from scanc.schedule import Schedule, StencilSchedule
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
END = b"\nend of a scanc kernel\n"  # follows the library, so that a truncated file is known before it is loaded
HEADER = Path(__file__).with_name("cpu.h")

Call = Callable[[Sequence[Tensor], Sequence[int], Sequence[int], Sequence[int]], None]


def generate(plan: Plan, schedule: Schedule, state: int, mode: Mode, title: str) -> KernelSource:
    """The source of one kernel. ``state`` is the size of the state axis, 1 without one. Raises UnsupportedForm."""
    if isinstance(schedule, StencilSchedule):
        return cpp_rows.generate(plan, schedule, state, mode, title)
    return cpp.generate(plan, schedule, state, mode, title)


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
    """The compiled library, from the cache or made now.

    Raises CompileError with the compiler's words, and BackendUnavailable where the cache cannot take the library (a full disk).
    """
    path = _path(source)
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with runtime.file_lock(path):
            if not path.exists():
                _compile(source, path)
    except OSError as error:
        remedy = "Free some space, or set SCANC_CACHE to another folder."
        raise BackendUnavailable(
            f"kernel '{source.name}' cannot be written to {path.parent} ({error})", backend="cpp", remedy=remedy
        ) from error
    return path


def _compile(source: KernelSource, path: Path) -> None:
    text = path.with_suffix(".cpp")
    runtime.atomic_write(text, source.text)
    handle, name = tempfile.mkstemp(suffix=".so.part", dir=path.parent)
    os.close(handle)
    made = Path(name)
    try:
        command = [str(compiler()), *FLAGS, f"-I{HEADER.parent}", "-o", name, str(text)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompileError(done.stderr[-3000:], backend="cpp", kernel=source.name, path=text)
        with made.open("ab") as library:
            library.write(END)
        made.chmod(text.stat().st_mode)  # mkstemp's are for their owner alone
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)


def load(source: KernelSource, target: Target) -> Call:
    """The kernel as a function of (tensors in buffer order, sizes, strides, launch numbers)."""
    path = build(source)
    function = _entry(path)
    if function is None:
        aside = path.with_suffix(".so.damaged")
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            path.replace(aside)
        runtime.logger.warning("the cached kernel %s could not be loaded; it was set aside as %s and is built again", path.name, aside.name)
        function = _entry(build(source))
    if function is None:
        raise CompileError("the library it made cannot be loaded", backend="cpp", kernel=source.name, path=path.with_suffix(".cpp"))
    function.restype = None
    return _Launcher(function)


class _Launcher:
    """A library's function, called with torch's pointers."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, tensors: Sequence[Tensor], sizes: Sequence[int], strides: Sequence[int], launch: Sequence[int]) -> None:
        self.bind(sizes, strides, launch)(tensors)

    def bind(self, sizes: Sequence[int], strides: Sequence[int], launch: Sequence[int]) -> _Fire:
        return _Fire(self._function, sizes, strides, launch)


class _Fire:
    """A call whose numbers are packed: what is left to do is to pass pointers."""

    def __init__(self, function: Any, *numbers: Sequence[int]) -> None:
        sizes, strides, launch = (struct.pack(f"{len(x)}q", *x) for x in numbers)
        packers: dict[int, Callable[..., bytes]] = {}

        def on_addresses(addresses: Sequence[int], index: int = 0) -> None:
            count = len(addresses)
            pack = packers.get(count) or packers.setdefault(count, struct.Struct(f"{count}P").pack)
            function(pack(*addresses), sizes, strides, launch)

        self.on_addresses = on_addresses

    def __call__(self, tensors: Sequence[Tensor]) -> None:
        self.on_addresses([t.data_ptr() for t in tensors])


def _entry(path: Path) -> Any:
    """The function of a library; None where it is not a whole library of ours. A truncated one would crash the loader, not fail in it."""
    try:
        with path.open("rb") as file:
            file.seek(-len(END), os.SEEK_END)
            if file.read() != END:
                return None
        library = ctypes.CDLL(str(path))
    except OSError:
        return None
    try:
        return library.run
    except AttributeError:
        _ctypes.dlclose(library._handle)  # or the one made in its place would not be looked at
        return None


def kept(plan: Plan, schedule: Schedule, shape: Geometry, state: int) -> int:
    """Words of global memory a launch keeps: none, threads bring their own."""
    return 0


def scratch(source: KernelSource, shape: Geometry) -> int:
    """Words of scratch memory the launcher must give: none, threads bring their own."""
    return 0


def resources(source: KernelSource, target: Target) -> dict[str, float]:
    """What can be known without running: compile seconds and the library's bytes."""
    start = time.perf_counter()
    path = build(source)
    return {"registers": 0, "spills": 0, "shared": 0, "seconds": time.perf_counter() - start, "bytes": path.stat().st_size}
