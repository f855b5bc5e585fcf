"""Photographs to `pixel_values`: any number of views a scene, any size and orientation, one size out.

Pixels are uint8 and not normalised: the model does that itself. Works without torchvision.

| mode | what it does |
|---|---|
| crop | the largest centred window of the wanted aspect, resized; the default |
| pad | the whole image, resized to whole patches, centred on white; `patch_mask` is False on the padding |
| stretch | the whole image, resized without keeping its aspect |
| vggt_crop | VGGT's own loader: width as configured, height follows in whole patches, tall images are cropped |
| vggt_pad | VGGT's own loader: longest side as configured, centred on a white square, padding is not masked |
| vggt_square | VGGT's own loader: centred on a black square, then resized |

In the modes vggt_crop and vggt_pad sides are rounded as the VGGT authors do: Python's round, half to even.
"""

import os
import re
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import load_image

MODES = ("crop", "pad", "stretch", "vggt_crop", "vggt_pad", "vggt_square")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MIN_SIDE_PX = 14
MAX_PIXELS = 100_000_000
MAX_ASPECT = 10.0
MAX_THREADS = 8
MAX_PATH_CHARS = 4096
EXIF_ORIENTATION = 0x0112
BOOKKEEPING_KEYS = ("image_processor_type", "processor_class", "auto_map")
WHITE = 255

View = Any  # PIL image, array, tensor, path, encoded bytes, {"bytes", "path"} mapping or URL
Pixels = Image.Image | NDArray[np.uint8]


class VggtQwen3ImageProcessorKwargs(TypedDict, total=False):
    """Every option of `VggtQwen3ImageProcessor`; another is refused."""

    size: Any
    resample: int
    mode: str
    patch_size: int
    max_views: int


class Placement(NamedTuple):
    """Where an image comes to lie: the window `source` (left, top, right, bottom) of its pixels is resized to `content`
    (left, top, width, height) on a canvas (height, width); what reaches beyond the canvas is cut off."""

    source: tuple[float, float, float, float]
    content: tuple[int, int, int, int]
    canvas: tuple[int, int]

    @property
    def pixel_transform(self) -> tuple[float, float, float, float]:
        """(scale_x, scale_y, offset_x, offset_y) with u' = scale_x * u + offset_x, as `resize_intrinsics` has it."""
        left, top, right, bottom = self.source
        scale_x, scale_y = self.content[2] / (right - left), self.content[3] / (bottom - top)
        return scale_x, scale_y, self.content[0] - left * scale_x, self.content[1] - top * scale_y

    def centred_on(self, canvas: tuple[int, int]) -> "Placement":
        """The same image in the middle of a larger canvas."""
        left, top, width, height = self.content
        top_pad, left_pad = (canvas[0] - self.canvas[0]) // 2, (canvas[1] - self.canvas[1]) // 2
        return Placement(self.source, (left + left_pad, top + top_pad, width, height), canvas)


class VggtQwen3ImageProcessor(PilBackend):
    """Turns the views of one or several scenes into uint8 pixels of one size.

    Args:
        size: {"height", "width"} of the output in pixels, or one number for both, multiples of `patch_size`.
        mode: see the table of the module.
        resample: PIL filter, bicubic by default.
        patch_size: side of a patch of the vision encoder in pixels.
        max_views: most views a scene may have.

    Raises:
        TypeError: an unknown option.
        ValueError: an unknown mode, or a size that patches do not tile.
    """

    valid_kwargs = VggtQwen3ImageProcessorKwargs
    model_input_names: ClassVar[list[str]] = ["pixel_values", "view_mask"]
    _auto_class = "AutoImageProcessor"

    size: ClassVar[dict[str, int]] = {"height": 448, "width": 448}
    resample = Image.Resampling.BICUBIC
    mode = "crop"
    patch_size = 14
    max_views = 32

    def __init__(self, **kwargs: Any) -> None:
        options = self.valid_kwargs.__annotations__
        unknown = [key for key in kwargs if key not in options and key not in BOOKKEEPING_KEYS]
        if unknown:
            raise TypeError(f"{type(self).__name__} knows {', '.join(options)}, not {', '.join(unknown)}")
        if isinstance(kwargs.get("size"), int):
            kwargs["size"] = {"height": kwargs["size"], "width": kwargs["size"]}
        super().__init__(**kwargs)
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}, wanted one of {', '.join(MODES)}")
        sides = (self.size.height, self.size.width)
        if None in sides or any(side <= 0 or side % self.patch_size for side in sides):
            raise ValueError(
                f"size is {dict(self.size)}, wanted height and width in multiples of the patch size {self.patch_size}"
            )
        if self.mode.startswith("vggt") and self.size.height != self.size.width:
            raise ValueError(f"mode {self.mode} wants a square size, got {dict(self.size)}")

    def preprocess(self, images: Any, return_tensors: str | None = None) -> BatchFeature:
        """Reads, orients and resizes the views.

        Args:
            images: one scene (a view, a list of views, a [views, ...] array, or a folder of images) or a list of
                scenes. A view is a PIL image, an array or tensor (uint8 or floating within [0, 1]; channels last, first
                or absent), a path, encoded bytes, a {"bytes", "path"} mapping, a URL or a base64 text. EXIF orientation
                is applied; transparency is shown on white.
            return_tensors: "pt", "np" or None (numpy).

        Returns:
            pixel_values uint8 [scenes, views, 3, height, width], zero where padded; view_mask bool [scenes, views];
            pixel_transform float64 [scenes, views, 4] and source_size int64 [scenes, views, 2] (height, width of the
            upright image), from which intrinsics and depth follow; exif_turned bool [scenes, views], the image was
            stored in another orientation; in mode "pad" patch_mask bool [scenes, views, patches].

        Raises:
            ValueError: no image, more than `max_views`, an image that cannot be read or whose size or values are
                absurd, scenes that come out at different sizes (mode vggt_crop); names the view and the file.
            FileNotFoundError: a path that does not exist.
        """
        scenes = collect_scenes(images)
        for index, scene in enumerate(scenes):
            if len(scene) > self.max_views:
                raise ValueError(
                    f"scene {index} has {len(scene)} views, at most {self.max_views} are taken: choose fewer, "
                    "or raise max_views of the image processor"
                )
        names = [_view_name(view, s, v) for s, scene in enumerate(scenes) for v, view in enumerate(scene)]
        views = [view for scene in scenes for view in scene]
        with _Workers(len(views)) as workers:
            opened = workers.map(_open_view, views, names)
            placements = self._place([_size_of(pixels) for pixels, _ in opened], [len(scene) for scene in scenes])
            rendered = workers.map(self._render, [pixels for pixels, _ in opened], placements)
        return self._batch(scenes, opened, placements, rendered, return_tensors)

    def _batch(
        self,
        scenes: list[list[View]],
        opened: list[tuple[Pixels, bool]],
        placements: list[Placement],
        rendered: list[NDArray[np.uint8]],
        return_tensors: str | None,
    ) -> BatchFeature:
        counts = np.array([len(scene) for scene in scenes])
        view_mask = np.arange(counts.max()) < counts[:, None]

        def padded(values: list[Any], dtype: Any) -> NDArray[Any]:
            flat = np.asarray(values, dtype=dtype)
            out = np.zeros((*view_mask.shape, *flat.shape[1:]), dtype=dtype)
            out[view_mask] = flat
            return out

        data = {
            "pixel_values": padded(rendered, np.uint8),
            "view_mask": view_mask,
            "pixel_transform": padded([placement.pixel_transform for placement in placements], np.float64),
            "source_size": padded([_size_of(pixels)[::-1] for pixels, _ in opened], np.int64),
            "exif_turned": padded([turned for _, turned in opened], np.bool_),
        }
        if self.mode == "pad":
            data["patch_mask"] = padded([self._patch_mask(placement) for placement in placements], np.bool_)
        return BatchFeature(data, tensor_type=return_tensors)

    def _place(self, sizes: list[tuple[int, int]], counts: list[int]) -> list[Placement]:
        """Placements of all views (widths and heights given), on one common canvas."""
        placements = [self._placement(width, height) for width, height in sizes]
        canvases = [placement.canvas for placement in placements]
        starts = np.cumsum([0, *counts])
        per_scene = {tuple(np.max(canvases[a:b], axis=0).tolist()) for a, b in pairwise(starts)}
        if len(per_scene) > 1:
            raise ValueError(
                f"mode {self.mode} gives these scenes different sizes {sorted(per_scene)}: process them one at a time, "
                "or use the mode crop, pad or stretch"
            )
        canvas = per_scene.pop()
        return [placement.centred_on(canvas) for placement in placements]

    def _placement(self, width: int, height: int) -> Placement:
        canvas = (self.size.height, self.size.width)
        whole = (0.0, 0.0, float(width), float(height))
        if self.mode == "stretch":
            return Placement(whole, (0, 0, canvas[1], canvas[0]), canvas)
        if self.mode == "crop":
            return Placement(_centred_window(width, height, canvas), (0, 0, canvas[1], canvas[0]), canvas)
        if self.mode == "pad":
            return Placement(whole, self._fitted(width, height), canvas)
        return self._vggt_placement(width, height, self.size.width)

    def _vggt_placement(self, width: int, height: int, target: int) -> Placement:
        """The loader modes of the VGGT authors, for the side `target` (theirs: 518)."""
        patch = self.patch_size
        whole = (0.0, 0.0, float(width), float(height))
        if self.mode == "vggt_square":
            side = max(width, height)
            left, top = (side - width) // 2, (side - height) // 2
            window = (float(-left), float(-top), float(side - left), float(side - top))
            return Placement(window, (0, 0, target, target), (target, target))
        if self.mode == "vggt_crop":
            new_height = round(height * (target / width) / patch) * patch
            top = max(0, new_height - target) // 2
            return Placement(whole, (0, -top, target, new_height), (min(new_height, target), target))
        if width >= height:
            new_width, new_height = target, round(height * (target / width) / patch) * patch
        else:
            new_width, new_height = round(width * (target / height) / patch) * patch, target
        left, top = (target - new_width) // 2, (target - new_height) // 2
        return Placement(whole, (left, top, new_width, new_height), (target, target))

    def _fitted(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Largest rectangle of whole patches with the image's aspect, centred: (left, top, width, height)."""
        patch = self.patch_size
        scale = min(self.size.width / width, self.size.height / height)

        def along(side: int, available: int) -> tuple[int, int]:
            patches = min(max(1, round(side * scale / patch)), available // patch)
            return (available // patch - patches) // 2 * patch, patches * patch

        left, new_width = along(width, self.size.width)
        top, new_height = along(height, self.size.height)
        return left, top, new_width, new_height

    def _patch_mask(self, placement: Placement) -> NDArray[np.bool_]:
        left, top, width, height = (value // self.patch_size for value in placement.content)
        mask = np.zeros((self.size.height // self.patch_size, self.size.width // self.patch_size), dtype=np.bool_)
        mask[top : top + height, left : left + width] = True
        return mask.reshape(-1)

    def _render(self, pixels: Pixels, placement: Placement) -> NDArray[np.uint8]:
        """Resizes the image and lays it on its canvas: [3, height, width]."""
        width, height = _size_of(pixels)
        left, top, new_width, new_height = placement.content
        untouched = placement.source == (0, 0, width, height) and (new_width, new_height) == (width, height)
        content = np.asarray(pixels) if untouched else self._resized(pixels, placement)
        if placement.canvas == (new_height, new_width):
            return np.ascontiguousarray(content.transpose(2, 0, 1))
        canvas = np.full((*placement.canvas, 3), WHITE, dtype=np.uint8)
        rows = slice(max(0, top), min(top + new_height, placement.canvas[0]))
        columns = slice(max(0, left), min(left + new_width, placement.canvas[1]))
        canvas[rows, columns] = content[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        return np.ascontiguousarray(canvas.transpose(2, 0, 1))

    def _resized(self, pixels: Pixels, placement: Placement) -> NDArray[np.uint8]:
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        window = placement.source
        if min(window) < 0:
            image = image.crop(tuple(round(edge) for edge in window))  # beyond the image PIL fills in black
            window = (0, 0, *image.size)
        return np.asarray(image.resize(placement.content[2:], Image.Resampling(self.resample), box=window))


def collect_scenes(images: Any) -> list[list[View]]:
    """Sorts what a caller may pass as `images` into a list of scenes, each a list of views.

    Raises:
        ValueError: nothing there, views mixed with scenes, or a type that is no image; says which entry.
    """
    if images is None:
        raise ValueError("no image: pass at least one view, or images=None together with text that shows none")
    if _is_scene(images):
        return [_scene_views(images, "images")]
    if _is_view(images):
        return [[images]]
    entries = list(images) if isinstance(images, Sequence) or getattr(images, "ndim", 0) == 5 else None
    if entries is None:
        raise ValueError(f"images is a {type(images).__name__}, wanted views or a list of views or of scenes")
    if not entries:
        raise ValueError("images is empty: wanted at least one view")
    are_scenes = [_is_scene(entry) or isinstance(entry, list | tuple) for entry in entries]
    if not any(are_scenes):
        return [_scene_views(entries, "images")]
    if not all(are_scenes):
        raise ValueError(f"images mixes views and scenes: entry {are_scenes.index(False)} is no list of views")
    return [_scene_views(entry, f"scene {index}") for index, entry in enumerate(entries)]


def _scene_views(scene: Any, name: str) -> list[View]:
    if isinstance(scene, str | os.PathLike):
        return list(folder_images(scene))
    views = list(scene)
    if not views:
        raise ValueError(f"{name} has no image: wanted at least one view")
    for index, view in enumerate(views):
        if not _is_view(view):
            raise ValueError(
                f"view {index} of {name} is a {type(view).__name__}, wanted a PIL image, an array or tensor of 2 or 3 "
                "dimensions, a path, bytes, or a URL"
            )
    return views


def folder_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files of a folder in natural order (frame-2 before frame-10).

    Raises:
        ValueError: the folder holds none.
    """
    found = [path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    if not found:
        raise ValueError(f"the folder {os.fspath(folder)} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return sorted(found, key=lambda path: [int(p) if p.isdigit() else p.lower() for p in re.split(r"(\d+)", path.name)])


class _Workers:
    """Maps functions over several views in threads: decoding and resizing leave Python to others."""

    def __init__(self, num_views: int) -> None:
        threads = min(num_views, MAX_THREADS, os.cpu_count() or 1)
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[..., Any], *arguments: Sequence[Any]) -> list[Any]:
        return list((self.pool.map if self.pool else map)(function, *arguments))


def _is_remote(view: Any) -> bool:
    """A URL, a data URI, or text too long for a path, which is taken for base64."""
    return isinstance(view, str) and (view.startswith(("http://", "https://", "data:")) or len(view) > MAX_PATH_CHARS)


def _is_encoded(view: Any) -> bool:
    return isinstance(view, str | os.PathLike | bytes | bytearray | dict)


def _is_view(value: Any) -> bool:
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.ndim in (2, 3)
    return isinstance(value, Image.Image) or _is_encoded(value)


def _is_scene(value: Any) -> bool:
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.ndim == 4
    return isinstance(value, str | os.PathLike) and not _is_remote(value) and Path(value).is_dir()


def _view_name(view: View, scene_index: int, view_index: int) -> str:
    where = f"view {view_index} of scene {scene_index}"
    file = view.get("path") if isinstance(view, dict) else getattr(view, "filename", None)
    if isinstance(view, str | os.PathLike):
        file = os.fspath(view)[:200]
    return f"{where} ({file})" if file else where


def _size_of(pixels: Pixels) -> tuple[int, int]:
    """(width, height)."""
    return pixels.size if isinstance(pixels, Image.Image) else (pixels.shape[1], pixels.shape[0])


def _open_view(view: View, name: str) -> tuple[Pixels, bool]:
    """The view as an upright RGB image or [height, width, 3] array, and whether EXIF orientation turned it."""
    if isinstance(view, np.ndarray | torch.Tensor):
        return _array_to_rgb(view, name), False
    if isinstance(view, Image.Image):
        return _upright_rgb(view, name)
    if _is_remote(view):
        return _upright_rgb(load_image(view), name)
    if isinstance(view, dict):
        view = view.get("path") if view.get("bytes") is None else view["bytes"]
        if view is None:
            raise ValueError(f"{name} is a mapping with neither bytes nor path")
    if isinstance(view, str | os.PathLike) and not Path(view).is_file():
        raise FileNotFoundError(f"{name}: there is no such file")
    try:
        image = Image.open(BytesIO(view) if isinstance(view, bytes | bytearray) else view)
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is no image that can be read") from error
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be opened: {error}") from error
    with image:
        return _upright_rgb(image, name)


def _upright_rgb(image: Image.Image, name: str) -> tuple[Image.Image, bool]:
    _check_size(*image.size, name)
    if image.mode.startswith("I") or image.mode == "F":
        raise ValueError(f"{name} has the pixel mode {image.mode}, wanted an 8-bit image: convert it to RGB first")
    try:
        image.load()
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        upright = ImageOps.exif_transpose(image) if orientation != 1 else image
        if upright.mode == "RGB":
            return upright, orientation != 1
        if "A" in upright.getbands() or "transparency" in upright.info:
            upright = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, (WHITE,) * 4), upright)
        return upright.convert("RGB"), orientation != 1
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise ValueError(f"{name} cannot be decoded: {error}; the file is damaged or cut short") from error


def _array_to_rgb(view: NDArray[Any] | torch.Tensor, name: str) -> NDArray[np.uint8]:
    array = view.detach().cpu().numpy() if isinstance(view, torch.Tensor) else view
    array = array[..., None] if array.ndim == 2 else array
    first, last = array.shape[0] in (1, 3, 4), array.shape[-1] in (1, 3, 4)
    if first == last:
        raise ValueError(
            f"{name} has shape {view.shape}, wanted height x width x channels or channels x height x width"
        )
    array = array.transpose(1, 2, 0) if first else array
    _check_size(array.shape[1], array.shape[0], name)
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError(f"{name} is floating and not within [0, 1]: wanted uint8, or colours divided by 255")
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ValueError(f"{name} has dtype {array.dtype}, wanted uint8 or floating within [0, 1]")
    channels = array.shape[-1]
    if channels == 4:
        return np.asarray(_upright_rgb(Image.fromarray(np.ascontiguousarray(array), "RGBA"), name)[0])
    return np.repeat(array, 3, axis=-1) if channels == 1 else array


def _check_size(width: int, height: int, name: str) -> None:
    short, long = sorted((width, height))
    if short < MIN_SIDE_PX or short * long > MAX_PIXELS or long > MAX_ASPECT * short:
        raise ValueError(
            f"{name} is {width} x {height} pixels, wanted sides of at least {MIN_SIDE_PX}, at most {MAX_PIXELS:,} "
            f"pixels and an aspect of at most {MAX_ASPECT:g} to 1"
        )


def _centred_window(width: int, height: int, canvas: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest window with the canvas' aspect in the middle of an image: (left, top, right, bottom)."""
    scale = max(canvas[1] / width, canvas[0] / height)
    left = max(0.0, (width - canvas[1] / scale) / 2)
    top = max(0.0, (height - canvas[0] / scale) / 2)
    return left, top, width - left, height - top
