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

import numpy as np
import torch
import yaml

from hub_upload.record import Staged, hash_files, read_staged, record_folder, write_staged
from hub_upload.stage_model import ModelSettings, stage_model
from modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration
from processing import VggtQwen3Processor
from tests.fake import small_config
from training.arguments import CONFIGS
from training.assembly import build_model

REPOSITORY = Path(__file__).resolve().parents[1]
REPO_ID = "someone/rooms"
LEARNING_STEPS = 160
ANSWER = "a lamp"
ACTION = (
    '{"action":"place_anchor","label":"chair","center":[0.20,1.60,-0.80],"extent":[0.50,0.50,0.90],'
    '"normal":[0.00,-1.00,0.00]}'
)
SAYINGS = (
    (("What is next to the sofa?", "What colour is the bed?", "How many chairs are there?"), "scanqa", ANSWER),
    (("Place an anchor on the chair.", "Anchor the table.", "Put an anchor on the bed."), "actions", ACTION),
)


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


def make_talking_checkpoint(folder: Path) -> Path:
    """A checkpoint that answers every question by ANSWER and every instruction by ACTION, learnt in seconds."""
    make_checkpoint(folder)
    model = VggtQwen3ForConditionalGeneration.from_pretrained(folder)
    processor = VggtQwen3Processor.from_pretrained(folder)
    model.requires_grad_(False)
    model.model.language_model.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-3, weight_decay=0)
    batches = [_sayings(processor, *shown) for shown in ((3, False), (4, True), (8, True), (1, True))]
    for step in range(LEARNING_STEPS):
        optimizer.zero_grad()
        loss = model(**batches[step % len(batches)]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert loss < 0.05, f"it has not learnt to talk: loss {loss:.2f}"
    model.save_pretrained(folder)
    return folder


def level_cameras(count: int) -> dict[str, list[np.ndarray]]:
    """Cameras 1.5 m above the floor that look along +Y, for images of 80 x 60 pixels."""
    world_from_cam = np.tile(np.eye(4), (count, 1, 1))
    world_from_cam[:, :3, :3] = [[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]
    world_from_cam[:, :3, 3] = [(0.3 * index, 0.0, 1.5) for index in range(count)]
    intrinsics = np.tile([[60.0, 0, 40], [0, 60, 30], [0, 0, 1]], (count, 1, 1))
    return {"intrinsics": [intrinsics], "world_from_cam": [world_from_cam]}


def _sayings(processor: VggtQwen3Processor, num_views: int, has_cameras: bool) -> Any:
    """All questions and instructions with their answers, about views of noise."""
    views = np.random.default_rng(num_views).integers(0, 256, (num_views, 60, 80, 3), dtype=np.uint8)
    prompts, answers = [], []
    for words, task, answer in SAYINGS:
        for question in words:
            messages = processor.conversation(question, num_views=num_views, task=task)
            prompts.append(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
            answers.append(answer)
    cameras = level_cameras(num_views) if has_cameras else {}
    return processor(images=[list(views)], text=prompts, answers=answers, **cameras)


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
