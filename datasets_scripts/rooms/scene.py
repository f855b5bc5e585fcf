"""The scene graph of a procedural room: primitives, objects, walls, cameras and the frames they live in.

Frames. `object`: origin at the centre of the footprint on the object's lowest plane, x along its width, y out of its
front, z up. `room`: origin near the middle of the floor, axes along the main walls, z up, floor at z = 0. `world`: the
frame of everything stored; room frame turned about the vertical and moved at random, so that world coordinates carry
no information. `cam`: OpenCV axes (x right, y down, z forward). Units are metres and radians.
"""

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np

BOX, CYLINDER, ELLIPSOID, QUAD = range(4)


@dataclass
class Primitives:
    """N convex primitives, each the affine image of a canonical one; arrays share their first dimension.

    Canonical shapes: BOX [-1, 1]^3; CYLINDER x^2 + y^2 <= 1, |z| <= 1; ELLIPSOID the unit ball; QUAD [-1, 1]^2 at
    z = 0, seen from +z only. frame_from_canonical = (rotation @ diag(half), center).
    """

    shape: np.ndarray  # [N] int64
    center: np.ndarray  # [N, 3] metres
    half: np.ndarray  # [N, 3] half extents, metres
    rotation: np.ndarray  # [N, 3, 3]
    color: np.ndarray  # [N, 3] sRGB in [0, 1]
    material: np.ndarray  # [N] int64, index into materials.MATERIALS
    texture: np.ndarray  # [N, 2] pattern size in metres, pattern seed

    def __len__(self) -> int:
        return len(self.shape)

    @staticmethod
    def concatenate(parts: list["Primitives"]) -> "Primitives":
        """Return all primitives of `parts`, in order."""
        names = [item.name for item in fields(Primitives)]
        return Primitives(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    def moved(self, rotation: np.ndarray, translation: np.ndarray) -> "Primitives":
        """Return the primitives under x -> rotation @ x + translation."""
        return Primitives(
            self.shape,
            self.center @ rotation.T + translation,
            self.half,
            rotation @ self.rotation,
            self.color,
            self.material,
            self.texture,
        )

    def reach(self, directions: np.ndarray) -> np.ndarray:
        """Return how far the primitives reach along each of the unit vectors [D, 3] from the origin, exactly, [D]."""
        local = np.abs(np.einsum("nij,di->ndj", self.rotation, directions)) * self.half[:, None]  # [N, D, 3]
        corner = local.sum(-1)
        ball = np.sqrt((local**2).sum(-1))
        disc = np.hypot(local[..., 0], local[..., 1]) + local[..., 2]
        shape = self.shape[:, None]
        reach = np.select([shape == ELLIPSOID, shape == CYLINDER], [ball, disc], corner)
        return (self.center @ directions.T + reach).max(0)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the exact lower and upper corners [3], [3] of the axis-aligned box around all primitives."""
        reach = self.reach(np.concatenate([-np.eye(3), np.eye(3)]))
        return -reach[:3], reach[3:]


@dataclass
class SceneObject:
    """One labelled thing: primitives in its own frame, where it stands, and how it relates to the room.

    The local box is centred on the vertical through the origin and starts at z = 0, so `size` [width, depth, height]
    and `origin` (room frame) give the exact oriented box. `support` and `wall` are indices into Room.objects (the
    object it stands on) and Room.walls (the wall it hangs on or stands against).
    """

    label: str
    kind: str  # "object", "plane" or "round", as in the schema
    color: str | None  # name of the dominant colour; None where no single one dominates
    parts: Primitives
    size: np.ndarray  # [3] metres
    origin: np.ndarray = field(default_factory=lambda: np.zeros(3))
    yaw: float = 0.0
    support: int | None = None
    wall: int | None = None
    mounted: bool = False

    @property
    def rotation(self) -> np.ndarray:
        """room_from_object rotation [3, 3]."""
        return yaw_rotation(self.yaw)

    @property
    def center(self) -> np.ndarray:
        """Centre of the box, room frame."""
        return self.origin + np.array([0.0, 0.0, self.size[2] / 2])

    @property
    def front(self) -> np.ndarray:
        """Unit horizontal vector [2] out of the object's front, room frame."""
        return self.rotation[:2, 1]

    @property
    def top(self) -> float:
        """Height of the highest point above the floor, metres."""
        return float(self.origin[2] + self.size[2])

    def footprint(self, margin: float = 0.0) -> np.ndarray:
        """Return the four corners [4, 2] of the box seen from above, grown by `margin` metres on each side."""
        half = self.size[:2] / 2 + margin
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
        return corners @ self.rotation[:2, :2].T + self.origin[:2]


@dataclass(frozen=True)
class Wall:
    """One straight wall from `start` to `end` (room frame, [2]); the room lies on its left."""

    start: np.ndarray
    end: np.ndarray

    @cached_property
    def length(self) -> float:
        """Length in metres."""
        return float(np.linalg.norm(self.end - self.start))

    @cached_property
    def direction(self) -> np.ndarray:
        """Unit vector [2] from start to end."""
        return (self.end - self.start) / self.length

    @cached_property
    def normal(self) -> np.ndarray:
        """Unit vector [2] into the room."""
        return np.array([-self.direction[1], self.direction[0]])

    @property
    def yaw(self) -> float:
        """Yaw of an object whose back is at this wall."""
        return float(np.arctan2(-self.normal[0], self.normal[1]))


@dataclass(frozen=True)
class Lighting:
    """Lights of a room (room frame) and how its picture is exposed."""

    positions: np.ndarray  # [L, 3]; light 0 hangs from the ceiling and casts the shadows
    colors: np.ndarray  # [L, 3] linear RGB intensity at one metre
    ambient: np.ndarray  # [3] linear RGB
    sky: np.ndarray  # [2, 3] linear RGB of the outdoors above and below the horizon
    exposure: float


@dataclass
class Room:
    """A whole scene. Instance ids of the renderer: 0 nothing, i + 1 = objects[i]; then each wall, floor, ceiling."""

    room_id: str
    polygon: np.ndarray  # [K, 2] corners of the floor, counter-clockwise, room frame
    height: float
    walls: list[Wall]
    objects: list[SceneObject]
    shell: Primitives  # quads of walls, floor and ceiling
    shell_instance: np.ndarray  # [len(shell)] index of the quad's surface: wall w, len(walls) = floor, then ceiling
    floor_material: str
    lighting: Lighting
    world_from_room: np.ndarray  # [4, 4]
    room_from_cam: np.ndarray  # [V, 4, 4]
    focal: float  # focal length in image widths (square pixels, principal point in the middle)

    @property
    def frame_ids(self) -> list[str]:
        """One id a view, in the order of `room_from_cam`."""
        return [f"{index:02d}" for index in range(len(self.room_from_cam))]

    @property
    def world_from_cam(self) -> np.ndarray:
        """Camera poses [V, 4, 4] in the world frame."""
        return self.world_from_room @ self.room_from_cam

    @property
    def instance_labels(self) -> list[str]:
        """Label of every instance id, 0 included."""
        walls = ["wall"] * len(self.walls)
        return ["nothing", *(item.label for item in self.objects), *walls, "floor", "ceiling"]

    def intrinsics(self, size: int) -> np.ndarray:
        """Return the camera matrix [3, 3] in pixels of a `size` x `size` image; pixel centres at +0.5."""
        return np.array([[self.focal * size, 0, size / 2], [0, self.focal * size, size / 2], [0, 0, 1]])

    def primitives(self) -> tuple[Primitives, np.ndarray]:
        """Return all primitives in the room frame and the instance id [N] of each."""
        moved = [item.parts.moved(item.rotation, item.origin) for item in self.objects]
        ids = [np.full(len(part), index + 1) for index, part in enumerate(moved)]
        ids.append(self.shell_instance + 1 + len(self.objects))
        return Primitives.concatenate([*moved, self.shell]), np.concatenate(ids)

    def object_target(self, item: SceneObject) -> dict[str, Any]:
        """Return the world-frame target of an object, as the schema stores it."""
        rotation = self.world_from_room[:3, :3] @ item.rotation
        return self._target(item.label, item.kind, item.center, item.size, rotation.T)

    def wall_target(self, wall: Wall) -> dict[str, Any]:
        """Return the world-frame target of a wall plane; axis 1 is its normal into the room."""
        center = np.array([*(wall.start + wall.end) / 2, self.height / 2])
        rotation = self.world_from_room[:3, :3] @ yaw_rotation(wall.yaw)
        return self._target("wall", "plane", center, np.array([wall.length, 0.0, self.height]), rotation.T)

    def _target(self, label: str, kind: str, center: np.ndarray, size: np.ndarray, axes: np.ndarray) -> dict[str, Any]:
        world = self.world_from_room[:3, :3] @ center + self.world_from_room[:3, 3]
        exact_axes = axes.copy()
        exact_axes[2] = (0.0, 0.0, 1.0)
        return {
            "label": label,
            "kind": kind,
            "center": world.tolist(),
            "size": [float(value) for value in size],
            "axes": exact_axes.tolist(),
        }


def yaw_rotation(yaw: float) -> np.ndarray:
    """Return the rotation [3, 3] by `yaw` radians, counter-clockwise seen from above."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def room_from_cam(position: np.ndarray, yaw: float, pitch: float, roll: float = 0.0) -> np.ndarray:
    """Return the camera pose [4, 4] at `position` [3] looking along yaw (0 = +y), pitched up and rolled, radians."""
    level = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])  # cam axes of a level camera looking along y
    cos, sin = np.cos(pitch), np.sin(pitch)
    tilt = np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
    spin = np.array([[np.cos(roll), -np.sin(roll), 0.0], [np.sin(roll), np.cos(roll), 0.0], [0.0, 0.0, 1.0]])
    matrix = np.eye(4)
    matrix[:3, :3] = yaw_rotation(yaw) @ tilt @ level @ spin
    matrix[:3, 3] = position
    return matrix
