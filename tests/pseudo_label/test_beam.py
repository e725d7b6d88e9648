"""The shard function in any process, any order and twice at once, and in Apache Beam: the bytes of our own workers."""

import os
import pickle
import threading
import types
from pathlib import Path

import pytest

from must.core.types import UserError
from must.pseudo_label.beam import ShardFunction, label_with_beam
from tests.experiments.label_kills import tree
from tests.support.toy_labels import ToySource, label_toy, toy_teacher

SETTINGS = {"shards": 6, "batch_size": 4}
TWO = ("--runner=DirectRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2")


def toys():
    return ToySource(), [toy_teacher()]


class Noted:
    """Makes the toys, slowly enough for both workers to have a part, and notes which process did."""

    def __init__(self, path):
        self.path = str(path)

    def __call__(self):
        with open(self.path, "a") as file:
            file.write(f"{os.getpid()}\n")
        return ToySource(), [toy_teacher(seconds=0.1)]


def wrong():
    def edit(label):
        label["toy"] = label.pop("probs")

    return ToySource(), [toy_teacher(edit=edit)]


@pytest.fixture(scope="module")
def want(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ours") / "1.0.0"
    label_toy(directory)
    return tree(directory)


def test_shards_in_any_order_and_twice_at_once_have_the_bytes_of_a_worker(want, tmp_path):
    directory, errors = tmp_path / "1.0.0", []

    def label(shards):
        function = pickle.loads(pickle.dumps(ShardFunction(directory, "toy", toys, **SETTINGS)))
        try:
            assert [function(shard) for shard in shards] == list(shards)
        except BaseException as error:
            errors.append(error)

    crew = [threading.Thread(target=label, args=(shards,)) for shards in ((5, 0, 3, 1), (3, 4, 5, 2, 3))]
    for one in crew:
        one.start()
    for one in crew:
        one.join()
    assert not errors and not (directory / "dataset_info.json").exists()  # nobody reads it before all is checked
    used = ShardFunction(directory, "toy", toys, **SETTINGS)
    used(0)
    assert used.__getstate__()["_opened"] is None
    label_toy(directory)
    assert tree(directory) == want
    assert used(4) == ShardFunction(directory, "toy", toys, **SETTINGS)(4) == 4  # of a pass that is over


def test_what_cannot_work_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="worker: no argument of a label pass on Beam"):
        ShardFunction(tmp_path, "toy", toys, worker=(0, 2))
    ShardFunction(tmp_path / "a", "toy", toys, **SETTINGS)(1)
    with pytest.raises(UserError, match="belongs to another label pass, plan.shards is 6 there, 5 here"):
        ShardFunction(tmp_path / "a", "toy", toys, shards=5, batch_size=4)(1)
    monkeypatch.setitem(__import__("sys").modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install must\[beam\]"):
        label_with_beam(tmp_path / "b", "toy", toys)


def test_beam_writes_the_same_bytes_by_two_processes(want, tmp_path):
    pytest.importorskip("apache_beam")
    directory = tmp_path / "beam" / "1.0.0"
    ShardFunction(directory, "toy", toys, **SETTINGS)(2)  # of an interrupted call
    summary = label_with_beam(directory, "toy", Noted(tmp_path / "made"), pipeline=TWO, **SETTINGS)
    assert tree(directory) == want and summary.records == 41
    made = (tmp_path / "made").read_text().split()
    assert made[0] == str(os.getpid()) and len(set(made)) == 3
    assert label_with_beam(directory, "toy", toys, pipeline=TWO, **SETTINGS) == summary


def test_what_a_worker_of_beam_refuses_is_one_line(tmp_path):
    pytest.importorskip("apache_beam")
    with pytest.raises(UserError, match="^teacher toy teacher: .*probs"):
        label_with_beam(tmp_path / "1.0.0", "toy", wrong, pipeline=TWO, **SETTINGS)


def test_a_pipeline_that_is_canceled_says_so(tmp_path, monkeypatch):
    """Beam replaced by a pipeline that ends early."""
    ended = types.SimpleNamespace(wait_until_finish=lambda: "CANCELLED")

    class Pipeline:
        def __init__(self, options):
            self.run = lambda: ended

        def __or__(self, other):
            return self

    class Step:
        def __rrshift__(self, label):
            return self

        def with_output_types(self, kind):
            return self

    fake = types.ModuleType("apache_beam")
    fake.Pipeline, fake.Create, fake.Map, fake.Reshuffle = Pipeline, lambda shards: Step(), lambda f: Step(), Step
    options = types.ModuleType("apache_beam.options.pipeline_options")
    options.PipelineOptions = list
    for name, module in (("", fake), (".options", options), (".options.pipeline_options", options)):
        monkeypatch.setitem(__import__("sys").modules, f"apache_beam{name}", module)
    with pytest.raises(UserError, match="the pipeline ended as CANCELLED; the same call resumes"):
        label_with_beam(tmp_path / "1.0.0", "toy", toys, **SETTINGS)
    assert not Path(tmp_path / "1.0.0" / "dataset_info.json").exists()
