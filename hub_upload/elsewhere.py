"""A repository as a stranger meets it: a fresh interpreter, another folder, an emulated Hub cache, no network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .check_code import PROJECT_PACKAGES
from .record import REFERENCE, Staged, record_folder

SUPPORTED = ("5.17.0", "5.23.0")
"""The oldest and the newest transformers that a published model must load under."""

REVISION = "0" * 40
PACKAGES = Path("build")
MODEL_PROBE = Path(__file__).with_name("probe.py")
DATASET_PROBE = Path(__file__).with_name("probe_dataset.py")
SPACE_PROBE = Path(__file__).with_name("probe_space.py")
SHOWN_LINES = 6


def prove(folder: Path, staged: Staged, packages: Path | None = None, timeout_s: float = 3600) -> dict[str, Any]:
    """Loads a staged folder in a fresh process, as `from_pretrained("org/name")` and `load_dataset` find it.

    Args:
        folder: what was staged.
        staged: its record.
        packages: folder of packages that come before the installed ones.
        timeout_s: after which the process is ended.

    Returns:
        What the probe says: {"faults": what is wrong, in words; "versions": of the libraries that ran, …}.
    """
    with tempfile.TemporaryDirectory(prefix="stranger-") as place:
        home = Path(place)
        command = [sys.executable, "-I", "-B", *_probe_command(folder, staged, home)]
        if packages is not None:
            command += ["--packages", str(packages.resolve())]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
        environment |= {"HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        environment |= {"HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HOME": place}
        try:
            result = subprocess.run(
                command, cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=timeout_s
            )
        except subprocess.TimeoutExpired:
            return {"faults": [f"it does not load and answer within {timeout_s:.0f} s"], "versions": {}}
    if result.returncode:
        return {"faults": [f"it does not load: {_last_lines(result.stderr)}"], "versions": {}}
    return json.loads(result.stdout.strip().splitlines()[-1])


def _probe_command(folder: Path, staged: Staged, home: Path) -> list[str]:
    if staged.repo_type == "space":
        shutil.copyfile(SPACE_PROBE, home / SPACE_PROBE.name)
        return [str(home / SPACE_PROBE.name), "--folder", str(folder.resolve())]
    if staged.repo_type == "dataset":
        shutil.copyfile(DATASET_PROBE, home / DATASET_PROBE.name)
        rows = json.dumps(staged.facts["rows"])
        return [str(home / DATASET_PROBE.name), "--folder", str(folder.resolve()), "--rows", rows]
    shutil.copyfile(MODEL_PROBE, home / MODEL_PROBE.name)
    _emulate_cache(folder, staged.repo_id, home / "hf" / "hub")
    reference = record_folder(folder) / REFERENCE
    command = [str(home / MODEL_PROBE.name), "--repo", staged.repo_id, "--reference", str(reference)]
    return [*command, "--blocked", ",".join(PROJECT_PACKAGES)]


def _emulate_cache(folder: Path, repo_id: str, cache: Path) -> None:
    """Lays the folder out as the Hub's client leaves a download: links from a snapshot to the files."""
    repository = cache / f"models--{repo_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / REVISION
    for path in folder.resolve().rglob("*"):
        if path.is_file():
            link = snapshot / path.relative_to(folder.resolve())
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)


def install_transformers(version: str, root: Path = PACKAGES) -> Path:
    """A folder with this version of transformers and what it needs besides torch, made by pip on first use.

    Raises:
        RuntimeError: pip failed; its last lines stand in the message.
    """
    folder = root / f"transformers-{version}"
    marker = folder / "complete"
    if marker.is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), f"transformers=={version}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(
            f"transformers {version} cannot be installed, so nothing is proved under it: say --installed-only to go "
            f"without. pip says: {_last_lines(result.stderr)}"
        )
    marker.touch()
    return folder


def _last_lines(text: str) -> str:
    return " | ".join(line.strip() for line in text.strip().splitlines()[-SHOWN_LINES:])
