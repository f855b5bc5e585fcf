"""What is known of a staged folder. It stands beside the folder, in `<folder>.record`, and is never uploaded.

staged.json             what was staged, the sha256 of every file
reference.safetensors   logits and tokens that the model gave while it was staged (models only)
verified.json           written by verify.py last: the same sha256 of every file, and where they were proved
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

STAGED, REFERENCE, VERIFIED = "staged.json", "reference.safetensors", "verified.json"
REPO_TYPES = ("model", "dataset", "space")


class NotStagedError(FileNotFoundError):
    """A folder that stage.py did not make, or that verify.py has not passed."""


@dataclass(frozen=True)
class Staged:
    """Attributes:
    repo_type: one of REPO_TYPES.
    repo_id: where the card says that it is.
    files: path within the folder -> sha256.
    facts: what verification compares with (see the stage_* modules).
    """

    repo_type: str
    repo_id: str
    files: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """sha256 over names and contents of all files."""
        lines = [f"{name} {digest}\n" for name, digest in sorted(self.files.items())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def record_folder(folder: Path) -> Path:
    """Where the record of a staged folder stands."""
    return folder.resolve().with_name(f"{folder.resolve().name}.record")


def hash_files(folder: Path) -> dict[str, str]:
    """Path -> sha256 of every file below a folder, hidden ones as well, sorted.

    Raises:
        ValueError: for a link, which an upload would follow out of the folder.
    """
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    links = [str(path.relative_to(folder)) for path in paths if path.is_symlink()]
    if links:
        raise ValueError(f"{folder} holds links ({', '.join(links)}): stage it again, or put the files in their place")
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in paths}


def write_staged(folder: Path, staged: Staged) -> None:
    """Writes the record of a folder that was just staged; an older verification is void."""
    record = record_folder(folder)
    record.mkdir(parents=True, exist_ok=True)
    (record / VERIFIED).unlink(missing_ok=True)
    _write_json(record / STAGED, asdict(staged))


def read_staged(folder: Path) -> Staged:
    """The record of a staged folder.

    Raises:
        NotStagedError: no such folder, or no record of it.
    """
    if not folder.is_dir():
        raise NotStagedError(f"no folder {folder}; make it by `python -m hub_upload.stage --output {folder}`")
    path = record_folder(folder) / STAGED
    if not path.is_file():
        raise NotStagedError(
            f"{folder} was not staged (there is no {path}); make it by `python -m hub_upload.stage --output {folder}`"
        )
    return Staged(**json.loads(path.read_text(encoding="utf-8")))


def write_verified(folder: Path, staged: Staged, versions: list[dict[str, str]]) -> None:
    """Writes that the folder, as it is now, was verified under these versions of the libraries."""
    _write_json(record_folder(folder) / VERIFIED, {"fingerprint": staged.fingerprint, "versions": versions})


def unproved(folder: Path, wanted: Sequence[str]) -> list[str]:
    """Which of these versions of transformers a verified folder was not loaded under."""
    verified = json.loads((record_folder(folder) / VERIFIED).read_text(encoding="utf-8"))
    proved = {versions.get("transformers") for versions in verified["versions"]}
    return [version for version in wanted if version not in proved]


def clear_verified(folder: Path) -> None:
    """Takes an older verification back."""
    (record_folder(folder) / VERIFIED).unlink(missing_ok=True)


def read_verified(folder: Path) -> Staged:
    """The record of a folder that was verified and has not changed since.

    Raises:
        NotStagedError: it was not staged, not verified, or changed.
    """
    staged = read_staged(folder)
    path = record_folder(folder) / VERIFIED
    if not path.is_file():
        raise NotStagedError(f"{folder} was not verified; do it by `python -m hub_upload.verify {folder}`")
    found = Staged(staged.repo_type, staged.repo_id, hash_files(folder)).fingerprint
    if found != json.loads(path.read_text(encoding="utf-8"))["fingerprint"]:
        raise NotStagedError(f"{folder} has changed since it was verified; stage and verify it again")
    return staged


def refuse_existing(folder: Path, overwrite: bool) -> None:
    """Raises FileExistsError where `folder` is there and is not ours to replace."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        is_staged = (record_folder(folder) / STAGED).is_file()
        if not (is_staged and overwrite):
            raise FileExistsError(
                f"{folder} is there already: {'add --overwrite' if is_staged else 'name another folder'}"
            )


def fresh_folder(folder: Path) -> Path:
    """An empty folder beside `folder`, to be filled and then put in its place."""
    partial = folder.resolve().with_name(f"{folder.resolve().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def put_in_place(partial: Path, folder: Path) -> None:
    """Replaces `folder` by the finished one; the record of the old one goes with it."""
    shutil.rmtree(record_folder(folder), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder.resolve())


def _write_json(path: Path, value: Any) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
