"""Balancing answers, so that a guesser who reads the question but sees no image gains little.

`balance.json` (written by calibrate.py) holds the share of each common answer's questions to keep. What a blind
guesser still gets on a dataset is measured with

    python -m datasets_scripts.rooms.balance --dataset data/rooms
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from datasets import load_from_disk

from datasets_scripts.schema import SAMPLE_SPLITS, read_manifest

TABLE_PATH = Path(__file__).with_name("balance.json")
_MAX_SHARE = 0.25  # aimed share of the most frequent answer, where there are answers enough
_MIN_COUNT = 60  # questions a key needs to be balanced by itself
_ANY = "*"  # key of a whole family


@cache
def _table() -> dict[str, dict[str, dict[str, float]]]:
    return json.loads(TABLE_PATH.read_text(encoding="utf-8"))


def acceptance(family: str, key: str, answer: str) -> float:
    """Return the share of questions of `family` with leading slots `key` and this answer that are kept."""
    keys = _table().get(family, {})
    return keys.get(key, keys.get(_ANY, {})).get(answer, 1.0)


def acceptance_table(
    counts: Mapping[tuple[str, str], Counter[str]], needing_key: Container[str] = ()
) -> dict[str, dict[str, dict[str, float]]]:
    """Return family -> key -> answer -> share to keep, from counts per (family, key) of each answer.

    Rare keys go by the whole family, or are not asked at all in the families `needing_key`.
    """
    table: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    totals: dict[str, Counter[str]] = defaultdict(Counter)
    for (family, key), answers in sorted(counts.items()):
        totals[family] += answers
        if answers.total() >= _MIN_COUNT:
            table[family][key] = _shares(answers)
    for family, answers in totals.items():
        table[family][_ANY] = dict.fromkeys(sorted(answers), 0.0) if family in needing_key else _shares(answers)
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


def main(arguments: list[str] | None = None) -> None:
    """Print what a blind guesser gets on a dataset of rooms, per family and question type."""
    parser = argparse.ArgumentParser(description="Measure what can be answered without seeing an image")
    parser.add_argument("--dataset", type=Path, default=Path("data/rooms"), help="folder of a rooms dataset")
    root = parser.parse_args(arguments).dataset
    read_manifest(root)
    splits = {}
    for split in SAMPLE_SPLITS:
        folder = root / "samples" / split
        rows = load_from_disk(str(folder)).remove_columns(["targets"]).to_list() if folder.is_dir() else []
        splits[split] = [row for row in rows if row["task"] == "rooms_qa"]
    scores = blind_baseline(splits["train"], splits["val"] + splits["test"])
    print("question          blind    count")
    for name, score in scores.items():
        print(f"{name:18s} {score['accuracy']:.3f} {score['count']:7.0f}")


if __name__ == "__main__":
    main()
