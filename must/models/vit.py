"""Vision transformers (Dosovitskiy et al. 2021) as timm, DINOv2, DINOv3 and SigLIP have them, so that their released
weights can be used; what else a family does differently than its tensors show is in `FAMILIES`."""

import math
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from must.core.types import Array, Features
from must.models.layers import check_options, depth_rates, drop_path, recomputed, residual


class Size(NamedTuple):
    """Width, number of layers and heads, and width of the perceptrons (0: four times the width)."""

    width: int
    depth: int
    heads: int
    hidden: int = 0


SIZES = {
    "tiny": Size(192, 12, 3),
    "small": Size(384, 12, 6),
    "base": Size(768, 12, 12),
    "large": Size(1024, 24, 16),
    "so400m": Size(1152, 27, 16, 4304),
    "giant": Size(1536, 40, 24),
}


class Family(NamedTuple):
    """Conventions of a family of checkpoints.

    Attributes:
      image: side of the images of pretraining in pixels, from which the default grid of positions follows.
      class_token: `pooled` is the class token after the last normalization; otherwise an attention-pooling head.
      layer_scale: residual branches have a learned factor per channel (Touvron et al. 2021).
      rotary: positions are rotations of queries and keys; otherwise learned and added to the patches.
      tanh: GELU by its tanh approximation.
      epsilon: of layer normalization.
      resize: how learned positions are resized, see `resized`.
    """

    image: int = 224
    class_token: bool = True
    layer_scale: bool = False
    rotary: bool = False
    tanh: bool = False
    epsilon: float = 1e-6
    resize: str = "antialias"


FAMILIES = {
    "vit": Family(),
    "dinov2": Family(image=518, layer_scale=True, resize="offset"),
    "dinov3": Family(layer_scale=True, rotary=True, epsilon=1e-5),
    "siglip": Family(class_token=False, tanh=True),
}
RESIZES = ("antialias", "offset", "bicubic")

_normal = nn.initializers.normal(0.02)


def resized(positions: Array, size: tuple[int, int], method: str) -> Array:
    """Positions [h, w, D] at another size, [*size, D], as PyTorch interpolates them.

    Args:
      positions: learned.
      size: of the grid of patches.
      method: "antialias", bicubic with antialiasing (timm, DINOv2 with registers); "bicubic", without (Hugging Face);
        "offset", without, with the scale (n + 0.1) / h of DINOv2's models without registers.
    """
    if positions.shape[:2] == tuple(size):
        return positions
    if method == "antialias":
        rows, columns = (_antialiased(old, new) for old, new in zip(positions.shape, size, strict=False))
    else:
        offset = 0.1 if method == "offset" else 0.0
        rows, columns = (
            _bicubic(old, new, (new + offset) / old) for old, new in zip(positions.shape, size, strict=False)
        )
    return jnp.einsum("yh,xw,hwd->yxd", rows, columns, positions, precision="highest")


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel."""
    x = np.abs(x)
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _bicubic(old: int, new: int, scale: float) -> np.ndarray:
    """Matrix [new, old] of cubic interpolation (a = -0.75) in which samples beyond the ends repeat the last one."""
    at = (np.arange(new) + 0.5) / scale - 0.5
    first, matrix = np.floor(at).astype(int), np.zeros((new, old))
    for tap in range(-1, 3):
        np.add.at(matrix, (np.arange(new), np.clip(first + tap, 0, old - 1)), _cubic(at - first - tap, -0.75))
    return matrix.astype(np.float32)


def _antialiased(old: int, new: int) -> np.ndarray:
    """Matrix [new, old] of cubic resampling (a = -0.5) whose kernel widens as the picture shrinks; rows sum to 1."""
    scale = max(old / new, 1.0)
    at = (np.arange(new) + 0.5) * old / new
    first = np.maximum(np.floor(at - 2 * scale + 0.5), 0)
    last = np.minimum(np.floor(at + 2 * scale + 0.5), old)
    cells = np.arange(old)
    matrix = _cubic((cells - at[:, None] + 0.5) / scale, -0.5)
    matrix = np.where((cells >= first[:, None]) & (cells < last[:, None]), matrix, 0.0)
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)


def _at_stride(level: Array, patch: int, stride: int, image: tuple[int, int]) -> Array:
    """A map with a cell per patch, [B, h, w, D], sampled bilinearly at the centers of cells of `stride` pixels."""
    matrices = []
    for cells, side in zip(level.shape[1:3], image, strict=True):
        at = np.clip((np.arange(-(-side // stride)) + 0.5) * stride / patch - 0.5, 0, cells - 1)
        matrices.append(np.maximum(0.0, 1 - np.abs(at[:, None] - np.arange(cells))).astype(np.float32))
    return jnp.einsum("yh,xw,bhwd->byxd", *matrices, level)


def rotation(grid: tuple[int, int], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of DINOv3's rotary embedding (Simeoni et al. 2025), [h * w, width], for heads of that width.

    Half of the angles turn with the row, half with the column, both from -1 to 1 over the picture, with periods from 1
    to 100.
    """
    periods = 100.0 ** (2 * np.arange(width // 4) / (width // 2))
    axes = [2 * (np.arange(side) + 0.5) / side - 1 for side in grid]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    angles = (2 * math.pi * places[:, :, None] / periods).reshape(len(places), -1)
    angles = np.tile(angles, 2)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _rotated(x: Array, turn: tuple[np.ndarray, np.ndarray]) -> Array:
    """Queries or keys [B, tokens, heads, width], whose last tokens are the patches, with these rotated."""
    cos, sin = (part[:, None] for part in turn)
    first, patches = x[:, : -len(cos)], x[:, -len(cos) :]
    left, right = jnp.split(patches, 2, -1)
    return jnp.concatenate([first, patches * cos + jnp.concatenate([-right, left], -1) * sin], 1)


class Layer(nn.Module):
    """Pre-norm self-attention and a perceptron, both residual.

    Attributes:
      heads: of the attention.
      hidden: width of the perceptron.
      swiglu: the perceptron is W3 (silu(W1 x) * W2 x) (Shazeer 2020).
      family: conventions.
      drop: rate of stochastic depth.
      lora: rank of the updates of the attention's projections (Hu et al. 2022); 0: none.
      lora_scale: their factor, alpha / rank.
      axis_name: devices that share the batch.
      dtype: of the computation; parameters stay float32.
    """

    heads: int
    hidden: int
    swiglu: bool = False
    family: Family = Family()
    drop: float = 0.0
    lora: int = 0
    lora_scale: float = 1.0
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool, turn: tuple[np.ndarray, np.ndarray] | None = None) -> Array:
        """[B, tokens, D] -> [B, tokens, D]."""
        y = self._attention(_norm(self.family, self.dtype, "norm1")(x), turn)
        x = residual(x, self._branch(y, "scale1", train))
        y = self._perceptron(_norm(self.family, self.dtype, "norm2")(x))
        return residual(x, self._branch(y, "scale2", train))

    def _attention(self, x: Array, turn) -> Array:
        width = x.shape[-1]
        qkv = self._dense(3 * width, "qkv")(x) + self._low_rank(x, 3, "qkv")
        q, k, v = (part.reshape(*x.shape[:2], self.heads, -1) for part in jnp.split(qkv, 3, -1))
        if turn is not None:
            q, k = _rotated(q, turn).astype(q.dtype), _rotated(k, turn).astype(k.dtype)
        y = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
        return self._dense(width, "out")(y) + self._low_rank(y, 1, "out")

    def _low_rank(self, x: Array, parts: int, name: str) -> Array | float:
        """The sum of updates B A x of each of so many projections to the width of x, which is 0 at first."""
        if not self.lora:
            return 0.0
        width = x.shape[-1]
        down = self.param(f"lora_{name}_down", nn.initializers.normal(width**-0.5), (width, parts, self.lora))
        up = self.param(f"lora_{name}_up", nn.initializers.zeros, (parts, self.lora, width))
        return self.lora_scale * jnp.einsum(
            "bnd,dpr,pre->bnpe", x, down.astype(self.dtype), up.astype(self.dtype)
        ).reshape(*x.shape[:2], -1)

    def _perceptron(self, x: Array) -> Array:
        y = self._dense(self.hidden * (2 if self.swiglu else 1), "mlp1")(x)
        if self.swiglu:
            gate, y = jnp.split(y, 2, -1)
            y = nn.silu(gate) * y
        else:
            y = nn.gelu(y, approximate=self.family.tanh)
        return self._dense(x.shape[-1], "mlp2")(y)

    def _branch(self, y: Array, name: str, train: bool) -> Array:
        if self.family.layer_scale:
            y = y * self.param(name, nn.initializers.constant(1e-5), y.shape[-1:]).astype(self.dtype)
        if train and self.drop:
            y = drop_path(y, self.drop, self.make_rng("dropout"), self.axis_name)
        return y

    def _dense(self, width: int, name: str) -> nn.Module:
        return nn.Dense(width, kernel_init=_normal, dtype=self.dtype, name=name)


class AttentionPool(nn.Module):
    """A learned query attends to all patches, then a residual perceptron: the head of SigLIP (Zhai et al. 2023).

    Attributes: see `Layer`.
    """

    heads: int
    hidden: int
    family: Family
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, tokens, D] -> [B, D]."""
        width = x.shape[-1]
        dense = partial(nn.Dense, kernel_init=_normal, dtype=self.dtype)
        probe = self.param("probe", nn.initializers.normal(width**-0.5), (width,)).astype(self.dtype)
        q = dense(width, name="q")(probe).reshape(1, 1, self.heads, -1)
        k, v = (y.reshape(*x.shape[:2], self.heads, -1) for y in jnp.split(dense(2 * width, name="kv")(x), 2, -1))
        y = jax.nn.dot_product_attention(jnp.broadcast_to(q, (len(x), *q.shape[1:])), k, v).reshape(len(x), width)
        y = dense(width, name="out")(y)
        hidden = dense(self.hidden, name="mlp1")(_norm(self.family, self.dtype, "norm")(y))
        return y + dense(width, name="mlp2")(nn.gelu(hidden, approximate=self.family.tanh))


class Stem(nn.Module):
    """Patches, positions, class token and registers.

    Attributes:
      width: D.
      patch: side in pixels.
      registers: tokens without place (Darcet et al. 2024).
      grid: side of the learned positions, in patches.
      resize: see `resized`.
      family: conventions.
      dtype: of the computation; parameters stay float32.
    """

    width: int
    patch: int
    registers: int
    grid: int
    resize: str
    family: Family
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, 3] -> [B, 1 + registers + H / patch * W / patch, D], without the 1 if there is no class token."""
        batch, height, width, channels = x.shape
        rows, columns = height // self.patch, width // self.patch
        x = x.reshape(batch, rows, self.patch, columns, self.patch, channels).swapaxes(2, 3)
        x = x.reshape(batch, rows * columns, -1).astype(self.dtype)
        x = nn.Dense(self.width, kernel_init=_normal, dtype=self.dtype, name="patches")(x)
        if not self.family.rotary:
            positions = self.param("positions", _normal, (self.grid, self.grid, self.width))
            x = x + resized(positions, (rows, columns), self.resize).reshape(1, -1, self.width).astype(self.dtype)
        first = []
        if self.family.class_token:
            first.append(self.param("class_token", _normal, (self.width,))[None])
        if self.registers:
            first.append(self.param("registers", _normal, (self.registers, self.width)))
        if not first:
            return x
        tokens = jnp.concatenate(first).astype(self.dtype)
        return jnp.concatenate([jnp.broadcast_to(tokens, (batch, *tokens.shape)), x], 1)


def _norm(family: Family, dtype: Any, name: str) -> nn.Module:
    return nn.LayerNorm(family.epsilon, dtype=dtype, use_fast_variance=False, name=name)


class ViT(nn.Module):
    """Image -> one level, at the power of 2 nearest to the patch: with patches of 14 pixels the map is sampled at the
    centers of cells of 16, so that strides mean what they do in other backbones.

    The neck "simple" makes a pyramid of it. Sides of the image must be multiples of the patch.

    Attributes:
      size: "tiny", "small", "base", "large", "so400m" or "giant".
      patch: side of a patch in pixels.
      family: conventions of "vit" (timm, DeiT, AugReg), "dinov2", "dinov3" or "siglip".
      registers: tokens without place; DINOv2 with registers and DINOv3 have 4.
      swiglu: gated perceptrons, as in DINOv2's giant model.
      grid: side of the learned positions in patches; 0: that of the family, 224 (DINOv2: 518) / patch.
      resize: how positions are resized to other images: "antialias" (timm), "offset" (DINOv2), "bicubic" (Hugging
        Face); "": as the family's original code does.
      width: in place of the size's.
      depth: number of layers, in place of the size's.
      heads: in place of the size's.
      hidden: width of the perceptrons, in place of the size's.
      drop_path: rate of stochastic depth at the last layer; it grows linearly from 0 at the first.
      frozen: number of first layers, the embedding with them, that do not learn; all of them: nothing does.
      lora: rank of learned updates of the attention's projections, while all else is frozen; 0: none.
      lora_scale: factor of these updates, alpha / rank.
      axis_name: devices that share the batch.
      dtype: of the computation; parameters stay float32.
      remat: compute layers again in the backward pass.

    Raises:
      ValueError: an unknown size or family, numbers that do not fit each other.
    """

    size: str = "small"
    patch: int = 16
    family: str = "vit"
    registers: int = 0
    swiglu: bool = False
    grid: int = 0
    resize: str = ""
    width: int = 0
    depth: int = 0
    heads: int = 0
    hidden: int = 0
    drop_path: float = 0.0
    frozen: int = 0
    lora: int = 0
    lora_scale: float = 1.0
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    def __post_init__(self):
        for name, value, choices in (("size", self.size, SIZES), ("family", self.family, FAMILIES)):
            if value not in choices:
                raise ValueError(f"{name}={value!r}: choices: {', '.join(map(repr, choices))}")
        if self.resize not in ("", *RESIZES):
            raise ValueError(f"resize={self.resize!r}: choices: '', {', '.join(map(repr, RESIZES))}")
        for name in ("patch", "registers", "grid", "width", "depth", "heads", "hidden", "lora"):
            if getattr(self, name) < (name == "patch"):
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {int(name == 'patch')}")
        sizes = self.sizes()
        parts = 4 * sizes.heads if FAMILIES[self.family].rotary else sizes.heads
        if sizes.width % parts:
            raise ValueError(f"width {sizes.width} is not a multiple of {parts}, for {sizes.heads} heads")
        check_options(self.drop_path, self.frozen, sizes.depth, "layers")
        super().__post_init__()

    def sizes(self) -> Size:
        """Width, depth, heads and hidden width that apply."""
        own = SIZES[self.size]
        width = self.width or own.width
        hidden = self.hidden or (own.hidden if not self.width else 0)
        if not hidden:
            hidden = -(-int(8 * width / 3) // 8) * 8 if self.swiglu else 4 * width  # rounded up to 8, as in DINOv2
        return Size(width, self.depth or own.depth, self.heads or own.heads, hidden)

    def learns(self, name: str) -> bool:
        """Whether a parameter, such as "block3/qkv/kernel", is not frozen."""
        if "/lora_" in name or not (self.lora or self.frozen):
            return True
        if self.lora or self.frozen == self.sizes().depth:
            return False
        return not name.startswith(("stem/", *(f"block{i + 1}/" for i in range(self.frozen))))

    def __call__(self, x: Array, *, train: bool) -> Features:
        """Normalized float [B, H, W, 3] -> {stride: [B, ceil(H / stride), ceil(W / stride), D]}."""
        pooled, level = self.tokens(x, train=train)
        stride = 2 ** round(math.log2(self.patch))
        if stride != self.patch:
            level = _at_stride(level, self.patch, stride, x.shape[1:3])
        return Features({stride: level}, pooled)

    @nn.compact
    def tokens(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        """Normalized float [B, H, W, 3] -> pooled float32 [B, D] and patches [B, H / patch, W / patch, D]."""
        if x.ndim != 4 or x.shape[1] % self.patch or x.shape[2] % self.patch:
            shape = " x ".join(map(str, x.shape[1:-1]))
            near = " x ".join(str(max(1, round(n / self.patch)) * self.patch) for n in x.shape[1:-1])
            raise ValueError(f"a frame of {shape} pixels has no whole patches of {self.patch}; {near} has")
        sizes, family = self.sizes(), FAMILIES[self.family]
        grid = x.shape[1] // self.patch, x.shape[2] // self.patch
        resize = self.resize or ("antialias" if self.registers else family.resize)
        side = self.grid or family.image // self.patch
        x = Stem(sizes.width, self.patch, self.registers, side, resize, family, self.dtype, name="stem")(x)
        turn = rotation(grid, sizes.width // sizes.heads) if family.rotary else None
        rates = depth_rates(self.drop_path, [sizes.depth])[0]
        for i in range(sizes.depth):
            layer = Layer(
                sizes.heads,
                sizes.hidden,
                self.swiglu,
                family,
                rates[i],
                self.lora,
                self.lora_scale,
                self.axis_name,
                self.dtype,
                name=f"block{i + 1}",
            )
            x = recomputed(self.remat, layer, x, train=train and i >= self.frozen, turn=turn)
        x = _norm(family, self.dtype, "norm")(x)
        level = x[:, -grid[0] * grid[1] :].reshape(len(x), *grid, -1)
        if family.class_token:
            pooled = x[:, 0]
        else:
            pooled = AttentionPool(sizes.heads, sizes.hidden, family, self.dtype, name="pool")(x)
        return pooled.astype(jnp.float32), level
