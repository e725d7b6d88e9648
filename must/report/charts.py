"""Charts as SVG by matplotlib: numbers in, text out. One look: no frames, direct labels, colors that follow the page.

Colors are the CSS variables of `STYLE` with a plain fallback: a chart inside a page turns dark with it, and stands
alone in a file. The same input gives the same bytes. matplotlib is imported when the first chart is drawn.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

# Okabe and Ito's palette, safe for color-blind readers, after the gray of references; lighter on dark pages.
STYLE = """
:root { --ink:#1c1d21; --soft:#6a6d76; --rule:#d9dbe0; --page:#ffffff; --panel:#f6f7f9;
  --s0:#73767f; --s1:#0072b2; --s2:#d98200; --s3:#009e73; --s4:#c0649a; --s5:#d55e00; --s6:#3d9fdc;
  --good:#0072b2; --unsure:#c9cdd6; --bad:#e3a04a; }
@media (prefers-color-scheme: dark) {
  :root { --ink:#e8e9ed; --soft:#9a9da8; --rule:#3a3c44; --page:#17181c; --panel:#202127;
    --s0:#a3a6b0; --s1:#56a8e0; --s2:#f0a630; --s3:#2fc598; --s4:#df8cbb; --s5:#f08038; --s6:#8accf5;
    --good:#56a8e0; --unsure:#4a4d57; --bad:#c98a3c; } }
"""
_LIGHT = dict(re.findall(r"--(\w+):(#\w{6})", STYLE.split("@media")[0]))
COLORS = [_LIGHT[f"s{i}"] for i in range(7)]
_INK, _SOFT, _RULE = "#7b7c7d", "#7c7d7e", "#7d7e7f"  # placeholders of var(--ink), ...; grays that read on any page
_VARIABLES = {color: f"--{name}" for name, color in reversed(_LIGHT.items())}  # of equal colors the first name
_VARIABLES |= {_INK: "--ink", _SOFT: "--soft", _RULE: "--rule"}
_FONT, _SCALE = "system-ui, sans-serif", 1.25  # pixels on a page per point of a drawing
_PAGE = 850.0  # points, width of a page
_RANGE = 2.0  # log2 of the weights at the ends of the color scale


class Line(NamedTuple):
    """One curve; `chosen` is the x to mark with a ring, `intervals` are (low, high) or None per point."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str = COLORS[1]
    dashed: bool = False
    chosen: float | None = None
    intervals: Sequence[Sequence[float] | None] = ()


class Dot(NamedTuple):
    """One estimate with its interval and single runs; an undefined value draws nothing."""

    value: float | None
    interval: Sequence[float] | None = None
    runs: Sequence[float | None] = ()


def render(width: float, height: float, draw: Callable[[Any], None], words: str) -> str:
    """An SVG of (width, height) points that `draw(figure)` fills; `words` describe it to who cannot see it."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "must",
        "font.size": 9,
        "text.color": _INK,
        "axes.labelcolor": _SOFT,
        "axes.edgecolor": _SOFT,
        "axes.titlecolor": _INK,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": _RULE,
        "grid.linewidth": 0.6,
        "xtick.color": _SOFT,
        "ytick.color": _SOFT,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "lines.linewidth": 1.7,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        figure.patch.set_alpha(0)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), words)


def _inline(svg: str, words: str) -> str:
    """The SVG element alone, with the page's font and colors."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'font-family: [^;"]*', f"font-family: {_FONT}", svg)
    svg = re.sub("#[0-9a-f]{6}", lambda m: f"var({_VARIABLES[m[0]]}, {m[0]})" if m[0] in _VARIABLES else m[0], svg)
    size = re.search(r'<svg[^>]*? width="([\d.]+)pt"', svg)
    width = f"width:{_SCALE * float(size[1]):.0f}px; max-width:100%; height:auto" if size else ""
    label = f'role="img" aria-label="{escape(words, quote=True)}" style="{width}"'
    return svg.replace("<svg", f"<svg {label}", 1).strip()


def estimates(
    panels: Sequence[tuple[str, Sequence[Dot | None]]],
    labels: Sequence[str],
    *,
    colors: Sequence[str] | None = None,
    zero: bool = False,
    words: str,
    width: float = 0,
) -> str:
    """Estimates with intervals as dots: one row per label, one panel per measure.

    Args:
      panels: (title with the unit, a dot per label).
      labels: of the rows.
      colors: of the rows.
      zero: the panels are of differences, so draw the line at 0; blue is surely above it, orange surely below.
      words: what the chart shows.
      width: points; by default from the number of panels.
    """

    left = 40 + 5.2 * max(map(len, labels), default=0)
    panel = float(np.clip((_PAGE - left) / max(1, len(panels)), 95, 175))

    def draw(figure: Any) -> None:
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, dots) in zip(grid, panels, strict=True):
            axes.set_title(title)
            for row, dot in enumerate(dots):
                if dot is None or dot.value is None:
                    continue
                low, high = dot.interval or (0.0, 0.0)
                color = COLORS[1] if low > 0 or not zero else COLORS[5] if high < 0 else COLORS[0]
                color = colors[row] if colors else color
                if dot.interval:
                    axes.plot(dot.interval, [row, row], color=color, linewidth=1.6, solid_capstyle="round")
                runs = [run for run in dot.runs if run is not None]
                if len(runs) > 1:
                    axes.plot(runs, [row - 0.25] * len(runs), "|", color=_SOFT, markersize=4, markeredgewidth=0.8)
                axes.plot([round(dot.value, 12)], [row], "o", color=color, markersize=5.5)
            if zero:
                axes.axvline(0, color=_SOFT, linewidth=1)
            axes.set_yticks(range(len(labels)), labels, color=_INK)
            axes.set_ylim(len(labels) - 0.5, -0.7)
            axes.grid(axis="y", visible=False)
            axes.locator_params(axis="x", nbins=4 if panel > 130 else 2)
            axes.xaxis.set_major_formatter(lambda tick, _: f"{tick:g}".replace("-", "−"))  # short: panels are narrow
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)

    return render(width or left + panel * len(panels), 58 + 19 * len(labels), draw, words)


def lines(
    panels: Sequence[tuple[str, Sequence[Line]]],
    *,
    x: str = "",
    y: Sequence[str] = (),
    levels: Sequence[tuple[float, str] | None] = (),
    ticks: Sequence[float] = (),
    words: str,
    panel: tuple[float, float] = (212, 160),
    across: int = 4,
) -> str:
    """Curves, one panel each; several curves of a panel are named at their ends.

    Args:
      panels: (title, curves); of one point each, dots.
      x: label of the horizontal axes.
      y: label of the vertical axis of each panel.
      levels: (height, name) of a horizontal line per panel, or None.
      ticks: of the horizontal axes, which are then logarithmic and labeled with exactly these.
      words: what the chart shows.
      panel: (width, height) of a panel, points.
      across: panels beside each other.
    """
    count = min(across, len(panels))
    rows = -(-len(panels) // max(1, count))

    def draw(figure: Any) -> None:
        grid = figure.subplots(rows, count, squeeze=False).ravel()
        for i, (axes, (title, curves)) in enumerate(zip(grid, panels, strict=False)):
            axes.set_title(title)
            for curve in curves:
                _curve(axes, curve)
            if ticks:
                axes.set_xscale("log")
                axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
                axes.minorticks_off()
            if i < len(levels) and levels[i]:
                axes.axhline(levels[i][0], color=COLORS[0], linewidth=1.2, linestyle=(0, (4, 3)))
            if i < len(y):
                axes.set_ylabel(y[i])
            axes.set_xlabel(x if i >= len(panels) - count else "")
            axes.locator_params(axis="y", nbins=5)
            _name_ends(axes, [curve for curve in curves if curve.name])
        for axes in grid[len(panels) :]:
            axes.set_axis_off()

    return render(panel[0] * count, panel[1] * rows + 10, draw, words)


def _curve(axes: Any, curve: Line) -> None:
    style = {"color": curve.color, "linestyle": (0, (4, 2)) if curve.dashed else "-"}
    marker = {"marker": "o", "markersize": 4} if len(curve.x) <= 6 else {}
    axes.plot(curve.x, curve.y, **style, **marker)
    bounds = [(x, *ends) for x, ends in zip(curve.x, curve.intervals, strict=False) if ends]
    if bounds:
        at, low, high = zip(*bounds, strict=True)
        axes.fill_between(at, low, high, color=curve.color, alpha=0.16, linewidth=0)
    if curve.chosen is not None and len(curve.x):
        height = float(np.interp(curve.chosen, curve.x, curve.y))
        axes.plot([curve.chosen], [height], "o", color=curve.color, markersize=7, markerfacecolor="none")


def _name_ends(axes: Any, curves: Sequence[Line]) -> None:
    """Names at the right ends of the curves, pushed apart where they would overlap."""
    ends = sorted((float(curve.y[-1]), curve) for curve in curves if len(curve.y))
    low, high = axes.get_ylim()
    gap, last = 0.085 * (high - low), -np.inf
    right = max((float(curve.x[-1]) for curve in curves if len(curve.x)), default=0.0)
    places = []
    for value, _ in ends:
        last = max(value, last + gap)
        places.append(last)
    shift = max(0.0, (places[-1] - high) if places else 0.0)
    for place, (_, curve) in zip(places, ends, strict=True):
        at = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
        axes.annotate(curve.name, (right, max(low, place - shift)), color=curve.color, fontsize=8.5, **at)


def shares(rows: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], *, title: str, width: float = 420) -> str:
    """Parts of a whole as stacked bars: blue, gray and orange, with the first part's share in figures.

    Args:
      rows: (label, counts by part).
      names: of the parts.
      title: of the chart.
      width: points.
    """
    paints = [_LIGHT["good"], _LIGHT["unsure"], _LIGHT["bad"]]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.set_title(title)
        for row, (_, counts) in enumerate(rows):
            start, total = 0.0, max(1e-9, float(sum(counts)))
            for name, paint, count in zip(names, paints, counts, strict=True):
                share = 100 * count / total
                axes.barh(row, share, 0.72, start, color=paint, label=name if row == 0 else None)
                start += share
            words = f"{100 * counts[0] / total:.1f}% of {total:,.0f}" if sum(counts) else "none"
            axes.text(102, row, words, va="center", fontsize=8.5, color=_SOFT)
        axes.set_yticks(range(len(rows)), [label for label, _ in rows], color=_INK)
        axes.set_ylim(len(rows) - 0.5, -0.6)
        axes.set_xlim(0, 100)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
        figure.legend(loc="outside lower left", ncols=3, fontsize=8.5, handlelength=1)

    return render(width, 62 + 18 * len(rows), draw, f"{title}: {', '.join(names)}")


def matrices(
    maps: Mapping[str, Mapping[str, np.ndarray]],
    rows: Mapping[str, Sequence[str]],
    columns: Mapping[str, Sequence[str]],
    words: str,
) -> str:
    """Heat maps of rates 0..1 in a grid: {down: {across: [rows, columns]}} with the names of their rows and columns."""
    downs = [down for down in rows if maps.get(down)]
    acrosses = [across for across in columns if any(across in maps[down] for down in downs)]
    if not downs or not acrosses:
        return ""
    cell = float(np.clip(760 / sum(len(columns[a]) for a in acrosses), 9, 30))
    longest = 5.2 * max(len(name) for names in (*rows.values(), *columns.values()) for name in names)
    widths, heights = [len(columns[a]) for a in acrosses], [len(rows[d]) for d in downs]

    def draw(figure: Any) -> None:
        ratios = {"width_ratios": widths, "height_ratios": heights}
        grid = figure.subplots(len(downs), len(acrosses), squeeze=False, gridspec_kw=ratios)
        for r, down in enumerate(downs):
            for c, across in enumerate(acrosses):
                _matrix(grid[r, c], maps[down].get(across), rows[down], columns[across], cell >= 20)
                grid[r, c].set_title(f"{across} head" if r == 0 else "")
                if c == 0:
                    grid[r, c].set_ylabel(down, color=_INK, fontweight="bold")
                else:
                    grid[r, c].set_yticklabels([])
                if r < len(downs) - 1:
                    grid[r, c].set_xticklabels([])
                for spine in grid[r, c].spines.values():
                    spine.set(
                        visible=True, color=_INK if down == across else _RULE, linewidth=1.4 if down == across else 0.6
                    )

    width = longest + 40 + cell * sum(widths) + 14 * len(acrosses)
    return render(width, longest + 40 + cell * sum(heights) + 14 * len(downs), draw, words)


def _matrix(axes: Any, rates: np.ndarray | None, rows: Sequence[str], columns: Sequence[str], figures: bool) -> None:
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    shade = LinearSegmentedColormap.from_list("rates", [to_rgba(COLORS[1], 0.03), to_rgba(COLORS[1], 1.0)])
    axes.grid(visible=False)
    axes.set_xticks(range(len(columns)), columns, rotation=90, color=_INK)
    axes.set_yticks(range(len(rows)), rows, color=_INK)
    axes.tick_params(length=0)
    if rates is None:
        return
    axes.imshow(np.nan_to_num(rates), cmap=shade, vmin=0, vmax=1, aspect="auto", interpolation="none")
    if figures:
        for r, c in np.argwhere(np.nan_to_num(rates) >= 0.005):
            color = "white" if rates[r, c] > 0.6 else _INK
            axes.text(c, r, f"{100 * rates[r, c]:.0f}", ha="center", va="center", fontsize=7.5, color=color)


def weights(values: np.ndarray, points: np.ndarray | None, held_out: np.ndarray | None, *, title: str) -> str:
    """How large example weights are, and their mean over the plane of two covariates where there are two.

    Args:
      values: [N].
      points: covariates [N, 2], certainty of the teacher and of the student.
      held_out: covariates [n, 2] of the validation examples, drawn as rings.
      title: of the histogram.
    """
    plane = points is not None and points.ndim == 2 and points.shape[1] == 2

    def draw(figure: Any) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        colors = LinearSegmentedColormap.from_list("weights", [_LIGHT["bad"], _LIGHT["unsure"], _LIGHT["good"]])
        left, *right = figure.subplots(1, 2 if plane else 1, squeeze=False)[0]
        log = np.clip(np.log2(np.maximum(values, 1e-6)), -3, 3)
        counts, edges = np.histogram(log, 32, (-3, 3))
        middles = (edges[:-1] + edges[1:]) / 2
        left.bar(middles, counts, 0.16, color=colors(0.5 + middles / (2 * _RANGE)))
        left.axvline(0, color=_SOFT, linewidth=1)
        left.set_xticks(range(-3, 4), ["≤1/8", "1/4", "1/2", "1", "2", "4", "≥8"])
        low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
        left.set_title(title)
        left.set_xlabel(f"weight; 5%, 50%, 95%: {low:.2f}, {median:.2f}, {high:.2f}")
        left.set_ylabel("examples")
        if right:
            _plane(figure, right[0], points, log, held_out, colors)

    return render(760 if plane else 380, 250, draw, title)


def _plane(figure: Any, axes: Any, points: Any, log: np.ndarray, held_out: np.ndarray | None, colors: Any) -> None:
    count, xs, ys = np.histogram2d(points[:, 0], points[:, 1], 28)
    total, _, _ = np.histogram2d(points[:, 0], points[:, 1], (xs, ys), weights=log)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    solid = np.clip(0.25 + 0.75 * np.sqrt(count / max(1.0, np.quantile(count[count > 0], 0.9))), 0, 1)
    image = axes.imshow(
        mean.T,
        origin="lower",
        aspect="auto",
        extent=(xs[0], xs[-1], ys[0], ys[-1]),
        cmap=colors,
        vmin=-_RANGE,
        vmax=_RANGE,
        alpha=np.where(count > 0, solid, 0.0).T,
        interpolation="none",
    )
    if held_out is not None and len(held_out):
        some = held_out[np.linspace(0, len(held_out) - 1, min(300, len(held_out))).astype(int)]
        axes.plot(some[:, 0], some[:, 1], "o", markersize=3, markerfacecolor="none", color=_SOFT, markeredgewidth=0.6)
    axes.set(title="Mean weight", xlabel="certainty of the teacher", ylabel="certainty of the student")
    bar = figure.colorbar(image, ax=axes, ticks=range(-2, 3), shrink=0.9)
    bar.ax.set_yticklabels(["≤1/4", "1/2", "1", "2", "≥4"])
    bar.outline.set_visible(False)


def reliability(panels: Sequence[tuple[str, str, Sequence[Sequence[float]]]], words: str) -> str:
    """Claimed probability against the share that is right: (title, line below the axis, bins) of each panel.

    A bin is (mean probability, share that is right, low, high, ...); a calibrated score lies on the diagonal.
    """

    def draw(figure: Any) -> None:
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, below, bins), color in zip(grid, panels, (COLORS[5], COLORS[1]), strict=False):
            axes.plot([0, 1], [0, 1], color=_SOFT, linewidth=1, linestyle=(0, (4, 3)))
            if bins:
                x, y, low, high = (np.array(part) for part in list(zip(*bins, strict=True))[:4])
                axes.vlines(x, low, high, color=color, linewidth=1.3)
                axes.plot(x, y, "o-", color=color, markersize=4.5, linewidth=1.2)
            axes.set(title=title, xlim=(0, 1), ylim=(0, 1), ylabel="share that is right")
            axes.set_xlabel(f"probability\n{below}" if below else "probability")

    return render(330 * len(panels), 310, draw, words)


def trade_offs(
    panels: Sequence[tuple[str, str, Sequence[Sequence[float]], tuple[float, float] | None, float | None]], words: str
) -> str:
    """Precision over recall as a threshold falls: (title, line below, points, chosen, target precision) of each panel.

    Points are (threshold, precision, recall); chosen is (precision, recall) at the threshold in use.
    """
    count = min(5, len(panels))
    rows = -(-len(panels) // max(1, count))

    def draw(figure: Any) -> None:
        grid = figure.subplots(rows, count, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, (title, below, points, chosen, target) in zip(grid, panels, strict=False):
            if target is not None:
                axes.axhline(target, color=_SOFT, linewidth=1, linestyle=(0, (4, 3)))
            if points:
                axes.plot([p[2] for p in points], [p[1] for p in points], color=COLORS[1])
            if chosen is not None:
                axes.plot([chosen[1]], [chosen[0]], "o", color=COLORS[5], markersize=7, markerfacecolor="none")
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.05), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
            axes.set_title(f"{title}\n{below}" if below else title, fontsize=8.5)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()

    return render(max(200, _PAGE / 5 * count), 150 * rows, draw, words)
