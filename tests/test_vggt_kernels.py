"""Kernels of the encoder give the numbers of its plain code.

On a machine with a GPU: `pytest tests/test_vggt_kernels.py`.
"""

from __future__ import annotations

import copy
import importlib
import sys

import pytest
import torch

from modeling_vggt_qwen3 import kernels_vggt_qwen3 as kernels
from modeling_vggt_qwen3 import modeling_vggt
from modeling_vggt_qwen3.constants_vggt_qwen3 import apply_rotary, grid_rotary_tables
from modeling_vggt_qwen3.modeling_vggt import VggtLayerNorm, VggtModel
from tests.vggt import fake_views, randomize, relative_error, small_config

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
FLASH_3 = """
import torch
calls = []
def flash_attn_func(query, key, value, softmax_scale):
    calls.append(tuple(query.shape))
    heads = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(*heads, scale=softmax_scale).transpose(1, 2), None
"""


@pytest.fixture
def flash_3(tmp_path, monkeypatch):
    """A package that takes the place of FlashAttention-3, which needs a GPU of one kind."""
    (tmp_path / "flash_attn_interface.py").write_text(FLASH_3)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(kernels, "_flash_3", None)
    yield importlib.import_module("flash_attn_interface")
    sys.modules.pop("flash_attn_interface")


def test_flash_3_takes_calls_without_mask_in_half_precision(flash_3):
    model = randomize(VggtModel(small_config())).bfloat16()
    pixels = fake_views(1, 3)
    mask = torch.tensor([[True, True, False]])
    with torch.no_grad():
        wanted, padded = (model(pixels, m).last_hidden_state for m in (None, mask))
        model.set_attn_implementation("fa3")
        assert torch.equal(model(pixels).last_hidden_state, wanted)
        assert set(flash_3.calls) == {(3, 17, 3, 16), (1, 51, 3, 16)}
        flash_3.calls.clear()
        assert torch.equal(model(pixels, mask).last_hidden_state, padded)
        assert set(flash_3.calls) == {(3, 17, 3, 16)}
        flash_3.calls.clear()
        model.float()(pixels)
    model.bfloat16()(pixels).last_hidden_state.sum().backward()
    assert flash_3.calls == []


def test_another_copy_of_the_code_does_not_take_it_over(flash_3):
    """Remote code is imported once more for each repository, and registers its own attention."""
    kernels.AttentionInterface.register("fa3", lambda *args, **kwargs: pytest.fail("the other copy was called"))
    model = randomize(VggtModel(small_config())).bfloat16()
    model.set_attn_implementation("fa3")
    with torch.no_grad():
        model(fake_views(1, 2))
    assert flash_3.calls


def test_flash_3_must_be_installed(monkeypatch):
    monkeypatch.setattr(kernels, "_flash_3", None)
    monkeypatch.setattr(kernels, "FLASH_3_MODULES", ("no_such_package",))
    model = VggtModel(small_config())
    with pytest.raises(ImportError, match="install the package flash_attn_3, or fa3-fwd"):
        model.set_attn_implementation("fa3")
    with pytest.raises(ImportError, match="install the package flash_attn_3, or fa3-fwd"):
        VggtModel._from_config(small_config(), attn_implementation="fa3")
    model(fake_views())
    model.config._attn_implementation = "fa3"  # as a configuration may say
    with pytest.raises(ImportError, match="install the package flash_attn_3, or fa3-fwd"):
        model(fake_views())


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "head_dim"), [(16, 64), (4, 32)])
def test_turns_q_and_k_in_place(dtype, heads, head_dim):
    torch.manual_seed(0)
    rotary = grid_rotary_tables(5, 7, 5, head_dim, 100.0, torch.device("cuda"))
    norms = [VggtLayerNorm(head_dim, device="cuda", dtype=dtype) for _ in range(2)]
    for norm in norms:
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    before = torch.randn(2, 3 * 40, 3, heads, head_dim, device="cuda", dtype=dtype)
    after = before.clone()
    with torch.no_grad():
        assert kernels.turns(after)
        kernels.norm_and_turn_(after, *norms, rotary)
        for part, norm in enumerate(norms):
            views = before[:, :, part].unflatten(1, (3, 40))
            wanted = apply_rotary(norm(views, torch.float32), rotary).flatten(1, 2)
            limits = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-2, "rtol": 1e-2}
            torch.testing.assert_close(after[:, :, part].float(), wanted, **limits)
    assert torch.equal(after[:, :, 2], before[:, :, 2])


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_encoder_with_kernels_is_that_without(dtype, compiled, monkeypatch):
    config = small_config(hidden_size=256, num_attention_heads=4, num_patch_embed_attention_heads=4)
    exact = randomize(VggtModel(config)).to("cuda")
    pixels = [fake_views(1, num_views).cuda() for num_views in (1, 3)]
    model = copy.deepcopy(exact).to(dtype).set_fused_rotary()
    calls = []
    turn = kernels.norm_and_turn_
    monkeypatch.setattr(modeling_vggt, "norm_and_turn_", lambda *a: calls.append(1) or turn(*a))
    with torch.no_grad():
        found = [model(images).last_hidden_state for images in pixels]
        assert len(calls) == len(pixels) * 2 * config.num_hidden_layers
        monkeypatch.undo()
        if compiled:
            torch._dynamo.reset()
            model.compile_blocks()
            found = [model(images).last_hidden_state for images in pixels]
        monkeypatch.setattr(modeling_vggt, "turns", lambda _: False)
        plain = copy.deepcopy(model)
        for images, tokens in zip(pixels, found):
            limit = 1e-5 if dtype == torch.float32 else 6e-3
            assert relative_error(tokens.float(), plain(images).last_hidden_state.float()) < limit
            assert relative_error(tokens.float(), exact(images).last_hidden_state) < max(limit, 1e-2)
