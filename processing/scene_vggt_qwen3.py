"""Cameras and depth of scenes to the geometry keys of the batch table (it stands in processing_vggt_qwen3)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .depth_vggt_qwen3 import depth_on_image, read_depth
from .geometry_vggt_qwen3 import (
    NUM_DEPTH_BINS,
    depth_histogram,
    invert_rigid,
    patch_points,
    ref_from_world,
    resize_intrinsics,
    validate_intrinsics,
    validate_world_from_cam,
)

Arrays = dict[str, NDArray[Any]]


class ViewLayout(NamedTuple):
    """How the views of a batch came to be: what cameras and depth need to know of the images.

    view_mask bool [S,V]; pixel_transform [S,V,4] (scale_x, scale_y, offset_x, offset_y) from the upright source image
    to the model's; source_size [S,V,2] (height, width); exif_turned bool [S,V]; size (height, width) of the model's
    image.
    """

    view_mask: NDArray[np.bool_]
    pixel_transform: NDArray[np.float64]
    source_size: NDArray[np.int64]
    exif_turned: NDArray[np.bool_]
    size: tuple[int, int]

    @classmethod
    def of_counts(cls, counts: Sequence[int], size: tuple[int, int]) -> "ViewLayout":
        """Views that already have the model's size, for encoder outputs that stand in for images."""
        if not counts or min(counts) < 1:
            raise ValueError(f"num_views is {counts}, wanted at least one view a scene")
        view_mask = np.arange(max(counts)) < np.asarray(counts)[:, None]
        shape = view_mask.shape
        transform = np.broadcast_to([1.0, 1.0, 0.0, 0.0], (*shape, 4))
        return cls(view_mask, transform, np.broadcast_to(size, (*shape, 2)), np.zeros(shape, dtype=np.bool_), size)


def geometry_arrays(layout: ViewLayout, intrinsics: Any, world_from_cam: Any, depth: Any, patch_size: int) -> Arrays:
    """geometry_mask, ref_from_cam, intrinsics, depth_hist, patch_points, patch_points_mask and world_from_ref.

    Args:
        layout: of the batch's views.
        intrinsics: a scene [views, 3, 3] in pixels of its source images, or a list of that or None, one a scene.
        world_from_cam: a scene [views, 4, 4], or a list of that or None, one a scene.
        depth: a scene's maps, or a list of that or None, one a scene; each map as `read_depth` takes it, or None.
        patch_size: side of a patch in pixels.

    Raises:
        ValueError: a camera without its other half, depth without cameras, counts that do not match the views, cameras
            of images turned by EXIF, or values that geometry and depth refuse; names the scene and the view.
    """
    num_scenes = len(layout.view_mask)
    k = _per_scene(intrinsics, num_scenes, "intrinsics", _is_matrix_stack)
    cameras = _per_scene(world_from_cam, num_scenes, "world_from_cam", _is_matrix_stack)
    maps = _per_scene(depth, num_scenes, "depth", _is_map_stack)
    arrays = _unknown_geometry(layout, patch_size)
    for scene in range(num_scenes):
        if _has_geometry(scene, k[scene], cameras[scene], maps[scene]):
            _fill_cameras(arrays, layout, scene, k[scene], cameras[scene])
            if maps[scene] is not None:
                _fill_depth(arrays, layout, scene, maps[scene], patch_size)
    return arrays


def _unknown_geometry(layout: ViewLayout, patch_size: int) -> Arrays:
    num_scenes, num_views = layout.view_mask.shape
    num_patches = (layout.size[0] // patch_size) * (layout.size[1] // patch_size)
    eye = np.eye(4, dtype=np.float32)
    return {
        "geometry_mask": np.zeros(num_scenes, dtype=np.bool_),
        "ref_from_cam": np.tile(eye, (num_scenes, num_views, 1, 1)),
        "intrinsics": np.tile(eye[:3, :3], (num_scenes, num_views, 1, 1)),
        "depth_hist": np.zeros((num_scenes, num_views, NUM_DEPTH_BINS), dtype=np.float32),
        "patch_points": np.zeros((num_scenes, num_views, num_patches, 3), dtype=np.float32),
        "patch_points_mask": np.zeros((num_scenes, num_views, num_patches), dtype=np.bool_),
        "world_from_ref": np.full((num_scenes, 4, 4), np.nan, dtype=np.float32),
    }


def _has_geometry(scene: int, intrinsics: Any, world_from_cam: Any, depth: Any) -> bool:
    if (intrinsics is None) != (world_from_cam is None):
        given, missing = "intrinsics", "world_from_cam"
        if intrinsics is None:
            given, missing = missing, given
        raise ValueError(f"scene {scene} has {given} but no {missing}: give both, or neither if cameras are unknown")
    if intrinsics is None and depth is not None:
        raise ValueError(
            f"scene {scene} has depth but no cameras to place it with: give intrinsics and world_from_cam, or leave "
            "depth out"
        )
    return intrinsics is not None


def _fill_cameras(arrays: Arrays, layout: ViewLayout, scene: int, intrinsics: Any, world_from_cam: Any) -> None:
    count = int(layout.view_mask[scene].sum())
    k = validate_intrinsics(intrinsics, f"scene {scene}: intrinsics")
    cameras = validate_world_from_cam(world_from_cam, f"scene {scene}: world_from_cam")
    for name, found in (("intrinsics", k), ("world_from_cam", cameras)):
        if found.ndim != 3 or len(found) != count:
            raise ValueError(f"scene {scene} has {count} views, but {name} has the shape {found.shape}: one a view")
    if layout.exif_turned[scene].any():
        view = int(layout.exif_turned[scene].argmax())
        raise ValueError(
            f"view {view} of scene {scene} is stored in another EXIF orientation, so which way its camera is held is "
            "unclear: save the image upright, with the camera of the upright image"
        )
    ref = ref_from_world(cameras[0])
    arrays["geometry_mask"][scene] = True
    arrays["intrinsics"][scene, :count] = resize_intrinsics(k, *layout.pixel_transform[scene, :count].T)
    arrays["ref_from_cam"][scene, :count] = ref @ cameras
    arrays["world_from_ref"][scene] = invert_rigid(ref)


def _fill_depth(arrays: Arrays, layout: ViewLayout, scene: int, maps: Any, patch_size: int) -> None:
    count = int(layout.view_mask[scene].sum())
    if len(maps) != count:
        raise ValueError(f"scene {scene} has {count} views, but depth has {len(maps)} maps: one a view, or None")
    depth_m = np.zeros((count, *layout.size), dtype=np.float32)
    for view, depth in enumerate(maps):
        if depth is not None:
            name = f"depth of view {view} of scene {scene}"
            transform, source = layout.pixel_transform[scene, view], layout.source_size[scene, view]
            depth_m[view] = depth_on_image(read_depth(depth, name), transform, source, layout.size, name)
    points, mask = patch_points(
        depth_m, arrays["intrinsics"][scene, :count], arrays["ref_from_cam"][scene, :count], patch_size
    )
    arrays["patch_points"][scene, :count] = points
    arrays["patch_points_mask"][scene, :count] = mask
    arrays["depth_hist"][scene, :count] = depth_histogram(depth_m)


def _per_scene(value: Any, num_scenes: int, name: str, is_scene: Any) -> list[Any]:
    """One entry a scene; a lone scene may be passed as it is."""
    if value is None:
        return [None] * num_scenes
    entries = list(value)
    if len(entries) == num_scenes and all(entry is None or is_scene(entry) for entry in entries):
        return entries
    if num_scenes == 1:
        return [value]
    raise ValueError(f"{name} holds {len(entries)} entries for {num_scenes} scenes: one a scene, None where unknown")


def _is_matrix_stack(value: Any) -> bool:
    return np.ndim(value) == 3


def _is_map_stack(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 3)
