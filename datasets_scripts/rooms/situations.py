"""Where the asking person is: "I am standing by the sofa facing the window." and what lies left and right of there.

A text does not fix a point, so a situation holds several possible standpoints. A bearing counts only if it falls on
the same side from all of them, and clearly so from the main one. Bearings are degrees, positive to the left.
"""

from dataclasses import dataclass, field

import numpy as np
import shapely

from datasets_scripts.rooms.catalogue import CATALOGUE, named
from datasets_scripts.rooms.facts import Facts, clear_minimum
from datasets_scripts.rooms.scene import Room, SceneObject

SIDES = ("left", "right", "front", "behind")
_STANDOFF = 0.4  # metres between a standing person and the thing they stand by
_TOO_NEAR = 0.5  # metres; nearer things have no reliable bearing
_STRICT, _LOOSE = 15.0, 2.0  # degrees from a diagonal that a bearing must keep, from the main and the other standpoints
_WIDE = 20.0  # degrees by which a sector is widened to look for rivals

_BY = (
    "I am standing by the {x}, facing the {y}.",
    "I am standing next to the {x} and looking at the {y}.",
    "I stand beside the {x} and face the {y}.",
)
_SITTING = ("I am sitting on the {x}.", "I have just sat down on the {x}.", "I am sitting on the {x}, leaning back.")
_BACK = (
    "I am standing with my back to the {x}.",
    "I am standing right in front of the {x}, with my back to it.",
    "I have the {x} right behind me.",
)
_ENTERED = ("I have just come in through the {x}.", "I am entering the room through the {x}.")
_FACING = ("I am standing in front of the {x}, looking at it.", "I am facing the {x} from close by.")


@dataclass(frozen=True)
class Situation:
    """A text and the standpoints it allows: positions [P, 2] and unit viewing directions [P, 2], the main one first.

    Room frame, metres. kind: "by", "sitting", "back" or "facing". `mentioned` holds the indices of the things that the
    text names.
    """

    kind: str
    text: str
    positions: np.ndarray
    directions: np.ndarray
    mentioned: tuple[int, ...]
    _known: dict[tuple[object, ...], str | int | None] = field(default_factory=dict, repr=False, compare=False)
    """Answers that several families of questions ask for."""

    def bearings(self, point: np.ndarray) -> np.ndarray:
        """Return the bearing [P] of a point [2] from every standpoint, degrees, positive to the left."""
        offset = point - self.positions
        forward = (offset * self.directions).sum(1)
        left = self.directions[:, 0] * offset[:, 1] - self.directions[:, 1] * offset[:, 0]
        return np.degrees(np.arctan2(left, forward))

    def side(self, facts: Facts, index: int) -> str | None:
        """Return on which of SIDES a thing lies, None if that is debatable or it stands too near."""
        key = ("side", index)
        if key not in self._known:
            self._known[key] = self._find_side(facts, index)
        return self._known[key]

    def _find_side(self, facts: Facts, index: int) -> str | None:
        if index in self.mentioned:
            return None
        bearings = self.bearings(facts.item(index).origin[:2])
        side = _side_of(float(bearings[0]), _STRICT)
        if side is None or any(_side_of(float(value), _LOOSE) != side for value in bearings[1:]):
            return None
        distances = shapely.distance(shapely.points(self.positions), facts.polygons[index])
        return None if distances.min() < _TOO_NEAR else side

    def nearest_on(self, facts: Facts, side: str) -> int | None:
        """Return the closest standing thing on a side, from every standpoint and whatever the sector's exact width."""
        key = ("nearest", tuple(facts.kept), side)
        if key not in self._known:
            self._known[key] = self._find_nearest(facts, side)
        return self._known[key]

    def _find_nearest(self, facts: Facts, side: str) -> int | None:
        members = [i for i in facts.standing if i not in self.mentioned]
        if not members:
            return None
        distances = shapely.distance(shapely.points(self.positions)[:, None], facts.polygons[members][None])
        bearings = np.stack([self.bearings(facts.item(i).origin[:2]) for i in members], axis=1)
        winners = set()
        for distance, bearing in zip(distances.tolist(), bearings.tolist()):
            for widening in (-_WIDE / 2, _WIDE):
                inside = [k for k, value in enumerate(bearing) if _side_of(value, -widening) == side]
                winners.add(clear_minimum([distance[k] for k in inside], [members[k] for k in inside], reach=4.0))
            if len(winners) > 1:
                return None
        winner = winners.pop()
        return winner if winner is not None and self.side(facts, winner) == side else None

    def can_see(self, facts: Facts, index: int) -> bool | None:
        """Whether a thing is in plain view without turning the head; None if hidden or near the edge of view."""
        bearings = np.abs(self.bearings(facts.item(index).origin[:2]))
        if index in self.mentioned or (bearings > 100).all():
            return None if index in self.mentioned else False
        if (bearings > 30).any():
            return None
        line = shapely.LineString([self.positions[0], facts.item(index).origin[:2]])
        if not shapely.Polygon(facts.room.polygon).buffer(0.15).covers(line):
            return None
        tall = [i for i in facts.kept if i != index and facts.item(i).top > 0.9 and not facts.item(i).mounted]
        hidden = any(line.intersects(facts.polygons[i]) for i in tall if i not in self.mentioned)
        return None if hidden else True

    def world_pose(self, room: Room) -> np.ndarray:
        """Return the main standpoint as a pose [4, 4] in the world: origin on the floor, x right, y forward, z up."""
        (x, y), (fx, fy) = self.positions[0], self.directions[0]
        room_from_person = np.array([[fy, fx, 0.0, x], [-fx, fy, 0.0, y], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
        return room.world_from_room @ room_from_person


def draw_situations(facts: Facts, whole: Facts, count: int, rng: np.random.Generator) -> list[Situation]:
    """Draw up to `count` situations that name visible things (`facts`) which are unique in the room (`whole`)."""
    names = [i for label, i in facts.unique.items() if whole.unique.get(label) == i and label != "rug"]
    names = [i for i in names if facts.item(i).support is None]
    if len(names) < 2:
        return []
    found = []
    for _ in range(4 * count):
        x, y = (int(i) for i in rng.choice(names, 2, replace=False))
        kind = ("by", "by", "by", "sitting", "back", "back", "facing")[rng.integers(7)]
        situation = _by(whole, x, y, rng) if kind == "by" else _fixed(whole, x, kind, rng)
        if situation is not None and all(situation.mentioned != other.mentioned for other in found):
            found.append(situation)
        if len(found) == count:
            break
    return found


def _side_of(bearing: float, margin: float) -> str | None:
    """Return the quarter that a bearing lies in, at least `margin` degrees (may be negative) from the diagonals."""
    size = abs(bearing)
    if size < 45 - margin:
        return "front"
    if size > 135 + margin:
        return "behind"
    if 45 + margin < size < 135 - margin:
        return "left" if bearing > 0 else "right"
    return None


def _by(facts: Facts, x: int, y: int, rng: np.random.Generator) -> Situation | None:
    """Standing by x, facing y: any free spot around x will do, so all of them are standpoints."""
    item, goal = facts.item(x), facts.item(y).origin[:2]
    if facts.gaps[x, y] < 1.2:
        return None
    spots = _free_spots(facts, item)
    if not len(spots):
        return None
    spots = spots[np.argsort(np.linalg.norm(spots - goal, axis=1))]
    positions = np.concatenate([spots, item.origin[None, :2]])
    offset = goal - positions
    text = _pick(_BY, rng).format(x=named(item.label), y=named(facts.item(y).label))
    return Situation("by", text, positions, offset / np.linalg.norm(offset, axis=1, keepdims=True), (x, y))


def _fixed(facts: Facts, x: int, kind: str, rng: np.random.Generator) -> Situation | None:
    """Situations in which x alone fixes where one looks."""
    item = facts.item(x)
    entry = CATALOGUE[item.label]
    if not entry.has_front or item.kind == "round":
        return None
    if kind == "sitting":
        if not entry.seat or item.label == "bed":
            return None
        texts, steps, direction = _SITTING, np.array([0.0, 0.15]), item.front
    else:
        if item.wall is None or (item.mounted and item.origin[2] > 1.0 and kind == "back"):
            return None
        steps = item.size[1] / 2 + _STANDOFF + (np.array([0.0, 0.3]) if kind == "back" else np.array([0.2, 0.6]))
        back_texts = _ENTERED if item.label == "door" else _BACK
        texts, direction = (back_texts, item.front) if kind == "back" else (_FACING, -item.front)
    positions = item.origin[None, :2] + steps[:, None] * item.front
    if kind != "sitting" and not _is_free(facts, positions[0], item):
        return None
    text = _pick(texts, rng).format(x=named(item.label))
    return Situation(kind, text, positions, np.broadcast_to(direction, positions.shape), (x,))


def _free_spots(facts: Facts, item: SceneObject) -> np.ndarray:
    """Return the spots [n, 2] beside a thing where a person can stand."""
    reach = item.size[:2] / 2 + _STANDOFF
    around = np.array([(1, 0), (0.7, 1), (-0.7, 1), (-1, 0), (0.7, -1), (-0.7, -1)]) * reach
    spots = around @ item.rotation[:2, :2].T + item.origin[:2]
    return spots[[_is_free(facts, spot, item) for spot in spots]]


def _is_free(facts: Facts, spot: np.ndarray, item: SceneObject) -> bool:
    point = shapely.Point(spot)
    if shapely.Polygon(facts.room.polygon).buffer(-0.2).contains(point):
        bodies = [facts.polygons[i] for i in facts.standing if facts.item(i) is not item]
        return not bodies or bool(shapely.distance(point, np.array(bodies)).min() > 0.15)
    return False


def _pick(texts: tuple[str, ...], rng: np.random.Generator) -> str:
    return texts[rng.integers(len(texts))]
