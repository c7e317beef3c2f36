"""The CUDA backend's recurrent schedules where nothing was tuned: what was seen to be fastest at these sizes."""

from __future__ import annotations

import pytest

from scanc.compiler import Executable, default_schedule
from scanc.problem import Problem
from scanc.schedule import RecurrentSchedule
from scanc.target import Target

HOPPER = Target.parse("cuda:sm_90:cuda")
# (b, d, l, n) and lanes, split, tile, history, segment
FORWARDS = {
    (1, 1536, 2048, 16): (12, 2, 256, 16, 0), (8, 4096, 2048, 16): (128, 1, 32, 4, 0), (1, 5120, 2048, 16): (40, 8, 128, 16, 0),
    (1, 1536, 32768, 16): (12, 2, 256, 16, 0), (1, 2048, 8192, 16): (16, 2, 256, 16, 0), (1, 768, 8192, 16): (6, 4, 256, 16, 0),
    (1, 768, 128, 16): (8, 4, 128, 16, 0), (1, 2048, 512, 16): (16, 2, 256, 16, 0), (2, 384, 65536, 32): (64, 2, 32, 4, 3008),
    (4, 1536, 2048, 16): (48, 8, 128, 16, 0), (16, 768, 1024, 16): (96, 4, 64, 8, 0), (1, 2048, 8192, 64): (16, 16, 64, 16, 0),
    (1, 4096, 2048, 32): (32, 8, 128, 16, 0), (1, 4096, 2048, 128): (32, 16, 32, 8, 0), (1, 2048, 8192, 128): (16, 16, 64, 8, 0),
    (8, 2048, 2048, 8): (64, 2, 64, 8, 0), (1, 2048, 8192, 8): (16, 2, 256, 16, 0), (8, 2048, 2048, 64): (32, 4, 32, 4, 0),
}
BACKWARDS = {
    (1, 1536, 2048, 16): (128, 4, 32, 4, 192), (1, 4096, 16384, 16): (128, 4, 32, 4, 4096), (16, 768, 1024, 16): (32, 4, 32, 4, 0),
    (8, 4096, 2048, 16): (128, 4, 32, 4, 0), (2, 4096, 2048, 16): (64, 4, 32, 4, 1024),
    (1, 768, 128, 16): (8, 16, 32, 8, 0), (1, 2048, 512, 16): (128, 4, 32, 4, 64), (4, 1536, 2048, 16): (32, 4, 32, 4, 1024),
    (1, 4096, 2048, 32): (64, 4, 32, 4, 1024), (8, 2048, 2048, 32): (64, 4, 32, 4, 0),
    (1, 4096, 2048, 128): (32, 8, 16, 4, 416), (8, 2048, 2048, 128): (32, 8, 16, 4, 0),
    (1, 5120, 2048, 16): (128, 4, 32, 4, 704),
    (8, 2048, 2048, 8): (64, 2, 32, 8, 0), (8, 2048, 2048, 64): (64, 4, 16, 4, 0), (1, 2048, 8192, 64): (64, 4, 16, 4, 1024),
}
CLUSTERS = {(1, 768, 128, 16): 8, (4, 1536, 2048, 16): 2, (16, 768, 1024, 16): 2, (1, 4096, 2048, 32): 2, (8, 2048, 2048, 32): 2}
CASES = [(pass_, sizes, wanted) for pass_, cases in (("forward", FORWARDS), ("backward", BACKWARDS)) for sizes, wanted in cases.items()]


@pytest.mark.parametrize(("pass_", "sizes", "wanted"), CASES)
def test_the_fastest_seen(pass_: str, sizes: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    problem = Problem.of("selective_scan", {**dict(zip("bdln", sizes, strict=True)), "g": 1}, "bfloat16", pass_)
    graph = problem.graph()
    found = default_schedule(graph, HOPPER, problem.sizes, "recurrent")
    assert isinstance(found, RecurrentSchedule)
    assert (found.lanes, found.split, found.tile, found.history, found.segment) == wanted
    assert found.cluster == (CLUSTERS.get(sizes, 1) if pass_ == "backward" else 1)
    assert bool(found.helpers or found.span) == (pass_ == "forward")
    assert Executable(graph, HOPPER, found).source(problem.sizes["n"]).text


def test_clusters_are_for_gpus_that_have_them() -> None:
    """Older GPUs have what fits them, and so do sizes that cannot be shared out."""
    for target, d, cluster in (("cuda:sm_90:cuda", 768, 8), ("cuda:sm_80:cuda", 768, 1), ("cuda:sm_90:cuda", 760, 1)):
        problem = Problem.of("selective_scan", dict(b=1, d=d, l=128, n=16, g=1), "bfloat16", "backward")
        found = default_schedule(problem.graph(), Target.parse(target), problem.sizes, "recurrent")
        assert isinstance(found, RecurrentSchedule) and found.cluster == cluster
