"""The build command on procedural rooms: same bytes whatever the processes, nothing overwritten, errors that help."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from datasets import load_from_disk
from PIL import Image

from datasets_scripts import show
from datasets_scripts.build import main
from datasets_scripts.rooms import balance
from datasets_scripts.rooms.render import render_batch
from datasets_scripts.rooms.room import generate_room
from datasets_scripts.schema import (
    NotADatasetError,
    dataset_fingerprint,
    read_manifest,
    validate_sample,
    validate_scene,
)

SMALL = ["--scenes", "40", "--heldout", "3", "--views", "2", "--size", "28", "--questions-per-scene", "6"]


def built(output, *options):
    """Build in this process, which starts workers of its own."""
    assert main(["--source", "rooms", "--output", str(output), *SMALL, *options]) == 0


def bytes_of(root):
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Four chunks of rooms built by one process."""
    root = tmp_path_factory.mktemp("build") / "rooms"
    built(root, "--num-proc", "1")
    return root


def test_rows_are_sound_and_joined(dataset):
    manifest = read_manifest(dataset)
    assert manifest.counts["scenes"] == {"train": {"rooms": 40}, "heldout": {"rooms": 3}}
    assert manifest.fingerprint == dataset_fingerprint(dataset)
    ids = {}
    for split in ("train", "heldout"):
        scenes = load_from_disk(str(dataset / "scenes" / split))
        for row in scenes:
            validate_scene(row)
            assert row["images"][0].size == row["depth"][0].size == (28, 28)
        ids[split] = set(scenes["scene_id"])
    assert not ids["train"] & ids["heldout"]
    seen = {}
    for split in ("train", "val", "test"):
        samples = load_from_disk(str(dataset / "samples" / split))
        assert len(samples) == manifest.counts["samples"][split]["rooms"]
        for row in samples:
            validate_sample(row)
        seen[split] = set(samples["scene_id"])
        assert {row["task"] for row in samples} == {"rooms_qa", "rooms_actions"}
    assert seen["train"] == ids["train"]
    assert seen["val"] | seen["test"] == ids["heldout"] and not seen["val"] & seen["test"]


def test_stored_views_are_the_rendered_ones(dataset):
    row = load_from_disk(str(dataset / "scenes" / "train"))[5]
    room = generate_room(0, "train", 5, num_views=2)
    rendered = render_batch([room], size=28)
    assert row["scene_id"] == room.room_id
    for view in range(2):
        depth = np.asarray(row["depth"][view], dtype=np.float64) / 1000
        assert np.abs(depth - rendered["depth"][0, view].numpy()).max() < 1e-3
        image = np.asarray(row["images"][view], dtype=np.float64)
        exact = rendered["images"][0, view].permute(1, 2, 0).numpy()
        assert np.abs(image - exact).mean() < 6
        assert row["images"][view].format == "JPEG" and row["depth"][view].format == "PNG"
    assert np.allclose(row["world_from_cam"], room.world_from_cam)
    assert np.allclose(row["intrinsics"][0], room.intrinsics(28))


def test_exchanged_channels_change_the_images_alone(dataset, tmp_path):
    few = ["--source", "rooms", "--scenes", "2", "--heldout", "2", *SMALL[4:], "--num-proc", "1", "--channels", "bgr"]
    assert main([*few, "--output", str(tmp_path / "shifted")]) == 0
    one, other = (load_from_disk(str(root / "scenes" / "train"))[1] for root in (dataset, tmp_path / "shifted"))
    true, shifted = (np.asarray(row["images"][0], dtype=np.float64) for row in (one, other))
    assert np.abs(shifted - true[..., ::-1]).mean() < 4, "but for what JPEG loses"
    assert np.abs(shifted - true).mean() > 4
    assert np.array_equal(one["depth"][0], other["depth"][0])
    questions = [
        load_from_disk(str(root / "samples" / "train"))["question"][:6] for root in (dataset, tmp_path / "shifted")
    ]
    assert questions[0] == questions[1]


def test_same_bytes_whatever_the_number_of_processes(dataset, tmp_path):
    built(tmp_path / "rooms", "--num-proc", "3")
    assert bytes_of(tmp_path / "rooms") == bytes_of(dataset)


def test_killed_build_is_no_dataset_and_can_be_repeated(dataset, tmp_path):
    root = tmp_path / "rooms"
    command = [sys.executable, "-m", "datasets_scripts.build", "--output", str(root), *SMALL, "--num-proc", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((root / ".partial").glob("*.arrow")):
        assert process.poll() is None
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    with pytest.raises(NotADatasetError):
        read_manifest(root)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert workers and not alive
    built(root, "--num-proc", "1")
    assert bytes_of(root) == bytes_of(dataset)


def test_a_finished_dataset_is_kept(dataset, capsys):
    before = bytes_of(dataset)
    assert main(["--output", str(dataset), *SMALL]) == 1
    assert "already holds a dataset: name another folder, or add --overwrite" in capsys.readouterr().err
    assert bytes_of(dataset) == before


def test_other_folders_are_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    for extra in ([], ["--overwrite"]):
        assert main(["--output", str(tmp_path), *SMALL, *extra]) == 1
        assert "holds files that are no dataset: name an empty or new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scenes", "0"], "--scenes is 0, wanted 1 to"),
        (["--views", "0", "--size", "9"], r"--views is 0, wanted 1 to 64; --size is 9, wanted 28 to"),
        (["--heldout", "-1"], "--heldout is -1"),
        (["--num-proc", "0"], "--num-proc is 0, wanted at least 1"),
        (["--questions-per-scene", "0", "--actions-per-scene", "0"], "nothing would be asked"),
    ],
)
def test_options_out_of_range(tmp_path, capsys, options, message):
    assert main(["--output", str(tmp_path / "rooms"), *options]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "rooms").exists()


def test_manifest_tells_what_the_rooms_were_made_from(dataset):
    manifest = json.loads((dataset / "manifest.json").read_text())
    assert manifest["options"]["rooms"]["seed"] == 0 and manifest["options"]["rooms"]["views"] == 2
    code = Path(balance.__file__).parent
    for name in ("render.py", "trace.py", "families.py", "balance.json"):
        assert manifest["source_files"]["rooms"][name] == hashlib.sha256((code / name).read_bytes()).hexdigest()


def test_show_draws_a_scene(dataset, tmp_path, capsys):
    scene = load_from_disk(str(dataset / "scenes" / "heldout"))[0]["scene_id"]
    output = tmp_path / "sheet.png"
    assert show.main(["--dataset", str(dataset), "--scene", scene, "--output", str(output)]) == 0
    pixels = np.asarray(Image.open(output))
    assert pixels.shape[1] > 800 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500
    assert show.main(["--dataset", str(dataset), "--scene", "nowhere"]) == 1
    assert "holds no scene 'nowhere'" in capsys.readouterr().err


def test_blind_figures_of_a_dataset(dataset, capsys):
    balance.main(["--dataset", str(dataset)])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("all ") for line in lines) and any(line.startswith("what ") for line in lines)
    with pytest.raises(NotADatasetError):
        balance.main(["--dataset", str(dataset.parent)])
