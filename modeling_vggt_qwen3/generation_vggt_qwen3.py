"""Answers: a scene encoded once for any number of questions, and a fast loop behind the ordinary `generate`.

```python
scene = model.encode_scene(**inputs)  # images, cameras, and the prompt up to the end of the images
again = processor(text=[prompt], scene=scene)
tokens = model.generate(**again, scene=scene, fast=True, max_new_tokens=64)
```
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache, GenerationMixin

from .answering_vggt_qwen3 import AnswerLoop, check_fast_options
from .decoding_vggt_qwen3 import Prefix, TextDecoder, adapter_states

GEOMETRY_KEYS = (
    "geometry_mask",
    "ref_from_cam",
    "intrinsics",
    "depth_hist",
    "patch_points",
    "patch_points_mask",
)
SCENE_KEYS = ("view_mask", "patch_mask", *GEOMETRY_KEYS)
PREFILL_KEYS = ("pixel_values", "vision_features", "image_size", "world_from_ref", *SCENE_KEYS)
TEXT_KEYS = ("input_ids", "attention_mask", "scene_index")
PREFIXES_PER_SCENE = 4
FAST_REFUSES = (
    "position_ids",
    "inputs_embeds",
    "past_key_values",
    "segment_ids",
    "assistant_model",
    "synced_gpus",
    "vision_features",
)
SCENE_REFUSES = (
    "position_ids",
    "inputs_embeds",
    "past_key_values",
    "segment_ids",
    "max_length",
    "min_length",
    "vision_features",
)


@dataclass
class SceneState:
    """S scenes that the model has looked at: what later questions need of them.

    Attributes:
        tokens: for each scene its visual tokens [N, text width].
        inputs: the scene tensors of the batch table that they came from; `world_from_ref` among them.
        weights: versions of all weights at that time.
        prefixes: (scene, token ids up to the end of its images) -> their keys and values; the last few of each scene.
    """

    tokens: list[torch.Tensor]
    inputs: dict[str, torch.Tensor]
    weights: list[Any] = field(default_factory=list)
    prefixes: OrderedDict[tuple[int, tuple[int, ...]], Prefix] = field(default_factory=OrderedDict)

    @property
    def num_visual_tokens(self) -> list[int]:
        """Placeholders that a prompt about each scene holds."""
        return [len(tokens) for tokens in self.tokens]

    @property
    def world_from_ref(self) -> torch.Tensor | None:
        """[S, 4, 4], for `decode_actions`."""
        return self.inputs.get("world_from_ref")

    def check_weights(self, model: torch.nn.Module) -> None:
        """Refuses a model whose weights are no longer those that looked at the scenes.

        Raises:
            ValueError: they changed, or it is another model.
        """
        if self.weights != weight_versions(model):
            raise ValueError(
                "the weights have changed since the scene was encoded (or it is another model): call encode_scene again"
            )

    def check_inputs(self, given: dict[str, torch.Tensor]) -> None:
        """Refuses images or cameras that are not those of the scenes.

        Raises:
            ValueError: they differ; names the key.
        """
        for key, tensor in given.items():
            kept = self.inputs.get(key)
            same = kept is not None and kept.shape == tensor.shape
            if not same or not torch.equal(kept.nan_to_num(), tensor.to(kept.device).nan_to_num()):
                raise ValueError(
                    f"{key} is not that of the encoded scene: leave images and cameras out of generate(scene=...), "
                    "or call encode_scene again for the new ones"
                )


@dataclass(frozen=True)
class Row:
    """A prompt without padding: token ids up to the end of the images of a scene, and the rest."""

    scene: int | None
    prefix: tuple[int, ...]
    rest: tuple[int, ...]


class SceneGenerationMixin(GenerationMixin):
    """`encode_scene`, and `generate` that takes what it returns."""

    _decoder: TextDecoder | None = None

    def compile_for_generation(self, *, compiled: bool = True, graphs: bool | None = None, **options: Any) -> Any:
        """The switch for speed of `encode_scene` and `generate(..., fast=True)`; returns the model.

        Sizes are compiled and captured when they first come: let a first question pass before you measure.

        Args:
            compiled: compile the encoder's blocks and the text model's layers, and fuse the projections of the latter,
                which keeps a copy of their weights (1.1 GB of Qwen3-4B's).
            graphs: replay CUDA graphs of the encoder and of the text model; by default on a GPU.
            **options: of `torch.compile`, for the encoder's blocks.
        """
        graphs = self.lm_head.weight.is_cuda if graphs is None else graphs
        if compiled:
            self.model.vision_model.compile_blocks(cuda_graphs=graphs, **options)
        self._decoder = TextDecoder(self, compiled, graphs, fused=compiled)
        return self

    def encode_scene(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        scene_index: torch.Tensor | None = None,
        *,
        fast: bool = False,
        **scene: torch.Tensor | None,
    ) -> SceneState:
        """Looks at S scenes once, for any number of later `generate(scene=...)`.

        Tensors may lie on the CPU: they are moved. Masks and ids are read back once, before anything is launched.

        Args:
            pixel_values, **scene: the scene tensors of the batch table.
            input_ids, attention_mask, scene_index: prompts; their part up to the end of the images is taken in as well,
                so that only the question remains. Without, it is taken in with the first question.
            fast: take it in by the passes of `generate(fast=True)`.

        Raises:
            ValueError: as `generate` does; an unknown tensor.
        """
        unknown = sorted(set(scene) - {"world_from_ref", *SCENE_KEYS})
        if unknown:
            raise ValueError(f"encode_scene knows the scene tensors of the batch table, not {', '.join(unknown)}")
        inputs = {key: value for key, value in {"pixel_values": pixel_values, **scene}.items() if value is not None}
        with plain_tensors():
            masks = _host_masks(inputs)
            counts = self._visual_counts(masks)
            rows = [] if input_ids is None else self._rows(input_ids, attention_mask, scene_index, counts)
            if fast:
                with self._fast_decoder().lock:
                    self._fast_decoder().follow_weights()
            state = self._look(inputs, masks)
            if rows:
                self._prefixes(state, rows, fast)
            state.weights = weight_versions(self)
            kept = state.inputs.items()  # the caller may write to its own tensors
            state.inputs = {key: value.clone() if value is inputs[key] else value for key, value in kept}
        return state

    def generate(self, *args: Any, scene: SceneState | None = None, fast: bool = False, **kwargs: Any) -> Any:
        """As the library's `generate`, with three further arguments.

        Args:
            scene: what `encode_scene` returned; images and cameras may be left out, and are compared where they are
                not. `scene_index` tells the scene of each row, by default its own or the only one. Tokens are those
                that come without `scene`.
            fast: decode by this model's own loop: a fixed cache, on a GPU CUDA graphs, nothing read back between two
                launches. Greedy and sampling, with the library's logits processors and streamers; tokens are those of
                the plain loop up to rounding. What it cannot do is refused by name. `compile_for_generation` makes it
                faster still.
            constraint: with `fast`, what `processor.action_constraint()` returns: masks are computed while the device
                computes, tokens that the grammar forces are taken several in one pass, spelt as the tokenizer does.
                Without `fast`, the same as `logits_processor=[constraint]`.

        Raises:
            ValueError: placeholders and visual tokens that differ in number, weights, images or cameras that are not
                those of the scene, an argument that does not go with `scene` or `fast`.
        """
        constraint = kwargs.pop("constraint", None)
        if constraint is not None and not fast:
            kwargs["logits_processor"] = [*(kwargs.get("logits_processor") or []), constraint]
        if scene is None and not fast:
            return super().generate(*args, **kwargs)
        if args:
            kwargs["input_ids"] = kwargs.pop("inputs", args[0])
            if len(args) > 1:
                raise ValueError("with scene or fast every argument of generate but the first goes by its name")
        _refuse(kwargs, FAST_REFUSES if fast else SCENE_REFUSES, "fast=True" if fast else "scene=...")
        text = {key: kwargs.pop(key, None) for key in TEXT_KEYS}
        if text["input_ids"] is None:
            raise ValueError("generate wants input_ids: the prompts, as the processor makes them")
        given = {key: kwargs.pop(key) for key in PREFILL_KEYS if kwargs.get(key) is not None}
        with plain_tensors():
            if fast:
                return self._generate_fast(text, scene, given, constraint, kwargs)
            scene.check_inputs(given)
            scene.check_weights(self)
            return self._generate_from_prefixes(text, scene, kwargs)

    def _generate_fast(
        self,
        text: dict[str, torch.Tensor | None],
        scene: SceneState | None,
        given: dict[str, torch.Tensor],
        constraint: Any,
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        masks: dict[str, torch.Tensor] = {}
        counts: list[int] = []
        if scene is not None:
            scene.check_inputs(given)
            counts = scene.num_visual_tokens
        elif "pixel_values" in given:
            masks = _host_masks(given)
            counts = self._visual_counts(masks)
        rows = self._rows(**text, num_visual_tokens=counts)
        decoder = self._fast_decoder()
        loop = AnswerLoop(self, decoder, constraint, kwargs.get("streamer"))
        if constraint is not None:
            kwargs["logits_processor"] = [*(kwargs.get("logits_processor") or []), loop.apply_constraint]

        def decode(model: Any, input_ids: torch.Tensor, *, generation_config: Any, **rest: Any) -> torch.Tensor:
            check_fast_options(generation_config, rest["stopping_criteria"])
            repeats = len(input_ids) // len(rows)
            seen = self._look(given, masks) if masks else scene  # after all that the library reads back
            check = None if scene is None else partial(scene.check_weights, model)
            prefixes = [None] * len(rows) if seen is None else self._prefixes(seen, rows, fast=True, check=check)
            prefixes = [prefix for prefix in prefixes for _ in range(repeats)]
            prompts = [row.rest for row in rows for _ in range(repeats)]
            return loop.run(input_ids, prefixes, prompts, rest["logits_processor"], generation_config, check)

        ids = text["input_ids"].to(self.device)
        mask = None if text["attention_mask"] is None else text["attention_mask"].to(self.device)
        with decoder.lock:
            decoder.follow_weights()
            return super().generate(input_ids=ids, attention_mask=mask, custom_generate=decode, **kwargs)

    def _generate_from_prefixes(
        self, text: dict[str, torch.Tensor | None], scene: SceneState, kwargs: dict[str, Any]
    ) -> Any:
        """The library's loop over rows put in order: prefix, padding, question."""
        rows = self._rows(**text, num_visual_tokens=scene.num_visual_tokens)
        prefixes = self._prefixes(scene, rows, fast=False)
        longest = max(prefix.length for prefix in prefixes)
        width = longest + max(len(row.rest) for row in rows)
        ids, mask = torch.zeros(2, len(rows), width, dtype=torch.int64)
        for b, row in enumerate(rows):
            ids[b] = row.prefix[0]  # a token that logits processors find in the row in any case
            for tokens, start in ((row.prefix, 0), (row.rest, width - len(row.rest))):
                ids[b, start : start + len(tokens)] = torch.tensor(tokens)
                mask[b, start : start + len(tokens)] = 1
        cache = _dynamic_cache(prefixes, longest, self.config.text_config)
        outputs = super().generate(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device), past_key_values=cache, **kwargs
        )
        sequences = outputs if isinstance(outputs, torch.Tensor) else outputs.sequences
        prompts = text["input_ids"].to(sequences.device).repeat_interleave(len(sequences) // len(rows), dim=0)
        sequences = torch.cat((prompts, sequences[:, width:]), dim=1)
        if isinstance(outputs, torch.Tensor):
            return sequences
        outputs["sequences"] = sequences
        return outputs

    def _fast_decoder(self) -> TextDecoder:
        if self._decoder is None:
            self._decoder = TextDecoder(self, compiled=False, graphs=self.lm_head.weight.is_cuda)
        return self._decoder

    def _visual_counts(self, masks: dict[str, torch.Tensor]) -> list[int]:
        """Visual tokens of each scene, of its masks on the host."""
        views = masks["view_mask"].sum(dim=1) * masks["geometry_mask"] * (self.model.geometry_tokens is not None)
        return (views + self.config.perceiver_config.num_latents).tolist()

    def _look(self, inputs: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]) -> SceneState:
        """Visual tokens of each scene; nothing is read back."""
        kept = {key: _moved(value, self.model.vision_model.device) for key, value in inputs.items()}
        used = {key: value for key, value in kept.items() if key != "world_from_ref"}
        visual = self.get_image_features(**{**used, "view_mask": masks["view_mask"]}).pooler_output
        num_latents = self.config.perceiver_config.num_latents
        tokens = [
            torch.cat((scene[: count - num_latents], scene[len(scene) - num_latents :]))  # padded views are the last
            for scene, count in zip(visual, self._visual_counts(masks))
        ]
        return SceneState(tokens, kept)

    def _rows(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scene_index: torch.Tensor | None,
        num_visual_tokens: Sequence[int],
    ) -> list[Row]:
        """Prompts on the host, without padding, each split at the end of its images."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.device)
        ids, mask = torch.stack((input_ids, mask.to(input_ids.dtype))).cpu()
        if len(num_visual_tokens) == 1 and scene_index is None:
            scene_index = torch.zeros(len(ids), dtype=torch.int64)
        if num_visual_tokens:
            scenes = self.model._check_scene_index(scene_index, len(ids), len(num_visual_tokens), ids.device).tolist()
        else:
            scenes = [None] * len(ids)
        rows = []
        for b, scene in enumerate(scenes):
            tokens = ids[b][mask[b].bool()].tolist()
            found = tokens.count(self.config.image_token_id)
            wanted = 0 if scene is None else num_visual_tokens[scene]
            if found != wanted:
                raise ValueError(count_mismatch(b, found, wanted))
            end = _end_of_images(tokens, self.config) if found else 0
            if end == len(tokens):
                raise ValueError(f"row {b} ends with its images: a question must follow them")
            rows.append(Row(scene, tuple(tokens[:end]), tuple(tokens[end:])))
        return rows

    def _prefixes(
        self, state: SceneState, rows: Sequence[Row], fast: bool, check: Callable[[], None] | None = None
    ) -> list[Prefix]:
        """Keys and values of each row's prefix; those that are missing are made in one batch, and checked before."""
        wanted = list(dict.fromkeys((row.scene, row.prefix) for row in rows))
        missing = [key for key in wanted if key not in state.prefixes]
        if missing:
            if check is not None:
                check()  # before what other weights make is kept
            embeds = [self._embed_prefix(state.tokens[scene], ids) for scene, ids in missing]
            make = self._run_prefixes_fast if fast else self._run_prefixes
            state.prefixes.update(zip(missing, make(embeds)))
        for key in wanted:
            state.prefixes.move_to_end(key)
        found = [state.prefixes[row.scene, row.prefix] for row in rows]
        while len(state.prefixes) > max(len(wanted), PREFIXES_PER_SCENE * len(state.tokens)):
            state.prefixes.popitem(last=False)
        return found

    def _embed_prefix(self, visual: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
        """Token embeddings [tokens, width] with a scene's visual tokens in place of the placeholders."""
        weights = self.get_input_embeddings().weight
        tokens = _moved(torch.tensor(ids), weights.device)
        embeds = self.get_input_embeddings()(tokens)
        places = [place for place, token in enumerate(ids) if token == self.config.image_token_id]
        return embeds.index_copy(0, _moved(torch.tensor(places), embeds.device), visual.to(embeds))

    def _run_prefixes_fast(self, embeds: Sequence[torch.Tensor]) -> list[Prefix]:
        decoder = self._fast_decoder()
        with decoder.lock:
            cache = decoder.cache(len(embeds), max(map(len, embeds)))
            cache.load([None] * len(embeds))
            decoder.prefill(cache, embeds)
            return [cache.prefix(row, len(row_embeds)) for row, row_embeds in enumerate(embeds)]

    def _run_prefixes(self, embeds: Sequence[torch.Tensor]) -> list[Prefix]:
        """By the text model's own forward, padded on the right: causal attention keeps padding out."""
        padded = torch.nn.utils.rnn.pad_sequence(list(embeds), batch_first=True)
        cache = self.model.language_model(inputs_embeds=padded, use_cache=True).past_key_values
        return [
            Prefix(
                [layer.keys[row, :, : len(tokens)].clone() for layer in cache.layers],
                [layer.values[row, :, : len(tokens)].clone() for layer in cache.layers],
            )
            for row, tokens in enumerate(embeds)
        ]

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Images and cameras take part in the first step alone, unless there is no cache to remember them."""
        model_inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            for key in (*PREFILL_KEYS, "scene_index"):
                model_inputs.pop(key, None)
        return model_inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Beams and samples repeat the rows of text and the prefixes of rows, never the scenes they look at."""
        scene = {key: model_kwargs.pop(key) for key in PREFILL_KEYS if key in model_kwargs}
        images = next(iter((scene.get("vision_features") or {}).values()), scene.get("pixel_values"))
        if images is not None and model_kwargs.get("scene_index") is None:
            model_kwargs["scene_index"] = self.model._check_scene_index(
                None, len(input_ids), len(images), input_ids.device
            )
        if isinstance(model_kwargs.get("past_key_values"), PrefixCache):
            model_kwargs["past_key_values"].batch_repeat_interleave(expand_size)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, **scene}


class PrefixCache(DynamicCache):
    """The library's cache, filled with one prefix a row of text."""


@contextmanager
def plain_tensors() -> Iterator[None]:
    """No gradients, and no inference tensors either: buffers live on and are written to in later calls."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def weight_versions(model: torch.nn.Module) -> list[Any]:
    """What changes when a weight is written to (but not through `.data`), replaced, or an adapter is switched."""
    versions: list[Any] = []
    for module in model.modules():
        versions += [(id(p), p.data_ptr(), p._version) for p in module._parameters.values() if p is not None]
    return versions + adapter_states(model)


def count_mismatch(row: int, num_placeholders: int, num_visual: int) -> str:
    """Words of the refusal."""
    return (
        f"row {row} has {num_placeholders} image placeholders for {num_visual} visual tokens; "
        "let the processor of this model write both, with the same num_latents and geometry"
    )


def _refuse(kwargs: dict[str, Any], names: Sequence[str], reason: str) -> None:
    given = [name for name in names if kwargs.get(name) is not None]
    if given:
        raise ValueError(f"{', '.join(given)} cannot go with {reason}: leave one out (use max_new_tokens for lengths)")


def _end_of_images(tokens: Sequence[int], config: Any) -> int:
    """Where the question begins: after the last placeholder and the token that ends the images."""
    end = len(tokens) - tokens[::-1].index(config.image_token_id)
    return end + (end < len(tokens) and tokens[end] == config.vision_end_token_id)


def _dynamic_cache(prefixes: Sequence[Prefix], length: int, config: Any) -> PrefixCache:
    """Prefixes padded on the right to `length`, as the library's cache."""
    cache = PrefixCache(config=config)
    for layer in range(config.num_hidden_layers):
        padded = (
            torch.stack([F.pad(side[layer], (0, 0, 0, length - side[layer].shape[1])) for side in sides])
            for sides in ([prefix.keys for prefix in prefixes], [prefix.values for prefix in prefixes])
        )
        cache.update(*padded, layer)
    return cache


def _host_masks(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`view_mask` [S, V] and `geometry_mask` [S] on the host, whatever was given."""
    num_scenes, num_views = inputs["pixel_values"].shape[:2]
    views = inputs.get("view_mask", torch.ones(num_scenes, num_views, dtype=torch.bool))
    known = inputs.get("geometry_mask", torch.zeros(num_scenes, dtype=torch.bool))
    return {"view_mask": views.cpu(), "geometry_mask": known.cpu()}


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Without waiting for what the device still has to do."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


__all__ = ["SceneGenerationMixin", "SceneState"]
