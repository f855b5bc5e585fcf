"""Depth maps as they come (16-bit PNG, arrays, metres or millimetres) to metres on the grid of the model's image."""

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

MILLIMETRES = 1000.0
MAX_DEPTH_M = 1000.0
ASPECT_TOLERANCE = 0.02

Depth = NDArray[np.float32]


def read_depth(depth: Any, name: str) -> Depth:
    """A depth map in metres, 0 where invalid.

    Args:
        depth: array or tensor [height, width] (integer: millimetres, floating: metres), a PIL image of mode I or I;16
            (millimetres) or F (metres), or a path, encoded bytes or a {"bytes", "path"} mapping of such an image.
        name: what errors call it.

    Returns:
        float32 [height, width]; values that are not finite count as invalid.

    Raises:
        ValueError: no single-channel depth image, negative values, or values beyond 1000 m.
        FileNotFoundError: a path that does not exist.
    """
    if isinstance(depth, dict):
        depth = depth.get("path") if depth.get("bytes") is None else depth["bytes"]
    if isinstance(depth, str | os.PathLike | bytes | bytearray):
        depth = _open_depth(depth, name)
    if isinstance(depth, Image.Image):
        if not (depth.mode.startswith("I") or depth.mode == "F"):
            raise ValueError(f"{name} has the pixel mode {depth.mode}, wanted 16-bit millimetres (I;16) or metres (F)")
        depth = np.asarray(depth)
    array = depth.detach().cpu().numpy() if isinstance(depth, torch.Tensor) else np.asarray(depth)
    if array.ndim != 2 or array.dtype.kind not in "uif":
        raise ValueError(f"{name} has shape {array.shape} and dtype {array.dtype}, wanted [height, width] of numbers")
    scale = 1.0 if array.dtype.kind == "f" else 1.0 / MILLIMETRES
    metres = np.nan_to_num(array.astype(np.float32) * np.float32(scale), nan=0.0, posinf=0.0, neginf=0.0)
    if metres.size and (metres.min() < 0 or metres.max() > MAX_DEPTH_M):
        raise ValueError(
            f"{name} spans {metres.min():g} to {metres.max():g} m, wanted 0 (invalid) to {MAX_DEPTH_M:g} m: "
            "floating depth is metres, integer depth millimetres"
        )
    return metres


def depth_on_image(
    depth_m: Depth,
    pixel_transform: tuple[float, float, float, float],
    source_size: tuple[int, int],
    size: tuple[int, int],
    name: str,
) -> Depth:
    """Samples a depth map at the pixel centres of the model's image, nearest neighbour.

    Args:
        depth_m: [height, width] over the field of view of the source image, at that or another resolution.
        pixel_transform: scale_x, scale_y, offset_x, offset_y from the source image to the model's image.
        source_size: (height, width) of the upright source image.
        size: (height, width) of the model's image.
        name: what errors call it.

    Returns:
        float32 [height, width] at `size`; 0 beyond the source image.

    Raises:
        ValueError: the aspect differs from the image's by more than 2 %.
    """
    height, width = depth_m.shape
    aspect_ratio = (width / height) / (source_size[1] / source_size[0])
    if abs(aspect_ratio - 1.0) > ASPECT_TOLERANCE:
        raise ValueError(
            f"{name} is {width} x {height} pixels beside an image of {source_size[1]} x {source_size[0]}: another "
            "resolution is fine, another aspect is not; register the depth to the image first"
        )
    scale_x, scale_y, offset_x, offset_y = pixel_transform
    if (scale_x, scale_y, offset_x, offset_y) == (1.0, 1.0, 0.0, 0.0) and depth_m.shape == size:
        return depth_m
    columns = np.floor((np.arange(size[1]) + 0.5 - offset_x) / scale_x * (width / source_size[1])).astype(np.int64)
    rows = np.floor((np.arange(size[0]) + 0.5 - offset_y) / scale_y * (height / source_size[0])).astype(np.int64)
    sampled = depth_m[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)]
    sampled[(rows < 0) | (rows >= height)] = 0.0
    sampled[:, (columns < 0) | (columns >= width)] = 0.0
    return sampled


def _open_depth(source: str | os.PathLike[str] | bytes | bytearray, name: str) -> NDArray[Any]:
    is_path = isinstance(source, str | os.PathLike)
    if is_path and not Path(source).is_file():
        raise FileNotFoundError(f"{name}: there is no file {os.fspath(source)}")
    shown = f"{name} ({os.fspath(source)})" if is_path else name
    try:
        with Image.open(source if is_path else BytesIO(source)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{shown} cannot be decoded as a depth image: {error}") from error
    return image
