"""Training: it learns, resumes bit for bit, is stopped cleanly, and names what went wrong."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scanc.errors import ArgumentError
from scanc.models import CheckpointError, Corpus, Mamba, MambaConfig, NonFiniteLoss, StepLog, TrainLog, held_out_loss, train

CONFIG = MambaConfig(d_model=16, n_layer=1, vocab_size=256, d_state=4)
TEXT = b"def f(x):\n    return x + 1\n" * 60


def fresh() -> Mamba:
    torch.manual_seed(0)
    return Mamba(CONFIG).use_scan("reference")


def run(model: Mamba, **options: object) -> TrainLog:
    settings: dict[str, Any] = {"steps": 6, "batch": 2, "length": 12, "lr": 1e-2, "warmup": 2, **options}
    return train(model, Corpus.from_bytes(TEXT, held_out=0.2), **settings)


def same(a: Mamba, b: Mamba) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_loss_falls_on_text_it_has_not_seen() -> None:
    seen: list[StepLog] = []
    model = fresh()
    log = run(model, steps=60, batch=8, length=16, lr=2e-2, held_out_every=30, on_step=seen.append)
    assert seen == log.steps and [s.step for s in seen] == list(range(1, 61)) and log.ended == "steps"
    assert [s.step for s in seen if s.held_out is not None] == [30, 60]
    assert abs(seen[0].loss - math.log(256)) < 0.3
    assert log.held_out is not None and log.held_out < 2.0
    assert log.held_out == held_out_loss(model, Corpus.from_bytes(TEXT, held_out=0.2), batch=8, length=16)
    assert max(s.lr for s in seen) <= 2e-2 and seen[0].lr == pytest.approx(1e-2) and seen[-1].lr == pytest.approx(2e-3, rel=0.01)
    assert all(s.gradient_norm > 0 and s.seconds > 0 for s in seen)


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    whole, path = fresh(), tmp_path / "run.pt"
    log = run(whole)

    class Killed(Exception):
        pass

    def kill(step: StepLog) -> None:
        if step.step == 5:
            raise Killed

    with pytest.raises(Killed):
        run(fresh(), checkpoint_path=path, checkpoint_every=2, on_step=kill)
    other = Mamba(CONFIG).use_scan("reference")
    rest = run(other, checkpoint_path=path, checkpoint_every=2)
    assert [s.step for s in rest.steps] == [5, 6]
    assert [s.loss for s in rest.steps] == [s.loss for s in log.steps[4:]]
    assert same(other, whole)
    assert run(fresh(), checkpoint_path=path).steps == []
    over = fresh()
    assert len(run(over, checkpoint_path=path, resume=False).steps) == 6 and same(over, whole)
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


@pytest.fixture
def heeded() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where whoever started the tests has it ignored, as a shell does for what runs behind it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
def test_ctrl_c_finishes_the_step_and_saves(tmp_path: Path) -> None:
    path, seen, whole = tmp_path / "run.pt", [], fresh()
    run(whole)

    def press(step: StepLog) -> None:
        seen.append(step.step)
        if step.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(fresh(), checkpoint_path=path, on_step=press)
    assert seen == [1, 2, 3] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = fresh()
    run(resumed, checkpoint_path=path)
    assert same(resumed, whole)


@pytest.mark.usefixtures("heeded")
def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    path, seen = tmp_path / "run.pt", []

    def press(step: StepLog) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        seen.append(step.step)

    with pytest.raises(KeyboardInterrupt):
        run(fresh(), checkpoint_path=path, on_step=press)
    assert seen == [] and list(tmp_path.iterdir()) == []


def test_a_programs_own_handler_is_left_alone() -> None:
    pressed = []
    previous = signal.signal(signal.SIGINT, lambda *_: pressed.append(1))
    try:
        run(fresh(), steps=1, on_step=lambda _: os.kill(os.getpid(), signal.SIGINT))
        assert pressed == [1]
    finally:
        signal.signal(signal.SIGINT, previous)


def test_time_budget_ends_the_run_and_counts_across_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10_000))
    monkeypatch.setitem(train.__globals__, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))  # a second a look
    log = run(fresh(), steps=100, time_budget=5, checkpoint_path=tmp_path / "run.pt")
    assert log.ended == "time" and [s.seconds for s in log.steps] == [1, 2, 3, 4, 5]
    assert log.steps[-1].held_out is not None and log.steps[-1].lr < 0.4e-2  # decayed although step 5 of 100
    again = run(fresh(), steps=100, time_budget=7, checkpoint_path=tmp_path / "run.pt")
    assert [(s.step, s.seconds) for s in again.steps] == [(6, 6), (7, 7)]


def test_divergence_is_named_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model, kept = fresh(), []

    def poison(step: StepLog) -> None:
        if step.step == 3:
            with torch.no_grad():
                model.get_parameter("backbone.norm_f.weight")[0] = float("nan")
            kept.append({k: v.clone() for k, v in model.state_dict().items()})

    with pytest.raises(NonFiniteLoss, match="step 4: the loss is nan at learning rate .*Lower lr"):
        run(model, on_step=poison, checkpoint_path=tmp_path / "run.pt", checkpoint_every=2)
    assert all(torch.equal(v, kept[0][k]) or k == "backbone.norm_f.weight" for k, v in model.state_dict().items())
    assert torch.load(tmp_path / "run.pt", weights_only=True)["step"] == 2


def test_checkpoints_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    run(fresh(), steps=1, checkpoint_path=path)
    other = Mamba(dataclasses.replace(CONFIG, d_state=8))
    with pytest.raises(CheckpointError, match="d_state is 4, not 8"):
        run(other, checkpoint_path=path)
    whole = path.read_bytes()
    for damaged in (whole[:500], b"", b"text"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="resume=False"):
            run(fresh(), checkpoint_path=path)
    torch.save([1], path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(fresh(), checkpoint_path=path)


def test_autocast_trains() -> None:
    full, half = run(fresh(), steps=3), run(fresh(), steps=3, autocast=torch.bfloat16)
    assert [s.loss for s in half.steps] == pytest.approx([s.loss for s in full.steps], rel=0.02)
    assert half.steps[0].loss != full.steps[0].loss


@pytest.mark.parametrize("name", ["steps", "batch", "length", "lr", "clip", "checkpoint_every"])
def test_options_out_of_range(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"train: argument '{name}' is 0"):
        run(fresh(), **{name: 0})
