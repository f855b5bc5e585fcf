"""Which checkpoints count: a folder is complete once its marker stands in it, and the marker is written last."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path

MARKER = "checkpoint_complete"
CHECKPOINT_NAME = re.compile(r"^checkpoint-(\d+)$")


def mark_complete(checkpoint: Path) -> None:
    """Declares a checkpoint whole."""
    (checkpoint / MARKER).touch()


def unmark(checkpoint: Path) -> None:
    """Before a checkpoint is written over: until its marker is back it does not count."""
    (checkpoint / MARKER).unlink(missing_ok=True)


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


def set_aside(run: str | Path) -> Path | None:
    """Renames the folder of an earlier run before a new one begins in its place: their checkpoints must not mix.

    Returns:
        Where it is now, or None where there was none.
    """
    run = Path(run)
    if not any(run.glob("checkpoint-*")):
        return None
    number = next(n for n in itertools.count(1) if not run.with_name(f"{run.name}.{n}").exists())
    return run.rename(run.with_name(f"{run.name}.{number}"))


def drop_later(run: str | Path, checkpoint: Path) -> None:
    """Deletes the run's checkpoints of later steps than the one that it resumes from: they belong to another future."""
    complete = complete_checkpoints(run)
    if checkpoint in complete:
        for later in complete[complete.index(checkpoint) + 1 :]:
            remove_checkpoint(later)
