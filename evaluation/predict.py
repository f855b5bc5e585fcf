"""The prediction loop: batches fixed before they are dealt out, rows appended in order, continued after a kill."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets_scripts.schema import ACTION_TASKS
from processing.constraint_vggt_qwen3 import ActionConstraint
from training.collator import SceneCollator
from training.data import Draw, SceneDataset, SceneExample, fixed_batches, num_samples

from .checkpoint import Checkpoint
from .conditions import Condition, Shown, ShownScenes
from .files import RowFile
from .rows import Row, predicted_row

QUESTION_TOKENS, ACTION_TOKENS = 64, 1280


@dataclass(frozen=True)
class Generation:
    """How answers are made: greedy, unless `num_beams` is above 1; actions can be all that action tasks may answer."""

    batch_size: int = 16
    num_beams: int = 1
    constrain_actions: bool = True
    max_new_tokens: int | None = None
    num_workers: int = 0

    def token_limit(self, task: str, free: int | None = None) -> int:
        """Most tokens of an answer; twelve anchors need about a thousand.

        free: positions that the prompt leaves to the text model, of which a limit that nobody chose takes no more.
        """
        if self.max_new_tokens:
            return self.max_new_tokens
        limit = ACTION_TOKENS if task in ACTION_TASKS else QUESTION_TOKENS
        return limit if free is None else max(1, min(limit, free))


@dataclass
class Predictor:
    """Answers every sample of datasets of one task each, under a condition.

    Args:
        checkpoint: the model, on its device already.
        datasets: task -> its samples; their order is the order of the rows.
        generation: batches and decoding.
    """

    checkpoint: Checkpoint
    datasets: dict[str, SceneDataset]
    generation: Generation
    state: PartialState = field(default_factory=PartialState)

    def run(self, condition: Condition, path: Path) -> None:
        """Appends the missing rows to `path`; every process must call it."""
        ids = [dataset.sample(i)["sample_id"] for dataset in self.datasets.values() for i in range(len(dataset))]
        file = RowFile(path, ids) if self.state.is_main_process else None
        (done,) = broadcast_object_list([file.num_rows if file else 0])
        progress = tqdm(
            total=len(ids), initial=done, desc=condition.name, unit=" samples", disable=not self.state.is_main_process
        )
        start = 0
        with progress:
            for task, dataset in self.datasets.items():
                for rows in self._task_rows(task, dataset, condition, skip=max(0, done - start)):
                    if file is not None:
                        file.append(rows)
                    progress.update(len(rows))
                start += len(dataset)

    def _task_rows(self, task: str, dataset: SceneDataset, condition: Condition, skip: int) -> Iterator[list[Row]]:
        """Rows of one round after another, on the main process in order; the first `skip` are done already."""
        batches = fixed_batches(dataset, self.generation.batch_size)
        ends = list(itertools.accumulate(num_samples(batch) for batch in batches))
        first = next((index for index, end in enumerate(ends) if end > skip), len(batches))
        skip -= ends[first - 1] if first else 0
        remaining = batches[first:]
        mine = remaining[self.state.process_index :: self.state.num_processes]
        answered = self._answer(task, dataset, condition, mine)
        for _ in range(0, len(remaining), self.state.num_processes):
            rows = gather_object(next(answered, []))
            yield rows[skip:]
            skip = 0

    def _answer(
        self, task: str, dataset: SceneDataset, condition: Condition, batches: list[list[Draw]]
    ) -> Iterator[list[Row]]:
        collator = SceneCollator(
            self.checkpoint.processor,
            self.checkpoint.model.config.task_names,
            with_answers=False,
            blind=condition.blind,
        )
        loader = DataLoader(
            ShownScenes(dataset, condition),
            batch_sampler=batches,
            collate_fn=partial(_collated, collator),
            num_workers=self.generation.num_workers,
        )
        for shown, inputs in loader:
            texts, truncated = generate(self.checkpoint, inputs, self.generation, task)
            yield _rows(shown, texts, truncated, condition)


def _collated(collator: SceneCollator, shown: list[Shown]) -> tuple[list[Shown], dict[str, Any]]:
    """The scenes and the batch made of them, in a worker where there is one; pixels are not handed on twice."""
    inputs = collator([each.seen for each in shown])
    return [Shown(_without_pixels(each.truth), _without_pixels(each.seen)) for each in shown], inputs


def _without_pixels(example: SceneExample) -> SceneExample:
    return replace(example, images=[], depth=None if example.depth is None else [])


@torch.inference_mode()
def generate(
    checkpoint: Checkpoint, inputs: dict[str, Any], generation: Generation, task: str
) -> tuple[list[str], list[bool]]:
    """Texts of a batch without special tokens, and whether the token limit stopped each, or a list of it."""
    model, tokenizer = checkpoint.model, checkpoint.processor.tokenizer
    free = model.config.text_config.max_position_embeddings - inputs["input_ids"].shape[1]
    limit = generation.token_limit(task, free)
    constraint = action_constraint(checkpoint, generation, limit) if task in ACTION_TASKS else None
    fast = generation.num_beams == 1
    text = {key: inputs[key].to(model.device) for key in ("input_ids", "attention_mask")}
    if "pixel_values" in inputs:  # the prompt up to the end of the images is taken in once for all questions of a scene
        text |= {"scene": model.encode_scene(**inputs, fast=fast), "scene_index": inputs["scene_index"]}
    output = model.generate(
        **text,
        do_sample=False,
        num_beams=generation.num_beams,
        max_new_tokens=limit,
        eos_token_id=checkpoint.processor.end_of_turn_id,
        pad_token_id=tokenizer.pad_token_id,
        constraint=constraint,
        fast=fast,
    )
    answers = output[:, inputs["input_ids"].shape[1] :]
    cut_off = (~(answers == checkpoint.processor.end_of_turn_id).any(dim=1)).tolist()
    if constraint is not None:
        beams = [range(row * generation.num_beams, (row + 1) * generation.num_beams) for row in range(len(answers))]
        cut_off = [cut or any(map(constraint.is_shortened, rows)) for cut, rows in zip(cut_off, beams)]
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    return [text.strip() for text in texts], cut_off


def action_constraint(checkpoint: Checkpoint, generation: Generation, limit: int) -> ActionConstraint | None:
    """What keeps the answers to action tasks actions of at most `limit` tokens, if they are to be kept so.

    Raises:
        ValueError: llguidance is not installed, with both ways out.
    """
    if not generation.constrain_actions:
        return None
    try:
        return checkpoint.processor.action_constraint(max_new_tokens=limit)
    except ImportError as error:
        raise ValueError(f"{error}; or take what the model writes freely: --no-constrain-actions") from error


def _rows(shown: Sequence[Shown], texts: Sequence[str], truncated: Sequence[bool], condition: Condition) -> list[Row]:
    asked = [(sample, each) for each in shown for sample in each.truth.samples]
    return [
        predicted_row(sample, text, each, condition, truncated=cut)
        for (sample, each), text, cut in zip(asked, texts, truncated, strict=True)
    ]
