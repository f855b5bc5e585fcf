"""ScanQA and SQA3D questions: answers kept, situations placed, damaged records named or counted."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from datasets_scripts.arkitscenes import read_boxes
from datasets_scripts.boxes import box_corners
from datasets_scripts.capture import Skips, SourceError
from datasets_scripts.photos import parse_gravity, read_photos
from datasets_scripts.scanqa import read_scanqa, scanqa_files, split_of
from datasets_scripts.schema import validate_sample
from datasets_scripts.sqa3d import MeshFrame, read_mesh_frame, read_ply_vertices, read_sqa3d, sqa3d_files
from processing.geometry_vggt_qwen3 import invert_rigid, transform_points
from tests.layouts import AXIS_ALIGNMENT, back_project, scanqa_record, write_mesh, write_scanqa, write_sqa3d

EXCERPT = Path(__file__).parent / "fixtures" / "sqa3d"
SCENE = "scene0000_00"


def test_scanqa_keeps_every_answer_in_order(tmp_path: Path) -> None:
    records = [scanqa_record("val-scene0000-0", SCENE, "What color is it?", ["brown", "brown", "dark brown"])]
    path = write_scanqa(tmp_path / "ScanQA_v1.0_val.json", records)
    (row,) = read_scanqa(path, split_of(path), Skips(True))
    validate_sample(row)
    assert row["answers"] == ["brown", "brown", "dark brown"]
    assert (row["sample_id"], row["scene_id"], row["question_type"]) == ("val-scene0000-0", SCENE, "what")


def test_scanqa_tests_have_no_answers(tmp_path: Path) -> None:
    path = write_scanqa(tmp_path / "ScanQA_v1.0_test_w_obj.json", [scanqa_record("test-0", SCENE, "Where?", None)])
    (row,) = read_scanqa(path, split_of(path), Skips(True))
    assert row["answers"] == [] and split_of(path) == "test"
    validate_sample(row, labelled=False)


def test_splits_are_named_by_their_files(tmp_path: Path) -> None:
    assert [split_of(Path(f"ScanQA_v1.0_{name}.json")) for name in ("train", "val", "test_wo_obj")] == [
        "train",
        "val",
        "test",
    ]
    with pytest.raises(SourceError, match="says no split"):
        split_of(Path("questions.json"))
    with pytest.raises(SourceError, match="holds no ScanQA"):
        scanqa_files(tmp_path)
    with pytest.raises(SourceError, match="holds no v1_balanced"):
        sqa3d_files(tmp_path)


GOOD = scanqa_record("val-scene0000-1", SCENE, "Is it?", ["yes"])
BAD_RECORDS = {
    "no answers": GOOD | {"answers": []},
    "blank answer": GOOD | {"answers": ["yes", " "]},
    "answers of another kind": GOOD | {"answers": "yes"},
    "number among answers": GOOD | {"answers": [1]},
    "no question": {key: value for key, value in GOOD.items() if key != "question"},
    "blank question": GOOD | {"question": "  "},
    "climbing scene": GOOD | {"scene_id": "../../secret"},
    "scene of another kind": GOOD | {"scene_id": 7},
    "id with a space": GOOD | {"question_id": "a b"},
    "no object": ["What?"],
}


@pytest.mark.parametrize("fault", BAD_RECORDS)
def test_damaged_records_are_counted_or_named(tmp_path: Path, fault: str) -> None:
    path = write_scanqa(tmp_path / "ScanQA_v1.0_val.json", [GOOD, BAD_RECORDS[fault]])
    skips = Skips()
    assert [row["sample_id"] for row in read_scanqa(path, "val", skips)] == ["val-scene0000-1"]
    assert skips.counts == {"question unreadable": 1}
    with pytest.raises(SourceError, match=r"val\.json\[1\]"):
        read_scanqa(path, "val", Skips(True))


@pytest.mark.parametrize("text", ["", "{}", "[1, ", "null", "\xff\xfe"])
def test_files_of_another_shape_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ScanQA_v1.0_val.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SourceError, match=r"ScanQA_v1\.0_val\.json"):
        read_scanqa(path, "val", Skips())
    with pytest.raises(SourceError, match=r"nowhere\.json"):
        read_scanqa(tmp_path / "nowhere.json", "val", Skips())


# --------------------------------------------------------------------------------------------------------------- SQA3D


def test_an_excerpt_of_sqa3d() -> None:
    (path,) = sqa3d_files(EXCERPT)
    rows = [situated.row for situated in read_sqa3d(path, "val", Skips(True))]
    for row in rows:
        validate_sample(row)
    assert len(rows) == 6
    assert rows[0]["sample_id"] == "220602000037"
    assert rows[0]["question"] == "Which direction should I toss a used napkin?"
    assert rows[0]["situation"].startswith("I am wiping a table") and rows[0]["answers"] == ["right"]
    assert rows[0]["question_type"] == "which"


def test_training_repeats_a_question_over_its_situations() -> None:
    (path,) = sqa3d_files(EXCERPT)
    once = read_sqa3d(path, "val", Skips(True))
    often = read_sqa3d(path, "train", Skips(True))
    alternatives = [len(q["alternative_situation"]) for q in json.loads(path.read_text())["questions"]]
    assert len(often) == len(once) + sum(alternatives)
    ids = [situated.row["sample_id"] for situated in often]
    assert len(set(ids)) == len(ids)
    assert len({situated.row["situation"] for situated in often[:3]}) == 3


def test_a_situation_is_placed_in_the_aligned_world(tmp_path: Path) -> None:
    """A mesh whose bounding box is centred at (1, 2, 1.3) in the raw frame; the person faces raw -X turned by yaw."""
    corners = np.array([[x, y, z] for x in (-1.0, 3) for y in (0.5, 3.5) for z in (0.0, 2.6)])
    mesh = write_mesh(tmp_path, SCENE, np.concatenate([corners] + [corners[:1]] * 40))
    record = dict(id=1, scene=SCENE, situation="I stand.", question="How many?", answer="two")
    path = write_sqa3d(tmp_path, "val", [record | {"position": (0.4, -0.3, 0), "yaw": 0.5}])
    (situated,) = read_sqa3d(path, "val", Skips(True))
    frame = read_mesh_frame(mesh, AXIS_ALIGNMENT)
    assert np.allclose(frame.center, [1, 2, 1.3], atol=1e-6)
    pose = frame.situation_pose(situated)
    ahead = AXIS_ALIGNMENT[:3, :3] @ [-np.cos(0.5), -np.sin(0.5), 0]
    assert np.allclose(pose[:3, 1], ahead) and np.allclose(pose[:3, 2], [0, 0, 1])
    assert np.isclose(np.linalg.det(pose[:3, :3]), 1)
    standing = transform_points(AXIS_ALIGNMENT, [1.4, 1.7, 0.0])
    assert np.allclose(pose[:3, 3], standing, atol=1e-6)  # on the floor, which lies at raw z = 0
    # What lies ahead of the person and to the right:
    point = transform_points(AXIS_ALIGNMENT, np.array([1.4, 1.7, 1.0]) + 2 * np.array([-np.cos(0.5), -np.sin(0.5), 0]))
    assert np.allclose(transform_points(invert_rigid(pose), point), [0, 2, 1], atol=1e-6)


def test_heading_is_local_minus_x() -> None:
    record = MeshFrame(np.zeros(3), 0.0, np.eye(4))
    (path,) = sqa3d_files(EXCERPT)
    for situated in read_sqa3d(path, "val", Skips(True)):
        pose = record.situation_pose(situated)
        turn = np.array([[np.cos(situated.yaw), -np.sin(situated.yaw)], [np.sin(situated.yaw), np.cos(situated.yaw)]])
        assert np.allclose(pose[:2, 1], turn @ [-1, 0])


SITUATED = dict(id=1, scene=SCENE, situation="I stand.", question="How many?", answer="two")


@pytest.mark.parametrize(
    "change",
    [
        {"scene": "scene0001_00", "only": "annotations"},
        {"position": (float("nan"), 0, 0)},
        {"position": ("here", 0, 0)},
        {"situation": ""},
        {"answer": ""},
        {"id": 2, "only": "annotations"},
    ],
)
def test_damaged_situations_are_counted_or_named(tmp_path: Path, change: dict) -> None:
    only = change.pop("only", None)
    path = write_sqa3d(tmp_path, "val", [SITUATED | change])
    if only:
        write_sqa3d(tmp_path / "other", "val", [SITUATED])
        path.write_text((tmp_path / "other" / path.name).read_text())
    skips = Skips()
    assert read_sqa3d(path, "val", skips) == [] and skips.counts == {"question unreadable": 1}
    with pytest.raises(SourceError):
        read_sqa3d(path, "val", Skips(True))


def test_a_rotation_that_is_not_about_z_is_refused(tmp_path: Path) -> None:
    path = write_sqa3d(tmp_path, "val", [SITUATED])
    annotations = next(tmp_path.glob("*annotations*"))
    annotations.write_text(annotations.read_text().replace('"_x": 0', '"_x": 0.7'))
    with pytest.raises(SourceError, match="about Z"):
        read_sqa3d(path, "val", Skips(True))


def test_damaged_meshes_are_named(tmp_path: Path) -> None:
    path = write_mesh(tmp_path, SCENE, np.eye(3))
    whole = path.read_bytes()
    assert np.array_equal(read_ply_vertices(path), np.eye(3))
    faults = {
        "cut short": whole[:-30],
        "no binary little-endian": whole.replace(b"binary_little_endian", b"ascii"),
        "first element": whole.replace(b"element vertex", b"element face"),
        "cannot be read": whole.replace(b"float x", b"complex x"),
        "wanted x, y and z": whole.replace(b"float x", b"float w"),
        "ends before": whole.replace(b"vertex 3", b"vertex 999999999"),
        "all finite": whole[: whole.index(b"end_header")] + b"end_header\n" + b"\xff" * 60,
        "is no": b"",
    }
    for message, data in faults.items():
        path.write_bytes(data)
        with pytest.raises(SourceError, match=message):
            read_ply_vertices(path)


# -------------------------------------------------------------------------------------------- published files, if given


@pytest.fixture(scope="module")
def real() -> Path:
    """Folder with scanqa/, sqa3d/, arkitscenes/ and rgbd/ as published."""
    if "ROOMPLAN_REAL_DATA" not in os.environ:
        pytest.skip("set ROOMPLAN_REAL_DATA to a folder with scanqa/, sqa3d/, arkitscenes/ and rgbd/ to run this")
    return Path(os.environ["ROOMPLAN_REAL_DATA"])


def test_published_counts(real: Path) -> None:
    rows = read_scanqa(real / "scanqa" / "ScanQA_v1.0_val.json", "val", Skips(True))
    assert (len(rows), len({row["scene_id"] for row in rows})) == (4675, 71)
    assert sum(len(set(row["answers"])) < len(row["answers"]) for row in rows) == 757
    (path,) = sqa3d_files(real / "sqa3d")
    rows = [situated.row for situated in read_sqa3d(path, "val", Skips(True))]
    assert (len(rows), len({row["scene_id"] for row in rows})) == (3261, 65)
    assert sum(Counter(row["question_type"] for row in rows).values()) == 3261
    for row in rows:
        validate_sample(row)


def test_published_boxes(real: Path) -> None:
    for path in sorted((real / "arkitscenes" / "derived_3dod_annotation").glob("*.json")):
        for target, record in zip(read_boxes(path, Skips(True)), json.loads(path.read_text())["data"]):
            box = record["segments"]["obbAligned"]
            rows = np.reshape(box["normalizedAxes"], (3, 3))
            assert rows[2, 2] > 0.999
            local = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2 * box["axesLengths"]
            published = local @ rows + box["centroid"]
            distances = np.linalg.norm(box_corners(target)[:, None] - published[None], axis=-1).min(1)
            assert distances.max() < 0.02


def test_one_published_frame_seen_from_another(real: Path) -> None:
    """Depth back-projected into another camera agrees with that camera's depth: median within 3 cm for every pair."""
    folder = real / "rgbd"
    scene = read_photos(folder, gravity=parse_gravity(str(folder / "gravity-direction.txt")))
    medians = []
    for one in range(len(scene.frame_ids)):
        other = one + 1 if one + 1 < len(scene.frame_ids) else one - 1
        points = back_project(scene.depth[one], scene.intrinsics[one], scene.world_from_cam[one])[scene.depth[one] > 0]
        in_cam = transform_points(invert_rigid(scene.world_from_cam[other]), points)
        pixels = (in_cam @ scene.intrinsics[other].T)[:, :2] / in_cam[:, 2:]
        height, width = scene.depth[other].shape
        inside = (in_cam[:, 2] > 0.1) & (pixels >= 0).all(1) & (pixels < (width, height)).all(1)
        columns, rows = pixels[inside].astype(int).T
        measured = scene.depth[other][rows, columns]
        differences = np.abs(in_cam[inside, 2] - measured)[measured > 0]
        if len(differences) > 5000:
            medians.append(np.median(differences))
    print(f"{len(medians)} pairs, medians {min(medians):.4f} to {max(medians):.4f} m")
    assert np.median(medians) < 0.03
