"""The row validators name every fault; the manifest decides what counts as a dataset."""

import json

import numpy as np
import pytest
from datasets import Dataset

from datasets_scripts.schema import (
    SAMPLE_FEATURES,
    SCENE_FEATURES,
    NotADatasetError,
    RowError,
    dataset_fingerprint,
    question_type,
    read_manifest,
    validate_sample,
    validate_scene,
    write_manifest,
)


def scene(**changes):
    row = {
        "scene_id": "s1",
        "room_id": "r1",
        "source": "rooms",
        "frame_ids": ["a", "b"],
        "images": [{"bytes": b"1", "path": None}] * 2,
        "intrinsics": [np.array([[50.0, 0, 28], [0, 50, 28], [0, 0, 1]])] * 2,
        "world_from_cam": [np.eye(4)] * 2,
        "depth": [{"bytes": b"1", "path": None}] * 2,
        "is_metric": True,
        "is_gravity_aligned": True,
        "world_from_source": np.eye(4),
    }
    return row | changes


def target(**changes):
    row = {"label": "chair", "kind": "object", "center": [0, 0, 1.0], "size": [1.0, 1, 1], "axes": np.eye(3).tolist()}
    return row | changes


def sample(**changes):
    row = {
        "sample_id": "s1/what_color/0",
        "scene_id": "s1",
        "task": "rooms_qa",
        "question": "What color is the chair?",
        "situation": None,
        "situation_pose": None,
        "answers": ["red"],
        "question_type": "what",
        "action": None,
        "targets": [],
        "anchor_frame_id": None,
    }
    return row | changes


def action(**changes):
    row = {"task": "rooms_actions", "answers": [], "action": "place_anchor", "targets": [target()]}
    return sample(**(row | changes))


def rigid(scale=1.0, first=1.0):
    return np.diag([scale * first, scale, scale, 1.0])


def test_sound_rows_pass():
    validate_scene(scene())
    validate_scene(scene(intrinsics=None, world_from_cam=None, depth=None, world_from_source=None))
    validate_sample(sample())
    validate_sample(sample(situation="I am sitting.", situation_pose=np.eye(4)))
    validate_sample(sample(answers=[]), labelled=False)
    validate_sample(action())
    validate_sample(action(targets=[target(kind="plane", size=[1, 0, 2])]))
    validate_sample(action(action="place_anchors", targets=[target()] * 12))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scene_id": ""}, "scene_id is ''"),
        ({"room_id": "a b"}, "room_id is 'a b'"),
        ({"frame_ids": []}, "at least one view"),
        ({"frame_ids": ["a", "a"]}, "repeats an id"),
        ({"images": [None]}, "images has 1 entries for 2 frame_ids"),
        ({"depth": [None] * 3}, "depth has 3 entries"),
        ({"intrinsics": None}, "cameras need both"),
        ({"intrinsics": [np.eye(3), np.full((3, 3), np.nan)]}, r"intrinsics\[1\] has a value that is not finite"),
        ({"intrinsics": [np.diag([0.0, 5, 1])] * 2}, "positive fx and fy"),
        ({"world_from_cam": [np.eye(4), rigid(2.0)]}, r"world_from_cam\[1\] is not rigid: its determinant is 8"),
        ({"world_from_cam": [rigid(first=-1.0), np.eye(4)]}, r"world_from_cam\[0\] is not a rotation"),
        ({"world_from_cam": [np.eye(3)] * 2}, r"has shape \(3, 3\), wanted \(4, 4\)"),
        ({"world_from_cam": [np.full((4, 4), -np.inf)] * 2}, "not finite"),
        ({"world_from_source": np.ones((4, 4))}, "last row"),
        ({"extra": 1}, "unknown key extra"),
    ],
)
def test_faulty_scene(changes, message):
    with pytest.raises(RowError, match=message):
        validate_scene(scene(**changes))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (sample(question=" "), "question is ' '"),
        (sample(situation=""), "situation is blank"),
        (sample(situation_pose=np.eye(4)), "situation_pose without a situation"),
        (sample(situation="x", situation_pose=rigid(2.0)), "not rigid"),
        (sample(task="chess"), "task is 'chess', wanted one of scanqa"),
        (sample(answers=[]), "answers is empty in a labelled split"),
        (sample(answers=["red", ""]), "answers holds ''"),
        (sample(action="place_anchor"), "in the question task rooms_qa"),
        (action(action=None), "action is None in the task rooms_actions"),
        (action(targets=[]), "targets has 0 entries for place_anchor, wanted 1"),
        (action(targets=[target()] * 2), "targets has 2 entries"),
        (action(action="place_anchors", targets=[target()] * 13), "wanted 1 to 12"),
        (action(targets=[target(kind="ball")]), r"targets\[0\]: kind is 'ball'"),
        (action(targets=[target(size=[1, 0, 1])]), "only a plane may have an extent of 0"),
        (action(targets=[target(center=[0, 0, np.inf])]), "wanted 3 finite numbers"),
        (action(targets=[target(axes=np.eye(3)[[0, 2, 1]].tolist())]), "wanted the vertical"),
        (action(targets=[target(axes=(2 * np.eye(3)).tolist())]), "rows are not orthonormal"),
        (action(targets=[{"label": "x"}]), "lacks kind, center, size, axes"),
    ],
)
def test_faulty_sample(row, message):
    with pytest.raises(RowError, match=message):
        validate_sample(row)


def test_all_faults_are_named_at_once():
    with pytest.raises(RowError, match=r"scene 's1': .*source is ''.*; .*repeats an id"):
        validate_scene(scene(source="", frame_ids=["a", "a"]))


def test_nulls_survive_arrow(tmp_path):
    rows = [scene(), scene(scene_id="s2", intrinsics=None, world_from_cam=None, depth=None, world_from_source=None)]
    Dataset.from_list(rows, features=SCENE_FEATURES).save_to_disk(str(tmp_path / "scenes"))
    back = Dataset.load_from_disk(str(tmp_path / "scenes")).remove_columns(["images"])
    assert (
        back[1]["intrinsics"] is back[1]["world_from_cam"] is back[1]["depth"] is back[1]["world_from_source"] is None
    )
    samples = Dataset.from_list([action(), sample(situation="x", situation_pose=np.eye(4))], features=SAMPLE_FEATURES)
    assert samples[0]["situation_pose"] is None
    assert samples[0]["targets"][0]["axes"] == np.eye(3).tolist()
    assert np.array_equal(samples[1]["situation_pose"], np.eye(4))


@pytest.mark.parametrize(
    ("question", "kind"), [("What is it?", "what"), ("WHICH one?", "which"), ("Are there?", "others"), ("", "others")]
)
def test_question_type(question, kind):
    assert question_type(question) == kind


def test_manifest_round_trip(tmp_path):
    (tmp_path / "data.arrow").write_bytes(b"rows")
    counts = {"scenes": {"train": {"rooms": 1}}}
    written = write_manifest(tmp_path, counts=counts, options={"rooms": {"seed": 1}}, source_files={"rooms": {}})
    assert read_manifest(tmp_path) == written
    assert written.fingerprint == dataset_fingerprint(tmp_path)
    (tmp_path / "data.arrow").write_bytes(b"other rows")
    assert dataset_fingerprint(tmp_path) != written.fingerprint
    assert not list(tmp_path.glob("*.partial"))


def test_folder_without_manifest_is_no_dataset(tmp_path):
    with pytest.raises(NotADatasetError, match=r"is not a dataset: it has no manifest.json.*datasets_scripts.build"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        (json.dumps({"schema_version": 99}), "has schema version 99, this code reads 1"),
        (json.dumps({"schema_version": 1}), "has the keys"),
    ],
)
def test_bad_manifest(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_manifest(tmp_path)
