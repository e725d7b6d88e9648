"""A source whose examples are in memory, for tests of what is built on sources."""

import zlib

import numpy as np

from must.core.types import Example


class Memory:
    """Examples with the given labels, of random 8x8 pictures by default; counts how often one was asked for."""

    def __init__(self, name, labels, classes=None, keys=None, images=None):
        self.name = name
        self.ids = [f"{name}/{i}" if keys is None else keys[i] for i in range(len(labels))]
        self.classes = classes or {}
        self.fingerprint = f"{name}{len(labels)}"
        self.reads = 0
        self._labels, self._images = labels, images

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        self.reads += 1
        if self._images is not None:
            return Example(self.ids[index], self._images[index], dict(self._labels[index]))
        image = np.random.default_rng(zlib.crc32(self.ids[index].encode())).integers(0, 255, (8, 8, 3), np.uint8)
        return Example(self.ids[index], image, dict(self._labels[index]))

    def labels(self, index):
        return dict(self._labels[index])
