"""Targets: what a kernel is made for, constructible on a machine that has no such device.

A target's name is ``kind:arch:backend``:

    cuda:sm_90:triton    an NVIDIA GPU of compute capability 9.0, through Triton
    cuda:sm_90:cuda      the same GPU, through CUDA C++ (NVRTC, launched by CuPy)
    hip:gfx942:triton    an AMD MI300, through Triton
    cpu:native:cpp       this machine's processor, through the system's C++ compiler
    cpu:native:reference torch operations; any machine
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from scanc.errors import TargetError

# Multiprocessors assumed of a GPU that may not be here: an H100's, an MI300X's.
PROCESSORS = {"cuda": 132, "hip": 304}
BACKENDS = {"cuda": ("triton", "cuda"), "hip": ("triton",), "cpu": ("cpp", "reference", "triton")}

# Shared memory a block may use and registers of one multiprocessor, per architecture (vendor's tables).
# Unlisted architectures get the smallest of their kind, so that a schedule screened for them is safe.
SHARED_BYTES = {
    "sm_75": 64 << 10,
    "sm_80": 163 << 10,
    "sm_86": 99 << 10,
    "sm_87": 163 << 10,
    "sm_89": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_103": 227 << 10,
    "sm_120": 99 << 10,
    "sm_121": 99 << 10,
    "gfx90a": 64 << 10,
    "gfx942": 64 << 10,
    "gfx950": 160 << 10,
}


@dataclass(frozen=True)
class Target:
    """A device and the backend that makes kernels for it."""

    kind: str
    arch: str
    backend: str

    def __post_init__(self) -> None:
        if self.kind not in BACKENDS:
            raise TargetError(f"kind '{self.kind}' is none of {', '.join(BACKENDS)}", value=self.name)
        if self.backend not in BACKENDS[self.kind]:
            raise TargetError(f"kind '{self.kind}' has backends {', '.join(BACKENDS[self.kind])}", value=self.name)
        pattern = {"cuda": r"sm_\d+[af]?", "hip": r"gfx[0-9a-f]+", "cpu": r"native|interpret"}[self.kind]
        if not re.fullmatch(pattern, self.arch):
            raise TargetError(f"'{self.arch}' is no {self.kind} architecture", value=self.name)
        if (self.kind == "cpu" and self.backend == "triton") != (self.arch == "interpret"):
            raise TargetError("Triton reaches the CPU as cpu:interpret:triton only", value=self.name)

    @classmethod
    def parse(cls, text: str) -> Target:
        """Reads ``kind:arch:backend``. Raises TargetError."""
        parts = text.split(":")
        if len(parts) != 3:
            raise TargetError("a target has three parts, kind:arch:backend", value=text)
        return cls(*parts)

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.arch}:{self.backend}"

    @property
    def capability(self) -> int:
        """Compute capability as Triton counts it, 90 for sm_90; 0 where there is none."""
        digits = re.match(r"sm_(\d+)", self.arch)
        return int(digits.group(1)) if digits else 0

    @property
    def warp(self) -> int:
        """Threads that step together: 32 on NVIDIA, 64 on AMD's gfx9, 1 on a CPU."""
        return {"cuda": 32, "hip": 64, "cpu": 1}[self.kind]

    @property
    def shared_bytes(self) -> int:
        """Shared memory one block may hold, in bytes; 0 on a CPU."""
        if self.kind == "cpu":
            return 0
        return SHARED_BYTES.get(self.arch.rstrip("af"), 48 << 10)

    @property
    def hopper(self) -> bool:
        """Whether it is of NVIDIA's Hopper architecture, with its tensor memory accelerator and matrix units."""
        return self.kind == "cuda" and 90 <= self.capability < 100

    @property
    def places(self) -> int:
        """Programs that such a device has room for side by side, one a multiprocessor; 0 on a CPU: one may do."""
        return PROCESSORS.get(self.kind, 0)

    @property
    def device_type(self) -> str:
        """torch's device type for tensors this target computes on."""
        return "cpu" if self.kind == "cpu" else "cuda"

    def with_backend(self, backend: str) -> Target:
        return dataclasses.replace(self, backend=backend)

    def __str__(self) -> str:
        return self.name
