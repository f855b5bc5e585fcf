"""The predecessor's JSONL: repaired where the official files tell the truth, refused elsewhere, and audited."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from datasets_scripts.audit import main as audit
from datasets_scripts.audit_legacy import audit_legacy
from datasets_scripts.build import main as build
from datasets_scripts.capture import Skips, SourceError
from datasets_scripts.legacy_jsonl import index_official, read_legacy, repair
from datasets_scripts.scanqa import read_scanqa
from datasets_scripts.sqa3d import read_sqa3d
from tests.layouts import scanqa_record, write_image, write_scanqa, write_sqa3d
from training.data import SceneDataset

BIRD = "data/processed/SQA3D/bird/{}_bird.png"


def row(scene_id: str, question_id: object, question: str, answer: str, *, shown: str | None = None, **more) -> dict:
    return {
        "images": [BIRD.format(shown or scene_id)],
        "geom_token": None,
        "task": "scanqa",
        "question": question,
        "answer": answer,
        "scene_id": scene_id,
        "question_id": question_id,
    } | more


def write_rows(path: Path, rows: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(record) for record in rows) + "\n")
    return path


A, B, C = "scene0001_00", "scene0002_00", "scene0003_00"
COLOR, SHAPE = "What color is the dresser?", "What shape is it?"
ROWS = [
    row(A, "train-scene0001-0", COLOR, "brown"),
    row(A, "train-scene0001-0", COLOR, "brown", shown=B),  # B's question: the official file knows it
    row(A, "train-scene0001-0", COLOR, "brown", shown=C),  # C has no such question: refused
    row(B, "train-scene0002-1", SHAPE, "round"),
]


def official(tmp_path: Path) -> list[dict]:
    records = [
        scanqa_record("train-scene0001-0", A, COLOR, ["brown", "dark brown"]),
        scanqa_record("train-scene0002-7", B, COLOR, ["brown", "brown dresser"]),
        scanqa_record("train-scene0002-1", B, SHAPE, ["round"]),
    ]
    return read_scanqa(write_scanqa(tmp_path / "ScanQA_v1.0_train.json", records), "train", Skips(True))


def test_a_row_gets_back_the_scene_its_image_shows(tmp_path: Path) -> None:
    rows = read_legacy(write_rows(tmp_path / "x.jsonl", ROWS), Skips(True))
    skips = Skips(True)
    repaired = [sample for sample, _ in repair(rows, index_official(official(tmp_path)), skips)]
    assert [(sample["scene_id"], sample["sample_id"], sample["answers"]) for sample in repaired] == [
        (A, "train-scene0001-0", ["brown", "dark brown"]),
        (B, "train-scene0002-7", ["brown", "brown dresser"]),
        (B, "train-scene0002-1", ["round"]),
    ]
    assert skips.counts == {"image of another scene, repaired": 1, "image of another scene, truth unknown": 1}


def test_without_the_truth_mixed_rows_are_refused(tmp_path: Path) -> None:
    rows = read_legacy(write_rows(tmp_path / "x.jsonl", ROWS), Skips(True))
    skips = Skips(True)
    assert [sample["scene_id"] for sample, _ in repair(rows, {}, skips)] == [A, B]
    assert skips.counts == {"image of another scene, truth unknown": 2}


def test_a_repaired_question_gets_its_own_situation(tmp_path: Path) -> None:
    shared = dict(question="Which way?", answer="left")
    path = write_sqa3d(
        tmp_path,
        "train",
        [
            dict(id=1, scene=A, situation="At the desk.", **shared),
            dict(id=2, scene=B, situation="By the bed.", **shared),
        ],
    )
    truth = [situated.row for situated in read_sqa3d(path, "val", Skips(True))]
    mixed = row(B, 2, "Which way?", "left", shown=A, task="sqa3d", situation="By the bed.")
    rows = read_legacy(write_rows(tmp_path / "x.jsonl", [mixed]), Skips(True))
    ((sample, _),) = repair(rows, index_official(truth), Skips(True))
    assert (sample["scene_id"], sample["sample_id"], sample["situation"]) == (A, "1", "At the desk.")


def test_an_ambiguous_truth_is_no_truth(tmp_path: Path) -> None:
    twice = [*official(tmp_path), official(tmp_path)[1] | {"sample_id": "other"}]
    rows = read_legacy(write_rows(tmp_path / "x.jsonl", ROWS[1:2]), Skips(True))
    skips = Skips()
    assert repair(rows, index_official(twice), skips) == []
    assert skips.counts == {"image of another scene, truth unknown": 1}


def test_repeats_and_actions_are_counted(tmp_path: Path) -> None:
    action = {"task": "arkit_actions", "images": ["x.png"], "instruction": "Find it.", "action_json": {"scene": "1"}}
    skips = Skips(True)
    rows = read_legacy(write_rows(tmp_path / "x.jsonl", [ROWS[0], ROWS[0], action]), skips)
    assert len(repair(rows, {}, skips)) == 1
    assert skips.counts == {"action without cameras: build from ARKitScenes instead": 1, "repeated question": 1}


BAD_ROWS = {
    "no image": row(A, "q", COLOR, "x") | {"images": []},
    "image of another kind": row(A, "q", COLOR, "x") | {"images": [3]},
    "other task": row(A, "q", COLOR, "x", task="poetry"),
    "no scene": row(A, "q", COLOR, "x") | {"scene_id": None},
    "no answer": row(A, "q", COLOR, " "),
    "no id": row(A, None, COLOR, "x") | {"question_id": ""},
    "no object": [1, 2],
}


@pytest.mark.parametrize("fault", BAD_ROWS)
def test_damaged_rows_are_counted_or_named(tmp_path: Path, fault: str) -> None:
    path = write_rows(tmp_path / "x.jsonl", [ROWS[0], BAD_ROWS[fault]])
    skips = Skips()
    assert len(read_legacy(path, skips)) == 1 and skips.counts == {"row unreadable": 1}
    with pytest.raises(SourceError, match=r"x\.jsonl, line 2"):
        read_legacy(path, Skips(True))
    path.write_text('{"images": [\n')
    with pytest.raises(SourceError, match=r"line 1 is no JSON"):
        read_legacy(path, Skips())


def test_bird_views_build_into_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """From the predecessor's folder to rows that training reads: no cameras, one view, no image of another scene."""
    old = tmp_path / "old"
    shades = {A: 40, B: 120, C: 200}
    for scene_id, shade in shades.items():
        write_image(old / BIRD.format(scene_id), np.full((24, 32, 3), shade, np.uint8))
    outside = row(C, "train-scene0003-1", SHAPE, "square") | {"images": ["../../../etc/scene0003_00.png"]}
    train = write_rows(old / "scanqa" / "train_split.jsonl", [*ROWS, outside])
    held_out = write_rows(old / "scanqa" / "test_split.jsonl", [row(A, "train-scene0001-9", SHAPE, "flat")])
    official(tmp_path)
    command = ["--source", "legacy", "--scan-root", str(old), "--output", str(tmp_path / "built"), "--num-proc", "1"]
    command += ["--qa", f"legacy={train}", "--qa", f"legacy={held_out}"]
    command += ["--official", f"scanqa={tmp_path / 'ScanQA_v1.0_train.json'}"]
    assert build(command) == 0
    printed = capsys.readouterr().out
    assert "training scene in a held-out room: 1" in printed and "image unreadable: 1" in printed
    dataset = SceneDataset([tmp_path / "built"], "train", num_views=8)
    assert [dataset.sample(i)["sample_id"] for i in range(2)] == [
        "train-scene0002-7",
        "train-scene0002-1",
    ]
    example = dataset[dataset.fixed_draws(8)[0]]
    assert example.world_from_cam is None and example.scene_id == B
    assert abs(int(np.asarray(example.images[0])[0, 0, 0]) - shades[B]) < 3
    assert SceneDataset([tmp_path / "built"], "test", num_views=8).sample(0)["scene_id"] == A
    assert audit([str(tmp_path / "built")]) == 0


def test_audit_of_legacy_files(tmp_path: Path) -> None:
    scanqa = write_rows(tmp_path / "scanqa" / "test_split.jsonl", [*ROWS, ROWS[3]])
    extra = row(C, 5, "Which way?", "left", task="sqa3d", situation="By the bed.")
    sqa3d = write_rows(tmp_path / "sqa3d" / "test_split.jsonl", [extra])
    findings = audit_legacy([scanqa, sqa3d])
    assert findings.figures[str(scanqa)] == {
        "rows": 5,
        "image of another scene": 2,
        "unique question ids": 2,
        "exact duplicates": 1,
        "scenes": 2,
    }
    found = {check: finding.count for check, finding in findings.found.items()}
    assert found["room held out in one file only"] == 3
    assert found["test row from the official training split"] == 5
    assert found["situation present"] == 1
    assert findings.has_errors
    train = write_rows(tmp_path / "scanqa" / "train_split.jsonl", [row(C, "train-scene0003-0", SHAPE, "flat")])
    found = audit_legacy([train, sqa3d], tmp_path).found
    assert found["room trained on and held out"].count == 1
    assert found["image missing or unreadable"].count == 2


def test_audit_of_legacy_actions(tmp_path: Path) -> None:
    def action(instruction: str, center: list[float]) -> dict:
        placed = {"action": "place_anchor", "scene": "1", "center": center, "normal": [0, 1, 0], "extent": [1, 1, 1]}
        return {"images": ["x.png"], "task": "arkit_actions", "instruction": instruction, "action_json": placed}

    path = tmp_path / "test.json"
    path.write_text(
        json.dumps([action("a chair", [0, 0, 0]), action("a chair", [1, 0, 0]), action("a bed", [2, 0, 0])])
    )
    found = {check: finding.count for check, finding in audit_legacy([path]).found.items()}
    assert found == {
        "action without cameras": 3,
        "normal is the default": 3,
        "instruction with several answers": 2,
    }


def test_the_shipped_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    if "ROOMPLAN_REAL_DATA" not in os.environ:
        pytest.skip("set ROOMPLAN_REAL_DATA to a folder with legacy/ (the predecessor's test splits) to run this")
    folder = Path(os.environ["ROOMPLAN_REAL_DATA"]) / "legacy"
    files = [str(folder / f"{name}_test_split.jsonl") for name in ("scanqa", "sqa3d")]
    assert audit(["--legacy", *files, "--json", str(tmp_path / "audit.json")]) == 1
    assert "image of another scene" in capsys.readouterr().out
    report = json.loads((tmp_path / "audit.json").read_text())
    wanted = {"rows": 3567, "image of another scene": 113, "unique question ids": 3459, "exact duplicates": 0}
    assert report["figures"][files[0]] == wanted | {"scenes": 79}
    wanted = {"rows": 3664, "image of another scene": 483, "unique question ids": 3169, "exact duplicates": 29}
    assert report["figures"][files[1]] == wanted | {"scenes": 77}
    assert report["figures"]["rooms held out in all files"] == 18
    assert report["findings"]["room held out in one file only"]["count"] == 61 + 59
