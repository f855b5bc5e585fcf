"""Answers under the five protocols: every cleaning rule and quirk by hand, the n-gram metrics against pycocoevalcap."""

import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from metrics import score
from metrics.scene_qa import captions
from metrics.scene_qa.bootstrap import bootstrap_sums, percentile_interval
from metrics.scene_qa.normalization import clean_answer
from metrics.scene_qa.protocols import PROTOCOLS, match_as_predecessor
from metrics.scene_qa.scoring import score_answers

ROOT = Path(__file__).parents[1]
needs_pycocoevalcap = pytest.mark.skipif(
    not captions.has_pycocoevalcap(), reason="NOT TESTED: n-gram metrics; pip install 'pycocoevalcap>=1.2'"
)
needs_java = pytest.mark.skipif(
    not (captions.has_java() and captions.has_pycocoevalcap()),
    reason="NOT TESTED: METEOR and PTB tokenisation; install a Java runtime and pycocoevalcap",
)


@pytest.fixture
def without_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("BROWN Chair", "brown chair"),
        ("  brown   chair  ", "brown chair"),
        ("left.  right", "left right"),
        ("a-b, c: d'e", "a-b, c: d'e"),
        ("50%! (red/blue)?", "50 redblue"),
        ("brown .", "brown "),  # spaces are trimmed before punctuation goes
        ("façade’s", "faades"),  # deleted, not transliterated
        ("letf let tehre rigth rght behine", "left left there right right behind"),
        ("tv chai wasing waslked", "TV chair washing walked"),
        ("12 oclock 3 o' clock", "twelve o'clock three o'clock"),
        ("tvs outlet chain", "tvs outlet chain"),  # whole words only
        ("0 none 1 2 3 4 5 6 7 8 9 10", "zero zero one two three four five six seven eight nine ten"),
        ("11 12 13 14 15 16", "eleven twelve thirteen fourteen fifteen sixteen"),
        ("17 18 19 20 21 22 23 24", "seventeen eighteen nineteen twenty 21 22 twenty-three 24"),
        ("no1 mat2 room12", "no mat room12"),
        ("a chair on the table by an apple", "chair on table by apple"),
        ("the the chair", "the chair"),  # a rule's matches do not overlap
        ("plan a", "plan a"),
        ("backwards", "backward"),
        ("", ""),
    ],
)
def test_each_cleaning_rule(text: str, cleaned: str) -> None:
    assert clean_answer(text) == cleaned


HAND_CASE = [
    ("Brown.", ["brown", "dark brown"]),
    ("2", ["two"]),
    ("two", ["2"]),
    ("desk", ["on desk", "desk"]),
    ("", ["chair"]),
    ("the white table", ["white table"]),
    ("left", ["on your left side"]),
    ("black", ["red"]),
]


@pytest.mark.parametrize(
    ("protocol", "exact", "refined"),
    [
        ("official", "00010000", None),
        ("leo", "11100100", "11111110"),  # "desk" meets "on desk" first; the empty answer is part of "chair"
        ("llava3d", "11110100", "11111110"),
        ("chat_scene", "11010100", "11010110"),  # "two" does not reach the raw "2"; the empty answer matches nothing
        ("video3d", "00010000", None),
    ],
)
def test_matches_by_hand(protocol: str, exact: str, refined: str | None) -> None:
    answers, references = zip(*HAND_CASE)
    result = score_answers(answers, references, captions=False, per_sample=True, num_resamples=0)
    row = result["protocols"][protocol]
    assert [value / 100 for value in row["per_sample"]["EM@1"]] == [float(flag) for flag in exact]
    assert row["all"]["scores"]["EM@1"] == pytest.approx(100 * exact.count("1") / 8)
    if refined is None:
        assert "EM-R" not in row["all"]["scores"]
    else:
        assert [value / 100 for value in row["per_sample"]["EM-R"]] == [float(flag) for flag in refined]


def test_final_period_is_cut_before_cleaning_in_chat_scene_only() -> None:
    def exact(protocol: str) -> float:
        result = score_answers(["brown ."], [["brown"]], protocols=[protocol], captions=False)
        return result["protocols"][protocol]["all"]["scores"]["EM@1"]

    assert exact("leo") == exact("llava3d") == 0.0  # "brown " is left
    assert exact("chat_scene") == 100.0


def test_sqa3d_cleans_both_sides_and_has_no_official_protocol() -> None:
    result = score_answers(["two."], [["2"]], task="sqa3d", captions=False, num_resamples=0)
    scores = {name: entry["all"]["scores"] for name, entry in result["protocols"].items()}
    assert scores == {
        "leo": {"EM@1": 100.0, "EM-R": 100.0},
        "llava3d": {"EM@1": 100.0, "EM-R": 100.0},
        "chat_scene": {"EM@1": 100.0, "EM-R": 100.0},
        "video3d": {"EM@1": 100.0},
    }
    with pytest.raises(ValueError, match="'official' is not defined for sqa3d"):
        score_answers(["two"], [["2"]], task="sqa3d", protocols=["official"])


def test_exact_match_in_ten() -> None:
    ten = [["brown", *"abcdefghi"], ["red", "dark brown", *"abcdefgh"], ["x", *"abcdefghi"]]
    result = score_answers(["brown", "red", "x"], [["brown"], ["dark brown"], ["no"]], candidates=ten, captions=False)
    assert result["protocols"]["official"]["all"]["scores"]["EM@10"] == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("answer", "references", "exact", "partial"),
    [
        (" Brown ", ["brown"], True, True),
        ("brown chair", ["chair"], False, True),
        ("chair", ["brown chair"], False, True),
        ("brownchair", ["brown chair"], False, False),  # unlike EM-R, spaces count
        ("", ["chair"], False, True),
        ("red", ["blue", "red"], True, True),
    ],
)
def test_predecessor_match(answer: str, references: list[str], exact: bool, partial: bool) -> None:
    assert match_as_predecessor(answer, references) == (exact, partial)


# n-gram metrics


@needs_pycocoevalcap
def test_bleu_by_hand() -> None:
    longer = captions.bleu_statistics(["a brown chair"], [["brown chair"]])[0]
    assert captions.bleu_from_sums(longer, 1) == pytest.approx(2 / 3)
    assert captions.bleu_from_sums(longer, 2) == pytest.approx(math.sqrt(2 / 3 * 1 / 2))
    shorter = captions.bleu_statistics(["chair"], [["brown chair", "the old brown chair"]])[0]
    assert captions.bleu_from_sums(shorter, 1) == pytest.approx(
        math.exp(1 - 2 / 1)
    )  # the closest reference has 2 words
    both = longer + shorter
    assert captions.bleu_from_sums(both, 1) == pytest.approx(3 / 4)  # 4 words answered, 4 in the references


@needs_pycocoevalcap
def test_video3d_cuts_final_periods_for_n_grams_alone(without_java: None) -> None:
    result = score_answers(["Brown chair..."], [["Brown chair"]], protocols=["video3d"], num_resamples=0)
    scores = result["protocols"]["video3d"]["all"]["scores"]
    assert (scores["EM@1"], scores["BLEU-1"], scores["ROUGE-L"]) == pytest.approx((0.0, 100.0, 100.0), abs=1e-4)


@needs_pycocoevalcap
def test_rouge_and_cider_by_hand() -> None:
    assert captions.rouge_scores(["brown chair"], [["brown wooden chair"]])[0] == pytest.approx(
        2.44 * (2 / 3) / (2 / 3 + 1.44)
    )
    # Of n = 1..4 only single words exist; "red" is met perfectly, "blue" not at all; times 10.
    assert captions.cider_scores(["red", "green"], [["red"], ["blue"]]) == pytest.approx([2.5, 0.0])


def test_meteor_by_hand() -> None:
    counts = np.zeros(captions.METEOR_COLUMNS)  # "on desk" for "desk": two words, one of them a function word
    counts[[0, 1, 2, 4, 5, 20, 21, 22]] = [2, 1, 1, 1, 1, 1, 1, 1]
    precision, recall = 0.75 / (0.75 + 0.25), 1.0
    mean = 1 / (0.15 / precision + 0.85 / recall)
    assert captions.meteor_from_sums(counts) == pytest.approx(mean * (1 - 0.6))
    assert captions.meteor_from_sums(np.zeros(captions.METEOR_COLUMNS)) == 0.0


def _made_up_corpus(seed: int, size: int) -> tuple[list[str], list[list[str]]]:
    generator = random.Random(seed)
    words = [*("brown", "dark", "white", "black", "big", "chair", "chairs", "table", "window", "two")]
    words += ["left", "right", "of", "the", "on", "a", "under"]

    def phrase() -> str:
        return " ".join(generator.choices(words, k=generator.randint(1, 7)))

    references = [[phrase() for _ in range(generator.randint(1, 4))] for _ in range(size)]
    answers = [generator.choice([phrase(), generator.choice(wanted)]) for wanted in references]
    return answers, references


@needs_pycocoevalcap
def test_sums_agree_with_the_library(without_java: None) -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    answers, references = _made_up_corpus(0, 200)
    answer_by_id, references_by_id = {i: [a] for i, a in enumerate(answers)}, dict(enumerate(references))
    result = score_answers(answers, references, protocols=["video3d"], num_resamples=0, per_sample=True)
    scores = result["protocols"]["video3d"]["all"]["scores"]
    bleu, bleu_of_each = Bleu(4).compute_score(references_by_id, answer_by_id, verbose=0)
    assert [scores[f"BLEU-{n}"] for n in (1, 2, 3, 4)] == pytest.approx([100 * value for value in bleu], abs=1e-9)
    each = result["protocols"]["video3d"]["per_sample"]
    assert each["BLEU-2"] == pytest.approx([100 * value for value in bleu_of_each[1]], abs=1e-5)
    assert scores["ROUGE-L"] == pytest.approx(100 * Rouge().compute_score(references_by_id, answer_by_id)[0])
    assert scores["CIDEr"] == pytest.approx(100 * Cider().compute_score(references_by_id, answer_by_id)[0])


@pytest.mark.slow
@needs_java
def test_meteor_sums_agree_with_the_library() -> None:
    answers, references = _made_up_corpus(1, 120)
    with closing(captions.MeteorProcess()) as process:
        counts = process.statistics(answers, references)
        total, each = process._meteor.compute_score(
            dict(enumerate(references)), {i: [a] for i, a in enumerate(answers)}
        )
    assert captions.meteor_from_sums(counts.sum(axis=0)) == pytest.approx(total, abs=1e-12)
    assert captions.meteor_from_sums(counts) == pytest.approx(each, abs=1e-12)


@needs_java
def test_ptb_keeps_one_line_for_each_sentence() -> None:
    sentences = ["Brown, chair!", "", "a\u2028b\x0cc\r\nd", "...", "It's a 2-seat sofa", "café 😀"]
    assert captions.ptb_tokenize(sentences) == ["brown chair", "", "a b c d", "", "it 's a 2-seat sofa", "café"]


@pytest.mark.slow
@needs_java
def test_an_answer_equal_to_its_reference_is_perfect_everywhere() -> None:
    generator = random.Random(2)
    words = ["red", "green", "blue", "oval", "round", "tall", "small", "old", "new", "flat", "soft", "hard"]
    texts = [" ".join(generator.sample(words, 5)) for _ in range(20)]
    result = score_answers(texts, [[text] for text in texts], num_resamples=0)
    for name, entry in result["protocols"].items():
        perfect = {metric: 1000.0 if metric == "CIDEr" else 100.0 for metric in entry["all"]["scores"]}
        assert entry["all"]["scores"] == pytest.approx(perfect, abs=1e-4), name
        assert {"BLEU-4", "METEOR", "ROUGE-L", "CIDEr"} <= set(perfect)
    assert result["predecessor"]["all"]["scores"] == {"exact_match": 100.0, "partial_match": 100.0}
    assert result["gaps"] == []


def test_an_untidy_answer_equal_to_its_reference_is_exact_but_in_chat_scene() -> None:
    texts = ["The 2 chairs.", "Zwölf Stühle – 椅子 😀", "a\nb", "TV"]
    result = score_answers(texts, [[text] for text in texts], captions=False)
    exact = {name: entry["all"]["scores"]["EM@1"] for name, entry in result["protocols"].items()}
    assert exact == {"official": 100.0, "leo": 100.0, "llava3d": 100.0, "chat_scene": 50.0, "video3d": 100.0}


@needs_pycocoevalcap
def test_order_of_references_matters_in_leo_alone(without_java: None) -> None:
    answers, references = _made_up_corpus(3, 300)
    generator = random.Random(4)
    shuffled = [generator.sample(wanted, len(wanted)) for wanted in references]

    def scores(wanted: list[list[str]]) -> dict:
        result = score_answers(answers, wanted, num_resamples=0, per_sample=True)
        return {name: entry["per_sample"] for name, entry in result["protocols"].items()}

    before, after = scores(references), scores(shuffled)
    assert before["leo"]["EM@1"] != after["leo"]["EM@1"]
    del before["leo"]["EM@1"], after["leo"]["EM@1"]
    for name in before:
        assert before[name].keys() == after[name].keys()
        for metric, values in before[name].items():
            assert values == pytest.approx(after[name][metric], abs=1e-5), (name, metric)
    assert "CIDEr" in before["video3d"]


@pytest.mark.slow
@needs_java
def test_empty_long_and_strange_answers_leave_their_neighbours_alone() -> None:
    strange = ["", " ", "chair " * 20_000, "a\u2028b\x85c\nd", "... !", "||| |||", "椅子 😀 é", "\x00"]
    answers = [text for pair in zip(strange, ["old brown chair"] * len(strange)) for text in pair]
    references = [["big white table"], ["old brown chair"]] * len(strange)
    result = score_answers(answers, references, per_sample=True, num_resamples=20)
    for name, entry in result["protocols"].items():
        for metric in ("EM@1", "ROUGE-L", "METEOR", "BLEU-3"):
            values = entry["per_sample"][metric]
            assert values[1::2] == pytest.approx([100.0] * len(strange), abs=1e-4), (name, metric)
            assert values[0::2] == pytest.approx([0.0] * len(strange), abs=1e-4), (name, metric)
    refined = {name: entry["per_sample"].get("EM-R", [None])[0] for name, entry in result["protocols"].items()}
    assert refined == {"official": None, "leo": 100.0, "llava3d": 100.0, "chat_scene": 0.0, "video3d": None}
    json.dumps(result, allow_nan=False)


# what is missing is said


@needs_pycocoevalcap
def test_without_java_the_rest_is_computed_and_the_gap_is_said(without_java: None) -> None:
    result = score_answers(["brown chair"] * 2, [["brown chair"], ["red table"]], num_resamples=0)
    scores = {name: set(entry["all"]["scores"]) for name, entry in result["protocols"].items()}
    grams = {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"}
    assert scores == {
        "official": {"EM@1"},
        "leo": {"EM@1", "EM-R"} | grams,
        "llava3d": {"EM@1", "EM-R"},
        "chat_scene": {"EM@1", "EM-R"},
        "video3d": {"EM@1"} | grams,
    }
    assert len(result["gaps"]) == 2
    assert result["gaps"][0].startswith("METEOR of official, leo, llava3d, chat_scene, video3d: no `java` on PATH")
    assert result["gaps"][1].startswith("BLEU, ROUGE-L, CIDEr of official, llava3d, chat_scene: PTBTokenizer needs")
    assert "NOT COMPUTED: METEOR" in score.render(result)


def test_without_pycocoevalcap_matches_remain_and_the_gap_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    result = score_answers(["brown"], [["brown"]], protocols=["official", "leo"], num_resamples=0)
    assert set(result["protocols"]["leo"]["all"]["scores"]) == {"EM@1", "EM-R"}
    assert result["gaps"] == [
        "BLEU, METEOR, ROUGE-L, CIDEr of official, leo: pycocoevalcap is missing; pip install 'pycocoevalcap>=1.2'"
    ]
    assert score_answers(["brown"], [["brown"]], task="sqa3d", protocols=["video3d"])["gaps"] == []


@needs_pycocoevalcap
def test_a_broken_java_is_an_error_not_a_gap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "java").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(RuntimeError, match="PTBTokenizer"):
        score_answers(["brown"], [["brown"]], protocols=["official"])
    with pytest.raises(RuntimeError, match="METEOR"):
        score_answers(["brown"], [["brown"]], protocols=["video3d"])


# rows, intervals, refusals


def test_rows_by_question_type() -> None:
    types = ["what", "is", "what", "how"]
    result = score_answers(["a", "no", "c", "4"], [["a"], ["yes"], ["x"], ["4"]], question_types=types, captions=False)
    rows = result["protocols"]["official"]["by_type"]
    assert {name: (row["count"], row["scores"]["EM@1"]) for name, row in rows.items()} == {
        "how": (1, 100.0),
        "is": (1, 0.0),
        "what": (2, 50.0),
    }
    assert set(result["predecessor"]["by_type"]) == set(types)


@needs_pycocoevalcap
def test_intervals_hold_the_value_and_repeat_by_seed(without_java: None) -> None:
    answers, references = _made_up_corpus(5, 150)

    def row(seed: int) -> dict:
        result = score_answers(answers, references, protocols=["leo"], seed=seed, num_resamples=200)
        return result["protocols"]["leo"]["all"]

    first = row(0)
    assert first == row(0) and first["intervals"] != row(1)["intervals"]
    for metric, value in first["scores"].items():
        low, high = first["intervals"][metric]
        assert low < value < high, metric


def test_interval_of_a_share_is_the_binomial_one() -> None:
    hits = np.zeros((1000, 1))
    hits[:300] = 1.0
    low, high = percentile_interval(bootstrap_sums(hits, 4000, seed=0)[:, 0] / 1000)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.003)


def test_both_metrics_hold_the_same_bootstrap() -> None:
    copies = [(ROOT / "metrics" / name / "bootstrap.py").read_bytes() for name in ("scene_qa", "room_actions")]
    assert copies[0] == copies[1]


TEN = ["brown", *"abcdefghi"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predictions": ["brown"]}, "references has 2 rows and predictions 1"),
        ({"predictions": [], "references": []}, "predictions is empty"),
        ({"predictions": ["brown", None]}, r"predictions\[1\] is None \(1 such rows\), wanted a string"),
        ({"references": [["red"], []]}, r"references\[1\] is \[\] \(1 such rows\)"),
        ({"references": [["red"], [" "]]}, r"references\[1\] is \[' '\]"),
        ({"references": ["red", ["blue"]]}, r"references\[0\] is 'red'"),
        ({"ids": ["a", "a"]}, "ids repeats 'a'"),
        ({"question_types": ["what"]}, "question_types has 1 rows"),
        ({"candidates": [TEN[:9], TEN]}, r"candidates\[0\] is .*wanted 10 answers"),
        ({"candidates": [TEN, ["other", *TEN[1:]]]}, r"candidates\[1\] .*the first of them the prediction 'brown'"),
        ({"protocols": ["offical"]}, "did you mean 'official'"),
        ({"task": "vqa"}, "task is 'vqa', wanted one of scanqa, sqa3d, rooms_qa"),
        ({"predictions": ["brown", 1], "ids": ["a", "a"]}, r"predictions\[1\] is 1.*; ids repeats 'a'"),
    ],
)
def test_wrong_input_is_refused_by_name(changes: dict, message: str) -> None:
    inputs = {"predictions": ["brown", "brown"], "references": [["red"], ["blue"]], "captions": False, **changes}
    with pytest.raises(ValueError, match=message):
        score_answers(inputs.pop("predictions"), inputs.pop("references"), **inputs)


# as users reach it


def test_loads_by_path_in_a_fresh_process_elsewhere(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "metrics" / "scene_qa", tmp_path / "elsewhere" / "scene_qa")
    program = """
import json, evaluate
metric = evaluate.load("elsewhere/scene_qa")
metric.add_batch(predictions=["Two chairs"], references=[["2 chairs", "a chair"]])
metric.add(prediction="red", reference=["red"])
result = metric.compute(task="sqa3d", captions=False, question_types=["how", "what"], num_resamples=50)
print(json.dumps(result["protocols"]["llava3d"]["all"]["scores"]))
try:
    metric.compute(predictions=["a"], references=[["a"], ["b"]])
except ValueError as error:
    print(error)
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    scores, error = run.stdout.splitlines()
    assert json.loads(scores) == {"EM@1": 100.0, "EM-R": 100.0}
    assert "predictions (1) and references (2)" in error


def _write(path: Path, rows: list[dict] | dict) -> Path:
    is_lines = path.suffix == ".jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) if is_lines else json.dumps(rows), encoding="utf-8")
    return path


QUESTIONS = [
    {"question_id": "val-1", "question": "What is it?", "answers": ["chair"]},
    {"question_id": "val-2", "question": "Is it red?", "answers": ["no", "it is not"]},
]


def test_command_line_prints_one_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    references = _write(tmp_path / "questions.json", QUESTIONS)
    rows = [{"question_id": "val-2", "answer_top10": ["yes", *"abcdefgh", "no"]}]
    rows.append({"question_id": "val-1", "answer_top10": ["chair", *"abcdefghi"]})
    predictions = _write(tmp_path / "predictions.json", rows)
    output = tmp_path / "new" / "metrics.json"
    paths = ["--predictions", str(predictions), "--references", str(references), "--output", str(output)]
    score.main([*paths, "--no-captions", "--num-resamples", "0"])
    printed = capsys.readouterr().out
    assert "| official | 50.000 | – | 100.000 |" in printed
    assert all(f"{name}: {entry.difference}." in printed for name, entry in PROTOCOLS["scanqa"].items())
    by_type = json.loads(output.read_text())["protocols"]["official"]["by_type"]
    assert {name: row["scores"]["EM@1"] for name, row in by_type.items()} == {"what": 100.0, "is": 0.0}


def test_command_line_reads_own_references_and_sqa3d_annotations(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    own = _write(tmp_path / "own.jsonl", [{"sample_id": "s", "prediction": "2", "references": ["two"]}])
    score.main(["--predictions", str(own), "--no-captions", "--num-resamples", "0", "--protocols", "leo"])
    assert "| leo | 100.000 | 100.000 |" in capsys.readouterr().out
    annotation = {"question_id": 7, "question_type": "N/A", "answers": [{"answer": "two", "answer_id": 1}]}
    sqa3d = _write(tmp_path / "annotations.json", {"annotations": [annotation]})
    answers = _write(tmp_path / "answers.json", [{"question_id": "7", "prediction": "2"}])
    arguments = ["--task", "sqa3d", "--predictions", str(answers), "--references", str(sqa3d), "--no-captions"]
    score.main([*arguments, "--num-resamples", "0"])
    assert "| video3d | 100.000 | – |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([{"question_id": "val-1", "prediction": "x"}], QUESTIONS, "1 questions have no prediction: val-2"),
        ([{"question_id": f"val-{i}", "prediction": "x"} for i in (1, 2, 3)], QUESTIONS, "1 ids are not in .*: val-3"),
        ([{"question_id": "test-1", "prediction": "x"}], QUESTIONS, "none of the 1 ids .*another dataset or split"),
        ([{"question_id": "val-1", "prediction": "x"}] * 2, QUESTIONS, "row 1 repeats the id 'val-1'"),
        ([{"prediction": "x"}], QUESTIONS, "row 0 has no sample_id or question_id, only prediction"),
        ([{"question_id": "a", "answer": "x"}], [{"question_id": "a", "answers": ["y"]}], "no `prediction` and no"),
        ([{"question_id": "a", "prediction": "x"}], [{"question_id": "a"}], "a split without labels"),
        ({"rows": []}, QUESTIONS, "holds dict, wanted rows"),
    ],
)
def test_command_line_refuses_wrong_files(tmp_path: Path, predictions, references, message: str) -> None:
    paths = (_write(tmp_path / "predictions.json", predictions), _write(tmp_path / "references.json", references))
    with pytest.raises(ValueError, match=message):
        score.main(["--predictions", str(paths[0]), "--references", str(paths[1]), "--no-captions"])


REFERENCE_FILES = [os.environ.get(name) for name in ("SCANQA_PREDICTIONS", "SCANQA_REFERENCES")]
REFERENCE_SCORES = {
    **{"EM@1": 23.465, "EM@10": 53.626, "METEOR": 14.598, "ROUGE-L": 37.367, "CIDEr": 73.033},
    **{"BLEU-1": 33.956, "BLEU-2": 22.994, "BLEU-3": 17.616, "BLEU-4": 12.897},
}


@pytest.mark.slow
@needs_java
@pytest.mark.skipif(
    None in REFERENCE_FILES,
    reason="NOT TESTED: the known result to three decimals; set SCANQA_PREDICTIONS (DSPNet's answers to ScanQA val, "
    "answer_top10) and SCANQA_REFERENCES (ScanQA_v1.0_val.json)",
)
def test_known_result_to_three_decimals(tmp_path: Path) -> None:
    output = tmp_path / "metrics.json"
    paths = dict(zip(("--predictions", "--references", "--output"), [*REFERENCE_FILES, str(output)]))
    score.main([*itertools.chain.from_iterable(paths.items()), "--protocols", "official", "--num-resamples", "0"])
    scores = json.loads(output.read_text())["protocols"]["official"]["all"]["scores"]
    assert {metric: round(value, 3) for metric, value in scores.items()} == REFERENCE_SCORES
