"""What a scene's latents know of its space: rays ask them for depth, and each tells what lies where it began.

Training only: `add_ray_decoder` gives it to a model; neither its weights nor this code are saved with that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .modeling_perceiver import Float32Linear, PerceiverAttention, RayEmbedding, take_patches

BOX_NUMBERS = 8
"""Centre, extent (width, depth, height) and horizontal normal, as an action states them, in ref metres."""
UNKNOWN = -1
DECODER_LAYERS, HEAD_DIM = 2, 32


class RayDecoderLayer(nn.Module):
    """Cross-attention from rays to latents, then an MLP; pre-norm residual branches."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query_norm, self.context_norm, self.mlp_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.attention = PerceiverAttention(dim, max(1, dim // HEAD_DIM))
        self.fc1, self.fc2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, queries: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Queries [S, R, dim], latents [S, N, dim] -> [S, R, dim]."""
        queries = queries + self.attention(self.query_norm(queries), self.context_norm(latents), None)
        return queries + self.fc2(F.gelu(self.fc1(self.mlp_norm(queries))))


class RayDecoder(nn.Module):
    """Rays cross-attend to the latents and predict log depth; with `num_classes` each latent tells, through one linear
    layer, the class, colour, box and point of the patch that it began at.

    Args:
        dim: width of the latents as the text model sees them.
        num_classes, num_colors: sizes of the dense labels' vocabularies; 0 = depth alone.
        depth_weight, label_weight: weights of the two kinds of losses.
    """

    def __init__(
        self, dim: int, num_classes: int = 0, num_colors: int = 0, depth_weight: float = 1.0, label_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.depth_weight, self.label_weight = depth_weight, label_weight
        self.embedding = RayEmbedding(dim)
        self.layers = nn.ModuleList(RayDecoderLayer(dim) for _ in range(DECODER_LAYERS))
        self.depth_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 1))
        self.sizes = (num_classes, num_colors, BOX_NUMBERS, 3)
        head = nn.Sequential(nn.LayerNorm(dim), Float32Linear(dim, sum(self.sizes)))
        self.label_head = head if num_classes else None

    def forward(
        self, latents: torch.Tensor, targets: dict[str, torch.Tensor], origins: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Losses of S scenes.

        Args:
            latents: [S, N, dim].
            targets: rays float32 [S, R, 6], Plücker coordinates in ref; depth float32 [S, R], metres along the ray, and
                depth_mask bool [S, R]; with classes also of all K patches classes, colors int64 [S, K] (-1 = unknown),
                boxes float32 [S, K, 8], points float32 [S, K, 3] in ref, boxes_mask and points_mask bool [S, K].
            origins: int64 [S, N], the patch below K that each latent began at.

        Returns:
            "geometry_consistency": L1 of log depth; with classes those of `label_losses` and "point", smooth L1 in
            metres; float32 scalars.

        Raises:
            ValueError: for classes of latents that began at no patch.
        """
        queries = self.embedding(targets["rays"])
        for layer in self.layers:
            queries = layer(queries, latents.to(queries.dtype))
        log_depth = self.depth_head(queries).float().squeeze(-1)
        error = (log_depth - targets["depth"].clamp_min(1e-3).log()).abs()
        losses = {"geometry_consistency": masked_mean(error, targets["depth_mask"])}
        if self.label_head is None:
            return losses
        if origins is None:
            raise ValueError("latents that begin as learned vectors tell no labels; set latent_start to spread")
        names = ("classes", "colors", "boxes", "boxes_mask", "points", "points_mask")
        there = {name: take_patches(targets[name], origins) for name in names}
        classes, colors, boxes, points = self.label_head(latents.float()).split(self.sizes, dim=-1)
        losses |= label_losses(classes, colors, boxes, there)
        return {**losses, "point": masked_mean(smooth_l1(points, there["points"]), there["points_mask"])}

    def weighted(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """Their sum by the weights of the two kinds."""
        labels = sum(loss for name, loss in losses.items() if name != "geometry_consistency")
        return self.depth_weight * losses["geometry_consistency"] + self.label_weight * labels


def label_losses(
    classes: torch.Tensor, colors: torch.Tensor, boxes: torch.Tensor, targets: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Cross-entropy of "class" and "color", smooth L1 of "box" in metres, each a mean over what is known.

    classes, colors: logits [..., C]; boxes [..., 8]; targets as in `RayDecoder.forward`.
    """
    return {
        "class": _cross_entropy(classes, targets["classes"]),
        "color": _cross_entropy(colors, targets["colors"]),
        "box": masked_mean(smooth_l1(boxes, targets["boxes"]), targets["boxes_mask"]),
    }


def smooth_l1(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """[..., C] in metres -> [...], the mean of C errors, each a square below 0.1."""
    return F.smooth_l1_loss(found, wanted, reduction="none", beta=0.1).mean(-1)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=UNKNOWN, reduction="none")
    return masked_mean(losses, labels.flatten() != UNKNOWN)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean where the mask is True; 0 with a graph where it is nowhere, without a look at the values."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp_min(1)


__all__ = ["RayDecoder", "label_losses", "masked_mean", "smooth_l1"]
