"""Stages 0 to 2 of the small model as a user runs them, at the smallest size; and what the ray decoder adds."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from datasets_scripts.build import build
from datasets_scripts.rooms.source import RoomsSource
from modeling_vggt_qwen3.configuration_vggt_qwen3 import VggtQwen3Config
from modeling_vggt_qwen3.modeling_perceiver import take_patches
from modeling_vggt_qwen3.modeling_rays import RayDecoder
from modeling_vggt_qwen3.modeling_vggt import VggtModel
from modeling_vggt_qwen3.modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration
from tests.fake import fake_batch, small_config, small_model
from train import main
from training.arguments import ModelArguments
from training.reconstruction import ReconstructionSampler
from training.small_stages import add_ray_decoder

OPTIONS = ["--prepare_data", "cpu", "--num_views", "2", "--samples_per_scene", "4", "--report_to", "none"]
OPTIONS += [
    "--warmup_steps",
    "0",
    "--per_device_train_batch_size",
    "8",
    "--max_steps",
    "2",
    "--logging_steps",
    "1",
    "--use_cpu",
    "true",
]


def ray_targets(num_scenes: int, num_rays: int = 5, num_patches: int = 18) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    shape, patches = (num_scenes, num_rays), (num_scenes, num_patches)
    return {
        "rays": torch.randn(*shape, 6, generator=rng),
        "depth": torch.rand(shape, generator=rng) * 4 + 0.5,
        "depth_mask": torch.rand(shape, generator=rng) > 0.5,
        "classes": torch.randint(-1, 7, patches, generator=rng),
        "colors": torch.randint(-1, 3, patches, generator=rng),
        "boxes": torch.randn(*patches, 8, generator=rng),
        "boxes_mask": torch.rand(patches, generator=rng) > 0.5,
        "points": torch.randn(*patches, 3, generator=rng),
        "points_mask": torch.rand(patches, generator=rng) > 0.5,
    }


def spread_config() -> VggtQwen3Config:
    """The small one, whose latents begin at patches."""
    config = small_config()
    config.perceiver_config.latent_start = "spread"
    return config


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Folders of the three stages' results."""
    folder = tmp_path_factory.mktemp("stages")
    build(RoomsSource(4, 2, views=2, size=56, dense_labels=True), folder / "rooms", num_proc=1, progress=False)
    config = spread_config()
    config.text_config.vocab_size = 1536
    (folder / "model.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    data = ["--dataset", str(folder / "rooms"), "--prepared_dir", str(folder / "prepared"), *OPTIONS]
    model = ["--model", str(folder / "model.json")]
    rays = ["--geometry_consistency", "0.5", "--latent_labels", "1", "--num_rays", "8", "--any_answer", "false"]
    stage_0 = ["--objective", "reconstruction", "--save_strategy", "no"]
    main([*data, *model, *stage_0, "--output_dir", str(folder / "0")])
    vision = ["--vision_checkpoint", str(folder / "0"), "--tasks", "rooms_qa"]
    main([*data, *model, *vision, *rays, "--output_dir", str(folder / "1"), "--save_steps", "1"])
    mix = ["--task_mix", '{"rooms_actions": 0.5, "rooms_qa": 0.5}']
    main([*data, "--model", str(folder / "1"), *mix, *rays, "--output_dir", str(folder / "2")])
    return folder


def test_the_encoder_of_stage_0_is_the_frozen_one_of_the_others(stages):
    encoder = VggtModel.from_pretrained(stages / "0").state_dict()
    fresh = VggtModel(small_config().vision_config).state_dict()
    for stage in ("1", "2"):
        kept = VggtQwen3ForConditionalGeneration.from_pretrained(stages / stage).model.vision_model.state_dict()
        for name, tensor in encoder.items():
            torch.testing.assert_close(kept[name], tensor, rtol=0, atol=0)
    assert any(not torch.equal(encoder[name], fresh[name]) for name in fresh)


def test_every_part_of_the_loss_is_logged(stages):
    labels = {"loss_class", "loss_color", "loss_box"}
    encoder = labels | {"loss_view_box", "loss_patch_points", "loss_patch_depth"}
    encoder |= {"loss_camera", "loss_depth", "loss_points"}
    for stage, wanted in {"0": encoder, "1": labels | {"loss_point", "loss_geometry_consistency"}}.items():
        lines = [json.loads(line) for line in (stages / stage / "log.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "loss" in line]
        assert steps
        for step in steps:
            parts = {key: value for key, value in step.items() if key.startswith("loss_")}
            assert set(parts) == wanted
            if stage == "0":
                weights = {"loss_camera": 0.5, "loss_depth": 0.1, "loss_points": 0.1}
                weighted = sum(weights.get(name, 1.0) * part for name, part in parts.items())
                assert weighted == pytest.approx(step["loss"], abs=1e-3)


def test_training_helpers_are_in_checkpoints_alone(stages):
    checkpoint = stages / "1" / "checkpoint-1"
    assert (checkpoint / "ray_decoder.safetensors").is_file()
    for folder in (stages / "1", stages / "2", checkpoint):
        names = load_file(folder / "model.safetensors")
        assert not any("ray_decoder" in name for name in names)
    assert not (stages / "1" / "ray_decoder.safetensors").exists()
    names = load_file(stages / "0" / "model.safetensors")
    assert not any("patch_heads" in name for name in names)


def test_resuming_finds_the_ray_decoder(stages):
    before = load_file(stages / "1" / "checkpoint-2" / "ray_decoder.safetensors")
    folder = stages / "1"
    data = ["--dataset", str(stages / "rooms"), "--prepared_dir", str(stages / "prepared"), *OPTIONS]
    model = ["--model", str(stages / "model.json"), "--vision_checkpoint", str(stages / "0"), "--tasks", "rooms_qa"]
    rays = ["--geometry_consistency", "0.5", "--latent_labels", "1", "--num_rays", "8", "--any_answer", "false"]
    resume = ["--resume_from_checkpoint", str(folder / "checkpoint-1"), "--save_steps", "1"]
    main([*data, *model, *rays, "--output_dir", str(folder), *resume])
    after = load_file(folder / "checkpoint-2" / "ray_decoder.safetensors")
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=1e-5, msg=name)


def test_another_ray_decoder_is_refused_by_name(stages, tmp_path):
    folder = tmp_path / "1"
    shutil.copytree(stages / "1", folder)
    data = ["--dataset", str(stages / "rooms"), "--prepared_dir", str(stages / "prepared"), *OPTIONS]
    model = ["--model", str(stages / "model.json"), "--vision_checkpoint", str(stages / "0"), "--tasks", "rooms_qa"]
    depth_alone = ["--geometry_consistency", "0.5", "--num_rays", "8", "--any_answer", "false"]
    resume = ["--resume_from_checkpoint", str(folder / "checkpoint-1"), "--save_steps", "1"]
    with pytest.raises(ValueError, match=r"ray_decoder.safetensors is of another ray decoder"):
        main([*data, *model, *depth_alone, "--output_dir", str(folder), *resume])


def test_reconstruction_wants_dense_labels(rooms, tmp_path):
    with pytest.raises(ValueError, match=r"dense labels.*--dense-labels"):
        main(["--dataset", str(rooms), "--objective", "reconstruction", "--output_dir", str(tmp_path), *OPTIONS[2:]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--geometry_consistency", "1"], "set prepare_data"),
        (["--prepare_data", "gpu"], "prepare_data is 'gpu'"),
        (["--prepare_data", "cpu", "--view_dropout", "0.5"], "does not follow view_dropout"),
        (["--prepare_data", "cpu", "--num_rays", "0"], "num_rays is 0; wanted at least 1"),
        (["--prepare_data", "cpu", "--pack_questions", "false"], "does not follow pack_questions: false"),
    ],
)
def test_settings_that_would_not_be_read_are_refused(stages, tmp_path, options, message):
    model = ["--model", str(stages / "model.json"), "--dataset", str(stages / "rooms")]
    with pytest.raises(ValueError, match=message):
        main([*model, *OPTIONS[2:], *options, "--output_dir", str(tmp_path)])


def test_every_rank_trains_on_other_scenes():
    ranks = [ReconstructionSampler(11, 2, seed=3, rank=rank, world_size=2) for rank in (0, 1)]
    drawn = [[draw.scene for batch in sampler for draw in batch] for sampler in ranks]
    assert [len(sampler) for sampler in ranks] == [2, 2] and [len(rows) for rows in drawn] == [4, 4]
    assert not set(drawn[0]) & set(drawn[1])
    with pytest.raises(ValueError, match="3 scenes are fewer than a step takes"):
        ReconstructionSampler(3, 2, seed=0, world_size=2)


def test_rays_and_labels_train_the_latents():
    model = small_model(perceiver_config=spread_config().perceiver_config.to_dict()).train()
    width = model.config.text_config.hidden_size
    model.add_ray_decoder(RayDecoder(width, num_classes=7, num_colors=3, depth_weight=0.5, label_weight=2.0))
    batch = fake_batch(model.config)
    batch["labels"] = batch["input_ids"].clone()
    plain = model(**batch)
    rayed = model(**batch, ray_targets={**ray_targets(2), "share": 4})
    losses = rayed.auxiliary_losses
    labels = losses["class"] + losses["color"] + losses["box"] + losses["point"]
    expected = plain.loss + (0.5 * losses["geometry_consistency"] + 2 * labels) / 4
    torch.testing.assert_close(rayed.loss, expected)
    (rayed.loss - plain.loss).backward()
    assert model.model.resampler.latents.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="add_ray_decoder"):
        small_model()(**batch, ray_targets=ray_targets(2))


def test_each_latent_is_asked_about_the_patch_it_began_at():
    decoder, targets, latents = RayDecoder(16, num_classes=7, num_colors=3), ray_targets(2), torch.randn(2, 4, 16)
    origins = torch.tensor([[3, 17, 0, 9], [5, 5, 16, 2]])
    names = [name for name in targets if name not in ("rays", "depth", "depth_mask")]
    there = {name: take_patches(targets[name], origins) for name in names}
    in_order = decoder(latents, {**targets, **there}, torch.arange(4).expand(2, 4))
    assert in_order == decoder(latents, targets, origins)
    turned = decoder(latents, targets, origins.flip(1))
    apart = {name for name in in_order if not torch.isclose(turned[name], in_order[name])}
    assert apart == {"class", "color", "box", "point"}
    other = decoder(latents, {**targets, "rays": targets["rays"] + 1}, origins)
    assert {name for name in in_order if not torch.isclose(other[name], in_order[name])} == {"geometry_consistency"}
    with pytest.raises(ValueError, match="set latent_start to spread"):
        decoder(latents, targets)


def test_only_what_is_known_counts():
    decoder = RayDecoder(16, num_classes=7, num_colors=3)
    targets, latents = ray_targets(2), torch.randn(2, 18, 16)
    everywhere = torch.arange(18).expand(2, 18)
    losses = decoder(latents, targets, everywhere)
    wild = {
        **targets,
        "depth": torch.where(targets["depth_mask"], targets["depth"], 1e6),
        "boxes": torch.where(targets["boxes_mask"][..., None], targets["boxes"], 1e6),
        "points": torch.where(targets["points_mask"][..., None], targets["points"], 1e6),
    }
    assert losses == decoder(latents, wild, everywhere)
    nothing = {**targets, "depth_mask": torch.zeros(2, 5, dtype=torch.bool)}
    assert decoder(latents, nothing, everywhere)["geometry_consistency"] == 0


def test_labels_are_read_in_float32():
    """Metres of latents in bfloat16 would come in steps of centimetres; and a model in bfloat16 has labels at all."""
    decoder, targets = RayDecoder(16, num_classes=7, num_colors=3), ray_targets(2)
    latents, origins = torch.randn(2, 4, 16).bfloat16(), torch.arange(4).expand(2, 4)
    exact = decoder(latents.float(), targets, origins)
    found = decoder(latents, targets, origins)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = decoder(latents, targets, origins)
    for name in ("class", "color", "box", "point"):
        torch.testing.assert_close(found[name], exact[name], rtol=1e-6, atol=0)
        torch.testing.assert_close(mixed[name], exact[name], rtol=1e-6, atol=0)


def test_labels_want_latents_that_begin_at_single_patches():
    prepared = type("Prepared", (), {"has_labels": True})()
    with pytest.raises(ValueError, match=r"perceiver_config.latent_start = spread, which .*tiny.json is not"):
        add_ray_decoder(small_model(), ModelArguments(latent_labels=1.0), prepared)
    assert add_ray_decoder(small_model(), ModelArguments(geometry_consistency=1.0), prepared)
    pooled = {**spread_config().perceiver_config.to_dict(), "feature_pooling": 2}
    with pytest.raises(ValueError, match="feature_pooling to 1"):
        add_ray_decoder(small_model(perceiver_config=pooled), ModelArguments(latent_labels=1.0), prepared)


def test_labels_end_in_time():
    model = small_model(perceiver_config=spread_config().perceiver_config.to_dict())
    prepared = type("Prepared", (), {"has_labels": True})()
    (end,) = add_ray_decoder(model, ModelArguments(latent_labels=1.5, latent_labels_until=0.3), prepared)
    state = type("State", (), {"max_steps": 10, "global_step": 2})()
    end.on_step_begin(None, state, None)
    assert model.ray_decoder.label_weight == 1.5
    state.global_step = 3
    end.on_step_begin(None, state, None)
    assert model.ray_decoder.label_weight == 0
