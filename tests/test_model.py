"""The whole model: what it looks at, what it must not look at, how it generates, what it refuses."""

from __future__ import annotations

import pytest
import torch

from modeling_vggt_qwen3 import modeling_vggt_qwen3
from modeling_vggt_qwen3.modeling_perceiver import SceneGeometry
from modeling_vggt_qwen3.modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration
from tests.fake import GEOMETRY, fake_batch, fake_scenes, fake_text, small_config, small_model, without_geometry

SCENE_TENSORS = ("pixel_values", "view_mask", "world_from_ref", *GEOMETRY)


@pytest.fixture(scope="module")
def model() -> VggtQwen3ForConditionalGeneration:
    return small_model()


def logits(model: VggtQwen3ForConditionalGeneration, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits[:, -1]


def rows(batch: dict[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    """Scene and row `index` alone."""
    return {**{key: value[index : index + 1] for key, value in batch.items()}, "scene_index": torch.tensor([0])}


def test_fresh_latents_differ_and_what_they_read_keeps_its_size():
    """Weights of 0.02, as a text model's begin, make all latents attend alike and leave rays all but unseen."""
    torch.manual_seed(0)
    fresh = VggtQwen3ForConditionalGeneration(small_config()).model
    assert float(fresh.resampler.latents.std()) == pytest.approx(1, rel=0.2)
    for part in (fresh.resampler, fresh.geometry_tokens):
        for linear in (each for each in part.modules() if isinstance(each, torch.nn.Linear)):
            assert float(linear.weight.std()) == pytest.approx(linear.in_features**-0.5, rel=0.25)


@pytest.mark.parametrize("view", [0, 1, 2])
def test_every_patch_of_every_view_is_seen(model, view):
    batch = fake_batch(model.config)
    before = logits(model, batch)
    for row in (0, 14):
        for column in (0, 14, 28):
            changed = batch["pixel_values"].clone()
            changed[1, view, :, row : row + 14, column : column + 14] ^= 255
            after = logits(model, {**batch, "pixel_values": changed})
            assert (after[1] - before[1]).abs().max() > 1e-4
            torch.testing.assert_close(after[0], before[0])


@pytest.mark.parametrize("key", ["ref_from_cam", "intrinsics", "depth_hist", "patch_points", "patch_points_mask"])
def test_every_geometric_input_is_seen(model, key):
    batch = fake_batch(model.config)
    changed = batch[key].clone()
    if changed.dtype == torch.bool:
        changed[0, -1] = ~changed[0, -1]
    else:
        changed[0, -1] *= 1.1
    assert (logits(model, {**batch, key: changed})[0] - logits(model, batch)[0]).abs().max() > 1e-4


def test_padded_views_change_nothing(model):
    batch = fake_batch(model.config, num_views=2)
    padded = dict(batch)
    garbage = fake_scenes(model.config, 2, 1, seed=9)
    for key in ("pixel_values", "ref_from_cam", "intrinsics", "depth_hist", "patch_points", "patch_points_mask"):
        padded[key] = torch.cat((batch[key], garbage[key]), dim=1)
    padded["view_mask"] = torch.tensor([[True, True, False]]).repeat(2, 1)
    torch.testing.assert_close(logits(model, padded), logits(model, batch), atol=1e-5, rtol=1e-5)
    padded["view_mask"] = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="6 image placeholders for 7 visual tokens"):
        model(**padded)


def test_answers_do_not_depend_on_batch_mates(model):
    batch = fake_batch(model.config, num_scenes=3)
    together = logits(model, batch)
    for index in range(3):
        torch.testing.assert_close(together[index], logits(model, rows(batch, index))[0], atol=1e-5, rtol=1e-5)


def test_scenes_with_and_without_cameras_share_a_batch(model):
    known = fake_batch(model.config, num_scenes=1, seed=1)
    unknown = without_geometry(fake_batch(model.config, num_scenes=1, seed=2))
    text = fake_text(model.config, [7, 4], [3, 5])
    mixed = {key: torch.cat((known[key], unknown[key])) for key in SCENE_TENSORS} | text
    together = logits(model, mixed)
    for index, (scene, visual, length) in enumerate(((known, 7, 3), (unknown, 4, 5))):
        ids = text["input_ids"][index : index + 1, -(visual + length + 2) :]
        alone = logits(model, {**{key: scene[key] for key in SCENE_TENSORS}, "input_ids": ids})
        torch.testing.assert_close(together[index], alone[0], atol=1e-5, rtol=1e-5)


def test_unknown_cameras_are_not_read(model):
    batch = fake_batch(model.config)
    text = fake_text(model.config, [4, 4], [3, 4])
    hidden = {**without_geometry(batch), **text}
    noisy = {**batch, **text, "geometry_mask": torch.zeros(2, dtype=torch.bool)}
    torch.testing.assert_close(logits(model, noisy), logits(model, hidden))
    photographs_alone = {key: hidden[key] for key in ("input_ids", "attention_mask", "pixel_values")}
    torch.testing.assert_close(logits(model, photographs_alone), logits(model, hidden))


def test_several_questions_share_a_scene(model):
    scenes = fake_scenes(model.config, 2, 3)
    text = fake_text(model.config, [7] * 4, [3, 6, 2, 4])
    index = torch.tensor([1, 0, 1, 1])
    together = logits(model, {**scenes, **text, "scene_index": index})
    repeated = {key: value[index] for key, value in scenes.items()}
    torch.testing.assert_close(together, logits(model, {**repeated, **text}), atol=1e-5, rtol=1e-5)


GENERATION = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "samples": {"do_sample": True, "num_return_sequences": 3, "temperature": 0.7},
    "beam groups returned": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
}


@pytest.mark.parametrize("how", GENERATION)
def test_cached_and_uncached_generation_agree_with_fewer_scenes_than_rows(model, how):
    scenes = fake_scenes(model.config, 2, 3)
    text = fake_text(model.config, [7] * 3, [3, 6, 2])
    batch = {**scenes, **text, "scene_index": torch.tensor([1, 0, 1])}
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        outputs.append(
            model.generate(**batch, **GENERATION[how], min_new_tokens=6, max_new_tokens=6, use_cache=use_cache)
        )
    torch.testing.assert_close(*outputs)
    assert model.config.image_token_id not in outputs[0][:, text["input_ids"].shape[1] :]


def test_generation_is_independent_of_padding_and_batch(model):
    batch = fake_batch(model.config, num_scenes=3)
    together = model.generate(**batch, min_new_tokens=6, max_new_tokens=6, do_sample=False)[
        :, batch["input_ids"].shape[1] :
    ]
    for index in range(3):
        alone = rows(batch, index)
        keep = alone["attention_mask"][0].bool()
        alone |= {key: alone[key][:, keep] for key in ("input_ids", "attention_mask")}
        tokens = model.generate(**alone, min_new_tokens=6, max_new_tokens=6, do_sample=False)[0, keep.sum() :]
        assert together[index, : len(tokens)].tolist() == tokens.tolist()


def test_each_task_weighs_what_the_configuration_says():
    model = small_model(task_weights={"a": 1.0, "b": 3.0}).train()
    batch = fake_batch(model.config)
    labels = batch["input_ids"].clone()
    labels[:, :-3] = -100
    task_ids = torch.tensor([[0], [1]]).expand_as(labels)
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) + 0.5
    full = model.eval()(**batch).logits.double()
    ce = torch.nn.functional.cross_entropy(full[:, -4:-1].flatten(0, 1), labels[:, -3:].flatten(), reduction="none")
    ce, w = ce.view(2, 3), weights[:, -3:].double()
    expected = sum(factor * (w[i] * ce[i]).sum() / w[i].sum() for i, factor in enumerate((1.0, 3.0)))
    outputs = model.train()(**batch, labels=labels, task_ids=task_ids, token_weights=weights)
    torch.testing.assert_close(outputs.loss.double(), expected, atol=1e-5, rtol=1e-5)
    assert outputs.logits is None


def test_geometry_learns_or_waits_but_always_has_a_gradient():
    model = small_model().train()
    batch = without_geometry(fake_batch(model.config))
    batch |= fake_text(model.config, [4, 4], [3, 4])
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == 5, -100)
    model(**batch, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or "vision_model" in name, name
    assert not model.model.geometry_tokens.fc1.weight.grad.any()


def test_frozen_encoder_keeps_no_graph(model):
    frozen = small_model().requires_grad_(True)
    frozen.model.vision_model.requires_grad_(False)
    features = frozen.model.encode_views(fake_scenes(frozen.config, 1, 2)["pixel_values"], None)
    assert not any(maps.requires_grad for maps in features.values())
    frozen.model.vision_model.requires_grad_(True)
    features = frozen.model.encode_views(fake_scenes(frozen.config, 1, 2)["pixel_values"], None)
    assert all(maps.requires_grad for maps in features.values())


def test_metres_survive_half_precision(model):
    """A camera 8 m away moves by 1 cm: bfloat16 numbers there are 3 cm apart."""
    import copy

    half = copy.deepcopy(model).bfloat16().model.geometry_tokens
    scenes = fake_scenes(model.config, 1, 1)
    scenes["ref_from_cam"][..., 0, 3] = 8.0
    moved = {**scenes, "ref_from_cam": scenes["ref_from_cam"].clone()}
    moved["ref_from_cam"][..., 0, 3] += 0.01
    first, second = (SceneGeometry(**{k: s[k] for k in GEOMETRY}, image_size=(28, 42)) for s in (scenes, moved))
    seen = []
    half.fc2 = torch.nn.Identity()
    half.fc2.weight = torch.empty(0)  # shows what the first layer makes, before anything is rounded
    seen = [half(geometry) for geometry in (first, second)]
    assert seen[0].dtype == torch.float32
    assert (seen[0] - seen[1]).abs().max() > 1e-4


def test_refusals_name_what_is_wrong(model):
    batch = fake_batch(model.config)
    short = {**batch, **fake_text(model.config, [7, 6], [3, 4])}
    with pytest.raises(ValueError, match="row 1 has 6 image placeholders for 7 visual tokens"):
        model(**short)
    with pytest.raises(ValueError, match="row 0 has 7 image placeholders for 0 visual tokens"):
        model(input_ids=batch["input_ids"])
    with pytest.raises(ValueError, match=r"incomplete: \['depth_hist'\]"):
        model(**{key: value for key, value in batch.items() if key != "depth_hist"})
    with pytest.raises(ValueError, match=r"intrinsics is torch.bfloat16"):
        model(**{**batch, "intrinsics": batch["intrinsics"].bfloat16()})
    three = {**batch, **fake_text(model.config, [7] * 3, [3] * 3)}
    three.pop("scene_index")
    with pytest.raises(ValueError, match="3 rows of text look at 2 scenes"):
        model(**three)


def test_where_nothing_can_be_read_wrong_placeholders_show_in_the_result(model, monkeypatch):
    """While a CUDA graph is recorded, and in its replays."""
    monkeypatch.setattr(modeling_vggt_qwen3, "_is_recording", lambda _: True)
    batch = fake_batch(model.config)
    assert logits(model, batch).isfinite().all()
    places = (batch["input_ids"][1] == model.config.image_token_id).nonzero()[:, 0]
    for missing in (places[:1], places):
        wrong = batch["input_ids"].clone()
        wrong[1, missing] = 1
        found = logits(model, {**batch, "input_ids": wrong})
        assert found[0].isfinite().all() and found[1].isnan().all()


def test_checkpoints_must_be_whole(model, tmp_path):
    from safetensors.torch import load_file, save_file

    model.save_pretrained(tmp_path)
    again = VggtQwen3ForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again, fake_batch(model.config)), logits(model, fake_batch(model.config)))

    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    lost = tensors.pop("model.resampler.latents")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing: model.resampler.latents"):
        VggtQwen3ForConditionalGeneration.from_pretrained(tmp_path)
    save_file(
        {**tensors, "model.resampler.latents": lost, "model.extra": lost.clone()}, weights, metadata={"format": "pt"}
    )
    with pytest.raises(ValueError, match=r"1 unexpected: model.extra"):
        VggtQwen3ForConditionalGeneration.from_pretrained(tmp_path)


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = small_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        batch = fake_batch(model.config)
        labels = batch["input_ids"].masked_fill(batch["input_ids"] == 5, -100)
        model(**batch, labels=labels).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_backends_agree(attention):
    reference = small_model()
    other = VggtQwen3ForConditionalGeneration._from_config(small_config(), attn_implementation=attention)
    other.load_state_dict(reference.state_dict())
    batch = fake_batch(reference.config)
    torch.testing.assert_close(logits(other.eval(), batch), logits(reference, batch), atol=1e-5, rtol=1e-5)
