"""JEDI, joint experts over several data sets (Bicsi et al. 2023): experts -> joint -> compare -> report -> export.

Every set has an expert, trained alone until its validation score stops rising. The experts are the first students of the
joint stage, in which a teacher per set reads the features of all of them. Arms are further joint stages from the same
experts with other settings and as many steps: without distillation, with shuffled answers, with frozen backbones.
"""

from collections.abc import Mapping
from typing import Any

from must.core.types import UserError
from must.data.combine import labels_of
from must.data.disjoint import check_disjoint
from must.evaluate.joint import ARM, columns_of
from must.objectives.joint import GRADIENTS
from must.recipes import checks, overlapping, setup, stages
from must.recipes.jobs import Job
from must.recipes.joint_built import JOINT, JointBuilt
from must.recipes.joint_comparison import compare, report
from must.recipes.joint_export import export
from must.recipes.joint_stage import train_expert, train_joint
from must.tasks.classification import Classification

STAGES = ("experts", "joint", "compare", "report", "export")
Built = JointBuilt
Config = Mapping[str, Any]
_TRAINING = ("geometry", "view", "balance", "tasks")  # what a section may say besides its schedule


def plan(config: Config, workers: int) -> list[Job]:
    """All jobs of a configuration.

    Args:
      config: plain dict, see `configs/jedi.py`.
      workers: unused, there are jobs enough to share.
    """
    found = []
    for seed in config["seeds"]:
        at = prefix(config, seed)
        clean = () if config["overlaps"] == "ignore" else (f"{at}{overlapping.JOB}",)
        found += [Job(job, "experts", overlapping.find, (config, seed)) for job in clean]
        own = tuple(f"{at}experts/{name}" for name in config["tasks"])
        for job, name in zip(own, config["tasks"], strict=True):
            found.append(Job(job, "experts", train_expert, (config, seed, name), clean))
        found.append(Job(f"{at}joint/{ARM}", "joint", train_joint, (config, seed, ARM), own))
        for arm in config["arms"]:  # they make as many steps as JEDI made
            found.append(Job(f"{at}joint/{arm}", "joint", train_joint, (config, seed, arm), (*own, f"{at}joint/{ARM}")))
    trained = tuple(job.name for job in found)
    found.append(Job("compare", "compare", compare, (config,), trained, alone=True))
    found.append(Job("report", "report", report, (config,), ("compare",), alone=True))
    first = prefix(config, config["seeds"][0])
    found.append(Job("export", "export", export, (config,), (f"{first}joint/{ARM}",), alone=True))
    return found


def check(config: Config) -> None:
    """Everything about a configuration that can be wrong and shows without training."""
    if not config["seeds"] or not config["measured_on"] or not config["tasks"]:
        raise UserError("seeds, measured_on, tasks: give at least one of each")
    for name in config["tasks"]:
        for split in ("train", "validation", *config["measured_on"]):
            if split not in config["sets"].get(name, {split: None}):
                raise UserError(f"sets.{name}: no split {split!r}")
    built = JointBuilt(config, config["seeds"][0])
    checks.check_sets(built)
    for split in built.config["measured_on"]:
        for name in built.names:  # the weights that are best on one would be scored on the same examples
            if split != "validation":
                check_disjoint(
                    {f"{name} validation": built.split(name, "validation"), f"{name} {split}": built.split(name, split)}
                )
    for name, task in built.tasks.items():
        if not isinstance(task, Classification):
            raise UserError(f"tasks.{name}: joint experts know classes, not {type(task).__name__.lower()}")
        section = built.config["experts"][name]
        for key in section:
            if key not in ("frames", "model"):
                raise UserError(f"experts.{name}.{key}: not one of frames, model")
        if section.get("frames", 0 if built.video else 1) < 1:
            raise UserError(f"experts.{name}.frames {section.get('frames')}: at least 1")
    if built.config["test_clips"] > 1 and not built.video:
        raise UserError(f"test_clips {built.config['test_clips']}: still images have no clips; leave it at 1")
    if built.config["test_clips"] < 1:
        raise UserError(f"test_clips {built.config['test_clips']}: at least 1")
    for source in built.pool():
        for name in set(labels_of(source, 0)) & set(built.names):
            raise UserError(
                f"pool: {source.name} has labels of {name!r}, which would teach the joint stage and no expert"
            )
    built.joined()  # networks that cannot be made
    for run in ("expert", "joint", *built.config["arms"]):
        _check_settings(built, run)
    if built.config["overlaps"] not in overlapping.WAYS:
        raise UserError(f"overlaps {built.config['overlaps']!r}: one of {', '.join(overlapping.WAYS)}")
    _check_columns(built.config)


def _check_columns(config: Config) -> None:
    """What is compared is there: else the results could not be written once everything is trained."""
    columns = ["expert", *(column for arm in (ARM, *config["arms"]) for column in columns_of(arm))]
    for key in ("pairs", "expected"):
        for pair in config[key]:
            if isinstance(pair, str) or len(pair) != 2:
                raise UserError(f"{key}: {pair!r} is not two columns")
    named = [(key, column) for key in ("pairs", "expected") for pair in config[key] for column in pair]
    for key, column in (*named, *(("controls", column) for column in config["controls"])):
        if column not in columns:
            raise UserError(f"{key}: no column {column!r}: {', '.join(columns)}")
    compared = {frozenset(pair) for pair in config["pairs"]}
    for pair in config["expected"]:
        if frozenset(pair) not in compared:
            raise UserError(f"expected: {' and '.join(pair)} are not one of config.pairs")


def _check_settings(built: JointBuilt, run: str) -> None:
    """What a section cannot mean."""
    settings, where = built.settings(run), run if run in ("expert", "joint") else f"arms.{run}"
    if run in (ARM, "teacher"):
        raise UserError(f"{where}: the results have a column or an arm of that name already")
    known = {*stages.Schedule._fields, *_TRAINING, *(("epochs", "normalize", "scales") if run == "expert" else JOINT)}
    for key in built.config[run] if run == where else built.config["arms"][run]:
        if key not in known:
            raise UserError(f"{where}.{key}: not one of {', '.join(sorted(known))}")
    if where != run and "steps" in built.config["arms"][run]:
        raise UserError(f"{where}.steps: every arm makes as many as the joint stage")
    setup.build_balance(settings["balance"])
    if settings.get("patience") and (settings.get("select") != "best" or not settings.get("evaluate_every")):
        raise UserError(f"{where}.patience {settings['patience']}: needs select = 'best' and evaluate_every above 0")
    if run == "expert":
        return
    for key, default in JOINT.items():
        form = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(settings[key], form) or isinstance(settings[key], bool) != isinstance(default, bool):
            raise UserError(f"{where}.{key} {settings[key]!r}: like {default!r}")
    if settings["teacher_gradient"] not in GRADIENTS:
        raise UserError(f"{where}.teacher_gradient {settings['teacher_gradient']!r}: one of {', '.join(GRADIENTS)}")
    if settings["sampling"] not in ("equal", "proportional"):
        raise UserError(f"{where}.sampling {settings['sampling']!r}: 'equal' or 'proportional'")
    if settings["temperature"] <= 0:
        raise UserError(f"{where}.temperature {settings['temperature']}: must be positive")
    for key in ("threshold", "ema_teacher"):
        if not 0 <= settings[key] < 1:
            raise UserError(f"{where}.{key} {settings[key]}: 0 to below 1")


def single(config: Config) -> Config:
    """The run that a plan is made for: there is one."""
    return config


def prefix(config: Config, seed: int) -> str:
    """Where a seed's directories stand in the workdir: at its top when there is one seed."""
    return "" if len(config["seeds"]) == 1 else f"seed-{seed}/"


def runs(built: JointBuilt) -> list[tuple[str, tuple[str, ...]]]:
    """The kinds of training runs of a seed: (section of the configuration, sets of the network)."""
    return [("expert", (name,)) for name in built.names] + [
        (arm, built.names) for arm in ("joint", *built.config["arms"])
    ]
