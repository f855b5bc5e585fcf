"""A built dataset becomes the folder that its repository on the Hub will hold: Parquet, a card, the manifest."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, disable_progress_bars, load_from_disk

from datasets_scripts.schema import MANIFEST_NAME, SAMPLE_SPLITS, SCENE_SPLITS, Manifest, read_manifest

from .cards import dataset_card
from .licences import DATA_SOURCES, find_sources, publishable_licence
from .record import Staged, fresh_folder, hash_files, put_in_place, refuse_existing, write_staged

SHARD_BYTES = 400 * 2**20
TABLES = {"scenes": SCENE_SPLITS, "samples": SAMPLE_SPLITS}
REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class DatasetSettings:
    """What is staged.

    Attributes:
        dataset: built dataset folder.
        output: the folder to make.
        repo_id: where it will be published.
        own_data: licence that the owner gives to own captures; None = there are none.
        overwrite: replace an older staged folder.
    """

    dataset: Path
    output: Path
    repo_id: str
    own_data: str | None = None
    overwrite: bool = False


def stage_dataset(settings: DatasetSettings) -> Staged:
    """Writes the folder and its record, and returns the record.

    Raises:
        FileExistsError: the output is there.
        NotADatasetError: the dataset has no manifest.
        ValueError: a source that may not be passed on, by name.
    """
    refuse_existing(settings.output, settings.overwrite)
    manifest = read_manifest(settings.dataset)
    tables = _load_tables(settings.dataset)
    sources = find_sources(sources_of(manifest, tables))
    licence = publishable_licence((source.name for source in sources), settings.own_data)

    partial = fresh_folder(settings.output)
    disable_progress_bars()
    for (table, split), dataset in tables.items():
        _write_parquet(dataset, partial / "data" / table, split)
    shutil.copyfile(settings.dataset / MANIFEST_NAME, partial / MANIFEST_NAME)
    if licence == "apache-2.0":
        shutil.copyfile(REPOSITORY / "LICENSE", partial / "LICENSE")
    counts = [(table, split, len(dataset)) for (table, split), dataset in tables.items()]
    card = dataset_card(settings.repo_id, licence, sources, counts, manifest.fingerprint)
    (partial / "README.md").write_text(card, encoding="utf-8")
    facts = {"rows": {f"{table}/{split}": count for table, split, count in counts}, "own_data": settings.own_data}
    staged = Staged("dataset", settings.repo_id, hash_files(partial), facts)
    put_in_place(partial, settings.output)
    write_staged(settings.output, staged)
    return staged


def sources_of(manifest: Manifest, tables: dict[tuple[str, str], Dataset]) -> set[str]:
    """Every source that a dataset's rows come from: scenes by their column, questions by their task."""
    named = {source for splits in manifest.counts.values() for each in splits.values() for source in each}
    named |= set(manifest.options)
    for (table, _), dataset in tables.items():
        named |= set(dataset["source"]) if table == "scenes" else set(dataset["task"]) & set(DATA_SOURCES)
    return named


def _load_tables(root: Path) -> dict[tuple[str, str], Dataset]:
    """(table, split) -> rows, in the order of the schema."""
    places = {(table, split): root / table / split for table, splits in TABLES.items() for split in splits}
    return {key: load_from_disk(str(place)) for key, place in places.items() if place.is_dir()}


def _write_parquet(dataset: Dataset, folder: Path, split: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    count = max(1, -(-dataset.data.nbytes // SHARD_BYTES))
    for index in range(count):
        shard = dataset.shard(count, index, contiguous=True)
        shard.to_parquet(str(folder / f"{split}-{index:05d}-of-{count:05d}.parquet"), batch_size=64)
