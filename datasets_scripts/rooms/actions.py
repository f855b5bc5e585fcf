"""Instructions that place anchors, each with one unambiguous target (or all things of a kind)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets_scripts.rooms.catalogue import CATALOGUE, named, plural
from datasets_scripts.rooms.facts import Facts
from datasets_scripts.rooms.scene import Room
from datasets_scripts.schema import MAX_ANCHORS

MIN_VISIBLE = 0.008  # share of the pixels of one view that a thing to be anchored must fill
_MIN_WALL_VISIBLE = 0.04
_CAMERA_MARGIN = 0.5  # metres by which the nearest to a camera must beat the others

_ONE = ("Place an anchor on {what}.", "Put an anchor on {what}.", "Anchor {what}.", "Mark {what} with an anchor.")
_ALL = ("Place an anchor on every {what}.", "Anchor every {what}.", "Put an anchor on each {what}.")
_ALL_PLURAL = ("Place anchors on all {what}.", "Anchor all {what}.")


@dataclass(frozen=True)
class Instruction:
    """family: what kind of description picks the target. objects and walls: indices of the targets in the room."""

    family: str
    text: str
    objects: tuple[int, ...] = ()
    walls: tuple[int, ...] = ()
    frame: int | None = None

    @property
    def action(self) -> str:
        """Name of the action."""
        return "place_anchors" if self.family.startswith("anchors_") else "place_anchor"


def visible_for_anchors(room: Room, pixels: np.ndarray, size: int) -> tuple[list[int], list[int]]:
    """Return the indices of the objects and of the walls that are seen well enough to be anchored.

    pixels [V, ids] counts the pixels of each instance id of the room in each size x size view.
    """
    best = pixels.max(axis=0) / size**2
    count = len(room.objects)
    objects = np.flatnonzero(best[1 : count + 1] >= MIN_VISIBLE)
    walls = np.flatnonzero(best[count + 1 : count + 1 + len(room.walls)] >= _MIN_WALL_VISIBLE)
    return objects.tolist(), walls.tolist()


def instructions(room: Room, pixels: np.ndarray, size: int, count: int, rng: np.random.Generator) -> list[Instruction]:
    """Return up to `count` instructions; the families that the room offers take turns.

    pixels [V, ids] as in `visible_for_anchors`.
    """
    objects, walls = visible_for_anchors(room, pixels, size)
    whole = Facts(room)
    seen = Facts(room, objects, whole)
    pools = [
        _by_name(seen, whole, rng),
        _by_color(seen, whole, rng),
        _by_neighbour(seen, whole, rng),
        _by_camera(seen, whole, pixels, size, rng),
        _walls(seen, whole, walls, rng),
        _all_of_a_kind(seen, whole, rng),
    ]
    queues = [[pool[i] for i in rng.permutation(len(pool))] for pool in pools if pool]
    chosen: list[Instruction] = []
    while len(chosen) < count and any(queues):
        for i in rng.permutation(len(queues)):
            if queues[i] and len(chosen) < count:
                chosen.append(queues[i].pop())
    return chosen


def instruction_rows(room: Room, chosen: list[Instruction]) -> list[dict[str, Any]]:
    """Return instructions as rows of the schema; targets are in the world frame at full precision."""
    rows = []
    numbers: dict[str, int] = {}
    for item in chosen:
        number = numbers[item.family] = numbers.get(item.family, -1) + 1
        targets = [room.object_target(room.objects[i]) for i in item.objects]
        targets += [room.wall_target(room.walls[i]) for i in item.walls]
        rows.append(
            {
                "sample_id": f"{room.room_id}/{item.family}/{number}",
                "scene_id": room.room_id,
                "task": "rooms_actions",
                "question": item.text,
                "situation": None,
                "situation_pose": None,
                "answers": [],
                "question_type": item.family,
                "action": item.action,
                "targets": targets,
                "anchor_frame_id": None if item.frame is None else room.frame_ids[item.frame],
            }
        )
    return rows


def _worded(texts: tuple[str, ...], what: str, rng: np.random.Generator) -> str:
    return texts[rng.integers(len(texts))].format(what=what)


def _anchorable(label: str) -> bool:
    return label != "rug"


def _by_name(seen: Facts, whole: Facts, rng: np.random.Generator) -> list[Instruction]:
    names = [(label, i) for label, i in seen.unique.items() if whole.unique.get(label) == i and _anchorable(label)]
    return [Instruction("anchor_name", _worded(_ONE, f"the {named(label)}", rng), (i,)) for label, i in names]


def _by_color(seen: Facts, whole: Facts, rng: np.random.Generator) -> list[Instruction]:
    """The only one of its kind with its colour, where there are several of its kind."""
    found = []
    for label, indices in seen.by_label.items():
        rivals = whole.by_label[label]
        if len(rivals) < 2 or not CATALOGUE[label].color_told or not _anchorable(label):
            continue
        colors = [whole.item(i).color for i in rivals]
        for i in indices:
            color = whole.item(i).color
            if colors.count(color) == 1:
                found.append(Instruction("anchor_color", _worded(_ONE, f"the {color} {named(label)}", rng), (i,)))
    return found


def _by_neighbour(seen: Facts, whole: Facts, rng: np.random.Generator) -> list[Instruction]:
    """The one of several closest to a unique thing, or the only thing on top of something."""
    found = []
    for goal, origin in seen.unique.items():
        if whole.unique.get(goal) != origin:
            continue
        for label, rivals in whole.by_label.items():
            index = whole.nearest(origin, rivals) if len(rivals) > 1 and label != goal and _anchorable(label) else None
            if index is not None and index in seen.kept:
                what = f"the {named(label)} closest to the {named(goal)}"
                found.append(Instruction("anchor_neighbour", _worded(_ONE, what, rng), (index,)))
        on_top = whole.on_top(origin)
        if len(on_top) == 1 and on_top[0] in seen.kept:
            what = f"the thing on top of the {named(goal)}"
            found.append(Instruction("anchor_neighbour", _worded(_ONE, what, rng), (on_top[0],)))
    return found


def _by_camera(seen: Facts, whole: Facts, pixels: np.ndarray, size: int, rng: np.random.Generator) -> list[Instruction]:
    """The one of several closest to the first camera; the sample names which frame that is."""
    found = []
    cameras = whole.room.room_from_cam[:, :3, 3]
    for label, rivals in whole.by_label.items():
        if len(rivals) < 2 or not _anchorable(label) or not set(rivals) <= set(seen.kept):
            continue
        frame = int(rng.integers(len(cameras)))
        distances = np.linalg.norm(np.array([whole.item(i).center for i in rivals]) - cameras[frame], axis=1)
        order = np.argsort(distances)
        index = rivals[order[0]]
        clear = distances[order[1]] - distances[order[0]] > _CAMERA_MARGIN
        if clear and pixels[frame, index + 1] >= MIN_VISIBLE * size**2:
            text = _worded(_ONE, f"the {named(label)} closest to the first camera", rng)
            found.append(Instruction("anchor_camera", text, (index,), frame=frame))
    return found


def _walls(seen: Facts, whole: Facts, walls: list[int], rng: np.random.Generator) -> list[Instruction]:
    """A wall named by the only thing of a kind that hangs on it or stands against it, or that is opposite to it."""
    room = whole.room
    found = []
    for label, i in seen.unique.items():
        item = whole.item(i)
        if whole.unique.get(label) != i or item.wall is None or item.support is not None:
            continue
        relation = "with" if item.mounted else "behind"
        named_walls = [(item.wall, f"the wall {relation} the {named(label)}")]
        if len(room.walls) == 4:
            named_walls.append(((item.wall + 2) % 4, f"the wall opposite the {named(label)}"))
        for wall, what in named_walls:
            if wall in walls:
                found.append(Instruction("anchor_wall", _worded(_ONE, what, rng), walls=(wall,)))
    return found


def _all_of_a_kind(seen: Facts, whole: Facts, rng: np.random.Generator) -> list[Instruction]:
    """Every thing of a kind, or every one of a colour, where all of them are visible."""
    found = []
    for label, indices in whole.by_label.items():
        if not 2 <= len(indices) <= MAX_ANCHORS or not set(indices) <= set(seen.kept) or not _anchorable(label):
            continue
        if rng.random() < 0.5:
            text = _worded(_ALL, named(label), rng)
        else:
            text = _worded(_ALL_PLURAL, plural(label), rng)
        found.append(Instruction("anchors_kind", text, tuple(indices)))
        colors = [whole.item(i).color for i in indices]
        for color in sorted({c for c in colors if c and 2 <= colors.count(c) < len(colors)}):
            members = tuple(i for i, c in zip(indices, colors) if c == color)
            found.append(Instruction("anchors_color", _worded(_ALL, f"{color} {named(label)}", rng), members))
    return found
