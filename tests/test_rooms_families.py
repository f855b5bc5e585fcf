"""The table of what a model can answer is that of its predictions."""

from __future__ import annotations

import json

import pytest

import eval as evaluator
from benchmarks.rooms_families import main
from tests.evaluating import save_checkpoint


def test_figures_are_those_of_the_predictions(rooms, tmp_path, capsys):
    model, folder = save_checkpoint(tmp_path / "model"), tmp_path / "evaluation"
    words = f"--model {model} --dataset {rooms} --split val --task rooms_qa --controls blind --num-resamples 9"
    evaluator.main([*words.split(), "--output", str(folder), "--gallery", "0", "--max-new-tokens", "2"])
    main([str(folder), "--output", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    total = sum(row["count"] * row["exact_match"] for row in figures["families"].values())
    whole = figures["conditions"]["sighted"]
    assert total / whole["count"] == pytest.approx(whole["exact_match"]), "families are not what eval.py scored"

    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    asked = [row for row in rows if "/how_many/" in row["sample_id"]]
    for row in asked[1:]:
        row["prediction"] = row["references"][-1]
    asked[0]["prediction"] = "none of these"
    (folder / "predictions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    capsys.readouterr()

    main([str(folder), "--output", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    family = figures["families"]["how_many"]
    assert (family["count"], family["exact_match"]) == (len(asked), 100 * (len(asked) - 1) / len(asked))
    assert family["example"] == "How many Xs are there?"
    assert set(figures["conditions"]) == {"sighted", "blind"}
    assert f"| How many Xs are there? | {len(asked)} | {family['exact_match']:.0f} % |" in capsys.readouterr().out


def test_an_evaluation_of_something_else_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        main([str(tmp_path)])
    (tmp_path / "metrics.json").write_text(json.dumps({"tasks": {"rooms_qa": {"results": {}}}}))
    row = {"sample_id": "scene0000/0", "task": "scanqa", "prediction": "", "references": []}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match="scene0000/0 of task scanqa; wanted questions of rooms_qa alone"):
        main([str(tmp_path)])
