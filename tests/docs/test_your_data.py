"""The page "Your data", done as it says: folders, configuration, run, predictions; and every refusal that it shows."""

import copy
import importlib.util
import re
import textwrap
from pathlib import Path

import pytest

from must.core.types import UserError
from must.experiment import build
from must.experiment.run import members
from must.recipes.table import recipe_of
from tests.support.commands import run_code, run_command

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "your_data.md").read_text(encoding="utf-8")
MAKING, CONFIGURATION, SPLITTING, PREDICTING, *_ = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


PHOTOS = 32


def _run(folder, code):
    ended = run_code(code, folder)
    assert ended.code == 0, ended.lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The stranger's folders and the configuration."""
    folder = tmp_path_factory.mktemp("stranger")
    counts, photos = '("train", 0, 96), ("val", 500, 32), ("test", 700, 64)', "Scenes(128,"
    assert counts in MAKING and photos in MAKING  # fewer are measured and labeled here
    few = counts.replace("32", "8").replace("64", "16")
    _run(folder, MAKING.replace(counts, few).replace(photos, f"Scenes({PHOTOS},"))
    (folder / "my_data.py").write_text(CONFIGURATION, encoding="utf-8")
    return folder


def test_the_configuration_is_short():
    assert sum(bool(line.strip()) for line in CONFIGURATION.splitlines()) <= 40


def test_from_folders_to_predictions(folder):
    small = ["teacher.steps=3", "student.steps=3", "image.size=(32,32)", "workers=1"]
    small += ["model.backbone.stages=1", "model.backbone.width=4", "model.neck.strides=(4,)"]  # it is mostly traced
    small += [f"tasks.{task}.width=8" for task in ("detection", "segmentation", "depth")]
    small += ["tasks.detection.strides=(4,)", "tasks.detection.depth=1"]
    ended = run_command(["--config=my_data.py", "--workdir=runs/mine", *(f"--config.{key}" for key in small)], folder)
    assert ended.code == 0, ended.lines
    assert "student vs teacher" in ended.out and (folder / "runs" / "mine" / "report.html").exists()
    _run(folder, PREDICTING)
    assert (folder / "pages" / "index.html").exists()
    assert len(list((folder / "files").rglob("*.png"))) >= 2 * PHOTOS and list((folder / "files").rglob("coco.json"))


def _settings(*path, **arguments):
    """A change of a configuration: arguments of the sets' sections, or of the section at a path."""

    def change(config):
        section = config
        for key in path:
            section = section[key]
        for one in section.values() if path[0] == "sets" else [section]:
            (one["source"] if "annotations" in arguments or "images" in arguments else one).update(arguments)

    return change


WORDS = {"ball": "round thing", "can": "round thing", "crate": "box", "traffic cone": "unknown"}
LESS = {word: goal for word, goal in WORDS.items() if word != "can"}
MISTAKES = [
    _settings("sets", "masks", root="mine/mask"),
    _settings("sets", "boxes", images="images"),
    _settings("sets", "boxes", class_map=LESS),
    _settings("sets", "boxes", class_map={**LESS, "cans": "round thing"}),
    _settings("sets", "boxes", class_map={**WORDS, "can": "round"}),
    _settings("sets", "rooms", unit="m"),
    _settings("sets", "rooms", unit="millimeters"),
    _settings("sets", "masks", classes=("floor", "wall", "ceiling")),
    lambda config: config["sets"]["masks"].update(validation=config["sets"]["masks"]["train"]),
    lambda config: config["pool"]["photos"].update(root="mine/boxes/images/test"),
    _settings("train_sets", depth="masks"),
    _settings("student", stepz=3),
    _settings("sets", "rooms", depth="depth"),
]


def test_every_mistake_is_the_line_that_the_page_shows(folder, monkeypatch):
    monkeypatch.chdir(folder)
    spec = importlib.util.spec_from_file_location("my_data", folder / "my_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lines = re.findall(r"^\| [^|]+ \| `(.+)` \|$", PAGE.split("| the line |")[1].split("\n\n")[0], re.MULTILINE)
    for line, change in zip(lines, MISTAKES, strict=True):
        config = copy.deepcopy(module.get_config().to_dict())
        change(config)
        with pytest.raises(UserError) as refused:
            recipe = recipe_of(config)
            (member,) = members(recipe, config)
            recipe.check([member])
            for source in build.annotated_sets(member.settings):  # as they are read before anything is learned
                source[0]
        assert str(refused.value) == line.replace("64 of 64", "16 of 16")


def test_a_folder_without_splits_is_divided(folder, monkeypatch):
    monkeypatch.chdir(folder)
    code = SPLITTING.replace('"images", "masks": "ids"', '"images/train", "masks": "ids/train"')
    assert code != SPLITTING
    code = CONFIGURATION.replace(
        "    return complete(config)", textwrap.indent(code, "    ") + "    return complete(config)"
    )
    names: dict = {}
    exec(code.replace("    return complete", '    config.eval_splits = ("validation",)\n    return complete'), names)
    config = names["get_config"]().to_dict()
    for name in ("boxes", "rooms"):
        config["sets"][name].pop("test")
    (member,) = members(recipe_of(config), config)
    recipe_of(config).check([member])
    split = build.splits(member.settings, "validation")["segmentation"]
    assert len(split) == round(0.2 * 96) and len(build.set_split(member.settings, "masks", "train")) == 96 - len(split)
