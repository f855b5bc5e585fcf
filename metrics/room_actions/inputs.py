"""The instructions to score, checked before anything is computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .actions import SINGLE_ACTION, Action, Anchor, anchors_of, read_action
from .boxes import MIN_THICKNESS_M

KINDS = ("object", "plane", "round")
Source = str | Mapping[str, Any]  # an action as text or parsed


@dataclass(frozen=True)
class Instruction:
    """What one instruction asks for: its action, the kind of each anchor, other right anchors, the first camera."""

    action: Action
    kinds: tuple[str, ...]
    alternatives: tuple[Anchor, ...]
    origin: NDArray[np.float64]  # [3]

    @property
    def anchors(self) -> list[Anchor]:
        return anchors_of(self.action)

    @property
    def is_single(self) -> bool:
        return self.action["action"] == SINGLE_ACTION

    @property
    def is_round(self) -> NDArray[np.bool_]:
        return np.array([kind == "round" for kind in self.kinds])

    @property
    def group(self) -> str:
        """thin: every box is a plane or thinner than MIN_THICKNESS_M; furniture: none is; else mixed."""
        pairs = zip(self.kinds, self.anchors)
        is_thin = {kind == "plane" or min(anchor["extent"]) < MIN_THICKNESS_M for kind, anchor in pairs}
        if len(is_thin) > 1:
            return "mixed"
        return "thin" if is_thin.pop() else "furniture"


def check_lengths(num_predictions: int, **columns: Sequence[Any] | None) -> None:
    """Raises ValueError unless there is a prediction and every column given has as many rows."""
    faults = [] if num_predictions else ["predictions is empty, wanted at least one"]
    for name, rows in columns.items():
        if rows is not None and len(rows) != num_predictions:
            faults.append(f"{name} has {len(rows)} rows and predictions {num_predictions}, wanted equally many")
    ids = columns.get("ids") or []
    if len(set(ids)) < len(ids):
        repeated = next(name for name in ids if list(ids).count(name) > 1)
        faults.append(f"ids repeats {repeated!r}, wanted one row for each")
    if faults:
        raise ValueError("these actions cannot be scored: " + "; ".join(faults))


def read_instructions(
    references: Sequence[Source],
    kinds: Sequence[str | Sequence[str]] | None,
    alternatives: Sequence[Sequence[Source]] | None,
    origins: Sequence[Sequence[float]] | None,
) -> list[Instruction]:
    """Checks and joins the columns that describe the instructions.

    Raises:
        ValueError: naming the row at fault: an invalid action, an unknown kind, alternatives of a list of anchors.
    """
    instructions = []
    for row, reference in enumerate(references):
        action = _read(reference, f"references[{row}]")
        row_kinds = _read_kinds("object" if kinds is None else kinds[row], len(anchors_of(action)), row)
        others = _read_alternatives(() if alternatives is None else alternatives[row], action, row)
        origin = _read_origin((0.0, 0.0, 0.0) if origins is None else origins[row], row)
        instructions.append(Instruction(action, row_kinds, others, origin))
    return instructions


def _read(source: Source, name: str) -> Action:
    reading = read_action(source)
    if reading.action is None:
        raise ValueError(f"{name} is no valid action: {reading.error}")
    return reading.action


def _read_kinds(given: str | Sequence[str], num_anchors: int, row: int) -> tuple[str, ...]:
    row_kinds = (given,) * num_anchors if isinstance(given, str) else tuple(given)
    if len(row_kinds) != num_anchors or not set(row_kinds) <= set(KINDS):
        raise ValueError(f"kinds[{row}] is {given!r}, wanted one of {', '.join(KINDS)}, or {num_anchors} of them")
    return row_kinds


def _read_alternatives(sources: Sequence[Source], action: Action, row: int) -> tuple[Anchor, ...]:
    others = tuple(_read(source, f"alternatives[{row}][{place}]") for place, source in enumerate(sources))
    if others and any(each["action"] != SINGLE_ACTION for each in (action, *others)):
        raise ValueError(f"alternatives[{row}]: only a {SINGLE_ACTION} has alternatives, each a {SINGLE_ACTION}")
    return others


def _read_origin(given: Sequence[float], row: int) -> NDArray[np.float64]:
    origin = np.asarray(given, dtype=np.float64)
    if origin.shape != (3,) or not np.isfinite(origin).all():
        raise ValueError(f"origins[{row}] is {given!r}, wanted three finite coordinates in metres")
    return origin
