"""The model under test: loaded whole or refused, and known by a fingerprint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from datasets_scripts.schema import file_sha256
from modeling_vggt_qwen3.modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration
from processing.processing_vggt_qwen3 import VggtQwen3Processor
from training.adapters import is_adapter
from training.assembly import load_model
from training.checkpoints import complete_checkpoints

FINGERPRINTED = ("*.safetensors", "*.json", "*.jinja")
NOT_OF_THE_MODEL = ("trainer_state.json",)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with its processor. `fingerprint`: sha256 of a folder's files, or the Hub's commit."""

    name: str
    fingerprint: str
    model: VggtQwen3ForConditionalGeneration
    processor: VggtQwen3Processor


def load_checkpoint(name: str, attn_implementation: str = "sdpa", dtype: str = "auto") -> Checkpoint:
    """Loads a checkpoint folder or Hub id for generation, its weights in `dtype` ("auto" = as stored).

    Raises:
        FileNotFoundError: neither a folder nor a repository that the Hub knows; a run without a finished model.
        ValueError: a configuration in place of a checkpoint, or a checkpoint with missing or extra tensors.
    """
    if name.endswith(".json"):
        raise ValueError(f"{name} is a configuration: it has no trained weights; give a checkpoint folder or a Hub id")
    if Path(name).is_dir():
        _check_folder(Path(name))
    model, processor = load_model(name, name, attn_implementation, dtype=dtype)
    commit = getattr(model.config, "_commit_hash", None)
    fingerprint = folder_fingerprint(Path(name)) if Path(name).is_dir() else str(commit)
    return Checkpoint(name, fingerprint, model.eval(), processor)


def folder_fingerprint(folder: Path) -> str:
    """sha256 over names and bytes of weights, configurations, tokenizer and chat template."""
    files = sorted({path for pattern in FINGERPRINTED for path in folder.glob(pattern)})
    digest = hashlib.sha256()
    for path in files:
        if path.name not in NOT_OF_THE_MODEL:
            digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _check_folder(folder: Path) -> None:
    if (folder / "config.json").is_file() or is_adapter(str(folder)):
        return
    checkpoints = complete_checkpoints(folder)
    hint = f"its newest complete checkpoint is {checkpoints[-1]}" if checkpoints else "it holds no complete checkpoint"
    raise FileNotFoundError(f"{folder} has no config.json: it is no checkpoint, or its training has not ended; {hint}")
