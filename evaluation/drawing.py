"""Boxes drawn into photographs and on a plan seen from above, as SVG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from processing.action_vggt_qwen3 import action_anchors, action_box
from processing.geometry_vggt_qwen3 import invert_rigid, transform_points
from training.data import SceneExample

NEAR_M = 0.05
CELL_RANGE_M, POINTS_PER_CELL = (0.025, 0.08), 3
BELOW_CEILING_M = 2.0
POINTS_PER_VIEW = 40_000
PLAN_MARGIN_M = 0.4
BEYOND_M = 2.0
CAMERA_LENGTH_M = 0.45
MAX_PLAN_M = 20.0
EDGES = tuple((a, a | 1 << axis) for axis in range(3) for a in range(8) if not a >> axis & 1)
FRONT = (2, 3, 7, 6)

Float = NDArray[np.float64]
Anchors = list[dict[str, Any]]


def anchors_of(action: Mapping[str, Any] | None) -> Anchors:
    """The anchors of an action, none without one."""
    return [] if action is None else action_anchors(action)


def box_corners(anchor: Mapping[str, Any]) -> Float:
    """Corners [8, 3]: bit i of a corner's number says on which side of axis i (width, normal, up) it lies."""
    center, size, axes = action_box(anchor)
    signs = np.array([[1 if corner >> axis & 1 else -1 for axis in range(3)] for corner in range(8)])
    return center + (signs * size / 2) @ axes


def paths_in_view(
    anchors: Anchors, kind: str, world_from_cam: Float, intrinsics: Float, shrink: float
) -> list[tuple[str, str]]:
    """(class, path) of the boxes in a view: the side their normal points to, a dark halo, the edges.

    Args:
        anchors: boxes in the world frame.
        kind: truth or predicted.
        world_from_cam, intrinsics: of the view as stored.
        shrink: size of the thumbnail over that of the stored view.
    """
    cam_from_world = invert_rigid(world_from_cam)
    faces, edges = [], []
    for anchor in anchors:
        corners = transform_points(cam_from_world, box_corners(anchor))
        segments = [_clip_near(corners[a], corners[b]) for a, b in EDGES]
        edges += [_path(_pixels(np.stack(each), intrinsics, shrink)) for each in segments if each is not None]
        if (corners[list(FRONT), 2] > NEAR_M).all():
            faces.append(_path(_pixels(corners[list(FRONT)], intrinsics, shrink)) + "Z")
    if not edges:
        return []
    outline = "".join(edges)
    return [(f"face {kind}", "".join(faces)), ("halo", outline), (kind, outline)]


def plan(example: SceneExample, truth: Anchors, predicted: Anchors, underlay: tuple[str, Float] | None) -> str:
    """An SVG of the room from above: cameras, true and predicted boxes, a metre grid; Y up on the page.

    Args:
        example: the scene, its cameras known.
        truth, predicted: boxes in the world frame.
        underlay: key of a picture and its bounds [x0, y0, x1, y1] in metres, or None.
    """
    low, high = _extent(example, truth, predicted, underlay)
    parts = [_underlay(underlay), _metre_grid(low, high)]
    cameras = zip(example.world_from_cam, example.intrinsics, example.images)
    parts += [_camera(matrix, k, image.size[0], index == 0) for index, (matrix, k, image) in enumerate(cameras)]
    parts += [_footprint(anchor, "truth") for anchor in truth]
    parts += [_footprint(anchor, "predicted") for anchor in predicted]
    parts.append(_scale_bar(low))
    box = f"{low[0] * 100:.0f} {-high[1] * 100:.0f} {(high[0] - low[0]) * 100:.0f} {(high[1] - low[1]) * 100:.0f}"
    label = "Plan from above: " + ", ".join(anchor["label"] for anchor in truth)
    return f'<svg class="plan" viewBox="{box}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def room_from_above(example: SceneExample) -> tuple[str, Float] | None:
    """A picture of the room without its ceiling, made of the depth of its views; None where there is none.

    Returns:
        A data URI, and what it covers, [x0, y0, x1, y1] in metres of the world.
    """
    if example.depth is None or example.world_from_cam is None:
        return None
    clouds = [
        _coloured_points(*view)
        for view in zip(example.images, example.depth, example.world_from_cam, example.intrinsics)
    ]
    points, colours = (np.concatenate(parts) for parts in zip(*clouds))
    if not len(points):
        return None
    floor = np.percentile(points[:, 2], 1)
    kept = points[:, 2] < floor + BELOW_CEILING_M
    kept &= (np.abs(points[:, :2] - np.median(points[:, :2], axis=0)) < MAX_PLAN_M / 2).all(axis=1)
    points, colours = points[kept], colours[kept]
    low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
    cell = float(np.clip(np.sqrt(np.prod(high - low) / len(points) * POINTS_PER_CELL), *CELL_RANGE_M))
    cells = np.floor((points[:, :2] - low) / cell).astype(np.int64)
    width, height = cells.max(axis=0) + 1
    canvas = np.zeros((height, width, 4), dtype=np.uint8)
    order = np.argsort(points[:, 2])  # what is higher hides what is below
    canvas[height - 1 - cells[order, 1], cells[order, 0]] = np.c_[colours[order], np.full(len(order), 255)]
    picture = Image.fromarray(_without_gaps(canvas))
    return _data_uri(picture, "PNG", optimize=True), np.array([*low, *(low + cell * np.array([width, height]))])


def _without_gaps(canvas: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fills empty cells that have a filled one above, below, left or right."""
    filled = canvas.copy()
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        neighbour = np.roll(canvas, step, axis)
        empty = filled[..., 3] == 0
        filled[empty] = neighbour[empty]
    return filled


def thumbnail(image: Image.Image, side: int) -> tuple[str, tuple[int, int]]:
    """A JPEG data URI of at most `side` pixels, and its size (width, height)."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _data_uri(small, "JPEG", quality=80, optimize=True), small.size


def _data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _clip_near(a: Float, b: Float) -> tuple[Float, Float] | None:
    """The part of a segment in front of the camera."""
    if a[2] < NEAR_M and b[2] < NEAR_M:
        return None
    if min(a[2], b[2]) < NEAR_M:
        cut = a + (b - a) * (NEAR_M - a[2]) / (b[2] - a[2])
        a, b = (cut, b) if a[2] < NEAR_M else (a, cut)
    return a, b


def _pixels(points: Float, intrinsics: Float, shrink: float) -> Float:
    in_image = points @ intrinsics.T
    return shrink * in_image[:, :2] / in_image[:, 2:]


def _path(points: Float) -> str:
    first, *rest = points
    return f"M{first[0]:.1f} {first[1]:.1f}" + "".join(f"L{x:.1f} {y:.1f}" for x, y in rest)


def _coloured_points(
    image: Image.Image, depth: NDArray[np.float32] | None, world_from_cam: Float, intrinsics: Float
) -> tuple[Float, NDArray[np.uint8]]:
    if depth is None:
        return np.zeros((0, 3)), np.zeros((0, 3), dtype=np.uint8)
    height, width = depth.shape
    stride = max(1, int(np.ceil(np.sqrt(depth.size / POINTS_PER_VIEW))))
    rows, columns = np.mgrid[0:height:stride, 0:width:stride]
    z = depth[rows, columns].astype(np.float64)
    valid = z > 0
    u, v, z = columns[valid] + 0.5, rows[valid] + 0.5, z[valid]
    u, v = u * image.size[0] / width, v * image.size[1] / height
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(intrinsics).T
    colours = np.asarray(image.convert("RGB").resize((width, height)))[rows[valid], columns[valid]]
    return transform_points(world_from_cam, rays * z[:, None]), colours


def _underlay(underlay: tuple[str, Float] | None) -> str:
    if underlay is None:
        return ""
    x0, y0, x1, y1 = 100 * underlay[1]
    place = f'x="{x0:.0f}" y="{-y1:.0f}" width="{x1 - x0:.0f}" height="{y1 - y0:.0f}"'
    return f'<image data-key="{escape(underlay[0])}" {place} preserveAspectRatio="none"/>'


def _metre_grid(low: Float, high: Float) -> str:
    lines = []
    for x in range(int(np.ceil(low[0])), int(np.floor(high[0])) + 1):
        lines.append(f"M{x * 100} {-high[1] * 100:.0f}V{-low[1] * 100:.0f}")
    for y in range(int(np.ceil(low[1])), int(np.floor(high[1])) + 1):
        lines.append(f"M{low[0] * 100:.0f} {-y * 100}H{high[0] * 100:.0f}")
    return f'<path class="metre" d="{"".join(lines)}"/>'


def _camera(world_from_cam: Float, intrinsics: Float, width: int, is_first: bool) -> str:
    """A wedge of the camera's horizontal field of view."""
    ends = (np.array([[0, 0, 1], [width, 0, 1]]) - intrinsics[0, 2] * np.array([1, 0, 0])) / [intrinsics[0, 0], 1, 1]
    rays = ends @ world_from_cam[:3, :3].T
    rays = rays[:, :2] / np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-9)
    apex = world_from_cam[:2, 3]
    wedge = _on_plan([apex, *(apex + CAMERA_LENGTH_M * rays)])
    return f'<path class="camera{" first" if is_first else ""}" d="{wedge}Z"/>'


def _footprint(anchor: Mapping[str, Any], kind: str) -> str:
    """The box from above, and a line out of the side that its normal points to."""
    corners = box_corners(anchor)[:, :2]
    center, size, axes = action_box(anchor)
    side = center[:2] + axes[1, :2] * size[1] / 2
    outline = f'<path class="{kind}" d="{_on_plan(corners[[0, 1, 3, 2]])}Z"/>'
    facing = f'<path class="{kind} facing" d="{_on_plan([side, side + 0.22 * axes[1, :2]])}"/>'
    return f"<g><title>{kind}: {escape(anchor['label'])}</title>{outline}{facing}</g>"


def _scale_bar(low: Float) -> str:
    x, y = low[0] * 100 + 15, -low[1] * 100 - 15
    bar = f'<path class="bar" d="M{x:.0f} {y - 5:.0f}v5h100v-5" fill="none"/>'
    return f'{bar}<text x="{x + 50:.0f}" y="{y - 10:.0f}" text-anchor="middle" style="font-size:18px">1 m</text>'


def _extent(
    example: SceneExample, truth: Anchors, predicted: Anchors, underlay: tuple[str, Float] | None
) -> tuple[Float, Float]:
    """Lowest and highest x and y to show: all that is known to be there, and of predictions what is not far off."""
    known = [example.world_from_cam[:, :2, 3], *(box_corners(anchor)[:, :2] for anchor in truth)]
    if underlay is not None:
        known.append(underlay[1].reshape(2, 2))
    low, high = np.concatenate(known).min(axis=0), np.concatenate(known).max(axis=0)
    said = np.concatenate([np.stack([low, high]), *(box_corners(anchor)[:, :2] for anchor in predicted)])
    low, high = np.maximum(said.min(axis=0), low - BEYOND_M), np.minimum(said.max(axis=0), high + BEYOND_M)
    return low - PLAN_MARGIN_M, np.minimum(high + PLAN_MARGIN_M, low + MAX_PLAN_M)


def _on_plan(points: Sequence[Float]) -> str:
    """A path in centimetres, y pointing down the page."""
    return _path(np.asarray(points)[:, :2] * [100, -100])
