"""Records as TFRecord for users of tf.data: the twin of a directory of ArrayRecord, example for example; extra
`[tf]`."""

import hashlib
import importlib.util
import os
import shutil
from collections.abc import Iterable
from typing import Any

from must.core import files, mirror
from must.core.types import UserError
from must.readers.records import COMMITTED, IDS, PROVENANCE, Records, read_provenance, stored_records
from must.readers.tfds import write_tfds_info

FILE_FORMAT = "tfrecord"


def write_tfrecord(records: str | os.PathLike, directory: str | os.PathLike) -> int:
    """Writes what `tfds.builder_from_directory(directory).as_dataset(split=...)` reads.

    The same shards with the same serialized examples in the same order, and the same features. What is written is read
    again and compared. The directory appears whole or not at all; one that is the twin of these records already is left
    as it is. Tasks that were added to the records later are not in the twin.

    Args:
      records: a complete directory of records.
      directory: of the twin, "<...>/<name>/<version>"; new or empty.

    Returns:
      The number of examples.

    Raises:
      UserError: TensorFlow is not installed, the records are incomplete or damaged, or the directory holds something
        else.
    """
    records, directory = (os.path.abspath(os.fspath(path)) for path in (records, directory))
    facts = read_provenance(records)
    count = sum(shard["count"] for shard in facts["shards"])
    if os.path.exists(os.path.join(directory, COMMITTED)):
        if read_provenance(directory).get("twin_of") == facts["shards"]:
            return count
        raise UserError(f"{directory}: holds another data set than the twin of {records}")
    if os.path.exists(directory) and not (os.path.isdir(directory) and not os.listdir(directory)):
        raise UserError(f"{directory}: holds other files")
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError("TFRecord files need TensorFlow: pip install 'must[tf]'")
    import tensorflow_datasets as tfds

    Records(records, split=facts["split"], tasks=())  # compares every file with its SHA-256
    with files.whole_directory(directory) as partial:
        shards = [_write_shard(records, partial, shard) for shard in facts["shards"]]
        for name in (IDS, facts.get("rejects", {}).get("file")):
            if name is not None:
                shutil.copyfile(os.path.join(records, name), os.path.join(partial, name))
        about = {**facts, "file_format": FILE_FORMAT, "shards": shards, "twin_of": facts["shards"]}
        files.write_json(os.path.join(partial, PROVENANCE), files.sealed(about))
        features = tfds.features.FeaturesDict.from_config(records)
        write_tfds_info(partial, directory, facts["name"], facts["split"], features, shards, file_format=FILE_FORMAT)
        for name in os.listdir(partial):
            with open(os.path.join(partial, name), "rb") as file:
                os.fsync(file.fileno())
    return count


def _write_shard(records: str, directory: str, shard: dict[str, Any]) -> dict[str, Any]:
    """One file; its entry in provenance.json."""
    from tensorflow_datasets.core import (
        file_adapters,
    )  # brings TensorFlow when it is used, which this package never names

    adapter = file_adapters.ADAPTER_FOR_FORMAT[file_adapters.FileFormat.TFRECORD]
    file = shard["file"].replace(".array_record-", f".{FILE_FORMAT}-")
    path = os.path.join(directory, file)
    with mirror.at_hand(os.path.join(records, shard["file"]), shard["sha256"]) as source:
        adapter.write_examples(path, ((None, record) for record in stored_records(source)))
        same = _digest(adapter.make_tf_data(path).as_numpy_iterator()) == _digest(stored_records(source))
    if not same:
        raise UserError(f"{path}: does not hold what was written; is the disk full?")
    return {"file": file, "count": shard["count"], "bytes": os.path.getsize(path), "sha256": files.file_hash(path)}


def _digest(records: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for record in records:
        digest.update(len(record).to_bytes(8, "little") + record)
    return digest.hexdigest()
