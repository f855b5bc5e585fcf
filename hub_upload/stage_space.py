"""The page of `space/` becomes the folder that a Space on the Hub will hold."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

from .check_card import FRONT_MATTER
from .record import Staged, fresh_folder, hash_files, put_in_place, refuse_existing, write_staged

SPACE = Path(__file__).with_name("space")
SHIPPED = ("*.py", "requirements.txt", "examples/*/cameras.json", "examples/*/views/*.jpg", "examples/*/depth/*.png")


@dataclass(frozen=True)
class SpaceSettings:
    """What is staged.

    Attributes:
        model_id: Hub id of the model that the page serves.
        output: the folder to make.
        repo_id: where it will be published.
        overwrite: replace an older staged folder.
    """

    model_id: str
    output: Path
    repo_id: str
    overwrite: bool = False


def stage_space(settings: SpaceSettings) -> Staged:
    """Writes the folder and its record, and returns the record.

    Raises:
        FileExistsError: the output is there.
        ValueError: the model is no Hub id.
    """
    refuse_existing(settings.output, settings.overwrite)
    if settings.model_id.count("/") != 1 or Path(settings.model_id).exists():
        raise ValueError(f"--model is {settings.model_id}: a Space needs the Hub id of its model, ORG/NAME")
    partial = fresh_folder(settings.output)
    for path in (path for pattern in SHIPPED for path in sorted(SPACE.glob(pattern))):
        target = partial / path.relative_to(SPACE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (partial / "model.txt").write_text(f"{settings.model_id}\n", encoding="utf-8")
    text = (SPACE / "README.md").read_text(encoding="utf-8")
    match = FRONT_MATTER.match(text)
    metadata = {**yaml.safe_load(match[1]), "models": [settings.model_id]}
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    (partial / "README.md").write_text(f"---\n{front}---\n{text[match.end() :]}", encoding="utf-8")
    staged = Staged("space", settings.repo_id, hash_files(partial))
    put_in_place(partial, settings.output)
    write_staged(settings.output, staged)
    return staged
