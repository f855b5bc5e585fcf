"""ScanNet's `.sens` files, version 4, little-endian, read frame by frame without ever holding the file in memory.

u32 version, u64 length + sensor name, four 4x4 f32 (K_color, E_color, K_depth, E_depth), i32 colour compression,
i32 depth compression, u32 colour width, height, u32 depth width, height, f32 depth_shift, u64 number of frames;
a frame: 4x4 f32 camera to world, u64 colour time, u64 depth time, u64 colour bytes, u64 depth bytes, both blobs
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from datasets_scripts.capture import MAX_PIXELS, Depth, Float, SourceError

VERSION = 4
COLOR_PNG, COLOR_JPEG = 1, 2
DEPTH_RAW, DEPTH_ZLIB = 0, 1
MAX_NAME = 4096
_FRAME_HEAD = struct.Struct("<16f4Q")
_SIZES = struct.Struct("<2i4IfQ")


@dataclass(frozen=True)
class SensFrame:
    """Where the blobs of one frame lie in the file, and its camera as stored (it may be lost: not finite)."""

    source_from_cam: Float
    color_at: int
    color_bytes: int
    depth_at: int
    depth_bytes: int


@dataclass(frozen=True)
class SensFile:
    """The header and the index of a `.sens` file; blobs are read on demand.

    `is_truncated`: the file ends before the frames its header promises; `frames` holds the whole ones.
    """

    path: Path
    color_intrinsics: Float
    color_extrinsics: Float
    depth_intrinsics: Float
    depth_extrinsics: Float
    color_size: tuple[int, int]
    depth_size: tuple[int, int]
    depth_compression: int
    depth_shift: float
    frames: list[SensFrame]
    num_promised: int

    @property
    def is_truncated(self) -> bool:
        return len(self.frames) < self.num_promised

    def color(self, index: int) -> bytes:
        """The encoded photograph of a frame."""
        frame = self.frames[index]
        return self._blob(frame.color_at, frame.color_bytes)

    def depth_mm(self, index: int) -> Depth:
        """Depth [H, W] in millimetres, 0 = invalid. Raises SourceError for a damaged blob."""
        frame = self.frames[index]
        data = self._blob(frame.depth_at, frame.depth_bytes)
        width, height = self.depth_size
        wanted = 2 * width * height
        if self.depth_compression == DEPTH_ZLIB:
            try:
                data = zlib.decompressobj().decompress(data, wanted + 1)
            except zlib.error as error:
                raise SourceError(f"{self.path}, frame {index}: the depth map is damaged ({error})") from error
        if len(data) != wanted:
            raise SourceError(f"{self.path}, frame {index}: {len(data)} bytes of depth, wanted {wanted}")
        stored = np.frombuffer(data, dtype="<u2").reshape(height, width)
        if self.depth_shift == 1000.0:
            return stored.astype(np.uint16)
        millimetres = np.rint(stored * (1000.0 / self.depth_shift))
        return np.where(millimetres > 65534, 0, millimetres).astype(np.uint16)

    def _blob(self, start: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(length)


def read_sens(path: Path) -> SensFile:
    """Reads the header and walks over the frames.

    Raises:
        SourceError: no such file, another version, compression or size than the format has, or a header cut short.
    """
    try:
        with path.open("rb") as file:
            return _read(file, path)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from error


def _read(file: BinaryIO, path: Path) -> SensFile:
    end = path.stat().st_size
    (version,) = struct.unpack("<I", _take(file, 4, path))
    if version != VERSION:
        raise SourceError(f"{path} has version {version}, wanted {VERSION}: no .sens file, or one of another age")
    (name_length,) = struct.unpack("<Q", _take(file, 8, path))
    if name_length > MAX_NAME:
        raise SourceError(f"{path}: a sensor name of {name_length} bytes, wanted at most {MAX_NAME}: it is damaged")
    _take(file, name_length, path)
    matrices = np.frombuffer(_take(file, 256, path), dtype="<f4").reshape(4, 4, 4).astype(np.float64)
    color, depth, *sizes, shift, count = _SIZES.unpack(_take(file, _SIZES.size, path))
    if color not in (COLOR_PNG, COLOR_JPEG) or depth not in (DEPTH_RAW, DEPTH_ZLIB):
        raise SourceError(f"{path}: colour compression {color} and depth compression {depth}; known are 1, 2 and 0, 1")
    color_size, depth_size = (sizes[0], sizes[1]), (sizes[2], sizes[3])
    for what, (width, height) in (("colour", color_size), ("depth", depth_size)):
        if not 0 < width * height <= MAX_PIXELS:
            raise SourceError(f"{path}: {what} images of {width}x{height} pixels; the file is damaged")
    if not (np.isfinite(shift) and shift > 0):
        raise SourceError(f"{path}: a depth shift of {shift}, wanted a number above 0")
    return SensFile(path, *matrices, color_size, depth_size, depth, shift, _index(file, count, end), count)


def _index(file: BinaryIO, count: int, end: int) -> list[SensFrame]:
    """The frames that lie wholly inside the file."""
    frames: list[SensFrame] = []
    while len(frames) < count:
        head = file.read(_FRAME_HEAD.size)
        if len(head) < _FRAME_HEAD.size:
            break
        *pose, _, _, color_bytes, depth_bytes = _FRAME_HEAD.unpack(head)
        start = file.tell()
        if start + color_bytes + depth_bytes > end:
            break
        matrix = np.array(pose, dtype=np.float64).reshape(4, 4)
        frames.append(SensFrame(matrix, start, color_bytes, start + color_bytes, depth_bytes))
        file.seek(start + color_bytes + depth_bytes)
    return frames


def _take(file: BinaryIO, length: int, path: Path) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise SourceError(f"{path} ends inside its header: the download was cut short")
    return data
