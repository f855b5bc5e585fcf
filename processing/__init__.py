"""Rows of a dataset, or photographs and a question, to tensors; generated text back to actions."""

from .action_vggt_qwen3 import (
    ACTION_SCHEMA,
    ActionError,
    action_anchors,
    action_box,
    action_from_targets,
    action_to_world,
    check_action,
    format_action,
    parse_action,
)
from .constraint_vggt_qwen3 import ActionConstraint, action_grammar
from .geometry_vggt_qwen3 import (
    depth_histogram,
    invert_rigid,
    patch_points,
    ref_from_world,
    resize_intrinsics,
    transform_points,
    validate_intrinsics,
    validate_world_from_cam,
)
from .image_processing_vggt_qwen3 import VggtQwen3ImageProcessor
from .processing_vggt_qwen3 import VggtQwen3BatchFeature, VggtQwen3Processor

__all__ = [
    "ACTION_SCHEMA",
    "ActionConstraint",
    "ActionError",
    "VggtQwen3BatchFeature",
    "VggtQwen3ImageProcessor",
    "VggtQwen3Processor",
    "action_anchors",
    "action_box",
    "action_from_targets",
    "action_grammar",
    "action_to_world",
    "check_action",
    "depth_histogram",
    "format_action",
    "invert_rigid",
    "parse_action",
    "patch_points",
    "ref_from_world",
    "resize_intrinsics",
    "transform_points",
    "validate_intrinsics",
    "validate_world_from_cam",
]
