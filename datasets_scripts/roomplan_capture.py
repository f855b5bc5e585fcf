"""RoomPlan captures that were taken with their photographs, as scenes (the layout stands in roomplan.py)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets_scripts.boxes import Target
from datasets_scripts.capture import (
    Capture,
    FileCapture,
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
from datasets_scripts.roomplan import ZUP_FROM_YUP, read_roomplan
from datasets_scripts.upright import quarter_turns_upright, turn_camera
from processing.geometry_vggt_qwen3 import validate_intrinsics, validate_world_from_cam

FRAMES_FOLDER = "frames"
ARKIT_FROM_CV_CAM = np.diag([1.0, -1.0, -1.0, 1.0])


@dataclass(frozen=True)
class RoomPlanScene:
    """Where one capture lies."""

    scene_id: str
    export: Path
    frames: Path


def find_roomplan(root: Path) -> dict[str, RoomPlanScene]:
    """Every capture with photographs below `root`, by its folder's name. Raises SourceError where there is none."""
    scenes = {}
    for frames in sorted(root.glob(f"*/{FRAMES_FOLDER}")):
        exports = sorted(frames.parent.glob("*.json"))
        if len(exports) != 1:
            raise SourceError(f"{frames.parent} holds {len(exports)} .json files, wanted the RoomPlan export alone")
        scenes[frames.parent.name] = RoomPlanScene(frames.parent.name, exports[0], frames)
    if not scenes:
        raise SourceError(
            f"{root} holds no RoomPlan capture with photographs; wanted <root>/<scene>/<export>.json beside "
            f"<root>/<scene>/{FRAMES_FOLDER}/frame_00000.jpg and frame_00000.json. An export alone can be drawn "
            "(python -m datasets_scripts.show --roomplan) but not learnt from"
        )
    return scenes


def open_roomplan(scene: RoomPlanScene, skips: Skips) -> Capture:
    """The photographs of a capture whose camera is known, upright, and what RoomPlan found as targets.

    Raises:
        SourceError: files that are damaged, or no frame left.
    """
    targets: list[Target] = read_roomplan(scene.export, skips).targets()
    frames, paths = [], []
    for photograph in sorted(scene.frames.glob("frame_*.jpg")):
        try:
            frame = _frame(photograph)
        except SourceError as error:
            skips.fault("camera unreadable", error)
            continue
        if frame is None:
            skips.skip("frame that looks straight up or down", str(photograph))
            continue
        number = photograph.stem.removeprefix("frame_")
        depth, confidence = (scene.frames / f"{kind}_{number}.png" for kind in ("depth", "conf"))
        frames.append(frame)
        paths.append((photograph, *(path if path.is_file() else None for path in (depth, confidence))))
    with_depth = [path[1] is not None for path in paths]
    if any(with_depth):
        skips.skip("frame without its depth map", str(scene.frames), with_depth.count(False))
        frames = [frame for frame, has_depth in zip(frames, with_depth) if has_depth]
        paths = [path for path in paths if path[1] is not None]
    if not frames:
        raise SourceError(f"{scene.frames}: no photograph with a known camera")
    return FileCapture(
        scene_id=scene.scene_id,
        room_id=scene.scene_id,
        source="roomplan",
        frames=frames,
        skips=skips,
        world_from_source=ZUP_FROM_YUP,
        targets=targets,
        paths=paths,
    )


def _frame(photograph: Path) -> Frame | None:
    path = photograph.with_suffix(".json")
    record = read_json(path)
    source_from_arkit = numbers(
        key_of(record, "cameraPoseARFrame", list, str(path)), (4, 4), f"{path}, cameraPoseARFrame"
    )
    intrinsics = numbers(key_of(record, "intrinsics", list, str(path)), (3, 3), f"{path}, intrinsics")
    world_from_cam: Float = ZUP_FROM_YUP @ source_from_arkit @ ARKIT_FROM_CV_CAM
    sound(validate_world_from_cam, world_from_cam, f"{path}, cameraPoseARFrame")
    sound(validate_intrinsics, intrinsics, f"{path}, intrinsics")
    turns = quarter_turns_upright(world_from_cam)
    if turns is None:
        return None
    size = open_image(read_file(photograph), str(photograph)).size
    intrinsics, world_from_cam, size = turn_camera(intrinsics, world_from_cam, size, turns)
    return Frame(photograph.stem.removeprefix("frame_"), size, intrinsics, world_from_cam, turns)
