"""Qwen3 over a fixed key-value cache: passes of bucketed sizes that a CUDA graph can replay.

Every row of a cache keeps its own length: token n of a row lies in slot n, whatever the other rows hold, so there is no
padding between a shared prefix, a question and its answer. A pass takes up to T new tokens a row; rows with fewer are
filled up on the right with tokens that nobody sees and that the row's next pass writes over.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

PASS_TOKENS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
"""New tokens a row of a captured pass; longer prompts take several passes."""
MIN_LENGTH = 256
MAX_CACHES = 8
MIN_RECOMPILE_LIMIT = 64
MOVING_ROPES = ("dynamic", "longrope")


@dataclass
class GraphPass:
    """A captured pass: what it reads, the graph, and the logits [rows, vocabulary] that it leaves."""

    embeds: torch.Tensor
    counts: torch.Tensor
    graph: Any = None
    logits: torch.Tensor | None = None


@dataclass(frozen=True)
class Prefix:
    """Keys and values that several rows may begin with: of every layer [key-value heads, tokens, head size]."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]

    @property
    def length(self) -> int:
        return self.keys[0].shape[1]


@dataclass
class FixedCache:
    """Keys and values of a batch.

    Attributes:
        keys, values: of every layer [rows, key-value heads, slots, head size]; the last slot takes what fills passes
            up. Tensors of their own: a compiler would tell views of one apart by their offset.
        lengths: int64 [rows], tokens that a row holds.
        passes: tokens a row -> the pass captured for it.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    lengths: torch.Tensor
    passes: dict[int, GraphPass] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        return len(self.lengths)

    @property
    def num_slots(self) -> int:
        return self.keys[0].shape[2]

    def load(self, prefixes: Sequence[Prefix | None]) -> None:
        """Begins anew: the first rows hold these prefixes, or nothing; what lies in further rows means nothing."""
        torch._foreach_zero_(self.values)  # attention weighs free slots by 0, which leaves the NaN of an answer before
        start = 0
        for _, same in groupby(prefixes, key=id):
            prefix, *others = same
            end = start + 1 + len(others)
            if prefix is not None:
                slots = slice(prefix.length)
                for kept, new in ((self.keys, prefix.keys), (self.values, prefix.values)):
                    places = [layer[start:end, :, slots] for layer in kept]
                    torch._foreach_copy_(places, [layer.expand_as(place) for layer, place in zip(new, places)])
            start = end
        lengths = torch.tensor([prefix.length if prefix else 0 for prefix in prefixes])
        self.lengths[:start].copy_(lengths, non_blocking=True)

    def prefix(self, row: int, length: int) -> Prefix:
        """A copy of the first tokens of a row."""
        keys, values = ([layer[row, :, :length].clone() for layer in kept] for kept in (self.keys, self.values))
        return Prefix(keys, values)


class TextDecoder:
    """Runs the text model of a `VggtQwen3ForConditionalGeneration` over fixed caches.

    Args:
        model: the whole model; weights may change in place, anything else drops what was captured.
        compiled: the layers' small operations are fused by `torch.compile`, once for one row and once for several, in
            passes of one token and of more.
        graphs: passes are captured as CUDA graphs and their sizes rounded up to buckets: rows to a power of 2, tokens
            to `PASS_TOKENS`, slots to 256, 384, 512, 768, 1024, ... Without, sizes are exact and nothing is kept.
        fused: queries, keys and values of a layer come of one product, with a copy of their weights: 14 % of the text
            model's size for some 6 % of a token's time. Layers that are adapted or quantized stay as they are.

    Raises:
        ValueError: parts on several devices, attention or rotary embedding of another kind; says which.
    """

    def __init__(self, model: nn.Module, compiled: bool, graphs: bool, fused: bool = False) -> None:
        self.model = model
        self.compiled = compiled
        self.graphs = graphs
        self.fused = fused
        self.num_captured = 0
        self.lock = threading.RLock()  # caches and graphs serve one answer at a time
        _check_model(model)
        if compiled:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MIN_RECOMPILE_LIMIT)
        self._layer = torch.compile(text_layer, dynamic=True, fullgraph=True) if compiled else text_layer
        self._caches: dict[tuple[int, int], FixedCache] = {}
        self._memory: Any = None
        self._stream: torch.cuda.Stream | None = None
        self._weights: list[Any] = []
        self._versions: list[int] = []
        self._quantized = False
        self._projections: list[torch.Tensor | None] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # copies and pickles of a model begin without it

    @property
    def device(self) -> torch.device:
        return self.model.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.model.language_model.norm.weight.dtype

    def cache(self, num_rows: int, num_tokens: int) -> FixedCache:
        """A cache for so many rows of so many tokens; the same one again where graphs are kept.

        Raises:
            ValueError: more tokens than the text model has positions.
        """
        limit = self.model.config.text_config.max_position_embeddings
        if num_tokens > limit:
            raise ValueError(f"a row would take {num_tokens} tokens; the text model has {limit} positions")
        if not self.graphs:
            return self._new_cache(num_rows, num_tokens + 1)
        key = (bucket_rows(num_rows), bucket_length(num_tokens + 1))
        if key not in self._caches:
            if len(self._caches) >= MAX_CACHES:
                self._caches.clear()  # all at once, see MAX_GRAPHS of the encoder's graphs
            self._caches[key] = self._new_cache(*key)
        return self._caches[key]

    def prefill(self, cache: FixedCache, embeds: Sequence[torch.Tensor]) -> torch.Tensor:
        """Takes the token embeddings [tokens, width] of each row; logits [rows given, vocabulary] after the last."""
        logits = None
        for start in range(0, max(map(len, embeds)), PASS_TOKENS[-1]):
            parts = [row[start : start + PASS_TOKENS[-1]] for row in embeds]
            counts = torch.tensor([len(part) for part in parts]).to(self.device, non_blocking=True)
            new = self.run(cache, nn.utils.rnn.pad_sequence(parts, batch_first=True), counts)
            logits = new.clone() if logits is None else torch.where(counts[:, None] > 0, new, logits)
        return logits

    def run(self, cache: FixedCache, embeds: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """One pass.

        Args:
            cache: of at least as many rows as `embeds`.
            embeds: [rows, tokens, width].
            counts: int64 [rows], tokens that a row takes; the rest of its `embeds` only fill up.

        Returns:
            [rows, vocabulary]: logits after the last token of each row, meaningless where it took none. Valid until the
            next pass.
        """
        rows, tokens = embeds.shape[:2]
        if not self.graphs:
            return self._forward(cache, embeds, counts)
        size = next(size for size in PASS_TOKENS if size >= tokens)
        if size not in cache.passes:
            cache.passes[size] = self._captured(cache, size)
        recorded = cache.passes[size]
        recorded.embeds[:rows, :tokens].copy_(embeds, non_blocking=True)
        recorded.counts[:rows].copy_(counts, non_blocking=True)
        recorded.graph.replay()
        return recorded.logits[:rows]

    def _forward(self, cache: FixedCache, embeds: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        text = self.model.model.language_model
        num_slots = cache.num_slots
        new = torch.arange(embeds.shape[1], device=embeds.device)
        slots = (cache.lengths[:, None] + new).clamp_max(num_slots - 1)  # [rows, tokens]
        seen = torch.arange(num_slots, device=embeds.device) <= slots[..., None]  # [rows, tokens, slots]
        rotary = text.rotary_emb(embeds, slots)
        # The compiler's product with 8-bit weights is made for single tokens: for many it took 30 times as long.
        run_layer = text_layer if self._quantized and embeds.shape[1] > 1 else self._layer
        x = embeds
        for layer, projection, keys, values in zip(text.layers, self._projections, cache.keys, cache.values):
            x = run_layer(layer, projection, x, rotary, slots, seen, keys, values)
        last = x[torch.arange(len(x), device=x.device), counts - 1]  # [rows, width]
        cache.lengths.add_(counts)
        return self.model.lm_head(text.norm(last))

    def _captured(self, cache: FixedCache, num_tokens: int) -> GraphPass:
        """A new pass. No row takes a token while it is made: the cache stays as it is."""
        width = self.model.config.text_config.hidden_size
        embeds = torch.zeros(cache.num_rows, num_tokens, width, dtype=self.dtype, device=self.device)
        made = GraphPass(embeds, torch.zeros_like(cache.lengths))
        self._capture(cache, made)
        self.num_captured += 1
        return made

    def _capture(self, cache: FixedCache, made: GraphPass) -> None:
        with torch.cuda.device(self.device):
            if self._stream is None:  # of its own: where other graphs end, theirs loses memory
                self._stream, self._memory = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(2):
                    self._forward(cache, made.embeds, made.counts)
            torch.cuda.current_stream().wait_stream(self._stream)
            made.graph = torch.cuda.CUDAGraph()
            recording = {"pool": self._memory, "stream": self._stream, "capture_error_mode": "thread_local"}
            with torch.cuda.graph(made.graph, **recording):
                made.logits = self._forward(cache, made.embeds, made.counts)

    def _new_cache(self, num_rows: int, num_slots: int) -> FixedCache:
        config = self.model.config.text_config
        shape = (num_rows, config.num_key_value_heads, num_slots, config.head_dim)
        keys, values = (
            [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(config.num_hidden_layers)]
            for _ in range(2)
        )
        return FixedCache(keys, values, torch.zeros(num_rows, dtype=torch.int64, device=self.device))

    def follow_weights(self) -> None:
        """Drops what was captured of weights that lie elsewhere by now or with other adapters, and fuses anew what has
        been written to.

        To be called before the passes of an answer, when the device has nothing to wait for yet.
        """
        text = self.model.model.language_model
        modules = [module for part in (text, self.model.lm_head) for module in part.modules()]
        found = [p for module in modules for p in module._parameters.values() if p is not None]
        weights = [(id(weight), weight.data_ptr(), weight.dtype) for weight in found]
        weights += [state for part in (text, self.model.lm_head) for state in adapter_states(part)]
        if weights != self._weights:
            self._weights = weights
            self._caches.clear()
            self._projections = [self._fuse(layer.self_attn) for layer in text.layers]
            self._quantized = any(type(weight.data) is not torch.Tensor for weight in found)
        elif self.fused and self._versions != [weight._version for weight in found]:
            for layer, projection in zip(text.layers, self._projections):
                if projection is not None:
                    torch.cat([part.weight for part in _projections_of(layer.self_attn)], out=projection)
        self._versions = [weight._version for weight in found]

    def _fuse(self, attention: nn.Module) -> torch.Tensor | None:
        """Weights of queries, keys and values below each other, or None where they are no plain matrices."""
        parts = _projections_of(attention)
        plain = all(type(part) is nn.Linear and type(part.weight.data) is torch.Tensor for part in parts)
        if not self.fused or not plain or any(part.bias is not None for part in parts):
            return None
        return torch.cat([part.weight for part in parts])


def adapter_states(model: nn.Module) -> list[Any]:
    """What tells which of the adapters in a model take part, and how strongly."""
    return [
        (part.disable_adapters, str(part.active_adapter), str(part.scaling), str(part.merged_adapters))
        for part in model.modules()
        if hasattr(part, "merged_adapters")
    ]


def text_layer(
    layer: nn.Module,
    projection: torch.Tensor | None,
    x: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    slots: torch.Tensor,
    seen: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    """A decoder layer of Qwen3 that writes its keys and values to their slots.

    Args:
        layer: the library's layer, whose parts may be adapted or quantized.
        projection: weights of its queries, keys and values below each other, if they are to be one product.
        x: [rows, tokens, width].
        rotary: cosines and sines [rows, tokens, head size].
        slots: int64 [rows, tokens].
        seen: bool [rows, tokens, slots].
        keys, values: [rows, key-value heads, slots, head size], written to.
    """
    attention = layer.self_attn
    normed = layer.input_layernorm(x)
    if projection is None:
        projected = [part(normed) for part in _projections_of(attention)]
    else:
        projected = F.linear(normed, projection).split(
            [len(part.weight) for part in _projections_of(attention)], dim=-1
        )
    query, key, value = (part.unflatten(-1, (-1, attention.head_dim)) for part in projected)
    query, key = attention.q_norm(query), attention.k_norm(key)
    query, key = apply_rotary_pos_emb(query, key, *rotary, unsqueeze_dim=2)
    rows = torch.arange(len(x), device=x.device)[:, None]
    keys[rows, :, slots] = key
    values[rows, :, slots] = value
    x = x + attention.o_proj(attend(query, keys, values, seen, attention.scaling))
    return x + layer.mlp(layer.post_attention_layernorm(x))


def _projections_of(attention: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    return attention.q_proj, attention.k_proj, attention.v_proj


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Grouped-query attention without repeating the keys: [rows, tokens, heads, head size] -> [rows, tokens, width]."""
    _, tokens, heads, _ = query.shape
    groups = heads // keys.shape[1]
    query = query.unflatten(2, (-1, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # [rows, kv heads, all, size]
    scores = (query @ keys.transpose(-1, -2)).unflatten(2, (groups, tokens)).float() * scaling
    weights = scores.masked_fill(~seen[:, None, None], float("-inf")).softmax(dim=-1).to(values.dtype)
    attended = (weights.flatten(2, 3) @ values).unflatten(2, (groups, tokens))  # [rows, kv heads, groups, tokens, size]
    return attended.permute(0, 3, 1, 2, 4).flatten(2)


def bucket_rows(num_rows: int) -> int:
    """The next power of 2."""
    return 1 << (num_rows - 1).bit_length()


def bucket_length(num_slots: int) -> int:
    """The next of 256, 384, 512, 768, 1024, 1536, ..."""
    power = max(MIN_LENGTH, bucket_rows(num_slots))
    return power * 3 // 4 if power > MIN_LENGTH and num_slots <= power * 3 // 4 else power


def _check_model(model: nn.Module) -> None:
    text, config = model.model.language_model, model.config.text_config
    devices = {str(p.device) for part in (text, model.lm_head) for p in part.parameters()}
    if len(devices) > 1 or "meta" in devices or any(hasattr(layer, "_hf_hook") for layer in text.layers):
        raise ValueError(
            f"fast generation wants the text model on one device, not spread over {sorted(devices)} by a device map: "
            "leave device_map out, or generate without fast=True"
        )
    kinds = set(config.layer_types) - {"full_attention"}
    rope = config.rope_parameters["rope_type"]
    if kinds or rope in MOVING_ROPES:
        raise ValueError(
            f"fast generation knows full attention and a rotary embedding that does not change with the length, not "
            f"{sorted(kinds) or rope}: generate without fast=True"
        )


__all__ = ["FixedCache", "Prefix", "TextDecoder"]
