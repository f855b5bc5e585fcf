"""The small tokenizer: made by the committed script, byte for byte; behaves as Qwen's does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from processing.chat_vggt_qwen3 import CHAT_TEMPLATE

REPOSITORY = Path(__file__).parents[1]
FOLDER = REPOSITORY / "configs" / "tokenizer-tiny"
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
ACTION = (
    '{"action":"place_anchor","label":"coffee table","center":[1.25,-2.04,-0.40],"extent":[0.50,0.60,0.90],'
    '"normal":[0.71,-0.71,0.00]}'
)
TEXTS = [
    "What color is the chair next to the 12 desks?",
    "I'm standing by the bed; it's 3.75 m wide.\n\n  Which way?\t",
    "Ein Stuhl, 椅子, кресло, 🪑 and\u00a0more — “quoted”",
    ACTION,
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER)


def test_the_script_makes_the_committed_files(tmp_path):
    """With other hash seeds and threads than the ones it was made with."""
    command = [sys.executable, "-m", "datasets_scripts.train_tokenizer", "--output", str(tmp_path)]
    env = {**os.environ, "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "3"}
    subprocess.run(command, cwd=REPOSITORY, env=env, check=True, capture_output=True)
    assert (tmp_path / "tokenizer.json").read_bytes() == (FOLDER / "tokenizer.json").read_bytes()
    assert (FOLDER / "chat_template.jinja").read_text() == CHAT_TEMPLATE, "run the script again: the template changed"


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_special_tokens_are_single_and_last(tokenizer):
    assert len(tokenizer) == 1536
    ids = tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS)
    assert ids == list(range(1530, 1536)) and sorted(tokenizer.all_special_ids) == ids
    assert tokenizer("".join(SPECIAL_TOKENS))["input_ids"] == ids
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.decode([*ids, *tokenizer("a bed")["input_ids"]], skip_special_tokens=True) == "a bed"


def test_digits_are_split_one_by_one(tokenizer):
    tokens = [tokenizer.decode(token) for token in tokenizer(f"{TEXTS[0]} {ACTION} 2026")["input_ids"]]
    assert all(token.isdigit() == (len(token.strip("0123456789")) == 0) for token in tokens)
    assert all(len(token) == 1 for token in tokens if any(char.isdigit() for char in token))


def test_room_language_is_short(tokenizer):
    assert len(tokenizer("What color is the bookshelf to the left of the window?")["input_ids"]) <= 14
    assert len(tokenizer(ACTION)["input_ids"]) <= 66
