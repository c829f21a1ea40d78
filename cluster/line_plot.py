"""A line plot as SVG text: no library, no script, no outside asset. Readable in print and by a
screen reader (title and description), and without colors (lines differ in their dashes too).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float | None]]
"""(x, y) in order of x; a y that is None or not finite breaks the line."""

WIDTH = 480
LEFT, RIGHT, TOP, BOTTOM = 56, 468, 28, 200
"""Edges of the drawing area, in user units."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe and Ito's palette, which most color-blind readers can tell apart."""
_STYLE = (
    "<style>svg{background:#fff}text{font:11px sans-serif;fill:#222}"
    ".title{font-weight:600;font-size:13px}.grid{stroke:#8886;fill:none}"
    ".line{fill:none;stroke-width:2;stroke-linecap:round;stroke-linejoin:round}</style>"
)
DASHES = ("", "6 3", "2 2", "8 3 2 3", "1 3", "10 4")


def line_plot(title: str, series: Mapping[str, Points], x_label: str) -> str:
    """One ``<svg>`` with a line for each series; empty text if there is no point at all."""
    finite = {name: _finite(points) for name, points in series.items()}
    points = [point for line in finite.values() for point in line]
    if not points:
        return ""
    x_ticks = _ticks(min(x for x, _ in points), max(x for x, _ in points))
    y_ticks = _ticks(min(y for _, y in points), max(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (RIGHT - LEFT), BOTTOM - up * (BOTTOM - TOP)

    parts = [_text(LEFT, 14, title, "start", "title")]
    for tick in y_ticks:
        y = place(x_ticks[0], tick)[1]
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{tick:.4g}", "end"))
    for tick in x_ticks:
        parts.append(_text(place(tick, y_ticks[0])[0], BOTTOM + 14, f"{tick:.4g}", "middle"))
    parts.append(_text((LEFT + RIGHT) / 2, BOTTOM + 28, x_label, "middle"))
    for index, (name, line) in enumerate(series.items()):
        stroke = (
            f'stroke="{COLORS[index % 6]}" stroke-dasharray="{DASHES[(index + index // 6) % 6]}"'
        )
        parts.append(f'<path class="line" {stroke} d="{_path(line, place)}"/>')
        parts += _legend(name, index, stroke) if len(series) > 1 else []
    height = BOTTOM + 36 + 16 * math.ceil(len(series) / 3 if len(series) > 1 else 0)
    return (
        f'<svg role="img" viewBox="0 0 {WIDTH} {height}" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(title)}</title><desc>{escape(_describe(finite))}</desc>"
        f"{''.join(parts)}</svg>"
    )


def standalone(svg: str) -> str:
    """The plot as a file of its own, with what a page would give it: a white ground and strokes."""
    head, gap, rest = svg.partition(">")
    return f"{head}{gap}{_STYLE}{rest}"


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if y is not None and math.isfinite(y)]


def _path(points: Points, place: Callable[[float, float], tuple[float, float]]) -> str:
    """Straight lines between neighbors; a missing value lifts the pen, a lone point is a dot."""
    path, pen = "", "M"
    for x, y in points:
        if y is None or not math.isfinite(y):
            pen = "M"
            continue
        across, down = place(x, y)
        path += f"{pen}{across:.1f} {down:.1f}" + ("h0" if pen == "M" else "")
        pen = "L"
    return path


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers that enclose [low, high]."""
    if low == high:
        low, high = low - abs(low) / 2 - 0.5, high + abs(high) / 2 + 0.5
    raw = (high - low) / 4
    scale = 10.0 ** math.floor(math.log10(raw))
    step = scale * next(nice for nice in (1, 2, 5, 10) if nice * scale >= raw * 0.999)
    return [i * step for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _legend(name: str, index: int, stroke: str) -> list[str]:
    x, y = LEFT + 140 * (index % 3), BOTTOM + 46 + 16 * (index // 3)
    return [f'<path class="line" {stroke} d="M{x} {y - 4}h18"/>', _text(x + 23, y, name, "start")]


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _describe(finite: Mapping[str, list[tuple[float, float]]]) -> str:
    """The plot in words: where each line starts and ends."""
    return "; ".join(
        f"{name}: from {line[0][1]:.4g} at {line[0][0]:g} to {line[-1][1]:.4g} at {line[-1][0]:g}"
        for name, line in finite.items()
        if line
    )
