"""Thresholds chosen on held-out truth keep what they promise."""

import numpy as np

from must.core.types import Policy
from must.pseudo_label.policy import hard, three_state


def _claims(rng, count, classes, slope):
    """Scores that are right with probability score ** slope per class."""
    score, ids = rng.random(count), rng.integers(0, classes, count)
    return score.astype(np.float32), rng.random(count) < score ** np.asarray(slope)[ids], ids


def test_hard_has_no_middle():
    policy = hard(0.5)
    assert policy.positive == policy.negative == np.float32(0.5)


def test_wanted_precision_is_met_on_fresh_claims_per_class():
    rng, slope = np.random.default_rng(0), [0.5, 1.0, 3.0]
    policy = three_state([_claims(rng, 4000, 3, slope)], 3, precision=0.8, doubt=0.2)
    score, correct, ids = _claims(rng, 40_000, 3, slope)
    for c in range(3):
        taken = (ids == c) & (score >= policy.positive[c])
        assert abs(correct[taken].mean() - 0.8) < 0.05
        dropped = (ids == c) & (score < policy.negative[c])
        assert not dropped.any() or correct[dropped].mean() < 0.2
    assert policy.positive[0] < policy.positive[1] < policy.positive[2]  # the weaker class needs a higher score
    assert (policy.negative <= policy.positive).all()
    unequal = policy.positive[0]  # one threshold for all classes breaks the promise for the weakest
    assert correct[(ids == 2) & (score >= unequal)].mean() < 0.75


def test_a_class_with_few_claims_falls_back():
    policy = three_state([_claims(np.random.default_rng(0), 5, 1, [1.0])], 4, fallback=Policy(0.6, 0.3))
    np.testing.assert_allclose(policy.positive, 0.6)
    np.testing.assert_allclose(policy.negative, 0.3)


def test_no_claims_at_all():
    np.testing.assert_allclose(three_state([], 2, fallback=Policy(0.6, 0.3)).positive, 0.6)
