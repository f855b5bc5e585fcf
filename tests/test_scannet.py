"""ScanNet scenes written in its layouts are read back; what is damaged is named or counted."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from datasets_scripts.capture import Capture, Skips, SourceError
from datasets_scripts.scannet import find_scannet, open_scannet, room_of
from tests.layouts import (
    AXIS_ALIGNMENT,
    Truth,
    back_project,
    millimetres,
    room_truth,
    whole_pixels,
    write_image,
    write_matrix,
    write_posed_images,
    write_scannet_meta,
    write_sens,
    write_sensreader,
)

SCENE = "scene0000_00"
WRITERS = {"posed_images": write_posed_images, "sensreader": write_sensreader, "sens": write_sens}


@pytest.fixture(scope="module")
def truth() -> Truth:
    return room_truth(0, 6)


def read(root: Path, *, strict: bool = True, unaligned: bool = False) -> Capture:
    return open_scannet(find_scannet(root)[SCENE], Skips(strict), unaligned=unaligned)


def assert_same_geometry(capture: Capture, truth: Truth, views: list[int]) -> None:
    """Every pixel's world point within 1 mm, every rotation within 0.1 degrees."""
    assert len(capture.frames) == len(views)
    for index, (frame, view) in enumerate(zip(capture.frames, views)):
        points = back_project(capture.depth_mm(index) / 1000, frame.intrinsics, frame.world_from_cam)
        assert np.abs(points - truth.points(view)).max() < 1e-3
        turn = frame.world_from_cam[:3, :3].T @ truth.world_from_cam[view, :3, :3]
        assert np.degrees(np.arccos(min(1.0, (np.trace(turn) - 1) / 2))) < 0.1


@pytest.mark.parametrize("layout", WRITERS)
def test_layouts_give_back_the_scene(tmp_path: Path, truth: Truth, layout: str) -> None:
    WRITERS[layout](tmp_path, SCENE, truth)
    assert find_scannet(tmp_path)[SCENE].layout == layout
    capture = read(tmp_path)
    assert_same_geometry(capture, truth, list(range(len(truth))))
    assert np.allclose(capture.world_from_source, AXIS_ALIGNMENT, atol=1e-6)
    assert capture.room_id == "scene0000"


@pytest.mark.parametrize("writer", [write_posed_images, write_sens])
def test_lost_cameras_are_counted(tmp_path: Path, truth: Truth, writer) -> None:
    writer(tmp_path, SCENE, truth, lost=(1, 4))
    capture = read(tmp_path)
    assert capture.skips.counts == {"camera lost": 2}
    assert_same_geometry(capture, truth, [0, 2, 3, 5])


def test_frames_come_in_order_of_their_numbers(tmp_path: Path, truth: Truth) -> None:
    folder = write_sensreader(tmp_path, SCENE, truth)
    for kind, suffix in (("color", "jpg"), ("depth", "png"), ("pose", "txt")):
        (folder / kind / f"0.{suffix}").rename(folder / kind / f"10.{suffix}")
    assert [frame.frame_id for frame in read(tmp_path).frames] == ["1", "2", "3", "4", "5", "10"]


def test_depth_of_another_focal_length_is_moved_to_the_photograph(tmp_path: Path, truth: Truth) -> None:
    """A depth camera of 3 % wider view: after resampling, its points lie on the photograph's rays again."""
    folder = write_posed_images(tmp_path, SCENE, truth)
    wider = truth.intrinsics.copy()
    wider[[0, 1], [0, 1]] *= 0.97
    write_matrix(folder / "depth_intrinsic.txt", whole_pixels(wider))
    u, v = np.meshgrid(np.arange(112) + 0.5, np.arange(112) + 0.5)
    scale = wider[0, 0] / truth.intrinsics[0, 0]
    inside = [np.clip(((a - 56) / scale + 56).astype(int), 0, 111) for a in (u, v)]
    for view in range(len(truth)):
        write_image(folder / f"{view:05d}.png", millimetres(truth.depth_m[view][inside[1], inside[0]]))
    capture = read(tmp_path)
    for index in range(len(truth)):
        depth = capture.depth_mm(index) / 1000
        middle = np.s_[6:-6, 6:-6]
        errors = np.abs(depth - truth.depth_m[index])[middle]
        assert np.median(errors) < 0.01
        unmoved = np.abs(truth.depth_m[index][inside[1], inside[0]] - truth.depth_m[index])[middle]
        assert errors.mean() < 0.6 * unmoved.mean()


def test_depth_shift_of_a_sens_file(tmp_path: Path, truth: Truth) -> None:
    path = write_sens(tmp_path, SCENE, truth)
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<f", 1000.0))
    data[at : at + 4] = struct.pack("<f", 500.0)
    path.write_bytes(data)
    assert np.array_equal(read(tmp_path).depth_mm(0), 2 * millimetres(truth.depth_m[0]))


def test_axis_alignment_may_be_absent(tmp_path: Path, truth: Truth) -> None:
    write_posed_images(tmp_path, SCENE, truth)
    write_scannet_meta(tmp_path, SCENE, None)
    assert np.array_equal(read(tmp_path).world_from_source, np.eye(4))
    (tmp_path / "scans" / SCENE / f"{SCENE}.txt").unlink()
    with pytest.raises(SourceError, match="--unaligned"):
        read(tmp_path)
    assert np.array_equal(read(tmp_path, unaligned=True).world_from_source, np.eye(4))


TILTED = np.eye(4)
TILTED[1:3, 1:3] = [[0.0, -1.0], [1.0, 0.0]]


BAD_ALIGNMENTS = {
    "1 2 3": "4x4",
    "a b": "could not",
    " ".join(["nan"] * 16): "finite",
    "2 " * 16: "last row",
    " ".join(map(str, TILTED.ravel())): "tilts",
}


@pytest.mark.parametrize(("alignment", "message"), BAD_ALIGNMENTS.items())
def test_damaged_axis_alignment_is_named(tmp_path: Path, truth: Truth, alignment: str, message: str) -> None:
    write_posed_images(tmp_path, SCENE, truth)
    meta = tmp_path / "scans" / SCENE / f"{SCENE}.txt"
    meta.write_text(f"axisAlignment = {alignment}\n")
    with pytest.raises(SourceError, match=message) as caught:
        read(tmp_path)
    assert str(meta) in str(caught.value)


POSES = {
    "words": "not a pose\n",
    "empty": "",
    "3x3": "1 0 0\n0 1 0\n0 0 1\n",
    "scaled": "2 0 0 0\n0 2 0 0\n0 0 2 0\n0 0 0 1\n",
    "mirrored": "-1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n",
    "ragged": "1 0 0 0\n0 1\n",
}


@pytest.mark.parametrize("pose", POSES)
def test_a_damaged_pose_is_counted_or_named(tmp_path: Path, truth: Truth, pose: str) -> None:
    folder = write_posed_images(tmp_path, SCENE, truth)
    (folder / "00002.txt").write_text(POSES[pose])
    capture = read(tmp_path, strict=False)
    assert capture.skips.counts == {"camera unreadable": 1}
    assert_same_geometry(capture, truth, [0, 1, 3, 4, 5])
    with pytest.raises(SourceError, match=r"00002\.txt"):
        read(tmp_path)


def test_missing_files_are_counted_or_named(tmp_path: Path, truth: Truth) -> None:
    folder = write_posed_images(tmp_path, SCENE, truth)
    (folder / "00001.png").unlink()
    (folder / "00002.txt").unlink()
    capture = read(tmp_path, strict=False)
    assert sorted(capture.skips.counts) == ["camera unreadable", "frame without its depth map"]
    assert_same_geometry(capture, truth, [0, 3, 4, 5])
    with pytest.raises(SourceError, match=r"00001\.png"):
        read(tmp_path)


def test_a_truncated_sens_file_gives_its_whole_frames(tmp_path: Path, truth: Truth) -> None:
    path = write_sens(tmp_path, SCENE, truth)
    path.write_bytes(path.read_bytes()[:-100])
    capture = read(tmp_path, strict=False)
    assert capture.skips.counts == {".sens file cut short": 1}
    assert_same_geometry(capture, truth, [0, 1, 2, 3, 4])
    with pytest.raises(SourceError, match="5 of 6 frames"):
        read(tmp_path)


def damaged_sens(data: bytes) -> dict[str, tuple[bytes, str]]:
    """name -> (file, what the error says)"""
    sizes = 4 + 8 + 15 + 4 * 64
    huge = data[: sizes + 8] + struct.pack("<2I", 1 << 20, 1 << 20) + data[sizes + 16 :]
    return {
        "empty": (b"", "header"),
        "version": (struct.pack("<I", 3) + data[4:], "version 3"),
        "name": (data[:4] + struct.pack("<Q", 1 << 60) + data[12:], "sensor name"),
        "header": (data[:200], "header"),
        "compression": (data[:sizes] + struct.pack("<2i", 9, 9) + data[sizes + 8 :], "compression 9"),
        "huge": (huge, "1048576x1048576"),
        "shift": (data[: sizes + 24] + struct.pack("<f", float("nan")) + data[sizes + 28 :], "shift"),
    }


@pytest.mark.parametrize("fault", ["empty", "version", "name", "header", "compression", "huge", "shift"])
def test_a_damaged_sens_header_is_named(tmp_path: Path, truth: Truth, fault: str) -> None:
    path = write_sens(tmp_path, SCENE, truth.only(2))
    data, message = damaged_sens(path.read_bytes())[fault]
    path.write_bytes(data)
    with pytest.raises(SourceError, match=message) as caught:
        read(tmp_path, strict=False)
    assert path.name in str(caught.value)


def test_random_damage_of_a_sens_file_never_crashes(tmp_path: Path, truth: Truth) -> None:
    path = write_sens(tmp_path, SCENE, truth.only(2))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        for position in rng.integers(0, len(data) if rng.random() < 0.5 else 700, 4):
            data[position] = rng.integers(256)
        path.write_bytes(data)
        try:
            capture = read(tmp_path, strict=False)
            for index in range(len(capture.frames)):
                capture.photograph(index)
                capture.depth_mm(index)
        except SourceError as error:
            assert path.name in str(error) or SCENE in str(error)


def test_a_folder_without_scenes_says_what_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="posed_images"):
        find_scannet(tmp_path)


@pytest.mark.parametrize("scene_id", ["../../etc", "scene1_0", "scene0000_00/..", ""])
def test_other_ids_are_refused(scene_id: str) -> None:
    with pytest.raises(SourceError, match="scene0011_00"):
        room_of(scene_id)
