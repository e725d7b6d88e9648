"""Checkpoints of a run: state, data position and facts, saved together by Orbax and checked when they come back.

A flipped bit in a committed Orbax file restores silently, so a hash of every array travels in the facts.
"""

import hashlib
import os
from typing import Any

import jax
import numpy as np

from must.core import files
from must.core.types import PyTree, UserError


def fingerprint(tree: PyTree) -> str:
    """SHA-256 over names, shapes, types and bytes of all arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class Checkpoints:
    """Saves and restores in one directory.

    Args:
      directory: created when missing.
      keep: how many of the newest stay; None keeps all.
    """

    def __init__(self, directory: str, *, keep: int | None = 1):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self.directory = os.path.abspath(directory)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest(self) -> int | None:
        """Step of the newest committed checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: PyTree, *, position: dict | None = None, facts: dict | None = None) -> None:
        """Commits state, data position and facts (both JSON) as `step`; replaces nothing that is already there.

        Raises:
          OSError: too little free space, found before anything is written.
        """
        files.check_space(self.directory, sum(getattr(leaf, "nbytes", 64) for leaf in jax.tree.leaves(state)))
        args = self._ocp.args
        facts = dict(facts or {}, sha256=fingerprint(state))
        self._manager.save(
            step,
            args=args.Composite(
                state=args.StandardSave(state), position=args.JsonSave(position or {}), facts=args.JsonSave(facts)
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
        try:
            loaded = self._manager.restore(
                step,
                args=args.Composite(
                    state=args.StandardRestore(like), position=args.JsonRestore(), facts=args.JsonRestore()
                ),
            )
        except (ValueError, KeyError, TypeError, OSError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(f"{self.directory}/{step}: not a checkpoint of this model: {reason}") from None
        if fingerprint(loaded["state"]) != loaded["facts"]["sha256"]:
            raise UserError(f"{self.directory}/{step}: damaged, the arrays do not match their hash")
        return loaded["state"], loaded["position"], loaded["facts"]

    def facts(self, step: int | None = None) -> dict:
        """The facts of a checkpoint without its arrays.

        Raises:
          UserError: none there.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise UserError(f"{self.directory}: no checkpoint")
        args = self._ocp.args
        return self._manager.restore(step, args=args.Composite(facts=args.JsonRestore()))["facts"]

    def close(self) -> None:
        """Waits for writes and lets go of the directory."""
        self._manager.close()


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
