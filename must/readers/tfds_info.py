"""features.json and dataset_info.json, by which TFDS reads a directory of records."""

import os
from collections.abc import Mapping, Sequence
from typing import Any


def write_tfds_info(
    folder: str,
    directory: str,
    name: str,
    split: str,
    features: Any,
    shards: Sequence[Mapping[str, Any]],
    *,
    file_format: str = "array_record",
) -> None:
    """Writes both files.

    Args:
      folder: that they are written into.
      directory: of the dataset; its last part is the version where it is one, else that is 1.0.0.
      name: of the dataset.
      split: the only one.
      features: tfds.features.FeaturesDict.
      shards: [{"count", "bytes"}] in order.
      file_format: of the shards, "array_record" or "tfrecord", which is part of their names too.
    """
    import tensorflow_datasets as tfds

    version = os.path.basename(directory)
    if not tfds.core.Version.is_valid(version):
        version = "1.0.0"
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, split=split, filetype_suffix=file_format
    )
    split_info = tfds.core.SplitInfo(
        name=split,
        shard_lengths=[shard["count"] for shard in shards],
        num_bytes=sum(shard["bytes"] for shard in shards),
        filename_template=template,
    )
    dataset = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(version), data_dir=folder, module_name=""
    )
    info = tfds.core.DatasetInfo(builder=dataset, features=features)
    info.set_file_format(file_format)
    info.set_splits(tfds.core.splits.SplitDict([split_info]))
    info.write_to_directory(folder)
