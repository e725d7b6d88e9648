"""The student's own average as a teacher: it predicts on the clean image, the student learns that on the strong one.

Mean Teacher (Tarvainen and Valpola 2017). Its predictions stand beside the labels of a batch and do not replace them:
an average that taught alone would agree with itself, specialized teachers know what the student does not know yet.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from must.core.ema import ema_update
from must.core.types import Model, PyTree
from must.data.mix import CLEAN
from must.objectives.distill import ALL, MISSING, Hint, hard, soft
from must.objectives.hints import apply_hints, predict, term_scales
from must.objectives.objective import Forward, Part
from must.tasks.base import Task

AVERAGE = "average"  # its name among the teachers


class MeanTeacher(NamedTuple):
    """How a student learns from its average.

    Attributes:
      decay: of the average, ramped up as min(decay, (1 + step) / (10 + step)).
      start: steps during which its predictions do not count.
      scale: factor of its terms, "<task>/self_<term>", beside the task's.
      kind: "hard", its predictions by the label policy's three states, or "soft", its full predictions
        (`Task.distill_loss`).
      where: rows that learn from it: "missing", those without ground truth of the task, or "all".
      tasks: that learn from it; all by default.
    """

    decay: float = 0.99
    start: int = 0
    scale: float = 1.0
    kind: str = "hard"
    where: str = MISSING
    tasks: tuple[str, ...] = ()

    def hint(self, name: str, task: Task) -> Hint:
        """The hint of one task.

        Raises:
          ValueError: unknown `kind` or `where`, numbers out of range.
        """
        kinds = {"hard": hard, "soft": soft}
        if self.kind not in kinds or self.where not in (ALL, MISSING):
            raise ValueError(f"kind {self.kind!r} is 'hard' or 'soft', where {self.where!r} is 'missing' or 'all'")
        if not (0 <= self.decay < 1 and self.start >= 0 and self.scale >= 0):
            raise ValueError(f"decay {self.decay}, start {self.start} or scale {self.scale} is out of range")
        plain = kinds[self.kind](name, task, AVERAGE)

        def apply(*arguments):
            terms, state = plain.apply(*arguments)
            return {f"self_{term}": per_example for term, per_example in terms.items()}, state

        terms = tuple(f"self_{term}" for term in plain.terms)
        return plain._replace(name=f"{name}_self", terms=terms, apply=apply, scale=self.scale, where=self.where)


def mean_teacher(
    model: Model, tasks: Mapping[str, Task], settings: MeanTeacher, *, initial: PyTree, shuffled: bool = False
) -> Part:
    """The student's average as one more teacher; needs `must.objectives.labels` of the same tasks beside it.

    Rows whose `Batch.extras[supervision]["pseudo"]` is not 0 have no ground truth.

    Args:
      model: the student.
      tasks: by name.
      settings: how it teaches.
      initial: variables that the average starts from; batch statistics are averaged beside parameters.
      shuffled: every row gets the predictions for another one; a control that should lose.

    Raises:
      ValueError: `initial` is missing, or settings out of range.
    """
    if initial is None:
        raise ValueError("a mean teacher needs variables to start from")
    own = [settings.hint(name, tasks[name]) for name in settings.tasks or tasks]
    stateless: dict = {hint.name: {} for hint in own}

    def terms(state, forward: Forward):
        predictions = predict(own, {AVERAGE: model}, {AVERAGE: state["average"]}, CLEAN, shuffled, forward)
        named, _ = apply_hints(own, stateless, predictions, forward)
        active = jnp.where(forward.step >= settings.start, 1.0, 0.0)
        return [(name, term, rows * active) for name, term, rows in named], state

    def begin(state, variables, step):
        return {"average": ema_update(state["average"], variables, settings.decay, step)}

    def init(key):
        return {}, {"average": jax.tree.map(jnp.copy, initial)}

    return Part(term_scales(own), terms, init, begin, features=lambda group: True)
