"""The model: VGGT encoder, Perceiver resampler, geometry tokens and Qwen3."""

from .configuration_vggt_qwen3 import PerceiverConfig, VggtConfig, VggtQwen3Config
from .modeling_vggt import VggtModel
from .modeling_vggt_heads import VggtForReconstruction
from .modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration, VggtQwen3Model

__all__ = [
    "PerceiverConfig",
    "VggtConfig",
    "VggtForReconstruction",
    "VggtModel",
    "VggtQwen3Config",
    "VggtQwen3ForConditionalGeneration",
    "VggtQwen3Model",
]
