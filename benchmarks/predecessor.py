"""The predecessor's wiring, to be measured beside this project's under the same data, steps and text model.

    python -m benchmarks.predecessor train --config STAGE.yaml
    python -m benchmarks.predecessor eval --model FOLDER --dataset DATASET

The first VGGT-Qwen3 RoomPlan handed the text model the first 128 tokens of the first view, of the encoder's last
layer, through one linear layer that was never trained; cameras and depth did not reach it, nor did other views. Here a
view of 112 x 112 has 64 patches, so that all of the first view passes, where there the upper eighth of one did.

It is no option of the model: this program puts the layer in the resampler's place and then runs train.py or eval.py.
What it saves loads through it alone.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

import eval as evaluator
import train
from modeling_vggt_qwen3.configuration_vggt_qwen3 import VggtQwen3Config
from modeling_vggt_qwen3.modeling_perceiver import SceneGeometry
from modeling_vggt_qwen3.modeling_vggt_qwen3 import VggtQwen3Model
from training.launch import end_process_group

NUM_TOKENS = 128
PROGRAMS = {"train": train.main, "eval": evaluator.main}


class FirstTokens(nn.Module):
    """The first patch tokens of view 0, last layer, through one linear layer; stands where the resampler does."""

    def __init__(self, config: VggtQwen3Config) -> None:
        super().__init__()
        self.num_tokens = config.perceiver_config.num_latents
        self.layer = config.perceiver_config.feature_layers[-1]
        self.proj = nn.Linear(2 * config.vision_config.hidden_size, config.text_config.hidden_size)

    def forward(
        self,
        features: dict[int, torch.Tensor],
        geometry: SceneGeometry | None = None,
        patch_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """Arguments as the resampler's, of which all but the features are ignored -> [S, tokens, text width]."""
        return self.proj(features[self.layer][:, 0, : self.num_tokens].to(self.proj.weight.dtype)), None


def edit_model(fields: dict[str, Any]) -> None:
    """Changes a model's JSON into the predecessor's: as many tokens as a view has, up to 128, and no geometry."""
    vision, perceiver = fields["vision_config"], fields["perceiver_config"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    fields["use_geometry_tokens"] = False
    perceiver |= {"num_latents": min(NUM_TOKENS, patches), "feature_layers": [vision["num_hidden_layers"] - 1]}
    perceiver |= {"use_ray_embedding": False, "use_point_embedding": False, "latent_start": "learned"}


def put_in_place() -> None:
    """From now on every model is made with `FirstTokens`."""
    original = VggtQwen3Model.__init__

    def wired(self: VggtQwen3Model, config: VggtQwen3Config) -> None:
        original(self, config)
        self.resampler = FirstTokens(config)

    VggtQwen3Model.__init__ = wired


def main(argv: list[str] | None = None) -> None:
    """Runs the program that the first word names."""
    name, *words = sys.argv[1:] if argv is None else argv
    if name not in PROGRAMS:
        raise SystemExit(f"error: {name!r} is no program, wanted one of {', '.join(PROGRAMS)}")
    put_in_place()
    PROGRAMS[name](words)
    end_process_group()


if __name__ == "__main__":
    main()
