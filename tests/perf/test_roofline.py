"""Counts from a graph, against counts by hand, and the floors they give on the device whose figures are recorded."""

from __future__ import annotations

import pytest
import torch

from scanc.ir import Builder, Graph, Output, Type
from scanc.perf.peers import anchors
from scanc.perf.roofline import RECORDED, Ceilings, ceilings, floor_under

H100 = "NVIDIA H100 80GB HBM3"
SIZES = {"b": 8, "d": 4096, "l": 2048, "n": 16, "g": 1}


def selective_scan() -> Graph:
    """Mamba's scan with every optional input, built by hand."""
    b = Builder(("b", "d", "l", "n", "g"), {"g": "d"}, "l")
    u, delta, z = (b.input(name, Type(("b", "d", "l"), "real")) for name in ("u", "delta", "z"))
    big_a = b.input("A", Type(("d", "n"), "real"))
    big_b, big_c = (b.input(name, Type(("b", "l", "n", "g"), "real")) for name in ("B", "C"))
    skip, bias = (b.input(name, Type(("d",), "real")) for name in ("D", "delta_bias"))
    dt = b.pointwise("softplus", b.pointwise("add", delta, bias))
    h = b.scan(b.pointwise("exp", b.pointwise("mul", dt, big_a)), b.pointwise("mul", b.pointwise("mul", dt, u), big_b), axis="l")
    y = b.pointwise("add", b.sum(b.pointwise("mul", big_c, h), ("n",)), b.pointwise("mul", skip, u))
    out = b.pointwise("mul", y, b.pointwise("silu", z))
    return Graph("selective_scan", (u, delta, big_a, big_b, big_c, skip, z, bias), (Output("y", out, ("b", "d", "l")),), "l",
                 ("b", "d", "l", "n", "g"), {"g": "d"}, ("n",))


def test_counts_are_those_done_by_hand() -> None:
    found = floor_under(selective_scan(), SIZES, torch.bfloat16, RECORDED[H100])
    bdl, bln = 8 * 4096 * 2048, 8 * 2048 * 16
    assert found.bytes == 2 * (4 * bdl + 2 * bln + 4096 * 16 + 2 * 4096)
    assert found.exps == bdl * 16 + 2 * bdl
    assert found.flops == 2 * bdl * 16 + 2 * bdl * 16
    assert found.bound == "special"


def test_floors_agree_with_the_recorded_ones() -> None:
    rows = [r for r in anchors(H100) if r["op"] == "selective_scan" and r["pass"] == "forward" and r["floor_ms"]]
    assert len(rows) == 4
    for row in rows:
        found = floor_under(selective_scan(), row["case"], torch.bfloat16, RECORDED[H100])
        assert found.ms == pytest.approx(row["floor_ms"], rel=0.1)


def test_dtypes_are_by_name_where_given() -> None:
    wide = floor_under(selective_scan(), SIZES, {"A": torch.float64}, RECORDED[H100])
    plain = floor_under(selective_scan(), SIZES, torch.float32, RECORDED[H100])
    assert wide.bytes - plain.bytes == 4 * 4096 * 16


def test_a_small_problem_is_bound_by_its_launch() -> None:
    found = floor_under(selective_scan(), dict.fromkeys(SIZES, 1), torch.float32, RECORDED[H100])
    assert found.bound == "launch" and found.ms == pytest.approx(RECORDED[H100].launch_ms)


def test_where_units_are_shared_work_adds_up() -> None:
    apart = Ceilings(bytes=1e15, exps=1e9, flops=1e9, launch_ms=0.0, source="made up")
    shared = Ceilings(bytes=1e15, exps=1e9, flops=1e9, launch_ms=0.0, source="made up", shared=True)
    graph = selective_scan()
    one, both = floor_under(graph, SIZES, torch.float32, apart), floor_under(graph, SIZES, torch.float32, shared)
    assert one.ms == pytest.approx(1e3 * max(one.exps, one.flops) / 1e9)
    assert both.ms == pytest.approx(1e3 * (one.exps + one.flops) / 1e9)


def test_a_long_convolution_counts_as_transforms_and_a_short_one_as_taps() -> None:
    b = Builder(("b", "d", "l", "w"), {}, "l")
    x, long, short = (b.input(name, Type(axes, "real")) for name, axes in (("x", ("b", "d", "l")), ("k", ("d", "l")), ("s", ("d", "w"))))
    limits, sizes = RECORDED[H100], {"b": 2, "d": 3, "l": 1024, "w": 4}
    for kernel, tap, flops in ((long, "l", int(6 * 3 * 2.5 * 2048 * 11)), (short, "w", 2 * 6 * 1024 * 4)):
        graph = Graph("conv", (x, kernel), (Output("y", b.conv(x, kernel, "l", tap), ("b", "d", "l")),), "l", ("b", "d", "l", "w"))
        assert floor_under(graph, sizes, torch.float32, limits).flops == flops


def test_this_machine_has_ceilings() -> None:
    found = ceilings("cpu")
    assert found.source == "measured" and found.shared
    assert 1e9 < found.bytes < 1e13 and found.flops > found.exps > 1e7
