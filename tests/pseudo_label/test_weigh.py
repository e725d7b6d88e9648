"""Debiasing weights keep what the theory promises (P1, P3), and the arms that must fail do fail."""

import numpy as np
import pytest

from must.core.types import UserError
from must.pseudo_label import weigh
from tests.experiments import debiasing

SIGMOID = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731


def _log_loss(label, logit):
    return np.logaddexp(0, np.where(label == 1, -logit, logit))


class World:
    """Binary labels; a teacher that is right where its margin is high, and a student that is surest where it is not."""

    def __init__(self, count, seed):
        rng = np.random.default_rng(seed)
        self.truth = rng.integers(0, 2, count)
        hard = rng.random(count) < 0.3
        self.accuracy = np.where(hard, 0.55, 0.97)
        self.says = np.where(rng.random(count) < self.accuracy, self.truth, 1 - self.truth)
        self.logit = (2 * self.truth - 1) * np.where(hard, 3.0, 1.5) + rng.normal(0, 0.3, count)
        teacher = np.where(hard, 0.1, 0.9) + rng.normal(0, 0.03, count)
        self.covariates = np.stack([teacher, np.abs(2 * SIGMOID(self.logit) - 1)], -1)
        self.true_loss, self.teacher_loss = _log_loss(self.truth, self.logit), _log_loss(self.says, self.logit)

    @property
    def held_out(self):
        return weigh.HeldOut(self.covariates, self.true_loss, self.teacher_loss)

    def bias(self, weights):
        return float((weights * self.teacher_loss).mean() - self.true_loss.mean())


def _mean_of_ratios(world, queries, k):
    """The estimator that Jensen forbids."""
    ratios = (world.true_loss + 1e-6) / (world.teacher_loss + 1e-6)
    scaled, asked = (c / world.covariates.std(0) for c in (world.covariates, queries.covariates))
    near = np.argsort(((asked[:, None] - scaled[None]) ** 2).sum(-1), 1)[:, :k]
    return ratios[near].mean(1)


def test_exact_weights_are_unbiased_for_every_example():
    rng = np.random.default_rng(0)
    accuracy, true, wrong = rng.uniform(0.2, 1, 50), rng.uniform(0.05, 3, 50), rng.uniform(0.05, 3, 50)
    weights = weigh.exact(accuracy, wrong / true)
    np.testing.assert_allclose(weights * (accuracy * true + (1 - accuracy) * wrong), true, rtol=1e-12)
    assert (weights <= 1 / accuracy + 1e-12).all()
    np.testing.assert_allclose(weigh.exact(np.ones(3), np.array([0.1, 1, 9])), 1)  # a perfect teacher
    np.testing.assert_allclose(weigh.exact(np.array([0.1, 0.5]), np.ones(2)), 1)  # a wrong label costs the same


def test_exact_weights_by_sampling_and_the_unweighted_mean_fails():
    world = World(40_000, 0)
    flipped = _log_loss(1 - world.truth, world.logit)
    weights = weigh.exact(world.accuracy, flipped / world.true_loss)
    error = np.std(weights * world.teacher_loss - world.true_loss) / len(weights) ** 0.5
    assert abs(world.bias(weights)) < 3 * error
    assert world.bias(1.0) > 30 * error


@pytest.mark.parametrize("name", ["ratio_of_means", "plug_in"])
def test_estimates_from_five_hundred_examples(name):
    biases, wrong = [], []
    for seed in range(8):
        held, pool = World(500, seed), World(3000, 100 + seed)
        if name == "plug_in":
            estimate = weigh.plug_in(held.held_out, held.says == held.truth)
        else:
            estimate = weigh.ratio_of_means(held.held_out)
        biases.append(pool.bias(estimate(pool.covariates)))
        wrong.append(pool.bias(_mean_of_ratios(held, pool, 22)))
    rmse = lambda values: np.sqrt(np.mean(np.square(values)))  # noqa: E731
    unweighted = World(3000, 100).bias(1.0)
    assert unweighted > 0.3 and rmse(biases) < unweighted / 5
    assert rmse(wrong) > 3 * rmse(biases)
    # Weights of mean 1 put the bias back.
    normalized = estimate(pool.covariates) / estimate(pool.covariates).mean()
    assert abs(pool.bias(normalized)) > 3 * rmse(biases)


def test_a_perfect_teacher_and_a_saturated_student():
    world = World(200, 1)
    perfect = world.held_out._replace(teacher_loss=world.true_loss)
    np.testing.assert_allclose(weigh.ratio_of_means(perfect)(world.covariates), 1, atol=1e-6)
    np.testing.assert_allclose(weigh.plug_in(perfect, np.ones(200, bool))(world.covariates), 1, atol=1e-6)
    still = world.held_out._replace(teacher_loss=np.zeros(200), true_loss=np.zeros(200))
    np.testing.assert_allclose(weigh.ratio_of_means(still)(world.covariates), 1)


def test_all_neighbors_give_one_ratio_and_order_and_scale_do_not_matter():
    world, other = World(300, 2), World(64, 3)
    weights = weigh.ratio_of_means(world.held_out, neighbors=300)(other.covariates)
    np.testing.assert_allclose(weights, world.true_loss.mean() / world.teacher_loss.mean(), rtol=1e-5)
    base = weigh.ratio_of_means(world.held_out)(other.covariates)
    assert base.std() > 0.05 and base.shape == (64,)
    mixed = np.random.default_rng(0).permutation(300)
    shuffled = weigh.HeldOut(*(field[mixed] for field in world.held_out[:3]))
    np.testing.assert_allclose(weigh.ratio_of_means(shuffled)(other.covariates), base, rtol=1e-5)
    stretched = world.held_out._replace(covariates=world.covariates * [1000, 1] + 5)
    np.testing.assert_allclose(weigh.ratio_of_means(stretched)(other.covariates * [1000, 1] + 5), base, rtol=1e-5)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"covariates": np.zeros((0, 2)), "true_loss": np.zeros(0), "teacher_loss": np.zeros(0)}, "empty"),
        ({"true_loss": np.array([1.0, np.nan, 1.0])}, "true_loss of validation example 1"),
        ({"teacher_loss": np.zeros(2)}, "2 values of teacher_loss"),
    ],
)
def test_held_out_sets_that_cannot_serve(change, says):
    held = weigh.HeldOut(np.zeros((3, 2)), np.ones(3), np.ones(3))._replace(**change)
    with pytest.raises(UserError, match=says):
        weigh.ratio_of_means(held)


def test_more_neighbors_than_examples():
    held = weigh.HeldOut(np.zeros((3, 2)), np.ones(3), np.ones(3))
    with pytest.raises(UserError, match="4 neighbors, but there are 3"):
        weigh.ratio_of_means(held, neighbors=4)


def test_isotonic_accuracy_rises_pools_violators_and_keeps_its_floor():
    rng = np.random.default_rng(0)
    margins = rng.random(4000)
    correct = rng.random(4000) < 0.3 + 0.7 * margins
    accuracy = weigh.isotonic_accuracy(margins, correct, floor=0.5)
    grid = np.linspace(0, 1, 50)
    assert (np.diff(accuracy(grid)) >= 0).all() and accuracy(np.array([0.0]))[0] == 0.5
    assert np.abs(accuracy(grid) - np.maximum(0.3 + 0.7 * grid, 0.5)).max() < 0.1
    pooled = weigh.isotonic_accuracy(np.array([0.1, 0.2, 0.3]), np.array([1, 0, 1]), floor=0.0)
    np.testing.assert_allclose(pooled(np.array([0.1, 0.2, 0.3])), [0.5, 0.5, 1.0])


def test_margins():
    probs = np.array([[0.7, 0.2, 0.1], [0.4, 0.4, 0.2]])
    np.testing.assert_allclose(weigh.margin(probs), [0.5, 0.0], atol=1e-6)
    assert weigh.covariates(probs, probs[::-1]).shape == (2, 2)


def test_the_bound_holds_a_ratio_that_a_student_has_run_away_with():
    """P3: w <= 1 / p. A student that copies its teacher loses nothing on its label and everything on the truth."""
    rng = np.random.default_rng(0)
    correct = rng.random(400) < 0.7
    held = weigh.HeldOut(rng.random((400, 2)), np.where(correct, 1e-3, 7.0), np.full(400, 1e-3))
    points = rng.random((100, 2))
    free, bound = weigh.ratio_of_means(held)(points), weigh.ratio_of_means(held, correct=correct)(points)
    assert free.min() > 100 and bound.max() <= 20  # k = 20 neighbors, at least one of them right
    plug = weigh.plug_in(held, correct)(points)
    np.testing.assert_allclose(plug, bound, rtol=0.05)  # d is next to 0 there
    loose = held._replace(teacher_loss=np.where(correct, 1.0, 3.0), true_loss=np.ones(400))
    np.testing.assert_allclose(
        weigh.ratio_of_means(loose, correct=correct)(points), weigh.ratio_of_means(loose)(points)
    )


def test_candidates_are_as_few_as_hold_the_truth_often_enough():
    rng = np.random.default_rng(0)
    margins = rng.random(20_000)
    rank = np.floor(-np.log(rng.random(20_000)) * 3 * (1 - margins)).astype(
        int
    )  # P(rank < k) = 1 - exp(-k / 3 (1 - m))
    count = weigh.candidates(margins, rank, target_precision=0.9, max_count=10)
    grid = np.linspace(0.05, 0.95, 19)
    want = np.clip(np.ceil(-np.log(0.1) * 3 * (1 - grid)), 2, 10)
    assert np.abs(count(grid) - want).max() <= 1 and (np.diff(count(grid)) <= 0).all()
    assert count(np.array([0.99]))[0] == 2 and count(np.array([0.0])).dtype == np.int32
    assert (weigh.candidates(margins, rank, target_precision=1.1, max_count=4)(grid) == 4).all()


def test_confidence_of_a_distribution():
    np.testing.assert_allclose(weigh.confidence(np.array([[1.0, 0, 0, 0], [0.25] * 4])), [1, 0], atol=1e-6)
    np.testing.assert_allclose(weigh.confidence(np.array([0.5, 0.5, 0, 0])), 0.5, atol=1e-6)


def test_the_synthetic_experiment_comes_out_in_its_order():
    """The control arms must lose: unweighted, mean of ratios and normalized weights; plain training."""
    biases = [debiasing.bias(seed) for seed in range(8)]
    mean = {name: np.mean([row[name] for row in biases]) for name in biases[0]}
    for name in ("ratio of means", "ratio of means, at most 1/p", "plug-in", "oracle"):
        assert abs(mean[name]) <= 0.01, name
    assert mean["unweighted"] >= 0.2
    assert min(mean["mean of ratios (wrong)"], mean["ratio of means, mean 1 (wrong)"]) > 0.1
    arms = ("plain", "estimated", "oracle", "slam")
    accuracies = [debiasing.accuracies(seed, arms) for seed in range(8)]
    plain, estimated, oracle, slam = (np.mean([row[arm] for row in accuracies]) for arm in arms)
    assert plain + 0.03 < estimated < oracle <= slam


def test_sums_come_first_and_division_last():
    """Several terms with items of their own; an example of which nothing is believed leaves both sums."""
    held = weigh.HeldOut(
        np.zeros((3, 1)),
        true_loss=np.array([[4.0, 1.0], [2.0, 3.0], [6.0, 2.0]]),
        teacher_loss=np.array([[3.0, 1.0], [0.0, 0.0], [9.0, 5.0]]),
        true_items=np.array([[2, 1], [2, 1], [2, 1]]),
        teacher_items=np.array([[1, 1], [0, 0], [3, 2]]),
    )
    (weight,) = weigh.ratio_of_means(held, neighbors=3)(np.zeros((1, 1)))
    assert weight == pytest.approx((12 / 6 + 6 / 3) / (12 / 4 + 6 / 3), rel=1e-5)
    nothing = held._replace(teacher_loss=np.full((3, 2), 0.5), teacher_items=np.zeros((3, 2)))
    (weight,) = weigh.ratio_of_means(nothing, neighbors=3)(
        np.zeros((1, 1))
    )  # no objects found: one item stands for none
    assert weight == pytest.approx((12 / 6 + 6 / 3) / (1.5 + 1.5), rel=1e-5)


def test_on_its_own_training_images_a_teacher_hides_its_mistakes():
    """W5: a nearest-neighbor teacher is always right on what it has memorized; weights from there are all 1."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(900, 2))
    truth = (points[:, 0] + rng.normal(0, 0.8, 900) > 0).astype(int)
    memory, own, fresh = slice(0, 300), slice(0, 300), slice(300, 900)

    def held_out(part):
        near = ((points[part][:, None] - points[memory][None]) ** 2).sum(-1).argmin(1)
        logit = 2 * points[part][:, 0]  # the student
        return weigh.HeldOut(points[part], _log_loss(truth[part], logit), _log_loss(truth[memory][near], logit))

    at = rng.normal(size=(200, 2))
    np.testing.assert_allclose(weigh.ratio_of_means(held_out(own))(at), 1, atol=1e-6)
    assert np.abs(weigh.ratio_of_means(held_out(fresh))(at) - 1).mean() > 0.1
