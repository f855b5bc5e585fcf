"""What a run says at its start: memory, size of a step, room for checkpoints, and how long all of it will take."""

from __future__ import annotations

import datetime
import logging
import os
import shutil
import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .memory import Memory, StateBytes, in_words, numel, probe, state_bytes

logger = logging.getLogger("train")

WARM_UP_STEPS, MEASURED_STEPS = 3, 10
"""Steps left out because memory and kernels settle in them, and steps measured then."""


class Outlook(TrainerCallback):
    """Says before the first step what the run needs, and after some steps how fast it is.

    Args:
        num_checkpoints_kept: None = all.
    """

    def __init__(self, num_checkpoints_kept: int | None) -> None:
        self.num_checkpoints_kept = num_checkpoints_kept
        self._first_step = 0
        self._since: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Prints memory and sizes."""
        self._first_step, self._since = state.global_step, None
        if not state.is_world_process_zero:
            return
        conditions = args.step_conditions()
        half = bool(args.bf16 or args.fp16)
        states = state_bytes(model.parameters(), conditions["zero_stage"], args.world_size, half)
        for line in _sizes(args, state, probe(args.device), states):
            logger.info("%s", line)
        parts = args.world_size if conditions["zero_stage"] else 1
        checkpoint = sum(numel(p) * p.element_size() for p in model.parameters()) + states.optimizer * parts
        warning = room_for_checkpoints(args.output_dir, checkpoint, self.num_checkpoints_kept)
        if warning and args.save_strategy != "no":
            logger.warning("%s", warning)

    def exclude(self, seconds: float) -> None:
        """Leaves the time of an evaluation or a checkpoint out of the measure."""
        if self._since is not None:
            self._since += seconds

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measures some steps and prints the estimate."""
        done = state.global_step - self._first_step
        measured = min(MEASURED_STEPS, state.max_steps - self._first_step - WARM_UP_STEPS)
        if measured < 1 or done not in (WARM_UP_STEPS, WARM_UP_STEPS + measured):
            return
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        if done == WARM_UP_STEPS:
            self._since = time.monotonic()
        elif self._since is not None and state.is_world_process_zero:
            logger.info("%s", _estimate(args, state, (time.monotonic() - self._since) / measured))
            self._since = None


def room_for_checkpoints(folder: str, checkpoint_bytes: int, num_kept: int | None) -> str:
    """A warning where the disk cannot hold the checkpoints that are kept and the one in the making; else empty."""
    wanted = checkpoint_bytes * ((num_kept or 1) + 1)
    free = shutil.disk_usage(folder).free
    if free >= wanted:
        return ""
    return (
        f"{folder} has {in_words(free)} free, its checkpoints may take {in_words(wanted)} "
        f"({in_words(checkpoint_bytes)} each): lower save_total_limit, or choose another --output_dir"
    )


def _sizes(args: TrainingArguments, state: TrainerState, memory: Memory, states: StateBytes) -> list[str]:
    return [
        f"memory: {memory.device}, {in_words(memory.device_free)} of {in_words(memory.device_total)} free; "
        f"host, {in_words(memory.host_free)} of {in_words(memory.host_total)} free; {os.cpu_count()} cores",
        f"a device holds {in_words(states.weights)} of weights, {in_words(states.gradients)} of gradients, "
        f"{in_words(states.optimizer)} of the optimizer: {in_words(states.total)}; activations come on top",
        f"a step takes {args.step_conditions()['samples_per_step']} samples: {args.per_device_train_batch_size} a "
        f"batch, {args.gradient_accumulation_steps} accumulated, on {args.world_size} process(es); "
        f"{state.max_steps - state.global_step:,} steps to go of {state.max_steps:,}",
    ]


def _estimate(args: TrainingArguments, state: TrainerState, seconds_per_step: float) -> str:
    left = (state.max_steps - state.global_step) * seconds_per_step
    end = datetime.datetime.now() + datetime.timedelta(seconds=left)
    rate = args.step_conditions()["samples_per_step"] / seconds_per_step
    peak = ""
    if args.device.type == "cuda":
        peak = f", peak memory {in_words(torch.cuda.max_memory_allocated(args.device))}"
    return (
        f"measured: {seconds_per_step:.3f} s a step, up to {rate:.1f} samples/s{peak}; without evaluations and "
        f"checkpoints {datetime.timedelta(seconds=round(left))} to go, until {end:%Y-%m-%d %H:%M}"
    )
