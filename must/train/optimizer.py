"""optax optimizers as the field uses them: warm-up, cosine, decay of matrices only, clipping, rates by layer."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import optax

from must.core.types import PyTree, UserError


def optimizer(
    *,
    steps: int,
    learning_rate: float,
    name: str = "adamw",
    warmup: int = 0,
    warmup_factor: float = 0.0,
    final_factor: float = 0.0,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    clip_norm: float = 0.0,
    layer_decay: float = 1.0,
    factors: Sequence[tuple[str, float]] = (),
) -> optax.GradientTransformation:
    """Linear warm-up, then a cosine from `learning_rate` to `final_factor * learning_rate` at `steps`.

    Args:
      steps: length of the run.
      learning_rate: peak.
      name: "adamw", "lamb" or "sgd" (Nesterov momentum).
      warmup: steps of the linear rise to the peak.
      warmup_factor: first learning rate of the rise over the peak.
      final_factor: last learning rate over the peak.
      weight_decay: decoupled for adamw and lamb, added to the gradient for sgd; never on parameters of one dimension
        (norm scales, biases).
      momentum: of sgd.
      clip_norm: bound on the global gradient norm; 0 means none.
      layer_decay: factor of the learning rate from each layer of a backbone to the one before; 1 for equal rates.
      factors: (pattern, factor) pairs: the learning rate of parameters whose name begins with a match of the regular
        expression, such as "backbone/stage[12]", is multiplied by the factor of the first such pair. They scale the
        whole update, weight decay included.

    Raises:
      UserError: unknown name, or less than one step; when it is initialized, a pattern that matches no parameter.
    """
    if steps < 1 or warmup < 0:
        raise UserError(f"optimizer: steps={steps}, warmup={warmup}: expected at least 1 and 0")
    schedule = optax.warmup_cosine_decay_schedule(
        learning_rate * (warmup_factor if warmup else 1.0),
        learning_rate,
        warmup,
        max(steps, warmup + 1),
        final_factor * learning_rate,
    )

    def decayed(params):
        return jax.tree_util.tree_map_with_path(lambda path, p: p.ndim > 1 and _key(path[-1]) not in _NO_DECAY, params)

    if name == "adamw":
        update = optax.adamw(schedule, weight_decay=weight_decay, mask=decayed)
    elif name == "lamb":
        update = optax.lamb(schedule, weight_decay=weight_decay, mask=decayed)
    elif name == "sgd":
        update = optax.chain(
            optax.add_decayed_weights(weight_decay, mask=decayed), optax.sgd(schedule, momentum, nesterov=momentum > 0)
        )
    else:
        raise UserError(f"optimizer name {name!r}: not one of adamw, lamb, sgd")
    parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    parts += [update, *([_scaled(layer_decay, factors)] if layer_decay != 1 or factors else [])]
    return optax.chain(*parts) if len(parts) > 1 else update


_NO_DECAY = ("positions", "registers")  # of more than one dimension, and yet biases


def _scaled(layer_decay: float, factors: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Multiplies every update by the factor of its parameter."""

    def init(params):
        check_factors(params, factors)
        return optax.EmptyState()

    def update(updates, state, params=None):
        known = iter(rates(updates, layer_decay, factors).values())
        return jax.tree.map(lambda u: u * next(known), updates), state

    return optax.GradientTransformation(init, update)


def check_factors(params: PyTree, factors: Sequence[tuple[str, float]]) -> None:
    """UserError for a pattern that matches no parameter."""
    names = rates(params)
    for pattern, _ in factors:
        if not any(re.match(pattern, name) for name in names):
            first = ", ".join(list(names)[:3])
            raise UserError(f"optimizer.factors: {pattern!r} matches no parameter; these are {first}, ...")


def rates(params: PyTree, layer_decay: float = 1.0, factors: Sequence[tuple[str, float]] = ()) -> dict[str, float]:
    """{name of a parameter: factor of its learning rate}, in the order of the leaves.

    Layer-wise decay (Clark et al. 2020; Bao et al. 2022): with L numbered blocks in a backbone, block l has
    decay^(L + 1 - l) and "stem" decay^(L + 1); what comes after the blocks, neck and heads have 1.
    """
    paths = ["/".join(map(_key, path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    names = [path.removeprefix("model/") for path in paths]
    found = [_BLOCK.match(name) for name in names]
    blocks: dict[str, set[tuple[int, ...]]] = {}
    for match in found:
        if match:
            blocks.setdefault(match[1], set()).update([_place(match)] if _place(match) != (0,) else [])
    result = {}
    for name, match in zip(names, found, strict=True):
        factor = next((value for pattern, value in factors if re.match(pattern, name)), 1.0)
        if match:
            order = sorted(blocks[match[1]])
            layer = order.index(_place(match)) + 1 if _place(match) != (0,) else 0
            factor *= layer_decay ** (len(order) + 1 - layer)
        result[name] = factor
    return result


def _key(part: Any) -> str:
    return str(getattr(part, "key", getattr(part, "idx", part)))


# The backbone, then "stem...", "block3/...", "stage2_block1/...", or another part of a stage: of its first block.
_BLOCK = re.compile(r"((?:.*/)?backbone/)(?:stem|block(\d+)/|stage(\d+)_(?:block(\d+)/)?)")


def _place(match: re.Match) -> tuple[int, ...]:
    if match[2]:
        return (int(match[2]),)
    return (int(match[3]), int(match[4] or 1)) if match[3] else (0,)
