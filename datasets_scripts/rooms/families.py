"""The families of questions: what slots they have, how they are worded, and what the answer is.

A family's `answer` is a pure function of facts, situation and slots (class names, colours, sides), None where the
question has no single sure answer. It is asked twice, with all things of the room and with the visible ones only; a
question stands only if both agree.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from datasets_scripts.rooms.catalogue import CATALOGUE, FURNITURE
from datasets_scripts.rooms.facts import Facts
from datasets_scripts.rooms.situations import Situation

Slots = tuple[str, ...]
Answer = Callable[..., str | None]  # (facts, situation, *slots)
Draw = Callable[[Facts, np.random.Generator], list[Slots]]

_MAX_DRAWN = 24  # slot choices tried per family and room
_TURNS = {"left": "left", "right": "right", "behind": "around"}
_SIMILAR_HEIGHT = (
    ("wardrobe", "bookshelf", "refrigerator", "floor lamp", "plant"),
    ("cabinet", "dresser", "plant", "bookshelf", "floor lamp"),
    ("stool", "trash can", "nightstand"),
)
_COUNTED = (
    *("chair", "stool", "plant", "trash can", "ottoman", "armchair", "floor lamp", "bookshelf", "nightstand"),
    *("cabinet", "picture", "window", "mirror", "clock", "shelf", "vase", "box", "table lamp"),
)
# Built side by side, so that their nearness says nothing about the room at hand.
_BONDED = (
    {"bed", "nightstand"},
    {"table", "chair"},
    {"table", "stool"},
    {"desk", "chair"},
    {"sofa", "coffee table"},
    {"sofa", "floor lamp"},
)


@dataclass(frozen=True)
class Family:
    """One family. `texts` have the fields {x}, {y}, {z}, {w} in the order of the slots, and {x_article}, {x_plural} ...

    `situated`: asked from a situation. `key_slots`: the slots that the answers are balanced over (and the kind of
    situation). `needs_key`: not asked about slots too rare to be balanced by themselves.
    """

    name: str
    texts: tuple[str, ...]
    draw: Draw
    answer: Answer
    situated: bool = False
    key_slots: tuple[int, ...] = (0,)
    needs_key: bool = False


def yes_no(value: bool | None) -> str | None:
    """Return "yes", "no" or None."""
    return None if value is None else ("yes" if value else "no")


# ------------------------------------------------------------------------------------------------------- drawing slots


def _some(choices: list[Slots], rng: np.random.Generator) -> list[Slots]:
    if len(choices) <= _MAX_DRAWN:
        return choices
    return [choices[i] for i in rng.choice(len(choices), _MAX_DRAWN, replace=False)]


def _nothing(facts: Facts, rng: np.random.Generator) -> list[Slots]:
    return [()]


def _unique(facts: Facts, rng: np.random.Generator) -> list[Slots]:
    return [(label,) for label in facts.unique]


def _unique_supports(facts: Facts, rng: np.random.Generator) -> list[Slots]:
    return [(label,) for label in facts.unique if CATALOGUE[label].surface]


def _any_label(facts: Facts, rng: np.random.Generator) -> list[Slots]:
    return [(label,) for label in CATALOGUE]


def _present(facts: Facts, rng: np.random.Generator) -> list[Slots]:
    return [(label,) for label in facts.by_label]


def _unique_pairs(facts: Facts, rng: np.random.Generator) -> list[Slots]:
    return _some([(a, b) for a in facts.unique for b in facts.unique if a != b], rng)


def _similar_pairs(facts: Facts, rng: np.random.Generator) -> list[Slots]:
    groups = ([label for label in group if label in facts.unique] for group in _SIMILAR_HEIGHT)
    return _some([(a, b) for group in groups for a in group for b in group if a != b], rng)


def _counted_pairs(facts: Facts, rng: np.random.Generator) -> list[Slots]:
    labels = [label for label in _COUNTED if label in facts.by_label]
    return _some([(a, b) for a in labels for b in labels if a != b], rng)


def _several_and_unique(facts: Facts, rng: np.random.Generator) -> list[Slots]:
    several = [label for label, found in facts.by_label.items() if len(found) > 1 and CATALOGUE[label].color_told]
    return _some([(a, b) for a in several for b in facts.unique if not bonded(a, b)], rng)


def _options(facts: Facts, rng: np.random.Generator) -> list[Slots]:
    """Three different unique things, in random order."""
    labels = [label for label in facts.unique if CATALOGUE[label].color_told]
    triples = _some(list(combinations(labels, 3)), rng)
    return [tuple(str(label) for label in rng.permutation(triple)) for triple in triples]


def _options_and_color(facts: Facts, rng: np.random.Generator) -> list[Slots]:
    choices = []
    for option in _options(facts, rng):
        shared = sorted(set.intersection(*(set(CATALOGUE[label].palette) for label in option)))
        if shared:
            choices.append((*option, str(rng.choice(shared))))
    return choices


def _options_and_goal(facts: Facts, rng: np.random.Generator) -> list[Slots]:
    """Three pieces of furniture and a fourth thing, none of them placed together on purpose."""
    labels = [label for label in facts.unique if label in FURNITURE and label != "rug"]
    goals = [label for label in (*labels, "door", "window") if label in facts.unique]
    choices = [
        (*rng.permutation(triple), goal)
        for triple in combinations(labels, 3)
        for goal in goals
        if goal not in triple and not any(bonded(goal, label) for label in triple)
    ]
    return [tuple(map(str, choice)) for choice in _some(choices, rng)]


def _two_and_goal(facts: Facts, rng: np.random.Generator) -> list[Slots]:
    return [(a, goal, b) for a, b, _, goal in _options_and_goal(facts, rng)]


def _label_and_color(facts: Facts, rng: np.random.Generator) -> list[Slots]:
    labels = [label for label in facts.by_label if CATALOGUE[label].color_told]
    return _some([(label, color) for label in labels for color in CATALOGUE[label].palette], rng)


def _sides(facts: Facts, rng: np.random.Generator) -> list[Slots]:
    return [("left",), ("right",), ("behind",)]


def _turns(facts: Facts, rng: np.random.Generator) -> list[Slots]:
    return [(turn,) for turn in _TURNS.values()]


def _unique_and_side(facts: Facts, rng: np.random.Generator) -> list[Slots]:
    return [(label, side) for label in facts.unique for side in ("left", "right", "behind")]


def _several_and_side(facts: Facts, rng: np.random.Generator) -> list[Slots]:
    several = [label for label, found in facts.by_label.items() if len(found) > 1]
    return [(label, side) for label in several for side in ("left", "right")]


def bonded(first: str, second: str) -> bool:
    """Whether two classes are put side by side by the layout."""
    return {first, second} in _BONDED


# ------------------------------------------------------------------------------------------------------------- answers


def _label_of(facts: Facts, index: int | None) -> str | None:
    return None if index is None else facts.item(index).label


def _color(facts: Facts, _: Situation | None, x: str) -> str | None:
    index = facts.unique.get(x)
    return None if index is None else facts.item(index).color


def _color_of_nearest(facts: Facts, _: Situation | None, x: str, y: str) -> str | None:
    goal, rivals = facts.unique.get(y), facts.by_label.get(x, [])
    if goal is None or len({facts.item(i).color for i in rivals}) < 2:
        return None
    index = facts.nearest(goal, rivals)
    return None if index is None else facts.item(index).color


def _thing_on(facts: Facts, _: Situation | None, x: str) -> str | None:
    support = facts.unique.get(x)
    found = [] if support is None else facts.on_top(support)
    return facts.item(found[0]).label if len(found) == 1 else None


def _thing_above(facts: Facts, _: Situation | None, x: str) -> str | None:
    index = facts.unique.get(x)
    return None if index is None else _label_of(facts, facts.above(index))


def _nearest_thing(facts: Facts, _: Situation | None, x: str) -> str | None:
    index = facts.unique.get(x)
    if index is None or index not in facts.standing:
        return None
    return _label_of(facts, facts.nearest(index, facts.standing))


def _thing_between(facts: Facts, _: Situation | None, x: str, y: str) -> str | None:
    first, second = facts.unique.get(x), facts.unique.get(y)
    if first is None or second is None or first not in facts.standing or second not in facts.standing:
        return None
    return _label_of(facts, facts.between(first, second))


def _floor(facts: Facts, _: Situation | None) -> str | None:
    return facts.room.floor_material


def _thing_on_side(facts: Facts, situation: Situation, side: str) -> str | None:
    return _label_of(facts, situation.nearest_on(facts, side))


def _thing_after_turn(facts: Facts, situation: Situation, turn: str) -> str | None:
    side = next(side for side, name in _TURNS.items() if name == turn)
    return _label_of(facts, situation.nearest_on(facts, side))


def _exists(facts: Facts, _: Situation | None, x: str) -> str | None:
    return yes_no(x in facts.by_label)


def _exists_colored(facts: Facts, _: Situation | None, x: str, color: str) -> str | None:
    return yes_no(any(facts.item(i).color == color for i in facts.by_label.get(x, [])))


def _has_color(facts: Facts, _: Situation | None, x: str, color: str) -> str | None:
    found = _color(facts, None, x)
    return None if found is None else yes_no(found == color)


def _same_color(facts: Facts, _: Situation | None, x: str, y: str) -> str | None:
    first, second = _color(facts, None, x), _color(facts, None, y)
    return None if first is None or second is None else yes_no(first == second)


def _taller(facts: Facts, _: Situation | None, x: str, y: str) -> str | None:
    first, second = facts.unique.get(x), facts.unique.get(y)
    return None if first is None or second is None else yes_no(facts.taller(first, second))


def _closer(facts: Facts, _: Situation | None, x: str, goal: str, y: str) -> str | None:
    first, origin, second = (facts.unique.get(label) for label in (x, goal, y))
    return None if None in (first, origin, second) else yes_no(facts.closer(origin, first, second))


def _holds_something(facts: Facts, _: Situation | None, x: str) -> str | None:
    index = facts.unique.get(x)
    return None if index is None else yes_no(bool(facts.on_top(index)))


def _is_on_side(facts: Facts, situation: Situation, x: str, side: str) -> str | None:
    found = _side(facts, situation, x)
    return None if found is None else yes_no(found == side)


def _side(facts: Facts, situation: Situation, x: str) -> str | None:
    index = facts.unique.get(x)
    return None if index is None else situation.side(facts, index)


def _turn(facts: Facts, situation: Situation, x: str) -> str | None:
    return _TURNS.get(_side(facts, situation, x) or "")


def _count(facts: Facts, _: Situation | None, x: str) -> str | None:
    number = len(facts.by_label.get(x, []))
    return str(number) if 1 <= number <= 6 else None


def _count_colored(facts: Facts, _: Situation | None, x: str, color: str) -> str | None:
    found = facts.by_label.get(x, [])
    return str(sum(facts.item(i).color == color for i in found)) if len(found) > 1 else None


def _count_on_side(facts: Facts, situation: Situation, x: str, side: str) -> str | None:
    found = facts.by_label.get(x, [])
    sides = [situation.side(facts, i) for i in found]
    return str(sides.count(side)) if len(found) > 1 and None not in sides else None


def _more(facts: Facts, _: Situation | None, x: str, y: str) -> str | None:
    first, second = len(facts.by_label.get(x, [])), len(facts.by_label.get(y, []))
    return None if first == second or not (first and second) else yes_no(first > second)


def _sees(facts: Facts, situation: Situation, x: str) -> str | None:
    index = facts.unique.get(x)
    return None if index is None else yes_no(situation.can_see(facts, index))


def _can_sit(facts: Facts, situation: Situation, side: str) -> str | None:
    index = situation.nearest_on(facts, side)
    return None if index is None else yes_no(CATALOGUE[facts.item(index).label].seat)


def _which_has_color(facts: Facts, _: Situation | None, x: str, y: str, z: str, color: str) -> str | None:
    found = {label: _color(facts, None, label) for label in (x, y, z)}
    matching = [label for label, its_color in found.items() if its_color == color]
    return matching[0] if len(matching) == 1 and None not in found.values() else None


def _which_is_closest(facts: Facts, _: Situation | None, x: str, y: str, z: str, goal: str) -> str | None:
    indices = [facts.unique.get(label) for label in (x, y, z, goal)]
    if None in indices:
        return None
    *options, origin = indices
    return _label_of(facts, facts.nearest(origin, options, reach=np.inf))


def _where(facts: Facts, _: Situation | None, x: str) -> str | None:
    index = facts.unique.get(x)
    support = None if index is None else facts.item(index).support
    if support is None or facts.unique.get(facts.item(support).label) != support:
        return None
    return f"on the {facts.item(support).label}"


_SIDE_WORDS = {"left": "on my left", "right": "on my right", "behind": "behind me"}


def side_words(side: str) -> str:
    """Return a side as it reads in a question: "on my left", "on my right", "behind me"."""
    return _SIDE_WORDS[side]


FAMILIES = (
    Family("what_color", ("What color is the {x}?", "What is the color of the {x}?"), _unique, _color),
    Family(
        "what_color_nearest",
        ("What color is the {x} closest to the {y}?", "What is the color of the {x} nearest to the {y}?"),
        _several_and_unique,
        _color_of_nearest,
    ),
    Family("what_on", ("What is on the {x}?", "What is on top of the {x}?"), _unique_supports, _thing_on),
    Family(
        "what_above", ("What is hanging above the {x}?", "What is on the wall above the {x}?"), _unique, _thing_above
    ),
    Family(
        "what_nearest",
        ("What piece of furniture is closest to the {x}?", "What furniture stands nearest to the {x}?"),
        _unique,
        _nearest_thing,
    ),
    Family("what_between", ("What is between the {x} and the {y}?",), _unique_pairs, _thing_between, key_slots=()),
    Family("what_floor", ("What is the floor made of?", "What kind of floor is this?"), _nothing, _floor, key_slots=()),
    Family(
        "what_side",
        ("What is the nearest piece of furniture {x_side}?", "What furniture is closest to me {x_side}?"),
        _sides,
        _thing_on_side,
        situated=True,
    ),
    Family("is_present", ("Is there {x_article} in the room?", "Is there {x_article} here?"), _any_label, _exists),
    Family("is_color", ("Is the {x} {y}?", "Is the color of the {x} {y}?"), _label_and_color, _has_color),
    Family(
        "is_taller", ("Is the {x} taller than the {y}?",), _similar_pairs, _taller, key_slots=(0, 1), needs_key=True
    ),
    Family("is_closer", ("Is the {x} closer to the {y} than the {z}?",), _two_and_goal, _closer, key_slots=(0, 1)),
    Family(
        "is_holding",
        ("Is there anything on the {x}?", "Is something on top of the {x}?"),
        _unique_supports,
        _holds_something,
    ),
    Family("is_side", ("Is the {x} {y_side}?",), _unique_and_side, _is_on_side, situated=True, key_slots=(1,)),
    Family("how_many", ("How many {x_plural} are there?", "How many {x_plural} are in the room?"), _present, _count),
    Family(
        "how_many_color",
        ("How many {x_plural} are {y}?", "How many {y} {x_plural} are there?"),
        _label_and_color,
        _count_colored,
    ),
    Family(
        "how_many_side",
        ("How many {x_plural} are {y_side}?",),
        _several_and_side,
        _count_on_side,
        situated=True,
        key_slots=(),
    ),
    Family(
        "how_turn",
        ("How do I have to turn to face the {x}?", "How should I turn to look at the {x}?"),
        _unique,
        _turn,
        situated=True,
        key_slots=(),
    ),
    Family(
        "can_see",
        ("Can I see the {x} without turning around?", "Can I see the {x} from here without turning?"),
        _unique,
        _sees,
        situated=True,
        key_slots=(),
    ),
    Family("can_sit", ("Can I sit on the nearest piece of furniture {x_side}?",), _sides, _can_sit, situated=True),
    Family(
        "can_find",
        ("Can you find {y_article} {x}?", "Can {y_article} {x} be seen in the room?"),
        _label_and_color,
        _exists_colored,
    ),
    Family(
        "which_color",
        ("Which one is {w}: the {x}, the {y} or the {z}?", "Which of these is {w}: {x}, {y} or {z}?"),
        _options_and_color,
        _which_has_color,
        key_slots=(),
    ),
    Family(
        "which_closest",
        (
            "Which is closest to the {w}: the {x}, the {y} or the {z}?",
            "Which stands nearest to the {w}: {x}, {y} or {z}?",
        ),
        _options_and_goal,
        _which_is_closest,
        key_slots=(),
    ),
    Family(
        "which_way",
        ("Which way do I have to turn to face the {x}?", "Which way should I turn to look at the {x}?"),
        _unique,
        _turn,
        situated=True,
        key_slots=(),
    ),
    Family("where_on", ("Where is the {x}?", "Where does the {x} stand?"), _unique, _where),
    Family(
        "are_more",
        ("Are there more {x_plural} than {y_plural}?",),
        _counted_pairs,
        _more,
        key_slots=(0, 1),
        needs_key=True,
    ),
    Family(
        "are_same_color",
        ("Are the {x} and the {y} the same color?", "Do the {x} and the {y} have the same color?"),
        _unique_pairs,
        _same_color,
        key_slots=(0, 1),
    ),
    Family(
        "on_which_side",
        ("On which side of me is the {x}?", "Where is the {x} from where I am?"),
        _unique,
        _side,
        situated=True,
        key_slots=(),
    ),
    Family(
        "if_turn",
        ("If I turn {x}, what piece of furniture is closest in front of me?",),
        _turns,
        _thing_after_turn,
        situated=True,
    ),
)
