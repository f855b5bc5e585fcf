"""Which checkpoints count: a folder is complete once its marker stands in it, and the marker is written last."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

MARKER = "checkpoint_complete"
CHECKPOINT_NAME = re.compile(r"^checkpoint-(\d+)$")


def mark_complete(checkpoint: Path) -> None:
    """Declares a checkpoint whole."""
    (checkpoint / MARKER).touch()


def remove_checkpoint(checkpoint: Path) -> None:
    """Deletes a checkpoint, its marker first: an interrupted deletion leaves nothing that looks whole."""
    (checkpoint / MARKER).unlink()
    shutil.rmtree(checkpoint)


def complete_checkpoints(run: str | Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    steps = {
        int(match.group(1)): path
        for path in Path(run).glob("checkpoint-*")
        if (match := CHECKPOINT_NAME.match(path.name)) and (path / MARKER).is_file()
    }
    return [steps[step] for step in sorted(steps)]


def find_checkpoint(run: str | Path, wanted: str | None) -> Path | None:
    """The checkpoint to resume from: a folder, or `latest` for the newest complete one, if there is one.

    Raises:
        ValueError: for a folder that is no complete checkpoint; names those that are.
    """
    if wanted is None:
        return None
    complete = complete_checkpoints(run)
    if wanted == "latest":
        return complete[-1] if complete else None
    path = Path(wanted)
    if not (path / MARKER).is_file():
        raise ValueError(
            f"{wanted} is not a complete checkpoint: {MARKER} is missing, so its writing was cut off or never began. "
            f"Complete ones in {run}: {[p.name for p in complete] or 'none'}"
        )
    return path
