"""VGGT encoder, Perceiver resampler, geometry tokens and Qwen3: the vision-language model.

Every argument of `forward` is a key of the batch table in the processor's module docstring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, Qwen3Model
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, ModelOutput

from .configuration_vggt_qwen3 import PATCH_EMBEDDING_LAYER, VggtQwen3Config
from .constants_vggt_qwen3 import once_per_key
from .generation_vggt_qwen3 import GEOMETRY_KEYS, SCENE_KEYS, SceneGenerationMixin, count_mismatch
from .loading_vggt_qwen3 import StrictLoadingMixin
from .modeling_perceiver import GeometryTokens, PerceiverResampler, PointEmbedding, SceneGeometry, pool_patches
from .modeling_vggt import VggtModel

IGNORE_INDEX = -100
PACKING_BACKENDS = ("sdpa", "eager")
AUTO_MAP = {
    "AutoConfig": "configuration_vggt_qwen3.VggtQwen3Config",
    "AutoProcessor": "processing_vggt_qwen3.VggtQwen3Processor",
    "AutoImageProcessor": "image_processing_vggt_qwen3.VggtQwen3ImageProcessor",
    **dict.fromkeys(
        ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"),
        "modeling_vggt_qwen3.VggtQwen3ForConditionalGeneration",
    ),
}


@dataclass
class VisualTokens(ModelOutput):
    """What a scene contributes to the text sequence.

    Attributes:
        pooler_output: [S, N, text width]; a scene's geometry tokens, then its latents.
        mask: bool [S, N], False at geometry tokens of padded views and of scenes without cameras.
        latent_origins: int64 [S, latents], the patch below V*P that each latent began at, if at any.
    """

    pooler_output: torch.FloatTensor | None = None
    mask: torch.BoolTensor | None = None
    latent_origins: torch.LongTensor | None = None


@dataclass
class VggtQwen3ModelOutput(BaseModelOutputWithPast):
    """The text model's output; where images were given the scenes' latents [S, N, text width], and the patches [S, N]
    that these began at, if at any.
    """

    image_hidden_states: torch.FloatTensor | None = None
    latent_origins: torch.LongTensor | None = None


@dataclass
class VggtQwen3Output(CausalLMOutputWithPast):
    """Loss, logits (None in training, where only labelled positions are computed), cache, and the scenes' latents.

    `auxiliary_losses`: unweighted losses of the ray decoder by name, for the log.
    """

    image_hidden_states: torch.FloatTensor | None = None
    auxiliary_losses: dict[str, torch.Tensor] | None = None


class VggtQwen3PreTrainedModel(StrictLoadingMixin, PreTrainedModel):
    config_class = VggtQwen3Config
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = [  # noqa: RUF012
        "Qwen3DecoderLayer",
        "VggtModel",
        "PerceiverResampler",
        "GeometryTokens",
    ]
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False
    accepts_loss_kwargs = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if getattr(module, "begins_by_inputs", False):
            init.normal_(module.weight, mean=0.0, std=module.in_features**-0.5)
        elif isinstance(module, PerceiverResampler):
            init.normal_(module.latents)  # as far apart as what they read: nearly equal ones take long to part
        elif isinstance(module, PointEmbedding):
            init.zeros_(module.missing)


class VggtQwen3Model(VggtQwen3PreTrainedModel):
    """The model without its language head: `vision_model`, `resampler`, `geometry_tokens`, `language_model`."""

    def __init__(self, config: VggtQwen3Config) -> None:
        super().__init__(config)
        text_width = config.text_config.hidden_size
        self.vision_model = VggtModel(config.vision_config)
        self.resampler = PerceiverResampler(config.perceiver_config, config.vision_config, text_width)
        self.geometry_tokens = (
            GeometryTokens(text_width, config.perceiver_config.hidden_size) if config.use_geometry_tokens else None
        )
        self.language_model = Qwen3Model(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        view_mask: torch.Tensor | None = None,
        patch_mask: torch.Tensor | None = None,
        vision_features: dict[int, torch.Tensor] | None = None,
        image_size: Sequence[int] | None = None,
        **geometry: torch.Tensor | None,
    ) -> VisualTokens:
        """Encodes S scenes into visual tokens.

        Args:
            pixel_values: uint8, or float in [0, 1], [S, V, 3, H, W].
            vision_features: in place of pixel_values, what `encode_views` made of them: layer -> [S, V, P, channels].
            image_size: (height, width) in pixels of the views behind vision_features.
            view_mask: bool [S, V], False for padded views; None = all valid.
            patch_mask: bool [S, V, P], False for padded patches; None = all valid.
            **geometry: the tensors of `SceneGeometry`, all or none.

        Raises:
            ValueError: for part of the geometry, geometry that is not float32, both or neither of pixel_values and
                vision_features, or features of other layers or sizes than the resampler's.
        """
        if (pixel_values is None) == (vision_features is None):
            raise ValueError("give exactly one of pixel_values and vision_features")
        if view_mask is not None and bool(view_mask.all()):
            view_mask = None  # the fast path: no mask in the encoder; one that lies on the CPU is read without waiting
        side, patch_size = self.config.perceiver_config.feature_pooling, self.config.vision_config.patch_size
        if vision_features is None:
            if view_mask is not None:
                view_mask = view_mask.to(pixel_values.device)
            image_size = pixel_values.shape[-2:]
            features = self.encode_views(pixel_values, view_mask)
        else:
            features = self.check_features(vision_features, image_size)
        rows, columns = (int(pixels) // patch_size for pixels in image_size)
        scene_geometry = _collect_geometry(geometry, image_size)
        if scene_geometry is not None:
            scene_geometry = scene_geometry.pooled(rows, columns, side)
        if patch_mask is not None and side > 1:
            patch_mask = pool_patches(patch_mask.unsqueeze(-1).float(), rows, columns, side).squeeze(-1) > 0
        num_patches = next(iter(features.values())).shape[2]
        patch_mask = _merge_masks(view_mask, patch_mask, num_patches)
        latents, origins = self.resampler(features, scene_geometry, patch_mask)
        mask = torch.ones(latents.shape[:2], dtype=torch.bool, device=latents.device)
        if self.geometry_tokens is None or scene_geometry is None:
            return VisualTokens(pooler_output=latents, mask=mask, latent_origins=origins)

        tokens = self.geometry_tokens(scene_geometry).to(latents)
        if self.training:  # every rank must give these parameters a gradient, also where no scene has cameras
            latents = latents + 0.0 * tokens.sum()
        tokens_mask = scene_geometry.geometry_mask[:, None].expand(tokens.shape[:2]).to(mask.device)
        if view_mask is not None:
            tokens_mask = tokens_mask & view_mask.to(mask.device)
        return VisualTokens(
            pooler_output=torch.cat((tokens, latents), dim=1),
            mask=torch.cat((tokens_mask, mask), dim=1),
            latent_origins=origins,
        )

    def encode_views(self, pixel_values: torch.Tensor, view_mask: torch.Tensor | None) -> dict[int, torch.Tensor]:
        """Patch tokens [S, V, P, channels] of the encoder layers that the resampler reads, pooled as it wants them.

        A frozen encoder keeps no graph.
        """
        patch_size, side = self.config.vision_config.patch_size, self.config.perceiver_config.feature_pooling
        needs_graph = torch.is_grad_enabled() and any(p.requires_grad for p in self.vision_model.parameters())
        with torch.set_grad_enabled(needs_graph):
            outputs = self.vision_model(
                pixel_values, view_mask=view_mask, feature_layers=self.config.perceiver_config.feature_layers
            )
        start = outputs.patch_start_idx
        features = {
            layer: maps if layer == PATCH_EMBEDDING_LAYER else maps[:, :, start:]
            for layer, maps in outputs.feature_maps.items()
        }
        if side == 1:
            return features
        rows, columns = (pixels // patch_size for pixels in pixel_values.shape[-2:])
        return {layer: pool_patches(maps, rows, columns, side) for layer, maps in features.items()}

    def check_features(
        self, features: dict[int, torch.Tensor], image_size: Sequence[int] | None
    ) -> dict[int, torch.Tensor]:
        """Cached features, once they are what `encode_views` would make of views of that size.

        Raises:
            ValueError: naming the layers or the shapes found and wanted.
        """
        if image_size is None:
            raise ValueError("vision_features need image_size, (height, width) in pixels of the views behind them")
        perceiver, vision = self.config.perceiver_config, self.config.vision_config
        if set(features) != set(perceiver.feature_layers):
            raise ValueError(
                f"vision_features hold the layers {sorted(features)}; the resampler reads {perceiver.feature_layers}"
            )
        side = vision.patch_size * perceiver.feature_pooling
        num_patches = (int(image_size[0]) // side) * (int(image_size[1]) // side)
        for layer, maps in features.items():
            wanted = (num_patches, vision.hidden_size * (1 if layer == PATCH_EMBEDDING_LAYER else 2))
            if maps.shape[2:] != wanted:
                raise ValueError(
                    f"vision_features of layer {layer} have shape {tuple(maps.shape)}; views of {tuple(image_size)} "
                    f"pixels pooled by {perceiver.feature_pooling} make [scenes, views, {wanted[0]}, {wanted[1]}]"
                )
        return features

    def embed(
        self, input_ids: torch.Tensor, visual: VisualTokens | None, scene_index: torch.Tensor | None
    ) -> torch.Tensor:
        """Token embeddings [B, T, width] with the visual tokens in place of the placeholders.

        Raises:
            ValueError: where a row's placeholders and its scene's visual tokens differ in number; names both.
        """
        embeds = self.get_input_embeddings()(input_ids)
        placeholders = (input_ids == self.config.image_token_id).to(embeds.device)
        if visual is None:
            _check_counts(placeholders.sum(1), torch.zeros_like(placeholders[:, 0]))
            return embeds
        scene_index = self._check_scene_index(scene_index, len(input_ids), len(visual.mask), embeds.device)
        mask = visual.mask.to(embeds.device)
        counts = placeholders.sum(1), mask.sum(1)[scene_index]
        found = _visual_tokens(visual.pooler_output.to(embeds), mask, scene_index, placeholders)
        embeds = torch.where(placeholders.unsqueeze(-1), found, embeds)
        if _is_recording(mask):  # nothing can be read, so that it must show in the loss
            return embeds.masked_fill((counts[0] != counts[1])[:, None, None], torch.nan)
        _check_counts(*counts)
        return embeds

    @staticmethod
    def _check_scene_index(
        scene_index: torch.Tensor | None, num_samples: int, num_scenes: int, device: torch.device
    ) -> torch.Tensor:
        if scene_index is None:
            if num_scenes != num_samples:
                raise ValueError(
                    f"{num_samples} rows of text look at {num_scenes} scenes: pass scene_index [{num_samples}], "
                    "the scene of each row"
                )
            return torch.arange(num_samples, device=device)
        if scene_index.shape != (num_samples,):
            raise ValueError(f"scene_index has shape {tuple(scene_index.shape)}; the {num_samples} rows want one each")
        return scene_index.to(device)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        vision_features: dict[int, torch.Tensor] | None = None,
        image_size: Sequence[int] | None = None,
        scene_index: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Batch table -> the text model's output; the scene's other tensors come as keywords."""
        scene = {key: kwargs.pop(key, None) for key in SCENE_KEYS}
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        visual = None
        if inputs_embeds is None:
            if pixel_values is not None or vision_features is not None:
                visual = self.get_image_features(
                    pixel_values, vision_features=vision_features, image_size=image_size, **scene
                )
            continues = visual is None and past_key_values is not None and past_key_values.get_seq_length() > 0
            inputs_embeds = (
                self.get_input_embeddings()(input_ids) if continues else self.embed(input_ids, visual, scene_index)
            )
        if segment_ids is not None:
            attention_mask = self.segment_mask(segment_ids, inputs_embeds.dtype)
        if self.training and use_cache is None:
            use_cache = False  # the library's default would keep keys and values that nobody asks for
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        num_latents = self.config.perceiver_config.num_latents
        if visual is None:
            return VggtQwen3ModelOutput(**outputs)
        latents = visual.pooler_output[:, -num_latents:]
        return VggtQwen3ModelOutput(**outputs, image_hidden_states=latents, latent_origins=visual.latent_origins)

    def segment_mask(self, segment_ids: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Additive mask [B, 1, T, T] of packed rows: a token sees the prefix (segment 0) and its own segment so far.

        Raises:
            ValueError: for an attention backend that cannot honour such a mask.
        """
        implementation = self.language_model.config._attn_implementation
        if implementation not in PACKING_BACKENDS:
            raise ValueError(
                f"packed rows need one of the attention backends {PACKING_BACKENDS}, not {implementation}: "
                "choose another attn_implementation, or pass rows without segment_ids"
            )
        query, key = segment_ids[:, :, None], segment_ids[:, None, :]
        length = segment_ids.shape[1]
        so_far = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
        seen = so_far & ((key == 0) | (key == query))
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
        return {"full_attention": mask[:, None]}


class VggtQwen3ForConditionalGeneration(VggtQwen3PreTrainedModel, SceneGenerationMixin):
    """Answers questions about photographs of a room, in words or as RoomPlan-style actions.

    ```python
    inputs = processor(images=views, text=prompt)
    answer = processor.batch_decode(model.generate(**inputs)[:, inputs["input_ids"].shape[1]:])
    ```
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012
    # Kept out of quantization, which would blur geometry, and out of float16, whose range the encoder leaves.
    _keep_in_fp32_modules = ["model.vision_model", "model.resampler", "model.geometry_tokens"]  # noqa: RUF012

    def __init__(self, config: VggtQwen3Config) -> None:
        super().__init__(config)
        self.model = VggtQwen3Model(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.ray_decoder: nn.Module | None = None
        self.post_init()
        self.generation_config.suppress_tokens = [
            config.image_token_id,
            config.vision_start_token_id,
            config.vision_end_token_id,
        ]

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    @property
    def dtype(self) -> torch.dtype:
        """Of the text model: the encoder may differ, kept more precise in float16, or less once it is frozen."""
        return self.get_input_embeddings().weight.dtype

    def get_image_features(self, pixel_values: torch.Tensor | None = None, **kwargs: Any) -> VisualTokens:
        """See `VggtQwen3Model.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        vision_features: dict[int, torch.Tensor] | None = None,
        image_size: Sequence[int] | None = None,
        view_mask: torch.Tensor | None = None,
        patch_mask: torch.Tensor | None = None,
        scene_index: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        geometry_mask: torch.Tensor | None = None,
        ref_from_cam: torch.Tensor | None = None,
        intrinsics: torch.Tensor | None = None,
        depth_hist: torch.Tensor | None = None,
        patch_points: torch.Tensor | None = None,
        patch_points_mask: torch.Tensor | None = None,
        world_from_ref: torch.Tensor | None = None,
        ray_targets: dict[str, torch.Tensor] | None = None,
        labels: torch.Tensor | None = None,
        task_ids: torch.Tensor | None = None,
        token_weights: torch.Tensor | None = None,
        answer_positions: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> VggtQwen3Output:
        """Batch table -> loss and logits.

        Args:
            labels, task_ids, token_weights: [B, T]; answer_positions: [K]; see `answer_loss`.
            num_items_in_batch: float [tasks], the weight of each task's answer tokens over the whole optimizer step;
                None = over this batch.
            world_from_ref: only serves decoding; accepted so that a whole batch can be passed on.
            ray_targets: what rays meet and patches show (see `add_ray_decoder`); adds the ray decoder's weighted losses
                to `loss`, divided by `ray_targets["share"]` where given: the batches that an optimizer step sums.
            logits_to_keep: last positions (or indices) to compute logits of; 0 = all.

        Returns:
            loss where labels are given; logits [B, kept, vocabulary], None in training.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            vision_features=vision_features,
            image_size=image_size,
            scene_index=scene_index,
            segment_ids=segment_ids,
            view_mask=view_mask,
            patch_mask=patch_mask,
            geometry_mask=geometry_mask,
            ref_from_cam=ref_from_cam,
            intrinsics=intrinsics,
            depth_hist=depth_hist,
            patch_points=patch_points,
            patch_points_mask=patch_points_mask,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        loss = None
        if labels is not None:
            loss = self.answer_loss(hidden, labels, task_ids, token_weights, num_items_in_batch, answer_positions)
        auxiliary = None
        if ray_targets is not None and loss is not None:
            auxiliary, addend = self._ray_losses(outputs, ray_targets)
            loss = loss + addend
        logits = None
        if labels is None or not self.training:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, kept])
        return VggtQwen3Output(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            auxiliary_losses=auxiliary,
        )

    def add_ray_decoder(self, decoder: nn.Module) -> nn.Module:
        """Adds what `ray_targets` train, a `RayDecoder`; neither its weights nor its code are saved with the model."""
        self.ray_decoder = decoder.to(self.device)
        return self.ray_decoder

    def _ray_losses(
        self, outputs: VggtQwen3ModelOutput, ray_targets: dict[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        latents = outputs.image_hidden_states
        if self.ray_decoder is None or latents is None:
            raise ValueError("ray_targets want images and a ray decoder: call add_ray_decoder() before training")
        losses = self.ray_decoder(latents, ray_targets, outputs.latent_origins)
        share = ray_targets.get("share", 1)
        return {name: loss.detach() for name, loss in losses.items()}, self.ray_decoder.weighted(losses) / share

    def answer_loss(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        task_ids: torch.Tensor | None = None,
        token_weights: torch.Tensor | None = None,
        denominators: torch.Tensor | None = None,
        answer_positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Sum over tasks of λ_task · (Σ w·cross-entropy / Σ w); logits only where there is a label.

        Args:
            hidden: [B, T, width]; position t predicts label t + 1.
            labels: int64 [B, T], -100 where there is none.
            task_ids: int64 [B, T] into `config.task_names`; None = one task of weight 1.
            token_weights: float32 [B, T]; None = 1 everywhere.
            denominators: float [tasks], Σ w of each task over all micro-batches and ranks; None = this batch alone.
            answer_positions: int64 [K], where in `labels.flatten()` the labels of `labels[:, 1:]` are, each once, and
                to fill up other places of it; None = look for them, which waits for the device.

        Returns:
            float32 scalar; 0 with a graph where no token is labelled.
        """
        num_tasks = len(self.config.task_names)
        if answer_positions is None:
            places = torch.arange(labels.numel(), device=labels.device).view_as(labels)
            answer_positions = places[:, 1:][labels[:, 1:] != IGNORE_INDEX]

        def at_labels(values: torch.Tensor) -> torch.Tensor:
            return values.flatten().index_select(0, answer_positions)

        found = at_labels(labels)
        logits = self.lm_head(hidden.flatten(0, 1).index_select(0, answer_positions - 1)).float()
        losses = F.cross_entropy(logits, found, reduction="none", ignore_index=IGNORE_INDEX)
        weights = (found != IGNORE_INDEX).to(losses.dtype)
        if token_weights is not None:
            weights = weights * at_labels(token_weights)
        if task_ids is None:
            tasks, task_weights = torch.zeros_like(found), losses.new_ones(num_tasks)
        else:
            tasks = at_labels(task_ids)
            by_name = tuple(float(self.config.task_weights[name]) for name in self.config.task_names)
            task_weights = _task_weights(by_name, losses.dtype, losses.device)
        if denominators is None:
            denominators = losses.new_zeros(num_tasks).index_add(0, tasks, weights)
        scale = task_weights / denominators.to(losses.dtype).clamp_min(torch.finfo(losses.dtype).tiny)
        return (losses * weights * scale.expand(num_tasks)[tasks]).sum()

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Saves weights, configuration and this code, so that every Auto class finds them with remote code trusted."""
        self.config.auto_map = dict(AUTO_MAP)
        if self.ray_decoder is not None:
            state = kwargs.pop("state_dict", None) or self.state_dict()
            kwargs["state_dict"] = {k: v for k, v in state.items() if not k.startswith("ray_decoder.")}
        super().save_pretrained(save_directory, **kwargs)


def _collect_geometry(tensors: dict[str, torch.Tensor | None], image_size: Sequence[int]) -> SceneGeometry | None:
    given = {key: value for key, value in tensors.items() if value is not None}
    if not given:
        return None
    missing = [key for key in GEOMETRY_KEYS if key not in given]
    if missing:
        raise ValueError(f"geometry is incomplete: {missing} missing beside {sorted(given)}; the processor makes all")
    return SceneGeometry(**given, image_size=tuple(image_size))


def _merge_masks(
    view_mask: torch.Tensor | None, patch_mask: torch.Tensor | None, num_patches: int
) -> torch.Tensor | None:
    """Bool [S, V, P] of the patches that take part, or None for all."""
    if view_mask is None:
        return patch_mask
    views = view_mask.unsqueeze(-1).expand(*view_mask.shape, num_patches)
    return views if patch_mask is None else views & patch_mask


def _visual_tokens(
    tokens: torch.Tensor, mask: torch.Tensor, scene_index: torch.Tensor, placeholders: torch.Tensor
) -> torch.Tensor:
    """Tokens [S, N, width] of scenes, valid where mask [S, N] -> [B, T, width]: at the placeholders those of the scene.

    Elsewhere stands some token that nobody uses, spread so that no gradient gathers from all over the text. Selecting
    by the mask instead would wait for the device, to count.
    """
    order = mask.int().argsort(dim=1, descending=True, stable=True)
    tokens = tokens.gather(1, order.unsqueeze(-1).expand_as(tokens))[scene_index]
    anywhere = torch.arange(placeholders.shape[1], device=mask.device)
    place = torch.where(placeholders, placeholders.cumsum(1) - 1, anywhere) % tokens.shape[1]
    return tokens.gather(1, place.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))


@once_per_key
def _task_weights(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def _is_recording(values: torch.Tensor) -> bool:
    return values.is_meta or (values.is_cuda and torch.cuda.is_current_stream_capturing())


def _check_counts(num_placeholders: torch.Tensor, num_visual: torch.Tensor) -> None:
    differ = num_placeholders != num_visual
    if bool(differ.any()):
        row = int(differ.nonzero()[0, 0])
        raise ValueError(count_mismatch(row, int(num_placeholders[row]), int(num_visual[row])))


VggtQwen3Config.register_for_auto_class()
VggtQwen3ForConditionalGeneration.register_for_auto_class("AutoModel")

__all__ = ["VggtQwen3ForConditionalGeneration", "VggtQwen3Model", "VggtQwen3PreTrainedModel"]
