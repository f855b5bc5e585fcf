"""Rendering a batch of rooms: colour, depth and instance ids as tensors, without any file in between."""

import numpy as np
import torch

from datasets_scripts.rooms.catalogue import CLASSES
from datasets_scripts.rooms.materials import COLORS
from datasets_scripts.rooms.scene import Room
from datasets_scripts.rooms.shade import LightBatch, develop, pack_lights, shade
from datasets_scripts.rooms.trace import RoomBatch, Views, pack_rooms, trace

_PIXELS_PER_CHUNK = {"cpu": 1 << 16, "cuda": 1 << 20}
_SUBPIXELS = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))


def render_batch(
    rooms: list[Room], device: torch.device | str = "cpu", *, size: int = 112, antialias: bool = True
) -> dict[str, torch.Tensor]:
    """Render every view of `rooms` (all with the same number of views) as size x size images on `device`.

    Memory grows with the number of rooms: some hundreds at 112 pixels fit a large GPU, a handful suit a CPU's cache.
    With `antialias` the colour of pixels on edges is the mean of four samples; depth and instances are always those of
    the pixel centre.

    Returns images uint8 [S, V, 3, size, size]; depth float32 [S, V, size, size] (z-depth, metres, 0 = nothing hit);
    instances int16 [S, V, size, size] (ids of Room); intrinsics float64 [S, 3, 3] in pixels; world_from_cam float64
    [S, V, 4, 4].
    """
    counts = {len(room.room_from_cam) for room in rooms}
    if len(counts) != 1:
        raise ValueError(f"rooms of one batch need the same number of views, found {sorted(counts)}")
    shape = (len(rooms), counts.pop())
    batch = pack_rooms(rooms, device)
    scene = torch.arange(len(rooms), device=batch.device).repeat_interleave(shape[1])
    cameras = np.concatenate([room.room_from_cam for room in rooms])
    focal = torch.tensor([room.focal for room in rooms], dtype=torch.float32).to(batch.device)
    room_from_cam = torch.as_tensor(cameras, dtype=torch.float32).to(batch.device)
    views = Views(room_from_cam, scene, focal[scene], size)
    depth, primitive = trace(batch, views)
    lights = pack_lights(rooms, batch)
    linear = _color(batch, lights, views, depth, primitive)
    if antialias:
        _smooth_edges(linear, batch, lights, views, primitive)
    images = develop(linear.view(-1, size, size, 3), lights.exposure[scene])
    instances = torch.where(primitive >= 0, batch.instance[primitive], 0).to(torch.int16)
    return {
        "images": images.view(*shape, 3, size, size),
        "depth": depth.view(*shape, size, size),
        "instances": instances.view(*shape, size, size),
        "intrinsics": torch.as_tensor(np.stack([room.intrinsics(size) for room in rooms])).to(batch.device),
        "world_from_cam": torch.as_tensor(np.stack([room.world_from_cam for room in rooms])).to(batch.device),
    }


def _color(
    batch: RoomBatch,
    lights: LightBatch,
    views: Views,
    depth: torch.Tensor,
    primitive: torch.Tensor,
    offset: tuple[float, float] = (0.0, 0.0),
) -> torch.Tensor:
    """Return the linear colour [N * size * size, 3] of every pixel; black where nothing was hit."""
    depth, primitive = depth.flatten(), primitive.flatten()
    linear = torch.zeros(len(depth), 3, device=batch.device)
    for pixel in (primitive >= 0).nonzero()[:, 0].split(_PIXELS_PER_CHUNK[batch.device.type]):
        linear[pixel] = shade(batch, lights, views, pixel, depth[pixel], primitive[pixel], offset)
    return linear


def _smooth_edges(
    linear: torch.Tensor, batch: RoomBatch, lights: LightBatch, views: Views, primitive: torch.Tensor
) -> None:
    """Replace the colour of pixels where two primitives meet by the mean of four samples, in place."""
    edge = torch.zeros_like(primitive, dtype=torch.bool)
    across = primitive[:, :, 1:] != primitive[:, :, :-1]
    edge[:, :, 1:] |= across
    edge[:, :, :-1] |= across
    down = primitive[:, 1:] != primitive[:, :-1]
    edge[:, 1:] |= down
    edge[:, :-1] |= down
    total = torch.zeros_like(linear)
    for offset in _SUBPIXELS:
        depth, found = trace(batch, views, offset, edge)
        total += _color(batch, lights, views, depth, found, offset)
    pixel = edge.flatten().nonzero()[:, 0]
    linear[pixel] = total[pixel] / len(_SUBPIXELS)


def count_pixels(rooms: list[Room], instances: torch.Tensor) -> list[np.ndarray]:
    """Return for each room the number of pixels [V, ids] of every instance id in every view.

    instances [S, V, H, W] as `render_batch` gives them.
    """
    flat = instances.flatten(2).to(torch.int64)
    most = max(len(room.instance_labels) for room in rooms)
    counts = torch.zeros(*flat.shape[:2], most, dtype=torch.int64, device=flat.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    return [count[:, : len(room.instance_labels)].cpu().numpy() for count, room in zip(counts, rooms)]


def instance_table(rooms: list[Room], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Return what every instance id stands for, padded to the most ids M of any room: dense labels by one lookup.

    label int64 [S, M] (index into CLASSES, -1 for id 0 and padding), color int64 [S, M] (index into COLORS, -1 where
    none dominates), is_box bool [S, M] (objects and walls), center and size float64 [S, M, 3], axes float64
    [S, M, 3, 3]: the box in the world frame, as the schema's targets; zeros where is_box is False.
    """
    shape = (len(rooms), max(len(room.instance_labels) for room in rooms))
    table = {
        "label": np.full(shape, -1),
        "color": np.full(shape, -1),
        "is_box": np.zeros(shape, dtype=bool),
        "center": np.zeros((*shape, 3)),
        "size": np.zeros((*shape, 3)),
        "axes": np.zeros((*shape, 3, 3)),
    }
    names = list(COLORS)
    for s, room in enumerate(rooms):
        table["label"][s, 1 : len(room.instance_labels)] = [CLASSES.index(x) for x in room.instance_labels[1:]]
        targets = [room.object_target(item) for item in room.objects] + [room.wall_target(wall) for wall in room.walls]
        table["is_box"][s, 1 : len(targets) + 1] = True
        for key in ("center", "size", "axes"):
            table[key][s, 1 : len(targets) + 1] = [target[key] for target in targets]
        colors = [names.index(item.color) if item.color else -1 for item in room.objects]
        table["color"][s, 1 : len(colors) + 1] = colors
    return {key: torch.as_tensor(value).to(device) for key, value in table.items()}
