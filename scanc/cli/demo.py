"""``scanc demo``: the whole of it on this machine in a few minutes. Tune, train, generate, check, report.

Everything is kept in the cache folder as it comes, so that a demo that was interrupted, or run again with more minutes, goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scanc.cli.common import console, load_ops
from scanc.errors import ScancError

if TYPE_CHECKING:
    from scanc.models import Mamba
    from scanc.models.train import StepLog
    from scanc.problem import Problem

# What is trained on at once; the op is tuned for exactly this.
BATCH, LENGTH = 8, 256
# Of the minutes given, what tuning and training may take; the rest is for speeds, the sample and the report.
TUNING, TRAINING = 0.25, 0.4
PROMPT = "def __init__(self, "
SAMPLE_BYTES = 400
# ‖step by step − all at once‖ / ‖all at once‖ of the logits in float32, through all layers.
AGREEMENT = 1e-4


def demo(minutes: Annotated[float, typer.Option(help="How long it may take, roughly.", min=0.2)] = 4.0) -> None:
    """Tune Mamba's ops for this machine, train a small byte-level Mamba on Python's own standard library, let it write, and report.

    Press Ctrl-C at any time: what is done is kept, and the next run goes on from there.

    Examples:

        scanc demo

        scanc demo --minutes 10
    """
    try:
        agree = _run(minutes)
    except KeyboardInterrupt:
        print("\ninterrupted; what was done is kept, and `scanc demo` goes on from there")
        raise
    if not agree:
        raise typer.Exit(1)


def _run(minutes: float) -> bool:
    """Every step in order; whether the decode step agrees with the scan."""
    load_ops()
    folder = _folder()
    _say_what_is_here()
    _heading("Speed of a training step, untuned")
    before = _speed("scanc", folder / "untuned")
    print(f"  {before:,.0f} tokens/s")
    _heading("Tuning selective_scan for this machine")
    _tune(60 * minutes * TUNING)
    _heading("Speed of a training step, compared")
    _compare(before)
    _heading("Training a byte-level Mamba on Python's standard library")
    model = train_model(folder / "model.pt", 60 * minutes * TRAINING)
    _heading("What it writes, one byte after another through the decode step")
    write_sample(model)
    _heading("The same logits step by step as all at once?")
    agree = agrees(model)
    _heading("Benchmark and report")
    _report()
    return agree


def _folder() -> Path:
    from scanc.runtime import cache_dir

    folder = cache_dir() / "demo"
    (folder / "untuned").mkdir(parents=True, exist_ok=True)
    return folder


def _heading(text: str) -> None:
    print()
    console.rule(text, align="left")


def _say_what_is_here() -> None:
    from scanc.cli.doctor import examine

    found = examine()
    for d in found["devices"]:
        print(f"{d['device']}: {d['name']}; kernels by {', '.join(d['runs']) or 'the reference alone, which is slow'}")
    print(f"torch {found['versions']['torch']}, triton {found['versions']['triton']}; cache folder {found['cache']['folder']}")


# -- tuning -------------------------------------------------------------------------------------------------------------------


def _problems() -> list[Problem]:
    """What generating and training ask of the op, the cheapest to tune first: it leaves its time to the others."""
    from scanc.models import BYTE_MODEL
    from scanc.problem import Problem

    case = {"b": BATCH, "d": BYTE_MODEL.d_inner, "l": LENGTH, "n": BYTE_MODEL.d_state, "g": 1}
    return [Problem.of("selective_scan", {**case, "b": 1, "l": 1}, "float32", "step"),
            Problem.of("selective_scan", case, "float32", "forward"), Problem.of("selective_scan", case, "float32", "backward")]


def _tune(seconds: float) -> None:
    from scanc.autotune import tune
    from scanc.autotune.records import Record, as_case, default_store, graph_case
    from scanc.perf.suite import usable_targets
    from scanc.runtime import device_name, versions

    device = _device()
    targets = [t for t in usable_targets(device) if t.backend != "reference"]
    if not targets:
        print("there is no compiler here to tune for: the reference will run")
        return
    known = [r for r in default_store().records(device_name(device), "selective_scan") if r.best and dict(r.versions) == versions()]

    def final(problem: Problem) -> Record | None:
        case = as_case(graph_case(problem.graph(), problem.sizes))  # a step has no time axis, whatever its problem says
        return next((r for r in reversed(known) if (r.pass_, r.case, r.dtype) == (problem.pass_, case, problem.dtype)), None)

    missing = [p for p in _problems() if final(p) is None]
    if missing:
        print(f"{len(missing)} problems, {seconds:.0f} seconds at most")
        known += tune(missing, target=targets, budget_s=seconds)
    for problem in _problems():
        record = final(problem)
        if record is None:
            print(f"  {problem.pass_:<9} nothing right was found in the time; the default schedule stays")
        else:
            print(f"  {problem.pass_:<9} {record.ms:.3g} ms by {record.target}: {record.line}")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# -- speed --------------------------------------------------------------------------------------------------------------------


def _speed(scan: str, cache: Path | None = None) -> float:
    """Tokens a second, measured in another process; with ``cache``, one that finds no tuning records."""
    environment = {**os.environ, **({"SCANC_CACHE": str(cache)} if cache is not None else {})}
    done = subprocess.run([sys.executable, "-m", "scanc.cli.speed", scan], env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ScancError(f"measuring a training step by '{scan}' ended with exit code {done.returncode}; its words are above")
    return float(json.loads(done.stdout)["tokens_per_s"])


def _compare(before: float) -> None:
    tuned, reference = _speed("scanc"), _speed("reference")
    for name, speed in (("tuned", tuned), ("untuned", before), ("reference (torch operations)", reference)):
        print(f"  {name:<30} {speed:>10,.0f} tokens/s   {speed / reference:5.1f} times the reference")


# -- training and using the model -----------------------------------------------------------------------------------------------


def train_model(checkpoint: Path, seconds: float) -> Mamba:
    import torch

    from scanc.models import BYTE_MODEL, CheckpointError, Corpus, Mamba, train
    from scanc.runtime import logger

    torch.manual_seed(0)
    model = Mamba(BYTE_MODEL).to(_device())
    corpus = Corpus.standard_library()
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{corpus.files} files, {(len(corpus.train) + len(corpus.held_out)) / 2**20:.1f} MiB; {parameters:,} parameters; "
          f"{seconds:.0f} seconds; losses in bits per byte (8 is knowing nothing)")

    def attempt() -> None:
        log = train(model, corpus, steps=20_000, batch=BATCH, length=LENGTH, lr=4e-3, on_step=_Shown(seconds / 12), held_out_every=100,
                    held_out_batches=2, checkpoint_path=checkpoint, time_budget=seconds)
        if not log.steps:
            print(f"  trained before; {checkpoint} is used (more minutes train it further)")
        elif log.held_out is not None:
            last = log.steps[-1]
            print(f"  {last.step} steps in {last.seconds:.0f} s, {BATCH * LENGTH * last.step / last.seconds:,.0f} tokens/s; "
                  f"held-out {_bits(log.held_out):.2f} bits per byte")

    try:
        attempt()
    except CheckpointError as error:
        aside = checkpoint.with_name(checkpoint.name + ".damaged")
        os.replace(checkpoint, aside)
        logger.warning("%s; set aside as %s, training starts over", error, aside.name)
        attempt()
    return model


def _bits(nats: float) -> float:
    import math

    return nats / math.log(2)


class _Shown:
    """Prints the first step, then one every ``interval`` seconds, with the mean loss of the steps since."""

    def __init__(self, interval: float) -> None:
        self.interval, self.next = interval, 0.0
        self.losses: list[float] = []

    def __call__(self, log: StepLog) -> None:
        self.losses.append(log.loss)
        if log.seconds < self.next:
            return
        mean = _bits(sum(self.losses) / len(self.losses))
        print(f"  step {log.step:>5}   {log.seconds:>4.0f} s   loss {mean:.2f}", flush=True)
        self.next, self.losses = log.seconds + self.interval, []


def write_sample(model: Mamba) -> None:
    import torch

    from scanc.models import stream

    prompt = torch.tensor([list(PROMPT.encode())], device=_device())
    drawn = bytearray(PROMPT.encode())
    for token in stream(model, prompt, max_new_tokens=SAMPLE_BYTES, temperature=0.7, generator=torch.Generator().manual_seed(1)):
        drawn.append(int(token))
    text = drawn.decode("utf-8", errors="replace")
    for line in text.split("\n"):
        print("  | " + "".join(c if c.isprintable() else " " for c in line).rstrip())


def agrees(model: Mamba) -> bool:
    """Compares the logits of one pass over a text with those of the decode step, byte after byte."""
    import torch

    text = (PROMPT + "name, value=None):\n        self.name = name\n").encode()
    tokens = torch.tensor([list(text)], device=_device())
    with torch.no_grad():
        whole, _ = model(tokens)
        state = model.allocate_state(1)
        stepped = torch.stack([model.step(tokens[:, t], state) for t in range(tokens.shape[1])], 1)
    error = float((stepped.double() - whole.double()).norm() / whole.double().norm())
    print(f"  {tokens.shape[1]} bytes, relative difference {error:.1e}: {'yes' if error < AGREEMENT else 'NO, this is a bug'}")
    return error < AGREEMENT


def _report() -> None:
    from scanc.perf.report import write_report
    from scanc.perf.results import merge_rows, results_path
    from scanc.perf.suite import bench
    from scanc.runtime import cache_dir, device_name

    device = device_name(_device())
    path = results_path(device, cache_dir() / "results")
    for row in bench(["selective_scan"], quick=True, tell=lambda line: print(f"  {line}", flush=True)):
        merge_rows(path, [row], device)
    print(f"the report: {write_report(cache_dir() / 'report.html')}")
