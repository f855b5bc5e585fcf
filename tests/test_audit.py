"""The audit of built datasets finds each fault that is put into one, and nothing in a sound one."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from datasets_scripts.audit import audit_datasets, main
from datasets_scripts.schema import SAMPLE_FEATURES, SCENE_FEATURES, write_manifest
from tests.frames import camera

Rows = dict[str, list[dict]]


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), (shade, 90, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def depth_png(millimetres: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((24, 32), millimetres, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def scene(scene_id: str, room_id: str, shade: int) -> dict:
    cameras = [camera((0, 0, 1), (0, 1, 0)), camera((0, 0, 1), (1, 0, 0))]
    intrinsics = [[20.0, 0, 16], [0, 20, 12], [0, 0, 1]]
    return {
        "scene_id": scene_id,
        "room_id": room_id,
        "source": "scannet",
        "frame_ids": ["0", "1"],
        "images": [{"bytes": jpeg(shade + i), "path": f"{scene_id}.{i}.jpg"} for i in range(2)],
        "intrinsics": [intrinsics, intrinsics],
        "world_from_cam": [matrix.tolist() for matrix in cameras],
        "depth": [{"bytes": depth_png(5000), "path": f"{scene_id}.{i}.png"} for i in range(2)],
        "is_metric": True,
        "is_gravity_aligned": True,
        "world_from_source": np.eye(4).tolist(),
    }


def sample(sample_id: str, scene_id: str, **changes: object) -> dict:
    return {
        "sample_id": sample_id,
        "scene_id": scene_id,
        "task": "scanqa",
        "question": "What is red?",
        "situation": None,
        "situation_pose": None,
        "answers": ["chair"],
        "question_type": "what",
        "action": None,
        "targets": [],
        "anchor_frame_id": None,
    } | changes


def action(sample_id: str, scene_id: str, center: tuple[float, float, float]) -> dict:
    box = {"label": "chair", "kind": "object", "center": list(center), "size": [0.5] * 3, "axes": np.eye(3).tolist()}
    text = "Place an anchor on the chair."
    changes = {"task": "actions", "question": text, "answers": [], "action": "place_anchor", "targets": [box]}
    return sample(sample_id, scene_id, **changes)


def sound_rows() -> Rows:
    return {
        "scenes/train": [scene("scene0000_00", "scene0000", 20)],
        "scenes/heldout": [scene("scene0001_00", "scene0001", 120)],
        "samples/train": [sample("a", "scene0000_00"), action("b", "scene0000_00", (0.2, 3, 1))],
        "samples/val": [sample("c", "scene0001_00")],
        "samples/test": [sample("d", "scene0001_00", question="Where is it?", answers=[])],
    }


def write(root: Path, rows: Rows) -> Path:
    for table, listed in rows.items():
        features = SCENE_FEATURES if table.startswith("scenes") else SAMPLE_FEATURES
        columns = {key: [row[key] for row in listed] for key in features}
        Dataset.from_dict(columns, features=features).save_to_disk(str(root / table))
    write_manifest(root, counts={}, options={}, source_files={})
    return root


def test_a_sound_dataset_has_no_fault(tmp_path: Path) -> None:
    findings = audit_datasets([write(tmp_path / "sound", sound_rows())])
    assert {check: finding.severity for check, finding in findings.found.items()} == {
        "test question without answers": "note"
    }
    assert not findings.has_errors
    assert findings.figures["tasks"] == {"scanqa": 3, "actions": 1}
    assert findings.figures["labels"] == {"chair": 1}
    assert main([str(tmp_path / "sound")]) == 0


def fault(name: str) -> Callable[[Callable[[Rows], None]], Callable[[Rows], None]]:
    def register(change: Callable[[Rows], None]) -> Callable[[Rows], None]:
        FAULTS.setdefault(name, []).append(change)
        return change

    return register


FAULTS: dict[str, list[Callable[[Rows], None]]] = {}


@fault("image unreadable")
def _(rows: Rows) -> None:
    image = rows["scenes/train"][0]["images"][1]
    image["bytes"] = image["bytes"][: len(image["bytes"]) // 2]


@fault("image unreadable")
def _(rows: Rows) -> None:
    rows["scenes/train"][0]["depth"][1]["bytes"] = b"no depth"


@fault("image missing")
def _(rows: Rows) -> None:
    rows["scenes/train"][0]["images"][1] = {"bytes": b"", "path": None}


@fault("image of another scene")
def _(rows: Rows) -> None:
    rows["scenes/train"][0]["images"][1]["path"] = "scene0007_00.1.jpg"


@fault("one image in two scenes")
def _(rows: Rows) -> None:
    rows["scenes/heldout"][0]["images"][0]["bytes"] = rows["scenes/train"][0]["images"][0]["bytes"]


@fault("camera not sound")
def _(rows: Rows) -> None:
    rows["scenes/train"][0]["world_from_cam"][0][0][3] = float("nan")


@fault("camera not sound")
def _(rows: Rows) -> None:
    rows["scenes/train"][0]["world_from_cam"][0] = np.diag([2.0, 2, 2, 1]).tolist()


@fault("camera not sound")
def _(rows: Rows) -> None:
    rows["scenes/train"][0]["intrinsics"][0][0][0] = 0.0


@fault("scene breaks the schema")
def _(rows: Rows) -> None:
    rows["scenes/train"][0]["frame_ids"] = ["0", "0"]


@fault("scene id twice")
def _(rows: Rows) -> None:
    rows["scenes/train"].append(scene("scene0000_00", "scene0000", 60))


@fault("sample id twice")
def _(rows: Rows) -> None:
    rows["samples/val"][0]["sample_id"] = "a"


@fault("answers empty")
def _(rows: Rows) -> None:
    rows["samples/train"][0]["answers"] = []


@fault("sample breaks the schema")
def _(rows: Rows) -> None:
    rows["samples/train"][1]["targets"] = []


@fault("sample without its scene")
def _(rows: Rows) -> None:
    rows["samples/train"][0]["scene_id"] = "scene0009_00"


@fault("anchor frame not stored")
def _(rows: Rows) -> None:
    rows["samples/train"][1]["anchor_frame_id"] = "7"


@fault("train room held out too")
def _(rows: Rows) -> None:
    rows["scenes/heldout"][0]["room_id"] = "scene0000"


@fault("box no view sees")
def _(rows: Rows) -> None:
    rows["samples/train"].append(action("e", "scene0000_00", (0, -3, 1)))  # behind both cameras


@fault("box no view sees")
def _(rows: Rows) -> None:
    rows["samples/train"].append(action("e", "scene0000_00", (0, 7, 1)))  # behind the surface at 5 m


ALL_FAULTS = [(name, index) for name, changes in FAULTS.items() for index in range(len(changes))]


@pytest.mark.parametrize(("name", "index"), ALL_FAULTS)
def test_each_fault_is_found_and_stops_training(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str, index: int
) -> None:
    rows = copy.deepcopy(sound_rows())
    FAULTS[name][index](rows)
    root = write(tmp_path / "faulty", rows)
    assert main([str(root), "--json", str(tmp_path / "audit.json")]) == 1
    report = json.loads((tmp_path / "audit.json").read_text())
    assert report["has_errors"] and report["findings"][name]["severity"] == "error"
    errors = {check for check, finding in report["findings"].items() if finding["severity"] == "error"}
    assert errors == {name}
    assert name in capsys.readouterr().out


def test_rooms_leak_across_datasets(tmp_path: Path) -> None:
    first = write(tmp_path / "first", sound_rows())
    other = {
        "scenes/train": [scene("scene0001_01", "scene0001", 200)],
        "samples/train": [sample("z", "scene0001_01")],
    }
    second = write(tmp_path / "second", other)
    assert not audit_datasets([first]).has_errors and not audit_datasets([second]).has_errors
    assert audit_datasets([first, second]).found["train room held out too"].count == 1


def test_repeats_and_contradictions_are_warnings(tmp_path: Path) -> None:
    rows = sound_rows()
    rows["samples/train"] += [sample("e", "scene0000_00"), sample("f", "scene0000_00", answers=["table"])]
    findings = audit_datasets([write(tmp_path / "x", rows)])
    assert findings.found["question repeated"].severity == "warning"
    assert findings.found["answers contradict"].count == 1
    assert not findings.has_errors


def test_images_need_not_be_decoded(tmp_path: Path) -> None:
    rows = sound_rows()
    rows["scenes/train"][0]["depth"][1]["bytes"] = b"no depth"
    root = write(tmp_path / "x", rows)
    assert main([str(root), "--no-images"]) == 0 and main([str(root)]) == 1


def test_what_is_no_dataset_cannot_be_audited(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path)]) == 2
    assert "manifest.json" in capsys.readouterr().err
    assert main([]) == 2 and main([str(tmp_path), "--legacy", "x.jsonl"]) == 2
    assert main(["--legacy", str(tmp_path / "x.jsonl")]) == 2
