"""Weights of the tasks from the values of their losses (and GradNorm, from norms of their gradients).

Pure (init, update) pairs, see `must.core.types.Balance`; those that resolve conflicts between gradients are in
`must.objectives.aggregate`. In the formulas T is the number of tasks that are present in the batch. One that is not is
given weight 0, keeps its state and takes part in no softmax, mean or sum: the others get what they would get without
it.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from must.core.types import Array, Balance

FLOOR = 1e-6  # of what is divided by or taken the logarithm of


def fixed() -> Balance:
    """The plain sum: every weight is 1 and only `Objective.scales` decide; the strong baseline (Kurin et al. 2022).

    With `_replace(gram=True)` this and every other balance has norms and cosines of the tasks' gradients logged, at a
    backward pass per task.
    """

    def update(losses, present, gram, state):
        return {task: present[task].astype(jnp.float32) for task in losses}, state

    return Balance(init=lambda tasks: {}, update=update)


def uncertainty(learning_rate: float = 0.01) -> Balance:
    """Homoscedastic uncertainty weighting: minimizes sum_t exp(-s_t) L_t + s_t / 2 over s_t too (Kendall et al. 2018).

    Args:
      learning_rate: of the plain gradient descent on s_t = log sigma_t^2.
    """

    def update(losses, present, gram, state):
        weights = {task: jnp.exp(-state[task]) for task in losses}
        # The floor keeps the weight of a loss that has come to 0 finite.
        slope = {task: 0.5 - weights[task] * jnp.maximum(losses[task], FLOOR) for task in losses}
        moved = {
            task: jnp.where(present[task], state[task] - learning_rate * slope[task], state[task]) for task in losses
        }
        return {task: jnp.where(present[task], weights[task], 0.0) for task in losses}, moved

    return Balance(init=lambda tasks: {task: jnp.float32(0) for task in tasks}, update=update)


def dwa(temperature: float = 2.0, window: int = 100) -> Balance:
    """Dynamic weight average: w_t = T softmax(r_t / temperature), r_t = L_t(k-1) / L_t(k-2) (Liu et al. 2019, eq. 7).

    L_t(k) is the task's mean loss over its k-th window, in the paper an epoch; r_t is 1 until two windows are complete.

    Args:
      temperature: towards equal weights.
      window: steps in which the task was present.
    """

    def init(tasks):
        names = ("sum", "count", "last", "before")
        return {task: dict.fromkeys(names, jnp.float32(0)) | {"windows": jnp.int32(0)} for task in tasks}

    def update(losses, present, gram, state):
        tasks = tuple(losses)
        rates = [
            jnp.where(state[t]["windows"] > 1, state[t]["last"] / jnp.maximum(state[t]["before"], FLOOR), 1.0)
            for t in tasks
        ]
        there = stacked(present, tasks)
        weights = jnp.sum(there) * _softmax(jnp.stack(rates) / temperature, there)
        moved = {t: _keep(present[t], _collect(state[t], losses[t], window), state[t]) for t in tasks}
        return named(weights, tasks), moved

    return Balance(init=init, update=update)


def _collect(state, loss, window):
    """One more step of a task's window; a full one moves on."""
    total, count = state["sum"] + loss, state["count"] + 1
    full = count >= window
    return {
        "sum": jnp.where(full, 0.0, total),
        "count": jnp.where(full, 0.0, count),
        "last": jnp.where(full, total / count, state["last"]),
        "before": jnp.where(full, state["last"], state["before"]),
        "windows": state["windows"] + full,
    }


def rlw(seed: int = 0) -> Balance:
    """Random loss weighting: w = T softmax(z), z_t standard normal, anew in every step (Lin et al. 2022, RLW).

    Args:
      seed: of the draws; a task's depend on its name, not on which others there are.
    """

    def update(losses, present, gram, state):
        tasks = tuple(losses)
        key, draw = jax.random.split(state)
        scores = jnp.stack([jax.random.normal(named_key(draw, task)) for task in tasks])
        there = stacked(present, tasks)
        return named(jnp.sum(there) * _softmax(scores, there), tasks), key

    return Balance(init=lambda tasks: jax.random.key(seed), update=update)


def famo(learning_rate: float = 0.025, decay: float = 1e-3) -> Balance:
    """Fast adaptive multitask optimization (Liu et al. 2023, algorithm 1), which lets all losses fall at one rate.

    z = softmax(xi), w_t = c z_t / L_t with c = 1 / sum_t z_t / L_t, and xi <- xi - learning_rate (J' delta + decay xi),
    J the Jacobian of the softmax, delta_t = log L_t(k) - log L_t(k+1).

    Our choices: the task's loss in the next step in which it is present replaces a second forward pass on the same
    batch; w is multiplied by T, because the learning rate of the network should keep its meaning.

    Args:
      learning_rate: of the logits xi.
      decay: of the logits towards equal ones.
    """

    def init(tasks):
        return {task: {"logit": jnp.float32(0), "log_loss": jnp.float32(0), "seen": jnp.array(False)} for task in tasks}

    def update(losses, present, gram, state):
        tasks = tuple(losses)
        there, values = stacked(present, tasks), jnp.maximum(stacked(losses, tasks), FLOOR)
        logits, before, seen = (jnp.stack([state[t][name] for t in tasks]) for name in ("logit", "log_loss", "seen"))
        compared = there & seen
        delta = jnp.where(compared, before - jnp.log(values), 0.0)
        z = _softmax(logits, compared)
        moved = logits - learning_rate * (z * (delta - jnp.sum(z * delta)) + decay * logits)
        logits = jnp.where(compared, moved, logits)
        # The product of c and z / L, taken as one softmax: a loss near 0 cannot make c overflow.
        weights = jnp.sum(there) * _softmax(logits - jnp.log(values), there)
        after = {"logit": logits, "log_loss": jnp.log(values), "seen": there}
        new = {t: {name: value[i] for name, value in after.items()} for i, t in enumerate(tasks)}
        return named(weights, tasks), {t: _keep(present[t], new[t], state[t]) for t in tasks}

    return Balance(init=init, update=update)


def gradnorm(alpha: float = 1.5, learning_rate: float = 0.025) -> Balance:
    """GradNorm: w_t ||g_t|| is drawn towards its mean over tasks times r_t^alpha (Chen et al. 2018, eq. 1 and 2).

    r_t = (L_t / L_t(0)) / mean_t(L_t / L_t(0)); w descends sum_t |w_t ||g_t|| - mean ||w g|| r_t^alpha|, the target
    held constant, and its sum over present tasks is kept at T. The network is given w before that step, as in the
    paper.

    Our choices: ||g_t|| is of the shared parameters (`Objective.shared`; in the paper their last layer) and divided by
    its mean over tasks, so that plain descent has a scale (the paper's Adam has one); no weight falls below 1e-6.

    Args:
      alpha: how strongly tasks that train slowly are helped.
      learning_rate: of the weights.
    """

    def init(tasks):
        return {task: {"weight": jnp.float32(1), "first": jnp.float32(0), "seen": jnp.array(False)} for task in tasks}

    def update(losses, present, gram, state):
        tasks = tuple(losses)
        there, values = stacked(present, tasks), stacked(losses, tasks)
        stored, first, seen = (jnp.stack([state[t][name] for t in tasks]) for name in ("weight", "first", "seen"))
        first = jnp.where(seen, first, values)
        weights = even(stored, there)
        norms = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0.0))
        norms = norms / jnp.maximum(_mean(norms, there), FLOOR)
        rate = values / jnp.maximum(first, FLOOR)
        rate = rate / jnp.maximum(_mean(rate, there), FLOOR)
        target = _mean(weights * norms, there) * rate**alpha
        moved = jnp.maximum(weights - learning_rate * jnp.sign(weights * norms - target) * norms, FLOOR)
        # What is stored keeps the sum that the present tasks had, so that one that is absent keeps its share.
        share = jnp.sum(jnp.where(there, stored, 0.0)) / jnp.maximum(jnp.sum(there), 1)
        after = {"weight": even(moved, there) * share, "first": first, "seen": there}
        new = {t: {name: value[i] for name, value in after.items()} for i, t in enumerate(tasks)}
        return named(weights, tasks), {t: _keep(present[t], new[t], state[t]) for t in tasks}

    return Balance(init=init, update=update, gram=True)


def even(weights: Array, present: Array) -> Array:
    """[T] >= 0 -> in the same proportions, with a sum that is the number of present tasks; 0 for the others."""
    weights = jnp.where(present, weights, 0.0)
    total = jnp.sum(weights)
    return jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0) * jnp.sum(present), 0.0)


def named_key(key: Array, *names: str) -> Array:
    """A key of one task or pair of tasks, the same whatever their order and company in the batch."""
    return jax.random.fold_in(key, zlib.crc32("\0".join(names).encode()))


def _softmax(scores: Array, present: Array) -> Array:
    """[T], over present tasks; 0 for the others."""
    top = jnp.max(jnp.where(present, scores, -jnp.inf))
    raised = jnp.where(present, jnp.exp(jnp.where(present, scores - top, 0.0)), 0.0)
    return raised / jnp.maximum(jnp.sum(raised), FLOOR)  # the largest of them is 1


def _mean(values: Array, present: Array) -> Array:
    return jnp.sum(jnp.where(present, values, 0.0)) / jnp.maximum(jnp.sum(present), 1)


def _keep(present, new, old):
    return jax.tree.map(lambda a, b: jnp.where(present, a, b), new, old)


def stacked(values: Mapping[str, Any], tasks: Sequence[str]) -> Array:
    """{task: []} -> [T] in the order of the tasks."""
    return jnp.stack([values[task] for task in tasks])


def named(vector: Array, tasks: Sequence[str]) -> dict[str, Array]:
    """[T] -> {task: []}."""
    return {task: vector[i] for i, task in enumerate(tasks)}
