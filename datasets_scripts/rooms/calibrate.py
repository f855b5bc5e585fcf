"""Remake `balance.json`, needed after any change to what stands in a room or is asked about it.

    python -m datasets_scripts.rooms.calibrate --rooms 4000

counts how often each answer holds for each family and key ("how_many", "chair") in rooms of their own seed.
"""

import argparse
import json
import os
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor

from datasets_scripts.rooms.balance import TABLE_PATH, acceptance_table
from datasets_scripts.rooms.families import FAMILIES
from datasets_scripts.rooms.questions import candidates
from datasets_scripts.rooms.room import generate_room, room_rng

_SEED = 900_001

Counts = dict[tuple[str, str], Counter[str]]


def count_answers(index: int, seed: int = _SEED) -> Counts:
    """Count the answers of all candidate questions of one room, taking every object as visible."""
    counts: Counts = defaultdict(Counter)
    room = generate_room(seed, "train", index, num_views=1)
    rng = room_rng(seed, "train", index, "questions")
    for candidate in candidates(room, list(range(len(room.objects))), rng):
        counts[candidate.family.name, candidate.key][candidate.answer] += 1
    return dict(counts)


def main(arguments: list[str] | None = None) -> None:
    """Write balance.json anew."""
    parser = argparse.ArgumentParser(description="Count answers in fresh rooms and write balance.json anew")
    parser.add_argument("--rooms", type=int, default=4000, help="rooms to count in")
    parser.add_argument("--num-proc", type=int, default=len(os.sched_getaffinity(0)), help="worker processes")
    args = parser.parse_args(arguments)
    total: Counts = defaultdict(Counter)
    with ProcessPoolExecutor(args.num_proc) as pool:
        for counts in pool.map(count_answers, range(args.rooms), chunksize=20):
            for key, answers in counts.items():
                total[key] += answers
    table = acceptance_table(total, [family.name for family in FAMILIES if family.needs_key])
    TABLE_PATH.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
