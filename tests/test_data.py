"""Draws and batches: every sample once, the same for any number of processes, views as promised."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets_scripts.schema import NotADatasetError
from training.arguments import CONFIGS
from training.assembly import load_model
from training.collator import SceneCollator, drop_views
from training.data import SceneBatchSampler, SceneDataset, draw_views


@pytest.fixture(scope="module")
def dataset(rooms):
    return SceneDataset([rooms], "train", num_views=3)


def sampler(dataset, **options):
    return SceneBatchSampler(dataset, **{"samples_per_batch": 16, "samples_per_scene": 4, "seed": 0, **options})


def flatten(batches):
    return [draw for batch in batches for draw in batch]


def test_an_epoch_holds_every_sample(dataset):
    drawn = Counter(row for draw in flatten(sampler(dataset)) for row in draw.samples)
    assert set(drawn) == set(range(len(dataset)))
    assert sum(drawn.values()) - len(drawn) < 16, "only the last batch may repeat"


def test_ranks_share_the_epoch_of_one_process(dataset):
    alone = list(sampler(dataset))
    ranks = [list(sampler(dataset, rank=rank, world_size=2)) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == -(-len(alone) // 2)
    dealt = [batch for pair in zip(*ranks) for batch in pair]
    assert dealt[: len(alone)] == alone


def test_epochs_differ_and_repeat(dataset):
    first, again = sampler(dataset), sampler(dataset)
    assert list(first) == list(again)
    again.set_epoch(1)
    assert list(first) != list(again)


def test_draws_keep_to_one_scene_and_one_anchor(dataset):
    for draw in flatten(sampler(dataset)):
        example = dataset[draw]
        assert {sample["scene_id"] for sample in example.samples} == {example.scene_id}
        assert {sample["anchor_frame_id"] for sample in example.samples} <= {None, draw.anchor}
        assert draw.anchor in (None, example.frame_ids[0])
        assert len(example.images) == len(example.world_from_cam) == len(example.depth) == 3


def test_a_scene_is_encoded_no_more_often_than_its_questions_need(dataset):
    questions = Counter(scene for _, _, scene, _, _ in dataset.samples)
    draws = Counter(draw.scene for draw in flatten(sampler(dataset, samples_per_batch=8)))
    for scene, count in questions.items():
        anchors = {anchor for _, _, s, _, anchor in dataset.samples if s == scene} - {None}
        assert draws[scene] <= max(-(-count // 4), len(anchors)) + 1  # the last batch may repeat one


def test_the_mix_of_tasks_is_kept(dataset):
    mixed = sampler(dataset, task_mix={"rooms_qa": 0.3, "rooms_actions": 0.7}, samples_per_batch=4)
    tasks = Counter(dataset.sample(draw.samples[0])["task"] for draw in flatten(mixed))
    assert tasks["rooms_actions"] / sum(tasks.values()) == pytest.approx(0.7, abs=0.02)
    with pytest.raises(ValueError, match=r"task_mix names \['rooms_qa'\]"):
        sampler(dataset, task_mix={"rooms_qa": 1.0})
    with pytest.raises(ValueError, match="sum to 1"):
        sampler(dataset, task_mix={"rooms_qa": 0.3, "rooms_actions": 0.3})


def test_views_follow_the_seed_and_the_anchor():
    frames = [f"f{i}" for i in range(8)]
    assert draw_views(frames, 4, None, None) == [0, 1, 2, 3]
    assert draw_views(frames, 4, "f5", None) == [5, 0, 1, 2]
    seen = {tuple(draw_views(frames, 4, None, (0, 0, index))) for index in range(50)}
    assert len(seen) > 40
    assert all(len(set(views)) == 4 for views in seen)
    assert draw_views(frames, 4, None, (0, 0, 7)) == draw_views(frames, 4, None, (0, 0, 7))
    assert all(draw_views(frames, 4, "f5", (0, 0, index))[0] == 5 for index in range(20))
    with pytest.raises(ValueError, match="anchor frame f9"):
        draw_views(frames, 4, "f9", None)


def test_only_drawn_views_are_decoded(dataset, monkeypatch):
    from training import data

    decoded = []
    original = data._decode_image
    monkeypatch.setattr(data, "_decode_image", lambda stored, where: decoded.append(where) or original(stored, where))
    dataset[next(iter(sampler(dataset)))[0]]
    assert len(decoded) == 3


def test_depth_and_cameras_have_their_units(dataset):
    example = dataset[dataset.fixed_draws(4)[0]]
    depth = np.concatenate([np.ravel(view) for view in example.depth])
    assert 0.2 < np.median(depth[depth > 0]) < 10
    assert example.depth[0].shape == example.images[0].size[::-1]


def test_wrong_folders_are_refused(rooms, tmp_path):
    with pytest.raises(NotADatasetError, match=r"no manifest\.json"):
        SceneDataset([tmp_path], "train", 3)
    with pytest.raises(ValueError, match=r"has no samples/nowhere; it has \['test', 'train', 'val'\]"):
        SceneDataset([rooms], "nowhere", 3)
    with pytest.raises(ValueError, match="the tasks there are"):
        SceneDataset([rooms], "train", 3, tasks=["scanqa"])
    shutil.copytree(rooms, tmp_path / "copy")
    (tmp_path / "copy" / "manifest.json").unlink()
    with pytest.raises(NotADatasetError):
        SceneDataset([tmp_path / "copy"], "train", 3)


def test_a_view_that_is_left_out_takes_its_geometry_token_along(rooms, small_json):
    model, processor = load_model(small_json, str(CONFIGS / "tokenizer-tiny"))
    dataset = SceneDataset([rooms], "train", num_views=6)
    draws = flatten(sampler(dataset))[:8]
    collator = SceneCollator(processor, model.config.task_names, view_dropout=0.5)
    batch = collator([dataset[draw] for draw in draws])
    again = collator([dataset[draw] for draw in draws])
    assert all(torch.equal(batch[key], again[key]) for key in batch if key != "world_from_ref"), "the draw decides"
    kept = batch["view_mask"].sum(1)
    assert kept.min() >= 1 and kept.max() <= 6 and len(set(kept.tolist())) > 1
    tokens = (batch["input_ids"] == model.config.image_token_id).sum(1)
    assert torch.equal(tokens, kept[batch["scene_index"]] + processor.num_latents)
    assert model(**batch).loss.isfinite(), "model and processor count alike"
    for draw, views in zip(draws, kept.tolist()):
        example = dataset[draw]
        dropped = drop_views(example, 0.5)
        assert len(dropped.frame_ids) == views and dropped.frame_ids[0] == example.frame_ids[0], "view 0 stays"
        assert np.array_equal(
            dropped.world_from_cam, example.world_from_cam[[example.frame_ids.index(f) for f in dropped.frame_ids]]
        )
    fixed = dataset[replace(draws[0], seed=None)]
    assert drop_views(fixed, 0.5) is fixed, "evaluation loses none"
    with pytest.raises(ValueError, match=r"view_dropout is 1\.5; a chance lies between 0 and 1"):
        SceneCollator(processor, model.config.task_names, view_dropout=1.5)
