"""Drawing the lights of a room: a ceiling lamp, daylight through the windows, standing and table lamps."""

import numpy as np

from datasets_scripts.rooms.plan import FloorPlan
from datasets_scripts.rooms.scene import Lighting, SceneObject

MAX_LIGHTS = 6
_LAMP_TONES = ((1.0, 0.93, 0.82), (1.0, 0.97, 0.92), (0.97, 0.98, 1.0))
_DAYLIGHT = (0.93, 0.97, 1.0)
_BULB = (1.0, 0.85, 0.62)


def draw_lighting(plan: FloorPlan, objects: list[SceneObject], rng: np.random.Generator) -> Lighting:
    """Draw positions, colours and strengths of at most MAX_LIGHTS lights; light 0 hangs below the ceiling."""
    sizes = np.prod(plan.rectangles[:, 1] - plan.rectangles[:, 0], axis=1)
    low, high = plan.rectangles[sizes.argmax()]
    spot = low + (high - low) * rng.uniform(0.35, 0.65, 2)
    day = rng.uniform(0.2, 1.0)
    positions = [np.array([*spot, plan.height - 0.45])]
    colors = [np.array(_LAMP_TONES[rng.integers(3)]) * rng.uniform(1.6, 2.8)]
    for item in objects:
        if len(positions) == MAX_LIGHTS:
            break
        if item.label == "window":
            positions.append(item.center + np.array([*item.front * 0.4, 0.0]))
            colors.append(np.array(_DAYLIGHT) * day * 0.9 * item.size[0] * item.size[2])
        elif item.label in ("floor lamp", "table lamp"):
            positions.append(item.center + np.array([0.0, 0.0, item.size[2] / 2 - 0.1]))
            colors.append(np.array(_BULB) * rng.uniform(0.1, 0.3))
    sky = np.array([(0.62, 0.78, 0.98), (0.35, 0.45, 0.28)]) * (0.4 + 0.9 * day)
    sky *= rng.uniform(0.85, 1.15, (2, 1))
    return Lighting(
        np.array(positions), np.array(colors), np.full(3, rng.uniform(0.20, 0.34)), sky, float(rng.uniform(0.85, 1.15))
    )
