"""Sets that share an example are refused, by id and by what is in the picture."""

import shutil

import pytest

from must.core.types import UserError
from must.data.disjoint import check_disjoint
from must.readers.folders import ImageCsv, Photos
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
