"""Answers during training: a fixed subset is answered by generation and scored by the metric modules."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object

from datasets_scripts.schema import ACTION_TASKS
from metrics.room_actions.scoring import score_actions
from metrics.scene_qa.protocols import PROTOCOLS
from metrics.scene_qa.scoring import score_answers
from processing.action_vggt_qwen3 import action_from_targets
from processing.geometry_vggt_qwen3 import ref_from_world
from processing.processing_vggt_qwen3 import VggtQwen3Processor

from .collator import SceneCollator
from .data import SceneDataset, SceneExample, deal, fixed_batches

ACTION_FIGURES = ("schema_validity", "label_accuracy", "iou_over_0.25")
Answered = tuple[str, str, str, Any]
"""sample id, task, text, what was wanted: answers, or an action in the frame of view 0."""


class AnswerCheck:
    """Answers the same samples each time, greedily.

    Args:
        dataset: evaluation data, of which samples spread evenly are kept.
        num_samples: how many.
        batch_size: samples answered at once, on each device.
        max_new_tokens: longest answer.
    """

    def __init__(
        self,
        dataset: SceneDataset,
        processor: VggtQwen3Processor,
        task_names: Sequence[str],
        num_samples: int,
        batch_size: int,
        max_new_tokens: int,
    ) -> None:
        self.dataset = copy.copy(dataset)
        self.dataset.thin(num_samples)
        self.processor, self.max_new_tokens = processor, max_new_tokens
        self.collator = SceneCollator(processor, task_names, with_answers=False)
        self.batches = fixed_batches(self.dataset, batch_size)

    def run(self, trainer: Any) -> dict[str, float]:
        """Scores of each task, in percent; every process must call it, and all get the same.

        Under ZeRO-3 no process may fall silent while another still generates: weights are gathered from all.
        """
        args = trainer.args
        zero3 = args.step_conditions()["zero_stage"] == 3
        answered: list[Answered] = []
        for draws in deal(self.batches, args.process_index, args.world_size):
            examples = [self.dataset[draw] for draw in draws]
            inputs = trainer._prepare_inputs(self.collator(examples))
            with torch.no_grad(), trainer.accelerator.autocast():
                tokens = trainer.model.eval().generate(
                    **inputs,
                    do_sample=False,
                    use_cache=True,
                    max_new_tokens=self.max_new_tokens,
                    eos_token_id=self.processor.end_of_turn_id,
                    pad_token_id=self.processor.tokenizer.pad_token_id,
                    synced_gpus=zero3 and args.world_size > 1,
                )
            texts = self.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            asked = [(sample, example) for example in examples for sample in example.samples]
            answered += [_answered(sample, example, text) for (sample, example), text in zip(asked, texts, strict=True)]
        return score({row[0]: row for row in gather_object(answered)}.values())


def score(answered: Any) -> dict[str, float]:
    """Exact match of questions, validity, labels and overlap of actions, in percent; `answered`: `Answered` rows."""
    by_task: dict[str, list[Answered]] = {}
    for row in sorted(answered, key=lambda row: row[0]):
        if row[3]:
            by_task.setdefault(row[1], []).append(row)
    figures = {}
    for task, rows in by_task.items():
        texts, wanted = [row[2] for row in rows], [row[3] for row in rows]
        if task in ACTION_TASKS:
            scores = score_actions(texts, wanted, num_resamples=0)["all"]["scores"]
            figures |= {f"eval_{task}_{name}": scores[name] for name in ACTION_FIGURES if scores.get(name) is not None}
        else:
            protocol = next(iter(PROTOCOLS[task]))
            result = score_answers(texts, wanted, task=task, protocols=[protocol], captions=False, num_resamples=0)
            figures[f"eval_{task}_EM@1"] = result["protocols"][protocol]["all"]["scores"]["EM@1"]
    return figures


def _answered(sample: dict[str, Any], example: SceneExample, text: str) -> Answered:
    wanted: Any = list(sample["answers"])
    if sample["task"] in ACTION_TASKS:
        known = sample["targets"] and example.world_from_cam is not None
        frame = ref_from_world(example.world_from_cam[0]) if known else None
        wanted = action_from_targets(sample["action"], sample["targets"], frame) if known else None
    return sample["sample_id"], sample["task"], text.strip(), wanted
