"""One backbone, one neck, one head per task as a `Model`, which hides flax from the rest of the package."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jax.extend.random import define_prng_impl

from must.core.types import Array, Features, Model, PyTree, UserError
from must.models.layers import recomputed, statistics_of

# Mean and standard deviation of pixels, RGB, 0..255, with which images are normalized.
PIXEL_STATS = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "half": ((127.5,) * 3, (127.5,) * 3),
}
FROZEN = "frozen"  # collection of the parameters that do not learn


class MultiHead(nn.Module):
    """Images -> {task: outputs}. Parameters are named backbone, neck and heads_<task>.

    Attributes:
      backbone: (float [B, H, W, 3] or [B, T, H, W, 3], train=) -> `Features`.
      neck: (`Features`, train=) -> `Features`, or None.
      heads: {task: (`Features`, train=, image_size=) -> outputs}.
      pixel_stats: key of `PIXEL_STATS`.
      remat: compute neck and heads again in the backward pass.
    """

    backbone: nn.Module
    neck: nn.Module | None
    heads: dict[str, nn.Module]
    pixel_stats: str = "imagenet"
    remat: bool = False

    def __call__(self, inputs: Array, *, train: bool) -> tuple[dict[str, Array], Features]:
        """uint8 [B, H, W, 3] or [B, T, H, W, 3] -> outputs of every head, and the features after the neck."""
        mean, std = PIXEL_STATS[self.pixel_stats]
        image = (inputs.astype(jnp.float32) - jnp.array(mean)) / jnp.array(std)
        features = self.backbone(image, train=train)
        if self.neck is not None:
            features = recomputed(self.remat, self.neck, features, train=train)
        height, width = inputs.shape[-3:-1]  # a neck that enlarges a level does not know where the image ends
        pyramid = {s: x[..., : -(-height // s), : -(-width // s), :] for s, x in features.pyramid.items()}
        features = Features(pyramid, features.pooled)
        outputs = {
            task: recomputed(self.remat, head, features, train=train, image_size=(height, width))
            for task, head in self.heads.items()
        }
        return outputs, jax.tree.map(lambda level: level.astype(jnp.float32), features)


def multi_head(
    backbone: nn.Module,
    neck: nn.Module | None,
    heads: dict[str, nn.Module],
    pixel_stats: str = "imagenet",
    *,
    precision: str = "float32",
    remat: bool = False,
) -> Model:
    """Combines the parts into a `must.core.types.Model`.

    With the precision "bfloat16" backbone, neck and heads compute in it; parameters, moments of normalization, outputs
    and features are float32 all the same. `remat` keeps the inputs of blocks, neck and heads for the backward pass and
    computes the rest again.

    Parameters that the backbone says it does not learn (`backbone.learns(name)`) stand in the collection "frozen", not
    in "params": they have no gradient, no decay and no moments in the optimizer.

    `apply(variables, inputs, *, train, key=None, axis_name=None, with_features=False, present=None)` returns (outputs,
    model_state), or (outputs, model_state, `Features` after the neck). `key` seeds dropout; model_state changes only if
    `train`, by the rows that are `present`.
    """

    def module(axis_name: str | None) -> MultiHead:
        supplied = {"axis_name": axis_name, "dtype": jnp.dtype(precision), "remat": remat}
        parts = (_supplied(part, supplied) for part in (backbone, neck))
        return MultiHead(*parts, {task: _supplied(head, supplied) for task, head in heads.items()}, pixel_stats, remat)

    learns = getattr(backbone, "learns", lambda name: True)

    @jax.jit
    def init(key: Array, inputs: Array) -> PyTree:
        key = jax.random.wrap_key_data(jax.random.key_data(key)[-2:], impl=_HASH)
        try:
            return _divided(module(None).init({"params": key}, inputs[:1], train=False), learns)
        except (TypeError, ValueError, ZeroDivisionError) as error:  # sizes and strides that no layer can have
            raise UserError(f"the network cannot be made: {error}") from error

    def apply(variables, inputs, *, train, key=None, axis_name=None, with_features=False, present=None):
        state = {name: value for name, value in variables.items() if name != "params"}
        rngs = {} if key is None else {"dropout": key}
        fixed = {name: state.pop(name) for name in (FROZEN,) if name in state}
        mutable = list(state) if train else False
        variables = {"params": _joined(fixed.get(FROZEN, {}), variables["params"]), **state}
        with statistics_of(present):
            result = module(axis_name).apply(variables, inputs, train=train, rngs=rngs, mutable=mutable)
        (outputs, features), state = result if train else (result, state)
        state = {**state, **fixed}
        return (outputs, state, features) if with_features else (outputs, state)

    return Model(init, apply)


def _divided(variables: PyTree, learns: Callable[[str], bool]) -> PyTree:
    """Variables with the backbone's parameters that do not learn in a collection of their own."""
    backbone = flatten_dict(variables["params"].get("backbone", {}), sep="/")
    fixed = {name: leaf for name, leaf in backbone.items() if not learns(name)}
    if not fixed:
        return variables
    rest = {name: leaf for name, leaf in backbone.items() if name not in fixed}
    params = {name: part for name, part in variables["params"].items() if name != "backbone"}
    if rest:
        params["backbone"] = unflatten_dict(rest, sep="/")
    return {**variables, "params": params, FROZEN: {"backbone": unflatten_dict(fixed, sep="/")}}


def _joined(fixed: PyTree, learned: PyTree) -> PyTree:
    """Two nested mappings as one."""
    if not fixed:
        return learned
    both = {name: _joined(fixed[name], learned[name]) for name in fixed if name in learned}
    return {**fixed, **learned, **both}


def _supplied(part: nn.Module | None, values: Mapping[str, Any]) -> nn.Module | None:
    """The module, and those that it holds, with those of its attributes that the program supplies."""
    if part is None:
        return None
    inner = {name: value for name, value in vars(part).items() if isinstance(value, nn.Module) and name != "parent"}
    own = {name: value for name, value in values.items() if hasattr(part, name)}
    return part.clone(**own, **{name: _supplied(module, values) for name, module in inner.items()})


def parameter_count(params: PyTree) -> int:
    """Number of scalars in all leaves."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


# XLA compiles the random generator separately for every parameter. The one below is good enough for initial weights and
# compiles faster than JAX's: 2.4 s of processor time for a ResNet-10 with three heads, compared to 4.0 s for unsafe_rbg
# and 10.6 s for threefry (tests/benchmarks/init_compile.py).


def _mix(x: Array) -> Array:
    """A bijection of uint32 in which every input bit affects every output bit (Wellons, "lowbias32")."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _fold_in(key: Array, data: Array) -> Array:
    """uint32 [2], uint32 [...] -> keys uint32 [..., 2]."""
    data = data + jnp.uint32(0x9E3779B9)  # 0 is a fixed point of the mixing
    return jnp.stack([_mix(_mix(data + key[0]) ^ key[1]), _mix(_mix(data ^ key[1]) + key[0])], -1)


def _counter(shape: tuple[int, ...]) -> Array:
    return lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)


_HASH = define_prng_impl(
    key_shape=(2,),
    seed=lambda seed: _fold_in(jnp.zeros(2, jnp.uint32), seed.astype(jnp.uint32)),
    split=lambda key, shape: _fold_in(key, _counter(shape)),
    random_bits=lambda key, width, shape: (_fold_in(key, _counter(shape))[..., 0] >> (32 - width)).astype(
        f"uint{width}"
    ),
    fold_in=_fold_in,
    name="hash",
    tag="hash",
)


def over_clips(model: Model) -> Model:
    """The same network with softmax probabilities averaged over K clips of each example.

    For inputs [B, K, T, H, W, 3] (or a tree of them), every output [B, C] is the logarithm of the mean over clips of
    softmax(logits). The K clips form one batch of size B * K. Inputs of one clip, [B, T, H, W, 3], pass through.

    Raises:
      ValueError: several clips with `train` or `with_features`, unequal numbers of clips, an output that is not [B, C].
    """

    def init(key: Array, inputs: PyTree) -> PyTree:
        return model.init(key, jax.tree.map(lambda x: x[:, 0] if x.ndim == 6 else x, inputs))

    def apply(variables, inputs, *, train, with_features=False, **options):
        counts = {x.shape[1] if x.ndim == 6 else None for x in jax.tree.leaves(inputs)}
        if counts == {None}:
            options = {**options, "with_features": True} if with_features else options
            return model.apply(variables, inputs, train=train, **options)
        if train or with_features or len(counts) > 1:
            raise ValueError("several clips need train=False, with_features=False and equally many clips per input")
        clips = counts.pop()

        def mean(logits: Array) -> Array:
            if logits.ndim != 2:
                raise ValueError(f"an output of shape {logits.shape} is not [B, C], as averaging over clips requires")
            logits = jax.nn.log_softmax(logits).reshape(-1, clips, logits.shape[-1])
            return jax.nn.logsumexp(logits, 1) - math.log(clips)

        flat = jax.tree.map(lambda x: jnp.reshape(x, (-1, *x.shape[2:])), inputs)
        outputs, state = model.apply(variables, flat, train=False, **options)
        return jax.tree.map(mean, outputs), state

    return Model(init, apply)
