"""Weights that a run starts from: files, Orbax checkpoints, other networks; what does not fit is refused."""

import json
import os

import jax
import numpy as np
import pytest
import safetensors.numpy

from must.core import files
from must.core.types import UserError
from must.experiment import build, initial, networks, training
from must.experiment.sections import parse, without_none
from must.experiment.settings import Image, Init, Network
from must.tasks.classification import Classification
from must.tasks.depth import Depth
from must.train.checkpoint import Checkpoints
from tests.support.configs import changed, check, load, run, settings_of
from tests.support.tiny_config import get_config

TASKS = {"kind": Classification(("a", "b", "c")), "depth": Depth(width=8, depth=1, head_stride=4)}
BACKBONE = {"kind": "resnet", "depth": 10, "width": 8, "stages": 2}
IMAGES = np.zeros((1, 32, 32, 3), np.uint8)
NECK = {"kind": "fpn", "channels": 8, "strides": (4, 8)}


def network(tasks=("kind",), **changes):
    settings = parse(Network, {"backbone": {**BACKBONE, **changes}, "neck": NECK})
    return settings, build.network(settings, {name: TASKS[name] for name in tasks})


@pytest.fixture(scope="module")
def other():
    """A network of two tasks with its variables, all of them other than what a fresh network has."""
    settings, model = network(("kind", "depth"))
    fresh = model.init(jax.random.key(7), IMAGES)
    return settings, model, jax.tree.map(lambda leaf: leaf + 0.125, fresh)


@pytest.fixture(scope="module")
def workdir(other, tmp_path_factory):
    """A workdir with that network as its student."""
    settings, _, variables = other
    top = tmp_path_factory.mktemp("other")
    networks.describe(str(top / "student"), settings, TASKS, Image(size=(32, 32)))
    weights = Checkpoints(str(top / "student" / "weights"))
    weights.save(1, variables)
    weights.close()
    return str(top)


def names(variables):
    return {name.partition("/")[2]: array for name, array in initial._flat(variables).items()}


def started(source, *, tasks=("kind",), partial=(), **changes):
    settings, model = network(tasks, **changes)
    init = Init(str(source), tuple(partial))
    initial.check(model, settings, IMAGES, init)
    return names(initial.start(model, settings, IMAGES, jax.random.key(0), init))


def same(found, variables, but=()):
    theirs = names(variables)
    different = {name for name, array in found.items() if not np.array_equal(array, theirs.get(name))}
    assert {name for name in different if not name.startswith(but or ("-",))} == set()
    return different


def test_a_student_starts_another_network_and_its_other_heads_are_left_out(other, workdir):
    assert same(started(workdir), other[2]) == set()
    assert same(started(os.path.join(workdir, "student"), tasks=("kind", "depth")), other[2]) == set()


def test_exported_weights_and_orbax_checkpoints_have_the_same_names(other, tmp_path):
    variables = other[2]
    safetensors.numpy.save_file(initial._flat(variables), tmp_path / "weights.safetensors")
    assert same(started(tmp_path / "weights.safetensors"), variables) == set()
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", variables)
    assert same(started(tmp_path / "orbax"), variables) == set()


def test_frozen_stages_start_from_the_file_and_are_no_parameters(other, workdir):
    settings, model = network(frozen=1)
    variables = initial.start(model, settings, IMAGES, jax.random.key(0), Init(workdir))
    assert set(variables["frozen"]["backbone"]) == {"stem", "stem_norm", "stage1_block1"}
    assert set(variables["params"]["backbone"]) == {"stage2_block1"}
    assert same(names(variables), other[2]) == set()
    whole_settings, whole = network()
    whole_variables = initial.start(whole, whole_settings, IMAGES, jax.random.key(0), Init(workdir))
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), np.uint8)
    answers = [m.apply(v, images, train=False)[0]["kind"] for m, v in ((model, variables), (whole, whole_variables))]
    np.testing.assert_array_equal(*answers)
    _, state = model.apply(variables, images, train=True)
    moved = {name for name in names(state) if not np.array_equal(names(state)[name], names(variables)[name])}
    assert moved and all("stage2" in name for name in moved)


def test_everything_that_does_not_fit_is_listed_at_once(workdir, other, tmp_path):
    with pytest.raises(UserError) as error:
        started(workdir, width=12, stages=1)
    listed = names(other[2])
    for name in listed:
        if name.startswith("backbone/stem") or name.startswith("backbone/stage1"):
            assert f"{name} {list(listed[name].shape)}, the network" in str(error.value)
        elif name.startswith("backbone"):
            assert f"{name} {list(listed[name].shape)}" in str(error.value)
    torch_like = {"conv1.weight": np.zeros((8, 3, 7, 7), np.float32), "layer1.0.conv1.weight": np.zeros((8, 8, 3, 3))}
    safetensors.numpy.save_file({**torch_like, "fc.weight": np.zeros(3)}, tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match="missing: backbone/stem_norm/scale|missing: .*backbone/stage2_block1/conv1"):
        started(tmp_path / "cut.safetensors")


def test_partial_names_what_may_differ(workdir, other):
    found = started(workdir, partial=("backbone/stage2", "neck/lateral8", "heads_"), stages=1)
    assert all(name.startswith("heads_") for name in same(found, other[2], but=("heads_",)))
    fresh = started(workdir, partial=("backbone/stem",), tasks=("kind", "depth"))
    assert same(fresh, other[2]) == set()
    with pytest.raises(UserError, match="partial: 'backbone/stages' begins no name"):
        started(workdir, partial=("backbone/stages",))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.pth", b"x", "a.pth: pickled and may run code; docs/pretrained.md has the line"),
        ("a.onnx", b"x", "a.onnx: not a .safetensors file"),
        ("a.safetensors", b"x", "a.safetensors: not a safetensors file"),
        ("b.safetensors", {"w": np.zeros(1)}, "b.safetensors: no known layout of weights, with w, ...; known ones: "),
    ],
)
def test_files_that_are_no_weights(tmp_path, name, content, message):
    if isinstance(content, dict):
        safetensors.numpy.save_file(content, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        started(tmp_path / name)


def test_weights_that_are_not_there_and_directories_that_hold_none(tmp_path):
    with pytest.raises(UserError, match="init.weights='/no/such': No such file"):
        started("/no/such")
    with pytest.raises(UserError, match=f"{tmp_path}: neither a trained network nor an Orbax checkpoint"):
        started(tmp_path)


def test_pixels_are_normalized_as_the_checkpoint_expects(tmp_path, workdir, other):
    settings = parse(Network, {"backbone": BACKBONE, "neck": NECK, "pixel_stats": "half"})
    model = build.network(settings, {"kind": TASKS["kind"]})
    with pytest.raises(UserError, match="normalized with 'imagenet', the network's with 'half'; set model.pixel_stats"):
        initial.start(model, settings, IMAGES, jax.random.key(0), Init(workdir))
    variables = model.init(jax.random.key(0), IMAGES)
    image = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3), np.uint8)
    seen = model.apply(variables, image, train=False, with_features=True)[2].pooled
    backbone = {kind: tree["backbone"] for kind, tree in variables.items()}
    from must.models.resnet import ResNet

    bare = ResNet(**{k: v for k, v in BACKBONE.items() if k != "kind"})
    np.testing.assert_allclose(seen, bare.apply(backbone, image / 127.5 - 1, train=False).pooled, atol=1e-5)
    safetensors.numpy.save_file(initial._flat(other[2]), tmp_path / "w.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": [0.5, 0.5, 0.5]}}))
    with pytest.raises(UserError, match="normalized with 'half', the network's with 'imagenet'"):
        started(tmp_path / "w.safetensors")


def test_a_workdir_notices_that_its_weights_have_changed(tmp_path, other):
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file(initial._flat(other[2]), path)
    runs = [{"teacher": {"init": {"weights": str(path)}}, "student": {"init": {"weights": ""}}}]
    for _ in range(2):
        initial.claim(str(tmp_path), runs)
    kept = files.read_sealed(tmp_path / "init.json")
    assert set(kept) == {str(path), "seal"} and kept[str(path)] == initial.digest(str(path))
    safetensors.numpy.save_file({**initial._flat(other[2]), "more": np.ones(1)}, path)
    with pytest.raises(UserError, match="w.safetensors: has changed since"):
        initial.claim(str(tmp_path), runs)


def test_every_recipe_checks_weights_before_it_runs(tmp_path):
    tiny = load("tests/support/tiny_config.py").get_config("depth").to_dict()
    (tmp_path / "a.pth").write_bytes(b"x")
    for section in ("teacher", "student"):
        with pytest.raises(UserError, match=f"config.{section}: {tmp_path}/a.pth: pickled"):
            check(changed(tiny, **{f"{section}__init__weights": str(tmp_path / "a.pth")}))
    jedi = load("tests/support/jedi_config.py").get_config().to_dict()
    with pytest.raises(UserError, match="a.pth: pickled"):
        check(changed(jedi, expert__init__weights=str(tmp_path / "a.pth")))
    with pytest.raises(UserError, match="config.joint.init: the joint stage starts from its experts"):
        check(changed(jedi, joint__init__weights=str(tmp_path / "a.pth")))


def test_classes_of_a_head_are_joined_by_name(workdir, other, tmp_path):
    settings = network()[0]
    old = names(other[2])
    tasks = {"kind": Classification(("c", "d", "a", "b"))}
    model = build.network(settings, tasks)
    fresh = names(model.init(jax.random.key(0), IMAGES))
    initial.check(model, settings, IMAGES, Init(workdir), tasks)
    grown = names(initial.start(model, settings, IMAGES, jax.random.key(0), Init(workdir), tasks))
    for leaf in ("heads_kind/logits/kernel", "heads_kind/logits/bias"):
        np.testing.assert_array_equal(grown[leaf][..., [2, 3, 0]], old[leaf])
        np.testing.assert_array_equal(grown[leaf][..., 1], fresh[leaf][..., 1])
    np.testing.assert_array_equal(grown["backbone/stem/kernel"], old["backbone/stem/kernel"])
    turned = {"kind": Classification(("b", "a", "c"))}
    model = build.network(settings, turned)
    with pytest.raises(UserError, match="of other classes: heads_kind/logits/bias .'a' is 'b' in the network"):
        initial.check(model, settings, IMAGES, Init(workdir), turned)
    kept = initial.start(model, settings, IMAGES, jax.random.key(0), Init(workdir, ("heads_kind",)), turned)
    fresh = names(model.init(jax.random.key(0), IMAGES))
    np.testing.assert_array_equal(names(kept)["heads_kind/logits/kernel"], fresh["heads_kind/logits/kernel"])


def test_a_resumed_run_goes_on_from_its_checkpoint_and_not_from_the_weights_again(tmp_path, monkeypatch):
    """Killed between two checkpoints it ends in the same numbers as an unbroken run, whatever the file says by then."""
    config = without_none(get_config("classification").to_dict())
    settings = settings_of(config)
    model = build.network(settings.model, build.tasks_of(settings))
    fresh = model.init(jax.random.key(7), np.zeros((1, *settings.image.size, 3), np.uint8))
    flat = {name: np.asarray(array) + 0.125 for name, array in initial._flat(fresh).items()}
    safetensors.numpy.save_file(flat, tmp_path / "weights.safetensors")
    weights = {"weights": str(tmp_path / "weights.safetensors")}
    # The last weights, since the cut run is scored where it ends; in this process, which is patched below.
    config = changed(config, teacher__init=weights, teacher__select="last", workers=1)
    run(config, tmp_path / "whole", stage="teachers")

    whole = training.fit

    def broken(*arguments, steps, **options):
        whole(*arguments, steps=6, **options)  # of 12; the last checkpoint is at 4
        raise RuntimeError("killed")

    with monkeypatch.context() as patched, pytest.raises(Exception, match="killed"):
        patched.setattr(training, "fit", broken)
        run(config, tmp_path / "killed", stage="teachers")
    real, starts = initial.start, []

    def others(*arguments):
        starts.append(arguments)
        return jax.tree.map(lambda leaf: 0 * leaf, real(*arguments))

    monkeypatch.setattr(initial, "start", others)
    run(config, tmp_path / "killed", stage="teachers")
    one, other = (
        networks.load_weights(
            str(tmp_path / at / "teachers" / "classification"), model, np.zeros((1, 64, 64, 3), np.uint8)
        )
        for at in ("whole", "killed")
    )
    assert len(starts) == 1
    jax.tree.map(np.testing.assert_array_equal, one[0], other[0])
    learned = {name: np.asarray(a) for name, a in initial._flat(one[0]).items() if name.endswith("kernel")}
    apart = max(abs(array - flat[name]).max() for name, array in learned.items())
    assert 0 < apart < 0.5, "twelve small steps from the weights"
