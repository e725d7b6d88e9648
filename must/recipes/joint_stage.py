"""The jobs of JEDI in which networks learn: experts alone, then all of them with their teachers, or their linear layers."""

import functools
import os
from collections.abc import Mapping
from typing import Any

import jax

from must.core import devices
from must.core.types import Policy, PyTree, Source
from must.data.embedded import EmbeddedEncoder, embed
from must.data.pipeline import eval_batches
from must.evaluate.evaluate import summarize
from must.evaluate.joint import ARM
from must.models import experts as joint_experts
from must.models.experts import expert_variables, from_experts
from must.recipes import jobs, measuring, overlapping, setup, stages, training
from must.recipes.joint_built import JointBuilt
from must.recipes.labeling import seed_directory
from must.recipes.selection import Judge

Config = Mapping[str, Any]


def train_expert(config: Config, seed: int, name: str, *, directory: str, report) -> dict:
    """The network of one set, on its labels alone."""
    built = overlapping.built_for(config, seed, directory, f"experts/{name}")
    return training.train_run(built, (name,), built.split(name, "train"), "expert", {name: Policy()}, directory, report)


def train_joint(config: Config, seed: int, arm: str, *, directory: str, report) -> dict:
    """All experts with their teachers: JEDI, or an arm that differs in some settings and makes as many steps."""
    built = overlapping.built_for(config, seed, directory, f"joint/{arm}")
    run, top = ("joint" if arm == ARM else arm), seed_directory(directory, os.path.join("joint", arm))
    settings, schedule, stop = built.settings(run), built.schedule(run), 0
    if arm != ARM:
        schedule, stop = schedule._replace(patience=0), jobs.facts(top, os.path.join("joint", ARM))["steps"]
    trained = {name: load_expert(built, top, name) for name in built.names}
    random = jax.random.fold_in(jax.random.key(seed), 3) if settings["random_teachers"] else None
    variables = from_experts(trained, random)
    learn = _train_heads if settings["frozen"] else _train_all
    facts = learn(built, run, variables, schedule, stop, directory, report)
    return facts | measure_joint(built, run, directory)


def load_expert(built: JointBuilt, top: str, name: str) -> PyTree:
    """Variables of a trained expert."""
    return load_student(built, os.path.join(top, "experts", name), name)


def load_student(built: JointBuilt, directory: str, name: str) -> PyTree:
    """Variables of the network of one set, as trained alone or as kept by itself in the joint stage."""
    return stages.load_weights(directory, built.model((name,)), built.shown((name,)).blank_inputs()["image"])[0]


def load_joint(built: JointBuilt, directory: str) -> PyTree:
    """Variables of students and teachers where their students were best together."""
    return stages.load_weights(directory, built.joined().model, built.shown(built.names, "joint").blank_inputs())[0]


def _train_all(built: JointBuilt, run: str, variables: PyTree, schedule, stop: int, directory: str, report) -> dict:
    """End to end."""
    judge = Judge(
        built.shown(built.names, "joint"),
        built.both_splits("validation"),
        view=None,
        tasks=built.names,
        parts={name: functools.partial(expert_variables, name=name) for name in built.names},
    )
    return stages.train(
        directory,
        seed=built.seed,
        model=built.joined(run).model,
        tasks=built.both(),
        objective=built.objective(run, variables["params"]),
        balance=setup.build_balance(built.settings(run)["balance"]),
        source=built.batches(run),
        encoder=built.encoder(built.names, run),
        schedule=schedule,
        judge=judge,
        variables=variables,
        stop=stop,
        report=report,
    )


def _train_heads(built: JointBuilt, run: str, variables: PyTree, schedule, stop: int, directory: str, report) -> dict:
    """The staged, frozen twin: backbones are applied once to every clip, as it is shown without augmentation, then the
    linear layers of students and teachers learn on what came out."""
    whole = built.joined()
    widths = {name: joint_experts.student_head(variables["params"], name)["kernel"].shape[0] for name in built.names}
    heads = joint_experts.experts(
        {
            name: joint_experts.cached(name, widths[name], len(task.classes), task.dropout)
            for name, task in built.tasks_of(run).items()
        }
    )
    compute = functools.partial(jax.jit(whole.features), variables)

    def embedded(source: Source) -> Source:
        shown = built.shown(built.names, "joint")._replace(tasks={})
        return embed(source, compute, eval_batches(source, shown, batch_size=32))

    batches = built.batches(run)
    if isinstance(batches, Mapping):
        batches = {group: embedded(source) for group, source in batches.items()}
    else:
        batches = embedded(batches)
    splits = {}
    for source, names in measuring.by_source(built.both_splits("validation")):
        splits |= dict.fromkeys(names, embedded(source))

    def whole_network(found: PyTree) -> PyTree:
        """The backbones under linear layers that were learned without them."""
        params = dict(variables["params"]["experts"])
        for name in built.names:
            params[name] = {**params[name], **found["params"]["experts"][name]}
        return {**variables, "params": {"experts": params, "teachers": found["params"]["teachers"]}}

    own = {n: {"params": {f"heads_{n}": variables["params"]["experts"][n][f"heads_{n}"]}} for n in built.names}
    start = from_experts(own)
    start["params"]["teachers"] = variables["params"]["teachers"]
    return stages.train(
        directory,
        seed=built.seed,
        model=heads.model,
        tasks=built.both(),
        objective=built.objective(run, start["params"], heads),
        balance=setup.build_balance(built.settings(run)["balance"]),
        source=batches,
        encoder=EmbeddedEncoder(built.tasks_of(run), widths),
        schedule=schedule,
        judge=Judge(
            EmbeddedEncoder(built.both(), widths),
            splits,
            view=None,
            tasks=built.names,
            parts={name: lambda found, name=name: expert_variables(whole_network(found), name) for name in built.names},
            whole=whole_network,
        ),
        variables=start,
        stop=stop,
        report=report,
    )


def measure_joint(built: JointBuilt, run: str, directory: str) -> dict:
    """Every student by itself where it was best, teachers where the students were best together: {split: scores}."""
    facts = {}
    variables = jax.device_put(load_joint(built, directory))
    taught = {name: task for name, task in built.both().items() if name not in built.names}
    for split in built.config["measured_on"]:
        rows = {}
        for name in built.names:
            model, encoder = built.judged((name,), "expert")
            own = jax.device_put(load_student(built, os.path.join(directory, "students", name), name))
            rows |= measuring.measure(own, model, {name: built.tasks[name]}, encoder, built.splits(split, (name,)))
        model, encoder = built.judged(built.names, run)
        rows |= measuring.measure(variables, model, taught, encoder, built.both_splits(split), view=None)
        if devices.is_writer():
            measuring.save_rows(os.path.join(directory, f"rows-{split}.npz"), rows)
        facts[split] = summarize(built.both(), rows)
    return facts
