"""Plots as SVG text: they need no script, scale to the page, and take their colours from its style sheet (light or dark).

Every mark carries a <title>, which a browser shows on hovering.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 860
CHARACTER = 6.9  # width of one at the style sheet's 12 px, in the widest of the usual fonts
COLOURS = 5  # of lines in the style sheet: classes c0 to c4


@dataclass(frozen=True)
class Bar:
    """One horizontal bar; ``mark`` is a CSS class that colours it."""

    label: str
    value: float
    mark: str
    title: str


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    mark: str
    title: str


@dataclass(frozen=True)
class Line:
    """A step line through points in order of x."""

    points: tuple[tuple[float, float], ...]
    mark: str
    title: str


def number(value: float) -> str:
    """Three significant digits, without exponents where a reader can do without."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}" if 1e-4 <= abs(value) < 1e6 else f"{value:.2e}"


def bars(rows: Sequence[Bar], *, unit: str, reference: float, reference_label: str) -> Markup:
    """Horizontal bars from zero, each labelled with its value, and a vertical line at ``reference``."""
    label_width = min(460.0, 16 + CHARACTER * max(len(r.label) for r in rows))
    most = max(reference, *(r.value for r in rows)) * 1.02
    room = WIDTH - label_width - 70
    height = 22 * len(rows) + 30

    def x(value: float) -> float:
        return label_width + room * value / most

    parts = []
    for number_of_row, row in enumerate(rows):
        y = 22 * number_of_row + 4
        parts.append(f'<g><title>{escape(row.title)}</title>'
                     f'<text class="label" x="{label_width - 8:.1f}" y="{y + 12}" text-anchor="end">{escape(row.label)}</text>'
                     f'<rect class="{escape(row.mark)}" x="{label_width:.1f}" y="{y}" width="{max(1.0, x(row.value) - label_width):.1f}" '
                     f'height="16" rx="2"/>'
                     f'<text x="{x(row.value) + 6:.1f}" y="{y + 12}">{number(row.value)}{escape(unit)}</text></g>')
    line = (f'<line class="reference" x1="{x(reference):.1f}" x2="{x(reference):.1f}" y1="0" y2="{height - 24}"/>'
            f'<text class="axis" x="{x(reference):.1f}" y="{height - 8}" text-anchor="middle">{escape(reference_label)}</text>')
    return _svg(height, "".join(parts) + line)


def scatter(points: Sequence[Point], *, x_label: str, y_label: str, diagonals: Sequence[tuple[float, str]]) -> Markup:
    """Points on two logarithmic axes, with a line y = factor x, which says its label on hovering, for each of ``diagonals``."""
    height, left, bottom, right, top = 420, 70, 48, 20, 14
    xs, ys = [p.x for p in points], [p.y for p in points]
    x_low, x_high = _decades(min(xs), max(xs))
    y_low, y_high = _decades(min([*ys, x_low]), max(ys))

    def x(value: float) -> float:
        return left + (WIDTH - left - right) * (math.log10(value) - x_low_log) / (math.log10(x_high) - x_low_log)

    def y(value: float) -> float:
        return height - bottom - (height - bottom - top) * (math.log10(value) - y_low_log) / (math.log10(y_high) - y_low_log)

    x_low_log, y_low_log = math.log10(x_low), math.log10(y_low)
    parts = [_log_grid(x, y, (x_low, x_high), (y_low, y_high), x_label, y_label, height, left, bottom, right, top)]
    for factor, label in diagonals:
        start = max(x_low, y_low / factor)
        end = min(x_high, y_high / factor)
        if start < end:
            parts.append(f'<line class="reference" x1="{x(start):.1f}" y1="{y(start * factor):.1f}" '
                         f'x2="{x(end):.1f}" y2="{y(end * factor):.1f}"><title>{escape(label)}</title></line>')
    parts += [f'<circle class="{escape(p.mark)}" cx="{x(p.x):.1f}" cy="{y(p.y):.1f}" r="5"><title>{escape(p.title)}</title></circle>'
              for p in points]
    return _svg(height, "".join(parts))


def curves(lines: Sequence[Line], *, x_label: str, y_label: str) -> Markup:
    """Lines from point to point on two logarithmic axes; the points say their values on hovering."""
    height, left, bottom, right, top = 360, 70, 48, 20, 14
    x_low, x_high = min(x for line in lines for x, _ in line.points), max(x for line in lines for x, _ in line.points)
    y_low, y_high = _decades(min(y for line in lines for _, y in line.points), max(y for line in lines for _, y in line.points))

    def x(value: float) -> float:
        return left + (WIDTH - left - right) * math.log(value / x_low) / math.log(x_high / x_low if x_high > x_low else 2.0)

    def y(value: float) -> float:
        return height - bottom - (height - bottom - top) * math.log(value / y_low) / math.log(y_high / y_low)

    parts = [_log_grid(x, y, (x_low, x_high), (y_low, y_high), x_label, y_label, height, left, bottom, right, top)]
    for line in lines:
        path = "L".join(f"{x(px):.1f},{y(py):.1f}" for px, py in line.points)
        parts.append(f'<path class="curve {escape(line.mark)}" d="M{path}"><title>{escape(line.title)}</title></path>')
        parts += [f'<circle class="{escape(line.mark)}" cx="{x(px):.1f}" cy="{y(py):.1f}" r="4">'
                  f'<title>{escape(f"{line.title}: {number(py)} at {px:g}")}</title></circle>' for px, py in line.points]
    return _svg(height, "".join(parts))


def steps(lines: Sequence[Line], *, x_label: str, y_label: str) -> Markup:
    """Step lines on a linear x axis and a logarithmic y axis: the best so far, candidate by candidate."""
    height, left, bottom, right, top = 320, 70, 48, 20, 14
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    x_high = max(2.0, *xs)
    y_low, y_high = _decades(min(ys), max(ys))

    def x(value: float) -> float:
        return left + (WIDTH - left - right) * (value - 1) / (x_high - 1)

    def y(value: float) -> float:
        return height - bottom - (height - bottom - top) * math.log(value / y_low) / math.log(y_high / y_low)

    parts = [_y_grid(y, (y_low, y_high), left, WIDTH - right), _axis_words(x_label, y_label, height, left, bottom, top)]
    tick = max(1, round(x_high / 8))
    for at in range(1, int(x_high) + 1, tick):
        parts.append(f'<text class="axis" x="{x(at):.1f}" y="{height - bottom + 16}" text-anchor="middle">{at}</text>')
    for line in lines:
        path = f"M{x(line.points[0][0]):.1f},{y(line.points[0][1]):.1f}"
        path += "".join(f"H{x(px):.1f}V{y(py):.1f}" for px, py in line.points[1:])
        parts.append(f'<path class="curve {escape(line.mark)}" d="{path}H{x(x_high):.1f}"><title>{escape(line.title)}</title></path>')
    return _svg(height, "".join(parts))


def _svg(height: float, body: str) -> Markup:
    return Markup(f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" xmlns="http://www.w3.org/2000/svg">{body}</svg>')


def _decades(low: float, high: float) -> tuple[float, float]:
    """Bounds that hold [low, high] with room, at 1, 2 or 5 times a power of ten."""
    return _round(low / 1.2, math.floor), _round(high * 1.2, math.ceil)


def _round(value: float, towards: Callable[[float], int]) -> float:
    decade = 10.0 ** math.floor(math.log10(value))
    marks = (1.0, 2.0, 5.0, 10.0)
    below = [m for m in marks if m * decade <= value * (1 + 1e-9)]
    above = [m for m in marks if m * decade >= value * (1 - 1e-9)]
    return decade * (below[-1] if towards is math.floor else above[0])


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 in every decade; powers of ten alone where that would be crowded."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = (1.0, 2.0, 5.0) if len(decades) <= 4 else (1.0,)
    return [m * 10.0**d for d in decades for m in marks if low * (1 - 1e-9) <= m * 10.0**d <= high * (1 + 1e-9)]


def _y_grid(y: Callable[[float], float], bounds: tuple[float, float], left: float, right: float) -> str:
    return "".join(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
                   f'<text class="axis" x="{left - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>' for t in _ticks(*bounds))


def _log_grid(x: Callable[[float], float], y: Callable[[float], float], x_bounds: tuple[float, float], y_bounds: tuple[float, float],
              x_label: str, y_label: str, height: float, left: float, bottom: float, right: float, top: float) -> str:
    upright = "".join(f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{top}" y2="{height - bottom}"/>'
                      f'<text class="axis" x="{x(t):.1f}" y="{height - bottom + 16}" text-anchor="middle">{t:g}</text>'
                      for t in _ticks(*x_bounds))
    return upright + _y_grid(y, y_bounds, left, WIDTH - right) + _axis_words(x_label, y_label, height, left, bottom, top)


def _axis_words(x_label: str, y_label: str, height: float, left: float, bottom: float, top: float) -> str:
    middle = (top + height - bottom) / 2
    return (f'<text class="axis" x="{(left + WIDTH) / 2:.0f}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>'
            f'<text class="axis" transform="rotate(-90 16 {middle:.0f})" x="16" y="{middle:.0f}" text-anchor="middle">'
            f'{escape(y_label)}</text>')
