"""Composes a pretrained encoder and a pretrained text model into one checkpoint, ready to train.

    python -m hub_upload.assemble_checkpoint --vggt checkpoints/vggt --qwen3 Qwen/Qwen3-4B --output checkpoints/start

The encoder is a folder that `convert_vggt_checkpoint` wrote, the text model any Qwen3 checkpoint with its tokenizer,
each a local folder or a Hub id. What lies between, resampler and geometry tokens, starts from random weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedConfig, Qwen3Config, Qwen3ForCausalLM, set_seed

from modeling_vggt_qwen3.configuration_vggt_qwen3 import PerceiverConfig, VggtConfig, VggtQwen3Config
from modeling_vggt_qwen3.convert_vggt_checkpoint import all_or_nothing, refuse_existing
from modeling_vggt_qwen3.loading_vggt_qwen3 import StrictLoadingMixin
from modeling_vggt_qwen3.modeling_vggt import VggtModel
from modeling_vggt_qwen3.modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration
from training.assembly import build_processor, fit_to_tokenizer
from training.checkpoints import cut_off_weights

DTYPES = ("bfloat16", "float32", "float16")


class StrictQwen3(StrictLoadingMixin, Qwen3ForCausalLM):
    """The library's Qwen3, which raises where its checkpoint is incomplete."""


def assemble(
    vggt: str,
    qwen3: str,
    output: Path,
    *,
    perceiver: PerceiverConfig | None = None,
    image_size: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    max_shard_size: str = "5GB",
) -> VggtQwen3ForConditionalGeneration:
    """Writes `output` with model, processor, tokenizer and remote code, all of it or nothing.

    Args:
        vggt: converted encoder, with or without its heads, which are left out; folder or Hub id.
        qwen3: Qwen3 checkpoint with its tokenizer; folder or Hub id.
        output: folder that does not exist yet, or is empty.
        perceiver: sizes of the resampler, by default those of the full model.
        image_size: side in pixels that the processor resizes views to, by default the encoder's native one.
        dtype: of all weights.
        seed: of the random weights.
        max_shard_size: of one weight file.

    Returns:
        The model that was written.

    Raises:
        FileExistsError: `output` holds something.
        ValueError: for checkpoints of other models, incomplete ones, or parts that do not fit each other.
    """
    refuse_existing(output)
    config = VggtQwen3Config(
        vision_config=read_part_config(vggt, VggtConfig, "python -m modeling_vggt_qwen3.convert_vggt_checkpoint"),
        perceiver_config=perceiver,
        text_config=read_part_config(qwen3, Qwen3Config, "a Qwen3 checkpoint"),
    )
    tokenizer = AutoTokenizer.from_pretrained(qwen3)
    fit_to_tokenizer(config, tokenizer)
    processor = build_processor(config, tokenizer, image_size)
    model = join_parts(
        config, VggtModel.from_pretrained(vggt, dtype=dtype), StrictQwen3.from_pretrained(qwen3, dtype=dtype), seed
    )
    with all_or_nothing(output) as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        processor.save_pretrained(folder)
    return model


def read_perceiver(path: Path) -> PerceiverConfig:
    """Sizes of the resampler from a JSON file; those not given are the full model's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON object, a key that is no field of PerceiverConfig, or a value that it refuses.
    """
    known = PerceiverConfig().to_dict().keys() - PreTrainedConfig().to_dict().keys()
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(fields, dict) or fields.keys() - known:
        found = f"has {', '.join(sorted(fields.keys() - known))}" if isinstance(fields, dict) else "is no object"
        raise ValueError(f"{path} {found}; wanted fields of PerceiverConfig: {', '.join(sorted(known))}")
    try:
        return PerceiverConfig(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_part_config(source: str, config_class: type[PreTrainedConfig], origin: str) -> PreTrainedConfig:
    """The configuration of a checkpoint.

    Args:
        source: folder or Hub id.
        config_class: what it must be.
        origin: where such a checkpoint comes from, for the error.

    Raises:
        ValueError: the checkpoint is of another kind of model.
    """
    found, _ = PreTrainedConfig.get_config_dict(source)
    if found.get("model_type") != config_class.model_type:
        raise ValueError(
            f"{source} holds a model of type {found.get('model_type')!r}, wanted {config_class.model_type!r} ({origin})"
        )
    config = config_class.from_dict(found)
    config.architectures = None
    return config


def join_parts(
    config: VggtQwen3Config, encoder: VggtModel, text_model: Qwen3ForCausalLM, seed: int
) -> VggtQwen3ForConditionalGeneration:
    """The whole model around loaded parts, which it takes over; the rest gets random weights in the parts' dtype."""
    with torch.device("meta"):
        model = VggtQwen3ForConditionalGeneration(config)
    model.model.vision_model = encoder
    model.model.language_model = text_model.model
    model.lm_head = text_model.lm_head
    model.generation_config = text_model.generation_config
    set_seed(seed)
    for fresh in filter(None, (model.model.resampler, model.model.geometry_tokens)):
        fresh.to_empty(device="cpu").apply(model._init_weights)
        fresh.to(encoder.dtype)
    return model.eval()


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vggt", required=True, help="converted encoder: folder or Hub id")
    parser.add_argument("--qwen3", required=True, help="Qwen3 checkpoint with its tokenizer: folder or Hub id")
    parser.add_argument("--output", required=True, type=Path, help="folder to write; must not exist, or be empty")
    parser.add_argument("--perceiver", type=Path, help="JSON with the fields of PerceiverConfig that differ")
    parser.add_argument("--image-size", type=int, help="side in pixels of the resized views")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--seed", type=int, default=0, help="of the random weights of resampler and geometry tokens")
    parser.add_argument("--max-shard-size", default="5GB")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    try:
        perceiver = None if options.perceiver is None else read_perceiver(options.perceiver)
        model = assemble(
            options.vggt,
            options.qwen3,
            options.output,
            perceiver=perceiver,
            image_size=options.image_size,
            dtype=getattr(torch, options.dtype),
            seed=options.seed,
            max_shard_size=options.max_shard_size,
        )
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except SafetensorError as error:
        faults = [f"{source}: {cut}" for source in (options.vggt, options.qwen3) if (cut := cut_off_weights(source))]
        raise SystemExit(f"error: {'; '.join(faults) or error}; copy it again") from error
    print(f"{options.output}: {sum(p.numel() for p in model.parameters()):,} parameters, {options.dtype}")


if __name__ == "__main__":
    main()
