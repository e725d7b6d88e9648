"""Depth as 16-bit PNGs with a table of what their codes mean."""

from typing import Any

import numpy as np

from must.core.types import Label, Source, UserError
from must.tasks import exchange

_MOST_MM = 65534  # 65535 is "no measurement" in many sets


def write(directory: str, source: Source, name: str, task: Any, millimeters: bool) -> int:
    """depth/*.png, and in maps.csv the meaning of a code; 0 is no depth.

    By default the stored codes: meters, or for relative depth the inverse, = code * scale + offset, two numbers per
    image, nothing is rounded. Most tools read one unit for all files: `millimeters` writes these, rounded by up to
    0.5 mm (below 1 mm: to 1 mm).

    Args:
      directory: of the task's files.
      source: of labeled examples.
      name: key of the labels.
      task: `must.tasks.depth.Depth`.
      millimeters: see above.

    Returns:
      The number of labeled examples.

    Raises:
      UserError: no labels of the task; in millimeters relative depth, or depths above 65.534 m.
    """
    metric = task.depth_kind == "metric"
    if millimeters and not metric:
        raise UserError(f"task {name!r}: {task.depth_kind} depth has no millimeters")
    what = "meters" if metric else "inverse depth, right up to scale and shift,"
    unit = f"{what} = code * scale + offset of maps.csv; code 0 = no depth"
    if millimeters:
        unit = "millimeters, rounded by up to 0.5 mm; 0 = no depth"
    about = {"kind": "depth", "unit": unit, "depth_kind": task.depth_kind}
    prepare = {"prepare": _in_millimeters} if millimeters else {}
    maps, columns = ("depth", "scores"), ("scale", "offset", *(() if metric else ("inverse",)))
    return exchange.write_maps(directory, source, name, task, maps, columns, about=about, **prepare)


def _in_millimeters(label: Label, where: str) -> Label:
    codes, scale, offset = (np.asarray(label[field], np.float64) for field in ("depth", "scale", "offset"))
    depth = np.where(codes > 0, np.maximum(np.round(1000 * (codes * scale + offset)), 1), 0)
    if depth.max(initial=0) > _MOST_MM:
        raise UserError(
            f"{where}: a depth of {depth.max() / 1000:.6g} m; 16 bits hold at most {_MOST_MM / 1000} m in millimeters"
        )
    return {**label, "depth": depth.astype(np.uint16), "scale": np.float32(1e-3), "offset": np.float32(0)}
