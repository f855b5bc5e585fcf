"""Frames and depth: the numpy geometry between a dataset's cameras and the model's tensors.

World frame: metric, Z up. Camera frame: OpenCV axes (x right, y down, z forward), metres. Pixels: centres at +0.5, so
the image spans [0, width] x [0, height]. Depth is z-depth in metres; a value not finite or not above 0 is invalid.

The frame *ref* is the gravity-aligned frame of view 0: origin at its camera centre, +Z up, +Y its optical axis
projected on the horizontal plane, +X right. Within 10 degrees of straight down the image's up vector takes the place of
the optical axis, within 10 degrees of straight up its down vector; both continue what the optical axis says on the way
there, so +Y does not flip when a camera tilts past the vertical.

All functions work in float64 and accept any leading (batch) dimensions written as `...`.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_DEPTH_BINS = 16
MAX_BINNED_DEPTH_M = 8.0
NEAR_VERTICAL_DEG = 10.0
RIGID_TOLERANCE = 1e-3

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]


def validate_world_from_cam(world_from_cam: ArrayLike, name: str = "world_from_cam") -> Float:
    """Checks camera-to-world transforms and returns them as float64.

    Args:
        world_from_cam: [4, 4] or [views, 4, 4].
        name: what errors call the value.

    Raises:
        ValueError: wrong shape, a non-finite value, a last row other than (0, 0, 0, 1), or a 3x3 part that is no
            rotation within 1e-3 (a scale, a mirror); names the view.
    """
    matrices = _as_matrices(world_from_cam, 4, name)
    rotations = matrices[..., :3, :3]
    skew = np.abs(rotations @ rotations.swapaxes(-1, -2) - np.eye(3)).max(axis=(-1, -2))
    determinants = np.linalg.det(rotations)
    last_row_error = np.abs(matrices[..., 3, :] - np.array([0.0, 0.0, 0.0, 1.0])).max(axis=-1)
    _refuse(last_row_error > 1e-6, matrices, f"{name}{{view}} has the last row {{value[3]}}, wanted (0, 0, 0, 1)")
    not_rigid = (skew > RIGID_TOLERANCE) | (np.abs(determinants - 1.0) > RIGID_TOLERANCE)
    _refuse(
        not_rigid,
        np.stack([skew, determinants], axis=-1),
        f"{name}{{view}} is not rigid: its 3x3 part has determinant {{value[1]:.4f}} and is {{value[0]:.4f}} away from "
        "orthonormal, wanted a rotation (remove scale or mirroring; OpenCV axes, camera to world)",
    )
    return matrices


def validate_intrinsics(intrinsics: ArrayLike, name: str = "intrinsics", size: tuple[int, int] | None = None) -> Float:
    """Checks pinhole matrices [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels and returns them as float64.

    Args:
        intrinsics: [3, 3] or [views, 3, 3].
        name: what errors call the value.
        size: (width, height) in pixels of whole photographs, within which the centre must lie: it tells intrinsics
            stated for a larger size. None = any.

    Raises:
        ValueError: wrong shape, a non-finite value, a focal length that is not positive (singular), skew, another last
            row, or a centre outside; names the view.
    """
    matrices = _as_matrices(intrinsics, 3, name)
    focals = matrices[..., [0, 1], [0, 1]]
    _refuse(
        (focals <= 1e-6).any(axis=-1),
        focals,
        f"{name}{{view}} is singular: fx = {{value[0]:g}}, fy = {{value[1]:g}}, wanted both positive, in pixels",
    )
    off_diagonal = np.abs(matrices[..., [0, 1], [1, 0]]).max(axis=-1) > 1e-6 * focals.max(axis=-1)
    last_row = np.abs(matrices[..., 2, :] - np.array([0.0, 0.0, 1.0])).max(axis=-1) > 1e-6
    _refuse(
        off_diagonal | last_row,
        matrices,
        f"{name}{{view}} is {{rows}}, wanted [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]; undistort the image first",
    )
    if size is not None:
        centers = matrices[..., :2, 2]
        _refuse(
            ((centers <= 0) | (centers >= size)).any(axis=-1),
            centers,
            f"{name}{{view}}: the camera's centre ({{value[0]:g}}, {{value[1]:g}}) lies outside the photograph of "
            f"{size[0]}x{size[1]} pixels; give the intrinsics of this size",
        )
    return matrices


def ref_from_world(world_from_cam: ArrayLike) -> Float:
    """The transform from the world to the ref frame of the camera given: [4, 4] -> [4, 4]. Exactly rigid.

    Raises:
        ValueError: as `validate_world_from_cam`.
    """
    camera = validate_world_from_cam(world_from_cam)
    if camera.ndim != 2:
        raise ValueError(f"ref_from_world takes the camera of view 0 alone, [4, 4], got shape {camera.shape}")
    _, down, forward = camera[:3, :3].T
    cosine_to_up = forward[2] / np.linalg.norm(forward)
    near_vertical = abs(cosine_to_up) > np.cos(np.radians(NEAR_VERTICAL_DEG))
    heading = forward if not near_vertical else (down if cosine_to_up > 0 else -down)
    y_axis = np.array([heading[0], heading[1], 0.0]) / np.hypot(heading[0], heading[1])
    x_axis = np.array([y_axis[1], -y_axis[0], 0.0])
    rotation = np.stack([x_axis, y_axis, [0.0, 0.0, 1.0]])
    return _rigid(rotation, -rotation @ camera[:3, 3])


def invert_rigid(b_from_a: ArrayLike) -> Float:
    """The inverse of rigid transforms, a_from_b: [..., 4, 4] -> [..., 4, 4]."""
    matrices = np.asarray(b_from_a, dtype=np.float64)
    rotation = matrices[..., :3, :3].swapaxes(-1, -2)
    return _rigid(rotation, -(rotation @ matrices[..., :3, 3:])[..., 0])


def transform_points(b_from_a: ArrayLike, points: ArrayLike) -> Float:
    """Takes points from frame a to frame b: [4, 4], [..., 3] -> [..., 3]."""
    matrix = np.asarray(b_from_a, dtype=np.float64)
    return np.asarray(points, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def resize_intrinsics(
    intrinsics: ArrayLike, scale_x: ArrayLike, scale_y: ArrayLike, offset_x: ArrayLike = 0.0, offset_y: ArrayLike = 0.0
) -> Float:
    """Intrinsics of an image whose pixels moved by u' = scale_x * u + offset_x and v' = scale_y * v + offset_y.

    With pixel centres at +0.5 a plain resize is a pure scaling, of cx and cy too; a crop is a negative offset.

    Args:
        intrinsics: [..., 3, 3] in pixels.
        scale_x, scale_y, offset_x, offset_y: numbers or arrays of the leading shape [...]; offsets in new pixels.

    Returns:
        [..., 3, 3] in pixels of the new image.
    """
    resized = np.array(intrinsics, dtype=np.float64)
    resized[..., 0, :] *= np.asarray(scale_x)[..., None]
    resized[..., 1, :] *= np.asarray(scale_y)[..., None]
    resized[..., 0, 2] += offset_x
    resized[..., 1, 2] += offset_y
    return resized


def valid_depth(depth_m: ArrayLike) -> Bool:
    """Where a depth map holds a measurement: finite and above 0. Shape kept."""
    depth = np.asarray(depth_m)
    return np.isfinite(depth) & (depth > 0)


def depth_histogram(depth_m: ArrayLike) -> Float:
    """Share of the valid depth in 16 bins of 0.5 m from 0 to 8 m, the last one open.

    Args:
        depth_m: [..., height, width] metres.

    Returns:
        [..., 16], summing to 1, or all zero where nothing is valid.
    """
    depth = np.asarray(depth_m, dtype=np.float64)
    valid = valid_depth(depth)
    scaled = np.where(valid, depth, 0.0) * (NUM_DEPTH_BINS / MAX_BINNED_DEPTH_M)
    bins = np.minimum(scaled, NUM_DEPTH_BINS - 1).astype(np.int64)
    num_maps = int(np.prod(depth.shape[:-2], dtype=np.int64))
    map_index = np.arange(num_maps).reshape(*depth.shape[:-2], 1, 1)
    flat = (bins + NUM_DEPTH_BINS * map_index)[valid]
    counts = np.bincount(flat, minlength=num_maps * NUM_DEPTH_BINS).reshape(*depth.shape[:-2], NUM_DEPTH_BINS)
    return counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)


def patch_points(
    depth_m: ArrayLike, intrinsics: ArrayLike, ref_from_cam: ArrayLike, patch_size: int
) -> tuple[Float, Bool]:
    """Mean of the back-projected valid depth of each patch.

    Args:
        depth_m: [..., height, width] metres, at the size of the image that is cut into patches.
        intrinsics: [..., 3, 3] in pixels of that image.
        ref_from_cam: [..., 4, 4].
        patch_size: side of a patch in pixels; height and width are multiples of it.

    Returns:
        points [..., patches, 3] in ref metres, row-major, zero where the mask is False; mask [..., patches], True where
        the patch holds a valid depth.

    Raises:
        ValueError: a depth map that patches do not tile.
    """
    depth = np.asarray(depth_m, dtype=np.float64)
    height, width = depth.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(f"depth of {height}x{width} pixels is no multiple of the patch size {patch_size}")
    valid = valid_depth(depth)
    depth = np.where(valid, depth, 0.0)
    moments = _patch_moments(depth, patch_size)  # [..., rows, columns, 3] sums of d, column * d, row * d
    counts = _patch_moments(valid.astype(np.float64), patch_size)[..., 0]
    sum_d, sum_ud, sum_vd = np.moveaxis(moments, -1, 0)
    sum_ud = sum_ud + patch_size * np.arange(width // patch_size) * sum_d
    sum_vd = sum_vd + patch_size * np.arange(height // patch_size)[:, None] * sum_d
    k = np.asarray(intrinsics, dtype=np.float64)[..., None, None, :, :]
    sum_x = (sum_ud - k[..., 0, 2] * sum_d) / k[..., 0, 0]
    sum_y = (sum_vd - k[..., 1, 2] * sum_d) / k[..., 1, 1]
    means = np.stack([sum_x, sum_y, sum_d], axis=-1) / np.maximum(counts, 1.0)[..., None]
    in_cam = means.reshape(*depth.shape[:-2], -1, 3)  # [..., patches, 3]
    mask = counts.reshape(*depth.shape[:-2], -1) > 0
    transform = np.asarray(ref_from_cam, dtype=np.float64)
    points = in_cam @ transform[..., :3, :3].swapaxes(-1, -2) + transform[..., None, :3, 3]
    return np.where(mask[..., None], points, 0.0), mask


def _patch_moments(values: Float, patch_size: int) -> Float:
    """Sums of value, column * value and row * value over each patch; columns and rows at pixel centres in the patch.

    [..., height, width] -> [..., rows, columns, 3]
    """
    *batch, height, width = values.shape
    tiles = values.reshape(*batch, height // patch_size, patch_size, width // patch_size, patch_size)
    centres = np.arange(patch_size) + 0.5
    weights = np.stack([np.ones(patch_size), centres], axis=-1)
    over_columns = tiles @ weights  # [..., rows, patch_size, columns, 2]
    plain = over_columns.sum(axis=-3)
    by_row = np.einsum("...rpc,p->...rc", over_columns[..., 0], centres)
    return np.concatenate([plain, by_row[..., None]], axis=-1)


def _rigid(rotation: Float, translation: Float) -> Float:
    matrix = np.zeros((*rotation.shape[:-2], 4, 4))
    matrix[..., :3, :3] = rotation
    matrix[..., :3, 3] = translation
    matrix[..., 3, 3] = 1.0
    return matrix


def _as_matrices(value: ArrayLike, side: int, name: str) -> Float:
    try:
        matrices = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not an array of numbers: {error}") from error
    if matrices.ndim not in (2, 3) or matrices.shape[-2:] != (side, side):
        raise ValueError(f"{name} has shape {matrices.shape}, wanted [{side}, {side}] or [views, {side}, {side}]")
    _refuse(~np.isfinite(matrices).all(axis=(-1, -2)), matrices, f"{name}{{view}} holds a non-finite value: {{rows}}")
    return matrices


def _refuse(bad: Bool, values: Float, message: str) -> None:
    """Raises ValueError for the first bad view; `message` may use {view}, {value} and {rows}."""
    if not np.any(bad):
        return
    if np.ndim(bad) == 0:
        raise ValueError(message.format(view="", value=values, rows=values.tolist()))
    index = int(np.flatnonzero(bad)[0])
    raise ValueError(message.format(view=f" of view {index}", value=values[index], rows=values[index].tolist()))
