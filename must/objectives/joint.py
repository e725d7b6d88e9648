"""The objective of JEDI: every expert learns its own set, and distills its teacher's predictions for all other clips.

    L = sum_i  a_T CE(y, teacher_i(x)) + a_S CE(y, student_i(x))            over D_i
             + a_U tau^2 KL( sg teacher_i^tau(x) || student_i^tau(x) )      over the other sets and the unlabeled pool

(Bicsi, Alexe, Ionescu, Leordeanu 2023; the weights and the form of the distillation loss are ours). Each of the 3 n
terms is a mean over its own rows. Backbones run in inference mode: norms use their running statistics, which stay what
they were, and dropout sits in the linear layers alone. Teachers predict without dropout.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from must.core import losses
from must.core.devices import global_row_index, roll_rows
from must.core.ema import ema_update
from must.core.ratio import Ratio, weighted_sum
from must.core.types import Array, Batch, Objective, PerExample, Policy, PyTree
from must.models.experts import TEACHER, Experts
from must.tasks.classification import Classification

GRADIENTS = ("all", "own", "none")


def joint(
    experts: Experts,
    tasks: Mapping[str, Classification],
    *,
    distill: float = 1.0,
    student: float = 1.0,
    teacher: float = 1.0,
    temperature: float = 1.0,
    teacher_gradient: str = "all",
    threshold: float = 0.0,
    own_set: bool = False,
    ema_decay: float = 0.0,
    initial: PyTree = None,
    shuffled: bool = False,
) -> Objective:
    """Terms "<set>/class", "<set>-teacher/class" and "<set>/distill" of every set.

    A step takes one batch or {group: batch}, whose rows are joined: every backbone is applied once. A row without a
    label of set i (weight 0) is unlabeled for its head, wherever it comes from.

    Args:
      experts: see `must.models.experts`.
      tasks: {set: Classification or Action}, the loss of labeled rows.
      distill: a_U.
      student: a_S.
      teacher: a_T.
      temperature: tau.
      teacher_gradient: which backbones the teachers' own loss reaches: "all", the "own" set's, or "none".
      threshold: an answer teaches where the teacher's largest probability (at temperature 1) is at least this.
      own_set: distil on the labeled rows too.
      ema_decay: answers come from averaged weights of backbones and teachers, which costs a second application of every
        backbone, without gradient; 0: from the current ones.
      initial: parameters that the average starts from; needed with `ema_decay`.
      shuffled: every row is given the answer to another one of its group; a control that should lose.

    Raises:
      ValueError: an unknown `teacher_gradient`, or an average without a start.
    """
    if teacher_gradient not in GRADIENTS:
        raise ValueError(f"teacher_gradient {teacher_gradient!r}: one of {', '.join(GRADIENTS)}")
    if ema_decay and initial is None:
        raise ValueError("an average of teachers needs parameters to start from")
    scales = {}
    for name in experts.names:
        scales |= {f"{name}/class": student, f"{name}/distill": distill, f"{TEACHER.format(name)}/class": teacher}

    def terms(params, model_state, aux_state, frozen, batch: Batch | Mapping[str, Batch], key, axis_name):
        del frozen
        groups = [batch] if isinstance(batch, Batch) else [part for _, part in sorted(batch.items())]
        rows = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *groups)
        drop = (key, _global_rows([len(part.ids) for part in groups], axis_name))
        students, taught, answers, aux_state = _predictions(
            experts, params["model"], model_state, aux_state, rows.inputs, drop, teacher_gradient, ema_decay
        )
        if shuffled:
            answers = {name: _other_rows(logits, groups, axis_name) for name, logits in answers.items()}
        ratios, real = {}, rows.ids >= 0
        for name in experts.names:
            target = tasks[name].target(rows.labels[name], Policy())
            weights = rows.weights[name]
            for head, logits in ((name, students[name]), (TEACHER.format(name), taught[name])):
                ratios[f"{head}/class"] = weighted_sum(tasks[name].loss(logits, target)["class"], weights)
            asked = real if own_set else real & (weights == 0)
            ratios[f"{name}/distill"] = _distilled(answers[name], students[name], asked, temperature, threshold)
        return ratios, model_state, aux_state

    def init(key):
        return {}, {"average": jax.tree.map(jnp.copy, initial)} if ema_decay else {}

    return Objective(init, tuple(scales), terms, scales, shared=lambda params: params["model"]["experts"])


def _predictions(
    experts: Experts, model, model_state, aux_state, inputs, drop, teacher_gradient: str, ema_decay: float
):
    """Logits {set: [B, C]} of the students, of the teachers as they learn and of the teachers as they answer, and the
    next state, with one application of every backbone, two with an average."""
    found = experts.features({"params": model, **model_state}, inputs)
    students = experts.students(model, found, drop)
    taught = _taught(experts, model, found, drop, teacher_gradient)
    if not ema_decay:
        return students, taught, experts.teachers(model, found), aux_state
    average = ema_update(aux_state["average"], model, ema_decay)
    answers = experts.teachers(average, experts.features({"params": average, **model_state}, inputs))
    return students, taught, answers, {**aux_state, "average": average}


def _distilled(answers: Array, student: Array, asked: Array, temperature: float, threshold: float) -> Ratio:
    """tau^2 KL(answer || student) over the rows bool [B] that are asked and whose answer is confident enough."""
    answers = jax.lax.stop_gradient(answers)
    if threshold:
        asked &= jax.nn.softmax(answers).max(-1) >= threshold
    value = temperature**2 * losses.kl_divergence(answers / temperature, student / temperature)
    return weighted_sum(PerExample(value, jnp.ones_like(value)), asked.astype(jnp.float32))


def _taught(experts: Experts, model: PyTree, found: Mapping[str, Array], drop, gradient: str) -> dict[str, Array]:
    """The teachers' logits, whose loss reaches the backbones that it may reach."""
    if gradient == "all":
        return experts.teachers(model, found, drop)
    fixed = jax.lax.stop_gradient(dict(found))
    if gradient == "none":
        return experts.teachers(model, fixed, drop)
    return {name: experts.teachers(model, {**fixed, name: found[name]}, drop)[name] for name in experts.names}


def _global_rows(sizes: list[int], axis_name: str | None) -> Array:
    """The place of each local row among the rows of all groups and devices, group after group, int32 [B]."""
    devices = 1 if axis_name is None else jax.lax.psum(1, axis_name)
    places, start = [], 0
    for size in sizes:
        places.append(start + global_row_index(size, axis_name))
        start += size * devices
    return jnp.concatenate(places)


def _other_rows(answers: Array, groups: list[Batch], axis_name: str | None) -> Array:
    """Every row the answer to the one before it in its group, over all devices."""
    moved, start = [], 0
    for part in groups:
        moved.append(roll_rows(answers[start : start + len(part.ids)], axis_name))
        start += len(part.ids)
    return jnp.concatenate(moved)
