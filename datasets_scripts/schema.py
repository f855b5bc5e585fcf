"""The two tables of a dataset folder: their features, the row validators and the manifest.

    <root>/scenes/<train|heldout>/      one row a scene: photographs, cameras, depth   (Dataset.save_to_disk)
    <root>/samples/<train|val|test>/    one row a question or an instruction           (Dataset.save_to_disk)
    <root>/labels/<train|heldout>/      one row a scene, where a source can tell: what every pixel shows
    <root>/manifest.json                written last: a folder without it is not a dataset

Units are metres and pixels. The world frame is metric with Z up. Cameras have OpenCV axes (x right, y down, z forward);
pixel centres lie at +0.5. Depth is z-depth in millimetres as 16-bit PNG, 0 = invalid.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Array2D, Features, Image, List, Value

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"

QA_TASKS = ("scanqa", "sqa3d", "rooms_qa")
ACTION_TASKS = ("actions", "rooms_actions")
TASKS = (*QA_TASKS, *ACTION_TASKS)
ACTIONS = ("place_anchor", "place_anchors")
TARGET_KINDS = ("object", "plane", "round")
QUESTION_TYPES = ("what", "is", "how", "can", "which", "others")
SCENE_SPLITS = ("train", "heldout")
SAMPLE_SPLITS = ("train", "val", "test")
MAX_ANCHORS = 12

_RIGID_TOLERANCE = 1e-3

SCENE_FEATURES = Features(
    {
        "scene_id": Value("string"),
        "room_id": Value("string"),  # scans of one room share it: the unit that splits are kept disjoint by
        "source": Value("string"),
        "frame_ids": List(Value("string")),
        "images": List(Image()),  # JPEG
        "intrinsics": List(Array2D((3, 3), "float64")),  # pixels of the stored image; null = unknown
        "world_from_cam": List(Array2D((4, 4), "float64")),  # null = unknown
        "depth": List(Image()),  # 16-bit PNG, millimetres, 0 = invalid; null = none
        "is_metric": Value("bool"),
        "is_gravity_aligned": Value("bool"),
        "world_from_source": Array2D((4, 4), "float64"),  # similarity from the raw dataset's frame; null = no cameras
    }
)

TARGET_FEATURE = {
    "label": Value("string"),
    "kind": Value("string"),  # one of TARGET_KINDS
    "center": List(Value("float64"), length=3),
    "size": List(Value("float64"), length=3),  # full extent along each axis
    "axes": Array2D((3, 3), "float64"),  # ROW i = unit vector of box axis i in the world; axis 2 is vertical
}

SAMPLE_FEATURES = Features(
    {
        "sample_id": Value("string"),
        "scene_id": Value("string"),
        "task": Value("string"),
        "question": Value("string"),
        "situation": Value("string"),  # null = not situated
        # Where the situation's person stands (origin on the floor), x right, y forward, z up. Never model input.
        "situation_pose": Array2D((4, 4), "float64"),
        "answers": List(Value("string")),  # empty where the split has no labels, and for actions
        "question_type": Value("string"),
        "action": Value("string"),  # one of ACTIONS; null for questions
        "targets": List(TARGET_FEATURE),  # what the action places; for questions the boxes asked about, if known
        "anchor_frame_id": Value("string"),  # the frame a view-relative instruction calls the first camera
    }
)


LABEL_FEATURES = Features(
    {
        "scene_id": Value("string"),
        "instances": List(Image()),  # 8-bit PNG a view: 0 = nothing, i = things[i - 1]
        "things": List(
            {
                "label": Value("string"),
                "kind": Value("string"),  # one of TARGET_KINDS; null = a surface without a box
                "color": Value("string"),  # null = none dominates
                "center": List(Value("float64")),  # as in TARGET_FEATURE; empty without a box
                "size": List(Value("float64")),
                "axes": List(Value("float64")),  # the nine numbers row by row
            }
        ),
    }
)
"""Dense labels, for training alone."""

TABLE_FEATURES = {"scenes": SCENE_FEATURES, "samples": SAMPLE_FEATURES, "labels": LABEL_FEATURES}


class RowError(ValueError):
    """A row that breaks the schema. The message lists every fault of the row, each with its key."""


class NotADatasetError(FileNotFoundError):
    """A folder without a manifest: not a dataset, or a build that was interrupted."""


def question_type(question: str) -> str:
    """Return SQA3D's type of a question: its lower-cased first word if that is one of QUESTION_TYPES, else "others"."""
    words = question.lower().split()
    return words[0] if words and words[0] in QUESTION_TYPES else "others"


# ---------------------------------------------------------------------------------------------------------------- rows


def validate_scene(row: Mapping[str, Any]) -> None:
    """Raise RowError unless `row` is a sound row of SCENE_FEATURES (images may be dicts, PIL images or arrays)."""
    faults = _key_faults(row, SCENE_FEATURES)
    if not faults:
        faults += [fault for key in ("scene_id", "room_id", "source") for fault in _id_faults(key, row[key])]
        faults += _view_faults(row)
        faults += _matrices_faults("intrinsics", row["intrinsics"], _intrinsics_fault)
        faults += _matrices_faults("world_from_cam", row["world_from_cam"], _rigid_fault)
        if row["world_from_source"] is not None:
            faults += _matrices_faults("world_from_source", [row["world_from_source"]], _similarity_fault)
    _raise_faults("scene", row.get("scene_id"), faults)


def validate_sample(row: Mapping[str, Any], *, labelled: bool = True) -> None:
    """Raise RowError unless `row` is a sound row of SAMPLE_FEATURES.

    `labelled` says whether the row's split has labels: then a question needs answers and an action needs targets.
    """
    faults = _key_faults(row, SAMPLE_FEATURES)
    if not faults:
        faults += [fault for key in ("sample_id", "scene_id") for fault in _id_faults(key, row[key])]
        faults += _text_faults(row)
        faults += _task_faults(row, labelled)
        if row["situation_pose"] is not None:
            faults += _matrices_faults("situation_pose", [row["situation_pose"]], _rigid_fault)
        for index, target in enumerate(row["targets"]):
            faults += [f"targets[{index}]: {fault}" for fault in target_faults(target)]
    _raise_faults("sample", row.get("sample_id"), faults)


def target_faults(target: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with one target {label, kind, center [3], size [3], axes [3, 3]}, empty if nothing is."""
    missing = [key for key in TARGET_FEATURE if target.get(key) is None]
    if missing:
        return [f"lacks {', '.join(missing)}"]
    faults = [] if str(target["label"]).strip() else ["label is empty"]
    if target["kind"] not in TARGET_KINDS:
        faults.append(f"kind is {target['kind']!r}, wanted one of {', '.join(TARGET_KINDS)}")
    center, size, axes = (np.asarray(target[key], dtype=np.float64) for key in ("center", "size", "axes"))
    if center.shape != (3,) or not np.isfinite(center).all():
        faults.append(f"center is {target['center']}, wanted 3 finite numbers")
    if size.shape != (3,) or not np.isfinite(size).all() or (size < 0).any():
        faults.append(f"size is {target['size']}, wanted 3 finite extents of at least 0 m")
    elif (size == 0).any() and target["kind"] != "plane":
        faults.append(f"size is {target['size']}: only a plane may have an extent of 0")
    if axes.shape != (3, 3) or not np.allclose(axes @ axes.T, np.eye(3), atol=_RIGID_TOLERANCE):
        faults.append("axes: rows are not orthonormal")
    elif not np.allclose(axes[2], (0, 0, 1), atol=_RIGID_TOLERANCE):
        faults.append(f"axes: row 2 is {axes[2].round(4).tolist()}, wanted the vertical [0, 0, 1]")
    return faults


def _raise_faults(what: str, row_id: object, faults: list[str]) -> None:
    if faults:
        raise RowError(f"{what} {row_id!r}: " + "; ".join(faults))


def _key_faults(row: Mapping[str, Any], features: Features) -> list[str]:
    missing = sorted(set(features) - set(row))
    unknown = sorted(set(row) - set(features))
    faults = [f"lacks the key {key}" for key in missing]
    return faults + [f"has the unknown key {key}; known: {', '.join(features)}" for key in unknown]


def _id_faults(key: str, value: object) -> list[str]:
    if not isinstance(value, str) or not value or any(character.isspace() for character in value):
        return [f"{key} is {value!r}, wanted a non-empty string without spaces"]
    return []


def _view_faults(row: Mapping[str, Any]) -> list[str]:
    frame_ids = row["frame_ids"]
    if not frame_ids:
        return ["frame_ids is empty: a scene needs at least one view"]
    faults = [fault for index, frame in enumerate(frame_ids) for fault in _id_faults(f"frame_ids[{index}]", frame)]
    if len(set(frame_ids)) != len(frame_ids):
        faults.append("frame_ids repeats an id")
    for key in ("images", "intrinsics", "world_from_cam", "depth"):
        if row[key] is None and key != "images":
            continue
        count = len(row[key] or [])
        if count != len(frame_ids):
            faults.append(f"{key} has {count} entries for {len(frame_ids)} frame_ids")
    if (row["intrinsics"] is None) != (row["world_from_cam"] is None):
        faults.append("intrinsics and world_from_cam: one is null and the other is not; cameras need both")
    if row["depth"] is not None and row["intrinsics"] is None:
        faults.append("depth without intrinsics cannot be back-projected; store null")
    return faults


def _text_faults(row: Mapping[str, Any]) -> list[str]:
    faults = []
    for key in ("question", "question_type"):
        if not isinstance(row[key], str) or not row[key].strip():
            faults.append(f"{key} is {row[key]!r}, wanted text")
    if row["situation"] is not None and not str(row["situation"]).strip():
        faults.append("situation is blank; store null for a question without one")
    if row["situation_pose"] is not None and row["situation"] is None:
        faults.append("situation_pose without a situation")
    if row["anchor_frame_id"] is not None:
        faults += _id_faults("anchor_frame_id", row["anchor_frame_id"])
    blank = [answer for answer in row["answers"] if not isinstance(answer, str) or not answer.strip()]
    return faults + [f"answers holds {answer!r}, wanted text" for answer in blank]


def _task_faults(row: Mapping[str, Any], labelled: bool) -> list[str]:
    task, action, count = row["task"], row["action"], len(row["targets"])
    if task not in TASKS:
        return [f"task is {task!r}, wanted one of {', '.join(TASKS)}"]
    if task in QA_TASKS:
        faults = [] if action is None else [f"action is {action!r} in the question task {task}, wanted null"]
        return faults + (["answers is empty in a labelled split"] if labelled and not row["answers"] else [])
    if action not in ACTIONS:
        return [f"action is {action!r} in the task {task}, wanted one of {', '.join(ACTIONS)}"]
    most = 1 if action == "place_anchor" else MAX_ANCHORS
    if count > most or (labelled and count == 0):
        return [f"targets has {count} entries for {action}, wanted {'1' if most == 1 else f'1 to {most}'}"]
    return []


def _matrices_faults(key: str, matrices: Iterable[Any] | None, fault_of: Callable[[np.ndarray], str]) -> list[str]:
    faults = []
    for index, matrix in enumerate(matrices or []):
        fault = fault_of(np.asarray(matrix, dtype=np.float64))
        if fault:
            faults.append(f"{key}[{index}] {fault}")
    return faults


def _intrinsics_fault(matrix: np.ndarray) -> str:
    if matrix.shape != (3, 3):
        return f"has shape {matrix.shape}, wanted (3, 3)"
    if not np.isfinite(matrix).all():
        return "has a value that is not finite"
    if (
        matrix[0, 0] <= 0
        or matrix[1, 1] <= 0
        or not np.allclose(matrix[[0, 1, 2, 2, 2], [1, 0, 0, 1, 2]], (0, 0, 0, 0, 1))
    ):
        return f"is {matrix.tolist()}, wanted [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with positive fx and fy"
    return ""


def _similarity_fault(matrix: np.ndarray) -> str:
    if matrix.shape != (4, 4):
        return f"has shape {matrix.shape}, wanted (4, 4)"
    if not np.isfinite(matrix).all():
        return "has a value that is not finite"
    if not np.allclose(matrix[3], (0, 0, 0, 1)):
        return f"has the last row {matrix[3].tolist()}, wanted [0, 0, 0, 1]"
    scale = np.cbrt(np.linalg.det(matrix[:3, :3]))
    if scale <= 0 or not np.allclose(matrix[:3, :3] @ matrix[:3, :3].T, scale**2 * np.eye(3), atol=_RIGID_TOLERANCE):
        return "is not a rotation (times a scale)"
    return ""


def _rigid_fault(matrix: np.ndarray) -> str:
    fault = _similarity_fault(matrix)
    if not fault and abs(np.linalg.det(matrix[:3, :3]) - 1) > _RIGID_TOLERANCE:
        fault = f"is not rigid: its determinant is {np.linalg.det(matrix[:3, :3]):.4f}, wanted 1"
    return fault


# ------------------------------------------------------------------------------------------------------------ manifest


@dataclass(frozen=True)
class Manifest:
    """What a dataset folder holds and what it was made from.

    counts: table ("scenes" or "samples") -> split -> source -> number of rows. options: source -> the build's options.
    source_files: source -> file name -> sha256 of what was read (for procedural rooms: the generator's own code).
    fingerprint: sha256 over every Arrow file of both tables.
    """

    schema_version: int
    counts: dict[str, dict[str, dict[str, int]]]
    options: dict[str, dict[str, Any]]
    source_files: dict[str, dict[str, str]]
    fingerprint: str


def read_manifest(root: str | os.PathLike[str]) -> Manifest:
    """Return the manifest of the dataset folder `root`.

    Raises NotADatasetError when there is none and ValueError when it is damaged or of another schema version.
    """
    path = Path(root) / MANIFEST_NAME
    if not path.is_file():
        raise NotADatasetError(
            f"{root} is not a dataset: it has no {MANIFEST_NAME}, which a build writes last. "
            f"Build it (again) with: python -m datasets_scripts.build --output {root}"
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields["schema_version"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): build the dataset again") from error
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema version {version}, this code reads {SCHEMA_VERSION}: build it again")
    wanted = set(Manifest.__dataclass_fields__)
    if set(fields) != wanted:
        raise ValueError(f"{path} has the keys {sorted(fields)}, wanted {sorted(wanted)}: build the dataset again")
    return Manifest(**fields)


def write_manifest(
    root: str | os.PathLike[str],
    *,
    counts: dict[str, dict[str, dict[str, int]]],
    options: dict[str, dict[str, Any]],
    source_files: dict[str, dict[str, str]],
) -> Manifest:
    """Write `<root>/manifest.json` in one step, after every table is on disk, and return it."""
    manifest = Manifest(SCHEMA_VERSION, counts, options, source_files, dataset_fingerprint(root))
    path = Path(root) / MANIFEST_NAME
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(asdict(manifest), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)
    return manifest


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file's bytes in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dataset_fingerprint(root: str | os.PathLike[str]) -> str:
    """Return the sha256 over the relative paths and bytes of every Arrow file under `root`, in sorted order."""
    digest = hashlib.sha256()
    for path in sorted(Path(root).rglob("*.arrow")):
        digest.update(f"{path.relative_to(root).as_posix()} {file_sha256(path)}\n".encode())
    return digest.hexdigest()
