"""Rows of predictions to scores: the two metric modules for each task, and a verdict for every sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets_scripts.schema import ACTION_TASKS
from metrics.room_actions.rows import METRICS as ACTION_METRICS
from metrics.room_actions.scoring import score_actions
from metrics.scene_qa.protocols import PROTOCOLS
from metrics.scene_qa.scoring import score_answers, select_protocols

from .rows import Row, is_labelled, scored_in_ref

RIGHT, PARTLY, WRONG, UNLABELLED = "right", "partly", "wrong", "unlabelled"
IOU_RIGHT = 0.25
VERDICTS_OF_ANSWERS = "right: an exact match under the protocol; partly: a refined match (a substring either way)"
VERDICTS_OF_ACTIONS = (
    f"place_anchor is right where the label agrees and the boxes overlap by an IoU of at least {IOU_RIGHT}, partly "
    "where one of both holds; place_anchors is right where its F1 at that IoU is 1, partly where it is above 0"
)
MEAN_ANSWER_METRICS = ("EM@1", "EM-R", "EM@10", "ROUGE-L", "CIDEr")
MEAN_ACTION_METRICS = (
    "schema_validity",
    "label_accuracy",
    "center_within_0.25_m",
    "iou_mean",
    "iou_over_0.25",
    "iou_over_0.50",
    "f1@0.25",
    "f1@0.50",
)


@dataclass(frozen=True)
class Scoring:
    """How to score. `protocols`: those of the question tasks, the first is the headline; None = all."""

    protocols: tuple[str, ...] | None = None
    num_resamples: int = 1000
    seed: int = 0

    def headline(self, task: str) -> str:
        """The protocol whose numbers stand first.

        Raises:
            ValueError: none of the protocols chosen is defined for the task.
        """
        chosen = self.of_task(task)
        return (chosen or list(PROTOCOLS[task]))[0]

    def of_task(self, task: str) -> list[str] | None:
        """The chosen protocols, checked against the task; None = all."""
        return None if self.protocols is None else [each.name for each in select_protocols(task, self.protocols)]


@dataclass(frozen=True)
class TaskScores:
    """Scores of one task under one condition.

    Attributes:
        task: its name.
        result: what the metric returned, for metrics.json; None where no row is labelled.
        headline: protocol of `row` and `by_type`; None for actions.
        samples: metric -> one value a labelled row, or None where it does not apply; only metrics that are means.
        verdicts: right, partly, wrong or unlabelled, one a row.
        details: a short figure a row ("IoU 0.41"), empty where there is none.
    """

    task: str
    result: dict[str, Any] | None
    headline: str | None
    samples: dict[str, list[float | None]]
    verdicts: list[str]
    details: list[str]

    @property
    def row(self) -> dict[str, Any]:
        """{count, scores, intervals} over all labelled rows, under the headline protocol."""
        return self._section["all"]

    @property
    def by_type(self) -> dict[str, dict[str, Any]]:
        """The same for each question type."""
        return self._section.get("by_type", {})

    @property
    def _section(self) -> dict[str, Any]:
        if self.result is None:
            raise ValueError(f"{self.task}: no row is labelled, so there are no scores")
        return self.result if self.headline is None else self.result["protocols"][self.headline]


def score_task(task: str, rows: Sequence[Row], scoring: Scoring) -> TaskScores:
    """Scores the rows of one task; rows without labels are counted and left out.

    Raises:
        ValueError: what the metric refuses, or a protocol that does not define the task.
    """
    labelled = [row for row in rows if is_labelled(row)]
    headline = None if task in ACTION_TASKS else scoring.headline(task)
    if not labelled:
        return TaskScores(task, None, headline, {}, [UNLABELLED] * len(rows), [""] * len(rows))
    score = _score_actions if task in ACTION_TASKS else _score_answers
    result, samples, verdicts, details = score(task, labelled, scoring)
    result = {**result, "unlabelled": len(rows) - len(labelled)}
    spread = _Spreader([is_labelled(row) for row in rows])
    return TaskScores(task, result, headline, samples, spread(verdicts, UNLABELLED), spread(details, ""))


Scored = tuple[dict[str, Any], dict[str, list[float | None]], list[str], list[str]]


def _score_answers(task: str, rows: Sequence[Row], scoring: Scoring) -> Scored:
    candidates = [row.get("candidates") for row in rows]
    result = score_answers(
        [row["prediction"] for row in rows],
        [row["references"] for row in rows],
        task=task,
        protocols=scoring.of_task(task),
        question_types=[row["question_type"] for row in rows],
        candidates=None if None in candidates else candidates,
        ids=[row["sample_id"] for row in rows],
        captions=task != "rooms_qa",
        per_sample=True,
        seed=scoring.seed,
        num_resamples=scoring.num_resamples,
    )
    per_sample = {name: entry.pop("per_sample") for name, entry in result["protocols"].items()}
    result["predecessor"].pop("per_sample")
    samples = per_sample[scoring.headline(task)]
    refined = samples.get("EM-R", samples["EM@1"])
    matches = zip(samples["EM@1"], refined, strict=True)
    verdicts = [RIGHT if exact else PARTLY if partial else WRONG for exact, partial in matches]
    return result, {name: samples[name] for name in MEAN_ANSWER_METRICS if name in samples}, verdicts, [""] * len(rows)


def _score_actions(task: str, rows: Sequence[Row], scoring: Scoring) -> Scored:
    pairs = [scored_in_ref(row) for row in rows]
    result = score_actions(
        [prediction for prediction, _ in pairs],
        [reference for _, reference in pairs],
        kinds=[row["kinds"] for row in rows],
        question_types=[row["question_type"] for row in rows],
        ids=[row["sample_id"] for row in rows],
        per_sample=True,
        seed=scoring.seed,
        num_resamples=scoring.num_resamples,
    )
    outcomes = result.pop("per_sample")
    each = [{name: values[i] for name, values in outcomes.items()} for i in range(len(rows))]
    verdicts = [_verdict_of_action(outcome) for outcome in each]
    return result, _action_means(outcomes), verdicts, [_detail_of_action(outcome) for outcome in each]


def _verdict_of_action(outcome: dict[str, Any]) -> str:
    if outcome["f1@0.25"] is not None:
        return RIGHT if outcome["f1@0.25"] == 1 else PARTLY if outcome["f1@0.25"] > 0 else WRONG
    hits = bool(outcome["label_right"]) + (outcome["iou"] >= IOU_RIGHT)
    return (WRONG, PARTLY, RIGHT)[hits]


def _detail_of_action(outcome: dict[str, Any]) -> str:
    if outcome["error"]:
        return "not readable"
    if outcome["f1@0.25"] is not None:
        return f"F1 {outcome['f1@0.25']:.2f}"
    if outcome["center_error"] is None:
        return "another action"
    return f"IoU {outcome['iou']:.2f}, centre off by {outcome['center_error']:.2f} m"


def _action_means(outcomes: dict[str, list[Any]]) -> dict[str, list[float | None]]:
    """The metrics that are means, sample by sample, in the units of the summary."""
    samples: dict[str, list[float | None]] = {}
    for name in MEAN_ACTION_METRICS:
        metric = ACTION_METRICS[name]
        values = outcomes[metric.outcome]
        if name == "center_within_0.25_m":  # a failure's infinite error is kept as None
            values = [float("inf") if iou is not None and value is None else value for value, iou in _centers(outcomes)]
        if any(value is not None for value in values):
            samples[name] = [None if value is None else float(metric.of_value(value)) for value in values]
    return samples


def _centers(outcomes: dict[str, list[Any]]) -> Iterable[tuple[float | None, float | None]]:
    return zip(outcomes["center_error"], outcomes["iou"], strict=True)


class _Spreader:
    """Puts values of the labelled rows back among all rows."""

    def __init__(self, is_labelled_row: Sequence[bool]) -> None:
        self.is_labelled_row = is_labelled_row

    def __call__(self, values: Sequence[str], elsewhere: str) -> list[str]:
        rest = iter(values)
        return [next(rest) if labelled else elsewhere for labelled in self.is_labelled_row]
