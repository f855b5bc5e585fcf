"""Writes the feature cache of a run: what its frozen encoder makes of every set of views, once.

python -m training.features --config my_run.yaml --feature_cache caches/my_run
accelerate launch -m training.features --config my_run.yaml --feature_cache caches/my_run   # several GPUs share it
python train.py --config my_run.yaml --feature_cache caches/my_run

It takes the settings of the run itself, so that both agree. Begun again, it goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from transformers import set_seed

from modeling_vggt_qwen3.modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration
from processing.processing_vggt_qwen3 import VggtQwen3Processor

from .arguments import DataArguments, ModelArguments, SceneTrainingArguments, parse_arguments
from .assembly import load_model
from .collator import drop_views
from .data import SceneDataset
from .encoder import cast_parameters, compile_parts
from .feature_cache import (
    CACHE_NAME,
    DEPTH_KEYS,
    FEATURE_DTYPES,
    PARTIAL_NAME,
    ViewSet,
    cache_identity,
    quantize,
    refuse_stale,
    wanted_sets,
)
from .launch import end_process_group

logger = logging.getLogger("features")

KEPT_KEYS = ("intrinsics", *DEPTH_KEYS, "patch_mask")
LOG_SECONDS = 20.0


class ViewSetDataset(TorchDataset):
    """Sets of views -> the scene tensors of the batch table with S = 1, and the names of the frames."""

    def __init__(
        self,
        dataset: SceneDataset,
        view_sets: Sequence[ViewSet],
        processor: VggtQwen3Processor,
        view_dropout: float,
        seed: int,
    ) -> None:
        self.dataset, self.view_sets, self.processor = dataset, view_sets, processor
        self.view_dropout, self.seed = view_dropout, seed

    def __len__(self) -> int:
        return len(self.view_sets)

    def __getitem__(self, index: int) -> tuple[ViewSet, list[str], dict[str, torch.Tensor]]:
        view_set = self.view_sets[index]
        example = drop_views(self.dataset[view_set.draw(self.seed)], self.view_dropout)
        batch = self.processor(
            images=[example.images],
            intrinsics=[example.intrinsics],
            world_from_cam=[example.world_from_cam],
            depth=[example.depth],
        )
        return view_set, example.frame_ids, dict(batch)


def main(argv: list[str] | None = None) -> Path:
    """Writes what is missing of the cache that the command line names and returns its folder."""
    argv = sys.argv[1:] if argv is None else argv
    model_args, data_args, args = parse_arguments([*argv, "--deepspeed", ""])  # the encoder alone needs none of it
    _check(data_args)
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    state = PartialState()
    set_seed(args.seed)
    splits = ["train"] + ([data_args.eval_split] if args.eval_strategy != "no" else [])
    datasets = [_dataset(data_args, split) for split in splits]
    model, processor = _load(model_args, args)
    identity = cache_identity(model, processor, data_args)
    folder = Path(data_args.feature_cache)
    seed = begin(folder, identity, args.seed) if state.is_main_process else None
    state.wait_for_everyone()
    seed = _read(folder / PARTIAL_NAME)["seed"] if seed is None else seed
    counts = {}
    for dataset in datasets:
        wanted = wanted_sets(dataset, data_args.view_sets)
        (folder / dataset.split).mkdir(exist_ok=True)
        missing = [view_set for view_set in wanted if not view_set.path(folder, dataset.split).is_file()]
        counts[dataset.split] = len(wanted)
        state.wait_for_everyone()  # all ranks count before any of them writes
        mine = missing[state.process_index :: state.num_processes]
        views = ViewSetDataset(dataset, mine, processor, data_args.view_dropout, seed)
        write_sets(folder, views, model, data_args.feature_dtype, args)
    state.wait_for_everyone()
    if state.is_main_process:
        finish(folder, identity, seed, counts)
    return folder


def begin(folder: Path, identity: dict[str, Any], seed: int) -> int:
    """Makes the folder say what it is going to hold, and returns the seed that its views are drawn by.

    Raises:
        StaleCacheError: where it holds, or was begun for, something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CACHE_NAME, PARTIAL_NAME):
        if (folder / name).is_file():
            earlier = _read(folder / name)
            refuse_stale(folder, earlier["identity"], identity)
            seed = earlier["seed"]
    _write(folder / PARTIAL_NAME, {"identity": identity, "seed": seed})
    (folder / CACHE_NAME).unlink(missing_ok=True)
    return seed


def finish(folder: Path, identity: dict[str, Any], seed: int, counts: dict[str, int]) -> None:
    """Declares the cache complete."""
    files = list(folder.glob("*/*.safetensors"))
    total = sum(path.stat().st_size for path in files)
    _write(folder / CACHE_NAME, {"identity": identity, "seed": seed, "view_sets": counts, "bytes": total})
    (folder / PARTIAL_NAME).unlink()
    logger.info("%s is complete: %d sets of views, %.2f GB", folder, len(files), total / 1e9)


@torch.inference_mode()
def write_sets(
    folder: Path,
    views: ViewSetDataset,
    model: VggtQwen3ForConditionalGeneration,
    feature_dtype: str,
    args: SceneTrainingArguments,
) -> None:
    """Encodes sets of views one by one, each into a file that appears once it is whole.

    Raises:
        OSError: before the second is written, where the disk cannot hold them all.
    """
    workers = args.dataloader_num_workers
    loader = DataLoader(views, batch_size=None, num_workers=workers, prefetch_factor=2 if workers else None)
    split, total = views.dataset.split, len(views)
    start = shown = time.monotonic()
    for done, (view_set, frame_ids, batch) in enumerate(loader, start=1):
        tensors = encode_set(model, batch, feature_dtype, args.device)
        path = view_set.path(folder, split)
        size = tuple(batch["pixel_values"].shape[-2:])
        _save(path, tensors, {"frame_ids": json.dumps(frame_ids), "image_size": json.dumps(size)})
        if done == 1:
            _refuse_small_disk(folder, path.stat().st_size * (total - 1))
        now = time.monotonic()
        if now - shown > LOG_SECONDS or done == total:
            rate = done / (now - start)
            logger.info("%s: %d of %d sets of views, %.1f a second", split, done, total, rate)
            shown = now


def encode_set(
    model: VggtQwen3ForConditionalGeneration, batch: dict[str, torch.Tensor], feature_dtype: str, device: torch.device
) -> dict[str, torch.Tensor]:
    """Tensors of one file: `features.<layer>`, with int8 `scales.<layer>`, and what else depends on the views alone."""
    maps = model.model.encode_views(batch["pixel_values"].to(device), None)
    tensors = {key: batch[key][0] for key in KEPT_KEYS if key in batch}
    for layer, features in maps.items():
        if feature_dtype == "int8":
            tensors[f"features.{layer}"], tensors[f"scales.{layer}"] = quantize(features[0])
        else:
            tensors[f"features.{layer}"] = features[0].to(torch.bfloat16)
    return {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}


def _check(data_args: DataArguments) -> None:
    faults = []
    if not data_args.feature_cache:
        faults.append("feature_cache is not set: name the folder to write")
    if not data_args.dataset:
        faults.append("dataset is not set: name the folders to read")
    if data_args.view_sets < 1:
        faults.append(f"view_sets is {data_args.view_sets}; wanted at least 1")
    if data_args.feature_dtype not in FEATURE_DTYPES:
        faults.append(f"feature_dtype is {data_args.feature_dtype}; wanted one of {FEATURE_DTYPES}")
    if faults:
        raise ValueError("; ".join(faults))


def _dataset(data_args: DataArguments, split: str) -> SceneDataset:
    limit = data_args.max_train_samples if split == "train" else data_args.max_eval_samples
    return SceneDataset(data_args.dataset, split, data_args.num_views, data_args.tasks, limit)


def _load(
    model_args: ModelArguments, args: SceneTrainingArguments
) -> tuple[VggtQwen3ForConditionalGeneration, VggtQwen3Processor]:
    """The run's processor, and of its model what makes features."""
    model, processor = load_model(
        model_args.model,
        model_args.tokenizer,
        model_args.attn_implementation,
        image_size=model_args.image_size,
        dtype=model_args.dtype,
        text_model=model_args.text_model,
        feature_pooling=model_args.feature_pooling,
        device=args.device,
    )
    encoder = model.model.vision_model
    if args.bf16:
        cast_parameters(encoder, torch.bfloat16)
    model.lm_head = model.model.language_model = None  # frees what is not needed
    encoder.to(args.device).eval()
    compile_parts(model, [part for part in model_args.compile_parts if part == "vision"], deepspeed=False)
    return model, processor


def _refuse_small_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder} needs {needed / 1e9:.0f} GB more, and its disk has {free / 1e9:.0f} GB free: lower view_sets, "
            "choose feature_dtype int8 or feature_pooling 2, or another disk"
        )


def _save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata)
    part.replace(path)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, content: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    main()
    end_process_group()
