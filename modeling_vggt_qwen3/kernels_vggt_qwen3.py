"""Kernels for GPUs: norm and rotary embedding of q and k in one pass, FlashAttention-3.

Both give the numbers of the plain code in the encoder, up to rounding; that code serves wherever these cannot.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

try:
    import triton
    import triton.language as tl
except ImportError:  # a torch without GPUs
    triton = None

TOKENS_A_PROGRAM = 4
FLASH_3 = "fa3"
FLASH_3_MODULES = ("flash_attn_interface", "fa3_fwd_interface")
"""Of the packages flash_attn_3 and fa3-fwd, the latter without a backward pass."""
_flash_3: Callable[..., Any] | None = None

if triton is not None:

    @triton.jit
    def _norm_and_turn_kernel(
        qkv, q_weight, q_bias, k_weight, k_bias, cos, sin, num_tokens, view_tokens, eps,
        HEADS: tl.constexpr, QUARTER: tl.constexpr, TOKENS: tl.constexpr,
    ):  # fmt: skip
        # One program: q or k of some tokens, a row a head. Channels a and b turn with the row, c and d with the column.
        part = tl.program_id(1)  # 0: q, 1: k
        weight = (q_weight if part == 0 else k_weight) + tl.arange(0, QUARTER)[None, :]
        bias = (q_bias if part == 0 else k_bias) + tl.arange(0, QUARTER)[None, :]
        row = tl.arange(0, TOKENS * HEADS)
        token = tl.program_id(0) * TOKENS + row // HEADS
        mask = (token < num_tokens)[:, None]
        head = (token.to(tl.int64) * 3 + part) * HEADS + row % HEADS
        at = qkv + head[:, None] * (4 * QUARTER) + tl.arange(0, QUARTER)[None, :]
        a = tl.load(at, mask=mask, other=0).to(tl.float32)
        b = tl.load(at + QUARTER, mask=mask, other=0).to(tl.float32)
        c = tl.load(at + 2 * QUARTER, mask=mask, other=0).to(tl.float32)
        d = tl.load(at + 3 * QUARTER, mask=mask, other=0).to(tl.float32)

        mean = tl.sum(a + b + c + d, 1)[:, None] / (4 * QUARTER)
        a, b, c, d = a - mean, b - mean, c - mean, d - mean
        scale = tl.rsqrt(tl.sum(a * a + b * b + c * c + d * d, 1) / (4 * QUARTER) + eps)[:, None]
        a = a * scale * tl.load(weight).to(tl.float32) + tl.load(bias).to(tl.float32)
        b = b * scale * tl.load(weight + QUARTER).to(tl.float32) + tl.load(bias + QUARTER).to(tl.float32)
        c = c * scale * tl.load(weight + 2 * QUARTER).to(tl.float32) + tl.load(bias + 2 * QUARTER).to(tl.float32)
        d = d * scale * tl.load(weight + 3 * QUARTER).to(tl.float32) + tl.load(bias + 3 * QUARTER).to(tl.float32)

        angle = (token % view_tokens)[:, None] * (2 * QUARTER) + tl.arange(0, QUARTER)[None, :]
        cos_y, sin_y = tl.load(cos + angle), tl.load(sin + angle)
        cos_x, sin_x = tl.load(cos + angle + QUARTER), tl.load(sin + angle + QUARTER)
        dtype = qkv.dtype.element_ty
        tl.store(at, (a * cos_y - b * sin_y).to(dtype), mask=mask)
        tl.store(at + QUARTER, (b * cos_y + a * sin_y).to(dtype), mask=mask)
        tl.store(at + 2 * QUARTER, (c * cos_x - d * sin_x).to(dtype), mask=mask)
        tl.store(at + 3 * QUARTER, (d * cos_x + c * sin_x).to(dtype), mask=mask)


def turns(qkv: torch.Tensor) -> bool:
    """Whether `norm_and_turn_` takes these projections [batch, tokens, 3, heads, head_dim].

    Its blocks have a power of two of heads and of channels.
    """
    heads, head_dim = qkv.shape[3:]
    fits = heads & (heads - 1) == 0 and head_dim & (head_dim - 1) == 0 and head_dim >= 16
    return triton is not None and qkv.is_cuda and fits and not torch.is_grad_enabled()


def norm_and_turn_(
    qkv: torch.Tensor, q_norm: nn.LayerNorm, k_norm: nn.LayerNorm, rotary: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Normalises and turns q and k within the projections [batch, views * T, 3, heads, head_dim], contiguous.

    Args:
        rotary: cosines and sines float32 [T, 2, head_dim / 4] of a view's tokens, contiguous.
    """
    cos, sin = rotary
    num_tokens = qkv.shape[0] * qkv.shape[1]
    with _device_of(qkv):
        _norm_and_turn_kernel[(triton.cdiv(num_tokens, TOKENS_A_PROGRAM), 2)](
            qkv, q_norm.weight, q_norm.bias, k_norm.weight, k_norm.bias, cos, sin, num_tokens, cos.shape[0], q_norm.eps,
            HEADS=qkv.shape[3], QUARTER=qkv.shape[4] // 4, TOKENS=TOKENS_A_PROGRAM,
        )  # fmt: skip


def _device_of(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Kernels start on the current device; a compiler sees to that itself."""
    return nullcontext() if torch.compiler.is_compiling() else torch.cuda.device(tensor.device)


def load_flash_3() -> None:
    """Finds FlashAttention-3 before a compiler looks for it, and registers it anew.

    The library's registry is one for the process: a second copy of this code, as remote code makes, would take it over.

    Raises:
        ImportError: for want of a package that has it.
    """
    global _flash_3
    for name in FLASH_3_MODULES:
        if _flash_3 is None and importlib.util.find_spec(name) is not None:
            _flash_3 = importlib.import_module(name).flash_attn_func
    if _flash_3 is None:
        raise ImportError(
            f'attn_implementation="{FLASH_3}" needs FlashAttention-3 for Hopper GPUs: install the package '
            'flash_attn_3, or fa3-fwd (inference alone), or choose "sdpa"'
        )
    AttentionInterface.register(FLASH_3, flash_3_attention_forward)


def flash_3_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs: object,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """FlashAttention-3 in half precision without mask and gradient; any other call goes to "sdpa".

    Source: Shah et al., "FlashAttention-3", NeurIPS 2024. Shapes as in `eager_attention_forward`.
    """
    half = query.dtype in (torch.bfloat16, torch.float16)
    if attention_mask is not None or torch.is_grad_enabled() or not half:
        sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return sdpa(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    attended = _flash_3(*(heads.transpose(1, 2) for heads in (query, key, value)), softmax_scale=scaling)
    return attended[0] if isinstance(attended, tuple) else attended, None


AttentionInterface.register(FLASH_3, flash_3_attention_forward)

__all__ = ["FLASH_3", "load_flash_3", "norm_and_turn_", "turns"]
