"""Build a dataset folder: two Arrow tables and a manifest (see schema.py).

    python -m datasets_scripts.build --source rooms --output data/rooms --scenes 200
    python -m datasets_scripts.build --source scannet --scan-root raw/scannet \
        --qa scanqa=raw/ScanQA --qa sqa3d=raw/SQA3D --output data/scannet
    python -m datasets_scripts.build --source arkitscenes --scan-root raw/ARKitScenes --output data/arkitscenes

The same options give the same bytes on the same machine, whatever --num-proc. The manifest is written last, so an
interrupted build leaves a folder that no reader takes for a dataset; running the command again continues it.
What was left out of real data, and why, is printed and stands in report.json.
"""

import argparse
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing.connection import wait as wait_for_process
from pathlib import Path
from typing import Any, Protocol

import datasets
import torch
from tqdm import tqdm

from datasets_scripts.capture import Skips, SourceError
from datasets_scripts.rooms.source import RoomsSource
from datasets_scripts.schema import SAMPLE_SPLITS, SCENE_SPLITS, Manifest, file_sha256, write_manifest
from datasets_scripts.sources import CAPTURE_SOURCES, CaptureSource, add_capture_arguments, capture_source
from datasets_scripts.tables import (
    REPORT_NAME,
    ChunkResult,
    Row,
    finished_chunk,
    join_chunks,
    prepare_root,
    write_chunk,
)


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
        """Yield (table, row) pairs: "scenes/train", "samples/val" ...; a scene before its samples and labels.

        A source that leaves things out yields ("report", {"skips": …, "source_files": …}) at last.
        """


SOURCES = ("rooms", *CAPTURE_SOURCES)
_NO_TABLES: frozenset[str] = frozenset()


def build(source: Source, root: Path, *, num_proc: int, overwrite: bool = False, progress: bool = True) -> Manifest:
    """Build the dataset folder `root` from a source with `num_proc` worker processes and return its manifest.

    Raises FileExistsError for a folder that may not be overwritten, OSError where the disk is too full, RowError for a
    faulty row and SourceError for raw data that cannot be used.
    """
    is_capture = isinstance(source, CaptureSource)
    chunks, skips = source.plan() if is_capture else (source.chunks(), Skips())
    source_files = source.source_files()
    partial = prepare_root(root, _plan_digest(source, chunks, source_files), overwrite=overwrite)
    if is_capture:
        check_disk(root, 2 * source.estimated_bytes(sum(chunk.num_scenes for chunk in chunks)))
    results = _run_chunks(source, chunks, partial, num_proc, progress)
    counts: dict[str, Counter[str]] = {}
    for result in results:
        for table, counter in result.counts.items():
            counts.setdefault(table, Counter()).update(counter)
        skips.merge(Skips.from_json(result.report.get("skips", {})))
        source_files |= result.report.get("source_files", {})
    if not any(table.startswith("samples/") for table in counts):
        raise SourceError(f"no scene could be built: {json.dumps(skips.as_json(), indent=2)}")
    datasets.disable_progress_bars()
    join_chunks(root, partial, counts)
    (root / REPORT_NAME).write_text(json.dumps({"skips": skips.as_json()}, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(partial)
    return write_manifest(
        root,
        counts=_counts_by_split(counts),
        options={source.name: source.options()},
        source_files={source.name: dict(sorted(source_files.items()))},
    )


def check_disk(root: Path, wanted: int) -> None:
    """Raise OSError where the disk of `root` has fewer than `wanted` bytes free."""
    free = shutil.disk_usage(root).free
    if free < wanted:
        raise OSError(
            f"--output {root}: the build may take {wanted / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; "
            "make room, or lower --num-views, --image-side or --max-scenes"
        )


def _plan_digest(source: Source, chunks: list[Any], source_files: dict[str, str]) -> str:
    """A digest of everything that the chunk files depend on but the raw scenes themselves: this code, too."""
    folder = Path(__file__).parent
    code = {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(folder.rglob("*.py"))}
    text = f"{source!r} {chunks!r} {sorted(source_files.items())} {sorted(code.items())}"
    return hashlib.sha256(text.encode()).hexdigest()


def _run_chunks(source: Source, chunks: list[Any], partial: Path, num_proc: int, progress: bool) -> list[ChunkResult]:
    """Write all chunk files that are not there yet; return what each chunk holds."""
    results = {number: finished_chunk(partial, number) for number in range(len(chunks))}
    missing = {number: chunks[number] for number, result in results.items() if result is None}
    total = sum(chunk.num_scenes for chunk in chunks)
    already = total - sum(chunk.num_scenes for chunk in missing.values())
    seconds = 0.2 if sys.stderr.isatty() else 5.0
    with tqdm(
        total=total, initial=already, unit="scene", desc=source.name, disable=not progress, mininterval=seconds
    ) as bar:
        run = _run_here if num_proc == 1 else functools.partial(_run_in_pool, num_proc=num_proc)
        results |= run(source, missing, partial, bar)
    return [results[number] for number in range(len(chunks))]


def _run_here(source: Source, missing: dict[int, Any], partial: Path, bar: tqdm) -> dict[int, ChunkResult]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {number: _work(source, chunk, partial, number, bar.update) for number, chunk in missing.items()}
    finally:
        torch.set_num_threads(threads)


def _run_in_pool(
    source: Source, missing: dict[int, Any], partial: Path, bar: tqdm, num_proc: int
) -> dict[int, ChunkResult]:
    context = multiprocessing.get_context("forkserver")  # torch's threads do not survive a fork of this process
    # Where the workers will use a GPU the server imports torch alone: other libraries may begin CUDA as they are
    # imported, and a fork cannot go on with it.
    on_gpu = getattr(source, "device", "cpu") != "cpu"
    preloaded = ["torch"] if on_gpu else ["datasets_scripts.rooms.source", "datasets_scripts.sources"]
    context.set_forkserver_preload(preloaded)
    done = context.Value("q", bar.n)
    results = {}
    pool = ProcessPoolExecutor(min(num_proc, max(len(missing), 1)), context, _start_worker, (done,))
    try:
        futures = {pool.submit(_work, source, chunk, partial, number): number for number, chunk in missing.items()}
        while futures:
            finished, _ = wait(futures, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in finished:
                results[futures.pop(future)] = future.result()
            bar.update(done.value - bar.n)
    finally:
        pool.shutdown(cancel_futures=True)
    return results


_scenes_done: Any = None


def _start_worker(done: Any) -> None:
    """Set up a worker: one thread, no Ctrl-C of its own, and an end when the parent dies."""
    global _scenes_done
    _scenes_done = done
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    sentinel = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (wait_for_process([sentinel]), os._exit(1)), daemon=True).start()


def _count_in_pool(scenes: int) -> None:
    with _scenes_done.get_lock():
        _scenes_done.value += scenes


def _work(
    source: Source, chunk: Any, partial: Path, number: int, count: Callable[[int], Any] = _count_in_pool
) -> ChunkResult:
    """Write one chunk; `count` is told of scenes as they are done, those that were left out last."""
    scenes = 0

    def counted() -> Iterator[tuple[str, Row]]:
        nonlocal scenes
        for table, row in source.rows(chunk):
            yield table, row
            if table.startswith("scenes/"):
                scenes += 1
                count(1)

    unlabelled = source.unlabelled if isinstance(source, CaptureSource) else _NO_TABLES
    result = write_chunk(counted(), partial, number, unlabelled)
    count(chunk.num_scenes - scenes)
    return result


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
    parser.add_argument("--source", choices=SOURCES, default="rooms", help="where scenes and samples come from")
    parser.add_argument("--output", type=Path, required=True, help="folder to build, e.g. data/rooms")
    parser.add_argument("--num-proc", type=int, default=len(os.sched_getaffinity(0)), help="worker processes")
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset that --output holds")
    RoomsSource.add_arguments(parser)
    add_capture_arguments(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Build what the command line asks for; returns the exit status."""
    args = parse_arguments(arguments)
    try:
        if args.num_proc < 1:
            raise ValueError(f"--num-proc is {args.num_proc}, wanted at least 1")
        is_rooms = args.source == "rooms"
        source = RoomsSource.from_arguments(args) if is_rooms else capture_source(args.source, args)
        manifest = build(source, args.output, num_proc=args.num_proc, overwrite=args.overwrite)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: {args.output} is no dataset yet; run the command again to go on", file=sys.stderr)
        return 130
    for table, splits in manifest.counts.items():
        numbers = ", ".join(f"{sum(sources.values())} {split}" for split, sources in splits.items())
        print(f"{table}: {numbers}")
    for reason, found in json.loads((args.output / REPORT_NAME).read_text(encoding="utf-8"))["skips"].items():
        print(f"left out: {reason}: {found['count']}, e.g. {found['examples'][0]}")
    print(f"wrote {args.output} (fingerprint {manifest.fingerprint[:12]})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
