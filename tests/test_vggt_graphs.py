"""CUDA graphs of the encoder: the numbers of the plain call, outputs of one's own, and a word where they cannot serve.

On a machine with a GPU: `pytest tests/test_vggt_graphs.py`.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
import warnings

import pytest
import torch

from modeling_vggt_qwen3 import cuda_graphs_vggt_qwen3, modeling_vggt
from modeling_vggt_qwen3.cuda_graphs_vggt_qwen3 import EncoderGraphs
from modeling_vggt_qwen3.modeling_vggt import VggtModel
from tests.vggt import fake_views, randomize, small_config

LAYERS = (-1, 1, 2)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def graphed(device: str, **options: object) -> VggtModel:
    """Blocks "compiled" by the compiler that leaves them as they are: what is tested here are the graphs."""
    model = randomize(VggtModel(small_config())).to(device)
    return model.compile_blocks(cuda_graphs=True, backend="eager", **options)


@pytest.fixture(scope="module")
def plain() -> VggtModel:
    return randomize(VggtModel(small_config())).to("cuda")


@pytest.fixture
def model() -> VggtModel:
    return graphed("cuda")


def views(num_views: int = 2, height: int = 42, width: int = 56, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randint(0, 256, (1, num_views, 3, height, width), dtype=torch.uint8, device="cuda")


def encode(model: VggtModel, pixels: torch.Tensor, **options: object) -> dict[int, torch.Tensor]:
    """No word is allowed: the graph must serve."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        return model(pixels, feature_layers=LAYERS, **options).feature_maps


def assert_same(found: dict[int, torch.Tensor], wanted: dict[int, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for layer, tokens in wanted.items():
        torch.testing.assert_close(found[layer], tokens, atol=1e-5, rtol=1e-5)


def test_without_a_gpu_it_says_so_and_gives_the_same_numbers():
    model, pixels = graphed("cpu"), fake_views()
    with torch.no_grad():
        wanted = randomize(VggtModel(small_config()))(pixels, feature_layers=LAYERS).feature_maps
        with pytest.warns(UserWarning, match="no CUDA graph for this call of the encoder, since the images are on cpu"):
            found = model(pixels, feature_layers=LAYERS).feature_maps
    assert_same(found, wanted)


def test_large_inputs_have_no_graph_and_need_no_word(monkeypatch):
    monkeypatch.setattr(modeling_vggt, "GRAPH_TOKENS", 2 * 17 - 1)
    model = graphed("cpu")
    encode(model, fake_views(1, 2))
    with torch.no_grad(), pytest.warns(UserWarning, match="no CUDA graph"):
        model(fake_views(1, 1))


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_refuses_graphs_within_graphs(mode):
    with pytest.raises(ValueError, match=f'mode="{mode}" makes a CUDA graph of each block'):
        VggtModel(small_config()).compile_blocks(cuda_graphs=True, mode=mode)


def test_copies_leave_the_graphs_behind():
    model = graphed("cpu")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")
            other(fake_views())
    model.compile_blocks(backend="eager")
    encode(model, fake_views())


class Rerunning:
    """A recorder without a GPU: what was recorded is run again."""

    def run(self, work):
        return work()

    def record(self, work):
        return work, None


@pytest.fixture
def without_gpu(monkeypatch):
    """Graphs of a model on a CPU; what their streams are told is listed."""
    told = []

    class Stream:
        def wait_event(self, event: object) -> None:
            told.append(("wait", event))

        def record_event(self) -> object:
            told.append(("record", object()))
            return told[-1][1]

    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: Stream())
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(VggtModel, "_can_use_graphs", lambda model, *_: model._graphs is not None)
    return told


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_sections_give_the_numbers_of_the_plain_call(dtype, without_gpu):
    plain = randomize(VggtModel(small_config())).to(dtype)
    model = copy.deepcopy(plain)
    model._graphs = EncoderGraphs(model, Rerunning())
    held = []
    for layers in (LAYERS, "all", (), (0,)):
        for shape in ((2, 3, 42, 56), (1, 1, 42, 56), (1, 5, 56, 56), (2, 3, 42, 56), (3, 2, 56, 42)):
            for seed in (0, 1):
                pixels = fake_views(*shape, seed)
                with torch.no_grad():
                    found, wanted = (each(pixels, feature_layers=layers) for each in (model, plain))
                assert torch.equal(found.last_hidden_state, wanted.last_hidden_state)
                held.append((found.feature_maps, wanted.feature_maps))
    assert 0 < len(model._graphs) <= cuda_graphs_vggt_qwen3.MAX_GRAPHS
    for found, wanted in held:  # the caller's own: no later call has overwritten them
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[layer], wanted[layer]) for layer in wanted)


def test_a_call_that_fails_is_waited_for_all_the_same(without_gpu, monkeypatch):
    model = randomize(VggtModel(small_config()))
    model._graphs = EncoderGraphs(model, Rerunning())
    encode(model, fake_views(1, 2))
    assert [what for what, _ in without_gpu] == ["record"]
    join = torch.cat

    def full(tensors: tuple, dim: int = 0) -> torch.Tensor:
        if dim == -1:
            raise torch.OutOfMemoryError("full")
        return join(tensors, dim=dim)

    for num_views in (2, 3):  # replayed, then recorded
        monkeypatch.setattr(torch, "cat", full)
        with pytest.raises(torch.OutOfMemoryError):
            encode(model, fake_views(1, num_views))
        failed = without_gpu[-1]
        assert failed[0] == "record"
        monkeypatch.setattr(torch, "cat", join)
        encode(model, fake_views(1, 2))
        assert without_gpu[-2] == ("wait", failed[1])


@needs_gpu
def test_same_numbers_for_any_shape(model, plain):
    for num_views, height, width in ((1, 42, 56), (3, 42, 56), (2, 56, 56), (1, 42, 56), (2, 56, 56)):
        for seed in (0, 1):
            pixels = views(num_views, height, width, seed)
            assert_same(encode(model, pixels), encode(plain, pixels))
            assert_same(encode(model, pixels / 255), encode(plain, pixels / 255))
    assert len(model._graphs) == 2 * 3
    with torch.no_grad():
        other_layers = model(pixels, feature_layers="all").feature_maps
    assert sorted(other_layers) == [0, 1, 2]
    with torch.inference_mode():
        assert_same(model(pixels, feature_layers=LAYERS).feature_maps, encode(plain, pixels))


@needs_gpu
def test_outputs_are_the_callers_own(model):
    found = encode(model, views())
    kept = {layer: tokens.clone() for layer, tokens in found.items()}
    encode(model, views(seed=1))
    encode(model, views(3, seed=2))
    assert_same(found, kept)
    found[2].zero_()
    assert_same(encode(model, views()), kept)


@needs_gpu
def test_keeps_few_shapes(model, plain, monkeypatch):
    monkeypatch.setattr(cuda_graphs_vggt_qwen3, "MAX_GRAPHS", 2)
    for num_views in (1, 2, 3, 1, 2, 3):
        assert_same(encode(model, views(num_views)), encode(plain, views(num_views)))
        assert len(model._graphs) <= 2


def held_by_graphs() -> int:
    """Bytes of the graphs' pools, of which the allocator's other figures know nothing."""
    segments = torch.cuda.memory_snapshot()
    return sum(segment["total_size"] for segment in segments if tuple(segment["segment_pool_id"]) != (0, 0))


@needs_gpu
def test_memory_is_that_of_the_largest_shape(model):
    encode(model, views(12, 112, 112))
    torch.cuda.synchronize()
    before, held = torch.cuda.memory_allocated(), held_by_graphs()
    assert held > 0
    for num_views in range(1, 12):
        encode(model, views(num_views, 112, 112))
    assert torch.cuda.memory_allocated() - before < 100_000  # rotary tables and the like
    assert held_by_graphs() - held <= 4 << 20  # two of the allocator's small segments


@needs_gpu
def test_sees_changed_weights(model, plain):
    pixels = views()
    before = encode(model, pixels)
    other = copy.deepcopy(plain)
    with torch.no_grad():
        for changed in (model, other):
            changed.global_blocks[1].mlp.fc2.weight.mul_(2)
    assert_same(encode(model, pixels), encode(other, pixels))
    assert not torch.equal(encode(model, pixels)[2], before[2])
    for changed in (model, other):
        changed.global_blocks[1].mlp.fc1.weight = torch.nn.Parameter(torch.randn(192, 48, device="cuda").zero_())
    assert_same(encode(model, pixels), encode(other, pixels))
    with torch.no_grad():
        found, wanted = model.bfloat16()(pixels), other.bfloat16()(pixels)
    assert torch.equal(found.last_hidden_state, wanted.last_hidden_state)


@needs_gpu
def test_survives_the_cache_of_constants(model, plain):
    """The tables of a resolution may be dropped while its graph lives."""
    pixels = views(2, 28, 42)
    wanted = encode(plain, pixels)
    encode(model, pixels)
    for columns in range(1, 40):
        encode(plain, views(1, 14, 14 * columns))
    junk = [torch.full((2000,), 7.0, device="cuda") for _ in range(2000)]
    assert_same(encode(model, pixels), wanted)
    del junk


@needs_gpu
def test_autocast_has_graphs_of_its_own(model, plain):
    pixels = views()
    exact = encode(plain, pixels)
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16):
            found, wanted = encode(model, pixels), encode(plain, pixels)
        assert_same(found, wanted)
        assert not torch.equal(found[2], exact[2])
        assert_same(encode(model, pixels), exact)


@needs_gpu
def test_threads_and_streams_do_not_mix(model, plain):
    wanted = [encode(plain, views(seed=seed)) for seed in range(4)]
    encode(model, views())
    torch.cuda.synchronize()
    faults = []

    def work(seed: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            pixels = views(seed=0) if seed == 0 else inputs[seed]
            for _ in range(20):
                found = encode(model, pixels)
                if not all(torch.allclose(found[k], wanted[seed][k], atol=1e-4) for k in found):
                    faults.append(seed)

    inputs = [views(seed=seed) for seed in range(4)]
    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


@needs_gpu
def test_says_why_it_does_not_serve(model, plain):
    pixels = views(2)
    with pytest.warns(UserWarning, match=r"gradients are enabled: call it under torch\.no_grad"):
        model(pixels).last_hidden_state.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    mask = torch.tensor([[True, False]], device="cuda")
    with torch.no_grad(), pytest.warns(UserWarning, match="some views are padded"):
        found = model(pixels, mask, LAYERS).feature_maps
    with torch.no_grad():
        wanted = plain(pixels, mask, LAYERS).feature_maps
    assert_same({k: v[:, :1] for k, v in found.items()}, {k: v[:, :1] for k, v in wanted.items()})
    model.gradient_checkpointing_enable()
    model.train()
    with torch.no_grad(), pytest.warns(UserWarning, match="recomputes activations"):
        model(pixels)
    assert len(model._graphs) == 0
