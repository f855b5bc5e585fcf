"""What every reader of real scenes gives: frames with cameras, their photographs and depth read one at a time.

A reader lists the frames of a scene cheaply (cameras, sizes), so that views can be chosen before anything is decoded.
Raw data is never trusted: what is missing, damaged or of another shape raises SourceError with the file's name, and
`Skips` decides whether that stops the build (strict) or is counted and left out.
"""

import hashlib
import io
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from processing.geometry_vggt_qwen3 import resize_intrinsics

MAX_PIXELS = 64_000_000
MAX_JSON_BYTES = 1 << 30
JPEG_QUALITY = 95
ASPECT_TOLERANCE = 0.02
INVALID_DEPTH = 65535
MIN_CONFIDENCE = 2
EXAMPLES_KEPT = 3

Float = NDArray[np.float64]
Depth = NDArray[np.uint16]
Row = dict[str, Any]
Json = TypeVar("Json")


class SourceError(ValueError):
    """Raw data that is missing, damaged or of another shape than its format says; the message names the file."""


class Skips:
    """What was left out and why. `strict` turns every fault into an error; what is normal is counted either way."""

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def skip(self, reason: str, what: str, count: int = 1) -> None:
        """Counts something that a sound dataset also holds, such as a frame whose tracking was lost."""
        if count:
            self.counts[reason] = self.counts.get(reason, 0) + count
            examples = self.examples.setdefault(reason, [])
            if len(examples) < EXAMPLES_KEPT:
                examples.append(what)

    def fault(self, reason: str, error: Exception) -> None:
        """Counts damaged data, or raises `error` when strict."""
        if self.strict:
            raise error
        self.skip(reason, str(error))

    def merge(self, other: "Skips") -> None:
        for reason, count in other.counts.items():
            examples = other.examples[reason]
            self.skip(reason, examples[0], count)
            kept = self.examples[reason]
            kept.extend(examples[1 : 1 + EXAMPLES_KEPT - len(kept)])

    @classmethod
    def from_json(cls, report: dict[str, Any]) -> "Skips":
        """The inverse of `as_json`."""
        skips = cls()
        skips.counts = {reason: found["count"] for reason, found in report.items()}
        skips.examples = {reason: list(found["examples"]) for reason, found in report.items()}
        return skips

    def as_json(self) -> dict[str, Any]:
        return {key: {"count": self.counts[key], "examples": self.examples[key]} for key in sorted(self.counts)}


@dataclass(frozen=True)
class Frame:
    """One photograph of a capture, not yet decoded.

    `size` (width, height) and `intrinsics` [3, 3] are those of the upright photograph, `world_from_cam` [4, 4] the
    upright camera in metres, Z up (both None where unknown). `quarter_turns` clockwise make the stored photograph
    upright.
    """

    frame_id: str
    size: tuple[int, int]
    intrinsics: Float | None = None
    world_from_cam: Float | None = None
    quarter_turns: int = 0


@dataclass(kw_only=True)
class Capture(ABC):
    """The frames of one scene. `targets` are its known boxes, as the schema stores them."""

    scene_id: str
    room_id: str
    source: str
    frames: list[Frame]
    skips: Skips
    world_from_source: Float | None = None
    targets: list[Row] = field(default_factory=list)

    @abstractmethod
    def photograph(self, index: int) -> bytes:
        """The encoded photograph of a frame, as stored. Raises SourceError."""

    @abstractmethod
    def depth_mm(self, index: int) -> Depth | None:
        """Depth [H, W] in millimetres over the upright photograph, 0 = invalid; None without. Raises SourceError."""

    def place(self, index: int) -> str:
        """What errors call a frame."""
        return f"{self.source} {self.scene_id}, frame {self.frames[index].frame_id}"

    @property
    def has_cameras(self) -> bool:
        return self.frames[0].world_from_cam is not None


@dataclass(kw_only=True)
class FileCapture(Capture):
    """Frames that lie as single files: `paths` of photograph, depth map and confidence map (0 to 2) of each frame."""

    paths: list[tuple[Path, Path | None, Path | None]]

    def photograph(self, index: int) -> bytes:
        return read_file(self.paths[index][0])

    def depth_mm(self, index: int) -> Depth | None:
        _, path, confidence_path = self.paths[index]
        if path is None:
            return None
        depth = decode_depth(read_file(path), str(path))
        if confidence_path is not None:
            confidence = decode_confidence(read_file(confidence_path), str(confidence_path))
            if confidence.shape != depth.shape:
                raise SourceError(f"{confidence_path} has shape {confidence.shape}, its depth map {depth.shape}")
            depth = np.where(confidence >= MIN_CONFIDENCE, depth, 0).astype(np.uint16)
        return np.ascontiguousarray(np.rot90(depth, -self.frames[index].quarter_turns))


# ---------------------------------------------------------------------------------------------------- files and shapes


def read_file(path: Path) -> bytes:
    """Raises SourceError where the file is not there or cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from error


def read_json(path: Path) -> Any:
    """Raises SourceError where the file is missing, huge, or no JSON."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise SourceError(f"{path}: {path.stat().st_size >> 20} MiB of JSON, wanted at most {MAX_JSON_BYTES >> 20}")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path} is no JSON: {error}") from error


def read_records(path: Path) -> Iterator[tuple[str, Any]]:
    """The records of a .jsonl file, or of a .json list, each with its place. Raises SourceError for what is no JSON."""
    text = read_file(path).decode("utf-8", "replace")
    if text.lstrip().startswith("["):
        try:
            listed = checked(json.loads(text), list, str(path))
        except ValueError as error:
            raise SourceError(f"{path} is no JSON: {error}") from error
        yield from ((f"{path}[{index}]", record) for index, record in enumerate(listed))
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield f"{path}, line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SourceError(f"{path}, line {number} is no JSON: {error}") from error


def key_of(record: Any, key: str, wanted: type[Json], where: str) -> Json:
    """The value of a key, checked. Raises SourceError naming the place, the key, and what was found."""
    if not isinstance(record, dict):
        raise SourceError(f"{where} is {_shown(record)}, wanted an object with the key {key}")
    if key not in record:
        raise SourceError(f"{where} lacks the key {key}; it has {', '.join(sorted(record)) or 'none'}")
    return checked(record[key], wanted, f"{where}, {key}")


def checked(value: Any, wanted: type[Json], where: str) -> Json:
    """The value, if it is of the type wanted. Raises SourceError."""
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise SourceError(f"{where} is {_shown(value)}, wanted {wanted.__name__}")
    return value


def numbers(value: Any, shape: tuple[int, ...], where: str) -> Float:
    """A list of numbers as float64 of a shape, all finite. Raises SourceError."""
    try:
        array = np.asarray(value, dtype=np.float64).reshape(shape)
    except (TypeError, ValueError, OverflowError) as error:
        raise SourceError(f"{where} is {_shown(value)}, wanted {'x'.join(map(str, shape))} numbers") from error
    if not np.isfinite(array).all():
        raise SourceError(f"{where} is {_shown(value)}, wanted finite numbers")
    return array


def read_matrix(path: Path, *, finite: bool = True) -> Float:
    """The rows of numbers of a text file. Raises SourceError."""
    try:
        rows = [[float(word) for word in line.split()] for line in read_file(path).decode("ascii").splitlines()]
        matrix = np.array([row for row in rows if row], dtype=np.float64)
    except ValueError as error:
        raise SourceError(f"{path} is no matrix of numbers: {error}") from error
    if matrix.ndim != 2 or (finite and not np.isfinite(matrix).all()):
        raise SourceError(f"{path} holds {matrix.tolist()}, wanted rows of finite numbers")
    return matrix


def inside(root: Path, relative: str) -> Path:
    """A path below `root`. Raises SourceError for one that climbs out of it or is absolute."""
    path = (root / relative).resolve()
    if "\0" in relative or not path.is_relative_to(root.resolve()):
        raise SourceError(f"the path {relative!r} leads out of {root}: refused")
    return path


def sound(check: Callable[..., Float], value: Any, where: str, *more: Any) -> Float:
    """Runs a validator of processing.geometry_vggt_qwen3 and turns its ValueError into a SourceError."""
    try:
        return check(value, where, *more)
    except ValueError as error:
        raise SourceError(str(error)) from error


def scene_seed(scene_id: str, seed: int) -> list[int]:
    """Entropy of everything drawn for one scene."""
    return [seed, zlib.crc32(scene_id.encode())]


# ---------------------------------------------------------------------------------------------- photographs and depth


def open_image(data: bytes, where: str) -> Image.Image:
    """An image whose header was read and whose size is sane, not yet decoded. Raises SourceError."""
    try:
        image = Image.open(io.BytesIO(data))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SourceError(f"{where}: no readable image ({error})") from error
    if image.width * image.height > MAX_PIXELS:
        raise SourceError(f"{where}: {image.width}x{image.height} pixels, wanted at most {MAX_PIXELS:,}")
    return image


def decode_image(data: bytes, where: str, *, least_side: int = 0) -> Image.Image:
    """The RGB image; a JPEG may come smaller, but no side under `least_side` (0 = full size). Raises SourceError."""
    image = open_image(data, where)
    try:
        if least_side:
            image.draft("RGB", (least_side, least_side))
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise SourceError(f"{where}: the image is damaged ({error})") from error


def decode_depth(data: bytes, where: str) -> Depth:
    """Depth [H, W] in millimetres from a 16-bit PNG, 65535 made invalid. Raises SourceError."""
    image = open_image(data, where)
    if not image.mode.startswith("I"):
        raise SourceError(f"{where}: depth has the pixel mode {image.mode}, wanted 16-bit grey millimetres")
    try:
        millimetres = np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise SourceError(f"{where}: the depth map is damaged ({error})") from error
    return np.where((millimetres < 0) | (millimetres >= INVALID_DEPTH), 0, millimetres).astype(np.uint16)


def decode_confidence(data: bytes, where: str) -> NDArray[Any]:
    """ARKit's confidence map [H, W], 0 to 2. Raises SourceError."""
    image = open_image(data, where)
    try:
        confidence = np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise SourceError(f"{where}: the confidence map is damaged ({error})") from error
    if confidence.ndim != 2:
        raise SourceError(f"{where} has the pixel mode {image.mode}, wanted grey values 0 to 2")
    return confidence


def encode_photograph(data: bytes, quarter_turns: int, max_side: int, where: str) -> tuple[bytes, tuple[int, int]]:
    """JPEG bytes and (width, height) of the upright photograph, at most `max_side` pixels long (0 = as it is).

    A JPEG that needs neither turning nor resizing keeps its bytes. Orientation tags are ignored: the cameras of these
    datasets speak of the pixels as stored. Raises SourceError for an image that does not decode to its end.
    """
    header = open_image(data, where)
    width, height = header.size if quarter_turns % 2 == 0 else header.size[::-1]
    scale = min(1.0, max_side / max(width, height)) if max_side else 1.0
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    plain = header.format == "JPEG" and header.mode == "RGB" and header.getexif().get(0x0112, 1) == 1
    image = decode_image(data, where, least_side=max(size) if scale < 1 else 0)
    if plain and scale == 1 and quarter_turns % 4 == 0:
        return data, size
    if quarter_turns % 4:
        turn = {1: Image.Transpose.ROTATE_270, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_90}
        image = image.transpose(turn[quarter_turns % 4])
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue(), size


def encode_depth(depth: Depth, max_side: int) -> bytes:
    """16-bit PNG of a depth map, at most `max_side` pixels long (0 = as it is), sampled nearest to pixel centres."""
    height, width = depth.shape
    scale = min(1.0, max_side / max(width, height)) if max_side else 1.0
    rows = ((np.arange(max(1, round(height * scale))) + 0.5) * height / max(1, round(height * scale))).astype(np.int64)
    columns = ((np.arange(max(1, round(width * scale))) + 0.5) * width / max(1, round(width * scale))).astype(np.int64)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(depth[rows[:, None], columns])).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def check_aspect(depth: Depth, size: tuple[int, int], where: str) -> Depth:
    """The depth map, if it covers the field of view of a photograph of `size`. Raises SourceError."""
    height, width = depth.shape
    if abs((width / height) / (size[0] / size[1]) - 1) > ASPECT_TOLERANCE:
        raise SourceError(
            f"{where}: depth of {width}x{height} pixels beside a photograph of {size[0]}x{size[1]}: another aspect"
        )
    return depth


# ----------------------------------------------------------------------------------------------------------- scene rows


class FrameError(SourceError):
    """One frame of a capture cannot be read; `index` says which."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def scene_row(capture: Capture, indices: Sequence[int], *, image_side: int, depth_side: int) -> tuple[Row, str]:
    """The row of SCENE_FEATURES that holds these frames of a capture, in this order, and the sha256 of what was read.

    `image_side`, `depth_side`: longest side in pixels of what is stored, 0 = as it is.

    Raises:
        FrameError: for the first frame that cannot be read.
    """
    digest = hashlib.sha256()
    frames = [capture.frames[index] for index in indices]
    images, depths, intrinsics = [], [], []
    for index, frame in zip(indices, frames):
        try:
            jpeg, size, depth = _encoded_view(capture, index, image_side, depth_side, digest)
        except SourceError as error:
            raise FrameError(index, str(error)) from error
        name = f"{capture.scene_id}.{frame.frame_id}"
        images.append({"bytes": jpeg, "path": f"{name}.jpg"})
        depths.append({"bytes": depth, "path": f"{name}.png"})
        if frame.intrinsics is not None:
            scale_x, scale_y = size[0] / frame.size[0], size[1] / frame.size[1]
            intrinsics.append(resize_intrinsics(frame.intrinsics, scale_x, scale_y).tolist())
    known = capture.has_cameras
    row = {
        "scene_id": capture.scene_id,
        "room_id": capture.room_id,
        "source": capture.source,
        "frame_ids": [frame.frame_id for frame in frames],
        "images": images,
        "intrinsics": intrinsics if known else None,
        "world_from_cam": [frame.world_from_cam.tolist() for frame in frames] if known else None,
        "depth": depths if known and all(depth["bytes"] is not None for depth in depths) else None,
        "is_metric": known,
        "is_gravity_aligned": known,
        "world_from_source": capture.world_from_source.tolist() if known else None,
    }
    digest.update(repr((row["intrinsics"], row["world_from_cam"])).encode())
    return row, digest.hexdigest()


def read_view(capture: Capture, index: int) -> tuple[bytes, Depth | None]:
    """The encoded photograph of a frame and its depth, their sizes checked against the camera. Raises SourceError."""
    frame, where = capture.frames[index], capture.place(index)
    photograph, depth = capture.photograph(index), capture.depth_mm(index)
    found = open_image(photograph, where).size
    if (found if frame.quarter_turns % 2 == 0 else found[::-1]) != frame.size:
        raise SourceError(f"{where}: the photograph is {found[0]}x{found[1]}, its camera is stated for {frame.size}")
    return photograph, depth if depth is None else check_aspect(depth, frame.size, where)


def _encoded_view(
    capture: Capture, index: int, image_side: int, depth_side: int, digest: "hashlib._Hash"
) -> tuple[bytes, tuple[int, int], bytes | None]:
    """JPEG bytes, (width, height) and depth PNG (or None) of a frame."""
    frame = capture.frames[index]
    photograph, depth = read_view(capture, index)
    digest.update(photograph)
    jpeg, size = encode_photograph(photograph, frame.quarter_turns, image_side, capture.place(index))
    if depth is None:
        return jpeg, size, None
    digest.update(depth.tobytes())
    return jpeg, size, encode_depth(depth, depth_side)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
