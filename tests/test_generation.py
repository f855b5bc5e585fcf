"""Scenes encoded once, and the fast loop: the tokens of the plain loop, and clear refusals."""

from __future__ import annotations

import copy
import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TextStreamer

from modeling_vggt_qwen3.decoding_vggt_qwen3 import FixedCache, GraphPass, TextDecoder, bucket_length, bucket_rows
from modeling_vggt_qwen3.modeling_perceiver import attend_few
from modeling_vggt_qwen3.modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration
from processing.processing_vggt_qwen3 import VggtQwen3Processor
from tests.fake import fake_batch, fake_scenes, fake_text, small_config, small_model, without_geometry
from tests.hub import level_cameras
from training.arguments import CONFIGS
from training.assembly import build_model

TEXT = ("input_ids", "attention_mask", "scene_index")
NEW_TOKENS = 8
WARM = 22
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
    for work in ("get_image_features", "_run_prefixes", "_run_prefixes_fast"):
        setattr(blind, work, lambda *args, **kwargs: calls.append(args))
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


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("key", ["ref_from_cam", "pixel_values"])
def test_a_scene_keeps_its_own_images_and_cameras(model, key, fast):
    batch = fake_batch(model.config)
    scene = model.encode_scene(**batch)
    batch[key].add_(1)
    with pytest.raises(ValueError, match=f"{key} is not that of the encoded scene"):
        model.generate(**batch, scene=scene, fast=fast)


def adapted_model() -> tuple[torch.nn.Module, VggtQwen3ForConditionalGeneration]:
    """With an adapter whose part in the answers is large, and the model within."""
    base = untied_model()
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            parameter.mul_(8 if "lora_" in name else 1)
    return adapted.eval(), base


def test_a_refused_question_leaves_nothing_in_the_scene():
    adapted, base = adapted_model()
    batch = fake_batch(base.config)
    scene = base.encode_scene(**{key: value for key, value in batch.items() if key not in TEXT})
    wanted = answers(base, **batch, do_sample=False)
    with adapted.disable_adapter(), pytest.raises(ValueError, match="weights have changed"):
        base.generate(**text_of(batch), scene=scene, fast=True)
    assert not scene.prefixes
    assert answers(base, **text_of(batch), scene=scene, fast=True, do_sample=False).tolist() == wanted.tolist()


def test_passes_are_captured_anew_when_adapters_are_switched_or_merged():
    adapted, base = adapted_model()
    decoder = base._decoder = BucketedDecoder(base, compiled=False, graphs=True)
    batch = fake_batch(base.config)
    numbers = []

    def ask() -> None:
        answers(base, **batch, fast=True, do_sample=False)
        numbers.append(decoder.num_captured)

    ask()
    ask()
    assert numbers[0] == numbers[1]
    with adapted.disable_adapter():
        ask()
    ask()
    adapted.merge_adapter()
    ask()
    assert numbers[1] < numbers[2] < numbers[3] < numbers[4]


def test_a_nan_of_one_answer_is_not_in_the_next():
    model = untied_model()
    model._decoder = BucketedDecoder(model, compiled=False, graphs=True)
    batch = fake_batch(model.config)
    wanted = answers(model, **batch, fast=True, do_sample=False)
    weight = model.model.language_model.layers[0].self_attn.v_proj.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(torch.nan)
        answers(model, **batch, fast=True, do_sample=False, max_new_tokens=2 * NEW_TOKENS)
        weight.copy_(before)
    assert answers(model, **batch, fast=True, do_sample=False).tolist() == wanted.tolist()


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


@pytest.mark.slow
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


def test_threads_wait_for_one_another(model):
    """Each answer has the caches to itself."""
    shared = copy.copy(model)
    shared._decoder = BucketedDecoder(model, compiled=False, graphs=True)
    batches = [fake_batch(model.config, num_scenes=1, seed=seed) for seed in range(6)]
    options = {"do_sample": False, "max_new_tokens": 20}
    wanted = [model.generate(**batch, **options).tolist() for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda batch: shared.generate(**batch, **options, fast=True).tolist(), batches))
    assert found == wanted


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: CUDA graphs")
@pytest.mark.parametrize("make", [fake_batch, ragged_batch])
@pytest.mark.parametrize("how", HOW)
def test_graphs_give_the_tokens_of_the_plain_loop(how, make):
    model = untied_model().to("cuda")
    batch = {key: value.to("cuda") for key, value in make(model.config).items()}
    scene = model.encode_scene(**batch, fast=True)
    wanted = answers(model, **batch, **HOW[how]).tolist()
    for options in (batch, {**text_of(batch), "scene": scene}):
        assert answers(model, **options, **HOW[how], fast=True).tolist() == wanted
    assert model._decoder.num_captured


def test_fused_projections_follow_their_weights():
    model = untied_model()
    model._decoder = BucketedDecoder(model, compiled=False, graphs=True, fused=True)
    batch = ragged_batch(model.config)
    seen = []
    for factor in (1.0, -3.0):
        with torch.no_grad():
            model.model.language_model.layers[1].self_attn.v_proj.weight.mul_(factor)
        wanted = answers(model, **batch, do_sample=False)
        assert wanted.tolist() not in seen
        seen.append(wanted.tolist())
        assert answers(model, **batch, do_sample=False, fast=True).tolist() == wanted.tolist()
    assert model._decoder._projections[0].shape == (16 * (4 + 2 + 2), 48)
    captured = model._decoder.num_captured
    model.model.language_model.layers[0].self_attn.q_proj = torch.nn.Linear(48, 64, bias=True)
    wanted = answers(model, **batch, do_sample=False)
    assert answers(model, **batch, do_sample=False, fast=True).tolist() == wanted.tolist()
    assert model._decoder._projections[0] is None
    assert model._decoder.num_captured > captured  # nothing is replayed that reads weights of before


def test_attention_written_out_is_attention():
    rng = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, length, 8, generator=rng) for length in (5, 40, 40))
    for mask in (None, torch.rand(2, 1, 1, 40, generator=rng) > 0.5):
        wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)
        torch.testing.assert_close(attend_few(query, key, value, mask), wanted)


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
    for number in range(WARM + count):
        text = fake_text(model.config, [7], [2 + number % 20], seed=number)
        text["input_ids"][0, 0] = 10 + number % 7  # another prefix
        bucketed.generate(**text, scene=scene, fast=True, max_new_tokens=1 + number % 3)
        if number == WARM:
            before = live_tensors()
    assert live_tensors() <= before


@pytest.fixture(scope="module")
def acting() -> tuple[VggtQwen3ForConditionalGeneration, VggtQwen3Processor]:
    """A random model of the tiny tokenizer's vocabulary."""
    torch.manual_seed(1)
    config = small_config()
    config.text_config.vocab_size, config.text_config.tie_word_embeddings = 1536, False
    model, processor = build_model(config, str(CONFIGS / "tokenizer-tiny"), image_size=28)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return model.eval(), processor


def acting_batch(processor: VggtQwen3Processor, rows: int) -> dict[str, torch.Tensor]:
    words = ["Place an anchor on the bed.", "Anchor the chair next to the door.", "Put an anchor on the wall."]
    messages = [processor.conversation(word, num_views=2, task="actions") for word in words[:rows]]
    texts = [processor.apply_chat_template(each, tokenize=False, add_generation_prompt=True) for each in messages]
    views = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    return dict(processor(images=[list(views)], text=texts, **level_cameras(2)))


def written_out(model: VggtQwen3ForConditionalGeneration, constraint: object, batch: dict, limit: int) -> list[int]:
    """A constrained greedy answer of one row, by whole forward passes: forced runs, else the best token allowed."""
    constraint.start(1)
    taken: list[int] = []
    while len(taken) < limit and not constraint.is_done(0):
        (run,) = constraint.forced()
        if not run:
            ids = torch.cat((batch["input_ids"], torch.tensor([taken], dtype=torch.int64)), dim=1)
            with torch.no_grad():
                scores = model(**{**batch, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[0, -1]
            suppressed = model.generation_config.suppress_tokens
            scores[suppressed] = -torch.inf
            run = [int(scores.masked_fill(~constraint.mask(vocab_size=len(scores))[0], -torch.inf).argmax())]
        constraint.accept([run])
        taken += run
    return taken[:limit]


def test_actions_take_forced_tokens_in_one_pass_and_choose_the_rest(acting):
    model, processor = acting
    constraint = processor.action_constraint(labels=["bed", "chair", "wardrobe"])
    batch = acting_batch(processor, 3)
    num_passes = []
    counting = copy.copy(model)
    counting._decoder = BucketedDecoder(model, compiled=False, graphs=True)
    run = counting._decoder.run
    counting._decoder.run = lambda *inputs: num_passes.append(1) or run(*inputs)
    for limit in (400, 30):
        num_passes.clear()
        tokens = counting.generate(**batch, constraint=constraint, fast=True, max_new_tokens=limit, do_sample=False)
        found = tokens[:, batch["input_ids"].shape[1] :]
        assert len(num_passes) < 0.6 * found.shape[1]
        for row in range(3):
            alone = {**batch, "input_ids": batch["input_ids"][row : row + 1][:, batch["attention_mask"][row].bool()]}
            del alone["scene_index"]
            wanted = written_out(model, constraint, alone, limit)
            pad = model.generation_config.pad_token_id or processor.end_of_turn_id
            assert found[row].tolist() == wanted + [pad] * (found.shape[1] - len(wanted))
    bounded = processor.action_constraint(labels=["bed", "chair", "wardrobe"], max_new_tokens=400)
    tokens = counting.generate(**batch, constraint=bounded, fast=True, max_new_tokens=400)
    texts = processor.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    for decoded in processor.decode_actions(texts, batch["world_from_ref"], scene_index=batch["scene_index"]):
        assert decoded["error"] is None


@pytest.mark.parametrize("limit", [1, 2, 5, 9, 14])
def test_forced_tokens_end_at_the_limit(acting, limit):
    model, processor = acting
    constraint = processor.action_constraint(actions=["place_anchor"], labels=["bed"])
    batch = acting_batch(processor, 2)
    tokens = model.generate(**batch, constraint=constraint, fast=True, max_new_tokens=limit, do_sample=False)
    found = tokens[:, batch["input_ids"].shape[1] :]
    assert found.shape[1] == limit
    whole = model.generate(**batch, constraint=constraint, fast=True, max_new_tokens=60, do_sample=False)
    assert found.tolist() == whole[:, batch["input_ids"].shape[1] :][:, :limit].tolist()


def test_a_constraint_works_without_the_fast_loop_and_samples(acting):
    model, processor = acting
    constraint = processor.action_constraint(actions=["place_anchor"], labels=["bed"])
    batch = acting_batch(processor, 2)
    for options in ({}, {"fast": True}, {"fast": True, "do_sample": True, "temperature": 3.0, "top_k": 10}):
        tokens = model.generate(**batch, constraint=constraint, max_new_tokens=200, **options)
        texts = processor.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        assert all(text.startswith('{"action":"place_anchor","label":"bed","center":[') for text in texts)
        assert all(text.endswith("]}") for text in texts)
    with pytest.raises(ValueError, match="RepetitionPenaltyLogitsProcessor, which look at the tokens so far"):
        model.generate(**batch, constraint=constraint, fast=True, repetition_penalty=1.2)


def test_the_processor_writes_questions_about_an_encoded_scene(acting):
    model, processor = acting
    batch = acting_batch(processor, 2)
    scene = model.encode_scene(**batch)
    messages = processor.conversation("Anchor the chair next to the door.", num_views=2, task="actions")
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    asked = processor(text=[text], scene=scene)
    assert set(asked) == {"input_ids", "attention_mask", "scene_index"}
    assert asked["input_ids"][0].tolist() == batch["input_ids"][1][batch["attention_mask"][1].bool()].tolist()
    assert scene.world_from_ref.tolist() == batch["world_from_ref"].tolist()
    wanted = answers(model, **batch, do_sample=False)[1, -NEW_TOKENS:]
    assert answers(model, **asked, scene=scene, do_sample=False)[0, -NEW_TOKENS:].tolist() == wanted.tolist()
    with pytest.raises(ValueError, match="an encoded scene stands for images and cameras"):
        processor(text=[text], scene=scene, num_views=2)


def test_buckets():
    assert [bucket_rows(n) for n in (1, 2, 3, 8, 9, 32)] == [1, 2, 4, 8, 16, 32]
    assert [bucket_length(n) for n in (1, 256, 257, 385, 512, 513, 1500)] == [256, 256, 384, 512, 512, 768, 1536]


def test_copies_of_a_model_decode_for_themselves(model):
    batch = fake_batch(model.config)
    answers(model, **batch, fast=True)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.mul_(-1)
    wanted = answers(other, **batch, do_sample=False)
    assert answers(other, **batch, do_sample=False, fast=True).tolist() == wanted.tolist()
