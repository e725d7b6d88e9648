"""Small charts as inline SVG: dots with intervals, lines, shares. Numbers in, text out; colors come from `STYLE`.

A series is known by its index: it has the same color and, where there are dots, the same shape in every chart.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

# Okabe and Ito's palette, safe for color-blind readers, the reference gray; lightened on dark pages.
STYLE = """
:root { --ink:#1c1d21; --soft:#6a6d76; --rule:#d9dbe0; --page:#ffffff; --panel:#f6f7f9;
  --s0:#73767f; --s1:#0072b2; --s2:#d98200; --s3:#009e73; --s4:#c0649a; --s5:#d55e00; --s6:#3d9fdc;
  --good:#0072b2; --unsure:#c9cdd6; --bad:#e3a04a; }
@media (prefers-color-scheme: dark) {
  :root { --ink:#e8e9ed; --soft:#9a9da8; --rule:#3a3c44; --page:#17181c; --panel:#202127;
    --s0:#a3a6b0; --s1:#56a8e0; --s2:#f0a630; --s3:#2fc598; --s4:#df8cbb; --s5:#f08038; --s6:#8accf5;
    --good:#56a8e0; --unsure:#4a4d57; --bad:#c98a3c; } }
svg text { fill:var(--ink); font:12px system-ui,sans-serif; } svg .soft { fill:var(--soft); }
svg .num { font-variant-numeric:tabular-nums; } svg .strong { font-weight:600; }
svg .rule { stroke:var(--rule); fill:none; } svg .axis { stroke:var(--soft); fill:none; }
"""
SERIES = 7


class Dot(NamedTuple):
    """One estimate.

    Attributes:
      series: index.
      value: its position; None where it is undefined, which draws nothing.
      interval: (low, high) or None.
      text: the same in figures, written at the right.
    """

    series: int
    value: float | None
    interval: Sequence[float] | None
    text: str


class Line(NamedTuple):
    """One curve: series index, steps and values of one length; dashed or not; the step to ring, if any."""

    series: int
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False
    chosen: float | None = None


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2, 5 times a power of ten) that lie in [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float) -> str:
    """The shortest fair form of an axis value: 0, 0.05, 2.5, 1200, 20k, 3M."""
    for size, letter in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{round(value, 10):g}"


def mark(series: int, x: float, y: float, size: float = 4.5) -> str:
    """The shape of a series around (x, y)."""
    paint = f'fill="var(--s{series % SERIES})"'
    s = size
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{s:.1f}" {paint}/>',
        f'<path d="M{x:.1f} {y - 1.3 * s:.1f}l{1.3 * s:.1f} {1.3 * s:.1f}l{-1.3 * s:.1f} {1.3 * s:.1f}'
        f'l{-1.3 * s:.1f} {-1.3 * s:.1f}z" {paint}/>',
        f'<rect x="{x - 0.9 * s:.1f}" y="{y - 0.9 * s:.1f}" width="{1.8 * s:.1f}" height="{1.8 * s:.1f}" {paint}/>',
        f'<path d="M{x:.1f} {y - 1.2 * s:.1f}l{1.2 * s:.1f} {2.1 * s:.1f}h{-2.4 * s:.1f}z" {paint}/>',
    )
    return shapes[(1, 2, 3, 0)[series - 1 & 3] if series else 0]


def legend(names: Sequence[str]) -> str:
    """Names of the series 0, 1, ... beside their marks, as HTML; a series without a name is left out."""
    keys = (
        f'<span class="key"><svg width="14" height="14" aria-hidden="true">{mark(i, 7, 7)}</svg> {escape(name)}</span>'
        for i, name in enumerate(names)
        if name
    )
    return f'<p class="legend">{"".join(keys)}</p>'


def dots(rows: Sequence[tuple[str, Sequence[Dot]]], *, axis: str, last_apart: bool = False, width: int = 860) -> str:
    """Estimates and their intervals, one band per row, against a line at 0.

    Args:
      rows: (label, dots), top to bottom; the dots of a row stand under each other.
      axis: what is measured, with its unit.
      last_apart: rules the last row off from those above, as their sum.
      width: of the drawing, pixels.
    """
    low, high = _dot_range([dot for _, row in rows for dot in row])
    left = 12 + 7 * max(len(label) for label, _ in rows)
    right = width - 12 - 7 * max(len(dot.text) for _, row in rows for dot in row)
    place = scale(low, high, left, right)
    parts, y = [], 8.0
    for index, (label, row) in enumerate(rows):
        apart = last_apart and index == len(rows) - 1
        parts += [f'<path class="{"axis" if apart else "rule"}" d="M0 {y:.1f}H{width}"/>'] if index else []
        middle = y + 8 + 17 * len(row) / 2
        parts += [text(0, middle + 4, label, "strong" if apart else "")]
        for i, dot in enumerate(row):
            parts += _dot(dot, y + 16.5 + 17 * i, place, (low, high), width)
        y += 16 + 17 * len(row)
    grid = []
    for t in ticks(low, high, 7):
        grid += [f'<path class="rule" d="M{place(t):.1f} 8V{y:.1f}"/>']
        grid += [text(place(t), y + 16, f"{tick_text(t) if t <= 0 else '+' + tick_text(t)}", "soft num", "middle")]
    grid += [f'<path class="axis" stroke-width="1.5" d="M{place(0):.1f} 4V{y:.1f}"/>']
    title = text((left + right) / 2, y + 34, axis, "soft", "middle")
    return svg(width, y + 40, "".join(grid + parts) + title, axis)


def _dot_range(row: Sequence[Dot]) -> tuple[float, float]:
    """Zero, every value, and intervals as far as they do not squeeze the values."""
    values = [0.0, *(dot.value for dot in row if dot.value is not None)]
    ends = [end for dot in row if dot.value is not None for end in dot.interval or ()]
    halves = sorted((dot.interval[1] - dot.interval[0]) / 2 for dot in row if dot.interval)
    span = max(max(values) - min(values), halves[len(halves) // 2] if halves else 0.0) or 1.0
    low = max(min([*values, *ends]), min(values) - 1.5 * span)
    high = min(max([*values, *ends]), max(values) + 1.5 * span)
    if low == high:  # nothing but undefined values, or all of them 0
        return -1.0, 1.0
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


def _dot(dot: Dot, y: float, place, limits: tuple[float, float], width: int) -> list[str]:
    parts = [text(width, y + 4, dot.text, "num", "end")]
    if dot.value is None:
        return parts
    color = f'stroke="var(--s{dot.series % SERIES})" fill="none"'
    if dot.interval:
        low, high = max(dot.interval[0], limits[0]), min(dot.interval[1], limits[1])
        parts.append(f'<path {color} stroke-width="2" d="M{place(low):.1f} {y:.1f}H{place(high):.1f}"/>')
        # A cap where the interval ends, an arrow where it goes on outside of the chart.
        for end, inside, turn in ((low, dot.interval[0] == low, 5), (high, dot.interval[1] == high, -5)):
            arrow = f"M{place(end) + turn:.1f} {y - 4:.1f}l{-turn} 4l{turn} 4"
            shape = f"M{place(end):.1f} {y - 4:.1f}v8" if inside else arrow
            parts.append(f'<path {color} stroke-width="1.5" d="{shape}"/>')
    return [*parts, mark(dot.series, place(dot.value), y)]


def lines(
    curves: Sequence[Line], *, title: str, axis: str, level: float | None = None, width: int = 300, height: int = 190
) -> str:
    """Curves over training steps; `axis` says what is measured, with its unit; `level` is a value of series 0 for all steps."""
    curves = [thinned for curve in curves if (thinned := _finite(curve)).y]
    if not (values := sorted(y for curve in curves for y in curve.y)):
        return ""
    # A first value far outside would flatten everything after it.
    low, high = values[int(0.02 * (len(values) - 1))], values[math.ceil(0.98 * (len(values) - 1))]
    low, high = (low, high) if level is None else (min(low, level), max(high, level))
    low, high = (low - 0.06 * (high - low), high + 0.06 * (high - low)) if high > low else (low - 0.5, high + 0.5)
    last = max(x for curve in curves for x in curve.x)
    first = min(0, *(x for curve in curves for x in curve.x)) if last > 0 else last - 1
    y_ticks = ticks(low, high, 4)
    left, right, top, bottom = 14 + 7 * max(len(tick_text(t)) for t in y_ticks), width - 16, 40, height - 36
    px, py = scale(first, last, left, right), scale(low, high, bottom, top)
    parts = [text(0, 14, title, "strong"), text(0, 30, axis, "soft")]
    for t in y_ticks:
        parts += [f'<path class="rule" d="M{left} {py(t):.1f}H{right}"/>']
        parts += [text(left - 6, py(t) + 4, tick_text(t), "soft num", "end")]
    for t in ticks(first, last, 4):
        parts += [text(px(t), bottom + 16, tick_text(t), "soft num", "middle")]
    parts += [f'<path class="axis" d="M{left} {bottom}H{right}"/>']
    parts += [text((left + right) / 2, height - 4, "step", "soft", "middle")]
    if level is not None:
        parts += [f'<path fill="none" stroke="var(--s0)" stroke-width="1.8" d="M{left} {py(level):.1f}H{right}"/>']
    for curve in curves:
        color = f'fill="none" stroke="var(--s{curve.series % SERIES})"' + ' stroke-dasharray="5 3"' * curve.dashed
        points = [(px(x), py(min(max(y, low), high))) for x, y in zip(curve.x, curve.y, strict=True)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts += [f'<path {color} stroke-width="1.8" d="M{path}"/>', mark(curve.series, *points[-1], 3.2)]
        if curve.chosen is not None:
            x, y = min(points, key=lambda point: abs(point[0] - px(curve.chosen)))
            parts += [f'<circle {color} stroke-width="1.8" cx="{x:.1f}" cy="{y:.1f}" r="6"/>']
    return svg(width, height, "".join(parts), f"{title}, {axis}")


class Trend(NamedTuple):
    """Estimates along an axis: series index, (x, mean, interval or None) each."""

    series: int
    points: Sequence[tuple[float, float, Sequence[float] | None]]


def trends(found: Sequence[Trend], *, title: str, axis: str, x_axis: str, width: int = 420, height: int = 300) -> str:
    """Estimates with intervals at a few places of a logarithmic axis, joined by lines; series stand side by side there."""
    ends = [v for trend in found for _, mean, interval in trend.points for v in (mean, *(interval or ()))]
    places = sorted({x for trend in found for x, _, _ in trend.points})
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low or 1.0)
    y_ticks = ticks(low - margin, high + margin, 5)
    left, right, top, bottom = 14 + 7 * max(len(tick_text(t)) for t in y_ticks), width - 30, 40, height - 36
    log = [math.log(x) for x in places]
    px, py = (
        scale(log[0], log[-1] if len(log) > 1 else log[0] + 1, left + 24, right),
        scale(low - margin, high + margin, bottom, top),
    )
    parts = [text(0, 14, title, "strong"), text(0, 30, axis, "soft")]
    for t in y_ticks:
        parts += [
            f'<path class="rule" d="M{left} {py(t):.1f}H{right + 16}"/>',
            text(left - 6, py(t) + 4, tick_text(t), "soft num", "end"),
        ]
    parts += [text(px(math.log(x)), bottom + 16, f"{x:,}", "soft num", "middle") for x in places]
    parts += [
        f'<path class="axis" d="M{left} {bottom}H{right + 16}"/>',
        text((left + right) / 2, height - 4, x_axis, "soft", "middle"),
    ]
    for i, trend in enumerate(found):
        shift = 5 * (i - (len(found) - 1) / 2)
        color = f'stroke="var(--s{trend.series % SERIES})" fill="none"'
        at = [(px(math.log(x)) + shift, mean, interval) for x, mean, interval in trend.points]
        parts += [f'<path {color} stroke-width="1.6" d="M{"L".join(f"{x:.1f} {py(mean):.1f}" for x, mean, _ in at)}"/>']
        for x, mean, interval in at:
            if interval:
                parts += [
                    f'<path {color} stroke-width="1.2" d="M{x:.1f} {py(interval[0]):.1f}V{py(interval[1]):.1f}"/>'
                ]
            parts += [mark(trend.series, x, py(mean), 3.6)]
    return svg(width, height, "".join(parts), f"{title}, {axis}")


def _finite(curve: Line, most: int = 300) -> Line:
    """Its finite points, thinned out evenly."""
    points = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if y is not None and math.isfinite(y)]
    stride = max(1, math.ceil(len(points) / most))
    points = points[::stride] + (points[-1:] if (len(points) - 1) % stride else [])
    return curve._replace(x=[x for x, _ in points], y=[y for _, y in points])


_SHARE_COLOURS = ("good", "unsure", "bad")


def shares(rows: Sequence[tuple[str, Sequence[int]]], names: Sequence[str], *, title: str, width: int = 480) -> str:
    """Stacked bars of three counts as shares of their row; the first count and the total in figures.

    Args:
      rows: (label, counts).
      names: what the three counts are.
      title: of the chart.
      width: of the drawing, pixels.
    """
    left = 12 + 7 * max(len(label) for label, _ in rows)
    figures = [f"{counts[0]:,} of {sum(counts):,}" for _, counts in rows]
    right = width - 12 - 7 * max(map(len, figures))
    parts = [text(0, 14, title, "strong")]
    for index, (label, counts) in enumerate(rows):
        y, x, total = 26 + 20 * index, float(left), max(1, sum(counts))
        parts += [text(0, y + 11, label), text(width, y + 11, figures[index], "soft num", "end")]
        for count, color, name in zip(counts, _SHARE_COLOURS, names, strict=True):
            share = (right - left) * count / total
            hint = f"<title>{escape(f'{label}: {count:,} {name}')}</title>"
            parts += [f'<rect x="{x:.1f}" y="{y}" width="{share:.1f}" height="14" fill="var(--{color})">{hint}</rect>']
            x += share
    return svg(width, 30 + 20 * len(rows), "".join(parts), title)


def share_legend(names: Sequence[str]) -> str:
    """The three counts of `shares` beside their colors, as HTML."""
    keys = (
        f'<span class="key"><svg width="14" height="14" aria-hidden="true"><rect y="2" width="12" height="12" '
        f'fill="var(--{color})"/></svg> {escape(name)}</span>'
        for color, name in zip(_SHARE_COLOURS, names, strict=True)
    )
    return f'<p class="legend">{"".join(keys)}</p>'


def diverging(value: float, *, strength: float = 1.0, neutral: str = "unsure") -> str:
    """A color as CSS: from that of what is bad at -1 over the neutral one at 0 to that of what is good at 1.

    Args:
      value: what lies outside of [-1, 1] has the color of its end.
      strength: share of the pure color at the ends; less leaves words on it legible.
      neutral: name of a color in `STYLE`.
    """
    share = 100 * strength * min(1.0, abs(value))
    return f"color-mix(in srgb, var(--{'good' if value > 0 else 'bad'}) {share:.0f}%, var(--{neutral}))"


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Words at a place; kinds are "soft", "num" and "strong"."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def scale(low: float, high: float, start: float, end: float):
    """Value -> pixel: low lands at start, high at end."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def svg(width: float, height: float, inside: str, label: str) -> str:
    """A drawing that shrinks with its page."""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" style="width:100%;max-width:{width:.0f}px" role="img" '
        f'aria-label="{escape(label)}">{inside}</svg>'
    )
