"""Actions, version 1: one definition from which JSON Schema, canonical text, parser and grammar derive.

    place_anchor    {"action":"place_anchor","label":…,"center":[x,y,z],"extent":[w,d,h],"normal":[nx,ny,nz]}
    place_anchors   {"action":"place_anchors","anchors":[{"label":…,"center":…,"extent":…,"normal":…}, …]}

The model's text speaks in the ref frame (see geometry_vggt_qwen3), in metres: `center` is the centre of a box, `extent`
its full sizes (width across the normal, depth along it, height), `normal` a horizontal unit vector. For an object it is
the horizontal box axis nearest to facing the first camera, for a plane its side that faces the room (depth 0), for a
round object the direction from its centre to the first camera. `place_anchors` holds the nearest 12 at most, nearest to
the first camera first. Canonical text: the key order above, no spaces, two decimals, no -0.00. A decoded action is in
the world frame and has the key `scene` after `action`.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .geometry_vggt_qwen3 import transform_points

Action = dict[str, Any]

DECIMALS = 2
MAX_COORDINATE_M = 99.99
MAX_ANCHORS = 12
MAX_LABEL_CHARS = 48
NORMAL_LENGTH_TOLERANCE = 0.1
TIE_TOLERANCE = 1e-6
TARGET_KINDS = ("object", "plane", "round")
_INNER_CHAR, _OUTER_CHAR = r'[^"\\\x00-\x1f]', r'[^"\\\x00-\x20]'


class ActionError(ValueError):
    """A text or a mapping is not an action; the message is the precise reason."""


@dataclass(frozen=True)
class TextField:
    """A label: 1 to `max_chars` characters without quotes, backslashes, control characters or space at its ends."""

    name: str
    max_chars: int

    @property
    def pattern(self) -> str:
        """Regular expression of an allowed value."""
        return f"^{_OUTER_CHAR}(?:{_INNER_CHAR}*{_OUTER_CHAR})?$"

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the value."""
        return {"type": "string", "minLength": 1, "maxLength": self.max_chars, "pattern": self.pattern}

    def check(self, value: Any, where: str) -> str:
        """Returns the value, or raises ActionError naming `where`."""
        if not isinstance(value, str):
            raise ActionError(f"{where} is {_shown(value)}, wanted a string")
        if not 1 <= len(value) <= self.max_chars:
            raise ActionError(f"{where} has {len(value)} characters, wanted 1 to {self.max_chars}")
        if not re.fullmatch(self.pattern, value):
            raise ActionError(f"{where} is {value!r}, wanted no quote, backslash, control character or outer space")
        return value

    def text(self, value: str) -> str:
        """The canonical text."""
        return f'"{value}"'

    def text_pattern(self) -> str:
        """Regular expression of all canonical texts, also in the syntax of Rust."""
        return f'"{_OUTER_CHAR}(?:{_INNER_CHAR}{{0,{self.max_chars - 2}}}{_OUTER_CHAR})?"'

    def max_text_bytes(self) -> int:
        """Length of the longest canonical text in UTF-8."""
        return 4 * self.max_chars + 2


@dataclass(frozen=True)
class VectorField:
    """Three numbers, each within its own [minimum, maximum]; `is_unit` asks for a length of 1."""

    name: str
    bounds: tuple[tuple[float, float], ...]
    is_unit: bool = False

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the value."""
        items = [{"type": "number", "minimum": low, "maximum": high} for low, high in self.bounds]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}

    def check(self, value: Any, where: str) -> list[float]:
        """Returns the value as floats, or raises ActionError naming `where`."""
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != len(self.bounds):
            raise ActionError(f"{where} is {_shown(value)}, wanted a list of {len(self.bounds)} numbers")
        for index, (number, (low, high)) in enumerate(zip(value, self.bounds)):
            if not isinstance(number, int | float) or isinstance(number, bool):
                raise ActionError(f"{where}[{index}] is {_shown(number)}, wanted a number")
            if not low <= number <= high:
                raise ActionError(f"{where}[{index}] is {number:g}, wanted {low:g} to {high:g}")
        hundredths = [_hundredths(number) for number in value]
        if not self._allows(hundredths):
            raise ActionError(f"{where} has the length {_length(hundredths):.2f}, wanted a unit vector")
        return [float(number) for number in value]

    def text(self, value: Sequence[float]) -> str:
        """The canonical text; the only place where numbers are rounded."""
        return "[" + ",".join(_number_text(_hundredths(number)) for number in value) + "]"

    def text_pattern(self) -> str:
        """Regular expression of all canonical texts, also in the syntax of Rust."""
        ranges = [range(_hundredths(low), _hundredths(high) + 1) for low, high in self.bounds]
        if self.is_unit:
            numbers = _tails_pattern(ranges, (), self._allows)
        else:
            numbers = ",".join(_range_pattern(each[0], each[-1]) for each in ranges)
        return rf"\[{numbers}\]"

    def max_text_bytes(self) -> int:
        """Length of the longest canonical text in UTF-8."""
        return 1 + sum(1 + max(len(_number_text(_hundredths(end))) for end in ends) for ends in self.bounds)

    def _allows(self, hundredths: Sequence[int]) -> bool:
        """Whether the numbers as they are written have the length that is asked for."""
        return not self.is_unit or abs(_length(hundredths) - 1.0) <= NORMAL_LENGTH_TOLERANCE


Field = TextField | VectorField

_COORDINATE = (-MAX_COORDINATE_M, MAX_COORDINATE_M)
_SIZE = (0.0, MAX_COORDINATE_M)
ANCHOR_FIELDS: tuple[Field, ...] = (
    TextField("label", MAX_LABEL_CHARS),
    VectorField("center", (_COORDINATE,) * 3),
    VectorField("extent", (_SIZE,) * 3),
    VectorField("normal", ((-1.0, 1.0), (-1.0, 1.0), (0.0, 0.0)), is_unit=True),
)
SINGLE_ACTION = "place_anchor"
LIST_ACTION = "place_anchors"
LIST_KEY = "anchors"
ACTION_NAMES = (SINGLE_ACTION, LIST_ACTION)


def _object_schema(properties: dict[str, Any], optional: Sequence[str] = ()) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _action_schema() -> dict[str, Any]:
    anchor = {field.name: field.schema() for field in ANCHOR_FIELDS}
    anchors = {"type": "array", "items": _object_schema(anchor), "minItems": 1, "maxItems": MAX_ANCHORS}

    def head(name: str) -> dict[str, Any]:
        return {"action": {"const": name}, "scene": {"type": "string"}}

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "RoomPlan-style action, version 1",
        "oneOf": [
            _object_schema({**head(SINGLE_ACTION), **anchor}, optional=("scene",)),
            _object_schema({**head(LIST_ACTION), LIST_KEY: anchors}, optional=("scene",)),
        ],
    }


ACTION_SCHEMA: dict[str, Any] = _action_schema()


def check_action(action: Mapping[str, Any]) -> Action:
    """Checks a mapping against the definition and returns it with keys in canonical order and numbers as float.

    The key `scene` may be present. Values are not rounded.

    Raises:
        ActionError: naming the key, what was found and what was wanted.
    """
    if not isinstance(action, Mapping):
        raise ActionError(f"the action is {_shown(action)}, wanted an object")
    name = action.get("action")
    if name not in ACTION_NAMES:
        raise ActionError(f'"action" is {_shown(name)}, wanted one of {", ".join(ACTION_NAMES)}')
    head: Action = {"action": name}
    if "scene" in action:
        if not isinstance(action["scene"], str):
            raise ActionError(f'"scene" is {_shown(action["scene"])}, wanted a string')
        head["scene"] = action["scene"]
    body = {key: value for key, value in action.items() if key not in ("action", "scene")}
    if name == SINGLE_ACTION:
        return {**head, **_check_anchor(body, "")}
    _check_keys(body, [LIST_KEY], "")
    anchors = body[LIST_KEY]
    if not isinstance(anchors, Sequence) or isinstance(anchors, str):
        raise ActionError(f'"{LIST_KEY}" is {_shown(anchors)}, wanted a list')
    if not 1 <= len(anchors) <= MAX_ANCHORS:
        raise ActionError(f'"{LIST_KEY}" holds {len(anchors)} anchors, wanted 1 to {MAX_ANCHORS}')
    return {**head, LIST_KEY: [_check_anchor(a, f"{LIST_KEY}[{i}].") for i, a in enumerate(anchors)]}


def format_action(action: Mapping[str, Any]) -> str:
    """The canonical text of an action in the ref frame; the only place where values are rounded. `scene` is left out.

    Raises:
        ActionError: as `check_action`.
    """
    checked = check_action(action)
    anchors = action_anchors(checked)
    texts = [anchor_layout([field.text(anchor[field.name]) for field in ANCHOR_FIELDS]) for anchor in anchors]
    return action_layout(checked["action"], texts)


def action_layout(name: str, anchors: Sequence[str]) -> str:
    """The canonical text of an action around those of its anchors."""
    if name == SINGLE_ACTION:
        return f'{{"action":"{name}",{anchors[0]}}}'
    return f'{{"action":"{name}","{LIST_KEY}":[{",".join(f"{{{anchor}}}" for anchor in anchors)}]}}'


def anchor_layout(values: Sequence[str]) -> str:
    """The canonical text of an anchor around those of its values, without braces."""
    return ",".join(f'"{field.name}":{value}' for field, value in zip(ANCHOR_FIELDS, values, strict=True))


def parse_action(text: str) -> Action:
    """Reads an action from the model's text. Spacing, key order and the number of decimals are free.

    Raises:
        ActionError: not JSON (with the position), a repeated key, text after the object, or as `check_action`.
    """
    stripped = text.strip()
    if not stripped.startswith("{"):
        raise ActionError(f"the text is no action: it starts with {stripped[:20]!r}, wanted '{{'")
    try:
        value = json.loads(stripped, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        found = repr(stripped[error.pos : error.pos + 12]) if error.pos < len(stripped) else "the end of the text"
        raise ActionError(f"not JSON: {error.msg} at character {error.pos}, before {found}") from error
    except ActionError:
        raise
    except ValueError as error:
        raise ActionError(f"not an action: {error}") from error
    except RecursionError as error:
        raise ActionError("not an action: brackets nested too deep") from error
    return check_action(value)


def action_from_targets(action_name: str, targets: Sequence[Mapping[str, Any]], ref_from_world: ArrayLike) -> Action:
    """Turns boxes of the world frame into an action in the ref frame, at full precision.

    Args:
        action_name: `place_anchor` (exactly one target) or `place_anchors` (the nearest 12 are kept, nearest first).
        targets: each {label, kind: object | plane | round, center [3], size [3], axes [3, 3]} in the world frame; row
            i of `axes` is the unit vector of box axis i, axis 2 is up; of a plane, axis 1 points into the room.
        ref_from_world: [4, 4].

    Raises:
        ActionError: unknown action or kind, wrong number of targets, a box whose axes are not orthonormal and upright,
            or values that the definition refuses.
    """
    if action_name not in ACTION_NAMES:
        raise ActionError(f'"action" is {action_name!r}, wanted one of {", ".join(ACTION_NAMES)}')
    anchors = [_anchor_from_target(target, np.asarray(ref_from_world, dtype=np.float64)) for target in targets]
    if action_name == SINGLE_ACTION:
        if len(anchors) != 1:
            raise ActionError(f"{SINGLE_ACTION} takes exactly one target, got {len(anchors)}; use {LIST_ACTION}")
        return check_action({"action": SINGLE_ACTION, **anchors[0]})
    return check_action({"action": LIST_ACTION, LIST_KEY: sorted(anchors, key=_by_distance)[:MAX_ANCHORS]})


def action_to_world(action: Mapping[str, Any], world_from_ref: ArrayLike, scene_id: str | None = None) -> Action:
    """Takes an action from the ref to the world frame, makes its normals unit length and fills in `scene`.

    Args:
        action: as returned by `parse_action`.
        world_from_ref: [4, 4].
        scene_id: value of `scene`; left out when None.

    Raises:
        ActionError: as `check_action`.
    """
    matrix = np.asarray(world_from_ref, dtype=np.float64)
    checked = check_action(action)

    def to_world(anchor: Mapping[str, Any]) -> Action:
        normal = matrix[:3, :3] @ np.asarray(anchor["normal"])
        return {
            "label": anchor["label"],
            "center": transform_points(matrix, anchor["center"]).tolist(),
            "extent": list(anchor["extent"]),
            "normal": (normal / np.linalg.norm(normal)).tolist(),
        }

    head = {"action": checked["action"]} | ({} if scene_id is None else {"scene": scene_id})
    if checked["action"] == SINGLE_ACTION:
        return {**head, **to_world(checked)}
    return {**head, LIST_KEY: [to_world(anchor) for anchor in checked[LIST_KEY]]}


def action_anchors(action: Mapping[str, Any]) -> list[Action]:
    """The anchors of either action, each with exactly the keys label, center, extent, normal."""
    anchors = action[LIST_KEY] if action["action"] == LIST_ACTION else [action]
    return [{field.name: anchor[field.name] for field in ANCHOR_FIELDS} for anchor in anchors]


def action_box(
    anchor: Mapping[str, Any],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The oriented box of a `place_anchor` action or of one anchor of a list, in the action's own frame.

    Returns:
        center [3]; full size [3] along the axes; axes [3, 3], whose rows are unit vectors, right-handed: across the
        normal, along the normal, up.

    Raises:
        ActionError: for a `place_anchors` action (use `action_anchors`).
    """
    if anchor.get("action") == LIST_ACTION:
        raise ActionError(f"{LIST_ACTION} holds several boxes; take each of action_anchors(action)")
    normal = np.asarray(anchor["normal"], dtype=np.float64)
    normal = normal / np.linalg.norm(normal)
    up = np.array([0.0, 0.0, 1.0])
    axes = np.stack([np.cross(normal, up), normal, up])
    return np.asarray(anchor["center"], dtype=np.float64), np.asarray(anchor["extent"], dtype=np.float64), axes


def _anchor_from_target(target: Mapping[str, Any], ref_from_world: NDArray[np.float64]) -> Action:
    label, kind = target["label"], target["kind"]
    if kind not in TARGET_KINDS:
        raise ActionError(f"target {label!r} has kind {kind!r}, wanted one of {', '.join(TARGET_KINDS)}")
    size = np.asarray(target["size"], dtype=np.float64)
    axes = np.asarray(target["axes"], dtype=np.float64)
    upright = axes.shape == (3, 3) and np.allclose(axes @ axes.T, np.eye(3), atol=1e-3)
    if size.shape != (3,) or not upright or not np.allclose(axes[2], [0.0, 0.0, 1.0], atol=1e-3):
        raise ActionError(f"target {label!r} has axes {axes.tolist()}, wanted orthonormal rows, the last (0, 0, 1)")
    center = transform_points(ref_from_world, target["center"])
    axes_in_ref = axes @ ref_from_world[:3, :3].T
    normal, width, depth = _FACING[kind](label, center, size, axes_in_ref)
    horizontal = [normal[0], normal[1], 0.0] / np.hypot(normal[0], normal[1])
    extent = [float(width), float(depth), float(size[2])]
    return {"label": label, "center": center.tolist(), "extent": extent, "normal": horizontal.tolist()}


Facing = tuple[NDArray[np.float64], float, float]


def _towards_first_camera(center: NDArray[np.float64]) -> NDArray[np.float64]:
    """Horizontal unit vector from a point in ref to the first camera; against its optical axis when right below it."""
    distance = np.hypot(center[0], center[1])
    if distance < TIE_TOLERANCE:
        return np.array([0.0, -1.0, 0.0])
    return np.array([-center[0], -center[1], 0.0]) / distance


def _object_facing(label: str, center: NDArray, size: NDArray, axes: NDArray) -> Facing:
    """Of equally good axes the one further to the right of the first camera wins, then the one further ahead."""
    candidates = [(sign * axes[index], size[1 - index], size[index]) for index in (0, 1) for sign in (1.0, -1.0)]
    cosines = [float(normal @ _towards_first_camera(center)) for normal, _, _ in candidates]
    best = [c for c, cosine in zip(candidates, cosines) if cosine >= max(cosines) - TIE_TOLERANCE]
    furthest_right = max(normal[0] for normal, _, _ in best)
    best = [c for c in best if c[0][0] >= furthest_right - TIE_TOLERANCE]
    return max(best, key=lambda c: c[0][1])


def _plane_facing(label: str, center: NDArray, size: NDArray, axes: NDArray) -> Facing:
    return axes[1], size[0], 0.0


def _round_facing(label: str, center: NDArray, size: NDArray, axes: NDArray) -> Facing:
    if not math.isclose(size[0], size[1], rel_tol=1e-3):
        raise ActionError(f"round target {label!r} is {size[0]:g} m by {size[1]:g} m, wanted equal horizontal sizes")
    return _towards_first_camera(center), size[0], size[0]


_FACING: dict[str, Callable[[str, NDArray, NDArray, NDArray], Facing]] = {
    "object": _object_facing,
    "plane": _plane_facing,
    "round": _round_facing,
}


def _by_distance(anchor: Action) -> tuple[Any, ...]:
    """Orders by distance to the first camera as the text tells it, so that equal distances never depend on noise."""
    hundredths = [_hundredths(number) for number in anchor["center"]]
    return sum(number * number for number in hundredths), hundredths, anchor["label"], anchor["extent"]


def _check_anchor(anchor: Any, prefix: str) -> Action:
    if not isinstance(anchor, Mapping):
        raise ActionError(f'"{prefix[:-1]}" is {_shown(anchor)}, wanted an object')
    _check_keys(anchor, [field.name for field in ANCHOR_FIELDS], prefix)
    return {field.name: field.check(anchor[field.name], f'"{prefix}{field.name}"') for field in ANCHOR_FIELDS}


def _check_keys(found: Mapping[str, Any], wanted: Sequence[str], prefix: str) -> None:
    missing = [f'"{prefix}{key}"' for key in wanted if key not in found]
    unknown = [f'"{prefix}{key}"' for key in found if key not in wanted]
    if missing:
        raise ActionError(f"missing {', '.join(missing)}")
    if unknown:
        raise ActionError(f"unknown {', '.join(unknown)}, wanted only {', '.join(wanted)}")


def _hundredths(number: float) -> int:
    """Rounds half up; the nudge keeps an exact half from flipping with the last bits of a world transform."""
    return math.floor(number * 10**DECIMALS + 0.5 + 1e-6)


def _number_text(hundredths: int) -> str:
    whole, rest = divmod(abs(hundredths), 10**DECIMALS)
    return f"{'-' if hundredths < 0 else ''}{whole}.{rest:0{DECIMALS}d}"


def _length(hundredths: Sequence[int]) -> float:
    return math.hypot(*hundredths) / 10**DECIMALS


def _range_pattern(low: int, high: int) -> str:
    """Regular expression of the canonical texts of all hundredths from low to high."""
    signed = [("-", max(1, -high), -low), ("", max(0, low), high)]
    parts = []
    for sign, first, last in signed:
        while first <= last:
            text = _number_text(first)
            same_width = min(last, int("9" * (len(text) - 1)))
            parts.append(sign + _digits_pattern(text, _number_text(same_width)))
            first = same_width + 1
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"


def _digits_pattern(low: str, high: str) -> str:
    """Regular expression of the texts from low to high, which have the same width and the point at the same place."""
    if low == high:
        return low.replace(".", r"\.")
    if low[0] == high[0]:
        return low[0].replace(".", r"\.") + _digits_pattern(low[1:], high[1:])
    zeros, nines = re.sub(r"\d", "0", low[1:]), re.sub(r"\d", "9", low[1:])
    first, last, parts = int(low[0]), int(high[0]), []
    if low[1:] != zeros:
        parts.append(low[0] + _digits_pattern(low[1:], nines))
        first += 1
    if high[1:] != nines:
        parts.append(high[0] + _digits_pattern(zeros, high[1:]))
        last -= 1
    if first <= last:
        parts.append((f"[{first}-{last}]" if first < last else str(first)) + _digits_pattern(zeros, nines))
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"


def _tails_pattern(
    ranges: Sequence[range], before: tuple[int, ...], allows: Callable[[Sequence[int]], bool]
) -> str | None:
    """Regular expression of the numbers that may follow those before, as a list; None if there are none."""
    if not ranges:
        return "" if allows(before) else None
    runs: list[tuple[int, int, str]] = []
    for number in ranges[0]:
        tail = _tails_pattern(ranges[1:], (*before, number), allows)
        if tail is None:
            continue
        if runs and runs[-1][1:] == (number - 1, tail):
            runs[-1] = (runs[-1][0], number, tail)
        else:
            runs.append((number, number, tail))
    comma = "," if len(ranges) > 1 else ""
    parts = [_range_pattern(low, high) + comma + tail for low, high, tail in runs]
    return f"(?:{'|'.join(parts)})" if parts else None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    repeated = sorted({key for key in keys if keys.count(key) > 1})
    if repeated:
        raise ActionError(f"repeated key {', '.join(repr(key) for key in repeated)}")
    return dict(pairs)


def _refuse_constant(name: str) -> float:
    raise ActionError(f"{name} is no number of an action")


def _shown(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 40 else f"{text[:37]}..."
