"""Matrices of small heat maps as inline SVG: what several heads say about the clips of several sets."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from must.report import charts

_CELL = (8.0, 26.0)  # pixels, least and greatest
_GAP = 14  # pixels between two maps
_LONGEST = 20  # characters of a class name; longer ones are cut, hovering says them whole


def heat_maps(
    rates: Mapping[str, Mapping[str, np.ndarray]], classes: Mapping[str, Sequence[str]], *, width: int = 1100
) -> str:
    """One map per set (down) and head (across), dark where the rate is high; those of a set and its own head are framed.

    Args:
      rates: {set: {head: [classes of the set, or 1 for all its clips, classes of the head]}} in [0, 1]; a map may be
        missing or of other sizes, which leaves it out, and a row of zeros is one without clips.
      classes: {set or head: names of its classes}.
      width: that the drawing should have, pixels; many classes take more.

    Returns:
      SVG; empty without maps.
    """
    found = {
        (down, across): np.nan_to_num(np.asarray(rate, np.float64))
        for down, row in rates.items()
        for across, rate in row.items()
        if down in classes
        and across in classes
        and np.shape(rate) in ((len(classes[down]), len(classes[across])), (1, len(classes[across])))
    }
    downs, acrosses = list(dict.fromkeys(d for d, _ in found)), list(dict.fromkeys(a for _, a in found))
    if not found:
        return ""
    labels = {d: list(classes[d]) if _height(found, d) == len(classes[d]) else ["all clips"] for d in downs}
    longest = lambda names: min(_LONGEST, max(map(len, names)))  # noqa: E731
    left = 6 + 6.2 * longest([name for names in labels.values() for name in names])
    room = width - left - _GAP * len(acrosses)
    cell = float(np.clip(room / sum(len(classes[a]) for a in acrosses), *_CELL))
    font = min(11.0, cell + 1.5)
    top = 24 + 0.58 * font * longest([name for a in acrosses for name in classes[a]])
    starts, x = {}, left
    for a in acrosses:
        starts[a] = x
        x += max(cell * len(classes[a]), 7.2 * (len(a) + 5)) + _GAP
    parts = []
    for a in acrosses:
        parts += [charts.text(starts[a], 12, f"{a} head", "strong")]
        for i, name in enumerate(classes[a]):
            place = f"translate({starts[a] + (i + 0.5) * cell + font / 3:.1f} {top - 5:.1f})rotate(-90)"
            parts += [
                f'<text transform="{place}" {_size(font)}><title>{escape(name)}</title>{escape(_cut(name))}</text>'
            ]
    y = top
    for d in downs:
        parts += [charts.text(0, y + 14, f"clips of {d}", "strong")]
        y += 22
        for j, name in enumerate(labels[d]):
            place = f'x="{left - 6:.1f}" y="{y + (j + 0.5) * cell + font / 3:.1f}" text-anchor="end" {_size(font)}'
            parts += [f"<text {place}><title>{escape(name)}</title>{escape(_cut(name))}</text>"]
        for a in acrosses:
            if (d, a) in found and len(found[d, a]) == len(labels[d]):
                parts += _map(found[d, a], (starts[a], y), cell, (d, labels[d]), (a, classes[a]))
        y += cell * len(labels[d]) + 8
    return charts.svg(max(640, x), y, "".join(parts), "what every head says about the clips of every set")


def _height(found: Mapping[tuple[str, str], np.ndarray], down: str) -> int:
    return max(len(rate) for (d, _), rate in found.items() if d == down)


def _map(rate: np.ndarray, corner: tuple[float, float], cell: float, down, across) -> list[str]:
    (x, y), (rows, columns) = corner, rate.shape
    own = down[0] == across[0]
    frame = 'stroke="var(--ink)" stroke-width="1.6"' if own else 'stroke="var(--rule)"'
    parts = [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell * columns:.1f}" height="{cell * rows:.1f}" fill="var(--panel)"/>'
    ]
    for j, i in zip(*np.nonzero(rate >= 0.005), strict=True):
        hint = f"{down[0]}, {down[1][j]} → {across[0]}, {across[1][i]}: {100 * rate[j, i]:.0f} %"
        parts.append(
            f'<rect x="{x + i * cell:.1f}" y="{y + j * cell:.1f}" width="{cell:.1f}" height="{cell:.1f}" '
            f'fill="var(--s1)" fill-opacity="{rate[j, i]:.2f}"><title>{escape(hint)}</title></rect>'
        )
    for j in np.flatnonzero(~rate.any(1)):
        middle = y + (j + 0.5) * cell
        parts.append(f'<path class="rule" stroke-dasharray="2 3" d="M{x:.1f} {middle:.1f}h{cell * columns:.1f}"/>')
    size = f'width="{cell * columns:.1f}" height="{cell * rows:.1f}"'
    return [*parts, f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="none" pointer-events="none" {frame}/>']


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1].rstrip() + "…"


def _size(font: float) -> str:
    return f'style="font-size:{font:.1f}px"'


def scale() -> str:
    """The shades of the maps and the rates they stand for."""
    steps, size = 20, 9
    parts = [
        f'<rect x="{30 + i * size}" y="3" width="{size}" height="12" fill="var(--s1)" fill-opacity="{(i + 0.5) / steps}"/>'
        for i in range(steps)
    ]
    words = [
        charts.text(24, 13, "0", "soft num", "end"),
        charts.text(36 + steps * size, 13, "100 % of a class's clips", "soft"),
    ]
    return charts.svg(420, 20, "".join(parts + words), "shades from 0 to 100 %")
