"""Evaluation runs: what is written, going on after a kill, what each control shows, what is refused."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import eval as evaluator
from evaluation.conditions import CONDITIONS, ShownScenes
from tests.conftest import REPOSITORY
from tests.evaluating import save_checkpoint
from training.data import SceneDataset, fixed_batches

QUICK = ["--max-new-tokens", "6", "--num-views", "2", "--batch-size", "5", "--num-resamples", "50"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def arguments(checkpoint, rooms) -> list[str]:
    return ["--model", str(checkpoint), "--dataset", str(rooms), *QUICK]


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory) -> Path:
    """An undisturbed run with two controls."""
    output = tmp_path_factory.mktemp("finished")
    evaluator.main([*arguments, "--controls", "blind,shuffled_images", "--output", str(output)])
    return output


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_writes_every_sample_once_and_says_what_was_shown(finished, rooms):
    rows = read(finished / "predictions.jsonl")
    dataset = SceneDataset([rooms], "val", 2)
    assert sorted(row["sample_id"] for row in rows) == sorted(
        dataset.sample(i)["sample_id"] for i in range(len(dataset))
    )
    for row in rows:
        assert len(row["views"]) == 2
        assert row["view_scene"] == row["scene_id"]
        assert row["flags"] == {
            "condition": "sighted",
            "cameras": True,
            "depth": True,
            "truncated": row["flags"]["truncated"],
        }
        assert ("reference_action" in row) == (row["task"] == "rooms_actions")
    actions = [row for row in rows if row["task"] == "rooms_actions"]
    assert all(row["error"] and row["action"] is None for row in actions), "random weights write no JSON"
    assert all(row["reference_action"]["scene"] == row["scene_id"] for row in actions)
    blind = read(finished / "controls" / "blind" / "predictions.jsonl")
    assert [row["sample_id"] for row in blind] == [row["sample_id"] for row in rows]
    assert all(row["views"] == [] and row["view_scene"] is None for row in blind)


def test_metrics_name_model_data_and_controls(finished, rooms, checkpoint):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["model"]["name"] == str(checkpoint)
    assert metrics["dataset"]["fingerprint"] == json.loads((rooms / "manifest.json").read_text())["fingerprint"]
    assert set(metrics["tasks"]) == {"rooms_qa", "rooms_actions"}
    for task in metrics["tasks"].values():
        assert set(task["results"]) == {"sighted", "blind", "shuffled_images"}
        assert set(task["paired"]) == {"blind", "shuffled_images"}
        assert "<|image_pad|>" in task["prompt"]
        assert "per_sample" not in json.dumps(task)
    low, high = metrics["tasks"]["rooms_qa"]["results"]["sighted"]["protocols"]["official"]["all"]["intervals"]["EM@1"]
    assert 0 <= low <= high <= 100
    config = yaml.safe_load((finished / "run_config.yaml").read_text())
    assert config["predictions"]["num_views"] == 2
    assert set(config["versions"]) >= {"python", "torch", "transformers"}


def test_the_dataset_folder_is_left_as_it_was(finished, rooms):
    assert not list(rooms.rglob("cache-*"))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_run_goes_on_without_a_repeated_or_missing_row(seed, finished, arguments, tmp_path):
    """Cut anywhere, as a kill leaves it: in the middle of a line, of a batch, between tasks, in a control."""
    rng = random.Random(seed)
    for path, content in files(finished).items():
        if path.endswith(("run_config.yaml", "predictions.jsonl")) and (seed or "controls" not in path):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            cut = rng.randrange(len(content)) if path.endswith(".jsonl") else len(content)
            (tmp_path / path).write_bytes(content[:cut])
    evaluator.main([*arguments, "--controls", "blind,shuffled_images", "--output", str(tmp_path)])
    assert files(tmp_path) == files(finished)


def test_processes_that_read_write_the_same_files(finished, arguments, tmp_path):
    workers = ["--num-workers", "2", "--controls", "blind,shuffled_images", "--output", str(tmp_path)]
    evaluator.main([*arguments, *workers])
    assert files(tmp_path) == files(finished)


def test_batches_hold_every_sample_once_and_keep_to_their_size(rooms):
    dataset = SceneDataset([rooms], "val", 2)
    for size in (1, 5, 16):
        batches = fixed_batches(dataset, size)
        counts = [sum(len(draw.samples) for draw in batch) for batch in batches]
        assert max(counts) <= size
        drawn = [sample for batch in batches for draw in batch for sample in draw.samples]
        assert drawn == list(range(len(dataset)))
    with pytest.raises(ValueError, match="batch_size is 0"):
        fixed_batches(dataset, 0)


def test_each_control_shows_what_it_says(rooms):
    dataset = SceneDataset([rooms], "val", 3)
    draw = dataset.fixed_draws(4)[0]
    shown = {name: ShownScenes(dataset, condition)[draw] for name, condition in CONDITIONS.items()}
    truth = shown["sighted"].truth
    assert shown["sighted"].seen is truth
    assert all(each.truth.frame_ids == truth.frame_ids and each.seen.samples for each in shown.values())
    assert shown["single_view"].seen.frame_ids == truth.frame_ids[:1]
    assert len(shown["single_view"].seen.world_from_cam) == len(shown["single_view"].seen.depth) == 1
    assert shown["two_views"].seen.frame_ids == truth.frame_ids[:2]
    assert shown["four_views"].seen.frame_ids == truth.frame_ids, "no more than there are"
    assert shown["shuffled_images"].seen.scene_id != truth.scene_id
    assert shown["shuffled_images"].seen.samples == truth.samples
    assert shown["no_geometry"].seen.world_from_cam is shown["no_geometry"].seen.depth is None
    assert shown["no_depth"].seen.depth is None
    assert shown["no_depth"].seen.world_from_cam is not None


def test_views_in_another_order_keep_the_first_and_what_belongs_to_each(rooms):
    dataset = SceneDataset([rooms], "val", 8)
    moved = 0
    for draw in dataset.fixed_draws(8):
        shown = ShownScenes(dataset, CONDITIONS["shuffled_views"])[draw]
        truth, seen = shown.truth, shown.seen
        assert seen.frame_ids[0] == truth.frame_ids[0] and sorted(seen.frame_ids) == sorted(truth.frame_ids)
        order = [truth.frame_ids.index(frame) for frame in seen.frame_ids]
        moved += order != list(range(8))
        for new, old in enumerate(order):
            assert seen.images[new] is truth.images[old] and seen.depth[new] is truth.depth[old]
            assert (seen.world_from_cam[new] == truth.world_from_cam[old]).all()
            assert (seen.intrinsics[new] == truth.intrinsics[old]).all()
        assert ShownScenes(dataset, CONDITIONS["shuffled_views"])[draw].seen.frame_ids == seen.frame_ids
    assert moved


def test_images_of_other_rooms_need_other_rooms(rooms, monkeypatch):
    dataset = SceneDataset([rooms], "val", 2)
    monkeypatch.setattr(dataset, "scene_tables", [{"room_id": ["one", "one"]}])
    with pytest.raises(ValueError, match="all 2 scenes are of the room one"):
        ShownScenes(dataset, CONDITIONS["shuffled_images"])


def test_instructions_that_name_a_frame_are_shown_it_first(finished, rooms):
    dataset = SceneDataset([rooms], "val", 2)
    anchors = {s["sample_id"]: s["anchor_frame_id"] for s in map(dataset.sample, range(len(dataset)))}
    rows = {row["sample_id"]: row for row in read(finished / "predictions.jsonl")}
    anchored = {name: frame for name, frame in anchors.items() if frame is not None}
    assert all(rows[name]["views"][0] == frame for name, frame in anchored.items())


def test_limits_take_samples_from_all_scenes(arguments, tmp_path):
    evaluator.main([*arguments, "--task", "rooms_qa", "--limit", "4", "--blind", "--output", str(tmp_path)])
    rows = read(tmp_path / "predictions.jsonl")
    assert len(rows) == 4
    assert len({row["scene_id"] for row in rows}) > 1
    assert {row["flags"]["condition"] for row in rows} == {"blind"}


def test_predictions_of_other_settings_are_not_continued(finished, arguments, tmp_path):
    for path, content in files(finished).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    changed = [*arguments, "--limit", "2", "--batch-size", "7", "--output", str(tmp_path)]
    with pytest.raises(ValueError, match=r"limit was None, is 2; batch_size was 5, is 7.*--overwrite"):
        evaluator.main(changed)
    assert files(tmp_path) == files(finished)
    evaluator.main([*changed, "--overwrite"])
    assert len(read(tmp_path / "predictions.jsonl")) == 4


def test_predictions_changed_by_hand_are_refused(finished, arguments, tmp_path):
    for path in ("run_config.yaml", "predictions.jsonl"):
        (tmp_path / path).write_bytes((finished / path).read_bytes())
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "predictions.jsonl").write_text("".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(ValueError, match=r"line 1 holds .* is not the sample that comes there"):
        evaluator.main([*arguments, "--output", str(tmp_path)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nowhere"], "no checkpoint nowhere"),
        (["--model", "configs"], "configs has no config.json"),
        (["--model", "configs/models/tiny.json"], "it has no trained weights"),
        (["--dataset", "configs"], "configs is not a dataset: it has no manifest.json"),
        (["--split", "nowhere"], "has no samples/nowhere; it has"),
        (["--task", "scanqa"], "has no scanqa; its tasks: rooms_actions, rooms_qa"),
        (["--task", "nothing"], "task nothing is unknown, wanted among scanqa"),
        (["--protocol", "leoo"], "did you mean 'leo'"),
        (["--controls", "blnd"], "controls names blnd; known are blind"),
        (["--blind", "--controls", "blind"], "blind is what is evaluated and a control as well"),
        (["--limit", "0"], "limit is 0"),
        (["--num-views", "0"], "num_views is 0"),
    ],
)
def test_wrong_input_is_refused_by_name(options, message, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        evaluator.main([*arguments, *options, "--output", str(tmp_path)])
    assert not list(tmp_path.iterdir()), "nothing may be written before everything is checked"


def launched(arguments: list[str], *launcher: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*(launcher or [sys.executable]), "eval.py", *arguments]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(finished, arguments, tmp_path):
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2"]
    options = [*arguments, "--controls", "blind,shuffled_images", "--output", str(tmp_path)]
    process = launched(options, *launcher)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert files(tmp_path) == files(finished)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_run_killed_at_random_ends_as_an_undisturbed_one(seed, finished, arguments, tmp_path):
    rng = random.Random(seed)
    options = [*arguments, "--controls", "blind,shuffled_images", "--output", str(tmp_path)]
    total = sum(len(read(path)) for path in finished.rglob("predictions.jsonl"))
    for _ in range(3):
        process, target = launched(options), rng.randrange(1, total)
        while process.poll() is None and written(tmp_path) < target:
            time.sleep(0.01)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    process = launched(options)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert files(tmp_path) == files(finished)


def written(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob("predictions.jsonl"))


def test_the_command_line_ends_with_one_line_on_wrong_input(checkpoint, tmp_path):
    process = launched(["--model", str(checkpoint), "--dataset", str(tmp_path)])
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert output.strip().splitlines()[-1].startswith(f"error: {tmp_path} is not a dataset")
    assert "Traceback" not in output


def test_answers_do_not_depend_on_batch_mates(checkpoint, rooms, tmp_path, finished):
    """Rows of single samples equal those of batches."""
    base = ["--model", str(checkpoint), "--dataset", str(rooms), "--max-new-tokens", "6", "--num-views", "2"]
    evaluator.main([*base, "--batch-size", "1", "--limit", "3", "--num-resamples", "0", "--output", str(tmp_path)])
    together = {row["sample_id"]: row["prediction"] for row in read(finished / "predictions.jsonl")}
    alone = read(tmp_path / "predictions.jsonl")
    assert len(alone) == 6
    assert all(together[row["sample_id"]] == row["prediction"] for row in alone)
    assert len(set(itertools.chain(together.values()))) > 1, "a model that always says the same shows nothing"
