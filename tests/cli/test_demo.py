"""The demo's steps, each in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scanc.cli.demo import PROMPT, agrees, train_model, write_sample


def test_training_goes_on_where_it_stopped_and_the_model_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tmp_path / "model.pt"
    first = train_model(checkpoint, seconds=2.0)
    assert checkpoint.exists() and "held-out" in capsys.readouterr().out
    again = train_model(checkpoint, seconds=2.0)
    assert "trained before" in capsys.readouterr().out
    for ours, theirs in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)

    write_sample(again)
    assert capsys.readouterr().out.startswith("  | " + PROMPT)
    assert agrees(again)
    assert "yes" in capsys.readouterr().out


def test_a_model_whose_step_is_wrong_does_not_agree(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from scanc.models import BYTE_MODEL, Mamba

    model = Mamba(BYTE_MODEL)
    step = model.step
    monkeypatch.setattr(model, "step", lambda token, state: step((token + 1) % 256, state))
    assert not agrees(model) and "NO" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tmp_path / "model.pt"
    checkpoint.write_bytes(b"not a checkpoint")
    train_model(checkpoint, seconds=0.5)
    assert (tmp_path / "model.pt.damaged").read_bytes() == b"not a checkpoint" and checkpoint.stat().st_size > 1000
