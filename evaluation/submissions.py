"""Answer files in the forms that benchmarks take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .files import write_json
from .rows import Row, select


def write_submissions(rows: Sequence[Row], output: Path) -> list[Path]:
    """Writes submission_scanqa.json (EvalAI) and submission_sqa3d.json where rows are of these tasks."""
    makers = {"scanqa": _scanqa, "sqa3d": _sqa3d}
    paths = []
    for task, make in makers.items():
        chosen = select(rows, task)
        if chosen:
            paths.append(output / f"submission_{task}.json")
            write_json(paths[-1], [make(row) for row in chosen])
    return paths


def _scanqa(row: Row) -> dict[str, Any]:
    """One answer where ten may be given, and no box: the language metrics need neither."""
    answers = row.get("candidates") or [row["prediction"]]
    keys = {"scene_id": row["scene_id"], "question_id": row["sample_id"]}
    return {**keys, "answer_top10": answers, "bbox": []}


def _sqa3d(row: Row) -> dict[str, Any]:
    question_id = row["sample_id"].rsplit("/", 1)[-1]
    return {"question_id": int(question_id) if question_id.isdigit() else question_id, "answer": row["prediction"]}
