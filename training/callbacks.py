"""What a run says while it goes: a line a log for people, and the same in a file for `training.monitor`."""

from __future__ import annotations

import datetime
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .monitor import LOG_NAME

PART = "loss_"
"""What the names of the parts of a loss begin with in the log."""

logger = logging.getLogger("train")


class ProgressLines(TrainerCallback):
    """`step 40/400 · loss 1.234 · lr 9.1e-04 · 312 samples/s · 0:03:12 left`."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Prints the first process's logs."""
        if state.is_world_process_zero and logs:
            logger.info("%s", progress_line(state.global_step, state.max_steps, logs))


class RunLog(TrainerCallback):
    """Appends what happens to `log.jsonl` of the run's folder, one object a line, each with time and step."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Says which process works on the run."""
        world = {"processes": args.world_size, "samples_per_step": args.step_conditions()["samples_per_step"]}
        self._write(args, state, "begin", pid=os.getpid(), host=socket.gethostname(), **world)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Takes down losses and evaluations alike."""
        memory = {}
        if args.device.type == "cuda":
            memory = {"peak_memory_gb": round(torch.cuda.max_memory_allocated(args.device) / 1e9, 2)}
        self._write(args, state, "log", **(logs or {}), **memory)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Takes down a complete checkpoint."""
        self._write(args, state, "save", checkpoint=f"checkpoint-{state.global_step}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Says whether the last step was reached."""
        self._write(args, state, "end" if state.global_step >= state.max_steps else "stopped")

    @staticmethod
    def _write(args: TrainingArguments, state: TrainerState, event: str, **values: Any) -> None:
        if not state.is_world_process_zero:
            return
        line = {"event": event, "time": round(time.time(), 1), "step": state.global_step, "max_steps": state.max_steps}
        path = Path(args.output_dir) / LOG_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, **values}) + "\n")


def mean_parts(steps: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """The parts of the loss by name, each a mean over these steps, under the names that the log shows."""
    return {f"{PART}{name}": round(float(torch.stack([step[name] for step in steps]).mean()), 4) for name in steps[0]}


def progress_line(step: int, max_steps: int, logs: dict[str, Any]) -> str:
    """One line of the numbers that matter; final summaries and evaluations are shown key by key."""
    parts = [f"step {step:>{len(str(max_steps))}}/{max_steps}"]
    if "loss" not in logs:
        parts += [
            f"{key} {value:.4g}" for key, value in logs.items() if isinstance(value, float | int) and key != "epoch"
        ]
        return " · ".join(parts)
    parts += [f"loss {logs['loss']:.3f}"]
    parts += [f"{key.removeprefix(PART)} {value:.3f}" for key, value in logs.items() if key.startswith(PART)]
    parts += [f"lr {logs.get('learning_rate', 0.0):.1e}"]
    parts += [f"{logs['samples_per_second']:g} samples/s", f"{datetime.timedelta(seconds=logs['eta_s'])} left"]
    return " · ".join(parts)
