"""Writing the tables of a dataset folder: chunk files from many processes, then one `save_to_disk` folder a split.

Chunk files lie in `<root>/.partial` until every one is there. The bytes of the result depend on the rows and on how
they were cut into chunks, never on which process wrote which chunk.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from datasets.arrow_writer import ArrowWriter

from datasets_scripts.schema import (
    MANIFEST_NAME,
    SAMPLE_FEATURES,
    SCENE_FEATURES,
    file_sha256,
    validate_sample,
    validate_scene,
)

PARTIAL_NAME = ".partial"
_TABLES = ("scenes", "samples")
_BATCH_ROWS = 32  # rows of one Arrow record batch
_SHARD_BYTES = 256 * 2**20
_MIN_SHARDS = 4

Row = Mapping[str, Any]


def prepare_root(root: Path, *, overwrite: bool) -> Path:
    """Make `root` ready for a build and return its folder for chunk files.

    What an interrupted build left is cleared. Raises FileExistsError for a folder that holds something else, or a
    finished dataset without `overwrite`.
    """
    partial = root / PARTIAL_NAME
    if root.is_file():
        raise FileExistsError(f"--output {root} is a file, wanted a folder")
    finished = (root / MANIFEST_NAME).is_file()
    if finished and not overwrite:
        raise FileExistsError(f"--output {root} already holds a dataset: name another folder, or add --overwrite")
    if root.is_dir() and any(root.iterdir()) and not finished and not partial.is_dir():
        raise FileExistsError(f"--output {root} holds files that are no dataset: name an empty or new folder")
    partial.mkdir(parents=True, exist_ok=True)  # first, so that from here on an interruption is recognised as one
    (root / MANIFEST_NAME).unlink(missing_ok=True)
    for name in _TABLES:
        shutil.rmtree(root / name, ignore_errors=True)
    for path in partial.iterdir():
        path.unlink()
    return partial


def write_chunk(
    rows: Iterable[tuple[str, Row]], partial: Path, number: int, unlabelled: frozenset[str] = frozenset()
) -> dict[str, Counter[str]]:
    """Validate rows and write them to one Arrow file a table; return the number of rows per table and source.

    rows: (table, row), the table being "scenes/<split>" or "samples/<split>", a scene before its samples.
    unlabelled: tables whose samples have no answers. Raises RowError for a faulty row.
    """
    counts: dict[str, Counter[str]] = {}
    source_of: dict[str, str] = {}
    with ExitStack() as stack:
        writers: dict[str, ArrowWriter] = {}
        for table, row in rows:
            is_scene = table.startswith("scenes/")
            if is_scene:
                validate_scene(row)
                source_of[row["scene_id"]] = row["source"]
            else:
                validate_sample(row, labelled=table not in unlabelled)
            if table not in writers:
                path = partial / f"{table.replace('/', '-')}-{number:06d}.arrow"
                features = SCENE_FEATURES if is_scene else SAMPLE_FEATURES
                writers[table] = stack.enter_context(
                    ArrowWriter(path=str(path), features=features, writer_batch_size=_BATCH_ROWS)
                )
            writers[table].write(dict(row))
            counts.setdefault(table, Counter())[
                source_of.get(row["scene_id"], "") if not is_scene else row["source"]
            ] += 1
        for writer in writers.values():
            writer.finalize()
    return counts


def join_chunks(root: Path, partial: Path, tables: Iterable[str]) -> None:
    """Turn the chunk files of every table into `<root>/<table>` and remove them."""
    for table in sorted(tables):
        files = sorted(partial.glob(f"{table.replace('/', '-')}-*.arrow"))
        joined = concatenate_datasets([Dataset.from_file(str(path)) for path in files])
        digest = hashlib.sha256("".join(file_sha256(path) for path in files).encode()).hexdigest()
        # a fingerprint of its content: the one that datasets makes up holds times and paths
        dataset = Dataset(joined.data, info=joined.info, fingerprint=digest[:16])
        shards = max(_MIN_SHARDS, -(-sum(path.stat().st_size for path in files) // _SHARD_BYTES))
        dataset.save_to_disk(str(root / table), num_shards=min(shards, len(dataset)))
    shutil.rmtree(partial)
