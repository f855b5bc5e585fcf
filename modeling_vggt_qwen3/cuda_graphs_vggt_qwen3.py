"""CUDA graphs of an encoder: one launch a call, so that the GPU never waits for the host."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

MAX_GRAPHS = 16
"""Shapes whose graphs are kept, before all begin anew: 1 to 16 views of one resolution.

One alone is never let go of: from torch 2.12 on the end of a graph frees cuBLAS's memory of the stream that it was
recorded on, which the others use (https://github.com/pytorch/pytorch/issues/193402).
"""

Maps = dict[int, torch.Tensor]
Encode = Callable[[torch.Tensor, Maps | None], Maps]
"""Images, and tensors to fill in place of new ones -> layer -> tokens."""


@dataclass
class CapturedGraph:
    """A graph, where it reads and writes, and the constants that it reads."""

    graph: torch.cuda.CUDAGraph
    images: torch.Tensor
    maps: Maps
    constants: list[object]


class EncoderGraphs:
    """Captures an encoder once for each kind of input, then replays.

    All graphs share the memory of their intermediate tensors and the buffers of their inputs and outputs, which are as
    large as the largest input needs: memory does not grow with the number of graphs. What a call returns is a copy, no
    other call overwrites it. Calls from several threads and streams wait for one another.

    Graphs hold addresses of the weights. Weights changed in place are seen by the next call; once any lies elsewhere (a
    cast, a move, an assignment), all graphs are dropped and captured again as needed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [module._parameters for module in model.modules() if module._parameters]
        self._lock = threading.Lock()
        self._graphs: dict[Hashable, CapturedGraph] = {}
        self._buffers: dict[Hashable, torch.Tensor] = {}
        self._addresses: list[int] = []
        self._stream: torch.cuda.Stream | None = None
        self._pool: tuple[int, int] | None = None
        self._done: torch.cuda.Event | None = None

    def __len__(self) -> int:
        return len(self._graphs)

    def run(
        self,
        encode: Encode,
        images: torch.Tensor,
        key: Hashable,
        hold_constants: Callable[[], AbstractContextManager[list[object]]],
    ) -> Maps:
        """What `encode(images, None)` returns, without gradients.

        Args:
            encode: the function to capture; for the same key and kind of images it must launch the same work.
            images: on the GPU where all parameters lie.
            key: what the work depends on beside the images' shape and dtype and the parameters.
            hold_constants: context whose list takes in the cached tensors that are read within.
        """
        precision = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        key = (key, precision, images.shape, images.dtype, images.device)
        with self._lock, torch.cuda.device(images.device):
            self._drop_stale_graphs()
            caller = torch.cuda.current_stream()
            if self._done is not None:
                caller.wait_event(self._done)
            captured = self._graphs.get(key)
            if captured is None:
                if len(self._graphs) == MAX_GRAPHS:
                    self._graphs.clear()
                # No graph may read weights that autocast keeps in another dtype for a while.
                autocast = torch.autocast("cuda", precision, enabled=precision is not None, cache_enabled=False)
                with torch.inference_mode(False), torch.no_grad(), autocast:
                    captured = self._graphs[key] = self._capture(encode, images, hold_constants)
            captured.images.copy_(images)
            captured.graph.replay()
            maps = {layer: buffer.clone() for layer, buffer in captured.maps.items()}
            self._done = caller.record_event()
        return maps

    def _capture(
        self,
        encode: Encode,
        images: torch.Tensor,
        hold_constants: Callable[[], AbstractContextManager[list[object]]],
    ) -> CapturedGraph:
        """Runs once for real, which compiles, fills caches and tells the shapes; then once for the record."""
        if self._stream is None:
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        source = self._buffer("images", images)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream), hold_constants() as constants:
            source.copy_(images)
            maps = {layer: self._buffer(layer, tokens) for layer, tokens in encode(source, None).items()}
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate meanwhile: only this one must not.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            encode(source, maps)
        return CapturedGraph(graph, source, maps, constants)

    def _buffer(self, name: Hashable, like: torch.Tensor) -> torch.Tensor:
        """A tensor of this shape and dtype in the buffer of this name, which a larger one replaces as needed.

        Graphs that use the smaller one keep it alive.
        """
        size = like.numel() * like.element_size()
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[name] = torch.empty(size, dtype=torch.uint8, device=like.device)
        return buffer[:size].view(like.dtype).view(like.shape)

    def _drop_stale_graphs(self) -> None:
        addresses = [
            parameter.data_ptr()
            for parameters in self._parameters
            for parameter in parameters.values()
            if parameter is not None
        ]
        if addresses != self._addresses:
            self._graphs.clear()
            self._buffers.clear()
            self._addresses = addresses


__all__ = ["EncoderGraphs"]
