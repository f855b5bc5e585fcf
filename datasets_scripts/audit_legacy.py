"""What is wrong with the predecessor's JSONL files."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets_scripts.capture import (
    Skips,
    SourceError,
    checked,
    decode_image,
    inside,
    read_file,
    read_records,
)
from datasets_scripts.findings import Findings
from datasets_scripts.legacy_jsonl import ACTION_TASK, LegacyRow, read_legacy
from datasets_scripts.scannet import room_of

LOOK_SIDE = 64
DEFAULT_NORMAL = [0, 1, 0]


def audit_legacy(paths: Sequence[Path], image_root: Path | None = None) -> Findings:
    """Judge JSONL files of the predecessor together: rows, images, ids, and rooms that leak between their splits.

    `image_root`: the folder that image paths count from; None leaves images unread.

    Raises:
        SourceError: a file that is missing or no JSON.
    """
    findings = Findings()
    files: dict[Path, list[LegacyRow]] = {}
    for path in paths:
        skips = Skips()
        rows = read_legacy(path, skips)
        for reason, found in skips.as_json().items():
            if reason == "row unreadable":
                meaning = "a key is missing or of another kind"
                findings.error("row unreadable", meaning, found["examples"][0], found["count"])
        if rows:
            files[path] = rows
            findings.figures[str(path)] = _audit_rows(path, rows, findings)
        _audit_actions(path, findings)
        if image_root is not None:
            _audit_images(rows, image_root, findings)
    _audit_splits(files, findings)
    return findings


def _audit_rows(path: Path, rows: list[LegacyRow], findings: Findings) -> dict[str, int]:
    """Adds what is wrong with the rows of one file and returns its figures."""
    others = [row for row in rows if row.shows_other_scene]
    ids = {row.question_id for row in rows}
    identical = len(rows) - len({_content(row) for row in rows})
    situated = [row for row in rows if row.situation is not None]
    if others:
        example = f"{others[0].where}: {others[0].images[0]} beside {others[0].scene_id}"
        findings.error("image of another scene", "looked up by question and answer alone", example, len(others))
    meaning = "one id for questions of several scenes"
    findings.error("question id repeated", meaning, str(path), len(rows) - len(ids))
    findings.warning("row repeated exactly", "counts more than once", str(path), identical)
    findings.note("situation present", "the predecessor never read it", str(path), len(situated))
    one_view = sum(len(row.images) == 1 for row in rows)
    findings.warning("a single view", "no depth, no parallax, mostly seen from above", str(path), one_view)
    official = [row for row in rows if row.question_id.startswith("train-")]
    if official and _is_held_out(path):
        example = f"{official[0].where}: {official[0].question_id}"
        findings.error("test row from the official training split", "its id says so", example, len(official))
    return {
        "rows": len(rows),
        "image of another scene": len(others),
        "unique question ids": len(ids),
        "exact duplicates": identical,
        "scenes": len({row.scene_id for row in rows}),
    }


def _audit_splits(files: dict[Path, list[LegacyRow]], findings: Findings) -> None:
    """Rooms that one file holds out and another trains on."""
    rooms = {path: {room_of(row.scene_id) for row in rows} for path, rows in files.items()}
    held_out = [path for path in files if _is_held_out(path)]
    training = [path for path in files if not _is_held_out(path)]
    for path in held_out:
        for other in training:
            shared = sorted(rooms[path] & rooms[other])
            meaning = "its questions are trained on in one file and scored in another"
            findings.error("room trained on and held out", meaning, f"{other} and {path}: {shared[:3]}", len(shared))
    if training or len(held_out) < 2:
        return
    for path in held_out:
        elsewhere = set().union(*(rooms[other] for other in held_out if other != path))
        alone = sorted(rooms[path] - elsewhere)
        meaning = "cut from the same scenes by question: another task trains on the rest"
        findings.error("room held out in one file only", meaning, f"{path}: {', '.join(alone[:3])}", len(alone))
    shared = set.intersection(*(rooms[path] for path in held_out))
    findings.figures["rooms held out in all files"] = len(shared)


def _audit_actions(path: Path, findings: Findings) -> None:
    """Actions: coordinates that no camera explains, and instructions with several right answers."""
    actions: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for where, record in read_records(path):
        if isinstance(record, dict) and record.get("task") == ACTION_TASK:
            instruction = str(record.get("instruction", record.get("question", "")))
            actions[instruction].append((where, checked(record.get("action_json"), dict, f"{where}, action_json")))
    listed = [pair for group in actions.values() for pair in group]
    if not listed:
        return
    meaning = "world coordinates, and nothing tells the model where the world lies"
    findings.error("action without cameras", meaning, listed[0][0], len(listed))
    default = [where for where, action in listed if action.get("normal") == DEFAULT_NORMAL]
    findings.error("normal is the default", "always [0, 1, 0], whatever the object", str(default[:1]), len(default))
    ambiguous = {text: group for text, group in actions.items() if len({str(action) for _, action in group}) > 1}
    for text, group in ambiguous.items():
        findings.error(
            "instruction with several answers", "two things fit its words", f"{group[0][0]}: {text}", len(group)
        )
    findings.figures[str(path)] = {"actions": len(listed), "instructions": len(actions), "scenes": _num_scenes(listed)}


def _audit_images(rows: list[LegacyRow], root: Path, findings: Findings) -> None:
    for image, uses in Counter(image for row in rows for image in row.images).items():
        try:
            path = inside(root, image)
            decode_image(read_file(path), str(path), least_side=LOOK_SIDE)
        except SourceError as error:
            findings.error("image missing or unreadable", "the rows that name it cannot be used", str(error), uses)


def _is_held_out(path: Path) -> bool:
    return any(word in path.stem for word in ("test", "val"))


def _content(row: LegacyRow) -> tuple[Any, ...]:
    return tuple(value for key, value in vars(row).items() if key != "where")


def _num_scenes(actions: list[tuple[str, Any]]) -> int:
    return len({action.get("scene") for _, action in actions})
