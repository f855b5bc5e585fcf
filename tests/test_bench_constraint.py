"""The benchmark of constrained decoding: complete figures, and as many passes spared as the documentation says."""

from __future__ import annotations

import json

import pytest

from benchmarks.bench_constraint import TINY, main, random_texts
from processing.action_vggt_qwen3 import format_action, parse_action


def test_figures_of_a_tokenizer(tmp_path):
    output = tmp_path / "out" / "constraint.json"
    main(["--tokenizer", str(TINY), "--vocab-size", "2000", "--num-actions", "8", "--output", str(output)])
    report = json.loads(output.read_text())
    (result,) = report["results"]
    assert result["vocab_size"] == 2000 and result["setup"]["first_s"] > 0
    assert {"date", "cpu", "torch", "llguidance"} <= set(report["machine"])
    for action in ("place_anchor", "place_anchors"):
        for times in result[action]["steps_ms"].values():
            assert 0 < times["packed_mask"]["median"] <= times["packed_mask"]["p95"] <= times["packed_mask"]["max"]
            assert times["packed_mask"]["median"] < times["step"]["median"]
        passes = list(result[action]["passes"].values())
        assert all(case["passes"] < case["tokens"] and case["saved_percent"] >= 30 for case in passes)
        assert passes[0]["passes"] >= passes[1]["passes"] > passes[2]["passes"], "the more is known, the fewer"


def test_texts_are_actions_and_the_same_in_every_run():
    texts = random_texts("place_anchors", 5)
    assert texts == random_texts("place_anchors", 5) and len(set(texts)) == 5
    assert [format_action(parse_action(text)) for text in texts] == texts


def test_too_few_actions_are_refused():
    with pytest.raises(SystemExit, match="--num-actions is 3, wanted at least 8"):
        main(["--num-actions", "3"])
