"""Rendering a batch of rooms: colour, depth and instance ids as tensors, without any file in between."""

import numpy as np
import torch

from datasets_scripts.rooms.scene import Room
from datasets_scripts.rooms.shade import develop, pack_lights, shade
from datasets_scripts.rooms.trace import RoomBatch, pack_rooms, pixel_rays, trace

_PIXELS_PER_CHUNK = {"cpu": 1 << 17, "cuda": 1 << 24}


def render_batch(
    rooms: list[Room], device: torch.device | str = "cpu", *, size: int = 112, supersample: int = 1
) -> dict[str, torch.Tensor]:
    """Render every view of `rooms` (all with the same number of views) as size x size images on `device`.

    `supersample` n averages n x n colour samples a pixel; depth and instances are always those of the pixel centre.

    Returns images uint8 [S, V, 3, size, size]; depth float32 [S, V, size, size] (z-depth, metres, 0 = nothing hit);
    instances int16 [S, V, size, size] (ids of Room); intrinsics float64 [S, 3, 3] in pixels; world_from_cam float64
    [S, V, 4, 4].
    """
    counts = {len(room.room_from_cam) for room in rooms}
    if len(counts) != 1:
        raise ValueError(f"rooms of one batch need the same number of views, found {sorted(counts)}")
    num_views = counts.pop()
    batch = pack_rooms(rooms, device)
    cameras = np.concatenate([room.room_from_cam for room in rooms])
    room_from_cam = torch.as_tensor(cameras, dtype=torch.float32).to(batch.device)
    scene = torch.arange(len(rooms), device=batch.device).repeat_interleave(num_views)
    focal = torch.tensor([room.focal for room in rooms], dtype=torch.float32).to(batch.device)[scene]
    depth, primitive = trace(batch, room_from_cam, scene, focal, size)
    color = _color(rooms, batch, room_from_cam, scene, focal, depth, primitive, supersample)
    instances = torch.where(primitive >= 0, batch.instance[primitive], 0).to(torch.int16)
    return {
        "images": color.view(len(rooms), num_views, 3, size, size),
        "depth": depth.view(len(rooms), num_views, size, size),
        "instances": instances.view(len(rooms), num_views, size, size),
        "intrinsics": torch.as_tensor(np.stack([room.intrinsics(size) for room in rooms])).to(batch.device),
        "world_from_cam": torch.as_tensor(np.stack([room.world_from_cam for room in rooms])).to(batch.device),
    }


def _color(
    rooms: list[Room],
    batch: RoomBatch,
    room_from_cam: torch.Tensor,
    scene: torch.Tensor,
    focal: torch.Tensor,
    depth: torch.Tensor,
    primitive: torch.Tensor,
    supersample: int,
) -> torch.Tensor:
    """Return the developed images [N, 3, size, size] uint8 of N views."""
    size = depth.shape[-1]
    lights = pack_lights(rooms, batch)
    if supersample > 1:
        depth, primitive = trace(batch, room_from_cam, scene, focal, size * supersample)
    fine = depth.shape[-1]
    step = max(1, _PIXELS_PER_CHUNK[batch.device.type] // fine**2)
    images = []
    for start in range(0, len(scene), step):
        views = slice(start, start + step)
        rays = pixel_rays(focal[views], fine).flatten(1, 2) @ room_from_cam[views, :3, :3].transpose(1, 2)
        seen = rays.shape[:2]

        def spread(values: torch.Tensor, seen: torch.Size = seen) -> torch.Tensor:
            return values[:, None].expand(*seen, *values.shape[1:]).flatten(0, 1)

        linear = shade(
            batch,
            lights,
            rays.flatten(0, 1),
            spread(room_from_cam[views, :3, 3]),
            spread(scene[views]),
            spread(1.0 / (focal[views] * fine)),
            depth[views].flatten(),
            primitive[views].flatten().clamp(min=0),
        )
        linear = linear.view(-1, size, supersample, size, supersample, 3).mean(dim=(2, 4))
        images.append(develop(linear, lights.exposure[scene[views]]))
    return torch.cat(images)
