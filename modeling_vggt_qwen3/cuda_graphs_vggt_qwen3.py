"""CUDA graphs of an encoder: a launch up to each kept layer, so that the GPU hardly waits for the host."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

MAX_GRAPHS = 16
"""Kinds of input whose graphs are kept, before all begin anew: 1 to 16 views of one resolution.

Those of one alone are never let go of: from torch 2.12 on the end of a graph frees cuBLAS's memory of the stream that
it was recorded on, which the others use (https://github.com/pytorch/pytorch/issues/193402).
"""

Section = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
"""The stream -> the stream some blocks later, for which it may be overwritten, and other results."""
RunSection = Callable[[Section, torch.Tensor], tuple[torch.Tensor, ...]]
Maps = dict[int, torch.Tensor]


Result = TypeVar("Result")


class CudaRecorder:
    """Records work on a stream of its own, where it runs before as well: gradients remember their stream."""

    def __init__(self) -> None:
        self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def run(self, work: Callable[[], Result]) -> Result:
        """Runs it."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = work()
        current.wait_stream(self.stream)
        return result

    def record(self, work: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Records it without running it; returns what runs it, and where the result then lies.

        Other threads may allocate meanwhile: only this one must not.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            result = work()
        return graph.replay, result


@dataclass
class RecordedSection:
    """What launches its graph, and where that leaves its results, the first of them where it finds the stream."""

    replay: Callable[[], None]
    results: tuple[torch.Tensor, ...]


@dataclass
class RecordedCall:
    """The sections of a call in their order, and the constants that they read."""

    sections: list[RecordedSection] = field(default_factory=list)
    constants: list[object] = field(default_factory=list)


class EncoderGraphs:
    """Records the sections of an encoder once for each kind of input, then replays them.

    Kept layers are made between sections, by whoever calls: no graph holds memory for them. All graphs share the memory
    of their intermediate tensors and the buffers of stream and results, which are as large as the largest input needs:
    memory does not grow with the number of graphs. Calls from several threads and streams wait for one another.

    Graphs hold addresses of the weights. Weights changed in place are seen by the next call; once any lies elsewhere (a
    cast, a move, an assignment), all graphs are dropped and recorded again as needed.
    """

    def __init__(self, model: nn.Module, recorder: Any = None) -> None:
        """`recorder`: see `CudaRecorder`, of which one is made when it is first needed."""
        self._recorder = recorder
        self._parameters = [module._parameters for module in model.modules() if module._parameters]
        self._lock = threading.Lock()
        self._calls: dict[Hashable, RecordedCall] = {}
        self._buffers: dict[int, torch.Tensor] = {}
        self._addresses: list[int] = []
        self._done: torch.cuda.Event | None = None

    def __len__(self) -> int:
        """Kinds of input that are recorded."""
        return len(self._calls)

    def devices(self) -> set[torch.device]:
        """Of all parameters."""
        return {parameter.device for parameter in self._all_parameters()}

    def run(
        self,
        encode: Callable[[RunSection], Maps],
        images: torch.Tensor,
        key: Hashable,
        hold_constants: Callable[[], AbstractContextManager[list[object]]],
    ) -> Maps:
        """What `encode` returns, without gradients.

        Args:
            encode: hands its sections to its argument, one after another. For the same key and kind of images they must
                launch the same work. Results of a section are valid until the next one begins.
            images: on the GPU where all parameters lie.
            key: what the work depends on beside the images' shape and dtype and the parameters.
            hold_constants: context whose list takes in the cached tensors that are read within.
        """
        precision = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        key = (key, precision, images.shape, images.dtype, images.device)
        # No graph may read weights that autocast keeps in another dtype for a while.
        autocast = torch.autocast("cuda", precision, enabled=precision is not None, cache_enabled=False)
        with self._lock, torch.cuda.device(images.device), torch.inference_mode(False), torch.no_grad(), autocast:
            self._drop_stale_graphs()
            caller = torch.cuda.current_stream()
            if self._done is not None:
                caller.wait_event(self._done)
            try:
                if key in self._calls:
                    sections = iter(self._calls[key].sections)
                    return encode(lambda _, x: _replay(next(sections), x))
                if len(self._calls) == MAX_GRAPHS:
                    self._calls.clear()
                return self._record_call(encode, key, hold_constants)
            finally:  # also of a call that failed: what it launched still uses the buffers
                self._done = caller.record_event()

    def _record_call(
        self,
        encode: Callable[[RunSection], Maps],
        key: Hashable,
        hold_constants: Callable[[], AbstractContextManager[list[object]]],
    ) -> Maps:
        call = RecordedCall()
        try:
            with hold_constants() as call.constants:
                maps = encode(lambda section, x: self._record(call, section, x))
        except BaseException:
            self._calls.clear()  # what was recorded so far ends, and with it all others: see MAX_GRAPHS
            raise
        self._calls[key] = call
        return maps

    def _record(self, call: RecordedCall, section: Section, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Runs a section, which compiles, fills caches and tells the shapes, and records it; returns what it made."""
        if self._recorder is None:
            self._recorder = CudaRecorder()

        def run() -> tuple[torch.Tensor, ...]:
            stream = self._buffer(0, x)
            made = section(stream.copy_(x))
            results = (stream, *(self._buffer(place, other) for place, other in enumerate(made[1:], 1)))
            _move(made, results)
            return results

        results = self._recorder.run(run)
        replay, _ = self._recorder.record(lambda: _move(section(results[0]), results))
        call.sections.append(RecordedSection(replay, results))
        return results

    def _buffer(self, place: int, like: torch.Tensor) -> torch.Tensor:
        """A tensor of this shape and dtype in the buffer of this place, which a larger one replaces as needed.

        Graphs that use the smaller one keep it alive.
        """
        size = like.numel() * like.element_size()
        buffer = self._buffers.get(place)
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[place] = torch.empty(size, dtype=torch.uint8, device=like.device)
        return buffer[:size].view(like.dtype).view(like.shape)

    def _drop_stale_graphs(self) -> None:
        addresses = [parameter.data_ptr() for parameter in self._all_parameters()]
        if addresses != self._addresses:
            self._calls.clear()
            self._buffers.clear()
            self._addresses = addresses

    def _all_parameters(self) -> Iterator[nn.Parameter]:
        return (each for own in self._parameters for each in own.values() if each is not None)


def _replay(recorded: RecordedSection, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    _move((x,), recorded.results[:1])
    recorded.replay()
    return recorded.results


def _move(made: tuple[torch.Tensor, ...], places: tuple[torch.Tensor, ...]) -> None:
    """Copies what does not lie in its place already."""
    for tensor, place in zip(made, places, strict=True):
        if tensor.data_ptr() != place.data_ptr():
            place.copy_(tensor)


__all__ = ["CudaRecorder", "EncoderGraphs", "RunSection"]
