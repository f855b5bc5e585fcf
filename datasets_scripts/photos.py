"""A folder of photographs, with or without cameras and depth, read as one scene.

    nothing                             cameras unknown
    transforms.json (NeRF tools)        beside the photographs or one folder up; OpenGL axes, turned here; needs `scale`
    <name>.pose.txt or <name>.txt       4x4 camera to world, OpenCV axes, metres unless `scale` says otherwise,
      + camera-intrinsics.txt           3x3 or 4x4; also intrinsics.txt, intrinsic.txt, intrinsic_color.txt
    frame_00000.json of an ARKit app    see arkit_frames.py: metres, upright, nothing to be said
    <name>.depth.png                    (or <name>.png beside a JPEG) depth, 16-bit millimetres, 0 and 65535 = invalid

A photograph is <name>.jpg, .jpeg, .png or .webp, or <name>.color.jpg. Which way is down is never guessed: without
`gravity` cameras count as unknown, and so do those whose unit of length is.
"""

import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from datasets_scripts.arkit_frames import arkit_frames, is_arkit
from datasets_scripts.capture import FileCapture, Skips, encode_photograph, read_view
from datasets_scripts.roomplan import ZUP_FROM_YUP
from processing.depth_vggt_qwen3 import read_depth
from processing.geometry_vggt_qwen3 import validate_intrinsics, validate_world_from_cam

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
JPEG_SUFFIXES = (".jpg", ".jpeg")
INTRINSICS_NAMES = ("camera-intrinsics.txt", "intrinsics.txt", "intrinsic.txt", "intrinsic_color.txt")
TRANSFORMS_NAME = "transforms.json"
DISTORTION_KEYS = ("k1", "k2", "k3", "k4", "p1", "p2")
DISTORTION_SHOWN = 1e-3
INVALID_DEPTH_M = 65.535
CV_FROM_GL_CAM = np.diag([1.0, -1.0, -1.0, 1.0])

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """One camera as its file states it, with OpenCV axes.

    `intrinsics` [3, 3] in pixels of an image of `size` (width, height), or of the photograph if that is None;
    `source_from_cam` [4, 4] in the capture's own frame and unit; `depth`: file of its depth map, or None.
    """

    intrinsics: Float
    source_from_cam: Float
    size: tuple[int, int] | None = None
    depth: Path | None = None


@dataclass(frozen=True)
class PhotoScene:
    """The views of one scene, decoded. World: metres, Z up. Cameras: OpenCV axes, None where unknown.

    `intrinsics` [V, 3, 3] pixels of the photograph, `world_from_cam` [V, 4, 4], `depth` a map [H, W] in metres with
    0 = invalid (or None) a view, `world_from_source` [4, 4] the similarity from the capture's own frame. `notes` say
    what was found and not used.
    """

    frame_ids: list[str]
    images: list[Image.Image]
    intrinsics: Float | None = None
    world_from_cam: Float | None = None
    depth: list[NDArray[np.float32] | None] | None = None
    world_from_source: Float | None = None
    notes: tuple[str, ...] = ()


def read_photos(
    images: str | Path | Sequence[str | Path],
    *,
    cameras: str | Path | None = None,
    gravity: ArrayLike | None = None,
    scale: float | None = None,
    num_views: int | None = None,
) -> PhotoScene:
    """Reads a scene.

    Args:
        images: a folder, or the photographs themselves in the order of the views.
        cameras: `transforms.json` or the folder of pose files; by default looked for beside the photographs.
        gravity: direction [3] in which things fall, in the capture's frame, of any length.
        scale: metres of one unit of the capture's positions.
        num_views: at most so many views, spread evenly over the photographs; None = all.

    Raises:
        FileNotFoundError: no such file or folder, a folder without photographs, named cameras that are not there.
        ValueError: an unreadable photograph or depth map, a camera that is missing, malformed or does not fit, cameras
            that were named but lack `gravity` or `scale`.
    """
    if cameras is None and isinstance(images, str | Path) and is_arkit(Path(images)):
        if gravity is not None or scale is not None:
            raise ValueError(f"{images} has ARKit's cameras, in metres with Y up: leave --gravity and --scale out")
        return _arkit_views(Path(images), num_views)
    paths = find_photos(images)
    paths = paths if num_views is None else _spread(paths, num_views)
    views = PhotoScene([_stem(path) for path in paths], [_open_photo(path) for path in paths])
    source = find_cameras(paths[0].parent) if cameras is None else _existing(cameras)
    if source is None:
        return views
    missing = _unknown_frame(source, gravity, scale)
    if missing and cameras is not None:
        raise ValueError(f"the cameras of {source} cannot be used: {missing}")
    if missing:
        return replace(views, notes=(f"the cameras of {source} count as unknown: {missing}",))
    world_from_source = align_to_gravity(gravity, 1.0 if scale is None else scale)
    views = replace(views, notes=_distortion_note(source))
    return _with_cameras(views, paths, read_cameras(source, paths), world_from_source)


def find_photos(images: str | Path | Sequence[str | Path]) -> list[Path]:
    """The photographs of a folder in natural order (2 before 10), or the files given, checked to be there.

    Raises:
        FileNotFoundError: naming the folder or file.
    """
    given = [Path(images)] if isinstance(images, str | Path) else [Path(path) for path in images]
    if len(given) != 1 or not given[0].is_dir():
        for path in given:
            if not path.is_file():
                raise FileNotFoundError(f"no photograph {path}; give a folder of photographs, or the files themselves")
        return given
    folder = given[0]
    found = sorted((path for path in folder.iterdir() if _is_photo(path)), key=_natural_key)
    if not found and (folder / TRANSFORMS_NAME).is_file():
        found = [_frame_path(folder, frame) for frame in _read_transforms(folder / TRANSFORMS_NAME)["frames"]]
        return find_photos(sorted(found, key=_natural_key))
    if not found:
        raise FileNotFoundError(f"{folder} holds no photograph; wanted files that end in {', '.join(IMAGE_SUFFIXES)}")
    return found


def find_cameras(folder: Path) -> Path | None:
    """Where the cameras of a folder's photographs stand: its `transforms.json`, the one above, itself, or nowhere."""
    for path in (folder / TRANSFORMS_NAME, folder.parent / TRANSFORMS_NAME):
        if path.is_file():
            return path
    return folder if any((folder / name).is_file() for name in INTRINSICS_NAMES) else None


def read_cameras(source: Path, photos: Sequence[Path]) -> list[Camera]:
    """The camera of each photograph.

    Raises:
        FileNotFoundError, ValueError: naming the file, and the photographs that lack a camera.
    """
    find = _cameras_of_transforms(source) if source.is_file() else _cameras_of_text(source)
    cameras = [find(photo) for photo in photos]
    missing = [photo.name for photo, camera in zip(photos, cameras) if camera is None]
    if missing:
        shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise ValueError(
            f"{source} has no camera for {len(missing)} of {len(photos)} photographs ({shown}): "
            "give every photograph its camera, or leave those photographs out"
        )
    return cameras


def align_to_gravity(gravity: ArrayLike, scale: float = 1.0) -> Float:
    """world_from_source [4, 4]: scales to metres and turns, by the smallest angle, so that things fall along -Z.

    Raises:
        ValueError: a direction that is not three finite numbers or has no length; a scale that is not positive.
    """
    down = np.asarray(gravity, dtype=np.float64)
    if down.shape != (3,) or not np.isfinite(down).all() or np.linalg.norm(down) < 1e-6:
        raise ValueError(f"gravity is {np.asarray(gravity).tolist()}, wanted three numbers x,y,z of a direction")
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"scale is {scale}, wanted the metres of one unit, above 0")
    up = -down / np.linalg.norm(down)
    matrix = np.eye(4)
    matrix[:3, :3] = scale * _smallest_rotation_to_z(up)
    return matrix


def parse_gravity(text: str) -> Float:
    """A direction [3] from "x,y,z" or from a text file that holds three numbers.

    Raises:
        ValueError: naming the text.
    """
    numbers = Path(text).read_text(encoding="utf-8") if Path(text).is_file() else text
    try:
        direction = np.array([float(word) for word in re.split(r"[\s,]+", numbers.strip())])
    except ValueError as error:
        raise ValueError(f"gravity is {text!r}, wanted x,y,z or a file that holds three numbers") from error
    if direction.shape != (3,):
        raise ValueError(f"gravity is {text!r}: {direction.size} numbers, wanted three")
    return direction


def read_depth_png(path: Path) -> NDArray[np.float32]:
    """A depth map [H, W] in metres, 0 = invalid.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no image, or holds no 16-bit grey values.
    """
    metres = read_depth(path, f"the depth map {path}")
    return np.where(metres >= INVALID_DEPTH_M, np.float32(0), metres)


# ---------------------------------------------------------------------------------------------------------- photographs


def _is_photo(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES or path.name.startswith(".") or path.stem.endswith(".depth") or not path.is_file():
        return False
    photographs = (path, path.with_name(re.sub(r"^(depth|conf)_", "frame_", path.name)))  # the second is ARKit's
    is_depth = suffix == ".png" and any(p.with_suffix(jpeg).is_file() for p in photographs for jpeg in JPEG_SUFFIXES)
    return not is_depth


def _open_photo(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path}: unreadable photograph ({error}); replace it or leave it out") from error
    return image


def _stem(path: Path) -> str:
    return path.stem.removesuffix(".color")


def _natural_key(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name) if part]


def _spread(views: list[Any], count: int) -> list[Any]:
    if count < 1:
        raise ValueError(f"num_views is {count}; at least one view must be shown")
    count = min(count, len(views))
    return [views[i * len(views) // count] for i in range(count)]


# -------------------------------------------------------------------------------------------------------------- cameras


def _existing(cameras: str | Path) -> Path:
    path = Path(cameras)
    if not path.exists():
        raise FileNotFoundError(f"no cameras {path}; wanted {TRANSFORMS_NAME} or a folder of pose text files")
    return path / TRANSFORMS_NAME if (path / TRANSFORMS_NAME).is_file() else path


def _arkit_views(folder: Path, num_views: int | None) -> PhotoScene:
    skips = Skips()
    frames, paths = arkit_frames(folder, skips)
    chosen = _spread(list(zip(frames, paths)), len(frames) if num_views is None else num_views)
    frames, paths = ([pair[part] for pair in chosen] for part in (0, 1))
    capture = FileCapture(
        scene_id=folder.name, room_id=folder.name, source="arkit", frames=frames, skips=skips, paths=paths
    )
    views = [read_view(capture, index) for index in range(len(frames))]
    upright = [
        encode_photograph(photograph, frame.quarter_turns, 0, capture.place(index))[0]
        for index, (frame, (photograph, _)) in enumerate(zip(frames, views))
    ]
    return PhotoScene(
        [frame.frame_id for frame in frames],
        [Image.open(io.BytesIO(jpeg)) for jpeg in upright],
        intrinsics=np.stack([frame.intrinsics for frame in frames]),
        world_from_cam=np.stack([frame.world_from_cam for frame in frames]),
        depth=None if views[0][1] is None else [depth.astype(np.float32) / 1000 for _, depth in views],
        world_from_source=ZUP_FROM_YUP,
        notes=tuple(f"{count} left out: {reason}" for reason, count in sorted(skips.counts.items())),
    )


def _unknown_frame(source: Path, gravity: ArrayLike | None, scale: float | None) -> str:
    """What is missing to state metres and up, with the way out; empty if nothing is."""
    missing = [] if gravity is not None else ["which way is down (--gravity x,y,z)"]
    if scale is None and source.is_file():
        missing.append("how many metres a unit is (--scale)")
    return f"say {' and '.join(missing)}" if missing else ""


def _with_cameras(views: PhotoScene, paths: list[Path], cameras: list[Camera], world_from_source: Float) -> PhotoScene:
    scale = np.cbrt(np.linalg.det(world_from_source[:3, :3]))
    world_from_cam = np.stack([world_from_source @ camera.source_from_cam for camera in cameras])
    world_from_cam[:, :3, :3] /= scale
    fitted = [_fit_intrinsics(*row) for row in zip(cameras, views.images, paths)]
    has_depth = any(camera.depth for camera in cameras)
    return replace(
        views,
        intrinsics=np.stack(fitted),
        world_from_cam=world_from_cam,
        depth=[read_depth_png(camera.depth) if camera.depth else None for camera in cameras] if has_depth else None,
        world_from_source=world_from_source,
    )


def _fit_intrinsics(camera: Camera, image: Image.Image, path: Path) -> Float:
    """Intrinsics in pixels of the photograph, upright; scaled where the file states them for another size."""
    width, height = ImageOps.exif_transpose(image).size
    intrinsics = camera.intrinsics.copy()
    if camera.size is not None:
        scale_x, scale_y = width / camera.size[0], height / camera.size[1]
        if abs(scale_x / scale_y - 1) > 0.02:
            raise ValueError(
                f"{path}: the photograph is {width}x{height}, its camera is stated for {camera.size[0]}x"
                f"{camera.size[1]}: another aspect, so it was cropped or turned; give the camera of this photograph"
            )
        intrinsics[0] *= scale_x
        intrinsics[1] *= scale_y
    return validate_intrinsics(intrinsics, str(path), (width, height))


def _smallest_rotation_to_z(up: Float) -> Float:
    """The rotation [3, 3] by the smallest angle that takes the unit vector `up` to +Z."""
    z = np.array([0.0, 0.0, 1.0])
    cosine = float(up @ z)
    if cosine < -1 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    x, y, w = np.cross(up, z)
    cross = np.array([[0.0, -w, y], [w, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + cross + cross @ cross / (1 + cosine)


Finder = Callable[[Path], Camera | None]


def _cameras_of_text(folder: Path) -> Finder:
    names = [name for name in INTRINSICS_NAMES if (folder / name).is_file()]
    if not names:
        raise FileNotFoundError(f"{folder} has no intrinsics file; wanted one of {', '.join(INTRINSICS_NAMES)}")
    intrinsics = _intrinsics_of_text(folder / names[0])

    def find(photo: Path) -> Camera | None:
        stem = _stem(photo)
        names = (f"{stem}.pose.txt", f"{stem}.txt")
        poses = [folder / name for name in names if (folder / name).is_file()]
        if not poses:
            return None
        world_from_cam = validate_world_from_cam(_matrix_of_text(poses[0]), str(poses[0]))
        return Camera(intrinsics, world_from_cam, depth=_depth_of(photo))

    return find


def _depth_of(photo: Path) -> Path | None:
    candidates = [photo.with_name(f"{_stem(photo)}.depth.png")]
    if photo.suffix.lower() in JPEG_SUFFIXES:
        candidates.append(photo.with_name(f"{_stem(photo)}.png"))
    return next((path for path in candidates if path.is_file()), None)


def _intrinsics_of_text(path: Path) -> Float:
    matrix = _matrix_of_text(path)
    if matrix.shape == (4, 4):
        matrix = matrix[:3, :3]
    return validate_intrinsics(matrix, str(path))


def _matrix_of_text(path: Path) -> Float:
    try:
        return np.loadtxt(path, dtype=np.float64, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path} is no matrix of numbers: {error}") from error


def _cameras_of_transforms(path: Path) -> Finder:
    transforms = _read_transforms(path)
    by_name: dict[str, dict[str, Any]] = {}
    for frame in transforms["frames"]:
        name = Path(frame["file_path"]).stem
        if name in by_name:
            raise ValueError(f"{path}: two frames are called {name}; rename one, names must be unique")
        by_name[name] = frame

    def find(photo: Path) -> Camera | None:
        frame = by_name.get(photo.stem)
        return None if frame is None else _camera_of_frame(path, {**transforms, **frame}, photo)

    return find


def _read_transforms(path: Path) -> dict[str, Any]:
    try:
        transforms = json.loads(path.read_text(encoding="utf-8"))
        frames = transforms["frames"]
        complete = all({"file_path", "transform_matrix"} <= set(frame) for frame in frames)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}; wanted {{..., frames: [...]}}") from error
    if not complete:
        raise ValueError(f"{path}: every frame needs file_path and transform_matrix")
    model = transforms.get("camera_model", "OPENCV")
    if model not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE"):
        raise ValueError(f"{path} has camera_model {model}; wanted a pinhole: undistort the photographs first")
    return transforms


def _distortion_note(source: Path) -> tuple[str, ...]:
    """Says that a lens bends straight lines: pinhole cameras do not follow it."""
    if not source.is_file():
        return ()
    transforms = _read_transforms(source)
    frames = [transforms, *transforms["frames"]]
    strongest = {key: max((float(frame.get(key, 0.0)) for frame in frames), key=abs) for key in DISTORTION_KEYS}
    values = ", ".join(f"{key} = {value:g}" for key, value in strongest.items() if abs(value) > DISTORTION_SHOWN)
    return (f"{source} describes a distorted lens ({values}), which is not undone",) if values else ()


def _camera_of_frame(path: Path, frame: dict[str, Any], photo: Path) -> Camera:
    name = f"{path}, frame {frame['file_path']}"
    width, height = (int(frame["w"]), int(frame["h"])) if {"w", "h"} <= set(frame) else _photo_size(photo)
    if "fl_x" in frame:
        focal_x, focal_y = float(frame["fl_x"]), float(frame.get("fl_y", frame["fl_x"]))
    elif "camera_angle_x" in frame:
        focal_x = focal_y = 0.5 * width / np.tan(0.5 * float(frame["camera_angle_x"]))
    else:
        raise ValueError(f"{name} has no focal length; wanted fl_x (and fl_y) in pixels, or camera_angle_x in radians")
    center = frame.get("cx", width / 2), frame.get("cy", height / 2)
    intrinsics = np.array([[focal_x, 0, center[0]], [0, focal_y, center[1]], [0, 0, 1]], dtype=np.float64)
    matrix = validate_world_from_cam(frame["transform_matrix"], name)
    depth = path.parent / frame["depth_file_path"] if frame.get("depth_file_path") else None
    return Camera(validate_intrinsics(intrinsics, name), matrix @ CV_FROM_GL_CAM, (width, height), depth)


def _photo_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def _frame_path(folder: Path, frame: dict[str, Any]) -> Path:
    """The photograph of a frame; NeRF's synthetic sets leave the suffix out."""
    path = folder / frame["file_path"]
    return path if path.suffix.lower() in IMAGE_SUFFIXES else path.with_name(f"{path.name}.png")
