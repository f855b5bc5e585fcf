"""Packed rows are the same mathematics as separate ones."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.fake import small_config
from training.adapters import add_adapters
from training.arguments import CONFIGS
from training.assembly import build_model
from training.collator import VISION_END, SceneCollator
from training.data import SceneBatchSampler, SceneDataset
from training.packing import pack_batch


@pytest.fixture(scope="module")
def parts(rooms):
    torch.manual_seed(0)
    config = small_config()
    config.text_config.vocab_size = 1536
    model, processor = build_model(config, str(CONFIGS / "tokenizer-tiny"))
    dataset = SceneDataset([rooms], "train", num_views=2)
    draws = next(iter(SceneBatchSampler(dataset, samples_per_batch=24, samples_per_scene=6, seed=0)))
    return model.train(), processor, [dataset[draw] for draw in draws]


def collate(parts, pack: bool) -> dict[str, torch.Tensor]:
    model, processor, examples = parts
    return SceneCollator(processor, model.config.task_names, geometry_dropout=0.5, pack=pack)(examples)


def loss_and_gradients(model, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_loss_and_gradients_equal_those_of_separate_rows(parts, attention, checkpointing):
    model = parts[0]
    model.set_attn_implementation(attention)
    if checkpointing:
        model.gradient_checkpointing_enable()
    separate, packed = (loss_and_gradients(model, collate(parts, pack)) for pack in (False, True))
    model.gradient_checkpointing_disable()
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(packed[0], separate[0], atol=1e-5, rtol=1e-5)
    for name, gradient in separate[1].items():
        torch.testing.assert_close(packed[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_adapters_and_packed_rows(parts):
    """LoRA on the text model, with gradient checkpointing: the same loss and the same gradients of the adapters."""
    model = add_adapters(copy.deepcopy(parts[0]), ["resampler", "text"], 0, 4, None, 0.0, ["q_proj", "v_proj"])
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)  # adapters begin as zeros, which would hide their inputs
    model.train().gradient_checkpointing_enable()
    separate, packed = (loss_and_gradients(model, collate(parts, pack)) for pack in (False, True))
    torch.testing.assert_close(packed[0], separate[0], atol=1e-5, rtol=1e-5)
    assert sum("lora_" in name for name in separate[1]) == 2 * 2 * 2
    for name, gradient in separate[1].items():
        torch.testing.assert_close(packed[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_a_prefix_is_there_once(parts):
    separate, packed = collate(parts, False), collate(parts, True)
    token = parts[0].config.image_token_id
    questions = len(separate["input_ids"])
    assert len(packed["input_ids"]) < questions
    visual = [int((batch["input_ids"] == token).sum()) for batch in (separate, packed)]
    assert visual[1] * questions == pytest.approx(visual[0] * len(packed["input_ids"]), rel=0.5)
    assert (packed["labels"] != -100).sum() == (separate["labels"] != -100).sum()
    assert packed["attention_mask"].sum() < 0.8 * separate["attention_mask"].sum()


def test_weights_of_tokens_stay_what_they_are(parts):
    batch = collate(parts, False)
    batch["token_weights"] = torch.full(batch["labels"].shape, 0.25)
    tokenizer = parts[1].tokenizer
    packed = pack_batch(batch, tokenizer.convert_tokens_to_ids(VISION_END), tokenizer.pad_token_id)
    assert packed["token_weights"].dtype == torch.float32
    assert set(packed["token_weights"][packed["labels"] != -100].tolist()) == {0.25}


def test_a_question_does_not_see_its_neighbours(parts):
    batch = collate(parts, True)
    model = parts[0].eval()
    with torch.no_grad():
        before = model(**batch).logits
        changed = {**batch, "input_ids": batch["input_ids"].clone()}
        second = (batch["segment_ids"] == 2) & (batch["input_ids"] != model.config.image_token_id)
        changed["input_ids"][second] = 40
        after = model(**changed).logits
    model.train()
    torch.testing.assert_close(after[batch["segment_ids"] != 2], before[batch["segment_ids"] != 2])
    assert not torch.allclose(after[second], before[second])


def test_backends_that_cannot_mask_segments_are_refused(parts):
    model, *_ = parts
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"packed rows need one of .*not flash_attention_2"):
        model.model.segment_mask(torch.zeros(1, 3, dtype=torch.long), torch.float32)
    model.model.language_model.config._attn_implementation = "sdpa"


def test_blind_rows_are_not_packed(parts):
    with pytest.raises(ValueError, match="leave it out for blind rows"):
        SceneCollator(parts[1], parts[0].config.task_names, blind=True, pack=True)
