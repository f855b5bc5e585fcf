"""Memory: what there is, what a run's weights, gradients and optimizer take of it, and what a batch takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn

FLOAT32_BYTES, HALF_BYTES = 4, 2
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Bytes free to this process and bytes in all, of its device and of the host (shared by its processes)."""

    device: str
    device_free: int
    device_total: int
    host_free: int
    host_total: int


def probe(device: torch.device) -> Memory:
    """What this process may use; without a GPU the host is the device."""
    host = psutil.virtual_memory()
    free, total = _within_cgroup(host.available, host.total)
    if device.type != "cuda":
        return Memory("CPU", free, total, free, total)
    device_free, device_total = torch.cuda.mem_get_info(device)
    return Memory(torch.cuda.get_device_name(device), device_free, device_total, free, total)


def _within_cgroup(free: int, total: int) -> tuple[int, int]:
    """The container's limit, where there is a lower one."""
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if not limit.is_file() or limit.read_text().strip() == "max":
        return free, total
    allowed = int(limit.read_text())
    return min(free, max(0, allowed - int(used.read_text()))), min(total, allowed)


@dataclass(frozen=True)
class StateBytes:
    """Bytes a device that do not depend on the batch."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def state_bytes(parameters: Iterable[nn.Parameter], zero_stage: int, world_size: int, half: bool) -> StateBytes:
    """Bytes of weights, gradients and the two moments of Adam on each device.

    Without DeepSpeed everything has the dtype of the weights. DeepSpeed keeps float32 weights and moments, in parts,
    beside the weights that compute; stage 2 divides gradients too, stage 3 all.

    Args:
        parameters: of the model, trainable or not.
        zero_stage: 0 = no DeepSpeed.
        half: whether DeepSpeed computes in bf16 or fp16.

    Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC 2020.
    """
    sizes = [(numel(p), p.element_size(), p.requires_grad) for p in parameters]
    if not zero_stage:
        learning = sum(count * size for count, size, trains in sizes if trains)
        return StateBytes(sum(count * size for count, size, _ in sizes), learning, 2 * learning)
    element = HALF_BYTES if half else FLOAT32_BYTES
    trainable = sum(count for count, _, trains in sizes if trains)
    weights = sum(count for count, _, _ in sizes) * element // (world_size if zero_stage == 3 else 1)
    gradients = trainable * element // (world_size if zero_stage >= 2 else 1)
    master = FLOAT32_BYTES if half else 0
    return StateBytes(weights, gradients, trainable * (2 * FLOAT32_BYTES + master) // world_size)


def numel(parameter: nn.Parameter) -> int:
    """Elements of a parameter; ZeRO-3 leaves an empty tensor in its place."""
    return getattr(parameter, "ds_numel", None) or parameter.numel()


def in_words(count: float) -> str:
    """A number of bytes with its unit."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
