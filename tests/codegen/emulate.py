"""CUDA kernels run on the CPU: the generated source compiled by the system's C++ compiler over cuda_emulator.h."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from scanc import runtime
from scanc.codegen import build_cpp, build_cuda
from scanc.codegen.cuda import CudaSource
from scanc.codegen.layout import KernelSource
from scanc.target import Target

FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-fsanitize=alignment", "-fsanitize-undefined-trap-on-error", "-Wall", "-Werror",
         "-Wno-unknown-pragmas", "-Wno-psabi", "-Wno-unused-but-set-variable", "-Wno-unused-variable", "-Wno-unused-function",
         "-Wno-clobbered", "-Wno-maybe-uninitialized")   # the last: what one loop fills and the next reads, under the same condition


def library(source: KernelSource) -> Path:
    """The shared library of a kernel, made once a run."""
    text = f'#include "cuda_emulator.h"\n{build_cuda.full_text(source)}\nEMULATE(Arguments, run)\n'
    path = runtime.cache_dir() / "emulated" / f"{source.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        runtime.atomic_write(path.with_suffix(".cpp"), text)
        made = path.with_suffix(f".{os.getpid()}")  # another process may be making the same
        command = [str(build_cpp.compiler()), *FLAGS, f"-I{Path(__file__).parent}", "-o", str(made), str(path.with_suffix(".cpp"))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stderr[:4000]}\n{source.text}"
        os.replace(made, path)
    return path


def load(source: KernelSource, target: Target, *, backwards: bool = False) -> Callable[..., None]:
    """Stands in for build_cuda.load. ``backwards`` takes blocks and threads up in the opposite order."""
    assert isinstance(source, CudaSource)
    function = ctypes.CDLL(str(library(source))).launch

    def call(tensors: Sequence[Tensor], sizes: Sequence[int], strides: Sequence[int], launch: Sequence[int]) -> None:
        words = np.array([*(t.data_ptr() for t in tensors), *strides, *sizes, *launch], dtype=np.int64)
        function(ctypes.c_void_p(words.ctypes.data), ctypes.c_long(launch[0]), ctypes.c_uint(source.threads), ctypes.c_bool(backwards),
                 ctypes.c_uint(source.cluster))

    return call
