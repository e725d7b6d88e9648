"""Maps come back bit for bit, other readers see them as stated, and smooth ones are small."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from must.core.types import ArraySpec
from must.readers.png_maps import TYPES, as_uint8, decode_map, encode_map
from must.readers.record_format import decode_record, encode_record, features_of

SHAPES = {
    "uint8": [(1, 1), (5, 7), (5, 7, 1), (9, 4, 3), (1, 6, 3), (64, 1, 3), (40, 33)],
    "int8": [(1, 1), (8, 3), (9, 4, 1), (7, 5, 3), (1, 6, 3), (33, 40, 3)],
    "uint16": [(1, 1), (5, 7), (1, 9), (40, 33)],
}


def smooth(shape, amplitude=1.0, seed=0):
    """Waves of a few pixels to the size of the map, and a little noise, in -1..1."""
    y, x = (np.linspace(0, 1, side)[:, None] for side in shape[:2])
    rng = np.random.default_rng(seed)
    total = np.zeros(shape)
    for k in (1, 2, 5, 9):
        wave = np.sin(2 * np.pi * (k * y * rng.uniform(0.3, 1) + k * x.T * rng.uniform(0.3, 1) + rng.random()))
        total += (wave if len(shape) == 2 else wave[..., None] * rng.uniform(0.5, 1, shape[2])) / k
    return np.clip(amplitude * total / 2 + 0.01 * rng.standard_normal(shape), -1, 1)


def of_type(values, dtype):
    """-1..1 over the whole range of a type."""
    limits = np.iinfo(dtype)
    return np.round((values + 1) / 2 * (int(limits.max) - int(limits.min)) + int(limits.min)).astype(dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_every_map_comes_back_and_other_readers_see_it_as_stated(dtype):
    limits, rng = np.iinfo(dtype), np.random.default_rng(1)
    for shape in SHAPES[dtype]:
        noise = rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
        extremes = np.where(rng.random(shape) < 0.5, limits.min, limits.max).astype(dtype)
        for values in (noise, extremes, np.zeros(shape, dtype), of_type(smooth(shape), dtype), noise[::-1, ::-1]):
            data = encode_map(values)
            back = decode_map(data, dtype, (None,) * len(shape))
            assert back.dtype == values.dtype
            np.testing.assert_array_equal(back, values)
            seen = np.asarray(Image.open(io.BytesIO(data)))  # which checks the sums of every chunk
            if dtype == "uint16":
                height = len(values)
                np.testing.assert_array_equal(seen[:height] * 256.0 + seen[height:], values)
            else:
                offset = 128 if dtype == "int8" else 0
                np.testing.assert_array_equal(seen.reshape(shape) - float(offset), values)
            np.testing.assert_array_equal(seen.reshape(as_uint8(values).shape), as_uint8(values))


def test_smooth_maps_are_small_and_repetitive_ones_tiny():
    normals = of_type(smooth((128, 128, 3)), "int8")
    depth = of_type(smooth((128, 128)), "uint16")
    for values, share in ((normals, 0.56), (depth, 0.78), (of_type(smooth((128, 128)), "uint8"), 0.6)):
        assert len(encode_map(values)) < share * len(zlib.compress(values, 9)), values.dtype
    ids = np.kron(np.arange(64).reshape(8, 8) % 7, np.ones((16, 16))).astype(np.uint8)
    assert len(encode_map(ids)) < 0.8 * len(zlib.compress(ids, 1))
    assert max(len(encode_map(np.full((128, 128, 3), 7, dtype))) for dtype in ("int8", "uint8")) < 500


def test_tfds_reads_what_the_features_say(tmp_path):
    specs = {
        "normals": {"normals": ArraySpec((None, None, 3), "int8", "png", "n * 127")},
        "depth": {
            "depth": ArraySpec((None, None), "uint16", "png", "code"),
            "fixed": ArraySpec((6, 5), "uint16", "png"),
        },
    }
    labels = {
        "normals": {"normals": of_type(smooth((6, 5, 3)), "int8")},
        "depth": {name: of_type(smooth((6, 5), seed=seed), "uint16") for seed, name in enumerate(("depth", "fixed"))},
    }
    record = encode_record("a", None, labels, specs)
    _, _, back = decode_record(record, specs)
    features = features_of(specs, images=False)
    seen = features.deserialize_example_np(record)
    np.testing.assert_array_equal(seen["normals"]["normals"].astype(int) - 128, labels["normals"]["normals"])
    for name, want in labels["depth"].items():
        high, low = np.split(seen["depth"][name][..., 0].astype(int), 2)
        np.testing.assert_array_equal(256 * high + low, want)
        np.testing.assert_array_equal(back["depth"][name], want)
    assert features["normals"]["normals"].doc.desc == "n * 127; stored + 128"
    assert "low bytes" in features["depth"]["depth"].doc.desc
