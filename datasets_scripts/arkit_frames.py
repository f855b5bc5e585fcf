"""Photographs with the cameras of an ARKit session, a JSON beside each: what scanning apps leave.

frame_00000.jpg     as the device was held
frame_00000.json    {"cameraPoseARFrame": 16 numbers, "intrinsics": 9 numbers}, row-major; metres, world Y up
depth_00000.png     optional: 16 bits, millimetres; conf_00000.png beside it says how sure it is, 0 to 2
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets_scripts.capture import (
    Float,
    Frame,
    Skips,
    SourceError,
    key_of,
    numbers,
    open_image,
    read_file,
    read_json,
    sound,
)
from datasets_scripts.roomplan import ZUP_FROM_YUP
from datasets_scripts.upright import quarter_turns_upright, turn_camera
from processing.geometry_vggt_qwen3 import validate_intrinsics, validate_world_from_cam

ARKIT_FROM_CV_CAM = np.diag([1.0, -1.0, -1.0, 1.0])
POSE = "cameraPoseARFrame"

Paths = tuple[Path, Path | None, Path | None]


def is_arkit(folder: Path) -> bool:
    """Whether any of the folder's numbered photographs has an ARKit camera beside it."""
    records = (photograph.with_suffix(".json") for photograph in sorted(folder.glob("frame_*.jpg")))
    return any(record.is_file() and POSE in record.read_text("utf-8", "replace") for record in records)


def arkit_frames(folder: Path, skips: Skips) -> tuple[list[Frame], list[Paths]]:
    """The photographs of a session whose camera is known, upright, and the files of each as `FileCapture` wants them.

    Where some have a depth map, those without are left out.

    Raises:
        SourceError: no frame is left; with strict `skips` for each that is damaged.
    """
    frames, paths = [], []
    for photograph in sorted(folder.glob("frame_*.jpg")):
        try:
            frame = _frame(photograph)
        except SourceError as error:
            skips.fault("camera unreadable", error)
            continue
        if frame is None:
            skips.skip("frame that looks straight up or down", str(photograph))
            continue
        number = photograph.stem.removeprefix("frame_")
        depth, confidence = (folder / f"{kind}_{number}.png" for kind in ("depth", "conf"))
        frames.append(frame)
        paths.append((photograph, *(path if path.is_file() else None for path in (depth, confidence))))
    with_depth = [path[1] is not None for path in paths]
    if any(with_depth):
        skips.skip("frame without its depth map", str(folder), with_depth.count(False))
        frames = [frame for frame, has_depth in zip(frames, with_depth) if has_depth]
        paths = [path for path in paths if path[1] is not None]
    if not frames:
        raise SourceError(f"{folder}: no photograph with a known camera")
    return frames, paths


def _frame(photograph: Path) -> Frame | None:
    path = photograph.with_suffix(".json")
    record = read_json(path)
    source_from_arkit = numbers(key_of(record, POSE, list, str(path)), (4, 4), f"{path}, {POSE}")
    intrinsics = numbers(key_of(record, "intrinsics", list, str(path)), (3, 3), f"{path}, intrinsics")
    world_from_cam: Float = ZUP_FROM_YUP @ source_from_arkit @ ARKIT_FROM_CV_CAM
    sound(validate_world_from_cam, world_from_cam, f"{path}, {POSE}")
    size = open_image(read_file(photograph), str(photograph)).size
    sound(validate_intrinsics, intrinsics, f"{path}, intrinsics", size)
    turns = quarter_turns_upright(world_from_cam)
    if turns is None:
        return None
    intrinsics, world_from_cam, size = turn_camera(intrinsics, world_from_cam, size, turns)
    return Frame(photograph.stem.removeprefix("frame_"), size, intrinsics, world_from_cam, turns)
