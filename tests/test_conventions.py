"""What people expect of any model on the Hub: pipelines, chat templates, streamers, dtypes, devices, adapters."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from accelerate import infer_auto_device_map
from accelerate.hooks import attach_execution_device_hook
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import AutoModel, AutoProcessor, TextIteratorStreamer, TextStreamer, pipeline

from hub_upload.stage_model import REPOSITORY
from tests.hub import level_cameras, make_checkpoint, run_module

pytestmark = pytest.mark.xdist_group("hub")
NEW_TOKENS = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return str(make_checkpoint(tmp_path_factory.mktemp("conventions") / "model"))


def load(checkpoint: str, **options: object):
    return AutoModel.from_pretrained(checkpoint, trust_remote_code=True, **options).eval()


@pytest.fixture(scope="module")
def model(checkpoint):
    return load(checkpoint)


@pytest.fixture(scope="module")
def processor(checkpoint):
    return AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)


@pytest.fixture(scope="module")
def views() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)) for _ in range(3)]


def chat(views: list[Image.Image], question: str = "What is on the table?") -> list[dict]:
    images = [{"type": "image", "image": view} for view in views]
    return [{"role": "user", "content": [*images, {"type": "text", "text": question}]}]


def batch_of(processor, views, **cameras):
    return processor.apply_chat_template(
        chat(views), tokenize=True, return_dict=True, add_generation_prompt=True, processor_kwargs=cameras
    )


@pytest.fixture(scope="module")
def batch(processor, views):
    return batch_of(processor, views, **level_cameras(len(views)))


@pytest.fixture(scope="module")
def answer(model, processor, views) -> str:
    """What `generate` says of the three views without cameras."""
    batch = batch_of(processor, views)
    tokens = model.generate(**batch, do_sample=False, max_new_tokens=NEW_TOKENS)
    return processor.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)[0]


class TestChatTemplate:
    def test_several_images_become_one_scene(self, processor, views, model):
        batch = batch_of(processor, views)
        assert batch["pixel_values"].shape[:2] == (1, 3)
        tokens = processor.num_visual_tokens(3, has_geometry=False)
        assert int((batch["input_ids"] == processor.image_token_id).sum()) == tokens
        by_hand = processor.apply_chat_template(chat(views), tokenize=False, add_generation_prompt=True)
        assert (processor(images=[views], text=[by_hand])["input_ids"] == batch["input_ids"]).all()
        assert torch.isfinite(model(**batch).logits).all()

    def test_cameras_go_through_processor_kwargs(self, batch, processor):
        assert batch["geometry_mask"].tolist() == [True]
        assert torch.isfinite(batch["world_from_ref"]).all()
        assert int((batch["input_ids"] == processor.image_token_id).sum()) == processor.num_visual_tokens(3, True)

    def test_images_as_paths_and_urls_of_files(self, processor, views, tmp_path):
        views[0].save(tmp_path / "a.png")
        named = [
            [{"type": "image", key: str(tmp_path / "a.png")} for _ in range(1)] for key in ("path", "url", "image")
        ]
        for content in named:
            messages = [{"role": "user", "content": [*content, {"type": "text", "text": "What is on the table?"}]}]
            batch = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
            assert (batch["pixel_values"] == batch_of(processor, views[:1])["pixel_values"]).all()

    def test_several_conversations_with_different_views(self, processor, views, model):
        chats = [chat(views), chat(views[:1], "Is there a chair next to the window?")]
        batch = processor.apply_chat_template(chats, tokenize=True, return_dict=True, add_generation_prompt=True)
        assert batch["view_mask"].tolist() == [[True, True, True], [True, False, False]]
        together = model.generate(**batch, do_sample=False, max_new_tokens=NEW_TOKENS)[:, batch["input_ids"].shape[1] :]
        alone = processor.apply_chat_template(chats[1], tokenize=True, return_dict=True, add_generation_prompt=True)
        tokens = model.generate(**alone, do_sample=False, max_new_tokens=NEW_TOKENS)
        assert together[1].tolist() == tokens[0, alone["input_ids"].shape[1] :].tolist()

    def test_a_later_turn_keeps_the_images(self, processor, views, model):
        said = [{"role": "assistant", "content": [{"type": "text", "text": "a lamp"}]}]
        asked = [{"role": "user", "content": [{"type": "text", "text": "What colour is it?"}]}]
        batch = processor.apply_chat_template(
            chat(views) + said + asked, tokenize=True, return_dict=True, add_generation_prompt=True
        )
        assert model.generate(**batch, do_sample=False, max_new_tokens=2).shape[1] == batch["input_ids"].shape[1] + 2
        with pytest.raises(Exception, match="all images of a conversation are one scene"):
            processor.apply_chat_template(chat(views) + said + chat(views), tokenize=True, return_dict=True)


class TestPipeline:
    @pytest.fixture(scope="class")
    def ask(self, checkpoint):
        return pipeline("image-text-to-text", model=checkpoint, trust_remote_code=True, dtype=torch.float32)

    def test_answers_as_generate_does(self, ask, views, answer):
        (result,) = ask(text=chat(views), max_new_tokens=NEW_TOKENS, return_full_text=False)
        assert result["generated_text"] == answer

    def test_the_chat_goes_on(self, ask, views, answer):
        (result,) = ask(text=chat(views), max_new_tokens=NEW_TOKENS)
        assert result["generated_text"][-1] == {"role": "assistant", "content": answer}

    def test_a_list_of_chats(self, ask, views, answer):
        chats = [chat(views), chat(views[:1])]
        first, second = ask(text=chats, max_new_tokens=NEW_TOKENS, return_full_text=False)
        assert first[0]["generated_text"] == answer
        assert second[0]["input_text"] == chats[1]

    def test_cameras(self, ask, views, model, processor, batch):
        options = {"max_new_tokens": NEW_TOKENS, "return_full_text": False}
        (result,) = ask(text=chat(views), processor_kwargs=level_cameras(3), **options)
        tokens = model.generate(**batch, do_sample=False, max_new_tokens=NEW_TOKENS)
        words = processor.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        assert result["generated_text"] == words[0]

    def test_half_precision_does_not_round_cameras(self, checkpoint, views):
        ask = pipeline("image-text-to-text", model=checkpoint, trust_remote_code=True, dtype=torch.bfloat16)
        assert ask.model.dtype == torch.bfloat16
        (result,) = ask(text=chat(views), processor_kwargs=level_cameras(3), max_new_tokens=2, return_full_text=False)
        assert isinstance(result["generated_text"], str)


class TestStreamers:
    @pytest.mark.parametrize("fast", [False, True])
    def test_words_are_printed_as_they_come(self, fast, model, processor, views, answer, capsys):
        streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        options = {"streamer": streamer, "do_sample": False, "max_new_tokens": NEW_TOKENS, "fast": fast}
        model.generate(**batch_of(processor, views), **options)
        assert capsys.readouterr().out == f"{answer}\n"

    @pytest.mark.parametrize("fast", [False, True])
    def test_words_arrive_one_after_another(self, fast, model, processor, views, answer):
        batch = batch_of(processor, views)
        streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
        options = {"streamer": streamer, "do_sample": False, "max_new_tokens": NEW_TOKENS, "fast": fast}
        thread = Thread(target=model.generate, kwargs={**batch, **options})
        thread.start()
        pieces = list(streamer)
        thread.join()
        assert "".join(pieces) == answer
        assert len(pieces) > 1


class TestDtype:
    @pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
    @pytest.mark.parametrize("value", [torch.bfloat16, "bfloat16"])
    def test_bfloat16_by_either_name(self, name, value, checkpoint, batch):
        model = load(checkpoint, **{name: value})
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert torch.isfinite(model(**batch).logits).all()

    def test_auto_is_the_checkpoints_own(self, checkpoint, tmp_path):
        load(checkpoint).to(torch.bfloat16).save_pretrained(tmp_path)
        assert load(str(tmp_path), dtype="auto").dtype == torch.bfloat16
        assert load(str(tmp_path), dtype=torch.float32).dtype == torch.float32

    def test_float16_keeps_the_encoder_in_float32(self, checkpoint, batch):
        model = load(checkpoint, dtype=torch.float16)
        assert model.lm_head.weight.dtype == torch.float16
        assert next(model.model.vision_model.parameters()).dtype == torch.float32
        assert torch.isfinite(model(**batch).logits).all()

    def test_half_precision_is_near(self, checkpoint, model, batch):
        half, full = load(checkpoint, dtype=torch.bfloat16)(**batch).logits[0, -1], model(**batch).logits[0, -1]
        assert torch.nn.functional.cosine_similarity(half.float(), full, dim=0) > 0.98

    def test_moving_a_batch_casts_no_camera(self, batch):
        moved = type(batch)(dict(batch)).to(torch.bfloat16)
        assert moved["ref_from_cam"].dtype == torch.float32


class TestDevices:
    def test_auto(self, checkpoint, model, batch):
        mapped = load(checkpoint, device_map="auto")
        logits = mapped(**batch.to(mapped.device)).logits
        assert torch.allclose(logits.cpu(), model(**batch.to("cpu")).logits, atol=1e-3)

    def test_parts_that_lie_on_disk(self, checkpoint, model, batch, tmp_path):
        """The map that `auto` makes where memory is short."""
        size = sum(parameter.numel() * 4 for parameter in model.parameters())
        mapped = load(checkpoint, device_map="auto", max_memory={"cpu": int(size * 0.9)}, offload_folder=tmp_path)
        assert {"cpu", "disk"} == set(mapped.hf_device_map.values())
        assert torch.allclose(mapped(**batch).logits, model(**batch).logits, atol=1e-5)
        assert mapped.generate(**batch, max_new_tokens=2).shape[1] == batch["input_ids"].shape[1] + 2

    def test_encoder_and_resampler_are_never_torn_apart(self, model):
        """Wherever the border between two devices falls."""
        whole = model._no_split_modules
        size = sum(parameter.numel() * 4 for parameter in model.parameters())
        for percent in range(5, 100, 5):
            memory = {"cpu": size * percent // 100, "disk": size}
            names = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=whole)
            torn = [name for name in names if re.search(r"\.(vision_model|resampler|geometry_tokens)\.", name)]
            assert not torn, f"at {percent} %"

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: parts on two devices")
    @pytest.mark.parametrize("part", ["vision_model", "resampler", "geometry_tokens", "language_model"])
    def test_each_part_may_lie_on_another_device(self, part, checkpoint, model, batch):
        spread = load(checkpoint)
        places = dict.fromkeys((name for name, _ in spread.model.named_children()), "cuda") | {part: "cpu"}
        for name, device in places.items():
            attach_execution_device_hook(getattr(spread.model, name).to(device), device)
        attach_execution_device_hook(spread.lm_head.to(places["language_model"]), places["language_model"])
        given = {key: value.to("cuda") for key, value in batch.items()}
        assert torch.allclose(spread(**given).logits.cpu(), model(**batch.to("cpu")).logits, atol=1e-3)


class TestAdapters:
    @pytest.fixture(scope="class")
    def adapter(self, checkpoint, batch, tmp_path_factory) -> tuple[Path, torch.Tensor]:
        """A saved LoRA adapter of the text model, and the logits it gives."""
        torch.manual_seed(0)
        layers = r".*language_model.*\.(q_proj|v_proj)"
        config = LoraConfig(r=4, target_modules=layers, init_lora_weights=False, task_type="CAUSAL_LM")
        adapted = get_peft_model(load(checkpoint), config).eval()
        folder = tmp_path_factory.mktemp("adapter")
        adapted.save_pretrained(folder)
        return folder, adapted(**batch).logits.detach()

    def test_on_top_of_the_model(self, adapter, checkpoint, model, batch):
        folder, wanted = adapter
        adapted = PeftModel.from_pretrained(load(checkpoint), folder).eval()
        assert torch.allclose(adapted(**batch).logits, wanted, atol=1e-5)
        assert not torch.allclose(model(**batch).logits, wanted, atol=1e-2)
        assert adapted.generate(**batch, max_new_tokens=2).shape[1] == batch["input_ids"].shape[1] + 2

    def test_loaded_by_the_model_itself(self, adapter, checkpoint, batch):
        model = load(checkpoint)
        model.load_adapter(str(adapter[0]))
        assert torch.allclose(model(**batch).logits, adapter[1], atol=1e-5)

    def test_merged_into_the_weights(self, adapter, checkpoint, batch):
        merged = PeftModel.from_pretrained(load(checkpoint), adapter[0]).merge_and_unload().eval()
        assert torch.allclose(merged(**batch).logits, adapter[1], atol=1e-3)

    def test_an_adapter_learns(self, checkpoint, batch):
        adapted = get_peft_model(load(checkpoint), LoraConfig(r=2, target_modules=["q_proj", "kv_proj"]))
        loss = adapted(**batch, labels=batch["input_ids"].clone()).loss
        loss.backward()
        learning = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
        assert any("resampler" in name for name in learning)
        assert any("language_model" in name for name in learning)
        assert all("lora" in name for name in learning)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes: 8 and 4 bits")
@pytest.mark.parametrize("bits", [8, 4])
def test_fewer_bits(bits, checkpoint, model, batch):
    """The text model shrinks; encoder, resampler and geometry keep their precision."""
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    small = load(checkpoint, quantization_config=config, device_map="auto")
    kinds = {name: type(module).__name__ for name, module in small.named_modules()}
    assert kinds["model.language_model.layers.0.mlp.up_proj"] == ("Linear8bitLt" if bits == 8 else "Linear4bit")
    assert kinds["model.resampler.output_proj"] == "Linear"
    given = {key: value.to(small.device) for key, value in batch.items()}
    logits = small(**given).logits[0, -1].float().cpu()
    wanted = model(**batch.to("cpu")).logits[0, -1]
    assert torch.nn.functional.cosine_similarity(logits, wanted, dim=0) > (
        0.99 if bits == 8 else 0.75
    )  # so narrow a model feels every bit
    assert small.generate(**given, max_new_tokens=2).shape[1] == batch["input_ids"].shape[1] + 2


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="it is installed: the test above runs")
def test_fewer_bits_with_what_pip_fetches():
    """The test above in a process that has bitsandbytes, fetched once."""
    folder = REPOSITORY / "build" / "bitsandbytes"
    if not (folder / "complete").is_file():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), "bitsandbytes>=0.49"]
        result = subprocess.run(pip, capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.skip(f"bitsandbytes cannot be installed: {result.stderr.strip().splitlines()[-1]}")
        (folder / "complete").touch()
    result = run_module("-m", "pytest", "-q", __file__, "-k", "test_fewer_bits and not pip", PYTHONPATH=str(folder))
    assert "2 passed" in result.stdout, result.stdout


PROOFS = {
    "AutoModel": "test_auto_classes.py",
    "pipeline(": TestPipeline,
    "apply_chat_template": TestChatTemplate,
    "TextStreamer": TestStreamers,
    "dtype=": TestDtype,
    "device_map": TestDevices,
    "BitsAndBytesConfig": test_fewer_bits,
    "peft": TestAdapters,
}


def test_the_readme_names_every_convention():
    """Its table and these tests go together, line by line."""
    section = (REPOSITORY / "README.md").read_text().split("## Like any model on the Hub\n")[1].split("\n## ")[0]
    lines = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(lines) == len(PROOFS)
    for line, (name, proof) in zip(lines, PROOFS.items()):
        assert name in line
        assert not isinstance(proof, str) or (REPOSITORY / "tests" / proof).is_file()
