"""Choosing camera poses at eye height that together see the whole room."""

import numpy as np
import shapely

from datasets_scripts.rooms.plan import FloorPlan
from datasets_scripts.rooms.scene import SceneObject, room_from_cam

EYE_HEIGHT = (1.35, 1.75)  # metres
_CANDIDATES = 72
_WALL_DISTANCE = 0.3
_BODY = 0.28  # metres between a camera and furniture
_NEAR, _FAR = 0.6, 7.0  # metres between which a point counts as seen
_CLEAR = 2.0  # metres up to which a point is seen best
_OBJECT_WEIGHT = 4.0
_AGAIN = 0.5  # worth of seeing once more what another view shows as clearly


def draw_focal(rng: np.random.Generator) -> float:
    """Draw a focal length in image widths: a horizontal field of view of 62 to 78 degrees."""
    return float(0.5 / np.tan(np.radians(rng.uniform(62, 78)) / 2))


def draw_cameras(
    plan: FloorPlan, objects: list[SceneObject], focal: float, num_views: int, rng: np.random.Generator
) -> np.ndarray:
    """Return `num_views` camera poses room_from_cam [V, 4, 4], in random order.

    Greedy choice among random candidates: each view adds what the others see least clearly; objects, floor and walls
    count. A point is seen inside the frustum, the clearer the nearer; occlusion is ignored.
    """
    positions = _standing_points(plan, objects, rng)
    candidates = np.stack([_aimed(position, plan, objects, rng) for position in positions])  # [C, 4, 4]
    points, weights = _points_to_see(plan, objects)
    clarity = _clarity(candidates, points, focal)  # [C, N]
    clearest, total = np.zeros(len(points)), np.zeros(len(points))
    chosen: list[int] = []
    for _ in range(num_views):
        better = (clarity - clearest).clip(min=0)
        gain = (weights * (better + _AGAIN * clarity / (1 + 4 * total))).sum(1)
        gain[chosen] = -1.0
        best = int(gain.argmax())
        chosen.append(best)
        clearest = np.maximum(clearest, clarity[best])
        total += clarity[best]
    return candidates[rng.permutation(chosen)]


def _standing_points(plan: FloorPlan, objects: list[SceneObject], rng: np.random.Generator) -> np.ndarray:
    """Return camera positions [C, 3] inside the room and clear of furniture."""
    room = shapely.Polygon(plan.polygon).buffer(-_WALL_DISTANCE)
    bodies = [shapely.Polygon(item.footprint(_BODY)) for item in objects if item.label != "rug" and not item.mounted]
    free = room.difference(shapely.union_all(bodies))
    if free.is_empty:
        raise ValueError("the room has no free floor to stand on")
    shapely.prepare(free)
    low, high = plan.polygon.min(0), plan.polygon.max(0)
    found: list[np.ndarray] = []
    while sum(map(len, found)) < _CANDIDATES:
        points = rng.uniform(low, high, (256, 2))
        found.append(points[shapely.contains_xy(free, points[:, 0], points[:, 1])])
    floor = np.concatenate(found)[:_CANDIDATES]
    return np.column_stack([floor, rng.uniform(*EYE_HEIGHT, len(floor))])


def _aimed(position: np.ndarray, plan: FloorPlan, objects: list[SceneObject], rng: np.random.Generator) -> np.ndarray:
    """Return a pose [4, 4] at `position` that looks at a random object or across the room, slightly downwards."""
    if objects and rng.random() < 0.6:
        aim = objects[rng.integers(len(objects))].center
    else:
        low, high = plan.polygon.min(0), plan.polygon.max(0)
        aim = np.array([*rng.uniform(low, high), 0.9])
    offset = aim - position
    yaw = np.arctan2(-offset[0], offset[1]) + rng.normal(0, 0.15)
    level = np.arctan2(offset[2], max(np.hypot(offset[0], offset[1]), 0.5))
    pitch = np.clip(0.6 * level + rng.normal(0, 0.06), -0.6, 0.1)
    return room_from_cam(position, yaw, pitch, rng.normal(0, 0.02))


def _points_to_see(plan: FloorPlan, objects: list[SceneObject]) -> tuple[np.ndarray, np.ndarray]:
    """Return points [N, 3] of objects, floor and walls, and the weight of each [N]."""
    centers = np.array([item.center for item in objects]).reshape(-1, 3)
    grid = [
        np.stack(np.meshgrid(*(np.arange(a + 0.4, b - 0.3, 0.8) for a, b in zip(*tile))), -1).reshape(-1, 2)
        for tile in plan.rectangles
    ]
    floor = np.concatenate(grid)
    rims = [wall.start + np.arange(0.4, wall.length, 0.8)[:, None] * wall.direction for wall in plan.walls]
    walls = np.concatenate(rims)
    points = [
        centers,
        np.column_stack([floor, np.zeros(len(floor))]),
        np.column_stack([walls, np.full(len(walls), 1.2)]),
    ]
    weights = [np.full(len(centers), _OBJECT_WEIGHT), np.ones(len(floor)), np.ones(len(walls))]
    return np.concatenate(points), np.concatenate(weights)


def _clarity(cameras: np.ndarray, points: np.ndarray, focal: float) -> np.ndarray:
    """Return how clearly [C, N], 0 to 1, each camera sees each point: 0 outside its frustum, 1 within 2 metres."""
    local = np.einsum("cji,cnj->cni", cameras[:, :3, :3], points[None] - cameras[:, None, :3, 3])
    depth = local[..., 2]
    inside = (np.abs(local[..., :2]) * focal < 0.46 * depth[..., None]).all(-1)
    seen = inside & (depth > _NEAR) & (depth < _FAR)
    return np.where(seen, np.clip(_CLEAR / np.maximum(depth, _CLEAR), 0, 1), 0)
