"""What a visitor shows: photographs, a short video or an example room; limited in number, bytes, pixels, seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

NUM_VIEWS = 8
MAX_PHOTOGRAPHS = 16
MAX_FILE_MB = 50
MAX_PIXELS = 50_000_000
MAX_VIDEO_S = 60.0
KEPT_SIDE = 1024
PHOTOGRAPH_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
PHOTOGRAPH_FORMATS = ("JPEG", "PNG", "WEBP")
VIDEO_FORMATS = {".mp4": "mp4", ".mov": "mov", ".webm": "webm", ".mkv": "matroska"}
"""Suffix -> the only reader that is tried: some others, such as those of playlists, open files that a file names."""

VIDEO_SUFFIXES = tuple(VIDEO_FORMATS)
MILLIMETRES = 1000.0
EXAMPLES = Path(__file__).with_name("examples")


class UploadError(ValueError):
    """An upload that cannot be used; the message is for the visitor."""


@dataclass(frozen=True, eq=False)
class Room:
    """Views of one room.

    Attributes:
        name: for the visitor.
        views: upright, at most KEPT_SIDE pixels long.
        intrinsics, world_from_cam: [V, 3, 3] pixels of the views, [V, 4, 4] metres with Z up; None = unknown.
        depth: a map [H, W] in metres a view, 0 = invalid; None = unknown.
    """

    name: str
    views: list[Image.Image]
    intrinsics: NDArray[np.float64] | None = None
    world_from_cam: NDArray[np.float64] | None = None
    depth: list[NDArray[np.float32]] | None = None

    @property
    def has_cameras(self) -> bool:
        """Whether places can be told in metres."""
        return self.world_from_cam is not None


def read_upload(paths: Sequence[str | Path]) -> Room:
    """The views of uploaded photographs, or frames spread over one video; at most NUM_VIEWS of them.

    Raises:
        UploadError: nothing, too much, or what is no photograph or video.
    """
    files = [Path(path) for path in paths]
    if not files:
        raise UploadError("Nothing was uploaded.")
    for file in files:
        if file.stat().st_size > MAX_FILE_MB * 2**20:
            raise UploadError(f"{file.name} is larger than {MAX_FILE_MB} MB.")
    videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    if videos:
        if len(files) > 1:
            raise UploadError("Please upload photographs, or one video, not both.")
        return Room(videos[0].name, read_video(videos[0]))
    if len(files) > MAX_PHOTOGRAPHS:
        raise UploadError(f"{len(files)} photographs are too many: {MAX_PHOTOGRAPHS} at most.")
    chosen = [files[index * len(files) // min(len(files), NUM_VIEWS)] for index in range(min(len(files), NUM_VIEWS))]
    return Room("your photographs", [read_photograph(file) for file in chosen])


def read_photograph(path: Path) -> Image.Image:
    """A photograph, upright and of a moderate size.

    Raises:
        UploadError: it is none, or has too many pixels.
    """
    if path.suffix.lower() not in PHOTOGRAPH_SUFFIXES:
        raise UploadError(f"{path.name} is no photograph: {', '.join(PHOTOGRAPH_SUFFIXES)} are understood.")
    try:
        with Image.open(path, formats=PHOTOGRAPH_FORMATS) as image:
            _check_pixels(path.name, *image.size)
            return _kept(ImageOps.exif_transpose(image).convert("RGB"))
    except UploadError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UploadError(f"{path.name} cannot be read as a photograph.") from error


def read_video(path: Path) -> list[Image.Image]:
    """NUM_VIEWS frames spread evenly over a video.

    Raises:
        UploadError: it is none, too long or too large.
    """
    try:
        with av.open(str(path), format=VIDEO_FORMATS[path.suffix.lower()]) as container:
            if not container.streams.video:
                raise UploadError(f"{path.name} holds no pictures.")
            stream = container.streams.video[0]
            _check_pixels(path.name, stream.width, stream.height)
            seconds = float(container.duration or 0) / av.time_base or _last_moment(container, stream)
            if seconds > MAX_VIDEO_S:
                raise UploadError(f"{path.name} lasts {seconds:.0f} s: {MAX_VIDEO_S:.0f} s at most.")
            frames = _spread_frames(container, stream, seconds)
    except FFmpegError as error:
        raise UploadError(f"{path.name} cannot be read as a video.") from error
    if not frames:
        raise UploadError(f"{path.name} holds no pictures.")
    return frames


def read_example(name: str) -> Room:
    """One of the rooms that come along, with cameras and depth.

    Raises:
        UploadError: there is none of this name, which a visitor's program may make up.
    """
    if name not in example_names():
        raise UploadError("There is no example room of this name.")
    folder = EXAMPLES / name
    cameras = json.loads((folder / "cameras.json").read_text(encoding="utf-8"))
    count = len(cameras["intrinsics"])
    views = [Image.open(folder / "views" / f"{index}.jpg").convert("RGB") for index in range(count)]
    maps = [Image.open(folder / "depth" / f"{index}.png") for index in range(count)]
    depth = [np.asarray(image) / np.float32(MILLIMETRES) for image in maps]
    return Room(name, views, np.array(cameras["intrinsics"]), np.array(cameras["world_from_cam"]), depth)


def example_names() -> list[str]:
    """Names of the rooms that come along."""
    return sorted(path.parent.name for path in EXAMPLES.glob("*/cameras.json"))


def _last_moment(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Seconds until the last picture, for a file that does not tell its length, as browsers record them."""
    moments = [packet.pts * packet.time_base for packet in container.demux(stream) if packet.pts is not None]
    container.seek(0)
    return float(max(moments, default=0))


def _spread_frames(container: av.container.InputContainer, stream: av.VideoStream, seconds: float) -> list[Image.Image]:
    """The first frame at or after each of NUM_VIEWS evenly spaced moments."""
    moments = [seconds * index / NUM_VIEWS for index in range(NUM_VIEWS)]
    frames: list[Image.Image] = []
    for frame in container.decode(stream):
        if (frame.time or 0.0) >= MAX_VIDEO_S or len(frames) == NUM_VIEWS:
            break
        if (frame.time or 0.0) >= moments[len(frames)]:
            frames.append(_kept(frame.to_image()))
    return frames


def _check_pixels(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UploadError(f"{name} has {width} x {height} pixels: {MAX_PIXELS // 1_000_000} million at most.")


def _kept(image: Image.Image) -> Image.Image:
    image.thumbnail((KEPT_SIDE, KEPT_SIDE), Image.Resampling.LANCZOS)
    return image
