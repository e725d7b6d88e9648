"""Teachers with settings of their own, and MuST's loss scales, which read them."""

import json

import numpy as np
import pytest

from must.core.notices import Notice
from must.core.types import UserError
from must.experiment import build, students
from must.experiment.labeling import label_pass, teachers_of
from must.experiment.loss_scales import loss_scales, with_gradient_scales
from must.experiment.run import members
from must.recipes import must as recipe
from tests.support.configs import check, config_of, load, recipe_of, run, settings_of

TINY = "tests/support/tiny_config.py"
OWN = {"batch_size": 4, "steps": 6, "optimizer": {"learning_rate": 0.05}, "model": {"backbone": {"width": 4}}}


def _settings(**changes):
    return settings_of(config_of(TINY, teachers={"depth": OWN}, **changes))


def test_a_teacher_trains_with_its_own_settings_and_keeps_them_with_its_weights(tmp_path):
    config = config_of(TINY, teachers={"depth": OWN}, workers=1)
    run(config, tmp_path, stage="teachers")
    widths, runs = {}, {}
    for task in ("classification", "depth"):
        about = json.loads((tmp_path / "teachers" / task / "network.json").read_text())
        widths[task] = about["network"]["backbone"]["width"]
        runs[task] = (about["run"]["batch_size"], about["run"]["steps"], about["run"]["optimizer"]["learning_rate"])
    assert widths == {"classification": 8, "depth": 4}
    assert runs == {"classification": (8, 12, 0.01), "depth": (4, 6, 0.05)}
    # Another run reads them where it takes the network from.
    taken = {"depth": {"run": str(tmp_path / "teachers" / "depth")}}
    settings = settings_of(config_of(TINY, external_teachers=taken, student__loss_scale_rule="learning_rate"))
    scales = loss_scales(settings, settings.student, build.tasks_of(settings))
    assert scales == {"classification": pytest.approx(1.0), "depth": pytest.approx(10.0)}
    # All teachers may come from elsewhere; each is measured again.
    all_taken = {task: {"run": str(tmp_path / "teachers" / task)} for task in widths}
    run(config_of(TINY, external_teachers=all_taken, workers=1), tmp_path / "other", stage="teachers")
    for task in widths:
        scores = [
            json.loads((at / "teachers" / task / "done.json").read_text()) for at in (tmp_path, tmp_path / "other")
        ]
        assert scores[1]["test"][task] == pytest.approx(scores[0]["test"][task])
    # The label pass averages their predictions with those of the mirrored picture, where their section does not say.
    for label, own, averaged in ((True, {}, True), (True, {"hflip_tta": False}, False), (False, {}, False)):
        external = {**all_taken, "depth": {**all_taken["depth"], **own}}
        assert _sees_mirrored_pictures_alike(external, label) == averaged


def _sees_mirrored_pictures_alike(external, label):
    """Whether an external teacher's depth of a mirrored picture is the mirrored depth in the label pass."""
    settings = settings_of(config_of(TINY, external_teachers=external, label__hflip_tta=label))
    (teacher,) = (one for one in teachers_of(settings, "", label_pass(settings)) if "depth" in one.tasks)
    images = np.random.default_rng(0).integers(0, 256, (2, *settings.image.size, 3), np.uint8)
    one, other = (teacher.predict(view)["depth"]["depth"] for view in (images, images[:, :, ::-1]))
    return np.allclose(one, np.asarray(other)[:, :, ::-1], rtol=1e-4)


def test_every_task_keeps_the_learning_rate_of_its_teacher():
    settings = _settings(student__loss_scale_rule="learning_rate", student__batch_size=12)
    student, scales = settings.student, loss_scales(settings, settings.student, build.tasks_of(settings))
    for task in settings.tasks:
        teacher = build.teacher(settings, task)
        per_image = teacher.optimizer.learning_rate / teacher.batch_size
        assert scales[task] * student.optimizer.learning_rate / student.batch_size == pytest.approx(per_image)
    assert scales["depth"] != pytest.approx(scales["classification"])


def test_an_external_teacher_has_a_factor_of_its_own():
    external = {"depth": {"make": "tests.support.given_teachers:one"}}
    changes = {"external_teachers": external, "student__loss_scale_rule": "learning_rate"}
    with pytest.raises(UserError, match="config.student.loss_scales.depth: required by loss_scale_rule"):
        check(config_of(TINY, **changes))
    settings = settings_of(config_of(TINY, **changes, student__loss_scales={"depth": 3.0}))
    assert loss_scales(settings, settings.student, build.tasks_of(settings)) == {
        "classification": pytest.approx(1.0),
        "depth": 3.0,
    }


def test_a_teacher_as_long_as_the_student_is_its_own_baseline():
    settings = _settings(baselines=("scratch",))
    assert recipe._scratch(settings) == {
        "classification": "teachers/classification",
        "depth": "baselines/scratch-depth",
    }
    assert [name for name, _, tasks in students.runs_of(settings) if tasks == ("depth",)] == ["teacher", "scratch"]


@pytest.mark.parametrize(
    "teachers, message",
    [
        ({"dept": {}}, "config.teachers.dept: no such task"),
        ({"depth": {"bach_size": 4}}, "config.teachers.depth.bach_size: unknown key; did you mean batch_size"),
        ({"depth": {"steps": 0}}, "config.teachers.depth.steps=0: must be at least 1"),
        ({"depth": {"model": {"backbone": {"depth": 7}}}}, "config.teachers.depth: .*depth 7"),
    ],
)
def test_mistakes_name_the_teacher(teachers, message):
    with pytest.raises(UserError, match=message):
        check(config_of(TINY, teachers=teachers))


def test_every_key_of_every_teacher_can_be_set_from_the_command_line():
    tree = load("configs/quickstart.py").get_config("sanity")
    tree.teachers.depth.optimizer.learning_rate = 0.5
    settings = settings_of(tree.to_dict())
    assert build.teacher(settings, "depth").optimizer.learning_rate == 0.5
    assert build.teacher(settings, "normals") == settings.teacher


def test_a_student_without_steps_sees_as_many_images_as_all_teachers_and_a_baseline_as_many_as_the_student():
    lengths = {"student__steps": 0, "student__batch_size": 16, "supervised__steps": 0, "supervised__batch_size": 8}
    settings = _settings(**lengths, scratch__steps=7)
    assert settings.student.steps * 16 == 12 * 8 + 6 * 4 + 8  # rounded up from 7.5 steps
    assert settings.supervised.steps * 8 == settings.student.steps * 16
    assert settings.scratch.steps == 7
    external = {task: {"make": "tests.support.given_teachers:one"} for task in ("classification", "depth")}
    with pytest.raises(UserError, match="config.student.steps=0: no teacher trains here"):
        _settings(student__steps=0, external_teachers=external)


def test_losses_of_several_tasks_are_scaled_by_kind_unless_the_settings_say_so():
    settings = settings_of(config_of("configs/quickstart.py", "sanity", student__loss_scales={"depth": 2.0}))
    tasks = build.tasks_of(settings)
    usual = {"classification": 1.0, "detection": 1.0, "segmentation": 4.0, "depth": 4.0, "normals": 24.0}
    assert loss_scales(settings, settings.student, tasks) == usual | {"depth": 2.0}
    plain = config_of("configs/quickstart.py", "balancing")
    assert set(loss_scales(settings_of(plain), settings_of(plain).student, tasks).values()) == {1.0}
    gradient = config_of("configs/quickstart.py", "sanity", student__loss_scale_rule="gradient")
    assert loss_scales(settings_of(gradient), settings_of(gradient).student, tasks) == usual  # before teachers train
    alone = {"normals": tasks["normals"]}
    assert loss_scales(settings, settings.teacher, alone) == {"normals": 1.0}


def test_losses_follow_the_teachers_gradients(tmp_path):
    rule = {"student__loss_scale_rule": "gradient", "supervised__loss_scale_rule": "gradient"}
    rule |= {"teacher__log_every": 1, "baselines": ("supervised",)}
    config = config_of(TINY, **rule, workers=1)
    for stage in ("teachers", "label", "student", "baselines"):
        run(config, tmp_path / "one", stage=stage)
    norms = {}
    for task in ("classification", "depth"):
        lines = [json.loads(line) for line in open(tmp_path / "one" / "teachers" / task / "metrics.jsonl")]
        norms[task] = np.mean([line["gradient_norm"] for line in lines if "gradient_norm" in line])
    expected = {task: np.mean(list(norms.values())) / norm for task, norm in norms.items()}
    assert max(expected.values()) > 1.02
    for job in ("student", "baselines/supervised"):
        about = json.loads((tmp_path / "one" / job / "network.json").read_text())
        assert about["run"]["loss_scales"] == pytest.approx(expected)
    (supervised,) = (job for job in recipe.jobs(members(recipe_of(config), config), 1) if "supervised" in job.name)
    assert supervised.needs == ("teachers/classification", "teachers/depth")
    # Another run's teachers tell theirs; a factor that is set stays; one teacher without gradients, and kinds decide.
    taken = {task: {"run": str(tmp_path / "one" / "teachers" / task)} for task in norms}
    changes = {**rule, "external_teachers": taken}
    settings = settings_of(config_of(TINY, **changes, student__loss_scales={"depth": 3.0}))
    found = with_gradient_scales(settings, settings.student, "")
    assert found.loss_scales == pytest.approx({**expected, "depth": 3.0})
    changes["external_teachers"] = {**taken, "depth": {"make": "tests.support.given_teachers:one"}}
    settings = settings_of(config_of(TINY, **changes))
    with pytest.warns(Notice, match="the teacher of depth does not tell its gradients; losses by kind"):
        assert with_gradient_scales(settings, settings.student, "") == settings.student


def test_a_recipe_whose_teachers_are_not_one_a_task_refuses_their_gradients():
    settings = settings_of(config_of("configs/multas.py", student__loss_scale_rule="gradient"))
    with pytest.raises(UserError, match="loss_scale_rule='gradient': needs one teacher for each task"):
        loss_scales(settings, settings.student, build.tasks_of(settings))
