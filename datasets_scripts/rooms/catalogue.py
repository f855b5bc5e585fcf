"""Every class of thing a room may hold: builder, typical sizes, colours, and what can be said about it."""

from dataclasses import dataclass

import numpy as np

from datasets_scripts.rooms import fixtures as x
from datasets_scripts.rooms import furniture as f
from datasets_scripts.rooms.materials import COLORS, jittered
from datasets_scripts.rooms.parts import Parts
from datasets_scripts.rooms.scene import SceneObject

Range = tuple[float, float]

_BRIGHT = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
_FABRIC = (*_BRIGHT, "gray", "brown", "white", "black")
_WOODEN = ("brown", "white", "black", "gray", "green", "blue", "red", "yellow")
_ENAMEL = ("white", "gray", "black", "red", "blue", "green", "yellow")
_CERAMIC = ("white", "gray", "pink", "blue", "green", "yellow")


@dataclass(frozen=True)
class Entry:
    """One class. Sizes are (low, high) ranges in metres; a `round` thing is as deep as it is wide.

    has_front: its front is plain to see. seat: one can sit on it. surface: small things can stand on it. palette: names
    of the colours it comes in, each equally likely; `color_told` says whether that colour dominates the whole thing.
    """

    builder: f.Builder
    width: Range
    depth: Range
    height: Range
    palette: tuple[str, ...]
    kind: str = "object"
    has_front: bool = True
    seat: bool = False
    surface: bool = False
    color_told: bool = True


FURNITURE = {
    "chair": Entry(f.chair, (0.42, 0.5), (0.44, 0.52), (0.86, 1.0), _FABRIC, seat=True),
    "stool": Entry(f.stool, (0.32, 0.42), (0, 0), (0.45, 0.7), _FABRIC, "round", has_front=False, seat=True),
    "armchair": Entry(f.armchair, (0.78, 0.95), (0.8, 0.92), (0.8, 1.0), _FABRIC, seat=True),
    "sofa": Entry(f.sofa, (1.6, 2.3), (0.85, 1.0), (0.75, 0.95), _FABRIC, seat=True),
    "bench": Entry(f.bench, (0.9, 1.5), (0.35, 0.45), (0.42, 0.5), _WOODEN, has_front=False, seat=True),
    "ottoman": Entry(f.ottoman, (0.5, 0.8), (0.45, 0.6), (0.38, 0.46), _FABRIC, has_front=False, seat=True),
    "bed": Entry(f.bed, (0.95, 1.8), (1.95, 2.1), (0.85, 1.25), _FABRIC, seat=True),
    "table": Entry(f.table, (1.1, 1.9), (0.75, 0.95), (0.72, 0.78), _WOODEN, has_front=False, surface=True),
    "coffee table": Entry(f.coffee_table, (0.8, 1.2), (0.5, 0.7), (0.38, 0.46), _WOODEN, has_front=False, surface=True),
    "desk": Entry(f.desk, (1.1, 1.6), (0.6, 0.75), (0.72, 0.77), _WOODEN, surface=True),
    "nightstand": Entry(f.nightstand, (0.42, 0.55), (0.38, 0.46), (0.48, 0.6), _WOODEN, surface=True),
    "dresser": Entry(f.dresser, (0.9, 1.4), (0.45, 0.55), (0.8, 1.15), _WOODEN, surface=True),
    "wardrobe": Entry(f.wardrobe, (0.9, 1.7), (0.55, 0.65), (1.6, 2.2), _WOODEN),
    "cabinet": Entry(f.cabinet, (0.8, 1.4), (0.4, 0.5), (0.8, 1.3), _WOODEN, surface=True),
    "tv stand": Entry(f.tv_stand, (1.2, 1.8), (0.38, 0.45), (0.45, 0.55), _WOODEN, surface=True),
    "bookshelf": Entry(f.bookshelf, (0.7, 1.2), (0.28, 0.38), (1.2, 2.1), _WOODEN),
    "floor lamp": Entry(f.floor_lamp, (0.36, 0.46), (0, 0), (1.3, 1.9), (*_BRIGHT, "white"), "round", has_front=False),
    "plant": Entry(f.plant, (0.5, 0.8), (0, 0), (0.8, 1.8), _FABRIC, "round", has_front=False, color_told=False),
    "refrigerator": Entry(f.refrigerator, (0.6, 0.8), (0.6, 0.7), (1.4, 1.95), _ENAMEL),
    "stove": Entry(f.stove, (0.55, 0.7), (0.58, 0.65), (0.86, 0.94), _ENAMEL),
    "sink": Entry(f.sink, (0.55, 0.9), (0.45, 0.55), (0.8, 0.9), _WOODEN),
    "washing machine": Entry(f.washing_machine, (0.58, 0.64), (0.55, 0.62), (0.84, 0.9), _ENAMEL),
    "toilet": Entry(f.toilet, (0.4, 0.46), (0.66, 0.74), (0.75, 0.85), _CERAMIC, seat=True),
    "bathtub": Entry(f.bathtub, (1.5, 1.75), (0.7, 0.8), (0.52, 0.6), _CERAMIC, has_front=False),
    "piano": Entry(f.piano, (1.35, 1.5), (0.58, 0.65), (1.1, 1.25), ("black", "brown", "white", "red", "blue")),
    "trash can": Entry(f.trash_can, (0.28, 0.4), (0, 0), (0.4, 0.7), _FABRIC, "round", has_front=False),
    "rug": Entry(f.rug, (1.2, 2.4), (0.9, 1.7), (0.016, 0.016), _FABRIC, has_front=False),
}

ROUND_TABLE = Entry(f.round_table, (0.9, 1.25), (0, 0), (0.72, 0.78), _WOODEN, "round", has_front=False, surface=True)

TABLETOP = {
    "monitor": Entry(x.monitor, (0.5, 0.62), (0.18, 0.2), (0.4, 0.48), ("black",), color_told=False),
    "laptop": Entry(x.laptop, (0.34, 0.4), (0.26, 0.28), (0.25, 0.28), ("gray",), color_told=False),
    "table lamp": Entry(x.table_lamp, (0.28, 0.36), (0, 0), (0.45, 0.6), (*_BRIGHT, "white"), "round", has_front=False),
    "vase": Entry(x.vase, (0.2, 0.28), (0, 0), (0.38, 0.55), _FABRIC, "round", has_front=False),
    "box": Entry(x.storage_box, (0.32, 0.45), (0.26, 0.34), (0.22, 0.32), _FABRIC, has_front=False),
    "microwave": Entry(x.microwave, (0.46, 0.54), (0.34, 0.38), (0.27, 0.32), _ENAMEL),
    "globe": Entry(x.globe, (0.28, 0.36), (0, 0), (0.4, 0.5), _BRIGHT, "round", has_front=False),
    "books": Entry(x.books, (0.26, 0.34), (0.22, 0.28), (0.18, 0.3), ("red",), has_front=False, color_told=False),
}

WALL_THINGS = {
    "door": Entry(x.door, (0.85, 1.0), (0.06, 0.06), (1.98, 2.1), _WOODEN, "plane"),
    "window": Entry(x.window, (0.8, 1.8), (0.08, 0.08), (0.9, 1.4), ("white",), "plane", color_told=False),
    "picture": Entry(x.picture, (0.5, 1.1), (0.04, 0.04), (0.45, 0.85), _FABRIC, "plane", color_told=False),
    "mirror": Entry(x.mirror, (0.5, 0.9), (0.04, 0.04), (0.7, 1.2), _FABRIC, "plane", color_told=False),
    "tv": Entry(x.tv, (0.95, 1.45), (0.05, 0.05), (0.55, 0.82), ("black",), "plane", color_told=False),
    "whiteboard": Entry(x.whiteboard, (1.0, 1.7), (0.04, 0.04), (0.7, 1.0), ("white",), "plane", color_told=False),
    "clock": Entry(x.clock, (0.36, 0.5), (0.06, 0.06), (0.36, 0.5), _FABRIC, "plane"),
    "shelf": Entry(x.shelf, (0.7, 1.2), (0.2, 0.26), (0.38, 0.48), _WOODEN),
    "radiator": Entry(x.radiator, (0.7, 1.4), (0.09, 0.12), (0.5, 0.65), _ENAMEL),
}

CATALOGUE = {**FURNITURE, **TABLETOP, **WALL_THINGS}
CLASSES = (*CATALOGUE, "wall", "floor", "ceiling")

_TURNS = np.linspace(0, 2 * np.pi, 36, endpoint=False)
_AROUND = np.stack([np.cos(_TURNS), np.sin(_TURNS), np.zeros_like(_TURNS)], axis=-1)

_IRREGULAR_PLURALS = {
    "bench": "benches",
    "dresser": "dressers",
    "bookshelf": "bookshelves",
    "shelf": "shelves",
    "box": "boxes",
    "books": "stacks of books",
}


def plural(label: str) -> str:
    """Return the plural of a class name."""
    return _IRREGULAR_PLURALS.get(label, f"{label}s")


def named(label: str) -> str:
    """Return the class name as it reads after "the": "stack of books" for books, else the label."""
    return "stack of books" if label == "books" else label


def make(label: str, rng: np.random.Generator, *, round_top: bool = False, color: str | None = None) -> SceneObject:
    """Build one thing of class `label` at the origin, of a random typical size and colour.

    `round_top` asks for the round variant of a table; `color` fixes the colour, which must be in the class's palette.
    """
    entry = ROUND_TABLE if round_top else CATALOGUE[label]
    width, depth, height = (rng.uniform(*bounds) for bounds in (entry.width, entry.depth, entry.height))
    size = np.array([width, width if entry.depth == (0, 0) else depth, height])
    name = color or entry.palette[rng.integers(len(entry.palette))]
    parts = Parts(rng)
    entry.builder(parts, size, jittered(rng, COLORS[name]), f.wood_or_metal(rng))
    primitives, exact_size = parts.build()
    if entry.kind == "round":
        exact_size[:2] = 2 * primitives.reach(_AROUND).max()
    return SceneObject(label, entry.kind, name if entry.color_told else None, primitives, exact_size)
