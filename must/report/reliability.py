"""Charts of probabilities as inline SVG: whether they are so, and what a threshold on them buys and costs."""

from collections.abc import Sequence

import numpy as np

from must.core.proportions import wilson
from must.report.charts import scale, svg, text, tick_text

_TICKS = (0, 0.2, 0.4, 0.6, 0.8, 1)


def diagram(
    bins: Sequence[Sequence[float]],
    *,
    title: str,
    words: str,
    axes: tuple[str, str] = ("estimated", "true"),
    series: int = 1,
    side: int = 340,
) -> str:
    """Claimed probabilities against how often it was so.

    Args:
      bins: (mean claimed, share true, low, high, ...) of each; low and high are its interval.
      title: of the chart.
      words: the line below it.
      axes: what lies along and up.
      series: index of its color.
      side: of the drawing, pixels.
    """
    left, right, top, bottom = 44, side - 12, 44, side - 40
    px, py = scale(0, 1, left, right), scale(0, 1, bottom, top)
    parts = [text(0, 14, title, "strong"), text(0, 30, words, "soft")]
    parts += [f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>']
    parts += [f'<path class="axis" stroke-dasharray="2 4" d="M{px(0)} {py(0)}L{px(1)} {py(1)}"/>']
    for x, y, low, high, *_ in bins:
        parts += [f'<path stroke="var(--s{series})" stroke-width="1.4" d="M{px(x):.1f} {py(low):.1f}V{py(high):.1f}"/>']
        parts += [f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="3.6" fill="var(--s{series})"/>']
    for t in _TICKS:
        parts += [text(px(t), bottom + 16, tick_text(t), "soft num", "middle")]
        parts += [text(left - 6, py(t) + 4, tick_text(t), "soft num", "end")]
    parts += [text((left + right) / 2, side - 6, axes[0], "soft", "middle")]
    upwards = f'transform="translate(11 {(top + bottom) / 2:.0f}) rotate(-90)"'
    parts += [f"<g {upwards}>{text(0, 0, axes[1], 'soft', 'middle')}</g>"]
    return svg(side, side, "".join(parts), title)


def reliability(claimed: np.ndarray, correct: np.ndarray, *, title: str, bins: int = 10) -> str:
    """`diagram` of single examples [N], in bins of equal size with Wilson's 95 % interval."""
    order = np.array_split(np.argsort(claimed, kind="stable"), min(bins, len(claimed)))
    points = [(claimed[part].mean(), correct[part].mean(), *wilson(correct[part].sum(), len(part))) for part in order]
    gap = sum(len(part) * abs(x - y) for part, (x, y, _, _) in zip(order, points, strict=True)) / len(claimed)
    return diagram(points, title=title, words=f"mean gap {100 * gap:.1f} points over {len(claimed):,} examples")


def trade_off(
    points: Sequence[Sequence[float]],
    chosen: tuple[float, float] | None,
    *,
    title: str,
    words: str,
    wanted: float | None = None,
    width: int = 206,
    height: int = 178,
) -> str:
    """What recall a precision costs as a threshold moves.

    Args:
      points: (threshold, precision, recall) each.
      chosen: (precision, recall) at the threshold in use, a ring.
      title: of the chart.
      words: the line below it.
      wanted: precision, a line.
      width: of the drawing, pixels.
      height: of the drawing, pixels.
    """
    left, right, top, bottom = 28, width - 8, 40, height - 22
    px, py = scale(0, 1, left, right), scale(0, 1, bottom, top)
    parts = [text(0, 14, title, "strong"), text(0, 30, words, "soft")]
    for t in (0, 0.5, 1):
        parts += [f'<path class="rule" d="M{left} {py(t):.1f}H{right}"/>']
        parts += [text(left - 5, py(t) + 4, tick_text(t), "soft num", "end")]
        parts += [text(px(t), bottom + 15, tick_text(t), "soft num", "end" if t == 1 else "middle")]
    if wanted is not None:
        parts += [f'<path class="axis" stroke-dasharray="4 3" d="M{left} {py(wanted):.1f}H{right}"/>']
    if points:
        line = "L".join(f"{px(recall):.1f} {py(precision):.1f}" for _, precision, recall in points)
        parts += [f'<path fill="none" stroke="var(--s1)" stroke-width="1.8" d="M{line}"/>']
    if chosen is not None:
        at = f'cx="{px(chosen[1]):.1f}" cy="{py(chosen[0]):.1f}" r="4.5"'
        parts += [f'<circle fill="var(--page)" stroke="var(--s5)" stroke-width="2.4" {at}/>']
    return svg(width, height, "".join(parts), f"{title}: {words}")
