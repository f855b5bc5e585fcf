"""Which parts of the model learn: said in the configuration, logged, and checked."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import nn

from modeling_vggt_qwen3.modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration

from .memory import numel

logger = logging.getLogger(__name__)

PARTS = {
    "vision": "model.vision_model.",
    "resampler": "model.resampler.",
    "geometry_tokens": "model.geometry_tokens.",
    "text": "model.language_model.",
}
ADAPTED_PREFIX = "base_model.model."
"""Before the names of a model with adapters."""


def part_of(parameter_name: str) -> str:
    """Name of the part that a parameter belongs to, with adapters or without; a language head counts as text."""
    parameter_name = parameter_name.removeprefix(ADAPTED_PREFIX)
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
    trainable = {name: numel(p) for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError(f"nothing is left to train: trainable_parts = {list(parts)}")
    return trainable


def _freeze(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def log_trainable(model: nn.Module) -> None:
    """Says of each part how much of it trains; what adapters replace is not counted twice."""
    named = [(name, p) for name, p in model.named_parameters() if ".original_module." not in name]
    for part in PARTS:
        sizes = [(numel(p), p.requires_grad) for name, p in named if part_of(name) == part]
        learning = sum(count for count, trains in sizes if trains)
        logger.info(
            "%-16s %12s of %12s parameters train", part, f"{learning:,}", f"{sum(count for count, _ in sizes):,}"
        )
