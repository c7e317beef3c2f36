"""A corpus that every Python has: the source of its own standard library, as bytes (vocabulary 256).

Files are taken whole, in the order of their SHA-256, so that the same files give the same corpus on every machine. The last digits
of that hash say whether a file is held out: its text is then never trained on. Each file is followed by a zero byte, which ends
one text and starts the next.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from scanc.errors import ArgumentError

Split = Literal["train", "held_out"]

END = 0  # the byte after each file; no source file contains it
VOCABULARY = 256
SKIPPED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


@dataclass(frozen=True)
class Corpus:
    """Two splits of text as bytes: ``train`` and ``held_out``, uint8 tensors on the CPU; ``files`` how many went in."""

    train: Tensor
    held_out: Tensor
    files: int = 1

    @classmethod
    def standard_library(cls, *, max_bytes: int = 8 << 20, held_out: float = 0.1, root: str | Path | None = None) -> Corpus:
        """The ``*.py`` files under Python's standard library, tests and installed packages left out.

        Takes files until the next would pass ``max_bytes``; about ``held_out`` of them are kept from training. ``root``
        names another folder of Python files. Raises ArgumentError where a split would be empty.
        """
        folder = Path(root or sysconfig.get_path("stdlib"))
        train, kept, taken = bytearray(), bytearray(), 0
        for digest, path in sorted(_sources(folder)):
            size = path.stat().st_size + 1
            if len(train) + len(kept) + size > max_bytes:
                break
            into = kept if int(digest[-8:], 16) < held_out * 16**8 else train
            into += path.read_bytes() + bytes([END])
            taken += 1
        for name, data in (("train", train), ("held_out", kept)):
            if not data:
                raise ArgumentError(op="Corpus.standard_library", argument="root", value=str(folder), limit=f"its {name} split is empty",
                                    remedy="Give a folder with more Python files, or a larger max_bytes.")
        return cls(torch.frombuffer(train, dtype=torch.uint8), torch.frombuffer(kept, dtype=torch.uint8), taken)

    @classmethod
    def from_bytes(cls, text: bytes, *, held_out: float = 0.1) -> Corpus:
        """A corpus of one text; its last part is held out."""
        data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        cut = round(len(text) * (1 - held_out))
        return cls(data[:cut], data[cut:])

    def sample(self, split: Split, batch: int, length: int, generator: torch.Generator) -> Tensor:
        """``batch`` windows of ``length`` + 1 bytes from anywhere in the split, (batch, length + 1) int64: inputs and targets overlap.

        Raises ArgumentError where the split is shorter than one window.
        """
        data = {"train": self.train, "held_out": self.held_out}[split]
        if len(data) <= length:
            raise ArgumentError(op="Corpus.sample", argument="length", value=length, limit=f"split {split} has {len(data)} bytes",
                                remedy="Use a shorter length or a larger corpus.")
        starts = torch.randint(len(data) - length, (batch, 1), generator=generator)
        return data[starts + torch.arange(length + 1)].long()

    def batches(self, split: Split, batch: int, length: int, seed: int) -> Iterator[Tensor]:
        """Samples without end, the same ones for the same ``seed``."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield self.sample(split, batch, length, generator)


def _sources(folder: Path) -> Iterator[tuple[str, Path]]:
    """(SHA-256, path) of each distinct Python file under ``folder``; of equal files the first path."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - SKIPPED)
        for path in (Path(parent, name) for name in sorted(names)):
            # _sysconfigdata holds the paths of the machine that built this Python.
            if path.suffix != ".py" or path.name.startswith("_sysconfigdata") or not path.is_file():
                continue
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digest not in seen:
                seen.add(digest)
                yield digest, path
