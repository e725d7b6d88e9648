"""Whether a detector learns a class without forgetting the others when truth and pseudo labels are merged per class.

    python -m tests.experiments.adding_a_class

A teacher of procedural scenes knows all shapes but one. On other scenes only the new shape is annotated; the teacher
labels them and a pool. Two students start from the teacher's weights: `merged` keeps the teacher's boxes of the old
shapes beside the truth (`must.data.merge.completed`), `truth alone` drops them on annotated scenes. AP per class on the
test scenes; differences with 95% intervals over seeds. Twelve minutes on one core; "--steps=20 --seeds=1" tries it in
two minutes.
"""

import argparse
import os
import tempfile

import numpy as np

from must.core.types import Policy
from must.data.combine import Cached
from must.data.merge import Concat, Overlay
from must.data.splits import Without
from must.evaluate.statistics import paired_t_interval
from must.experiment import build, measure
from must.experiment.external import external_teacher
from must.experiment.sections import changed
from must.experiment.settings import Init
from must.experiment.training import train_tasks
from must.pseudo_label.write import label_images
from must.readers.records import Records
from must.scenes.still import CLASSES, Scenes
from tests.support.configs import config_of, settings_of

TASK, SHAPES = "detection", CLASSES["detection"]
NEW, OLD = SHAPES[-1], SHAPES[:-1]
COUNTS = {"teacher": 512, "annotated": 512, "pool": 256}
ARMS = ("merged", "truth alone")
LEARNING_RATE = 1e-3  # of the students, a quarter of the teacher's


def scenes(split, mapping, classes, start=0, count=512, seed=0):
    """The section of scenes whose shapes are mapped to classes; shapes that are "unknown" count as background."""
    inner = {"kind": "scenes", "split": split, "count": count, "start": start, "seed": seed, "labels": (TASK,)}
    return {"kind": "remapped", "source": inner, "task": TASK, "class_map": mapping, "classes": classes}


def settings(seed, steps, known, mapping, classes):
    """The quickstart's detector on scenes annotated as `mapping` says."""
    held_out = {name: name for name in known} | {name: "unknown" for name in SHAPES if name not in known}
    start, count = (0, COUNTS["teacher"]) if known == OLD else (10_000, COUNTS["annotated"])
    config = config_of("configs/quickstart.py", "sanity", root="none")
    base = config_of("configs/quickstart.py")
    sets = {
        "train": scenes("train", mapping, classes, start, count, seed),
        "validation": scenes("validation", held_out, known, count=64),
        "test": scenes("test", held_out, known, count=512),
    }
    config |= {"tasks": {TASK: base["tasks"][TASK]}, "sets": {TASK: sets}, "train_sets": {TASK: TASK}, "pool": {}}
    config |= {"policies": {TASK: {"positive": 0.4, "negative": 0.1}}, "eval_splits": ("test",), "model": base["model"]}
    run = {**base["teacher"], "steps": steps, "select": "last", "evaluate_every": 0}
    config |= {"teacher": run, "student": run, "baselines": (), "arms": {}, "seeds": (seed,)}
    return settings_of(
        {key: config[key] for key in config if key not in ("supervised", "scratch", "quality", "gallery")}
    )


def by_class(directory, task, rows):
    """{class: AP} from the rows of the test scenes."""
    out = {}
    for i, name in enumerate(task.classes):
        alone = np.zeros_like(rows["positives"])
        alone[:, i] = rows["positives"][:, i]
        out[name] = 100 * task.summarize({**rows, "positives": alone})["AP"]
    return out


def trained(directory, setting, seed, source, policy, start=""):
    """{class: AP} of a detector trained on a source, from the weights of another one."""
    quiet = lambda *args: None  # noqa: E731
    run = setting.teacher
    if start:  # the layer that tells classes grows by one; the filters of the old ones stay
        run = changed(run, {"init": vars(Init(start)), "optimizer": {"learning_rate": LEARNING_RATE}}, "config")
    train_tasks(setting, seed, (TASK,), run, source, {TASK: policy}, directory=directory, report=quiet)
    rows = measure.load_rows(os.path.join(directory, "rows-test.npz"))[TASK]
    return by_class(directory, build.tasks_of(setting)[TASK], rows)


def one_seed(top, seed, steps):
    """{arm: {class: AP}}, with the teacher."""
    before = settings(seed, steps, OLD, {name: name for name in OLD} | {NEW: "unknown"}, OLD)
    at = os.path.join(top, "teacher")
    found = {"teacher": trained(at, before, seed, build.split(before, TASK, "train"), Policy())}
    after = settings(seed, steps, SHAPES, {NEW: NEW, "*": "unknown"}, SHAPES)
    task, truth = build.tasks_of(after)[TASK], build.split(after, TASK, "train")
    pool = Scenes(COUNTS["pool"], seed=seed, split="train", start=20_000, labels=())
    teacher = external_teacher("old", {"run": at}, {TASK: task}, after.image.size)
    path = os.path.join(top, "records", "all", "1.0.0")
    label_images(path, "all", Concat([truth, pool]), [teacher], shards=1)
    records = Records(path)
    sources = {"merged": Overlay(records, [truth]), "truth alone": Concat([Without(records, [truth]), truth])}
    for arm, source in sources.items():
        found[arm] = trained(
            os.path.join(top, arm.replace(" ", "-")), after, seed, Cached(source), Policy(0.4, 0.1), at
        )
    return found


def main(seeds: int, first: int, steps: int) -> None:
    """Prints the tables; ends with an error where merging does not do what it is for."""
    rows = []
    for seed in range(first, first + seeds):
        with tempfile.TemporaryDirectory() as top:
            rows.append(one_seed(top, seed, steps))
        print(
            f"seed {seed}:",
            {arm: {c: round(v, 1) for c, v in one.items()} for arm, one in rows[-1].items()},
            flush=True,
        )
    print(f"AP in %, mean over {seeds} seeds with {steps} steps of the students")
    for arm in ("teacher", *ARMS):
        print(f"  {arm:16}", *(f"{c} {np.mean([row[arm].get(c, np.nan) for row in rows]):5.1f}  " for c in SHAPES))
    old = {arm: [np.mean([row[arm][c] for c in OLD]) for row in rows] for arm in ("teacher", *ARMS)}
    new = {arm: [row[arm][NEW] for row in rows] for arm in ARMS}
    pairs = {f"{arm} - teacher, old classes": np.subtract(old[arm], old["teacher"]) for arm in ARMS}
    pairs["merged - truth alone, old classes"] = np.subtract(old["merged"], old["truth alone"])
    pairs[f"merged - truth alone, {NEW}"] = np.subtract(new["merged"], new["truth alone"])
    for what, differences in pairs.items():
        print("  {:40} {:+.1f} [{:+.1f}, {:+.1f}]".format(what, *paired_t_interval(list(differences))))
    high = paired_t_interval(list(np.subtract(old["merged"], old["teacher"])))[2]
    if seeds > 1 and (high < 0 or np.mean(old["merged"]) <= np.mean(old["truth alone"]) or np.mean(new["merged"]) < 5):
        raise SystemExit("not as claimed: old classes are forgotten, or the new one is not learned")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="seed")
    parser.add_argument("--steps", type=int, default=600)
    main(**vars(parser.parse_args()))
