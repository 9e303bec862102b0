"""Small plots as SVG text: values in, markup out, nothing else. Colours come from the page (classes ``stable``, ``candidate``, ``fail``, ``pass``).

``line_plot`` draws lines over time. A tick is a round number, a tooltip (``<title>``) tells every line's value at that time, and lines differ in
dash as well as in colour, so that they can be told apart in print and by everybody.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

LEFT, RIGHT, TOP, BOTTOM = 58.0, 16.0, 50.0, 34.0
Placer = Callable[[float], float]


@dataclass(frozen=True)
class Series:
    """One line: (seconds since the start, value or None where nothing is known). ``style`` is a CSS class; ``steps`` holds a value until the next."""

    name: str
    style: str
    points: Sequence[tuple[float, float | None]]
    dashed: bool = False
    steps: bool = False


@dataclass(frozen=True)
class Bound:
    """A horizontal line to be reached or not."""

    name: str
    style: str
    value: float


def line_plot(
    title: str,
    series: Sequence[Series],
    *,
    unit: str = "",
    log: bool = False,
    bounds: Sequence[Bound] = (),
    floor: float | None = None,
    ceiling: float | None = None,
    width: float = 560,
    height: float = 250,
) -> str:
    """An ``<svg>``. Values outside ``floor`` and ``ceiling`` are drawn at the edge; the tooltip tells the true ones."""
    known = [value for line in series for _, value in line.points if value is not None and math.isfinite(value)]
    end_s = max((second for line in series for second, _ in line.points), default=0.0) or 1.0
    ticks = _log_ticks(known, bounds, floor, ceiling) if log else linear_ticks(max([*known, *(b.value for b in bounds)], default=0.0), ceiling)
    low, high = ticks[0], ticks[-1]
    inner_width, inner_height = width - LEFT - RIGHT, height - TOP - BOTTOM

    def x(second: float) -> float:
        return LEFT + inner_width * second / end_s

    def y(value: float) -> float:
        kept = min(max(value, low), high)
        share = math.log(kept / low) / math.log(high / low) if log else (kept - low) / (high - low)
        return TOP + inner_height * (1 - share)

    parts = [f'<text class="title" x="{LEFT:g}" y="16">{escape(title)}</text>', _legend(series)]
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{LEFT:g}" x2="{width - RIGHT:g}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{LEFT - 6:g}" y="{y(tick) + 4:.1f}">{short_number(tick)}{escape(unit)}</text>')
    for second, label in time_ticks(end_s):
        parts.append(f'<line class="axis" x1="{x(second):.1f}" x2="{x(second):.1f}" y1="{height - BOTTOM:g}" y2="{height - BOTTOM + 4:g}"/>')
        inside = x(second) + 3.5 * len(label) <= width  # half of the label; at the edge it ends there
        place = f'text-anchor="middle" x="{x(second):.1f}"' if inside else f'text-anchor="end" x="{width:g}"'
        parts.append(f'<text class="tick" {place} y="{height - BOTTOM + 18:g}">{label}</text>')
    parts.append(f'<line class="axis" x1="{LEFT:g}" x2="{width - RIGHT:g}" y1="{height - BOTTOM:g}" y2="{height - BOTTOM:g}"/>')
    for bound in bounds:
        parts.append(f'<line class="bound {bound.style}" x1="{LEFT:g}" x2="{width - RIGHT:g}" y1="{y(bound.value):.1f}" y2="{y(bound.value):.1f}"/>')
        crowded = any(0 < y(bound.value) - y(other.value) < 18 for other in bounds)  # its name goes below the line then
        name_y = y(bound.value) + (14 if crowded else -5)
        parts.append(f'<text class="bound {bound.style}" x="{LEFT + 4:g}" y="{name_y:.1f}">{escape(bound.name)}</text>')
    for line in series:
        parts += [f'<path class="line {line.style}{" dashed" if line.dashed else ""}" d="{d}"/>' for d in _paths(line, x, y)]
        parts += _ends(line, x, y)
    parts += _tooltips(series, x, unit, width, height)
    if not known:
        parts.append(f'<text class="none" text-anchor="middle" x="{LEFT + inner_width / 2:.1f}" y="{TOP + inner_height / 2:.1f}">no data</text>')
    body = "".join(parts)
    return f'<svg class="plot" role="img" aria-label="{escape(title)}" viewBox="0 0 {width:g} {height:g}" xmlns="http://www.w3.org/2000/svg">{body}</svg>'


def linear_ticks(highest: float, ceiling: float | None = None) -> list[float]:
    """Round numbers from 0 to ``highest`` or a little more, about five."""
    if ceiling is not None:
        highest = min(highest, ceiling)
    if highest <= 0 or not math.isfinite(highest):
        return [0.0, 1.0]
    rough = highest / 4
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(magnitude * nice for nice in (1, 2, 2.5, 5, 10) if magnitude * nice >= rough * (1 - 1e-9))
    count = math.ceil(highest / step - 1e-9)
    return [step * index for index in range(count + 1)]


def time_ticks(end_s: float) -> list[tuple[float, str]]:
    """Round times from 0 to ``end_s`` with their labels, at most seven."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
    step = next((s for s in steps if end_s / s <= 6), math.ceil(end_s / 6 / 86400) * 86400)
    return [(float(second), duration(second)) for second in range(0, int(end_s) + 1, step)]


def duration(seconds: float) -> str:
    """``45 s``, ``2 min``, ``2 min 30 s``, ``1 h 5 min``, from three days on ``3 d 4 h``."""
    whole = round(seconds)
    if whole >= 3 * 86400:
        return " ".join([f"{whole // 86400} d"] + [f"{whole % 86400 // 3600} h"] * bool(whole % 86400 // 3600))
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    parts = [f"{hours} h"] * bool(hours) + [f"{minutes} min"] * bool(minutes) + [f"{rest} s"] * bool(rest and not hours)
    return " ".join(parts) or "0 s"


def short_number(value: float) -> str:
    """``0.05``, ``1,200``, ``20 k``, ``1e6``: as short as it is exact enough for an axis."""
    if value == 0 or 0.001 <= abs(value) < 10_000:
        return f"{value:,.10g}"
    if 10_000 <= abs(value) < 1_000_000 and value % 100 == 0:
        return f"{value / 1000:g} k"
    return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")


def _log_ticks(values: Sequence[float], bounds: Sequence[Bound], floor: float | None, ceiling: float | None) -> list[float]:
    positive = [value for value in [*values, *(2 * bound.value for bound in bounds), 1.0] if value > 0]  # room for a bound's name
    low, high = min(positive), max(positive)
    low, high = max(low, floor or low), min(high, ceiling or high)
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    stride = math.ceil((last - first) / 6)
    exponents = list(range(first, last + 1, stride))
    if exponents[-1] < last:
        exponents.append(exponents[-1] + stride)
    return [10.0**exponent for exponent in exponents]


def _paths(line: Series, x: Placer, y: Placer) -> list[str]:
    """One path for each run of known values."""
    paths: list[str] = []
    current = ""
    last_y = 0.0
    for second, value in line.points:
        if value is None or not math.isfinite(value):
            paths, current = [*paths, current] if current else paths, ""
            continue
        here_x, here_y = x(second), y(value)
        if not current:
            current = f"M{here_x:.1f} {here_y:.1f}"
        elif line.steps:
            current += f"L{here_x:.1f} {last_y:.1f}L{here_x:.1f} {here_y:.1f}"
        else:
            current += f"L{here_x:.1f} {here_y:.1f}"
        last_y = here_y
    return [*paths, current] if current else paths


def _ends(line: Series, x: Placer, y: Placer) -> list[str]:
    """A dot on the last known value, so that a line of one point is seen too."""
    known = [(second, value) for second, value in line.points if value is not None and math.isfinite(value)]
    return [f'<circle class="end {line.style}" cx="{x(known[-1][0]):.1f}" cy="{y(known[-1][1]):.1f}" r="3"/>'] if known else []


def _legend(series: Sequence[Series]) -> str:
    parts, left = [], LEFT
    for line in series:
        dashed = " dashed" if line.dashed else ""
        parts.append(f'<line class="line {line.style}{dashed}" x1="{left:g}" x2="{left + 20:g}" y1="33" y2="33"/>')
        parts.append(f'<text class="legend" x="{left + 26:g}" y="37">{escape(line.name)}</text>')
        left += 26 + 6.6 * len(line.name) + 22
    return "".join(parts)


def _tooltips(series: Sequence[Series], x: Placer, unit: str, width: float, height: float) -> list[str]:
    """An invisible column for each time, as wide as the way to its neighbours; hovering shows all values there."""
    table: dict[float, list[str]] = {}
    for line in series:
        for second, value in line.points:
            if value is not None:
                table.setdefault(second, []).append(f"{line.name}: {tooltip_number(value)}{unit}")
    seconds = sorted(table)
    found = []
    for index, second in enumerate(seconds):
        left = LEFT if index == 0 else (x(seconds[index - 1]) + x(second)) / 2
        right = width - RIGHT if index == len(seconds) - 1 else (x(second) + x(seconds[index + 1])) / 2
        text = escape("\n".join([f"after {duration(second)}", *table[second]]))
        place = f'x="{left:.1f}" y="{TOP:g}" width="{max(0.5, right - left):.1f}" height="{height - TOP - BOTTOM:g}"'
        found.append(f'<rect class="hit" {place}><title>{text}</title></rect>')
    return found


def tooltip_number(value: float) -> str:
    """Three significant digits, whole numbers in full."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e9 else f"{value:.3g}"
