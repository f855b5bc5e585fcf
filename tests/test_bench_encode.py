"""The encoder's benchmark: complete figures, its operation count, and errors before anything costs time."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bench_encode import Size, build_encoder, count_operations, main, parse_sizes, pool_bytes
from tests.vggt import small_config

REFERENCE = """
import torch
class Other(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = torch.nn.Linear(3, width)
    def forward(self, images):
        assert images.ndim == 5
        return self.layer(images.movedim(2, -1))
"""


def test_figures_of_ours_and_of_a_reference(tmp_path, monkeypatch):
    (tmp_path / "other_encoder.py").write_text(REFERENCE)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "small.json").write_text(json.dumps(small_config().to_diff_dict()))
    output = tmp_path / "out" / "encode.json"
    options = ["--output", str(output), "--config", str(tmp_path / "small.json"), "--sizes", "1x28x28,2x28x42"]
    options += ["--repeats", "2", "--warmup", "1", "--dtype", "bfloat16", "--device", "cpu", "--accuracy", "--profile"]
    main([*options, "--reference", "other_encoder:Other", "--reference-arguments", '{"width": 4}'])
    result = json.loads(output.read_text())
    assert [row["views"] for row in result["rows"]] == [2, 1] * 3  # largest first: its graph would serve the others
    rows = {(row["encoder"], row["views"]): row for row in result["rows"]}
    assert set(rows) == {(name, views) for name in ("VggtModel", "Other autocast", "Other weights") for views in (1, 2)}
    for row in rows.values():
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]
    assert result["settings"]["config"]["hidden_size"] == 48
    assert set(result["relative_errors"]) == {"-1", "0", "1", "2"}
    assert all(0 < error < 1e-2 for error in result["relative_errors"].values())
    assert output.with_suffix(".svg").read_text().startswith("<?xml")
    assert "aten::" in output.with_suffix(".profile.txt").read_text()


def test_figures_outlive_a_reference_that_fails(tmp_path, monkeypatch):
    (tmp_path / "failing_encoder.py").write_text(REFERENCE.replace("assert images.ndim == 5", "raise ArithmeticError"))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "small.json").write_text(json.dumps(small_config().to_diff_dict()))
    options = ["--output", str(tmp_path / "encode.json"), "--config", str(tmp_path / "small.json"), "--device", "cpu"]
    options += ["--sizes", "1x28x28", "--repeats", "1", "--warmup", "0", "--reference-arguments", '{"width": 4}']
    with pytest.raises(ArithmeticError):
        main([*options, "--reference", "failing_encoder:Other"])
    assert [row["views"] for row in json.loads((tmp_path / "encode.json").read_text())["rows"]] == [1]


def test_memory_of_graphs_is_what_their_pools_hold_beside_what_is_allocated():
    segments = [
        {"segment_pool_id": (0, 0), "total_size": 100, "allocated_size": 10},
        {"segment_pool_id": (0, 1), "total_size": 64, "allocated_size": 24},
        {"segment_pool_id": (0, 2), "total_size": 32, "allocated_size": 0},
    ]
    assert pool_bytes(segments) == 40 + 32


def test_counts_the_operations_of_all_matrix_products():
    config, size = small_config(), Size(views=3, height=56, width=56)  # its own size: no table is resized
    model = build_encoder(config, torch.device("cpu"))
    model.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 3, 3, 56, 56))
    assert counter.get_total_flops() == pytest.approx(1e12 * count_operations(config, size), rel=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "8x448"], "wanted views x height x width"),
        (["--sizes", "8x448xlarge"], "wanted views x height x width"),
        (
            ["--sizes", "1x28x28,0x28x28,1x30x28"],
            "0x28x28, 1x30x28: wanted 1 view or more and sides in multiples of 14",
        ),
        (["--cuda-graphs"], "--cuda-graphs: only with --compile"),
        (["--reference", "nowhere.at_all:Aggregator"], "put its folder on PYTHONPATH"),
        (["--reference", "torch:Aggregator"], "put its folder on PYTHONPATH"),
    ],
)
def test_refuses_what_it_cannot_measure(tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        main(["--device", "cpu", "--output", str(tmp_path / "out" / "encode.json"), *options])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="wanted views"):
        parse_sizes("", 14)
