"""Lists, tables, xml and names from other systems and encodings mean what they mean there."""

import json
import os
import unicodedata

import numpy as np
import pytest

from must.core.notices import Notice
from must.core.types import UserError
from must.data import splits
from must.data.sources import source
from must.readers.files import read_json, read_lines, read_rows, read_text
from tests.support import clip_sets
from tests.support import folder_sets as sets


def pictures(root, *names):
    for n, name in enumerate(names):
        sets.picture(root / name, seed=n)
    return str(root)


def classes_of(data):
    """{key: class} of every example."""
    names = data.classes["classification"]
    ids = [int(data.labels(i)["classification"]["ids"][0]) for i in range(len(data))]
    return {id.partition("/")[2]: names[number] for id, number in zip(data.ids, ids, strict=True)}


EXPECTED = {"a": "cat", "b": "dog", "c": "dog"}


@pytest.mark.parametrize(
    "table",
    [
        "a.jpg,cat\nb.jpg,dog\nc.jpg,dog\n",
        "picture,class\na.jpg,cat\nb.jpg,dog\nc.jpg,dog\n",
        "picture;class\r\na.jpg;cat\r\nb.jpg;dog\r\nc.jpg;dog\r\n",
        "sep=;\na.jpg;cat\nb.jpg;dog\nc.jpg;dog\n",
        "a\tcat\nb\tdog\nc\tdog\n",
        "a.jpg cat\nb.jpg dog\nc.jpg dog\n",
        "a.jpg, cat \n\nb.jpg , dog\nc.jpg,dog\n\n",
        '"a.jpg","cat"\n"b.jpg","dog"\n"c.jpg","dog"\n',
        "number,file,label\n1,a.jpg,cat\n2,b.jpg,dog\n3,c.jpg,dog\n",
        "file,width,label\na.jpg,16,cat\nb.jpg,16,dog\nc.jpg,16,dog\n",
        "image,cat,dog\na.jpg,1,0\nb.jpg,0,1\nc.jpg,0,1\n",
        "image;cat;dog;emu\na;1.0;0.0;0.0\nb;0.0;1.0;0.0\nc;0;1;0\n",
        ".\\a.jpg,cat\n./b.jpg,dog\nc.JPG,dog\n",
        "all/a.jpg,cat\nall\\b.jpg,dog\n'c.jpg',dog\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_table_however_it_is_written(tmp_path, table, encoding):
    root = pictures(tmp_path / "all", "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "all" / "labels.csv").write_bytes(table.encode(encoding))
    data = source("image_csv", root=root, table="labels.csv")
    assert classes_of(data) == EXPECTED
    assert data.classes["classification"] == (("cat", "dog", "emu") if "emu" in table else ("cat", "dog"))


@pytest.mark.parametrize(
    "table, says",
    [
        ("gone.jpg,cat\na.jpg,dog\n", "line 1: gone.jpg is not in"),
        ("image,cat,dog\na.jpg,1,1\n", "line 2: 2 of the 2 columns .* rename the one that holds the class to 'class'"),
        ("image,cat,dog\na.jpg,0,0\n", "line 2: 0 of the 2 columns"),
        ("image,class\n", "names no pictures"),
        ("a.jpg,cat\na.jpg,dog\n", "line 2: a.jpg is listed twice"),
        ("a.jpg,\n", "line 1: expected a picture and its class"),
        ("", "empty file"),
    ],
)
def test_tables_that_cannot_be_meant(tmp_path, table, says):
    root = pictures(tmp_path / "all", "a.jpg")
    (tmp_path / "all" / "labels.csv").write_text(table)
    with pytest.raises(UserError, match=rf"labels.csv: {says}"):
        source("image_csv", root=root, table="labels.csv")


def test_a_column_that_is_only_guessed_to_be_the_class_is_told(tmp_path):
    (tmp_path / "table.csv").write_text("image,split,breed\na.jpg,val,pug\nb.jpg,val,collie\n")
    root = pictures(tmp_path, "a.jpg", "b.jpg")
    with pytest.warns(Notice, match="column 'split' of 3 is read as the class"):
        assert source("image_csv", root=root, table="table.csv").classes["classification"] == ("val",)


def test_a_class_column_of_0_and_1_is_not_one_hot(tmp_path):
    root = pictures(tmp_path / "all", "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "all" / "t.csv").write_text("image,label,fold\na,1,0\nb,0,1\nc,0,1\n")
    assert classes_of(source("image_csv", root=root, table="t.csv")) == {"a": "1", "b": "0", "c": "0"}


def test_text_in_an_encoding_of_the_past_is_read_and_told(tmp_path):
    file = tmp_path / "list.txt"
    file.write_bytes("Käse\r\nSüß\r\n".encode("cp1252"))
    with pytest.warns(Notice, match="list.txt: not UTF-8, read as cp1252"):
        assert read_lines(file) == ["Käse", "Süß"]
    file.write_bytes(b"one\rtwo\n\n three \xe2\x80\xa8x\n")  # a line separator is no end of line
    assert read_lines(file) == ["one", "two", "three \u2028x"]
    file.write_bytes(b"PK\x80\0")
    with pytest.raises(UserError, match="list.txt: not text"):
        read_text(file)
    file.write_bytes("\ufeff{}".encode())
    assert read_json(file) == {}
    file.write_text("a b\nc d\n")
    assert read_rows(file) == {1: ["a", "b"], 2: ["c", "d"]}


COMPOSED, APART = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize("there, listed", [(COMPOSED, APART), (APART, COMPOSED)])
def test_normal_forms_of_names(tmp_path, there, listed):
    root = pictures(tmp_path / "all", f"{there}/a.jpg", "tea/b.jpg")
    (tmp_path / "all" / "ids.txt").write_text(f"{listed}/a.jpg\n")
    assert len(source("photos", root=root, ids="ids.txt")) == 1
    data = source("image_folder", root=root, images=".", classes=["tea", listed])
    assert data.classes["classification"] == ("tea", COMPOSED) and len(data) == 2
    assert source("image_folder", root=root, images=".").classes == {"classification": (COMPOSED, "tea")}
    content = {
        "images": [{"id": 1, "file_name": f"{listed}/a.JPG"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [],
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    data = source("coco", root=str(tmp_path), images="all", annotations="labels.json")
    assert data[0].image.shape[:2] == sets.SIZE


def test_backslashes_mean_folders_unless_they_are_in_the_name(tmp_path):
    root = pictures(tmp_path / "all", "sub/a.jpg", "odd\\name.jpg")
    (tmp_path / "all" / "ids.txt").write_text("sub\\a.jpg\nodd\\name.jpg\n")
    assert [id.partition("/")[2] for id in source("photos", root=root, ids="ids.txt").ids] == ["sub/a", "odd\\name"]
    section = clip_sets.frame_folders(tmp_path / "clips", lines="train\\a\\0\t0\ntrain/b/0,1\n")
    assert source(**section).ids == ["clips-train/train/a/0", "clips-train/train/b/0"]


def test_names_that_no_line_of_text_can_hold(tmp_path):
    root = pictures(tmp_path / "all", "a\nb.jpg")
    with open(os.fsencode(tmp_path / "all") + b"/caf\xe9.jpg", "wb") as file:
        file.write((tmp_path / "all" / "a\nb.jpg").read_bytes())
    data = source("photos", root=root, name="p")
    assert data.ids == ["p/a%0Ab", "p/café"] and data[1].image.shape[:2] == sets.SIZE
    splits.write_list(str(tmp_path / "list.txt"), data.ids)
    assert splits.read_list(str(tmp_path / "list.txt")) == data.ids
    (tmp_path / "all" / "ids.txt").write_bytes("café.jpg\n".encode("latin-1"))
    assert source("photos", root=root, name="p", ids="ids.txt").ids == ["p/café"]
    (tmp_path / "all" / "a\nb.jpg").write_bytes(b"nothing")
    with pytest.raises(UserError) as raised:
        data[0]
    assert str(raised.value).endswith("a\\x0ab.jpg: not a picture")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "GBK", "Big5", "Shift_JIS", "ISO-8859-1", "windows-1252"])
@pytest.mark.parametrize("declared", [True, False])
def test_xml_in_its_declared_encoding(tmp_path, encoding, declared):
    name = "Käse" if encoding[0] in "Iw" else "貓" if encoding == "Big5" else "猫"
    section = {**sets.voc(tmp_path, name=name), "classes": None}
    file = tmp_path / "Annotations" / "a.xml"
    head = f'\n<?xml version="1.0" encoding="{encoding}"?>' if declared else ""
    text = head.strip() + file.read_text()
    if not declared and encoding not in ("utf-8", "utf-16", "ISO-8859-1", "windows-1252"):
        return  # nothing says what it is
    file.write_bytes(text.encode(encoding))
    assert source(**section).classes["detection"] == (name,)


def test_xml_in_an_encoding_that_nobody_knows_is_read_as_text(tmp_path):
    section = {**sets.voc(tmp_path), "classes": None}
    file = tmp_path / "Annotations" / "a.xml"
    text = file.read_text()
    file.write_text('<?xml version="1.0" encoding="klingon"?>' + text)
    assert source(**section).classes["detection"] == ("cat",)
    file.write_text('<?xml version="1.0" encoding="klingon"?><annotation>')
    with pytest.raises(UserError, match="a.xml: invalid xml"):
        source(**section)


def test_each_picture_once_whatever_links_lead_to_it(tmp_path, monkeypatch):
    root = pictures(tmp_path / "all", "sub/a.jpg", "sub/b.jpg")
    (tmp_path / "all" / "again").symlink_to(tmp_path / "all")
    (tmp_path / "all" / "sub" / "up").symlink_to("..")
    (tmp_path / "all" / "alias").symlink_to("sub")
    (tmp_path / "all" / "one.jpg").symlink_to("sub/a.jpg")  # links to files are pictures of their own
    with pytest.warns(Notice, match="links to folders that have already been read are skipped: 3"):
        data = source("photos", root=root, name="p")
    assert data.ids == ["p/one", "p/sub/a", "p/sub/b"]
    pictures(tmp_path / "elsewhere", "c.jpg")
    (tmp_path / "all" / "outside").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"outside: leads to .*elsewhere, outside of .*all; MUST_OUTSIDE=1"):
        source("photos", root=root, name="p")
    monkeypatch.setenv("MUST_OUTSIDE", "1")
    assert "p/outside/c" in source("photos", root=root, name="p").ids


def test_links_may_lead_anywhere_below_the_root_and_the_folders_that_are_named(tmp_path):
    pictures(tmp_path / "stock", "a.jpg", "b.jpg")
    for name in ("train", "val"):
        (tmp_path / "set" / name).mkdir(parents=True)
    (tmp_path / "set" / "all").symlink_to(tmp_path / "stock")  # as the user names it
    assert len(source("photos", root=str(tmp_path / "set"), images="all")) == 2
    pictures(tmp_path / "set" / "own", "c.jpg")
    (tmp_path / "set" / "train" / "c.jpg").symlink_to("../own/c.jpg")
    assert source("photos", root=str(tmp_path / "set"), images="train", name="p").ids == ["p/c"]
    (tmp_path / "set" / "val" / "a.jpg").symlink_to("../all/a.jpg")
    with pytest.raises(UserError, match=r"val/a.jpg: leads to .*stock/a.jpg, outside"):
        source("photos", root=str(tmp_path / "set"), images="val")


def test_files_that_are_passed_over_are_counted_by_extension(tmp_path):
    root = pictures(tmp_path / "all", "a.jpg")
    for name in ("b.HEIC", "c.heic", "d.gif", "readme"):
        (tmp_path / "all" / name).write_bytes(b"")
    with pytest.warns(Notice, match=r"skipped: 1 without extension, 1 .gif, 2 .heic"):
        source("photos", root=root)
    (tmp_path / "all" / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"all: no pictures, only 1 without extension, 1 .gif, 2 .heic"):
        source("photos", root=root)


def test_the_labels_of_a_table_do_not_depend_on_how_it_is_written(tmp_path):
    root = pictures(tmp_path / "all", "a.jpg", "b.jpg")
    made = []
    for text in ("a.jpg,cat\nb.jpg,dog\n", "x;y\r\na.jpg;cat\r\nb.jpg;dog\r\n"):
        (tmp_path / "all" / "labels.csv").write_text(text, newline="")
        made.append(source("image_csv", root=root, table="labels.csv"))
    for one, other in zip(made[0], made[1], strict=False):
        np.testing.assert_array_equal(one.labels["classification"]["ids"], other.labels["classification"]["ids"])
