"""A converted encoder and a Qwen3 checkpoint become one model that loads by the Auto classes and keeps both parts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from hub_upload.assemble_checkpoint import assemble, main, read_perceiver
from hub_upload.stage_model import ModelSettings, stage_model
from hub_upload.verify import verify
from modeling_vggt_qwen3.configuration_vggt_qwen3 import PerceiverConfig
from modeling_vggt_qwen3.modeling_vggt import VggtModel
from tests.conftest import REPOSITORY
from tests.qwen import small_qwen3, write_tokenizer
from tests.vggt import convert_fixture

pytestmark = pytest.mark.xdist_group("assemble")  # what the module makes once is dear

PERCEIVER = {"hidden_size": 32, "num_latents": 4, "num_hidden_layers": 1, "num_attention_heads": 4}
GENERATION = {"do_sample": True, "top_k": 20, "eos_token_id": [151645, 151643]}  # as Qwen3 has it
PERCEIVER["feature_layers"] = [-1, 0, 4]


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("parts")
    small_qwen3().save_pretrained(folder / "qwen3")
    GenerationConfig(**GENERATION).save_pretrained(folder / "qwen3")
    write_tokenizer(folder / "qwen3")
    return str(convert_fixture(folder)), str(folder / "qwen3")


@pytest.fixture(scope="module")
def assembled(parts, tmp_path_factory) -> Path:
    """By the command, in half precision, in several files."""
    folder = tmp_path_factory.mktemp("assembled")
    (folder / "perceiver.json").write_text(json.dumps(PERCEIVER))
    command = [sys.executable, "-m", "hub_upload.assemble_checkpoint", "--vggt", parts[0], "--qwen3", parts[1]]
    command += ["--perceiver", str(folder / "perceiver.json"), "--output", str(folder / "model")]
    command += ["--max-shard-size", "3MB", "--image-size", "42"]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    return folder / "model"


def test_loads_by_auto_classes_and_answers(assembled):
    assert len(list(assembled.glob("model-*.safetensors"))) > 1
    assert (assembled / "modeling_vggt_qwen3.py").is_file()
    model = AutoModelForImageTextToText.from_pretrained(assembled, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(assembled, trust_remote_code=True)
    assert model.dtype == torch.bfloat16
    assert model.config.perceiver_config.num_latents == 4
    ids = (model.config.vision_start_token_id, model.config.vision_end_token_id, model.config.image_token_id)
    assert ids == (151652, 151653, 151655)

    views = list(np.random.default_rng(0).integers(0, 256, (3, 60, 80, 3), dtype=np.uint8))
    prompt = processor.apply_chat_template(
        processor.conversation("What is on the table?", num_views=3), tokenize=False, add_generation_prompt=True
    )
    inputs = processor(images=views, text=[prompt])
    assert inputs["pixel_values"].shape[-2:] == (42, 42)
    assert (inputs["input_ids"] == 151655).sum() == 4
    tokens = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert tokens.shape[1] == inputs["input_ids"].shape[1] + 4
    assert not set(tokens[0, -4:].tolist()) & {151652, 151653, 151655}


def test_it_can_be_published(assembled, tmp_path):
    """In half precision, in several files, with the licence of its encoder."""
    words = {"encoder": "vggt-1b", "text_model": "Qwen/Qwen3-4B", "trained_on": ("scanqa",), "max_shard_size": "3MB"}
    stage_model(ModelSettings(str(assembled), tmp_path / "stage", "someone/rooms", **words))
    (result,) = verify(tmp_path / "stage")
    assert result["faults"] == []
    assert len(list((tmp_path / "stage").glob("model-*.safetensors"))) > 1
    assert "CC BY-NC 4.0" in (tmp_path / "stage" / "NOTICE").read_text()
    card = (tmp_path / "stage" / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card
    assert "base_model:\n- facebook/VGGT-1B\n- Qwen/Qwen3-4B\n" in card


@pytest.mark.parametrize("tie", [True, False])
def test_both_parts_keep_their_numbers(parts, tmp_path, tie):
    shutil.copytree(parts[1], tmp_path / "qwen3")
    text_model = small_qwen3(tie)
    text_model.save_pretrained(tmp_path / "qwen3")
    perceiver = PerceiverConfig(**PERCEIVER)
    model = assemble(parts[0], str(tmp_path / "qwen3"), tmp_path / "out", perceiver=perceiver, dtype=torch.float32)
    loaded = type(model).from_pretrained(tmp_path / "out")
    token_ids, pixels = torch.tensor([[9707, 1879, 151644, 872, 198]]), torch.rand(1, 2, 3, 42, 56)
    encoder = VggtModel.from_pretrained(parts[0])
    with torch.no_grad():
        for whole in (model, loaded):
            assert torch.equal(whole(input_ids=token_ids).logits, text_model(token_ids).logits)
            assert torch.equal(whole.model.vision_model(pixels).last_hidden_state, encoder(pixels).last_hidden_state)
            assert (whole.lm_head.weight is whole.get_input_embeddings().weight) == tie


def test_fresh_parts_depend_on_the_seed_alone(parts, tmp_path):
    resamplers = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        model = assemble(*parts, tmp_path / name, perceiver=PerceiverConfig(**PERCEIVER), seed=seed)
        resamplers.append(model.model.resampler)
        fresh = [*model.model.resampler.parameters(), *model.model.geometry_tokens.parameters()]
        assert all(parameter.isfinite().all() for parameter in fresh)
    fc1 = resamplers[0].layers[0].fc1
    assert float(fc1.weight.detach().float().std()) == pytest.approx(fc1.in_features**-0.5, rel=0.1)
    assert torch.all(resamplers[0].output_norm.weight == 1)
    first, second, third = (resampler.latents for resampler in resamplers)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_refuses_parts_that_do_not_fit(parts, tmp_path):
    vggt, qwen3 = parts
    with pytest.raises(ValueError, match=r"holds a model of type 'qwen3', wanted 'vggt'"):
        assemble(qwen3, qwen3, tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds a model of type 'vggt', wanted 'qwen3'"):
        assemble(vggt, vggt, tmp_path / "out")
    with pytest.raises(ValueError, match=r"feature_layers names \[11, 17, 23\], but the encoder has layers 0 to 4"):
        assemble(vggt, qwen3, tmp_path / "out")
    with pytest.raises(SystemExit, match=r"^error: "):
        main(["--vggt", str(tmp_path / "nowhere"), "--qwen3", qwen3, "--output", str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="exists and is not an empty folder"):
        assemble(vggt, qwen3, tmp_path / "out")


def test_a_part_that_was_cut_off_is_named(parts, tmp_path):
    shutil.copytree(parts[0], tmp_path / "vggt")
    weights = tmp_path / "vggt" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (tmp_path / "perceiver.json").write_text(json.dumps(PERCEIVER))
    options = ["--vggt", str(tmp_path / "vggt"), "--qwen3", parts[1], "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"^error: .*/vggt: model\.safetensors is cut off: it has .*; copy it again"):
        main([*options, "--perceiver", str(tmp_path / "perceiver.json")])
    assert not (tmp_path / "out").exists()


def test_how_the_text_model_generates_is_kept(assembled):
    kept = json.loads((assembled / "generation_config.json").read_text())
    assert {name: kept.get(name) for name in GENERATION} == GENERATION


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"num_latentz": 4}', "has num_latentz; wanted fields of PerceiverConfig: feature_layers,"),
        ("[4]", "is no object; wanted fields of PerceiverConfig"),
        ("{", "is not JSON"),
    ],
)
def test_a_resampler_that_is_written_wrongly_is_refused(text, wanted, tmp_path):
    path = tmp_path / "perceiver.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=wanted):
        read_perceiver(path)


def test_refuses_an_incomplete_text_model(parts, tmp_path):
    shutil.copytree(parts[1], tmp_path / "qwen3")
    state = load_file(tmp_path / "qwen3" / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, tmp_path / "qwen3" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing: model\.norm\.weight"):
        assemble(parts[0], str(tmp_path / "qwen3"), tmp_path / "out", perceiver=PerceiverConfig(**PERCEIVER))
    assert not (tmp_path / "out").exists()
