"""Rows per image, what drops out of them, intervals over images, and the guess that a trained model has to beat."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must.core.types import Batch, Metric, Model, UserError
from must.data.geometry import own_frame
from must.evaluate.evaluate import bootstrap_interval, constant_guess, measure_batches, repeated, summarize
from must.pseudo_label.teacher import label_step
from must.tasks.base import Task
from must.tasks.classification import Classification
from must.tasks.depth import Depth
from must.tasks.detection import Detection
from must.tasks.normals import Normals
from must.tasks.segmentation import Segmentation

NAMES = ("red", "green", "blue")
SIZE = (8, 8)
TASKS = {"classification": Classification(classes=NAMES), "depth": Depth()}


def _apply(variables, inputs, *, train, key, axis_name=None):
    """A model that is not one of ours: class from the mean color, log depth from every 4x4 block's brightness."""
    assert not train
    x = inputs.astype(jnp.float32) / 255
    blocks = x.reshape(len(x), 2, 4, 2, 4, 3).mean((2, 4, 5))[..., None]
    outputs = {"classification": x.mean((1, 2)) @ variables["params"], "depth": blocks, "unasked": blocks}
    return outputs, {}


MODEL = Model(lambda key, inputs: {"params": jax.random.normal(key, (3, 3))}, _apply)
VARIABLES = MODEL.init(jax.random.key(0), None)
STEP = jax.jit(functools.partial(label_step, model=MODEL, tasks=TASKS))


def predict(inputs):
    return STEP(VARIABLES, inputs["image"])


def score(batches, predict=predict):
    return measure_batches(predict, batches, TASKS)


def annotated(labels, count):
    """Labels in the images' own frames, as `as_annotated` has them."""
    out = {}
    for name, fields in labels.items():
        rows = np.empty(count, object)
        rows[:] = [({field: value[i] for field, value in fields.items()}, own_frame(SIZE)) for i in range(count)]
        out[name] = {"truth": rows}
    return out


def batch(count):
    rng = np.random.default_rng(0)
    labels = {
        "classification": {"probs": np.eye(3, dtype=np.float32)[rng.integers(0, 3, count)]},
        "depth": {"depth": rng.uniform(0.5, 5, (count, *SIZE)).astype(np.float32)},
    }
    weights = {name: np.ones(count, np.float32) for name in labels}
    inputs = {"image": rng.integers(0, 255, (count, *SIZE, 3), np.uint8)}
    return Batch(inputs, annotated(labels, count), weights, np.arange(count))


WHOLE = batch(24)  # batches of 24 and 8 only: each size compiles once


def classes_of(whole):
    return np.stack([label["probs"] for label, _ in whole.labels["classification"]["truth"]])


def part(whole, start, stop):
    return jax.tree.map(lambda leaf: leaf[start:stop], whole)


def test_rows_of_batches_are_rows_of_their_union():
    whole = WHOLE
    at_once = score([whole])
    in_parts = score(iter([part(whole, 0, 8), part(whole, 8, 16), part(whole, 16, 24)]))
    assert set(at_once) == set(TASKS)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), at_once, in_parts)
    assert summarize(TASKS, at_once)["depth"] == pytest.approx(summarize(TASKS, in_parts)["depth"])
    assert "weight" not in at_once["depth"] and len(at_once["depth"]["images"]) == 24


def test_rows_of_weight_zero_drop_out_whatever_they_hold():
    whole = WHOLE
    expected = jax.tree.map(lambda rows: rows[:17], score([whole]))
    weights = {name: np.where(np.arange(24) < 17, 0.25, 0).astype(np.float32) for name in TASKS}
    labels = jax.tree.map(np.copy, whole.labels)
    labels["depth"]["truth"][17:] = None
    found = score([whole._replace(labels=labels, weights=weights)])
    # A weight that is not 0 is no weight of the metric: the example counts once.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)


def test_tasks_drop_out_on_their_own():
    weights = {"classification": (np.arange(24) % 3 > 0).astype(np.float32), "depth": np.eye(24, dtype=np.float32)[5]}
    rows = score([WHOLE._replace(weights=weights)])
    assert len(rows["classification"]["top1"]) == 16 and len(rows["depth"]["images"]) == 1


def test_a_task_that_the_batch_does_not_annotate_has_no_rows():
    name = "classification"
    only = WHOLE._replace(labels={name: WHOLE.labels[name]}, weights={name: WHOLE.weights[name]})
    assert set(score([only])) == {name}
    assert score([]) == {}


def test_nothing_annotated_is_an_error_of_the_user():
    nothing = {name: np.zeros(24, np.float32) for name in TASKS}
    with pytest.raises(UserError, match="none of the evaluated examples"):
        summarize(TASKS, score([WHOLE._replace(weights=nothing)]))


def test_scores_are_what_the_predictions_deserve():
    whole = WHOLE
    predicted = np.argmax(whole.inputs["image"].mean((1, 2)) @ np.asarray(VARIABLES["params"]), -1)
    right = 100 * np.mean(predicted == classes_of(whole).argmax(-1))
    assert summarize(TASKS, score([whole]))["classification"]["top1"] == pytest.approx(right)


def test_bootstrap_interval_is_that_of_a_mean():
    rng = np.random.default_rng(3)
    rows = {"top1": (rng.random(400) < 0.7).astype(np.float32), "top5": np.ones(400), "nll": np.ones(400)}
    task = TASKS["classification"]
    low, high = bootstrap_interval(task, rows)
    mean, error = 100 * rows["top1"].mean(), 100 * rows["top1"].std() / 20
    assert low < mean < high
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert bootstrap_interval(task, rows) == (low, high)  # the seed is an argument
    assert bootstrap_interval(task, rows, "top5") == (100, 100)


def test_bootstrap_interval_covers_the_truth():
    rng = np.random.default_rng(4)
    inside = 0
    for trial in range(120):
        rows = {"top1": (rng.random(100) < 0.6).astype(np.float32), "top5": np.ones(100), "nll": np.ones(100)}
        low, high = bootstrap_interval(TASKS["classification"], rows, resamples=200, seed=trial)
        inside += low <= 60 <= high
    assert 0.87 < inside / 120 <= 1.0


def test_pairing_removes_what_both_share():
    rng = np.random.default_rng(5)
    hard = rng.random(300)
    rows = {"top1": (hard < 0.65).astype(np.float32), "top5": np.ones(300), "nll": np.ones(300)}
    worse = rows | {"top1": (hard < 0.6).astype(np.float32)}
    low, high = bootstrap_interval(TASKS["classification"], rows, versus=worse)
    assert 0 < low < high < 12
    alone = bootstrap_interval(TASKS["classification"], rows)
    assert high - low < 0.7 * (alone[1] - alone[0])
    same = bootstrap_interval(TASKS["classification"], rows, versus=rows)
    assert same == (0, 0)


def test_bootstrap_refuses_what_cannot_be_paired():
    rows = {"top1": np.ones(3), "top5": np.ones(3), "nll": np.ones(3)}
    with pytest.raises(ValueError, match="not 3 and 2"):
        bootstrap_interval(TASKS["classification"], rows, versus={name: value[:2] for name, value in rows.items()})
    with pytest.raises(ValueError, match="at least one row"):
        bootstrap_interval(TASKS["classification"], {name: value[:0] for name, value in rows.items()})


def _directions(rng, shape):
    normals = rng.normal((0.2, -0.3, -1.0), 0.3, (*shape, 3))
    return (normals / np.linalg.norm(normals, axis=-1, keepdims=True)).astype(np.float32)


def test_guesses_are_majority_median_mean_and_nothing():
    rng = np.random.default_rng(6)
    classes = [0, 1, 1, 1, 2]
    probs = [{"probs": np.eye(3, dtype=np.float32)[c]} for c in classes]
    assert np.argmax(constant_guess(TASKS["classification"], probs)["probs"]) == 1

    depths = [np.where(rng.random(SIZE) < 0.5, rng.uniform(1, 4, SIZE), 0).astype(np.float32) for _ in range(5)]
    guess = constant_guess(Depth(), [{"depth": d} for d in depths])["depth"]
    valid = np.concatenate([d[d > 0] for d in depths])
    assert guess.shape == SIZE and np.all(guess == np.median(valid).astype(np.float32))

    ids = rng.choice([0, 1, 2, 255], (5, *SIZE, 1), p=[0.1, 0.2, 0.1, 0.6]).astype(np.uint8)
    maps = [{"ids": i, "probs": np.full_like(i, 255)} for i in ids]
    guess = constant_guess(Segmentation(classes=NAMES), maps)
    assert np.all(guess["ids"] == 1) and guess["ids"].dtype == np.uint8  # 255, ignored, is the most frequent

    normals = [{"normals": _directions(rng, SIZE)} for _ in range(5)]
    mean = sum(n["normals"].sum((0, 1)) for n in normals)
    guess = constant_guess(Normals(), normals)["normals"]
    np.testing.assert_allclose(guess[3, 4], mean / np.linalg.norm(mean), rtol=1e-5)

    detection = Detection(classes=NAMES, max_boxes=4)
    boxes = detection.blank(SIZE) | {"valid": np.ones(4, bool), "scores": np.ones(4, np.float32)}
    assert not constant_guess(detection, [boxes])["valid"].any()


def test_a_guess_is_evaluated_like_a_model_and_no_other_class_beats_it():
    whole = WHOLE
    guesses = {n: constant_guess(t, [label for label, _ in whole.labels[n]["truth"]]) for n, t in TASKS.items()}

    def rows(predicted):
        return score([whole], functools.partial(repeated, predicted))

    best = summarize(TASKS, rows(guesses))
    counts = classes_of(whole).sum(0)
    assert best["classification"]["top1"] == pytest.approx(100 * counts.max() / 24)
    for other in np.eye(3, dtype=np.float32):
        top1 = summarize(TASKS, rows({"classification": {"probs": other}}))["classification"]["top1"]
        assert top1 <= best["classification"]["top1"]
    # Twice the median depth does worse, by an interval over images.
    wrong = guesses | {"depth": {"depth": 2 * guesses["depth"]["depth"]}}
    mine, blind = (rows(predicted)["depth"] for predicted in (wrong, guesses))
    assert bootstrap_interval(TASKS["depth"], mine, versus=blind, resamples=200)[0] > 0


class _Number(Task):
    """A task of a user's own: one number per image."""

    metrics = (Metric("error", "", False),)

    def measure(self, prediction, truth):
        return {"error": jnp.abs(prediction["number"] - truth["number"])}

    def summarize(self, rows):
        return {"error": float(np.mean(rows["error"]))}


def test_a_task_that_nobody_knows_gets_its_best_label():
    labels = [{"number": np.float32(v)} for v in (0, 1, 2, 3, 100)]
    assert constant_guess(_Number(), labels)["number"] == 2  # least mean absolute error: the median
