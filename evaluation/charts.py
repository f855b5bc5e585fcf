"""Charts as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 720, 130, 56, 30, 8
ROW_GAP, SERIES_GAP, RADIUS = 22, 15, 4.6
STEPS = (0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10, 20, 25)
MARKS = (
    '<circle cx="{x}" cy="{y}" r="{r}"/>',
    '<circle cx="{x}" cy="{y}" r="{r}"/>',
    '<rect x="{left}" y="{top}" width="{side}" height="{side}"/>',
    '<path d="M{x} {top}L{right} {y}L{x} {bottom}L{left} {y}Z"/>',
    '<path d="M{x} {top}L{right} {bottom}H{left}Z"/>',
    '<path d="M{left} {top}L{right} {bottom}M{left} {bottom}L{right} {top}"/>',
    '<path d="M{x} {bottom}L{right} {top}H{left}Z"/>',
    '<path d="M{left} {y}H{right}M{x} {top}V{bottom}"/>',
    '<path d="M{left} {top}L{right} {y}L{left} {bottom}Z"/>',
)


@dataclass(frozen=True)
class Point:
    """A value and the ends of its interval, or None."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Group:
    """One row of the chart: a name, how many samples it has, one point a series (None where there is none)."""

    name: str
    count: int
    points: Sequence[Point | None]


def dot_plot(groups: Sequence[Group], series: Sequence[str], unit: str, label: str, full: float | None = None) -> str:
    """Values with their intervals, a row a group and a mark a series.

    Args:
        groups: the rows.
        series: names of the marks, for the legend; at most nine.
        unit: of the axis, put after its numbers.
        label: what is shown, for readers who hear the page.
        full: right end of the axis; by default what the values need.
    """
    ends = [end for group in groups for point in group.points if point for end in (point.value, point.high or 0)]
    limit = full or max([*ends, 1e-9]) * 1.04
    row_height = ROW_GAP + SERIES_GAP * len(series)
    height = TOP + row_height * len(groups) + BOTTOM
    scale = (WIDTH - LEFT - RIGHT) / limit
    parts = [_axis(limit, scale, height, unit)]
    for index, group in enumerate(groups):
        top = TOP + index * row_height
        middle = top + row_height / 2
        parts.append(f'<text class="name" x="0" y="{middle - 1:.1f}">{escape(group.name)}</text>')
        parts.append(f'<text class="count" x="0" y="{middle + 14:.1f}">{group.count:,} asked</text>')
        for place, point in enumerate(group.points):
            if point is not None:
                y = top + ROW_GAP / 2 + SERIES_GAP * (place + 0.5)
                parts.append(_point(point, place, y, scale, f"{group.name}, {series[place]}", unit))
    box = f'viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}"'
    return f'{_legend(series)}<div class="scroll"><svg class="chart" {box}>{"".join(parts)}</svg></div>'


def _axis(limit: float, scale: float, height: float, unit: str) -> str:
    step = next((step for step in STEPS if limit / step <= 6), STEPS[-1])
    parts = []
    for index in range(int(limit / step) + 1):
        x = LEFT + index * step * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{height - BOTTOM}"/>')
        text = f"{index * step:g}{unit if index == 0 or unit != '%' else ''}"
        parts.append(f'<text class="tick" x="{x:.1f}" y="{TOP - 14}" text-anchor="middle">{text}</text>')
    return "".join(parts)


def _point(point: Point, place: int, y: float, scale: float, name: str, unit: str) -> str:
    x = LEFT + point.value * scale
    whisker, right = "", x
    interval = ""
    if point.low is not None and point.high is not None:
        low, right = LEFT + point.low * scale, LEFT + point.high * scale
        whisker = f'<line class="whisker" x1="{low:.1f}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}"/>'
        interval = f" ({point.low:.1f} to {point.high:.1f})"
    title = f"<title>{escape(name)}: {point.value:.1f}{unit}{interval}</title>"
    text = f'<text x="{max(right, x) + 9:.1f}" y="{y + 4:.1f}">{point.value:.1f}</text>'
    return f'<g class="series s{place}">{title}{whisker}{_mark(place, x, y)}{text}</g>'


def _mark(place: int, x: float, y: float) -> str:
    numbers = {"x": x, "y": y, "r": RADIUS, "side": 2 * RADIUS}
    numbers |= {"left": x - RADIUS, "right": x + RADIUS, "top": y - RADIUS, "bottom": y + RADIUS}
    return MARKS[place].format(**{name: f"{value:.1f}" for name, value in numbers.items()})


def _legend(series: Sequence[str]) -> str:
    if len(series) < 2:
        return ""
    items = "".join(
        f'<li><svg class="chart legend" viewBox="0 0 14 14"><g class="series s{place}">{_mark(place, 7, 7)}</g></svg>'
        f"{escape(name)}</li>"
        for place, name in enumerate(series)
    )
    return f'<ul class="key">{items}</ul>'
