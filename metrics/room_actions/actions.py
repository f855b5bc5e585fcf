"""Reading actions, version 1: JSON, then the JSON Schema, then what the schema cannot say.

The schema equals `ACTION_SCHEMA` of processing/action_vggt_qwen3.py, which a metric loaded by path cannot import: a
test keeps the two equal.
"""

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema

Action = dict[str, Any]
Anchor = dict[str, Any]

SINGLE_ACTION = "place_anchor"
LIST_ACTION = "place_anchors"
NORMAL_LENGTH_TOLERANCE = 0.1
_VERTICAL_ROUNDING = 1e-6
_NUM_SHOWN = 120


def _numbers(*bounds: tuple[float, float]) -> dict[str, Any]:
    items = [{"type": "number", "minimum": low, "maximum": high} for low, high in bounds]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    required = [name for name in properties if name != "scene"]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _schema() -> dict[str, Any]:
    label = r'^[^"\\\x00-\x20](?:[^"\\\x00-\x1f]*[^"\\\x00-\x20])?$'
    anchor = {
        "label": {"type": "string", "minLength": 1, "maxLength": 48, "pattern": label},
        "center": _numbers(*[(-99.99, 99.99)] * 3),
        "extent": _numbers(*[(0.0, 99.99)] * 3),
        "normal": _numbers((-1.0, 1.0), (-1.0, 1.0), (0.0, 0.0)),
    }
    anchors = {"type": "array", "items": _object(anchor), "minItems": 1, "maxItems": 12}
    single = {"action": {"const": SINGLE_ACTION}, "scene": {"type": "string"}, **anchor}
    several = {"action": {"const": LIST_ACTION}, "scene": {"type": "string"}, "anchors": anchors}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "RoomPlan-style action, version 1",
        "oneOf": [_object(single), _object(several)],
    }


ACTION_SCHEMA: dict[str, Any] = _schema()
_VALIDATORS = {
    each["properties"]["action"]["const"]: jsonschema.Draft202012Validator(each) for each in ACTION_SCHEMA["oneOf"]
}


@dataclass(frozen=True)
class Reading:
    """What was read from a prediction: a valid `action`, or None and why. `is_parsed`: it was a JSON object at all."""

    action: Action | None
    is_parsed: bool
    error: str | None

    @property
    def anchors(self) -> list[Anchor]:
        return anchors_of(self.action) if self.action else []


def read_action(source: str | Mapping[str, Any] | None) -> Reading:
    """Reads a model's text, or an action already parsed (None = there is none).

    Nothing is repaired, but a normal whose vertical part is within 1e-6 of zero counts as horizontal: a change of frame
    leaves such a trace.
    """
    if source is None:
        return Reading(None, False, "no action")
    if isinstance(source, str):
        try:
            source = json.loads(source.strip(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            return Reading(None, False, f"not JSON: {error}")
    if not isinstance(source, Mapping):
        return Reading(None, False, f"{str(source)[:_NUM_SHOWN]} is no JSON object")
    action = _with_flat_normals(source)
    fault = _schema_fault(action) or next(filter(None, map(_numeric_fault, anchors_of(action))), None)
    return Reading(None, True, fault) if fault else Reading(action, True, None)


def anchors_of(action: Mapping[str, Any]) -> list[Anchor]:
    """The anchors of a valid action of either name."""
    return action["anchors"] if action["action"] == LIST_ACTION else [action]


def _schema_fault(action: Action) -> str | None:
    name = action.get("action")
    if not isinstance(name, str) or name not in _VALIDATORS:
        return f"action is {str(name)[:_NUM_SHOWN]!r}, wanted {' or '.join(_VALIDATORS)}"
    error = jsonschema.exceptions.best_match(_VALIDATORS[name].iter_errors(action))
    return None if error is None else f"{error.json_path}: {error.message[:_NUM_SHOWN]}"


def _numeric_fault(anchor: Anchor) -> str | None:
    if not all(math.isfinite(number) for key in ("center", "extent", "normal") for number in anchor[key]):
        return "a number is not finite"
    length = math.hypot(*anchor["normal"])
    if abs(length - 1.0) > NORMAL_LENGTH_TOLERANCE:
        return f"normal has the length {length:.2f}, wanted a unit vector"
    return None


def _with_flat_normals(action: Mapping[str, Any]) -> Action:
    copied = copy.deepcopy(dict(action))
    entries = copied.get("anchors")
    for anchor in [copied, *(entries if isinstance(entries, list) else [])]:
        normal = anchor.get("normal") if isinstance(anchor, dict) else None
        is_vector = isinstance(normal, list) and len(normal) == 3 and isinstance(normal[2], float)
        if is_vector and abs(normal[2]) <= _VERTICAL_ROUNDING:
            normal[2] = 0.0
    return copied


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError("a key is repeated")
    return dict(pairs)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of an action")
