"""Analytic ray casting of many rooms at once: which primitive each pixel sees, and at what depth.

Every primitive is projected to a rectangle of pixels; only the rays of that rectangle are tested against it, in its
canonical space, and the nearest hit of each pixel wins. Cost follows the covered area, not rays times primitives.
The same code runs on CPU and GPU; memory is bounded by testing a fixed number of (ray, primitive) pairs at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from datasets_scripts.rooms.scene import BOX, CYLINDER, ELLIPSOID, QUAD, Room

NEAR = 0.05  # metres
_PAIRS_PER_CHUNK = {"cpu": 1 << 17, "cuda": 1 << 22}
_NOTHING = torch.iinfo(torch.int64).max
_CORNERS = torch.tensor([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
_EDGES = torch.tensor([[a, b] for a in range(8) for b in range(a + 1, 8) if (a ^ b) in (1, 2, 4)]).T


Intersection = Callable[[torch.Tensor, list[torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class RoomBatch:
    """Rooms as tensors, float32 and int64, room frame. P primitives of all rooms one after the other.

    canonical_from_room: x -> inverse @ (x - center), with inverse = diag(1 / half) @ rotation.T.
    """

    shape: torch.Tensor  # [P]
    center: torch.Tensor  # [P, 3]
    half: torch.Tensor  # [P, 3]
    rotation: torch.Tensor  # [P, 3, 3]
    inverse: torch.Tensor  # [P, 3, 3]
    color: torch.Tensor  # [P, 3] sRGB
    material: torch.Tensor  # [P]
    texture: torch.Tensor  # [P, 2]
    instance: torch.Tensor  # [P]
    first: torch.Tensor  # [S + 1] first primitive of each room

    @property
    def device(self) -> torch.device:
        """Device of every tensor."""
        return self.center.device


def pack_rooms(rooms: list[Room], device: torch.device | str) -> RoomBatch:
    """Return the primitives of `rooms` as tensors on `device`."""
    packed = [room.primitives() for room in rooms]

    def joined(values: list[np.ndarray], dtype: torch.dtype) -> torch.Tensor:
        return torch.as_tensor(np.concatenate(values), dtype=dtype).to(device)

    def floats(name: str) -> torch.Tensor:
        return joined([getattr(primitives, name) for primitives, _ in packed], torch.float32)

    def integers(name: str) -> torch.Tensor:
        return joined([getattr(primitives, name) for primitives, _ in packed], torch.int64)

    counts = torch.tensor([0, *(len(primitives) for primitives, _ in packed)])
    inverse = [item.rotation.transpose(0, 2, 1) / item.half[:, :, None] for item, _ in packed]
    return RoomBatch(
        integers("shape"),
        floats("center"),
        floats("half"),
        floats("rotation"),
        joined(inverse, torch.float32),
        floats("color"),
        integers("material"),
        floats("texture"),
        joined([ids for _, ids in packed], torch.int64),
        counts.cumsum(0).to(device),
    )


@dataclass(frozen=True)
class Views:
    """N square pinhole cameras (OpenCV axes, principal point in the middle)."""

    room_from_cam: torch.Tensor  # [N, 4, 4]
    scene: torch.Tensor  # [N] index of the camera's room in the batch
    focal: torch.Tensor  # [N] focal length in image widths
    size: int  # pixels on each side

    def __len__(self) -> int:
        return len(self.scene)


def trace(
    batch: RoomBatch,
    views: Views,
    offset: tuple[float, float] = (0.0, 0.0),
    wanted: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return z-depth [N, size, size] in metres (0 = nothing hit) and primitive index [N, size, size] (-1 = nothing).

    Rays pass through the pixel centres, moved by `offset` (x, y) pixels. Where the bool mask `wanted`
    [N, size, size] is False nothing is tested and nothing hit.
    """
    size = views.size
    view, primitive = _view_primitive_pairs(batch, views.scene)
    rotation = views.room_from_cam[view, :3, :3]
    relative = views.room_from_cam[view, :3, 3] - batch.center[primitive]  # [M, 3]
    spans = _pixel_rectangles(batch, primitive, rotation, relative, views, view, offset)
    rays = _canonical_rays(batch.inverse[primitive], rotation, relative)
    nearest = torch.full((len(views) * size * size,), _NOTHING, dtype=torch.int64, device=batch.device)
    kind, area = batch.shape[primitive], spans[:, 2] * spans[:, 3]
    pixel_width = 1.0 / (size * views.focal[view])
    for shape, intersect in _INTERSECTIONS.items():
        selected = ((kind == shape) & (area > 0)).nonzero()[:, 0]
        for chunk in _chunks(selected, area):
            row, x, y = _expand(spans[chunk])
            pixel = (view[chunk].index_select(0, row) * size + y) * size + x
            if wanted is not None:
                kept = wanted.view(-1).index_select(0, pixel).nonzero()[:, 0]
                row, x, y, pixel = (values.index_select(0, kept) for values in (row, x, y, pixel))
            scale = pixel_width[chunk].index_select(0, row)
            plane_x, plane_y = (x + (offset[0] + 0.5 - size / 2)) * scale, (y + (offset[1] + 0.5 - size / 2)) * scale
            found, hit = _cast(rays[chunk].T.contiguous().index_select(1, row), plane_x, plane_y, intersect)
            # a positive float orders as its bits do: the smallest key is the nearest hit, ties go to the lower index
            key = (found.view(torch.int32).to(torch.int64) << 32) | primitive[chunk][row[hit]]
            nearest.scatter_reduce_(0, pixel[hit], key, "amin")
    return _unpack(nearest.view(-1, size, size))


def _unpack(nearest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the depth and the primitive that the keys of the nearest hits hold."""
    hit = nearest != _NOTHING
    depth = (nearest >> 32).to(torch.int32).view(torch.float32)
    return torch.where(hit, depth, 0.0), torch.where(hit, nearest & 0xFFFFFFFF, -1)


def _canonical_rays(inverse: torch.Tensor, rotation: torch.Tensor, relative: torch.Tensor) -> torch.Tensor:
    """Return [M, 12]: the columns of the matrix that turns (x, y, 1) into a canonical direction, then the origin."""
    direction = inverse @ rotation
    origin = (inverse @ relative[..., None])[..., 0]
    return torch.cat([direction.transpose(1, 2).flatten(1), origin], dim=1)


def _view_primitive_pairs(batch: RoomBatch, scene: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pair every view with every primitive of its room: two index tensors [M]."""
    counts = (batch.first[1:] - batch.first[:-1])[scene]
    view = torch.repeat_interleave(torch.arange(len(scene), device=batch.device), counts)
    start = counts.cumsum(0) - counts
    return view, torch.arange(len(view), device=batch.device) - start[view] + batch.first[scene][view]


def _pixel_rectangles(
    batch: RoomBatch,
    primitive: torch.Tensor,
    rotation: torch.Tensor,
    relative: torch.Tensor,
    views: Views,
    view: torch.Tensor,
    offset: tuple[float, float],
) -> torch.Tensor:
    """Return for every pair the first column, first row, width and height [M, 4] of the pixels it may cover."""
    flat = batch.half[primitive] * torch.where(batch.shape[primitive, None] == QUAD, _flat(batch.device), 1.0)
    axes = rotation.transpose(1, 2) @ (batch.rotation[primitive] * flat[:, None])  # box axes in the camera frame
    middle = -(rotation.transpose(1, 2) @ relative[..., None])[..., 0]
    corners = middle[:, None] + _CORNERS.to(batch.device) @ axes.transpose(1, 2)  # [M, 8, 3]
    a, b = corners[:, _EDGES[0]], corners[:, _EDGES[1]]  # [M, 12, 3]
    share = (NEAR - a[..., 2:]) / torch.where(a[..., 2:] == b[..., 2:], 1.0, b[..., 2:] - a[..., 2:])
    crossing = (a[..., 2] < NEAR) != (b[..., 2] < NEAR)
    points = torch.cat([corners, a + share * (b - a)], dim=1)  # [M, 20, 3]
    usable = torch.cat([corners[..., 2] >= NEAR, crossing], dim=1)
    size = views.size
    image = (points[..., :2] / points[..., 2:].clamp(min=NEAR) * views.focal[view, None, None] + 0.5) * size - 0.5
    image = image - torch.tensor(offset, device=image.device)
    low = torch.where(usable[..., None], image, torch.inf).amin(1).floor().clamp(0, size)
    high = torch.where(usable[..., None], image, -torch.inf).amax(1).ceil().clamp(-1, size - 1)
    extent = (high - low + 1).clamp(min=0)
    return torch.cat([low, extent], dim=1).to(torch.int64)


def _flat(device: torch.device) -> torch.Tensor:
    return torch.tensor([1.0, 1.0, 0.0], device=device)


def _chunks(selected: torch.Tensor, area: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Split the pairs `selected` so that each part tests about _PAIRS_PER_CHUNK rays."""
    if len(selected) == 0:
        return ()
    total = area[selected].cumsum(0)
    part = total // _PAIRS_PER_CHUNK[selected.device.type]
    _, counts = torch.unique_consecutive(part, return_counts=True)
    return selected.split(counts.tolist())


def _expand(spans: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """List the pixels of every rectangle [n, 4]: index of the rectangle, column and row of the pixel, each [K]."""
    left, top, width, height = spans.unbind(1)
    counts = width * height
    row = torch.repeat_interleave(torch.arange(len(spans), device=spans.device), counts)
    within = torch.arange(len(row), device=spans.device) - (counts.cumsum(0) - counts).index_select(0, row)
    width = width.index_select(0, row)
    down = torch.div(within, width, rounding_mode="floor")
    return row, left.index_select(0, row) + within - down * width, top.index_select(0, row) + down


def _cast(
    rays: torch.Tensor, plane_x: torch.Tensor, plane_y: torch.Tensor, intersect: Intersection
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the depth of the hits and their indices, both [hits], for rays [12, K] through (x, y, 1) [K] each."""
    direction = [rays[i] * plane_x + rays[3 + i] * plane_y + rays[6 + i] for i in range(3)]
    depth, hit = intersect(rays[9:], direction)
    hit = (hit & (depth > NEAR)).nonzero()[:, 0]
    return depth[hit], hit


def _slab(origin: torch.Tensor, direction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where a ray enters and leaves |coordinate| <= 1."""
    inverse = 1.0 / torch.where(direction.abs() < 1e-9, 1e-9, direction)
    one, other = (-1 - origin) * inverse, (1 - origin) * inverse
    return torch.minimum(one, other), torch.maximum(one, other)


def _quadratic(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the interval where a t^2 + 2 b t + c <= 0 and whether there is one (a > 0)."""
    inside = b * b - a * c
    root = inside.clamp(min=0).sqrt()
    inverse = 1.0 / a.clamp(min=1e-12)
    return (-b - root) * inverse, (root - b) * inverse, inside > 0


def _box(origin: torch.Tensor, direction: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    enter, leave = _slab(origin[0], direction[0])
    for axis in (1, 2):
        one, other = _slab(origin[axis], direction[axis])
        enter, leave = torch.maximum(enter, one), torch.minimum(leave, other)
    return enter, enter <= leave


def _cylinder(origin: torch.Tensor, direction: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    enter, leave, hit = _quadratic(dx * dx + dy * dy, ox * dx + oy * dy, ox * ox + oy * oy - 1)
    one, other = _slab(oz, dz)
    enter, leave = torch.maximum(enter, one), torch.minimum(leave, other)
    return enter, hit & (enter <= leave)


def _ellipsoid(origin: torch.Tensor, direction: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    squared = dx * dx + dy * dy + dz * dz
    enter, _, hit = _quadratic(squared, ox * dx + oy * dy + oz * dz, ox * ox + oy * oy + oz * oz - 1)
    return enter, hit


def _quad(origin: torch.Tensor, direction: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    depth = -oz / torch.where(dz < -1e-9, dz, -1e-9)
    edge = 1 + 1e-4
    inside = ((ox + depth * dx).abs() <= edge) & ((oy + depth * dy).abs() <= edge)
    return depth, inside & (dz < -1e-9)


_INTERSECTIONS = {QUAD: _quad, BOX: _box, CYLINDER: _cylinder, ELLIPSOID: _ellipsoid}
