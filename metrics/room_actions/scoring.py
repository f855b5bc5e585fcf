"""Scores predicted actions against reference actions; numpy, shapely and scipy, usable without `evaluate`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .actions import Reading, read_action
from .bootstrap import CONFIDENCE
from .boxes import MIN_THICKNESS_M
from .inputs import Instruction, Source, check_lengths, read_instructions
from .outcomes import Outcomes, measure
from .rows import row_of


def score_actions(
    predictions: Sequence[Source | None],
    references: Sequence[Source],
    *,
    kinds: Sequence[str | Sequence[str]] | None = None,
    alternatives: Sequence[Sequence[Source]] | None = None,
    origins: Sequence[Sequence[float]] | None = None,
    question_types: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    per_sample: bool = False,
    seed: int = 0,
    num_resamples: int = 1000,
) -> dict[str, Any]:
    """Scores one action an instruction. Predictions and references of a row stand in one frame with Z up, in metres.

    Args:
        predictions: the model's texts, or actions already parsed, or None where there is none.
        references: place_anchor or place_anchors actions, as text or parsed.
        kinds: object, plane or round; one for the row, or one for each reference anchor. None = object. Round things
            are compared without regard to direction.
        alternatives: further place_anchor actions that answer the row's instruction as well; adds the row any_instance.
        origins: the first camera's centre [x, y, z] of each row, the point about which the oracle scales. None = the
            origin of the actions' frame, right in the ref frame only.
        question_types: a type of each row; adds `by_type`.
        ids: identifiers, checked to be unique.
        per_sample: adds the outcomes of each sample.
        seed: of the bootstrap.
        num_resamples: of the bootstrap; 0 = no intervals.

    Returns:
        {count, all: Row, oracle_scale: Row, any_instance: Row, by_kind: {thin | furniture | mixed: Row}, by_type:
        {type: Row}, per_sample: {outcome: [..], error: [..]}, gaps: [..], definitions: {..}} where
        Row = {count: {all, place_anchor, place_anchors}, scores: {metric: value}, intervals: {metric: [low, high]}}.
        Rates, shares and F1 in percent, IoU in 0..1, metres, degrees. Predictions that are no valid action of the right
        name count as failures, as the table in outcomes.py says; only metrics with `placed` in their names leave them
        out.

    Raises:
        ValueError: lengths that differ, repeated ids, an invalid reference, an unknown kind.
    """
    columns = {"references": references, "kinds": kinds, "alternatives": alternatives, "origins": origins}
    check_lengths(len(predictions), **columns, question_types=question_types, ids=ids)
    readings = [read_action(prediction) for prediction in predictions]
    instructions = read_instructions(references, kinds, alternatives, origins)
    outcomes = measure(readings, instructions)
    everything = np.arange(len(readings))
    bootstrap = {"num_resamples": num_resamples, "seed": seed}
    result: dict[str, Any] = {"count": len(readings), "all": row_of(outcomes, everything, **bootstrap), "gaps": []}
    if origins is None and any("scene" in instruction.action for instruction in instructions):
        result["gaps"].append("oracle_scale: the actions carry `scene`, so they are in the world frame; give `origins`")
    else:
        scaled = measure(readings, instructions, with_scale=True)
        result["oracle_scale"] = row_of(scaled, everything, **bootstrap)
    if alternatives is not None:
        result["any_instance"] = row_of(measure(readings, instructions, any_instance=True), everything, **bootstrap)
    result["by_kind"] = _rows_by([instruction.group for instruction in instructions], outcomes, bootstrap)
    if question_types is not None:
        result["by_type"] = _rows_by(question_types, outcomes, bootstrap)
    if per_sample:
        result["per_sample"] = _per_sample(outcomes, readings, instructions)
    result["definitions"] = _definitions(num_resamples, seed)
    return result


def _rows_by(groups: Sequence[str], outcomes: Outcomes, bootstrap: dict[str, int]) -> dict[str, Any]:
    names = np.array(groups, dtype=object)
    return {name: row_of(outcomes, np.flatnonzero(names == name), **bootstrap) for name in sorted(set(groups))}


def _per_sample(
    outcomes: Outcomes, readings: Sequence[Reading], instructions: Sequence[Instruction]
) -> dict[str, list[Any]]:
    """Values that do not apply or are infinite become None."""
    columns = {
        name: [round(float(value), 6) if np.isfinite(value) else None for value in values]
        for name, values in outcomes.items()
    }
    kinds = [instruction.group for instruction in instructions]
    return {**columns, "kind": kinds, "error": [reading.error for reading in readings]}


def _definitions(num_resamples: int, seed: int) -> dict[str, Any]:
    return {
        "min_thickness_m": MIN_THICKNESS_M,
        "intervals": "percentile bootstrap over samples",
        "confidence": CONFIDENCE,
        "num_resamples": num_resamples,
        "seed": seed,
    }
