"""SimCLR (Chen et al. 2020), self-supervised pretraining: two views of a picture are alike, those of others are not."""

import jax
import jax.numpy as jnp

from must.core.ratio import weighted_sum
from must.core.types import Array, Batch, Model, Objective, PerExample, PyTree
from must.data.pipeline import OTHER

TERM = "simclr/contrast"


def simclr(model: Model, channels: int, *, temperature: float = 0.1, width: int = 128) -> Objective:
    """The contrastive loss of two views over all pictures of the global batch (Chen et al. 2020, equation 1).

        l(i, j) = -log exp(s_ij / tau) / sum_{k != i} exp(s_ik / tau),  s the cosine of two projections,

    the mean of l(i, j) and l(j, i) over the pictures i with their other views j. Projections are two linear layers with
    a ReLU between them, on `Features.pooled`.

    Args:
      model: its `apply` takes with_features; outputs are not used.
      channels: C of `Features.pooled` [B, C].
      temperature: tau.
      width: of the projection.

    Raises:
      ValueError: a temperature or width that is not positive.
    """
    if temperature <= 0 or width < 1:
        raise ValueError(f"simclr: temperature {temperature} and width {width} must be positive")

    def init(key):
        shapes = {"hidden": (channels, channels), "projection": (channels, width)}
        draw = jax.nn.initializers.glorot_uniform()
        layers = {name: draw(jax.random.fold_in(key, i), shape) for i, (name, shape) in enumerate(shapes.items())}
        return {"simclr": {**layers, "bias": jnp.zeros(channels)}}, {}

    def terms(params, model_state, aux_state, frozen, batch: Batch, key, axis_name):
        del frozen
        present = {} if batch.present is None else {"present": jnp.tile(batch.present, 2)}
        views = jnp.concatenate([batch.inputs["image"], batch.inputs[OTHER]])
        variables = {"params": params["model"], **model_state}
        options = {"train": True, "key": key, "axis_name": axis_name, "with_features": True, **present}
        _, model_state, features = model.apply(variables, views, **options)
        projected = _project(params["objective"]["simclr"], features.pooled)
        real = batch.ids >= 0 if batch.present is None else batch.present & (batch.ids >= 0)
        loss = contrast(projected, jnp.tile(real, 2), temperature, axis_name).reshape(2, -1).mean(0)
        return (
            {TERM: weighted_sum(PerExample(loss, jnp.ones_like(loss)), real.astype(jnp.float32))},
            model_state,
            aux_state,
        )

    return Objective(init, (TERM,), terms, {TERM: 1.0})


def contrast(projected: Array, real: Array, temperature: float, axis_name: str | None = None) -> Array:
    """l(i, j) of every row, whose other view stands half the rows further on, [2 B].

    Args:
      projected: [2 B, D] of this device: B first views, then their second ones.
      real: bool [2 B]; other rows are nobody's negatives.
      temperature: tau.
      axis_name: device axis; the rows of all devices are negatives.
    """
    rows = len(projected)
    unit = projected / jnp.maximum(jnp.linalg.norm(projected, axis=-1, keepdims=True), 1e-12)
    everyone, counted, first = unit, real, 0
    if axis_name is not None:
        everyone, counted = (jax.lax.all_gather(x, axis_name, tiled=True) for x in (unit, real))
        first = jax.lax.axis_index(axis_name) * rows
    place = first + jnp.arange(rows)
    partner = first + (jnp.arange(rows) + rows // 2) % rows
    logits = unit @ everyone.T / temperature
    compared = counted & (jnp.arange(len(everyone)) != place[:, None])
    compared |= jnp.arange(len(everyone)) == partner[:, None]  # keeps absent rows finite
    logits = jnp.where(compared, logits, -jnp.inf)
    return jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, partner[:, None], 1)[:, 0]


def _project(layers: PyTree, pooled: Array) -> Array:
    return jax.nn.relu(pooled @ layers["hidden"] + layers["bias"]) @ layers["projection"]
