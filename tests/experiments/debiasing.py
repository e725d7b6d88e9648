"""The synthetic experiment of weighted distillation, with the estimators of `must.pseudo_label.weigh`.

    python -m tests.experiments.debiasing

First table: how far the weighted risk on a teacher's labels is from the clean risk (4,000 unlabeled, 500 validation
examples, 22 neighbors). Second table: accuracy of a linear student when a quarter of the pool, far out along one
direction, has labels that are right with probability .52. Half a minute.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from must.evaluate.statistics import paired_t_interval
from must.objectives.slam import mix_binary
from must.pseudo_label import weigh

ARMS = ("plain", "estimated", "oracle", "slam", "clean")
_DIMENSIONS = 10


def log_loss(label, logit):
    """-log sigmoid(+-logit) for labels 0 and 1."""
    return jnp.logaddexp(0.0, jnp.where(label == 1, -logit, logit))


class Pool:
    """Points whose label is the side of a hyperplane; a teacher that is nearly always right, but for one quarter.

    That quarter lies `reach` out along a direction at 73 degrees to the hyperplane's normal.
    """

    def __init__(self, count: int, seed: int, reach: float):
        rng = np.random.default_rng(seed)
        normal = np.zeros(_DIMENSIONS)
        normal[0] = 1.0
        far = rng.random(count) < 0.25
        points = rng.normal(size=(count, _DIMENSIONS))
        # Labels that say nothing far out there turn a student off the direction, and so off the normal.
        side = np.where(rng.random(count) < 0.5, 1.0, -1.0)
        direction = np.zeros(_DIMENSIONS)
        direction[:2] = 0.3, 0.954
        points = np.where(far[:, None], side[:, None] * reach * direction + 0.3 * points, points)
        self.points = points.astype(np.float32)
        self.truth = (points @ normal > 0).astype(np.float32)
        self.accuracy = np.where(far, 0.52, 0.95)
        self.says = np.where(rng.random(count) < self.accuracy, self.truth, 1 - self.truth).astype(np.float32)
        self.margin = np.where(far, 0.05, 0.9) + rng.normal(0, 0.03, count)

    def losses(self, weights) -> tuple[np.ndarray, np.ndarray]:
        """Of a linear student: on the truth and on the teacher's label."""
        logit = self.points @ weights
        return tuple(np.asarray(log_loss(label, logit)) for label in (self.truth, self.says))

    def covariates(self, weights) -> np.ndarray:
        """(teacher's margin, student's margin)."""
        return np.stack([self.margin, np.abs(np.tanh(self.points @ weights / 2))], -1)


def bias(seed: int) -> dict[str, float]:
    """Weighted minus clean risk of one confident student, by estimator."""
    pool, held = Pool(4000, seed, 6), Pool(500, 10_000 + seed, 6)
    student = np.zeros(_DIMENSIONS, np.float32)
    student[0] = 1.0
    true, teacher = pool.losses(student)
    known = weigh.HeldOut(held.covariates(student), *held.losses(student))
    at = pool.covariates(student)
    flipped = np.asarray(log_loss(1 - pool.truth, pool.points @ student))
    found = {
        "unweighted": np.ones(len(true)),
        "oracle": weigh.exact(pool.accuracy, flipped / true),
        "ratio of means": weigh.ratio_of_means(known, neighbors=22)(at),
        "ratio of means, at most 1/p": weigh.ratio_of_means(known, neighbors=22, correct=held.says == held.truth)(at),
        "plug-in": weigh.plug_in(known, held.says == held.truth, neighbors=22)(at),
        "mean of ratios (wrong)": _mean_of_ratios(known, at, 22),
    }
    normalized = found["ratio of means"] / found["ratio of means"].mean()
    found["ratio of means, mean 1 (wrong)"] = normalized
    return {name: float((w * teacher).mean() - true.mean()) for name, w in found.items()}


def _mean_of_ratios(held: weigh.HeldOut, at: np.ndarray, k: int) -> np.ndarray:
    """What Jensen forbids."""
    from scipy.spatial import cKDTree

    scale = held.covariates.std(0)
    _, near = cKDTree(held.covariates / scale).query(at / scale, k)
    return ((held.true_loss + 1e-6) / (held.teacher_loss + 1e-6))[near].mean(1)


def accuracies(seed: int, arms: Sequence[str] = ARMS, steps: int = 600, every: int = 20) -> dict[str, float]:
    """Accuracy on fresh points of a linear student, by arm."""
    pool, held, fresh = Pool(4000, seed, 2), Pool(500, 10_000 + seed, 2), Pool(8000, 20_000 + seed, 2)
    alpha = weigh.isotonic_accuracy(held.margin, held.says == held.truth, floor=0.5)(pool.margin)
    found = {}
    for arm in arms:
        labels = pool.truth if arm == "clean" else pool.says
        student, weights = np.zeros(_DIMENSIONS, np.float32), np.ones(len(labels), np.float32)
        for _ in range(steps // every):
            if arm == "estimated":
                known = weigh.HeldOut(held.covariates(student), *held.losses(student))
                weights = weigh.ratio_of_means(known, neighbors=22)(pool.covariates(student))
            if arm == "oracle":
                flipped = np.asarray(log_loss(1 - pool.truth, pool.points @ student))
                weights = weigh.exact(pool.accuracy, flipped / pool.losses(student)[0])
            mixture = alpha if arm == "slam" else np.ones(len(labels))
            student = np.asarray(_descend(student, pool.points, labels, weights, mixture, every))
        found[arm] = float(np.mean((fresh.points @ student > 0) == fresh.truth))
    return found


@functools.partial(jax.jit, static_argnums=5)
def _descend(student, points, labels, weights, mixture, steps: int):
    def risk(student):
        says_yes = mix_binary(jax.nn.sigmoid(points @ student), mixture)
        likelihood = jnp.where(labels == 1, says_yes, 1.0 - says_yes)
        return -jnp.mean(jax.lax.stop_gradient(weights) * jnp.log(jnp.maximum(likelihood, 1e-6)))

    return jax.lax.fori_loop(0, steps, lambda _, s: s - 0.5 * jax.grad(risk)(s), student)


def main(seeds: int = 10) -> None:
    """Prints both tables; ends with an error where the claim of the paper does not come out."""
    failed = []
    for title, measure in (("bias of the risk", bias), ("accuracy", accuracies)):
        rows = [measure(seed) for seed in range(seeds)]
        print(f"{title}, mean over {seeds} seeds [95% interval]")
        for name in rows[0]:
            mean, low, high = paired_t_interval([row[name] for row in rows])
            print(f"  {name:32} {mean:+.4f} [{low:+.4f}, {high:+.4f}]")
            if measure is bias and not name.endswith("(wrong)"):
                failed += [name] if (abs(mean) < 0.2 if name == "unweighted" else abs(mean) > 0.01) else []
    ordered = ("plain", "estimated", "oracle", "slam")
    print("paired differences of accuracy")
    for lower, higher in itertools.pairwise(ordered):
        mean, low, high = paired_t_interval([row[higher] - row[lower] for row in rows])
        print(f"  {higher + ' - ' + lower:32} {mean:+.4f} [{low:+.4f}, {high:+.4f}]")
        failed += [f"{higher} above {lower}"] if mean <= 0 else []
    if failed:
        raise SystemExit(f"not as claimed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
