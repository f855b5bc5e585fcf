"""Answers made elsewhere, statistics of pairs, comparisons, submission files."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

import eval as evaluator
from evaluation.paired import mcnemar_exact, paired_bootstrap
from tests.evaluating import renamed_task, true_answers, write_rows

CHEAP = ["--num-resamples", "20", "--num-views", "2", "--gallery", "3"]


@pytest.fixture(scope="module")
def answers(rooms) -> list[dict]:
    return true_answers(rooms)


def score(rows: list[dict], rooms: Path, folder: Path, *options: str, name: str = "answers.jsonl"):
    path = write_rows(folder / name, rows)
    return evaluator.main(
        [
            "score",
            "--predictions",
            str(path),
            "--dataset",
            str(rooms),
            "--output",
            str(folder / "out"),
            *CHEAP,
            *options,
        ]
    )


def test_right_answers_are_right_everywhere(answers, rooms, tmp_path):
    evaluation = score(answers, rooms, tmp_path, "--num-views", "8")
    questions = evaluation.scores["rooms_qa"]["predictions"]
    for name, entry in questions.result["protocols"].items():
        assert entry["all"]["scores"]["EM@1"] == 100, name
    actions = evaluation.scores["rooms_actions"]["predictions"]
    scores = actions.row["scores"]
    assert scores["schema_validity"] == scores["label_accuracy"] == scores["iou_over_0.50"] == scores["f1@0.50"] == 100
    assert scores["center_error_median_m"] < 0.01, "the text is rounded to centimetres, no more"
    assert set(questions.verdicts) | set(actions.verdicts) == {"right"}


def test_actions_may_be_given_in_the_world_frame(rooms, tmp_path):
    rows = [row for row in true_answers(rooms, frame="world") if isinstance(row["prediction"], dict)]
    evaluation = score(rows, rooms, tmp_path, "--task", "rooms_actions")
    scores = evaluation.scores["rooms_actions"]["predictions"].row["scores"]
    assert scores["iou_mean"] == pytest.approx(1.0)
    assert scores["normal_angle_median_placed_deg"] == pytest.approx(0.0, abs=1e-4)
    rows[0]["prediction"]["scene"] = "elsewhere"
    evaluation = score(rows, rooms, tmp_path, "--task", "rooms_actions")
    assert "is of the scene 'elsewhere'" in evaluation.rows["predictions"][0]["error"]
    assert evaluation.scores["rooms_actions"]["predictions"].verdicts.count("wrong") == 1


def test_the_frame_of_actions_is_that_of_the_first_view(rooms, tmp_path):
    """A metre to the right of the first camera is a metre of error, whatever way it looks."""
    rows = [row for row in true_answers(rooms) if row["prediction"].startswith('{"action":"place_anchor"')]
    ids = {row["sample_id"] for row in rows}
    every = {row["sample_id"]: row for row in true_answers(rooms) if row["prediction"].startswith("{")}
    for name in ids:
        action = json.loads(every[name]["prediction"])
        action["center"][0] += 1.0
        every[name] = {"sample_id": name, "prediction": json.dumps(action)}
    evaluation = score(list(every.values()), rooms, tmp_path, "--task", "rooms_actions")
    scores = evaluation.scores["rooms_actions"]["predictions"].row["scores"]
    assert scores["center_error_median_m"] == pytest.approx(1.0, abs=0.01)


def test_forms_of_answer_files(answers, rooms, tmp_path):
    first = score(answers, rooms, tmp_path).scores["rooms_qa"]["predictions"].row
    mapping = tmp_path / "mapping.json"
    mapping.write_text(json.dumps({row["sample_id"]: row["prediction"] for row in answers}))
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([{"question_id": row["sample_id"], "answer": row["prediction"]} for row in answers]))
    for path in (mapping, listed):
        again = evaluator.main(
            ["score", "--predictions", str(path), "--dataset", str(rooms), "--output", str(tmp_path / "o"), *CHEAP]
        )
        assert again.scores["rooms_qa"]["predictions"].row == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "1 of {n} samples without a prediction ({first})"),
        (lambda rows: [*rows, {"sample_id": "x/1", "prediction": "a"}], "1 unknown ids (x/1)"),
        (lambda rows: [*rows, rows[0]], "row {next} repeats the id '{first}'"),
        (lambda rows: [{**row, "sample_id": "x" + row["sample_id"]} for row in rows], "none of its {n} ids is in"),
        (lambda rows: [{**rows[0], "scene_id": "other"}, *rows[1:]], "these are predictions for another dataset"),
        (lambda rows: [{"sample_id": rows[0]["sample_id"]}, *rows[1:]], "row 1 has no answer"),
        (lambda rows: [{"prediction": "a"}, *rows[1:]], "row 1 has no sample_id or question_id"),
        (lambda rows: [{**rows[0], "prediction": 3}, *rows[1:]], "prediction is 3, wanted a text"),
        (lambda rows: [], "holds no answer"),
    ],
)
def test_answers_that_do_not_belong_are_refused(change, message, answers, rooms, tmp_path):
    values = {"n": len(answers), "next": len(answers) + 1, "first": answers[0]["sample_id"]}
    with pytest.raises(ValueError, match=re.escape(message.format(**values))):
        score(change(answers), rooms, tmp_path)
    assert not (tmp_path / "out").exists()


def test_answers_of_another_split_are_told_apart(rooms, tmp_path):
    with pytest.raises(ValueError, match="is of the split test"):
        score(true_answers(rooms, "test"), rooms, tmp_path)
    with pytest.raises(FileNotFoundError, match="no file of predictions"):
        evaluator.main(["score", "--predictions", str(tmp_path / "none"), "--dataset", str(rooms)])
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{")
    with pytest.raises(ValueError, match=r"damaged\.json is not JSON"):
        evaluator.main(["score", "--predictions", str(damaged), "--dataset", str(rooms)])


def test_answers_of_another_build_are_refused(answers, rooms, tmp_path):
    config = {"predictions": {"fingerprints": {"dataset": "0123"}}}
    (tmp_path / "run_config.yaml").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="holds predictions for another dataset than"):
        score(answers, rooms, tmp_path)


def test_mcnemar_is_the_exact_binomial_test():
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(0, 6) == pytest.approx(2 * 0.5**6)
    by_hand = 2 * sum(math.comb(13, k) for k in range(4)) / 2**13
    assert mcnemar_exact(3, 10) == mcnemar_exact(10, 3) == pytest.approx(by_hand)
    assert mcnemar_exact(5, 5) == 1.0


def test_the_paired_bootstrap_covers_and_tests():
    rng = np.random.default_rng(0)
    differences = rng.normal(0.5, 1.0, 200)
    found = paired_bootstrap(differences)
    low, high = found["interval"]
    error = differences.std() / math.sqrt(200)
    assert found["difference"] == pytest.approx(differences.mean())
    assert low == pytest.approx(differences.mean() - 1.96 * error, abs=0.03)
    assert high == pytest.approx(differences.mean() + 1.96 * error, abs=0.03)
    assert found["p"] < 0.001
    assert paired_bootstrap([1.0, -1.0] * 100)["p"] > 0.5
    assert paired_bootstrap([0.0] * 10)["p"] == 1.0


def rows_of(folder: Path, answers: list[dict], rooms: Path, wrong: set[str]) -> Path:
    """A predictions.jsonl as a run writes it, with wrong answers to some samples."""
    spoiled = [{**row, "prediction": "nonsense"} if row["sample_id"] in wrong else row for row in answers]
    folder.mkdir()
    rows = score(spoiled, rooms, folder).rows["predictions"]
    return write_rows(folder / "predictions.jsonl", rows).parent


def test_a_comparison_says_what_changed(answers, rooms, tmp_path, capsys):
    questions = [row["sample_id"] for row in answers if not row["prediction"].startswith("{")]
    first = rows_of(tmp_path / "a", answers, rooms, set(questions[:5]))
    second = rows_of(tmp_path / "b", answers, rooms, {questions[4], questions[7]})
    lines = (second / "predictions.jsonl").read_text().splitlines()
    (second / "predictions.jsonl").write_text("\n".join(reversed(lines)))
    compared = evaluator.main(["compare", str(first), str(second), "--num-resamples", "0"])
    right = compared["rooms_qa"].tests["right"]
    assert (right["only_first"], right["only_second"], right["neither"]) == (1, 4, 1)
    assert right["p"] == pytest.approx(2 * (1 + 5) / 2**5)
    change = compared["rooms_qa"].tests["metrics"]["EM@1"]
    assert change["difference"] == pytest.approx(100 * 3 / len(questions))
    assert compared["rooms_actions"].tests["right"]["p"] == 1.0
    assert "only in A 1, only in B 4, in neither 1" in capsys.readouterr().out
    page = (second / "compare-a-b.html").read_text()
    assert "nonsense" in page
    assert '"Gained"' in page


def test_comparisons_of_different_samples_are_refused(answers, rooms, tmp_path):
    folder = rows_of(tmp_path / "a", answers, rooms, set())
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "predictions.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(ValueError, match=re.escape(f"lacks 1 ({json.loads(lines[0])['sample_id']})")):
        evaluator.main(["compare", str(folder), str(tmp_path / "b")])
    (tmp_path / "b" / "predictions.jsonl").write_text("\n".join([*lines, lines[0]]))
    with pytest.raises(ValueError, match="repeats the sample"):
        evaluator.main(["compare", str(folder), str(tmp_path / "b")])
    with pytest.raises(FileNotFoundError, match=r"holds no predictions\.jsonl"):
        evaluator.main(["compare", str(folder), str(tmp_path)])
    for name, fingerprint in (("a", "1"), ("b", "2")):
        config = {"predictions": {"fingerprints": {"dataset": fingerprint}}}
        (tmp_path / name / "run_config.yaml").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="answer different datasets"):
        evaluator.main(["compare", str(folder), str(tmp_path / "b")])


@pytest.mark.parametrize(("task", "split"), [("scanqa", "val"), ("sqa3d", "test")])
def test_submissions_and_published_figures(task, split, rooms, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no Java: the rest is scored and the gap is said
    root = renamed_task(rooms, tmp_path / "data", task, split)
    rows = true_answers(root, split)
    evaluation = score(rows, root, tmp_path, "--split", split, "--protocol", "leo,video3d")
    assert evaluation.scores[task]["predictions"].headline == "leo"
    submission = json.loads((tmp_path / "out" / f"submission_{task}.json").read_text())
    assert len(submission) == len(rows)
    if task == "scanqa":
        assert submission[0]["question_id"] == rows[0]["sample_id"]
        assert submission[0]["answer_top10"] == [rows[0]["prediction"]]
    else:
        assert submission[0] == {"question_id": int(rows[0]["sample_id"]), "answer": rows[0]["prediction"]}
    report = (tmp_path / "out" / "report.html").read_text()
    assert "arXiv:2504.01901" in report
    assert "Not computed: METEOR of leo" in report
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {"Ross3D-7B", "LLaVA-3D-7B"} <= {each["system"] for each in metrics["tasks"][task]["published"]}


def test_unlabelled_splits_are_counted_not_scored(rooms, tmp_path):
    from datasets import load_from_disk

    from datasets_scripts.schema import write_manifest

    root = renamed_task(rooms, tmp_path / "data", "scanqa", "val")
    table = load_from_disk(str(root / "samples" / "val")).map(lambda row: {"answers": []})
    table.save_to_disk(str(root / "samples" / "test"))
    write_manifest(root, counts={}, options={}, source_files={})
    rows = [{"sample_id": name, "prediction": "a"} for name in table["sample_id"]]
    evaluation = score(rows, root, tmp_path, "--split", "test")
    assert evaluation.scores["scanqa"]["predictions"].result is None
    assert "no labels" in (tmp_path / "out" / "report.html").read_text()
    assert len(json.loads((tmp_path / "out" / "submission_scanqa.json").read_text())) == len(rows)
