"""Anchors drawn into photographs and put into a 3D scene. Metres, Z up; cameras with OpenCV axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Float = NDArray[np.float64]
Anchor = Mapping[str, Any]

NEAR_M = 0.05
EDGES = tuple((a, a | 1 << axis) for axis in range(3) for a in range(8) if not a >> axis & 1)
FRONT = (2, 3, 7, 6)
COLOURS = ((228, 87, 46), (23, 118, 182), (46, 139, 87), (176, 72, 181), (194, 140, 0), (0, 150, 160))
EDGE_RADIUS_M = 0.012
CAMERA_M = 0.18
MAX_EDGE_M = 0.25
GLTF_FROM_WORLD = np.array([[1.0, 0, 0, 0], [0, 0, 1.0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1.0]])


def anchors_of(action: Mapping[str, Any] | None) -> list[Anchor]:
    """The anchors of a `place_anchor` or `place_anchors` action, none without one."""
    if action is None:
        return []
    return list(action["anchors"]) if action["action"] == "place_anchors" else [action]


def box_corners(anchor: Anchor) -> Float:
    """Corners [8, 3]: bit i of a corner's number says on which side of axis i (width, normal, up) it lies."""
    normal = np.asarray(anchor["normal"], dtype=np.float64)
    normal = normal / np.linalg.norm(normal)
    up = np.array([0.0, 0.0, 1.0])
    axes = np.stack([np.cross(normal, up), normal, up])
    signs = np.array([[1 if corner >> axis & 1 else -1 for axis in range(3)] for corner in range(8)])
    return np.asarray(anchor["center"], dtype=np.float64) + (signs * np.asarray(anchor["extent"]) / 2) @ axes


def draw_anchors(
    image: Image.Image, anchors: Sequence[Anchor], intrinsics: Float, world_from_cam: Float
) -> Image.Image:
    """A copy of a photograph with the boxes of anchors, each with its label.

    Args:
        image: as the camera took it.
        anchors: in the world frame.
        intrinsics: [3, 3] pixels of the image.
        world_from_cam: [4, 4].
    """
    drawn = image.convert("RGB").copy()
    canvas = ImageDraw.Draw(drawn, "RGBA")
    cam_from_world = np.linalg.inv(world_from_cam)
    width = max(2, round(max(drawn.size) / 180))
    for index, anchor in enumerate(anchors):
        corners = box_corners(anchor) @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
        colour = COLOURS[index % len(COLOURS)]
        if (corners[list(FRONT), 2] > NEAR_M).all():
            canvas.polygon(_flat(_pixels(corners[list(FRONT)], intrinsics)), fill=(*colour, 50))
        for a, b in EDGES:
            segment = _clip_near(corners[a], corners[b])
            if segment is not None:
                ends = _flat(_pixels(np.stack(segment), intrinsics))
                canvas.line(ends, fill=(255, 255, 255, 200), width=width + 2)
                canvas.line(ends, fill=(*colour, 255), width=width)
        _draw_label(canvas, anchor["label"], corners, intrinsics, drawn.size, colour)
    return drawn


def write_glb(
    path: Path,
    anchors: Sequence[Anchor],
    images: Sequence[Image.Image],
    intrinsics: Float,
    world_from_cam: Float,
    depth: Sequence[NDArray[np.float32] | None] | None = None,
) -> None:
    """Writes a GLB of the room as its depth shows it, the cameras, and the boxes of anchors.

    Args:
        path: file to write; glTF has Y up.
        anchors: in the world frame.
        images, intrinsics, world_from_cam: of the views, [V, 3, 3] and [V, 4, 4].
        depth: a map [H, W] in metres a view, 0 = invalid; None = no surface is drawn.
    """
    scene = trimesh.Scene()
    for view, image in enumerate(images):
        scene.add_geometry(_camera(world_from_cam[view], first=view == 0), node_name=f"camera {view}")
        if depth is not None and depth[view] is not None:
            surface = _surface(image, depth[view], intrinsics[view], world_from_cam[view])
            if surface is not None:
                scene.add_geometry(surface, node_name=f"view {view}")
    for index, anchor in enumerate(anchors):
        colour = COLOURS[index % len(COLOURS)]
        scene.add_geometry(_box(anchor, colour), node_name=f"{anchor['label']} {index}")
    scene.apply_transform(GLTF_FROM_WORLD)
    path.write_bytes(scene.export(file_type="glb"))


def _clip_near(a: Float, b: Float) -> tuple[Float, Float] | None:
    """The part of a segment in front of the camera."""
    if max(a[2], b[2]) < NEAR_M:
        return None
    if min(a[2], b[2]) < NEAR_M:
        cut = a + (b - a) * (NEAR_M - a[2]) / (b[2] - a[2])
        a, b = (cut, b) if a[2] < NEAR_M else (a, cut)
    return a, b


def _pixels(points: Float, intrinsics: Float) -> Float:
    in_image = points @ np.asarray(intrinsics).T
    return in_image[:, :2] / in_image[:, 2:]


def _flat(points: Float) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points]


def _draw_label(
    canvas: ImageDraw.ImageDraw,
    label: str,
    corners: Float,
    intrinsics: Float,
    size: tuple[int, int],
    colour: tuple[int, int, int],
) -> None:
    """Above the box, where at least part of it lies in front of the camera and within the picture."""
    visible = corners[corners[:, 2] > NEAR_M]
    if not len(visible):
        return
    pixels = _pixels(visible, intrinsics)
    left, top = pixels.min(axis=0)
    right, bottom = pixels.max(axis=0)
    if right < 0 or bottom < 0 or left > size[0] or top > size[1]:
        return
    height = max(10, round(max(size) / 28))
    box = canvas.textbbox((0, 0), label, font_size=height)
    x = float(np.clip(left, 0, max(0, size[0] - box[2] - 6)))
    y = float(np.clip(top - height - 6, 0, max(0, size[1] - height - 6)))
    canvas.rectangle((x, y, x + box[2] + 6, y + height + 5), fill=(*colour, 230))
    canvas.text((x + 3, y + 1), label, fill=(255, 255, 255, 255), font_size=height)


def _box(anchor: Anchor, colour: tuple[int, int, int]) -> trimesh.Trimesh:
    """The twelve edges of a box as thin bars, and its front face half transparent."""
    corners = box_corners(anchor)
    bars = [_bar(corners[a], corners[b]) for a, b in EDGES if np.linalg.norm(corners[a] - corners[b]) > 1e-6]
    frame = trimesh.util.concatenate(bars)
    frame.visual.face_colors = (*colour, 255)
    face = trimesh.Trimesh(corners[list(FRONT)], [[0, 1, 2], [0, 2, 3], [2, 1, 0], [3, 2, 0]], process=False)
    face.visual.face_colors = (*colour, 110)
    return trimesh.util.concatenate([frame, face])


def _bar(a: Float, b: Float) -> trimesh.Trimesh:
    return trimesh.creation.cylinder(EDGE_RADIUS_M, segment=np.stack([a, b]), sections=8)


def _camera(world_from_cam: Float, first: bool) -> trimesh.Trimesh:
    """A small pyramid that opens where the camera looks; the first one is darker."""
    corners = np.array([[0, 0, 0], [-1, -0.75, 1.3], [1, -0.75, 1.3], [1, 0.75, 1.3], [-1, 0.75, 1.3]]) * CAMERA_M / 2
    faces = [[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 1], [1, 3, 2], [1, 4, 3]]
    mesh = trimesh.Trimesh(corners @ world_from_cam[:3, :3].T + world_from_cam[:3, 3], faces, process=False)
    mesh.visual.face_colors = (40, 40, 40, 255) if first else (130, 130, 130, 255)
    return mesh


def _surface(
    image: Image.Image, depth: NDArray[np.float32], intrinsics: Float, world_from_cam: Float
) -> trimesh.Trimesh | None:
    """The depth of a view as a coloured surface, torn where neighbours lie far apart; None where nothing is valid."""
    stride = max(1, round(max(depth.shape) / 96))
    rows, columns = np.mgrid[0 : depth.shape[0] : stride, 0 : depth.shape[1] : stride]
    z = np.asarray(depth, dtype=np.float64)[rows, columns]
    scale = np.array([image.size[0] / depth.shape[1], image.size[1] / depth.shape[0]])
    pixels = np.stack([(columns + 0.5) * scale[0], (rows + 0.5) * scale[1], np.ones_like(z)], axis=-1)
    points = (pixels @ np.linalg.inv(intrinsics).T) * z[..., None]
    points = points @ world_from_cam[:3, :3].T + world_from_cam[:3, 3]
    faces = _grid_faces(z)
    if not len(faces):
        return None
    colours = np.asarray(image.convert("RGB").resize(z.shape[::-1]))
    mesh = trimesh.Trimesh(points.reshape(-1, 3), faces, vertex_colors=colours.reshape(-1, 3), process=False)
    mesh.remove_unreferenced_vertices()
    return mesh


def _grid_faces(z: Float) -> NDArray[np.int64]:
    """Two triangles, seen from the camera's side alone, for each cell whose four depths are valid and near each other.

    So walls and ceiling do not hide the room from who looks in from outside.
    """
    index = np.arange(z.size).reshape(z.shape)
    cells = np.stack([index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]], axis=-1).reshape(-1, 4)
    depths = z.reshape(-1)[cells]
    whole = (depths > 0).all(axis=1) & (np.ptp(depths, axis=1) < MAX_EDGE_M)
    a, b, c, d = cells[whole].T
    return np.concatenate([np.stack(triangle, axis=1) for triangle in ((a, c, b), (a, d, c))])
