"""The shipped recipes: every key of every YAML changes something that can be seen, or is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import train
from training.arguments import CONFIGS, read_yaml
from training.assembly import load_model
from training.trainer import SceneTrainer

RECIPES = {path.name: read_yaml(path) for path in sorted(CONFIGS.glob("*.yaml"))}
FULL_SIZE = [name for name in RECIPES if name.startswith("stage")]
SMALL = {"num_views": 2, "image_size": 28, "max_eval_samples": 8, "eval_generate_samples": 2, "eval_max_new_tokens": 4}
SMALL |= {"dataloader_num_workers": 0, "per_device_eval_batch_size": 2, "report_to": "none", "max_steps": 2}
SMALL |= {
    "eval_steps": 2,
    "frozen_text_layers": 1,
    "samples_per_scene": 2,
    "per_device_train_batch_size": 4,
    "use_cpu": True,
}
"""What takes the place of the recipes' sizes here; each of these keys has its own case all the same."""


@dataclass
class Case:
    """Another value of a key, and what of a trainer must then be seen to differ.

    `also`: settings beside it; `trained`: look after the few steps; `refused`: what is said instead.
    """

    other: Any
    seen: Callable[[SceneTrainer], Any] | None = None
    also: dict[str, Any] = field(default_factory=dict)
    trained: bool = False
    refused: str | None = None


def batches(trainer: SceneTrainer) -> list[dict[str, torch.Tensor]]:
    return list(itertools.islice(trainer.get_train_dataloader(), 6))


def tasks(trainer: SceneTrainer) -> list[list[int]]:
    return [batch["task_ids"].unique().tolist() for batch in batches(trainer)]


def places(trainer: SceneTrainer) -> list[str]:
    return sorted(path.parent.name for path in Path().glob("**/checkpoint-2"))


def rates(trainer: SceneTrainer) -> list[list[float]]:
    """Learning rates of all groups over ten steps."""
    trainer.create_optimizer_and_scheduler(10)
    seen = []
    for _ in range(10):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        seen.append([round(rate, 12) for rate in trainer.lr_scheduler.get_last_lr()])
    return seen


def decays(trainer: SceneTrainer) -> set[float]:
    return {group["weight_decay"] for group in trainer.create_optimizer().param_groups}


def learning(trainer: SceneTrainer) -> dict[str, Any]:
    return {name: tuple(p.shape) for name, p in trainer.model.named_parameters() if p.requires_grad}


def dtypes(trainer: SceneTrainer) -> dict[str, torch.dtype]:
    return {name: p.dtype for name, p in trainer.model.named_parameters()}


def adapters(trainer: SceneTrainer) -> Any:
    config = trainer.model.peft_config["default"]
    return config.lora_alpha, config.lora_dropout, config.target_modules


def weights(trainer: SceneTrainer) -> float:
    return sum(float(p.detach().double().abs().sum()) for p in trainer.model.parameters() if p.requires_grad)


def logged(trainer: SceneTrainer) -> set[str]:
    return {key for entry in trainer.state.log_history for key in entry}


def saved(trainer: SceneTrainer) -> list[str]:
    return sorted(path.name for path in Path(trainer.args.output_dir).glob("checkpoint-*"))


def num_steps(trainer: SceneTrainer) -> int:
    return trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]


def num_logs(trainer: SceneTrainer) -> int:
    return sum("loss" in entry for entry in trainer.state.log_history)


def rays(trainer: SceneTrainer) -> dict[str, Any]:
    return {key: value.shape for key, value in batches(trainer)[0]["ray_targets"].items()}


PREPARED = {"prepare_data": "cpu", "gradient_checkpointing": False}
QUICK = {"bf16": False, "dtype": "float32", "eval_strategy": "no", "gradient_accumulation_steps": 1}
QUICK |= {"save_strategy": "no", "max_steps": 1}
EVALUATING = {**QUICK, "eval_strategy": "steps", "eval_steps": 1}
SAVING = {**QUICK, "save_strategy": "steps", "max_steps": 2}
PLAIN_STEP = {**QUICK, "optim": "sgd", "warmup_steps": 0, "max_steps": 1, "lr_scheduler_type": "constant"}
CASES = {
    "model": Case("nowhere/at_all", refused="nowhere/at_all"),
    "dataset": Case(["nowhere"], refused="nowhere is not a dataset"),
    "task_mix": Case({"rooms_qa": 1.0, "rooms_actions": 0.0}, tasks),
    "output_dir": Case("elsewhere", places, SAVING, trained=True),
    "image_size": Case(56, lambda t: batches(t)[0]["pixel_values"].shape),
    "num_views": Case(3, lambda t: batches(t)[0]["pixel_values"].shape[1]),
    "samples_per_scene": Case(4, lambda t: len(batches(t)[0]["pixel_values"])),
    "geometry_dropout": Case(1.0, lambda t: sum(int(b["geometry_mask"].sum()) for b in batches(t))),
    "depth_dropout": Case(1.0, lambda t: sum(float(b["depth_hist"].sum()) for b in batches(t))),
    "trainable_parts": Case(["geometry_tokens", "text"], learning),
    "frozen_text_layers": Case(0, learning),
    "dtype": Case("float32", dtypes),
    "lora_rank": Case(2, learning),
    "lora_alpha": Case(7, adapters),
    "lora_dropout": Case(0.5, adapters),
    "lora_targets": Case(["q_proj", "up_proj"], adapters),
    "learning_rate": Case(3e-4, rates),
    "text_learning_rate": Case(3e-4, rates),
    "lr_scheduler_type": Case("constant", rates),
    "warmup_steps": Case(0.5, rates),
    "weight_decay": Case(0.01, decays),
    "max_grad_norm": Case(1e-3, weights, PLAIN_STEP, trained=True),
    "bf16": Case(False, lambda t: t.accelerator.mixed_precision, {"dtype": "float32"}),
    "gradient_checkpointing": Case(False, lambda t: t.model.is_gradient_checkpointing, QUICK, trained=True),
    "per_device_train_batch_size": Case(8, lambda t: len(t.get_train_dataloader())),
    "gradient_accumulation_steps": Case(3, lambda t: t.current_gradient_accumulation_steps, QUICK, trained=True),
    "per_device_eval_batch_size": Case(4, lambda t: len(list(t.get_eval_dataloader()))),
    "num_train_epochs": Case(5, num_steps, {"max_steps": -1}),
    "dataloader_num_workers": Case(1, lambda t: t.get_train_dataloader().num_workers),
    "eval_strategy": Case("no", lambda t: "eval_loss" in logged(t), EVALUATING, trained=True),
    "max_eval_samples": Case(4, lambda t: len(t.eval_dataset)),
    "eval_generate_samples": Case(0, lambda t: t.answer_check is None),
    "eval_max_new_tokens": Case(9, lambda t: t.answer_check.max_new_tokens),
    "save_strategy": Case("no", saved, SAVING, trained=True),
    "save_steps": Case(1, saved, SAVING, trained=True),
    "logging_steps": Case(1, num_logs, {**QUICK, "max_steps": 2}, trained=True),
    "max_steps": Case(2, lambda t: t.state.global_step, QUICK, trained=True),
    "tasks": Case(["rooms_qa"], lambda t: len(t.train_dataset), {"task_mix": None}),
    "any_answer": Case(False, lambda t: t.data_collator.any_answer),
    "cuda_graphs": Case(True, refused="cuda_graphs cannot be followed: the device is a CPU"),
    "objective": Case("reconstruction", refused="wants dense labels"),
    "vision_checkpoint": Case("nowhere", refused="vision_checkpoint is nowhere, but the checkpoint"),
    "prepare_data": Case("cpu", lambda t: t.prepared is None),
    "geometry_consistency": Case(0.2, lambda t: t.model.ray_decoder is None, PREPARED),
    "latent_labels": Case(1.0, None, PREPARED, refused="latent_labels wants dense labels"),
    "latent_labels_until": Case(0.5, refused="latent_labels_until is 0.5 and would not be read"),
    "num_rays": Case(7, rays, {**PREPARED, "geometry_consistency": 0.2}),
    "save_total_limit": Case(1, saved, {**SAVING, "save_steps": 1}, trained=True),
}  # fmt: skip


@pytest.fixture(scope="module")
def start(small_json, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "start"
    torch.manual_seed(0)
    for part in load_model(small_json, str(CONFIGS / "tokenizer-tiny")):
        part.save_pretrained(folder)
    return folder


def build(recipe: str, start: Path, rooms: Path, folder: Path, **changes: Any) -> SceneTrainer:
    """The recipe's trainer at a small size, on the data and the model that are there."""
    values = {**RECIPES[recipe], "model": str(start), "dataset": [str(rooms)]}
    values |= {"task_mix": {"rooms_qa": 0.5, "rooms_actions": 0.5}, "output_dir": str(folder / "run"), **SMALL}
    if "dtype" in values:
        values["frozen_text_layers"] = 0  # an adapter recipe freezes none
    values |= changes
    folder.mkdir(exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return train.main(["--config", str(path)])


@pytest.fixture(scope="module")
def untouched() -> dict[tuple, SceneTrainer]:
    """Trainers before the change, each built once."""
    return {}


@pytest.fixture
def not_begun(monkeypatch):
    """Trainers are built as ever, and left at their beginning."""
    for name in ("train", "save_model", "save_state"):
        monkeypatch.setattr(SceneTrainer, name, lambda self, **_: None)


@pytest.mark.parametrize("key", sorted(set().union(*RECIPES.values())))
def test_every_key_has_its_effect(key, start, rooms, tmp_path, monkeypatch, request, untouched):
    case = CASES[key]
    if not case.trained:
        request.getfixturevalue("not_begun")
    recipe = next((name for name in FULL_SIZE if key in RECIPES[name]), FULL_SIZE[0])
    monkeypatch.chdir(tmp_path)
    changed = {**case.also, key: case.other}
    if case.refused:
        with pytest.raises(Exception, match=case.refused):
            build(recipe, start, rooms, tmp_path / "changed", **changed)
        return
    which = (recipe, case.trained, repr(case.also))
    if which not in untouched:
        untouched[which] = build(recipe, start, rooms, tmp_path / "as_it_is", **case.also)
    before = case.seen(untouched[which])
    after = case.seen(build(recipe, start, rooms, tmp_path / "changed", **changed))
    assert before != after, f"{key}: nothing of {before} changed with {case.other}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_typing_error_in_any_key_is_refused(recipe, tmp_path):
    for key in RECIPES[recipe]:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({f"{key}x": 1}))
        with pytest.raises(ValueError, match=rf"nothing reads: {key}x \(did you mean {key}"):
            read_yaml(path)


@pytest.mark.parametrize("recipe", ["stage1_3dqa.yaml", "stage2_actions_lora.yaml"])
def test_a_recipe_trains_at_a_small_size(recipe, start, rooms, tmp_path):
    trainer = build(recipe, start, rooms, tmp_path)
    assert trainer.state.global_step == 2
    assert saved(trainer) == ["checkpoint-2"]


def test_deepspeed_files_leave_to_the_recipe_what_it_says():
    for path in CONFIGS.glob("ds_*.json"):
        content = json.loads(path.read_text())
        keys = (
            "gradient_clipping",
            "gradient_accumulation_steps",
            "train_batch_size",
            "train_micro_batch_size_per_gpu",
        )
        assert all(content[key] == "auto" for key in keys)
        assert content["bf16"]["enabled"] == "auto"
        assert "optimizer" not in content, "parts keep their own learning rates"
