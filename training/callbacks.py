"""What a run says while it goes: one line a log, readable in a terminal and in a log file alike."""

from __future__ import annotations

import datetime
import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

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


def progress_line(step: int, max_steps: int, logs: dict[str, Any]) -> str:
    """One line of the numbers that matter; final summaries and evaluations are shown key by key."""
    parts = [f"step {step:>{len(str(max_steps))}}/{max_steps}"]
    if "loss" not in logs:
        parts += [
            f"{key} {value:.4g}" for key, value in logs.items() if isinstance(value, float | int) and key != "epoch"
        ]
        return " · ".join(parts)
    parts += [f"loss {logs['loss']:.3f}", f"lr {logs.get('learning_rate', 0.0):.1e}"]
    parts += [f"{logs['samples_per_second']:g} samples/s", f"{datetime.timedelta(seconds=logs['eta_s'])} left"]
    return " · ".join(parts)
