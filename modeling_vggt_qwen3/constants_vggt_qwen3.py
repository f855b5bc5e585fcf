"""Tensors that depend on sizes alone, each made once: rotary tables, resizing matrices, the statistics of images.

Float32 whatever the dtype of the weights, and no part of any state dict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
MAX_CACHED = 32

RotaryTables = tuple[torch.Tensor, torch.Tensor]
Constant = TypeVar("Constant")
_held_constants: ContextVar[list[object] | None] = ContextVar("held_constants", default=None)


def once_per_key(make: Callable[..., Constant]) -> Callable[..., Constant]:
    """Keeps the constant tensors that `make` returns for its last arguments.

    They are neither parameters nor buffers, so that no cast, meta-device initialisation or state dict touches them.
    A compiler traces `make` itself. Outside inference mode, since a tensor made in it could not serve training later.
    """
    cached = lru_cache(maxsize=MAX_CACHED)(make)

    @wraps(make)
    def get(*key: Any) -> Constant:
        if torch.compiler.is_compiling():
            return make(*key)
        with torch.inference_mode(False), torch.no_grad():
            constant = cached(*key)
        held = _held_constants.get()
        if held is not None:
            held.append(constant)
        return constant

    return get


@contextmanager
def hold_constants() -> Iterator[list[object]]:
    """Collects the constants that are asked for within: a CUDA graph reads them where they lie, so they must stay."""
    token = _held_constants.set(held := [])
    try:
        yield held
    finally:
        _held_constants.reset(token)


def rotary_tables(positions: torch.Tensor, head_dim: int, theta: float) -> RotaryTables:
    """Cosines and sines of the two-dimensional rotary embedding.

    Source: Su et al., "RoFormer", 2021; Heo et al., "Rotary Position Embedding for Vision Transformer", ECCV 2024.

    Args:
        positions: [T, 2], row and column of each token.
        head_dim: size of an attention head: one half turns with the row, the other with the column.
        theta: base of the frequencies.

    Returns:
        Two float32 tensors [T, 2, head_dim / 4].
    """
    exponents = torch.arange(0, head_dim // 2, 2, device=positions.device, dtype=torch.float32) / (head_dim // 2)
    angles = positions.float().unsqueeze(-1) / theta**exponents
    return angles.cos(), angles.sin()


def apply_rotary(x: torch.Tensor, tables: RotaryTables) -> torch.Tensor:
    """Turns the heads [..., T, heads, head_dim] by their tokens' positions; float32 in, float32 out."""
    cos, sin = (table.unsqueeze(1) for table in tables)  # [T, 1, 2, head_dim / 4]
    first, second = x.unflatten(-1, (2, 2, -1)).unbind(-2)  # each [..., T, heads, 2, head_dim / 4]
    turned = (
        torch.addcmul(first * cos, second, sin, value=-1),
        torch.addcmul(second * cos, first, sin),
    )
    return torch.stack(turned, dim=-2).flatten(-3)


@once_per_key
def grid_rotary_tables(
    rows: int, columns: int, num_special: int, head_dim: int, theta: float, device: torch.device
) -> RotaryTables:
    """Tables of one view: special tokens at (0, 0), which turns nothing, then the patches from (1, 1), row by row."""
    y, x = torch.meshgrid(
        torch.arange(1, rows + 1, device=device), torch.arange(1, columns + 1, device=device), indexing="ij"
    )
    patches = torch.stack((y, x), dim=-1).flatten(0, 1)
    return rotary_tables(F.pad(patches, (0, 0, num_special, 0)), head_dim, theta)


@once_per_key
def resize_matrix(size: int, new_size: int, device: torch.device) -> torch.Tensor:
    """Bicubic, antialiased resizing along one axis, written as a matrix, float32 [new_size, size]."""
    basis = torch.eye(size, device=device)[None, :, :, None]  # [1, size (channels), size, 1]
    images = basis.expand(-1, -1, -1, size).contiguous()  # torch resizes images one pixel wide wrongly on the CPU
    return F.interpolate(images, size=(new_size, size), mode="bicubic", antialias=True)[0, :, :, 0].T


@once_per_key
def image_statistics(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the colour channels of ImageNet, float32 [3, 1, 1]."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return mean, std


def normalize_pixels(pixel_values: torch.Tensor) -> torch.Tensor:
    """RGB [..., 3, H, W], uint8 or float in [0, 1] -> float32 with the mean and deviation of ImageNet taken out."""
    pixels = pixel_values.float()
    if pixel_values.dtype == torch.uint8:
        pixels = pixels / 255
    mean, std = image_statistics(pixel_values.device)
    return (pixels - mean) / std
