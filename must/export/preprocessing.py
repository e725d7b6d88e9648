"""What stands before an exported network, in words and numbers: how pictures and videos become its inputs."""

from typing import Any

from must.data.clips import ClipEncoder
from must.data.geometry import FILL
from must.data.pipeline import Encoder


def preprocessing(encoder: Encoder | ClipEncoder) -> dict[str, Any]:
    """How a test example becomes the inputs of a network, as JSON; of a `ClipEncoder` one clip."""
    placed = (
        f"scaled to fit, then padded right and below with {list(FILL)}" if encoder.keep_aspect else "stretched to fit"
    )
    found: dict[str, Any] = {
        "size": list(encoder.size),
        "keep_aspect": encoder.keep_aspect,
        "pixels": f"RGB, 0 to 255, the whole picture {placed}; bilinear with antialiasing, as Pillow's BILINEAR",
        "normalization": "inside the program",
    }
    if isinstance(encoder, ClipEncoder):
        span = encoder.window.span
        part = f"the middle {span} frames of the video, all of a shorter one" if span else "the whole video"
        found["clips"] = {
            "frames": dict(encoder.frames),
            "window": {"span": span},
            "sampling": f"T frames of {part}: with length L and first frame s of that part, frame i of the clip is "
            "s + a + (b - a) // 2, where a = i * L // T and b = (i + 1) * L // T",
        }
    return found
