"""Packed rows of prepared questions, made for a whole batch at once: a loop over samples holds up small models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .collator import random_stream
from .data import Draw
from .packing import FILL, IGNORE_INDEX


@dataclass(frozen=True)
class PackedRow:
    """Samples [n] (their prepared rows) about one scene of a batch, behind one prefix of tokens."""

    scene: int
    prefix: np.ndarray
    samples: np.ndarray
    draw: Draw
    first_view: int


class PreparedTexts:
    """Questions and answers of M prepared samples as flat tokens.

    Args:
        text: tail_tokens with tail_offsets [M + 1] (what stands behind the placeholders: `<|vision_end|>`, the
            question, the assistant's beginning), answer_tokens with answer_offsets, and first_answer [M + 1]; of an
            action there is one text for each view, or the anchor's alone.
        tasks: int64 [M], ids of the model's tasks.
        is_action: bool [M].
        any_answer: draw one of several accepted answers; else the first.
    """

    def __init__(self, text: dict[str, np.ndarray], tasks: np.ndarray, is_action: np.ndarray, any_answer: bool) -> None:
        self.text, self.tasks, self.is_action, self.any_answer = text, tasks, is_action, any_answer

    def pack(self, rows: Sequence[PackedRow], pad_token_id: int, multiple: int) -> dict[str, torch.Tensor]:
        """`[prefix][q1 a1][q2 a2]…` of every row (see packing.py), padded to a multiple of so many tokens.

        Returns:
            input_ids, attention_mask, labels, task_ids, position_ids, segment_ids int64 [rows, length], and scene_index
            [rows].
        """
        samples = np.concatenate([row.samples for row in rows])
        row_of = np.repeat(np.arange(len(rows)), [len(row.samples) for row in rows])
        tokens, is_answer, lengths = self._tokens(samples, np.concatenate([self._answers(row) for row in rows]))
        before = np.cumsum(lengths) - lengths  # tokens of all samples before this one
        sample = np.repeat(np.arange(len(samples)), lengths)  # of each token, as all that follows
        within = np.arange(len(sample)) - before[sample]
        first_of_row = np.searchsorted(row_of, np.arange(len(rows)))
        prefixes = np.array([len(row.prefix) for row in rows])
        starts = prefixes[row_of] + before - before[first_of_row][row_of]
        width = -(-int((starts + lengths).max()) // multiple) * multiple
        values = {
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "labels": np.where(is_answer, tokens, IGNORE_INDEX),
            "task_ids": self.tasks[samples][sample],
            "position_ids": prefixes[row_of][sample] + within,  # a segment's positions go on behind the prefix
            "segment_ids": (np.arange(len(samples)) - first_of_row[row_of] + 1)[sample],
        }
        place = row_of[sample] * width + starts[sample] + within
        batch = {}
        for key, flat in values.items():
            fill = pad_token_id if key == "input_ids" else FILL.get(key, 0)
            batch[key] = np.full((len(rows), width), fill, np.int64)
            batch[key].flat[place] = flat
        for index, row in enumerate(rows):
            self._write_prefix(batch, index, row)
        batch["scene_index"] = np.array([row.scene for row in rows])
        return {key: torch.from_numpy(array) for key, array in batch.items()}

    def _tokens(self, samples: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Question and answer of all samples, one after another [tokens]; which are answers; each sample's length."""
        questions = self.text["tail_offsets"][samples] + 1  # <|vision_end|> ends the prefix
        num_question = self.text["tail_offsets"][samples + 1] - questions
        first_answer = self.text["answer_offsets"][answers]
        num_answer = self.text["answer_offsets"][answers + 1] - first_answer
        lengths = np.stack((num_question, num_answer), axis=1)
        is_answer = np.repeat(np.tile([False, True], len(samples)), lengths.ravel())
        tokens = np.empty(len(is_answer), np.int64)
        tokens[~is_answer] = self.text["tail_tokens"][_ranges(questions, num_question)]
        tokens[is_answer] = self.text["answer_tokens"][_ranges(first_answer, num_answer)]
        return tokens, is_answer, lengths.sum(axis=1)

    def _write_prefix(self, batch: dict[str, np.ndarray], index: int, row: PackedRow) -> None:
        span = (index, slice(len(row.prefix)))
        batch["input_ids"][span], batch["attention_mask"][span] = row.prefix, 1
        batch["task_ids"][span] = self.tasks[row.samples[0]]
        batch["position_ids"][span], batch["segment_ids"][span] = np.arange(len(row.prefix)), 0

    def _answers(self, row: PackedRow) -> np.ndarray:
        """Which of all answers each sample of a row is to give."""
        first = self.text["first_answer"][row.samples]
        counts = self.text["first_answer"][row.samples + 1] - first
        several, is_action = counts > 1, self.is_action[row.samples]
        chosen = np.where(several & is_action, row.first_view, 0)
        if row.draw.seed is not None and self.any_answer:
            for count in np.unique(counts[several & ~is_action]).tolist():  # a draw has one lot for each number
                lot = int(random_stream(row.draw, "answer").integers(count))
                chosen[(counts == count) & ~is_action] = lot
        return first + chosen


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`starts[0], starts[0] + 1, …` of all ranges, one after another."""
    return np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
