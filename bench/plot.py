"""A line chart as SVG text, x (and y, if wanted) on a logarithmic scale. Knows nothing of what is
drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 200, 40, 48  # margins; the names of the lines stand at the right
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#9d755d", "#e45756", "#767676")


@dataclass(frozen=True)
class Line:
    """A named row of (x, y) points, x > 0."""

    name: str
    points: tuple[tuple[float, float], ...]


def line_chart(
    title: str,
    x_name: str,
    y_name: str,
    lines: Sequence[Line],
    top: float | None = None,
    log_y: bool = False,
) -> str:
    """`top`: the highest y shown; by default a little above all points. Lowest is 0.

    log_y: y is logarithmic as well, in powers of ten that hold all points; every y must be
    positive.
    """
    xs = sorted({x for line in lines for x, _ in line.points}) or [1.0]
    ys = [y for line in lines for _, y in line.points] or [1.0]
    ticks = (
        _powers(min(ys), max(ys))
        if log_y
        else [(top or 1.1 * max(ys) or 1.0) * k / 4 for k in range(5)]
    )

    def place(x: float, y: float) -> tuple[float, float]:
        across = _share(x, xs[0], xs[-1], True)
        up = _share(y, ticks[0], ticks[-1], log_y)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (
            HEIGHT - TOP - BOTTOM
        )

    parts = [f'<text x="{LEFT}" y="22" font-weight="bold">{escape(title)}</text>']
    for value in ticks:
        _, y = place(xs[0], value)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:,.10g}</text>')
    for x in xs:
        across, _ = place(x, ticks[0])
        parts.append(
            f'<text x="{across:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:.2g}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" '
        f'text-anchor="middle">{escape(x_name)}</text>'
    )
    parts.append(f'<text x="8" y="{TOP - 6}">{escape(y_name)}</text>')
    for k, line in enumerate(lines):
        parts += _drawn(line, COLOURS[k % len(COLOURS)], TOP + 18 * k, place)
    inside = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" '
        f'font-size="12">\n<rect width="{WIDTH}" height="{HEIGHT}" '
        f'fill="white"/>\n{inside}\n</svg>\n'
    )


def _share(value: float, low: float, high: float, is_log: bool) -> float:
    """How far a value lies from `low` to `high`; the middle where these are one."""
    if is_log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low) if high > low else 0.5


def _powers(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**k for k in range(first, max(last, first + 1) + 1)]


def _drawn(
    line: Line, colour: str, name_y: float, place: Callable[[float, float], tuple[float, float]]
) -> list[str]:
    where = [place(x, y) for x, y in line.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in where)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in where]
    beside = WIDTH - RIGHT + 16
    name = f'<text x="{beside + 14}" y="{name_y + 4}">{escape(line.name)}</text>'
    key = f'<circle cx="{beside + 4}" cy="{name_y}" r="4" fill="{colour}"/>'
    return [f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>', *dots, key, name]
