"""VGGT encoder: a ViT patch embedding, then pairs of attention within each view and among all views of a scene.

Source: Wang et al., "VGGT: Visual Geometry Grounded Transformer", CVPR 2025. Written anew; the numbers are those of
the published model. The residual stream, normalisation and rotary embedding are float32 whatever the weights' dtype:
in bfloat16 the stream loses the small late updates, and rotary angles err by up to 0.06 rad.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import maybe_autocast

from .configuration_vggt_qwen3 import PATCH_EMBEDDING_LAYER, VggtConfig
from .constants_vggt_qwen3 import (
    RotaryTables,
    apply_rotary,
    grid_rotary_tables,
    hold_constants,
    normalize_pixels,
    resize_matrix,
)
from .cuda_graphs_vggt_qwen3 import EncoderGraphs, RunSection
from .kernels_vggt_qwen3 import FLASH_3, load_flash_3, norm_and_turn_, turns
from .loading_vggt_qwen3 import StrictLoadingMixin

CHUNK_TOKENS = 8_192
"""Without gradients, token-wise work on more tokens than this goes piece by piece, which caps the peak memory."""
COMPILED_PIECES = 4
"""Pieces under compilation, two up to twice `CHUNK_TOKENS`: fixed numbers, since each would be compiled anew."""
GRAPH_TOKENS = 24_576
"""Larger inputs than 17 views of 518 x 518 have no CUDA graph: their launches run ahead of the GPU anyway."""
MIN_RECOMPILE_LIMIT = 64
"""All blocks share one code object: three kinds, one view or several, with and without mask and gradient."""
SDPA_BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""Fastest first, for sequences of thousands of tokens."""

OWN_GRAPHS = ("reduce-overhead", "max-autotune")
"""Modes of `torch.compile` that capture CUDA graphs of their own, one a block."""


@dataclass
class VggtModelOutput(ModelOutput):
    """Tokens of every view.

    Attributes:
        last_hidden_state: [S, V, 5 + P, 2C] of the last pair: what its frame block made, then its global block.
        feature_maps: layer -> the same of another pair; -1 -> the patch embedding's output [S, V, P, C].
        patch_start_idx: tokens before the patches (camera token and registers), in all layers but -1.
    """

    last_hidden_state: torch.FloatTensor | None = None
    feature_maps: dict[int, torch.Tensor] | None = None
    patch_start_idx: int | None = None


class VggtLayerNorm(nn.LayerNorm):
    """Layer norm in float32 of a stream that may be more precise than the weights."""

    def forward(self, x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """[..., dim] -> [..., dim] in `dtype`, by default the weights'."""
        normed = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return normed.to(self.weight.dtype if dtype is None else dtype)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out: [batch, heads, tokens, head_dim] -> [batch, tokens, heads, head_dim] and the weights."""
    scores = (query @ key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, float("-inf"))
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value).transpose(1, 2), weights


class VggtAttention(nn.Module):
    """Self-attention with fused projections; q and k may be normalised per head, then turned by position."""

    is_causal = False
    fuse_rotary = False

    def __init__(self, config: VggtConfig, dim: int, num_heads: int, eps: float, qk_norm: bool) -> None:
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = VggtLayerNorm(dim // num_heads, eps=eps) if qk_norm else None
        self.k_norm = VggtLayerNorm(dim // num_heads, eps=eps) if qk_norm else None
        self.out_proj = nn.Linear(dim, dim)

    def forward(
        self, x: torch.Tensor, rotary: RotaryTables | None = None, key_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[batch, tokens, dim] -> the same; the tables repeat over the views within the tokens."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        kernel_turns = self.fuse_rotary and rotary is not None and turns(qkv)
        if kernel_turns:
            norm_and_turn_(qkv, self.q_norm, self.k_norm, rotary)
        query, key, value = qkv.unbind(2)
        if rotary is not None and not kernel_turns:
            query, key = (_norm_and_turn(*args, rotary) for args in ((query, self.q_norm), (key, self.k_norm)))
        implementation = self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        heads_first = [t.transpose(1, 2) for t in (query, key, value)]
        scaling = query.shape[-1] ** -0.5
        with sdpa_kernel(SDPA_BACKENDS, set_priority=True):
            attended, _ = attend(self, *heads_first, key_mask, scaling=scaling, dropout=0.0, is_causal=False)
        return self.out_proj(attended.flatten(2))


def _norm_and_turn(x: torch.Tensor, norm: VggtLayerNorm, rotary: RotaryTables) -> torch.Tensor:
    """Normalises and turns the heads of q or k [batch, tokens, heads, head_dim]; overwrites x if no graph needs it."""
    views = x.unflatten(1, (-1, rotary[0].shape[0]))  # [batch, views, tokens of a view, heads, head_dim]
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return apply_rotary(norm(views, torch.float32), rotary).to(x.dtype).flatten(1, 2)
    views_at_once = max(1, CHUNK_TOKENS // views.shape[2])
    for part in views.flatten(0, 1).split(views_at_once):
        part.copy_(apply_rotary(norm(part, torch.float32), rotary))
    return x


def may_overwrite(blocks: Iterable[VggtBlock]) -> bool:
    """Whether blocks may add to the stream in place: no gradient needs it, and no hook might keep what it is given."""
    return not torch.is_grad_enabled() and not any(
        each._forward_hooks or each._forward_pre_hooks or block.mlp_scale.dtype == torch.float64
        for block in blocks
        for each in (block, block.norm1, block.norm2)
    )


def _run(section: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return section(x)


def _by_itself(x: torch.Tensor) -> torch.Tensor:
    """Without gradients, a view that knows nothing of its base: for each kind of base blocks would be compiled anew."""
    return x if torch.is_grad_enabled() else x.detach()


class VggtMLP(nn.Module):
    """Two linear layers with exact GELU between."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, dim] -> the same."""
        tokens = x.flatten(0, 1)
        if torch.is_grad_enabled() or len(tokens) <= CHUNK_TOKENS:
            return self.fc2(F.gelu(self.fc1(x)))
        num_pieces = 2 if len(tokens) <= 2 * CHUNK_TOKENS else -(-len(tokens) // CHUNK_TOKENS)
        if num_pieces > 2 and torch.compiler.is_compiling():
            num_pieces = COMPILED_PIECES
        edges = [len(tokens) * piece // num_pieces for piece in range(num_pieces + 1)]
        parts = [tokens[start:end] for start, end in pairwise(edges)]
        return torch.cat([self.fc2(F.gelu(self.fc1(part))) for part in parts]).view_as(x)


class VggtBlock(GradientCheckpointingLayer):
    """Pre-norm transformer block with per-channel scales on both branches; the stream in and out is float32."""

    def __init__(
        self,
        config: VggtConfig,
        dim: int,
        num_heads: int,
        eps: float,
        layer_scale_init: float,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.layer_scale_init = layer_scale_init
        self.norm1 = VggtLayerNorm(dim, eps=eps)
        self.attention = VggtAttention(config, dim, num_heads, eps, qk_norm)
        self.attention_scale = nn.Parameter(torch.full((dim,), layer_scale_init))
        self.norm2 = VggtLayerNorm(dim, eps=eps)
        self.mlp = VggtMLP(dim, int(dim * config.mlp_ratio))
        self.mlp_scale = nn.Parameter(torch.full((dim,), layer_scale_init))

    def forward(
        self,
        x: torch.Tensor,
        rotary: RotaryTables | None = None,
        key_mask: torch.Tensor | None = None,
        overwrite: bool = False,
    ) -> torch.Tensor:
        """Stream [batch, tokens, dim], which may be overwritten; see `VggtAttention` for the tables and the mask."""
        add = torch.Tensor.addcmul_ if overwrite else torch.addcmul
        x = add(x, self.attention(self.norm1(x), rotary, key_mask), self.attention_scale)
        return add(x, self.mlp(self.norm2(x)), self.mlp_scale)


class VggtPatchEmbedding(nn.Module):
    """DINOv2 ViT with registers; each view alone.

    Source: Oquab et al., "DINOv2", TMLR 2024; Darcet et al., "Vision Transformers Need Registers", ICLR 2024.
    """

    def __init__(self, config: VggtConfig) -> None:
        super().__init__()
        dim, eps = config.hidden_size, config.patch_embed_layer_norm_eps
        self.patch_size = config.patch_size
        self.grid_size = config.image_size // config.patch_size
        self.projection = nn.Linear(3 * config.patch_size**2, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, dim))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + self.grid_size**2, dim))
        self.blocks = nn.ModuleList(
            VggtBlock(config, dim, config.num_patch_embed_attention_heads, eps, config.patch_embed_layer_scale_init)
            for _ in range(config.num_patch_embed_layers)
        )
        self.norm = VggtLayerNorm(dim, eps=eps)

    def forward(self, pixels: torch.Tensor, run: RunSection | None = None) -> torch.Tensor:
        """Normalised images float32 [N, 3, H, W] -> normalised patch tokens float32 [N, P, C], row by row.

        `run` calls the blocks in its own way; see `EncoderGraphs`.
        """
        (x,) = (run or _run)(self.transform, self.embed(pixels))
        return self.norm(x[:, 1 + self.register_tokens.shape[1] :], torch.float32)

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised images float32 [N, 3, H, W] -> class token, registers and patches row by row [N, 5 + P, C]."""
        size, rows, columns = self.patch_size, pixels.shape[-2] // self.patch_size, pixels.shape[-1] // self.patch_size
        patches = pixels.unflatten(-1, (columns, size)).unflatten(-3, (rows, size))  # [N, 3, rows, size, columns, size]
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [N, P, 3 * size²]
        positions = self.resized_positions(rows, columns)
        return torch.cat(
            (
                (self.cls_token + positions[:, :1]).expand(len(pixels), -1, -1),
                self.register_tokens.float().expand(len(pixels), -1, -1),
                self.projection(patches.to(self.projection.weight.dtype)) + positions[:, 1:],
            ),
            dim=1,
        )

    def transform(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """The stream after all blocks, written over the one that it is given where `may_overwrite` allows it."""
        overwrite = may_overwrite(self.blocks)
        for block in self.blocks:
            x = block(x, overwrite=overwrite)
        return (x,)

    def resized_positions(self, rows: int, columns: int) -> torch.Tensor:
        """Position embeddings of the class token and of a grid of patches, float32 [1, 1 + P, C]."""
        table = self.position_embeddings.float()
        if rows == columns == self.grid_size:
            return table
        device = table.device
        grid = table[0, 1:].unflatten(0, (self.grid_size, self.grid_size))  # [grid, grid, C]
        with maybe_autocast(device.type, enabled=False):
            grid = (resize_matrix(self.grid_size, rows, device) @ grid.flatten(1)).unflatten(1, grid.shape[1:])
            grid = resize_matrix(self.grid_size, columns, device) @ grid  # [rows, columns, C]
        return torch.cat((table[:, :1], grid.flatten(0, 1)[None]), dim=1)


class VggtPreTrainedModel(StrictLoadingMixin, PreTrainedModel):
    config_class = VggtConfig
    base_model_prefix = "vggt"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["VggtBlock"]  # noqa: RUF012 (the library reads it off the class)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        """The library asks before it sets one; "fa3" where no package has it is an ImportError, and nothing is set."""
        if attn_implementation == FLASH_3:
            load_flash_3()
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VggtBlock):
            init.constant_(module.attention_scale, module.layer_scale_init)
            init.constant_(module.mlp_scale, module.layer_scale_init)
        elif isinstance(module, VggtPatchEmbedding):
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)
            init.normal_(module.cls_token, std=1e-6)
            init.normal_(module.register_tokens, std=1e-6)
        elif isinstance(module, VggtModel):
            init.normal_(module.camera_token, std=1e-6)
            init.normal_(module.register_token, std=1e-6)


class VggtModel(VggtPreTrainedModel):
    """The encoder: photographs of a scene -> tokens that know of each other across views."""

    _keys_to_ignore_on_load_unexpected = [r"^(camera_head|depth_head|point_head)\."]  # noqa: RUF012

    def __init__(self, config: VggtConfig) -> None:
        super().__init__(config)
        dim, num_special = config.hidden_size, config.num_special_tokens
        self.patch_embed = VggtPatchEmbedding(config)
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, dim))  # of the first view, and of all others
        self.register_token = nn.Parameter(torch.zeros(1, 2, num_special - 1, dim))
        self.frame_blocks = self._make_blocks()
        self.global_blocks = self._make_blocks()
        self._graphs: EncoderGraphs | None = None
        self.post_init()

    def _make_blocks(self) -> nn.ModuleList:
        config = self.config
        return nn.ModuleList(
            VggtBlock(
                config,
                config.hidden_size,
                config.num_attention_heads,
                config.layer_norm_eps,
                config.layer_scale_init,
                qk_norm=True,
            )
            for _ in range(config.num_hidden_layers)
        )

    def forward(
        self,
        pixel_values: torch.Tensor,
        view_mask: torch.Tensor | None = None,
        feature_layers: Sequence[int] | Literal["all"] | None = None,
    ) -> VggtModelOutput:
        """Encodes S scenes of V views of H x W pixels, P = (H / patch) · (W / patch) patches a view.

        Args:
            pixel_values: RGB [S, V, 3, H, W], uint8 or float in [0, 1]; normalised here.
            view_mask: bool [S, V], False for padded views, which come last and change nothing elsewhere; their own
                outputs mean nothing. None = all are valid, which is faster: no mask is built.
            feature_layers: pairs whose output to keep, -1 for the patch embedding; "all" = every pair.

        Returns:
            Tokens in the dtype of the weights.

        Raises:
            ValueError: for a shape or a layer that the model does not have.
        """
        layers = self.resolve_layers(feature_layers)
        self._check_pixels(pixel_values)
        if self._can_use_graphs(pixel_values, view_mask):
            maps = self._graphs.run(
                lambda run: self._encode(pixel_values, None, layers, run),
                pixel_values,
                key=(*layers, self.config._attn_implementation, self.frame_blocks[0].attention.fuse_rotary),
                hold_constants=hold_constants,
            )
        else:
            maps = self._encode(pixel_values, view_mask, layers, _run)
        return VggtModelOutput(
            last_hidden_state=maps[self.config.num_hidden_layers - 1],
            feature_maps={layer: maps[layer] for layer in layers},
            patch_start_idx=self.config.num_special_tokens,
        )

    def _encode(
        self, pixel_values: torch.Tensor, view_mask: torch.Tensor | None, layers: list[int], run: RunSection
    ) -> dict[int, torch.Tensor]:
        """The layers asked for and the last one; `run` calls the parts that take the time, or replays their graphs."""
        if self.config._attn_implementation == FLASH_3:
            load_flash_3()
        num_special, last = self.config.num_special_tokens, self.config.num_hidden_layers - 1
        views = pixel_values.shape[:2]
        rows, columns = (side // self.config.patch_size for side in pixel_values.shape[3:])
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        rotary = grid_rotary_tables(rows, columns, num_special, head_dim, self.config.rope_theta, pixel_values.device)
        key_mask = None if view_mask is None else self.make_key_mask(view_mask, num_special + rows * columns)

        patches = self.patch_embed(normalize_pixels(pixel_values).flatten(0, 1), run).unflatten(0, views)
        dtype, maps = self.camera_token.dtype, {}
        if PATCH_EMBEDDING_LAYER in layers:
            maps[PATCH_EMBEDDING_LAYER] = patches.to(dtype)
        x = torch.cat((self._special_tokens(*views), patches), dim=2)  # [S, V, 5 + P, C]
        del patches
        begin, overwrite = 0, may_overwrite((*self.frame_blocks, *self.global_blocks))
        for layer in [layer for layer in range(last + 1) if layer in layers or layer == last]:
            pairs = range(begin, layer + 1)
            section = partial(self._pairs, pairs=pairs, rotary=rotary, key_mask=key_mask, overwrite=overwrite)
            x, frame = run(section, x)
            maps[layer] = torch.cat((frame, x.to(dtype)), dim=-1)
            begin = layer + 1
        return maps

    def _pairs(
        self, x: torch.Tensor, pairs: range, rotary: RotaryTables, key_mask: torch.Tensor | None, overwrite: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The stream [S, V, 5 + P, C] after these pairs; what their last frame block made, in the weights' dtype."""
        views = x.shape[:2]
        for layer in pairs:
            x = self.frame_blocks[layer](_by_itself(x.flatten(0, 1)), rotary, None, overwrite).unflatten(0, views)
            if layer == pairs[-1]:
                frame = x.to(self.camera_token.dtype, copy=overwrite)
            x = self.global_blocks[layer](_by_itself(x.flatten(1, 2)), rotary, key_mask, overwrite)
            x = x.unflatten(1, (views[1], -1))
        return x, frame

    def set_fused_rotary(self, enabled: bool = True) -> VggtModel:
        """Lets a kernel of our own normalise and turn q and k on a GPU, where no gradient is kept; returns the model.

        Call it before `compile_blocks`. Off by default: its tests have passed on one H200 alone (docs/performance.md).
        """
        for block in (*self.frame_blocks, *self.global_blocks):
            block.attention.fuse_rotary = enabled
        return self

    def compile_blocks(self, cuda_graphs: bool = False, **options: Any) -> VggtModel:
        """Compiles every block in place and returns the model: the switch for speed.

        Each kind of block (patch embedding, frame, global) is compiled once for any number of views and any image
        size, and once more for a single view: compile time does not grow with the depth.

        With CUDA graphs the first call for each shape of `pixel_values` is recorded while it runs; later calls of that
        shape are a launch up to each kept layer, and run no hooks. This is what makes few views fast. The graphs of 16
        shapes are kept (see `EncoderGraphs`); outputs are the caller's own. Where no graph can serve (gradients, padded
        views, no GPU), a warning says so and the compiled blocks run one by one, to the same end. After an exchange of
        modules, e.g. by adapters, call this again.

        Args:
            cuda_graphs: whether to record CUDA graphs of all blocks.
            **options: those of `torch.compile`, e.g. `mode="max-autotune-no-cudagraphs"`.

        Raises:
            ValueError: for CUDA graphs together with a mode that makes its own.
        """
        mode = options.get("mode")
        if cuda_graphs and mode in OWN_GRAPHS:
            raise ValueError(
                f'mode="{mode}" makes a CUDA graph of each block, which cannot be part of one of the encoder: '
                'choose "default" or "max-autotune-no-cudagraphs", or leave cuda_graphs out'
            )
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MIN_RECOMPILE_LIMIT)
        for block in (*self.patch_embed.blocks, *self.frame_blocks, *self.global_blocks):
            block.compile(**{"fullgraph": True, "dynamic": True, **options})
        self._graphs = EncoderGraphs(self) if cuda_graphs else None
        return self

    def _can_use_graphs(self, pixel_values: torch.Tensor, view_mask: torch.Tensor | None) -> bool:
        num_views, _, height, width = pixel_values.shape[1:]
        tokens_of_a_view = self.config.num_special_tokens + height * width // self.config.patch_size**2
        num_tokens = len(pixel_values) * num_views * tokens_of_a_view
        if self._graphs is None or torch.compiler.is_compiling() or num_tokens > GRAPH_TOKENS:
            return False
        others = self._graphs.devices() - {pixel_values.device}
        obstacles = {
            "gradients are enabled: call it under torch.no_grad()": torch.is_grad_enabled(),
            "some views are padded: pass scenes of as many views, and no view_mask": view_mask is not None,
            f"the images are on {pixel_values.device}": pixel_values.device.type != "cuda",
            f"the weights are on {' and '.join(map(str, others))}": bool(others),
            "the model recomputes activations: call eval()": self.training and self.is_gradient_checkpointing,
        }
        reasons = [reason for reason, holds in obstacles.items() if holds]
        if reasons:
            warnings.warn(f"no CUDA graph for this call of the encoder, since {'; '.join(reasons)}", stacklevel=4)
        return not reasons

    def __getstate__(self) -> dict[str, Any]:
        """Graphs are left out of copies, as compiled code is."""
        return {**super().__getstate__(), "_graphs": None}

    def _special_tokens(self, num_scenes: int, num_views: int) -> torch.Tensor:
        """Camera token and registers, float32 [S, V, 5, C]: one set for view 0, another for all others."""
        first, others = torch.cat((self.camera_token, self.register_token), dim=2).float().split(1, dim=1)
        tokens = torch.cat((first, others.expand(-1, num_views - 1, -1, -1)), dim=1)
        return tokens.expand(num_scenes, -1, -1, -1)

    def make_key_mask(self, view_mask: torch.Tensor, num_tokens: int) -> torch.Tensor:
        keys = view_mask.unsqueeze(-1).expand(-1, -1, num_tokens).flatten(1)  # [S, V * tokens]
        return keys if "flash" in self.config._attn_implementation else keys[:, None, None, :]

    def resolve_layers(self, feature_layers: Sequence[int] | Literal["all"] | None) -> list[int]:
        """The layers that are meant, in ascending order; see `forward`."""
        depth = self.config.num_hidden_layers
        if feature_layers == "all":
            return list(range(depth))
        asked = list(feature_layers or ())
        wrong = [layer for layer in asked if not PATCH_EMBEDDING_LAYER <= layer < depth]
        if wrong:
            raise ValueError(
                f"feature_layers names {wrong}, but the encoder has layers 0 to {depth - 1} "
                f"and {PATCH_EMBEDDING_LAYER} for the patch embedding"
            )
        # `any(==)` where `in` would do: a compiler may hold the asked ones as symbols, which `in` never finds.
        return [layer for layer in range(PATCH_EMBEDDING_LAYER, depth) if any(layer == other for other in asked)]

    def _check_pixels(self, pixel_values: torch.Tensor) -> None:
        shape, size = tuple(pixel_values.shape), self.config.patch_size
        if len(shape) != 5 or shape[2] != 3:
            raise ValueError(f"pixel_values has shape {shape}; wanted [scenes, views, 3, height, width]")
        if shape[3] % size or shape[4] % size:
            raise ValueError(
                f"pixel_values are {shape[3]} x {shape[4]} pixels; both sides must be multiples of the patch size "
                f"{size}: let the image processor resize them"
            )
        if pixel_values.dtype != torch.uint8 and not pixel_values.is_floating_point():
            raise ValueError(f"pixel_values is {pixel_values.dtype}; wanted uint8, or float in [0, 1]")


__all__ = ["VggtBlock", "VggtModel", "VggtModelOutput", "VggtPreTrainedModel"]
