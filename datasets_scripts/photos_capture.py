"""Folders of photographs as scenes, and questions of one's own about them.

<root>/<scene>/            photographs, with or without cameras and depth, as photos.py reads them
questions.jsonl            {"scene_id", "question_id", "question", "answers": […], "situation": … or left out} a line
"""

import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageOps

from datasets_scripts.capture import (
    Capture,
    Depth,
    Frame,
    Row,
    Skips,
    SourceError,
    checked,
    key_of,
    open_image,
    read_file,
    read_records,
)
from datasets_scripts.photos import PhotoScene, find_photos, read_photos
from datasets_scripts.scanqa import qa_row, text_of

MILLIMETRES = 1000.0
UPRIGHT = 1
ORIENTATION_TAG = 0x0112


def find_photo_scenes(root: Path) -> dict[str, Path]:
    """Every folder below `root` that holds photographs, by its name. Raises SourceError where there is none."""
    scenes = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        try:
            find_photos(folder)
        except FileNotFoundError:
            continue
        scenes[folder.name] = folder
    if not scenes:
        raise SourceError(f"{root} holds no folder of photographs; wanted <root>/<scene>/<any>.jpg")
    return scenes


@dataclass(kw_only=True)
class PhotoCapture(Capture):
    """`paths` of the photographs; their depth is read again on demand, in the frame of `gravity` and `scale`."""

    paths: list[Path]
    gravity: ArrayLike | None
    scale: float | None

    def photograph(self, index: int) -> bytes:
        data = read_file(self.paths[index])
        image = open_image(data, str(self.paths[index]))
        if image.getexif().get(ORIENTATION_TAG, UPRIGHT) == UPRIGHT:
            return data
        buffer = io.BytesIO()
        ImageOps.exif_transpose(image).save(buffer, "PNG")
        return buffer.getvalue()

    def depth_mm(self, index: int) -> Depth | None:
        depth = _read(self.paths[index], self.gravity, self.scale).depth
        if depth is None or depth[0] is None:
            return None
        return np.rint(depth[0] * MILLIMETRES).astype(np.uint16)


def open_photos(folder: Path, skips: Skips, gravity: ArrayLike | None, scale: float | None) -> Capture:
    """The photographs of a folder; cameras count as unknown unless which way is down, and the unit, are known.

    Raises:
        SourceError: no photograph left.
    """
    frames, paths = [], []
    for path in find_photos(folder):
        try:
            scene = _read(path, gravity, scale)
        except SourceError as error:
            skips.fault("photograph unreadable", error)
            continue
        for note in scene.notes:
            skips.skip("cameras not used", f"{path}: {note}")
        known = scene.world_from_cam is not None
        frames.append(
            Frame(
                re.sub(r"\s+", "_", scene.frame_ids[0]),
                ImageOps.exif_transpose(scene.images[0]).size,
                scene.intrinsics[0] if known else None,
                scene.world_from_cam[0] if known else None,
            )
        )
        paths.append(path)
        world_from_source = scene.world_from_source
    if not frames:
        raise SourceError(f"{folder}: no photograph can be read")
    return PhotoCapture(
        scene_id=folder.name,
        room_id=folder.name,
        source="photos",
        frames=frames,
        skips=skips,
        world_from_source=world_from_source,
        paths=paths,
        gravity=gravity,
        scale=scale,
    )


def read_own_questions(path: Path, skips: Skips) -> list[Row]:
    """The rows of SAMPLE_FEATURES of a JSON-lines file; situated ones count as sqa3d, the others as scanqa.

    Raises:
        SourceError: a file that is missing or no JSON.
    """
    rows = []
    for where, record in read_records(path):
        try:
            answers = [checked(answer, str, f"{where}, answers") for answer in key_of(record, "answers", list, where)]
            situation = text_of(record, "situation", where) if record.get("situation") is not None else None
            task = "scanqa" if situation is None else "sqa3d"
            texts = (text_of(record, key, where) for key in ("question_id", "scene_id"))
            rows.append(qa_row(*texts, task, text_of(record, "question", where), answers, situation))
        except SourceError as error:
            skips.fault("question unreadable", error)
    return rows


def _read(path: Path, gravity: ArrayLike | None, scale: float | None) -> PhotoScene:
    try:
        return read_photos([path], gravity=gravity, scale=scale)
    except (ValueError, OSError, Image.DecompressionBombError) as error:
        raise SourceError(str(error)) from error
