"""Steps recorded as graphs: the gradients and losses of plain steps, whatever the shapes of the batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from datasets_scripts.build import build
from datasets_scripts.rooms.catalogue import CLASSES
from datasets_scripts.rooms.source import RoomsSource
from modeling_vggt_qwen3 import modeling_vggt_qwen3
from modeling_vggt_qwen3.configuration_vggt_qwen3 import VggtQwen3Config
from modeling_vggt_qwen3.modeling_rays import RayDecoder
from modeling_vggt_qwen3.modeling_vggt_heads import VggtForReconstruction
from tests.fake import small_config
from train import main
from training.arguments import CONFIGS
from training.assembly import build_model
from training.data import Draw, SceneDataset
from training.graphed_step import MAX_GRAPHS, WARM, GraphedStep
from training.packing import IGNORE_INDEX
from training.prepare import COLOR_NAMES, prepare
from training.prepared import GRAPH_LABELS_MULTIPLE, PreparedCollator, PreparedScenes, answer_positions
from training.reconstruction import DenseReconstruction, ReconstructionCollator

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: CUDA graphs")


class Rerunning:
    """A recorder without a GPU: it runs recorded work again, on what lies in the recorded inputs by then."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def run(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        return work()

    def record(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        result = work()
        gradients = [parameter.grad for parameter in self.model.parameters()]

        def replay() -> None:
            self.model.zero_grad(set_to_none=True)
            result.copy_(work())
            for parameter, gradient in zip(self.model.parameters(), gradients):
                if gradient is not None:
                    gradient.copy_(parameter.grad)
                    parameter.grad = None  # a graph writes memory and knows no attributes

        return replay, result


def batch(number: int, rows: int = 3, scale: float = 1.0) -> dict:
    generator = torch.Generator().manual_seed(number)
    return {
        "x": torch.randn(rows, 4, generator=generator),
        "more": {"y": torch.randn(rows, generator=generator)},
        "scale": scale,
    }


def make_step() -> tuple[nn.Module, Callable[[dict], dict[str, torch.Tensor]]]:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)

    def compute(inputs: dict) -> dict[str, torch.Tensor]:
        loss = inputs["scale"] * (model(inputs["x"]).squeeze(-1) - inputs["more"]["y"]).square().mean()
        loss.backward()
        return {"loss": loss.detach(), "twice": 2 * loss.detach()}

    return model, compute


def train(batches: list[tuple[dict, object]], graphed: bool) -> tuple[list[float], torch.Tensor, int]:
    model, compute = make_step()
    graphs = GraphedStep(compute, model, Rerunning(model))
    step = graphs if graphed else lambda inputs, state: compute(inputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for inputs, state in batches:
        numbers = step(inputs, state)
        assert float(numbers["twice"]) == pytest.approx(2 * float(numbers["loss"]))
        losses.append(numbers["loss"].detach())
        optimizer.step()
        optimizer.zero_grad()
    return [float(loss) for loss in losses], model.weight.detach().clone(), graphs.num_recorded


@pytest.mark.parametrize(
    ("batches", "graphs"),
    [
        ([(batch(n), None) for n in range(9)], 1),
        ([(batch(n, rows=2 + n % 3), None) for n in range(24)], 3),
        ([(batch(n, scale=1.0 + n % 2), n // 20) for n in range(40)], 2),
    ],
    ids=["one shape", "three shapes", "constants and states"],
)
def test_trains_as_plain_steps_do(batches, graphs):
    losses, weight, recorded = train(batches, graphed=True)
    wanted_losses, wanted_weight, _ = train(batches, graphed=False)
    assert recorded == graphs
    assert losses == pytest.approx(wanted_losses, rel=1e-6)
    torch.testing.assert_close(weight, wanted_weight)


def test_what_cannot_be_recorded_runs_as_it_is():
    class Failing(Rerunning):
        def record(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
            work()
            raise RuntimeError("operation not permitted when stream is capturing")

    model, compute = make_step()
    step = GraphedStep(compute, model, Failing(model))
    for _ in range(WARM):
        step(batch(0))
        model.zero_grad()
    with pytest.warns(UserWarning, match="runs without one: operation not permitted"):
        step(batch(0))
    found = model.weight.grad.clone()
    model.zero_grad()
    compute(batch(0))
    torch.testing.assert_close(found, model.weight.grad)
    model.zero_grad()
    step(batch(0))
    assert step.num_recorded == 0


def test_begins_when_the_shape_is_warm_and_keeps_few_graphs():
    model, compute = make_step()
    step = GraphedStep(compute, model, Rerunning(model))
    for _ in range(WARM):
        step(batch(0))
        model.zero_grad()
    assert step.num_recorded == 0
    step(batch(0))
    assert step.num_recorded == 1
    with pytest.warns(UserWarning, match=f"more than {MAX_GRAPHS} shapes"):
        for rows in range(4, 4 + MAX_GRAPHS):
            for _ in range(WARM + 1):
                model.zero_grad()
                step(batch(0, rows))
    assert step.num_recorded == MAX_GRAPHS


def test_answer_positions_find_every_label_and_fill_up_with_none():
    labels = torch.full((3, 9000), IGNORE_INDEX)
    labels[0, 5:9], labels[2, 8999], labels[1, 1] = 7, 8, 9
    positions = answer_positions(labels)
    flat = labels.flatten()
    assert len(positions) == GRAPH_LABELS_MULTIPLE
    assert sorted(flat[positions][flat[positions] != IGNORE_INDEX].tolist()) == [7] * 4 + [8, 9]
    labels[:, 1:] = 3
    assert len(answer_positions(labels.index_fill(1, torch.tensor([4]), IGNORE_INDEX))) == 4 * GRAPH_LABELS_MULTIPLE
    with pytest.raises(ValueError, match="every token of the batch is a label"):
        answer_positions(labels)


def test_a_cpu_has_no_graphs(small_json, monkeypatch):
    """And says so before any data is built."""
    monkeypatch.setattr("train.embedded_dataset", lambda: pytest.fail("built data first"))
    with pytest.raises(
        ValueError, match=r"cuda_graphs cannot be followed: the device is a CPU.*prepare_data is not set"
    ):
        main(["--model", small_json, "--cuda_graphs", "true", "--use_cpu", "true", "--max_steps", "1"])


@pytest.fixture(scope="module")
def dense_rooms(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("graphed")
    source = RoomsSource(12, 2, views=2, size=56, dense_labels=True, questions_per_scene=6, actions_per_scene=4)
    build(source, folder / "rooms", num_proc=1, progress=False)
    config = small_config()
    config.text_config.vocab_size, config.perceiver_config.latent_start = 1536, "spread"
    (folder / "model.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    return folder


class Reads(TorchDispatchMode):
    """Names what a graph has no place for: looks at values, shapes that depend on them, numbers copied from Python."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "masked_scatter", "lift_fresh", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        by_mask = name.startswith("index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], (list, tuple)) else ())
        )
        if by_mask or name.startswith(self.NAMES):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stage", ["0", "1"])
def test_a_step_reads_nothing_of_what_it_computes(stage, dense_rooms, monkeypatch):
    monkeypatch.setattr(modeling_vggt_qwen3, "_is_recording", lambda _: True)
    config = VggtQwen3Config.from_json_file(dense_rooms / "model.json")
    model, processor = build_model(config, str(CONFIGS / "tokenizer-tiny"))
    dataset = SceneDataset([dense_rooms / "rooms"], "train", num_views=2)
    prepared = PreparedScenes(prepare(dataset, processor, dense_rooms / "prepared", num_proc=1))
    collator = PreparedCollator(
        prepared, dataset, processor, config.task_names, geometry_dropout=0.5, num_rays=8, few_shapes=True
    )
    draws = [Draw(scene, (scene * 10, scene * 10 + 1), None, (0, 0, scene)) for scene in range(4)]
    if stage == "0":
        batch, layers = ReconstructionCollator(collator, map_scenes=2)(draws), [0]
        model = DenseReconstruction(VggtForReconstruction(config.vision_config), layers)
    else:
        batch = collator(draws)
        del batch["view_mask"]
        batch["num_items_in_batch"] = torch.ones(len(config.task_names))
        width = config.text_config.hidden_size
        model.add_ray_decoder(RayDecoder(width, num_classes=len(CLASSES), num_colors=len(COLOR_NAMES)))
    model.train()
    model(**batch).loss.backward()  # makes what is kept for later batches
    with Reads() as reads:
        model(**batch).loss.backward()
    assert reads.found == []


@pytest.mark.parametrize("precision", ["false", pytest.param("true", marks=needs_gpu)])
@pytest.mark.parametrize("stage", ["0", "1", "2"])
def test_stages_train_as_without_graphs(stage, precision, dense_rooms, tmp_path, monkeypatch):
    """On a CPU the recorder runs the step again; what a graph must be given and gives back is the same.

    In bfloat16 also compiled.
    """
    place = "device"
    if not torch.cuda.is_available():
        place, plain = "cpu", GraphedStep.__init__
        for module in ("train", "training.trainer", "training.reconstruction"):
            monkeypatch.setattr(f"{module}.graphs_wanted", lambda args, *_: args.cuda_graphs)
        monkeypatch.setattr(GraphedStep, "__init__", lambda self, *args: plain(self, *args, Rerunning(args[1])))
    words = ["--dataset", str(dense_rooms / "rooms"), "--prepared_dir", str(dense_rooms / "prepared")]
    words += ["--model", str(dense_rooms / "model.json"), "--prepare_data", place, "--num_views", "2"]
    words += ["--samples_per_scene", "2", "--per_device_train_batch_size", "8", "--max_steps", "24"]
    if precision == "true":
        words += ["--compile_parts", "vision", *(["resampler", "text"] if stage != "0" else [])]
    words += ["--bf16", precision, "--logging_steps", "1", "--report_to", "none", "--save_strategy", "no"]
    if stage == "0":
        words += ["--objective", "reconstruction"]
    else:
        words += ["--geometry_consistency", "0.5", "--latent_labels", "1", "--latent_labels_until", "0.7"]
        words += ["--trainable_parts", "resampler", "geometry_tokens", "text", "--num_rays", "16"]
        words += ["--tasks", "rooms_qa"] if stage == "1" else ["--task_mix", '{"rooms_actions": 0.5, "rooms_qa": 0.5}']
    losses, graphs = {}, {}
    for wanted in ("false", "true"):
        output = tmp_path / wanted
        graphs[wanted] = main([*words, "--cuda_graphs", wanted, "--output_dir", str(output)]).graphs
        lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
        losses[wanted] = [[v for k, v in sorted(line.items()) if k.startswith("loss")] for line in lines]
    assert graphs["false"] is None
    assert graphs["true"].num_recorded > 0
    for found, plain in zip(losses["true"], losses["false"], strict=True):
        assert found == pytest.approx(plain, rel=0.05 if precision == "true" else 2e-3, abs=1e-3)
