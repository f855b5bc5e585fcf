"""The training benchmark runs the real trainer at a tiny size, and its operation count is that of the products done."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bench_train import main, make_parser, model_operations, write_dataset
from benchmarks.train_probe import length, merged
from modeling_vggt_qwen3.modeling_vggt_qwen3 import SCENE_KEYS
from tests.fake import small_config
from training.arguments import CONFIGS
from training.assembly import build_model
from training.collator import SceneCollator
from training.data import Draw, SceneDataset


def measure(small_json: str, tmp_path, *cases: str) -> list[dict]:
    """Rows of the figures at a tiny size, which are those of the file."""
    output = tmp_path / "train.json"
    words = f"--model {small_json} --views 2 --image-size 56 --scenes 2 --questions 3 --tokens 24 --answer-tokens 4"
    words += f" --warmup 1 --steps 2 --output {output} --folder {tmp_path / 'made'}"
    figures = main([*words.split(), *[word for case in cases for word in ("--case", case)]])
    assert json.loads(output.read_text()) == figures
    for row in figures["rows"]:
        assert row["samples_a_step"] == pytest.approx(6 * row["processes"])
        assert row["samples_per_second"] == pytest.approx(1000 * row["samples_a_step"] / row["step_ms"])
        assert all(ms > 0 for part, ms in row["parts_ms"].items() if part not in ("encoder", "rest")), row
        assert row["loss"][0] > 0
    return figures["rows"]


def test_figures_of_several_cases(small_json, tmp_path):
    profile = tmp_path / "profile.txt"
    images, cache = measure(
        small_json, tmp_path, f"--profile {profile}", "--cache int8 --lora 2 --checkpointing"
    )  # fmt: skip
    assert images["parts_ms"]["encoder"] > 0 and cache["parts_ms"]["encoder"] == 0
    assert cache["tera_operations_a_step"]["encoder"] == 0 < images["tera_operations_a_step"]["encoder"]
    assert cache["efficiency"] == cache["samples_per_second"] / images["samples_per_second"]
    assert "aten::" in profile.read_text()


@pytest.mark.slow
def test_figures_of_several_processes(small_json, tmp_path):
    one, two = measure(small_json, tmp_path, *(f"--deepspeed ds_zero3.json --processes {n}" for n in (1, 2)))
    assert two["efficiency"] == pytest.approx(two["samples_per_second"] / 2 / one["samples_per_second"])
    assert two["parts_ms"]["optimizer"] > 0


def test_counts_the_operations_that_a_step_needs(small_json, tmp_path):
    words = f"--model {small_json} --views 2 --image-size 56 --scenes 1 --questions 3 --tokens 24 --answer-tokens 4"
    args = make_parser().parse_args(words.split())
    write_dataset(tmp_path, args, 1, 3)
    torch.manual_seed(0)
    config = small_config()
    config.text_config.vocab_size = 1536
    model, processor = build_model(config, str(CONFIGS / "tokenizer-tiny"))
    dataset = SceneDataset([tmp_path], "train", 2)
    batch = SceneCollator(processor, config.task_names, pack=True)([dataset[Draw(0, (0, 1, 2))]])
    segments = batch["segment_ids"][0]
    assert all((segments == number).sum() == 24 for number in (1, 2, 3)), "question and answer have that many tokens"
    assert (batch["labels"] != -100).sum() == 3 * 4
    real = segments >= 0
    rows = ("input_ids", "labels", "task_ids", "position_ids", "segment_ids", "attention_mask")
    batch |= {key: batch[key][:, real] for key in rows}
    model.model.vision_model.requires_grad_(False)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model.train()(**batch).loss.backward()
    prefix, length_of_row = int((segments == 0).sum()), int(real.sum())
    operations = model_operations(config, args, prefix, 1)
    # The count looks at pairs that see each other, eager attention multiplies all; geometry tokens are left out.
    query, layers = config.text_config.num_attention_heads * config.text_config.head_dim, 2
    pairs = prefix * (prefix + 1) / 2 + 3 * (prefix * 24 + 24 * 25 / 2)
    unseen = 3 * layers * 4 * query * (length_of_row**2 - pairs)
    tokens = 3 * 2 * 2 * (37 * 32 + 32 * config.text_config.hidden_size) - 2 * 2 * 37 * 32
    assert counter.get_total_flops() == pytest.approx(1e12 * sum(operations.values()) + unseen + tokens, rel=0.01)
    assert set(SCENE_KEYS) - set(batch) == {"patch_mask"}


def test_times_that_overlap_count_once():
    assert merged([(3, 4), (0, 2), (1, 2.5)]) == [(0, 2.5), (3, 4)]
    assert length(merged([(0, 2), (1, 3), (1, 2)])) == 3


def test_refuses_segments_that_hold_no_question(small_json, tmp_path):
    words = f"--model {small_json} --views 2 --image-size 56 --tokens 9 --answer-tokens 4 --folder {tmp_path}"
    with pytest.raises(ValueError, match=r"--tokens 9 leaves no room for a question"):
        main(words.split())
