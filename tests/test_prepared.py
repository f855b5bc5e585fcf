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
from training.assembly import build_model, describe_model
from training.collator import SceneCollator
from training.data import Draw, SceneBatchSampler, SceneDataset
from training.prepare import MARKER, prepare
from training.prepared import PreparedCollator, PreparedScenes, dense_labels
from training.reconstruction import ReconstructionCollator


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


def test_the_next_stage_finds_the_same_arrays(parts, tmp_path):
    config, _, dataset, folder = parts
    model, processor = build_model(config, str(CONFIGS / "tokenizer-tiny"))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    saved = describe_model(str(tmp_path), "")[1]
    assert "auto_map" in saved.image_processor.to_dict(), "else nothing is tested"
    assert prepare(dataset, saved, folder.parent, num_proc=1) == folder


def test_what_a_stage_does_not_read_takes_no_memory(parts):
    config, processor, dataset, folder = parts
    prepared = PreparedScenes(folder)
    assert prepared.has_labels and not prepared.scenes.loaded
    collator = PreparedCollator(prepared, dataset, processor, config.task_names, num_rays=8)
    draws = next(iter(SceneBatchSampler(dataset, samples_per_batch=24, samples_per_scene=8, seed=0)))
    collator(draws)
    assert "pixels" in prepared.scenes.loaded and "depth_mm" not in prepared.scenes.loaded
    ReconstructionCollator(collator, map_scenes=1)(draws)
    assert set(prepared.scenes.loaded) == set(prepared.scenes)
    with pytest.raises(KeyError, match="patch_things"):
        prepared.scenes["patch_things"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")
def test_a_batch_does_not_wait_for_the_gpu(parts):
    config, processor, dataset, folder = parts
    prepared = PreparedScenes(folder, "cuda")
    collator = PreparedCollator(prepared, dataset, processor, config.task_names, geometry_dropout=0.4, num_rays=8)
    draws = next(iter(SceneBatchSampler(dataset, samples_per_batch=24, samples_per_scene=8, seed=0)))
    on_cpu = PreparedCollator(PreparedScenes(folder), dataset, processor, config.task_names, geometry_dropout=0.4)
    expected = on_cpu(draws)
    collator(draws)
    ReconstructionCollator(collator, map_scenes=1)(draws)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = collator(draws)
        ReconstructionCollator(collator, map_scenes=1)(draws)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for key, value in expected.items():
        torch.testing.assert_close(found[key].cpu(), value, atol=2e-5, rtol=1e-5, equal_nan=True, msg=key)


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


def test_the_encoder_learns_each_view_for_itself_too(parts):
    """A view's own boxes are those of a scene that begins with it; depths are those of the patches' points."""
    config, processor, dataset, folder = parts
    prepared = PreparedScenes(folder)
    collator = PreparedCollator(prepared, dataset, processor, config.task_names)
    draws = [Draw(scene, (scene * 16,), None, (0, 0, scene)) for scene in range(3)]
    batch = ReconstructionCollator(collator, map_scenes=1)(draws)
    scene, views = torch.tensor([0, 1, 2]), torch.tensor([collator._views(draw) for draw in draws])
    mask = batch["labels"]["boxes_mask"]
    for view in range(views.shape[1]):
        frames = prepared.scenes["ref_from_world"][scene, views[:, view]]
        wanted = dense_labels(prepared, scene, views, frames)["boxes"][:, view]
        torch.testing.assert_close(batch["labels"]["view_boxes"][:, view], wanted)
        apart = (batch["labels"]["boxes"][:, view] - wanted)[mask[:, view]].abs().amax()
        assert (apart < 1e-6) == (view == 0)
    cameras = prepared.scenes["world_from_cam"][scene[:, None], views]
    first = prepared.scenes["ref_from_world"][scene, views[:, 0]]
    ref_from_cam = (first[:, None] @ cameras)[..., :3, :]
    in_camera = (batch["patch_points"].double() - ref_from_cam[..., None, :3, 3]) @ ref_from_cam[..., :3, :3]
    known = batch["patch_points_mask"]
    torch.testing.assert_close(in_camera[..., 2][known].float(), batch["patch_depth"][known], atol=1e-4, rtol=1e-4)
    assert known.sum() > 50


def test_rays_meet_their_depth(parts):
    """Points at the target depth along the rays are those that were measured, and hidden from the input."""
    config, processor, dataset, folder = parts
    prepared = PreparedScenes(folder)
    options = {"depth_dropout": 0.5, "num_rays": 3 * 16}
    collator = PreparedCollator(prepared, dataset, processor, config.task_names, **options)
    draws = [Draw(scene, (scene * 16,), None, (0, 0, n)) for n, scene in enumerate([0, 1, 2] * 3)]
    batch = collator(draws)
    targets, has_depth = batch["ray_targets"], batch["patch_points_mask"].flatten(1).any(1)
    assert 0 < has_depth.sum() < len(draws)
    assert not targets["depth_mask"][has_depth].any()
    shown = PreparedCollator(prepared, dataset, processor, config.task_names)(draws)  # the same views, depth shown
    errors = []
    for s in (~has_depth).nonzero()[:, 0].tolist():
        direction, moment = targets["rays"][s].split(3, dim=-1)
        origins = shown["ref_from_cam"][s, :, :3, 3]
        offset = torch.linalg.cross(origins[:, None].expand(-1, len(direction), -1), direction[None]) - moment
        origin = origins[offset.norm(dim=-1).argmin(0)]  # the camera that the ray comes from
        found = origin + targets["depth"][s][:, None] * direction
        measured = shown["patch_points"][s].flatten(0, 1)[shown["patch_points_mask"][s].flatten()]
        distance = torch.cdist(found, measured).amin(1) / targets["depth"][s]
        errors.append(distance[targets["depth_mask"][s]])
        torch.testing.assert_close(targets["points"][s][targets["points_mask"][s]], measured, atol=2e-3, rtol=0)
        assert (targets["classes"][s] >= 0).sum() > 10
    assert float(torch.cat(errors).quantile(0.9)) < 0.04


def test_several_processes_write_what_one_does(parts, tmp_path, monkeypatch):
    _, processor, dataset, folder = parts
    monkeypatch.setattr("training.prepare._SCENES_AT_ONCE", 1)
    again = prepare(dataset, processor, tmp_path, num_proc=2)
    assert {path.name for path in again.iterdir()} == {path.name for path in folder.iterdir()}
    for path in folder.glob("*.npy"):
        np.testing.assert_array_equal(np.load(again / path.name), np.load(path), err_msg=path.name)
    assert (again / MARKER).read_text() == (folder / MARKER).read_text()


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


def test_labels_of_another_scene_are_refused(parts):
    _, _, dataset, _ = parts
    tables = dataset.label_tables
    try:
        dataset.label_tables = [tables[0].select([1, 0, 2]).with_format("arrow")]
        with pytest.raises(ValueError, match=r"row 0 of labels is of scene .*000001.* build the dataset again"):
            dataset.read_labels(0)
        dataset.read_labels(2)
    finally:
        dataset.label_tables = tables
