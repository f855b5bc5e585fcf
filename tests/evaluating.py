"""A small checkpoint and answer files for the tests of the evaluator."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from datasets import load_from_disk

from datasets_scripts.schema import write_manifest
from evaluation.rows import reference_of
from processing.action_vggt_qwen3 import action_to_world, format_action
from processing.geometry_vggt_qwen3 import invert_rigid, ref_from_world
from tests.fake import small_config
from training.arguments import CONFIGS
from training.assembly import build_model
from training.data import SceneDataset


def save_checkpoint(path: Path) -> Path:
    """A model of random weights, large enough that its answers differ with what it sees."""
    torch.manual_seed(0)
    config = small_config()
    config.text_config.vocab_size = json.loads((CONFIGS / "models" / "tiny.json").read_text())["text_config"][
        "vocab_size"
    ]
    model, processor = build_model(config, str(CONFIGS / "tokenizer-tiny"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
        model.get_input_embeddings().weight.mul_(0.02)  # else the last token is said again and again
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def true_answers(rooms: Path, split: str = "val", frame: str = "ref") -> list[dict[str, Any]]:
    """The right answer to every sample; actions as text of the ref frame, or as objects of the world frame."""
    dataset = SceneDataset([rooms], split, num_views=8)
    rows = []
    for draw in dataset.fixed_draws(1):
        example = dataset[draw]
        (sample,) = example.samples
        answer: Any = sample["answers"][0] if sample["answers"] else None
        if sample["action"]:
            to_ref = ref_from_world(example.world_from_cam[0])
            reference, _ = reference_of(sample, to_ref)
            in_world = action_to_world(reference, invert_rigid(to_ref), example.scene_id)
            answer = format_action(reference) if frame == "ref" else in_world
        rows.append({"sample_id": sample["sample_id"], "prediction": answer})
    return rows


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def renamed_task(rooms: Path, root: Path, task: str, split: str) -> Path:
    """A copy of the questions of a dataset under the name of another task, in another split."""
    shutil.copytree(rooms / "scenes", root / "scenes")
    table = load_from_disk(str(rooms / "samples" / "val")).filter(lambda row: row["task"] == "rooms_qa")
    names = {"scanqa": "val-scene0000-{}", "sqa3d": "{}"}
    table = table.map(lambda row, index: {"task": task, "sample_id": names[task].format(index)}, with_indices=True)
    table.save_to_disk(str(root / "samples" / split))
    write_manifest(root, counts={}, options={}, source_files={})
    return root
