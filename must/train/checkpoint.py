"""Checkpoints of a run: state, data position and facts, saved together by Orbax and checked when they come back.

A flipped bit in a committed Orbax file restores silently, so hashes of the arrays, of the position and of the facts
themselves travel in the facts. State is equal in all processes of a run: process 0 writes its copy and every process
reads for itself, so that Orbax never waits for another process.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from must.core import devices, files
from must.core.types import PyTree, UserError, first_line


def fingerprint(tree: PyTree) -> str:
    """SHA-256 over names, shapes, types and bytes of all arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """Saves and restores in one directory.

    Args:
      directory: created when missing.
      keep: how many of the newest stay; None keeps all.
      ahead: save in a thread, from a copy of the state, while the caller goes on; `check`, the next `save` or `close`
        raise what went wrong. One save is under way at a time, and a kill during it loses that save alone.
    """

    def __init__(self, directory: str, *, keep: int | None = 1, ahead: bool = False):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        _mute_leftovers()
        self.directory = os.path.abspath(directory)
        os.makedirs(self.directory, exist_ok=True)
        for name in os.listdir(self.directory) if ahead and devices.is_writer() else ():
            if ".orbax-checkpoint-tmp" in name:  # of a run that was killed while it saved
                shutil.rmtree(os.path.join(self.directory, name))
        me = jax.process_index()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=False,
            enable_async_checkpointing=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=me, active_processes={me}, barrier_sync_key_prefix=str(me)
            ),
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._thread = ThreadPoolExecutor(1) if ahead else None
        self._saving: Future | None = None

    def latest(self) -> int | None:
        """Step of the newest committed checkpoint."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Steps of all committed checkpoints, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def delete(self, step: int) -> None:
        """Removes the checkpoint of a step."""
        if devices.is_writer():
            self._manager.delete(step)

    def save(self, step: int, state: PyTree, *, position: dict | None = None, facts: dict | None = None) -> None:
        """Commits state, data position and facts (both JSON) as `step`; replaces nothing that is already there.

        Raises:
          OSError: too little free space, found before anything is written; or what the save before this one met.
        """
        self.check(wait=True)
        if not devices.is_writer():
            return
        files.check_space(self.directory, sum(getattr(leaf, "nbytes", 64) for leaf in jax.tree.leaves(state)))
        facts = dict(facts or {}, sha256_position=_digest(position or {}))
        if self._thread is None:
            self._commit(step, _copied(state), position or {}, facts)
        else:
            self._saving = self._thread.submit(self._commit, step, _copied(state), position or {}, facts)

    def check(self, *, wait: bool = False) -> None:
        """Raises what a save met that has ended in the meantime; with `wait`, once it ends."""
        if self._saving is not None and (wait or self._saving.done()):
            saving, self._saving = self._saving, None
            saving.result()

    def _commit(self, step: int, state: PyTree, position: dict, facts: dict) -> None:
        args = self._ocp.args
        facts = facts | {"sha256": fingerprint(state)}
        facts["sha256_facts"] = _digest(facts)
        with _quiet():
            self._manager.save(
                step,
                args=args.Composite(
                    state=args.StandardSave(state), position=args.JsonSave(position), facts=args.JsonSave(facts)
                ),
            )

    def restore(self, like: PyTree, step: int | None = None) -> tuple[PyTree, dict, dict]:
        """The checkpoint of `step`, the newest by default.

        Args:
          like: a tree of the same structure, arrays or ShapeDtypeStructs, whose shardings the result takes.

        Returns:
          (state, position, facts).

        Raises:
          UserError: none there, of another shape, or damaged.
        """
        args = self._ocp.args
        step = self.latest() if step is None else step
        if step is None:
            raise UserError(f"{self.directory}: no checkpoint")
        raw = jax.tree.map(lambda leaf: np.asarray(jax.random.key_data(leaf)) if _is_key(leaf) else leaf, like)
        try:
            loaded = self._manager.restore(
                step,
                args=args.Composite(
                    state=args.StandardRestore(raw), position=args.JsonRestore(), facts=args.JsonRestore()
                ),
            )
        except Exception as error:  # whatever Orbax and TensorStore make of damaged files
            reason = first_line(error)
        else:
            state, position, facts = self._verified(step, loaded["state"], loaded["position"], loaded["facts"])
            return jax.tree.map(_as_key, like, state), position, facts
        raise UserError(f"{self.directory}/{step}: not a checkpoint of this model: {reason}")

    def _verified(self, step: int, state: PyTree, position: dict, facts: Any) -> tuple[PyTree, dict, dict]:
        facts = self._checked(step, facts)
        if fingerprint(state) != facts["sha256"]:
            raise UserError(f"{self.directory}/{step}: damaged, the arrays do not match their hash")
        digest = _digest(position)
        if digest != facts.get("sha256_position", digest):
            raise UserError(f"{self.directory}/{step}: damaged, the data position does not match its hash")
        return state, position, facts

    def facts(self, step: int | None = None) -> dict:
        """The facts of a checkpoint without its arrays.

        Raises:
          UserError: none there.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise UserError(f"{self.directory}: no checkpoint")
        args = self._ocp.args
        try:
            facts = self._manager.restore(step, args=args.Composite(facts=args.JsonRestore()))["facts"]
        except Exception as error:
            raise UserError(f"{self.directory}/{step}: damaged: {first_line(error)}") from None
        return self._checked(step, facts)

    def _checked(self, step: int, facts: Any) -> dict:
        """Facts that match their hash, which those of earlier versions lack."""
        if not isinstance(facts, dict) or "sha256" not in facts:
            raise UserError(f"{self.directory}/{step}: damaged, it has no hash")
        others = {name: value for name, value in facts.items() if name != "sha256_facts"}
        if facts.get("sha256_facts", _digest(others)) != _digest(others):
            raise UserError(f"{self.directory}/{step}: damaged, the facts do not match their hash")
        return facts

    def close(self) -> None:
        """Waits for writes and lets go of the directory.

        Raises:
          OSError: what the last save met.
        """
        try:
            self.check(wait=True)
        finally:
            if self._thread is not None:
                self._thread.shutdown()
            self._manager.close()


def _copied(state: PyTree) -> PyTree:
    """The state on the host, keys as numbers; the memory of its arrays may be given away meanwhile."""
    for leaf in jax.tree.leaves(state):
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()

    def copied(leaf: Any) -> Any:
        leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        return np.array(leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf)

    return jax.tree.map(copied, state)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Meanwhile Orbax's threads print no tracebacks of an error, such as a full disk, that is raised anyway."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@functools.cache
def _mute_leftovers() -> None:
    """From now on nothing prints what tasks of Orbax and TensorStore meet after the error that ended them was raised.

    They meet it when they are collected, or find their event loop closed: later, in any thread, in one of three ways.
    """

    def is_news(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return "exception was never retrieved" not in said and "was destroyed but it is pending" not in said

    def is_leftover(error: BaseException | None) -> bool:
        return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"

    logging.getLogger("asyncio").addFilter(is_news)
    unraisable, uncaught = sys.unraisablehook, sys.excepthook
    sys.unraisablehook = lambda args: None if is_leftover(args.exc_value) else unraisable(args)
    sys.excepthook = lambda kind, error, trace: None if is_leftover(error) else uncaught(kind, error, trace)


def _as_key(like: Any, leaf: Any) -> Any:
    return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like)) if _is_key(like) else leaf


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
