"""The README's figure from the page of a finished run: `python docs/figure.py runs/quickstart/report.html [ROW]`.

Rows are truth, teachers and student; columns are tasks; all on one test image.
"""

import base64
import io
import re
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TASKS = ("detection", "segmentation", "depth", "normals")
TARGET = Path(__file__).with_name("quickstart.jpg")
CELL, GAP, TOP, ROWS = 192, 6, 24, 6  # pixels of a contact sheet of 64-pixel scenes, see must/report/pictures.py
MARGIN = 74


def main(page: str, row: int = 0) -> None:
    """Cuts the pictures out of the contact sheets and joins them."""
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)" alt="(\w+): ', Path(page).read_text(encoding="utf-8"))
    sheets = {task: Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB") for data, task in found}
    pitch = (sheets[TASKS[0]].height - TOP - GAP) // ROWS
    top, font = TOP + row * pitch, ImageFont.load_default(15)
    size = (MARGIN + (len(TASKS) + 1) * (CELL + GAP), TOP + 3 * (CELL + GAP))
    figure = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(figure)
    for y, (name, column) in enumerate((("truth", 1), ("teachers", 2), ("student", 3))):
        at = TOP + y * (CELL + GAP)
        pen.text((MARGIN - 8, at + CELL // 2), name, "black", font, anchor="rm")
        for x, task in enumerate(TASKS, 1):
            left = GAP + column * (CELL + GAP)
            figure.paste(sheets[task].crop((left, top, left + CELL, top + CELL)), (MARGIN + x * (CELL + GAP), at))
    figure.paste(sheets[TASKS[0]].crop((GAP, top, GAP + CELL, top + CELL)), (MARGIN, TOP))
    for x, name in enumerate(("image", *TASKS)):
        pen.text((MARGIN + x * (CELL + GAP) + CELL // 2, TOP // 2), name, "black", font, anchor="mm")
    figure.save(TARGET, quality=80)
    print(f"wrote {TARGET.name}, {TARGET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
