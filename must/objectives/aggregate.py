"""Weights of the tasks that resolve conflicts between their gradients of the shared parameters.

All four methods return a combination sum_t w_t g_t whose w depends on the gradients only through their inner products G
= J J' [T, T], J the matrix of rows g_t; so each is a pure function of (G, present), and a `Balance` around it. They
weigh the gradients of the shared parameters; every head keeps its own task's. Solvers take a fixed number of Newton
steps inside jit, enough for float32 on well or badly scaled, singular or zero matrices (measured in
`tests/objectives/test_balance.py`). A task that is not present, or whose gradient is 0, is given weight 0, the others
what they would get without it.

Methods that read losses, or norms of gradients only, are in `must.objectives.balance`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from must.core.types import Array, Balance
from must.objectives.balance import even, named, named_key, stacked

# Beside ones on the diagonal, an order above float32's resolution: makes singular matrices definite, moves others less
# than the tolerance of the tests.
RIDGE = 1e-6


def pcgrad(seed: int = 0) -> Balance:
    """PCGrad: the sum of gradients, each freed of what points against another, one after another (Yu et al. 2020).

    Args:
      seed: of the order in which the others are gone through, anew in every step; a pair's place depends on the names,
        not on which other tasks there are.
    """

    def update(losses, present, gram, state):
        tasks = tuple(losses)
        key, draw = jax.random.split(state)
        places = jnp.stack([jnp.stack([jax.random.uniform(named_key(draw, a, b)) for b in tasks]) for a in tasks])
        return named(pcgrad_weights(gram, stacked(present, tasks), places), tasks), key

    return Balance(init=lambda tasks: jax.random.key(seed), update=update, gram=True, shared_only=True)


def pcgrad_weights(gram: Array, present: Array, places: Array) -> Array:
    """For each i, in order over j: g_i <- g_i - (g_i . g_j / |g_j|^2) g_j if g_i . g_j < 0; then the sum (algorithm 1).

    Args:
      gram: [T, T].
      present: bool [T].
      places: [T, T]; the ascending values of row i give the order in which the others are visited.

    Returns:
      [T].
    """
    gram, takes_part = _normalized(gram, present)
    order = jnp.argsort(places, -1)
    own = jnp.eye(len(gram))

    def project(k, mixed):  # row i: coefficients of the gradients in what has become of g_i
        other = order[:, k]
        product = jnp.sum(mixed * gram[other], -1)
        conflict = (other != jnp.arange(len(gram))) & takes_part[other] & (product < 0)
        step = jnp.where(conflict, product / jnp.where(conflict, jnp.diagonal(gram)[other], 1.0), 0.0)
        return mixed - step[:, None] * own[other]

    mixed = jax.lax.fori_loop(0, len(gram), project, own)
    return jnp.where(takes_part, jnp.sum(jnp.where(takes_part[:, None], mixed, 0.0), 0), 0.0)


def cagrad(c: float = 0.4) -> Balance:
    """CAGrad: the direction near the mean gradient that helps the worst task most (Liu et al. 2021).

    Args:
      c: radius of the ball around the mean gradient, as a part of its norm, in [0, 1); 0 is the plain sum.
    """
    return _aggregator(lambda gram, present: cagrad_weights(gram, present, c))


def cagrad_weights(gram: Array, present: Array, c: float) -> Array:
    """d = g_0 + c |g_0| g_w / |g_w|, w = argmin over the simplex of g_w . g_0 + c |g_0| |g_w| (Liu et al. 2021, eq. 4).

    g_0 is the mean over the T present tasks, g_w = sum_t w_t g_t. Our choice: d is multiplied by T / (1 + c), so that
    it is the sum for c = 0 and no longer than the sum for any c; the authors' code divides by 1 + c^2 or 1 + c or not.

    Solved by Newton's method with a logarithmic barrier that shrinks from step to step. The unknowns are scaled by w
    itself, which keeps the system well conditioned when gradients differ a hundredfold; the length of a step is the
    best of a few.

    Args:
      gram: [T, T].
      present: bool [T].
      c: see `cagrad`.

    Returns:
      [T].
    """
    gram, present = _normalized(gram, present)
    count = jnp.maximum(jnp.sum(present), 1)
    mean = present / count
    with_mean = gram @ mean
    squared = jnp.maximum(mean @ with_mean, 0.0)
    radius = c * jnp.sqrt(squared)
    smooth = 1e-12 * jnp.maximum(jnp.max(jnp.diagonal(gram)), 1.0)  # the norm has no derivative at 0
    lengths = 2.0 ** -jnp.arange(12)

    def norm(w):
        return jnp.sqrt(jnp.maximum(w @ gram @ w, 0.0) + smooth)

    def step(k, w):
        barrier = squared * jnp.maximum(0.1 * 0.5**k, 1e-7) + 1e-12

        def value(w):
            return w @ with_mean + radius * norm(w) - barrier * jnp.sum(jnp.where(present, jnp.log(w + 1e-37), 0.0))

        applied, length = gram @ w, norm(w)
        slope = w * (with_mean + radius * applied / length) - barrier * present
        curvature = radius / length * (gram - jnp.outer(applied, applied) / length**2)
        curvature = w[:, None] * curvature * w + (barrier + 1e-7 * radius * length) * jnp.eye(len(w))
        system = jnp.block([[curvature, w[:, None]], [w[None, :], jnp.zeros((1, 1))]])
        relative = jnp.linalg.solve(system, jnp.append(-slope, 0.0))[:-1]
        bound = 0.95 / jnp.maximum(jnp.max(-jnp.where(present, relative, 0.0)), 0.95)
        tried = w * (1.0 + lengths[:, None] * bound * relative)
        tried = tried / jnp.sum(tried, -1, keepdims=True)
        return tried[jnp.argmin(jax.vmap(value)(tried))]

    # Without a task present there is nothing to solve; ones keep the loop finite.
    w = jax.lax.fori_loop(0, 40, step, jnp.where(jnp.any(present), mean, 1.0 / len(gram)))
    return jnp.where(present, count / (1.0 + c) * (mean + radius / norm(w) * w), 0.0)


def nash_mtl() -> Balance:
    """Nash-MTL: the combination that is the Nash bargaining solution of the tasks (Navon et al. 2022)."""
    return _aggregator(nash_weights)


def nash_weights(gram: Array, present: Array) -> Array:
    """G a = 1 / a (Navon et al. 2022, eq. 1), the minimum of a' G a / 2 - sum_t log a_t, which is strictly convex.

    Damped Newton steps of length 1 / (1 + decrement), which suit this function's logarithm, on gradients scaled to norm
    1 (a scales inversely). Our choice: the weights of the present tasks are scaled to sum to their number, because the
    learning rate should keep its meaning.

    Args:
      gram: [T, T].
      present: bool [T].

    Returns:
      [T].
    """
    cosines, inverse = _cosines(gram, present)

    def step(k, a):
        slope = cosines @ a - 1.0 / a
        move = jnp.linalg.solve(cosines + jnp.diag(a**-2.0), -slope)
        decrement = jnp.sqrt(jnp.maximum(-slope @ move, 0.0))
        return a + move * jnp.where(decrement > 0.25, 1.0 / (1.0 + decrement), 1.0)

    a = jax.lax.fori_loop(0, 60, step, jnp.full(len(gram), len(gram) ** -0.5))
    return even(a * inverse / jnp.maximum(jnp.max(inverse), 1e-30), inverse > 0)


def upgrad() -> Balance:
    """UPGrad: every gradient projected to where it hurts no task, and summed (Quinton and Rey 2024)."""
    return _aggregator(upgrad_weights)


def upgrad_weights(gram: Array, present: Array) -> Array:
    """Sum over i of argmin v' G v subject to v >= e_i, the projection of g_i on {x: J x >= 0} (proposition 1).

    With v = e_i + u it is min u' G u / 2 + u' G e_i over u >= 0; a primal-dual interior-point method solves it for all
    i at once, on gradients scaled to norm 1. The paper takes the mean over i, ours is the sum, which without conflict
    is the plain sum.

    Args:
      gram: [T, T].
      present: bool [T].

    Returns:
      [T].
    """
    cosines, inverse = _cosines(gram, present)
    norms = jnp.where(inverse > 0, 1.0 / jnp.where(inverse > 0, inverse, 1.0), 0.0)

    def to_boundary(x, move):
        return 0.98 / jnp.maximum(jnp.max(-move / x), 0.98)

    def extra(linear):  # min u' C u / 2 + linear' u over u >= 0; s is its slope, u s -> 0
        def step(k, pair):
            u, s = pair
            residual = cosines @ u + linear - s
            move = jnp.linalg.solve(cosines + jnp.diag(s / u), 0.1 * jnp.mean(u * s) / u - s - residual)
            slope_move = cosines @ move + residual
            length = jnp.minimum(to_boundary(u, move), to_boundary(s, slope_move))
            return jnp.maximum(u + length * move, 1e-12), jnp.maximum(s + length * slope_move, 1e-12)

        return jax.lax.fori_loop(0, 25, step, (jnp.ones(len(gram)), jnp.ones(len(gram))))[0]

    # Row i is measured in |g_i|, its entry j in 1 / |g_j|.
    added = jax.vmap(extra)(cosines) * norms[:, None] * inverse[None, :]
    return (inverse > 0) + jnp.sum(added, 0)


def _aggregator(weights: Callable[[Array, Array], Array]) -> Balance:
    def update(losses, present, gram, state):
        tasks = tuple(losses)
        return named(weights(gram, stacked(present, tasks)), tasks), state

    return Balance(init=lambda tasks: {}, update=update, gram=True, shared_only=True)


def _normalized(gram: Array, present: Array) -> tuple[Array, Array]:
    """([T, T] over the mean squared norm, so that constants mean the same for every network; [T] who takes part)."""
    there = jnp.where(present[:, None] & present[None, :], gram, 0.0)
    takes_part = present & (jnp.diagonal(there) > 0)
    mean = jnp.sum(jnp.diagonal(there)) / jnp.maximum(jnp.sum(takes_part), 1)
    there = there / jnp.where(mean > 0, mean, 1.0)
    return there, takes_part & (jnp.diagonal(there) > 0)  # a square may underflow


def _cosines(gram: Array, present: Array) -> tuple[Array, Array]:
    """([T, T] cosines with a ridge, [T] inverse norms); who takes no part is orthogonal to all and has inverse 0."""
    gram, takes_part = _normalized(gram, present)
    inverse = jnp.where(takes_part, 1.0 / jnp.sqrt(jnp.where(takes_part, jnp.diagonal(gram), 1.0)), 0.0)
    cosines = jnp.clip(gram * inverse[:, None] * inverse[None, :], -1.0, 1.0)
    return jnp.where(jnp.eye(len(gram), dtype=bool), 1.0 + RIDGE, cosines), inverse
