"""What a run says of itself: at its start, in its log, and to whoever asks from another terminal."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

import train
from tests.conftest import REPOSITORY
from tests.training_runs import settings
from training.launch import CACHES, keep_caches_local
from training.memory import state_bytes
from training.monitor import LOG_NAME, describe, read_status
from training.outlook import room_for_checkpoints


@pytest.fixture(scope="module")
def finished(small_json, rooms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("train")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    options = {"max_steps": 8, "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4, "max_eval_samples": 8}
    train.main(settings(small_json, rooms, folder, **options))
    logger.removeHandler(handler)
    return folder, records


def test_a_run_says_at_its_start_what_it_needs_and_how_long_it_takes(finished):
    said = "\n".join(finished[1])
    assert "memory: CPU" in said and "cores" in said
    assert "a step takes 8 samples: 8 a batch, 1 accumulated, on 1 process(es); 8 steps to go of 8" in said
    assert "s a step, up to" in said and "to go, until" in said


def test_the_monitor_reads_a_run_from_another_process(finished):
    command = [sys.executable, "-m", "training.monitor", "--run", str(finished[0]), "--watch"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60)
    for words in (
        "finished",
        "8 of 8 (100.0%), attempt 1",
        "loss",
        "samples/s",
        "step 8: loss",
        "checkpoint-8",
        "whole",
    ):
        assert words in result.stdout, result.stdout


def test_the_monitor_tells_a_run_that_is_gone_from_one_that_goes_on(finished, tmp_path):
    lines = [json.loads(line) for line in (finished[0] / LOG_NAME).read_text().splitlines()]
    gone = subprocess.Popen(["true"])
    gone.wait()
    log = [*lines[:4], {**lines[0], "step": 1, "pid": gone.pid}]
    (tmp_path / LOG_NAME).write_text("\n".join(map(json.dumps, log)) + '\n{"event": "lo')
    status = read_status(tmp_path)
    assert [entry["step"] for entry in status.logs] == [1], "the first attempt's later steps are of another future"
    text = describe(tmp_path, status, time.time())
    assert "gone without a word" in text and "attempt 2" in text and "none yet" in text
    log[-1]["pid"] = os.getpid()
    (tmp_path / LOG_NAME).write_text("\n".join(map(json.dumps, log)))
    assert "running on" in describe(tmp_path, read_status(tmp_path), log[-1]["time"] + 5)
    assert "quiet for" in describe(tmp_path, read_status(tmp_path), log[-1]["time"] + 5000)
    with pytest.raises(FileNotFoundError, match="no training has begun there"):
        read_status(tmp_path / "elsewhere")


def test_states_are_divided_as_zero_divides_them():
    layer, frozen = nn.Linear(1000, 1000, bias=False), nn.Linear(1000, 1000, bias=False).requires_grad_(False)
    parameters = [layer.weight, frozen.weight]
    megabytes = {
        stage: [round(n / 1e6, 3) for n in (s.weights, s.gradients, s.optimizer)]
        for stage in (0, 2, 3)
        for s in [state_bytes(parameters, stage, world_size=4, half=True)]
    }
    assert megabytes == {0: [8, 4, 8], 2: [4, 0.5, 3], 3: [1, 0.5, 3]}
    half = [p.to(torch.bfloat16).requires_grad_(p.requires_grad) for p in parameters]
    assert state_bytes(half, 0, 1, half=True).optimizer == 4e6


def test_a_disk_too_small_for_the_checkpoints_is_told_before_the_first_step(tmp_path):
    assert room_for_checkpoints(tmp_path, 1000, 2) == ""
    assert "save_total_limit" in room_for_checkpoints(tmp_path, 10**18, 2)


def test_compiled_kernels_are_cached_on_this_node(monkeypatch):
    for name in CACHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    keep_caches_local()
    assert os.environ["TRITON_CACHE_DIR"] == "/elsewhere"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith("/tmp")
    for name in CACHES:
        monkeypatch.delenv(name)
