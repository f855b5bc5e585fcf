"""`SceneTrainer`: the library's Trainer with scene batches, a loss over tasks, and checkpoints that load anywhere."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.trainer import TRAINING_ARGS_NAME

from modeling_vggt_qwen3.modeling_vggt import SDPA_BACKENDS
from modeling_vggt_qwen3.modeling_vggt_qwen3 import IGNORE_INDEX, VggtQwen3ForConditionalGeneration
from processing.processing_vggt_qwen3 import VggtQwen3Processor

from .answers import AnswerCheck
from .arguments import DataArguments, SceneTrainingArguments
from .callbacks import ProgressLines, RunLog, mean_parts
from .checkpoints import STAGING, complete_checkpoints, remove_checkpoint, seal, writing
from .collator import SceneCollator
from .data import SceneBatchSampler, SceneDataset, deal
from .encoder import whole
from .feature_cache import restore_features
from .freezing import part_of
from .graphed_step import GraphedStep, begin_step
from .guards import FiniteLossGuard, StopOnSignal, explain_lost_worker, leave_signals_to_parent
from .outlook import Outlook
from .prepared import DrawnScenes, PreparedCollator, PreparedScenes

RUN_CONFIG = "run_config.yaml"
CUDNN_HEAD_DIM = 64
WITHOUT_CUDNN = [backend for backend in SDPA_BACKENDS if backend != SDPBackend.CUDNN_ATTENTION]
RAY_DECODER = "ray_decoder.safetensors"


def graphs_wanted(args: SceneTrainingArguments, is_prepared: bool = True) -> bool:
    """Whether steps are to be recorded as CUDA graphs.

    Raises:
        ValueError: where they could not be.
    """
    if not args.cuda_graphs:
        return False
    obstacles = {
        "the device is a CPU": args.device.type != "cuda",
        "several processes train": args.world_size > 1,
        "gradient_accumulation_steps is above 1": args.gradient_accumulation_steps > 1,
        "fp16 scales the loss": args.fp16,
        "DeepSpeed owns the gradients": bool(args.deepspeed),
        "gradient_checkpointing looks at the state of random numbers": args.gradient_checkpointing,
        "safe measures steps without graphs": args.safe,
        "prepare_data is not set: other batches come in too many shapes": not is_prepared,
    }
    found = [why for why, is_so in obstacles.items() if is_so]
    if found:
        raise ValueError(f"cuda_graphs cannot be followed: {'; '.join(found)}. Set cuda_graphs: false")
    return True


class SceneLoader(DataLoader):
    """A DataLoader whose batch sampler hears of the epoch, and that says why a worker was lost."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from super().__iter__()
        except RuntimeError as error:
            explained = explain_lost_worker(error)
            if explained is None:
                raise
            raise explained from error


class SceneTrainer(Trainer):
    """Trains on scene batches.

    Args:
        model, args, processor: as everywhere.
        data_args: views, questions a scene, dropouts and the mix of tasks.
        train_dataset, eval_dataset: the latter may be None.
        run_config: the resolved settings, written beside every checkpoint.
        prepared: the arrays of train_dataset, which then feed the training; a ray decoder needs them.
    """

    def __init__(
        self,
        model: VggtQwen3ForConditionalGeneration,
        args: SceneTrainingArguments,
        data_args: DataArguments,
        processor: VggtQwen3Processor,
        train_dataset: SceneDataset,
        eval_dataset: SceneDataset | None = None,
        run_config: dict[str, Any] | None = None,
        callbacks: list[Any] | None = None,
        prepared: PreparedScenes | None = None,
    ) -> None:
        self.prepared = prepared
        self.data_args, self.run_config = data_args, run_config or {}
        self.num_checkpoints_kept, args.save_total_limit = args.save_total_limit, None  # see _save_checkpoint
        args.prediction_loss_only = True
        self.task_names = model.config.task_names
        super().__init__(
            model=model,
            args=args,
            data_collator=SceneCollator(
                processor,
                self.task_names,
                geometry_dropout=data_args.geometry_dropout,
                depth_dropout=data_args.depth_dropout,
                view_dropout=data_args.view_dropout,
                any_answer=data_args.any_answer,
                pack=data_args.pack_questions,
            ),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processor,
            callbacks=callbacks,
        )
        for other in (ProgressCallback, PrinterCallback):
            self.remove_callback(other)
        self.outlook = Outlook(self.num_checkpoints_kept)
        for callback in (ProgressLines(), RunLog(), self.outlook):
            self.add_callback(callback)
        self.stop_on_signal = StopOnSignal()
        self.add_callback(self.stop_on_signal)
        self.loss_guard = FiniteLossGuard(self._describe_batch)
        self.answer_check = self._answer_check(processor)
        self._micro_batch, self._step_of_micro_batch = 0, -1
        self._saved_step: int | None = None
        self._clock: tuple[int, float] | None = None
        self._samples_seen = 0
        self._ray_losses: list[dict[str, torch.Tensor]] = []
        self._copy_stream: torch.cuda.Stream | None = None
        self.graphs = GraphedStep(self._compute, model) if graphs_wanted(args, prepared is not None) else None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See `Trainer.train`; attention of large heads prefers cuDNN, the fastest that takes the mask of packed rows.

        That holds until the end, so that what gradient checkpointing computes again is computed alike. Small heads gain
        nothing that would pay for planning each new shape, which torch would choose by itself on recent GPUs.
        """
        is_small = self.model.config.text_config.head_dim < CUDNN_HEAD_DIM
        with sdpa_kernel(WITHOUT_CUDNN if is_small else SDPA_BACKENDS, set_priority=True):
            return super().train(*args, **kwargs)

    # Data: batches are dealt to ranks by the sampler, so the loader is not prepared by accelerate.

    def get_train_dataloader(self) -> DataLoader:
        sampler = SceneBatchSampler(
            self.train_dataset,
            samples_per_batch=self.args.per_device_train_batch_size,
            samples_per_scene=self.data_args.samples_per_scene,
            seed=self.args.seed,
            task_mix=self.data_args.task_mix,
            rank=self.args.process_index,
            world_size=self.args.world_size,
        )
        self._train_sampler = sampler
        if self.prepared is not None:
            drawn = DrawnScenes(self.train_dataset)
            return SceneLoader(drawn, batch_sampler=sampler, collate_fn=self._prepared_collator())
        return self._loader(self.train_dataset, sampler)

    def _prepared_collator(self) -> PreparedCollator:
        return PreparedCollator(
            self.prepared,
            self.train_dataset,
            self.processing_class,
            self.task_names,
            geometry_dropout=self.data_args.geometry_dropout,
            depth_dropout=self.data_args.depth_dropout,
            any_answer=self.data_args.any_answer,
            num_rays=self.data_args.num_rays if self.model.ray_decoder is not None else 0,
            few_shapes=self.args.cuda_graphs,
        )

    def get_eval_dataloader(self, eval_dataset: SceneDataset | None = None) -> DataLoader:
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        draws = dataset.fixed_draws(self.data_args.samples_per_scene)
        scenes = max(1, self.args.per_device_eval_batch_size // self.data_args.samples_per_scene)
        batches = [draws[i : i + scenes] for i in range(0, len(draws), scenes)]
        return self._loader(dataset, deal(batches, self.args.process_index, self.args.world_size))

    def _answer_check(self, processor: VggtQwen3Processor) -> AnswerCheck | None:
        if self.eval_dataset is None or not self.data_args.eval_generate_samples:
            return None
        return AnswerCheck(
            self.eval_dataset,
            processor,
            self.task_names,
            self.data_args.eval_generate_samples,
            self.args.per_device_eval_batch_size,
            self.data_args.eval_max_new_tokens,
        )

    def _loader(self, dataset: SceneDataset, batch_sampler: Any) -> DataLoader:
        workers = self.args.dataloader_num_workers
        return SceneLoader(
            dataset,
            batch_sampler=batch_sampler,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            worker_init_fn=leave_signals_to_parent,
        )

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """On the device, cached features as the model takes them; a view mask that masks nothing is left out here,
        where reading it does not wait for the GPU."""
        if "view_mask" in inputs and bool(inputs["view_mask"].all()):
            inputs = {key: value for key, value in inputs.items() if key != "view_mask"}
        return restore_features(super()._prepare_inputs(inputs))

    def _prepare_input(self, data: Any) -> Any:
        """Moves tensors without casting them: under DeepSpeed the library would turn cameras into bf16."""
        if not isinstance(data, torch.Tensor):
            return super()._prepare_input(data)
        if not data.is_pinned():
            return data.to(self.args.device, non_blocking=True)
        return self._copy_aside(data)

    def _copy_aside(self, data: torch.Tensor) -> torch.Tensor:
        """To the GPU on a stream of its own, while the step before still computes: cached features are 0.15 GB a
        scene."""
        if self._copy_stream is None:
            self._copy_stream = torch.cuda.Stream(self.args.device)
        with torch.cuda.stream(self._copy_stream):
            moved = data.to(self.args.device, non_blocking=True)
        current = torch.cuda.current_stream(self.args.device)
        current.wait_stream(self._copy_stream)
        moved.record_stream(current)
        return moved

    # Loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor:
        """Weight of every task's answer tokens, float32 [tasks], over all micro-batches and ranks of this step."""
        sums = torch.zeros(len(self.task_names), device=device)
        for batch in batch_samples:
            labelled = batch["labels"][:, 1:] != IGNORE_INDEX
            tasks = batch["task_ids"][:, 1:][labelled]
            ones = torch.ones(len(tasks), device=tasks.device)
            weights = batch["token_weights"][:, 1:][labelled] if "token_weights" in batch else ones
            batch_sums = torch.zeros(len(sums), device=tasks.device).index_add_(0, tasks, weights)
            sums += batch_sums.to(device, non_blocking=True)  # a blocking copy would wait for the step before
            self._samples_seen += int((batch["labels"] == self.processing_class.end_of_turn_id).sum())
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums, "sum")
        return sums

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """See `Trainer.compute_loss`; the ray decoder's losses are means, of which a step sums one a batch and rank."""
        if "ray_targets" in inputs:
            batches = self.args.gradient_accumulation_steps * self.args.world_size
            inputs["ray_targets"] = {**inputs["ray_targets"], "share": batches}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training and self.graphs is None and outputs.get("auxiliary_losses"):
            self._ray_losses.append(outputs.auxiliary_losses)
        return (loss, outputs) if return_outputs else loss

    # Optimizer

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW (or the chosen one) with a group for each part's learning rate and weight decay."""
        if self.optimizer is None:
            model = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(self.parameter_groups(model), **options)
        return self.optimizer

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Trainable parameters by learning rate and decay."""
        rates = {"text": self.args.text_learning_rate, "vision": self.args.vision_learning_rate}
        decayed = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[float, float], dict[str, Any]] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            rate = rates.get(part_of(name))
            rate = self.args.learning_rate if rate is None else rate
            decay = self.args.weight_decay if name in decayed else 0.0
            group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
            group["params"].append(parameter)
        return list(groups.values())

    # Checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Model, processor, remote code, and the settings that made them."""
        with whole(self.model) as encoder:
            super()._save(output_dir, None if state_dict is None else {**state_dict, **encoder})
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle; the settings are in the YAML
            (folder / RUN_CONFIG).write_text(yaml.safe_dump(self.run_config, sort_keys=False), encoding="utf-8")
            decoder = self.accelerator.unwrap_model(self.model).ray_decoder
            if decoder is not None and folder != Path(self.args.output_dir):
                save_file(decoder.state_dict(), folder / RAY_DECODER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """See `Trainer._load_from_checkpoint`; also the ray decoder, which is no part of the model that is saved."""
        decoder = self.accelerator.unwrap_model(self.model if model is None else model).ray_decoder
        with whole(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if decoder is not None:
            path = Path(resume_from_checkpoint) / RAY_DECODER
            try:
                decoder.load_state_dict(load_file(path))
            except RuntimeError as error:
                raise ValueError(f"{path} is of another ray decoder than these settings make: begin anew") from error

    def _get_output_dir(self, trial: Any) -> str:
        """Where checkpoints are written; `seal` moves them out of there."""
        return str(Path(self.args.output_dir) / STAGING)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Seals the checkpoint once every rank has written, and only then drops older ones."""
        step = self.state.global_step
        if step == self._saved_step:
            return
        start = time.monotonic()
        with writing(f"the checkpoint of step {step}", self.args.output_dir):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                seal(
                    Path(self._get_output_dir(trial)) / f"checkpoint-{step}",
                    self.args.output_dir,
                    self.args.step_conditions(),
                )
        self.accelerator.wait_for_everyone()
        self._saved_step = step
        self._exclude_from_rate(start)
        if self.args.should_save and self.num_checkpoints_kept:
            for old in complete_checkpoints(self.args.output_dir)[: -self.num_checkpoints_kept]:
                remove_checkpoint(old)

    # Beginning and ending

    @property
    def stopped_early(self) -> bool:
        """Whether a signal ended training before its last step."""
        return self.stop_on_signal.stopped and self.state.global_step < self.state.max_steps

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """A run resumed behind its last step takes no further one."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing is logged or saved of a step whose loss or gradient is no number."""
        if self.control.should_log or self.control.should_save:
            self.loss_guard.check()
            if not self.args.fp16:  # there the scaler skips such steps
                self.loss_guard.check_gradient(self.state.global_step - 1, grad_norm)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _describe_batch(self, step: int, micro_batch: int) -> str:
        """The scenes of this rank's batches in a step, and where the given micro-batch stands among them."""
        sampler = self._train_sampler
        accumulation = self.args.gradient_accumulation_steps
        epoch, step_in_epoch = divmod(step, -(-len(sampler) // accumulation))
        sampler.set_epoch(epoch)
        first = step_in_epoch * accumulation
        draws = itertools.chain(*itertools.islice(sampler, first, first + accumulation))
        scenes = list(dict.fromkeys(self.train_dataset.scene_id(draw.scene) for draw in draws))
        return f"scenes {', '.join(scenes)} (process {self.args.process_index}, micro-batch {micro_batch + 1})"

    # Progress

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """See `Trainer.training_step`; the first one starts the clock, when a resumed run knows its step."""
        step = self.state.global_step
        if self._clock is None:
            self._clock = (step, time.monotonic())
        loss = (super().training_step if self.graphs is None else self._graphed_step)(*args, **kwargs)
        self._micro_batch = self._micro_batch + 1 if step == self._step_of_micro_batch else 0
        self._step_of_micro_batch = step
        self.loss_guard.watch(step, self._micro_batch, loss)
        return loss

    def _graphed_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        begin_step(self, model)
        inputs = {**self._prepare_inputs(inputs), "num_items_in_batch": num_items_in_batch}
        decoder = self.accelerator.unwrap_model(model).ray_decoder
        numbers = self.graphs(inputs, state=decoder and (decoder.depth_weight, decoder.label_weight))
        loss = numbers.pop("loss")
        if numbers:
            self._ray_losses.append(numbers)
        return loss

    def _compute(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Forward and backward for the graph."""
        batch = {key: value for key, value in inputs.items() if key != "num_items_in_batch"}
        with self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(
                self.model_wrapped, batch, return_outputs=True, num_items_in_batch=inputs["num_items_in_batch"]
            )
        self.accelerator.backward(loss)
        return {"loss": loss, **(outputs.get("auxiliary_losses") or {})}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """See `Trainer.evaluate`, with answers where they are asked for; it does not count as training."""
        start, samples = time.monotonic(), self._samples_seen
        metrics = super().evaluate(*args, **kwargs)
        if self.answer_check is not None:
            with sdpa_kernel(WITHOUT_CUDNN):
                figures = self.answer_check.run(self)  # cuDNN would plan anew for each token's length
            self.log(figures)
            metrics |= figures
        self._samples_seen = samples
        self._exclude_from_rate(start)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds samples (questions) a second, the remaining seconds and the ray decoder's losses to what steps log."""
        if "loss" in logs and self._clock is not None:
            step, now = self.state.global_step, time.monotonic()
            last_step, last_time = self._clock
            seconds = max(now - last_time, 1e-9)
            logs["samples_per_second"] = round(self._samples_seen * self.args.world_size / seconds, 1)
            logs["eta_s"] = round((self.state.max_steps - step) * seconds / max(1, step - last_step))
            self._clock, self._samples_seen = (step, now), 0
            if self._ray_losses:
                logs |= mean_parts(self._ray_losses)
                self._ray_losses.clear()
        super().log(logs, start_time)

    def _exclude_from_rate(self, start: float) -> None:
        seconds = time.monotonic() - start
        self.outlook.exclude(seconds)
        if self._clock is not None:
            step, since = self._clock
            self._clock = (step, since + seconds)


__all__ = ["RUN_CONFIG", "SceneTrainer"]
