"""One procedural room from (seed, split, index)."""

import numpy as np

from datasets_scripts.rooms.cameras import draw_cameras, draw_focal
from datasets_scripts.rooms.layout import Placer, place_openings
from datasets_scripts.rooms.lighting import draw_lighting
from datasets_scripts.rooms.plan import build_shell, draw_floor_plan
from datasets_scripts.rooms.programs import furnish
from datasets_scripts.rooms.scene import Room, yaw_rotation

SPLIT_CODES = {"train": 0, "heldout": 1}
STREAMS = {"layout": 0, "cameras": 1, "look": 2, "world": 3, "questions": 4, "actions": 5}


def room_rng(seed: int, split: str, index: int, stream: str) -> np.random.Generator:
    """Return the random generator of one purpose (a key of STREAMS) of one room, independent of every other."""
    return np.random.default_rng([seed, SPLIT_CODES[split], index, STREAMS[stream]])


def generate_room(seed: int, split: str, index: int, num_views: int = 8) -> Room:
    """Return room number `index` of a split ("train" or "heldout"). The same arguments give the same room.

    The number of views changes the cameras alone.
    """
    rng = room_rng(seed, split, index, "layout")
    plan = draw_floor_plan(rng)
    placer = Placer(plan, rng)
    place_openings(placer)
    furnish(placer)
    look = room_rng(seed, split, index, "look")
    shell, shell_instance, floor_material = build_shell(plan, look)
    rng = room_rng(seed, split, index, "cameras")
    focal = draw_focal(rng)
    return Room(
        room_id=f"room-{split}-{seed}-{index:06d}",
        polygon=plan.polygon,
        height=plan.height,
        walls=plan.walls,
        objects=placer.objects,
        shell=shell,
        shell_instance=shell_instance,
        floor_material=floor_material,
        lighting=draw_lighting(plan, placer.objects, look),
        world_from_room=_draw_world(room_rng(seed, split, index, "world")),
        room_from_cam=draw_cameras(plan, placer.objects, focal, num_views, rng),
        focal=focal,
    )


def _draw_world(rng: np.random.Generator) -> np.ndarray:
    """Return a random world_from_room [4, 4]: any yaw, metres of offset, also of height."""
    matrix = np.eye(4)
    matrix[:3, :3] = yaw_rotation(rng.uniform(-np.pi, np.pi))
    matrix[:3, 3] = rng.uniform((-10, -10, -1.5), (10, 10, 1.5))
    return matrix
