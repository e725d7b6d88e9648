"""optax optimizers as the field uses them: warm-up, cosine, decay of matrices only, clipping."""

import jax
import optax

from must.core.types import UserError


def optimizer(
    *,
    steps: int,
    learning_rate: float,
    name: str = "adamw",
    warmup: int = 0,
    final_factor: float = 0.0,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """Linear warm-up, then a cosine from `learning_rate` to `final_factor * learning_rate` at `steps`.

    Args:
      steps: length of the run.
      learning_rate: peak.
      name: "adamw", "lamb" or "sgd" (Nesterov momentum).
      warmup: steps of the linear rise from 0.
      final_factor: last learning rate over the peak.
      weight_decay: decoupled for adamw and lamb, added to the gradient for sgd; never on parameters of one dimension
        (norm scales, biases).
      momentum: of sgd.
      clip_norm: bound on the global gradient norm; 0 means none.

    Raises:
      UserError: unknown name, or less than one step.
    """
    if steps < 1 or warmup < 0:
        raise UserError(f"optimizer: steps={steps}, warmup={warmup}: expected at least 1 and 0")
    schedule = optax.warmup_cosine_decay_schedule(
        0.0 if warmup else learning_rate, learning_rate, warmup, max(steps, warmup + 1), final_factor * learning_rate
    )

    def decayed(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

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
    return optax.chain(optax.clip_by_global_norm(clip_norm), update) if clip_norm else update
