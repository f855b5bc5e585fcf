"""What goes into a room: groups that belong together, extras, things on tables and walls."""

import numpy as np

from datasets_scripts.rooms.catalogue import CATALOGUE, FURNITURE, TABLETOP, make
from datasets_scripts.rooms.layout import Placer
from datasets_scripts.rooms.scene import SceneObject

_MAX_COVERED = 0.42  # share of the floor under furniture

_PROGRAMS = {
    "bedroom": (("bed", 1.0), ("wardrobe", 0.7), ("dresser", 0.6), ("desk", 0.3), ("tv", 0.2), ("armchair", 0.3)),
    "living room": (("sofa", 1.0), ("tv", 0.75), ("bookshelf", 0.6), ("armchair", 0.5), ("piano", 0.25)),
    "dining room": (("dining", 1.0), ("cabinet", 0.7), ("sofa", 0.2), ("piano", 0.2)),
    "office": (("desk", 1.0), ("desk", 0.4), ("bookshelf", 0.8), ("cabinet", 0.5), ("sofa", 0.3)),
    "kitchen": (("stove", 0.95), ("refrigerator", 0.95), ("sink", 0.9), ("dining", 0.7), ("cabinet", 0.7)),
    "bathroom": (("bathtub", 0.8), ("toilet", 0.95), ("sink", 0.9), ("washing machine", 0.6), ("cabinet", 0.4)),
    "studio": (("bed", 0.8), ("desk", 0.6), ("sofa", 0.6), ("dining", 0.4), ("refrigerator", 0.5), ("wardrobe", 0.4)),
}
_EXTRAS = tuple(label for label in FURNITURE if label not in ("toilet", "bathtub", "table"))
_ALONE = ("bed", "stove", "refrigerator", "sink", "washing machine", "piano", "tv stand")  # one a room
_REPEATABLE = (
    *("chair", "stool", "plant", "trash can", "ottoman", "armchair"),
    *("floor lamp", "bookshelf", "nightstand", "cabinet"),
)
_ON_WALLS = ("picture", "mirror", "tv", "whiteboard", "clock", "shelf", "radiator")
_ON_DESKS = ("monitor", "monitor", "laptop", "laptop", "table lamp", "globe", "books", "box", "vase")


def furnish(placer: Placer) -> None:
    """Fill a room whose doors and windows are in place."""
    rng = placer.rng
    name = list(_PROGRAMS)[rng.integers(len(_PROGRAMS))]
    groups = {"bed": _bed, "sofa": _sofa, "dining": _dining, "desk": _desk, "tv": _tv}
    for label, chance in _PROGRAMS[name]:
        if rng.random() < chance and _has_room(placer):
            if label in groups:
                groups[label](placer)
            else:
                placer.place(label)
    for label in rng.choice(_REPEATABLE, 2, replace=False):
        _repeat(placer, str(label), int(rng.integers(1, 5)))
    for label in rng.choice(_EXTRAS, int(rng.integers(3, 7)), replace=False):
        alone = label in _ALONE and any(item.label == label for item in placer.objects)
        if _has_room(placer) and not alone:
            placer.place(str(label))
    _fill_walls(placer)
    _fill_surfaces(placer)


def _has_room(placer: Placer) -> bool:
    return placer.covered < _MAX_COVERED * placer.plan.area


def _repeat(placer: Placer, label: str, count: int) -> None:
    color = str(placer.rng.choice(CATALOGUE[label].palette)) if placer.rng.random() < 0.5 else None
    for _ in range(count):
        if _has_room(placer):
            placer.place(label, color=color)


def _bed(placer: Placer) -> None:
    rng = placer.rng
    item = make("bed", rng)
    if not placer.against_wall(item):
        return
    color = str(rng.choice(CATALOGUE["nightstand"].palette))
    for side in (-1, 1):
        if rng.random() < 0.6:
            placer.beside(make("nightstand", rng, color=color), item, side, rng.uniform(0.06, 0.12))


def _sofa(placer: Placer) -> None:
    rng = placer.rng
    item = make("sofa", rng)
    if not (placer.against_wall(item) if rng.random() < 0.75 else placer.freely(item)):
        return
    if rng.random() < 0.7:
        low = make("coffee table", rng)
        placer.before(low, item, rng.uniform(0.3, 0.5), rng.uniform(-0.2, 0.2))
    if rng.random() < 0.4:
        placer.beside(make("floor lamp", rng), item, 1 if rng.random() < 0.5 else -1, 0.1)


def _dining(placer: Placer) -> None:
    rng = placer.rng
    item = make("table", rng, round_top=rng.random() < 0.35)
    if not placer.freely(item, 0.55):
        return
    label = "stool" if rng.random() < 0.2 else "chair"
    palette = CATALOGUE[label].palette
    colors = rng.choice(palette, 2, replace=False)
    mixed = rng.random() < 0.35
    seats = 6 if item.kind != "round" else int(rng.integers(3, 6))
    count = int(rng.integers(1, seats + 1))
    for seat in rng.permutation(seats)[:count]:
        color = str(colors[int(mixed and rng.random() < 0.5)])
        placer.around(make(label, rng, color=color), item, int(seat), seats)


def _desk(placer: Placer) -> None:
    rng = placer.rng
    item = make("desk", rng)
    if placer.against_wall(item) and rng.random() < 0.85:
        placer.before(make("chair", rng), item, rng.uniform(0.03, 0.2), rng.uniform(-0.15, 0.15))


def _tv(placer: Placer) -> None:
    rng = placer.rng
    stand = make("tv stand", rng)
    if not placer.against_wall(stand) or rng.random() > 0.8:
        return
    wall = placer.walls[stand.wall]
    along = float((stand.origin[:2] - wall.start) @ wall.direction)
    placer.on_wall(make("tv", rng), stand.top + rng.uniform(0.1, 0.4), [stand.wall], along)


def _fill_walls(placer: Placer) -> None:
    rng = placer.rng
    wanted = [str(label) for label in rng.choice(_ON_WALLS, int(rng.integers(2, 6)), replace=False)]
    wanted += [wanted[0] if wanted[0] in ("picture", "clock", "shelf", "mirror") else "picture"] * int(rng.integers(4))
    for label in wanted:
        item = make(label, rng)
        if label == "radiator":
            placer.on_wall(item, 0.12)
        elif label == "tv":
            placer.on_wall(item, float(rng.uniform(0.9, 1.2)))
        else:
            middle = rng.uniform(1.45, 1.75)
            placer.on_wall(item, float(max(0.6, middle - item.size[2] / 2)))


def _fill_surfaces(placer: Placer) -> None:
    rng = placer.rng
    surfaces = [item for item in placer.objects if CATALOGUE[item.label].surface]
    repeated = str(rng.choice(["box", "vase", "table lamp", "books"]))
    for support in surfaces:
        if rng.random() < 0.7:
            count = 2 if support.size[0] > 1.0 and rng.random() < 0.35 else 1
            for _ in range(count):
                label = repeated if rng.random() < 0.3 else _fitting(support, rng)
                placer.on_top(make(label, rng), support)


def _fitting(support: SceneObject, rng: np.random.Generator) -> str:
    labels = _ON_DESKS if support.label == "desk" else tuple(TABLETOP)
    if support.top > 1.0 or support.size[1] < 0.42:
        labels = tuple(label for label in labels if label not in ("monitor", "laptop", "microwave"))
    return str(labels[rng.integers(len(labels))])
