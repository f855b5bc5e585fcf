"""A checkpoint becomes the folder that its repository on the Hub will hold."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.numpy import save_file

from datasets_scripts.schema import NotADatasetError, read_manifest
from evaluation.checkpoint import Checkpoint, load_checkpoint
from modeling_vggt_qwen3.modeling_vggt_qwen3 import AUTO_MAP

from .cards import ModelFacts, model_card, read_evaluation
from .licences import ENCODERS, DataSource, Encoder, find_sources
from .probe import probe_outputs
from .record import (
    REFERENCE,
    Staged,
    fresh_folder,
    hash_files,
    put_in_place,
    record_folder,
    refuse_existing,
    write_staged,
)

REPOSITORY = Path(__file__).resolve().parents[1]
CODE = ("modeling_vggt_qwen3", "processing")
RUN_CONFIG = "run_config.yaml"
LEFTOVERS = {
    "tokenizer_config.json": ("is_local", "local_files_only", "name_or_path", "tokenizer_file"),
    "config.json": ("_name_or_path",),
    "processor_config.json": ("name_or_path",),
}
"""What the library writes about how it loaded: of no use to a reader, or harmful."""


@dataclass(frozen=True)
class ModelSettings:
    """What is staged.

    Attributes:
        model: checkpoint folder or Hub id.
        output: the folder to make.
        repo_id: where it will be published.
        evaluations: folders that eval.py wrote, for the card.
        encoder: a key of ENCODERS; None where the run's settings show that all weights began random.
        encoder_license: file of the encoder's licence, where that asks for a copy of itself.
        text_model: where the text model comes from; None as with `encoder`.
        trained_on: sources of the training data; None = those of the datasets that the run's settings name.
        dtype: weights are saved in, such as "bfloat16"; "auto" = as they are. Evaluations must be made in it.
        max_shard_size: of one weight file.
        link_code: leave links to the project's modules in place of copies, for a folder that stays within the project.
        overwrite: replace an older staged folder.
    """

    model: str
    output: Path
    repo_id: str
    evaluations: tuple[Path, ...] = ()
    encoder: str | None = None
    encoder_license: Path | None = None
    text_model: str | None = None
    trained_on: tuple[str, ...] | None = None
    dtype: str = "auto"
    max_shard_size: str = "5GB"
    link_code: bool = False
    overwrite: bool = False


def stage_model(settings: ModelSettings) -> Staged:
    """Writes the folder and its record, and returns the record.

    Raises:
        FileExistsError: the output is there.
        FileNotFoundError, ValueError: a checkpoint, evaluation, licence or source that cannot be used, by name.
    """
    refuse_existing(settings.output, settings.overwrite)
    if settings.link_code and not settings.output.resolve().is_relative_to(REPOSITORY):
        raise ValueError(f"--link-code is for a folder within {REPOSITORY}; {settings.output} is not")
    run_config = _read_run_config(Path(settings.model))
    encoder = _encoder(settings, run_config)
    sources = _sources(settings, run_config)
    checkpoint = load_checkpoint(settings.model, dtype=settings.dtype)
    published = (settings.repo_id, checkpoint.fingerprint, _dtype(checkpoint))
    evaluations = [read_evaluation(folder, *published) for folder in settings.evaluations]
    reference = probe_outputs(checkpoint.model, checkpoint.processor)

    partial = fresh_folder(settings.output)
    checkpoint.model.save_pretrained(partial, max_shard_size=settings.max_shard_size)
    checkpoint.processor.save_pretrained(partial)
    for name, keys in LEFTOVERS.items():
        _remove_keys(partial / name, keys)
    _write_licences(partial, encoder, settings.encoder_license, settings.text_model)
    facts = ModelFacts(
        repo_id=settings.repo_id,
        num_parameters=sum(parameter.numel() for parameter in checkpoint.model.parameters()),
        dtype=_dtype(checkpoint),
        encoder=encoder,
        text_model=settings.text_model or "trained from random weights by this project",
        sources=sources,
        processor=describe_processor(checkpoint),
        evaluations=evaluations,
        run_config=run_config,
    )
    (partial / "README.md").write_text(model_card(facts), encoding="utf-8")
    staged = Staged("model", settings.repo_id, hash_files(partial), {"auto_map": AUTO_MAP, "dtype": facts.dtype})
    if settings.link_code:
        _link_code(partial, settings.output)
    put_in_place(partial, settings.output)
    write_staged(settings.output, staged)
    save_file(reference, record_folder(settings.output) / REFERENCE)
    return staged


def describe_processor(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the card says of how views are read."""
    image_processor = checkpoint.processor.image_processor
    return {
        "max_views": image_processor.max_views,
        "image_height": image_processor.size.height,
        "image_width": image_processor.size.width,
        "num_latents": checkpoint.processor.num_latents,
        "use_geometry_tokens": checkpoint.processor.use_geometry_tokens,
    }


def _read_run_config(folder: Path) -> dict[str, Any] | None:
    path = folder / RUN_CONFIG
    if not path.is_file():
        return None
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _encoder(settings: ModelSettings, run_config: dict[str, Any] | None) -> Encoder:
    """The origin of the weights: as stated, or from scratch where the run began with a configuration.

    Raises:
        FileNotFoundError, ValueError: it is not known, or its licence wants a copy that was not given.
    """
    began_random = run_config is not None and str(run_config.get("model", "")).endswith(".json")
    name = settings.encoder or ("scratch" if began_random else None)
    if name not in ENCODERS:
        known = f"{name!r}" if name else "not recorded"
        if not Path(settings.model).is_dir():
            known += f" (there is no folder {settings.model})"
        raise ValueError(
            f"where the weights of the encoder come from is {known}: say --encoder with one of {', '.join(ENCODERS)}, "
            "for its licence becomes the model's"
        )
    encoder = ENCODERS[name]
    if encoder.wants_copy and settings.encoder_license is None:
        raise ValueError(
            f"the licence of {encoder.base_model} wants a copy of itself beside the weights: "
            "give the file that came with them by --encoder-license"
        )
    if encoder.wants_copy and not settings.encoder_license.is_file():
        raise FileNotFoundError(
            f"--encoder-license names {settings.encoder_license}, and there is no such file: give the agreement that "
            f"came with {encoder.base_model}"
        )
    if name != "scratch" and settings.text_model is None:
        raise ValueError("say --text-model: the Hub id of the text model, for instance Qwen/Qwen3-4B-Instruct-2507")
    return encoder


def _sources(settings: ModelSettings, run_config: dict[str, Any] | None) -> list[DataSource]:
    """The sources of the training data.

    Raises:
        ValueError: they are neither stated nor recorded, or their terms are not known.
    """
    if settings.trained_on:
        return find_sources(settings.trained_on)
    names: set[str] = set()
    for root in (run_config or {}).get("dataset") or []:
        try:
            manifest = read_manifest(root)
        except NotADatasetError:
            raise ValueError(
                f"the run was trained on {root}, which is not here any more: say --trained-on with its sources"
            ) from None
        names |= {source for splits in manifest.counts.values() for each in splits.values() for source in each}
    if not names:
        raise ValueError("what the model was trained on is not recorded: say --trained-on with its sources")
    return find_sources(names)


def _link_code(folder: Path, place: Path) -> None:
    """Replaces copies of the project's modules by links that hold once the folder lies at `place`."""
    for module in (path for package in CODE for path in sorted((REPOSITORY / package).glob("*.py"))):
        copy = folder / module.name
        if copy.is_file() and copy.read_bytes() == module.read_bytes():
            copy.unlink()
            copy.symlink_to(os.path.relpath(module, place.resolve()))


def _remove_keys(path: Path, keys: tuple[str, ...]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in values.items() if key not in keys}
    if kept != values:
        path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_licences(folder: Path, encoder: Encoder, encoder_license: Path | None, text_model: str | None) -> None:
    shutil.copyfile(REPOSITORY / "LICENSE", folder / "LICENSE")
    if encoder.wants_copy:
        shutil.copyfile(encoder_license, folder / encoder.licence_link)
    paragraphs = [
        "VGGT-Qwen3 RoomPlan",
        "The code is licensed under the Apache License, version 2.0: see LICENSE.",
        encoder.notice,
    ]
    if text_model is not None:
        paragraphs.append(
            f"The text model began as {text_model} (https://huggingface.co/{text_model}), under its licence."
        )
    (folder / "NOTICE").write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")


def _dtype(checkpoint: Checkpoint) -> str:
    return str(checkpoint.model.dtype).removeprefix("torch.")
