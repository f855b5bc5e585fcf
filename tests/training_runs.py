"""Command lines of small runs, and what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY
from training.launch import _free_port as free_port

__all__ = ["TORCHRUN", "free_port", "losses", "run", "settings"]

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
"""As `torchrun`, of which an environment on top of another has none of its own."""


def settings(small_json: str, rooms: Path, output: Path, **options: object) -> list[str]:
    """A command line of a run of few, small steps."""
    values = {
        "model": small_json,
        "dataset": rooms,
        "output_dir": output,
        "num_views": 2,
        "samples_per_scene": 4,
        "per_device_train_batch_size": 8,
        "max_steps": 6,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        **options,
    }
    words = []
    for key, value in values.items():
        words += [f"--{key}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return words


def run(command: list[str], cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=300)


def losses(output: Path) -> list[float]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]
