"""Adapters: what they train, what they leave, and that all ways of loading them give the same answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel

import train
from evaluation.checkpoint import load_checkpoint
from tests.training_runs import TORCHRUN, free_port, losses, run, settings
from training import merge
from training.arguments import CONFIGS
from training.assembly import load_model
from training.freezing import ADAPTED_PREFIX, part_of

LORA = {"lora_rank": 2, "frozen_text_layers": 1, "text_learning_rate": 1e-2, "max_steps": 4, "save_steps": 2}


@pytest.fixture(scope="module")
def start(small_json, tmp_path_factory) -> Path:
    """A checkpoint to train adapters on."""
    folder = tmp_path_factory.mktemp("start") / "start"
    torch.manual_seed(0)
    for part in load_model(small_json, str(CONFIGS / "tokenizer-tiny")):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(start, rooms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "run"
    return train.main(settings(str(start), rooms, folder, gradient_checkpointing=True, **LORA)), folder


def test_adapters_and_whole_parts_learn_and_nothing_else(trained, start):
    before = load_file(start / "model.safetensors")
    moved, lora_layers = set(), set()
    for name, parameter in trained[0].model.named_parameters():
        if "lora_" in name:
            lora_layers.add(name.split(".lora_")[0].removeprefix(ADAPTED_PREFIX))
            continue
        plain = name.removeprefix(ADAPTED_PREFIX).replace("modules_to_save.default.", "").replace("base_layer.", "")
        if "original_module" not in name and not torch.equal(parameter, before[plain]):
            moved.add(part_of(name))
    assert moved == {"resampler", "geometry_tokens"}
    attention = "model.language_model.layers.1.self_attn."
    assert lora_layers == {attention + name for name in ("q_proj", "k_proj", "v_proj", "o_proj")}


def test_adapters_are_saved_alone_and_load_in_every_way(trained, start, tmp_path):
    trainer, folder = trained
    for place in (folder, folder / "checkpoint-4"):
        assert (place / "adapter_model.safetensors").is_file()
        assert not list(place.glob("model*.safetensors"))
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    model = trainer.model.eval()
    with torch.no_grad():
        wanted = model(**batch).logits
        loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(start, trust_remote_code=True), folder).eval()
        torch.testing.assert_close(loaded(**batch).logits, wanted)
        merge.main(["--adapter", str(folder), "--output", str(tmp_path / "merged")])
        merged = AutoModel.from_pretrained(tmp_path / "merged", trust_remote_code=True).eval()
        torch.testing.assert_close(merged(**batch).logits, wanted, atol=1e-4, rtol=1e-4)
        evaluated = load_checkpoint(str(folder)).model
        torch.testing.assert_close(evaluated(**batch).logits, wanted, atol=1e-4, rtol=1e-4)
        untrained = AutoModel.from_pretrained(start, trust_remote_code=True).eval()
        assert not torch.allclose(untrained(**batch).logits, wanted, atol=1e-3)


def test_a_run_with_adapters_resumes_and_is_a_start_for_the_next(trained, start, rooms, tmp_path):
    argv = settings(str(start), rooms, trained[1], gradient_checkpointing=True, **LORA)
    before = losses(trained[1])
    train.main([*argv, "--resume_from_checkpoint", str(trained[1] / "checkpoint-2")])
    assert losses(trained[1]) == before
    onwards = train.main(settings(str(trained[1]), rooms, tmp_path / "next", max_steps=1, save_strategy="no"))
    assert not any("lora" in name for name, _ in onwards.model.named_parameters())
    assert (tmp_path / "next" / "model.safetensors").is_file()


@pytest.mark.slow
def test_adapters_under_zero3(start, rooms, tmp_path):
    command = [*TORCHRUN, "--nproc_per_node", "2", "train.py"]
    argv = settings(str(start), rooms, tmp_path / "run", **{**LORA, "per_device_train_batch_size": 4})
    argv += ["--deepspeed", "ds_zero3.json", "--resume_from_checkpoint", "latest"]
    for steps in ("4", "6"):
        result = run([*command, *argv, "--max_steps", steps], MASTER_PORT=str(free_port()))
        assert result.returncode == 0, result.stderr[-3000:]
    alone = train.main(settings(str(start), rooms, tmp_path / "one", **{**LORA, "max_steps": 6}))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "one"), rel=5e-3)
    tensors = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert tensors.keys() == load_file(tmp_path / "one" / "adapter_model.safetensors").keys()
    assert all(tensor.numel() for tensor in tensors.values())
    assert alone.state.global_step == 6


def test_settings_of_adapters_that_make_no_sense_are_refused(small_json, start, rooms, tmp_path):
    with pytest.raises(ValueError, match=r"random weights have none; name a checkpoint"):
        train.main(settings(small_json, rooms, tmp_path, lora_rank=2))
    with pytest.raises(ValueError, match=r"lora_alpha, lora_targets would not be read: lora_rank is 0"):
        train.main(settings(str(start), rooms, tmp_path, lora_alpha=4, lora_targets=["q_proj"]))
    with pytest.raises(ValueError, match=r"lora_targets names \['query'\]; a decoder layer has \['down_proj'"):
        train.main(settings(str(start), rooms, tmp_path, lora_rank=2, lora_targets=["query"]))
    with pytest.raises(ValueError, match=r"leaves the text model frozen"):
        train.main(settings(str(start), rooms, tmp_path, lora_rank=2, trainable_parts=["resampler"]))
    with pytest.raises(SystemExit, match=r"holds no adapters"):
        merge.main(["--adapter", str(start), "--output", str(tmp_path / "merged")])
    with pytest.raises(ValueError, match=r"text_model is Qwen3-1.7B, but the checkpoint .* brings its own"):
        load_model(str(start), "", text_model="Qwen3-1.7B")


@pytest.mark.parametrize(("name", "millions"), [("0.6B", 596), ("1.7B", 1721), ("4B", 4022), ("8B", 8191)])
def test_a_qwen3_of_another_size_by_one_line(name, millions):
    """The sizes are those of the published models: their numbers of parameters say so."""
    model, _ = load_model(
        str(CONFIGS / "models" / "vggt-1b-qwen3-4b.json"),
        str(CONFIGS / "tokenizer-tiny"),
        text_model=f"Qwen3-{name}",
        device="meta",  # 8 billion parameters do not fit a small machine
    )
    text = [model.model.language_model, model.lm_head]
    count = sum(p.numel() for p in {id(p): p for part in text for p in part.parameters()}.values())
    assert round(count / 1e6) == millions
