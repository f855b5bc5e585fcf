"""`--debug`, `--safe`, and answers during training."""

from __future__ import annotations

import json
import logging

import pytest

import train
from tests.training_runs import losses, settings
from training import fitting
from training.arguments import DEBUG_SETTINGS, debug_words, parse_arguments
from training.checkpoints import complete_checkpoints
from training.memory import Memory, probe

DEBUG = {"num_views": 2, "report_to": "none", "max_steps": 4, "logging_steps": 1}


def said(argv: list[str]) -> str:
    """What a run logs."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("train")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        train.main(argv)
    finally:
        logger.removeHandler(handler)
    return "\n".join(records)


def test_debug_does_everything_once(small_json, rooms, tmp_path):
    words = ["--model", small_json, "--dataset", str(rooms), "--output_dir", str(tmp_path / "run")]
    words += [word for key, value in DEBUG.items() for word in (f"--{key}", str(value))]
    text = said([*words, "--debug"])
    assert "training, evaluation, answers, saving and resuming (behind step 2) all work" in text
    folder = tmp_path / "run-debug"
    assert not (tmp_path / "run").exists(), "the real run's folder is left alone"
    assert [path.name for path in complete_checkpoints(folder)] == ["checkpoint-2", "checkpoint-4"]
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert len(losses(folder)) == 4
    assert sum("eval_rooms_qa_EM@1" in entry for entry in history) == 2
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "begin"] == [0, 2], "it was resumed"


def test_debug_is_small_and_the_users_words_win(tmp_path):
    recipe = ["--config", "stage1_3dqa.yaml", "--output_dir", str(tmp_path), "--use_cpu", "true"]
    _, data_args, args = parse_arguments(debug_words([*recipe, "--logging_steps", "7"]))
    assert (args.max_steps, args.logging_steps, data_args.samples_per_scene) == (100, 7, 2)
    assert args.output_dir == f"{tmp_path}-debug"
    assert (args.text_learning_rate, data_args.num_views) == (5e-6, 8), "the recipe holds for the rest"
    assert DEBUG_SETTINGS["per_device_train_batch_size"] % DEBUG_SETTINGS["samples_per_scene"] == 0
    with pytest.raises(ValueError, match=r"debug is not followed.*without a value"):
        parse_arguments(["--debug", "underflow_overflow", "--output_dir", str(tmp_path)])
    with pytest.raises(ValueError, match=r"for objective reconstruction set --max_steps"):
        train.main(["--config", "rooms_stage0.yaml", "--debug", "--use_cpu", "true", "--bf16", "false"])


@pytest.mark.parametrize(("scenes", "batch", "accumulation"), [(1, 4, 4), (2, 8, 2), (100, 16, 1)])
def test_safe_fits_the_batch_and_keeps_the_steps(small_json, rooms, tmp_path, monkeypatch, scenes, batch, accumulation):
    """Memory for so many scenes of a batch; the losses are those of the run that was asked for."""
    options = {"max_steps": 2, "save_strategy": "no", "num_views": 1, "per_device_train_batch_size": 16}
    argv = settings(small_json, rooms, tmp_path / "safe", **options, safe=True)
    monkeypatch.setattr(fitting, "probe", lambda device: with_room(argv, rooms, scenes))
    text = said(argv)
    assert f"safe: {batch} samples a batch x {accumulation} accumulated, 4 a scene" in text
    assert "(asked for: 16 x 1, 4, 0); a step keeps its 16 samples" in text
    assert f"{batch} a batch, {accumulation} accumulated" in text
    plain = settings(small_json, rooms, tmp_path / "plain", **options)
    train.main(plain)
    assert losses(tmp_path / "safe") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


def with_room(argv, rooms, scenes: float) -> Memory:
    """A machine with room for the states and about so many scenes."""
    model_args, data_args, args = parse_arguments(argv)
    trial = fitting.Trial(model_args, data_args, args, train._dataset(data_args, "train", None))
    one, two = (trial.activation_bytes(data_args.samples_per_scene, count) for count in (1, 2))
    room = fitting.ACTIVATION_MARGIN * (one + (scenes - 1) * (two - one)) + 1000
    free = int((trial.states.total + room) / (1 - fitting.RESERVED_SHARE))
    host = probe(args.device)
    return Memory("CPU", free, free, host.host_free, host.host_total)


def test_safe_asks_fewer_questions_a_scene_or_says_that_nothing_fits(small_json, rooms, tmp_path, monkeypatch):
    argv = settings(small_json, rooms, tmp_path, max_steps=1, save_strategy="no", num_views=1, safe=True)
    one = with_room([*argv, "--samples_per_scene", "1"], rooms, 1)
    monkeypatch.setattr(fitting, "probe", lambda device: one)
    assert "safe: 1 samples a batch x 8 accumulated, 1 a scene" in said(argv)
    monkeypatch.setattr(fitting, "probe", lambda device: Memory("CPU", 1000, 1000, 1000, 1000))
    with pytest.raises(fitting.DoesNotFitError, match=r"not even one question fits.*gradient_checkpointing"):
        train.main(argv)
