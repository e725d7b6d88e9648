"""Joint experts (Bicsi et al. 2023): n networks, each the student of one data set, and a teacher per set on top of all.

    student_i(x) = V_i phi_i(x) + b_i        z(x) = [phi_1(x); ...; phi_n(x)]        teacher_i(x) = W_i z(x) + c_i

phi_i is `Features.pooled` of backbone i; each backbone is applied once for all students and teachers. Experts may
differ in backbone, label space and input view. Variables are
    params        {"experts": {name: parameters of the expert}, "teachers": {name: {"kernel", "bias"}}}
    other kinds   {name: those of the expert}
where those of an expert are the variables of a network trained on its set alone, including the head.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from must.core.types import Array, Features, Model, PyTree

TEACHER = "{}-teacher"  # name of a teacher's outputs; a student's outputs have the name of its set


class Expert(NamedTuple):
    """One network on one data set.

    Attributes:
      model: with a linear head of the expert's name on the pooled features (`must.models.heads.ClassHead`); its `apply`
        supports with_features.
      classes: number of classes of its data set.
      view: name of its input.
      dropout: rate on the inputs of its student's and its teacher's linear layers, in training.
    """

    model: Model
    classes: int
    view: str = "image"
    dropout: float = 0.0


class Experts(NamedTuple):
    """n experts and their teachers as pure functions.

    Attributes:
      names: of the experts, in the order of concatenation.
      init: (key, {view: inputs}) -> variables; each teacher starts as its expert.
      features: (variables, {view: inputs}) -> {name: float32 [B, d]}, in inference mode.
      students: (params, features, drop=None) -> {name: logits [B, C]}.
      teachers: (params, features, drop=None) -> {name: logits [B, C]}; `drop` = (key, rows [B]) enables dropout, with
        independent draws per row.
      model: students and teachers in one `Model` of {view: inputs}, in inference mode: outputs {name: logits of the
        student, "<name>-teacher": logits of the teacher}.
    """

    names: tuple[str, ...]
    init: Callable[..., PyTree]
    features: Callable[..., dict[str, Array]]
    students: Callable[..., dict[str, Array]]
    teachers: Callable[..., dict[str, Array]]
    model: Model


def experts(parts: Mapping[str, Expert], *, vectorize: bool = False) -> Experts:
    """Joins experts.

    Args:
      parts: {name: Expert}.
      vectorize: apply all backbones at once under vmap; they must have equal shapes and share one view. A vmapped
        convolution is a grouped one, which is ten times slower on CPU, so the default applies them one by one.

    Raises:
      ValueError: `vectorize` with several views.
    """
    names = tuple(parts)
    if vectorize and len({part.view for part in parts.values()}) > 1:
        raise ValueError("experts with several views cannot be vectorized")

    def features(variables: PyTree, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if not vectorize:
            return {n: _pooled(parts[n].model, expert_variables(variables, n), inputs[parts[n].view]) for n in names}
        bodies = [_without_head(expert_variables(variables, name)) for name in names]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *bodies)
        first = parts[names[0]]
        head = {key: v for key, v in variables["params"]["experts"][names[0]].items() if key.startswith("heads_")}

        def one(body):
            return _pooled(first.model, {**body, "params": {**body["params"], **head}}, inputs[first.view])

        return dict(zip(names, jax.vmap(one)(stacked), strict=True))

    def students(params: PyTree, pooled: Mapping[str, Array], drop=None) -> dict[str, Array]:
        return {
            name: _linear(student_head(params, name), _dropped(pooled[name], parts[name].dropout, drop, 2 * i))
            for i, name in enumerate(names)
        }

    def teachers(params: PyTree, pooled: Mapping[str, Array], drop=None) -> dict[str, Array]:
        joined = jnp.concatenate([pooled[name] for name in names], -1)
        return {
            name: _linear(params["teachers"][name], _dropped(joined, parts[name].dropout, drop, 2 * i + 1))
            for i, name in enumerate(names)
        }

    def init(key: Array, inputs: Mapping[str, Array]) -> PyTree:
        trained = {
            name: parts[name].model.init(jax.random.fold_in(key, i), inputs[parts[name].view])
            for i, name in enumerate(names)
        }
        return from_experts(trained)

    def apply(variables, inputs, *, train=False, key=None, axis_name=None, with_features=False):
        del key, axis_name
        if train:
            raise ValueError(
                "experts cannot be applied with train=True; `must.objectives.joint` trains them in inference mode"
            )
        pooled = features(variables, inputs)
        outputs = students(variables["params"], pooled)
        outputs |= {TEACHER.format(name): logits for name, logits in teachers(variables["params"], pooled).items()}
        state = {kind: value for kind, value in variables.items() if kind != "params"}
        return (outputs, state, pooled) if with_features else (outputs, state)

    return Experts(names, init, features, students, teachers, Model(init, apply))


def from_experts(trained: Mapping[str, PyTree], random: Array | None = None) -> PyTree:
    """Joint variables of separately trained experts.

    Teacher i starts as expert i: V_i in block i of W_i, 0 elsewhere, c_i = b_i.

    Args:
      trained: {name: variables of its network}, in the order of concatenation.
      random: key; if set, teachers start from small random numbers instead.
    """
    heads = {name: variables["params"][f"heads_{name}"]["logits"] for name, variables in trained.items()}
    widths = {name: head["kernel"].shape[0] for name, head in heads.items()}
    teachers, start = {}, 0
    for i, (name, head) in enumerate(heads.items()):
        if random is None:
            kernel = jnp.zeros((sum(widths.values()), head["kernel"].shape[1]), head["kernel"].dtype)
            kernel = kernel.at[start : start + widths[name]].set(head["kernel"])
            teachers[name] = {"kernel": kernel, "bias": jnp.array(head["bias"], copy=True)}
        else:
            shape = (sum(widths.values()), head["kernel"].shape[1])
            kernel = 0.01 * jax.random.normal(jax.random.fold_in(random, i), shape)
            teachers[name] = {"kernel": kernel, "bias": jnp.zeros_like(head["bias"])}
        start += widths[name]
    kinds = dict.fromkeys(kind for variables in trained.values() for kind in variables if kind != "params")
    joint = {kind: {name: v[kind] for name, v in trained.items() if kind in v} for kind in kinds}
    own = {name: variables["params"] for name, variables in trained.items()}
    return {"params": {"experts": own, "teachers": teachers}, **joint}


def expert_variables(variables: PyTree, name: str) -> PyTree:
    """The variables of one student's network, without teachers."""
    own = {kind: value[name] for kind, value in variables.items() if kind != "params" and name in value}
    return {"params": variables["params"]["experts"][name], **own}


def student_head(params: PyTree, name: str) -> PyTree:
    """V_i and b_i, {"kernel": [d, C], "bias": [C]}."""
    return params["experts"][name][f"heads_{name}"]["logits"]


def cached(name: str, width: int, classes: int, dropout: float = 0.0) -> Expert:
    """An expert on precomputed features [B, width] in place of its view, to train only linear layers."""

    def init(key, inputs):
        del key, inputs
        return {
            "params": {f"heads_{name}": {"logits": {"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}}}
        }

    def apply(variables, inputs, *, train=False, key=None, axis_name=None, with_features=False):
        del train, key, axis_name
        features = Features({}, inputs)
        outputs = {name: _linear(variables["params"][f"heads_{name}"]["logits"], inputs)}
        return (outputs, {}, features) if with_features else (outputs, {})

    return Expert(Model(init, apply), classes, name, dropout)


def _pooled(model: Model, variables: PyTree, inputs: Array) -> Array:
    _, _, features = model.apply(variables, inputs, train=False, key=None, with_features=True)
    return features.pooled


def _without_head(variables: PyTree) -> PyTree:
    params = {name: part for name, part in variables["params"].items() if not name.startswith("heads_")}
    return {**variables, "params": params}


def _linear(head: PyTree, x: Array) -> Array:
    return x.astype(jnp.float32) @ head["kernel"] + head["bias"]


def _dropped(x: Array, rate: float, drop: tuple[Array, Array] | None, number: int) -> Array:
    """Dropout on x [B, d] with independent draws per row; `drop` = (key, rows int32 [B]), or None for no dropout.

    Rows are positions in the global batch, so that draws do not depend on the number of devices.
    """
    if drop is None or not rate:
        return x
    key, rows = drop
    key = jax.random.fold_in(key, number)
    keep = jax.vmap(lambda row: jax.random.bernoulli(jax.random.fold_in(key, row), 1 - rate, x.shape[1:]))(rows)
    return x * keep / (1 - rate)
