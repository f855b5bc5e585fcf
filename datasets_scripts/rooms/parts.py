"""A small kit for building furniture from boxes, cylinders and ellipsoids in the object's own frame."""

from collections.abc import Sequence

import numpy as np

from datasets_scripts.rooms.materials import MATERIAL_INDEX
from datasets_scripts.rooms.scene import BOX, CYLINDER, ELLIPSOID, Primitives

_IDENTITY = np.eye(3)
# canonical z -> object axis
_CYLINDER_AXES = {
    "z": _IDENTITY,
    "x": np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]),
    "y": np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]),
}

Vector = Sequence[float] | np.ndarray


class Parts:
    """Collects the primitives of one object; x = width, y = out of the front, z = up, metres."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self._rows: list[tuple[int, Vector, Vector, np.ndarray, Vector, int, tuple[float, float]]] = []

    def box(
        self,
        low: Vector,
        high: Vector,
        color: Vector,
        material: str = "plain",
        tilt: float = 0.0,
        turn: float = 0.0,
        scale: float = 0.12,
    ) -> None:
        """Add the box from corner `low` to corner `high`, tilted about x and turned about z through its centre."""
        low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        rotation = _IDENTITY
        if tilt or turn:
            rotation = _rotation(tilt, turn)
        self._add(BOX, (low + high) / 2, np.abs(high - low) / 2, rotation, color, material, scale)

    def cylinder(
        self,
        center: Vector,
        radius: float,
        height: float,
        color: Vector,
        material: str = "plain",
        axis: str = "z",
        tilt: float = 0.0,
        turn: float = 0.0,
        scale: float = 0.12,
    ) -> None:
        """Add a cylinder of full `height` along `axis` through `center`."""
        rotation = _rotation(tilt, turn) @ _CYLINDER_AXES[axis] if tilt or turn else _CYLINDER_AXES[axis]
        self._add(CYLINDER, center, (radius, radius, height / 2), rotation, color, material, scale)

    def ellipsoid(
        self,
        center: Vector,
        radii: Vector,
        color: Vector,
        material: str = "plain",
        tilt: float = 0.0,
        turn: float = 0.0,
        scale: float = 0.12,
    ) -> None:
        """Add an ellipsoid with semi-axes `radii`."""
        self._add(ELLIPSOID, center, radii, _rotation(tilt, turn), color, material, scale)

    def legs(self, width: float, depth: float, height: float, radius: float, color: Vector, inset: float) -> None:
        """Add four round legs under the corners of a `width` x `depth` rectangle."""
        for x in (-1, 1):
            for y in (-1, 1):
                center = (x * (width / 2 - inset), y * (depth / 2 - inset), height / 2)
                self.cylinder(center, radius, height, color)

    def build(self) -> tuple[Primitives, np.ndarray]:
        """Return the primitives, moved so that their box is centred on z and starts at z = 0, and its size [3]."""
        shape, center, half, rotation, color, material, texture = zip(*self._rows)
        primitives = Primitives(
            np.array(shape, dtype=np.int64),
            np.array(center, dtype=np.float64),
            np.array(half, dtype=np.float64),
            np.stack(rotation),
            np.array(color, dtype=np.float64),
            np.array(material, dtype=np.int64),
            np.array(texture, dtype=np.float64),
        )
        low, high = primitives.bounds()
        primitives.center -= np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
        return primitives, high - low

    def _add(
        self,
        shape: int,
        center: Vector,
        half: Vector,
        rotation: np.ndarray,
        color: Vector,
        material: str,
        scale: float,
    ) -> None:
        texture = (scale, float(self.rng.integers(1 << 16)))
        self._rows.append((shape, center, half, rotation, color, MATERIAL_INDEX[material], texture))


def _rotation(tilt: float, turn: float) -> np.ndarray:
    cos_x, sin_x, cos_z, sin_z = np.cos(tilt), np.sin(tilt), np.cos(turn), np.sin(turn)
    about_x = np.array([[1.0, 0.0, 0.0], [0.0, cos_x, -sin_x], [0.0, sin_x, cos_x]])
    about_z = np.array([[cos_z, -sin_z, 0.0], [sin_z, cos_z, 0.0], [0.0, 0.0, 1.0]])
    return about_z @ about_x
