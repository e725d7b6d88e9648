"""Models of torchvision, timm and transformers with random weights, the referees of ours; files of their weights."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if "cuda" not in torch.__version__ and torch.version.cuda is None:
    # PyPI's torchvision is built for CUDA: beside a CPU torch its operators do not load, and its Python part only
    # misses the declarations of two. No model here runs these operators.
    _library = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torchvision = pytest.importorskip("torchvision")
    timm = pytest.importorskip("timm")


def randomized(model, seed=0):
    """The model in evaluation mode, every parameter and statistic random, so that nothing can be left out unseen."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=random)
            if name.endswith("running_var"):
                tensor.copy_(1 + 0.2 * noise.abs())
            elif tensor.ndim > 1:
                fan = tensor[0].numel() if tensor.ndim != 3 else 1
                tensor.copy_(noise * (fan**-0.5 if tensor.ndim != 3 else 0.2))
            elif name.endswith(("bias", "running_mean")):
                tensor.copy_(0.1 * noise)
            else:
                tensor.copy_(1 + 0.1 * noise)
    return model.eval()


def write(model, path):
    """A model's state dict, or a state dict, as a .safetensors file, as the documented line makes it of a .pth."""
    import safetensors.torch

    state = model if isinstance(model, dict) else model.state_dict()
    safetensors.torch.save_file({k: v.clone().contiguous() for k, v in state.items()}, path)
    return str(path)


def pixels(*size, batch=1):
    """Normalized pictures, float32 [B, H, W, 3]."""
    return np.random.default_rng(1).normal(size=(batch, *size, 3)).astype(np.float32)


def answers(forward, images):
    """What a torch function makes of [B, H, W, 3] pictures, as NumPy."""
    with torch.no_grad():
        return [np.asarray(x) for x in forward(torch.from_numpy(images).permute(0, 3, 1, 2))]
