"""The frozen encoder stands beside the model while it trains: called by it, but not among its modules.

So DeepSpeed leaves it whole on every rank, where ZeRO-3 would gather it anew in each step; gradient checkpointing and
autocast pass it by; and where its output comes from a cache, it never takes up the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from modeling_vggt_qwen3.modeling_vggt import VggtModel
from modeling_vggt_qwen3.modeling_vggt_qwen3 import VggtQwen3Model

from .arguments import DataArguments, ModelArguments, SceneTrainingArguments

NAME = "vision_model"
PREFIX = f"model.{NAME}."
COMPILABLE = ("vision", "resampler", "text")


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """In place; buffers such as rotary frequencies stay as precise as they are, which `module.to(dtype)` would not."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


def compile_parts(model: nn.Module, parts: list[str], deepspeed: bool) -> None:
    """Compiles the blocks of the encoder, the resampler or the text model in place; done at first use.

    Raises:
        ValueError: for another part, or one that learns under DeepSpeed, whose hooks a compiled layer would skip.
    """
    unknown = sorted(set(parts) - set(COMPILABLE))
    if unknown:
        raise ValueError(f"compile_parts names {unknown}; the parts that can be compiled are {list(COMPILABLE)}")
    if deepspeed and set(parts) - {"vision"}:
        raise ValueError(
            f"compile_parts = {parts}: under DeepSpeed, which fetches weights as it goes, only vision can be compiled"
        )
    if "vision" in parts:
        inner_model(model).vision_model.compile_blocks()
    if "resampler" in parts:
        for layer in inner_model(model).resampler.layers:
            layer.compile(dynamic=True)
    if "text" in parts:
        for layer in inner_model(model).language_model.layers:
            layer.compile(dynamic=True)


def place_encoder(
    model: nn.Module,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: SceneTrainingArguments,
) -> None:
    """Sets a frozen encoder beside the model, in bfloat16 if that is the arithmetic; on the CPU if a cache serves.

    Raises:
        ValueError: for a cache of the output of an encoder that learns.
    """
    if "vision" not in model_args.trainable_parts:
        device = "cpu" if data_args.feature_cache else args.device
        set_beside(model, device, torch.bfloat16 if args.bf16 else None)
    elif data_args.feature_cache:
        raise ValueError("feature_cache holds what a frozen encoder made; leave vision out of trainable_parts")


def set_beside(model: nn.Module, device: torch.device | str, dtype: torch.dtype | None = None) -> None:
    """Takes a frozen encoder out of the model's modules, whole, to `device` and `dtype`; the model still calls it.

    Under ZeRO-3 a checkpoint is loaded in pieces, spread over all ranks: those of the encoder are put together again.
    """
    inner = inner_model(model)
    encoder = inner._modules.pop(NAME)
    if any(hasattr(parameter, "ds_id") for parameter in encoder.parameters()):
        encoder = _gathered(encoder)
    if dtype is not None:
        cast_parameters(encoder, dtype)
    object.__setattr__(inner, NAME, encoder.to(device).eval())


def put_back(model: nn.Module) -> None:
    """Undoes `set_beside`, on the device of the rest; nothing to do where the encoder is among the modules."""
    inner = inner_model(model)
    if NAME in inner.__dict__:
        inner._modules[NAME] = inner.__dict__.pop(NAME).to(inner.get_input_embeddings().weight.device)


@contextmanager
def whole(model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """While weights are read or written: the encoder is among the modules. Yields its tensors if it stood beside."""
    inner = inner_model(model)
    encoder = inner.__dict__.pop(NAME, None)
    if encoder is None:
        yield {}
        return
    inner._modules[NAME] = encoder
    try:
        yield {PREFIX + name: tensor for name, tensor in encoder.state_dict().items()}
    finally:
        del inner._modules[NAME]
        object.__setattr__(inner, NAME, encoder)


def inner_model(model: nn.Module) -> VggtQwen3Model:
    """The module that holds the encoder, whatever is wrapped around it."""
    return next(module for module in model.modules() if isinstance(module, VggtQwen3Model))


def _gathered(encoder: VggtModel) -> VggtModel:
    """An encoder with whole weights, from one that ZeRO-3 has partitioned; every rank takes part."""
    import deepspeed

    with torch.device("meta"):
        fresh = VggtModel(encoder.config)
    with deepspeed.zero.GatheredParameters(list(encoder.parameters())):
        state = {name: tensor.detach().clone() for name, tensor in encoder.state_dict().items()}
    fresh.load_state_dict(state, assign=True)
    return fresh.requires_grad_(False).train(encoder.training)
