"""Sources made of sources keep ids, labels and pictures, and say when parts do not fit together."""

import pickle

import numpy as np
import pytest

from must.core import labels as forms
from must.core.types import UserError
from must.data.combine import Aliased, Cached, Subset, Weighted, encoded_of
from must.data.merge import Concat, Join, Overlay
from must.data.sources import source
from must.readers.pictures import Encoded, undecoded
from tests.support import folder_sets as sets
from tests.support.memory_source import Memory

CLASSES = {"kind": ("a", "b", "c")}


def _numbered(name, count, classes=None):
    return Memory(name, [{"kind": forms.classification(i % 3)} for i in range(count)], classes or CLASSES)


def _same(a, b):
    assert a.id == b.id and a.labels.keys() == b.labels.keys()
    np.testing.assert_array_equal(a.image, b.image)


def test_concat_is_the_union_in_order():
    parts = [_numbered("x", 3), _numbered("y", 1), _numbered("z", 2)]
    data = Concat(parts, name="all")
    assert data.ids == [*parts[0].ids, *parts[1].ids, *parts[2].ids] and len(data) == 6
    for i in range(6):
        assert data[i].id == data.ids[i]
        assert data.labels(i)["kind"]["ids"] == data[i].labels["kind"]["ids"]
    _same(data[-1], parts[2][1])
    with pytest.raises(IndexError):
        data[6]
    assert data.fingerprint != Concat(parts[::-1]).fingerprint
    assert Concat({"one": parts[0], "two": parts[1]}).ids == Concat(parts[:2]).ids


def test_concat_merges_tasks_and_refuses_what_does_not_fit():
    boxes = Memory("b", [{}], {"boxes": ("x",)})
    assert Concat([_numbered("x", 1), boxes]).classes == {**CLASSES, "boxes": ("x",)}
    with pytest.raises(UserError, match="'x/0' occurs twice"):
        Concat([_numbered("x", 1), _numbered("x", 2)])
    with pytest.raises(UserError, match="y: kind: 'd' is not one of the 3 classes of x"):
        Concat([_numbered("x", 1), _numbered("y", 1, {"kind": ("a", "d")})])
    with pytest.raises(UserError, match="at least one"):
        Concat([])


def test_subsets_are_nested_seeded_and_ordered():
    data = _numbered("x", 40)
    ten, thirty = Subset(data, count=10, seed=3), Subset(data, fraction=0.75, seed=3)
    assert len(ten) == 10 and len(thirty) == 30 and set(ten.ids) < set(thirty.ids)
    assert ten.ids == [id for id in data.ids if id in set(ten.ids)]
    assert ten.ids == Subset(data, count=10, seed=3).ids != Subset(data, count=10, seed=4).ids
    assert ten.fingerprint != Subset(data, count=10, seed=4).fingerprint
    for i in range(10):
        assert ten[i].id == ten.ids[i]


@pytest.mark.parametrize(
    "arguments", [{}, {"count": 2, "fraction": 0.5}, {"count": 0}, {"count": 41}, {"fraction": 1.5}]
)
def test_bad_subsets(arguments):
    with pytest.raises(UserError, match="subset of x"):
        Subset(_numbered("x", 40), **arguments)


def test_overlay_prefers_ground_truth_per_task():
    keys = ["s/0", "s/1", "s/2"]
    pseudo = [{"kind": forms.classification(0), "mood": forms.classification(0)} for _ in keys]
    truth = [{"kind": forms.classification(1)}, {}, {"kind": forms.classification(2)}]
    records = Memory("records", pseudo, {**CLASSES, "mood": ("x", "y")}, keys)
    labeled = Memory("s", truth, CLASSES, ["s/2", "s/1", "s/9"])
    data = Overlay(records, [labeled])
    assert data.ids == ["s/0", "s/1", "s/2", "s/9"]
    assert [int(data[i].labels["kind"]["ids"][0]) for i in range(4)] == [0, 0, 1, 2]
    assert [sorted(data.labels(i)) for i in range(4)] == [["kind", "mood"]] * 3 + [["kind"]]
    np.testing.assert_array_equal(data[2].image, records[2].image)
    with pytest.raises(UserError, match="records: kind: .c. is not one of the 3 classes of s"):
        Overlay(records, [Memory("s", truth, {"kind": ("a", "b", "d")})])


def test_overlay_decodes_the_picture_once():
    records, labeled = _numbered("x", 4), _numbered("x", 4)
    Overlay(records, {"truth": labeled})[1]
    assert (records.reads, labeled.reads) == (1, 0)


def test_cached_reads_once_within_the_limit():
    inner = _numbered("x", 6)
    size = inner[0].image.nbytes + 6
    data = Cached(inner, limit_mib=2.5 * size / 2**20)
    inner.reads = 0
    for _ in range(3):
        for i in range(6):
            _same(data[i], inner[i])
    assert inner.reads == 18 + 2 + 3 * 4  # the comparisons, two kept examples, four that never fit
    with pytest.raises(ValueError, match="read-only"):
        data[0].image[0] = 0
    again = pickle.loads(pickle.dumps(data))
    for i in range(6):
        _same(again[i], data[i])
    assert again.fingerprint == inner.fingerprint


def test_what_a_picture_is_decoded_from_does_not_depend_on_what_is_cached(tmp_path):
    sets.picture(tmp_path / "a.jpg")
    photos = source("photos", root=str(tmp_path))
    for limit in (0.0, 1.0):
        data = Cached(photos, limit_mib=limit)
        for _ in range(2):
            np.testing.assert_array_equal(data[0].image, photos[0].image)
            assert isinstance(data[0].image, np.ndarray)
            with undecoded():
                assert isinstance(data[0].image, Encoded)
        assert (data[0] is data[0]) == (limit > 0)


def test_join_carries_the_labels_of_every_folder(tmp_path):
    depth, normals = sets.depth_png(tmp_path), sets.normals_png(tmp_path)
    sets.picture(tmp_path / "rgb" / "b.jpg")
    depth["partial"] = True
    (tmp_path / "ids.txt").write_text("a\n")
    data = source("join", name="kitchen", sources=[{**normals, "ids": "ids.txt"}, depth])
    assert data.ids == ["kitchen/a", "kitchen/b"]
    assert [sorted(data[i].labels) for i in range(2)] == [["depth", "normals"], []]
    assert sorted(data.labels(0)) == ["depth", "normals"]
    assert data.encoded(1) == (tmp_path / "rgb" / "b.jpg").read_bytes()
    pickle.loads(pickle.dumps(data))[0]


def test_join_refuses_one_task_twice_and_other_sources(tmp_path):
    depth = sets.depth_png(tmp_path)
    data = source("join", sources=[depth, depth])
    with pytest.raises(UserError, match="/a: task 'depth'"):
        data[0]
    mask = sets.mask_png(tmp_path / "m")
    with pytest.raises(UserError, match="'segmentation' is in two"):
        source("join", sources=[mask, mask])
    with pytest.raises(UserError, match="x: only sources"):
        Join([_numbered("x", 1)])


def test_encoded_bytes_pass_through_and_are_none_without_a_file(tmp_path):
    section = sets.image_folder(tmp_path)
    inner = source(**section)
    data = Cached(Subset(Concat([inner]), count=2))
    assert data.encoded(1) == inner.encoded(inner.ids.index(data.ids[1]))
    assert encoded_of(Concat([_numbered("x", 1)]), 0) is None
    assert Overlay(inner, [inner]).encoded(0) == inner.encoded(0)


def test_nested_sections_build_nested_sources(tmp_path):
    section = sets.image_folder(tmp_path)
    first, second = {**section, "name": "one"}, {**section, "name": "two"}
    data = source("subset", count=4, source={"kind": "concat", "sources": {"first": first, "second": second}})
    assert len(data) == 4 and {id.split("/")[0] for id in data.ids} == {"one", "two"}


def test_weights_travel_from_the_source_to_the_batch():
    from must.data.combine import Repeated, Weighted
    from must.data.pipeline import Encoder
    from must.scenes.still import Scenes
    from must.tasks.depth import Depth

    scenes = Scenes(3, labels=("depth",))
    heavy = Repeated(Weighted(scenes, {"depth": {scenes.ids[1]: 8.0}, "normals": {scenes.ids[2]: 5.0}}), {})
    encoder = Encoder({"depth": Depth()}, (64, 64))
    rows = [encoder(heavy[i], i, None) for i in range(3)]
    assert [float(row.weights["depth"]) for row in rows] == [1.0, 8.0, 1.0]
    absent = encoder(heavy[2]._replace(labels={}, weights={"depth": 5.0}), 0, None)
    assert absent.weights["depth"] == 0  # a weight makes no label
    assert heavy.fingerprint != Repeated(scenes, {}).fingerprint
    with pytest.raises(UserError, match="weight -1"):
        Weighted(scenes, {"depth": {scenes.ids[0]: -1.0}})
    with pytest.raises(UserError, match="has no example 'nobody', which has a weight for depth"):
        Weighted(scenes, {"depth": {scenes.ids[0]: 1.0, "nobody": 1.0}})


def test_repeated_examples_are_met_more_often_and_keep_their_content(tmp_path):
    from must.data.combine import Repeated
    from must.scenes.still import Scenes

    scenes = Scenes(5)
    often = Repeated(scenes, {scenes.ids[0]: 3, scenes.ids[1]: 3, scenes.ids[4]: 0})
    assert [often.ids.count(id) for id in scenes.ids] == [3, 3, 1, 1, 0]
    assert all(often[i].id == id for i, id in enumerate(often.ids))
    assert often.fingerprint != Repeated(scenes, {scenes.ids[0]: 3}).fingerprint
    with pytest.raises(UserError, match="-1 times"):
        Repeated(scenes, {scenes.ids[0]: -1})


@pytest.mark.parametrize(
    "make, own", [(sets.voc, "detection"), (sets.coco, "detection"), (sets.mask_png, "segmentation")]
)
def test_every_kind_takes_the_name_of_its_labels(tmp_path, make, own):
    """Two sets of boxes teach two tasks, and none of the two is called detection."""
    section = {**make(tmp_path), **({"tasks": ("detection",)} if own == "detection" else {})}
    plain, named = source(**section), source(**section, task="mine")
    assert set(plain.classes) == {own} and named.classes == {"mine": plain.classes[own]}
    assert set(named.labels(0)) == set(named[0].labels) == {"mine"} and named.ids == plain.ids
    for key, value in plain[0].labels[own].items():
        np.testing.assert_array_equal(named[0].labels["mine"][key], value)
    assert named.fingerprint != plain.fingerprint


def test_labels_of_a_kind_without_the_argument_move_to_their_new_name():
    """None is left under the old one, which another task may have; weights move along."""
    plain = source(kind="scenes", count=3, labels=("detection",))
    named = source(kind="scenes", count=3, labels=("detection",), task="mine")
    assert named.classes == {"mine": plain.classes["detection"]}
    assert set(named.labels(1)) == set(named[1].labels) == {"mine"} and named.fingerprint != plain.fingerprint
    np.testing.assert_array_equal(named[1].labels["mine"]["boxes"], plain[1].labels["detection"]["boxes"])
    weighted = Weighted(plain, {"detection": {plain.ids[0]: 0.25}})
    assert Aliased(weighted, {"mine": "detection"}, keep=False)[0].weights == {"mine": 0.25}
    assert Aliased(weighted, {"mine": "detection"})[0].weights == {"mine": 0.25, "detection": 0.25}


def test_a_name_for_labels_of_several_tasks_is_refused():
    both = {"kind": "scenes", "count": 2, "labels": ("depth", "normals")}
    with pytest.raises(UserError, match="task='mine' names the labels of a source of one task.* depth, normals"):
        source(**both, task="mine")
    with pytest.raises(UserError, match="task='mine'.* has no labels"):
        source(kind="scenes", count=2, labels=(), task="mine")
    with pytest.raises(UserError, match="task=3: expected text"):
        source(**{**both, "labels": ("depth",)}, task=3)


def test_an_argument_that_a_kind_does_not_have_is_told_with_those_that_it_has():
    with pytest.raises(UserError, match="'scenes': no argument 'cuont'; did you mean count\\? it has count, seed"):
        source(kind="scenes", cuont=2)
    with pytest.raises(UserError, match="missing a required argument: 'root'"):
        source(kind="photos")
