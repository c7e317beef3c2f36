"""The page and the tables say what the rows say, and a plot is well-formed and in proportion."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from scanc.autotune.records import Record
from scanc.op import REGISTRY
from scanc.perf.plots import Bar, Line, Point, bars, number, scatter, steps
from scanc.perf.report import best_rows, best_so_far, render, write_report
from scanc.perf.results import Results, Row, merge_rows, results_path
from scanc.perf.tables import filled, markdown_table

SVG = "{http://www.w3.org/2000/svg}"


def row(**changes: Any) -> Row:
    made: Row = {"op": "selective_scan", "case": {"b": 8, "d": 64}, "dtype": "bfloat16", "pass": "forward", "form": "recurrent",
                 "backend": "cuda", "schedule": {"form": "recurrent", "lanes": 64}, "ms": 2.0, "ms_p10": 1.9, "ms_p90": 2.1,
                 "floor_ms": 1.0, "bound": "special", "peer": "mamba_ssm", "peer_ms": 5.0, "peer_source": "same run", "error": 1e-4,
                 "status": "ok"}
    return {**made, **changes}


def record(lanes: int, ms: float | None, status: str = "ok") -> Record:
    return Record(op="selective_scan", key="k", pass_="forward", target="cuda:sm_90:cuda", device="A Device", dtype="bfloat16",
                  case=(("b", 8), ("d", 64)), form="recurrent", schedule={"form": "recurrent", "lanes": lanes}, status=status, ms=ms)


def test_bars_are_in_proportion_to_their_values() -> None:
    values = [Bar("a <b>", 4.0, "memory", "t"), Bar("c", 2.0, "special", "t")]
    drawn = ET.fromstring(bars(values, unit="×", reference=1.0, reference_label="1"))
    wide, narrow = (float(r.get("width", "0")) for r in drawn.iter(f"{SVG}rect"))
    assert wide == pytest.approx(2 * narrow, rel=1e-2)
    words = [t.text for t in drawn.iter(f"{SVG}text")]
    assert "a <b>" in words and "4.00×" in words


def test_a_point_on_the_floor_lies_on_its_line() -> None:
    points = [Point(0.01, 0.01, "memory", "low"), Point(10.0, 10.0, "memory", "high"), Point(1.0, 2.0, "special", "twice")]
    drawn = ET.fromstring(scatter(points, x_label="x", y_label="y", diagonals=((1.0, "floor"), (2.0, "twice"))))
    low, _, twice = [(float(c.get("cx", "0")), float(c.get("cy", "0"))) for c in drawn.iter(f"{SVG}circle")]
    lines = [i for i in drawn.iter(f"{SVG}line") if i.get("class") == "reference"]
    on, above = [[float(i.get(k, "0")) for k in ("x1", "y1", "x2", "y2")] for i in lines]

    def off(line: list[float], point: tuple[float, float]) -> float:
        x1, y1, x2, y2 = line
        return abs(y1 + (y2 - y1) * (point[0] - x1) / (x2 - x1) - point[1])

    assert off(on, low) < 0.5 and off(above, twice) < 0.5 and off(on, twice) > 5


def test_a_curve_goes_down_step_by_step() -> None:
    drawn = ET.fromstring(steps([Line(((1, 10.0), (3, 5.0), (9, 2.0)), "c0", "t")], x_label="x", y_label="y"))
    (path,) = list(drawn.iter(f"{SVG}path"))
    heights = [float(v) for v in re.findall(r"V([\d.]+)", path.get("d", ""))]
    assert len(heights) == 2 and heights[0] < heights[1]  # y grows downwards on a page


def test_numbers_have_three_digits() -> None:
    assert [number(v) for v in (0.01234, 1.5, 123.4, 12345.6, 0.0)] == ["0.0123", "1.50", "123", "12,346", "0"]


def test_the_fastest_row_that_stands_is_the_one_shown() -> None:
    rows = [row(), row(form="associative", ms=1.5), row(form="step", ms=0.1, status="wrong"), row(case={"b": 1, "d": 64}, ms=9.0)]
    assert [r["ms"] for r in best_rows(rows)] == [1.5, 9.0]


def test_the_best_so_far_counts_failures_and_no_repeats() -> None:
    tried = [record(1, 9.0), record(2, None, "crashed"), record(4, 3.0), record(8, 5.0), record(4, 2.9)]
    assert best_so_far(tried) == [(1, 9.0), (3, 3.0), (4, 2.9)]
    assert best_so_far([record(1, None, "wrong")]) == []


class Checker(HTMLParser):
    """Tags that open and never close, and anything fetched from elsewhere."""

    VOID = {"meta", "br", "line", "rect", "circle", "path"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith("#")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    results = Results("A <Device>", "2026-01-01", {"torch": "2.13"}, [row(), row(op="ssd", peer=None, peer_ms=None, bound="memory"),
                                                                      row(op="bad", status="wrong", ms=None, peer=None, peer_ms=None)])
    page = render([results], {"A <Device>": [record(1, 9.0), record(2, 4.0)]})
    checker = Checker()
    checker.feed(page)
    assert checker.open == [] and checker.fetched == []
    assert "A &lt;Device&gt;" in page and "A <Device>" not in page
    assert "2.50×" in page and "50 %" in page and "lanes=64" in page and "9.00 to 4.00 ms" in page
    assert page.count("<svg viewBox=\"0 0 860") == 3  # speed-up, roofline, tuning
    assert 'class="bad"' in page


def test_many_sizes_beside_one_rival_have_a_plot_of_their_own() -> None:
    rows = [row(case={"b": b, "d": 64}, ms=b * 1.0, peer_ms=b * (0.5 if b == 1 else 4.0)) for b in range(1, 13)]
    page = render([Results("A Device", "2026-01-01", {}, rows)], {})
    assert "12 sizes, 3.36 times as fast in geometric mean, 0.500 to 4.00, slower at 1" in page
    assert page.count("times as fast</title></circle>") == 12
    assert "in geometric mean" not in render([Results("A Device", "2026-01-01", {}, rows[1:])], {})


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    assert "no results yet" in write_report(tmp_path / "r.html", [tmp_path / "absent"]).read_text()


def test_a_report_is_written_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANC_CACHE", str(tmp_path / "cache"))
    merge_rows(results_path("A Device", tmp_path), [row()], "A Device")
    assert "2.50×" in write_report(tmp_path / "out" / "r.html", [tmp_path]).read_text()


def test_a_markdown_table_has_a_line_for_each_case() -> None:
    slow = row(peer="torch", peer_ms=50.0)
    lines = markdown_table([row(**{"pass": "backward"}), slow, row(), row(case={"b": 1, "d": 64}, ms=4.0)]).splitlines()
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1 and lines[-1].startswith("| backward |")
    assert "| forward | b8 d64 | bfloat16 | recurrent, cuda | 2.00 | 1.00 | 50 % | mamba_ssm | 5.00 | 2.50 | 1.0e-04 |" in lines


def test_tables_in_a_text_are_made_anew() -> None:
    text = "before\n<!-- results: a-device selective_scan forward -->\nold\n<!-- end of results -->\nafter\n"
    results = [Results("A Device", "", {}, [row()])]
    found = filled(text, results)
    assert "old" not in found and "| 2.50 |" in found and found.startswith("before\n") and found.endswith("after\n")
    assert filled(found, results) == found
    case = REGISTRY["selective_scan"].cases[0]
    with_own = filled(text, [Results("A Device", "", {}, [row(), row(case=case), row(**{"pass": "step"})])])
    assert "b8 d64" not in with_own and "step" not in with_own
    both = text.replace("forward", "forward,step")
    assert "step" in filled(both, [Results("A Device", "", {}, [row(), row(**{"pass": "step"})])])
    with pytest.raises(ValueError, match="no results of ssd forward"):
        filled(text.replace("selective_scan", "ssd"), results)
