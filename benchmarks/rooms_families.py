"""What a model can answer about rooms: exact match by family of questions, and under every condition.

    python eval.py --model models/rooms-tiny --dataset data/rooms-large --split test --task rooms_qa --limit 2000 \
        --controls blind,single_view --output outputs/eval/rooms-tiny
    python -m benchmarks.rooms_families outputs/eval/rooms-tiny --output docs/figures/rooms_tiny.json

Prints two tables in Markdown and writes their figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets_scripts.rooms.families import FAMILIES
from evaluation.conditions import SIGHTED
from evaluation.files import write_json
from evaluation.runs import METRICS
from metrics.scene_qa.protocols import match_exactly

TASK, EXACT = "rooms_qa", "EM@1"
Figures = dict[str, Any]


def read_predictions(path: Path) -> dict[str, dict[str, bool]]:
    """Family -> sample_id -> whether the answer is one of the references.

    Raises:
        FileNotFoundError: no predictions there.
        ValueError: answers to questions of another kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: name a folder that eval.py wrote")
    found: dict[str, dict[str, bool]] = {family.name: {} for family in FAMILIES}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        parts = row["sample_id"].split("/")
        if row["task"] != TASK or len(parts) < 2 or parts[1] not in found:
            raise ValueError(f"{path} holds {row['sample_id']} of task {row['task']}; wanted questions of {TASK} alone")
        found[parts[1]][row["sample_id"]] = match_exactly(row["prediction"], row["references"])[0]
    return found


def by_family(folder: Path) -> dict[str, Figures]:
    """Family -> an example, count, exact match and, where the blind control was run, its own; in percent."""
    sighted = read_predictions(folder / "predictions.jsonl")
    blind_path = folder / "controls" / "blind" / "predictions.jsonl"
    blind = read_predictions(blind_path) if blind_path.is_file() else None
    figures = {}
    for family in FAMILIES:
        right = sighted[family.name]
        if right:
            figures[family.name] = {
                "example": _worded(family.texts[0]),
                "count": len(right),
                "exact_match": _percent(right),
            }
            if blind is not None:
                figures[family.name]["blind"] = _percent(blind[family.name])
    return figures


def by_condition(folder: Path) -> dict[str, Figures]:
    """Condition -> count, exact match and its interval, in percent, as eval.py has them."""
    task = json.loads((folder / METRICS).read_text(encoding="utf-8"))["tasks"][TASK]
    found = {}
    for name, result in task["results"].items():
        row = result["protocols"][task["headline_protocol"]]["all"]
        found[name] = {"count": row["count"], "exact_match": row["scores"][EXACT], "interval": row["intervals"][EXACT]}
    return found


def _worded(text: str) -> str:
    """A question with letters in place of things: "Is there a X in the room?"."""
    words = {None: "{}", "_article": "a {}", "_plural": "{}s", "_side": "on my left"}
    return re.sub(r"\{(\w)(_\w+)?\}", lambda slot: words[slot[2]].format(slot[1].upper()), text)


def _percent(right: dict[str, bool]) -> float:
    return 100 * sum(right.values()) / len(right)


def tables(conditions: dict[str, Figures], families: dict[str, Figures]) -> str:
    """Both as Markdown; families with the most right first."""
    lines = ["| condition | answers right | 95 % interval |", "|---|---|---|"]
    for name, row in conditions.items():
        low, high = row["interval"]
        lines.append(f"| {name.replace('_', ' ')} | {row['exact_match']:.1f} % | {low:.1f} to {high:.1f} |")
    lines += ["", "| questions | count | right | blind |", "|---|---|---|---|"]
    for row in sorted(families.values(), key=lambda row: -row["exact_match"]):
        blind = f"{row['blind']:.0f} %" if "blind" in row else ""
        lines.append(f"| {row['example']} | {row['count']} | {row['exact_match']:.0f} % | {blind} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints and writes the figures of one evaluation.

    Raises:
        FileNotFoundError, ValueError: the folder holds no evaluation of rooms_qa.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="that eval.py wrote")
    parser.add_argument("--output", type=Path, help="JSON with the figures")
    options = parser.parse_args(arguments)
    conditions, families = by_condition(options.folder), by_family(options.folder)
    if SIGHTED not in conditions:
        raise ValueError(f"{options.folder} lacks the condition {SIGHTED}; it has {', '.join(conditions)}")
    if options.output is not None:
        about = json.loads((options.folder / METRICS).read_text(encoding="utf-8"))
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            options.output,
            {
                "model": about["model"],
                "dataset": about["dataset"],
                "settings": about["settings"],
                "conditions": conditions,
                "families": families,
            },
        )
    print(tables(conditions, families))


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
