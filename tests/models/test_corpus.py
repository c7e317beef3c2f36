"""The corpus: whole files, each on one side of the split, the same for everyone; bounded; samples are what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scanc.errors import ArgumentError
from scanc.models import Corpus
from scanc.models.corpus import END


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """200 small files, and what must be left out."""
    for i in range(200):
        folder = tmp_path / f"package{i % 7}"
        folder.mkdir(exist_ok=True)
        (folder / f"module{i}.py").write_text(f"# file {i}\n" + "x = 1\n" * (i % 5))
    for path in ("test/a.py", "package0/tests/b.py", "site-packages/c.py", "package0/__pycache__/d.py", "_sysconfigdata_x.py", "notes.txt"):
        (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / path).write_text("left out")
    (tmp_path / "package1" / "copy.py").write_text("# file 0\n")
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nowhere.py")
    return tmp_path


def texts(data: torch.Tensor) -> list[str]:
    return bytes(data.tolist()).decode().split(chr(END))[:-1]


def test_every_file_is_once_on_one_side(library: Path) -> None:
    corpus = Corpus.standard_library(root=library, held_out=0.2)
    train, held_out = texts(corpus.train), texts(corpus.held_out)
    assert corpus.files == 200 == len(train) + len(held_out)
    assert sorted(train + held_out) == sorted(f"# file {i}\n" + "x = 1\n" * (i % 5) for i in range(200))
    assert 20 <= len(held_out) <= 60


def test_the_corpus_does_not_depend_on_where_it_lies(library: Path, tmp_path: Path) -> None:
    first = Corpus.standard_library(root=library)
    moved = library / "package9" / "deep"
    moved.mkdir(parents=True)
    for path in library.glob("package3/*.py"):
        path.rename(moved / path.name)
    again = Corpus.standard_library(root=library)
    assert torch.equal(first.train, again.train) and torch.equal(first.held_out, again.held_out)


def test_a_limit_takes_fewer_files_of_the_same_splits(library: Path) -> None:
    whole, part = Corpus.standard_library(root=library, held_out=0.2), Corpus.standard_library(root=library, held_out=0.2, max_bytes=1500)
    assert 1400 < len(part.train) + len(part.held_out) <= 1500
    assert torch.equal(part.train, whole.train[:len(part.train)]) and torch.equal(part.held_out, whole.held_out[:len(part.held_out)])


def test_this_pythons_library() -> None:
    corpus = Corpus.standard_library(max_bytes=4 << 20)
    assert 3 << 20 < len(corpus.train) + len(corpus.held_out) <= 4 << 20
    assert 0.02 < len(corpus.held_out) / len(corpus.train) < 0.3
    assert b"\ndef " in bytes(corpus.train.tolist()) and b"\nimport " in bytes(corpus.held_out.tolist())


def test_samples_are_windows_of_their_split() -> None:
    corpus = Corpus.from_bytes(bytes(range(200)) , held_out=0.25)
    assert len(corpus.train) == 150
    first, second = (next(corpus.batches("train", 64, 20, seed)) for seed in (0, 1))
    assert first.shape == (64, 21) and first.dtype == torch.int64
    assert torch.equal(first, first[:, :1] + torch.arange(21)) and int(first.max()) < 150
    assert torch.equal(first, next(corpus.batches("train", 64, 20, 0))) and not torch.equal(first, second)
    held_out = torch.cat([b for b, _ in zip(corpus.batches("held_out", 50, 20, 0), range(20), strict=False)])
    assert set(held_out.flatten().tolist()) == set(range(150, 200))  # both ends are reached


def test_too_little_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="its train split is empty"):
        Corpus.standard_library(root=tmp_path)
    with pytest.raises(ArgumentError, match="split held_out has 20 bytes"):
        next(Corpus.from_bytes(bytes(200)).batches("held_out", 2, 20, 0))
