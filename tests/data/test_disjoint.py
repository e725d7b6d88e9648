"""Sets that share an example are refused, by id and by what is in the picture."""

import io
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from must.core.notices import Notice
from must.core.types import UserError
from must.data.combine import Subset
from must.data.disjoint import _alike, appearance, check_disjoint, check_files, look_alikes, overlaps
from must.data.merge import Concat
from must.readers.folders import ImageCsv, Photos
from must.scenes.still import Scenes
from tests.support.clip_sets import Clips
from tests.support.folder_sets import picture
from tests.support.memory_source import Memory


def test_ids():
    a, b = Memory("a", [{}] * 3), Memory("b", [{}] * 3)
    check_disjoint({"training": a, "validation": b})
    with pytest.raises(UserError, match=r"the training and the test set share a/1"):
        check_disjoint({"training": a, "validation": b, "test": Memory("t", [{}], keys=["a/1"])})


def test_a_copied_file_is_the_same_picture_whatever_its_name(tmp_path):
    for i in range(3):
        picture(tmp_path / "train" / f"{i}.jpg", seed=i)
    picture(tmp_path / "val" / "x.jpg", seed=9)
    sets = lambda: {s: Photos(str(tmp_path / s)) for s in ("train", "val")}  # noqa: E731
    check_disjoint(sets(), by_content=True)
    shutil.copy(tmp_path / "train" / "1.jpg", tmp_path / "val" / "y.jpg")
    check_disjoint(sets())  # ids alone do not tell
    with pytest.raises(UserError, match="the same picture, train/1 and val/y"):
        check_disjoint(sets(), by_content=True)


def test_made_pictures_by_their_pixels():
    a, b = Memory("a", [{}], keys=["same"]), Memory("b", [{}], keys=["other"])
    check_disjoint({"a": a, "b": b}, by_content=True)
    b.ids, b.__class__ = (
        ["renamed"],
        type("Renamed", (Memory,), {"__getitem__": lambda self, i: a[i]._replace(id="renamed")}),
    )
    with pytest.raises(UserError, match="the same picture, same and renamed"):
        check_disjoint({"a": a, "b": b}, by_content=True)


def _table(root, text):
    for i in range(3):
        picture(root / "pool" / f"{i}.jpg", seed=i)
    (root / "truth.csv").write_text(text)
    return {"root": str(root), "table": "truth.csv", "images": "pool", "name": "pool"}


def test_a_table_names_the_classes_of_a_folder(tmp_path):
    source = ImageCsv(**_table(tmp_path, "file,label\n2.jpg,hat\n0.jpg,dress\n"))
    assert source.ids == ["pool/2", "pool/0"] and source.classes == {"classification": ("dress", "hat")}
    assert [int(source[i].labels["classification"]["ids"][0]) for i in range(2)] == [1, 0]
    assert set(source.ids) < set(Photos(str(tmp_path), images="pool", name="pool").ids)
    fixed = ImageCsv(**_table(tmp_path / "b", "file,label\n2.jpg,hat\n"), classes=["shoe", "hat"])
    assert int(fixed.labels(0)["classification"]["ids"][0]) == 1


@pytest.mark.parametrize(
    "text, says",
    [
        ("file,label\n7.jpg,hat\n", "line 2: 7.jpg is not in"),
        ("file,label\n1.jpg\n", "line 2: expected a picture and its class"),
        ("file,label\n1.jpg,hat\n1.jpg,dress\n", "line 3: 1.jpg is listed twice"),
        ("file,label\n1.jpg,cap\n", "'cap' is not one of the 1 classes"),
    ],
)
def test_tables_that_cannot_be_right(tmp_path, text, says):
    with pytest.raises(UserError, match=says):
        ImageCsv(**_table(tmp_path, text), classes=["hat"] if "cap" in text else None)


def _copies(image):
    """Copies of a picture as other people make them."""
    picture = Image.fromarray(image)
    small = picture.resize((picture.width * 2 // 3, picture.height // 2), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "jpeg", quality=30)
    noise = np.random.default_rng(0).normal(0, 6, image.shape)
    return {
        "rescaled and recompressed": np.asarray(Image.open(file)),
        "brighter": np.minimum(image * 1.15, 255).astype(np.uint8),
        "noisy": np.clip(image + noise, 0, 255).astype(np.uint8),
    }


def _bits(code, other):
    return (code ^ other).bit_count()


def test_copies_look_alike_and_other_pictures_do_not(data_pack):
    photos = Photos(str(data_pack / "unlabeled_photos"), images="images")
    images = [photos[i].image for i in range(0, len(photos), 4)]
    codes = [appearance(image) for image in images]
    others = [_bits(a, b) for i, a in enumerate(codes) for b in codes[:i]]
    assert min(others) > 6  # of 63, see `look_alikes`
    for name in _copies(images[0]):
        bits = [_bits(code, appearance(_copies(image)[name])) for code, image in zip(codes, images, strict=True)]
        assert np.mean(np.array(bits) <= 6) >= 0.97, name


def _smooth(seed, frames=1):
    """Pictures [frames, 48, 64, 3] of a few low frequencies, all of them unlike."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 255, (frames, 6, 8, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((64, 48), Image.Resampling.BICUBIC)) for one in low])


def _clip(frames):
    return [np.asarray(Image.fromarray(frame).resize((40, 30), Image.Resampling.BILINEAR)) for frame in frames]


def test_videos_look_alike_where_half_of_the_shorter_one_is_in_the_other():
    long, title, black = _smooth(1, 12), _smooth(2), np.zeros((5, 48, 64, 3), np.uint8)
    train = Clips("a", [np.concatenate([title, _smooth(3, 6)]), np.concatenate([black, title, long])], [0, 0], ("x",))
    part = np.stack([*_clip(long[4:8]), *_clip(_smooth(4, 2))])  # four of its six frames
    shares_title = np.concatenate([title, black, _smooth(5, 6)])
    test = Clips("b", [part, shares_title, np.concatenate([long[:2], _smooth(6, 5)])], [0] * 3, ("x",))
    sets = {"training": train, "test": test}
    assert look_alikes(sets) == [("training", "a/1", "test", "b/0", 4)]
    assert {one.other_id for one in look_alikes(sets, share=0.25)} == {"b/0", "b/2"}
    assert overlaps({"training": train, "test": Clips("b", [part], [0], ("x",))}) == []  # not one pixel is the same
    assert look_alikes({"training": train}) == look_alikes({}) == []


@pytest.mark.parametrize("bits", range(8))
def test_codes_are_found_up_to_six_bits_apart(bits):
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 1 << 63, 40).astype(np.uint64)
    flips = np.array([sum(1 << int(b) for b in rng.choice(63, bits, replace=False)) for _ in codes], np.uint64)
    first, second = _alike(np.concatenate([codes, codes ^ flips]), np.repeat([0, 1], 40))
    expected = list(zip(range(40), range(40, 80), strict=True)) if bits <= 6 else []
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == expected


def _photos(folder, numbers, name):
    folder.mkdir(exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}-{number}.png")
    return Photos(str(folder), name=name)


def test_copied_files_are_refused_and_a_few_doubles_counted(tmp_path):
    learned = _photos(tmp_path / "pool", range(300), "pool")
    apart = _photos(tmp_path / "apart", range(300, 420), "apart")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_files(learned, {"test": apart})
    one = _photos(tmp_path / "one", [*range(500, 619), 7], "one")
    with pytest.warns(Notice, match="1 of 120 pictures of the test set one are learned from too, such as one/one-7"):
        check_files(learned, {"test": one})
    two = _photos(tmp_path / "two", [*range(500, 618), 7, 8], "two")
    known = Subset(learned, count=300)  # through what sets are made of
    with pytest.raises(UserError, match="2 of 120 pictures of the test set two .* the same file as pool/pool-7; leave"):
        check_files(Concat([apart, known]), {"test": two})
    check_files(Subset(learned, count=5, seed=1), {"test": Scenes(4)})  # no files
