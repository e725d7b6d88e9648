"""Small networks of PyTorch and ONNX that behave as those of other projects do."""

import itertools

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper


class Segmenter(torch.nn.Module):
    """Logits at stride 8 of inputs whose sides are multiples of 32."""

    def __init__(self, classes=7):
        super().__init__()
        torch.manual_seed(0)
        widths = (3, 8, 16, 16, 16, 16)
        self.down = torch.nn.ModuleList(torch.nn.Conv2d(a, b, 3, 2, 1) for a, b in itertools.pairwise(widths))
        self.up, self.out = torch.nn.ConvTranspose2d(16, 16, 4, 4), torch.nn.Conv2d(16, classes, 1)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x):
        assert x.shape[-1] % 32 == x.shape[-2] % 32 == 0 and not self.training
        levels = []
        for layer in self.down:
            x = layer(x).relu()
            levels.append(x)
        return {"out": 20 * self.out(self.drop(self.up(x) + levels[2]))}


class Detector(torch.nn.Module):
    """torchvision's convention: for each image boxes, labels from 1 and scores, as many as there are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.see = torch.nn.Conv2d(3, 5, 16, 8)

    def forward(self, images):
        assert not self.training
        out = []
        for cells in self.see(images):
            scores, labels = (20 * cells[1:]).softmax(0).max(0)
            y, x = torch.nonzero(scores > 0.6, as_tuple=True)
            boxes = torch.stack([8 * x, 8 * y, 8 * x + 16, 8 * y + 16], -1).float()
            out.append({"boxes": boxes, "labels": labels[y, x] + 1, "scores": scores[y, x]})
        return out


def write_classifier(path, *, shape=(3, 3, 32, 40), element="FLOAT", layout="NCHW"):
    """An ONNX file: softmax of a linear map of the mean color; a fixed batch of 3 unless the shape says otherwise."""
    element = getattr(TensorProto, element)
    weights = np.random.default_rng(0).normal(size=(3, 12)).astype(helper.tensor_dtype_to_np_dtype(element)) * 3
    axes = np.array([2, 3] if layout == "NCHW" else [1, 2])
    nodes = [
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probs"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("pixels", element, shape)],
        [helper.make_tensor_value_info(name, element, (shape[0], 12)) for name in ("logits", "probs")],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(axes, "axes")],
    )
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), path)
    return weights


def read_segmenter(found):
    return {"segmentation": found["out"].softmax(1).movedim(1, -1)}


def read_detector(found):
    return {"detection": [{**one, "labels": one["labels"] - 1} for one in found]}


def read_classifier(outputs):
    return {"classification": outputs["probs"]}
