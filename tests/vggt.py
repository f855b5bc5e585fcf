"""Small VGGT models for tests: random ones, and the official one of reduced size whose every number is on record."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from modeling_vggt_qwen3.configuration_vggt_qwen3 import VggtConfig
from modeling_vggt_qwen3.convert_vggt_checkpoint import PATCH_PROJECTION, config_from_official, convert, rename
from modeling_vggt_qwen3.modeling_vggt_heads import VggtForReconstruction

FIXTURES = Path(__file__).parent / "fixtures" / "vggt"
WEIGHTS = FIXTURES / "A_weights.safetensors"
CONFIG_JSON = FIXTURES / "A.json"
CASES = ("main", "native")  # 42 x 56 pixels, position table resized; and 56 x 56, its own size


def record(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a fixture file."""
    return load_file(FIXTURES / f"{name}.safetensors")


def official_config() -> VggtConfig:
    return config_from_official(json.loads(CONFIG_JSON.read_text(encoding="utf-8"))["config"])


def wide_config() -> VggtConfig:
    """The official one of reduced size, with more channels: a checkpoint of over 100 MB."""
    config = official_config()
    config.hidden_size = 384
    return config


def official_shapes(config: VggtConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the official checkpoint of a model of these sizes, without track head and mask token."""
    with torch.device("meta"):
        state = VggtForReconstruction(config).state_dict()
    official = {rename(name): name for name in record(WEIGHTS.stem)}
    shapes = {}
    for name, tensor in state.items():
        block = re.search(r"blocks\.(\d+)", name)
        source = official[re.sub(r"blocks\.\d+", "blocks.0", name)]
        source = re.sub(r"(blocks|trunk)\.0", rf"\1.{block[1]}", source) if block else source
        is_projection = source == PATCH_PROJECTION
        shapes[source] = (
            (len(tensor), 3, config.patch_size, config.patch_size) if is_projection else tuple(tensor.shape)
        )
    return shapes


def convert_fixture(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The official weights of reduced size, converted."""
    convert(WEIGHTS, folder / "vggt", official_config(), dtype)
    return folder / "vggt"


def small_config(**overrides: object) -> VggtConfig:
    """0.3 M parameters, head size 16."""
    fields = {
        "image_size": 56,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_patch_embed_layers": 2,
        "num_patch_embed_attention_heads": 3,
        "camera_head_layers": 1,
        "camera_head_attention_heads": 6,
        "dpt_layers": (0, 1, 1, 2),
        "dpt_channels": (8, 8, 8, 8),
        "dpt_features": 8,
    }
    return VggtConfig(**{**fields, **overrides})


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of which each one matters to the output; a fresh model's scales and tokens are all but zero."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=rng)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("_scale"):
                parameter.copy_(0.5 + 0.2 * noise)
            elif parameter.ndim > 1 and name.endswith("weight"):
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.3 * noise)
    return model.eval()


def small_reconstruction(seed: int = 0) -> VggtForReconstruction:
    return randomize(VggtForReconstruction(small_config()), seed)


def fake_views(
    num_scenes: int = 1, num_views: int = 3, height: int = 42, width: int = 56, seed: int = 0
) -> torch.Tensor:
    """uint8 [S, V, 3, H, W]."""
    rng = torch.Generator().manual_seed(seed)
    shape = (num_scenes, num_views, 3, height, width)
    return torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm of what was wanted."""
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())
