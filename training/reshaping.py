"""Resuming a DeepSpeed run on another number of processes, by the library's universal checkpoints.

Source: Lian et al., "Universal Checkpointing", USENIX ATC 2025; DeepSpeed's `ds_to_universal`.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from .checkpoints import CheckpointError, read_marker

LATEST = "latest_universal"
"""File of a checkpoint that tells DeepSpeed the folder of its whole states."""

logger = logging.getLogger("train")


def other_world(checkpoint: Path, now: dict[str, Any]) -> bool:
    """Whether DeepSpeed's states are in another number of parts than this run has processes; `now` as in `seal`."""
    then = {**now, **read_marker(checkpoint)}
    return bool(now["zero_stage"]) and then["world_size"] != now["world_size"]


def join_states(checkpoint: Path) -> None:
    """Writes the optimizer's states beside their parts as whole tensors, of which each process takes its share.

    They are float32, three for each parameter that trains. What is there already is taken as it is, and several nodes
    may write at once: the first folder to be whole gets the name.

    Raises:
        CheckpointError: where DeepSpeed's converter fails, with its last words.
    """
    if (checkpoint / LATEST).is_file():
        return
    parts = checkpoint / (checkpoint / "latest").read_text(encoding="utf-8").strip()
    whole = checkpoint / f"{parts.name}_universal"
    part = checkpoint / f".universal-{socket.gethostname()}-{os.getpid()}.part"
    logger.info("%s: the optimizer's states are put together for another number of processes", checkpoint)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(parts), "--output_folder", str(part)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            lines = result.stderr.strip().splitlines() or ["no message"]
            raise CheckpointError(
                f"the optimizer's states of {checkpoint} could not be put together ({lines[-1]}). Resume on "
                f"{read_marker(checkpoint)['world_size']} processes, or begin a new run from its weights alone by "
                f"--model {checkpoint} with another --output_dir"
            )
        _take_name(part, whole)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    latest = part.with_suffix(".latest")
    latest.write_text(whole.name, encoding="utf-8")
    latest.replace(checkpoint / LATEST)


def _take_name(part: Path, whole: Path) -> None:
    """Renames a folder, unless another node was first."""
    try:
        part.rename(whole)
    except OSError:
        if not whole.is_dir():
            raise
