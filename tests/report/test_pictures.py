"""Contact sheets, strips and animations hold the pictures that they are made of."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from must.report.pictures import animation_uri, contact_sheet, data_uri, strip


def test_contact_sheet_places_every_picture():
    colors = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 0)]]
    sizes = [[(8, 8), (24, 16)], [(400, 640), (200, 200)]]
    rows = [
        [np.full((*size, 3), color, np.uint8) for color, size in zip(*row, strict=True)]
        for row in zip(colors, sizes, strict=True)
    ]
    sheet = contact_sheet(rows, ["left", "right"], cell=(160, 320))
    assert sheet.dtype == np.uint8 and sheet.shape[1] == 2 * 320 + 3 * 6
    assert sheet.shape[0] == 24 + (480 + 6) + (320 + 6) + 6
    for y, row in ((24 + 100, colors[0]), (24 + 486 + 100, colors[1])):
        assert [tuple(sheet[y, x]) for x in (6 + 160, 12 + 320 + 160)] == row
    assert sheet[:24].max() > 200  # the captions
    with pytest.raises(ValueError, match="1 pictures under 2"):
        contact_sheet([[rows[0][0]]], ["left", "right"])


def test_small_pictures_are_enlarged_pixel_by_pixel():
    picture = np.random.default_rng(2).integers(0, 255, (20, 40, 3), np.uint8)
    sheet = contact_sheet([[picture]], ["one"], cell=(160, 320))
    np.testing.assert_array_equal(sheet[24:-12, 6:-6], picture.repeat(4, 0).repeat(4, 1))


def test_data_uri_decodes_to_the_picture():
    picture = np.random.default_rng(3).integers(0, 255, (12, 9, 3), np.uint8)
    smooth = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None], (64, 64, 3))
    for original, quality, kind, tolerance in ((picture, None, "png", 0), (smooth, 88, "jpeg", 6)):
        head, _, body = data_uri(original, quality=quality).partition(",")
        assert head == f"data:image/{kind};base64"
        decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB"), int)
        assert np.abs(decoded - original).max() <= tolerance


def test_a_noisy_picture_fits_its_buffer():
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    assert data_uri(noise).startswith("data:image/jpeg")


def test_a_long_caption_is_broken_and_stays_in_its_column():
    picture = np.zeros((20, 20, 3), np.uint8)
    short = contact_sheet([[picture, picture]], ["a", "b"])
    long = contact_sheet([[picture, picture]], ["a", "multi-exclusive-all-own-soft-missing"])
    assert long.shape[1] == short.shape[1] and long.shape[0] > short.shape[0]
    height = long.shape[0] - short.shape[0]
    edge = long[: 24 + height, [0, 1, -2, -1]]
    assert (edge == edge[0, 0]).all()  # nothing runs over the sheet's sides
    np.testing.assert_array_equal(long[24 + height :], short[24:])  # the pictures only moved down


def test_a_video_moves_for_ever_and_its_strip_shows_its_ends():
    levels = np.linspace(0, 255, 40).astype(np.uint8)
    video = np.broadcast_to(levels[:, None, None, None], (40, 64, 32, 3))
    moving = Image.open(io.BytesIO(base64.b64decode(animation_uri(video, 8, most=10, largest=32).partition(",")[2])))
    assert (moving.n_frames, moving.size, moving.info["loop"]) == (10, (16, 32), 0)
    shown = []
    for i in range(10):
        moving.seek(i)
        moving.load()
        shown.append(np.asarray(moving.convert("RGB"), float).mean())
        assert moving.info["duration"] == 500  # 40 frames at 8 per second last 5 seconds
    assert np.abs(np.array(shown) - levels[np.linspace(0, 39, 10).round().astype(int)]).max() < 4
    sheet = strip(video, most=4, largest=32)
    assert sheet.shape == (32, 4 * 16 + 3, 3) and sheet[0, 0, 0] == 0 and sheet[0, -1, 0] == 255
    assert strip(video[:1]).shape == (64, 32, 3)
    assert Image.open(io.BytesIO(base64.b64decode(animation_uri(video[:1], 4).partition(",")[2]))).size == (32, 64)
