"""What cannot be read is found beforehand, listed with its reason, and left out up to the bound."""

import dataclasses
import json

import pytest

from must.core.notices import Notice
from must.core.types import UserError
from must.data import rejects
from must.data.combine import Cached, Routed
from must.data.merge import Concat
from must.data.rejects import Reject, check_source
from must.data.sources import source
from must.experiment import build, reading
from must.tasks.detection import Detection
from tests.support import clip_sets
from tests.support import folder_sets as sets


def folders(root, count=20, broken=()):
    for name in ("cat", "dog"):
        for n in range(count // 2):
            file = sets.picture(root / "train" / name / f"{n}.jpg", (64, 64), seed=n)
            if f"{name}/{n}" in broken:
                file.write_bytes(file.read_bytes()[:500])
    return {"kind": "image_folder", "root": str(root), "split": "train", "name": "pets"}


def test_broken_pictures_and_labels_are_found_with_their_reasons(tmp_path):
    seen = []
    data = source(**folders(tmp_path, broken=("cat/3", "dog/9")))
    found = check_source(Cached(data), progress=lambda *at: seen.append(at))
    assert [reject.id for reject in found] == ["pets/cat/3", "pets/dog/9"] and seen[-1] == (20, 20)
    assert all("broken picture" in reject.reason and "3.jpg" in found[0].reason for reject in found)
    section = sets.coco(tmp_path / "boxes", lambda content: content["images"][0].update(width=99, height=98))
    assert [reject.id for reject in check_source(source(**section))] == ["boxes/a"]
    crowd = {"detection": Detection(("cat", "dog"), max_boxes=1)}
    assert check_source(source(**sets.coco(tmp_path / "more")), crowd) == []


class Routes(Routed):
    """The examples of several sources."""

    def __init__(self, *sources):
        self._places = [(one, index) for one in sources for index in range(len(one))]
        self.name, self.classes, self.fingerprint = "routes", {}, ""
        self.ids = [f"routes/{place}" for place in range(len(self._places))]

    def _route(self, index):
        return self._places[index]


def test_what_is_generated_is_not_read(tmp_path):
    assert not rejects.reads_files(source("scenes", count=3, size=16))
    assert not rejects.reads_files(Cached(source("moving_scenes", count=2, size=16)))
    assert rejects.reads_files(Cached(Concat([source(**folders(tmp_path))])))
    drawn, read = source("moving_scenes", count=3, size=16), source(**clip_sets.frame_folders(tmp_path / "more"))
    assert rejects.reads_files(Cached(Routes(drawn, read))) and not rejects.reads_files(Cached(Routes(drawn, drawn)))
    assert rejects.reads_files(Cached(source(**clip_sets.frame_folders(tmp_path / "clips"))))


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `without_broken` looks at."""

    sets: dict
    max_rejects: float


def settings(section, max_rejects):
    return Settings({"mine": {"train": section}}, max_rejects)


def test_a_run_leaves_out_what_the_bound_allows_and_reads_a_set_once(tmp_path, monkeypatch):
    section = folders(tmp_path, broken=("cat/3",))
    workdir = str(tmp_path)
    with pytest.raises(UserError, match=r"1 of 20 .*max_rejects allows 0; pets/cat/3: .*3.jpg: broken.*=0.05 would"):
        reading.without_broken(settings(section, 0.0), workdir)
    (entry,) = json.loads((tmp_path / reading.FILE).read_text()).values()
    assert entry["count"] == 20 and [id for id, _ in entry["rejects"]] == ["pets/cat/3"]
    real = rejects.check_source
    monkeypatch.setattr(rejects, "check_source", None)  # nothing is read again
    with pytest.warns(Notice, match="pets: 1 of 20 examples cannot be read and are left out"):
        left = reading.without_broken(settings(section, 0.05), workdir)
    data = source(**left.sets["mine"]["train"])
    assert len(data) == 19 and "pets/cat/3" not in data.ids and data.classes == {"classification": ("cat", "dog")}
    monkeypatch.setattr(rejects, "check_source", real)
    assert check_source(data) == []
    assert reading.without_broken(settings(section, -1.0), workdir).sets["mine"]["train"] == section
    sets.picture(tmp_path / "train" / "cat" / "3.jpg", (64, 64))
    build._source.cache_clear()  # another process
    assert reading.without_broken(settings(section, 0.0), workdir).sets["mine"]["train"] == section


def test_the_bound_rounds_down_and_the_message_says_what_would_do():
    found = [Reject(f"a/{n}", "broken") for n in range(3)]
    assert rejects.bound(100, 0.29) == 29 and rejects.bound(999, 0.001) == 0
    rejects.refuse_beyond("list", found, 100, 3, option="x")
    with pytest.raises(UserError, match=r"list: 3 of 100 images .* x allows 2; a/2: broken; x=0.03 would allow 3"):
        rejects.refuse_beyond("list", found, 100, 2, option="x")
