"""Files written whole or not at all, and rows appended so that a kill loses at most a half-written line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml


def write_text(path: Path, text: str) -> None:
    """Writes a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON for people: indented, keys in the order given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_yaml(path: Path, value: dict[str, Any]) -> None:
    """Writes YAML, keys in the order given."""
    write_text(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__}, wanted a mapping")
    return value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: naming the file and the line that is no JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of predictions {path}")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):  # text may hold U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} holds {type(row).__name__}, wanted an object")
        rows.append(row)
    return rows


class RowFile:
    """A JSON Lines file that rows are appended to, in an order known beforehand.

    Args:
        path: the file; a half-written last line, left by a kill, is dropped.
        sample_ids: of all rows, in their order.

    Raises:
        ValueError: where the rows already there are not the first of these.
    """

    def __init__(self, path: Path, sample_ids: Sequence[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with path.open("rb+") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
        self.path = path
        there = [row.get("sample_id") for row in read_rows(path)]
        expected = list(sample_ids[: len(there)])
        if there != expected:
            wrong = next((i for i, pair in enumerate(zip(there, expected)) if pair[0] != pair[1]), len(expected))
            raise ValueError(
                f"{path}, line {wrong + 1} holds {there[wrong]!r}, which is not the sample that comes there: the file "
                "was changed or belongs to other data; delete it, or choose another --output"
            )
        self.num_rows = len(there)

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Writes rows and hands them to the operating system at once."""
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)
        self.num_rows += len(rows)
