"""A prepared dataset gives the collator's batches, and dense labels that agree with the actions' own definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datasets_scripts.build import build
from datasets_scripts.rooms.source import RoomsSource
from processing.action_vggt_qwen3 import action_from_targets
from processing.geometry_vggt_qwen3 import ref_from_world
from tests.fake import small_config
from training.arguments import CONFIGS
from training.assembly import build_model
from training.collator import SceneCollator
from training.data import Draw, SceneBatchSampler, SceneDataset
from training.prepare import MARKER, prepare
from training.prepared import PreparedCollator, PreparedScenes, dense_labels


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("labelled")
    source = RoomsSource(scenes=3, heldout=2, views=4, size=56, dense_labels=True)
    build(source, root / "rooms", num_proc=1, progress=False)
    config = small_config()
    config.text_config.vocab_size = 1536
    _, processor = build_model(config, str(CONFIGS / "tokenizer-tiny"))
    dataset = SceneDataset([root / "rooms"], "train", num_views=3)
    folder = prepare(dataset, processor, root / "cache", num_proc=1)
    return config, processor, dataset, folder


@pytest.mark.parametrize("any_answer", [True, False])
def test_batches_equal_those_of_the_collator(parts, any_answer):
    config, processor, dataset, folder = parts
    options = {"geometry_dropout": 0.4, "depth_dropout": 0.4, "any_answer": any_answer}
    slow = SceneCollator(processor, config.task_names, pack=True, **options)
    fast = PreparedCollator(PreparedScenes(folder), dataset, processor, config.task_names, **options)
    for epoch in range(3):
        sampler = SceneBatchSampler(dataset, samples_per_batch=24, samples_per_scene=8, seed=epoch)
        for draws in sampler:
            expected, found = slow([dataset[draw] for draw in draws]), fast(draws)
            assert set(found) == set(expected)
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, atol=2e-5, rtol=1e-5, equal_nan=True, msg=key)


def test_boxes_are_those_that_actions_state(parts):
    _, _, dataset, folder = parts
    prepared = PreparedScenes(folder)
    scene, views = torch.tensor([0, 1, 2]), torch.tensor([[2, 0], [1, 3], [0, 1]])
    frames = prepared.scenes["ref_from_world"][scene, views[:, 0]]
    labels = dense_labels(prepared, scene, views, frames)
    compared = 0
    for s in range(3):
        things = dataset.read_labels(s)["things"]
        frame = ref_from_world(prepared.scenes["world_from_cam"][s, views[s, 0]].numpy())
        for view in range(2):
            shown = prepared.scenes["patch_thing"][s, views[s, view]]
            for patch, index in enumerate(shown.tolist()):
                assert bool(labels["boxes_mask"][s, view, patch]) == bool(index and things[index - 1]["kind"])
                if labels["boxes_mask"][s, view, patch]:
                    target = {**things[index - 1], "axes": np.reshape(things[index - 1]["axes"], (3, 3))}
                    action = action_from_targets("place_anchor", [target], frame)
                    wanted = [*action["center"], *action["extent"], *action["normal"][:2]]
                    np.testing.assert_allclose(labels["boxes"][s, view, patch], wanted, atol=1e-4)
                    compared += 1
    assert compared > 50


def test_rays_meet_their_depth(parts):
    """Points at the target depth along the target rays are the points of depth; only hidden ones are asked for."""
    config, processor, dataset, folder = parts
    collator = PreparedCollator(
        PreparedScenes(folder), dataset, processor, config.task_names, depth_dropout=0.5, num_rays=16
    )
    draws = [Draw(scene, (scene * 16,), None, (0, 0, n)) for n, scene in enumerate([0, 1, 2] * 3)]
    batch = collator(draws)
    targets = batch["ray_targets"]
    has_depth = batch["patch_points_mask"].flatten(1).any(1)
    assert 0 < has_depth.sum() < len(draws)
    assert not targets["depth_mask"][has_depth].any() and targets["depth_mask"][~has_depth].any()
    assert targets["rays"].shape == (9, 16, 6) and targets["boxes"].shape == (9, 16, 8)


def test_an_interrupted_preparation_does_not_count(parts, tmp_path):
    _, processor, dataset, folder = parts
    again = prepare(dataset, processor, tmp_path, num_proc=1)
    assert again.name == folder.name
    before = (again / MARKER).stat().st_mtime_ns
    assert prepare(dataset, processor, tmp_path).joinpath(MARKER).stat().st_mtime_ns == before
    (again / MARKER).unlink()
    (again / "pixels.npy").write_bytes(b"half")
    prepare(dataset, processor, tmp_path, num_proc=1)
    np.testing.assert_array_equal(np.load(again / "pixels.npy"), np.load(folder / "pixels.npy"))
