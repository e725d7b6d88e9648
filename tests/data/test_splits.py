"""Who may learn from what: parts and complements, exclusive annotations, list files, hidden labels."""

import numpy as np
import pytest

from must.core.types import UserError
from must.data import splits
from must.data.sources import source
from tests.support.memory_source import Memory

IDS = [f"voc07/{i}" for i in range(40)] + [f"voc12/{i}" for i in range(120)]


@pytest.mark.parametrize("share", [0.5, 0.25, 0.125, 37])
def test_a_part_and_its_complement(share):
    chosen, rest = splits.part(IDS, share, seed=3)
    assert not set(chosen) & set(rest) and sorted(chosen + rest) == sorted(IDS)
    assert len(chosen) == (share if share > 1 else int(share * 160))
    old = sum(id.startswith("voc07") for id in chosen)
    assert abs(old - len(chosen) / 4) <= 1  # every source gives its share
    assert chosen == [id for id in IDS if id in set(chosen)]
    assert splits.part(IDS, share, seed=3)[0] == chosen != splits.part(IDS, share, seed=4)[0]


def test_smaller_parts_lie_inside_larger_ones():
    parts = [set(splits.part(IDS, share, seed=0)[0]) for share in (0.125, 0.25, 0.5)]
    assert parts[0] < parts[1] < parts[2]


@pytest.mark.parametrize("share", [0, 0.001, 160, 500])
def test_a_part_leaves_two_sides(share):
    with pytest.raises(UserError, match="one side empty"):
        splits.part(IDS, share, seed=0)


def test_exclusive_annotations_are_exclusive_and_even():
    boxes, masks = IDS, IDS[28:]  # 28 images have boxes only
    dealt = splits.exclusive({"boxes": boxes, "masks": masks}, seed=0)
    assert not set(dealt["boxes"]) & set(dealt["masks"])
    assert set(dealt["boxes"]) | set(dealt["masks"]) == set(IDS)
    assert set(IDS[:28]) <= set(dealt["boxes"])
    assert abs(len(dealt["boxes"]) - len(dealt["masks"])) <= 1
    assert dealt != splits.exclusive({"boxes": boxes, "masks": masks}, seed=1)
    with pytest.raises(UserError, match="no image is left for b"):
        splits.exclusive({"a": IDS[:1], "b": []}, seed=0)


def test_list_files(tmp_path):
    path = str(tmp_path / "lists" / "half.txt")
    splits.write_list(path, IDS[:5])
    assert splits.read_list(path) == IDS[:5]
    for text, message in (("a\nb\na\n", "a is listed twice"), ("\n", "empty file")):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(UserError, match=message):
            splits.read_list(str(tmp_path / "bad.txt"))
    with pytest.raises(UserError, match="missing.txt: No such file"):
        splits.read_list(str(tmp_path / "missing.txt"))
    splits.check_no_overlap({"a": IDS[:5], "b": IDS[5:]})
    with pytest.raises(UserError, match="lists a and b both contain voc07/4"):
        splits.check_no_overlap({"a": IDS[:5], "b": IDS[4:]})


def _scenes(count=6):
    return source("scenes", count=count, size=16, labels=["classification", "segmentation"])


def test_listed_and_without(tmp_path):
    scenes = _scenes()
    chosen = [scenes.ids[4], scenes.ids[1]]
    splits.write_list(str(tmp_path / "l.txt"), chosen)
    listed = source("listed", source={"kind": "scenes", "count": 6, "size": 16}, file=str(tmp_path / "l.txt"))
    assert listed.ids == chosen
    np.testing.assert_array_equal(listed[0].image, scenes[4].image)
    assert listed.fingerprint != splits.Listed(scenes, ids=chosen[::-1]).fingerprint
    with pytest.raises(UserError, match="nobody is not in"):
        splits.Listed(scenes, ids=["nobody"])
    rest = splits.Without(scenes, [listed])
    assert rest.ids == [id for id in scenes.ids if id not in chosen] and rest[0].id == rest.ids[0]


def test_without_compares_whole_ids_where_last_parts_repeat():
    def ids(keys, others, name="all"):
        inner = Memory(name, [{}] * len(keys), keys=[f"{name}/{key}" for key in keys])
        found = [Memory("o", [{}] * len(keys), keys=[f"o/{key}" for key in keys]) for keys in others]
        return [id.removeprefix(f"{name}/") for id in splits.Without(inner, found).ids]

    assert ids(["cat/1", "dog/1", "cat/2"], [["cat/1"]]) == ["dog/1", "cat/2"]
    assert ids(["cat/1", "dog/1", "cat/2"], [["cat/1", "dog/9"], ["emu/2"]]) == ["dog/1", "cat/2"]
    assert ids(["cat/1", "dog/1"], [["val/cat/1"]]) == ["dog/1"]  # the shorter ends the longer
    assert ids(["a/cat/1", "a/dog/1"], [["cat/1"]]) == ["a/dog/1"]
    assert ids(["train/1", "train/2"], [["val/1"]]) == ["train/2"]  # last parts that tell pictures apart
    left = splits.Without(Memory("m", [{}] * 3), ids=["m/1"])
    assert left.ids == ["m/0", "m/2"] and left[1].id == "m/2"
    with pytest.raises(UserError, match="m/7 is not in m"):
        splits.Without(Memory("m", [{}] * 3), ids=["m/7"])


def test_hidden_annotations_do_not_reach_the_reader():
    scenes = _scenes()
    shown = splits.Annotated(scenes, {"segmentation": scenes.ids[:2]})
    assert [sorted(shown[i].labels) for i in range(4)] == [["segmentation"], ["segmentation"], [], []]
    assert [sorted(shown.labels(i)) for i in range(4)] == [["segmentation"], ["segmentation"], [], []]
    assert set(shown.classes) == {"segmentation"} and sorted(scenes[3].labels) == ["classification", "segmentation"]
    assert shown.fingerprint != splits.Annotated(scenes, {"segmentation": scenes.ids[:3]}).fingerprint


def test_masks_of_sbd(tmp_path):
    from PIL import Image
    from scipy.io import savemat

    (tmp_path / "img").mkdir()
    (tmp_path / "cls").mkdir()
    mask = np.arange(20, dtype=np.uint8).reshape(4, 5) % 3
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "img" / "a.png")
    savemat(tmp_path / "cls" / "a.mat", {"GTcls": {"Segmentation": mask, "Boundaries": 0}})
    found = source(
        "mask_png", root=str(tmp_path), images="img", masks="cls", mask_suffix=".mat", classes=["sky", "car", "cow"]
    )
    np.testing.assert_array_equal(found[0].labels["segmentation"]["ids"][..., 0], mask)
    (tmp_path / "cls" / "a.mat").write_bytes(b"nothing")
    with pytest.raises(UserError, match="a.mat: not an SBD mask"):
        found[0]
