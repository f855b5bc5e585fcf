"""The notebooks run from top to bottom, on a small model, and are what their sources say."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from notebooks.convert import FOLDER, NOTEBOOKS, notebook_of
from tests.hub import ANSWER, make_talking_checkpoint

pytestmark = pytest.mark.xdist_group("notebooks")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_talking_checkpoint(tmp_path_factory.mktemp("notebooks") / "model")


def run(name: str, model: Path, rooms: Path, output: Path) -> tuple[str, list[np.ndarray]]:
    """Runs a notebook as Jupyter does, from its own folder; returns what it printed and the pictures it drew."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    places = {"MODEL": str(model), "DATASET": str(rooms), "OUTPUT": str(output), "HF_HUB_OFFLINE": "1"}
    places |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "OMP_NUM_THREADS": "1"}
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}})
    client.execute(env={**os.environ, **places})
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return printed, [np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")) for png in pictures]


def test_quickstart(model, rooms, tmp_path):
    printed, pictures = run("quickstart", model, rooms, tmp_path / "run")
    assert f"What colour is the desk?         {ANSWER}\n" in printed
    assert printed.count(ANSWER) == 5  # three questions, one through a pipeline, one after training
    assert '"action": "place_anchor"' in printed
    assert '"scene": "study"' in printed
    assert "without cameras: metres are unknown without cameras" in printed
    assert "loss of each step: [" in printed
    assert (tmp_path / "run" / "config.json").is_file()
    views, drawn, plan = pictures
    assert views.shape == drawn.shape
    assert (views != drawn).any()  # the box stands in at least one view
    assert plan.std() > 10


def test_own_scan(model, rooms, tmp_path):
    printed, pictures = run("own_scan", model, rooms, tmp_path)
    assert "4 views, cameras unknown" in printed
    assert f"What colour is the fridge?               {ANSWER}\n" in printed
    assert "scenes: 1 train" in printed
    assert '"action": "place_anchor"' in printed
    assert 'without RoomPlan: {"action": "place_anchor", "scene": "my-session"' in printed
    assert "'objects': 1" in printed
    assert len(pictures) == 2


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_those_of_their_sources(name):
    """After editing a source: python notebooks/convert.py."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert notebook == notebook_of((FOLDER / f"{name}.py").read_text())
    assert not any(cell.get("outputs") for cell in notebook.cells)
