"""A file of JSON lines that several processes append to, and that outlives kills, full disks and foreign hands.

Each line is complete in itself and written whole under a lock. What is no line of the expected kind is left out, with one warning and
a copy of the file as ``<name>.damaged``; the good lines stay.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import filelock

from scanc.runtime import atomic_write, file_lock, logger

T = TypeVar("T")
Stamp = tuple[int, int] | None
LOCK_SECONDS = 60.0
# What stops a process from writing: a read-only or full disk, a file where a folder should be, a lock never given up.
UNWRITABLE = (OSError, filelock.Timeout)


def stamp(path: Path) -> Stamp:
    """Changes whenever the file does; None while there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def append(path: Path, data: dict[str, Any]) -> None:
    """Adds one line. Raises one of UNWRITABLE."""
    line = json.dumps(data, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    with file_lock(path, timeout=LOCK_SECONDS), open(path, "ab+") as file:
        if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
            line = b"\n" + line  # another process was killed in the middle of its line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, parse: Callable[[Any], T]) -> list[T]:
    """What ``parse`` makes of each line; a line that it, or JSON, refuses with a ValueError is damage."""
    found, damaged = _parsed(path, parse)
    return _set_aside(path, parse) if damaged else found


def _parsed(path: Path, parse: Callable[[Any], T]) -> tuple[list[T], list[bytes]]:
    """Good lines, parsed, and bad ones as they are."""
    try:
        text = path.read_bytes()
    except OSError:
        return [], []
    found, damaged = [], []
    for line in text.splitlines():
        try:
            if line.strip():
                found.append(parse(json.loads(line)))
        except ValueError:  # bytes that are no UTF-8 and text that is no JSON raise its subclasses
            damaged.append(line)
    return found, damaged


def _set_aside(path: Path, parse: Callable[[Any], T]) -> list[T]:
    """Keeps a copy of a damaged file, and the good lines in their place.

    A last line that is only half there may be another process in the middle of writing it: hence the lock and a second look.
    """
    try:
        with file_lock(path, timeout=LOCK_SECONDS):
            found, damaged = _parsed(path, parse)
            if damaged:
                aside = path.with_name(path.name + ".damaged")
                shutil.copyfile(path, aside)
                good = [line for line in path.read_bytes().splitlines() if line.strip() and line not in damaged]
                atomic_write(path, b"".join(line + b"\n" for line in good))
                logger.warning("%s had lines that are not its own kind; a copy is kept as %s, and %d lines go on being used",
                               path, aside.name, len(found))
    except UNWRITABLE as error:
        found, _ = _parsed(path, parse)
        logger.warning("%s has lines that are not its own kind and cannot be set right (%s); %d lines are used", path, error, len(found))
    return found
