"""The benchmark of answers: complete figures on a tiny model, and errors before anything costs time."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.bench_generate import build, main, parse_arguments
from tests.fake import small_config


def test_figures_of_plain_and_fast(tmp_path):
    config = small_config()
    config.text_config.vocab_size = 1536
    config.to_json_file(tmp_path / "config.json", use_diff=False)
    output = tmp_path / "out" / "generate.json"
    options = ["--output", str(output), "--config", str(tmp_path / "config.json"), "--image-size", "28"]
    options += ["--views", "1,8", "--batch", "1,2", "--repeats", "1", "--warmup", "1", "--long-answer", "14"]
    options += ["--device", "cpu", "--dtype", "float32", "--variants", "fast,plain"]
    main([*options, "--actions", "--check", "--generations", "3"])
    result = json.loads(output.read_text())
    rows = {(row["variant"], row["views"], row["batch"]): row for row in result["rows"]}
    sizes = ((1, 1), (8, 1), (8, 2))
    assert list(rows) == [(variant, *size) for variant in ("plain", "fast") for size in sizes]
    for row in rows.values():
        assert min(row[key] for key in ("first_token_ms", "answer_ms", "second_ms")) > 0
    assert 40 < rows["fast", 8, 1]["action_tokens"] < 200
    assert result["differences"][0] == {
        "variant": "fast",
        "answers": 16,
        "tokens_each": 10,
        "different_answers": 0,
        "largest_margin": 0.0,
    }
    nothing = {"held_gb": None, "captured_graphs": 0}  # neither is known on a CPU
    assert result["memory"] == {"generations": 3, "before": nothing, "after": nothing}
    assert output.with_suffix(".svg").read_text().startswith("<?xml")


def test_the_model_is_made_where_it_is_measured():
    bench = build(parse_arguments(["--device", "meta", "--dtype", "bfloat16", "--config", "configs/models/tiny.json"]))
    assert {(p.device.type, p.dtype) for p in bench.model.parameters()} == {("meta", torch.bfloat16)}
    assert torch.get_default_dtype() == torch.float32


def test_unknown_variants_are_named(capsys):
    with pytest.raises(SystemExit):
        main(["--variants", "plain,quick"])
    assert "quick: wanted some of plain, static, fast, compiled, int8" in capsys.readouterr().err
