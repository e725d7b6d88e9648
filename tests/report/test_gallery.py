"""The files of the gallery, read as the browser reads them."""

import base64
import json
import re
import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from must import Classification, Detection, Policy
from must.core import labels as forms
from must.core.types import Example, UserError
from must.report import gallery, sprites
from must.report.gallery import write_gallery
from must.tasks.label_states import states
from tests.support.toy_tasks import EdgeMap

NASTY = ("</script><script>alert(1)</script>", "\"quoted\" & 'single' {{data}} \\u2028", "ünï\u2028çødé 🐈", "x" * 400)
TITLE = NASTY[0] + NASTY[1]
TASKS = {"kind": Classification(NASTY), "things": Detection(NASTY, max_boxes=6), "edges": EdgeMap()}
POLICIES = {"kind": Policy(0.6, 0.2), "things": Policy(np.float32([0.5, 0.6, 0.7, 0.8]), 0.3), "edges": Policy()}
UNREADABLE, WRONG, BARE, COUNT = 5, 7, 9, 30


class Pile:
    """Smooth random pictures of two shapes; some lack tasks, one has a wrong label, one cannot be read."""

    name, classes = "pile", {}

    def __init__(self, count=COUNT, reads=None):
        self.ids = [f"pile/{NASTY[i % 4]}/{i}" for i in range(count)]
        self.fingerprint, self.reads = f"pile{count}", [] if reads is None else reads

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        self.reads.append(index)
        if index == UNREADABLE:
            raise UserError("pile/5: </script> broken")
        rng = np.random.default_rng(index)
        size = (45, 60) if index % 2 else (70, 40)
        image = np.asarray(Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8)).resize(size[::-1], Image.BICUBIC))
        scores = rng.random(4).astype(np.float16)
        corner = rng.uniform(0, 20, (4, 2))
        things = forms.detection(np.concatenate([corner, corner + 15], 1), rng.integers(0, 4, 4), np.zeros(4, bool))
        probs = rng.dirichlet(np.ones(4)).astype(np.float16)
        labels = {
            "kind": {"ids": np.arange(4, dtype=np.uint16), "probs": probs, "rest": np.float16(0)},
            "things": things | {"scores": scores},
            "edges": {"edges": rng.integers(0, 255, size).astype(np.uint8)},
        }
        if index == WRONG:
            labels["things"]["boxes"][0] = (30, 30, 10, 10)
        return Example(self.ids[index], image, {} if index == BARE else labels)


class Truth:
    """The first class, for all but the last images."""

    name, classes, fingerprint = "pile", {}, "truth"
    ids = Pile().ids[:-3]

    def labels(self, index):
        return {"kind": forms.classification(0)}


def contents(directory):
    text = Path(directory, "index.html").read_text(encoding="utf-8")
    return text, json.loads(zlib.decompress(base64.b64decode(re.search(r'id="data">([^<]*)<', text)[1])))


def chunk_of(directory, number):
    line = (Path(sprites.folder(directory, number)) / f"{number:06d}.js").read_text()
    return json.loads(re.fullmatch(rf"chunk\({number},(.*)\);\n", line)[1])


def files(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in Path(directory).rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = str(tmp_path_factory.mktemp("gallery") / "all")
    truth = {"kind": Truth()}
    write_gallery(directory, Pile(), TASKS, POLICIES, title=TITLE, truth=truth, per_page=7, threads=2)
    return directory, *contents(directory)


def places(data):
    """Where the pictures of each image are: position in the order of falling uncertainty."""
    order = sorted(range(len(data["ids"])), key=lambda i: -data["uncertainty"][i])
    return {image: at for at, image in enumerate(order)}


def test_every_record_appears_once_with_the_pictures_that_its_tasks_draw(made):
    directory, _, data = made
    assert data["ids"] == Pile().ids and data["unreadable"] == [UNREADABLE]
    assert sum(len(chunk_of(directory, k)) for k in range(len(data["sheets"]))) == COUNT
    names, source = ["", *TASKS], Pile()
    checked = 0
    for image, at in places(data).items():
        chunk, row = divmod(at, sprites.PER_SHEET)
        described = chunk_of(directory, chunk)[row]
        if image == UNREADABLE:
            assert described == {"problems": {"": "pile/5: </script> broken"}}
            continue
        shown = sprites.read(source, image, TASKS, POLICIES)
        views = sprites.views(shown, TASKS, POLICIES)
        assert list(described["problems"]) == (["things"] if image == WRONG else [])
        assert set(views) == ({"", *TASKS} - ({"things"} if image == WRONG else set()) if image != BARE else {""})
        place = Path(sprites.folder(directory, chunk))
        large = np.asarray(Image.open(place / f"{chunk:06d}-r{row:02d}.jpg").convert("RGB")).astype(int)
        captions = np.asarray(Image.open(place / f"{chunk:06d}-c.webp").convert("RGB"))
        width, height = described["size"]
        for v, name in enumerate(names):
            if name not in views:
                assert described["captions"][0][v] == -1
                continue
            view = views[name]
            assert view.picture.shape[:2] == (height, width)
            if not described["plain"][0][v] or v == 0:
                assert abs(large[:height, v * width : (v + 1) * width] - view.picture).mean() < 12
            below = captions[described["top"] : described["top"] + len(view.caption), v * width : (v + 1) * width]
            np.testing.assert_array_equal(below, view.caption)
            if not data["sheets"][chunk] >> v & 1:
                assert name == "kind" and described["plain"][0][v]
                continue
            sheet = np.asarray(Image.open(place / f"{chunk:06d}-{v}.webp").convert("RGBA")).astype(int)
            x, y = row % sprites.ACROSS * sprites.CELL, row // sprites.ACROSS * sprites.CELL
            cell, expected = (
                sheet[y : y + sprites.CELL, x : x + sprites.CELL],
                np.asarray(sprites.thumbnail(view.picture)),
            )
            np.testing.assert_array_equal(cell[..., 3], expected[..., 3])
            assert abs(cell - expected)[expected[..., 3] > 0].mean() < 14
            checked += 1
    assert checked > 2 * COUNT


def test_numbers_agree_with_the_states(made):
    _, _, data = made
    task = data["tasks"][1]
    assert task["classes"] == list(NASTY)
    ends = np.cumsum([0, *task["counts"]])
    for image in range(COUNT):
        described = task["predicted"][ends[image] : ends[image + 1]]
        if image in (UNREADABLE, WRONG, BARE):
            assert described == [] and task["uncertainty"][image] == -1
            continue
        label = Pile()[image].labels["things"]
        state = states(POLICIES["things"], label["scores"].astype(np.float32), label["classes"])
        ignored = ~state.positive & ~state.negative
        expected = {2 * c for c in label["classes"][state.positive]} | {2 * c + 1 for c in label["classes"][ignored]}
        assert described == sorted(expected)
        assert abs(task["uncertainty"][image] / 255 - ignored.mean()) < 0.013
    assert data["uncertainty"][BARE] == data["uncertainty"][UNREADABLE] == 0
    assert set(data["tasks"][2]["uncertainty"]) == {0, -1} and not data["tasks"][2]["predicted"], "edges have no scores"


def test_errors_are_ranked(made):
    _, _, data = made
    right = {i for i in range(COUNT) if i not in (UNREADABLE, BARE) and Pile()[i].labels["kind"]["probs"].argmax() == 0}
    for image, (error, score) in enumerate(zip(data["error"], data["tasks"][0]["scores"], strict=True)):
        if image >= COUNT - 3 or image in (UNREADABLE, BARE):
            assert score is None and error == 0
        else:
            assert score == (100.0 if image in right else 0.0)
            assert (error > 0) == (image not in right)


def test_nothing_from_records_becomes_markup(made):
    directory, text, _ = made
    assert text.count("<script") == text.count("</script") == 2 and "alert(1)" in text
    assert "<title>&lt;/script&gt;" in text
    assert text.count(re.search(r'id="data">([^<]*)<', text)[1]) == 1, (
        "a title that contains the placeholder of the data is not filled in"
    )
    assert "http:" not in text and "https:" not in text, "nothing is fetched"
    assert Path(directory, "index.html").stat().st_size < 60_000


@pytest.fixture
def node():
    if not shutil.which("node"):
        pytest.skip("needs node")
    return lambda *arguments: subprocess.run(["node", *arguments], capture_output=True, text=True, check=True).stdout


def test_the_browser_sorts_and_filters(made, node, tmp_path):
    """The page's own functions, without a page."""
    directory, text, data = made
    script = text.rpartition("<script>")[2].partition("</script>")[0].replace("\nstart();\n", "\n")
    ask = f"""
    class IntersectionObserver {{}}; const document = {{}}, window = {{}};
    {script}
    G = {json.dumps(data)}; prepare();
    const ask = (values) => {{ state = {{ ...DEFAULTS, ...values }}; select(); return shown; }};
    console.log(JSON.stringify([[...place], ask({{}}), ask({{ order: "record" }}), ask({{ order: "worst" }}),
      ask({{ task: "things", class: {json.dumps(NASTY[1])}, state: "ignored", order: "record" }}),
      ask({{ state: "lost" }}), ask({{ q: "/29" }}), ask({{ task: "things", state: "none", order: "record" }})]));
    """
    Path(tmp_path, "ask.js").write_text(ask, encoding="utf-8")
    place, uncertain, record, worst, ignored, lost, found, none = json.loads(node(str(tmp_path / "ask.js")))
    assert place == [places(data)[image] for image in range(COUNT)]
    assert uncertain == sorted(range(COUNT), key=lambda i: place[i]) and record == list(range(COUNT))
    assert worst == sorted(range(COUNT), key=lambda i: (-data["error"][i], i))
    things = data["tasks"][1]
    ends = np.cumsum([0, *things["counts"]])
    assert ignored == [i for i in range(COUNT) if 3 in things["predicted"][ends[i] : ends[i + 1]]] != []
    assert lost == [UNREADABLE] and found == [29] and none == [UNREADABLE, WRONG, BARE]
    node("--check", str(Path(sprites.folder(directory, 0), "000000.js")))


def test_a_killed_gallery_resumes_to_the_same_bytes(made, tmp_path):
    directory, _, _ = made
    again, reads = str(tmp_path / "again"), []

    def stop(done, total):
        if done > COUNT:
            raise KeyboardInterrupt

    arguments = {"title": TITLE, "truth": {"kind": Truth()}, "per_page": 7}
    with pytest.raises(KeyboardInterrupt):
        write_gallery(again, Pile(), TASKS, POLICIES, threads=1, progress=stop, **arguments)
    assert not Path(again).exists()
    steps = []
    write_gallery(
        again, Pile(reads=reads), TASKS, POLICIES, threads=1, progress=lambda *at: steps.append(at), **arguments
    )
    assert files(again) == files(directory)
    assert len(reads) < 2 * COUNT, "finished drawings are not repeated"
    assert steps[-1] == (2 * COUNT, 2 * COUNT)
    reads.clear()
    write_gallery(again, Pile(reads=reads), TASKS, POLICIES, **arguments)
    assert reads == [], "complete"


def test_one_record_another_policy_and_refusals(tmp_path):
    directory = str(tmp_path / "one")
    tasks = {"edges": TASKS["edges"], "things": TASKS["things"]}
    write_gallery(directory, Pile(1), tasks, POLICIES, title="one")
    _, before = contents(directory)
    write_gallery(directory, Pile(1), tasks, POLICIES | {"things": Policy(0.0, 0.0)}, title="one")
    _, after = contents(directory)
    assert before["ids"] == after["ids"] and len(before["ids"]) == 1
    assert before["tasks"][1]["shares"] != after["tasks"][1]["shares"] == [1.0, 0.0, 0.0]
    with pytest.raises(UserError, match="task 'things' has no policy"):
        write_gallery(directory, Pile(1), tasks, {"edges": Policy()}, title="one")
    with pytest.raises(UserError, match="no images"):
        write_gallery(directory, Pile(0), tasks, POLICIES, title="one")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all I have")
    with pytest.raises(UserError, match="not a gallery"):
        write_gallery(tmp_path / "mine", Pile(1), tasks, POLICIES, title="one")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all I have"


def test_the_package_ships_the_templates():
    listed = Path(gallery.__file__).parents[2] / "setup.cfg"
    data = re.search(r"package_data\]\n\* = (.*)", listed.read_text())[1]
    assert {"*.html", "*.css", "*.js"} <= set(data.split(", "))
