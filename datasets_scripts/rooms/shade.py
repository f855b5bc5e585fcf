"""Turning traced pixels into colour: surface points, textures, lamps with shadows, exposure."""

from dataclasses import dataclass

import numpy as np
import torch

from datasets_scripts.rooms.lighting import MAX_LIGHTS
from datasets_scripts.rooms.scene import BOX, CYLINDER, ELLIPSOID, QUAD, Room
from datasets_scripts.rooms.textures import Surface, textured
from datasets_scripts.rooms.trace import RoomBatch, Views, trace

_SHADOW_SIZE = 160  # texels on each side of the shadow map
_SHADOW_FOCAL = 0.16  # in map widths: 144 degrees, the whole floor
_SHADOW_BIAS = 0.05  # metres
_MEAN_LUMINANCE = 0.30


@dataclass(frozen=True)
class LightBatch:
    """Lights of S rooms, room frame; rooms with fewer than MAX_LIGHTS are padded with dark ones."""

    position: torch.Tensor  # [S, L, 3]
    color: torch.Tensor  # [S, L, 3] linear
    ambient: torch.Tensor  # [S, 3]
    sky: torch.Tensor  # [S, 2, 3]
    exposure: torch.Tensor  # [S]
    shadow: torch.Tensor  # [S, size, size] depth seen from light 0 looking down


def pack_lights(rooms: list[Room], batch: RoomBatch) -> LightBatch:
    """Return the lights of `rooms` as tensors beside `batch`, with the shadow map of each ceiling lamp."""
    position, color = np.zeros((len(rooms), MAX_LIGHTS, 3)), np.zeros((len(rooms), MAX_LIGHTS, 3))
    for index, room in enumerate(rooms):
        count = len(room.lighting.positions)
        position[index, :count], color[index, :count] = room.lighting.positions, room.lighting.colors

    def tensor(values: object) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values), dtype=torch.float32).to(batch.device)

    down = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0])).repeat(len(rooms), 1, 1).to(batch.device)
    down[:, :3, 3] = tensor(position[:, 0])
    scene = torch.arange(len(rooms), device=batch.device)
    focal = torch.full((len(rooms),), _SHADOW_FOCAL, device=batch.device)
    shadow, _ = trace(batch, Views(down, scene, focal, _SHADOW_SIZE))
    looks = [room.lighting for room in rooms]
    return LightBatch(
        tensor(position),
        tensor(color),
        tensor([look.ambient for look in looks]),
        tensor([look.sky for look in looks]),
        tensor([look.exposure for look in looks]),
        shadow,
    )


def shade(
    batch: RoomBatch,
    lights: LightBatch,
    views: Views,
    pixel: torch.Tensor,
    depth: torch.Tensor,
    primitive: torch.Tensor,
    offset: tuple[float, float] = (0.0, 0.0),
) -> torch.Tensor:
    """Return the linear colour [K, 3] of K pixels.

    pixel [K] is the flat index into [N, size, size]; depth [K] and primitive [K] are what `trace` found there for the
    same `offset`.
    """
    view, point, ray = _surface_points(views, pixel, depth, offset)
    scene = views.scene.index_select(0, view)
    canonical = _apply(batch.inverse.index_select(0, primitive), point - batch.center.index_select(0, primitive))
    half, shape = batch.half.index_select(0, primitive), batch.shape.index_select(0, primitive)
    inner, face = _canonical_normal(canonical, half, shape)
    normal = torch.nn.functional.normalize(_apply(batch.rotation.index_select(0, primitive), inner), dim=-1)
    texture = batch.texture.index_select(0, primitive)
    surface = Surface(
        color=batch.color.index_select(0, primitive) ** 2.2,
        uv=_face_coordinates(canonical * half, half, face),
        scale=texture[:, 0],
        seed=texture[:, 1].to(torch.int32),
        footprint=depth / (views.focal.index_select(0, view) * views.size),
        ray=ray,
        normal=normal,
        sky=lights.sky.index_select(0, scene),
    )
    albedo, emission = textured(surface, batch.material.index_select(0, primitive))
    ambient = (0.8 + 0.2 * normal[:, 2]) * _corner_shade(canonical, half, shape)
    return albedo * _irradiance(point, normal, ambient, scene, lights) + emission


def _irradiance(
    point: torch.Tensor, normal: torch.Tensor, ambient: torch.Tensor, scene: torch.Tensor, lights: LightBatch
) -> torch.Tensor:
    """Return the light [K, 3] that falls on points: a share [K] of the ambient light, and every lamp."""
    light = lights.ambient.index_select(0, scene) * ambient[:, None]
    for index in range(MAX_LIGHTS):
        strength = _lambert(point, normal, lights.position[:, index].index_select(0, scene))
        if index == 0:
            strength = strength * _lit(point, normal, scene, lights)
        light = light + lights.color[:, index].index_select(0, scene) * strength[:, None]
    return light


def _surface_points(
    views: Views, pixel: torch.Tensor, depth: torch.Tensor, offset: tuple[float, float]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the view [K], the surface point [K, 3] (room frame) and the unit ray [K, 3] (room frame) of pixels."""
    size = views.size
    view, place = pixel // size**2, pixel % size**2
    x, y = place % size + offset[0] + 0.5, place // size + offset[1] + 0.5
    scale = 1.0 / (size * views.focal.index_select(0, view))
    local = torch.stack([(x - size / 2) * scale, (y - size / 2) * scale, torch.ones_like(scale)], dim=1)
    cameras = views.room_from_cam.index_select(0, view)
    ray = _apply(cameras[:, :3, :3], local)
    return view, cameras[:, :3, 3] + ray * depth[:, None], torch.nn.functional.normalize(ray, dim=-1)


def develop(linear: torch.Tensor, exposure: torch.Tensor) -> torch.Tensor:
    """Expose and tone-map linear colour [N, H, W, 3] with a camera setting [N] each; returns uint8 [N, 3, H, W]."""
    luminance = linear.clamp(max=2).mean(dim=(1, 2, 3))
    gain = exposure * (_MEAN_LUMINANCE / luminance.clamp(min=0.02)) ** 0.8
    value = linear * gain[:, None, None, None]
    value = value * (1 + value / 5) / (1 + value * 0.55)
    return (value.clamp(0, 1) ** (1 / 2.2) * 255 + 0.5).to(torch.uint8).permute(0, 3, 1, 2)


def _apply(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Return matrix [K, 3, 3] times vector [K, 3]."""
    return (matrix @ vector[..., None])[..., 0]


def _canonical_normal(
    canonical: torch.Tensor, half: torch.Tensor, shape: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the outward normal [K, 3] in the primitive's axes (not unit) and the axis [K] it is nearest to."""
    metres = (1 - canonical.abs()) * half
    axis = metres.argmin(1)
    normal = torch.nn.functional.one_hot(axis, 3).to(canonical.dtype) * canonical.sign()
    radius = (canonical[:, 0] ** 2 + canonical[:, 1] ** 2).sqrt()
    on_side = (1 - radius) * half[:, 0] < metres[:, 2]
    side = canonical / half * torch.tensor([1.0, 1.0, 0.0], device=half.device)
    cap = torch.stack([torch.zeros_like(radius), torch.zeros_like(radius), canonical[:, 2].sign()], dim=1)
    normal = torch.where((shape == CYLINDER)[:, None], torch.where(on_side[:, None], side, cap), normal)
    normal = torch.where((shape == ELLIPSOID)[:, None], canonical / half, normal)
    up = torch.tensor([0.0, 0.0, 1.0], device=half.device)
    normal = torch.where((shape == QUAD)[:, None], up, normal)
    return normal, torch.where(shape == BOX, axis, (normal * half).abs().argmax(1))


def _face_coordinates(local: torch.Tensor, half: torch.Tensor, face: torch.Tensor) -> torch.Tensor:
    """Return uv [K, 2] in metres on the face across axis `face`, u along the longer side."""
    first, second = (face == 0).to(torch.int64), 2 - (face == 2).to(torch.int64)
    pair = torch.stack([first, second], dim=1)
    uv, extent = local.gather(1, pair), half.gather(1, pair)
    return torch.where((extent[:, 0] >= extent[:, 1])[:, None], uv, uv.flip(1))


def _corner_shade(canonical: torch.Tensor, half: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """Return a factor [K] that darkens walls, floor and ceiling towards their edges."""
    distance = ((1 - canonical[:, :2].abs()) * half[:, :2]).clamp(min=0)
    dark = (1 - 0.35 * torch.exp(-distance / 0.22)).prod(1)
    return torch.where(shape == QUAD, dark, 1.0)


def _lambert(point: torch.Tensor, normal: torch.Tensor, lamp: torch.Tensor) -> torch.Tensor:
    """Return the irradiance [K] of unit lamps [K, 3]; the lamps have some size, so the square law is softened."""
    towards = lamp - point
    squared = (towards**2).sum(1)
    cosine = (towards * normal).sum(1) / squared.clamp(min=1e-6).sqrt()
    return (0.25 + 0.75 * cosine).clamp(min=0) / (1.0 + squared)


def _lit(point: torch.Tensor, normal: torch.Tensor, scene: torch.Tensor, lights: LightBatch) -> torch.Tensor:
    """Return how much [K] of the ceiling lamp reaches each point: four texels of its shadow map, weighed bilinearly."""
    local = point - lights.position[:, 0].index_select(0, scene)
    texel = (-local[:, 2]).clamp(min=1e-3) / (_SHADOW_FOCAL * _SHADOW_SIZE)
    # a texel of the map covers a long strip of a wall: look at a point a little in front of it instead
    local = local + normal * ((1 - normal[:, 2].abs()) * texel * 1.5)[:, None]
    depth = (-local[:, 2]).clamp(min=1e-3)
    x = (local[:, 0] / depth * _SHADOW_FOCAL + 0.5) * _SHADOW_SIZE - 0.5
    y = (-local[:, 1] / depth * _SHADOW_FOCAL + 0.5) * _SHADOW_SIZE - 0.5
    left, top = x.floor(), y.floor()
    outside = (left < 0) | (top < 0) | (left >= _SHADOW_SIZE - 1) | (top >= _SHADOW_SIZE - 1) | (depth < 0.05)
    column = left.clamp(0, _SHADOW_SIZE - 2).to(torch.int64)
    row = top.clamp(0, _SHADOW_SIZE - 2).to(torch.int64)
    base = (scene * _SHADOW_SIZE + row) * _SHADOW_SIZE + column
    flat = lights.shadow.view(-1)
    lit = [
        (flat.index_select(0, base + step) > depth - _SHADOW_BIAS).to(x.dtype)
        for step in (0, 1, _SHADOW_SIZE, _SHADOW_SIZE + 1)
    ]
    upper, lower = torch.lerp(lit[0], lit[1], x - left), torch.lerp(lit[2], lit[3], x - left)
    return torch.where(outside, 1.0, torch.lerp(upper, lower, y - top))
