"""Reference models on scanc's ops: one readable file a model, and what it takes to load, run and train them."""

from __future__ import annotations

from scanc.models.checkpoint import CheckpointError, load_checkpoint, load_config, save_checkpoint
from scanc.models.corpus import Corpus
from scanc.models.generate import generate, stream
from scanc.models.language_model import MambaState
from scanc.models.mamba import Mamba, MambaBlock, MambaConfig
from scanc.models.mamba2 import Mamba2, Mamba2Block, Mamba2Config
from scanc.models.train import BYTE_MODEL, NonFiniteLoss, StepLog, TrainLog, held_out_loss, train

__all__ = [
    "BYTE_MODEL", "CheckpointError", "Corpus", "Mamba", "Mamba2", "Mamba2Block", "Mamba2Config", "MambaBlock", "MambaConfig", "MambaState",
    "NonFiniteLoss", "StepLog", "TrainLog", "generate", "held_out_loss", "load_checkpoint", "load_config", "save_checkpoint", "stream",
    "train",
]
