"""The choice of views: deterministic, best first, and coverage sees more than the others."""

from __future__ import annotations

import numpy as np
import pytest

from datasets_scripts import views
from tests.frames import camera
from tests.layouts import Truth, back_project, room_truth

INTRINSICS = np.array([[50.0, 0, 50], [0, 50, 50], [0, 0, 1]])


@pytest.fixture(scope="module")
def truth() -> Truth:
    return room_truth(3, 16)


@pytest.fixture(scope="module")
def seen(truth: Truth) -> list[np.ndarray]:
    return [views.depth_voxels(d, truth.intrinsics, c) for d, c in zip(truth.depth_m, truth.world_from_cam)]


@pytest.mark.parametrize("num_frames", [1, 2, 7, 32, 1000])
@pytest.mark.parametrize("num_views", [1, 3, 8, 32])
def test_uniform_is_spread_and_so_is_its_beginning(num_frames: int, num_views: int) -> None:
    chosen = views.uniform(num_frames, num_views)
    count = min(num_frames, num_views)
    assert len(set(chosen)) == count and max(chosen) < num_frames
    stretch = num_frames / count
    assert all(i * stretch - 1 < frame <= (i + 1) * stretch for i, frame in enumerate(sorted(chosen)))
    beginning = sorted(chosen[: max(1, count // 2)])
    gaps = np.diff([-1, *beginning, num_frames])
    assert gaps.max() <= 4 * num_frames / len(beginning) + 2


def test_uniform_with_a_seed_draws_one_frame_a_stretch() -> None:
    one, same, other = (sorted(views.uniform(800, 8, seed)) for seed in ([1, 2], [1, 2], [1, 3]))
    assert one == same != other
    assert [frame // 100 for frame in one] == list(range(8))


def test_first_is_first() -> None:
    assert views.first(20, 3) == [0, 1, 2] and views.first(2, 3) == [0, 1]


@pytest.mark.parametrize(("frames", "wanted"), [(0, 4), (4, 0)])
def test_nothing_to_choose_is_refused(frames: int, wanted: int) -> None:
    for choose in (views.uniform, views.first):
        with pytest.raises(ValueError, match="at least 1"):
            choose(frames, wanted)


def test_depth_voxels_hold_the_points_seen(truth: Truth) -> None:
    """Against the world points of every pixel, and of none of another room."""
    ids = views.depth_voxels(truth.depth_m[0], truth.intrinsics, truth.world_from_cam[0], voxel_m=0.2)
    points = back_project(truth.depth_m[0], truth.intrinsics, truth.world_from_cam[0]).reshape(-1, 3)
    cells = np.floor(points / 0.2).astype(np.int64) + (1 << 19)
    everything = set(((cells[:, 0] << 40) | (cells[:, 1] << 20) | cells[:, 2]).tolist())
    assert set(ids.tolist()) <= everything
    assert len(ids) > 0.6 * len(everything)


def test_invalid_depth_sees_nothing() -> None:
    for value in (0.0, np.nan, np.inf, -1.0, 50.0):
        assert len(views.depth_voxels(np.full((8, 8), value), INTRINSICS, np.eye(4))) == 0


def test_coverage_beats_the_others_and_is_deterministic(truth: Truth, seen: list[np.ndarray]) -> None:
    chosen = views.coverage(seen, 4, world_from_cam=truth.world_from_cam)
    assert chosen == views.coverage(seen, 4, world_from_cam=truth.world_from_cam)
    share = views.share_seen(seen, chosen)
    assert share > views.share_seen(seen, views.uniform(16, 4)) + 0.02
    assert share > views.share_seen(seen, views.first(16, 4)) + 0.02
    assert views.share_seen(seen, range(16)) == 1.0


def test_coverage_is_greedy_and_its_beginning_too(truth: Truth, seen: list[np.ndarray]) -> None:
    chosen = views.coverage(seen, 8, world_from_cam=truth.world_from_cam)
    assert chosen[:3] == views.coverage(seen, 3, world_from_cam=truth.world_from_cam)
    assert chosen[0] == int(np.argmax([len(ids) for ids in seen]))
    assert len(views.coverage(seen, 99, world_from_cam=truth.world_from_cam)) == 16


def test_frusta_stand_in_for_depth(truth: Truth, seen: list[np.ndarray]) -> None:
    frusta = [views.frustum_voxels(truth.intrinsics, (112, 112), c) for c in truth.world_from_cam]
    chosen = views.coverage(frusta, 4, world_from_cam=truth.world_from_cam)
    assert views.share_seen(seen, chosen) > views.share_seen(seen, views.first(16, 4))


def test_blurred_and_near_duplicate_frames_come_last() -> None:
    eyes = [(0.0, 0, 0), (0.05, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0)]
    cameras = np.stack([camera(eye, (0, 1, 0)) for eye in eyes])
    seen = [np.arange(100), np.arange(100, 190), *(np.arange(1000 * i, 1000 * i + 50) for i in (1, 2, 3, 4))]
    sharp = [10.0, 10, 10, 1, 10, 10]
    chosen = views.coverage(seen, 6, world_from_cam=cameras, sharpness=sharp)
    assert chosen[0] == 0  # sees most
    assert set(chosen[-2:]) == {1, 3}  # frame 1 stands where frame 0 does; frame 3 is blurred
    assert views.coverage(seen, 2, world_from_cam=cameras)[1] in (2, 3, 4, 5)


def test_what_is_new_counts_more_than_what_is_seen_again() -> None:
    cameras = np.stack([camera((x, 0, 0), (0, 1, 0)) for x in (0.0, 1, 2, 3)])
    seen = [np.arange(100), np.arange(99), np.arange(200, 225), np.arange(60, 110)]
    assert views.coverage(seen, 4, world_from_cam=cameras) == [0, 2, 1, 3]


def test_sharpness_falls_with_blur(truth: Truth) -> None:
    grey = truth.images[0].mean(-1)
    blurred = (grey[:-2] + grey[1:-1] + grey[2:]) / 3
    assert views.sharpness(blurred) < 0.6 * views.sharpness(grey)
    assert views.sharpness(np.zeros((1, 1))) == 0.0
