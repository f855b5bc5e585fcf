"""Which checkpoints count: written aside, sealed by a marker that lists every file, then renamed into their place."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

MARKER = "checkpoint_complete"
STAGING = ".incomplete"
"""Folder of a run where its next checkpoint is written; what lies there never counts."""
CHECKPOINT_NAME = re.compile(r"^checkpoint-(\d+)$")
FAULTS_SHOWN = 4


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or is not what was written."""


def seal(staged: Path, run: str | Path, made_by: dict[str, Any]) -> Path:
    """Declares a written checkpoint whole and moves it from the staging folder into the run's.

    Its files are on the disk before the marker is, and the marker before the folder takes its name: a kill or a power
    cut at any moment leaves a whole checkpoint or none.

    Args:
        staged: the written folder.
        run: folder of the run.
        made_by: what a resumed run must agree with; see `check_resumable`.

    Returns:
        Where the checkpoint is now.
    """
    written = sorted(staged.rglob("*"))
    sizes = {path.relative_to(staged).as_posix(): path.stat().st_size for path in written if path.is_file()}
    for path in written:
        _flush(path)
    marker = staged / MARKER
    marker.write_text(json.dumps({**made_by, "files": sizes}, indent=1), encoding="utf-8")
    for path in (marker, staged):
        _flush(path)
    final = Path(run) / staged.name
    replaced = final.rename(staged.with_name(f"{staged.name}.replaced")) if final.exists() else None
    staged.rename(final)
    _flush(Path(run))
    if replaced is not None:
        shutil.rmtree(replaced)
    with contextlib.suppress(OSError):
        staged.parent.rmdir()
    return final


def clear_staging(run: str | Path) -> None:
    """Deletes what a stopped run had begun to write."""
    shutil.rmtree(Path(run) / STAGING, ignore_errors=True)


def remove_checkpoint(checkpoint: Path) -> None:
    """Deletes a checkpoint from where it no longer counts: an interrupted deletion leaves none that is half there."""
    doomed = checkpoint.parent / STAGING / f"{checkpoint.name}.removed"
    doomed.parent.mkdir(exist_ok=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)
    with contextlib.suppress(OSError):
        doomed.parent.rmdir()


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
        CheckpointError: for one whose files are not as long as they were written. An earlier one is never taken in
            its place: the message names it.
    """
    if wanted is None:
        return None
    complete = complete_checkpoints(run)
    if wanted == "latest" and not complete:
        return None
    path = complete[-1] if wanted == "latest" else Path(wanted)
    if not (path / MARKER).is_file():
        raise ValueError(
            f"{wanted} is not a complete checkpoint: {MARKER} is missing, so its writing was cut off or never began. "
            f"Complete ones in {run}: {[p.name for p in complete] or 'none'}"
        )
    faults = damage(path)
    if faults:
        whole = [other for other in complete if other != path and not damage(other)]
        way_out = (
            f"resume from the last whole one by --resume_from_checkpoint {whole[-1]}"
            if whole
            else f"no other checkpoint in {run} is whole, so begin anew"
        )
        raise CheckpointError(f"{path} is damaged: {'; '.join(faults)}. Copy it again, or {way_out}")
    return path


def damage(checkpoint: Path) -> list[str]:
    """What differs from the marker's list of files; checkpoints of before the list have none."""
    faults = []
    for name, size in read_marker(checkpoint).get("files", {}).items():
        path = checkpoint / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif path.stat().st_size != size:
            faults.append(f"{name} has {path.stat().st_size:,} bytes, {size:,} were written")
    more = [f"and {len(faults) - FAULTS_SHOWN} more files"] if len(faults) > FAULTS_SHOWN else []
    return faults[:FAULTS_SHOWN] + more


def read_marker(checkpoint: Path) -> dict[str, Any]:
    """What `seal` wrote: `made_by`, and the size in bytes of each file.

    Raises:
        CheckpointError: for a marker that is no JSON.
    """
    text = (checkpoint / MARKER).read_text(encoding="utf-8")
    try:
        return json.loads(text or "{}")
    except ValueError as error:
        raise CheckpointError(f"{checkpoint / MARKER} is damaged: {error}") from error


def check_resumable(checkpoint: Path, now: dict[str, Any]) -> None:
    """Refuses to go on under conditions that the checkpoint's state does not fit.

    Args:
        checkpoint: a complete one.
        now: `samples_per_step`, `world_size` and `zero_stage` (0 = no DeepSpeed) of the run that wants to resume; see
            `reshaping` for another `world_size`.

    Raises:
        ValueError: with both values and the way out.
    """
    then = {**now, **{key: value for key, value in read_marker(checkpoint).items() if key in now}}
    weights_only = f"or begin a new run from its weights alone by --model {checkpoint} with another --output_dir"
    if then["samples_per_step"] != now["samples_per_step"]:
        raise ValueError(
            f"{checkpoint} took steps of {then['samples_per_step']} samples, this run would take "
            f"{now['samples_per_step']}: schedule and place in the data would not fit. Set "
            "per_device_train_batch_size and gradient_accumulation_steps so that their product with the number of "
            f"processes ({now['world_size']}) is {then['samples_per_step']}, {weights_only}"
        )
    if then["zero_stage"] != now["zero_stage"]:
        raise ValueError(
            f"{checkpoint} was written with ZeRO stage {then['zero_stage']}, this run has stage {now['zero_stage']} "
            f"(0 = no DeepSpeed). Give the same --deepspeed file, {weights_only}"
        )


@contextlib.contextmanager
def writing(what: str, run: str | Path) -> Iterator[None]:
    """Says what could not be written, where, how much room there is, and what remains; gives the room back.

    Raises:
        CheckpointError: from the library's own error.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        complete = complete_checkpoints(run)
        last = f"the last good checkpoint is {complete[-1]}" if complete else "no checkpoint was complete before"
        room = _room(run)
        clear_staging(run)
        raise CheckpointError(
            f"{what} could not be written to {run} ({_first_line(error)}; {room}); {last}. Make room, or lower "
            "save_total_limit, then run the same command with --resume_from_checkpoint latest"
        ) from error


def cut_off_weights(folder: str | Path) -> str:
    """Which weight files of a checkpoint are shorter than their headers say; empty where none is."""
    faults = []
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb") as file:
            start = file.read(8)
            header = file.read(int.from_bytes(start, "little")) if len(start) == 8 else b""
        try:
            ends = [entry["data_offsets"][1] for key, entry in json.loads(header).items() if key != "__metadata__"]
        except ValueError:
            faults.append(f"the header of {path.name} is cut off")
            continue
        wanted, size = len(start) + len(header) + max(ends, default=0), path.stat().st_size
        if size < wanted:
            faults.append(f"{path.name} is cut off: it has {size:,} of {wanted:,} bytes")
    return "; ".join(faults)


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


def _flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _room(folder: str | Path) -> str:
    usage = shutil.disk_usage(folder)
    return f"{usage.free / 1e9:.2f} of {usage.total / 1e9:.2f} GB are free"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
