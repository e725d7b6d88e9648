"""Joint experts (Bicsi et al. 2023): n networks, each the student of its own data set, and a teacher per set on all of
them.

    student_i(x) = V_i phi_i(x) + b_i        z(x) = [phi_1(x); ...; phi_n(x)]        teacher_i(x) = W_i z(x) + c_i

phi_i is what `Features.pooled` of backbone i holds. One application of each backbone serves all students and all
teachers. Experts may differ in backbone, in label space and in the input that they look at. The networks come as
`Model`s, so that nothing here knows what they are made of. Variables are
    params        {"experts": {name: parameters of the expert}, "teachers": {name: {"kernel", "bias"}}}
    other kinds   {name: those of the expert}
and those of one expert are the variables of the network that was trained on its set alone, head included.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from must.core.types import Array, Features, Model, PyTree

TEACHER = "{}-teacher"  # name of the outputs of a set's teacher beside those of its student


class Expert(NamedTuple):
    """One network on one data set.

    Attributes:
      model: with a linear head of its name on the pooled features (`must.models.heads.ClassHead`); its `apply` takes
        with_features.
      classes: of its data set.
      view: the input that it looks at.
      dropout: rate on what the linear layers of its student and of its teacher read, while training.
    """

    model: Model
    classes: int
    view: str = "image"
    dropout: float = 0.0


class Experts(NamedTuple):
    """n experts and their teachers as pure functions.

    Attributes:
      names: of the experts, in the order in which features are concatenated.
      init: (key, {view: inputs}) -> variables; a teacher starts as its expert.
      features: (variables, {view: inputs}) -> {name: float32 [B, d]}, norms and everything else in inference mode.
      students: (params, features, drop=None) -> {name: logits [B, C]}.
      teachers: (params, features, drop=None) -> {name: logits [B, C]}; `drop` = (key, rows [B]) drops inputs by draws
        of each row.
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
      vectorize: apply all backbones at once, under vmap; they have to be alike in all shapes and look at one view. A
        vmapped convolution is a grouped one, which CPUs do an order of magnitude slower: the default runs them one by
        one.

    Raises:
      ValueError: `vectorize` with experts of several views.
    """
    names = tuple(parts)
    if vectorize and len({part.view for part in parts.values()}) > 1:
        raise ValueError("experts that look at several views cannot be vectorized")

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

    def students(params: PyTree, found: Mapping[str, Array], drop=None) -> dict[str, Array]:
        return {
            name: _linear(student_head(params, name), _dropped(found[name], parts[name].dropout, drop, 2 * i))
            for i, name in enumerate(names)
        }

    def teachers(params: PyTree, found: Mapping[str, Array], drop=None) -> dict[str, Array]:
        joined = jnp.concatenate([found[name] for name in names], -1)
        return {
            name: _linear(params["teachers"][name], _dropped(joined, parts[name].dropout, drop, 2 * i + 1))
            for i, name in enumerate(names)
        }

    def init(key: Array, inputs: Mapping[str, Array]) -> PyTree:
        made = {
            name: parts[name].model.init(jax.random.fold_in(key, i), inputs[parts[name].view])
            for i, name in enumerate(names)
        }
        return from_experts(made)

    def apply(variables, inputs, *, train=False, key=None, axis_name=None, with_features=False):
        del key, axis_name
        if train:
            raise ValueError("experts are trained through `must.objectives.joint`, in which they run in inference mode")
        found = features(variables, inputs)
        outputs = students(variables["params"], found)
        outputs |= {TEACHER.format(name): logits for name, logits in teachers(variables["params"], found).items()}
        state = {kind: value for kind, value in variables.items() if kind != "params"}
        return (outputs, state, found) if with_features else (outputs, state)

    return Experts(names, init, features, students, teachers, Model(init, apply))


def from_experts(trained: Mapping[str, PyTree], random: Array | None = None) -> PyTree:
    """Joint variables of experts that were trained alone.

    Teacher i starts as expert i: V_i in block i of W_i, 0 elsewhere, c_i = b_i.

    Args:
      trained: {name: variables of its network}, in the order of the concatenation.
      random: key; teachers start from small random numbers instead.
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
    """The variables of one student alone: those of the network of its set, without any teacher."""
    own = {kind: value[name] for kind, value in variables.items() if kind != "params" and name in value}
    return {"params": variables["params"]["experts"][name], **own}


def student_head(params: PyTree, name: str) -> PyTree:
    """V_i and b_i, {"kernel": [d, C], "bias": [C]}."""
    return params["experts"][name][f"heads_{name}"]["logits"]


def cached(name: str, width: int, classes: int, dropout: float = 0.0) -> Expert:
    """An expert whose backbone is not run: its view holds features [B, width] that were computed before.

    The joint stage over such experts trains the linear layers alone, in seconds.
    """

    def init(key, inputs):
        del key, inputs
        return {
            "params": {f"heads_{name}": {"logits": {"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}}}
        }

    def apply(variables, inputs, *, train=False, key=None, axis_name=None, with_features=False):
        del train, key, axis_name
        found = Features({}, inputs)
        outputs = {name: _linear(variables["params"][f"heads_{name}"]["logits"], inputs)}
        return (outputs, {}, found) if with_features else (outputs, {})

    return Expert(Model(init, apply), classes, name, dropout)


def _pooled(model: Model, variables: PyTree, inputs: Array) -> Array:
    _, _, found = model.apply(variables, inputs, train=False, key=None, with_features=True)
    return found.pooled


def _without_head(variables: PyTree) -> PyTree:
    params = {name: part for name, part in variables["params"].items() if not name.startswith("heads_")}
    return {**variables, "params": params}


def _linear(head: PyTree, x: Array) -> Array:
    return x.astype(jnp.float32) @ head["kernel"] + head["bias"]


def _dropped(x: Array, rate: float, drop: tuple[Array, Array] | None, number: int) -> Array:
    """x [B, d] with entries dropped by draws of each row's own; `drop` = (key, rows int32 [B]), None drops nothing.

    Rows are places in the global batch, so that one device draws what many draw.
    """
    if drop is None or not rate:
        return x
    key, rows = drop
    key = jax.random.fold_in(key, number)
    keep = jax.vmap(lambda row: jax.random.bernoulli(jax.random.fold_in(key, row), 1 - rate, x.shape[1:]))(rows)
    return x * keep / (1 - rate)
