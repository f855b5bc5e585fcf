"""What the encoder and its heads do beside the numbers: masks, precision, compilation, training, errors."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from accelerate import cpu_offload
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_vggt_qwen3 import modeling_vggt
from modeling_vggt_qwen3.configuration_vggt_qwen3 import VggtConfig
from modeling_vggt_qwen3.constants_vggt_qwen3 import grid_rotary_tables, resize_matrix
from modeling_vggt_qwen3.modeling_vggt import VggtModel
from modeling_vggt_qwen3.modeling_vggt_heads import VggtForReconstruction
from tests.vggt import fake_views, randomize, relative_error, small_config, small_reconstruction

ALL_LAYERS = [-1, 0, 1, 2]


@pytest.fixture(scope="module")
def encoder() -> VggtModel:
    return randomize(VggtModel(small_config()))


@pytest.fixture
def fresh() -> VggtModel:
    return randomize(VggtModel(small_config()))


def encode(model: VggtModel, pixels: torch.Tensor, **options) -> dict[int, torch.Tensor]:
    with torch.no_grad():
        return model(pixels, feature_layers=ALL_LAYERS, **options).feature_maps


def test_keeps_what_was_asked_for(encoder):
    pixels = fake_views(2, 3)
    outputs = encoder(pixels, feature_layers=(2, -1))
    assert sorted(outputs.feature_maps) == [-1, 2]
    assert outputs.feature_maps[-1].shape == (2, 3, 12, 48)
    assert outputs.feature_maps[2].shape == (2, 3, 17, 96)
    assert outputs.last_hidden_state is outputs.feature_maps[2]
    assert sorted(encoder(pixels, feature_layers="all").feature_maps) == [0, 1, 2]
    assert encoder(pixels).feature_maps == {}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_views_change_nothing(attention):
    model = small_reconstruction()
    model.set_attn_implementation(attention)
    pixels = fake_views(2, 4)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    with torch.no_grad():
        padded = model(pixels, mask, "all")
        pixels[1, 2:] = 255 - pixels[1, 2:]
        repainted = model(pixels, mask, "all")
        cropped = model(pixels[1:, :2], feature_layers="all")
        unmasked = model(pixels[:1], feature_layers="all")
    for layer, tokens in padded.feature_maps.items():
        assert torch.equal(tokens[1, :2], repainted.feature_maps[layer][1, :2])
        torch.testing.assert_close(tokens[1, :2], cropped.feature_maps[layer][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(tokens[0], unmasked.feature_maps[layer][0], atol=1e-5, rtol=1e-5)
    for name in ("pose_enc", "depth", "world_points"):
        torch.testing.assert_close(padded[name][1, :2], cropped[name][0], atol=1e-5, rtol=1e-5)
        assert padded[name].isfinite().all()


def test_every_view_is_seen_by_every_other(encoder):
    pixels = fake_views(1, 3)
    before = encode(encoder, pixels)
    pixels[0, 2, :, :14, :14] = 255 - pixels[0, 2, :, :14, :14]
    after = encode(encoder, pixels)
    assert torch.equal(before[-1][0, :2], after[-1][0, :2])
    assert not torch.equal(before[2][0, 0], after[2][0, 0])


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_stays_close(encoder, dtype, limit, autocast):
    pixels = fake_views()
    exact = encode(encoder, pixels)
    model = encoder if autocast else copy.deepcopy(encoder).to(dtype)
    with torch.autocast("cpu", dtype) if autocast else nullcontext():
        found = encode(model, pixels)
    for layer, tokens in found.items():
        assert tokens.dtype == (torch.float32 if autocast else dtype)
        assert 0 < relative_error(tokens, exact[layer]) < limit


def test_stream_keeps_its_precision_in_bfloat16(encoder):
    """Against exact arithmetic on the same rounded weights; a bfloat16 stream would err by over 6e-3."""
    model = copy.deepcopy(encoder).bfloat16()
    found, wanted = encode(model, fake_views()), encode(copy.deepcopy(model).float(), fake_views())
    assert max(relative_error(found[layer], wanted[layer]) for layer in ALL_LAYERS) < 4.5e-3


def test_rotary_angles_stay_exact_in_half_precision(encoder):
    """At column 37 a bfloat16 angle would be off by up to 0.06 rad, and q and k with it."""
    size, dim = 37, 16
    exact = grid_rotary_tables(1, size, 0, dim, 100.0, torch.device("cpu"))
    column = torch.arange(1, size + 1, dtype=torch.float64)
    torch.testing.assert_close(exact[0][:, 1, 0].double(), column.cos(), atol=1e-5, rtol=0)
    model = copy.deepcopy(encoder).bfloat16()
    seen = []
    handle = model.frame_blocks[0].attention.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    encode(model, fake_views(1, 1, 14, 14 * size))
    handle.remove()
    assert seen[0][0].dtype == torch.float32
    torch.testing.assert_close(seen[0][0][5:], exact[0], atol=0, rtol=0)


def test_constants_are_made_once_for_each_resolution(encoder, monkeypatch):
    made = []
    interpolate = modeling_vggt.F.interpolate
    monkeypatch.setattr(modeling_vggt.F, "interpolate", lambda *a, **k: made.append(1) or interpolate(*a, **k))
    for _ in range(3):
        encode(encoder, fake_views(1, 1, 28, 84))
    assert len(made) <= 2
    with torch.inference_mode():
        table = resize_matrix(7, 9, torch.device("cpu"))
    assert not table.is_inference()
    assert table is resize_matrix(7, 9, torch.device("cpu"))


def test_position_table_is_resized_as_an_image(encoder):
    patch_embed = encoder.patch_embed
    grid = patch_embed.position_embeddings[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    wanted = nn.functional.interpolate(grid, size=(2, 7), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    found = patch_embed.resized_positions(2, 7)
    torch.testing.assert_close(found[:, 1:], wanted, atol=1e-6, rtol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(patch_embed.resized_positions(2, 7), found)


def test_large_inputs_go_piece_by_piece_to_the_same_end(encoder, monkeypatch):
    pixels = fake_views(2, 5)
    whole = encode(encoder, pixels)
    monkeypatch.setattr(modeling_vggt, "CHUNK_TOKENS", 40)
    pieces = encode(encoder, pixels)
    with_graph = encoder(pixels, feature_layers=ALL_LAYERS).feature_maps
    for layer, tokens in whole.items():
        torch.testing.assert_close(pieces[layer], tokens, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(with_graph[layer], tokens, atol=1e-5, rtol=1e-5)


def test_the_number_of_pieces_is_compiled_for_three_sizes(monkeypatch):
    monkeypatch.setattr(modeling_vggt, "CHUNK_TOKENS", 40)
    mlp = modeling_vggt.VggtMLP(8, 16)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(mlp, backend="eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for count in (30, 39, 41, 80, 63, 81, 200, 333):
            tokens = torch.randn(1, count, 8)
            torch.testing.assert_close(compiled(tokens), mlp.fc2(nn.functional.gelu(mlp.fc1(tokens))))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3


def test_all_parameters_learn_also_with_gradient_checkpointing(fresh):
    pixels = fake_views(1, 2)
    gradients, runs = [], []
    fresh.frame_blocks[1].mlp.register_forward_hook(lambda *_: runs.append(1))
    for checkpointing in (False, True):
        fresh.zero_grad()
        fresh.train()
        if checkpointing:
            fresh.gradient_checkpointing_enable()
        runs.clear()
        fresh(pixels).last_hidden_state.square().mean().backward()
        assert len(runs) == 1 + checkpointing
        gradients.append({name: p.grad.clone() for name, p in fresh.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_training_after_inference_mode(fresh):
    pixels = fake_views(1, 1, 28, 98)
    with torch.inference_mode():
        fresh(pixels)
    fresh(pixels).last_hidden_state.sum().backward()


def test_compiles_without_graph_breaks_for_any_number_of_views():
    model = randomize(VggtModel(small_config(num_hidden_layers=1, num_patch_embed_layers=1)))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for num_views in (2, 3, 5):
        _assert_same(compiled, model, num_views)
        if num_views == 3:
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_three_kinds_of_blocks_are_compiled_once_each():
    torch._dynamo.reset()
    model = randomize(VggtModel(small_config())).compile_blocks(backend="eager")
    stats, counted = torch._dynamo.utils.counters["stats"], []
    with torch.no_grad():
        for num_views in (5, 3, 7):
            before = stats["unique_graphs"]
            model(torch.rand(1, num_views, 3, 56, 56))
            counted.append(stats["unique_graphs"] - before)
    assert counted == [3, 0, 0]


@pytest.mark.slow
def test_compiled_blocks_give_the_same_numbers_for_any_number_of_views():
    """The switch for speed, through the whole compiler."""
    torch._dynamo.reset()
    model = randomize(VggtModel(small_config()))
    compiled = copy.deepcopy(model).compile_blocks()
    with torch.no_grad():
        for num_views in (2, 3):
            _assert_same(compiled, model, num_views)
    compiled(fake_views()).last_hidden_state.sum().backward()


def _assert_same(compiled: nn.Module, model: VggtModel, num_views: int) -> None:
    pixels = fake_views(1, num_views)
    found, wanted = compiled(pixels, feature_layers=[-1, 0]), model(pixels, feature_layers=[-1, 0])
    for layer in (-1, 0):
        torch.testing.assert_close(found.feature_maps[layer], wanted.feature_maps[layer], atol=1e-5, rtol=1e-5)


def test_meta_initialisation_at_full_size():
    with torch.device("meta"):
        model = VggtForReconstruction(VggtConfig())
    state = model.state_dict()
    assert (
        sum(tensor.numel() for tensor in state.values()) == 1_256_537_516 - 65_941_396 - 1024
    )  # track head, mask token
    assert len(state) == 1797 - 394 - 1
    assert not list(model.buffers())


def test_runs_on_meta_to_tell_its_shapes():
    with torch.device("meta"):
        found = VggtForReconstruction(small_config())(torch.rand(2, 3, 3, 42, 56))
    assert found.depth.shape == (2, 3, 42, 56, 1)
    assert found.depth.device.type == "meta"


def test_state_survives_casts_copies_and_moves(fresh):
    pixels = fake_views()
    wanted = encode(fresh, pixels)[2]
    assert torch.equal(encode(copy.deepcopy(fresh), pixels)[2], wanted)
    assert torch.equal(encode(fresh.double().float(), pixels)[2], wanted)
    rounded = copy.deepcopy(fresh).bfloat16().float()
    assert relative_error(encode(rounded, pixels)[2], wanted) < 1e-2
    with torch.device("meta"):
        empty = VggtModel(small_config())
    empty = empty.to_empty(device="cpu").eval()
    empty.load_state_dict(fresh.state_dict())
    assert torch.equal(encode(empty, pixels)[2], wanted)


def test_fresh_weights():
    torch.manual_seed(0)
    model = VggtForReconstruction(small_config())
    assert torch.all(model.vggt.frame_blocks[0].attention_scale == 0.01)
    assert torch.all(model.vggt.patch_embed.blocks[0].mlp_scale == 1)
    assert 0 < model.vggt.camera_token.abs().max() < 1e-4
    assert torch.all(model.camera_head.empty_pose == 0)
    assert model.vggt.patch_embed.position_embeddings.std() > 0.01


def test_flash_attention_is_offered(encoder):
    assert encoder._supports_flash_attn
    mask = torch.tensor([[True, False]])
    try:
        encoder.config._attn_implementation_internal = "flash_attention_2"
        assert encoder.make_key_mask(mask, 3).tolist() == [[True] * 3 + [False] * 3]
    finally:
        encoder.config._attn_implementation_internal = "sdpa"
    assert encoder.make_key_mask(mask, 3).shape == (1, 1, 1, 6)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(2, 3, 28, 28), r"\(2, 3, 28, 28\); wanted \[scenes, views, 3, height, width\]"),
        (torch.zeros(1, 2, 4, 28, 28), "wanted .scenes, views, 3"),
        (torch.zeros(1, 2, 3, 28, 30), "28 x 30 pixels; both sides must be multiples of the patch size 14"),
        (torch.zeros(1, 2, 3, 28, 28, dtype=torch.int64), "torch.int64; wanted uint8, or float"),
    ],
)
def test_refuses_other_images(encoder, pixels, message):
    with pytest.raises(ValueError, match=message):
        encoder(pixels)


def test_refuses_layers_it_does_not_have(encoder):
    with pytest.raises(ValueError, match=r"names \[3, -2\], but the encoder has layers 0 to 2"):
        encoder(fake_views(), feature_layers=[0, 3, -2])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dpt_layers": (0, 1, 2, 3)}, r"dpt_layers = \[0, 1, 2, 3\] must lie between 0 and 2"),
        ({"dpt_layers": (0, 1)}, "four each"),
        ({"dpt_features": 12}, "half of dpt_features must be multiples of 4"),
        ({"camera_head_attention_heads": 5}, "96 must be a multiple of the camera head's 5 heads"),
    ],
)
def test_heads_refuse_configurations_that_do_not_fit(fields, message):
    with pytest.raises(ValueError, match=message):
        VggtForReconstruction(small_config(**fields))


def test_hooks_of_blocks_may_keep_what_they_are_given(fresh):
    pixels = fake_views()
    wanted = encode(fresh, pixels)
    kept = []
    blocks = [*fresh.patch_embed.blocks, *fresh.frame_blocks, *fresh.global_blocks]
    for block in blocks:
        block.register_forward_hook(
            lambda _, inputs, output: kept.append((inputs[0], output, inputs[0] + 0, output + 0))
        )
    found = encode(fresh, pixels)
    assert len(kept) == len(blocks)
    for given, made, given_then, made_then in kept:
        assert torch.equal(given, given_then)
        assert torch.equal(made, made_then)
    assert all(torch.equal(found[layer], wanted[layer]) for layer in wanted)


@pytest.mark.parametrize("gradients", [False, True])
def test_the_stream_is_overwritten_where_no_gradient_needs_it(gradients, fresh):
    class Counts(TorchDispatchMode):
        in_place = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.in_place += func is torch.ops.aten.addcmul_.default
            return func(*args, **(kwargs or {}))

    count = 2 * sum(map(len, (fresh.patch_embed.blocks, fresh.frame_blocks, fresh.global_blocks)))
    with torch.set_grad_enabled(gradients), Counts() as counts:
        fresh(fake_views())
    assert counts.in_place == (0 if gradients else count)


def test_an_offloaded_encoder_gives_the_same_numbers(fresh):
    pixels = fake_views()
    wanted = encode(fresh, pixels)
    offloaded = cpu_offload(fresh, execution_device=torch.device("cpu"))
    assert offloaded.patch_embed.cls_token.device.type == "meta"
    found = encode(offloaded, pixels)
    assert all(torch.equal(found[layer], wanted[layer]) for layer in wanted)


@pytest.mark.parametrize(
    ("mode", "backend"),
    [(torch.no_grad, "eager"), pytest.param(torch.inference_mode, "aot_eager", marks=pytest.mark.slow)],
)
def test_compiles_whole_where_the_stream_is_overwritten(mode, backend, fresh):
    compiled = torch.compile(fresh, fullgraph=True, dynamic=True, backend=backend)
    for num_views in (3, 2):
        pixels = fake_views(1, num_views)
        with mode():
            found = compiled(pixels, feature_layers=[-1, 1]).feature_maps
            wanted = fresh(pixels, feature_layers=[-1, 1]).feature_maps
        for layer in wanted:
            torch.testing.assert_close(found[layer], wanted[layer], atol=1e-5, rtol=1e-5)
