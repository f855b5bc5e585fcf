"""One question about a folder of photographs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from PIL import Image, ImageOps

from datasets_scripts.photos import PhotoScene, read_photos
from datasets_scripts.show import contact_sheet
from processing.action_vggt_qwen3 import action_box
from processing.processing_vggt_qwen3 import METRES_UNKNOWN

from .checkpoint import Checkpoint, load_checkpoint
from .drawing import anchors_of
from .predict import Generation, generate


@dataclass(frozen=True)
class QuestionSettings:
    """What is asked of which photographs; see `read_photos` for images, cameras, gravity and scale.

    `picture`: image file to draw the photographs and the reply into; with cameras also a plan, and the boxes placed.
    """

    model: str
    images: str | tuple[str, ...]
    question: str
    situation: str | None = None
    action: bool = False
    cameras: str | None = None
    gravity: tuple[float, float, float] | None = None
    scale: float | None = None
    picture: Path | None = None
    num_views: int = 8
    dtype: str = "auto"
    attn_implementation: str = "sdpa"
    generation: Generation = field(default_factory=Generation)

    @property
    def task(self) -> str:
        """The task whose prompt is used: the wording is the same for all sources of data."""
        return "actions" if self.action else "sqa3d" if self.situation else "scanqa"


@dataclass(frozen=True)
class Reply:
    """The model's text, empty where it was not asked. `action`: in metres, Z up, or None and `error`."""

    text: str
    truncated: bool
    action: dict[str, Any] | None = None
    error: str | None = None
    scene: PhotoScene | None = None


def ask(settings: QuestionSettings) -> Reply:
    """Reads the photographs, loads the model and asks.

    Raises:
        FileNotFoundError, ValueError: photographs, cameras, checkpoint or question that cannot be used, by name.
    """
    scene = read_photos(
        settings.images,
        cameras=settings.cameras,
        gravity=settings.gravity,
        scale=settings.scale,
        num_views=settings.num_views,
    )
    checkpoint = load_checkpoint(settings.model, settings.attn_implementation, settings.dtype)
    checkpoint.model.to(PartialState().device)
    return answer(checkpoint, scene, settings)


def answer(checkpoint: Checkpoint, scene: PhotoScene, settings: QuestionSettings) -> Reply:
    """Asks a loaded model; for an action only where metres are known, since it would invent them otherwise."""
    if settings.action and scene.world_from_cam is None:
        return Reply("", False, None, METRES_UNKNOWN, scene)
    processor = checkpoint.processor
    messages = processor.conversation(
        settings.question, situation=settings.situation, num_views=len(scene.images), task=settings.task
    )
    inputs = processor(
        images=[scene.images],
        text=[processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)],
        intrinsics=None if scene.intrinsics is None else [scene.intrinsics],
        world_from_cam=None if scene.world_from_cam is None else [scene.world_from_cam],
        depth=None if scene.depth is None else [scene.depth],
    )
    (text,), (truncated,) = generate(checkpoint, dict(inputs), settings.generation, settings.task)
    if not settings.action:
        return Reply(text, truncated, scene=scene)
    (decoded,) = processor.decode_actions([text], inputs["world_from_ref"])
    return Reply(text, truncated, decoded["action"], decoded["error"], scene)


def print_reply(reply: Reply, settings: QuestionSettings) -> None:
    """Prints the answer, or the action as JSON; on standard error what there is to know about it."""
    notes = list(reply.scene.notes)
    if reply.truncated:
        notes.append("the token limit stopped the answer")
    if not settings.action:
        print(reply.text)
    elif reply.action is None:
        print(json.dumps({"action": None, "error": reply.error, "text": reply.text}, ensure_ascii=False))
    else:
        print(json.dumps(reply.action, ensure_ascii=False))
        notes.append("metres, in the frame of the cameras turned so that Z points up")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def draw_reply(reply: Reply, settings: QuestionSettings) -> Image.Image:
    """The photographs with the boxes of the reply's action, the plan from above, the question and the reply."""
    scene, anchors = reply.scene, anchors_of(reply.action)
    upright = [ImageOps.exif_transpose(image) for image in scene.images]  # as the processor shows them to the model
    row = {"frame_ids": scene.frame_ids, "images": upright, "depth": None}
    row |= {"intrinsics": scene.intrinsics, "world_from_cam": scene.world_from_cam}
    if scene.depth is not None:
        row["depth"] = [np.zeros((1, 1)) if depth is None else depth * 1000 for depth in scene.depth]
    lines = [_in_words(anchor) for anchor in anchors] or [reply.error or reply.text]
    sample = {"question": settings.question, "situation": settings.situation, "action": reply.action}
    sample |= {"answers": ["; ".join(lines)], "targets": [_target(anchor) for anchor in anchors]}
    return contact_sheet(row, [sample])


def _target(anchor: Mapping[str, Any]) -> dict[str, Any]:
    center, size, axes = action_box(anchor)
    return {"label": anchor["label"], "kind": "object", "center": center, "size": size, "axes": axes}


def _in_words(anchor: Mapping[str, Any]) -> str:
    place, size = (" ".join(f"{metres:.2f}" for metres in anchor[key]) for key in ("center", "extent"))
    return f"{anchor['label']} at ({place}), size ({size}) m"
