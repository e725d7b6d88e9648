"""A source whose examples are in memory, for tests of what is built on sources."""

import zlib

import numpy as np

from must.core.types import Example


class Memory:
    """Examples of random 8x8 pictures with the given labels; counts how often a picture was asked for."""

    def __init__(self, name, labels, classes=None, keys=None):
        self.name = name
        self.ids = [f"{name}/{i}" if keys is None else keys[i] for i in range(len(labels))]
        self.classes = classes or {}
        self.fingerprint = f"{name}{len(labels)}"
        self.reads = 0
        self._labels = labels

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        self.reads += 1
        image = np.random.default_rng(zlib.crc32(self.ids[index].encode())).integers(0, 255, (8, 8, 3), np.uint8)
        return Example(self.ids[index], image, dict(self._labels[index]))

    def labels(self, index):
        return dict(self._labels[index])
