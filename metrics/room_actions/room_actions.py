"""`evaluate` module: predicted RoomPlan-style actions against reference actions.

    room_actions = evaluate.load("metrics/room_actions")
    room_actions.compute(predictions=[text_or_action, ...], references=[action, ...])

`evaluate` copies this file and those it imports by name into its cache, hence the imports of files that others use.
"""

import json
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from .actions import ACTION_SCHEMA
from .bootstrap import percentile_interval
from .boxes import oriented_iou
from .inputs import Instruction
from .outcomes import measure
from .rows import METRICS
from .scoring import score_actions

__all__ = [
    "ACTION_SCHEMA",
    "METRICS",
    "Instruction",
    "RoomActions",
    "measure",
    "oriented_iou",
    "percentile_interval",
    "score_actions",
]

_DESCRIPTION = """\
Scores place_anchor and place_anchors actions, written as JSON: parse rate, schema validity, label accuracy, centre and
extent error, normal angle, oriented 3D IoU, F1 of sets of anchors; thin things and furniture apart; with any right
instance allowed and with an oracle scale; with bootstrap 95 % intervals.
"""


class RoomActions(evaluate.Metric):
    """See `score_actions` for the keyword arguments of `compute` and the result."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=score_actions.__doc__,
            features=datasets.Features({name: datasets.Value("string") for name in ("predictions", "references")}),
        )

    def add_batch(self, *, predictions: Sequence[Any] | None = None, references: Sequence[Any] | None = None) -> None:
        """Adds texts, parsed actions or None (no action)."""
        super().add_batch(predictions=_as_texts(predictions), references=_as_texts(references))

    def add(self, *, prediction: Any = None, reference: Any = None) -> None:
        """Adds one text, parsed action or None."""
        self.add_batch(predictions=[prediction], references=[reference])

    def _compute(self, predictions: Sequence[str], references: Sequence[str], **options: Any) -> dict[str, Any]:
        return score_actions(predictions, references, **options)


def _as_texts(actions: Sequence[Any] | None) -> list[str] | None:
    if actions is None:
        return None
    texts = ("" if action is None else action for action in actions)
    return [text if isinstance(text, str) else json.dumps(text) for text in texts]
