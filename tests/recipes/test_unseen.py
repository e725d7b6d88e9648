"""A weak teacher's answers are worth more on examples that it has not seen (trap M11), measured in a few seconds."""

import numpy as np

from must.evaluate.statistics import paired_t_interval
from tests.experiments import unseen_images


def test_unseen_beats_seen_for_a_weak_teacher():
    arms = unseen_images.table(seeds=10, parts=(8,), arms=("seen", "unseen", "cut", "shuffled"))[8]
    mean, low, _ = paired_t_interval(arms["unseen"] - arms["seen"])
    assert mean > 0.02 and low > 0 and (arms["unseen"] > arms["seen"]).sum() >= 8
    assert np.mean(arms["unseen"]) > np.mean(arms["cut"])  # part of it is their number
    assert np.mean(arms["shuffled"]) < np.mean(arms["seen"]) - 0.2  # the control loses
