"""From a room and what its views show to balanced, worded questions with exact answers."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets_scripts.rooms.balance import acceptance
from datasets_scripts.rooms.catalogue import CATALOGUE, named, plural
from datasets_scripts.rooms.facts import Facts
from datasets_scripts.rooms.families import FAMILIES, Family, Slots, side_words
from datasets_scripts.rooms.scene import Room
from datasets_scripts.rooms.situations import Situation, draw_situations
from datasets_scripts.schema import QUESTION_TYPES, question_type

MIN_VISIBLE = 0.004  # share of the pixels of one view that a thing must fill to be asked about
_SITUATIONS = 5
_SYNONYMS = {
    "gray": ["grey"],
    "tv": ["television"],
    "refrigerator": ["fridge"],
    "books": ["stack of books"],
    "behind": ["behind me", "behind you"],
    "left": ["to the left", "on the left"],
    "right": ["to the right", "on the right"],
    "front": ["in front", "in front of me"],
    "around": ["turn around", "backwards"],
    "wood": ["wooden"],
    "tile": ["tiles"],
}
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


@dataclass(frozen=True)
class Candidate:
    """One question that holds in a room: its family, slots, situation and answer."""

    family: Family
    slots: Slots
    situation: Situation | None
    answer: str

    @property
    def key(self) -> str:
        """What the answers are balanced over, besides the family: the kind of situation and some of the slots."""
        kind = [self.situation.kind] if self.situation else []
        return "|".join([*kind, *(self.slots[i] for i in self.family.key_slots)])


def visible_objects(pixels: np.ndarray, size: int) -> list[int]:
    """Return the objects seen well enough to be asked about.

    pixels [V, n + 1] counts the pixels of each instance id (0 = nothing, i + 1 = object i) in each size x size view.
    """
    best = pixels[:, 1:].max(axis=0)
    return [int(i) for i in np.flatnonzero(best >= MIN_VISIBLE * size**2)]


def candidates(room: Room, visible: list[int], rng: np.random.Generator) -> list[Candidate]:
    """Return questions whose answer is the same for all things in the room and for the visible ones alone."""
    whole = Facts(room)
    seen = Facts(room, visible, whole)
    situations = draw_situations(seen, whole, _SITUATIONS, rng)
    found = []
    for family in FAMILIES:
        slots = family.draw(seen, rng)
        for situation in situations if family.situated else [None]:
            for choice in slots:
                answer = family.answer(seen, situation, *choice)
                if answer is not None and family.answer(whole, situation, *choice) == answer:
                    found.append(Candidate(family, choice, situation, answer))
    return found


def select(found: list[Candidate], count: int, rng: np.random.Generator) -> list[Candidate]:
    """Choose up to `count` candidates: types as even as possible, then families, answers balanced by acceptance."""
    kept = [c for c in found if rng.random() < acceptance(c.family.name, c.key, c.answer)]
    pools: dict[str, dict[str, list[Candidate]]] = {kind: {} for kind in QUESTION_TYPES}
    for i in rng.permutation(len(kept)):
        family = kept[i].family
        pools[question_type(family.texts[0])].setdefault(family.name, []).append(kept[i])
    queues = [_in_turns(pool, rng) for pool in pools.values()]
    chosen: list[Candidate] = []
    subjects = set()  # two families may ask the same thing in other words
    while len(chosen) < count and any(queues):
        for i in rng.permutation(len(queues)):
            while queues[i] and len(chosen) < count:
                candidate = queues[i].pop()
                subject = (candidate.slots, candidate.situation and candidate.situation.text)
                if subject not in subjects:
                    subjects.add(subject)
                    chosen.append(candidate)
                    break
    return chosen


def _in_turns(pool: dict[str, list[Candidate]], rng: np.random.Generator) -> list[Candidate]:
    """Return all candidates of a type, to be popped from the end so that its families take turns."""
    names = [str(name) for name in rng.permutation(sorted(pool))]
    longest = max((len(members) for members in pool.values()), default=0)
    order = [pool[name][turn] for turn in range(longest) for name in names if turn < len(pool[name])]
    return order[::-1]


def question_rows(room: Room, chosen: list[Candidate], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Word the chosen candidates and return them as rows of the schema."""
    rows = []
    numbers: dict[str, int] = {}
    for candidate in chosen:
        family = candidate.family
        number = numbers[family.name] = numbers.get(family.name, -1) + 1
        question = _worded(family.texts[rng.integers(len(family.texts))], candidate.slots)
        situation = candidate.situation
        rows.append(
            {
                "sample_id": f"{room.room_id}/{family.name}/{number}",
                "scene_id": room.room_id,
                "task": "rooms_qa",
                "question": question,
                "situation": situation.text if situation else None,
                "situation_pose": situation.world_pose(room) if situation else None,
                "answers": accepted_answers(candidate.answer),
                "question_type": question_type(question),
                "action": None,
                "targets": [room.object_target(item) for item in room.objects if item.label in candidate.slots],
                "anchor_frame_id": None,
            }
        )
    return rows


def accepted_answers(answer: str) -> list[str]:
    """Return the answer followed by other wordings of it."""
    if answer.isdigit():
        return [answer, *_NUMBERS[int(answer) : int(answer) + 1]]
    if answer.startswith("on the "):
        support = answer.removeprefix("on the ")
        return [answer, f"on top of the {support}", support]
    return [answer, *_SYNONYMS.get(answer, [])]


def _worded(text: str, slots: Slots) -> str:
    fields = {}
    for name, slot in zip("xyzw", slots):
        fields[name] = named(slot)
        fields[f"{name}_article"] = f"{'an' if named(slot)[0] in 'aeiou' else 'a'} {named(slot)}"
        if slot in CATALOGUE:
            fields[f"{name}_plural"] = plural(slot)
        if slot in ("left", "right", "behind"):
            fields[f"{name}_side"] = side_words(slot)
    return text.format(**fields)
