"""Bars as inline SVG: groups of estimates with their intervals and runs, and the few most probable answers.

Series have the colors of `must.report.charts`; a light bar is the second of its series, as a teacher beside its student.
"""

import textwrap
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from must.report import charts

_MOST = 42  # pixels, of a bar
_GAP = 1.1  # bars between groups
_TURN = 30  # pixels, a narrower bar has its figure on end


class Bar(NamedTuple):
    """One estimate.

    Attributes:
      series: index; series 0 is the reference, whose value is drawn through its group.
      light: the second of its series.
      value: its height; None where it is undefined, which draws nothing.
      interval: (low, high) or None.
      runs: values of single runs, drawn as points where there are several.
      hint: what hovering says.
    """

    series: int
    light: bool
    value: float | None
    interval: Sequence[float] | None
    runs: Sequence[float | None]
    hint: str


def bars(
    groups: Sequence[tuple[str, Sequence[Bar]]],
    *,
    axis: str,
    most: float | None = None,
    last_apart: bool = False,
    width: int = 1100,
    height: int = 330,
) -> str:
    """Groups of bars side by side, from 0 up.

    Args:
      groups: (label, bars), left to right.
      axis: what is measured, with its unit.
      most: the largest value that the metric can have; None where there is no such.
      last_apart: rules the last group off from those before it, as their mean.
      width: of the drawing, pixels; few bars take less.
      height: of the drawing, pixels.
    """
    high = _high([bar for _, group in groups for bar in group], most)
    y_ticks = charts.ticks(0, high, 5)
    left = 18 + 7 * max(len(charts.tick_text(t)) for t in y_ticks)
    size = min(_MOST, (width - left) / (sum(len(group) for _, group in groups) + _GAP * len(groups)))
    names = [textwrap.wrap(label, max(6, int((len(group) + _GAP) * size / 7))) for label, group in groups]
    top, bottom = (34 if size >= _TURN else 56), height - 12 - 16 * max(map(len, names))
    py = charts.scale(0, high, bottom, top)
    right = left + sum(size * (len(group) + _GAP) for _, group in groups)
    parts = [charts.text(0, 12, axis, "soft")]
    for t in y_ticks:
        parts += [f'<path class="rule" d="M{left} {py(t):.1f}H{right:.1f}"/>']
        parts += [charts.text(left - 6, py(t) + 4, charts.tick_text(t), "soft num", "end")]
    x = float(left)
    for index, ((_, group), lines) in enumerate(zip(groups, names, strict=True)):
        apart = last_apart and index == len(groups) - 1
        parts += [f'<path class="axis" stroke-dasharray="2 3" d="M{x:.1f} {top}V{height}"/>'] if apart else []
        start = x + size * _GAP / 2
        end = start + size * len(group)
        for i, bar in enumerate(group):
            parts += _bar(bar, start + i * size, size, py, high)
        for level in (bar.value for bar in group if bar.series == 0 and bar.value is not None):
            parts += [f'<path class="axis" stroke-dasharray="4 3" d="M{start:.1f} {py(level):.1f}H{end:.1f}"/>']
        for i, line in enumerate(lines):
            kind = "strong" if apart else ""
            parts += [charts.text((start + end) / 2, bottom + 18 + 16 * i, line, kind, "middle")]
        x += size * (len(group) + _GAP)
    parts += [f'<path class="axis" d="M{left} {bottom}H{right:.1f}"/>']
    return charts.svg(max(640, right), height, "".join(parts), axis)


def _high(found: Sequence[Bar], most: float | None) -> float:
    """The largest value or run, and intervals as far as they do not squeeze the bars."""
    values = [v for bar in found for v in (bar.value, *bar.runs) if v is not None]
    ends = [bar.interval[1] for bar in found if bar.interval]
    largest = max(values, default=0.0) or 1.0
    high = 1.03 * max(largest, min(max(ends, default=0.0), 1.25 * largest))
    return high if most is None else min(high, most)


def _bar(bar: Bar, x: float, size: float, py, high: float) -> list[str]:
    if bar.value is None:
        return [charts.text(x + size / 2, py(0) - 6, "–", "soft", "middle")]
    middle, inner, floor = x + size / 2, 0.84 * size, py(0)
    fill = _paint(bar.series, bar.light)
    least = py(max(0.0, bar.value))
    parts = [
        f'<g><title>{escape(bar.hint)}</title><rect x="{middle - inner / 2:.1f}" y="{least:.1f}" width="{inner:.1f}" '
        f'height="{floor - least:.1f}" {fill}/>'
    ]
    runs = [run for run in bar.runs if run is not None]
    above = max([bar.value, *(runs if len(runs) > 1 else [])])
    if bar.interval:
        low, top = max(0.0, bar.interval[0]), min(high, bar.interval[1])
        cap = min(4.0, 0.25 * size)
        caps = f"M{middle - cap:.1f} {py(low):.1f}h{2 * cap:.1f}" if low == bar.interval[0] else ""
        caps += f"M{middle - cap:.1f} {py(top):.1f}h{2 * cap:.1f}" if top == bar.interval[1] else ""
        stem = f"M{middle:.1f} {py(low):.1f}V{py(top):.1f}"
        # A pale edge parts the line from the bar in both themes.
        for paint, thick in (("page", 3.3), ("ink", 1.3)):
            parts += [f'<path fill="none" stroke="var(--{paint})" stroke-width="{thick}" d="{stem}{caps}"/>']
        above = max(above, top)
    if len(runs) > 1:
        step = min(5.0, 0.6 * inner / len(runs))
        for i, run in enumerate(runs):
            place = middle + step * (i - (len(runs) - 1) / 2)
            parts += [
                f'<circle cx="{place:.1f}" cy="{py(run):.1f}" r="{min(2.4, 0.12 * size):.1f}" fill="var(--page)" '
                'stroke="var(--ink)" stroke-width="0.8"/>'
            ]
    words, y = f"{bar.value:.1f}", py(above) - 6
    if size >= _TURN:
        parts += [charts.text(middle, y, words, "num", "middle")]
    else:
        parts += [f'<text class="num" transform="translate({middle + 4:.1f} {y:.1f})rotate(-90)">{words}</text>']
    return [*parts, "</g>"]


def _paint(series: int, light: bool) -> str:
    color = f"var(--s{series % charts.SERIES})"
    pale = f'style="fill:color-mix(in srgb, {color} 25%, var(--page))" stroke="{color}" stroke-width="1.4"'
    return pale if light else f'fill="{color}"'


def legend(keys: Sequence[tuple[int, bool, str]], *, lines: bool = False) -> str:
    """(series, light, name) beside what they look like, as HTML: bars, or lines whose light ones are dashed."""
    found = []
    for series, light, name in keys:
        color = f"var(--s{series % charts.SERIES})"
        shape = f'<rect x="4" y="1" width="12" height="12" {_paint(series, light)}/>'
        if lines:
            dashes = ' stroke-dasharray="5 3"' if light else ""
            shape = f'<path fill="none" stroke="{color}" stroke-width="2"{dashes} d="M0 7H22"/>'
        found.append(
            f'<span class="key"><svg width="22" height="14" aria-hidden="true">{shape}</svg> {escape(name)}</span>'
        )
    return f'<p class="legend">{"".join(found)}</p>'


def answer(name: str, rows: Sequence[tuple[str, float]], *, truth: str | None, width: int = 200) -> str:
    """What one network says: its most probable classes with bars, and whether the first is the truth.

    Args:
      name: of the network.
      rows: (class, probability), the most probable first.
      truth: the right class; None where it is not known.
      width: of the drawing, pixels.
    """
    right = None if truth is None or not rows else rows[0][0] == truth
    parts = [charts.text(0, 12, name, "strong")]
    if right is not None:
        paint = f'fill="var(--{"good" if right else "bad"})"'
        words = "✓ right" if right else "✗ wrong"
        parts += [f'<text x="{width}" y="12" text-anchor="end" style="fill:var(--ink)">{words}</text>']
        parts += [f'<rect y="18" width="{width}" height="2" {paint}/>']
    for i, (label, share) in enumerate(rows):
        y, color = 36 + 26 * i, "good" if label == truth else "s0"
        figure = f"{100 * share:.0f} %" if share >= 0.005 or share == 0 else "< 1 %"
        room = int((width - 8 - 7 * len(figure)) / 6.4)
        shown = label if len(label) <= room else label[: room - 1].rstrip() + "…"
        parts += [
            f"<g><title>{escape(f'{label}: {100 * share:.1f} %')}</title>",
            charts.text(0, y, shown, "strong" if label == truth else ""),
            charts.text(width, y, figure, "soft num", "end"),
            f'<rect y="{y + 5}" width="{width}" height="5" fill="var(--rule)"/>',
            f'<rect y="{y + 5}" width="{width * share:.1f}" height="5" fill="var(--{color})"/></g>',
        ]
    return charts.svg(width, 26 + 26 * len(rows), "".join(parts), f"{name}: {', '.join(label for label, _ in rows)}")
