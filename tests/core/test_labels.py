"""The contracts of labels: what breaks one is named before a record is written, and when one is read."""

import numpy as np
import pytest

from must.core.labels import broken_contract
from must.core.types import UserError
from must.pseudo_label import infer
from must.pseudo_label.write import label_images
from must.readers.records import Records
from tests.support import contracts


@pytest.mark.parametrize("kind", contracts.TASKS)
def test_whole_labels_pass(kind, tmp_path):
    label = contracts.whole()[kind]
    assert broken_contract(label, len(contracts.CLASSES)) == ""
    contracts.store(tmp_path / "1.0.0", kind, label)
    records = Records(tmp_path / "1.0.0")
    for field, value in label.items():
        np.testing.assert_array_equal(records.labels(3)[kind][field], value)


@pytest.mark.parametrize("kind, field, value, says", contracts.BROKEN)
def test_broken_labels_are_named_at_write_and_at_read(kind, field, value, says, tmp_path, monkeypatch):
    label = {**contracts.whole()[kind], field: value}
    assert says in broken_contract(label, len(contracts.CLASSES))
    with pytest.raises(UserError, match=r"record gray/0$") as refused:
        contracts.store(tmp_path / "1.0.0", kind, label)
    assert says in str(refused.value) and not list((tmp_path / "1.0.0").glob("*array_record*"))
    monkeypatch.setattr(infer, "check_record", lambda *_: "")  # as an earlier version wrote it
    contracts.store(tmp_path / "2.0.0", kind, label)
    with pytest.raises(UserError, match=r"record gray/2 is damaged") as refused:
        Records(tmp_path / "2.0.0").labels(2)
    assert says in str(refused.value)


@pytest.mark.parametrize("kind, say, says", contracts.SAYINGS)
def test_teachers_made_by_hand_are_refused_before_anything_is_written(kind, say, says, tmp_path):
    with pytest.raises(UserError, match="gray/[03]") as refused:
        label_images(tmp_path / "1.0.0", "r", contracts.Gray(), [contracts.teacher(kind, say)], shards=1)
    assert says in str(refused.value) and not list((tmp_path / "1.0.0").glob("*array_record*"))
