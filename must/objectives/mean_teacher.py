"""The student's own average as a teacher: it answers the clean picture, the student learns that on the strong one.

Mean Teacher (Tarvainen and Valpola 2017). Its answers stand beside the labels that a batch holds and do not replace them:
those of specialized teachers say what the student does not know yet, and an average that taught alone would agree with itself.
"""

from typing import NamedTuple

from must.objectives.distill import ALL, MISSING, Hint, hard, soft
from must.tasks.base import Task

AVERAGE = "average"  # its name among the teachers


class MeanTeacher(NamedTuple):
    """How a student learns from its average.

    Attributes:
      decay: of the average, ramped up as min(decay, (1 + step) / (10 + step)).
      start: steps during which its answers count for nothing.
      scale: factor of its terms, "<task>/self_<term>", beside the task's.
      kind: "hard", its predictions by the label policy's three states, or "soft", all that it says (`Task.imitate`).
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
        """What one task takes from it.

        Raises:
          ValueError: a `kind` or a `where` that is not there, numbers out of range.
        """
        kinds = {"hard": hard, "soft": soft}
        if self.kind not in kinds or self.where not in (ALL, MISSING):
            raise ValueError(f"kind {self.kind!r} is 'hard' or 'soft', where {self.where!r} is 'missing' or 'all'")
        if not (0 <= self.decay < 1 and self.start >= 0 and self.scale >= 0):
            raise ValueError(f"decay {self.decay}, start {self.start} or scale {self.scale} is out of range")
        said_alone = kinds[self.kind](name, task, AVERAGE)

        def apply(*arguments):
            found, state = said_alone.apply(*arguments)
            return {f"self_{term}": per_example for term, per_example in found.items()}, state

        terms = tuple(f"self_{term}" for term in said_alone.terms)
        return said_alone._replace(name=f"{name}_self", terms=terms, apply=apply, scale=self.scale, where=self.where)
