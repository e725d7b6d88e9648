"""The last jobs of JEDI: scores of experts, students, teachers and arms side by side, and the page that shows them."""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from must.core.types import PyTree
from must.data.pipeline import eval_batches
from must.evaluate import joint
from must.models.experts import TEACHER
from must.recipes import jobs, measuring
from must.recipes.comparison import median_time, rates_by_stage, read_curves, recipe_of, seconds_by_stage, settings_of
from must.recipes.joint_built import JointBuilt
from must.recipes.joint_stage import load_expert, load_joint, load_student

Config = Mapping[str, Any]
_ROWS = 16  # clips that a network is timed on


def compare(config: Config, *, directory: str, report) -> dict:
    """Collects the scores of all columns and seeds, measures what each costs to run, writes results.json."""
    workdir = os.path.dirname(directory)
    built = JointBuilt(config, config["seeds"][0])
    metrics = {name: task.metrics[0] for name, task in built.tasks.items()}
    split = config["measured_on"][0]
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in built.names}
    for seed in config["seeds"]:
        top = os.path.join(workdir, recipe_of(config).prefix(config, seed))
        for name in built.names:
            own, metric = scores[name], metrics[name].name
            own.setdefault("expert", []).append(jobs.facts(top, f"experts/{name}")[split][name][metric])
            for arm in (joint.ARM, *config["arms"]):
                student, teacher = joint.columns_of(arm)
                found = jobs.facts(top, f"joint/{arm}")[split]
                own.setdefault(student, []).append(found[name][metric])
                own.setdefault(teacher, []).append(found[TEACHER.format(name)][metric])
    first = os.path.join(workdir, recipe_of(config).prefix(config, config["seeds"][0]))
    results = joint.results(
        config["seeds"],
        metrics,
        scores,
        pairs=[tuple(pair) for pair in config["pairs"]],
        words=config["words"],
        controls=config["controls"],
        expected=[tuple(pair) for pair in config["expected"]],
        classes={name: task.classes for name, task in built.tasks.items()},
        costs=_costs(built, first),
        seconds=seconds_by_stage(recipe_of(config), config, workdir),
        images_per_second=rates_by_stage(recipe_of(config), config, workdir),
    )
    results["notes"] = _notes(built, workdir)
    for name, content in (("results.json", json.dumps(results, indent=1)), ("results.txt", joint.table(results))):
        with open(os.path.join(workdir, name), "w") as file:
            file.write(content + "\n")
    return {}


def report(config: Config, *, directory: str, report) -> dict:
    """Draws the page from what the other jobs left."""
    from must.report.joint import write_joint_report

    workdir = os.path.dirname(directory)
    built = JointBuilt(config, config["seeds"][0])
    top = os.path.join(workdir, recipe_of(config).prefix(config, config["seeds"][0]))
    with open(os.path.join(workdir, "results.json")) as file:
        results = json.load(file)
    arms = (joint.ARM, *config["arms"])
    facts = {arm: jobs.facts(top, f"joint/{arm}") for arm in arms}
    write_joint_report(
        os.path.join(workdir, "report.html"),
        title=config["title"],
        results=results,
        curves={arm: read_curves(os.path.join(top, "joint", arm)) for arm in arms},
        confusions=_confusions(built, top),
        clips=_clips(built, top),
        settings=settings_of(workdir),
        selected={arm: found["selected_step"] for arm, found in facts.items()},
        experts={name: jobs.facts(top, f"experts/{name}")["validation"][name] for name in built.names},
    )
    return {}


def _notes(built: JointBuilt, workdir: str) -> list[str]:
    """How many examples and steps stand behind the numbers."""
    config = built.config
    counts = ", ".join(
        f"{name} {len(built.split(name, 'train'))} / {len(built.split(name, 'validation'))} / "
        f"{len(built.split(name, config['measured_on'][0]))}"
        for name in built.names
    )
    made: dict[str, list[int]] = {"experts": [], "joint": []}
    for seed in config["seeds"]:
        top = os.path.join(workdir, recipe_of(config).prefix(config, seed))
        made["experts"] += [jobs.facts(top, f"experts/{name}")["steps"] for name in built.names]
        made["joint"].append(jobs.facts(top, f"joint/{joint.ARM}")["steps"])
    spread = {
        stage: f"{min(steps):,} to {max(steps):,}" if min(steps) < max(steps) else f"{min(steps):,}"
        for stage, steps in made.items()
    }
    pool = sum(map(len, built.pool()))
    return [
        f"Labeled for training / validation / test: {counts}; {pool:,} without labels.",
        f"Steps made: experts {spread['experts']}, joint stage {spread['joint']}; every arm as many as the joint stage of its seed.",
    ]


def _costs(built: JointBuilt, top: str) -> dict[str, dict[str, float]]:
    """Per column: networks, parameters, time per clip to have all sets answered on this machine."""
    found = {}
    for column, where in (("expert", "experts/{}"), ("student", f"joint/{joint.ARM}/students/{{}}")):
        parameters, seconds = 0, 0.0
        for name in built.names:
            variables = jax.device_put(load_student(built, os.path.join(top, where.format(name)), name))
            parameters += sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
            predict = measuring.predictor(built.model((name,)), {name: built.tasks[name]})
            inputs = _repeated(built.shown((name,)).blank_inputs()["image"])
            seconds += median_time(lambda: predict(variables, inputs))  # noqa: B023
        found[column] = (len(built.names), parameters, seconds)
    variables = jax.device_put(load_joint(built, os.path.join(top, "joint", joint.ARM)))
    predict = measuring.predictor(built.joined().model, built.both())
    inputs = jax.tree.map(_repeated, built.shown(built.names, "joint").blank_inputs())
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    found["teacher"] = (len(built.names), parameters, median_time(lambda: predict(variables, inputs)))
    return {
        column: {
            "networks": networks,
            "parameters": parameters,
            "milliseconds": 1000 * seconds / _ROWS,
            "images_per_second": _ROWS / seconds,
        }
        for column, (networks, parameters, seconds) in found.items()
    }


def _repeated(inputs: np.ndarray) -> np.ndarray:
    return np.repeat(inputs, _ROWS, 0)


def _confusions(built: JointBuilt, top: str) -> dict[str, dict[str, np.ndarray]]:
    """{set: {head: rates}}: what every student says of the test examples of every set, by their class there."""
    variables = jax.device_put(load_joint(built, os.path.join(top, "joint", joint.ARM)))
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in built.names:
        probs, truth = _answers(built, variables, name)
        found[name] = {
            head: joint.confusion(probs[head], truth, built.tasks[name].classes, built.tasks[head].classes)
            for head in built.names
        }
    return found


def _answers(built: JointBuilt, variables: PyTree, name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """({head: probabilities [N, C]}, class ids [N]) of the test examples of a set."""
    predict = measuring.predictor(built.joined().model, built.both())
    encoder = built.shown(built.names, "joint")._replace(tasks={name: built.tasks[name]})
    gathered: dict[str, list[np.ndarray]] = {head: [] for head in built.both()}
    truth = []
    for batch in eval_batches(built.split(name, built.config["measured_on"][0]), encoder, batch_size=32):
        real = batch.ids >= 0
        for head, said in predict(variables, batch.inputs).items():
            gathered[head].append(np.asarray(said["probs"])[real])
        truth.append(batch.labels[name]["probs"].argmax(-1)[real])
    return {head: np.concatenate(parts) for head, parts in gathered.items()}, np.concatenate(truth)


def _clips(built: JointBuilt, top: str, most: int = 4) -> dict[str, list[dict[str, Any]]]:
    """Test examples of every set, spread over it, with what expert, student and teacher say of them."""
    together = jax.device_put(load_joint(built, os.path.join(top, "joint", joint.ARM)))
    found = {}
    for name in built.names:
        task, source = built.tasks[name], built.split(name, built.config["measured_on"][0])
        chosen = np.unique(np.linspace(0, len(source) - 1, most).round().astype(int))
        views = {alone: [] for alone in (True, False)}
        for alone in views:
            encoder = built.shown((name,)) if alone else built.shown(built.names, "joint")
            encoder = encoder._replace(tasks={name: task})
            views[alone] = [encoder(source[int(i)], int(i), np.random.default_rng(0)) for i in chosen]
        own = np.stack([row.inputs["image"] for row in views[True]])
        every = jax.tree.map(lambda *leaves: np.stack(leaves), *(row.inputs for row in views[False]))
        predict = measuring.predictor(built.model((name,)), {name: task})
        student = jax.device_put(load_student(built, os.path.join(top, "joint", joint.ARM, "students", name), name))
        said = {
            "expert": predict(jax.device_put(load_expert(built, top, name)), own)[name],
            "student": predict(student, own)[name],
            "teacher": measuring.predictor(built.joined().model, built.both())(together, every)[TEACHER.format(name)],
        }
        found[name] = [
            {
                "video": own[i] if built.video else own[i][None],  # a picture is a clip of one frame
                "truth": task.classes[int(row.labels[name]["probs"].argmax())],
                "answers": {column: np.asarray(label["probs"])[i] for column, label in said.items()},
            }
            for i, row in enumerate(views[True])
        ]
    return found
