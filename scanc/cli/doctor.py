"""``scanc doctor``: what is here, what is missing, and what will run where."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import typer

from scanc.cli.common import Json, load_ops, print_json, print_table


def doctor(json: Json = False) -> None:
    """Devices, compilers and versions; which backend will run for which device; the cache folder; ops not yet tuned here.

    Exits with 1 where a device has no backend but the reference, which is slow.

    Examples:

        scanc doctor

        scanc doctor --json
    """
    found = examine()
    if json:
        print_json(found)
    else:
        _print(found)
    if any(not d["runs"] for d in found["devices"]):
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """Everything the command prints."""
    from scanc import runtime

    override = runtime.target_override()
    devices = _devices()
    return {
        "devices": devices,
        "backends": _backends(),
        "versions": runtime.versions(),
        "cache": _cache(runtime.cache_dir()),
        "target_override": override.name if override is not None else None,
        "untuned": _untuned(devices),
    }


def _devices() -> list[dict[str, Any]]:
    import torch

    from scanc import runtime
    from scanc.dispatch import targets_of

    found: list[tuple[str, str, float | None]] = [("cpu", runtime.device_name("cpu"), None)]
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory
        found.append((f"cuda:{index}", runtime.device_name(f"cuda:{index}"), round(memory / 2**30, 1)))
    return [{"device": device, "name": name, "memory_gib": memory,
             "runs": [t.name for t in targets_of(torch.device(device)) if t.backend != "reference"]} for device, name, memory in found]


def _backends() -> list[dict[str, str]]:
    """Each backend: what it compiles with, and what is missing where it cannot run."""
    import torch

    from scanc import runtime
    from scanc.codegen.build_cpp import compiler

    versions = runtime.versions()
    gpu = torch.cuda.is_available()
    c_plus_plus = compiler()
    return [
        {"backend": "cpp", "compiler": c_plus_plus or "none",
         "state": "runs" if c_plus_plus else "missing: install g++ or clang++ (Debian, Ubuntu: apt-get install g++), or set CXX"},
        {"backend": "triton", "compiler": f"triton {versions['triton']}" if versions["triton"] else "none",
         "state": _triton_state(gpu, versions["triton"])},
        {"backend": "cuda", "compiler": _nvrtc(), "state": _cuda_state(gpu, versions["cupy"])},
        {"backend": "reference", "compiler": f"torch {versions['torch']}", "state": "runs"},
    ]


def _nvrtc() -> str:
    import importlib.util

    for module, name in (("cupy", "NVRTC by CuPy"), ("cuda.bindings", "NVRTC by cuda-bindings")):
        try:
            if importlib.util.find_spec(module) is not None:
                return name
        except ModuleNotFoundError:  # the parent package is absent
            continue
    return "none"


def _triton_state(gpu: bool, triton: str | None) -> str:
    if not triton:
        return "missing: pip install triton"
    return "runs" if gpu else "compiles for any GPU (scanc show); runs none here"


def _cuda_state(gpu: bool, cupy: str | None) -> str:
    import torch

    if gpu and cupy:
        return "runs"
    if gpu:
        major = (torch.version.cuda or "13").split(".")[0]
        return f"missing: pip install 'scanc[cuda{major}]' (CuPy launches its kernels)"
    return "compiles for any NVIDIA GPU (scanc show); runs none here" if _nvrtc() != "none" else "nothing to run on here"


def _cache(folder: Path) -> dict[str, Any]:
    from scanc import runtime

    files = [p for p in folder.rglob("*") if p.is_file()]
    return {"folder": str(folder), "files": len(files), "mib": round(sum(p.stat().st_size for p in files) / 2**20, 1),
            "damaged": sum(p.name.endswith(".damaged") for p in files), "free_gib": round(shutil.disk_usage(folder).free / 2**30, 1),
            "as_asked": runtime.cache_wanted().resolve() == folder}


def _untuned(devices: list[dict[str, Any]]) -> dict[str, list[str]]:
    """{device: ops without a final schedule of its own}."""
    from scanc.cli.list import tuned_passes

    return {d["name"]: [name for name in sorted(load_ops()) if not tuned_passes(name, d["device"])] for d in devices}


def _print(found: dict[str, Any]) -> None:
    print_table("Devices", ("device", "name", "memory", "kernels by"),
                [(d["device"], d["name"], f"{d['memory_gib']} GiB" if d["memory_gib"] else "",
                  ", ".join(d["runs"]) or "the reference: slow") for d in found["devices"]])
    print_table("Backends", ("backend", "compiler", "state"), [(b["backend"], b["compiler"], b["state"]) for b in found["backends"]])
    print_table("Versions", ("of", "version"), [(name, version or "absent") for name, version in found["versions"].items()])
    cache = found["cache"]
    print(f"cache folder {cache['folder']}: {cache['files']} files, {cache['mib']} MiB, {cache['free_gib']} GiB free"
          + (f", {cache['damaged']} damaged files set aside" if cache["damaged"] else "")
          + ("" if cache["as_asked"] else " (a temporary one: the one asked for cannot be written to)"))
    if found["target_override"]:
        print(f"SCANC_TARGET overrides every device's target: {found['target_override']}")
    for device, names in found["untuned"].items():
        print(f"untuned on {device}: {', '.join(names)} (scanc tune OP)" if names else f"every op is tuned on {device}")
