"""The model on the compiled op against the same model on a plain loop: values, states, gradients, compilation; and the page about it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scanc.models import BYTE_MODEL, Mamba, MambaConfig, MambaState

Relative = Callable[[Tensor, Tensor], float]

TOKENS = torch.randint(61, (3, 37), generator=torch.Generator().manual_seed(1))
SEQ_IDX = torch.tensor([0] * 12 + [1] * 2 + [2] * 23, dtype=torch.int32).repeat(3, 1)


@pytest.fixture
def model(make_model: Callable[[MambaConfig], Mamba]) -> Mamba:
    """With the usual 16 states, so that all tests here share few kernels: one is compiled per number of states."""
    return make_model(MambaConfig(d_model=24, n_layer=2, vocab_size=61))


def gradients(model: Mamba, scan: str) -> tuple[Tensor, MambaState, dict[str, Tensor]]:
    """Logits, last state and the gradients of a loss in both, over two chunks."""
    model.use_scan(scan).zero_grad()
    first, state = model(TOKENS[:, :8])
    second, state = model(TOKENS[:, 8:], state)
    logits = torch.cat([first, second], 1)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    (loss + sum(h.square().mean() for h in state.ssm)).backward()
    return logits, state, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("scan", ["scanc", "reference"])
def test_values_and_gradients(model: Mamba, relative: Relative, scan: str) -> None:
    wanted, wanted_state, wanted_gradients = gradients(model, "loop")
    logits, state, found = gradients(model, scan)
    assert relative(logits, wanted) <= 1e-5
    assert all(h.dtype == torch.float32 and relative(h, w) <= 1e-5 for h, w in zip(state.ssm, wanted_state.ssm, strict=True))
    assert found.keys() == wanted_gradients.keys() == dict(model.named_parameters()).keys()
    for name, gradient in found.items():
        assert relative(gradient, wanted_gradients[name]) <= 1e-4, name


@pytest.mark.parametrize("scan", ["scanc", "reference"])
def test_decode(model: Mamba, relative: Relative, scan: str) -> None:
    wanted, end = model.use_scan("loop")(TOKENS)
    model.use_scan(scan)
    with torch.no_grad():
        _, state = model(TOKENS[:, :30])
        logits = torch.stack([model.step(TOKENS[:, t], state) for t in range(30, 37)], 1)
    assert relative(logits, wanted[:, 30:]) <= 1e-5
    assert all(relative(h, w) <= 1e-5 for h, w in zip(state.ssm, end.ssm, strict=True))


@torch.no_grad()
def test_packed_sequences(model: Mamba, relative: Relative) -> None:
    wanted, end = model.use_scan("loop")(TOKENS, seq_idx=SEQ_IDX)
    logits, state = model.use_scan("scanc")(TOKENS, seq_idx=SEQ_IDX)
    assert relative(logits, wanted) <= 1e-5
    assert all(relative(h, w) <= 1e-5 for h, w in zip(state.ssm, end.ssm, strict=True))


@torch.no_grad()
def test_autocast(model: Mamba, relative: Relative) -> None:
    wanted, _ = model.use_scan("loop")(TOKENS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, state = model.use_scan("scanc")(TOKENS)
    assert logits.dtype == torch.bfloat16 and state.ssm[0].dtype == torch.float32
    assert relative(logits, wanted) <= 0.03


def test_whole_training_step_compiles_without_graph_breaks(model: Mamba, relative: Relative) -> None:
    _, _, wanted = gradients(model, "scanc")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    model.zero_grad()
    first, state = compiled(TOKENS[:, :8])
    second, state = compiled(TOKENS[:, 8:], state)
    loss = F.cross_entropy(torch.cat([first, second], 1)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    (loss + sum(h.square().mean() for h in state.ssm)).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and relative(p.grad, wanted[name]) <= 1e-5, name
    with torch.no_grad():
        logits = torch.compile(model.step, fullgraph=True, backend="aot_eager", dynamic=False)(TOKENS[:, 0], state.clone())
        assert relative(logits, model.step(TOKENS[:, 0], state)) <= 1e-5


def test_the_byte_model_has_half_a_million_parameters() -> None:
    model = Mamba(BYTE_MODEL)
    assert 300_000 <= sum(p.numel() for p in model.parameters()) <= 1_000_000
    assert model(torch.randint(256, (1, 4)))[0].shape == (1, 4, 256)


def test_the_page_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/models.md, block after block, but for the size of the training run."""
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    smaller = [("steps=1000, batch=8, length=256", "steps=2, batch=2, length=16")]
    program = "\n".join(blocks)
    for written, run in smaller:
        assert written in program
        program = program.replace(written, run)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(program, "models.md", "exec"), names)
    assert {p.name for p in tmp_path.iterdir()} == {"mamba-bytes", "mamba-bytes-hf", "bytes.pt"}
    printed = capsys.readouterr().out
    assert printed.startswith("torch.Size([2, 8, 32, 64])\ndef main(")
    assert re.search(r"^   2  loss \d\.\d{3}  held out \d\.\d{3}  \d+ s$", printed, re.MULTILINE)
