"""Shared by all tests: one thread a process, and a small dataset built once for all workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from filelock import FileLock

REPOSITORY = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)

LONG = ("test_training", "test_rooms_table", "test_stopping", "test_hub_push")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with the longest tests come first, so that no worker waits for the other at the end."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(scope="session")
def rooms(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A built dataset of 8 training rooms and 4 held-out ones, 8 views each, made by the command that users type."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    root = shared / "rooms"
    with FileLock(shared / "rooms.lock"):
        if not (root / "manifest.json").is_file():
            command = [sys.executable, "-m", "datasets_scripts.build", "--source", "rooms", "--output", str(root)]
            command += ["--scenes", "8", "--heldout", "4", "--views", "8", "--num-proc", "1"]
            subprocess.run(command, cwd=REPOSITORY, check=True)
    return root


@pytest.fixture(scope="session")
def small_json(tmp_path_factory) -> str:
    """A configuration of a model that trains in seconds, at the vocabulary of the tiny tokenizer."""
    from tests.fake import small_config

    path = tmp_path_factory.mktemp("model") / "small.json"
    fields = small_config().to_dict()
    tiny = json.loads((REPOSITORY / "configs/models/tiny.json").read_text())
    fields["text_config"]["vocab_size"] = tiny["text_config"]["vocab_size"]
    path.write_text(json.dumps(fields))
    return str(path)
