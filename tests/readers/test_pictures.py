"""Pictures that viewers open are read as viewers show them; damaged and oversized ones are refused in one line."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from must.core.notices import Notice
from must.core.types import UserError
from must.data import geometry
from must.data.sources import source
from must.readers import pictures
from must.readers.dense import read_mask
from must.readers.pictures import decode_picture, orientation_of, picture_size, stored_ids, untagged
from must.readers.record_format import is_plain
from must.scenes.still import Scenes
from must.tasks.exchange import picture_bytes
from tests.support import folder_sets as sets


def encoded(array, kind="JPEG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def smooth(size=(48, 64)):
    rows, columns = np.indices(size)
    return np.stack([rows * 4 % 256, columns * 3 % 256, (rows + columns) % 256], -1).astype(np.uint8)


def tagged(array, tag, kind="JPEG"):
    exif = Image.Exif()
    exif[0x0112] = tag
    return encoded(array, kind, exif=exif)


def png(depth, color, rows, size, *chunks):
    """A PNG of unfiltered `rows` of bytes, with further chunks (kind, content) before its pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", size[1], size[0], depth, color, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = ((b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_stray_bytes_between_segments_do_not_hide_damage():
    clean = encoded(smooth(), quality=90)
    at = clean.index(b"\xff\xdb")
    stray = clean[:at] + b"\0\0" + clean[at:]
    np.testing.assert_array_equal(decode_picture(stray, "a"), decode_picture(clean, "a"))
    damaged = bytearray(stray)
    damaged[-200:-150] = b"\xff\xd9" * 25
    for data in (bytes(damaged), stray[:-60], clean[:-60]):
        with pytest.raises(UserError, match="a: broken picture"):
            decode_picture(data, "a")


def test_a_chroma_sampling_that_the_fast_decoder_does_not_know():
    clean = encoded(np.full((32, 32, 3), 77, np.uint8), subsampling=0, quality=90)
    at = clean.index(b"\xff\xc0") + 11  # sampling of Y: 1 x 4 in place of 1 x 1; a flat picture stays flat
    rare = clean[:at] + b"\x14" + clean[at + 1 :]
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(rare))).convert("RGB"))
    np.testing.assert_array_equal(decode_picture(rare, "a"), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_a_displayed_picture_is_what_viewers_show(tmp_path, kind, tag):
    data = tagged(smooth(), tag, kind)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    (tmp_path / f"a.{kind.lower()}").write_bytes(data)
    assert orientation_of(data) == tag
    for orientation in ("displayed", "stored"):
        photos = source("photos", root=str(tmp_path), orientation=orientation)
        image = photos[0].image
        if orientation == "displayed":
            np.testing.assert_allclose(image.astype(int), shown, atol=1)
        elif kind != "TIFF":
            np.testing.assert_array_equal(image, decode_picture(data, "a"))
        assert photos.size(0) == image.shape[:2]
        kept = photos.encoded(0)  # what records and exports copy: the same picture to readers with and without the tag
        assert orientation_of(kept) == 1
        np.testing.assert_array_equal(decode_picture(kept, "a"), image)
        assert kept == data or tag > 1


@pytest.mark.parametrize("tag, told", [(3, True), (6, False)])
def test_a_turn_that_no_size_tells_is_mentioned(tmp_path, tag, told):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "a.jpg").write_bytes(tagged(smooth(), tag, "JPEG"))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        source("image_folder", root=str(tmp_path), split="train", name=f"turned{tag}")[0]
    assert any("orientation='stored'" in str(one.message) for one in seen) == told


def test_a_missing_end_mark_is_no_truncation_but_nothing_to_hand_on(tmp_path):
    whole = encoded(smooth())
    (tmp_path / "a.jpg").write_bytes(whole[:-2])
    photos = source("photos", root=str(tmp_path))
    np.testing.assert_array_equal(photos[0].image, decode_picture(whole, "a"))
    assert is_plain(whole, (48, 64)) and not is_plain(whole[:-2], (48, 64))
    kept = picture_bytes(photos, 0)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(kept))), photos[0].image)
    with pytest.raises(UserError, match="a: broken picture"):
        decode_picture(whole[:-12], "a")


@pytest.mark.parametrize("tag", [1, 3, 6, 7])
@pytest.mark.parametrize("side", [96, 90])
def test_a_reduced_picture_is_in_place_and_within_two_gray_levels(tag, side):
    photo = Scenes(1, size=96)[0].image[:side]
    data = tagged(photo, tag)
    with pictures.undecoded():
        lazy = pictures.read_picture(data, "a", orientation="displayed")
    whole = decode_picture(data, "a", orientation="displayed")
    assert isinstance(lazy, pictures.Encoded) and lazy.shape == whole.shape
    rng = np.random.default_rng(0)
    for _ in range(8):
        drawn = geometry.draw(rng, whole.shape[:2], (40, 40), zoom=(0.7, 1.4), shift=0.1)
        one, other = (geometry.transform_image(image, drawn).astype(float) for image in (lazy, whole))
        assert np.abs(one - other).mean() < 2

        for axis in range(2):  # half a pixel of the frame aside they fit less
            for shift in (-0.5, 0.5):
                offset = tuple(at + shift * (axis == k) for k, at in enumerate(drawn.offset))
                moved = geometry.transform_image(whole, drawn._replace(offset=offset)).astype(float)
                assert np.abs(one - other).mean() < np.abs(one - moved).mean()


def test_a_picture_that_is_decoded_later_is_the_same_and_refused_in_the_same_words():
    data = encoded(smooth())
    with pictures.undecoded():
        lazy, broken = (pictures.read_picture(bytes_, "a") for bytes_ in (data, data[:-12]))
    np.testing.assert_array_equal(lazy, decode_picture(data, "a"))
    for scale in (0.3, 1.0):
        with pytest.raises(UserError, match="a: broken picture"):
            broken.at_least(scale)


def test_tags_that_say_nothing():
    assert orientation_of(tagged(smooth(), 42)) == 1
    assert orientation_of(encoded(smooth())[:30] + b"Exif\0\0") == 1
    assert not is_plain(tagged(smooth(), 6), (48, 64)) and is_plain(tagged(smooth(), 1), (48, 64))
    data = tagged(smooth(), 6)
    assert len(untagged(data)) < len(data) and untagged(encoded(smooth())) == encoded(smooth())


def test_a_size_that_the_tag_explains_says_so(tmp_path):
    section = sets.coco(tmp_path)
    (tmp_path / "images" / "a.jpg").write_bytes(tagged(smooth(sets.SIZE), 6))
    with pytest.raises(UserError, match=r"12x16.*16x12.*EXIF orientation is 6.*orientation='stored'"):
        source(**section)[0]
    assert source(**section, orientation="stored")[0].image.shape[:2] == sets.SIZE
    with pytest.raises(UserError, match="orientation='upright' is neither"):
        source(**section, orientation="upright")
    assert source(**section).fingerprint != source(**section, orientation="stored").fingerprint


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_masks_keep_their_ids_at_any_depth(tmp_path, depth):
    ids = np.arange(16).reshape(2, 8) % min(2**depth, 256)
    bits = (ids[..., None] >> np.arange(depth)[::-1] & 1).astype(np.uint8)
    rows = [np.packbits(row).tobytes() for row in bits.reshape(2, -1)]
    for color in (0, 3)[: 2 if depth <= 8 else 1]:
        palette = [(b"PLTE", bytes(range(48)) * (16 if depth == 8 else 1))] if color == 3 else []
        if palette:
            palette = [(b"PLTE", palette[0][1][: 3 * 2**depth])]
        file = tmp_path / f"{depth}-{color}.png"
        file.write_bytes(png(depth, color, rows, ids.shape, *palette))
        np.testing.assert_array_equal(read_mask(file), ids)


def test_a_gray_mask_saved_as_color_is_read_and_colors_are_not():
    gray = np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3, 1), 3, -1)
    np.testing.assert_array_equal(stored_ids(encoded(gray, "PNG"), "a"), gray[..., 0])
    gray[0, 0] = (1, 2, 3)
    with pytest.raises(UserError, match="a: masks need one channel"):
        stored_ids(encoded(gray, "PNG"), "a")


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("top, bits", [(255, 8), (900, 10), (4095, 12), (65535, 16)])
def test_16_bit_pictures_use_the_bits_that_the_set_has(tmp_path, color, top, bits):
    ramp = np.linspace(0, top, 64).astype(np.uint16)[None].repeat(4, 0)
    values = np.stack([ramp] * 3, -1) if color else ramp
    rows = [row.astype(">u2").tobytes() for row in values]
    dark = [(row // 8).astype(">u2").tobytes() for row in values]
    for name, content in (("a", rows), ("b", dark)):
        (tmp_path / f"{name}.png").write_bytes(png(16, 2 if color else 0, content, ramp.shape))
    photos = source("photos", root=str(tmp_path), name=f"{tmp_path.name}")
    if bits < 16:
        with pytest.warns(Notice, match=rf"end at {top} are read as {bits} bits"):
            bright, dim = photos[0].image, photos[1].image
    else:
        bright, dim = photos[0].image, photos[1].image
    np.testing.assert_array_equal(bright[..., 0], ramp >> (bits - 8))
    np.testing.assert_array_equal(dim[..., 1], ramp // 8 >> (bits - 8))  # one scale for the set
    if bits < 16:
        np.testing.assert_array_equal(decode_picture(photos.encoded(0), "a"), bright)


def test_a_header_beyond_the_cap_costs_no_memory(tmp_path, monkeypatch):
    huge = png(1, 0, [b"\0"], (65000, 65000))
    jpeg = bytearray(encoded(smooth()))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65000, 65000)
    for read in (decode_picture, picture_size, stored_ids):
        for data in (huge, bytes(jpeg)):
            with pytest.raises(UserError, match=r"^a: too large.*268,435,456 pixels.*MUST_MAX_PIXELS"):
                read(data, "a")
    wide = encoded(np.zeros((100, 9000, 3), np.uint8), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own limit does not get in the way
    assert decode_picture(wide, "a").shape == (100, 9000, 3)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100_000)
    (tmp_path / "a.png").write_bytes(wide)
    with pytest.raises(UserError, match=r"a.png: too large, 9000x100 px"):
        source("photos", root=str(tmp_path))[0]


def test_metadata_that_pillow_refuses(monkeypatch):
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 1000)
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "x" * 5000, zip=True)
    profile = b"icc\0\0" + zlib.compress(bytes(9000))
    for data in (
        encoded(smooth(), "PNG", pnginfo=info),
        png(8, 2, [bytes(48)] * 4, (4, 16), (b"iCCP", profile)),
    ):
        with pytest.raises(ValueError):
            Image.open(io.BytesIO(data)).load()
        assert decode_picture(data, "a").ndim == 3
        is_plain(data, (4, 16))


def test_what_is_no_regular_file_is_refused_by_name_and_not_opened(tmp_path, monkeypatch):
    sets.picture(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"c.jpg: leads to /dev/zero, outside of .*MUST_OUTSIDE=1"):
        source("photos", root=str(tmp_path))
    monkeypatch.setenv("MUST_OUTSIDE", "1")
    (tmp_path / "d.jpg").symlink_to("nowhere")
    photos = source("photos", root=str(tmp_path))
    assert photos.fingerprint and len(photos) == 4
    for index, says in ((1, "b.jpg: not a regular file"), (2, "c.jpg: not a regular file"), (3, "d.jpg: No such file")):
        with pytest.raises(UserError, match=says):
            photos[index]


def test_frames_of_a_set_share_their_significant_bits(tmp_path):
    for clip, top in (("a", 4095), ("b", 400)):
        for n in range(3):
            ramp = np.linspace(0, top, 64).astype(np.uint16)[None].repeat(4, 0)
            file = tmp_path / clip / f"{n}.png"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(png(16, 0, [row.astype(">u2").tobytes() for row in ramp], ramp.shape))
    clips = source("frame_folders", root=str(tmp_path), list="")
    with pytest.warns(Notice, match="end at 4095 are read as 12 bits"):
        frame = clips[0].image[np.array([1])][0]
    assert frame.max() == 255 and clips[1].image[np.array([0])].max() == 400 >> 4
    np.testing.assert_array_equal(decode_picture(clips[0].image.encoded(1), "a"), frame)
