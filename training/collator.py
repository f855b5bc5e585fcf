"""Drawn scenes and their samples -> one batch of the model (the batch table stands in the processor's module)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from datasets_scripts.schema import ACTION_TASKS
from processing.action_vggt_qwen3 import action_from_targets, format_action
from processing.geometry_vggt_qwen3 import ref_from_world
from processing.processing_vggt_qwen3 import VggtQwen3Processor

from .data import Draw, SceneExample
from .feature_cache import DEPTH_KEYS, stack_views
from .packing import pack_batch

VISION_END = "<|vision_end|>"


class SceneCollator:
    """Turns `SceneExample`s into tensors.

    Args:
        processor: of the model that is fed.
        task_names: the model's tasks in the order of their ids (`config.task_names`).
        with_answers: append the answers and make labels (training); False = prompts alone, padded left (generation).
        geometry_dropout: chance that a drawn scene hides its cameras and depth.
        depth_dropout: chance that it hides its depth alone.
        view_dropout: chance that a view is left out, with its geometry token; view 0 stays, as does a cached set.
        blind: leave the images out: the control that shows what the questions give away.
        any_answer: learn any of the accepted answers, drawn by the seed; False = the first.
        pack: join the questions about a scene into one row (see packing.py).
    """

    def __init__(
        self,
        processor: VggtQwen3Processor,
        task_names: Sequence[str],
        *,
        with_answers: bool = True,
        geometry_dropout: float = 0.0,
        depth_dropout: float = 0.0,
        any_answer: bool = True,
        view_dropout: float = 0.0,
        blind: bool = False,
        pack: bool = False,
    ) -> None:
        chances = {"geometry_dropout": geometry_dropout, "depth_dropout": depth_dropout, "view_dropout": view_dropout}
        for name, value in chances.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; a chance lies between 0 and 1")
        if pack and (blind or not with_answers):
            raise ValueError("pack joins sighted rows with answers; leave it out for blind rows and for generation")
        self.processor, self.with_answers, self.blind, self.pack = processor, with_answers, blind, pack
        self.task_ids = {name: index for index, name in enumerate(task_names)}
        self.geometry_dropout, self.depth_dropout = geometry_dropout, depth_dropout
        self.view_dropout = view_dropout
        self.any_answer = any_answer

    def __call__(self, examples: Sequence[SceneExample]) -> dict[str, Any]:
        examples = [drop_views(example, self.view_dropout) for example in examples]
        samples = [sample for example in examples for sample in example.samples]
        scene_index = [index for index, example in enumerate(examples) for _ in example.samples]
        answers = [self.answer(sample, example) for example in examples for sample in example.samples]
        prompts = [
            self.prompt(sample, 0 if self.blind else len(example.frame_ids))
            for example in examples
            for sample in example.samples
        ]
        keeps = [drawn_inputs(example.draw, self.geometry_dropout, self.depth_dropout) for example in examples]
        batch = self.processor(
            text=prompts,
            answers=answers if self.with_answers else None,
            **({} if self.blind else {**_scene_inputs(examples, keeps), "scene_index": scene_index}),
        )
        if not self.blind and examples[0].views is not None:
            batch.update(_cached_inputs(examples, keeps, batch))
        if self.with_answers:
            ids = torch.tensor([self._task_id(sample) for sample in samples])
            batch["task_ids"] = ids.unsqueeze(1).expand_as(batch["input_ids"]).contiguous()
        if self.pack:
            tokenizer = self.processor.tokenizer
            return pack_batch(dict(batch), tokenizer.convert_tokens_to_ids(VISION_END), tokenizer.pad_token_id)
        return dict(batch)

    def prompt(self, sample: dict[str, Any], num_views: int) -> str:
        """The rendered conversation up to the answer."""
        messages = self.processor.conversation(
            sample["question"], situation=sample["situation"], num_views=num_views, task=sample["task"]
        )
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def answer(self, sample: dict[str, Any], example: SceneExample) -> str:
        """The text to learn: canonical action in the frame of view 0, or one of the answers, drawn by the seed.

        Raises:
            ValueError: for a sample without answer, or an action in a scene without cameras.
        """
        if not self.with_answers:
            return ""
        if sample["task"] in ACTION_TASKS:
            if example.world_from_cam is None:
                raise ValueError(
                    f"sample {sample['sample_id']} is an action, but scene {example.scene_id} has no metric, "
                    "gravity-aligned cameras to state its metres in; leave it out of the dataset"
                )
            frame = ref_from_world(example.world_from_cam[0])
            return format_action(action_from_targets(sample["action"], sample["targets"], frame))
        answers = sample["answers"]
        if not answers:
            raise ValueError(f"sample {sample['sample_id']} has no answer to learn; train on a labelled split")
        if example.draw.seed is None or not self.any_answer:
            return answers[0]
        return answers[int(random_stream(example.draw, "answer").integers(len(answers)))]

    def _task_id(self, sample: dict[str, Any]) -> int:
        if sample["task"] not in self.task_ids:
            raise ValueError(f"the model knows the tasks {sorted(self.task_ids)}, not {sample['task']}")
        return self.task_ids[sample["task"]]


def drop_views(example: SceneExample, chance: float) -> SceneExample:
    """The example with each view but the first left out by that chance; evaluation and cached views lose none."""
    if not chance or example.draw.seed is None or example.views is not None:
        return example
    lots = random_stream(example.draw, "views").random(len(example.frame_ids))
    kept = [view for view, lot in enumerate(lots) if view == 0 or lot >= chance]
    return replace(
        example,
        frame_ids=[example.frame_ids[view] for view in kept],
        images=[example.images[view] for view in kept],
        intrinsics=None if example.intrinsics is None else example.intrinsics[kept],
        world_from_cam=None if example.world_from_cam is None else example.world_from_cam[kept],
        depth=None if example.depth is None else [example.depth[view] for view in kept],
    )


def _scene_inputs(examples: Sequence[SceneExample], keeps: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    """What the processor takes of the scenes, where `keeps` says so with cameras, and with depth."""
    if examples[0].views is None:
        images = {"images": [example.images for example in examples]}
    else:
        images = {"num_views": [len(example.frame_ids) for example in examples]}
    return {
        **images,
        "intrinsics": [e.intrinsics if cameras else None for e, (cameras, _) in zip(examples, keeps)],
        "world_from_cam": [e.world_from_cam if cameras else None for e, (cameras, _) in zip(examples, keeps)],
        "depth": [e.depth if cameras and depth else None for e, (cameras, depth) in zip(examples, keeps)],
    }


def _cached_inputs(
    examples: Sequence[SceneExample], keeps: Sequence[tuple[bool, bool]], batch: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """Features, and what depth and padding say of the same views, where `keeps` shows the scene's depth."""
    cached = stack_views([example.views for example in examples])
    for key in DEPTH_KEYS:
        tensor = batch[key].clone()
        for row, example, (cameras, depth) in zip(tensor, examples, keeps):
            if cameras and depth and example.world_from_cam is not None:
                row[: len(example.frame_ids)] = example.views.arrays[key]
        cached[key] = tensor
    if "patch_mask" in examples[0].views.arrays:
        masks = [example.views.arrays["patch_mask"] for example in examples]
        cached["patch_mask"] = torch.nn.utils.rnn.pad_sequence(masks, batch_first=True)
    return cached


def drawn_inputs(draw: Draw, geometry_dropout: float, depth_dropout: float) -> tuple[bool, bool]:
    """Whether this draw shows its cameras, and its depth."""
    if draw.seed is None:
        return geometry_dropout < 1, depth_dropout < 1
    cameras, depth = random_stream(draw, "dropout").random(2)
    return bool(cameras >= geometry_dropout), bool(depth >= depth_dropout)


def random_stream(draw: Draw, purpose: str) -> np.random.Generator:
    """Its own stream for each purpose, a function of the draw alone: workers and resumed runs agree."""
    return np.random.default_rng([*draw.seed, *purpose.encode()])
