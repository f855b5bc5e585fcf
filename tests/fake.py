"""Small configurations and batches derived from them, so that model tests need no data."""

from __future__ import annotations

import torch

from modeling_vggt_qwen3.configuration_vggt_qwen3 import VggtQwen3Config
from modeling_vggt_qwen3.modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration

IMAGE_TOKEN, PAD_TOKEN = 5, 0
GEOMETRY = ("geometry_mask", "ref_from_cam", "intrinsics", "depth_hist", "patch_points", "patch_points_mask")


def small_config(**overrides: object) -> VggtQwen3Config:
    """Under 0.2 M parameters; 28 x 42 images of 6 patches."""
    fields = {
        "vision_config": {
            "image_size": 56,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_patch_embed_layers": 1,
            "num_patch_embed_attention_heads": 2,
            "layer_scale_init": 1.0,
            "camera_head_attention_heads": 2,
            "camera_head_layers": 1,
            "dpt_layers": [0, 0, 1, 1],
            "dpt_channels": [8, 8, 8, 8],
            "dpt_features": 8,
        },
        "perceiver_config": {
            "hidden_size": 32,
            "num_latents": 4,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "feature_layers": [-1, 0, 1],
        },
        "text_config": {
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "vocab_size": 64,
            "tie_word_embeddings": True,
            "eos_token_id": 1,
            "pad_token_id": PAD_TOKEN,
        },
        "image_token_id": IMAGE_TOKEN,
        "vision_start_token_id": 6,
        "vision_end_token_id": 7,
    }
    return VggtQwen3Config(**{**fields, **overrides})


def small_model(seed: int = 0, **overrides: object) -> VggtQwen3ForConditionalGeneration:
    """In evaluation mode, weights by seed, large enough that every input is seen in the logits."""
    torch.manual_seed(seed)
    model = VggtQwen3ForConditionalGeneration(small_config(**overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def fake_scenes(config: VggtQwen3Config, num_scenes: int, num_views: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """The scene tensors of the batch table, all cameras known, images 28 x 42."""
    rng = torch.Generator().manual_seed(seed)
    height, width = 28, 42
    patches = (height // 14) * (width // 14)
    shape = (num_scenes, num_views)
    rotation = torch.linalg.qr(torch.randn(*shape, 3, 3, generator=rng)).Q
    rotation = rotation * torch.linalg.det(rotation)[..., None, None]
    ref_from_cam = torch.eye(4).repeat(*shape, 1, 1)
    ref_from_cam[..., :3, :3] = rotation
    ref_from_cam[..., :3, 3] = torch.randn(*shape, 3, generator=rng)
    intrinsics = torch.tensor([[40.0, 0, 21], [0, 40, 14], [0, 0, 1]]).repeat(*shape, 1, 1)
    return {
        "pixel_values": torch.randint(0, 256, (*shape, 3, height, width), generator=rng, dtype=torch.uint8),
        "view_mask": torch.ones(shape, dtype=torch.bool),
        "geometry_mask": torch.ones(num_scenes, dtype=torch.bool),
        "ref_from_cam": ref_from_cam,
        "intrinsics": intrinsics,
        "depth_hist": torch.rand(*shape, 16, generator=rng).softmax(-1),
        "patch_points": torch.randn(*shape, patches, 3, generator=rng) * 2,
        "patch_points_mask": torch.rand(*shape, patches, generator=rng) > 0.3,
        "world_from_ref": torch.eye(4).repeat(num_scenes, 1, 1),
    }


def fake_text(
    config: VggtQwen3Config, num_visual: list[int], question_lengths: list[int], pad: str = "left", seed: int = 0
) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask of rows with so many placeholders and so many question tokens each."""
    rng = torch.Generator().manual_seed(seed)
    rows = []
    for count, length in zip(num_visual, question_lengths):
        words = torch.randint(8, config.text_config.vocab_size, (length,), generator=rng).tolist()
        rows.append([3, *([IMAGE_TOKEN] * count), 4, *words])
    longest = max(map(len, rows))
    padding = [[PAD_TOKEN] * (longest - len(row)) for row in rows]
    order = (lambda row, fill: fill + row) if pad == "left" else (lambda row, fill: row + fill)
    return {
        "input_ids": torch.tensor([order(row, fill) for row, fill in zip(rows, padding)]),
        "attention_mask": torch.tensor([order([1] * len(row), [0] * len(fill)) for row, fill in zip(rows, padding)]),
    }


def fake_batch(
    config: VggtQwen3Config, num_scenes: int = 2, num_views: int = 3, seed: int = 0
) -> dict[str, torch.Tensor]:
    """One row of text a scene, every camera known."""
    scenes = fake_scenes(config, num_scenes, num_views, seed)
    visual = [config.perceiver_config.num_latents + num_views * config.use_geometry_tokens] * num_scenes
    text = fake_text(config, visual, [3 + i for i in range(num_scenes)], seed=seed)
    return {**text, **scenes, "scene_index": torch.arange(num_scenes)}


def without_geometry(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The scenes of a batch as the processor states unknown cameras."""
    hidden = {key: torch.zeros_like(batch[key]) for key in GEOMETRY}
    hidden["ref_from_cam"] = torch.eye(4).expand_as(batch["ref_from_cam"]).clone()
    hidden["intrinsics"] = torch.eye(3).expand_as(batch["intrinsics"]).clone()
    return {**batch, **hidden}
