"""Pictures of any size, arrays or files, become labels in their own frames."""

import numpy as np
import pytest
from PIL import Image

from must.core.types import Teacher, UserError
from must.data.clips import ClipEncoder, Window
from must.data.pipeline import Encoder
from must.export.predict import Part, Predictor
from must.tasks.classification import Classification
from tests.tasks.test_tiles import EYE, FRAME, scene

CLASSES = {"action": Classification(("still", "moving"))}


def still_or_moving(clips):
    moving = (np.asarray(clips).astype(float).std(1).max((1, 2, 3)) > 1).astype(np.float32)
    return {"action": {"probs": np.stack([1 - moving, moving], -1) * 0.9 + 0.05}}


PICTURES = Predictor((Part(EYE, Encoder({}, FRAME)),))
MOTION = Teacher("clips", CLASSES, still_or_moving, (8, 8), "clips")
CLIPS = Predictor((Part(MOTION, ClipEncoder({}, (8, 8), {"image": 4}, Window())),))


def test_labels_are_in_the_frame_of_each_picture():
    sizes = [(64, 64), (128, 96), (37, 61), (300, 500)]
    pictures = [scene(size, (0, size[1] // 4, size[0] // 4, size[1] // 2, size[0] // 2)) for size in sizes]
    for batch_size in (1, 3, 16):
        found = PICTURES.predict(pictures, batch_size=batch_size)
        assert len(found) == len(pictures) and set(found[0]) == set(PICTURES.tasks) == set(EYE.tasks)
        for (height, width), labels in zip(sizes, found, strict=True):
            box = [width // 4, height // 4, width // 2, height // 2]
            pixel = max(height, width) / 64
            np.testing.assert_allclose(labels["boxes"]["boxes"], [box], atol=1.5 * pixel)
            assert labels["mask"]["ids"].shape[:2] == labels["depth"]["depth"].shape == (height, width)


def test_tiles_find_what_is_small_in_a_large_picture():
    picture = scene((256, 256), (0, 100, 100, 116, 116), (1, 10, 200, 26, 216))
    (whole,), (tiled,) = PICTURES.predict([picture]), PICTURES.predict([picture], tiles=(5, 5))
    assert len(whole["boxes"]["boxes"]) == 0
    order = np.argsort(tiled["boxes"]["classes"])
    np.testing.assert_allclose(tiled["boxes"]["boxes"][order], [[100, 100, 116, 116], [10, 200, 26, 216]], atol=2)


def test_a_file_is_read_as_viewers_show_it(tmp_path):
    picture = scene((64, 128), (1, 0, 0, 40, 30))
    turned = Image.fromarray(np.rot90(picture))  # stored so; tag 6 turns it back by 90 degrees clockwise
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(picture).save(tmp_path / "plain.png")
    one, other, array = PICTURES.predict([str(tmp_path / "turned.png"), tmp_path / "plain.png", picture])
    for labels in (one, other):
        np.testing.assert_array_equal(labels["boxes"]["boxes"], array["boxes"]["boxes"])
    with pytest.raises(UserError, match="missing.png"):
        PICTURES.predict([tmp_path / "missing.png"])


BLACK = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize("images", ["a.png", BLACK, [BLACK[..., 0]], [BLACK.astype(float)]])
def test_what_is_no_list_of_pictures_is_refused(images):
    with pytest.raises(UserError, match="images"):
        PICTURES.predict(images)


def test_clips_are_predicted_from_videos_of_any_length():
    still, moving = np.zeros((9, 20, 30, 3), np.uint8), np.zeros((3, 8, 8, 3), np.uint8)
    moving[1:] = 200
    found = CLIPS.predict([still, moving])
    assert [labels["action"]["ids"][0] for labels in found] == [0, 1]
    with pytest.raises(UserError, match="is a picture"):
        CLIPS.predict([still[0]])
    with pytest.raises(UserError, match="clips are predicted whole"):
        CLIPS.predict([still], tiles=(2, 2))
    assert PICTURES.predict([]) == []
