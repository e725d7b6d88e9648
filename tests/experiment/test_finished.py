"""What a finished workdir is asked for: files, predictions and scores that are those of its student."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import must
from must.core.types import UserError
from must.experiment import finished as requests
from must.experiment.finished import Request, answer
from must.experiment.run import members
from must.export.labels import ABOUT
from must.recipes.start import start
from must.recipes.table import recipe_of
from tests.support.configs import config_of
from tests.support.finished import finished

ROOT = Path(__file__).parents[2]
SIZES = {"a.png": (40, 60), "sub/b.jpg": (64, 64), "sub/deep/c.png": (150, 90)}
SIZES |= {"same.png": (30, 30), "same.jpg": (20, 50)}  # in one folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    top = tmp_path_factory.mktemp("finished") / "runs" / "quickstart"
    finished(str(top))
    return top


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of mixed sizes in sub-folders, one broken, and a file that is none."""
    top = tmp_path_factory.mktemp("images") / "photos"
    rng = np.random.default_rng(0)
    for name, size in SIZES.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(top / name)
    (top / "broken.jpg").write_bytes((top / "sub" / "b.jpg").read_bytes()[:300])
    (top / "notes.txt").write_text("not a picture")
    return top


def ask(workdir, stage, **request):
    config = json.loads((workdir / "config.json").read_text())
    answer(recipe_of(config), str(workdir), stage, Request(**request))


def test_a_folder_of_mixed_sizes_is_predicted_by_every_head(workdir, folder, capsys):
    ask(workdir, "predict", images=str(folder), options="{'batch_size': 4}")
    output = workdir / "predictions" / "photos"
    about = json.loads((output / "about.json").read_text())
    assert about["counts"] == {"predicted": 5, "classification": 5, "depth": 5, "batch_size": 4}
    (reject,) = json.loads((output / "rejects.json").read_text())["rejects"]
    assert reject[0] == "photos/broken" and "broken.jpg" in reject[1]
    with open(output / "labels" / "classification" / "classes.csv") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert set(rows) == {f"photos/{name}" for name in SIZES if "same" not in name} | {
        "photos/same.png.png", "photos/same.jpg.jpg"
    }  # fmt: skip
    # The files hold what the library predicts.
    names = ["a.png", "sub/b.jpg", "sub/deep/c.png"]
    predicted = must.load(workdir).predict([folder / name for name in names])
    classes = must.load(workdir).tasks["classification"].classes
    for name, labels in zip(names, predicted, strict=True):
        row = rows[f"photos/{name}"]
        assert row["class"] == classes[labels["classification"]["ids"][0]]
        depth = np.asarray(Image.open((output / "labels" / "depth" / "depth" / "photos" / name).with_suffix(".png")))
        np.testing.assert_allclose(depth, labels["depth"]["depth"], atol=2)
        sheet = Image.open((output / "pictures" / "photos" / name).with_suffix(".jpg"))
        assert sheet.width > 3 * 200
    assert not (output / "unfinished").exists()
    capsys.readouterr()
    before = (output / "about.json").stat().st_mtime_ns
    ask(workdir, "predict", images=str(folder), options="{'batch_size': 2}")
    assert "predicted already" in capsys.readouterr().out and (output / "about.json").stat().st_mtime_ns == before


def test_a_changed_folder_is_predicted_anew_and_a_killed_run_goes_on(workdir, folder, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    shutil.copytree(folder, photos)
    output = str(tmp_path / "out")
    ask(workdir, "predict", images=str(photos), output=output, options="{'batch_size': 4, 'pictures': False}")
    (photos / "broken.jpg").unlink()
    from must.experiment import predicting

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(predicting, "export_labels", killed)
        with pytest.raises(KeyboardInterrupt):
            ask(workdir, "predict", images=str(photos), output=output)
    with monkeypatch.context() as patched:  # the label pass is complete: no network runs again
        patched.setattr(predicting, "fastest_batch", killed)
        ask(workdir, "predict", images=str(photos), output=output)
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    rejects = json.loads((tmp_path / "out" / "rejects.json").read_text())
    assert about["counts"]["predicted"] == 5 and not rejects["count"]
    assert set(json.loads((tmp_path / "out" / "labels" / ABOUT).read_text())["tasks"]) == {"classification", "depth"}


def test_one_file_and_tiles(workdir, folder, tmp_path):
    ask(workdir, "predict", images=str(folder / "sub" / "deep" / "c.png"), output=str(tmp_path / "c"),
        options="{'tiles': (2, 1), 'batch_size': 4}")  # fmt: skip
    (labels,) = must.load(workdir).predict([folder / "sub" / "deep" / "c.png"], tiles=(2, 1))
    depth = np.asarray(Image.open(tmp_path / "c" / "labels" / "depth" / "depth" / "deep" / "c.png"))
    np.testing.assert_allclose(depth, labels["depth"]["depth"], atol=2)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"images": "{empty}"}, "holds no pictures and no videos"),
        ({"images": "{bad}"}, "none of 1 pictures can be read"),
        ({"images": "{photos}", "output": "{bad}"}, "holds other files and no predictions"),
        ({"images": "{photos}", "options": "{'networks': ['teachers/depth']}"}, "network.json: does not exist"),
        ({"images": "{photos}", "options": "{'tiles': (0, 2)}"}, "--options.tiles"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(workdir, folder, tmp_path, request_, message):
    for name in ("empty", "bad"):
        (tmp_path / name).mkdir()
    (tmp_path / "bad" / "a.jpg").write_text("no picture")
    places = {"{empty}": tmp_path / "empty", "{bad}": tmp_path / "bad", "{photos}": folder}
    with pytest.raises(UserError, match=re.escape(message)):
        ask(workdir, "predict", **{key: str(places.get(value, value)) for key, value in request_.items()})


def test_a_split_scores_what_training_measured(workdir, capsys):
    ask(workdir, "evaluate", options="{'split': 'test'}")
    found = json.loads((workdir / "evaluate" / "test.json").read_text())
    known = json.loads((workdir / "student" / "done.json").read_text())["test"]
    assert found["schema"] == "must.results/2"
    for task, metric in (("classification", "top1"), ("depth", "abs_rel")):
        assert found["columns"]["student"]["scores"]["test"][task] == pytest.approx([known[task][metric]], abs=1e-6)
        low, high = found["metrics"]["student"][task][metric]["ci95"]
        assert low <= known[task][metric] <= high and found["metrics"]["student"][task]["examples"] == 16
    assert "classification" in capsys.readouterr().out


def test_any_set_is_evaluated_with_its_classes_mapped(workdir, tmp_path):
    """Pictures in folders of the student's own predictions, whose classes have other names there."""
    student = must.load(workdir)
    classes = student.tasks["classification"].classes
    rng = np.random.default_rng(3)
    pictures = [rng.integers(0, 256, (48, 48, 3), np.uint8) for _ in range(6)]
    for number, (picture, labels) in enumerate(zip(pictures, student.predict(pictures), strict=True)):
        name = "thing " + classes[labels["classification"]["ids"][0]]
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "set" / name / f"{number}.png")
    asked = {"set": {"kind": "image_folder", "root": str(tmp_path / "set"), "name": "things", "images": ""}}
    with pytest.raises(UserError, match="thing "):
        ask(workdir, "evaluate", options=json.dumps(asked))
    asked["classes"] = {f"thing {name}": name for name in classes}
    used = {path.name for path in (tmp_path / "set").iterdir()}
    asked["classes"] = {theirs: ours for theirs, ours in asked["classes"].items() if theirs in used}
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    ask(workdir, "evaluate", options=str(tmp_path / "asked.json"))
    found = json.loads((workdir / "evaluate" / "things.json").read_text())
    assert found["columns"]["student"]["scores"]["set"] == {"classification": [100.0]}


@pytest.fixture(scope="module")
def exported(workdir):
    ask(workdir, "export", options="{'license': 'CC0-1.0'}")
    return workdir / "export" / "student"


def test_the_exported_student_is_the_live_one(workdir, folder, exported):
    directory = exported
    card = json.loads((directory / "card.json").read_text())
    assert card["license"] == "CC0-1.0" and "ci95" in card["scores"]["test"]["classification"]["top1"]
    assert "to be filled in" in card["data_licenses"]["depth"] and card["teachers"]["depth"].startswith("trained on")
    assert "| `depth` | B x " in (directory / "card.md").read_text()
    paths = [folder / name for name in SIZES]
    live, files = must.load(workdir).predict(paths), must.load_exported(directory).predict(paths)
    for one, other in zip(live, files, strict=True):
        for task, label in one.items():
            for field, value in label.items():
                np.testing.assert_allclose(np.float64(value), np.float64(other[task][field]), rtol=1e-3, atol=1e-5)
    with pytest.raises(UserError, match="use must.load_exported"):
        must.load(directory)


def test_the_page_runs_as_it_stands(workdir, folder, exported, monkeypatch):
    """docs/export.md, in the parent of a workdir runs/quickstart and a folder photos."""
    text = (ROOT / "docs" / "export.md").read_text()
    top = workdir.parents[1]
    if not (top / "photos").exists():
        shutil.copytree(folder, top / "photos")
    monkeypatch.chdir(top)
    codes = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(codes) == 3
    for code in codes:
        exec(compile(code, "export.md", "exec"), {})


def test_a_configuration_beside_the_workdir_is_its_own_or_refused(workdir, folder):
    config = json.loads((workdir / "config.json").read_text())
    recipe = recipe_of(config)
    other = {**config, "student": {**config["student"], "steps": 7}}
    with pytest.raises(UserError, match="another configuration: config.student.steps"):
        answer(recipe, str(workdir), "predict", Request(str(folder)), other)
    with pytest.raises(UserError, match="is no workdir of a run"):
        start(None, None, str(folder), stage="predict", request=Request(str(folder)))


def test_every_recipe_names_its_students():
    expected = {
        ("configs/quickstart.py", "sanity"): {"student": "student"},
        ("configs/weighted_distillation.py", "sanity"): {"student": "labels-64/student"},
        ("configs/jedi.py", "sanity"): None,
        ("configs/multas.py", "sanity"): None,
    }
    for (path, variant), students in expected.items():
        config = config_of(path, variant)
        recipe = recipe_of(config)
        found = recipe.students(members(recipe, config))
        assert found == students if students else len(found) >= 1
        assert all(at.startswith(("joint/jedi/students/", "grid/", "student", "labels-")) for at in found.values())


def test_a_recipe_of_many_networks_asks_which(tmp_path):
    config = config_of("configs/transfer.py", "sanity")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="'transfer' has many networks and no student"):
        must.load(tmp_path)


def test_options_are_json_or_python_or_a_file(tmp_path):
    (tmp_path / "a.json").write_text('{"tiles": [2, 2]}')
    for text in ('{"tiles": [2, 2]}', "{'tiles': [2, 2]}", str(tmp_path / "a.json")):
        assert requests.read_options(text) == {"tiles": [2, 2]}
    for text in ("{tiles}", "nowhere.json"):
        with pytest.raises(UserError, match="--options"):
            requests.read_options(text)
