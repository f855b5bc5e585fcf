"""Frames, intrinsics and depth: against hand-made cases, brute force and the laws they must keep."""

from __future__ import annotations

import numpy as np
import pytest

from processing.geometry_vggt_qwen3 import (
    depth_histogram,
    invert_rigid,
    patch_points,
    ref_from_world,
    resize_intrinsics,
    transform_points,
    validate_intrinsics,
    validate_world_from_cam,
)
from tests.frames import camera, turn_and_move


def tilted(degrees: float) -> np.ndarray:
    """A camera heading along world +x whose optical axis is `degrees` above the horizon (beyond 90: upside down)."""
    angle = np.radians(degrees)
    forward, up = (np.cos(angle), 0.0, np.sin(angle)), (-np.sin(angle), 0.0, np.cos(angle))
    return camera((1.0, 2.0, 1.5), forward, up)


def test_ref_is_at_the_first_camera_with_its_heading_ahead():
    world_from_cam = camera((3.0, -2.0, 1.6), (1.0, 1.0, -0.3))
    ref = ref_from_world(world_from_cam)
    assert np.allclose(transform_points(ref, [3.0, -2.0, 1.6]), 0)
    ahead = np.array([3.0, -2.0, 1.6]) + np.array([1.0, 1.0, 0.0]) * np.sqrt(2)
    assert np.allclose(transform_points(ref, ahead), [0, 2, 0])
    to_the_right = np.array([3.0, -2.0, 1.6]) + np.array([1.0, -1.0, 0.0]) / np.sqrt(2)
    assert np.allclose(transform_points(ref, to_the_right), [1, 0, 0])
    assert np.allclose(transform_points(ref, [3.0, -2.0, 2.6]), [0, 0, 1])
    assert np.allclose(ref[:3, :3] @ ref[:3, :3].T, np.eye(3), atol=1e-14)
    assert np.isclose(np.linalg.det(ref[:3, :3]), 1)


@pytest.mark.parametrize("degrees", [-99.9, -95, -90, -85, -80.1, -79.9, -45, 0, 45, 79.9, 80.1, 85, 90, 95, 99.9])
def test_heading_does_not_flip_near_the_vertical(degrees):
    ref = ref_from_world(tilted(degrees))
    assert np.allclose(ref[1, :3], [1, 0, 0], atol=1e-9), "+Y keeps the heading, here world +x"


def test_a_rolled_camera_straight_down_follows_the_image_up_vector():
    ref = ref_from_world(camera((0, 0, 2), (0, 0, -1), up=(0.6, 0.8, 0)))
    assert np.allclose(ref[1, :3], [0.6, 0.8, 0])


def test_moving_the_world_moves_ref_from_world_by_its_inverse():
    rng = np.random.default_rng(0)
    for _ in range(20):
        world_from_cam = camera(rng.normal(size=3), rng.normal(size=3))
        new_from_world = turn_and_move(rng.uniform(-9, 9), rng.uniform(-50, 50, 3))
        moved = ref_from_world(new_from_world @ world_from_cam)
        assert np.allclose(moved @ new_from_world, ref_from_world(world_from_cam), atol=1e-12)


def test_invert_rigid_and_transform_points():
    transforms = np.stack([camera((1, 2, 3), (1, 0.2, 0.1)), camera((-4, 0, 1), (0, -1, 0.5))])
    assert np.allclose(invert_rigid(transforms) @ transforms, np.eye(4))
    points = np.random.default_rng(1).normal(size=(5, 6, 3))
    there = transform_points(transforms[0], points)
    assert there.shape == points.shape
    assert np.allclose(transform_points(invert_rigid(transforms[0]), there), points)


def test_resized_intrinsics_project_to_the_moved_pixel():
    k = np.array([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]])
    point = np.array([0.3, -0.2, 2.0])
    u, v, w = k @ point
    resized = resize_intrinsics(np.stack([k, k]), np.array([0.5, 2.0]), 0.25, np.array([-7.0, 0.0]), 3.0)
    for matrix, scale_x, offset_x in zip(resized, (0.5, 2.0), (-7.0, 0.0)):
        new_u, new_v, _ = matrix @ point / w
        assert np.isclose(new_u, u / w * scale_x + offset_x)
        assert np.isclose(new_v, v / w * 0.25 + 3.0)
    assert k[0, 0] == 500.0, "the input stays as it is"


def test_depth_histogram_bins_half_metres_and_leaves_the_last_open():
    depth = np.zeros((2, 2, 4))
    depth[0] = [[0.1, 0.5, 7.49, 7.5], [40.0, np.nan, 0.0, 0.49]]
    histogram = depth_histogram(depth)
    expected = np.zeros(16)
    expected[[0, 1, 14, 15]] = np.array([2, 1, 1, 2]) / 6
    assert np.allclose(histogram[0], expected)
    assert not histogram[1].any(), "no valid depth is all zero"
    assert depth_histogram(depth[0]).shape == (16,)


def test_patch_points_equal_brute_force():
    rng = np.random.default_rng(2)
    depth = rng.uniform(0.5, 6, (2, 3, 28, 42))
    depth[rng.random(depth.shape) < 0.3] = 0
    depth[0, 0, :14, :14] = np.nan
    k = np.tile([[40.0, 0, 20.3], [0, 44, 13.1], [0, 0, 1]], (2, 3, 1, 1))
    ref_from_cam = np.stack([[camera(rng.normal(size=3), rng.normal(size=3)) for _ in range(3)] for _ in range(2)])
    points, mask = patch_points(depth, k, ref_from_cam, 14)
    assert points.shape == (2, 3, 6, 3) and mask.shape == (2, 3, 6)
    assert not mask[0, 0, 0] and not points[0, 0, 0].any() and mask.sum() == mask.size - 1
    for s, v, row, column in np.ndindex(2, 3, 2, 3):
        expected = []
        for y in range(row * 14, row * 14 + 14):
            for x in range(column * 14, column * 14 + 14):
                if depth[s, v, y, x] > 0:
                    in_cam = np.linalg.inv(k[s, v]) @ [x + 0.5, y + 0.5, 1] * depth[s, v, y, x]
                    expected.append(transform_points(ref_from_cam[s, v], in_cam))
        if expected:
            assert np.allclose(points[s, v, row * 3 + column], np.mean(expected, axis=0), atol=1e-9)


def test_patch_points_refuse_a_map_that_patches_do_not_tile():
    with pytest.raises(ValueError, match="30x28 pixels is no multiple of the patch size 14"):
        patch_points(np.ones((30, 28)), np.eye(3), np.eye(4), 14)


def with_value(row: int, column: int, value: float) -> np.ndarray:
    matrices = np.tile(np.eye(4), (3, 1, 1))
    matrices[1, row, column] = value
    return matrices


@pytest.mark.parametrize(
    ("matrices", "message"),
    [
        (with_value(0, 3, np.nan), "view 1 holds a non-finite value"),
        (with_value(0, 3, -np.inf), "view 1 holds a non-finite value"),
        (with_value(2, 2, -1.0), "view 1 is not rigid: .* determinant -1.0000"),
        (with_value(0, 1, 0.01), "view 1 is not rigid"),
        (1.01 * np.eye(4)[None], "last row"),
        (np.diag([1.01, 1.01, 1.01, 1])[None], "view 0 is not rigid"),
        (with_value(3, 0, 1.0), "view 1 has the last row"),
        (np.eye(3), r"shape \(3, 3\), wanted \[4, 4\]"),
        ([["a"] * 4] * 4, "no array of numbers|not an array of numbers"),
    ],
)
def test_world_from_cam_is_validated(matrices, message):
    with pytest.raises(ValueError, match=message):
        validate_world_from_cam(matrices)


def test_a_pose_written_with_few_decimals_is_accepted():
    rounded = np.round(camera((1, 2, 3), (1, 0.2, 0.1)), 4)
    assert validate_world_from_cam(rounded.astype(np.float32)).dtype == np.float64


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.diag([0.0, 500, 1]), "singular: fx = 0, fy = 500"),
        (np.diag([500.0, -500, 1]), "singular: fx = 500, fy = -500"),
        ([[500, 3, 320], [0, 500, 240], [0, 0, 1]], r"wanted \[\[fx, 0, cx\]"),
        ([[500, 0, 320], [0, 500, 240], [0, 0, 2]], r"wanted \[\[fx, 0, cx\]"),
        ([[500, 0, np.nan], [0, 500, 240], [0, 0, 1]], "non-finite"),
    ],
)
def test_intrinsics_are_validated(matrix, message):
    with pytest.raises(ValueError, match=message):
        validate_intrinsics(matrix)
    with pytest.raises(ValueError, match=f"scene 4: k of view 1.*{message}"):
        validate_intrinsics(np.stack([np.diag([500.0, 500, 1]), np.asarray(matrix)]), "scene 4: k")
