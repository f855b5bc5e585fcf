"""Say what is wrong with a dataset before a GPU hour is spent on it.

    python -m datasets_scripts.audit data/scannet data/arkitscenes --json audit.json
    python -m datasets_scripts.audit --legacy scanqa/test_split.jsonl sqa3d/test_split.jsonl

Several datasets are judged together: a room that one trains on may stand in no other's val or test split. The exit
status is 1 where training would be wrong, 2 where the audit itself could not be made.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_from_disk

from datasets_scripts.audit_legacy import audit_legacy
from datasets_scripts.boxes import seen_share
from datasets_scripts.capture import SourceError, decode_depth, decode_image, open_image
from datasets_scripts.findings import Findings
from datasets_scripts.schema import (
    ACTION_TASKS,
    SAMPLE_SPLITS,
    SCENE_SPLITS,
    RowError,
    read_manifest,
    validate_sample,
    validate_scene,
)

LOOK_SIDE = 64
MILLIMETRES = 1000.0
Row = dict[str, Any]


@dataclass
class _Seen:
    """What the rows read so far said, to be compared with the next and with each other."""

    rooms: dict[str, str] = field(default_factory=dict)  # scene id -> room id
    scene_of_image: dict[bytes, str] = field(default_factory=dict)
    sample_ids: set[str] = field(default_factory=set)
    splits_of_room: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    answers: dict[tuple[str, ...], list[tuple[str, frozenset[str]]]] = field(default_factory=lambda: defaultdict(list))


def audit_datasets(roots: Sequence[Path], *, images: bool = True) -> Findings:
    """Judge built datasets together. `images` False leaves photographs and depth undecoded.

    Raises:
        NotADatasetError, ValueError: a folder that is no dataset, or a damaged one.
    """
    findings, seen = Findings(), _Seen()
    figures = {"scenes": Counter(), "samples": Counter(), "tasks": Counter(), "labels": Counter()}
    for root in roots:
        read_manifest(root)
        targets = _targets_by_scene(root)
        for split, row in _rows(root, "scenes", SCENE_SPLITS):
            figures["scenes"][f"{root.name}/{split}"] += 1
            _audit_scene(row, root, targets.get(row["scene_id"], []), findings, seen, images)
        frames = {
            row["scene_id"]: row["frame_ids"]
            for _, row in _rows(root, "scenes", SCENE_SPLITS, ("scene_id", "frame_ids"))
        }
        asked = set()
        for split, row in _rows(root, "samples", SAMPLE_SPLITS):
            asked.add(row["scene_id"])
            figures["samples"][f"{root.name}/{split}"] += 1
            figures["tasks"][row["task"]] += 1
            figures["labels"].update(target["label"] for target in row["targets"])
            _audit_sample(row, root, split, frames, findings, seen)
        unasked = sorted(set(frames) - asked)
        findings.note("scene without a sample", "nothing is asked about it", ", ".join(unasked[:3]), len(unasked))
    _audit_rooms(findings, seen)
    _audit_answers(findings, seen)
    findings.figures = {name: dict(counter) for name, counter in figures.items()}
    return findings


# --------------------------------------------------------------------------------------------------------------- scenes


def _audit_scene(
    row: Row, root: Path, targets: list[dict[str, Any]], findings: Findings, seen: _Seen, images: bool
) -> None:
    where = f"{root.name}, scene {row['scene_id']}"
    if row["scene_id"] in seen.rooms:
        findings.error("scene id twice", "questions would be asked about the wrong scene", where)
    seen.rooms[row["scene_id"]] = row["room_id"]
    if not _sound_scene(row, where, findings):
        return
    looks = []
    for index, frame_id in enumerate(row["frame_ids"]):
        place = f"{where}, frame {frame_id}"
        _audit_image(row, index, place, findings, seen)
        looks.append(_look(row, index, place, findings, images))
    if row["world_from_cam"] is not None and all(look is not None for look in looks):
        _audit_targets(row, targets, looks, where, findings)


def _sound_scene(row: Row, where: str, findings: Findings) -> bool:
    try:
        validate_scene(row)
    except RowError as error:
        if "world_from_cam[" in str(error) or "intrinsics[" in str(error):
            findings.error("camera not sound", "not finite, not rigid or singular", f"{where}: {error}")
        else:
            findings.error("scene breaks the schema", "readers would fail or misread it", f"{where}: {error}")
        return False
    return True


def _audit_image(row: Row, index: int, place: str, findings: Findings, seen: _Seen) -> None:
    stored = row["images"][index]
    name = stored["path"] or ""
    if name and "." in name and not name.startswith(f"{row['scene_id']}."):
        meaning = "the photograph's name speaks of another scene"
        findings.error("image of another scene", meaning, f"{place}: {name}")
    if not stored["bytes"]:
        findings.error("image missing", "the row holds no photograph", place)
        return
    key = hashlib.blake2b(stored["bytes"], digest_size=16).digest()
    owner = seen.scene_of_image.setdefault(key, row["scene_id"])
    if owner != row["scene_id"]:
        findings.error("one image in two scenes", "at least one of them shows another scene", f"{place}, also {owner}")


Look = tuple[tuple[int, int], np.ndarray | None]  # (width, height) of a photograph, its depth in metres if looked at


def _look(row: Row, index: int, place: str, findings: Findings, images: bool) -> Look | None:
    """Reads photograph and depth of a frame (only the photograph's header unless `images`); None if unreadable."""
    photograph = row["images"][index]["bytes"]
    if not photograph:
        return None
    try:
        size = open_image(photograph, place).size
        if not images:
            return size, None
        decode_image(photograph, place, least_side=LOOK_SIDE)
        depth = row["depth"][index]["bytes"] or b"" if row["depth"] is not None else None
        return size, None if depth is None else decode_depth(depth, place) / MILLIMETRES
    except SourceError as error:
        findings.error("image unreadable", "training would stop at it", str(error))
        return None


def _audit_targets(row: Row, targets: list[dict[str, Any]], looks: list[Look], where: str, findings: Findings) -> None:
    views = [(*cameras, *look) for *cameras, look in zip(row["world_from_cam"], row["intrinsics"], looks)]
    for target in targets:
        if not any(seen_share(target, *view) > 0 for view in views):
            meaning = "an action places something that no stored view shows"
            findings.error("box no view sees", meaning, f"{where}: {target['label']} at {target['center']}")


# -------------------------------------------------------------------------------------------------------------- samples


def _audit_sample(
    row: Row, root: Path, split: str, frames: dict[str, list[str]], findings: Findings, seen: _Seen
) -> None:
    where = f"{root.name}, {split}, sample {row['sample_id']}"
    if row["sample_id"] in seen.sample_ids:
        findings.error("sample id twice", "predictions could not be told apart", where)
    seen.sample_ids.add(row["sample_id"])
    is_question = row["task"] not in ACTION_TASKS
    if is_question and not row["answers"] and split != "test":
        findings.error("answers empty", "a labelled split asks without an answer", where)
    elif is_question and not row["answers"]:
        findings.note("test question without answers", "only its authors can score it", where)
    else:
        try:
            validate_sample(row)
        except RowError as error:
            findings.error("sample breaks the schema", "readers would fail or misread it", f"{where}: {error}")
    if row["scene_id"] not in frames:
        findings.error("sample without its scene", "the scenes table lacks it", f"{where}: {row['scene_id']}")
        return
    if row["anchor_frame_id"] not in (None, *frames[row["scene_id"]]):
        findings.error("anchor frame not stored", "its first view does not exist", f"{where}: {row['anchor_frame_id']}")
    seen.splits_of_room[seen.rooms[row["scene_id"]]].setdefault(split, where)
    said = frozenset(row["answers"]) if is_question else frozenset(str(sorted(t["center"])) for t in row["targets"])
    key = (row["scene_id"], row["question"], row["situation"] or "", row["anchor_frame_id"] or "")
    if said:
        seen.answers[key].append((where, said))


def _audit_rooms(findings: Findings, seen: _Seen) -> None:
    for room, splits in sorted(seen.splits_of_room.items()):
        held_out = [split for split in ("val", "test") if split in splits]
        if "train" in splits and held_out:
            example = f"room {room}: {splits['train']}; {splits[held_out[0]]}"
            findings.error("train room held out too", "scores on the held-out split would be too good", example)


def _audit_answers(findings: Findings, seen: _Seen) -> None:
    for asked in seen.answers.values():
        if len(asked) < 2:
            continue
        different = {said for _, said in asked}
        if len(different) < len(asked):
            meaning = "same scene, words and answers under another id"
            findings.warning("question repeated", meaning, f"{asked[0][0]}; {asked[1][0]}", len(asked) - len(different))
        if any(not one & other for one in different for other in different if one != other):
            meaning = "same scene and words, answers that have nothing in common"
            findings.warning("answers contradict", meaning, f"{asked[0][0]}; {asked[1][0]}")


# --------------------------------------------------------------------------------------------------------------- tables


def _rows(
    root: Path, table: str, splits: Sequence[str], columns: Sequence[str] | None = None
) -> Iterator[tuple[str, Row]]:
    """Each row of a table (or only some columns of it) with its split; photographs stay encoded."""
    for split in splits:
        if not (root / table / split).is_dir():
            continue
        rows: Dataset = load_from_disk(str(root / table / split))
        if columns is not None:
            rows = rows.select_columns(list(columns))
        encoded = rows.with_format("arrow")
        for index in range(len(rows)):
            yield split, encoded[index].to_pylist()[0]


def _targets_by_scene(root: Path) -> dict[str, list[dict[str, Any]]]:
    """What the actions of each scene place, every box once."""
    targets: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for _, row in _rows(root, "samples", SAMPLE_SPLITS):
        if row["task"] in ACTION_TASKS:
            for target in row["targets"]:
                targets[row["scene_id"]][f"{target['label']} {target['center']}"] = target
    return {scene_id: list(found.values()) for scene_id, found in targets.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit what the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(description="Say what is wrong with datasets before training on them.")
    parser.add_argument("datasets", nargs="*", type=Path, help="built dataset folders, judged together")
    parser.add_argument("--legacy", nargs="+", type=Path, default=[], help="the predecessor's JSONL files instead")
    parser.add_argument(
        "--image-root", type=Path, help="where the images of --legacy files lie; default: not looked at"
    )
    parser.add_argument("--no-images", action="store_true", help="do not decode photographs and depth")
    parser.add_argument("--json", type=Path, help="write the findings there, too")
    args = parser.parse_args(arguments)
    try:
        if bool(args.datasets) == bool(args.legacy):
            raise ValueError("name either dataset folders or --legacy files")
        if args.legacy:
            findings = audit_legacy(args.legacy, args.image_root)
        else:
            findings = audit_datasets(args.datasets, images=not args.no_images)
        if args.json:
            args.json.write_text(json.dumps(findings.as_json(), indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(findings.table())
    return int(findings.has_errors)


if __name__ == "__main__":
    raise SystemExit(main())
