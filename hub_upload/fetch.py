"""Brings a published dataset back into the form that train.py and eval.py read.

    python -m hub_upload.fetch ORG/NAME --output data/rooms

Rows, images and cameras are the same; the folder's fingerprint is another, because the tables are cut otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from datasets import Dataset, concatenate_datasets, disable_progress_bars
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError

from datasets_scripts.schema import MANIFEST_NAME, SAMPLE_FEATURES, SCENE_FEATURES, Manifest, write_manifest
from modeling_vggt_qwen3.convert_vggt_checkpoint import all_or_nothing, refuse_existing

from .stage_dataset import TABLES

FEATURES = {"scenes": SCENE_FEATURES, "samples": SAMPLE_FEATURES}


def fetch(repo_id: str, output: Path, revision: str | None = None) -> Manifest:
    """Downloads a dataset and writes it as a built dataset folder, all of it or nothing; returns its manifest.

    Raises:
        FileExistsError: the output holds something.
        ValueError: the repository is no dataset of this project, or lacks rows that its manifest counts.
    """
    refuse_existing(output)
    source = Path(snapshot_download(repo_id, repo_type="dataset", revision=revision))
    path = source / MANIFEST_NAME
    if not path.is_file():
        raise ValueError(f"{repo_id} has no {MANIFEST_NAME}: it is no dataset of this project")
    told = Manifest(**json.loads(path.read_text(encoding="utf-8")))
    disable_progress_bars()
    with all_or_nothing(output) as folder:
        for table, splits in TABLES.items():
            for split in splits:
                files = sorted((source / "data" / table).glob(f"{split}-*.parquet"))
                if files:
                    _write_table(files, table, split, told, folder)
        return write_manifest(folder, counts=told.counts, options=told.options, source_files=told.source_files)


def _write_table(files: list[Path], table: str, split: str, told: Manifest, output: Path) -> None:
    parts = [Dataset.from_parquet(str(file), features=FEATURES[table], keep_in_memory=True) for file in files]
    rows = concatenate_datasets(parts)
    wanted = sum(told.counts[table].get(split, {}).values())
    if len(rows) != wanted:
        raise ValueError(f"{table}/{split} has {len(rows)} rows, the manifest counts {wanted}: fetch it again")
    rows.save_to_disk(str(output / table / split), num_shards=min(len(rows), max(4, len(files))))


def main(argv: list[str] | None = None) -> None:
    """Fetches the dataset of the command line and prints what came."""
    parser = argparse.ArgumentParser(prog="python -m hub_upload.fetch", description=__doc__.partition("\n")[0])
    parser.add_argument("repo_id", metavar="ORG/NAME", help="dataset on the Hub")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--revision", help="tag or commit; by default the newest")
    options = parser.parse_args(argv)
    manifest = fetch(options.repo_id, options.output, options.revision)
    for table, splits in manifest.counts.items():
        print(f"{table}: " + ", ".join(f"{sum(each.values())} {split}" for split, each in splits.items()))


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, HTTPError) as error:
        sys.exit(f"error: {error}")
