"""A network as files: they say what it says at any batch size and without the code that made it, or they are
refused."""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from must.core.types import Model, UserError
from must.data.clips import ClipEncoder, Window
from must.data.pipeline import Encoder
from must.evaluate.evaluate import summarize
from must.experiment import export, joint, measure, networks
from must.experiment.run import check_stage, members
from must.export.exported import ABOUT, PROGRAM, WEIGHTS, load_exported
from must.export.write import export_model, preprocessing
from must.models.experts import expert_variables, from_experts
from must.models.multi_head import multi_head, over_clips, parameter_count
from must.models.resnet import ResNet
from must.models.temporal_shift import TemporalShiftResNet
from must.recipes import jedi, label, multas, must, weighted_distillation
from must.tasks import base
from must.tasks.action import Action
from must.tasks.classification import Classification
from must.tasks.depth import Depth
from must.train.checkpoint import Checkpoints
from tests.support.clip_sets import Clips
from tests.support.configs import config_of
from tests.support.finished import alive

KEY = jax.random.key(0)
PICTURES = {"classification": Classification(("cat", "dog", "hen")), "depth": Depth(width=4, depth=1)}
CAMERA = {"camera": Action(("left", "right"), mirrored={"left": "right"}, temperature=2.0)}
CLIPS = ClipEncoder({}, (16, 16), {"image": 4}, Window())


def random(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def network(backbone, tasks, inputs):
    model = multi_head(backbone, None, {name: task.head() for name, task in tasks.items()})
    return model, alive(model.init(KEY, inputs))


def predicted(model, variables, tasks, inputs):
    predict = measure.predictor(model, tasks)
    return jax.device_get(predict(variables, inputs))


def linear(tasks=CAMERA, pixels=2 * 2 * 3):
    """One layer on clips [B, 4, 2, 2, 3], `pixels` of the mean frame, as a `Model` whose programs compile at once."""

    def apply(variables, inputs, *, train, key=None, axis_name=None):
        mean = inputs.astype(jnp.float32).mean(1).reshape(inputs.shape[0], pixels) / 255
        return {name: mean @ variables["params"][name] for name in tasks}, {}

    rng = np.random.default_rng(2)
    params = {name: rng.standard_normal((pixels, len(task.classes))).astype(np.float32) for name, task in tasks.items()}
    return Model(None, apply), {"params": params}


def write(directory, model, variables, tasks=CAMERA, inputs=None, **options):
    inputs = {"image": np.zeros((1, 4, 2, 2, 3), np.uint8)} if inputs is None else inputs
    options = {"settings": {}, "read": in_process, **options}
    return export_model(str(directory), model, variables, tasks=tasks, inputs=inputs, **options)


def in_process(directory, inputs):
    """Faster than the process of its own that exports are read in by default."""
    return load_exported(directory).run(inputs)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A student of two tasks on pictures: (directory, model, variables, description)."""
    inputs = Encoder(PICTURES, (16, 16)).blank_inputs()
    model, variables = network(ResNet(10, 4, "batch", "small", 1), PICTURES, inputs["image"])
    directory = tmp_path_factory.mktemp("export") / "deep" / "student"
    return directory, model, variables, write(directory, model, variables, PICTURES, inputs)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """The student of one set out of joint variables with teachers: (directory, model, variables of the expert
    alone)."""
    model, variables = network(TemporalShiftResNet(10, 4, "batch", "small", 2), CAMERA, CLIPS.blank_inputs()["image"])
    other = {"params": {"heads_other": variables["params"]["heads_camera"]}}
    joint = from_experts({"camera": variables, "other": other})
    directory = tmp_path_factory.mktemp("export") / "camera"
    own = expert_variables(joint, "camera")
    export_model(str(directory), model, own, tasks=CAMERA, inputs=CLIPS.blank_inputs(), settings=preprocessing(CLIPS))
    return directory, model, variables


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    directory = tmp_path_factory.mktemp("export") / "small"
    write(directory, *linear())
    return directory


def test_an_image_student_says_the_same_from_its_files_at_any_batch_size(pictures):
    directory, model, variables, about = pictures
    exported = load_exported(str(directory))
    for rows in (1, 5):
        inputs = random(rows, 16, 16, 3, seed=rows)
        wanted, found = predicted(model, variables, PICTURES, inputs), exported.run({"image": inputs})
        assert found["classification"]["probs"].shape == (rows, 3) and found["depth"]["depth"].shape == (rows, 16, 16)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), wanted, found)
    assert np.ptp(found["depth"]["depth"]) > 0.1, "a network that says nothing would pass too"
    assert about["verified"]["largest_difference"] <= 1e-5


def test_the_description_makes_the_tasks_again(pictures):
    about = json.loads((pictures[0] / ABOUT).read_text())
    for name, task in PICTURES.items():
        predicted = about["tasks"][name]
        classes = {"classes": predicted["classes"]} if predicted["classes"] else {}
        assert base.build(predicted["kind"], **classes, **predicted["hyper_parameters"]) == task
    assert about["inputs"] == {"image": {"shape": [16, 16, 3], "dtype": "uint8"}}
    meaning = "depth of each pixel of the frame, meters"
    form = {"shape": [16, 16], "dtype": "float32", "meaning": meaning}
    assert about["tasks"]["depth"]["label"] == {"depth": form}
    assert about["platforms"] == ["cpu", "cuda", "tpu"]


def test_a_student_of_joint_experts_takes_no_teacher_along(student):
    directory, model, variables = student
    weights = safetensors.numpy.load_file(directory / WEIGHTS)
    assert not [name for name in weights if "teachers" in name or "other" in name or "experts" in name]
    own = {name: array for name, array in weights.items() if name.startswith("params/")}
    count = parameter_count(variables["params"])
    assert (
        sum(array.size for array in own.values()) == count == json.loads((directory / ABOUT).read_text())["parameters"]
    )
    assert len(weights) == len(jax.tree.leaves(variables)) > len(own), "statistics of the norms travel too"
    clips = random(2, 4, 16, 16, 3)
    wanted, found = predicted(model, variables, CAMERA, clips), load_exported(str(directory)).run({"image": clips})
    np.testing.assert_allclose(found["camera"]["probs"], wanted["camera"]["probs"], rtol=1e-5)


def test_weights_are_arguments_of_the_program_and_it_names_no_file(student):
    directory, _, _variables = student
    exported = load_exported(str(directory))
    clips = {"image": random(2, 4, 16, 16, 3)}
    zeros = jax.tree.map(jnp.zeros_like, exported.weights)
    np.testing.assert_allclose(exported.apply(zeros, clips)["camera"]["probs"], 0.5)
    program = (directory / PROGRAM).read_bytes()
    assert b".py" not in program and str(Path(__file__).parents[2]).encode() not in program


def test_it_runs_where_neither_flax_nor_this_package_is(student, tmp_path):
    """Read by `must.export.exported` without anything that trains, then with jax and safetensors alone."""
    clips = random(3, 4, 16, 16, 3)
    np.save(tmp_path / "clips.npy", clips)
    code = """
import sys
import numpy as np
blocked = "flax optax orbax grain tensorflow_datasets must.recipes must.models must.tasks must.data".split()
sys.modules.update(dict.fromkeys(blocked))
directory, folder = sys.argv[1:]
clips = np.load(folder + "/clips.npy")
from must.export.exported import load_exported
first = load_exported(directory).run({"image": clips})
for name in [name for name in sys.modules if name.partition(".")[0] == "must"]:
    sys.modules[name] = None
import jax.export, safetensors.numpy
program = jax.export.deserialize(bytearray(open(directory + "/model.stablehlo", "rb").read()))
second = program.call(safetensors.numpy.load_file(directory + "/weights.safetensors"), {"image": clips})
np.savez(folder + "/outputs.npz", first=first["camera"]["probs"], second=second["camera"]["probs"])
"""
    command = [sys.executable, "-c", code, str(student[0]), str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted = load_exported(str(student[0])).run({"image": clips})["camera"]["probs"]
    with np.load(tmp_path / "outputs.npz") as found:
        np.testing.assert_allclose(found["first"], wanted, rtol=1e-5)
        np.testing.assert_allclose(found["second"], wanted, rtol=1e-5)


def damage(directory, name, change):
    path = directory / name
    content = change(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)


def flipped(content):
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


@pytest.mark.parametrize(
    "name, change, message",
    [
        (WEIGHTS, flipped, "damaged"),
        (PROGRAM, flipped, "damaged"),
        (PROGRAM, lambda content: content[: len(content) // 2], "damaged"),
        (WEIGHTS, lambda content: None, "No such file"),
        (ABOUT, lambda content: None, "No such file"),
        (ABOUT, lambda content: content[:40], "damaged, it is not JSON"),
        (ABOUT, lambda content: b"[1]", "not from an exported network"),
        (ABOUT, lambda content: b'{"model_type": "resnet"}', "not from an exported network"),
        (ABOUT, lambda content: content.replace(b'"version": 1', b'"version": 2'), "version 2"),
        (ABOUT, lambda content: content.replace(b'"files"', b'"flies"'), "no 'files'"),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_named(small, tmp_path, name, change, message):
    shutil.copytree(small, tmp_path / "copy")
    damage(tmp_path / "copy", name, change)
    with pytest.raises(UserError) as raised:
        load_exported(str(tmp_path / "copy"))
    assert str(tmp_path / "copy" / name) in str(raised.value) and message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({}, "no 'image'"),
        ({"image": np.zeros((2, 4, 2, 3, 3), np.uint8)}, r"\['B', 4, 2, 2, 3\]"),
        ({"image": np.zeros((4, 2, 2, 3), np.uint8)}, r"\['B', 4, 2, 2, 3\]"),
        ({"image": np.zeros((2, 4, 2, 2, 3), np.float32)}, "float32"),
        ({"image": np.zeros((0, 4, 2, 2, 3), np.uint8)}, "the network reads"),
    ],
)
def test_inputs_of_another_form_are_refused(small, inputs, message):
    with pytest.raises(UserError, match=message):
        load_exported(str(small)).run(inputs)


def test_files_that_say_something_else_than_the_network_never_appear(small, tmp_path):
    """Here a network that changes every time that it is traced."""
    model, variables = linear()
    traced = []

    def apply(*arguments, **options):
        traced.append(None)
        outputs, state = model.apply(*arguments, **options)
        return {name: logits * (1 + 1e-3 * len(traced)) for name, logits in outputs.items()}, state

    with pytest.raises(UserError, match=r"camera\.probs differs"):
        write(tmp_path / "new", Model(None, apply), variables)
    assert list(tmp_path.iterdir()) == []
    shutil.copytree(small, tmp_path / "old")
    before = (tmp_path / "old" / ABOUT).read_bytes()
    with pytest.raises(UserError, match=r"camera\.probs differs"):
        write(tmp_path / "old", Model(None, apply), variables)
    assert (tmp_path / "old" / ABOUT).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_network_that_says_no_numbers_is_refused(tmp_path):
    model, variables = linear()
    with pytest.raises(UserError, match="differs from the network's by inf"):
        write(tmp_path / "new", model, jax.tree.map(lambda leaf: leaf * np.nan, variables))


def test_an_export_takes_the_place_of_an_earlier_one_and_of_nothing_else(small, tmp_path):
    model, variables = linear()
    shutil.copytree(small, tmp_path / "old")
    (tmp_path / "old.partial").mkdir()  # of a killed run
    write(tmp_path / "old", model, {"params": {"camera": np.zeros((12, 2), np.float32)}})
    found = load_exported(str(tmp_path / "old")).run({"image": random(1, 4, 2, 2, 3)})
    np.testing.assert_allclose(found["camera"]["probs"], 0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    with pytest.raises(UserError, match="holds other files"):
        write(tmp_path / "photos", model, variables)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]


def test_a_transposed_weight_keeps_its_numbers(tmp_path):
    """safetensors writes the memory of an array, not its elements."""
    model, variables = linear()
    turned = {"params": {"camera": np.ascontiguousarray(variables["params"]["camera"].T).T}}
    write(tmp_path / "turned", model, turned)
    found = load_exported(str(tmp_path / "turned")).weights["params/camera"]
    np.testing.assert_array_equal(found, variables["params"]["camera"])


@pytest.mark.parametrize("clips", [1, 3])
def test_an_exported_network_scores_what_the_live_one_scores(small, clips):
    """Clips are averaged before the temperature, as of the live network."""
    model, variables = linear()
    videos = [random(9, 2, 2, 3, seed=i) for i in range(13)]
    source = Clips("videos", videos, [i % 2 for i in range(13)], ("left", "right"), "camera")
    encoder = ClipEncoder(CAMERA, (2, 2), {"image": 4}, Window(span=6), clips=clips)
    live = over_clips(model) if clips > 1 else model
    wanted = measure.measure(variables, live, CAMERA, encoder, {"camera": source}, batch_size=8)
    exported = load_exported(str(small))
    found = export.measure_exported(exported, CAMERA, encoder, {"camera": source})
    assert len(found["camera"]["nll"]) == 13 and np.ptp(found["camera"]["nll"]) > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), wanted, found)
    assert summarize(CAMERA, found)["camera"]["top1"] == summarize(CAMERA, wanted)["camera"]["top1"]


def workdir(top):
    """What the joint stage of one small set leaves: weights of its student, which nobody trained, and scores."""
    clip = {"kind": "moving_scenes", "seed": "{seed}", "size": 16, "actions": "camera", "task": "camera", "frames": 4}
    splits = ("train", "validation", "tune", "test")
    changes = {
        "tasks": {"camera": {"kind": "action"}},
        "sets": {"camera": {split: {**clip, "split": split, "count": 4} for split in splits}},
        "experts": {"camera": {"frames": 4}},
        "pool": {},
        "image__size": (16, 16),
        "model__backbone__stages": 1,
        "model__backbone__width": 4,
    }
    (member,) = members(jedi.RECIPE, config_of("configs/jedi.py", "sanity", **changes))
    settings, at = member.settings, top / "joint" / "jedi" / "students" / "camera"
    model, encoder = joint.student_as_scored(settings, "camera")
    variables = alive(model.init(KEY, encoder.blank_inputs()["image"]))
    weights = Checkpoints(str(at / "weights"))
    weights.save(1, variables)
    weights.close()
    tasks = joint.Seed(settings, 0).tasks
    frames = joint.expert_frames(settings, "camera")
    networks.describe(str(at), joint.expert_network(settings, "camera"), tasks, settings.image, frames)
    rows = measure.measure(variables, model, tasks, encoder, joint.Seed(settings, 0).splits("test"))
    (top / "joint" / "jedi" / "done.json").write_text(json.dumps({"test": summarize(tasks, rows)}))
    return member


def test_the_stage_exports_students_with_the_same_scores(tmp_path):
    arguments = {"directory": str(tmp_path / "export"), "report": lambda *progress: None}
    member, students = workdir(tmp_path), {"camera": "joint/jedi/students/camera"}
    found = export.export_students(member, students, **arguments)
    known = json.loads((tmp_path / "joint" / "jedi" / "done.json").read_text())["test"]["camera"]
    assert found["camera"]["test"]["camera"] == pytest.approx(known, abs=1e-6)
    assert (
        found["camera"]["largest_difference"] <= 1e-5 and found["camera"]["bytes"] > 4 * found["camera"]["parameters"]
    )
    assert load_exported(str(tmp_path / "export" / "camera")).about["parameters"] == found["camera"]["parameters"]
    other = {"test": {"camera": {**known, "nll": known["nll"] + 0.01}}}
    (tmp_path / "joint" / "jedi" / "done.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match="export/camera, test: the exported network has nll"):
        export.export_students(member, students, **arguments)


def test_other_scores_than_in_training_are_refused():
    task, scores = CAMERA["camera"], {"top1": 60.0, "top5": 100.0, "nll": 1.0}
    export.check_scores("here", task, {**scores, "top1": 61.0, "nll": 1.00005}, scores, examples=100)
    for other in ({"top1": 62.0}, {"nll": 1.001}, {"nll": float("nan")}):
        with pytest.raises(UserError, match=f"here: .*{next(iter(other))}"):
            export.check_scores("here", task, {**scores, **other}, scores, examples=100)


def test_the_settings_name_the_frames_that_the_encoder_takes():
    """The sentence of export.json, followed to the letter."""
    for span in (0, 6):
        encoder = CLIPS._replace(window=Window(span=span))
        video = np.broadcast_to(np.arange(11, dtype=np.uint8)[:, None, None, None], (11, 16, 16, 3))
        row = encoder(Clips("a", [video], [None], ())[0], 0, np.random.default_rng(0))
        predicted = preprocessing(encoder)["clips"]
        assert predicted["window"] == {"span": span} and predicted["frames"] == {"image": 4}
        length = span or 11
        first = (11 - length) // 2
        edges = [i * length // 4 for i in range(5)]
        wanted = [first + a + (b - a) // 2 for a, b in itertools.pairwise(edges)]
        assert row.inputs["image"][:, 0, 0, 0].tolist() == wanted


def test_only_recipes_with_a_student_are_asked_for_it():
    for recipe in (jedi.RECIPE, must.RECIPE, multas.RECIPE, weighted_distillation.RECIPE):
        for stage in ("export", "predict", "evaluate"):
            check_stage(recipe, stage)
    with pytest.raises(UserError, match="--stage=export: the recipe 'label' trains no student"):
        check_stage(label.RECIPE, "export")
