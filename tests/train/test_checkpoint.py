"""Checkpoints: damage of any file is found, and a run goes on from the newest one that is whole."""

import errno
import shutil
import threading
import time
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must.core.types import UserError
from must.experiment.training import _resume
from must.train import checkpoint
from must.train.checkpoint import Checkpoints

POSITION = {"grain": {"next": 7}}


def _state(step):
    return {
        "train": {"w": jnp.arange(6.0) * step, "key": jax.random.key(step)},
        "weights": {"a": np.ones(3, np.float32)},
    }


def _saved(folder, steps=(1, 2)):
    checkpoints = Checkpoints(str(folder), keep=2)
    for step in steps:
        checkpoints.save(step, _state(step), position=POSITION, facts={"step": step, "validation": {"depth": 0.25}})
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return _saved(tmp_path_factory.mktemp("saved") / "checkpoints")


def _truncated(content):
    return content[: len(content) // 2]


def _flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _same(a, b):
    keys = [jax.random.key_data(one["train"]["key"]).tolist() for one in (a, b)]
    return keys[0] == keys[1] and np.array_equal(a["train"]["w"], b["train"]["w"])


def _files(folder):
    return sorted(
        path.relative_to(folder) for path in (folder / "2").rglob("*") if path.is_file() and path.stat().st_size
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [_truncated, _flipped, None])
def test_every_damaged_file_is_found_or_says_nothing(saved, tmp_path, damage, caplog):
    found = 0
    for number, name in enumerate(_files(saved)):
        folder = shutil.copytree(saved, tmp_path / str(number))
        content = (folder / name).read_bytes()
        (folder / name).unlink() if damage is None else (folder / name).write_bytes(damage(content))
        try:
            checkpoints = Checkpoints(str(folder))
            if checkpoints.latest() != 2:  # no longer a checkpoint at all
                found += 1
                continue
            state, position, facts = checkpoints.restore(_state(0), 2)
        except UserError as error:
            assert str(folder / "2") in str(error) and "\n" not in str(error)
            assert "Task exception" not in caplog.text  # nor tracebacks of Orbax's tasks
            found += 1
        else:
            assert _same(state, _state(2)) and position == POSITION and facts["validation"] == {"depth": 0.25}, name
    assert found >= 4


def _changed(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    "part, old, new, says",
    [("position", " 7", " 8", "data position"), ("facts", "0.25", "0.75", "facts do not match")],
)
def test_edited_positions_and_facts_are_found(tmp_path, part, old, new, says):
    folder = _saved(tmp_path / "c")
    _changed(next(p for p in (folder / "2" / part).rglob("*") if p.is_file() and old in p.read_text()), old, new)
    with pytest.raises(UserError, match=says):
        Checkpoints(str(folder)).restore(_state(0), 2)
    if part == "facts":
        with pytest.raises(UserError, match=says):
            Checkpoints(str(folder)).facts(2)


def _batches():
    batches = types.SimpleNamespace(weights={"a": np.zeros(3, np.float32)}, position=None)
    batches.set_state = lambda state: setattr(batches, "position", state)
    return batches


def _damage(folder, step):
    for path in (folder / str(step) / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(_truncated(path.read_bytes()))


def test_a_run_goes_on_from_the_newest_whole_checkpoint(tmp_path):
    folder = _saved(tmp_path / "c")
    _damage(folder, 2)
    checkpoints, batches = Checkpoints(str(folder), keep=2), _batches()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        state = _resume(checkpoints, _state(0)["train"], batches)
    np.testing.assert_array_equal(state["w"], np.arange(6.0))
    assert batches.position == {"next": 7} and batches.weights["a"].tolist() == [1, 1, 1]
    assert any("c/2" in str(one.message) and "goes on from step 1" in str(one.message) for one in told)
    checkpoints.save(2, _state(2), position=POSITION)  # its place is free again
    assert checkpoints.steps() == [2, 1]
    for step in (1, 2):
        _damage(folder, step)
    with pytest.raises(UserError, match="nor is an older one whole: remove"):
        _resume(Checkpoints(str(folder)), _state(0)["train"], _batches())


def test_a_save_ahead_keeps_what_the_state_was_and_its_error_comes_at_the_next_step(tmp_path, monkeypatch):
    (tmp_path / "1.orbax-checkpoint-tmp").mkdir()  # a run was killed while it saved
    Checkpoints(str(tmp_path))
    assert list(tmp_path.iterdir())
    checkpoints = Checkpoints(str(tmp_path), keep=2, ahead=True)
    assert not list(tmp_path.iterdir())
    state = _state(1)
    hashed, go_on = checkpoint.fingerprint, threading.Event()
    monkeypatch.setattr(checkpoint, "fingerprint", lambda tree: go_on.wait(10) and hashed(tree))
    checkpoints.save(1, state, position=POSITION)
    checkpoints.check()  # it is under way, and training gives the memory of its state to the next one
    state["train"]["w"] = jax.jit(lambda w: w + 1, donate_argnums=0)(state["train"]["w"])
    state["weights"]["a"][:] = 0
    assert checkpoints.latest() is None
    go_on.set()
    checkpoints.check(wait=True)
    restored, position, _ = checkpoints.restore(_state(0))
    assert _same(restored, _state(1)) and restored["weights"]["a"].tolist() == [1, 1, 1] and position == POSITION

    def full(tree):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    monkeypatch.setattr(checkpoint, "fingerprint", full)
    for surfaces in (checkpoints.check, lambda: checkpoints.save(3, state), checkpoints.close):
        checkpoints.save(2, state)
        while not checkpoints._saving.done():
            time.sleep(0.001)
        with pytest.raises(OSError, match="No space left"):
            surfaces()
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_the_checkpoints_of_another_run_are_refused_by_the_first_key_that_differs(tmp_path):
    ours, theirs = ({"seed": seed, "ids": "a", "run": {"steps": 9}} for seed in (0, 1))
    checkpoints = Checkpoints(str(tmp_path / "c"))
    checkpoints.save(1, _state(1), position=POSITION, facts={"run": ours})
    with pytest.raises(UserError, match=r"c: belongs to another run: seed is 0 there, 1 here; remove it"):
        _resume(checkpoints, _state(0)["train"], _batches(), theirs)
    np.testing.assert_array_equal(
        _resume(checkpoints, _state(0)["train"], _batches(), ours)["w"], _state(1)["train"]["w"]
    )
