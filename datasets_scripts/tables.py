"""Writing the tables of a dataset folder: chunk files from many processes, then one `save_to_disk` folder a split.

Chunk files lie in `<root>/.partial` until every one is there, each chunk with a marker written after its files. The
bytes of the result depend on the rows and on how they were cut into chunks, never on which process wrote which chunk,
nor on how often the build was interrupted.
"""

import hashlib
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import DatasetInfo, Features
from datasets.arrow_writer import ArrowWriter

from datasets_scripts.schema import (
    MANIFEST_NAME,
    TABLE_FEATURES,
    file_sha256,
    validate_sample,
    validate_scene,
)

PARTIAL_NAME = ".partial"
PLAN_NAME = "plan.json"
REPORT_NAME = "report.json"
_BATCH_ROWS = 32  # rows of one Arrow record batch
_SHARD_BYTES = 256 * 2**20
_MIN_SHARDS = 4

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ChunkResult:
    """What a finished chunk holds: rows per table and source, and what its source reported."""

    counts: dict[str, dict[str, int]]
    report: dict[str, Any]


def prepare_root(root: Path, plan: str, *, overwrite: bool) -> Path:
    """Make `root` ready for a build and return its folder for chunk files.

    Chunks that an interrupted build of the same `plan` (a digest of all that the rows depend on) finished are kept;
    everything else it left is cleared. Raises FileExistsError for a folder that holds something else, or a finished
    dataset without `overwrite`.
    """
    partial = root / PARTIAL_NAME
    if root.is_file():
        raise FileExistsError(f"--output {root} is a file, wanted a folder")
    finished = (root / MANIFEST_NAME).is_file()
    if finished and not overwrite:
        raise FileExistsError(f"--output {root} already holds a dataset: name another folder, or add --overwrite")
    names = {path.name for path in root.iterdir()} if root.is_dir() else set()
    if not finished and not names <= {PARTIAL_NAME, REPORT_NAME, *TABLE_FEATURES}:
        raise FileExistsError(f"--output {root} holds files that are no dataset: name an empty or new folder")
    partial.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST_NAME, REPORT_NAME):
        (root / name).unlink(missing_ok=True)
    for name in TABLE_FEATURES:
        shutil.rmtree(root / name, ignore_errors=True)
    plan_path = partial / PLAN_NAME
    same = plan_path.is_file() and plan_path.read_text(encoding="utf-8") == plan
    for path in partial.iterdir():
        if path != plan_path and not (same and _marker(partial, _number_of(path)).is_file()):
            path.unlink()
    _write_whole(plan_path, plan)
    return partial


def finished_chunk(partial: Path, number: int) -> ChunkResult | None:
    """What an earlier run wrote for a chunk, None if it did not finish it."""
    marker = _marker(partial, number)
    return ChunkResult(**json.loads(marker.read_text(encoding="utf-8"))) if marker.is_file() else None


def write_chunk(
    rows: Iterable[tuple[str, Row]], partial: Path, number: int, unlabelled: frozenset[str] = frozenset()
) -> ChunkResult:
    """Validate rows and write them to one Arrow file a table, then the chunk's marker.

    rows: (table, row), the table being "scenes/<split>", "samples/<split>" or "labels/<split>", a scene before its
    rest; or once ("report", what the source has to say). unlabelled: tables whose samples have no answers. Raises
    RowError for a faulty row.
    """
    counts: dict[str, Counter[str]] = {}
    report: dict[str, Any] = {}
    source_of: dict[str, str] = {}
    with ExitStack() as stack:
        writers: dict[str, ArrowWriter] = {}
        for table, row in rows:
            if table == "report":
                report = dict(row)
                continue
            if table.startswith("scenes/"):
                validate_scene(row)
                source_of[row["scene_id"]] = row["source"]
            elif table.startswith("samples/"):
                validate_sample(row, labelled=table not in unlabelled)
            if table not in writers:
                path = partial / f"{table.replace('/', '-')}-{number:06d}.arrow"
                writers[table] = stack.enter_context(
                    ArrowWriter(path=str(path), features=_features(table), writer_batch_size=_BATCH_ROWS)
                )
            writers[table].write(dict(row))
            counts.setdefault(table, Counter())[source_of.get(row["scene_id"], "")] += 1
        for writer in writers.values():
            writer.finalize()
    result = ChunkResult({table: dict(counter) for table, counter in counts.items()}, report)
    _write_whole(_marker(partial, number), json.dumps(asdict(result)))
    return result


def join_chunks(root: Path, partial: Path, tables: Iterable[str]) -> None:
    """Turn the chunk files of every table into `<root>/<table>`, a folder as `Dataset.save_to_disk` writes it.

    Record batches are copied one by one: `save_to_disk` itself holds more, the larger the table.
    """
    for table in sorted(tables):
        files = sorted(partial.glob(f"{table.replace('/', '-')}-*.arrow"))
        folder = root / table
        folder.mkdir(parents=True)
        names = _write_shards(files, folder)
        digest = hashlib.sha256("".join(file_sha256(path) for path in files).encode()).hexdigest()
        state = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": digest[:16],  # of its content: the one that datasets makes up holds times and paths
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        (folder / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True), encoding="utf-8")
        DatasetInfo(features=_features(table)).write_to_directory(str(folder))


def _write_shards(files: list[Path], folder: Path) -> list[str]:
    """Copy the rows of chunk files, in order, into shards of equal length; return the names of the shards."""
    lengths = [sum(batch.num_rows for batch in _batches(path)) for path in files]
    rows, size = sum(lengths), sum(path.stat().st_size for path in files)
    count = min(rows, max(_MIN_SHARDS, -(-size // _SHARD_BYTES)))
    names = [f"data-{shard:05d}-of-{count:05d}.arrow" for shard in range(count)]
    ends = iter([rows * (shard + 1) // count for shard in range(count)])
    shards = iter(names)
    writer, end, written = None, 0, 0
    for batch in itertools.chain.from_iterable(map(_batches, files)):
        start = 0
        while start < batch.num_rows:
            if written == end:
                if writer is not None:
                    writer.close()
                writer, end = pa.ipc.new_stream(str(folder / next(shards)), batch.schema), next(ends)
            part = batch.slice(start, end - written)
            writer.write_batch(part)
            start, written = start + part.num_rows, written + part.num_rows
    writer.close()
    return names


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as batches:
        yield from batches


def _features(table: str) -> Features:
    return TABLE_FEATURES[table.split("/")[0]]


def _marker(partial: Path, number: int) -> Path:
    return partial / f"chunk-{number:06d}.json"


def _number_of(path: Path) -> int:
    digits = path.stem.split("-")[-1]
    return int(digits) if digits.isdigit() else -1


def _write_whole(path: Path, text: str) -> None:
    """Write a file in one step: it is there with all its text or not at all."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
