"""Scenes given as annotations/planes.json and cameras.json, the predecessor's input for its RoomPlan instructions.

    <root>/**/<scene>/annotations/planes.json    [{label, center [3], normal [3], extent [width, height]}]
    <root>/**/<scene>/cameras.json               [{rgb_path, pose (4x4 camera to world), intrinsics (3x3)}]

Neither file says which way is up nor which axes a camera has, so `gravity` must be given, and cameras are OpenCV's.
Planes that do not stand upright (floors, table tops) are no anchors.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from datasets_scripts.boxes import MAX_TILT_DEG, Target
from datasets_scripts.capture import (
    Capture,
    FileCapture,
    Float,
    Frame,
    Skips,
    SourceError,
    checked,
    inside,
    key_of,
    numbers,
    open_image,
    read_file,
    read_json,
    sound,
)
from datasets_scripts.photos import align_to_gravity
from processing.geometry_vggt_qwen3 import transform_points, validate_intrinsics, validate_world_from_cam


@dataclass(frozen=True)
class PlanesScene:
    """Where one scene lies; `root` is the folder its photographs' paths may count from."""

    scene_id: str
    folder: Path
    root: Path


def find_planes(root: Path) -> dict[str, PlanesScene]:
    """Every scene below `root` by its folder's name. Raises SourceError where there is none or a name comes twice."""
    scenes: dict[str, PlanesScene] = {}
    for path in sorted(root.rglob("annotations/planes.json")):
        folder = path.parent.parent
        if folder.name in scenes:
            raise SourceError(f"{folder} and {scenes[folder.name].folder} are both named {folder.name}")
        scenes[folder.name] = PlanesScene(folder.name, folder, root)
    if not scenes:
        raise SourceError(f"{root} holds no <scene>/annotations/planes.json")
    return scenes


def open_planes(scene: PlanesScene, skips: Skips, gravity: ArrayLike) -> Capture:
    """The photographs of a scene and its upright planes as targets, turned so that things fall along -Z.

    Raises:
        SourceError: files that are missing or damaged, or no photograph left.
    """
    world_from_source = sound(lambda value, where: align_to_gravity(value), gravity, "gravity")
    frames, paths = [], []
    cameras_path = scene.folder / "cameras.json"
    for index, record in enumerate(checked(read_json(cameras_path), list, str(cameras_path))):
        where = f"{cameras_path}[{index}]"
        try:
            photograph = _photograph(scene, key_of(record, "rgb_path", str, where), where)
            frames.append(_frame(record, photograph, world_from_source, where))
        except SourceError as error:
            skips.fault("camera unreadable", error)
            continue
        paths.append((photograph, None, None))
    if not frames:
        raise SourceError(f"{cameras_path}: no photograph with a known camera")
    if len({frame.frame_id for frame in frames}) != len(frames):
        raise SourceError(f"{cameras_path}: two photographs have one name")
    return FileCapture(
        scene_id=scene.scene_id,
        room_id=scene.scene_id,
        source="planes",
        frames=frames,
        skips=skips,
        world_from_source=world_from_source,
        targets=_planes(scene.folder / "annotations" / "planes.json", world_from_source, skips),
        paths=paths,
    )


def _photograph(scene: PlanesScene, relative: str, where: str) -> Path:
    """The photograph of a camera; its path counts from the scene's folder or from the root."""
    for base in (scene.folder, scene.root):
        path = inside(base, relative)
        if path.is_file():
            return path
    raise SourceError(f"{where}: no photograph {relative} below {scene.folder} or {scene.root}")


def _frame(record: Any, photograph: Path, world_from_source: Float, where: str) -> Frame:
    pose = numbers(key_of(record, "pose", list, where), (4, 4), f"{where}, pose")
    intrinsics = numbers(key_of(record, "intrinsics", list, where), (3, 3), f"{where}, intrinsics")
    size = open_image(read_file(photograph), str(photograph)).size
    sound(validate_intrinsics, intrinsics, f"{where}, intrinsics", size)
    world_from_cam = world_from_source @ sound(validate_world_from_cam, pose, f"{where}, pose")
    return Frame(photograph.stem, size, intrinsics, world_from_cam)


def _planes(path: Path, world_from_source: Float, skips: Skips) -> list[Target]:
    targets = []
    for index, record in enumerate(checked(read_json(path), list, str(path))):
        where = f"{path}[{index}]"
        try:
            target = _plane(record, world_from_source, where)
        except SourceError as error:
            skips.fault("plane unreadable", error)
            continue
        if target is None:
            skips.skip("plane that does not stand upright", where)
        else:
            targets.append(target)
    return targets


def _plane(record: Any, world_from_source: Float, where: str) -> Target | None:
    normal = world_from_source[:3, :3] @ numbers(key_of(record, "normal", list, where), (3,), f"{where}, normal")
    extent = key_of(record, "extent", list, where)
    width, height = numbers(extent[:2], (2,), f"{where}, extent")
    center = numbers(key_of(record, "center", list, where), (3,), f"{where}, center")
    length = np.linalg.norm(normal)
    if length < 1e-6 or min(width, height) <= 0:
        raise SourceError(
            f"{where}: normal {normal.tolist()} and extent {extent}, wanted a direction and sizes above 0"
        )
    normal = normal / length
    if abs(normal[2]) > np.sin(np.radians(MAX_TILT_DEG)):
        return None
    ahead = np.array([normal[0], normal[1], 0.0]) / np.hypot(normal[0], normal[1])
    return {
        "label": key_of(record, "label", str, where).strip().lower(),
        "kind": "plane",
        "center": transform_points(world_from_source, center).tolist(),
        "size": [float(width), 0.0, float(height)],
        "axes": [[float(ahead[1]), float(-ahead[0]), 0.0], ahead.tolist(), [0.0, 0.0, 1.0]],
    }
