"""The small model that comes with the repository: whole, small enough, and it sees."""

from __future__ import annotations

import json
import subprocess
import sys

import eval as evaluator
from tests.conftest import REPOSITORY
from tests.evaluating import save_checkpoint

MODEL = REPOSITORY / "models" / "rooms-tiny"


def test_its_code_is_the_projects(tmp_path):
    """Links, so that it never falls behind; and all modules that a saved model brings."""
    save_checkpoint(tmp_path)
    assert sorted(path.name for path in MODEL.glob("*.py")) == sorted(path.name for path in tmp_path.glob("*.py"))
    for module in MODEL.glob("*.py"):
        assert module.is_symlink()
        assert module.resolve().is_relative_to(REPOSITORY)
        assert module.read_bytes() == (tmp_path / module.name).read_bytes()


def test_it_is_small_enough_to_be_cloned():
    sizes = {path.name: path.stat().st_size for path in MODEL.iterdir()}
    assert max(sizes.values()) <= 10e6
    assert sum(sizes.values()) <= 25e6
    assert json.loads((MODEL / "config.json").read_text())["dtype"] == "bfloat16"


def test_it_answers_rightly_from_anywhere(tmp_path):
    """A fresh interpreter, offline, in another working directory, without the project on its path."""
    script = f"""
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained({str(MODEL)!r}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({str(MODEL)!r}, trust_remote_code=True)
views = [f"{REPOSITORY}/examples/room/{{number:02}}.jpg" for number in range(8)]
for question in ("What color is the sofa?", "How many cabinets are in the room?"):
    messages = processor.conversation(question, num_views=8)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(images=[views], text=[text])
    tokens = model.generate(**inputs, max_new_tokens=16)[:, inputs["input_ids"].shape[1]:]
    print(processor.batch_decode(tokens, skip_special_tokens=True)[0])
"""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.split() == ["yellow", "4"]


def test_it_sees_held_out_rooms(rooms, tmp_path):
    words = f"--model {MODEL} --dataset {rooms} --split val --task rooms_qa --controls blind --num-resamples 0"
    evaluator.main([*words.split(), "--output", str(tmp_path / "out"), "--gallery", "0"])
    task = json.loads((tmp_path / "out" / "metrics.json").read_text())["tasks"]["rooms_qa"]
    exact = {
        name: found["protocols"][task["headline_protocol"]]["all"]["scores"]["EM@1"]
        for name, found in task["results"].items()
    }
    assert exact["sighted"] > exact["blind"] + 15
