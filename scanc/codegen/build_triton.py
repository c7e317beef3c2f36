"""The Triton backend, compiling and calling: generated modules in the cache, Triton's compiler, its interpreter on a CPU.

Triton reads a kernel's source from its file, so each kernel is a module ``<cache>/triton/<name>-<digest>.py``, kept under the
digest of its text. Only the state's size and the schedule are fixed in it: sizes and launch numbers are not specialised, strides
are (on 1 and on multiples of 16, by Triton), so a new length or batch compiles nothing.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scanc import runtime
from scanc.codegen import triton as recurrent
from scanc.codegen import triton_associative as associative
from scanc.codegen import triton_stencil as stencil
from scanc.codegen.emit import counts
from scanc.codegen.layout import Buffer, Geometry, KernelSource, Mode
from scanc.codegen.triton_chunked import ChunkSource
from scanc.codegen.triton_common import argument_names, entry_point, scratch_width
from scanc.codegen.triton_launch import Launcher
from scanc.errors import BackendUnavailable, CompileError, UnsupportedForm
from scanc.forms.plan import Plan
from scanc.ir import topological
from scanc.schedule import AssociativeSchedule, RecurrentSchedule, Schedule, StencilSchedule, StepSchedule
from scanc.target import Target

__all__ = ["assembly", "available", "generate", "load", "resources", "scratch"]

_importing = threading.Lock()  # a process has one setting of how triton.jit works

Call = Callable[[Sequence[Tensor], Sequence[int], Sequence[int], Sequence[int]], None]

POINTERS = {"float32": "*fp32", "float64": "*fp64", "complex64": "*fp32", "bfloat16": "*bf16", "float16": "*fp16", "int32": "*i32",
            "int64": "*i64", "bool": "*i1"}


def available(target: Target | None = None) -> bool:
    """Whether kernels for ``target`` run here; with None, whether any can: the interpreter always can."""
    if importlib.util.find_spec("triton") is None:
        return False
    if target is None or target.arch == "interpret":
        return True
    return torch.cuda.is_available() and (torch.version.hip is not None) == (target.kind == "hip")


def generate(plan: Plan, schedule: Schedule, state: int, mode: Mode, title: str) -> KernelSource:
    """The source of one kernel. ``state`` is the size of the state axis, 1 without one."""
    if isinstance(schedule, RecurrentSchedule | StepSchedule):
        return recurrent.generate(plan, schedule, state, mode, title)
    if isinstance(schedule, StencilSchedule):
        return stencil.generate(plan, schedule, state, mode, title)
    if isinstance(schedule, AssociativeSchedule):
        return associative.generate(plan, schedule, state, mode, title)
    raise UnsupportedForm(op=plan.graph.name, form=schedule.form, forms="recurrent, associative, stencil, step",
                          reason="the Triton backend has no skeleton for it")


def kept(plan: Plan, schedule: Schedule, shape: Geometry, state: int) -> int:
    """Floats of scratch memory a launch keeps: every program's carries of recomputed scans, at block starts (and of one block's steps)."""
    if not plan.recomputed:
        return 0
    sets = associative.scratch_sets if isinstance(schedule, AssociativeSchedule) else recurrent.scratch_sets
    return shape.programs * sets(schedule, shape.segment) * scratch_width(plan, schedule, state)


def scratch(source: KernelSource, shape: Geometry) -> int:
    """The same for a source, which knows its own sizes."""
    return kept(source.plan, source.schedule, shape, state_size(source)) if source.plan.recomputed else 0


def state_size(source: KernelSource) -> int:
    """The size of the state axis that is fixed in a source."""
    found = re.search(r"^    N: tl\.constexpr = (\d+)", source.text, re.MULTILINE)
    return int(found.group(1)) if found else 1


# -- modules ----------------------------------------------------------------------------------------------------------------------


def path_of(source: KernelSource | ChunkSource) -> Path:
    digest = hashlib.sha256(source.text.encode()).hexdigest()[:24]
    return runtime.cache_dir() / "triton" / f"{source.name}-{digest}.py"


def written(source: KernelSource | ChunkSource) -> Path:
    """The module's file, made where it is not there; one whose text is not the source's is set aside and made again."""
    path = path_of(source)
    try:
        kept = path.read_text(errors="replace")
    except FileNotFoundError:
        kept = None
    if kept is not None and kept != source.text:
        aside = path.with_suffix(".py.damaged")
        os.replace(path, aside)
        runtime.logger.warning("the cached kernel %s is damaged; it was set aside as %s and is written again", path.name, aside.name)
        kept = None
    if kept is None:
        runtime.atomic_write(path, source.text)
    return path


@functools.lru_cache(maxsize=1024)
def _module(path: Path, interpreted: bool) -> ModuleType:
    """The module of a file, its kernels compiled, or interpreted on the CPU."""
    import triton

    if interpreted and _interpreter_cannot_count():
        raise BackendUnavailable(f"the interpreter of Triton {triton.__version__} does not work with NumPy {np.__version__}",
                                 backend="triton", remedy="Use NumPy older than 2.4, or Triton 3.7 or newer.")
    name = f"scanc_triton_{path.stem.replace('-', '_')}" + ("_interpreted" if interpreted else "")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # triton.jit looks at this setting when it decorates, so it need hold only while the module is imported.
    with _importing:
        before = triton.knobs.runtime.interpret
        triton.knobs.runtime.interpret = interpreted
        try:
            spec.loader.exec_module(module)
        finally:
            triton.knobs.runtime.interpret = before
    return module


def _interpreter_cannot_count() -> bool:
    """Triton before 3.7 makes loop bounds of arrays of one number, a conversion NumPy 2.4 took away."""
    import triton

    def version(text: str) -> tuple[int, ...]:
        return tuple(int(x) for x in re.findall(r"\d+", text)[:2])

    return version(triton.__version__) < (3, 7) and version(np.__version__) >= (2, 4)


def kernel_of(source: KernelSource | ChunkSource, target: Target) -> Any:
    """The kernel: a triton JITFunction, or an InterpretedFunction for target cpu:interpret:triton."""
    entry = source.entry if isinstance(source, ChunkSource) else entry_point(source.plan)
    return getattr(_module(written(source), target.arch == "interpret"), entry)


def load(source: KernelSource, target: Target) -> Call:
    """The kernel as a function of (tensors in buffer order and scratch, sizes, strides, launch numbers). Raises BackendUnavailable."""
    if not available(target):
        raise BackendUnavailable(f"kernels for {target} need that device and a torch built for it", backend="triton",
                                 remedy="Use target cpu:interpret:triton to try a kernel without a GPU.")
    launcher = Launcher(kernel_of(source, target), _options(source), target.kind != "cpu")

    def call(tensors: Sequence[Tensor], sizes: Sequence[int], strides: Sequence[int], launch: Sequence[int]) -> None:
        launcher(launch[0], [torch.view_as_real(t) if t.is_complex() else t for t in tensors], (*strides, *sizes, *launch))

    return call


def _options(source: KernelSource) -> dict[str, Any]:
    """Triton's options for one kernel.

    A product that a mean is taken of must be the rounded one wherever it is used: fused into the difference from the mean it is another
    number, and where all numbers are nearly equal the difference is all that LayerNorm keeps.
    """
    means = any(counts(n) for n in topological(s.value for s in source.plan.stores))
    return {"num_warps": int(getattr(source.schedule, "warps", 4)), **({"enable_fp_fusion": False} if means else {})}


# -- without a device -------------------------------------------------------------------------------------------------------------


def _compile(source: KernelSource | ChunkSource, target: Target) -> Any:
    """The kernel compiled for contiguous, aligned tensors. Raises CompileError with the compiler's words."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if target.kind == "cpu":
        raise BackendUnavailable("the interpreter has no machine code", backend="triton",
                                 remedy="Name a GPU target, such as cuda:sm_90:triton.")
    kernel = kernel_of(source, target)
    if isinstance(source, ChunkSource):
        pointers, numbers = [f"{a.name}_ptr" for a in source.arguments], source.numbers
        strides = [s for a in source.arguments for s in a.strides]
        types = [POINTERS[a.dtype] for a in source.arguments]
        innermost = [a.strides[-1] for a in source.arguments if a.strides]
        options = source.options(target.kind)
    else:
        pointers, strides, names = argument_names(source.buffers, source.plan.graph.order, bool(source.plan.recomputed))
        numbers = tuple(names)
        types = [POINTERS[b.dtype] for b in source.buffers] + ["*fp32"] * (len(pointers) - len(source.buffers))
        innermost = [_innermost(b) for b in source.buffers if b.rank and b.kind != "complex"]
        options = _options(source)
    signature = dict(zip(pointers, types, strict=True))
    if isinstance(source, ChunkSource):
        kinds = {a.name: POINTERS[a.dtype][1:] for a in source.arguments}
        signature |= {t.name: f"tensordesc<{kinds[t.of]}[{t.tile[0]}, {t.tile[1]}]>" for t in source.tiles}
    signature |= dict.fromkeys((*strides, *numbers), "i32")
    aligned = [*pointers, *(s for s in strides if s not in innermost)]
    signature |= dict.fromkeys(innermost, "constexpr")
    attrs = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    made = ASTSource(kernel, signature, dict.fromkeys(innermost, 1), attrs)
    gpu = GPUTarget(target.kind, target.arch if target.kind == "hip" else target.capability, target.warp)
    try:
        return triton.compile(made, target=gpu, options=options)
    except (triton.TritonError, RuntimeError, subprocess.CalledProcessError) as error:
        raise CompileError(str(error)[-3000:], backend="triton", kernel=source.name, path=path_of(source)) from error


def _innermost(b: Buffer) -> str:
    """The stride of a buffer's last axis: 1 in a contiguous tensor."""
    last = (*b.leading, *b.axes)[-1]
    return f"{b.name}_{last.lstrip('@')}" + ("_part" if last.startswith("@") else "")


def resources(source: KernelSource | ChunkSource, target: Target) -> dict[str, float]:
    """Registers a thread takes, bytes of them it spills, bytes of shared memory a block takes, its threads, seconds to compile."""
    if target.arch == "interpret":
        kernel_of(source, target)
        return {"registers": 0, "spills": 0, "shared": 0, "seconds": 0.0, "threads": 0}
    start = time.perf_counter()
    made = _compile(source, target)
    seconds = time.perf_counter() - start
    threads = target.warp * (source.warps if isinstance(source, ChunkSource) else int(getattr(source.schedule, "warps", 4)))
    if target.kind == "hip":
        text = made.asm["amdgcn"]
        return {"registers": _number(r"\.vgpr_count:\s*(\d+)", text), "spills": 4 * _number(r"\.vgpr_spill_count:\s*(\d+)", text),
                "shared": made.metadata.shared, "seconds": seconds, "threads": threads}
    text = _resource_usage(made.asm["cubin"])
    return {"registers": _number(r"REG:(\d+)", text), "spills": _number(r"STACK:(\d+)", text) + _number(r"LOCAL:(\d+)", text),
            "shared": made.metadata.shared, "seconds": seconds, "threads": threads}


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else 0


def _resource_usage(cubin: bytes) -> str:
    """What cuobjdump, which comes with Triton, says of a cubin."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def assembly(source: KernelSource | ChunkSource, target: Target) -> str:
    """PTX for an NVIDIA target, amdgcn for an AMD one."""
    return str(_compile(source, target).asm["amdgcn" if target.kind == "hip" else "ptx"])
