"""Measures routes side by side: every route of a long convolution at each length, with many rows and with one.

    python -m scanc.perf.sweep_routes [--out FOLDER] [--budget MS]

writes ``FOLDER/<device-name-in-kebab-case>.json`` (see routes.py), by default among the results in the package. Each route has its own
default schedule, a route that does not take a length has no row there, and a result further from the oracle than its dtype allows is
no row.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from scanc import runtime
from scanc.compiler import prepare, program
from scanc.dispatch import targets_of
from scanc.errors import ScancError
from scanc.forms.convolution import convolution_plan
from scanc.forms.convolution_choice import schedule_of
from scanc.perf.results import PACKAGED
from scanc.perf.timing import measure
from scanc.problem import Problem
from scanc.schedule import ConvolutionSchedule
from scanc.target import Target

ROUTES = ("direct", "toeplitz", "monarch", "radix", "passes", "fft")
LENGTHS = (64, 256, 1024, 4096, 16384, 65536, 1 << 18, 1 << 20, 1 << 22)
# Products with tiles of a Toeplitz matrix, sums over taps and products of blocks' spectra grow with the square of the length.
MOST = {"toeplitz": 4096, "direct": 256, "monarch": 1 << 20, "radix": 1 << 20}
ELEMENTS = {"many": 1 << 25, "one": 0}
CHANNELS = 256
BARS = {"float16": 2e-3, "bfloat16": 8e-3, "float32": 1e-6}


@dataclass(frozen=True)
class Point:
    """One route at one size, on the target that has it."""

    problem: Problem
    route: str
    target: Target
    schedule: ConvolutionSchedule


def cases(lengths: Sequence[int] = LENGTHS) -> Iterator[dict[str, int]]:
    """Sizes with as many rows as make a fixed number of elements, fewer channels where a row of each is more; and with one row."""
    for length in lengths:
        channels = max(1, min(CHANNELS, ELEMENTS["many"] // (2 * length)))
        yield {"b": max(2, ELEMENTS["many"] // (channels * length)), "d": channels, "l": length}
    for length in lengths:
        yield {"b": 1, "d": CHANNELS * 3 if length <= 65536 else max(1, (1 << 24) // length), "l": length}


def points(device: torch.device, lengths: Sequence[int] = LENGTHS, dtypes: Sequence[str] = ("float16", "float32"),
           passes: Sequence[str] = ("forward", "backward")) -> list[Point]:
    """All that is measured on a device."""
    found = []
    targets = [t for t in targets_of(device) if t.backend != "reference"]
    for dtype in dtypes:
        for pass_ in passes:
            for case in cases(lengths):
                problem = Problem.of("fft_conv", case, dtype, pass_)
                plan = convolution_plan(prepare(problem.graph()))
                for route in ROUTES:
                    half = route in ("toeplitz", "monarch")
                    if case["l"] > MOST.get(route, math.inf) or (half and dtype == "float32"):
                        continue
                    choices = ((t, schedule_of(route, plan, t, case)) for t in targets)
                    target, schedule = next(((t, s) for t, s in choices if s is not None), (None, None))
                    if target is not None and schedule is not None:
                        found.append(Point(problem, route, target, schedule))
    return found


def measured(point: Point, inputs: Mapping[str, torch.Tensor], budget: float) -> dict[str, Any] | None:
    """A row of routes.py's files; None where the route refuses the size or misses its dtype's bar."""
    problem = point.problem
    try:
        made = program(problem.graph(), point.target, point.schedule)
        given = {str(n.name): inputs[str(n.name)] for n in made.graph.inputs}
        results = made(given)
    except ScancError as refusal:
        runtime.logger.warning("%s by %s: %s", problem, point.route, refusal)
        return None
    error = max(_errors(problem, given, results))
    if not error <= BARS[problem.dtype]:
        runtime.logger.warning("%s by %s has relative error %.1e", problem, point.route, error)
        return None
    del results
    bound, device = made.bind(), next(iter(given.values())).device
    ms = measure(lambda: bound(given, {}), device, budget_ms=budget).ms
    return {"op": problem.op, "case": problem.sizes, "dtype": problem.dtype, "pass": problem.pass_, "route": point.route,
            "ms": round(ms, 5), "error": float(f"{error:.2e}")}


def _errors(problem: Problem, given: Mapping[str, torch.Tensor], results: Mapping[str, torch.Tensor]) -> list[float]:
    """Of two channels, against transforms in double precision."""
    length, few = problem.sizes["l"], {n: (x[:2] if x.dim() == 2 else x[:, :2]).double() for n, x in given.items()}
    spectra = {n: torch.fft.rfft(x, n=2 * length) for n, x in few.items()}
    if problem.pass_ == "forward":
        wanted = {"y": spectra["u"] * spectra["k"]}
    else:
        wanted = {"d_u": spectra["d_y"] * spectra["k"].conj(), "d_k": (spectra["d_y"] * spectra["u"].conj()).sum(0)}
    found = []
    for name, x in results.items():
        truth = torch.fft.irfft(wanted[name], n=2 * length)[..., :length]
        x = (x[:2] if x.dim() == 2 else x[:, :2]).double()
        found.append(((x - truth).norm() / truth.norm()).item())
    return found


def sweep(device: torch.device, chosen: Sequence[Point], out: Path, budget: float) -> Path:
    """Measures and writes, after each size, what is there so far."""
    name = runtime.device_name(device)
    path, rows = out / f"{runtime.kebab(name)}.json", []
    last: Problem | None = None
    inputs: dict[str, torch.Tensor] = {}
    for point in chosen:
        if point.problem != last:
            inputs.clear()
            inputs, last = point.problem.inputs(str(device)), point.problem
        row = measured(point, inputs, budget)
        if row is not None:
            rows.append(row)
            data = {"device": name, "date": datetime.now(UTC).date().isoformat(), "rows": rows}
            runtime.atomic_write(path, json.dumps(data, indent=0) + "\n")
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m scanc.perf.sweep_routes", description=__doc__)
    parser.add_argument("--out", type=Path, default=PACKAGED / "routes", help="folder to write to")
    parser.add_argument("--budget", type=float, default=100.0, help="milliseconds for each row")
    given = parser.parse_args(arguments)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    lengths, dtypes = (LENGTHS, ("float16", "float32")) if device.type == "cuda" else (LENGTHS[:5], ("float32",))
    print(sweep(device, points(device, lengths, dtypes), given.out, given.budget))


if __name__ == "__main__":
    main()
