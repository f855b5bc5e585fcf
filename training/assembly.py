"""The model and its processor: from a checkpoint, or from a configuration and random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from modeling_vggt_qwen3.configuration_vggt_qwen3 import VggtQwen3Config
from modeling_vggt_qwen3.modeling_vggt import VggtModel
from modeling_vggt_qwen3.modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration
from processing.image_processing_vggt_qwen3 import VggtQwen3ImageProcessor
from processing.processing_vggt_qwen3 import VggtQwen3Processor

from .adapters import base_of, is_adapter, merge
from .checkpoints import CheckpointError, cut_off_weights
from .encoder import cast_parameters

# AutoTokenizer reads config.json, too: known here, it needs no look at the checkpoint's own code, nor asks for leave.
AutoConfig.register("vggt_qwen3", VggtQwen3Config, exist_ok=True)

QWEN3_SIZES = Path(__file__).resolve().parents[1] / "configs" / "qwen3_sizes.json"
SPECIAL_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def load_model(
    source: str,
    tokenizer: str,
    attn_implementation: str = "sdpa",
    task_weights: dict[str, float] | None = None,
    image_size: int | None = None,
    dtype: str = "auto",
    text_model: str | None = None,
    feature_pooling: int | None = None,
    device: torch.device | str = "cpu",
    vision_checkpoint: str | None = None,
) -> tuple[VggtQwen3ForConditionalGeneration, VggtQwen3Processor]:
    """Loads a checkpoint folder or Hub id; or builds the model that a configuration JSON describes.

    A folder of adapters is loaded with the checkpoint that they were trained on, and merged into it.

    Args:
        source: folder, Hub id, or a path that ends in `.json`.
        tokenizer: folder or Hub id of the tokenizer, read only with a configuration JSON.
        task_weights: replaces the tasks of the configuration and the weights of their losses.
        image_size: side in pixels that views are resized to; None = as in the checkpoint, or the encoder's native one.
        text_model: replaces the text model's sizes of a configuration JSON by those of a Qwen3, such as "Qwen3-1.7B".
        dtype: of the weights, such as "float32"; "auto" = as they are stored, random ones float32.
        feature_pooling: replaces that of the resampler's configuration.
        device: where random weights are made, which decides them beside the seed.
        vision_checkpoint: folder or Hub id of encoder weights for a model that a configuration JSON describes.

    Raises:
        FileNotFoundError: for a configuration JSON that is not there.
        ValueError: for a configuration and a tokenizer that do not fit, or an incomplete checkpoint.
        CheckpointError: for weights that were cut off.
    """
    if source.endswith(".json"):
        config = _read_overridden(source, task_weights, text_model)
        _set_pooling(config, feature_pooling)
        with torch.device(device):
            model, processor = build_model(config, tokenizer, attn_implementation, image_size)
        if vision_checkpoint is not None:
            encoder = VggtModel.from_pretrained(vision_checkpoint, dtype=torch.float32)
            model.model.vision_model.load_state_dict(encoder.state_dict())
        if dtype != "auto":
            cast_parameters(model, getattr(torch, dtype))
        return model, processor
    for name, value in (("text_model", text_model), ("vision_checkpoint", vision_checkpoint)):
        if value is not None:
            raise ValueError(
                f"{name} is {value}, but the checkpoint {source} brings its own: give a configuration JSON, or "
                "assemble another checkpoint with `python -m hub_upload.assemble_checkpoint`"
            )
    if is_adapter(source):
        base = base_of(source)
        options = {"dtype": dtype, "feature_pooling": feature_pooling}
        model, _ = load_model(base, tokenizer, attn_implementation, task_weights, image_size, **options)
        return merge(model, source), describe_model(source, tokenizer, None, image_size)[1]
    config, processor = describe_model(source, tokenizer, task_weights, image_size, feature_pooling=feature_pooling)
    try:
        model = VggtQwen3ForConditionalGeneration.from_pretrained(
            source, config=config, attn_implementation=attn_implementation, dtype=dtype
        )
    except SafetensorError as error:
        raise CheckpointError(f"{source}: {cut_off_weights(source) or error}; copy it again") from error
    return model, processor


def describe_model(
    source: str,
    tokenizer: str,
    task_weights: dict[str, float] | None = None,
    image_size: int | None = None,
    text_model: str | None = None,
    feature_pooling: int | None = None,
) -> tuple[VggtQwen3Config, VggtQwen3Processor]:
    """Configuration and processor of what `load_model` would load, without its weights.

    Raises:
        FileNotFoundError: for a source that is neither a folder nor a repository that the Hub knows.
    """
    if not source.endswith(".json"):
        base = base_of(source) if is_adapter(source) else source
        overrides = {} if task_weights is None else {"task_weights": task_weights}
        options = {} if image_size is None else {"size": image_size}
        try:
            config = VggtQwen3Config.from_pretrained(base, **overrides)
            _set_pooling(config, feature_pooling)
            return config, VggtQwen3Processor.from_pretrained(source, **options)
        except OSError as error:
            raise FileNotFoundError(
                f"no checkpoint {source}: no such folder here, and as a Hub id it cannot be read. Train one by "
                f"`python train.py --output_dir {source}`, or check the name. ({str(error).strip().splitlines()[0]})"
            ) from error
    config = _read_overridden(source, task_weights, text_model)
    _set_pooling(config, feature_pooling)
    return config, _fitted_processor(config, tokenizer, image_size)


def _read_overridden(path: str, task_weights: dict[str, float] | None, text_model: str | None) -> VggtQwen3Config:
    overrides: dict[str, Any] = {} if task_weights is None else {"task_weights": task_weights}
    if text_model is not None:
        overrides["text_config"] = qwen3_sizes(text_model)
    return read_config(path, **overrides)


def qwen3_sizes(name: str) -> dict[str, Any]:
    """Fields of the text configuration of a published Qwen3 model.

    Raises:
        ValueError: for a model that is not in the table.
    """
    sizes = json.loads(QWEN3_SIZES.read_text(encoding="utf-8"))
    if name not in sizes:
        raise ValueError(f"text_model is {name}; the sizes known are those of {', '.join(sizes)}")
    return sizes[name]


def _set_pooling(config: VggtQwen3Config, feature_pooling: int | None) -> None:
    if feature_pooling is not None:
        fields = {**config.perceiver_config.to_dict(), "feature_pooling": feature_pooling}
        config.perceiver_config = type(config.perceiver_config)(**fields)


def read_config(path: str, **overrides: Any) -> VggtQwen3Config:
    """A model configuration from its JSON file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no model configuration {path}; those that come along are in configs/models")
    fields = json.loads(Path(path).read_text(encoding="utf-8"))
    fields.pop("model_type", None)
    return VggtQwen3Config(**{**fields, **overrides})


def build_model(
    config: VggtQwen3Config, tokenizer: str, attn_implementation: str = "sdpa", image_size: int | None = None
) -> tuple[VggtQwen3ForConditionalGeneration, VggtQwen3Processor]:
    """A model with random weights, and the processor that feeds it; the global seed decides the weights."""
    processor = _fitted_processor(config, tokenizer, image_size)
    config._attn_implementation = attn_implementation
    return VggtQwen3ForConditionalGeneration(config), processor


def _fitted_processor(config: VggtQwen3Config, tokenizer: str, image_size: int | None) -> VggtQwen3Processor:
    text_tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    fit_to_tokenizer(config, text_tokenizer)
    return build_processor(config, text_tokenizer, image_size)


def fit_to_tokenizer(config: VggtQwen3Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes the tokenizer's special ids into the configuration.

    Raises:
        ValueError: where a special token is missing or the vocabulary is larger than the embedding.
    """
    if len(tokenizer) > config.text_config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, text_config.vocab_size is {config.text_config.vocab_size}: "
            "raise it, or name the tokenizer of this text model"
        )
    for key, token in SPECIAL_TOKENS.items():
        setattr(config, key, _token_id(tokenizer, token))
    config.text_config.eos_token_id = _token_id(tokenizer, "<|im_end|>")
    config.text_config.pad_token_id = _token_id(tokenizer, "<|endoftext|>")


def build_processor(
    config: VggtQwen3Config, tokenizer: PreTrainedTokenizerBase, image_size: int | None = None
) -> VggtQwen3Processor:
    """The processor of a model, for square images of `image_size` pixels, by default the encoder's native size."""
    vision = config.vision_config
    return VggtQwen3Processor(
        VggtQwen3ImageProcessor(size=image_size or vision.image_size, patch_size=vision.patch_size),
        tokenizer,
        num_latents=config.perceiver_config.num_latents,
        use_geometry_tokens=config.use_geometry_tokens,
    )


def _token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    token_id = tokenizer.convert_tokens_to_ids(token)
    if token_id is None or tokenizer.convert_ids_to_tokens(token_id) != token:  # an unknown one may get another's id
        raise ValueError(f"the tokenizer {tokenizer.name_or_path} lacks {token}; use one of the Qwen family")
    return token_id
