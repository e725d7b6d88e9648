"""The list of examples that cannot be read, which runs of a workdir share."""

import dataclasses
import json

import pytest

from must.core.types import UserError
from must.experiment import build, reading
from tests.support import folder_sets as sets


@dataclasses.dataclass(frozen=True)
class Settings:
    sets: dict
    max_rejects: float
    oracle_truth: dict = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize(
    "damage", ["[]", "null", "{", '{"x": 3}', '{"KEY": {"name": "a"}}', '{"KEY": {"rejects": [1]}}']
)
def test_a_damaged_list_is_made_again(tmp_path, damage):
    section = sets.image_folder(tmp_path / "set")
    (tmp_path / "set" / "train" / "dog" / "b.jpg").write_bytes(b"no picture")
    key = build.source(section).fingerprint
    (tmp_path / reading.FILE).write_text(damage.replace("KEY", key))
    with pytest.raises(UserError, match="dog/b.*max_rejects=0.25 would allow 1"):
        reading.without_broken(Settings({"a": {"train": section}}, 0.0), str(tmp_path))
    (reject,) = json.loads((tmp_path / reading.FILE).read_text())[key]["rejects"]
    assert reject[0].endswith("dog/b")
    kept = reading.without_broken(Settings({"a": {"train": section}}, 0.25), str(tmp_path)).sets["a"]["train"]
    assert len(build.source(kept)) == 3


def test_the_truth_of_a_pool_is_read_as_annotated_sets_are(tmp_path):
    section = sets.image_folder(tmp_path / "set")
    (tmp_path / "set" / "train" / "dog" / "b.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match="dog/b.*max_rejects=0.25 would allow 1"):
        reading.without_broken(Settings({}, 0.0, {"a": section}), str(tmp_path))
    kept = reading.without_broken(Settings({}, 0.25, {"a": section}), str(tmp_path)).oracle_truth["a"]
    assert len(build.source(kept)) == 3
