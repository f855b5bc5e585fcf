"""Small models and staged folders for the tests of hub_upload."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from hub_upload.record import Staged, hash_files, read_staged, record_folder, write_staged
from hub_upload.stage_model import ModelSettings, stage_model
from tests.fake import small_config
from training.arguments import CONFIGS
from training.assembly import build_model

REPOSITORY = Path(__file__).resolve().parents[1]
REPO_ID = "someone/rooms"


def make_checkpoint(folder: Path, seed: int = 0) -> Path:
    """A checkpoint of random weights as a run leaves it, with answers that depend on what it sees."""
    torch.manual_seed(seed)
    config = small_config()
    config.text_config.vocab_size = 1536
    config.text_config.hidden_size = config.text_config.intermediate_size = 64  # the least that 4 bits take
    model, processor = build_model(config, str(CONFIGS / "tokenizer-tiny"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    run_config = {
        "model": "configs/models/tiny.json",
        "learning_rate": 0.002,
        "num_views": 4,
        "output_dir": str(folder),
    }
    (folder / "run_config.yaml").write_text(yaml.safe_dump(run_config))
    return folder


def stage_small(folder: Path, **overrides: Any) -> Path:
    """A checkpoint of random weights, staged."""
    checkpoint = make_checkpoint(folder / "checkpoint")
    settings = ModelSettings(str(checkpoint), folder / "stage", REPO_ID, trained_on=("rooms",))
    stage_model(dataclasses.replace(settings, **overrides))
    return folder / "stage"


def copy_staged(staged: Path, folder: Path) -> Path:
    """A copy with its record, to be spoilt."""
    copy = folder / "stage"
    shutil.copytree(staged, copy)
    shutil.copytree(record_folder(staged), record_folder(copy))
    return copy


def record_again(folder: Path) -> Staged:
    """Makes the record agree with the files, so that only what they hold can be found wrong."""
    staged = dataclasses.replace(read_staged(folder), files=hash_files(folder))
    write_staged(folder, staged)
    return staged


def edit_json(path: Path, **values: Any) -> None:
    """Sets keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def append(path: Path, text: str) -> None:
    """Adds text to the end of a file."""
    path.write_text(path.read_text() + text)


def run_module(*words: str, cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m ...` (or `python file ...`) as a user does."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=300
    )
