"""Compiled parts: the same steps, and refusals."""

from __future__ import annotations

import pytest
import torch

import train
from training.arguments import CONFIGS
from training.assembly import load_model
from training.encoder import compile_parts, put_back, set_beside, whole


def test_what_cannot_be_compiled_is_refused(small_json):
    model, _ = load_model(small_json, str(CONFIGS / "tokenizer-tiny"))
    with pytest.raises(ValueError, match=r"compile_parts names \['depth'\]; the parts that can be compiled are"):
        compile_parts(model, ["vision", "depth"], deepspeed=False)
    with pytest.raises(ValueError, match=r"compile_parts = \['text'\]: under DeepSpeed.* only vision can be compiled"):
        compile_parts(model, ["text"], deepspeed=True)


def test_the_encoder_stands_beside_and_comes_back(small_json):
    model, _ = load_model(small_json, str(CONFIGS / "tokenizer-tiny"))
    names = list(model.state_dict())
    set_beside(model, "cpu")
    assert not any("vision_model" in name for name in model.state_dict())
    assert not model.train().model.vision_model.training, "no checkpointing, no dropout: it does not learn"
    with whole(model) as tensors:
        assert list(model.state_dict()) == sorted(names, key=list(model.state_dict()).index)
        assert set(tensors) == {name for name in names if "vision_model" in name}
    assert not any("vision_model" in name for name in model.state_dict())
    put_back(model)
    assert set(model.state_dict()) == set(names)


@pytest.mark.slow
def test_compiled_parts_take_the_same_steps(small_json, rooms, tmp_path, monkeypatch):
    """Traced and differentiated by the compiler, one graph for all decoder layers; what it makes of it is its own."""
    torch._dynamo.utils.counters.clear()
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **options: compile_module(self, **options, backend="aot_eager")
    )
    losses = {}
    for parts in ([], ["vision", "text"]):
        words = f"--model {small_json} --dataset {rooms} --output_dir {tmp_path / str(len(parts))} --num_views 2"
        words += " --samples_per_scene 4 --per_device_train_batch_size 8 --max_steps 3 --logging_steps 1 --use_cpu true"
        words += " --report_to none --save_strategy no --lr_scheduler_type constant --warmup_steps 0"
        trainer = train.main([*words.split(), *(["--compile_parts", *parts] if parts else [])])
        losses[len(parts)] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 12
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)
