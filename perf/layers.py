"""Whole Mamba and Mamba-2 layers, as a model that imports mamba_ssm's names gets them, beside mamba_ssm's recorded times.

    python -m scanc.perf.layers [--out FOLDER] [--budget MS]

writes ``FOLDER/<device-name-in-kebab-case>.json``, by default among the results in the package: {"device", "date", "versions", "rows"},
a row of FIELDS.

``forward`` and ``forward+backward`` are calls as a training loop makes them, and ``peak_gib`` is all that is allocated at once, parameters
and their gradients included. A ``step`` decodes one token in a CUDA graph of many. ``error`` is the layer's relative distance from the
same layer in float32 on the CPU, outputs and gradients of a short sequence, and of steps.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scanc import runtime
from scanc.ops.dropin.mamba2 import Mamba2
from scanc.ops.dropin.mamba_simple import Mamba
from scanc.perf.peers import anchors
from scanc.perf.plots import number
from scanc.perf.results import PACKAGED, case_text, dumps, rows_of_kind
from scanc.perf.timing import Timing, calls_in_a_row, measure, measure_in_a_row

Row = dict[str, Any]
FIELDS = ("layer", "case", "dtype", "pass", "ms", "ms_p10", "ms_p90", "peak_gib", "error", "peer", "peer_ms", "peer_peak_gib", "goal_ms")
PASSES = ("forward", "forward+backward", "step")
LAYERS: Mapping[str, tuple[type[nn.Module], Mapping[str, int]]] = {
    "Mamba": (Mamba, {}), "Mamba-2": (Mamba2, {"headdim": 64, "d_state": 128})}
RECORDED_AS = {"Mamba": "mamba block", "Mamba-2": "mamba2 block"}
CASES = ({"b": 8, "l": 2048, "d": 2048}, {"b": 1, "l": 16384, "d": 2048})
STEPS = ({"b": 1, "d": 2048}, {"b": 16, "d": 2048}, {"b": 128, "d": 2048})
# bfloat16's rounding of every projection, convolution, scan and norm on the way.
BAR = 2e-2


@dataclass(frozen=True)
class Sized:
    """One layer, at one size, in one pass."""

    layer: str
    case: Mapping[str, int]
    pass_: str


def chosen(cases: Sequence[Mapping[str, int]] = CASES, steps: Sequence[Mapping[str, int]] = STEPS) -> Iterator[Sized]:
    for layer in LAYERS:
        for case in cases:
            yield Sized(layer, case, "forward")
            yield Sized(layer, case, "forward+backward")
        for case in steps:
            yield Sized(layer, case, "step")


def made(layer: str, width: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The layer as a model makes it, with the same parameters every time."""
    kind, options = LAYERS[layer]
    torch.manual_seed(0)
    module = kind(d_model=width, **options)
    return module.to(device, dtype)


# -- right --------------------------------------------------------------------------------------------------------------------


def error_of(layer: str, width: int, device: torch.device, dtype: torch.dtype, length: int = 67) -> float:
    """The largest relative distance from the float32 layer on the CPU: of the output, its gradients, and the output of a step."""
    module = made(layer, width, device, dtype)
    exact = copy.deepcopy(module).to("cpu", torch.float32)
    x = torch.randn(2, length, width, generator=torch.Generator().manual_seed(1)).to(dtype)
    results = [_results(m, x.to(p.device, p.dtype)) for m in (module, exact) for p in [next(m.parameters())]]
    return max(_distance(found, wanted) for found, wanted in zip(*results, strict=True))


def _results(module: Any, x: Tensor) -> list[Tensor]:
    given = x.detach().requires_grad_()
    y = module(given)
    grads = torch.autograd.grad(y.square().mean(), [given, *module.parameters()])
    with torch.no_grad():
        states = module.allocate_inference_cache(x.shape[0], 1)
        steps = [module.step(x[:, t : t + 1], *states)[0] for t in range(3)]
    return [y.detach(), *grads, torch.cat(steps, dim=1)]


def _distance(found: Tensor, wanted: Tensor) -> float:
    exact = wanted.double()
    return float((found.to(exact) - exact).norm() / exact.norm())


# -- fast ---------------------------------------------------------------------------------------------------------------------


def timed(module: Any, sized: Sized, budget: float) -> tuple[Timing, float | None]:
    """The time of one call, and the most GiB allocated at once (None for a step, and on a CPU)."""
    weight = next(module.parameters())
    device, dtype = weight.device, weight.dtype
    b, length = sized.case["b"], sized.case.get("l", 1)
    x = torch.randn(b, length, sized.case["d"], device=device, dtype=dtype)
    if sized.pass_ == "step":
        with torch.no_grad():
            return _timed_step(module, x, budget), None

    def forward() -> Tensor:
        with torch.no_grad():
            return module(x)  # type: ignore[no-any-return]

    grad = torch.randn_like(x)

    def both() -> None:
        module.zero_grad(set_to_none=True)
        module(x.detach().requires_grad_()).backward(grad)

    call = forward if sized.pass_ == "forward" else both
    peak = _peak(call) if device.type == "cuda" else None
    return measure(call, device, budget_ms=budget), peak


def _timed_step(module: Any, x: Tensor, budget: float) -> Timing:
    sets = [module.allocate_inference_cache(x.shape[0], 1)]
    if x.device.type != "cuda":
        return measure(lambda: module.step(x, *sets[0]), x.device, budget_ms=budget)
    own = sum(s.numel() * s.element_size() for s in sets[0])
    sets += [module.allocate_inference_cache(x.shape[0], 1) for _ in range(calls_in_a_row(own, x.device) - 1)]
    return measure_in_a_row([lambda s=s: module.step(x, *s) for s in sets], x.device, budget_ms=budget)  # type: ignore[misc]


def _peak(call: Any) -> float:
    for _ in range(2):  # the second has what the first compiled and allocated for good
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() / 2**30)


def row_of(module: nn.Module, sized: Sized, error: float, budget: float, recorded: Sequence[Mapping[str, Any]]) -> Row:
    timing, peak = timed(module, sized, budget)
    dtype = str(next(module.parameters()).dtype).removeprefix("torch.")
    wanted = (RECORDED_AS[sized.layer], dict(sized.case), dtype, sized.pass_)
    peer: Mapping[str, Any] = next((r for r in recorded if (r["op"], r["case"], r["dtype"], r["pass"]) == wanted), {})
    return {"layer": sized.layer, "case": dict(sized.case), "dtype": dtype, "pass": sized.pass_, "ms": timing.ms, "ms_p10": timing.ms_p10,
            "ms_p90": timing.ms_p90, "peak_gib": peak, "error": error, **{name: peer.get(name) for name in FIELDS[-4:]}}


def bench(device: torch.device, dtype: torch.dtype, sizes: Iterable[Sized], out: Path, budget: float) -> Path:
    """Measures and writes, after each row, what is there so far. Raises ValueError where a layer is further off than ``BAR``."""
    name = runtime.device_name(device)
    path, rows = out / f"{runtime.kebab(name)}.json", []
    modules: dict[tuple[str, int], tuple[nn.Module, float]] = {}
    for sized in sizes:
        key = (sized.layer, sized.case["d"])
        if key not in modules:
            modules.clear()
            error = error_of(*key, device, dtype)
            if not error <= BAR:
                raise ValueError(f"{sized.layer} of width {key[1]} is {error:.2g} from the float32 layer; at most {BAR:g} is right.")
            modules[key] = made(*key, device, dtype), error
        rows.append(row_of(modules[key][0], sized, modules[key][1], budget, anchors(name)))
        data = {"device": name, "date": datetime.now(UTC).date().isoformat(), "versions": runtime.versions(), "rows": rows}
        runtime.atomic_write(path, dumps(data))
        print(" ".join(_cells(rows[-1])), flush=True)
    return path


# -- read ---------------------------------------------------------------------------------------------------------------------


def read_layers(device: str, folder: Path | None = None) -> list[Row]:
    """The device's rows; none where it has no file. Raises ValueError on a row that breaks the schema."""
    rows = rows_of_kind("layers", device, FIELDS, folder)
    for row in rows:
        if row["pass"] not in PASSES:
            raise ValueError(f"'pass' of a layer's row is {row['pass']!r}; it must be one of {', '.join(PASSES)}")
    return rows


HEADINGS = ("layer", "pass", "case", "ms", "rival", "rival ms", "times faster", "peak GiB", "rival GiB")


def _cells(row: Row) -> list[str]:
    faster = f"{row['peer_ms'] / row['ms']:.2f}" if row["peer_ms"] else ""
    sizes = (row["ms"], row["peer_ms"], row["peak_gib"], row["peer_peak_gib"])
    ms, peer_ms, peak, peer_peak = (number(float(s)) if s is not None else "" for s in sizes)
    return [row["layer"], row["pass"], case_text(row["case"]), ms, row["peer"] or "", peer_ms, faster, peak, peer_peak]


def table_of(rows: Iterable[Row]) -> list[list[str]]:
    """The rows as words under HEADINGS."""
    return [_cells(row) for row in rows]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m scanc.perf.layers", description=__doc__)
    parser.add_argument("--out", type=Path, default=PACKAGED / "layers", help="folder to write to")
    parser.add_argument("--budget", type=float, default=200.0, help="milliseconds for each row")
    given = parser.parse_args(arguments)
    if torch.cuda.is_available():
        device, dtype, sizes = torch.device("cuda", 0), torch.bfloat16, chosen()
    else:
        device, dtype, sizes = torch.device("cpu"), torch.float32, chosen([{"b": 1, "l": 512, "d": 512}], [{"b": 1, "d": 512}])
    print(bench(device, dtype, sizes, given.out, given.budget))


if __name__ == "__main__":
    main()
