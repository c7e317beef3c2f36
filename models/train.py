"""Training a language model on bytes: AdamW, warm-up and cosine decay, gradients clipped, stopped and resumed at any step.

    log = train(model, Corpus.standard_library(), steps=300, batch=8, length=256, lr=3e-3, checkpoint_path="run.pt")

Nothing is printed: ``on_step`` is called with each StepLog. A checkpoint appears whole or not at all; a run resumed from it takes the
same steps, on the same batches, as one that was never stopped. Ctrl-C ends the step under way, writes the checkpoint and
raises KeyboardInterrupt; pressed twice, it raises at once and the last checkpoint stands.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor
from torch.nn import functional as F

from scanc.errors import ArgumentError, ScancError
from scanc.models.checkpoint import UNREADABLE, CheckpointError
from scanc.models.corpus import VOCABULARY, Corpus
from scanc.models.language_model import Model
from scanc.models.mamba import MambaConfig
from scanc.runtime import atomic_write

# Half a million parameters: a processor trains it to readable Python-like text in a few minutes.
BYTE_MODEL = MambaConfig(d_model=128, n_layer=4, vocab_size=VOCABULARY, pad_vocab_size_multiple=1)

HELD_OUT_SEED = 7  # the held-out loss is always taken on the same windows


class NonFiniteLoss(ScancError, ArithmeticError):
    """Training diverged. The model's parameters are those of the step before; the checkpoint is the last one written."""

    template = "step {step}: the {what} is {value} at learning rate {lr:.2g}. {remedy}"


@dataclass(frozen=True)
class StepLog:
    """One step: losses in nats per byte, the gradient's norm before clipping, seconds of training so far."""

    step: int
    loss: float
    gradient_norm: float
    lr: float
    seconds: float
    held_out: float | None = None


@dataclass
class TrainLog:
    """The steps this call took, and why it ended: "steps" or "time"."""

    steps: list[StepLog] = field(default_factory=list)
    ended: str = "steps"

    @property
    def held_out(self) -> float | None:
        """The last held-out loss in nats per byte; None where none was taken."""
        return next((s.held_out for s in reversed(self.steps) if s.held_out is not None), None)


@dataclass
class _Run:
    """What changes from step to step and is kept in a checkpoint."""

    model: Model
    optimizer: torch.optim.AdamW
    generator: torch.Generator
    step: int = 0
    seconds: float = 0.0


def train(model: Model, corpus: Corpus, *, steps: int, batch: int, length: int, lr: float, weight_decay: float = 0.1, warmup: int = 20,
          clip: float = 1.0, seed: int = 0, autocast: torch.dtype | None = None, on_step: Callable[[StepLog], None] | None = None,
          held_out_every: int = 50, held_out_batches: int = 4, checkpoint_path: str | Path | None = None, checkpoint_every: int = 100,
          resume: bool = True, time_budget: float | None = None) -> TrainLog:
    """Trains ``model`` in place for ``steps`` steps of ``batch`` windows of ``length`` bytes, on the model's device.

    The rate rises to ``lr`` over ``warmup`` steps and falls along a cosine to a tenth of it at the last step, or at the end of
    ``time_budget`` seconds if that comes sooner. ``autocast`` computes in that dtype where torch's autocast does. The held-out
    loss is taken every ``held_out_every`` steps and at the end; 0 for never. With ``checkpoint_path``, the file is written every
    ``checkpoint_every`` steps and at the end, and a file already there is continued (``resume``): steps and seconds then count
    from its start. Raises NonFiniteLoss where the loss or gradient is infinite or NaN, before it reaches the parameters;
    CheckpointError where the file is damaged or of another model; ArgumentError on an option that is not above 0.
    """
    _check(steps=steps, batch=batch, length=length, lr=lr, clip=clip, checkpoint_every=checkpoint_every)
    run = _Run(model, _optimizer(model, lr, weight_decay), torch.Generator().manual_seed(seed))
    if checkpoint_path is not None and resume and Path(checkpoint_path).exists():
        _restore(run, Path(checkpoint_path))
    device = model.lm_head.weight.device
    started, log = time.perf_counter() - run.seconds, TrainLog()

    def save() -> None:
        if checkpoint_path is not None:
            _save(run, Path(checkpoint_path))

    with _interrupt_between_steps() as interrupt:
        while run.step < steps and not interrupt.pressed:
            if time_budget is not None and run.seconds >= time_budget:
                log.ended = "time"
                break
            done = max(run.step / steps, run.seconds / time_budget if time_budget else 0.0)
            rate = lr * min(1.0, (run.step + 1) / warmup if warmup else 1.0) * (0.55 + 0.45 * math.cos(math.pi * done))
            tokens = corpus.sample("train", batch, length, run.generator).to(device)
            loss, norm = _step(run, tokens, rate, clip, autocast)
            run.step += 1
            run.seconds = time.perf_counter() - started
            last = run.step == steps or (time_budget is not None and run.seconds >= time_budget)
            held_out = None
            if held_out_every > 0 and (last or run.step % held_out_every == 0):
                held_out = held_out_loss(model, corpus, batch=batch, length=length, batches=held_out_batches, autocast=autocast)
            log.steps.append(StepLog(run.step, loss, norm, rate, run.seconds, held_out))
            if on_step is not None:
                on_step(log.steps[-1])
            if last or interrupt.pressed or run.step % checkpoint_every == 0:
                save()
    if interrupt.pressed:
        raise KeyboardInterrupt
    return log


@torch.no_grad()
def held_out_loss(model: Model, corpus: Corpus, *, batch: int, length: int, batches: int = 4, autocast: torch.dtype | None = None) -> float:
    """Mean loss in nats per byte over ``batches`` held-out batches, the same ones at every call."""
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    device = model.lm_head.weight.device
    losses = [_loss(model, corpus.sample("held_out", batch, length, generator).to(device), autocast) for _ in range(batches)]
    return float(torch.stack(losses).mean())


def _loss(model: Model, tokens: Tensor, autocast: torch.dtype | None) -> Tensor:
    """Cross-entropy of each byte of tokens (b l+1) given those before it, in float32."""
    with torch.autocast(tokens.device.type, dtype=autocast, enabled=autocast is not None):
        logits, _ = model(tokens[:, :-1])                                               # (b l v)
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def _step(run: _Run, tokens: Tensor, lr: float, clip: float, autocast: torch.dtype | None) -> tuple[float, float]:
    """One step of the optimizer; returns the loss and the gradient's norm. Raises NonFiniteLoss, the parameters untouched."""
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.zero_grad(set_to_none=True)
    loss = _loss(run.model, tokens, autocast)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), clip)
    for what, value in (("loss", loss.item()), ("gradient's norm", norm.item())):
        if not math.isfinite(value):
            raise NonFiniteLoss(step=run.step + 1, what=what, value=value, lr=lr, remedy="Lower lr, or lengthen warmup.")
    run.optimizer.step()
    return loss.item(), norm.item()


def _optimizer(model: Model, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only: no vector, and not A_log, which says how long each state remembers."""
    decays: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        decays[parameter.dim() > 1 and not name.endswith("A_log")].append(parameter)
    groups = [{"params": parameters, "weight_decay": weight_decay * decay} for decay, parameters in decays.items()]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def _save(run: _Run, path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({
        "config": dataclasses.asdict(run.model.config), "model": run.model.state_dict(), "optimizer": run.optimizer.state_dict(),
        "generator": run.generator.get_state(), "step": run.step, "seconds": run.seconds,
    }, buffer)
    atomic_write(path, buffer.getvalue())


def _restore(run: _Run, path: Path) -> None:
    """Continues from the file. Raises CheckpointError where it is damaged or of another model."""
    remedy = "Remove the file, choose another, or pass resume=False to start over and replace it."
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
        config = data["config"]
        model, optimizer, generator, step, seconds = (data[key] for key in ("model", "optimizer", "generator", "step", "seconds"))
    except UNREADABLE as error:
        raise CheckpointError(f"it cannot be read ({type(error).__name__})", path=path, remedy=remedy) from error
    own = dataclasses.asdict(run.model.config)
    other = [f"{key} is {config.get(key)!r}, not {value!r}" for key, value in own.items() if config.get(key) != value]
    if other:
        raise CheckpointError(f"it is of another model: {', '.join(other)}", path=path, remedy=remedy)
    run.model.load_state_dict(model)
    run.optimizer.load_state_dict(optimizer)
    run.generator.set_state(generator)
    run.step, run.seconds = step, seconds


@dataclass
class _Interrupt:
    pressed: bool = False


@contextlib.contextmanager
def _interrupt_between_steps() -> Iterator[_Interrupt]:
    """Ctrl-C sets ``pressed``, and only a second one raises. A program's own handler, and other threads', are left alone."""
    interrupt = _Interrupt()
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupt
        return

    def note(number: int, frame: FrameType | None) -> None:
        if interrupt.pressed:
            raise KeyboardInterrupt
        interrupt.pressed = True

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _check(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ArgumentError(op="train", argument=name, value=value, limit="it must be above 0", remedy="Give a positive number.")
