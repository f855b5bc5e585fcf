"""Oriented boxes of the schema (targets): their corners, and how much of one a camera sees."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datasets_scripts.capture import SourceError
from processing.geometry_vggt_qwen3 import invert_rigid, transform_points

Float = NDArray[np.float64]
Target = dict[str, Any]

MAX_TILT_DEG = 5.0
NEAR_M = 0.1
SURFACE_SAMPLES = 6
OCCLUSION_MARGIN_M = 0.15

# Corner i has the signs of bits 0, 1 and 2 of i along axes 0, 1 and 2; an edge joins corners that differ in one bit.
CORNER_SIGNS = np.array([[1 if i >> axis & 1 else -1 for axis in range(3)] for i in range(8)], dtype=np.float64)
EDGES = tuple((i, i | 1 << axis) for i in range(8) for axis in range(3) if not i >> axis & 1)


def upright_target(label: str, kind: str, center: ArrayLike, size: ArrayLike, axes: ArrayLike, where: str) -> Target:
    """A target from a box whose axis 2 is vertical up to a few degrees, as measured boxes are.

    Args:
        label, kind, center [3], size [3]: as the schema's target.
        axes: [3, 3], rows are the axes of the box in the world.
        where: what errors call the box.

    Raises:
        SourceError: axes that are not orthonormal within 1 %, or tilt by more than 5 degrees.
    """
    rows = np.asarray(axes, dtype=np.float64)
    if not np.allclose(rows @ rows.T, np.eye(3), atol=1e-2):
        raise SourceError(f"{where}: the axes {rows.round(3).tolist()} are not orthonormal")
    if abs(rows[2, 2]) < np.cos(np.radians(MAX_TILT_DEG)):
        raise SourceError(f"{where}: its third axis {rows[2].round(3).tolist()} is not vertical")
    # Axis 1 of a plane is its normal and must stay exact in direction; axis 0 follows from it.
    normal = np.array([rows[1, 0], rows[1, 1], 0.0]) / np.hypot(rows[1, 0], rows[1, 1])
    across = np.array([normal[1], -normal[0], 0.0])
    return {
        "label": label,
        "kind": kind,
        "center": [float(value) for value in np.asarray(center)],
        "size": [float(value) for value in np.asarray(size)],
        "axes": np.stack([across, normal, [0.0, 0.0, 1.0]]).tolist(),
    }


def box_corners(target: Target) -> Float:
    """The corners [8, 3] of a target in the world, in the order of CORNER_SIGNS."""
    half = CORNER_SIGNS * np.asarray(target["size"]) / 2
    return half @ np.asarray(target["axes"]) + np.asarray(target["center"])


def project(points: ArrayLike, world_from_cam: ArrayLike, intrinsics: ArrayLike) -> tuple[Float, Float]:
    """Pixels [N, 2] and z-depth [N] of world points [N, 3], metres; pixels mean nothing where it is not above 0."""
    in_cam = transform_points(invert_rigid(world_from_cam), points)
    z = in_cam[:, 2]
    on_plane = in_cam[:, :2] / np.where(np.abs(z) < 1e-9, 1e-9, z)[:, None]
    k = np.asarray(intrinsics, dtype=np.float64)
    return on_plane @ k[:2, :2].T + k[:2, 2], z


def seen_share(
    target: Target,
    world_from_cam: ArrayLike,
    intrinsics: ArrayLike,
    size: tuple[int, int],
    depth_m: ArrayLike | None = None,
) -> float:
    """Share of the faces turned to a camera that it sees: inside the image of `size` (width, height) and, where depth
    is known, not behind something else by more than 0.15 m. `depth_m` [H, W] covers the image at any resolution.
    """
    points = _facing_points(target, np.asarray(world_from_cam, dtype=np.float64)[:3, 3])
    if not len(points):
        return 0.0
    pixels, z = project(points, world_from_cam, intrinsics)
    seen = (z > NEAR_M) & (pixels >= 0).all(1) & (pixels < size).all(1)
    if depth_m is not None and seen.any():
        depth = np.asarray(depth_m)
        scale = np.array([depth.shape[1] / size[0], depth.shape[0] / size[1]])
        columns, rows = (pixels[seen] * scale).astype(np.int64).T
        measured = depth[rows, columns]
        seen[seen] = (measured <= 0) | (measured > z[seen] - OCCLUSION_MARGIN_M)
    return float(seen.mean())


def _facing_points(target: Target, eye: Float) -> Float:
    """A grid of points on the faces of a box that look towards `eye`; both sides of a face without thickness."""
    center, size, axes = (np.asarray(target[key], dtype=np.float64) for key in ("center", "size", "axes"))
    towards = axes @ (eye - center)
    steps = (np.arange(SURFACE_SAMPLES) + 0.5) / SURFACE_SAMPLES - 0.5
    grid = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    faces = []
    for axis in range(3):
        flat = size[axis] == 0
        if not flat and abs(towards[axis]) <= size[axis] / 2:
            continue
        others = [other for other in range(3) if other != axis]
        if (size[others] == 0).any():
            continue
        local = np.zeros((len(grid), 3))
        local[:, others] = grid * size[others]
        local[:, axis] = np.sign(towards[axis]) * size[axis] / 2
        faces.append(local)
    return np.concatenate(faces) @ axes + center if faces else np.zeros((0, 3))


def volume(target: Target) -> float:
    """Cubic metres of a box, square metres of a plane."""
    return float(np.prod([extent for extent in target["size"] if extent > 0]))


def footprint(target: Target) -> Sequence[tuple[float, float]]:
    """The corners (x, y) of a box seen from above, in order around it."""
    corners = box_corners(target)[[0, 1, 3, 2]]
    return [(float(x), float(y)) for x, y, _ in corners]
