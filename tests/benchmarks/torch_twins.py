"""The networks of `train_step` in torch: ResNet with FPN and five heads, and ViT; layer by layer the same products."""

import functools

import torch
from torch import nn
from torch.nn import functional

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
VIT = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}


def layer(inputs: int, outputs: int, kernel: int, norm, stride: int = 1) -> nn.Sequential:
    """A convolution and its normalization."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), norm(outputs))


class Block(nn.Module):
    """A residual block of two 3x3 convolutions, or of 1x1, 3x3, 1x1."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        plan = (
            ((width, 1, 1), (width, 3, stride), (outputs, 1, 1)) if bottleneck else ((width, 3, stride), (width, 3, 1))
        )
        layers, at = [], inputs
        for channels, kernel, step in plan:
            layers += [layer(at, channels, kernel, nn.BatchNorm2d, step), nn.ReLU()]
            at = channels
        self.branch = nn.Sequential(*layers[:-1])
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else layer(inputs, outputs, 1, nn.BatchNorm2d, stride)

    def forward(self, x):
        return functional.relu(self.skip(x) + self.branch(x))


class FiveHeads(nn.Module):
    """ResNet, FPN at strides 4, 8, 16, a class head, two shared towers, three dense heads on the sum of the levels."""

    def __init__(self, depth: int, width: int, channels: int, classes: dict[str, int]):
        super().__init__()
        self.stem = nn.Sequential(layer(3, width, 7, nn.BatchNorm2d, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        stages, at = [], width
        for stage, count in enumerate(BLOCKS[depth]):
            blocks = []
            for i in range(count):
                blocks.append(Block(at, width * 2**stage, 2 if stage and not i else 1, depth >= 50))
                at = width * 2**stage * (4 if depth >= 50 else 1)
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        widths = [width * 2**stage * (4 if depth >= 50 else 1) for stage in range(3)]
        self.lateral = nn.ModuleList(nn.Conv2d(one, channels, 1) for one in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in widths)
        self.classes = nn.Linear(at, classes["classification"])
        group = functools.partial(nn.GroupNorm, min(32, channels))

        def tower(norm):
            layers = (layer(channels, channels, 3, norm), nn.ReLU(), layer(channels, channels, 3, norm), nn.ReLU())
            return nn.Sequential(*layers)

        self.towers = nn.ModuleList(tower(group) for _ in range(2))
        self.boxes = nn.ModuleList(nn.Conv2d(channels, n, 3, padding=1) for n in (classes["detection"], 5))
        counts = (classes["segmentation"], 1, 3)
        self.dense = nn.ModuleList(nn.Sequential(tower(nn.BatchNorm2d), nn.Conv2d(channels, n, 1)) for n in counts)

    def forward(self, x):
        x, levels = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        up = functools.partial(functional.interpolate, scale_factor=2)
        merged = [lateral(level) for lateral, level in zip(self.lateral, levels, strict=False)]
        for at in (1, 0):
            merged[at] = merged[at] + up(merged[at + 1])
        pyramid = [smooth(level) for smooth, level in zip(self.smooth, merged, strict=True)]
        outputs = [self.classes(x.mean((2, 3)))]
        for level in pyramid:
            outputs += [last(of(level)) for last, of in zip(self.boxes, self.towers, strict=True)]
        total = pyramid[0] + up(pyramid[1] + up(pyramid[2]))
        return outputs + [head(total) for head in self.dense]


class Vit(nn.Module):
    """Patches of 16 pixels, a class token, 12 pre-norm layers, a class head."""

    def __init__(self, name: str, size: int, classes: int):
        super().__init__()
        width, heads = VIT[name]
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(torch.zeros(1, 1 + (size // 16) ** 2, width))
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        one = nn.TransformerEncoderLayer(width, heads, 4 * width, **options)
        self.layers = nn.TransformerEncoder(one, 12, nn.LayerNorm(width), enable_nested_tensor=False)
        self.classes = nn.Linear(width, classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        return [self.classes(self.layers(x)[:, 0])]
