"""Training: what learns and what does not, the loss of a step, refusals, resuming, several processes."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

import train
from tests.fake import small_config
from tests.training_runs import TORCHRUN, free_port, losses, run, settings
from training.arguments import CONFIGS, known_keys, parse_arguments, read_yaml
from training.assembly import load_model
from training.checkpoints import CheckpointError, drop_later, find_checkpoint
from training.collator import SceneCollator
from training.data import SceneDataset
from training.freezing import part_of, set_trainable
from training.reshaping import join_states, other_world
from training.trainer import SceneTrainer


def build_trainer(argv: list[str]) -> SceneTrainer:
    model_args, data_args, args = parse_arguments(argv)
    torch.manual_seed(args.seed)
    model, processor = load_model(model_args.model, model_args.tokenizer)
    set_trainable(model, model_args.trainable_parts, model_args.frozen_text_layers)
    train, val = (SceneDataset(data_args.dataset, s, data_args.num_views, data_args.tasks) for s in ("train", "val"))
    return SceneTrainer(model, args, data_args, processor, train, val)


@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        ({}, {"vision"}),
        ({"trainable_parts": ["resampler", "geometry_tokens"]}, {"vision", "text"}),
        ({"trainable_parts": ["vision", "resampler", "geometry_tokens", "text"]}, set()),
    ],
)
def test_what_is_trainable_moves_and_the_rest_stays(small_json, rooms, tmp_path, options, frozen):
    argv = settings(
        small_json, rooms, tmp_path, max_steps=1, save_strategy="no", warmup_steps=0, samples_per_scene=2,
        geometry_dropout=0, depth_dropout=0.5, **options,
    )  # fmt: skip
    trainer = build_trainer(argv)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == (part_of(name) not in frozen), f"{name} {'moved' if moved else 'stayed'}"


def test_eight_rooms_are_learned_by_heart(rooms, tmp_path):
    """Of the questions about the training rooms 98 % are answered exactly: images, text and loss belong together.

    Whoever sees no image gets about a third; which last question is still wrong after so few steps is a matter of
    rounding.
    """
    config = tmp_path / "model.json"
    fields = json.loads((CONFIGS / "models" / "tiny.json").read_text())
    fields["text_config"] |= {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3}
    fields["text_config"] |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24}
    fields["vision_config"] = small_config().vision_config.to_dict()
    fields["perceiver_config"] |= {"hidden_size": 64, "num_latents": 16, "feature_layers": [-1, 0, 1]}
    config.write_text(json.dumps(fields))
    argv = settings(
        str(config), rooms, tmp_path, tasks=["rooms_qa"], num_views=8, samples_per_scene=16, max_steps=500,
        per_device_train_batch_size=64, learning_rate=3e-3, adam_beta2=0.99, logging_steps=100, save_strategy="no",
        geometry_dropout=0, depth_dropout=0,
    )  # fmt: skip
    trainer = build_trainer(argv)
    trainer.train()
    model, dataset = trainer.model.eval(), trainer.train_dataset
    collator = SceneCollator(trainer.processing_class, model.config.task_names, with_answers=False)
    wrong, asked = [], 0
    for draw in dataset.fixed_draws(64):
        example = dataset[draw]
        batch = collator([example])
        tokens = model.generate(**batch, max_new_tokens=16, do_sample=False)[:, batch["input_ids"].shape[1] :]
        answers = trainer.processing_class.batch_decode(tokens, skip_special_tokens=True)
        asked += len(example.samples)
        wrong += [(s["question"], a) for s, a in zip(example.samples, answers) if a not in s["answers"]]
    assert len(wrong) <= 0.02 * asked, wrong


def test_bottom_layers_stay_frozen(small_json, rooms, tmp_path):
    trainer = build_trainer(settings(small_json, rooms, tmp_path, frozen_text_layers=1))
    trainable = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert not any("layers.0." in name or "embed_tokens" in name for name in trainable if part_of(name) == "text")
    assert any("language_model.layers.1." in name for name in trainable)


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (2, 4)])
def test_accumulated_batches_take_the_step_of_one(small_json, rooms, tmp_path, batch, accumulation):
    weights = []
    for name, size, steps in (("one", 8, 1), ("many", batch, accumulation)):
        argv = settings(
            small_json, rooms, tmp_path / name, max_steps=1, samples_per_scene=2, per_device_train_batch_size=size,
            gradient_accumulation_steps=steps, save_strategy="no", task_weights='{"rooms_qa": 1, "rooms_actions": 3}',
            optim="sgd", max_grad_norm=0, lr_scheduler_type="constant", warmup_steps=0,
        )  # fmt: skip
        trainer = build_trainer(argv)
        trainer.train()
        weights.append(dict(trainer.model.named_parameters()))
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-6, rtol=1e-5, msg=name)


def test_learning_rates_by_part(small_json, rooms, tmp_path):
    trainer = build_trainer(settings(small_json, rooms, tmp_path, text_learning_rate=1e-5, learning_rate=1e-4))
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    for group in trainer.create_optimizer().param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["lr"] == (1e-5 if part_of(name) == "text" else 1e-4)
            if "norm" in name or name.endswith("bias"):
                assert group["weight_decay"] == 0


def test_a_new_run_does_not_mix_with_an_earlier_one(small_json, rooms, tmp_path):
    argv = settings(small_json, rooms, tmp_path / "run", max_steps=2, save_steps=1)
    train.main(argv)
    train.main([*argv, "--max_steps", "1"])
    assert find_checkpoint(tmp_path / "run", "latest").name == "checkpoint-1"
    assert find_checkpoint(tmp_path / "run.1", "latest").name == "checkpoint-2"
    train.main([*argv, "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-1")])
    assert find_checkpoint(tmp_path / "run", "latest").name == "checkpoint-2"
    drop_later(tmp_path / "run", tmp_path / "run" / "checkpoint-1")
    assert find_checkpoint(tmp_path / "run", "latest").name == "checkpoint-1"


def test_a_run_can_be_repeated_from_its_own_settings(small_json, rooms, tmp_path):
    train.main(
        settings(small_json, rooms, tmp_path / "run", max_steps=1, task_weights='{"rooms_qa": 1, "rooms_actions": 2}')
    )
    again = ["--config", str(tmp_path / "run" / "run_config.yaml"), "--output_dir", str(tmp_path / "again")]
    trainer = train.main(again)
    assert trainer.model.config.task_weights == {"rooms_qa": 1.0, "rooms_actions": 2.0}
    assert losses(tmp_path / "again") == losses(tmp_path / "run")


def test_half_precision_checkpoints_learn_in_full_precision(small_json, rooms, tmp_path):
    model, processor = load_model(small_json, str(CONFIGS / "tokenizer-tiny"))
    for part in (model.bfloat16(), processor):
        part.save_pretrained(tmp_path / "half")
    trainer = train.main(settings(str(tmp_path / "half"), rooms, tmp_path / "run", max_steps=1))
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def test_checkpoints_without_marker_do_not_count(small_json, rooms, tmp_path):
    trainer = build_trainer(settings(small_json, rooms, tmp_path, max_steps=5, save_steps=1, save_total_limit=2))
    trainer.train()
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert kept == ["checkpoint-4", "checkpoint-5"]
    (tmp_path / "checkpoint-5" / "checkpoint_complete").unlink()
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-4"
    with pytest.raises(ValueError, match=r"not a complete checkpoint.*checkpoint-4"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-5"))


def test_a_checkpoint_holds_everything(small_json, rooms, tmp_path):
    argv = settings(small_json, rooms, tmp_path, max_steps=1, save_steps=1, eval_strategy="steps", eval_steps=1)
    trainer = build_trainer(argv)
    trainer.train()
    assert any(entry.get("eval_loss", 0) > 0 for entry in trainer.state.log_history)
    names = {path.name for path in (tmp_path / "checkpoint-1").iterdir()}
    assert {
        "model.safetensors", "config.json", "generation_config.json", "processor_config.json", "tokenizer.json",
        "chat_template.jinja", "modeling_vggt_qwen3.py", "modeling_vggt.py", "modeling_perceiver.py",
        "processing_vggt_qwen3.py", "geometry_vggt_qwen3.py", "run_config.yaml", "trainer_state.json",
    } <= names  # fmt: skip


ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli"]
LAUNCHES = {
    "ddp": ["--nproc_per_node", "2", "train.py", "--use_cpu", "true"],
    "zero3": ["--nproc_per_node", "2", "train.py", "--deepspeed", "ds_zero3.json"],
}


@pytest.mark.parametrize("how", LAUNCHES)
def test_two_processes_train_save_and_resume(how, small_json, rooms, tmp_path):
    """Also where one rank's scenes have cameras and the other's have none: half the scenes hide theirs.

    Then one process goes on from the checkpoint of two.
    """
    command = [*TORCHRUN, *LAUNCHES[how]]
    argv = settings(small_json, rooms, tmp_path, max_steps=4, geometry_dropout=0.5, per_device_train_batch_size=4)
    answering = {"eval_strategy": "steps", "eval_steps": 4, "max_eval_samples": 8, "eval_max_new_tokens": 4}
    answering |= {"eval_generate_samples": 5, "per_device_eval_batch_size": 2}  # so that one rank has fewer to answer
    argv += [word for key, value in answering.items() for word in (f"--{key}", str(value))]
    first = run([*command, *argv], MASTER_PORT=str(free_port()))
    assert first.returncode == 0, first.stderr[-3000:]
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert any("eval_rooms_qa_EM@1" in entry for entry in history)
    alone = settings(
        small_json, rooms, tmp_path / "one", max_steps=4, geometry_dropout=0.5, per_device_train_batch_size=8
    )
    trainer = build_trainer(alone)
    assert any(_has_one_camera(batch) for batch in trainer.get_train_dataloader()), "no step mixes ranks"
    trainer.train()
    reference = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses(tmp_path) == pytest.approx(reference, rel=2e-3), "two ranks of 4 take the steps of one of 8"
    trained = load_file(tmp_path / "model.safetensors")
    states = list(tmp_path.glob("checkpoint-*/global_step*/*model_states.pt"))
    assert bool(states) == (how == "zero3")
    assert not any(b"vision_model" in path.read_bytes() for path in states), "the frozen encoder is whole on every rank"
    assert any("vision_model" in name for name in trained), "and in the checkpoint all the same"
    for name, tensor in trainer.model.state_dict().items():
        if name in trained:
            torch.testing.assert_close(trained[name], tensor, atol=2e-3, rtol=2e-2, msg=name)

    resumed = run(
        [*command, *argv, "--max_steps", "6", "--resume_from_checkpoint", "latest"], MASTER_PORT=str(free_port())
    )
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert losses(tmp_path)[:4] == pytest.approx(reference, rel=2e-3)
    assert len(losses(tmp_path)) == 6
    onwards = settings(str(tmp_path), rooms, tmp_path / "next", max_steps=1, save_strategy="no")
    loaded = run([*command, *onwards], MASTER_PORT=str(free_port()))
    assert loaded.returncode == 0, loaded.stderr[-3000:]

    two, expected = load_file(tmp_path / "model.safetensors"), losses(tmp_path)
    one = [word for word in command if word not in ("--nproc_per_node", "2")]
    larger = ["--per_device_train_batch_size", "8", "--max_steps", "6", "--eval_strategy", "no"]
    resume = ["--resume_from_checkpoint", str(tmp_path / "checkpoint-4")]
    fewer = run([*one, *argv, *larger, *resume], MASTER_PORT=str(free_port()))
    assert fewer.returncode == 0, fewer.stderr[-3000:]
    assert losses(tmp_path) == pytest.approx(expected, rel=2e-3), "one process goes on as two would"
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        torch.testing.assert_close(tensor, two[name], atol=1e-4, rtol=1e-3, msg=name)


def test_states_that_cannot_be_joined_name_the_ways_out(tmp_path):
    (tmp_path / "global_step2").mkdir()
    (tmp_path / "latest").write_text("global_step2")
    (tmp_path / "checkpoint_complete").write_text('{"world_size": 2, "zero_stage": 3, "files": {}}')
    now = {"samples_per_step": 8, "world_size": 1, "zero_stage": 3}
    assert other_world(tmp_path, now) and not other_world(tmp_path, {**now, "world_size": 2})
    assert not other_world(tmp_path, {**now, "zero_stage": 0})
    with pytest.raises(CheckpointError, match=r"Resume on 2 processes, or .*--model"):
        join_states(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"global_step2", "latest", "checkpoint_complete"}


def test_the_command_of_the_readme_works_on_one_process(small_json, rooms, tmp_path):
    argv = settings(small_json, rooms, tmp_path, max_steps=1, save_strategy="no")
    result = run([*ACCELERATE, "launch", "train.py", "--deepspeed", "ds_zero3.json", *argv])
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_are_read_to_the_last_key(path, tmp_path):
    assert set(read_yaml(path)) <= known_keys()
    parse_arguments(["--config", str(path), "--output_dir", str(tmp_path), "--use_cpu", "true"])


def test_unknown_settings_name_the_nearest(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"learning_rat": 1.0e-4, "num_view": 3, "seed": 1}))
    with pytest.raises(ValueError, match=r"learning_rat \(did you mean learning_rate\?\), num_view \(.*num_views"):
        parse_arguments(["--config", str(path)])
    with pytest.raises(ValueError, match=r"sample_per_scene \(did you mean samples_per_scene\?\)"):
        parse_arguments(["--sample_per_scene", "3"])
    with pytest.raises(ValueError, match="label_smoothing_factor is not followed"):
        parse_arguments(["--label_smoothing_factor", "0.1", "--output_dir", str(tmp_path)])
    with pytest.raises(ValueError, match=r"nothing reads: conf \("):
        parse_arguments(["--conf", str(path)])
    with pytest.raises(ValueError, match=r"'my_run.yaml'\] behind no option"):
        parse_arguments(["my_run.yaml"])
    path.write_text(yaml.safe_dump({"num_views": 3.5, "dataset": "data/rooms", "pack_questions": "no"}))
    with pytest.raises(ValueError, match=r"dataset is 'data/rooms', wanted list; num_views is 3.5, wanted int; pack_"):
        parse_arguments(["--config", str(path)])
    with pytest.raises(FileNotFoundError, match=r"no nowhere\.yaml here"):
        parse_arguments(["--config", "nowhere.yaml"])


def test_the_command_line_wins_over_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"num_views": 3, "task_mix": {"scanqa": 0.7, "sqa3d": 0.3}}))
    _, data_args, _ = parse_arguments(["--config", str(path), "--num_views", "5", "--output_dir", str(tmp_path)])
    assert data_args.num_views == 5
    assert data_args.task_mix == {"scanqa": 0.7, "sqa3d": 0.3}


def test_several_gpus_in_one_process_are_refused(monkeypatch):
    from training.launch import refuse_data_parallel

    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError, match="accelerate launch --num_processes 2"):
        refuse_data_parallel(2)


def _has_one_camera(batch: dict[str, torch.Tensor]) -> bool:
    """Whether one of the two scenes, so one of the two ranks, has cameras and the other has none."""
    return batch["geometry_mask"].tolist() in ([True, False], [False, True])
