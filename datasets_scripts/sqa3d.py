"""SQA3D: questions asked from a described situation in a ScanNet scene, and where its person stands.

Two files, joined on `question_id`: `..._questions_<split>_...json` and `..._sqa_annotations_<split>_...json`. Positions
count from the centre of the bounding box of the un-aligned mesh `<scene>_vh_clean_2.ply`; forward is local -X.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets_scripts.capture import Float, Row, Skips, SourceError, checked, key_of, numbers, read_json
from datasets_scripts.scannet import room_of
from datasets_scripts.scanqa import qa_row, text_of
from processing.geometry_vggt_qwen3 import transform_points

FLOOR_PERCENTILE = 1.0
QUESTIONS_MARK, ANNOTATIONS_MARK = "_questions_", "_sqa_annotations_"
_PLY_TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
    "int8": "i1",
    "uint8": "u1",
    "int32": "i4",
    "uint32": "u4",
    "float32": "f4",
    "float64": "f8",
}
MAX_PLY_HEADER = 16384


@dataclass(frozen=True)
class Situated:
    """A question's row, and where its person stands in the raw frame: `position` [3] from the mesh centre, `yaw`."""

    row: Row
    position: Float
    yaw: float


@dataclass(frozen=True)
class MeshFrame:
    """What a scene's mesh says of SQA3D's positions: `center` [3] of its bounding box in the raw frame, `floor_z` in
    the aligned world, metres.
    """

    center: Float
    floor_z: float
    world_from_source: Float

    def situation_pose(self, question: Situated) -> Float:
        """world_from_person [4, 4]: origin on the floor, x right, y forward, z up."""
        x, y, _ = transform_points(self.world_from_source, question.position + self.center)
        forward = self.world_from_source[:3, :3] @ [-np.cos(question.yaw), -np.sin(question.yaw), 0.0]
        ahead = np.array([forward[0], forward[1], 0.0]) / np.hypot(forward[0], forward[1])
        matrix = np.eye(4)
        matrix[:3, 0] = [ahead[1], -ahead[0], 0.0]
        matrix[:3, 1] = ahead
        matrix[:3, 3] = [x, y, self.floor_z]
        return matrix


def sqa3d_files(path: Path) -> list[Path]:
    """The question files of a folder (searched below it), or the one file given. Raises SourceError."""
    if path.is_dir():
        found = sorted(path.rglob(f"*{QUESTIONS_MARK}*_scannetv2.json"))
        if not found:
            raise SourceError(f"{path} holds no v1_balanced{QUESTIONS_MARK}*_scannetv2.json")
        return found
    return [path]


def annotations_of(questions: Path) -> Path:
    """The annotation file that belongs to a question file. Raises SourceError for a name without `_questions_`."""
    if QUESTIONS_MARK not in questions.name:
        raise SourceError(f"{questions}: wanted a file named v1_balanced{QUESTIONS_MARK}<split>_scannetv2.json")
    return questions.with_name(questions.name.replace(QUESTIONS_MARK, ANNOTATIONS_MARK))


def read_sqa3d(questions: Path, split: str, skips: Skips) -> list[Situated]:
    """The questions of a file with their annotations, in order; in training again for each alternative situation.

    Raises:
        SourceError: a file that is missing or of another shape.
    """
    path = annotations_of(questions)
    annotations: dict[int, Any] = {}
    for index, record in enumerate(key_of(read_json(path), "annotations", list, str(path))):
        try:
            annotations[key_of(record, "question_id", int, f"{path}, annotations[{index}]")] = record
        except SourceError as error:
            skips.fault("annotation unreadable", error)
    situated: list[Situated] = []
    for index, record in enumerate(key_of(read_json(questions), "questions", list, str(questions))):
        try:
            situated += _situated(record, annotations, split, f"{questions}, questions[{index}]")
        except SourceError as error:
            skips.fault("question unreadable", error)
    return situated


def read_mesh_frame(mesh: Path, world_from_source: Float) -> MeshFrame:
    """Reads the vertices of a scene's mesh. The floor lies at the lowest hundredth of them, so that stray ones do not
    count. Raises SourceError.
    """
    vertices = read_ply_vertices(mesh)
    center = (vertices.max(0) + vertices.min(0)) / 2
    floor = float(np.percentile(transform_points(world_from_source, vertices)[:, 2], FLOOR_PERCENTILE))
    return MeshFrame(center, floor, world_from_source)


def read_ply_vertices(path: Path) -> Float:
    """The vertices [N, 3] of a binary little-endian PLY file. Raises SourceError for any other or a damaged one."""
    try:
        with path.open("rb") as file:
            count, dtype, start = _ply_header(file.read(MAX_PLY_HEADER), path)
            if start + count * dtype.itemsize > path.stat().st_size:
                raise SourceError(f"{path} ends before its {count} vertices: the download was cut short")
            file.seek(start)
            stored = np.frombuffer(file.read(count * dtype.itemsize), dtype=dtype, count=count)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from error
    vertices = np.stack([stored[axis] for axis in "xyz"], axis=-1).astype(np.float64)
    if not len(vertices) or not np.isfinite(vertices).all():
        raise SourceError(f"{path}: {len(vertices)} vertices, wanted at least one and all finite")
    return vertices


def _ply_header(head: bytes, path: Path) -> tuple[int, np.dtype, int]:
    """Number of vertices, their record type, and where they begin."""
    text, mark, _ = head.partition(b"end_header\n")
    lines = text.decode("ascii", "replace").splitlines()
    if not mark or lines[0] != "ply" or "format binary_little_endian 1.0" not in lines:
        raise SourceError(f"{path} is no binary little-endian PLY file")
    elements = [index for index, line in enumerate(lines) if line.startswith("element ")]
    if not elements or not lines[elements[0]].startswith("element vertex "):
        raise SourceError(f"{path}: its first element is not the vertices")
    end = elements[1] if len(elements) > 1 else len(lines)
    words = [line.split() for line in lines[elements[0] + 1 : end] if line.startswith("property ")]
    try:
        count = int(lines[elements[0]].split()[2])
        dtype = np.dtype([(name, "<" + _PLY_TYPES[kind]) for _, kind, name in words])
    except (KeyError, ValueError) as error:
        raise SourceError(f"{path}: a header that cannot be read ({error!r})") from error
    if count < 0 or not set("xyz") <= set(dtype.names or ()):
        raise SourceError(f"{path}: {count} vertices with the properties {dtype.names}, wanted x, y and z")
    return count, dtype, len(text) + len(mark)


def _situated(record: Any, annotations: dict[int, Any], split: str, where: str) -> list[Situated]:
    question_id = key_of(record, "question_id", int, where)
    if question_id not in annotations:
        raise SourceError(f"{where}: no annotation has the question_id {question_id}")
    annotation = annotations[question_id]
    place = f"annotation {question_id}"
    scene_id = text_of(record, "scene_id", where)
    room_of(scene_id, f"{where}, scene_id")
    if annotation.get("scene_id") != scene_id:
        raise SourceError(f"{where} speaks of {scene_id}, its annotation of {annotation.get('scene_id')}")
    answers = [text_of(answer, "answer", place) for answer in key_of(annotation, "answers", list, place)]
    if not answers:
        raise SourceError(f"{place} has no answer")
    position, yaw = _placement(annotation, place)
    situations = [text_of(record, "situation", where)]
    if split == "train":
        others = key_of(record, "alternative_situation", list, where)
        situations += [text for text in (checked(other, str, where).strip() for other in others) if text]
    ids = [f"{question_id}"] + [f"{question_id}/alternative-{i}" for i in range(1, len(situations))]
    question = text_of(record, "question", where)
    rows = [qa_row(i, scene_id, "sqa3d", question, answers, text) for i, text in zip(ids, situations)]
    return [Situated(row, position, yaw) for row in rows]


def _placement(annotation: Any, where: str) -> tuple[Float, float]:
    position = key_of(annotation, "position", dict, where)
    rotation = key_of(annotation, "rotation", dict, where)
    point = numbers([position.get(axis) for axis in "xyz"], (3,), f"{where}, position")
    x, y, z, w = numbers([rotation.get(f"_{axis}") for axis in "xyzw"], (4,), f"{where}, rotation")
    if max(abs(x), abs(y)) > 1e-3 or abs(np.hypot(z, w) - 1) > 1e-3:
        raise SourceError(f"{where}, rotation ({x:g}, {y:g}, {z:g}, {w:g}) is no unit quaternion about Z")
    return point, float(2 * np.arctan2(z, w))
