"""What must be true of the process before `TrainingArguments` exists, so that one command works everywhere."""

from __future__ import annotations

import atexit
import os
import socket
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import PartialState
from torch import distributed

CACHES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor", "CUDA_CACHE_PATH": "cuda"}


def keep_caches_local() -> None:
    """Puts compiled kernels on this node's own disk, where they are not set otherwise.

    Some of them go to the home folder by default, which many nodes then write at once over the network.
    """
    root = Path(tempfile.gettempdir()) / f"vggt-qwen3-caches-{os.getuid()}"
    for variable, name in CACHES.items():
        os.environ.setdefault(variable, str(root / name))


def prepare_process(uses_deepspeed: bool) -> None:
    """Keeps caches local, and prepares DeepSpeed without a GPU, or with a single process.

    DeepSpeed asks for an MPI launcher unless the rendezvous variables are set, and on a CPU it takes every rank for
    the only one unless the process group exists beforehand.
    """
    keep_caches_local()
    if not uses_deepspeed:
        return
    os.environ.setdefault("ACCELERATE_USE_DEEPSPEED", "true")
    for name in ("RANK", "LOCAL_RANK"):
        os.environ.setdefault(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        PartialState(backend="gloo")


def end_process_group(status: int = 0) -> None:
    """Ends a process of a group whose run went well, once every rank has come this far; does nothing without a group.

    A rank that tears down the interpreter while the group's threads still run is now and then aborted by them, and the
    launcher then ends the others, the first one in the midst of its files too. So it leaves by `os._exit`, once what
    waits for the exit has run.
    """
    if not distributed.is_initialized():
        return
    distributed.barrier()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def refuse_data_parallel(num_gpus: int) -> None:
    """Several GPUs seen by one process would be fed by DataParallel, which slices scenes apart.

    Raises:
        RuntimeError: naming the launch command.
    """
    if num_gpus > 1 and "RANK" not in os.environ:
        raise RuntimeError(
            f"{num_gpus} GPUs are visible to a single process. Start one process a GPU with "
            f"`accelerate launch --num_processes {num_gpus} train.py ...`, or choose one by CUDA_VISIBLE_DEVICES=0"
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
