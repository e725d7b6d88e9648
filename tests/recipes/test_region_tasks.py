"""Sets of boxes with masks and of attributes teach the tasks they are for, and no others."""

import pytest

from must.core.types import UserError
from tests.experiments.region_tasks import config_of, make_set
from tests.support.configs import changed, check


def test_sets_of_masks_and_attributes_are_taken_for_their_tasks(tmp_path):
    make_set(tmp_path)
    config = config_of(tmp_path)
    check(config)
    wrong = changed(config, tasks__attributes__kind="two_stage", tasks__attributes__strides=(8, 16))
    with pytest.raises(UserError, match="config.tasks.attributes: attributes-train has labels of another kind of task"):
        check(wrong)
    with pytest.raises(UserError, match="config.tasks.boxes: boxes-train has labels of another kind of task"):
        check({**config, "tasks": {**config["tasks"], "boxes": {"kind": "multi_label"}}})
