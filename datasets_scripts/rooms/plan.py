"""Floor plans: rectangles and L-shapes, their walls and the quads that the renderer sees."""

from dataclasses import dataclass

import numpy as np

from datasets_scripts.rooms.materials import COLORS, MATERIAL_INDEX, jittered
from datasets_scripts.rooms.scene import BOX, QUAD, Primitives, Wall

_WALL_TONES = (
    (0.92, 0.91, 0.87),
    (0.90, 0.86, 0.76),
    (0.80, 0.86, 0.90),
    (0.82, 0.88, 0.80),
    (0.90, 0.80, 0.76),
    (0.84, 0.82, 0.88),
    (0.72, 0.74, 0.75),
    (0.66, 0.74, 0.70),
    (0.88, 0.82, 0.66),
)
_FLOOR_TONES = {
    "wood": ((0.60, 0.43, 0.27), (0.45, 0.31, 0.20), (0.72, 0.58, 0.41), (0.52, 0.45, 0.38)),
    "tile": ((0.82, 0.80, 0.76), (0.62, 0.64, 0.66), (0.72, 0.62, 0.54), (0.56, 0.62, 0.60)),
    "carpet": ((0.62, 0.58, 0.52), (0.45, 0.48, 0.55), (0.55, 0.46, 0.44), (0.50, 0.54, 0.46)),
}
_FLOOR_TEXTURES = {"wood": ("planks", (0.10, 0.2)), "tile": ("tiles", (0.3, 0.5)), "carpet": ("carpet", (0.04, 0.06))}
_BASEBOARD = (0.012, 0.08)  # thickness, height


@dataclass(frozen=True)
class FloorPlan:
    """polygon [K, 2] counter-clockwise and the rectangles [R, 2 corners, 2] that tile it, room frame, metres."""

    polygon: np.ndarray
    rectangles: np.ndarray
    height: float

    @property
    def walls(self) -> list[Wall]:
        """The straight walls in the order of the polygon's corners."""
        return [Wall(start, end) for start, end in zip(self.polygon, np.roll(self.polygon, -1, axis=0))]

    @property
    def area(self) -> float:
        """Floor area in square metres."""
        return float(np.prod(self.rectangles[:, 1] - self.rectangles[:, 0], axis=1).sum())


def draw_floor_plan(rng: np.random.Generator) -> FloorPlan:
    """Draw a floor plan of about 9 to 45 square metres; a third of the larger ones are L-shaped."""
    width, depth = rng.uniform(3.2, 7.2), rng.uniform(3.0, 6.2)
    height = float(rng.uniform(2.4, 3.0))
    if min(width, depth) > 4.2 and rng.random() < 0.4:
        cut_x, cut_y = rng.uniform(1.4, width - 2.4), rng.uniform(1.3, depth - 2.4)
        inner_x, inner_y = width - cut_x, depth - cut_y
        corners = [(0, 0), (width, 0), (width, inner_y), (inner_x, inner_y), (inner_x, depth), (0, depth)]
        rectangles = [[(0, 0), (width, inner_y)], [(0, inner_y), (inner_x, depth)]]
    else:
        corners = [(0, 0), (width, 0), (width, depth), (0, depth)]
        rectangles = [[(0, 0), (width, depth)]]
    middle = np.array([width, depth]) / 2
    polygon, tiles = np.array(corners) - middle, np.array(rectangles) - middle
    if rng.random() < 0.5:  # mirror image
        polygon = polygon[::-1] * (-1, 1)
        tiles = tiles * (-1, 1)
        tiles = np.stack([tiles.min(1), tiles.max(1)], axis=1)
    return FloorPlan(polygon, tiles, height)


def build_shell(plan: FloorPlan, rng: np.random.Generator) -> tuple[Primitives, np.ndarray, str]:
    """Return the primitives of walls, floor and ceiling, the surface index of each (see Room), the floor's material.

    Walls get a paint, a striped paper or bricks; one wall may differ from the others.
    """
    floor_material = list(_FLOOR_TONES)[rng.integers(len(_FLOOR_TONES))]
    tones = _FLOOR_TONES[floor_material]
    texture, (low, high) = _FLOOR_TEXTURES[floor_material]
    rows: list[Primitives] = []
    surfaces: list[int] = []
    tone = jittered(rng, _WALL_TONES[rng.integers(len(_WALL_TONES))])
    paper = ("plain", "plain", "stripes", "bricks")[rng.integers(4)]
    accent = int(rng.integers(len(plan.walls))) if rng.random() < 0.35 else -1
    accent_tone = jittered(rng, list(COLORS.values())[rng.integers(2, len(COLORS))]) * 0.55 + 0.3
    skirting = jittered(rng, ((0.9, 0.9, 0.88), (0.45, 0.3, 0.2))[rng.integers(2)])
    for index, wall in enumerate(plan.walls):
        color, material = (accent_tone, "plain") if index == accent else (tone, paper)
        rows += [_wall_quad(wall, plan.height, color, material, rng), _skirting_board(wall, skirting)]
        surfaces += [index, index]
    floor = jittered(rng, tones[rng.integers(len(tones))])
    pattern = (float(rng.uniform(low, high)), float(rng.integers(1 << 16)))
    bounds = np.stack([plan.polygon.min(0), plan.polygon.max(0)])  # what lies outside an L-shape is behind its walls
    rows.append(_level_quad(bounds, 0.0, 1, floor, texture, pattern))
    rows.append(_level_quad(bounds, plan.height, -1, np.array([0.95, 0.95, 0.94]), "plain", (0.2, 0.0)))
    surfaces += [len(plan.walls), len(plan.walls) + 1]
    return Primitives.concatenate(rows), np.array(surfaces), floor_material


def _one(
    shape: int,
    center: np.ndarray,
    half: np.ndarray,
    rotation: np.ndarray,
    color: np.ndarray,
    material: str,
    texture: tuple[float, float],
) -> Primitives:
    return Primitives(
        np.array([shape]),
        center[None],
        half[None],
        rotation[None],
        np.asarray(color)[None],
        np.array([MATERIAL_INDEX[material]]),
        np.array([texture]),
    )


def _wall_quad(wall: Wall, height: float, color: np.ndarray, material: str, rng: np.random.Generator) -> Primitives:
    rotation = np.zeros((3, 3))
    rotation[:2, 0], rotation[2, 1], rotation[:2, 2] = wall.direction, 1.0, wall.normal
    center = np.array([*(wall.start + wall.end) / 2, height / 2])
    scale = {"stripes": rng.uniform(0.12, 0.3), "bricks": rng.uniform(0.18, 0.26)}.get(material, 0.5)
    half = np.array([wall.length / 2, height / 2, 1.0])
    return _one(QUAD, center, half, rotation, color, material, (float(scale), float(rng.integers(1 << 16))))


def _skirting_board(wall: Wall, color: np.ndarray) -> Primitives:
    thickness, height = _BASEBOARD
    rotation = np.eye(3)
    rotation[:2, 0], rotation[:2, 1] = wall.direction, wall.normal
    center = np.array([*((wall.start + wall.end) / 2 + wall.normal * thickness / 2), height / 2])
    half = np.array([wall.length / 2, thickness / 2, height / 2])
    return _one(BOX, center, half, rotation, color, "plain", (0.5, 0.0))


def _level_quad(
    rectangle: np.ndarray, z: float, facing: int, color: np.ndarray, material: str, texture: tuple[float, float]
) -> Primitives:
    low, high = rectangle
    rotation = np.diag([1.0, float(facing), float(facing)])
    center, half = np.array([*(low + high) / 2, z]), np.array([*(high - low) / 2, 1.0])
    return _one(QUAD, center, half, rotation, color, material, texture)
