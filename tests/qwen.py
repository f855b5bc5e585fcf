"""The real Qwen tokenizer from its published ranks, and a small Qwen3 of that vocabulary."""

from __future__ import annotations

import base64
import json
from importlib.metadata import distribution
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

PACKAGE, RANKS = "dashscope", "dashscope/resources/qwen.tiktoken"  # Apache-2.0; read as data, never imported
ADDED = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>"),
    *("<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>"),
    *("<think>", "</think>"),
)
"""In the order of their ids, from 151,643 on."""


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json as the Qwen3 repositories hold them, without a chat template."""
    lines = Path(distribution(PACKAGE).locate_file(RANKS)).read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    letters = bytes_to_unicode()
    spell = {token: "".join(letters[byte] for byte in token) for token in ranks}
    pairs = [_last_merge(token, ranks) for token in ranks if len(token) > 1]
    merges = [(spell[left], spell[right]) for left, right in pairs]
    tokenizer = Tokenizer(BPE({spell[token]: rank for token, rank in ranks.items()}, merges))
    template = Qwen2Tokenizer()._tokenizer
    tokenizer.normalizer, tokenizer.pre_tokenizer = template.normalizer, template.pre_tokenizer
    tokenizer.decoder = template.decoder
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ADDED])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "Qwen2Tokenizer"}))


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts that byte-pair encoding joins last to make the token."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        best = min(range(len(joined)), key=joined.__getitem__)
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def small_qwen3(tie: bool = True) -> Qwen3ForCausalLM:
    """5 M parameters (10 M untied), almost all of them embeddings of the real vocabulary."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        tie_word_embeddings=tie,
        eos_token_id=151_645,
        pad_token_id=151_643,
    )
    return Qwen3ForCausalLM(config).eval()
