"""The predecessor's JSONL of ScanQA and SQA3D with bird-view images, repaired where the truth is known, else refused.

Its scene_id, question_id and situation were looked up by (question, answer) alone, so a question that was asked in
several scenes got those of the last one; the image kept the true scene. A row whose image shows another scene is
repaired from the official file, where exactly one question of the image's scene has its words and its answer. Its
geom_token is never used, and its ARKit actions state world coordinates without any camera: nothing could learn them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets_scripts.capture import (
    Capture,
    FileCapture,
    Frame,
    Row,
    Skips,
    SourceError,
    checked,
    inside,
    key_of,
    open_image,
    read_file,
    read_records,
)
from datasets_scripts.scannet import room_of
from datasets_scripts.scanqa import qa_row, text_of

TASKS = ("scanqa", "sqa3d")
ACTION_TASK = "arkit_actions"
_SCENE_IN_NAME = re.compile(r"scene\d{4}_\d{2}")


@dataclass(frozen=True)
class LegacyRow:
    """One record, its shape checked. `image_scenes`: the scene each image's name speaks of, None where it has none."""

    where: str
    task: str
    scene_id: str
    question_id: str
    question: str
    answers: tuple[str, ...]
    situation: str | None
    images: tuple[str, ...]
    has_geometry: bool

    @property
    def image_scenes(self) -> tuple[str | None, ...]:
        found = [_SCENE_IN_NAME.search(Path(image).name) or _SCENE_IN_NAME.search(image) for image in self.images]
        return tuple(match.group(0) if match else None for match in found)

    @property
    def shows_other_scene(self) -> bool:
        return any(scene not in (None, self.scene_id) for scene in self.image_scenes)


Official = Mapping[tuple[str, str, str], list[Row]]  # (task, scene_id, question) -> rows of the official files


def read_legacy(path: Path, skips: Skips) -> list[LegacyRow]:
    """The question rows of a file, in its order; actions and damaged rows are counted.

    Raises:
        SourceError: a file that is missing or no JSON.
    """
    rows = []
    for where, record in read_records(path):
        if isinstance(record, dict) and record.get("task") == ACTION_TASK:
            skips.skip("action without cameras: build from ARKitScenes instead", where)
            continue
        try:
            rows.append(_legacy_row(record, where))
        except SourceError as error:
            skips.fault("row unreadable", error)
    return rows


def index_official(rows: Iterable[Row]) -> Official:
    """Official rows by task, scene and question."""
    index: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        index.setdefault((row["task"], row["scene_id"], row["question"]), []).append(row)
    return index


def repair(rows: Iterable[LegacyRow], official: Official, skips: Skips) -> list[tuple[Row, LegacyRow]]:
    """The rows whose scene is known, as rows of SAMPLE_FEATURES beside their record; the others are counted.

    `official` may be empty: then every row whose image shows another scene is refused, and answers stay as they are.
    """
    repaired: dict[str, tuple[Row, LegacyRow]] = {}
    for row in rows:
        truth = _truth(row, official)
        if row.shows_other_scene and truth is None:
            skips.skip("image of another scene, truth unknown", f"{row.where}: {row.images[0]} beside {row.scene_id}")
            continue
        if row.shows_other_scene:
            skips.skip("image of another scene, repaired", row.where)
        if row.has_geometry:
            skips.skip("geom_token not used", row.where)
        sample = truth or qa_row(
            row.question_id, row.scene_id, row.task, row.question, list(row.answers), row.situation
        )
        if sample["sample_id"] in repaired:
            skips.skip("repeated question", f"{row.where}: {sample['sample_id']}")
        else:
            repaired[sample["sample_id"]] = (sample, replace(row, scene_id=sample["scene_id"]))
    return list(repaired.values())


def open_legacy(scene_id: str, rows: Iterable[LegacyRow], root: Path, skips: Skips) -> Capture:
    """The images that the rows of one scene name, below `root`, as views without cameras.

    Raises:
        SourceError: no image left.
    """
    frames: dict[str, Frame] = {}
    paths = []
    for image in dict.fromkeys(image for row in rows for image in row.images):
        try:
            path = inside(root, image)
            frame_id = re.sub(r"\s+", "_", path.stem)
            if frame_id in frames:
                raise SourceError(f"{path}: a second image named {frame_id} in scene {scene_id}")
            frames[frame_id] = Frame(frame_id, open_image(read_file(path), str(path)).size)
            paths.append((path, None, None))
        except SourceError as error:
            skips.fault("image unreadable", error)
    if not frames:
        raise SourceError(f"scene {scene_id}: none of its images can be read below {root}")
    return FileCapture(
        scene_id=scene_id,
        room_id=room_of(scene_id),
        source="legacy",
        frames=list(frames.values()),
        skips=skips,
        paths=paths,
    )


def _truth(row: LegacyRow, official: Official) -> Row | None:
    """The one official row of the scene the image shows that has the row's question and answer, or None."""
    scenes = {scene for scene in row.image_scenes if scene is not None}
    if len(scenes) != 1:
        return None
    candidates = official.get((row.task, scenes.pop(), row.question), [])
    matching = [found for found in candidates if set(row.answers) & set(found["answers"])]
    if not row.shows_other_scene:
        matching = [found for found in matching if found["sample_id"] == row.question_id]
    return matching[0] if len(matching) == 1 else None


def _legacy_row(record: Any, where: str) -> LegacyRow:
    task = key_of(record, "task", str, where)
    if task not in TASKS:
        raise SourceError(f"{where}, task is {task!r}, wanted one of {', '.join((*TASKS, ACTION_TASK))}")
    images = [checked(image, str, f"{where}, images") for image in key_of(record, "images", list, where)]
    scene_id = text_of(record, "scene_id", where)
    room_of(scene_id, f"{where}, scene_id")
    if not images:
        raise SourceError(f"{where}, images is empty")
    question_id = str(record.get("question_id", "")).strip()
    if not question_id or any(character.isspace() for character in question_id):
        raise SourceError(f"{where}, question_id is {record.get('question_id')!r}, wanted one without spaces")
    situation = record.get("situation")
    return LegacyRow(
        where=where,
        task=task,
        scene_id=scene_id,
        question_id=question_id,
        question=text_of(record, "question", where),
        answers=(text_of(record, "answer", where),),
        situation=None if situation is None else text_of(record, "situation", where),
        images=tuple(images),
        has_geometry=record.get("geom_token") is not None,
    )
