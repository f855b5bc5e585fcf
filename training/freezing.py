"""Which parts of the model learn: said in the configuration, logged, and checked."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import nn

from modeling_vggt_qwen3.modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration

logger = logging.getLogger(__name__)

PARTS = {
    "vision": "model.vision_model.",
    "resampler": "model.resampler.",
    "geometry_tokens": "model.geometry_tokens.",
    "text": "model.language_model.",
}


def part_of(parameter_name: str) -> str:
    """Name of the part that a parameter belongs to; a language head of its own counts as text."""
    for part, prefix in PARTS.items():
        if parameter_name.startswith(prefix):
            return part
    return "text"


def set_trainable(
    model: VggtQwen3ForConditionalGeneration, parts: Sequence[str], frozen_text_layers: int = 0
) -> dict[str, int]:
    """Freezes everything but the named parts.

    Args:
        model: changed in place.
        parts: names among `PARTS`.
        frozen_text_layers: bottom decoder layers, and the embeddings below them, that stay frozen all the same.

    Returns:
        trainable parameter -> number of elements.

    Raises:
        ValueError: for an unknown part, more layers than there are, or nothing left to train.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise ValueError(f"trainable_parts names {unknown}; the parts are {list(PARTS)}")
    layers = model.model.language_model.layers
    if not 0 <= frozen_text_layers <= len(layers):
        raise ValueError(f"frozen_text_layers is {frozen_text_layers}; the text model has {len(layers)} layers")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in parts)
    if frozen_text_layers:
        _freeze(model.get_input_embeddings())
        for layer in layers[:frozen_text_layers]:
            _freeze(layer)
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError(f"nothing is left to train: trainable_parts = {list(parts)}")
    _log(model, trainable)
    return trainable


def _freeze(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def _log(model: nn.Module, trainable: dict[str, int]) -> None:
    for part in PARTS:
        total = sum(p.numel() for name, p in model.named_parameters() if part_of(name) == part)
        learning = sum(count for name, count in trainable.items() if part_of(name) == part)
        logger.info("%-16s %12s of %12s parameters train", part, f"{learning:,}", f"{total:,}")
