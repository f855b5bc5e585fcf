"""The real datasets as sources of `datasets_scripts.build`: what belongs to which split, and the rows of each scene.

Official splits are kept. A room that stands in training and in a held-out split loses its training questions (counted,
or an error when strict).
"""

import argparse
import io
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from datasets_scripts.arkitscenes import find_arkitscenes, open_arkitscenes
from datasets_scripts.capture import Capture, Row, Skips, SourceError
from datasets_scripts.choose import MILLIMETRES, ViewOptions, chosen_row
from datasets_scripts.instructions import View, action_samples
from datasets_scripts.legacy_jsonl import LegacyRow, index_official, open_legacy, read_legacy, repair
from datasets_scripts.photos import parse_gravity
from datasets_scripts.photos_capture import find_photo_scenes, open_photos, read_own_questions
from datasets_scripts.planes import find_planes, open_planes
from datasets_scripts.roomplan_capture import find_roomplan, open_roomplan
from datasets_scripts.scannet import find_scannet, open_scannet, room_of
from datasets_scripts.scanqa import read_scanqa, scanqa_files, split_of
from datasets_scripts.schema import SAMPLE_SPLITS, file_sha256
from datasets_scripts.sqa3d import MeshFrame, Situated, annotations_of, read_mesh_frame, read_sqa3d, sqa3d_files
from datasets_scripts.views import METHODS

MAX_CHUNKS = 1000
JPEG_BYTES_A_PIXEL, PNG_BYTES_A_PIXEL = 0.45, 1.0
LARGEST_SIDE = 1920
ASPECT = 0.75

Question = tuple[str, Any]  # sample split, and a row, a Situated or a LegacyRow


@dataclass(frozen=True)
class SceneWork:
    """One scene to be read: `split` of the scenes table, `place` where it lies, `questions` to be asked about it."""

    scene_id: str
    split: str
    place: Any
    questions: tuple[Question, ...] = ()


@dataclass(frozen=True)
class SceneChunk:
    """The unit of work of one process."""

    works: tuple[SceneWork, ...]

    @property
    def num_scenes(self) -> int:
        """Number of scenes the chunk gives at most."""
        return len(self.works)


@dataclass(frozen=True, kw_only=True)
class CaptureSource(ABC):
    """What all sources of real scenes share. `root` holds the raw data, `skips` what planning left out."""

    root: Path
    views: ViewOptions
    strict: bool = False
    max_scenes: int | None = None

    name: ClassVar[str]
    unlabelled: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def works(self, skips: Skips) -> list[SceneWork]:
        """Every scene to be built, in order. Raises SourceError where there is none."""

    @abstractmethod
    def open(self, work: SceneWork, skips: Skips) -> Capture:
        """The capture of a scene. Raises SourceError."""

    @abstractmethod
    def samples(self, work: SceneWork, capture: Capture, row: Row, skips: Skips) -> Iterator[tuple[str, Row]]:
        """Yield (sample split, row) of a scene whose row is `row`."""

    def options(self) -> dict[str, Any]:
        """Return everything that the rows depend on besides the files and the code."""
        fields = {key: value for key, value in vars(self).items() if key not in ("root", "views")}
        return asdict(self.views) | {key: _plain(value) for key, value in fields.items()}

    def source_files(self) -> dict[str, str]:
        """Return the sha256 of every file that names questions; what is read of a scene is hashed with it."""
        return {}

    def plan(self) -> tuple[list[SceneChunk], Skips]:
        """The work, cut independently of the number of processes, and what was left out in planning."""
        skips = Skips(self.strict)
        works = self.works(skips)[: self.max_scenes]
        if not works:
            raise SourceError(f"{self.root}: no scene is left to build; {_listed(skips) or 'nothing was found'}")
        step = -(-len(works) // MAX_CHUNKS)
        return [SceneChunk(tuple(works[i : i + step])) for i in range(0, len(works), step)], skips

    def estimated_bytes(self, num_scenes: int) -> int:
        """Bytes that the tables of so many scenes take at most, roughly."""
        image, depth = (side or LARGEST_SIDE for side in (self.views.image_side, self.views.depth_side))
        a_view = ASPECT * (image**2 * JPEG_BYTES_A_PIXEL + depth**2 * PNG_BYTES_A_PIXEL)
        return int(num_scenes * self.views.num_views * a_view)

    def rows(self, chunk: SceneChunk) -> Iterator[tuple[str, Row]]:
        """Yield ("scenes/<split>" or "samples/<split>", row), a scene before its samples; at last ("report", …)."""
        skips, files = Skips(self.strict), {}
        for work in chunk.works:
            try:
                capture = self.open(work, skips)
                row, digest = chosen_row(capture, self.views)
                samples = list(self.samples(work, capture, row, skips))
            except SourceError as error:
                skips.fault("scene unreadable", error)
                continue
            if not samples:
                skips.skip("scene without a question", work.scene_id)
                continue
            files[work.scene_id] = digest
            yield f"scenes/{work.split}", row
            for split, sample in samples:
                yield f"samples/{split}", sample
        yield "report", {"skips": skips.as_json(), "source_files": files}


# --------------------------------------------------------------------------------------- questions about ScanNet scenes


@dataclass(frozen=True, kw_only=True)
class ScanNetSource(CaptureSource):
    """ScanNet scenes with the questions of ScanQA and SQA3D; `qa` are (dataset, split or None, file or folder)."""

    qa: tuple[tuple[str, str | None, Path], ...]
    unaligned: bool = False

    name = "scannet"
    unlabelled = frozenset({"samples/test"})

    def works(self, skips: Skips) -> list[SceneWork]:
        scenes = find_scannet(self.root)
        questions: dict[str, list[Question]] = {}
        for dataset, split, path in _question_files(self.qa):
            for question in _QA_READERS[dataset](path, split, skips):
                row = question.row if isinstance(question, Situated) else question
                questions.setdefault(row["scene_id"], []).append((split, question))
        return works_of(_asked(questions, scenes, self.root, skips), scenes, room_of, skips)

    def open(self, work: SceneWork, skips: Skips) -> Capture:
        return open_scannet(work.place, skips, unaligned=self.unaligned)

    def samples(self, work: SceneWork, capture: Capture, row: Row, skips: Skips) -> Iterator[tuple[str, Row]]:
        mesh = self._mesh_frame(work, capture, skips)
        for split, question in work.questions:
            if not isinstance(question, Situated):
                yield split, question
            elif mesh is None:
                yield split, question.row
            else:
                yield split, question.row | {"situation_pose": mesh.situation_pose(question).tolist()}

    def source_files(self) -> dict[str, str]:
        files = []
        for dataset, _, path in _question_files(self.qa):
            files += [path, annotations_of(path)] if dataset == "sqa3d" else [path]
        return {path.name: file_sha256(path) for path in files}

    def _mesh_frame(self, work: SceneWork, capture: Capture, skips: Skips) -> MeshFrame | None:
        if not any(isinstance(question, Situated) for _, question in work.questions):
            return None
        if work.place.mesh is None:
            skips.skip("situations that cannot be placed: no _vh_clean_2.ply", work.scene_id)
            return None
        try:
            return read_mesh_frame(work.place.mesh, capture.world_from_source)
        except SourceError as error:
            skips.fault("mesh unreadable", error)
            return None


@dataclass(frozen=True, kw_only=True)
class LegacySource(CaptureSource):
    """The predecessor's JSONL files and its bird-view images below `root`; `official` as `qa`, to repair them from."""

    qa: tuple[tuple[str, str | None, Path], ...]
    official: tuple[tuple[str, str | None, Path], ...] = ()

    name = "legacy"

    def works(self, skips: Skips) -> list[SceneWork]:
        official: list[Row] = []
        for dataset, _, path in _question_files(self.official):
            # Read as "val": one row a question, without alternative situations.
            rows = _QA_READERS[dataset](path, "val", skips)
            official += [row.row if isinstance(row, Situated) else row for row in rows]
        questions: dict[str, list[Question]] = {}
        for dataset, split, path in self.qa:
            if dataset != "legacy":
                raise SourceError(
                    f"--qa {dataset}=…: the source legacy reads legacy=FILE.jsonl; did you mean --official?"
                )
            for sample, record in repair(read_legacy(path, skips), index_official(official), skips):
                questions.setdefault(record.scene_id, []).append((split or split_of(path), (sample, record)))
        return works_of(questions, dict.fromkeys(questions), room_of, skips)

    def open(self, work: SceneWork, skips: Skips) -> Capture:
        records: list[LegacyRow] = [record for _, (_, record) in work.questions]
        return open_legacy(work.scene_id, records, self.root, skips)

    def samples(self, work: SceneWork, capture: Capture, row: Row, skips: Skips) -> Iterator[tuple[str, Row]]:
        for split, (sample, _) in work.questions:
            yield split, sample

    def source_files(self) -> dict[str, str]:
        return {path.name: file_sha256(path) for _, _, path in self.qa}


@dataclass(frozen=True, kw_only=True)
class PhotosSource(CaptureSource):
    """Folders of photographs with questions of one's own; `qa` are ("own", split, file)."""

    qa: tuple[tuple[str, str | None, Path], ...]
    gravity: tuple[float, float, float] | None = None
    scale: float | None = None

    name = "photos"

    def works(self, skips: Skips) -> list[SceneWork]:
        scenes = find_photo_scenes(self.root)
        questions: dict[str, list[Question]] = {}
        for dataset, split, path in self.qa:
            if dataset != "own":
                raise SourceError(f"--qa {dataset}=…: the source photos reads own=FILE.jsonl")
            for row in read_own_questions(path, skips):
                questions.setdefault(row["scene_id"], []).append((split or split_of(path), row))
        return works_of(_asked(questions, scenes, self.root, skips), scenes, str, skips)

    def open(self, work: SceneWork, skips: Skips) -> Capture:
        return open_photos(work.place, skips, self.gravity, self.scale)

    def samples(self, work: SceneWork, capture: Capture, row: Row, skips: Skips) -> Iterator[tuple[str, Row]]:
        yield from work.questions

    def source_files(self) -> dict[str, str]:
        return {path.name: file_sha256(path) for _, _, path in self.qa}


# ---------------------------------------------------------------------------------------------- instructions from boxes


@dataclass(frozen=True, kw_only=True)
class BoxSource(CaptureSource):
    """Scenes whose boxes or planes are known: their questions are instructions made from those."""

    def samples(self, work: SceneWork, capture: Capture, row: Row, skips: Skips) -> Iterator[tuple[str, Row]]:
        split = "train" if work.split == "train" else "val"
        for sample in action_samples(work.scene_id, capture.targets, stored_views(row), skips):
            yield split, sample


class ArkitScenesSource(BoxSource):
    """ARKitScenes: Training is train, Validation val."""

    name = "arkitscenes"

    def works(self, skips: Skips) -> list[SceneWork]:
        videos = find_arkitscenes(self.root)
        splits = {video_id: [(video.split, None)] for video_id, video in videos.items()}
        works = works_of(splits, videos, lambda video_id: videos[video_id].room_id, skips)
        return [SceneWork(work.scene_id, work.split, work.place) for work in works]

    def open(self, work: SceneWork, skips: Skips) -> Capture:
        return open_arkitscenes(work.place, skips)


@dataclass(frozen=True, kw_only=True)
class RoomPlanSource(BoxSource):
    """RoomPlan captures with photographs; a share of them, by the hash of their names, is val."""

    val_share: float = 0.1

    name = "roomplan"

    def works(self, skips: Skips) -> list[SceneWork]:
        return _hashed_works(find_roomplan(self.root), self.val_share)

    def open(self, work: SceneWork, skips: Skips) -> Capture:
        return open_roomplan(work.place, skips)


@dataclass(frozen=True, kw_only=True)
class PlanesSource(BoxSource):
    """The predecessor's planes.json and cameras.json; things fall along `gravity` in their frame."""

    gravity: tuple[float, float, float]
    val_share: float = 0.1

    name = "planes"

    def works(self, skips: Skips) -> list[SceneWork]:
        return _hashed_works(find_planes(self.root), self.val_share)

    def open(self, work: SceneWork, skips: Skips) -> Capture:
        return open_planes(work.place, skips, self.gravity)


def stored_views(row: Row) -> list[View]:
    """The views of a scene's row, with depth decoded."""
    stored = []
    for index, frame_id in enumerate(row["frame_ids"]):
        size = Image.open(io.BytesIO(row["images"][index]["bytes"])).size
        depth = None
        if row["depth"] is not None:
            depth = np.asarray(Image.open(io.BytesIO(row["depth"][index]["bytes"]))) / MILLIMETRES
        cameras = (np.asarray(row[key][index], dtype=np.float64) for key in ("intrinsics", "world_from_cam"))
        stored.append(View(frame_id, size, *cameras, depth))
    return stored


# --------------------------------------------------------------------------------------------------- splits and options


def works_of(
    questions: Mapping[str, list[Question]], places: Mapping[str, Any], room: Callable[[str], str], skips: Skips
) -> list[SceneWork]:
    """One work a scene, by scene id. A room that is held out gives no training question."""
    held_out = {room(scene_id) for scene_id, asked in questions.items() if any(split != "train" for split, _ in asked)}
    works = []
    for scene_id in sorted(questions):
        asked = questions[scene_id]
        if room(scene_id) in held_out:
            kept = [question for question in asked if question[0] != "train"]
            if len(kept) < len(asked):
                error = SourceError(f"{scene_id}: training questions about {room(scene_id)}, a room that is held out")
                skips.fault("training scene in a held-out room", error)
            asked = kept
        if asked:
            split = "heldout" if room(scene_id) in held_out else "train"
            works.append(SceneWork(scene_id, split, places[scene_id], tuple(asked)))
    return works


def _asked(
    questions: Mapping[str, list[Question]], scenes: Mapping[str, Any], root: Path, skips: Skips
) -> dict[str, list[Question]]:
    """The questions whose scene is there; the others, and scenes without a question, are counted."""
    for scene_id in sorted(set(questions) - set(scenes)):
        error = SourceError(f"{root} holds no frames of {scene_id}, which {len(questions[scene_id])} ask about")
        skips.fault("scene without frames", error)
    asked = {scene_id: questions[scene_id] for scene_id in scenes if scene_id in questions}
    skips.skip("scene that nothing asks about", str(root), len(scenes) - len(asked))
    return asked


def _hashed_works(places: Mapping[str, Any], val_share: float) -> list[SceneWork]:
    def split(scene_id: str) -> str:
        return "heldout" if zlib.crc32(scene_id.encode()) / 2**32 < val_share else "train"

    return [SceneWork(scene_id, split(scene_id), places[scene_id]) for scene_id in sorted(places)]


def _scanqa(path: Path, split: str, skips: Skips) -> list[Row]:
    return read_scanqa(path, split, skips)


_QA_READERS: dict[str, Callable[[Path, str, Skips], list[Any]]] = {"scanqa": _scanqa, "sqa3d": read_sqa3d}
_QA_FILES = {"scanqa": scanqa_files, "sqa3d": sqa3d_files}


def _question_files(specs: Iterable[tuple[str, str | None, Path]]) -> Iterator[tuple[str, str, Path]]:
    """Each question file with its dataset and split."""
    for dataset, split, path in specs:
        if dataset not in _QA_FILES:
            raise SourceError(f"--qa {dataset}=…: unknown; wanted one of {', '.join(_QA_FILES)}")
        for file in _QA_FILES[dataset](path):
            yield dataset, split or split_of(file), file


def parse_qa(text: str) -> tuple[str, str | None, Path]:
    """NAME=PATH or NAME:SPLIT=PATH. Raises ValueError for anything else."""
    head, separator, path = text.partition("=")
    name, _, split = head.partition(":")
    if not separator or not name or not path or (split and split not in SAMPLE_SPLITS):
        raise ValueError(f"{text!r}: wanted NAME=PATH or NAME:SPLIT=PATH with a split of {', '.join(SAMPLE_SPLITS)}")
    return name, split or None, Path(path)


def add_capture_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the real sources to the build's command line; --seed is shared with the rooms."""
    group = parser.add_argument_group("real scenes")
    group.add_argument("--scan-root", type=Path, help="folder of the raw scenes")
    group.add_argument(
        "--qa", action="append", default=[], metavar="NAME[:SPLIT]=PATH", help="scanqa, sqa3d, own, legacy"
    )
    group.add_argument(
        "--official", action="append", default=[], metavar="NAME=PATH", help="to repair legacy files from"
    )
    group.add_argument("--num-views", type=int, default=ViewOptions.num_views, help="views kept a scene")
    group.add_argument("--select", choices=METHODS, default=ViewOptions.select, help="how views are chosen")
    group.add_argument("--candidates", type=int, default=ViewOptions.candidates, help="frames looked at a scene")
    group.add_argument("--image-side", type=int, default=ViewOptions.image_side, help="longest side, 0 = as it is")
    group.add_argument("--depth-side", type=int, default=ViewOptions.depth_side, help="longest side, 0 = as it is")
    group.add_argument("--max-scenes", type=int, help="build only the first ones")
    group.add_argument("--val-share", type=float, default=0.1, help="share of RoomPlan and planes scenes that is val")
    group.add_argument("--gravity", help="x,y,z in which things fall, for planes and photos")
    group.add_argument("--scale", type=float, help="metres of one unit of the cameras of photos")
    group.add_argument("--unaligned", action="store_true", help="accept ScanNet scenes without <scene>.txt")
    group.add_argument("--strict", action="store_true", help="stop at the first fault instead of counting it")


def capture_source(name: str, args: argparse.Namespace) -> CaptureSource:
    """The source that the command line asks for. Raises ValueError naming every option that is missing or wrong."""
    bounds = {"num_views": (1, 256), "candidates": (1, 4096), "image_side": (0, 8192), "depth_side": (0, 8192)}
    faults = [
        f"--{key.replace('_', '-')} is {getattr(args, key)}, wanted {low} to {high}"
        for key, (low, high) in bounds.items()
        if not low <= getattr(args, key) <= high
    ]
    if args.scan_root is None or not args.scan_root.is_dir():
        faults.append(f"--scan-root is {args.scan_root}, wanted the folder of the raw scenes")
    if args.max_scenes is not None and args.max_scenes < 1:
        faults.append(f"--max-scenes is {args.max_scenes}, wanted at least 1")
    if not 0 <= args.val_share < 1:
        faults.append(f"--val-share is {args.val_share}, wanted 0 to below 1")
    if name in _NEEDS_QA and not args.qa:
        faults.append(f"--source {name} needs --qa, e.g. --qa {_NEEDS_QA[name]}")
    if name == "planes" and args.gravity is None:
        faults.append("--source planes needs --gravity x,y,z: its files do not say which way is down")
    if faults:
        raise ValueError("; ".join(faults))
    views = ViewOptions(args.num_views, args.select, args.candidates, args.image_side, args.depth_side, args.seed)
    shared = {"root": args.scan_root, "views": views, "strict": args.strict, "max_scenes": args.max_scenes}
    qa = tuple(parse_qa(text) for text in args.qa)
    if name == "scannet":
        return ScanNetSource(**shared, qa=qa, unaligned=args.unaligned)
    if name == "legacy":
        return LegacySource(**shared, qa=qa, official=tuple(parse_qa(text) for text in args.official))
    if name == "photos":
        gravity = None if args.gravity is None else tuple(float(value) for value in parse_gravity(args.gravity))
        return PhotosSource(**shared, qa=qa, gravity=gravity, scale=args.scale)
    if name == "planes":
        gravity = tuple(float(value) for value in parse_gravity(args.gravity))
        return PlanesSource(**shared, gravity=gravity, val_share=args.val_share)
    if name == "roomplan":
        return RoomPlanSource(**shared, val_share=args.val_share)
    return ArkitScenesSource(**shared)


CAPTURE_SOURCES = ("scannet", "arkitscenes", "roomplan", "planes", "photos", "legacy")
_NEEDS_QA = {"scannet": "scanqa=ScanQA", "legacy": "legacy=train_split.jsonl", "photos": "own:train=questions.jsonl"}


def _plain(value: Any) -> Any:
    """An option as JSON, without the folders of one machine."""
    if isinstance(value, Path):
        return value.name
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _listed(skips: Skips) -> str:
    return "; ".join(f"{reason}: {count}" for reason, count in skips.counts.items())
