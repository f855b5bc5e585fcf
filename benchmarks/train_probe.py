"""Where the time of a training step goes: marks set on the device's own clock around the parts of the real trainer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from training.adapters import add_adapters
from training.arguments import LORA_TARGETS
from training.encoder import inner_model
from training.freezing import PARTS as PARTS_OF_MODEL
from training.trainer import SceneTrainer

PARTS = ("encoder", "resampler forward", "text forward", "text backward", "resampler backward", "optimizer")
PROFILED_STEPS = 2
Interval = tuple[float, float]


class Marks:
    """Moments of one step, by name; CUDA events on a GPU, so that setting one waits for nothing."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.moments: list[tuple[str, Any]] = []

    def __call__(self, name: str) -> None:
        moment: Any = time.perf_counter()
        if self.on_gpu:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        self.moments.append((name, moment))

    def milliseconds(self) -> dict[str, float]:
        """Part -> time between `<part>` and the `end` that follows it, summed; read once the device has finished."""
        spent = dict.fromkeys(PARTS, 0.0)
        begun: dict[str, Any] = {}
        for name, moment in self.moments:
            part = name.removesuffix(" end")
            if part == name:
                begun[part] = moment
            elif part in begun:
                start = begun.pop(part)
                spent[part] += start.elapsed_time(moment) if self.on_gpu else 1000 * (moment - start)
        return spent


class ProbedTrainer(SceneTrainer):
    """The trainer of train.py with marks around its parts; it writes nothing.

    Class attributes are set by the benchmark, since train.py makes the instance.
    """

    warmup, lora_rank, frozen_layers, profile_path = 3, 0, 0, None
    latest: ProbedTrainer | None = None

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        if self.lora_rank:  # train.py makes adapters of a checkpoint alone, and there is none
            parts = [part for part in PARTS_OF_MODEL if part != "vision"]
            model = add_adapters(model, parts, self.frozen_layers, self.lora_rank, None, 0.0, LORA_TARGETS)
        super().__init__(model, *args, **kwargs)
        type(self).latest = self
        self.on_gpu = self.args.device.type == "cuda"
        self.marks = Marks(self.on_gpu)
        self.steps: list[dict[str, float]] = []
        self.waited_ms: list[float] = []
        self.num_tokens = self.num_questions = 0
        self.began = self.ended = 0.0
        self.profiler: profile | None = None
        self._mark_modules(inner_model(model))
        self.add_callback(_Steps(self))

    def _mark_modules(self, inner: Any) -> None:
        for name, module in (("encoder", inner.vision_model), ("resampler forward", inner.resampler)):
            module.register_forward_pre_hook(lambda *_, name=name: self.marks(name))
            module.register_forward_hook(lambda *_, name=name: self.marks(f"{name} end"))
        inner.resampler.register_forward_hook(self._mark_gradient)
        inner.language_model.register_forward_pre_hook(lambda *_: self.marks("text forward"))

    def _mark_gradient(self, module: Any, inputs: Any, outputs: tuple[torch.Tensor, Any]) -> None:
        if outputs[0].requires_grad:
            outputs[0].register_hook(lambda _: self._turn("text backward", "resampler backward"))

    def _turn(self, ended: str, begun: str) -> None:
        self.marks(f"{ended} end")
        self.marks(begun)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        batches = super().get_batch_samples(*args, **kwargs)
        self.waited_ms.append(1000 * (time.perf_counter() - start))
        self.num_tokens += sum(int(batch["attention_mask"].sum()) for batch in batches[0])
        self.num_questions += sum(
            int((batch["labels"] == self.processing_class.end_of_turn_id).sum()) for batch in batches[0]
        )
        return batches

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        self._turn("text forward", "text backward")
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not self.is_deepspeed_enabled:
            self._turn("resampler backward", "optimizer")
        return loss

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: a benchmark leaves no checkpoint."""

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()


class _Steps(TrainerCallback):
    """Begins to measure after the warm-up, and profiles the last steps."""

    def __init__(self, trainer: ProbedTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """DeepSpeed steps its optimizer at the end of the backward pass."""
        trainer = self.trainer
        if trainer.is_deepspeed_enabled:
            step = trainer.deepspeed.step

            def marked(*args: Any, **kwargs: Any) -> Any:
                trainer._turn("resampler backward", "optimizer")
                result = step(*args, **kwargs)
                trainer.marks("optimizer end")
                return result

            trainer.deepspeed.step = marked

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        if state.global_step == trainer.warmup:
            self._begin()
        if trainer.profile_path and state.global_step == state.max_steps - PROFILED_STEPS:
            self._end()
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * trainer.on_gpu
            trainer.profiler = profile(activities=activities)
            trainer.profiler.__enter__()
        trainer.marks = Marks(trainer.on_gpu)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.marks("optimizer end")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        if trainer.began and not trainer.ended:
            trainer.steps.append(trainer.marks)
        if state.global_step == state.max_steps:
            if trainer.profiler is not None:
                trainer.synchronize()
                trainer.profiler.__exit__(None, None, None)
            self._end()

    def _begin(self) -> None:
        trainer = self.trainer
        trainer.synchronize()
        if trainer.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        trainer.num_tokens = trainer.num_questions = 0
        trainer.waited_ms.clear()
        trainer.began = time.perf_counter()

    def _end(self) -> None:
        trainer = self.trainer
        if trainer.ended:
            return
        trainer.synchronize()
        trainer.ended = time.perf_counter()


def measured(trainer: ProbedTrainer) -> dict[str, Any]:
    """Figures of the steps between warm-up and profile, of this process; rates are those of all processes."""
    count, world = len(trainer.steps), trainer.args.world_size
    seconds = trainer.ended - trainer.began
    parts = [marks.milliseconds() for marks in trainer.steps]
    share = count / max(1, len(trainer.waited_ms))  # the loader has run ahead of the profiled steps, if any
    figures = {
        "steps": count,
        "step_ms": 1000 * seconds / count,
        "samples_per_second": trainer.num_questions * share * world / seconds,
        "tokens_per_second": trainer.num_tokens * share * world / seconds,
        "samples_a_step": trainer.num_questions * share * world / count,
        "tokens_a_step": trainer.num_tokens * share * world / count,
        "parts_ms": {part: statistics.median(step[part] for step in parts) for part in PARTS},
        "data_wait_ms": statistics.median(trainer.waited_ms),
        "loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1:],
    }
    figures["parts_ms"]["rest"] = figures["step_ms"] - sum(figures["parts_ms"].values())
    if trainer.on_gpu:
        figures["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        figures["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
    return figures


def profiled(trainer: ProbedTrainer, path: Path, rows: int = 40) -> dict[str, float]:
    """Writes a table of operations; returns the milliseconds a step of communication, and of those that it is alone."""
    on_gpu = trainer.on_gpu
    key = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    averages = trainer.profiler.key_averages()
    path.write_text(averages.table(sort_by=key, row_limit=rows, max_name_column_width=90), encoding="utf-8")
    if not on_gpu:
        return {}
    kernels = [e for e in trainer.profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    spans = {True: [], False: []}
    for kernel in kernels:
        spans["nccl" in kernel.name.lower()].append((kernel.time_range.start, kernel.time_range.end))
    busy = length(merged(spans[True] + spans[False]))
    alone = busy - length(merged(spans[False]))
    scale = 1 / (1000 * PROFILED_STEPS)
    return {
        "communication_ms": length(merged(spans[True])) * scale,
        "communication_alone_ms": alone * scale,
        "gpu_busy_ms": busy * scale,
    }


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The same times as intervals that do not overlap."""
    out: list[Interval] = []
    for start, end in sorted(intervals):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def length(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in intervals)
