"""Whether a staged dataset is whole, and may be published at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import yaml
from pyarrow import ArrowException

from .check_card import FRONT_MATTER
from .licences import DATA_SOURCES, OWN_CAPTURES


def check_data(folder: Path) -> list[str]:
    """Faults of the Parquet files: unreadable ones, and sources whose terms forbid to publish them."""
    faults: list[str] = []
    sources: set[str] = set()
    for path in sorted((folder / "data").glob("*/*.parquet")):
        column = {"scenes": "source", "samples": "task"}.get(path.parent.name)
        name = path.relative_to(folder).as_posix()
        if column is None:
            faults.append(f"{name}: there is no table {path.parent.name}, wanted scenes and samples")
            continue
        try:
            values = set(parquet.read_table(path, columns=[column]).column(column).to_pylist())
        except (ArrowException, OSError, KeyError) as error:
            faults.append(f"{name} is not a table of {path.parent.name} ({error})")
            continue
        sources |= values if column == "source" else values & set(DATA_SOURCES)
    own = _is_own(folder)
    for source in sorted(sources):
        known = DATA_SOURCES.get(source)
        if known is None:
            faults.append(f"rows come from {source}, whose terms are not known: add it to hub_upload/licences.py")
        elif not known.may_redistribute and not (own and source in OWN_CAPTURES):
            faults.append(f"rows come from {source}, which may not be published: {known.reason}")
    return faults


def _is_own(folder: Path) -> bool:
    """Whether the card gives a licence of the owner's own."""
    match = FRONT_MATTER.match((folder / "README.md").read_text(encoding="utf-8")) if _has_card(folder) else None
    metadata: Any = yaml.safe_load(match.group(1)) if match else {}
    return bool(isinstance(metadata, dict) and metadata.get("license"))


def _has_card(folder: Path) -> bool:
    return (folder / "README.md").is_file()
