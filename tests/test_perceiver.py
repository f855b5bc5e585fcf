"""Where latents begin: patches that differ, never padding, the same whatever a scene is batched with."""

from __future__ import annotations

import pytest
import torch

from modeling_vggt_qwen3.configuration_vggt_qwen3 import PerceiverConfig
from modeling_vggt_qwen3.modeling_perceiver import spread_patches, take_patches
from tests.fake import GEOMETRY, fake_batch, small_config, small_model


def spread_model():
    """The small model, with latents that begin at patches."""
    return small_model(perceiver_config={**small_config().perceiver_config.to_dict(), "latent_start": "spread"})


def test_each_kind_of_patch_is_chosen_before_any_twice():
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(2, 6, 32, generator=generator)
    kind = torch.randint(6, (2, 200), generator=generator)
    kind[:, :6] = torch.arange(6)
    kind[:, 6:150] = 2  # as walls and floors fill most of a photograph
    features = take_patches(kinds, kind) + 0.1 * torch.randn(2, 200, 32, generator=generator)
    chosen = spread_patches(features, None, 6)
    assert (kind.gather(1, chosen).sort(dim=1).values == torch.arange(6)).all()
    brighter = features * torch.rand(2, 200, 1, generator=generator).add(0.5)
    assert torch.equal(spread_patches(brighter, None, 6), chosen), "size is no difference"


def test_near_ties_move_no_latent_far():
    """Rounding changes in which order patches are chosen; their own order stays."""
    kinds = torch.randn(4, 12, 16, generator=torch.Generator().manual_seed(0))
    patches = kinds.repeat_interleave(25, dim=1)
    patches = patches + 1e-3 * torch.randn(patches.shape, generator=torch.Generator().manual_seed(1))
    exact, rounded = spread_patches(patches, None, 12), spread_patches(patches.bfloat16(), None, 12)
    assert not torch.equal(exact, rounded)
    assert torch.equal(exact // 25, rounded // 25), "the same kinds in the same places"


def test_padding_is_never_chosen():
    features = torch.randn(3, 40, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(3, 40, generator=torch.Generator().manual_seed(1)) > 0.3
    chosen = spread_patches(features, mask, 12)
    assert mask.gather(1, chosen).all()
    assert all(len(row.unique()) == 12 for row in chosen)
    few = torch.arange(40).sub(7).abs().lt(3).expand(3, 40)  # five patches, 5 to 9
    assert torch.equal(spread_patches(features, few, 12).sort(dim=1).values.unique(), torch.arange(5, 10))


def test_latents_begin_at_patches_of_their_own_scene():
    model = spread_model()
    batch = fake_batch(model.config, num_scenes=2, num_views=3)
    began = []
    model.model.resampler.layers[0].register_forward_pre_hook(lambda _, inputs: began.append(inputs))
    origins = model.model(**batch).latent_origins
    features = model.model.encode_views(batch["pixel_values"], None)
    assert torch.equal(origins, spread_patches(features[1].flatten(1, 2), None, 4))
    latents, context, _ = began[0]
    expected = model.model.resampler.latents + take_patches(context, origins)
    torch.testing.assert_close(latents, expected)
    assert small_model().model(**batch).latent_origins is None


def test_padded_views_change_nothing():
    model = spread_model()
    batch = fake_batch(model.config, num_scenes=4, num_views=2)
    scene = {key: batch[key] for key in ("pixel_values", *GEOMETRY)}
    alone = model.get_image_features(**scene)
    whole = fake_batch(model.config, num_scenes=4, num_views=3, seed=1)  # of which the third view is padding
    padded = {key: torch.cat((scene[key], whole[key][:, 2:]), dim=1) for key in scene if key != "geometry_mask"}
    padded["geometry_mask"] = scene["geometry_mask"]
    shown = model.get_image_features(**padded)
    assert (shown.latent_origins >= 12).any(), "as views they would be chosen"
    beside = model.get_image_features(**padded, view_mask=torch.tensor([[True, True, False]]).repeat(4, 1))
    assert torch.equal(beside.latent_origins, alone.latent_origins)
    torch.testing.assert_close(beside.pooler_output[:, -4:], alone.pooler_output[:, -4:], atol=1e-5, rtol=1e-4)


def test_an_unknown_start_is_refused():
    with pytest.raises(ValueError, match="latent_start is 'random'; wanted one of learned, spread"):
        PerceiverConfig(latent_start="random")
