"""Whether a staged dataset is whole, and may be published at all."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as parquet
from pyarrow import ArrowException

from .licences import DATA_SOURCES, OWN_CAPTURES


def check_data(folder: Path, own_data: str | None) -> list[str]:
    """Faults of the Parquet files: unreadable ones, and sources whose terms forbid to publish them.

    Args:
        folder: staged.
        own_data: licence that the owner gave to own captures when they were staged; None = nobody did.
    """
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
    for source in sorted(sources):
        known = DATA_SOURCES.get(source)
        if known is None:
            faults.append(f"rows come from {source}, whose terms are not known: add it to hub_upload/licences.py")
        elif not known.may_redistribute and not (own_data and source in OWN_CAPTURES):
            faults.append(f"rows come from {source}, which may not be published: {known.reason}")
    return faults
