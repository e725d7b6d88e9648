"""What holds for every task with one label per image or pixel, on random outputs without a network.

The same properties of detection, whose outputs are no maps, are in test_detection.py.
"""

import functools
import inspect
import pkgutil

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from must import tasks
from must.core.ratio import weighted_sum
from must.core.types import Features, Geometry, Policy, UserError
from must.data.geometry import whole_image
from must.tasks import dense
from must.tasks.base import Task, build, class_of, knows

SIZE = (16, 24)
BATCH = 4
CLASSES = tuple(f"class{i}" for i in range(7))
DENSE = {"head_stride": 4, "shuffle": 2, "width": 8, "depth": 1, "stride": 1}
TASKS = {
    "classification": build("classification", classes=CLASSES, top_k=7),
    "hard_classification": build("classification", classes=CLASSES, hard=True, label_smoothing=0.1),
    "multi_label": build("multi_label", classes=CLASSES),
    "segmentation": build("segmentation", classes=CLASSES, **DENSE),
    "soft_segmentation": build("segmentation", classes=CLASSES, top_k=3, **DENSE),
    "depth": build("depth", **DENSE),
    "log_depth": build("depth", loss_kind="log_l1", gradient=True, **DENSE),
    "relative_depth": build("depth", depth_kind="relative", gradient=True, **DENSE),
    "normals": build("normals", **DENSE),
    "angle_normals": build("normals", loss_kind="angle", **DENSE),
}
ALL = Policy(0.0, 0.0)
every_task = pytest.mark.parametrize("name", TASKS)


def _channels(task: Task) -> int:
    return len(task.classes) if hasattr(task, "classes") else {"Depth": 1, "Normals": 3}[type(task).__name__]


def _outputs(task: Task, seed: int = 0, batch: int = BATCH):
    cells = (SIZE[0] // 2, SIZE[1] // 2) if hasattr(task, "head_stride") else ()
    return 0.7 * jax.random.normal(jax.random.key(seed), (batch, *cells, _channels(task)))


@functools.cache
def _verb(name: str, verb: str):
    """The jitted verb; by name, so that tests share what is compiled."""
    return jax.jit(getattr(TASKS[name], verb))


@functools.cache
def _total_and_slope(name: str):
    """(outputs, label, weights) -> the sum of all weighted terms, numerators and denominators, and its gradient."""
    task = TASKS[name]

    def total(outputs, label, weights):
        terms = task.loss(outputs, task.target(label, ALL))
        ratios = [weighted_sum(term, weights) for term in terms.values()]
        return sum(r.num for r in ratios), [r.den for r in ratios]

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def _label(name: str, seed: int = 1):
    return {k: np.asarray(v) for k, v in _verb(name, "predict")(_outputs(TASKS[name], seed)).items()}


def _mirrored(label):
    """The label of the mirrored scene, for labels with leading axes [B, h, w, ...]."""
    out = {k: v if v.ndim == 2 else v[:, :, ::-1] for k, v in label.items()}
    return {k: v * np.float32([-1, 1, 1]) if k == "normals" else v for k, v in out.items()}


def _pick(label, i):
    return {k: v[i] for k, v in label.items()}


def _stack(labels):
    return {k: np.stack([label[k] for label in labels]) for k in labels[0]}


@every_task
def test_forms_are_as_specified(name):
    task = TASKS[name]
    label, spec = _label(name), task.network_spec(SIZE)
    predicted = {k: s for k, s in spec.items() if k not in task.optional}
    assert {k: (v.shape[1:], v.dtype) for k, v in label.items()} == {
        k: (s.shape, s.dtype) for k, s in predicted.items()
    }
    record = task.restore(_pick(label, 0), whole_image((48, 72), SIZE))
    assert set(record) == set(task.label_spec())
    for field, array_spec in task.label_spec().items():
        assert record[field].dtype == array_spec.dtype, field
        assert len(record[field].shape) == len(array_spec.shape)
        assert all(want in (None, got) for want, got in zip(array_spec.shape, record[field].shape, strict=True))
    again = task.transform(record, whole_image((48, 72), SIZE))
    assert {k: (v.shape, v.dtype) for k, v in again.items()} == {k: (s.shape, s.dtype) for k, s in spec.items()}
    terms = task.loss(_outputs(task), task.target(label, ALL))
    assert tuple(terms) == task.terms
    assert all(part.shape == (BATCH,) for term in terms.values() for part in term)
    row_summary = task.summarize(jax.device_get(TASKS[name].measure(label, label)))
    assert list(row_summary) == [metric.name for metric in task.metrics]


@every_task
def test_head_gives_what_the_loss_reads(name):
    task = TASKS[name]
    pyramid = {s: jnp.ones((2, SIZE[0] // s, SIZE[1] // s, 8)) for s in (4, 8)}
    features = Features(pyramid, jnp.ones((2, 8)))
    run = lambda key: task.head().init_with_output(key, features, train=False, image_size=SIZE)[0]  # noqa: E731
    assert jax.eval_shape(run, jax.random.key(0)).shape == _outputs(task, batch=2).shape


SPOILS = {
    "scores": lambda v: np.full_like(v, np.nan if v.dtype == np.float32 else 77),
    "probs": lambda v: np.full_like(v, np.nan if v.dtype == np.float32 else 77),
    "ids": lambda v: np.full_like(v, 99),
    "depth": lambda v: np.full_like(v, np.nan),
    "normals": lambda v: np.full_like(v, np.nan),
}


@every_task
def test_labels_with_weight_zero_cannot_matter(name):
    label, outputs, run = _label(name), _outputs(TASKS[name]), _total_and_slope(name)
    weights = jnp.array([1.0, 0.0, 0.3, 1.0])
    spoilt = {k: np.array(v) for k, v in label.items()}
    for k, v in spoilt.items():
        v[1] = SPOILS[k](v[1])
    (clean, norms), slope = run(outputs, label, weights)
    (dirty, dirty_norms), dirty_slope = run(outputs, spoilt, weights)
    assert clean == dirty and norms == dirty_norms and np.isfinite(clean)
    np.testing.assert_array_equal(slope, dirty_slope)
    assert not slope[1].any() and slope[0].any() and slope[2].any()


@every_task
def test_invalid_pixels_cannot_matter(name):
    task = TASKS[name]
    if not hasattr(task, "head_stride"):
        pytest.skip("no pixels")
    label, outputs, run = _label(name), _outputs(task), _total_and_slope(name)
    invalid = np.zeros((BATCH, *SIZE), bool)
    invalid[0, 4:10, 6:20] = invalid[1, :, :12] = True
    blanked = {k: np.array(v) for k, v in label.items()}
    for k, v in blanked.items():
        v[invalid] = 255 if k == "ids" else 0
    spoilt = {k: np.array(v) for k, v in blanked.items()}
    for k, v in spoilt.items():
        if k != "ids":
            v[invalid] = SPOILS[k](v[invalid])
    cells = invalid[:, 1::2, 1::2]
    bad_outputs = jnp.where(cells[..., None], jnp.nan, outputs)
    weights = jnp.ones(BATCH)
    (clean, norms), slope = run(outputs, blanked, weights)
    (full, _), _ = run(outputs, label, weights)
    assert clean != full
    for other in (run(outputs, spoilt, weights), run(bad_outputs, blanked, weights)):
        assert other[0][0] == clean and other[0][1] == norms
        np.testing.assert_array_equal(other[1], slope)
    assert np.isfinite(slope).all() and not np.asarray(slope)[cells].any()


@every_task
def test_nothing_valid_is_finite(name):
    task = TASKS[name]
    nothing = _stack([task.blank(SIZE)] * BATCH)
    if "ids" in nothing:
        nothing["ids"] += 255
    (value, norms), slope = _total_and_slope(name)(_outputs(task), nothing, jnp.ones(BATCH))
    assert np.isfinite(value) and np.isfinite(slope).all()
    if hasattr(task, "head_stride"):  # without pixels every label counts
        assert value == 0 and not any(norms) and not slope.any()
    (value, norms), slope = _total_and_slope(name)(_outputs(task), nothing, jnp.zeros(BATCH))
    assert value == 0 and not any(norms) and not slope.any()


@every_task
def test_permuting_the_batch_permutes_values(name):
    task, order = TASKS[name], np.array([2, 0, 3, 1])
    label, outputs = _label(name), _outputs(task)
    run = _verb(name, "loss")
    straight = run(outputs, task.target(label, ALL))
    permuted = run(outputs[order], task.target({k: v[order] for k, v in label.items()}, ALL))
    for term in straight:
        np.testing.assert_allclose(permuted[term].value, straight[term].value[order], rtol=1e-5)
        np.testing.assert_array_equal(permuted[term].norm, straight[term].norm[order])


@every_task
def test_own_prediction_is_the_best_answer(name):
    """Best metrics, and a lower loss than outputs nearby."""
    task, label = TASKS[name], _label(name, 5)
    best = task.summarize(jax.device_get(TASKS[name].measure(label, label)))
    worse = task.summarize(jax.device_get(TASKS[name].measure(_label(name, 6), label)))
    for metric in task.metrics:
        if metric.name != "nll":
            ideal = {"%": 100.0, "": 1.0}[metric.unit] if metric.higher_is_better else 0.0
            assert best[metric.name] == pytest.approx(ideal, abs=0.051 if metric.name == "median_angle" else 2e-4)
        if metric.name != "top5":
            assert (worse[metric.name] < best[metric.name]) == metric.higher_is_better, metric.name
    # One value per example, so that enlarging and sampling change nothing.
    flat = _outputs(task, 5)
    if hasattr(task, "stride"):
        flat = jnp.broadcast_to(flat[:, :1, :1], flat.shape)
    if name == "relative_depth":  # needs variation
        flat = flat + jnp.linspace(0, 1, flat.shape[1])[:, None, None].round(1)
    if "hard" in name or name == "segmentation":
        flat = 8.0 * flat  # a hard label is met by saturated outputs
    told = _verb(name, "predict")(flat)
    run, weights = _total_and_slope(name), jnp.ones(BATCH)
    (own, _), _ = run(flat, told, weights)
    for seed in range(3):
        (other, _), _ = run(flat + 0.5 * _outputs(task, 10 + seed), told, weights)
        assert own < other


# Two mirrored, one zoomed: frame pixels and stored pixels coincide, so that nothing but the quantization remains.
GEOMETRIES = {
    "whole": whole_image((32, 48), SIZE),
    "mirrored": whole_image((32, 48), SIZE)._replace(flip=True),
    "zoomed": Geometry((32, 48), SIZE, (1.0, 1.0), (-5.0, -9.0), True, 2.0),
}


@every_task
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_restore_then_transform_is_within_the_stated_error(name, geometry):
    task = TASKS[name]
    label = _pick(_label(name), 0)
    back = task.transform(task.restore(label, geometry), geometry)
    for field, value in label.items():
        if value.dtype == np.uint8:
            np.testing.assert_array_equal(back[field], value)
        elif field == "depth":
            bound = (value.max() - value.min()) / 131068
            assert np.abs(back[field] - value).max() <= bound * 1.02
        elif field == "normals":
            degrees = np.rad2deg(np.arccos(np.clip((back[field] * value).sum(-1), -1, 1)))
            assert 0 < degrees.max() <= 0.41  # the arc cosine's own rounding is below 0.03
        elif name in ("classification", "multi_label"):
            assert np.abs(back[field] - value).max() <= 2**-11
        else:  # five of seven listed
            order = np.argsort(-value)
            np.testing.assert_allclose(back[field][order[:5]], value[order[:5]], atol=2**-10)
            np.testing.assert_allclose(back[field][order[5:]], value[order[5:]].mean(), atol=2**-9)


@every_task
def test_a_mirrored_scene_has_mirrored_labels(name):
    task = TASKS[name]
    outputs, label = _outputs(task), _label(name)
    record = task.restore(_pick(label, 0), GEOMETRIES["whole"])
    straight = {k: v[None] for k, v in task.transform(record, GEOMETRIES["whole"]).items()}
    flipped = {k: v[None] for k, v in task.transform(record, GEOMETRIES["mirrored"]).items()}
    for field, value in _mirrored(straight).items():
        np.testing.assert_array_equal(flipped[field], value)
    np.testing.assert_array_equal(task.hflip_outputs(task.hflip_outputs(outputs)), outputs)
    mirrored = _verb(name, "predict")(task.hflip_outputs(outputs))
    for field, value in _mirrored(_verb(name, "predict")(outputs)).items():
        np.testing.assert_allclose(mirrored[field], value, rtol=1e-5, atol=1e-6)


@every_task
def test_rows_of_batches_summarize_as_one(name):
    task, measure = TASKS[name], TASKS[name].measure
    predicted, true = _label(name, 1), _label(name, 2)
    whole = jax.device_get(measure(predicted, true))
    halves = [
        jax.device_get(measure({k: v[s] for k, v in predicted.items()}, {k: v[s] for k, v in true.items()}))
        for s in (np.array([2, 3, 3, 3]), np.array([0, 1, 1, 1]))
    ]
    rows = {k: np.concatenate([half[k][:2] for half in halves]) for k in whole}
    for key, value in task.summarize(whole).items():
        assert task.summarize(rows)[key] == pytest.approx(value, rel=1e-6), key
    assert all(np.isnan(v) for v in task.summarize({k: v[:0] for k, v in whole.items()}).values())


@every_task
def test_draw_gives_a_picture_for_any_label(name):
    task = TASKS[name]
    image = np.full((*SIZE, 3), 90, np.uint8)
    pictures = [task.draw(image, label) for label in (_pick(_label(name), 0), task.blank(SIZE))]
    for picture in pictures:
        assert picture.dtype == np.uint8 and picture.shape == pictures[0].shape
        assert min(picture.shape[:2]) >= 192
    assert (pictures[0] != pictures[1]).any()


@pytest.mark.parametrize("name", ["classification", "segmentation"])
def test_policies(name):
    task = TASKS[name]
    label = {k: np.array(v) for k, v in _label(name).items()}
    if name == "segmentation":
        label["ids"][..., 0], label["probs"][..., 0] = 3, 153
        label["probs"][:, 0::2, :, 0] = 255
        score = dense.sample(label["probs"], 2)[..., 0] / 255
    else:
        label["probs"][:] = 0.4 / 6
        label["probs"][:, 3] = 0.6
        label["probs"][2] = np.eye(7)[3]
        score = label["probs"][:, 3]
    used = lambda positive: np.asarray(task.target(label, Policy(positive, 0.0))["used"])  # noqa: E731
    assert used(0.5).all() and used(0.6).all()
    np.testing.assert_array_equal(used(0.7), score == 1)
    np.testing.assert_array_equal(used(1.5), score == 1)  # the truth is always taken
    per_class = np.full(7, 0.1)
    per_class[3] = 0.8
    np.testing.assert_array_equal(used(per_class), score == 1)
    assert used(0.9 - per_class).all()
    score, correct, ids = task.judge(_pick(label, 0), _pick(label, 0))
    assert (
        correct[ids == 3].all()
        and not correct[ids != 3].any()
        and score[ids == 3].min() == pytest.approx(0.6, abs=0.01)
    )
    assert task.items(_pick(label, 0)).tolist() == [0, 0, 0, correct.sum(), 0, 0, 0]


@pytest.mark.parametrize(
    "kind, hyper_parameters, words",
    [
        ("classification", {"classes": ()}, "no classes"),
        ("classification", {"classes": CLASSES, "temperature": 0.0}, "temperature"),
        ("segmentation", {"classes": CLASSES, "top_k": 8}, "top_k 8"),
        ("segmentation", {"classes": tuple(map(str, range(256)))}, "uint8"),
        ("depth", {"depth_kind": "metrical"}, "metrical"),
        ("depth", {"loss_kind": "l2"}, "l2"),
        ("depth", {"min_depth": 2.0, "max_depth": 1.0}, "min_depth < max_depth"),
        ("normals", {"head_stride": 4, "shuffle": 3}, "shuffle 3"),
        ("normals", {"loss_kind": "l2"}, "l2"),
        ("normals", {"strid": 4}, "strid"),
    ],
)
def test_wrong_hyper_parameters_are_named(kind, hyper_parameters, words):
    with pytest.raises(UserError, match=words):
        build(kind, **hyper_parameters)


def test_a_frame_of_broken_cells_is_refused():
    with pytest.raises(UserError, match="15 x 24"):
        TASKS["depth"].check_frame((15, 24))


WRONG = {
    "classification": [
        ({"ids": [7], "probs": [1.0], "rest": 0.0}, "class id 7 with 7"),
        ({"ids": [1, 1], "probs": [0.5, 0.5], "rest": 0.0}, "twice"),
        ({"ids": [1], "probs": [0.5], "rest": 0.1}, "sum to 1"),
        ({"ids": [1], "probs": [np.nan], "rest": 0.1}, "sum to 1"),
        ({"ids": [1, 2], "probs": [0.5], "rest": 0.5}, "2 class ids"),
    ],
    "segmentation": [
        ({"ids": np.full((4, 4, 1), 9, np.uint8), "probs": np.zeros((4, 4, 1), np.uint8)}, "class id 9"),
        ({"ids": np.zeros((4, 4, 1), np.uint8), "probs": np.zeros((4, 5, 1), np.uint8)}, "shape"),
    ],
    "depth": [
        ({"depth": np.ones((4, 4), np.uint16), "scale": 1.0, "offset": -2.0}, "-1 m"),
        ({"depth": np.ones((4, 4), np.uint16), "scale": np.nan, "offset": 0.0}, "nan"),
        ({"depth": np.ones((4, 4, 1), np.uint16), "scale": 1.0, "offset": 0.0}, "shape"),
    ],
    "normals": [
        ({"normals": np.full((4, 4, 3), 127, np.int8)}, "length 1.73"),
        ({"normals": np.zeros((4, 4), np.int8)}, "shape"),
    ],
}


@pytest.mark.parametrize("name", WRONG)
def test_impossible_labels_are_named(name):
    for label, words in WRONG[name]:
        with pytest.raises(ValueError, match=words):
            TASKS[name].transform(label, GEOMETRIES["whole"])


# --- Exports ---

KINDS = [
    module.name
    for module in pkgutil.iter_modules(tasks.__path__)
    if knows(module.name) and class_of(module.name).head is not Task.head
]


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_traced_for_a_batch_of_any_size(kind):
    """As exports are, whose batch is a symbol; nothing is compiled."""
    parameters = inspect.signature(class_of(kind)).parameters
    small = {"classes": CLASSES, "strides": (8, 16), "candidates": 20, "proposals": 6, "max_detections": 4}
    task = build(kind, **{name: value for name, value in small.items() if name in parameters})
    (rows,) = jax.export.symbolic_shape("rows")
    of = lambda *shape: jax.ShapeDtypeStruct((rows, *shape), jnp.float32)  # noqa: E731
    features = Features({stride: of(32 // stride, 48 // stride, 8) for stride in (4, 8, 16)}, of(8))

    def program(features):
        outputs, _ = task.head().init_with_output(jax.random.key(0), features, train=False, image_size=(32, 48))
        return task.predict(outputs)

    label = jax.eval_shape(program, features)
    assert label and {value.shape[0] for value in label.values()} == {rows}
