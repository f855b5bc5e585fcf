"""The benchmark of answers: complete figures on a tiny model, and errors before anything costs time."""

from __future__ import annotations

import json

import pytest

from benchmarks.bench_generate import main
from tests.fake import small_config


def test_figures_of_plain_and_fast(tmp_path):
    config = small_config()
    config.text_config.vocab_size = 1536
    config.to_json_file(tmp_path / "config.json", use_diff=False)
    output = tmp_path / "out" / "generate.json"
    options = ["--output", str(output), "--config", str(tmp_path / "config.json"), "--image-size", "28"]
    options += ["--views", "1,8", "--batch", "1,2", "--repeats", "1", "--warmup", "1", "--long-answer", "14"]
    main([*options, "--device", "cpu", "--dtype", "float32", "--variants", "fast,plain", "--actions", "--check"])
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
    assert output.with_suffix(".svg").read_text().startswith("<?xml")


def test_unknown_variants_are_named(capsys):
    with pytest.raises(SystemExit):
        main(["--variants", "plain,quick"])
    assert "quick: wanted some of plain, static, fast, compiled, int8" in capsys.readouterr().err
