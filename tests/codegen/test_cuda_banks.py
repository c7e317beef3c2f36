"""Shared memory has 32 banks, of a word each: what a warp's threads read or write at a time must not meet in one of them."""

from __future__ import annotations

import ctypes
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from scanc.codegen import build_cpp
from scanc.codegen.cuda_dialect import HEADER
from tests.codegen import emulate

EXCHANGES = [(split, count) for count in (4, 8, 16) for split in (2, 4, 8, 16) if split <= count]  # threads of a lane, sums of each
THREADS = 64
TEXT = """
#include "cuda_emulator.h"
{header}
template <int SPLIT, int COUNT> static int* places(int* out) {{
    for (int thread = 0; thread < {threads}; ++thread) {{
        const Exchange<SPLIT, {threads}, COUNT> exchange(shared, thread);
        *out++ = int(exchange.mine) / 4;
        for (int i = 0; i < SPLIT; ++i) *out++ = int(exchange.others[i]) / 4;
    }}
    return out;
}}
extern "C" void all(int* out) {{ {calls} }}
"""


@pytest.fixture(scope="module")
def exchanges(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], np.ndarray]:
    """Of each exchange [thread, 1 + split]: the word at which a thread leaves its first four sums, and those it takes its share from."""
    folder = tmp_path_factory.mktemp("banks")
    calls = " ".join(f"out = places<{split}, {count}>(out);" for split, count in EXCHANGES)
    (folder / "banks.cpp").write_text(TEXT.format(header=HEADER.read_text(), threads=THREADS, calls=calls))
    subprocess.run([str(build_cpp.compiler()), *emulate.FLAGS, f"-I{Path(emulate.__file__).parent}", "-o", str(folder / "banks.so"),
                    str(folder / "banks.cpp")], check=True)
    words = np.zeros(sum(THREADS * (1 + split) for split, _ in EXCHANGES), dtype=np.int32)
    ctypes.CDLL(str(folder / "banks.so")).all(ctypes.c_void_p(words.ctypes.data))
    found, at = {}, 0
    for split, count in EXCHANGES:
        found[split, count] = words[at:at + THREADS * (1 + split)].reshape(THREADS, 1 + split)
        at += THREADS * (1 + split)
    return found


def meetings(first: np.ndarray, wide: int) -> int:
    """The most words of one bank that are moved at a time, where each of a warp's threads moves ``wide`` words from its ``first`` on: of
    one word a thread a warp at a time, of two a half, of four a quarter."""
    at_a_time = 32 // wide
    most = 0
    for start in range(0, len(first), at_a_time):
        words = {int(word) + k for word in first[start:start + at_a_time] for k in range(wide)}
        most = max(most, *Counter(word % 32 for word in words).values())
    return most


@pytest.mark.parametrize("split, count", EXCHANGES)
def test_sums_of_a_lane_s_threads(split: int, count: int, exchanges: dict[tuple[int, int], np.ndarray]) -> None:
    """Every thread takes its own share of what each of its lane's threads has left, and no bank is asked for two words at a time."""
    words, share = exchanges[split, count], count // split
    mine, others = words[:, 0], words[:, 1:]
    assert meetings(mine, 4) == 1
    for number in range(split):
        assert meetings(others[:, number], min(share, 4)) == 1, number
    pairs = split > 1 and split < 32
    for thread in range(THREADS):
        lane, own = (thread // (2 * split) * 2 + thread % 2, thread // 2 % split) if pairs else (thread // split, thread % split)
        same = [t for t in range(THREADS) if (t // (2 * split) * 2 + t % 2 if pairs else t // split) == lane]
        wanted = {int(mine[t]) + own * share // 4 * 32 * 4 + own * share % 4 for t in same}
        assert {int(w) for w in others[thread]} == wanted, thread
