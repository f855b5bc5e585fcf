"""A scene as GLB for any 3D viewer: points that its views saw, its cameras, and boxes. Metres, Y-up as in glTF."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import ArrayLike

from datasets_scripts.boxes import EDGES, Target, box_corners
from datasets_scripts.capture import Float
from datasets_scripts.roomplan import ZUP_FROM_YUP

FRUSTUM_M = 0.25
BOX_EDGE_M, CAMERA_EDGE_M = 0.012, 0.006
CAMERA_COLOR = (20, 90, 200, 255)
_FRUSTUM_EDGES = ((0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 4), (4, 3), (3, 1))

Color = tuple[int, ...]


def write_glb(
    path: Path,
    points: ArrayLike,
    shades: ArrayLike,
    scene: dict[str, Any] | None,
    targets: Sequence[Target],
    colors: Sequence[Color],
) -> None:
    """Write one GLB with the nodes `points`, `camera <frame>` and `<label> <number>`.

    Args:
        path: file to write.
        points, shades: [N, 3] world metres and [N, 3] RGB of 0 to 255.
        scene: a row of the scenes table whose cameras are drawn, or None.
        targets, colors: boxes of the world frame and the RGB of each.
    """
    model = trimesh.Scene()
    points = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    if len(points):
        cloud = trimesh.PointCloud(points, colors=np.asarray(shades, dtype=np.uint8))
        model.add_geometry(cloud, node_name="points", geom_name="points")
    if scene is not None and scene["world_from_cam"] is not None:
        for index, frame_id in enumerate(scene["frame_ids"]):
            corners = _frustum(scene, index)
            mesh = _frame_mesh(corners, _FRUSTUM_EDGES, CAMERA_EDGE_M, CAMERA_COLOR)
            model.add_geometry(mesh, node_name=f"camera {frame_id}", geom_name=f"camera {frame_id}")
    for number, (target, color) in enumerate(zip(targets, colors)):
        mesh = _frame_mesh(box_corners(target), EDGES, BOX_EDGE_M, (*color[:3], 255))
        model.add_geometry(mesh, node_name=f"{target['label']} {number}", geom_name=f"{target['label']} {number}")
    model.apply_transform(ZUP_FROM_YUP.T)
    path.write_bytes(model.export(file_type="glb"))


def _frustum(scene: dict[str, Any], index: int) -> Float:
    """Its apex and four corners [5, 3] in the world, 0.25 m deep."""
    width, height = scene["images"][index].size
    pixels = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], dtype=np.float64)
    rays = pixels @ np.linalg.inv(np.asarray(scene["intrinsics"][index])).T * FRUSTUM_M
    camera = np.asarray(scene["world_from_cam"][index])
    return np.concatenate([np.zeros((1, 3)), rays]) @ camera[:3, :3].T + camera[:3, 3]


def _frame_mesh(corners: Float, edges: Sequence[tuple[int, int]], thickness: float, color: Color) -> trimesh.Trimesh:
    """Edges as thin rods of one colour; an edge without length is left out."""
    rods = [
        trimesh.creation.cylinder(thickness / 2, sections=6, segment=corners[[a, b]])
        for a, b in edges
        if np.linalg.norm(corners[a] - corners[b]) > 1e-6
    ]
    mesh = trimesh.util.concatenate(rods)
    mesh.visual = trimesh.visual.ColorVisuals(mesh, face_colors=color)
    return mesh
