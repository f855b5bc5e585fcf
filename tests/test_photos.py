"""Folders of photographs: which are found, in what order, and what their cameras mean."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets_scripts.photos import align_to_gravity, find_photos, parse_gravity, read_photos
from processing.geometry_vggt_qwen3 import ref_from_world, transform_points
from tests.frames import camera

K = np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
POINT = np.array([1.0, 2.0, 0.5])
EYES = {"frame-000000": [0.0, -1.0, 1.5], "frame-000050": [0.5, -1.0, 1.5]}
GL_FROM_CV_CAM = np.diag([1.0, -1.0, -1.0, 1.0])


def photo(path: Path, size: tuple[int, int] = (64, 48)) -> None:
    Image.new("RGB", size, (120, 130, 140)).save(path)


def cameras(source_from_world: np.ndarray) -> dict[str, np.ndarray]:
    """source_from_cam of two cameras that look at POINT, in a capture's own frame."""
    return {name: source_from_world @ camera(eye, POINT - eye) for name, eye in EYES.items()}


def rgbd(folder: Path, source_from_world: np.ndarray) -> Path:
    folder.mkdir()
    np.savetxt(folder / "camera-intrinsics.txt", K)
    for name, matrix in cameras(source_from_world).items():
        photo(folder / f"{name}.color.jpg")
        np.savetxt(folder / f"{name}.pose.txt", matrix)
        depth = np.full((48, 64), 2500, np.uint16)
        depth[0, 0], depth[0, 1] = 0, 65535
        Image.fromarray(depth).save(folder / f"{name}.depth.png")
    return folder


def transforms(folder: Path, source_from_world: np.ndarray, **options: object) -> Path:
    """As NeRF tools write it: OpenGL axes, one unit = 1 / options["unit"] metres."""
    (folder / "images").mkdir(parents=True)
    unit = options.pop("unit", 1.0)
    frames = []
    for name, matrix in cameras(source_from_world).items():
        photo(folder / "images" / f"{name}.png")
        matrix = matrix @ GL_FROM_CV_CAM
        matrix[:3, 3] *= unit
        frames.append({"file_path": f"images/{name}.png", "transform_matrix": matrix.tolist()})
    content = {"w": 128, "h": 96, "fl_x": 100.0, "fl_y": 100.0, "cx": 64.0, "cy": 48.0, "frames": frames, **options}
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder


def y_down() -> np.ndarray:
    """source_from_world of a capture whose first camera was level at the origin: y down, z ahead."""
    matrix = np.eye(4)
    matrix[:3, :3] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
    matrix[:3, 3] = [3.0, -1.0, 2.0]
    return matrix


def seen_at(scene, view: int) -> np.ndarray:
    """Where the middle of the view lies that both cameras look at, in ref of view 0."""
    distance = np.linalg.norm(POINT - EYES[scene.frame_ids[view]])
    in_world = transform_points(scene.world_from_cam[view], [0, 0, distance])
    return transform_points(ref_from_world(scene.world_from_cam[0]), in_world)


def test_photographs_come_in_natural_order_and_depth_is_none_of_them(tmp_path):
    for name in ("view10.jpg", "view2.jpg", "view1.PNG", "view2.png"):
        photo(tmp_path / name)
    photo(tmp_path / "view1.depth.png")
    (tmp_path / "readme.md").write_text("no photograph")
    assert [path.name for path in find_photos(tmp_path)] == ["view1.PNG", "view2.jpg", "view10.jpg"]


def test_a_plain_folder_has_no_cameras(tmp_path):
    for index in range(5):
        photo(tmp_path / f"{index}.jpg")
    scene = read_photos(tmp_path, num_views=2)
    assert scene.frame_ids == ["0", "2"]
    assert scene.intrinsics is scene.world_from_cam is scene.depth is None
    assert scene.notes == ()
    files = [tmp_path / "3.jpg", tmp_path / "1.jpg"]
    assert read_photos(files).frame_ids == ["3", "1"]


def test_poses_depth_and_gravity_of_an_rgbd_capture(tmp_path):
    source_from_world = y_down()
    scene = read_photos(rgbd(tmp_path / "scan", source_from_world), gravity=[0, 1, 0])
    assert scene.frame_ids == ["frame-000000", "frame-000050"]
    np.testing.assert_allclose(scene.intrinsics[0], K)
    assert scene.depth[0].dtype == np.float32
    assert scene.depth[0][0, :3].tolist() == [0, 0, 2.5]
    np.testing.assert_allclose(seen_at(scene, 0), seen_at(scene, 1), atol=1e-9)
    height = seen_at(scene, 0)[2]
    assert height == pytest.approx(POINT[2] - EYES["frame-000000"][2]), "up is up, in metres"
    assert scene.world_from_cam[0, 2, 1] < -0.5, "the image's down points down"


def test_cameras_of_nerf_tools_are_turned_scaled_and_fitted(tmp_path):
    folder = transforms(tmp_path, np.eye(4), unit=0.1)
    for images in (folder, folder / "images"):
        scene = read_photos(images, gravity=[0, 0, -1], scale=10.0)
        np.testing.assert_allclose(scene.intrinsics[0], K)
        expected = camera(EYES["frame-000000"], POINT - EYES["frame-000000"])
        np.testing.assert_allclose(scene.world_from_cam[0], expected, atol=1e-9)
    one = [folder / "images" / "frame-000050.png"]
    chosen = read_photos(one, cameras=folder / "transforms.json", gravity=[0, 0, -2], scale=10.0)
    np.testing.assert_allclose(chosen.world_from_cam[0], scene.world_from_cam[1])


def test_a_field_of_view_stands_in_for_a_focal_length(tmp_path):
    folder = transforms(tmp_path, np.eye(4), camera_angle_x=2 * np.arctan(64 / 100))
    content = json.loads((folder / "transforms.json").read_text())
    for key in ("w", "h", "fl_x", "fl_y", "cx", "cy"):
        del content[key]
    (folder / "transforms.json").write_text(json.dumps(content))
    scene = read_photos(folder, gravity=[0, 0, -1], scale=1.0)
    np.testing.assert_allclose(scene.intrinsics[0], K)


def test_a_bent_lens_is_mentioned(tmp_path):
    scene = read_photos(transforms(tmp_path, np.eye(4), k1=-0.05, p2=1e-6), gravity=[0, 0, -1], scale=1.0)
    (note,) = scene.notes
    assert "k1 = -0.05), which is not undone" in note


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({}, "say which way is down (--gravity x,y,z) and how many metres a unit is (--scale)"),
        ({"gravity": [0, 0, -1]}, "say how many metres a unit is (--scale)"),
        ({"scale": 1.0}, "say which way is down (--gravity x,y,z)"),
    ],
)
def test_cameras_without_down_or_unit_count_as_unknown(options, missing, tmp_path):
    folder = transforms(tmp_path, np.eye(4))
    scene = read_photos(folder, **options)
    assert scene.world_from_cam is None
    assert missing in scene.notes[0]
    with pytest.raises(ValueError, match=re.escape(missing)):
        read_photos(folder, cameras=folder / "transforms.json", **options)


def test_gravity_is_turned_to_minus_z():
    rng = np.random.default_rng(0)
    for down in [*rng.normal(size=(20, 3)), [0, 0, -3.0], [0, 0, 2.0], [1e-3, 0, 1.0]]:
        matrix = align_to_gravity(down, 2.0)
        rotation = matrix[:3, :3] / 2.0
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(rotation) == pytest.approx(1.0)
        np.testing.assert_allclose(rotation @ down / np.linalg.norm(down), [0, 0, -1], atol=1e-9)
    np.testing.assert_allclose(align_to_gravity([0, 0, -1]), np.eye(4))


def test_gravity_is_read_from_text_or_file(tmp_path):
    (tmp_path / "gravity.txt").write_text("-0.5\n0.25\n1e-1\n")
    assert parse_gravity(str(tmp_path / "gravity.txt")).tolist() == [-0.5, 0.25, 0.1]
    assert parse_gravity("0, 0,-1").tolist() == [0, 0, -1]
    for text, message in (("down", "'down', wanted x,y,z"), ("0,1", "2 numbers, wanted three")):
        with pytest.raises(ValueError, match=message):
            parse_gravity(text)
    with pytest.raises(ValueError, match="wanted three numbers"):
        align_to_gravity([0, 0, 0])
    with pytest.raises(ValueError, match="scale is -1"):
        align_to_gravity([0, 0, 1], -1)


def spoil(kind: str, folder: Path) -> None:
    pose = folder / "frame-000050.pose.txt"
    matrix = np.loadtxt(pose)
    if kind == "no pose":
        pose.unlink()
    elif kind == "words":
        pose.write_text("a b c d")
    elif kind == "lost":
        np.savetxt(pose, np.full((4, 4), -np.inf))
    elif kind == "stretched":
        matrix[:3, :3] *= 1.1
        np.savetxt(pose, matrix)
    elif kind == "singular":
        np.savetxt(folder / "camera-intrinsics.txt", np.diag([0.0, 50, 1]))
    elif kind == "other size":
        np.savetxt(folder / "camera-intrinsics.txt", [[500, 0, 320], [0, 500, 240], [0, 0, 1]])
    elif kind == "broken photograph":
        (folder / "frame-000050.color.jpg").write_bytes((folder / "frame-000050.color.jpg").read_bytes()[:200])
    elif kind == "broken depth":
        (folder / "frame-000050.depth.png").write_bytes(b"no image")
    elif kind == "colour for depth":
        photo(folder / "frame-000050.depth.png")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no pose", "has no camera for 1 of 2 photographs (frame-000050.color.jpg)"),
        ("words", "frame-000050.pose.txt is no matrix of numbers"),
        ("lost", "frame-000050.pose.txt holds a non-finite value"),
        ("stretched", "frame-000050.pose.txt is not rigid"),
        ("singular", "camera-intrinsics.txt is singular"),
        ("other size", "lies outside the photograph of 64x48 pixels"),
        ("broken photograph", "frame-000050.color.jpg: unreadable photograph"),
        ("broken depth", "frame-000050.depth.png) cannot be decoded as a depth image"),
        ("colour for depth", "has the pixel mode RGB"),
    ],
)
def test_captures_that_cannot_be_used_name_the_file(kind, message, tmp_path):
    folder = rgbd(tmp_path / "scan", y_down())
    spoil(kind, folder)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_photos(folder, gravity=[0, 1, 0])


def test_folders_and_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no photograph; wanted files that end in"):
        read_photos(tmp_path)
    with pytest.raises(FileNotFoundError, match="no photograph"):
        read_photos(tmp_path / "nowhere")
    photo(tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError, match="no cameras"):
        read_photos(tmp_path, cameras=tmp_path / "transforms.json")
    with pytest.raises(FileNotFoundError, match="has no intrinsics file"):
        read_photos(tmp_path, cameras=tmp_path, gravity=[0, 0, -1])
    with pytest.raises(ValueError, match="num_views is 0"):
        read_photos(tmp_path, num_views=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "transforms.json is damaged"),
        ("{}", "transforms.json is damaged: KeyError('frames')"),
        ('{"frames": [{"file_path": "a.jpg"}]}', "every frame needs file_path and transform_matrix"),
        ('{"frames": [], "camera_model": "OPENCV_FISHEYE"}', "camera_model OPENCV_FISHEYE; wanted a pinhole"),
        ('{"frames": []}', "has no camera for 1 of 1 photographs (a.jpg)"),
    ],
)
def test_damaged_transforms_are_refused(content, message, tmp_path):
    photo(tmp_path / "a.jpg")
    (tmp_path / "transforms.json").write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_photos(tmp_path, gravity=[0, 0, -1], scale=1.0)
