"""How often a student meets which images, and whose labels it learns on them."""

import dataclasses
import json

import numpy as np
import pytest

from must.core.types import UserError
from must.experiment import build
from must.experiment.students import familiar_sets, given_weights, student_source, supervised_source
from tests.support.configs import config_of, settings_of

TEACHERS = {"depth": {"batch_size": 32}, "segmentation": {"steps": 6}}


@pytest.fixture(scope="module")
def settings():
    return settings_of(config_of("configs/quickstart.py", "sanity", teachers=TEACHERS, student__repeat_labeled=1))


def _run(settings, **changes):
    return dataclasses.replace(settings.student, **changes)


@pytest.mark.parametrize("pool_share", [0.1, 0.3, 0.9])
def test_annotated_images_are_met_as_often_as_teachers_meet_them(settings, pool_share):
    ids = student_source(settings, _run(settings, pool_share=pool_share), build.all_images(settings)).ids
    pool = {id for source in build.pool(settings) for id in source.ids}
    assert np.mean([id in pool for id in ids]) == pytest.approx(pool_share, abs=0.03)
    runs = {task: build.teacher(settings, task) for task in settings.tasks}
    images = {task: run.steps * run.batch_size for task, run in runs.items()}
    assert len(set(images.values())) == 3
    drawn = dataclasses.replace(settings, student=_run(settings, pool_share=pool_share))
    both = [set(np.unique(supervised_source(drawn).ids)), set(ids) - pool]
    assert both[0] == both[1]  # the baseline meets the same annotated pictures, as often
    for task, count in images.items():
        mine = set(build.split(settings, task, "train").ids)
        share = sum(id in mine for id in ids) / sum(id not in pool for id in ids)
        assert share == pytest.approx(count / sum(images.values()), rel=0.13), task
        base = supervised_source(drawn).ids
        assert np.mean([id in mine for id in base]) == pytest.approx(count / sum(images.values()), rel=0.13), task
        times = np.unique(ids, return_counts=True)
        assert len({n for id, n in zip(*times, strict=True) if id in mine}) == 1  # no image more often than another


def test_a_share_of_the_pool_does_not_go_with_other_ways_to_say_so(settings):
    for other in ({"repeat_labeled": 2}, {"pool_images": 8}, {"epochs": 1, "steps": 0}):
        with pytest.raises(ValueError, match="or leave repeat_labeled, pool_images and epochs out"):
            _run(settings, pool_share=0.2, **other)


@pytest.mark.parametrize(
    "changes, share",
    [
        ({}, 0.1),
        ({"pool_share": 0.4}, 0.4),
        ({"pool_share": 0.0}, 0.0),
        ({"repeat_labeled": 1}, 0.0),
        ({"pool_images": 16}, 0.0),
    ],
)
def test_a_quarter_comes_from_the_pool_unless_images_are_counted(settings, changes, share):
    run = _run(settings, **{"repeat_labeled": None, "pool_share": None, **changes})
    ids, times = np.unique(student_source(settings, run, build.all_images(settings)).ids, return_counts=True)
    in_pool = np.isin(ids, [id for source in build.pool(settings) for id in source.ids])
    assert run.pool_share == share
    if share:
        assert times[in_pool].sum() / times.sum() == pytest.approx(share, abs=0.03)
    else:
        assert set(times[~in_pool]) == {1}


def test_labels_of_sets_that_are_left_out_weigh_nothing_and_truth_stays(settings, tmp_path):
    names = sorted({id.partition("/")[0] for id in build.all_images(settings).ids})
    own = build.split(settings, "depth", "train").name
    kept, strange = names[0], names[-1]
    run = _run(settings, policies={"depth": {"sets": (kept,)}, "classification": {"familiar": 0.8}})
    seen = {name: {"images": 9, "accepted": 9, "confidence": 0.9} for name in [*names, "own validation"]}
    seen[strange]["confidence"] = 0.7
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "done.json").write_text(json.dumps({"seconds": 1.0, "sets": {"classification": seen}}))
    sets = familiar_sets(settings, str(tmp_path), run)
    assert sets == {"depth": {kept}, "classification": set(names) - {strange}}
    ids = list(build.all_images(settings).ids)
    factors = given_weights(settings, run, ids, build.all_images(settings), sets)
    assert {name for name, given in factors.items() if "set" in given} == {"depth", "classification"}
    expected = [float(id.split("/")[0] in (kept, own)) for id in ids]
    assert factors["depth"]["set"].tolist() == expected and 0 < sum(expected) < len(ids)
    for policies, message in (
        ({"depth": {"sets": ("nowhere",)}}, "config.policies.depth.sets: no images of 'nowhere'; there are"),
        ({"depth": {"familiar": 0.5}}, "config.policies.depth.familiar: its labels have no scores"),
    ):
        with pytest.raises(UserError, match=message):
            familiar_sets(settings, str(tmp_path), _run(settings, policies=policies))
