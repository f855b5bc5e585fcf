"""Rows of predictions.jsonl: what was asked, shown, answered and wanted.

| key | of | meaning |
|---|---|---|
| sample_id, task, question_type, scene_id, source, question, situation, references | all | as in the dataset |
| prediction | all | the model's text |
| views, view_scene | all | frames in the order shown, and the scene they are of; none when blind |
| flags | all | condition; cameras, depth: whether shown; truncated: the token limit stopped it |
| action, error | actions | decoded to the world frame; or None and why |
| reference_action, kinds | actions | in the world frame; object, plane or round of each anchor; None where unlabelled |
| world_from_ref | actions | [4, 4] from the frame of the first view; None where the scene's cameras are unknown |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets_scripts.schema import ACTION_TASKS
from processing.action_vggt_qwen3 import (
    Action,
    ActionError,
    action_anchors,
    action_from_targets,
    action_to_world,
    parse_action,
)
from processing.geometry_vggt_qwen3 import invert_rigid, ref_from_world
from processing.processing_vggt_qwen3 import METRES_UNKNOWN
from training.data import SceneExample

from .conditions import Condition, Shown

Row = dict[str, Any]


def sample_row(sample: Mapping[str, Any], prediction: str, truth: SceneExample) -> Row:
    """What every row says, whoever answered."""
    keys = ("sample_id", "task", "question_type", "scene_id")
    row = {key: sample[key] for key in keys}
    row |= {"source": truth.source, "question": sample["question"], "situation": sample["situation"]}
    row |= {"prediction": prediction, "references": list(sample["answers"])}
    row |= {"views": list(truth.frame_ids), "view_scene": truth.scene_id, "flags": {}}
    if sample["task"] in ACTION_TASKS:
        row |= action_keys(sample, prediction, truth)
    return row


def predicted_row(
    sample: Mapping[str, Any], prediction: str, shown: Shown, condition: Condition, *, truncated: bool
) -> Row:
    """The row of an answer that was made under a condition."""
    row, seen = sample_row(sample, prediction, shown.truth), shown.seen
    row["views"] = [] if condition.blind else list(seen.frame_ids)
    row["view_scene"] = None if condition.blind else seen.scene_id
    row["flags"] = {
        "condition": condition.name,
        "cameras": not condition.blind and seen.world_from_cam is not None,
        "depth": not condition.blind and seen.depth is not None,
        "truncated": truncated,
    }
    return row


def action_keys(sample: Mapping[str, Any], prediction: str, truth: SceneExample) -> Row:
    """Predicted and reference action in the world frame, read in the frame of the scene's own first view."""
    if truth.world_from_cam is None:
        unknown = dict.fromkeys(("action", "reference_action", "kinds", "world_from_ref"))
        return {**unknown, "error": METRES_UNKNOWN}
    to_ref = ref_from_world(truth.world_from_cam[0])
    world_from_ref = invert_rigid(to_ref)
    action, error = read_prediction(prediction, world_from_ref, truth.scene_id)
    reference, kinds = reference_of(sample, to_ref)
    return {
        "action": action,
        "error": error,
        "reference_action": reference and action_to_world(reference, world_from_ref, truth.scene_id),
        "kinds": kinds,
        "world_from_ref": world_from_ref.tolist(),
    }


def read_prediction(text: str, world_from_ref: NDArray[np.float64], scene_id: str) -> tuple[Action | None, str | None]:
    """The action of a text in the world frame, or None and the reason; one that names its `scene` is there already."""
    try:
        action = parse_action(text)
        if "scene" not in action:
            return action_to_world(action, world_from_ref, scene_id), None
    except ActionError as error:
        return None, str(error)
    if action["scene"] != scene_id:
        return None, f"the action is of the scene {action['scene']!r}, wanted {scene_id!r}"
    return action_to_world(action, np.eye(4), scene_id), None


def reference_of(sample: Mapping[str, Any], to_ref: NDArray[np.float64]) -> tuple[Action | None, list[str] | None]:
    """The wanted action in the ref frame, and the kind of each of its anchors; None where the split has no labels."""
    if not sample["targets"]:
        return None, None
    reference = action_from_targets(sample["action"], sample["targets"], to_ref)
    alone = [
        (action_anchors(action_from_targets("place_anchor", [target], to_ref))[0], target["kind"])
        for target in sample["targets"]
    ]
    return reference, [next(kind for each, kind in alone if each == anchor) for anchor in action_anchors(reference)]


def scored_in_ref(row: Row) -> tuple[str | Action | None, Action]:
    """Prediction and reference of an action row in the frame of the first view, as the metric compares them.

    The prediction stays text, so that what cannot be read counts as such; only one that names its scene, and so stands
    in the world frame, is taken as it was decoded.
    """
    to_ref = invert_rigid(np.asarray(row["world_from_ref"]))
    reference = action_to_world(row["reference_action"], to_ref)
    if '"scene"' not in row["prediction"]:
        return row["prediction"], reference
    return row["action"] and action_to_world(row["action"], to_ref), reference


def is_labelled(row: Row) -> bool:
    """Whether there is something to score the row against."""
    return bool(row["reference_action"] if row["task"] in ACTION_TASKS else row["references"])


def select(rows: Sequence[Row], task: str) -> list[Row]:
    """The rows of one task, in order."""
    return [row for row in rows if row["task"] == task]
