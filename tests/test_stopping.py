"""Runs that are killed, told to stop, or meet a fault: real processes, real signals, real disks."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import get_worker_info

import train
from tests.conftest import REPOSITORY
from tests.training_runs import TORCHRUN, free_port, losses, run, settings
from training.checkpoints import (
    MARKER,
    STAGING,
    CheckpointError,
    check_resumable,
    complete_checkpoints,
    damage,
    find_checkpoint,
)
from training.data import SceneBatchSampler, SceneDataset
from training.guards import STOPPED_BY_SIGNAL, NonFiniteLossError

# Children of a process that has imported everything: a kill costs no start of the libraries.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.preloaded"])
WAIT_S = 600


LONG = {"max_steps": 16, "num_views": 1, "samples_per_scene": 16, "per_device_train_batch_size": 16}


def start(argv: list[str], *, by_command: bool = False, log: Path = Path(os.devnull)) -> multiprocessing.Process:
    """Starts a training, as a fork or by the command that users type."""
    process = PROCESSES.Process(target=_train, args=(argv, by_command, log))
    process.start()
    return process


def _train(argv: list[str], by_command: bool, log: Path) -> None:
    os.setpgrp()  # a group of its own, which a test may signal as a whole
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if by_command:
        os.chdir(REPOSITORY)
        os.execv(sys.executable, [sys.executable, "train.py", *argv])
    train.main(argv)


def wait_until(condition: Callable[[], bool], process: multiprocessing.Process) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition() and process.is_alive():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def exit_code(process: multiprocessing.Process) -> int:
    process.join(WAIT_S)
    assert process.exitcode is not None, "it goes on and on"
    return process.exitcode


def newest_step(output: Path) -> int:
    complete = complete_checkpoints(output)
    return int(complete[-1].name.split("-")[1]) if complete else 0


def assert_same_run(one: Path, other: Path, num_steps: int) -> None:
    assert len(losses(one)) == num_steps
    assert losses(one) == losses(other)
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def kill_and_resume(argv: list[str], output: Path, num_kills: int, **how: bool) -> None:
    """Kills the run at random moments, each time starts it again by the same command, and lets the last one end."""
    rng = random.Random(0)
    for kill in range(num_kills):
        before = set(output.glob("checkpoint-*"))
        process = start(argv, **how)
        if kill % 2:  # somewhere in its first step and checkpoint
            wait_until(lambda: (output / STAGING).exists(), process)
            time.sleep(rng.uniform(0, 0.3))
        else:  # as soon as a checkpoint shows
            wait_until(lambda before=before: set(output.glob("checkpoint-*")) - before, process)
            time.sleep(rng.uniform(0, 0.02))
        process.kill()
        assert exit_code(process) == -signal.SIGKILL, f"over after {kill} kills: give it more steps"
        for folder in output.glob("checkpoint-*"):
            assert (folder / MARKER).is_file(), f"{folder} has no marker"
            assert not damage(folder)
    assert exit_code(start(argv, **how)) == 0


def test_killed_at_random_and_resumed_equals_undisturbed(small_json, rooms, tmp_path):
    options = {**LONG, "save_steps": 1, "resume_from_checkpoint": "latest"}
    assert exit_code(start(settings(small_json, rooms, tmp_path / "whole", **options))) == 0
    kill_and_resume(settings(small_json, rooms, tmp_path / "cut", **options), tmp_path / "cut", num_kills=3)
    assert_same_run(tmp_path / "cut", tmp_path / "whole", 16)


@pytest.mark.slow
def test_killed_twenty_times(small_json, rooms, tmp_path):
    options = {**LONG, "max_steps": 100, "save_steps": 1, "resume_from_checkpoint": "latest"}
    assert exit_code(start(settings(small_json, rooms, tmp_path / "whole", **options), by_command=True)) == 0
    cut = settings(small_json, rooms, tmp_path / "cut", **options)
    kill_and_resume(cut, tmp_path / "cut", num_kills=20, by_command=True)
    assert_same_run(tmp_path / "cut", tmp_path / "whole", 100)


def test_a_signal_to_all_its_processes_saves_the_step_and_the_run_goes_on(small_json, rooms, tmp_path):
    options = {**LONG, "save_steps": 1000, "dataloader_num_workers": 1, "resume_from_checkpoint": "latest"}
    options |= {"eval_strategy": "epoch"}
    assert exit_code(start(settings(small_json, rooms, tmp_path / "whole", **options))) == 0
    cut = settings(small_json, rooms, tmp_path / "cut", **options)
    process = start(cut, by_command=True, log=tmp_path / "log")
    wait_until(lambda: (tmp_path / "log").is_file() and "step  3/" in (tmp_path / "log").read_text(), process)
    os.killpg(process.pid, signal.SIGTERM)
    assert exit_code(process) == STOPPED_BY_SIGNAL, (tmp_path / "log").read_text()
    assert 3 <= newest_step(tmp_path / "cut") < 16
    assert "goes on" in (tmp_path / "log").read_text()
    assert not (tmp_path / "cut" / "model.safetensors").exists(), "it had not ended"
    assert exit_code(start(cut)) == 0
    assert_same_run(tmp_path / "cut", tmp_path / "whole", 16)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(small_json, rooms, tmp_path):
    options = {"max_steps": 40, "num_views": 1, "save_steps": 1000, "resume_from_checkpoint": "latest"}
    argv = settings(small_json, rooms, tmp_path / "run", **options)
    command = [*TORCHRUN, "--nproc_per_node", "2", "train.py", "--use_cpu", "true"]
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen(
            [*command, *argv],
            cwd=REPOSITORY,
            stdout=log,
            stderr=log,
            env={**os.environ, "MASTER_PORT": str(free_port())},
        )
        while "step  3/" not in (tmp_path / "log").read_text() and launcher.poll() is None:
            time.sleep(0.01)
        worker = psutil.Process(launcher.pid).children()[-1]
        worker.send_signal(signal.SIGUSR1)
        assert launcher.wait(WAIT_S) != 0
    assert 3 <= newest_step(tmp_path / "run") < 40
    resumed = run([*command, *argv], MASTER_PORT=str(free_port()))
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert len(losses(tmp_path / "run")) == 40


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_with_one(small_json, rooms, tmp_path):
    """Twice the accumulation keeps the samples of a step, and so the steps."""
    options = {"max_steps": 4, "save_steps": 2, "use_cpu": True, "resume_from_checkpoint": "latest"}
    two = settings(small_json, rooms, tmp_path / "run", **options, per_device_train_batch_size=4)
    command = [*TORCHRUN, "--nproc_per_node", "2", "train.py"]
    first = run([*command, *two, "--max_steps", "2", "--lr_scheduler_type", "constant"], MASTER_PORT=str(free_port()))
    assert first.returncode == 0, first.stderr[-3000:]
    train.main([*two, "--gradient_accumulation_steps", "2", "--lr_scheduler_type", "constant"])
    alone = settings(small_json, rooms, tmp_path / "alone", **options, per_device_train_batch_size=8)
    train.main([*alone, "--lr_scheduler_type", "constant"])
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), rel=2e-3)


FAKE_SRUN = """#!/bin/bash
# starts the task as srun would, and sends it the signal of the time limit once it has taken three steps
shift
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" > "$LOG" 2>&1 &
task=$!
if [ -n "$TIME_IS_OVER" ]; then
    until grep -q "step  3/" "$LOG"; do sleep 0.05; kill -0 $task || break; done
    kill -USR1 $task
fi
wait $task
"""


@pytest.mark.slow
def test_the_slurm_template_queues_again_and_goes_on(small_json, rooms, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "srun").write_text(FAKE_SRUN)
    (tools / "scontrol").write_text('#!/bin/bash\n[ "$1" = show ] && echo localhost || echo "$@" >> "$REQUEUED"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost", "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}
    job |= {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": sys.executable, "REQUEUED": str(tmp_path / "requeued")}
    argv = settings(small_json, rooms, tmp_path / "run", **LONG, save_steps=1000, use_cpu=True)
    command = ["bash", "configs/slurm/train.sbatch", *argv]
    first = run(command, **job, LOG=str(tmp_path / "first.log"), TIME_IS_OVER="1")
    assert first.returncode == STOPPED_BY_SIGNAL, (tmp_path / "first.log").read_text()[-2000:]
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert 3 <= newest_step(tmp_path / "run") < 16
    second = run(command, **job, LOG=str(tmp_path / "second.log"), TIME_IS_OVER="")
    assert second.returncode == 0, (tmp_path / "second.log").read_text()[-2000:]
    assert len(losses(tmp_path / "run")) == 16


def test_a_resumed_run_that_had_reached_its_end_takes_no_further_step(small_json, rooms, tmp_path):
    argv = settings(small_json, rooms, tmp_path, max_steps=3, save_steps=1, resume_from_checkpoint="latest")
    train.main(argv)
    before = losses(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "first.safetensors")
    train.main(argv)
    assert losses(tmp_path) == before
    first, again = load_file(tmp_path / "first.safetensors"), load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(small_json, rooms, tmp_path):
    """The limit on the size of files makes the second checkpoint's optimizer state fail in the midst of a write."""
    argv = settings(small_json, rooms, tmp_path, max_steps=4, save_steps=2, resume_from_checkpoint="latest")
    train.main([*argv, "--max_steps", "2"])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(path.stat().st_size for path in (tmp_path / "checkpoint-2").iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"checkpoint of step 4 could not be written.*free.*checkpoint-2"):
            train.main(argv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-2"]
    assert not damage(tmp_path / "checkpoint-2")
    assert not (tmp_path / STAGING).exists(), "what was written in vain takes room"
    train.main(argv)
    assert len(losses(tmp_path)) == 4


def test_a_full_disk_of_its_own(small_json, rooms, tmp_path):
    """Where this machine lets us mount one: the kernel itself says that no space is left."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], check=False).returncode:
        pytest.skip("no leave to mount a small disk")
    try:
        argv = settings(small_json, rooms, disk / "run", max_steps=4, save_steps=1, save_total_limit=9)
        with pytest.raises(CheckpointError, match=r"could not be written.*of 0.00 GB are free.*checkpoint-1"):
            train.main(argv)
        assert find_checkpoint(disk / "run", "latest") is not None
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)  # the error's frames may still hold a file open


def test_a_loss_that_is_no_number_ends_the_run_by_name_of_its_scenes(small_json, rooms, tmp_path):
    argv = settings(
        small_json, rooms, tmp_path, max_steps=8, save_steps=1, learning_rate=1e25, lr_scheduler_type="constant",
        warmup_steps=0, max_grad_norm=0, gradient_accumulation_steps=2, save_total_limit=9,
    )  # fmt: skip
    with pytest.raises(NonFiniteLossError, match=r"is (nan|inf).* in step (\d+), batch of scenes .*room-") as caught:
        train.main(argv)
    step = int(re.search(r"in step (\d+)", str(caught.value)).group(1))
    assert newest_step(tmp_path) == step - 1, "the last good checkpoint stays, and none of the bad step was made"
    dataset = SceneDataset([rooms], "train", 2)
    sampler = SceneBatchSampler(dataset, samples_per_batch=8, samples_per_scene=4, seed=0)
    batches = list(sampler)[2 * (step - 1) : 2 * step]
    scenes = {dataset.scene_id(draw.scene) for batch in batches for draw in batch}
    assert set(re.findall(r"room-[\w-]+", str(caught.value))) == scenes


def test_a_lost_worker_is_named_and_the_last_checkpoint_stays(small_json, rooms, tmp_path, monkeypatch):
    read = SceneDataset.__getitem__

    def killed_in_the_second_epoch(self, draw):
        if draw.seed[1] == 1 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, draw)

    monkeypatch.setattr(SceneDataset, "__getitem__", killed_in_the_second_epoch)
    argv = settings(small_json, rooms, tmp_path, **LONG, save_steps=1, dataloader_num_workers=1)
    with pytest.raises(RuntimeError, match=r"data loader worker died.*lower dataloader_num_workers.*latest"):
        train.main(argv)
    assert newest_step(tmp_path) > 0
    assert find_checkpoint(tmp_path, "latest") is not None


def test_a_truncated_checkpoint_is_refused_and_the_last_good_one_named(small_json, rooms, tmp_path):
    argv = settings(small_json, rooms, tmp_path / "run", max_steps=3, save_steps=1, save_total_limit=3)
    train.main(argv)
    weights = tmp_path / "run" / "checkpoint-3" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)
    with pytest.raises(CheckpointError, match=r"model.safetensors has .* bytes, .* were written.*run/checkpoint-2"):
        train.main([*argv, "--resume_from_checkpoint", "latest"])
    assert damage(weights.parent), "it stays for whoever wants to look at it"
    with pytest.raises(CheckpointError, match=r"model\.safetensors .*is cut off"):
        train.main(settings(str(weights.parent), rooms, tmp_path / "next"))
    named = str(tmp_path / "run" / "checkpoint-2")
    trainer = train.main([*argv, "--resume_from_checkpoint", named])
    assert trainer.state.global_step == 3
    assert not damage(tmp_path / "run" / "checkpoint-3")


def test_other_steps_than_the_checkpoints_are_refused(small_json, rooms, tmp_path):
    argv = settings(small_json, rooms, tmp_path, max_steps=2, save_steps=1, resume_from_checkpoint="latest")
    train.main(argv)
    with pytest.raises(ValueError, match=r"took steps of 8 samples, this run would take 16.*--model"):
        train.main([*argv, "--gradient_accumulation_steps", "2"])
    assert newest_step(tmp_path) == 2
    split = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2", "--max_steps", "3"]
    assert train.main([*argv, *split]).state.global_step == 3
    now = {"samples_per_step": 8, "world_size": 1, "zero_stage": 3}
    with pytest.raises(ValueError, match="with ZeRO stage 0, this run has stage 3"):
        check_resumable(tmp_path / "checkpoint-2", now)
