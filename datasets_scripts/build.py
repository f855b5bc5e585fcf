"""Build a dataset folder: two Arrow tables and a manifest (see schema.py).

    python -m datasets_scripts.build --source rooms --output data/rooms --scenes 200

The same options give the same bytes on the same machine, whatever --num-proc. The manifest is written last, so an
interrupted build leaves a folder that no reader takes for a dataset; running the command again starts it afresh.
"""

import argparse
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing.connection import wait as wait_for_process
from pathlib import Path
from typing import Any, Protocol

import datasets
import torch
from tqdm import tqdm

from datasets_scripts.rooms.source import RoomsSource
from datasets_scripts.schema import SAMPLE_SPLITS, SCENE_SPLITS, Manifest, write_manifest
from datasets_scripts.tables import Row, join_chunks, prepare_root, write_chunk


class Chunk(Protocol):
    """A part of a source's work for one process; picklable."""

    @property
    def num_scenes(self) -> int:
        """Number of scenes the chunk gives."""


class Source(Protocol):
    """Where rows come from; picklable. `chunks` must not depend on the number of processes."""

    name: str

    def options(self) -> dict[str, Any]:
        """Return, for the manifest, everything that the rows depend on."""

    def source_files(self) -> dict[str, str]:
        """Return, for the manifest, the sha256 of every file read."""

    def chunks(self) -> list[Any]:
        """Split the work into Chunks."""

    def rows(self, chunk: Any) -> Iterator[tuple[str, Row]]:
        """Yield (table, row) pairs: "scenes/train", "samples/val" ...; a scene before its samples."""


SOURCES = {"rooms": RoomsSource}


def build(source: Source, root: Path, *, num_proc: int, overwrite: bool = False, progress: bool = True) -> Manifest:
    """Build the dataset folder `root` from a source with `num_proc` worker processes and return its manifest.

    Raises FileExistsError for a folder that may not be overwritten and RowError for a faulty row.
    """
    partial = prepare_root(root, overwrite=overwrite)
    counts = _run_chunks(source, partial, num_proc, progress)
    datasets.disable_progress_bars()
    join_chunks(root, partial, counts)
    return write_manifest(
        root,
        counts=_counts_by_split(counts),
        options={source.name: source.options()},
        source_files={source.name: source.source_files()},
    )


def _run_chunks(source: Source, partial: Path, num_proc: int, progress: bool) -> dict[str, Counter[str]]:
    """Write all chunk files in worker processes; return rows per table and source."""
    chunks = source.chunks()
    context = multiprocessing.get_context("forkserver")  # torch's threads do not survive a fork of this process
    context.set_forkserver_preload([__name__ if __name__ != "__main__" else "datasets_scripts.build"])
    done = context.Value("q", 0)
    totals: dict[str, Counter[str]] = {}
    total = sum(chunk.num_scenes for chunk in chunks)
    seconds = 0.2 if sys.stderr.isatty() else 5.0
    bar = tqdm(total=total, unit="scene", desc=source.name, disable=not progress, mininterval=seconds)
    pool = ProcessPoolExecutor(min(num_proc, len(chunks)), context, _start_worker, (done,))
    try:
        pending = {pool.submit(_work, source, chunk, partial, i) for i, chunk in enumerate(chunks)}
        while pending:
            finished, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in finished:
                for table, counter in future.result().items():
                    totals.setdefault(table, Counter()).update(counter)
            bar.update(done.value - bar.n)
    finally:
        bar.close()
        pool.shutdown(cancel_futures=True)
    return totals


_scenes_done: Any = None


def _start_worker(done: Any) -> None:
    """Set up a worker: one thread, no Ctrl-C of its own, and an end when the parent dies."""
    global _scenes_done
    _scenes_done = done
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    sentinel = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (wait_for_process([sentinel]), os._exit(1)), daemon=True).start()


def _work(source: Source, chunk: Any, partial: Path, number: int) -> dict[str, Counter[str]]:
    def counted() -> Iterator[tuple[str, Row]]:
        for table, row in source.rows(chunk):
            yield table, row
            if table.startswith("scenes/"):
                with _scenes_done.get_lock():
                    _scenes_done.value += 1

    return write_chunk(counted(), partial, number)


def _counts_by_split(counts: dict[str, Counter[str]]) -> dict[str, dict[str, dict[str, int]]]:
    return {
        name: {split: dict(counts[f"{name}/{split}"]) for split in splits if f"{name}/{split}" in counts}
        for name, splits in (("scenes", SCENE_SPLITS), ("samples", SAMPLE_SPLITS))
    }


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; every source adds its own group of options."""
    parser = argparse.ArgumentParser(
        description="Build a dataset folder: scenes and samples as Arrow tables, and a manifest.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--source", choices=sorted(SOURCES), default="rooms", help="where scenes and samples come from")
    parser.add_argument("--output", type=Path, required=True, help="folder to build, e.g. data/rooms")
    parser.add_argument("--num-proc", type=int, default=len(os.sched_getaffinity(0)), help="worker processes")
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset that --output holds")
    for source in SOURCES.values():
        source.add_arguments(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Build what the command line asks for; returns the exit status."""
    args = parse_arguments(arguments)
    try:
        if args.num_proc < 1:
            raise ValueError(f"--num-proc is {args.num_proc}, wanted at least 1")
        source = SOURCES[args.source].from_arguments(args)
        manifest = build(source, args.output, num_proc=args.num_proc, overwrite=args.overwrite)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: {args.output} is no dataset yet; run the command again", file=sys.stderr)
        return 130
    for table, splits in manifest.counts.items():
        numbers = ", ".join(f"{sum(sources.values())} {split}" for split, sources in splits.items())
        print(f"{table}: {numbers}")
    print(f"wrote {args.output} (fingerprint {manifest.fingerprint[:12]})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
