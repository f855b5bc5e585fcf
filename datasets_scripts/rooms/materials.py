"""Colours with names, and the materials whose textures the renderer knows."""

import numpy as np

# Name -> sRGB. Far enough apart to be told from one another under every lamp of `lighting.py`.
COLORS = {
    "white": (0.93, 0.92, 0.90),
    "black": (0.09, 0.09, 0.10),
    "gray": (0.52, 0.53, 0.55),
    "brown": (0.45, 0.29, 0.17),
    "red": (0.75, 0.12, 0.11),
    "orange": (0.93, 0.49, 0.12),
    "yellow": (0.94, 0.82, 0.22),
    "green": (0.20, 0.52, 0.24),
    "blue": (0.16, 0.33, 0.72),
    "purple": (0.46, 0.20, 0.62),
    "pink": (0.93, 0.56, 0.70),
}

WOOD_TONES = ((0.45, 0.29, 0.17), (0.60, 0.43, 0.27), (0.34, 0.21, 0.13), (0.70, 0.55, 0.38))
METAL = (0.70, 0.71, 0.73)
DARK = (0.12, 0.12, 0.13)

MATERIALS = (
    "plain",
    "wood",  # grain along the longest side
    "fabric",  # fine weave
    "carpet",  # coarse speckle
    "planks",  # floor boards
    "tiles",  # square tiles with joints
    "stripes",  # wallpaper
    "bricks",
    "leaves",
    "painting",  # abstract picture
    "window",  # shows the outdoors
    "mirror",
    "screen",
    "glow",  # a lamp shade: shines by itself
)
MATERIAL_INDEX = {name: index for index, name in enumerate(MATERIALS)}


def jittered(rng: np.random.Generator, rgb: tuple[float, float, float], amount: float = 0.04) -> np.ndarray:
    """Return `rgb` with its brightness and, less, its hue changed a little; sRGB [3] in [0.02, 0.98]."""
    shade = rng.uniform(-amount, amount)
    return np.clip(np.asarray(rgb) + shade + rng.uniform(-amount / 3, amount / 3, 3), 0.02, 0.98)
