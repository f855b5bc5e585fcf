"""How each class of floor-standing furniture is built from primitives.

Every builder takes the parts kit, the wanted size (width, depth, height) in metres, the main colour (the one questions
ask for) and an accent colour (frame, legs, handles), sRGB. The back of the thing is at -y, its front at +y.
"""

from collections.abc import Callable

import numpy as np

from datasets_scripts.rooms.materials import COLORS, DARK, METAL, WOOD_TONES, jittered
from datasets_scripts.rooms.parts import Parts

Builder = Callable[[Parts, np.ndarray, np.ndarray, np.ndarray], None]

_WHITE = COLORS["white"]


def shaded(color: np.ndarray, factor: float) -> np.ndarray:
    """Return a darker (factor < 1) or lighter (factor > 1) version of an sRGB colour."""
    color = np.asarray(color)
    return color * factor if factor <= 1 else 1 - (1 - color) / factor


def chair(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Dining chair: seat, back, four legs."""
    w, d, h = s
    seat = 0.46
    p.legs(w, d, seat - 0.04, 0.022, accent, 0.03)
    p.box((-w / 2, -d / 2, seat - 0.05), (w / 2, d / 2, seat + 0.02), color, "fabric")
    for x in (-w / 2 + 0.03, w / 2 - 0.03):
        p.box((x - 0.02, -d / 2, seat), (x + 0.02, -d / 2 + 0.035, h), accent)
    p.box((-w / 2, -d / 2 - 0.005, seat + 0.14), (w / 2, -d / 2 + 0.045, h), color, "fabric")


def stool(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Round stool on three splayed legs and a ring."""
    radius, h = s[0] / 2, s[2]
    p.cylinder((0, 0, h - 0.035), radius, 0.07, color, "fabric")
    for turn in (0.5, 0.5 + 2 * np.pi / 3, 0.5 + 4 * np.pi / 3):
        foot = radius * 0.72 * np.array([np.cos(turn), np.sin(turn)])
        p.cylinder((*foot, (h - 0.05) / 2), 0.02, h - 0.06, accent)
    p.cylinder((0, 0, h * 0.35), radius * 0.75, 0.02, accent)


def armchair(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Upholstered armchair."""
    _upholstered(p, s, color, accent, cushions=1)


def sofa(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Sofa with two or three seat cushions."""
    _upholstered(p, s, color, accent, cushions=3 if s[0] > 1.9 else 2)


def _upholstered(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray, cushions: int) -> None:
    w, d, h = s
    arm, back, seat, foot = 0.16, 0.2, 0.42, 0.08
    p.legs(w, d, foot, 0.03, accent, 0.08)
    p.box((-w / 2 + arm, -d / 2 + back, foot), (w / 2 - arm, d / 2 - 0.03, seat - 0.12), shaded(color, 0.8), "fabric")
    p.box((-w / 2, -d / 2, foot), (w / 2, -d / 2 + back, h), color, "fabric")
    for side in (-1, 1):
        outer, inner = side * w / 2, side * (w / 2 - arm)
        p.box((outer, -d / 2 + back, foot), (inner, d / 2 - 0.02, 0.6), color, "fabric")
        middle = ((outer + inner) / 2, (back - 0.02) / 2, 0.6)
        p.cylinder(middle, arm / 2, d - back - 0.02, color, "fabric", axis="y")
    inner_width = w - 2 * arm
    step = inner_width / cushions
    for index in range(cushions):
        x = -inner_width / 2 + index * step
        low, high = (x + 0.01, -d / 2 + back, seat - 0.13), (x + step - 0.01, d / 2, seat + 0.02)
        p.box(low, high, shaded(color, 1.12), "fabric")
        low, high = (x + 0.02, -d / 2 + back - 0.03, seat), (x + step - 0.02, -d / 2 + back + 0.13, h - 0.03)
        p.box(low, high, shaded(color, 1.06), "fabric", tilt=0.12)


def bench(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Bench: long seat on two side panels and a rail."""
    w, d, h = s
    p.box((-w / 2, -d / 2, h - 0.06), (w / 2, d / 2, h), color, "wood")
    for x in (-w / 2 + 0.12, w / 2 - 0.12):
        p.box((x - 0.03, -d / 2 + 0.03, 0), (x + 0.03, d / 2 - 0.03, h - 0.06), color, "wood")
    p.box((-w / 2 + 0.15, -0.02, h * 0.3), (w / 2 - 0.15, 0.02, h * 0.3 + 0.06), accent, "wood")


def ottoman(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Low upholstered block with a cushion."""
    w, d, h = s
    p.legs(w, d, 0.08, 0.025, accent, 0.06)
    p.box((-w / 2, -d / 2, 0.08), (w / 2, d / 2, h - 0.1), color, "fabric")
    p.box((-w / 2 - 0.01, -d / 2 - 0.01, h - 0.1), (w / 2 + 0.01, d / 2 + 0.01, h), shaded(color, 1.15), "fabric")


def bed(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Bed: frame, headboard at the back, mattress, coloured blanket, pillows."""
    w, d, h = s
    p.box((-w / 2, -d / 2, 0.12), (w / 2, d / 2, 0.3), accent, "wood")
    p.box((-w / 2, -d / 2, 0.0), (w / 2, -d / 2 + 0.07, h), accent, "wood")
    p.legs(w, d, 0.14, 0.035, shaded(accent, 0.7), 0.06)
    p.box((-w / 2 + 0.03, -d / 2 + 0.07, 0.28), (w / 2 - 0.03, d / 2 - 0.02, 0.5), _WHITE, "fabric")
    fold = -d / 2 + 0.6
    p.box((-w / 2 - 0.01, fold, 0.26), (w / 2 + 0.01, d / 2 + 0.01, 0.55), color, "fabric")
    p.box((-w / 2 - 0.012, fold - 0.14, 0.3), (w / 2 + 0.012, fold + 0.02, 0.565), shaded(color, 1.3), "fabric")
    count = 2 if w > 1.3 else 1
    step = (w - 0.16) / count
    for index in range(count):
        x = -w / 2 + 0.08 + (index + 0.5) * step
        p.ellipsoid((x, -d / 2 + 0.28, 0.56), (step * 0.46, 0.19, 0.09), _WHITE, "fabric", tilt=0.25)


def table(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Rectangular table: top, apron, four square legs."""
    w, d, h = s
    p.box((-w / 2, -d / 2, h - 0.04), (w / 2, d / 2, h), color, "wood")
    p.box((-w / 2 + 0.08, -d / 2 + 0.08, h - 0.12), (w / 2 - 0.08, d / 2 - 0.08, h - 0.04), shaded(color, 0.8), "wood")
    for x in (-w / 2 + 0.07, w / 2 - 0.07):
        for y in (-d / 2 + 0.07, d / 2 - 0.07):
            p.box((x - 0.035, y - 0.035, 0), (x + 0.035, y + 0.035, h - 0.04), color, "wood")


def round_table(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Round table on a central column."""
    radius, h = s[0] / 2, s[2]
    p.cylinder((0, 0, h - 0.02), radius, 0.04, color, "wood")
    p.cylinder((0, 0, h / 2), 0.06, h - 0.04, accent)
    p.cylinder((0, 0, 0.02), radius * 0.5, 0.04, accent)


def coffee_table(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Low table with a shelf under its top."""
    w, d, h = s
    p.box((-w / 2, -d / 2, h - 0.05), (w / 2, d / 2, h), color, "wood")
    p.box((-w / 2 + 0.06, -d / 2 + 0.06, 0.12), (w / 2 - 0.06, d / 2 - 0.06, 0.15), shaded(color, 0.85), "wood")
    p.legs(w, d, h - 0.04, 0.03, accent, 0.05)


def desk(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Desk: top, drawer unit on one side, panel on the other; the chair goes at its front."""
    w, d, h = s
    side = 1 if p.rng.random() < 0.5 else -1
    p.box((-w / 2, -d / 2, h - 0.04), (w / 2, d / 2, h), color, "wood")
    p.box((-side * w / 2, -d / 2 + 0.02, 0), (-side * (w / 2 - 0.04), d / 2 - 0.04, h - 0.04), color, "wood")
    inner, outer = side * (w / 2 - 0.38), side * w / 2
    p.box((inner, -d / 2 + 0.02, 0.02), (outer, d / 2 - 0.05, h - 0.04), shaded(color, 0.9), "wood")
    for row in range(3):
        low = 0.06 + row * (h - 0.14) / 3
        p.box((inner + side * 0.02, d / 2 - 0.06, low), (outer - side * 0.02, d / 2 - 0.035, low + 0.19), color, "wood")
        p.cylinder(((inner + outer) / 2, d / 2 - 0.025, low + 0.11), 0.012, 0.12, METAL, axis="x")
    p.box((-w / 2 + 0.04, -d / 2 + 0.02, 0.3), (w / 2 - 0.04, -d / 2 + 0.04, h - 0.04), shaded(color, 0.85), "wood")


def nightstand(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Small bedside chest with two drawers."""
    _drawers(p, s, color, accent, rows=2, columns=1, foot=0.08)


def dresser(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Chest of drawers, two columns."""
    _drawers(p, s, color, accent, rows=3 if s[2] < 0.95 else 4, columns=2, foot=0.06)


def _drawers(
    p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray, rows: int, columns: int, foot: float
) -> None:
    w, d, h = s
    p.legs(w, d, foot, 0.025, accent, 0.05)
    p.box((-w / 2, -d / 2, foot), (w / 2, d / 2 - 0.02, h - 0.03), shaded(color, 0.85), "wood")
    p.box((-w / 2 - 0.01, -d / 2, h - 0.03), (w / 2 + 0.01, d / 2 + 0.01, h), color, "wood")
    width, height = w / columns, (h - 0.03 - foot) / rows
    for row in range(rows):
        for column in range(columns):
            x, z = -w / 2 + column * width, foot + row * height
            low, high = (x + 0.02, d / 2 - 0.03, z + 0.02), (x + width - 0.02, d / 2, z + height - 0.02)
            p.box(low, high, color, "wood")
            p.ellipsoid((x + width / 2, d / 2 + 0.01, z + height / 2), (0.025, 0.018, 0.018), accent)


def wardrobe(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Tall wardrobe with two or three doors."""
    w, d, h = s
    doors = 3 if w > 1.45 else 2
    p.box((-w / 2, -d / 2, 0), (w / 2, d / 2 - 0.02, h - 0.04), shaded(color, 0.8), "wood")
    p.box((-w / 2 - 0.02, -d / 2, h - 0.05), (w / 2 + 0.02, d / 2 + 0.02, h), color, "wood")
    width = w / doors
    for index in range(doors):
        x = -w / 2 + index * width
        p.box((x + 0.012, d / 2 - 0.03, 0.07), (x + width - 0.012, d / 2, h - 0.07), color, "wood", scale=0.2)
        handle = x + width - 0.07 if index % 2 == 0 else x + 0.07
        p.cylinder((handle, d / 2 + 0.015, h * 0.5), 0.014, 0.3, accent)


def cabinet(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Sideboard on legs with two doors of a lighter panel."""
    w, d, h = s
    p.legs(w, d, 0.16, 0.025, accent, 0.08)
    p.box((-w / 2, -d / 2, 0.15), (w / 2, d / 2 - 0.02, h), color, "wood")
    for side in (-1, 1):
        low, high = (side * 0.012, d / 2 - 0.03, 0.19), (side * (w / 2 - 0.03), d / 2, h - 0.05)
        p.box(low, high, shaded(color, 0.92), "wood")
        low, high = (side * 0.1, d / 2 - 0.01, 0.27), (side * (w / 2 - 0.11), d / 2 + 0.006, h - 0.13)
        p.box(low, high, shaded(color, 1.35), "plain")
        p.cylinder((side * 0.05, d / 2 + 0.015, h * 0.58), 0.012, 0.16, accent)


def tv_stand(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Low wide board with an open shelf in the middle."""
    w, d, h = s
    p.box((-w / 2, -d / 2, h - 0.04), (w / 2, d / 2, h), color, "wood")
    p.box((-w / 2, -d / 2, 0.05), (w / 2, d / 2, 0.09), color, "wood")
    p.box((-w / 2, -d / 2, 0.05), (w / 2, -d / 2 + 0.03, h), shaded(color, 0.6), "wood")
    p.legs(w, d, 0.06, 0.03, accent, 0.08)
    for side in (-1, 1):
        p.box((side * w / 2, -d / 2, 0.05), (side * w / 6, d / 2 - 0.01, h - 0.04), shaded(color, 0.9), "wood")
        p.ellipsoid((side * w / 3, d / 2, h * 0.55), (0.025, 0.015, 0.025), accent)
    p.box((-w / 9, -d / 2 + 0.06, 0.09), (w / 9, d / 2 - 0.08, 0.17), DARK)


def bookshelf(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Open shelf with rows of books."""
    w, d, h = s
    p.box((-w / 2, -d / 2, 0), (w / 2, -d / 2 + 0.02, h), shaded(color, 0.75), "wood")
    for side in (-1, 1):
        p.box((side * w / 2, -d / 2, 0), (side * (w / 2 - 0.035), d / 2, h), color, "wood")
    rows = max(3, round(h / 0.38))
    pitch = (h - 0.04) / rows
    for row in range(rows + 1):
        p.box((-w / 2, -d / 2, row * pitch), (w / 2, d / 2, row * pitch + 0.04), color, "wood")
    for row in range(rows):
        _books(p, -w / 2 + 0.05, w / 2 - 0.05, -d / 2 + 0.03, d / 2 - 0.05, row * pitch + 0.04, pitch - 0.04)


def _books(p: Parts, left: float, right: float, back: float, front: float, z: float, room: float) -> None:
    names = list(COLORS)
    x = left + p.rng.uniform(0, 0.1)
    while x < right - 0.1:
        width = min(p.rng.uniform(0.1, 0.26), right - x)
        rgb = jittered(p.rng, COLORS[names[p.rng.integers(len(names))]], 0.08) * 0.85
        top = z + room * p.rng.uniform(0.55, 0.92)
        p.box((x, back, z), (x + width, front - p.rng.uniform(0, 0.04), top), rgb, "stripes", scale=0.04)
        x += width + (p.rng.uniform(0.05, 0.25) if p.rng.random() < 0.3 else 0.004)


def floor_lamp(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Standing lamp with a glowing shade."""
    radius, h = s[0] / 2, s[2]
    p.cylinder((0, 0, 0.015), radius * 0.75, 0.03, accent)
    p.cylinder((0, 0, h / 2), 0.018, h - 0.1, accent)
    p.cylinder((0, 0, h - 0.15), radius, 0.3, color, "glow")


def plant(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Potted plant: pot, earth, stem, a crown of leaves."""
    radius, h = s[0] / 2, s[2]
    pot = 0.3 * min(1.0, h)
    p.cylinder((0, 0, pot / 2), radius * 0.55, pot, color)
    p.cylinder((0, 0, pot), radius * 0.6, 0.04, shaded(color, 0.9))
    p.cylinder((0, 0, pot + 0.02), radius * 0.5, 0.02, (0.2, 0.13, 0.08))
    p.cylinder((0, 0, (pot + h) / 2 - 0.05), 0.02, h - pot - 0.1, (0.3, 0.22, 0.12))
    for index in range(9):
        turn = index * 2.4
        level = pot + (h - pot) * (0.3 + 0.55 * index / 8)
        out = radius * (0.55 - 0.35 * index / 8)
        center = (out * np.cos(turn), out * np.sin(turn), level)
        leaf = (radius * 0.48, radius * 0.26, (h - pot) * 0.13)
        green = jittered(p.rng, (0.20, 0.46, 0.17), 0.06)
        p.ellipsoid(center, leaf, green, "leaves", tilt=p.rng.uniform(-0.4, 0.4), turn=turn, scale=0.05)


def refrigerator(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Refrigerator with two doors."""
    w, d, h = s
    p.box((-w / 2, -d / 2, 0.03), (w / 2, d / 2 - 0.05, h), shaded(color, 0.9))
    split = h * 0.66
    for low, high in ((0.05, split - 0.01), (split + 0.01, h - 0.01)):
        p.box((-w / 2 + 0.005, d / 2 - 0.06, low), (w / 2 - 0.005, d / 2, high), color)
    for low, high in ((split - 0.5, split - 0.08), (split + 0.08, h - 0.12)):
        p.cylinder((-w / 2 + 0.07, d / 2 + 0.02, (low + high) / 2), 0.014, high - low, METAL)
    p.box((-w / 2 + 0.02, -d / 2 + 0.05, 0), (w / 2 - 0.02, d / 2 - 0.08, 0.04), DARK)


def stove(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Cooker: oven door, knobs, four hobs."""
    w, d, h = s
    p.box((-w / 2, -d / 2, 0), (w / 2, d / 2 - 0.03, h - 0.03), color)
    p.box((-w / 2, -d / 2, h - 0.04), (w / 2, d / 2, h - 0.01), DARK)
    for x in (-0.25, 0.25):
        for y in (-0.22, 0.22):
            p.cylinder((x * w, y * d, h - 0.005), 0.085, 0.012, (0.32, 0.32, 0.33))
    p.box((-w / 2 + 0.04, d / 2 - 0.04, 0.12), (w / 2 - 0.04, d / 2 - 0.01, h - 0.22), DARK)
    p.cylinder((0, d / 2 + 0.01, h - 0.24), 0.014, w - 0.12, METAL, axis="x")
    for index in range(4):
        p.cylinder(((index - 1.5) * w / 5, d / 2 - 0.01, h - 0.1), 0.025, 0.05, METAL, axis="y")


def sink(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Wash stand: cupboard, worktop, basin, tap."""
    w, d, h = s
    p.box((-w / 2 + 0.02, -d / 2, 0), (w / 2 - 0.02, d / 2 - 0.03, h - 0.06), color, "wood")
    for side in (-1, 1):
        p.box((side * 0.01, d / 2 - 0.04, 0.06), (side * (w / 2 - 0.04), d / 2 - 0.015, h - 0.1), shaded(color, 1.1))
    p.box((-w / 2, -d / 2, h - 0.06), (w / 2, d / 2, h), _WHITE)
    p.ellipsoid((0, 0.03, h), (w * 0.36, d * 0.33, 0.012), (0.62, 0.64, 0.66))
    p.cylinder((0, -d / 2 + 0.08, h + 0.1), 0.016, 0.2, METAL)
    p.cylinder((0, -d / 2 + 0.15, h + 0.2), 0.014, 0.16, METAL, axis="y")


def washing_machine(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Front loader with a round door."""
    w, d, h = s
    p.box((-w / 2, -d / 2, 0), (w / 2, d / 2 - 0.03, h), color)
    p.box((-w / 2, d / 2 - 0.04, h - 0.14), (w / 2, d / 2 - 0.02, h), shaded(color, 0.75))
    p.cylinder((0, d / 2 - 0.02, h * 0.42), w * 0.34, 0.05, METAL, axis="y")
    p.cylinder((0, d / 2 - 0.01, h * 0.42), w * 0.26, 0.06, (0.16, 0.18, 0.22), axis="y")
    p.cylinder((w * 0.3, d / 2 - 0.01, h - 0.07), 0.03, 0.05, METAL, axis="y")


def toilet(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Toilet: tank, bowl, seat."""
    w, d, h = s
    p.box((-w / 2, -d / 2, 0.38), (w / 2, -d / 2 + 0.18, h - 0.03), color)
    p.box((-w / 2 - 0.01, -d / 2 - 0.005, h - 0.035), (w / 2 + 0.01, -d / 2 + 0.19, h), shaded(color, 0.94))
    p.cylinder((0, 0.02, 0.17), w * 0.3, 0.34, color)
    p.ellipsoid((0, 0.06, 0.32), (w * 0.48, d * 0.36, 0.1), color)
    p.ellipsoid((0, 0.06, 0.41), (w * 0.49, d * 0.37, 0.03), shaded(color, 0.9))
    p.box((-w * 0.3, -d / 2 + 0.1, 0.05), (w * 0.3, -d / 2 + 0.3, 0.4), color)


def bathtub(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Tub: four sides around water, a tap."""
    w, d, h = s
    rim = 0.07
    p.box((-w / 2, -d / 2, 0), (w / 2, -d / 2 + rim, h), color)
    p.box((-w / 2, d / 2 - rim, 0), (w / 2, d / 2, h), color)
    p.box((-w / 2, -d / 2, 0), (-w / 2 + rim, d / 2, h), color)
    p.box((w / 2 - rim, -d / 2, 0), (w / 2, d / 2, h), color)
    p.box((-w / 2 + rim, -d / 2 + rim, 0.05), (w / 2 - rim, d / 2 - rim, h * 0.6), (0.55, 0.74, 0.80))
    p.cylinder((-w / 2 + 0.05, 0, h + 0.08), 0.018, 0.18, METAL)
    p.cylinder((-w / 2 + 0.12, 0, h + 0.16), 0.016, 0.16, METAL, axis="x")


def piano(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Upright piano: body, keyboard with black keys, side panels, pedals."""
    w, d, h = s
    p.box((-w / 2, -d / 2, 0), (w / 2, -d / 2 + 0.3, h - 0.03), color, "wood")
    p.box((-w / 2 - 0.02, -d / 2, h - 0.04), (w / 2 + 0.02, -d / 2 + 0.33, h), color, "wood")
    for side in (-1, 1):
        p.box((side * w / 2, -d / 2, 0), (side * (w / 2 - 0.06), d / 2, 0.72), color, "wood")
    p.box((-w / 2, -d / 2 + 0.28, 0.6), (w / 2, d / 2, 0.68), color, "wood")
    p.box((-w / 2 + 0.07, d / 2 - 0.2, 0.68), (w / 2 - 0.07, d / 2 - 0.03, 0.71), (0.95, 0.94, 0.90))
    for index in range(9):
        x = -w / 2 + 0.14 + index * (w - 0.28) / 8
        p.box((x - 0.025, d / 2 - 0.2, 0.7), (x + 0.025, d / 2 - 0.1, 0.725), DARK)


def trash_can(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Round bin with a lid and a pedal ring."""
    radius, h = s[0] / 2, s[2]
    p.cylinder((0, 0, h * 0.44), radius * 0.92, h * 0.88, color)
    p.cylinder((0, 0, h * 0.9), radius, 0.04, shaded(color, 0.7))
    p.ellipsoid((0, 0, h * 0.91), (radius * 0.9, radius * 0.9, h * 0.09), color)
    p.cylinder((0, 0, 0.02), radius * 0.97, 0.04, DARK)


def rug(p: Parts, s: np.ndarray, color: np.ndarray, accent: np.ndarray) -> None:
    """Flat rug with a border."""
    w, d, _ = s
    p.box((-w / 2, -d / 2, 0), (w / 2, d / 2, 0.012), shaded(color, 0.7), "carpet")
    p.box((-w / 2 + 0.1, -d / 2 + 0.1, 0), (w / 2 - 0.1, d / 2 - 0.1, 0.016), color, "carpet")


def wood_or_metal(rng: np.random.Generator) -> np.ndarray:
    """Draw an accent colour: a wood tone, metal or dark lacquer."""
    tones = (*WOOD_TONES, METAL, DARK)
    return jittered(rng, tones[rng.integers(len(tones))])
