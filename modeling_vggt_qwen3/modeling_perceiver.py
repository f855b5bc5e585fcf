"""Perceiver resampler: patch tokens of every view -> a fixed number of latents for the text model.

Geometry enters here: the ray of each patch, its back-projected point, and one token a view. All of it is stated in
the reference frame of view 0 (origin at its camera, +Z up, +Y forward, metres); its first layers are float32 always.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import maybe_autocast

from .configuration_vggt_qwen3 import PATCH_EMBEDDING_LAYER, PerceiverConfig, VggtConfig
from .constants_vggt_qwen3 import once_per_key

LONGEST_WAVELENGTH_M = 32.0
GEOMETRY_TOKEN_FEATURES = 9 + 3 + 9 + 16
MAX_SCORES = 1 << 27
"""Of attention that is written out: 0.5 GB in float32, reached by 64 views of 448 x 448."""


@dataclass
class SceneGeometry:
    """Cameras and depth of S scenes with V views of P patches; float32, reference frame, metres.

    Attributes:
        geometry_mask: bool [S], True where the cameras of the scene are known.
        ref_from_cam: [S, V, 4, 4], camera axes x right, y down, z forward.
        intrinsics: [S, V, 3, 3] in pixels of the model's image, pixel centres at +0.5.
        depth_hist: [S, V, 16], share of valid depth in each bin; all zero without depth.
        patch_points: [S, V, P, 3] mean back-projected point of a patch.
        patch_points_mask: bool [S, V, P], False where the patch has no depth.
        image_size: (height, width) of the model's image in pixels.
    """

    geometry_mask: torch.Tensor
    ref_from_cam: torch.Tensor
    intrinsics: torch.Tensor
    depth_hist: torch.Tensor
    patch_points: torch.Tensor
    patch_points_mask: torch.Tensor
    image_size: tuple[int, int]

    def __post_init__(self) -> None:
        for name in ("ref_from_cam", "intrinsics", "depth_hist", "patch_points"):
            tensor = getattr(self, name)
            if tensor.dtype != torch.float32:
                raise ValueError(
                    f"{name} is {tensor.dtype}; it must stay float32, since half precision loses centimetres. "
                    "Cast only pixel_values, or use the processor's own `.to`, which leaves cameras alone"
                )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SceneGeometry:
        """The same on another device, as accelerate asks for where the parts of a model lie on several."""
        tensors = {key: value for key, value in vars(self).items() if isinstance(value, torch.Tensor)}
        moved = {key: value.to(device, non_blocking=non_blocking) for key, value in tensors.items()}
        return replace(self, **moved)

    def pooled(self, rows: int, columns: int, side: int) -> SceneGeometry:
        """The same for patches that were averaged by `pool_patches`: a point is the mean of those known."""
        if side == 1:
            return self
        known = self.patch_points_mask.unsqueeze(-1)
        share = pool_patches(known.float(), rows, columns, side)
        points = pool_patches(torch.where(known, self.patch_points, 0.0), rows, columns, side)
        mask = share.squeeze(-1) > 0
        return replace(self, patch_points=points / share.clamp_min(1 / side**2), patch_points_mask=mask)


def pool_patches(x: torch.Tensor, rows: int, columns: int, side: int) -> torch.Tensor:
    """Mean over squares of side x side patches: [..., rows * columns, dim] -> [..., rows * columns / side², dim].

    Raises:
        ValueError: where the squares do not fill the grid.
    """
    if rows % side or columns % side:
        raise ValueError(
            f"{rows} x {columns} patches cannot be pooled {side} x {side}: choose an image size whose patches fill "
            "such squares, or feature_pooling = 1"
        )
    squares = x.unflatten(-2, (rows // side, side, columns // side, side))  # [..., rows', side, columns', side, dim]
    return squares.mean(dim=(-4, -2)).flatten(-3, -2)


@torch.no_grad()
def spread_patches(features: torch.Tensor, mask: torch.Tensor | None, count: int) -> torch.Tensor:
    """Patches that differ from each other: the first, then again and again the one least like all those chosen.

    Likeness is the cosine between normalised features. Source: Gonzalez, "Clustering to minimize the maximum
    intercluster distance", 1985; for tokens of images: Alvar et al., "DivPrune", CVPR 2025.

    Args:
        features: [S, K, channels].
        mask: bool [S, K], False where a patch is padding; None = all take part.
        count: patches to choose, N.

    Returns:
        int64 [S, N], ascending and below K, so that near-ties of the choice move no latent far; some repeat where
        fewer than N take part.
    """
    with maybe_autocast(features.device.type, enabled=False):
        features = F.normalize(F.layer_norm(features.float(), features.shape[-1:]), dim=-1)
        likeness = features.new_full(features.shape[:2], -2.0)  # below any cosine
        patch = likeness.new_zeros(len(features), dtype=torch.long)
        if mask is not None:
            likeness = likeness.masked_fill(~mask, 2.0)  # above any: never chosen
            patch = mask.int().argmax(dim=1)
        chosen = [patch]
        for _ in range(count - 1):
            cosines = features @ take_patches(features, patch[:, None]).mT
            likeness = torch.maximum(likeness, cosines.squeeze(-1))
            patch = likeness.argmin(dim=1)
            chosen.append(patch)
    return torch.stack(chosen, dim=1).sort(dim=1).values


def take_patches(values: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """Values [S, K, ...] of patches [S, N] -> [S, N, ...]."""
    index = patches.view(*patches.shape, *(1,) * (values.ndim - 2))
    return values.gather(1, index.expand(*patches.shape, *values.shape[2:]))


def patch_rays(geometry: SceneGeometry, patch_size: int) -> torch.Tensor:
    """Plücker coordinates of the ray through the centre of each patch.

    Source: Sitzmann et al., "Light Field Networks", NeurIPS 2021 (unit direction and moment of a line).

    Returns:
        float32 [S, V, P, 6]: unit direction, then moment (camera centre × direction) in metres.
    """
    height, width = geometry.image_size
    device = geometry.intrinsics.device
    y = (torch.arange(height // patch_size, device=device, dtype=torch.float32) + 0.5) * patch_size
    x = (torch.arange(width // patch_size, device=device, dtype=torch.float32) + 0.5) * patch_size
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    pixels = torch.stack((grid_x, grid_y, torch.ones_like(grid_x)), dim=-1).flatten(0, 1)  # [P, 3]

    fx, fy = geometry.intrinsics[..., 0, 0, None], geometry.intrinsics[..., 1, 1, None]
    cx, cy = geometry.intrinsics[..., 0, 2, None], geometry.intrinsics[..., 1, 2, None]
    ray_y = (pixels[:, 1] - cy) / fy
    ray_x = (pixels[:, 0] - cx) / fx
    rays_cam = torch.stack((ray_x, ray_y, torch.ones_like(ray_x)), dim=-1)  # [S, V, P, 3]
    rotation, origin = geometry.ref_from_cam[..., :3, :3], geometry.ref_from_cam[..., :3, 3]
    with maybe_autocast(device.type, enabled=False):  # which would turn the product into bfloat16
        direction = F.normalize(rays_cam @ rotation.transpose(-1, -2), dim=-1)
    moment = torch.linalg.cross(origin.unsqueeze(-2).expand_as(direction), direction)
    return torch.cat((direction, moment), dim=-1)


class Float32Linear(nn.Linear):
    """A linear layer of metric numbers, in float32 under any dtype or autocast: bfloat16 loses centimetres."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out], float32."""
        with maybe_autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float(), self.bias.float())


def begin_by_inputs(part: nn.Module) -> None:
    """Marks the linear layers of a part whose fresh weights keep the size of what they read: 1 / sqrt(inputs)."""
    for layer in part.modules():
        if isinstance(layer, nn.Linear):
            layer.begins_by_inputs = True


class RayEmbedding(nn.Module):
    """Two-layer MLP of Plücker coordinates."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = Float32Linear(6, dim)
        self.fc2 = nn.Linear(dim, dim)

    def forward(self, rays: torch.Tensor) -> torch.Tensor:
        """[..., 6] -> [..., dim]."""
        return self.fc2(F.gelu(self.fc1(rays)).to(self.fc2.weight.dtype))


class PointEmbedding(nn.Module):
    """Sines and cosines of metric coordinates, wavelengths 32 m, 16 m, ...; learned where no point is known."""

    def __init__(self, dim: int, num_frequencies: int) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.proj = Float32Linear(3 + 6 * num_frequencies, dim)
        self.missing = nn.Parameter(torch.zeros(dim))

    def forward(self, points: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Points float32 [..., 3] in metres and their mask [...] -> [..., dim]."""
        octaves = torch.arange(self.num_frequencies, device=points.device, dtype=torch.float32)
        angles = points.unsqueeze(-1) * (2 * math.pi / LONGEST_WAVELENGTH_M * 2**octaves)  # [..., 3, frequencies]
        features = torch.cat((points, angles.sin().flatten(-2), angles.cos().flatten(-2)), dim=-1)
        return torch.where(mask.unsqueeze(-1), self.proj(features).to(self.missing.dtype), self.missing)


@once_per_key
def _pixels_a_unit(width: int, height: int, device: torch.device) -> torch.Tensor:
    return torch.tensor([[width], [height], [1.0]], dtype=torch.float32, device=device)


class GeometryTokens(nn.Module):
    """One token a view from its camera and its depth histogram (37 numbers)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = Float32Linear(GEOMETRY_TOKEN_FEATURES, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        begin_by_inputs(self)

    def forward(self, geometry: SceneGeometry) -> torch.Tensor:
        """Returns [S, V, dim]; meaningless where the cameras are unknown."""
        height, width = geometry.image_size
        size = _pixels_a_unit(width, height, geometry.intrinsics.device)
        features = torch.cat(
            (
                geometry.ref_from_cam[..., :3, :3].flatten(-2),
                geometry.ref_from_cam[..., :3, 3],
                (geometry.intrinsics / size).flatten(-2),
                geometry.depth_hist,
            ),
            dim=-1,
        )
        return self.fc2(F.gelu(self.fc1(features)).to(self.fc2.weight.dtype))


def attend_few(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention written out: 128 queries leave a GPU idle where a fused kernel goes through all keys for each of them.

    Query [S, heads, Q, size], key and value [S, heads, K, size], mask bool [S, 1, 1, K] -> [S, heads, Q, size].
    """
    scores = (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)).float()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1).to(value.dtype) @ value


class PerceiverAttention(nn.Module):
    """Multi-head attention from `queries` to `context`."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim)
        self.kv_proj = nn.Linear(dim, 2 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, queries: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """[S, Q, dim] attends to [S, K, dim]; mask bool [S, K], True where a key takes part."""
        query = self._split_heads(self.q_proj(queries))
        key, value = (self._split_heads(x) for x in self.kv_proj(context).chunk(2, dim=-1))
        attention_mask = None if mask is None else mask[:, None, None, :]
        num_scores = query.shape[:3].numel() * key.shape[2]
        few = query.is_cuda and not torch.is_grad_enabled() and num_scores <= MAX_SCORES
        attend = attend_few if few else F.scaled_dot_product_attention
        attended = attend(query, key, value, attention_mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _split_heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [S, heads, tokens, head_dim]


class PerceiverLayer(GradientCheckpointingLayer):
    """Cross-attention to the context, self-attention among the latents, MLP; pre-norm residual branches."""

    def __init__(self, config: PerceiverConfig) -> None:
        super().__init__()
        dim, eps = config.hidden_size, config.layer_norm_eps
        self.latent_norm = nn.LayerNorm(dim, eps=eps)
        self.context_norm = nn.LayerNorm(dim, eps=eps)
        self.cross_attention = PerceiverAttention(dim, config.num_attention_heads)
        self.self_norm = nn.LayerNorm(dim, eps=eps)
        self.self_attention = PerceiverAttention(dim, config.num_attention_heads)
        self.mlp_norm = nn.LayerNorm(dim, eps=eps)
        self.fc1 = nn.Linear(dim, int(dim * config.mlp_ratio))
        self.fc2 = nn.Linear(int(dim * config.mlp_ratio), dim)

    def forward(self, latents: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Latents [S, N, dim], context [S, K, dim], mask bool [S, K] or None -> [S, N, dim]."""
        latents = latents + self.cross_attention(self.latent_norm(latents), self.context_norm(context), mask)
        normed = self.self_norm(latents)
        latents = latents + self.self_attention(normed, normed, None)
        return latents + self.fc2(F.gelu(self.fc1(self.mlp_norm(latents))))


class PerceiverResampler(nn.Module):
    """Compresses the patch tokens of all views of a scene into `num_latents` tokens of the text model's width.

    Source: Jaegle et al., "Perceiver IO", ICLR 2022; Alayrac et al., "Flamingo", NeurIPS 2022.
    """

    def __init__(self, config: PerceiverConfig, vision_config: VggtConfig, output_dim: int) -> None:
        super().__init__()
        self.config = config
        self.patch_size = vision_config.patch_size * config.feature_pooling
        dim = config.hidden_size
        widths = {
            layer: vision_config.hidden_size * (1 if layer == PATCH_EMBEDDING_LAYER else 2)
            for layer in config.feature_layers
        }
        self.feature_norms = nn.ModuleList(nn.LayerNorm(w, eps=config.layer_norm_eps) for w in widths.values())
        self.feature_projs = nn.ModuleList(nn.Linear(w, dim) for w in widths.values())
        self.ray_embedding = RayEmbedding(dim) if config.use_ray_embedding else None
        self.point_embedding = PointEmbedding(dim, config.num_point_frequencies) if config.use_point_embedding else None
        is_spread = config.latent_start == "spread"  # then all begin with one vector: which patch is which may change
        self.latents = nn.Parameter(torch.empty(1 if is_spread else config.num_latents, dim))
        self.layers = nn.ModuleList(PerceiverLayer(config) for _ in range(config.num_hidden_layers))
        self.output_norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.output_proj = nn.Linear(dim, output_dim)
        begin_by_inputs(self)

    def forward(
        self,
        features: dict[int, torch.Tensor],
        geometry: SceneGeometry | None = None,
        patch_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Resamples the patches of S scenes.

        Args:
            features: encoder layer -> patch tokens [S, V, P, channels], pooled as the configuration says.
            geometry: cameras and depth, pooled alike, or None where no scene has cameras.
            patch_mask: bool [S, V, P], False where a patch is padding; None = all take part.

        Returns:
            [S, num_latents, output_dim]; and int64 [S, num_latents], the patch below V*P that each latent began at, or
            None where they begin as learned.
        """
        context = self.embed_context(features, geometry).flatten(1, 2)  # [S, V*P, dim]
        mask = None if patch_mask is None else patch_mask.flatten(1)
        num_scenes, num_latents = context.shape[0], self.config.num_latents
        latents, origins = self.latents.to(context.dtype).expand(num_scenes, num_latents, -1), None
        if self.config.latent_start == "spread":
            deepest = features[max(self.config.feature_layers)].flatten(1, 2)
            origins = spread_patches(deepest, mask, num_latents)
            latents = latents + take_patches(context, origins)
        for layer in self.layers:
            latents = layer(latents, context, mask)
        return self.output_proj(self.output_norm(latents)), origins

    def embed_context(self, features: dict[int, torch.Tensor], geometry: SceneGeometry | None) -> torch.Tensor:
        """Sum of the projected layers and the geometric embeddings, [S, V, P, dim]."""
        context = sum(
            proj(norm(features[layer].to(proj.weight.dtype)))
            for layer, norm, proj in zip(self.config.feature_layers, self.feature_norms, self.feature_projs)
        )
        if geometry is None:
            return context
        known = geometry.geometry_mask[:, None, None, None]
        if self.ray_embedding is not None:
            rays = self.ray_embedding(patch_rays(geometry, self.patch_size))
            context = context + torch.where(known, rays, 0.0)
        if self.point_embedding is not None:
            points = self.point_embedding(geometry.patch_points, geometry.patch_points_mask)
            context = context + torch.where(known, points, 0.0)
        return context


__all__ = ["GeometryTokens", "PerceiverResampler", "SceneGeometry", "patch_rays", "pool_patches"]
