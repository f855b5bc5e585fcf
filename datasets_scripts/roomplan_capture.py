"""RoomPlan captures that were taken with their photographs, as scenes (the layout stands in roomplan.py)."""

from dataclasses import dataclass
from pathlib import Path

from datasets_scripts.arkit_frames import arkit_frames
from datasets_scripts.boxes import Target
from datasets_scripts.capture import Capture, FileCapture, Skips, SourceError
from datasets_scripts.roomplan import ZUP_FROM_YUP, read_roomplan

FRAMES_FOLDER = "frames"


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
    frames, paths = arkit_frames(scene.frames, skips)
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
