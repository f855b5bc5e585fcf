"""ARKitScenes videos, raw and 3dod layout, with the boxes of their annotation.

    [raw/]<Training|Validation>/<video>/                       frames beside the annotation (raw)
    [3dod/]<Training|Validation>/<video>/<video>_frames/       frames one level down (3dod)
        lowres_wide/<video>_<seconds>.png   lowres_depth/  confidence/   lowres_wide_intrinsics/*.pincam
        lowres_wide.traj                    seconds, axis-angle and metres, world to camera
    <video>_3dod_annotation.json            boxes, of which `obbAligned` alone is in metres
    3dod_train_val_splits.csv or raw_train_val_splits.csv, at the root: which videos (folds) show one room (visit)

World as stored: Z up, metres. Photographs are stored as the device was held; frames are turned upright, cameras alike.
"""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets_scripts.boxes import Target, upright_target
from datasets_scripts.capture import (
    Capture,
    FileCapture,
    Float,
    Frame,
    Skips,
    SourceError,
    checked,
    key_of,
    numbers,
    read_file,
    read_json,
    read_matrix,
    sound,
)
from datasets_scripts.upright import quarter_turns_upright, turn_camera
from processing.geometry_vggt_qwen3 import invert_rigid, validate_intrinsics

FOLDS = {"Training": "train", "Validation": "val"}
SPLIT_FILES = ("3dod_train_val_splits.csv", "raw_train_val_splits.csv", "metadata.csv")
SUBFOLDERS = ("", "raw", "3dod")
MATCH_S = 0.005
MAX_GAP_S = 0.2
NAME_TOLERANCE_MS = 1
VIDEO_PATTERN = re.compile(r"\d{6,10}")


@dataclass(frozen=True)
class Video:
    """Where one video lies. `split` is train or val, `room_id` the visit where the split file names it."""

    video_id: str
    split: str
    room_id: str
    frames: Path
    annotation: Path


def find_arkitscenes(root: Path) -> dict[str, Video]:
    """Every video below `root` by its id. Raises SourceError where there is none."""
    visits = _visits(root)
    videos = {}
    for subfolder in SUBFOLDERS:
        for fold, split in FOLDS.items():
            folder = root / subfolder / fold
            for path in sorted(folder.iterdir()) if folder.is_dir() else []:
                video = path.name
                frames = next((p for p in (path / f"{video}_frames", path) if (p / "lowres_wide").is_dir()), None)
                if VIDEO_PATTERN.fullmatch(video) and frames is not None:
                    room = visits.get(video, f"video-{video}")
                    videos[video] = Video(video, split, room, frames, path / f"{video}_3dod_annotation.json")
    if not videos:
        raise SourceError(
            f"{root} holds no ARKitScenes video; wanted <root>/[raw|3dod]/Training/<video>/lowres_wide/ or "
            "<root>/[raw|3dod]/Training/<video>/<video>_frames/lowres_wide/"
        )
    return videos


def open_arkitscenes(video: Video, skips: Skips) -> Capture:
    """The frames of a video whose camera is known, and its boxes; what is left out is counted.

    Raises:
        SourceError: no trajectory, files that are damaged, or no frame left.
    """
    trajectory = read_trajectory(video.frames / "lowres_wide.traj")
    photographs = _by_time(video.frames / "lowres_wide", ".png")
    pincams = _by_time(video.frames / "lowres_wide_intrinsics", ".pincam")
    depths = _by_time(video.frames / "lowres_depth", ".png")
    confidences = _by_time(video.frames / "confidence", ".png")
    frames, paths = [], []
    for time_ms, photograph in sorted(photographs.items()):
        pincam, depth = _nearest(pincams, time_ms), _nearest(depths, time_ms)
        confidence = _nearest(confidences, time_ms)
        world_from_cam = trajectory.at(time_ms / 1000)
        if world_from_cam is None:
            skips.skip("frame without a camera within reach", str(photograph))
        elif pincam is None or (depths and depth is None) or (confidences and confidence is None):
            skips.skip("frame without intrinsics, depth or confidence", str(photograph))
        else:
            frame = _frame(photograph, pincam, world_from_cam, skips)
            if frame is not None:
                frames.append(frame)
                paths.append((photograph, depth, confidence))
    if not frames:
        raise SourceError(f"{video.frames}: no frame of {len(photographs)} with a known camera")
    return FileCapture(
        scene_id=video.video_id,
        room_id=video.room_id,
        source="arkitscenes",
        frames=frames,
        skips=skips,
        world_from_source=np.eye(4),
        targets=read_boxes(video.annotation, skips),
        paths=paths,
    )


# -------------------------------------------------------------------------------------------------------------- cameras


@dataclass(frozen=True)
class Trajectory:
    """Cameras over time: `times_s` [T] ascending, `world_from_cam` [T, 4, 4]."""

    times_s: Float
    world_from_cam: Float

    def at(self, time_s: float) -> Float | None:
        """The camera at a time, interpolated between neighbours at most 0.2 s apart; None out of reach.

        Beyond the ends, or in a gap, a camera within 5 ms counts as that of the time asked for.
        """
        after = int(np.searchsorted(self.times_s, time_s))
        if 0 < after < len(self.times_s) and self.times_s[after] - self.times_s[after - 1] <= MAX_GAP_S:
            share = (time_s - self.times_s[after - 1]) / (self.times_s[after] - self.times_s[after - 1])
            return _between(self.world_from_cam[after - 1], self.world_from_cam[after], share)
        nearest = int(np.abs(self.times_s - time_s).argmin())
        return self.world_from_cam[nearest] if abs(self.times_s[nearest] - time_s) <= MATCH_S else None


def read_trajectory(path: Path) -> Trajectory:
    """Reads a `.traj` file. Raises SourceError where it is missing, damaged, or its times do not ascend."""
    if not path.is_file():
        raise SourceError(f"{path}: no such file; some raw videos were published without trajectory and annotation")
    rows = read_matrix(path)
    if rows.shape[1] != 7:
        raise SourceError(f"{path} has {rows.shape[1]} numbers a line, wanted 7: seconds, axis-angle, metres")
    if (np.diff(rows[:, 0]) <= 0).any():
        raise SourceError(f"{path}: the times do not ascend")
    cam_from_world = np.tile(np.eye(4), (len(rows), 1, 1))
    cam_from_world[:, :3, :3] = [rotation_from_axis_angle(row[1:4]) for row in rows]
    cam_from_world[:, :3, 3] = rows[:, 4:]
    return Trajectory(rows[:, 0], invert_rigid(cam_from_world))


def rotation_from_axis_angle(vector: Float) -> Float:
    """The rotation [3, 3] about `vector` [3] by its length in radians (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _axis_angle(rotation: Float) -> Float:
    """The inverse of `rotation_from_axis_angle` for turns well below half a turn."""
    sines = np.array([rotation[2, 1], rotation[0, 2], rotation[1, 0]]) - np.array(
        [rotation[1, 2], rotation[2, 0], rotation[0, 1]]
    )
    length = float(np.linalg.norm(sines))
    angle = np.arctan2(length, np.trace(rotation) - 1)
    return sines * (angle / length) if length > 1e-12 else np.zeros(3)


def _between(first: Float, second: Float, share: float) -> Float:
    """The rigid transform [4, 4] on the way from one to another: straight in position, steady in rotation."""
    matrix = np.eye(4)
    turn = _axis_angle(first[:3, :3].T @ second[:3, :3])
    matrix[:3, :3] = first[:3, :3] @ rotation_from_axis_angle(share * turn)
    matrix[:3, 3] = (1 - share) * first[:3, 3] + share * second[:3, 3]
    return matrix


def _frame(photograph: Path, pincam: Path, world_from_cam: Float, skips: Skips) -> Frame | None:
    turns = quarter_turns_upright(world_from_cam)
    if turns is None:
        skips.skip("frame that looks straight up or down", str(photograph))
        return None
    try:
        intrinsics, size = _read_pincam(pincam)
    except SourceError as error:
        skips.fault("intrinsics unreadable", error)
        return None
    intrinsics, upright_camera, size = turn_camera(intrinsics, world_from_cam, size, turns)
    return Frame(photograph.stem.split("_")[-1], size, intrinsics, upright_camera, turns)


def _read_pincam(path: Path) -> tuple[Float, tuple[int, int]]:
    values = read_matrix(path)
    if values.shape != (1, 6):
        raise SourceError(f"{path} has shape {values.shape}, wanted one line: width height fx fy cx cy")
    width, height, focal_x, focal_y, center_x, center_y = values[0]
    matrix = np.array([[focal_x, 0, center_x], [0, focal_y, center_y], [0, 0, 1]])
    size = (int(width), int(height))
    return sound(validate_intrinsics, matrix, str(path), size), size


# ---------------------------------------------------------------------------------------------------------------- boxes


def read_boxes(path: Path, skips: Skips) -> list[Target]:
    """The targets of an annotation file; labels in words ("tv monitor"). A missing file is counted, a damaged box too.

    Only `obbAligned` is read: the `obb` of the same file is in centimetres.

    Raises:
        SourceError: a file of another shape.
    """
    if not path.is_file():
        skips.skip("video without annotation", str(path))
        return []
    annotation = read_json(path)
    if isinstance(annotation, dict) and annotation.get("skipped"):
        skips.skip("annotation that was skipped", str(path))
        return []
    targets = []
    for index, record in enumerate(key_of(annotation, "data", list, str(path))):
        try:
            targets.append(_box(record, f"{path}, data[{index}]"))
        except SourceError as error:
            skips.fault("box unreadable", error)
    return targets


def _box(record: object, where: str) -> Target:
    label = key_of(record, "label", str, where)
    box = key_of(key_of(record, "segments", dict, where), "obbAligned", dict, f"{where}, segments")
    center = numbers(key_of(box, "centroid", list, where), (3,), f"{where}, centroid")
    size = numbers(key_of(box, "axesLengths", list, where), (3,), f"{where}, axesLengths")
    axes = numbers(key_of(box, "normalizedAxes", list, where), (3, 3), f"{where}, normalizedAxes")
    if (size <= 0).any() or (size > 20).any():
        raise SourceError(f"{where}: sizes {size.tolist()}, wanted metres above 0 and at most 20")
    words = " ".join(re.split(r"[\s/_-]+", checked(label, str, where).strip().lower()))
    if not words:
        raise SourceError(f"{where}: an empty label")
    return upright_target(words, "object", center, size, axes, where)


# ---------------------------------------------------------------------------------------------------------------- files


def _visits(root: Path) -> dict[str, str]:
    """video id -> room id, from the split files at the root."""
    rooms: dict[str, str] = {}
    for name in SPLIT_FILES:
        path = root / name
        if not path.is_file():
            continue
        rows = csv.DictReader(io.StringIO(read_file(path).decode("utf-8", "replace")))
        if not {"video_id", "visit_id"} <= set(rows.fieldnames or ()):
            raise SourceError(f"{path} has the columns {rows.fieldnames}, wanted video_id, visit_id and fold")
        for row in rows:
            if row["visit_id"] not in ("", "NA", None):
                rooms[row["video_id"]] = f"visit-{row['visit_id'].removesuffix('.0')}"
    return rooms


def _by_time(folder: Path, suffix: str) -> dict[int, Path]:
    """Files named `<video>_<seconds><suffix>` by their time in milliseconds; empty where there is no such folder."""
    found = {}
    for path in folder.glob(f"*{suffix}") if folder.is_dir() else ():
        try:
            found[round(float(path.name.removesuffix(suffix).split("_")[-1]) * 1000)] = path
        except (ValueError, OverflowError) as error:
            raise SourceError(f"{path}: no time in its name; wanted <video>_<seconds>{suffix}") from error
    return found


def _nearest(files: dict[int, Path], time_ms: int) -> Path | None:
    """The file of a time; names of one frame may differ by a millisecond."""
    offsets = [0] + [sign * ms for ms in range(1, NAME_TOLERANCE_MS + 1) for sign in (1, -1)]
    return next((files[time_ms + offset] for offset in offsets if time_ms + offset in files), None)
