"""The data benchmark runs from end to end at a tiny size, and its figures are what they claim."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.bench_data import main


def test_the_benchmark_of_data(tmp_path: Path) -> None:
    small = (
        "--rooms 1 --frames 24 --views 4 --scenes 2 --candidates 6 --stored 6 --side 168 --questions 4 --seconds 0.3"
    )
    command = [*small.split(), "--workers", "1", "--image-size", "112", "--output", str(tmp_path / "figures.json")]
    figures = main(command)
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    room, worst = figures["coverage"]
    assert 0 < room["first"] < room["coverage"] <= 1 and worst["coverage"] == room["coverage"]
    (built,) = figures["build"]
    assert built["views/s"] == pytest.approx(6 * built["scenes/s"])
    assert [row["stage"] for row in figures["loader"]] == ["decoded", "tensors"]
    assert all(row["ratio"] == pytest.approx(row["4 a scene"] / row["one by one"]) for row in figures["loader"])
