"""How doors, windows, wall-mounted things and table-top things are built; conventions as in furniture.py."""

import numpy as np

from datasets_scripts.rooms.furniture import shaded
from datasets_scripts.rooms.materials import COLORS, DARK, METAL, jittered
from datasets_scripts.rooms.parts import Parts

_WHITE = COLORS["white"]

# ---------------------------------------------------------------------------------------------- in and on the walls


def door(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Closed door: frame, leaf with two panels, handle."""
    w, d, h = s
    frame = shaded(color, 0.7)
    for side in (-1, 1):
        p.box((side * w / 2, -d / 2, 0), (side * (w / 2 - 0.07), d / 2, h), frame, "wood")
    p.box((-w / 2, -d / 2, h - 0.07), (w / 2, d / 2, h), frame, "wood")
    p.box((-w / 2 + 0.07, -d / 2, 0), (w / 2 - 0.07, d / 2 - 0.02, h - 0.07), color, "wood", scale=0.2)
    for low, high in ((0.2, 0.9), (1.08, h - 0.25)):
        p.box((-w / 2 + 0.18, -d / 2, low), (w / 2 - 0.18, d / 2 - 0.008, high), shaded(color, 0.85), "wood")
    p.cylinder((w / 2 - 0.13, d / 2, 1.0), 0.022, 0.05, METAL, axis="y")
    p.cylinder((w / 2 - 0.18, d / 2 + 0.02, 1.0), 0.016, 0.13, METAL, axis="x")


def window(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Window: frame, mullions, sill; its pane shows the outdoors."""
    w, d, h = s
    bar = 0.06
    p.box((-w / 2 + bar, -d / 2, bar), (w / 2 - bar, -d / 2 + 0.01, h - bar), _WHITE, "window")
    for side in (-1, 1):
        p.box((side * w / 2, -d / 2, 0), (side * (w / 2 - bar), d / 2, h), color)
    p.box((-w / 2, -d / 2, h - bar), (w / 2, d / 2, h), color)
    p.box((-w / 2 - 0.03, -d / 2, 0), (w / 2 + 0.03, d / 2 + 0.04, bar), color)
    p.box((-0.025, -d / 2, 0), (0.025, d / 2 - 0.02, h), color)
    if h > 1.1:
        p.box((-w / 2, -d / 2, h * 0.62), (w / 2, d / 2 - 0.02, h * 0.62 + 0.045), color)


def picture(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Framed painting; its frame has the accent colour."""
    w, d, h = s
    p.box((-w / 2, -d / 2, 0), (w / 2, d / 2 - 0.01, h), accent, "wood")
    p.box((-w / 2 + 0.05, -d / 2, 0.05), (w / 2 - 0.05, d / 2, h - 0.05), color, "painting", scale=min(w, h) * 0.35)


def mirror(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Mirror in a frame of the main colour."""
    w, d, h = s
    p.box((-w / 2, -d / 2, 0), (w / 2, d / 2 - 0.01, h), color, "wood")
    p.box((-w / 2 + 0.05, -d / 2, 0.05), (w / 2 - 0.05, d / 2, h - 0.05), (0.7, 0.76, 0.8), "mirror")


def tv(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Flat television on the wall."""
    w, d, h = s
    p.box((-w / 2, -d / 2, 0), (w / 2, d / 2 - 0.01, h), DARK)
    p.box((-w / 2 + 0.03, -d / 2, 0.04), (w / 2 - 0.03, d / 2, h - 0.03), (0.03, 0.04, 0.06), "screen")


def whiteboard(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Whiteboard with a tray and a few marks."""
    w, d, h = s
    p.box((-w / 2, -d / 2, 0.04), (w / 2, d / 2 - 0.012, h), METAL)
    p.box((-w / 2 + 0.03, -d / 2, 0.07), (w / 2 - 0.03, d / 2 - 0.005, h - 0.03), (0.95, 0.95, 0.95))
    p.box((-w / 4, -d / 2, 0.02), (w / 4, d / 2 + 0.03, 0.05), METAL)
    for _ in range(3):
        x, z = p.rng.uniform(-w / 3, w / 4), p.rng.uniform(0.3, 0.8) * h
        p.box((x, -d / 2, z), (x + p.rng.uniform(0.1, 0.3), d / 2, z + 0.03), COLORS["blue"])


def clock(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Round wall clock with hands; its rim has the main colour."""
    radius, d = s[0] / 2, s[1]
    p.cylinder((0, 0, radius), radius, d - 0.01, color, axis="y")
    p.cylinder((0, 0.005, radius), radius * 0.84, d - 0.01, _WHITE, axis="y")
    p.box((-0.012, 0, radius), (0.012, d / 2 + 0.005, radius * 1.7), DARK)
    p.box((0, 0, radius - 0.012), (radius * 0.5, d / 2 + 0.005, radius + 0.012), DARK)


def shelf(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Wall shelf: board on two brackets, with a few small things on it."""
    w, d, h = s
    p.box((-w / 2, -d / 2, 0.1), (w / 2, d / 2, 0.14), color, "wood")
    for x in (-w / 3, w / 3):
        p.box((x - 0.02, -d / 2, 0), (x + 0.02, -d / 2 + 0.02, 0.1), accent)
        p.box((x - 0.02, -d / 2, 0.07), (x + 0.02, d / 2 - 0.04, 0.1), accent)
    names = list(COLORS)
    x = -w / 2 + 0.08
    while x < w / 2 - 0.12:
        rgb = jittered(p.rng, COLORS[names[p.rng.integers(len(names))]], 0.08)
        width = p.rng.uniform(0.06, 0.14)
        top = 0.14 + (h - 0.14) * p.rng.uniform(0.5, 1.0)
        if p.rng.random() < 0.6:
            p.box((x, -d / 2 + 0.04, 0.14), (x + width, d / 2 - 0.05, top), rgb, "stripes", scale=0.04)
        else:
            p.cylinder((x + width / 2, 0, (0.14 + top) / 2), min(width, d - 0.06) / 2, top - 0.14, rgb)
        x += width + p.rng.uniform(0.01, 0.15)


def radiator(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Radiator: vertical fins between two pipes."""
    w, d, h = s
    count = max(5, int(w / 0.11))
    for index in range(count):
        x = -w / 2 + (index + 0.5) * w / count
        p.box((x - w / count * 0.36, -d / 2, 0), (x + w / count * 0.36, d / 2, h), color)
    for z in (0.08, h - 0.08):
        p.cylinder((0, 0, z), 0.025, w, shaded(color, 0.9), axis="x")


# ------------------------------------------------------------------------------------------------- on tables and chests


def monitor(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Computer monitor on a foot."""
    w, d, h = s
    p.cylinder((0, 0, 0.01), d / 2, 0.02, DARK)
    p.box((-0.03, -0.03, 0), (0.03, 0, h * 0.4), DARK)
    p.box((-w / 2, -0.02, h * 0.25), (w / 2, 0.02, h), DARK)
    p.box((-w / 2 + 0.02, 0, h * 0.25 + 0.02), (w / 2 - 0.02, 0.023, h - 0.02), (0.25, 0.42, 0.62), "screen")


def laptop(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Open laptop."""
    w, d, h = s
    p.box((-w / 2, -d / 2, 0), (w / 2, d / 2, 0.02), METAL)
    p.box((-w / 2 + 0.03, -d / 2 + 0.04, 0.01), (w / 2 - 0.03, d / 2 - 0.08, 0.024), DARK)
    p.box((-w / 2, -d / 2 - 0.03, 0.02), (w / 2, -d / 2 - 0.01, h), METAL, tilt=0.25)
    p.box(
        (-w / 2 + 0.015, -d / 2 - 0.02, 0.035), (w / 2 - 0.015, -d / 2, h - 0.015), (0.3, 0.5, 0.7), "screen", tilt=0.25
    )


def table_lamp(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Bedside lamp with a glowing shade."""
    radius, h = s[0] / 2, s[2]
    p.cylinder((0, 0, 0.012), radius * 0.6, 0.024, accent)
    p.ellipsoid((0, 0, h * 0.28), (radius * 0.4, radius * 0.4, h * 0.24), accent)
    p.cylinder((0, 0, h * 0.5), 0.012, h * 0.4, METAL)
    p.cylinder((0, 0, h - 0.1), radius, 0.2, color, "glow")


def vase(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Vase with flowers."""
    radius, h = s[0] / 2, s[2]
    body = h * 0.55
    p.ellipsoid((0, 0, body * 0.48), (radius, radius, body * 0.48), color)
    p.cylinder((0, 0, body * 0.9), radius * 0.5, body * 0.25, color)
    for index in range(5):
        turn = index * 1.2566
        x, y = radius * 0.55 * np.cos(turn), radius * 0.55 * np.sin(turn)
        top = h - 0.045 - 0.03 * (index % 2)
        p.cylinder((x / 2, y / 2, (body + top) / 2), 0.008, top - body, (0.25, 0.45, 0.18))
        p.ellipsoid((x, y, top), (0.045, 0.045, 0.045), shaded(color, 1.25))


def storage_box(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Box with a lid and a label."""
    w, d, h = s
    p.box((-w / 2 + 0.01, -d / 2 + 0.01, 0), (w / 2 - 0.01, d / 2 - 0.01, h - 0.05), color, "fabric")
    p.box((-w / 2, -d / 2, h - 0.06), (w / 2, d / 2, h), shaded(color, 0.85))
    p.box((-w / 6, d / 2 - 0.02, h * 0.35), (w / 6, d / 2 - 0.004, h * 0.6), _WHITE)


def microwave(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Microwave oven."""
    w, d, h = s
    p.box((-w / 2, -d / 2, 0.015), (w / 2, d / 2 - 0.01, h), color)
    p.box((-w / 2 + 0.03, d / 2 - 0.02, 0.05), (w / 4, d / 2, h - 0.04), DARK)
    p.cylinder((w / 4 + 0.03, d / 2 + 0.01, h / 2), 0.012, h * 0.7, METAL)
    for z in (0.3, 0.55):
        p.cylinder((w * 0.39, d / 2, z * h), 0.022, 0.03, METAL, axis="y")
    p.legs(w, d, 0.02, 0.02, DARK, 0.05)


def globe(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Globe on a stand."""
    radius, h = s[0] / 2, s[2]
    p.cylinder((0, 0, 0.012), radius * 0.6, 0.024, accent, "wood")
    p.cylinder((0, 0, (h - 2 * radius) / 2), 0.02, h - 2 * radius, accent)
    p.ellipsoid((0, 0, h - radius), (radius, radius, radius), color, "leaves", scale=0.12)


def books(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Stack of books of different sizes."""
    w, d, h = s
    names = list(COLORS)
    count = 4
    for index in range(count):
        rgb = jittered(p.rng, COLORS[names[p.rng.integers(len(names))]], 0.08) * 0.9
        shrink = p.rng.uniform(0, 0.05) if index else 0
        bottom, top = index * h / count, (index + 1) * h / count - 0.003
        p.box((-w / 2 + shrink, -d / 2 + shrink, bottom), (w / 2 - shrink, d / 2 - shrink, top), rgb)
