"""Real datasets, written in their layouts, built by the command line: rows, splits, bytes, interruptions, damage."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import trimesh
from datasets import load_from_disk
from PIL import Image

from datasets_scripts import build as build_module
from datasets_scripts.audit import main as audit
from datasets_scripts.boxes import seen_share
from datasets_scripts.build import main as build
from datasets_scripts.export import main as export
from datasets_scripts.show import main as show
from datasets_scripts.sources import stored_views
from processing.action_vggt_qwen3 import action_from_targets
from processing.geometry_vggt_qwen3 import ref_from_world
from tests.layouts import (
    AXIS_ALIGNMENT,
    Truth,
    back_project,
    room_truth,
    scanqa_record,
    write_arkitscenes,
    write_mesh,
    write_posed_images,
    write_scanqa,
    write_sens,
    write_sensreader,
    write_sqa3d,
)
from tests.test_roomplan import write_capture, write_planes
from training.data import SceneDataset

REPOSITORY = Path(__file__).resolve().parents[1]
TRAIN, VAL, EXTRA = "scene0000_00", "scene0001_00", "scene0002_00"


@pytest.fixture(scope="module")
def truths() -> list[Truth]:
    return [room_truth(index, 10) for index in (4, 5)]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, truths: list[Truth]) -> Path:
    """ScanNet frames in three layouts with ScanQA and SQA3D questions; ARKitScenes videos of the same rooms."""
    root = tmp_path_factory.mktemp("raw")
    for write, scene_id, truth in zip((write_posed_images, write_sensreader), (TRAIN, VAL), truths):
        write(root / "scannet", scene_id, truth)
        points = np.concatenate([truth.points(view)[::8, ::8].reshape(-1, 3) for view in range(len(truth))])
        to_raw = np.linalg.inv(AXIS_ALIGNMENT)
        write_mesh(root / "scannet", scene_id, points @ to_raw[:3, :3].T + to_raw[:3, 3])
    write_sens(root / "scannet", EXTRA, truths[0].only(3))
    records = {
        split: [scanqa_record(f"{split}-{scene}-{n}", scene, f"What is {n}?", ["chair"]) for n in range(3)]
        for split, scene in (("train", TRAIN), ("val", VAL))
    }
    records["test_w_obj"] = [scanqa_record(f"test-{VAL}-{n}", VAL, f"Where is {n}?", None) for n in range(2)]
    for name, listed in records.items():
        write_scanqa(root / "ScanQA" / f"ScanQA_v1.0_{name}.json", listed)
    situated = dict(situation="I stand.", others=["I sit."], question="How many?", answer="two", yaw=0.4)
    write_sqa3d(root / "SQA3D", "train", [situated | {"id": 1, "scene": TRAIN, "position": (0.2, 0.1, 0)}])
    write_sqa3d(root / "SQA3D", "test", [situated | {"id": 2, "scene": VAL, "position": (0.2, 0.1, 0)}])
    write_arkitscenes(root / "arkit", "41069021", truths[0], turns=(0, 1, 2, 3))
    write_arkitscenes(root / "arkit", "41069022", truths[1], fold="Validation", layout="3dod")
    return root


def scannet_command(raw: Path, output: Path, *more: str) -> list[str]:
    command = ["--source", "scannet", "--scan-root", str(raw / "scannet"), "--output", str(output)]
    command += ["--qa", f"scanqa={raw / 'ScanQA'}", "--qa", f"sqa3d={raw / 'SQA3D'}"]
    return [*command, "--num-views", "6", "--num-proc", "1", *more]


def arkit_command(raw: Path, output: Path, *more: str) -> list[str]:
    command = ["--source", "arkitscenes", "--scan-root", str(raw / "arkit"), "--output", str(output)]
    return [*command, "--num-views", "6", "--num-proc", "1", *more]


@pytest.fixture(scope="module")
def scannet(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("built") / "scannet"
    assert build(scannet_command(raw, output, "--strict")) == 0
    return output


@pytest.fixture(scope="module")
def arkit(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("built") / "arkit"
    assert build(arkit_command(raw, output, "--strict")) == 0
    return output


def rows_of(root: Path, table: str) -> list[dict]:
    return list(load_from_disk(str(root / table)))


def bytes_of(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_same_scene(row: dict, truth: Truth, view_of) -> None:
    """The stored frames of a row are those of the scene: each pixel's world point within 1 mm."""
    for index, frame_id in enumerate(row["frame_ids"]):
        view = view_of(frame_id)
        depth = np.asarray(row["depth"][index]) / 1000
        points = back_project(depth, np.array(row["intrinsics"][index]), np.array(row["world_from_cam"][index]))
        assert np.abs(points - truth.points(view)).max() < 1e-3
        difference = np.asarray(row["images"][index], dtype=float) - truth.images[view]
        assert np.abs(difference).mean() < 4


# -------------------------------------------------------------------------------------------------------- what is built


def test_scannet_with_its_questions(scannet: Path, truths: list[Truth]) -> None:
    manifest = json.loads((scannet / "manifest.json").read_text())
    assert manifest["counts"] == {
        "scenes": {"train": {"scannet": 1}, "heldout": {"scannet": 1}},
        "samples": {"train": {"scannet": 5}, "val": {"scannet": 3}, "test": {"scannet": 3}},
    }
    assert {"ScanQA_v1.0_train.json", "v1_balanced_questions_test_scannetv2.json", TRAIN} <= set(
        manifest["source_files"]["scannet"]
    )
    for split, truth in zip(("train", "heldout"), truths):
        (row,) = rows_of(scannet, f"scenes/{split}")
        assert len(row["frame_ids"]) == 6 and row["room_id"] == row["scene_id"][:9]
        assert_same_scene(row, truth, int)
    test = rows_of(scannet, "samples/test")
    assert [row["answers"] for row in test] == [["two"], [], []] or [row["answers"] for row in test] == [
        [],
        [],
        ["two"],
    ]


def test_situations_stand_on_the_floor(scannet: Path, truths: list[Truth]) -> None:
    train = [row for row in rows_of(scannet, "samples/train") if row["task"] == "sqa3d"]
    assert [row["situation"] for row in train] == ["I stand.", "I sit."]
    points = np.concatenate([truths[0].points(view).reshape(-1, 3) for view in range(len(truths[0]))])
    floor = np.percentile(points[:, 2], 1)
    for row in train:
        assert abs(row["situation_pose"][2][3] - floor) < 0.02


def test_arkitscenes_with_instructions(arkit: Path, truths: list[Truth]) -> None:
    (row,) = rows_of(arkit, "scenes/train")
    assert_same_scene(row, truths[0], lambda frame_id: round((float(frame_id) - 1000) * 10))
    assert rows_of(arkit, "samples/val")
    encoded = load_from_disk(str(arkit / "scenes/train")).with_format("arrow")[0].to_pylist()[0]
    views = {view.frame_id: view for view in stored_views(encoded)}
    boxes = [target for target in truths[0].targets if target["kind"] != "plane"]
    for sample in rows_of(arkit, "samples/train"):
        assert_unambiguous(sample, boxes, views)


def assert_unambiguous(sample: dict, boxes: list[dict], views: dict) -> None:
    """By the truth of the scene, the words of an instruction fit its targets and nothing else."""
    label = sample["targets"][0]["label"]
    rivals = [box for box in boxes if box["label"] == label]
    centers = np.array([box["center"] for box in rivals])
    target = np.array(sample["targets"][0]["center"])
    place = int(np.linalg.norm(centers - target, axis=1).argmin())
    assert np.allclose(centers[place], target, atol=1e-4)
    words = sample["question"]
    if words == f"Place an anchor on the {label}.":
        assert len(rivals) == 1
    elif words == f"Place an anchor on every {label}.":
        assert len(sample["targets"]) == len(rivals) > 1 and sample["action"] == "place_anchors"
    elif words == f"Place an anchor on the largest {label}.":
        volumes = [np.prod(box["size"]) for box in rivals]
        assert volumes[place] == max(volumes) and sorted(volumes)[-2] < volumes[place] / 1.4
    else:
        camera = views[sample["anchor_frame_id"]].world_from_cam
        in_ref = (centers - camera[:3, 3]) @ ref_from_world(camera)[:3, :3].T
        if "closest" in words:
            distances = np.linalg.norm(in_ref, axis=1)
            assert place == distances.argmin() and np.diff(np.sort(distances)[:2])[0] > 0.45
        else:
            view = views[sample["anchor_frame_id"]]
            shown = [i for i, box in enumerate(rivals) if seen_share(box, camera, view.intrinsics, view.size) > 0.05]
            bearing = np.arctan2(in_ref[:, 0], in_ref[:, 1])[shown]
            side = bearing.argmin() if "left-most" in words else bearing.argmax()
            assert shown[side] == place and len(shown) > 1
    # The first view that the model is given is the one that the words speak of; the action can be stated from it.
    first = sample["anchor_frame_id"] or next(iter(views))
    action_from_targets(sample["action"], sample["targets"], ref_from_world(views[first].world_from_cam))


def test_training_reads_what_was_built(scannet: Path, arkit: Path) -> None:
    dataset = SceneDataset([scannet, arkit], "train", num_views=4)
    tasks = {dataset.sample(index)["task"] for index in range(len(dataset))}
    assert tasks == {"scanqa", "sqa3d", "actions"}
    for draw in dataset.fixed_draws(4):
        example = dataset[draw]
        assert len(example.images) == 4 and example.depth is not None
        assert draw.anchor in (None, example.frame_ids[0])


def test_captures_of_roomplan_and_planes(tmp_path: Path, truths: list[Truth]) -> None:
    write_capture(tmp_path / "roomplan", truths[0].only(6))
    write_planes(tmp_path / "planes", truths[0].only(6))
    for source, more in (("roomplan", []), ("planes", ["--gravity", "0,-1,0"])):
        command = [
            "--source",
            source,
            "--scan-root",
            str(tmp_path / source),
            "--output",
            str(tmp_path / f"{source}-out"),
        ]
        assert build([*command, "--num-views", "4", "--num-proc", "1", "--val-share", "0", *more]) == 0
        samples = rows_of(tmp_path / f"{source}-out", "samples/train")
        assert samples and all(
            target["kind"] == "plane" or source == "roomplan" for s in samples for target in s["targets"]
        )


@pytest.mark.parametrize("cameras", [False, True])
def test_own_photographs_and_questions(tmp_path: Path, scannet: Path, truths: list[Truth], cameras: bool) -> None:
    """A stored scene written out as a plain folder and read back, with one's own question about it."""
    export(["--dataset", str(scannet), "--scene", TRAIN, "--output", str(tmp_path / "photos" / "my-room")])
    record = {"scene_id": "my-room", "question_id": "q1", "question": "What is it?", "answers": ["a room"]}
    (tmp_path / "train.jsonl").write_text(json.dumps(record))
    command = ["--source", "photos", "--scan-root", str(tmp_path / "photos"), "--output", str(tmp_path / "out")]
    command += ["--qa", f"own={tmp_path / 'train.jsonl'}", "--num-proc", "1", "--num-views", "4"]
    assert build(command + (["--gravity", "0,0,-1", "--scale", "1"] if cameras else [])) == 0
    (row,) = rows_of(tmp_path / "out", "scenes/train")
    assert rows_of(tmp_path / "out", "samples/train")[0]["answers"] == ["a room"]
    assert len(row["frame_ids"]) == 4 and row["is_metric"] == cameras
    if cameras:
        assert_same_scene(row, truths[0], int)
    else:
        assert row["world_from_cam"] is None and row["depth"] is None
    assert audit([str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("select", ["uniform", "coverage", "first"])
def test_views_are_chosen_as_asked(raw: Path, tmp_path: Path, select: str) -> None:
    assert build(scannet_command(raw, tmp_path / "out", "--select", select, "--num-views", "4")) == 0
    (row,) = rows_of(tmp_path / "out", "scenes/train")
    frames = [int(frame) for frame in row["frame_ids"]]
    wanted = {"first": [0, 1, 2, 3], "uniform": [1, 6, 3, 8]}
    assert frames == wanted.get(select, frames) and len(set(frames)) == 4
    assert (frames != wanted["first"]) or select == "first"


def test_photographs_are_stored_at_the_size_asked_for(raw: Path, tmp_path: Path, truths: list[Truth]) -> None:
    assert build(scannet_command(raw, tmp_path / "out", "--image-side", "56", "--depth-side", "28")) == 0
    (row,) = rows_of(tmp_path / "out", "scenes/train")
    assert row["images"][0].size == (56, 56) and row["depth"][0].size == (28, 28)
    assert np.allclose(np.array(row["intrinsics"][0])[:2], truths[0].intrinsics[:2] / 2, atol=1e-5)
    # A JPEG of the right size keeps its bytes.
    assert build(scannet_command(raw, tmp_path / "whole", "--image-side", "0")) == 0
    encoded = load_from_disk(str(tmp_path / "whole" / "scenes/train")).with_format("arrow")[0].to_pylist()[0]
    stored = raw / "scannet" / "posed_images" / TRAIN / f"{encoded['frame_ids'][0]}.jpg"
    assert encoded["images"][0]["bytes"] == stored.read_bytes()


# ------------------------------------------------------------------------------------------------- splits, bytes, kills


def test_a_room_held_out_is_not_trained_on(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Two videos of one visit in both folds: the training video is left out and counted; strict names it."""
    shutil.copytree(raw / "arkit", tmp_path / "arkit")
    rows = ["video_id,visit_id,fold", "41069021,7,Training", "41069022,7,Validation"]
    (tmp_path / "arkit" / "3dod_train_val_splits.csv").write_text("\n".join(rows))
    assert build(arkit_command(tmp_path, tmp_path / "out")) == 0
    assert "training scene in a held-out room: 1" in capsys.readouterr().out
    assert not (tmp_path / "out" / "samples" / "train").exists()
    assert build(arkit_command(tmp_path, tmp_path / "strict", "--strict")) == 1
    assert "visit-7" in capsys.readouterr().err


def test_two_runs_and_two_processes_give_the_same_bytes(raw: Path, scannet: Path, tmp_path: Path) -> None:
    assert build(scannet_command(raw, tmp_path / "again", "--strict", "--num-proc", "2")) == 0
    assert bytes_of(tmp_path / "again") == bytes_of(scannet)


class _Stopped(Exception):
    pass


@pytest.mark.parametrize("moment", ["first chunk", "second chunk", "joining", "manifest"])
def test_an_interrupted_build_goes_on(
    raw: Path, scannet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    output = tmp_path / "out"
    calls = 0

    def stopping(function, after: int):
        def wrapped(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls > after:
                raise _Stopped
            return function(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        name = {"joining": "join_chunks", "manifest": "write_manifest"}.get(moment, "write_chunk")
        after = int(moment == "second chunk")
        patch.setattr(build_module, name, stopping(getattr(build_module, name), after))
        with pytest.raises(_Stopped):
            build(scannet_command(raw, output, "--strict"))
    assert not (output / "manifest.json").exists()
    written: list[int] = []
    original = build_module.write_chunk

    def counting(rows, partial, number, unlabelled):
        written.append(number)
        return original(rows, partial, number, unlabelled)

    monkeypatch.setattr(build_module, "write_chunk", counting)
    assert build(scannet_command(raw, output, "--strict")) == 0
    assert written == {"first chunk": [0, 1], "second chunk": [1], "joining": []}.get(moment, written)
    assert bytes_of(output) == bytes_of(scannet)


def test_other_options_start_afresh(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of an interrupted build with other options are not taken for this one's."""
    with monkeypatch.context() as patch:
        patch.setattr(build_module, "join_chunks", lambda *_: (_ for _ in ()).throw(_Stopped))
        with pytest.raises(_Stopped):
            build(scannet_command(raw, tmp_path / "out", "--num-views", "2"))
    assert build(scannet_command(raw, tmp_path / "out", "--num-views", "3")) == 0
    assert len(rows_of(tmp_path / "out", "scenes/train")[0]["frame_ids"]) == 3


@pytest.mark.slow
def test_killed_at_ten_random_moments(raw: Path, tmp_path: Path, truths: list[Truth]) -> None:
    """SIGKILL to the whole process group while chunks are written and joined; the last run ends it all the same."""
    root = tmp_path / "raw"
    records = []
    for index in range(40):
        scene_id = f"scene{index:04d}_00"
        shutil.copytree(raw / "scannet" / "posed_images" / TRAIN, root / "scannet" / "posed_images" / scene_id)
        meta = root / "scannet" / "scans" / scene_id / f"{scene_id}.txt"
        meta.parent.mkdir(parents=True)
        meta.write_text("")
        records.append(scanqa_record(f"train-{scene_id}", scene_id, "What?", ["chair"]))
    write_scanqa(root / "ScanQA" / "ScanQA_v1.0_train.json", records)
    write_sqa3d(root / "SQA3D", "train", [])
    command = [sys.executable, "-m", "datasets_scripts.build"]
    undisturbed = tmp_path / "undisturbed"
    subprocess.run(command + scannet_command(root, undisturbed), cwd=REPOSITORY, check=True, capture_output=True)
    output = tmp_path / "killed"
    rng, finished = random.Random(0), []
    for _ in range(10):
        process = subprocess.Popen(
            command + scannet_command(root, output),
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        before = len(list(output.glob(".partial/chunk-*.json")))
        wanted = before + rng.randrange(1, 8)
        while process.poll() is None and len(list(output.glob(".partial/chunk-*.json"))) < min(wanted, 40):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        finished.append((output / "manifest.json").exists())
    print(f"finished before their kill: {sum(finished)} of 10")
    if not finished[-1]:
        subprocess.run(command + scannet_command(root, output), cwd=REPOSITORY, check=True, capture_output=True)
    assert bytes_of(output) == bytes_of(undisturbed)


# ----------------------------------------------------------------------------------------------------- damaged raw data


def damage_photograph(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def damage_depth(path: Path) -> None:
    path.with_suffix(".png").write_bytes(path.with_suffix(".png").read_bytes()[:-200])


def huge_photograph(path: Path) -> None:
    """A PNG whose header promises 30,000 x 30,000 pixels."""
    buffer = io.BytesIO()
    Image.new("L", (2, 2)).save(buffer, "PNG")
    head = b"IHDR" + struct.pack(">2I", 30000, 30000) + buffer.getvalue()[24:29]
    path.write_bytes(buffer.getvalue()[:12] + head + struct.pack(">I", zlib.crc32(head)) + buffer.getvalue()[33:])


def other_size(path: Path) -> None:
    Image.new("RGB", (112, 80)).save(path)


def eight_bit_depth(path: Path) -> None:
    Image.new("L", (112, 112), 7).save(path.with_suffix(".png"))


def other_depth_aspect(path: Path) -> None:
    Image.fromarray(np.full((60, 112), 900, np.uint16)).save(path.with_suffix(".png"))


def text_as_photograph(path: Path) -> None:
    path.write_text("not an image")


DAMAGES = (
    damage_photograph,
    damage_depth,
    huge_photograph,
    other_size,
    eight_bit_depth,
    other_depth_aspect,
    text_as_photograph,
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("select", ["coverage", "first"])
def test_damaged_frames_are_left_out_or_named(
    raw: Path, tmp_path: Path, truths: list[Truth], capsys: pytest.CaptureFixture, damage, select: str
) -> None:
    shutil.copytree(raw / "scannet" / "posed_images" / TRAIN, tmp_path / "scannet" / "posed_images" / TRAIN)
    shutil.copytree(raw / "scannet" / "scans" / TRAIN, tmp_path / "scannet" / "scans" / TRAIN)
    damage(tmp_path / "scannet" / "posed_images" / TRAIN / "00002.jpg")
    command = ["--source", "scannet", "--scan-root", str(tmp_path / "scannet"), "--num-proc", "1", "--num-views", "9"]
    command += ["--qa", f"scanqa={raw / 'ScanQA' / 'ScanQA_v1.0_train.json'}", "--select", select]
    assert build([*command, "--output", str(tmp_path / "out")]) == 0
    assert "frame unreadable: 1" in capsys.readouterr().out
    (row,) = rows_of(tmp_path / "out", "scenes/train")
    assert sorted(row["frame_ids"]) == [f"{view:05d}" for view in range(10) if view != 2]
    assert_same_scene(row, truths[0], int)
    assert build([*command, "--output", str(tmp_path / "strict"), "--strict"]) == 1
    error = capsys.readouterr().err
    assert "00002" in error and TRAIN in error
    assert not (tmp_path / "strict" / "manifest.json").exists()


def test_a_scene_that_cannot_be_read_is_left_out(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(raw, tmp_path / "raw")
    (tmp_path / "raw" / "scannet" / "scans" / VAL / "intrinsic" / "intrinsic_color.txt").write_text("1 2 3")
    assert build(scannet_command(tmp_path / "raw", tmp_path / "out")) == 0
    assert "scene unreadable: 1" in capsys.readouterr().out
    assert not (tmp_path / "out" / "scenes" / "heldout").exists()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "intrinsic_color.txt" in report["skips"]["scene unreadable"]["examples"][0]


COMMANDS = {
    "--scan-root": ["--source", "scannet", "--qa", "scanqa=x"],
    "needs --qa": ["--source", "scannet", "--scan-root", "."],
    "wanted NAME=PATH": ["--source", "scannet", "--scan-root", ".", "--qa", "scanqa"],
    "a split of train": ["--source", "scannet", "--scan-root", ".", "--qa", "scanqa:dev=x"],
    "--gravity": ["--source", "planes", "--scan-root", "."],
    "--num-views is 0": ["--source", "arkitscenes", "--scan-root", ".", "--num-views", "0"],
    "holds no ScanNet scene": ["--source", "scannet", "--scan-root", ".", "--qa", "scanqa=x"],
    "holds no ARKitScenes video": ["--source", "arkitscenes", "--scan-root", "."],
}


@pytest.mark.parametrize("message", COMMANDS)
def test_wrong_commands_say_what_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert build([*COMMANDS[message], "--output", "out"]) == 1
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_full_disk_is_noticed_before_anything_is_read(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert build(scannet_command(raw, tmp_path / "out")) == 1
    assert "GiB are free" in capsys.readouterr().err


def test_scenes_are_drawn_and_written_as_glb(arkit: Path, tmp_path: Path) -> None:
    sheet, model = tmp_path / "sheet.png", tmp_path / "room.glb"
    assert show(["--dataset", str(arkit), "--output", str(sheet), "--glb", str(model)]) == 0
    (row,) = rows_of(arkit, "scenes/train")
    scene = trimesh.load(model)
    for frame_id, camera in zip(row["frame_ids"], row["world_from_cam"]):
        x, y, z = np.array(camera)[:3, 3]
        placed, name = scene.graph[f"camera {frame_id}"]
        vertices = trimesh.transform_points(scene.geometry[name].vertices, placed)
        assert np.linalg.norm(vertices - (x, z, -y), axis=1).min() < 0.01  # glTF is Y-up
    assert len(scene.geometry["points"].vertices) > 1000
    plan = tmp_path / "plan.png"
    export = Path(__file__).parent / "fixtures" / "roomplan" / "captured_structure.json"
    assert show(["--roomplan", str(export), "--output", str(plan)]) == 0 and Image.open(plan).width > 100
    assert show(["--roomplan", str(tmp_path / "nowhere.json"), "--output", str(plan)]) == 1
