"""ScanNet scenes: posed_images, SensReader folders, or `.sens` files directly.

    <root>/[scans|scans_test|posed_images]/<scene>/
        %05d.jpg %05d.png %05d.txt intrinsic.txt [depth_intrinsic.txt]                posed_images
        color/N.jpg depth/N.png pose/N.txt intrinsic/intrinsic_{color,depth}.txt      SensReader
        <scene>.sens                                                                  as downloaded
        <scene>.txt                     axisAlignment (in any of these folders; the line may be absent = identity)
        <scene>_vh_clean_2.ply          the mesh, wanted by SQA3D's positions only

World: axis-aligned, Z up, metres. ScanNet's intrinsics put pixel centres at whole numbers (its depth intrinsics are its
colour intrinsics scaled about (-0.5, -0.5)), so half a pixel is added to cx and cy here.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets_scripts.capture import (
    Capture,
    Depth,
    Float,
    Frame,
    Skips,
    SourceError,
    decode_depth,
    numbers,
    open_image,
    read_file,
    read_matrix,
    sound,
)
from datasets_scripts.sens import SensFile, read_sens
from processing.geometry_vggt_qwen3 import resize_intrinsics, validate_intrinsics, validate_world_from_cam

SCENE_PATTERN = re.compile(r"scene\d{4}_\d{2}")
SUBFOLDERS = ("", "posed_images", "scans", "scans_test")
DEPTH_SHIFT_PX = 0.75
MAX_TILT_DEG = 5.0


@dataclass(frozen=True)
class ScanNetScene:
    """Where one scene lies. `layout` is posed_images, sensreader or sens; `folder` holds its frames or `.sens` file."""

    scene_id: str
    layout: str
    folder: Path
    meta: Path | None
    mesh: Path | None


def room_of(scene_id: str, where: str = "scene_id") -> str:
    """The room of a scan: its scans share the number after `scene`. Raises SourceError for another form of id."""
    if not SCENE_PATTERN.fullmatch(scene_id):
        raise SourceError(f"{where} is {scene_id!r}, wanted a ScanNet id such as scene0011_00")
    return scene_id.split("_")[0]


def find_scannet(root: Path) -> dict[str, ScanNetScene]:
    """Every scene below `root` by its id. Raises SourceError where there is none."""
    folders = [root / name for name in SUBFOLDERS if (root / name).is_dir()]
    ids = {path.name for folder in folders for path in folder.iterdir() if SCENE_PATTERN.fullmatch(path.name)}
    found = {scene_id: _locate(scene_id, folders) for scene_id in sorted(ids)}
    scenes = {scene_id: scene for scene_id, scene in found.items() if scene is not None}
    if not scenes:
        raise SourceError(
            f"{root} holds no ScanNet scene; wanted <root>/posed_images/scene0000_00/00000.jpg, "
            "<root>/scans/scene0000_00/color/0.jpg or <root>/scans/scene0000_00/scene0000_00.sens"
        )
    return scenes


def open_scannet(scene: ScanNetScene, skips: Skips, *, unaligned: bool = False) -> Capture:
    """The frames of a scene whose tracking held, in order of capture; the others are counted.

    `unaligned` accepts a scene without its `<scene>.txt` and leaves it in ScanNet's raw frame (metres, Z up), in which
    SQA3D's positions cannot be placed.

    Raises:
        SourceError: files that are missing or damaged, or no frame left.
    """
    world_from_source = np.eye(4) if unaligned and scene.meta is None else axis_alignment(scene)
    reader = {"posed_images": _open_posed, "sensreader": _open_sensreader, "sens": _open_sens}[scene.layout]
    capture = reader(scene, skips, world_from_source)
    if not capture.frames:
        raise SourceError(f"{scene.folder}: no frame with a known camera")
    return capture


def axis_alignment(scene: ScanNetScene) -> Float:
    """world_from_source [4, 4] of a scene: its `axisAlignment`, or the identity where the file has no such line.

    Raises:
        SourceError: no `<scene>.txt`, or a matrix that is no rotation about the vertical.
    """
    if scene.meta is None:
        raise SourceError(
            f"{scene.folder}: no {scene.scene_id}.txt with the axis alignment; put it beside the frames or in "
            "<root>/scans/<scene>/, or pass --unaligned to keep the raw frame"
        )
    for line in read_file(scene.meta).decode("utf-8", "replace").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "axisAlignment":
            where = f"{scene.meta}, axisAlignment"
            try:
                entries = [float(word) for word in value.split()]
            except ValueError as error:
                raise SourceError(f"{where}: {error}") from error
            matrix = sound(validate_world_from_cam, numbers(entries, (4, 4), where), where)
            if matrix[2, 2] < np.cos(np.radians(MAX_TILT_DEG)):
                raise SourceError(f"{where} tilts the vertical; wanted a turn about Z")
            return matrix
    return np.eye(4)


# -------------------------------------------------------------------------------------------------------------- layouts


def _locate(scene_id: str, folders: list[Path]) -> ScanNetScene | None:
    places = [folder / scene_id for folder in folders]

    def first(name: str) -> Path | None:
        return next((place / name for place in places if (place / name).is_file()), None)

    meta, mesh = first(f"{scene_id}.txt"), first(f"{scene_id}_vh_clean_2.ply")
    for layout, mark in (("posed_images", "intrinsic.txt"), ("sensreader", "intrinsic/intrinsic_color.txt")):
        intrinsics = first(mark)
        if intrinsics is not None:
            folder = intrinsics.parent if layout == "posed_images" else intrinsics.parent.parent
            return ScanNetScene(scene_id, layout, folder, meta, mesh)
    sens = first(f"{scene_id}.sens")
    return None if sens is None else ScanNetScene(scene_id, "sens", sens.parent, meta, mesh)


@dataclass(frozen=True)
class DepthGrid:
    """Takes depth maps from the rays of the depth camera to those of the colour camera; both stand in one place.

    `size` (width, height) of the photograph; `depth_intrinsics` None: the depth map covers the photograph's view.
    """

    size: tuple[int, int]
    color_intrinsics: Float
    depth_intrinsics: Float | None

    def resample(self, depth: Depth, where: str) -> Depth:
        """The depth map on the colour camera's rays, nearest neighbour. Raises SourceError for one of no size."""
        height, width = depth.shape
        if self.depth_intrinsics is None or not height or not width:
            return depth
        color = resize_intrinsics(self.color_intrinsics, width / self.size[0], height / self.size[1])
        homography = self.depth_intrinsics @ np.linalg.inv(color)
        corners = homography @ np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
        shift = np.abs(corners[:2] - [[0, width, 0, width], [0, 0, height, height]]).max()
        if shift < DEPTH_SHIFT_PX:
            return depth
        if shift > width / 4:
            raise SourceError(f"{where}: depth and colour intrinsics disagree by {shift:.0f} pixels: not of one camera")
        columns = np.floor(homography[0, 0] * (np.arange(width) + 0.5) + homography[0, 2]).astype(np.int64)
        rows = np.floor(homography[1, 1] * (np.arange(height) + 0.5) + homography[1, 2]).astype(np.int64)
        sampled = depth[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)]
        sampled[(rows < 0) | (rows >= height)] = 0
        sampled[:, (columns < 0) | (columns >= width)] = 0
        return sampled


@dataclass(kw_only=True)
class ScanNetFolder(Capture):
    """Frames that lie as single files: `paths` of photograph and depth map."""

    paths: list[tuple[Path, Path | None]]
    grid: DepthGrid

    def photograph(self, index: int) -> bytes:
        return read_file(self.paths[index][0])

    def depth_mm(self, index: int) -> Depth | None:
        path = self.paths[index][1]
        if path is None:
            return None
        return self.grid.resample(decode_depth(read_file(path), str(path)), str(path))


@dataclass(kw_only=True)
class ScanNetSens(Capture):
    """Frames inside a `.sens` file; `positions` are their places in it."""

    sens: SensFile
    positions: list[int]
    grid: DepthGrid

    def photograph(self, index: int) -> bytes:
        return self.sens.color(self.positions[index])

    def depth_mm(self, index: int) -> Depth | None:
        depth = self.sens.depth_mm(self.positions[index])
        return self.grid.resample(depth, str(self.sens.path))


def _open_posed(scene: ScanNetScene, skips: Skips, world_from_source: Float) -> Capture:
    color = _intrinsics(scene.folder / "intrinsic.txt")
    depth_path = scene.folder / "depth_intrinsic.txt"
    depth = _intrinsics(depth_path) if depth_path.is_file() else None
    names = sorted((path.stem for path in scene.folder.glob("*.jpg")), key=_number)
    paths = [tuple(scene.folder / f"{name}{suffix}" for suffix in (".jpg", ".png", ".txt")) for name in names]
    return _open_folder(scene, skips, world_from_source, color, depth, list(zip(names, paths)))


def _open_sensreader(scene: ScanNetScene, skips: Skips, world_from_source: Float) -> Capture:
    folder = scene.folder
    _check_extrinsics([folder / "intrinsic" / f"extrinsic_{camera}.txt" for camera in ("color", "depth")])
    color = _intrinsics(folder / "intrinsic" / "intrinsic_color.txt")
    depth_path = folder / "intrinsic" / "intrinsic_depth.txt"
    depth = _intrinsics(depth_path) if depth_path.is_file() else None
    names = sorted((path.stem for path in (folder / "color").glob("*.jpg")), key=_number)
    kinds = (("color", ".jpg"), ("depth", ".png"), ("pose", ".txt"))
    paths = [tuple(folder / kind / f"{name}{suffix}" for kind, suffix in kinds) for name in names]
    return _open_folder(scene, skips, world_from_source, color, depth, list(zip(names, paths)))


def _open_folder(
    scene: ScanNetScene,
    skips: Skips,
    world_from_source: Float,
    color: Float,
    depth: Float | None,
    files: list[tuple[str, tuple[Path, Path, Path]]],
) -> Capture:
    if not files:
        raise SourceError(f"{scene.folder} holds no photograph")
    size = open_image(read_file(files[0][1][0]), str(files[0][1][0])).size
    frames, paths = [], []
    any_depth = any(depth_path.is_file() for _, (_, depth_path, _) in files)
    for name, (photo, depth_path, pose) in files:
        world_from_cam = _camera(lambda pose=pose: read_matrix(pose, finite=False), str(pose), skips, world_from_source)
        if world_from_cam is None:
            continue
        if any_depth and not depth_path.is_file():
            skips.fault("frame without its depth map", SourceError(f"{depth_path}: no such file"))
            continue
        frames.append(Frame(name, size, color, world_from_cam))
        paths.append((photo, depth_path if any_depth else None))
    return ScanNetFolder(
        scene_id=scene.scene_id,
        room_id=room_of(scene.scene_id),
        source="scannet",
        frames=frames,
        skips=skips,
        world_from_source=world_from_source,
        paths=paths,
        grid=DepthGrid(size, color, depth),
    )


def _open_sens(scene: ScanNetScene, skips: Skips, world_from_source: Float) -> Capture:
    sens = read_sens(scene.folder / f"{scene.scene_id}.sens")
    if sens.is_truncated:
        error = SourceError(f"{sens.path} is cut short: {len(sens.frames)} of {sens.num_promised} frames are whole")
        skips.fault(".sens file cut short", error)
    if not np.allclose(sens.color_extrinsics, sens.depth_extrinsics, atol=1e-4):
        raise SourceError(f"{sens.path}: colour and depth camera stand in different places; register the depth first")
    color = _centred(sens.color_intrinsics, f"{sens.path}, colour intrinsics")
    depth = _centred(sens.depth_intrinsics, f"{sens.path}, depth intrinsics")
    frames, positions = [], []
    for position, stored in enumerate(sens.frames):
        where = f"{sens.path}, frame {position}"
        world_from_cam = _camera(lambda stored=stored: stored.source_from_cam, where, skips, world_from_source)
        if world_from_cam is not None:
            frames.append(Frame(str(position), sens.color_size, color, world_from_cam))
            positions.append(position)
    return ScanNetSens(
        scene_id=scene.scene_id,
        room_id=room_of(scene.scene_id),
        source="scannet",
        frames=frames,
        skips=skips,
        world_from_source=world_from_source,
        sens=sens,
        positions=positions,
        grid=DepthGrid(sens.color_size, color, depth),
    )


def _camera(read: Callable[[], Float], where: str, skips: Skips, world_from_source: Float) -> Float | None:
    """world_from_cam of a frame, or None where its tracking was lost or its file is damaged (counted)."""
    try:
        source_from_cam = read()
        if not np.isfinite(source_from_cam).all():
            skips.skip("camera lost", where)
            return None
        return world_from_source @ sound(validate_world_from_cam, source_from_cam, where)
    except SourceError as error:
        skips.fault("camera unreadable", error)
        return None


def _intrinsics(path: Path) -> Float:
    matrix = read_matrix(path)
    if matrix.shape not in ((3, 3), (4, 4)):
        raise SourceError(f"{path} has shape {matrix.shape}, wanted 4x4 or 3x3")
    return _centred(matrix, str(path))


def _centred(matrix: Float, where: str) -> Float:
    """Intrinsics [3, 3] with pixel centres at +0.5, from ScanNet's with centres at whole numbers."""
    centred = matrix[:3, :3].copy()
    centred[:2, 2] += 0.5
    return sound(validate_intrinsics, centred, where)


def _check_extrinsics(paths: list[Path]) -> None:
    matrices = [read_matrix(path) if path.is_file() else np.eye(4) for path in paths]
    if matrices[0].shape != matrices[1].shape or not np.allclose(*matrices, atol=1e-4):
        raise SourceError(f"{paths[1]}: colour and depth camera stand in different places; register the depth first")


def _number(stem: str) -> tuple[int, str]:
    digits = re.sub(r"\D", "", stem)
    return (int(digits) if digits else -1, stem)
