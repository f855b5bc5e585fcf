"""LoRA: low-rank updates of the text model's projections; what lies before it still trains whole.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from modeling_vggt_qwen3.modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration

ADAPTER_CONFIG = "adapter_config.json"
WHOLE_PARTS = {"vision": "vision_model", "resampler": "resampler", "geometry_tokens": "geometry_tokens"}
"""Parts that train whole beside the adapters, and their modules' names."""


def add_adapters(
    model: VggtQwen3ForConditionalGeneration,
    parts: Sequence[str],
    frozen_text_layers: int,
    rank: int,
    alpha: int | None,
    dropout: float,
    targets: Sequence[str],
) -> PeftModel:
    """Wraps the model: its text learns through adapters, its other trainable parts as a whole, in float32.

    Args:
        model: loaded from a checkpoint, which the saved adapter names.
        parts: trainable parts (see freezing.py), `text` among them.
        frozen_text_layers: bottom decoder layers that get no adapter.
        rank, dropout: of the updates.
        alpha: updates are scaled by alpha / rank; None = twice the rank.
        targets: names of linear layers in a decoder layer.

    Raises:
        ValueError: for targets that the decoder layers lack, or text that is not to learn.
    """
    if "text" not in parts:
        raise ValueError(f"lora_rank is {rank}, but trainable_parts = {list(parts)} leaves the text model frozen")
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=_target_pattern(model, frozen_text_layers, targets),
        modules_to_save=[name for part, name in WHOLE_PARTS.items() if part in parts and _has(model, name)],
    )  # no task_type: the library's class for language models keeps task_ids to itself
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def is_adapter(source: str) -> bool:
    """Whether a folder holds adapters alone."""
    return (Path(source) / ADAPTER_CONFIG).is_file()


def base_of(adapter: str) -> str:
    """The checkpoint that adapters were trained on.

    Raises:
        ValueError: where the adapter does not name it.
    """
    base = json.loads((Path(adapter) / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{adapter}/{ADAPTER_CONFIG} names no base_model_name_or_path: write the checkpoint there")
    return base


def merge(model: VggtQwen3ForConditionalGeneration, adapter: str) -> VggtQwen3ForConditionalGeneration:
    """The base model with the adapters' updates added to its weights; no adapter is left."""
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    return merged


def _target_pattern(model: VggtQwen3ForConditionalGeneration, frozen_text_layers: int, targets: Sequence[str]) -> str:
    """Matches the named linear layers of the decoder layers that are not frozen, and none outside the text model."""
    layers = model.model.language_model.layers
    linear = {
        name.rsplit(".", 1)[-1] for name, module in layers[0].named_modules() if isinstance(module, torch.nn.Linear)
    }
    missing = sorted(set(targets) - linear)
    if missing or not targets:
        raise ValueError(f"lora_targets names {missing or 'nothing'}; a decoder layer has {sorted(linear)}")
    numbers = "|".join(str(number) for number in range(frozen_text_layers, len(layers)))
    return rf"model\.language_model\.layers\.({numbers})\.\w+\.({'|'.join(targets)})"


def _has(model: VggtQwen3ForConditionalGeneration, name: str) -> bool:
    return getattr(model.model, name) is not None
