"""Scenes encoded once, and the fast loop: the tokens of the plain loop, and clear refusals."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from transformers import TextStreamer

from modeling_vggt_qwen3.decoding_vggt_qwen3 import FixedCache, GraphPass, TextDecoder, bucket_length, bucket_rows
from modeling_vggt_qwen3.modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration
from tests.fake import fake_batch, fake_scenes, fake_text, small_config, small_model, without_geometry

TEXT = ("input_ids", "attention_mask", "scene_index")
NEW_TOKENS = 8
HOW = {
    "greedy": {"do_sample": False},
    "samples": {"do_sample": True, "temperature": 1.5, "top_k": 20, "num_return_sequences": 2},
    "penalised": {"do_sample": True, "repetition_penalty": 1.5, "min_new_tokens": 4},
}
BEAMS = {
    "beams": {"do_sample": False, "num_beams": 3},
    "groups": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
}


@pytest.fixture(scope="module")
def model() -> VggtQwen3ForConditionalGeneration:
    return untied_model()


def untied_model(**text_options: object) -> VggtQwen3ForConditionalGeneration:
    """Its head is not its embedding, so that it does not say one token over and over."""
    options = {"tie_word_embeddings": False, "layer_types": None, **text_options}
    return small_model(text_config={**small_config().text_config.to_dict(), **options})


def answers(model: VggtQwen3ForConditionalGeneration, **options: object) -> torch.Tensor:
    torch.manual_seed(3)
    return model.generate(**{"max_new_tokens": NEW_TOKENS, **options})


def text_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: batch[key] for key in TEXT}


def ragged_batch(config: object) -> dict[str, torch.Tensor]:
    """Five questions of several lengths about two scenes, the second with a view less and without cameras."""
    scenes = fake_scenes(config, 2, 3)
    bare = without_geometry(scenes)
    scenes = {key: torch.cat((value[:1], bare[key][1:])) for key, value in scenes.items()}
    scenes["view_mask"][1, 2] = False
    index = [1, 0, 1, 1, 0]
    text = fake_text(config, [[7, 4][scene] for scene in index], [3, 6, 2, 9, 4])
    return {**scenes, **text, "scene_index": torch.tensor(index)}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("make", [fake_batch, ragged_batch])
def test_the_fast_loop_gives_the_tokens_of_the_plain_loop(model, how, make):
    batch = make(model.config)
    wanted = answers(model, **batch, **HOW[how])
    assert wanted[:, -NEW_TOKENS:].unique().numel() > 2
    assert answers(model, **batch, **HOW[how], fast=True).tolist() == wanted.tolist()


@pytest.mark.parametrize(
    ("how", "fast"), [(how, False) for how in ("greedy", "samples", *BEAMS)] + [(how, True) for how in HOW]
)
def test_later_questions_get_the_tokens_that_images_would_give(model, how, fast):
    first, later = ragged_batch(model.config), ragged_batch(model.config)
    later |= fake_text(model.config, [7, 4, 4], [5, 2, 7], seed=1) | {"scene_index": torch.tensor([0, 1, 1])}
    scene = model.encode_scene(**first, fast=fast)
    options = (HOW | BEAMS)[how]
    for batch in (first, later):
        wanted = answers(model, **batch, **options)
        assert answers(model, **text_of(batch), **options, scene=scene, fast=fast).tolist() == wanted.tolist()


def test_images_are_looked_at_once(model):
    batch = fake_batch(model.config, num_scenes=1)
    scene = model.encode_scene(**batch)
    blind = copy.copy(model)
    calls = []
    blind.get_image_features = lambda *args, **kwargs: calls.append(args)
    for fast in (False, True):
        for length in (2, 5):
            text = fake_text(model.config, [7, 7], [length, 4], seed=length)
            blind.generate(**text, scene=scene, fast=fast, max_new_tokens=2)
    assert not calls
    assert len(scene.prefixes) == 1


def test_prefixes_of_other_wordings_are_made_when_asked_for_and_do_not_pile_up(model):
    batch = fake_batch(model.config, num_scenes=1)
    scene = model.encode_scene(**{key: value for key, value in batch.items() if key not in TEXT})
    assert not scene.prefixes
    for word in range(10, 20):
        text = text_of(batch)
        text["input_ids"] = torch.cat((torch.tensor([[word]]), text["input_ids"]), dim=1)
        text["attention_mask"] = torch.nn.functional.pad(text["attention_mask"], (1, 0), value=1)
        wanted = answers(model, **{**batch, **text}, do_sample=False)
        assert answers(model, **text, scene=scene, do_sample=False).tolist() == wanted.tolist()
    assert len(scene.prefixes) == 4


def test_answers_end_as_in_the_plain_loop(model):
    """Rows end at different steps; the rest is padding, and columns that no row needs are left out."""
    batch = ragged_batch(model.config)
    plain = answers(model, **batch, do_sample=True, temperature=2.0, max_new_tokens=12)
    ends = sorted({int(row[-12:][column]) for column, row in zip((1, 3, 5, 6, 4), plain)})
    options = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 12, "eos_token_id": ends, "pad_token_id": 0}
    wanted = answers(model, **batch, **options)
    assert wanted.shape[1] < plain.shape[1]
    assert answers(model, **batch, **options, fast=True).tolist() == wanted.tolist()
    wanted = answers(model, **batch, **options, max_length=200)
    assert answers(model, **batch, **options, fast=True).tolist() == wanted.tolist()


def test_text_without_images_goes_the_fast_way(model):
    text = fake_text(model.config, [0, 0, 0], [3, 7, 600])
    model.config.text_config.max_position_embeddings, kept = 1024, model.config.text_config.max_position_embeddings
    wanted = answers(model, **text, do_sample=False)
    assert answers(model, **text, do_sample=False, fast=True).tolist() == wanted.tolist()
    model.config.text_config.max_position_embeddings = kept
    with pytest.raises(ValueError, match="a row would take 610 tokens; the text model has 512 positions"):
        answers(model, **text, fast=True)


class Recorder(TextStreamer):
    """Keeps what a streamer is given."""

    def __init__(self) -> None:
        self.pieces: list[list[int]] = []

    def put(self, value: torch.Tensor) -> None:
        self.pieces.append(value.flatten().tolist())

    def end(self) -> None:
        self.pieces.append([])


def test_streamers_get_the_same(model):
    batch = fake_batch(model.config, num_scenes=1)
    heard = [Recorder(), Recorder()]
    for fast, streamer in zip((False, True), heard):
        answers(model, **batch, do_sample=True, fast=fast, streamer=streamer)
    assert heard[0].pieces == heard[1].pieces
    assert len(heard[0].pieces) == NEW_TOKENS + 2


def test_a_scene_is_refused_once_weights_images_or_cameras_changed(model):
    changed = copy.deepcopy(model)
    batch = fake_batch(model.config)
    scene = changed.encode_scene(**batch)
    moved = batch["ref_from_cam"] + 0.01
    for fast in (False, True):
        for key, other in (("ref_from_cam", moved), ("pixel_values", batch["pixel_values"] ^ 1)):
            with pytest.raises(ValueError, match=f"{key} is not that of the encoded scene.*encode_scene again"):
                changed.generate(**{**batch, key: other}, scene=scene, fast=fast)
        assert answers(changed, **batch, scene=scene, fast=fast, do_sample=False).shape[1] > 10  # all the same: fine
        with pytest.raises(ValueError, match="another model"):
            model.generate(**text_of(batch), scene=scene, fast=fast)
    with torch.no_grad():
        changed.model.resampler.latents.mul_(1.1)
    for fast in (False, True):
        with pytest.raises(ValueError, match="weights have changed since the scene was encoded"):
            changed.generate(**text_of(batch), scene=scene, fast=fast)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "beam search"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"max_time": 1.0}, "MaxTimeCriteria"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"inputs_embeds": torch.zeros(1)}, "inputs_embeds cannot go with fast=True"),
        ({"past_key_values": object()}, "past_key_values cannot go with fast=True"),
        ({"use_cache": False}, "use_cache=False"),
    ],
)
def test_the_fast_loop_refuses_by_name_what_it_cannot_do(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**fake_batch(model.config), **options, fast=True)


def test_refusals_of_prompts_and_scenes(model):
    batch = fake_batch(model.config, num_scenes=1)
    scene = model.encode_scene(**batch)
    with pytest.raises(ValueError, match="row 1 has 6 image placeholders for 7 visual tokens"):
        model.generate(**fake_text(model.config, [7, 6], [3, 4]), scene=scene)
    with pytest.raises(ValueError, match="row 0 ends with its images: a question must follow"):
        model.generate(input_ids=batch["input_ids"][:, :8], scene=scene)
    with pytest.raises(ValueError, match="max_length cannot go with scene"):
        model.generate(**text_of(batch), scene=scene, max_length=100)
    with pytest.raises(ValueError, match="not labels"):
        model.encode_scene(**batch, labels=batch["input_ids"])
    two = model.encode_scene(**fake_batch(model.config, num_scenes=2))
    with pytest.raises(ValueError, match="3 rows of text look at 2 scenes"):
        model.generate(**fake_text(model.config, [7] * 3, [3] * 3), scene=two)


def test_works_within_inference_mode_and_after_it(model):
    batch = fake_batch(model.config)
    wanted = answers(model, **batch, do_sample=False)
    with torch.inference_mode():
        scene = model.encode_scene(**batch, fast=True)
    for mode in (True, False):
        with torch.inference_mode(mode):
            found = answers(model, **text_of(batch), scene=scene, fast=True, do_sample=False)
        assert found.tolist() == wanted.tolist()


def test_one_compiled_layer_serves_all_layers_and_sizes():
    """Compiled for one token and for more, for one row and for more; not for a layer, a length or further rows."""
    deep = untied_model(num_hidden_layers=3)
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    decoder = TextDecoder(deep, compiled=True, graphs=False)
    torch._dynamo.reset()
    decoder._layer = torch.compile(decoder._layer, dynamic=True, fullgraph=True, backend=count)
    for rows in (2, 3):
        for length in (3, 9):
            scenes = fake_scenes(deep.config, 1, 2)
            batch = {**scenes, **fake_text(deep.config, [6] * rows, [length] * rows)}
            batch["scene_index"] = torch.zeros(rows, dtype=torch.int64)
            deep._decoder = None
            wanted = answers(deep, **batch, do_sample=False, fast=True)
            deep._decoder = decoder
            assert answers(deep, **batch, do_sample=False, fast=True).tolist() == wanted.tolist()
    assert len(graphs) <= 4  # the prefix is a row of its own; a lone token comes as a view at first


class BucketedDecoder(TextDecoder):
    """Rounds sizes up and keeps passes as on a GPU; replaying one computes it anew."""

    def _capture(self, cache: FixedCache, made: GraphPass) -> None:
        class Graph:
            def replay(_) -> None:
                made.logits = self._forward(cache, made.embeds, made.counts)

        made.graph = Graph()


def test_sizes_rounded_up_change_no_token(model):
    bucketed = copy.copy(model)
    bucketed._decoder = BucketedDecoder(model, compiled=False, graphs=True)
    for how in HOW:
        batch = ragged_batch(model.config)
        wanted = answers(model, **batch, **HOW[how])
        for _ in range(2):  # the second time in caches that hold the first answers
            assert answers(bucketed, **batch, **HOW[how], fast=True).tolist() == wanted.tolist()


def test_fifty_questions_about_one_to_sixteen_views_need_no_further_graph(model):
    bucketed = copy.copy(model)
    decoder = bucketed._decoder = BucketedDecoder(model, compiled=False, graphs=True)
    wanted = None
    for question in range(54):
        views = 1 + question % 16
        text = fake_text(model.config, [4 + views], [3 + 7 * question % 26], seed=question)
        bucketed.generate(**fake_scenes(model.config, 1, views), **text, max_new_tokens=3, fast=True)
        if question == 3:
            wanted = decoder.num_captured
    assert decoder.num_captured <= wanted + 2  # buckets of prefixes and of questions that had not come before
    seen = decoder.num_captured
    for question in range(50):
        text = fake_text(model.config, [4 + 1 + question % 16], [3 + 5 * question % 26], seed=question + 90)
        scene = fake_scenes(model.config, 1, 1 + question % 16)
        bucketed.generate(**scene, **text, max_new_tokens=3, fast=True)
    assert decoder.num_captured == seen


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_memory_does_not_grow(model, count):
    bucketed = copy.copy(model)
    bucketed._decoder = BucketedDecoder(model, compiled=False, graphs=True)
    scene = model.encode_scene(**fake_scenes(model.config, 1, 3))
    before = None
    for number in range(count + 10):
        text = fake_text(model.config, [7], [2 + number % 20], seed=number)
        text["input_ids"][0, 0] = 10 + number % 7  # another prefix
        bucketed.generate(**text, scene=scene, fast=True, max_new_tokens=1 + number % 3)
        if number == 9:
            before = live_tensors()
    assert live_tensors() <= before


def test_buckets():
    assert [bucket_rows(n) for n in (1, 2, 3, 8, 9, 32)] == [1, 2, 4, 8, 16, 32]
    assert [bucket_length(n) for n in (1, 512, 513, 1500)] == [512, 512, 1024, 2048]


def test_copies_of_a_model_decode_for_themselves(model):
    batch = fake_batch(model.config)
    answers(model, **batch, fast=True)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.mul_(-1)
    wanted = answers(other, **batch, do_sample=False)
    assert answers(other, **batch, do_sample=False, fast=True).tolist() == wanted.tolist()
