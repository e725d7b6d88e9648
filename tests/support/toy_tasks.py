"""Two tasks that `must` does not know, as a user would add them: one file, no edits elsewhere.

EdgeMap has a label of the image's size, Corners one of variable size.
"""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from must.core.types import ArraySpec, Metric, PerExample
from must.data.geometry import restore_boxes, restore_map, transform_boxes, transform_map
from must.scenes.still import Scenes
from must.tasks.base import Task
from must.tasks.exchange import write_about, write_maps

STRIDE = 4


class ToyScenes(Scenes):
    """Scenes with two more labels: where surfaces meet, and the middles of the boxes."""

    def __init__(self, toys=(), **arguments):
        super().__init__(labels=("segmentation", "detection") if toys else (), **arguments)
        self.toys = tuple(toys)

    def __getitem__(self, index):
        example = super().__getitem__(index)
        labels = {}
        if "edges" in self.toys:
            ids = example.labels["segmentation"]["ids"][..., 0]
            edges = np.zeros(ids.shape, np.uint8)
            edges[:, 1:] |= ids[:, 1:] != ids[:, :-1]
            edges[1:] |= ids[1:] != ids[:-1]
            labels["edges"] = {"edges": 255 * edges}
        if "corners" in self.toys:
            boxes = example.labels["detection"]["boxes"]
            labels["corners"] = {"points": 0.5 * (boxes[:, :2] + boxes[:, 2:])}
        return example._replace(labels=labels)


class _Cells(nn.Module):
    """One logit per cell of the finest level."""

    @nn.compact
    def __call__(self, features, *, train, image_size):
        return nn.Dense(1)(features.pyramid[STRIDE])[..., 0]


def _bce(logits, target):
    value = -(target * jax.nn.log_sigmoid(logits) + (1 - target) * jax.nn.log_sigmoid(-logits))
    return PerExample(value.sum((1, 2)), jnp.full(len(value), value[0].size, jnp.float32))


@dataclasses.dataclass(frozen=True)
class EdgeMap(Task):
    """Probability that a pixel lies where two surfaces meet."""

    metrics = (Metric("f1", "", True),)
    terms = ("edges",)

    def head(self):
        return _Cells()

    def label_spec(self):
        return {"edges": ArraySpec((None, None), "uint8", "zlib", "probability * 255")}

    def network_spec(self, size):
        return {"edges": jax.ShapeDtypeStruct(size, np.float32)}

    def transform(self, label, geometry):
        return {"edges": transform_map(label["edges"], geometry, 0).astype(np.float32) / 255}

    def restore(self, label, geometry):
        shape = tuple(side // STRIDE for side in geometry.source_size)
        return {"edges": np.round(255 * restore_map(np.asarray(label["edges"]), geometry, shape)).astype(np.uint8)}

    def target(self, label, policy):
        batch, height, width = label["edges"].shape
        return label["edges"].reshape(batch, height // STRIDE, STRIDE, width // STRIDE, STRIDE).max((2, 4))

    def loss(self, outputs, target):
        return {"edges": _bce(outputs, target)}

    def predict(self, outputs):
        return {"edges": jax.nn.sigmoid(outputs).repeat(STRIDE, 1).repeat(STRIDE, 2)}

    def hflip_outputs(self, outputs):
        return outputs[:, :, ::-1]

    def measure(self, prediction, truth):
        predicted, true = (self.target(label, None) >= 0.5 for label in (prediction, truth))
        return {"both": (predicted & true).sum((1, 2)), "either": predicted.sum((1, 2)) + true.sum((1, 2))}

    def summarize(self, rows):
        return {"f1": 2.0 * float(rows["both"].sum()) / max(1.0, float(rows["either"].sum()))}

    def draw(self, image, label, policy=None):
        return np.repeat(np.round(255 * np.asarray(label["edges"]))[..., None], 3, -1).astype(np.uint8)

    def write_labels(self, directory, source, name, options):
        return write_maps(directory, source, name, self, ("edges",))

    def constant_guess(self, labels):
        return {"edges": np.mean([label["edges"] for label in labels], 0)}


@dataclasses.dataclass(frozen=True)
class Corners(Task):
    """Any number of points; the network form holds up to `most` of them."""

    most: int = 8

    metrics = (Metric("count_error", "points", False),)
    terms = ("points",)

    def head(self):
        return _Cells()

    def label_spec(self):
        return {"points": ArraySpec((None, 2), "float32", doc="x, y, pixels of the original")}

    def network_spec(self, size):
        shape = jax.ShapeDtypeStruct
        return {"points": shape((self.most, 2), np.float32), "valid": shape((self.most,), np.bool_)}

    def transform(self, label, geometry):
        points = np.asarray(label["points"], np.float32).reshape(-1, 2)[: self.most]
        moved, _ = transform_boxes(np.concatenate([points, points + 1e-3], -1), geometry)
        out = {"points": np.zeros((self.most, 2), np.float32), "valid": np.zeros(self.most, np.bool_)}
        out["points"][: len(points)], out["valid"][: len(points)] = moved[:, :2], True
        return out

    def restore(self, label, geometry):
        points = np.asarray(label["points"])[np.asarray(label["valid"])]
        return {"points": restore_boxes(np.concatenate([points, points], -1), geometry)[:, :2]}

    def target(self, label, policy):
        cell = jnp.clip((label["points"] // STRIDE).astype(jnp.int32), 0, 15)
        batch = jnp.arange(len(cell))[:, None]
        grid = jnp.zeros((len(cell), 16, 16))
        return grid.at[batch, cell[..., 1], cell[..., 0]].max(label["valid"].astype(jnp.float32))

    def loss(self, outputs, target):
        return {"points": _bce(outputs, target)}

    def predict(self, outputs):
        """The best cell and those close to it."""
        score, place = jax.lax.top_k(outputs.reshape(len(outputs), -1), self.most)
        points = jnp.stack([place % 16, place // 16], -1) * STRIDE + 0.5 * STRIDE
        return {"points": points.astype(jnp.float32), "valid": score > score[:, :1] - 0.05}

    def hflip_outputs(self, outputs):
        return outputs[:, :, ::-1]

    def measure(self, prediction, truth):
        return {"error": jnp.abs(prediction["valid"].sum(1) - truth["valid"].sum(1))}

    def summarize(self, rows):
        return {"count_error": float(np.mean(rows["error"]))}

    def draw(self, image, label, policy=None):
        out = image.copy()
        for x, y in np.asarray(label["points"])[np.asarray(label["valid"])].astype(int):
            out[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = (255, 0, 0)
        return out

    def write_labels(self, directory, source, name, options):
        points = {id: source[i].labels[name]["points"].tolist() for i, id in enumerate(source.ids)}
        (Path(directory)).mkdir()
        write_about(directory, {"kind": "points", "points": points})
        return len(points)
