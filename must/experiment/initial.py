"""Weights that a network starts from: files of other libraries, Orbax checkpoints, networks of other runs."""

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from must.core import files
from must.core.types import Model, PyTree, UserError
from must.experiment import networks, sections
from must.experiment.settings import Init, Network
from must.models import pretrained
from must.models.multi_head import PIXEL_STATS
from must.models.pretrained import Found
from must.tasks.base import Task

_PICKLES = (".pth", ".pt", ".bin", ".pkl", ".ckpt", ".tar", ".npz", ".h5")
_ONE_LINER = "docs/pretrained.md has the line that turns it into safetensors"


def start(
    model: Model, network: Network, inputs: PyTree, key: jax.Array, init: Init, tasks: Mapping[str, Task] = {}
) -> PyTree:
    """Fresh variables, with the weights that a run starts from in their places.

    Args:
      model: of the network.
      network: its settings.
      inputs: of one row.
      key: of what is drawn at random.
      init: where weights come from; none by default.
      tasks: of the network's heads, whose classes are joined with those of the weights by name.

    Raises:
      UserError: weights that cannot be read or do not fit.
    """
    variables = model.init(key, inputs)
    return _fitted(variables, network, init, tasks) if init.weights else variables


def check(model: Model, network: Network, inputs: PyTree, init: Init, tasks: Mapping[str, Task] = {}) -> None:
    """Refuses weights that `start` would refuse, without making the network."""
    if init.weights:
        _fitted(jax.eval_shape(model.init, jax.random.key(0), inputs), network, init, tasks)


def _fitted(variables: PyTree, network: Network, init: Init, tasks: Mapping[str, Task]) -> PyTree:
    found = _read(os.path.abspath(init.weights), _stamp(init.weights))
    stats, path = network.stats(), init.weights
    if found.pixel_stats and found.pixel_stats != stats:
        raise UserError(
            f"{path}: its images are normalized with {found.pixel_stats!r}, the network's with {stats!r}; set "
            f"model.pixel_stats={found.pixel_stats!r}"
        )
    if found.ambiguous and not found.pixel_stats and not network.pixel_stats:
        raise UserError(
            f"{path}: {found.layout}: some of these expect images normalized with 'imagenet' (DeiT), some with 'half' "
            "(AugReg), and no config.json beside the file says which; set model.pixel_stats"
        )
    try:
        return pretrained.fit(variables, found, init.partial, _classes(tasks))[0]
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


@functools.lru_cache(maxsize=1)
def _read(path: str, stamp: Any) -> Found:
    del stamp  # a changed file is read again
    if directory := _network_directory(path):
        return _of_network(directory)
    if os.path.isdir(path):
        return _of_orbax(path)
    files.read_bytes(path, 1)  # refuses what is no regular file
    if not path.endswith(".safetensors"):
        what = f"pickled and may run code; {_ONE_LINER}" if path.endswith(_PICKLES) else "not a .safetensors file"
        raise UserError(f"{path}: {what}")
    import safetensors.numpy

    try:
        arrays = safetensors.numpy.load_file(path)
    except Exception as error:  # its own errors have no common base
        raise UserError(f"{path}: not a safetensors file: {error}") from None
    return _found({name: _float32(array) for name, array in arrays.items()}, path, _stated(path))


def _found(arrays: Mapping[str, np.ndarray], path: str, stats: str = "") -> Found:
    try:
        found = pretrained.recognized(arrays)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return found._replace(pixel_stats=stats or found.pixel_stats)


def _float32(array: np.ndarray) -> np.ndarray:
    return array if array.dtype == np.float32 or array.dtype.kind in "iub" else np.asarray(array, np.float32)


def _stated(path: str) -> str:
    """The pixel statistics that a hub's json beside a file states; "" for none."""
    for name in ("config.json", "preprocessor_config.json"):
        beside = os.path.join(os.path.dirname(path), name)
        try:
            with open(beside, encoding="utf-8") as file:
                content = json.load(file)
        except (OSError, ValueError):
            continue
        mean = (content.get("pretrained_cfg") or content).get("mean") or content.get("image_mean")
        if mean is None:
            continue
        for stats, (ours, _) in PIXEL_STATS.items():
            if np.allclose(255 * np.asarray(mean), ours, atol=0.5):
                return stats
        raise UserError(f"{beside}: images are normalized with the mean {mean}, which is none of {list(PIXEL_STATS)}")
    return ""


def _network_directory(path: str) -> str:
    """The directory of a trained network: the path itself, or the student of a workdir; "" for neither."""
    for directory in (path, os.path.join(path, "student")):
        if os.path.exists(os.path.join(directory, networks.ABOUT)):
            return directory
    return ""


def _of_network(directory: str) -> Found:
    trained = networks.load(directory)
    found = _found(_flat(trained.variables), directory, trained.network.stats())
    return found._replace(classes=_classes(trained.tasks))


def _classes(tasks: Mapping[str, Task]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(task.classes) for name, task in tasks.items() if getattr(task, "classes", ())}


def _of_orbax(path: str) -> Found:
    import orbax.checkpoint as ocp

    try:
        tree = ocp.StandardCheckpointer().restore(path)
    except Exception as error:  # Orbax has no common base of its errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{path}: neither a trained network nor an Orbax checkpoint: {reason}") from None
    return _found(_flat(tree), path)


def _flat(tree: PyTree) -> dict[str, np.ndarray]:
    """{"params/backbone/...": array}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(getattr(k, "key", k)) for k in path): np.asarray(leaf) for path, leaf in leaves}


def _stamp(path: str) -> tuple:
    """What changes when a file or the weights of a network do, without reading them."""
    directory = _network_directory(path)
    try:
        state = os.stat(os.path.join(directory, "weights") if directory else path)
    except OSError as error:
        raise UserError(f"init.weights={path!r}: {error.strerror}") from None
    return state.st_mtime_ns, state.st_size


def digest(path: str) -> str:
    """SHA-256 of the content of a file, or of all files of a directory of weights."""
    _stamp(path)
    directory = _network_directory(path)
    hashed = hashlib.sha256()
    for name in _files(os.path.join(directory, "weights") if directory else path):
        with open(name, "rb") as file:
            while block := file.read(1 << 22):
                hashed.update(block)
    return hashed.hexdigest()


def _files(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    return sorted(os.path.join(top, name) for top, _, names in os.walk(path) for name in names)


def claim(workdir: str, settings: Sequence[Any]) -> None:
    """Writes init.json, the SHA-256 of all weights that runs of a workdir start from, or compares with it.

    Raises:
      UserError: weights that have changed since the workdir was made.
    """
    path = os.path.join(workdir, "init.json")
    known: dict[str, str] = {}
    if os.path.exists(path):
        known = files.read_sealed(path)
    weights = {name for one in settings for name in _weights(sections.plain(one))}
    now = {name: digest(name) for name in sorted(weights)}
    for name, sha in now.items():
        if known.get(name, sha) != sha:
            raise UserError(
                f"{name}: has changed since {workdir} was made (SHA-256 {known[name][:12]}, now {sha[:12]}); "
                "restore it, or use another --workdir"
            )
    if now:
        files.write_json(path, files.sealed({**known, **now}))


def _weights(section: Any) -> Iterator[str]:
    """Paths in all keys `init.weights` of a section, and those that single tasks start from in their place."""
    if isinstance(section, Mapping):
        init = section.get("init")
        if isinstance(init, Mapping):
            own = section.get("tasks") or {}  # of a run, changes to hyper-parameters
            yield from (path for path in (init.get("weights"), *own.values()) if path and isinstance(path, str))
        for value in section.values():
            yield from _weights(value)
