"""What each prediction achieved: one number a sample and outcome; NaN where the outcome does not apply to the sample.

| outcome | of | prediction that is no such action |
|---|---|---|
| parsed, valid, action_right | all | 0 |
| label_right, iou | place_anchor | 0 |
| center_error (m) | place_anchor | infinite |
| extent_error (m), normal_angle (degrees; none for round things) | place_anchor | NaN: left out |
| precision@t, recall@t, f1@t, count_right | place_anchors | 0 |
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .actions import Anchor, Reading
from .boxes import Boxes, best_pairs, best_scale, iou_table, oriented_iou
from .inputs import Instruction

F1_THRESHOLDS = (0.25, 0.50)
Outcomes = dict[str, NDArray[np.float64]]  # name -> [samples]

_SINGLE_FAILURE = {
    "label_right": 0.0,
    "center_error": np.inf,
    "extent_error": np.nan,
    "normal_angle": np.nan,
    "iou": 0.0,
}
_SET_FAILURE = {
    **{f"{name}@{threshold:.2f}": 0.0 for threshold in F1_THRESHOLDS for name in ("precision", "recall", "f1")},
    "count_right": 0.0,
}


def measure(
    readings: Sequence[Reading],
    instructions: Sequence[Instruction],
    *,
    with_scale: bool = False,
    any_instance: bool = False,
) -> Outcomes:
    """The outcomes of all samples.

    Args:
        readings: the predictions.
        instructions: the references.
        with_scale: scale each prediction by its best factor about the first camera before it is measured (oracle).
        any_instance: measure each place_anchor against whichever right instance it overlaps most, or is nearest to.
    """
    is_single = np.array([instruction.is_single for instruction in instructions])
    outcomes: Outcomes = {
        "parsed": np.array([reading.is_parsed for reading in readings], dtype=np.float64),
        "valid": np.array([reading.action is not None for reading in readings], dtype=np.float64),
        "action_right": np.array([_is_right(*pair) for pair in zip(readings, instructions)], dtype=np.float64),
        **{name: np.where(is_single, value, np.nan) for name, value in _SINGLE_FAILURE.items()},
        **{name: np.where(is_single, np.nan, value) for name, value in _SET_FAILURE.items()},
    }
    placed = np.flatnonzero(outcomes["action_right"])
    singles, sets = placed[is_single[placed]], placed[~is_single[placed]]
    if len(singles):
        chosen = ([readings[i] for i in singles], [instructions[i] for i in singles])
        for name, values in _measure_singles(*chosen, with_scale=with_scale, any_instance=any_instance).items():
            outcomes[name][singles] = values
    for index in sets:
        for name, value in _measure_set(readings[index], instructions[index], with_scale=with_scale).items():
            outcomes[name][index] = value
    return outcomes


def _is_right(reading: Reading, instruction: Instruction) -> bool:
    return reading.action is not None and reading.action["action"] == instruction.action["action"]


def _measure_singles(
    readings: Sequence[Reading], instructions: Sequence[Instruction], *, with_scale: bool, any_instance: bool
) -> Outcomes:
    """Outcomes [samples] of single anchors; all pairs of prediction and right instance are measured at once."""
    options = [[*each.anchors, *(each.alternatives if any_instance else ())] for each in instructions]
    owner = np.repeat(np.arange(len(options)), [len(anchors) for anchors in options])
    wanted_anchors = [anchor for anchors in options for anchor in anchors]
    predicted_anchors = [readings[i].anchors[0] for i in owner]
    predicted, wanted = Boxes.from_anchors(predicted_anchors), Boxes.from_anchors(wanted_anchors)
    if with_scale:
        origins = np.stack([instructions[i].origin for i in owner])
        rays = zip(predicted.centers - origins, wanted.centers - origins)
        factors = np.array([best_scale(ray[None], wanted_ray[None]) for ray, wanted_ray in rays])
        predicted = predicted.scaled(factors, origins)
    is_round = np.array([instructions[i].is_round[0] for i in owner])
    angle = np.degrees(np.arccos(np.clip((predicted.normals * wanted.normals).sum(axis=1), -1.0, 1.0)))
    outcomes = {
        "label_right": _labels_agree(predicted_anchors, wanted_anchors),
        "center_error": np.linalg.norm(predicted.centers - wanted.centers, axis=1),
        "extent_error": np.abs(predicted.sizes - wanted.sizes).mean(axis=1),
        "normal_angle": np.where(is_round, np.nan, angle),
        "iou": oriented_iou(predicted.with_normals(is_round, wanted), wanted),
    }
    order = np.lexsort((outcomes["center_error"], -outcomes["iou"], owner))
    best = order[np.unique(owner[order], return_index=True)[1]]
    return {name: values[best] for name, values in outcomes.items()}


def _measure_set(reading: Reading, instruction: Instruction, *, with_scale: bool) -> dict[str, float]:
    """Precision, recall and F1 of a list of anchors; a hit is a pair whose labels agree and whose IoU is enough."""
    predicted, wanted = Boxes.from_anchors(reading.anchors), Boxes.from_anchors(instruction.anchors)
    if with_scale:
        origins = np.broadcast_to(instruction.origin, predicted.centers.shape)
        factor = best_scale(predicted.centers - origins, wanted.centers - instruction.origin)
        predicted = predicted.scaled(np.full(len(predicted), factor), origins)
    table = iou_table(predicted, wanted, instruction.is_round)
    same_label = [_labels_agree([anchor] * len(wanted), instruction.anchors) for anchor in reading.anchors]
    overlaps = table * np.stack(same_label)
    overlaps = overlaps[best_pairs(overlaps)]
    outcomes = {"count_right": float(len(predicted) == len(wanted))}
    for threshold in F1_THRESHOLDS:
        hits = float((overlaps >= threshold).sum())
        outcomes[f"precision@{threshold:.2f}"] = hits / len(predicted)
        outcomes[f"recall@{threshold:.2f}"] = hits / len(wanted)
        outcomes[f"f1@{threshold:.2f}"] = 2.0 * hits / (len(predicted) + len(wanted))
    return outcomes


def _labels_agree(predicted: Sequence[Anchor], wanted: Sequence[Anchor]) -> NDArray[np.float64]:
    pairs = zip(predicted, wanted, strict=True)
    return np.array([_plain(first["label"]) == _plain(second["label"]) for first, second in pairs], dtype=np.float64)


def _plain(label: str) -> str:
    """Lower case, with spaces for underscores and hyphens: datasets spell "tv_monitor" in several ways."""
    return " ".join(label.lower().replace("_", " ").replace("-", " ").split())
