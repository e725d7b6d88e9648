"""Labeling alone: one pass, then thresholds, pages and files as often as one likes, and further tasks beside the
first."""

import copy
import json
import os

import numpy as np
import pytest

from must.core import files
from must.core.types import UserError
from must.experiment import acceptance
from must.readers.label_files import LabelFiles
from must.readers.records import Records
from must.recipes.label import RECIPE, tasks_of, teachers_of
from must.recipes.table import dry_run
from tests.experiments.label_kills import tree
from tests.support.configs import run, settings_of
from tests.support.given_teachers import ASKED, COUNTS, scenes

TASKS = ("classification", "detection", "depth")
FITTED = {"from_validation": True, "target_precision": 0.6, "negative_below": 0.1}


def config_of(names=("classification", "detection"), **changes):
    truth = {"validation": scenes("validation", TASKS), "test": scenes("test", TASKS)}
    config = {
        "recipe": "label",
        "title": "small scenes",
        "seeds": (0,),
        "workers": 1,
        "image": {"size": (64, 64)},
        "tasks": {name: {"kind": name} for name in names},
        "images": {"pool": scenes("pool")},
        "truth": dict.fromkeys(names, truth),
        "teachers": {"both": {"make": "tests.support.given_teachers:knowing", "tasks": tuple(names)}},
        "label": {"shards": 3, "batch_size": 8},
        "policies": dict.fromkeys(names, FITTED),
        "quality": {"enabled": True, "worst": 2},
        "gallery": {"enabled": True, "per_page": 12},
        "files": {"enabled": True, "images": True},
    }
    return copy.deepcopy({**config, **changes})


def test_beam_labels_by_the_command(tmp_path):
    """The pool and the held-out images, by two processes of Beam."""
    pytest.importorskip("apache_beam")
    from tests.pseudo_label.test_beam import TWO

    plain = config_of(quality={}, gallery={}, files={})
    run(plain, tmp_path / "ours", "label")
    run(plain, tmp_path / "beam", "label", beam=TWO)
    ours, beams = (tree(tmp_path / name / "pseudo_labels") for name in ("ours", "beam"))
    assert ours == beams and {"pool", "held_out"} == {name.split("/")[0] for name in ours}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run, whose pages and files were asked for afterwards; tests add to it."""
    directory = tmp_path_factory.mktemp("label")
    plain = config_of()
    for stage in ("quality", "gallery", "files"):
        plain[stage] = {**plain[stage], "enabled": False}
    run(plain, directory)
    assert not any((directory / stage).exists() for stage in ("quality", "gallery", "files"))
    for stage in ("quality", "gallery", "files"):
        run(plain, directory, stage)
    return directory


def _policy(workdir):
    return json.loads((workdir / "policy" / "policy.json").read_text())


def _records(workdir, name="pool"):
    return workdir / "pseudo_labels" / name / "1.0.0"


def test_parts_of_the_label_stage_share_a_workdir_and_the_command_goes_on(workdir, tmp_path):
    config = config_of()
    with files.lock(str(tmp_path / "lock")) as held:  # parts do not ask whether anything else runs
        assert held
        for index in (1, 0):
            run(config, tmp_path, "label", part=(index, 2))
            assert sorted(one.parent.name for one in tmp_path.rglob("done.json")) == [str(i) for i in range(index, 2)]
    assert not (tmp_path / "policy").exists()
    content = lambda top: {one.name: one.read_bytes() for one in _records(top).iterdir() if one.is_file()}  # noqa: E731
    assert content(tmp_path) == content(workdir)
    before = (tmp_path / "label" / "0" / "done.json").stat().st_mtime_ns
    run(config, tmp_path, "label")
    assert (tmp_path / "policy" / "policy.json").exists()
    assert (tmp_path / "label" / "0" / "done.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="config.label.batch_size"):
        run(config | {"label": {"shards": 3, "batch_size": 4}}, tmp_path, "label", part=(0, 2))


def test_what_was_accepted_is_told_by_task_set_and_class(workdir):
    found = json.loads((workdir / "policy" / "done.json").read_text())
    boxes = found["sets"]["detection"]
    (pool,) = set(boxes) - {"own validation"}
    assert boxes["own validation"]["images"] == 40
    assert 0 < boxes[pool]["accepted"] <= boxes[pool]["images"] == COUNTS["pool"]
    assert sum(row[0] for row in found["classes"]["detection"].values()) > 0
    text = acceptance.text(str(workdir), ["policy"])
    assert "own validation" in text and str(workdir / "quality" / "quality.html") in text


@pytest.mark.parametrize(
    "edited", [{"sets": {"depth": {"pool": {}}}}, {"sets": {"depth": 3}}, {"sets": []}, {"warnings": 5}]
)
def test_facts_that_somebody_has_edited_are_one_line(tmp_path, edited):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "done.json").write_text(json.dumps(edited))
    with pytest.raises(UserError, match=r"policy/done\.json: damaged or changed"):
        acceptance.text(str(tmp_path), ["policy"])


def test_labels_that_teach_nothing_are_named(tmp_path):
    nothing = {"positive": 1.0, "negative": 0.0}
    run(config_of(policies={"classification": {"positive": 0.0, "negative": 0.0}, "detection": nothing}), tmp_path)
    lines = json.loads((tmp_path / "policy" / "done.json").read_text())["warnings"]
    assert any(line.startswith("detection: no label is accepted") for line in lines), lines
    assert not any(line.startswith("classification: no label") for line in lines), lines


def test_everything_is_there_and_agrees(workdir):
    records = Records(_records(workdir))
    assert len(records) == COUNTS["pool"] and set(records.specs) == {"classification", "detection"}
    assert {name: len(Records(_records(workdir, name))) for name in ("held_out", "measured")} == {
        "held_out": 40,
        "measured": 24,
    }
    policy, quality = _policy(workdir), json.loads((workdir / "quality" / "quality.json").read_text())
    boxes = policy["detection"]["classes"]
    assert any(line["positive"] is not None and 0 < line["positive"] < 1 for line in boxes.values())
    assert quality["detection"]["total"]["claims"] > 24 and quality["detection"]["examples"] == 24
    page = (workdir / "quality" / "quality.html").read_text()
    assert "small scenes" in page and "data:image" in page
    assert "<script>" in (workdir / "gallery" / "pages" / "index.html").read_text()
    assert len(list((workdir / "gallery" / "pages" / "pictures").iterdir()))
    back = LabelFiles(str(workdir / "files" / "labels"))
    assert tuple(back.ids) == records.ids
    for index in range(len(records)):
        there, here = back[index], records[index]
        np.testing.assert_array_equal(there.image, here.image)
        for field, value in here.labels["detection"].items():
            np.testing.assert_array_equal(there.labels["detection"][field], value)


def test_a_moved_threshold_runs_no_teacher_and_renews_what_shows_it(workdir):
    before, records, asked = _policy(workdir), (_records(workdir) / "provenance.json").read_bytes(), len(ASKED)
    first = (workdir / "quality" / "quality.json").read_bytes()
    written = os.stat(workdir / "files" / "labels" / "about.json").st_mtime_ns
    changed = config_of(
        policies={name: {**FITTED, "target_precision": 0.9} for name in ("classification", "detection")}
    )
    run(changed, workdir, "label")
    run(changed, workdir, "quality")
    after = _policy(workdir)
    bound = lambda policy, name: policy["detection"]["classes"][name]["positive"] or np.inf  # noqa: E731
    assert all(bound(after, name) >= bound(before, name) for name in before["detection"]["classes"])
    assert any(bound(after, name) > bound(before, name) for name in before["detection"]["classes"])
    assert (_records(workdir) / "provenance.json").read_bytes() == records and len(ASKED) == asked
    assert (workdir / "quality" / "quality.json").read_bytes() != first
    assert os.stat(workdir / "files" / "labels" / "about.json").st_mtime_ns == written
    again = (workdir / "quality" / "quality.json").stat().st_mtime_ns
    run(changed, workdir, "quality")  # what is done stays done
    assert (workdir / "quality" / "quality.json").stat().st_mtime_ns == again


def test_other_teachers_are_refused_in_the_same_workdir(workdir):
    other = config_of()
    other["teachers"]["both"]["mistakes"] = False
    with pytest.raises(UserError, match="config.teachers.both.mistakes"):
        run(other, workdir)


def test_a_later_task_stands_beside_the_first_ones(workdir, tmp_path):
    onto = str(_records(workdir))
    later = config_of(("depth",), images={}, onto=onto, gallery={}, files={})
    run(later, tmp_path / "later")
    records = Records(onto)
    assert set(records.specs) == {"classification", "detection", "depth"}
    assert all(set(records.labels(index)) == set(records.specs) for index in range(len(records)))
    assert json.loads((tmp_path / "later" / "quality" / "quality.json").read_text())["depth"]["examples"] == 24
    run(later, tmp_path / "later")  # is done
    with pytest.raises(UserError, match="has labels of 'classification' already"):
        run(config_of(images={}, onto=onto), tmp_path / "again")


def test_the_dry_run_measures_and_writes_nothing(capsys):
    dry_run(RECIPE, config_of())
    printed = capsys.readouterr().out
    for words in ("both", "classification, detection", "images/s", "detection.boxes", "in 3 shards"):
        assert words in printed


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"teachers": {}}, "teachers: no teacher labels 'classification'"),
        ({"teachers": {"both": {"tasks": ("classification", "detection")}}}, "teacher both: give one of 'make'"),
        (
            {"teachers": {"both": {"make": "tests.nothing:here", "tasks": ("classification", "detection")}}},
            "teacher both: 'tests.nothing:here'",
        ),
        (
            {
                "teachers": {
                    "both": {
                        "make": "tests.support.given_teachers:no_teacher",
                        "tasks": ("classification", "detection"),
                    }
                }
            },
            "returns str, not a Teacher",
        ),
        (
            {
                "teachers": {
                    "both": {
                        "make": "tests.support.given_teachers:knowing",
                        "typo": 1,
                        "tasks": ("classification", "detection"),
                    }
                }
            },
            "teacher both: .*typo",
        ),
        (
            {
                "teachers": {
                    "a": {"make": "tests.support.given_teachers:knowing", "tasks": ("classification",)},
                    "b": {"make": "tests.support.given_teachers:knowing", "tasks": ("classification",)},
                }
            },
            "teachers.b: a already labels classification",
        ),
        (
            {"teachers": {"both": {"run": "/nowhere/at/all", "tasks": ("classification", "detection")}}},
            "teacher both: .*holds no trained network",
        ),
        ({"policies": {"depth": {"positive": 0.5}}}, "policies.depth: no such task"),
        ({"policies": {"detection": {**FITTED, "typo": 1}}}, "policies.detection.typo: unknown key"),
        ({"policies": {"detection": {"typo": 1}}}, "policies.detection.typo: unknown key"),
        ({"truth": {}}, "truth.classification.validation: required"),
        (
            {"truth": {}, "policies": {"detection": {"confidence": 0.9}}},
            "truth.detection.validation: required to choose the thresholds of policies.detection",
        ),
        ({"gallery": {"typo": 1}}, "gallery.typo: unknown key"),
        ({"images": {}}, "images: set either"),
        ({"images": {}, "onto": "/nowhere"}, "/nowhere: no complete records here"),
        ({"seeds": (0, 1)}, "seeds: labeling draws nothing"),
    ],
)
def test_mistakes_are_one_line(changes, words, tmp_path):
    config = config_of(**changes)
    if not changes.get("truth", True):
        config["tasks"] = {n: {"kind": n, "classes": ("a", "b")} for n in config["tasks"]}
    with pytest.raises(UserError, match=words) as caught:
        run(config, tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mirrored", [True, False])
def test_hflip_tta_reaches_the_teachers(mirrored):
    section = {"make": "tests.pseudo_label.test_fusion:make_mirrored", "tasks": ("depth",)}
    config = config_of(names=("depth",), teachers={"mine": section}, label={"hflip_tta": mirrored})
    settings = settings_of(config)
    assert teachers_of(settings, tasks_of(settings))["mine"].fingerprint == str(mirrored)


def test_records_without_pictures_take_them_from_the_images(tmp_path):
    """Policies, acceptance, quality, gallery and files of records that only refer to their images."""
    run(config_of(label={"shards": 3, "batch_size": 8, "copy_images": False}), tmp_path)
    assert Records(str(_records(tmp_path)), verify=False).encoded(0) is None
    files = LabelFiles(tmp_path / "files" / "labels")
    assert len(files) == COUNTS["pool"] and files[0].image.shape[-1] == 3
    assert (tmp_path / "quality" / "quality.html").exists()
