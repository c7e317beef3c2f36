"""What every test shares: one temporary kernel cache for the whole run, and goldens that ``--update-golden`` rewrites."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
MOST_LINES = 80


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the files under tests/golden from what the code makes now")


def pytest_configure(config: pytest.Config) -> None:
    """Kernels are compiled once a run, into a folder of the run's own: no test reads or writes the user's cache."""
    if hasattr(config, "workerinput"):
        return  # a process of pytest-xdist: it has the folder of the process that started it
    os.environ["SCANC_CACHE"] = tempfile.mkdtemp(prefix="scanc-tests-")
    os.environ.pop("SCANC_TARGET", None)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop("SCANC_CACHE", ""), ignore_errors=True)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden("name.txt", text)``: the text is that of tests/golden/name.txt; a file is at most 80 lines."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        text = text.rstrip("\n") + "\n"
        assert text.count("\n") <= MOST_LINES, f"{name} has {text.count(chr(10))} lines: choose a smaller program"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"no golden {name}: run pytest --update-golden and read what it writes"
        assert text == path.read_text(), f"{name} changed: read the difference; pytest --update-golden accepts it"

    return check


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """What the "scanc" logger says from information upwards, as it comes; things said once are said anew."""
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(f"{record.levelname.lower()}: {record.getMessage()}")

    from scanc import dispatch, runtime

    ear, before = Ear(), runtime.logger.level
    dispatch._told.clear()
    runtime.logger.addHandler(ear)
    runtime.logger.setLevel(logging.INFO)
    yield said
    runtime.logger.removeHandler(ear)
    runtime.logger.setLevel(before)
