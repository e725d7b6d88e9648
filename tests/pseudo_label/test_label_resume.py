"""A label pass survives kills, shares its work, and refuses what does not belong together or cannot be right."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from must.core import files
from must.core.notices import Notice
from must.core.types import UserError
from must.pseudo_label.plan import make_plan
from must.pseudo_label.shards import ShardFile
from must.pseudo_label.write import Job
from must.readers.records import Records
from tests.support.toy_labels import ToySource, ToyTask, label_toy, toy_teacher

REPOSITORY = Path(__file__).parents[2]


def tree(directory):
    """{file: content} below a directory."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(Path(directory).rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    directory = tmp_path_factory.mktemp("reference") / "1.0.0"
    label_toy(directory)
    return tree(directory)


def start(directory, workers, seconds=0.03):
    """Worker processes."""
    command = [sys.executable, "-c", "from tests.support.toy_labels import main; main()", str(directory)]
    return [
        subprocess.Popen([*command, str(k), str(workers), str(seconds)], cwd=REPOSITORY, stderr=subprocess.PIPE)
        for k in range(workers)
    ]


def kill(processes):
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()


def wait_for(condition, processes, seconds=60):
    """Until the condition holds or all processes have ended."""
    end = time.monotonic() + seconds
    while not condition() and any(process.poll() is None for process in processes) and time.monotonic() < end:
        time.sleep(0.0005)


# Moments at which all workers die: what has just appeared in the directory.
MOMENTS = {
    "a shard begun": lambda d: any((d / "unfinished").glob("*.tmp")),
    "a shard in its place": lambda d: any(d.glob("*array_record*")),
    "three shards done": lambda d: len(list((d / "unfinished").glob("*.done.json"))) >= 3,
    "the commit begun": lambda d: (d / "ids.txt").exists(),
    "features written": lambda d: (d / "features.json").exists(),
}


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_killed_at_any_moment_and_restarted_gives_the_same_bytes(tmp_path, reference, workers):
    directory = tmp_path / "1.0.0"
    rng = random.Random(workers)
    moments = list(MOMENTS.items())[workers % 2 :: 2]
    for _name, reached in moments:
        processes = start(directory, workers)
        wait_for(lambda: reached(directory), processes)
        time.sleep(rng.uniform(0, 0.03))
        kill(processes)
        if not (directory / "dataset_info.json").exists():
            with pytest.raises(UserError, match="no complete records"):
                Records(directory)
    processes = start(directory, workers, seconds=0)
    errors = [process.communicate()[1].decode() for process in processes]
    assert all(process.returncode == 0 for process in processes), errors
    assert tree(directory) == reference
    assert list(Records(directory).ids) == ToySource().ids


def test_workers_in_threads_share_the_shards(tmp_path, reference):
    calls = []

    def one(k):
        teacher = toy_teacher(seconds=0.005)
        counted = teacher._replace(predict=lambda images: (calls.append(k), teacher.predict(images))[1])
        label_toy(tmp_path / "1.0.0", teacher=counted, worker=(k, 3))

    threads = [threading.Thread(target=one, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tree(tmp_path / "1.0.0") == reference
    plan = make_plan("toy", "train", ToySource(), shards=6, batch_size=4)
    assert len(calls) == sum(len(plan.batches(shard)) for shard in range(6))  # no shard twice


def test_a_shard_that_another_worker_finishes_meanwhile_stays_done(tmp_path):
    """Its done record appears while somebody looks for it, again and again."""
    directory = tmp_path / "1.0.0"
    job = Job(str(directory), make_plan("toy", "train", ToySource(), shards=6, batch_size=4), 0, 600.0, print)
    done, over = directory / "unfinished" / "00000.done.json", threading.Event()
    done.parent.mkdir(parents=True)

    def look():
        while not over.is_set():
            job._record(0)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        lost = 0
        for number in range(300):
            files.write_json(done, files.sealed({"count": number}))
            try:
                os.remove(done)
            except FileNotFoundError:
                lost += 1
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert lost == 0


def test_the_shards_of_a_stopped_worker_are_taken_over(tmp_path, reference):
    directory = tmp_path / "1.0.0"
    (hung,) = start(directory, 1, seconds=1.0)
    wait_for(lambda: any((directory / "unfinished").glob("0*.tmp")), [hung])
    hung.send_signal(signal.SIGSTOP)
    with pytest.warns(Notice, match=r"the worker that holds 0000\d has not gone on for 0.3 seconds .patience."):
        label_toy(directory, patience=0.3)
    assert tree(directory) == reference
    hung.send_signal(signal.SIGCONT)  # who finds everything done leaves it as it is
    assert hung.communicate(timeout=30) is not None and hung.returncode == 0
    assert tree(directory) == reference


def test_a_worker_that_is_slow_but_goes_on_keeps_its_shards(tmp_path, reference):
    directory = tmp_path / "1.0.0"
    calls = []
    slow = toy_teacher(seconds=0.2)
    counted = slow._replace(predict=lambda images: (calls.append(0), slow.predict(images))[1])
    workers = [
        threading.Thread(target=label_toy, args=(directory,), kwargs={"patience": 1.5, "teacher": counted, "worker": w})
        for w in ((0, 2), (1, 2))
    ]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    plan = make_plan("toy", "train", ToySource(), shards=6, batch_size=4)
    assert tree(directory) == reference and len(calls) == sum(len(plan.batches(shard)) for shard in range(6))


def test_an_edited_or_cut_record_of_a_shard_is_labeled_again(tmp_path, reference):
    directory = tmp_path / "1.0.0"
    with pytest.raises(UserError):
        label_toy(directory, teacher=toy_teacher(edit=_breaks_down()))
    done = sorted((directory / "unfinished").glob("*.done.json"))
    done[0].write_text(done[0].read_text().replace("toy/", "toi/", 1))
    with pytest.warns(Notice, match="done.json: changed or damaged.*its images are labeled again"):
        label_toy(directory)
    assert tree(directory) == reference


def test_without_locks_two_workers_still_agree(tmp_path, reference, monkeypatch):
    import fcntl

    def refuse(*arguments):
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    failures = []

    def one(k):
        try:
            label_toy(tmp_path / "1.0.0", teacher=toy_teacher(seconds=0.01), worker=(0, 1))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and tree(tmp_path / "1.0.0") == reference


def test_without_locks_one_who_finds_it_finished_returns(tmp_path, reference, monkeypatch):
    import fcntl

    def refuse(*arguments):
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    others = []

    def overtaken(label):
        if len(others) == 3:  # in the middle of a shard
            label_toy(tmp_path / "1.0.0")
        others.append(0)

    label_toy(tmp_path / "1.0.0", teacher=toy_teacher(edit=overtaken))
    assert tree(tmp_path / "1.0.0") == reference


@pytest.mark.parametrize("after", [False, True])
def test_stopped_at_any_rename_it_is_whole_or_refused(tmp_path, monkeypatch, after):
    replace, source = os.replace, ToySource(7)
    label_toy(tmp_path / "whole", source=source, shards=2)
    want, renames, finished = tree(tmp_path / "whole"), 0, False
    while not finished:
        directory, calls = tmp_path / str(renames) / "1.0.0", []

        def stop(old, new):
            calls.append(new)
            if len(calls) <= renames or after:
                replace(old, new)
            if len(calls) > renames:
                raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", stop)
        try:
            label_toy(directory, source=source, shards=2)
            finished = True
        except KeyboardInterrupt:
            if (directory / "dataset_info.json").exists():
                assert [Records(directory)[i].id for i in range(7)] == source.ids
                assert {file: tree(directory)[file] for file in want} == want
        monkeypatch.setattr(os, "replace", replace)
        label_toy(directory, source=source, shards=2)
        assert tree(directory) == want
        renames += 1
    assert renames > 8  # two shards, their done records, ids, rejects, provenance, features, the commit


def test_a_complete_directory_is_not_touched(tmp_path):
    label_toy(tmp_path / "1.0.0")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "1.0.0").iterdir()}

    def fail(label):
        raise AssertionError("the teacher was asked")

    summary = label_toy(tmp_path / "1.0.0", teacher=toy_teacher(edit=fail))
    assert summary.records == len(ToySource()) and summary.bytes == sum(
        path.stat().st_size for path in (tmp_path / "1.0.0").glob("*array_record*")
    )
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "1.0.0").iterdir()} == before


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    "change, key",
    [
        ({"teacher": toy_teacher(fingerprint="others")}, "tasks.toy.fingerprint is"),
        ({"teacher": toy_teacher(task=ToyTask(bright=2.0))}, "tasks.toy.hyper_parameters.bright is 1.0 there"),
        ({"teacher": toy_teacher(size=(16, 16))}, "tasks.toy.input_size"),
        ({"source": ToySource(fingerprint="others")}, "source.fingerprint"),
        ({"shards": 5}, "plan.shards is 6 there, 5 here"),
        ({"batch_size": 8}, "plan.batch_size"),
        ({"keep_aspect": False}, "images.keep_aspect"),
        ({"copy_images": False}, "images.stored"),
        ({"provenance": {"mirror": True}}, "settings.mirror is not there"),
    ],
)
def test_another_pass_is_refused_by_its_first_difference(shared_directories, complete, change, key):
    with pytest.raises(UserError, match=f"belongs to another label pass, {key}"):
        label_toy(shared_directories[complete], **change)


@pytest.fixture(scope="module")
def shared_directories(tmp_path_factory):
    """{complete: directory}, one complete and one whose teacher broke down midway."""
    top = tmp_path_factory.mktemp("passes")
    label_toy(top / "complete" / "1.0.0")
    with pytest.raises(UserError):
        label_toy(top / "broken" / "1.0.0", teacher=toy_teacher(edit=_breaks_down()))
    return {True: top / "complete" / "1.0.0", False: top / "broken" / "1.0.0"}


def _breaks_down(after=5):
    calls = []

    def edit(label):
        calls.append(0)
        if len(calls) > after:
            label["probs"][:] = np.nan

    return edit


def test_a_pass_goes_on_after_an_error(tmp_path, reference):
    with pytest.raises(UserError, match="not finite"):
        label_toy(tmp_path / "1.0.0", teacher=toy_teacher(edit=_breaks_down()))
    done = len(list((tmp_path / "1.0.0" / "unfinished").glob("*.done.json")))
    assert 0 < done < 6 and not list((tmp_path / "1.0.0" / "unfinished").glob("*.tmp"))
    label_toy(tmp_path / "1.0.0")
    assert tree(tmp_path / "1.0.0") == reference


def test_a_shard_that_was_damaged_before_the_commit_is_labeled_again(tmp_path, reference):
    with pytest.raises(UserError):
        label_toy(tmp_path / "1.0.0", teacher=toy_teacher(edit=_breaks_down()))
    shard = next((tmp_path / "1.0.0").glob("*array_record*"))
    shard.write_bytes(shard.read_bytes()[:1000])
    label_toy(tmp_path / "1.0.0")
    assert tree(tmp_path / "1.0.0") == reference


def _set(name, index, value):
    def edit(label):
        label[name][index] = value

    return edit


def _replace(name, change):
    def edit(label):
        label[name] = change(label[name])

    return edit


@pytest.mark.parametrize(
    "edit, message",
    [
        (_set("probs", (1, 0), 0.9), "toy.probs are no probabilities: .* record toy/é 001"),
        (_set("probs", (1, slice(None)), [-0.1, 0.5, 0.5]), "toy.probs are no probabilities: .* record toy/é 001"),
        (_replace("probs", lambda p: p[:, :2].T), "toy.probs has shape"),
        (_replace("probs", lambda p: p[:3]), "toy.probs has shape"),
        (_replace("mean", lambda m: m[..., 0]), "toy.mean has shape"),
        (_replace("probs", lambda p: (p * 100).astype(np.int32)), "toy.probs is int32, not float32"),
        (_replace("probs", lambda p: np.pad(p, [(0, 0), (0, 1)])), r"toy.probs has shape \(8, 4\), not \(8, 3\)"),
        (lambda label: label.pop("mean"), "toy.mean is missing"),
    ],
)
def test_labels_that_cannot_be_right_are_refused_before_anything_is_written(tmp_path, edit, message):
    with pytest.raises(UserError, match=f"teacher toy teacher: {message}"):
        label_toy(tmp_path / "1.0.0", teacher=toy_teacher(edit=edit), shards=1, batch_size=8)
    assert not list((tmp_path / "1.0.0").glob("*array_record*"))


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("boxes", np.zeros((2, 5), np.float32), r"has shape \(2, 5\), not \(None, 4\)"),
        ("boxes", np.zeros((2, 4)), "is float64, not float32"),
        ("boxes", np.full((1, 4), np.nan, np.float32), "is not finite"),
        ("probs", np.array([1.5, 0, 0], np.float16), "is outside 0..1"),
        ("note", 3, "is int, not a string"),
        ("count", None, "is missing"),
    ],
)
def test_what_restore_gives_is_checked_too(tmp_path, name, value, message):
    class Wrong(ToyTask):
        def restore(self, label, geometry):
            fields = {**super().restore(label, geometry), name: value}
            return {key: field for key, field in fields.items() if field is not None}

    with pytest.raises(UserError, match=f"toy.{name} {message}, record toy/é 000"):
        label_toy(tmp_path / "1.0.0", teacher=toy_teacher(task=Wrong()))


@pytest.mark.parametrize("name, index, value", [("probs", 1, np.nan), ("mean", (0, 0, 0), np.inf)])
def test_pictures_of_which_a_teacher_says_nan_are_left_out_up_to_the_bound(tmp_path, reference, name, index, value):
    def edit(label):  # of the pictures 2, 3, 10, 11, ...
        label[name][(slice(2, 4), *np.atleast_1d(index))] = value

    teacher = toy_teacher(edit=edit)
    says = f"images cannot be used.* allows 1; toy/é 00[23]: teacher toy teacher: toy.{name} is not finite; max_rejects"
    with pytest.raises(UserError, match=says):
        label_toy(tmp_path / "1.0.0", teacher=teacher, max_rejects=0.03, batch_size=8)
    assert not list((tmp_path / "1.0.0").glob("*array_record*"))
    summary = label_toy(
        tmp_path / "1.0.0", teacher=teacher, max_rejects=0.3, batch_size=8
    )  # the same command gets past
    left = [id for place, id in enumerate(ToySource().ids) if place % 8 not in (2, 3)]
    assert list(Records(tmp_path / "1.0.0").ids) == left and summary.rejects == len(ToySource()) - len(left)
    good = label_toy(tmp_path / "2.0.0", batch_size=8)
    both = Records(tmp_path / "1.0.0"), Records(good.directory)
    for id in left[:6]:  # what stands beside a NaN is what it is without one
        one, other = (records[list(records.ids).index(id)].labels["toy"] for records in both)
        np.testing.assert_array_equal(one["probs"], other["probs"])


def test_padding_rows_are_not_judged(tmp_path):
    def edit(label):
        label["probs"][3:] = np.nan

    label_toy(tmp_path / "1.0.0", source=ToySource(3), shards=1, teacher=toy_teacher(edit=edit))
    assert len(Records(tmp_path / "1.0.0")) == 3


def test_unreadable_pictures_are_named_and_left_out_up_to_the_bound(tmp_path):
    source = ToySource(broken=(0, 7, 8, 40))
    summary = label_toy(tmp_path / "1.0.0", source=source, max_rejects=0.1)
    assert (summary.records, summary.rejects) == (37, 4)
    lines = [json.loads(line) for line in (tmp_path / "1.0.0" / "rejects.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [source.ids[i] for i in source.broken]
    assert all("broken picture" in line["reason"] for line in lines)
    records = Records(tmp_path / "1.0.0")
    assert list(records.ids) == [id for i, id in enumerate(source.ids) if i not in source.broken]
    whole = ToySource()
    for index, id in enumerate(records.ids):
        np.testing.assert_array_equal(records[index].image, whole[whole.ids.index(id)].image)


def test_rows_without_a_picture_are_not_judged(tmp_path):
    def edit(label):
        label["probs"][label["mean"][:, 0, 0, 0] == 1.0] = np.nan  # black, as unreadable pictures are to a teacher

    source = ToySource(broken=(0, 5))
    assert label_toy(tmp_path / "1.0.0", source=source, teacher=toy_teacher(edit=edit), max_rejects=0.1).rejects == 2


def test_too_many_unreadable_pictures_fail_the_pass_and_are_listed(tmp_path):
    source = ToySource(broken=(0, 7, 8, 40))
    with pytest.raises(UserError, match="rejects.jsonl: 3 of 41 images .* allows 2; toy/é 008: .*broken picture"):
        label_toy(tmp_path / "1.0.0", source=source, max_rejects=0.05)
    lines = (tmp_path / "1.0.0" / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [source.ids[i] for i in (0, 7, 8)]
    assert not (tmp_path / "1.0.0" / "dataset_info.json").exists()
    assert label_toy(tmp_path / "1.0.0", source=source, max_rejects=0.1).rejects == 4


@pytest.mark.parametrize("count, share, allowed", [(50, 0.001, 0), (41, 0.05, 2), (100, 0.29, 29)])
def test_the_bound_is_rounded_down_and_its_message_says_what_would_do(tmp_path, count, share, allowed):
    source = ToySource(count, broken=tuple(range(allowed + 1)))

    def label(share):
        return label_toy(tmp_path / "1.0.0", source=source, shards=1, batch_size=count, max_rejects=share)

    with pytest.raises(
        UserError, match=f"{allowed + 1} of {count} .* allows {allowed}; .* would allow {allowed + 1}"
    ) as predicted:
        label(share)
    assert label(float(str(predicted.value).partition("max_rejects=")[2].split()[0])).rejects == allowed + 1


def test_a_shard_or_everything_may_be_rejected(tmp_path):
    summary = label_toy(tmp_path / "1.0.0", source=ToySource(6, broken=(0, 1, 2)), shards=2, max_rejects=0.5)
    assert summary.records == 3 and len(Records(tmp_path / "1.0.0")) == 3


@pytest.mark.parametrize("count, shards, batch_size", [(1, 1, 1), (41, 6, 4), (100, 7, 64), (5, 16, 4), (64, 4, 16)])
def test_the_plan_covers_every_image_once_in_order(count, shards, batch_size):
    plan = make_plan("toy", "train", ToySource(count), shards=shards, batch_size=batch_size)
    batches = [plan.batches(shard) for shard in range(plan.shards)]
    assert [i for parts in batches for part in parts for i in part] == list(range(count))
    parts = [part for parts in batches for part in parts]
    assert all(batches) and all(len(part) == batch_size for part in parts[:-1])  # hardly a row is filled up
    assert max(map(len, batches)) - min(map(len, batches)) <= 1 and plan.shards == min(shards, len(parts))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"name": "Toy"}, "lower-case"),
        ({"name": "to-y"}, "lower-case"),
        ({"ids": []}, "no images"),
        ({"ids": ["a", "b", "a"]}, "'a' occurs twice"),
        ({"ids": ["a", "b\nc"]}, "spans lines"),
        ({"shards": 0}, "must be positive"),
    ],
)
def test_plans_that_cannot_be_kept_are_refused(change, message):
    source = ToySource(3)
    source.ids = change.pop("ids", source.ids)
    name = change.pop("name", "toy")
    with pytest.raises(UserError, match=message):
        make_plan(name, "train", source, **{"shards": 2, "batch_size": 2, **change})


def test_progress_reaches_the_total(tmp_path):
    seen = []
    label_toy(tmp_path / "1.0.0", progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1] == (41, 41)


def test_finished_shards_are_let_go_of(tmp_path, monkeypatch):
    begin, files, held = ShardFile.__init__, weakref.WeakSet(), []
    monkeypatch.setattr(ShardFile, "__init__", lambda self, *arguments: (files.add(self), begin(self, *arguments))[1])
    arguments = {"source": ToySource(16), "shards": 8, "batch_size": 2}
    label_toy(tmp_path / "1.0.0", progress=lambda done, total: held.append(len(files)), **arguments)
    assert held == [1] * 8  # a writer takes megabytes until it is forgotten


def test_a_worker_needs_no_jax():
    program = "import sys, tests.support.toy_labels, must.pseudo_label.write; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, env={**os.environ}).returncode == 0
