"""Files that survive a kill, folders that cannot be written to, and the environment."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from scanc import runtime
from scanc.errors import TargetError


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What scanc's logger says from warnings up, whatever SCANC_LOG was at import."""
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    monkeypatch.setattr(runtime.logger, "handlers", [Ear(logging.WARNING)])
    return said


def test_the_cache_folder_is_the_one_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: list[str]) -> None:
    monkeypatch.setenv("SCANC_CACHE", str(tmp_path / "deep" / "cache"))
    assert runtime.cache_dir() == (tmp_path / "deep" / "cache").resolve()
    assert runtime.cache_dir().is_dir() and list(runtime.cache_dir().iterdir()) == []
    assert heard == []


def test_a_cache_folder_that_cannot_be_written_to_is_replaced_with_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                               heard: list[str]) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    monkeypatch.setenv("SCANC_CACHE", str(in_the_way / "cache"))
    first, second = runtime.cache_dir(), runtime.cache_dir()
    assert first == second and first.is_dir() and tmp_path not in first.parents
    assert len(heard) == 1 and "SCANC_CACHE" in heard[0] and str(in_the_way) in heard[0]


def test_a_full_disk_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: list[str]) -> None:
    """/dev/full opens well and fails on writing, as a file on a full disk does."""

    def on_full(**_: object) -> object:
        return open("/dev/full", "wb")

    monkeypatch.setenv("SCANC_CACHE", str(tmp_path / "full"))
    monkeypatch.setattr(runtime.tempfile, "NamedTemporaryFile", on_full)
    assert tmp_path not in runtime.cache_dir().parents
    assert len(heard) == 1 and "No space left" in heard[0]


def test_the_target_can_be_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCANC_TARGET", raising=False)
    assert runtime.target_override() is None
    monkeypatch.setenv("SCANC_TARGET", "cpu:native:reference")
    assert str(runtime.target_override()) == "cpu:native:reference"
    monkeypatch.setenv("SCANC_TARGET", "cpu:native")
    with pytest.raises(TargetError, match="three parts"):
        runtime.target_override()


def test_atomic_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    runtime.atomic_write(path, "one")
    runtime.atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    runtime.atomic_write(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        runtime.atomic_write(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_kill_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    runtime.atomic_write(path, "old")
    code = ("import os, signal\nfrom scanc import runtime\n"
            "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
            f"runtime.atomic_write({str(path)!r}, 'new')\n")
    ended = subprocess.run([sys.executable, "-c", code], check=False)
    assert ended.returncode == -9
    assert path.read_text() == "old"


def test_a_damaged_file_is_set_aside(tmp_path: Path, heard: list[str]) -> None:
    path = tmp_path / "record.json"
    path.write_text('{"ms": 1')

    def read(p: Path) -> float:
        return float(json.loads(p.read_text())["ms"])

    assert runtime.load_or_set_aside(path, read) is None
    assert not path.exists() and (tmp_path / "record.json.damaged").read_text() == '{"ms": 1'
    assert len(heard) == 1 and "damaged" in heard[0]
    assert runtime.load_or_set_aside(path, read) is None and len(heard) == 1  # absent is not damaged
    path.write_text('{"ms": 1}')
    assert runtime.load_or_set_aside(path, read) == 1.0


def test_the_lock_keeps_others_out(tmp_path: Path) -> None:
    order: list[str] = []
    with runtime.file_lock(tmp_path / "records.json"):
        def other() -> None:
            with runtime.file_lock(tmp_path / "records.json"):
                order.append("other")

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(timeout=0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_names() -> None:
    assert runtime.kebab("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert runtime.kebab("AMD EPYC (TM) 9V74, 2 cores") == "amd-epyc-tm-9v74-2-cores"
    assert runtime.device_name("cpu").endswith(f"{runtime.cpu_cores()} cores")
    assert {"scanc", "torch", "triton", "cupy", "python", "driver"} <= set(runtime.versions())


def test_an_unknown_log_level_is_said() -> None:
    ended = subprocess.run([sys.executable, "-c", "import scanc.runtime"], env={**os.environ, "SCANC_LOG": "loud"},
                           capture_output=True, text=True, check=True)
    assert "loud" in ended.stderr and "debug, info, warning, error" in ended.stderr
