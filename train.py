"""Trains the model: configuration -> processor, model, trainable set, data, trainer -> outputs/<run>/.

python train.py                                            the embedded default: procedural rooms, tiny model
python train.py --config stage1_3dqa.yaml                  a recipe from configs/
accelerate launch train.py --deepspeed ds_zero3.json       one CPU, one GPU or many
python train.py --config stage1_3dqa.yaml --debug          everything once, in 100 small steps
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from peft import PeftModel
from transformers import PreTrainedModel, set_seed
from transformers.utils import logging as library_logging

from processing.processing_vggt_qwen3 import VggtQwen3Processor
from training.adapters import add_adapters
from training.arguments import (
    DataArguments,
    ModelArguments,
    SceneTrainingArguments,
    debug_words,
    known_keys,
    parse_arguments,
    uses_deepspeed,
)
from training.assembly import load_model
from training.checkpoints import (
    check_resumable,
    clear_staging,
    drop_later,
    find_checkpoint,
    set_aside,
    writing,
)
from training.data import SceneDataset
from training.embedded import embedded_dataset
from training.encoder import compile_parts, place_encoder, put_back
from training.feature_cache import CachedSceneDataset, cache_identity
from training.fitting import fit
from training.freezing import log_trainable, set_trainable
from training.guards import STOPPED_BY_SIGNAL, StopAfter
from training.launch import end_process_group, prepare_process, refuse_data_parallel
from training.memory import numel
from training.reshaping import join_states, other_world
from training.small_stages import add_ray_decoder, prepared_scenes, train_encoder
from training.trainer import SceneTrainer, graphs_wanted

logger = logging.getLogger("train")


def main(argv: list[str] | None = None) -> SceneTrainer:
    """Runs one training from the command line's settings and returns its trainer."""
    argv = sys.argv[1:] if argv is None else argv
    prepare_process(uses_deepspeed(argv))
    if "--debug" not in argv:
        return run(argv)
    words = debug_words([word for word in argv if word != "--debug"])
    model_args, _, args = parse_arguments(words)
    if model_args.objective != "answers":
        raise ValueError(f"--debug tries the training of answers; for objective {model_args.objective} set --max_steps")
    half = args.max_steps // 2
    run(words, stop_after=half)
    AcceleratorState._reset_state()  # DeepSpeed takes no second engine beside the first
    gc.collect()
    trainer = run([*words, "--resume_from_checkpoint", "latest"])
    logger.info("debug: training, evaluation, answers, saving and resuming (behind step %d) all work", half)
    return trainer


def run(argv: list[str], stop_after: int | None = None) -> SceneTrainer:
    """Trains as these words say; `stop_after`: save and stop at this step, as if the time were over."""
    model_args, data_args, args = parse_arguments(argv)
    refuse_data_parallel(args.n_gpu)
    graphs_wanted(args, data_args.prepare_data is not None)  # a refusal comes before any data is built
    _set_up_logging(args)
    set_seed(args.seed)

    with args.main_process_first(desc="data"):
        data_args.dataset = data_args.dataset or [embedded_dataset()]
    joined = False
    with args.main_process_first(desc="checkpoints"):
        checkpoint = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
        if checkpoint is not None:
            check_resumable(checkpoint, args.step_conditions())
            if joined := other_world(checkpoint, args.step_conditions()):
                join_states(checkpoint)
        if args.process_index == 0:
            _prepare_run_folder(args.output_dir, checkpoint)
    train_dataset = _dataset(data_args, "train", data_args.max_train_samples)
    eval_dataset = None
    if args.eval_strategy != "no":
        eval_dataset = _dataset(data_args, data_args.eval_split, data_args.max_eval_samples)

    if args.safe:
        dataset = data_args.dataset
        model_args, data_args, args = parse_arguments([*argv, *fit(model_args, data_args, args, train_dataset)])
        data_args.dataset = dataset
    if joined:
        args.load_joined_states()
    model, processor = _model(model_args, args.device)
    if model_args.objective == "reconstruction":
        settings = _run_config(model_args, data_args, args)
        return train_encoder(model, processor, train_dataset, model_args, data_args, args, settings)
    prepared = prepared_scenes(train_dataset, processor, data_args, args)
    callbacks = add_ray_decoder(model, model_args, prepared)
    place_encoder(model, model_args, data_args, args)
    if data_args.feature_cache:
        train_dataset.refuse_stale(cache_identity(model, processor, data_args))
    compile_parts(model, model_args.compile_parts, bool(args.deepspeed))
    trainable = sum(numel(p) for p in model.parameters() if p.requires_grad)
    logger.info("%s parameters train on %s samples", f"{trainable:,}", f"{len(train_dataset):,}")

    trainer = SceneTrainer(
        model=model,
        args=args,
        data_args=data_args,
        processor=processor,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        run_config=_run_config(model_args, data_args, args),
        callbacks=callbacks,
        prepared=prepared,
    )
    if stop_after is not None:
        trainer.add_callback(StopAfter(stop_after))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if stop_after is not None:
        return trainer
    if trainer.stopped_early:
        logger.info(
            "stopped by a signal at step %d; the same command with --resume_from_checkpoint latest goes on",
            trainer.state.global_step,
        )
        end_process_group(STOPPED_BY_SIGNAL)
        raise SystemExit(STOPPED_BY_SIGNAL)
    with writing("the trained model", args.output_dir):
        trainer.save_model()
        trainer.save_state()
    put_back(model)
    logger.info("saved to %s", args.output_dir)
    return trainer


def _prepare_run_folder(run: str, checkpoint: Path | None) -> None:
    """Leaves no checkpoint of another run, or of another future of this one, where this run will write its own."""
    clear_staging(run)
    if checkpoint is not None:
        drop_later(run, checkpoint)
    elif moved := set_aside(run):
        logger.info("%s held an earlier run; it is in %s now", run, moved)


def _dataset(data_args: DataArguments, split: str, max_samples: int | None) -> SceneDataset:
    options = (data_args.dataset, split, data_args.num_views, data_args.tasks, max_samples)
    return CachedSceneDataset(data_args.feature_cache, *options) if data_args.feature_cache else SceneDataset(*options)


def _model(args: ModelArguments, device: torch.device) -> tuple[PreTrainedModel | PeftModel, VggtQwen3Processor]:
    """Model and processor, its trainable set chosen, with adapters where they are asked for."""
    model, processor = load_model(
        args.model,
        args.tokenizer,
        args.attn_implementation,
        args.task_weights,
        args.image_size,
        args.dtype,
        args.text_model,
        args.feature_pooling,
        device,
        args.vision_checkpoint,
    )
    set_trainable(model, args.trainable_parts, args.frozen_text_layers)
    if args.lora_rank:
        model = add_adapters(model, **args.adapter_settings())
    log_trainable(model)
    return model, processor


def _run_config(model_args: ModelArguments, data_args: DataArguments, args: SceneTrainingArguments) -> dict[str, Any]:
    """Every setting as it was resolved, with secrets left out: a file that `--config` reads."""
    settings = {**dataclasses.asdict(model_args), **dataclasses.asdict(data_args), **args.to_dict()}
    return {key: value for key, value in settings.items() if key in known_keys() and not key.endswith("token")}


def _set_up_logging(args: SceneTrainingArguments) -> None:
    is_main = args.process_index == 0
    logging.basicConfig(
        format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.INFO if is_main else logging.ERROR
    )
    library_logging.set_verbosity_warning()
    library_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")  # DeepSpeed, every step


if __name__ == "__main__":
    main()
    end_process_group()
