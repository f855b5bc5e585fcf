"""Putting things where they belong, without overlaps."""

import numpy as np
import shapely

from datasets_scripts.rooms.catalogue import CATALOGUE, make
from datasets_scripts.rooms.plan import FloorPlan
from datasets_scripts.rooms.scene import SceneObject

GAP = 0.03  # metres between furniture and the wall behind it
CLEARANCE = 0.05  # metres between two pieces of furniture
_DOOR_FREE = 0.85  # metres kept free before a door
_TRIES = 12


class Placer:
    """Holds what already stands in a room and finds free places for more.

    Every `place` method tries a few random poses, adds the thing to `objects` at the first that fits and returns True,
    or leaves the room as it was and returns False. Heights count: a picture may hang above a sofa.
    """

    def __init__(self, plan: FloorPlan, rng: np.random.Generator) -> None:
        self.plan, self.rng = plan, rng
        self.walls = plan.walls
        self.objects: list[SceneObject] = []
        self._room = shapely.Polygon(plan.polygon)
        shapely.prepare(self._room)
        self._blockers: list[shapely.Polygon] = []
        self._heights: list[tuple[float, float]] = []

    @property
    def covered(self) -> float:
        """Floor area in square metres under furniture (rugs and wall-mounted things not counted)."""
        floor = [item for item in self.objects if not item.mounted and item.support is None and item.label != "rug"]
        return float(sum(item.size[0] * item.size[1] for item in floor))

    def index_of(self, item: SceneObject) -> int:
        """Return the index of an object that was placed."""
        return next(index for index, other in enumerate(self.objects) if other is item)

    def against_wall(self, item: SceneObject, walls: list[int] | None = None) -> bool:
        """Place with its back to a random wall (of `walls`, if given)."""
        candidates = walls if walls is not None else list(range(len(self.walls)))
        for _ in range(_TRIES):
            index = candidates[self.rng.integers(len(candidates))]
            wall = self.walls[index]
            room = wall.length - item.size[0] - 2 * CLEARANCE
            if room <= 0:
                continue
            along = item.size[0] / 2 + CLEARANCE + self.rng.random() * room
            item.yaw = wall.yaw
            item.origin[:2] = wall.start + along * wall.direction + (item.size[1] / 2 + GAP) * wall.normal
            if self._fits(item, CLEARANCE):
                item.wall = index
                return self._add(item)
        return False

    def in_corner(self, item: SceneObject) -> bool:
        """Place in a random corner."""
        for _ in range(_TRIES):
            index = int(self.rng.integers(len(self.walls)))
            wall, previous = self.walls[index], self.walls[index - 1]
            inset = np.hypot(item.size[0], item.size[1]) / 2 + GAP + self.rng.uniform(0, 0.1)
            item.yaw = wall.yaw
            item.origin[:2] = wall.start + inset * wall.normal + inset * previous.normal
            if self._fits(item, CLEARANCE):
                return self._add(item)
        return False

    def freely(self, item: SceneObject, margin: float = 0.3) -> bool:
        """Place anywhere in the room, `margin` metres from everything, at any yaw."""
        for _ in range(_TRIES):
            item.origin[:2] = self._random_point()
            if self.rng.random() < 0.6:
                item.yaw = self.walls[0].yaw + self.rng.integers(4) * np.pi / 2 + self.rng.normal(0, 0.05)
            else:
                item.yaw = self.rng.uniform(-np.pi, np.pi)
            if self._fits(item, margin):
                return self._add(item)
        return False

    def beside(self, item: SceneObject, anchor: SceneObject, side: int, gap: float) -> bool:
        """Place to the right (side 1) or left (-1) of an anchor, backs in line."""
        offset = np.array([side * (anchor.size[0] / 2 + item.size[0] / 2 + gap), (item.size[1] - anchor.size[1]) / 2])
        return self._relative(item, anchor, offset, anchor.yaw, wall=anchor.wall)

    def before(self, item: SceneObject, anchor: SceneObject, gap: float, shift: float = 0.0) -> bool:
        """Place in front of an anchor, turned to it, shifted sideways by `shift` metres."""
        offset = np.array([shift, anchor.size[1] / 2 + gap + item.size[1] / 2])
        return self._relative(item, anchor, offset, anchor.yaw + np.pi + self.rng.normal(0, 0.08))

    def around(self, item: SceneObject, table: SceneObject, seat: int, seats: int) -> bool:
        """Place at the table's side number `seat` of `seats`, turned to it."""
        if table.kind == "round":
            turn = 2 * np.pi * seat / seats
            reach = table.size[0] / 2 + item.size[1] / 2 + 0.06
            offset = reach * np.array([np.cos(turn), np.sin(turn)])
            yaw = table.yaw + turn + np.pi / 2
        else:
            width, depth = table.size[:2] / 2
            along = np.array([-0.5, 0.5])[(seat // 2) % 2] * width
            reach = item.size[1] / 2 + 0.06
            spots = [(along, depth + reach, np.pi), (along, -depth - reach, 0.0)]
            ends = [(width + reach, 0.0, np.pi / 2), (-width - reach, 0.0, -np.pi / 2)]
            x, y, turn = (spots + ends)[seat % 2] if seat < 4 else ends[seat - 4]
            offset, yaw = np.array([x, y]), table.yaw + turn
        return self._relative(item, table, offset, yaw + self.rng.normal(0, 0.12), clearance=0.02)

    def on_top(self, item: SceneObject, support: SceneObject) -> bool:
        """Place on a support's top, its front to the support's front."""
        spare = support.size[:2] / 2 - item.size[:2].max() / 2 - 0.02
        if support.kind == "round":
            spare = spare / np.sqrt(2)
        if (spare < 0).any():
            return False
        for _ in range(_TRIES):
            offset = self.rng.uniform(-spare, spare)
            item.origin[2] = support.top + 0.001
            if self._relative(item, support, offset, support.yaw + self.rng.normal(0, 0.15), clearance=0.04):
                item.support = self.index_of(support)
                return True
        return False

    def on_wall(
        self, item: SceneObject, bottom: float, walls: list[int] | None = None, along: float | None = None
    ) -> bool:
        """Hang on a wall, lower edge `bottom` metres above the floor, middle `along` metres from the wall's start."""
        candidates = walls if walls is not None else list(range(len(self.walls)))
        for _ in range(_TRIES):
            index = candidates[self.rng.integers(len(candidates))]
            wall = self.walls[index]
            room = wall.length - item.size[0] - 0.2
            if room <= 0 or bottom + item.size[2] > self.plan.height - 0.05:
                continue
            spot = along if along is not None else item.size[0] / 2 + 0.1 + self.rng.random() * room
            if not item.size[0] / 2 + 0.08 <= spot <= wall.length - item.size[0] / 2 - 0.08:
                continue
            item.yaw, item.mounted, item.wall = wall.yaw, True, index
            item.origin[:2] = wall.start + spot * wall.direction + (item.size[1] / 2 + 0.001) * wall.normal
            item.origin[2] = bottom
            if self._fits(item, 0.08):
                return self._add(item)
        return False

    def keep_free(self, item: SceneObject, distance: float, low: float, high: float) -> None:
        """Forbid anything between heights `low` and `high` within `distance` metres before a door or window."""
        right, out = item.rotation[:2, 0] * (item.size[0] / 2 + 0.05), item.front * distance
        base = item.origin[:2]
        self._blockers.append(shapely.Polygon([base - right, base + right, base + right + out, base - right + out]))
        self._heights.append((low, high))

    def place(self, label: str, *, color: str | None = None) -> SceneObject | None:
        """Make one piece of furniture of a class and place it the way such things stand; None if there is no room."""
        item = make(label, self.rng, color=color)
        if label == "rug":
            done = self.lay_rug(item)
        elif label in ("plant", "floor lamp", "trash can") and self.rng.random() < 0.7:
            done = self.in_corner(item)
        elif label in ("stool", "ottoman", "table", "chair") or (label == "armchair" and self.rng.random() < 0.6):
            done = self.freely(item)
        elif CATALOGUE[label].kind == "round":
            done = self.freely(item, 0.1)
        else:
            done = self.against_wall(item)
        return item if done else None

    def lay_rug(self, item: SceneObject) -> bool:
        """Lay a rug; furniture may stand on it, but two rugs do not overlap."""
        rugs = [shapely.Polygon(other.footprint()) for other in self.objects if other.label == "rug"]
        for _ in range(_TRIES):
            item.origin[:2] = self._random_point()
            item.yaw = self.walls[0].yaw + self.rng.integers(2) * np.pi / 2
            footprint = shapely.Polygon(item.footprint(0.1))
            if self._room.covers(footprint) and not any(footprint.intersects(rug) for rug in rugs):
                self.objects.append(item)
                return True
        return False

    def _relative(
        self,
        item: SceneObject,
        anchor: SceneObject,
        offset: np.ndarray,
        yaw: float,
        wall: int | None = None,
        clearance: float = CLEARANCE,
    ) -> bool:
        item.yaw = yaw
        item.origin[:2] = anchor.origin[:2] + anchor.rotation[:2, :2] @ offset
        if not self._fits(item, clearance):
            return False
        item.wall = wall
        return self._add(item)

    def _random_point(self) -> np.ndarray:
        low, high = self.plan.polygon.min(0), self.plan.polygon.max(0)
        return self.rng.uniform(low, high)

    def _fits(self, item: SceneObject, clearance: float) -> bool:
        inside = shapely.Polygon(item.footprint())
        if not self._room.covers(inside):
            return False
        bottom, top = item.origin[2] + 1e-4, item.top - 1e-4
        near = [blocker for blocker, (low, high) in zip(self._blockers, self._heights) if low < top and high > bottom]
        return not near or not shapely.intersects(shapely.Polygon(item.footprint(clearance)), near).any()

    def _add(self, item: SceneObject) -> bool:
        self.objects.append(item)
        self._blockers.append(shapely.Polygon(item.footprint()))
        self._heights.append((float(item.origin[2]), item.top))
        return True


def place_openings(placer: Placer) -> None:
    """Put one or two doors and up to four windows into the walls; keeps the room before a door free."""
    rng = placer.rng
    for _ in range(1 if rng.random() < 0.75 else 2):
        item = make("door", rng)
        if placer.on_wall(item, 0.0):
            placer.keep_free(item, _DOOR_FREE, 0.0, 2.0)
    for _ in range(rng.choice([0, 1, 2, 3, 4], p=[0.08, 0.28, 0.28, 0.2, 0.16])):
        item = make("window", rng)
        sill = float(rng.uniform(0.75, 0.95))
        if placer.on_wall(item, sill):
            placer.keep_free(item, 0.45, sill, sill + item.size[2])
