"""The feature cache: the same training as from images, written once, resumed, and refused when it is stale."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train
from tests.conftest import REPOSITORY
from tests.fake import small_config
from tests.training_runs import TORCHRUN
from training import features
from training.arguments import CONFIGS, parse_arguments
from training.assembly import build_model
from training.collator import SceneCollator
from training.data import Draw, SceneDataset
from training.feature_cache import (
    CachedSceneDataset,
    StaleCacheError,
    quantize,
    read_cache_manifest,
    read_view_set,
    restore_features,
    wanted_sets,
)

SEED = 3


def argv(small_json: str, rooms: Path, cache: Path, output: Path, **options: object) -> list[str]:
    values = {
        "model": small_json,
        "dataset": rooms,
        "feature_cache": cache,
        "output_dir": output,
        "num_views": 3,
        "view_sets": 2,
        "samples_per_scene": 4,
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "logging_steps": 1,
        "save_steps": 2,
        "report_to": "none",
        "use_cpu": "true",
        "seed": SEED,
        "eval_strategy": "steps",
        "eval_steps": 3,
        **options,
    }
    return [word for key, value in values.items() if value is not None for word in (f"--{key}", str(value))]


@pytest.fixture(scope="module")
def cache(small_json, rooms, tmp_path_factory) -> Path:
    """Written by two commands, the first of which was cut off."""
    folder = tmp_path_factory.mktemp("caches") / "cache"
    command = argv(small_json, rooms, folder, folder / "run")
    features.main(command)
    (folder / features.CACHE_NAME).rename(folder / features.PARTIAL_NAME)
    files = sorted(folder.glob("*/*.safetensors"))
    files[1].unlink()
    before = files[0].stat().st_mtime_ns
    with pytest.raises(FileNotFoundError, match="is not finished: it has no features"):
        read_cache_manifest(folder)
    features.main(command)
    assert sorted(folder.glob("*/*.safetensors")) == files, "what was missing is there again"
    assert files[0].stat().st_mtime_ns == before, "and what was there was not written anew"
    return folder


def examples_of(dataset: SceneDataset, seed: tuple[int, ...] | None) -> list:
    """The first questions of two scenes."""
    rows = {}
    for index, (_, _, scene, _, anchor) in enumerate(dataset.samples):
        if anchor is None:
            rows.setdefault(scene, []).append(index)
    return [dataset[Draw(scene, tuple(rows[scene][:3]), None, seed)] for scene in list(rows)[:2]]


def test_features_are_those_of_the_same_views(cache, small_json, rooms, tmp_path):
    """The loss with and without the cache, of the same views, agrees within the rounding of the stored features."""
    torch.manual_seed(SEED)
    config = small_config()
    config.text_config.vocab_size = json.loads(Path(small_json).read_text())["text_config"]["vocab_size"]
    model, processor = build_model(config, str(CONFIGS / "tokenizer-tiny"))
    collator = SceneCollator(processor, model.config.task_names, pack=True)
    for split, seed in (("train", (0, 1, 2)), ("val", None)):
        cached = CachedSceneDataset(cache, [rooms], split, 3)
        plain = SceneDataset([rooms], split, 3)
        stored = examples_of(cached, seed)
        with_cache = restore_features(collator(stored))
        for example in stored:
            drawn = plain.read_scene(example.draw.scene, example.frame_ids)
            example.images, example.depth, example.intrinsics = drawn.images, drawn.depth, drawn.intrinsics
            example.views = None
        without = collator(stored)
        assert "pixel_values" not in with_cache and "vision_features" not in without
        for key in ("input_ids", "labels", "geometry_mask", "patch_points_mask", "view_mask"):
            assert torch.equal(with_cache[key], without[key]), key
        assert with_cache["patch_points_mask"].any()
        for key in ("intrinsics", "ref_from_cam", "patch_points", "depth_hist"):
            torch.testing.assert_close(with_cache[key], without[key], atol=1e-5, rtol=1e-5, msg=key)
        losses = [model(**batch).loss for batch in (with_cache, without)]
        torch.testing.assert_close(*losses, atol=2e-3, rtol=2e-3)
        changed = {layer: maps.flip(1) for layer, maps in with_cache["vision_features"].items()}
        assert model(**{**with_cache, "vision_features": changed}).loss != losses[0], "the features are not looked at"


def test_training_from_the_cache(cache, small_json, rooms, tmp_path):
    command = argv(small_json, rooms, cache, tmp_path / "run")
    trainer = train.main(command)
    history = trainer.state.log_history
    assert [entry["loss"] > 0 for entry in history if "loss" in entry] == [True] * 3
    assert any("eval_loss" in entry for entry in history)
    from_images = train.main(argv(small_json, rooms, None, tmp_path / "plain"))
    saved, plain = (torch_names(tmp_path / name) for name in ("run", "plain"))
    assert saved == plain, "the encoder is in the checkpoint all the same"
    state = from_images.model.state_dict()
    for name, tensor in trainer.model.state_dict().items():
        if ".vision_model." in name:
            assert torch.equal(tensor, state[name]), name
    resumed = train.main([*command, "--max_steps", "4", "--resume_from_checkpoint", "latest"])
    assert resumed.state.global_step == 4


def torch_names(run: Path) -> set[str]:
    return set(load_file(run / "model.safetensors"))


def test_a_stale_cache_is_refused_by_what_differs(cache, small_json, rooms, tmp_path):
    def refused(match: str, **options: object) -> None:
        with pytest.raises(StaleCacheError, match=match):
            train.main(argv(small_json, rooms, cache, tmp_path / "run", **options))

    refused(r"stale: encoder is \"\w+\" there, \"\w+\" here\. Write another", seed=4)
    refused(r"num_views is 3 there, 2 here; view_sets is 2 there, 1 here", num_views=2, view_sets=1)
    refused(r"preprocessing\.size is \{.*56.*28.*; feature_dtype is ", image_size=28, feature_dtype="int8")
    refused(r"view_dropout is 0.0 there, 0.5 here", view_dropout=0.5)
    with pytest.raises(StaleCacheError, match="num_views"):
        features.main(argv(small_json, rooms, cache, tmp_path / "run", num_views=2))
    with pytest.raises(ValueError, match="leave vision out of trainable_parts"):
        train.main([*argv(small_json, rooms, cache, tmp_path / "run"), "--trainable_parts", "vision", "text"])
    copy = tmp_path / "copy"
    shutil.copytree(cache, copy)
    next((copy / "train").iterdir()).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of \d+ sets of views of the split train; run python -m"):
        train.main(argv(small_json, rooms, copy, tmp_path / "run"))
    damaged = sorted((copy / "train").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"cannot be read .*: delete it and run python -m training\.features"):
        read_view_set(damaged)


def test_int8_pooled_and_with_views_dropped(small_json, rooms, tmp_path):
    """28 pixel views pooled 2 x 2: one patch; sets lose views when they are written, alike for all questions."""
    options = {"feature_dtype": "int8", "feature_pooling": 2, "view_dropout": 0.5, "eval_strategy": "no"}
    command = argv(small_json, rooms, tmp_path / "cache", tmp_path / "run", **options)
    features.main(command)
    dataset = CachedSceneDataset(tmp_path / "cache", [rooms], "train", 3)
    stored = examples_of(dataset, (0, 0, 1)) + examples_of(dataset, (0, 0, 2))
    assert len({len(example.frame_ids) for example in stored}) > 1
    assert stored[0].views.features[-1].dtype == torch.int8
    trainer = train.main(command)
    assert trainer.model.config.perceiver_config.feature_pooling == 2
    assert trainer.state.log_history[-2]["loss"] > 0


def test_two_processes_share_the_work(cache, small_json, rooms, tmp_path):
    command = argv(small_json, rooms, tmp_path / "cache", tmp_path / "run", max_train_samples=30)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [*TORCHRUN, "--nproc_per_node", "2", "--standalone", "-m", "training.features", *command],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    made = {path.relative_to(tmp_path / "cache") for path in (tmp_path / "cache").glob("*/*.safetensors")}
    dataset = SceneDataset([rooms], "train", 3, max_samples=30)
    wanted = {view_set.path("", "train") for view_set in wanted_sets(dataset, 2)}
    assert {path for path in made if path.parent.name == "train"} == wanted
    one = next(iter(wanted))
    shared, alone = (read_view_set(folder / one) for folder in (tmp_path / "cache", cache))
    assert shared.frame_ids == alone.frame_ids
    for layer, maps in alone.features.items():
        torch.testing.assert_close(shared.features[layer], maps, atol=2e-2, rtol=2e-2)


def test_int8_keeps_channels_of_any_size():
    features_of_view = torch.randn(2, 50, 8) * torch.tensor([1e-3, 1, 1, 1, 1, 1, 1, 300.0])
    quantized, scale = quantize(features_of_view)
    restored = quantized * scale
    error = (restored - features_of_view).abs().amax(dim=(0, 1)) / features_of_view.abs().amax(dim=(0, 1))
    assert error.max() < 1 / 200


def test_what_cannot_be_written_is_refused(small_json, rooms, tmp_path):
    with pytest.raises(ValueError, match=r"view_sets is 0; wanted at least 1; feature_dtype is int4; wanted one of"):
        features.main(argv(small_json, rooms, tmp_path / "cache", tmp_path, view_sets=0, feature_dtype="int4"))
    with pytest.raises(ValueError, match="feature_cache is not set"):
        features.main(argv(small_json, rooms, None, tmp_path))
    with pytest.raises(FileNotFoundError, match="is no feature cache"):
        train.main(argv(small_json, rooms, tmp_path / "nowhere", tmp_path / "run"))
    parse_arguments(argv(small_json, rooms, tmp_path, tmp_path))
