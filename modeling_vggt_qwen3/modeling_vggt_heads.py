"""Heads of VGGT: cameras, depth and world points of every view; `VggtForReconstruction` puts them on the encoder.

Source: Wang et al., "VGGT: Visual Geometry Grounded Transformer", CVPR 2025. Cameras follow OpenCV (x right, y down,
z forward). The world is the frame of view 0, in a scale of the model's own: neither metric nor aligned with gravity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import maybe_autocast

from .configuration_vggt_qwen3 import VggtConfig
from .constants_vggt_qwen3 import once_per_key
from .modeling_vggt import VggtBlock, VggtLayerNorm, VggtModel, VggtPreTrainedModel

POSE_DIM = 9
CAMERA_NORM_EPS = 1e-6
DPT_OUTPUT_CHANNELS = 32
UV_EMBEDDING_WEIGHT = 0.1
PIXELS_AT_ONCE = 8 * 518 * 518
"""The dense heads work on full-size maps; more views at once would only cost memory."""


@dataclass
class VggtReconstruction(ModelOutput):
    """What the heads say about S scenes of V views of H x W pixels.

    Attributes:
        pose_enc: float32 [S, V, 9], translation, quaternion (x, y, z, w), vertical and horizontal field of view in
            radians; the last of `pose_enc_list`, the estimates of the camera head's iterations.
        extrinsics: float32 [S, V, 3, 4], cam_from_world.
        intrinsics: float32 [S, V, 3, 3] in pixels, principal point in the middle.
        depth, depth_conf: z-depth [S, V, H, W, 1] and its confidence [S, V, H, W], at least 1.
        world_points, world_points_conf: [S, V, H, W, 3] and [S, V, H, W], at least 1.
        feature_maps: the encoder layers asked for, see `VggtModelOutput`.
    """

    pose_enc: torch.FloatTensor | None = None
    extrinsics: torch.FloatTensor | None = None
    intrinsics: torch.FloatTensor | None = None
    depth: torch.FloatTensor | None = None
    depth_conf: torch.FloatTensor | None = None
    world_points: torch.FloatTensor | None = None
    world_points_conf: torch.FloatTensor | None = None
    feature_maps: dict[int, torch.Tensor] | None = None
    pose_enc_list: tuple[torch.FloatTensor, ...] | None = None


def quaternion_to_matrix(quaternion: torch.Tensor) -> torch.Tensor:
    """Quaternions (x, y, z, w) of any length but zero [..., 4] -> rotations [..., 3, 3]."""
    x, y, z, w = quaternion.unbind(-1)
    s = 2 / quaternion.square().sum(-1)
    rows = (
        (1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)),
        (s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)),
        (s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def matrix_to_quaternion(rotation: torch.Tensor) -> torch.Tensor:
    """Rotations [..., 3, 3] -> unit quaternions (x, y, z, w) with w >= 0 [..., 4].

    Source: Shepperd, "Quaternion from Rotation Matrix", 1978: divides by the largest of the four components.
    """
    r = rotation
    xx, yy, zz = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
    squares = torch.stack((1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz, 1 + xx + yy + zz), dim=-1)  # 4q²
    xy, xz, yz = (r[..., i, j] + r[..., j, i] for i, j in ((0, 1), (0, 2), (1, 2)))  # four times the products
    xw, yw, zw = (r[..., i, j] - r[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0)))
    s0, s1, s2, s3 = squares.unbind(-1)
    products = ((s0, xy, xz, xw), (xy, s1, yz, yw), (xz, yz, s2, zw), (xw, yw, zw, s3))
    candidates = torch.stack([torch.stack(row, dim=-1) for row in products], dim=-2)  # row i: 4 q_i (x, y, z, w)
    best = squares.argmax(-1, keepdim=True).unsqueeze(-1).expand(*squares.shape[:-1], 1, 4)
    quaternion = F.normalize(candidates.gather(-2, best).squeeze(-2), dim=-1)
    return torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


def cameras_from_pose_encoding(
    pose_enc: torch.Tensor, image_size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cameras of pose encodings [..., 9] (see `VggtReconstruction`) of images of (height, width) pixels.

    Returns:
        cam_from_world [..., 3, 4], and intrinsics [..., 3, 3] with the principal point in the middle of the image.
    """
    height, width = image_size
    rotation = quaternion_to_matrix(pose_enc[..., 3:7])
    extrinsics = torch.cat((rotation, pose_enc[..., :3, None]), dim=-1)
    focal_y = height / 2 / (pose_enc[..., 7] / 2).tan()
    focal_x = width / 2 / (pose_enc[..., 8] / 2).tan()
    zero, one = torch.zeros_like(focal_x), torch.ones_like(focal_x)
    rows = ((focal_x, zero, one * (width / 2)), (zero, focal_y, one * (height / 2)), (zero, zero, one))
    return extrinsics, torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def pose_encoding_from_cameras(
    extrinsics: torch.Tensor, intrinsics: torch.Tensor, image_size: tuple[int, int]
) -> torch.Tensor:
    """Inverse of `cameras_from_pose_encoding`, which leaves out the principal point; the quaternion has w >= 0."""
    height, width = image_size
    fov_y = 2 * (height / 2 / intrinsics[..., 1, 1]).atan()
    fov_x = 2 * (width / 2 / intrinsics[..., 0, 0]).atan()
    quaternion = matrix_to_quaternion(extrinsics[..., :3])
    return torch.cat((extrinsics[..., 3], quaternion, torch.stack((fov_y, fov_x), dim=-1)), dim=-1)


def unproject_depth(depth: torch.Tensor, extrinsics: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    """World points of depth maps; a pixel's ray goes through its integer coordinates, as VGGT was trained.

    Args:
        depth: z-depth [..., H, W, 1].
        extrinsics: cam_from_world [..., 3, 4].
        intrinsics: [..., 3, 3] in pixels, no skew.

    Returns:
        [..., H, W, 3]; depth 0 gives the camera's centre.
    """
    height, width = depth.shape[-3:-1]
    focal = torch.stack((intrinsics[..., 0, 0], intrinsics[..., 1, 1]), dim=-1)[..., None, None, :]
    center = intrinsics[..., None, None, :2, 2]
    v, u = torch.meshgrid(
        torch.arange(height, device=depth.device), torch.arange(width, device=depth.device), indexing="ij"
    )
    pixels = torch.stack((u, v), dim=-1)  # [H, W, 2]
    points_cam = torch.cat(((pixels - center) / focal * depth, depth), dim=-1)
    rotation, translation = extrinsics[..., :3], extrinsics[..., None, None, :, 3]
    return ((points_cam - translation).flatten(-3, -2) @ rotation).unflatten(-2, (height, width))  # rows: Rᵀ (x - t)


class VggtCameraHead(nn.Module):
    """Refines the pose encodings of all views together, from their camera tokens."""

    def __init__(self, config: VggtConfig) -> None:
        super().__init__()
        dim, eps = 2 * config.hidden_size, config.layer_norm_eps
        self.num_iterations = config.camera_head_iterations
        self.token_norm = VggtLayerNorm(dim, eps=eps)
        self.empty_pose = nn.Parameter(torch.zeros(1, 1, POSE_DIM))
        self.pose_proj = nn.Linear(POSE_DIM, dim)
        self.modulation = nn.Linear(dim, 3 * dim)
        self.blocks = nn.ModuleList(
            VggtBlock(config, dim, config.camera_head_attention_heads, eps, config.layer_scale_init)
            for _ in range(config.camera_head_layers)
        )
        self.norm = VggtLayerNorm(dim, eps=eps)
        self.fc1 = nn.Linear(dim, dim // 2)
        self.fc2 = nn.Linear(dim // 2, POSE_DIM)

    def forward(self, tokens: torch.Tensor, key_mask: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Camera tokens [S, V, 2C] -> the pose encodings [S, V, 9] of each iteration, float32.

        Each iteration feeds back the pose before its activation, without its gradient.
        """
        tokens = self.token_norm(tokens)
        normed = F.layer_norm(tokens.float(), tokens.shape[-1:], eps=CAMERA_NORM_EPS)
        pose, poses = None, []
        for _ in range(self.num_iterations):
            previous = self.empty_pose.expand(*tokens.shape[:2], -1) if pose is None else pose.detach()
            embedded = self.pose_proj(previous.to(self.pose_proj.weight.dtype))
            shift, scale, gate = self.modulation(F.silu(embedded)).chunk(3, dim=-1)
            x = gate * (normed * (1 + scale) + shift) + tokens.float()
            for block in self.blocks:
                x = block(x, None, key_mask)
            delta = self.fc2(F.gelu(self.fc1(self.norm(x)))).float()
            pose = delta if pose is None else pose + delta
            poses.append(torch.cat((pose[..., :7], pose[..., 7:].relu()), dim=-1))
        return tuple(poses)


@once_per_key
def uv_embedding(width: int, height: int, aspect: float, channels: int, device: torch.device) -> torch.Tensor:
    """Sines and cosines of the positions on a map whose image has width / height = `aspect`.

    Returns:
        float32 [channels, height, width]: sin u, cos u, sin v, cos v, `channels / 4` frequencies each.
    """
    diagonal = math.hypot(aspect, 1.0)
    axes = []
    for size, span in ((width, aspect / diagonal), (height, 1 / diagonal)):
        limit = span * (size - 1) / size
        axes.append(torch.linspace(-limit, limit, size, device=device, dtype=torch.float64))
    v, u = torch.meshgrid(axes[1], axes[0], indexing="ij")
    steps = torch.arange(channels // 4, device=device, dtype=torch.float64)[:, None, None]
    frequencies = 100.0 ** (-steps / (channels // 4))
    angles_u, angles_v = u * frequencies, v * frequencies  # [channels / 4, height, width]
    return torch.cat((angles_u.sin(), angles_u.cos(), angles_v.sin(), angles_v.cos())).float()


class VggtResidualUnit(nn.Module):
    """Two convolutions beside a shortcut that carries relu(x), not x: as the published weights were trained."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, channels, h, w] -> the same."""
        x = x.relu()
        return self.conv2(self.conv1(x).relu()) + x


class VggtFusion(nn.Module):
    """Adds a finer map to the fused one and resizes the sum."""

    def __init__(self, channels: int, has_skip: bool) -> None:
        super().__init__()
        self.skip_unit = VggtResidualUnit(channels) if has_skip else None
        self.unit = VggtResidualUnit(channels)
        self.out_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None, size: tuple[int, int]) -> torch.Tensor:
        """[N, channels, h, w] and the map to add -> [N, channels, *size]."""
        if self.skip_unit is not None:
            x = x + self.skip_unit(skip)
        return self.out_conv(_resize(self.unit(x), size))


class VggtDPTHead(nn.Module):
    """Dense prediction from four encoder layers, with a confidence.

    Source: Ranftl et al., "Vision Transformers for Dense Prediction", ICCV 2021.

    Args:
        output_dim: predicted values a pixel; the confidence comes on top.
    """

    def __init__(self, config: VggtConfig, output_dim: int) -> None:
        super().__init__()
        channels, features = config.dpt_channels, config.dpt_features
        self.patch_size = config.patch_size
        self.norm = VggtLayerNorm(2 * config.hidden_size, eps=config.layer_norm_eps)
        self.projections = nn.ModuleList(nn.Conv2d(2 * config.hidden_size, c, 1) for c in channels)
        self.resizers = nn.ModuleList(
            (
                nn.ConvTranspose2d(channels[0], channels[0], 4, stride=4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1),
            )
        )
        self.lateral_convs = nn.ModuleList(nn.Conv2d(c, features, 3, padding=1, bias=False) for c in channels)
        self.fusions = nn.ModuleList(VggtFusion(features, has_skip=level < 3) for level in range(4))
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = nn.Conv2d(features // 2, DPT_OUTPUT_CHANNELS, 3, padding=1)
        self.output_conv3 = nn.Conv2d(DPT_OUTPUT_CHANNELS, output_dim + 1, 1)

    def forward(self, layers: Sequence[torch.Tensor], image_size: tuple[int, int]) -> torch.Tensor:
        """Patch tokens [N, P, 2C] of four layers -> raw values and confidence, float32 [N, H, W, output_dim + 1]."""
        at_once = max(1, PIXELS_AT_ONCE // (image_size[0] * image_size[1]))
        parts = zip(*(tokens.split(at_once) for tokens in layers))
        return torch.cat([self._predict(part, image_size) for part in parts])

    def _predict(self, layers: Sequence[torch.Tensor], image_size: tuple[int, int]) -> torch.Tensor:
        maps = [self._reassemble(level, tokens, image_size) for level, tokens in enumerate(layers)]
        x = maps[3]
        for level in (3, 2, 1, 0):
            finer = maps[level - 1] if level else maps[0]
            scale = 1 if level else 2
            size = (finer.shape[-2] * scale, finer.shape[-1] * scale)
            x = self.fusions[level](x, maps[level] if level < 3 else None, size)
        x = self._add_uv(_resize(self.output_conv1(x), image_size), image_size)
        x = self.output_conv3(self.output_conv2(x).relu())
        return x.permute(0, 2, 3, 1).float()

    def _reassemble(self, level: int, tokens: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
        """Tokens [N, P, 2C] of one layer -> a map [N, dpt_features, h, w] of its level's size."""
        rows, columns = (side // self.patch_size for side in image_size)
        x = self.norm(tokens).transpose(1, 2).unflatten(-1, (rows, columns))
        x = self._add_uv(self.projections[level](x), image_size)
        return self.lateral_convs[level](self.resizers[level](x))

    @staticmethod
    def _add_uv(x: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
        aspect = image_size[1] / image_size[0]
        embedding = uv_embedding(x.shape[-1], x.shape[-2], aspect, x.shape[1], x.device)
        return x + (UV_EMBEDDING_WEIGHT * embedding).to(x.dtype)


def _resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class VggtForReconstruction(VggtPreTrainedModel):
    """Photographs of a scene -> cameras, depth and points.

    The heads keep float32 weights when the encoder is loaded in half precision: their outputs are coordinates.
    """

    _keep_in_fp32_modules_strict = ["camera_head", "depth_head", "point_head"]  # noqa: RUF012

    def __init__(self, config: VggtConfig) -> None:
        super().__init__(config)
        _check_heads(config)
        self.vggt = VggtModel(config)
        self.camera_head = VggtCameraHead(config)
        self.depth_head = VggtDPTHead(config, output_dim=1)
        self.point_head = VggtDPTHead(config, output_dim=3)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        view_mask: torch.Tensor | None = None,
        feature_layers: Sequence[int] | Literal["all"] | None = None,
    ) -> VggtReconstruction:
        """See `VggtModel.forward` for the arguments and errors; autocast reaches the encoder alone."""
        requested = self.vggt.resolve_layers(feature_layers)
        outputs = self.vggt(pixel_values, view_mask, {*requested, *self.config.dpt_layers})
        image_size = (pixel_values.shape[-2], pixel_values.shape[-1])
        with maybe_autocast(pixel_values.device.type, enabled=False):
            poses = self._estimate_poses(outputs.last_hidden_state[:, :, 0], view_mask)
            extrinsics, intrinsics = cameras_from_pose_encoding(poses[-1], image_size)
            maps = [outputs.feature_maps[layer][:, :, outputs.patch_start_idx :] for layer in self.config.dpt_layers]
            depth, depth_conf = self._predict_dense(self.depth_head, maps, image_size)
            points, points_conf = self._predict_dense(self.point_head, maps, image_size)
        return VggtReconstruction(
            pose_enc=poses[-1],
            extrinsics=extrinsics,
            intrinsics=intrinsics,
            depth=depth.exp(),
            depth_conf=depth_conf,
            world_points=inverse_log(points),
            world_points_conf=points_conf,
            feature_maps={k: v for k, v in outputs.feature_maps.items() if k in requested},
            pose_enc_list=poses,
        )

    def _estimate_poses(self, camera_tokens: torch.Tensor, view_mask: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        key_mask = None if view_mask is None else self.vggt.make_key_mask(view_mask, num_tokens=1)
        return self.camera_head(camera_tokens, key_mask)

    @staticmethod
    def _predict_dense(
        head: VggtDPTHead, maps: Sequence[torch.Tensor], image_size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Raw values [S, V, H, W, dim] and confidence [S, V, H, W] >= 1."""
        output = head([tokens.flatten(0, 1) for tokens in maps], image_size).unflatten(0, maps[0].shape[:2])
        return output[..., :-1], 1 + output[..., -1].exp()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VggtCameraHead):
            init.zeros_(module.empty_pose)


def _check_heads(config: VggtConfig) -> None:
    depth, heads = config.num_hidden_layers, config.camera_head_attention_heads
    faults = []
    if len(config.dpt_layers) != 4 or len(config.dpt_channels) != 4:
        faults.append("dpt_layers and dpt_channels must be four each")
    if not all(0 <= layer < depth for layer in config.dpt_layers):
        faults.append(f"dpt_layers = {list(config.dpt_layers)} must lie between 0 and {depth - 1}")
    if any(channels % 4 for channels in (*config.dpt_channels, config.dpt_features // 2)) or config.dpt_features % 2:
        faults.append("dpt_channels and half of dpt_features must be multiples of 4")
    if 2 * config.hidden_size % heads:
        faults.append(
            f"twice hidden_size = {2 * config.hidden_size} must be a multiple of the camera head's {heads} heads"
        )
    if faults:
        raise ValueError(f"the heads do not fit this configuration: {'; '.join(faults)}")


def inverse_log(x: torch.Tensor) -> torch.Tensor:
    """Undoes sign(x) · log(1 + |x|)."""
    return x.sign() * x.abs().expm1()


__all__ = [
    "VggtForReconstruction",
    "VggtReconstruction",
    "cameras_from_pose_encoding",
    "pose_encoding_from_cameras",
    "unproject_depth",
]
