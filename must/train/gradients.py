"""Losses of the tasks of a batch, and one combined gradient; the weight of a task comes from `Balance`, not from
here."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from must.core.ratio import Ratio, all_devices
from must.core.types import Array, Balance, Objective, PyTree, UserError


class Seen(NamedTuple):
    """What the tasks lost on the rows of all devices; constants to differentiation.

    Attributes:
      terms: {term: []}, without its factor; 0 for a term that the batch has no labels for.
      losses: {task: []}, sum of its terms with their factors.
      present: {task: bool []}, whether any term with a factor other than 0 lost anything.
    """

    terms: dict[str, Array]
    losses: dict[str, Array]
    present: dict[str, Array]


# params -> ({task: local loss []}, (Seen, anything else))
Losses = Callable[[PyTree], tuple[dict[str, Array], tuple[Seen, PyTree]]]


def tasks_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks behind terms named "<task>/<term>", in the order in which they first appear."""
    return tuple(dict.fromkeys(name.partition("/")[0] for name in names))


def denominators(ratios: Mapping[str, Ratio], axis_name: str | None) -> dict[str, Array]:
    """{term: sum over devices of its denominators}, constants to differentiation."""
    return {name: all_devices(jax.lax.stop_gradient(ratio.den), axis_name) for name, ratio in ratios.items()}


def task_losses(
    objective: Objective, ratios: Mapping[str, Ratio], dens: Mapping[str, Array], axis_name: str | None
) -> tuple[dict[str, Array], Seen]:
    """L_t = sum over the task's terms of scale * num / max(1, den), with den summed over devices and held constant.

    Args:
      objective: whose terms they are.
      ratios: {term: local sums}, those that this batch has.
      dens: {term: denominator}, of all devices.
      axis_name: device axis.

    Returns:
      {task: []} of this device, which sum over devices to the loss and whose gradients sum to its gradient; `Seen`.
    """
    tasks = tasks_of(objective.names)
    local, present = dict.fromkeys(tasks, jnp.float32(0)), dict.fromkeys(tasks, jnp.array(False))
    terms = dict.fromkeys(objective.names, jnp.float32(0))
    for name, ratio in ratios.items():
        task, scale = name.partition("/")[0], objective.scales.get(name, 1.0)
        term = ratio.num / jnp.maximum(dens[name], 1.0)
        local[task] += scale * term
        # Not by the denominator: images without any object have no box to count, and yet teach that there is none; and
        # one that counts the whole batch carries no information about which tasks were present.
        present[task] |= (all_devices(jax.lax.stop_gradient(ratio.num), axis_name) != 0) & (scale != 0)
        terms[name] = jax.lax.stop_gradient(term)
    terms, losses = all_devices((terms, jax.lax.stop_gradient(local)), axis_name)
    return local, Seen(terms, losses, present)


def balanced_gradient(
    losses: Losses, params: PyTree, objective: Objective, balance: Balance, state: PyTree, axis_name: str | None
) -> tuple[PyTree, tuple[Seen, PyTree, PyTree], dict[str, Array]]:
    """The gradient that the optimizer is given, of all devices.

    Without `Balance.gram` that of sum_t w_t L_t with constant weights, one backward pass for all tasks. With it one
    linearization and a backward pass per task, g_t; then sum_t w_t g_t, or, under `shared_only`, that for the shared
    parameters and sum_t g_t for all others.

    Args:
      losses: of the tasks.
      params: where.
      objective: decides which parameters are shared.
      balance: weights of the tasks.
      state: of the balance.
      axis_name: device axis.

    Returns:
      gradient; (`Seen`, what the losses returned beside it, next state of the balance); logs "weight/<task>" and with
      the Gram matrix "gradient/<task>", norm over the shared parameters, and "cosine/<a>:<b>", 0 where one norm is 0.
    """
    tasks = tasks_of(objective.names)

    def update(seen, gram):
        in_order = {task: seen.losses[task] for task in tasks}  # a dict that went through JAX comes back sorted
        return balance.update(in_order, seen.present, gram, state)

    if not balance.gram:

        def total(params):
            local, (seen, rest) = losses(params)
            weights, moved = update(seen, None)
            return sum(jax.lax.stop_gradient(weights[task]) * local[task] for task in tasks), (
                seen,
                rest,
                moved,
                weights,
            )

        grads, (*carried, weights) = jax.grad(total, has_aux=True)(params)
        return all_devices(grads, axis_name), tuple(carried), {f"weight/{task}": weights[task] for task in tasks}

    each, (seen, rest) = _per_task(losses, params, tasks, axis_name)
    gram = _gram([objective.shared(each[task]) for task in tasks], [seen.present[task] for task in tasks])
    weights, moved = update(seen, gram)
    is_shared = _selected(objective.shared, params) if balance.shared_only else jax.tree.map(lambda leaf: True, params)

    def combine(weighed, *leaves):
        return sum(weights[task] * leaf if weighed else leaf for task, leaf in zip(tasks, leaves, strict=True))

    grads = jax.tree.map(combine, is_shared, *(each[task] for task in tasks))
    logs = {f"weight/{task}": weights[task] for task in tasks} | _agreement(gram, tasks)
    return grads, (seen, rest, moved), logs


def accumulated(of: Callable[[PyTree, Array], PyTree], *, batch: PyTree, parts: int, key: Array) -> PyTree:
    """The sum of `of(rows, key)` over so many equal parts of a batch [B, ...], one after the other; bool leaves count.

    Raises:
      UserError: parts that do not divide B.
    """

    def numbers(rows, number):
        found = of(rows, jax.random.fold_in(key, number))
        return jax.tree.map(lambda leaf: leaf.astype(jnp.int32) if leaf.dtype == bool else leaf, found)

    def split(leaf):
        if len(leaf) % parts:
            raise UserError(f"accumulate={parts}: does not divide the {len(leaf)} rows of a device")
        return leaf.reshape(parts, -1, *leaf.shape[1:])

    rows = jax.tree.map(split, batch)
    shapes = jax.eval_shape(numbers, jax.tree.map(lambda leaf: leaf[0], rows), 0)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    add = lambda total, part: (jax.tree.map(jnp.add, total, numbers(*part)), None)  # noqa: E731
    return jax.lax.scan(add, zero, (rows, jnp.arange(parts)))[0]


def _per_task(losses: Losses, params: PyTree, tasks: tuple[str, ...], axis_name: str | None):
    """Each task's gradient of all parameters, {task: tree like params}, and what the losses returned beside.

    The forward pass runs once. Transposing one output at a time leaves the cotangents of the others symbolic zeros, so
    their heads cost nothing; a vmap over tasks would run them all, and turns convolutions into grouped ones.
    """
    values, linear, carried = jax.linearize(losses, params, has_aux=True)
    each = {}
    for task in tasks:
        backward = jax.linear_transpose(lambda moved, task=task: linear(moved)[task], params)
        (each[task],) = backward(jnp.ones_like(values[task]))
    return all_devices(each, axis_name), carried


def _gram(gradients, present) -> Array:
    """[T, T], inner products; rows and columns of tasks that are not present 0."""
    rows = [[leaf.reshape(-1) for leaf in jax.tree.leaves(gradient)] for gradient in gradients]
    matrix = sum(_products(jnp.stack(leaves)) for leaves in zip(*rows, strict=True))
    there = jnp.stack(present)
    return jnp.where(there[:, None] & there[None, :], matrix, 0.0)


def _products(rows: Array) -> Array:
    """[T, n] -> [T, T]. Solvers take differences of the entries, which products of truncated factors would spoil."""
    return jnp.matmul(rows, rows.T, precision="highest")


def _selected(shared: Callable[[PyTree], PyTree], params: PyTree) -> PyTree:
    """Which leaves of params `shared` keeps, a tree of bool: it gets a tree of numbers and returns those that
    remain."""
    leaves, structure = jax.tree.flatten(params)
    kept = set(jax.tree.leaves(shared(structure.unflatten(range(len(leaves))))))
    return structure.unflatten([number in kept for number in range(len(leaves))])


def _agreement(gram: Array, tasks: tuple[str, ...]) -> dict[str, Array]:
    """Norms of the tasks' gradients and the cosines between them."""
    norms = jnp.sqrt(jnp.diagonal(gram))
    product = norms[:, None] * norms[None, :]
    cosines = jnp.where(product > 0, gram / jnp.where(product > 0, product, 1.0), 0.0)
    logs = {f"gradient/{task}": norms[i] for i, task in enumerate(tasks)}
    pairs = [(i, j) for i in range(len(tasks)) for j in range(i + 1, len(tasks))]
    return logs | {f"cosine/{tasks[i]}:{tasks[j]}": cosines[i, j] for i, j in pairs}
