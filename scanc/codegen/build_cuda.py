"""The CUDA backend, compiling and launching: NVRTC, a cache of cubins, loaded by CuPy and launched by the driver.

NVRTC needs no device and no driver, so everything up to the cubin works anywhere. A cubin is keyed by all it depends on (source,
header, options, compiler, architecture) and made under a lock, so that a warm start compiles nothing; beside it stands what the
assembler said of registers and spills.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import importlib.util
import json
import re
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scanc import runtime
from scanc.codegen import cuda, cuda_product, cuda_spans, cuda_stencil, cuda_totals
from scanc.codegen.cuda import CudaSource
from scanc.codegen.cuda_dialect import HEADER
from scanc.codegen.cuda_layout import MOST_AT_ONCE, between_checkpoints, checkpoint_words
from scanc.codegen.cuda_patch import PATCH_HEADER
from scanc.codegen.cuda_product import PRODUCT_HEADER
from scanc.codegen.cuda_step import STEP_HEADER
from scanc.codegen.in_place import in_place
from scanc.codegen.layout import Geometry, KernelSource, Mode, Total
from scanc.errors import ArgumentError, BackendUnavailable, CompileError, ScheduleError
from scanc.forms.cuda_choice import in_order
from scanc.forms.plan import Plan
from scanc.schedule import RecurrentSchedule, Schedule, StencilSchedule, StepSchedule
from scanc.target import Target

__all__ = ["assembly", "available", "build", "combining", "generate", "in_place", "kept", "laid", "load", "resources", "scratch",
           "summarising"]

HEADERS = (HEADER, PATCH_HEADER, STEP_HEADER, PRODUCT_HEADER, HEADER.with_name("cuda_fft.h"))
ENTRY = "run"
MOST_SPANNED = (1 << 31) - (1 << 14)  # steps whose number, and that of two tiles behind them, 32 bits hold
LONG_SEGMENT = 256  # steps of one in whose summary helpers pay
MOST_COMBINED = 32  # segments whose summaries a kernel combines itself: one short launch less, and every block reads all of them

Call = Callable[[Sequence[Tensor], Sequence[int], Sequence[int], Sequence[int]], None]


def available() -> bool:
    """Whether kernels can run here: a CUDA device, and CuPy to launch them."""
    return torch.cuda.is_available() and torch.version.hip is None and importlib.util.find_spec("cupy") is not None


def generate(plan: Plan, schedule: Schedule, state: int, mode: Mode, title: str) -> CudaSource:
    """The source of one kernel. ``state`` is the size of the state axis, 1 without one. Raises ScheduleError, UnsupportedForm."""
    if isinstance(schedule, StencilSchedule):
        return cuda_stencil.generate(plan, schedule, state, mode, title)
    if isinstance(schedule, StepSchedule) and schedule.rows:
        return cuda_product.generate(plan, schedule, state, mode, title)
    if isinstance(schedule, RecurrentSchedule) and schedule.span:
        return cuda_spans.generate(plan, schedule, state, mode, title)
    return cuda.generate(plan, schedule, state, mode, title)


def laid(plan: Plan, schedule: Schedule, mode: Mode, given: Mapping[str, Tensor]) -> tuple[Schedule, Mode]:
    """The schedule and the mode that suit how tensors lie in memory: a stencil's threads follow lanes where those are neighbours, and spans
    of a lane's time are for steps that are."""
    if isinstance(schedule, RecurrentSchedule) and schedule.span:
        timed = [(given[str(n.name)], n.axes.index(plan.time)) for n in plan.inputs
                 if {plan.lane, plan.time} <= set(n.axes) and str(n.name) in given]
        near = all(x.stride(axis) == 1 and x.shape[axis] <= MOST_SPANNED for x, axis in timed)
        return (schedule if near else in_order(plan, given)), mode
    if not isinstance(schedule, StencilSchedule):
        return schedule, mode
    over = [(n.axes, given[str(n.name)]) for n in plan.inputs if {plan.lane, plan.time} <= set(n.axes) and str(n.name) in given]
    if not over or any(x.stride(axes.index(plan.lane)) > x.stride(axes.index(plan.time)) for axes, x in over):
        return schedule, mode
    return schedule.across_lanes(), dataclasses.replace(mode, neighbours=plan.lane)


def full_text(source: KernelSource) -> str:
    """The source with its headers in place: what NVRTC sees."""
    text = source.text
    for header in HEADERS:
        text = text.replace(f'#include "{header.name}"\n', header.read_text() + "\n")
    return text


# -- compiling -------------------------------------------------------------------------------------------------------------------


@functools.cache
def _nvrtc() -> Any:
    """NVRTC's functions, through CuPy or NVIDIA's own bindings."""
    if importlib.util.find_spec("cuda") is not None and importlib.util.find_spec("cuda.bindings") is not None:
        return _Bindings()
    if importlib.util.find_spec("cupy") is not None:
        return _Cupy()
    raise BackendUnavailable("no NVRTC was found", backend="cuda",
                             remedy="Install cupy-cuda13x (or cupy-cuda12x); without a GPU, cuda-bindings and nvidia-cuda-nvrtc.")


class _Bindings:
    """NVRTC through cuda.bindings."""

    def __init__(self) -> None:
        from cuda.bindings import nvrtc

        self._api = nvrtc

    def version(self) -> str:
        _, major, minor = self._api.nvrtcVersion()
        return f"{major}.{minor}"

    def compile(self, text: str, name: str, options: Sequence[str], what: str) -> tuple[bool, bytes, str]:
        """(whether it compiled, the cubin or PTX, the log)"""
        api = self._api
        _, program = api.nvrtcCreateProgram(text.encode(), name.encode(), 0, [], [])
        try:
            (status,) = api.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
            log = self._bytes(api.nvrtcGetProgramLogSize, api.nvrtcGetProgramLog, program).rstrip(b"\0").decode()
            if status != api.nvrtcResult.NVRTC_SUCCESS:
                return False, b"", log
            size, get = (api.nvrtcGetCUBINSize, api.nvrtcGetCUBIN) if what == "cubin" else (api.nvrtcGetPTXSize, api.nvrtcGetPTX)
            return True, self._bytes(size, get, program), log
        finally:
            api.nvrtcDestroyProgram(program)

    @staticmethod
    def _bytes(size: Callable[..., Any], get: Callable[..., Any], program: Any) -> bytes:
        _, count = size(program)
        data = bytes(count)
        get(program, data)
        return data


class _Cupy:
    """NVRTC through CuPy."""

    def __init__(self) -> None:
        from cupy_backends.cuda.libs import nvrtc

        self._api = nvrtc

    def version(self) -> str:
        return ".".join(map(str, self._api.getVersion()))

    def compile(self, text: str, name: str, options: Sequence[str], what: str) -> tuple[bool, bytes, str]:
        api = self._api
        program = api.createProgram(text, name, (), ())
        try:
            try:
                api.compileProgram(program, tuple(options))
            except api.NVRTCError:
                return False, b"", str(api.getProgramLog(program))
            made = api.getCUBIN(program) if what == "cubin" else api.getPTX(program)
            return True, made if isinstance(made, bytes) else made.encode(), str(api.getProgramLog(program))
        finally:
            api.destroyProgram(program)


def _options(target: Target) -> tuple[str, ...]:
    return ("-std=c++17", f"-arch={target.arch}", "-default-device", "--ptxas-options=-v")


def _compile(source: KernelSource, target: Target, what: str) -> tuple[bytes, str]:
    """Raises CompileError with NVRTC's words; the source is kept in the cache folder."""
    text = full_text(source)
    done, made, log = _nvrtc().compile(text, f"{source.name}.cu", _options(target), what)
    if not done:
        path = runtime.cache_dir() / "cuda" / f"{source.name}-failed.cu"
        runtime.atomic_write(path, text)
        raise CompileError(log[-3000:], backend="cuda", kernel=source.name, path=path)
    return made, log


def _path(source: KernelSource, target: Target) -> Path:
    key = "\0".join((full_text(source), *_options(target), _nvrtc().version()))
    return runtime.cache_dir() / "cuda" / f"{source.name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.cubin"


def _check(source: KernelSource, target: Target) -> CudaSource:
    assert isinstance(source, CudaSource)
    if source.shared > target.shared_bytes:
        field = "history" if source.plan.recomputed else "tile"
        raise ScheduleError(field=field, value=getattr(source.schedule, field, 1),
                            limit=f"its block would need {source.shared} bytes of shared memory and {target.arch} gives "
                                  f"{target.shared_bytes}; lower it, tile or lanes")
    if source.cluster > 1 and target.capability < 90:
        raise ScheduleError(field="cluster", value=source.cluster, limit=f"{target.arch} has no clusters of blocks: it must be 1")
    return source


def build(source: KernelSource, target: Target) -> Path:
    """The cubin, from the cache or made now. Raises CompileError, ScheduleError, BackendUnavailable."""
    _check(source, target)
    path = _path(source, target)
    if path.exists():
        return path
    with runtime.file_lock(path):
        if path.exists():
            return path
        start = time.perf_counter()
        cubin, log = _compile(source, target, "cubin")
        found = {"registers": _number(r"Used (\d+) registers", log), "spills": _number(r"(\d+) bytes spill stores", log),
                 "seconds": round(time.perf_counter() - start, 4), "sha256": hashlib.sha256(cubin).hexdigest()}
        runtime.atomic_write(path.with_suffix(".cu"), full_text(source))
        runtime.atomic_write(path.with_suffix(".json"), json.dumps(found))
        runtime.atomic_write(path, cubin)  # last: whoever sees the cubin sees the rest
    return path


def _number(pattern: str, log: str) -> int:
    found = re.search(pattern, log)
    return int(found.group(1)) if found else 0


def resources(source: KernelSource, target: Target) -> dict[str, float]:
    """What can be known without running: registers of a thread, bytes spilled, shared bytes of a block, seconds it took to compile."""
    made = _check(source, target)
    path = build(source, target)
    words = runtime.load_or_set_aside(path.with_suffix(".json"), lambda p: dict(json.loads(p.read_text())))
    if words is None:
        path.unlink(missing_ok=True)
        return resources(source, target)
    return {"registers": words["registers"], "spills": words["spills"], "shared": made.shared, "seconds": words["seconds"]}


def assembly(source: KernelSource, target: Target) -> str:
    """The kernel's PTX."""
    _check(source, target)
    return _compile(source, target, "ptx")[0].rstrip(b"\0").decode()


# -- launching -------------------------------------------------------------------------------------------------------------------


def kept(plan: Plan, schedule: Schedule, shape: Geometry, state: int) -> int:
    """Floats of global memory that a launch keeps: every thread's recomputed states at its tiles' starts."""
    if not isinstance(schedule, RecurrentSchedule):
        return 0
    words = checkpoint_words(plan, -(-state // schedule.split)) * schedule.lanes * schedule.split
    return shape.programs * -(-shape.segment // between_checkpoints(plan, schedule)) * words


def interval(plan: Plan, schedule: Schedule) -> int:
    """Steps between the checkpoints from which a kernel can start its tiles; 0 where it has no use for any."""
    leaves_last = any(s.kind == "final" and s.value in plan.recomputed for s in plan.stores)
    if not isinstance(schedule, RecurrentSchedule) or schedule.segment % schedule.tile:
        return 0
    return between_checkpoints(plan, schedule) if plan.recomputed and plan.reverse and not leaves_last else 0


def summarising(plan: Plan, schedule: Schedule) -> Schedule:
    """The schedule for segments' summaries. A two-way kernel's is for registers full of both ways; a summary goes one way and reads nothing
    out, so that it can walk more steps at once. Neither steps at once nor helpers change a bit of it."""
    if not isinstance(schedule, RecurrentSchedule) or not plan.recomputed:
        return schedule
    # A short segment is over before helpers are of use: they begin a tile ahead and end one behind.
    helpers = min(4, max(1, schedule.lanes * schedule.split // 64)) if schedule.segment > LONG_SEGMENT else 0
    own = dataclasses.replace(schedule, history=min(MOST_AT_ONCE, schedule.tile), helpers=helpers, stages=1, blocks=0)
    return dataclasses.replace(own, interval=0, cluster=1)


def combining(schedule: Schedule) -> Schedule:
    """The default schedule for the recurrence over segments: they are few, and it is over the sooner the fewer states a thread has."""
    if not isinstance(schedule, RecurrentSchedule) or (schedule.lanes, schedule.split) != (32, 4):
        return schedule
    return dataclasses.replace(schedule, lanes=16, split=8, tile=16, stages=1)


def leaves(plan: Plan, schedule: Schedule, every: int) -> bool:
    """Whether a kernel can leave its scans' carries before every so many steps: where they stand at the start of steps walked at once."""
    if not isinstance(schedule, RecurrentSchedule) or plan.recomputed or plan.reverse or any(s.attrs["shifted"] for s in plan.main):
        return False
    if schedule.span:
        return every % schedule.span == 0
    at_once = min(schedule.history, schedule.tile, MOST_AT_ONCE)
    within = every % schedule.tile == 0 or (schedule.tile % every == 0 and every % at_once == 0)
    return within and schedule.tile % at_once == 0 and schedule.segment % every == 0


def scratch(source: KernelSource, shape: Geometry) -> int:
    """Floats of global memory the launcher must give: the states at every tile's start."""
    assert isinstance(source, CudaSource)
    return shape.programs * -(-shape.segment // source.tile) * source.scratch


def load(source: KernelSource, target: Target) -> Call:
    """The kernel as a function of (tensors in buffer order, sizes, strides, launch numbers), on torch's current stream."""
    made = _check(source, target)
    build(source, target)
    return _Launcher(made, target)


class _Launcher:
    """A kernel, loaded on each device when tensors of that device first come."""

    def __init__(self, source: CudaSource, target: Target) -> None:
        self.source, self.target = source, target
        self._functions: dict[int, Any] = {}  # CuPy's, which keep what they have loaded
        self._handles: dict[int, int] = {}

    def __call__(self, tensors: Sequence[Tensor], sizes: Sequence[int], strides: Sequence[int], launch: Sequence[int]) -> None:
        self.bind(sizes, strides, launch)(tensors)

    def bind(self, sizes: Sequence[int], strides: Sequence[int], launch: Sequence[int]) -> Callable[[Sequence[Tensor]], None]:
        """The launch with its numbers packed: what is left to do is to write the pointers beside them."""
        if launch[0] == 0:
            return lambda tensors: None
        _check_strides(self.source, strides)
        return _Fire(self, (*strides, *sizes, *launch), launch[0], len(self.source.buffers) + (self.source.scratch > 0))

    def totals(self, totals: Sequence[Total]) -> Callable[[Sequence[Tensor], Sequence[Tensor]], None] | None:
        """What adds partial results up by one kernel: a function of them, one tensor for each of ``totals``, and of the results' memory.
        None where that kernel does not know a dtype."""
        if any(t.dtype not in cuda_totals.KINDS for t in totals):
            return None
        adder, most = _adder(cuda_totals.source(self.source), self.target), cuda_totals.MOST
        groups = [totals[k:k + most] for k in range(0, len(totals), most)]
        fires = [_Fire(adder, cuda_totals.numbers(group), sum(map(cuda_totals.blocks, group)), 2 * most) for group in groups]

        def add(parts: Sequence[Tensor], results: Sequence[Tensor]) -> None:
            for k, fire in enumerate(fires):
                here, there = parts[k * most:(k + 1) * most], results[k * most:(k + 1) * most]
                rest = [there[0]] * (most - len(there))  # read by nobody
                fire([*here, *rest, *there, *rest])

        return add

    def handle(self, index: int) -> int:
        """The driver's function on a device, which is the current one."""
        found = self._handles.get(index)
        if found is None:
            function = self._functions[index] = _function(self.source, self.target, index)
            found = self._handles[index] = function.kernel.ptr
        return found


class _Fire:
    """A launch whose numbers are packed, in words of eight bytes; pointers are written before them."""

    def __init__(self, launcher: _Launcher, numbers: Sequence[int], blocks: int, pointers: int) -> None:
        source = launcher.source
        words = np.array((*(0,) * pointers, *numbers), dtype=np.int64)
        # One argument passed by value, from where the words are.
        argument = (ctypes.c_void_p * 1)(words.ctypes.data)
        shape = (blocks, 1, 1, source.threads, 1, 1, source.shared)
        memory, write = words.data, struct.Struct(f"{pointers}Q").pack_into
        ready: dict[tuple[int, int], tuple[Any, ...]] = {}  # by device and stream: ctypes takes long to convert arguments
        early = source.early and launcher.target.capability >= 90
        turn = threading.Lock()  # the driver has copied the words by the time a launch returns
        start, stream_of = _driver_launch(), torch._C._cuda_getCurrentRawStream

        def on_addresses(addresses: Sequence[int], index: int) -> None:
            """The launch for tensors at these addresses, of the device ``index``, which is the current one."""
            stream = stream_of(index)
            arguments = ready.get((index, stream))
            if arguments is None:
                launch = _Launch.of(shape, stream, early)
                arguments = ready[index, stream] = (launch, ctypes.c_void_p(launcher.handle(index)), argument, ctypes.c_void_p())
            with turn:
                write(memory, 0, *addresses)
                status = start(*arguments)
            if status:
                raise RuntimeError(f"the driver did not launch {source.name}, or reports what a kernel before it did: {_words_of(status)}")

        self.on_addresses = on_addresses

    def __call__(self, tensors: Sequence[Tensor]) -> None:
        index, addresses = tensors[0].get_device(), [t.data_ptr() for t in tensors]
        if torch.cuda.current_device() == index:
            self.on_addresses(addresses, index)
        else:
            with torch.cuda.device(index):
                self.on_addresses(addresses, index)


_ADDERS: dict[Target, _Launcher] = {}


def _adder(source: CudaSource, target: Target) -> _Launcher:
    """The one kernel that adds partial results up, whosoever they are."""
    if target not in _ADDERS:
        build(source, target)
        _ADDERS[target] = _Launcher(source, target)
    return _ADDERS[target]


class _Attribute(ctypes.Structure):
    """The driver's CUlaunchAttribute."""

    _fields_ = (("which", ctypes.c_uint), ("gap", ctypes.c_uint), ("value", ctypes.c_int * 16))


class _Launch(ctypes.Structure):
    """The driver's CUlaunchConfig."""

    _fields_ = (*((name, ctypes.c_uint) for name in ("gx", "gy", "gz", "bx", "by", "bz", "shared")), ("stream", ctypes.c_void_p),
                ("attributes", ctypes.POINTER(_Attribute)), ("count", ctypes.c_uint))

    @classmethod
    def of(cls, shape: Sequence[int], stream: int, early: bool) -> Any:
        """A reference to one. An ``early`` launch begins while the kernel before it still runs, for which it waits itself."""
        serial = _Attribute(6, 0, (1,))  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        return ctypes.byref(cls(*shape, stream, ctypes.pointer(serial) if early else None, early))


@functools.cache
def _driver_launch() -> Callable[..., int]:
    """The driver's cuLaunchKernelEx, for arguments of ctypes' types. CuPy's own launch takes several times as long on the host, which a
    decode step would feel."""
    return ctypes.CDLL("libcuda.so.1").cuLaunchKernelEx


def _words_of(status: int) -> str:
    """The driver's name for an error."""
    name = ctypes.c_char_p()
    ctypes.CDLL("libcuda.so.1").cuGetErrorName(status, ctypes.byref(name))
    return f"{(name.value or b'unknown').decode()} ({status})"


def _check_strides(source: CudaSource, strides: Sequence[int]) -> None:
    """Blocks multiply some strides in 32 bits: no tensor that fits a GPU has larger ones, but a view might."""
    owners = [b for b in source.buffers for _ in range(b.rank)]
    for i in source.narrow:
        if abs(strides[i]) >= 1 << 31:
            raise ArgumentError(op=source.plan.graph.name, argument=owners[i].name, value=f"a view with a stride of {strides[i]} elements",
                                limit="strides along time, channels and states are below 2^31", remedy="Call .contiguous() on it.")


def is_refusal(words: str) -> bool:
    """Whether the driver's error speaks of the file: after a kernel that failed, every later call reports that kernel's error."""
    return any(word in words for word in ("IMAGE", "BINARY", "PTX", "SOURCE", "FILE", "JIT"))


def _function(source: CudaSource, target: Target, device: int) -> Any:
    """The loaded kernel on one device; a cubin the driver refuses is set aside and made again."""
    import cupy
    from cupy_backends.cuda.api.driver import CUDADriverError

    def open_(path: Path) -> Any:
        # Checked before the driver sees it: a truncated cubin can take the process down with it.
        words = json.loads(path.with_suffix(".json").read_text())
        if hashlib.sha256(path.read_bytes()).hexdigest() != words.get("sha256"):
            raise ValueError("its checksum is not the one it was written with")
        try:
            function = cupy.RawModule(path=str(path)).get_function(ENTRY)
            if source.shared > 48 << 10:
                function.max_dynamic_shared_size_bytes = source.shared
            else:
                function.kernel  # noqa: B018 - loads it, so that a damaged file is found here
        except CUDADriverError as error:
            if not is_refusal(str(error)):
                raise
            raise OSError(str(error)) from error
        return function

    with torch.cuda.device(device):
        torch.cuda.current_stream(device)  # torch's context is current from here on, and CuPy loads into it
        path = build(source, target)
        function = runtime.load_or_set_aside(path, open_)
        return function if function is not None else open_(build(source, target))
