"""A finished workdir in which nothing was trained: networks from random numbers, with the scores that they have."""

import json
import os

import jax
import numpy as np

from must.evaluate.evaluate import summarize
from must.experiment import build, measure, networks
from must.experiment.run import members
from must.experiment.sections import without_none
from must.recipes.table import recipe_of
from must.train.checkpoint import Checkpoints
from tests.support.tiny_config import get_config


def alive(variables, seed=1):
    """No variable has the value that it was initialized with, so that one that is lost or swapped shows."""
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [np.float32(leaf + 0.2 * rng.standard_normal(leaf.shape)) for leaf in leaves])


def finished(top, config=None) -> dict:
    """Makes the workdir of a `must` run below a folder; returns its configuration."""
    config = without_none((config or get_config()).to_dict())
    os.makedirs(top, exist_ok=True)
    with open(os.path.join(top, "config.json"), "w") as file:
        json.dump(config, file)
    recipe = recipe_of(config)
    settings = members(recipe, config)[0].settings
    tasks = build.tasks_of(settings)
    encoder = build.encoder(settings.image, tasks)
    for at in recipe.students(members(recipe, config)).values():
        directory = os.path.join(top, at)
        model = build.network(settings.model, tasks)
        variables = alive(model.init(jax.random.key(0), encoder.blank_inputs()["image"]))
        weights = Checkpoints(os.path.join(directory, "weights"))
        weights.save(1, variables)
        weights.close()
        networks.describe(directory, settings.model, tasks, settings.image)
        facts = {}
        for split in settings.eval_splits:
            rows = measure.measure(variables, model, tasks, encoder, build.splits(settings, split), batch_size=16)
            measure.save_rows(os.path.join(directory, f"rows-{split}.npz"), rows)
            facts[split] = summarize(tasks, rows)
        with open(os.path.join(directory, "done.json"), "w") as file:
            json.dump(facts, file)
    return config
