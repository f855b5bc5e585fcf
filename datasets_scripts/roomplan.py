"""Apple RoomPlan exports (CapturedRoom, CapturedStructure), read and written.

    python -m datasets_scripts.roomplan predictions.jsonl --output room.json      actions as RoomPlan-style JSON

RoomPlan's world is Y-up, ours Z-up: (x, y, z) -> (x, -z, y). Transforms are column-major. The local frame of an item is
x across, y up, z along its normal (for a floor: x and y in the floor, z up).

A capture becomes a scene when its photographs and cameras lie beside the export, in the session's own world:

    <root>/<scene>/<any>.json                                         the export
    <root>/<scene>/frames/frame_N.jpg, frame_N.json                   cameraPoseARFrame (camera to world, row-major,
                                                                      ARKit axes), intrinsics (row-major, pixels)
                          depth_N.png, conf_N.png                     millimetres; confidence 0 to 2 (both optional)
"""

import argparse
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from datasets_scripts.boxes import Target, upright_target
from datasets_scripts.capture import Float, Skips, SourceError, checked, key_of, numbers, read_json, read_records
from processing.action_vggt_qwen3 import Action, ActionError, action_anchors, action_box, check_action

SURFACES = ("walls", "doors", "windows", "openings", "floors")
PLURALS = {"wall": "walls", "door": "doors", "window": "windows", "opening": "openings"}
ZUP_FROM_YUP = np.array([[1.0, 0, 0, 0], [0, 0, -1.0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]])
MAX_EXTENT_M = 100.0
SIDE_STEP_M = 0.3
ON_WALL_M = 0.25
VERSION = 2


@dataclass(frozen=True)
class Item:
    """One surface or object: `world_from_item` [4, 4] (Z up), `dimensions` [3] along its local x, y, z in metres.

    `label` is its category in words; `parent` the identifier of what it belongs to, or None; `outline` [N, 3] its
    corners in the local frame (empty: the rectangle of its dimensions).
    """

    group: str
    label: str
    identifier: str
    parent: str | None
    dimensions: Float
    world_from_item: Float
    is_curved: bool = False
    outline: Float = field(default_factory=lambda: np.zeros((0, 3)))

    def corners(self) -> Float:
        """World corners [N, 3] of a surface's outline."""
        x, y = self.dimensions[:2] / 2
        local = self.outline if len(self.outline) else np.array([[-x, -y, 0], [x, -y, 0], [x, y, 0], [-x, y, 0]])
        return local @ self.world_from_item[:3, :3].T + self.world_from_item[:3, 3]


@dataclass(frozen=True)
class CapturedRoom:
    """A capture in our world frame: `items` in the order of the file; `sections` of (label, centre [3])."""

    items: list[Item]
    sections: list[tuple[str, Float]]

    def group(self, name: str) -> list[Item]:
        """The items of one list of the export, such as `walls`."""
        return [item for item in self.items if item.group == name]

    def targets(self) -> list[Target]:
        """Every item that an action can name, as targets; floors and curved surfaces are none.

        Axis 1 of a plane points into the room: to the side where a floor lies, else to the nearest section's centre.
        """
        floors = shapely.union_all([shapely.Polygon(floor.corners()[:, :2]) for floor in self.group("floors")])
        return [self._target(item, floors) for item in self.items if item.group != "floors" and not item.is_curved]

    def _target(self, item: Item, floors: shapely.Geometry) -> Target:
        across, up, normal = item.world_from_item[:3, :3].T
        is_plane = item.group != "objects"
        center = item.world_from_item[:3, 3]
        if is_plane and not self._faces_room(center, normal, floors):
            normal = -normal
        width, height, depth = item.dimensions
        size = (width, 0.0 if is_plane else depth, height)
        axes = np.stack([across, normal, up])
        return upright_target(item.label, "plane" if is_plane else "object", center, size, axes, item.identifier)

    def _faces_room(self, center: Float, normal: Float, floors: shapely.Geometry) -> bool:
        ahead, behind = (
            shapely.contains_xy(floors, *(center + sign * SIDE_STEP_M * normal)[:2]) for sign in (1.0, -1.0)
        )
        if ahead != behind:
            return bool(ahead)
        insides = [center_of for _, center_of in self.sections] or [
            floor.corners().mean(0) for floor in self.group("floors")
        ]
        if not insides:
            return True
        nearest = min(insides, key=lambda inside: float(np.linalg.norm(inside - center)))
        return float((nearest - center) @ normal) >= 0


# -------------------------------------------------------------------------------------------------------------- reading


def read_roomplan(path: Path, skips: Skips) -> CapturedRoom:
    """Reads an export. Items that are damaged, or whose parent is missing, are counted.

    Raises:
        SourceError: no JSON, or none of RoomPlan's lists in it.
    """
    export = read_json(path)
    rooms = [export]
    if isinstance(export, dict) and "walls" not in export and isinstance(export.get("rooms"), list):
        rooms = export["rooms"]
    items: list[Item] = []
    sections: list[tuple[str, Float]] = []
    for room in rooms:
        key_of(room, "walls", list, str(path))
        for group in (*SURFACES, "objects"):
            for index, record in enumerate(key_of({group: room.get(group, [])}, group, list, str(path))):
                try:
                    items.append(_item(record, group, f"{path}, {group}[{index}]"))
                except SourceError as error:
                    skips.fault("item unreadable", error)
        for index, section in enumerate(room.get("sections") or []):
            center = numbers(key_of(section, "center", list, f"{path}, sections[{index}]"), (3,), f"{path}, sections")
            sections.append(
                (words_of(key_of(section, "label", str, f"{path}, sections")), ZUP_FROM_YUP[:3, :3] @ center)
            )
    known = {item.identifier for item in items}
    for item in items:
        if item.parent is not None and item.parent not in known:
            skips.fault("parent not found", SourceError(f"{path}: {item.label} {item.identifier} names {item.parent}"))
    return CapturedRoom(items, sections)


def words_of(camel: str) -> str:
    """RoomPlan's name in words: washerDryer -> washer dryer."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", camel).lower()


def camel_of(words: str) -> str:
    """Words as RoomPlan writes a name: washer dryer -> washerDryer."""
    first, *rest = words.split()
    return first + "".join(word.capitalize() for word in rest)


def _item(record: Any, group: str, where: str) -> Item:
    category = key_of(record, "category", dict, where)
    if len(category) != 1:
        raise SourceError(f"{where}, category has the keys {sorted(category)}, wanted one")
    dimensions = numbers(key_of(record, "dimensions", list, where), (3,), f"{where}, dimensions")
    positive = dimensions if group == "objects" else dimensions[:2]
    if (positive <= 0).any() or (dimensions < 0).any() or (dimensions > MAX_EXTENT_M).any():
        raise SourceError(
            f"{where}, dimensions {dimensions.tolist()}, wanted metres above 0 and at most {MAX_EXTENT_M:g}"
        )
    matrix = numbers(key_of(record, "transform", list, where), (4, 4), f"{where}, transform").T
    rotation = matrix[:3, :3]
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-2) or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise SourceError(f"{where}, transform is not rigid (16 numbers, column-major)")
    corners = record.get("polygonCorners") or []
    return Item(
        group=group,
        label=words_of(next(iter(category))),
        identifier=key_of(record, "identifier", str, where),
        parent=record.get("parentIdentifier"),
        dimensions=dimensions,
        world_from_item=ZUP_FROM_YUP @ matrix,
        is_curved=record.get("curve") is not None,
        outline=numbers(corners, (len(corners), 3), f"{where}, polygonCorners"),
    )


# -------------------------------------------------------------------------------------------------------------- writing


def write_roomplan(path: Path, targets: Sequence[Target], section: str = "unidentified") -> None:
    """Writes targets as RoomPlan-style JSON (one room, Y-up). `read_roomplan(path).targets()` gives them back.

    A plane named wall, door, window or opening becomes that surface; doors, windows and openings get the wall they lie
    in as parent. Everything else becomes an object. Labels beyond RoomPlan's own categories stay as they are.
    """
    groups: dict[str, list[dict[str, Any]]] = {group: [] for group in (*SURFACES, "objects")}
    walls = [(index, target) for index, target in enumerate(targets) if _group_of(target) == "walls"]
    for index, target in enumerate(targets):
        group = _group_of(target)
        record = _record(index, target, group)
        if group in ("doors", "windows", "openings"):
            holders = [wall_index for wall_index, wall in walls if _lies_in(target, wall)]
            record["parentIdentifier"] = _identifier(holders[0], targets[holders[0]]) if holders else None
        groups[group].append(record)
    centers = np.array([target["center"] for target in targets]).reshape(-1, 3)
    middle = ZUP_FROM_YUP[:3, :3].T @ centers.mean(0) if len(centers) else np.zeros(3)
    export = {
        "version": VERSION,
        "story": 0,
        "sections": [{"center": _rounded(middle), "label": camel_of(section), "story": 0}],
        **groups,
    }
    path.write_text(json.dumps(export, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def targets_of_actions(actions: Sequence[Mapping[str, Any]]) -> list[Target]:
    """Decoded actions (world frame) as targets: depth 0 is a plane, everything else an object."""
    targets = []
    for action in actions:
        for anchor in action_anchors(action):
            center, size, axes = action_box(anchor)
            kind = "plane" if size[1] == 0 else "object"
            targets.append(upright_target(anchor["label"], kind, center, size, axes, f"anchor {anchor['label']}"))
    return targets


def _group_of(target: Target) -> str:
    return PLURALS.get(target["label"], "objects") if target["kind"] == "plane" else "objects"


def _record(index: int, target: Target, group: str) -> dict[str, Any]:
    width, depth, height = target["size"]
    normal, up = np.asarray(target["axes"])[1], np.array([0.0, 0.0, 1.0])
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([np.cross(up, normal), up, normal], axis=1)
    matrix[:3, 3] = target["center"]
    record = {
        "category": {camel_of(target["label"]): {"isOpen": False} if group == "doors" else {}},
        "confidence": {"medium": {}},
        "dimensions": _rounded([width, height, 0.0 if group != "objects" else depth]),
        "identifier": _identifier(index, target),
        "parentIdentifier": None,
        "story": 0,
        "transform": _rounded((ZUP_FROM_YUP.T @ matrix).T.ravel()),
    }
    surface = {"completedEdges": [], "curve": None, "polygonCorners": []}
    return {**record, **({"attributes": {}} if group == "objects" else surface)}


def _identifier(index: int, target: Target) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{index} {target['label']} {target['center']}")).upper()


def _lies_in(target: Target, wall: Target) -> bool:
    axes = np.asarray(wall["axes"])
    along, across, _ = axes @ (np.asarray(target["center"]) - np.asarray(wall["center"]))
    return abs(across) <= ON_WALL_M and abs(along) <= wall["size"][0] / 2


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 7) + 0.0 for value in values]


def main(arguments: Sequence[str] | None = None) -> None:
    """Turns decoded actions (one JSON object a line, {"action": …} or an action itself) into RoomPlan-style JSON."""
    parser = argparse.ArgumentParser(prog="python -m datasets_scripts.roomplan", description=main.__doc__)
    parser.add_argument("predictions", type=Path, help="JSON lines, world frame")
    parser.add_argument("--output", type=Path, required=True, help="RoomPlan-style JSON")
    parser.add_argument("--scene", help="only the actions of this scene")
    options = parser.parse_args(arguments)
    try:
        actions = list(_decoded_actions(options.predictions, options.scene))
        write_roomplan(options.output, targets_of_actions(actions))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{options.output}: {len(actions)} actions")


def _decoded_actions(path: Path, scene: str | None) -> Iterator[Action]:
    """The actions of a JSON-lines file; rows whose text was no action have null there and are left out."""
    for where, record in read_records(path):
        action = checked(record, dict, where)
        if "action" in action and not isinstance(action["action"], str):
            action = action["action"]
        if action is not None and scene in (None, action.get("scene")):
            try:
                yield check_action(action)
            except ActionError as error:
                raise SourceError(f"{where}: {error}") from error


if __name__ == "__main__":
    main()
