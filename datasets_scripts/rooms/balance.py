"""Balancing answers, so that a guesser who reads the question but sees no image gains little.

    python -m datasets_scripts.rooms.balance --rooms 4000

counts how often each answer holds for each family and leading slots ("how_many", "chair") in rooms of their own seed,
and writes `balance.json`: the share of each common answer's questions to keep. `blind_baseline` measures what is left.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

_TABLE_PATH = Path(__file__).with_name("balance.json")
_CALIBRATION_SEED = 900_001
_MAX_SHARE = 0.25  # aimed share of the most frequent answer, where there are answers enough
_MIN_COUNT = 60  # questions a key needs to be balanced by itself
_ANY = "*"  # key of a whole family


@cache
def _table() -> dict[str, dict[str, dict[str, float]]]:
    return json.loads(_TABLE_PATH.read_text(encoding="utf-8"))


def acceptance(family: str, key: str, answer: str) -> float:
    """Return the share of questions of `family` with leading slots `key` and this answer that are kept."""
    keys = _table().get(family, {})
    return keys.get(key, keys.get(_ANY, {})).get(answer, 1.0)


def acceptance_table(counts: Mapping[tuple[str, str], Counter[str]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return family -> key -> answer -> share to keep, from counts per (family, key) of each answer."""
    table: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    totals: dict[str, Counter[str]] = defaultdict(Counter)
    for (family, key), answers in sorted(counts.items()):
        totals[family] += answers
        if answers.total() >= _MIN_COUNT:
            table[family][key] = _shares(answers)
    for family, answers in totals.items():
        table[family][_ANY] = _shares(answers)
    return dict(table)


def _shares(answers: Counter[str]) -> dict[str, float]:
    """Cut the frequent answers down to a level at which none has more than _MAX_SHARE, or all are equally frequent."""
    level = min(answers.values()) if len(answers) > 1 else 0
    for value in sorted(set(answers.values())):
        if value / sum(min(count, value) for count in answers.values()) <= _MAX_SHARE:
            level = max(level, value)
    return {answer: round(min(1.0, level / count), 3) for answer, count in sorted(answers.items()) if count > level}


def blind_baseline(
    train: Iterable[Mapping[str, Any]], heldout: Iterable[Mapping[str, Any]], min_count: int = 8
) -> dict[str, dict[str, float]]:
    """Score a guesser that reads the question only, per family and per question type.

    It answers with the most frequent training answer to the same situation and question, else question, else family,
    else type: the first that was seen `min_count` times. Rows follow the schema. Returns name -> {"accuracy", "count"}
    for every family, every type and "all".
    """
    memory: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for row in train:
        for key in _blind_keys(row):
            memory[key][row["answers"][0]] += 1
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for row in heldout:
        known = [memory[key] for key in _blind_keys(row) if key in memory and memory[key].total() >= min_count]
        guess = known[0].most_common(1)[0][0] if known else ""
        for name in (family_of(row), row["question_type"], "all"):
            asked[name] += 1
            right[name] += guess in row["answers"]
    return {name: {"accuracy": right[name] / asked[name], "count": asked[name]} for name in sorted(asked)}


def family_of(row: Mapping[str, Any]) -> str:
    """Return the family of a procedural sample, the middle part of its id."""
    return row["sample_id"].split("/")[1]


def _blind_keys(row: Mapping[str, Any]) -> list[tuple[str, ...]]:
    family, question = family_of(row), row["question"]
    return [(family, question, row["situation"] or ""), (family, question), (family,), (row["question_type"],)]


def count_answers(num_rooms: int, seed: int = _CALIBRATION_SEED) -> dict[tuple[str, str], Counter[str]]:
    """Count the answers of all candidate questions of `num_rooms` rooms, taking every object as visible."""
    from datasets_scripts.rooms.questions import candidates
    from datasets_scripts.rooms.room import generate_room, room_rng

    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for index in range(num_rooms):
        room = generate_room(seed, "train", index, num_views=1)
        rng = room_rng(seed, "train", index, "questions")
        for candidate in candidates(room, list(range(len(room.objects))), rng):
            counts[candidate.family.name, candidate.key][candidate.answer] += 1
    return counts


def main() -> None:
    """Write balance.json anew."""
    parser = argparse.ArgumentParser(description="Count answers in fresh rooms and write balance.json anew")
    parser.add_argument("--rooms", type=int, default=4000, help="rooms to count in")
    table = acceptance_table(count_answers(parser.parse_args().rooms))
    _TABLE_PATH.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
