"""Scores a file of answers under every protocol and prints one table.

    python -m metrics.score --predictions predictions.jsonl
    python -m metrics.score --predictions pred.json --references ScanQA_v1.0_val.json --output metrics.json

Predictions: JSON Lines or a JSON list, one row a question: an id (`sample_id` or `question_id`) and `prediction`, or
ScanQA's `answer_top10`. References: rows with the same ids and `references` or `answers` (ScanQA), or SQA3D's
annotation file; without --references they are read from the rows of the predictions. A row's `question_type`, or else
its `question`, decides its type.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets_scripts.schema import question_type
from metrics.scene_qa.protocols import PROTOCOLS
from metrics.scene_qa.scoring import METRICS, score_answers

Row = Mapping[str, Any]
_NUM_NAMED = 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads, joins, scores, prints; writes --output."""
    options = _parse(arguments)
    predictions = _by_id(_read_rows(options.predictions), options.predictions)
    references = predictions
    if options.references is not None:
        references = _by_id(_read_rows(options.references), options.references)
        _check_ids(predictions, references, options)
    answered = [references[name] for name in predictions]
    types = [_type_of(row) for row in answered]
    result = score_answers(
        [_answer(row, options.predictions) for row in predictions.values()],
        [_references(row, options.references or options.predictions) for row in answered],
        task=options.task,
        protocols=options.protocols,
        question_types=None if None in types else types,
        candidates=_candidates(list(predictions.values())),
        captions=not options.no_captions,
        seed=options.seed,
        num_resamples=options.num_resamples,
    )
    print(render(result))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def render(result: Mapping[str, Any]) -> str:
    """The protocols of a result of `score_answers` as a Markdown table, why they differ, and what is missing."""
    rows = {name: entry["all"] for name, entry in result["protocols"].items()}
    metrics = [metric for metric in METRICS if any(metric in row["scores"] for row in rows.values())]
    lines = [f"{result['count']} questions, {result['task']}, percent, 95 % intervals in brackets", ""]
    lines += [f"| protocol | {' | '.join(metrics)} |", "|---" * (len(metrics) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(_cell(row, metric) for metric in metrics)} |")
    lines += ["", *(f"{name}: {entry['difference']}." for name, entry in result["protocols"].items())]
    old = result["predecessor"]["all"]
    lines.append(f"predecessor: exact match {_cell(old, 'exact_match')}, partial match {_cell(old, 'partial_match')}")
    return "\n".join([*lines, *(f"NOT COMPUTED: {gap}" for gap in result["gaps"])])


def _cell(row: Row, metric: str) -> str:
    if metric not in row["scores"]:
        return "–"
    value = f"{row['scores'][metric]:.3f}"
    if "intervals" not in row:
        return value
    low, high = row["intervals"][metric]
    return f"{value} ({low:.1f}–{high:.1f})"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=Path, required=True)
    parser.add_argument("--references", type=Path, help="default: the references in the rows of --predictions")
    parser.add_argument("--task", choices=sorted(PROTOCOLS), default="scanqa")
    parser.add_argument("--protocols", nargs="+", metavar="NAME", help="default: all that define the task")
    parser.add_argument("--no-captions", action="store_true", help="exact matches only: no Java, a second")
    parser.add_argument("--num-resamples", type=int, default=1000, help="of the bootstrap; 0: no intervals")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="writes everything, by question type too, as JSON")
    return parser.parse_args(arguments)


def _read_rows(path: Path) -> list[Row]:
    text = path.read_text(encoding="utf-8")
    try:
        content = [json.loads(line) for line in text.splitlines() if line] if _is_lines(path) else json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not {'JSON Lines' if _is_lines(path) else 'JSON'}: {error}") from error
    rows = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} holds {type(content).__name__}, wanted rows: a list of objects, or `annotations`")
    return rows


def _is_lines(path: Path) -> bool:
    return path.suffix == ".jsonl"


def _by_id(rows: Sequence[Row], path: Path) -> dict[str, Row]:
    by_id: dict[str, Row] = {}
    for number, row in enumerate(rows):
        name = row.get("sample_id", row.get("question_id"))
        if name is None:
            raise ValueError(f"{path}: row {number} has no sample_id or question_id, only {', '.join(row)}")
        if str(name) in by_id:
            raise ValueError(f"{path}: row {number} repeats the id {name!r}")
        by_id[str(name)] = row
    return by_id


def _check_ids(predictions: Mapping[str, Row], references: Mapping[str, Row], options: argparse.Namespace) -> None:
    unknown = [name for name in predictions if name not in references]
    missing = [name for name in references if name not in predictions]
    faults = []
    if unknown and len(unknown) == len(predictions):
        faults.append(
            f"none of the {len(unknown)} ids is in {options.references} (here {unknown[0]!r}, there {missing[0]!r}): "
            "another dataset or split?"
        )
    elif unknown:
        faults.append(f"{len(unknown)} ids are not in {options.references}: {', '.join(unknown[:_NUM_NAMED])}")
    if missing and not faults:
        faults.append(f"{len(missing)} questions have no prediction: {', '.join(missing[:_NUM_NAMED])}")
    if faults:
        raise ValueError(f"{options.predictions}: {'; '.join(faults)}")


def _answer(row: Row, path: Path) -> str:
    if "prediction" in row:
        return row["prediction"]
    if row.get("answer_top10"):
        return row["answer_top10"][0]
    raise ValueError(f"{path}: a row has no `prediction` and no `answer_top10`, only {', '.join(row)}")


def _candidates(rows: Sequence[Row]) -> list[list[str]] | None:
    ten = [row.get("answer_top10") for row in rows]
    return None if None in ten else ten


def _references(row: Row, path: Path) -> list[str]:
    answers = row.get("references", row.get("answers"))
    if not answers:
        raise ValueError(
            f"{path}: a row has no `references` and no `answers` ({', '.join(row)}): a split without labels?"
        )
    return [answer["answer"] if isinstance(answer, dict) else answer for answer in answers]


def _type_of(row: Row) -> str | None:
    if row.get("question_type") not in (None, "N/A"):  # SQA3D's files say N/A and hold the question elsewhere
        return row["question_type"]
    return question_type(row["question"]) if "question" in row else None


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
