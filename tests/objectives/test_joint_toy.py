"""J5: on a toy, students and teachers gain over their experts, and controls say why
(`experiments/joint_experts.py`)."""

from tests.experiments.joint_experts import SEEDS_FROM, run


def test_students_learn_from_teachers_and_not_from_further_steps_or_any_answers():
    found = run(range(SEEDS_FROM, SEEDS_FROM + 6), ("jedi", "plain", "shuffled"))
    above = lambda a, b: int((found[a] > found[b]).sum())  # noqa: E731
    gain = lambda a, b: float((found[a] - found[b]).mean())  # noqa: E731
    assert found["expert"].mean() > 0.5  # a guess is right in .2
    assert above("jedi", "expert") >= 5 and above("jedi-teacher", "expert") >= 5
    assert above("jedi", "plain") >= 5 and gain("jedi", "plain") > 0.005
    assert abs(gain("plain", "expert")) < gain("jedi", "expert") / 2
    assert above("shuffled", "expert") == 0 and gain("shuffled", "expert") < -gain("jedi", "expert") / 2
