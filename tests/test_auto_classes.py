"""A checkpoint in strange surroundings: a fresh process, another folder, offline, the project not importable."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fake import small_config
from training.arguments import CONFIGS
from training.assembly import build_model

LOADER = """
import json, sys
import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoProcessor

source, auto_class = sys.argv[1:]
try:
    import modeling_vggt_qwen3
except ImportError:
    pass
else:
    raise SystemExit("the project is importable; this proves nothing")
config = AutoConfig.from_pretrained(source, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
model = getattr(transformers, auto_class).from_pretrained(source, trust_remote_code=True).eval()
assert type(model.config).__name__ == type(config).__name__ == "VggtQwen3Config"
views = np.random.default_rng(0).integers(0, 256, (1, 3, 56, 56, 3), dtype=np.uint8)
messages = [{"role": "user", "content": [{"type": "image"}] * 3 + [{"type": "text", "text": "What is on the table?"}]}]
prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
inputs = processor(images=list(views), text=[prompt])
tokens = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)
constraint = processor.action_constraint(actions=["place_anchor"])
forced = model.generate(**inputs, max_new_tokens=4, do_sample=False, logits_processor=[constraint])
assert processor.decode(forced[0, inputs["input_ids"].shape[1] :]).startswith('{"action":"place')
print(json.dumps(tokens[0].tolist()))
"""
AUTO_CLASSES = ["AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = small_config()
    config.text_config.vocab_size = 1536
    model, processor = build_model(config, str(CONFIGS / "tokenizer-tiny"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def expected(checkpoint) -> list[int]:
    """Tokens that the project itself generates from the same checkpoint."""
    from modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration
    from processing import VggtQwen3Processor

    model = VggtQwen3ForConditionalGeneration.from_pretrained(checkpoint).eval()
    processor = VggtQwen3Processor.from_pretrained(checkpoint)
    views = np.random.default_rng(0).integers(0, 256, (1, 3, 56, 56, 3), dtype=np.uint8)
    text = {"type": "text", "text": "What is on the table?"}
    messages = [{"role": "user", "content": [{"type": "image"}] * 3 + [text]}]
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(images=list(views), text=[prompt])
    return model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)[0].tolist()


def load_elsewhere(source: str, auto_class: str, folder: Path, **environment: str) -> list[int]:
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "HF_HOME")}
    env |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-P", "-c", LOADER, source, auto_class]
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("auto_class", AUTO_CLASSES)
def test_every_auto_class_loads_a_folder(auto_class, checkpoint, expected, tmp_path):
    assert load_elsewhere(str(checkpoint), auto_class, tmp_path) == expected


def test_the_hub_cache_works_alike(checkpoint, expected, tmp_path):
    """As `from_pretrained("org/name")` finds it after a download."""
    revision = "0" * 40
    repository = tmp_path / "hf" / "hub" / "models--someone--rooms"
    shutil.copytree(checkpoint, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    assert load_elsewhere("someone/rooms", "AutoModelForImageTextToText", tmp_path) == expected


def test_a_model_loaded_by_remote_code_saves_its_code_again(checkpoint, expected, tmp_path):
    script = (
        "import sys; from transformers import AutoModel, AutoProcessor\n"
        "for auto in (AutoModel, AutoProcessor):\n"
        "    auto.from_pretrained(sys.argv[1], trust_remote_code=True).save_pretrained(sys.argv[2])"
    )
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    again = tmp_path / "again"
    command = [sys.executable, "-P", "-c", script, str(checkpoint), str(again)]
    subprocess.run(command, cwd=tmp_path, env=env, check=True, timeout=120)
    assert load_elsewhere(str(again), "AutoModel", tmp_path) == expected
