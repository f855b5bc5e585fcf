"""Training steps as CUDA graphs: forward and backward recorded once for each shape of a batch, then launched as one.

A small model's step is some thousand kernels of microseconds, and Python launches them slower than a GPU runs them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from modeling_vggt_qwen3.constants_vggt_qwen3 import hold_constants
from modeling_vggt_qwen3.cuda_graphs_vggt_qwen3 import CudaRecorder

WARM = 3
"""Calls of a shape that run as they are: compilers and libraries settle, and the allocator learns."""
MAX_GRAPHS = 12

Numbers = dict[str, torch.Tensor]
Compute = Callable[[dict[str, Any]], Numbers]


@dataclass
class _Shape:
    """What is known of batches of one shape."""

    calls: int = 0
    has_failed: bool = False
    names: list[str] = field(default_factory=list)
    replay: Callable[[], None] | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    numbers: torch.Tensor | None = None
    gradients: list[torch.Tensor | None] = field(default_factory=list)
    constants: list[object] = field(default_factory=list)


class GraphedStep:
    """Computes the gradients of a batch, by a graph from the fourth batch of its shape on.

    Args:
        compute: runs forward and backward of a batch (a nested dict) and returns scalars. It must not read from the
            device. What is no tensor on the model's device is part of the shape.
        model: whose gradients are written; they hold those of this batch alone afterwards.
        recorder: see `CudaRecorder`.
    """

    def __init__(self, compute: Compute, model: nn.Module, recorder: Any = None) -> None:
        self.compute, self.recorder = compute, recorder or CudaRecorder()
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._shapes: dict[Hashable, _Shape] = {}
        self._state: Hashable = None

    @property
    def num_recorded(self) -> int:
        """Shapes that have a graph."""
        return sum(shape.replay is not None for shape in self._shapes.values())

    def __call__(self, inputs: dict[str, Any], state: Hashable = None) -> Numbers:
        """Writes the gradients of a batch and returns the scalars.

        Args:
            state: whatever else decides what is computed; graphs of another one are let go of.
        """
        if state != self._state:  # all at once: what one graph leaves behind, others on its stream may still need
            self._shapes.clear()
            self._state = state
        leaves = dict(_leaves(inputs))
        key = tuple(self._kind(*leaf) for leaf in leaves.items())
        shape = self._shapes.setdefault(key, _Shape())
        if shape.replay is None and shape.calls >= WARM and not shape.has_failed and not self._is_full():
            try:
                self._record(shape, inputs)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                message = f"a step could not be recorded as a CUDA graph and runs without one: {error}"
                warnings.warn(message, stacklevel=2)
                self._shapes.clear()
                shape = self._shapes[key] = _Shape(has_failed=True)
        shape.calls += 1
        if shape.replay is None:
            numbers = self.recorder.run(lambda: self._compute(shape, inputs))
        else:
            numbers = self._replay(shape, leaves)
        return dict(zip(shape.names, numbers.unbind()))

    def _replay(self, shape: _Shape, leaves: dict[str, Any]) -> torch.Tensor:
        for path, static in _leaves(shape.inputs):
            if self._may_change(static):
                static.copy_(leaves[path], non_blocking=True)
        shape.replay()
        for parameter, gradient in zip(self.parameters, shape.gradients):
            parameter.grad = gradient
        return shape.numbers.clone()

    def _is_full(self) -> bool:
        if self.num_recorded < MAX_GRAPHS:
            return False
        warnings.warn(
            f"batches come in more than {MAX_GRAPHS} shapes: those beyond run without a graph, more slowly",
            stacklevel=3,
        )
        return True

    def _compute(self, shape: _Shape, inputs: dict[str, Any]) -> torch.Tensor:
        numbers = self.compute(inputs)
        shape.names = list(numbers)
        return torch.stack([number.detach().float() for number in numbers.values()])

    def _record(self, shape: _Shape, inputs: dict[str, Any]) -> None:
        shape.inputs = self._copies(inputs)
        for parameter in self.parameters:
            parameter.grad = None  # so that the graph writes gradients and does not add to them
        try:
            with hold_constants() as shape.constants:
                shape.replay, shape.numbers = self.recorder.record(lambda: self._compute(shape, shape.inputs))
            shape.gradients = [parameter.grad for parameter in self.parameters]
        finally:
            for parameter in self.parameters:
                parameter.grad = None

    def _may_change(self, leaf: Any) -> bool:
        """Whether it is read from memory; anything else is read while the graph is recorded."""
        return isinstance(leaf, torch.Tensor) and leaf.device == self.parameters[0].device

    def _kind(self, path: str, leaf: Any) -> Hashable:
        if self._may_change(leaf):
            return path, tuple(leaf.shape), leaf.dtype
        return path, tuple(leaf.flatten().tolist()) if isinstance(leaf, torch.Tensor) else leaf

    def _copies(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {
            key: self._copies(value) if isinstance(value, dict) else value.clone() if self._may_change(value) else value
            for key, value in inputs.items()
        }


def begin_step(trainer: Trainer, model: nn.Module) -> None:
    """What `Trainer.training_step` does first."""
    model.train()
    if callable(getattr(trainer.optimizer, "train", None)):  # some optimizers keep other weights for evaluation
        trainer.optimizer.train()


def _leaves(inputs: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in inputs.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value
