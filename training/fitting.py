"""`--safe`: fits the batch to the memory that is there, and keeps the samples of a step.

A model of the run's sizes with random weights takes two trial steps on this device, so that what activations need is
measured; weights, gradients and optimizer are counted.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device

from modeling_vggt_qwen3.modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration

from .adapters import add_adapters
from .arguments import DataArguments, ModelArguments, SceneTrainingArguments
from .assembly import describe_model
from .collator import SceneCollator
from .data import SceneBatchSampler, SceneDataset
from .feature_cache import restore_features
from .freezing import set_trainable
from .memory import Memory, in_words, probe, state_bytes

logger = logging.getLogger("train")

RESERVED_SHARE, RESERVED_BYTES = 0.05, 1_000_000_000
"""Left alone: what libraries, kernels and fragmentation take."""
ACTIVATION_MARGIN = 1.15
"""Other batches hold longer questions than the measured one."""
HOST_SHARE = 0.5
WORKER_BYTES = 400_000_000


class DoesNotFitError(RuntimeError):
    """Not even one sample at a time fits."""


@dataclass(frozen=True, order=True)
class Fit:
    """What a process chose; the smallest of all processes' choices holds for all."""

    samples_per_scene: int
    batch: int
    num_workers: int

    def words(self, samples_per_step: int) -> list[str]:
        """As a command line that follows the user's; `samples_per_step`: of one process."""
        values = {
            "samples_per_scene": self.samples_per_scene,
            "per_device_train_batch_size": self.batch,
            "gradient_accumulation_steps": samples_per_step // self.batch,
            "dataloader_num_workers": self.num_workers,
        }
        return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def fit(
    model_args: ModelArguments, data_args: DataArguments, args: SceneTrainingArguments, dataset: SceneDataset
) -> list[str]:
    """Chooses batch, accumulation, questions a scene and workers; every process must call it.

    Returns:
        The choice as words of a command line.

    Raises:
        DoesNotFitError: naming what takes how much, and what would help.
    """
    memory = probe(args.device)
    trial = Trial(model_args, data_args, args, dataset)
    per_process = args.per_device_train_batch_size * args.gradient_accumulation_steps
    try:
        room = memory.device_free * (1 - RESERVED_SHARE) - RESERVED_BYTES * trial.on_gpu - trial.states.total
        chosen, why = _largest_batch(trial, data_args.samples_per_scene, per_process, room, memory)
    finally:
        trial.release()
    workers = _workers(args, memory, trial.batch_bytes)
    agreed = min(gather_object([Fit(*chosen, workers)]))
    logger.info("safe: %s", why)
    logger.info(
        "safe: %d samples a batch x %d accumulated, %d a scene, %d workers (asked for: %d x %d, %d, %d); "
        "a step keeps its %d samples",
        agreed.batch, per_process // agreed.batch, agreed.samples_per_scene, agreed.num_workers,
        args.per_device_train_batch_size, args.gradient_accumulation_steps, data_args.samples_per_scene,
        args.dataloader_num_workers, per_process * args.world_size,
    )  # fmt: skip
    return agreed.words(per_process)


def _largest_batch(
    trial: Trial, samples_per_scene: int, per_process: int, room: float, memory: Memory
) -> tuple[tuple[int, int], str]:
    """(questions a scene, samples a batch) of the largest batch that fits, and the reason in words."""
    needed = 0.0
    for questions in _divisors(samples_per_scene):
        one, two = (trial.activation_bytes(questions, scenes) for scenes in (1, 2))
        needed = ACTIVATION_MARGIN * one
        if needed > room:
            continue
        each = max(1.0, ACTIVATION_MARGIN * (two - one))
        scenes = 1 + int((room - needed) / each) if two < float("inf") else 1
        batch = next(m for m in _divisors(per_process) if m <= scenes * questions and m % questions == 0)
        return (questions, batch), (
            f"{memory.device} has {in_words(memory.device_free)} free, weights, gradients and optimizer take "
            f"{in_words(trial.states.total)}, {in_words(room)} remain; the first scene of a batch, with {questions} "
            f"questions, needs {in_words(needed)}, each further one {in_words(each)}"
        )
    raise DoesNotFitError(
        f"not even one question fits: {memory.device} has {in_words(memory.device_free)} free, weights, gradients and "
        f"optimizer take {in_words(trial.states.total)}, and one question would need {in_words(needed)} more. Set "
        "gradient_checkpointing, lora_rank with dtype bfloat16, fewer num_views, or divide the states among more "
        "processes by --deepspeed ds_zero3.json"
    )


def _divisors(number: int) -> list[int]:
    """Largest first."""
    return [n for n in range(number, 0, -1) if number % n == 0]


def _workers(args: SceneTrainingArguments, memory: Memory, batch_bytes: int) -> int:
    """As many loader processes as were asked for, where cores and the host's memory carry them."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    each = WORKER_BYTES + batch_bytes * (1 + (args.dataloader_prefetch_factor or 2))
    carried = int(memory.host_free * HOST_SHARE / processes / each)
    cores = len(os.sched_getaffinity(0)) // processes
    return max(0, min(args.dataloader_num_workers, carried, cores))


class Trial:
    """A model of the run's sizes and trainable set on its device, for steps that count memory alone."""

    def __init__(
        self, model_args: ModelArguments, data_args: DataArguments, args: SceneTrainingArguments, dataset: SceneDataset
    ) -> None:
        self.data_args, self.args, self.dataset = data_args, args, dataset
        self.on_gpu = args.device.type == "cuda"
        self.batch_bytes = 0
        config, self.processor = describe_model(
            model_args.model,
            model_args.tokenizer,
            model_args.task_weights,
            model_args.image_size,
            model_args.text_model,
            model_args.feature_pooling,
        )
        config._attn_implementation = model_args.attn_implementation
        zero_stage, half = args.step_conditions()["zero_stage"], bool(args.bf16 or args.fp16)
        dtype = torch.bfloat16 if zero_stage and half else getattr(torch, model_args.dtype)
        with torch.random.fork_rng(devices=[args.device] if self.on_gpu else []), torch.device(args.device):
            model = VggtQwen3ForConditionalGeneration(config).to(dtype)
        set_trainable(model, model_args.trainable_parts, model_args.frozen_text_layers)
        if model_args.lora_rank:
            model = add_adapters(model, **model_args.adapter_settings())
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
        self.task_names = config.task_names
        self.model = model.train()
        self.states = state_bytes(model.parameters(), zero_stage, args.world_size, half)

    def activation_bytes(self, samples_per_scene: int, num_scenes: int) -> float:
        """What a batch needs beside weights and gradients; infinite where it does not fit beside this model."""
        batch = self._batch(samples_per_scene, num_scenes)
        self.batch_bytes = sum(tensor.nbytes for tensor in _tensors(batch))
        if not self.on_gpu:
            return _saved_bytes(lambda: self.model(**batch).loss)
        try:
            for _ in range(2):  # the gradients are there from the first on, so the second adds activations alone
                before = torch.cuda.memory_allocated(self.args.device)
                torch.cuda.reset_peak_memory_stats(self.args.device)
                with self._autocast():
                    loss = self.model(**batch).loss
                loss.backward()
                del loss
        except torch.cuda.OutOfMemoryError:
            self.model.zero_grad()
            torch.cuda.empty_cache()
            return float("inf")
        return torch.cuda.max_memory_allocated(self.args.device) - before

    def release(self) -> None:
        """Gives the memory back."""
        del self.model
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def _batch(self, samples_per_scene: int, num_scenes: int) -> dict[str, Any]:
        """The largest of some real batches."""
        sampler = SceneBatchSampler(
            self.dataset, samples_per_scene * num_scenes, samples_per_scene, self.args.seed, self.data_args.task_mix
        )
        draws = max((draws for draws, _ in zip(sampler, range(16))), key=lambda b: sum(len(d.samples) for d in b))
        collator = SceneCollator(self.processor, self.task_names, pack=self.data_args.pack_questions)
        batch = collator([self.dataset[d] for d in draws])
        return restore_features(send_to_device(batch, self.args.device))

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if not (self.args.bf16 or self.args.fp16):
            return contextlib.nullcontext()
        return torch.autocast(self.args.device.type, torch.bfloat16 if self.args.bf16 else torch.float16)


def _tensors(batch: dict[str, Any]) -> Iterator[torch.Tensor]:
    """Of a batch, those of cached features too."""
    for value in batch.values():
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, torch.Tensor):
            yield value


def _saved_bytes(forward: Callable[[], Any]) -> float:
    """Bytes that a forward pass keeps for the backward pass: what is measured where no device counts."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        forward()
    return float(sum(kept.values()))


__all__ = ["DoesNotFitError", "fit"]
