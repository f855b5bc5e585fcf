"""Which views of a scene are kept: pure functions of cameras, depth and sharpness.

    uniform     evenly over the capture
    coverage    greedy: each view adds the most space not seen before; blurred and near-duplicate frames come last
    first       the first frames of the capture, for comparison only

Every choice is ordered best first, so that its beginning is a good choice of fewer views, and is a function of its
arguments alone.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from processing.geometry_vggt_qwen3 import transform_points, valid_depth

METHODS = ("uniform", "coverage", "first")
VOXEL_M = 0.1
FRUSTUM_VOXEL_M = 0.25
FRUSTUM_NEAR_M, FRUSTUM_FAR_M = 0.5, 4.0
MAX_SEEN_DEPTH_M = 8.0
SEEN_AGAIN = 0.2
NEAR_DUPLICATE_M, NEAR_DUPLICATE_DEG = 0.15, 8.0
BLUR_WINDOW, BLUR_SHARE = 10, 0.5
LOOK_GRID = 48

Float = NDArray[np.float64]
Voxels = NDArray[np.int64]


def uniform(num_frames: int, num_views: int, seed: Sequence[int] | None = None) -> list[int]:
    """Frames spread evenly over a capture of `num_frames`, at most `num_views`, any beginning spread evenly too.

    With a seed each frame is drawn from its own stretch of the capture instead of taken from the stretch's middle.
    """
    _check(num_frames, num_views)
    count = min(num_frames, num_views)
    edges = np.arange(count + 1) * num_frames / count
    shares = np.full(count, 0.5) if seed is None else np.random.default_rng(seed).uniform(size=count)
    frames = np.minimum((edges[:-1] + shares * np.diff(edges)).astype(np.int64), num_frames - 1)
    return [int(frames[stretch]) for stretch in _halving_order(count)]


def first(num_frames: int, num_views: int) -> list[int]:
    """The first frames of the capture."""
    _check(num_frames, num_views)
    return list(range(min(num_frames, num_views)))


def coverage(
    seen: Sequence[Voxels], num_views: int, *, world_from_cam: ArrayLike, sharpness: ArrayLike | None = None
) -> list[int]:
    """The greedy choice that sees most, at most `num_views` frames.

    A view gains 1 for each place not seen before, and a fifth as much each further time it is seen. As long as others
    add anything, views are left out that are blurred beside their neighbours in time, or stand within 0.15 m and 8
    degrees of one already chosen.

    Args:
        seen: the voxel ids each frame sees (`depth_voxels` or `frustum_voxels`), in order of capture.
        num_views: how many to choose.
        world_from_cam: [frames, 4, 4].
        sharpness: [frames], comparable within the capture (`sharpness` below); None = all alike.
    """
    _check(len(seen), num_views)
    cameras = np.asarray(world_from_cam, dtype=np.float64)
    table = _seen_table(seen)
    worth = np.ones(table.shape[1])
    blurred = np.zeros(len(seen), dtype=bool) if sharpness is None else is_blurred(sharpness)
    held_back = blurred.copy()
    left = np.ones(len(seen), dtype=bool)
    chosen: list[int] = []
    while len(chosen) < min(num_views, len(seen)):
        gain = table @ worth
        pool = left & ~held_back
        if not (pool & (gain > 0)).any():
            pool = left & ~blurred if (left & ~blurred).any() else left
        best = int(np.where(pool, gain, -1.0).argmax())
        chosen.append(best)
        left[best] = False
        worth = np.where(table[best] > 0, worth * SEEN_AGAIN, worth)
        held_back |= near_duplicates(cameras, best)
    return chosen


def share_seen(seen: Sequence[Voxels], chosen: Sequence[int]) -> float:
    """Share of all places seen by any frame that the chosen frames see; 0 where nothing is seen."""
    everything = np.unique(np.concatenate([*seen, np.zeros(0, dtype=np.int64)]))
    if not len(everything):
        return 0.0
    return len(np.unique(np.concatenate([seen[index] for index in chosen]))) / len(everything)


def depth_voxels(
    depth_m: ArrayLike,
    intrinsics: ArrayLike,
    world_from_cam: ArrayLike,
    voxel_m: float = VOXEL_M,
    grid: int = LOOK_GRID,
) -> Voxels:
    """Ids of the voxels of world space on the surfaces a frame sees, ascending.

    Args:
        depth_m: [H, W] metres, not valid at and below 0.
        intrinsics: [3, 3] in pixels of the depth map.
        world_from_cam: [4, 4].
        voxel_m: side of a voxel.
        grid: at most so many rows and columns of pixels are looked at.
    """
    depth = np.asarray(depth_m, dtype=np.float64)
    rows, columns = (np.linspace(0, side - 1, min(side, grid)).round().astype(np.int64) for side in depth.shape)
    sampled = depth[rows[:, None], columns]
    valid = valid_depth(sampled) & (sampled < MAX_SEEN_DEPTH_M)
    pixels = np.stack(np.meshgrid(columns + 0.5, rows + 0.5), axis=-1)[valid]
    points = _back_project(pixels, sampled[valid], intrinsics)
    return _voxel_ids(transform_points(world_from_cam, points), voxel_m)


def frustum_voxels(intrinsics: ArrayLike, size: tuple[int, int], world_from_cam: ArrayLike) -> Voxels:
    """Ids of the voxels of world space inside a camera's frustum from 0.5 to 4 m: what it sees where depth is unknown.

    `size` (width, height) and `intrinsics` [3, 3] of the photograph.
    """
    steps = np.arange(FRUSTUM_NEAR_M, FRUSTUM_FAR_M, FRUSTUM_VOXEL_M)
    grid = (np.arange(16) + 0.5) / 16
    u, v, z = np.meshgrid(grid * size[0], grid * size[1], steps, indexing="ij")
    points = _back_project(np.stack([u.ravel(), v.ravel()], axis=-1), z.ravel(), intrinsics)
    return _voxel_ids(transform_points(world_from_cam, points), FRUSTUM_VOXEL_M)


def sharpness(grey: ArrayLike) -> float:
    """How sharp an image [H, W] is: the variance of its Laplacian, larger where edges are crisp."""
    image = np.asarray(grey, dtype=np.float64)
    laplacian = image[:-2, 1:-1] + image[2:, 1:-1] + image[1:-1, :-2] + image[1:-1, 2:] - 4 * image[1:-1, 1:-1]
    return float(laplacian.var()) if laplacian.size else 0.0


def is_blurred(sharpness_of: ArrayLike) -> NDArray[np.bool_]:
    """Frames less than half as sharp as the median of their 10 neighbours on either side: [frames] -> bool [frames]."""
    values = np.asarray(sharpness_of, dtype=np.float64)
    spans = [values[max(0, i - BLUR_WINDOW) : i + BLUR_WINDOW + 1] for i in range(len(values))]
    return values < BLUR_SHARE * np.array([np.median(span) for span in spans])


def near_duplicates(world_from_cam: Float, index: int) -> NDArray[np.bool_]:
    """Cameras within 0.15 m and 8 degrees of camera `index`: [frames, 4, 4] -> bool [frames]."""
    distance = np.linalg.norm(world_from_cam[:, :3, 3] - world_from_cam[index, :3, 3], axis=-1)
    cosine = world_from_cam[:, :3, 2] @ world_from_cam[index, :3, 2]
    return (distance < NEAR_DUPLICATE_M) & (cosine > np.cos(np.radians(NEAR_DUPLICATE_DEG)))


def _check(num_frames: int, num_views: int) -> None:
    if num_frames < 1 or num_views < 1:
        raise ValueError(f"{num_views} views of {num_frames} frames: both must be at least 1")


def _halving_order(count: int) -> list[int]:
    """0 to count - 1 so that every beginning is spread over the whole: the bit-reversed numbers below `count`."""
    bits = max(1, (count - 1).bit_length())
    reversed_numbers = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(1 << bits))
    return [number for number in reversed_numbers if number < count]


def _back_project(pixels: Float, depth_m: Float, intrinsics: ArrayLike) -> Float:
    """Camera points [N, 3] of pixels [N, 2] at z-depths [N]."""
    k = np.asarray(intrinsics, dtype=np.float64)
    x = (pixels[:, 0] - k[0, 2]) / k[0, 0] * depth_m
    y = (pixels[:, 1] - k[1, 2]) / k[1, 1] * depth_m
    return np.stack([x, y, depth_m], axis=-1)


def _voxel_ids(points: Float, voxel_m: float) -> Voxels:
    cells = np.floor(points / voxel_m).astype(np.int64) + (1 << 19)
    return np.unique((cells[:, 0] << 40) | (cells[:, 1] << 20) | cells[:, 2])


def _seen_table(seen: Sequence[Voxels]) -> NDArray[np.float32]:
    """[frames, voxels]: 1 where a frame sees a voxel."""
    everything = np.unique(np.concatenate([*seen, np.zeros(0, dtype=np.int64)]))
    table = np.zeros((len(seen), len(everything)), dtype=np.float32)
    for row, voxels in zip(table, seen):
        row[np.searchsorted(everything, voxels)] = 1.0
    return table
