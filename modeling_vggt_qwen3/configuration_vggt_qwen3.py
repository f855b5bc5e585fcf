"""Configurations of the VGGT encoder, the Perceiver resampler and the whole vision-language model."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, Qwen3Config

PATCH_EMBEDDING_LAYER = -1
"""Name, among the feature layers, of the patch embedding's normalised output (DINOv2 features of each view alone)."""

LATENT_STARTS = ("learned", "spread")


@strict
class VggtConfig(PreTrainedConfig):
    r"""Sizes of the VGGT aggregator and its heads; the defaults are those of the published 1B model.

    Source: Wang et al., "VGGT: Visual Geometry Grounded Transformer", CVPR 2025.

    Args:
        image_size: side in pixels of the square that the learned position table was made for.
        patch_size: side of a patch in pixels; image sides must be multiples of it.
        hidden_size: width C of every block; the kept feature maps have 2C channels.
        num_hidden_layers: number of pairs of a frame block and a global block.
        num_patch_embed_layers, num_patch_embed_attention_heads: depth and heads of the ViT patch embedding.
        num_register_tokens: register tokens a frame, in the ViT and again in the aggregator.
        layer_norm_eps: epsilon of the pairs, the q/k norms, and the heads; the ViT has its own.
        layer_scale_init, patch_embed_layer_scale_init: initial LayerScale of the pairs and of the ViT.
        rope_theta: base of the two-dimensional rotary embedding.
        camera_head_layers, camera_head_attention_heads, camera_head_iterations: the camera head's trunk.
        dpt_layers: the four pairs that the depth and the point head read.
        dpt_channels, dpt_features: channels of the four maps, and of the fused map.
    """

    model_type = "vggt"
    base_config_key = "vision_config"

    image_size: int = 518
    patch_size: int = 14
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_patch_embed_layers: int = 24
    num_patch_embed_attention_heads: int = 16
    num_register_tokens: int = 4
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-5
    patch_embed_layer_norm_eps: float = 1e-6
    layer_scale_init: float = 0.01
    patch_embed_layer_scale_init: float = 1.0
    rope_theta: float = 100.0
    initializer_range: float = 0.02
    camera_head_layers: int = 4
    camera_head_attention_heads: int = 16
    camera_head_iterations: int = 4
    dpt_layers: list[int] | tuple[int, ...] = (4, 11, 17, 23)
    dpt_channels: list[int] | tuple[int, ...] = (256, 512, 1024, 1024)
    dpt_features: int = 256

    def __post_init__(self, **kwargs: Any) -> None:
        for heads_key in ("num_attention_heads", "num_patch_embed_attention_heads"):
            _check_divisible("hidden_size", self.hidden_size, heads_key, getattr(self, heads_key))
        _check_divisible("head size", self.hidden_size // self.num_attention_heads, "4 (rotary halves of y and x)", 4)
        _check_divisible("image_size", self.image_size, "patch_size", self.patch_size)
        super().__post_init__(**kwargs)

    @property
    def num_special_tokens(self) -> int:
        """Tokens before a frame's patches: one camera token and the registers."""
        return 1 + self.num_register_tokens


@strict
class PerceiverConfig(PreTrainedConfig):
    r"""Sizes of the resampler that turns all patch tokens of all views into a fixed number of latents.

    Source: Jaegle et al., "Perceiver IO", ICLR 2022; Alayrac et al., "Flamingo", NeurIPS 2022.

    Args:
        hidden_size: width of latents and context.
        num_latents: visual tokens that a scene costs the text model.
        num_hidden_layers: layers of cross-attention, self-attention and MLP.
        feature_layers: encoder layers whose projections are summed into the context; -1 is the patch embedding.
        feature_pooling: side of the squares of patches whose features are averaged first; 1 = none.
        use_ray_embedding: add the Plücker coordinates of each patch's ray in the reference frame.
        use_point_embedding: add the back-projected point of each patch in the reference frame.
        num_point_frequencies: sine-cosine pairs a coordinate.
        latent_start: "learned": a vector for each latent; "spread": one vector, and the context of a patch that each
            latent begins at, chosen to differ by the features of the last of feature_layers (see `spread_patches`,
            which keeps a float32 copy of these and goes through it num_latents times).
    """

    model_type = "vggt_qwen3_perceiver"
    base_config_key = "perceiver_config"

    hidden_size: int = 1024
    num_latents: int = 128
    num_hidden_layers: int = 6
    num_attention_heads: int = 16
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-5
    feature_layers: list[int] | tuple[int, ...] = (PATCH_EMBEDDING_LAYER, 4, 11, 17, 23)
    feature_pooling: int = 1
    use_ray_embedding: bool = True
    use_point_embedding: bool = True
    num_point_frequencies: int = 8
    latent_start: str = "learned"

    def __post_init__(self, **kwargs: Any) -> None:
        _check_divisible("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        if not self.feature_layers:
            raise ValueError("feature_layers is empty: the resampler would see nothing; name at least one layer")
        if self.feature_pooling < 1:
            raise ValueError(f"feature_pooling is {self.feature_pooling}; wanted 1 (none) or the side of a square")
        if self.latent_start not in LATENT_STARTS:
            raise ValueError(f"latent_start is {self.latent_start!r}; wanted one of {', '.join(LATENT_STARTS)}")
        super().__post_init__(**kwargs)


@strict
class VggtQwen3Config(PreTrainedConfig):
    r"""VGGT encoder, Perceiver resampler, optional geometry tokens and a Qwen3 text model.

    Args:
        vision_config, perceiver_config, text_config: configurations of the parts, or dictionaries of their fields.
        image_token_id: the placeholder that the visual tokens replace (`<|image_pad|>`).
        vision_start_token_id, vision_end_token_id: the tokens around the placeholders.
        use_geometry_tokens: one token a view with known camera, before the latents.
        task_weights: task name -> weight λ of its loss. Task ids number the names in alphabetical order.
    """

    model_type = "vggt_qwen3"
    sub_configs = {  # noqa: RUF012 (the library reads it off the class)
        "vision_config": VggtConfig,
        "perceiver_config": PerceiverConfig,
        "text_config": Qwen3Config,
    }

    vision_config: dict | PreTrainedConfig | None = None
    perceiver_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 151655
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    use_geometry_tokens: bool = True
    task_weights: dict[str, float] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        for key, config_class in self.sub_configs.items():
            value = getattr(self, key)
            if value is None:
                value = config_class()
            elif isinstance(value, dict):
                value = config_class(**value)
            setattr(self, key, value)
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        if self.task_weights is None:
            self.task_weights = dict.fromkeys(DEFAULT_TASKS, 1.0)
        self._check_feature_layers()
        super().__post_init__(**kwargs)

    @property
    def task_names(self) -> list[str]:
        """Names in the order of their ids; alphabetical, since JSON does not keep the order of keys."""
        return sorted(self.task_weights)

    def _check_feature_layers(self) -> None:
        depth = self.vision_config.num_hidden_layers
        wrong = [i for i in self.perceiver_config.feature_layers if not PATCH_EMBEDDING_LAYER <= i < depth]
        if wrong:
            raise ValueError(
                f"perceiver_config.feature_layers names {wrong}, but the encoder has layers 0 to {depth - 1} "
                f"and {PATCH_EMBEDDING_LAYER} for the patch embedding"
            )


DEFAULT_TASKS = ("scanqa", "sqa3d", "actions", "rooms_qa", "rooms_actions")


def _check_divisible(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if divisor <= 0 or value % divisor:
        raise ValueError(f"{name} = {value} is not a multiple of {divisor_name} = {divisor}")


__all__ = ["DEFAULT_TASKS", "PATCH_EMBEDDING_LAYER", "PerceiverConfig", "VggtConfig", "VggtQwen3Config"]
