"""Procedural textures: what each material does to the base colour of a surface point."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from datasets_scripts.rooms.materials import MATERIAL_INDEX


@dataclass
class Surface:
    """K visible surface points. uv runs over the face in metres, u along the longer side of the primitive's face."""

    color: torch.Tensor  # [K, 3] linear
    uv: torch.Tensor  # [K, 2] metres
    scale: torch.Tensor  # [K] pattern size, metres
    seed: torch.Tensor  # [K] int32
    footprint: torch.Tensor  # [K] size of a pixel on the surface, metres
    ray: torch.Tensor  # [K, 3] unit vector from the camera, room frame
    normal: torch.Tensor  # [K, 3] unit, room frame
    sky: torch.Tensor  # [K, 2, 3] linear

    def at(self, index: torch.Tensor) -> "Surface":
        """Return the points selected by `index`."""
        return Surface(**{item.name: getattr(self, item.name).index_select(0, index) for item in fields(Surface)})


def textured(surface: Surface, material: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the reflectance [K, 3] and the light given off [K, 3], both linear, of points with `material` [K]."""
    albedo = surface.color.clone()
    emission = torch.zeros_like(albedo)
    for name, texture in _TEXTURES.items():
        index = (material == MATERIAL_INDEX[name]).nonzero()[:, 0]
        if len(index):
            albedo[index] = surface.color[index] * texture(surface.at(index))
    for name, shine in _SHINES.items():
        index = (material == MATERIAL_INDEX[name]).nonzero()[:, 0]
        if len(index):
            albedo[index], emission[index] = shine(surface.at(index))
    return albedo, emission


def _hash(x: torch.Tensor, y: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """Return a pseudo-random number in [0, 1) for integer lattice points (int32, wraps around)."""
    value = x * 374761393 + y * 668265263 + seed * 974711
    value = (value ^ (value >> 13)) * 1274126177
    return ((value ^ (value >> 16)) & 0xFFFF).to(torch.float32) / 65536


def _noise(surface: Surface, frequency_u: float, frequency_v: float, offset: int = 0) -> torch.Tensor:
    """Return smooth noise [K] around 0, in [-0.5, 0.5], that fades where a pixel is coarser than the pattern."""
    u, v = surface.uv[:, 0] * frequency_u, surface.uv[:, 1] * frequency_v
    iu, iv = u.floor(), v.floor()
    fu, fv = u - iu, v - iv
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
    x, y, seed = iu.to(torch.int32), iv.to(torch.int32), surface.seed + offset
    low = torch.lerp(_hash(x, y, seed), _hash(x + 1, y, seed), fu)
    high = torch.lerp(_hash(x, y + 1, seed), _hash(x + 1, y + 1, seed), fu)
    visible = (1.5 - surface.footprint * max(frequency_u, frequency_v)).clamp(0, 1)
    return (torch.lerp(low, high, fv) - 0.5) * visible


def _joint(position: torch.Tensor, period: torch.Tensor, width: float, footprint: torch.Tensor) -> torch.Tensor:
    """Return how much [0, 1] of a pixel is joint, for joints of `width` metres every `period` metres."""
    distance = (position - (position / period).round() * period).abs()
    soft = footprint * 0.5 + 1e-4
    covered = ((width / 2 - distance) / (2 * soft) + 0.5).clamp(0, 1)
    return covered * (width / (2 * soft)).clamp(max=1)


def _column(factor: torch.Tensor) -> torch.Tensor:
    return factor[:, None]


def _wood(s: Surface) -> torch.Tensor:
    return _column(1 + 0.22 * _noise(s, 1.5, 28.0) + 0.2 * _noise(s, 4.0, 90.0, 7))


def _fabric(s: Surface) -> torch.Tensor:
    return _column(1 + 0.25 * _noise(s, 90.0, 90.0) + 0.14 * _noise(s, 14.0, 14.0, 3))


def _carpet(s: Surface) -> torch.Tensor:
    return _column(1 + 0.4 * _noise(s, 45.0, 45.0) + 0.2 * _noise(s, 6.0, 6.0, 3))


def _leaves(s: Surface) -> torch.Tensor:
    return _column(1 + 0.6 * _noise(s, 30.0, 12.0) + 0.5 * _noise(s, 6.0, 6.0, 3))


def _planks(s: Surface) -> torch.Tensor:
    u, v = s.uv.unbind(1)
    row = (v / s.scale).floor()
    shift = _hash(row.to(torch.int32), s.seed, s.seed) * 1.2
    board = ((u + shift) / 1.2).floor()
    tone = _hash(row.to(torch.int32), board.to(torch.int32), s.seed + 1)
    joint = torch.maximum(
        _joint(v, s.scale, 0.006, s.footprint),
        _joint(u + shift, torch.full_like(u, 1.2), 0.006, s.footprint),
    )
    grain = 0.2 * _noise(s, 1.5, 30.0) + 0.15 * _noise(s, 4.0, 80.0, 7)
    return _column((0.82 + 0.32 * tone + grain) * (1 - 0.6 * joint))


def _tiles(s: Surface) -> torch.Tensor:
    cell = (s.uv / s.scale[:, None]).floor().to(torch.int32)
    tone = _hash(cell[:, 0], cell[:, 1], s.seed)
    # joints lie on cell borders, half a period from the centres that _joint measures from
    joint = torch.maximum(*(_joint(s.uv[:, i], s.scale, 0.012, s.footprint) for i in (0, 1)))
    return _column((0.92 + 0.14 * tone + 0.1 * _noise(s, 7.0, 7.0)) * (1 - 0.45 * joint))


def _stripes(s: Surface) -> torch.Tensor:
    wave = torch.sin(s.uv[:, 0] * (2 * torch.pi) / s.scale)
    soft = (s.footprint / s.scale * 6 + 0.12).clamp(max=4)
    return _column(1 - 0.10 * ((wave / soft).clamp(-1, 1) * (0.5 / soft).clamp(max=1)))


def _bricks(s: Surface) -> torch.Tensor:
    u, v = s.uv.unbind(1)
    height = s.scale * 0.4
    row = (v / height).floor()
    shifted = u + 0.5 * s.scale * (row.to(torch.int32) & 1).to(u.dtype)
    tone = _hash((shifted / s.scale).floor().to(torch.int32), row.to(torch.int32), s.seed)
    joint = torch.maximum(_joint(v, height, 0.014, s.footprint), _joint(shifted, s.scale, 0.014, s.footprint))
    return _column((0.86 + 0.2 * tone + 0.12 * _noise(s, 25.0, 25.0)) * (1 - 0.3 * joint))


def _painting(s: Surface) -> torch.Tensor:
    cell = (s.uv / s.scale[:, None]).floor().to(torch.int32)
    wave = _noise(s, 5.0, 5.0) + _noise(s, 2.5, 2.5, 5)
    band = (wave * 5).floor().to(torch.int32)
    channels = [_hash(cell[:, 0] + band, cell[:, 1] * (1 + i) + i, s.seed + i) for i in range(3)]
    return 0.35 + 1.3 * torch.stack(channels, dim=1)


def _window(s: Surface) -> tuple[torch.Tensor, torch.Tensor]:
    """Outdoors at infinity: sky above, hills below the horizon."""
    azimuth = torch.atan2(s.ray[:, 1], s.ray[:, 0])
    elevation = s.ray[:, 2]
    seed = s.seed.to(torch.float32)
    hills = 0.05 * torch.sin(azimuth * 3 + seed) + 0.03 * torch.sin(azimuth * 8 + 2 * seed) + 0.02
    share = _column(((elevation - hills) * 40).clamp(-1, 1) * 0.5 + 0.5)
    haze = _column(1 + 0.5 * (0.3 - elevation.abs()).clamp(min=0))
    light = torch.lerp(s.sky[:, 1], s.sky[:, 0] * haze, share)
    return torch.full_like(light, 0.03), light


def _mirror(s: Surface) -> tuple[torch.Tensor, torch.Tensor]:
    """A blurred idea of the room: bright upwards, dark downwards, along the reflected ray."""
    up = s.ray[:, 2] - 2 * (s.ray * s.normal).sum(1) * s.normal[:, 2]
    side = (s.ray[:, 0] * 3 + s.ray[:, 1] * 2).sin() * 0.05
    light = s.color * _column((0.42 + 0.45 * up + side).clamp(0.1, 0.8))
    return s.color * 0.12, light


def _screen(s: Surface) -> tuple[torch.Tensor, torch.Tensor]:
    """A dark pane with a soft highlight; monitors show their colour."""
    gloss = 0.05 * (1 + (s.ray * s.normal).sum(1)).clamp(0, 1) ** 2
    return s.color * 0.5, s.color * 0.6 + _column(gloss)


def _glow(s: Surface) -> tuple[torch.Tensor, torch.Tensor]:
    facing = -(s.ray * s.normal).sum(1)
    return s.color * 0.6, s.color * _column(0.55 + 0.5 * facing.clamp(0, 1))


_TEXTURES: dict[str, Callable[[Surface], torch.Tensor]] = {
    "wood": _wood,
    "fabric": _fabric,
    "carpet": _carpet,
    "planks": _planks,
    "tiles": _tiles,
    "stripes": _stripes,
    "bricks": _bricks,
    "leaves": _leaves,
    "painting": _painting,
}
_SHINES: dict[str, Callable[[Surface], tuple[torch.Tensor, torch.Tensor]]] = {
    "window": _window,
    "mirror": _mirror,
    "screen": _screen,
    "glow": _glow,
}
