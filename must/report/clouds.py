"""Many examples at once as inline SVG: how large their weights are, and where they lie."""

import numpy as np

from must.report.charts import diverging, scale, svg, text, tick_text, ticks

_RANGE = 2.0  # log2 of the weights at the ends of the colors


def histogram(weights: np.ndarray, *, title: str, width: int = 420, height: int = 220, bins: int = 32) -> str:
    """How many examples have which weight, from 1/8 to 8 on a logarithmic axis, the line at 1; the ends gather the rest."""
    log = np.clip(np.log2(np.maximum(weights, 1e-6)), -3, 3)
    counts, edges = np.histogram(log, bins, (-3, 3))
    left, right, top, bottom = 8, width - 8, 40, height - 36
    px, py = scale(-3, 3, left, right), scale(0, counts.max() or 1, bottom, top)
    share = 100 * np.mean(weights < 1)
    spread = np.quantile(weights, [0.05, 0.5, 0.95])
    words = f"{len(weights):,} examples, {share:.0f} % below 1; 5 %, 50 %, 95 %: " + ", ".join(
        f"{q:.2f}" for q in spread
    )
    parts = [text(0, 14, title, "strong"), text(0, 30, words, "soft")]
    for count, start, stop in zip(counts, edges[:-1], edges[1:], strict=True):
        box = f'x="{px(start) + 0.5:.1f}" y="{py(count):.1f}" width="{px(stop) - px(start) - 1:.1f}" height="{bottom - py(count):.1f}"'
        parts += [f'<rect {box} style="fill:{diverging((start + stop) / 2 / _RANGE)}"/>'] if count else []
    for power in range(-3, 4):
        label = ("≤ " if power == -3 else "≥ " if power == 3 else "") + (
            f"1/{2**-power}" if power < 0 else str(2**power)
        )
        parts += [
            text(
                px(power), bottom + 16, label, "soft num", "start" if power == -3 else "end" if power == 3 else "middle"
            )
        ]
    parts += [f'<path class="axis" d="M{left} {bottom}H{right}M{px(0):.1f} {bottom}V{top}"/>']
    return svg(
        width, height, "".join(parts + [text((left + right) / 2, height - 4, "weight", "soft", "middle")]), title
    )


def cloud(
    points: np.ndarray, weights: np.ndarray, held_out: np.ndarray, *, title: str, axes: tuple[str, str], side: int = 420
) -> str:
    """Mean weight over a plane of two covariates, more solid where more examples lie; rings are validation examples.

    Args:
      points: [N, 2].
      weights: [N].
      held_out: [n, 2]; at most 500 of them are drawn.
      title: of the chart.
      axes: names of the covariates.
      side: of the drawing, pixels.
    """
    cells, both = 28, np.concatenate([points, held_out])
    low, high = both.min(0), np.maximum(both.max(0), both.min(0) + 1e-6)
    left, right, top, bottom = 44, side - 8, 28, side - 40
    px, py = scale(low[0], high[0], left, right), scale(low[1], high[1], bottom, top)
    grid = [np.linspace(low[i], high[i], cells + 1) for i in range(2)]
    count, _, _ = np.histogram2d(points[:, 0], points[:, 1], grid)
    total, _, _ = np.histogram2d(points[:, 0], points[:, 1], grid, weights=np.log2(np.maximum(weights, 1e-6)))
    solid = np.sqrt(count / max(np.quantile(count[count > 0], 0.9), 1))
    parts, step = [text(0, 14, title, "strong")], ((right - left) / cells, (bottom - top) / cells)
    for i, j in np.argwhere(count > 0):
        box = f'x="{px(grid[0][i]):.1f}" y="{py(grid[1][j + 1]):.1f}" width="{step[0]:.1f}" height="{step[1]:.1f}"'
        hint = f"<title>{count[i, j]:.0f} examples, weight {2 ** (total[i, j] / count[i, j]):.2f}</title>"
        opacity = min(1.0, 0.25 + 0.75 * solid[i, j])
        parts += [
            f'<rect {box} style="fill:{diverging((total[i, j] / count[i, j]) / _RANGE)};opacity:{opacity:.2f}">{hint}</rect>'
        ]
    shown = held_out[np.linspace(0, len(held_out) - 1, min(500, len(held_out))).astype(int)]
    parts += [
        f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="2.2" fill="none" stroke="var(--ink)" stroke-width="0.7" opacity="0.6"/>'
        for x, y in shown
    ]
    parts += [
        f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>',
        text((left + right) / 2, side - 6, axes[0], "soft", "middle"),
    ]
    parts += [text(px(t), bottom + 16, tick_text(t), "soft num", "middle") for t in ticks(low[0], high[0], 5)]
    parts += [text(left - 6, py(t) + 4, tick_text(t), "soft num", "end") for t in ticks(low[1], high[1], 5)]
    parts += [
        f'<g transform="translate(11 {(top + bottom) / 2:.0f}) rotate(-90)">{text(0, 0, axes[1], "soft", "middle")}</g>'
    ]
    return svg(side, side, "".join(parts), title)


def weight_legend() -> str:
    """The colors of `cloud` and `histogram`, as HTML."""
    keys = (
        f'<span class="key"><svg width="14" height="14" aria-hidden="true"><rect y="2" width="12" height="12" '
        f'style="fill:{diverging(power / _RANGE)}"/></svg> {words}</span>'
        for power, words in ((-2, "1/4 or less"), (-1, "1/2"), (0, "1"), (1, "2"), (2, "4 or more"))
    )
    return f'<p class="legend">weight {"".join(keys)}</p>'
