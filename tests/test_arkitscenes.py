"""ARKitScenes videos written in both layouts are read back upright; cameras are interpolated, boxes are in metres."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from datasets_scripts.arkitscenes import (
    find_arkitscenes,
    open_arkitscenes,
    read_boxes,
    read_trajectory,
    rotation_from_axis_angle,
)
from datasets_scripts.boxes import box_corners
from datasets_scripts.capture import Capture, Skips, SourceError
from datasets_scripts.upright import quarter_turns_upright
from tests.layouts import Truth, axis_angle, back_project, room_truth, write_arkitscenes, write_image

VIDEO = "41069021"


@pytest.fixture(scope="module")
def truth() -> Truth:
    return room_truth(1, 6).cropped(left=28, top=8)


def read(root: Path, *, strict: bool = True) -> Capture:
    return open_arkitscenes(find_arkitscenes(root)[VIDEO], Skips(strict))


def view_of(frame_id: str) -> int:
    return round((float(frame_id) - 1000) * 10)


def assert_same_geometry(capture: Capture, truth: Truth) -> None:
    for index, frame in enumerate(capture.frames):
        view = view_of(frame.frame_id)
        points = back_project(capture.depth_mm(index) / 1000, frame.intrinsics, frame.world_from_cam)
        assert np.abs(points - truth.points(view)).max() < 1e-3
        turn = frame.world_from_cam[:3, :3].T @ truth.world_from_cam[view, :3, :3]
        assert np.degrees(np.arccos(min(1.0, (np.trace(turn) - 1) / 2))) < 0.1


@pytest.mark.parametrize("layout", ["raw", "3dod"])
@pytest.mark.parametrize("turns", [(0,), (0, 1, 2, 3)])
def test_layouts_give_back_the_scene_upright(tmp_path: Path, truth: Truth, layout: str, turns: tuple) -> None:
    write_arkitscenes(tmp_path, VIDEO, truth, layout=layout, turns=turns)
    capture = read(tmp_path)
    assert len(capture.frames) == len(truth)
    assert [frame.quarter_turns for frame in capture.frames] == [turns[i % len(turns)] for i in range(len(truth))]
    assert_same_geometry(capture, truth)


def test_orientations_of_two_published_cameras() -> None:
    """The turns that Apple's own script applies to these two scenes: 180 degrees, and 90 degrees clockwise."""
    published = {2: (-1.5545600446434271, 1.532901960141653, 0.883467254271724)}
    published[1] = (1.6851560664954446, -1.7402208764128138, -0.8469396625258023)
    for turns, vector in published.items():
        camera = np.eye(4)
        camera[:3, :3] = rotation_from_axis_angle(np.array(vector)).T
        assert quarter_turns_upright(camera) == turns


def test_a_camera_that_looks_straight_down_has_no_top() -> None:
    camera = np.eye(4)
    camera[:3, :3] = np.diag([1.0, -1.0, -1.0])
    assert quarter_turns_upright(camera) is None


def test_low_confidence_is_no_depth(tmp_path: Path, truth: Truth) -> None:
    folder = write_arkitscenes(tmp_path, VIDEO, truth, turns=(1,))
    path = sorted((folder / "confidence").iterdir())[0]
    confidence = np.full((84, 104), 2, np.uint8)
    confidence[:, :30] = 1
    write_image(path, confidence)
    depth = read(tmp_path).depth_mm(0)
    assert (depth[:30] == 0).all() and (depth[30:] > 0).all()  # the left of the stored image is the top once upright


def test_boxes_are_those_of_the_scene(tmp_path: Path, truth: Truth) -> None:
    write_arkitscenes(tmp_path, VIDEO, truth)
    found = read(tmp_path).targets
    wanted = [target for target in truth.targets if target["kind"] != "plane"]
    assert [target["label"] for target in found] == [target["label"] for target in wanted]
    for one, other in zip(found, wanted):
        corners, others = (sorted(box_corners(target).round(6).tolist()) for target in (one, other))
        assert np.allclose(corners, others, atol=1e-5)


def test_axes_are_rows_and_tilt_is_levelled(tmp_path: Path) -> None:
    """A box as published: rows of normalizedAxes are its axes, the third a little off the vertical."""
    box = {
        "centroid": [-0.73, 0.45, -0.7],
        "axesLengths": [0.6757, 1.6312, 0.5567],
        "normalizedAxes": [0.791563, -0.611067, 0.004981, 0.61106, 0.791578, 0.002977, -0.005762, 0.000687, 0.999983],
    }
    path = tmp_path / "annotation.json"
    path.write_text(json.dumps({"data": [{"label": "tv_monitor", "segments": {"obbAligned": box}}]}))
    (target,) = read_boxes(path, Skips(True))
    assert target["label"] == "tv monitor"
    axes = np.asarray(target["axes"])
    rows = np.reshape(box["normalizedAxes"], (3, 3))
    assert np.array_equal(axes[2], [0, 0, 1])
    assert (np.abs((axes * rows).sum(1)) > 0.9999).all()
    local = np.array([1, 1, 1]) * np.array(box["axesLengths"]) / 2
    published_corner = rows.T @ local + box["centroid"]
    assert np.linalg.norm(box_corners(target) - published_corner, axis=1).min() < 0.01


BAD_BOXES = {
    "centimetres only": {"segments": {"obb": {}}},
    "no label": {"label": ""},
    "tilted": {"axes": [1, 0, 0, 0, 0, 1, 0, -1, 0]},
    "not orthonormal": {"axes": [1, 0, 0, 1, 0, 0, 0, 0, 1]},
    "nan": {"center": [0, float("nan"), 0]},
    "no size": {"size": [1, 0, 1]},
    "metres or millimetres": {"size": [1, 500, 1]},
    "two numbers": {"center": [0, 1]},
    "words": {"center": "here"},
}


@pytest.mark.parametrize("fault", BAD_BOXES)
def test_damaged_boxes_are_counted_or_named(tmp_path: Path, fault: str) -> None:
    change = BAD_BOXES[fault]
    box = {
        "centroid": change.get("center", [0, 0, 0]),
        "axesLengths": change.get("size", [1, 1, 1]),
        "normalizedAxes": change.get("axes", np.eye(3).ravel().tolist()),
    }
    record = {"label": change.get("label", "chair"), "segments": change.get("segments", {"obbAligned": box})}
    path = tmp_path / "annotation.json"
    path.write_text(json.dumps({"data": [record]}))
    skips = Skips()
    assert read_boxes(path, skips) == [] and skips.counts == {"box unreadable": 1}
    with pytest.raises(SourceError, match=r"annotation\.json, data\[0\]"):
        read_boxes(path, Skips(True))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"data": 3}', '{"boxes": []}', "null"])
def test_an_annotation_of_another_shape_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "annotation.json"
    path.write_text(text)
    with pytest.raises(SourceError, match=r"annotation\.json"):
        read_boxes(path, Skips())


def test_trajectory_is_interpolated_between_close_neighbours_only(tmp_path: Path) -> None:
    path = tmp_path / "lowres_wide.traj"
    turns = [0.0, 0.2, 0.4, 1.0]
    times = [10.0, 10.1, 10.2, 12.0]
    rows = []
    for time, turn in zip(times, turns):
        cam_from_world = rotation_from_axis_angle(np.array([0, 0, -turn]))
        rows.append([time, *axis_angle(cam_from_world), *(-cam_from_world @ [time, 0, 1])])
    path.write_text("\n".join(" ".join(f"{v:.9f}" for v in row) for row in rows))
    trajectory = read_trajectory(path)
    between = trajectory.at(10.15)
    assert np.allclose(between[:3, :3], rotation_from_axis_angle(np.array([0, 0, 0.3])), atol=1e-6)
    assert np.allclose(between[:3, 3], [10.15, 0, 1], atol=1e-6)
    assert np.allclose(trajectory.at(10.1)[:3, 3], [10.1, 0, 1], atol=1e-6)
    assert trajectory.at(11.0) is None  # a gap of 1.8 s
    assert np.allclose(trajectory.at(11.996)[:3, 3], [12, 0, 1], atol=1e-6)
    assert trajectory.at(9.99) is None and trajectory.at(12.006) is None
    assert np.allclose(trajectory.at(9.996)[:3, 3], [10, 0, 1], atol=1e-6)


def test_frames_without_a_camera_are_counted(tmp_path: Path, truth: Truth) -> None:
    folder = write_arkitscenes(tmp_path, VIDEO, truth)
    path = folder / "lowres_wide.traj"
    path.write_text("\n".join(path.read_text().splitlines()[:3]))
    sorted((folder / "lowres_wide_intrinsics").iterdir())[1].unlink()
    capture = read(tmp_path, strict=False)
    assert [view_of(frame.frame_id) for frame in capture.frames] == [0, 2]
    assert capture.skips.counts == {
        "frame without a camera within reach": 3,
        "frame without intrinsics, depth or confidence": 1,
    }


BAD_TRAJECTORIES = {"1 2 3": "7", "": "rows", "nan 0 0 0 0 0 0": "finite", "2 0 0 0 0 0 0\n1 0 0 0 0 0 0": "ascend"}


@pytest.mark.parametrize(("text", "message"), BAD_TRAJECTORIES.items())
def test_a_damaged_trajectory_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "lowres_wide.traj"
    path.write_text(text)
    with pytest.raises(SourceError, match=message):
        read_trajectory(path)


@pytest.mark.parametrize("text", ["1 2 3", "84 104 0 100 56 56", "84 104 100 100 900 56", "a b c d e f"])
def test_damaged_intrinsics_are_counted_or_named(tmp_path: Path, truth: Truth, text: str) -> None:
    folder = write_arkitscenes(tmp_path, VIDEO, truth)
    sorted((folder / "lowres_wide_intrinsics").iterdir())[0].write_text(text)
    capture = read(tmp_path, strict=False)
    assert capture.skips.counts == {"intrinsics unreadable": 1} and len(capture.frames) == len(truth) - 1
    with pytest.raises(SourceError, match="pincam"):
        read(tmp_path)


def test_scans_of_one_visit_share_a_room(tmp_path: Path, truth: Truth) -> None:
    for video, fold in ((VIDEO, "Training"), ("41069022", "Validation"), ("41069023", "Training")):
        write_arkitscenes(tmp_path, video, truth.only(1), fold=fold)
    rows = [f"{VIDEO},420001.0,Training", "41069022,420001,Validation", "41069023,NA,Training"]
    (tmp_path / "3dod_train_val_splits.csv").write_text("\n".join(["video_id,visit_id,fold", *rows]))
    videos = find_arkitscenes(tmp_path)
    assert [videos[key].room_id for key in sorted(videos)] == ["visit-420001", "visit-420001", "video-41069023"]
    assert videos["41069022"].split == "val"


def test_videos_without_trajectory_or_annotation(tmp_path: Path, truth: Truth) -> None:
    folder = write_arkitscenes(tmp_path, VIDEO, truth.only(2))
    (folder / f"{VIDEO}_3dod_annotation.json").unlink()
    capture = read(tmp_path)
    assert capture.targets == [] and capture.skips.counts == {"video without annotation": 1}
    (folder / "lowres_wide.traj").unlink()
    with pytest.raises(SourceError, match="without trajectory"):
        read(tmp_path)
