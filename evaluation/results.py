"""All results of an evaluation in one place, and metrics.json and the console table made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.data import SceneDataset

from .conditions import CONDITIONS
from .paired import compare_scores
from .published import CAVEAT, published
from .rows import Row, select
from .scoring import VERDICTS_OF_ACTIONS, VERDICTS_OF_ANSWERS, Scoring, TaskScores, score_task

PER_CENT, METRES, DEGREES, SHARE = "%", "m", "°", ""


@dataclass(frozen=True)
class Figure:
    """How a metric is called and shown; `digits` after the point."""

    metric: str
    label: str
    unit: str
    digits: int = 1
    lower_is_better: bool = False


ANSWER_FIGURES = (
    Figure("EM@1", "Exact match", PER_CENT),
    Figure("EM-R", "Refined match", PER_CENT),
    Figure("EM@10", "Exact in ten", PER_CENT),
    Figure("BLEU-1", "BLEU-1", SHARE),
    Figure("BLEU-4", "BLEU-4", SHARE),
    Figure("METEOR", "METEOR", SHARE),
    Figure("ROUGE-L", "ROUGE-L", SHARE),
    Figure("CIDEr", "CIDEr", SHARE),
)
ACTION_FIGURES = (
    Figure("schema_validity", "Valid action", PER_CENT),
    Figure("label_accuracy", "Label right", PER_CENT),
    Figure("iou_over_0.25", "IoU at least 0.25", PER_CENT),
    Figure("iou_over_0.50", "IoU at least 0.50", PER_CENT),
    Figure("iou_mean", "Mean IoU", SHARE, digits=3),
    Figure("center_within_0.25_m", "Centre within 0.25 m", PER_CENT),
    Figure("center_error_median_m", "Median centre error", METRES, digits=2, lower_is_better=True),
    Figure("extent_error_median_placed_m", "Median size error, placed", METRES, digits=2, lower_is_better=True),
    Figure("normal_angle_median_placed_deg", "Median angle, placed", DEGREES, lower_is_better=True),
    Figure("f1@0.25", "Sets: F1 at IoU 0.25", PER_CENT),
    Figure("f1@0.50", "Sets: F1 at IoU 0.50", PER_CENT),
)


def figures_of(scores: TaskScores) -> list[Figure]:
    """The figures that a task has, in the order they are shown."""
    known = ANSWER_FIGURES if scores.headline else ACTION_FIGURES
    return [figure for figure in known if figure.metric in scores.row["scores"]]


def format_value(value: float | None, figure: Figure) -> str:
    """A number with its unit; infinite medians (more than half failed) are None."""
    if value is None:
        return "∞"
    unit = f" {figure.unit}" if figure.unit in (METRES, PER_CENT) else figure.unit
    return f"{value:.{figure.digits}f}{unit}"


def format_interval(interval: Sequence[float | None] | None, figure: Figure) -> str:
    """The ends of a 95 % interval without units; empty where there is none."""
    if interval is None:
        return ""
    low, high = ("∞" if end is None else f"{end:.{figure.digits}f}" for end in interval)
    return f"{low} – {high}"


@dataclass(frozen=True)
class Evaluation:
    """Everything that is reported.

    Attributes:
        model: name and facts of what answered.
        dataset: name and facts of the data.
        settings: as in run_config.yaml, for the record.
        conditions: names, what was evaluated first, then its controls.
        rows: condition -> its rows, all tasks.
        scores: task -> condition -> scores.
        paired: task -> control -> what `compare_scores` says of (evaluated, control).
        prompts: task -> the first prompt as the model reads it.
        scenes: task -> where the pictures are.
    """

    model: dict[str, Any]
    dataset: dict[str, Any]
    settings: dict[str, Any]
    conditions: tuple[str, ...]
    rows: dict[str, list[Row]]
    scores: dict[str, dict[str, TaskScores]]
    paired: dict[str, dict[str, Any]]
    prompts: dict[str, str]
    scenes: dict[str, SceneDataset]

    @property
    def main(self) -> str:
        """The condition that was asked for."""
        return self.conditions[0]


def score_all(
    rows: Mapping[str, list[Row]], tasks: Sequence[str], scoring: Scoring
) -> tuple[dict[str, dict[str, TaskScores]], dict[str, dict[str, Any]]]:
    """Scores of every task under every condition, and each control paired with the first condition."""
    main, *controls = rows
    scores = {
        task: {name: score_task(task, select(chosen, task), scoring) for name, chosen in rows.items()} for task in tasks
    }
    paired = {
        task: {name: compare_scores(each[main], each[name]) for name in controls if each[main].result is not None}
        for task, each in scores.items()
    }
    return scores, paired


def metrics_json(evaluation: Evaluation) -> dict[str, Any]:
    """The contents of metrics.json: no time and no number of processes, so that equal runs give equal files."""
    return {
        "model": evaluation.model,
        "dataset": evaluation.dataset,
        "settings": evaluation.settings,
        "conditions": {name: describe_condition(name) for name in evaluation.conditions},
        "tasks": {task: _task_json(task, evaluation) for task in evaluation.scores},
    }


def describe_condition(name: str) -> str:
    """What the model saw; answers may also come from elsewhere."""
    return CONDITIONS[name].description if name in CONDITIONS else "answers from a file"


def _task_json(task: str, evaluation: Evaluation) -> dict[str, Any]:
    by_condition = evaluation.scores[task]
    headline = by_condition[evaluation.main].headline
    figures = published(task, evaluation.dataset["split"])
    return {
        "prompt": evaluation.prompts.get(task),
        "headline_protocol": headline,
        "verdicts": VERDICTS_OF_ANSWERS if headline else VERDICTS_OF_ACTIONS,
        "results": {name: scores.result for name, scores in by_condition.items()},
        "paired": evaluation.paired[task],
        "published": [{"system": each.system, "source": each.source, "scores": each.scores} for each in figures],
        "published_caveat": CAVEAT if figures else None,
    }


def console_table(evaluation: Evaluation) -> str:
    """The headline figures of every task, each condition a column."""
    blocks = []
    for task, by_condition in evaluation.scores.items():
        first = by_condition[evaluation.main]
        if first.result is None:
            blocks.append(f"{task}: {len(first.verdicts)} answers, no labels to score them against")
            continue
        rows = [[f"{task}{f' ({first.headline})' if first.headline else ''}", *by_condition]]
        for figure in figures_of(first):
            rows.append([figure.label, *(_cell(scores, figure) for scores in by_condition.values())])
        blocks.append(_aligned(rows))
        blocks += [f"not computed: {gap}" for gap in first.result["gaps"]]
    return "\n\n".join(blocks)


def _cell(scores: TaskScores, figure: Figure) -> str:
    value = format_value(scores.row["scores"].get(figure.metric), figure)
    interval = format_interval(scores.row.get("intervals", {}).get(figure.metric), figure)
    return f"{value} ({interval})" if interval else value


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
