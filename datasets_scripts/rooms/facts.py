"""What is true in a room: relations between things, as far as they can be told without doubt."""

from functools import cached_property

import numpy as np
import shapely

from datasets_scripts.rooms.scene import Room, SceneObject

NEAREST_MARGIN = 0.3  # metres by which the nearest must beat the second nearest
NEAREST_REACH = 2.0  # metres within which "closest to" is worth saying
HEIGHT_MARGIN = 0.15  # metres


class Facts:
    """Relations between the objects `kept` (indices into room.objects); the others are treated as absent.

    A method that names one thing returns None where the answer would be debatable.
    """

    def __init__(self, room: Room, kept: list[int] | None = None, whole: "Facts | None" = None) -> None:
        self.room = room
        self.kept = list(range(len(room.objects))) if kept is None else kept
        if whole is not None:  # share what does not depend on `kept`
            self.gaps, self.polygons = whole.gaps, whole.polygons
        else:
            self.polygons = shapely.polygons(np.array([item.footprint() for item in room.objects]))
            self.gaps = shapely.distance(self.polygons[:, None], self.polygons[None])  # [n, n] metres, seen from above
        self.by_label: dict[str, list[int]] = {}
        for index in self.kept:
            self.by_label.setdefault(room.objects[index].label, []).append(index)

    @cached_property
    def unique(self) -> dict[str, int]:
        """Label -> index of the things that are the only ones of their kind."""
        return {label: indices[0] for label, indices in self.by_label.items() if len(indices) == 1}

    @cached_property
    def standing(self) -> list[int]:
        """Things that stand on the floor (no rugs, nothing wall-mounted, nothing on top of something)."""
        objects = self.room.objects
        return [i for i in self.kept if is_standing(objects[i])]

    def item(self, index: int) -> SceneObject:
        """Return an object of the room."""
        return self.room.objects[index]

    def on_top(self, support: int) -> list[int]:
        """Things that stand on `support`."""
        return [i for i in self.kept if self.item(i).support == support]

    def nearest(self, origin: int, among: list[int], reach: float = NEAREST_REACH) -> int | None:
        """Return the one of `among` closest to `origin`, if it is so by a clear margin and within `reach`."""
        others = [i for i in among if i != origin]
        return clear_minimum([float(self.gaps[origin, i]) for i in others], others, reach)

    def above(self, index: int) -> int | None:
        """Return the only thing that hangs on the wall right above a thing standing at that wall."""
        item = self.item(index)
        if item.wall is None or item.mounted:
            return None
        wall = self.room.walls[item.wall]
        hanging = [i for i in self.kept if self.item(i).mounted and self.item(i).wall == item.wall]
        middle = float((item.origin[:2] - wall.start) @ wall.direction)
        over, doubtful = [], []
        for i in hanging:
            other = self.item(i)
            offset = abs(float((other.origin[:2] - wall.start) @ wall.direction) - middle)
            if other.origin[2] > item.top - 0.02 and offset < (item.size[0] + other.size[0]) / 2:
                (over if offset < max(item.size[0], other.size[0]) / 2 else doubtful).append(i)
        return over[0] if len(over) == 1 and not doubtful else None

    def between(self, first: int, second: int) -> int | None:
        """Return the only standing thing between two standing things that are some metres apart."""
        a, b = self.item(first).origin[:2], self.item(second).origin[:2]
        length = float(np.linalg.norm(b - a))
        if not 1.8 < length < 5.0 or self.gaps[first, second] < 1.0:
            return None
        line = shapely.LineString([a, b])
        others = [i for i in self.standing if i not in (first, second)]
        inside, doubtful = [], []
        for i in others:
            along = float((self.item(i).origin[:2] - a) @ (b - a)) / length**2
            distance = float(shapely.distance(line, shapely.Point(self.item(i).origin[:2])))
            if 0.25 < along < 0.75 and distance < 0.3:
                inside.append(i)
            elif shapely.distance(line, self.polygons[i]) < 0.25:
                doubtful.append(i)
        return inside[0] if len(inside) == 1 and not doubtful else None

    def taller(self, first: int, second: int) -> bool | None:
        """Whether the first reaches clearly higher above its own base than the second; None if about the same."""
        difference = self.item(first).size[2] - self.item(second).size[2]
        return None if abs(difference) < HEIGHT_MARGIN else bool(difference > 0)

    def closer(self, origin: int, first: int, second: int, margin: float = 0.5) -> bool | None:
        """Whether `first` is clearly closer to `origin` than `second` is."""
        difference = self.gaps[origin, second] - self.gaps[origin, first]
        return None if abs(difference) < margin else bool(difference > 0)


def is_standing(item: SceneObject) -> bool:
    """Whether a thing stands on the floor as furniture does."""
    return not item.mounted and item.support is None and item.label != "rug"


def clear_minimum(values: list[float], items: list[int], reach: float) -> int | None:
    """Return the item of the smallest value if it is below `reach` and NEAREST_MARGIN below the next one."""
    if not values:
        return None
    order = np.argsort(values)
    best = values[order[0]]
    clear = len(values) == 1 or values[order[1]] - best > NEAREST_MARGIN
    return items[order[0]] if best < reach and clear else None
